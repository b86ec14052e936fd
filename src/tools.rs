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
//! Tools stand on a [`Shelf`], which is replaced as a whole where they come and go ([`Source`]); a call is judged, and
//! later run, by the shelf of that moment.
//!
//! Absent on purpose: time limits, which belong to the turn; bounds on output, which the thread keeps for every item.

pub mod arguments;
pub mod ask;
mod blocking;
pub mod demo;
pub mod files;

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc};

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
    tools: Arc<Shelf>,
    sources: Vec<Arc<dyn Source>>,
    questions: Schema,
    offers_questions: bool,
}

/// Tools that come and go while the server runs.
pub trait Source: Send + Sync + 'static {
    /// Those that there are now.
    fn shelf(&self) -> Arc<Shelf>;

    /// For a tool that is not there and may be on its way: ready once it is there, or is known not to come.
    fn expect(&self, _tool: &str) -> Option<Waiting> {
        None
    }
}

/// Ready when there is something new to be seen.
pub type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tools that can be called, in their order.
#[derive(Clone, Default)]
pub struct Shelf(Vec<Arc<Entry>>);

struct Entry {
    spec: ToolSpec,
    schema: Schema,
    tool: Arc<dyn Tool>,
}

impl Shelf {
    /// Takes these tools.
    pub fn new(tools: impl IntoIterator<Item = Arc<dyn Tool>>) -> Result<Self, ToolboxError> {
        let mut shelf = Self::default();
        tools.into_iter().try_for_each(|tool| shelf.put(tool))?;
        Ok(shelf)
    }

    /// Takes those of these tools that can be taken.
    pub fn of(tools: impl IntoIterator<Item = Arc<dyn Tool>>) -> Self {
        let mut shelf = Self::default();
        for tool in tools {
            if let Err(error) = shelf.put(tool) {
                tracing::warn!(%error, "a tool is left out");
            }
        }
        shelf
    }

    fn put(&mut self, tool: Arc<dyn Tool>) -> Result<(), ToolboxError> {
        let spec = tool.spec();
        if !is_name(&spec.name) {
            return Err(ToolboxError::Name(spec.name));
        }
        if spec.name == ask::ASK_USER || self.find(&spec.name).is_some() {
            return Err(ToolboxError::Twice(spec.name));
        }
        self.0.push(Arc::new(Entry { schema: compiled(&spec)?, spec, tool }));
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&Arc<Entry>> {
        self.0.iter().find(|entry| entry.spec.name == name)
    }
}

/// Shelves one behind the other. Of two tools with one name the first is found.
impl FromIterator<Shelf> for Shelf {
    fn from_iter<I: IntoIterator<Item = Shelf>>(shelves: I) -> Self {
        Self(shelves.into_iter().flat_map(|shelf| shelf.0).collect())
    }
}

fn compiled(spec: &ToolSpec) -> Result<Schema, ToolboxError> {
    Schema::new(&spec.schema).map_err(|bad| ToolboxError::Schema(spec.name.clone(), bad))
}

impl Toolbox {
    /// Takes these tools. Models may ask people where there is anything else that they may do, or where
    /// `offers_questions` says so.
    pub fn new(tools: impl IntoIterator<Item = Arc<dyn Tool>>, offers_questions: bool) -> Result<Self, ToolboxError> {
        let (tools, questions) = (Arc::new(Shelf::new(tools)?), compiled(&ask::spec())?);
        Ok(Self { tools, sources: Vec::new(), questions, offers_questions })
    }

    /// With tools that come and go. They stand behind those that are there already, which win where names are equal.
    pub fn with(mut self, source: Arc<dyn Source>) -> Self {
        self.sources.push(source);
        self
    }

    fn shelves(&self) -> impl Iterator<Item = Arc<Shelf>> {
        std::iter::once(self.tools.clone()).chain(self.sources.iter().map(|source| source.shelf()))
    }

    fn find(&self, name: &str) -> Option<Arc<Entry>> {
        self.shelves().find_map(|shelf| shelf.find(name).cloned())
    }

    /// The same for a tool that may be on its way; then it is waited for.
    fn expect(&self, name: &str) -> impl Future<Output = Option<Arc<Entry>>> + Send + 'static {
        let found = self.find(name);
        let expected = |source: &Arc<dyn Source>| Some((source.expect(name)?, source.clone()));
        let expected = if found.is_none() { self.sources.iter().find_map(expected) } else { None };
        let name = name.to_owned();
        async move {
            match expected {
                Some((waiting, source)) => {
                    waiting.await;
                    source.shelf().find(&name).cloned()
                }
                None => found,
            }
        }
    }
}

/// Whether providers take it as the name of a function.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

impl Tools for Toolbox {
    fn specs(&self, scene: Scene<'_>) -> Vec<ToolSpec> {
        let mut specs: Vec<ToolSpec> = Vec::new();
        let mut there_are_tools = false;
        for shelf in self.shelves() {
            there_are_tools |= !shelf.0.is_empty();
            for entry in shelf.0.iter().filter(|entry| entry.tool.offered(scene)) {
                if !specs.iter().any(|other| other.name == entry.spec.name) {
                    specs.push(entry.spec.clone());
                }
            }
        }
        specs.extend((self.offers_questions || there_are_tools).then(ask::spec));
        specs
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
            Ok(arguments) => entry.plan(arguments, &rules.permits),
            Err(why) => Judgement::Invalid(why),
        }
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let expected = self.expect(&invocation.tool);
        Box::pin(async move {
            let Some(entry) = expected.await else {
                // What may have been done under an earlier configuration cannot be said to have failed.
                return match invocation.attempt {
                    ..=1 => ToolEnd::Failed(format!("unknown tool: {}", invocation.tool)),
                    _ => ToolEnd::Unknown("the tool is no longer configured".to_owned()),
                };
            };
            guarded(invocation, move |invocation| entry.tool.run(invocation, output)).await
        })
    }

    fn reconcile(&self, invocation: Invocation) -> ToolRun {
        let expected = self.expect(&invocation.tool);
        Box::pin(async move {
            let Some(entry) = expected.await else {
                return ToolEnd::Unknown("the tool is no longer configured".to_owned());
            };
            guarded(invocation, move |invocation| entry.tool.reconcile(invocation)).await
        })
    }
}

impl Entry {
    fn plan(&self, arguments: Value, permits: &[(String, Permit)]) -> Judgement {
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
            gate: self.tool.gate(),
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
