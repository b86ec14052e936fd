//! A provider of models within the test: it plays recorded answers and remembers what it was asked. What is written
//! here is in the words of OpenAI; `anthropic_server` has those of the messages API.
//!
//! An answer is raw: a status, headers, and pieces of a body, each flushed on its own, so that a split can fall
//! anywhere. Where time matters the test holds a [`Gate`]; nothing here waits for a clock.
//! It listens on a port of its own on 127.0.0.1 and ends with the runtime it was started in.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::post,
    serve::ListenerExt,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

/// Lets one wait go on for every time that it is opened.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub fn open(&self) {
        self.0.add_permits(1);
    }

    async fn pass(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// A part of a body, or what happens between two.
#[derive(Debug, Clone)]
pub enum Piece {
    Bytes(Vec<u8>),
    /// Nothing comes until the test opens the gate.
    Wait(Gate),
    /// The connection breaks.
    Break,
}

/// An answer to play.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    /// Not even the status comes before this opens.
    silence: Option<Gate>,
    pieces: Vec<Piece>,
}

impl Answer {
    /// An answer with a status and no body yet.
    pub fn new(status: u16, content_type: &str) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self { status, headers, silence: None, pieces: Vec::new() }
    }

    /// An event stream with nothing in it yet.
    pub fn stream() -> Self {
        Self::new(200, "text/event-stream")
    }

    /// A JSON body: an answer in one piece, or a refusal.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json").raw(body.to_string())
    }

    /// A whole streamed answer: `text` word by word, a finish reason, usage, `[DONE]`.
    pub fn text(text: &str) -> Self {
        let words = text.split_inclusive(' ').map(|word| delta(json!({ "content": word })));
        let (input, output) = (1, text.split_whitespace().count());
        let usage = json!({"choices": [], "usage": {"prompt_tokens": input, "completion_tokens": output}});
        words.fold(Self::stream(), Self::event).event(finish("stop")).event(usage).done()
    }

    /// A whole streamed answer that calls tools: `(id, name, arguments)` each.
    pub fn tools(calls: &[(&str, &str, &str)]) -> Self {
        let parts = calls.iter().enumerate().flat_map(|(index, (id, name, arguments))| {
            let head =
                json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}});
            let tail = json!({"index": index, "function": {"arguments": arguments}});
            [head, tail].map(|part| delta(json!({ "tool_calls": [part] })))
        });
        parts.fold(Self::stream(), Self::event).event(finish("tool_calls")).done()
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Bytes as they are, in one piece.
    pub fn raw(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.pieces.push(Piece::Bytes(bytes.into()));
        self
    }

    /// One event.
    pub fn event(self, data: Value) -> Self {
        self.raw(format!("data: {data}\n\n"))
    }

    /// The event that says nothing follows.
    pub fn done(self) -> Self {
        self.raw("data: [DONE]\n\n")
    }

    /// Stops here until the gate opens.
    pub fn wait(mut self, gate: &Gate) -> Self {
        self.pieces.push(Piece::Wait(gate.clone()));
        self
    }

    /// Breaks the connection here.
    pub fn broken(mut self) -> Self {
        self.pieces.push(Piece::Break);
        self
    }

    /// Sends nothing at all until the gate opens.
    pub fn silent_until(mut self, gate: &Gate) -> Self {
        self.silence = Some(gate.clone());
        self
    }

    /// Sends every piece in parts of `size` bytes, wherever that cuts.
    pub fn split_every(mut self, size: usize) -> Self {
        let split = |piece| match piece {
            Piece::Bytes(bytes) => bytes.chunks(size).map(|part| Piece::Bytes(part.to_vec())).collect(),
            other => vec![other],
        };
        self.pieces = self.pieces.into_iter().flat_map(split).collect();
        self
    }
}

/// A chunk with a delta.
pub fn delta(delta: Value) -> Value {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

/// The chunk with the finish reason.
pub fn finish(reason: &str) -> Value {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

/// What the server was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub headers: HeaderMap,
    pub body: Value,
}

impl Asked {
    /// The messages that the model saw.
    pub fn messages(&self) -> &[Value] {
        self.body["messages"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn last_user_message(&self) -> String {
        let of_user = |message: &&Value| message["role"] == "user";
        let content = self.messages().iter().rfind(of_user).map(|message| &message["content"]);
        let text = |content: &'_ Value| content.as_str().map(str::to_owned);
        // The messages API has a list of blocks.
        let last = |content: &Value| content.as_array()?.iter().rev().find_map(|block| text(&block["text"]));
        content.and_then(|content| text(content).or_else(|| last(content))).unwrap_or_default()
    }
}

/// The running server.
pub struct OpenAiServer {
    base_url: String,
    shared: Arc<Shared>,
}

struct Shared {
    script: Mutex<Script>,
    /// How many requests came.
    asked: watch::Sender<usize>,
    /// How many answers are over: played to their end, or given up by who asked.
    over: watch::Sender<usize>,
}

#[derive(Default)]
struct Script {
    in_order: VecDeque<Answer>,
    by_marker: Vec<(String, Answer)>,
    asked: Vec<Asked>,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics while it holds the script")
    }
}

impl OpenAiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base_url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let shared =
            Arc::new(Shared { script: Mutex::default(), asked: watch::Sender::new(0), over: watch::Sender::new(0) });
        let routes = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/v1/messages", post(complete))
            .with_state(shared.clone());
        // Every piece goes out at once, not when there is enough of them.
        let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { base_url, shared }
    }

    /// What to configure as `model.openai.base_url`.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// What to configure as `model.anthropic.base_url`.
    pub fn root_url(&self) -> &str {
        self.base_url.trim_end_matches("/v1")
    }

    /// Adds an answer to those that are played in order, one per request.
    pub fn answer(&self, answer: Answer) {
        self.shared.script().in_order.push_back(answer);
    }

    /// Plays `answer` whenever the last user message contains `marker`; this goes before the order.
    pub fn answer_to(&self, marker: &str, answer: Answer) {
        self.shared.script().by_marker.push((marker.to_owned(), answer));
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.script().asked.clone()
    }

    /// Waits until `count` requests have come.
    pub async fn until_asked(&self, count: usize) {
        let mut asked = self.shared.asked.subscribe();
        asked.wait_for(|asked| *asked >= count).await.expect("the server runs");
    }

    /// Waits until `count` answers are over: played to the end, or given up by who asked.
    pub async fn until_over(&self, count: usize) {
        let mut over = self.shared.over.subscribe();
        over.wait_for(|over| *over >= count).await.expect("the server runs");
    }
}

/// Counts an answer as over, however it ends.
struct Playing(Arc<Shared>);

impl Drop for Playing {
    fn drop(&mut self) {
        self.0.over.send_modify(|over| *over += 1);
    }
}

async fn complete(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let playing = Playing(shared.clone());
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let answer = note(&shared, Asked { headers: head.headers, body });
    if let Some(gate) = &answer.silence {
        gate.pass().await;
    }
    let mut response = Response::builder().status(StatusCode::from_u16(answer.status).expect("a status"));
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let pieces = stream::unfold((answer.pieces.into_iter(), playing), |(mut pieces, playing)| async move {
        loop {
            // Between two pieces the connection is flushed.
            tokio::task::yield_now().await;
            let piece = match pieces.next()? {
                Piece::Bytes(bytes) => Ok(Bytes::from(bytes)),
                Piece::Break => Err("broken on purpose"),
                Piece::Wait(gate) => {
                    gate.pass().await;
                    continue;
                }
            };
            return Some((piece, (pieces, playing)));
        }
    });
    response.body(Body::from_stream(pieces)).expect("headers that can be sent")
}

fn note(shared: &Shared, asked: Asked) -> Answer {
    let mut script = shared.script();
    let marked = script.by_marker.iter().find(|(marker, _)| asked.last_user_message().contains(marker.as_str()));
    let answer = marked.map(|(_, answer)| answer.clone()).or_else(|| script.in_order.pop_front());
    script.asked.push(asked);
    let count = script.asked.len();
    drop(script);
    shared.asked.send_replace(count);
    answer.unwrap_or_else(|| Answer::json(400, &json!({"error": {"message": "the test recorded no answer"}})))
}
