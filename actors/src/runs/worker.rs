//! The runtime's own workers: turns that claimed a task themselves, and jobs that have a turn for one.
//!
//! ```text
//!   claim ──▶ held ── heartbeats, while the work goes on ──▶ completed, failed, given back
//!               └── its process is lost: another one takes the lease over as it is, or it runs out ──▶ requeued
//! ```
//! A worker is known by its name, which nobody else can have, so it needs no token and goes on after a restart. A job
//! keeps its lease itself (`jobs/run`); that of a turn is kept here, until the turn has ended: what it has not completed
//! by then is given back.

use std::{sync::Arc, time::Duration};

use raddle_domain::{
    id::{RunId, TenantId, ThreadKey},
    ports::{PartKind, RecordKind, StoreError, View},
    run::{
        Run, Task, TaskStatus,
        command::{Action, Claim, Claimed, Command, Reply, Transition, WorkBy, Worker},
    },
};
use serde_json::Value;
use tokio::time::sleep;

use super::unexpected;
use crate::{
    handle::{Call, Done, Error, Runtime, WeakRuntime},
    run::parts,
    system::Shared,
};

/// How long a worker's lease lasts, and how often it is renewed.
const LEASE: Duration = Duration::from_secs(60);
pub(crate) const BEAT: Duration = Duration::from_secs(20);
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
            Self::Failed(why) => (Action::Fail, None, Some(why)),
            Self::Released => (Action::Release, None, None),
        };
        let blank = Transition::new(task_id, action);
        Transition { output, error, ..blank }
    }
}

fn lease_ms() -> Option<u64> {
    u64::try_from(LEASE.as_millis()).ok()
}

impl Shift {
    /// Renews the lease. Whether it is still held, as far as anybody knows.
    pub async fn beat(&self, runtime: &Runtime) -> bool {
        let beat = Transition { lease_ms: lease_ms(), ..Transition::new(self.task.clone(), Action::Heartbeat) };
        !matches!(self.say(runtime, beat, Call::default()).await, Err(Error::Run(_) | Error::NotFound(_)))
    }

    /// Says how the work ended. A lease that was lost meanwhile has nothing to say any more.
    pub async fn end(&self, runtime: &Runtime, end: WorkEnd) -> Result<(), Error> {
        let said = self.say(runtime, end.transition(self.task.clone()), Call::default());
        match said.await {
            Ok(_) | Err(Error::Run(_) | Error::NotFound(_)) => Ok(()),
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
        let command = Command::Work(worker, Claim { lease_ms: lease_ms(), ..claim });
        let expect = |reply| match reply {
            Reply::Claimed(claimed) => Ok(*claimed),
            other => Err(unexpected(&other)),
        };
        let mut claimed = self.run_verb(tenant, run, command, Call::default(), expect).await?.value;
        if let Some(task) = &mut claimed.task {
            // It has a name instead. One that it held already is kept already.
            let token = task.lease.as_mut().and_then(|lease| lease.token.take());
            if let (WorkBy::Turn(_), Some(_)) = (worker.by, token) {
                let shift = Shift { tenant, run, task: task.id.clone(), worker };
                self.shared().engines.spawn(keep(self.downgrade(), shift));
            }
        }
        Ok(claimed)
    }

    /// Takes back whatever a worker holds that is gone. A run that is gone too has nothing.
    pub(crate) async fn give_back(&self, tenant: TenantId, run: RunId, worker: Worker) -> Result<(), Error> {
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
}

/// Keeps the lease of a turn until the turn has ended, then gives back what it has not completed.
async fn keep(runtime: WeakRuntime, shift: Shift) {
    let WorkBy::Turn(turn) = shift.worker.by else { return };
    let thread = ThreadKey { tenant: shift.tenant, thread: shift.worker.thread };
    loop {
        let Ok(held) = runtime.get() else { return };
        let ended = match held.wait_turn(thread, turn, BEAT).await {
            Ok(turn) => turn.status.is_terminal(),
            Err(Error::NotFound(_) | Error::Deleted) => true,
            // The lease goes on with the turn, in the next process.
            Err(Error::Draining) => return,
            Err(_) => {
                sleep(AGAIN).await;
                false
            }
        };
        if ended {
            match held.give_back(shift.tenant, shift.run, shift.worker).await {
                Ok(()) | Err(Error::Draining) => return,
                Err(_) => sleep(AGAIN).await,
            }
        } else if !shift.beat(&held).await {
            return;
        }
    }
}

/// Finds the tasks that turns held in the process before this one, and keeps them.
pub(crate) async fn recover(shared: Arc<Shared>, runtime: WeakRuntime) {
    let store = shared.store.clone();
    let read = shared.engines.spawn_blocking(move || held_by_turns(&*store.view()?)).await;
    match read {
        Ok(Ok(shifts)) => {
            for shift in shifts {
                shared.engines.spawn(keep(runtime.clone(), shift));
            }
        }
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
