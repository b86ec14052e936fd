//! `raddle backup` and `raddle restore`: everything as one file, and a data directory made of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use futures_util::StreamExt;
use raddle_actors::{
    SystemClock,
    store::{
        backup::{self, BackupError, Summary},
        redb::{RedbConfig, RedbStore, RestoreError, restore},
    },
};
use raddle_domain::ports::{Clock, LogStore};
use serde_json::json;

use super::{Failure, Remote, say, say_json};

/// Write a backup of everything to a file
///
/// From a running server, which goes on meanwhile; or from the data directory of one that is down. The file is checked
/// before it gets its name. Workspaces are not in it.
#[derive(Debug, Args)]
pub struct Backup {
    /// Where to; it must not be there yet
    file: PathBuf,
    /// Read this directory, whose server is down, and ask none
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// Make a data directory of a backup
///
/// The directory must hold no database. What is damaged is named, and nothing is left of an attempt that failed.
#[derive(Debug, Args)]
pub struct Restore {
    file: PathBuf,
    /// Only check the file, and write nothing
    #[arg(long)]
    verify: bool,
    /// Where to
    #[arg(long, value_name = "DIR", required_unless_present = "verify", conflicts_with = "verify")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn about(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {why}", path.display()))
}

/// A file that gets its name once it is whole. Until then it is beside it, for its owner alone, and gone with this.
pub struct Aside {
    path: PathBuf,
    made: PathBuf,
}

impl Aside {
    pub fn of(path: &Path) -> Result<(Self, File), Failure> {
        let exists = path.try_exists().map_err(|why| about(path, why))?;
        let Some(name) = path.file_name().filter(|_| !exists) else {
            return Err(Failure::Usage(format!("{} is there already", path.display())));
        };
        let mut made = name.to_owned();
        made.push(".part");
        let made = path.with_file_name(made);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&made);
        let file = file.map_err(|why| about(&made, why))?;
        Ok((Self { path: path.to_owned(), made }, file))
    }

    /// Where it is now.
    pub fn made(&self) -> &Path {
        &self.made
    }

    /// Gives it its name.
    pub fn done(self, file: &File) -> Result<(), Failure> {
        let named = || -> io::Result<()> {
            file.sync_all()?;
            fs::rename(&self.made, &self.path)?;
            let above = self.path.parent().filter(|above| !above.as_os_str().is_empty());
            File::open(above.unwrap_or(Path::new(".")))?.sync_all()
        };
        named().map_err(|why| about(&self.path, why))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // It is not what was asked for, or it has its name by now.
        drop(fs::remove_file(&self.made));
    }
}

impl Backup {
    pub async fn run(self) -> Result<(), Failure> {
        let (aside, file) = Aside::of(&self.file)?;
        let mut out = BufWriter::new(file);
        match &self.data_dir {
            Some(dir) => offline(dir, &mut out)?,
            None => {
                let mut pieces = self.remote.client()?.backup().await?;
                while let Some(piece) = pieces.next().await {
                    out.write_all(&piece?).map_err(|why| about(aside.made(), why))?;
                }
            }
        }
        let file = out.into_inner().map_err(|why| about(aside.made(), why.error()))?;
        let summary = verify(aside.made())?;
        aside.done(&file)?;
        told(&summary, self.remote.json, &format!("{} holds", self.file.display()))
    }
}

/// From a directory that no server uses.
fn offline(dir: &Path, out: &mut impl Write) -> Result<(), Failure> {
    if !RedbStore::is_in(dir).map_err(|why| about(dir, why))? {
        return Err(Failure::Failed(format!("{} holds no database", dir.display())));
    }
    let store = RedbStore::open(&RedbConfig::new(dir)).map_err(|why| Failure::Failed(why.to_string()))?;
    let view = store.view().map_err(|why| about(dir, why))?;
    let mut failed = None;
    let written = backup::write(&*view, env!("CARGO_PKG_VERSION"), SystemClock.now(), |piece| {
        out.write_all(&piece).map_err(|why| {
            failed = Some(why);
            BackupError::Gone
        })
    });
    match (written, failed) {
        (_, Some(why)) => Err(why.into()),
        (Err(why), None) => Err(about(dir, why)),
        (Ok(_), None) => Ok(()),
    }
}

fn verify(path: &Path) -> Result<Summary, Failure> {
    let file = File::open(path).map_err(|why| about(path, why))?;
    backup::verify(BufReader::new(file)).map_err(|why| about(path, why))
}

impl Restore {
    pub async fn run(self) -> Result<(), Failure> {
        let Some(dir) = &self.data_dir else {
            let summary = verify(&self.file)?;
            return told(&summary, self.json, &format!("{} is whole:", self.file.display()));
        };
        let file = File::open(&self.file).map_err(|why| about(&self.file, why))?;
        let summary = restore(BufReader::new(file), dir).map_err(|why| match why {
            RestoreError::Backup(why) => about(&self.file, why),
            RestoreError::Exists(_) | RestoreError::Open(_) => Failure::Failed(why.to_string()),
        })?;
        told(&summary, self.json, &format!("{} holds", dir.display()))
    }
}

/// Says what is in a backup.
fn told(summary: &Summary, as_json: bool, begin: &str) -> Result<(), Failure> {
    let Summary { header, records, bytes, sha256, damaged } = summary;
    if as_json {
        return say_json(&json!({
            "raddle": header.raddle, "at": header.at, "layout": header.layout, "records": records, "bytes": bytes,
            "sha256": sha256, "damaged": damaged,
        }));
    }
    let count = |table: &str| records.get(table).copied().unwrap_or_default();
    let (all, logs) = (records.values().sum::<u64>(), count("threads"));
    let at = serde_json::to_value(header.at).ok().and_then(|at| at.as_str().map(str::to_owned)).unwrap_or_default();
    say(&format!("{begin} {logs} logs in {all} records, {bytes} bytes, as of {at}"))?;
    say(&format!("sha256 {sha256}"))?;
    for record in damaged {
        eprintln!("damaged in the store already, and still: {record}");
    }
    Ok(())
}
