//! One flipped bit in any record: whatever table it is of, it is noticed, and the record named.

mod support;

use std::{collections::BTreeMap, sync::Arc};

use raddle_actors::store::{backend::MemoryMedium, backup, redb::RedbStore};
use raddle_domain::{ports::LogStore, time::UnixMs};
use support::{
    redb,
    script::{Dice, script},
};

/// Every record of a table, as it is kept.
fn records(store: &dyn LogStore, table: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (view, mut all, mut after) = (store.view().unwrap(), Vec::new(), None::<Vec<u8>>);
    loop {
        let stretch = view.stretch(table, None, after.as_deref(), 1 << 20).unwrap();
        all.extend(stretch.records);
        after = stretch.next;
        if after.is_none() {
            return all;
        }
    }
}

/// Where `wanted` stands in `bytes`, however often.
fn places(bytes: &[u8], wanted: &[u8]) -> Vec<usize> {
    let starts = bytes.windows(wanted.len()).enumerate().filter(|(_, found)| *found == wanted);
    starts.map(|(at, _)| at).collect()
}

#[test]
fn a_flipped_bit_in_a_record_of_any_table_is_noticed_and_the_record_named() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    let summary = |store: &RedbStore| backup::write(&*store.view().unwrap(), "0", UnixMs(0), |_| Ok(()));
    let tables = summary(&store).unwrap().header.tables;
    // The last moment at which a table had anything in it: the file, and its records.
    let mut held = BTreeMap::new();
    for act in script() {
        act.on(&store).unwrap();
        // Under load a flipped bit of the last commit looks like one that the power cut off, and is taken back.
        store.rest().unwrap();
        for table in &tables {
            let records = records(&store, table);
            if !records.is_empty() {
                held.insert(table.clone(), (medium.bytes(), records));
            }
        }
    }
    let empty: Vec<_> = tables.iter().filter(|table| !held.contains_key(*table)).collect();
    assert!(empty.is_empty(), "the script puts nothing into {empty:?}");

    let mut dice = Dice(0x5eed_0005);
    let mut refused = 0;
    for (table, (whole, records)) in held {
        let mut noticed = 0;
        for _ in 0..40 {
            let (_, value) = &records[dice.roll(records.len())];
            let (at, bit) = (dice.roll(value.len()), dice.roll(8));
            let mut bytes = whole.clone();
            // What is no longer read may stand there too; wherever it stands, it rots.
            let places = places(&whole, value);
            // A large one is kept in several pages.
            if places.is_empty() {
                continue;
            }
            places.iter().for_each(|place| bytes[place + at] ^= 1 << bit);
            let Ok(store) = RedbStore::open_medium(Arc::new(MemoryMedium::holding(bytes)), 1 << 20, 0) else {
                refused += 1;
                noticed += 1;
                continue;
            };
            let damaged = summary(&store).unwrap().damaged;
            assert!(damaged.iter().any(|record| record.starts_with(&table)), "{table}, byte {at}: {damaged:?}");
            noticed += 1;
        }
        assert!(noticed >= 20, "{table}: only {noticed}");
    }
    println!("{refused} opens refused");
}
