//! Compaction: what takes the place of what, and what a failure leaves.

use super::{
    EffectClass::{Once, Read},
    *,
};

/// A thread whose first turn said `p` and was answered.
fn spoken() -> Bench {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.finish();
    bench
}

/// A thread that compacts by itself from six tokens on; a call of [`answer`] has five.
fn compacting() -> Bench {
    let mut bench = Bench::with(Limits { compact_at_tokens: 5, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.finish();
    bench
}

impl Bench {
    /// The model gives a summary.
    fn summarize(&mut self, summary: &str) -> Step {
        assert_eq!(self.state.open().unwrap().purpose(), Purpose::Compaction);
        self.report(&[(TextKind::Reasoning, "unheard"), (TextKind::Answer, summary)], Some(Ok(answer(&["ls"]))))
    }
}

#[test]
fn a_compaction_is_a_turn_of_its_own_whose_summary_stands_for_what_came_before() {
    let mut bench = spoken();
    let step = bench.compact(Delivery::Reject).unwrap();
    assert!(matches!(step.reply, Reply::Started(turn) if turn.kind == TurnKind::Compaction));
    bench.summarize("they said p");
    let turn = bench.ended();
    assert_eq!((turn.status, turn.usage.model_calls), (TurnStatus::Completed, 1));
    let names = bench.names();
    let begun = names.iter().position(|name| *name == "compaction.started").unwrap();
    let story = [
        "compaction.started",
        "thread.status",
        "item.started",
        "item.delta",
        "item.completed",
        "compaction.completed",
        "usage.recorded",
        "turn.completed",
        "thread.status",
    ];
    assert_eq!(names[begun..], story);
    bench.start("q").unwrap();
    assert_eq!(bench.said(), ["[S] they said p", "q"]);
    assert_eq!(bench.history().len(), 2, "the answer is gone with the prompt");
}

#[test]
fn a_compaction_within_a_turn_keeps_what_users_said_in_it_word_for_word() {
    let mut bench = compacting();
    bench.start("q").unwrap();
    assert_eq!(bench.state.open().unwrap().purpose(), Purpose::Compaction);
    bench.summarize("they said p");
    assert_eq!(bench.state.open().unwrap().purpose(), Purpose::Answer);
    assert_eq!(bench.history().len(), 2);
    assert_eq!(bench.said(), ["[S] they said p", "q"]);
    bench.call(vec![free("t", Read)]);
    bench.steer("and r", Undelivered::Report).unwrap();
    bench.begin();
    bench.done("t");
    bench.summarize("they said p and ran t");
    assert_eq!(bench.history().len(), 3);
    assert_eq!(bench.said(), ["[S] they said p and ran t", "q", "and r"]);
    bench.finish();
    assert_eq!(bench.ended().usage.model_calls, 4);
    assert_eq!(bench.state.context_seq(), bench.settled[1].started_seq);
}

#[test]
fn a_steer_that_comes_during_a_compaction_is_seen_by_the_very_next_call() {
    for summary in [Ok(answer(&[])), Err(failure(ModelErrorKind::Rejected))] {
        let mut bench = compacting();
        bench.start("q").unwrap();
        bench.steer("and r", Undelivered::Report).unwrap();
        bench.report(&[(TextKind::Answer, "S")], Some(summary));
        assert_eq!(bench.said().last().unwrap(), "and r");
        bench.finish();
        assert_eq!((bench.ended().status, bench.ended().steer_count), (TurnStatus::Completed, 1));
    }
}

#[test]
fn a_steer_of_a_turn_that_only_compacts_is_reported_or_queued() {
    let mut bench = spoken();
    bench.compact(Delivery::Reject).unwrap();
    bench.steer("lost", Undelivered::Report).unwrap();
    bench.steer("kept", Undelivered::Queue).unwrap();
    bench.summarize("S");
    assert_eq!(bench.settled[1].turn.not_delivered.len(), 2);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "kept");
    assert_eq!(bench.said(), ["[S] S", "kept"]);
}

#[test]
fn a_compaction_that_fails_changes_nothing_that_a_model_sees() {
    let ends: [(&str, Result<Answered, ModelError>); 3] =
        [("half", Err(failure(ModelErrorKind::Rejected))), ("", Ok(answer(&[]))), (" \n", Ok(answer(&[])))];
    for (text, end) in ends {
        let mut bench = spoken();
        let before = bench.history();
        bench.compact(Delivery::Reject).unwrap();
        bench.report(&[(TextKind::Answer, text)], Some(end));
        assert_eq!((bench.ended().status, bench.count("compaction.failed")), (TurnStatus::Failed, 1));
        assert_eq!(bench.history(), before);
        assert_eq!(bench.state.context_seq(), 0);
        bench.compact(Delivery::Reject).unwrap();
    }
}

#[test]
fn an_automatic_compaction_that_fails_lets_the_turn_go_on_without() {
    let mut bench = compacting();
    bench.start("q").unwrap();
    bench.report(&[(TextKind::Answer, "half")], Some(Err(failure(ModelErrorKind::Malformed))));
    assert_eq!(bench.state.open().unwrap().purpose(), Purpose::Answer);
    assert_eq!(bench.said(), ["p", "q"]);
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
    assert_eq!(bench.state.context_seq(), 0);
}

#[test]
fn a_compaction_whose_call_is_cut_off_is_tried_again() {
    let mut bench = spoken();
    bench.compact(Delivery::Reject).unwrap();
    bench.report(&[(TextKind::Answer, "ha")], Some(Err(failure(ModelErrorKind::CutOff))));
    bench.tick(bench.state.owed().wake_at.unwrap());
    bench.report(&[(TextKind::Answer, "ha")], None);
    bench.recover();
    bench.summarize("whole");
    assert_eq!((bench.count("compaction.started"), bench.count("compaction.completed")), (1, 1));
    assert_eq!(bench.said(), ["[S] whole"]);
}

#[test]
fn a_compaction_is_ended_with_its_turn() {
    let mut bench = spoken();
    bench.compact(Delivery::Reject).unwrap();
    bench.report(&[(TextKind::Answer, "half")], None);
    bench.interrupt();
    assert_eq!((bench.count("compaction.failed"), bench.ended().status), (1, TurnStatus::Interrupted));
    assert_eq!(bench.said(), ["p"]);
}

#[test]
fn an_edit_takes_the_compaction_behind_the_turn_back_as_well() {
    let mut bench = spoken();
    bench.start("q").unwrap();
    bench.finish();
    bench.compact(Delivery::Reject).unwrap();
    bench.summarize("they said p and q");
    bench.edit("r").unwrap();
    assert_eq!(bench.said(), ["p", "r"]);
    assert_eq!(bench.count("turn.rolled_back"), 2);
    assert_eq!(bench.state.context_seq(), 0);
}

#[test]
fn an_edit_restores_the_context_that_the_edited_turn_began_with() {
    let mut bench = compacting();
    bench.start("q").unwrap();
    bench.summarize("they said p");
    bench.finish();
    let compacted = bench.state.context_seq();
    bench.start("r").unwrap();
    bench.summarize("they said p and q");
    bench.finish();
    assert_ne!(bench.state.context_seq(), compacted);
    bench.edit("s").unwrap();
    assert_eq!(bench.state.context_seq(), compacted);
    assert_eq!(bench.said(), ["[S] they said p", "q", "s"]);
    bench.finish();
    bench.limits.compact_at_tokens = 0;
    bench.edit("t").unwrap();
    assert_eq!(bench.said(), ["[S] they said p", "q", "t"]);
}

#[test]
fn there_is_something_to_compact_once_a_prompt_was_answered_and_until_it_is_compacted() {
    let mut bench = Bench::new();
    assert_eq!(bench.compact(Delivery::Reject).unwrap_err(), Refused::NothingToCompact);
    let mut bench = spoken();
    bench.compact(Delivery::Queue).unwrap();
    let turn = bench.turn();
    assert_eq!(bench.compact(Delivery::Reject).unwrap_err(), Refused::TurnOpen { turn });
    bench.summarize("S");
    assert_eq!(bench.compact(Delivery::Reject).unwrap_err(), Refused::NothingToCompact);
    for delivery in [Delivery::Steer, Delivery::Interrupt, Delivery::Rollback] {
        assert!(matches!(bench.compact(delivery), Err(Refused::Invalid { field: "delivery", .. })));
    }
}

#[test]
fn a_queued_compaction_that_has_nothing_to_do_ends_without_a_model_call() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.compact(Delivery::Queue).unwrap();
    bench.compact(Delivery::Queue).unwrap();
    bench.queue("q").unwrap();
    bench.finish();
    bench.summarize("they said p");
    let failed = &bench.settled[2].turn;
    assert_eq!(
        (failed.status, failed.error.as_ref().unwrap().code.as_str()),
        (TurnStatus::Failed, "nothing-to-compact")
    );
    assert_eq!(failed.usage.model_calls, 0);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
    assert_eq!((bench.count("compaction.started"), bench.count("compaction.failed")), (2, 1));
    // So no summary outlives what it summarises.
    bench.deliver(Delivery::Rollback, "r").unwrap();
    assert_eq!(bench.said(), ["[S] they said p", "r"]);
}

#[test]
fn a_compaction_leaves_a_turn_that_waits_for_a_person_alone() {
    let mut bench = compacting();
    bench.limits.compact_at_tokens = 0;
    bench.start("q").unwrap();
    bench.limits.compact_at_tokens = 5;
    bench.call(vec![gated("t", Once)]);
    let turn = bench.turn();
    assert_eq!(bench.compact(Delivery::Reject).unwrap_err(), Refused::TurnOpen { turn });
    assert_eq!(bench.state.open().unwrap().purpose(), Purpose::Answer);
    bench.decide("t", Decision::Denied).unwrap();
    assert_eq!(bench.state.open().unwrap().purpose(), Purpose::Compaction);
}

#[test]
fn a_rollback_of_a_turn_that_only_compacts_just_ends_it() {
    let mut bench = spoken();
    bench.compact(Delivery::Reject).unwrap();
    bench.deliver(Delivery::Rollback, "q").unwrap();
    assert_eq!((bench.count("turn.rolled_back"), bench.settled[1].turn.status), (0, TurnStatus::Interrupted));
    assert_eq!(bench.said(), ["p", "q"]);
}

#[test]
fn a_rollback_of_a_turn_that_compacted_brings_the_conversation_back() {
    let mut bench = compacting();
    bench.start("q").unwrap();
    bench.summarize("they said p");
    bench.limits.compact_at_tokens = 0;
    bench.deliver(Delivery::Rollback, "r").unwrap();
    assert_eq!(bench.said(), ["p", "r"]);
    assert_eq!(bench.reloaded(), bench.state);
}
