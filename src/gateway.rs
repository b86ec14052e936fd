//! HTTP: the route table, and what wraps every route. Thin on purpose: a handler reads a request, asks the
//! [`Runtime`], writes a reply. No rule of a thread is decided here.
//!
//! Invariants: every error is a problem document; every route is in the OpenAPI document, because one call adds
//! it to both; nobody reaches a handler whom `access` did not let pass; a handler that panics answers 500 and ends
//! nobody else's request.
//! Absent on purpose: TLS, compression, CORS.

use std::{sync::Arc, time::Duration};

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

use crate::{auth::Auth, listener, sandbox::Sandbox, workspace::Workspaces};

mod access;
mod admin;
mod archive;
mod cursor;
mod decisions;
mod events;
mod fork;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
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
mod shed;
mod tenant_events;
mod threads;
mod trace;
mod turns;
mod usage;
mod wire;
mod words;

use access::Serves;
use problem::{Code, Problem};

use crate::mcp::Mcp;

/// What the gateway keeps to, and tells callers about.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The largest body that is read.
    pub body_bytes: usize,
    /// How long a body may take: a caller that drips holds a connection, and nothing else, for no longer.
    pub body_time: Duration,
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
    /// Who callers are known by. Without it everybody is the tenant `default`, and nobody administers any.
    pub auth: Option<Arc<Auth>>,
    /// What the listeners in front of it say of connections, for `/metrics`.
    pub connections: Option<Arc<listener::Figures>>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            body_bytes: 1024 * 1024,
            body_time: Duration::from_secs(30),
            limits: Limits::default(),
            loopback_only: true,
            workspaces: None,
            sandbox: None,
            mcp: None,
            auth: None,
            connections: None,
        }
    }
}

/// What handlers share.
pub(crate) struct Gateway {
    runtime: Runtime,
    config: GatewayConfig,
    metrics: metrics::Metrics,
    rows: access::Rows,
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
    let (gateway, routes) = parts(runtime, config);
    layered(gateway, routes, Serves::All)
}

/// The same in two: what tenants ask, and what the operator does. What is about the server itself is in both.
pub fn routers(runtime: Runtime, config: GatewayConfig) -> (Router, Router) {
    let (gateway, routes) = parts(runtime, config);
    (layered(gateway.clone(), routes.clone(), Serves::Tenants), layered(gateway, routes, Serves::Operator))
}

fn parts(runtime: Runtime, config: GatewayConfig) -> (Arc<Gateway>, Router<Arc<Gateway>>) {
    let (router, document) = table().split_for_parts();
    let rows = access::Rows::new(&document);
    let openapi = document.to_json().unwrap_or_default().into();
    let metrics = metrics::Metrics::new(runtime.clone(), config.mcp.clone(), config.connections.clone());
    (Arc::new(Gateway { runtime, config, metrics, rows, openapi }), router)
}

fn layered(gateway: Arc<Gateway>, routes: Router<Arc<Gateway>>, serves: Serves) -> Router {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state((gateway.clone(), serves), access::check))
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

/// What a connection is told for which there is no place in `what`.
pub(crate) fn busy_answer(what: &'static str) -> Vec<u8> {
    Problem::from(Error::Busy { what, retry_after: Duration::from_secs(1) }).last_words()
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
        .routes(routes!(trace::record_tenant))
        .routes(routes!(trace::derive_trace))
        .routes(routes!(usage::get_usage))
        .routes(routes!(usage::get_budgets))
        .routes(routes!(hooks::list_hooks))
        .routes(routes!(routing::get_routing_rules, routing::put_routing_rules))
        .routes(routes!(policy::get_policy, policy::put_policy))
        .routes(routes!(policy::list_permits))
        .routes(routes!(policy::delete_permit))
        .routes(routes!(policy::check_policy))
        .routes(routes!(mcp::get_mcp))
        .routes(routes!(trace::record_all))
        .routes(routes!(archive::backup))
        .routes(routes!(archive::export_tenant))
        .routes(routes!(archive::import_tenant))
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
        .routes(routes!(admin::create_tenant, admin::list_tenants))
        .routes(routes!(admin::get_tenant, admin::patch_tenant, archive::delete_tenant))
        .routes(routes!(admin::get_tenant_usage))
        .routes(routes!(archive::erase_tenant))
        .routes(routes!(admin::create_key, admin::list_keys))
        .routes(routes!(admin::revoke_key))
        .routes(routes!(admin::list_audit))
        .routes(routes!(schedules::get_schedule, schedules::patch_schedule, schedules::delete_schedule));
    let mut table = not_built::mount(built);
    openapi::without_null_parameters(table.get_openapi_mut());
    openapi::with_named_items(table.get_openapi_mut());
    access::describe(table.get_openapi_mut());
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
    tracing::error!(why = crate::log::sentence(&*panic), "a handler panicked");
    Problem::new(Code::Internal, "the server failed; the cause is in its log").into_response()
}

#[cfg(test)]
mod tests;
