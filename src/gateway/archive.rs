//! What an operator takes out of a running server, and brings back: backups, exports and imports of a tenant.
//!
//! All of it is streamed, in both directions, whatever its size. What could not be finished is cut: its reader has no
//! end, and whoever restores or imports it says so.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequestParts, State},
    http::{HeaderName, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt, stream};
use raddle_actors::{Imported, Pieces};
use raddle_domain::id::TenantId;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{
    Gateway,
    openapi::{Reads, Writes},
    problem::Problem,
    request::{Caller, Params, in_path},
};

/// How long an import may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// The tenant that the path names.
#[derive(Debug, Clone, Copy)]
pub struct Named(TenantId);

impl FromRequestParts<Arc<Gateway>> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        Caller::from_request_parts(parts, gateway).await?;
        Ok(Self(in_path(parts, "tenant", "tenant").await?))
    }
}

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
pub async fn backup(State(gateway): State<Arc<Gateway>>, _: Caller, params: Params) -> Result<Response, Problem> {
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
    Named(tenant): Named,
    params: Params,
) -> Result<Response, Problem> {
    params.end()?;
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
    Named(tenant): Named,
    params: Params,
    body: Body,
) -> Result<Response, Problem> {
    params.end()?;
    let records = gateway.runtime.import_tenant(tenant, lines(body)).await?;
    Ok((axum::http::StatusCode::CREATED, Json(Brought { tenant, records })).into_response())
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
