//! Disks that fail, and power that goes: what was acknowledged stays, and nothing else appears but the one commit
//! that was under way.

mod support;

use std::sync::Arc;

use raddle_actors::store::{
    backend::{Fault, MemoryMedium},
    redb::RedbStore,
};
use raddle_domain::ports::{LogStore, StoreError, Write};
use support::{
    EIO, ENOSPC, append,
    disk::images,
    put, redb,
    script::{Act, Dice, after, script, shown},
    thread,
};

/// What the store shows after each number of commits.
fn states(acts: &[Act]) -> Vec<String> {
    (0..=acts.len()).map(|count| shown(&after(&acts[..count]))).collect()
}

/// Lives the script with one fault, heals, opens again, goes on for a while. Returns whether the fault was met.
fn live_with(fault: Fault, short: bool, acts: &[Act], states: &[String]) -> bool {
    let medium = MemoryMedium::default();
    medium.set_short(short);
    let store = redb(&medium);
    medium.set_fault(Some(fault));
    let mut met = false;
    let (mut done, mut end) = (0, acts.len());
    while done < end {
        let failed = match acts[done].on(&store) {
            Ok(()) => {
                done += 1;
                if done % 4 == 0 { store.rest().err() } else { None }
            }
            Err(error) => Some(error),
        };
        let Some(error) = failed else { continue };
        assert!(!met || fault.lasting, "{fault:?}: a second failure: {error}");
        met = true;
        if fault.lasting {
            assert!(store.reopen().is_err(), "{fault:?}");
            // The last of all may have been a rest.
            assert!(acts.get(done).is_none_or(|act| act.on(&store).is_err()), "{fault:?}");
            medium.set_fault(None);
        }
        store.reopen().unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        let found = shown(&store);
        if found != states[done] {
            assert_ne!(error, StoreError::Full, "{fault:?}: full, but stored");
            assert!(states.get(done + 1) == Some(&found), "{fault:?}: neither before nor after commit {done}");
            done += 1;
        }
        end = acts.len().min(done + 3);
    }
    drop(store);
    medium.set_fault(None);
    assert!(shown(&redb(&medium)) == states[end], "{fault:?}: opened anew");
    met
}

#[test]
fn whichever_storage_operation_fails_nothing_acknowledged_is_lost() {
    let (acts, states) = (script(), states(&script()));
    for (errno, short) in [(EIO, false), (ENOSPC, false), (EIO, true)] {
        for lasting in [false, true] {
            let lives = |at: &u64| live_with(Fault { at: *at, errno, lasting }, short, &acts, &states);
            let met = (0..).take_while(lives).count();
            assert!(met > 100, "only {met} operations were made to fail");
        }
    }
}

#[test]
fn whichever_operation_of_an_open_fails_the_next_open_succeeds() {
    let medium = MemoryMedium::default();
    put(&redb(&medium), append(thread(1, 1), 0, 3)).unwrap();
    for start in [Vec::new(), medium.bytes()] {
        let mut failures = 0;
        for at in 0.. {
            let medium = MemoryMedium::holding(start.clone());
            medium.set_fault(Some(Fault { at, errno: EIO, lasting: true }));
            let failed = RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 0).is_err();
            medium.set_fault(None);
            put(&redb(&medium), append(thread(1, 2), 0, 1)).unwrap();
            if !failed {
                break;
            }
            failures += 1;
        }
        assert!(failures > 3);
    }
}

#[test]
fn a_full_disk_refuses_writes_lets_reads_go_on_and_heals_by_itself() {
    let medium = MemoryMedium::default();
    let store = RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 1000).unwrap();
    put(&store, append(thread(1, 1), 0, 1)).unwrap();
    medium.set_free(999);
    medium.set_fault(None);
    let step = Write::Append(append(thread(1, 1), 1, 1));
    assert_eq!(store.commit(std::slice::from_ref(&step)), Err(StoreError::Full));
    assert_eq!(store.reopen(), Err(StoreError::Full));
    assert_eq!(medium.operations(), 0);
    assert_eq!(store.view().unwrap().row(thread(1, 1)).unwrap().unwrap().head.last_seq, 1);
    medium.set_free(1000);
    assert_eq!(store.commit(&[step]).unwrap(), [Ok(2)]);
}

#[test]
fn what_only_removes_may_use_the_room_that_is_kept_free() {
    let medium = MemoryMedium::default();
    let store = RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 1000).unwrap();
    for n in 1..=2 {
        put(&store, append(thread(1, n), 0, 1)).unwrap();
    }
    let erase = |n| store.commit(&[Write::Erase { key: thread(1, n), fence: 1, expected: 1 }]);
    medium.set_free(249);
    assert_eq!(erase(1), Err(StoreError::Full));
    medium.set_free(250);
    assert_eq!(erase(1).unwrap(), [Ok(0)]);
    let mixed = [Write::Erase { key: thread(1, 2), fence: 1, expected: 1 }, Write::Append(append(thread(1, 3), 0, 1))];
    assert_eq!(store.commit(&mixed), Err(StoreError::Full));
    assert!(store.view().unwrap().row(thread(1, 2)).unwrap().is_some());
}

#[test]
fn a_view_from_before_a_reopen_ends_with_an_error_and_blocks_nothing() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    put(&store, append(thread(1, 1), 0, 1)).unwrap();
    let old = store.view().unwrap();
    medium.set_fault(Some(Fault { at: 0, errno: EIO, lasting: false }));
    assert!(store.commit(&[Write::Append(append(thread(1, 1), 1, 1))]).is_err());
    store.reopen().unwrap();
    // Pages that the old view has in memory may still be shown; nothing wrong is.
    match old.row(thread(1, 1)) {
        Ok(row) => assert_eq!(row.unwrap().head.last_seq, 1),
        Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error}"),
    }
    put(&store, append(thread(1, 1), 1, 1)).unwrap();
}

// ---- crash images -----------------------------------------------------------------------------------

#[test]
fn every_crash_image_holds_what_was_acknowledged_and_at_most_one_commit_more() {
    let (acts, states) = (script(), states(&script()));
    let medium = MemoryMedium::default();
    medium.record();
    let store = redb(&medium);
    // How many operations were done when a commit was acknowledged.
    let mut acked_at = Vec::new();
    for (at, act) in acts.iter().enumerate() {
        act.on(&store).unwrap();
        acked_at.push(medium.recorded());
        if at % 4 == 2 {
            store.rest().unwrap();
        }
    }
    drop(store);
    let ops = medium.take_record();

    let rounds = std::env::var("RADDLE_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut dice = Dice(0x5eed_0001);
    let mut count = 0;
    images(&[], &ops, 5 * rounds, &mut dice, |end, image, what| {
        count += 1;
        let acked = acked_at.iter().filter(|at| **at <= end).count();
        let opened = RedbStore::open_medium(Arc::new(MemoryMedium::holding(image.to_vec())), 1 << 20, 0);
        let store = opened.unwrap_or_else(|error| panic!("{what} after {end} operations: {error}"));
        let found = shown(&store);
        let fits = found == states[acked] || states.get(acked + 1) == Some(&found);
        let which = states.iter().position(|state| *state == found);
        assert!(fits, "{what} after {end} operations: acknowledged {acked}, found {which:?}");
    });
    assert!(count >= 2000, "only {count} images");
}

/// Whether opening what is stored now takes a repair, which reads all of it.
fn needs_repair(medium: &MemoryMedium) -> bool {
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let noted = asked.clone();
    let mut builder = ::redb::Builder::new();
    builder.set_repair_callback(move |_| noted.store(true, std::sync::atomic::Ordering::Relaxed));
    drop(builder.create_with_backend(MemoryMedium::holding(medium.bytes())).unwrap());
    asked.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_store_that_was_only_opened_or_has_come_to_rest_needs_no_repair_after_a_crash() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    assert!(!needs_repair(&medium), "after the first opening");
    for act in &script() {
        act.on(&store).unwrap();
    }
    assert!(needs_repair(&medium), "a crash under load does, or this test says nothing");
    store.rest().unwrap();
    assert!(!needs_repair(&medium), "at rest");
    drop(store);
    let _again = redb(&medium);
    assert!(!needs_repair(&medium), "after another opening");
}
