//! Tool calls: agreement, effects, and what nobody knows.

use super::{
    EffectClass::{Idempotent, Once, Read, Reconcilable},
    *,
};
use crate::record::{EffectOutcome, ResolvedBy};

fn calling(tools: Vec<Requested>) -> Bench {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.call(tools);
    bench
}

/// What becomes of each class when its process is lost while it runs.
fn lost(class: EffectClass) -> Bench {
    let mut bench = calling(vec![free("t", class)]);
    bench.begin();
    bench.recover();
    bench
}

// ---- the order of calls --------------------------------------------------------------------------

#[test]
fn an_effect_is_saved_as_started_before_it_is_due() {
    let mut bench = calling(vec![free("t", Once)]);
    assert_eq!(bench.effect("t").status, EffectStatus::Intended);
    assert_eq!(bench.state.owed(), Owed { begin: true, ..Owed::default() });
    bench.begin();
    assert_eq!((bench.effect("t").status, bench.effect("t").attempt), (EffectStatus::Started, 1));
    assert_eq!(bench.due(), [("t".to_owned(), 1, false)]);
    assert!(bench.begin().records.is_empty());
    bench.done("t");
    assert_eq!(bench.effect("t").outcome, Some(EffectOutcome::Succeeded));
    assert_eq!(bench.output("t"), (TurnStatus::Completed, "t is done".to_owned()));
    assert!(bench.state.owed().call.is_some());
}

#[test]
fn a_log_that_starts_again_what_happens_once_is_refused_unless_a_person_said_so() {
    for (class, may) in [(Once, false), (Idempotent, true)] {
        let mut bench = calling(vec![free("t", class)]);
        bench.begin();
        let effect = Effect { attempt: 2, ..bench.effect("t") };
        let (seq, thread) = (bench.state.seq() + 1, bench.state.view().id);
        let again = Record { seq, ts: UnixMs(9), thread, event: Event::EffectStarted(Box::new(effect)) };
        let applied = bench.state.clone().apply(&again);
        assert_eq!(applied.is_ok(), may, "{class:?}: {applied:?}");
    }
    let mut bench = lost(Once);
    bench.resolve("t", Resolution::Retry, None).unwrap();
    assert_eq!((bench.effect("t").status, bench.effect("t").attempt), (EffectStatus::Started, 2));
    assert_eq!(bench.replayed(), bench.state);
}

#[test]
fn calls_run_one_after_the_other_in_the_order_of_the_model() {
    let mut bench = calling(vec![free("a", Once), free("b", Read), free("c", Idempotent)]);
    for tool in ["a", "b", "c"] {
        bench.begin();
        assert_eq!(bench.due(), [(tool.to_owned(), 1, false)]);
        bench.done(tool);
    }
    assert!(bench.state.owed().call.is_some());
}

#[test]
fn calls_that_only_read_run_together_up_to_the_first_that_does_more() {
    let mut bench = calling(vec![free("a", Read), free("b", Read), free("c", Once), free("d", Read)]);
    bench.begin();
    assert_eq!(bench.due(), [("a".to_owned(), 1, false), ("b".to_owned(), 1, false)]);
    bench.done("b");
    assert!(!bench.state.owed().begin, "a call that changes something waits for every read before it");
    bench.done("a");
    bench.begin();
    assert_eq!(bench.due(), [("c".to_owned(), 1, false)]);
}

#[test]
fn a_call_behind_one_that_waits_for_a_person_waits_too() {
    let mut bench = calling(vec![gated("a", Once), free("b", Read)]);
    assert!(!bench.state.owed().begin);
    assert_eq!(bench.state.view().status, ThreadStatus::AwaitingApproval);
    bench.decide("a", Decision::Approved).unwrap();
    bench.begin();
    assert_eq!(bench.due(), [("a".to_owned(), 1, false)]);
}

#[test]
fn the_model_hears_of_its_calls_in_its_own_words_and_order() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let arguments = "{ \"b\": 1.50, \"a\": \"\\u00e9\" }";
    let mut a = free("a", Read);
    a.call.arguments = arguments.into();
    bench.call(vec![a, free("b", Read)]);
    bench.begin();
    bench.done("b");
    bench.done("a");
    let history = bench.history();
    let Message::Assistant { tool_calls, .. } = &history[1] else { panic!("{history:?}") };
    assert_eq!(tool_calls[0].arguments, arguments);
    let tool = |id: &str, content: &str| Message::Tool { call_id: id.into(), content: content.into(), failed: false };
    assert_eq!(history[2..], [tool("c-a", "a is done"), tool("c-b", "b is done")]);
}

#[test]
fn an_answer_that_is_longer_than_an_item_may_be_is_cut_and_says_so() {
    let mut bench = Bench::with(Limits { item_bytes: 5, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.call(vec![free("t", Read)]);
    bench.begin();
    bench.tool("t", ToolEnd::Done("1234é6".into()));
    assert_eq!(bench.output("t").1, "1234\n[cut: 5 of 7 bytes]");
}

#[test]
fn what_may_not_run_is_told_to_the_model_which_goes_on() {
    let bench = calling(vec![
        judged("a", Judgement::Unknown),
        judged("b", Judgement::Invalid("no path".into())),
        judged("c", Judgement::Forbidden { reason: "never".into(), rule: "r".into() }),
    ]);
    assert_eq!(bench.output("a").1, "unknown tool: a");
    assert_eq!(bench.output("b").1, "invalid arguments: no path");
    assert_eq!(bench.output("c").1, "forbidden by the rule `r`: never");
    assert!(bench.state.owed().call.is_some());
}

// ---- approvals -----------------------------------------------------------------------------------

#[test]
fn a_gated_call_waits_for_a_person_without_an_engine_or_a_deadline() {
    let mut bench = calling(vec![gated("t", Once)]);
    let approval = bench.approval("t");
    assert_eq!(bench.state.owed(), Owed { wake_at: Some(approval.expires_at), ..Owed::default() });
    assert_eq!((bench.state.owes_since(), bench.state.deadline(&bench.limits)), (None, None));
    assert_eq!(bench.state.view().pending_approvals, 1);
    assert_eq!(bench.state.open().unwrap().turn().status, TurnStatus::AwaitingApproval);
    let step = bench.decide("t", Decision::Approved).unwrap();
    let Reply::Approval(decided) = step.reply else { panic!() };
    assert_eq!((decided.status, decided.by), (ApprovalStatus::Approved, Some(DecidedBy::Caller)));
    assert_eq!(bench.effect("t").operation_id, approval.operation_id);
    assert_eq!(bench.state.view().status, ThreadStatus::Running);
    assert_eq!(bench.state.view().pending_approvals, 0);
}

#[test]
fn a_denial_is_told_to_the_model_with_its_reason() {
    let mut bench = calling(vec![gated("t", Once)]);
    let approval = bench.approval("t").id;
    let reason = Some("not today".to_owned());
    bench.ask(Command::Decide(Decide { approval, decision: Decision::Denied, reason })).unwrap();
    assert_eq!(bench.output("t"), (TurnStatus::Failed, "denied: not today".to_owned()));
    assert_eq!(bench.count("effect.intended"), 0);
    assert!(bench.state.owed().call.is_some());
}

#[test]
fn an_abort_ends_the_turn_and_the_queue_goes_on() {
    let mut bench = calling(vec![gated("a", Once), gated("b", Once)]);
    bench.queue("q").unwrap();
    bench.decide("a", Decision::Abort).unwrap();
    let turn = bench.ended();
    assert_eq!((turn.status, turn.error.unwrap().code), (TurnStatus::Canceled, "aborted".to_owned()));
    assert_eq!(bench.approval("a").status, ApprovalStatus::Aborted);
    assert_eq!(bench.approval("b").status, ApprovalStatus::Cancelled);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
}

#[test]
fn the_first_decision_is_the_only_one() {
    let mut bench = calling(vec![gated("t", Once)]);
    bench.decide("t", Decision::Approved).unwrap();
    let approval = bench.approval("t").id;
    assert_eq!(bench.decide("t", Decision::Denied).unwrap_err(), Refused::NotPending { approval });
    let nobody = ApprovalId::new(Uuid::max());
    let other = Decide { approval: nobody, decision: Decision::Approved, reason: None };
    assert_eq!(bench.ask(Command::Decide(other)).unwrap_err(), Refused::NotPending { approval: nobody });
}

#[test]
fn several_approvals_are_decided_in_any_order_and_run_in_the_models() {
    let mut bench = calling(vec![gated("a", Once), gated("b", Idempotent), gated("c", Once)]);
    bench.decide("c", Decision::Approved).unwrap();
    bench.decide("a", Decision::Denied).unwrap();
    assert_eq!(bench.state.view().status, ThreadStatus::AwaitingApproval);
    assert!(!bench.state.owed().begin);
    bench.decide("b", Decision::Approved).unwrap();
    for tool in ["b", "c"] {
        bench.begin();
        assert_eq!(bench.due(), [(tool.to_owned(), 1, false)]);
        bench.done(tool);
    }
    let outputs: Vec<_> = bench.history()[2..].to_vec();
    assert!(matches!(&outputs[..], [Message::Tool { content, .. }, _, _] if content == "denied"));
}

#[test]
fn a_tool_that_runs_beside_a_pending_approval_keeps_the_thread_running() {
    let mut bench = calling(vec![free("a", Once), gated("b", Once)]);
    bench.begin();
    assert_eq!((bench.state.view().status, bench.state.view().pending_approvals), (ThreadStatus::Running, 1));
    assert!(bench.state.deadline(&bench.limits).is_some());
    assert_eq!(bench.state.owed().wake_at, Some(bench.approval("b").expires_at));
    bench.decide("b", Decision::Denied).unwrap();
    assert_eq!(bench.due(), [("a".to_owned(), 1, false)]);
    assert_eq!(bench.state.owed().call, None);
    bench.done("a");
    assert!(bench.state.owed().call.is_some());
}

#[test]
fn an_approval_that_nobody_decides_expires_and_is_nobodys_denial() {
    let mut bench = calling(vec![gated("t", Once)]);
    let expires = bench.approval("t").expires_at;
    assert!(bench.tick(UnixMs(expires.0 - 1)).records.is_empty());
    bench.now = expires;
    assert_eq!(bench.decide("t", Decision::Approved).unwrap_err(), Refused::Expired { at: expires });
    bench.tick(expires);
    let approval = bench.approval("t");
    assert_eq!((approval.status, approval.decision, approval.by), (ApprovalStatus::Expired, None, None));
    assert_eq!(bench.output("t"), (TurnStatus::Failed, "not approved: nobody decided in time".to_owned()));
    assert_eq!(bench.decide("t", Decision::Approved).unwrap_err(), Refused::NotPending { approval: approval.id });
    assert!(bench.state.owed().call.is_some());
}

#[test]
fn one_tick_expires_everything_that_is_over() {
    let mut bench = calling(vec![gated("a", Once), asks("b"), gated("c", Once), free("d", Read)]);
    bench.tick(bench.approval("a").expires_at);
    assert_eq!((bench.count("approval.expired"), bench.count("question.expired")), (2, 1));
    assert!(bench.state.owed().begin, "the call behind them may run now");
}

#[test]
fn an_approval_for_the_session_covers_the_same_call_and_no_other() {
    let mut bench = calling(vec![gated("t", Once)]);
    bench.decide("t", Decision::ApprovedForSession).unwrap();
    bench.begin();
    bench.done("t");
    let mut other = planned("t", Once, Gate::Ask);
    other.arguments_sha256 = "d2".repeat(32);
    bench.call(vec![gated("t", Once), judged("t", Judgement::Run(Box::new(other))), gated("u", Once)]);
    assert_eq!(bench.count("approval.required"), 3);
    let by = bench.log.iter().filter_map(|record| match &record.event {
        Event::ApprovalDecided(approval) => approval.by,
        _ => None,
    });
    assert_eq!(by.collect::<Vec<_>>(), [DecidedBy::Caller, DecidedBy::Session]);
    bench.interrupt();
    assert_eq!(bench.reloaded(), bench.state);
    bench.start("again").unwrap();
    bench.call(vec![gated("t", Once)]);
    assert_eq!(bench.count("approval.required"), 3, "the grant is the thread's, not the turn's");
}

#[test]
fn an_approval_for_ever_lets_pass_what_the_rule_of_the_tenant_lets_pass() {
    let mut bench = calling(vec![gated("t", Once)]);
    bench.decide("t", Decision::ApprovedAlways).unwrap();
    assert_eq!(bench.approval("t").decision, Some(Decision::ApprovedAlways));
    bench.begin();
    bench.done("t");
    bench.call(vec![gated("t", Once)]);
    assert_eq!(bench.approval("t").status, ApprovalStatus::Pending, "the rule is the tenant's to know");
    let permitted_by = Some("rule-1".to_owned());
    let plan = Planned { permitted_by, ..planned("u", Once, Gate::FullAccess) };
    bench.interrupt();
    bench.start("again").unwrap();
    bench.call(vec![judged("u", Judgement::Run(Box::new(plan)))]);
    let approval = bench.approval("u");
    assert_eq!((approval.by, approval.matched_rule), (Some(DecidedBy::Policy), Some("rule-1".to_owned())));
}

#[test]
fn a_lasting_decision_needs_something_that_could_last() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let plan = Planned { amendment: None, ..planned("t", Once, Gate::Ask) };
    bench.call(vec![judged("t", Judgement::Run(Box::new(plan)))]);
    assert_eq!(bench.approval("t").available_decisions, [Decision::Approved, Decision::Denied, Decision::Abort]);
    for decision in [Decision::ApprovedForSession, Decision::ApprovedAlways] {
        assert!(matches!(bench.decide("t", decision), Err(Refused::Invalid { field: "decision", .. })));
    }
}

#[test]
fn what_passes_by_itself_is_what_the_turn_was_started_with() {
    // auto, trust: what an ordinary call, and one that needs full access, have to wait for.
    for (auto, trust, asks) in [(false, false, 2), (false, true, 2), (true, false, 1), (true, true, 0)] {
        let mut bench = Bench::new();
        let (auto_approve, trust_mode) = (Some(auto), Some(trust));
        bench.ask(Command::Patch(ThreadPatch { auto_approve, trust_mode, ..ThreadPatch::default() })).unwrap();
        bench.start("p").unwrap();
        let full = judged("full", Judgement::Run(Box::new(planned("full", Once, Gate::FullAccess))));
        bench.call(vec![gated("plain", Once), full, free("open", Once)]);
        assert_eq!(bench.count("approval.required"), asks, "{auto} {trust}");
        assert_eq!(bench.count("approval.decided"), 2 - asks, "what passed by itself is an event too");
        if auto {
            assert_eq!(bench.approval("plain").by, Some(DecidedBy::Auto));
        }
    }
}

// ---- questions -----------------------------------------------------------------------------------

#[test]
fn an_answer_is_the_output_of_the_call_that_asked() {
    let mut bench = calling(vec![asks("ask"), free("t", Read)]);
    assert_eq!(bench.state.view().status, ThreadStatus::AwaitingApproval);
    bench.answer("the left one").unwrap();
    let question = bench.question();
    assert_eq!((question.status, question.answer.as_deref()), (QuestionStatus::Answered, Some("the left one")));
    assert_eq!(bench.output("ask"), (TurnStatus::Completed, "the left one".to_owned()));
    assert_eq!(bench.answer("the right one").unwrap_err(), Refused::NotAsked { question: question.id });
    assert!(bench.state.owed().begin);
}

#[test]
fn a_question_that_nobody_answers_expires() {
    let mut bench = calling(vec![asks("ask")]);
    let expires = bench.question().expires_at;
    assert_eq!(bench.state.owed().wake_at, Some(expires));
    bench.now = expires;
    assert_eq!(bench.answer("late").unwrap_err(), Refused::Expired { at: expires });
    bench.tick(expires);
    assert_eq!(bench.question().status, QuestionStatus::Expired);
    assert_eq!(bench.output("ask"), (TurnStatus::Failed, "nobody answered in time".to_owned()));
}

// ---- what nobody knows ---------------------------------------------------------------------------

#[test]
fn what_was_only_intended_is_simply_started_after_a_crash() {
    let mut bench = calling(vec![free("t", Once)]);
    bench.recover();
    assert_eq!(bench.effect("t").status, EffectStatus::Intended);
    bench.begin();
    assert_eq!(bench.due(), [("t".to_owned(), 1, false)]);
}

#[test]
fn what_a_tool_says_is_heard_until_its_end_takes_its_place() {
    let mut bench = calling(vec![free("a", Read), free("b", Read)]);
    bench.begin();
    for (tool, said) in [("a", "one "), ("b", "uno "), ("a", "two "), ("b", "due ")] {
        let step = bench.says(tool, said);
        assert!(matches!(&step.records[..], [Record { event: Event::ItemDelta(delta), .. }] if delta.delta == said));
    }
    assert_eq!((bench.heard("a"), bench.heard("b")), ("one two ".into(), "uno due ".into()));
    bench.done("a");
    assert_eq!(bench.output("a"), (TurnStatus::Completed, "a is done".into()));
    assert_eq!(bench.heard("b"), "uno due ");
}

#[test]
fn another_attempt_says_everything_anew() {
    let mut bench = calling(vec![free("t", Idempotent)]);
    bench.begin();
    bench.says("t", "half of it");
    bench.recover();
    assert_eq!(bench.heard("t"), "");
    let first = bench.effect("t");
    let late = ToolReport { operation: first.operation_id, attempt: 1, said: "late".into(), end: None };
    assert!(bench.ask(Command::ToolReport(late)).unwrap().records.is_empty());
    bench.says("t", "all of it");
    assert_eq!(bench.heard("t"), "all of it");
}

#[test]
fn a_tool_is_heard_up_to_the_limit_of_an_item() {
    let mut bench = calling(vec![free("t", Once)]);
    bench.begin();
    let limit = bench.limits.item_bytes;
    bench.says("t", &"é".repeat(limit / 2 - 1));
    bench.says("t", "xéé");
    assert_eq!(bench.heard("t").len(), limit - 1, "a character is not cut in two");
    assert!(bench.says("t", "é").records.is_empty());
    bench.done("t");
    assert_eq!(bench.output("t").1, "t is done");
}

#[test]
fn what_a_tool_said_outlives_the_turn_that_it_was_cut_off_with() {
    let mut bench = calling(vec![free("t", Once)]);
    bench.begin();
    bench.says("t", "deleting all files");
    bench.interrupt();
    let (status, said) = bench.output("t");
    assert_eq!((status, said.starts_with("deleting all files\n")), (TurnStatus::Interrupted, true));
}

#[test]
fn what_can_be_repeated_is_started_again_under_its_operation_id() {
    for class in [Read, Idempotent] {
        let mut bench = calling(vec![free("t", class)]);
        bench.begin();
        let first = bench.effect("t");
        bench.recover();
        let second = bench.effect("t");
        assert_eq!((second.status, second.attempt), (EffectStatus::Started, 2));
        assert_eq!(second.operation_id, first.operation_id);
        let late = ToolReport {
            operation: first.operation_id,
            attempt: 1,
            said: "late".into(),
            end: Some(ToolEnd::Done("late".into())),
        };
        assert!(bench.ask(Command::ToolReport(late)).unwrap().records.is_empty());
        bench.done("t");
        assert_eq!(bench.count("effect.settled"), 1);
    }
}

#[test]
fn what_can_be_asked_is_asked_first_however_often_the_process_is_lost() {
    let mut bench = lost(Reconcilable);
    assert_eq!(bench.due(), [("t".to_owned(), 1, true)]);
    bench.recover();
    assert_eq!(bench.due(), [("t".to_owned(), 1, true)]);
    assert_eq!(bench.count("effect.started"), 1);
    bench.done("t");
    let effect = bench.effect("t");
    assert_eq!((effect.status, effect.outcome), (EffectStatus::Settled, Some(EffectOutcome::Succeeded)));
    assert_eq!((effect.resolution, effect.resolved_by), (Some(Resolution::Settle), Some(ResolvedBy::Tool)));
}

#[test]
fn what_did_not_happen_is_started_again_and_then_runs_like_the_first_time() {
    let mut bench = lost(Reconcilable);
    bench.tool("t", ToolEnd::NotDone);
    assert_eq!(bench.count("effect.reconciled"), 1);
    assert_eq!(bench.due(), [("t".to_owned(), 2, false)]);
    assert_eq!(bench.effect("t").resolution, None);
}

#[test]
fn what_cannot_be_repeated_waits_for_a_person() {
    let mut bench = lost(Once);
    let effect = bench.effect("t");
    assert_eq!((effect.status, effect.attempt, effect.closed), (EffectStatus::Uncertain, 1, false));
    assert_eq!(bench.state.owed(), Owed::default());
    assert_eq!(bench.state.view().status, ThreadStatus::AwaitingApproval);
    assert_eq!(bench.state.deadline(&bench.limits), None);
    // Whatever else happens to the process, it goes on waiting.
    assert!(bench.recover().records.is_empty());
    assert!(bench.begin().records.is_empty());
    assert!(bench.done("t").records.is_empty());
}

#[test]
fn a_person_may_have_an_uncertain_effect_tried_again() {
    let mut bench = lost(Once);
    let step = bench.resolve("t", Resolution::Retry, None).unwrap();
    let Reply::Effect(effect) = step.reply else { panic!() };
    assert_eq!((effect.resolution, effect.resolved_by), (Some(Resolution::Retry), Some(ResolvedBy::Caller)));
    assert_eq!(bench.due(), [("t".to_owned(), 2, false)]);
    let operation = effect.operation_id;
    assert_eq!(bench.resolve("t", Resolution::Retry, None).unwrap_err(), Refused::NotUncertain { operation });
    bench.recover();
    assert_eq!(bench.effect("t").status, EffectStatus::Uncertain, "one word, one attempt");
}

#[test]
fn a_person_may_say_what_an_uncertain_effect_came_to() {
    let mut bench = lost(Once);
    bench.resolve("t", Resolution::Settle, Some("it was sent")).unwrap();
    assert_eq!(bench.output("t"), (TurnStatus::Completed, "it was sent".to_owned()));
    assert_eq!(bench.effect("t").status, EffectStatus::Settled);
    assert!(bench.state.owed().call.is_some());
}

#[test]
fn a_person_may_end_the_turn_because_of_an_uncertain_effect() {
    let mut bench = lost(Once);
    bench.resolve("t", Resolution::Abort, None).unwrap();
    assert_eq!(bench.ended().status, TurnStatus::Canceled);
    let effect = bench.effect("t");
    assert!(effect.closed && effect.status == EffectStatus::Uncertain, "{effect:?}");
    assert_eq!(bench.count("effect.uncertain"), 1);
}

#[test]
fn a_resolution_says_what_it_needs_and_nothing_else() {
    let mut bench = lost(Once);
    for (resolution, output) in
        [(Resolution::Settle, None), (Resolution::Retry, Some("x")), (Resolution::Abort, Some("x"))]
    {
        let refused = bench.resolve("t", resolution, output).unwrap_err();
        assert!(matches!(refused, Refused::Invalid { field: "output", .. }), "{refused}");
    }
}

#[test]
fn a_tool_that_does_not_know_is_tried_again_as_often_as_its_class_and_the_limit_allow() {
    let unknown = || ToolEnd::Unknown("timed out".into());
    for (class, tries, status) in [
        (Read, 3, EffectStatus::Settled),
        (Idempotent, 3, EffectStatus::Uncertain),
        (Reconcilable, 1, EffectStatus::Uncertain),
        (Once, 1, EffectStatus::Uncertain),
    ] {
        let mut bench = calling(vec![free("t", class)]);
        bench.begin();
        while !bench.due().is_empty() {
            bench.tool("t", unknown());
        }
        let effect = bench.effect("t");
        assert_eq!((effect.attempt, effect.status), (tries, status), "{class:?}");
        if status == EffectStatus::Settled {
            assert_eq!(effect.outcome, Some(EffectOutcome::Failed));
            assert_eq!(bench.output("t"), (TurnStatus::Failed, "timed out".to_owned()));
        }
    }
}

#[test]
fn a_tool_of_class_once_is_not_started_again_on_its_own_word() {
    let mut bench = calling(vec![free("t", Once)]);
    bench.begin();
    bench.tool("t", ToolEnd::NotDone);
    assert_eq!(bench.count("effect.started"), 1);
    assert_eq!(bench.output("t").0, TurnStatus::Failed);
}

// ---- the end of the turn -------------------------------------------------------------------------

#[test]
fn an_interrupt_lists_every_effect_that_was_started_and_what_is_known_of_it() {
    let mut bench = calling(vec![free("done", Read), free("runs", Once), free("never", Once)]);
    bench.begin();
    bench.done("done");
    bench.begin();
    let receipt = bench.interrupt();
    let known: Vec<_> =
        receipt.effects.iter().map(|effect| (effect.tool.as_str(), effect.status, effect.closed)).collect();
    assert_eq!(known, [("done", EffectStatus::Settled, false), ("runs", EffectStatus::Uncertain, true)]);
    assert_eq!(bench.effect("never").outcome, Some(EffectOutcome::Canceled));
    assert_eq!(receipt.turn.status, TurnStatus::Interrupted);
    assert!(bench.done("runs").records.is_empty(), "what a tool says after its turn is not heard");
}

#[test]
fn a_tool_that_only_reads_is_simply_given_up() {
    let mut bench = calling(vec![free("a", Read), free("b", Read)]);
    bench.begin();
    let receipt = bench.interrupt();
    let known: Vec<_> = receipt.effects.iter().map(|effect| (effect.status, effect.outcome)).collect();
    assert_eq!(known, [(EffectStatus::Settled, Some(EffectOutcome::Canceled)); 2]);
}

#[test]
fn an_effect_that_is_uncertain_when_its_turn_ends_stays_so_and_is_listed() {
    let mut bench = lost(Once);
    let receipt = bench.interrupt();
    assert!(matches!(&receipt.effects[..], [effect] if effect.status == EffectStatus::Uncertain && effect.closed));
    let operation = receipt.effects[0].operation_id;
    assert_eq!(bench.resolve("t", Resolution::Retry, None).unwrap_err(), Refused::NotUncertain { operation });
}

#[test]
fn an_interrupt_between_intent_and_start_leaves_nothing_to_begin() {
    let mut bench = calling(vec![free("t", Once)]);
    let receipt = bench.interrupt();
    assert!(receipt.effects.is_empty(), "it was never started");
    assert_eq!(bench.effect("t").outcome, Some(EffectOutcome::Canceled));
    assert!(bench.begin().records.is_empty());
    assert_eq!(bench.count("effect.started"), 0);
}
