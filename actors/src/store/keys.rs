//! Names of stored records: fixed-width, big-endian, owner first.
//!
//! A key can only be made from typed ids, so no record is reached without a [`TenantId`]. The tables that are
//! ordered by time (`timers`, `job_timers`, `receipt_expiry`, `unpacked`) put the time before the tenant, because they are walked for
//! everyone at once; the tenant still stands in the key.

use std::{
    cmp::Ordering,
    ops::{Bound, RangeInclusive},
};

use ::redb::{Key, TableDefinition, TypeName, Value};
use raddle_domain::{
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Corrupt, PartKind, PartName},
    time::UnixMs,
};

/// A key of one table.
pub(crate) trait StoreKey: Copy {
    const TABLE: &'static str;
    const WIDTH: usize;
    /// Where in the key its tenant stands. What goes through all of a tenant's records goes by this.
    const TENANT_AT: Option<usize>;
    /// The key of these bytes, if they are as many as a key has.
    fn from_slice(bytes: &[u8]) -> Option<Self>;
    fn bytes(&self) -> &[u8];
    /// The key for a person, without the table.
    fn place(&self) -> String;

    /// Whether it begins with the thread's full name.
    fn is_of(&self, key: ThreadKey) -> bool {
        self.bytes().starts_with(RowKey::new(key).bytes())
    }

    /// Whether this entry of an index names the thread: each ends with it, and holds its tenant.
    fn names(&self, key: ThreadKey) -> bool {
        let tenant = key.tenant.as_bytes();
        let (bytes, thread) = (self.bytes(), key.thread.as_bytes());
        bytes.ends_with(thread) && (bytes.starts_with(tenant) || bytes[8..].starts_with(tenant))
    }

    /// The error about the record under this key.
    fn corrupt(&self, why: impl Into<String>) -> Corrupt {
        Corrupt { record: format!("{} {}", Self::TABLE, self.place()), why: why.into() }
    }
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident[$width:literal] = $table:literal, tenant $tenant_at:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name([u8; $width]);

        impl $name {
            fn join(parts: &[&[u8]]) -> Self {
                let mut bytes = [0; $width];
                let mut at = 0;
                for part in parts {
                    bytes[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                debug_assert_eq!(at, $width);
                Self(bytes)
            }

            fn part<const N: usize>(&self, at: usize) -> [u8; N] {
                let mut part = [0; N];
                part.copy_from_slice(&self.0[at..at + N]);
                part
            }
        }

        impl StoreKey for $name {
            const TABLE: &'static str = $table;
            const WIDTH: usize = $width;
            const TENANT_AT: Option<usize> = $tenant_at;
            fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
            fn bytes(&self) -> &[u8] {
                &self.0
            }
            fn place(&self) -> String {
                self.show()
            }
        }

        impl Value for $name {
            type SelfType<'a> = $name;
            type AsBytes<'a> = &'a [u8; $width];

            fn fixed_width() -> Option<usize> {
                Some($width)
            }
            fn from_bytes<'a>(data: &'a [u8]) -> $name where Self: 'a {
                // redb slices keys by the width above.
                let mut bytes = [0; $width];
                bytes.copy_from_slice(data);
                $name(bytes)
            }
            fn as_bytes<'a, 'b: 'a>(value: &'a $name) -> &'a [u8; $width] where Self: 'b {
                &value.0
            }
            fn type_name() -> TypeName {
                TypeName::new(concat!("raddle::", $table))
            }
        }

        impl Key for $name {
            fn compare(left: &[u8], right: &[u8]) -> Ordering {
                left.cmp(right)
            }
        }
    )*};
}

keys! {
    /// (tenant, thread): the row of a thread.
    RowKey[48] = "threads", tenant Some(0);
    /// (tenant, thread, first seq): a chunk of its log.
    LogKey[56] = "log", tenant Some(0);
    /// (tenant, thread, started seq): a turn that ended.
    TurnKey[56] = "turns", tenant Some(0);
    /// (tenant, thread, turn id): where its turn stands in `turns`.
    TurnIdKey[64] = "turn_ids", tenant Some(0);
    /// (tenant, digest): the reply to a request.
    ReceiptKey[64] = "receipts", tenant Some(0);
    /// (expires at, tenant, digest): which receipts go first.
    ExpiryKey[72] = "receipt_expiry", tenant Some(8);
    /// (tenant, owes since, thread): what has work to do.
    OwingKey[56] = "owing", tenant Some(0);
    /// (tenant, listed at, thread): what was active when it last settled.
    RecentKey[56] = "recent", tenant Some(0);
    /// (wake at, tenant, thread): what is to be woken.
    TimerKey[56] = "timers", tenant Some(8);
    /// (tenant, since, log): what of jobs and schedules is under way.
    JobOwingKey[56] = "job_owing", tenant Some(0);
    /// (due at, tenant, log): what of jobs and schedules is due.
    JobTimerKey[56] = "job_timers", tenant Some(8);
    /// The store about itself.
    MetaKey[8] = "meta", tenant None;
    /// (tenant, parent, child): whose log continues whose.
    ForkKey[64] = "forks", tenant Some(0);
    /// (ended at, tenant, thread, started seq): whose log is to be packed, first to end first.
    UnpackedKey[64] = "unpacked", tenant Some(8);
    /// (tenant, log, kind, name): a piece of what is true of it now.
    PartKey[81] = "parts", tenant Some(0);
}

pub(crate) mod tenant;

/// Sealed records.
pub(crate) const LOG: TableDefinition<LogKey, &[u8]> = TableDefinition::new(LogKey::TABLE);
pub(crate) const THREADS: TableDefinition<RowKey, &[u8]> = TableDefinition::new(RowKey::TABLE);
pub(crate) const TURNS: TableDefinition<TurnKey, &[u8]> = TableDefinition::new(TurnKey::TABLE);
pub(crate) const TURN_IDS: TableDefinition<TurnIdKey, &[u8]> = TableDefinition::new(TurnIdKey::TABLE);
pub(crate) const RECEIPTS: TableDefinition<ReceiptKey, &[u8]> = TableDefinition::new(ReceiptKey::TABLE);
pub(crate) const META: TableDefinition<MetaKey, &[u8]> = TableDefinition::new(MetaKey::TABLE);
pub(crate) const FORKS: TableDefinition<ForkKey, &[u8]> = TableDefinition::new(ForkKey::TABLE);
pub(crate) const UNPACKED: TableDefinition<UnpackedKey, &[u8]> = TableDefinition::new(UnpackedKey::TABLE);
pub(crate) const PARTS: TableDefinition<PartKey, &[u8]> = TableDefinition::new(PartKey::TABLE);
/// Indexes: the key is all there is, sealed so that a damaged one is noticed.
pub(crate) const EXPIRY: TableDefinition<ExpiryKey, &[u8; 8]> = TableDefinition::new(ExpiryKey::TABLE);
pub(crate) const OWING: TableDefinition<OwingKey, &[u8; 8]> = TableDefinition::new(OwingKey::TABLE);
pub(crate) const RECENT: TableDefinition<RecentKey, &[u8; 8]> = TableDefinition::new(RecentKey::TABLE);
pub(crate) const TIMERS: TableDefinition<TimerKey, &[u8; 8]> = TableDefinition::new(TimerKey::TABLE);
pub(crate) const JOB_OWING: TableDefinition<JobOwingKey, &[u8; 8]> = TableDefinition::new(JobOwingKey::TABLE);
pub(crate) const JOB_TIMERS: TableDefinition<JobTimerKey, &[u8; 8]> = TableDefinition::new(JobTimerKey::TABLE);

const FIRST_ID: [u8; 16] = [0; 16];
const LAST_ID: [u8; 16] = [0xff; 16];

fn tenant(bytes: [u8; 32]) -> String {
    TenantId::from_bytes(bytes).map_or_else(|_| "(no tenant)".to_owned(), |tenant| tenant.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The keys after `after`, which is one of `from..=to`; all of them without it.
fn rest<K>(from: K, after: Option<K>, to: K) -> (Bound<K>, Bound<K>) {
    (after.map_or(Bound::Included(from), Bound::Excluded), Bound::Included(to))
}

impl RowKey {
    pub(crate) fn new(key: ThreadKey) -> Self {
        Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes()])
    }
    fn show(&self) -> String {
        format!("{}/{}", tenant(self.part(0)), ThreadId::from_bytes(self.part(32)))
    }
}

macro_rules! of_thread_by_seq {
    ($($name:ident)*) => {$(
        impl $name {
            pub(crate) fn new(key: ThreadKey, seq: Seq) -> Self {
                Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes(), &seq.to_be_bytes()])
            }
            /// Every key of the thread.
            pub(crate) fn all(key: ThreadKey) -> RangeInclusive<Self> {
                Self::new(key, 0)..=Self::new(key, Seq::MAX)
            }
            pub(crate) fn seq(&self) -> Seq {
                Seq::from_be_bytes(self.part(48))
            }
            fn show(&self) -> String {
                format!("{}/{}/{}", tenant(self.part(0)), ThreadId::from_bytes(self.part(32)), self.seq())
            }
        }
    )*};
}
of_thread_by_seq!(LogKey TurnKey);

impl TurnIdKey {
    pub(crate) fn new(key: ThreadKey, turn: TurnId) -> Self {
        Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes(), turn.as_bytes()])
    }
    /// Every key of the thread.
    pub(crate) fn all(key: ThreadKey) -> RangeInclusive<Self> {
        Self::new(key, TurnId::from_bytes(FIRST_ID))..=Self::new(key, TurnId::from_bytes(LAST_ID))
    }
    pub(crate) fn turn(&self) -> TurnId {
        TurnId::from_bytes(self.part(48))
    }
    fn show(&self) -> String {
        let thread = ThreadId::from_bytes(self.part(32));
        format!("{}/{thread}/{}", tenant(self.part(0)), self.turn())
    }
}

impl ReceiptKey {
    pub(crate) fn new(tenant: TenantId, digest: &[u8; 32]) -> Self {
        Self::join(&[tenant.as_bytes(), digest])
    }
    fn show(&self) -> String {
        format!("{}/{}", tenant(self.part(0)), hex(&self.0[32..]))
    }
}

impl ExpiryKey {
    pub(crate) fn new(at: UnixMs, receipt: &ReceiptKey) -> Self {
        Self::join(&[&at.0.to_be_bytes(), &receipt.0])
    }
    /// The last key of everything that expires at or before `at`.
    pub(crate) fn last(at: UnixMs) -> Self {
        Self::join(&[&at.0.to_be_bytes(), &[0xff; 64]])
    }
    pub(crate) fn receipt(&self) -> ReceiptKey {
        ReceiptKey(self.part(8))
    }
    fn show(&self) -> String {
        format!("{}/{}", u64::from_be_bytes(self.part(0)), self.receipt().show())
    }
}

macro_rules! of_tenant_by_time {
    ($($name:ident)*) => {$(
        impl $name {
            pub(crate) fn new(key: ThreadKey, at: UnixMs) -> Self {
                Self::join(&[key.tenant.as_bytes(), &at.0.to_be_bytes(), key.thread.as_bytes()])
            }
            /// The time and the thread.
            pub(crate) fn at(&self) -> (UnixMs, ThreadId) {
                (UnixMs(u64::from_be_bytes(self.part(32))), ThreadId::from_bytes(self.part(40)))
            }
            fn show(&self) -> String {
                let (at, thread) = self.at();
                format!("{}/{}/{thread}", tenant(self.part(0)), at.0)
            }
        }
    )*};
}
of_tenant_by_time!(OwingKey RecentKey JobOwingKey);

/// What stands in an index of what has something under way.
pub(crate) trait Owing: StoreKey {
    fn make(key: ThreadKey, since: UnixMs) -> Self;
    /// Whose it is; `None` when the key is damaged.
    fn tenant(&self) -> Option<TenantId>;
    fn place_of(&self) -> (UnixMs, ThreadId);
}

/// What stands in an index of what is due.
pub(crate) trait Due: StoreKey {
    /// The last key of everything that is due at `until`.
    fn upto(until: UnixMs) -> Self;
    fn due_at(&self) -> UnixMs;
    /// Whose timer; `None` when the key is damaged.
    fn owner(&self) -> Option<ThreadKey>;
}

macro_rules! owing {
    ($($name:ident)*) => {$(
        impl Owing for $name {
            fn make(key: ThreadKey, since: UnixMs) -> Self {
                Self::new(key, since)
            }
            fn tenant(&self) -> Option<TenantId> {
                TenantId::from_bytes(self.part(0)).ok()
            }
            fn place_of(&self) -> (UnixMs, ThreadId) {
                self.at()
            }
        }
    )*};
}
owing!(OwingKey JobOwingKey);

/// The first and the last place of a tenant's listing.
pub(crate) fn ends(tenant: TenantId) -> ((ThreadKey, UnixMs), (ThreadKey, UnixMs)) {
    let place = |id, at| (ThreadKey { tenant, thread: ThreadId::from_bytes(id) }, UnixMs(at));
    (place(FIRST_ID, 0), place(LAST_ID, u64::MAX))
}

macro_rules! by_time {
    ($($name:ident)*) => {$(
        impl $name {
            pub(crate) fn new(key: ThreadKey, at: UnixMs) -> Self {
                Self::join(&[&at.0.to_be_bytes(), key.tenant.as_bytes(), key.thread.as_bytes()])
            }
            fn show(&self) -> String {
                format!("{}/{}/{}", self.due_at().0, tenant(self.part(8)), ThreadId::from_bytes(self.part(40)))
            }
        }

        impl Due for $name {
            fn upto(until: UnixMs) -> Self {
                Self::join(&[&until.0.to_be_bytes(), &[0xff; 32], &LAST_ID])
            }
            fn due_at(&self) -> UnixMs {
                UnixMs(u64::from_be_bytes(self.part(0)))
            }
            fn owner(&self) -> Option<ThreadKey> {
                let tenant = TenantId::from_bytes(self.part(8)).ok()?;
                Some(ThreadKey { tenant, thread: ThreadId::from_bytes(self.part(40)) })
            }
        }
    )*};
}
by_time!(TimerKey JobTimerKey);

impl MetaKey {
    /// How often the store was opened.
    pub(crate) fn epoch() -> Self {
        Self::join(&[b"epoch\0\0\0"])
    }

    /// Which tables there are.
    pub(crate) fn layout() -> Self {
        Self::join(&[b"layout\0\0"])
    }

    fn show(&self) -> String {
        String::from_utf8_lossy(&self.part::<8>(0)).trim_end_matches('\0').to_owned()
    }
}

impl ForkKey {
    pub(crate) fn new(parent: ThreadKey, child: ThreadId) -> Self {
        Self::join(&[parent.tenant.as_bytes(), parent.thread.as_bytes(), child.as_bytes()])
    }
    /// Every fork of the thread.
    pub(crate) fn all(parent: ThreadKey) -> RangeInclusive<Self> {
        Self::new(parent, ThreadId::from_bytes(FIRST_ID))..=Self::new(parent, ThreadId::from_bytes(LAST_ID))
    }
    /// Every fork of every thread of the tenant.
    pub(crate) fn of_tenant(tenant: TenantId) -> RangeInclusive<Self> {
        let parent = |id| ThreadKey { tenant, thread: ThreadId::from_bytes(id) };
        Self::new(parent(FIRST_ID), ThreadId::from_bytes(FIRST_ID))
            ..=Self::new(parent(LAST_ID), ThreadId::from_bytes(LAST_ID))
    }
    pub(crate) fn parent(&self) -> ThreadId {
        ThreadId::from_bytes(self.part(32))
    }
    pub(crate) fn child(&self) -> ThreadId {
        ThreadId::from_bytes(self.part(48))
    }
    fn show(&self) -> String {
        format!("{}/{}/{}", tenant(self.part(0)), self.parent(), self.child())
    }
}

impl UnpackedKey {
    pub(crate) fn new(at: UnixMs, key: ThreadKey, started: Seq) -> Self {
        Self::join(&[&at.0.to_be_bytes(), key.tenant.as_bytes(), key.thread.as_bytes(), &started.to_be_bytes()])
    }
    /// The last key of everything that ended at `before`.
    pub(crate) fn last(before: UnixMs) -> Self {
        Self::join(&[&before.0.to_be_bytes(), &[0xff; 56]])
    }
    /// Whose turn; `None` when the key is damaged.
    pub(crate) fn thread(&self) -> Option<ThreadKey> {
        let tenant = TenantId::from_bytes(self.part(8)).ok()?;
        Some(ThreadKey { tenant, thread: ThreadId::from_bytes(self.part(40)) })
    }
    fn show(&self) -> String {
        let (at, started) = (u64::from_be_bytes(self.part(0)), u64::from_be_bytes(self.part(56)));
        format!("{at}/{}/{}/{started}", tenant(self.part(8)), ThreadId::from_bytes(self.part(40)))
    }
}

impl PartKey {
    pub(crate) fn new(key: ThreadKey, kind: PartKind, name: PartName) -> Self {
        Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes(), &[kind as u8], &name.0])
    }
    pub(crate) fn after(key: ThreadKey, kind: PartKind, after: Option<PartName>) -> (Bound<Self>, Bound<Self>) {
        let part = |name| Self::new(key, kind, name);
        rest(part(PartName([0; 32])), after.map(part), part(PartName([0xff; 32])))
    }
    /// Every key of the log.
    pub(crate) fn all(key: ThreadKey) -> RangeInclusive<Self> {
        let end = |with: &[u8; 33]| Self::join(&[key.tenant.as_bytes(), key.thread.as_bytes(), with]);
        end(&[0; 33])..=end(&[0xff; 33])
    }
    pub(crate) fn name(&self) -> PartName {
        PartName(self.part(49))
    }
    fn show(&self) -> String {
        let ([kind], thread) = (self.part(48), ThreadId::from_bytes(self.part(32)));
        format!("{}/{thread}/{kind}/{}", tenant(self.part(0)), hex(&self.name().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn key(tenant: &str, thread: u8) -> ThreadKey {
        ThreadKey { tenant: tenant.parse().unwrap(), thread: ThreadId::from_bytes([thread; 16]) }
    }

    #[test]
    fn parts_stand_in_the_order_of_logs_kinds_and_names() {
        let part = |key, kind, number| PartKey::new(key, kind, PartName::number(number));
        let (a, b) = (key("a", 1), key("b", 1));
        let in_order = [
            part(a, PartKind::Task, 1),
            part(a, PartKind::Task, 2),
            part(a, PartKind::Task, 256),
            part(a, PartKind::Entry, 0),
            part(key("a", 2), PartKind::Task, 0),
            part(b, PartKind::Task, 0),
        ];
        assert!(in_order.windows(2).all(|pair| pair[0].0 < pair[1].0));
        // Those of a log are all of them, and no others.
        let all = PartKey::all(a);
        let within = |key: &PartKey| all.start().0 <= key.0 && key.0 <= all.end().0;
        assert_eq!(in_order.map(|key| within(&key)), [true, true, true, true, false, false]);
    }

    #[test]
    fn the_key_of_a_part_tells_what_it_was_made_of() {
        let (of, name) = (key("acme", 7), PartName([0xab; 32]));
        let part = PartKey::new(of, PartKind::Source, name);
        assert_eq!((part.name(), part.is_of(of), part.is_of(key("acme", 8))), (name, true, false));
        let shown = part.corrupt("").record;
        assert_eq!(shown, format!("parts acme/{}/7/{}", of.thread, "ab".repeat(32)));
    }
}
