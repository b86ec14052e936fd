//! Committed events on their way to watchers: serialised once, shared by all who see them.

use std::sync::OnceLock;

use bytes::Bytes;
use raddle_domain::{id::ThreadKey, ports::Chunk};

/// What one step of one thread added to its log.
#[derive(Debug)]
pub struct Batch {
    pub key: ThreadKey,
    pub chunk: Chunk,
    rendered: OnceLock<Bytes>,
}

impl Batch {
    pub fn new(key: ThreadKey, chunk: Chunk) -> Self {
        Self { key, chunk, rendered: OnceLock::new() }
    }

    /// The whole batch in a watcher's format: made by the first who asks, shared by the rest.
    /// Every caller must pass the same rendering.
    pub fn rendered(&self, render: impl FnOnce(&Chunk) -> Bytes) -> Bytes {
        self.rendered.get_or_init(|| render(&self.chunk)).clone()
    }

    /// Bytes of JSON held.
    pub fn size(&self) -> usize {
        self.chunk.events.iter().map(|event| event.json.len()).sum()
    }
}
