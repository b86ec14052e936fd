//! A watcher of one thread: what is stored after its cursor, then what happens, each event once and in order.
//!
//! The watch begins before the log is read, so nothing falls between the two; what both have is told apart by seq.

use std::sync::Arc;

use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{Chunk, StoredEvent},
};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    batch::Batch,
    bus::Watch,
    handle::{Error, Runtime},
};

/// Events read from the log at a time.
const PAGE: usize = 4_000;
const PAGE_BYTES: usize = 512 * 1024;
/// A page of so many events is probably not the last one.
const AHEAD: usize = 256;

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

impl Next {
    /// The events of this piece that were not seen before, each with its seq; none where it is the last.
    pub fn events(&self) -> impl Iterator<Item = (Seq, &StoredEvent)> {
        let (chunks, skip): (Vec<&Chunk>, usize) = match self {
            Self::Stored(chunks) => (chunks.iter().collect(), 0),
            Self::Live { batch, skip } => (vec![&batch.chunk], *skip),
            Self::Gap { .. } | Self::Shutdown { .. } | Self::Deleted => (Vec::new(), 0),
        };
        chunks.into_iter().flat_map(|chunk| (chunk.first..).zip(&chunk.events)).skip(skip)
    }

    /// Whether nothing follows.
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Gap { .. } | Self::Shutdown { .. } | Self::Deleted)
    }
}

/// A watcher; see [`Runtime::subscribe`]. Holds a place among the bounded number of watchers.
pub struct Subscription {
    runtime: Runtime,
    key: ThreadKey,
    after: Seq,
    watch: Watch,
    phase: Phase,
    /// The next page of a long backlog, read while the one before is sent.
    ahead: Option<JoinHandle<Result<Vec<Chunk>, Error>>>,
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
        Self { runtime, key, after, watch, phase: Phase::Backlog, ahead: None, _place: place }
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
                    let chunks = match self.page().await {
                        Err(Error::Draining) => return Ok(Next::Shutdown { after: self.after }),
                        read => read?,
                    };
                    if let Some(last) = chunks.last() {
                        self.after = last.last();
                        if chunks.iter().map(|chunk| chunk.events.len()).sum::<usize>() >= AHEAD {
                            let (runtime, key, after) = (self.runtime.clone(), self.key, self.after);
                            let read = async move { runtime.log_page(key, after, PAGE, PAGE_BYTES).await };
                            self.ahead = Some(self.runtime.shared().engines.spawn(read));
                        }
                        return Ok(Next::Stored(chunks));
                    }
                    self.phase = Phase::Live;
                    // It was the backlog, not the watcher, that took long: watch anew and read the rest.
                    if self.watch.lagged() {
                        self.watch = match self.runtime.watch(self.key).await {
                            Err(Error::Draining) => return Ok(Next::Shutdown { after: self.after }),
                            watch => watch?,
                        };
                        self.phase = Phase::Backlog;
                        // If the thread was deleted meanwhile, nothing will ever be said about it again.
                        if matches!(self.runtime.head(self.key).await, Err(Error::NotFound(_))) {
                            self.phase = Phase::Deleted;
                        }
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

    /// The next page of the backlog. A dropped call loses at most the reading of it.
    async fn page(&mut self) -> Result<Vec<Chunk>, Error> {
        let Some(ahead) = &mut self.ahead else {
            return self.runtime.log_page(self.key, self.after, PAGE, PAGE_BYTES).await;
        };
        let page = ahead.await;
        self.ahead = None;
        match page {
            Ok(page) => page,
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
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
            let after = self.after;
            // A watch that ends without having missed anything lost its bus, which may end before the signal is seen.
            return Some(if self.watch.lagged() { Next::Gap { after } } else { Next::Shutdown { after } });
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
