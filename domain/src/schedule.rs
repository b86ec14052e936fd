//! When jobs are made: once at a time, or again and again by a cron expression in a time zone.
//!
//! A slot is a time at which a job is due to be made. [`Schedule::plan`] says which slots have come and which of them
//! are made up for; what is done with each ([`Schedule::fire`], [`Schedule::skip`], [`Schedule::wait`]) depends on
//! whether the job before it has ended, which the host knows. A slot's job has an id of its own
//! ([`JobId::of_slot`]), so it is made once however often it is tried.
//!
//! * **Expressions** have five fields: minute, hour, day of month, month, day of week; also names (`MON`, `JAN`), lists,
//!   ranges, steps, `L`, `W`, `#` and nicknames such as `@daily`. Where both days are given, either is enough.
//! * **Clock changes.** A local time that there is not, because the clock went forward, becomes the first instant that
//!   there is. One that there is twice is meant once, the first time. An expression that goes on through the hours
//!   (its minute or its hour begins with `*`) goes by elapsed time: it comes in both of the hours that are equal.
//! * **Missed** is a slot that came more than a minute ago. `catch_up` says what becomes of those: `none` are made up
//!   for, `one` (the newest), or `all`: the newest hundred.
//! * **Overlap**: while the last job has not ended, a slot is left out (`skip`), waits, at most a hundred of them
//!   (`queue`), or has the job cancelled (`cancel_running`).
//!
//! Absent on purpose: the current time, and a log of firings. `schedule.fired` stands in the log of the job that was
//! made, with which it goes; of slots that are left out in a row the first is an event, the others are counted. So a
//! schedule takes no more room the longer it lives.

use std::borrow::Cow;

use chrono::{DateTime, TimeDelta};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{JobId, ScheduleId, Seq},
    job::{JobRefused, NAME_BYTES, Template},
    ports::{Indexed, LogKind, RecordKind, RowHead},
    time::UnixMs,
};

/// A slot that came longer ago was missed.
pub const LATE_MS: u64 = 60_000;
/// Missed slots that are made up for at most, and slots that wait at most.
pub const MOST: usize = 100;
/// Missed slots that are counted at most.
const COUNTED: u64 = 10_000;
/// Bytes of an expression.
const CRON_BYTES: usize = 256;

/// What becomes of a slot while the last job has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    #[default]
    Skip,
    Queue,
    CancelRunning,
}

/// What becomes of slots that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    None,
    #[default]
    One,
    All,
}

/// Where a schedule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleStatus {
    Active,
    Paused,
    /// No slot is left.
    Completed,
}

/// When jobs are made, as of event `seq` of its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    pub id: ScheduleId,
    pub name: Option<String>,
    pub cron: Option<String>,
    pub at: Option<UnixMs>,
    /// A name of the IANA database.
    pub timezone: String,
    pub overlap: Overlap,
    pub catch_up: CatchUp,
    pub job: Template,
    pub status: ScheduleStatus,
    /// The next slot.
    pub next_at: Option<UnixMs>,
    /// The last slot for which a job was made.
    pub last_at: Option<UnixMs>,
    pub last_job: Option<JobId>,
    /// Jobs made, and slots left out.
    pub fired: u64,
    pub skipped: u64,
    /// Slots that wait for the last job to end, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<UnixMs>,
    /// Slots left out since the last job was made.
    #[serde(default)]
    pub skipped_in_a_row: u64,
    pub created_at: UnixMs,
    pub updated_at: UnixMs,
    pub seq: Seq,
}

/// What a schedule is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSchedule {
    pub name: Option<String>,
    pub cron: Option<String>,
    pub at: Option<UnixMs>,
    pub timezone: Option<String>,
    pub overlap: Overlap,
    pub catch_up: CatchUp,
    pub job: Template,
}

/// What of a schedule is changed; what is absent stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SchedulePatch {
    pub name: Option<Option<String>>,
    pub cron: Option<String>,
    pub at: Option<UnixMs>,
    pub timezone: Option<String>,
    pub overlap: Option<Overlap>,
    pub catch_up: Option<CatchUp>,
    pub job: Option<Template>,
    pub paused: Option<bool>,
}

/// Why a slot is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// It was missed, and is not made up for.
    Missed,
    /// The last job has not ended.
    Overlap,
    /// As many wait as may.
    TooManyWait,
}

/// Slots that have come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Those for which a job is to be made, oldest first.
    pub fire: Vec<UnixMs>,
    /// Those that were missed and are not made up for.
    pub missed: u64,
    /// The slot after them.
    pub next: Option<UnixMs>,
}

/// Slots of one kind, whatever says when they are.
enum Slots {
    Once(UnixMs),
    Cron(Box<Cron>, Tz),
}

fn invalid<T>(field: &'static str, why: impl Into<String>) -> Result<T, JobRefused> {
    Err(JobRefused::Invalid { field, why: why.into() })
}

fn slots(cron: Option<&str>, at: Option<UnixMs>, timezone: &str) -> Result<Slots, JobRefused> {
    let Ok(zone) = timezone.parse::<Tz>() else {
        return invalid("timezone", format!("is no time zone: `{timezone}`; one is named like Europe/Berlin, or UTC"));
    };
    match (cron, at) {
        (Some(_), Some(_)) => invalid("at", "is given beside `cron`: one of them"),
        (None, None) => invalid("cron", "is required, or `at`"),
        (None, Some(at)) => Ok(Slots::Once(at)),
        (Some(text), None) if text.len() > CRON_BYTES => invalid("cron", format!("has more than {CRON_BYTES} bytes")),
        (Some(text), None) => {
            let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
            match parser.parse(text) {
                Ok(cron) => Ok(Slots::Cron(Box::new(cron), zone)),
                Err(why) => invalid("cron", format!("is no expression of five fields: {why}")),
            }
        }
    }
}

fn local(at: UnixMs, zone: Tz) -> Option<DateTime<Tz>> {
    Some(DateTime::from_timestamp_millis(i64::try_from(at.0).ok()?)?.with_timezone(&zone))
}

fn instant(at: &DateTime<Tz>) -> Option<UnixMs> {
    u64::try_from(at.timestamp_millis()).ok().map(UnixMs).filter(|at| *at <= UnixMs::LAST)
}

impl Slots {
    /// The first slot after `after`.
    fn next(&self, after: UnixMs) -> Option<UnixMs> {
        match self {
            Self::Once(at) => Some(*at).filter(|at| *at > after),
            Self::Cron(cron, zone) => {
                let mut from = local(after, *zone)?;
                // A local time that there is not becomes one that there is, which may be where we stand.
                loop {
                    let next = cron.find_next_occurrence(&from, false).ok()?;
                    match instant(&next)? {
                        slot if slot > after => return Some(slot),
                        _ => from = next.checked_add_signed(TimeDelta::seconds(1))?,
                    }
                }
            }
        }
    }

    /// The last slot at or before `until`, and not before `from`.
    fn last(&self, from: UnixMs, until: UnixMs) -> Option<UnixMs> {
        let last = match self {
            Self::Once(at) => Some(*at),
            Self::Cron(cron, zone) => {
                let found = cron.find_previous_occurrence(&local(until, *zone)?, true).ok()?;
                // Found backwards it may be the second of two equal times, which is no slot: the one before counts.
                let slot = instant(&found)?;
                match self.next(UnixMs(slot.0.checked_sub(1)?)) {
                    Some(real) if real == slot => Some(slot),
                    _ => return self.last(from, UnixMs(slot.0 - 1)),
                }
            }
        };
        last.filter(|last| (from..=until).contains(last))
    }
}

impl Schedule {
    /// A schedule that nobody knows yet.
    pub fn create(id: ScheduleId, new: NewSchedule, now: UnixMs) -> Result<Self, JobRefused> {
        let NewSchedule { name, cron, at, timezone, overlap, catch_up, job } = new;
        let timezone = timezone.unwrap_or_else(|| "UTC".to_owned());
        let mut schedule = Self {
            id,
            name,
            cron,
            at,
            timezone,
            overlap,
            catch_up,
            job,
            status: ScheduleStatus::Active,
            next_at: None,
            last_at: None,
            last_job: None,
            fired: 0,
            skipped: 0,
            waiting: Vec::new(),
            skipped_in_a_row: 0,
            created_at: now,
            updated_at: now,
            seq: 1,
        };
        schedule.rewind(now)?;
        Ok(schedule)
    }

    /// Checks what it is made of, and looks for the next slot from `now` on.
    fn rewind(&mut self, now: UnixMs) -> Result<(), JobRefused> {
        if let Some(name) = &self.name
            && name.len() > NAME_BYTES
        {
            return Err(JobRefused::TooLarge { field: "name", size: name.len(), limit: NAME_BYTES });
        }
        self.job.check().map_err(|refused| match refused {
            JobRefused::Invalid { field, why } => JobRefused::Invalid { field: in_job(field), why },
            JobRefused::TooLarge { field, size, limit } => JobRefused::TooLarge { field: in_job(field), size, limit },
            other => other,
        })?;
        let slots = slots(self.cron.as_deref(), self.at, &self.timezone)?;
        self.next_at = match slots {
            // A time that has passed is a slot that has come, once.
            Slots::Once(at) if self.last_at != Some(at) => Some(at),
            Slots::Once(_) => None,
            Slots::Cron(..) => match slots.next(now) {
                None => return invalid("cron", "has no time to come"),
                next => next,
            },
        };
        self.status = if self.next_at.is_some() { ScheduleStatus::Active } else { ScheduleStatus::Completed };
        Ok(())
    }

    /// The schedule with changes. What it missed while it was paused is not made up for.
    pub fn patched(&self, patch: SchedulePatch, now: UnixMs) -> Result<Self, JobRefused> {
        let SchedulePatch { name, cron, at, timezone, overlap, catch_up, job, paused } = patch;
        let mut new = self.clone();
        let resumes = paused == Some(false) && self.status == ScheduleStatus::Paused;
        let moves = cron.is_some() || at.is_some() || timezone.is_some() || resumes;
        let was_paused = self.status == ScheduleStatus::Paused;
        match (cron, at) {
            (Some(_), Some(_)) => return invalid("at", "is given beside `cron`: one of them"),
            (Some(cron), None) => (new.cron, new.at) = (Some(cron), None),
            (None, Some(at)) => (new.cron, new.at) = (None, Some(at)),
            (None, None) => {}
        }
        new.name = name.unwrap_or(new.name);
        new.timezone = timezone.unwrap_or(new.timezone);
        new.overlap = overlap.unwrap_or(new.overlap);
        new.catch_up = catch_up.unwrap_or(new.catch_up);
        new.job = job.unwrap_or(new.job);
        let (next_at, status) = (new.next_at, new.status);
        new.rewind(now)?;
        if !moves {
            (new.next_at, new.status) = (next_at, status);
        }
        if paused.unwrap_or(was_paused) && new.status != ScheduleStatus::Completed {
            new.status = ScheduleStatus::Paused;
            new.waiting.clear();
        }
        new.changed(now);
        Ok(new)
    }

    fn changed(&mut self, now: UnixMs) {
        self.seq += 1;
        self.updated_at = now;
    }

    /// What has come by `now`.
    pub fn plan(&self, now: UnixMs) -> Result<Plan, JobRefused> {
        let idle = Plan { next: self.next_at, ..Plan::default() };
        let Some(first) = self.next_at.filter(|at| *at <= now && self.status == ScheduleStatus::Active) else {
            return Ok(idle);
        };
        let slots = slots(self.cron.as_deref(), self.at, &self.timezone)?;
        let newest = slots.last(first, now).unwrap_or(first);
        let next = slots.next(now);
        let on_time = now.since(newest) <= LATE_MS;
        let mut fire = match self.catch_up {
            CatchUp::None if !on_time => Vec::new(),
            CatchUp::None | CatchUp::One => vec![newest],
            CatchUp::All => {
                let before = |slot: &UnixMs| slots.last(first, UnixMs(slot.0.checked_sub(1)?));
                std::iter::successors(Some(newest), before).take(MOST).collect()
            }
        };
        fire.reverse();
        // Counted from the oldest on; further than that nobody counts.
        let mut missed = 0;
        let mut slot = Some(first);
        while let Some(at) = slot.filter(|at| fire.first().is_none_or(|first| at < first) && *at <= newest) {
            missed += 1;
            if missed == COUNTED {
                break;
            }
            slot = slots.next(at);
        }
        Ok(Plan { fire, missed, next })
    }

    /// Moves behind what has come.
    pub fn advance(&mut self, next: Option<UnixMs>) {
        self.next_at = next;
        if next.is_none() && self.waiting.is_empty() {
            self.status = ScheduleStatus::Completed;
        }
    }

    /// A job was made for the slot.
    pub fn fire(&mut self, slot: UnixMs) -> JobId {
        let job = JobId::of_slot(self.id, slot);
        self.waiting.retain(|waits| *waits != slot);
        (self.last_at, self.last_job) = (Some(slot), Some(job));
        self.fired += 1;
        self.skipped_in_a_row = 0;
        job
    }

    /// Slots are left out; whether that is worth an event.
    pub fn skip(&mut self, count: u64, now: UnixMs) -> bool {
        let first = self.skipped_in_a_row == 0;
        self.skipped += count;
        self.skipped_in_a_row += count;
        if first {
            self.changed(now);
        }
        first
    }

    /// Has the slot wait, if there is room.
    pub fn wait(&mut self, slot: UnixMs) -> bool {
        if self.waiting.contains(&slot) {
            return true;
        }
        let room = self.waiting.len() < MOST;
        if room {
            self.waiting.push(slot);
        }
        room
    }

    /// The head of its row.
    pub fn head(&self, fence: u64) -> RowHead {
        let active = self.status == ScheduleStatus::Active;
        RowHead {
            last_seq: self.seq,
            snapshot_seq: self.seq,
            fence,
            listed_at: self.updated_at,
            owes_since: (active && !self.waiting.is_empty()).then_some(self.created_at),
            wake_at: self.next_at.filter(|_| active),
            archived: false,
            queued: 0,
            kind: LogKind::Schedule,
        }
    }

    /// Where it is found.
    pub fn indexed(&self) -> Indexed {
        let id = uuid::Uuid::from_bytes(*self.id.as_bytes());
        Indexed { kind: RecordKind::Schedule, id, seq: self.seq, open: true }
    }
}

/// The name of a template's field in a schedule.
fn in_job(field: &'static str) -> &'static str {
    match field {
        "name" => "job.name",
        "max_attempts" => "job.max_attempts",
        "backoff_base_ms" => "job.backoff_base_ms",
        "payload" => "job.payload",
        "payload.prompt" => "job.payload.prompt",
        "payload.url" => "job.payload.url",
        "payload.command" => "job.payload.command",
        "payload.timeout_ms" => "job.payload.timeout_ms",
        "payload.thread_id" => "job.payload.thread_id",
        "payload.secret" => "job.payload.secret",
        "payload.model" => "job.payload.model",
        "kind" => "job.kind",
        other => other,
    }
}

/// What happened to a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleEvent {
    Created,
    Updated,
    Fired { job: JobId, slot: UnixMs },
    Skipped { slot: Option<UnixMs>, why: Skipped, count: u64 },
    Deleted,
}

impl ScheduleEvent {
    /// The wire name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created => "schedule.created",
            Self::Updated => "schedule.updated",
            Self::Fired { .. } => "schedule.fired",
            Self::Skipped { .. } => "schedule.skipped",
            Self::Deleted => "schedule.deleted",
        }
    }
}

/// An event of a schedule at its place in a log: its own, or for `schedule.fired` that of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub seq: Seq,
    pub prev: Seq,
    pub ts: UnixMs,
    pub schedule_id: ScheduleId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    pub event: Cow<'static, str>,
    pub payload: OfSchedule,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfSchedule {
    pub schedule: Box<Schedule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<UnixMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Skipped>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Record {
    pub fn new(schedule: &Schedule, event: ScheduleEvent, seq: Seq, ts: UnixMs) -> Self {
        let (mut job_id, mut slot, mut reason, mut count) = (None, None, None, None);
        match event {
            ScheduleEvent::Fired { job, slot: at } => (job_id, slot) = (Some(job), Some(at)),
            ScheduleEvent::Skipped { slot: at, why, count: left } => {
                (slot, reason, count) = (at, Some(why), Some(left));
            }
            ScheduleEvent::Created | ScheduleEvent::Updated | ScheduleEvent::Deleted => {}
        }
        let payload = OfSchedule { schedule: Box::new(schedule.clone()), job_id, slot, reason, count };
        let (prev, schedule_id) = (seq - 1, schedule.id);
        Self { seq, prev, ts, schedule_id, job_id, event: Cow::Borrowed(event.name()), payload }
    }
}

#[cfg(test)]
mod tests;
