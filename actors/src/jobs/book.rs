//! Jobs and schedules as they are stored: read, changed by one append, found.

use std::sync::Arc;

use raddle_domain::{
    id::{JobId, Seq, ThreadKey},
    job::{self, Job, JobEvent, JobStatus, Step, Template, Verb},
    ports::{
        Append, Chunk, Corrupt, Indexed, LogKind, OwingPlace, Receipt, RowHead, StoreError, StoredEvent, ThreadRow,
        View, Write, WriteRefused,
    },
    schedule::Schedule,
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{Look, Stop, Tend};
use crate::{
    disk,
    handle::{Error, append_error},
    receipts::Idempotency,
    store::AppendError,
    system::Shared,
};

/// Tries to change what somebody else changes too. In this process nobody does, for a lock is held.
const TRIES: usize = 4;
/// What was under way, read at a time.
const PAGE: usize = 256;

/// Writers of one job wait for each other; which of them stand in a row is decided by the job's name.
pub(crate) struct Locks([Mutex<()>; 64]);

impl Default for Locks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }
}

impl Locks {
    fn of(&self, key: ThreadKey) -> &Mutex<()> {
        &self.0[usize::from(key.thread.as_bytes()[15]) % self.0.len()]
    }
}

/// A log as it stands.
pub(super) enum Found {
    Job(Box<Job>),
    Schedule(Box<Schedule>),
}

fn corrupt(key: ThreadKey, why: impl ToString) -> StoreError {
    Corrupt { record: format!("the job or schedule {key}"), why: why.to_string() }.into()
}

/// Reads a log of a job or a schedule.
pub(super) fn found(view: &dyn View, key: ThreadKey) -> Result<Option<Found>, StoreError> {
    let Some(row) = view.row(key)? else { return Ok(None) };
    Ok(Some(match row.head.kind {
        LogKind::Job => Found::Job(serde_json::from_slice(&row.view).map_err(|why| corrupt(key, why))?),
        LogKind::Schedule => Found::Schedule(serde_json::from_slice(&row.view).map_err(|why| corrupt(key, why))?),
        LogKind::Thread | LogKind::Run => return Err(corrupt(key, "it is the log of something else")),
    }))
}

pub(super) fn job(view: &dyn View, key: ThreadKey) -> Result<Option<Job>, StoreError> {
    match found(view, key)? {
        Some(Found::Job(job)) => Ok(Some(*job)),
        Some(Found::Schedule(_)) => Err(corrupt(key, "it is the log of a schedule")),
        None => Ok(None),
    }
}

pub(super) fn schedule(view: &dyn View, key: ThreadKey) -> Result<Option<Schedule>, StoreError> {
    match found(view, key)? {
        Some(Found::Schedule(schedule)) => Ok(Some(*schedule)),
        Some(Found::Job(_)) => Err(corrupt(key, "it is the log of a job")),
        None => Ok(None),
    }
}

/// Reads from a view, off the async threads.
pub(super) async fn read<T: Send + 'static>(
    shared: &Arc<Shared>,
    read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Error> {
    let store = shared.store.clone();
    match shared.tasks.blocking(move || read(&*store.view()?)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(StoreError::Corrupt(corrupt))) => Err(Error::ThreadUnavailable(corrupt.to_string())),
        Ok(Err(error)) => Err(error.into()),
        Err(why) if why.is_cancelled() => Err(Error::Draining),
        Err(why) => Err(Error::Internal(why.to_string())),
    }
}

/// What a receipt of a job or of a schedule holds: the event that has the reply.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stub {
    pub event: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<raddle_domain::id::ScheduleId>,
}

impl Stub {
    pub fn receipt(&self, known: Idempotency, now: UnixMs) -> Receipt {
        Receipt {
            key: known.key,
            request: known.request,
            reply: disk::json(self),
            expires_at: now.after(crate::receipts::LIFE),
        }
    }
}

/// An append to the log of a job or schedule.
pub(super) fn append(
    key: ThreadKey,
    expected: Seq,
    now: UnixMs,
    (head, record): (RowHead, &impl Serialize),
    events: Vec<StoredEvent>,
    indexed: Indexed,
) -> Append {
    let row = ThreadRow { head, view: disk::json(record).into(), snapshot: Arc::from(&b""[..]) };
    let indexed = if events.is_empty() { Vec::new() } else { vec![indexed] };
    Append { indexed, ..Append::new(key, expected, now, Chunk { first: expected + 1, events }, row) }
}

pub(super) fn stored(name: &'static str, record: &impl Serialize) -> StoredEvent {
    StoredEvent { name: name.into(), json: disk::json(record).into() }
}

pub(super) fn retention(shared: &Shared) -> u64 {
    u64::try_from(shared.config.jobs_retention.as_millis()).unwrap_or(u64::MAX)
}

/// Changes a job: reads it, has its machine judge the verb, saves the step.
pub(super) async fn update(
    shared: &Arc<Shared>,
    key: ThreadKey,
    verb: Verb,
    call: crate::handle::Call,
) -> Result<Job, Error> {
    let _turn = shared.job_locks.of(key).lock().await;
    for _ in 0..TRIES {
        let job = read(shared, move |view| job(view, key)).await?.ok_or(Error::NotFound("job"))?;
        if let Some(expected) = call.if_match
            && expected != job.seq
        {
            return Err(job::JobRefused::Precondition { expected, head: job.seq }.into());
        }
        let now = shared.clock.now();
        let step = job.step(verb.clone(), now)?;
        if step.event.is_none() && step.job == job {
            return Ok(step.job);
        }
        let receipt = call
            .idempotency
            .map(|known| Stub { event: step.job.seq, job: Some(step.job.id), schedule: None }.receipt(known, now));
        match save(shared, key, job.seq, &step, now, receipt).await {
            Ok(()) => {
                after(shared, key, &job, &step);
                return Ok(step.job);
            }
            Err(AppendError::Refused(WriteRefused::Conflict { .. })) => {}
            // Its first try was stored, and whoever asks can find the answer.
            Err(AppendError::Refused(WriteRefused::Repeated)) => return Err(Error::InFlight),
            Err(error) => return Err(append_error(error)),
        }
    }
    Err(StoreError::Unavailable("the job is changed by somebody else all the time".to_owned()).into())
}

async fn save(
    shared: &Arc<Shared>,
    key: ThreadKey,
    expected: Seq,
    Step { job, event }: &Step,
    now: UnixMs,
    receipt: Option<Receipt>,
) -> Result<(), AppendError> {
    let events = event.map(|event| stored(event.name(), &job::Record::new(job, event)));
    let head = job.head(shared.store.epoch(), retention(shared));
    let append = append(key, expected, now, (head, job), events.into_iter().collect(), job.indexed());
    let append = Append { receipts: receipt.into_iter().collect(), ..append };
    shared.store_handle.append(Write::Append(append)).await
}

/// What follows from a step that is saved.
fn after(shared: &Shared, key: ThreadKey, before: &Job, Step { job, event }: &Step) {
    if let Some(event) = event {
        shared.registry.counters.jobs.note(*event);
    }
    let ran = before.status == JobStatus::Running;
    let reported = matches!(
        event,
        Some(JobEvent::Completed | JobEvent::Failed | JobEvent::Retrying | JobEvent::Uncertain | JobEvent::Progress)
    );
    if ran && job.status != JobStatus::Running && !reported {
        // Somebody else than the run has ended it.
        shared.jobs.do_send(Stop(key));
    } else if job.stopping && !before.stopping {
        // Nobody runs it, but the turn of a run that was lost goes on; while it is to be told the row has no time.
        shared.jobs.do_send(Tend(key));
    } else if job.status == JobStatus::Queued {
        shared.jobs.do_send(Look);
    }
    if job.status.is_over()
        && !before.status.is_over()
        && let Some(schedule) = job.schedule_id
    {
        // A slot may wait for it.
        shared.jobs.do_send(Tend(schedule.log(key.tenant)));
    }
}

/// Stores a job that nobody knows yet. Whether it is new: one with the same name may have been made before.
pub(super) async fn create(
    shared: &Arc<Shared>,
    key: ThreadKey,
    job: &Job,
    events: Vec<StoredEvent>,
    now: UnixMs,
    receipt: Option<Receipt>,
) -> Result<bool, AppendError> {
    let head = job.head(shared.store.epoch(), retention(shared));
    let append = append(key, 0, now, (head, job), events, job.indexed());
    let append = Append { receipts: receipt.into_iter().collect(), ..append };
    match shared.store_handle.append(Write::Append(append)).await {
        Ok(()) => {
            shared.registry.counters.jobs.made();
            shared.jobs.do_send(Look);
            Ok(true)
        }
        Err(AppendError::Refused(WriteRefused::Conflict { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first event of a job.
pub(super) fn queued(job: &Job) -> StoredEvent {
    stored(JobEvent::Queued.name(), &job::Record::new(job, JobEvent::Queued))
}

/// A job of a template.
pub(super) fn make(id: JobId, template: Template, run_at: Option<UnixMs>, now: UnixMs) -> Result<Job, Error> {
    Ok(Job::create(id, template, run_at, now)?.job)
}

/// Removes a job that ended long ago.
pub(super) async fn erase(shared: &Arc<Shared>, key: ThreadKey, expected: Seq) -> Result<(), Error> {
    let _turn = shared.job_locks.of(key).lock().await;
    let write = Write::Erase { key, fence: shared.store.epoch(), expected };
    match shared.store_handle.append(write).await {
        // It was queued again meanwhile.
        Ok(()) | Err(AppendError::Refused(WriteRefused::Conflict { .. })) => Ok(()),
        Err(error) => Err(append_error(error)),
    }
}

/// Takes from the processes before this one what they had under way. Returns what else has to be tended.
pub(super) async fn recover(shared: Arc<Shared>) -> Result<Vec<ThreadKey>, Error> {
    let owner = shared.store.epoch();
    let mut cursor: Option<OwingPlace> = None;
    let mut left = Vec::new();
    loop {
        let places = read(&shared, move |view| view.owing_jobs(cursor, PAGE)).await?;
        let Some(last) = places.last() else { return Ok(left) };
        cursor = Some(*last);
        let keys = places.iter().map(|place| ThreadKey { tenant: place.tenant, thread: place.thread });
        let lost = keys.map(|key| {
            let shared = shared.clone();
            async move { (key, lose(&shared, key, owner).await) }
        });
        for (key, lost) in futures_util::future::join_all(lost).await {
            match lost {
                Ok(tended) => left.extend(Some(key).filter(|_| tended)),
                Err(Error::ThreadUnavailable(why)) => tracing::error!(%key, why, "a job cannot be read; it is left"),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Of those that this process works on, what somebody has cancelled or paused: a word that was stored although its commit
/// failed has told nobody. One that is just being begun is left alone, or it would be begun and run by nobody.
pub(super) async fn taken(shared: &Arc<Shared>, working: Vec<ThreadKey>) -> Result<Vec<ThreadKey>, Error> {
    let is_taken = |view: &dyn View, key| match job(view, key) {
        Ok(Some(job)) => job.stopping || matches!(job.status, JobStatus::Cancelled | JobStatus::Paused),
        // What is no job, or cannot be read, its own work finds out.
        _ => false,
    };
    read(shared, move |view| Ok(working.into_iter().filter(|key| is_taken(view, *key)).collect())).await
}

/// Whether something is left to be done about it.
async fn lose(shared: &Arc<Shared>, key: ThreadKey, owner: u64) -> Result<bool, Error> {
    match read(shared, move |view| found(view, key)).await? {
        Some(Found::Job(job)) if job.status == JobStatus::Running => {
            match update(shared, key, Verb::Lose { owner }, crate::handle::Call::default()).await {
                Ok(_) | Err(Error::Job(_) | Error::NotFound(_)) => Ok(false),
                Err(error) => Err(error),
            }
        }
        found => Ok(found.is_some()),
    }
}
