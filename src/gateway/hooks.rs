//! Hooks: where events are sent without being asked for, and how that goes.

use std::sync::Arc;

use axum::{Json, extract::State};
use raddle_actors::HookStatus;
use raddle_domain::{hook::OnReject, id::TenantId, time::UnixMs};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Gateway,
    openapi::Reads,
    problem::Problem,
    request::{Caller, Params},
    tenant_cursor,
};

/// A hook, as the caller's events go through it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hook)]
pub struct Hook {
    name: String,
    /// `jsonl`, `stdout`, `unix` or `webhook`.
    kind: &'static str,
    /// Names of events, or families of them.
    events: Vec<String>,
    on_reject: Rejected,
    /// A cursor of `GET /v1/events`: what stands before it was delivered, or is not for this hook.
    position: String,
    /// Steps of threads that it has not looked at yet.
    behind: u64,
    /// Events that were taken.
    delivered: u64,
    /// What was given up: events that were refused, and threads that could not be read.
    skipped: u64,
    /// Since when it fails; `null` while it does not.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    failing_since: Option<UnixMs>,
    /// What the last failure was, also when it is over.
    #[schema(required)]
    last_error: Option<String>,
}

/// What becomes of an event that is refused for good.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(rename_all = "lowercase", as = HookOnReject)]
enum Rejected {
    Retry,
    Skip,
}

/// All of them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hooks)]
pub struct Hooks {
    data: Vec<Hook>,
}

/// List the hooks that the caller's events go through.
#[utoipa::path(
    get, path = "/v1/hooks", tag = "service",
    responses((status = 200, body = Hooks, description = "In the order of their names"), Reads),
)]
pub async fn list_hooks(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    params: Params,
) -> Result<Json<Hooks>, Problem> {
    params.end()?;
    let hooks = gateway.runtime.hooks(caller.tenant);
    Ok(Json(Hooks { data: hooks.into_iter().map(|hook| shown(caller.tenant, hook)).collect() }))
}

fn shown(tenant: TenantId, hook: HookStatus) -> Hook {
    let HookStatus { name, kind, events, on_reject, cursor, behind, delivered, skipped, failing_since, last_error } =
        hook;
    Hook {
        name: name.to_string(),
        kind,
        events,
        on_reject: match on_reject {
            OnReject::Retry => Rejected::Retry,
            OnReject::Skip => Rejected::Skip,
        },
        position: tenant_cursor(tenant, cursor),
        behind,
        delivered,
        skipped,
        failing_since,
        last_error,
    }
}
