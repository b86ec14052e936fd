//! Who is next where tenants wait for each other: deficit round robin.
//!
//! Each tenant that has something waiting has a turn in the round. In its turn it may use a quantum for each unit of
//! its weight, and what it saved in turns in which its next item cost more than it had; then the turn passes on. So over
//! any time in which two tenants both have something waiting, what is served of them is as their weights are, but for at
//! most two turns and an item each, however much either of them brings, and however it is cut into items. (Shreedhar and
//! Varghese, *Efficient Fair Queuing Using Deficit Round-Robin*, SIGCOMM 1995.)
//!
//! Invariants: first in, first out within a tenant; nothing is served twice or lost; a tenant with nothing waiting has
//! no entry, and what it saved is gone with it, so nobody saves up for later by asking for nothing. Everything is a
//! function of the calls and their order.
//!
//! Absent on purpose: places, time, and what the items are.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
};

use crate::id::TenantId;

/// The most that one item counts for, in quanta: what is dearer counts as this. So the rounds that pass until any item
/// is served are bounded too.
pub const QUANTA: u64 = 64;

/// Items that wait, by tenant.
#[derive(Debug)]
pub struct Fair<T> {
    quantum: u64,
    flows: HashMap<TenantId, Flow<T>>,
    /// Who has something waiting, in the order of their turns.
    round: BTreeMap<u64, TenantId>,
    /// Numbers items, and places in the round.
    number: u64,
    length: usize,
}

#[derive(Debug)]
struct Flow<T> {
    weight: NonZeroU32,
    /// What it may still use.
    deficit: u64,
    /// Whether it is its turn, so that it has had its quantum.
    begun: bool,
    /// Its key in the round.
    place: u64,
    /// By number: oldest first.
    items: BTreeMap<u64, (u64, T)>,
}

/// The item that a tenant has next, when it is its turn.
#[derive(Debug)]
pub struct Next<'a, T> {
    pub tenant: TenantId,
    /// Tells one turn from another: what is offered under the same number is of the same turn.
    pub turn: u64,
    pub item: &'a T,
}

/// What becomes of an item that is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Serve,
    /// It stays next of its tenant, which keeps its place in the round; the tenants behind it are asked.
    PassOver,
    /// It stays next, and nobody else is asked.
    Stop,
}

/// By what an item that waits is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(TenantId, u64);

impl<T> Fair<T> {
    /// Nothing waits. A turn of a tenant with the weight 1 is worth `quantum`.
    pub fn new(quantum: u64) -> Self {
        Self { quantum: quantum.max(1), flows: HashMap::new(), round: BTreeMap::new(), number: 0, length: 0 }
    }

    /// Lets an item wait behind the others of its tenant. The weight holds for all of them from now on.
    pub fn enqueue(&mut self, tenant: TenantId, weight: NonZeroU32, cost: u64, item: T) -> Ticket {
        self.number += 1;
        let number = self.number;
        let flow = self.flows.entry(tenant).or_insert_with(|| {
            self.round.insert(number, tenant);
            Flow { weight, deficit: 0, begun: false, place: number, items: BTreeMap::new() }
        });
        flow.weight = weight;
        let most = self.quantum.saturating_mul(QUANTA);
        flow.items.insert(number, (cost.clamp(1, most), item));
        self.length += 1;
        Ticket(tenant, number)
    }

    /// Takes the item that is next.
    pub fn serve(&mut self) -> Option<(TenantId, T)> {
        self.serve_by(|_| Choice::Serve)
    }

    /// Takes the first item that `choose` wants, asked of each tenant's next one in the order of their turns.
    pub fn serve_by(&mut self, mut choose: impl FnMut(Next<'_, T>) -> Choice) -> Option<(TenantId, T)> {
        let mut from = 0;
        loop {
            let (&turn, &tenant) = self.round.range(from..).next()?;
            let flow = self.flows.get_mut(&tenant)?;
            if !flow.begun {
                flow.begun = true;
                let worth = self.quantum.saturating_mul(u64::from(flow.weight.get()));
                flow.deficit = flow.deficit.saturating_add(worth);
            }
            let (&number, (cost, item)) = flow.items.first_key_value()?;
            if *cost <= flow.deficit {
                match choose(Next { tenant, turn, item }) {
                    Choice::Serve => {
                        flow.deficit -= *cost;
                        return self.take(Ticket(tenant, number)).map(|item| (tenant, item));
                    }
                    Choice::PassOver => from = turn + 1,
                    Choice::Stop => return None,
                }
                continue;
            }
            self.number += 1;
            (flow.begun, flow.place) = (false, self.number);
            self.round.remove(&turn);
            self.round.insert(self.number, tenant);
        }
    }

    /// Takes an item back that waits. `None` if it waits no more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.take(ticket)
    }

    fn take(&mut self, Ticket(tenant, number): Ticket) -> Option<T> {
        let flow = self.flows.get_mut(&tenant)?;
        let (_, item) = flow.items.remove(&number)?;
        self.length -= 1;
        if flow.items.is_empty() {
            self.round.remove(&flow.place);
            self.flows.remove(&tenant);
        }
        Some(item)
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tenants with something waiting.
    pub fn tenants(&self) -> usize {
        self.flows.len()
    }

    /// How many items the tenant has waiting that has the fewest, and the one that has the most.
    pub fn extremes(&self) -> Option<(usize, usize)> {
        let lengths = || self.flows.values().map(|flow| flow.items.len());
        Some((lengths().min()?, lengths().max()?))
    }

    /// Takes everything, the tenants in turn.
    pub fn drain(&mut self) -> impl Iterator<Item = (TenantId, T)> {
        std::iter::from_fn(|| self.serve())
    }
}

#[cfg(test)]
mod tests;
