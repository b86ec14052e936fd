//! What a model is shown: the same, whoever rebuilds it, whatever the conversation went through.

mod testbed;

use std::sync::atomic::Ordering::SeqCst;

use proptest::{collection::vec, prelude::*, sample::select};
use raddle_actors::{Call, Error, ForkAt, Runtime, Started, store::backend::MemoryMedium};
use raddle_domain::{
    command::{Compact, Refused, Steer},
    event::Event,
    history::Message,
    id::ThreadKey,
    record::{Decision, Delivery, ItemKind, TurnKind, TurnStatus, Undelivered},
    thread::ThreadState,
};
use testbed::*;

/// What the model is shown of the thread now, without the question that finds it out.
async fn shown(bed: &Bed, runtime: &Runtime, key: ThreadKey) -> Vec<Message> {
    // On a fork, so that asking leaves no trace; nothing of it is in memory.
    let fork = runtime.fork(key, ForkAt::Settled, None, Call::default()).await.unwrap().value;
    say(runtime, testbed::key(&fork), "what was said?").await;
    let mut seen = bed.model.last_seen();
    assert_eq!(seen.pop(), Some(said("what was said?")));
    seen
}

/// What the thread's own model is shown.
async fn shown_here(bed: &Bed, runtime: &Runtime, key: ThreadKey) -> Vec<Message> {
    say(runtime, key, "and now?").await;
    let mut seen = bed.model.last_seen();
    assert_eq!(seen.pop(), Some(said("and now?")));
    let start = prompt("x", Delivery::Reject);
    runtime.edit_last(key, start, Call::default()).await.unwrap();
    rests(runtime, key).await;
    seen
}

fn said(content: &str) -> Message {
    Message::User { content: content.into() }
}

fn told(content: &str) -> Message {
    Message::Assistant { content: content.into(), reasoning: String::new(), tool_calls: Vec::new() }
}

/// What a fork at `at` shows a model, and what it does once its last turn is edited.
async fn shown_by_fork(bed: &Bed, runtime: &Runtime, key: ThreadKey, at: ForkAt) -> [Vec<Message>; 2] {
    let fork = testbed::key(&runtime.fork(key, at, None, Call::default()).await.unwrap().value);
    assert_sound(&log(runtime, fork).await, true);
    let whole = shown(bed, runtime, fork).await;
    edited(runtime, fork, "otherwise").await;
    [whole, bed.model.last_seen()]
}

#[tokio::test]
async fn the_history_is_the_same_when_it_is_read_again_after_whatever_happened() {
    // Each thing after each other.
    for second in LIFE {
        let bed = Bed { medium: Some(MemoryMedium::default()), ..Bed::new() };
        let mut runtime = bed.start().await;
        let mut before = Vec::new();
        for first in LIFE {
            let key = create(&runtime).await;
            say(&runtime, key, "one").await;
            live(&bed, &runtime, key, first).await;
            runtime.save_checkpoint(key, "between".into(), Call::default()).await.unwrap();
            let between = shown_by_fork(&bed, &runtime, key, ForkAt::Settled).await;
            live(&bed, &runtime, key, second).await;
            let later = shown_by_fork(&bed, &runtime, key, ForkAt::Checkpoint("between".into())).await;
            assert_eq!(later, between, "{first}, {second}: a fork shows what held where it was made");
            assert_sound(&log(&runtime, key).await, true);
            let fork = shown(&bed, &runtime, key).await;
            let here = shown_here(&bed, &runtime, key).await;
            assert_eq!(fork, here, "{first}, {second}: as a fork sees it");
            before.push((first, key, here));
        }
        runtime.shutdown(LONG).await;
        drop(runtime);
        runtime = bed.start().await;
        for (first, key, before) in before {
            let after = shown_here(&bed, &runtime, key).await;
            // What was asked to find out stands there now.
            assert_eq!(after, [before, vec![said("x"), told("echo: x")]].concat(), "{first}, {second}");
        }
        runtime.shutdown(LONG).await;
    }
}

/// What models are shown of a thread that goes through all of it, call by call. One that does not stay is unloaded before
/// each thing, so what comes next is read.
async fn shown_in(life: &[&str], stays: bool) -> Vec<Vec<Message>> {
    let loaded_threads = if stays { 1_000 } else { 1 };
    let bed = Bed { loaded_threads, medium: Some(MemoryMedium::default()), ..Bed::new() };
    let runtime = bed.start().await;
    let mut key = create(&runtime).await;
    say(&runtime, key, "one").await;
    for what in life {
        if *what == "go on in a fork" {
            let fork = runtime.fork(key, ForkAt::Settled, None, Call::default()).await.unwrap().value;
            key = testbed::key(&fork);
            continue;
        }
        if !stays {
            unload(&runtime).await;
        }
        live(&bed, &runtime, key, what).await;
    }
    if !stays {
        unload(&runtime).await;
    }
    say(&runtime, key, "and now?").await;
    runtime.shutdown(LONG).await;
    bed.model.seen.lock().unwrap().clone()
}

#[tokio::test]
async fn an_unloaded_thread_goes_on_as_if_it_had_stayed() {
    assert_eq!(shown_in(&LIFE, false).await, shown_in(&LIFE, true).await);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_of_a_conversation_is_what_is_read_of_it(
        life in vec(select([&LIFE[..], &["queue", "system prompt", "go on in a fork"]].concat()), 1..10)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, kept) = runtime.block_on(async { (shown_in(&life, false).await, shown_in(&life, true).await) });
        prop_assert_eq!(read, kept);
    }
}

#[tokio::test]
async fn what_was_taken_back_is_shown_to_no_model_and_what_was_said_is() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    say(&runtime, key, "one").await;
    live(&bed, &runtime, key, "edit over a compaction").await;
    let one = vec![said("one"), told("echo: one")];
    assert_eq!(shown(&bed, &runtime, key).await, [one.clone(), vec![said("right"), told("echo: right")]].concat());
    // A compaction before the turn that is taken back stays.
    compacted(&runtime, key).await;
    say(&runtime, key, "wrong").await;
    edited(&runtime, key, "call once a").await;
    let seen = shown(&bed, &runtime, key).await;
    let Message::User { content } = &seen[0] else { panic!("{seen:?}") };
    assert!(content.ends_with("a summary of 4 messages"), "{content}");
    assert_eq!(seen[1], said("call once a"));
    assert!(!format!("{seen:?}").contains("wrong"));
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_compaction_that_finds_nothing_to_compact_is_not_made_and_all_are_taken_back_together() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    say(&runtime, key, "one").await;
    start(&runtime, key, "hold wrong").await;
    happens(&runtime, key, "item.delta", 2).await;
    for _ in 0..2 {
        let compact = Compact { delivery: Delivery::Queue, ..Compact::default() };
        let queued = runtime.compact(key, compact, Call::default()).await.unwrap();
        assert!(matches!(queued.value, Started::Queued { .. }));
    }
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    edited(&runtime, key, "right").await;
    let expected = [said("one"), told("echo: one"), said("right"), told("echo: right")];
    assert_eq!(shown(&bed, &runtime, key).await, expected);
    runtime.shutdown(LONG).await;
}

// ---- forks ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_fork_replays_the_history_under_its_own_name_and_has_nothing_open() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    say(&runtime, key, "one").await;
    let turn = start(&runtime, key, "call once done; call gated_once a").await;
    waits(&runtime, key).await;
    runtime.start_turn(key, prompt("later", Delivery::Queue), Call::default()).await.unwrap();
    let fork = runtime.fork(key, ForkAt::Settled, Some("mine".into()), keyed(1, 1)).await.unwrap();
    let again = runtime.fork(key, ForkAt::Settled, Some("mine".into()), keyed(1, 1)).await.unwrap();
    assert_eq!((&again.value, again.replayed), (&fork.value, true));
    let thread = fork.value;
    assert_eq!((thread.title.as_deref(), thread.active_turn, thread.queued), (Some("mine"), None, 0));
    assert_eq!(thread.pending_approvals, 0);
    assert_eq!(thread.forked_from.unwrap().thread_id, key.thread);
    let own = testbed::key(&thread);
    let snapshot = runtime.snapshot(own).await.unwrap();
    assert_eq!((snapshot.turns.len(), snapshot.approvals.len(), snapshot.inbox.len()), (1, 0, 0));
    assert!(snapshot.turns.iter().all(|turn| turn.thread_id == own.thread));
    let log_of_fork = log(&runtime, own).await;
    assert_sound(&log_of_fork, true);
    assert!(log_of_fork.iter().all(|record| record.thread == own.thread));
    assert_eq!(runtime.thread(key).await.unwrap().active_turn, Some(turn.id), "the parent goes on as it was");
    let open =
        raddle_actors::RecordQuery { thread: Some(own.thread), limit: 9, ..raddle_actors::RecordQuery::default() };
    assert!(runtime.approvals(OWNER, open).await.unwrap().data.is_empty());
    // Each goes its own way.
    say(&runtime, own, "two").await;
    assert_eq!(bed.model.last_seen(), [said("one"), told("echo: one"), said("two")]);
    let approval = pending(&runtime, key).await.remove(0);
    runtime.decide(OWNER, approval.id, Decision::Approved, None, Call::default()).await.unwrap();
    rests(&runtime, key).await;
    assert_eq!(answers(&runtime, own).await, ["echo: one", "echo: two"]);
    assert_eq!(answers(&runtime, key).await.last().unwrap(), "echo: later");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_fork_outlives_its_parent_also_unloaded_and_after_a_restart() {
    let bed = Bed { loaded_threads: 1, ..Bed::new() };
    let mut runtime = bed.start().await;
    let parent = create(&runtime).await;
    say(&runtime, parent, "one").await;
    live(&bed, &runtime, parent, "tools").await;
    let fork = testbed::key(&runtime.fork(parent, ForkAt::Settled, None, Call::default()).await.unwrap().value);
    let before = shown(&bed, &runtime, parent).await;
    let child = testbed::key(&runtime.fork(fork, ForkAt::Settled, None, Call::default()).await.unwrap().value);
    runtime.delete_thread(parent, Call::default()).await.unwrap();
    assert!(matches!(runtime.thread(parent).await, Err(Error::NotFound("thread"))));
    assert!(matches!(runtime.fork(parent, ForkAt::Settled, None, Call::default()).await, Err(Error::NotFound(_))));
    unload(&runtime).await;
    assert_eq!(shown(&bed, &runtime, fork).await, before);
    runtime.delete_thread(fork, Call::default()).await.unwrap();
    runtime.shutdown(LONG).await;
    drop(runtime);
    runtime = bed.start().await;
    assert_eq!(shown(&bed, &runtime, child).await, before);
    assert_sound(&log(&runtime, child).await, true);
    edited(&runtime, child, "other").await;
    assert_eq!(bed.model.last_seen(), [said("one"), told("echo: one"), said("other")]);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_fork_begins_before_a_turn_after_an_item_or_at_a_checkpoint() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    say(&runtime, key, "one").await;
    runtime.save_checkpoint(key, "first".into(), Call::default()).await.unwrap();
    let turn = say(&runtime, key, "call once a; call read b").await;
    // What is open is not part of a checkpoint.
    start(&runtime, key, "hold").await;
    let checkpoint = runtime.save_checkpoint(key, "second".into(), keyed(2, 2)).await.unwrap();
    let again = runtime.save_checkpoint(key, "second".into(), keyed(2, 2)).await.unwrap();
    assert_eq!((&again.value, again.replayed), (&checkpoint.value, true));
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    let names: Vec<_> = runtime.checkpoints(key).await.unwrap().into_iter().map(|known| known.name).collect();
    assert_eq!(names, ["first", "second"]);

    let one = vec![said("one"), told("echo: one")];
    let of = async |at: ForkAt| {
        let fork = runtime.fork(key, at, None, Call::default()).await.unwrap().value;
        let fork = testbed::key(&fork);
        assert_sound(&log(&runtime, fork).await, true);
        (fork, shown(&bed, &runtime, fork).await)
    };
    assert_eq!(of(ForkAt::BeforeTurn(turn.id)).await.1, one);
    assert_eq!(of(ForkAt::Checkpoint("first".into())).await.1, one);
    let (fork, whole) = of(ForkAt::Checkpoint("latest".into())).await;
    assert_eq!(whole.last(), Some(&told("echo: did a, did b")));
    assert!(runtime.checkpoints(fork).await.unwrap().is_empty());
    let items = runtime.snapshot(key).await.unwrap().items;
    let first = items.iter().find(|item| item.kind == ItemKind::ToolCall).unwrap();
    let (fork, part) = of(ForkAt::Item(first.id)).await;
    assert_eq!(part[..2], one);
    let Message::Assistant { tool_calls, .. } = &part[3] else { panic!("{part:?}") };
    assert_eq!((tool_calls.len(), part.len()), (1, 5));
    let turns = runtime.turns(fork, None, 9).await.unwrap().data;
    assert_eq!((turns[1].status, turns[1].usage.model_calls), (TurnStatus::Interrupted, 0));
    for at in [ForkAt::Item(raddle_domain::id::ItemId::from_bytes([9; 16])), ForkAt::Checkpoint("third".into())] {
        let none = runtime.fork(key, at, None, Call::default()).await;
        assert!(matches!(none, Err(Error::NotFound(_))), "{none:?}");
    }
    runtime.delete_checkpoint(key, "first".into(), Call::default()).await.unwrap();
    assert!(matches!(
        runtime.delete_checkpoint(key, "first".into(), Call::default()).await,
        Err(Error::NotFound("checkpoint"))
    ));
    // A fork of a moment before a compaction, and before a turn was taken back, shows what held then.
    runtime.save_checkpoint(key, "whole".into(), Call::default()).await.unwrap();
    let before = shown(&bed, &runtime, key).await;
    compacted(&runtime, key).await;
    edited(&runtime, key, "other").await;
    assert_eq!(of(ForkAt::Checkpoint("whole".into())).await.1, before);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn what_a_fork_was_made_from_can_be_edited_in_it_alone() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    say(&runtime, key, "one").await;
    say(&runtime, key, "two").await;
    let fork = testbed::key(&runtime.fork(key, ForkAt::Settled, None, Call::default()).await.unwrap().value);
    edited(&runtime, fork, "second").await;
    let statuses = async |key| {
        let turns = runtime.turns(key, None, 9).await.unwrap().data;
        turns.iter().map(|turn| turn.status).collect::<Vec<_>>()
    };
    use TurnStatus::{Completed, RolledBack};
    assert_eq!(statuses(fork).await, [Completed, RolledBack, Completed]);
    assert_eq!(statuses(key).await, [Completed, Completed]);
    assert_eq!(shown(&bed, &runtime, key).await.len(), 4);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_fork_from_where_a_turn_was_taken_out_has_a_last_turn_by_its_own_log() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    say(&runtime, key, "one").await;
    say(&runtime, key, "two").await;
    edited(&runtime, key, "three").await;
    // What takes the place of a turn that took the place of one.
    edited(&runtime, key, "four").await;
    let instead = runtime.turns(key, None, 9).await.unwrap().data.pop().unwrap();
    let fork = runtime.fork(key, ForkAt::BeforeTurn(instead.id), None, Call::default()).await.unwrap().value;
    let fork = testbed::key(&fork);
    assert_eq!(shown(&bed, &runtime, fork).await, [said("one"), told("echo: one")]);
    edited(&runtime, fork, "first").await;
    assert_eq!(shown(&bed, &runtime, fork).await, [said("first"), told("echo: first")]);
    let log = log(&runtime, fork).await;
    let mut state = ThreadState::begin(&log[0]).unwrap();
    for record in &log[1..] {
        state.apply(record).unwrap();
    }
    assert_eq!(state.view(), &runtime.thread(fork).await.unwrap());
    assert_eq!(state.last().unwrap().turn.id, runtime.turns(fork, None, 9).await.unwrap().data.pop().unwrap().id);
    runtime.shutdown(LONG).await;
}

// ---- compaction ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_long_conversation_is_compacted_by_itself_before_the_next_call() {
    let mut bed = Bed::new();
    bed.limits.compact_at_tokens = 1_000;
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    bed.model.input_tokens.store(995, SeqCst);
    say(&runtime, key, "x").await;
    // 995 and the answer's seven are enough: the next prompt finds the conversation compacted.
    bed.model.input_tokens.store(10, SeqCst);
    let turn = say(&runtime, key, "call once a; call once b").await;
    assert_eq!((turn.status, turn.usage.model_calls), (TurnStatus::Completed, 3));
    let seen = bed.model.last_seen();
    let Message::User { content } = &seen[0] else { panic!("{seen:?}") };
    assert!(content.ends_with("a summary of 3 messages"), "{content}");
    assert_eq!((&seen[1], seen.len()), (&said("call once a; call once b"), 5));
    // In the middle of a turn too: what the user said in it is kept word for word, what was done is summed up.
    bed.model.input_tokens.store(995, SeqCst);
    let turn = start(&runtime, key, "call once c before").await;
    bed.tools.begun(3).await;
    let steer = Steer { turn: turn.id, prompt: "go on".into(), undelivered: Undelivered::Report };
    runtime.steer(key, steer, Call::default()).await.unwrap();
    bed.model.input_tokens.store(10, SeqCst);
    bed.tools.before.add_permits(1);
    rests(&runtime, key).await;
    let seen = bed.model.last_seen();
    let Message::User { content } = &seen[0] else { panic!("{seen:?}") };
    assert!(content.ends_with("a summary of 10 messages"), "{content}");
    assert_eq!(seen[1..], [said("call once c before"), said("go on")]);
    let turn = runtime.turn(key, turn.id).await.unwrap();
    assert_eq!((turn.status, turn.usage.model_calls), (TurnStatus::Completed, 3));
    assert_sound(&log(&runtime, key).await, true);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_compaction_that_is_cut_off_by_a_restart_is_made_again() {
    for automatic in [false, true] {
        let mut bed = Bed::new();
        bed.limits.compact_at_tokens = if automatic { 1_000 } else { 0 };
        let first = bed.start().await;
        let key = create(&first).await;
        bed.model.input_tokens.store(2_000, SeqCst);
        say(&first, key, "one").await;
        bed.model.input_tokens.store(10, SeqCst);
        bed.model.summaries.forget_permits(usize::MAX);
        if automatic {
            start(&first, key, "two").await;
        } else {
            first.compact(key, Compact::default(), Call::default()).await.unwrap();
        }
        first.start_turn(key, prompt("queued", Delivery::Queue), Call::default()).await.unwrap();
        happens(&first, key, "item.delta", 2).await;
        first.shutdown(std::time::Duration::ZERO).await;
        drop(first);
        bed.model.summaries.add_permits(9);
        let second = bed.start().await;
        rests(&second, key).await;
        let log = log(&second, key).await;
        assert_sound(&log, true);
        let count = |name: &str| log.iter().filter(|record| record.event.name() == name).count();
        assert_eq!((count("compaction.started"), count("compaction.completed"), count("compaction.failed")), (1, 1, 0));
        let statuses: Vec<_> = log
            .iter()
            .filter_map(|record| match &record.event {
                Event::TurnCompleted(turn) => Some((turn.kind, turn.status)),
                _ => None,
            })
            .collect();
        use TurnKind::{Compaction, Prompt};
        let second_turn = if automatic { Prompt } else { Compaction };
        let expected = [Prompt, second_turn, Prompt].map(|kind| (kind, TurnStatus::Completed));
        assert_eq!(statuses, expected);
        let seen = bed.model.last_seen();
        let Message::User { content } = &seen[0] else { panic!("{seen:?}") };
        // What was cut off is in no summary.
        assert!(content.ends_with(if automatic { "a summary of 3 messages" } else { "a summary of 2 messages" }));
        assert!(!content.contains("a a summary"), "{content}");
        assert_eq!(answers(&second, key).await.last().unwrap(), "echo: queued");
        second.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn prompts_that_waited_for_a_compaction_see_its_summary() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let nothing = runtime.compact(key, Compact::default(), Call::default()).await;
    assert!(matches!(nothing, Err(Error::Refused(Refused::NothingToCompact))), "{nothing:?}");
    say(&runtime, key, "one").await;
    bed.model.summaries.forget_permits(usize::MAX);
    let reason = Some("keep the names".to_owned());
    let compact = Compact { reason, ..Compact::default() };
    let done = runtime.compact(key, compact.clone(), keyed(3, 3)).await.unwrap();
    let Started::Turn(turn) = &done.value else { panic!("{done:?}") };
    for text in ["q1", "q2"] {
        runtime.start_turn(key, prompt(text, Delivery::Queue), Call::default()).await.unwrap();
    }
    let busy = runtime.compact(key, compact.clone(), Call::default()).await;
    assert!(matches!(busy, Err(Error::Refused(Refused::TurnOpen { .. }))), "{busy:?}");
    bed.model.summaries.add_permits(1);
    rests(&runtime, key).await;
    let again = runtime.compact(key, compact, keyed(3, 3)).await.unwrap();
    assert_eq!((&again.value, again.replayed), (&done.value, true));
    let asked = bed.model.seen.lock().unwrap()[1].clone();
    let Some(Message::User { content }) = asked.last() else { panic!("{asked:?}") };
    assert!(content.ends_with("keep the names"), "{content}");
    assert_eq!(runtime.turn(key, turn.id).await.unwrap().status, TurnStatus::Completed);
    let seen = bed.model.last_seen();
    let Message::User { content } = &seen[0] else { panic!("{seen:?}") };
    assert!(content.ends_with("a summary of 2 messages"), "{content}");
    assert_eq!(seen[1..], [said("q1"), told("echo: q1"), said("q2")]);
    runtime.shutdown(LONG).await;
}
