//! Threads in one redb file.
//!
//! * One write transaction per commit, synced before `commit` returns. What it costs is the pages it touches: a step
//!   writes one chunk and one row, and an index only when its part of the row's head moved (`write`).
//! * redb refuses everything on a handle that saw an I/O error. The first error is kept and answered to everyone
//!   until [`reopen`](LogStore::reopen) has closed the handle, opened a new one and committed on it.
//! * Before each commit the free space is looked at. Too little is answered without touching redb: reads go on, and
//!   nothing has to be opened again when there is space.
//! * redb may panic on a damaged file. Every call into it is fenced, so that a panic becomes an error.
//!
//! Locks: `writer` is held for a whole commit; `slot` is held for writing only while a handle is put in or taken out,
//! so readers never wait for a commit or a repair. Absent on purpose: `Durability::None`, savepoints, compaction.

mod figures;
mod inherit;
mod lineage;
mod pack;
mod restore;
mod view;
mod write;

use std::{
    any::Any,
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write as _},
    mem,
    ops::Deref,
    os::unix::fs::DirBuilderExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use self::restore::{RestoreError, restore};

use ::redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableHandle, WriteTransaction};
use raddle_domain::{
    closed::{Closed, State},
    id::TenantId,
    ports::{Corrupt, DocumentKind, Figures, LogStore, StoreError, View, Write, WriteRefused},
    time::UnixMs,
};

use super::{
    backend::{Faults, FileMedium, Medium, MemoryMedium, Watch, Watched},
    closed::Shut,
    codec,
    keys::{
        EXPIRY, ExpiryKey, META, MetaKey, RECEIPTS, StoreKey,
        tenant::{DOCUMENTS, DocumentKey},
    },
    tables::{LAYOUT, TABLES},
};

/// The database in its directory.
const FILE: &str = "raddle.redb";

/// A batch from here on is committed so that the next open is quick: it syncs twice anyway in proportion.
const BIG_BATCH: usize = 64;

/// Where the store is, and how it treats the disk.
#[derive(Debug, Clone)]
pub struct RedbConfig {
    /// Holds `raddle.redb` and `raddle.lock`; created when missing.
    pub data_dir: PathBuf,
    /// Bytes of memory for pages.
    pub cache_bytes: usize,
    /// With fewer bytes free on the disk, writes are refused as [`StoreError::Full`].
    pub min_free_bytes: u64,
    /// Added to every sync: for benches.
    pub sync_delay: Duration,
    /// `false` never syncs: for benches. Loses data in a power cut.
    pub durable: bool,
    /// What the disk does wrong, on purpose: for whoever tries that.
    pub faults: Arc<Faults>,
}

impl RedbConfig {
    /// The defaults: 64 MiB of cache, 16 MiB kept free, every commit synced.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            cache_bytes: 64 << 20,
            min_free_bytes: 16 << 20,
            sync_delay: Duration::ZERO,
            durable: true,
            faults: Arc::default(),
        }
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by the process {}", .dir.display(), .pid.map_or("(unknown)".to_owned(), |pid| pid.to_string()))]
    InUse { dir: PathBuf, pid: Option<u32> },
    /// The file is not a whole database.
    #[error("the database {file} is damaged: {why}")]
    Damaged { file: String, why: String },
    #[error("the database {file} cannot be opened: {source}")]
    Io { file: String, source: io::Error },
}

/// The store. See the module's text.
pub struct RedbStore {
    medium: Arc<dyn Medium>,
    cache_bytes: usize,
    min_free_bytes: u64,
    epoch: u64,
    writer: Mutex<Writer>,
    slot: RwLock<Option<Opened>>,
    /// Tenants that are closed, and why: what the last commit says of them.
    closed: RwLock<Arc<HashMap<TenantId, State>>>,
    figures: figures::Counts,
    /// Held as long as the store is.
    _lock: Option<File>,
}

struct Opened {
    database: Quiet<Database>,
    watch: Arc<Watch>,
    /// Set when a panic came out of the handle: no more is asked of it.
    broken: AtomicBool,
}

/// Something of redb's whose end may panic too, after a panic within it; here it ends without.
struct Quiet<T>(Option<T>);

impl<T> Quiet<T> {
    fn new(held: T) -> Self {
        Self(Some(held))
    }
}

impl<T> Deref for Quiet<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // Taken in `drop` alone.
        self.0.as_ref().expect("held until dropped")
    }
}

impl<T> Drop for Quiet<T> {
    fn drop(&mut self) {
        let held = self.0.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(held))) {
            tracing::error!(why = said(&*panic), "redb panicked while it was let go");
        }
    }
}

/// The words of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[derive(Default)]
struct Writer {
    /// The first error of the handle.
    failed: Option<StoreError>,
    /// Whether anything was written since the last rest.
    restless: bool,
}

/// What went wrong inside one call into redb.
enum Fault {
    Redb(::redb::Error),
    Corrupt(Corrupt),
    Panic(String),
}

impl<E: Into<::redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// Turns a panic into an error.
fn fenced<T>(call: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    // What a panic leaves half done inside redb is never used again: the handle counts as broken.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(Fault::Panic(said(&*panic).to_owned())))
}

impl Fault {
    fn is_missing_table(&self) -> bool {
        use ::redb::Error::{
            TableDoesNotExist, TableIsMultimap, TableIsNotMultimap, TableTypeMismatch, TypeDefinitionChanged,
        };
        matches!(
            self,
            Self::Redb(
                TableDoesNotExist(_)
                    | TableIsMultimap(_)
                    | TableIsNotMultimap(_)
                    | TableTypeMismatch { .. }
                    | TypeDefinitionChanged { .. }
            )
        )
    }

    /// As the port says it.
    fn store_error(self, medium: &dyn Medium) -> StoreError {
        let damaged = self.is_missing_table();
        match self {
            Self::Corrupt(corrupt) => StoreError::Corrupt(corrupt),
            Self::Redb(::redb::Error::Corrupted(why)) => StoreError::Corrupt(Corrupt { record: medium.name(), why }),
            Self::Redb(error) if damaged => {
                StoreError::Corrupt(Corrupt { record: medium.name(), why: error.to_string() })
            }
            Self::Redb(error) => StoreError::Unavailable(error.to_string()),
            Self::Panic(why) => StoreError::Corrupt(Corrupt { record: medium.name(), why }),
        }
    }
}

impl RedbStore {
    /// Opens, or creates, the database in `config.data_dir` and takes the directory for this process.
    pub fn open(config: &RedbConfig) -> Result<Self, OpenError> {
        let dir = &config.data_dir;
        let failed = |source| OpenError::Io { file: dir.display().to_string(), source };
        // What people and models say is nobody else's.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock = take_lock(dir)?;
        let RedbConfig { sync_delay, durable, .. } = *config;
        let medium = FileMedium { path: dir.join(FILE), sync_delay, durable, faults: config.faults.clone() };
        Self::open_on(Arc::new(medium), config.cache_bytes, config.min_free_bytes, Some(lock))
    }

    /// Whether the directory holds a database.
    pub fn is_in(dir: &Path) -> io::Result<bool> {
        dir.join(FILE).try_exists()
    }

    /// Opens, or creates, a database on `medium`. Both sizes are in bytes.
    #[doc(hidden)]
    pub fn open_medium(medium: Arc<dyn Medium>, cache: usize, min_free: u64) -> Result<Self, OpenError> {
        Self::open_on(medium, cache, min_free, None)
    }

    fn open_on(medium: Arc<dyn Medium>, cache: usize, min_free: u64, lock: Option<File>) -> Result<Self, OpenError> {
        let opened = (|| {
            create_if_new(&*medium)?;
            let opened = open_handle(&*medium, cache)?;
            let epoch = fenced(|| begin_epoch(&opened.database))?;
            let closed = fenced(|| closed(&opened.database))?;
            Ok((opened, epoch, closed))
        })();
        let (opened, epoch, closed) = opened.map_err(|fault: Fault| {
            let file = medium.name();
            match fault {
                Fault::Redb(::redb::Error::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
                    OpenError::Io { file, source }
                }
                Fault::Redb(error) => OpenError::Damaged { file, why: error.to_string() },
                Fault::Corrupt(corrupt) => OpenError::Damaged { file, why: corrupt.to_string() },
                Fault::Panic(why) => OpenError::Damaged { file, why },
            }
        })?;
        Ok(Self {
            medium,
            cache_bytes: cache,
            min_free_bytes: min_free,
            epoch,
            writer: Mutex::default(),
            slot: RwLock::new(Some(opened)),
            closed: RwLock::new(Arc::new(closed)),
            figures: figures::Counts::default(),
            _lock: lock,
        })
    }

    /// Bytes of what is stored, and of the pages that it stands on: for benches. Reads everything.
    #[doc(hidden)]
    pub fn occupied(&self) -> Result<(u64, u64), StoreError> {
        self.write(&mut self.writer(), false, |database, _| {
            let txn = begin(database)?;
            let stats = txn.stats()?;
            txn.abort()?;
            Ok((stats.stored_bytes(), stats.allocated_pages() * stats.page_size() as u64))
        })
    }

    /// Nothing is left half changed under this lock: its holder replaces whole values.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> Arc<HashMap<TenantId, State>> {
        self.closed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        match self.medium.free_bytes() {
            Ok(free) if free < needed => Err(StoreError::Full),
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }

    /// Runs `work` on the open handle as its only writer, and keeps the error if it breaks the handle.
    fn write<T>(
        &self,
        writer: &mut Writer,
        grows: bool,
        work: impl FnOnce(&Database, &mut Writer) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        if let Some(failed) = &writer.failed {
            return Err(failed.clone());
        }
        // What only removes may use most of the room that is kept free: that is what it is kept for. Not all of it: a
        // commit that meets the end of the disk costs the handle, and with it the reads.
        self.check_space(if grows { self.min_free_bytes } else { self.min_free_bytes / 4 })?;
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = slot.as_ref() else { return Err(being_opened()) };
        opened.watch.begin_commit();
        fenced(|| work(&opened.database, writer)).map_err(|fault| {
            let panicked = matches!(fault, Fault::Panic(_));
            if panicked {
                opened.broken.store(true, Ordering::Relaxed);
            }
            let error = match fault.store_error(&*self.medium) {
                _ if opened.watch.is_full() => StoreError::Full,
                // It may be stored or not, which is what a caller has to know first.
                StoreError::Corrupt(corrupt) if panicked => StoreError::Unavailable(corrupt.to_string()),
                other => other,
            };
            writer.failed = Some(error.clone());
            error
        })
    }
}

fn being_opened() -> StoreError {
    StoreError::Unavailable("the database is being opened again".to_owned())
}

/// Takes the directory for this process, or says who has it.
fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("raddle.lock");
    let failed = |source| OpenError::Io { file: path.display().to_string(), source };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::InUse { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// redb makes a new file in several writes and cannot read what a crash leaves between them: the empty database is
/// made in memory and put in place whole.
fn create_if_new(medium: &dyn Medium) -> Result<(), Fault> {
    if medium.is_new()? {
        let made = MemoryMedium::default();
        fenced(|| Ok(Builder::new().create_with_backend(made.clone())?.close()?))?;
        medium.install(&made.bytes())?;
    }
    Ok(())
}

fn open_handle(medium: &dyn Medium, cache_bytes: usize) -> Result<Opened, Fault> {
    let inner = medium.open()?;
    let watch = Arc::new(Watch::default());
    let backend = Watched { inner, watch: watch.clone() };
    let database = fenced(|| Ok(Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)?))?;
    Ok(Opened { database: Quiet::new(database), watch, broken: AtomicBool::new(false) })
}

/// Makes the tables of a new database, counts the open, and returns the count.
fn begin_epoch(database: &Database) -> Result<u64, Fault> {
    let names: Vec<String> = {
        let txn = database.begin_read()?;
        txn.list_tables()?.map(|table| table.name().to_owned()).collect()
    };
    let mut txn = begin(database)?;
    // A server that dies before its first rest must not make the next one read the whole file.
    txn.set_quick_repair(true);
    let fresh = names.is_empty();
    let has = |table: &str| names.iter().any(|name| name == table);
    let made_by = if fresh { 0 } else { layout(&txn, has(META.name()))? };
    // A table that its layout has and the database has not was lost, and one that comes too early says that the
    // layout was: neither may be hidden by a new, empty table.
    for table in TABLES {
        if has(table.name()) != (made_by >= table.since()) {
            let what = if made_by >= table.since() { "the table is missing" } else { "the layout is missing" };
            return Err(Fault::Redb(::redb::Error::Corrupted(format!("{}: {what}", table.name()))));
        }
        table.make(&txn)?;
    }
    let epoch = {
        let mut meta = txn.open_table(META)?;
        let before = match meta.get(MetaKey::epoch())? {
            Some(bytes) => codec::read_epoch(bytes.value()).map_err(Fault::Corrupt)?,
            None if fresh => 0,
            None => return Err(Fault::Redb(::redb::Error::Corrupted("the record `meta epoch` is missing".to_owned()))),
        };
        let epoch = before + 1;
        meta.insert(MetaKey::epoch(), codec::seal_epoch(epoch).as_slice())?;
        if made_by != LAYOUT {
            meta.insert(MetaKey::layout(), codec::tenant::seal_layout(LAYOUT).as_slice())?;
        }
        epoch
    };
    txn.commit()?;
    Ok(epoch)
}

/// The layout of a database that is not new.
fn layout(txn: &WriteTransaction, has_meta: bool) -> Result<u64, Fault> {
    if !has_meta {
        return Err(Fault::Redb(::redb::Error::TableDoesNotExist(META.name().to_owned())));
    }
    let meta = txn.open_table(META)?;
    let Some(bytes) = meta.get(MetaKey::layout())? else { return Ok(1) };
    match codec::tenant::read_layout(bytes.value()).map_err(Fault::Corrupt)? {
        known @ 2..=LAYOUT => Ok(known),
        other => {
            let why = format!("made with layout {other}, this build knows up to {LAYOUT}");
            Err(Fault::Corrupt(MetaKey::layout().corrupt(why)))
        }
    }
}

/// The tenants that are closed.
fn closed(database: &Database) -> Result<HashMap<TenantId, State>, Fault> {
    let txn = database.begin_read()?;
    let mut closed = HashMap::new();
    for entry in txn.open_table(DOCUMENTS)?.range(DocumentKey::all(TenantId::SYSTEM, DocumentKind::Closed))? {
        let (key, bytes) = entry?;
        let key = key.value();
        let json = codec::tenant::read_document(&key, bytes.value()).map_err(Fault::Corrupt)?;
        let note: Closed = serde_json::from_slice(&json).map_err(|why| Fault::Corrupt(key.corrupt(why.to_string())))?;
        if note.state.is_closed() {
            closed.insert(note.tenant, note.state);
        }
    }
    Ok(closed)
}

fn begin(database: &Database) -> Result<WriteTransaction, Fault> {
    let mut txn = database.begin_write()?;
    // These are redb's defaults; everything rests on them.
    txn.set_durability(Durability::Immediate)?;
    txn.set_two_phase_commit(false);
    Ok(txn)
}

impl LogStore for RedbStore {
    fn commit(&self, writes: &[Write]) -> Result<Vec<Result<u64, WriteRefused>>, StoreError> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let grows = writes.iter().any(super::adds);
        self.write(&mut self.writer(), grows, |database, writer| {
            let mut txn = begin(database)?;
            if writes.len() >= BIG_BATCH {
                txn.set_quick_repair(true);
            }
            let before = self.closed();
            let mut tables = write::Tables::new(&txn, HashMap::clone(&before));
            let results = writes.iter().map(|write| tables.apply(write)).collect::<Result<Vec<_>, Fault>>()?;
            let (changes, closed) = (mem::take(&mut tables.changes), mem::take(&mut tables.closed));
            drop(tables);
            if results.iter().any(Result::is_ok) {
                txn.commit()?;
                self.figures.change(changes);
                if closed != *before {
                    *self.closed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(closed);
                }
                writer.restless = writes.len() < BIG_BATCH;
            } else {
                txn.abort()?;
            }
            Ok(results)
        })
    }

    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = slot.as_ref() else { return Err(being_opened()) };
        if opened.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the database has to be opened again".to_owned()));
        }
        let closed = self.closed();
        let txn = fenced(|| Ok(opened.database.begin_read()?)).map_err(|fault| fault.store_error(&*self.medium))?;
        let view = view::RedbView::new(txn, &*self.medium);
        Ok(if closed.is_empty() { Box::new(view) } else { Box::new(Shut::new(view, closed)) })
    }

    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        self.figures.of(tenant, || {
            // No commit comes between what is read and what is added to it.
            let _writer = self.writer();
            self.figures.expect(tenant);
            self.view()
        })
    }

    fn known_figures(&self, tenant: TenantId) -> Option<Figures> {
        self.figures.known(tenant)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        let due = |range: ::redb::Range<'_, ExpiryKey, &[u8; 8]>| -> Result<Vec<ExpiryKey>, Fault> {
            range.take(limit).map(|entry| Ok(entry?.0.value())).collect()
        };
        self.write(&mut self.writer(), false, |database, writer| {
            // A look first: most sweeps find nothing, and a commit is a sync.
            let txn = database.begin_read()?;
            if due(txn.open_table(EXPIRY)?.range(..=ExpiryKey::last(now))?)?.is_empty() {
                return Ok(0);
            }
            txn.close()?;
            let txn = begin(database)?;
            let removed = {
                let mut expiry = txn.open_table(EXPIRY)?;
                let mut receipts = txn.open_table(RECEIPTS)?;
                let keys = due(expiry.range(..=ExpiryKey::last(now))?)?;
                for key in &keys {
                    expiry.remove(key)?;
                    receipts.remove(key.receipt())?;
                }
                keys.len()
            };
            txn.commit()?;
            writer.restless = true;
            Ok(removed)
        })
    }

    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.write(&mut self.writer(), true, |database, writer| {
            let packed = pack::pack(database, before, limit)?;
            writer.restless |= packed > 0;
            Ok(packed)
        })
    }

    fn rest(&self) -> Result<(), StoreError> {
        let mut writer = self.writer();
        if !writer.restless && writer.failed.is_none() {
            return Ok(());
        }
        self.write(&mut writer, true, |database, writer| {
            let mut txn = begin(database)?;
            txn.set_quick_repair(true);
            txn.commit()?;
            writer.restless = false;
            Ok(())
        })
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut writer = self.writer();
        self.check_space(self.min_free_bytes)?;
        if writer.failed.is_some() {
            // Readers that still hold the old handle are told that it is closed. What closing says does not matter:
            // the file is what counts, and it is looked at next.
            let old = self.slot.write().unwrap_or_else(PoisonError::into_inner).take();
            drop(old);
        }
        let absent = self.slot.read().unwrap_or_else(PoisonError::into_inner).is_none();
        let told = |fault: Fault| match fault {
            Fault::Redb(::redb::Error::Io(error)) if super::backend::is_full(&error) => StoreError::Full,
            other => other.store_error(&*self.medium),
        };
        if absent {
            let opened = open_handle(&*self.medium, self.cache_bytes).map_err(told)?;
            // What was being written may be stored or not.
            let closed = fenced(|| closed(&opened.database)).map_err(told)?;
            *self.closed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(closed);
            self.figures.forget();
            *self.slot.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            writer.failed = None;
        }
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = slot.as_ref() else { return Err(being_opened()) };
        // The proof: a commit. It also shows that the file is still the one this process opened.
        let proof = fenced(|| {
            let txn = begin(&opened.database)?;
            {
                let mut meta = txn.open_table(META)?;
                let found = match meta.get(MetaKey::epoch())? {
                    Some(bytes) => codec::read_epoch(bytes.value()).map_err(Fault::Corrupt)?,
                    None => 0,
                };
                if found != self.epoch {
                    let why = format!("the epoch is {found}, this process began {}", self.epoch);
                    return Err(Fault::Redb(::redb::Error::Corrupted(why)));
                }
                meta.insert(MetaKey::epoch(), codec::seal_epoch(found).as_slice())?;
            }
            Ok(txn.commit()?)
        });
        proof.map_err(|fault| {
            if matches!(fault, Fault::Panic(_)) {
                opened.broken.store(true, Ordering::Relaxed);
            }
            let error = told(fault);
            writer.failed = Some(error.clone());
            error
        })?;
        writer.restless = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
