//! What models may do: the implementations of [`Tool`], and the [`Toolbox`] that judges calls and runs them.
//!
//! ```text
//! a call ─▶ known? ─▶ arguments fit? ─▶ policy ─▶ Planned ─▶ (the thread decides) ─▶ run, or reconcile
//!                                          └─▶ Forbidden
//! ```
//! Judging is pure and comes first: nobody is asked about a call that could not be run, and nobody about one that is
//! denied. What a permit covers, and what an approval is bound to, is the digest of the arguments (see [`arguments`]).
//! A tool says what its calls do to the world ([`EffectClass`]), what they touch ([`Touches`]) and who must agree
//! ([`Gate`]); the policy makes that stricter, or lets a call pass ([`raddle_domain::policy`]); the thread's machine
//! draws the conclusions, so no tool retries or asks anybody by itself.
//!
//! Tools stand on a [`Shelf`], which is replaced as a whole where they come and go ([`Source`]); a call is judged, and
//! later run, by the shelf of that moment.
//!
//! Absent on purpose: time limits, which belong to the turn; bounds on output, which the thread keeps for every item.

pub mod arguments;
pub mod ask;
mod blocking;
pub mod board;
pub mod demo;
pub mod files;
pub mod shell;

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc};

use futures_util::FutureExt;
use raddle_domain::{
    history::ToolCall,
    policy::{
        Action, AskMode, Layer, Policy, SandboxMode, Script, TenantRules,
        decide::{Decided, Layers, Subject, decide},
        narrowest,
    },
    ports::{
        Explained, Gate, Invocation, Judgement, Output, Planned, Scene, Supposed, ToolEnd, ToolRun, ToolSpec, Tools,
    },
    record::{EffectClass, ItemKind, Permit},
};
use serde_json::{Value, json};

use self::arguments::{BadSchema, Schema};
use crate::policy::{built_in, shell as reading};

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
    fn command(&self, _arguments: &Value, _scene: Scene<'_>) -> Option<Command> {
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
    /// Its words, for a tool that runs them as they are. `None` where the line is a text for a shell: then it is
    /// parsed here, and nowhere else.
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
    /// Whether it wants to leave the sandbox.
    pub full_access: bool,
    /// Whether it acts where no sandbox and no workspace holds it in, as what another program does.
    pub outside: bool,
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
    /// Those of threads that work for a run.
    board: Arc<Shelf>,
    sources: Vec<Arc<dyn Source>>,
    /// How models are told that they may ask people, and what such a question has to be.
    asks: Arc<ToolSpec>,
    questions: Schema,
    offers_questions: bool,
    /// The installation's layer.
    policy: Policy,
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
    spec: Arc<ToolSpec>,
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
        self.0.push(Arc::new(Entry { schema: compiled(&spec)?, spec: Arc::new(spec), tool }));
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
        let (tools, asks) = (Arc::new(Shelf::new(tools)?), ask::spec());
        let questions = compiled(&asks)?;
        let board = Arc::default();
        let (asks, sources, policy) = (Arc::new(asks), Vec::new(), Policy::default());
        Ok(Self { tools, board, sources, asks, questions, offers_questions, policy })
    }

    /// With this as the installation's layer of the policy.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// With tools for threads that work for a run. To others they are nothing that they may do.
    pub fn with_board(self, tools: impl IntoIterator<Item = Arc<dyn Tool>>) -> Result<Self, ToolboxError> {
        Ok(Self { board: Arc::new(Shelf::new(tools)?), ..self })
    }

    /// With tools that come and go. They stand behind those that are there already, which win where names are equal.
    pub fn with(mut self, source: Arc<dyn Source>) -> Self {
        self.sources.push(source);
        self
    }

    fn shelves(&self) -> impl Iterator<Item = Arc<Shelf>> {
        std::iter::once(self.board.clone()).chain(self.for_all())
    }

    /// The shelves of tools that any thread may have.
    fn for_all(&self) -> impl Iterator<Item = Arc<Shelf>> {
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

    /// Everything that has a say about a call.
    fn layers<'a>(&'a self, scene: Scene<'a>, rules: &'a TenantRules) -> Layers<'a> {
        let all = [(Layer::BuiltIn, built_in()), (Layer::Installation, &self.policy), (Layer::Tenant, &rules.policy)];
        let thread = scene.policy.map(|policy| (Layer::Thread, policy));
        Layers { policies: all.into_iter().chain(thread).collect(), permits: &rules.permits }
    }

    /// The invocation with what the installation says of the sandbox and of paths.
    fn confined(&self, mut invocation: Invocation) -> Invocation {
        if let Some(mode) = narrowest([&self.policy].into_iter().chain(&invocation.policy)) {
            invocation.policy.get_or_insert_default().sandbox = Some(mode);
        }
        if !self.policy.rules.is_empty() {
            invocation.policy.get_or_insert_default().rules.extend(self.policy.rules.iter().cloned());
        }
        invocation
    }

    fn judge_question(&self, call: &ToolCall, layers: &Layers<'_>) -> Judgement {
        let judged = self.questions.read(&call.arguments).and_then(|arguments| ask::judge(&arguments));
        let judged = judged.unwrap_or_else(Judgement::Invalid);
        let decided = decide(&question(), layers);
        match (&judged, decided.action) {
            (Judgement::Question { .. }, Action::Deny) => forbidden(decided),
            _ => judged,
        }
    }
}

/// A question to a person, as rules see it: nothing but its name.
fn question() -> Subject<'static> {
    Subject {
        tool: ask::ASK_USER,
        class: EffectClass::Read,
        gate: Gate::Open,
        full_access: false,
        outside: false,
        arguments_sha256: "",
        paths: &[],
        hosts: &[],
        root: None,
        script: None,
    }
}

/// How the mode is named where it stands for a rule.
fn mode(ask: AskMode) -> String {
    format!("ask = {}", ask.as_str())
}

fn forbidden(decided: Decided) -> Judgement {
    Judgement::Forbidden { rule: decided.rule.unwrap_or_else(|| mode(decided.ask)), reason: decided.reason }
}

/// Whether providers take it as the name of a function.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

impl Tools for Toolbox {
    fn specs(&self, scene: Scene<'_>) -> Vec<Arc<ToolSpec>> {
        let mut specs: Vec<Arc<ToolSpec>> = Vec::new();
        for shelf in self.shelves() {
            for entry in shelf.0.iter().filter(|entry| entry.tool.offered(scene)) {
                if !specs.iter().any(|other| other.name == entry.spec.name) {
                    specs.push(entry.spec.clone());
                }
            }
        }
        let may_act = !specs.is_empty() || self.for_all().any(|shelf| !shelf.0.is_empty());
        specs.extend((self.offers_questions || may_act).then(|| self.asks.clone()));
        specs
    }

    fn judge(&self, call: &ToolCall, scene: Scene<'_>, rules: &TenantRules) -> Judgement {
        // Known also where it is not offered: a model that asks anyway is better answered than refused.
        let layers = self.layers(scene, rules);
        if call.name == ask::ASK_USER {
            return self.judge_question(call, &layers);
        }
        let entry = self.find(&call.name).filter(|entry| entry.tool.offered(scene));
        let Some(entry) = entry else { return Judgement::Unknown };
        match entry.consider(&call.arguments, scene, &layers) {
            Ok(considered) => considered.judgement(&*entry.tool),
            Err(why) => Judgement::Invalid(why),
        }
    }

    fn explain(&self, supposed: Supposed<'_>, scene: Scene<'_>, rules: &TenantRules) -> Explained {
        let layers = self.layers(scene, rules);
        let decided = match supposed {
            Supposed::Command { tool, line } => Ok(command(tool, line, &layers)),
            Supposed::Call(call) if call.name == ask::ASK_USER => {
                self.questions.read(&call.arguments).map(|_| decide(&question(), &layers))
            }
            Supposed::Call(call) => {
                let Some(entry) = self.find(&call.name) else { return Explained::Unknown };
                entry.consider(&call.arguments, scene, &layers).map(|considered| considered.decided)
            }
        };
        decided.map_or_else(Explained::Invalid, |decided| Explained::Decided(Box::new(decided)))
    }

    fn judge_act(&self, tool: &str, planned: Planned, scene: Scene<'_>, rules: &TenantRules) -> Judgement {
        let layers = self.layers(scene, rules);
        let script = planned.command.as_deref().map(reading::read);
        let subject = Subject {
            tool,
            class: planned.class,
            gate: planned.gate,
            // What an agent runs, no sandbox of ours holds in.
            full_access: script.is_some(),
            outside: true,
            arguments_sha256: &planned.arguments_sha256,
            script: script.as_ref(),
            ..question()
        };
        let mut decided = decide(&subject, &layers);
        let acts = planned.kind == ItemKind::FileChange || script.is_some();
        if acts && is_read_only(&layers) {
            decided = changes_nothing(decided);
        }
        // Its own way of saying that another call is the same is the only one: what its words do, nobody here knows.
        let amendment = planned.amendment.clone().filter(|_| decided.amendment.is_some());
        let own = if script.is_some() { Gate::FullAccess } else { planned.gate };
        match ruled(decided, own, planned.reason.clone()) {
            Ok(Ruled { gate, reason, asked_by, permitted_by, .. }) => {
                Judgement::Run(Box::new(Planned { gate, reason, asked_by, permitted_by, amendment, ..planned }))
            }
            Err(forbidden) => forbidden,
        }
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let expected = self.expect(&invocation.tool);
        let invocation = self.confined(invocation);
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
        let invocation = self.confined(invocation);
        Box::pin(async move {
            let Some(entry) = expected.await else {
                return ToolEnd::Unknown("the tool is no longer configured".to_owned());
            };
            guarded(invocation, move |invocation| entry.tool.reconcile(invocation)).await
        })
    }
}

/// Decides about a command of a tool that runs them in a sandbox, whatever else it may be told.
pub fn command(tool: &str, line: &str, layers: &Layers<'_>) -> Decided {
    let script = reading::read(line);
    let arguments_sha256 = arguments::digest(&json!({ "command": line })).unwrap_or_default();
    let full_access = is_unconfined(layers);
    decide(
        &Subject {
            tool,
            class: EffectClass::Once,
            gate: Gate::Ask,
            full_access,
            arguments_sha256: &arguments_sha256,
            script: Some(&script),
            ..question()
        },
        layers,
    )
}

/// Whether commands are not held in by anything: then each of them leaves the sandbox.
fn is_unconfined(layers: &Layers<'_>) -> bool {
    narrowest(layers.policies.iter().map(|(_, policy)| *policy)) == Some(SandboxMode::DangerFullAccess)
}

/// Whether no tool may change a file, in a sandbox or by itself.
fn is_read_only(layers: &Layers<'_>) -> bool {
    narrowest(layers.policies.iter().map(|(_, policy)| *policy)) == Some(SandboxMode::ReadOnly)
}

/// The decision about a call that would change something where nothing may be changed.
fn changes_nothing(decided: Decided) -> Decided {
    let rule = Some("sandbox = read-only".to_owned());
    let reason = "nothing may be changed here".to_owned();
    Decided { action: Action::Deny, rule, layer: None, reason, in_person: false, amendment: None, ..decided }
}

/// A call whose arguments fit, with what is decided about it.
struct Considered {
    arguments: Value,
    arguments_sha256: String,
    command: Option<String>,
    cwd: Option<String>,
    script: Option<Script>,
    touches: Touches,
    decided: Decided,
}

impl Entry {
    /// Considers a call. The error is a sentence for the model.
    fn consider(&self, arguments: &str, scene: Scene<'_>, layers: &Layers<'_>) -> Result<Considered, String> {
        let arguments = self.schema.read(arguments)?;
        let arguments_sha256 = arguments::digest(&arguments)?;
        let command = self.tool.command(&arguments, scene);
        let script = command.as_ref().map(|command| match &command.words {
            Some(words) => reading::words(words),
            None => reading::read(&command.line),
        });
        let mut touches = self.tool.touches(&arguments, scene);
        touches.full_access |= script.is_some() && is_unconfined(layers);
        let subject = Subject {
            tool: &self.spec.name,
            class: self.tool.class(),
            gate: self.tool.gate(),
            full_access: touches.full_access,
            outside: touches.outside,
            arguments_sha256: &arguments_sha256,
            paths: &touches.paths,
            hosts: &touches.hosts,
            root: scene.workspace.filter(|workspace| workspace.starts_with('/')),
            script: script.as_ref(),
        };
        let mut decided = decide(&subject, layers);
        if self.tool.kind() == ItemKind::FileChange && is_read_only(layers) {
            decided = changes_nothing(decided);
        }
        let (command, cwd) = command.map_or((None, None), |command| (Some(command.line), command.cwd));
        Ok(Considered { arguments, arguments_sha256, command, cwd, script, touches, decided })
    }
}

impl Considered {
    fn judgement(self, tool: &dyn Tool) -> Judgement {
        let Self { arguments, arguments_sha256, command, cwd, script, touches, decided } = self;
        let own = match tool.gate() {
            Gate::Ask if touches.full_access => Gate::FullAccess,
            gate => gate,
        };
        let Ruled { gate, reason, asked_by, permitted_by, amendment } =
            match ruled(decided, own, tool.reason(&arguments)) {
                Ok(ruled) => ruled,
                Err(forbidden) => return forbidden,
            };
        let words = script.as_ref().and_then(Script::trusted_words).filter(|_| !touches.full_access);
        Judgement::Run(Box::new(Planned {
            kind: tool.kind(),
            class: tool.class(),
            gate,
            words: words.map(<[String]>::to_vec),
            hosts: touches.hosts,
            reason,
            asked_by,
            amendment,
            permitted_by,
            arguments,
            arguments_sha256,
            command,
            cwd,
        }))
    }
}

/// What a decision makes of a call that is not forbidden.
struct Ruled {
    gate: Gate,
    reason: String,
    asked_by: Option<String>,
    permitted_by: Option<String>,
    amendment: Option<Permit>,
}

/// What follows from a decision for a call that has this gate of its own; the error is that it is forbidden.
fn ruled(decided: Decided, own: Gate, reason: String) -> Result<Ruled, Judgement> {
    let (gate, reason, asked_by, permitted_by) = match decided.action {
        Action::Deny => return Err(forbidden(decided)),
        Action::Ask if decided.in_person => (Gate::Person, format!("{reason}; {}", decided.reason), decided.rule, None),
        Action::Ask if own == Gate::Open => (Gate::Ask, reason, None, None),
        Action::Ask => (own, reason, None, None),
        // What lets it pass is said also where it is the mode.
        Action::Allow => (own, reason, None, decided.rule.or_else(|| (own != Gate::Open).then(|| mode(decided.ask)))),
    };
    Ok(Ruled { gate, reason, asked_by, permitted_by, amendment: decided.amendment })
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
