//! Tenants and their keys: for the operator, and as far as it is his own for who administers a tenant.
//!
//! A key's text is in the reply that made it and nowhere else; so a repeated request makes another one, and
//! `Idempotency-Key`, which every POST takes, has nothing here to say.

use std::{num::NonZeroU32, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use raddle_actors::QuotaStatus;
use raddle_domain::{
    id::{KeyId, TenantId},
    tenant::{self, ApiKey, AuditEntry, Budgets, Quotas, Scope, Scopes, Tenant, TenantPatch},
    time::UnixMs,
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Gateway,
    access::{self, Identity},
    cursor::{self, List as Of},
    openapi::{IfMatch, Once, Paged, Reads, Writes},
    problem::{Code, Problem},
    request::{OfKeeper, OfKey, Params, Verb},
    threads::etag,
    usage::BudgetLine,
    wire::{List, Nothing, required},
};

/// A tenant that is to be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Made up where none is given. One that was erased is not used again.
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9_-]{1,32}$")]
    pub id: Option<String>,
    /// The id, unless given.
    pub name: Option<String>,
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    pub weight: Option<NonZeroU32>,
    pub quotas: Option<Quotas>,
    pub budgets: Option<Budgets>,
}

/// What of a tenant is to change. `quotas` and `budgets` are replaced as a whole.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchTenant {
    pub name: Option<String>,
    pub status: Option<WantedStatus>,
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    pub weight: Option<NonZeroU32>,
    pub quotas: Option<Quotas>,
    pub budgets: Option<Budgets>,
}

/// Whether a tenant's callers are to be heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WantedStatus {
    Active,
    Suspended,
}

/// A key that is to be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    pub name: Option<String>,
    #[schema(value_type = Vec<Scope>)]
    pub scopes: Option<Scopes>,
    /// From then on it is refused; never unless given.
    pub expires_at: Option<UnixMs>,
}

/// A key with its text, which is told this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewKey {
    #[serde(flatten)]
    of: ApiKey,
    /// What is sent as `Authorization: Bearer`.
    #[schema(pattern = "^rdl_[a-z2-7]{16}_[0-9a-f]{64}$")]
    key: String,
}

fn of_tenant(status: StatusCode, tenant: &Tenant) -> Response {
    (status, etag(tenant.revision), Json(tenant)).into_response()
}

/// Make a tenant.
#[utoipa::path(
    post, path = "/v1/admin/tenants", tag = "admin", request_body = CreateTenant, params(Once),
    responses(
        (status = 201, body = Tenant, description = "Made, and durable", headers(("Location" = String), ("ETag" = String))),
        Writes,
    ),
)]
pub async fn create_tenant(
    State(gateway): State<Arc<Gateway>>,
    operator: Identity,
    Verb { body, .. }: Verb<CreateTenant>,
) -> Result<Response, Problem> {
    let CreateTenant { id, name, weight, quotas, budgets } = body;
    let id = id.unwrap_or_else(|| Uuid::now_v7().as_simple().to_string());
    let id: TenantId = id.parse().map_err(|why| Problem::invalid("id", format_args!("is not acceptable: {why}")))?;
    let patch = TenantPatch { name, suspended: None, weight, quotas, budgets };
    let tenant = gateway.runtime.create_tenant(id, patch, Some(&operator.by)).await?;
    let mut response = of_tenant(StatusCode::CREATED, &tenant);
    if let Ok(location) = format!("/v1/admin/tenants/{id}").parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// List tenants, in the order of their ids.
#[utoipa::path(
    get, path = "/v1/admin/tenants", tag = "admin", params(Paged),
    responses((status = 200, body = List<Tenant>, description = "A page"), Reads),
)]
pub async fn list_tenants(
    State(gateway): State<Arc<Gateway>>,
    mut params: Params,
) -> Result<Json<List<Tenant>>, Problem> {
    let limit = params.limit()?;
    let after: Option<TenantId> = params.text("cursor").map(|text| cursor::decode(Of::Tenants, &text)).transpose()?;
    params.end()?;
    let mut all = gateway.runtime.tenants();
    all.retain(|tenant| after.is_none_or(|after| tenant.id > after));
    let more = all.len() > limit;
    all.truncate(limit);
    let next_cursor = all.last().filter(|_| more).map(|tenant| cursor::encode(Of::Tenants, &tenant.id));
    Ok(Json(List { data: all.iter().map(|tenant| Tenant::clone(tenant)).collect(), next_cursor }))
}

/// Read a tenant.
#[utoipa::path(
    get, path = "/v1/admin/tenants/{tenant}", tag = "admin", params(("tenant" = String, Path)),
    responses((status = 200, body = Tenant, description = "As of its `revision`", headers(("ETag" = String))), Reads),
)]
pub async fn get_tenant(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    Ok(of_tenant(StatusCode::OK, &*gateway.runtime.tenant(keeper.tenant)?))
}

/// How much of what it may a tenant uses.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantUsage)]
pub struct InUse {
    quotas: Vec<QuotaLine>,
    /// Each in each unit in which it is given.
    budgets: Vec<BudgetLine>,
}

/// A quota, and how far it is used up.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuotaStatus)]
pub struct QuotaLine {
    /// Its name.
    limit: &'static str,
    used: u64,
    /// `null` where only the server's own bounds hold.
    #[schema(required)]
    max: Option<u64>,
}

/// Read how much of its quotas and budgets a tenant uses.
#[utoipa::path(
    get, path = "/v1/admin/tenants/{tenant}/usage", tag = "admin", params(("tenant" = String, Path)),
    responses((status = 200, body = InUse, description = "As it is now"), Reads),
)]
pub async fn get_tenant_usage(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    params: Params,
) -> Result<Json<InUse>, Problem> {
    params.end()?;
    gateway.runtime.tenant(keeper.tenant)?;
    let quotas = gateway.runtime.quota_status(keeper.tenant).await?;
    let line = |QuotaStatus { limit, used, max }| QuotaLine { limit, used, max };
    let budgets = gateway.runtime.budget_status(keeper.tenant).await?;
    Ok(Json(InUse {
        quotas: quotas.into_iter().map(line).collect(),
        budgets: budgets.into_iter().map(BudgetLine::new).collect(),
    }))
}

/// Change a tenant; what is changed holds from the reply on.
///
/// A tenant that is suspended is heard no more, its streams end and no model is called for it. Nothing of it is lost.
#[utoipa::path(
    patch, path = "/v1/admin/tenants/{tenant}", tag = "admin", request_body = PatchTenant,
    params(("tenant" = String, Path), IfMatch),
    responses((status = 200, body = Tenant, description = "As changed", headers(("ETag" = String))), Writes),
)]
pub async fn patch_tenant(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    Verb { body, call }: Verb<PatchTenant>,
) -> Result<Response, Problem> {
    let PatchTenant { name, status, weight, quotas, budgets } = body;
    let suspended = status.map(|status| status == WantedStatus::Suspended);
    let patch = TenantPatch { name, suspended, weight, quotas, budgets };
    let tenant = gateway.runtime.patch_tenant(keeper.tenant, patch, call.if_match, Some(&keeper.by)).await?;
    Ok(of_tenant(StatusCode::OK, &tenant))
}

/// Make a key. Its text is in this reply and nowhere else.
///
/// Who is no operator gives away no more than he has himself.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{tenant}/keys", tag = "admin", request_body = CreateKey,
    params(("tenant" = String, Path), Once),
    responses((status = 201, body = NewKey, description = "Made, and durable"), Writes),
)]
pub async fn create_key(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    Verb { body, .. }: Verb<CreateKey>,
) -> Result<Response, Problem> {
    let CreateKey { name, scopes, expires_at } = body;
    let scopes = required("scopes", scopes)?;
    if scopes.is_empty() {
        return Err(Problem::invalid("scopes", "must name at least one of read, write, approve, admin"));
    }
    if let Some(name) = &name {
        tenant::check_name("name", name)?;
    }
    let now = gateway.runtime.now();
    if expires_at.is_some_and(|at| at <= now) {
        return Err(Problem::invalid("expires_at", "has passed"));
    }
    // Whoever may administer a tenant may do everything in it, and so hand on any of it.
    let made = gateway.config.auth.as_ref().map(|auth| auth.make(name, scopes, now, expires_at));
    let made = made.ok_or_else(|| access::needs(Scope::Admin))?.map_err(|err| {
        tracing::error!(error = format!("{err:#}"), "a key cannot be made");
        Problem::new(Code::Internal, "a key cannot be made")
    })?;
    let of = gateway.runtime.add_key(keeper.tenant, made.stored, Some(&keeper.by)).await?;
    let key = NewKey { of, key: made.text.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(key)).into_response())
}

/// List the keys of a tenant that were not revoked, oldest first.
#[utoipa::path(
    get, path = "/v1/admin/tenants/{tenant}/keys", tag = "admin", params(("tenant" = String, Path)),
    responses((status = 200, body = List<ApiKey>, description = "All of them"), Reads),
)]
pub async fn list_keys(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    params: Params,
) -> Result<Json<List<ApiKey>>, Problem> {
    params.end()?;
    Ok(Json(List { data: gateway.runtime.keys(keeper.tenant)?, next_cursor: None }))
}

/// Revoke a key: nobody is heard by it from the reply on, and streams that were opened by it end.
#[utoipa::path(
    delete, path = "/v1/admin/tenants/{tenant}/keys/{key_id}", tag = "admin",
    params(("tenant" = String, Path), ("key_id" = KeyId, Path), IfMatch),
    responses((status = 204, description = "Revoked"), Writes),
)]
pub async fn revoke_key(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    OfKey(key): OfKey,
    Verb { body: Nothing {}, .. }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.revoke_key(keeper.tenant, &key, Some(&keeper.by)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read what was done in a tenant's name, oldest first: keys and tenants made and changed, decisions about agents,
/// rules, deletions.
#[utoipa::path(
    get, path = "/v1/admin/tenants/{tenant}/audit", tag = "admin", params(("tenant" = String, Path), Paged),
    responses((status = 200, body = List<AuditEntry>, description = "A page"), Reads),
)]
pub async fn list_audit(
    State(gateway): State<Arc<Gateway>>,
    keeper: OfKeeper,
    mut params: Params,
) -> Result<Json<List<AuditEntry>>, Problem> {
    let of = Of::Audit(keeper.tenant);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    gateway.runtime.tenant(keeper.tenant)?;
    let page = gateway.runtime.audit(keeper.tenant, after, limit).await?;
    let next_cursor = page.next.map(|place| cursor::encode(of, &place));
    Ok(Json(List { data: page.entries, next_cursor }))
}
