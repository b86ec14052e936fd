//! OpenAI-compatible chat completions, streamed, over our own client.
//!
//! ```text
//! request (what is sent) -> this file (connect, read, give up) -> sse (events) -> answer (fragments)
//!                                                              \-> problem (errors)
//! ```
//! What can be decided without a network is decided in those files. Invariants: a stream ends with
//! [`Fragment::Finish`] or with an error, never with neither; a call is cancelled by dropping its stream; no error
//! holds the key, a header's value or a URL.
//!
//! | what happens | the call fails as |
//! | --- | --- |
//! | no connection | `Unreachable` |
//! | no connection, first byte or next byte in time | `Timeout` |
//! | status 429 · 408 · 5xx, with `Retry-After` kept | `RateLimited` · `Timeout` · `Unavailable` |
//! | any other status, redirects too: a key must not follow them | `Rejected` |
//! | an error object within the answer | the kind of its status or type, else `Rejected` |
//! | the stream ends before a finish reason, with or without `[DONE]` | `CutOff` |
//! | bytes that are no completion | `Malformed` |
//! | an event, or an answer that is not streamed, beyond 4 MiB | `TooLarge` |
//!
//! Behind a finish reason the answer is whole: that the connection breaks, stalls or lacks `[DONE]` is then no
//! failure. Comments keep a stream alive; how long a whole answer may take is for its turn's deadline.
//!
//! Absent on purpose: retries, which belong to the turn, where they are visible.

mod answer;
mod problem;
mod request;

use std::{collections::VecDeque, error::Error, time::Duration};

use futures_util::stream::{self, StreamExt};
use raddle_domain::ports::{Fragment, Model, ModelError, ModelErrorKind, ModelRequest, ModelStream};
use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use self::{
    answer::{Answer, DONE},
    problem::{Secrets, error},
    request::Body,
};
use crate::sse::{self, Bounds};

/// The most that is read of an answer in one piece.
const WHOLE_ANSWER_BYTES: usize = 4 << 20;

/// The most that is read of a refusal: its message is cut far below.
const REFUSAL_BYTES: usize = 64 << 10;

/// Where a provider is and how long it may take.
#[derive(Debug, Clone)]
pub struct OpenAiConfig {
    /// The `http` or `https` URL to which `/chat/completions` is appended, with or without a slash at its end:
    /// `https://api.openai.com/v1`. It holds no user or password; a query is kept.
    pub base_url: String,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<SecretString>,
    /// Further headers of every request. They win over `api_key`.
    pub headers: Vec<(String, SecretString)>,
    /// Until there is a connection. 10 s unless set.
    pub connect_timeout: Duration,
    /// From the call to the first byte of its answer, connecting included. 60 s unless set.
    pub first_byte_timeout: Duration,
    /// Between two pieces of an answer. 60 s unless set.
    pub idle_timeout: Duration,
    /// Whether earlier reasoning is sent back as `reasoning_content`. Off unless set: some providers refuse the
    /// field, others want it.
    pub send_reasoning: bool,
}

impl OpenAiConfig {
    /// A provider without a key, with the default timeouts.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            send_reasoning: false,
        }
    }
}

/// A configuration that no client can be made of. It repeats no value: any of them may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenAiConfigError {
    #[error("the base URL of the model provider {0}")]
    BaseUrl(&'static str),
    #[error("the key of the model provider holds characters that no header may hold")]
    ApiKey,
    #[error("`{0}` is no header, or its value holds characters that no header may hold")]
    Header(String),
    #[error("no HTTP client can be made: {0}")]
    Client(String),
}

/// A provider that speaks chat completions. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct OpenAi {
    client: Client,
    url: Url,
    headers: HeaderMap,
    secrets: Secrets,
    send_reasoning: bool,
    first_byte_timeout: Duration,
    idle_timeout: Duration,
}

impl OpenAi {
    /// Checks the configuration; connects to nothing.
    pub fn new(config: OpenAiConfig) -> Result<Self, OpenAiConfigError> {
        let url = completions_url(&config.base_url).map_err(OpenAiConfigError::BaseUrl)?;
        let mut client = Client::builder()
            .user_agent(concat!("raddle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .redirect(reqwest::redirect::Policy::none());
        if is_this_machine(&url) {
            client = client.no_proxy();
        }
        Ok(Self {
            client: client.build().map_err(|why| OpenAiConfigError::Client(cause(&why)))?,
            url,
            headers: headers(&config)?,
            secrets: Secrets::new(config.api_key.iter().chain(config.headers.iter().map(|(_, value)| value))),
            send_reasoning: config.send_reasoning,
            first_byte_timeout: config.first_byte_timeout,
            idle_timeout: config.idle_timeout,
        })
    }
}

impl Model for OpenAi {
    fn call(&self, request: ModelRequest) -> ModelStream {
        let body = Body::new(&request, self.send_reasoning);
        let unsent = self.client.post(self.url.clone()).headers(self.headers.clone()).json(&body);
        let call = Call {
            secrets: self.secrets.clone(),
            first_byte_timeout: self.first_byte_timeout,
            idle_timeout: self.idle_timeout,
            stage: Stage::Unsent(Box::new(unsent)),
            ready: VecDeque::new(),
        };
        let answer = stream::unfold(call, |mut call| async move {
            let next = call.next().await?;
            Some((next, call))
        });
        Box::pin(answer.fuse())
    }
}

fn completions_url(base: &str) -> Result<Url, &'static str> {
    let mut url = Url::parse(base).map_err(|_| "is no URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("is neither `http` nor `https`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password; use a key or a header");
    }
    url.set_fragment(None);
    url.path_segments_mut().map_err(|()| "has no path")?.pop_if_empty().extend(["chat", "completions"]);
    Ok(url)
}

/// A provider on this machine is not asked through a proxy.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn headers(config: &OpenAiConfig) -> Result<HeaderMap, OpenAiConfigError> {
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let mut headers = HeaderMap::new();
    if let Some(key) = &config.api_key {
        let bearer = secret(&format!("Bearer {}", key.expose_secret())).ok_or(OpenAiConfigError::ApiKey)?;
        headers.insert(AUTHORIZATION, bearer);
    }
    for (name, value) in &config.headers {
        let named = HeaderName::from_bytes(name.as_bytes()).ok();
        let (Some(name), Some(value)) = (named, secret(value.expose_secret())) else {
            return Err(OpenAiConfigError::Header(name.clone()));
        };
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The innermost reason, which names no URL.
fn cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// One call on its way.
struct Call {
    secrets: Secrets,
    first_byte_timeout: Duration,
    idle_timeout: Duration,
    stage: Stage,
    /// What is ready to be taken, in order.
    ready: VecDeque<Result<Fragment, ModelError>>,
}

enum Stage {
    Unsent(Box<RequestBuilder>),
    Events(Box<Events>),
    Ended,
}

struct Events {
    response: Response,
    parser: sse::Parser,
    answer: Answer,
}

impl Call {
    async fn next(&mut self) -> Option<Result<Fragment, ModelError>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            // Whatever fails ends the call: only what goes on puts a stage back.
            let step = match std::mem::replace(&mut self.stage, Stage::Ended) {
                Stage::Unsent(request) => self.open(*request).await,
                Stage::Events(events) => self.read(events).await,
                Stage::Ended => return None,
            };
            match step {
                Ok(stage) => self.stage = stage,
                Err(error) => self.ready.push_back(Err(error)),
            }
        }
    }

    /// Sends the request and reads as far as the first piece of an answer.
    async fn open(&mut self, request: RequestBuilder) -> Result<Stage, ModelError> {
        let answered = timeout(self.first_byte_timeout, async {
            let mut response = request.send().await.map_err(|why| self.not_sent(&why))?;
            let is_answer = response.status().is_success();
            let first = if is_answer { response.chunk().await.map_err(|why| self.broken(&why))? } else { None };
            Ok((response, first))
        });
        let (response, first) = answered.await.unwrap_or_else(|_| {
            let waited = self.first_byte_timeout;
            Err(error(ModelErrorKind::Timeout, format!("the model provider did not answer within {waited:?}")))
        })?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let first = first.unwrap_or_default();
        match Format::of(response.headers(), &first) {
            Format::Events => {
                let parser = sse::Parser::new(Bounds::default());
                let mut events = Box::new(Events { response, parser, answer: Answer::default() });
                let ended = self.take(&mut events, &first)?;
                Ok(if ended { self.end(events.answer)? } else { Stage::Events(events) })
            }
            Format::Json => {
                let body = self.whole(response, first.into()).await?;
                self.ready.extend(Answer::default().whole(&body, &self.secrets)?.into_iter().map(Ok));
                Ok(Stage::Ended)
            }
            Format::Page => Err(error(
                ModelErrorKind::Malformed,
                "the model provider answered with a web page; is its base URL right?",
            )),
        }
    }

    /// Reads the next piece of a stream.
    async fn read(&mut self, mut events: Box<Events>) -> Result<Stage, ModelError> {
        let failed = match timeout(self.idle_timeout, events.response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                let ended = self.take(&mut events, &bytes)?;
                return if ended { self.end(events.answer) } else { Ok(Stage::Events(events)) };
            }
            Ok(Ok(None)) => return self.end(events.answer),
            Ok(Err(why)) => self.broken(&why),
            Err(_) => self.stalled(),
        };
        if events.answer.is_finished() { self.end(events.answer) } else { Err(failed) }
    }

    /// Makes ready what `bytes` complete; true when nothing can follow.
    fn take(&mut self, events: &mut Events, bytes: &[u8]) -> Result<bool, ModelError> {
        let mut found = Vec::new();
        let read = events.parser.push(bytes, &mut found);
        for event in found {
            match event.data.trim_ascii() {
                b"" => {}
                DONE => return Ok(true),
                data if event.name == "error" => return Err(Answer::refusal(data, &self.secrets)),
                data => self.ready.extend(events.answer.chunk(data, &self.secrets)?.into_iter().map(Ok)),
            }
        }
        read.map(|()| false).map_err(|oversize| error(ModelErrorKind::TooLarge, oversize.to_string()))
    }

    fn end(&mut self, answer: Answer) -> Result<Stage, ModelError> {
        let end = answer.end().ok_or_else(|| {
            error(ModelErrorKind::CutOff, "the model provider ended the answer without a finish reason")
        })?;
        self.ready.extend(end.into_iter().map(Ok));
        Ok(Stage::Ended)
    }

    async fn whole(&self, mut response: Response, mut body: Vec<u8>) -> Result<Vec<u8>, ModelError> {
        loop {
            if body.len() > WHOLE_ANSWER_BYTES {
                let message = format!("the model provider's answer is longer than {WHOLE_ANSWER_BYTES} bytes");
                return Err(error(ModelErrorKind::TooLarge, message));
            }
            match timeout(self.idle_timeout, response.chunk()).await {
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Ok(body),
                Ok(Err(why)) => return Err(self.broken(&why)),
                Err(_) => return Err(self.stalled()),
            }
        }
    }

    async fn refused(&self, mut response: Response) -> ModelError {
        let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let wait = problem::retry_after(text(RETRY_AFTER), text(DATE));
        let mut body = Vec::new();
        // The status says enough: what it came with is read as far as it comes in time.
        let reading = timeout(self.idle_timeout, async {
            while let Ok(Some(bytes)) = response.chunk().await {
                body.extend_from_slice(&bytes);
                if body.len() >= REFUSAL_BYTES {
                    break;
                }
            }
        });
        let _in_time = reading.await;
        problem::of_status(response.status().as_u16(), &body, wait, &self.secrets)
    }

    fn not_sent(&self, why: &reqwest::Error) -> ModelError {
        let said = self.secrets.shown(&cause(why));
        if why.is_timeout() {
            error(ModelErrorKind::Timeout, "no connection to the model provider in time")
        } else if why.is_connect() {
            error(ModelErrorKind::Unreachable, format!("no connection to the model provider: {said}"))
        } else {
            error(ModelErrorKind::CutOff, format!("the connection broke before the model provider answered: {said}"))
        }
    }

    fn broken(&self, why: &reqwest::Error) -> ModelError {
        let said = self.secrets.shown(&cause(why));
        error(ModelErrorKind::CutOff, format!("the connection broke before the answer's end: {said}"))
    }

    fn stalled(&self) -> ModelError {
        let waited = self.idle_timeout;
        error(ModelErrorKind::Timeout, format!("the model provider's answer did not go on within {waited:?}"))
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Events,
    /// One completion in one piece: the provider does not stream.
    Json,
    Page,
}

impl Format {
    /// By its type; where that says nothing useful, by its first bytes.
    fn of(headers: &HeaderMap, first: &[u8]) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "text/event-stream" => Self::Events,
            "application/json" => Self::Json,
            "text/html" => Self::Page,
            _ if first.trim_ascii_start().starts_with(b"{") => Self::Json,
            _ => Self::Events,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_to_the_base_url() {
        let url = |base: &str| completions_url(base).map(String::from);
        for (base, expected) in [
            ("http://h/v1", "http://h/v1/chat/completions"),
            ("http://h/v1/", "http://h/v1/chat/completions"),
            ("http://h", "http://h/chat/completions"),
            ("https://h:8/a/b?version=1#x", "https://h:8/a/b/chat/completions?version=1"),
        ] {
            assert_eq!(url(base).as_deref(), Ok(expected));
        }
        for base in ["", "h/v1", "ftp://h/v1", "data:text/plain,x", "http://user@h/v1", "http://:pass@h/v1"] {
            assert!(url(base).is_err(), "{base}");
        }
    }

    #[test]
    fn a_configuration_error_repeats_no_secret() {
        let error = |config| OpenAi::new(config).unwrap_err().to_string();
        let with_user = OpenAiConfig::new("https://me:hunter2@h/v1");
        assert!(!error(with_user).contains("hunter2"));
        let with_key = OpenAiConfig { api_key: Some("hunter2\n".into()), ..OpenAiConfig::new("https://h/v1") };
        assert!(!error(with_key).contains("hunter2"));
        let headers = vec![("x key".to_owned(), SecretString::from("hunter2"))];
        let with_header = OpenAiConfig { headers, ..OpenAiConfig::new("https://h/v1") };
        assert_eq!(error(with_header), "`x key` is no header, or its value holds characters that no header may hold");
    }

    #[test]
    fn nothing_shown_of_a_provider_holds_the_key() {
        let config = OpenAiConfig { api_key: Some("hunter2".into()), ..OpenAiConfig::new("https://h/v1") };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!format!("{:?}", OpenAi::new(config).unwrap()).contains("hunter2"));
    }

    #[test]
    fn a_provider_on_this_machine_is_known() {
        let here = |base: &str| is_this_machine(&Url::parse(base).unwrap());
        assert!(here("http://localhost:1/") && here("http://127.0.0.9/") && here("http://[::1]:80/"));
        assert!(!here("http://10.0.0.1/") && !here("https://localhost.example/"));
    }

    #[test]
    fn the_format_is_told_by_the_type_or_else_by_the_first_bytes() {
        let of = |kind: &'static str, first: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            Format::of(&headers, first.as_bytes())
        };
        assert_eq!(of("Text/Event-Stream; charset=utf-8", "{"), Format::Events);
        assert_eq!(of("application/json", "data: "), Format::Json);
        assert_eq!(of("text/html", "{"), Format::Page);
        assert_eq!(of("text/plain", " \n{"), Format::Json);
        assert_eq!(of("text/plain", ": hi"), Format::Events);
        assert_eq!(Format::of(&HeaderMap::new(), b""), Format::Events);
    }
}
