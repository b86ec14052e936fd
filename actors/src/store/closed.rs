//! A view of a store in which tenants are closed: nothing of theirs is there for whoever reads.
//!
//! So what is half erased or half imported is seen by nobody, and nothing of it is woken or carried away. Records as
//! they are kept are shown all the same: a backup has to hold them.

use std::{collections::HashMap, sync::Arc};

use raddle_domain::{
    closed::State,
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{
        Chunk, Document, DocumentKind, Fed, Found, Listed, OwingPlace, PartKind, PartName, Place, Receipt, RecordKind,
        SettledTurn, SpentBy, StoreError, StoredEvent, Stretch, ThreadRow, View,
    },
    time::UnixMs,
};
use uuid::Uuid;

/// See the module's text.
pub(super) struct Shut<V> {
    inner: V,
    closed: Arc<HashMap<TenantId, State>>,
}

impl<V: View> Shut<V> {
    pub fn new(inner: V, closed: Arc<HashMap<TenantId, State>>) -> Self {
        Self { inner, closed }
    }

    fn is_open(&self, tenant: TenantId) -> bool {
        !self.closed.contains_key(&tenant)
    }

    /// The places of `page` that are of nobody who is closed; more is read until there are `limit`, or no more.
    fn owing_of(
        &self,
        mut cursor: Option<OwingPlace>,
        limit: usize,
        page: impl Fn(Option<OwingPlace>) -> Result<Vec<OwingPlace>, StoreError>,
    ) -> Result<Vec<OwingPlace>, StoreError> {
        let mut open = Vec::new();
        loop {
            let places = page(cursor)?;
            cursor = places.last().copied();
            let is_short = places.len() < limit;
            open.extend(places.into_iter().filter(|place| self.is_open(place.tenant)));
            if is_short || open.len() >= limit {
                open.truncate(limit);
                return Ok(open);
            }
        }
    }

    /// The same of what is due. The index has no cursor: more is asked for until there are enough.
    fn due_of(
        &self,
        limit: usize,
        page: impl Fn(usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError>,
    ) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        let mut wanted = limit;
        loop {
            let mut due = page(wanted)?;
            let is_short = due.len() < wanted;
            due.retain(|(_, key)| self.is_open(key.tenant));
            if is_short || due.len() >= limit {
                due.truncate(limit);
                return Ok(due);
            }
            wanted = wanted.saturating_mul(2).max(64);
        }
    }
}

/// Passes on what is asked of a tenant that is open; of one that is closed there is nothing.
macro_rules! of_open {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $gives:ty, of $tenant:expr;)*) => {$(
        fn $name(&self, $($arg: $type),*) -> Result<$gives, StoreError> {
            if self.is_open($tenant) { self.inner.$name($($arg),*) } else { Ok(Default::default()) }
        }
    )*};
}

impl<V: View> View for Shut<V> {
    of_open! {
        fn row(key: ThreadKey) -> Option<ThreadRow>, of key.tenant;
        fn events(key: ThreadKey, after: Seq, limit: usize, bytes: usize) -> Vec<Chunk>, of key.tenant;
        fn event(key: ThreadKey, seq: Seq) -> Option<StoredEvent>, of key.tenant;
        fn turns(key: ThreadKey, after: Seq, limit: usize) -> Vec<SettledTurn>, of key.tenant;
        fn turn(key: ThreadKey, id: TurnId) -> Option<SettledTurn>, of key.tenant;
        fn turn_before(key: ThreadKey, before: Seq) -> Option<SettledTurn>, of key.tenant;
        fn list(tenant: TenantId, cursor: Option<Place>, limit: usize) -> Vec<Listed>, of tenant;
        fn receipt(tenant: TenantId, key: &[u8; 32], now: UnixMs) -> Option<Receipt>, of tenant;
        fn feed(tenant: TenantId, after: u64, limit: usize) -> Vec<Fed>, of tenant;
        fn feed_head(tenant: TenantId) -> u64, of tenant;
        fn record(tenant: TenantId, kind: RecordKind, id: Uuid) -> Option<Found>, of tenant;
        fn records(
            tenant: TenantId, kind: RecordKind, thread: Option<ThreadId>, open: bool, after: Option<Uuid>, limit: usize
        ) -> Vec<Found>, of tenant;
        fn spent(tenant: TenantId, from: u32, to: u32, after: Option<(u32, ThreadId)>, limit: usize) -> Vec<SpentBy>,
            of tenant;
        fn part(key: ThreadKey, kind: PartKind, name: PartName) -> Option<Vec<u8>>, of key.tenant;
        fn parts(
            key: ThreadKey, kind: PartKind, after: Option<PartName>, limit: usize
        ) -> Vec<(PartName, Vec<u8>)>, of key.tenant;
    }

    fn documents_after(
        &self,
        tenant: TenantId,
        kind: DocumentKind,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        match self.closed.get(&tenant) {
            // Who it is, and who speaks for it, is known before it has anything.
            None | Some(State::Importing | State::Undoing | State::Reopened) if kind.precedes() => {
                self.inner.documents_after(tenant, kind, after, limit)
            }
            None => self.inner.documents_after(tenant, kind, after, limit),
            Some(_) => Ok(Vec::new()),
        }
    }

    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut tenants = self.inner.tenants()?;
        tenants.retain(|tenant| !matches!(self.closed.get(tenant), Some(State::Erasing | State::Erased)));
        Ok(tenants)
    }

    fn owing(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError> {
        self.owing_of(cursor, limit, |cursor| self.inner.owing(cursor, limit))
    }

    fn due(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        self.due_of(limit, |limit| self.inner.due(until, limit))
    }

    fn next_wake(&self) -> Result<Option<UnixMs>, StoreError> {
        Ok(self.due(UnixMs::LAST, 1)?.first().map(|(at, _)| *at))
    }

    fn owing_jobs(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError> {
        self.owing_of(cursor, limit, |cursor| self.inner.owing_jobs(cursor, limit))
    }

    fn due_jobs(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        self.due_of(limit, |limit| self.inner.due_jobs(until, limit))
    }

    fn next_job(&self, after: UnixMs) -> Result<Option<UnixMs>, StoreError> {
        // One that is closed only makes somebody look early.
        self.inner.next_job(after)
    }

    fn feeds(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut feeds = self.inner.feeds()?;
        feeds.retain(|tenant| self.is_open(*tenant));
        Ok(feeds)
    }

    fn stretch(
        &self,
        table: &str,
        of: Option<TenantId>,
        after: Option<&[u8]>,
        bytes: usize,
    ) -> Result<Stretch, StoreError> {
        self.inner.stretch(table, of, after, bytes)
    }
}
