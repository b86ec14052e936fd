//! New threads that continue a conversation from one of its settled places, and the places that have names.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode, response::Response};
use raddle_actors::{Call, ForkAt};
use raddle_domain::{
    id::{ThreadId, ThreadKey},
    record::{Checkpoint, Thread},
};

use super::{
    Gateway,
    openapi::{IfMatch, Once, Reads, Writes},
    problem::Problem,
    request::{OfCheckpoint, OfThread, Params, Verb},
    threads::reply,
    wire::{ForkThread, List, Nothing, RestoreCheckpoint, SaveCheckpoint},
};

/// Make a thread that shares this one's history up to a settled place.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/fork", tag = "threads", request_body = ForkThread,
    params(("thread" = ThreadId, Path), Once, IfMatch),
    responses(
        (status = 201, body = Thread, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn fork_thread(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body, call }: Verb<ForkThread>,
) -> Result<Response, Problem> {
    let (at, title) = body.into_place()?;
    fork(&gateway, key, at, title, call).await
}

async fn fork(
    gateway: &Gateway,
    key: ThreadKey,
    at: ForkAt,
    title: Option<String>,
    call: Call,
) -> Result<Response, Problem> {
    let done = gateway.runtime.fork(key, at, title, call).await?;
    let location = format!("/v1/threads/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

/// Name the thread's last settled moment.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/checkpoints", tag = "threads", request_body = SaveCheckpoint,
    params(("thread" = ThreadId, Path), Once, IfMatch),
    responses(
        (status = 201, body = Checkpoint, description = "Named, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn save_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body, call }: Verb<SaveCheckpoint>,
) -> Result<Response, Problem> {
    let done = gateway.runtime.save_checkpoint(key, body.into_name()?, call).await?;
    Ok(reply(StatusCode::CREATED, done, None, Json))
}

/// List a thread's checkpoints, oldest first. They are few enough for one page.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/checkpoints", tag = "threads", params(("thread" = ThreadId, Path)),
    responses((status = 200, body = List<Checkpoint>, description = "All of them"), Reads),
)]
pub async fn list_checkpoints(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    params: Params,
) -> Result<Json<List<Checkpoint>>, Problem> {
    params.end()?;
    Ok(Json(List { data: gateway.runtime.checkpoints(key).await?, next_cursor: None }))
}

/// Forget a checkpoint. Threads that began there stay as they are.
#[utoipa::path(
    delete, path = "/v1/threads/{thread}/checkpoints/{name}", tag = "threads",
    params(("thread" = ThreadId, Path), ("name" = String, Path), IfMatch),
    responses((status = 204, description = "Forgotten"), Writes),
)]
pub async fn delete_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    OfCheckpoint(key, name): OfCheckpoint,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.delete_checkpoint(key, name, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a thread that goes on from a checkpoint; the one it was taken from stays as it is.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/checkpoints/{name}/restore", tag = "threads", request_body = RestoreCheckpoint,
    params(("thread" = ThreadId, Path), ("name" = String, Path, description = "`latest` is the newest one"), Once, IfMatch),
    responses(
        (status = 201, body = Thread, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn restore_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    OfCheckpoint(key, name): OfCheckpoint,
    Verb { body, call }: Verb<RestoreCheckpoint>,
) -> Result<Response, Problem> {
    fork(&gateway, key, ForkAt::Checkpoint(name), body.title, call).await
}
