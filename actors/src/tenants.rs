//! The tenants and their keys, as they are now: in memory, because every request asks for them.
//!
//! What is here is what is stored. A change is stored first and shown afterwards, under one lock, so two changes of a
//! tenant follow each other, and a key that is revoked is known to nobody once its revocation was answered.
//!
//! A tenant of which nobody said anything is one without quotas: whoever embeds the runtime need not introduce those
//! it serves. Absent on purpose: secrets, and who may do what with a key; the gateway knows both.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use dashmap::DashMap;
use raddle_domain::{
    id::{KeyId, TenantId},
    ports::{Corrupt, DocumentKind, StoreError, View},
    tenant::{Quotas, StoredKey, Tenant, TenantStatus},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::quotas::Tally;

/// Everybody who is known.
#[derive(Default)]
pub(crate) struct Tenants {
    accounts: DashMap<TenantId, Arc<Account>>,
    keys: DashMap<KeyId, HeldKey>,
    /// Accounts that are not the server's own.
    known: AtomicUsize,
    /// What holds where a tenant's own record says nothing.
    usual: Quotas,
    /// Held while a change is stored.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

/// What is true of one tenant while the process lives.
pub(crate) struct Account {
    pub id: TenantId,
    pub tally: Tally,
    now: RwLock<Now>,
}

struct Now {
    tenant: Arc<Tenant>,
    /// Whether somebody made it, rather than named it.
    recorded: bool,
    /// Cancelled when its callers are not to be heard any more.
    heard: CancellationToken,
}

/// A key that can be used, unless it has expired.
#[derive(Debug, Clone)]
pub struct HeldKey {
    pub tenant: TenantId,
    pub stored: Arc<StoredKey>,
    /// Cancelled when the key is revoked.
    pub revoked: CancellationToken,
}

/// A key's document.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyDocument {
    #[serde(flatten)]
    pub stored: StoredKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<raddle_domain::time::UnixMs>,
}

impl Account {
    /// The tenant as it is now.
    pub fn tenant(&self) -> Arc<Tenant> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).tenant.clone()
    }

    /// The tenant, if somebody made it.
    pub fn recorded(&self) -> Option<Arc<Tenant>> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        now.recorded.then(|| now.tenant.clone())
    }

    /// Cancelled once its callers are not to be heard any more.
    pub fn heard(&self) -> CancellationToken {
        self.now.read().unwrap_or_else(PoisonError::into_inner).heard.clone()
    }

    fn set(&self, tenant: Tenant, recorded: bool) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        match tenant.status {
            TenantStatus::Active if now.heard.is_cancelled() => now.heard = CancellationToken::new(),
            TenantStatus::Active => {}
            TenantStatus::Suspended | TenantStatus::Erasing => now.heard.cancel(),
        }
        (now.tenant, now.recorded) = (Arc::new(tenant), recorded);
    }
}

impl Tenants {
    /// Everybody whom the store knows. A record that cannot be read is a reason not to start: to pass over it would
    /// let its tenant do without its bounds.
    pub fn load(view: &dyn View, usual: Quotas) -> Result<Self, StoreError> {
        let tenants = Self { usual, ..Self::default() };
        for id in view.tenants()? {
            for document in view.documents(id, DocumentKind::Tenant)? {
                tenants.put(read(id, "tenant", &document.json)?);
            }
            for document in view.documents(id, DocumentKind::Key)? {
                let KeyDocument { stored, revoked_at } = read(id, "key", &document.json)?;
                if revoked_at.is_none() {
                    tenants.admit(id, stored);
                }
            }
        }
        Ok(tenants)
    }

    /// The account of a tenant, made when it is asked for the first time.
    pub fn account(&self, id: TenantId) -> Arc<Account> {
        if let Some(account) = self.accounts.get(&id) {
            return account.clone();
        }
        let made = || {
            self.known.fetch_add(usize::from(is_somebody(id)), Relaxed);
            Account::new(Tenant::implied(id))
        };
        self.accounts.entry(id).or_insert_with(made).clone()
    }

    /// Whether more than one tenant is known.
    pub fn are_several(&self) -> bool {
        self.known.load(Relaxed) > 1
    }

    /// The bounds that hold for a tenant.
    pub fn quotas(&self, account: &Account) -> Quotas {
        account.tenant().quotas.or(self.usual)
    }

    /// Shows a tenant as it is from now on.
    pub fn put(&self, tenant: Tenant) {
        self.account(tenant.id).set(tenant, true);
    }

    /// Forgets a tenant and its keys: whoever is heard as one of them is cut off.
    pub fn forget(&self, id: TenantId) {
        if let Some((_, account)) = self.accounts.remove(&id) {
            self.known.fetch_sub(usize::from(is_somebody(id)), Relaxed);
            account.heard().cancel();
        }
        self.keys.retain(|_, key| key.tenant != id);
    }

    /// The tenants that somebody made, in the order of their ids.
    pub fn recorded(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.accounts.iter().filter_map(|account| account.recorded()).collect();
        all.sort_by_key(|tenant| tenant.id);
        all
    }

    /// Lets a key be used.
    pub fn admit(&self, tenant: TenantId, stored: StoredKey) {
        let id = stored.key.key_id;
        self.keys.insert(id, HeldKey { tenant, stored: Arc::new(stored), revoked: CancellationToken::new() });
    }

    /// Ends a key, and whatever is open by it.
    pub fn revoke(&self, id: &KeyId) {
        if let Some((_, key)) = self.keys.remove(id) {
            key.revoked.cancel();
        }
    }

    pub fn key(&self, id: &KeyId) -> Option<HeldKey> {
        self.keys.get(id).map(|key| key.clone())
    }

    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The keys of a tenant, oldest first.
    pub fn keys_of(&self, tenant: TenantId) -> Vec<Arc<StoredKey>> {
        let of = self.keys.iter().filter(|key| key.tenant == tenant);
        let mut keys: Vec<_> = of.map(|key| key.stored.clone()).collect();
        keys.sort_by_key(|stored| (stored.key.created_at, stored.key.key_id));
        keys
    }
}

impl Account {
    fn new(tenant: Tenant) -> Arc<Self> {
        let now = Now { tenant: Arc::new(tenant), recorded: false, heard: CancellationToken::new() };
        Arc::new(Self { id: now.tenant.id, tally: Tally::default(), now: RwLock::new(now) })
    }
}

/// Whether a name is a tenant's, not one of the server's own.
fn is_somebody(id: TenantId) -> bool {
    id != TenantId::SYSTEM
}

fn read<T: for<'de> Deserialize<'de>>(tenant: TenantId, what: &str, json: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(json)
        .map_err(|why| Corrupt { record: format!("the {what} record of {tenant}"), why: why.to_string() }.into())
}
