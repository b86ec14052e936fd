//! The server itself: is it up, can it work, what can it do.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderName, header},
    response::IntoResponse,
};
use raddle_domain::record::ModelChoice;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Gateway, not_built,
    openapi::Reads,
    problem::{Code, Problem},
    request::MAX_PAGE,
};
use crate::sandbox::Enforced;

/// What `/v1/info` says.
#[derive(Debug, Serialize, ToSchema)]
pub struct Info {
    name: &'static str,
    version: &'static str,
    api_version: &'static str,
    /// Who can answer, by name.
    engines: Vec<String>,
    /// Who answers when a thread names nobody.
    #[schema(required)]
    default_model: Option<ModelChoice>,
    limits: LimitsInfo,
    /// What holds for commands on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<Enforced>,
    features: Vec<&'static str>,
    /// Parts of the API that answer 501.
    not_built: Vec<&'static str>,
}

/// The bounds that callers meet.
#[derive(Debug, Serialize, ToSchema)]
pub struct LimitsInfo {
    body_bytes: usize,
    page: usize,
    inbox_per_thread: u32,
    prompt_bytes: usize,
    item_bytes: usize,
    field_bytes: usize,
    system_prompt_bytes: usize,
    metadata_bytes: usize,
    model_calls_per_turn: u32,
    turn_ms: u64,
    approval_ms: u64,
    question_ms: u64,
    checkpoints: u32,
}

/// A word about the server's state.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    status: &'static str,
}

/// Is the process there?
#[utoipa::path(get, path = "/healthz", tag = "service", responses((status = 200, body = Status, description = "Yes")))]
pub async fn healthz() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Can it take work?
#[utoipa::path(
    get, path = "/readyz", tag = "service",
    responses((status = 200, body = Status, description = "The store is writable, and nothing shuts down"), Reads),
)]
pub async fn readyz(State(gateway): State<Arc<Gateway>>) -> Result<Json<Status>, Problem> {
    let health = gateway.runtime.health();
    let wait = std::time::Duration::from_secs(5);
    if health.leaving {
        return Err(Problem::new(Code::Draining, "the server is shutting down").after(wait));
    }
    if !health.store_writable {
        let why =
            if health.store_full { "the store takes no writes: the disk is full" } else { "the store takes no writes" };
        return Err(Problem::new(Code::StoreUnavailable, why).after(wait));
    }
    Ok(Json(Status { status: "ready" }))
}

/// Figures for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses((status = 200, body = String, content_type = "application/openmetrics-text", description = "Figures"), Reads),
)]
pub async fn metrics(State(gateway): State<Arc<Gateway>>) -> Result<impl IntoResponse, Problem> {
    let text = gateway.metrics.render().map_err(|err| {
        tracing::error!(error = %err, "metrics could not be written");
        Problem::new(Code::Internal, "the figures could not be written")
    })?;
    let kind: (HeaderName, _) = (header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([kind], text))
}

/// What this server is and can do.
#[utoipa::path(
    get, path = "/v1/info", tag = "service",
    responses((status = 200, body = Info, description = "Version, engines, limits, features"), Reads),
)]
pub async fn info(State(gateway): State<Arc<Gateway>>) -> Json<Info> {
    let models = gateway.runtime.models();
    let limits = &gateway.config.limits;
    Json(Info {
        name: "raddle",
        version: env!("CARGO_PKG_VERSION"),
        api_version: "1",
        engines: models.engines(),
        default_model: models.resolve(None, None).ok(),
        limits: LimitsInfo {
            body_bytes: gateway.config.body_bytes,
            page: MAX_PAGE,
            inbox_per_thread: limits.inbox_per_thread,
            prompt_bytes: limits.prompt_bytes,
            item_bytes: limits.item_bytes,
            field_bytes: limits.field_bytes,
            system_prompt_bytes: limits.system_prompt_bytes,
            metadata_bytes: limits.metadata_bytes,
            model_calls_per_turn: limits.model_calls_per_turn,
            turn_ms: limits.turn_ms,
            approval_ms: limits.approval_ms,
            question_ms: limits.question_ms,
            checkpoints: limits.checkpoints,
        },
        sandbox: gateway.config.sandbox.as_ref().map(|sandbox| sandbox.enforced().clone()),
        features: vec![
            "threads",
            "turns",
            "queue",
            "queue_edit",
            "queue_pause",
            "steer",
            "interrupt",
            "rollback",
            "edit",
            "compact",
            "fork",
            "checkpoints",
            "approvals",
            "questions",
            "effects",
            "wait",
            "events",
            "tenant_events",
            "snapshot",
            "idempotency",
            "if_match",
            "usage",
            "budgets",
            "routing_rules",
            "hooks",
            "mcp",
        ],
        not_built: not_built::TABLE.iter().map(|part| part.what).collect(),
    })
}

/// This API as an OpenAPI document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "service",
    responses((status = 200, body = Object, description = "OpenAPI 3.1"), Reads),
)]
pub async fn openapi(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], gateway.openapi.clone())
}
