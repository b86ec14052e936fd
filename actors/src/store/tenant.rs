//! What every store does alike with the records of a tenant.

use raddle_domain::{
    id::{TenantId, ThreadId},
    ports::{Indexed, Spent, WriteRefused},
};

use super::keys::{StoreKey, tenant::RecordIdKey};

/// Adds `spent` to what one thread spent on one day: one row for each model, ordered by its name.
pub(super) fn add_spent(rows: &mut Vec<Spent>, spent: &Spent) {
    let name = |row: &Spent| (row.engine.clone(), row.model.clone());
    match rows.binary_search_by_key(&name(spent), name) {
        Ok(at) => rows[at].totals.add(&spent.totals),
        Err(at) => rows.insert(at, spent.clone()),
    }
}

/// The refusal of a record whose id another thread has: found by it, it would be one or the other.
pub(super) fn taken(tenant: TenantId, record: &Indexed, owner: ThreadId) -> WriteRefused {
    let key = RecordIdKey::new(tenant, record.kind, record.open, record.id);
    key.corrupt(format!("not stored: the record is of {owner}")).into()
}
