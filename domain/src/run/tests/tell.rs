//! What clients say, and what it leads to.

use super::*;

fn at(status: RunStatus) -> Bench {
    let mut bench = Bench::planned(&["a", "b"]);
    if status != RunStatus::Queued {
        bench.does(tell_with("moved", Some(status), None, json!(null)));
    }
    bench
}

/// The status of the run and of both steps.
fn stands(bench: &Bench) -> (RunStatus, [StepStatus; 2]) {
    let run = bench.run();
    (run.status, [run.steps[0].status, run.steps[1].status])
}

/// The rows of the table in `tell`: an event about step `a`, what it claims, and what becomes of run and step.
const ROWS: [(&str, Option<RunStatus>, RunStatus, StepStatus); 22] = {
    use RunStatus::{AwaitingApproval, Blocked, Cancelled, Completed, Failed, Paused, Planning, Running};
    use StepStatus as Step;
    [
        ("session_run_started", None, Running, Step::InProgress),
        ("session_run_finished", Some(Completed), Completed, Step::Done),
        ("session_run_finished", Some(Failed), Failed, Step::Failed),
        ("session_run_finished", Some(Cancelled), Cancelled, Step::Blocked),
        ("session_run_finished", Some(Blocked), Blocked, Step::Blocked),
        ("session_run_finished", Some(Paused), Paused, Step::Blocked),
        ("session_run_finished", None, Planning, Step::Done),
        ("planning_started", Some(Planning), AwaitingApproval, Step::Pending),
        ("plan_approved", None, Running, Step::InProgress),
        ("run_paused", None, Paused, Step::Pending),
        ("run_resumed", None, Running, Step::Pending),
        ("run_cancelled", None, Cancelled, Step::Pending),
        ("task_retry_requested", None, Running, Step::Runnable),
        ("revision_requested", None, Blocked, Step::Pending),
        ("step_started", Some(Running), Running, Step::InProgress),
        ("task_started", None, Planning, Step::InProgress),
        ("step_completed", Some(Running), Running, Step::Done),
        ("step_done", None, Planning, Step::Done),
        ("task_completed", Some(Completed), Completed, Step::Done),
        ("step_failed", Some(Failed), Failed, Step::Failed),
        ("task_failed", None, Planning, Step::Failed),
        (" Anything_Else ", Some(Running), Running, Step::Pending),
    ]
};

#[test]
fn every_event_leads_to_what_its_row_says() {
    for (name, claims, status, step) in ROWS {
        for name in [name.to_owned(), format!("  {}\t", name.to_ascii_uppercase())] {
            let mut bench = at(RunStatus::Planning);
            if name.contains('\t') {
                assert!(matches!(bench.refused(tell(&name)), Refused::Invalid { .. }), "no control characters");
            }
            let name = name.replace('\t', " ");
            bench.does(tell_with(&name, claims, Some("a"), json!({})));
            assert_eq!(stands(&bench), (status, [step, StepStatus::Pending]), "{name}");
            let record = bench.log.last().unwrap();
            assert_eq!((&*record.event.name(), record.status, &*record.by), (&*name, status, "client"));
        }
    }
}

#[test]
fn what_has_ended_is_revived_by_no_event_but_by_opening_it_again() {
    for ended in [RunStatus::Failed, RunStatus::Completed, RunStatus::Cancelled] {
        for (name, claims, status, _) in ROWS {
            let mut bench = at(ended);
            let told = bench.ask(tell_with(name, claims, Some("a"), json!({})));
            // An event that claims nothing leaves the run as it is.
            let stays = claims.is_none() && status == RunStatus::Planning;
            if status == ended || stays {
                assert!(told.is_ok(), "{name} of {ended:?}");
            } else {
                let to = claims.filter(|_| name != "planning_started").unwrap_or(status);
                assert_eq!(told.unwrap_err(), Refused::RunTransition { from: ended, to }, "{name} of {ended:?}");
            }
            assert_eq!(bench.run().status, ended);
        }
        for name in ["run_reopened", " REOPEN "] {
            let mut bench = at(ended);
            bench.does(tell_with(name, None, None, json!({ "why_next_step": "because" })));
            let run = bench.run();
            assert_eq!((run.status, run.ended_at, &run.last_error), (RunStatus::Running, None, &None));
            assert_eq!((run.started_at, run.why_next_step.as_deref()), (Some(NOW), Some("because")));
        }
    }
}

#[test]
fn every_status_is_claimed_as_the_table_of_statuses_has_it() {
    for from in RunStatus::ALL {
        for to in RunStatus::ALL {
            let mut bench = at(from);
            let told = bench.ask(tell_with("moved", Some(to), None, json!(null)));
            assert_eq!(told.is_ok(), from.may_become(to), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn an_ending_has_one_time_and_the_next_ending_another() {
    let mut bench = at(RunStatus::Running);
    assert_eq!((bench.run().started_at, bench.run().ended_at), (Some(NOW), None));
    bench.pass(10);
    bench.tell("run_cancelled");
    let ended = Some(bench.now);
    bench.pass(10);
    bench.tell("run_cancelled");
    bench.does(tell_with("noted", None, None, json!(null)));
    assert_eq!(bench.run().ended_at, ended);
    bench.tell("run_reopened");
    assert_eq!(bench.run().ended_at, None);
    bench.pass(10);
    bench.does(tell_with("failed", Some(RunStatus::Failed), None, json!({ "error": "no" })));
    assert_eq!((bench.run().ended_at, bench.run().last_error.as_deref()), (Some(bench.now), Some("no")));
    assert_eq!(bench.run().started_at, Some(NOW), "it began once");
}

#[test]
fn a_payload_names_the_status_of_a_step_in_any_of_its_spellings() {
    for name in ["step_status", "stepStatus", "step-state"] {
        for event in ["noted", "step_started", "step_completed", "step_failed"] {
            let mut bench = at(RunStatus::Running);
            bench.does(tell_with(event, None, Some("a"), json!({ name: "Blocked" })));
            assert_eq!(bench.run().steps[0].status, StepStatus::Blocked, "{event} with {name}");
        }
    }
    let mut bench = at(RunStatus::Running);
    // Of a word that is not known nothing follows, nor of a step that there is not.
    bench.does(tell_with("step_done", None, Some("a"), json!({ "step_status": "hm" })));
    bench.does(tell_with("noted", None, Some("b"), json!({ "step_status": "hm" })));
    bench.does(tell_with("step_done", None, Some("none such"), json!({})));
    bench.does(tell_with("step_done", None, None, json!({ "step_status": "done" })));
    assert_eq!(stands(&bench).1, [StepStatus::Done, StepStatus::Pending]);
    bench.does(tell_with("noted", None, Some("a"), json!({ "step_status": " pending " })));
    assert_eq!(bench.run().steps[0].status, StepStatus::Pending);
}

#[test]
fn a_session_has_a_step_of_its_own() {
    let mut bench = Bench::planned(&["session-run"]);
    bench.tell("session_run_started");
    assert_eq!(bench.run().steps[0].status, StepStatus::InProgress);
    let failed = json!({ "error": "lost", "why_next_step": "try again" });
    bench.does(tell_with("session_run_finished", Some(RunStatus::Failed), None, failed));
    let run = bench.run();
    assert_eq!(run.steps[0].status, StepStatus::Failed);
    assert_eq!((run.last_error.as_deref(), run.why_next_step.as_deref()), (Some("lost"), Some("try again")));
}

#[test]
fn an_approved_plan_begins_with_its_first_open_step() {
    let mut bench = at(RunStatus::AwaitingApproval);
    bench.does(tell_with("noted", None, Some("a"), json!({ "step_status": "done" })));
    bench.tell("plan_approved");
    assert_eq!(stands(&bench), (RunStatus::Running, [StepStatus::Done, StepStatus::InProgress]));
    assert_eq!(bench.run().why_next_step.as_deref(), Some("the plan is approved: `b` is first"));
}

#[test]
fn words_that_are_the_machines_own_are_forged_by_nobody() {
    let mut bench = at(RunStatus::Running);
    for name in [
        "context.task.completed",
        " Context.Run.Replaced",
        "todo_synced",
        "meta_next_step_selected",
        "workspace_validated",
        "tool_effect_recorded",
        "MUTATION_CHECKPOINT_RECORDED",
        "rollback_execution_applied ",
        "policy_decision_recorded",
    ] {
        let payload = json!({ "record": { "files": [] }, "task": {}, "run": {} });
        let event = name.to_owned();
        assert_eq!(bench.refused(tell_with(name, None, None, payload)), Refused::Reserved { event });
    }
    // What looks like a record is only said.
    let before = bench.run().clone();
    let forged = json!({ "run": { "status": "completed" }, "task": { "id": "t" }, "entry": {} });
    bench.does(tell_with("note", None, None, forged));
    let Run { revision, last_event_seq, .. } = *bench.run();
    assert_eq!(*bench.run(), Run { revision, last_event_seq, ..before });
}

#[test]
fn an_event_is_named_and_bounded() {
    let mut bench = at(RunStatus::Running);
    for name in ["", "  ", "a\nb"] {
        assert!(matches!(bench.refused(tell(name)), Refused::Invalid { .. }), "{name:?}");
    }
    assert!(matches!(bench.refused(tell(&"x".repeat(129))), Refused::TooLarge { .. }));
    let large = json!("x".repeat(limits::PAYLOAD_BYTES));
    assert!(matches!(bench.refused(tell_with("x", None, None, large)), Refused::TooLarge { .. }));
    assert!(matches!(bench.refused(tell_with("x", None, Some(" "), json!(1))), Refused::Invalid { .. }));
}

#[test]
fn what_a_run_takes_on_of_a_payload_is_bounded() {
    let long = "é".repeat(limits::TEXT_BYTES * 5 / 8);
    let names =
        ["noted", "session_run_started", "session_run_finished", "run_reopened", "revision_requested", "step_failed"];
    for name in names {
        let mut bench = at(RunStatus::Running);
        let payload = json!({ "why_next_step": long, "feedback": long, "error": long });
        bench.does(tell_with(name, None, Some("a"), payload));
        let (why, error) = (bench.run().why_next_step.clone(), bench.run().last_error.clone());
        for text in [why, error].into_iter().flatten() {
            assert!(text.len() <= limits::TEXT_BYTES, "{name}: {}", text.len());
        }
    }
}

#[test]
fn an_event_that_changes_nothing_but_the_log_carries_no_record() {
    let mut bench = at(RunStatus::Running);
    let step = bench.ask(tell_with("deployed", None, None, json!({ "to": "prod" }))).unwrap();
    assert_eq!((step.records.len(), step.records[0].run.is_some()), (1, false));
    assert_eq!(step.reply, Reply::Told { seq: bench.state.seq() });
    assert!(step.parts.is_empty());
    let step = bench.tell("run_paused");
    assert_eq!(step.records[0].run.as_deref(), Some(bench.run()));
}
