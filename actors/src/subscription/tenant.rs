//! Watching every thread of a tenant, or some of them. What nobody asked for moves the cursor all the same.

use std::{collections::HashSet, sync::Arc};

use raddle_domain::{
    id::{TenantId, ThreadId, ThreadKey},
    ports::StoredEvent,
};

use super::{
    AHEAD, Follow, Heard, PAGE, PAGE_BYTES, Phase, Read, Rest, Source, Told,
    feed::{TenantCursor, TenantPage},
};
use crate::{
    batch::Batch,
    bus::{Committed, Watch},
    handle::{Error, Runtime},
};

/// What a watcher of a tenant gets next.
#[derive(Debug, Clone)]
pub enum TenantNext {
    /// Events from the log, read for this watcher alone.
    Stored(TenantPage),
    /// Steps of threads as they were committed.
    Live(Vec<Arc<Batch>>),
    /// The watcher was too slow and is cut off; it resumes here. Nothing follows.
    Gap { after: TenantCursor },
    /// The server is going down; the watcher resumes here. Nothing follows.
    Shutdown { after: TenantCursor },
}

impl TenantNext {
    /// The events of this piece, each with the cursor behind it. The last words of a deleted thread stand in no feed,
    /// and have none.
    pub fn events(&self) -> impl Iterator<Item = (Option<TenantCursor>, &StoredEvent)> {
        let (stored, live): (&[_], &[_]) = match self {
            Self::Stored(page) => (&page.events, &[]),
            Self::Live(batches) => (&[], batches),
            Self::Gap { .. } | Self::Shutdown { .. } => (&[], &[]),
        };
        let stored = stored.iter().map(|(cursor, event)| (Some(*cursor), event));
        stored.chain(live.iter().flat_map(|batch| batch.in_feed()))
    }

    /// Whether nothing follows.
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Gap { .. } | Self::Shutdown { .. })
    }
}

impl Batch {
    /// Its events, each with the cursor that a watcher of the tenant has behind it; none for a deleted thread's.
    pub fn in_feed(&self) -> impl Iterator<Item = (Option<TenantCursor>, &StoredEvent)> {
        let position = self.position;
        let cursor = move |seq| (position > 0).then_some(TenantCursor { position, seq });
        (self.chunk.first..).zip(&self.chunk.events).map(move |(seq, event)| (cursor(seq), event))
    }
}

/// A watcher of a tenant; see [`Runtime::subscribe_tenant`]. Holds a place among the bounded number of watchers.
pub struct TenantSubscription(pub(crate) Follow<OfTenant>);

impl TenantSubscription {
    /// Behind the last event that was delivered, or passed over: where a new subscription takes over.
    pub const fn after(&self) -> TenantCursor {
        self.0.after()
    }

    /// The next piece; after [`TenantNext::Gap`], [`TenantNext::Shutdown`] or an error there is nothing more.
    /// Cancel-safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<TenantNext, Error> {
        Ok(match self.0.next().await? {
            Told::Stored(page) => TenantNext::Stored(page),
            Told::Live(batches) => TenantNext::Live(batches),
            Told::Gap(after) => TenantNext::Gap { after },
            // A tenant is never over.
            Told::Shutdown(after) => TenantNext::Shutdown { after },
            Told::Over => TenantNext::Shutdown { after: self.after() },
        })
    }
}

/// Whose events of a tenant are wanted.
#[derive(Clone)]
pub(crate) enum Wanted {
    Everyones,
    /// Those of these logs.
    These(Arc<HashSet<ThreadId>>),
    /// Those of runs.
    Runs,
}

impl Wanted {
    pub fn has(&self, key: ThreadKey) -> bool {
        match self {
            Self::Everyones => true,
            Self::These(logs) => logs.contains(&key.thread),
            Self::Runs => key.is_run(),
        }
    }
}

impl From<Option<HashSet<ThreadId>>> for Wanted {
    fn from(threads: Option<HashSet<ThreadId>>) -> Self {
        threads.map_or(Self::Everyones, |threads| Self::These(Arc::new(threads)))
    }
}

#[derive(Clone)]
pub(crate) struct OfTenant {
    pub tenant: TenantId,
    pub wanted: Wanted,
}

impl Source for OfTenant {
    type Cursor = TenantCursor;
    type Page = TenantPage;
    type Piece = Committed;
    type News = Vec<Arc<Batch>>;

    async fn watch(&self, runtime: &Runtime) -> Result<Watch<Committed>, Error> {
        runtime.watch_tenant(self.tenant).await
    }

    async fn read(self, runtime: Runtime, after: TenantCursor) -> Result<Read<Self>, Error> {
        let page = runtime.feed_page(self, after, PAGE, PAGE_BYTES).await?;
        let rest = match page.more {
            false => Rest::Nothing,
            true if page.events.len() >= AHEAD => Rest::Much,
            true => Rest::Some,
        };
        let after = page.next;
        let says = !page.events.is_empty() || !page.unavailable.is_empty();
        Ok(Read { page: says.then_some(page), after, rest })
    }

    async fn is_gone(&self, _: &Runtime) -> bool {
        false
    }

    fn hear(&self, after: &mut TenantCursor, committed: Committed) -> Heard<Vec<Arc<Batch>>> {
        let (mut news, mut then) = (Vec::new(), Phase::Live);
        for batch in committed.iter() {
            // Every append that the cursor names was read whole, or this would be the backlog.
            if batch.position > 0 && batch.position <= after.position {
                continue;
            }
            if batch.position > after.position + 1 {
                // The bus may lose a message; the feed has it.
                then = Phase::Backlog;
                break;
            }
            if batch.position > 0 {
                *after = TenantCursor { position: batch.position, seq: batch.chunk.last() };
            }
            if self.wanted.has(batch.key) {
                news.push(batch.clone());
            }
        }
        Heard { news: (!news.is_empty()).then_some(news), then }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{id::Seq, ports::Chunk};

    use super::*;

    fn batch(thread: u8, position: u64, first: Seq) -> Arc<Batch> {
        let key = ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([thread; 16]) };
        let event = StoredEvent { name: "item.delta".into(), json: (&b"{}"[..]).into() };
        Arc::new(Batch::new(key, Chunk { first, events: vec![event.clone(), event] }, position))
    }

    /// What is heard from position 4 on: threads and positions, where the cursor is then, and what comes next.
    fn hear(threads: Option<&[u8]>, committed: &[Arc<Batch>]) -> (Vec<(u8, u64)>, (u64, Seq), Phase) {
        let threads: Option<HashSet<_>> =
            threads.map(|threads| threads.iter().map(|thread| ThreadId::from_bytes([*thread; 16])).collect());
        let mut after = TenantCursor { position: 4, seq: 9 };
        let heard = OfTenant { tenant: TenantId::DEFAULT, wanted: threads.into() }.hear(&mut after, committed.into());
        let news = heard.news.unwrap_or_default();
        let news = news.iter().map(|batch| (batch.key.thread.as_bytes()[0], batch.position)).collect();
        (news, (after.position, after.seq), heard.then)
    }

    #[test]
    fn what_was_seen_is_not_heard_again() {
        let committed = [batch(1, 3, 5), batch(2, 4, 8), batch(1, 5, 7)];
        assert_eq!(hear(None, &committed), (vec![(1, 5)], (5, 8), Phase::Live));
        assert_eq!(hear(None, &committed[..2]), (vec![], (4, 9), Phase::Live));
    }

    #[test]
    fn what_the_bus_lost_is_read_from_the_feed() {
        let committed = [batch(1, 5, 7), batch(2, 7, 1), batch(1, 8, 9)];
        assert_eq!(hear(None, &committed), (vec![(1, 5)], (5, 8), Phase::Backlog));
        assert_eq!(hear(None, &committed[1..]), (vec![], (4, 9), Phase::Backlog));
    }

    #[test]
    fn what_nobody_asked_for_moves_the_cursor() {
        let committed = [batch(1, 5, 7), batch(2, 6, 1), batch(1, 7, 9)];
        assert_eq!(hear(Some(&[2]), &committed), (vec![(2, 6)], (7, 10), Phase::Live));
        assert_eq!(hear(Some(&[]), &committed), (vec![], (7, 10), Phase::Live));
    }

    #[test]
    fn the_last_words_of_a_thread_are_heard_and_move_no_cursor() {
        let last = [batch(3, 0, 30)];
        assert_eq!(hear(None, &last), (vec![(3, 0)], (4, 9), Phase::Live));
        assert_eq!(hear(Some(&[2]), &last), (vec![], (4, 9), Phase::Live));
        assert!(TenantNext::Live(last.to_vec()).events().all(|(cursor, _)| cursor.is_none()));
        let seqs: Vec<_> = batch(1, 5, 7).in_feed().map(|(cursor, _)| cursor.unwrap()).collect();
        assert_eq!(seqs, [TenantCursor { position: 5, seq: 7 }, TenantCursor { position: 5, seq: 8 }]);
    }
}
