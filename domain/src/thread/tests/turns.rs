//! What engines report, how turns end, and how they go on.

use super::*;

#[test]
fn a_turn_tells_its_whole_story_in_order() {
    let mut bench = Bench::new();
    bench.start("hi").unwrap();
    bench.report(&[(TextKind::Reasoning, "hm"), (TextKind::Answer, "hel")], None);
    bench.report(&[(TextKind::Answer, "lo")], Some(Ok(answer(&[]))));
    let story = [
        "thread.created",
        "turn.started",
        "item.started",
        "item.completed",
        "thread.status",
        "item.started",
        "item.delta",
        "item.completed",
        "item.started",
        "item.delta",
        "item.delta",
        "item.completed",
        "usage.recorded",
        "turn.completed",
        "thread.status",
    ];
    assert_eq!(bench.names(), story);
    let Event::ItemCompleted(item) = &bench.log[11].event else { panic!("{:?}", bench.log[11]) };
    assert_eq!((item.kind, item.detail.as_str()), (ItemKind::AgentMessage, "hello"));
    assert_eq!(bench.state.view().status, ThreadStatus::Idle);
    assert_eq!(bench.state.owed(), Owed::default());
}

#[test]
fn an_interrupt_ends_everything_of_the_turn_and_the_queue_goes_on() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let turn = bench.turn();
    let engine = bench.state.owed().call.unwrap();
    bench.report(&[(TextKind::Answer, "part")], None);
    bench.queue("q1").unwrap();
    let step = bench.ask(interrupt(turn)).unwrap();
    let Reply::Interrupted(receipt) = step.reply else { panic!() };
    assert_eq!(receipt.turn.status, TurnStatus::Interrupted);
    assert_eq!(bench.log[receipt.ended_seq as usize - 1].event.name(), "turn.completed");
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q1");
    let late = Report {
        turn: engine.0,
        call: engine.1,
        text: vec![(TextKind::Answer, "late".into())],
        acts: Vec::new(),
        metered: None,
        end: None,
    };
    assert!(bench.ask(Command::Report(late)).unwrap().records.is_empty());
}

#[test]
fn an_interrupt_that_names_another_turn_has_no_effect() {
    let mut bench = Bench::new();
    let nowhere = TurnId::new(Uuid::max());
    assert_eq!(bench.ask(interrupt(nowhere)).unwrap_err(), Refused::TurnNotActive { turn: nowhere, active: None });
    bench.start("p").unwrap();
    bench.queue("q1").unwrap();
    let active = Some(bench.turn());
    assert_eq!(bench.ask(interrupt(nowhere)).unwrap_err(), Refused::TurnNotActive { turn: nowhere, active });
    bench.finish();
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q1");
}

#[test]
fn a_transient_failure_waits_and_asks_again_until_the_attempts_are_used_up() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    for pause in [500, 1_000, 2_000] {
        bench.report(&[(TextKind::Answer, "par")], Some(Err(failure(ModelErrorKind::Unavailable))));
        let due = bench.now.after(std::time::Duration::from_millis(pause));
        assert_eq!(bench.state.owed(), Owed { wake_at: Some(due), ..Owed::default() });
        bench.now = UnixMs(due.0 - 1);
        assert!(bench.ask(Command::Tick).unwrap().records.is_empty());
        bench.now = due;
        bench.ask(Command::Tick).unwrap();
        assert_eq!(bench.state.owed().wake_at, None);
    }
    bench.report(&[], Some(Err(failure(ModelErrorKind::Unavailable))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "model-unavailable");
}

#[test]
fn a_provider_that_names_its_pause_is_obeyed_up_to_the_cap() {
    let asked = |seconds| ModelError {
        retry_after: Some(std::time::Duration::from_secs(seconds)),
        ..failure(ModelErrorKind::RateLimited)
    };
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[], Some(Err(asked(7))));
    assert_eq!(bench.state.owed().wake_at, Some(UnixMs(8_000)));
    bench.now = UnixMs(8_000);
    bench.ask(Command::Tick).unwrap();
    bench.report(&[], Some(Err(asked(3_600))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
}

#[test]
fn a_refusal_of_the_model_fails_the_turn_at_once() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::Rejected))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
}

#[test]
fn an_unknown_tool_is_told_to_the_model_which_goes_on() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "looking")], Some(Ok(answer(&["ls", "cat"]))));
    let items: Vec<_> = bench.state.open().unwrap().items().cloned().collect();
    assert_eq!(items[2].detail, "unknown tool: ls");
    assert_eq!(items[3].metadata["call_id"], "c-cat");
    let mut history = crate::history::History::new(None);
    items.iter().for_each(|item| history.push(item));
    assert!(matches!(history.finish().last(), Some(Message::Tool { call_id, .. }) if call_id == "c-cat"));
    bench.finish();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Completed)]);
}

#[test]
fn a_turn_that_only_calls_tools_ends_at_its_limit() {
    let mut bench = Bench::with(Limits { model_calls_per_turn: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.report(&[], Some(Ok(answer(&["ls"]))));
    bench.report(&[], Some(Ok(answer(&["ls"]))));
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "step-limit");
    assert_eq!(turn.usage.input_tokens, 4);
}

#[test]
fn a_turn_ends_at_its_deadline() {
    let mut bench = Bench::with(Limits { turn_ms: 5_000, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "so far")], None);
    bench.now = bench.state.deadline(&bench.limits).unwrap();
    bench.ask(Command::Tick).unwrap();
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "deadline-exceeded");
}

#[test]
fn after_a_crash_the_cut_off_answer_is_asked_for_again() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let lost = bench.state.owed().call.unwrap();
    bench.report(&[(TextKind::Answer, "hel")], None);
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_ne!(bench.state.owed().call.unwrap(), lost);
    let partial = bench.state.open().unwrap().items().last().unwrap();
    assert_eq!((partial.status, partial.detail.as_str()), (TurnStatus::Interrupted, "hel"));
    bench.report(&[(TextKind::Answer, "hello")], Some(Ok(answer(&[]))));
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!((turn.status, turn.resume_count), (TurnStatus::Completed, 1));
}

#[test]
fn after_a_restart_an_interrupting_thread_closes_its_turn_and_runs_its_queue() {
    let mut bench = Bench::with(Limits::default(), OnRestart::Interrupt);
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.report(&[(TextKind::Answer, "hel")], None);
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Interrupted)]);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
}

#[test]
fn a_turn_that_is_lost_again_and_again_without_progress_fails() {
    let mut bench = Bench::with(Limits { resumes_without_progress: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    for _ in 0..2 {
        bench.ask(Command::Recover { restarted: true }).unwrap();
    }
    bench.report(&[], Some(Ok(answer(&["ls"]))));
    for _ in 0..2 {
        bench.ask(Command::Recover { restarted: true }).unwrap();
    }
    assert!(bench.outcomes().is_empty());
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
}

#[test]
fn a_turn_that_waits_for_its_retry_is_not_disturbed_by_a_restart() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::RateLimited))));
    let owed = bench.state.owed();
    assert!(bench.ask(Command::Recover { restarted: true }).unwrap().records.is_empty());
    assert_eq!(bench.state.owed(), owed);
}

#[test]
fn an_answer_beyond_the_item_limit_fails_the_turn_and_keeps_what_fits() {
    let mut bench = Bench::with(Limits { item_bytes: 8, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "12345")], None);
    bench.report(&[(TextKind::Answer, "6789")], None);
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "output-too-large");
}

#[test]
fn whatever_ends_a_tool_call_is_progress() {
    let mut bench = Bench::with(Limits { resumes_without_progress: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.call((0..4).map(|_| free("t", EffectClass::Idempotent)).collect());
    for _ in 0..4 {
        bench.begin();
        bench.recover();
        bench.recover();
        bench.done("t");
    }
    bench.finish();
    assert_eq!((bench.ended().status, bench.ended().resume_count), (TurnStatus::Completed, 8));
}

#[test]
fn a_tool_that_takes_its_process_with_it_again_and_again_ends_the_turn() {
    let mut bench = Bench::with(Limits { resumes_without_progress: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.call(vec![free("t", EffectClass::Idempotent)]);
    bench.begin();
    for _ in 0..3 {
        bench.recover();
    }
    assert_eq!(bench.ended().error.unwrap().code, "resume-limit");
    assert_eq!((bench.effect("t").attempt, bench.effect("t").closed), (3, true));
}

#[test]
fn time_in_which_a_turn_waits_for_a_person_does_not_count() {
    let mut bench = Bench::with(Limits { turn_ms: 10_000, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.pass(4_000);
    bench.call(vec![gated("a", EffectClass::Once), asks("ask")]);
    bench.pass(50_000);
    assert_eq!(bench.state.deadline(&bench.limits), None);
    // A change meanwhile is not the end of the wait.
    bench.queue("q").unwrap();
    bench.pass(50_000);
    bench.decide("a", Decision::Denied).unwrap();
    bench.pass(1_000);
    bench.answer("yes").unwrap();
    assert_eq!(bench.state.deadline(&bench.limits), Some(UnixMs(1_000 + 10_000 + 101_000)));
    bench.pass(5_999);
    assert_eq!((bench.reloaded(), bench.replayed()), (bench.state.clone(), bench.state.clone()));
    assert_eq!(bench.count("turn.completed"), 0);
    bench.pass(1);
    assert_eq!(bench.ended().error.unwrap().code, "deadline-exceeded");
}

#[test]
fn a_process_that_is_lost_leaves_what_waits_for_a_person_waiting() {
    let waiting: [fn(&mut Bench); 2] =
        [|bench| drop(bench.call(vec![gated("t", EffectClass::Once)])), |bench| drop(bench.call(vec![asks("ask")]))];
    for wait in waiting {
        let mut bench = Bench::new();
        bench.start("p").unwrap();
        wait(&mut bench);
        let before = bench.state.clone();
        assert!(bench.recover().records.is_empty());
        assert_eq!((bench.state.owes_since(), &bench.state), (None, &before));
    }
    let mut bench = Bench::with(Limits::default(), OnRestart::Interrupt);
    bench.start("p").unwrap();
    bench.call(vec![gated("t", EffectClass::Once)]);
    assert!(bench.state.owes_since().is_some(), "a restart has to end it");
    assert!(bench.ask(Command::Recover { restarted: false }).unwrap().records.is_empty());
    bench.recover();
    assert_eq!(bench.approval("t").status, ApprovalStatus::Cancelled);
    assert_eq!(bench.ended().status, TurnStatus::Interrupted);
}

#[test]
fn a_call_costs_what_its_model_cost_when_the_turn_began() {
    use crate::price::{Price, Row};
    let row = |from, version: &str, input| Row {
        engine: "*".into(),
        model: "scripted".into(),
        from: UnixMs(from),
        until: None,
        price: Price { version: version.into(), input, cached_input: Some(1), output: 10 },
    };
    let mut bench = Bench::new();
    bench.prices = Prices::new(vec![row(0, "old", 2), row(2_000, "new", 3)]);
    bench.start("p").unwrap();
    bench.pass(1_500);
    let usage = Some(Usage { input_tokens: 5, output_tokens: 7, cached_tokens: Some(4), ..Usage::default() });
    bench.report(&[], Some(Ok(Answered { usage, ..answer(&["ls"]) })));
    bench.report(&[], Some(Ok(Answered { usage: None, ..answer(&[]) })));
    assert_eq!(bench.ended().settings.price.unwrap().version, "old");
    bench.start("q").unwrap();
    bench.finish();
    let costs = bench.log.iter().filter_map(|record| match &record.event {
        Event::UsageRecorded(_, entry) => Some(entry.cost.map(|cost| (cost.pico_usd, cost.without_cache_pico_usd))),
        _ => None,
    });
    // One token at 2 and four cached ones at 1, against five at 2; nothing is known; two at 3. And the output.
    assert_eq!(costs.collect::<Vec<_>>(), [Some((6 + 70, 10 + 70)), None, Some((6 + 30, 6 + 30))]);
}

#[test]
fn limits_of_nothing_are_kept_to() {
    let limits = Limits {
        model_calls_per_turn: 0,
        model_attempts: 0,
        tool_attempts: 0,
        item_bytes: 0,
        turn_ms: 0,
        approval_ms: 0,
        question_ms: 0,
        resumes_without_progress: 0,
        retry_base_ms: 0,
        retry_cap_ms: 0,
        checkpoints: 0,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.finish();
    assert_eq!(bench.ended().error.unwrap().code, "output-too-large");
    bench.start("p").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::Unavailable))));
    assert_eq!(bench.ended().error.unwrap().code, "model-unavailable");
    bench.start("p").unwrap();
    bench.call(vec![gated("t", EffectClass::Once), asks("ask")]);
    assert!(matches!(bench.decide("t", Decision::Approved), Err(Refused::Expired { .. })));
    bench.pass(0);
    assert_eq!(bench.ended().error.unwrap().code, "step-limit");
    bench.start("p").unwrap();
    bench.call(vec![free("t", EffectClass::Idempotent)]);
    bench.begin();
    bench.tool("t", ToolEnd::Unknown("?".into()));
    assert_eq!(bench.effect("t").status, EffectStatus::Uncertain);
    bench.interrupt();
    bench.start("p").unwrap();
    bench.recover();
    assert_eq!(bench.ended().error.unwrap().code, "resume-limit");
    bench.start("p").unwrap();
    bench.pass(0);
    assert_eq!(bench.ended().error.unwrap().code, "deadline-exceeded");
    assert_eq!((bench.replayed(), bench.reloaded()), (bench.state.clone(), bench.state.clone()));
    check_log(&bench.log);
}

#[test]
fn limits_without_an_end_are_as_long_as_time_can_be_written() {
    let limits = Limits {
        turn_ms: u64::MAX,
        approval_ms: u64::MAX,
        question_ms: u64::MAX,
        retry_base_ms: u64::MAX,
        retry_cap_ms: u64::MAX,
        ..Limits::default()
    };
    let mut bench = Bench::with(limits, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.call(vec![gated("t", EffectClass::Once), asks("ask")]);
    assert_eq!(bench.state.owed().wake_at, Some(UnixMs::LAST));
    assert_eq!((bench.replayed(), bench.reloaded()), (bench.state.clone(), bench.state.clone()));
    bench.decide("t", Decision::Denied).unwrap();
    bench.answer("a").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::Unavailable))));
    assert_eq!(bench.state.owed().wake_at, Some(UnixMs::LAST));
    assert_eq!((bench.replayed(), bench.reloaded()), (bench.state.clone(), bench.state.clone()));
}

#[test]
fn a_thread_is_newer_when_a_turn_begins_or_ends_or_a_setting_changes_and_not_otherwise() {
    let mut bench = Bench::new();
    let at = |bench: &mut Bench, step: fn(&mut Bench), newer: bool| {
        bench.now = UnixMs(bench.now.0 + 10);
        let before = bench.state.view().updated_at;
        step(bench);
        assert_eq!(bench.state.view().updated_at, if newer { bench.now } else { before });
    };
    at(&mut bench, |bench| drop(bench.start("p").unwrap()), true);
    at(&mut bench, |bench| drop(bench.queue("q").unwrap()), false);
    at(&mut bench, |bench| drop(bench.steer("s", Undelivered::Report).unwrap()), false);
    at(&mut bench, |bench| drop(bench.call(vec![gated("t", EffectClass::Once)])), false);
    at(&mut bench, |bench| drop(bench.decide("t", Decision::Denied).unwrap()), false);
    at(&mut bench, |bench| drop(bench.queue_paused(true)), true);
    at(&mut bench, |bench| drop(bench.queue_paused(true)), false);
    at(&mut bench, |bench| drop(bench.ask(Command::SaveCheckpoint("c".into())).unwrap()), false);
    at(&mut bench, |bench| drop(bench.interrupt()), true);
    at(&mut bench, |bench| drop(bench.edit("r").unwrap()), true);
}

#[test]
fn a_status_is_told_whenever_it_changes_and_only_then() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.call(vec![gated("a", EffectClass::Once), gated("b", EffectClass::Once)]);
    bench.decide("b", Decision::Approved).unwrap();
    bench.decide("a", Decision::Denied).unwrap();
    bench.begin();
    bench.recover();
    bench.resolve("b", Resolution::Settle, Some("x")).unwrap();
    bench.queue("q").unwrap();
    bench.finish();
    bench.finish();
    let told = bench.log.iter().filter_map(|record| match &record.event {
        Event::ThreadStatus(thread) => Some(thread.status),
        _ => None,
    });
    use ThreadStatus::{AwaitingApproval, Idle, Running};
    assert_eq!(told.collect::<Vec<_>>(), [Running, AwaitingApproval, Running, AwaitingApproval, Running, Idle]);
}
