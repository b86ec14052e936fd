//! The records a caller sees and the log stores. One shape each: what is written is what the API sends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    budget::Amount,
    id::{ApprovalId, InputId, ItemId, OperationId, QuestionId, RunId, Seq, ThreadId, TurnId},
    policy::Policy,
    price::{Cost, Price},
    tenant::Budget,
    time::UnixMs,
};

/// Free-form data of the caller, kept and returned untouched.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// A durable conversation with its settings, as of event `seq`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Thread {
    pub id: ThreadId,
    pub title: Option<String>,
    pub status: ThreadStatus,
    /// Who answers: the name of a model provider.
    pub engine: String,
    /// Which of the engine's models answers when a turn names none.
    pub model: String,
    /// Free text that tools and policies may read; `agent` unless set.
    pub mode: String,
    pub system_prompt: Option<String>,
    pub workspace: Option<String>,
    pub allow_shell: bool,
    pub auto_approve: bool,
    pub trust_mode: bool,
    pub on_restart: OnRestart,
    /// The thread's own layer of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The run that it works for: what its tools do from then on is in that run's ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The most that its model calls may spend, over all its turns. A fork has it too, and has spent nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What its model calls have spent, where it has a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Amount>,
    pub archived: bool,
    pub active_turn: Option<TurnId>,
    /// Prompts that wait in the inbox.
    pub queued: u32,
    /// Whether they go on waiting when no turn is open.
    #[serde(default)]
    pub queue_paused: bool,
    pub pending_approvals: u32,
    /// Where the thread began, if it is a fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<ForkedFrom>,
    pub created_at: UnixMs,
    /// When a turn last began or ended, or the settings last changed.
    pub updated_at: UnixMs,
    /// The newest event of the thread's log.
    pub seq: Seq,
    #[schema(value_type = Object)]
    pub metadata: Metadata,
}

/// The thread whose log a fork continues, and the last event that they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkedFrom {
    pub thread_id: ThreadId,
    pub seq: Seq,
}

/// What a thread is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThreadStatus {
    Idle,
    Running,
    /// A turn is open, and goes on when a person has decided, or answered.
    AwaitingApproval,
    Archived,
}

impl ThreadStatus {
    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Archived => "archived",
        }
    }
}

/// What happens to an open turn when the process that ran it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRestart {
    /// It continues; at most one model call is repeated.
    #[default]
    Resume,
    /// It ends as interrupted.
    Interrupt,
}

/// Which model, of which engine. Made by [`crate::ports::Models::resolve`], so it names one that exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct ModelChoice {
    pub engine: String,
    pub model: String,
}

/// One prompt, from its start to its outcome, with the settings it really ran with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Turn {
    pub id: TurnId,
    pub thread_id: ThreadId,
    #[serde(default)]
    pub kind: TurnKind,
    pub status: TurnStatus,
    /// The caller's summary of the prompt, or its beginning.
    pub input_summary: String,
    /// The task of the thread's run that a job has this turn for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    #[serde(flatten)]
    pub settings: TurnSettings,
    /// The most that its model calls may spend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What they have spent, where it has a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Amount>,
    /// Summed over the model calls of the turn.
    pub usage: Usage,
    pub error: Option<TurnError>,
    /// Items in the order in which they began.
    pub item_ids: Vec<ItemId>,
    pub steer_count: u32,
    /// Times the turn was continued after the process that ran it was gone.
    pub resume_count: u32,
    /// Steers that came too late for the turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_delivered: Vec<InputId>,
    pub created_at: UnixMs,
    pub started_at: Option<UnixMs>,
    pub ended_at: Option<UnixMs>,
    pub duration_ms: Option<u64>,
}

/// What a turn is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnKind {
    /// A prompt is answered.
    #[default]
    Prompt,
    /// The conversation so far is replaced by a summary of it.
    Compaction,
}

/// What one turn runs with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TurnSettings {
    pub engine: String,
    pub model: String,
    pub mode: String,
    pub allow_shell: bool,
    pub auto_approve: bool,
    pub trust_mode: bool,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub max_tokens: Option<u32>,
    /// What the model cost when the turn began; absent when nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// What a start request sets for its own turn; what it leaves open, the thread's settings fill at the start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct TurnOverrides {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<ModelChoice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_shell: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_approve: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_mode: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_summary: Option<String>,
    /// The intent by which the tenant's routing rules chose the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_intent: Option<String>,
    /// The task that the turn is for. Only the runtime says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
}

/// Where a turn, or an item, stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnStatus {
    Queued,
    InProgress,
    AwaitingApproval,
    Completed,
    Failed,
    Interrupted,
    Canceled,
    RolledBack,
}

impl TurnStatus {
    /// Whether nothing of it can follow.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::InProgress | Self::AwaitingApproval => false,
            Self::Completed | Self::Failed | Self::Interrupted | Self::Canceled | Self::RolledBack => true,
        }
    }
}

/// Why a turn failed, or was closed for its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TurnError {
    /// Stable, kebab-case.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
}

/// Tokens of one or more model calls. What the provider did not report is absent, not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
    /// Model calls that were answered.
    pub model_calls: u32,
    /// Of those, calls whose provider reported no usage: the sums leave them out.
    pub unreported_calls: u32,
    /// Calls, answered or cut off, of which no usage was reported and that were held to a budget: their tokens are
    /// estimates, and are in the sums. One that was cut off is not in `model_calls`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub estimated_calls: u32,
}

const fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Usage {
    /// Adds another call or turn.
    pub fn add(&mut self, other: &Usage) {
        fn sum(into: &mut Option<u64>, more: Option<u64>) {
            if let Some(more) = more {
                *into = Some(into.unwrap_or(0).saturating_add(more));
            }
        }
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        sum(&mut self.cached_tokens, other.cached_tokens);
        sum(&mut self.reasoning_tokens, other.reasoning_tokens);
        self.model_calls = self.model_calls.saturating_add(other.model_calls);
        self.unreported_calls = self.unreported_calls.saturating_add(other.unreported_calls);
        self.estimated_calls = self.estimated_calls.saturating_add(other.estimated_calls);
    }
}

/// The usage of one model call, with the model that answered it, or was answering.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageEntry {
    pub engine: String,
    pub model: String,
    #[serde(default)]
    pub purpose: Purpose,
    #[serde(flatten)]
    pub usage: Usage,
    /// By the price in the turn's settings; absent when there is none, or no usage was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// What a model call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    #[default]
    Answer,
    /// The summary that takes the place of the conversation so far.
    Compaction,
}

/// A visible unit of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Item {
    pub id: ItemId,
    pub turn_id: TurnId,
    pub kind: ItemKind,
    pub status: TurnStatus,
    /// The beginning of `detail`, or a line about the item.
    pub summary: String,
    /// The item's text; of a tool item, its output.
    pub detail: String,
    #[schema(value_type = Object)]
    pub metadata: Metadata,
    pub artifact_refs: Vec<String>,
    pub started_at: UnixMs,
    pub ended_at: Option<UnixMs>,
}

/// What an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    UserMessage,
    AgentMessage,
    Reasoning,
    ToolCall,
    CommandExecution,
    FileChange,
    ContextCompaction,
    Status,
    Error,
}

impl ItemKind {
    /// Whether it is a tool call, whose text is the tool's output.
    pub const fn is_tool(self) -> bool {
        matches!(self, Self::ToolCall | Self::CommandExecution | Self::FileChange)
    }
}

/// A prompt in the thread's inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Admission {
    pub id: InputId,
    pub thread_id: ThreadId,
    #[serde(default)]
    pub kind: TurnKind,
    pub delivery: Delivery,
    pub status: AdmissionStatus,
    /// What becomes of a steer that comes too late.
    #[serde(default, skip_serializing_if = "Undelivered::is_report")]
    pub undelivered: Undelivered,
    pub prompt: String,
    /// The rest of the start request, as given.
    pub overrides: TurnOverrides,
    /// The turn it became; of a steer, the turn that it is meant for.
    pub turn_id: Option<TurnId>,
    pub created_at: UnixMs,
}

/// What a start asks for when a turn is already open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    #[default]
    Reject,
    Queue,
    Steer,
    Interrupt,
    Rollback,
}

/// Where an admission stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionStatus {
    Pending,
    /// It became a turn, or a part of one.
    Promoted,
    /// Its caller took it back.
    Withdrawn,
    /// A steer whose turn ended before the model could see it.
    NotDelivered,
}

/// What becomes of a steer whose turn ends before the model saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Undelivered {
    /// It is reported, and that is all.
    #[default]
    Report,
    /// It is reported, and becomes the next queued prompt.
    Queue,
}

impl Undelivered {
    const fn is_report(&self) -> bool {
        matches!(self, Self::Report)
    }
}

/// Something that a tool must not do before a person, or a rule made by one, lets it. Bound to one call: other
/// arguments are another approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    pub id: ApprovalId,
    pub thread_id: ThreadId,
    pub turn_id: TurnId,
    pub item_id: ItemId,
    /// The model's name for the call.
    pub call_id: String,
    pub operation_id: OperationId,
    pub tool: String,
    pub effect_class: EffectClass,
    #[schema(value_type = Object)]
    pub arguments: serde_json::Value,
    /// Over the canonical form (RFC 8785) of `arguments`; lower-case hex.
    pub arguments_sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Why it is asked.
    pub reason: String,
    /// The rule that made it necessary, or that answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_rule: Option<String>,
    pub available_decisions: Vec<Decision>,
    /// What `approved_for_session` and `approved_always` let pass from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amendment: Option<Permit>,
    pub status: ApprovalStatus,
    pub decision: Option<Decision>,
    /// Who decided: `caller`, or `auto`, `session`, `policy` where nobody had to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<DecidedBy>,
    /// What the decider said; of a denial, shown to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_reason: Option<String>,
    pub requested_at: UnixMs,
    pub expires_at: UnixMs,
    pub decided_at: Option<UnixMs>,
}

/// Where an approval stands. One that nobody decided is never recorded as a person's denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalStatus {
    Pending,
    Approved,
    Denied,
    Aborted,
    Expired,
    /// Its turn ended first.
    Cancelled,
}

/// What may be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// This call, once.
    Approved,
    /// This call, and what its amendment permits on this thread.
    ApprovedForSession,
    /// This call, and what its amendment permits for the whole tenant.
    ApprovedAlways,
    /// Not this call; the model is told.
    Denied,
    /// Not this call, and the turn ends.
    Abort,
}

/// Who decided an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    Caller,
    Auto,
    Session,
    Policy,
}

/// Which calls need not be asked about again. What is absent is not looked at; one that names neither arguments nor
/// a command nor a host permits nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Permit {
    pub tool: String,
    /// Exactly these arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_sha256: Option<String>,
    /// Commands that begin with these words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_prefix: Option<Vec<String>>,
    /// Calls that reach this host and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl Permit {
    /// Whether a call of `tool` is covered. `words` are those of its command, where it is one that a prefix may speak
    /// for; `hosts` are all that it reaches.
    pub fn covers(&self, tool: &str, arguments_sha256: &str, words: Option<&[String]>, hosts: &[String]) -> bool {
        let has_prefix = self.command_prefix.as_ref().is_some_and(|words| !words.is_empty());
        let narrowed = self.arguments_sha256.is_some() || has_prefix || self.host.is_some();
        let only = |host: &String| !hosts.is_empty() && hosts.iter().all(|reached| reached == host);
        narrowed
            && self.tool == tool
            && self.arguments_sha256.as_deref().is_none_or(|digest| digest == arguments_sha256)
            && self.command_prefix.as_ref().is_none_or(|prefix| words.is_some_and(|words| words.starts_with(prefix)))
            && self.host.as_ref().is_none_or(only)
    }
}

/// Something the agent asks a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Question {
    pub id: QuestionId,
    pub thread_id: ThreadId,
    pub turn_id: TurnId,
    pub item_id: ItemId,
    pub call_id: String,
    pub question: String,
    /// Answers that the agent proposes; any other is as good.
    pub options: Vec<String>,
    pub status: QuestionStatus,
    pub answer: Option<String>,
    pub asked_at: UnixMs,
    pub expires_at: UnixMs,
    pub answered_at: Option<UnixMs>,
}

/// Where a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuestionStatus {
    Pending,
    Answered,
    Expired,
    /// Its turn ended first.
    Cancelled,
}

/// How often something may be done without harm. Declared by the tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EffectClass {
    /// Changes nothing.
    Read,
    /// Done twice with the same operation id, it is as if done once.
    Idempotent,
    /// The tool can say later whether an operation happened.
    Reconcilable,
    /// Must not be done twice, and nobody can say whether it was done.
    Once,
}

/// One effect on the world, from intent to outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Effect {
    /// The same for every attempt.
    pub operation_id: OperationId,
    pub thread_id: ThreadId,
    pub turn_id: TurnId,
    pub item_id: ItemId,
    pub call_id: String,
    pub tool: String,
    pub class: EffectClass,
    /// The run whose ledger it is in: the one that its thread worked for when it was intended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The task of that run that its turn was for from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// In a ledger: over the canonical form (RFC 8785) of its arguments, in lower-case hex. Absent of what an agent did
    /// without asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_sha256: Option<String>,
    pub status: EffectStatus,
    /// Times it was started.
    pub attempt: u32,
    pub outcome: Option<EffectOutcome>,
    /// In a ledger: over its output as its item holds it, in lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_sha256: Option<String>,
    /// The length of what that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Why it is uncertain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was decided about an uncertain one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_by: Option<ResolvedBy>,
    /// Of an uncertain one: its turn has ended, so that nothing can be done about it here any more.
    #[serde(default)]
    pub closed: bool,
    pub intended_at: UnixMs,
    pub started_at: Option<UnixMs>,
    pub ended_at: Option<UnixMs>,
}

/// Where an effect stands. `intended → started → settled | uncertain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EffectStatus {
    /// Nothing has happened yet.
    Intended,
    /// It may have happened.
    Started,
    /// Its outcome is known.
    Settled,
    /// It was started, and nobody knows whether it happened.
    Uncertain,
}

/// How a settled effect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EffectOutcome {
    Succeeded,
    Failed,
    /// It was not done: its turn ended first.
    Canceled,
}

/// What is to become of an uncertain effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Start it again: it did not happen, or doing it again does no harm.
    Retry,
    /// It happened, with this output.
    Settle,
    /// End the turn.
    Abort,
}

/// Who resolved an uncertain effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResolvedBy {
    Caller,
    /// The tool was asked, and knew.
    Tool,
}

/// The replacement of a conversation by its summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Compaction {
    pub turn_id: TurnId,
    /// Whether the conversation's size called for it, not a caller.
    pub automatic: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Tokens of the last model call before it, where they were reported.
    pub tokens_before: Option<u64>,
    /// The item that holds the summary, once there is one.
    pub item_id: Option<ItemId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TurnError>,
}

/// A named place in a thread's log, from which a fork can begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    pub name: String,
    pub thread_id: ThreadId,
    /// The last event that a fork from here shares.
    pub seq: Seq,
    pub created_at: UnixMs,
}

/// What an interrupt did: the turn as it ended, and where in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InterruptReceipt {
    pub turn: Turn,
    /// The `seq` of the turn's terminal event.
    pub ended_seq: Seq,
    /// Every effect that the turn had started, with its state.
    pub effects: Vec<Effect>,
}

/// How deep JSON that comes from outside may nest: far below what a reader of our records can follow.
pub const MAX_DEPTH: usize = 64;

/// Whether objects and arrays in `value` nest deeper than `limit`.
pub fn nests_deeper(value: &serde_json::Value, limit: usize) -> bool {
    use serde_json::Value::{Array, Object};
    match value {
        Array(_) | Object(_) if limit == 0 => true,
        Array(values) => values.iter().any(|value| nests_deeper(value, limit - 1)),
        Object(values) => values.values().any(|value| nests_deeper(value, limit - 1)),
        _ => false,
    }
}

/// The beginning of `text` as one line: at most 200 characters, cut with an ellipsis.
pub fn summarize(text: &str) -> String {
    const LIMIT: usize = 200;
    let mut line = String::new();
    for (count, word) in text.split_whitespace().enumerate() {
        if count > 0 {
            line.push(' ');
        }
        line.push_str(word);
        if line.chars().nth(LIMIT).is_some() {
            let mut cut: String = line.chars().take(LIMIT - 1).collect();
            cut.push('…');
            return cut;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line_of_at_most_two_hundred_characters() {
        assert_eq!(summarize("  one\n\ttwo  "), "one two");
        assert_eq!(summarize(&"x".repeat(200)).chars().count(), 200);
        let cut = summarize(&"é ".repeat(300));
        assert_eq!(cut.chars().count(), 200);
        assert!(cut.ends_with('…'));
    }

    #[test]
    fn a_call_without_reported_usage_adds_a_call_and_no_tokens() {
        let mut sum = Usage { input_tokens: 3, output_tokens: 4, model_calls: 1, ..Usage::default() };
        sum.add(&Usage { model_calls: 1, unreported_calls: 1, ..Usage::default() });
        assert_eq!(sum.model_calls, 2);
        assert_eq!(sum.unreported_calls, 1);
        assert_eq!((sum.input_tokens, sum.output_tokens, sum.cached_tokens), (3, 4, None));
    }
}
