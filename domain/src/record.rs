//! The records a caller sees and the log stores. One shape each: what is written is what the API sends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    id::{InputId, ItemId, Seq, ThreadId, TurnId},
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
    pub archived: bool,
    pub active_turn: Option<TurnId>,
    /// Prompts that wait in the inbox.
    pub queued: u32,
    pub pending_approvals: u32,
    pub created_at: UnixMs,
    /// When a turn last began or ended, or the settings last changed.
    pub updated_at: UnixMs,
    /// The newest event of the thread's log.
    pub seq: Seq,
    #[schema(value_type = Object)]
    pub metadata: Metadata,
}

/// What a thread is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThreadStatus {
    Idle,
    Running,
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
    pub status: TurnStatus,
    /// The caller's summary of the prompt, or its beginning.
    pub input_summary: String,
    #[serde(flatten)]
    pub settings: TurnSettings,
    /// Summed over the model calls of the turn.
    pub usage: Usage,
    pub error: Option<TurnError>,
    /// Items in the order in which they began.
    pub item_ids: Vec<ItemId>,
    pub steer_count: u32,
    /// Times the turn was continued after the process that ran it was gone.
    pub resume_count: u32,
    pub created_at: UnixMs,
    pub started_at: Option<UnixMs>,
    pub ended_at: Option<UnixMs>,
    pub duration_ms: Option<u64>,
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
    pub input_summary: Option<String>,
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
    }
}

/// The usage of one model call, with the model that answered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageEntry {
    pub engine: String,
    pub model: String,
    #[serde(flatten)]
    pub usage: Usage,
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

/// A prompt in the thread's inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Admission {
    pub id: InputId,
    pub thread_id: ThreadId,
    pub delivery: Delivery,
    pub status: AdmissionStatus,
    pub prompt: String,
    /// The rest of the start request, as given.
    pub overrides: TurnOverrides,
    /// The turn it became.
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
    Promoted,
}

/// What an interrupt did: the turn as it ended, and where in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InterruptReceipt {
    pub turn: Turn,
    /// The `seq` of the turn's terminal event.
    pub ended_seq: Seq,
    /// Every effect that the turn had started, with its state. Empty while no tool can have one.
    #[schema(value_type = Vec<Object>)]
    pub effects: Vec<serde_json::Value>,
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
