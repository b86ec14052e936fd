//! A typed client of the API, as far as the command line needs it.
//!
//! Failures are of three sorts, and the exit code depends on which: the server could not be reached, it refused,
//! or something else went wrong. [`Follow`] turns a stream that may be cut at any time into one that is not.

mod runs;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use raddle_actors::RoutingRule;
use raddle_domain::{
    command::IfIdle,
    id::{RunId, Seq, TurnId},
    job::Job,
    policy::{Policy, decide::Decided},
    record::{
        Admission, Approval, Checkpoint, Decision, Delivery, Effect, InterruptReceipt, Permit, Question, Resolution,
        Thread, Turn, Undelivered,
    },
    schedule::Schedule,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json, value::RawValue};
use tokio::time::Instant;
use uuid::Uuid;

pub use self::runs::*;
use crate::sse::{Bounds, Parser};

/// Where the server is unless somebody says otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7878";

/// A stream says something at least every 15 s; after this long a silent one is dead.
const SILENCE: Duration = Duration::from_secs(45);
/// How long an answer to anything but a wait may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one, even if nothing happened meanwhile.
const LASTING: Duration = Duration::from_secs(10);
/// How often in a row a stream is opened anew before the failure is believed.
const RECONNECTS: u32 = 30;

/// An event is at most an item of the server's largest size, escaped.
const BOUNDS: Bounds = Bounds { line_bytes: 64 << 20, event_bytes: 64 << 20 };

/// Why a request gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach {server}: {why}")]
    Unreachable { server: String, why: String },
    #[error("{0}")]
    Refused(Refusal),
    #[error("{0}")]
    Failed(String),
}

/// The problem that a server answered with.
#[derive(Debug, Clone, Deserialize)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub detail: String,
    #[serde(default)]
    pub request_id: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {}", self.detail, self.status, self.code)?;
        match &self.request_id {
            Some(id) => write!(f, ", request {id})"),
            None => f.write_str(")"),
        }
    }
}

/// A part of a list.
#[derive(Debug, Deserialize)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub next_cursor: Option<String>,
    /// Of threads: those whose records cannot be used, each with its `id` and a `detail`.
    #[serde(default)]
    pub unavailable: Vec<Value>,
}

/// Events as they are stored, and where their log ended.
#[derive(Debug, Deserialize)]
pub struct EventPage {
    pub data: Vec<Box<RawValue>>,
    pub head: Seq,
}

/// An event, as far as it is read here.
#[derive(Debug, Clone, Deserialize)]
pub struct EventView {
    pub seq: Seq,
    pub ts: String,
    pub event: String,
    #[serde(default)]
    pub turn_id: Option<String>,
    #[serde(default)]
    pub item_id: Option<String>,
    pub payload: Value,
}

/// What a thread is made with.
#[derive(Debug, Default, Serialize)]
pub struct NewThread<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<&'a str>,
    pub allow_shell: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
}

/// What of a thread is changed; what is absent stays.
#[derive(Debug, Default, Serialize)]
pub struct PatchThread<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_paused: Option<bool>,
    /// An inner `None` is sent as `null`, which clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<Option<RunId>>,
}

/// What a turn is started with.
#[derive(Debug, Default, Serialize)]
pub struct StartTurn<'a> {
    pub prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_idle: Option<IfIdle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_turn: Option<TurnId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undelivered: Option<Undelivered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_intent: Option<&'a str>,
}

/// Where a fork leaves its parent; after everything that is settled unless one place is named.
#[derive(Debug, Default, Serialize)]
pub struct Fork<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_item: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_turn: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<&'a str>,
}

/// What became of something that was to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Started {
    Turn { turn: Box<Turn> },
    Queued { admission: Box<Admission>, active_turn: TurnId },
}

/// A prompt in the inbox, and its place there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InboxEntry {
    #[serde(flatten)]
    pub admission: Admission,
    pub position: u32,
}

/// A call that was approved for ever, by the name of its rule.
#[derive(Debug, Serialize, Deserialize)]
pub struct NamedPermit {
    pub rule: String,
    #[serde(flatten)]
    pub permit: Permit,
}

#[derive(Deserialize)]
struct Permits {
    data: Vec<NamedPermit>,
}

#[derive(Serialize, Deserialize)]
struct RoutingRules {
    rules: Vec<RoutingRule>,
}

#[derive(Deserialize)]
struct OfTurn {
    turn: Turn,
}

#[derive(Deserialize)]
struct OfAdmission {
    admission: Admission,
}

/// A server, and how to speak to it. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: Url,
    key: Option<String>,
}

impl Client {
    /// A client of the server at `server`; `key` is sent as a bearer token.
    pub fn new(server: &str, key: Option<String>) -> Result<Self, ClientError> {
        let failed = |why: String| ClientError::Failed(format!("`{server}` is not the address of a server: {why}"));
        let mut url = Url::parse(server).map_err(|err| failed(err.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(failed("it must start with http:// or https://".into()));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build();
        let http = http.map_err(|err| ClientError::Failed(format!("no HTTP client: {err}")))?;
        Ok(Self { http, server: url, key })
    }

    pub fn server(&self) -> &Url {
        &self.server
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // What stands in a segment stays in it: an id that holds a slash names no other path.
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request
            .send()
            .await
            .map_err(|err| ClientError::Unreachable { server: self.server.to_string(), why: cause(&err) })?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request.timeout(PATIENCE)).await?;
        let body = response.bytes().await.map_err(|err| ClientError::Failed(cause(&err)))?;
        serde_json::from_slice(&body)
            .map_err(|err| ClientError::Failed(format!("the answer is not as expected: {err}")))
    }

    /// A POST that may be repeated: it carries a key of its own.
    fn post(&self, path: &[&str]) -> RequestBuilder {
        self.request(Method::POST, path, &[]).header("idempotency-key", Uuid::now_v7().to_string())
    }

    /// Whether the server says it is ready, and if not, why.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.send(self.request(Method::GET, &["readyz"], &[]).timeout(PATIENCE)).await.map(drop)
    }

    pub async fn info(&self) -> Result<Value, ClientError> {
        self.json(self.request(Method::GET, &["v1", "info"], &[])).await
    }

    pub async fn create_thread(&self, new: &NewThread<'_>) -> Result<Thread, ClientError> {
        self.json(self.post(&["v1", "threads"]).json(new)).await
    }

    pub async fn thread(&self, thread: &str) -> Result<Thread, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread], &[])).await
    }

    pub async fn snapshot(&self, thread: &str) -> Result<Value, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread, "snapshot"], &[])).await
    }

    pub async fn threads(&self, query: &[(&str, String)]) -> Result<Page<Value>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads"], query)).await
    }

    pub async fn delete_thread(&self, thread: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "threads", thread]).await
    }

    async fn delete(&self, path: &[&str]) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, path, &[]).timeout(PATIENCE)).await.map(drop)
    }

    pub async fn patch_thread(&self, thread: &str, patch: &PatchThread<'_>) -> Result<Thread, ClientError> {
        self.json(self.request(Method::PATCH, &["v1", "threads", thread], &[]).json(patch)).await
    }

    pub async fn fork(&self, thread: &str, fork: &Fork<'_>) -> Result<Thread, ClientError> {
        self.json(self.post(&["v1", "threads", thread, "fork"]).json(fork)).await
    }

    /// Shortens the conversation, in a turn of its own; `queue` lets it wait for the open one.
    pub async fn compact(&self, thread: &str, reason: Option<&str>, queue: bool) -> Result<Started, ClientError> {
        let delivery = if queue { Delivery::Queue } else { Delivery::Reject };
        let body = json!({ "reason": reason, "delivery": delivery });
        self.json(self.post(&["v1", "threads", thread, "compact"]).json(&body)).await
    }

    /// Takes the last prompt's turn out of the conversation and starts another in its place.
    pub async fn edit(&self, thread: &str, prompt: &str, model: Option<&str>) -> Result<Turn, ClientError> {
        let body = json!({ "prompt": prompt, "model": model });
        self.json(self.post(&["v1", "threads", thread, "edit"]).json(&body)).await.map(|of: OfTurn| of.turn)
    }

    pub async fn save_checkpoint(&self, thread: &str, name: &str) -> Result<Checkpoint, ClientError> {
        let body = json!({ "name": name });
        self.json(self.post(&["v1", "threads", thread, "checkpoints"]).json(&body)).await
    }

    pub async fn checkpoints(&self, thread: &str) -> Result<Page<Checkpoint>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread, "checkpoints"], &[])).await
    }

    pub async fn delete_checkpoint(&self, thread: &str, name: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "threads", thread, "checkpoints", name]).await
    }

    /// Makes a thread that goes on from a checkpoint.
    pub async fn restore(&self, thread: &str, name: &str, title: Option<&str>) -> Result<Thread, ClientError> {
        let path = ["v1", "threads", thread, "checkpoints", name, "restore"];
        self.json(self.post(&path).json(&json!({ "title": title }))).await
    }

    /// Starts a turn on an idle thread.
    pub async fn start_turn(&self, thread: &str, start: &StartTurn<'_>) -> Result<Turn, ClientError> {
        let request = self.post(&["v1", "threads", thread, "turns"]).json(start);
        self.json(request).await.map(|of: OfTurn| of.turn)
    }

    /// Starts a turn, or has the open one make of the prompt what `start.delivery` says.
    pub async fn deliver(&self, thread: &str, start: &StartTurn<'_>) -> Result<Started, ClientError> {
        self.json(self.post(&["v1", "threads", thread, "turns"]).json(start)).await
    }

    /// Gives the model of the open turn something to see at its next step.
    pub async fn steer(
        &self,
        thread: &str,
        turn: &str,
        prompt: &str,
        undelivered: Undelivered,
    ) -> Result<Admission, ClientError> {
        let body = json!({ "prompt": prompt, "undelivered": undelivered });
        let request = self.post(&["v1", "threads", thread, "turns", turn, "steer"]).json(&body);
        self.json(request).await.map(|of: OfAdmission| of.admission)
    }

    pub async fn interrupt(
        &self,
        thread: &str,
        turn: &str,
        pause_queue: bool,
    ) -> Result<InterruptReceipt, ClientError> {
        let request = self.post(&["v1", "threads", thread, "turns", turn, "interrupt"]);
        self.json(request.json(&json!({ "pause_queue": pause_queue }))).await
    }

    pub async fn inbox(&self, thread: &str, query: &[(&str, String)]) -> Result<Page<InboxEntry>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread, "inbox"], query)).await
    }

    /// Changes a prompt that waits, or its place.
    pub async fn edit_prompt(
        &self,
        thread: &str,
        input: &str,
        prompt: Option<&str>,
        position: Option<u32>,
    ) -> Result<InboxEntry, ClientError> {
        let body = json!({ "prompt": prompt, "position": position });
        self.json(self.request(Method::PATCH, &["v1", "threads", thread, "inbox", input], &[]).json(&body)).await
    }

    pub async fn withdraw_prompt(&self, thread: &str, input: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "threads", thread, "inbox", input]).await
    }

    pub async fn approvals(&self, query: &[(&str, String)]) -> Result<Page<Approval>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "approvals"], query)).await
    }

    pub async fn approval(&self, approval: &str) -> Result<Approval, ClientError> {
        self.json(self.request(Method::GET, &["v1", "approvals", approval], &[])).await
    }

    pub async fn decide(
        &self,
        approval: &str,
        decision: Decision,
        reason: Option<&str>,
    ) -> Result<Approval, ClientError> {
        let body = json!({ "decision": decision, "reason": reason });
        self.json(self.post(&["v1", "approvals", approval]).json(&body)).await
    }

    pub async fn questions(&self, query: &[(&str, String)]) -> Result<Page<Question>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "questions"], query)).await
    }

    pub async fn question(&self, question: &str) -> Result<Question, ClientError> {
        self.json(self.request(Method::GET, &["v1", "questions", question], &[])).await
    }

    pub async fn answer(&self, question: &str, answer: &str) -> Result<Question, ClientError> {
        self.json(self.post(&["v1", "questions", question]).json(&json!({ "answer": answer }))).await
    }

    pub async fn effects(&self, query: &[(&str, String)]) -> Result<Page<Effect>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "effects"], query)).await
    }

    pub async fn resolve(
        &self,
        operation: &str,
        resolution: Resolution,
        output: Option<&str>,
    ) -> Result<Effect, ClientError> {
        let body = json!({ "resolution": resolution, "output": output });
        self.json(self.post(&["v1", "effects", operation]).json(&body)).await
    }

    pub async fn events(&self, thread: &str, after: Seq) -> Result<EventPage, ClientError> {
        let query = [("after", after.to_string()), ("limit", "500".to_owned())];
        self.json(self.request(Method::GET, &["v1", "threads", thread, "events"], &query)).await
    }

    pub async fn create_job(&self, body: &Map<String, Value>) -> Result<Job, ClientError> {
        self.json(self.post(&["v1", "jobs"]).json(body)).await
    }

    pub async fn jobs(&self, query: &[(&str, String)]) -> Result<Page<Job>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "jobs"], query)).await
    }

    pub async fn job(&self, job: &str) -> Result<Job, ClientError> {
        self.json(self.request(Method::GET, &["v1", "jobs", job], &[])).await
    }

    /// `pause`, `resume`, `cancel` or `retry`.
    pub async fn job_verb(&self, job: &str, verb: &str) -> Result<Job, ClientError> {
        self.json(self.post(&["v1", "jobs", job, verb]).json(&json!({}))).await
    }

    pub async fn create_schedule(&self, body: &Map<String, Value>) -> Result<Schedule, ClientError> {
        self.json(self.post(&["v1", "schedules"]).json(body)).await
    }

    pub async fn schedules(&self, query: &[(&str, String)]) -> Result<Page<Schedule>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "schedules"], query)).await
    }

    pub async fn schedule(&self, schedule: &str) -> Result<Schedule, ClientError> {
        self.json(self.request(Method::GET, &["v1", "schedules", schedule], &[])).await
    }

    pub async fn patch_schedule(&self, schedule: &str, patch: &Value) -> Result<Schedule, ClientError> {
        self.json(self.request(Method::PATCH, &["v1", "schedules", schedule], &[]).json(patch)).await
    }

    pub async fn delete_schedule(&self, schedule: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "schedules", schedule]).await
    }

    /// How the tenant's budgets stand, as the server wrote it.
    pub async fn budgets(&self) -> Result<Box<RawValue>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "usage", "budgets"], &[])).await
    }

    /// What was spent, as the server wrote it: its numbers have more digits than a float.
    pub async fn usage(&self, query: &[(&str, String)]) -> Result<Box<RawValue>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "usage"], query)).await
    }

    /// The hooks, as the server lists them.
    pub async fn hooks(&self) -> Result<Box<RawValue>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "hooks"], &[])).await
    }

    /// The servers whose tools are offered.
    pub async fn mcp(&self) -> Result<Value, ClientError> {
        self.json(self.request(Method::GET, &["v1", "mcp"], &[])).await
    }

    pub async fn routing_rules(&self) -> Result<Vec<RoutingRule>, ClientError> {
        let request = self.request(Method::GET, &["v1", "routing-rules"], &[]);
        self.json(request).await.map(|found: RoutingRules| found.rules)
    }

    /// Replaces all rules; gives them as they are then.
    pub async fn set_routing_rules(&self, rules: Vec<RoutingRule>) -> Result<Vec<RoutingRule>, ClientError> {
        let request = self.request(Method::PUT, &["v1", "routing-rules"], &[]).json(&RoutingRules { rules });
        self.json(request).await.map(|found: RoutingRules| found.rules)
    }

    pub async fn policy(&self) -> Result<Policy, ClientError> {
        self.json(self.request(Method::GET, &["v1", "policy"], &[])).await
    }

    /// The calls that were approved for ever, as the server wrote them.
    pub async fn permits(&self) -> Result<Vec<NamedPermit>, ClientError> {
        let request = self.request(Method::GET, &["v1", "policy", "permits"], &[]);
        self.json(request).await.map(|found: Permits| found.data)
    }

    pub async fn revoke(&self, rule: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "policy", "permits", rule]).await
    }

    /// What would be decided about a command.
    pub async fn check_command(
        &self,
        command: &str,
        tool: Option<&str>,
        thread: Option<&str>,
    ) -> Result<Decided, ClientError> {
        let body = json!({ "command": command, "tool": tool, "thread_id": thread });
        self.json(self.post(&["v1", "policy", "check"]).json(&body)).await
    }

    /// The events of a thread after `after`, as they happen, through every interruption.
    pub fn follow(&self, thread: &str, after: Seq) -> Follow {
        self.follow_log(["v1", "threads", thread, "events"], "thread.deleted", after)
    }

    fn follow_log(&self, path: [&str; 4], last_word: &'static str, after: Seq) -> Follow {
        Follow {
            client: self.clone(),
            path: path.map(str::to_owned),
            last_word,
            lost: Arc::default(),
            after,
            open: None,
            since: Instant::now(),
            ready: VecDeque::new(),
            failures: 0,
            gone: false,
        }
    }
}

/// The events of a log, each once and in order, over as many connections as it takes.
pub struct Follow {
    client: Client,
    path: [String; 4],
    /// The event that nothing follows.
    last_word: &'static str,
    /// There is no connection although there should be one.
    lost: Arc<AtomicBool>,
    after: Seq,
    open: Option<(Response, Parser)>,
    /// When the open connection was made.
    since: Instant,
    ready: VecDeque<crate::sse::Event>,
    /// Connections in a row that brought nothing and did not last.
    failures: u32,
    /// The last word was said.
    gone: bool,
}

impl Follow {
    /// Whether the connection is lost, for whoever waits for what it brings.
    pub fn lost(&self) -> Arc<AtomicBool> {
        self.lost.clone()
    }

    /// The record of the next event as JSON, with its name; `None` when what it is about was deleted.
    /// Cancel-safe: what a dropped call had read is kept.
    pub async fn next(&mut self) -> Result<Option<(String, String)>, ClientError> {
        loop {
            while let Some(event) = self.ready.pop_front() {
                let name = event.name;
                self.gone |= name == self.last_word;
                match event.id.and_then(|id| id.parse::<Seq>().ok()) {
                    // A stream that is resumed may repeat; a reader may not notice.
                    Some(seq) if seq <= self.after => {}
                    Some(seq) => {
                        self.after = seq;
                        self.failures = 0;
                        return Ok(Some((name, text(event.data)?)));
                    }
                    // `stream.gap` and `stream.end`: the connection ends, and the cursor is ours already.
                    None => {}
                }
            }
            if self.gone {
                return Ok(None);
            }
            match self.read().await {
                Ok(true) => {}
                Ok(false) => self.pause().await?,
                // A thread that is gone ends what followed it.
                Err(ClientError::Refused(refusal)) if refusal.code == "thread-deleted" => return Ok(None),
                // A server that restarts or is busy is worth another try; a refusal for good is not.
                Err(err @ ClientError::Refused(Refusal { status: ..500, .. })) => return Err(err),
                Err(err) if self.failures >= RECONNECTS => return Err(err),
                Err(_) => self.pause().await?,
            }
        }
    }

    /// Reads a piece of the open stream, opening one first if there is none. `false` when the stream ended.
    async fn read(&mut self) -> Result<bool, ClientError> {
        if self.open.is_none() {
            self.open = Some((self.connect().await?, Parser::new(BOUNDS)));
            self.since = Instant::now();
            self.lost.store(false, Ordering::Relaxed);
        }
        let Some((response, parser)) = &mut self.open else { return Ok(false) };
        match tokio::time::timeout(SILENCE, response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                let mut events = Vec::new();
                parser.push(&bytes, &mut events).map_err(|err| ClientError::Failed(err.to_string()))?;
                self.ready.extend(events);
                Ok(true)
            }
            // Ended, cut, or silent for too long: all the same to a reader with a cursor.
            Ok(Ok(None) | Err(_)) | Err(_) => {
                self.open = None;
                if self.since.elapsed() > LASTING {
                    self.failures = 0;
                }
                Ok(false)
            }
        }
    }

    async fn connect(&self) -> Result<Response, ClientError> {
        let query = [("after", self.after.to_string())];
        let path = self.path.each_ref().map(String::as_str);
        let request = self.client.request(Method::GET, &path, &query);
        self.client.send(request.header(header::ACCEPT, "text/event-stream")).await
    }

    /// Waits before the next connection: not at all after progress, then longer.
    async fn pause(&mut self) -> Result<(), ClientError> {
        if self.failures > RECONNECTS {
            return Err(ClientError::Failed("the stream ends again and again".into()));
        }
        let wait = Duration::from_millis(u64::from(self.failures) * 100).min(Duration::from_secs(1));
        self.failures += 1;
        self.lost.store(true, Ordering::Relaxed);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

fn text(bytes: Vec<u8>) -> Result<String, ClientError> {
    String::from_utf8(bytes).map_err(|_| ClientError::Failed("an event is not UTF-8".to_owned()))
}

/// The problem in an answer; a server that is not ours may answer anything.
async fn refusal(response: Response) -> ClientError {
    let status = response.status();
    let body = read_some(response).await;
    match serde_json::from_slice(&body) {
        Ok(refusal) => ClientError::Refused(refusal),
        Err(_) => ClientError::Refused(Refusal {
            status: status.as_u16(),
            code: "unknown".to_owned(),
            detail: format!("the server answered {}", StatusCode::as_str(&status)),
            request_id: None,
        }),
    }
}

async fn read_some(response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(piece)) = stream.next().await {
        body.extend_from_slice(&piece);
        if body.len() > 64 * 1024 {
            break;
        }
    }
    body
}

/// The last cause of an error: `reqwest` says "error sending request", its cause says why.
fn cause(err: &dyn std::error::Error) -> String {
    let mut last = err;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::{Arc, Mutex};

    use axum::{Router, extract::RawQuery, http::StatusCode as Status, response::IntoResponse, routing::get};

    /// A server that gives one answer after the other, and notes what it was asked for.
    async fn server(answers: Vec<(u16, String)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let answer = move |RawQuery(query): RawQuery| async move {
            noted.lock().unwrap().push(query.unwrap_or_default());
            let gone = || (410, r#"{"status":410,"code":"thread-deleted","detail":"gone"}"#.to_owned());
            let (status, body) = answers.lock().unwrap().next().unwrap_or_else(gone);
            (Status::from_u16(status).unwrap(), body).into_response()
        };
        let router = Router::new().route("/v1/threads/{thread}/events", get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (Client::new(&format!("http://{address}"), None).unwrap(), asked)
    }

    fn frame(seq: u64) -> String {
        format!("id: {seq}\nevent: item.delta\ndata: {{\"seq\":{seq}}}\n\n")
    }

    #[tokio::test]
    async fn a_reader_sees_every_event_once_however_often_its_stream_is_cut() {
        let half = "id: 4\nevent: item.delta\ndata: {\"se";
        let gap = "event: stream.gap\ndata: {\"after\":4}\n\n";
        let busy = r#"{"status":503,"code":"draining","detail":"later"}"#;
        let (client, asked) = server(vec![
            (200, format!("retry: 1000\n\n{}{}", frame(2), frame(3))),
            (200, format!("{}{half}", frame(3))),
            (200, format!("{}{gap}", frame(4))),
            (503, busy.to_owned()),
            (200, frame(5)),
        ])
        .await;
        let mut events = client.follow("thr_1", 1);
        let mut seen = Vec::new();
        while let Some((name, json)) = events.next().await.unwrap() {
            assert_eq!(name, "item.delta");
            seen.push(json);
        }
        assert_eq!(seen, [2, 3, 4, 5].map(|seq| format!("{{\"seq\":{seq}}}")));
        assert_eq!(*asked.lock().unwrap(), ["after=1", "after=3", "after=3", "after=4", "after=4", "after=5"]);
    }

    #[tokio::test]
    async fn a_refusal_for_good_ends_a_stream() {
        let refusal = r#"{"status":422,"code":"invalid","detail":"`after` is beyond the head","request_id":"r"}"#;
        let (client, asked) = server(vec![(422, refusal.to_owned())]).await;
        let err = client.follow("thr_1", 99).next().await.unwrap_err();
        assert!(matches!(err, ClientError::Refused(refusal) if refusal.code == "invalid"));
        assert_eq!(asked.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_answer_that_is_no_problem_document_is_a_refusal_all_the_same() {
        let (client, _) = server(vec![(404, "<html>".to_owned())]).await;
        let err = client.events("thr_1", 0).await.unwrap_err();
        assert!(matches!(err, ClientError::Refused(Refusal { status: 404, .. })), "{err:?}");
    }

    #[test]
    fn a_server_is_an_address_of_the_web() {
        assert!(Client::new("http://127.0.0.1:7878", None).is_ok());
        assert!(Client::new("127.0.0.1:7878", None).is_err());
        assert!(Client::new("ftp://x", None).is_err());
    }

    #[test]
    fn an_id_stays_in_its_segment_of_the_path() {
        let client = Client::new("http://h/base", None).unwrap();
        let url = |path: &[&str]| client.request(Method::GET, path, &[]).build().unwrap().url().to_string();
        assert_eq!(url(&["v1", "threads", "thr_1"]), "http://h/base/v1/threads/thr_1");
        assert_eq!(url(&["v1", "threads", "a/b?c"]), "http://h/base/v1/threads/a%2Fb%3Fc");
    }
}
