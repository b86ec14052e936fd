//! Forks: what they share with the threads that they left, and what becomes of it.

#[macro_use]
mod support;

use proptest::prelude::*;
use raddle_actors::store::{backend::MemoryMedium, memory::MemoryStore, redb::RedbStore};
use raddle_domain::{
    event::{Record, SCHEMA},
    id::{Seq, ThreadKey},
    ports::{Append, Fork, LogStore, PartKind, Reverted, SettledTurn, StoreError, View, Write, WriteRefused},
    time::UnixMs,
};
use support::{append, commit, event, part, put, redb, settled, talk, thread, turn_id};

suite! {
    a_fork_reads_what_it_shares_as_its_own
    what_a_thread_does_after_its_fork_left_is_not_the_forks
    a_fork_of_what_is_not_there_is_refused
    a_fork_begins_a_thread_and_continues_none
    a_fork_of_a_fork_reads_all_of_its_past
    a_turn_is_found_before_any_place
    a_turn_that_is_reverted_keeps_its_record
    a_turn_that_is_not_there_cannot_be_reverted
    a_shared_turn_is_reverted_in_the_fork_alone
    a_turn_reverted_after_a_fork_left_is_not_reverted_there
    a_turn_that_ended_after_a_fork_left_is_not_there
    turns_begin_behind_what_is_shared
    an_erased_fork_leaves_its_parent_alone
    an_erased_parent_leaves_every_fork_whole
    a_writer_from_before_its_parent_was_erased_goes_on
    forks_of_a_batch_see_what_stands_before_them_in_it
    parts_are_neither_shared_nor_inherited
}

const A: fn() -> ThreadKey = || thread(1, 1);
const B: fn() -> ThreadKey = || thread(1, 2);
const C: fn() -> ThreadKey = || thread(1, 3);
const D: fn() -> ThreadKey = || thread(1, 4);

/// The first step of a thread that continues `parent` behind `at`.
fn fork(child: ThreadKey, parent: ThreadKey, at: Seq, count: u64) -> Append {
    Append { fork: Some(Fork { parent: parent.thread, at }), ..append(child, at, count) }
}

fn revert(key: ThreadKey, expected: Seq, started_seq: Seq) -> Append {
    Append { reverted: vec![Reverted { started_seq, seq: expected + 1 }], ..append(key, expected, 1) }
}

fn settles(mut step: Append, started: &[Seq]) -> Append {
    step.settled = started.iter().map(|seq| settled(*seq)).collect();
    step
}

fn erase(store: &dyn LogStore, key: ThreadKey) {
    let expected = last(store, key);
    assert_eq!(commit(store, &[Write::Erase { key, fence: 1, expected }]), [Ok(())]);
}

fn last(store: &dyn LogStore, key: ThreadKey) -> Seq {
    store.view().unwrap().row(key).unwrap().map_or(0, |row| row.head.last_seq)
}

/// Where the thread's turns began, and when each was reverted.
fn turns(store: &dyn LogStore, key: ThreadKey) -> Vec<(Seq, Option<Seq>)> {
    let turns = store.view().unwrap().turns(key, 0, 99).unwrap();
    turns.iter().map(|turn| (turn.started_seq, turn.reverted)).collect()
}

/// Whether the log is the thread's own, whole, from whichever place it is read.
#[track_caller]
fn is_whole(store: &dyn LogStore, key: ThreadKey) {
    let view = store.view().unwrap();
    let last = view.row(key).unwrap().unwrap().head.last_seq;
    for after in 0..=last {
        let expected: Vec<_> = (after + 1..=last).map(|seq| (seq, event(key, seq))).collect();
        assert_eq!(talk::events(&*view, key, after), expected);
    }
    for seq in 1..=last {
        assert_eq!(view.event(key, seq).unwrap(), Some(event(key, seq)));
    }
}

fn a_fork_reads_what_it_shares_as_its_own(store: &dyn LogStore) {
    put(store, append(A(), 0, 3)).unwrap();
    put(store, settles(append(A(), 3, 5), &[4])).unwrap();
    // In the middle of a chunk.
    put(store, fork(B(), A(), 7, 2)).unwrap();
    put(store, settles(append(B(), 9, 4), &[10])).unwrap();
    is_whole(store, B());
    is_whole(store, A());
    assert_eq!(turns(store, B()), [(4, None), (10, None)]);
    let view = store.view().unwrap();
    assert_eq!(view.turn(B(), turn_id(4)).unwrap(), Some(settled(4)));
    assert_eq!(view.turns(B(), 4, 9).unwrap(), [settled(10)]);
    assert_eq!(view.turns(B(), 0, 1).unwrap(), [settled(4)]);
    assert_eq!(view.event(B(), 14).unwrap(), None);
    // Pages are cut wherever they have to be.
    for limit in 1..13 {
        let chunks = view.events(B(), 2, limit, usize::MAX).unwrap();
        let seqs: Vec<_> = chunks.iter().flat_map(|chunk| chunk.first..=chunk.last()).collect();
        assert_eq!(seqs, (3..=13).take(limit).collect::<Vec<_>>());
    }
    // Its own name stands in a turn's record, too.
    let own = talk::turn(C(), 0, 1, &["a", "b"], 99, UnixMs(5)).remove(0);
    put(store, own.clone()).unwrap();
    put(store, fork(D(), C(), 6, 1)).unwrap();
    let view = store.view().unwrap();
    let shared = view.turn(D(), talk::id(1)).unwrap().unwrap();
    let text = String::from_utf8(own.settled[0].turn.clone()).unwrap();
    let theirs = text.replace(&C().thread.to_string(), &D().thread.to_string());
    assert_eq!(shared, SettledTurn { turn: theirs.into_bytes(), ..own.settled[0].clone() });
    for (seq, event) in talk::events(&*view, D(), 0).into_iter().take(6) {
        let record = Record::decode(SCHEMA, &event.json).unwrap();
        assert_eq!((record.seq, record.thread), (seq, D().thread));
        assert!(!String::from_utf8_lossy(&event.json).contains(&C().thread.to_string()));
    }
}

fn parts_are_neither_shared_nor_inherited(store: &dyn LogStore) {
    let with = |step: Append, text| Append { parts: vec![part(PartKind::Task, 1, text)], ..step };
    let read = |key| store.view().unwrap().parts(key, PartKind::Task, None, 9).unwrap();
    put(store, with(append(A(), 0, 3), "a")).unwrap();
    put(store, fork(B(), A(), 2, 1)).unwrap();
    put(store, with(fork(C(), A(), 3, 1), "c")).unwrap();
    let own = read(C());
    assert_eq!((read(A()).len(), read(B()), own.len()), (1, vec![], 1));
    assert_ne!(read(A()), own);
    erase(store, A());
    assert_eq!((read(A()), read(B()), read(C())), (vec![], vec![], own));
}

fn what_a_thread_does_after_its_fork_left_is_not_the_forks(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 5), &[1])).unwrap();
    put(store, fork(B(), A(), 5, 1)).unwrap();
    put(store, settles(append(A(), 5, 9), &[7])).unwrap();
    assert_eq!((last(store, A()), last(store, B())), (14, 6));
    assert_eq!((turns(store, A()), turns(store, B())), (vec![(1, None), (7, None)], vec![(1, None)]));
    let view = store.view().unwrap();
    assert_eq!(view.turn(B(), turn_id(7)).unwrap(), None);
    assert_eq!(view.turn_before(B(), 99).unwrap(), Some(settled(1)));
    assert_eq!(view.event(B(), 7).unwrap(), None);
    is_whole(store, A());
    is_whole(store, B());
}

fn a_fork_of_what_is_not_there_is_refused(store: &dyn LogStore) {
    let conflict = |expected, found| Err(WriteRefused::Conflict { expected, found });
    assert_eq!(put(store, fork(B(), A(), 3, 1)), conflict(3, 0));
    put(store, append(A(), 0, 3)).unwrap();
    assert_eq!(put(store, fork(B(), A(), 4, 1)), conflict(4, 3));
    assert_eq!(put(store, fork(B(), B(), 3, 1)), conflict(3, 0));
    assert_eq!(put(store, fork(thread(2, 1), A(), 3, 1)), conflict(3, 0));
    assert!(matches!(put(store, fork(B(), A(), 0, 1)), Err(WriteRefused::Corrupt(_))));
    let mut beside = fork(B(), A(), 3, 1);
    beside.fork = Some(Fork { parent: A().thread, at: 2 });
    assert!(matches!(put(store, beside), Err(WriteRefused::Corrupt(_))));
    let view = store.view().unwrap();
    assert_eq!((view.row(B()).unwrap(), view.row(thread(2, 1)).unwrap()), (None, None));
}

fn a_fork_begins_a_thread_and_continues_none(store: &dyn LogStore) {
    put(store, append(A(), 0, 3)).unwrap();
    put(store, append(B(), 0, 2)).unwrap();
    let found = |found| Err(WriteRefused::Conflict { expected: 2, found });
    assert_eq!(put(store, fork(B(), A(), 2, 1)), found(2));
    put(store, append(C(), 0, 0)).unwrap();
    assert_eq!(put(store, fork(C(), A(), 2, 1)), found(0));
    let mut older = fork(B(), A(), 2, 1);
    older.row.head.fence = 0;
    assert_eq!(put(store, older), Err(WriteRefused::Fenced { fence: 0, owner: 1 }));
    // One that says nothing yet is a thread all the same.
    put(store, fork(D(), A(), 2, 0)).unwrap();
    is_whole(store, D());
    assert_eq!(put(store, fork(D(), A(), 2, 1)), found(2));
    put(store, append(D(), 2, 1)).unwrap();
    is_whole(store, D());
}

fn a_fork_of_a_fork_reads_all_of_its_past(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 4), &[1])).unwrap();
    put(store, settles(fork(B(), A(), 4, 4), &[5])).unwrap();
    put(store, settles(fork(C(), B(), 8, 4), &[9])).unwrap();
    // Behind what its parent wrote itself: its past is A's.
    put(store, settles(fork(D(), C(), 3, 9), &[6])).unwrap();
    for key in [A(), B(), C(), D()] {
        is_whole(store, key);
    }
    assert_eq!(turns(store, C()), [(1, None), (5, None), (9, None)]);
    assert_eq!(turns(store, D()), [(1, None), (6, None)]);
    let view = store.view().unwrap();
    assert_eq!(view.turns(C(), 1, 1).unwrap(), [settled(5)]);
    assert_eq!(view.turn(C(), turn_id(1)).unwrap(), Some(settled(1)));
    assert_eq!(view.turn(D(), turn_id(5)).unwrap(), None);
    // Many forks deep.
    let mut parent = C();
    for n in 10..60 {
        let (at, key) = (last(store, parent), thread(1, n));
        put(store, fork(key, parent, at, 1)).unwrap();
        parent = key;
    }
    is_whole(store, parent);
    assert_eq!(turns(store, parent), turns(store, C()));
}

fn a_turn_is_found_before_any_place(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 30), &[2, 9, 20])).unwrap();
    put(store, settles(fork(B(), A(), 25, 20), &[30])).unwrap();
    let view = store.view().unwrap();
    for (key, began) in [(A(), vec![2, 9, 20]), (B(), vec![2, 9, 20, 30])] {
        for before in (0..40).chain([Seq::MAX]) {
            let expected = began.iter().rev().find(|seq| **seq < before).map(|seq| settled(*seq));
            assert_eq!(view.turn_before(key, before).unwrap(), expected, "{before}");
        }
    }
    assert_eq!(view.turn_before(C(), 9).unwrap(), None);
}

fn a_turn_that_is_reverted_keeps_its_record(store: &dyn LogStore) {
    let mut with_context = settled(5);
    with_context.context_seq = 2;
    put(store, Append { settled: vec![settled(2), with_context.clone()], ..append(A(), 0, 9) }).unwrap();
    put(store, revert(A(), 9, 5)).unwrap();
    let expected = SettledTurn { reverted: Some(10), ..with_context };
    let view = store.view().unwrap();
    assert_eq!(view.turns(A(), 0, 9).unwrap(), [settled(2), expected.clone()]);
    assert_eq!(view.turn(A(), turn_id(5)).unwrap(), Some(expected.clone()));
    assert_eq!(view.turn_before(A(), 9).unwrap(), Some(expected));
    // It stays taken out since then.
    put(store, revert(A(), 10, 5)).unwrap();
    assert_eq!(turns(store, A()), [(2, None), (5, Some(10))]);
    // A turn may end and be taken out in steps that are saved together.
    let both = Append { reverted: vec![Reverted { started_seq: 12, seq: 15 }], ..append(A(), 11, 5) };
    put(store, settles(both, &[12])).unwrap();
    assert_eq!(turns(store, A()), [(2, None), (5, Some(10)), (12, Some(15))]);
}

fn a_turn_that_is_not_there_cannot_be_reverted(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 9), &[2])).unwrap();
    put(store, fork(B(), A(), 6, 1)).unwrap();
    put(store, settles(append(A(), 9, 9), &[10])).unwrap();
    for (key, expected, started) in [(A(), 18, 3), (A(), 18, 0), (B(), 7, 10), (B(), 7, 99)] {
        assert!(matches!(put(store, revert(key, expected, started)), Err(WriteRefused::Corrupt(_))), "{started}");
    }
    assert_eq!((last(store, A()), last(store, B())), (18, 7));
}

fn a_shared_turn_is_reverted_in_the_fork_alone(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 20), &[1, 5, 9, 13])).unwrap();
    put(store, fork(B(), A(), 18, 2)).unwrap();
    // Two of one append, the later one first; then one more, in front of them.
    let (five, nine) = (Reverted { started_seq: 5, seq: 21 }, Reverted { started_seq: 9, seq: 21 });
    put(store, Append { reverted: vec![nine, five], ..append(B(), 20, 1) }).unwrap();
    put(store, settles(append(B(), 21, 5), &[22])).unwrap();
    put(store, revert(B(), 26, 1)).unwrap();
    put(store, revert(B(), 27, 1)).unwrap();
    assert_eq!(turns(store, A()), [1, 5, 9, 13].map(|seq| (seq, None)));
    let expected = [(1, Some(27)), (5, Some(21)), (9, Some(21)), (13, None), (22, None)];
    assert_eq!(turns(store, B()), expected);
    let view = store.view().unwrap();
    for (seq, reverted) in expected {
        assert_eq!(view.turn(B(), turn_id(seq)).unwrap().unwrap().reverted, reverted);
        assert_eq!(view.turn_before(B(), seq + 1).unwrap().unwrap().reverted, reverted);
        assert_eq!(view.turns(B(), seq - 1, 1).unwrap()[0].reverted, reverted);
    }
    // What leaves the fork sees what the fork had said by then.
    put(store, fork(C(), B(), 26, 1)).unwrap();
    put(store, fork(D(), B(), 20, 1)).unwrap();
    assert_eq!(turns(store, C()), [(1, None), (5, Some(21)), (9, Some(21)), (13, None), (22, None)]);
    assert_eq!(turns(store, D()), [1, 5, 9, 13].map(|seq| (seq, None)));
    // A first step may take turns out as well.
    let first = Append { reverted: vec![Reverted { started_seq: 1, seq: 21 }], ..fork(thread(1, 5), A(), 20, 1) };
    put(store, first).unwrap();
    assert_eq!(turns(store, thread(1, 5)), [(1, Some(21)), (5, None), (9, None), (13, None)]);
}

fn a_turn_reverted_after_a_fork_left_is_not_reverted_there(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 9), &[1, 5])).unwrap();
    put(store, revert(A(), 9, 5)).unwrap();
    put(store, fork(B(), A(), 10, 1)).unwrap();
    put(store, revert(A(), 10, 1)).unwrap();
    assert_eq!(turns(store, A()), [(1, Some(11)), (5, Some(10))]);
    assert_eq!(turns(store, B()), [(1, None), (5, Some(10))]);
    put(store, fork(C(), A(), 9, 1)).unwrap();
    assert_eq!(turns(store, C()), [(1, None), (5, None)]);
}

fn a_turn_that_ended_after_a_fork_left_is_not_there(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 9), &[1, 6])).unwrap();
    // The turn that began at 6 has its last item at 8.
    put(store, fork(B(), A(), 7, 5)).unwrap();
    assert_eq!(turns(store, B()), [(1, None)]);
    let view = store.view().unwrap();
    assert_eq!(view.turn(B(), turn_id(6)).unwrap(), None);
    assert_eq!(view.turn_before(B(), 9).unwrap(), Some(settled(1)));
    assert!(matches!(put(store, revert(B(), 12, 6)), Err(WriteRefused::Corrupt(_))));
    erase(store, A());
    assert_eq!(turns(store, B()), [(1, None)]);
    is_whole(store, B());
}

fn turns_begin_behind_what_is_shared(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 9), &[1])).unwrap();
    for started in [1, 5, 9] {
        assert!(matches!(put(store, settles(fork(B(), A(), 9, 3), &[started])), Err(WriteRefused::Corrupt(_))));
    }
    put(store, settles(fork(B(), A(), 9, 3), &[10])).unwrap();
    erase(store, A());
    assert!(matches!(put(store, settles(append(B(), 12, 1), &[5])), Err(WriteRefused::Corrupt(_))));
}

fn an_erased_fork_leaves_its_parent_alone(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 9), &[1, 5])).unwrap();
    put(store, fork(B(), A(), 9, 2)).unwrap();
    put(store, revert(B(), 11, 5)).unwrap();
    erase(store, B());
    is_whole(store, A());
    assert_eq!(turns(store, A()), [(1, None), (5, None)]);
    assert_eq!((last(store, B()), turns(store, B())), (0, vec![]));
    // Nothing of it is in the way of another.
    put(store, append(B(), 0, 1)).unwrap();
    erase(store, A());
    is_whole(store, B());
    assert_eq!(last(store, A()), 0);
    put(store, append(A(), 0, 1)).unwrap();
    is_whole(store, A());
}

fn an_erased_parent_leaves_every_fork_whole(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 10), &[1, 5])).unwrap();
    put(store, settles(fork(B(), A(), 9, 6), &[10])).unwrap();
    put(store, settles(append(B(), 15, 9), &[16, 20])).unwrap();
    put(store, revert(B(), 24, 16)).unwrap();
    // Forks of B: one within its second chunk, one further on, one of A's part.
    put(store, settles(fork(C(), B(), 19, 6), &[22])).unwrap();
    put(store, fork(D(), B(), 25, 3)).unwrap();
    put(store, revert(D(), 28, 10)).unwrap();
    put(store, revert(D(), 29, 5)).unwrap();
    put(store, revert(C(), 25, 16)).unwrap();
    let (e, f) = (thread(1, 5), thread(1, 6));
    put(store, fork(e, B(), 7, 2)).unwrap();
    put(store, fork(f, D(), 28, 1)).unwrap();
    put(store, append(B(), 25, 7)).unwrap();
    let all = [A(), C(), D(), e, f];
    let before = all.map(|key| turns(store, key));
    assert_eq!(before[1], [(1, None), (5, None), (10, None), (16, Some(26)), (22, None)]);
    assert_eq!(before[2], [(1, None), (5, Some(30)), (10, Some(29)), (16, Some(25)), (20, None)]);
    erase(store, B());
    assert_eq!(last(store, B()), 0);
    for (key, before) in all.into_iter().zip(&before) {
        is_whole(store, key);
        assert_eq!(turns(store, key), *before);
        let view = store.view().unwrap();
        for (seq, reverted) in before {
            assert_eq!(view.turn(key, turn_id(*seq)).unwrap().unwrap().reverted, *reverted);
            assert_eq!(view.turn_before(key, seq + 1).unwrap().unwrap().reverted, *reverted);
        }
        assert_eq!(view.turn(key, turn_id(99)).unwrap(), None);
    }
    // The name can be given to something else, which nobody takes for their past.
    put(store, append(B(), 0, 40)).unwrap();
    // Then the heirs go as well, one after the other.
    for at in 0..all.len() - 1 {
        erase(store, all[at]);
        for (key, before) in all.into_iter().zip(&before).skip(at + 1) {
            is_whole(store, key);
            assert_eq!(turns(store, key), *before);
        }
    }
    erase(store, f);
    for key in [A(), B(), C()] {
        let expected = last(store, key);
        put(store, append(key, expected, 2)).unwrap();
        is_whole(store, key);
    }
}

fn a_writer_from_before_its_parent_was_erased_goes_on(store: &dyn LogStore) {
    put(store, settles(append(A(), 0, 9), &[1, 5])).unwrap();
    put(store, settles(fork(B(), A(), 9, 5), &[10])).unwrap();
    put(store, fork(C(), A(), 4, 2)).unwrap();
    let (mut late, other) = (settles(append(B(), 14, 5), &[15]), append(C(), 6, 3));
    late.reverted = vec![Reverted { started_seq: 5, seq: 19 }];
    erase(store, A());
    put(store, late).unwrap();
    put(store, other).unwrap();
    is_whole(store, B());
    is_whole(store, C());
    assert_eq!(turns(store, B()), [(1, None), (5, Some(19)), (10, None), (15, None)]);
    assert_eq!(turns(store, C()), [(1, None)]);
}

fn forks_of_a_batch_see_what_stands_before_them_in_it(store: &dyn LogStore) {
    let writes = [
        Write::Append(settles(append(A(), 0, 5), &[1])),
        Write::Append(fork(B(), A(), 5, 2)),
        Write::Append(fork(C(), B(), 7, 2)),
        Write::Erase { key: A(), fence: 1, expected: 5 },
        Write::Append(fork(D(), A(), 5, 1)),
    ];
    let results = commit(store, &writes);
    let gone = Err(WriteRefused::Conflict { expected: 5, found: 0 });
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), Ok(()), gone]);
    is_whole(store, B());
    is_whole(store, C());
    assert_eq!(turns(store, C()), [(1, None)]);
}

// ---- redb alone: what cannot be read ----------------------------------------------------------------

/// Overwrites a letter of every stored copy of `marker`, and opens what there is then.
fn damaged(medium: &MemoryMedium, marker: &[u8]) -> RedbStore {
    let mut bytes = medium.bytes();
    let places: Vec<_> = (0..bytes.len() - marker.len()).filter(|at| bytes[*at..].starts_with(marker)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + marker.len() / 2] ^= 4;
    }
    redb(&MemoryMedium::holding(bytes))
}

fn corrupt<T: std::fmt::Debug>(read: Result<T, StoreError>) -> String {
    match read {
        Err(StoreError::Corrupt(corrupt)) => corrupt.record,
        other => panic!("{other:?}"),
    }
}

/// A thread of nine events and two turns, with this text in its row and in the chunk of its events 4 to 6.
fn marked(store: &dyn LogStore, key: ThreadKey, row: &str, chunk: &str) {
    put(store, settles(append(key, 0, 3), &[1])).unwrap();
    let mut step = append(key, 3, 3);
    step.chunk.events[1].json = chunk.as_bytes().to_vec().into();
    put(store, step).unwrap();
    let mut step = settles(append(key, 6, 3), &[5]);
    step.row.view = row.as_bytes().into();
    put(store, step).unwrap();
}

#[test]
fn a_fork_whose_parents_row_is_damaged_says_so_until_the_parent_is_purged() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    put(&store, settles(append(D(), 0, 3), &[1])).unwrap();
    put(&store, fork(A(), D(), 3, 1)).unwrap();
    let mut step = settles(append(A(), 4, 5), &[5]);
    step.row.view = b"the-row-that-will-be-damaged"[..].into();
    put(&store, step).unwrap();
    put(&store, fork(B(), A(), 9, 1)).unwrap();
    put(&store, fork(C(), A(), 5, 1)).unwrap();
    drop(store);
    let store = damaged(&medium, b"the-row-that-will-be-damaged");
    let view = store.view().unwrap();
    assert!(corrupt(view.events(B(), 0, 99, 9999)).starts_with("threads "));
    assert!(corrupt(view.turns(B(), 0, 99)).starts_with("threads "));
    assert!(corrupt(view.turn_before(B(), 99)).starts_with("threads "));
    // What is its own can be read.
    assert_eq!(view.event(B(), 10).unwrap(), Some(event(B(), 10)));
    drop(view);
    assert!(matches!(put(&store, fork(thread(1, 9), A(), 2, 1)), Err(WriteRefused::Corrupt(_))));
    assert_eq!(commit(&store, &[Write::Purge { key: A() }]), [Ok(())]);
    for key in [B(), C(), D()] {
        is_whole(&store, key);
    }
    assert_eq!((turns(&store, B()), turns(&store, C())), (vec![(1, None), (5, None)], vec![(1, None)]));
    put(&store, append(A(), 0, 1)).unwrap();
    erase(&store, D());
    is_whole(&store, B());
}

#[test]
fn a_damaged_chunk_stays_damaged_when_it_changes_hands() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    marked(&store, A(), "{}", "the-chunk-that-will-be-damaged");
    put(&store, fork(B(), A(), 8, 1)).unwrap();
    put(&store, fork(C(), A(), 2, 1)).unwrap();
    drop(store);
    let store = damaged(&medium, b"the-chunk-that-will-be-damaged");
    for erased in [false, true] {
        if erased {
            erase(&store, A());
        }
        let view = store.view().unwrap();
        assert!(corrupt(view.events(B(), 0, 99, 9999)).starts_with("log "));
        assert!(corrupt(view.event(B(), 5)).starts_with("log "));
        assert_eq!(view.event(B(), 3).unwrap(), Some(event(B(), 3)));
        assert_eq!(view.event(B(), 7).unwrap(), Some(event(B(), 7)));
        assert_eq!(turns(&store, B()), [(1, None), (5, None)]);
        is_whole(&store, C());
    }
}

#[test]
fn a_damaged_turn_stays_damaged_when_it_changes_hands() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    let mut step = settles(append(A(), 0, 20), &[1, 5, 9]);
    step.settled[1].turn = b"the-turn-that-will-be-damaged".into();
    put(&store, step).unwrap();
    put(&store, settles(fork(B(), A(), 18, 9), &[20])).unwrap();
    drop(store);
    let store = damaged(&medium, b"the-turn-that-will-be-damaged");
    for erased in [false, true] {
        if erased {
            erase(&store, A());
        }
        let view = store.view().unwrap();
        assert!(corrupt(view.turns(B(), 0, 99)).starts_with("turns "));
        assert!(
            corrupt(view.turn(B(), turn_id(5)).and_then(|turn| turn.ok_or(StoreError::Full))).starts_with("turns ")
        );
        assert!(corrupt(view.turn_before(B(), 9)).starts_with("turns "));
        let behind = view.turns(B(), 5, 99).unwrap();
        assert_eq!(behind.iter().map(|turn| turn.started_seq).collect::<Vec<_>>(), [9, 20]);
    }
}

#[test]
fn a_fork_that_cannot_be_read_does_not_keep_its_parent_from_being_erased() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    put(&store, settles(append(A(), 0, 9), &[1])).unwrap();
    let mut damaged_later = fork(B(), A(), 8, 1);
    damaged_later.row.view = b"the-fork-that-will-be-damaged"[..].into();
    put(&store, damaged_later).unwrap();
    put(&store, fork(C(), A(), 6, 1)).unwrap();
    let mut another = fork(D(), A(), 5, 2);
    another.row.view = b"the-fork-that-will-be-damaged"[..].into();
    put(&store, another).unwrap();
    put(&store, fork(thread(1, 5), D(), 7, 1)).unwrap();
    put(&store, fork(thread(1, 6), B(), 9, 1)).unwrap();
    drop(store);
    let store = damaged(&medium, b"the-fork-that-will-be-damaged");
    erase(&store, A());
    is_whole(&store, C());
    for n in [5, 6] {
        assert!(corrupt(store.view().unwrap().events(thread(1, n), 0, 99, 9999)).starts_with("threads "));
    }
    for key in [B(), D()] {
        assert_eq!(commit(&store, &[Write::Purge { key }]), [Ok(())]);
    }
    // What C shares as well was kept; what only the other one had is gone, and is not taken from anywhere else.
    is_whole(&store, thread(1, 5));
    assert!(corrupt(store.view().unwrap().events(thread(1, 6), 0, 99, 9999)).starts_with("threads "));
    assert!(matches!(put(&store, append(A(), 0, 1)), Err(WriteRefused::Corrupt(_))));
}

// ---- one life, many stores --------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Begin { n: u8 },
    Remark { n: u8 },
    Talk { n: u8, deltas: usize, together: usize, at: u64 },
    Fork { n: u8, parent: u8, pick: usize, turn: bool },
    Revert { n: u8, picks: Vec<usize> },
    Erase { n: u8 },
    Pack { before: u64 },
    Reopen,
}

fn acts() -> impl Strategy<Value = Act> {
    let (n, pick) = (0u8..6, 0usize..99);
    prop_oneof![
        2 => n.clone().prop_map(|n| Act::Begin { n }),
        2 => n.clone().prop_map(|n| Act::Remark { n }),
        6 => (n.clone(), 0usize..6, 1usize..9, 0u64..50)
            .prop_map(|(n, deltas, together, at)| Act::Talk { n, deltas, together, at }),
        6 => (n.clone(), n.clone(), pick.clone(), any::<bool>())
            .prop_map(|(n, parent, pick, turn)| Act::Fork { n, parent, pick, turn }),
        3 => (n.clone(), prop::collection::vec(pick, 1..3)).prop_map(|(n, picks)| Act::Revert { n, picks }),
        2 => n.prop_map(|n| Act::Erase { n }),
        2 => (0u64..60).prop_map(|before| Act::Pack { before }),
        1 => Just(Act::Reopen),
    ]
}

fn named(n: u8) -> ThreadKey {
    thread(1, 1 + n)
}

/// What the act writes, given what the store shows. `number` names the turn that it makes, if it makes one.
fn writes(store: &dyn LogStore, act: &Act, number: u128) -> Vec<Write> {
    const WORDS: [&str; 6] = ["one ", "two", "", "☃", " \"five\" ", "six"];
    let is = |n: u8| last(store, named(n)) > 0;
    match act {
        Act::Begin { n } if !is(*n) => vec![Write::Append(talk::remark(named(*n), 0, "begins"))],
        Act::Remark { n } if is(*n) => vec![Write::Append(talk::remark(named(*n), last(store, named(*n)), "remarks"))],
        Act::Talk { n, deltas, together, at } if is(*n) => {
            let expected = last(store, named(*n));
            let turn = talk::turn(named(*n), expected, number, &WORDS[..*deltas], *together, UnixMs(*at));
            turn.into_iter().map(Write::Append).collect()
        }
        Act::Fork { n, parent, pick, turn } if !is(*n) && is(*parent) => {
            let rests = talk::rests(store, named(*parent));
            let at = rests[pick % rests.len()];
            let mut appends = match turn {
                true => talk::turn(named(*n), at, number, &WORDS, 3, UnixMs(7)),
                false => vec![talk::remark(named(*n), at, "forks")],
            };
            appends[0].fork = Some(Fork { parent: named(*parent).thread, at });
            appends.into_iter().map(Write::Append).collect()
        }
        Act::Revert { n, picks } if is(*n) => {
            let turns = store.view().unwrap().turns(named(*n), 0, 999).unwrap();
            let mut step = talk::remark(named(*n), last(store, named(*n)), "reverts");
            let seq = step.row.head.last_seq;
            let picked = picks.iter().filter_map(|pick| turns.get(pick % turns.len().max(1)));
            step.reverted = picked.map(|turn| Reverted { started_seq: turn.started_seq, seq }).collect();
            vec![Write::Append(step)]
        }
        Act::Erase { n } => vec![Write::Erase { key: named(*n), fence: 1, expected: last(store, named(*n)) }],
        _ => Vec::new(),
    }
}

/// Everything that a thread shows.
fn shown(view: &dyn View, key: ThreadKey, turns: u128) -> String {
    let row = view.row(key).unwrap();
    let last = row.as_ref().map_or(0, |row| row.head.last_seq);
    let each = |seq: Seq| {
        let at = (view.event(key, seq).unwrap(), view.turn_before(key, seq).unwrap());
        (at, talk::events(view, key, seq), view.turns(key, seq, 2).unwrap())
    };
    let places: Vec<_> = (0..=last + 1).map(each).collect();
    let found: Vec<_> = (0..turns).map(|number| view.turn(key, talk::id(number)).unwrap()).collect();
    format!("{row:?}\n{:?}\n{places:?}\n{found:?}", view.turns(key, 0, 99).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn every_store_shows_a_random_family_alike(acts in prop::collection::vec(acts(), 1..30)) {
        let memory = MemoryStore::default();
        let medium = MemoryMedium::default();
        let mut stored = Some(redb(&medium));
        for (number, act) in (0..).zip(&acts) {
            let writes = writes(&memory, act, number);
            let (expected, found) = (commit(&memory, &writes), commit(stored.as_ref().unwrap(), &writes));
            prop_assert!(expected.iter().all(Result::is_ok), "{:?}: {:?}", act, expected);
            prop_assert_eq!(expected, found);
            match act {
                Act::Pack { before } => {
                    let packed = |store: &dyn LogStore| store.pack(UnixMs(*before), usize::MAX).unwrap();
                    prop_assert_eq!(packed(&memory), packed(stored.as_ref().unwrap()));
                }
                Act::Reopen => {
                    drop(stored.take());
                    stored = Some(redb(&medium));
                }
                _ => {}
            }
            let (left, right) = (memory.view().unwrap(), stored.as_ref().unwrap().view().unwrap());
            for n in 0..6 {
                let key = named(n);
                prop_assert_eq!(left.turns(key, 0, 99).unwrap(), right.turns(key, 0, 99).unwrap(), "{:?}", act);
                prop_assert_eq!(talk::events(&*left, key, 0), talk::events(&*right, key, 0), "{:?}", act);
            }
        }
        let (left, right) = (memory.view().unwrap(), stored.as_ref().unwrap().view().unwrap());
        for n in 0..6 {
            let turns = acts.len() as u128;
            prop_assert_eq!(shown(&*left, named(n), turns), shown(&*right, named(n), turns));
        }
    }
}
