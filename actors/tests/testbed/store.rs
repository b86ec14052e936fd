//! The real store, with a test at the door of each commit, and where it is opened again.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use raddle_actors::store::redb::{RedbConfig, RedbStore};
use raddle_domain::{
    id::TenantId,
    ports::{Figures, LogStore, StoreError, View, Write, WriteRefused},
    time::UnixMs,
};

/// What a commit came to.
pub type Committed = Result<Vec<Result<u64, WriteRefused>>, StoreError>;
/// Gets the writes, and what makes the commit.
pub type OnCommit = Box<dyn Fn(&[Write], &dyn Fn() -> Committed) -> Committed + Send + Sync>;

/// Gets the store that is to be opened again.
pub type OnReopen = Box<dyn Fn(&RedbStore) -> Result<(), StoreError> + Send + Sync>;

pub struct Hooked {
    inner: RedbStore,
    on_commit: OnCommit,
    on_reopen: OnReopen,
}

impl Hooked {
    pub fn open(config: &RedbConfig, on_commit: OnCommit) -> Self {
        Self { inner: RedbStore::open(config).unwrap(), on_commit, on_reopen: Box::new(RedbStore::reopen) }
    }

    /// One whose first commit with an event of this name fails, and shows only once the store is open again, which it
    /// cannot be while it is `down`.
    pub fn hiding(config: &RedbConfig, name: &'static str, down: &Arc<AtomicBool>) -> Self {
        let hidden: Arc<Mutex<Option<Vec<Write>>>> = Arc::default();
        let (shows, fails, down) = (hidden.clone(), AtomicBool::new(true), down.clone());
        let door: OnCommit = Box::new(move |writes, commit| {
            if !holds(writes, name) || !fails.swap(false, SeqCst) {
                return commit();
            }
            *hidden.lock().unwrap() = Some(writes.to_vec());
            Err(StoreError::Unavailable("told to fail".into()))
        });
        Self::open(config, door).reopening(Box::new(move |store| {
            if down.load(SeqCst) {
                return Err(StoreError::Unavailable("told to fail".into()));
            }
            store.reopen()?;
            let hidden = shows.lock().unwrap().take();
            hidden.map_or(Ok(()), |writes| store.commit(&writes).map(drop))
        }))
    }

    pub fn reopening(self, on_reopen: OnReopen) -> Self {
        Self { on_reopen, ..self }
    }
}

/// Whether one of the writes brings an event of this name.
pub fn holds(writes: &[Write], name: &str) -> bool {
    let events = writes.iter().filter_map(|write| match write {
        Write::Append(append) => Some(&append.chunk.events),
        _ => None,
    });
    events.flatten().any(|event| event.name == name)
}

impl LogStore for Hooked {
    fn commit(&self, writes: &[Write]) -> Committed {
        (self.on_commit)(writes, &|| self.inner.commit(writes))
    }
    fn batch_writes(&self) -> usize {
        self.inner.batch_writes()
    }
    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        self.inner.view()
    }
    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        self.inner.figures(tenant)
    }
    fn known_figures(&self, tenant: TenantId) -> Option<Figures> {
        self.inner.known_figures(tenant)
    }
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.inner.sweep_receipts(now, limit)
    }
    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.inner.pack(before, limit)
    }
    fn rest(&self) -> Result<(), StoreError> {
        self.inner.rest()
    }
    fn reopen(&self) -> Result<(), StoreError> {
        (self.on_reopen)(&self.inner)
    }
}
