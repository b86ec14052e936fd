//! What of each tenant counts against its quotas, in memory: counted once from the heads of its rows, and from then on
//! by what each commit changes.
//!
//! Counting reads a tenant's rows whole, less than a second per 100,000 of them, and holds up no commit: what is committed
//! meanwhile is noted beside the count and added to it. A tenant that nobody asks about is not counted.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use raddle_domain::{
    id::TenantId,
    ports::{Figures, LogKind, StoreError, View},
};

use super::super::{
    codec,
    keys::{RowKey, StoreKey},
};

/// Bytes of rows that are read at a time.
const PAGE: usize = 1 << 20;

/// What a commit does to a tenant's figures.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    pub threads: i64,
    pub queued: i64,
    pub bytes: i64,
    /// It cannot be told from the rows alone: they are to be counted anew.
    pub unknown: bool,
}

/// The figures of the tenants that were asked about.
#[derive(Debug, Default)]
pub(super) struct Counts {
    known: Mutex<HashMap<TenantId, Count>>,
    /// Held while rows are read, so that two who ask do not read them twice.
    counting: Mutex<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// What was read; `None` while that goes on.
    read: Option<Figures>,
    /// What was changed since the view was taken that it is read from.
    since: Change,
}

impl Count {
    fn figures(&self) -> Option<Figures> {
        let Figures { threads, queued, bytes } = self.read?;
        let sum = |figure: u64, change: i64| figure.saturating_add_signed(change);
        let Change { threads: more, queued: waiting, bytes: said, .. } = self.since;
        Some(Figures { threads: sum(threads, more), queued: sum(queued, waiting), bytes: sum(bytes, said) })
    }
}

impl Counts {
    /// Nothing is left half changed under this lock.
    fn counts(&self) -> MutexGuard<'_, HashMap<TenantId, Count>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a commit.
    pub fn change(&self, changes: HashMap<TenantId, Change>) {
        let mut known = self.counts();
        for (tenant, change) in changes {
            if change.unknown {
                known.remove(&tenant);
            } else if let Some(count) = known.get_mut(&tenant) {
                count.since.threads += change.threads;
                count.since.queued += change.queued;
                count.since.bytes += change.bytes;
            }
        }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.counts().clear();
    }

    /// From now on commits are noted. No commit may be under way.
    pub fn expect(&self, tenant: TenantId) {
        self.counts().insert(tenant, Count::default());
    }

    pub fn known(&self, tenant: TenantId) -> Option<Figures> {
        self.counts().get(&tenant).and_then(Count::figures)
    }

    /// The figures; `view` takes a view and notes from when on changes count.
    pub fn of<'s>(
        &self,
        tenant: TenantId,
        view: impl Fn() -> Result<Box<dyn View + 's>, StoreError>,
    ) -> Result<Figures, StoreError> {
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known(tenant) {
            return Ok(known);
        }
        let figures = count(&*view()?, tenant)?;
        let mut known = self.counts();
        Ok(match known.get_mut(&tenant) {
            Some(count) => {
                count.read = Some(figures);
                count.figures().unwrap_or_default()
            }
            // It became unknown meanwhile: this is what it was.
            None => figures,
        })
    }
}

/// Reads the heads of a tenant's rows.
fn count(view: &dyn View, tenant: TenantId) -> Result<Figures, StoreError> {
    let mut figures = Figures::default();
    let mut after = None;
    loop {
        let stretch = view.stretch(RowKey::TABLE, Some(tenant), after.as_deref(), PAGE)?;
        for (key, value) in &stretch.records {
            let head = RowKey::from_slice(key).map(|key| codec::read_head(&key, value));
            match head {
                Some(Ok(head)) => {
                    figures.threads += u64::from(head.head.kind == LogKind::Thread);
                    figures.queued += u64::from(head.head.queued);
                    figures.bytes += head.bytes;
                }
                // A row that cannot be read is somebody's: it is not given away.
                _ => figures.threads += 1,
            }
        }
        match stretch.next {
            Some(next) => after = Some(next),
            None => return Ok(figures),
        }
    }
}
