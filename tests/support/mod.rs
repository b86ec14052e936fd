//! What the promises are tested with: the real binary, an HTTP client, a reader of streams, and a fold of the log
//! that shares no code with the server.
//!
//! Nothing here sleeps to make something likely: a test waits for a reply, an event or the end of a process.

#![allow(dead_code, reason = "every file of tests uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{
    Method, RequestBuilder, Response,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// How long anything may take before a test calls it lost. Nothing is measured with it.
pub const LOST: Duration = Duration::from_secs(60);

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_raddle");

/// The binary, with nothing of the caller's environment.
pub fn raddle() -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear();
    command
}

// ---- a server ------------------------------------------------------------------------------------

/// A running server. Dropping it kills it, and shows what it said if the test failed.
pub struct Server {
    child: Child,
    said: Arc<Mutex<String>>,
    pub url: String,
    pub api: Api,
}

/// A server that ended before it listened.
#[derive(Debug)]
pub struct NotStarted {
    pub status: ExitStatus,
    pub said: String,
}

impl Server {
    /// A server on `dir` and a port of its own.
    pub async fn start(dir: &Path) -> Self {
        Self::with(dir, &[]).await
    }

    /// The same, with variables such as `("RADDLE_LIMITS_BODY_BYTES", "100")`.
    pub async fn with(dir: &Path, env: &[(&str, &str)]) -> Self {
        match Self::launch(dir, env).await {
            Ok(server) => server,
            Err(NotStarted { status, said }) => panic!("the server ended with {status}:\n{said}"),
        }
    }

    /// The same for a server that may refuse to start.
    pub async fn launch(dir: &Path, env: &[(&str, &str)]) -> Result<Self, NotStarted> {
        // A machine on which other tests run is slow, and that is no reason to be refused.
        let usual =
            [("RADDLE_LISTEN", "127.0.0.1:0"), ("RADDLE_SANDBOX_KIND", "off"), ("RADDLE_LIMITS_COMMAND_WAIT_MS", "0")];
        Self::spawn(dir, &[&usual, env].concat()).await
    }

    async fn spawn(dir: &Path, env: &[(&str, &str)]) -> Result<Self, NotStarted> {
        let mut child = raddle()
            .args(["serve", "--data-dir"])
            .arg(dir)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be run");
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("piped");
        let heard = said.clone();
        let hears = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| line).unwrap_or_default()
        });
        // From here on the child is ours to end, whatever becomes of the wait.
        let mut server = Self { child, said, url: String::new(), api: Api::new("http://unknown") };
        let line = timeout(LOST, first).await.expect("the server neither listens nor ends").unwrap();
        match line.trim().strip_prefix("listening on ") {
            Some(url) => {
                server.url = url.to_owned();
                server.api = Api::new(url);
                Ok(server)
            }
            None => {
                let status = server.child.wait().unwrap();
                hears.join().unwrap();
                Err(NotStarted { status, said: server.said() })
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; it goes on its own.
    pub fn terminate(&self) {
        let sent = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.pid())]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> ExitStatus {
        timeout(LOST, tokio::task::spawn_blocking(move || self.child.wait().unwrap()))
            .await
            .expect("the server does not end")
            .unwrap()
    }

    /// A shutdown as an operator does it.
    pub async fn stop(self) {
        self.terminate();
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0));
    }

    /// Whether the process is still there.
    pub fn is_up(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- what the server said ----\n{}", self.said());
        }
    }
}

// ---- a client ------------------------------------------------------------------------------------

/// The API of one server.
#[derive(Clone)]
pub struct Api {
    pub http: reqwest::Client,
    pub url: String,
}

/// A reply, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body of a reply that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// The problem of a reply that must be this one.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let body = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{body}");
        assert_eq!((body["status"].as_u64(), body["code"].as_str()), (Some(status.into()), Some(code)), "{body}");
        assert!(body["type"].as_str().is_some_and(|uri| uri.ends_with(code)), "{body}");
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"), "{body}");
        body
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The seq in the `ETag`.
    #[track_caller]
    pub fn seq(&self) -> u64 {
        self.header("etag").expect("an ETag").trim_matches('"').parse().unwrap()
    }

    pub fn replayed(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }
}

impl Api {
    pub fn new(url: &str) -> Self {
        // No proxy of the machine may stand between a test and its server.
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, url: url.to_owned() }
    }

    /// The same API for a caller who sends this key with every request.
    pub fn with_key(&self, key: &str) -> Self {
        let mut value = HeaderValue::try_from(format!("Bearer {key}")).unwrap();
        value.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        let http = reqwest::Client::builder().no_proxy().default_headers(headers).build().unwrap();
        Self { http, url: self.url.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Sends; an error when the connection does not live long enough for a whole reply.
    pub async fn try_send(&self, request: RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.timeout(LOST).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?.to_vec();
        Ok(Answer { status, headers, body })
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// A POST under an idempotency key.
    pub fn keyed(&self, path: &str, key: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path).header("idempotency-key", key).json(body)
    }

    /// A new thread's id.
    pub async fn create(&self, body: Value) -> String {
        text(&self.post("/v1/threads", body).await.expect(201)["id"])
    }

    /// Starts a turn on an idle thread; its id.
    pub async fn start(&self, thread: &str, prompt: &str) -> String {
        let reply = self.post(&format!("/v1/threads/{thread}/turns"), json!({ "prompt": prompt })).await;
        text(&reply.expect(201)["turn"]["id"])
    }

    /// Queues a prompt behind an open turn; its admission's id.
    pub async fn queue(&self, thread: &str, prompt: &str) -> String {
        let body = json!({ "prompt": prompt, "delivery": "queue" });
        let reply = self.post(&format!("/v1/threads/{thread}/turns"), body).await;
        text(&reply.expect(202)["admission"]["id"])
    }

    /// A turn, once it has ended.
    pub async fn wait(&self, thread: &str, turn: &str) -> Value {
        self.get(&format!("/v1/threads/{thread}/turns/{turn}/wait?timeout_ms=50000")).await.expect(200)
    }

    /// The thread, once nothing of it runs or waits.
    pub async fn rest(&self, thread: &str) -> Value {
        let rests = async {
            loop {
                let found = self.get(&format!("/v1/threads/{thread}")).await.expect(200);
                match found["active_turn"].as_str() {
                    None => {
                        assert_eq!(found["queued"], 0, "a prompt waits behind nothing: {found}");
                        return found;
                    }
                    Some(turn) => drop(self.wait(thread, turn).await),
                }
            }
        };
        timeout(2 * LOST, rests).await.expect("the thread does not come to rest")
    }

    /// The log, in pages.
    pub async fn log(&self, thread: &str) -> Vec<Value> {
        self.log_after(thread, 0).await
    }

    pub async fn log_after(&self, thread: &str, mut after: u64) -> Vec<Value> {
        let mut log = Vec::new();
        loop {
            let path = format!("/v1/threads/{thread}/events?limit=500&after={after}");
            let page = self.send(self.request(Method::GET, &path).header("accept", "application/json")).await;
            let page = page.expect(200);
            let events = page["data"].as_array().unwrap();
            log.extend(events.iter().cloned());
            match events.last() {
                Some(last) => after = last["seq"].as_u64().unwrap(),
                None => return log,
            }
        }
    }

    pub async fn snapshot(&self, thread: &str) -> Value {
        self.get(&format!("/v1/threads/{thread}/snapshot")).await.expect(200)
    }

    /// All of a list, page by page.
    pub async fn list(&self, path: &str, limit: usize) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let and = if path.contains('?') { '&' } else { '?' };
            let from = cursor.map(|cursor: String| format!("&cursor={cursor}")).unwrap_or_default();
            let page = self.get(&format!("{path}{and}limit={limit}{from}")).await.expect(200);
            let data = page["data"].as_array().unwrap();
            assert!(data.len() <= limit);
            all.extend(data.iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return all,
            }
        }
    }

    /// A stream after `after`, asked for with the query.
    pub async fn stream(&self, thread: &str, after: u64) -> Stream {
        let path = format!("/v1/threads/{thread}/events?after={after}");
        Stream::open(self.request(Method::GET, &path)).await
    }

    /// A stream after `after`, asked for with the header.
    pub async fn stream_from_last(&self, thread: &str, after: u64) -> Stream {
        let request = self.request(Method::GET, &format!("/v1/threads/{thread}/events"));
        Stream::open(request.header("last-event-id", after)).await
    }
}

/// The text of a JSON string.
#[track_caller]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

// ---- streams -------------------------------------------------------------------------------------

/// One event of a stream, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// Its `id:`, where that is a seq.
    pub id: Option<u64>,
    /// Its `id:`, whatever it is.
    pub cursor: Option<String>,
    pub event: String,
    pub data: String,
}

impl Frame {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// Bytes in, whole frames out. Half a frame is never one.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// A frame that is there and was not taken.
    ready: Option<Frame>,
    /// The newest `id:`, of a frame that was taken or alone: what a browser would resume with.
    pub last_id: Option<String>,
}

impl Frames {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn next(&mut self) -> Option<Frame> {
        self.look();
        let frame = self.ready.take()?;
        self.last_id = frame.cursor.clone().or(self.last_id.take());
        Some(frame)
    }

    /// Takes the remarks before the next frame: a block without an event.
    fn look(&mut self) {
        while self.ready.is_none() {
            let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") else { return };
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            let mut frame = Frame::default();
            for line in std::str::from_utf8(&block).expect("a stream is UTF-8").lines() {
                match line.split_once(": ") {
                    Some(("id", id)) => (frame.id, frame.cursor) = (id.parse().ok(), Some(id.to_owned())),
                    Some(("event", event)) => frame.event = event.to_owned(),
                    Some(("data", data)) => {
                        assert!(frame.data.is_empty(), "a record is one line");
                        frame.data = data.to_owned();
                    }
                    // Comments, and `retry`.
                    _ => {}
                }
            }
            if frame.event.is_empty() {
                self.last_id = frame.cursor.or(self.last_id.take());
            } else {
                self.ready = Some(frame);
            }
        }
    }
}

/// An open stream.
pub struct Stream {
    response: Response,
    frames: Frames,
}

impl Stream {
    pub async fn open(request: RequestBuilder) -> Self {
        let response = request.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, frames: Frames::default() }
    }

    /// The next frame; `None` at the end of the stream, however it came.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.next() {
                return Some(frame);
            }
            match timeout(LOST, self.response.chunk()).await.expect("the stream is silent") {
                Ok(Some(bytes)) => self.frames.feed(&bytes),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Where to resume, once the server has said so.
    pub async fn place(&mut self) -> String {
        loop {
            self.frames.look();
            if let Some(id) = &self.frames.last_id {
                return id.clone();
            }
            let bytes = timeout(LOST, self.response.chunk()).await.expect("the stream is silent").unwrap();
            self.frames.feed(&bytes.expect("the stream ended before it said where it is"));
        }
    }

    /// The next frame of this name.
    pub async fn until(&mut self, event: &str) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended before `{event}`"));
            if frame.event == event {
                return frame;
            }
        }
    }
}

/// A watcher that holds as little as it can, and reads only when it is told to.
pub struct RawWatcher {
    tcp: TcpStream,
}

impl RawWatcher {
    pub async fn open(server: &Server, path: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address = server.url.strip_prefix("http://").unwrap();
        let mut tcp = socket.connect(address.parse().unwrap()).await.unwrap();
        // HTTP/1.0: no chunks, the body ends with the connection.
        let ask = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        tcp.write_all(ask.as_bytes()).await.unwrap();
        // The head of the reply says that it watches.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&head));
        Self { tcp }
    }

    /// Reads on, to the end of the stream.
    pub async fn rest(mut self) -> Vec<Frame> {
        let mut body = Vec::new();
        timeout(LOST, self.tcp.read_to_end(&mut body)).await.expect("the stream does not end").unwrap();
        let (mut frames, mut all) = (Frames::default(), Vec::new());
        frames.feed(&body);
        while let Some(frame) = frames.next() {
            all.push(frame);
        }
        all
    }
}

// ---- the log -------------------------------------------------------------------------------------

/// What a log says, folded by the page about events and by nothing of the server's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    thread: Value,
    turns: Vec<Value>,
    items: Vec<Value>,
    inbox: Vec<Value>,
    /// Those that are pending.
    approvals: Vec<Value>,
    seq: u64,
}

impl Fold {
    pub fn of(log: &[Value]) -> Self {
        let empty =
            Self { thread: Value::Null, turns: vec![], items: vec![], inbox: vec![], approvals: vec![], seq: 0 };
        empty.and(log)
    }

    /// A snapshot as the place to go on from.
    pub fn from_snapshot(snapshot: &Value) -> Self {
        let rows = |name: &str| snapshot[name].as_array().unwrap().clone();
        let mut inbox = rows("inbox");
        for (at, entry) in inbox.iter_mut().enumerate() {
            let position = entry.as_object_mut().unwrap().remove("position");
            assert_eq!(position, Some(json!(at)));
        }
        let seq = snapshot["seq"].as_u64().unwrap();
        assert_eq!(snapshot["thread"]["seq"], seq);
        let (turns, items, approvals) = (rows("turns"), rows("items"), rows("approvals"));
        Self { thread: snapshot["thread"].clone(), turns, items, inbox, approvals, seq }
    }

    pub fn and(mut self, log: &[Value]) -> Self {
        for event in log {
            self.apply(event);
        }
        self
    }

    fn apply(&mut self, event: &Value) {
        assert_eq!(event["seq"], self.seq + 1, "a gap or a repetition: {event}");
        assert_eq!(event["prev"], self.seq, "{event}");
        self.seq += 1;
        let payload = &event["payload"];
        let name = event["event"].as_str().unwrap();
        match name {
            "thread.created" | "thread.updated" | "thread.status" | "thread.archived" => {
                self.thread = payload["thread"].clone();
            }
            // A fork has the past, and nothing that waits.
            "thread.forked" => {
                self.thread = payload["thread"].clone();
                self.inbox.clear();
            }
            "prompt.admitted" if payload["admission"]["delivery"] == "steer" => {}
            "prompt.admitted" => self.inbox.push(payload["admission"].clone()),
            "prompt.promoted" | "prompt.withdrawn" | "prompt.not_delivered" => {
                self.inbox.retain(|waits| waits["id"] != payload["admission"]["id"]);
            }
            "prompt.edited" => {
                let waits = self.inbox.len();
                self.inbox.retain(|waits| waits["id"] != payload["admission"]["id"]);
                if self.inbox.len() < waits {
                    let at = payload["position"].as_u64().unwrap() as usize;
                    self.inbox.insert(at, payload["admission"].clone());
                }
            }
            "turn.started" => {
                self.turns.push(payload["turn"].clone());
                self.thread["active_turn"] = payload["turn"]["id"].clone();
                self.thread["status"] = json!("running");
                self.thread["updated_at"] = event["ts"].clone();
            }
            "turn.resumed" | "turn.interrupt_requested" | "turn.steered" | "turn.rolled_back" => {
                *self.turn(event) = payload["turn"].clone();
            }
            "turn.retrying" => {}
            "turn.completed" => {
                assert_eq!(payload["status"], payload["turn"]["status"]);
                *self.turn(event) = payload["turn"].clone();
                self.thread["active_turn"] = Value::Null;
                self.thread["status"] = json!(if self.thread["archived"] == true { "archived" } else { "idle" });
                self.thread["updated_at"] = event["ts"].clone();
            }
            "usage.recorded" => {
                let usage = &mut self.turn(event)["usage"];
                let counts = payload["usage"].as_object().unwrap().iter();
                for (name, more) in counts.filter_map(|(name, more)| Some((name, more.as_u64()?))) {
                    usage[name] = json!(usage[name].as_u64().unwrap_or(0) + more);
                }
                let number = |value: &Value| value.as_u64().unwrap_or(0);
                let usage = &payload["usage"];
                let tokens = number(&usage["input_tokens"]) + number(&usage["output_tokens"]);
                let pico = number(&usage["cost"]["pico_usd"]);
                let spend = |spent: &mut Value| {
                    if spent.is_object() {
                        let sum = [number(&spent["tokens"]) + tokens, number(&spent["pico_usd"]) + pico];
                        *spent = json!({ "tokens": sum[0], "pico_usd": sum[1] });
                    }
                };
                self.turn(event).get_mut("spent").into_iter().for_each(spend);
                self.thread.get_mut("spent").into_iter().for_each(spend);
            }
            "budget.reserved" | "budget.warning" | "budget.exceeded" => {}
            "item.started" => {
                let item = payload["item"].clone();
                let ids = self.turn(event)["item_ids"].as_array_mut().unwrap();
                if !ids.contains(&item["id"]) {
                    ids.push(item["id"].clone());
                }
                self.items.push(item);
            }
            "item.delta" => {
                let detail = &mut self.item(event)["detail"];
                *detail = json!(text(detail) + payload["delta"].as_str().unwrap());
            }
            "item.completed" => {
                // What the deltas made is what the item says it is, unless a fork has only the item.
                let streamed = matches!(payload["item"]["kind"].as_str(), Some("agent_message" | "reasoning"));
                let item = self.item(event);
                let same = item["detail"] == payload["item"]["detail"] || item["detail"] == "";
                assert!(!streamed || same, "{item}\n{event}");
                *item = payload["item"].clone();
            }
            "approval.required" => self.approvals.push(payload["approval"].clone()),
            "approval.decided" | "approval.expired" | "approval.cancelled" => {
                self.approvals.retain(|waits| waits["id"] != payload["approval"]["id"]);
            }
            "question.asked" | "question.answered" | "question.expired" | "question.cancelled" => {}
            "effect.intended" | "effect.started" | "effect.settled" | "effect.uncertain" | "effect.reconciled" => {}
            "compaction.started" | "compaction.completed" | "compaction.failed" => {}
            "checkpoint.saved" | "checkpoint.deleted" => {}
            other => panic!("`{other}` is not a word of the log: {event}"),
        }
        self.thread["pending_approvals"] = json!(self.approvals.len());
        self.thread["seq"] = json!(self.seq);
        self.thread["queued"] = json!(self.inbox.len());
    }

    fn turn(&mut self, event: &Value) -> &mut Value {
        let found = self.turns.iter_mut().find(|turn| turn["id"] == event["turn_id"]);
        found.unwrap_or_else(|| panic!("an event names a turn that was not started: {event}"))
    }

    fn item(&mut self, event: &Value) -> &mut Value {
        let found = self.items.iter_mut().find(|item| item["id"] == event["item_id"]);
        found.unwrap_or_else(|| panic!("an event names an item that was not started: {event}"))
    }
}

/// What a log has begun and not yet ended.
#[derive(Default)]
struct Begun {
    /// Turns in the order in which they started, and whether they have ended.
    turns: Vec<(String, bool)>,
    /// Items, approvals, questions, effects and compactions, and whether they have ended.
    things: BTreeMap<String, bool>,
    /// What waits, in the order in which it is to run.
    queue: Vec<String>,
    steers: Vec<String>,
    /// Whatever was ever begun.
    ids: BTreeSet<String>,
}

impl Begun {
    #[track_caller]
    fn begins(&mut self, id: String) {
        assert!(self.ids.insert(id.clone()), "{id} begins twice");
        self.things.insert(id, false);
    }

    #[track_caller]
    fn ends(&mut self, id: &str) {
        assert_eq!(self.things.insert(id.to_owned(), true), Some(false), "{id} ends twice, or never began");
    }

    /// Takes out what waits, which must be the first that does if it is to run.
    #[track_caller]
    fn leaves(&mut self, id: &str, first: bool) {
        for waiting in [&mut self.queue, &mut self.steers] {
            if let Some(at) = waiting.iter().position(|waits| waits == id) {
                assert!(at == 0 || !first, "{id} goes before {waiting:?}");
                waiting.remove(at);
                return;
            }
        }
        panic!("{id} does not wait");
    }

    #[track_caller]
    fn take(&mut self, event: &Value, next: Option<&Value>) {
        let name = event["event"].as_str().unwrap();
        let (topic, what) = name.split_once('.').unwrap();
        let payload = &event["payload"];
        let admission = &payload["admission"];
        match (topic, what) {
            ("thread", "forked") => {
                assert!(self.turns.iter().all(|(_, ended)| *ended), "a fork begins in the middle of a turn");
                self.queue.clear();
            }
            ("turn", "started") => {
                assert!(self.turns.iter().all(|(_, ended)| *ended), "two turns are open: {event}");
                let id = text(&event["turn_id"]);
                assert!(self.turns.iter().all(|(known, _)| *known != id), "a turn starts twice: {event}");
                self.turns.push((id, false));
            }
            ("turn", "completed") => {
                let open: Vec<_> = self.things.iter().filter(|(_, done)| !**done).collect();
                assert!(open.is_empty() && self.steers.is_empty(), "a turn ended before {open:?}");
                self.turns.last_mut().expect("a turn").1 = true;
            }
            ("item", "started") => self.begins(text(&event["item_id"])),
            ("item", "delta") => assert_eq!(self.things.get(&text(&event["item_id"])), Some(&false), "{event}"),
            ("item", "completed") => self.ends(&text(&event["item_id"])),
            ("approval", "required") | ("question", "asked") => self.begins(text(&payload[topic]["id"])),
            // What nobody had to be asked is decided without having been asked for.
            ("approval", "decided") if payload["by"] != "caller" => {}
            ("approval" | "question", _) => self.ends(&text(&payload[topic]["id"])),
            ("effect", "intended") => self.begins(text(&payload["effect"]["operation_id"])),
            ("effect", what) => {
                let id = text(&payload["effect"]["operation_id"]);
                assert_eq!(self.things.get(&id), Some(&false), "an effect goes on after its end: {event}");
                if what == "settled" || payload["effect"]["closed"] == true {
                    self.ends(&id);
                }
            }
            ("compaction", "started") => self.things.extend([(name_of_compaction(event), false)]),
            ("compaction", _) => self.ends(&name_of_compaction(event)),
            ("prompt", "admitted") => {
                let id = text(&admission["id"]);
                match admission["delivery"].as_str() {
                    Some("steer") => {
                        assert!(self.ids.insert(id.clone()), "{id} begins twice");
                        self.steers.push(id);
                    }
                    // A steer that came too late may wait on as a prompt.
                    _ => {
                        self.ids.insert(id.clone());
                        assert!(!self.queue.contains(&id), "{id} waits twice");
                        self.queue.push(id);
                    }
                }
            }
            ("prompt", "edited") => {
                let id = text(&admission["id"]);
                if let Some(at) = self.queue.iter().position(|waits| *waits == id) {
                    self.queue.remove(at);
                    self.queue.insert(payload["position"].as_u64().unwrap() as usize, id);
                }
            }
            ("prompt", "promoted") => {
                let steers = admission["delivery"] == "steer";
                self.leaves(&text(&admission["id"]), true);
                let next = next.expect("a promoted prompt has a turn");
                let follows = if steers { "turn.steered" } else { "turn.started" };
                assert_eq!((next["event"].as_str(), &next["turn_id"]), (Some(follows), &event["turn_id"]));
            }
            ("prompt", _) => self.leaves(&text(&admission["id"]), false),
            _ => {}
        }
    }
}

/// Within a turn one compaction may follow another, so that the turn alone names the one that is open.
fn name_of_compaction(event: &Value) -> String {
    format!("the compaction in {}", event["turn_id"])
}

/// Checks what holds for the log of every thread. `at_rest` when nothing of it may be open or wait.
#[track_caller]
pub fn check_log(log: &[Value], at_rest: bool) {
    let mut begun = Begun::default();
    for (at, event) in log.iter().enumerate() {
        assert_eq!((event["seq"].as_u64(), event["prev"].as_u64()), (Some(at as u64 + 1), Some(at as u64)));
        assert_eq!(event["thread_id"], log[0]["thread_id"]);
        let name = event["event"].as_str().unwrap();
        if let (Some(turn), false) = (event["turn_id"].as_str(), matches!(name, "prompt.promoted" | "turn.started")) {
            let ended = begun.turns.iter().find(|(known, _)| known == turn).map(|(_, ended)| *ended);
            assert_eq!(ended, Some(name == "turn.rolled_back"), "before its turn, or after the end of it: {event}");
        }
        begun.take(event, log.get(at + 1));
    }
    if at_rest {
        assert!(begun.queue.is_empty() && begun.steers.is_empty(), "a prompt still waits");
        assert!(begun.turns.iter().all(|(_, ended)| *ended), "a turn is open");
        assert!(begun.things.values().all(|done| *done), "something is open: {:?}", begun.things);
    }
}

/// The names of the events.
pub fn names(log: &[Value]) -> Vec<&str> {
    log.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

// ---- the rest ------------------------------------------------------------------------------------

/// Random numbers that are the same in every run.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// Runs a command to its end, with `stdin` as its input.
pub fn run(command: &mut Command, stdin: &str) -> Output {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let mut stderr = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).map(|_| said).unwrap()
    });
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    let code = child.wait().unwrap().code();
    Output { code, out, said: said.join().unwrap() }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub out: String,
    pub said: String,
}

/// Flips a bit in the middle of every place in the database where `marker` stands. Returns how many there are.
pub fn damage(dir: &Path, marker: &str) -> usize {
    let path = dir.join("raddle.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = marker.len();
    let places: Vec<_> = (0..bytes.len() - length)
        .filter(|at| bytes[*at] == marker.as_bytes()[0] && bytes[*at..].starts_with(marker.as_bytes()))
        .collect();
    for at in &places {
        bytes[at + length / 2] ^= 0x04;
    }
    std::fs::write(&path, bytes).unwrap();
    places.len()
}
