//! How much of a log goes into one answer: one rule for every store.

use std::borrow::Cow;

use bytes::Bytes;
use raddle_domain::{
    id::Seq,
    ports::{Chunk, StoredEvent},
};

/// Gathers events until there are enough.
pub(crate) struct Page {
    after: Seq,
    limit: usize,
    bytes: usize,
    chunks: Vec<Chunk>,
}

impl Page {
    pub(crate) fn new(after: Seq, limit: usize, bytes: usize) -> Self {
        Self { after, limit, bytes, chunks: Vec::new() }
    }

    /// Whether nothing more is wanted.
    pub(crate) fn is_full(&self) -> bool {
        self.limit == 0
    }

    /// Begins a chunk whose first wanted event is `first`.
    pub(crate) fn begin(&mut self, first: Seq) {
        self.chunks.push(Chunk { first: first.max(self.after + 1), events: Vec::new() });
    }

    /// Whether the event at `seq` is behind the cursor.
    pub(crate) fn skips(&self, seq: Seq) -> bool {
        seq <= self.after
    }

    /// Adds an event to the chunk that was begun last. Ends the page when it was the last one wanted.
    pub(crate) fn push(&mut self, name: Cow<'static, str>, json: Bytes) {
        let Some(chunk) = self.chunks.last_mut() else { return };
        self.bytes = self.bytes.saturating_sub(json.len());
        chunk.events.push(StoredEvent { name, json });
        self.limit = if self.bytes == 0 { 0 } else { self.limit - 1 };
    }

    pub(crate) fn finish(self) -> Vec<Chunk> {
        self.chunks
    }
}
