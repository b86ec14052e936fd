//! A thread's events: a stream that replays and goes on live, or a page. How streams are sent, for every route.
//!
//! A stream is made of shared bytes. What was committed while it is open is framed once for all watchers; what
//! is replayed is framed from the stored bytes; nothing is parsed. A stream ends on its own when the runtime
//! says so, which is what lets a graceful shutdown finish.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt, stream};
use raddle_actors::{Error, Next, Subscription, batch::Audience};
use raddle_domain::id::{Seq, ThreadId};

use super::{
    Gateway, frame,
    openapi::Reads,
    problem::Problem,
    request::{OfThread, Params, digits},
    wire::EventPage,
};

const SILENCE: Duration = Duration::from_secs(15);

/// Read or follow a thread's events.
///
/// With `Accept: text/event-stream` a stream: what is stored after the cursor, then what happens.
/// Otherwise a page.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/events", tag = "events",
    params(
        ("thread" = ThreadId, Path),
        ("after" = Option<u64>, Query, description = "The last `seq` seen; from the beginning unless given"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Of a page; 50 unless given"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same as `after`, and stronger"),
        ("Accept" = Option<String>, Header, description = "`text/event-stream` for a stream"),
    ),
    responses(
        (status = 200, description = "A page, or a stream of events", content(
            (EventPage = "application/json"),
            (String = "text/event-stream"),
        )),
        Reads,
    ),
)]
pub async fn list_events(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = params.limit()?;
    let after = params.text("after").map(|text| seq("after", &text)).transpose()?;
    params.end()?;
    let last = headers.get("last-event-id").map(|value| seq("Last-Event-ID", value.to_str().unwrap_or_default()));
    let after = last.transpose()?.or(after).unwrap_or(0);
    if !wants_stream(&headers) {
        let events = gateway.runtime.events(key, after, limit).await?;
        let page = frame::page(&events.chunks, events.head);
        return Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response());
    }
    Ok(stream(gateway.runtime.subscribe(key, after).await?))
}

/// A place in the log, as the caller wrote it.
fn seq(name: &str, text: &str) -> Result<Seq, Problem> {
    digits(text).ok_or_else(|| Problem::invalid(name, "must be a seq, such as 12"))
}

/// Whether the caller names the stream's media type and does not refuse it with `q=0`.
pub fn wants_stream(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    ranges.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("text/event-stream"));
        let refused = parts.any(|part| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.and_then(|weight| weight.trim().parse().ok()).is_some_and(|weight: f32| weight <= 0.0)
        });
        named && !refused
    })
}

/// What a stream is made of.
pub trait Pieces: Send + 'static {
    /// The next bytes, and whether anything follows. Cancel-safe: a dropped call loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<(Bytes, bool), Error>> + Send;

    /// Said at the beginning, and whenever nothing else was for a while.
    fn place(&self) -> Bytes {
        Bytes::new()
    }
}

/// A response that goes on until there is nothing more to say.
pub fn stream(pieces: impl Pieces) -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-store"),
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::from_stream(body(pieces))).into_response()
}

fn body(pieces: impl Pieces) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let begin = [frame::PREAMBLE, pieces.place()];
    let rest = stream::unfold(Some(pieces), |open| async move {
        let mut pieces = open?;
        let Ok(next) = tokio::time::timeout(SILENCE, pieces.next()).await else {
            return Some(([frame::KEEP_ALIVE, pieces.place()], Some(pieces)));
        };
        match next {
            Ok((bytes, goes_on)) => Some(([bytes, Bytes::new()], goes_on.then_some(pieces))),
            Err(err) => {
                // The client comes back with its cursor, and meets the error as a reply if it still stands.
                tracing::warn!(error = %err, "a stream was cut");
                None
            }
        }
    });
    let all = stream::iter([begin]).chain(rest).flat_map(stream::iter);
    all.filter(|bytes| std::future::ready(!bytes.is_empty())).map(Ok)
}

impl Pieces for Subscription {
    async fn next(&mut self) -> Result<(Bytes, bool), Error> {
        Subscription::next(self).await.map(piece)
    }
}

/// What to send, and whether anything follows.
fn piece(next: Next) -> (Bytes, bool) {
    match next {
        Next::Stored(chunks) => (frame::replay(&chunks), true),
        Next::Live { batch, skip: 0 } => {
            (batch.rendered(Audience::Thread, |batch| frame::frames(&batch.chunk, 0)), true)
        }
        // Only the first batch after a replay can overlap it: not worth sharing.
        Next::Live { batch, skip } => (frame::frames(&batch.chunk, skip), true),
        Next::Gap { after } => (frame::gap(after), false),
        Next::Shutdown { after } => (frame::shutdown(after), false),
        Next::Deleted => (Bytes::new(), false),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::HeaderValue;
    use raddle_actors::batch::Batch;
    use raddle_domain::{
        id::{TenantId, ThreadKey},
        ports::{Chunk, StoredEvent},
    };
    use uuid::Uuid;

    use super::*;

    fn chunk(first: Seq, count: usize) -> Chunk {
        let event = StoredEvent { name: "item.delta".into(), json: (&b"{}"[..]).into() };
        Chunk { first, events: vec![event; count] }
    }

    #[test]
    fn only_the_streams_own_media_type_asks_for_a_stream() {
        let asks = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
            wants_stream(&headers)
        };
        for stream in ["text/event-stream", "Text/Event-Stream; q=0.5", "application/json, text/event-stream"] {
            assert!(asks(stream), "{stream}");
        }
        for page in ["*/*", "application/json", "text/*", "text/event-stream;q=0", "text/event-streams", ""] {
            assert!(!asks(page), "{page}");
        }
        assert!(!wants_stream(&HeaderMap::new()));
    }

    #[test]
    fn a_place_in_the_log_is_digits_only() {
        assert_eq!(seq("after", "0"), Ok(0));
        for bad in ["", "-1", "+1", "1.0", "x", "99999999999999999999"] {
            assert!(seq("after", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_committed_batch_is_framed_once_for_all_watchers() {
        let key = ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::new(Uuid::from_u128(1)) };
        let batch = Arc::new(Batch::new(key, chunk(4, 2), 1));
        let live = |skip| piece(Next::Live { batch: batch.clone(), skip }).0;
        assert_eq!(live(0).as_ptr(), live(0).as_ptr());
        assert_eq!(live(1), "id: 5\nevent: item.delta\ndata: {}\n\n");
        assert!(live(0).starts_with(b"id: 4\n"));
    }

    #[test]
    fn nothing_follows_the_last_word() {
        assert!(piece(Next::Stored(vec![chunk(1, 1), chunk(2, 1)])).1);
        for last in [Next::Gap { after: 3 }, Next::Shutdown { after: 3 }, Next::Deleted] {
            assert!(!piece(last.clone()).1, "{last:?}");
        }
    }
}
