//! Fan-out: every committed batch to everyone who watches its thread or its tenant.
//!
//! A watcher has a bounded channel. Who watches a thread gets its batches one by one; who watches a tenant gets what
//! was committed together as one piece, because a large commit would overflow a channel of batches by itself. One that
//! falls behind is let go, and knows it by its channel's end; it resumes from the log. So a watcher never slows a thread
//! and never makes the server grow. A batch is shared, not copied. Who was cut off by that is counted by who follows.
//!
//! After a commit that failed all watches end: it may be stored, and nobody would say so. Who watches has missed nothing by
//! his own fault then: he watches anew, and reads the log.
//!
//! Absent on purpose: anything that is not in the log, but the last word of a deleted thread.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst},
    },
};

use actix::prelude::*;
use raddle_domain::id::{TenantId, ThreadKey};
#[cfg(feature = "planted")]
use raddle_domain::planted;
use tokio::sync::{mpsc, oneshot};

use crate::batch::Batch;

/// Pieces that may wait for one watcher, whatever their size.
const QUEUE: usize = 256;
/// Batches that may be on their way to the bus.
const INLET: usize = 16 * 1024;

/// Batches of one tenant that were committed together, in order.
pub(crate) type Committed = Arc<[Arc<Batch>]>;

pub(crate) struct EventBusActor {
    threads: Watchers<ThreadKey, Arc<Batch>>,
    tenants: Watchers<TenantId, Committed>,
    next: u64,
    /// Bytes that may wait for one watcher.
    limit: usize,
    inlet: Arc<Inlet>,
    #[cfg(feature = "planted")]
    messages: u64,
}

/// Who watches what.
struct Watchers<K, T>(HashMap<K, Vec<Watcher<T>>>);

struct Watcher<T> {
    id: u64,
    pieces: mpsc::Sender<(T, usize)>,
    held: Arc<AtomicUsize>,
    ended: Arc<AtomicU8>,
}

/// Why a watch has ended before its bus.
#[derive(Clone, Copy)]
enum End {
    /// The watcher was too slow, or the bus.
    Lagged = 1,
    /// Something is stored that was not published.
    Missed = 2,
}

/// A watcher's end of the bus. Dropping it ends the watch.
pub(crate) struct Watch<T> {
    of: Of,
    id: u64,
    /// Each with its size.
    pieces: mpsc::Receiver<(T, usize)>,
    held: Arc<AtomicUsize>,
    ended: Arc<AtomicU8>,
    bus: Addr<EventBusActor>,
}

/// What can be watched.
#[derive(Clone, Copy)]
enum Of {
    Thread(ThreadKey),
    Tenant(TenantId),
}

/// Committed batches, in the order of their commits.
#[derive(Message)]
#[rtype(result = "()")]
struct Publish(Vec<Arc<Batch>>);

/// Asks for a watch; once answered, whatever is committed from then on is seen.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Subscribe {
    pub key: ThreadKey,
    pub reply: oneshot::Sender<Watch<Arc<Batch>>>,
}

/// The same for all threads of a tenant.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct SubscribeTenant {
    pub tenant: TenantId,
    pub reply: oneshot::Sender<Watch<Committed>>,
}

/// Answered when whatever was published before has been handed to its watchers.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Barrier(pub oneshot::Sender<()>);

/// Something may be in the log that was not published: whoever watches has to read it there.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Missed;

#[derive(Message)]
#[rtype(result = "()")]
struct Unsubscribe {
    of: Of,
    id: u64,
}

impl EventBusActor {
    pub fn new(limit: usize, inlet: Arc<Inlet>) -> Self {
        let (threads, tenants) = (Watchers(HashMap::new()), Watchers(HashMap::new()));
        Self {
            threads,
            tenants,
            next: 0,
            limit,
            inlet,
            #[cfg(feature = "planted")]
            messages: 0,
        }
    }

    fn let_all_go(&mut self) {
        let watchers = self.threads.let_go(End::Lagged) + self.tenants.let_go(End::Lagged);
        tracing::warn!(watchers, "events are committed faster than they fan out; watchers are let go");
    }

    /// Both ends of a new watch.
    fn watch<T>(&mut self, of: Of, bus: Addr<Self>) -> (Watcher<T>, Watch<T>) {
        self.next += 1;
        let id = self.next;
        let (sender, pieces) = mpsc::channel(QUEUE);
        let (held, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU8::new(0)));
        let watcher = Watcher { id, pieces: sender, held: held.clone(), ended: ended.clone() };
        (watcher, Watch { of, id, pieces, held, ended, bus })
    }

    /// To those who watch whole tenants: what of `batches` is theirs, as one piece.
    fn tell_tenants(&mut self, batches: &[Arc<Batch>]) {
        let mut committed: HashMap<TenantId, Vec<Arc<Batch>>> = HashMap::new();
        for batch in batches.iter().filter(|batch| self.tenants.0.contains_key(&batch.key.tenant)) {
            committed.entry(batch.key.tenant).or_default().push(batch.clone());
        }
        for (tenant, batches) in committed {
            let size = batches.iter().map(|batch| batch.size()).sum();
            self.tenants.tell(&tenant, &batches.into(), size, self.limit);
        }
    }
}

impl<K: Eq + Hash, T: Clone> Watchers<K, T> {
    /// Offers a piece to those who watch `key`, and lets go who cannot take it.
    fn tell(&mut self, key: &K, piece: &T, size: usize, limit: usize) {
        let Some(watchers) = self.0.get_mut(key) else { return };
        watchers.retain(|watcher| watcher.offer(piece, size, limit));
        if watchers.is_empty() {
            self.0.remove(key);
        }
    }

    fn add(&mut self, key: K, watcher: Watcher<T>) {
        self.0.entry(key).or_default().push(watcher);
    }

    fn remove(&mut self, key: &K, id: u64) {
        if let Some(watchers) = self.0.get_mut(key) {
            watchers.retain(|watcher| watcher.id != id);
            if watchers.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// Lets everyone go; how many there were.
    fn let_go(&mut self, end: End) -> usize {
        let mut watchers: Vec<Watcher<T>> = self.0.drain().flat_map(|(_, watchers)| watchers).collect();
        // Those who came first hear of it first.
        watchers.sort_by_key(|watcher| watcher.id);
        watchers.iter().for_each(|watcher| watcher.ended.store(end as u8, SeqCst));
        watchers.len()
    }
}

impl Actor for EventBusActor {
    type Context = Context<Self>;
}

/// The bound of what is on its way to the bus. A batch beyond it is dropped, and the bus then lets all watchers go:
/// they resume from the log, which has it.
#[derive(Default)]
pub(crate) struct Inlet {
    batches: AtomicUsize,
    overflowed: AtomicBool,
}

impl Inlet {
    /// Hands batches to the bus, if there is room. Never blocks.
    pub fn publish(&self, bus: &Addr<EventBusActor>, batches: Vec<Arc<Batch>>) {
        if self.batches.load(SeqCst) >= INLET {
            self.overflowed.store(true, SeqCst);
        } else {
            self.batches.fetch_add(batches.len(), SeqCst);
            bus.do_send(Publish(batches));
        }
    }
}

impl Handler<Publish> for EventBusActor {
    type Result = ();

    fn handle(&mut self, Publish(batches): Publish, _: &mut Self::Context) {
        self.inlet.batches.fetch_sub(batches.len(), SeqCst);
        #[cfg(feature = "planted")]
        if planted::is(planted::Fault::DropMessage) {
            self.messages += 1;
            if self.messages.is_multiple_of(8) {
                return;
            }
        }
        if self.inlet.overflowed.swap(false, SeqCst) {
            self.let_all_go();
            return;
        }
        self.tell_tenants(&batches);
        for batch in batches {
            self.threads.tell(&batch.key, &batch, batch.size(), self.limit);
        }
    }
}

impl<T: Clone> Watcher<T> {
    /// Whether the watcher took the piece. One that holds nothing takes a piece of any size.
    fn offer(&self, piece: &T, size: usize, limit: usize) -> bool {
        let held = self.held.fetch_add(size, SeqCst);
        let taken = (held == 0 || held + size <= limit) && self.pieces.try_send((piece.clone(), size)).is_ok();
        if !taken {
            self.ended.store(End::Lagged as u8, SeqCst);
        }
        taken
    }
}

impl Handler<Subscribe> for EventBusActor {
    type Result = ();

    fn handle(&mut self, Subscribe { key, reply }: Subscribe, ctx: &mut Self::Context) {
        let (watcher, watch) = self.watch(Of::Thread(key), ctx.address());
        // A caller that no longer waits drops the watch, which takes the watcher out again.
        self.threads.add(key, watcher);
        drop(reply.send(watch));
    }
}

impl Handler<SubscribeTenant> for EventBusActor {
    type Result = ();

    fn handle(&mut self, SubscribeTenant { tenant, reply }: SubscribeTenant, ctx: &mut Self::Context) {
        let (watcher, watch) = self.watch(Of::Tenant(tenant), ctx.address());
        // As above.
        self.tenants.add(tenant, watcher);
        drop(reply.send(watch));
    }
}

impl Handler<Barrier> for EventBusActor {
    type Result = ();

    fn handle(&mut self, Barrier(passed): Barrier, _: &mut Self::Context) {
        // Nobody waits any more: the shutdown had no time left.
        let _ = passed.send(());
    }
}

impl Handler<Missed> for EventBusActor {
    type Result = ();

    fn handle(&mut self, _: Missed, _: &mut Self::Context) {
        let watchers = self.threads.let_go(End::Missed) + self.tenants.let_go(End::Missed);
        tracing::info!(watchers, "the store failed, and may hold what was not published: watchers read it");
    }
}

impl Handler<Unsubscribe> for EventBusActor {
    type Result = ();

    fn handle(&mut self, Unsubscribe { of, id }: Unsubscribe, _: &mut Self::Context) {
        match of {
            Of::Thread(key) => self.threads.remove(&key, id),
            Of::Tenant(tenant) => self.tenants.remove(&tenant, id),
        }
    }
}

impl<T> Watch<T> {
    /// The next piece; `None` when this watcher was let go.
    pub async fn next(&mut self) -> Option<T> {
        let (piece, size) = self.pieces.recv().await?;
        self.held.fetch_sub(size, SeqCst);
        Some(piece)
    }

    /// A piece that is already here.
    pub fn ready(&mut self) -> Option<T> {
        let (piece, size) = self.pieces.try_recv().ok()?;
        self.held.fetch_sub(size, SeqCst);
        Some(piece)
    }

    /// Whether it was let go.
    pub fn was_let_go(&self) -> bool {
        self.ended.load(SeqCst) != 0
    }

    /// Whether that is because it was too slow, or the bus.
    pub fn has_lagged(&self) -> bool {
        self.ended.load(SeqCst) == End::Lagged as u8
    }

    /// Whether that is because of what was stored and not published.
    pub fn has_missed(&self) -> bool {
        self.ended.load(SeqCst) == End::Missed as u8
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.bus.do_send(Unsubscribe { of: self.of, id: self.id });
    }
}
