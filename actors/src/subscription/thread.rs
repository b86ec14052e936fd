//! Watching one thread. A cursor is the seq of the last event that was seen.

use std::sync::Arc;

use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{Chunk, StoredEvent},
};

use super::{AHEAD, Follow, Heard, PAGE, PAGE_BYTES, Phase, Read, Rest, Source, Told};
use crate::{
    batch::Batch,
    bus::Watch,
    handle::{Error, Runtime},
};

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

/// A watcher of one thread; see [`Runtime::subscribe`]. Holds a place among the bounded number of watchers.
pub struct Subscription(pub(crate) Follow<OfThread>);

impl Subscription {
    /// The last seq that was delivered: where a new subscription takes over.
    pub const fn after(&self) -> Seq {
        self.0.after()
    }

    /// For who looks again when it is let go, and cuts off nobody.
    pub(crate) fn uncounted(mut self) -> Self {
        self.0.counts = false;
        self
    }

    /// The next piece; after [`Next::Gap`], [`Next::Shutdown`], [`Next::Deleted`] or an error there is nothing more.
    /// Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Next, Error> {
        Ok(match self.0.next().await? {
            Told::Stored(chunks) => Next::Stored(chunks),
            Told::Live((batch, skip)) => Next::Live { batch, skip },
            Told::Gap(after) => Next::Gap { after },
            Told::Shutdown(after) => Next::Shutdown { after },
            Told::Over => Next::Deleted,
        })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct OfThread(pub ThreadKey);

impl Source for OfThread {
    type Cursor = Seq;
    type Page = Vec<Chunk>;
    type Piece = Arc<Batch>;
    type News = (Arc<Batch>, usize);

    async fn watch(&self, runtime: &Runtime) -> Result<Watch<Arc<Batch>>, Error> {
        runtime.watch(self.0).await
    }

    async fn read(self, runtime: Runtime, after: Seq) -> Result<Read<Self>, Error> {
        let chunks = runtime.log_page(self.0, after, PAGE, PAGE_BYTES).await?;
        let Some(last) = chunks.last() else { return Ok(Read { page: None, after, rest: Rest::Nothing }) };
        let after = last.last();
        let count: usize = chunks.iter().map(|chunk| chunk.events.len()).sum();
        Ok(Read { page: Some(chunks), after, rest: if count >= AHEAD { Rest::Much } else { Rest::Some } })
    }

    async fn is_gone(&self, runtime: &Runtime) -> bool {
        matches!(runtime.head(self.0).await, Err(Error::NotFound(_)))
    }

    fn hear(&self, after: &mut Seq, batch: Arc<Batch>) -> Heard<(Arc<Batch>, usize)> {
        if batch.chunk.last() <= *after {
            return Heard { news: None, then: Phase::Live };
        }
        // Clients name events of runs: what would be the last word of another kind of log is none here.
        let last = if self.0.is_run() { "context.run.deleted" } else { "thread.deleted" };
        let deleted = batch.chunk.events.last().is_some_and(|event| event.name == last);
        // Whatever was not seen before a deletion is gone with the log.
        if !deleted && batch.chunk.first > *after + 1 {
            // The bus may lose a message; the log has it.
            return Heard { news: None, then: Phase::Backlog };
        }
        let skip = match batch.chunk.first > *after + 1 {
            // Of what went with the log the last word alone is told: what is before it in its piece would leave a gap.
            true => batch.chunk.events.len() - 1,
            false => (*after + 1).saturating_sub(batch.chunk.first) as usize,
        };
        *after = batch.chunk.last();
        Heard { news: Some((batch, skip)), then: if deleted { Phase::Over } else { Phase::Live } }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{
        id::{TenantId, ThreadId},
        ports::{Chunk, StoredEvent},
    };
    use uuid::Uuid;

    use super::*;

    #[test]
    fn of_a_deletion_that_took_what_was_not_seen_the_last_word_is_told() {
        let key = ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::new(Uuid::nil()) };
        let event = |name: &'static str| StoredEvent { name: name.into(), json: b"{}"[..].into() };
        let events = vec![event("item.delta"), event("thread.deleted")];
        let batch = Arc::new(Batch::new(key, Chunk { first: 13, events }, 0));
        for (mut after, skips) in [(7, 1), (11, 1), (12, 0), (13, 1)] {
            let heard = OfThread(key).hear(&mut after, batch.clone());
            assert_eq!(heard.news.map(|(_, skip)| skip), Some(skips));
            assert_eq!((after, heard.then), (14, Phase::Over));
        }
    }
}
