//! What an append brings for its tenant: its position in the feed, where its records stand, what it spent, documents.

use std::collections::HashMap;

use ::redb::{ReadableTable, WriteTransaction};
use raddle_domain::{
    id::{TenantId, ThreadKey},
    ports::{Append, Document, DocumentKind, Indexed, Spent},
};

use super::{
    super::super::{
        codec::tenant as codec,
        keys::{
            StoreKey,
            tenant::{
                DOCUMENTS, DocumentKey, FEED, FeedKey, RECORD_IDS, RECORDS, RecordIdKey, RecordKey, SPENT, SpentKey,
            },
        },
        tenant::{add_spent, taken},
    },
    Checked, Fault, Records,
};

/// Appends that are made one row of the feed, once there are so many.
const RUN: u64 = 256;

pub(super) struct TenantTables<'t> {
    pub(super) txn: &'t WriteTransaction,
    feed: Records<'t, FeedKey>,
    record_ids: Records<'t, RecordIdKey>,
    records: Records<'t, RecordKey>,
    spent: Records<'t, SpentKey>,
    pub(super) documents: Records<'t, DocumentKey>,
    /// The newest position of each feed that this transaction wrote to.
    heads: HashMap<TenantId, u64>,
}

/// What was found out while an append was checked.
pub(super) struct Planned {
    /// What the thread has spent on each of the days, with this append.
    spent: Vec<(SpentKey, Vec<Spent>)>,
}

impl<'t> TenantTables<'t> {
    pub fn new(txn: &'t WriteTransaction) -> Self {
        Self { txn, feed: None, record_ids: None, records: None, spent: None, documents: None, heads: HashMap::new() }
    }

    /// Whether the append may be stored. Writes nothing.
    pub fn check(&mut self, append: &Append) -> Result<Checked<Planned>, Fault> {
        for record in &append.indexed {
            if let Err(refused) = self.check_record(append.key, record)? {
                return Ok(Err(refused));
            }
        }
        let mut spent: Vec<(SpentKey, Vec<Spent>)> = Vec::new();
        for more in &append.spent {
            let key = SpentKey::new(append.key, more.day);
            if let Some((_, rows)) = spent.iter_mut().find(|(known, _)| *known == key) {
                add_spent(rows, more);
                continue;
            }
            let old = open!(self.spent, SPENT).get(key)?;
            // A bill that cannot be read is not begun anew: that would hide what is lost.
            let mut rows = match old.map(|bytes| codec::read_spent(&key, bytes.value())).transpose() {
                Ok(rows) => rows.unwrap_or_default(),
                Err(corrupt) => return Ok(Err(corrupt.into())),
            };
            add_spent(&mut rows, more);
            spent.push((key, rows));
        }
        Ok(Ok(Planned { spent }))
    }

    fn check_record(&mut self, key: ThreadKey, record: &Indexed) -> Result<Checked<()>, Fault> {
        let name = RecordKey::new(key, record.kind, record.id);
        if open!(self.records, RECORDS).get(name)?.is_some() {
            return Ok(Ok(()));
        }
        for entry in name.entries() {
            let Some(bytes) = open!(self.record_ids, RECORD_IDS).get(entry)? else { continue };
            match codec::read_record_id(&entry, bytes.value()) {
                // What is left of a record that was lost.
                Ok(owner) if owner == key.thread => {}
                Ok(owner) => return Ok(Err(taken(key.tenant, record, owner))),
                Err(corrupt) => return Ok(Err(corrupt.into())),
            }
        }
        Ok(Ok(()))
    }

    /// Stores it; the append's position in the feed.
    pub fn append(&mut self, append: &Append, planned: Planned) -> Result<u64, Fault> {
        for record in &append.indexed {
            self.put_record(append.key, record)?;
        }
        for (key, rows) in planned.spent {
            open!(self.spent, SPENT).insert(key, codec::seal_spent(&key, &rows).as_slice())?;
        }
        self.put_documents(append.key.tenant, &append.documents)?;
        if append.chunk.events.is_empty() {
            return Ok(0);
        }
        let ThreadKey { tenant, thread } = append.key;
        let head = match self.heads.get(&tenant) {
            Some(head) => *head,
            None => self.feed_head(tenant)?,
        };
        let position = head + 1;
        let key = FeedKey::new(tenant, position);
        let bytes = codec::seal_feed(&key, thread, append.chunk.first, append.chunk.last());
        open!(self.feed, FEED).insert(key, bytes.as_slice())?;
        self.heads.insert(tenant, position);
        if position % RUN == 0 {
            self.join_feed(tenant, position)?;
        }
        Ok(position)
    }

    /// Makes one row of the last rows of a feed. The feed has one for every append there ever was: as rows they would
    /// soon take more room than the logs that they lead to.
    fn join_feed(&mut self, tenant: TenantId, last: u64) -> Result<(), Fault> {
        let feed = open!(self.feed, FEED);
        let first = last + 1 - RUN;
        let mut run = Vec::new();
        for (entry, position) in feed.range(FeedKey::new(tenant, first)..=FeedKey::new(tenant, last))?.zip(first..) {
            let (key, bytes) = entry?;
            match codec::read_feed(&key.value(), bytes.value()) {
                Ok(fed) if fed.position == position => run.push(fed),
                // Where one is damaged, or missing, all stay as they are, for readers to notice.
                _ => return Ok(()),
            }
        }
        if run.len() as u64 == RUN {
            for position in first..last {
                feed.remove(FeedKey::new(tenant, position))?;
            }
            let key = FeedKey::new(tenant, last);
            feed.insert(key, codec::seal_feed_run(&key, &run).as_slice())?;
        }
        Ok(())
    }

    /// The newest position of a tenant's feed.
    ///
    /// A damaged row at its end says nothing about its own position, so those are counted from the last one that is
    /// whole: the damage stays where readers notice it, and no row is written over another. A row of several says a
    /// position that is further on, which is believed as far as there can be such rows.
    fn feed_head(&mut self, tenant: TenantId) -> Result<u64, Fault> {
        let mut damaged: Vec<u64> = Vec::new();
        let mut whole = 0;
        for entry in open!(self.feed, FEED).range(FeedKey::from(tenant, 0))?.rev() {
            let (key, bytes) = entry?;
            let key = key.value();
            match codec::read_feed_run(&key, bytes.value()) {
                Ok(_) => {
                    whole = key.position();
                    break;
                }
                Err(corrupt) => tracing::error!(%corrupt, "the end of a feed is damaged"),
            }
            damaged.push(key.position());
        }
        let counted = whole + damaged.len() as u64;
        let furthest = whole.saturating_add(RUN.saturating_mul(damaged.len() as u64));
        let said = damaged.into_iter().filter(|position| *position <= furthest && position % RUN == 0).max();
        Ok(said.map_or(counted, |said| said.max(counted)))
    }

    fn put_record(&mut self, key: ThreadKey, record: &Indexed) -> Result<(), Fault> {
        let name = RecordKey::new(key, record.kind, record.id);
        let bytes = codec::seal_record(&name, record.seq, record.open);
        let old = open!(self.records, RECORDS).insert(name, bytes.as_slice())?;
        let was = old.and_then(|old| codec::read_record(&name, old.value()).ok()).map(|(_, open)| open);
        if was == Some(record.open) {
            return Ok(());
        }
        let ids = open!(self.record_ids, RECORD_IDS);
        // It stands in one of the two places; which one, an unreadable record does not say.
        for entry in name.entries() {
            ids.remove(entry)?;
        }
        let entry = RecordIdKey::new(key.tenant, record.kind, record.open, record.id);
        ids.insert(entry, codec::seal_record_id(&entry, key.thread).as_slice())?;
        Ok(())
    }

    pub fn put_documents(&mut self, tenant: TenantId, documents: &[Document]) -> Result<(), Fault> {
        for document in documents {
            let key = DocumentKey::new(tenant, document.kind, &document.id);
            open!(self.documents, DOCUMENTS).insert(key, codec::seal_document(&key, &document.json).as_slice())?;
        }
        Ok(())
    }

    pub fn replace_documents(
        &mut self,
        tenant: TenantId,
        kind: DocumentKind,
        documents: &[Document],
    ) -> Result<(), Fault> {
        let of_kind = DocumentKey::all(tenant, kind);
        let prefix = [&tenant.as_bytes()[..], &[kind as u8]].concat();
        // A damaged page can lead outside of the range.
        open!(self.documents, DOCUMENTS).retain_in(of_kind, |at, _| !at.bytes().starts_with(&prefix))?;
        self.put_documents(tenant, documents)
    }

    pub fn forget_document(&mut self, tenant: TenantId, kind: DocumentKind, id: &[u8; 32]) -> Result<(), Fault> {
        open!(self.documents, DOCUMENTS).remove(DocumentKey::new(tenant, kind, id))?;
        Ok(())
    }

    /// Removes the records of a thread that goes. Its appends stay in the feed, and what it spent stays on the bill.
    pub fn forget(&mut self, key: ThreadKey) -> Result<(), Fault> {
        let mut names = Vec::new();
        for entry in open!(self.records, RECORDS).range(RecordKey::all(key))? {
            names.push(entry?.0.value());
        }
        names.retain(|name| name.is_of(key));
        for name in names {
            open!(self.records, RECORDS).remove(name)?;
            for entry in name.entries() {
                open!(self.record_ids, RECORD_IDS).remove(entry)?;
            }
        }
        Ok(())
    }

    /// Removes the entries that lead to a thread whose own records may be damaged.
    pub fn forget_entries(&mut self, key: ThreadKey) -> Result<(), Fault> {
        let leads = |at: &RecordIdKey, bytes: &[u8]| codec::read_record_id(at, bytes) == Ok(key.thread);
        open!(self.record_ids, RECORD_IDS)
            .retain_in(RecordIdKey::all(key.tenant), |at, bytes| !at.names_tenant(key.tenant) || !leads(&at, bytes))?;
        Ok(())
    }
}
