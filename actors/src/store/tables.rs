//! Every table there is, as one list: for whatever goes through the whole store, or through all of one tenant.
//!
//! Invariant: a table that is not in the list is made by nobody, so none can be forgotten where everything is walked
//! (`every_table_of_a_database_is_walked`).

use std::ops::Bound;

use ::redb::{Error, Key, ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};
use raddle_domain::{
    id::TenantId,
    ports::{Corrupt, Stretch},
};

use super::{
    codec,
    keys::{
        EXPIRY, FORKS, JOB_OWING, JOB_TIMERS, LOG, META, OWING, PARTS, RECEIPTS, RECENT, StoreKey, THREADS, TIMERS,
        TURN_IDS, TURNS, UNPACKED,
        tenant::{DOCUMENTS, FEED, RECORD_IDS, RECORDS, SPENT},
    },
};

/// Which tables this build makes; a store that was made before there were layouts has the first one.
pub(crate) const LAYOUT: u64 = 4;

/// A table, whatever its keys and values are.
pub(crate) trait AnyTable: Sync {
    fn name(&self) -> &'static str;
    /// The first layout that has it.
    fn since(&self) -> u64;
    /// Bytes of a key.
    fn width(&self) -> usize;
    /// Bytes of a value, where all have the same length.
    fn fixed(&self) -> Option<usize>;
    /// Where in a key its tenant stands.
    fn tenant_at(&self) -> Option<usize>;
    /// The key for a person, without its tenant.
    fn place(&self, key: &[u8]) -> String;
    /// Whether a record is what was written under its key.
    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), Corrupt>;
    /// The schema, the flags and the body of a record.
    fn parts<'a>(&self, key: &[u8], value: &'a [u8]) -> Result<(u8, u8, &'a [u8]), Corrupt>;
    /// The record with these parts.
    fn seal(&self, key: &[u8], parts: (u8, u8), body: &[u8]) -> Result<Vec<u8>, Corrupt>;
    /// Makes it, if it is not there.
    fn make(&self, txn: &WriteTransaction) -> Result<(), Error>;
    /// Puts records there, whose keys and values are of the right length.
    fn put(&self, txn: &WriteTransaction, records: &[(&[u8], &[u8])]) -> Result<(), Error>;
    /// Records after `after`, of one tenant or of all: about `bytes` bytes.
    fn stretch(
        &self,
        txn: &ReadTransaction,
        of: Option<TenantId>,
        after: Option<&[u8]>,
        bytes: usize,
    ) -> Result<Stretch, Error>;
    /// Removes a tenant's records after `after`, but for those whose keys `stays` names, as far as `budget` allows.
    fn sweep(
        &self,
        txn: &WriteTransaction,
        of: TenantId,
        after: Option<&[u8]>,
        stays: &dyn Fn(&[u8]) -> bool,
        budget: &mut Budget,
    ) -> Result<Swept, Error>;
    /// Whether a tenant has a record here, but for those whose keys `stays` names. Of tables that are in the order of
    /// times, nothing is known.
    fn has_of(&self, txn: &WriteTransaction, of: TenantId, stays: &dyn Fn(&[u8]) -> bool) -> Result<bool, Error>;
}

/// What may be done in one commit.
pub(crate) struct Budget {
    pub records: usize,
    pub bytes: usize,
    /// Records that are looked at.
    pub looks: usize,
}

impl Budget {
    pub(crate) fn is_spent(&self) -> bool {
        self.records == 0 || self.bytes == 0 || self.looks == 0
    }
}

/// What was removed.
#[derive(Default)]
pub(crate) struct Swept {
    pub records: u64,
    pub bytes: u64,
    /// Where to go on; nowhere when the table's end was reached.
    pub next: Option<Vec<u8>>,
}

struct Typed<K: Key + 'static, V: Value + 'static> {
    definition: TableDefinition<'static, K, V>,
    since: u64,
}

/// All tables, with the layout that first had them.
macro_rules! tables {
    ($($since:literal: $($table:ident)*;)*) => {
        pub(crate) static TABLES: &[&dyn AnyTable] = &[$($(&Typed { definition: $table, since: $since }),*),*];
    };
}

// In this order they are swept and brought in: what leads to others goes first.
tables! {
    3: JOB_TIMERS JOB_OWING;
    1: TIMERS OWING RECENT EXPIRY RECEIPTS;
    2: UNPACKED FEED RECORD_IDS RECORDS SPENT DOCUMENTS FORKS;
    4: PARTS;
    1: TURN_IDS TURNS LOG THREADS META;
}

/// The table with this name.
pub(crate) fn named(name: &str) -> Option<&'static dyn AnyTable> {
    TABLES.iter().copied().find(|table| table.name() == name)
}

/// The table of a key.
fn key_of<K: StoreKey>(key: &[u8]) -> Result<K, Corrupt> {
    K::from_slice(key).ok_or_else(|| Corrupt {
        record: format!("{} (a key of {} bytes)", K::TABLE, key.len()),
        why: format!("a key there has {} bytes", K::WIDTH),
    })
}

/// The first and the last key that can be a tenant's, or anybody's.
fn ends<K: StoreKey>(of: Option<TenantId>) -> (K, K) {
    let end = |fill: u8| {
        let mut bytes = vec![fill; K::WIDTH];
        if let (Some(tenant), Some(0)) = (of, K::TENANT_AT) {
            bytes[..32].copy_from_slice(tenant.as_bytes());
        }
        K::from_slice(&bytes).expect("it has the width of a key")
    };
    (end(0), end(0xff))
}

fn range<K: StoreKey>(of: Option<TenantId>, after: Option<&[u8]>) -> (Bound<K>, Bound<K>) {
    let (first, last) = ends::<K>(of);
    let from = after.and_then(K::from_slice).map_or(Bound::Included(first), Bound::Excluded);
    (from, Bound::Included(last))
}

/// Whether the key is one of the tenant's; without a tenant every key is wanted.
fn is_of<K: StoreKey>(key: &K, of: Option<TenantId>) -> bool {
    match (of, K::TENANT_AT) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(tenant), Some(at)) => key.bytes()[at..at + 32] == *tenant.as_bytes(),
    }
}

impl<K, V> AnyTable for Typed<K, V>
where
    K: StoreKey + Key + for<'k> Value<SelfType<'k> = K> + Sync,
    V: Value + Sync,
{
    fn name(&self) -> &'static str {
        K::TABLE
    }

    fn since(&self) -> u64 {
        self.since
    }

    fn width(&self) -> usize {
        K::WIDTH
    }

    fn fixed(&self) -> Option<usize> {
        V::fixed_width()
    }

    fn tenant_at(&self) -> Option<usize> {
        K::TENANT_AT
    }

    fn place(&self, key: &[u8]) -> String {
        let place = key_of::<K>(key).map_or_else(|_| hex(key), |key| key.place());
        let tenant = K::TENANT_AT.and_then(|at| key.get(at..at + 32)?.try_into().ok());
        match tenant.and_then(|tenant| TenantId::from_bytes(tenant).ok()) {
            Some(tenant) => place.replacen(&format!("{tenant}/"), "", 1),
            None => place,
        }
    }

    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), Corrupt> {
        let key = key_of::<K>(key)?;
        codec::check(&key, value)?;
        match self.fixed() {
            Some(width) if width != value.len() => Err(key.corrupt(format!("it has {} bytes", value.len()))),
            _ => Ok(()),
        }
    }

    fn parts<'a>(&self, key: &[u8], value: &'a [u8]) -> Result<(u8, u8, &'a [u8]), Corrupt> {
        codec::parts_of(&key_of::<K>(key)?, value)
    }

    fn seal(&self, key: &[u8], parts: (u8, u8), body: &[u8]) -> Result<Vec<u8>, Corrupt> {
        Ok(codec::seal_parts(&key_of::<K>(key)?, parts, body))
    }

    fn make(&self, txn: &WriteTransaction) -> Result<(), Error> {
        drop(txn.open_table(self.definition)?);
        Ok(())
    }

    fn put(&self, txn: &WriteTransaction, records: &[(&[u8], &[u8])]) -> Result<(), Error> {
        let mut table = txn.open_table(self.definition)?;
        for (key, value) in records {
            let key = key_of::<K>(key).map_err(|why| Error::Corrupted(why.to_string()))?;
            table.insert(key, V::from_bytes(value))?;
        }
        Ok(())
    }

    fn stretch(
        &self,
        txn: &ReadTransaction,
        of: Option<TenantId>,
        after: Option<&[u8]>,
        bytes: usize,
    ) -> Result<Stretch, Error> {
        let mut stretch = Stretch::default();
        if of.is_some() && K::TENANT_AT.is_none() {
            return Ok(stretch);
        }
        let table: ReadOnlyTable<K, V> = txn.open_table(self.definition)?;
        let mut taken = 0;
        for entry in table.range(range::<K>(of, after))? {
            let (at, value) = entry?;
            let at = at.value();
            // Looking costs too.
            taken += K::WIDTH / 8;
            if is_of(&at, of) {
                let held = value.value();
                let value = V::as_bytes(&held).as_ref().to_vec();
                taken += K::WIDTH + value.len();
                stretch.records.push((at.bytes().to_vec(), value));
            }
            if taken >= bytes {
                stretch.next = Some(at.bytes().to_vec());
                break;
            }
        }
        Ok(stretch)
    }

    fn sweep(
        &self,
        txn: &WriteTransaction,
        of: TenantId,
        after: Option<&[u8]>,
        stays: &dyn Fn(&[u8]) -> bool,
        budget: &mut Budget,
    ) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        if K::TENANT_AT.is_none() {
            return Ok(swept);
        }
        let mut table = txn.open_table(self.definition)?;
        let mut gone = Vec::new();
        for entry in table.range(range::<K>(Some(of), after))? {
            let (at, value) = entry?;
            let at = at.value();
            budget.looks -= 1;
            if is_of(&at, Some(of)) && !stays(at.bytes()) {
                let held = value.value();
                let size = K::WIDTH + V::as_bytes(&held).as_ref().len();
                swept.bytes += size as u64;
                budget.records -= 1;
                budget.bytes = budget.bytes.saturating_sub(size);
                gone.push(at);
            }
            if budget.is_spent() {
                swept.next = Some(at.bytes().to_vec());
                break;
            }
        }
        swept.records = gone.len() as u64;
        for key in gone {
            table.remove(key)?;
        }
        Ok(swept)
    }

    fn has_of(&self, txn: &WriteTransaction, of: TenantId, stays: &dyn Fn(&[u8]) -> bool) -> Result<bool, Error> {
        if K::TENANT_AT != Some(0) {
            return Ok(false);
        }
        let table = txn.open_table(self.definition)?;
        for entry in table.range(range::<K>(Some(of), None))? {
            let at = entry?.0.value();
            if is_of(&at, Some(of)) && !stays(at.bytes()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that these digits are, if they are some.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}
