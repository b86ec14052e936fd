//! Which threads are loaded, and the counts that bounds and metrics are made of. Whatever machine has a host is called
//! a thread here.
//!
//! Invariant: a slot is taken out only while nobody holds a [`Ticket`] for it and its crew rests, and a ticket is
//! made under the same map entry; so a command that found a thread always reaches it.
//!
//! A map guard never lives across an await or another call on the map: what is found is cloned out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use actix::Addr;
use dashmap::DashMap;
use raddle_domain::{
    event::Event,
    id::{TenantId, ThreadKey},
    record::TurnStatus,
    thread::Step,
    time::UnixMs,
};
use tokio::sync::Notify;

use crate::{
    config::Config,
    fair::GateFigures,
    host::{Host, Hosted, Machine},
    times::{Engines, Times},
};

/// The loaded threads.
#[derive(Default)]
pub(crate) struct Registry {
    slots: DashMap<ThreadKey, Slot>,
    /// How many of them are whose.
    of: DashMap<TenantId, usize>,
    /// Logical time of use.
    uses: AtomicU64,
    bytes: AtomicUsize,
    running: AtomicUsize,
    pub(crate) rested: Notify,
    pub(crate) counters: Counters,
}

/// How model calls and turns ended since the start.
#[derive(Default)]
pub(crate) struct Turns {
    pub completed: AtomicU64,
    pub failed: AtomicU64,
    pub interrupted: AtomicU64,
    pub retries: AtomicU64,
}

/// What happened since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub turns: Turns,
    pub jobs: crate::jobs::JobCounters,
    pub steps: AtomicU64,
    pub events: AtomicU64,
    pub evictions: AtomicU64,
    pub subscribers_dropped: AtomicU64,
    /// By what was full.
    pub busy: DashMap<&'static str, u64>,
    pub over_quota: AtomicU64,
    pub turn_start: Times,
    pub prompt_wait: Times,
    pub tool: Times,
    pub engines: Engines,
}

impl Counters {
    /// Counts what a step says of turns; what went wrong is worth a line too.
    pub fn note(&self, key: ThreadKey, step: &Step) {
        for record in &step.records {
            let counter = match &record.event {
                Event::TurnRetrying(retrying) => {
                    let (code, why) = (&retrying.error.code, &retrying.error.message);
                    tracing::warn!(thread = %key, turn = %retrying.turn.id, attempt = retrying.attempt, code, why, "a model call failed; it will be tried again");
                    &self.turns.retries
                }
                Event::TurnCompleted(turn) => match (turn.status, &turn.error) {
                    (TurnStatus::Failed, error) => {
                        let (code, why) =
                            error.as_ref().map_or(("", ""), |error| (error.code.as_str(), error.message.as_str()));
                        tracing::warn!(thread = %key, turn = %turn.id, code, why, "a turn failed");
                        &self.turns.failed
                    }
                    (TurnStatus::Interrupted, _) => &self.turns.interrupted,
                    _ => &self.turns.completed,
                },
                Event::PromptPromoted(admission) => {
                    self.prompt_wait.took(Duration::from_millis(record.ts.since(admission.created_at)));
                    continue;
                }
                _ => continue,
            };
            counter.fetch_add(1, Relaxed);
        }
    }
}

/// How the runtime is, for health checks and metrics.
#[derive(Debug, Clone, Default)]
pub struct Health {
    pub store_writable: bool,
    /// A shutdown was announced, or is under way.
    pub leaving: bool,
    pub draining: bool,
    pub loaded_threads: u64,
    pub loaded_bytes: u64,
    pub running_turns: u64,
    pub subscribers: u64,
    pub commits: u64,
    pub steps: u64,
    pub events: u64,
    pub store_errors: u64,
    /// The store is not writable for lack of room.
    pub store_full: bool,
    pub jobs: crate::jobs::JobFigures,
    pub turns_completed: u64,
    pub turns_failed: u64,
    pub turns_interrupted: u64,
    pub model_retries: u64,
    pub evictions: u64,
    pub subscribers_dropped: u64,
    pub commands_in_flight: u64,
    /// Commands that may be under way as things are.
    pub commands_limit: u64,
    pub commands_refused_busy: u64,
    /// What was refused for a tenant's quota.
    pub refused_over_quota: u64,
    pub commands_at_work: GateFigures,
    pub turn_reads: GateFigures,
    pub model_calls: GateFigures,
    pub tool_runs: GateFigures,
}

/// A loaded thread, as its callers find it.
#[derive(Clone)]
pub(crate) struct Slot {
    pub actor: Arc<dyn Hosted>,
    pub gauge: Arc<Gauge>,
}

/// What a thread's actor tells of itself, and what is known of its use.
pub(crate) struct Gauge {
    tickets: AtomicUsize,
    /// Set while the actor has anything under way: its crew, an append, a command.
    pinned: AtomicBool,
    running: AtomicBool,
    /// The actor has ended.
    gone: AtomicBool,
    used: AtomicU64,
    bytes: AtomicUsize,
    /// When the thread must be awake again; 0 for never.
    wake_at: AtomicU64,
}

/// The right to send one command to a loaded thread: it is not unloaded meanwhile.
pub(crate) struct Ticket(Slot);

impl Registry {
    /// A ticket for a loaded thread, if it is loaded.
    pub fn ticket(&self, key: &ThreadKey) -> Option<Ticket> {
        let slot = self.slots.get(key)?;
        Some(self.admit(&slot))
    }

    /// Puts a thread in, with the first ticket for it.
    pub fn insert(&self, key: ThreadKey, slot: Slot) -> Ticket {
        let (ticket, gauge) = (self.admit(&slot), slot.gauge.clone());
        if self.slots.insert(key, slot).is_none() {
            *self.of.entry(key.tenant).or_default() += 1;
        }
        // Its actor runs already. One that has ended before it could be found would be taken for loaded for ever.
        if gauge.gone.load(SeqCst) {
            self.forget(&key, &gauge);
        }
        ticket
    }

    fn admit(&self, slot: &Slot) -> Ticket {
        slot.gauge.tickets.fetch_add(1, SeqCst);
        slot.gauge.used.store(self.uses.fetch_add(1, Relaxed) + 1, Relaxed);
        Ticket(slot.clone())
    }

    /// Takes a thread out if it rests; its actor may then be told to stop. What it holds counts no more: whoever makes
    /// room would take others out for it until the actor has ended.
    pub fn evict(&self, key: &ThreadKey) -> Option<Slot> {
        let slot = self.remove_if(key, |slot| slot.gauge.rests())?;
        self.set_bytes(&slot.gauge, 0);
        self.counters.evictions.fetch_add(1, Relaxed);
        Some(slot)
    }

    /// Forgets a thread whose actor is gone. Another actor of the same thread stays.
    pub fn forget(&self, key: &ThreadKey, gauge: &Arc<Gauge>) {
        gauge.gone.store(true, SeqCst);
        self.remove_if(key, |slot| Arc::ptr_eq(&slot.gauge, gauge));
        self.set_running(gauge, false);
        self.set_bytes(gauge, 0);
    }

    pub fn contains(&self, key: &ThreadKey) -> bool {
        self.slots.contains_key(key)
    }

    /// Forgets a thread whose actor can no longer be reached, before the actor's end says so.
    pub fn forget_closed<M: Machine>(&self, key: &ThreadKey, addr: &Addr<Host<M>>) {
        self.remove_if(key, |slot| slot.actor.of() == Some(addr) && !addr.connected());
    }

    fn remove_if(&self, key: &ThreadKey, is: impl FnOnce(&Slot) -> bool) -> Option<Slot> {
        let (_, slot) = self.slots.remove_if(key, |_, slot| is(slot))?;
        self.of.remove_if_mut(&key.tenant, |_, count| {
            *count = count.saturating_sub(1);
            *count == 0
        });
        Some(slot)
    }

    /// The loaded threads of a tenant, by their last use.
    pub fn order_of(&self, tenant: TenantId) -> BTreeMap<u64, ThreadKey> {
        let of = self.slots.iter().filter(|slot| slot.key().tenant == tenant);
        of.map(|slot| (slot.gauge.used.load(Relaxed), *slot.key())).collect()
    }

    /// Loaded threads of a tenant.
    pub fn loaded_of(&self, tenant: TenantId) -> usize {
        self.of.get(&tenant).map_or(0, |count| *count)
    }

    /// When a loaded thread was last used, in logical time.
    pub fn last_use(&self, key: &ThreadKey) -> Option<u64> {
        self.slots.get(key).map(|slot| slot.gauge.used.load(Relaxed))
    }

    /// Counts a loaded thread as used now.
    pub fn touch(&self, key: &ThreadKey) -> Option<u64> {
        let slot = self.slots.get(key)?;
        let used = self.uses.fetch_add(1, Relaxed) + 1;
        slot.gauge.used.store(used, Relaxed);
        Some(used)
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether more is loaded than may be.
    pub fn is_over(&self, config: &Config) -> bool {
        self.len() > config.loaded_threads || self.bytes() > config.loaded_bytes
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    pub fn running(&self) -> usize {
        self.running.load(SeqCst)
    }

    /// The loaded threads, now, by their last use.
    pub fn all(&self) -> Vec<Arc<dyn Hosted>> {
        let slots = self.slots.iter().map(|slot| (slot.gauge.used.load(Relaxed), slot.actor.clone()));
        let mut slots: Vec<_> = slots.collect();
        slots.sort_by_key(|(used, _)| *used);
        slots.into_iter().map(|(_, actor)| actor).collect()
    }

    /// Those of one tenant.
    pub fn of(&self, tenant: TenantId) -> Vec<Arc<dyn Hosted>> {
        self.slots.iter().filter(|entry| entry.key().tenant == tenant).map(|entry| entry.actor.clone()).collect()
    }

    /// Notes whether anybody works for a thread; says whether that is news.
    pub fn set_running(&self, gauge: &Gauge, running: bool) -> bool {
        let before = gauge.running.swap(running, SeqCst);
        match (before, running) {
            (false, true) => {
                self.running.fetch_add(1, SeqCst);
            }
            (true, false) => {
                self.running.fetch_sub(1, SeqCst);
                self.rested.notify_waiters();
            }
            _ => {}
        }
        before != running
    }

    /// Notes what a thread holds.
    pub fn set_bytes(&self, gauge: &Gauge, bytes: usize) {
        let before = gauge.bytes.swap(bytes, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.bytes.fetch_sub(before, Relaxed);
    }
}

impl Gauge {
    /// The gauge of a thread that is about to start, and so is pinned.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            tickets: AtomicUsize::new(0),
            pinned: AtomicBool::new(true),
            running: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            used: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            wake_at: AtomicU64::new(0),
        })
    }

    pub fn set_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, SeqCst);
    }

    fn rests(&self) -> bool {
        self.tickets.load(SeqCst) == 0 && !self.pinned.load(SeqCst)
    }

    pub fn set_wake_at(&self, at: Option<UnixMs>) {
        self.wake_at.store(at.map_or(0, |at| at.0), Relaxed);
    }

    pub fn wake_at(&self) -> Option<UnixMs> {
        Some(UnixMs(self.wake_at.load(Relaxed))).filter(|at| at.0 > 0)
    }
}

impl Ticket {
    pub fn actor(&self) -> &dyn Hosted {
        &*self.0.actor
    }

    /// Commands of this thread that are under way, this one included.
    pub fn count(&self) -> usize {
        self.0.gauge.tickets.load(SeqCst)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Slot { actor, gauge } = &self.0;
        // An actor looks for itself when it comes to rest. Whoever does so last, it or this, sees both.
        if gauge.tickets.fetch_sub(1, SeqCst) == 1 && gauge.rests() {
            actor.released();
        }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::id::ThreadId;
    use tokio::sync::oneshot;

    use super::*;

    /// How often it was told that its last command ended.
    #[derive(Default)]
    struct Nobody(AtomicUsize);

    impl Hosted for Nobody {
        fn tick(&self) {}
        fn released(&self) {
            self.0.fetch_add(1, SeqCst);
        }
        fn unload(&self) {}
        fn park(&self, _: oneshot::Sender<()>) {}
    }

    #[test]
    fn an_actor_that_ended_before_it_was_put_in_is_not_taken_for_loaded() {
        let (registry, key) =
            (Registry::default(), ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([1; 16]) });
        let slot = || Slot { actor: Arc::new(Nobody::default()), gauge: Gauge::new() };
        let ended = slot();
        registry.forget(&key, &ended.gauge);
        drop(registry.insert(key, ended));
        assert!(!registry.contains(&key));
        // Nor does its end take out the one that came in its place.
        let (before, now) = (slot(), slot());
        let gauge = before.gauge.clone();
        drop((registry.insert(key, before), registry.insert(key, now)));
        registry.forget(&key, &gauge);
        assert!(registry.contains(&key));
    }

    #[test]
    fn an_actor_is_told_of_its_last_ticket_only_while_it_rests() {
        let (registry, key) =
            (Registry::default(), ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([1; 16]) });
        let (actor, gauge) = (Arc::new(Nobody::default()), Gauge::new());
        let first = registry.insert(key, Slot { actor: actor.clone(), gauge: gauge.clone() });
        let second = registry.ticket(&key).unwrap();
        drop(first);
        gauge.set_pinned(false);
        assert_eq!(actor.0.load(SeqCst), 0, "another command is under way");
        drop(second);
        assert_eq!(actor.0.load(SeqCst), 1);
        // One that works looks for itself when it comes to rest.
        gauge.set_pinned(true);
        drop(registry.ticket(&key));
        assert_eq!(actor.0.load(SeqCst), 1);
    }
}
