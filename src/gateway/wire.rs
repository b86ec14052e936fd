//! The JSON shapes that are not records: requests, and replies that wrap records.
//!
//! Requests refuse unknown fields. `null` means "not given", except in a PATCH, where it clears a field that may
//! be empty.

use raddle_domain::{
    command::ThreadPatch,
    id::{Seq, ThreadId, TurnId},
    ports::{Models, UnknownModel},
    record::{Admission, Delivery, Item, Metadata, ModelChoice, OnRestart, Thread, Turn, TurnOverrides},
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;

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
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
}

impl NewThread {
    pub fn into_command(self, models: &dyn Models) -> Result<raddle_domain::command::NewThread, Problem> {
        let choice = resolve(models, self.engine.as_deref(), self.model.as_deref())?;
        Ok(raddle_domain::command::NewThread {
            title: self.title,
            mode: self.mode,
            system_prompt: self.system_prompt,
            workspace: self.workspace,
            allow_shell: self.allow_shell.unwrap_or_default(),
            auto_approve: self.auto_approve.unwrap_or_default(),
            trust_mode: self.trust_mode.unwrap_or_default(),
            on_restart: self.on_restart.unwrap_or_default(),
            metadata: self.metadata.unwrap_or_default(),
            ..raddle_domain::command::NewThread::with(choice)
        })
    }
}

/// Settings of a thread to change; what is absent stays. `null` clears `title`, `system_prompt`, `workspace`.
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
    pub archived: Option<bool>,
    /// Replaces all of it.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
}

impl PatchThread {
    pub fn into_command(self, models: &dyn Models) -> Result<ThreadPatch, Problem> {
        let choice = self.model.as_deref().map(|model| resolve(models, None, Some(model))).transpose()?;
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
            archived: self.archived,
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
    pub model: Option<String>,
    pub mode: Option<String>,
    pub allow_shell: Option<bool>,
    pub auto_approve: Option<bool>,
    pub trust_mode: Option<bool>,
    pub route_intent: Option<String>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub max_tokens: Option<u32>,
    pub input_summary: Option<String>,
}

/// What a steer does when there is no turn to steer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IfIdle {
    Start,
    Reject,
}

impl StartTurn {
    pub fn into_command(self, models: &dyn Models) -> Result<raddle_domain::command::StartTurn, Problem> {
        let prompt = self.prompt.ok_or_else(|| Problem::invalid("prompt", "is required"))?;
        let delivery = self.delivery.unwrap_or_default();
        if self.route_intent.is_some() {
            return Err(Problem::not_built("routing by `route_intent`"));
        }
        if self.if_idle == Some(IfIdle::Reject) && delivery != Delivery::Steer {
            return Err(Problem::invalid("if_idle", "means something with delivery `steer` only"));
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
            input_summary: self.input_summary,
        };
        Ok(raddle_domain::command::StartTurn { prompt, delivery, overrides })
    }
}

/// How to interrupt.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Interrupt {
    /// Not built yet: only `false` is accepted.
    pub pause_queue: Option<bool>,
}

/// A request without fields.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

fn resolve(models: &dyn Models, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, Problem> {
    models.resolve(engine, model).map_err(|UnknownModel(why)| {
        let field = if model.is_none() && engine.is_some() { "engine" } else { "model" };
        Problem::invalid(field, format_args!("is not known: {why}"))
    })
}

/// Tells a field that is `null` from one that is absent.
fn nullable<'de, D, T>(from: D) -> Result<Option<Option<T>>, D::Error>
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

/// A thread that is there and cannot be used.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unavailable {
    pub id: ThreadId,
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
    /// Empty while no approval can be asked for.
    #[schema(value_type = Vec<Object>)]
    pub approvals: [(); 0],
    pub inbox: Vec<InboxEntry>,
    /// Events after this one continue the snapshot exactly.
    pub seq: Seq,
}

/// Events as they are stored.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    pub data: Vec<EventRecord>,
    /// Where the log ended when it was read.
    pub head: Seq,
}

/// Events of a tenant's threads, in an order that keeps each thread's own.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantEventPage {
    pub data: Vec<EventRecord>,
    /// Where to go on. Never `null`: there is no end. A page may be short, or empty, with more behind it; who finds
    /// this cursor to be the one they asked with has read everything.
    pub next_cursor: String,
    /// Threads of this part whose events cannot be read.
    pub unavailable: Vec<Unavailable>,
}

/// One event of a thread's log. The shape of `payload` follows from `event`.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventRecord {
    pub seq: Seq,
    /// The `seq` before this one; 0 for the first.
    pub prev: Seq,
    pub ts: raddle_domain::time::UnixMs,
    pub thread_id: ThreadId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_id: Option<raddle_domain::id::ItemId>,
    #[schema(example = "turn.started")]
    pub event: String,
    #[schema(value_type = Object)]
    pub payload: serde_json::Value,
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

    fn start(json: &str) -> Result<raddle_domain::command::StartTurn, Code> {
        let request: StartTurn = serde_json::from_str(json).unwrap();
        request.into_command(&OneModel).map_err(|problem| problem.code)
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let patch: PatchThread = serde_json::from_str(r#"{"title":null,"workspace":"/w"}"#).unwrap();
        assert_eq!(patch.title, Some(None));
        assert_eq!(patch.workspace, Some(Some("/w".into())));
        assert_eq!(patch.system_prompt, None);
    }

    #[test]
    fn what_is_not_built_is_said_and_not_ignored() {
        assert_eq!(start(r#"{"prompt":"x","route_intent":"code"}"#), Err(Code::NotImplemented));
        assert_eq!(start(r#"{"prompt":"x","if_idle":"reject"}"#), Err(Code::Invalid));
        assert_eq!(start(r#"{"prompt":"x","if_idle":"start"}"#).map(|start| start.delivery), Ok(Delivery::Reject));
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
