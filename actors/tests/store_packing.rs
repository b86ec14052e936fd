//! Logs that are packed: what readers get before and after.

#[macro_use]
mod support;

use raddle_actors::store::{backend::MemoryMedium, redb::RedbStore};
use raddle_domain::{
    event::{Event, Record, SCHEMA},
    id::{Seq, ThreadKey},
    ports::{Append, Fork, LogStore, StoredEvent, Write},
    time::UnixMs,
};
use support::{append, commit, put, redb, settled, talk, thread, turn_id};

suite! {
    every_cursor_gets_the_rest_of_the_same_text
    a_turn_is_packed_once_and_when_it_has_ended_long_enough
    a_turn_that_is_open_is_left_as_it_is
    turns_are_packed_one_by_one_first_to_end_first
    forks_read_what_was_packed_before_and_after_they_left
    what_cannot_be_packed_is_passed_over
    an_erased_threads_turns_are_packed_by_its_heir_and_nobody_else
}

const A: fn() -> ThreadKey = || thread(1, 1);
const B: fn() -> ThreadKey = || thread(1, 2);
const WORDS: [&str; 7] = ["one ", "two", "", "☃", " \"five\"\n", "six", "seven"];

fn store_all(store: &dyn LogStore, appends: Vec<Append>) {
    let writes: Vec<_> = appends.into_iter().map(Write::Append).collect();
    assert!(commit(store, &writes).iter().all(Result::is_ok));
}

/// A turn of seven deltas; it takes eleven events.
fn talk(store: &dyn LogStore, key: ThreadKey, number: u128, together: usize, at: u64) {
    let expected = store.view().unwrap().row(key).unwrap().map_or(0, |row| row.head.last_seq);
    store_all(store, talk::turn(key, expected, number, &WORDS, together, UnixMs(at)));
}

fn read(store: &dyn LogStore, key: ThreadKey, after: Seq) -> Vec<(Seq, StoredEvent)> {
    talk::events(&*store.view().unwrap(), key, after)
}

/// The places of the deltas that are left.
fn deltas(store: &dyn LogStore, key: ThreadKey) -> Vec<Seq> {
    let events = read(store, key, 0);
    events.into_iter().filter(|(_, event)| event.name == "item.delta").map(|(seq, _)| seq).collect()
}

/// The text of the deltas after `after`; every event must name the one that this reader has before it.
#[track_caller]
fn text(store: &dyn LogStore, key: ThreadKey, after: Seq) -> String {
    let (mut before, mut text) = (after, String::new());
    for (seq, event) in read(store, key, after) {
        let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
        assert_eq!((json["seq"].as_u64(), json["prev"].as_u64()), (Some(seq), Some(before)));
        assert_eq!(json["thread_id"].as_str(), Some(&*key.thread.to_string()));
        before = seq;
        if let Event::ItemDelta(delta) = Record::decode(SCHEMA, &event.json).unwrap().event {
            text += &delta.delta;
        }
    }
    text
}

fn every_cursor_gets_the_rest_of_the_same_text(store: &dyn LogStore) {
    put(store, talk::remark(A(), 0, "begins")).unwrap();
    for together in [1, 2, 3, 99] {
        talk(store, A(), together as u128, together, 5);
    }
    put(store, talk::remark(A(), 45, "ends")).unwrap();
    let before: Vec<_> = (0..=46).map(|after| text(store, A(), after)).collect();
    let others = |store: &dyn LogStore| {
        let mut others = read(store, A(), 0);
        others.retain(|(_, event)| event.name != "item.delta");
        (others, store.view().unwrap().turns(A(), 0, 99).unwrap(), store.view().unwrap().row(A()).unwrap())
    };
    let kept = others(store);
    assert_eq!(store.pack(UnixMs(5), 99).unwrap(), 4);
    assert_eq!(deltas(store, A()), [10, 21, 32, 43]);
    for (after, before) in (0..).zip(&before) {
        assert_eq!(text(store, A(), after), *before, "after {after}");
        assert!(read(store, A(), after).iter().all(|(seq, _)| *seq > after));
    }
    assert_eq!(others(store), kept);
    // One event is found where it is; those that were joined are in the last of them.
    let view = store.view().unwrap();
    for (seq, event) in read(store, A(), 0) {
        assert_eq!(view.event(A(), seq).unwrap(), Some(event));
    }
    assert_eq!(view.event(A(), 7).unwrap(), None);
    // In pages of every length.
    for limit in 1..9 {
        let (mut after, mut paged) = (0, Vec::new());
        loop {
            let chunks = view.events(A(), after, limit, usize::MAX).unwrap();
            let page: Vec<_> = chunks.into_iter().flat_map(|chunk| (chunk.first..).zip(chunk.events)).collect();
            assert!(page.len() <= limit);
            let Some((last, _)) = page.last() else { break };
            after = *last;
            paged.extend(page);
        }
        assert_eq!(paged, read(store, A(), 0));
    }
}

fn a_turn_is_packed_once_and_when_it_has_ended_long_enough(store: &dyn LogStore) {
    talk(store, A(), 1, 4, 10);
    let before = read(store, A(), 0);
    assert_eq!(store.pack(UnixMs(9), 99).unwrap(), 0);
    assert_eq!(read(store, A(), 0), before);
    assert_eq!(store.pack(UnixMs(10), 99).unwrap(), 1);
    let packed = read(store, A(), 0);
    assert_eq!(deltas(store, A()), [9]);
    assert_eq!(store.pack(UnixMs(u64::MAX), 99).unwrap(), 0);
    assert_eq!(read(store, A(), 0), packed);
    // What is stored behind it is as it always was.
    talk(store, A(), 2, 4, 20);
    assert_eq!(deltas(store, A()).len(), 8);
    assert_eq!(store.pack(UnixMs(20), 99).unwrap(), 1);
    assert_eq!(deltas(store, A()), [9, 20]);
}

fn a_turn_that_is_open_is_left_as_it_is(store: &dyn LogStore) {
    // The end of one turn, and the beginning of the next with some of its text, are saved together.
    let mut appends = talk::turn(A(), 0, 1, &WORDS, 5, UnixMs(5));
    let mut next = talk::turn(A(), 11, 2, &WORDS, 6, UnixMs(9));
    let (mut end, begin) = (appends.pop().unwrap(), next.remove(0));
    end.chunk.events.extend(begin.chunk.events);
    end.row = begin.row;
    appends.push(end);
    store_all(store, appends);
    let before = read(store, A(), 11);
    assert_eq!(store.pack(UnixMs(99), 99).unwrap(), 1);
    assert_eq!(read(store, A(), 11), before);
    assert_eq!(deltas(store, A()), [9, 14, 15, 16, 17]);
    // It goes on, ends, and is packed then.
    store_all(store, next);
    assert_eq!(store.pack(UnixMs(9), 99).unwrap(), 1);
    assert_eq!(deltas(store, A()), [9, 20]);
    assert_eq!(text(store, A(), 0), WORDS.concat().repeat(2));
    assert_eq!(text(store, A(), 15), WORDS[2..].concat());
}

fn turns_are_packed_one_by_one_first_to_end_first(store: &dyn LogStore) {
    for (key, number, at) in [(A(), 1, 30), (B(), 2, 10), (A(), 3, 40), (B(), 4, 20)] {
        talk(store, key, number, 4, at);
    }
    let left = || (deltas(store, A()).len(), deltas(store, B()).len());
    assert_eq!(left(), (14, 14));
    for expected in [(14, 8), (14, 2), (8, 2), (2, 2)] {
        assert_eq!(store.pack(UnixMs(99), 1).unwrap(), 1);
        assert_eq!(left(), expected);
    }
    assert_eq!(store.pack(UnixMs(99), 1).unwrap(), 0);
}

fn forks_read_what_was_packed_before_and_after_they_left(store: &dyn LogStore) {
    talk(store, A(), 1, 4, 10);
    talk(store, A(), 2, 4, 20);
    assert_eq!(store.pack(UnixMs(10), 99).unwrap(), 1);
    let mut first = talk::remark(B(), 22, "forks");
    first.fork = Some(Fork { parent: A().thread, at: 22 });
    put(store, first).unwrap();
    assert_eq!(deltas(store, B()).len(), 8);
    assert_eq!(store.pack(UnixMs(20), 99).unwrap(), 1);
    for key in [A(), B()] {
        assert_eq!(deltas(store, key), [9, 20]);
        for (after, expected) in [(0, WORDS.concat().repeat(2)), (14, WORDS[1..].concat()), (18, WORDS[5..].concat())] {
            assert_eq!(text(store, key, after), expected);
        }
    }
    assert_eq!(commit(store, &[Write::Erase { key: A(), fence: 1, expected: 22 }]), [Ok(())]);
    assert_eq!(text(store, B(), 14), WORDS[1..].concat());
}

fn what_cannot_be_packed_is_passed_over(store: &dyn LogStore) {
    // Turns without an end in their log, one of events that are no deltas though they say so.
    let mut step = append(A(), 0, 5);
    step.settled = vec![settled(1), settled(3), settled(99)];
    step.at = UnixMs(1);
    put(store, step).unwrap();
    let mut step = append(A(), 5, 5);
    step.chunk.events[4].name = "turn.completed".into();
    step.settled = vec![settled(100)];
    step.at = UnixMs(1);
    put(store, step).unwrap();
    let before = read(store, A(), 0);
    talk(store, B(), 1, 4, 2);
    assert_eq!(store.pack(UnixMs(2), 99).unwrap(), 5);
    assert_eq!((read(store, A(), 0), deltas(store, B())), (before, vec![9]));
    assert_eq!(store.pack(UnixMs(u64::MAX), 99).unwrap(), 0);
}

fn an_erased_threads_turns_are_packed_by_its_heir_and_nobody_else(store: &dyn LogStore) {
    talk(store, A(), 1, 4, 10);
    talk(store, A(), 2, 4, 20);
    let mut first = talk::remark(B(), 11, "forks");
    first.fork = Some(Fork { parent: A().thread, at: 11 });
    put(store, first).unwrap();
    assert_eq!(commit(store, &[Write::Erase { key: A(), fence: 1, expected: 22 }]), [Ok(())]);
    assert_eq!(deltas(store, B()).len(), 7);
    assert_eq!(store.pack(UnixMs(99), 99).unwrap(), 1);
    assert_eq!(deltas(store, B()), [9]);
    assert!(store.view().unwrap().turn(B(), talk::id(1)).unwrap().is_some());
    assert!(store.view().unwrap().turn(B(), turn_id(2)).unwrap().is_none());
    talk(store, A(), 3, 4, 30);
    assert_eq!(commit(store, &[Write::Erase { key: A(), fence: 1, expected: 11 }]), [Ok(())]);
    assert_eq!(store.pack(UnixMs(99), 99).unwrap(), 0);
}

// ---- redb alone -------------------------------------------------------------------------------------

#[test]
fn a_turn_with_a_damaged_record_is_passed_over_and_stays_readable_elsewhere() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    talk(&store, A(), 1, 3, 5);
    store_all(&store, talk::turn(A(), 11, 2, &["a", "the-text-that-will-be-damaged", "b"], 1, UnixMs(5)));
    talk(&store, A(), 3, 3, 5);
    talk(&store, B(), 4, 3, 6);
    drop(store);
    let mut bytes = medium.bytes();
    let marker = b"\"delta\":\"the-text-that-will-be-damaged";
    let places: Vec<_> = (0..bytes.len() - marker.len()).filter(|at| bytes[*at..].starts_with(marker)).collect();
    for at in places {
        bytes[at + 12] ^= 4;
    }
    let store = redb(&MemoryMedium::holding(bytes));
    assert_eq!(store.pack(UnixMs(99), 99).unwrap(), 4);
    assert_eq!(store.pack(UnixMs(99), 99).unwrap(), 0);
    assert_eq!(deltas(&store, B()), [9]);
    let view = store.view().unwrap();
    let error = view.events(A(), 0, 99, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("log ") && error.contains("checksum"), "{error}");
    let seqs = |chunks: Vec<raddle_domain::ports::Chunk>| {
        chunks.iter().flat_map(|chunk| chunk.first..=chunk.last()).collect::<Vec<_>>()
    };
    assert_eq!(seqs(view.events(A(), 0, 5, usize::MAX).unwrap()), [1, 2, 9, 10, 11]);
    assert_eq!(seqs(view.events(A(), 18, 99, usize::MAX).unwrap()), [19, 20, 27, 28, 29]);
}

#[test]
fn a_long_turn_is_packed_in_portions_and_short_ones_share_chunks() {
    let medium = MemoryMedium::default();
    let store = RedbStore::open_medium(std::sync::Arc::new(medium.clone()), 1 << 20, 0).unwrap();
    let words: Vec<String> = (0..9_000).map(|n| format!("word {n} ")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    store_all(&store, talk::turn(A(), 0, 1, &words, 50, UnixMs(5)));
    for number in 2..40 {
        talk(&store, A(), number, 3, 6);
    }
    let whole = text(&store, A(), 0);
    let cursors: Vec<Seq> = (0..9_000).step_by(777).collect();
    let rests: Vec<_> = cursors.iter().map(|after| text(&store, A(), *after)).collect();
    let mut portions = 0;
    while store.pack(UnixMs(5), 99).unwrap() > 0 {
        portions += 1;
        assert_eq!(text(&store, A(), 0), whole);
    }
    assert!(portions > 2, "{portions} portions");
    while store.pack(UnixMs(6), 7).unwrap() > 0 {}
    for (after, rest) in cursors.iter().zip(rests) {
        assert_eq!(text(&store, A(), *after), rest);
    }
    // No joined delta is longer than a page likes.
    let short = |(_, event): &(Seq, StoredEvent)| event.name != "item.delta" || event.json.len() < 80_000;
    assert!(read(&store, A(), 0).iter().all(short));
    assert!(deltas(&store, A()).len() < 38 + 9_000 / 500);
    let whole = read(&store, A(), 0);
    drop(store);
    assert_eq!(read(&redb(&medium), A(), 0), whole);
}
