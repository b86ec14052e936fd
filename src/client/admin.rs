//! Tenants, keys and the audit log: with the operator's key, or as far as it is his own with that of a tenant's
//! administrator.

use std::time::Duration;

use raddle_domain::{
    closed::Erased,
    tenant::{ApiKey, AuditEntry, Tenant},
};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Client, ClientError, Page};

/// A key with its text, which is told this once.
#[derive(Serialize, Deserialize)]
pub struct NewKey {
    #[serde(flatten)]
    pub of: ApiKey,
    pub key: String,
}

/// Without its text.
impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("of", &self.of).finish_non_exhaustive()
    }
}

/// How much of its quotas and budgets a tenant uses.
#[derive(Debug, Serialize, Deserialize)]
pub struct TenantUsage {
    pub quotas: Vec<QuotaLine>,
    pub budgets: Vec<Value>,
}

/// A quota, and how far it is used up.
#[derive(Debug, Serialize, Deserialize)]
pub struct QuotaLine {
    pub limit: String,
    pub used: u64,
    /// None where only the server's own bounds hold.
    pub max: Option<u64>,
}

/// How long a tenant with much may take to go.
const ERASURE: Duration = Duration::from_secs(60 * 60);

const ADMIN: [&str; 3] = ["v1", "admin", "tenants"];

impl Client {
    /// Makes a tenant; the fields are those of the API.
    pub async fn create_tenant(&self, new: &Map<String, Value>) -> Result<Tenant, ClientError> {
        self.json(self.post(&ADMIN).json(new)).await
    }

    /// A page of tenants, in the order of their ids.
    pub async fn tenants(&self, query: &[(&str, String)]) -> Result<Page<Tenant>, ClientError> {
        self.json(self.request(Method::GET, &ADMIN, query)).await
    }

    pub async fn tenant(&self, tenant: &str) -> Result<Tenant, ClientError> {
        self.json(self.request(Method::GET, &["v1", "admin", "tenants", tenant], &[])).await
    }

    /// Changes a tenant; the fields are those of the API.
    pub async fn patch_tenant(&self, tenant: &str, patch: &Map<String, Value>) -> Result<Tenant, ClientError> {
        self.json(self.request(Method::PATCH, &["v1", "admin", "tenants", tenant], &[]).json(patch)).await
    }

    /// How much of its quotas and budgets a tenant uses.
    pub async fn tenant_usage(&self, tenant: &str) -> Result<TenantUsage, ClientError> {
        self.json(self.request(Method::GET, &["v1", "admin", "tenants", tenant, "usage"], &[])).await
    }

    /// Removes everything of a tenant; the proof.
    pub async fn erase_tenant(&self, tenant: &str) -> Result<Erased, ClientError> {
        let request = self.post(&["v1", "admin", "tenants", tenant, "erase"]).timeout(ERASURE);
        let response = self.send(request).await?;
        response.json().await.map_err(|err| ClientError::Failed(err.to_string()))
    }

    /// Makes a key. Its text is in the reply and nowhere else.
    pub async fn create_key(&self, tenant: &str, new: &Map<String, Value>) -> Result<NewKey, ClientError> {
        self.json(self.post(&["v1", "admin", "tenants", tenant, "keys"]).json(new)).await
    }

    /// The keys of a tenant that were not revoked, oldest first.
    pub async fn keys(&self, tenant: &str) -> Result<Vec<ApiKey>, ClientError> {
        let page: Page<ApiKey> =
            self.json(self.request(Method::GET, &["v1", "admin", "tenants", tenant, "keys"], &[])).await?;
        Ok(page.data)
    }

    /// Ends a key, and what is open by it.
    pub async fn revoke_key(&self, tenant: &str, key: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "admin", "tenants", tenant, "keys", key]).await
    }

    /// A page of what was done in a tenant's name, oldest first.
    pub async fn audit(&self, tenant: &str, query: &[(&str, String)]) -> Result<Page<AuditEntry>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "admin", "tenants", tenant, "audit"], query)).await
    }
}
