//! The end of a simulation: nothing goes wrong any more, a person is there, and everything has to come to rest.

use std::{rc::Rc, sync::Arc, time::Duration};

use raddle_domain::{
    budget::BudgetStatus,
    command::{Limits, ThreadPatch},
    event::Record,
    id::{JobId, RunId, ScheduleId, Seq, TenantId, ThreadKey},
    job::{Job, JobStatus},
    ports::{LogKind, StoredEvent},
    price::Prices,
    record::{Resolution, Thread, ThreadStatus},
    run::RunState,
    tenant::Quotas,
    thread::ThreadState,
    time::UnixMs,
    trace::{Header, Rerun, derive},
};
use tokio::time::sleep;

use super::{
    client::{Outside, of, tenant},
    erasure,
    lives::PATIENCE,
    plan::Plan,
    quota,
    witness::{Holds, Log, PLACES, REPLAY, RESTS, Violation, decode, unless},
    world::{Fate, World},
};
use crate::{Call, Error, Runtime, UsageQuery, thread};

/// How often a person looks whether everything rests.
const LOOKS: u32 = 40;

/// Sees to it that everything rests, and that it is what it was when another process reads it. What is not so, the
/// world knows.
pub(crate) async fn end(outside: &Rc<Outside>, plan: &Plan) {
    let (world, loaded) = (outside.world.clone(), plan.loaded);
    outside.over.set(true);
    world.heal();
    world.note(format_args!("ending    nothing goes wrong any more"));
    let is_bounded = plan.quotas != Quotas::default();
    if is_bounded {
        quota::make_room(outside, plan.tenants).await;
    }
    let mut unrest = Vec::new();
    for _ in 0..LOOKS {
        sleep(PATIENCE + Duration::from_secs(10)).await;
        let open = open(&world);
        unrest = outside.insist(async move |runtime: Runtime| look(&runtime, open).await).await;
        world.note(format_args!("ending    a person looks: {unrest:?}"));
        if unrest.is_empty() || world.is_broken().is_some() {
            break;
        }
    }
    if let Some(first) = unrest.first() {
        return world.violated(Violation { invariant: RESTS, what: first.clone() });
    }
    if is_bounded {
        let is_there = |of: &TenantId| !world.know(|witness| witness.is_erased(*of));
        for tenant in (0..plan.tenants).map(tenant).filter(is_there) {
            let to = world.clone();
            let counted = async move |runtime: Runtime| quota::is_counted(&runtime, &to, tenant).await;
            let counted = outside.insist(counted).await.map_err(|why| broken(format!("{tenant}: {why}")));
            world.witness(|_| counted.flatten());
        }
    }
    // Whoever was slow, or away all the time, has time to see it all.
    world.mend_sinks();
    sleep(PATIENCE).await;
    world.witness(|witness| witness.carried());
    world.witness(|witness| witness.rests());
    for watcher in &*outside.watchers.borrow() {
        watcher.is_up_to_date(&world);
    }
    let left = outside.insist(async move |runtime: Runtime| places(&runtime, loaded)).await;
    world.witness(|_| left);
    // Another process reads everything.
    let lives = outside.lives.get();
    world.decide(Fate::Stops { deadline_ms: 1_000, down_ms: 0 });
    while outside.lives.get() == lives {
        sleep(Duration::from_millis(50)).await;
    }
    let to = world.clone();
    let same = outside.insist(async move |runtime: Runtime| compare(&runtime, &to).await).await;
    world.witness(|_| same);
    // What was erased in part it finishes, and nobody has to ask.
    sleep(PATIENCE).await;
    let to = world.clone();
    let gone = outside.insist(async move |runtime: Runtime| erasure::is_gone(&runtime, &to).await).await;
    world.witness(|_| gone.map_err(|why| broken(format!("what was erased: {why}"))).flatten());
}

/// What there is.
#[derive(Debug, Clone, Copy)]
enum Open {
    Thread(ThreadKey),
    Run(ThreadKey),
    Job(ThreadKey, JobId),
    Schedule(TenantId, ScheduleId),
}

fn open(world: &World) -> Vec<Open> {
    let of = |(key, log): (ThreadKey, &Log)| match log.kind {
        LogKind::Thread => Some(Open::Thread(key)),
        LogKind::Run => Some(Open::Run(key)),
        LogKind::Job => Some(Open::Job(key, log.chore.job.as_ref()?.id)),
        LogKind::Schedule => Some(Open::Schedule(key.tenant, log.chore.schedule?)),
    };
    world.know(|witness| witness.logs().filter(|(_, log)| !log.gone).filter_map(of).collect())
}

/// What a person sees who looks whether everything rests, and who does what only a person can: says what became of
/// effects and jobs that nobody knows of, lets queues go on, and has nothing done every minute any more.
async fn look(runtime: &Runtime, open: Vec<Open>) -> Vec<String> {
    let mut unrest = Vec::new();
    for open in open {
        let seen = match open {
            Open::Thread(key) => see(runtime, key).await,
            Open::Run(key) => owes(runtime, key),
            Open::Job(key, job) => see_job(runtime, key, job).await,
            Open::Schedule(tenant, schedule) => {
                // What it has had done since the others were looked at is looked at the next time.
                let deleted = runtime.delete_schedule(tenant, schedule, Call::default()).await;
                deleted.map(|()| Some(format!("{schedule} was there")))
            }
        };
        match seen {
            Ok(None) | Err(Error::NotFound(_)) => {}
            Ok(Some(what)) => unrest.push(what),
            Err(error) => unrest.push(format!("{open:?} cannot be read: {error}")),
        }
    }
    unrest
}

async fn see_job(runtime: &Runtime, key: ThreadKey, id: JobId) -> Result<Option<String>, Error> {
    let job = runtime.job(key.tenant, id).await?;
    match job.status {
        JobStatus::Uncertain => drop(runtime.cancel_job(key.tenant, id, Call::default()).await?),
        JobStatus::Paused => drop(runtime.resume_job(key.tenant, id, Call::default()).await?),
        _ => {}
    }
    let row = runtime.shared().store.view()?.row(key)?.ok_or(Error::NotFound("job"))?;
    let rests = job.status.is_over() && row.head.owes_since.is_none();
    Ok((!rests).then(|| format!("{id} is {}, or owes something: {:?}", job.status.as_str(), row.head)))
}

async fn see(runtime: &Runtime, key: ThreadKey) -> Result<Option<String>, Error> {
    let found = runtime.thread(key).await?;
    for effect in runtime.effects(key.tenant, of(key)).await?.data {
        runtime.resolve(key.tenant, effect.operation_id, Resolution::Abort, None, Call::default()).await?;
    }
    if found.queued > 0 && (found.queue_paused || found.archived) {
        let resumed = ThreadPatch { queue_paused: Some(false), archived: Some(false), ..ThreadPatch::default() };
        runtime.patch_thread(key, resumed, Call::default()).await?;
    }
    let Thread { status, active_turn, queued, .. } = found;
    let rests = matches!(status, ThreadStatus::Idle | ThreadStatus::Archived) && active_turn.is_none() && queued == 0;
    if !rests {
        let what = format!("{} is {} with {queued} prompts waiting", key.thread, status.as_str());
        return Ok(Some(what));
    }
    owes(runtime, key)
}

fn owes(runtime: &Runtime, key: ThreadKey) -> Result<Option<String>, Error> {
    let row = runtime.shared().store.view()?.row(key)?.ok_or(Error::NotFound("thread"))?;
    let owes = row.head.owes_since.is_some() || row.head.wake_at.is_some();
    Ok(owes.then(|| format!("{} is idle and owes something, or waits for a time: {:?}", key.thread, row.head)))
}

/// Nothing is under way, so nothing may hold a place.
fn places(runtime: &Runtime, loaded: usize) -> Holds {
    let health = runtime.health();
    let held = [
        ("turns", health.running_turns),
        ("commands", health.commands_in_flight),
        ("commands at work", health.commands_at_work.in_use),
        ("readers", health.turn_reads.in_use),
        ("model calls", health.model_calls.in_use),
        ("runs of tools", health.tool_runs.in_use),
    ];
    held.into_iter()
        .try_for_each(|(what, held)| unless(held == 0, PLACES, || format!("{held} {what} are under way")))?;
    unless(health.loaded_threads <= loaded as u64, PLACES, || {
        format!("{} threads are loaded, at most {loaded} may be", health.loaded_threads)
    })
}

/// Everything that was ever stored and not deleted is read as it was.
async fn compare(runtime: &Runtime, world: &Arc<World>) -> Holds {
    let all: Vec<(ThreadKey, bool, Vec<StoredEvent>)> =
        world.know(|witness| witness.logs().map(|(key, log)| (key, log.gone, log.events.clone())).collect());
    for (key, gone, events) in all {
        let name = world.know(|witness| witness.name(key));
        let read = runtime.events(key, 0, usize::MAX).await;
        let read = match read {
            Err(Error::NotFound(_)) if gone => continue,
            Ok(_) if gone => return unless(false, REPLAY, || format!("{name} was deleted and can be read")),
            read => read.map_err(|error| broken(format!("{name}: {error}")))?,
        };
        let mut after = 0;
        for chunk in &read.chunks {
            for (seq, stored) in (chunk.first..).zip(&chunk.events) {
                let has = world.know(|witness| witness.log(key).map_or(Ok(false), |log| log.has(after, seq, stored)));
                unless(has?, REPLAY, || format!("{name} is read with a {} at {seq} behind {after}", stored.name))?;
                after = seq;
            }
        }
        unless(after == events.len() as Seq, REPLAY, || {
            format!("{name} is read to {after}; {} events were stored", events.len())
        })?;
        if let Some(run) = key.thread.of_run() {
            replayed(&name, runtime, world, key, run).await?;
            continue;
        }
        if let Some(known) = world.know(|witness| witness.log(key)?.chore.job.clone()) {
            let shown = runtime.job(key.tenant, known.id).await.map_err(|error| broken(format!("{name}: {error}")))?;
            // That its turn was told is in the row alone.
            let known = Job { stopping: shown.stopping, ..known };
            unless(shown == known, REPLAY, || format!("{name} is shown as {shown:?}; its log makes {known:?}"))?;
            continue;
        }
        let record = runtime.thread(key).await.map_err(|error| broken(format!("{name}: {error}")))?;
        let state = runtime.shared().store.view().and_then(|view| thread::state(&*view, key));
        let state = state.map_err(|error| broken(format!("{name}: {error}")))?;
        let state = state.ok_or_else(|| broken(format!("{name} has a log and no state")))?;
        unless(*state.view() == record, REPLAY, || {
            format!("{name} is shown as {record:?} and loaded as {:?}", state.view())
        })?;
        retell(&name, key, &events, &state, runtime.config().limits)?;
        if let Some(shown) = record.spent {
            let spent = world.know(|witness| witness.log(key).map_or(0, |log| log.account.spent));
            unless(shown.tokens == spent, REPLAY, || {
                format!("{name} is shown as having spent {}; its log says {spent}", shown.tokens)
            })?;
        }
    }
    bills(runtime, world).await
}

/// What every tenant has spent is what the logs say, those of deleted threads included.
async fn bills(runtime: &Runtime, world: &World) -> Holds {
    for tenant in world.know(|witness| witness.tenants().collect::<Vec<_>>()) {
        let spent = world.know(|witness| witness.spent_by(tenant));
        let bill = runtime.usage(tenant, UsageQuery::default()).await;
        let totals = bill.map_err(|error| broken(format!("the bill of {tenant}: {error}")))?.totals;
        let billed = totals.input_tokens + totals.output_tokens;
        unless(billed == spent, REPLAY, || format!("{tenant} is billed {billed}; its logs say {spent}"))?;
        let status = runtime.budget_status(tenant).await;
        for BudgetStatus { state, reserved } in status.map_err(|error| broken(format!("{tenant}: {error}")))? {
            unless((state.spent, reserved) == (spent, 0), REPLAY, || {
                format!("{tenant} has spent {} and reserved {reserved}; its logs say {spent}", state.spent)
            })?;
        }
    }
    Ok(())
}

/// A run is what its log makes of it, and is shown so.
async fn replayed(name: &str, runtime: &Runtime, world: &World, key: ThreadKey, run: RunId) -> Holds {
    let failed = |error: Error| broken(format!("{name}: {error}"));
    let shown = runtime.run(key.tenant, run).await.map_err(failed)?;
    let replayed = runtime.replay_run(key.tenant, run, None, None).await.map_err(failed)?;
    let drift = replayed.drift.unwrap_or_default();
    unless(!drift.mismatch, REPLAY, || format!("{name} is kept as another than its log makes it: {drift:?}"))?;
    let known = world.know(|witness| witness.log(key)?.board.state.as_ref().map(RunState::image));
    unless(known.as_ref() == Some(&replayed.image) && shown == replayed.image.run, REPLAY, || {
        format!("{name} is shown as {shown:?}; its log makes {known:?}")
    })
}

/// The rules make the same log, and the same state, of what the log says that the thread was told.
fn retell(name: &str, key: ThreadKey, events: &[StoredEvent], state: &ThreadState, limits: Limits) -> Holds {
    let records: Vec<Record> = events.iter().map(decode).collect::<Holds<_>>()?;
    let header = Header::new(UnixMs(0), limits, Prices::default());
    let derived = derive(&header, key.tenant, &records).map_err(|why| broken(format!("{name}: {why}")))?;
    let mut told = Rerun::default();
    for line in &derived.lines {
        told.tell(&header, line).map_err(|why| broken(format!("{name} is told again: {why}")))?;
    }
    unless(told.log() == records && told.state() == Some(state), REPLAY, || {
        format!("{name} is told again and is another: {:?} instead of {state:?}", told.state())
    })
}

fn broken(what: String) -> Violation {
    Violation { invariant: REPLAY, what }
}
