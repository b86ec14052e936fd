//! What an operator takes out of a running server, and brings back: backups, exports and imports of a tenant, and its
//! end.
//!
//! All of it is streamed, in both directions, whatever its size. What could not be finished is cut: its reader has no
//! end, and whoever restores or imports it says so.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt, stream};
use raddle_actors::{Imported, Pieces};
use raddle_domain::{
    closed::Erased,
    id::TenantId,
    tenant::{Attribution, TenantRefused},
};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{
    Gateway,
    openapi::{IfMatch, Once, Reads, Writes},
    problem::{Code, Problem},
    request::{OfKeeper, Params, Verb},
    wire::Nothing,
};
use crate::erase::{self, EraseError};

/// How long an import may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// What an import brought.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Imported)]
pub struct Brought {
    #[schema(value_type = String)]
    tenant: TenantId,
    /// Records, by table.
    records: Imported,
}

/// The pieces as a body; a failure cuts the connection, so that nobody takes what came for all there is.
fn body(pieces: Pieces) -> Body {
    Body::from_stream(pieces.map(|piece| piece.map_err(io::Error::other)))
}

fn file(kind: &'static str, name: &str, pieces: Pieces) -> Response {
    let headers: [(HeaderName, String); 3] = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, body(pieces)).into_response()
}

/// Take a backup of everything, while the server goes on.
///
/// One file, which `raddle restore` makes a data directory of: what one commit left. As long as it is read, the
/// database grows by what is changed meanwhile. Workspaces are not in it.
#[utoipa::path(
    get, path = "/v1/admin/backup", tag = "admin",
    responses(
        (status = 200, description = "The backup; one that was cut off has no end", content((Vec<u8> = "application/octet-stream"))),
        Reads,
    ),
)]
pub async fn backup(State(gateway): State<Arc<Gateway>>, params: Params) -> Result<Response, Problem> {
    params.end()?;
    Ok(file("application/octet-stream", "raddle.backup", gateway.runtime.backup()?))
}

/// Export a tenant as lines of JSON.
///
/// The first line says what it is, the last how many records there were, and their digest. Keys and receipts of
/// requests are left out.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{tenant}/export", tag = "admin",
    params(("tenant" = String, Path)),
    responses(
        (status = 200, description = "JSON, line by line; an export that was cut off has no last line", content((String = "application/x-ndjson"))),
        Writes,
    ),
)]
pub async fn export_tenant(
    State(gateway): State<Arc<Gateway>>,
    OfKeeper { tenant, by, .. }: OfKeeper,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
    gateway.runtime.tenant(tenant)?;
    gateway.runtime.note(tenant, "tenant.exported", tenant.as_str(), Some(&by)).await?;
    Ok(file("application/x-ndjson", &format!("{tenant}.ndjson"), gateway.runtime.export_tenant(tenant)?))
}

/// Bring an export in, for a tenant that has nothing yet.
///
/// It may have another name than the one that was exported. All of it is there at once, or nothing: lines that were
/// changed, or are missing, are refused with the number of the line.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{tenant}/import", tag = "admin",
    params(("tenant" = String, Path)),
    request_body(content = String, content_type = "application/x-ndjson", description = "As an export gives them"),
    responses((status = 201, body = Brought, description = "Brought in, and durable"), Writes),
)]
pub async fn import_tenant(
    State(gateway): State<Arc<Gateway>>,
    OfKeeper { tenant, by, .. }: OfKeeper,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.end()?;
    gateway.runtime.tenant(tenant)?;
    let records = gateway.runtime.import_tenant(tenant, lines(body)).await?;
    gateway.runtime.note(tenant, "tenant.imported", tenant.as_str(), Some(&by)).await?;
    Ok((StatusCode::CREATED, Json(Brought { tenant, records })).into_response())
}

/// Erase a tenant: everything that is stored of it, its keys and its workspaces. The reply is the proof.
///
/// From the moment in which it begins nothing of the tenant is seen or done; a server that ends in the middle goes on
/// at its next start. Asked again it gives the same receipt. The id is not used again. What is on the disk goes as its
/// pages are used again, and stays in earlier backups.
#[utoipa::path(
    post, path = "/v1/admin/tenants/{tenant}/erase", tag = "admin", params(("tenant" = String, Path), Once),
    responses((status = 200, body = Erased, description = "It is gone"), Writes),
)]
pub async fn erase_tenant(
    State(gateway): State<Arc<Gateway>>,
    OfKeeper { tenant, by, .. }: OfKeeper,
    _: Verb<Nothing>,
) -> Result<Json<Erased>, Problem> {
    Ok(Json(gateway.erase(tenant, &by).await?))
}

/// Delete a tenant: it is erased.
#[utoipa::path(
    delete, path = "/v1/admin/tenants/{tenant}", tag = "admin", params(("tenant" = String, Path), IfMatch),
    responses((status = 204, description = "It is gone"), Writes),
)]
pub async fn delete_tenant(
    State(gateway): State<Arc<Gateway>>,
    OfKeeper { tenant, by, .. }: OfKeeper,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    let revision = gateway.runtime.tenant(tenant)?.revision;
    if let Some(expected) = call.if_match.filter(|expected| *expected != revision) {
        return Err(TenantRefused::Precondition { expected, head: revision }.into());
    }
    gateway.erase(tenant, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Gateway {
    async fn erase(&self, tenant: TenantId, by: &Attribution) -> Result<Erased, Problem> {
        // One that is gone is known by its receipt alone.
        if self.runtime.tenant(tenant).is_err() {
            let known = self.runtime.erased_tenants().await?.contains(&tenant);
            if !known {
                return Err(Problem::not_found("tenant"));
            }
        }
        tracing::warn!(%tenant, by = by.by, request_id = by.request_id, "a tenant is erased");
        erase::erase(&self.runtime, self.config.workspaces.as_ref(), tenant).await.map_err(|error| match error {
            EraseError::Runtime(error) => error.into(),
            EraseError::Workspaces(why) => {
                tracing::error!(%tenant, error = %why, "the workspaces of an erased tenant cannot be removed");
                Problem::new(Code::Internal, "its records are erased; its workspaces cannot be removed: ask again")
            }
        })
    }
}

/// A body as it comes; one that comes no more has failed.
fn lines(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some(body.into_data_stream()), |open| async {
        let mut open = open?;
        match timeout(SILENCE, open.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(open))),
            Ok(Some(Err(why))) => Some((Err(io::Error::other(why)), None)),
            Err(_) => Some((Err(io::Error::other("the sender fell silent")), None)),
        }
    })
}
