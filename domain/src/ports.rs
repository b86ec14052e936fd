//! What the rules need from the world, and the errors each part of it may return.

use std::{borrow::Cow, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    command::Refused,
    history::{Message, ToolCall},
    id::{JobId, OperationId, RunId, Seq, TenantId, ThreadId, ThreadKey, TurnId},
    job::Work,
    policy::{Policy, TenantRules, decide::Decided},
    price::Totals,
    record::{EffectClass, ItemKind, ModelChoice, Permit, Purpose, Thread, TurnSettings, Usage},
    time::UnixMs,
};

// ---- time and names ------------------------------------------------------------------------------

/// The one place where time comes from.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> UnixMs;
}

/// The one place where fresh names come from.
pub trait Ids: Send + Sync + 'static {
    /// A UUIDv7 that no earlier call returned.
    fn mint(&self) -> Uuid;
}

// ---- models --------------------------------------------------------------------------------------

/// Everything one model call is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRequest {
    /// The model's name at its provider.
    pub model: String,
    pub messages: Vec<Message>,
    /// Where in `messages` the open turn begins, with its prompt. What users say behind it are steers.
    pub turn_start: usize,
    pub purpose: Purpose,
    /// The tools that the model may call.
    pub tools: Vec<Arc<ToolSpec>>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub max_tokens: Option<u32>,
}

impl ModelRequest {
    /// The bytes of what a model is told. Names and frames of the provider's format are not counted.
    pub fn bytes(&self) -> u64 {
        let message = |message: &Message| match message {
            Message::System { content } | Message::User { content } | Message::Tool { content, .. } => content.len(),
            Message::Assistant { content, tool_calls, .. } => {
                let calls = tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
                content.len() + calls.sum::<usize>()
            }
        };
        let messages: usize = self.messages.iter().map(message).sum();
        let tools = self.tools.iter().map(|tool| tool.name.len() + tool.description.len() + json_len(&tool.schema));
        (messages + tools.sum::<usize>()) as u64
    }
}

fn json_len(value: &serde_json::Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

/// A piece of an answer, as it arrives.
#[derive(Debug, Clone, PartialEq)]
pub enum Fragment {
    Text(String),
    Reasoning(String),
    /// A part of the tool call at `index`; `arguments` are appended in order.
    ToolCall {
        index: u32,
        call_id: Option<String>,
        name: Option<String>,
        arguments: String,
    },
    /// What an engine did that acts by itself, or wants to do.
    Act(Act),
    Usage(Usage),
    /// Why the answer ended. A stream that ends without one was cut off.
    Finish(FinishReason),
}

/// A call that an agent makes itself, in the middle of its answer: what it is by now, and what has come of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Act {
    /// The agent's name for the call, the same in each of its steps.
    pub call_id: String,
    /// What the agent uses, as rules and approvals name it.
    pub tool: String,
    /// For people.
    pub title: String,
    pub kind: ItemKind,
    pub arguments: serde_json::Value,
    pub step: ActStep,
}

/// What has come of an act. Each may be the first that is heard of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActStep {
    /// It is meant to happen.
    Announced,
    /// A person is to say whether it may. The agent waits for the [`Verdict`].
    Asks(Box<Planned>),
    /// It would have asked, and a rule has answered.
    Forbidden {
        planned: Box<Planned>,
        reason: String,
        rule: String,
    },
    /// It may have happened, from now on.
    Started,
    /// More of its output.
    Said(String),
    Ended {
        done: bool,
        output: String,
    },
}

/// What was decided about an act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The agent's name for the call; where it asks twice about one, the verdicts come in the order of the questions.
    pub call_id: String,
    pub allowed: bool,
}

/// Verdicts as they are made, for as long as the call lasts.
pub type Verdicts = Pin<Box<dyn Stream<Item = Verdict> + Send>>;

/// What an engine needs that acts by itself.
pub struct Errand {
    pub key: ThreadKey,
    pub turn: TurnId,
    pub workspace: Option<String>,
    pub verdicts: Verdicts,
}

/// Why a model stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    ToolCalls,
    /// The token limit of the call.
    Length,
    /// Any other reason, in the provider's word.
    Other(String),
}

impl FinishReason {
    /// The word that item metadata carries.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::ToolCalls => "tool_calls",
            Self::Length => "length",
            Self::Other(word) => word,
        }
    }
}

/// A whole answer's end: what the fragments do not carry on their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    pub reason: FinishReason,
    /// `None` when the provider reported none.
    pub usage: Option<Usage>,
    pub tool_calls: Vec<Requested>,
}

/// A tool call as the model asked for it, and what is to be made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requested {
    pub call: ToolCall,
    pub judgement: Judgement,
}

/// Why a model call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct ModelError {
    pub kind: ModelErrorKind,
    /// A sentence for the caller; never holds a secret.
    pub message: String,
    /// How long the provider asked to wait.
    pub retry_after: Option<Duration>,
}

/// The sorts of failure, as far as anyone acts on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelErrorKind {
    /// No connection.
    Unreachable,
    /// No answer, or none that goes on, within the time allowed.
    Timeout,
    /// 429.
    RateLimited,
    /// 5xx, or an error object that says overloaded.
    Unavailable,
    /// The stream ended before the answer did.
    CutOff,
    /// Bytes that are not an answer.
    Malformed,
    /// Refused for good: bad request, bad key, unknown model.
    Rejected,
    /// The answer grew beyond the item limit of this server.
    TooLarge,
    /// The call could not be made, or heard, for a reason of ours.
    Engine,
    /// There is no room for it, or for more of it, in a budget.
    Budget,
    /// No model is called for the tenant.
    Suspended,
}

impl ModelErrorKind {
    /// Whether the same call may succeed later.
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Unreachable | Self::Timeout | Self::RateLimited | Self::Unavailable | Self::CutOff => true,
            Self::Malformed | Self::Rejected | Self::TooLarge | Self::Engine | Self::Budget | Self::Suspended => false,
        }
    }

    /// Whether a call that failed so before a word of its answer came is one that its provider did nothing for.
    pub const fn is_free(self) -> bool {
        match self {
            Self::Unreachable | Self::RateLimited | Self::Unavailable | Self::Rejected | Self::Suspended => true,
            Self::Timeout | Self::CutOff | Self::Malformed | Self::TooLarge | Self::Engine | Self::Budget => false,
        }
    }

    /// Every one of them.
    pub fn all() -> impl Iterator<Item = Self> {
        [
            Self::Unreachable,
            Self::Timeout,
            Self::RateLimited,
            Self::Unavailable,
            Self::CutOff,
            Self::Malformed,
            Self::Rejected,
            Self::TooLarge,
            Self::Engine,
            Self::Budget,
            Self::Suspended,
        ]
        .into_iter()
    }

    /// The code a failed turn carries.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "model-unreachable",
            Self::Timeout => "model-timeout",
            Self::RateLimited => "model-rate-limited",
            Self::Unavailable => "model-unavailable",
            Self::CutOff => "model-cut-off",
            Self::Malformed => "model-malformed",
            Self::Rejected => "model-rejected",
            Self::TooLarge => "output-too-large",
            Self::Engine => "engine-failed",
            Self::Budget => "budget-exceeded",
            Self::Suspended => "tenant-suspended",
        }
    }
}

/// An answer as it comes. Dropping it cancels the call.
pub type ModelStream = Pin<Box<dyn Stream<Item = Result<Fragment, ModelError>> + Send>>;

/// One provider of models.
pub trait Model: Send + Sync + 'static {
    /// Makes one call. Failures to connect are the stream's first item.
    fn call(&self, request: ModelRequest) -> ModelStream;

    /// Makes one call of an engine that acts by itself. Others only answer.
    fn act(&self, request: ModelRequest, errand: Errand) -> ModelStream {
        drop(errand);
        self.call(request)
    }
}

/// The models that are configured.
pub trait Models: Send + Sync + 'static {
    /// Finds the model that `engine` and `model` mean; nothing given means the default.
    fn resolve(&self, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel>;

    /// The provider named by a choice that [`Models::resolve`] once made; gone when the configuration changed.
    fn engine(&self, engine: &str) -> Option<Arc<dyn Model>>;

    /// The names of the engines, for people.
    fn engines(&self) -> Vec<String>;
}

/// A name that no configured model answers to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownModel(pub String);

// ---- tools ---------------------------------------------------------------------------------------

/// What a model is told about a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments, which are an object.
    pub schema: serde_json::Value,
}

/// What is to be made of a tool call, before anything happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// There is no such tool.
    Unknown,
    /// The arguments do not fit the tool; the sentence is for the model.
    Invalid(String),
    /// A rule forbids it.
    Forbidden { reason: String, rule: String },
    /// It is a question to a person.
    Question { question: String, options: Vec<String> },
    /// It is to be run, if it may.
    Run(Box<Planned>),
}

/// The turn in which a call is made, as far as tools and policies look at it.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub key: ThreadKey,
    pub workspace: Option<&'a str>,
    /// The thread's own layer.
    pub policy: Option<&'a Policy>,
    /// The run that the thread works for.
    pub run: Option<RunId>,
    pub settings: &'a TurnSettings,
}

/// A call that somebody wonders about.
#[derive(Debug, Clone, Copy)]
pub enum Supposed<'a> {
    Call(&'a ToolCall),
    /// Of a tool that runs commands, whether it is configured or not.
    Command {
        tool: &'a str,
        line: &'a str,
    },
}

/// What would be decided about a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Explained {
    Unknown,
    Invalid(String),
    Decided(Box<Decided>),
}

/// A tool call that can be run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// What the call shows as.
    pub kind: ItemKind,
    pub class: EffectClass,
    pub gate: Gate,
    pub arguments: serde_json::Value,
    /// Over the canonical form (RFC 8785) of `arguments`; lower-case hex.
    pub arguments_sha256: String,
    /// For people: what will be run, and where.
    pub command: Option<String>,
    pub cwd: Option<String>,
    /// The words of the command, where it is one that the beginning of a command may speak for.
    pub words: Option<Vec<String>>,
    /// The hosts that it reaches.
    pub hosts: Vec<String>,
    /// Why it has to be asked, where it has to be.
    pub reason: String,
    /// The rule because of which it has to be asked.
    pub asked_by: Option<String>,
    /// What a lasting approval would let pass.
    pub amendment: Option<Permit>,
    /// The rule that lets it pass.
    pub permitted_by: Option<String>,
}

/// Who has to agree to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Nobody.
    Open,
    /// A person, unless the turn approves by itself.
    Ask,
    /// A person, unless the turn approves by itself and is trusted.
    FullAccess,
    /// A person, whatever the turn says.
    Person,
}

/// One attempt of one tool call.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    pub key: ThreadKey,
    pub turn: TurnId,
    /// The same for every attempt: what makes an idempotent tool idempotent.
    pub operation: OperationId,
    /// From 1.
    pub attempt: u32,
    pub tool: String,
    pub arguments: serde_json::Value,
    pub workspace: Option<String>,
    /// The thread's own layer of the policy. Its `sandbox` is what all layers come to.
    pub policy: Option<Policy>,
    /// Whether the turn is trusted.
    pub trusted: bool,
    /// The run whose ledger the effect is in: what is changed for a run can be taken back.
    pub run: Option<RunId>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolEnd {
    /// It happened; the output is for the model.
    Done(String),
    /// It is over and did not succeed; the sentence is for the model.
    Failed(String),
    /// It did not happen, which only a tool that was asked can say.
    NotDone,
    /// Nobody knows whether it happened.
    Unknown(String),
}

/// Where a tool at work says what it has to say before its end. It is saved and streamed; what the end says takes its
/// place.
pub trait Output: Send + Sync + 'static {
    /// Adds text. Ready once there is room for it: a tool that says more than the thread can save has to wait.
    fn say(&self, text: String) -> Saying<'_>;
}

/// Text on its way to the log.
pub type Saying<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silence;

impl Output for Silence {
    fn say(&self, _: String) -> Saying<'_> {
        Box::pin(async {})
    }
}

/// A tool at work. Dropping it gives it up, whatever it has done.
pub type ToolRun = Pin<Box<dyn Future<Output = ToolEnd> + Send>>;

/// The tools that are configured.
pub trait Tools: Send + Sync + 'static {
    /// What may be offered to the model of such a turn.
    fn specs(&self, scene: Scene<'_>) -> Vec<Arc<ToolSpec>>;

    /// Judges a call, by what the tenant has said among others.
    fn judge(&self, call: &ToolCall, scene: Scene<'_>, rules: &TenantRules) -> Judgement;

    /// Says what would be decided about a call, and why. Nothing comes of it.
    fn explain(&self, _: Supposed<'_>, _: Scene<'_>, _: &TenantRules) -> Explained {
        Explained::Unknown
    }

    /// Judges what an agent asks for that no tool of ours is, as it asks it.
    fn judge_act(&self, tool: &str, planned: Planned, _scene: Scene<'_>, rules: &TenantRules) -> Judgement {
        let covering =
            rules.permits.iter().find(|(_, permit)| permit.covers(tool, &planned.arguments_sha256, None, &[]));
        let permitted_by = covering.map(|(rule, _)| rule.clone());
        Judgement::Run(Box::new(Planned { permitted_by, ..planned }))
    }

    /// Runs a call that was judged, as often as its class allows.
    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun;

    /// Asks a reconcilable tool what became of an operation that it was started with.
    fn reconcile(&self, invocation: Invocation) -> ToolRun;
}

/// No tools at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTools;

impl Tools for NoTools {
    fn specs(&self, _: Scene<'_>) -> Vec<Arc<ToolSpec>> {
        Vec::new()
    }
    fn judge(&self, _: &ToolCall, _: Scene<'_>, _: &TenantRules) -> Judgement {
        Judgement::Unknown
    }
    fn run(&self, invocation: Invocation, _: Arc<dyn Output>) -> ToolRun {
        Box::pin(async move { ToolEnd::Failed(format!("unknown tool: {}", invocation.tool)) })
    }
    fn reconcile(&self, _: Invocation) -> ToolRun {
        Box::pin(async { ToolEnd::Unknown("the tool is no longer configured".to_owned()) })
    }
}

// ---- hooks ---------------------------------------------------------------------------------------

/// An event on its way out. Its place in the tenant's feed never changes, so whoever gets it twice can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookEvent {
    /// The append in the feed.
    pub position: u64,
    pub seq: Seq,
    pub event: StoredEvent,
}

/// Events of one tenant, in the order of its feed, for one sink. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookBatch {
    /// The name of the hook.
    pub hook: Arc<str>,
    pub tenant: TenantId,
    /// When they were handed over.
    pub at: UnixMs,
    pub events: Vec<HookEvent>,
}

/// Why a sink did not take a batch. The sentences are for people and hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It may later.
    #[error("{why}")]
    Unavailable {
        why: String,
        /// Not before.
        retry_after: Option<Duration>,
    },
    /// It says that it never will.
    #[error("{0}")]
    Rejected(String),
}

/// A delivery at work. Dropping it gives it up; what was delivered then, nobody knows.
pub type SinkWork = Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send>>;

/// Where events go.
pub trait Sink: Send + Sync + 'static {
    /// The most events that it takes, or leaves, at once.
    fn most(&self) -> usize {
        usize::MAX
    }

    /// Whether it would look at an event that its hook wants by name. Called for each commit: it must not take long.
    fn looks_at(&self, _: &StoredEvent) -> bool {
        true
    }

    /// Takes the whole batch, or may get all of it again. `Ok` when nothing short of a failing disk, or of whoever
    /// answered for it, can lose it.
    fn deliver(&self, batch: HookBatch) -> SinkWork;
}

// ---- jobs ----------------------------------------------------------------------------------------

/// One run of a job that is not a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRun {
    pub tenant: TenantId,
    pub job: JobId,
    /// From 1; the same when a run is made again because nobody knows whether it came to its end.
    pub run: u32,
    pub at: UnixMs,
    pub work: Work,
    /// The thread that the work names, as it is now.
    pub thread: Option<Thread>,
    pub rules: TenantRules,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEnd {
    Done(serde_json::Value),
    Failed {
        why: String,
        /// Whether another run may succeed.
        again: bool,
    },
    /// Nobody knows whether it happened.
    Unknown(String),
}

/// A run at work. Dropping it gives it up, whatever it has done.
pub type JobWork = Pin<Box<dyn Future<Output = JobEnd> + Send>>;

/// Why work is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobDenied {
    /// A part of the payload cannot be used.
    Invalid { field: &'static str, why: String },
    /// A rule forbids it.
    Forbidden { reason: String, rule: String },
}

/// Who runs webhooks and commands.
pub trait JobRunner: Send + Sync + 'static {
    /// Judges work when it is asked for. What it says is kept in the record: why a person would have been asked, had
    /// it not been a person's own wish.
    fn judge(&self, run: &JobRun) -> Result<Option<String>, JobDenied>;

    /// Runs it.
    fn run(&self, run: JobRun, output: Arc<dyn Output>) -> JobWork;
}

/// Nobody runs them.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRunner;

impl JobRunner for NoRunner {
    fn judge(&self, _: &JobRun) -> Result<Option<String>, JobDenied> {
        Err(JobDenied::Invalid { field: "kind", why: "is not run by this server".to_owned() })
    }
    fn run(&self, _: JobRun, _: Arc<dyn Output>) -> JobWork {
        Box::pin(async { JobEnd::Failed { why: "this server does not run such jobs".to_owned(), again: false } })
    }
}

// ---- files of workspaces ---------------------------------------------------------------------------

/// A file that an operation changed: what it was, and what it became. `None` where there was, or is, no file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedFile {
    /// Relative to the workspace, with `/` between its parts.
    pub path: String,
    pub before: Option<Content>,
    pub after: Option<Content>,
    /// The permissions that it had, where there was a file: those of one that is made again. A file that is still there
    /// keeps the permissions that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// What a file holds, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = FileContent)]
pub struct Content {
    /// Lower-case hex.
    pub sha256: String,
    pub bytes: u64,
}

/// What one operation did to files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesChanged {
    /// The workspace by a name that its threads may call it, the same however they spell it.
    pub workspace: String,
    pub files: Vec<ChangedFile>,
}

/// Files that are to be again what they were. Each must still be what it became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    pub tenant: TenantId,
    /// The same for every attempt: what was done under it is not done again.
    pub operation: OperationId,
    pub workspace: String,
    /// Each path once.
    pub files: Vec<ChangedFile>,
}

/// How a restoring ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restored {
    /// Every file is what it was.
    Done,
    /// No file was touched; the sentence says why.
    Refused(String),
    /// Some may be restored and others not; trying again goes on where this ended.
    Torn(String),
}

/// Something that is on its way.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Who knows what tools did to files, and can take it back.
pub trait Files: Send + Sync + 'static {
    /// What an operation changed; nothing where it changed nothing, or that is not known any more.
    fn changed(&self, tenant: TenantId, operation: OperationId) -> Pending<std::io::Result<Option<FilesChanged>>>;

    /// Restores all of the files or none.
    fn restore(&self, restore: Restore) -> Pending<Restored>;
}

/// No workspaces at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn changed(&self, _: TenantId, _: OperationId) -> Pending<std::io::Result<Option<FilesChanged>>> {
        Box::pin(async { Ok(None) })
    }
    fn restore(&self, _: Restore) -> Pending<Restored> {
        Box::pin(async { Restored::Refused("this server has no workspaces".to_owned()) })
    }
}

// ---- the log -------------------------------------------------------------------------------------

/// Serialised events that stand side by side in a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// The seq of `events[0]`.
    pub first: Seq,
    pub events: Vec<StoredEvent>,
}

impl Chunk {
    /// The seq of the last event; `first - 1` when there is none.
    pub fn last(&self) -> Seq {
        self.first + self.events.len() as Seq - 1
    }
}

/// One event as the bytes that are stored, streamed and paged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// The wire name, so that a stream is framed without parsing.
    pub name: Cow<'static, str>,
    /// The record as JSON. Events that were read together share their memory.
    pub json: Bytes,
}

/// The one row of a thread: what is true now, and from where to rebuild the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadRow {
    pub head: RowHead,
    /// The thread record as JSON, exactly as the API shows it.
    pub view: Arc<[u8]>,
    /// The state of the thread's machine as of `head.snapshot_seq`.
    pub snapshot: Arc<[u8]>,
}

/// What a log is of. All are kept as threads are; the rows of the others stand in no list of threads, and jobs and
/// schedules have their own indexes of what runs and what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogKind {
    #[default]
    Thread,
    Job,
    Schedule,
    Run,
}

/// The fixed part of a thread row; the store keeps its indexes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowHead {
    /// The newest event of the log.
    pub last_seq: Seq,
    /// The event up to which the snapshot holds; what follows is folded from the log.
    pub snapshot_seq: Seq,
    /// The epoch of the writer: a store refuses a writer older than the row.
    pub fence: u64,
    /// Where the thread stands in listings, most recent first.
    pub listed_at: UnixMs,
    /// Since when the thread has had work that must go on by itself.
    pub owes_since: Option<UnixMs>,
    /// When a thread that only waits must be woken, loaded or not.
    pub wake_at: Option<UnixMs>,
    pub archived: bool,
    /// Prompts that wait in its inbox.
    pub queued: u32,
    /// Never changes.
    pub kind: LogKind,
}

/// A turn that ended, with the places in the log of its items' final events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledTurn {
    pub id: TurnId,
    /// The seq of `turn.started`: turns are in this order.
    pub started_seq: Seq,
    /// The turn record as JSON.
    pub turn: Vec<u8>,
    /// The seq of each item's `item.completed`, in item order.
    pub items: Vec<Seq>,
    /// Where the conversation that the turn's model saw begins: the `started_seq` of the turn that holds the newest
    /// compaction before it; 0 when there was none.
    pub context_seq: Seq,
    /// The seq of its `turn.rolled_back`, if it was taken out of the conversation.
    pub reverted: Option<Seq>,
}

/// The stored reply to a request that named an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// SHA-256 over method, route and key.
    pub key: [u8; 32],
    /// SHA-256 over the request.
    pub request: [u8; 32],
    /// The reply as JSON.
    pub reply: Vec<u8>,
    pub expires_at: UnixMs,
}

/// One step of one thread, to be stored whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "almost every write is an append: a box for each would save nothing")]
pub enum Write {
    Append(Append),
    /// Removes what can be found of a thread whose row cannot be read, which no writer can own. Refused as a
    /// conflict if the row can be read.
    Purge {
        key: ThreadKey,
    },
    /// Removes every record of the thread. What its forks share with it becomes theirs.
    Erase {
        key: ThreadKey,
        fence: u64,
        expected: Seq,
    },
    /// Puts documents beside those that are there, or in the place of those with the same names.
    Put {
        tenant: TenantId,
        documents: Vec<Document>,
    },
    /// Replaces every document of one kind.
    Documents {
        tenant: TenantId,
        kind: DocumentKind,
        documents: Vec<Document>,
    },
    /// Removes one document, if it is there.
    Forget {
        tenant: TenantId,
        kind: DocumentKind,
        id: [u8; 32],
    },
    /// Closes a tenant: no other write of it is taken, and no view shows anything of it. Closing what is closed for
    /// the same reason changes nothing.
    Close {
        tenant: TenantId,
        to: Closing,
        at: UnixMs,
    },
    /// Removes the next of the records of a tenant that is closed to be emptied. Answered with 1 while there are more;
    /// with 0 once all are gone, which is noted in the same commit.
    Sweep {
        tenant: TenantId,
        at: UnixMs,
    },
    /// Puts records of a tenant that is closed to be filled, as they are.
    Import {
        tenant: TenantId,
        records: Vec<Raw>,
    },
    /// Opens a tenant that is closed, with documents that it did not have.
    Open {
        tenant: TenantId,
        documents: Vec<Document>,
    },
}

impl Write {
    /// Whose records it changes.
    pub const fn tenant(&self) -> TenantId {
        match self {
            Self::Append(Append { key, .. }) | Self::Purge { key } | Self::Erase { key, .. } => key.tenant,
            Self::Put { tenant, .. }
            | Self::Documents { tenant, .. }
            | Self::Forget { tenant, .. }
            | Self::Close { tenant, .. }
            | Self::Sweep { tenant, .. }
            | Self::Import { tenant, .. }
            | Self::Open { tenant, .. } => *tenant,
        }
    }
}

/// What a tenant is closed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// To be filled with records that another store had. Refused unless it is empty.
    Import,
    /// To take out again what was imported.
    Undo,
    /// To be emptied. It stays closed.
    Erase,
}

/// A record as it is kept: its key holds its tenant, its value its seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    pub table: &'static str,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Records of one table as they are kept, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stretch {
    /// Keys and values.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// The key after which to go on; nothing at the end of the table.
    pub next: Option<Vec<u8>>,
}

/// What of a tenant counts against its quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    pub threads: u64,
    /// Prompts that wait in inboxes.
    pub queued: u64,
    /// Bytes of events, as they were written; a fork has its own alone, and what an erased thread left to it.
    pub bytes: u64,
}

/// New events of a thread and what follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub key: ThreadKey,
    /// The last seq that the writer knows; 0 for a thread that is to be created.
    pub expected: Seq,
    /// When the step was made. Not stored.
    pub at: UnixMs,
    /// `chunk.first == expected + 1`.
    pub chunk: Chunk,
    /// `row.head.last_seq == chunk.last()`, `row.head.fence` is the writer's.
    pub row: ThreadRow,
    pub settled: Vec<SettledTurn>,
    /// Turns that ended before and are now taken out of the conversation.
    pub reverted: Vec<Reverted>,
    pub receipts: Vec<Receipt>,
    /// With the first append of a thread that continues another one's log; then `expected == fork.at`.
    pub fork: Option<Fork>,
    pub indexed: Vec<Indexed>,
    pub spent: Vec<Spent>,
    /// Put beside those that are there.
    pub documents: Vec<Document>,
    /// Put in the place of those with the same names.
    pub parts: Vec<Part>,
}

impl Append {
    /// Events alone: everything else is empty.
    pub const fn new(key: ThreadKey, expected: Seq, at: UnixMs, chunk: Chunk, row: ThreadRow) -> Self {
        Self {
            key,
            expected,
            at,
            chunk,
            row,
            settled: Vec::new(),
            reverted: Vec::new(),
            receipts: Vec::new(),
            fork: None,
            indexed: Vec::new(),
            spent: Vec::new(),
            documents: Vec::new(),
            parts: Vec::new(),
        }
    }
}

/// A piece of what is true now, of a log whose state is too large to stand in its row: an append writes those that it
/// changes. They are gone with the log, and no fork shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub kind: PartKind,
    pub name: PartName,
    /// `None` removes it.
    pub json: Option<Vec<u8>>,
}

/// What a part is called among those of its log and kind; lists are in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartName(pub [u8; 32]);

impl PartName {
    /// Named by a number: in the order of the numbers.
    pub fn number(number: u64) -> Self {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&number.to_be_bytes());
        Self(name)
    }

    /// The number that it is named by.
    pub fn as_number(&self) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(number)
    }
}

/// The kinds of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartKind {
    /// A task of a run, named by the event that made it.
    Task = 1,
    /// Which number a task has, named by the digest of its id.
    TaskName = 2,
    /// A line of a run's blackboard, named by the event that added it.
    Entry = 3,
    /// What is known of a run at one moment, named by that event.
    Checkpoint = 4,
    /// The copy that belongs to it, by the same name.
    Image = 5,
    /// Files that a tool changed, named by the event that says so.
    Mutation = 6,
    /// How far a thread's effects are in a run's ledger, named by the thread.
    Source = 7,
    /// One of the two summaries of a run's blackboard, by its number.
    Summary = 8,
}

/// The log of `parent` up to and with `at` is also the beginning of the new thread's. It is shared, not copied, and
/// stays when the parent is erased. Read under the new thread's name it names the new thread wherever it named
/// another one as its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    pub parent: ThreadId,
    pub at: Seq,
}

/// A turn that was taken out of the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reverted {
    /// Which turn; it may be one that a fork shares, and is then reverted in the fork alone.
    pub started_seq: Seq,
    /// The seq of `turn.rolled_back`.
    pub seq: Seq,
}

/// A record that is found by its own id across a tenant's threads. Written again when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    pub kind: RecordKind,
    pub id: Uuid,
    /// The event that holds its newest form.
    pub seq: Seq,
    /// Whether somebody still has to act on it.
    pub open: bool,
}

/// The kinds of records that are found by their id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    Approval = 1,
    Question = 2,
    /// Effects whose outcome is, or was, uncertain.
    Effect = 3,
    /// Prompts that have left the inbox.
    Input = 4,
    /// Open until they have ended.
    Job = 5,
    /// Open while they are there.
    Schedule = 6,
    /// Open until they have ended.
    Run = 7,
}

/// What a thread spent on a day with one model: added to what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// Days since 1970-01-01, UTC.
    pub day: u32,
    pub engine: String,
    pub model: String,
    pub totals: Totals,
}

/// A small record of a tenant that belongs to no thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub kind: DocumentKind,
    /// Its name among those of its kind; lists are in this order.
    pub id: [u8; 32],
    pub json: Vec<u8>,
}

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DocumentKind {
    RoutingRule = 1,
    /// A call that a person approved for ever.
    PolicyRule = 2,
    /// The tenant's own layer of the policy: at most one.
    Policy = 3,
    /// How far a hook has come.
    HookCursor = 4,
    /// The tenant itself: at most one.
    Tenant = 5,
    /// An API key, by its id.
    Key = 6,
    /// What somebody did, in the order of time. Only ever added to.
    Audit = 7,
    /// Of [`TenantId::SYSTEM`]: why a tenant is closed, or was, by the bytes of its id. See [`crate::closed`].
    Closed = 32,
}

impl DocumentKind {
    /// The kind with this number.
    pub fn of(number: u8) -> Option<Self> {
        [
            Self::RoutingRule,
            Self::PolicyRule,
            Self::Policy,
            Self::HookCursor,
            Self::Tenant,
            Self::Key,
            Self::Audit,
            Self::Closed,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    /// Whether a tenant may have it that has nothing yet: an import leaves it, come what may.
    pub const fn precedes(self) -> bool {
        match self {
            Self::HookCursor | Self::Tenant | Self::Key | Self::Audit => true,
            Self::RoutingRule | Self::PolicyRule | Self::Policy | Self::Closed => false,
        }
    }

    /// Whether it goes along when a tenant is exported: what is secret, or of this installation alone, does not.
    pub const fn travels(self) -> bool {
        match self {
            Self::RoutingRule | Self::PolicyRule | Self::Policy | Self::HookCursor => true,
            Self::Tenant | Self::Key | Self::Audit | Self::Closed => false,
        }
    }
}

/// Why one write of a batch was refused, while the others were stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefused {
    /// Somebody else wrote to the thread: the writer's state is stale.
    #[error("expected the log to end at {expected}, it ends at {found}")]
    Conflict { expected: Seq, found: Seq },
    /// A younger writer owns the thread.
    #[error("fenced: writer {fence}, owner {owner}")]
    Fenced { fence: u64, owner: u64 },
    /// One of its receipts is for a request that already has one, which had not expired at [`Append::at`]: the
    /// request was run before.
    #[error("the request was run before")]
    Repeated,
    /// The tenant is closed: it was erased, or is being erased or imported.
    #[error("nothing is stored of this tenant: {0}")]
    Closed(&'static str),
    /// The tenant has records already.
    #[error("the tenant is not empty")]
    NotEmpty,
    /// The thread's row cannot be read, or the write does not fit itself or its thread's turns.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A record that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {record} is corrupt: {why}")]
pub struct Corrupt {
    /// Table and key, for a person.
    pub record: String,
    pub why: String,
}

/// Why the store could not do what was asked, for anyone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk is full; nothing of this commit is stored.
    #[error("the disk of the data directory is full, or has less room than is kept free (`store.min_free_bytes`)")]
    Full,
    /// An I/O error; what was being written may be stored or not.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// Whether there is room for more of what a tenant may have so much of. Asked at the moment at which it would be taken;
/// what was said yes to is taken, unless the step is refused.
pub trait Room {
    /// Room for one more turn at work.
    fn turn(&self) -> Result<(), Refused>;
    /// Room for one more prompt that waits.
    fn prompt(&self) -> Result<(), Refused>;
}

/// There is always room.
pub struct Boundless;

impl Room for Boundless {
    fn turn(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn prompt(&self) -> Result<(), Refused> {
        Ok(())
    }
}

/// Where threads are kept. Writes are durable when `commit` returns; reads see one commit, whole.
pub trait LogStore: Send + Sync + 'static {
    /// Stores `writes` in order, in one transaction. The inner results are per write; the outer error
    /// refuses all of them, and unless it is [`StoreError::Full`] any prefix may nevertheless be stored.
    ///
    /// An append that is stored has a position in its tenant's feed: 1, 2, 3 … in the order of the commits, and of
    /// the writes of one commit. What is not an append, or brings no event, has none, and is answered with 0.
    fn commit(&self, writes: &[Write]) -> Result<Vec<Result<u64, WriteRefused>>, StoreError>;

    /// The most writes that one commit should hold.
    fn batch_writes(&self) -> usize {
        1024
    }

    /// What of a tenant counts against its quotas, as of the last commit. Asked for the first time since the store was
    /// opened it reads the tenant's rows, all of them.
    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError>;

    /// The same if it costs nothing.
    fn known_figures(&self, _tenant: TenantId) -> Option<Figures> {
        None
    }

    /// A consistent view of the last commit. Short-lived: it holds space on the disk.
    fn view(&self) -> Result<Box<dyn View + '_>, StoreError>;

    /// How often this store was opened: the fence of this process. Starts at 1.
    fn epoch(&self) -> u64;

    /// Removes receipts whose `expires_at` is `now` or earlier, earliest first, at most `limit`; returns how many.
    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError>;

    /// Packs the logs of turns that ended at `before` or earlier, earliest first, at most `limit` turns or about one
    /// MiB of log; returns how many turns. See [`crate::pack`].
    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError>;

    /// Does what makes the next open quick. Called when nothing else is to do, and at the end.
    fn rest(&self) -> Result<(), StoreError>;

    /// Tries to become writable again after an error; `Ok` when it is.
    fn reopen(&self) -> Result<(), StoreError>;
}

/// A consistent, read-only view.
pub trait View {
    fn row(&self, key: ThreadKey) -> Result<Option<ThreadRow>, StoreError>;

    /// Events after `after`, oldest first, until `limit` events or about `bytes` bytes; at least one if there is one.
    /// Chunks may be cut at their beginning (to start right after `after`) and at their end. Between two of them there
    /// may be seqs without an event: of deltas that were joined the last one is left, see [`crate::pack`].
    fn events(&self, key: ThreadKey, after: Seq, limit: usize, bytes: usize) -> Result<Vec<Chunk>, StoreError>;

    /// The event at `seq`; none where deltas were joined that did not end there.
    fn event(&self, key: ThreadKey, seq: Seq) -> Result<Option<StoredEvent>, StoreError>;

    /// Turns that ended, in order, with `started_seq > after`.
    fn turns(&self, key: ThreadKey, after: Seq, limit: usize) -> Result<Vec<SettledTurn>, StoreError>;

    /// A turn that ended.
    fn turn(&self, key: ThreadKey, id: TurnId) -> Result<Option<SettledTurn>, StoreError>;

    /// The last turn with `started_seq < before`.
    fn turn_before(&self, key: ThreadKey, before: Seq) -> Result<Option<SettledTurn>, StoreError>;

    /// Threads of a tenant, most recent first, after the place `cursor`: what owes work stands where it began to,
    /// the others where they last settled. Unreadable rows are in the list as errors.
    fn list(&self, tenant: TenantId, cursor: Option<Place>, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// The reply once given under this key, while `now` is before its `expires_at`.
    fn receipt(&self, tenant: TenantId, key: &[u8; 32], now: UnixMs) -> Result<Option<Receipt>, StoreError>;

    /// Threads that owe work, after `cursor`, of all tenants.
    fn owing(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError>;

    /// Threads to be woken at or before `until`, earliest first, with their times.
    fn due(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError>;

    /// The earliest wake time of any thread.
    fn next_wake(&self) -> Result<Option<UnixMs>, StoreError>;

    /// Logs of jobs and schedules that have something under way, after `cursor`, of all tenants.
    fn owing_jobs(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError>;

    /// Logs of jobs and schedules that are due at or before `until`, earliest first, with their times.
    fn due_jobs(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError>;

    /// The earliest time after `after` at which a job or schedule is due.
    fn next_job(&self, after: UnixMs) -> Result<Option<UnixMs>, StoreError>;

    /// A tenant's appends after the position `after`, in order.
    fn feed(&self, tenant: TenantId, after: u64, limit: usize) -> Result<Vec<Fed>, StoreError>;

    /// The newest position of a tenant's feed; 0 when nothing was ever appended.
    fn feed_head(&self, tenant: TenantId) -> Result<u64, StoreError>;

    /// The tenants that have a feed.
    fn feeds(&self) -> Result<Vec<TenantId>, StoreError>;

    /// Where a record is found.
    fn record(&self, tenant: TenantId, kind: RecordKind, id: Uuid) -> Result<Option<Found>, StoreError>;

    /// Records of a kind in the order of their ids, after `after`: of one thread or of the whole tenant, and with
    /// `open` only those on which somebody has to act.
    fn records(
        &self,
        tenant: TenantId,
        kind: RecordKind,
        thread: Option<ThreadId>,
        open: bool,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Found>, StoreError>;

    /// What was spent on the days `from..=to`, by day and thread, after the place `after`.
    fn spent(
        &self,
        tenant: TenantId,
        from: u32,
        to: u32,
        after: Option<(u32, ThreadId)>,
        limit: usize,
    ) -> Result<Vec<SpentBy>, StoreError>;

    /// The tenant's documents of a kind.
    fn documents(&self, tenant: TenantId, kind: DocumentKind) -> Result<Vec<Document>, StoreError> {
        self.documents_after(tenant, kind, None, usize::MAX)
    }

    /// Those with names after `after`, in the order of their names, at most `limit`.
    fn documents_after(
        &self,
        tenant: TenantId,
        kind: DocumentKind,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError>;

    /// The tenants that have a document of their own, in the order of their ids.
    fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// Records of a table as they are kept, after the key `after`, of one tenant or of all: about `bytes` bytes, and
    /// also of tenants that are closed. A store that keeps no such records has none to give.
    fn stretch(
        &self,
        table: &str,
        _of: Option<TenantId>,
        _after: Option<&[u8]>,
        _bytes: usize,
    ) -> Result<Stretch, StoreError> {
        Err(StoreError::Unavailable(format!("this store has no table `{table}`: it keeps no records")))
    }

    /// A part of a log, as JSON.
    fn part(&self, key: ThreadKey, kind: PartKind, name: PartName) -> Result<Option<Vec<u8>>, StoreError>;

    /// Parts of a kind after `after`, in the order of their names, with their JSON.
    fn parts(
        &self,
        key: ThreadKey,
        kind: PartKind,
        after: Option<PartName>,
        limit: usize,
    ) -> Result<Vec<(PartName, Vec<u8>)>, StoreError>;
}

/// An append in a tenant's feed. The thread may have been deleted since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed {
    pub position: u64,
    pub thread: ThreadId,
    pub first: Seq,
    pub last: Seq,
}

/// A record that was found by its id, or in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub id: Uuid,
    pub thread: ThreadId,
    /// The event that holds it.
    pub seq: Seq,
    pub open: bool,
}

/// What one thread spent on one day, with every model it used: at least one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentBy {
    pub day: u32,
    pub thread: ThreadId,
    pub rows: Vec<Spent>,
}

/// Where in a tenant's listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub at: UnixMs,
    pub thread: ThreadId,
}

/// Where in the list of threads that owe work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwingPlace {
    pub tenant: TenantId,
    pub since: UnixMs,
    pub thread: ThreadId,
}

/// A row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub place: Place,
    pub row: Result<ThreadRow, Corrupt>,
}
