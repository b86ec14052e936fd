//! Gates with a bounded number of places, before what all tenants share: commands at work, reading of what
//! turns go on from, model calls, runs of tools.
//!
//! Whoever finds no place waits; who is next is decided by [`Fair`]. A place is given back when its [`Permit`] is
//! dropped, and then goes to whoever waits.
//!
//! Where several tenants share the server, each may hold as many places as it leaves free (dynamic thresholds; Choudhury
//! and Hahne, *Dynamic Queue Length Thresholds for Shared-Memory Packet Switches*, IEEE/ACM ToN 1998): one that floods
//! has half of them, two of them a third each, and whoever has none finds one at once rather than when somebody is done,
//! which with a model may be minutes.
//!
//! Invariant: waiting can be given up at any time. A waiter that is dropped leaves the queue, and a permit that was on
//! its way to it goes to the next.
//!
//! What waits here counts as running: its turn's time passes, and an interrupt ends it. Absent on purpose: a bound of
//! what waits; as many wait as there are turns at work, and those are bounded where they are admitted.

use std::{
    collections::{HashMap, hash_map::Entry},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use raddle_domain::{
    fair::{Choice, Fair, Ticket},
    id::TenantId,
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    admission::AdmissionControl,
    config::Config,
    tenants::{Account, Tenants},
};

/// The least that a model call costs, in tokens: it takes a place however little is said. One turn in the round is
/// worth as much, so that of short calls each tenant has one after the other.
const CALL_TOKENS: u64 = 1_024;

/// The gates of a runtime.
pub(crate) struct Gates {
    /// Who is let in at all.
    pub admission: Arc<AdmissionControl>,
    /// What callers ask of threads and runs, from when it is sent to them until it is answered.
    pub commands: Arc<Gate>,
    pub models: Arc<Gate>,
    pub tools: Arc<Gate>,
    /// Readers of what turns go on from, one for each arbiter: were they as many as the turns that begin, they would have
    /// the processors and not the store, for which everybody waits.
    pub reads: Arc<Gate>,
}

/// What a model call passes: first its conversation is read.
pub(crate) struct CallDoors {
    reads: Door,
    pub models: Door,
    admission: Arc<AdmissionControl>,
}

impl CallDoors {
    /// Waits for a reader. Whoever makes new work hears of it that others do.
    pub async fn to_read(&self) -> Permit {
        let waits = self.admission.wait();
        let reader = self.reads.enter(1).await;
        waits.go_on();
        reader
    }
}

/// Places, and who waits for one.
pub(crate) struct Gate {
    state: Mutex<State>,
    places: usize,
    /// Nobody's: tenants are not told apart.
    tenants: Option<Arc<Tenants>>,
    /// Since the start, in microseconds.
    waited: AtomicU64,
}

struct State {
    free: usize,
    /// By whom the others are held.
    held: HashMap<TenantId, usize>,
    waiting: Fair<oneshot::Sender<Permit>>,
}

/// How a gate is doing. The time only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateFigures {
    pub places: u64,
    pub in_use: u64,
    pub waiting: u64,
    /// What all who got a place waited for it, in microseconds.
    pub waited_us: u64,
}

/// A gate as one tenant finds it.
pub(crate) struct Door {
    gate: Arc<Gate>,
    tenant: TenantId,
    weight: NonZeroU32,
}

/// A place, until it is dropped.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    tenant: TenantId,
}

impl Gates {
    pub fn new(config: &Config, tenants: &Arc<Tenants>) -> Self {
        let gate = |places, quantum| Gate::new(places, quantum, config.fair.then(|| tenants.clone()));
        Self {
            admission: AdmissionControl::new(config.commands_in_flight, config.command_wait),
            commands: gate(config.commands_at_work, 1),
            models: gate(config.model_calls, CALL_TOKENS),
            tools: gate(config.tool_runs, 1),
            reads: gate(config.arbiters, 1),
        }
    }

    /// The doors of a tenant's model call.
    pub fn of_a_call(&self, account: &Account) -> CallDoors {
        let (reads, models) = (self.reads.door(account), self.models.door(account));
        CallDoors { reads, models, admission: self.admission.clone() }
    }
}

impl Gate {
    fn new(places: usize, quantum: u64, tenants: Option<Arc<Tenants>>) -> Arc<Self> {
        let places = places.max(1);
        let state = State { free: places, held: HashMap::new(), waiting: Fair::new(quantum) };
        Arc::new(Self { state: Mutex::new(state), places, tenants, waited: AtomicU64::new(0) })
    }

    pub fn door(self: &Arc<Self>, account: &Account) -> Door {
        let (tenant, weight) = match &self.tenants {
            Some(_) => (account.id, account.tenant().weight),
            None => (TenantId::DEFAULT, NonZeroU32::MIN),
        };
        Door { gate: self.clone(), tenant, weight }
    }

    pub fn figures(&self) -> GateFigures {
        let state = self.state();
        GateFigures {
            places: self.places as u64,
            in_use: self.places.saturating_sub(state.free) as u64,
            waiting: state.waiting.len() as u64,
            waited_us: self.waited.load(Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a tenant is to leave places to others.
    fn is_shared(&self) -> bool {
        self.tenants.as_ref().is_some_and(|tenants| tenants.are_several())
    }

    fn permit(self: &Arc<Self>, tenant: TenantId) -> Permit {
        Permit { gate: self.clone(), tenant }
    }

    /// Gives the places that are free to those who are next.
    fn serve(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let shared = self.is_shared();
        let mut served = Vec::new();
        while let Some(next) = state.next(shared) {
            served.push(next);
        }
        drop(state);
        for (tenant, next) in served {
            // To one that has just gone: then the permit is dropped here, and comes by again.
            drop(next.send(self.permit(tenant)));
        }
    }
}

impl State {
    /// Whether a tenant may have one more place.
    fn may_enter(&self, tenant: TenantId, shared: bool) -> bool {
        self.free > if shared { self.held_by(tenant) } else { 0 }
    }

    fn held_by(&self, tenant: TenantId) -> usize {
        self.held.get(&tenant).copied().unwrap_or(0)
    }

    fn enter(&mut self, tenant: TenantId) {
        self.free -= 1;
        *self.held.entry(tenant).or_default() += 1;
    }

    fn leave(&mut self, tenant: TenantId) {
        self.free += 1;
        if let Entry::Occupied(mut held) = self.held.entry(tenant) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }

    /// Takes a place for whoever is next of those who may have one.
    fn next(&mut self, shared: bool) -> Option<(TenantId, oneshot::Sender<Permit>)> {
        if self.free == 0 {
            return None;
        }
        let Self { free, held, waiting } = self;
        let next = waiting.serve_by(|next| {
            let holds = held.get(&next.tenant).copied().unwrap_or(0);
            if shared && holds >= *free { Choice::PassOver } else { Choice::Serve }
        })?;
        self.enter(next.0);
        Some(next)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.leave(self.tenant);
        self.gate.serve(state);
    }
}

impl Door {
    /// Waits for a place. What it is for costs so much of the tenant's share.
    pub async fn enter(&self, cost: u64) -> Permit {
        let waiter = {
            let mut state = self.gate.state();
            if state.may_enter(self.tenant, self.gate.is_shared()) {
                state.enter(self.tenant);
                return self.gate.permit(self.tenant);
            }
            let (place, given) = oneshot::channel();
            let cost = if self.gate.tenants.is_some() { cost } else { 1 };
            let ticket = state.waiting.enqueue(self.tenant, self.weight, cost, place);
            Waiter { door: self, ticket, given }
        };
        let since = Instant::now();
        let permit = waiter.given().await;
        self.gate.waited.fetch_add(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
        permit
    }
}

/// Somebody in the queue, until he has his place or goes.
struct Waiter<'d> {
    door: &'d Door,
    ticket: Ticket,
    given: oneshot::Receiver<Permit>,
}

impl Waiter<'_> {
    async fn given(mut self) -> Permit {
        // The sender is in the queue until it has sent.
        (&mut self.given).await.unwrap_or_else(|_| self.door.gate.permit(self.door.tenant))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let left = self.door.gate.state().waiting.remove(self.ticket);
        // Behind the lock: a permit that was given meanwhile goes with the receiver, and asks for it.
        drop(left);
    }
}

/// About how many tokens a request of so many bytes has: four bytes each.
pub(crate) fn tokens(bytes: u64) -> u64 {
    (bytes / 4).max(CALL_TOKENS)
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;
    use raddle_domain::tenant::Tenant;

    use super::*;
    use crate::tenants::Tenants;

    fn gate(places: usize) -> (Arc<Gate>, Arc<Tenants>) {
        let tenants = Arc::new(Tenants::default());
        (Gate::new(places, 1, Some(tenants.clone())), tenants)
    }

    fn door(gate: &Arc<Gate>, tenants: &Tenants, name: &str, weight: u32) -> Door {
        let mut tenant = Tenant::implied(name.parse().unwrap());
        tenant.weight = NonZeroU32::new(weight).unwrap();
        let id = tenant.id;
        tenants.put(tenant);
        gate.door(&tenants.account(id))
    }

    #[tokio::test]
    async fn places_go_to_the_tenants_in_turn_by_their_weights() {
        let (gate, tenants) = gate(1);
        let (flood, quiet) = (door(&gate, &tenants, "flood", 1), door(&gate, &tenants, "quiet", 2));
        let mut held = Some(flood.enter(1).await);
        let mut waiting: Vec<_> = (0..4).map(|n| (format!("flood {n}"), Box::pin(flood.enter(1)))).collect();
        waiting.extend((0..4).map(|n| (format!("quiet {n}"), Box::pin(quiet.enter(1)))));
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let mut served = None;
            for (at, (_, waiter)) in waiting.iter_mut().enumerate() {
                if let Poll::Ready(permit) = poll!(waiter.as_mut()) {
                    served = Some((at, permit));
                }
            }
            match served {
                Some((at, permit)) => {
                    order.push(waiting.remove(at).0);
                    held = Some(permit);
                }
                None => drop(held.take()),
            }
        }
        let wanted = ["flood 0", "quiet 0", "quiet 1", "flood 1", "quiet 2", "quiet 3", "flood 2", "flood 3"];
        assert_eq!(order, wanted);
        drop(held);
        assert_eq!(
            gate.figures(),
            GateFigures { places: 1, waited_us: gate.figures().waited_us, ..Default::default() }
        );
    }

    #[tokio::test]
    async fn a_waiter_that_goes_leaves_no_hole_and_a_permit_on_its_way_to_it_goes_on() {
        let (gate, tenants) = gate(1);
        let [one, two, three] = ["one", "two", "three"].map(|name| door(&gate, &tenants, name, 1));
        let held = one.enter(1).await;
        let (mut gone, mut given, mut last) =
            (Box::pin(one.enter(1)), Box::pin(two.enter(1)), Box::pin(three.enter(1)));
        assert!(poll!(gone.as_mut()).is_pending() && poll!(given.as_mut()).is_pending());
        assert!(poll!(last.as_mut()).is_pending());
        assert_eq!(gate.figures().waiting, 3);
        drop(gone);
        assert_eq!(gate.figures().waiting, 2);
        // The place is on its way to the second, who has not looked yet, and goes.
        drop(held);
        assert_eq!(gate.figures().waiting, 1);
        drop(given);
        let permit = last.await;
        assert_eq!((gate.figures().in_use, gate.figures().waiting), (1, 0));
        drop(permit);
        assert_eq!(gate.figures().in_use, 0);
    }

    #[tokio::test]
    async fn without_fairness_who_came_first_is_next() {
        let (gate, tenants) = (Gate::new(1, 1, None), Tenants::default());
        let (flood, quiet) = (door(&gate, &tenants, "flood", 1), door(&gate, &tenants, "quiet", 9));
        let held = flood.enter(1).await;
        let (mut first, mut second) = (Box::pin(flood.enter(1_000)), Box::pin(quiet.enter(1)));
        assert!(poll!(first.as_mut()).is_pending() && poll!(second.as_mut()).is_pending());
        drop(held);
        assert!(poll!(second.as_mut()).is_pending());
        drop(first.await);
        drop(second.await);
    }
    #[tokio::test]
    async fn a_tenant_holds_as_many_places_as_it_leaves_free() {
        let (gate, tenants) = gate(12);
        let [flood, other, quiet] = ["flood", "other", "quiet"].map(|name| door(&gate, &tenants, name, 1));
        let take = async |door: &Door| {
            let mut held = Vec::new();
            loop {
                let mut next = Box::pin(door.enter(1));
                match poll!(next.as_mut()) {
                    Poll::Ready(permit) => held.push(permit),
                    Poll::Pending => return held,
                }
            }
        };
        let mut floods = take(&flood).await;
        let others = take(&other).await;
        assert_eq!([floods.len(), others.len()], [6, 3]);
        let mut waiting = Box::pin(flood.enter(1));
        assert!(poll!(waiting.as_mut()).is_pending());
        // Whoever has none finds one, also while another waits.
        let found = quiet.enter(1).await;
        assert_eq!((gate.figures().in_use, gate.figures().waiting), (10, 1));
        drop(found);
        // What the other gives back is not the flood's.
        drop(others);
        assert!(poll!(waiting.as_mut()).is_pending());
        floods.pop();
        assert!(poll!(waiting.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn who_has_the_server_to_himself_has_every_place() {
        let (gate, tenants) = gate(4);
        let alone = door(&gate, &tenants, "alone", 1);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(alone.enter(1).await);
        }
        let mut waiting = Box::pin(alone.enter(1));
        assert!(poll!(waiting.as_mut()).is_pending());
        held.pop();
        assert!(poll!(waiting.as_mut()).is_ready());
    }
}
