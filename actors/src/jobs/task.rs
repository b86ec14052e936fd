//! A job that works on a task of a run: it claims one, has a turn for it, keeps the lease meanwhile, and says how it ended.
//!
//! The lease is the job's by its name and the number of its run, so another process that goes on with the run goes on with
//! the task. What the turn comes to is what the task comes to; a task that was lost meanwhile ends the turn.

use raddle_domain::{
    command::Interrupt,
    id::{TenantId, ThreadKey},
    job::{Job, TaskWanted, Token, TurnWork, Verb},
    ports::JobEnd,
    run::{
        Task,
        command::{Claim, Claimed, WorkBy, Worker},
    },
};
use tokio::time::sleep;

use super::{
    Desk,
    run::{BUSY, End, follow, passes},
};
use crate::{
    handle::{Call, Error, Runtime},
    runs::{
        WorkEnd,
        worker::{BEAT, Shift},
    },
};

/// Follows the turn of a job's run, and the task that it is for, where there is one.
pub(super) async fn worked(desk: &Desk, job: &Job, work: &TurnWork, token: Token) -> Result<End, Error> {
    let Some(wanted) = &work.task else { return follow(desk, job, work, token).await };
    let task = match claimed(desk, job, work, wanted).await? {
        Ok(task) => task,
        Err(end) => {
            // A turn that is under way is for the task that was lost.
            stop(desk, work).await;
            return Ok(end);
        }
    };
    hold(desk, token, &task).await?;
    let shift = Shift { tenant: desk.key.tenant, run: wanted.run_id, task: task.id.clone(), worker: worker(job, work) };
    let work = TurnWork { prompt: prompt(&work.prompt, &task), ..work.clone() };
    let end = tokio::select! {
        end = follow(desk, job, &work, token) => end?,
        () = lost(desk, &shift) => {
            stop(desk, &work).await;
            return Ok(End::Of(JobEnd::Failed { why: "its task was taken away".to_owned(), again: false }));
        }
    };
    let said = match &end {
        End::Of(JobEnd::Done(output)) => WorkEnd::Done(Some(output.clone())),
        End::Of(JobEnd::Failed { why, .. } | JobEnd::Unknown(why)) => WorkEnd::Failed(why.clone()),
        End::GivenUp(_) => WorkEnd::Released,
    };
    loop {
        match shift.end(&desk.runtime.get()?, said.clone()).await {
            Err(error) if passes(&error) => sleep(BUSY).await,
            said => return said.map(|()| end),
        }
    }
}

fn worker(job: &Job, work: &TurnWork) -> Worker {
    Worker { thread: work.thread_id, by: WorkBy::Job(job.id, job.run) }
}

async fn claimed(desk: &Desk, job: &Job, work: &TurnWork, wanted: &TaskWanted) -> Result<Result<Task, End>, Error> {
    let failed = |why: String, again| Ok(Err(End::Of(JobEnd::Failed { why, again })));
    let TaskWanted { run_id, task_id, task_type, workflow_id } = wanted.clone();
    // A run that goes on in another process goes on with its own task, or with none.
    let task_id = job.task_id.clone().or(task_id);
    let claim = Claim { task_id, task_type, workflow_id, ..Claim::default() };
    loop {
        let runtime = desk.runtime.get()?;
        match runtime.work(desk.key.tenant, run_id, worker(job, work), claim.clone()).await {
            Ok(Claimed { task: Some(task), .. }) => return Ok(Ok(task)),
            Ok(Claimed { why, .. }) => return failed(why.unwrap_or_default(), true),
            Err(Error::Draining) => return Err(Error::Draining),
            Err(error) if passes(&error) => sleep(BUSY).await,
            Err(error) => return failed(format!("its task: {error}"), false),
        }
    }
}

/// Puts on record which task the run works on, before there is a turn for it.
async fn hold(desk: &Desk, token: Token, task: &Task) -> Result<(), Error> {
    loop {
        let verb = Verb::Hold { token, task: task.id.clone() };
        match super::book::update(&desk.shared, desk.key, verb, Call::default()).await {
            Err(error) if passes(&error) => sleep(BUSY).await,
            held => return held.map(drop),
        }
    }
}

/// The prompt of a turn that is for a task.
fn prompt(prompt: &str, task: &Task) -> String {
    let payload = serde_json::to_string_pretty(&task.payload).unwrap_or_default();
    format!("{prompt}\n\nTask `{}` ({}):\n{payload}", task.id, task.task_type)
}

/// Ready when the lease is lost.
async fn lost(desk: &Desk, shift: &Shift) {
    loop {
        sleep(BEAT).await;
        // A process that goes down leaves the lease to the next one.
        let Ok(runtime) = desk.runtime.get() else { return std::future::pending().await };
        if !shift.beat(&runtime).await {
            return;
        }
    }
}

/// Ends the turn of a run whose task is somebody else's by now.
async fn stop(desk: &Desk, work: &TurnWork) {
    let key = ThreadKey { tenant: desk.key.tenant, thread: work.thread_id };
    let (shared, id) = (&desk.shared, desk.key);
    let job = super::book::read(shared, move |view| super::book::job(view, id)).await.ok().flatten();
    let Some(turn) = job.and_then(|job| job.turn_id) else { return };
    if let Ok(runtime) = desk.runtime.get() {
        // One that has ended meanwhile has ended.
        drop(runtime.interrupt(key, Interrupt { turn, pause_queue: false }, Call::default()).await);
    }
}

/// Gives back the task of a run that was stopped.
pub(super) async fn given_back(runtime: &Runtime, tenant: TenantId, job: &Job, work: &TurnWork) -> Result<(), Error> {
    match &work.task {
        Some(wanted) => runtime.give_back(tenant, wanted.run_id, worker(job, work)).await,
        None => Ok(()),
    }
}
