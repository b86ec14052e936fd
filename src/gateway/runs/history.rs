//! A run as it was: checkpoints, replay, and its log as lines.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use raddle_actors::Exported;
use raddle_domain::{
    id::{CheckpointId, RunId, Seq},
    run::{Checkpoint, Image, Run, drift::Drift},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::super::{
    Gateway,
    openapi::{IfMatch, Once, Reads, Writes},
    problem::{Code, Problem},
    request::{Caller, OfRunCheckpoint, OfTenant, Params, Verb, imported},
    threads::reply,
    wire::{List, Nothing},
};

/// Bytes of the lines of one run.
pub const IMPORT_BYTES: usize = 256 * 1024 * 1024;
/// How long they may take.
pub const IMPORT_TIME: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveRunCheckpoint {
    pub reason: Option<String>,
}

/// A checkpoint and what it holds.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointCopy {
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// Everything that was true of the run.
    #[schema(value_type = Object)]
    pub image: Image,
}

/// A run as its log makes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunReplay {
    pub run_id: RunId,
    #[schema(required)]
    pub from_checkpoint: Option<CheckpointId>,
    #[schema(required)]
    pub checkpoint_seq: Option<Seq>,
    pub upto_seq: Seq,
    pub events_applied: u64,
    /// Everything that is true of the run then.
    #[schema(value_type = Object)]
    pub replay: Value,
    /// What differs from what is kept; `null` where only a part of the log was replayed.
    #[schema(required)]
    pub drift: Option<Drift>,
}

/// Keep a copy of the run as it is.
#[utoipa::path(
    post, path = "/v1/runs/{run}/checkpoints", tag = "runs", request_body = SaveRunCheckpoint,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 201, body = Checkpoint, description = "Kept, and durable",
            headers(("ETag" = String), ("Location" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn save_run_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<SaveRunCheckpoint>,
) -> Result<Response, Problem> {
    let done = gateway.runtime.save_run_checkpoint(tenant, run, body.reason, call).await?;
    let location = format!("/v1/runs/{run}/checkpoints/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

/// List the checkpoints of a run, oldest first.
#[utoipa::path(
    get, path = "/v1/runs/{run}/checkpoints", tag = "runs", params(("run" = RunId, Path)),
    responses((status = 200, body = List<Checkpoint>, description = "All of them"), Reads),
)]
pub async fn list_run_checkpoints(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    params: Params,
) -> Result<Json<List<Checkpoint>>, Problem> {
    params.end()?;
    Ok(Json(List { data: gateway.runtime.run_checkpoints(tenant, run).await?, next_cursor: None }))
}

/// Read a checkpoint with its copy.
#[utoipa::path(
    get, path = "/v1/runs/{run}/checkpoints/{checkpoint}", tag = "runs",
    params(("run" = RunId, Path), ("checkpoint" = CheckpointId, Path)),
    responses((status = 200, body = CheckpointCopy, description = "The run as it was at `seq`"), Reads),
)]
pub async fn get_run_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    OfRunCheckpoint(tenant, run, checkpoint): OfRunCheckpoint,
    params: Params,
) -> Result<Json<CheckpointCopy>, Problem> {
    params.end()?;
    let (checkpoint, image) = gateway.runtime.run_checkpoint(tenant, run, checkpoint).await?;
    Ok(Json(CheckpointCopy { checkpoint, image }))
}

/// Delete a checkpoint.
#[utoipa::path(
    delete, path = "/v1/runs/{run}/checkpoints/{checkpoint}", tag = "runs",
    params(("run" = RunId, Path), ("checkpoint" = CheckpointId, Path), IfMatch),
    responses((status = 204, description = "Gone"), Writes),
)]
pub async fn delete_run_checkpoint(
    State(gateway): State<Arc<Gateway>>,
    OfRunCheckpoint(tenant, run, checkpoint): OfRunCheckpoint,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.delete_run_checkpoint(tenant, run, checkpoint, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a run that begins as this one was.
///
/// Its tasks that were leased can be claimed again. The ledger stays with the other run.
#[utoipa::path(
    post, path = "/v1/runs/{run}/checkpoints/{checkpoint}/restore", tag = "runs",
    params(("run" = RunId, Path), ("checkpoint" = CheckpointId, Path), Once),
    responses(
        (status = 201, body = Run, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn restore_run(
    State(gateway): State<Arc<Gateway>>,
    OfRunCheckpoint(tenant, run, checkpoint): OfRunCheckpoint,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<Response, Problem> {
    let done = gateway.runtime.restore_run(tenant, run, checkpoint, call).await?;
    let location = format!("/v1/runs/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

/// Make the run from its log alone, and compare it with what is kept.
#[utoipa::path(
    get, path = "/v1/runs/{run}/replay", tag = "runs",
    params(
        ("run" = RunId, Path),
        ("upto_seq" = Option<u64>, Query, description = "The last event that counts; the newest unless given"),
        ("from_checkpoint" = Option<CheckpointId>, Query, description = "Begin with this copy; with nothing unless given"),
    ),
    responses((status = 200, body = RunReplay, description = "The run as the log makes it, and what differs"), Reads),
)]
pub async fn replay_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let upto = params.take("upto_seq", "a seq, such as 12")?;
    let from = params.take("from_checkpoint", "the id of a checkpoint")?;
    params.end()?;
    let replayed = gateway.runtime.replay_run(tenant, run, upto, from).await?;
    let replay = RunReplay {
        run_id: run,
        from_checkpoint: replayed.from.as_ref().map(|checkpoint| checkpoint.id),
        checkpoint_seq: replayed.from.as_ref().map(|checkpoint| checkpoint.seq),
        upto_seq: replayed.image.run.last_event_seq,
        events_applied: replayed.events,
        replay: serde_json::json!(replayed.image),
        drift: replayed.drift,
    };
    Ok(Json(replay).into_response())
}

/// Read the log of a run as lines: a header, its events, an end with their digest.
#[utoipa::path(
    get, path = "/v1/runs/{run}/export", tag = "runs", params(("run" = RunId, Path)),
    responses((status = 200, description = "JSON, line by line", content((String = "application/x-ndjson"))), Reads),
)]
pub async fn export_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let exported = gateway.runtime.export_run(tenant, run).await?;
    let lines = stream::unfold(Some(exported), |open| async {
        let mut exported: Exported = open?;
        match exported.next().await {
            Ok(Some(lines)) => Some((Ok::<_, Infallible>(lines), Some(exported))),
            Ok(None) => None,
            Err(error) => {
                // What was sent has no end, which whoever reads it notices.
                tracing::warn!(%error, "an export was cut");
                None
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Make a run of the lines of another: its plan, its tasks and its blackboard.
///
/// The lines are checked as a whole. What they say that tools did is left out: this server has not seen it.
#[utoipa::path(
    post, path = "/v1/runs/import", tag = "runs",
    request_body(content = String, content_type = "application/x-ndjson", description = "As an export gives them"),
    params(Once),
    responses(
        (status = 201, body = Run, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn import_run(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    params.end()?;
    let (lines, call) = imported(&headers, body, "/v1/runs/import", IMPORT_BYTES, IMPORT_TIME).await?;
    if lines.is_empty() {
        return Err(Problem::new(Code::BadRequest, "there are no lines"));
    }
    let done = gateway.runtime.import_run(tenant, lines, call).await?;
    let location = format!("/v1/runs/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}
