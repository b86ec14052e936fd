//! One flipped bit anywhere in the file: every read is right or an error.
//!
//! Alone in its process, because redb panics on some damage and the panics are kept off the screen.

mod support;

use std::sync::Arc;

use raddle_actors::store::{backend::MemoryMedium, redb::RedbStore};
use raddle_domain::ports::LogStore;
use support::{
    redb,
    script::{Dice, exact_reads, lookups, script},
    tenant,
};

/// How each part begins that the script stores.
const PART: &[u8] = br#"{"part":"#;
/// The first byte of a page that leads to others. Its keys are behind 8 bytes, and 24 for each page that it leads to; that
/// is one more than there are keys, whose number are its third and fourth byte.
const BRANCH: u8 = 2;
/// Bytes of each branch that are tried: those of its first keys.
const KEYS: usize = 128;

#[test]
fn no_flipped_bit_is_read_as_something_else() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    for act in script() {
        act.on(&store).unwrap();
    }
    store.rest().unwrap();
    drop(store);
    let whole = medium.bytes();
    // Empty pages hold nothing to be read wrongly.
    let used: Vec<usize> = whole
        .chunks(4096)
        .enumerate()
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .map(|(at, _)| at)
        .collect();
    // Parts take few pages of the file: some of the flips are aimed at those.
    let of_part = |page: &usize| whole[page * 4096..][..4096].windows(PART.len()).any(|bytes| bytes == PART);
    let parts: Vec<usize> = used.iter().copied().filter(of_part).collect();
    // One whose keys are damaged leads to what lies outside of what was asked for.
    let branches = used.iter().map(|page| page * 4096).filter(|at| whole[*at] == BRANCH);
    let keys = branches.map(|at| at + 8 + 24 * (1 + usize::from(u16::from_le_bytes([whole[at + 2], whole[at + 3]]))));
    let misled: Vec<_> = keys.flat_map(|at| (at..at + KEYS).map(|at| (at, 0))).collect();
    assert!(!misled.is_empty(), "no page leads to another");

    let store = redb(&medium);
    let view = store.view().unwrap();
    let right: Vec<_> = exact_reads().iter().map(|read| read(&*view).unwrap()).collect();
    let known: Vec<_> = lookups().iter().map(|read| read(&*view).unwrap()).collect();
    let listed = [1, 2].map(|n| view.list(tenant(n), None, 99).unwrap());
    drop(view);

    std::panic::set_hook(Box::new(|_| {}));
    let flips = std::env::var("RADDLE_BIT_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(800);
    let mut dice = Dice(0x5eed_0002);
    let (mut refused, mut errors, mut named, mut absent, mut wrong) = (0, 0, 0, 0, Vec::new());
    let random = (0..flips).map(|flip| {
        let pages = if flip % 8 == 0 { &parts } else { &used };
        (pages[dice.roll(pages.len())] * 4096 + dice.roll(4096), dice.roll(8))
    });
    for (at, bit) in random.chain(misled) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        let Ok(store) = RedbStore::open_medium(Arc::new(MemoryMedium::holding(bytes)), 1 << 20, 0) else {
            refused += 1;
            continue;
        };
        let Ok(view) = store.view() else {
            errors += 1;
            continue;
        };
        for (number, (read, right)) in exact_reads().iter().zip(&right).enumerate() {
            match read(&*view) {
                Ok(found) if found == *right => {}
                Ok(found) => wrong.push(format!("byte {at} bit {bit}: read {number}: {found:.200}")),
                Err(_) => errors += 1,
            }
        }
        for (read, right) in lookups().iter().zip(&known) {
            match read(&*view) {
                Ok(found) if found == *right => {}
                // A name whose own bytes rotted is not found; an index lacks it. Nothing else is allowed.
                Ok(found) if found == "None" || (found.starts_with('[') && found.len() < right.len()) => absent += 1,
                Ok(found) => wrong.push(format!("byte {at} bit {bit}: lookup: {found:.200}")),
                Err(why) => {
                    errors += 1;
                    named += usize::from(why.contains("record parts tenant-"));
                }
            }
        }
        for (n, right) in [1, 2].into_iter().zip(&listed) {
            let Ok(found) = view.list(tenant(n), None, 99) else {
                errors += 1;
                continue;
            };
            absent += right.len().saturating_sub(found.len());
            for listed in found {
                if listed.row.is_ok() && !right.contains(&listed) {
                    wrong.push(format!("byte {at} bit {bit}: listed: {listed:?}"));
                }
            }
        }
    }
    let _ = std::panic::take_hook();
    println!("{flips} flips: {refused} opens refused, {errors} reads refused, {named} of parts, {absent} absent");
    assert!(wrong.is_empty(), "{} wrong reads:\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused + errors > 0, "no flip was noticed at all");
    assert!(named > 0, "no flip in a part was noticed and named");
}
