//! What may be asked of a run, and every way in which it may be refused.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Checkpoint, Entry, EntryKind, LedgerRecord, MutationRecord, Rollback, Run, RunStatus, RunStep, RunWorkspace,
    StepStatus, Task, TaskStatus,
};
use crate::{
    id::{CheckpointId, JobId, OperationId, RunId, Seq, ThreadId, TurnId},
    time::UnixMs,
};

/// What a caller, the runtime or the clock wants of one run.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Replace(Box<Replace>),
    Tell(Tell),
    SyncTodos(SyncTodos),
    /// Say what comes next, and with `dry_run` nothing else.
    Drive {
        dry_run: bool,
    },
    Patch(Patch),
    CreateTasks(Vec<NewTask>),
    Claim(Claim),
    Transition(Transition),
    /// One of the runtime's own workers wants work. One that holds a task gets that one.
    Work(Worker, Claim),
    /// It says something of the task that it holds: it needs no token, for nobody else can have its name.
    Say(Worker, Transition),
    /// It is gone: whatever it holds can be claimed again.
    GiveBack(Worker),
    ValidateLease(ValidateLease),
    SaveCheckpoint {
        reason: Option<String>,
    },
    DeleteCheckpoint(CheckpointId),
    Rollback(AskRollback),
    Delete,
    /// What threads did for the run. Only the runtime says so.
    Journal(Vec<Journal>),
    /// How putting files back ended. Only the runtime says so.
    Restored(RestoreReport),
    /// Time has passed.
    Tick,
}

/// A command with what its caller believes about the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub command: Command,
    /// Refuse unless the run has this revision.
    pub if_match: Option<u64>,
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self { command, if_match: None }
    }
}

/// A run that is to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewRun {
    pub run_type: Option<String>,
    pub source_client: Option<String>,
    pub source_metadata: Option<Value>,
    pub model_provider: Option<String>,
    pub model_id: Option<String>,
    pub mcp_servers: Vec<String>,
    pub objective: String,
    pub workspace: Option<RunWorkspace>,
    pub steps: Vec<RunStep>,
}

/// The whole record, to take the place of the one that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Replace {
    pub new: NewRun,
    pub status: RunStatus,
    pub why_next_step: Option<String>,
    pub last_error: Option<String>,
    /// The revision that the caller has seen, if he says so here and not as a precondition.
    pub revision: Option<u64>,
    /// The tasks as the caller has seen them: they are changed by their own verbs.
    pub tasks: Option<Vec<Task>>,
}

/// What a client says happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Tell {
    pub name: String,
    pub status: Option<RunStatus>,
    pub step_id: Option<String>,
    pub payload: Value,
}

/// A todo list that is to be the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncTodos {
    pub todos: Vec<Todo>,
    /// Whether steps that are not in the list go.
    pub replace: bool,
    pub source_session_id: Option<String>,
    pub source_run_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Todo {
    pub id: Option<String>,
    pub content: String,
    pub status: StepStatus,
}

/// A change of the blackboard.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    Add(NewEntry),
    Edit {
        kind: EntryKind,
        id: String,
        text: String,
    },
    Resolve {
        kind: EntryKind,
        id: String,
        resolution: Option<String>,
    },
    /// `pack`: the latest context pack; otherwise the rolling summary.
    Summarise {
        pack: bool,
        text: String,
    },
}

/// A line that is to stand on the blackboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    pub kind: EntryKind,
    /// Made up where there is none.
    pub id: Option<String>,
    pub text: String,
    pub path: Option<String>,
    pub artifact_type: Option<String>,
    pub step_id: Option<String>,
    pub source_event_id: Option<String>,
    pub ts_ms: Option<u64>,
}

/// A task that is to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewTask {
    /// Made up where there is none.
    pub id: Option<String>,
    pub task_type: String,
    pub payload: Value,
    /// `pending` unless given; a task begins as pending, runnable or blocked.
    pub status: Option<TaskStatus>,
    pub workflow_id: Option<String>,
    pub workflow_node_id: Option<String>,
    pub parent_task_id: Option<String>,
    pub depends_on_task_ids: Vec<String>,
    pub decision_ids: Vec<String>,
    pub artifact_ids: Vec<String>,
    pub priority: i32,
    pub max_attempts: Option<u32>,
}

/// An agent that wants work.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Claim {
    pub agent_id: String,
    /// This one, or none.
    pub task_id: Option<String>,
    pub task_type: Option<String>,
    pub workflow_id: Option<String>,
    pub lease_ms: Option<u64>,
    /// The epoch of the workspace that the agent works in.
    pub lease_epoch: Option<u64>,
}

/// A word about one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    pub task_id: String,
    pub action: Action,
    pub lease_token: Option<String>,
    pub expected_task_rev: Option<u64>,
    pub agent_id: Option<String>,
    pub error: Option<String>,
    pub lease_ms: Option<u64>,
    pub output: Option<Value>,
}

impl Transition {
    /// A word and nothing else.
    pub const fn new(task_id: String, action: Action) -> Self {
        Self {
            task_id,
            action,
            lease_token: None,
            expected_task_rev: None,
            agent_id: None,
            error: None,
            lease_ms: None,
            output: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Heartbeat,
    Complete,
    Fail,
    /// Give it back, undone.
    Release,
    /// Make a task claimable that failed, is blocked or was cancelled.
    Retry,
    Status(TaskStatus),
}

/// Somebody of the runtime's own who works on a task: a turn that claimed it, or a job that has a turn for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// Where the work is done: what its tools do then is done for the task.
    pub thread: ThreadId,
    pub by: WorkBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkBy {
    Turn(TurnId),
    /// With the number of the job's run.
    Job(JobId, u32),
}

impl fmt::Display for Worker {
    /// The name under which it holds leases.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            WorkBy::Turn(turn) => write!(f, "{}/{turn}", self.thread),
            WorkBy::Job(job, run) => write!(f, "{}/{job}/{run}", self.thread),
        }
    }
}

impl FromStr for Worker {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let (thread, by) = name.split_once('/').ok_or(())?;
        let thread = thread.parse().map_err(|_| ())?;
        let by = match by.split_once('/') {
            None => WorkBy::Turn(by.parse().map_err(|_| ())?),
            Some((job, run)) => WorkBy::Job(job.parse().map_err(|_| ())?, run.parse().map_err(|_| ())?),
        };
        Ok(Self { thread, by })
    }
}

/// Whether an agent may not call itself that: it is how the runtime's own workers are called.
pub(super) fn is_a_workers(name: &str) -> bool {
    name.trim_start().starts_with(ThreadId::PREFIX)
}

/// An agent says where it works.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ValidateLease {
    pub phase: Option<String>,
    pub current_path: String,
    pub step_id: Option<String>,
    /// The epoch that it works under.
    pub lease_epoch: Option<u64>,
    /// Bind the run to this path if it is bound to another.
    pub rebind: bool,
}

/// A person who wants changes of files to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AskRollback {
    pub event_ids: Vec<String>,
    pub confirm: String,
    pub policy_ack: Option<String>,
}

/// An event of a thread that works for the run. Its `task_id` is the one that the turn was for from the beginning, if any.
#[derive(Debug, Clone, PartialEq)]
pub struct Journal {
    pub effect: LedgerRecord,
    pub mutation: Option<MutationRecord>,
}

/// How an attempt to put files back ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    pub operation: OperationId,
    /// Why no file was touched; nothing when all are what they were.
    pub refused: Option<String>,
}

/// What an accepted command is answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Run(Box<Run>),
    /// Where an event came to stand.
    Told {
        seq: Seq,
    },
    Driven(Box<Driven>),
    Tasks(Vec<Task>),
    Claimed(Box<Claimed>),
    Task(Box<Task>),
    Entry(Box<Entry>),
    Summary,
    Lease(LeaseReply),
    Checkpoint(Checkpoint),
    Rollback(Rollback),
    /// The attempt was refused, which is on record.
    RollbackBlocked(super::event::RollbackBlocked),
    Deleted,
    Noted,
}

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claimed {
    pub task: Option<Task>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Driven {
    pub selected_step_id: Option<String>,
    pub selected_task_id: Option<String>,
    pub target_status: RunStatus,
    pub why_next_step: String,
    pub run: Run,
}

/// Whether an agent works where the run is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    pub ok: bool,
    pub mismatch: bool,
    pub status: RunStatus,
    pub expected_path: String,
    pub lease_epoch: u64,
}

/// Why a command was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the run has revision {head}, not {expected}")]
    Precondition { expected: u64, head: u64 },
    #[error(
        "a whole run is replaced under `If-Match`, or with the `revision` that was seen, so that nobody's change is lost"
    )]
    PreconditionRequired,
    #[error("a run that is {} cannot become {}{}", .from.as_str(), .to.as_str(), if .from.is_terminal() { "; say `run_reopened` first" } else { "" })]
    RunTransition { from: RunStatus, to: RunStatus },
    #[error("the task has revision {task_rev}, not {expected}")]
    TaskRev { expected: u64, task_rev: u64 },
    #[error("the task is leased: say it with the `lease_token`")]
    LeaseRequired,
    #[error("the lease {why}")]
    LeaseInvalid { why: &'static str, fence: Option<u64> },
    #[error("a task that is {} cannot be {what}", .current.as_str())]
    TaskTransition { what: String, current: TaskStatus, requested: Option<TaskStatus> },
    #[error("the task {task}: `{field}` {why}")]
    Contract { task: String, field: &'static str, why: String },
    #[error("the task {task}: an implementation needs `payload.output_target.path`")]
    OutputTarget { task: String },
    #[error("there is a task `{id}` already")]
    TaskExists { id: String },
    #[error("there is an entry `{id}` already")]
    EntryExists { id: String },
    #[error("no such task")]
    NoTask,
    #[error("no such entry")]
    NoEntry,
    #[error("no such checkpoint")]
    NoCheckpoint,
    #[error("`{event}` is an event that only the runtime writes")]
    Reserved { event: String },
    #[error("the workspace of the run has epoch {current}{}", .presented.map_or("; say which one you work in".to_owned(), |presented| format!(", not {presented}")))]
    Epoch { presented: Option<u64>, current: u64 },
    #[error("a rollback is under way")]
    RollbackOpen,
    #[error("`{field}` {why}")]
    Invalid { field: String, why: String },
    #[error("`{field}` has {size} bytes, the limit is {limit}")]
    TooLarge { field: String, size: usize, limit: usize },
    #[error("the run has {limit} {what}, the limit")]
    Full { what: &'static str, limit: usize },
}

impl Refused {
    pub(super) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), why: why.into() }
    }
}

/// Files that are to be put back, and under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreDue {
    pub operation: OperationId,
    pub run: RunId,
    pub workspace: String,
    pub files: Vec<crate::ports::ChangedFile>,
}

/// What a state demands of its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owed {
    /// Put these files back, then say how it ended.
    pub restore: Option<RestoreDue>,
    /// Send a tick then, even if the run must be loaded for it.
    pub wake_at: Option<UnixMs>,
}
