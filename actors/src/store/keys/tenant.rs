//! Names of what is a tenant's rather than one thread's: its feed, what is found by an id across its threads, what
//! was spent, and its documents.

use raddle_domain::ports::{DocumentKind, RecordKind};
use uuid::Uuid;

use super::*;

keys! {
    /// (tenant, position): an append in the order of the commits.
    FeedKey[40] = "feed", tenant Some(0);
    /// (tenant, kind, whether it is closed, id): the thread of a record.
    RecordIdKey[50] = "record_ids", tenant Some(0);
    /// (tenant, thread, kind, id): where in the thread's log a record stands.
    RecordKey[65] = "records", tenant Some(0);
    /// (tenant, day, thread): what the thread spent on the day.
    SpentKey[52] = "spent", tenant Some(0);
    /// (tenant, kind, id): a document.
    DocumentKey[65] = "documents", tenant Some(0);
}

/// Sealed records.
pub(crate) const FEED: TableDefinition<FeedKey, &[u8]> = TableDefinition::new(FeedKey::TABLE);
pub(crate) const RECORD_IDS: TableDefinition<RecordIdKey, &[u8]> = TableDefinition::new(RecordIdKey::TABLE);
pub(crate) const RECORDS: TableDefinition<RecordKey, &[u8]> = TableDefinition::new(RecordKey::TABLE);
pub(crate) const SPENT: TableDefinition<SpentKey, &[u8]> = TableDefinition::new(SpentKey::TABLE);
pub(crate) const DOCUMENTS: TableDefinition<DocumentKey, &[u8]> = TableDefinition::new(DocumentKey::TABLE);

impl FeedKey {
    pub(crate) fn new(tenant: TenantId, position: u64) -> Self {
        Self::join(&[tenant.as_bytes(), &position.to_be_bytes()])
    }
    /// The keys of the tenant from `position` on.
    pub(crate) fn from(tenant: TenantId, position: u64) -> RangeInclusive<Self> {
        Self::new(tenant, position)..=Self::new(tenant, u64::MAX)
    }
    pub(crate) fn position(&self) -> u64 {
        u64::from_be_bytes(self.part(32))
    }
    /// Whose feed; `None` when the key is damaged.
    pub(crate) fn tenant(&self) -> Option<TenantId> {
        TenantId::from_bytes(self.part(0)).ok()
    }
    /// The last key of the same feed.
    pub(crate) fn last(&self) -> Self {
        Self::join(&[&self.0[..32], &u64::MAX.to_be_bytes()])
    }
    fn show(&self) -> String {
        format!("{}/{}", tenant(self.part(0)), self.position())
    }
}

impl RecordIdKey {
    pub(crate) fn new(tenant: TenantId, kind: RecordKind, open: bool, id: Uuid) -> Self {
        // What is open stands first: it is what people ask for.
        Self::join(&[tenant.as_bytes(), &[kind as u8, u8::from(!open)], id.as_bytes()])
    }
    pub(crate) fn after(
        tenant: TenantId,
        kind: RecordKind,
        open: bool,
        after: Option<Uuid>,
    ) -> (Bound<Self>, Bound<Self>) {
        let key = |id| Self::new(tenant, kind, open, id);
        rest(key(Uuid::nil()), after.map(key), key(Uuid::max()))
    }
    /// Every key of the tenant.
    pub(crate) fn all(tenant: TenantId) -> RangeInclusive<Self> {
        Self::join(&[tenant.as_bytes(), &[0; 18]])..=Self::join(&[tenant.as_bytes(), &[0xff; 18]])
    }
    /// Whether it is one of the tenant's.
    pub(crate) fn names_tenant(&self, tenant: TenantId) -> bool {
        self.0.starts_with(tenant.as_bytes())
    }
    pub(crate) fn id(&self) -> Uuid {
        Uuid::from_bytes(self.part(34))
    }
    fn show(&self) -> String {
        let [kind, closed] = self.part(32);
        format!("{}/{kind}/{closed}/{}", tenant(self.part(0)), self.id())
    }
}

impl RecordKey {
    pub(crate) fn new(key: ThreadKey, kind: RecordKind, id: Uuid) -> Self {
        Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes(), &[kind as u8], id.as_bytes()])
    }
    pub(crate) fn after(key: ThreadKey, kind: RecordKind, after: Option<Uuid>) -> (Bound<Self>, Bound<Self>) {
        let name = |id| Self::new(key, kind, id);
        rest(name(Uuid::nil()), after.map(name), name(Uuid::max()))
    }
    /// Every key of the thread.
    pub(crate) fn all(key: ThreadKey) -> RangeInclusive<Self> {
        let end = |with: &[u8; 17]| Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes(), with]);
        end(&[0; 17])..=end(&[0xff; 17])
    }
    pub(crate) fn id(&self) -> Uuid {
        Uuid::from_bytes(self.part(49))
    }
    /// The entries that lead here, whether it is open or not.
    pub(crate) fn entries(&self) -> [RecordIdKey; 2] {
        [0, 1].map(|closed| RecordIdKey::join(&[&self.0[..32], &[self.0[48], closed], &self.0[49..]]))
    }
    fn show(&self) -> String {
        let [kind] = self.part(48);
        format!("{}/{}/{kind}/{}", tenant(self.part(0)), ThreadId::from_bytes(self.part(32)), self.id())
    }
}

impl SpentKey {
    pub(crate) fn new(key: ThreadKey, day: u32) -> Self {
        Self::join(&[key.tenant.as_bytes(), &day.to_be_bytes(), key.thread.as_bytes()])
    }
    /// The keys of the days `from..=to` after the place `after`; `None` when there can be none.
    pub(crate) fn days(
        tenant: TenantId,
        from: u32,
        to: u32,
        after: Option<(u32, ThreadId)>,
    ) -> Option<(Bound<Self>, Bound<Self>)> {
        let key = |day, thread| Self::new(ThreadKey { tenant, thread }, day);
        let after = after.filter(|(day, _)| *day >= from);
        if from > to || after.is_some_and(|(day, _)| day > to) {
            return None;
        }
        let first = key(from, ThreadId::from_bytes(FIRST_ID));
        Some(rest(first, after.map(|(day, thread)| key(day, thread)), key(to, ThreadId::from_bytes(LAST_ID))))
    }
    pub(crate) fn day(&self) -> u32 {
        u32::from_be_bytes(self.part(32))
    }
    pub(crate) fn thread(&self) -> ThreadId {
        ThreadId::from_bytes(self.part(36))
    }
    fn show(&self) -> String {
        format!("{}/{}/{}", tenant(self.part(0)), self.day(), self.thread())
    }
}

impl DocumentKey {
    pub(crate) fn new(tenant: TenantId, kind: DocumentKind, id: &[u8; 32]) -> Self {
        Self::join(&[tenant.as_bytes(), &[kind as u8], id])
    }
    /// Every key of the kind.
    pub(crate) fn all(tenant: TenantId, kind: DocumentKind) -> RangeInclusive<Self> {
        Self::new(tenant, kind, &[0; 32])..=Self::new(tenant, kind, &[0xff; 32])
    }
    /// The keys of the kind after the one that is named `after`.
    pub(crate) fn after(tenant: TenantId, kind: DocumentKind, after: Option<[u8; 32]>) -> (Bound<Self>, Bound<Self>) {
        let key = |id: [u8; 32]| Self::new(tenant, kind, &id);
        rest(key([0; 32]), after.map(key), key([0xff; 32]))
    }
    /// Whose it is; `None` when the key is damaged.
    pub(crate) fn tenant(&self) -> Option<TenantId> {
        TenantId::from_bytes(self.part(0)).ok()
    }
    /// The last key that the same tenant can have.
    pub(crate) fn last(&self) -> Self {
        Self::join(&[&self.0[..32], &[0xff; 33]])
    }
    pub(crate) fn id(&self) -> [u8; 32] {
        self.part(33)
    }
    fn show(&self) -> String {
        let [kind] = self.part(32);
        format!("{}/{kind}/{}", tenant(self.part(0)), hex(&self.id()))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::key, *};

    #[test]
    fn keys_stand_in_the_order_of_what_they_name() {
        let (a, b) = (key("a", 1), key("b", 1));
        let in_order = |keys: &[&dyn AsRef<[u8]>]| keys.windows(2).all(|pair| pair[0].as_ref() < pair[1].as_ref());
        let feed = |key: ThreadKey, at| FeedKey::new(key.tenant, at).0;
        assert!(in_order(&[&feed(a, 1), &feed(a, 2), &feed(a, 256), &feed(b, 0)]));
        let spent = |key, day| SpentKey::new(key, day).0;
        assert!(in_order(&[&spent(a, 1), &spent(key("a", 2), 1), &spent(a, 256), &spent(b, 0)]));
        let record = |open, id| RecordIdKey::new(a.tenant, RecordKind::Question, open, Uuid::from_u128(id)).0;
        assert!(in_order(&[&record(true, 1), &record(true, 256), &record(false, 0)]));
    }

    #[test]
    fn a_key_tells_what_it_was_made_of() {
        let (of, id) = (key("acme", 7), Uuid::from_u128(9));
        let feed = FeedKey::new(of.tenant, 77);
        assert_eq!((feed.position(), feed.tenant()), (77, Some(of.tenant)));
        assert_eq!(feed.last(), FeedKey::new(of.tenant, u64::MAX));
        let record = RecordKey::new(of, RecordKind::Effect, id);
        assert_eq!((record.id(), record.is_of(of), record.is_of(key("acme", 8))), (id, true, false));
        let entries = [true, false].map(|open| RecordIdKey::new(of.tenant, RecordKind::Effect, open, id));
        assert_eq!(record.entries(), entries);
        assert_eq!(entries[1].id(), id);
        let spent = SpentKey::new(of, 20_000);
        assert_eq!((spent.day(), spent.thread()), (20_000, of.thread));
        assert_eq!(DocumentKey::new(of.tenant, DocumentKind::PolicyRule, &[3; 32]).id(), [3; 32]);
    }

    #[test]
    fn days_that_cannot_be_are_no_range() {
        let tenant = key("a", 1).tenant;
        let at = |day| Some((day, ThreadId::from_bytes([5; 16])));
        assert!(SpentKey::days(tenant, 3, 2, None).is_none());
        assert!(SpentKey::days(tenant, 1, 2, at(3)).is_none());
        // A place before the days asked for excludes nothing of them.
        assert_eq!(SpentKey::days(tenant, 2, 3, at(1)), SpentKey::days(tenant, 2, 3, None));
        assert!(SpentKey::days(tenant, 2, 2, at(2)).is_some());
    }
}
