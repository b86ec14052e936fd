//! HTTP: the route table, and what wraps every route. Thin on purpose: a handler reads a request, asks the
//! [`Runtime`], writes a reply. No rule of a thread is decided here.
//!
//! Invariants: every error is a problem document; every route is in the OpenAPI document, because one call adds
//! it to both; a handler that panics answers 500 and ends nobody else's request.
//! Absent on purpose: keys (see [`request::Caller`]), TLS, compression, CORS.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
};
use raddle_actors::{Error, Runtime, TenantCursor};
use raddle_domain::{
    command::Limits,
    id::{RunId, TenantId},
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{sandbox::Sandbox, workspace::Workspaces};

mod cursor;
mod decisions;
mod events;
mod fork;
mod frame;
mod hooks;
mod inbox;
mod jobs;
mod mcp;
mod metrics;
mod not_built;
mod observe;
mod openapi;
mod policy;
mod problem;
mod request;
mod routing;
mod runs;
mod schedules;
mod service;
mod tenant_events;
mod threads;
mod turns;
mod usage;
mod wire;

use problem::{Code, Problem};

use crate::mcp::Mcp;

/// What the gateway keeps to, and tells callers about.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The largest body that is read.
    pub body_bytes: usize,
    /// The limits of the runtime behind it, for `/v1/info`.
    pub limits: Limits,
    /// Answer only under names of the machine itself: right for a server without keys, which must listen on
    /// loopback only, and where otherwise any web page could talk to it through its reader's browser.
    pub loopback_only: bool,
    /// Where threads work: a `workspace` that is none is refused. Without it, any text will do.
    pub workspaces: Option<Arc<Workspaces>>,
    /// Where commands run, for `/v1/info`.
    pub sandbox: Option<Arc<Sandbox>>,
    /// The servers whose tools are offered, for `/v1/mcp`.
    pub mcp: Option<Mcp>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            body_bytes: 1024 * 1024,
            limits: Limits::default(),
            loopback_only: true,
            workspaces: None,
            sandbox: None,
            mcp: None,
        }
    }
}

/// What handlers share.
pub(crate) struct Gateway {
    runtime: Runtime,
    config: GatewayConfig,
    metrics: metrics::Metrics,
    openapi: Bytes,
}

impl Gateway {
    /// Refuses the name of a workspace that could not be used. Off the threads that serve requests: it looks at a disk.
    async fn check_workspace(&self, tenant: TenantId, name: Option<&str>) -> Result<(), Problem> {
        let (Some(spaces), Some(name)) = (self.config.workspaces.clone(), name.map(str::to_owned)) else {
            return Ok(());
        };
        let checked = tokio::task::spawn_blocking(move || spaces.check(tenant, &name)).await;
        Ok(checked.map_err(|_| Problem::new(Code::Internal, "the workspace could not be looked at"))??)
    }

    /// Refuses a run that there is not: what its thread does would be in nobody's ledger.
    async fn check_run(&self, tenant: TenantId, run: Option<RunId>) -> Result<(), Problem> {
        let Some(run) = run else { return Ok(()) };
        match self.runtime.run(tenant, run).await {
            Ok(_) => Ok(()),
            Err(Error::NotFound(_)) => Err(Problem::invalid("run_id", "names no run")),
            Err(error) => Err(error.into()),
        }
    }
}

/// The whole API as a router, for the server and for hosts that mount it in their own.
pub fn router(runtime: Runtime, config: GatewayConfig) -> Router {
    let (router, document) = table().split_for_parts();
    let openapi = document.to_json().unwrap_or_default().into();
    let metrics = metrics::Metrics::new(runtime.clone(), config.mcp.clone());
    let gateway = Arc::new(Gateway { runtime, config, metrics, openapi });
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(gateway.clone(), observe::observe))
        .with_state(gateway)
}

/// The OpenAPI document, pretty-printed.
pub fn openapi() -> Result<String, serde_json::Error> {
    table().into_openapi().to_pretty_json()
}

/// A place among a tenant's events as `GET /v1/events` takes it.
pub(crate) fn tenant_cursor(tenant: TenantId, cursor: TenantCursor) -> String {
    cursor::encode(cursor::List::Events(tenant), &cursor)
}

/// Every route there is.
fn table() -> OpenApiRouter<Arc<Gateway>> {
    let built = OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(service::healthz))
        .routes(routes!(service::readyz))
        .routes(routes!(service::metrics))
        .routes(routes!(service::openapi))
        .routes(routes!(service::info))
        .routes(routes!(threads::create_thread, threads::list_threads))
        .routes(routes!(threads::get_thread, threads::patch_thread, threads::delete_thread))
        .routes(routes!(threads::get_snapshot))
        .routes(routes!(fork::fork_thread))
        .routes(routes!(fork::save_checkpoint, fork::list_checkpoints))
        .routes(routes!(fork::delete_checkpoint))
        .routes(routes!(fork::restore_checkpoint))
        .routes(routes!(turns::compact_thread))
        .routes(routes!(turns::edit_thread))
        .routes(routes!(inbox::list_inbox))
        .routes(routes!(inbox::patch_input, inbox::delete_input))
        .routes(routes!(turns::start_turn, turns::list_turns))
        .routes(routes!(turns::get_turn))
        .routes(routes!(turns::steer_turn))
        .routes(routes!(turns::interrupt_turn))
        .routes(routes!(turns::wait_turn))
        .routes(routes!(turns::list_items))
        .routes(routes!(decisions::list_approvals))
        .routes(routes!(decisions::get_approval, decisions::decide_approval))
        .routes(routes!(decisions::list_questions))
        .routes(routes!(decisions::get_question, decisions::answer_question))
        .routes(routes!(decisions::list_effects))
        .routes(routes!(decisions::resolve_effect))
        .routes(routes!(events::list_events))
        .routes(routes!(tenant_events::list_tenant_events))
        .routes(routes!(usage::get_usage))
        .routes(routes!(usage::get_budgets))
        .routes(routes!(hooks::list_hooks))
        .routes(routes!(routing::get_routing_rules, routing::put_routing_rules))
        .routes(routes!(policy::get_policy, policy::put_policy))
        .routes(routes!(policy::list_permits))
        .routes(routes!(policy::delete_permit))
        .routes(routes!(policy::check_policy))
        .routes(routes!(mcp::get_mcp))
        .routes(routes!(jobs::create_job, jobs::list_jobs))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::pause_job))
        .routes(routes!(jobs::resume_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(jobs::retry_job))
        .routes(routes!(runs::create_run, runs::list_runs))
        .routes(routes!(runs::stream_runs))
        .routes(routes!(runs::history::import_run))
        .routes(routes!(runs::get_run, runs::put_run, runs::delete_run))
        .routes(routes!(runs::tell_run, runs::list_run_events))
        .routes(routes!(runs::sync_todos))
        .routes(routes!(runs::drive_run))
        .routes(routes!(runs::validate_run_lease))
        .routes(routes!(runs::board::get_blackboard))
        .routes(routes!(runs::board::patch_blackboard))
        .routes(routes!(runs::tasks::create_tasks, runs::tasks::list_tasks))
        .routes(routes!(runs::tasks::claim_task))
        .routes(routes!(runs::tasks::get_task))
        .routes(routes!(runs::tasks::transition_task))
        .routes(routes!(runs::history::save_run_checkpoint, runs::history::list_run_checkpoints))
        .routes(routes!(runs::history::get_run_checkpoint, runs::history::delete_run_checkpoint))
        .routes(routes!(runs::history::restore_run))
        .routes(routes!(runs::history::replay_run))
        .routes(routes!(runs::history::export_run))
        .routes(routes!(runs::ledger::get_ledger))
        .routes(routes!(runs::ledger::list_mutations))
        .routes(routes!(runs::ledger::preview_rollback))
        .routes(routes!(runs::ledger::execute_rollback))
        .routes(routes!(runs::ledger::list_rollbacks))
        .routes(routes!(schedules::create_schedule, schedules::list_schedules))
        .routes(routes!(schedules::get_schedule, schedules::patch_schedule, schedules::delete_schedule));
    let mut table = not_built::mount(built);
    openapi::without_null_parameters(table.get_openapi_mut());
    table
}

async fn no_such_path() -> Problem {
    Problem::new(Code::NotFound, "no such path; /openapi.json lists those there are")
}

/// The `Allow` header is added by the router, which knows the methods.
async fn no_such_method() -> Problem {
    Problem::new(Code::MethodNotAllowed, "the path has no such method; `Allow` lists those it has")
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let why = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(%why, "a handler panicked");
    Problem::new(Code::Internal, "the server failed; the cause is in its log").into_response()
}

#[cfg(test)]
mod tests;
