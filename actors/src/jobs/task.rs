//! A job that works on a task of a run: it claims one, has a turn for it, keeps the lease meanwhile, and says how it ended.
//!
//! The lease is the job's by its name and the number of its run, so another process that goes on with the run goes on with
//! the task. What the turn comes to is what the task comes to, and that is said once for each run: a process that finds
//! it said claims nothing any more. A task that was lost meanwhile ends the turn.

use raddle_domain::{
    id::{ThreadKey, TurnId},
    job::{Job, TaskWanted, Token, TurnWork, Verb, bounded},
    ports::JobEnd,
    run::{
        Task,
        command::{Claim, Claimed, WorkBy, Worker},
    },
};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::{
    Desk, book,
    run::{BUSY, End, call_off, came_to, follow, passes},
};
use crate::{
    disk,
    handle::{Call, Error},
    receipts::Idempotency,
    run::RunMachine,
    runs::{
        WorkEnd,
        worker::{Shift, beat},
    },
};

/// Follows the turn of a job's run, and the task that it is for, where there is one.
pub(super) async fn worked(desk: &Desk, job: &Job, work: &TurnWork, token: Token) -> Result<End, Error> {
    let Some(wanted) = &work.task else { return follow(desk, job, work, token).await };
    if is_said(desk, job).await? {
        return follow(desk, job, work, token).await;
    }
    let task = match claimed(desk, job, work, wanted).await? {
        Ok(task) => task,
        Err(end) => {
            // A turn that is under way is for the task that was lost.
            stop(desk).await?;
            return Ok(end);
        }
    };
    hold(desk, token, &task).await?;
    let shift = shift(desk, job, work, wanted, task.id.clone());
    let work = TurnWork { prompt: prompt(&work.prompt, &task), ..work.clone() };
    let for_the_task = Job { task_id: Some(task.id), ..job.clone() };
    let end = tokio::select! {
        end = follow(desk, &for_the_task, &work, token) => end?,
        () = lost(desk, &shift) => {
            stop(desk).await?;
            return Ok(End::Of(taken_away()));
        }
    };
    let said = match &end {
        End::Of(JobEnd::Done(output)) => WorkEnd::Done(Some(bounded(output.clone()))),
        End::Of(JobEnd::Failed { why, .. } | JobEnd::Unknown(why)) => WorkEnd::Failed(why.clone()),
        End::GivenUp(_) => WorkEnd::Released,
    };
    loop {
        match shift.end(&desk.runtime.get()?, said.clone(), idempotency(job)).await {
            Err(error) if passes(&error) => sleep(BUSY).await,
            Ok(false) if matches!(end, End::Of(JobEnd::Done(_))) => return Ok(End::Of(taken_away())),
            said => return said.map(|_| end),
        }
    }
}

/// What a turn came to for which there was no task any more came to nothing.
fn taken_away() -> JobEnd {
    JobEnd::Failed { why: "its task was taken away".to_owned(), again: false }
}

fn worker(job: &Job, work: &TurnWork) -> Worker {
    Worker { thread: work.thread_id, by: WorkBy::Job(job.id, job.run) }
}

fn shift(desk: &Desk, job: &Job, work: &TurnWork, wanted: &TaskWanted, task: String) -> Shift {
    Shift { tenant: desk.key.tenant, run: wanted.run_id, task, worker: worker(job, work) }
}

/// By what the word about the task of a job's run is known again.
fn idempotency(job: &Job) -> Call {
    let digest = |what: &str| -> [u8; 32] { Sha256::digest(format!("{what} {} {}", job.id, job.run)).into() };
    Call { idempotency: Some(Idempotency { key: digest("task of"), request: digest("its end") }), ..Call::default() }
}

/// Whether it was said what became of the task, by a process that could not note any more that the job is over.
async fn is_said(desk: &Desk, job: &Job) -> Result<bool, Error> {
    loop {
        let runtime = desk.runtime.get()?;
        match runtime.recall::<RunMachine>(desk.key.tenant, idempotency(job).idempotency).await {
            Ok(recalled) => return Ok(recalled.is_some()),
            Err(Error::Deleted) => return Ok(true),
            Err(error) if passes(&error) => sleep(BUSY).await,
            Err(error) => return Err(error),
        }
    }
}

async fn claimed(desk: &Desk, job: &Job, work: &TurnWork, wanted: &TaskWanted) -> Result<Result<Task, End>, Error> {
    let failed = |why: String, again| Ok(Err(End::Of(JobEnd::Failed { why, again })));
    let TaskWanted { run_id, task_id, task_type, workflow_id } = wanted.clone();
    let key = ThreadKey { tenant: desk.key.tenant, thread: work.thread_id };
    let read = book::read(&desk.shared, move |view| view.row(key)?.map(|row| disk::thread(key, &row)).transpose());
    // It may have been set to other work since the job was made.
    match read.await? {
        None => return failed("its thread is gone".to_owned(), false),
        Some(thread) if thread.run_id != Some(run_id) => {
            return failed("its thread works for another run, or for none".to_owned(), false);
        }
        Some(_) => {}
    }
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
        match book::update(&desk.shared, desk.key, verb, Call::default()).await {
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
        sleep(beat(&desk.shared)).await;
        // A process that goes down leaves the lease to the next one.
        let Ok(runtime) = desk.runtime.get() else { return std::future::pending().await };
        if !shift.beat(&runtime).await {
            return;
        }
    }
}

/// Ends whatever the run became, a turn or a prompt that waits: its task is somebody else's by now.
async fn stop(desk: &Desk) -> Result<(), Error> {
    let key = desk.key;
    loop {
        let Some(job) = book::read(&desk.shared, move |view| book::job(view, key)).await? else { return Ok(()) };
        match call_off(desk, &job).await {
            Err(error) if passes(&error) => sleep(BUSY).await,
            called_off => return called_off.map(drop),
        }
    }
}

/// Says what becomes of the task of a run that was stopped: it is given back, unless `completed`, its turn, was quicker.
pub(super) async fn settled(desk: &Desk, job: &Job, work: &TurnWork, completed: Option<TurnId>) -> Result<(), Error> {
    let Some(wanted) = &work.task else { return Ok(()) };
    let runtime = desk.runtime.get()?;
    match (completed, &job.task_id) {
        (Some(turn), Some(task)) => {
            let key = ThreadKey { tenant: desk.key.tenant, thread: work.thread_id };
            let output = book::read(&desk.shared, move |view| came_to(view, key, turn)).await?;
            let said = WorkEnd::Done(output.map(bounded));
            shift(desk, job, work, wanted, task.clone()).end(&runtime, said, idempotency(job)).await.map(drop)
        }
        _ => runtime.give_back(desk.key.tenant, wanted.run_id, worker(job, work)).await,
    }
}
