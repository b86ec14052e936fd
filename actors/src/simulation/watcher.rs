//! Whoever watches: comes, lags, is cut off, and comes back with a cursor. What it sees must be the log.

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use raddle_domain::id::{Seq, TenantId, ThreadKey};
use tokio::time::{sleep, timeout};

use super::{
    client::Outside,
    quota::Open,
    witness::{Holds, STREAM, unless},
    world::World,
};
use crate::{Error, Next, Runtime, TenantCursor, TenantNext};

/// How long a watcher waits before it comes back: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A watcher, and what it has seen.
pub(crate) struct Watcher {
    pub number: u32,
    pub of: Of,
    /// It watches no more: because it was told everything, or has gone.
    pub over: Cell<bool>,
}

/// What is watched, and how far.
pub(crate) enum Of {
    Thread(ThreadKey, Arc<Mutex<Seq>>),
    Tenant(TenantId, Arc<Mutex<Seen>>),
}

/// What a watcher of a tenant has seen.
#[derive(Default)]
pub(crate) struct Seen {
    cursor: TenantCursor,
    threads: BTreeMap<ThreadKey, Seq>,
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a watch ended.
enum Ended {
    Deleted,
    /// It can be begun again.
    Cut,
}

impl Watcher {
    /// Whether it has seen everything that there is. Nothing is under way.
    pub fn is_up_to_date(&self, world: &World) {
        if self.over.get() {
            return;
        }
        world.witness(|witness| match &self.of {
            Of::Thread(key, after) => {
                let after = *lock(after);
                let (head, gone) = witness.log(*key).map_or((0, true), |log| (log.head(), log.gone));
                unless(gone || after == head, STREAM, || {
                    format!(
                        "the watcher of move {} is at {after} of {}, which ends at {head}",
                        self.number,
                        witness.name(*key)
                    )
                })
            }
            Of::Tenant(tenant, seen) => {
                let seen = lock(seen);
                let theirs = witness.logs().filter(|(key, log)| key.tenant == *tenant && !log.gone);
                theirs.filter(|(_, log)| log.head() >= log.own).try_for_each(|(key, log)| {
                    let after = seen.threads.get(&key).copied().unwrap_or_default();
                    unless(after == log.head(), STREAM, || {
                        let (number, head) = (log.number, log.head());
                        format!(
                            "the watcher of move {} is at {after} of log {number}, which ends at {head}",
                            self.number
                        )
                    })
                })
            }
        });
    }
}

fn enter(outside: &Outside, number: u32, of: Of) -> Rc<Watcher> {
    let watcher = Rc::new(Watcher { number, of, over: Cell::new(false) });
    outside.watchers.borrow_mut().push(watcher.clone());
    watcher
}

/// Watches a thread, for some time or for as long as there is anything.
pub(crate) async fn watch(
    outside: Rc<Outside>,
    number: u32,
    key: ThreadKey,
    from_start: bool,
    slow_ms: u64,
    for_ms: Option<u64>,
) {
    let after = match from_start {
        true => 0,
        false => match outside.call(async move |runtime: Runtime| runtime.thread(key).await).await {
            Some(Ok(thread)) => thread.seq,
            _ => return,
        },
    };
    let cursor = Arc::new(Mutex::new(after));
    let watcher = enter(&outside, number, Of::Thread(key, cursor.clone()));
    let watching = async {
        let mut pause = PAUSE.0;
        loop {
            let (world, cursor) = (outside.world.clone(), cursor.clone());
            let from = *lock(&cursor);
            world.note(format_args!("move {number:<4} watches from {from}"));
            let ended =
                outside.call(async move |runtime: Runtime| session(&runtime, &world, key, &cursor, slow_ms).await);
            match ended.await {
                Some(Ok(Ended::Deleted)) | Some(Err(Error::NotFound(_))) => break,
                Some(Ok(Ended::Cut)) => pause = PAUSE.0,
                Some(Err(error)) => outside.world.note(format_args!("move {number:<4} cannot watch: {error}")),
                None => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    };
    match for_ms {
        Some(time) => drop(timeout(Duration::from_millis(time), watching).await),
        None => watching.await,
    }
    watcher.over.set(true);
    outside.world.note(format_args!("move {number:<4} watches no more"));
}

async fn session(
    runtime: &Runtime,
    world: &World,
    key: ThreadKey,
    cursor: &Mutex<Seq>,
    slow_ms: u64,
) -> Result<Ended, Error> {
    let from = *lock(cursor);
    let mut watched = runtime.subscribe(key, from).await?;
    let _open = Open::new(world, key.tenant);
    loop {
        let next = watched.next().await?;
        for (seq, stored) in next.events() {
            let mut after = lock(cursor);
            world.note(format_args!("seen      {seq} {} after {after}", stored.name));
            world.witness(|witness| witness.streamed(key, *after, seq, stored));
            *after = seq;
        }
        match next {
            Next::Deleted => return Ok(Ended::Deleted),
            Next::Gap { after } | Next::Shutdown { after } => {
                world.note(format_args!("watcher   is cut off after {after}"));
                let seen = *lock(cursor);
                world.witness(|_| cut_off_at(seen, after));
                return Ok(Ended::Cut);
            }
            Next::Stored(_) | Next::Live { .. } => {}
        }
        if slow_ms > 0 {
            sleep(Duration::from_millis(slow_ms)).await;
        }
    }
}

fn cut_off_at<C: PartialEq + std::fmt::Debug>(seen: C, after: C) -> Holds {
    unless(seen == after, STREAM, || format!("a watcher that has seen {seen:?} is to go on after {after:?}"))
}

/// Watches a tenant, from its beginning.
pub(crate) async fn watch_tenant(outside: Rc<Outside>, number: u32, tenant: TenantId, slow_ms: u64) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let _watcher = enter(&outside, number, Of::Tenant(tenant, seen.clone()));
    let mut pause = PAUSE.0;
    loop {
        let (world, seen) = (outside.world.clone(), seen.clone());
        let from = lock(&seen).cursor;
        world.note(format_args!("move {number:<4} watches {tenant} from {from:?}"));
        let ended =
            outside.call(async move |runtime: Runtime| tenants_session(&runtime, &world, tenant, &seen, slow_ms).await);
        match ended.await {
            Some(Ok(())) => pause = PAUSE.0,
            Some(Err(error)) => outside.world.note(format_args!("move {number:<4} cannot watch: {error}")),
            None => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn tenants_session(
    runtime: &Runtime,
    world: &World,
    tenant: TenantId,
    seen: &Mutex<Seen>,
    slow_ms: u64,
) -> Result<(), Error> {
    let from = lock(seen).cursor;
    let mut watched = runtime.subscribe_tenant(tenant, Some(from), None).await?;
    let _open = Open::new(world, tenant);
    loop {
        let next = watched.next().await?;
        for (_, stored) in next.events() {
            let mut seen = lock(seen);
            let Some(Some((key, seq))) = world.witness(|witness| witness.fed(tenant, &seen.threads, stored)) else {
                continue;
            };
            seen.threads.insert(key, seq);
            world.note(format_args!("seen      {seq} {} of {tenant}", stored.name));
        }
        let after = watched.after();
        lock(seen).cursor = after;
        if let TenantNext::Gap { .. } | TenantNext::Shutdown { .. } = next {
            return Ok(());
        }
        if slow_ms > 0 {
            sleep(Duration::from_millis(slow_ms)).await;
        }
    }
}
