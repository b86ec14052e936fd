//! Loads threads, keeps the loaded ones under their caps, and brings back those that stopped while they owed work.
//! Whatever machine has a host is called a thread here: it has such a key, and counts against the same caps.
//!
//! The least recently used thread at rest is unloaded first, until both caps hold again. A thread that has anything
//! under way is passed over and counts as used now. A tenant that has a quota of loaded threads makes room for its own
//! among its own; one all of whose threads work gets no other, unless that has a turn to go on with.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use actix::prelude::*;
use raddle_domain::{
    id::{TenantId, ThreadKey},
    ports::{OwingPlace, StoreError},
};
use tokio::sync::oneshot;

use crate::{
    handle::Error,
    host::{Host, Loaded, Machine},
    quotas::most_loaded,
    registry::{Gauge, Slot, Ticket},
    run::RunMachine,
    stage::On,
    system::Shared,
    thread::ThreadMachine,
    timers::Rearm,
};

/// Busy threads that one round of unloading passes over.
const PASSED_OVER: usize = 64;
/// Threads that owe work, read and loaded at a time.
const SWEEP: usize = 64;
/// The pause before a thread that failed is brought back: this, doubled with each failure in a row.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_CAP: Duration = Duration::from_secs(30);

pub(crate) struct Supervisor {
    shared: Option<Arc<Shared>>,
    /// Which of the places for hosts is next.
    next: usize,
    loading: HashMap<ThreadKey, Vec<oneshot::Sender<Result<Ticket, Error>>>>,
    /// Loads that are under way, by tenant.
    loading_of: HashMap<TenantId, usize>,
    /// Loaded threads by the last use that is known here; one that was used since is put back where it belongs.
    order: Order,
    /// The same, of each tenant that has a quota of them.
    own: HashMap<TenantId, Order>,
    /// Failures in a row of threads that stopped, or could not be loaded.
    failures: HashMap<ThreadKey, u32>,
    /// Threads that will be loaded after a pause.
    pausing: HashSet<ThreadKey>,
    sweeping: Sweeping,
}

/// Threads by their last use.
type Order = BTreeMap<u64, ThreadKey>;

#[derive(PartialEq, Eq)]
enum Sweeping {
    No,
    Yes,
    /// Asked for again meanwhile: what was passed already may owe by now.
    Again,
}

/// What all actors share; sent once, when all of them exist.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin(pub Arc<Shared>);

/// Asks for a thread that is not loaded. However many ask, it is loaded once.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Load {
    pub key: ThreadKey,
    /// Whether a caller asks, who can be told that his tenant has as many loaded as it may.
    pub asked: bool,
    pub reply: oneshot::Sender<Result<Ticket, Error>>,
}

/// A thread was just created, and this is its state: its first command mostly follows at once, and need not read it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Adopt<M: Machine> {
    pub key: ThreadKey,
    pub loaded: Loaded<M>,
}

/// A thread has come to rest.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Rested(pub ThreadKey);

/// A thread's actor ended without having been told to.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Stopped {
    pub key: ThreadKey,
    pub owes: bool,
}

/// Load every thread that owes work.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Sweep;

impl Supervisor {
    pub fn new() -> Self {
        Self {
            shared: None,
            next: 0,
            loading: HashMap::new(),
            loading_of: HashMap::new(),
            order: BTreeMap::new(),
            own: HashMap::new(),
            failures: HashMap::new(),
            pausing: HashSet::new(),
            sweeping: Sweeping::No,
        }
    }

    fn shared(&self) -> Arc<Shared> {
        self.shared.clone().expect("`Begin` is the first message")
    }

    /// Loads the machine that `key` names.
    fn load(&mut self, key: ThreadKey, ctx: &mut Context<Self>) {
        #[cfg(test)]
        if crate::host::tests::is_counter(&key) {
            return self.load_as::<crate::host::tests::Counter>(key, ctx);
        }
        if key.is_run() { self.load_as::<RunMachine>(key, ctx) } else { self.load_as::<ThreadMachine>(key, ctx) }
    }

    /// Reads a thread and starts its actor; whoever asked meanwhile gets a ticket before anybody can unload it.
    fn load_as<M: Machine>(&mut self, key: ThreadKey, ctx: &mut Context<Self>) {
        let shared = self.shared();
        let store = shared.store_handle.clone();
        let read = shared.tasks.blocking(move || {
            // One that is loaded is not looked at again when the store is: it must not begin behind its log.
            store.known()?;
            M::load(&*store.store().view()?, key)
        });
        ctx.spawn(read.into_actor(self).map(move |read, this, ctx| {
            let loaded = match read {
                Ok(Ok(Some(loaded))) => Ok(loaded),
                Ok(Ok(None)) => Err(Error::NotFound(M::WHAT)),
                Ok(Err(StoreError::Corrupt(corrupt))) => Err(Error::ThreadUnavailable(corrupt.to_string())),
                Ok(Err(error)) => Err(error.into()),
                Err(panic) => Err(Error::Internal(panic.to_string())),
            };
            let asking = this.loading.remove(&key).unwrap_or_default();
            this.loaded(key.tenant);
            match loaded {
                Ok(loaded) => {
                    if loaded.machine.rests() {
                        this.failures.remove(&key);
                    }
                    let first = this.start(key, loaded, &shared);
                    for reply in asking {
                        // The first ticket is held until here, so the thread is there to be found.
                        if let Some(ticket) = shared.registry.ticket(&key) {
                            drop(reply.send(Ok(ticket)));
                        }
                    }
                    drop(first);
                    this.trim(key.tenant);
                }
                Err(error) => {
                    match &error {
                        Error::NotFound(_) => drop(this.failures.remove(&key)),
                        Error::ThreadUnavailable(why) => {
                            this.failures.remove(&key);
                            tracing::error!(thread = %key, why, "a thread is unavailable");
                        }
                        error => {
                            tracing::error!(thread = %key, %error, "cannot load a thread; trying again");
                            // It may owe work that nobody will ask for.
                            this.want_later(key, ctx);
                        }
                    }
                    asking.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
                }
            }
        }));
    }

    fn start<M: Machine>(&mut self, key: ThreadKey, loaded: Loaded<M>, shared: &Arc<Shared>) -> Ticket {
        let gauge = Gauge::new();
        self.next = self.next.wrapping_add(1);
        let (theirs, ours) = (shared.clone(), gauge.clone());
        let addr = shared.stage.start(On::Hosts(self.next), move |_| Host::new(key, theirs, ours, loaded));
        let ticket = shared.registry.insert(key, Slot { actor: Arc::new(addr), gauge });
        if let Some(used) = shared.registry.last_use(&key) {
            self.order.insert(used, key);
            match (most_loaded(shared, key.tenant), self.own.get_mut(&key.tenant)) {
                (Some(_), Some(own)) => drop(own.insert(used, key)),
                (Some(_), None) => {}
                // It would lack this one, should there be a quota again.
                (None, _) => drop(self.own.remove(&key.tenant)),
            }
        }
        ticket
    }

    /// Unloads threads at rest until all caps hold, or only busy ones were seen.
    fn trim(&mut self, of: TenantId) {
        let shared = self.shared();
        let (registry, config) = (&shared.registry, &shared.config);
        unload(&mut self.order, registry.len(), PASSED_OVER, &mut self.failures, &shared, || registry.is_over(config));
        if let Some(most) = most_loaded(&shared, of) {
            self.make_room(of, most, &shared);
        }
    }

    /// Unloads threads at rest of a tenant until no more than `most` are loaded, or all of them work. How many are, and
    /// will be.
    fn make_room(&mut self, of: TenantId, most: u64, shared: &Shared) -> u64 {
        let Self { own, failures, loading_of, .. } = self;
        let coming = loading_of.get(&of).copied().unwrap_or_default();
        let count = || (shared.registry.loaded_of(of) + coming) as u64;
        let order = own.entry(of).or_insert_with(|| shared.registry.order_of(of));
        let loaded = shared.registry.loaded_of(of);
        unload(order, loaded, loaded, failures, shared, || count() > most);
        if order.is_empty() {
            own.remove(&of);
        }
        count()
    }

    /// Whether a caller may have another thread of a tenant loaded: makes room for it, if it can.
    fn may_load(&mut self, of: TenantId) -> Result<(), Error> {
        let shared = self.shared();
        let Some(most) = most_loaded(&shared, of) else { return Ok(()) };
        if self.make_room(of, most.saturating_sub(1), &shared) < most {
            return Ok(());
        }
        shared.registry.counters.over_quota.fetch_add(1, Relaxed);
        Err(Error::Quota { limit: "loaded_threads", max: most })
    }

    /// A load has ended.
    fn loaded(&mut self, of: TenantId) {
        if let Some(count) = self.loading_of.get_mut(&of) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.loading_of.remove(&of);
            }
        }
    }

    fn sweep(&mut self, after: Option<OwingPlace>, ctx: &mut Context<Self>) {
        let shared = self.shared();
        let store = shared.store.clone();
        let read = shared.tasks.blocking(move || store.view()?.owing(after, SWEEP));
        ctx.spawn(read.into_actor(self).map(move |read, this, ctx| {
            let places = match read {
                Ok(Ok(places)) => places,
                failed => {
                    tracing::error!(?failed, "cannot list the threads that owe work; trying again");
                    ctx.run_later(BACKOFF_CAP, move |this, ctx| this.sweep(after, ctx));
                    return;
                }
            };
            let (last, is_short) = (places.last().copied(), places.len() < SWEEP);
            let wanted = places.into_iter().map(|place| ThreadKey { tenant: place.tenant, thread: place.thread });
            let loads: Vec<_> = wanted.filter_map(|key| this.want(key, ctx)).collect();
            // Behind the end of the list stand only the turns that are started meanwhile, by threads that are loaded.
            if is_short && loads.is_empty() {
                if std::mem::replace(&mut this.sweeping, Sweeping::No) == Sweeping::Again {
                    ctx.notify(Sweep);
                }
                return;
            }
            // One batch at a time: what is slow to load does not pile up.
            let loaded = futures_util::future::join_all(loads);
            ctx.spawn(loaded.into_actor(this).map(move |_, this, ctx| this.sweep(last, ctx)));
        }));
    }

    /// Loads a thread unless it is loaded.
    fn want(&mut self, key: ThreadKey, ctx: &mut Context<Self>) -> Option<oneshot::Receiver<Result<Ticket, Error>>> {
        if self.shared().registry.contains(&key) {
            return None;
        }
        let (reply, loaded) = oneshot::channel();
        self.ask(key, false, reply, ctx);
        Some(loaded)
    }

    /// Loads a thread after a pause that grows with its failures in a row.
    fn want_later(&mut self, key: ThreadKey, ctx: &mut Context<Self>) {
        if self.shared().draining() || !self.pausing.insert(key) {
            return;
        }
        let failures = self.failures.entry(key).or_default();
        let pause = BACKOFF.saturating_mul(1 << (*failures).min(16)).min(BACKOFF_CAP);
        *failures += 1;
        ctx.run_later(pause, move |this, ctx| {
            this.pausing.remove(&key);
            drop(this.want(key, ctx));
        });
    }

    fn ask(
        &mut self,
        key: ThreadKey,
        asked: bool,
        reply: oneshot::Sender<Result<Ticket, Error>>,
        ctx: &mut Context<Self>,
    ) {
        if self.shared().parking.load(SeqCst) {
            return drop(reply.send(Err(Error::Draining)));
        }
        if asked
            && !self.loading.contains_key(&key)
            && let Err(over) = self.may_load(key.tenant)
        {
            return drop(reply.send(Err(over)));
        }
        let asking = self.loading.entry(key).or_default();
        asking.push(reply);
        if asking.len() == 1 {
            *self.loading_of.entry(key.tenant).or_default() += 1;
            self.load(key, ctx);
        }
    }
}

/// Unloads threads at rest, least recently used first, while `is_over`, passing over at most `busy` that are not at rest.
/// `loaded` is about how many of the order are.
fn unload(
    order: &mut Order,
    loaded: usize,
    busy: usize,
    failures: &mut HashMap<ThreadKey, u32>,
    shared: &Shared,
    is_over: impl Fn() -> bool,
) {
    let registry = &shared.registry;
    if order.len() > 2 * loaded + 64 {
        // Threads that stopped, or were deleted, leave their entries behind.
        order.retain(|_, key| registry.contains(key));
    }
    let mut passed = 0;
    while passed < busy && is_over() {
        let Some((known, key)) = order.pop_first() else { break };
        match registry.last_use(&key) {
            None => {}
            Some(used) if used > known => {
                order.insert(used, key);
            }
            Some(_) => match registry.evict(&key) {
                Some(slot) => {
                    slot.actor.unload();
                    failures.remove(&key);
                    if let Some(at) = slot.gauge.wake_at() {
                        shared.timers.do_send(Rearm(at));
                    }
                }
                None => {
                    passed += 1;
                    if let Some(used) = registry.touch(&key) {
                        order.insert(used, key);
                    }
                }
            },
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

impl Handler<Begin> for Supervisor {
    type Result = ();

    fn handle(&mut self, Begin(shared): Begin, ctx: &mut Self::Context) {
        self.shared = Some(shared);
        ctx.notify(Sweep);
    }
}

impl Handler<Load> for Supervisor {
    type Result = ();

    fn handle(&mut self, Load { key, asked, reply }: Load, ctx: &mut Self::Context) {
        match self.shared().registry.ticket(&key) {
            Some(ticket) => drop(reply.send(Ok(ticket))),
            None => self.ask(key, asked, reply, ctx),
        }
    }
}

impl<M: Machine> Handler<Adopt<M>> for Supervisor {
    type Result = ();

    fn handle(&mut self, Adopt { key, loaded }: Adopt<M>, _: &mut Self::Context) {
        let shared = self.shared();
        // Somebody may have found it in a list and asked for it already.
        let known = shared.registry.contains(&key) || self.loading.contains_key(&key);
        if !known && !shared.parking.load(SeqCst) && self.may_load(key.tenant).is_ok() {
            drop(self.start(key, loaded, &shared));
            self.trim(key.tenant);
        }
    }
}

impl Handler<Rested> for Supervisor {
    type Result = ();

    fn handle(&mut self, Rested(key): Rested, _: &mut Self::Context) {
        self.failures.remove(&key);
        self.trim(key.tenant);
    }
}

impl Handler<Stopped> for Supervisor {
    type Result = ();

    fn handle(&mut self, Stopped { key, owes }: Stopped, ctx: &mut Self::Context) {
        if owes && !self.shared().config.retells {
            self.want_later(key, ctx);
        }
    }
}

impl Handler<Sweep> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Sweep, ctx: &mut Self::Context) {
        if self.shared().config.retells {
            return;
        }
        match self.sweeping {
            Sweeping::No => {
                self.sweeping = Sweeping::Yes;
                self.sweep(None, ctx);
            }
            Sweeping::Yes | Sweeping::Again => self.sweeping = Sweeping::Again,
        }
    }
}
