//! What lies below the database: a file, or memory that fails and remembers on cue.
//!
//! A [`Medium`] is opened again after every I/O error, because redb refuses everything on a handle that saw one.
//! [`Watched`] stands between redb and the medium and notes the first failure, so that "the disk is full and nothing
//! was stored" can be told from "it may be stored or not".

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ::redb::{BackendError, StorageBackend, backends::FileBackend};

/// Where a database can be opened, any number of times, one at a time.
pub trait Medium: Send + Sync + 'static {
    /// Whether nothing was ever stored here.
    fn is_new(&self) -> io::Result<bool>;

    /// Makes `whole` the content, durably and at one stroke: after a crash it is there whole, or not at all.
    fn install(&self, whole: &[u8]) -> io::Result<()>;

    /// Opens it; what it then reads is what the device holds, as far as that can be had.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Bytes that can still be written.
    fn free_bytes(&self) -> io::Result<u64>;

    /// What it is called in messages.
    fn name(&self) -> String;
}

/// A database file.
#[derive(Debug)]
pub struct FileMedium {
    pub path: PathBuf,
    /// Added to every sync: a slower disk, for benches.
    pub sync_delay: Duration,
    /// `false` leaves out every sync: for benches that ask what durability costs. Loses data in a power cut.
    pub durable: bool,
    /// What it does wrong, on purpose.
    pub faults: Arc<Faults>,
}

/// A disk that refuses a write or a sync now and then: for whoever wants to see what becomes of a server on one.
#[derive(Debug, Default)]
pub struct Faults {
    /// Of a million writes and syncs, those that fail.
    per_million: u64,
    armed: AtomicBool,
    asked: AtomicU64,
}

impl Faults {
    pub fn new(per_million: u32) -> Self {
        Self { per_million: per_million.into(), ..Self::default() }
    }

    /// From now on it fails. Until somebody says so it is whole: a server that does not even start would show nothing.
    pub fn arm(&self) {
        self.armed.store(self.per_million > 0, Ordering::Relaxed);
    }

    fn strike(&self) -> io::Result<()> {
        if !self.armed.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The same failures in every run, spread as by chance (the mixer of SplitMix64).
        let mut mixed = self.asked.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        match (mixed ^ (mixed >> 31)) % 1_000_000 < self.per_million {
            true => Err(io::Error::other("a fault of the disk, as it was asked for")),
            false => Ok(()),
        }
    }
}

impl FileMedium {
    fn dir(&self) -> &Path {
        self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}

impl Medium for FileMedium {
    fn is_new(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            // Ours is put in place whole, so an empty file is what is left of one.
            Ok(found) if found.len() == 0 => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn install(&self, whole: &[u8]) -> io::Result<()> {
        let made = self.path.with_extension("new");
        let mut file = File::create(&made)?;
        file.write_all(whole)?;
        file.sync_all()?;
        fs::rename(&made, &self.path)?;
        File::open(self.dir())?.sync_all()
    }

    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        // A sync that failed and that nobody heard of, because its process died before, fails here.
        file.sync_data().inspect_err(|_| distrust(&file))?;
        let cached = file.try_clone()?;
        let inner = FileBackend::new(file).map_err(io::Error::other)?;
        let Self { sync_delay, durable, .. } = *self;
        Ok(Box::new(Paced { inner, cached, sync_delay, durable, faults: self.faults.clone() }))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(self.dir())?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// Passes everything on that is not named here.
macro_rules! pass_locks {
    ($inner:ident) => {
        fn close(&self) -> io::Result<()> {
            self.$inner.close()
        }
        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.$inner.try_lock_range(start, end)
        }
        fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.$inner.try_lock_shared_range(start, end)
        }
        fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.$inner.lock_range(start, end)
        }
        fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.$inner.lock_shared_range(start, end)
        }
        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.$inner.unlock_range(start, end)
        }
        fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.$inner.query_lock_range(start, end)
        }
    };
}

/// Lets go of what the kernel has in memory of a file whose sync failed: it may hold pages as clean that never reached the
/// disk, and a database built on them would not survive a power cut. Whoever reads next, in this process or another one,
/// reads the disk. Only then: dropping a large file takes longer than all else that an open does.
fn distrust(file: &File) {
    // Advice that is not taken is no other failure than the one that is told already.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[derive(Debug)]
struct Paced {
    inner: FileBackend,
    /// The same file.
    cached: File,
    sync_delay: Duration,
    durable: bool,
    faults: Arc<Faults>,
}

impl StorageBackend for Paced {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        if !self.sync_delay.is_zero() {
            #[expect(clippy::disallowed_methods, reason = "this is a disk that is slow: whoever syncs it waits")]
            std::thread::sleep(self.sync_delay);
        }
        self.faults.strike()?;
        self.inner.sync_data().inspect_err(|_| distrust(&self.cached))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.faults.strike()?;
        self.inner.write(offset, data)
    }
    pass_locks!(inner);
}

/// Whether an error says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What was seen of one open database.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// A commit becomes true by the write of the header, at offset 0.
    header_written: AtomicBool,
    failed: AtomicBool,
    /// The first failure was a lack of room, before anything could be true.
    full: AtomicBool,
}

impl Watch {
    pub(crate) fn begin_commit(&self) {
        self.header_written.store(false, Ordering::Relaxed);
    }

    /// Whether the first failure was a lack of room that left nothing behind.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn note<T>(&self, certain: bool, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            let full = is_full(error) && certain && !self.header_written.load(Ordering::Relaxed);
            self.full.store(full, Ordering::Relaxed);
        }
        done
    }
}

/// A backend whose failures are noted.
pub(crate) struct Watched {
    pub inner: Box<dyn StorageBackend>,
    pub watch: Arc<Watch>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.watch.note(false, self.inner.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.watch.note(false, self.inner.read(offset, out))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watch.note(true, self.inner.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.watch.note(false, self.inner.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.watch.note(offset != 0, self.inner.write(offset, data))?;
        if offset == 0 {
            self.watch.header_written.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
    pass_locks!(inner);
}

// ---- memory that fails and remembers, for tests -----------------------------------------------------

/// An operation that changes what is stored.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Everything, at one stroke.
    Install(Vec<u8>),
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    SetLen(u64),
    Sync,
}

/// When operations fail. An operation that fails changes nothing, unless it is a write that was made short.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation, counted from 0 over writes, length changes and syncs since the fault was set.
    pub at: u64,
    /// `rustix::io::Errno` number.
    pub errno: i32,
    /// Whether every operation from `at` on fails, or that one alone.
    pub lasting: bool,
}

/// No test needs more; a damaged file may ask for anything.
const MEMORY_MAX: u64 = 1 << 30;

/// A medium in memory.
#[doc(hidden)]
#[derive(Debug, Default, Clone)]
pub struct MemoryMedium(Arc<Cells>);

#[derive(Debug)]
struct Cells {
    bytes: Mutex<Vec<u8>>,
    ops: Mutex<Option<Vec<Op>>>,
    fault: Mutex<Option<Fault>>,
    /// Whether the first half of a write that fails is done nevertheless.
    short: AtomicBool,
    /// Operations since the fault was set.
    done: AtomicU64,
    syncs: AtomicU64,
    free: AtomicU64,
}

impl Default for Cells {
    fn default() -> Self {
        let free = AtomicU64::new(u64::MAX);
        let [done, syncs] = [AtomicU64::new(0), AtomicU64::new(0)];
        let short = AtomicBool::new(false);
        Self { bytes: Mutex::default(), ops: Mutex::default(), fault: Mutex::default(), short, done, syncs, free }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryMedium {
    /// A medium that holds `bytes`.
    pub fn holding(bytes: Vec<u8>) -> Self {
        let medium = Self::default();
        *lock(&medium.0.bytes) = bytes;
        medium
    }
    /// A copy of what is stored.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.0.bytes).clone()
    }
    /// From now on remembers every operation.
    pub fn record(&self) {
        *lock(&self.0.ops) = Some(Vec::new());
    }
    /// How many operations were remembered.
    pub fn recorded(&self) -> usize {
        lock(&self.0.ops).as_ref().map_or(0, Vec::len)
    }
    /// What was remembered; stops remembering.
    pub fn take_record(&self) -> Vec<Op> {
        lock(&self.0.ops).take().unwrap_or_default()
    }
    /// Counts operations from 0 again and fails as told; `None` heals.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.0.done.store(0, Ordering::Relaxed);
        *lock(&self.0.fault) = fault;
    }
    /// From now on the first half of a write that fails is done, or nothing of it again.
    pub fn set_short(&self, short: bool) {
        self.0.short.store(short, Ordering::Relaxed);
    }
    /// Operations since the last `set_fault`.
    pub fn operations(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }
    /// Syncs ever.
    pub fn syncs(&self) -> u64 {
        self.0.syncs.load(Ordering::Relaxed)
    }
    /// What `free_bytes` answers.
    pub fn set_free(&self, bytes: u64) {
        self.0.free.store(bytes, Ordering::Relaxed);
    }

    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = lock(&self.0.bytes);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let into = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..data.len()));
        into.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }

    fn step(&self, op: impl FnOnce() -> Op) -> io::Result<()> {
        let at = self.0.done.fetch_add(1, Ordering::Relaxed);
        if let Some(fault) = *lock(&self.0.fault)
            && (at == fault.at || (fault.lasting && at > fault.at))
        {
            return Err(io::Error::from_raw_os_error(fault.errno));
        }
        if let Some(ops) = &mut *lock(&self.0.ops) {
            ops.push(op());
        }
        Ok(())
    }
}

impl Medium for MemoryMedium {
    fn is_new(&self) -> io::Result<bool> {
        Ok(lock(&self.0.bytes).is_empty())
    }
    fn install(&self, whole: &[u8]) -> io::Result<()> {
        self.step(|| Op::Install(whole.to_vec()))?;
        *lock(&self.0.bytes) = whole.to_vec();
        Ok(())
    }
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.0.free.load(Ordering::Relaxed))
    }
    fn name(&self) -> String {
        "memory".to_owned()
    }
}

impl StorageBackend for MemoryMedium {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0.bytes).len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = lock(&self.0.bytes);
        let end = usize::try_from(offset).ok().and_then(|start| start.checked_add(out.len()).map(|end| start..end));
        let from = end.and_then(|range| bytes.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(|| Op::SetLen(len))?;
        if len > MEMORY_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.0.bytes).resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.step(|| Op::Sync)?;
        self.0.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Err(failed) = self.step(|| Op::Write { offset, data: data.to_vec() }) {
            if self.0.short.load(Ordering::Relaxed) {
                self.put(offset, &data[..data.len() / 2])?;
            }
            return Err(failed);
        }
        self.put(offset, data)
    }
}
