//! Slots of a schedule: a job for each that has come, made before the schedule says so.
//!
//! A slot's job has a name that follows from the slot, and its log begins with `schedule.fired`. So if the process
//! is lost between the two appends, the same slots come again, find their jobs, and nothing is done twice.

use std::sync::atomic::Ordering::Relaxed;

use raddle_domain::{
    id::{JobId, TenantId},
    job::{self, JobEvent, Verb},
    ports::{StoredEvent, Write, WriteRefused},
    schedule::{Overlap, Record, Schedule, ScheduleEvent, ScheduleStatus, Skipped},
    time::UnixMs,
};

use super::{Desk, book};
use crate::{
    handle::{Call, Error, append_error},
    store::AppendError,
};

/// Does what the slots that have come demand, and moves behind them.
pub(super) async fn tick(desk: &Desk) -> Result<(), Error> {
    let (shared, key) = (&desk.shared, desk.key);
    loop {
        let Some(was) = book::read(shared, move |view| book::schedule(view, key)).await? else { return Ok(()) };
        let now = shared.clock.now();
        if was.status != ScheduleStatus::Active {
            return Ok(());
        }
        let plan = was.plan(now)?;
        let mut ticking = Ticking { desk, now, schedule: was.clone(), events: Vec::new() };
        if plan.missed > 0 {
            ticking.skip(None, Skipped::Missed, plan.missed);
        }
        let waiting = std::mem::take(&mut ticking.schedule.waiting);
        for slot in waiting.into_iter().chain(plan.fire) {
            ticking.slot(slot).await?;
        }
        let Ticking { mut schedule, events, .. } = ticking;
        schedule.advance(plan.next);
        if schedule == was {
            return Ok(());
        }
        let head = schedule.head(shared.store.epoch());
        let append = book::append(key, was.seq, now, (head, &schedule), events, schedule.indexed());
        match shared.store_handle.append(Write::Append(append)).await {
            Ok(()) => {
                let counters = &shared.registry.counters.jobs;
                counters.fired.fetch_add(schedule.fired - was.fired, Relaxed);
                counters.skipped.fetch_add(schedule.skipped - was.skipped, Relaxed);
                return Ok(());
            }
            // It was changed meanwhile: the slots are found again, and their jobs.
            Err(AppendError::Refused(WriteRefused::Conflict { .. })) => {}
            Err(error) => return Err(append_error(error)),
        }
    }
}

struct Ticking<'d> {
    desk: &'d Desk,
    now: UnixMs,
    schedule: Schedule,
    events: Vec<StoredEvent>,
}

impl Ticking<'_> {
    fn tenant(&self) -> TenantId {
        self.desk.key.tenant
    }

    async fn slot(&mut self, slot: UnixMs) -> Result<(), Error> {
        let id = JobId::of_slot(self.schedule.id, slot);
        let busy = match self.schedule.last_job.filter(|last| *last != id) {
            Some(last) => self.goes_on(last).await?.then_some(last),
            None => None,
        };
        match (busy, self.schedule.overlap) {
            (None, _) => self.fire(slot).await,
            (Some(_), Overlap::Skip) => {
                self.skip(Some(slot), Skipped::Overlap, 1);
                Ok(())
            }
            (Some(_), Overlap::Queue) => {
                if !self.schedule.wait(slot) {
                    self.skip(Some(slot), Skipped::TooManyWait, 1);
                }
                Ok(())
            }
            (Some(last), Overlap::CancelRunning) => {
                let cancelled = book::update(&self.desk.shared, last.log(self.tenant()), Verb::Cancel, Call::default());
                match cancelled.await {
                    Ok(_) | Err(Error::Job(_) | Error::NotFound(_)) => self.fire(slot).await,
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Whether a job has not ended. One that cannot be read holds nothing up.
    async fn goes_on(&self, job: JobId) -> Result<bool, Error> {
        let log = job.log(self.tenant());
        match book::read(&self.desk.shared, move |view| book::job(view, log)).await {
            Ok(job) => Ok(job.is_some_and(|job| !job.status.is_over())),
            Err(Error::ThreadUnavailable(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn fire(&mut self, slot: UnixMs) -> Result<(), Error> {
        let (shared, now) = (&self.desk.shared, self.now);
        let id = self.schedule.fire(slot);
        let mut job = book::make(id, self.schedule.job.clone(), None, now)?;
        (job.schedule_id, job.slot, job.seq) = (Some(self.schedule.id), Some(slot), 2);
        let fired = ScheduleEvent::Fired { job: id, slot };
        let fired = book::stored(fired.name(), &Record::new(&self.schedule, fired, 1, now));
        let queued = book::stored(JobEvent::Queued.name(), &job::Record::new(&job, JobEvent::Queued));
        let made = book::create(shared, id.log(self.tenant()), &job, vec![fired, queued], now, None).await;
        made.map(drop).map_err(append_error)
    }

    fn skip(&mut self, slot: Option<UnixMs>, why: Skipped, count: u64) {
        if self.schedule.skip(count, self.now) {
            let event = ScheduleEvent::Skipped { slot, why, count };
            let record = Record::new(&self.schedule, event, self.schedule.seq, self.now);
            self.events.push(book::stored(event.name(), &record));
        }
    }
}
