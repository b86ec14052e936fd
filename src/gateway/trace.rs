//! What threads are told, as lines of JSON, for a replay: as it happens, or as it must have been.
//!
//! A recording goes on until its reader goes, its time is over or the server goes down. One whose reader cannot keep up
//! is cut: what came until then is whole.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use raddle_actors::{Recording, Whose};
use raddle_domain::id::{ThreadId, ThreadKey};
use tokio::time::{Instant, timeout};

use super::{
    Gateway,
    openapi::Reads,
    problem::Problem,
    request::{Caller, OfThread, Params},
};
use crate::record;

/// A reader hears at least every so often that the server is there: an empty line.
const SILENCE: Duration = Duration::from_secs(15);
/// The longest recording that ends by itself.
const LONGEST: u64 = 24 * 60 * 60;

/// Record what the tenant's threads are told, from now on.
///
/// JSON Lines: first what limits and prices hold, then a line for everything that a thread is told once what came of it
/// is durable. A thread that was there before, or is a fork, begins with its log so far. Runs are not recorded. An empty
/// line means nothing. What is recorded holds everything that people said to models and that models and tools answered.
#[utoipa::path(
    get, path = "/v1/trace", tag = "events",
    params(
        ("thread" = Option<ThreadId>, Query, description = "Only this thread. An id that there is not says nothing, and is not an error"),
        ("seconds" = Option<u32>, Query, minimum = 1, maximum = 86400, description = "How long; until the reader goes unless given"),
    ),
    responses(
        (status = 200, description = "Lines as they come; one that was cut off has no end", content((String = "application/x-ndjson"))),
        Reads,
    ),
)]
pub async fn record_tenant(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    params: Params,
) -> Result<Response, Problem> {
    record(&gateway, Whose { tenant: Some(tenant), thread: None }, params)
}

/// Record what the threads of all tenants are told, from now on.
///
/// See `GET /v1/trace`.
#[utoipa::path(
    get, path = "/v1/admin/trace", tag = "admin",
    params(
        ("thread" = Option<ThreadId>, Query, description = "Only this thread. An id that there is not says nothing, and is not an error"),
        ("seconds" = Option<u32>, Query, minimum = 1, maximum = 86400, description = "How long; until the reader goes unless given"),
    ),
    responses(
        (status = 200, description = "Lines as they come; one that was cut off has no end", content((String = "application/x-ndjson"))),
        Reads,
    ),
)]
pub async fn record_all(State(gateway): State<Arc<Gateway>>, params: Params) -> Result<Response, Problem> {
    record(&gateway, Whose::default(), params)
}

/// What a stored thread must have been told, as a trace.
///
/// Found from its log: what changed nothing left no trace. What cannot be found is given as the log that it left.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/trace", tag = "threads", params(("thread" = ThreadId, Path)),
    responses(
        (status = 200, description = "Lines, as `GET /v1/trace` gives them", content((String = "application/x-ndjson"))),
        Reads,
    ),
)]
pub async fn derive_trace(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    Ok(lines(Body::from(derived(&gateway, key).await?)))
}

async fn derived(gateway: &Gateway, key: ThreadKey) -> Result<String, Problem> {
    let (header, derived) = gateway.runtime.derive(key).await?;
    Ok(format!("{header}\n{}", record::text(&derived.lines)))
}

fn lines(body: Body) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

fn record(gateway: &Gateway, whose: Whose, mut params: Params) -> Result<Response, Problem> {
    let thread = params.take("thread", "the id of a thread")?;
    let seconds: Option<u64> = params.take("seconds", "a number of seconds")?;
    params.end()?;
    if seconds.is_some_and(|seconds| !(1..=LONGEST).contains(&seconds)) {
        return Err(Problem::invalid("seconds", "must be between 1 and 86400"));
    }
    let recording = gateway.runtime.record(Whose { thread, ..whose })?;
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = Bytes::from(format!("{}\n", gateway.runtime.trace_header()));
    Ok(lines(Body::from_stream(stream::unfold(Some((Some(first), recording, until)), |open| async move {
        let (first, mut recording, until) = open?;
        match first {
            Some(first) => Some((Ok(first), Some((None, recording, until)))),
            None => match next(&mut recording, until).await {
                Ok(Some(piece)) => Some((Ok(piece), Some((None, recording, until)))),
                Ok(None) => None,
                Err(why) => Some((Err(why), None)),
            },
        }
    }))))
}

/// The next piece; none when the time is over, or the server goes down.
async fn next(recording: &mut Recording, until: Option<Instant>) -> io::Result<Option<Bytes>> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    if left.is_some_and(|left| left.is_zero()) {
        return Ok(None);
    }
    match timeout(left.map_or(SILENCE, |left| left.min(SILENCE)), recording.next()).await {
        Ok(Ok(lines)) => Ok(lines.map(|lines| record::text(&lines).into())),
        Ok(Err(why)) => {
            tracing::error!(%why, "a recording ends");
            Err(io::Error::other(why))
        }
        Err(_) => Ok(Some(Bytes::from_static(b"\n"))),
    }
}
