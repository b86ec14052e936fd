//! A model that does what its prompt says.
//!
//! * `call TOOL ARGUMENT; call TOOL ARGUMENT` calls these tools in one answer, then echoes their results.
//! * Anything else is echoed, a letter at a time.
//! * In front of either: `hold` says `held` first (`hold empty`: an empty text), then waits for a permit of the gate;
//!   `think` reasons first.
//! * `wait` anywhere in a prompt that calls tools: the echo of the results waits for a permit too.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use futures_util::{StreamExt, stream};
use raddle_domain::{
    history::Message,
    ports::{FinishReason, Fragment, Model, ModelRequest, ModelStream, Models, UnknownModel},
    record::{ModelChoice, Purpose, Usage},
};
use tokio::sync::Semaphore;

/// Called with each request before it is answered.
pub type OnCall = Box<dyn Fn(u32, &ModelRequest) + Send + Sync>;

pub struct TestModel {
    pub gate: Arc<Semaphore>,
    /// What summaries wait for.
    pub summaries: Arc<Semaphore>,
    pub calls: AtomicU32,
    pub seen: Mutex<Vec<Vec<Message>>>,
    /// What every call claims to have read.
    pub input_tokens: AtomicU64,
    pub on_call: OnCall,
}

impl TestModel {
    pub fn new() -> Arc<Self> {
        Self::with(Box::new(|_, _| {}))
    }

    /// With a hook that sees each call's number, from 1, and its request.
    pub fn with(on_call: OnCall) -> Arc<Self> {
        Arc::new(Self {
            gate: Arc::new(Semaphore::new(0)),
            summaries: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            calls: AtomicU32::new(0),
            seen: Mutex::default(),
            input_tokens: AtomicU64::new(1),
            on_call,
        })
    }

    /// What the last call was shown.
    pub fn last_seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().last().cloned().expect("the model was called")
    }
}

struct Handle(Arc<TestModel>);

/// What one call answers.
struct Answer {
    thought: Option<String>,
    first: Option<&'static str>,
    gate: Option<Arc<Semaphore>>,
    text: String,
    calls: Vec<(String, String)>,
}

impl Handle {
    fn answer(&self, request: &ModelRequest) -> Answer {
        let all = &request.messages;
        if request.purpose == Purpose::Compaction {
            let (gate, text) = (Some(self.0.summaries.clone()), format!("summary of {} messages", all.len() - 1));
            return Answer { thought: None, first: Some("a "), gate, text, calls: Vec::new() };
        }
        let said = all.iter().rposition(|message| matches!(message, Message::User { .. })).unwrap_or(0);
        let prompt = match &all[said] {
            Message::User { content } => content.as_str(),
            _ => "",
        };
        let results = all[said..].iter().filter_map(|message| match message {
            Message::Tool { content, .. } => Some(content.as_str()),
            _ => None,
        });
        let results: Vec<_> = results.collect();
        if !results.is_empty() {
            let gate = prompt.contains("wait").then(|| self.0.gate.clone());
            let first = gate.is_some().then_some("held ");
            return Answer { thought: None, first, gate, text: format!("echo: {}", results.join(", ")), calls: vec![] };
        }
        let held = prompt.starts_with("hold");
        let first = held.then_some(if prompt.starts_with("hold empty") { "" } else { "held " });
        let gate = held.then(|| self.0.gate.clone());
        let thought = prompt.contains("think").then(|| "hm, ".to_owned());
        let calls = prompt.split("; ").filter_map(|part| part.split_once("call ")).map(|(_, call)| {
            let (tool, argument) = call.split_once(' ').unwrap_or((call, ""));
            (tool.to_owned(), argument.to_owned())
        });
        let calls: Vec<_> = calls.collect();
        let text = if calls.is_empty() { format!("echo: {prompt}") } else { "calling".to_owned() };
        Answer { thought, first, gate, text, calls }
    }
}

impl Model for Handle {
    fn call(&self, request: ModelRequest) -> ModelStream {
        let number = self.0.calls.fetch_add(1, SeqCst) + 1;
        (self.0.on_call)(number, &request);
        self.0.seen.lock().unwrap().push(request.messages.clone());
        let Answer { thought, first, gate, text, calls } = self.answer(&request);
        let wait = async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
        };
        let letters = text.chars().map(|letter| Fragment::Text(letter.into()));
        let asked = calls.iter().zip(0..).map(|((tool, argument), index)| Fragment::ToolCall {
            index,
            call_id: Some(format!("c{}", index + 1)),
            name: Some(tool.clone()),
            arguments: serde_json::json!({ "argument": argument }).to_string(),
        });
        let input_tokens = self.0.input_tokens.load(SeqCst);
        let usage = Usage { input_tokens, output_tokens: text.len() as u64, ..Usage::default() };
        let finish = if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
        let end = [Fragment::Usage(usage), Fragment::Finish(finish)];
        let rest: Vec<_> = letters.chain(asked).chain(end).map(Ok).collect();
        let before =
            thought.map(Fragment::Reasoning).into_iter().chain(first.map(|first| Fragment::Text(first.into())));
        let rest = stream::once(wait).flat_map(move |()| stream::iter(rest.clone()));
        stream::iter(before.map(Ok).collect::<Vec<_>>()).chain(rest).boxed()
    }
}

/// The configuration in which every name is the test's model.
pub struct Registry(pub Arc<TestModel>);

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
