//! What may be asked of a thread, and every way in which it may be refused.

use serde::{Deserialize, Serialize};

use crate::{
    budget::BudgetState,
    event::Reserved,
    id::{ApprovalId, InputId, OperationId, QuestionId, RunId, Seq, TurnId},
    policy::Policy,
    ports::{Act, Answered, ModelError, ToolEnd},
    record::{
        Admission, Approval, Checkpoint, Decision, Delivery, Effect, InterruptReceipt, ItemKind, Metadata, ModelChoice,
        OnRestart, Question, Resolution, Thread, Turn, TurnOverrides, Undelivered,
    },
    tenant::Budget,
};

/// What a caller, an engine or the clock wants of one thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Patch(ThreadPatch),
    Delete,
    Start(StartTurn),
    /// Takes the last prompt's turn out of the conversation and starts another in its place.
    Edit(StartTurn),
    Steer(Steer),
    Compact(Compact),
    Interrupt(Interrupt),
    EditPrompt(EditPrompt),
    Withdraw(InputId),
    Decide(Decide),
    Answer(Answer),
    Resolve(Resolve),
    SaveCheckpoint(String),
    DeleteCheckpoint(String),
    /// The engine speaks.
    Report(Report),
    /// The host is ready to run the tools that are due: their effects count as started from here on.
    Begin,
    /// A tool speaks.
    ToolReport(ToolReport),
    /// First command of a loaded thread with an open turn and no engine. `restarted` when another process ran it.
    Recover {
        restarted: bool,
    },
    /// Time has passed.
    Tick,
}

impl Command {
    /// Whether it is a person's word on work that is under way, rather than new work: a server that goes down still
    /// hears it.
    pub const fn ends_work(&self) -> bool {
        matches!(self, Self::Interrupt(_) | Self::Decide(_) | Self::Answer(_) | Self::Resolve(_) | Self::Withdraw(_))
    }
}

/// A command with what its caller believes about the thread.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub command: Command,
    /// Refuse unless the log ends here.
    pub if_match: Option<Seq>,
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self { command, if_match: None }
    }
}

/// The settings of a thread that is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewThread {
    pub choice: ModelChoice,
    pub title: Option<String>,
    pub mode: Option<String>,
    pub system_prompt: Option<String>,
    pub workspace: Option<String>,
    pub allow_shell: bool,
    pub auto_approve: bool,
    pub trust_mode: bool,
    pub on_restart: OnRestart,
    pub policy: Option<Policy>,
    pub run_id: Option<RunId>,
    pub budget: Option<Budget>,
    pub metadata: Metadata,
}

impl NewThread {
    /// A thread with nothing set but its model.
    pub fn with(choice: ModelChoice) -> Self {
        Self {
            choice,
            title: None,
            mode: None,
            system_prompt: None,
            workspace: None,
            allow_shell: false,
            auto_approve: false,
            trust_mode: false,
            on_restart: OnRestart::default(),
            policy: None,
            run_id: None,
            budget: None,
            metadata: Metadata::new(),
        }
    }
}

/// Settings to change; an inner `None` clears one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ThreadPatch {
    #[serde(with = "cleared", skip_serializing_if = "Option::is_none")]
    pub title: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<ModelChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(with = "cleared", skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<Option<String>>,
    #[serde(with = "cleared", skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_shell: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_approve: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_mode: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_restart: Option<OnRestart>,
    #[serde(with = "cleared", skip_serializing_if = "Option::is_none")]
    pub policy: Option<Option<Policy>>,
    #[serde(with = "cleared", skip_serializing_if = "Option::is_none")]
    pub run_id: Option<Option<RunId>>,
    #[serde(with = "cleared", skip_serializing_if = "Option::is_none")]
    pub budget: Option<Option<Budget>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived: Option<bool>,
    /// Whether queued prompts wait although no turn is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_paused: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// A setting that may be left alone, cleared (`null`) or set.
mod cleared {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(of: &Option<Option<T>>, to: S) -> Result<S::Ok, S::Error> {
        of.as_ref().and_then(Option::as_ref).serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
        Option::deserialize(from).map(Some)
    }
}

/// A prompt and what to do with it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StartTurn {
    pub prompt: String,
    pub delivery: Delivery,
    /// What delivery `steer` does when no turn is open.
    pub if_idle: IfIdle,
    /// Refuse unless this turn is open.
    pub expected_turn: Option<TurnId>,
    /// What becomes of a steer that comes too late.
    pub undelivered: Undelivered,
    pub overrides: TurnOverrides,
}

/// What a steer does when there is nothing to steer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IfIdle {
    #[default]
    Start,
    Reject,
}

/// Something for the model of an open turn to see at its next step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Steer {
    pub turn: TurnId,
    pub prompt: String,
    pub undelivered: Undelivered,
}

/// Replace the conversation so far by a summary.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Compact {
    pub reason: Option<String>,
    /// [`Delivery::Reject`] or [`Delivery::Queue`].
    pub delivery: Delivery,
}

/// End the open turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupt {
    pub turn: TurnId,
    /// Whether queued prompts then wait until the queue is resumed.
    pub pause_queue: bool,
}

/// Change a prompt that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EditPrompt {
    pub input: InputId,
    pub prompt: Option<String>,
    /// Its new place in the inbox, from 0; beyond the end is the end.
    pub position: Option<u32>,
}

/// A person's word on an approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decide {
    pub approval: ApprovalId,
    pub decision: Decision,
    /// Of a denial, shown to the model.
    pub reason: Option<String>,
}

/// A person's answer to a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub question: QuestionId,
    pub answer: String,
}

/// A person's word on an uncertain effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolve {
    pub operation: OperationId,
    pub resolution: Resolution,
    /// With [`Resolution::Settle`]: what the tool would have said.
    pub output: Option<String>,
}

/// What one attempt of a tool has to tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolReport {
    pub operation: OperationId,
    /// A report about another attempt than the one that is under way changes nothing.
    pub attempt: u32,
    /// Text that came since the last report.
    pub said: String,
    /// How the attempt ended, if it did.
    pub end: Option<ToolEnd>,
}

/// What the engine has to tell about one model call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub turn: TurnId,
    /// Which model call of the turn; a report about another than the open one changes nothing.
    pub call: u32,
    /// Text that came since the last report, in order.
    pub text: Vec<(TextKind, String)>,
    /// What an agent did after that text, in order.
    pub acts: Vec<Act>,
    /// What it has taken by then, if it is held to a budget.
    pub metered: Option<Metered>,
    /// How the call ended, if it did.
    pub end: Option<Result<Answered, ModelError>>,
}

/// What is known of a model call that is held to a budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metered {
    /// An estimate; nothing before the call was made.
    pub reserved: Reserved,
    /// Whether the log is to say that exactly: what comes next may end the call.
    pub exactly: bool,
    /// Budgets of the tenant of which somebody should hear.
    pub warnings: Vec<BudgetState>,
    /// The budget in which there is no room for more.
    pub exceeded: Option<BudgetState>,
}

/// The two sorts of text a model streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextKind {
    Answer,
    Reasoning,
}

impl TextKind {
    /// The item that holds such text.
    pub const fn item(self) -> ItemKind {
        match self {
            Self::Answer => ItemKind::AgentMessage,
            Self::Reasoning => ItemKind::Reasoning,
        }
    }
}

/// What the caller of an accepted command is told, once the step is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Thread(Box<Thread>),
    Deleted,
    Started(Box<Turn>),
    Queued {
        admission: Box<Admission>,
        active_turn: TurnId,
    },
    Interrupted(Box<InterruptReceipt>),
    /// A prompt that waits, as it now is, and its place in the inbox.
    Admission(Box<Admission>, u32),
    Withdrawn,
    Approval(Box<Approval>),
    Question(Box<Question>),
    Effect(Box<Effect>),
    Checkpoint(Box<Checkpoint>),
    /// Engine reports and ticks need no answer.
    Noted,
}

/// Why a command changed nothing, anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("turn {turn} is open; wait for it, interrupt it, or start with delivery `queue`")]
    TurnOpen { turn: TurnId },
    #[error("the thread is archived; unarchive it first")]
    ThreadArchived,
    #[error("turn {turn} is not the active turn")]
    TurnNotActive { turn: TurnId, active: Option<TurnId> },
    #[error("the thread is at seq {head}, not at {expected}")]
    Precondition { expected: Seq, head: Seq },
    #[error("no turn is open to be steered")]
    NothingToSteer,
    #[error("the conversation has no turn that could be edited")]
    NothingToEdit,
    #[error("the conversation has nothing to compact")]
    NothingToCompact,
    /// Not in the inbox: it never was, was withdrawn, or became a turn.
    #[error("the prompt {input} does not wait")]
    NotQueued { input: InputId },
    /// Nobody waits for this decision: there never was such an approval on the thread, or it is over.
    #[error("the approval {approval} is not pending")]
    NotPending { approval: ApprovalId },
    #[error("the approval expired at {at}")]
    Expired { at: crate::time::UnixMs },
    #[error("the question {question} is not pending")]
    NotAsked { question: QuestionId },
    #[error("the effect {operation} is not uncertain")]
    NotUncertain { operation: OperationId },
    #[error("{0}")]
    BudgetExceeded(Box<BudgetState>),
    #[error("there is no checkpoint `{name}`")]
    NoCheckpoint { name: String },
    #[error("the inbox holds {limit} prompts, its limit")]
    InboxFull { limit: u32 },
    /// The tenant has as much as it may; `limit` is the quota's name.
    #[error("the tenant's quota of `{limit}` is used up: the limit is {max}")]
    Quota { limit: &'static str, max: u64 },
    #[error("`{field}` {why}")]
    Invalid { field: &'static str, why: String },
    #[error("`{field}` has {size} bytes; the limit is {limit}")]
    TooLarge { field: &'static str, size: usize, limit: usize },
}

/// The sizes and counts that a thread keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub inbox_per_thread: u32,
    pub prompt_bytes: usize,
    /// One item's text.
    pub item_bytes: usize,
    /// Title, mode, workspace, input summary: each.
    pub field_bytes: usize,
    pub system_prompt_bytes: usize,
    pub metadata_bytes: usize,
    /// Model calls of one turn that end in tool calls.
    pub model_calls_per_turn: u32,
    /// Tries of one model call.
    pub model_attempts: u32,
    /// First pause before another try; doubles with each.
    pub retry_base_ms: u64,
    /// The longest pause before another try; a provider that asks for more fails the call.
    pub retry_cap_ms: u64,
    /// How long a turn may be open.
    pub turn_ms: u64,
    /// Times in a row that a turn is continued after a crash without having got anywhere.
    pub resumes_without_progress: u32,
    /// How long a person may take to decide.
    pub approval_ms: u64,
    /// How long a person may take to answer.
    pub question_ms: u64,
    /// Tokens of a model call from which on the conversation is compacted before the next one; 0: never by itself.
    pub compact_at_tokens: u64,
    /// Attempts of one tool call, as long as its class allows any.
    pub tool_attempts: u32,
    /// Checkpoints of one thread.
    pub checkpoints: u32,
    /// Tokens of output that are reserved at a time for a model call that is held to a budget.
    pub reserve_output_tokens: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inbox_per_thread: 100,
            prompt_bytes: 256 * 1024,
            item_bytes: 1024 * 1024,
            field_bytes: 4 * 1024,
            system_prompt_bytes: 64 * 1024,
            metadata_bytes: 16 * 1024,
            model_calls_per_turn: 100,
            model_attempts: 4,
            retry_base_ms: 500,
            retry_cap_ms: 60_000,
            turn_ms: 60 * 60 * 1000,
            resumes_without_progress: 20,
            approval_ms: 24 * 60 * 60 * 1000,
            question_ms: 24 * 60 * 60 * 1000,
            compact_at_tokens: 0,
            tool_attempts: 3,
            checkpoints: 100,
            reserve_output_tokens: 1024,
        }
    }
}
