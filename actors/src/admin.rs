//! What an operator asks: tenants, their keys, and what was done in their name.
//!
//! A change and its line in the tenant's audit log are one commit. The log is only added to, and goes when its tenant
//! is erased.

use std::sync::Arc;

use raddle_domain::{
    id::{AuditId, KeyId, TenantId},
    ports::{Corrupt, Document, DocumentKind, View, Write},
    record::Metadata,
    tenant::{self, ApiKey, Attribution, AuditEntry, StoredKey, Tenant, TenantPatch, TenantRefused},
    time::UnixMs,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    disk,
    handle::{Error, Runtime},
    system::Shared,
    tenants::{HeldKey, KeyDocument},
};

/// Keys of one tenant that can be used.
pub const MAX_KEYS: usize = 1000;

/// What somebody did, for the audit log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deed {
    pub action: &'static str,
    pub subject: String,
    pub detail: Metadata,
}

impl Deed {
    pub fn new(action: &'static str, subject: impl ToString) -> Self {
        Self { action, subject: subject.to_string(), detail: Metadata::new() }
    }

    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.detail.insert(name.to_owned(), value.into());
        self
    }

    /// The line of the audit log that tells of it.
    pub fn document(self, by: Option<&Attribution>, shared: &Shared) -> Document {
        let Self { action, subject, detail } = self;
        let entry = AuditEntry {
            id: AuditId::new(shared.ids.mint()),
            at: shared.clock.now(),
            by: by.map_or_else(|| "runtime".to_owned(), |by| by.by.clone()),
            request_id: by.and_then(|by| by.request_id.clone()),
            action: action.to_owned(),
            subject,
            detail,
        };
        Document { kind: DocumentKind::Audit, id: padded(entry.id.as_bytes()), json: disk::json(&entry) }
    }
}

/// A page of an audit log, newest last.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditPage {
    pub entries: Vec<AuditEntry>,
    pub next: Option<AuditId>,
}

fn padded(bytes: &[u8]) -> [u8; 32] {
    let mut id = [0; 32];
    id[..bytes.len()].copy_from_slice(bytes);
    id
}

fn tenant_document(tenant: &Tenant) -> Document {
    Document { kind: DocumentKind::Tenant, id: [0; 32], json: disk::json(tenant) }
}

fn key_document(document: &KeyDocument) -> Document {
    let id = padded(document.stored.key.key_id.as_str().as_bytes());
    Document { kind: DocumentKind::Key, id, json: disk::json(document) }
}

impl Runtime {
    /// The time by the runtime's clock.
    pub fn now(&self) -> UnixMs {
        self.shared().clock.now()
    }

    /// The tenants that somebody made, in the order of their ids.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        self.shared().tenants.recorded()
    }

    /// A tenant that somebody made.
    pub fn tenant(&self, id: TenantId) -> Result<Arc<Tenant>, Error> {
        self.shared().tenants.account(id).recorded().ok_or(Error::NotFound("tenant"))
    }

    /// Cancelled once the tenant's callers are not to be heard any more.
    pub fn heard(&self, id: TenantId) -> CancellationToken {
        self.shared().tenants.account(id).heard()
    }

    /// Makes a tenant.
    pub async fn create_tenant(
        &self,
        id: TenantId,
        patch: TenantPatch,
        by: Option<&Attribution>,
    ) -> Result<Arc<Tenant>, Error> {
        let shared = self.shared();
        let _changing = shared.tenants.changing.lock().await;
        if shared.tenants.account(id).recorded().is_some() {
            return Err(TenantRefused::Exists.into());
        }
        let tenant = Tenant::create(id, patch, shared.clock.now())?;
        let deed = Deed { detail: tenant::changed(&Tenant::implied(id), &tenant), ..Deed::new("tenant.created", id) };
        self.keep_tenant(tenant, deed, by).await
    }

    /// Changes a tenant. Quotas and budgets are replaced as a whole; they hold from the reply on.
    pub async fn patch_tenant(
        &self,
        id: TenantId,
        patch: TenantPatch,
        if_match: Option<u64>,
        by: Option<&Attribution>,
    ) -> Result<Arc<Tenant>, Error> {
        let shared = self.shared();
        let _changing = shared.tenants.changing.lock().await;
        let before = self.tenant(id)?;
        let after = Tenant::clone(&before).patched(patch, if_match, shared.clock.now())?;
        let deed = Deed { detail: tenant::changed(&before, &after), ..Deed::new("tenant.updated", id) };
        self.keep_tenant(after, deed, by).await
    }

    async fn keep_tenant(&self, tenant: Tenant, deed: Deed, by: Option<&Attribution>) -> Result<Arc<Tenant>, Error> {
        let shared = self.shared();
        let documents = vec![tenant_document(&tenant), deed.document(by, shared)];
        self.write(Write::Put { tenant: tenant.id, documents }).await?;
        let id = tenant.id;
        shared.tenants.put(tenant);
        self.tenant(id)
    }

    /// Whether there is any key that can be used.
    pub fn has_keys(&self) -> bool {
        self.shared().tenants.has_keys()
    }

    /// A key that is not revoked; it may have expired.
    pub fn key(&self, id: &KeyId) -> Option<HeldKey> {
        self.shared().tenants.key(id)
    }

    /// The keys of a tenant that are not revoked, oldest first.
    pub fn keys(&self, tenant: TenantId) -> Result<Vec<ApiKey>, Error> {
        self.tenant(tenant)?;
        Ok(self.shared().tenants.keys_of(tenant).iter().map(|stored| stored.key.clone()).collect())
    }

    /// Keeps a key that somebody made, and lets it be used.
    pub async fn add_key(
        &self,
        tenant: TenantId,
        stored: StoredKey,
        by: Option<&Attribution>,
    ) -> Result<ApiKey, Error> {
        let shared = self.shared();
        let _changing = shared.tenants.changing.lock().await;
        self.tenant(tenant)?;
        if shared.tenants.keys_of(tenant).len() >= MAX_KEYS {
            return Err(Error::Quota { limit: "keys", max: MAX_KEYS as u64 });
        }
        let key = stored.key.clone();
        let deed = Deed::new("key.created", key.key_id).with("scopes", json!(key.scopes)).with("name", json!(key.name));
        let document = KeyDocument { stored, revoked_at: None };
        let documents = vec![key_document(&document), deed.document(by, shared)];
        self.write(Write::Put { tenant, documents }).await?;
        shared.tenants.admit(tenant, document.stored);
        Ok(key)
    }

    /// Ends a key: nobody is heard by it once this returns, and what is open by it is cut off.
    pub async fn revoke_key(&self, tenant: TenantId, id: &KeyId, by: Option<&Attribution>) -> Result<(), Error> {
        let shared = self.shared();
        let _changing = shared.tenants.changing.lock().await;
        let key = shared.tenants.key(id).filter(|key| key.tenant == tenant).ok_or(Error::NotFound("key"))?;
        let stored = StoredKey::clone(&key.stored);
        let document = KeyDocument { stored, revoked_at: Some(shared.clock.now()) };
        let documents = vec![key_document(&document), Deed::new("key.revoked", id).document(by, shared)];
        self.write(Write::Put { tenant, documents }).await?;
        shared.tenants.revoke(id);
        Ok(())
    }

    /// What was done in the tenant's name after `after`, oldest first.
    pub async fn audit(&self, tenant: TenantId, after: Option<AuditId>, limit: usize) -> Result<AuditPage, Error> {
        let after = after.map(|after| padded(after.as_bytes()));
        let read = move |view: &dyn View| {
            let mut found = view.documents_after(tenant, DocumentKind::Audit, after, limit.saturating_add(1))?;
            let more = found.len() > limit;
            found.truncate(limit);
            let entry = |document: &Document| -> Result<AuditEntry, Corrupt> {
                serde_json::from_slice(&document.json)
                    .map_err(|why| Corrupt { record: format!("the audit log of {tenant}"), why: why.to_string() })
            };
            let entries = found.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
            let next = entries.last().filter(|_| more).map(|entry| entry.id);
            Ok(AuditPage { entries, next })
        };
        self.read_of(tenant, read).await
    }

    /// Makes a write that has no room for the line of the audit log beside it: the line is handed over first, so what
    /// is done is not done without it.
    pub(crate) async fn accounted(
        &self,
        tenant: TenantId,
        deed: Deed,
        by: Option<&Attribution>,
        write: Write,
    ) -> Result<(), Error> {
        let documents = vec![deed.document(by, self.shared())];
        tokio::try_join!(self.write(Write::Put { tenant, documents }), self.write(write)).map(drop)
    }

    /// Adds a line to a tenant's audit log.
    pub async fn note(
        &self,
        tenant: TenantId,
        action: &'static str,
        subject: &str,
        by: Option<&Attribution>,
    ) -> Result<(), Error> {
        let document = Deed::new(action, subject).document(by, self.shared());
        self.write(Write::Put { tenant, documents: vec![document] }).await
    }
}
