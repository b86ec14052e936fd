//! What may be asked of a thread, and every way in which it may be refused.

use serde::{Deserialize, Serialize};

use crate::{
    id::{Seq, TurnId},
    ports::{Answered, ModelError},
    record::{
        Admission, Delivery, InterruptReceipt, ItemKind, Metadata, ModelChoice, OnRestart, Thread, Turn, TurnOverrides,
    },
};

/// What a caller, an engine or the clock wants of one thread.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Patch(ThreadPatch),
    Delete,
    Start(StartTurn),
    Interrupt(TurnId),
    /// The engine speaks.
    Report(Report),
    /// First command of a loaded thread with an open turn and no engine. `restarted` when another process ran it.
    Recover {
        restarted: bool,
    },
    /// Time has passed.
    Tick,
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
#[derive(Debug, Clone, PartialEq)]
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
            metadata: Metadata::new(),
        }
    }
}

/// Settings to change; an inner `None` clears one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ThreadPatch {
    pub title: Option<Option<String>>,
    pub choice: Option<ModelChoice>,
    pub mode: Option<String>,
    pub system_prompt: Option<Option<String>>,
    pub workspace: Option<Option<String>>,
    pub allow_shell: Option<bool>,
    pub auto_approve: Option<bool>,
    pub trust_mode: Option<bool>,
    pub on_restart: Option<OnRestart>,
    pub archived: Option<bool>,
    pub metadata: Option<Metadata>,
}

/// A prompt and what to do with it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StartTurn {
    pub prompt: String,
    pub delivery: Delivery,
    pub overrides: TurnOverrides,
}

/// What the engine has to tell about one model call.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub turn: TurnId,
    /// Which model call of the turn; a report about another than the open one changes nothing.
    pub call: u32,
    /// Text that came since the last report, in order.
    pub text: Vec<(TextKind, String)>,
    /// How the call ended, if it did.
    pub end: Option<Result<Answered, ModelError>>,
}

/// The two sorts of text a model streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    #[error("the inbox holds {limit} prompts, its limit")]
    InboxFull { limit: u32 },
    #[error("`{field}` {why}")]
    Invalid { field: &'static str, why: String },
    #[error("`{field}` has {size} bytes; the limit is {limit}")]
    TooLarge { field: &'static str, size: usize, limit: usize },
    #[error("not built yet: {0}")]
    NotImplemented(&'static str),
}

/// The sizes and counts that a thread keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        }
    }
}
