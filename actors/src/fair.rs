//! Gates with a bounded number of places, before what all tenants share: commands at work, model calls, runs of tools.
//!
//! Whoever finds no place waits; who is next is decided by [`Fair`]. A place is given back when its [`Permit`] is
//! dropped, and then goes to whoever waits, so while somebody waits no place is free.
//!
//! Invariant: waiting can be given up at any time. A waiter that is dropped leaves the queue, and a permit that was on
//! its way to it goes to the next.
//!
//! What waits here counts as running: its turn's time passes, and an interrupt ends it. Absent on purpose: a bound of
//! what waits; as many wait as there are turns at work, and those are bounded where they are admitted.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use raddle_domain::{
    fair::{Fair, Ticket},
    id::TenantId,
    ports::ModelRequest,
};
use tokio::{sync::oneshot, time::Instant};

use crate::tenants::Account;

/// The least that a model call costs, in tokens: it takes a place however little is said. One turn in the round is
/// worth as much, so that of short calls each tenant has one after the other.
const CALL_TOKENS: u64 = 1_024;

/// The gates of a runtime.
pub(crate) struct Gates {
    /// What callers ask of threads and runs, from when it is sent to them until it is answered.
    pub commands: Arc<Gate>,
    pub models: Arc<Gate>,
    pub tools: Arc<Gate>,
}

/// Places, and who waits for one.
pub(crate) struct Gate {
    state: Mutex<State>,
    places: usize,
    /// Whether tenants are told apart.
    fair: bool,
    /// Since the start, in microseconds.
    waited: AtomicU64,
}

struct State {
    free: usize,
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
pub(crate) struct Permit(Arc<Gate>);

impl Gates {
    pub fn new(commands: usize, model_calls: usize, tool_runs: usize, fair: bool) -> Self {
        Self {
            commands: Gate::new(commands, 1, fair),
            models: Gate::new(model_calls, CALL_TOKENS, fair),
            tools: Gate::new(tool_runs, 1, fair),
        }
    }
}

impl Gate {
    fn new(places: usize, quantum: u64, fair: bool) -> Arc<Self> {
        let places = places.max(1);
        let state = State { free: places, waiting: Fair::new(quantum) };
        Arc::new(Self { state: Mutex::new(state), places, fair, waited: AtomicU64::new(0) })
    }

    pub fn door(self: &Arc<Self>, account: &Account) -> Door {
        let (tenant, weight) = match self.fair {
            true => (account.id, account.tenant().weight),
            false => (TenantId::DEFAULT, NonZeroU32::MIN),
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

    /// Gives a place to whoever is next, or keeps it.
    fn free(self: Arc<Self>) {
        let next = {
            let mut state = self.state();
            let next = state.waiting.serve();
            state.free += usize::from(next.is_none());
            next
        };
        if let Some((_, next)) = next {
            // To one that has just gone: then the permit is dropped here, and comes by again.
            drop(next.send(Permit(self)));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.clone().free();
    }
}

impl Door {
    /// Waits for a place. What it is for costs so much of the tenant's share.
    pub async fn enter(&self, cost: u64) -> Permit {
        let waiter = {
            let mut state = self.gate.state();
            if state.free > 0 {
                state.free -= 1;
                return Permit(self.gate.clone());
            }
            let (place, given) = oneshot::channel();
            let cost = if self.gate.fair { cost } else { 1 };
            let ticket = state.waiting.enqueue(self.tenant, self.weight, cost, place);
            Waiter { gate: &self.gate, ticket, given }
        };
        let since = Instant::now();
        let permit = waiter.given().await;
        self.gate.waited.fetch_add(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
        permit
    }
}

/// Somebody in the queue, until he has his place or goes.
struct Waiter<'g> {
    gate: &'g Arc<Gate>,
    ticket: Ticket,
    given: oneshot::Receiver<Permit>,
}

impl Waiter<'_> {
    async fn given(mut self) -> Permit {
        // The sender is in the queue until it has sent.
        (&mut self.given).await.unwrap_or_else(|_| Permit(self.gate.clone()))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let left = self.gate.state().waiting.remove(self.ticket);
        // Behind the lock: a permit that was given meanwhile goes with the receiver, and asks for it.
        drop(left);
    }
}

/// About how many tokens a request has: four bytes each.
pub(crate) fn tokens(request: &ModelRequest) -> u64 {
    (request.bytes() / 4).max(CALL_TOKENS)
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;
    use raddle_domain::tenant::Tenant;

    use super::*;
    use crate::tenants::Tenants;

    fn door(gate: &Arc<Gate>, tenants: &Tenants, name: &str, weight: u32) -> Door {
        let mut tenant = Tenant::implied(name.parse().unwrap());
        tenant.weight = NonZeroU32::new(weight).unwrap();
        let id = tenant.id;
        tenants.put(tenant);
        gate.door(&tenants.account(id))
    }

    #[tokio::test]
    async fn places_go_to_the_tenants_in_turn_by_their_weights() {
        let (gate, tenants) = (Gate::new(1, 1, true), Tenants::default());
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
        let (gate, tenants) = (Gate::new(1, 1, true), Tenants::default());
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
        let (gate, tenants) = (Gate::new(1, 1, false), Tenants::default());
        let (flood, quiet) = (door(&gate, &tenants, "flood", 1), door(&gate, &tenants, "quiet", 9));
        let held = flood.enter(1).await;
        let (mut first, mut second) = (Box::pin(flood.enter(1_000)), Box::pin(quiet.enter(1)));
        assert!(poll!(first.as_mut()).is_pending() && poll!(second.as_mut()).is_pending());
        drop(held);
        assert!(poll!(second.as_mut()).is_pending());
        drop(first.await);
        drop(second.await);
    }
}
