//! Committed events on their way to watchers: serialised once, shared by all who see them.

use std::sync::OnceLock;

use bytes::Bytes;
use raddle_domain::{
    id::ThreadKey,
    ports::{Chunk, Spent},
};

/// What one step of one thread added to its log.
#[derive(Debug)]
pub struct Batch {
    pub key: ThreadKey,
    pub chunk: Chunk,
    /// Where it stands in its tenant's feed; 0 for the last words of a deleted thread, which stand nowhere.
    pub position: u64,
    /// What the step spent.
    pub spent: Vec<Spent>,
    rendered: [OnceLock<Bytes>; 2],
}

/// For whom a batch is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Who watches the thread.
    Thread = 0,
    /// Who watches the tenant.
    Tenant = 1,
}

impl Batch {
    pub fn new(key: ThreadKey, chunk: Chunk, position: u64) -> Self {
        Self { key, chunk, position, spent: Vec::new(), rendered: Default::default() }
    }

    /// The same, having spent this.
    #[must_use]
    pub fn spending(self, spent: Vec<Spent>) -> Self {
        Self { spent, ..self }
    }

    /// The whole batch in its watchers' format: made by the first who asks, shared by the rest.
    /// Every caller must pass the same rendering for the same audience.
    pub fn rendered(&self, audience: Audience, render: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.rendered[audience as usize].get_or_init(|| render(self)).clone()
    }

    /// Bytes of JSON held.
    pub fn size(&self) -> usize {
        self.chunk.events.iter().map(|event| event.json.len()).sum()
    }
}
