//! The records of a run: what callers see, what events hold, what parts are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    id::{CheckpointId, ItemId, OperationId, RunId, Seq, TenantId, ThreadId, TurnId},
    ports::ChangedFile,
    time::UnixMs,
};

/// A board that many agents work on, as of event `last_event_seq`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    #[serde(rename = "run_id")]
    pub id: RunId,
    pub run_type: String,
    #[schema(value_type = String)]
    pub tenant: TenantId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub source_metadata: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    pub mcp_servers: Vec<String>,
    pub status: RunStatus,
    pub objective: String,
    pub workspace: RunWorkspace,
    pub steps: Vec<RunStep>,
    pub why_next_step: Option<String>,
    pub last_error: Option<String>,
    /// How many tasks stand where.
    pub task_counts: TaskCounts,
    /// Where the run began, if it was made from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<RestoredFrom>,
    /// Grows by one with every accepted change; what `If-Match` takes.
    pub revision: u64,
    /// The newest event of the log.
    pub last_event_seq: Seq,
    pub created_at: UnixMs,
    /// When it first went to work.
    pub started_at: Option<UnixMs>,
    /// When it ended; set once for each ending.
    pub ended_at: Option<UnixMs>,
    pub updated_at: UnixMs,
}

/// What a run was made from: a checkpoint of another, or the lines of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RunRestoredFrom)]
pub struct RestoredFrom {
    pub run_id: RunId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<CheckpointId>,
    pub seq: Seq,
}

/// Where a run stands. See [`super::status`] for what may follow what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Queued,
    Planning,
    Running,
    AwaitingApproval,
    Paused,
    Blocked,
    Failed,
    Completed,
    Cancelled,
}

impl RunStatus {
    /// Every status there is.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Planning,
        Self::Running,
        Self::AwaitingApproval,
        Self::Paused,
        Self::Blocked,
        Self::Failed,
        Self::Completed,
        Self::Cancelled,
    ];

    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Paused => "paused",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the run has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Cancelled)
    }
}

/// Where the agents of a run work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RunWorkspace {
    pub workspace_id: String,
    /// Empty until the first agent says where it works. A name to compare, and never opened.
    pub canonical_path: String,
    /// Grows whenever the run is bound to another path; 0 before the first.
    pub lease_epoch: u64,
}

/// A line of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunStep {
    pub step_id: String,
    pub title: String,
    pub status: StepStatus,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    Pending,
    Runnable,
    InProgress,
    Blocked,
    Done,
    Failed,
}

impl StepStatus {
    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Runnable => "runnable",
            Self::InProgress => "in_progress",
            Self::Blocked => "blocked",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Work that one agent at a time does under a lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    pub id: String,
    pub task_type: String,
    #[schema(value_type = Object)]
    pub payload: Value,
    pub status: TaskStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_node_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_task_id: Option<String>,
    pub depends_on_task_ids: Vec<String>,
    pub decision_ids: Vec<String>,
    pub artifact_ids: Vec<String>,
    /// Who holds it, or held it last.
    pub assigned_agent: Option<String>,
    /// The higher, the sooner.
    pub priority: i32,
    /// Failures so far.
    pub attempt: u32,
    /// Failures after which it has failed for good.
    pub max_attempts: u32,
    pub last_error: Option<String>,
    /// When a failed task comes back by itself; none for one that has failed for good.
    pub next_retry_at: Option<UnixMs>,
    /// There while it is `in_progress`, and only then.
    pub lease: Option<TaskLease>,
    /// What the worker that completed it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// Grows by one with every change of the task.
    pub task_rev: u64,
    pub created_at: UnixMs,
    pub updated_at: UnixMs,
}

/// The right to work on a task and to speak of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskLease {
    pub owner: String,
    /// Lost then, unless it is renewed.
    pub expires_at: UnixMs,
    /// Grows with every lease of the run. Whatever the holder writes elsewhere should carry it, so that a late writer
    /// is known there too.
    pub fence: u64,
    /// Of the workspace, when the lease was given.
    pub lease_epoch: u64,
    /// Lower-case hex SHA-256 of the token. The token itself is told to its holder and kept nowhere.
    pub token_sha256: String,
    /// In the reply to its holder, and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Where a task stands. See [`super::task`] for what may follow what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    Pending,
    Runnable,
    InProgress,
    Blocked,
    Done,
    Failed,
    Cancelled,
}

impl TaskStatus {
    /// Every status there is.
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Runnable, Self::InProgress, Self::Blocked, Self::Done, Self::Failed, Self::Cancelled];

    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Runnable => "runnable",
            Self::InProgress => "in_progress",
            Self::Blocked => "blocked",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How many tasks stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskCounts {
    pub pending: u32,
    pub runnable: u32,
    pub in_progress: u32,
    pub blocked: u32,
    pub done: u32,
    pub failed: u32,
    pub cancelled: u32,
}

impl TaskCounts {
    /// The number of tasks in this status.
    pub const fn of(&mut self, status: TaskStatus) -> &mut u32 {
        match status {
            TaskStatus::Pending => &mut self.pending,
            TaskStatus::Runnable => &mut self.runnable,
            TaskStatus::InProgress => &mut self.in_progress,
            TaskStatus::Blocked => &mut self.blocked,
            TaskStatus::Done => &mut self.done,
            TaskStatus::Failed => &mut self.failed,
            TaskStatus::Cancelled => &mut self.cancelled,
        }
    }

    /// All of them.
    pub const fn all(&self) -> u32 {
        self.pending + self.runnable + self.in_progress + self.blocked + self.done + self.failed + self.cancelled
    }
}

/// A line of the blackboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BoardEntry)]
pub struct Entry {
    pub id: String,
    pub kind: EntryKind,
    /// Of an artifact: what it is about, if anybody said so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_event_id: Option<String>,
    /// The writer's own time of it, in milliseconds since 1970, kept as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ts_ms: Option<u64>,
    pub resolved: bool,
    /// What was said when it was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
    /// The event that added it: entries are in this order.
    pub seq: Seq,
    pub created_at: UnixMs,
    pub updated_at: UnixMs,
}

/// The kinds of lines on a blackboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BoardEntryKind)]
pub enum EntryKind {
    Fact,
    Decision,
    OpenQuestion,
    Artifact,
}

impl EntryKind {
    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fact => "fact",
            Self::Decision => "decision",
            Self::OpenQuestion => "open_question",
            Self::Artifact => "artifact",
        }
    }
}

/// The texts that sum up a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = BoardSummaries)]
pub struct Summaries {
    pub rolling: String,
    pub latest_context_pack: String,
}

/// A consistent copy of a run at one event; the copy itself is [`super::Image`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RunCheckpoint)]
pub struct Checkpoint {
    #[serde(rename = "checkpoint_id")]
    pub id: CheckpointId,
    /// The event up to which the copy holds.
    pub seq: Seq,
    pub reason: Option<String>,
    pub created_at: UnixMs,
}

/// An event of a thread's log that the ledger took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LedgerSource)]
pub struct Source {
    pub thread_id: ThreadId,
    pub turn_id: TurnId,
    pub item_id: ItemId,
    pub operation_id: OperationId,
    /// Which event of the thread says so.
    pub seq: Seq,
}

/// What is known of one tool effect: no arguments, no output, but their digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerRecord {
    #[serde(flatten)]
    pub source: Source,
    /// The task that the turn was for, or held then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    pub tool: String,
    pub phase: LedgerPhase,
    pub status: LedgerStatus,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

/// Whether an effect begins or has come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LedgerPhase {
    Invocation,
    Outcome,
}

/// What is known of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LedgerStatus {
    Started,
    Succeeded,
    Failed,
    /// Nobody let it pass, or its turn ended before it was begun.
    Blocked,
    /// Nobody knows whether it happened.
    Uncertain,
}

/// The ledger, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct LedgerSummary {
    pub record_count: u64,
    #[schema(value_type = Object)]
    pub by_status: BTreeMap<LedgerStatus, u64>,
    #[schema(value_type = Object)]
    pub by_phase: BTreeMap<LedgerPhase, u64>,
    pub by_tool: BTreeMap<String, u64>,
    pub last_seq: Seq,
    pub last_ts: Option<UnixMs>,
}

/// Files that a tool changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MutationRecord {
    #[serde(flatten)]
    pub source: Source,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    pub tool: String,
    /// The workspace as its threads name it.
    pub workspace: String,
    pub files: Vec<ChangedFile>,
}

/// Files that a tool changed, and whether that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mutation {
    /// The event that says so: what a rollback names it by.
    pub event_id: String,
    pub seq: Seq,
    pub ts: UnixMs,
    pub record: MutationRecord,
    /// The event that took it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_seq: Option<Seq>,
}

/// A rollback that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollback {
    /// The same for every attempt.
    pub operation_id: OperationId,
    /// The mutations, newest first.
    pub event_ids: Vec<String>,
    pub started_seq: Seq,
    pub started_at: UnixMs,
}
