//! The runtime's own workers: turns that claimed a task themselves, and jobs that have a turn for one.
//!
//! ```text
//!   claim ──▶ held ── heartbeats, while the work goes on ──▶ completed, failed, given back
//!               └── its process is lost: another one takes the lease over as it is, or it runs out ──▶ requeued
//! ```
//! A worker is known by its name, which nobody else can have, so it needs no token and goes on after a restart. A job
//! keeps its lease itself (`jobs/task`); that of a turn is kept here, until the turn has ended: what it has not completed
//! by then is given back.
//!
//! Which task an effect was for is read off the board when the ledger gets it. So before a turn gets a task, and before
//! it has one no longer, the ledger is waited for.

use std::{sync::Arc, time::Duration};

use raddle_domain::{
    id::{RunId, TenantId, ThreadKey, TurnId},
    ports::{PartKind, RecordKind, StoreError, View},
    run::{
        LEASE_MS, Refused, Run, Task, TaskStatus,
        command::{Action, Claim, Claimed, Command, Reply, Transition, WorkBy, Worker},
        limits::TEXT_BYTES,
    },
};
use serde_json::Value;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::unexpected;
use crate::{
    bus::Subscribe,
    handle::{Call, Done, Error, Runtime, WeakRuntime},
    run::parts,
    system::Shared,
};

/// The pause before what could not be said is said again.
const AGAIN: Duration = Duration::from_secs(1);
/// Runs that are looked through at a time, for tasks that turns of before hold.
const PAGE: usize = 500;

/// A task that a worker holds.
#[derive(Debug, Clone)]
pub(crate) struct Shift {
    pub tenant: TenantId,
    pub run: RunId,
    pub task: String,
    pub worker: Worker,
}

/// What a worker says at the end.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkEnd {
    Done(Option<Value>),
    Failed(String),
    /// Given back, undone.
    Released,
}

impl WorkEnd {
    fn transition(self, task_id: String) -> Transition {
        let (action, output, error) = match self {
            Self::Done(output) => (Action::Complete, output, None),
            Self::Failed(why) => (Action::Fail, None, Some(why[..why.floor_char_boundary(TEXT_BYTES)].to_owned())),
            Self::Released => (Action::Release, None, None),
        };
        let blank = Transition::new(task_id, action);
        Transition { output, error, ..blank }
    }
}

/// How long a lease of a worker lasts: as long as its process may be silent, within what a lease may last.
fn lease_ms(shared: &Shared) -> u64 {
    let (shortest, longest) = LEASE_MS.into_inner();
    u64::try_from(shared.config.jobs_lease.as_millis()).unwrap_or(u64::MAX).clamp(shortest, longest)
}

/// How often it is renewed.
pub(crate) fn beat(shared: &Shared) -> Duration {
    let longest = Duration::from_millis(*LEASE_MS.end());
    (shared.config.jobs_lease.min(longest) / 3).max(Duration::from_millis(10))
}

impl Shift {
    /// Renews the lease. Whether it is still held, as far as anybody knows.
    pub async fn beat(&self, runtime: &Runtime) -> bool {
        let lease_ms = Some(lease_ms(runtime.shared()));
        let beat = Transition { lease_ms, ..Transition::new(self.task.clone(), Action::Heartbeat) };
        !matches!(self.say(runtime, beat, Call::default()).await, Err(Error::Run(_) | Error::NotFound(_)))
    }

    /// Says how the work ended; whether it was heard: a lease that was lost meanwhile has nothing to say any more.
    pub async fn end(&self, runtime: &Runtime, end: WorkEnd, call: Call) -> Result<bool, Error> {
        let transition = end.transition(self.task.clone());
        let said = match self.say(runtime, transition.clone(), call.clone()).await {
            // The work is done, whether or not the run has room for what it came to.
            Err(Error::Run(Refused::TooLarge { .. } | Refused::Full { .. } | Refused::Invalid { .. })) => {
                self.say(runtime, Transition { output: None, ..transition }, call).await
            }
            said => said,
        };
        match said {
            Ok(_) => Ok(true),
            Err(Error::Run(_) | Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn say(&self, runtime: &Runtime, transition: Transition, call: Call) -> Result<Done<Task>, Error> {
        runtime.say(self.tenant, self.run, self.worker, transition, call).await
    }
}

impl Runtime {
    /// Hands a worker the task that it holds, or the one that is next. That of a turn is kept until the turn has ended.
    pub async fn work(&self, tenant: TenantId, run: RunId, worker: Worker, claim: Claim) -> Result<Claimed, Error> {
        self.before_a_word(tenant, worker).await;
        let runtime = self.clone();
        // In a task of its own: a claim that was sent is kept, or given back, whether or not its caller still waits.
        let work = self.shared().tasks.spawn(async move {
            let shared = runtime.shared();
            let command = Command::Work(worker, Claim { lease_ms: Some(lease_ms(shared)), ..claim });
            let expect = |reply| match reply {
                Reply::Claimed(claimed) => Ok(*claimed),
                other => Err(unexpected(&other)),
            };
            let mut claimed = runtime.run_verb(tenant, run, command, Call::default(), expect).await?.value;
            if let Some(task) = &mut claimed.task {
                // It has a name instead. One that it held already is kept already.
                let token = task.lease.as_mut().and_then(|lease| lease.token.take());
                if token.is_some() {
                    let shift = Shift { tenant, run, task: task.id.clone(), worker };
                    keep(shared, runtime.downgrade(), shift);
                }
            }
            Ok(claimed)
        });
        match work.await {
            Ok(claimed) => claimed,
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
        }
    }

    /// Takes back whatever a worker holds that is gone. A run that is gone too has nothing.
    pub(crate) async fn give_back(&self, tenant: TenantId, run: RunId, worker: Worker) -> Result<(), Error> {
        self.before_a_word(tenant, worker).await;
        let expect = |reply| match reply {
            Reply::Noted => Ok(()),
            other => Err(unexpected(&other)),
        };
        match self.run_verb(tenant, run, Command::GiveBack(worker), Call::default(), expect).await {
            Ok(_) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends a worker's work on the task that it holds.
    pub async fn end_work(
        &self,
        tenant: TenantId,
        run: RunId,
        worker: Worker,
        (task, end): (String, WorkEnd),
        call: Call,
    ) -> Result<Done<Task>, Error> {
        self.before_a_word(tenant, worker).await;
        self.say(tenant, run, worker, end.transition(task), call).await
    }

    async fn say(
        &self,
        tenant: TenantId,
        run: RunId,
        worker: Worker,
        transition: Transition,
        call: Call,
    ) -> Result<Done<Task>, Error> {
        let expect = |reply| match reply {
            Reply::Task(task) => Ok(*task),
            other => Err(unexpected(&other)),
        };
        self.run_verb(tenant, run, Command::Say(worker, transition), call, expect).await
    }

    /// What a turn of a job did says itself for which task it was.
    async fn before_a_word(&self, tenant: TenantId, worker: Worker) {
        if matches!(worker.by, WorkBy::Turn(_)) {
            self.ledgers_are_up(tenant).await;
        }
    }
}

/// Keeps the lease of a turn until the turn has ended, then gives back what it has not completed.
fn keep(shared: &Arc<Shared>, runtime: WeakRuntime, shift: Shift) {
    if let WorkBy::Turn(turn) = shift.worker.by {
        shared.tasks.spawn(kept(shared.clone(), runtime, shift, turn));
    }
}

async fn kept(shared: Arc<Shared>, runtime: WeakRuntime, shift: Shift, turn: TurnId) {
    let thread = ThreadKey { tenant: shift.tenant, thread: shift.worker.thread };
    while !ends_before(&shared, thread, turn, Instant::now() + beat(&shared)).await {
        // The lease goes on with the turn, in the next process.
        let Ok(runtime) = runtime.get() else { return };
        if !shift.beat(&runtime).await {
            return;
        }
    }
    while let Ok(runtime) = runtime.get() {
        match runtime.give_back(shift.tenant, shift.run, shift.worker).await {
            Ok(()) | Err(Error::Draining) => return,
            Err(_) => sleep(AGAIN).await,
        }
    }
}

/// Whether a turn ends before `deadline`. Whoever keeps a lease watches without a place among the watchers: it must not
/// be lost because there are many of them.
async fn ends_before(shared: &Arc<Shared>, key: ThreadKey, turn: TurnId, deadline: Instant) -> bool {
    let ends = async {
        loop {
            let (reply, watch) = oneshot::channel();
            shared.bus.do_send(Subscribe { key, reply });
            let Ok(mut watch) = watch.await else { return std::future::pending().await };
            loop {
                let store = shared.store.clone();
                let has_ended = move || {
                    let view = store.view()?;
                    // A thread that is gone has no turn. An open turn is in its thread's log alone.
                    Ok::<_, StoreError>(view.row(key)?.is_none() || view.turn(key, turn)?.is_some())
                };
                match shared.tasks.blocking(has_ended).await {
                    Ok(Ok(true)) => return,
                    Ok(Ok(false)) => {}
                    // Nothing was seen: what would tell of the end may have passed.
                    _ => {
                        sleep(AGAIN).await;
                        continue;
                    }
                }
                let matters = |name: &str| name == "turn.completed" || name == "thread.deleted";
                let tells = loop {
                    match watch.next().await {
                        Some(batch) if batch.chunk.events.iter().any(|event| matters(&event.name)) => break true,
                        Some(_) => {}
                        None => break false,
                    }
                };
                if !tells {
                    // It was too slow, or there is nobody to tell any more.
                    sleep(AGAIN).await;
                    break;
                }
            }
        }
    };
    timeout_at(deadline, ends).await.is_ok()
}

/// Finds the tasks that turns held in the process before this one, and keeps them.
pub(crate) async fn recover(shared: Arc<Shared>, runtime: WeakRuntime) {
    let store = shared.store.clone();
    let read = shared.tasks.blocking(move || held_by_turns(&*store.view()?)).await;
    match read {
        Ok(Ok(shifts)) => shifts.into_iter().for_each(|shift| keep(&shared, runtime.clone(), shift)),
        failed => tracing::warn!(?failed, "cannot find the tasks that turns hold; their leases may run out"),
    }
}

fn held_by_turns(view: &dyn View) -> Result<Vec<Shift>, StoreError> {
    let mut shifts = Vec::new();
    for tenant in view.feeds()? {
        let mut after = None;
        loop {
            let page = view.records(tenant, RecordKind::Run, None, true, after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for place in &page {
                match of_run(view, tenant, RunId::new(place.id)) {
                    Ok(found) => shifts.extend(found),
                    // That run says so to whoever asks for it.
                    Err(StoreError::Corrupt(why)) => tracing::error!(%why, "a run cannot be read"),
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(shifts)
}

fn of_run(view: &dyn View, tenant: TenantId, run: RunId) -> Result<Vec<Shift>, StoreError> {
    let key = run.log(tenant);
    let Some(row) = view.row(key)? else { return Ok(Vec::new()) };
    let record: Run = serde_json::from_slice(&row.view).map_err(|why| crate::run::corrupt(key, why))?;
    if record.task_counts.in_progress == 0 {
        return Ok(Vec::new());
    }
    let mut shifts = Vec::new();
    for (_, json) in parts(view, key, PartKind::Task)? {
        let task: Task = serde_json::from_slice(&json).map_err(|why| crate::run::corrupt(key, why))?;
        let holder = task.lease.as_ref().filter(|_| task.status == TaskStatus::InProgress);
        let worker = holder.and_then(|lease| lease.owner.parse::<Worker>().ok());
        if let Some(worker) = worker.filter(|worker| matches!(worker.by, WorkBy::Turn(_))) {
            shifts.push(Shift { tenant, run, task: task.id, worker });
        }
    }
    Ok(shifts)
}
