//! Tasks of a run: made, listed, handed out, spoken of.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode, response::Response};
use raddle_actors::TaskQuery;
use raddle_domain::{
    id::RunId,
    run::{
        Task, TaskStatus,
        command::{Action, Claim, Transition},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    super::{
        Gateway, cursor,
        openapi::{IfMatch, Once, Paged, Reads, Writes},
        problem::Problem,
        request::{OfTask, OfTenant, Params, Verb},
        threads::reply,
        wire::{List, required},
    },
    of_run,
};

/// Tasks that are to be made: all of them or none.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTasks {
    #[schema(value_type = Vec<CreateTask>, min_items = 1, max_items = 1000)]
    pub tasks: Option<Vec<CreateTask>>,
}

/// A task that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTask {
    /// A name of the caller's, new in the run.
    pub id: Option<String>,
    /// `implementation`, `inspection`, `research`, `validation` and `fix_proposal` have a contract; any other is free.
    pub task_type: String,
    #[schema(value_type = Option<Object>)]
    pub payload: Option<Value>,
    /// `pending` unless given, or `runnable` or `blocked`.
    pub status: Option<TaskStatus>,
    pub workflow_id: Option<String>,
    pub workflow_node_id: Option<String>,
    pub parent_task_id: Option<String>,
    /// Tasks that have to be done first, of the run or of the same request.
    pub depends_on_task_ids: Option<Vec<String>>,
    pub decision_ids: Option<Vec<String>>,
    pub artifact_ids: Option<Vec<String>>,
    /// The higher, the sooner; 0 unless given.
    pub priority: Option<i32>,
    /// Failures after which it has failed for good; 3 unless given.
    #[schema(minimum = 1, maximum = 100)]
    pub max_attempts: Option<u32>,
}

impl From<CreateTask> for raddle_domain::run::command::NewTask {
    fn from(new: CreateTask) -> Self {
        Self {
            id: new.id,
            task_type: new.task_type,
            payload: new.payload.unwrap_or_default(),
            status: new.status,
            workflow_id: new.workflow_id,
            workflow_node_id: new.workflow_node_id,
            parent_task_id: new.parent_task_id,
            depends_on_task_ids: new.depends_on_task_ids.unwrap_or_default(),
            decision_ids: new.decision_ids.unwrap_or_default(),
            artifact_ids: new.artifact_ids.unwrap_or_default(),
            priority: new.priority.unwrap_or_default(),
            max_attempts: new.max_attempts,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Tasks {
    pub tasks: Vec<Task>,
}

/// An agent that wants work.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimTask {
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    pub agent_id: Option<String>,
    /// This one, or none.
    pub task_id: Option<String>,
    pub task_type: Option<String>,
    pub workflow_id: Option<String>,
    /// How long the lease lasts; 30,000 unless given, and from 5,000 to 300,000 whatever is given.
    pub lease_ms: Option<u64>,
    /// The epoch of the workspace that the agent works in. Needed once the run was bound to another workspace.
    pub lease_epoch: Option<u64>,
}

/// What a claim came to.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClaimedTask {
    /// With the lease's `token`, which is told here and nowhere else.
    #[schema(required)]
    pub task: Option<Task>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What is to become of a task.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskAction {
    /// Keep the lease for another while.
    Heartbeat,
    Complete,
    Fail,
    /// Give it back, undone.
    Release,
    /// Make it claimable after it failed, was blocked or called off.
    Retry,
    /// Make it what `status` says.
    Status,
}

/// A word about a task.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransitionTask {
    #[schema(value_type = TaskAction)]
    pub action: Option<TaskAction>,
    /// Needed for whatever only the holder may say.
    pub lease_token: Option<String>,
    pub expected_task_rev: Option<u64>,
    pub agent_id: Option<String>,
    /// With the action `status`.
    pub status: Option<TaskStatus>,
    /// Why it failed, is blocked or was called off.
    pub error: Option<String>,
    /// How long the lease lasts from now on, with a heartbeat.
    pub lease_ms: Option<u64>,
    /// What it came to, with a completion.
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
}

/// A task as it is now.
#[derive(Debug, Serialize, ToSchema)]
pub struct OneTask {
    pub task: Task,
}

/// Make tasks: all of them or none.
#[utoipa::path(
    post, path = "/v1/runs/{run}/tasks", tag = "runs", request_body = CreateTasks,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 201, body = Tasks, description = "Made, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn create_tasks(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<CreateTasks>,
) -> Result<Response, Problem> {
    let tasks = required("tasks", body.tasks)?.into_iter().map(Into::into).collect();
    let done = gateway.runtime.create_tasks(tenant, run, tasks, call).await?;
    Ok(reply(StatusCode::CREATED, done, None, |tasks| Json(Tasks { tasks })))
}

const STATUSES: [(&str, TaskStatus); 7] = {
    let mut words = [("", TaskStatus::Pending); 7];
    let mut at = 0;
    while at < 7 {
        words[at] = (TaskStatus::ALL[at].as_str(), TaskStatus::ALL[at]);
        at += 1;
    }
    words
};

/// List tasks of a run, oldest first.
#[utoipa::path(
    get, path = "/v1/runs/{run}/tasks", tag = "runs",
    params(
        ("run" = RunId, Path),
        ("status" = Option<TaskStatus>, Query),
        ("task_type" = Option<String>, Query),
        ("workflow_id" = Option<String>, Query),
        Paged,
    ),
    responses((status = 200, body = List<Task>, description = "A page"), Reads),
)]
pub async fn list_tasks(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    mut params: Params,
) -> Result<Json<List<Task>>, Problem> {
    let of = of_run(tenant, run);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    let status = params.word("status", &STATUSES)?;
    let (task_type, workflow_id) = (params.text("task_type"), params.text("workflow_id"));
    params.end()?;
    let query = TaskQuery { status, task_type, workflow_id, after, limit };
    let page = gateway.runtime.tasks(tenant, run, query).await?;
    Ok(Json(List { data: page.data, next_cursor: page.next.map(|place| cursor::encode(of, &place)) }))
}

/// Read a task.
#[utoipa::path(
    get, path = "/v1/runs/{run}/tasks/{task}", tag = "runs", params(("run" = RunId, Path), ("task" = String, Path)),
    responses((status = 200, body = Task, description = "As of its `task_rev`"), Reads),
)]
pub async fn get_task(
    State(gateway): State<Arc<Gateway>>,
    OfTask(tenant, run, task): OfTask,
    params: Params,
) -> Result<Json<Task>, Problem> {
    params.end()?;
    Ok(Json(gateway.runtime.task(tenant, run, task).await?))
}

/// Claim the task that is next.
///
/// Of any number of agents that ask at once, one gets it. The same request under the same `Idempotency-Key` gets the same
/// task and the same token.
#[utoipa::path(
    post, path = "/v1/runs/{run}/tasks/claim", tag = "runs", request_body = ClaimTask,
    params(("run" = RunId, Path), Once, IfMatch),
    responses(
        (status = 200, body = ClaimedTask, description = "A task under a lease, or none and why",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn claim_task(
    State(gateway): State<Arc<Gateway>>,
    OfTenant(tenant, run): OfTenant<RunId>,
    Verb { body, call }: Verb<ClaimTask>,
) -> Result<Response, Problem> {
    let claim = Claim {
        agent_id: required("agent_id", body.agent_id)?,
        task_id: body.task_id,
        task_type: body.task_type,
        workflow_id: body.workflow_id,
        lease_ms: body.lease_ms,
        lease_epoch: body.lease_epoch,
    };
    let done = gateway.runtime.claim_task(tenant, run, claim, call).await?;
    Ok(reply(StatusCode::OK, done, None, |claimed| Json(ClaimedTask { task: claimed.task, why: claimed.why })))
}

/// Say something of a task: keep it, complete it, give it back.
#[utoipa::path(
    post, path = "/v1/runs/{run}/tasks/{task}/transition", tag = "runs", request_body = TransitionTask,
    params(("run" = RunId, Path), ("task" = String, Path), Once, IfMatch),
    responses(
        (status = 200, body = OneTask, description = "The task as it is now",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn transition_task(
    State(gateway): State<Arc<Gateway>>,
    OfTask(tenant, run, task_id): OfTask,
    Verb { body, call }: Verb<TransitionTask>,
) -> Result<Response, Problem> {
    let action = match required("action", body.action)? {
        TaskAction::Heartbeat => Action::Heartbeat,
        TaskAction::Complete => Action::Complete,
        TaskAction::Fail => Action::Fail,
        TaskAction::Release => Action::Release,
        TaskAction::Retry => Action::Retry,
        TaskAction::Status => Action::Status(required("status", body.status)?),
    };
    let transition = Transition {
        task_id,
        action,
        lease_token: body.lease_token,
        expected_task_rev: body.expected_task_rev,
        agent_id: body.agent_id,
        error: body.error,
        lease_ms: body.lease_ms,
        output: body.output,
    };
    let done = gateway.runtime.transition_task(tenant, run, transition, call).await?;
    Ok(reply(StatusCode::OK, done, None, |task| Json(OneTask { task })))
}
