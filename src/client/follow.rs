//! Streams that may be cut at any time, as streams that are not.

use std::{
    collections::VecDeque,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, stream};
use raddle_domain::id::Seq;
use reqwest::{Method, Response, header};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{Client, ClientError, Refusal, SILENCE};
use crate::sse::{self, Bounds, Parser};

/// A connection that lasted this long was a good one, even if nothing happened meanwhile.
const LASTING: Duration = Duration::from_secs(10);
/// How often in a row a stream is opened anew before the failure is believed.
const RECONNECTS: u32 = 30;

/// An event is at most an item of the server's largest size, escaped.
const BOUNDS: Bounds = Bounds { line_bytes: 64 << 20, event_bytes: 64 << 20 };

/// An event as the server wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub name: String,
    /// Its record.
    pub json: String,
    /// In a stream of many logs the place behind it. An event that is kept nowhere, such as `thread.deleted`, has none.
    pub cursor: Option<String>,
}

impl Told {
    /// The record.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.json)
            .map_err(|err| ClientError::Failed(format!("an event is not as expected: {err}")))
    }
}

/// Where somebody stands in a stream.
pub(super) enum Place {
    /// Behind an event of one log; `last_word` is the one that nothing follows.
    Log { after: Seq, last_word: &'static str },
    /// Behind a cursor that only the server can read, or nowhere yet.
    Feed { after: Option<String> },
}

/// What the events of a log are linked by.
#[derive(Deserialize)]
struct Link {
    prev: Option<Seq>,
}

#[derive(Deserialize)]
struct LastPlace {
    after: String,
}

impl Place {
    /// The event, if it is one that this reader has not had. An error for one that does not follow the last one.
    fn take(&mut self, event: sse::Event) -> Result<Option<Told>, ClientError> {
        let told = |cursor| Ok(Some(Told { name: event.name.clone(), json: text(event.data.clone())?, cursor }));
        match self {
            Self::Log { after, last_word } => {
                // `stream.gap` and `stream.end` have no seq: the connection ends, and the cursor is ours already.
                let seq = event.id.as_deref().and_then(|id| id.parse::<Seq>().ok());
                // A stream that is resumed may repeat; a reader may not notice.
                let Some(seq) = seq.filter(|seq| seq > after) else { return Ok(None) };
                let prev = serde_json::from_slice(&event.data).ok().and_then(|link: Link| link.prev);
                if prev.is_some_and(|prev| prev != *after) && event.name != *last_word {
                    return Err(ClientError::Failed(format!("event {seq} does not follow {after}")));
                }
                *after = seq;
                told(None)
            }
            Self::Feed { after } if is_farewell(&event.name) => {
                if let Ok(last) = serde_json::from_slice::<LastPlace>(&event.data) {
                    *after = Some(last.after);
                }
                Ok(None)
            }
            Self::Feed { after } => {
                *after = event.id.clone().or(after.take());
                told(event.id.clone())
            }
        }
    }

    /// The place that a server said without an event: whoever comes back from there has missed nothing.
    fn said(&mut self, id: Option<&str>) {
        if let (Self::Feed { after }, Some(id)) = (self, id) {
            *after = Some(id.to_owned());
        }
    }

    fn is_last(&self, name: &str) -> bool {
        matches!(self, Self::Log { last_word, .. } if *last_word == name)
    }

    fn query(&self) -> Option<String> {
        match self {
            Self::Log { after, .. } => Some(after.to_string()),
            Self::Feed { after } => after.clone(),
        }
    }
}

/// The events behind a place, each once and in order, over as many connections as it takes.
pub struct Follow {
    client: Client,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    place: Place,
    /// There is no connection although there should be one.
    lost: Arc<AtomicBool>,
    open: Option<(Response, Parser)>,
    /// When the open connection was made.
    since: Instant,
    ready: VecDeque<sse::Event>,
    /// Connections in a row that brought nothing and did not last.
    failures: u32,
    /// The server said that the connection ends, and where to go on.
    over: bool,
    /// The last word was said.
    gone: bool,
    /// Times that an event did not follow the last one.
    gaps: u64,
}

impl Follow {
    pub(super) fn new(client: Client, path: Vec<String>, query: Vec<(&'static str, String)>, place: Place) -> Self {
        Self {
            client,
            path,
            query,
            place,
            lost: Arc::default(),
            open: None,
            since: Instant::now(),
            ready: VecDeque::new(),
            failures: 0,
            over: false,
            gone: false,
            gaps: 0,
        }
    }

    /// Whether the connection is lost, for whoever waits for what it brings.
    pub fn lost(&self) -> Arc<AtomicBool> {
        self.lost.clone()
    }

    /// How often an event came that did not follow the last one, so that another connection had to bring what was missing.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// The same, read as records of one kind.
    pub fn records<T: DeserializeOwned>(self) -> Events<T> {
        Events { follow: self, of: PhantomData }
    }

    /// The next event; `None` when what it is about was deleted.
    /// Cancel-safe: what a dropped call had read is kept.
    pub async fn next(&mut self) -> Result<Option<Told>, ClientError> {
        loop {
            while let Some(event) = self.ready.pop_front() {
                self.gone |= self.place.is_last(&event.name);
                self.over |= is_farewell(&event.name);
                match self.place.take(event) {
                    Ok(Some(told)) => {
                        self.failures = 0;
                        return Ok(Some(told));
                    }
                    Ok(None) => {}
                    // Something is missing: another connection may bring it.
                    Err(err) => {
                        self.gaps += 1;
                        self.ready.clear();
                        self.open = None;
                        if self.failures >= RECONNECTS {
                            return Err(err);
                        }
                        self.pause().await?;
                    }
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
                Err(err @ ClientError::Refused(Refusal { status: ..=428 | 430..500, .. })) => return Err(err),
                Err(err) if self.failures >= RECONNECTS => return Err(err),
                Err(_) => self.pause().await?,
            }
        }
    }

    /// Reads a piece of the open stream, opening one first if there is none. `false` when the stream ended.
    async fn read(&mut self) -> Result<bool, ClientError> {
        if self.open.is_none() {
            self.open = Some((self.connect().await?, Parser::new(BOUNDS)));
            (self.since, self.over) = (Instant::now(), false);
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
                // Whatever was handed out stands before it: there is nothing left that is ready.
                if !self.over {
                    self.place.said(parser.last_id());
                }
                self.open = None;
                if self.since.elapsed() > LASTING {
                    self.failures = 0;
                }
                Ok(false)
            }
        }
    }

    async fn connect(&self) -> Result<Response, ClientError> {
        let after = self.place.query().map(|after| ("after", after));
        let query: Vec<_> = self.query.iter().cloned().chain(after).collect();
        let path: Vec<_> = self.path.iter().map(String::as_str).collect();
        let request = self.client.request(Method::GET, &path, &query);
        self.client.send_once(request.header(header::ACCEPT, "text/event-stream")).await
    }

    /// Waits before the next connection: not at all after progress, then longer.
    async fn pause(&mut self) -> Result<(), ClientError> {
        if self.failures > RECONNECTS {
            return Err(self.client.unreachable("the stream ends again and again".to_owned()));
        }
        let wait = Duration::from_millis(u64::from(self.failures) * 100).min(Duration::from_secs(1));
        self.failures += 1;
        self.lost.store(true, Ordering::Relaxed);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What [`Follow`] brings, as records.
pub struct Events<T> {
    follow: Follow,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Events<T> {
    /// The next event; `None` when what it is about was deleted. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        self.follow.next().await?.map(|told| told.read()).transpose()
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<T, ClientError>> {
        stream::try_unfold(self, async |mut events| Ok(events.next().await?.map(|event| (event, events))))
    }
}

/// Whether nothing follows on this connection.
fn is_farewell(name: &str) -> bool {
    matches!(name, "stream.gap" | "stream.end")
}

fn text(bytes: Vec<u8>) -> Result<String, ClientError> {
    String::from_utf8(bytes).map_err(|_| ClientError::Failed("an event is not UTF-8".to_owned()))
}

/// A stream as a client follows it, for targets of `fuzz/`: what it hands out follows what it had.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn followed(data: &[u8]) {
    let (mut parser, mut events) = (Parser::new(BOUNDS), Vec::new());
    let _ = parser.push(data, &mut events);
    let mut log = Place::Log { after: 0, last_word: "thread.deleted" };
    let mut feed = Place::Feed { after: None };
    for event in events {
        let before = log.query();
        if let Ok(Some(told)) = log.take(event.clone()) {
            assert_ne!(log.query(), before, "it moved on");
            let _ = (log.is_last(&told.name), told.read::<serde_json::Value>());
        }
        let _ = feed.take(event);
        feed.said(parser.last_id());
    }
}
