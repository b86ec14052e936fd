//! A tenant that goes: its records in the store, and its workspaces on the disk.

use std::{io, sync::Arc};

use raddle_actors::{Error, Runtime};
use raddle_domain::{closed::Erased, id::TenantId};

use crate::workspace::Workspaces;

/// Why a tenant is not gone whole. Calling again goes on.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    #[error(transparent)]
    Runtime(#[from] Error),
    /// Its records are gone.
    #[error("its records are erased, its workspaces cannot be removed: {0}")]
    Workspaces(io::Error),
}

/// Erases the tenant; its receipt, which is the same however often it is asked for. See
/// [`Runtime::erase_tenant`]. Its workspaces go last, when none of its tools is at work any more.
pub async fn erase(
    runtime: &Runtime,
    workspaces: Option<&Arc<Workspaces>>,
    tenant: TenantId,
) -> Result<Erased, EraseError> {
    let receipt = runtime.erase_tenant(tenant).await?;
    if let Some(workspaces) = workspaces.cloned() {
        let removed = tokio::task::spawn_blocking(move || workspaces.remove_tenant(tenant)).await;
        removed.unwrap_or_else(|why| Err(io::Error::other(why))).map_err(EraseError::Workspaces)?;
    }
    Ok(receipt)
}

/// Goes on with what an earlier process did not finish.
pub async fn go_on(runtime: Runtime, workspaces: Arc<Workspaces>) {
    let tenants = match runtime.erased_tenants().await {
        Ok(tenants) => tenants,
        Err(error) => return tracing::error!(%error, "it is not known which tenants were being erased"),
    };
    for tenant in tenants {
        if let Err(error) = erase(&runtime, Some(&workspaces), tenant).await {
            tracing::error!(%tenant, %error, "a tenant is not erased whole; the next start tries again");
        }
    }
}
