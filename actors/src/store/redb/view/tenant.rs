//! Reading what is a tenant's: its feed, which has no hole; records by their id; what was spent; documents.

use std::ops::Bound;

use ::redb::ReadableTable;
use raddle_domain::{
    id::{TenantId, ThreadId, ThreadKey},
    ports::{Document, DocumentKind, Fed, Found, RecordKind, SpentBy},
};
use uuid::Uuid;

use super::{
    super::super::{
        codec::tenant as codec,
        keys::{
            StoreKey,
            tenant::{
                DOCUMENTS, DocumentKey, FEED, FeedKey, RECORD_IDS, RECORDS, RecordIdKey, RecordKey, SPENT, SpentKey,
            },
        },
    },
    Fault, RedbView,
};

impl RedbView<'_> {
    pub(super) fn fed(&self, tenant: TenantId, after: u64, limit: usize) -> Result<Vec<Fed>, Fault> {
        let mut fed = Vec::new();
        let Some(mut next) = after.checked_add(1) else { return Ok(fed) };
        for entry in self.txn.open_table(FEED)?.range(FeedKey::from(tenant, next))? {
            if fed.len() >= limit {
                break;
            }
            let (at, bytes) = entry?;
            let (at, wanted) = (at.value(), FeedKey::new(tenant, next));
            let missing = || Fault::Corrupt(wanted.corrupt("the record is missing"));
            if at != FeedKey::new(tenant, at.position()) {
                return Err(missing());
            }
            let run = codec::read_feed_run(&at, bytes.value()).map_err(Fault::Corrupt)?;
            if run.first().is_none_or(|fed| fed.position > next) {
                return Err(missing());
            }
            let left = limit - fed.len();
            fed.extend(run.into_iter().filter(|fed| fed.position >= next).take(left));
            next = at.position().saturating_add(1);
        }
        Ok(fed)
    }

    pub(super) fn fed_head(&self, tenant: TenantId) -> Result<u64, Fault> {
        let last = self.txn.open_table(FEED)?.range(FeedKey::from(tenant, 0))?.next_back().transpose()?;
        let Some((at, bytes)) = last else { return Ok(0) };
        codec::read_feed_run(&at.value(), bytes.value()).map_err(Fault::Corrupt)?;
        Ok(at.value().position())
    }

    /// One look for each tenant, however long its feed is.
    pub(super) fn fed_tenants(&self) -> Result<Vec<TenantId>, Fault> {
        let feed = self.txn.open_table(FEED)?;
        let mut tenants = Vec::new();
        let mut next = feed.first()?.map(|(at, _)| at.value());
        while let Some(at) = next {
            match at.tenant() {
                Some(tenant) => tenants.push(tenant),
                // One damaged entry may not keep every other tenant's events from those who wait for them.
                None => tracing::error!(record = %at.place(), "a damaged entry of `feed` is passed over"),
            }
            let behind = feed.range((Bound::Excluded(at.last()), Bound::Unbounded))?.next().transpose()?;
            // A damaged page can lead back.
            next = behind.map(|(behind, _)| behind.value()).filter(|behind| behind.bytes() > at.bytes());
        }
        Ok(tenants)
    }

    pub(super) fn found(&self, tenant: TenantId, kind: RecordKind, id: Uuid) -> Result<Option<Found>, Fault> {
        let ids = self.txn.open_table(RECORD_IDS)?;
        for open in [true, false] {
            let entry = RecordIdKey::new(tenant, kind, open, id);
            if let Some(bytes) = ids.get(entry)? {
                let thread = codec::read_record_id(&entry, bytes.value()).map_err(Fault::Corrupt)?;
                return self.record_of(tenant, thread, kind, id, open).map(Some);
            }
        }
        Ok(None)
    }

    /// The record to which an entry leads.
    fn record_of(
        &self,
        tenant: TenantId,
        thread: ThreadId,
        kind: RecordKind,
        id: Uuid,
        open: bool,
    ) -> Result<Found, Fault> {
        let key = RecordKey::new(ThreadKey { tenant, thread }, kind, id);
        let records = self.txn.open_table(RECORDS)?;
        let Some(bytes) = records.get(key)? else {
            return Err(Fault::Corrupt(key.corrupt("the record is missing, an index names it")));
        };
        match codec::read_record(&key, bytes.value()).map_err(Fault::Corrupt)? {
            (seq, is) if is == open => Ok(Found { id, thread, seq, open }),
            _ => Err(Fault::Corrupt(key.corrupt("an index says otherwise about whether it is open"))),
        }
    }

    /// Records of the whole tenant.
    pub(super) fn found_in_tenant(
        &self,
        tenant: TenantId,
        kind: RecordKind,
        open: bool,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Found>, Fault> {
        let ids = self.txn.open_table(RECORD_IDS)?;
        let mut all = Vec::new();
        let sorts: &[bool] = if open { &[true] } else { &[true, false] };
        for open in sorts {
            let mut found = Vec::new();
            for entry in ids.range(RecordIdKey::after(tenant, kind, *open, after))? {
                if found.len() == limit {
                    break;
                }
                let (at, bytes) = entry?;
                let at = at.value();
                let read = codec::read_record_id(&at, bytes.value()).map_err(Fault::Corrupt);
                let read = read.and_then(|thread| self.record_of(tenant, thread, kind, at.id(), *open));
                match read {
                    Ok(record) => found.push(record),
                    // One damaged record may not keep people from all the others of the tenant.
                    Err(Fault::Corrupt(corrupt)) => tracing::error!(%corrupt, "a record is passed over in a list"),
                    Err(other) => return Err(other),
                }
            }
            all.extend(found);
        }
        all.sort_by_key(|record| record.id);
        all.truncate(limit);
        Ok(all)
    }

    /// Records of one thread.
    pub(super) fn found_in_thread(
        &self,
        key: ThreadKey,
        kind: RecordKind,
        open: bool,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Found>, Fault> {
        let mut found = Vec::new();
        for entry in self.txn.open_table(RECORDS)?.range(RecordKey::after(key, kind, after))? {
            if found.len() == limit {
                break;
            }
            let (at, bytes) = entry?;
            let at = at.value();
            let (seq, is_open) = codec::read_record(&at, bytes.value()).map_err(Fault::Corrupt)?;
            // A damaged page can lead outside of what was asked for.
            if at != RecordKey::new(key, kind, at.id()) {
                return Err(Fault::Corrupt(at.corrupt("it stands among the records of another thread")));
            }
            if is_open || !open {
                found.push(Found { id: at.id(), thread: key.thread, seq, open: is_open });
            }
        }
        Ok(found)
    }

    pub(super) fn spent_by(
        &self,
        tenant: TenantId,
        from: u32,
        to: u32,
        after: Option<(u32, ThreadId)>,
        limit: usize,
    ) -> Result<Vec<SpentBy>, Fault> {
        let mut all = Vec::new();
        let Some(days) = SpentKey::days(tenant, from, to, after) else { return Ok(all) };
        for entry in self.txn.open_table(SPENT)?.range(days)?.take(limit) {
            let (at, bytes) = entry?;
            let at = at.value();
            let rows = codec::read_spent(&at, bytes.value()).map_err(Fault::Corrupt)?;
            let (day, thread) = (at.day(), at.thread());
            // As above.
            if at != SpentKey::new(ThreadKey { tenant, thread }, day) {
                return Err(Fault::Corrupt(at.corrupt("it stands among the records of another tenant")));
            }
            all.push(SpentBy { day, thread, rows });
        }
        Ok(all)
    }

    pub(super) fn documents_of(
        &self,
        tenant: TenantId,
        kind: DocumentKind,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<Document>, Fault> {
        let mut all = Vec::new();
        for entry in self.txn.open_table(DOCUMENTS)?.range(DocumentKey::after(tenant, kind, after))? {
            if all.len() == limit {
                break;
            }
            let (at, bytes) = entry?;
            let at = at.value();
            let json = codec::read_document(&at, bytes.value()).map_err(Fault::Corrupt)?;
            let id = at.id();
            // As above.
            if at != DocumentKey::new(tenant, kind, &id) {
                return Err(Fault::Corrupt(at.corrupt("it stands among the documents of another tenant")));
            }
            all.push(Document { kind, id, json });
        }
        Ok(all)
    }

    /// One look, or two, for each tenant that has any document.
    pub(super) fn recorded_tenants(&self) -> Result<Vec<TenantId>, Fault> {
        let documents = self.txn.open_table(DOCUMENTS)?;
        let mut tenants = Vec::new();
        let mut next = documents.first()?.map(|(at, _)| at.value());
        while let Some(at) = next {
            match at.tenant() {
                Some(tenant) => {
                    let own = DocumentKey::all(tenant, DocumentKind::Tenant);
                    tenants.extend(documents.range(own)?.next().transpose()?.map(|_| tenant));
                }
                None => tracing::error!(record = %at.place(), "a damaged entry of `documents` is passed over"),
            }
            let behind = documents.range((Bound::Excluded(at.last()), Bound::Unbounded))?.next().transpose()?;
            // A damaged page can lead back.
            next = behind.map(|(behind, _)| behind.value()).filter(|behind| behind.bytes() > at.bytes());
        }
        Ok(tenants)
    }
}
