//! A tenant, what it may use, and the keys by which its callers are known.
//!
//! Absent on purpose: secrets. A key's record says who may do what; what proves that somebody holds the key is the
//! digest beside it, and whoever checks that is outside.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    id::{KeyId, TenantId},
    price::PICO,
    record::Metadata,
    time::UnixMs,
};

/// Bytes of a tenant's or a key's name.
pub const NAME_BYTES: usize = 200;

/// Somebody whose threads are nobody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    #[schema(value_type = String, pattern = "^[a-z0-9_-]{1,32}$")]
    pub id: TenantId,
    pub name: String,
    pub status: TenantStatus,
    /// Its share where tenants wait for each other: twice the weight, twice the share.
    #[schema(value_type = u32, minimum = 1, maximum = 1000)]
    pub weight: NonZeroU32,
    pub quotas: Quotas,
    pub budgets: Budgets,
    pub created_at: UnixMs,
    pub updated_at: UnixMs,
    /// Counts its changes: what `If-Match` names.
    pub revision: u64,
}

/// Whether a tenant's callers are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TenantStatus {
    #[default]
    Active,
    /// Every key of it is refused, and no model is called for it. What is stored stays.
    Suspended,
    /// Everything that is its own is being removed.
    Erasing,
}

/// The most that a tenant may have; where nothing is said there is no bound but the server's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Threads that there are, loaded or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Threads, runs and jobs in memory; what rests makes room for what is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_threads: Option<u64>,
    /// Turns that are at work; one that waits for a person is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_turns: Option<u64>,
    /// Prompts that wait in inboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_prompts: Option<u64>,
    /// Open streams, and waits for a turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<u64>,
    /// Requests in a second, over time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub requests_per_second: Option<NonZeroU32>,
    /// Requests at once after a silence; as many as in a second unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub request_burst: Option<NonZeroU32>,
    /// Bytes of events that are kept, as they were before they were packed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

impl Quotas {
    /// Where `self` says nothing, `usual` holds.
    #[must_use]
    pub fn or(self, usual: Self) -> Self {
        Self {
            threads: self.threads.or(usual.threads),
            loaded_threads: self.loaded_threads.or(usual.loaded_threads),
            active_turns: self.active_turns.or(usual.active_turns),
            queued_prompts: self.queued_prompts.or(usual.queued_prompts),
            subscribers: self.subscribers.or(usual.subscribers),
            requests_per_second: self.requests_per_second.or(usual.requests_per_second),
            request_burst: self.request_burst.or(usual.request_burst),
            stored_bytes: self.stored_bytes.or(usual.stored_bytes),
        }
    }
}

/// What a tenant may spend, by how long that is counted. All that are given hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    /// In a UTC day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<Budget>,
    /// In a UTC calendar month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub month: Option<Budget>,
    /// Ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Budget>,
}

/// The most that may be spent on model calls. An empty one bounds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Input and output together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// A model without a price cannot be called under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<Usd>,
    /// Percent of it at which `budget.warning` is said; 80 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub warn_percent: Option<u8>,
}

/// An amount of money: pico-dollars, written as a number of dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Usd(pub u64);

impl Usd {
    /// The most that the text form names to the micro-dollar.
    const MOST: f64 = 1e7;

    /// From dollars; `None` for what is negative, no number or beyond ten million.
    pub fn from_dollars(dollars: f64) -> Option<Self> {
        let fits = (0.0..=Self::MOST).contains(&dollars);
        // To the micro-dollar: a double has no more digits to give at the upper end.
        fits.then(|| Self((dollars * 1e6).round() as u64 * (PICO / 1_000_000)))
    }

    /// In dollars.
    pub fn dollars(self) -> f64 {
        (self.0 / (PICO / 1_000_000)) as f64 / 1e6
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.dollars())
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let dollars = f64::deserialize(from)?;
        Self::from_dollars(dollars).ok_or_else(|| serde::de::Error::custom("not an amount from 0 to 10000000 dollars"))
    }
}

impl utoipa::PartialSchema for Usd {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::Number)
            .minimum(Some(0))
            .maximum(Some(Self::MOST))
            .into()
    }
}
impl ToSchema for Usd {}

/// What a key lets its holder do. Each lets him read; `admin` is all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See what there is.
    Read,
    /// Make, change and delete threads, turns, jobs and runs.
    Write,
    /// Decide what agents may do: approvals, questions, uncertain effects; and hand decisions over to rules.
    Approve,
    /// Everything, and the tenant's own keys.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Approve, Self::Admin];

    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Approve => "approve",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(())
    }
}

/// A set of scopes, as it was given.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Everything.
    pub const ALL: Self = Self::of(&Scope::ALL);

    pub const fn of(scopes: &[Scope]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < scopes.len() {
            bits |= scopes[at].bit();
            at += 1;
        }
        Self(bits)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a holder may do what takes `scope`.
    pub const fn allows(self, scope: Scope) -> bool {
        let implied = match scope {
            Scope::Read => 0b1111,
            Scope::Write | Scope::Approve | Scope::Admin => scope.bit() | Scope::Admin.bit(),
        };
        self.0 & implied != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & scope.bit() != 0)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Scope::as_str)).finish()
    }
}

impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Scopes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<Scope>::deserialize(from)?.into_iter().collect())
    }
}

/// What a server knows of a key; its secret is told once, to whoever had it made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    pub key_id: KeyId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[schema(value_type = Vec<Scope>)]
    pub scopes: Scopes,
    pub created_at: UnixMs,
    /// From then on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
}

impl ApiKey {
    pub fn is_expired(&self, now: UnixMs) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// A key as it is stored: the record, and HMAC-SHA-256 of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    #[serde(flatten)]
    pub key: ApiKey,
    #[serde(with = "hex")]
    pub digest: [u8; 32],
}

/// Digests in lower-case hex.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(digest: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let bad = || D::Error::custom("not 64 hexadecimal digits");
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(bad());
        }
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Ok(digest)
    }
}

/// Who asks for something: a word for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    /// `key:ID`, `jwt:SUBJECT`, `operator`, or `local` where there are no keys.
    pub by: String,
    /// The request in which it was asked.
    pub request_id: Option<String>,
}

/// Something that somebody did and that a tenant may have to account for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub id: crate::id::AuditId,
    pub at: UnixMs,
    /// `key:ID`, `jwt:SUBJECT`, `operator`, `local`, or `runtime`.
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What was done, such as `key.created`.
    pub action: String,
    /// What it was done to: an id, or a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// What else matters about it.
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    #[schema(value_type = Object)]
    pub detail: Metadata,
}

/// Why a tenant, or a key, cannot be as somebody wants it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantRefused {
    #[error("`{field}` {why}")]
    Invalid { field: String, why: String },
    #[error("there is such a tenant already")]
    Exists,
    #[error("the tenant is being erased")]
    Erasing,
    /// The caller's revision is not the current one.
    #[error("the tenant is at revision {head}, not {expected}")]
    Precondition { expected: u64, head: u64 },
}

/// A tenant as somebody wants it. What is absent stays, or is as usual.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TenantPatch {
    pub name: Option<String>,
    pub suspended: Option<bool>,
    pub weight: Option<NonZeroU32>,
    pub quotas: Option<Quotas>,
    pub budgets: Option<Budgets>,
}

impl TenantPatch {
    /// What of it cannot be.
    pub fn check(&self) -> Result<(), TenantRefused> {
        let invalid = |field: &str, why: String| Err(TenantRefused::Invalid { field: field.to_owned(), why });
        if let Some(name) = &self.name {
            check_name("name", name)?;
        }
        if self.weight.is_some_and(|weight| weight.get() > 1000) {
            return invalid("weight", "must be a number from 1 to 1000".to_owned());
        }
        if let Some(Quotas { requests_per_second: None, request_burst: Some(_), .. }) = self.quotas {
            return invalid("quotas.request_burst", "needs `requests_per_second` beside it".to_owned());
        }
        let budgets = self.budgets.unwrap_or_default();
        for (name, budget) in [("day", budgets.day), ("month", budgets.month), ("total", budgets.total)] {
            budget.unwrap_or_default().check(&format!("budgets.{name}"))?;
        }
        Ok(())
    }
}

impl Budget {
    /// What of it cannot be; `place` says where it stands.
    pub fn check(&self, place: &str) -> Result<(), TenantRefused> {
        if self.warn_percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
            let field = format!("{place}.warn_percent");
            return Err(TenantRefused::Invalid { field, why: "must be a number from 1 to 100".to_owned() });
        }
        Ok(())
    }
}

/// Whether a text can be a name that is shown to people.
pub fn check_name(field: &str, name: &str) -> Result<(), TenantRefused> {
    let why = match name {
        _ if name.trim().is_empty() => "is blank".to_owned(),
        _ if name.len() > NAME_BYTES => format!("has {} bytes; the limit is {NAME_BYTES}", name.len()),
        _ if name.chars().any(char::is_control) => "holds control characters".to_owned(),
        _ => return Ok(()),
    };
    Err(TenantRefused::Invalid { field: field.to_owned(), why })
}

impl Tenant {
    /// A tenant of which nobody said anything.
    pub fn implied(id: TenantId) -> Self {
        Self {
            id,
            name: id.to_string(),
            status: TenantStatus::Active,
            weight: NonZeroU32::MIN,
            quotas: Quotas::default(),
            budgets: Budgets::default(),
            created_at: UnixMs(0),
            updated_at: UnixMs(0),
            revision: 0,
        }
    }

    /// A new tenant.
    pub fn create(id: TenantId, patch: TenantPatch, now: UnixMs) -> Result<Self, TenantRefused> {
        Self { created_at: now, ..Self::implied(id) }.patched(patch, None, now)
    }

    /// The tenant with what is patched. `if_match` is the revision that the caller saw.
    pub fn patched(self, patch: TenantPatch, if_match: Option<u64>, now: UnixMs) -> Result<Self, TenantRefused> {
        patch.check()?;
        if let Some(expected) = if_match.filter(|expected| *expected != self.revision) {
            return Err(TenantRefused::Precondition { expected, head: self.revision });
        }
        let TenantPatch { name, suspended, weight, quotas, budgets } = patch;
        let status = match (self.status, suspended) {
            (TenantStatus::Erasing, _) => return Err(TenantRefused::Erasing),
            (status, None) => status,
            (_, Some(true)) => TenantStatus::Suspended,
            (_, Some(false)) => TenantStatus::Active,
        };
        Ok(Self {
            name: name.unwrap_or(self.name),
            status,
            weight: weight.unwrap_or(self.weight),
            quotas: quotas.unwrap_or(self.quotas),
            budgets: budgets.unwrap_or(self.budgets),
            updated_at: now,
            revision: self.revision + 1,
            ..self
        })
    }
}

/// What changed between two forms of a tenant, for the audit log: field by field, the new value.
pub fn changed(before: &Tenant, after: &Tenant) -> Metadata {
    let fields = |tenant: &Tenant| match serde_json::to_value(tenant) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().collect::<BTreeMap<_, _>>(),
        _ => BTreeMap::new(),
    };
    let before = fields(before);
    let quiet = ["updated_at", "revision"];
    let differs = |(name, value): &(String, serde_json::Value)| {
        !quiet.contains(&name.as_str()) && before.get(name) != Some(value)
    };
    fields(after).into_iter().filter(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> Tenant {
        Tenant::create("acme".parse().unwrap(), TenantPatch::default(), UnixMs(5)).unwrap()
    }

    fn field(refused: TenantRefused) -> String {
        match refused {
            TenantRefused::Invalid { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_scope_reads_and_admin_does_everything() {
        for scope in Scope::ALL {
            assert!(Scopes::of(&[scope]).allows(Scope::Read), "{scope}");
            assert!(Scopes::of(&[Scope::Admin]).allows(scope), "{scope}");
            assert!(!Scopes::default().allows(scope), "{scope}");
        }
        let writer = Scopes::of(&[Scope::Write]);
        assert!(!writer.allows(Scope::Approve) && !writer.allows(Scope::Admin));
        assert!(!Scopes::of(&[Scope::Approve]).allows(Scope::Write));
        assert!(!Scopes::of(&[Scope::Read]).allows(Scope::Write));
    }

    #[test]
    fn scopes_are_a_list_on_the_wire() {
        let scopes: Scopes = serde_json::from_str(r#"["approve", "read", "read"]"#).unwrap();
        assert_eq!(serde_json::to_string(&scopes).unwrap(), r#"["read","approve"]"#);
        assert!(serde_json::from_str::<Scopes>(r#"["root"]"#).is_err());
    }

    #[test]
    fn money_is_a_number_of_dollars() {
        assert_eq!(serde_json::from_str::<Usd>("0.25").unwrap(), Usd(PICO / 4));
        assert_eq!(serde_json::to_string(&Usd(PICO / 4)).unwrap(), "0.25");
        for dollars in ["0.0", "12.345678", "9999999.999999"] {
            let usd: Usd = serde_json::from_str(dollars).unwrap();
            assert_eq!(serde_json::to_string(&usd).unwrap(), dollars);
        }
        for bad in ["-1", "1e8", "\"1\"", "null"] {
            assert!(serde_json::from_str::<Usd>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_patch_changes_what_it_names_and_counts() {
        let quotas = Quotas { threads: Some(3), ..Quotas::default() };
        let patch = TenantPatch { quotas: Some(quotas), suspended: Some(true), ..TenantPatch::default() };
        let before = tenant();
        let after = before.clone().patched(patch, Some(before.revision), UnixMs(9)).unwrap();
        assert_eq!((after.quotas, after.status, after.updated_at), (quotas, TenantStatus::Suspended, UnixMs(9)));
        assert_eq!((after.name.as_str(), after.created_at, after.revision), ("acme", UnixMs(5), before.revision + 1));
        assert_eq!(changed(&before, &after).keys().collect::<Vec<_>>(), ["quotas", "status"]);
    }

    #[test]
    fn a_stale_revision_changes_nothing() {
        let refused = tenant().patched(TenantPatch::default(), Some(7), UnixMs(9)).unwrap_err();
        assert_eq!(refused, TenantRefused::Precondition { expected: 7, head: 1 });
    }

    #[test]
    fn a_tenant_that_is_being_erased_stays_so() {
        let erasing = Tenant { status: TenantStatus::Erasing, ..tenant() };
        let patch = TenantPatch { suspended: Some(false), ..TenantPatch::default() };
        assert_eq!(erasing.patched(patch, None, UnixMs(9)), Err(TenantRefused::Erasing));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        let create = |patch| Tenant::create("acme".parse().unwrap(), patch, UnixMs(5)).map_err(field).unwrap_err();
        let budget = Budget { warn_percent: Some(101), ..Budget::default() };
        let budgets = Budgets { month: Some(budget), ..Budgets::default() };
        assert_eq!(
            create(TenantPatch { budgets: Some(budgets), ..TenantPatch::default() }),
            "budgets.month.warn_percent"
        );
        assert_eq!(create(TenantPatch { name: Some(" ".into()), ..TenantPatch::default() }), "name");
        assert_eq!(create(TenantPatch { weight: NonZeroU32::new(1001), ..TenantPatch::default() }), "weight");
        let quotas = Quotas { request_burst: NonZeroU32::new(5), ..Quotas::default() };
        assert_eq!(create(TenantPatch { quotas: Some(quotas), ..TenantPatch::default() }), "quotas.request_burst");
    }

    #[test]
    fn a_stored_key_is_read_back_as_it_was() {
        let key = ApiKey {
            key_id: "abcdefghijklmno2".parse().unwrap(),
            name: None,
            scopes: Scopes::of(&[Scope::Write]),
            created_at: UnixMs(1),
            expires_at: Some(UnixMs(2)),
        };
        let stored = StoredKey { key, digest: [0xa5; 32] };
        let json = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<StoredKey>(&json).unwrap(), stored);
        assert!(serde_json::from_str::<StoredKey>(&json.replace("a5a5", "a5")).is_err());
        assert!(stored.key.is_expired(UnixMs(2)) && !stored.key.is_expired(UnixMs(1)));
    }
}
