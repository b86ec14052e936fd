//! What an agent does by itself, and what it asks for.

use super::*;
use crate::{ports::Verdict, thread::agent};

fn asks() -> ActStep {
    ActStep::Asks(Box::new(planned("act", EffectClass::Once, Gate::Ask)))
}

fn done() -> ActStep {
    ActStep::Ended { done: true, output: "it is done".into() }
}

fn failed() -> ActStep {
    ActStep::Ended { done: false, output: "it failed".into() }
}

fn answering() -> Bench {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench
}

fn verdicts(bench: &Bench) -> Vec<(String, bool)> {
    let told = |verdict: Verdict| (verdict.call_id, verdict.allowed);
    bench.state.owed().verdicts.into_iter().map(told).collect()
}

/// The agent's call fails, or its process is lost with ours.
fn cut_off(bench: &mut Bench) {
    bench.report(&[], Some(Err(failure(ModelErrorKind::CutOff))));
}

#[test]
fn an_act_is_an_item_with_an_effect_while_the_call_goes_on() {
    let mut bench = answering();
    bench.report(&[(TextKind::Answer, "so")], None);
    let due = bench.state.owed().call;
    bench.act("a", ActStep::Announced);
    assert_eq!(bench.count("effect.intended"), 0);
    bench.act("a", ActStep::Started);
    bench.act("a", ActStep::Said("half".into()));
    bench.act("a", done());
    assert_eq!(bench.state.owed().call, due);
    let effect = bench.effect("act");
    assert_eq!((effect.status, effect.class, effect.attempt), (EffectStatus::Settled, EffectClass::Once, 1));
    assert_eq!(bench.output("act"), (TurnStatus::Completed, "it is done".into()));
    bench.finish();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Completed)]);
    let said = &bench.history()[1];
    assert!(
        matches!(said, Message::Assistant { content, tool_calls, .. } if content == "sodone" && tool_calls.len() == 1)
    );
}

#[test]
fn an_act_whose_end_is_all_that_is_heard_was_begun_too() {
    let mut bench = answering();
    bench.act("a", failed());
    assert_eq!(["effect.intended", "effect.started", "effect.settled"].map(|name| bench.count(name)), [1, 1, 1]);
    assert_eq!(bench.output("act"), (TurnStatus::Failed, "it failed".into()));
}

#[test]
fn a_question_is_an_approval_and_its_verdict_is_owed_to_the_agent() {
    let mut bench = answering();
    bench.act("a", asks());
    let due = bench.state.owed();
    assert!(due.call.is_some() && due.verdicts.is_empty());
    assert_eq!(bench.state.view().status, ThreadStatus::AwaitingApproval);
    bench.decide("act", Decision::Approved).unwrap();
    assert_eq!(verdicts(&bench), [("a".to_owned(), true)]);
    assert_eq!((bench.state.owed().call, bench.state.view().status), (due.call, ThreadStatus::Running));
    // It may have happened from the moment at which the agent is told.
    assert_eq!(bench.effect("act").status, EffectStatus::Started);
    bench.act("a", done());
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
}

#[test]
fn a_denied_agent_goes_on_and_what_it_says_of_the_denial_is_nothing_new() {
    let mut bench = answering();
    bench.act("a", asks());
    bench.decide("act", Decision::Denied).unwrap();
    assert_eq!(verdicts(&bench), [("a".to_owned(), false)]);
    assert!(bench.act("a", failed()).records.is_empty());
    assert_eq!(bench.output("act"), (TurnStatus::Failed, "denied".into()));
    assert_eq!(bench.count("effect.intended"), 0);
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
}

#[test]
fn a_denied_agent_that_acts_all_the_same_is_on_record() {
    let mut bench = answering();
    bench.act("a", asks());
    bench.decide("act", Decision::Denied).unwrap();
    bench.act("a", done());
    assert_eq!((bench.effect("act").status, bench.count("item.started")), (EffectStatus::Settled, 3));
}

#[test]
fn an_agent_that_asks_after_it_began_is_heard_and_what_it_began_is_uncertain() {
    let mut bench = answering();
    bench.act("a", ActStep::Started);
    bench.act("a", asks());
    assert_eq!(bench.state.view().pending_approvals, 1);
    assert_eq!((bench.count("effect.uncertain"), bench.count("item.started")), (1, 3));
    bench.decide("act", Decision::Approved).unwrap();
    assert_eq!(verdicts(&bench), [("a".to_owned(), true)]);
    bench.act("a", done());
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
    assert_eq!((bench.count("effect.started"), bench.count("effect.settled")), (2, 1));
}

#[test]
fn a_rule_that_says_no_after_it_began_leaves_nothing_open() {
    let mut bench = answering();
    bench.act("a", ActStep::Started);
    let planned = Box::new(planned("act", EffectClass::Once, Gate::Ask));
    bench.act("a", ActStep::Forbidden { planned, reason: "not here".into(), rule: "r".into() });
    assert_eq!(verdicts(&bench), [("a".to_owned(), false)]);
    assert_eq!((bench.count("effect.uncertain"), bench.count("approval.required")), (1, 0));
    let approval = bench.approval("act");
    assert_eq!((approval.status, approval.matched_rule.as_deref()), (ApprovalStatus::Denied, Some("r")));
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
}

#[test]
fn an_agent_that_does_not_wait_for_the_answer_loses_the_question() {
    let mut bench = answering();
    bench.act("a", asks());
    bench.act("a", ActStep::Started);
    assert_eq!(bench.approval("act").status, ApprovalStatus::Cancelled);
    assert_eq!(bench.effect("act").status, EffectStatus::Started);
    assert!(verdicts(&bench).is_empty());
}

#[test]
fn nobody_in_time_is_no_and_the_agent_goes_on() {
    let mut bench = answering();
    bench.act("a", asks());
    let expires = bench.approval("act").expires_at;
    assert_eq!(bench.state.owed().wake_at, Some(expires));
    assert_eq!(bench.state.deadline(&bench.limits), None);
    bench.tick(expires);
    assert_eq!((bench.approval("act").status, verdicts(&bench)), (ApprovalStatus::Expired, vec![("a".into(), false)]));
    assert!(bench.state.deadline(&bench.limits) > Some(expires));
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
}

#[test]
fn an_agent_is_asked_about_by_the_rules_of_all() {
    let mut bench = answering();
    let auto_approve = Some(true);
    bench.interrupt();
    bench.ask(Command::Patch(ThreadPatch { auto_approve, ..ThreadPatch::default() })).unwrap();
    bench.start("q").unwrap();
    bench.act("a", asks());
    assert_eq!((bench.approval("act").by, bench.count("approval.required")), (Some(DecidedBy::Auto), 0));
    assert_eq!(verdicts(&bench), [("a".to_owned(), true)]);
    assert_eq!(bench.effect("act").status, EffectStatus::Started);
}

#[test]
fn a_second_question_about_what_is_asked_already_changes_nothing() {
    let mut bench = answering();
    bench.act("a", asks());
    assert!(bench.act("a", asks()).records.is_empty());
}

#[test]
fn what_an_agent_leaves_open_ends_with_its_call() {
    let mut bench = answering();
    bench.act("a", ActStep::Started);
    bench.act("b", ActStep::Announced);
    bench.act("c", asks());
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
    let effect = bench.effect("act");
    assert_eq!((effect.status, effect.closed), (EffectStatus::Uncertain, true));
    assert_eq!(bench.approval("act").status, ApprovalStatus::Cancelled);
    check_log(&bench.log);
}

#[test]
fn an_abort_ends_the_turn() {
    let mut bench = answering();
    bench.act("a", asks());
    bench.decide("act", Decision::Abort).unwrap();
    assert_eq!((bench.ended().status, bench.state.owed()), (TurnStatus::Canceled, Owed::default()));
}

#[test]
fn an_interrupt_tells_what_was_started() {
    let mut bench = answering();
    bench.act("a", ActStep::Started);
    bench.act("a", done());
    bench.act("b", ActStep::Started);
    let statuses: Vec<_> =
        bench.interrupt().effects.iter().map(|effect| (effect.call_id.clone(), effect.status)).collect();
    assert_eq!(statuses, [("a".into(), EffectStatus::Settled), ("b".into(), EffectStatus::Uncertain)]);
}

#[test]
fn a_call_in_which_nothing_was_done_is_made_again_and_its_words_are_forgotten() {
    for crash in [false, true] {
        let mut bench = answering();
        bench.report(&[(TextKind::Answer, "let me")], None);
        bench.act("a", asks());
        let first = bench.state.owed().call;
        if crash {
            bench.recover();
        } else {
            cut_off(&mut bench);
            bench.pass(500);
        }
        assert_eq!(bench.approval("act").status, ApprovalStatus::Cancelled);
        assert!(bench.state.owed().call.is_some_and(|due| Some(due) != first));
        bench.finish();
        let history = bench.history();
        let [_, Message::Assistant { content, tool_calls, .. }] = &history[..] else { panic!("{history:?}") };
        assert_eq!((content.as_str(), tool_calls.len()), ("done", 0));
    }
}

#[test]
fn words_that_were_closed_by_a_denied_act_are_forgotten_too() {
    let mut bench = answering();
    bench.report(&[(TextKind::Answer, "let me")], None);
    bench.act("a", asks());
    bench.decide("act", Decision::Denied).unwrap();
    bench.recover();
    assert!(verdicts(&bench).is_empty());
    bench.finish();
    assert_eq!(bench.history().len(), 2, "{:?}", bench.history());
}

#[test]
fn a_call_in_which_something_was_done_is_never_made_again() {
    for (crash, code) in [(false, "model-cut-off"), (true, "agent-lost")] {
        for running in [false, true] {
            let mut bench = answering();
            bench.act("a", ActStep::Started);
            bench.act("a", done());
            if running {
                bench.act("b", ActStep::Started);
            }
            if crash {
                bench.recover();
            } else {
                cut_off(&mut bench);
            }
            let ended = bench.ended();
            assert_eq!((ended.status, ended.error.unwrap().code.as_str()), (TurnStatus::Failed, code));
            let effect = bench.effect("act");
            let expected = if running { (EffectStatus::Uncertain, true) } else { (EffectStatus::Settled, false) };
            assert_eq!((effect.status, effect.closed), expected);
            check_log(&bench.log);
        }
    }
}

#[test]
fn a_steer_is_for_the_call_behind_the_agents() {
    let mut bench = answering();
    bench.act("a", asks());
    bench.steer("and this", Undelivered::Report).unwrap();
    bench.decide("act", Decision::Denied).unwrap();
    assert_eq!(bench.count("turn.steered"), 0);
    bench.finish();
    assert_eq!((bench.count("turn.steered"), bench.state.owed().verdicts.len()), (1, 0));
    bench.finish();
    assert_eq!(bench.ended().status, TurnStatus::Completed);
}

#[test]
fn an_agent_that_makes_too_many_calls_is_stopped() {
    let mut bench = answering();
    let (turn, call) = bench.state.owed().call.unwrap();
    let act = |number: usize| Act {
        call_id: number.to_string(),
        tool: "act".into(),
        title: "does it".into(),
        kind: ItemKind::ToolCall,
        arguments: serde_json::json!({}),
        step: done(),
    };
    let mut report =
        Report { turn, call, text: Vec::new(), acts: (0..agent::ACTS).map(act).collect(), metered: None, end: None };
    bench.ask(Command::Report(report.clone())).unwrap();
    assert!(bench.state.open().is_some());
    report.acts = vec![act(agent::ACTS)];
    bench.ask(Command::Report(report)).unwrap();
    assert_eq!(bench.ended().error.unwrap().code, "output-too-large");
}
