//! Threads: make, list, read, change, delete; the snapshot.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use raddle_actors::{Archived, Done, ThreadQuery};
use raddle_domain::{
    id::{Seq, ThreadId},
    record::{Thread, ThreadStatus},
};

use super::{
    Gateway,
    cursor::{self, List as Of},
    openapi::{IfMatch, Once, Paged, Reads, Writes},
    problem::Problem,
    request::{Caller, OfThread, Params, Verb},
    wire::{self, NewThread, Nothing, PatchThread, Snapshot, ThreadList, Unavailable, positions},
};

/// Says that a reply was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What a list may filter by: longer texts match no title.
const QUERY_CHARS: usize = 256;

/// Make a thread.
#[utoipa::path(
    post, path = "/v1/threads", tag = "threads", request_body = NewThread,
    params(Once),
    responses(
        (status = 201, body = Thread, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn create_thread(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Verb { body, call }: Verb<NewThread>,
) -> Result<Response, Problem> {
    let new = body.into_command(&**gateway.runtime.models())?;
    gateway.check_workspace(caller.tenant, new.workspace.as_deref()).await?;
    gateway.check_run(caller.tenant, new.run_id).await?;
    let done = gateway.runtime.create_thread(caller.tenant, new, call).await?;
    let location = format!("/v1/threads/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

/// List threads, most recently updated first.
#[utoipa::path(
    get, path = "/v1/threads", tag = "threads",
    params(
        Paged,
        ("archived" = inline(Option<wire::Archived>), Query, description = "`false` (default), `true` (all), `only`"),
        ("status" = Option<ThreadStatus>, Query),
        ("q" = Option<String>, Query, max_length = 256, description = "Part of the title or of the id, in any case"),
    ),
    responses((status = 200, body = ThreadList, description = "A page"), Reads),
)]
pub async fn list_threads(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<ThreadList>, Problem> {
    let of = Of::Threads(caller.tenant);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    let status = params.word("status", &STATUSES)?;
    let archived = [("false", Archived::Without), ("true", Archived::With), ("only", Archived::Only)];
    let archived = params.word("archived", &archived)?.unwrap_or(match status {
        // Whoever asks for archived threads by status wants to see them.
        Some(ThreadStatus::Archived) => Archived::Only,
        _ => Archived::Without,
    });
    let q = params.text("q").filter(|q| !q.is_empty());
    if q.as_ref().is_some_and(|q| q.chars().count() > QUERY_CHARS) {
        return Err(Problem::invalid("q", format_args!("has more than {QUERY_CHARS} characters")));
    }
    params.end()?;
    let query = ThreadQuery { archived, status, q, after, limit };
    let page = gateway.runtime.threads(caller.tenant, query).await?;
    let next_cursor = page.next.map(|place| cursor::encode(of, &place));
    let unavailable = page.unavailable.into_iter().map(|(id, detail)| Unavailable { id, detail }).collect();
    Ok(Json(ThreadList { data: page.data, next_cursor, unavailable }))
}

const STATUSES: [(&str, ThreadStatus); 4] = [
    (ThreadStatus::Idle.as_str(), ThreadStatus::Idle),
    (ThreadStatus::Running.as_str(), ThreadStatus::Running),
    (ThreadStatus::AwaitingApproval.as_str(), ThreadStatus::AwaitingApproval),
    (ThreadStatus::Archived.as_str(), ThreadStatus::Archived),
];

/// Read a thread.
#[utoipa::path(
    get, path = "/v1/threads/{thread}", tag = "threads", params(("thread" = ThreadId, Path)),
    responses((status = 200, body = Thread, description = "As of its `seq`", headers(("ETag" = String))), Reads),
)]
pub async fn get_thread(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let thread = gateway.runtime.thread(key).await?;
    Ok((etag(thread.seq), Json(thread)).into_response())
}

/// Change a thread's settings, or archive it.
#[utoipa::path(
    patch, path = "/v1/threads/{thread}", tag = "threads", request_body = PatchThread,
    params(
        ("thread" = ThreadId, Path),
        IfMatch,
    ),
    responses((status = 200, body = Thread, description = "As changed", headers(("ETag" = String))), Writes),
)]
pub async fn patch_thread(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body, call }: Verb<PatchThread>,
) -> Result<Response, Problem> {
    let patch = body.into_command(&**gateway.runtime.models())?;
    gateway.check_workspace(key.tenant, patch.workspace.as_ref().and_then(Option::as_deref)).await?;
    gateway.check_run(key.tenant, patch.run_id.flatten()).await?;
    let done = gateway.runtime.patch_thread(key, patch, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

/// Delete a thread with every record and event of it.
#[utoipa::path(
    delete, path = "/v1/threads/{thread}", tag = "threads",
    params(
        ("thread" = ThreadId, Path),
        IfMatch,
    ),
    responses((status = 204, description = "Gone"), Writes),
)]
pub async fn delete_thread(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.delete_thread(key, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read a thread whole. Its events after `seq` continue it exactly.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/snapshot", tag = "threads", params(("thread" = ThreadId, Path)),
    responses((status = 200, body = Snapshot, description = "As of `seq`", headers(("ETag" = String))), Reads),
)]
pub async fn get_snapshot(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let whole = gateway.runtime.snapshot(key).await?;
    let snapshot = Snapshot {
        thread: whole.thread,
        turns: whole.turns,
        items: whole.items,
        approvals: whole.approvals,
        inbox: positions(whole.inbox),
        seq: whole.seq,
    };
    Ok((etag(snapshot.seq), Json(snapshot)).into_response())
}

/// The reply to a command: its record, where the thread stands, and whether all this was said before.
pub(super) fn reply<T, B: IntoResponse>(
    status: StatusCode,
    done: Done<T>,
    location: Option<String>,
    body: impl FnOnce(T) -> B,
) -> Response {
    let Done { value, seq, replayed } = done;
    let mut response = (status, etag(seq), body(value)).into_response();
    let headers = response.headers_mut();
    if let Some(location) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The validator that `If-Match` takes back.
pub(super) fn etag(seq: Seq) -> [(HeaderName, String); 1] {
    [(header::ETAG, format!("\"{seq}\""))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replayed_reply_says_so() {
        let done = |replayed| Done { value: 1, seq: 9, replayed };
        let fresh = reply(StatusCode::CREATED, done(false), Some("/v1/x".into()), Json);
        assert_eq!(fresh.headers()["etag"], "\"9\"");
        assert_eq!(fresh.headers()["location"], "/v1/x");
        assert!(!fresh.headers().contains_key(REPLAYED));
        assert_eq!(reply(StatusCode::CREATED, done(true), None, Json).headers()[REPLAYED], "true");
    }
}
