//! Routing rules: which model answers turns that name what they are for.

use std::sync::Arc;

use axum::{Json, extract::State};
use raddle_actors::{RoutingRule, RulesError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Gateway,
    openapi::{Reads, Writes},
    problem::Problem,
    request::{Caller, Params, Verb},
};

/// Turns that name the intent, and no model, are answered by the model.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RoutingRule)]
pub struct Rule {
    /// Compared without regard to case and to space around it.
    #[schema(min_length = 1, max_length = 256)]
    pub intent: String,
    /// As a start names one.
    #[schema(min_length = 1, max_length = 256)]
    pub model: String,
}

/// All rules of the tenant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RoutingRules)]
pub struct Rules {
    #[schema(max_items = 200)]
    pub rules: Vec<Rule>,
}

/// Read the routing rules.
#[utoipa::path(
    get, path = "/v1/routing-rules", tag = "usage",
    responses((status = 200, body = Rules, description = "In the order in which they were given"), Reads),
)]
pub async fn get_routing_rules(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    params: Params,
) -> Result<Json<Rules>, Problem> {
    params.end()?;
    let rules = gateway.runtime.routing_rules(caller.tenant).await?;
    let rule = |RoutingRule { intent, model }| Rule { intent, model };
    Ok(Json(Rules { rules: rules.into_iter().map(rule).collect() }))
}

/// Replace the routing rules, all of them at once. Prompts that wait keep the model that was chosen when they came.
#[utoipa::path(
    put, path = "/v1/routing-rules", tag = "usage", request_body = Rules,
    responses((status = 200, body = Rules, description = "As they are now, and durable"), Writes),
)]
pub async fn put_routing_rules(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Verb { body, call }: Verb<Rules>,
) -> Result<Json<Rules>, Problem> {
    if call.if_match.is_some() {
        return Err(Problem::invalid("If-Match", "does not apply to this route: rules have no seq"));
    }
    let rules = body.rules.iter().map(|rule| RoutingRule { intent: rule.intent.clone(), model: rule.model.clone() });
    gateway.runtime.set_routing_rules(caller.tenant, rules.collect(), call.by.as_deref()).await.map_err(|error| {
        match error {
            RulesError::Invalid { field, why } => Problem::invalid(&field, why),
            RulesError::Failed(error) => error.into(),
        }
    })?;
    Ok(Json(body))
}
