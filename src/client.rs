//! A typed client of the API: what the command line speaks with, for hosts in other processes.
//!
//! ```no_run
//! use raddle::client::{Client, ClientError, NewThread, StartTurn};
//!
//! # async fn talk() -> Result<(), ClientError> {
//! let client = Client::new("http://127.0.0.1:7878", std::env::var("RADDLE_KEY").ok())?.retrying(4);
//! let thread = client.create_thread(&NewThread::default()).await?.id.to_string();
//! let turn = client.start_turn(&thread, &StartTurn { prompt: "Hello", ..StartTurn::default() }).await?;
//! let mut events = client.events(&thread, 0);
//! while let Some(event) = events.next().await? {
//!     match event.event.as_str() {
//!         "item.delta" => print!("{}", event.payload["delta"].as_str().unwrap_or_default()),
//!         "approval.required" => println!("somebody has to decide: {}", event.payload["approval"]["id"]),
//!         "turn.completed" if event.turn_id == Some(turn.id.to_string()) => break,
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Failures are of three sorts ([`ClientError`]): the server could not be reached, it refused, or something else went
//! wrong. A refusal says why with a [`Refusal::code`]. Every POST has an idempotency key of its own, so that one which
//! met nobody may be repeated; [`Client::retrying`] does that. [`Client::events`] turns a stream that may be cut at any
//! time into one that is not.

mod admin;
mod follow;
mod runs;

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use raddle_actors::RoutingRule;
use raddle_domain::{
    command::IfIdle,
    id::{RunId, Seq, TurnId},
    job::Job,
    policy::{Policy, decide::Decided},
    record::{
        Admission, Approval, Checkpoint, Decision, Delivery, Effect, InterruptReceipt, Item, Permit, Question,
        Resolution, Thread, Turn, Undelivered,
    },
    schedule::Schedule,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json, value::RawValue};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use self::follow::Place;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use self::follow::followed;
pub use self::{
    admin::{NewKey, QuotaLine, TenantUsage},
    follow::{Events, Follow, Told},
    runs::*,
};

/// Where the server is unless somebody says otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7878";

/// A stream says something at least every 15 s; after this long a silent one is dead.
const SILENCE: Duration = Duration::from_secs(45);
/// How long an answer to anything but a wait may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is waited for.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

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
    /// When it is worth to try again, where the server says so.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
    /// Further fields: problems of some codes have them.
    #[serde(flatten)]
    pub extra: Box<Map<String, Value>>,
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

/// A large answer, as it comes.
pub type Pieces = BoxStream<'static, Result<Bytes, ClientError>>;

/// What an import brought.
#[derive(Debug, Serialize, Deserialize)]
pub struct Brought {
    pub tenant: String,
    /// Records, by table.
    pub records: BTreeMap<String, u64>,
}

fn cut(why: &str) -> String {
    format!("the answer was cut off: {why}; the server's log may say more")
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

#[derive(Deserialize)]
struct FeedPage {
    next_cursor: String,
}

/// An event, whatever its name: a server may know more of them than its client. `payload` holds whole records.
#[derive(Debug, Clone, Deserialize)]
pub struct EventView {
    pub seq: Seq,
    /// The `seq` before it, as far as this reader is told.
    #[serde(default)]
    pub prev: Seq,
    pub ts: String,
    /// Absent where it is about a job, a schedule or a run.
    #[serde(default)]
    pub thread_id: Option<String>,
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
    /// The idempotency key of every POST, instead of one of its own.
    once: Option<String>,
    retries: u32,
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
        Ok(Self { http, server: url, key, once: None, retries: 0 })
    }

    /// The same client, for somebody with this key.
    #[must_use]
    pub fn keyed(&self, key: Option<String>) -> Self {
        Self { key, ..self.clone() }
    }

    /// The same client for one POST that is to be done once, however often it is made, and by whichever process of the
    /// server: every POST of it has this idempotency key.
    #[must_use]
    pub fn once(&self, key: impl Into<String>) -> Self {
        Self { once: Some(key.into()), ..self.clone() }
    }

    /// The same client, which repeats a request up to so many times: after `Retry-After` where the server says 429 or
    /// 503 with one of half a minute at most, and where a GET or a POST met nobody.
    #[must_use]
    pub fn retrying(self, retries: u32) -> Self {
        Self { retries, ..self }
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

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, ClientError> {
        let mut retry = 0;
        loop {
            // What is sent as a stream is sent once.
            let again = if retry < self.retries { request.try_clone() } else { None };
            let refused = match self.send_once(request).await {
                Ok(response) => return Ok(response),
                Err(refused) => refused,
            };
            let Some((again, pause)) = again.zip(pause(&refused, retry)) else { return Err(refused) };
            if matches!(refused, ClientError::Unreachable { .. }) && !is_harmless(&again) {
                return Err(refused);
            }
            tokio::time::sleep(pause).await;
            request = again;
            retry += 1;
        }
    }

    fn unreachable(&self, why: String) -> ClientError {
        ClientError::Unreachable { server: self.server.to_string(), why }
    }

    async fn send_once(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|err| self.unreachable(cause(&err)))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        self.json_within(PATIENCE, request).await
    }

    async fn json_within<T: DeserializeOwned>(
        &self,
        patience: Duration,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let response = self.send(request.timeout(patience)).await?;
        let body = response.bytes().await.map_err(|err| ClientError::Failed(cause(&err)))?;
        serde_json::from_slice(&body)
            .map_err(|err| ClientError::Failed(format!("the answer is not as expected: {err}")))
    }

    /// A body as it comes. It may take as long as it likes, and may not fall silent.
    async fn pieces(&self, request: RequestBuilder) -> Result<Pieces, ClientError> {
        let body = self.send(request).await?.bytes_stream();
        let piece = |piece: reqwest::Result<Bytes>| piece.map_err(|err| ClientError::Failed(cut(&cause(&err))));
        Ok(stream::unfold(Some(Box::pin(body)), move |open| async move {
            let mut open = open?;
            match tokio::time::timeout(SILENCE, open.next()).await {
                Ok(None) => None,
                Ok(Some(next)) => {
                    let next = piece(next);
                    let goes_on = next.is_ok();
                    Some((next, goes_on.then_some(open)))
                }
                Err(_) => Some((Err(ClientError::Failed(cut("the server fell silent"))), None)),
            }
        })
        .boxed())
    }

    /// A backup of everything.
    pub async fn backup(&self) -> Result<Pieces, ClientError> {
        self.pieces(self.request(Method::GET, &["v1", "admin", "backup"], &[])).await
    }

    /// Everything of a tenant, as lines of JSON.
    pub async fn export(&self, tenant: &str) -> Result<Pieces, ClientError> {
        self.pieces(self.request(Method::POST, &["v1", "admin", "tenants", tenant, "export"], &[])).await
    }

    /// Brings an export in.
    pub async fn import(
        &self,
        tenant: &str,
        lines: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<Brought, ClientError> {
        let request = self.request(Method::POST, &["v1", "admin", "tenants", tenant, "import"], &[]);
        let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
        let response = self.send(request.body(reqwest::Body::wrap_stream(ReaderStream::new(lines)))).await?;
        let body = response.bytes().await.map_err(|err| ClientError::Failed(cause(&err)))?;
        serde_json::from_slice(&body)
            .map_err(|err| ClientError::Failed(format!("the answer is not as expected: {err}")))
    }

    /// A request for which there is no function here: with a key of its own, and a body where the method has one.
    pub async fn verb(&self, method: Method, path: &[&str], body: &Value) -> Result<Value, ClientError> {
        let keyed = method == Method::POST;
        let request = self.request(method.clone(), path, &[]);
        let key = || self.once.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        let request = if keyed { request.header("idempotency-key", key()) } else { request };
        let request = if method == Method::GET || method == Method::DELETE { request } else { request.json(body) };
        let response = self.send(request.timeout(PATIENCE)).await?;
        let body = response.bytes().await.map_err(|err| self.unreachable(cause(&err)))?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    /// What threads are told, as lines of a trace: of the caller's tenant, or of `all`.
    pub async fn trace(&self, all: bool, query: &[(&str, String)]) -> Result<Pieces, ClientError> {
        let path: &[&str] = if all { &["v1", "admin", "trace"] } else { &["v1", "trace"] };
        self.pieces(self.request(Method::GET, path, query)).await
    }

    /// What a stored thread must have been told, as a trace.
    pub async fn thread_trace(&self, thread: &str) -> Result<Pieces, ClientError> {
        self.pieces(self.request(Method::GET, &["v1", "threads", thread, "trace"], &[])).await
    }

    /// A POST that may be repeated: it carries a key of its own.
    fn post(&self, path: &[&str]) -> RequestBuilder {
        let key = self.once.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        self.request(Method::POST, path, &[]).header("idempotency-key", key)
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

    pub async fn turn(&self, thread: &str, turn: &str) -> Result<Turn, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread, "turns", turn], &[])).await
    }

    pub async fn turns(&self, thread: &str, query: &[(&str, String)]) -> Result<Page<Turn>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread, "turns"], query)).await
    }

    /// The turn once it has ended, or as it is after `timeout`; the server waits five minutes at most.
    pub async fn wait_turn(&self, thread: &str, turn: &str, timeout: Duration) -> Result<Turn, ClientError> {
        let query = [("timeout_ms", timeout.as_millis().to_string())];
        let request = self.request(Method::GET, &["v1", "threads", thread, "turns", turn, "wait"], &query);
        self.json_within(PATIENCE + timeout, request).await
    }

    /// What was said, and what tools did.
    pub async fn items(&self, thread: &str, query: &[(&str, String)]) -> Result<Page<Item>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "threads", thread, "items"], query)).await
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

    /// Stored events after `after`, 500 at most.
    pub async fn event_page(&self, thread: &str, after: Seq) -> Result<EventPage, ClientError> {
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

    /// The events of a thread after `after`, as they happen, each once and in order, through every interruption.
    pub fn events(&self, thread: &str, after: Seq) -> Events<EventView> {
        self.follow(thread, after).records()
    }

    /// The same as the server writes them.
    pub fn follow(&self, thread: &str, after: Seq) -> Follow {
        self.follow_log(["v1", "threads", thread, "events"], "thread.deleted", after)
    }

    /// The events of all threads, jobs, schedules and runs of the tenant, or of `threads`, behind a cursor: each once,
    /// those of one log in order. Without a cursor it begins when the connection is there; take one from
    /// [`Client::now`] to miss nothing. It never ends by itself. [`Told::cursor`] is where to go on;
    /// `stream.unavailable` names a log that cannot be read.
    pub fn follow_all(&self, after: Option<String>, threads: &[&str]) -> Follow {
        let query = if threads.is_empty() { Vec::new() } else { vec![("threads", threads.join(","))] };
        Follow::new(self.clone(), vec!["v1".to_owned(), "events".to_owned()], query, Place::Feed { after })
    }

    /// A cursor behind everything that has happened so far.
    pub async fn now(&self) -> Result<String, ClientError> {
        let request = self.request(Method::GET, &["v1", "events"], &[("limit", "1".to_owned())]);
        self.json(request).await.map(|page: FeedPage| page.next_cursor)
    }

    fn follow_log(&self, path: [&str; 4], last_word: &'static str, after: Seq) -> Follow {
        let path = path.map(str::to_owned).to_vec();
        Follow::new(self.clone(), path, Vec::new(), Place::Log { after, last_word })
    }
}

/// The problem in an answer; a server that is not ours may answer anything.
async fn refusal(response: Response) -> ClientError {
    let status = response.status();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let body = read_some(response).await;
    ClientError::Refused(match serde_json::from_slice(&body) {
        Ok(refusal) => Refusal { retry_after, ..refusal },
        Err(_) => Refusal {
            status: status.as_u16(),
            code: "unknown".to_owned(),
            detail: format!("the server answered {}", StatusCode::as_str(&status)),
            request_id: None,
            retry_after,
            extra: Box::default(),
        },
    })
}

/// After how long a request that failed so may be repeated.
fn pause(failed: &ClientError, retry: u32) -> Option<Duration> {
    let longer = Duration::from_millis(200) * 2_u32.saturating_pow(retry.min(4));
    match failed {
        ClientError::Unreachable { .. } => Some(longer),
        ClientError::Refused(refusal) if matches!(refusal.status, 429 | 503) => {
            refusal.retry_after.filter(|after| *after <= LONGEST_RETRY).map(|after| after + longer)
        }
        ClientError::Refused(_) | ClientError::Failed(_) => None,
    }
}

/// Whether it is all the same if the server had got the request all the same: it reads, or has an idempotency key.
fn is_harmless(request: &RequestBuilder) -> bool {
    let built = request.try_clone().and_then(|request| request.build().ok());
    built.is_some_and(|request| matches!(*request.method(), Method::GET | Method::POST))
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

    use axum::{
        Router,
        extract::RawQuery,
        http::{HeaderMap, StatusCode as Status},
        response::IntoResponse,
    };

    /// A server that gives one answer after the other, and notes the query and the idempotency key of each request.
    async fn server(answers: Vec<(u16, String)>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let answer = move |RawQuery(query): RawQuery, headers: HeaderMap| async move {
            let key = headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
            noted.lock().unwrap().push(query.or(key).unwrap_or_default());
            let gone = || (410, r#"{"status":410,"code":"thread-deleted","detail":"gone"}"#.to_owned());
            let (status, body) = answers.lock().unwrap().next().unwrap_or_else(gone);
            (Status::from_u16(status).unwrap(), [("retry-after", retry_after(&body))], body).into_response()
        };
        let router = Router::new().fallback(answer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (Client::new(&format!("http://{address}"), None).unwrap(), asked)
    }

    /// Some problems are over at once, others not so soon; the last sort says nothing.
    fn retry_after(body: &str) -> &'static str {
        match body {
            _ if body.contains("busy") || body.contains("draining") => "0",
            _ if body.contains("inbox-full") => "3600",
            _ => "",
        }
    }

    fn problem(status: u16, code: &str) -> (u16, String) {
        (status, json!({"status": status, "code": code, "detail": "no", "limit": 7}).to_string())
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
        while let Some(told) = events.next().await.unwrap() {
            assert_eq!(told.name, "item.delta");
            seen.push(told.json);
        }
        assert_eq!(seen, [2, 3, 4, 5].map(|seq| format!("{{\"seq\":{seq}}}")));
        assert_eq!(*asked.lock().unwrap(), ["after=1", "after=3", "after=3", "after=4", "after=4", "after=5"]);
    }

    #[tokio::test]
    async fn an_event_that_does_not_follow_the_last_one_is_fetched_anew() {
        let linked = |seq: u64, prev: u64| format!("id: {seq}\nevent: a\ndata: {{\"seq\":{seq},\"prev\":{prev}}}\n\n");
        // What was joined since has a hole behind it that its `prev` explains.
        let (client, asked) =
            server(vec![(200, linked(1, 0) + &linked(3, 2)), (200, linked(2, 1) + &linked(3, 2) + &linked(9, 3))])
                .await;
        let mut events = client.follow("thr_1", 0);
        let mut seen = Vec::new();
        while let Some(told) = events.next().await.unwrap() {
            seen.push(told.read::<Value>().unwrap()["seq"].as_u64().unwrap());
        }
        assert_eq!(seen, [1, 2, 3, 9]);
        assert_eq!(events.gaps(), 1);
        assert_eq!(*asked.lock().unwrap(), ["after=0", "after=1", "after=9"]);
    }

    #[tokio::test]
    async fn a_feed_goes_on_behind_the_newest_cursor_also_when_that_came_without_an_event() {
        let (client, asked) = server(vec![
            (200, "id: a\n\nid: b\nevent: job.queued\ndata: {}\n\n: keep-alive\n\nid: c\n\n".to_owned()),
            (200, "id: c\n\nevent: stream.gap\ndata: {\"after\":\"d\"}\n\n".to_owned()),
            (200, "event: thread.deleted\ndata: {}\n\n".to_owned()),
            problem(403, "forbidden"),
        ])
        .await;
        let mut events = client.follow_all(None, &["thr_1", "thr_2"]);
        let mut seen = Vec::new();
        let err = loop {
            match events.next().await {
                Ok(told) => seen.push(told.map(|told| (told.name, told.cursor)).unwrap()),
                Err(err) => break err,
            }
        };
        assert!(matches!(err, ClientError::Refused(refusal) if refusal.code == "forbidden"));
        assert_eq!(seen, [("job.queued".into(), Some("b".into())), ("thread.deleted".into(), None)]);
        let query = "threads=thr_1%2Cthr_2";
        let expected =
            [query.to_owned()].into_iter().chain(["c", "d", "d"].map(|after| format!("{query}&after={after}")));
        assert_eq!(*asked.lock().unwrap(), expected.collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_request_is_repeated_under_its_key_where_the_server_says_when() {
        let done = (200, "{}".to_owned());
        let (client, asked) = server(vec![problem(503, "busy"), problem(429, "busy"), done.clone()]).await;
        let client = client.retrying(2);
        client.json::<Value>(client.post(&["v1", "threads"]).json(&json!({}))).await.unwrap();
        let keys = asked.lock().unwrap().clone();
        assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0] && key.len() == 36), "{keys:?}");

        let (client, asked) = server(vec![done.clone(), done.clone()]).await;
        for client in [client.once("mine"), client.clone()] {
            client.json::<Value>(client.post(&["v1", "threads"]).json(&json!({}))).await.unwrap();
        }
        let keys = asked.lock().unwrap().clone();
        assert!(keys[0] == "mine" && keys[1].len() == 36, "{keys:?}");

        let (client, asked) = server(vec![problem(503, "busy"), done]).await;
        let ClientError::Refused(refusal) = client.info().await.unwrap_err() else { panic!("not a refusal") };
        assert_eq!((refusal.retry_after, &refusal.extra["limit"]), (Some(Duration::ZERO), &json!(7)));
        assert_eq!(asked.lock().unwrap().len(), 1, "unless it was told to");
    }

    #[tokio::test]
    async fn a_refusal_without_a_time_to_come_back_or_with_a_late_one_is_not_repeated() {
        let (client, asked) = server(vec![problem(503, "thread-unavailable"), problem(429, "inbox-full")]).await;
        let client = client.retrying(9);
        for expected in [None, Some(Duration::from_secs(3600))] {
            let ClientError::Refused(refusal) = client.info().await.unwrap_err() else { panic!("not a refusal") };
            assert_eq!(refusal.retry_after, expected);
        }
        assert_eq!(asked.lock().unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_harmless_is_repeated_when_nobody_answers() {
        let client = Client::new("http://127.0.0.1:1", None).unwrap().retrying(3);
        let waited = async |request: RequestBuilder| {
            let begun = tokio::time::Instant::now();
            assert!(matches!(client.send(request).await, Err(ClientError::Unreachable { .. })));
            begun.elapsed() >= Duration::from_millis(1400)
        };
        assert!(waited(client.post(&["x"]).json(&json!({}))).await);
        assert!(waited(client.request(Method::GET, &["x"], &[])).await);
        assert!(!waited(client.request(Method::PATCH, &["x"], &[])).await);
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
        let err = client.event_page("thr_1", 0).await.unwrap_err();
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
