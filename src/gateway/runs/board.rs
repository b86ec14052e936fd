//! The blackboard of a run.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use raddle_domain::{
    id::RunId,
    run::{
        Entry, EntryKind, Summaries, Task,
        command::{NewEntry, Patch},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::{
    Gateway,
    openapi::{IfMatch, Once, Reads, Writes},
    problem::{Code, Problem},
    request::{OfTenant, Params, Verb},
    threads::{etag, reply},
    wire::required,
};

/// What agents of a run know, and what is left to be done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Blackboard {
    pub facts: Vec<Entry>,
    pub decisions: Vec<Entry>,
    pub open_questions: Vec<Entry>,
    pub artifacts: Vec<Entry>,
    pub summaries: Summaries,
    pub tasks: Vec<Task>,
    /// The run's.
    pub revision: u64,
}

/// What is to be done to the blackboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PatchOp {
    AddFact,
    EditFact,
    ResolveFact,
    AddDecision,
    EditDecision,
    ResolveDecision,
    AddOpenQuestion,
    EditOpenQuestion,
    ResolveOpenQuestion,
    AddArtifact,
    SetRollingSummary,
    SetLatestContextPack,
}

/// A change of the blackboard.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchBoard {
    #[schema(value_type = PatchOp)]
    pub op: Option<PatchOp>,
    /// To add: `{id?, text, step_id?, source_event_id?, ts_ms?}`, of an artifact `{id?, path, artifact_type, text?, …}`. To
    /// edit: `{id, text}`. To resolve: `{id, resolution?}`. To set: the text, or `{text}`.
    #[schema(value_type = Object)]
    pub payload: Option<Value>,
}

/// What became of a change.
#[derive(Debug, Serialize, ToSchema)]
pub struct Patched {
    /// The line as it is now; `null` after a summary was set.
    #[schema(required)]
    pub entry: Option<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Added {
    id: Option<String>,
    #[serde(default)]
    text: String,
    path: Option<String>,
    artifact_type: Option<String>,
    step_id: Option<String>,
    source_event_id: Option<String>,
    ts_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edited {
    id: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolved {
    id: String,
    resolution: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    text: String,
}

/// The payload as its op has it, or the name of what is wrong with it.
fn payload<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Problem> {
    if !value.is_object() {
        return Err(Problem::invalid("payload", "must be an object"));
    }
    serde_path_to_error::deserialize(value).map_err(|err| {
        let (path, why) = (err.path().to_string(), err.inner().to_string());
        let named = |prefix: &str| why.strip_prefix(prefix).and_then(|rest| rest.split('`').next());
        match (named("unknown field `"), named("missing field `")) {
            (Some(name), _) => {
                let field = format!("payload.{name}");
                let detail = format!("`{field}` is not a field of this request");
                Problem::new(Code::UnknownField, detail).with("field", field)
            }
            (_, Some(name)) => Problem::invalid(&format!("payload.{name}"), "is required"),
            _ => Problem::invalid(&format!("payload.{path}"), format_args!("is not acceptable: {why}")),
        }
    })
}

fn patch(op: PatchOp, value: Value) -> Result<Patch, Problem> {
    use EntryKind::{Artifact, Decision, Fact, OpenQuestion};
    let kind = match op {
        PatchOp::AddFact | PatchOp::EditFact | PatchOp::ResolveFact => Fact,
        PatchOp::AddDecision | PatchOp::EditDecision | PatchOp::ResolveDecision => Decision,
        PatchOp::AddOpenQuestion | PatchOp::EditOpenQuestion | PatchOp::ResolveOpenQuestion => OpenQuestion,
        PatchOp::AddArtifact => Artifact,
        PatchOp::SetRollingSummary | PatchOp::SetLatestContextPack => {
            let text = match value {
                Value::String(text) => text,
                value => payload::<Set>(value)?.text,
            };
            return Ok(Patch::Summarise { pack: op == PatchOp::SetLatestContextPack, text });
        }
    };
    Ok(match op {
        PatchOp::EditFact | PatchOp::EditDecision | PatchOp::EditOpenQuestion => {
            let Edited { id, text } = payload(value)?;
            Patch::Edit { kind, id, text }
        }
        PatchOp::ResolveFact | PatchOp::ResolveDecision | PatchOp::ResolveOpenQuestion => {
            let Resolved { id, resolution } = payload(value)?;
            Patch::Resolve { kind, id, resolution }
        }
        _ => {
            let Added { id, text, path, artifact_type, step_id, source_event_id, ts_ms } = payload(value)?;
            Patch::Add(NewEntry { kind, id, text, path, artifact_type, step_id, source_event_id, ts_ms })
        }
    })
}

/// Read the blackboard.
#[utoipa::path(
    get, path = "/v1/runs/{run}/blackboard", tag = "runs", params(("run" = RunId, Path)),
    responses((status = 200, body = Blackboard, description = "As of the run's `revision`", headers(("ETag" = String))), Reads),
)]
pub async fn get_blackboard(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let board = gateway.runtime.board(tenant, run).await?;
    let (mut facts, mut decisions, mut open_questions, mut artifacts) = (vec![], vec![], vec![], vec![]);
    for entry in board.entries {
        match entry.kind {
            EntryKind::Fact => facts.push(entry),
            EntryKind::Decision => decisions.push(entry),
            EntryKind::OpenQuestion => open_questions.push(entry),
            EntryKind::Artifact => artifacts.push(entry),
        }
    }
    let (summaries, tasks, revision) = (board.summaries, board.tasks, board.revision);
    let board = Blackboard { facts, decisions, open_questions, artifacts, summaries, tasks, revision };
    Ok((etag(revision), Json(board)).into_response())
}

/// Add, edit or resolve a line of the blackboard, or set a summary.
#[utoipa::path(
    post, path = "/v1/runs/{run}/blackboard/patches", tag = "runs", request_body = PatchBoard,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 201, body = Patched, description = "Done, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn patch_blackboard(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<PatchBoard>,
) -> Result<Response, Problem> {
    let payload = body.payload.unwrap_or_else(|| Value::Object(Map::new()));
    let patch = patch(required("op", body.op)?, payload)?;
    let done = gateway.runtime.patch_board(tenant, run, patch, call).await?;
    Ok(reply(StatusCode::CREATED, done, None, |entry| Json(Patched { entry })))
}
