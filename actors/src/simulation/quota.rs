//! Quotas: what a tenant may have at most, and what must hold of it: all along, and once there is room.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use raddle_domain::{
    command::{NewThread, StartTurn},
    id::{TenantId, ThreadKey},
    ports::LogKind,
    tenant::{Quotas, TenantPatch},
};
use tokio::time::sleep;

use super::{
    client::{self, Outside},
    model::choice,
    witness::{Holds, Log, Witness, unless},
    world::World,
};
use crate::{Call, Error, Runtime};

pub(crate) const QUOTA: &str = "a quota holds";
pub(crate) const ROOM: &str = "where there is room nobody is refused";

/// More than there is of anything.
const AMPLE: Quotas = Quotas {
    threads: Some(1_000_000),
    active_turns: Some(1_000_000),
    queued_prompts: Some(1_000_000),
    subscribers: Some(1_000_000),
    loaded_threads: None,
    requests_per_second: None,
    request_burst: None,
    stored_bytes: None,
};

/// How long somebody waits before he asks again.
const PAUSE: Duration = Duration::from_millis(100);

/// The most that tenants may have, as far as anybody ever asked for.
#[derive(Default)]
pub(crate) struct Bounds {
    usual: Quotas,
    granted: BTreeMap<TenantId, Quotas>,
}

impl Bounds {
    pub fn new(usual: Quotas) -> Self {
        Self { usual, granted: BTreeMap::new() }
    }

    pub fn of(&self, tenant: TenantId) -> Quotas {
        self.granted.get(&tenant).copied().unwrap_or(self.usual)
    }

    /// A tenant is to have as much, from now on or later. Nobody is ever granted less.
    pub fn grants(&mut self, tenant: TenantId, quotas: Quotas) {
        let before = self.of(tenant);
        let most = |before: Option<u64>, now: Option<u64>| Some(before?.max(now?));
        let most = Quotas {
            threads: most(before.threads, quotas.threads),
            active_turns: most(before.active_turns, quotas.active_turns),
            queued_prompts: most(before.queued_prompts, quotas.queued_prompts),
            subscribers: most(before.subscribers, quotas.subscribers),
            ..before
        };
        self.granted.insert(tenant, most);
    }
}

/// At most so many of something, where there is a bound.
pub(crate) fn within(tenant: TenantId, count: usize, most: Option<u64>, what: &str) -> Holds {
    unless(most.is_none_or(|most| count as u64 <= most), QUOTA, || {
        format!("{tenant} has {count} {what}; {most:?} is the most")
    })
}

impl Witness {
    /// The threads of a tenant.
    pub fn threads_of(&self, tenant: TenantId) -> usize {
        let theirs = self.logs().filter(|(key, log)| key.tenant == tenant && log.kind == LogKind::Thread && !log.gone);
        theirs.count()
    }

    /// Its turns at work, as far as a process has them: the one that writes with this fence.
    pub fn turns_of(&self, tenant: TenantId, fence: u64) -> usize {
        let works = |log: &Log| log.works && log.fence == fence && !log.gone;
        self.logs().filter(|(key, log)| key.tenant == tenant && works(log)).count()
    }

    /// Prompts that callers let wait. Those that came too late for their turn wait whatever the bound.
    pub fn prompts_of(&self, tenant: TenantId) -> usize {
        let theirs = self.logs().filter(|(key, log)| key.tenant == tenant && !log.gone);
        theirs.map(|(_, log)| log.waiting.len()).sum()
    }
}

/// A stream that is open, while it is.
pub(crate) struct Open<'w>(&'w World, TenantId);

impl<'w> Open<'w> {
    pub fn new(world: &'w World, tenant: TenantId) -> Self {
        world.opened(tenant);
        Self(world, tenant)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed(self.1);
    }
}

/// Everybody gets as much as he wants, and whoever was refused asks again.
pub(crate) async fn make_room(outside: &Rc<Outside>, tenants: usize) {
    let world = outside.world.clone();
    for of in (0..tenants).map(client::tenant) {
        world.grants(of, AMPLE);
        while let Err(error) = outside.insist(async move |runtime: Runtime| grant(&runtime, of, AMPLE).await).await
            && client::passes(&error)
        {
            sleep(PAUSE).await;
        }
    }
    world.has_room();
    for (step, request) in outside.refused.take().into_values() {
        while client::once(outside, &step, &request).await.is_none_or(|heard| heard.is_err_and(|why| may_pass(&why))) {
            sleep(PAUSE).await;
        }
    }
}

/// Whether somebody who has room asks again.
fn may_pass(error: &Error) -> bool {
    client::passes(error) && !matches!(error, Error::Quota { .. })
}

/// Says how much a tenant may have.
pub(crate) async fn grant(runtime: &Runtime, tenant: TenantId, quotas: Quotas) -> Result<(), Error> {
    client::patch_tenant(runtime, tenant, TenantPatch { quotas: Some(quotas), ..TenantPatch::default() }).await
}

/// Nothing is under way: there is room for as much as was given back, and for no more.
pub(crate) async fn is_counted(runtime: &Runtime, world: &World, tenant: TenantId) -> Result<Holds, Error> {
    let threads = world.know(|witness| witness.threads_of(tenant)) as u64;
    let quotas = Quotas { threads: Some(threads + 2), active_turns: Some(1), queued_prompts: Some(1), ..AMPLE };
    grant(runtime, tenant, quotas).await?;
    let create = || runtime.create_thread(tenant, NewThread::with(choice()), Call::default());
    let (one, other) = (create().await, create().await);
    let mut held = has_room(true, "a thread", &one).and(has_room(true, "a thread", &other));
    held = held.and(has_room(false, "a thread", &create().await));
    // Whose budget is spent has no turn that lasts.
    if world.know(|witness| witness.is_thrifty(tenant)) {
        return Ok(held);
    }
    let start = |thread| {
        let start = StartTurn { prompt: "it wait 60000".to_owned(), ..StartTurn::default() };
        runtime.start_turn(ThreadKey { tenant, thread }, start, Call::default())
    };
    let (one, other) = (one?.value.id, other?.value.id);
    held = held.and(has_room(true, "a turn", &start(one).await)).and(has_room(false, "a turn", &start(other).await));
    held = held.and(has_room(true, "a prompt", &start(one).await));
    Ok(held.and(has_room(false, "a prompt", &start(one).await)))
}

/// Whether somebody was answered as one for whom there is room, or is none.
fn has_room<T>(is_there: bool, what: &str, answer: &Result<T, Error>) -> Holds {
    match answer {
        Err(refused @ Error::Quota { .. }) => {
            unless(!is_there, ROOM, || format!("there is room for {what}, and somebody is told: {refused}"))
        }
        Err(_) => Ok(()),
        Ok(_) => unless(is_there, QUOTA, || format!("there is no room for {what}, and somebody gets it")),
    }
}
