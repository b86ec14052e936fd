//! A runtime with a model that the test holds in its hand.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use futures_util::{StreamExt, stream};
use raddle_actors::{Call, Config, Ports, Runtime, Started};
use raddle_domain::{
    command::{NewThread, StartTurn},
    history::Message,
    id::{TenantId, ThreadKey},
    ports::{FinishReason, Fragment, Model, ModelRequest, ModelStream, Models, UnknownModel},
    record::{Delivery, ModelChoice, Thread, Turn, Usage},
};
use tokio::sync::Semaphore;

/// Answers `echo: PROMPT`, a letter at a time. A prompt that starts with `hold` says `held` first (`hold empty`: an
/// empty text) and then waits for a permit of `gate`.
pub struct TestModel {
    pub gate: Arc<Semaphore>,
    pub calls: AtomicU32,
    pub seen: Mutex<Vec<Vec<Message>>>,
}

impl TestModel {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { gate: Arc::new(Semaphore::new(0)), calls: AtomicU32::new(0), seen: Mutex::default() })
    }
}

struct Handle(Arc<TestModel>);

impl Model for Handle {
    fn call(&self, request: ModelRequest) -> ModelStream {
        self.0.calls.fetch_add(1, SeqCst);
        self.0.seen.lock().unwrap().push(request.messages.clone());
        let prompt = request.messages.iter().rev().find_map(|message| match message {
            Message::User { content } => Some(content.clone()),
            _ => None,
        });
        let prompt = prompt.unwrap_or_default();
        let gate = self.0.gate.clone();
        let held = prompt.starts_with("hold");
        let wait = async move {
            if held {
                gate.acquire().await.unwrap().forget();
            }
        };
        let text = format!("echo: {prompt}");
        let letters: Vec<_> = text.chars().map(|letter| Ok(Fragment::Text(letter.into()))).collect();
        let usage = Usage { input_tokens: 1, output_tokens: text.len() as u64, ..Usage::default() };
        let first = if prompt.starts_with("hold empty") { "" } else { "held " };
        let first = held.then(|| Ok(Fragment::Text(first.into())));
        let end = [Ok(Fragment::Usage(usage)), Ok(Fragment::Finish(FinishReason::Stop))];
        let rest = stream::once(wait).flat_map(move |()| stream::iter(letters.clone().into_iter().chain(end.clone())));
        stream::iter(first).chain(rest).boxed()
    }
}

impl Models for TestModel {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Ok(choice())
    }
    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        unreachable!("the wrapper answers")
    }
    fn engines(&self) -> Vec<String> {
        vec!["test".into()]
    }
}

struct Registry(Arc<TestModel>);

impl Models for Registry {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Ok(choice())
    }
    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        Some(Arc::new(Handle(self.0.clone())))
    }
    fn engines(&self) -> Vec<String> {
        vec!["test".into()]
    }
}

pub fn choice() -> ModelChoice {
    ModelChoice { engine: "test".into(), model: "test".into() }
}

pub fn ports(model: &Arc<TestModel>) -> Ports {
    Ports::with_models(Arc::new(Registry(model.clone())))
}

pub async fn runtime(dir: &Path, model: &Arc<TestModel>) -> Runtime {
    Runtime::start(Config::new(dir), ports(model)).await.unwrap()
}

pub fn key(thread: &Thread) -> ThreadKey {
    ThreadKey { tenant: TenantId::DEFAULT, thread: thread.id }
}

pub async fn create(runtime: &Runtime) -> ThreadKey {
    let done = runtime.create_thread(TenantId::DEFAULT, NewThread::with(choice()), Call::default()).await.unwrap();
    key(&done.value)
}

pub fn prompt(prompt: &str, delivery: Delivery) -> StartTurn {
    StartTurn { prompt: prompt.into(), delivery, ..StartTurn::default() }
}

pub async fn start(runtime: &Runtime, key: ThreadKey, text: &str) -> Turn {
    let done = runtime.start_turn(key, prompt(text, Delivery::Reject), Call::default()).await.unwrap();
    match done.value {
        Started::Turn(turn) => *turn,
        Started::Queued { .. } => panic!("queued"),
    }
}

/// The answer's text of every turn, oldest first.
pub async fn answers(runtime: &Runtime, key: ThreadKey) -> Vec<String> {
    let snapshot = runtime.snapshot(key).await.unwrap();
    let agent = snapshot.items.into_iter().filter(|item| item.kind == raddle_domain::record::ItemKind::AgentMessage);
    agent.map(|item| item.detail).collect()
}
