//! What models may do: the implementations of [`Tool`], and the [`Toolbox`] that judges calls and runs them.
//!
//! ```text
//! a call ─▶ known? ─▶ arguments fit? ─▶ permitted already? ─▶ Planned ─▶ (the thread decides) ─▶ run, or reconcile
//! ```
//! Judging is pure and comes first: nobody is asked about a call that could not be run. What a permit covers, and
//! what an approval is bound to, is the digest of the arguments (see [`arguments`]). A tool says what its calls do
//! to the world ([`EffectClass`]) and who must agree ([`Gate`]); the thread's machine draws the conclusions, so no
//! tool retries or asks anybody by itself.
//!
//! Absent on purpose: time limits, which belong to the turn; bounds on output, which the thread keeps for every item.

pub mod arguments;
pub mod ask;
pub mod demo;
pub mod shell;

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use raddle_domain::{
    history::ToolCall,
    policy::TenantRules,
    ports::{Gate, Invocation, Judgement, Output, Planned, Scene, ToolEnd, ToolRun, ToolSpec, Tools},
    record::{EffectClass, ItemKind, Permit},
};
use serde_json::Value;

use self::arguments::{BadSchema, Schema};

/// Something that a model may ask for.
pub trait Tool: Send + Sync + 'static {
    /// What models are told. The same for as long as the server runs.
    fn spec(&self) -> ToolSpec;

    fn class(&self) -> EffectClass;

    fn gate(&self) -> Gate;

    /// What its calls show as.
    fn kind(&self) -> ItemKind {
        ItemKind::ToolCall
    }

    /// Whether a model is told of it in such a turn. A call of one that is not offered is answered as unknown.
    fn offered(&self, _scene: Scene<'_>) -> bool {
        true
    }

    /// What a call with these arguments would do, for the person who is asked. They fit the schema.
    fn reason(&self, arguments: &Value) -> String;

    /// The command that a call with these arguments would run, for tools that run one.
    fn command(&self, _arguments: &Value) -> Option<Command> {
        None
    }

    /// What a call with these arguments would touch, for the policy.
    fn touches(&self, _arguments: &Value, _scene: Scene<'_>) -> Touches {
        Touches::default()
    }

    /// Makes one attempt. The arguments fitted the schema when they were judged, which may be a version ago.
    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun;

    /// Says what became of an operation, for tools that are [`EffectClass::Reconcilable`].
    fn reconcile(&self, _invocation: Invocation) -> ToolRun {
        Box::pin(async { ToolEnd::Unknown("the tool cannot say what became of it".to_owned()) })
    }
}

/// A command as people read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub line: String,
    pub cwd: Option<String>,
    /// Its words, where they say what will be done: a lasting approval covers whatever begins with the first two.
    /// `None` for text that only a shell can read, and for programs that run others.
    pub words: Option<Vec<String>>,
}

/// What a call touches, as rules look at it. A tool that cannot say must not pretend: what it leaves out, no rule
/// sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touches {
    /// Every path that the call names or writes: relative to the workspace, or absolute.
    pub paths: Vec<String>,
    /// Every host that it reaches, without a port.
    pub hosts: Vec<String>,
    /// Whether it is to leave the sandbox, or acts where nothing holds it in, as a tool of another server does.
    pub full_access: bool,
}

/// Tools that cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolboxError {
    #[error("`{0}` is no name for a tool: 1 to 64 letters, digits, `_` and `-`")]
    Name(String),
    #[error("there are two tools named `{0}`")]
    Twice(String),
    #[error("the tool `{0}`: {1}")]
    Schema(String, BadSchema),
}

/// The configured tools, in the order in which models are told of them.
pub struct Toolbox {
    tools: Vec<Entry>,
    questions: Schema,
    offers_questions: bool,
}

struct Entry {
    spec: ToolSpec,
    schema: Schema,
    tool: Arc<dyn Tool>,
}

impl Toolbox {
    /// Takes these tools. Models may ask people where there is anything else that they may do, or where
    /// `offers_questions` says so.
    pub fn new(tools: impl IntoIterator<Item = Arc<dyn Tool>>, offers_questions: bool) -> Result<Self, ToolboxError> {
        let compiled =
            |spec: &ToolSpec| Schema::new(&spec.schema).map_err(|bad| ToolboxError::Schema(spec.name.clone(), bad));
        let mut entries: Vec<Entry> = Vec::new();
        for tool in tools {
            let spec = tool.spec();
            if !is_name(&spec.name) {
                return Err(ToolboxError::Name(spec.name));
            }
            if spec.name == ask::ASK_USER || entries.iter().any(|other| other.spec.name == spec.name) {
                return Err(ToolboxError::Twice(spec.name));
            }
            entries.push(Entry { schema: compiled(&spec)?, spec, tool });
        }
        let offers_questions = offers_questions || !entries.is_empty();
        Ok(Self { tools: entries, questions: compiled(&ask::spec())?, offers_questions })
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.tools.iter().find(|entry| entry.spec.name == name)
    }
}

/// Whether providers take it as the name of a function.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

impl Tools for Toolbox {
    fn specs(&self, scene: Scene<'_>) -> Vec<ToolSpec> {
        let questions = self.offers_questions.then(ask::spec);
        self.tools
            .iter()
            .filter(|entry| entry.tool.offered(scene))
            .map(|entry| entry.spec.clone())
            .chain(questions)
            .collect()
    }

    fn judge(&self, call: &ToolCall, scene: Scene<'_>, rules: &TenantRules) -> Judgement {
        // Known also where it is not offered: a model that asks anyway is better answered than refused.
        if call.name == ask::ASK_USER {
            let judged = self.questions.read(&call.arguments).and_then(|arguments| ask::judge(&arguments));
            return judged.unwrap_or_else(Judgement::Invalid);
        }
        let entry = self.find(&call.name).filter(|entry| entry.tool.offered(scene));
        let Some(entry) = entry else { return Judgement::Unknown };
        match entry.schema.read(&call.arguments) {
            Ok(arguments) => entry.plan(arguments, scene, &rules.permits),
            Err(why) => Judgement::Invalid(why),
        }
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let Some(entry) = self.find(&invocation.tool) else {
            // What may have been done under an earlier configuration cannot be said to have failed.
            let end = match invocation.attempt {
                ..=1 => ToolEnd::Failed(format!("unknown tool: {}", invocation.tool)),
                _ => ToolEnd::Unknown("the tool is no longer configured".to_owned()),
            };
            return Box::pin(async { end });
        };
        let tool = entry.tool.clone();
        guarded(invocation, move |invocation| tool.run(invocation, output))
    }

    fn reconcile(&self, invocation: Invocation) -> ToolRun {
        let Some(entry) = self.find(&invocation.tool) else {
            return Box::pin(async { ToolEnd::Unknown("the tool is no longer configured".to_owned()) });
        };
        let tool = entry.tool.clone();
        guarded(invocation, move |invocation| tool.reconcile(invocation))
    }
}

impl Entry {
    fn plan(&self, arguments: Value, scene: Scene<'_>, permits: &[(String, Permit)]) -> Judgement {
        let arguments_sha256 = match arguments::digest(&arguments) {
            Ok(digest) => digest,
            Err(why) => return Judgement::Invalid(why),
        };
        let (command, cwd, words) = match self.tool.command(&arguments) {
            Some(Command { line, cwd, words }) => (Some(line), cwd, words),
            None => (None, None, None),
        };
        let name = &self.spec.name;
        let covering = permits.iter().find(|(_, permit)| permit.covers(name, &arguments_sha256, words.as_deref()));
        Judgement::Run(Box::new(Planned {
            kind: self.tool.kind(),
            class: self.tool.class(),
            gate: if self.tool.touches(&arguments, scene).full_access { Gate::FullAccess } else { self.tool.gate() },
            reason: self.tool.reason(&arguments),
            asked_by: None,
            amendment: Some(amendment(name, &arguments_sha256, words.as_deref())),
            permitted_by: covering.map(|(rule, _)| rule.clone()),
            arguments,
            arguments_sha256,
            command,
            cwd,
            words,
        }))
    }
}

/// What a lasting approval would let pass: these arguments, or a program with its subcommand. A program alone would
/// be too much, and so would one with a flag or a path.
fn amendment(tool: &str, arguments_sha256: &str, words: Option<&[String]>) -> Permit {
    let is_plain = |word: &String| {
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    let command_prefix = words.and_then(|words| words.get(..2)).filter(|prefix| is_plain(&prefix[1]));
    Permit {
        tool: tool.to_owned(),
        arguments_sha256: command_prefix.is_none().then(|| arguments_sha256.to_owned()),
        command_prefix: command_prefix.map(<[String]>::to_vec),
    }
}

/// A tool at work, whose panic is an outcome: what it had done by then, nobody knows.
fn guarded(invocation: Invocation, start: impl FnOnce(Invocation) -> ToolRun + Send + 'static) -> ToolRun {
    Box::pin(async move {
        let (tool, operation) = (invocation.tool.clone(), invocation.operation);
        let ended = AssertUnwindSafe(async move { start(invocation).await }).catch_unwind().await;
        ended.unwrap_or_else(|_| {
            tracing::error!(tool, %operation, "a tool panicked");
            ToolEnd::Unknown("the tool broke off; this is a defect".to_owned())
        })
    })
}

#[cfg(test)]
pub(crate) mod bench;
#[cfg(test)]
mod tests;
