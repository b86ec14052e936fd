//! What hosts ask of jobs and schedules.

use std::sync::Arc;

use raddle_domain::{
    id::{JobId, ScheduleId, TenantId, ThreadKey},
    job::{Job, JobRefused, JobStatus, Template, Verb, Work},
    ports::{JobDenied, Receipt, RecordKind, StoreError, View, Write, WriteRefused},
    schedule::{self, NewSchedule, Schedule, ScheduleEvent, SchedulePatch},
    time::UnixMs,
};
use uuid::Uuid;

use super::{Look, book, run};
use crate::{
    batch::Batch,
    handle::{Call, Done, Error, Runtime, append_error},
    reads::Page,
    receipts::Idempotency,
    store::AppendError,
};

/// Which jobs to list; oldest first.
#[derive(Debug, Clone, Default)]
pub struct JobQuery {
    pub status: Option<JobStatus>,
    pub after: Option<Uuid>,
    pub limit: usize,
}

/// The record in an event of a job's log, or of a schedule's.
fn of_receipt(view: &dyn View, tenant: TenantId, receipt: &Receipt) -> Result<Option<Recalled>, StoreError> {
    let broken =
        |why: String| StoreError::from(raddle_domain::ports::Corrupt { record: format!("a receipt of {tenant}"), why });
    let stub: book::Stub = serde_json::from_slice(&receipt.reply).map_err(|why| broken(why.to_string()))?;
    let key = match (stub.job, stub.schedule) {
        (Some(job), _) => job.log(tenant),
        (_, Some(schedule)) => schedule.log(tenant),
        (None, None) => return Err(broken("it names nothing".to_owned())),
    };
    let Some(stored) = view.event(key, stub.event)? else { return Ok(None) };
    let read = match stub.job {
        Some(_) => serde_json::from_slice(&stored.json).map(|record| Recalled::Job(Box::new(Job::apply(record)))),
        None => serde_json::from_slice::<schedule::Record>(&stored.json)
            .map(|record| Recalled::Schedule(record.payload.schedule)),
    };
    read.map(Some).map_err(|why| broken(why.to_string()))
}

enum Recalled {
    Job(Box<Job>),
    Schedule(Box<Schedule>),
}

impl Recalled {
    fn job(self) -> Result<Done<Job>, Error> {
        match self {
            Self::Job(job) => Ok(Done { seq: job.seq, value: *job, replayed: true }),
            Self::Schedule(_) => Err(Error::Internal("a receipt leads to a schedule".to_owned())),
        }
    }

    fn schedule(self) -> Result<Done<Schedule>, Error> {
        match self {
            Self::Schedule(schedule) => Ok(Done { seq: schedule.seq, value: *schedule, replayed: true }),
            Self::Job(_) => Err(Error::Internal("a receipt leads to a job".to_owned())),
        }
    }
}

impl Runtime {
    // ---- jobs ------------------------------------------------------------------------------------

    /// Makes a job, which is begun when it is due and there is a place.
    pub async fn create_job(
        &self,
        tenant: TenantId,
        template: Template,
        run_at: Option<UnixMs>,
        call: Call,
    ) -> Result<Done<Job>, Error> {
        let place = self.admit(tenant)?;
        let in_flight = self.in_flight(tenant, call.idempotency)?;
        if let Some(recalled) = self.recall_work(tenant, call.idempotency).await? {
            return recalled.job();
        }
        let coming = self.room_to_store(tenant, 0).await?;
        let shared = self.shared().clone();
        let id = JobId::new(shared.ids.mint());
        let template = self.judged(tenant, id, template).await?;
        let now = shared.clock.now();
        let job = book::make(id, template, run_at, now)?;
        let receipt =
            call.idempotency.map(|known| book::Stub { event: 1, job: Some(id), schedule: None }.receipt(known, now));
        let made = job.clone();
        // In a task of its own, so that it is stored, or not, whoever still waits.
        let saved = shared.tasks.clone().spawn(async move {
            let saved = book::create(&shared, id.log(tenant), &made, vec![book::queued(&made)], now, receipt).await;
            drop((place, coming, in_flight));
            saved
        });
        match joined(saved.await)? {
            Ok(_) => Ok(Done { seq: job.seq, value: job, replayed: false }),
            Err(AppendError::Refused(WriteRefused::Repeated)) => self.repeated(tenant, call.idempotency).await?.job(),
            Err(error) => Err(append_error(error)),
        }
    }

    /// The template with what was said when it was judged.
    async fn judged(&self, tenant: TenantId, id: JobId, template: Template) -> Result<Template, Error> {
        template.check()?;
        let (key, work, now) = (id.log(tenant), template.work.clone(), self.shared().clock.now());
        let run = self.read_of(tenant, move |view| run::run_of(view, key, id, 1, &work, now)).await?;
        let invalid = |field, why: String| Err(JobRefused::Invalid { field, why }.into());
        if template.work.thread().is_some() && run.thread.is_none() {
            return invalid("payload.thread_id", "names no thread".to_owned());
        }
        if let Work::Turn(turn) = &template.work {
            if let Some(Err(unknown)) = turn.model.as_deref().map(|model| self.models().resolve(None, Some(model))) {
                return invalid("payload.model", unknown.0);
            }
            if let Some(wanted) = &turn.task {
                // What its tools do is to stand in the ledger of the run that the task is of.
                if run.thread.is_some_and(|thread| thread.run_id != Some(wanted.run_id)) {
                    return invalid("payload.task.run_id", "is not the run that the thread works for".to_owned());
                }
                if let Err(Error::NotFound(_)) = self.run(tenant, wanted.run_id).await {
                    return invalid("payload.task.run_id", "names no run".to_owned());
                }
            }
            return Ok(template);
        }
        match self.shared().runner.judge(&run) {
            Ok(note) => Ok(Template { note, ..template }),
            Err(JobDenied::Invalid { field, why }) => invalid(field, why),
            Err(JobDenied::Forbidden { reason, rule }) => Err(JobRefused::Forbidden { reason, rule }.into()),
        }
    }

    async fn recall_work(&self, tenant: TenantId, call: Option<Idempotency>) -> Result<Option<Recalled>, Error> {
        self.recall_as(tenant, call, move |view, receipt| of_receipt(view, tenant, receipt)).await
    }

    async fn repeated(&self, tenant: TenantId, call: Option<Idempotency>) -> Result<Recalled, Error> {
        self.recall_work(tenant, call).await?.ok_or(Error::InFlight)
    }

    /// A job as it is.
    pub async fn job(&self, tenant: TenantId, job: JobId) -> Result<Job, Error> {
        let found = self.read_of(tenant, move |view| book::job(view, job.log(tenant))).await?;
        // Names that differ in the version alone have one log.
        found.filter(|found| found.id == job).ok_or(Error::NotFound("job"))
    }

    /// Jobs of a tenant, oldest first; the cursor is the last one's id. One that cannot be read is passed over.
    pub async fn jobs(&self, tenant: TenantId, query: JobQuery) -> Result<Page<Job, Uuid>, Error> {
        let open = query.status.is_some_and(|status| !status.is_over());
        let read = move |view: &dyn View| {
            let page = page(view, tenant, RecordKind::Job, (open, query.after, query.limit), |view, id| {
                book::job(view, JobId::new(id).log(tenant))
            })?;
            let wanted = |job: &Job| query.status.is_none_or(|status| job.status == status);
            Ok(Page { data: page.data.into_iter().filter(wanted).collect(), next: page.next })
        };
        self.read_of(tenant, read).await
    }

    pub async fn pause_job(&self, tenant: TenantId, job: JobId, call: Call) -> Result<Done<Job>, Error> {
        self.job_verb(tenant, job, Verb::Pause, call).await
    }

    pub async fn resume_job(&self, tenant: TenantId, job: JobId, call: Call) -> Result<Done<Job>, Error> {
        self.job_verb(tenant, job, Verb::Resume, call).await
    }

    /// Ends a job, whatever it is doing.
    pub async fn cancel_job(&self, tenant: TenantId, job: JobId, call: Call) -> Result<Done<Job>, Error> {
        self.job_verb(tenant, job, Verb::Cancel, call).await
    }

    /// Has a job done again, or at once if it waits for its retry.
    pub async fn retry_job(&self, tenant: TenantId, job: JobId, call: Call) -> Result<Done<Job>, Error> {
        self.job_verb(tenant, job, Verb::Retry, call).await
    }

    async fn job_verb(&self, tenant: TenantId, job: JobId, verb: Verb, call: Call) -> Result<Done<Job>, Error> {
        let place = match verb {
            // Ends work, and is refused all the same while the server goes down.
            Verb::Cancel | Verb::Pause if !self.shared().draining() => self.admit_to_end_work(tenant)?,
            _ => self.admit(tenant)?,
        };
        let in_flight = self.in_flight(tenant, call.idempotency)?;
        if let Some(recalled) = self.recall_work(tenant, call.idempotency).await? {
            return recalled.job();
        }
        self.job(tenant, job).await?;
        let known = call.idempotency;
        let shared = self.shared().clone();
        let done = shared.tasks.clone().spawn(async move {
            let done = book::update(&shared, job.log(tenant), verb, call).await;
            drop((place, in_flight));
            done
        });
        match joined(done.await)? {
            Ok(job) => Ok(Done { seq: job.seq, value: job, replayed: false }),
            // What is refused may be so because of its own first try, which nobody could see before.
            Err(refused @ (Error::Job(_) | Error::InFlight)) => match self.recall_work(tenant, known).await? {
                Some(recalled) => recalled.job(),
                None => Err(refused),
            },
            Err(error) => Err(error),
        }
    }

    // ---- schedules -------------------------------------------------------------------------------

    /// Makes a schedule.
    pub async fn create_schedule(
        &self,
        tenant: TenantId,
        new: NewSchedule,
        call: Call,
    ) -> Result<Done<Schedule>, Error> {
        let place = self.admit(tenant)?;
        let in_flight = self.in_flight(tenant, call.idempotency)?;
        if let Some(recalled) = self.recall_work(tenant, call.idempotency).await? {
            return recalled.schedule();
        }
        let coming = self.room_to_store(tenant, 0).await?;
        let shared = self.shared().clone();
        let (id, now) = (ScheduleId::new(shared.ids.mint()), shared.clock.now());
        let schedule = Schedule::create(id, new, now)?;
        let job = self.judged(tenant, JobId::of_slot(id, now), schedule.job.clone()).await?;
        let schedule = Schedule { job, ..schedule };
        let write = self.schedule_write(tenant, &schedule, 0, ScheduleEvent::Created, now, call.idempotency);
        let store = shared.store_handle.clone();
        let saved = shared.tasks.clone().spawn(async move {
            let saved = store.append(write).await;
            drop((place, coming, in_flight));
            saved
        });
        match joined(saved.await)? {
            Ok(()) => {
                shared.jobs.do_send(Look);
                Ok(Done { seq: schedule.seq, value: schedule, replayed: false })
            }
            Err(AppendError::Refused(WriteRefused::Repeated)) => {
                self.repeated(tenant, call.idempotency).await?.schedule()
            }
            Err(error) => Err(append_error(error)),
        }
    }

    /// What saves an event of a schedule.
    fn schedule_write(
        &self,
        tenant: TenantId,
        schedule: &Schedule,
        expected: u64,
        event: ScheduleEvent,
        now: UnixMs,
        call: Option<Idempotency>,
    ) -> Write {
        let shared = self.shared();
        let record = schedule::Record::new(schedule, event, schedule.seq, now);
        let events = vec![book::stored(event.name(), &record)];
        let head = schedule.head(shared.store.epoch());
        let key = schedule.id.log(tenant);
        let mut append = book::append(key, expected, now, (head, schedule), events, schedule.indexed());
        append.receipts.extend(call.map(|known| {
            book::Stub { event: schedule.seq, job: None, schedule: Some(schedule.id) }.receipt(known, now)
        }));
        Write::Append(append)
    }

    pub async fn schedule(&self, tenant: TenantId, schedule: ScheduleId) -> Result<Schedule, Error> {
        let found = self.read_of(tenant, move |view| book::schedule(view, schedule.log(tenant))).await?;
        found.filter(|found| found.id == schedule).ok_or(Error::NotFound("schedule"))
    }

    /// Schedules of a tenant, oldest first; the cursor is the last one's id.
    pub async fn schedules(
        &self,
        tenant: TenantId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Page<Schedule, Uuid>, Error> {
        let read = move |view: &dyn View| {
            page(view, tenant, RecordKind::Schedule, (false, after, limit), |view, id| {
                book::schedule(view, ScheduleId::new(id).log(tenant))
            })
        };
        self.read_of(tenant, read).await
    }

    /// Changes a schedule.
    pub async fn patch_schedule(
        &self,
        tenant: TenantId,
        id: ScheduleId,
        patch: SchedulePatch,
        call: Call,
    ) -> Result<Done<Schedule>, Error> {
        let _place = self.admit(tenant)?;
        loop {
            let was = self.schedule(tenant, id).await?;
            if let Some(expected) = call.if_match
                && expected != was.seq
            {
                return Err(JobRefused::Precondition { expected, head: was.seq }.into());
            }
            let now = self.shared().clock.now();
            let mut schedule = was.patched(patch.clone(), now)?;
            if patch.job.is_some() {
                schedule.job = self.judged(tenant, JobId::of_slot(id, now), schedule.job).await?;
            }
            let write = self.schedule_write(tenant, &schedule, was.seq, ScheduleEvent::Updated, now, None);
            match self.shared().store_handle.append(write).await {
                Ok(()) => {
                    self.shared().jobs.do_send(Look);
                    return Ok(Done { seq: schedule.seq, value: schedule, replayed: false });
                }
                // A slot came between.
                Err(AppendError::Refused(WriteRefused::Conflict { .. })) => {}
                Err(error) => return Err(append_error(error)),
            }
        }
    }

    /// Removes a schedule. The jobs that it made stay.
    pub async fn delete_schedule(&self, tenant: TenantId, id: ScheduleId, call: Call) -> Result<(), Error> {
        let _place = self.admit(tenant)?;
        let (shared, key) = (self.shared(), id.log(tenant));
        loop {
            let was = match self.schedule(tenant, id).await {
                Err(Error::ThreadUnavailable(_)) => return self.purge_work(key).await,
                found => found?,
            };
            if let Some(expected) = call.if_match
                && expected != was.seq
            {
                return Err(JobRefused::Precondition { expected, head: was.seq }.into());
            }
            let write = Write::Erase { key, fence: shared.store.epoch(), expected: was.seq };
            match shared.store_handle.append(write).await {
                Ok(()) => {
                    // The last word: published, not kept, as that of a thread.
                    let mut last = was;
                    last.seq += 1;
                    let record = schedule::Record::new(&last, ScheduleEvent::Deleted, last.seq, shared.clock.now());
                    let event = book::stored(ScheduleEvent::Deleted.name(), &record);
                    let chunk = raddle_domain::ports::Chunk { first: last.seq, events: vec![event] };
                    shared.inlet.publish(&shared.bus, vec![Arc::new(Batch::new(key, chunk, 0))]);
                    return Ok(());
                }
                Err(AppendError::Refused(WriteRefused::Conflict { .. })) => {}
                Err(error) => return Err(append_error(error)),
            }
        }
    }

    /// Removes what there is of a log whose row cannot be read.
    async fn purge_work(&self, key: ThreadKey) -> Result<(), Error> {
        tracing::warn!(%key, "a damaged schedule is removed");
        self.shared().store_handle.append(Write::Purge { key }).await.map_err(append_error)
    }
}

fn joined<T>(joined: Result<T, tokio::task::JoinError>) -> Result<T, Error> {
    joined.map_err(|why| if why.is_cancelled() { Error::Draining } else { Error::Internal(why.to_string()) })
}

/// A page of what the index of records finds.
fn page<T>(
    view: &dyn View,
    tenant: TenantId,
    kind: RecordKind,
    (open, after, limit): (bool, Option<Uuid>, usize),
    read: impl Fn(&dyn View, Uuid) -> Result<Option<T>, StoreError>,
) -> Result<Page<T, Uuid>, StoreError> {
    let mut found = view.records(tenant, kind, None, open, after, limit.saturating_add(1))?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|last| last.id).filter(|_| more);
    let mut data = Vec::with_capacity(found.len());
    for found in found {
        match read(view, found.id) {
            Ok(record) => data.extend(record),
            // One damaged record may not keep people from all the others of the tenant.
            Err(StoreError::Corrupt(corrupt)) => tracing::error!(%corrupt, "a record is passed over in a list"),
            Err(other) => return Err(other),
        }
    }
    Ok(Page { data, next })
}
