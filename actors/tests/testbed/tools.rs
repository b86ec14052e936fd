//! Tools that leave a mark on the world: a line in a file for each time they act, on the disk before they go on.
//!
//! `read`, `idempotent`, `reconcilable` and `once` are named for their class; `gated_` in front of one makes it ask,
//! `full_` ask for full access. `ask` is a question. Words of the argument say what a call does: `before` and `after`
//! wait for a permit of the gate of that name before, or after, they act; `panics`, `fails`, `unknown` and `undone`
//! say how it ends, and with a `1` behind them how its first attempt does; `says` speaks before it acts. Of a `mute` operation nothing can be said
//! later.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    path::Path,
    sync::{Arc, Mutex},
};

use raddle_domain::{
    history::ToolCall,
    policy::TenantRules,
    ports::{Gate, Invocation, Judgement, Output, Planned, Scene, ToolEnd, ToolRun, ToolSpec, Tools},
    record::{EffectClass, ItemKind, Permit},
};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

pub struct TestTools {
    file: Mutex<File>,
    pub before: Semaphore,
    pub after: Semaphore,
    /// Attempts that began, and acts.
    pub progress: watch::Sender<(usize, usize)>,
    pub on_act: Box<dyn Fn(&Invocation) + Send + Sync>,
    /// Called when an engine is about to make its request.
    pub on_specs: Box<dyn Fn() + Send + Sync>,
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    pub operation: String,
    pub attempt: u32,
    pub tool: String,
    pub argument: String,
}

impl TestTools {
    pub fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self::plain(dir))
    }

    pub fn plain(dir: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).read(true).open(dir.join("acts")).unwrap();
        Self {
            file: Mutex::new(file),
            before: Semaphore::new(0),
            after: Semaphore::new(0),
            progress: watch::Sender::new((0, 0)),
            on_act: Box::new(|_| {}),
            on_specs: Box::new(|| {}),
        }
    }

    /// Waits until so many attempts began.
    pub async fn begun(&self, count: usize) {
        self.progress.subscribe().wait_for(|(begun, _)| *begun >= count).await.unwrap();
    }

    /// Waits until so many acts were done.
    pub async fn acted(&self, count: usize) {
        self.progress.subscribe().wait_for(|(_, acted)| *acted >= count).await.unwrap();
    }

    fn act(&self, invocation: &Invocation) {
        let mut file = self.file.lock().unwrap();
        let argument = argument(invocation);
        writeln!(file, "{}\t{}\t{}\t{argument}", invocation.operation, invocation.attempt, invocation.tool).unwrap();
        file.sync_all().unwrap();
        drop(file);
        self.progress.send_modify(|(_, acted)| *acted += 1);
        (self.on_act)(invocation);
    }
}

/// What was done in `dir`, in order.
pub fn acts(dir: &Path) -> Vec<Act> {
    let mut text = String::new();
    match File::open(dir.join("acts")) {
        Ok(mut file) => drop(file.read_to_string(&mut text).unwrap()),
        Err(_) => return Vec::new(),
    }
    let act = |line: &str| {
        let parts: Vec<_> = line.split('\t').collect();
        let [operation, attempt, tool, argument] = parts[..] else { panic!("a torn line: {line}") };
        let attempt = attempt.parse().unwrap();
        Act { operation: operation.into(), attempt, tool: tool.into(), argument: argument.into() }
    };
    text.lines().map(act).collect()
}

fn argument(invocation: &Invocation) -> String {
    invocation.arguments["argument"].as_str().unwrap_or_default().to_owned()
}

fn class(tool: &str) -> Option<(EffectClass, Gate)> {
    let (gate, class) = match tool.split_once('_') {
        None => (Gate::Open, tool),
        Some(("gated", class)) => (Gate::Ask, class),
        Some(("full", class)) => (Gate::FullAccess, class),
        Some(_) => return None,
    };
    let class = match class {
        "read" => EffectClass::Read,
        "idempotent" => EffectClass::Idempotent,
        "reconcilable" => EffectClass::Reconcilable,
        "once" => EffectClass::Once,
        _ => return None,
    };
    Some((class, gate))
}

/// The tools, shared with the test that holds them.
pub struct Shared(pub Arc<TestTools>);

impl Tools for Shared {
    fn specs(&self, _: Scene<'_>) -> Vec<Arc<ToolSpec>> {
        (self.0.on_specs)();
        Vec::new()
    }

    fn judge(&self, call: &ToolCall, _: Scene<'_>, rules: &TenantRules) -> Judgement {
        let arguments = call.arguments_value();
        if call.name == "ask" {
            let question = arguments["argument"].as_str().unwrap_or_default().to_owned();
            return Judgement::Question { question, options: vec!["yes".into(), "no".into()] };
        }
        let Some((class, gate)) = class(&call.name) else { return Judgement::Unknown };
        let digest: BTreeMap<_, _> = arguments.as_object().into_iter().flatten().collect();
        let digest = Sha256::digest(serde_json::to_vec(&digest).unwrap());
        let arguments_sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let permitted =
            rules.permits.iter().find(|(_, permit)| permit.covers(&call.name, &arguments_sha256, None, &[]));
        let amendment = Permit {
            tool: call.name.clone(),
            arguments_sha256: Some(arguments_sha256.clone()),
            command_prefix: None,
            host: None,
        };
        Judgement::Run(Box::new(Planned {
            kind: ItemKind::ToolCall,
            class,
            gate,
            arguments,
            arguments_sha256,
            command: None,
            cwd: None,
            words: None,
            hosts: Vec::new(),
            reason: "it leaves a mark".into(),
            asked_by: None,
            amendment: Some(amendment),
            permitted_by: permitted.map(|(rule, _)| rule.clone()),
        }))
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let tools = self.0.clone();
        Box::pin(async move {
            tools.progress.send_modify(|(begun, _)| *begun += 1);
            let argument = argument(&invocation);
            let words: Vec<&str> = argument.split(' ').collect();
            let first = invocation.attempt == 1;
            let says = |word: &str| words.contains(&word) || (first && words.contains(&format!("{word}1").as_str()));
            if says("before") {
                tools.before.acquire().await.unwrap().forget();
            }
            if says("undone") {
                return ToolEnd::NotDone;
            }
            if says("fails") {
                return ToolEnd::Failed(format!("cannot do {}", words[0]));
            }
            if says("says") {
                output.say(format!("about to do {}\n", words[0])).await;
            }
            tools.act(&invocation);
            assert!(!says("panics"), "told to fail");
            if says("after") {
                tools.after.acquire().await.unwrap().forget();
            }
            if says("unknown") {
                return ToolEnd::Unknown("the line went dead".into());
            }
            ToolEnd::Done(format!("did {}", words[0]))
        })
    }

    fn reconcile(&self, invocation: Invocation) -> ToolRun {
        let tools = self.0.clone();
        Box::pin(async move {
            let argument = argument(&invocation);
            let words: Vec<&str> = argument.split(' ').collect();
            if words.contains(&"mute") {
                return ToolEnd::Unknown("nobody remembers".into());
            }
            let mut text = String::new();
            let mut file = tools.file.lock().unwrap();
            std::io::Seek::rewind(&mut *file).unwrap();
            file.read_to_string(&mut text).unwrap();
            if text.lines().any(|line| line.starts_with(&invocation.operation.to_string())) {
                ToolEnd::Done(format!("did {}", words[0]))
            } else {
                ToolEnd::NotDone
            }
        })
    }
}
