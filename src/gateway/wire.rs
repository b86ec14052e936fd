//! The JSON shapes that are not records: requests, and replies that wrap records.
//!
//! Requests refuse unknown fields. `null` means "not given", except in a PATCH, where it clears a field that may
//! be empty.

use raddle_actors::ForkAt;
use raddle_domain::{
    command::{self, IfIdle, ThreadPatch},
    id::{InputId, ItemId, RunId, Seq, TurnId},
    policy::Policy,
    ports::{Models, UnknownModel},
    record::{
        Admission, Approval, Decision, Delivery, Item, Metadata, ModelChoice, OnRestart, Resolution, Thread, Turn,
        TurnOverrides, Undelivered,
    },
    tenant::Budget,
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{
    problem::Problem,
    words::{EventRecord, TenantEventRecord},
};

// ---- requests ------------------------------------------------------------------------------------

/// Settings of a thread that is to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewThread {
    pub title: Option<String>,
    pub engine: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    pub system_prompt: Option<String>,
    pub workspace: Option<String>,
    pub allow_shell: Option<bool>,
    pub auto_approve: Option<bool>,
    pub trust_mode: Option<bool>,
    pub on_restart: Option<OnRestart>,
    /// Rules of this thread alone, beside those of the tenant and of the installation: the strictest wins.
    pub policy: Option<Policy>,
    /// The run that the thread works for: what its tools do is in that run's ledger. A fork does not take it over.
    pub run_id: Option<RunId>,
    /// The most that the thread's model calls may spend, over all its turns.
    pub budget: Option<Budget>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
}

impl NewThread {
    pub fn into_command(self, models: &dyn Models) -> Result<command::NewThread, Problem> {
        let choice = resolve(models, self.engine.as_deref(), self.model.as_deref())?;
        self.policy.as_ref().map_or(Ok(()), checked)?;
        Ok(command::NewThread {
            title: self.title,
            mode: self.mode,
            system_prompt: self.system_prompt,
            workspace: self.workspace,
            allow_shell: self.allow_shell.unwrap_or_default(),
            auto_approve: self.auto_approve.unwrap_or_default(),
            trust_mode: self.trust_mode.unwrap_or_default(),
            on_restart: self.on_restart.unwrap_or_default(),
            policy: self.policy,
            run_id: self.run_id,
            budget: self.budget,
            metadata: self.metadata.unwrap_or_default(),
            ..command::NewThread::with(choice)
        })
    }
}

/// Whether the rules of a thread's own layer can be used.
fn checked(policy: &Policy) -> Result<(), Problem> {
    crate::policy::check(policy).map_err(|bad| Problem::bad_rule("policy.rules", bad))
}

/// Settings of a thread to change; what is absent stays. `null` clears `title`, `system_prompt`, `workspace`, `policy`,
/// `run_id`, `budget`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchThread {
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub title: Option<Option<String>>,
    pub model: Option<String>,
    pub mode: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub system_prompt: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub workspace: Option<Option<String>>,
    pub allow_shell: Option<bool>,
    pub auto_approve: Option<bool>,
    pub trust_mode: Option<bool>,
    pub on_restart: Option<OnRestart>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Policy>)]
    pub policy: Option<Option<Policy>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<RunId>)]
    pub run_id: Option<Option<RunId>>,
    /// Replaces all of it; what was spent stays.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Budget>)]
    pub budget: Option<Option<Budget>>,
    pub archived: Option<bool>,
    /// Whether queued prompts go on waiting when no turn is open.
    pub queue_paused: Option<bool>,
    /// Replaces all of it.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
}

impl PatchThread {
    pub fn into_command(self, models: &dyn Models) -> Result<ThreadPatch, Problem> {
        let choice = self.model.as_deref().map(|model| resolve(models, None, Some(model))).transpose()?;
        self.policy.iter().flatten().try_for_each(checked)?;
        Ok(ThreadPatch {
            title: self.title,
            choice,
            mode: self.mode,
            system_prompt: self.system_prompt,
            workspace: self.workspace,
            allow_shell: self.allow_shell,
            auto_approve: self.auto_approve,
            trust_mode: self.trust_mode,
            on_restart: self.on_restart,
            policy: self.policy,
            run_id: self.run_id,
            budget: self.budget,
            archived: self.archived,
            queue_paused: self.queue_paused,
            metadata: self.metadata,
        })
    }
}

/// A prompt, and how its turn is to run.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartTurn {
    #[schema(value_type = String)]
    pub prompt: Option<String>,
    pub delivery: Option<Delivery>,
    /// What `delivery: steer` does on an idle thread.
    pub if_idle: Option<IfIdle>,
    /// Refuse unless this turn is open.
    pub expected_turn: Option<TurnId>,
    /// What becomes of a prompt with `delivery: steer` that comes too late for its turn.
    pub undelivered: Option<Undelivered>,
    pub model: Option<String>,
    pub mode: Option<String>,
    pub allow_shell: Option<bool>,
    pub auto_approve: Option<bool>,
    pub trust_mode: Option<bool>,
    /// What the turn is for: the tenant's routing rules say which model that is.
    pub route_intent: Option<String>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub max_tokens: Option<u32>,
    /// The most that the turn's model calls may spend.
    pub budget: Option<Budget>,
    pub input_summary: Option<String>,
}

impl StartTurn {
    pub fn into_command(self, models: &dyn Models) -> Result<command::StartTurn, Problem> {
        let prompt = required("prompt", self.prompt)?;
        let delivery = self.delivery.unwrap_or_default();
        let (if_idle, undelivered) = (self.if_idle.unwrap_or_default(), self.undelivered.unwrap_or_default());
        if delivery != Delivery::Steer {
            let only = "means something with delivery `steer` only";
            if if_idle == IfIdle::Reject {
                return Err(Problem::invalid("if_idle", only));
            }
            if undelivered == Undelivered::Queue {
                return Err(Problem::invalid("undelivered", only));
            }
        }
        let choice = self.model.as_deref().map(|model| resolve(models, None, Some(model))).transpose()?;
        let overrides = TurnOverrides {
            choice,
            mode: self.mode,
            allow_shell: self.allow_shell,
            auto_approve: self.auto_approve,
            trust_mode: self.trust_mode,
            temperature: self.temperature,
            top_p: self.top_p,
            max_tokens: self.max_tokens,
            budget: self.budget,
            input_summary: self.input_summary,
            route_intent: self.route_intent,
            // A job has a turn for a task, and nobody else.
            task_id: None,
        };
        let expected_turn = self.expected_turn;
        Ok(command::StartTurn { prompt, delivery, if_idle, expected_turn, undelivered, overrides })
    }
}

/// A prompt in the place of the last one, and how its turn is to run.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditThread {
    #[schema(value_type = String)]
    pub prompt: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    pub allow_shell: Option<bool>,
    pub auto_approve: Option<bool>,
    pub trust_mode: Option<bool>,
    /// What the turn is for: the tenant's routing rules say which model that is.
    pub route_intent: Option<String>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub max_tokens: Option<u32>,
    /// The most that the turn's model calls may spend.
    pub budget: Option<Budget>,
    pub input_summary: Option<String>,
}

impl From<EditThread> for StartTurn {
    fn from(edit: EditThread) -> Self {
        Self {
            prompt: edit.prompt,
            delivery: None,
            if_idle: None,
            expected_turn: None,
            undelivered: None,
            model: edit.model,
            mode: edit.mode,
            allow_shell: edit.allow_shell,
            auto_approve: edit.auto_approve,
            trust_mode: edit.trust_mode,
            route_intent: edit.route_intent,
            temperature: edit.temperature,
            top_p: edit.top_p,
            max_tokens: edit.max_tokens,
            budget: edit.budget,
            input_summary: edit.input_summary,
        }
    }
}

/// Something for the model to see while it works.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SteerTurn {
    #[schema(value_type = String)]
    pub prompt: Option<String>,
    /// What becomes of it when the turn ends first.
    pub undelivered: Option<Undelivered>,
}

impl SteerTurn {
    pub fn into_command(self, turn: TurnId) -> Result<command::Steer, Problem> {
        let prompt = required("prompt", self.prompt)?;
        Ok(command::Steer { turn, prompt, undelivered: self.undelivered.unwrap_or_default() })
    }
}

/// How to interrupt.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Interrupt {
    /// Whether queued prompts then wait until the queue is resumed.
    pub pause_queue: Option<bool>,
}

/// Why the conversation is shortened, and whether that may wait.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompactThread {
    pub reason: Option<String>,
    pub delivery: Option<CompactDelivery>,
}

/// What a compaction does when a turn is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CompactDelivery {
    Reject,
    Queue,
}

impl CompactThread {
    pub fn into_command(self) -> command::Compact {
        let delivery = match self.delivery {
            None | Some(CompactDelivery::Reject) => Delivery::Reject,
            Some(CompactDelivery::Queue) => Delivery::Queue,
        };
        command::Compact { reason: self.reason, delivery }
    }
}

/// Where a fork leaves its parent: at one place at most, and after everything that is settled unless one is named.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkThread {
    /// After this item.
    pub at_item: Option<ItemId>,
    /// Before this turn began.
    pub before_turn: Option<TurnId>,
    /// At this checkpoint; `latest` is the newest one.
    pub checkpoint: Option<String>,
    pub title: Option<String>,
}

impl ForkThread {
    pub fn into_place(self) -> Result<(ForkAt, Option<String>), Problem> {
        let at = match (self.at_item, self.before_turn, self.checkpoint) {
            (None, None, None) => ForkAt::Settled,
            (Some(item), None, None) => ForkAt::Item(item),
            (None, Some(turn), None) => ForkAt::BeforeTurn(turn),
            (None, None, Some(name)) => ForkAt::Checkpoint(name),
            (at_item, _, _) => {
                let second = if at_item.is_some() { "at_item" } else { "before_turn" };
                return Err(Problem::invalid(second, "names a second place: a fork has one"));
            }
        };
        Ok((at, self.title))
    }
}

/// A name for the thread's last settled moment.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveCheckpoint {
    #[schema(value_type = String)]
    pub name: Option<String>,
}

impl SaveCheckpoint {
    pub fn into_name(self) -> Result<String, Problem> {
        required("name", self.name)
    }
}

/// What the thread that goes on from a checkpoint is called.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreCheckpoint {
    pub title: Option<String>,
}

/// What to change about a prompt that waits; what is absent stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchInput {
    pub prompt: Option<String>,
    /// 0 runs next; beyond the end is the end.
    pub position: Option<u32>,
}

impl PatchInput {
    pub fn into_command(self, input: InputId) -> command::EditPrompt {
        command::EditPrompt { input, prompt: self.prompt, position: self.position }
    }
}

/// A person's word on an approval.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecideApproval {
    #[schema(value_type = Decision)]
    pub decision: Option<Decision>,
    /// Of a denial, shown to the model.
    pub reason: Option<String>,
}

impl DecideApproval {
    pub fn into_decision(self) -> Result<(Decision, Option<String>), Problem> {
        Ok((required("decision", self.decision)?, self.reason))
    }
}

/// A person's answer to a question.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerQuestion {
    #[schema(value_type = String)]
    pub answer: Option<String>,
}

impl AnswerQuestion {
    pub fn into_answer(self) -> Result<String, Problem> {
        required("answer", self.answer)
    }
}

/// A person's word on an uncertain effect.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveEffect {
    #[schema(value_type = Resolution)]
    pub resolution: Option<Resolution>,
    /// With `settle`, and required there: what the tool would have said.
    pub output: Option<String>,
}

impl ResolveEffect {
    pub fn into_resolution(self) -> Result<(Resolution, Option<String>), Problem> {
        let resolution = required("resolution", self.resolution)?;
        match (resolution, &self.output) {
            (Resolution::Settle, None) => Err(Problem::invalid("output", "is required with resolution `settle`")),
            (Resolution::Retry | Resolution::Abort, Some(_)) => {
                Err(Problem::invalid("output", "means something with resolution `settle` only"))
            }
            (Resolution::Settle, Some(_)) | (Resolution::Retry | Resolution::Abort, None) => {
                Ok((resolution, self.output))
            }
        }
    }
}

/// A request without fields.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// A field that must be there.
pub(super) fn required<T>(name: &str, field: Option<T>) -> Result<T, Problem> {
    field.ok_or_else(|| Problem::invalid(name, "is required"))
}

fn resolve(models: &dyn Models, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, Problem> {
    models.resolve(engine, model).map_err(|UnknownModel(why)| {
        let field = if model.is_none() && engine.is_some() { "engine" } else { "model" };
        Problem::invalid(field, format_args!("is not known: {why}"))
    })
}

/// Tells a field that is `null` from one that is absent.
pub(super) fn nullable<'de, D, T>(from: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(from).map(Some)
}

/// Whether a list shows archived threads: not (unless given), all, or no others.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes the parameter; `request::Params` reads it")]
pub enum Archived {
    False,
    True,
    Only,
}

// ---- replies -------------------------------------------------------------------------------------

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    pub data: Vec<T>,
    /// Where the rest begins; `null` at the end. A page may be short and still have one.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// A part of the list of threads.
#[derive(Debug, Serialize, ToSchema)]
pub struct ThreadList {
    pub data: Vec<Thread>,
    /// Where the rest begins; `null` at the end. A page may be short and still have one.
    #[schema(required)]
    pub next_cursor: Option<String>,
    /// Threads of this part whose records cannot be used, whatever was asked for.
    pub unavailable: Vec<Unavailable>,
}

/// A thread, or a run, that is there and cannot be used.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unavailable {
    pub id: String,
    /// Names the record, and what is wrong with it.
    pub detail: String,
}

/// A turn that was started.
#[derive(Debug, Serialize, ToSchema)]
pub struct TurnStarted {
    pub turn: Turn,
}

/// A prompt that waits.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromptQueued {
    pub admission: Admission,
    pub active_turn: TurnId,
}

/// A prompt that the model of an open turn will see.
#[derive(Debug, Serialize, ToSchema)]
pub struct SteerAccepted {
    pub admission: Admission,
}

/// A compaction that runs, or waits.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Compacting {
    Started(Box<TurnStarted>),
    Queued(Box<PromptQueued>),
}

/// A prompt in the inbox, and its place there.
#[derive(Debug, Serialize, ToSchema)]
pub struct InboxEntry {
    #[serde(flatten)]
    pub admission: Admission,
    /// 0 runs next.
    pub position: usize,
}

/// A thread, whole, as of `seq`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Snapshot {
    pub thread: Thread,
    pub turns: Vec<Turn>,
    pub items: Vec<Item>,
    /// Those that are pending.
    pub approvals: Vec<Approval>,
    pub inbox: Vec<InboxEntry>,
    /// Events after this one continue the snapshot exactly.
    pub seq: Seq,
}

/// Events as they are stored.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes the reply; `frame::page` writes it")]
pub struct EventPage {
    pub data: Vec<EventRecord>,
    /// Where the log ended when it was read.
    pub head: Seq,
}

/// Events of a tenant, in an order that keeps each thread's own.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes the reply; `frame::list` writes it")]
pub struct TenantEventPage {
    pub data: Vec<TenantEventRecord>,
    /// Where to go on. Never `null`: there is no end. A page may be short, or empty, with more behind it; who finds
    /// this cursor to be the one they asked with has read everything.
    pub next_cursor: String,
    /// Threads of this part whose events cannot be read.
    pub unavailable: Vec<Unavailable>,
}

/// Numbers the prompts of an inbox.
pub fn positions(inbox: Vec<Admission>) -> Vec<InboxEntry> {
    inbox.into_iter().enumerate().map(|(position, admission)| InboxEntry { admission, position }).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raddle_domain::ports::Model;

    use super::*;
    use crate::gateway::problem::Code;

    struct OneModel;
    impl Models for OneModel {
        fn resolve(&self, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
            match (engine.unwrap_or("scripted"), model.unwrap_or("echo")) {
                ("scripted", "echo") => Ok(ModelChoice { engine: "scripted".into(), model: "echo".into() }),
                (engine, model) => Err(UnknownModel(format!("no {model} at {engine}"))),
            }
        }
        fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
            None
        }
        fn engines(&self) -> Vec<String> {
            vec!["scripted".into()]
        }
    }

    fn start(json: &str) -> Result<command::StartTurn, Code> {
        let request: StartTurn = serde_json::from_str(json).unwrap();
        request.into_command(&OneModel).map_err(|problem| problem.code)
    }

    /// The field that a refused request is told about.
    fn field<T: std::fmt::Debug>(refused: Result<T, Problem>) -> String {
        let problem = refused.unwrap_err();
        assert_eq!(problem.code, Code::Invalid);
        problem.extra["field"].as_str().unwrap().to_owned()
    }

    fn read<T: serde::de::DeserializeOwned>(json: &str) -> T {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let patch: PatchThread = serde_json::from_str(r#"{"title":null,"workspace":"/w"}"#).unwrap();
        assert_eq!(patch.title, Some(None));
        assert_eq!(patch.workspace, Some(Some("/w".into())));
        assert_eq!(patch.system_prompt, None);
    }

    #[test]
    fn what_only_a_steer_has_is_refused_elsewhere() {
        for only in [r#""if_idle":"reject""#, r#""undelivered":"queue""#] {
            for other in ["reject", "queue", "interrupt", "rollback"] {
                assert_eq!(start(&format!(r#"{{"prompt":"x","delivery":"{other}",{only}}}"#)), Err(Code::Invalid));
            }
            assert!(start(&format!(r#"{{"prompt":"x","delivery":"steer",{only}}}"#)).is_ok());
        }
        // Saying what holds anyway is no mistake.
        let plain = start(r#"{"prompt":"x","if_idle":"start","undelivered":"report"}"#);
        assert_eq!(plain.map(|start| start.delivery), Ok(Delivery::Reject));
    }

    #[test]
    fn everything_that_a_start_says_reaches_its_command() {
        let turn = TurnId::new(uuid::Uuid::from_u128(7));
        let found = start(&format!(
            r#"{{"prompt":"x","delivery":"steer","if_idle":"reject","undelivered":"queue","expected_turn":"{turn}",
            "route_intent":"Code"}}"#
        ));
        let overrides = TurnOverrides { route_intent: Some("Code".into()), ..TurnOverrides::default() };
        let expected = command::StartTurn {
            prompt: "x".into(),
            delivery: Delivery::Steer,
            if_idle: IfIdle::Reject,
            expected_turn: Some(turn),
            undelivered: Undelivered::Queue,
            overrides,
        };
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn an_edit_takes_every_setting_of_a_turn_and_nothing_about_delivery() {
        let settings = r#""model":"echo","mode":"m","allow_shell":true,"auto_approve":true,"trust_mode":true,
            "route_intent":"r","temperature":0.5,"top_p":0.5,"max_tokens":5,"input_summary":"s""#;
        let edit: EditThread = read(&format!(r#"{{"prompt":"x",{settings}}}"#));
        let edit = StartTurn::from(edit).into_command(&OneModel).unwrap();
        assert_eq!(Ok(edit), start(&format!(r#"{{"prompt":"x",{settings}}}"#)));
        assert!(serde_json::from_str::<EditThread>(r#"{"prompt":"x","delivery":"queue"}"#).is_err());
    }

    #[test]
    fn a_fork_has_one_place_at_most() {
        let item = ItemId::new(uuid::Uuid::from_u128(1));
        let turn = TurnId::new(uuid::Uuid::from_u128(2));
        let place = |json: &str| read::<ForkThread>(json).into_place();
        assert_eq!(place(r#"{"title":"t"}"#), Ok((ForkAt::Settled, Some("t".into()))));
        let (at_item, before_turn) = (format!(r#""at_item":"{item}""#), format!(r#""before_turn":"{turn}""#));
        let checkpoint = r#""checkpoint":"c""#;
        assert_eq!(place(&format!("{{{at_item}}}")), Ok((ForkAt::Item(item), None)));
        assert_eq!(place(&format!("{{{before_turn}}}")), Ok((ForkAt::BeforeTurn(turn), None)));
        assert_eq!(place(&format!("{{{checkpoint}}}")), Ok((ForkAt::Checkpoint("c".into()), None)));
        assert_eq!(field(place(&format!("{{{at_item},{before_turn}}}"))), "at_item");
        assert_eq!(field(place(&format!("{{{at_item},{checkpoint}}}"))), "at_item");
        assert_eq!(field(place(&format!("{{{before_turn},{checkpoint}}}"))), "before_turn");
    }

    #[test]
    fn an_output_goes_with_settling_and_with_nothing_else() {
        let resolve = |json: &str| read::<ResolveEffect>(json).into_resolution();
        let settle = resolve(r#"{"resolution":"settle","output":""}"#);
        assert_eq!(settle, Ok((Resolution::Settle, Some(String::new()))));
        assert_eq!(resolve(r#"{"resolution":"retry"}"#), Ok((Resolution::Retry, None)));
        assert_eq!(field(resolve(r#"{"resolution":"settle"}"#)), "output");
        assert_eq!(field(resolve(r#"{"resolution":"retry","output":"x"}"#)), "output");
        assert_eq!(field(resolve(r#"{"resolution":"abort","output":"x"}"#)), "output");
        assert_eq!(field(resolve(r#"{"output":"x"}"#)), "resolution");
    }

    #[test]
    fn what_is_required_is_asked_for_by_name() {
        let turn = TurnId::new(uuid::Uuid::from_u128(2));
        assert_eq!(field(read::<SteerTurn>("{}").into_command(turn)), "prompt");
        assert_eq!(field(read::<SaveCheckpoint>("{}").into_name()), "name");
        assert_eq!(field(read::<DecideApproval>(r#"{"reason":"r"}"#).into_decision()), "decision");
        assert_eq!(field(read::<AnswerQuestion>("{}").into_answer()), "answer");
    }

    #[test]
    fn a_compaction_is_refused_or_queued_and_nothing_else() {
        let compact = |json: &str| serde_json::from_str::<CompactThread>(json).map(CompactThread::into_command);
        assert_eq!(compact("{}").unwrap().delivery, Delivery::Reject);
        assert_eq!(compact(r#"{"delivery":"queue","reason":"r"}"#).unwrap().delivery, Delivery::Queue);
        assert!(compact(r#"{"delivery":"steer"}"#).is_err());
    }

    #[test]
    fn a_start_needs_a_prompt_and_a_known_model() {
        assert_eq!(start("{}"), Err(Code::Invalid));
        assert_eq!(start(r#"{"prompt":"x","model":"gone"}"#), Err(Code::Invalid));
        let choice = start(r#"{"prompt":"x","model":"echo"}"#).unwrap().overrides.choice.unwrap();
        assert_eq!(choice.engine, "scripted");
    }

    #[test]
    fn an_unknown_engine_is_named_as_such() {
        let request = NewThread { engine: Some("gone".into()), ..NewThread::default() };
        assert_eq!(request.into_command(&OneModel).unwrap_err().extra["field"], "engine");
    }
}
