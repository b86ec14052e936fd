//! Context runs: boards that many agents share.
//!
//! This file has the run itself, its plan and its streams; `tasks`, `board`, `ledger` and `history` have what stands on it.

pub mod board;
pub mod history;
pub mod ledger;
pub mod tasks;

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use raddle_actors::RunQuery;
use raddle_domain::{
    id::{RunId, Seq, TenantId},
    run::{
        Run, RunStatus, RunStep, RunWorkspace, Task,
        command::{Driven, NewRun, Replace, SyncTodos, Tell, Todo, ValidateLease},
        todo_status,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Gateway,
    cursor::{self, List as Of},
    events::{stream, wants_stream},
    frame,
    openapi::{IfMatch, Once, Paged, Reads, Writes},
    problem::Problem,
    request::{Caller, OfTenant, Params, Verb, digits},
    tenant_events::{self, Feed},
    threads::{etag, reply},
    wire::{Nothing, TenantEventPage, Unavailable, required},
    words::RunEvent,
};

/// Where the agents of a run work.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRunWorkspace {
    pub workspace_id: Option<String>,
    /// A name to compare: nothing is opened by it. Adopted from the first agent unless given.
    pub canonical_path: Option<String>,
    /// Read-only, but for a PUT that names another path: then the epoch that the caller saw.
    pub lease_epoch: Option<u64>,
}

impl From<NewRunWorkspace> for RunWorkspace {
    fn from(new: NewRunWorkspace) -> Self {
        Self {
            workspace_id: new.workspace_id.unwrap_or_default(),
            canonical_path: new.canonical_path.unwrap_or_default(),
            lease_epoch: new.lease_epoch.unwrap_or_default(),
        }
    }
}

/// A run that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    #[schema(value_type = String, min_length = 1)]
    pub objective: Option<String>,
    /// `interactive` unless given.
    pub run_type: Option<String>,
    pub workspace: Option<NewRunWorkspace>,
    pub source_client: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub source_metadata: Option<Map<String, Value>>,
    pub model_provider: Option<String>,
    pub model_id: Option<String>,
    pub mcp_servers: Option<Vec<String>>,
    pub steps: Option<Vec<RunStep>>,
}

/// A run, to take the place of the one that is there: what is left out is cleared. As a GET gives it, with changes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what is read-only is taken and not looked at")]
pub struct PutRun {
    #[schema(value_type = String, min_length = 1)]
    pub objective: Option<String>,
    #[schema(value_type = RunStatus)]
    pub status: Option<RunStatus>,
    pub run_type: Option<String>,
    pub workspace: Option<NewRunWorkspace>,
    pub source_client: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub source_metadata: Option<Map<String, Value>>,
    pub model_provider: Option<String>,
    pub model_id: Option<String>,
    pub mcp_servers: Option<Vec<String>>,
    pub steps: Option<Vec<RunStep>>,
    pub why_next_step: Option<String>,
    pub last_error: Option<String>,
    /// The revision that the caller saw: the same as `If-Match`, one of which is needed.
    pub revision: Option<u64>,
    /// As they are: tasks are changed by their own verbs.
    #[schema(value_type = Option<Vec<Task>>)]
    pub tasks: Option<Vec<Task>>,
    pub run_id: Option<RunId>,
    /// Read-only, as what follows: taken so that what a GET gave can be sent back, and not looked at.
    pub tenant: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub task_counts: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub restored_from: Option<Value>,
    pub last_event_seq: Option<u64>,
    pub created_at: Option<String>,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub updated_at: Option<String>,
}

/// A run with its tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunAndTasks {
    #[serde(flatten)]
    pub run: Run,
    pub tasks: Vec<Task>,
}

/// Something that happened.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TellRun {
    /// Its name. What it leads to is in the guide; a name that only the runtime writes is refused.
    #[serde(alias = "type")]
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    pub event: Option<String>,
    /// What the run is to be after it. It stays what it is unless given.
    pub status: Option<RunStatus>,
    pub step_id: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub payload: Option<Value>,
}

/// A todo list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncRunTodos {
    #[schema(value_type = Vec<RunTodo>)]
    pub todos: Option<Vec<RunTodo>>,
    /// Whether steps that are not in the list go; `true` unless given.
    pub replace: Option<bool>,
    pub source_session_id: Option<String>,
    pub source_run_id: Option<String>,
}

/// An entry of a todo list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunTodo {
    pub id: Option<String>,
    pub content: String,
    /// `pending`, `runnable`, `in_progress`, `blocked`, `done`, `failed`, or a word that means one of them.
    pub status: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveRun {
    /// Only say what comes next.
    pub dry_run: Option<bool>,
}

/// What comes next.
#[derive(Debug, Serialize, ToSchema)]
pub struct NextStep {
    pub dry_run: bool,
    #[schema(required)]
    pub selected_step_id: Option<String>,
    #[schema(required)]
    pub selected_task_id: Option<String>,
    pub target_status: RunStatus,
    pub why_next_step: String,
    pub run: Run,
}

/// Where an agent works.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateRunLease {
    #[schema(value_type = String, min_length = 1)]
    pub current_path: Option<String>,
    pub phase: Option<String>,
    pub step_id: Option<String>,
    /// The epoch that the agent works under.
    pub lease_epoch: Option<u64>,
    /// Bind the run to this path if it is bound to another: every lease of before is void then.
    pub rebind: Option<bool>,
}

/// Whether an agent works where the run is bound to.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunLease {
    pub ok: bool,
    /// It does not: the run is paused.
    pub mismatch: bool,
    pub status: RunStatus,
    pub expected_path: String,
    pub lease_epoch: u64,
}

/// A part of the list of runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunList {
    pub data: Vec<Run>,
    /// Where the rest begins; `null` at the end. A page may be short and still have one.
    #[schema(required)]
    pub next_cursor: Option<String>,
    /// Runs of this part whose records cannot be used, whatever was asked for.
    pub unavailable: Vec<Unavailable>,
}

/// Events of a run.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes the reply; `frame::page` writes it")]
pub struct RunEventPage {
    pub data: Vec<RunEvent>,
    /// The newest event.
    pub head: Seq,
}

/// Make a run.
#[utoipa::path(
    post, path = "/v1/runs", tag = "runs", request_body = CreateRun, params(Once),
    responses(
        (status = 201, body = Run, description = "Made, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn create_run(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    Verb { body, call }: Verb<CreateRun>,
) -> Result<Response, Problem> {
    let new = NewRun {
        run_type: body.run_type,
        source_client: body.source_client,
        source_metadata: body.source_metadata.map(Value::Object),
        model_provider: body.model_provider,
        model_id: body.model_id,
        mcp_servers: body.mcp_servers.unwrap_or_default(),
        objective: required("objective", body.objective)?,
        workspace: body.workspace.map(Into::into),
        steps: body.steps.unwrap_or_default(),
    };
    let done = gateway.runtime.create_run(tenant, new, call).await?;
    let location = format!("/v1/runs/{}", done.value.id);
    Ok(reply(StatusCode::CREATED, done, Some(location), Json))
}

const STATUSES: [(&str, RunStatus); 9] = {
    let mut words = [("", RunStatus::Queued); 9];
    let mut at = 0;
    while at < 9 {
        words[at] = (RunStatus::ALL[at].as_str(), RunStatus::ALL[at]);
        at += 1;
    }
    words
};

/// List runs, oldest first, without their tasks.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs",
    params(
        ("status" = Option<RunStatus>, Query),
        ("run_type" = Option<String>, Query, description = "In any case"),
        ("source" = Option<String>, Query, description = "The `source_client`"),
        ("workspace" = Option<String>, Query, description = "The `canonical_path`, to the letter"),
        Paged,
    ),
    responses((status = 200, body = RunList, description = "A page; a filtered one may be short and have a `next_cursor`"), Reads),
)]
pub async fn list_runs(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    mut params: Params,
) -> Result<Json<RunList>, Problem> {
    let of = Of::Runs(tenant);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    let status = params.word("status", &STATUSES)?;
    let (run_type, source) = (params.text("run_type"), params.text("source"));
    let workspace = params.text("workspace");
    params.end()?;
    let query = RunQuery { status, run_type, source, workspace, after, limit };
    let page = gateway.runtime.runs(tenant, query).await?;
    let next_cursor = page.next.map(|place| cursor::encode(of, &place));
    let unavailable =
        page.unavailable.into_iter().map(|(id, detail)| Unavailable { id: id.to_string(), detail }).collect();
    Ok(Json(RunList { data: page.data, next_cursor, unavailable }))
}

/// Read a run with its tasks.
#[utoipa::path(
    get, path = "/v1/runs/{run}", tag = "runs", params(("run" = RunId, Path)),
    responses((status = 200, body = RunAndTasks, description = "As of its `revision`", headers(("ETag" = String))), Reads),
)]
pub async fn get_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    let whole = gateway.runtime.run_whole(tenant, run).await?;
    Ok((etag(whole.run.revision), Json(RunAndTasks { run: whole.run, tasks: whole.tasks })).into_response())
}

/// Replace a run, under the revision that the caller saw.
#[utoipa::path(
    put, path = "/v1/runs/{run}", tag = "runs", request_body = PutRun, params(("run" = RunId, Path), IfMatch),
    responses((status = 200, body = Run, description = "As replaced", headers(("ETag" = String))), Writes),
)]
pub async fn put_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<PutRun>,
) -> Result<Response, Problem> {
    if body.run_id.is_some_and(|named| named != run) {
        return Err(Problem::invalid("run_id", "is another run's"));
    }
    let replace = Replace {
        status: required("status", body.status)?,
        why_next_step: body.why_next_step,
        last_error: body.last_error,
        revision: body.revision,
        tasks: body.tasks,
        new: NewRun {
            run_type: body.run_type,
            source_client: body.source_client,
            source_metadata: body.source_metadata.map(Value::Object),
            model_provider: body.model_provider,
            model_id: body.model_id,
            mcp_servers: body.mcp_servers.unwrap_or_default(),
            objective: required("objective", body.objective)?,
            workspace: body.workspace.map(Into::into),
            steps: body.steps.unwrap_or_default(),
        },
    };
    let done = gateway.runtime.replace_run(tenant, run, replace, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

/// Delete a run with every record and event of it.
#[utoipa::path(
    delete, path = "/v1/runs/{run}", tag = "runs", params(("run" = RunId, Path), IfMatch),
    responses((status = 204, description = "Gone"), Writes),
)]
pub async fn delete_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.delete_run(tenant, run, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Put on record what happened, and do what follows from it.
#[utoipa::path(
    post, path = "/v1/runs/{run}/events", tag = "runs", request_body = TellRun,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 201, body = RunEvent, description = "The event as it stands in the log",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn tell_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<TellRun>,
) -> Result<Response, Problem> {
    let tell = Tell {
        name: required("event", body.event)?,
        status: body.status,
        step_id: body.step_id,
        payload: body.payload.unwrap_or_else(|| Value::Object(Map::new())),
    };
    let done = gateway.runtime.tell_run(tenant, run, tell, call).await?;
    let event = gateway.runtime.run_event(tenant, run, done.value).await?;
    Ok(reply(StatusCode::CREATED, done, None, |_| ([(header::CONTENT_TYPE, "application/json")], event)))
}

/// Read or follow what happens to a run.
///
/// With `Accept: text/event-stream` a stream: what is stored after `after`, then what happens. Otherwise a page.
#[utoipa::path(
    get, path = "/v1/runs/{run}/events", tag = "runs",
    params(
        ("run" = RunId, Path),
        ("after" = Option<u64>, Query, description = "The last seq that the caller has; 0 unless given"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Of a page; 50 unless given"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same as `after`, and stronger"),
        ("Accept" = Option<String>, Header, description = "`text/event-stream` for a stream"),
    ),
    responses(
        (status = 200, description = "A page, or a stream of events", content(
            (RunEventPage = "application/json"),
            (String = "text/event-stream"),
        )),
        Reads,
    ),
)]
pub async fn list_run_events(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let seq = |name: &str, text: &str| digits(text).ok_or_else(|| Problem::invalid(name, "must be a seq, such as 12"));
    let limit = params.limit()?;
    let after = params.text("after").map(|text| seq("after", &text)).transpose()?;
    params.end()?;
    let last = headers.get("last-event-id").map(|value| seq("Last-Event-ID", value.to_str().unwrap_or_default()));
    let after = last.transpose()?.or(after).unwrap_or(0);
    if wants_stream(&headers) {
        return Ok(stream(gateway.runtime.subscribe_run(tenant, run, after).await?));
    }
    let events = gateway.runtime.run_events(tenant, run, after, limit).await?;
    let page: Bytes = frame::page(&events.chunks, events.head);
    Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response())
}

/// Read or follow what happens to many runs.
///
/// As `/v1/events`, of runs alone: the cursor is the server's. Runs that are named are told from their beginning unless a
/// cursor is given; without names it is what happens to all runs from now on.
#[utoipa::path(
    get, path = "/v1/runs/stream", tag = "runs",
    params(
        ("runs" = Option<String>, Query, description = "Ids of runs, with commas between them; all unless given"),
        ("after" = Option<String>, Query, description = "A cursor: the `id:` of an event, or `next_cursor`"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Of a page; 50 unless given"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same as `after`, and stronger"),
        ("Accept" = Option<String>, Header, description = "`text/event-stream` for a stream"),
    ),
    responses(
        (status = 200, description = "A page, or a stream of events", content(
            (TenantEventPage = "application/json"),
            (String = "text/event-stream"),
        )),
        Reads,
    ),
)]
pub async fn stream_runs(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = params.limit()?;
    let after = tenant_events::after(tenant, &mut params, &headers)?;
    let runs = params.text("runs").map(|text| runs(&text)).transpose()?;
    params.end()?;
    if wants_stream(&headers) {
        let subscription = gateway.runtime.subscribe_runs(tenant, after, runs).await?;
        return Ok(stream(Feed { tenant, subscription }));
    }
    let page = gateway.runtime.runs_events(tenant, after, runs, limit).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], tenant_events::list(tenant, page)).into_response())
}

/// The ids of a list.
fn runs(text: &str) -> Result<Vec<RunId>, Problem> {
    let ids = text.split(',').map(str::parse).collect::<Result<_, _>>();
    ids.map_err(|_| Problem::invalid("runs", "must be ids of runs with commas between them"))
}

/// Make a todo list the plan of the run.
#[utoipa::path(
    post, path = "/v1/runs/{run}/todos/sync", tag = "runs", request_body = SyncRunTodos,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 200, body = Run, description = "With its new steps",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn sync_todos(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<SyncRunTodos>,
) -> Result<Response, Problem> {
    let todo = |todo: RunTodo| Todo {
        id: todo.id,
        content: todo.content,
        status: todo_status(todo.status.as_deref().unwrap_or_default()),
    };
    let sync = SyncTodos {
        todos: required("todos", body.todos)?.into_iter().map(todo).collect(),
        replace: body.replace.unwrap_or(true),
        source_session_id: body.source_session_id,
        source_run_id: body.source_run_id,
    };
    let done = gateway.runtime.sync_todos(tenant, run, sync, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

/// Say what comes next, and begin it.
#[utoipa::path(
    post, path = "/v1/runs/{run}/driver/next", tag = "runs", request_body = DriveRun,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 200, body = NextStep, description = "What comes next, and why",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn drive_run(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<DriveRun>,
) -> Result<Response, Problem> {
    let dry_run = body.dry_run.unwrap_or_default();
    let done = gateway.runtime.drive_run(tenant, run, dry_run, call).await?;
    Ok(reply(StatusCode::OK, done, None, |driven| {
        let Driven { selected_step_id, selected_task_id, target_status, why_next_step, run } = driven;
        Json(NextStep { dry_run, selected_step_id, selected_task_id, target_status, why_next_step, run })
    }))
}

/// Compare where an agent works with where the run is bound to.
///
/// The first path is adopted. Another one pauses the run, unless it is to be bound anew.
#[utoipa::path(
    post, path = "/v1/runs/{run}/lease/validate", tag = "runs", request_body = ValidateRunLease,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 200, body = RunLease, description = "Whether it works there",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn validate_run_lease(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<ValidateRunLease>,
) -> Result<Response, Problem> {
    let lease = ValidateLease {
        phase: body.phase,
        current_path: required("current_path", body.current_path)?,
        step_id: body.step_id,
        lease_epoch: body.lease_epoch,
        rebind: body.rebind.unwrap_or_default(),
    };
    let done = gateway.runtime.validate_run_lease(tenant, run, lease, call).await?;
    Ok(reply(StatusCode::OK, done, None, |lease| {
        Json(RunLease {
            ok: lease.ok,
            mismatch: lease.mismatch,
            status: lease.status,
            expected_path: lease.expected_path,
            lease_epoch: lease.lease_epoch,
        })
    }))
}

/// The list of a run's own things.
pub(super) fn of_run(tenant: TenantId, run: RunId) -> Of {
    Of::OfRun(run.log(tenant))
}
