//! Work for later, as a pure state machine: what is to be done, how often it is tried, and how it ended.
//!
//! ```text
//!              begin               complete
//!   queued ───────────▶ running ─────────────▶ completed
//!     ▲  ▲ ▲              │ │ │ fail, no attempt left, or for good
//!     │  │ │ fail         │ │ └───────────────▶ failed ────────┐
//!     │  │ └─(waits until ┘ │ lose: `command`                  │
//!     │  │   `next_retry_at`│──────────────────▶ uncertain ────┤ retry: queued again, with all its attempts
//!     │  │                  │ lose: `turn`, `webhook`          │
//!     │  └──────────────────┘──▶ queued        cancelled ──────┘
//!     │ resume
//!   paused ◀── pause: queued; running, unless it is a `command`
//!
//!   any that has not ended ── cancel ──▶ cancelled
//! ```
//!
//! | | queued | running | paused | uncertain | completed | failed | cancelled |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | pause | yes | not a command | – | – | – | – | – |
//! | resume | – | – | yes | – | – | – | – |
//! | cancel | yes | yes | yes | yes | – | – | – |
//! | retry | while it waits for its retry | – | – | yes | – | yes | yes |
//! | begin | when due | – | – | – | – | – | – |
//! | progress, attach, hold, renew, complete, fail, doubt, give up, expire | – | under its lease | – | – | – | – | – |
//! | lose | – | of another owner | – | – | – | – | – |
//!
//! What is refused changes nothing. `attempt` counts the retries: with `max_attempts` 3 a job that always fails runs
//! four times, after pauses of 1, 2 and 4 times its base. `run` numbers what is done to the world: it is the same when
//! a run is made again because its process was lost, so that whoever is called knows the repeat, and another one
//! whenever the work is really to be done again.
//!
//! Every event holds the whole record, so the newest one is the state; [`Job::apply`] takes it as it is. The time at
//! which a lease ends and whether a stopped run still has to be told are in the row alone: they say nothing to a
//! reader, and are written without an event.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{InputId, JobId, RunId, ScheduleId, Seq, ThreadId, TurnId},
    ports::{Indexed, LogKind, RecordKind, RowHead},
    tenant::Budget,
    time::UnixMs,
};

/// Retries unless the caller says otherwise, and the most he may ask for.
pub const MAX_ATTEMPTS: u32 = 3;
pub const MOST_ATTEMPTS: u32 = 100;
/// The pause before the first retry unless the caller says otherwise, and the longest he may ask for.
pub const BACKOFF_BASE_MS: u64 = 500;
pub const LONGEST_BASE_MS: u64 = 24 * 60 * 60 * 1000;
/// Entries of a history; older ones are dropped.
pub const HISTORY: usize = 64;
/// Bytes of a name.
pub const NAME_BYTES: usize = 256;
/// Bytes of a payload as JSON: each event of the job holds it.
pub const PAYLOAD_BYTES: usize = 64 * 1024;
/// Bytes of `detail` and of a text in `output`; of a longer one the end is kept.
pub const DETAIL_BYTES: usize = 16 * 1024;
/// Bytes of the `detail` of an entry in a history.
const ENTRY_BYTES: usize = 512;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", content = "payload", rename_all = "snake_case")]
pub enum Work {
    Turn(TurnWork),
    Webhook(WebhookWork),
    Command(CommandWork),
}

/// Start a turn on a thread, behind what is open there, and follow it to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TurnWork {
    pub thread_id: ThreadId,
    pub prompt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_shell: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_approve: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_mode: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_intent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// The most that the turn's model calls may spend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_summary: Option<String>,
    /// Claim a task of a run, and do it: its description follows the prompt, and what the turn comes to is what the
    /// task comes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskWanted>,
}

/// Which task of a run a job claims: the one that is next, of those that fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = JobTask)]
pub struct TaskWanted {
    pub run_id: RunId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
}

/// POST a body to an address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookWork {
    pub url: String,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
    /// The name of a secret of the server, with which the request is signed. Never the secret itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// Run a command in a thread's workspace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandWork {
    pub thread_id: ThreadId,
    pub command: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Work {
    /// The wire name of its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Turn(_) => "turn",
            Self::Webhook(_) => "webhook",
            Self::Command(_) => "command",
        }
    }

    /// The thread that it is done on.
    pub const fn thread(&self) -> Option<ThreadId> {
        match self {
            Self::Turn(turn) => Some(turn.thread_id),
            Self::Command(command) => Some(command.thread_id),
            Self::Webhook(_) => None,
        }
    }

    /// Whether it may be done again when nobody knows whether it was done.
    pub const fn may_repeat(&self) -> bool {
        match self {
            // A repeat finds the same turn, and a receiver knows the same delivery.
            Self::Turn(_) | Self::Webhook(_) => true,
            Self::Command(_) => false,
        }
    }

    fn check(&self) -> Result<(), JobRefused> {
        let invalid = |field, why: &str| Err(JobRefused::Invalid { field, why: why.to_owned() });
        match self {
            Self::Turn(turn) if turn.prompt.is_empty() => invalid("payload.prompt", "is empty"),
            Self::Webhook(hook) if !hook.url.starts_with("http://") && !hook.url.starts_with("https://") => {
                invalid("payload.url", "must start with http:// or https://")
            }
            Self::Command(command) if command.command.trim().is_empty() => invalid("payload.command", "is empty"),
            Self::Command(command) if command.timeout_ms == Some(0) => {
                invalid("payload.timeout_ms", "must be at least 1")
            }
            _ => {
                let size = serde_json::to_vec(self).map_or(usize::MAX, |json| json.len());
                if size > PAYLOAD_BYTES {
                    return Err(JobRefused::TooLarge { field: "payload", size, limit: PAYLOAD_BYTES });
                }
                Ok(())
            }
        }
    }
}

/// Where a job stands. `failed` is final: a job that will be tried again is `queued`, with a `next_retry_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    Queued,
    Running,
    Paused,
    Completed,
    Failed,
    Cancelled,
    /// Its process was lost, and it may have happened: a person says `retry` or `cancel`.
    Uncertain,
}

impl JobStatus {
    /// Every status there is.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Running, Self::Paused, Self::Completed, Self::Failed, Self::Cancelled, Self::Uncertain];

    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Uncertain => "uncertain",
        }
    }

    /// Whether nothing more happens by itself or by a person's first word.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// Work for later, as of event `seq` of its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    pub id: JobId,
    pub name: String,
    #[serde(flatten)]
    pub work: Work,
    pub status: JobStatus,
    /// Retries so far.
    pub attempt: u32,
    /// Retries at most.
    pub max_attempts: u32,
    pub backoff_base_ms: u64,
    /// The pause before the retry that it waits for; 0 when it waits for none.
    pub next_backoff_ms: u64,
    pub next_retry_at: Option<UnixMs>,
    /// Not before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<UnixMs>,
    /// In percent.
    pub progress: u8,
    /// What it last said, or why it failed.
    pub detail: Option<String>,
    /// What it came to.
    #[schema(value_type = Option<Object>)]
    pub output: Option<serde_json::Value>,
    /// Oldest first; the newest 64.
    pub history: Vec<Phase>,
    /// Who runs it.
    pub lease: Option<Lease>,
    /// Which run is due, under way or was the last, from 1.
    pub run: u32,
    /// How often a run was begun.
    pub begun: u32,
    /// The turn of this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// The prompt of this run, while its turn waits behind another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_id: Option<InputId>,
    /// The task of this run, where it works on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Who made it, and for which time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule_id: Option<ScheduleId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<UnixMs>,
    /// Its turn has still to be told that it is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(ignore)]
    pub stopping: bool,
    pub created_at: UnixMs,
    pub updated_at: UnixMs,
    pub started_at: Option<UnixMs>,
    pub ended_at: Option<UnixMs>,
    pub seq: Seq,
}

/// An entry of a job's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobPhase)]
pub struct Phase {
    pub at: UnixMs,
    pub phase: Cow<'static, str>,
    pub status: JobStatus,
    pub progress: u8,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_at: Option<UnixMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The right to run a job and to speak of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobLease)]
pub struct Lease {
    /// The epoch of the process.
    pub owner: u64,
    /// `begun` when it was given: no two leases of a job are the same.
    pub term: u32,
    /// Lost then, unless it is renewed.
    pub expires_at: UnixMs,
}

/// A lease, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub owner: u64,
    pub term: u32,
}

impl Lease {
    pub const fn token(&self) -> Token {
        Token { owner: self.owner, term: self.term }
    }
}

/// What a job is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobTemplate)]
pub struct Template {
    pub name: String,
    #[serde(flatten)]
    pub work: Work,
    pub max_attempts: u32,
    pub backoff_base_ms: u64,
    /// What was said when it was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Template {
    pub fn new(name: impl Into<String>, work: Work) -> Self {
        Self { name: name.into(), work, max_attempts: MAX_ATTEMPTS, backoff_base_ms: BACKOFF_BASE_MS, note: None }
    }

    /// Whether a job can be made of it.
    pub fn check(&self) -> Result<(), JobRefused> {
        let invalid = |field, why: String| Err(JobRefused::Invalid { field, why });
        if self.name.trim().is_empty() {
            return invalid("name", "is blank".to_owned());
        }
        if self.name.len() > NAME_BYTES {
            return Err(JobRefused::TooLarge { field: "name", size: self.name.len(), limit: NAME_BYTES });
        }
        if self.max_attempts > MOST_ATTEMPTS {
            return invalid("max_attempts", format!("is more than {MOST_ATTEMPTS}"));
        }
        if self.backoff_base_ms > LONGEST_BASE_MS {
            return invalid("backoff_base_ms", format!("is more than {LONGEST_BASE_MS}"));
        }
        self.work.check()
    }
}

/// What may happen to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Verb {
    Pause,
    Resume,
    Cancel,
    Retry,
    /// The run that is due begins.
    Begin {
        owner: u64,
        expires_at: UnixMs,
    },
    Progress {
        token: Token,
        /// Clamped to 100; `None` leaves it as it is.
        progress: Option<u64>,
        detail: Option<String>,
    },
    /// The run became this prompt, or this turn.
    Attach {
        token: Token,
        input: Option<InputId>,
        turn: Option<TurnId>,
    },
    /// The run works on this task.
    Hold {
        token: Token,
        task: String,
    },
    Renew {
        token: Token,
        expires_at: UnixMs,
    },
    Complete {
        token: Token,
        output: serde_json::Value,
    },
    Fail {
        token: Token,
        why: String,
        /// Whether another attempt may succeed.
        again: bool,
    },
    /// Nobody knows whether it happened.
    Doubt {
        token: Token,
        why: String,
    },
    /// Somebody ended what it was doing.
    GiveUp {
        token: Token,
        why: String,
    },
    /// The process `owner` has begun: whoever ran the job before is gone.
    Lose {
        owner: u64,
    },
    /// Its lease has passed.
    Expire,
    /// Its turn was told; without `again` it had come to its end by itself, and is what the job comes to if it goes on.
    Stopped {
        again: bool,
    },
}

/// Why a verb was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobRefused {
    #[error("a job that is {} cannot be {what}", .status.as_str())]
    Not { what: &'static str, status: JobStatus },
    #[error("a command that runs cannot be paused: it can be cancelled")]
    CommandRuns,
    /// It is run by somebody else, or by nobody any more.
    #[error("the job is not run under this lease")]
    NotYours,
    #[error("the job is not due yet")]
    NotDue,
    #[error("expected seq {expected}, the log is at {head}")]
    Precondition { expected: Seq, head: Seq },
    #[error("`{field}` {why}")]
    Invalid { field: &'static str, why: String },
    #[error("`{field}` has {size} bytes, the limit is {limit}")]
    TooLarge { field: &'static str, size: usize, limit: usize },
    #[error("a rule forbids it: {reason}")]
    Forbidden { reason: String, rule: String },
}

/// An event of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    Queued,
    Started,
    Progress,
    Paused,
    Resumed,
    Completed,
    Failed,
    Retrying,
    Cancelled,
    Uncertain,
}

impl JobEvent {
    /// The wire name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "job.queued",
            Self::Started => "job.started",
            Self::Progress => "job.progress",
            Self::Paused => "job.paused",
            Self::Resumed => "job.resumed",
            Self::Completed => "job.completed",
            Self::Failed => "job.failed",
            Self::Retrying => "job.retrying",
            Self::Cancelled => "job.cancelled",
            Self::Uncertain => "job.uncertain",
        }
    }
}

/// An accepted verb.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub job: Job,
    /// What is to stand in the log; `None` when only the row changes.
    pub event: Option<JobEvent>,
}

/// The pause before the retry `attempt`, from 1.
pub fn backoff(base_ms: u64, attempt: u32) -> u64 {
    match attempt {
        0 => 0,
        attempt => base_ms.saturating_mul(1 << (attempt - 1).min(20)),
    }
}

/// The end of a text, not more than `limit` bytes of it.
fn end_of(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let mut from = text.len() - limit;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text.drain(..from);
    }
    text
}

/// The beginning of a text, not more than `limit` bytes of it.
fn beginning_of(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}

impl Job {
    /// A job that nobody knows yet.
    pub fn create(id: JobId, new: Template, run_at: Option<UnixMs>, now: UnixMs) -> Result<Step, JobRefused> {
        new.check()?;
        let Template { name, work, max_attempts, backoff_base_ms, note } = new;
        let mut job = Self {
            id,
            name,
            work,
            status: JobStatus::Queued,
            attempt: 0,
            max_attempts,
            backoff_base_ms,
            next_backoff_ms: 0,
            next_retry_at: None,
            run_at,
            progress: 0,
            detail: None,
            output: None,
            history: Vec::new(),
            lease: None,
            run: 1,
            begun: 0,
            turn_id: None,
            input_id: None,
            task_id: None,
            schedule_id: None,
            slot: None,
            stopping: false,
            created_at: now,
            updated_at: now,
            started_at: None,
            ended_at: None,
            seq: 1,
        };
        job.note("created", note, now);
        Ok(Step { job, event: Some(JobEvent::Queued) })
    }

    /// The job after an event of its log.
    pub fn apply(record: Record) -> Self {
        *record.payload.job
    }

    /// Judges a verb. `self` is as it was, whatever becomes of it.
    pub fn step(&self, verb: Verb, now: UnixMs) -> Result<Step, JobRefused> {
        let mut job = self.clone();
        let event = job.take(verb, now)?;
        if event.is_some() {
            job.seq += 1;
            job.updated_at = now;
        }
        Ok(Step { job, event })
    }

    fn take(&mut self, verb: Verb, now: UnixMs) -> Result<Option<JobEvent>, JobRefused> {
        use JobStatus::{Cancelled, Completed, Failed, Paused, Queued, Running, Uncertain};
        let not = |what| Err(JobRefused::Not { what, status: self.status });
        let event = match verb {
            Verb::Pause => {
                match self.status {
                    Queued if self.goes_on() => self.stop(),
                    Queued => {}
                    Running if !self.work.may_repeat() => return Err(JobRefused::CommandRuns),
                    Running => {
                        self.stop();
                        self.next_run();
                    }
                    _ => return not("paused"),
                }
                self.enter(Paused, "paused", None, now);
                JobEvent::Paused
            }
            Verb::Resume => {
                if self.status != Paused {
                    return not("resumed");
                }
                self.clear_retry();
                self.enter(Queued, "resumed", None, now);
                JobEvent::Resumed
            }
            Verb::Cancel => {
                if self.status.is_over() {
                    return not("cancelled");
                }
                if self.status == Running || self.goes_on() {
                    self.stop();
                }
                self.clear_retry();
                self.enter(Cancelled, "cancelled", None, now);
                JobEvent::Cancelled
            }
            Verb::Retry => {
                match self.status {
                    Failed | Cancelled | Uncertain => {
                        self.attempt = 0;
                        self.next_run();
                        (self.output, self.ended_at, self.progress) = (None, None, 0);
                    }
                    Queued if self.next_retry_at.is_some() => {}
                    _ => return not("retried"),
                }
                self.clear_retry();
                self.run_at = None;
                self.enter(Queued, "retried", None, now);
                JobEvent::Queued
            }
            Verb::Begin { owner, expires_at } => {
                if self.status != Queued {
                    return not("begun");
                }
                if self.stopping || self.due_at() > now {
                    return Err(JobRefused::NotDue);
                }
                self.begun += 1;
                self.lease = Some(Lease { owner, term: self.begun, expires_at });
                self.started_at = Some(now);
                self.clear_retry();
                self.enter(Running, "running", None, now);
                JobEvent::Started
            }
            Verb::Progress { token, progress, detail } => {
                self.held(token)?;
                let percent = progress.map_or(self.progress, |progress| progress.min(100) as u8);
                if let Some(detail) = detail {
                    self.detail = Some(end_of(detail, DETAIL_BYTES));
                }
                if percent != self.progress {
                    self.progress = percent;
                    self.note("progress_updated", None, now);
                }
                JobEvent::Progress
            }
            Verb::Attach { token, input, turn } => {
                self.held(token)?;
                if (self.input_id, self.turn_id) == (input, turn) {
                    return Ok(None);
                }
                (self.input_id, self.turn_id) = (input, turn);
                JobEvent::Progress
            }
            Verb::Hold { token, task } => {
                self.held(token)?;
                if self.task_id.as_ref() == Some(&task) {
                    return Ok(None);
                }
                self.task_id = Some(task);
                JobEvent::Progress
            }
            Verb::Renew { token, expires_at } => {
                self.held(token)?;
                if let Some(lease) = &mut self.lease {
                    lease.expires_at = expires_at.max(lease.expires_at);
                }
                return Ok(None);
            }
            Verb::Complete { token, output } => {
                self.held(token)?;
                (self.progress, self.output) = (100, Some(bounded(output)));
                self.lease = None;
                self.enter(Completed, "completed", None, now);
                JobEvent::Completed
            }
            Verb::Fail { token, why, again } => {
                self.held(token)?;
                self.lease = None;
                self.detail = Some(end_of(why.clone(), DETAIL_BYTES));
                if again && self.attempt < self.max_attempts {
                    self.attempt += 1;
                    self.next_run();
                    self.next_backoff_ms = backoff(self.backoff_base_ms, self.attempt);
                    let at = UnixMs(now.0.saturating_add(self.next_backoff_ms)).min(UnixMs::LAST);
                    self.next_retry_at = Some(at);
                    self.enter(Queued, "failed", Some(why), now);
                    JobEvent::Retrying
                } else {
                    self.clear_retry();
                    self.enter(Failed, "failed", Some(why), now);
                    JobEvent::Failed
                }
            }
            Verb::Doubt { token, why } => {
                self.held(token)?;
                self.doubt(why, now)
            }
            Verb::GiveUp { token, why } => {
                self.held(token)?;
                self.lease = None;
                self.detail = Some(end_of(why.clone(), DETAIL_BYTES));
                self.enter(Cancelled, "cancelled", Some(why), now);
                JobEvent::Cancelled
            }
            Verb::Lose { owner } => {
                if self.status != Running {
                    return not("lost");
                }
                if self.lease.is_some_and(|lease| lease.owner >= owner) {
                    return Err(JobRefused::NotYours);
                }
                self.lose("the process that ran it is gone", now)
            }
            Verb::Expire => {
                if self.status != Running {
                    return not("lost");
                }
                if self.lease.is_some_and(|lease| lease.expires_at > now) {
                    return Err(JobRefused::NotDue);
                }
                self.lose("its lease has passed", now)
            }
            Verb::Stopped { again } => {
                if std::mem::take(&mut self.stopping) && again && !self.status.is_over() {
                    self.next_run();
                }
                return Ok(None);
            }
        };
        Ok(Some(event))
    }

    /// Whether `token` may speak.
    fn held(&self, token: Token) -> Result<(), JobRefused> {
        let held = self.status == JobStatus::Running && self.lease.is_some_and(|lease| lease.token() == token);
        if held { Ok(()) } else { Err(JobRefused::NotYours) }
    }

    /// Takes the run from whoever has it.
    fn stop(&mut self) {
        self.lease = None;
        self.stopping = matches!(self.work, Work::Turn(_));
    }

    /// Whether a turn may be under way that no lease speaks for: that of a run that was lost goes on by itself, even if
    /// the run was lost before it could say which turn it became.
    fn goes_on(&self) -> bool {
        let lost = || self.history.last().is_some_and(|last| last.phase == "lost");
        matches!(self.work, Work::Turn(_)) && (self.turn_id.is_some() || self.input_id.is_some() || lost())
    }

    fn lose(&mut self, why: &str, now: UnixMs) -> JobEvent {
        if !self.work.may_repeat() {
            return self.doubt(format!("{why}; it may have happened, wholly or in part"), now);
        }
        self.lease = None;
        self.enter(JobStatus::Queued, "lost", Some(why.to_owned()), now);
        JobEvent::Queued
    }

    fn doubt(&mut self, why: String, now: UnixMs) -> JobEvent {
        self.lease = None;
        self.detail = Some(end_of(why.clone(), DETAIL_BYTES));
        self.enter(JobStatus::Uncertain, "uncertain", Some(why), now);
        JobEvent::Uncertain
    }

    /// The work is to be done again: once the turn was told of which this run was, which is found by the run.
    fn next_run(&mut self) {
        if !self.stopping {
            self.run += 1;
            (self.turn_id, self.input_id, self.task_id) = (None, None, None);
        }
    }

    fn clear_retry(&mut self) {
        (self.next_backoff_ms, self.next_retry_at) = (0, None);
    }

    fn enter(&mut self, status: JobStatus, phase: &'static str, detail: Option<String>, now: UnixMs) {
        self.status = status;
        if status.is_over() {
            self.ended_at = Some(now);
        }
        self.note(phase, detail, now);
    }

    fn note(&mut self, phase: &'static str, detail: Option<String>, now: UnixMs) {
        self.history.push(Phase {
            at: now,
            phase: Cow::Borrowed(phase),
            status: self.status,
            progress: self.progress,
            attempt: self.attempt,
            next_retry_at: self.next_retry_at,
            detail: detail.map(|detail| beginning_of(&detail, ENTRY_BYTES)),
        });
        let over = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..over);
    }

    /// When a queued job may begin.
    pub fn due_at(&self) -> UnixMs {
        self.next_retry_at.or(self.run_at).unwrap_or(self.created_at)
    }

    /// The head of its row. A job that has ended is forgotten `retention_ms` later.
    pub fn head(&self, fence: u64, retention_ms: u64) -> RowHead {
        let wake_at = match self.status {
            JobStatus::Queued => Some(self.due_at()),
            JobStatus::Running => self.lease.map(|lease| lease.expires_at),
            JobStatus::Paused | JobStatus::Uncertain => None,
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
                Some(UnixMs(self.ended_at.unwrap_or(self.updated_at).0.saturating_add(retention_ms)).min(UnixMs::LAST))
            }
        };
        let under_way = self.status == JobStatus::Running || self.stopping;
        RowHead {
            last_seq: self.seq,
            snapshot_seq: self.seq,
            fence,
            listed_at: self.updated_at,
            owes_since: under_way.then_some(self.started_at.unwrap_or(self.created_at)),
            wake_at: if self.stopping { None } else { wake_at },
            archived: false,
            queued: 0,
            kind: LogKind::Job,
        }
    }

    /// Where it is found.
    pub fn indexed(&self) -> Indexed {
        let id = uuid::Uuid::from_bytes(*self.id.as_bytes());
        Indexed { kind: RecordKind::Job, id, seq: self.seq, open: !self.status.is_over() }
    }
}

/// An output that fits a record: of a text that is too long the end is kept.
pub fn bounded(output: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match output {
        Value::String(text) => Value::String(end_of(text, DETAIL_BYTES)),
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(name, value)| match value {
                    Value::String(text) => (name, Value::String(end_of(text, DETAIL_BYTES))),
                    other => (name, other),
                })
                .collect(),
        ),
        other => other,
    }
}

/// An event of a job at its place in the job's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub seq: Seq,
    pub prev: Seq,
    pub ts: UnixMs,
    pub job_id: JobId,
    pub event: Cow<'static, str>,
    pub payload: OfJob,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfJob {
    pub job: Box<Job>,
}

impl Record {
    /// The record of an accepted step, as the event `job.seq` of its log.
    pub fn new(job: &Job, event: JobEvent) -> Self {
        Self {
            seq: job.seq,
            prev: job.seq - 1,
            ts: job.updated_at,
            job_id: job.id,
            event: Cow::Borrowed(event.name()),
            payload: OfJob { job: Box::new(job.clone()) },
        }
    }
}

#[cfg(test)]
mod tests;
