//! Fan-out: every committed batch to everyone who watches its thread.
//!
//! A watcher has a bounded channel. One that falls behind is let go, and knows it by its channel's end; it resumes
//! from the log. So a watcher never slows a thread and never makes the server grow. A batch is shared, not copied.
//!
//! Absent on purpose: anything that is not in the log, but the last word of a deleted thread.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use actix::prelude::*;
use raddle_domain::id::ThreadKey;
use tokio::sync::{mpsc, oneshot};

use crate::{batch::Batch, registry::Registry};

/// Batches that may wait for one watcher, whatever their size.
const QUEUE: usize = 256;
/// Batches that may be on their way to the bus.
const INLET: usize = 16 * 1024;

pub(crate) struct EventBusActor {
    watchers: HashMap<ThreadKey, Vec<Watcher>>,
    next: u64,
    /// Bytes that may wait for one watcher.
    limit: usize,
    registry: Arc<Registry>,
    inlet: Arc<Inlet>,
}

struct Watcher {
    id: u64,
    batches: mpsc::Sender<Arc<Batch>>,
    held: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
}

/// A watcher's end of the bus. Dropping it ends the watch.
pub(crate) struct Watch {
    key: ThreadKey,
    id: u64,
    batches: mpsc::Receiver<Arc<Batch>>,
    held: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
    bus: Addr<EventBusActor>,
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
    pub reply: oneshot::Sender<Watch>,
}

/// Answered when whatever was published before has been handed to its watchers.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Barrier(pub oneshot::Sender<()>);

#[derive(Message)]
#[rtype(result = "()")]
struct Unsubscribe {
    key: ThreadKey,
    id: u64,
}

impl EventBusActor {
    pub fn new(limit: usize, registry: Arc<Registry>, inlet: Arc<Inlet>) -> Self {
        Self { watchers: HashMap::new(), next: 0, limit, registry, inlet }
    }

    fn let_all_go(&mut self) {
        let watchers: Vec<Watcher> = self.watchers.drain().flat_map(|(_, watchers)| watchers).collect();
        tracing::warn!(watchers = watchers.len(), "events are committed faster than they fan out; watchers are let go");
        self.registry.counters.subscribers_dropped.fetch_add(watchers.len() as u64, SeqCst);
        watchers.iter().for_each(|watcher| watcher.lagged.store(true, SeqCst));
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
        if self.inlet.overflowed.swap(false, SeqCst) {
            self.let_all_go();
            return;
        }
        for batch in batches {
            let Some(watchers) = self.watchers.get_mut(&batch.key) else { continue };
            let size = batch.size();
            let limit = self.limit;
            let before = watchers.len();
            watchers.retain(|watcher| watcher.offer(&batch, size, limit));
            let dropped = (before - watchers.len()) as u64;
            self.registry.counters.subscribers_dropped.fetch_add(dropped, SeqCst);
            if watchers.is_empty() {
                self.watchers.remove(&batch.key);
            }
        }
    }
}

impl Watcher {
    /// Whether the watcher took the batch. One that holds nothing takes a batch of any size.
    fn offer(&self, batch: &Arc<Batch>, size: usize, limit: usize) -> bool {
        let held = self.held.fetch_add(size, SeqCst);
        let taken = (held == 0 || held + size <= limit) && self.batches.try_send(batch.clone()).is_ok();
        if !taken {
            self.lagged.store(true, SeqCst);
        }
        taken
    }
}

impl Handler<Subscribe> for EventBusActor {
    type Result = ();

    fn handle(&mut self, Subscribe { key, reply }: Subscribe, ctx: &mut Self::Context) {
        self.next += 1;
        let (sender, batches) = mpsc::channel(QUEUE);
        let (held, lagged) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let watcher = Watcher { id: self.next, batches: sender, held: held.clone(), lagged: lagged.clone() };
        let watch = Watch { key, id: self.next, batches, held, lagged, bus: ctx.address() };
        // A caller that no longer waits drops the watch, which takes the watcher out again.
        self.watchers.entry(key).or_default().push(watcher);
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

impl Handler<Unsubscribe> for EventBusActor {
    type Result = ();

    fn handle(&mut self, Unsubscribe { key, id }: Unsubscribe, _: &mut Self::Context) {
        if let Some(watchers) = self.watchers.get_mut(&key) {
            watchers.retain(|watcher| watcher.id != id);
            if watchers.is_empty() {
                self.watchers.remove(&key);
            }
        }
    }
}

impl Watch {
    /// The next batch; `None` when this watcher was let go.
    pub async fn next(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.recv().await?;
        self.held.fetch_sub(batch.size(), SeqCst);
        Some(batch)
    }

    /// A batch that is already here.
    pub fn ready(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.try_recv().ok()?;
        self.held.fetch_sub(batch.size(), SeqCst);
        Some(batch)
    }

    /// Whether it missed something.
    pub fn lagged(&self) -> bool {
        self.lagged.load(SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bus.do_send(Unsubscribe { key: self.key, id: self.id });
    }
}
