//! What is a tenant's rather than one thread's.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use raddle_domain::{
    id::{TenantId, ThreadId, ThreadKey},
    ports::{Append, Document, DocumentKind, Fed, Found, RecordKind, Spent, SpentBy, WriteRefused},
};
use uuid::Uuid;

use super::super::tenant::{add_spent, taken};

#[derive(Debug, Default, Clone)]
pub(super) struct Tenants {
    feeds: BTreeMap<TenantId, Vec<Fed>>,
    records: BTreeMap<(TenantId, RecordKind, Uuid), Found>,
    spent: BTreeMap<(TenantId, u32, ThreadId), Vec<Spent>>,
    documents: BTreeMap<(TenantId, DocumentKind, [u8; 32]), Vec<u8>>,
}

impl Tenants {
    /// Refuses an append that names a record of another thread.
    pub fn check(&self, append: &Append) -> Result<(), WriteRefused> {
        let ThreadKey { tenant, thread } = append.key;
        for record in &append.indexed {
            match self.records.get(&(tenant, record.kind, record.id)) {
                Some(found) if found.thread != thread => return Err(taken(tenant, record, found.thread)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Stores what an append brings for its tenant; its position in the feed.
    pub fn append(&mut self, append: &Append) -> u64 {
        let ThreadKey { tenant, thread } = append.key;
        for record in &append.indexed {
            let found = Found { id: record.id, thread, seq: record.seq, open: record.open };
            self.records.insert((tenant, record.kind, record.id), found);
        }
        for spent in &append.spent {
            add_spent(self.spent.entry((tenant, spent.day, thread)).or_default(), spent);
        }
        self.put(tenant, &append.documents);
        if append.chunk.events.is_empty() {
            return 0;
        }
        let feed = self.feeds.entry(tenant).or_default();
        let position = feed.len() as u64 + 1;
        feed.push(Fed { position, thread, first: append.chunk.first, last: append.chunk.last() });
        position
    }

    /// Removes what must not outlive its thread.
    pub fn forget(&mut self, key: ThreadKey) {
        self.records.retain(|(tenant, ..), found| (*tenant, found.thread) != (key.tenant, key.thread));
    }

    pub fn replace_documents(&mut self, tenant: TenantId, kind: DocumentKind, documents: &[Document]) {
        self.documents.retain(|(of, is, _), _| (*of, *is) != (tenant, kind));
        self.put(tenant, documents);
    }

    pub fn forget_document(&mut self, tenant: TenantId, kind: DocumentKind, id: [u8; 32]) {
        self.documents.remove(&(tenant, kind, id));
    }

    pub fn put(&mut self, tenant: TenantId, documents: &[Document]) {
        for document in documents {
            self.documents.insert((tenant, document.kind, document.id), document.json.clone());
        }
    }

    pub fn feed(&self, tenant: TenantId, after: u64, limit: usize) -> Vec<Fed> {
        let feed = self.feeds.get(&tenant).map_or(&[][..], Vec::as_slice);
        // The entry at the place n has the position n + 1.
        let from = usize::try_from(after).unwrap_or(usize::MAX).min(feed.len());
        feed[from..].iter().take(limit).copied().collect()
    }

    pub fn feed_head(&self, tenant: TenantId) -> u64 {
        self.feeds.get(&tenant).map_or(0, |feed| feed.len() as u64)
    }

    pub fn feeds(&self) -> Vec<TenantId> {
        self.feeds.keys().copied().collect()
    }

    pub fn record(&self, tenant: TenantId, kind: RecordKind, id: Uuid) -> Option<Found> {
        self.records.get(&(tenant, kind, id)).copied()
    }

    pub fn records(&self, tenant: TenantId, kind: RecordKind) -> impl Iterator<Item = &Found> {
        let all = (tenant, kind, Uuid::nil())..=(tenant, kind, Uuid::max());
        self.records.range(all).map(|(_, found)| found)
    }

    pub fn spent(&self, tenant: TenantId) -> impl Iterator<Item = SpentBy> {
        self.spent.iter().filter(move |((of, ..), _)| *of == tenant).map(|((_, day, thread), rows)| SpentBy {
            day: *day,
            thread: *thread,
            rows: rows.clone(),
        })
    }

    pub fn documents(
        &self,
        tenant: TenantId,
        kind: DocumentKind,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Vec<Document> {
        let from = after.map_or(Bound::Included((tenant, kind, [0; 32])), |id| Bound::Excluded((tenant, kind, id)));
        let all = self.documents.range((from, Bound::Included((tenant, kind, [0xff; 32])))).take(limit);
        all.map(|((.., id), json)| Document { kind, id: *id, json: json.clone() }).collect()
    }

    /// The tenants that have a document of their own.
    pub fn recorded(&self) -> Vec<TenantId> {
        let all: BTreeSet<_> =
            self.documents.keys().filter(|(_, kind, _)| *kind == DocumentKind::Tenant).map(|(of, ..)| *of).collect();
        all.into_iter().collect()
    }
}
