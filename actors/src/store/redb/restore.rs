//! A database made of a backup: under another name until all of it is known to be what was written.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use ::redb::{Builder, Database, WriteTransaction};

use super::{
    super::{
        backup::{self, BackupError, Header, Keep, Summary},
        tables::{AnyTable, TABLES},
    },
    FILE, Fault, OpenError, begin, fenced, take_lock,
};

/// About the most bytes of one commit.
const COMMIT: usize = 8 << 20;
/// Of pages.
const CACHE: usize = 64 << 20;

/// Why nothing was restored. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{} holds a database already; a backup is restored into a directory without one", .0.display())]
    Exists(PathBuf),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// Makes a database of the backup in `dir`, which may hold none. It is there whole, or not at all.
pub fn restore(from: impl Read, dir: &Path) -> Result<Summary, RestoreError> {
    let failed = |file: &Path| {
        let file = file.display().to_string();
        move |source| RestoreError::Open(OpenError::Io { file, source })
    };
    let is_new = !dir.try_exists().map_err(failed(dir))?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
    let lock = take_lock(dir)?;
    let (path, made) = (dir.join(FILE), dir.join("raddle.redb.restoring"));
    let done = if path.try_exists().map_err(failed(&path))? {
        Err(RestoreError::Exists(dir.to_owned()))
    } else {
        fill(from, &made).and_then(|summary| {
            let synced = File::open(&made).and_then(|file| file.sync_all()).map_err(failed(&made));
            synced?;
            fs::rename(&made, &path).map_err(failed(&path))?;
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))?;
            Ok(summary)
        })
    };
    if done.is_err() {
        // What cannot be removed is made anew by the next attempt, and is no database to anybody else.
        drop(fs::remove_file(&made));
        if is_new {
            drop(fs::remove_file(dir.join("raddle.lock")));
            drop(fs::remove_dir(dir));
        }
    }
    drop(lock);
    done
}

fn fill(from: impl Read, made: &Path) -> Result<Summary, RestoreError> {
    match fs::remove_file(made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(OpenError::Io { file: made.display().to_string(), source: error }.into());
        }
        _ => {}
    }
    let database = fenced(|| Ok(Builder::new().set_cache_size(CACHE).create(made)?)).map_err(told)?;
    let mut filling = Filling { database: &database, txn: None, bytes: 0 };
    let summary = backup::read(from, &mut filling)?;
    filling.commit(true)?;
    fenced(|| Ok(database.close()?)).map_err(told)?;
    Ok(summary)
}

fn told(fault: Fault) -> BackupError {
    BackupError::Keep(match fault {
        Fault::Redb(error) => error.to_string(),
        Fault::Corrupt(corrupt) => corrupt.to_string(),
        Fault::Panic(why) => why,
    })
}

struct Filling<'d> {
    database: &'d Database,
    txn: Option<WriteTransaction>,
    /// In the transaction.
    bytes: usize,
}

impl Filling<'_> {
    fn txn(&mut self) -> Result<&WriteTransaction, BackupError> {
        if self.txn.is_none() {
            self.txn = Some(fenced(|| begin(self.database)).map_err(told)?);
        }
        self.txn.as_ref().ok_or_else(|| BackupError::Keep("there is no transaction".to_owned()))
    }

    fn commit(&mut self, last: bool) -> Result<(), BackupError> {
        self.txn()?;
        self.bytes = 0;
        let Some(mut txn) = self.txn.take() else { return Ok(()) };
        fenced(|| {
            // The first start is not to read the whole file.
            txn.set_quick_repair(last);
            Ok(txn.commit()?)
        })
        .map_err(told)
    }
}

impl Keep for Filling<'_> {
    fn begin(&mut self, header: &Header) -> Result<(), BackupError> {
        let txn = self.txn()?;
        // Those of its layout and no others: the store makes the rest when it is opened.
        for table in TABLES.iter().filter(|table| table.since() <= header.layout) {
            fenced(|| Ok(table.make(txn)?)).map_err(told)?;
        }
        Ok(())
    }

    fn records(&mut self, of: &'static dyn AnyTable, records: &[(&[u8], &[u8])]) -> Result<(), BackupError> {
        if let Some((key, value)) =
            records.iter().find(|(_, value)| of.fixed().is_some_and(|fixed| fixed != value.len()))
        {
            return Err(BackupError::Damaged(format!(
                "table `{}`: a value of {} bytes under a key of {}",
                of.name(),
                value.len(),
                key.len()
            )));
        }
        let txn = self.txn()?;
        fenced(|| Ok(of.put(txn, records)?)).map_err(told)?;
        self.bytes += records.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        if self.bytes >= COMMIT { self.commit(false) } else { Ok(()) }
    }
}
