//! What the port promises, asked of every store; and one random life, lived by all of them with equal results.

#[macro_use]
mod support;

use std::sync::Arc;

use proptest::prelude::*;
use raddle_actors::store::{backend::MemoryMedium, memory::MemoryStore, redb::RedbStore};
use raddle_domain::{
    id::Seq,
    ports::{
        Append, Chunk, Figures, Fork, LogKind, LogStore, OwingPlace, Part, PartKind, PartName, Place, RecordKind,
        Write, WriteRefused,
    },
    time::UnixMs,
};
use support::{append, commit, event, indexed, no_part, part, put, receipt, redb, settled, tenant, thread, turn_id};

use PartKind::{Entry, Task, TaskName};

suite! {
    a_step_is_read_back_whole
    a_stale_writer_is_refused_and_leaves_no_trace
    an_older_writer_is_fenced_whatever_it_expects
    refused_writes_do_not_stop_their_neighbours
    steps_of_one_thread_in_one_batch_are_stored_in_order
    a_step_that_does_not_fit_itself_is_refused
    a_step_without_events_changes_the_row_alone
    chunks_are_cut_at_both_ends
    a_page_has_at_least_one_event_whatever_its_bytes
    turns_are_in_order_and_found_by_id
    a_settled_turn_can_be_written_again
    a_receipt_is_given_until_it_expires
    a_receipt_given_again_lives_as_long_as_the_new_one
    a_request_that_was_run_before_is_refused_until_its_receipt_expires
    a_thread_that_can_be_read_is_never_purged
    what_owes_is_listed_where_it_began_to_and_the_rest_where_it_settled
    pages_of_a_listing_meet
    a_tenant_sees_its_own_threads_alone
    timers_follow_the_row
    owing_threads_of_all_tenants_are_paged
    an_erased_thread_is_gone_and_can_be_born_again
    a_view_does_not_move
    an_unknown_thread_is_empty
    jobs_and_schedules_stand_in_indexes_of_their_own
    an_erased_job_is_nowhere_and_its_name_is_free
    runs_owe_and_wake_as_threads_do_and_stand_in_no_list_of_them
    parts_are_put_replaced_and_removed_with_the_steps_of_their_log
    parts_of_a_kind_are_paged_in_the_order_of_their_names
    parts_of_a_refused_step_leave_no_trace
    an_erased_run_takes_its_parts_along_and_its_name_is_free
    figures_are_of_one_tenants_threads_prompts_and_bytes
    figures_follow_every_step_and_go_with_their_log
    a_refused_step_changes_no_figure
    a_fork_counts_its_own_bytes_and_what_its_parent_leaves_to_it
}

/// What the events of a step say.
fn said(append: &Append) -> u64 {
    append.chunk.events.iter().map(|event| (event.name.len() + event.json.len()) as u64).sum()
}

fn figures_of(store: &dyn LogStore, n: u8) -> (u64, u64, u64) {
    let Figures { threads, queued, bytes } = store.figures(tenant(n)).unwrap();
    (threads, queued, bytes)
}

fn queues(mut append: Append, queued: u32) -> Append {
    append.row.head.queued = queued;
    append
}

fn figures_are_of_one_tenants_threads_prompts_and_bytes(store: &dyn LogStore) {
    assert_eq!(figures_of(store, 1), (0, 0, 0));
    let steps =
        [queues(append(thread(1, 1), 0, 2), 3), append(thread(1, 2), 0, 1), queues(append(thread(2, 1), 0, 1), 1)];
    let sizes = steps.each_ref().map(said);
    steps.into_iter().for_each(|step| put(store, step).unwrap());
    assert_eq!(figures_of(store, 1), (2, 3, sizes[0] + sizes[1]));
    // A job is no thread; what it says counts.
    let job = work(9, LogKind::Job, 0, None, Some(20));
    let more = said(&job);
    put(store, job).unwrap();
    assert_eq!(figures_of(store, 1), (2, 3, sizes[0] + sizes[1] + more));
    assert_eq!(figures_of(store, 2), (1, 1, sizes[2]));
}

fn figures_follow_every_step_and_go_with_their_log(store: &dyn LogStore) {
    let mut bytes = 0;
    for (expected, count, queued) in [(0, 2, 1), (2, 1, 4), (3, 0, 2), (3, 5, 0)] {
        let step = queues(append(thread(1, 1), expected, count), queued);
        bytes += said(&step);
        put(store, step).unwrap();
        assert_eq!(figures_of(store, 1), (1, u64::from(queued), bytes));
    }
    // Several of one commit.
    let steps = [queues(append(thread(1, 1), 8, 1), 2), queues(append(thread(1, 2), 0, 1), 5)];
    let more: u64 = steps.iter().map(said).sum();
    assert!(commit(store, &steps.map(Write::Append)).iter().all(Result::is_ok));
    assert_eq!(figures_of(store, 1), (2, 7, bytes + more));
    let erase = Write::Erase { key: thread(1, 1), fence: 1, expected: 9 };
    let left = said(&append(thread(1, 2), 0, 1));
    assert_eq!(commit(store, &[erase]), [Ok(())]);
    assert_eq!(figures_of(store, 1), (1, 5, left));
}

fn a_refused_step_changes_no_figure(store: &dyn LogStore) {
    put(store, queues(append(thread(1, 1), 0, 2), 1)).unwrap();
    let before = figures_of(store, 1);
    assert!(put(store, queues(append(thread(1, 1), 7, 2), 9)).is_err());
    assert!(commit(store, &[Write::Erase { key: thread(1, 1), fence: 0, expected: 2 }])[0].is_err());
    assert_eq!(figures_of(store, 1), before);
}

fn a_fork_counts_its_own_bytes_and_what_its_parent_leaves_to_it(store: &dyn LogStore) {
    let fork = |n, at, count| Append {
        fork: Some(Fork { parent: thread(1, 1).thread, at }),
        ..append(thread(1, n), at, count)
    };
    let parent = [append(thread(1, 1), 0, 3), append(thread(1, 1), 3, 4)];
    let forks = [fork(2, 2, 1), fork(3, 5, 2)];
    let [own, others] = [&parent, &forks].map(|steps| steps.iter().map(said).sum::<u64>());
    parent.into_iter().chain(forks).for_each(|step| put(store, step).unwrap());
    assert_eq!(figures_of(store, 1), (3, 0, own + others));
    // The fork that left last keeps five events of seven; the other one shares them with it.
    let kept = said(&append(thread(1, 1), 0, 5));
    assert_eq!(commit(store, &[Write::Erase { key: thread(1, 1), fence: 1, expected: 7 }]), [Ok(())]);
    assert_eq!(figures_of(store, 1), (2, 0, kept + others));
    // And so on: what it leaves in its turn is what the last one shares.
    let kept = said(&append(thread(1, 1), 0, 2)) + said(&fork(2, 2, 1));
    assert_eq!(commit(store, &[Write::Erase { key: thread(1, 3), fence: 1, expected: 7 }]), [Ok(())]);
    assert_eq!(figures_of(store, 1), (1, 0, kept));
    assert_eq!(commit(store, &[Write::Erase { key: thread(1, 2), fence: 1, expected: 3 }]), [Ok(())]);
    assert_eq!(figures_of(store, 1), (0, 0, 0));
}

#[test]
fn figures_are_the_same_after_a_restart_and_whenever_they_are_asked_for() {
    let medium = MemoryMedium::default();
    let asked = redb(&medium);
    assert_eq!(asked.known_figures(tenant(1)), None);
    asked.figures(tenant(1)).unwrap();
    for n in 1..40 {
        put(&asked, queues(append(thread(1, n), 0, u64::from(n)), u32::from(n) % 3)).unwrap();
    }
    let counted = asked.known_figures(tenant(1));
    assert!(counted.is_some());
    drop(asked);
    let opened = redb(&medium);
    assert_eq!(Some(opened.figures(tenant(1)).unwrap()), counted);
    assert_eq!(opened.known_figures(tenant(2)), None);
}

fn view_events(store: &dyn LogStore, key: raddle_domain::id::ThreadKey, after: Seq) -> Vec<Chunk> {
    store.view().unwrap().events(key, after, usize::MAX, usize::MAX).unwrap()
}

/// A step of a log of this kind, under way since and due at these times.
fn work(n: u8, kind: LogKind, expected: Seq, since: Option<u64>, due: Option<u64>) -> Append {
    let key = thread(1, n);
    let mut append = append(key, expected, 1);
    let times = (since.map(UnixMs), due.map(UnixMs));
    (append.row.head.owes_since, append.row.head.wake_at, append.row.head.kind) = (times.0, times.1, kind);
    append.indexed = vec![indexed(RecordKind::Job, u128::from(n), expected + 1, due.is_some())];
    append
}

fn jobs_and_schedules_stand_in_indexes_of_their_own(store: &dyn LogStore) {
    put(store, work(1, LogKind::Thread, 0, Some(5), Some(10))).unwrap();
    put(store, work(2, LogKind::Job, 0, Some(6), Some(20))).unwrap();
    put(store, work(3, LogKind::Schedule, 0, None, Some(15))).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.row(thread(1, 3)).unwrap().unwrap().head.kind, LogKind::Schedule);
    let due: Vec<_> = view.due_jobs(UnixMs(99), 9).unwrap();
    assert_eq!(due, [(UnixMs(15), thread(1, 3)), (UnixMs(20), thread(1, 2))]);
    assert_eq!(view.due_jobs(UnixMs(15), 9).unwrap().len(), 1);
    assert_eq!(view.due_jobs(UnixMs(99), 1).unwrap().len(), 1);
    assert_eq!(
        [0, 14, 15, 19, 20].map(|after| view.next_job(UnixMs(after)).unwrap().map(|at| at.0)),
        [Some(15), Some(15), Some(20), Some(20), None,]
    );
    let owing = view.owing_jobs(None, 9).unwrap();
    assert_eq!(owing.iter().map(|place| place.thread).collect::<Vec<_>>(), [thread(1, 2).thread]);
    assert_eq!(view.owing_jobs(Some(owing[0]), 9).unwrap(), []);
    // Those of threads know nothing of them.
    assert_eq!(view.due(UnixMs(99), 9).unwrap(), [(UnixMs(10), thread(1, 1))]);
    assert_eq!(view.next_wake().unwrap(), Some(UnixMs(10)));
    assert_eq!(view.owing(None, 9).unwrap().len(), 1);
    let listed = view.list(tenant(1), None, 9).unwrap();
    assert_eq!(listed.iter().map(|listed| listed.place.thread).collect::<Vec<_>>(), [thread(1, 1).thread]);
    // All of them stand in the feed, and what is found by its id is found.
    assert_eq!(view.feed_head(tenant(1)).unwrap(), 3);
    assert_eq!(view.records(tenant(1), RecordKind::Job, None, true, None, 9).unwrap().len(), 3);
    drop(view);
    // They move with the row, and a row alone moves them too.
    let moved = Append { indexed: Vec::new(), ..work(2, LogKind::Job, 1, None, Some(30)) };
    put(store, moved).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.owing_jobs(None, 9).unwrap(), []);
    assert_eq!(view.next_job(UnixMs(15)).unwrap(), Some(UnixMs(30)));
}

fn an_erased_job_is_nowhere_and_its_name_is_free(store: &dyn LogStore) {
    let key = thread(1, 2);
    put(store, work(2, LogKind::Job, 0, Some(6), Some(20))).unwrap();
    let erase = Write::Erase { key, fence: 1, expected: 1 };
    assert_eq!(commit(store, &[erase]), [Ok(())]);
    let view = store.view().unwrap();
    assert_eq!((view.row(key).unwrap(), view.owing_jobs(None, 9).unwrap()), (None, vec![]));
    assert_eq!((view.due_jobs(UnixMs(99), 9).unwrap(), view.next_job(UnixMs(0)).unwrap()), (vec![], None));
    assert_eq!(view.records(tenant(1), RecordKind::Job, None, false, None, 9).unwrap(), []);
    drop(view);
    put(store, work(2, LogKind::Job, 0, None, Some(40))).unwrap();
    assert_eq!(store.view().unwrap().next_job(UnixMs(0)).unwrap(), Some(UnixMs(40)));
}

fn runs_owe_and_wake_as_threads_do_and_stand_in_no_list_of_them(store: &dyn LogStore) {
    put(store, work(1, LogKind::Thread, 0, Some(5), Some(10))).unwrap();
    // Whatever they are called.
    for (n, since) in [(2, 3), (0xa2, 6)] {
        put(store, work(n, LogKind::Run, 0, Some(since), Some(2 * since))).unwrap();
    }
    put(store, work(4, LogKind::Run, 0, None, None)).unwrap();
    put(store, append(thread(1, 5), 0, 1)).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.row(thread(1, 0xa2)).unwrap().unwrap().head.kind, LogKind::Run);
    let owing = view.owing(None, 9).unwrap();
    assert_eq!(owing.iter().map(|place| place.thread.as_bytes()[0]).collect::<Vec<_>>(), [2, 1, 0xa2]);
    let due = view.due(UnixMs(99), 9).unwrap();
    assert_eq!(
        due.iter().map(|(at, key)| (at.0, key.thread.as_bytes()[0])).collect::<Vec<_>>(),
        [(6, 2), (10, 1), (12, 0xa2)]
    );
    assert_eq!(view.next_wake().unwrap(), Some(UnixMs(6)));
    assert_eq!((view.owing_jobs(None, 9).unwrap(), view.due_jobs(UnixMs(99), 9).unwrap()), (vec![], vec![]));
    drop(view);
    assert_eq!(places(store, None, 9), [(101, 5), (5, 1)]);
    // A page is not shorter for those that it passes over.
    let (first, last) = (places(store, None, 1), Place { at: UnixMs(101), thread: thread(1, 5).thread });
    assert_eq!((first, places(store, Some(last), 1)), (vec![(101, 5)], vec![(5, 1)]));
    // They stay out of it when they settle.
    for n in [2, 0xa2] {
        put(store, work(n, LogKind::Run, 1, None, None)).unwrap();
    }
    assert_eq!(places(store, None, 9), [(101, 5), (5, 1)]);
    assert_eq!(store.view().unwrap().owing(None, 9).unwrap().len(), 1);
}

/// A step of the run `n` that changes parts.
fn changes(n: u8, expected: Seq, count: u64, parts: Vec<Part>) -> Append {
    let mut step = append(thread(1, n), expected, count);
    step.row.head.kind = LogKind::Run;
    Append { parts, ..step }
}

/// The parts of a kind as they would be put.
fn parts(store: &dyn LogStore, key: raddle_domain::id::ThreadKey, kind: PartKind) -> Vec<Part> {
    let parts = store.view().unwrap().parts(key, kind, None, 99).unwrap();
    parts.into_iter().map(|(name, json)| Part { kind, name, json: Some(json) }).collect()
}

fn parts_are_put_replaced_and_removed_with_the_steps_of_their_log(store: &dyn LogStore) {
    let key = thread(1, 1);
    let read = |kind, number| store.view().unwrap().part(key, kind, PartName::number(number)).unwrap();
    put(store, changes(1, 0, 1, vec![part(Task, 2, "b"), part(Task, 1, "a"), part(Entry, 1, "c")])).unwrap();
    assert_eq!(parts(store, key, Task), [part(Task, 1, "a"), part(Task, 2, "b")]);
    assert_eq!((read(Task, 2), read(Entry, 1)), (part(Task, 2, "b").json, part(Entry, 1, "c").json));
    assert_eq!((read(Task, 3), read(Entry, 2), read(PartKind::Image, 1)), (None, None, None));
    // A step without events changes them too, and the last word of a step holds.
    let before = store.view().unwrap();
    let step = vec![part(Task, 1, "d"), no_part(Task, 2), no_part(Task, 7), part(Task, 3, "e"), part(Task, 3, "f")];
    put(store, changes(1, 1, 0, step)).unwrap();
    assert_eq!(parts(store, key, Task), [part(Task, 1, "d"), part(Task, 3, "f")]);
    assert_eq!((read(Task, 2), parts(store, key, Entry)), (None, vec![part(Entry, 1, "c")]));
    assert_eq!(before.part(key, Task, PartName::number(2)).unwrap(), part(Task, 2, "b").json);
    assert_eq!(before.parts(key, Task, None, 9).unwrap().len(), 2);
    // A step that says nothing about them leaves them, and those of another log are others.
    put(store, changes(1, 1, 2, vec![])).unwrap();
    put(store, changes(2, 0, 1, vec![part(Task, 1, "another")])).unwrap();
    assert_eq!(parts(store, key, Task), [part(Task, 1, "d"), part(Task, 3, "f")]);
    assert_eq!(parts(store, thread(1, 2), Task), [part(Task, 1, "another")]);
    assert_eq!(parts(store, thread(2, 1), Task), []);
}

fn parts_of_a_kind_are_paged_in_the_order_of_their_names(store: &dyn LogStore) {
    let key = thread(1, 1);
    let ends = [[0; 32], [0xff; 32]].map(|name| Part { name: PartName(name), ..part(Task, 0, "end") });
    let [first, last] = ends.clone().map(|part| part.name);
    let numbers = [256, 3, 1, u64::MAX, 2].map(|number| part(Task, number, "x"));
    // What stands before and behind them is of other kinds and logs.
    let others = [part(TaskName, 0, "y"), part(PartKind::Source, u64::MAX, "z")];
    put(store, changes(1, 0, 1, [&numbers[..], &ends, &others].concat())).unwrap();
    for n in [0, 2] {
        put(store, changes(n, 0, 1, vec![part(Task, 5, "of another")])).unwrap();
    }
    let mut all = [&numbers[..], &ends].concat();
    all.sort_by_key(|part| part.name);
    assert_eq!(parts(store, key, Task), all);
    let view = store.view().unwrap();
    let names = |after, limit| -> Vec<PartName> {
        view.parts(key, Task, after, limit).unwrap().into_iter().map(|(name, _)| name).collect()
    };
    for limit in 1..9 {
        let mut paged = Vec::new();
        loop {
            let page = names(paged.last().copied(), limit);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, all.iter().map(|part| part.name).collect::<Vec<_>>());
    }
    assert_eq!(names(Some(PartName::number(4)), 1), [PartName::number(256)]);
    assert_eq!((names(None, 0), names(Some(last), 9)), (vec![], vec![]));
    assert_eq!((names(None, 1), names(Some(first), 1)), (vec![first], vec![PartName::number(1)]));
    assert_eq!(view.parts(key, TaskName, None, 9).unwrap().len(), 1);
    assert_eq!(view.parts(key, Entry, None, 9).unwrap(), []);
}

fn parts_of_a_refused_step_leave_no_trace(store: &dyn LogStore) {
    let key = thread(1, 1);
    put(store, changes(1, 0, 2, vec![part(Task, 1, "a")])).unwrap();
    let other = Append { receipts: vec![receipt(1, 50)], ..changes(2, 0, 1, vec![]) };
    put(store, Append { indexed: vec![indexed(RecordKind::Run, 7, 1, true)], ..other }).unwrap();
    let refused = |expected| changes(1, expected, 1, vec![part(Task, 1, "b"), part(Task, 2, "c")]);
    let mut fenced = refused(2);
    fenced.row.head.fence = 0;
    let mut unfit = refused(2);
    unfit.chunk.first = 9;
    let repeated = Append { at: UnixMs(9), receipts: vec![receipt(1, 50)], ..refused(2) };
    let taken = Append { indexed: vec![indexed(RecordKind::Run, 7, 3, true)], ..refused(2) };
    for step in [refused(1), fenced, unfit, repeated, taken, changes(3, 4, 1, vec![part(Task, 1, "born")])] {
        let neighbour = changes(4, 0, 1, vec![part(Task, 1, "stored")]);
        let erase = Write::Erase { key: neighbour.key, fence: 1, expected: 1 };
        let results = commit(store, &[Write::Append(neighbour.clone()), Write::Append(step)]);
        assert!(results[0].is_ok() && results[1].is_err(), "{results:?}");
        assert_eq!(parts(store, key, Task), [part(Task, 1, "a")]);
        assert_eq!((parts(store, thread(1, 3), Task), parts(store, thread(1, 4), Task)), (vec![], neighbour.parts));
        assert_eq!(commit(store, &[erase]), [Ok(())]);
    }
}

fn an_erased_run_takes_its_parts_along_and_its_name_is_free(store: &dyn LogStore) {
    let key = thread(1, 2);
    let mut step = changes(2, 0, 1, (0..40).map(|number| part(Task, number, "x")).collect());
    step.parts.extend([part(PartKind::Source, 9, "z")]);
    (step.row.head.owes_since, step.row.head.wake_at) = (Some(UnixMs(1)), Some(UnixMs(2)));
    put(store, step).unwrap();
    for n in [1, 3] {
        put(store, changes(n, 0, 1, vec![part(Task, 1, "neighbour")])).unwrap();
    }
    let erase = |expected| commit(store, &[Write::Erase { key, fence: 1, expected }]).remove(0);
    assert_eq!(erase(7), Err(WriteRefused::Conflict { expected: 7, found: 1 }));
    assert_eq!(parts(store, key, Task).len(), 40);
    assert_eq!(erase(1), Ok(()));
    let view = store.view().unwrap();
    assert_eq!((view.row(key).unwrap(), view.owing(None, 9).unwrap(), view.next_wake().unwrap()), (None, vec![], None));
    assert_eq!(view.part(key, PartKind::Source, PartName::number(9)).unwrap(), None);
    drop(view);
    assert_eq!((parts(store, key, Task), parts(store, key, PartKind::Source)), (vec![], vec![]));
    for n in [1, 3] {
        assert_eq!(parts(store, thread(1, n), Task), [part(Task, 1, "neighbour")]);
    }
    put(store, changes(2, 0, 1, vec![part(Task, 50, "born again")])).unwrap();
    assert_eq!(parts(store, key, Task), [part(Task, 50, "born again")]);
}

fn a_step_is_read_back_whole(store: &dyn LogStore) {
    let step = append(thread(1, 1), 0, 3);
    put(store, step.clone()).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.row(step.key).unwrap(), Some(step.row));
    assert_eq!(view.events(step.key, 0, 99, 1 << 20).unwrap(), [step.chunk]);
    assert_eq!(view.event(step.key, 2).unwrap(), Some(event(step.key, 2)));
    assert_eq!(view.event(step.key, 0).unwrap(), None);
    assert_eq!(view.event(step.key, 4).unwrap(), None);
    assert!(store.epoch() >= 1);
}

fn a_stale_writer_is_refused_and_leaves_no_trace(store: &dyn LogStore) {
    let key = thread(1, 1);
    put(store, append(key, 0, 2)).unwrap();
    let mut stale = append(key, 1, 1);
    stale.receipts = vec![receipt(1, 999)];
    stale.settled = vec![settled(1)];
    assert_eq!(put(store, stale), Err(WriteRefused::Conflict { expected: 1, found: 2 }));
    assert_eq!(put(store, append(key, 0, 1)), Err(WriteRefused::Conflict { expected: 0, found: 2 }));
    assert_eq!(put(store, append(thread(1, 2), 7, 1)), Err(WriteRefused::Conflict { expected: 7, found: 0 }));
    let view = store.view().unwrap();
    assert_eq!(view.receipt(key.tenant, &[1; 32], UnixMs(0)).unwrap(), None);
    assert_eq!(view.turns(key, 0, 9).unwrap(), []);
    assert_eq!(view.row(key).unwrap().unwrap().head.last_seq, 2);
}

fn an_older_writer_is_fenced_whatever_it_expects(store: &dyn LogStore) {
    let key = thread(1, 1);
    let mut step = append(key, 0, 2);
    step.row.head.fence = 5;
    put(store, step).unwrap();
    for expected in [2, 9] {
        let mut late = append(key, expected, 1);
        late.row.head.fence = 4;
        assert_eq!(put(store, late), Err(WriteRefused::Fenced { fence: 4, owner: 5 }));
    }
    let erase = Write::Erase { key, fence: 4, expected: 2 };
    assert_eq!(store.commit(&[erase]).unwrap(), [Err(WriteRefused::Fenced { fence: 4, owner: 5 })]);
    let mut same = append(key, 2, 1);
    same.row.head.fence = 5;
    put(store, same).unwrap();
}

fn refused_writes_do_not_stop_their_neighbours(store: &dyn LogStore) {
    let writes = [append(thread(1, 1), 0, 1), append(thread(1, 2), 3, 1), append(thread(1, 3), 0, 2)];
    let results = store.commit(&writes.map(Write::Append)).unwrap();
    assert_eq!(results, [Ok(1), Err(WriteRefused::Conflict { expected: 3, found: 0 }), Ok(2)]);
    let view = store.view().unwrap();
    let rows = [1, 2, 3].map(|n| view.row(thread(1, n)).unwrap().map(|row| row.head.last_seq));
    assert_eq!(rows, [Some(1), None, Some(2)]);
}

fn steps_of_one_thread_in_one_batch_are_stored_in_order(store: &dyn LogStore) {
    let key = thread(1, 1);
    let writes = [append(key, 0, 2), append(key, 2, 1), append(key, 2, 1), append(key, 3, 1)].map(Write::Append);
    let results = store.commit(&writes).unwrap();
    assert_eq!(results, [Ok(1), Ok(2), Err(WriteRefused::Conflict { expected: 2, found: 3 }), Ok(3)]);
    assert_eq!(view_events(store, key, 0).iter().map(|chunk| chunk.first).collect::<Vec<_>>(), [1, 3, 4]);
}

fn a_step_that_does_not_fit_itself_is_refused(store: &dyn LogStore) {
    let key = thread(1, 1);
    let mut gap = append(key, 0, 1);
    gap.chunk.first = 2;
    let mut long = append(key, 0, 1);
    long.row.head.last_seq = 2;
    let mut zero = append(key, 0, 1);
    zero.chunk.first = 0;
    let mut end = append(key, 0, 1);
    end.expected = Seq::MAX;
    for step in [gap, long, zero, end] {
        assert!(matches!(put(store, step), Err(WriteRefused::Corrupt(_))));
    }
    assert_eq!(store.view().unwrap().row(key).unwrap(), None);
}

fn a_step_without_events_changes_the_row_alone(store: &dyn LogStore) {
    let key = thread(1, 1);
    put(store, append(key, 0, 2)).unwrap();
    let mut step = append(key, 2, 0);
    step.row.head.archived = true;
    put(store, step).unwrap();
    assert!(store.view().unwrap().row(key).unwrap().unwrap().head.archived);
    assert_eq!(view_events(store, key, 0).len(), 1);
}

fn chunks_are_cut_at_both_ends(store: &dyn LogStore) {
    let key = thread(1, 1);
    for expected in [0, 3, 6] {
        put(store, append(key, expected, 3)).unwrap();
    }
    let view = store.view().unwrap();
    let found = view.events(key, 1, 5, usize::MAX).unwrap();
    let shape: Vec<_> = found.iter().map(|chunk| (chunk.first, chunk.last())).collect();
    assert_eq!(shape, [(2, 3), (4, 6)]);
    assert_eq!(found.concat_events(), (2..=6).map(|seq| event(key, seq)).collect::<Vec<_>>());
    assert_eq!(view.events(key, 9, 5, usize::MAX).unwrap(), []);
    assert_eq!(view.events(key, 99, 5, usize::MAX).unwrap(), []);
    assert_eq!(view.events(key, Seq::MAX, 5, usize::MAX).unwrap(), []);
    assert_eq!(view.events(key, 0, 0, usize::MAX).unwrap(), []);
}

trait Concat {
    fn concat_events(&self) -> Vec<raddle_domain::ports::StoredEvent>;
}
impl Concat for Vec<Chunk> {
    fn concat_events(&self) -> Vec<raddle_domain::ports::StoredEvent> {
        self.iter().flat_map(|chunk| chunk.events.clone()).collect()
    }
}

fn a_page_has_at_least_one_event_whatever_its_bytes(store: &dyn LogStore) {
    let key = thread(1, 1);
    put(store, append(key, 0, 5)).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.events(key, 0, 9, 0).unwrap().concat_events().len(), 1);
    let size = event(key, 1).json.len();
    assert_eq!(view.events(key, 0, 9, size + 1).unwrap().concat_events().len(), 2);
}

fn turns_are_in_order_and_found_by_id(store: &dyn LogStore) {
    let key = thread(1, 1);
    let mut step = append(key, 0, 20);
    step.settled = vec![settled(2), settled(5)];
    put(store, step).unwrap();
    let mut step = append(key, 20, 1);
    step.settled = vec![settled(9)];
    put(store, step).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.turns(key, 0, 9).unwrap(), [settled(2), settled(5), settled(9)]);
    assert_eq!(view.turns(key, 2, 1).unwrap(), [settled(5)]);
    assert_eq!(view.turns(key, 4, 9).unwrap(), [settled(5), settled(9)]);
    assert_eq!(view.turns(key, 9, 9).unwrap(), []);
    assert_eq!(view.turns(key, 0, 0).unwrap(), []);
    assert_eq!(view.turn(key, turn_id(5)).unwrap(), Some(settled(5)));
    assert_eq!(view.turn(key, turn_id(6)).unwrap(), None);
    assert_eq!(view.turn(thread(2, 1), turn_id(5)).unwrap(), None);
    // A turn behind its successors cannot be: turns end one after the other.
    let mut late = append(key, 21, 1);
    late.settled = vec![settled(3)];
    assert!(matches!(put(store, late), Err(WriteRefused::Corrupt(_))));
}

fn a_settled_turn_can_be_written_again(store: &dyn LogStore) {
    let key = thread(1, 1);
    for (expected, started) in [(0, 1), (5, 6), (10, 11), (15, 6), (20, 6)] {
        let mut step = append(key, expected, 5);
        let mut turn = settled(started);
        turn.turn = format!("{{\"of\":{expected}}}").into_bytes();
        step.settled = vec![turn];
        put(store, step).unwrap();
    }
    let turns = store.view().unwrap().turns(key, 0, 9).unwrap();
    let shown: Vec<_> = turns.iter().map(|turn| (turn.started_seq, turn.turn.as_slice())).collect();
    assert_eq!(shown, [(1, &b"{\"of\":0}"[..]), (6, b"{\"of\":20}"), (11, b"{\"of\":10}")]);
}

fn a_receipt_is_given_until_it_expires(store: &dyn LogStore) {
    let key = thread(1, 1);
    let mut step = append(key, 0, 1);
    step.receipts = vec![receipt(1, 50), receipt(2, 60), receipt(3, 70)];
    put(store, step).unwrap();
    let found = |n: u8, now| store.view().unwrap().receipt(key.tenant, &[n; 32], UnixMs(now)).unwrap();
    assert_eq!(found(1, 49), Some(receipt(1, 50)));
    assert_eq!(found(1, 50), None);
    assert_eq!(store.view().unwrap().receipt(tenant(2), &[1; 32], UnixMs(0)).unwrap(), None);
    assert_eq!(store.sweep_receipts(UnixMs(49), 9).unwrap(), 0);
    assert_eq!(store.sweep_receipts(UnixMs(60), 1).unwrap(), 1);
    assert_eq!((found(1, 0), found(2, 0)), (None, Some(receipt(2, 60))));
    assert_eq!(store.sweep_receipts(UnixMs(60), 9).unwrap(), 1);
    assert_eq!((found(2, 0), found(3, 0)), (None, Some(receipt(3, 70))));
}

fn a_thread_that_can_be_read_is_never_purged(store: &dyn LogStore) {
    put(store, append(thread(1, 1), 0, 2)).unwrap();
    let purge = |n| commit(store, &[Write::Purge { key: thread(1, n) }]).remove(0);
    assert_eq!(purge(1), Err(WriteRefused::Conflict { expected: 0, found: 2 }));
    assert_eq!(purge(2), Ok(()));
    assert_eq!(store.view().unwrap().row(thread(1, 1)).unwrap().unwrap().head.last_seq, 2);
}

fn a_request_that_was_run_before_is_refused_until_its_receipt_expires(store: &dyn LogStore) {
    let step = |thread_number: u128, expected, at| {
        let mut step = append(thread(1, thread_number as u8), expected, 1);
        step.at = UnixMs(at);
        step.receipts = vec![receipt(1, 50)];
        step
    };
    put(store, step(1, 0, 10)).unwrap();
    assert_eq!(put(store, step(1, 1, 49)), Err(WriteRefused::Repeated));
    // On another thread of the tenant too, and with nothing left behind.
    assert_eq!(put(store, step(2, 0, 49)), Err(WriteRefused::Repeated));
    assert_eq!(store.view().unwrap().row(thread(1, 2)).unwrap(), None);
    put(store, step(1, 1, 50)).unwrap();
}

fn a_receipt_given_again_lives_as_long_as_the_new_one(store: &dyn LogStore) {
    let key = thread(1, 1);
    for (expected, expires) in [(0, 50), (1, 80)] {
        let mut step = append(key, expected, 1);
        step.receipts = vec![receipt(1, expires)];
        put(store, step).unwrap();
    }
    assert_eq!(store.sweep_receipts(UnixMs(70), 9).unwrap(), 0);
    assert_eq!(store.view().unwrap().receipt(key.tenant, &[1; 32], UnixMs(70)).unwrap(), Some(receipt(1, 80)));
}

/// A step of one event with the given head.
fn headed(n: u8, expected: Seq, listed_at: u64, owes: Option<u64>, wake: Option<u64>) -> Append {
    let mut step = append(thread(1, n), expected, 1);
    step.row.head.listed_at = UnixMs(listed_at);
    step.row.head.owes_since = owes.map(UnixMs);
    step.row.head.wake_at = wake.map(UnixMs);
    step
}

fn places(store: &dyn LogStore, cursor: Option<Place>, limit: usize) -> Vec<(u64, u8)> {
    let list = store.view().unwrap().list(tenant(1), cursor, limit).unwrap();
    for listed in &list {
        assert!(listed.row.as_ref().unwrap().head.owes_since.is_none_or(|at| at == listed.place.at));
    }
    list.iter().map(|listed| (listed.place.at.0, listed.place.thread.as_bytes()[0])).collect()
}

fn what_owes_is_listed_where_it_began_to_and_the_rest_where_it_settled(store: &dyn LogStore) {
    put(store, headed(1, 0, 10, None, None)).unwrap();
    put(store, headed(2, 0, 20, Some(25), None)).unwrap();
    put(store, headed(3, 0, 30, None, None)).unwrap();
    assert_eq!(places(store, None, 9), [(30, 3), (25, 2), (10, 1)]);
    // Begins to owe: moves up, once.
    put(store, headed(1, 1, 40, Some(40), None)).unwrap();
    assert_eq!(places(store, None, 9), [(40, 1), (30, 3), (25, 2)]);
    put(store, headed(1, 2, 45, Some(40), None)).unwrap();
    assert_eq!(places(store, None, 9), [(40, 1), (30, 3), (25, 2)]);
    // Settles.
    put(store, headed(1, 3, 50, None, None)).unwrap();
    put(store, headed(2, 1, 20, None, None)).unwrap();
    assert_eq!(places(store, None, 9), [(50, 1), (30, 3), (20, 2)]);
}

fn pages_of_a_listing_meet(store: &dyn LogStore) {
    for n in 1..=20 {
        // Some share their time, some owe.
        put(store, headed(n, 0, u64::from(n / 3), (n % 4 == 0).then_some(u64::from(n / 2)), None)).unwrap();
    }
    let whole = places(store, None, 99);
    assert_eq!(whole.len(), 20);
    for limit in 1..7 {
        let (mut paged, mut cursor) = (Vec::new(), None);
        loop {
            let page = store.view().unwrap().list(tenant(1), cursor, limit).unwrap();
            let Some(last) = page.last() else { break };
            cursor = Some(last.place);
            paged.extend(page.iter().map(|listed| (listed.place.at.0, listed.place.thread.as_bytes()[0])));
        }
        assert_eq!(paged, whole);
    }
}

fn a_tenant_sees_its_own_threads_alone(store: &dyn LogStore) {
    put(store, append(thread(1, 1), 0, 1)).unwrap();
    put(store, append(thread(2, 1), 0, 2)).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.list(tenant(1), None, 9).unwrap().len(), 1);
    assert_eq!(view.list(tenant(3), None, 9).unwrap().len(), 0);
    assert_eq!(view.row(thread(1, 1)).unwrap().unwrap().head.last_seq, 1);
    assert_eq!(view.row(thread(2, 1)).unwrap().unwrap().head.last_seq, 2);
    assert_eq!(view.row(thread(3, 1)).unwrap(), None);
}

fn timers_follow_the_row(store: &dyn LogStore) {
    let due = |until| store.view().unwrap().due(UnixMs(until), 9).unwrap();
    assert_eq!(store.view().unwrap().next_wake().unwrap(), None);
    put(store, headed(1, 0, 1, None, Some(50))).unwrap();
    put(store, headed(2, 0, 1, None, Some(40))).unwrap();
    assert_eq!(store.view().unwrap().next_wake().unwrap(), Some(UnixMs(40)));
    assert_eq!(due(39), []);
    assert_eq!(due(50), [(UnixMs(40), thread(1, 2)), (UnixMs(50), thread(1, 1))]);
    assert_eq!(store.view().unwrap().due(UnixMs(50), 1).unwrap().len(), 1);
    put(store, headed(2, 1, 1, None, Some(60))).unwrap();
    put(store, headed(1, 1, 1, None, None)).unwrap();
    assert_eq!(due(99), [(UnixMs(60), thread(1, 2))]);
    store.commit(&[Write::Erase { key: thread(1, 2), fence: 1, expected: 2 }]).unwrap().remove(0).unwrap();
    assert_eq!(store.view().unwrap().next_wake().unwrap(), None);
}

fn owing_threads_of_all_tenants_are_paged(store: &dyn LogStore) {
    for (tenant_no, n, since) in [(2, 1, 5), (1, 2, 9), (1, 3, 7), (1, 4, 7)] {
        let mut step = append(thread(tenant_no, n), 0, 1);
        step.row.head.owes_since = Some(UnixMs(since));
        put(store, step).unwrap();
    }
    let place = |tenant_no, n, since| OwingPlace {
        tenant: tenant(tenant_no),
        since: UnixMs(since),
        thread: thread(tenant_no, n).thread,
    };
    let all = [place(1, 3, 7), place(1, 4, 7), place(1, 2, 9), place(2, 1, 5)];
    let view = store.view().unwrap();
    assert_eq!(view.owing(None, 9).unwrap(), all);
    assert_eq!(view.owing(None, 2).unwrap(), all[..2]);
    assert_eq!(view.owing(Some(all[1]), 9).unwrap(), all[2..]);
}

fn an_erased_thread_is_gone_and_can_be_born_again(store: &dyn LogStore) {
    let (key, other) = (thread(1, 1), thread(1, 2));
    let mut step = append(key, 0, 9);
    step.settled = vec![settled(2)];
    step.row.head.owes_since = Some(UnixMs(3));
    step.row.head.wake_at = Some(UnixMs(4));
    put(store, step).unwrap();
    put(store, append(other, 0, 2)).unwrap();
    let erase = |expected| commit(store, &[Write::Erase { key, fence: 1, expected }]).remove(0);
    assert_eq!(erase(8), Err(WriteRefused::Conflict { expected: 8, found: 9 }));
    assert_eq!(erase(9), Ok(()));
    {
        let view = store.view().unwrap();
        assert_eq!(view.row(key).unwrap(), None);
        assert_eq!(view.events(key, 0, 9, 999).unwrap(), []);
        assert_eq!(view.turns(key, 0, 9).unwrap(), []);
        assert_eq!(view.turn(key, turn_id(2)).unwrap(), None);
        assert_eq!(view.owing(None, 9).unwrap(), []);
        assert_eq!(view.next_wake().unwrap(), None);
        assert_eq!(view.list(key.tenant, None, 9).unwrap().len(), 1);
        assert_eq!(view.row(other).unwrap().unwrap().head.last_seq, 2);
    }
    assert_eq!(erase(0), Ok(()));
    put(store, append(key, 0, 1)).unwrap();
    assert_eq!(view_events(store, key, 0).len(), 1);
}

fn a_view_does_not_move(store: &dyn LogStore) {
    let key = thread(1, 1);
    put(store, append(key, 0, 1)).unwrap();
    let before = store.view().unwrap();
    put(store, append(key, 1, 1)).unwrap();
    assert_eq!(before.row(key).unwrap().unwrap().head.last_seq, 1);
    assert_eq!(before.events(key, 0, 9, 999).unwrap().len(), 1);
    assert_eq!(store.view().unwrap().row(key).unwrap().unwrap().head.last_seq, 2);
}

fn an_unknown_thread_is_empty(store: &dyn LogStore) {
    let view = store.view().unwrap();
    assert_eq!(view.row(thread(1, 1)).unwrap(), None);
    assert_eq!(view.events(thread(1, 1), 0, 9, 999).unwrap(), []);
    assert_eq!(view.event(thread(1, 1), 1).unwrap(), None);
    assert_eq!(view.turns(thread(1, 1), 0, 9).unwrap(), []);
}

// ---- redb alone -------------------------------------------------------------------------------------

#[test]
fn what_was_stored_is_there_after_opening_again_and_the_epoch_moved_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = raddle_actors::store::redb::RedbConfig::new(dir.path());
    for epoch in 1..4 {
        let store = RedbStore::open(&config).unwrap();
        assert_eq!(store.epoch(), epoch);
        put(&store, append(thread(1, 1), epoch - 1, 1)).unwrap();
        store.rest().unwrap();
        assert_eq!(view_events(&store, thread(1, 1), 0).len() as u64, epoch);
    }
}

#[test]
fn a_second_open_is_refused_with_the_pid_of_the_first() {
    use raddle_actors::store::redb::{OpenError, RedbConfig};
    let dir = tempfile::tempdir().unwrap();
    let config = RedbConfig::new(dir.path());
    let first = RedbStore::open(&config).unwrap();
    let refused = RedbStore::open(&config).err().unwrap();
    assert!(matches!(refused, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{refused}");
    drop(first);
    RedbStore::open(&config).unwrap();
}

#[test]
fn a_file_that_is_no_database_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("raddle.redb");
    let rubbish = b"this is a letter, not a database; ".repeat(1000);
    std::fs::write(&file, &rubbish).unwrap();
    let config = raddle_actors::store::redb::RedbConfig::new(dir.path());
    let refused = RedbStore::open(&config).err().unwrap().to_string();
    assert!(refused.contains("raddle.redb"), "{refused}");
    assert_eq!(std::fs::read(&file).unwrap(), rubbish);
}

#[test]
fn a_step_costs_one_sync_and_a_batch_costs_no_more() {
    let medium = MemoryMedium::default();
    let store = redb(&medium);
    put(&store, append(thread(1, 1), 0, 1)).unwrap();
    // The first commits after an open may have to make room.
    for expected in 1..5 {
        put(&store, append(thread(1, 1), expected, 1)).unwrap();
    }
    for expected in 5..20 {
        let before = medium.syncs();
        put(&store, append(thread(1, 1), expected, 1)).unwrap();
        assert_eq!(medium.syncs() - before, 1);
    }
    let batch: Vec<_> = (2..40).map(|n| Write::Append(append(thread(1, n), 0, 1))).collect();
    let before = medium.syncs();
    store.commit(&batch).unwrap();
    assert_eq!(medium.syncs() - before, 1);
    // Nothing to do costs nothing.
    let before = medium.syncs();
    assert_eq!(store.sweep_receipts(UnixMs(u64::MAX), 9).unwrap(), 0);
    assert!(put(&store, append(thread(1, 1), 99, 1)).is_err());
    assert_eq!(medium.syncs(), before);
    store.rest().unwrap();
    let rested = medium.syncs();
    assert!(rested > before);
    store.rest().unwrap();
    assert_eq!(medium.syncs(), rested);
}

// ---- one life, many stores --------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Commit(Vec<Step>),
    Sweep { now: u64, limit: usize },
    Rest,
    Reopen,
    Read { n: u8, after: Seq, limit: usize, bytes: usize },
    List { cursor: Option<(u64, u8)>, limit: usize },
    Owing { skip: usize, limit: usize },
    Due { until: u64, limit: usize },
    Receipt { n: u8, now: u64 },
    Figures,
    Parts { n: u8, after: Option<u64>, limit: usize },
}

#[derive(Debug, Clone)]
struct Step {
    n: u8,
    count: u64,
    /// Added to the right `expected`.
    off: u64,
    fence: u64,
    listed_at: u64,
    owes: Option<u64>,
    wake: Option<u64>,
    settle: Vec<Seq>,
    receipt: Option<(u8, u64)>,
    /// Whether one of tasks, which one, and whether it is to be.
    parts: Vec<(bool, u64, bool)>,
    erase: bool,
}

fn steps() -> impl Strategy<Value = Step> {
    let times = (0u64..40, proptest::option::of(0u64..40), proptest::option::of(0u64..40));
    let wrong = prop_oneof![12 => Just(0u64), 1 => 1u64..3];
    let fence = prop_oneof![12 => Just(1u64), 1 => 0u64..3];
    let settle = proptest::collection::vec(1u64..30, 0..2);
    let receipt = proptest::option::weighted(0.3, (0u8..4, 0u64..40));
    let parts = proptest::collection::vec((any::<bool>(), 0u64..5, any::<bool>()), 0..4);
    (0u8..6, 0u64..5, wrong, fence, times, settle, (receipt, parts), proptest::bool::weighted(0.08)).prop_map(
        |(n, count, off, fence, (listed_at, owes, wake), settle, (receipt, parts), erase)| Step {
            n,
            count,
            off,
            fence,
            listed_at,
            owes,
            wake,
            settle,
            receipt,
            parts,
            erase,
        },
    )
}

fn acts() -> impl Strategy<Value = Act> {
    let limit = 0usize..6;
    prop_oneof![
        8 => proptest::collection::vec(steps(), 1..5).prop_map(Act::Commit),
        1 => (0u64..50, limit.clone()).prop_map(|(now, limit)| Act::Sweep { now, limit }),
        1 => prop_oneof![Just(Act::Rest), Just(Act::Reopen)],
        4 => (0u8..6, 0u64..20, 0usize..12, 0usize..500)
            .prop_map(|(n, after, limit, bytes)| Act::Read { n, after, limit, bytes }),
        3 => (proptest::option::of((0u64..40, 0u8..4)), limit.clone())
            .prop_map(|(cursor, limit)| Act::List { cursor, limit }),
        1 => (0usize..4, limit.clone()).prop_map(|(skip, limit)| Act::Owing { skip, limit }),
        1 => (0u64..50, limit.clone()).prop_map(|(until, limit)| Act::Due { until, limit }),
        2 => (0u8..6, proptest::option::of(0u64..6), limit)
            .prop_map(|(n, after, limit)| Act::Parts { n, after, limit }),
        1 => (0u8..4, 0u64..50).prop_map(|(n, now)| Act::Receipt { n, now }),
        2 => Just(Act::Figures),
    ]
}

/// Which log: two tenants with equal ids.
fn named(n: u8) -> raddle_domain::id::ThreadKey {
    thread(n % 2, n / 2)
}

/// The last of each tenant is a run's.
fn kind(n: u8) -> LogKind {
    if n < 4 { LogKind::Thread } else { LogKind::Run }
}

fn writes(store: &dyn LogStore, steps: &[Step]) -> Vec<Write> {
    let mut last =
        [0u8, 1, 2, 3, 4, 5].map(|n| store.view().unwrap().row(named(n)).unwrap().map_or(0, |row| row.head.last_seq));
    let write = |step: &Step| {
        let (key, expected) = (named(step.n), last[usize::from(step.n)] + step.off);
        if step.erase {
            last[usize::from(step.n)] = 0;
            return Write::Erase { key, fence: step.fence, expected };
        }
        let mut append = append(key, expected, step.count);
        let head = &mut append.row.head;
        head.fence = step.fence;
        head.listed_at = UnixMs(step.listed_at);
        head.owes_since = step.owes.map(UnixMs);
        head.wake_at = step.wake.map(UnixMs);
        head.kind = kind(step.n);
        head.queued = step.listed_at as u32 % 3;
        append.settled = step.settle.iter().map(|at| settled(*at)).collect();
        append.receipts = step.receipt.iter().map(|(n, at)| receipt(*n, *at)).collect();
        let change = |(task, number, is): &(bool, u64, bool)| {
            let kind = if *task { Task } else { Entry };
            if *is { part(kind, *number, &expected.to_string()) } else { no_part(kind, *number) }
        };
        append.parts = step.parts.iter().map(change).collect();
        last[usize::from(step.n)] += step.count;
        Write::Append(append)
    };
    steps.iter().map(write).collect()
}

/// Everything an act shows, as text.
fn shown(store: &dyn LogStore, act: &Act) -> String {
    let view = || store.view().unwrap();
    match act {
        Act::Commit(steps) => format!("{:?}", store.commit(&writes(store, steps))),
        Act::Sweep { now, limit } => format!("{:?}", store.sweep_receipts(UnixMs(*now), *limit)),
        Act::Rest => format!("{:?}", store.rest()),
        Act::Reopen => format!("{:?}", store.reopen()),
        Act::Read { n, after, limit, bytes } => {
            let (view, key) = (view(), named(*n));
            let events = view.events(key, *after, *limit, *bytes);
            let (event, turns) = (view.event(key, *after), view.turns(key, *after, *limit));
            format!("{events:?} {event:?} {turns:?} {:?} {:?}", view.turn(key, turn_id(*after)), view.row(key))
        }
        Act::List { cursor, limit } => {
            let cursor = cursor.map(|(at, n)| Place { at: UnixMs(at), thread: named(n).thread });
            format!("{:?} {:?}", view().list(tenant(0), cursor, *limit), view().list(tenant(1), cursor, *limit))
        }
        Act::Owing { skip, limit } => {
            let cursor = view().owing(None, 99).unwrap().get(*skip).copied();
            format!("{:?}", view().owing(cursor, *limit))
        }
        Act::Due { until, limit } => {
            format!("{:?} {:?}", view().due(UnixMs(*until), *limit), view().next_wake())
        }
        Act::Figures => format!("{:?}", [0, 1].map(|n| store.figures(tenant(n)))),
        Act::Receipt { n, now } => format!("{:?}", view().receipt(tenant(0), &[*n; 32], UnixMs(*now))),
        Act::Parts { n, after, limit } => {
            let (view, key, after) = (view(), named(*n), after.map(PartName::number));
            let of = |kind| (after.map(|name| view.part(key, kind, name)), view.parts(key, kind, after, *limit));
            format!("{:?} {:?}", of(Task), of(Entry))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_store_answers_a_random_life_alike(acts in proptest::collection::vec(acts(), 1..40)) {
        let memory = MemoryStore::default();
        let medium = MemoryMedium::default();
        let stored = RedbStore::open_medium(Arc::new(medium), 1 << 20, 0).unwrap();
        for act in &acts {
            prop_assert_eq!(shown(&memory, act), shown(&stored, act), "{:?}", act);
        }
    }
}
