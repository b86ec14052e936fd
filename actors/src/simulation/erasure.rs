//! The erasure of a tenant: what must be so from its first commit on, and once it was answered.
//!
//! Absent on purpose: what a watcher had in his hands before. Whoever lets him watch cuts him off.

use raddle_domain::{
    id::TenantId,
    ports::{Closing, Write},
};

use super::{
    witness::{Holds, Witness, unless},
    world::World,
};
use crate::{Error, Runtime, ThreadQuery, UsageQuery, store::tables::TABLES};

pub(crate) const ERASED: &str = "an erased tenant is gone";

/// How far an erasure has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Erasure {
    /// Nothing of the tenant is seen or stored any more.
    Begun,
    /// Nothing of it is left.
    Ended,
    /// Somebody was told so.
    Answered,
}

impl Witness {
    /// A write was stored that may be of a tenant that is erased, or erase one.
    pub fn erases(&mut self, write: &Write, left: u64) -> Holds {
        let tenant = write.tenant();
        let known = self.erasures.get_mut(&tenant);
        match (write, known) {
            (Write::Close { to: Closing::Erase, .. }, None) => {
                self.erasures.insert(tenant, Erasure::Begun);
                self.forget(tenant);
                Ok(())
            }
            (Write::Sweep { .. }, Some(erasure)) if left == 0 => {
                *erasure = Erasure::Ended.max(*erasure);
                Ok(())
            }
            (Write::Close { .. } | Write::Sweep { .. }, _) | (_, None) => Ok(()),
            (_, Some(_)) => unless(false, ERASED, || format!("something is stored for {tenant}")),
        }
    }

    pub fn is_erased(&self, tenant: TenantId) -> bool {
        self.erasures.contains_key(&tenant)
    }

    /// Something is done for a tenant.
    pub fn is_for(&self, tenant: TenantId, what: &str) -> Holds {
        unless(self.erasures.get(&tenant) != Some(&Erasure::Answered), ERASED, || {
            format!("{what} for {tenant}, after its erasure was answered")
        })
    }
}

/// In a process that has found what was erased before it: nothing of it is left, in no table.
pub(crate) async fn is_gone(runtime: &Runtime, world: &World) -> Result<Holds, Error> {
    for tenant in world.know(|witness| witness.erasures.keys().copied().collect::<Vec<_>>()) {
        let receipt = runtime.erasure(tenant).await?;
        let threads = runtime.threads(tenant, ThreadQuery { limit: 1, ..ThreadQuery::default() }).await?.data;
        let bill = runtime.usage(tenant, UsageQuery::default()).await?.totals;
        let view = runtime.shared().store.view()?;
        let mut kept = Vec::new();
        for table in TABLES.iter().filter(|table| table.tenant_at().is_some()) {
            if !view.stretch(table.name(), Some(tenant), None, 1)?.records.is_empty() {
                kept.push(table.name());
            }
        }
        let is_gone = receipt.is_some() && threads.is_empty() && bill.input_tokens == 0 && kept.is_empty();
        let held = unless(is_gone, ERASED, || {
            format!("of {tenant} there is something in {kept:?}, {threads:?}, {bill:?}; its receipt is {receipt:?}")
        });
        if held.is_err() {
            return Ok(held);
        }
    }
    Ok(Ok(()))
}
