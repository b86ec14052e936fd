//! How much of a log goes into one answer: one rule for every store.

use std::borrow::Cow;

use bytes::Bytes;
use raddle_domain::{
    id::Seq,
    ports::{Chunk, StoredEvent},
};

/// Gathers events until there are enough.
pub(crate) struct Page {
    limit: usize,
    bytes: usize,
    chunks: Vec<Chunk>,
    /// Whether the next event is the first of its chunk.
    fresh: bool,
}

impl Page {
    pub(crate) fn new(limit: usize, bytes: usize) -> Self {
        Self { limit, bytes, chunks: Vec::new(), fresh: true }
    }

    /// Whether nothing more is wanted.
    pub(crate) fn is_full(&self) -> bool {
        self.limit == 0
    }

    /// Begins a chunk.
    pub(crate) fn begin(&mut self) {
        self.fresh = true;
    }

    /// Adds an event, to the chunk that was begun last if it stands there side by side with the one before it. Ends
    /// the page when it was the last one wanted.
    pub(crate) fn push(&mut self, seq: Seq, name: Cow<'static, str>, json: Bytes) {
        self.bytes = self.bytes.saturating_sub(json.len());
        self.limit = if self.bytes == 0 { 0 } else { self.limit - 1 };
        let event = StoredEvent { name, json };
        match self.chunks.last_mut() {
            Some(chunk) if !self.fresh && chunk.last() + 1 == seq => chunk.events.push(event),
            _ => self.chunks.push(Chunk { first: seq, events: vec![event] }),
        }
        self.fresh = false;
    }

    pub(crate) fn finish(self) -> Vec<Chunk> {
        self.chunks
    }
}
