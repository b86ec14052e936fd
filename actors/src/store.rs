//! The one writer: takes what waits, commits it together, tells the bus, then the writers. More than one commit holds is
//! taken from the tenants in turn ([`queue`]).
//!
//! ```text
//!            commit failed                     reopened
//! Healthy ------------------> Down(error) ------------------> Healthy
//!    |                          ^  |  each append is refused at once; reopening is tried after 50 ms, 100 ms, … 2 s
//!    | no room                  |
//!    '---------> Full ----------'  each append is tried, and a probe each second: the first success ends it
//! ```
//! Invariants: a reply is sent after its own commit is durable and after the bus was told; batches reach the bus in
//! commit order; after an error other than `Full` a refused append may be stored nevertheless, so its writer has to
//! read again. No timer lingers for more writes: while one commit runs the next ones gather by themselves.
//! Absent on purpose: a bound of its own (admission is bounded before), reads (they use a view on the caller's side).

pub mod backend;
pub mod backup;
mod closed;
mod codec;
pub mod export;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod keys;
pub mod memory;
mod packing;
mod page;
mod queue;
pub mod redb;
mod rename;
pub(crate) mod tables;
mod tenant;

use std::{
    future::Future,
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use actix_rt::ArbiterHandle;
use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{Append, Document, LogStore, StoreError, Write, WriteRefused},
};
use tokio::{sync::oneshot, time::Instant};

pub use self::queue::Weigh;
pub(crate) use self::queue::tenant;
pub(crate) use self::rename::rename;
use self::{
    keys::{RowKey, StoreKey, TurnKey},
    queue::Queue,
};
use crate::{
    batch::Batch,
    stage::{On, Stage},
    times::Times,
};

/// About the most bytes in one commit; one write may be larger.
const BATCH_BYTES: usize = 1 << 20;
/// Silence after which the store rests.
const IDLE: Duration = Duration::from_millis(100);
/// How often a full disk is looked at.
const PROBE: Duration = Duration::from_secs(1);
/// The first and the longest wait before the store is opened again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Told of every commit: the appended batches, in order. Called on the store's thread; must not block.
pub type OnCommit = Arc<dyn Fn(Vec<Arc<Batch>>) + Send + Sync>;
/// Told when the store is writable again after it was not, and whether something may be stored of which nobody was told.
pub type OnRecovered = Arc<dyn Fn(bool) + Send + Sync>;

/// Why an append did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// This write alone was refused; nothing of it is stored.
    #[error(transparent)]
    Refused(#[from] WriteRefused),
    /// Unless it is [`StoreError::Full`], the write may be stored nevertheless.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is gone; the write may be stored or not.
    #[error("the store is closed")]
    Closed,
}

/// How the store is doing. Counters only grow.
#[derive(Debug)]
pub struct StoreStats {
    /// Successful commits.
    pub commits: AtomicU64,
    /// Writes that were stored.
    pub rows: AtomicU64,
    /// Commits and attempts to reopen that failed.
    pub errors: AtomicU64,
    /// Whether the last commit, or attempt to reopen, succeeded.
    pub writable: AtomicBool,
    /// Whether it is for lack of room that it is not writable.
    pub full: AtomicBool,
    /// How long commits take.
    pub(crate) commit: Times,
    /// How long writes wait until their commit begins.
    pub(crate) wait: Times,
}

impl Default for StoreStats {
    fn default() -> Self {
        let [commits, rows, errors] = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];
        let (writable, full) = (AtomicBool::new(true), AtomicBool::new(false));
        Self { commits, rows, errors, writable, full, commit: Times::default(), wait: Times::default() }
    }
}

/// A way to the store; cheap to clone.
#[derive(Clone)]
pub struct StoreHandle {
    actor: Addr<StoreActor>,
    store: Arc<dyn LogStore>,
    stats: Arc<StoreStats>,
}

impl StoreHandle {
    /// Hands the write over, now. The future says what became of it; dropping the future takes nothing back.
    pub fn append(&self, write: Write) -> impl Future<Output = Result<(), AppendError>> + Send + 'static {
        let written = self.write(write);
        async move { written.await.map(drop) }
    }

    /// The same, with what the store answered.
    pub fn write(&self, write: Write) -> impl Future<Output = Result<u64, AppendError>> + Send + 'static {
        let (reply, replied) = oneshot::channel();
        // Not `send`: dropping its future would take the write back. Admission is bounded before a write gets here.
        self.actor.do_send(Submit { write, waiter: (reply, Instant::now()) });
        async move { replied.await.unwrap_or(Err(AppendError::Closed)) }
    }

    /// For reading. Do it off the actors' threads, and in pages.
    pub fn store(&self) -> &Arc<dyn LogStore> {
        &self.store
    }

    pub fn stats(&self) -> &StoreStats {
        &self.stats
    }

    /// Refused while nobody knows what is stored: what a commit stored that failed may show only once the store was
    /// opened again. Who is to go on from what he reads asks before he does.
    pub fn known(&self) -> Result<(), StoreError> {
        let StoreStats { writable, full, .. } = &*self.stats;
        let is_down = !writable.load(Ordering::Relaxed) && !full.load(Ordering::Relaxed);
        if is_down { Err(StoreError::Unavailable("it is not known what is stored".to_owned())) } else { Ok(()) }
    }

    /// Stores what was handed over before, makes the store rest, and ends the actor.
    pub async fn shutdown(&self) {
        let (done, is_done) = oneshot::channel();
        // As in `append`; there is at most one per owner of the runtime.
        self.actor.do_send(Shutdown(done));
        // An error means that the actor is gone already, which is what was wanted.
        let _ = is_done.await;
    }
}

/// The actor. See the module's text.
pub struct StoreActor {
    store: Arc<dyn LogStore>,
    bus: OnCommit,
    on_recovered: OnRecovered,
    stats: Arc<StoreStats>,
    waiting: Queue,
    flush_sent: bool,
    state: State,
    /// Whether a call of `probe` is on its way.
    probing: bool,
    /// Commits when the idle timer was set; `None` when none is.
    idle_since: Option<u64>,
}

type Reply = oneshot::Sender<Result<u64, AppendError>>;

enum State {
    Healthy,
    /// There is no room; a probe is on its way.
    Full,
    /// The handle is of no use; an attempt to reopen comes after the wait.
    Down {
        error: StoreError,
        wait: Duration,
    },
}

#[derive(Message)]
#[rtype(result = "()")]
struct Submit {
    write: Write,
    waiter: queue::Waiter,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

#[derive(Message)]
#[rtype(result = "()")]
struct Shutdown(oneshot::Sender<()>);

impl StoreActor {
    /// Starts on `arbiter`, which should be the store's own: a commit blocks it. All tenants weigh the same.
    pub fn start_in(
        arbiter: &ArbiterHandle,
        store: Arc<dyn LogStore>,
        bus: OnCommit,
        on_recovered: OnRecovered,
    ) -> StoreHandle {
        let start = |actor| Self::start_in_arbiter(arbiter, |_| actor);
        Self::start_as(start, Some(equal()), store, bus, on_recovered)
    }

    /// Starts where the store has its place, with the tenants' weights; without them tenants are not told apart.
    pub(crate) fn start_on(
        stage: &Stage,
        weigh: Option<Weigh>,
        store: Arc<dyn LogStore>,
        bus: OnCommit,
        on_recovered: OnRecovered,
    ) -> StoreHandle {
        Self::start_as(|actor| stage.start(On::Store, |_| actor), weigh, store, bus, on_recovered)
    }

    /// Starts on the current thread, inside a `LocalSet`: for tests.
    pub fn start_here(store: Arc<dyn LogStore>, bus: OnCommit, on_recovered: OnRecovered) -> StoreHandle {
        Self::start_as(Actor::start, Some(equal()), store, bus, on_recovered)
    }

    fn start_as(
        start: impl FnOnce(Self) -> Addr<Self>,
        weigh: Option<Weigh>,
        store: Arc<dyn LogStore>,
        bus: OnCommit,
        on_recovered: OnRecovered,
    ) -> StoreHandle {
        let stats = Arc::new(StoreStats::default());
        let actor = start(Self::new(store.clone(), bus, on_recovered, stats.clone(), weigh));
        StoreHandle { actor, store, stats }
    }

    fn new(
        store: Arc<dyn LogStore>,
        bus: OnCommit,
        on_recovered: OnRecovered,
        stats: Arc<StoreStats>,
        weigh: Option<Weigh>,
    ) -> Self {
        Self {
            store,
            bus,
            on_recovered,
            stats,
            waiting: Queue::new(weigh),
            flush_sent: false,
            state: State::Healthy,
            probing: false,
            idle_since: None,
        }
    }

    /// Calls the store; a panic in it must not take the actor along.
    fn call<T>(&self, call: impl FnOnce(&dyn LogStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        catch_unwind(AssertUnwindSafe(|| call(&*self.store)))
            .unwrap_or_else(|_| Err(StoreError::Unavailable("the store panicked".to_owned())))
    }

    /// One commit.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        let (writes, waiting) = self.waiting.take(self.store.batch_writes());
        let waited = |(reply, since): queue::Waiter| {
            self.stats.wait.took(since.elapsed());
            reply
        };
        let replies: Vec<Reply> = waiting.into_iter().map(waited).collect();
        if writes.is_empty() {
            return;
        }
        let began = Instant::now();
        match self.call(|store| store.commit(&writes)) {
            Ok(results) => {
                let time = began.elapsed();
                self.stats.commit.took(time);
                self.waiting.took(writes.len(), time);
                self.stats.commits.fetch_add(1, Ordering::Relaxed);
                let stored = results.iter().filter(|result| result.is_ok()).count();
                self.stats.rows.fetch_add(stored as u64, Ordering::Relaxed);
                // Removing says nothing about room.
                if writes.iter().any(adds) {
                    self.recovered();
                }
                let batches: Vec<_> = writes
                    .into_iter()
                    .zip(&results)
                    .filter_map(|(write, result)| match (write, result) {
                        (Write::Append(append), Ok(position)) if !append.chunk.events.is_empty() => {
                            Some(Arc::new(Batch::new(append.key, append.chunk, *position).spending(append.spent)))
                        }
                        _ => None,
                    })
                    .collect();
                if !batches.is_empty() {
                    (self.bus)(batches);
                }
                for (reply, result) in replies.into_iter().zip(results) {
                    // Nobody waits for it: the write is stored all the same.
                    let _ = reply.send(result.map_err(AppendError::Refused));
                }
                self.watch_silence(ctx);
            }
            Err(error) => {
                // First that nothing is known any more: who hears of it may come to read.
                self.failed(error.clone(), ctx);
                self.refuse(replies, &error);
            }
        }
    }

    fn refuse(&self, replies: impl IntoIterator<Item = Reply>, error: &StoreError) {
        for reply in replies {
            // As above.
            let _ = reply.send(Err(AppendError::Store(error.clone())));
        }
    }

    /// Takes note of an error of the whole store.
    fn failed(&mut self, error: StoreError, ctx: &mut Context<Self>) {
        self.stats.errors.fetch_add(1, Ordering::Relaxed);
        self.stats.writable.store(false, Ordering::Relaxed);
        self.stats.full.store(error == StoreError::Full, Ordering::Relaxed);
        match (&self.state, error) {
            (State::Full, StoreError::Full) => {}
            (State::Healthy, StoreError::Full) => {
                tracing::error!(why = %StoreError::Full, "writes are refused until there is room");
                self.state = State::Full;
                self.probe_after(PROBE, ctx);
            }
            (_, error) => {
                tracing::error!(%error, "the store failed; it will be opened again");
                // What waits was not tried, but its writers' order is: they all read again.
                let waiting = self.waiting.clear();
                self.refuse(waiting, &error);
                self.state = State::Down { error, wait: BACKOFF.0 };
                self.probe_after(BACKOFF.0, ctx);
            }
        }
    }

    fn probe_after(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.probing, true) {
            ctx.run_later(wait, Self::probe);
        }
    }

    /// Tries to become writable, and comes back if it does not.
    fn probe(&mut self, ctx: &mut Context<Self>) {
        self.probing = false;
        if matches!(self.state, State::Healthy) {
            return;
        }
        match self.call(LogStore::reopen) {
            Ok(()) => {
                self.recovered();
                self.watch_silence(ctx);
            }
            Err(error) => {
                self.stats.errors.fetch_add(1, Ordering::Relaxed);
                let wait = match (&self.state, &error) {
                    (State::Full, StoreError::Full) => PROBE,
                    (State::Down { wait, .. }, _) => (*wait * 2).min(BACKOFF.1),
                    (State::Full | State::Healthy, _) => BACKOFF.0,
                };
                if !matches!((&self.state, &error), (State::Full, StoreError::Full)) {
                    self.state = State::Down { error, wait };
                }
                self.probe_after(wait, ctx);
            }
        }
    }

    fn recovered(&mut self) {
        let in_doubt = matches!(self.state, State::Down { .. });
        if in_doubt || matches!(self.state, State::Full) {
            self.state = State::Healthy;
            self.stats.writable.store(true, Ordering::Relaxed);
            self.stats.full.store(false, Ordering::Relaxed);
            tracing::info!("the store is writable again");
            (self.on_recovered)(in_doubt);
        }
    }

    /// Makes the store rest once nothing was committed for a while.
    fn watch_silence(&mut self, ctx: &mut Context<Self>) {
        if self.idle_since.is_some() {
            return;
        }
        self.idle_since = Some(self.stats.commits.load(Ordering::Relaxed));
        ctx.run_later(IDLE, |this, ctx| {
            let since = this.idle_since.take();
            if !matches!(this.state, State::Healthy) {
                return;
            }
            if since == Some(this.stats.commits.load(Ordering::Relaxed)) {
                if let Err(error) = this.call(LogStore::rest) {
                    this.failed(error, ctx);
                }
            } else {
                this.watch_silence(ctx);
            }
        });
    }
}

impl Actor for StoreActor {
    type Context = Context<Self>;
}

impl Handler<Submit> for StoreActor {
    type Result = ();

    fn handle(&mut self, Submit { write, waiter }: Submit, ctx: &mut Self::Context) {
        if let State::Down { error, .. } = &self.state {
            self.refuse([waiter.0], error);
            return;
        }
        self.waiting.push(write, waiter);
        if !self.flush_sent {
            self.flush_sent = true;
            // Runs after what is in the mailbox now: all of that goes into the same commit.
            ctx.notify(Flush);
        }
    }
}

impl Handler<Flush> for StoreActor {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush_sent = false;
        self.flush(ctx);
        if !self.waiting.is_empty() {
            self.flush_sent = true;
            ctx.notify(Flush);
        }
    }
}

impl Handler<Shutdown> for StoreActor {
    type Result = ();

    fn handle(&mut self, Shutdown(done): Shutdown, ctx: &mut Self::Context) {
        while !self.waiting.is_empty() {
            self.flush(ctx);
        }
        if let Err(error) = self.call(LogStore::rest) {
            tracing::warn!(%error, "the store could not rest; the next start takes longer");
        }
        ctx.stop();
        // Nobody waits for it.
        let _ = done.send(());
    }
}

fn equal() -> Weigh {
    Arc::new(|_| NonZeroU32::MIN)
}

/// Whether a write takes room, rather than giving some back.
fn adds(write: &Write) -> bool {
    match write {
        Write::Append(_) | Write::Put { .. } => true,
        Write::Import { .. } | Write::Open { .. } => true,
        Write::Documents { documents, .. } => !documents.is_empty(),
        Write::Purge { .. } | Write::Erase { .. } | Write::Forget { .. } => false,
        // A note of a few bytes, so that much can be removed.
        Write::Close { .. } | Write::Sweep { .. } => false,
    }
}

/// About the bytes a write puts on the disk.
fn size(write: &Write) -> usize {
    let of = |documents: &[Document]| documents.iter().map(|document| 64 + document.json.len()).sum::<usize>();
    let append = match write {
        Write::Append(append) => append,
        Write::Put { documents, .. } | Write::Documents { documents, .. } | Write::Open { documents, .. } => {
            return 64 + of(documents);
        }
        Write::Import { records, .. } => {
            return records.iter().map(|record| 64 + record.key.len() + record.value.len()).sum();
        }
        Write::Purge { .. } | Write::Erase { .. } | Write::Forget { .. } => return 64,
        // Removing takes its time: no other write is to wait for two of them.
        Write::Close { .. } | Write::Sweep { .. } => return BATCH_BYTES,
    };
    let events = append.chunk.events.iter().map(|event| event.json.len() + event.name.len());
    let turns = append.settled.iter().map(|turn| turn.turn.len() + 8 * turn.items.len());
    let receipts = append.receipts.iter().map(|receipt| receipt.reply.len());
    let more = 64 * append.indexed.len() + 256 * append.spent.len() + of(&append.documents);
    let parts = append.parts.iter().map(|part| 96 + part.json.as_ref().map_or(0, Vec::len));
    let sum = events.chain(turns).chain(receipts).chain(parts).sum::<usize>();
    64 + append.row.view.len() + append.row.snapshot.len() + more + sum
}

/// Whether an append fits itself: its events follow `expected`, its row ends where they do, and a fork begins where
/// it leaves its parent's log.
fn follows(append: &Append) -> Result<(), WriteRefused> {
    let Append { key, expected, chunk, row, fork, .. } = append;
    if fork.is_some_and(|fork| fork.at != *expected || fork.at == 0) {
        let why = format!("not stored: a fork of an event that it does not begin behind, {expected}");
        return Err(RowKey::new(*key).corrupt(why).into());
    }
    let end = expected.checked_add(chunk.events.len() as u64);
    if Some(chunk.first) == expected.checked_add(1) && Some(row.head.last_seq) == end {
        return Ok(());
    }
    let (first, count, last) = (chunk.first, chunk.events.len(), row.head.last_seq);
    let why = format!("not stored: {count} events from {first} after {expected}, with a row that ends at {last}");
    Err(RowKey::new(*key).corrupt(why).into())
}

/// The refusal of a turn that would stand behind its successors.
fn unordered(key: ThreadKey, started: Seq, last: Seq) -> WriteRefused {
    TurnKey::new(key, started).corrupt(format!("not stored: the turn at {last} ended before it")).into()
}

/// The refusal to revert a turn that is not there.
fn unknown_turn(key: ThreadKey, started: Seq) -> WriteRefused {
    TurnKey::new(key, started).corrupt("not stored: no turn that ended began here").into()
}
