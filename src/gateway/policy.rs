//! The policy of a tenant: its own layer, what was approved for ever, and what would be decided about a call.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use raddle_actors::Wondered;
use raddle_domain::{
    history::ToolCall,
    id::ThreadId,
    policy::{Policy, decide::Decided},
    ports::Explained,
    record::Permit,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Gateway,
    openapi::{Reads, Writes},
    problem::Problem,
    request::{Caller, OfPermit, Params, Verb},
    wire::Nothing,
};
use crate::policy;

/// The tool that is meant by a command alone.
pub const SHELL: &str = "exec_shell";

/// A call that was approved for ever, by the name of its rule.
#[derive(Debug, Serialize, ToSchema)]
pub struct NamedPermit {
    pub rule: String,
    #[serde(flatten)]
    pub permit: Permit,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Permits {
    pub data: Vec<NamedPermit>,
}

/// A call that somebody wonders about: a command, or a tool with its arguments.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckPolicy {
    /// A command line.
    pub command: Option<String>,
    /// With a command, the tool that would run it: `exec_shell` unless given.
    pub tool: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Map<String, Value>>,
    /// With the layer of this thread.
    pub thread_id: Option<ThreadId>,
}

/// Read the tenant's own layer of the policy.
#[utoipa::path(
    get, path = "/v1/policy", tag = "approvals",
    responses((status = 200, body = Policy, description = "Empty unless it was set"), Reads),
)]
pub async fn get_policy(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    params: Params,
) -> Result<Json<Policy>, Problem> {
    params.end()?;
    Ok(Json(gateway.runtime.policy(caller.tenant).await?))
}

/// Replace the tenant's own layer of the policy. It holds from the next tool call on.
#[utoipa::path(
    put, path = "/v1/policy", tag = "approvals", request_body = Policy,
    responses((status = 200, body = Policy, description = "As it is now, and durable"), Writes),
)]
pub async fn put_policy(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Verb { body, call }: Verb<Policy>,
) -> Result<Json<Policy>, Problem> {
    if call.if_match.is_some() {
        return Err(Problem::invalid("If-Match", "does not apply to this route: a policy has no seq"));
    }
    policy::check(&body).map_err(|bad| Problem::bad_rule("rules", bad))?;
    gateway.runtime.set_policy(caller.tenant, &body, call.by.as_deref()).await?;
    Ok(Json(body))
}

/// List the calls that were approved for ever.
#[utoipa::path(
    get, path = "/v1/policy/permits", tag = "approvals",
    responses((status = 200, body = Permits, description = "All of the tenant"), Reads),
)]
pub async fn list_permits(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    params: Params,
) -> Result<Json<Permits>, Problem> {
    params.end()?;
    let permits = gateway.runtime.permits(caller.tenant).await?;
    let named = |(rule, permit)| NamedPermit { rule, permit };
    Ok(Json(Permits { data: permits.into_iter().map(named).collect() }))
}

/// Take such an approval back. Calls like it are asked about again, from the next one on.
#[utoipa::path(
    delete, path = "/v1/policy/permits/{rule}", tag = "approvals",
    params(("rule" = String, Path, description = "As listed")),
    responses((status = 204, description = "Gone"), Writes),
)]
pub async fn delete_permit(
    State(gateway): State<Arc<Gateway>>,
    OfPermit(tenant, rule): OfPermit,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    if call.if_match.is_some() {
        return Err(Problem::invalid("If-Match", "does not apply to this route: a permit has no seq"));
    }
    gateway.runtime.revoke(tenant, rule, call.by.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Say what would be decided about a call, and why. Nothing is run or asked.
#[utoipa::path(
    post, path = "/v1/policy/check", tag = "approvals", request_body = CheckPolicy,
    responses((status = 200, body = Decided, description = "By the rules as they are now"), Writes),
)]
pub async fn check_policy(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Verb { body, call }: Verb<CheckPolicy>,
) -> Result<Json<Decided>, Problem> {
    if call.if_match.is_some() {
        return Err(Problem::invalid("If-Match", "does not apply to this route: it changes nothing"));
    }
    let CheckPolicy { command, tool, arguments, thread_id } = body;
    let wondered = match (command, tool, arguments) {
        (Some(_), _, Some(_)) => return Err(Problem::invalid("arguments", "go with a tool, not with a command")),
        (Some(line), tool, None) => Wondered::Command { tool: tool.unwrap_or_else(|| SHELL.to_owned()), line },
        (None, Some(name), arguments) => {
            let arguments = Value::Object(arguments.unwrap_or_default()).to_string();
            Wondered::Call(ToolCall { call_id: String::new(), name, arguments })
        }
        (None, None, _) => return Err(Problem::invalid("command", "or a tool is needed")),
    };
    match gateway.runtime.explain(caller.tenant, thread_id, &wondered).await? {
        Explained::Decided(decided) => Ok(Json(*decided)),
        Explained::Invalid(why) => Err(Problem::invalid("arguments", format_args!("do not fit the tool: {why}"))),
        Explained::Unknown => Err(Problem::invalid("tool", "is not the name of one that is configured")),
    }
}
