//! A connection to a server: the few things that we ask of one, and what they are over the MCP library.
//!
//! A call that fails says how far it came ([`CallError`]), because that is what the effect ledger needs to know. What
//! is read is bounded before it is understood: the size and the depth of a message on a pipe, of an event or a body
//! over HTTP. What a server asks of us (sampling, elicitation, roots) is declined by the library's own defaults, and
//! we say at the beginning that we can do none of it.

use std::{
    borrow::Cow,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use raddle_domain::{id::OperationId, ports::Output};
use reqwest::{Url, header::HeaderMap};
use rmcp::{
    ClientHandler, RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, CallToolResult, CancelledNotificationParam, ClientCapabilities,
        ClientConfig, ClientRequest, Implementation, ListToolsRequest, PaginatedRequestParams, PingRequest,
        ProgressNotificationParam, ProgressToken, RequestId, RequestMetaObject, ServerResult,
    },
    service::{NotificationContext, Peer, PeerRequestOptions, RunningService, ServiceError, serve_client},
    transport::{
        StreamableHttpClientTransport,
        async_rw::AsyncRwTransport,
        streamable_http_client::{StreamableHttpClientTransportConfig, StreamableHttpError},
    },
};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::{Notify, mpsc, watch},
};

use super::{
    catalogue::MAX_TOOLS,
    child::Child,
    config::{Reach, Server},
    secrets::Secrets,
};

/// The largest message of a server.
const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// How deep one may nest. The parser gives up soon after it, and would drop the message without a word.
const MESSAGE_DEPTH: usize = 100;
const MAX_PAGES: usize = 100;
/// Of all pages of a list.
const LIST_BYTES: usize = 16 * 1024 * 1024;
/// Signs of progress that may wait for a log that is slow; further ones are dropped.
const PROGRESS: usize = 16;
const CONNECT: Duration = Duration::from_secs(10);
/// Between two looks whether a server over HTTP is there, and how long an answer is waited for.
const PING: Duration = Duration::from_secs(5);
/// Of what a server says went wrong.
const REASON_CHARS: usize = 300;

/// Where an operation's id is found by a server that wants to know whether it has seen a call before.
const OPERATION: &str = "raddle.dev/operation";

pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes connections to one server.
pub trait Connect: Send + Sync + 'static {
    fn connect(&self) -> Boxed<'_, Result<Arc<dyn Link>, String>>;
}

/// A connection. Dropping it closes it.
pub trait Link: Send + Sync + 'static {
    /// What the server lists, as it wrote it.
    fn list(&self) -> Boxed<'_, Result<Vec<Value>, String>>;

    /// Makes a call. Dropping it tells the server that nobody waits any more.
    fn call(&self, call: Call, output: Arc<dyn Output>) -> Boxed<'_, Result<CallToolResult, CallError>>;

    /// Ready when the list is to be read again. Cancel-safe.
    fn changed(&self) -> Boxed<'_, ()>;

    /// Ready when the connection has ended, with the reason. Cancel-safe.
    fn ended(&self) -> Boxed<'_, String>;

    /// Ends it.
    fn close(&self) -> Boxed<'_, ()>;
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// By its server's name.
    pub tool: String,
    pub arguments: Map<String, Value>,
    pub operation: OperationId,
    /// How long the server may say nothing.
    pub timeout: Duration,
}

/// Why a call has no result. The texts are safe to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// It did not reach the server.
    NotSent(String),
    /// The server refused it.
    Refused(String),
    /// It was sent, and what became of it is not known.
    Lost(String),
}

impl CallError {
    fn into_reason(self) -> String {
        match self {
            Self::NotSent(why) | Self::Refused(why) | Self::Lost(why) => why,
        }
    }
}

// ---- over the library ----------------------------------------------------------------------------

/// Makes connections as the configuration says.
pub struct Connector {
    server: Server,
    http: reqwest::Client,
}

impl Connector {
    pub fn new(server: Server) -> Result<Self, reqwest::Error> {
        // Redirects are not followed: headers that are meant for one address are not shown to another.
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("raddle/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { server, http })
    }

    async fn open(&self) -> Result<Arc<dyn Link>, String> {
        let handler = Handler { secrets: self.server.secrets.clone(), ..Handler::default() };
        match &self.server.reach {
            Reach::Stdio(program) => {
                let (child, stdin, stdout) = Child::start(&self.server.name, program, &self.server.secrets)?;
                let broken = Broken::default();
                let stdout = Bounded { inner: stdout, bounds: Bounds::default(), broken: broken.clone() };
                let transport = AsyncRwTransport::new_client(stdout, stdin).with_max_line_length(2 * MESSAGE_BYTES);
                match serve_client(handler.clone(), transport).await {
                    Ok(service) => Ok(self.link(handler, service, Some(child), broken)),
                    Err(error) => {
                        let ended = child.end().await;
                        Err(broken.take().unwrap_or_else(|| format!("{}; {ended}", self.reason(&error))))
                    }
                }
            }
            Reach::Http { url, headers } => {
                let config = http(url, headers);
                let transport = StreamableHttpClientTransport::with_client(self.http.clone(), config);
                match serve_client(handler.clone(), transport).await {
                    Ok(service) => Ok(self.link(handler, service, None, Broken::default())),
                    Err(error) => Err(self.reason(&error)),
                }
            }
        }
    }

    fn link(
        &self,
        handler: Handler,
        service: RunningService<RoleClient, Handler>,
        child: Option<Child>,
        broken: Broken,
    ) -> Arc<dyn Link> {
        let (peer, close) = (service.peer().clone(), Arc::new(Notify::new()));
        let (tell, ended) = watch::channel(None);
        let asked = close.clone();
        let reason = broken.clone();
        let reachable = Reachable { peer: peer.clone(), secrets: self.server.secrets.clone() };
        let is_process = child.is_some();
        tokio::spawn(async move {
            let stop = service.cancellation_token();
            let mut waiting = Box::pin(service.waiting());
            tokio::select! {
                _ = &mut waiting => {}
                () = asked.notified() => {
                    stop.cancel();
                    let _ = waiting.await;
                }
                // The end of a process is seen at its pipe.
                why = reachable.no_longer(), if !is_process => {
                    reason.set(why);
                    stop.cancel();
                    let _ = waiting.await;
                }
            }
            let how = match child {
                Some(child) => child.end().await,
                None => "the connection ended".to_owned(),
            };
            tell.send_replace(Some(reason.take().unwrap_or(how)));
        });
        let secrets = self.server.secrets.clone();
        Arc::new(Session { peer, handler, ended, close, broken, secrets })
    }

    fn reason(&self, error: &dyn std::error::Error) -> String {
        reason(error, &self.server.secrets)
    }
}

impl Connect for Connector {
    fn connect(&self) -> Boxed<'_, Result<Arc<dyn Link>, String>> {
        Box::pin(self.open())
    }
}

fn http(url: &Url, headers: &HeaderMap) -> StreamableHttpClientTransportConfig {
    let headers = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .custom_headers(headers)
        .max_sse_event_size(MESSAGE_BYTES)
}

/// An error with its causes, as one line.
fn reason(error: &dyn std::error::Error, secrets: &Secrets) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    secrets.line(&texts.join(": "), REASON_CHARS)
}

/// Whether a server over HTTP is still there. Of what was cut off the library hears nothing by itself.
struct Reachable {
    peer: Peer<RoleClient>,
    secrets: Secrets,
}

impl Reachable {
    /// Ready when it is not, with the reason. A server that is slow, or does not know what a ping is, is there.
    async fn no_longer(&self) -> String {
        loop {
            tokio::time::sleep(PING).await;
            let ping = self.peer.send_request_with_option(
                ClientRequest::PingRequest(PingRequest::default()),
                PeerRequestOptions::with_timeout(PING),
            );
            let Ok(ping) = ping.await else { return "the connection ended".to_owned() };
            if let Err(ServiceError::TransportSend(error)) = ping.await_response().await
                && let (true, found) = undelivered(error.error.as_ref(), || reason(&error, &self.secrets))
            {
                return found.into_reason();
            }
        }
    }
}

/// A connection over the library.
struct Session {
    peer: Peer<RoleClient>,
    handler: Handler,
    ended: watch::Receiver<Option<String>>,
    close: Arc<Notify>,
    broken: Broken,
    secrets: Secrets,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close.notify_one();
    }
}

impl Session {
    async fn pages(&self) -> Result<Vec<Value>, String> {
        let mut tools = Vec::new();
        let mut cursor = None;
        let mut bytes = 0;
        for _ in 0..MAX_PAGES {
            let params = cursor.take().map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let request = ListToolsRequest { params, ..ListToolsRequest::default() };
            let page = self.peer.send_request(ClientRequest::ListToolsRequest(request)).await;
            let page = match page {
                Ok(page) => page,
                // Why it was closed says more.
                Err(ServiceError::TransportClosed) => return Err(self.ended().await),
                Err(error) => return Err(format!("it does not list its tools: {}", self.reason(&error))),
            };
            // As JSON, because one tool that the library cannot read must not cost the others.
            let page = serde_json::to_value(page).map_err(|_| "its list of tools cannot be read".to_owned())?;
            let Some(found) = page["tools"].as_array() else {
                return Err("it answers with no list of tools".to_owned());
            };
            bytes += page.to_string().len();
            if bytes > LIST_BYTES {
                return Err(format!("its list of tools has more than {LIST_BYTES} bytes"));
            }
            tools.extend(found.iter().cloned());
            // Some more than are offered, so that it can be said which are left out.
            if tools.len() > 2 * MAX_TOOLS {
                tools.truncate(2 * MAX_TOOLS);
                return Ok(tools);
            }
            match page["nextCursor"].as_str() {
                Some(next) if !next.is_empty() => cursor = Some(next.to_owned()),
                _ => return Ok(tools),
            }
        }
        Err(format!("its list of tools has more than {MAX_PAGES} pages"))
    }

    async fn send(&self, call: Call, output: Arc<dyn Output>) -> Result<CallToolResult, CallError> {
        if let Some(ended) = self.ended.borrow().clone() {
            return Err(CallError::NotSent(ended));
        }
        let mut meta = RequestMetaObject::default();
        meta.insert(OPERATION.to_owned(), Value::String(call.operation.to_string()));
        let params = CallToolRequestParams::new(Cow::Owned(call.tool)).with_arguments(call.arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let options = PeerRequestOptions::with_timeout(call.timeout).with_meta(meta).reset_timeout_on_progress();
        let handle = self.peer.send_request_with_option(request, options).await;
        let handle = handle.map_err(|_| CallError::NotSent("the connection has ended".to_owned()))?;
        let mut heard = self.handler.hear(handle.progress_token.clone());
        let mut waits = Waits { peer: self.peer.clone(), id: Some(handle.id.clone()) };
        let mut answered = Box::pin(handle.await_response());
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answered => break answer,
                Some(text) = heard.next.recv() => output.say(text).await,
            }
        };
        waits.id = None;
        match answer {
            Ok(ServerResult::CallToolResult(result)) => Ok(result),
            Ok(_) => Err(CallError::Lost("the server answered with something that is no result of a tool".to_owned())),
            Err(error) => Err(self.failed(error).await),
        }
    }

    async fn failed(&self, error: ServiceError) -> CallError {
        match error {
            ServiceError::McpError(refusal) => CallError::Refused(self.reason(&refusal)),
            ServiceError::TransportSend(error) => {
                let (end, found) = undelivered(error.error.as_ref(), || self.reason(&error));
                if end {
                    self.broken.set(found.clone().into_reason());
                    self.close.notify_one();
                }
                found
            }
            ServiceError::Timeout { timeout } => {
                CallError::Lost(format!("the server said nothing for {} ms", timeout.as_millis()))
            }
            ServiceError::TransportClosed => CallError::Lost(format!("the connection ended: {}", self.ended().await)),
            error => CallError::Lost(self.reason(&error)),
        }
    }

    fn reason(&self, error: &dyn std::error::Error) -> String {
        reason(error, &self.secrets)
    }
}

/// What it means that a message could not be sent, and whether the connection is of no use any more.
fn undelivered(error: &(dyn std::error::Error + 'static), why: impl Fn() -> String) -> (bool, CallError) {
    // A pipe takes a message whole, or the reader has gone: half a line is no call.
    if error.is::<std::io::Error>() {
        return (true, CallError::NotSent(why()));
    }
    match error.downcast_ref::<StreamableHttpError<reqwest::Error>>() {
        Some(StreamableHttpError::Client(error)) if error.is_connect() => {
            let mut texts = "it cannot be reached".to_owned();
            if error.is_timeout() {
                texts.push_str(" in time");
            }
            (true, CallError::NotSent(texts))
        }
        Some(
            StreamableHttpError::AuthRequired(_)
            | StreamableHttpError::InsufficientScope(_)
            | StreamableHttpError::ReservedHeaderConflict(_),
        ) => (false, CallError::Refused(why())),
        Some(StreamableHttpError::SessionExpired | StreamableHttpError::ReinitializationFailed(_)) => {
            (true, CallError::NotSent(why()))
        }
        Some(StreamableHttpError::HttpStatus(_) | StreamableHttpError::UnexpectedServerResponse(_)) => {
            (false, CallError::Lost(why()))
        }
        _ => (true, CallError::Lost(why())),
    }
}

impl Link for Session {
    fn list(&self) -> Boxed<'_, Result<Vec<Value>, String>> {
        Box::pin(self.pages())
    }

    fn call(&self, call: Call, output: Arc<dyn Output>) -> Boxed<'_, Result<CallToolResult, CallError>> {
        Box::pin(self.send(call, output))
    }

    fn changed(&self) -> Boxed<'_, ()> {
        Box::pin(self.handler.changed.notified())
    }

    fn ended(&self) -> Boxed<'_, String> {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            let why = ended.wait_for(Option::is_some).await;
            why.ok().and_then(|why| why.clone()).unwrap_or_else(|| "the connection ended".to_owned())
        })
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.close.notify_one();
        Box::pin(async {
            self.ended().await;
        })
    }
}

/// A request that somebody waits for. Dropped before its answer, it tells the server.
struct Waits {
    peer: Peer<RoleClient>,
    id: Option<RequestId>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let peer = self.peer.clone();
        runtime.spawn(async move {
            let params: CancelledNotificationParam =
                CancelledNotificationParam::new(Some(id), Some("nobody waits for it".to_owned()));
            let _ = peer.notify_cancelled(params).await;
        });
    }
}

// ---- what a server says by itself ----------------------------------------------------------------

/// Hears notifications.
#[derive(Clone, Default)]
struct Handler {
    changed: Arc<Notify>,
    listeners: Arc<Mutex<HashMap<ProgressToken, mpsc::Sender<String>>>>,
    secrets: Secrets,
}

/// Progress of one call, until it is dropped.
struct Heard {
    next: mpsc::Receiver<String>,
    token: ProgressToken,
    handler: Handler,
}

impl Handler {
    fn hear(&self, token: ProgressToken) -> Heard {
        let (tell, next) = mpsc::channel(PROGRESS);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), tell);
        Heard { next, token, handler: self.clone() }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.handler.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let us = Implementation::new("raddle", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), us)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }

    async fn on_progress(&self, progress: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tell) = listeners.get(&progress.progress_token) {
            let _ = tell.try_send(line(&progress, &self.secrets));
        }
    }
}

/// Progress as a line of text, without secrets: once it is cut, half of one would not be found any more.
fn line(progress: &ProgressNotificationParam, secrets: &Secrets) -> String {
    let so_far = match progress.total {
        Some(total) => format!("{}/{total}", progress.progress),
        None => progress.progress.to_string(),
    };
    let said = match &progress.message {
        Some(message) => format!("{so_far}: {message}"),
        None => so_far,
    };
    format!("{}\n", secrets.line(&said, REASON_CHARS))
}

// ---- bounds --------------------------------------------------------------------------------------

/// Why a connection was broken off, once somebody has found a reason.
#[derive(Clone, Default)]
struct Broken(Arc<Mutex<Option<String>>>);

impl Broken {
    fn set(&self, why: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A pipe that breaks at a message that is too large or too deep.
struct Bounded<R> {
    inner: R,
    bounds: Bounds,
    broken: Broken,
}

impl<R: AsyncRead + Unpin> AsyncRead for Bounded<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        Poll::Ready(this.bounds.read(&buf.filled()[before..]).map_err(|why| {
            this.broken.set(why.clone());
            std::io::Error::other(why)
        }))
    }
}

/// Where in a message a pipe is.
#[derive(Debug, Default)]
struct Bounds {
    size: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Bounds {
    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        for byte in bytes {
            if *byte == b'\n' {
                *self = Self::default();
                continue;
            }
            self.size += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                b'{' | b'[' if !self.in_text => self.depth += 1,
                b'}' | b']' if !self.in_text => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.size > MESSAGE_BYTES {
                return Err(format!("it sent a message of more than {MESSAGE_BYTES} bytes"));
            }
            if self.depth > MESSAGE_DEPTH {
                return Err(format!("it sent a message that nests deeper than {MESSAGE_DEPTH} levels"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_bounded_however_it_is_cut() {
        let read = |messages: &[u8], step: usize| {
            let mut bounds = Bounds::default();
            messages.chunks(step).try_for_each(|bytes| bounds.read(bytes))
        };
        let deep = |levels: usize| ["[".repeat(levels), "]".repeat(levels), "\n".to_owned()].concat();
        for step in [1, 7, 1 << 20] {
            assert!(read(deep(MESSAGE_DEPTH).repeat(3).as_bytes(), step).is_ok());
            assert!(read(deep(MESSAGE_DEPTH + 1).as_bytes(), step).unwrap_err().contains("nests deeper"));
            let text = format!("\"{}\\\"{}\"\n", "[".repeat(200), "{".repeat(200));
            assert!(read(text.as_bytes(), step).is_ok());
        }
        let large = "x".repeat(MESSAGE_BYTES);
        assert!(read(format!("{large}\n{large}\n").as_bytes(), 1 << 16).is_ok());
        assert!(read(format!("{large}x").as_bytes(), 1 << 16).unwrap_err().contains("more than 4194304 bytes"));
    }

    #[test]
    fn progress_is_a_line() {
        let mut secrets = Secrets::default();
        secrets.add("hush-hush");
        let said = |value: Value| line(&serde_json::from_value(value).unwrap(), &secrets);
        assert_eq!(said(serde_json::json!({"progressToken": 1, "progress": 2, "total": 5})), "2/5\n");
        let message = serde_json::json!({"progressToken": 1, "progress": 2.5, "message": "a\nb"});
        assert_eq!(said(message), "2.5: a b\n");
        let text = format!("{}hush-hush", "x".repeat(REASON_CHARS - 7));
        let cut = said(serde_json::json!({"progressToken": 1, "progress": 2, "message": text}));
        assert!(cut.ends_with("x[hid…\n"), "{cut}");
    }
}
