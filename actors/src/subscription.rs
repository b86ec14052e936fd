//! A watcher of one thread: what is stored after its cursor, then what happens, each event once and in order.
//!
//! The watch begins before the log is read, so nothing falls between the two; what both have is told apart by seq.

use std::sync::Arc;

use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::Chunk,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    batch::Batch,
    bus::Watch,
    handle::{Error, Runtime},
};

/// Events read from the log at a time.
const PAGE: usize = 2_000;
const PAGE_BYTES: usize = 256 * 1024;

/// What a watcher gets next.
#[derive(Debug, Clone)]
pub enum Next {
    /// Events from the log, read for this watcher alone.
    Stored(Vec<Chunk>),
    /// Events as they were committed; the first `skip` of them were seen already.
    Live { batch: Arc<Batch>, skip: usize },
    /// The watcher was too slow and is cut off; it resumes after this seq. Nothing follows.
    Gap { after: Seq },
    /// The server is going down; the watcher resumes after this seq. Nothing follows.
    Shutdown { after: Seq },
    /// The thread is gone. Nothing follows.
    Deleted,
}

/// A watcher; see [`Runtime::subscribe`]. Holds a place among the bounded number of watchers.
pub struct Subscription {
    runtime: Runtime,
    key: ThreadKey,
    after: Seq,
    watch: Watch,
    phase: Phase,
    _place: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Backlog,
    Live,
    Deleted,
}

impl Subscription {
    pub(crate) fn new(runtime: Runtime, key: ThreadKey, after: Seq, watch: Watch, place: OwnedSemaphorePermit) -> Self {
        Self { runtime, key, after, watch, phase: Phase::Backlog, _place: place }
    }

    /// The last seq that was delivered: where a new subscription takes over.
    pub const fn after(&self) -> Seq {
        self.after
    }

    /// The next piece; after [`Next::Gap`], [`Next::Shutdown`], [`Next::Deleted`] or an error there is nothing more.
    /// Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Next, Error> {
        loop {
            match self.phase {
                Phase::Deleted => return Ok(Next::Deleted),
                Phase::Backlog => {
                    let chunks = self.runtime.log_page(self.key, self.after, PAGE, PAGE_BYTES).await?;
                    if let Some(last) = chunks.last() {
                        self.after = last.last();
                        return Ok(Next::Stored(chunks));
                    }
                    self.phase = Phase::Live;
                    // It was the backlog, not the watcher, that took long: watch anew and read the rest.
                    if self.watch.lagged() {
                        self.watch = self.runtime.watch(self.key).await?;
                        self.phase = Phase::Backlog;
                    }
                }
                Phase::Live => {
                    if let Some(next) = self.live().await {
                        return Ok(next);
                    }
                }
            }
        }
    }

    /// The next live batch that says something new; `None` to look again.
    async fn live(&mut self) -> Option<Next> {
        let stopping = self.runtime.stopping();
        let batch = tokio::select! {
            biased;
            batch = self.watch.next() => batch,
            () = stopping.cancelled() => match self.watch.ready() {
                Some(batch) => Some(batch),
                None => return Some(Next::Shutdown { after: self.after }),
            },
        };
        let Some(batch) = batch else {
            // The bus may be gone before this watcher has looked up.
            let after = self.after;
            let going = stopping.is_cancelled() && !self.watch.lagged();
            return Some(if going { Next::Shutdown { after } } else { Next::Gap { after } });
        };
        if batch.chunk.last() <= self.after {
            return None;
        }
        let deleted = batch.chunk.events.last().is_some_and(|event| event.name == "thread.deleted");
        if deleted {
            // Whatever was not seen before is gone with the log.
            self.phase = Phase::Deleted;
        } else if batch.chunk.first > self.after + 1 {
            // The bus may lose a message; the log has it.
            self.phase = Phase::Backlog;
            return None;
        }
        let skip = (self.after + 1).saturating_sub(batch.chunk.first) as usize;
        self.after = batch.chunk.last();
        Some(Next::Live { batch, skip })
    }
}
