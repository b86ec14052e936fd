//! What tools did for a run, and taking back what they did to files. Nothing here writes the ledger.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use raddle_actors::{RollbackAsked, RollbackEnded, RollbackEntry, RollbackWhat};
use raddle_domain::{
    id::{OperationId, RunId, Seq},
    run::{
        LedgerRecord, LedgerSummary, Mutation, RollbackPreview, command::AskRollback, event::RollbackBlocked, event_id,
    },
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::{
        Gateway, cursor,
        openapi::{IfMatch, Once, Paged, Reads, Writes},
        problem::{Code, Problem},
        request::{OfTenant, Params, Verb},
        threads::reply,
        wire::{List, required},
    },
    of_run,
};

/// How long the caller of a rollback waits for its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// An effect that a tool had, or may have had.
#[derive(Debug, Serialize, ToSchema)]
pub struct LedgerEvent {
    pub seq: Seq,
    pub ts: UnixMs,
    pub event_id: String,
    pub record: LedgerRecord,
}

/// A part of a ledger.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ledger {
    pub data: Vec<LedgerEvent>,
    #[schema(required)]
    pub next_cursor: Option<String>,
    /// Of all of it.
    pub summary: LedgerSummary,
}

/// What is to be taken back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteRollback {
    /// Of mutations, as `rollback-preview` lists them.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 1000)]
    pub event_ids: Option<Vec<String>>,
    /// `rollback`.
    #[schema(value_type = String)]
    pub confirm: Option<String>,
    /// `allow_rollback_execution`.
    pub policy_ack: Option<String>,
}

/// What became of a rollback.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolledBack {
    /// `false` while files are still being put back: the history tells the end.
    pub applied: bool,
    pub operation_id: OperationId,
    /// Newest first.
    pub event_ids: Vec<String>,
    /// Files that are what they were.
    pub files: u32,
}

/// How an attempt stands.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollbackOutcome {
    Started,
    Applied,
    Blocked,
}

/// An attempt to take something back, or its end.
#[derive(Debug, Serialize, ToSchema)]
pub struct RollbackEvent {
    pub seq: Seq,
    pub ts: UnixMs,
    pub event_id: String,
    pub outcome: RollbackOutcome,
    pub selected_event_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing_event_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u32>,
}

impl From<RollbackEntry> for RollbackEvent {
    fn from(entry: RollbackEntry) -> Self {
        let (outcome, selected_event_ids, reason, missing_event_ids, files) = match entry.what {
            RollbackWhat::Started(rollback) => (RollbackOutcome::Started, rollback.event_ids, None, vec![], None),
            RollbackWhat::Applied(rollback, files) => {
                (RollbackOutcome::Applied, rollback.event_ids, None, vec![], Some(files))
            }
            RollbackWhat::Blocked(RollbackBlocked { event_ids, reason, missing_event_ids }) => {
                (RollbackOutcome::Blocked, event_ids, Some(reason), missing_event_ids, None)
            }
        };
        let RollbackEntry { seq, ts, .. } = entry;
        Self { seq, ts, event_id: event_id(seq), outcome, selected_event_ids, reason, missing_event_ids, files }
    }
}

fn blocked(blocked: RollbackBlocked) -> Problem {
    let RollbackBlocked { event_ids, reason, missing_event_ids } = blocked;
    Problem::new(Code::RollbackBlocked, format!("nothing was taken back: {reason}"))
        .with("selected_event_ids", event_ids)
        .with("missing_event_ids", missing_event_ids)
        .with("reason", reason)
}

/// List what tools did for the run, oldest first.
#[utoipa::path(
    get, path = "/v1/runs/{run}/ledger", tag = "runs", params(("run" = RunId, Path), Paged),
    responses((status = 200, body = Ledger, description = "A page, and what all of it comes to"), Reads),
)]
pub async fn get_ledger(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    mut params: Params,
) -> Result<Json<Ledger>, Problem> {
    let of = of_run(tenant, run);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    let page = gateway.runtime.run_ledger(tenant, run, after.unwrap_or(0), limit).await?;
    let event = |entry: raddle_actors::LedgerEntry| LedgerEvent {
        seq: entry.seq,
        ts: entry.ts,
        event_id: event_id(entry.seq),
        record: entry.record,
    };
    Ok(Json(Ledger {
        data: page.entries.into_iter().map(event).collect(),
        next_cursor: page.next.map(|place: Seq| cursor::encode(of, &place)),
        summary: page.summary,
    }))
}

/// List what tools did to files for the run, oldest first.
#[utoipa::path(
    get, path = "/v1/runs/{run}/mutations", tag = "runs", params(("run" = RunId, Path), Paged),
    responses((status = 200, body = List<Mutation>, description = "A page"), Reads),
)]
pub async fn list_mutations(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    mut params: Params,
) -> Result<Json<List<Mutation>>, Problem> {
    let of = of_run(tenant, run);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    let page = gateway.runtime.run_mutations(tenant, run, after.unwrap_or(0), limit).await?;
    Ok(Json(List { data: page.data, next_cursor: page.next.map(|place| cursor::encode(of, &place)) }))
}

/// See what could be taken back, newest first.
#[utoipa::path(
    get, path = "/v1/runs/{run}/rollback-preview", tag = "runs", params(("run" = RunId, Path)),
    responses((status = 200, body = RollbackPreview, description = "What each step would do"), Reads),
)]
pub async fn preview_rollback(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    params: Params,
) -> Result<Json<RollbackPreview>, Problem> {
    params.end()?;
    Ok(Json(gateway.runtime.rollback_preview(tenant, run).await?))
}

/// Put files back as they were before tools changed them.
///
/// All of them or none, and each change once. A file that is not what the tool left is not touched, nor is any other.
#[utoipa::path(
    post, path = "/v1/runs/{run}/rollback-execute", tag = "runs", request_body = ExecuteRollback,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 200, body = RolledBack, description = "Done, and durable",
            headers(("Idempotent-Replayed" = Option<String>))),
        (status = 202, body = RolledBack, description = "Still under way"),
        Writes,
    ),
)]
pub async fn execute_rollback(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<ExecuteRollback>,
) -> Result<Response, Problem> {
    let asked = AskRollback {
        event_ids: required("event_ids", body.event_ids)?,
        confirm: required("confirm", body.confirm)?,
        policy_ack: body.policy_ack,
    };
    let done = gateway.runtime.ask_rollback(tenant, run, asked, call).await?;
    let rollback = match done.value.clone() {
        RollbackAsked::Blocked(why) => return Err(blocked(why)),
        RollbackAsked::Started(rollback) => rollback,
    };
    let (status, applied, files) = match gateway.runtime.rollback_ended(tenant, run, &rollback, PATIENCE).await? {
        Some(RollbackEnded::Blocked(why)) => return Err(blocked(why)),
        Some(RollbackEnded::Applied { files, .. }) => (StatusCode::OK, true, files),
        None => (StatusCode::ACCEPTED, false, 0),
    };
    let (operation_id, event_ids) = (rollback.operation_id, rollback.event_ids);
    Ok(reply(status, done, None, |_| Json(RolledBack { applied, operation_id, event_ids, files })).into_response())
}

/// List what was taken back, and what was asked to be, oldest first.
#[utoipa::path(
    get, path = "/v1/runs/{run}/rollback-history", tag = "runs", params(("run" = RunId, Path), Paged),
    responses((status = 200, body = List<RollbackEvent>, description = "A page"), Reads),
)]
pub async fn list_rollbacks(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    mut params: Params,
) -> Result<Json<List<RollbackEvent>>, Problem> {
    let of = of_run(tenant, run);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    let page = gateway.runtime.rollback_history(tenant, run, after.unwrap_or(0), limit).await?;
    Ok(Json(List {
        data: page.data.into_iter().map(Into::into).collect(),
        next_cursor: page.next.map(|place| cursor::encode(of, &place)),
    }))
}
