//! A tenant of which nothing may be stored: it is being brought in, or taken out, or is gone.
//!
//! ```text
//! (open) --Import--> importing --Open--> (open, without a trace)
//!                        '------Undo---> undoing --all removed--> (open, without a trace)
//! (open) --Erase---> erasing --all removed--> erased --Open--> reopened
//! ```
//! The note stands where the tenant's own records do not: under the installation, named by the tenant. It is changed
//! in the commits that it tells of, so whoever finds it after a crash knows what is left to do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::{id::TenantId, time::UnixMs};

/// Why a tenant is closed, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub tenant: TenantId,
    pub state: State,
    pub since: UnixMs,
    /// What was removed, by table.
    #[serde(default)]
    pub records: BTreeMap<String, u64>,
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub ended: Option<UnixMs>,
    /// Where removing goes on: a table, and the key there behind which, as hexadecimal digits.
    #[serde(default)]
    pub next: Option<(String, String)>,
}

/// Where it stands. See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Importing,
    Undoing,
    Erasing,
    Erased,
    Reopened,
}

impl State {
    /// Whether nothing may be stored.
    pub const fn is_closed(self) -> bool {
        !matches!(self, Self::Reopened)
    }

    /// For people.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Importing => "it is being imported",
            Self::Undoing => "an import that failed is being taken back",
            Self::Erasing => "it is being erased",
            Self::Erased | Self::Reopened => "it was erased",
        }
    }
}

/// The proof that a tenant was erased: how many records of it were removed, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Erased {
    #[schema(value_type = String)]
    pub tenant: TenantId,
    pub began_at: UnixMs,
    pub erased_at: UnixMs,
    /// Records that were removed, by table.
    pub records: BTreeMap<String, u64>,
    /// Their bytes, keys counted.
    pub bytes: u64,
    /// Over all of the above, in lower-case hex: of the lines `tenant`, `began_at`, `erased_at`, `bytes`, and
    /// `TABLE COUNT` for each table in the order of their names, each ended by a line feed.
    pub sha256: String,
}

impl Closed {
    /// A tenant that is closed now.
    pub const fn new(tenant: TenantId, state: State, since: UnixMs) -> Self {
        Self { tenant, state, since, records: BTreeMap::new(), bytes: 0, ended: None, next: None }
    }

    /// The receipt, once everything is gone.
    pub fn receipt(&self) -> Option<Erased> {
        let erased_at = self.ended.filter(|_| matches!(self.state, State::Erased | State::Reopened))?;
        let mut text = format!("{}\n{}\n{}\n{}\n", self.tenant, self.since.0, erased_at.0, self.bytes);
        for (table, count) in &self.records {
            text.push_str(&format!("{table} {count}\n"));
        }
        let sha256 = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        let (records, bytes) = (self.records.clone(), self.bytes);
        Some(Erased { tenant: self.tenant, began_at: self.since, erased_at, records, bytes, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_given_once_all_is_gone_and_its_digest_covers_all_of_it() {
        let mut closed = Closed::new(TenantId::DEFAULT, State::Erasing, UnixMs(5));
        closed.records.insert("log".into(), 3);
        assert_eq!(closed.receipt(), None);
        (closed.state, closed.ended) = (State::Erased, Some(UnixMs(9)));
        let receipt = closed.receipt().unwrap();
        assert_eq!((receipt.began_at, receipt.erased_at, receipt.records["log"]), (UnixMs(5), UnixMs(9), 3));
        let changes: [fn(&mut Closed); 5] = [
            |closed| closed.tenant = "acme".parse().unwrap(),
            |closed| closed.since = UnixMs(6),
            |closed| closed.ended = Some(UnixMs(10)),
            |closed| closed.bytes = 1,
            |closed| closed.records.values_mut().for_each(|count| *count += 1),
        ];
        for change in changes {
            let mut other = closed.clone();
            change(&mut other);
            assert_ne!(other.receipt().unwrap().sha256, receipt.sha256);
        }
        closed.state = State::Reopened;
        assert_eq!(closed.receipt().unwrap(), receipt);
    }
}
