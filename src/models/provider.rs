//! A provider of models over HTTP: what all of them share, whatever their answers look like.
//!
//! ```text
//! body (what is sent) -> this file (connect, read, give up) -> sse (events) -> a Reader (fragments)
//!                                                          \-> problem (errors)
//! ```
//! What can be decided without a network is decided in a vendor's own files and in `problem`. Invariants: a stream ends
//! with [`Fragment::Finish`] or with an error, never with neither; a call is cancelled by dropping its stream; no error
//! holds the key, a header's value or a URL.
//!
//! | what happens | the call fails as |
//! | --- | --- |
//! | no connection | `Unreachable` |
//! | no connection, first byte or next byte in time | `Timeout` |
//! | status 429 · 408 · 5xx, with `Retry-After` kept | `RateLimited` · `Timeout` · `Unavailable` |
//! | any other status, redirects too: a key must not follow them | `Rejected` |
//! | an error object within the answer | the kind of its status or type, else `Rejected` |
//! | the stream ends before a finish reason | `CutOff` |
//! | bytes that are no answer | `Malformed` |
//! | an event, or an answer that is not streamed, beyond 4 MiB | `TooLarge` |
//!
//! Behind a finish reason the answer is whole: that the connection breaks, stalls or lacks its last event is then no
//! failure. Comments keep a stream alive; how long a whole answer may take is for its turn's deadline.
//!
//! Absent on purpose: retries, which belong to the turn, where they are visible.

pub(super) mod problem;

use std::{collections::VecDeque, error::Error, time::Duration};

use futures_util::stream::{self, StreamExt};
use raddle_domain::ports::{Fragment, ModelError, ModelErrorKind, ModelStream};
use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::time::timeout;

use self::problem::{Secrets, error};
use crate::{
    otel,
    sse::{self, Bounds},
};

/// The most that is read of an answer in one piece.
const WHOLE_ANSWER_BYTES: usize = 4 << 20;

/// The most that is read of a refusal: its message is cut far below.
const REFUSAL_BYTES: usize = 64 << 10;

/// How long a provider may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until there is a connection. 10 s unless set.
    pub connect: Duration,
    /// From the call to the first byte of its answer, connecting included. 60 s unless set.
    pub first_byte: Duration,
    /// Between two pieces of an answer. 60 s unless set.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), first_byte: Duration::from_secs(60), idle: Duration::from_secs(60) }
    }
}

/// A configuration that no client can be made of. It repeats no value: any of them may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    #[error("the base URL of the model provider {0}")]
    BaseUrl(&'static str),
    #[error("the key of the model provider holds characters that no header may hold")]
    ApiKey,
    #[error("`{0}` is no header, or its value holds characters that no header may hold")]
    Header(String),
    #[error("no HTTP client can be made: {0}")]
    Client(String),
}

/// What reads the answers of one vendor. Pure.
pub(super) trait Reader: Default + Send + Sync + 'static {
    /// Reads one event of a stream.
    fn event(&mut self, event: &sse::Event, secrets: &Secrets) -> Result<Read, ModelError>;

    /// Whether the answer is whole, so that only its usage may be missing.
    fn is_finished(&self) -> bool;

    /// The last fragments; `None` when the answer was cut off: no finish reason came.
    fn end(self) -> Option<Vec<Fragment>>;

    /// Reads an answer that came in one piece, because the provider does not stream.
    fn whole(self, body: &[u8], secrets: &Secrets) -> Result<Vec<Fragment>, ModelError>;
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Read {
    On(Vec<Fragment>),
    /// Nothing follows.
    End,
}

/// Where calls are made. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Provider {
    client: Client,
    url: Url,
    headers: HeaderMap,
    secrets: Secrets,
    patience: Patience,
}

impl Provider {
    /// A provider at `base` with `path` appended, to which these headers are sent; a later one wins over an earlier
    /// of the same name. Connects to nothing.
    pub fn new(base: &str, path: &[&str], headers: Headers, patience: Patience) -> Result<Self, ProviderError> {
        let url = endpoint(base, path).map_err(ProviderError::BaseUrl)?;
        let mut client = Client::builder()
            .user_agent(concat!("raddle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(patience.connect)
            .redirect(reqwest::redirect::Policy::none());
        if is_this_machine(&url) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|why| ProviderError::Client(cause(&why)))?;
        let Headers { map, secrets } = headers;
        Ok(Self { client, url, headers: map, secrets: Secrets::new(&secrets), patience })
    }

    /// Makes one call, whose answer `R` reads.
    pub fn call<R: Reader>(&self, body: &impl Serialize) -> ModelStream {
        let mut headers = self.headers.clone();
        otel::carry(&mut headers);
        let unsent = self.client.post(self.url.clone()).headers(headers).json(body);
        let call = Call::<R> {
            secrets: self.secrets.clone(),
            patience: self.patience,
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

/// What is sent with every request, and what of it must never be shown.
#[derive(Debug, Default)]
pub(super) struct Headers {
    map: HeaderMap,
    secrets: Vec<SecretString>,
}

impl Headers {
    /// The header by which a caller logs in: `prefix` and the key.
    pub fn key(&mut self, name: HeaderName, prefix: &str, key: &SecretString) -> Result<(), ProviderError> {
        let value = sensitive(&format!("{prefix}{}", key.expose_secret())).ok_or(ProviderError::ApiKey)?;
        self.map.insert(name, value);
        self.secrets.push(key.clone());
        Ok(())
    }

    pub fn add(&mut self, name: &str, value: &SecretString) -> Result<(), ProviderError> {
        let named = HeaderName::from_bytes(name.as_bytes()).ok();
        let (Some(named), Some(sent)) = (named, sensitive(value.expose_secret())) else {
            return Err(ProviderError::Header(name.to_owned()));
        };
        self.map.insert(named, sent);
        self.secrets.push(value.clone());
        Ok(())
    }

    /// A header that is no secret.
    pub fn open(&mut self, name: &'static str, value: &str) -> Result<(), ProviderError> {
        let value = HeaderValue::from_str(value).map_err(|_| ProviderError::Header(name.to_owned()))?;
        self.map.insert(name, value);
        Ok(())
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn endpoint(base: &str, path: &[&str]) -> Result<Url, &'static str> {
    let mut url = Url::parse(base).map_err(|_| "is no URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("is neither `http` nor `https`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password; use a key or a header");
    }
    url.set_fragment(None);
    url.path_segments_mut().map_err(|()| "has no path")?.pop_if_empty().extend(path);
    Ok(url)
}

/// A provider on this machine is not asked through a proxy.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
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
struct Call<R> {
    secrets: Secrets,
    patience: Patience,
    stage: Stage<R>,
    /// What is ready to be taken, in order.
    ready: VecDeque<Result<Fragment, ModelError>>,
}

enum Stage<R> {
    Unsent(Box<RequestBuilder>),
    Events(Box<Events<R>>),
    Ended,
}

struct Events<R> {
    response: Response,
    parser: sse::Parser,
    answer: R,
}

impl<R: Reader> Call<R> {
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
    async fn open(&mut self, request: RequestBuilder) -> Result<Stage<R>, ModelError> {
        let answered = timeout(self.patience.first_byte, async {
            let mut response = request.send().await.map_err(|why| self.not_sent(&why))?;
            let is_answer = response.status().is_success();
            let first = if is_answer { response.chunk().await.map_err(|why| self.broken(&why))? } else { None };
            Ok((response, first))
        });
        let (response, first) = answered.await.unwrap_or_else(|_| {
            let waited = self.patience.first_byte;
            Err(error(ModelErrorKind::Timeout, format!("the model provider did not answer within {waited:?}")))
        })?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let first = first.unwrap_or_default();
        match Format::of(response.headers(), &first) {
            Format::Events => {
                let parser = sse::Parser::new(Bounds::default());
                let mut events = Box::new(Events { response, parser, answer: R::default() });
                let ended = self.take(&mut events, &first)?;
                Ok(if ended { self.end(events.answer)? } else { Stage::Events(events) })
            }
            Format::Json => {
                let body = self.whole(response, first.into()).await?;
                self.ready.extend(R::default().whole(&body, &self.secrets)?.into_iter().map(Ok));
                Ok(Stage::Ended)
            }
            Format::Page => Err(error(
                ModelErrorKind::Malformed,
                "the model provider answered with a web page; is its base URL right?",
            )),
        }
    }

    /// Reads the next piece of a stream.
    async fn read(&mut self, mut events: Box<Events<R>>) -> Result<Stage<R>, ModelError> {
        let failed = match timeout(self.patience.idle, events.response.chunk()).await {
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
    fn take(&mut self, events: &mut Events<R>, bytes: &[u8]) -> Result<bool, ModelError> {
        let mut found = Vec::new();
        let read = events.parser.push(bytes, &mut found);
        for event in found {
            match events.answer.event(&event, &self.secrets)? {
                Read::On(fragments) => self.ready.extend(fragments.into_iter().map(Ok)),
                Read::End => return Ok(true),
            }
        }
        read.map(|()| false).map_err(|oversize| error(ModelErrorKind::TooLarge, oversize.to_string()))
    }

    fn end(&mut self, answer: R) -> Result<Stage<R>, ModelError> {
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
            match timeout(self.patience.idle, response.chunk()).await {
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
        let reading = timeout(self.patience.idle, async {
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
        let waited = self.patience.idle;
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
        let url = |base: &str| endpoint(base, &["chat", "completions"]).map(String::from);
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
