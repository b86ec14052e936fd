//! Todo lists, plans and what comes next.

use super::*;
use crate::run::command::Driven;

fn todo(id: Option<&str>, content: &str, status: StepStatus) -> Todo {
    Todo { id: id.map(str::to_owned), content: content.into(), status }
}

fn sync(todos: Vec<Todo>, replace: bool) -> Command {
    Command::SyncTodos(SyncTodos { todos, replace, source_session_id: None, source_run_id: None })
}

fn drive(bench: &mut Bench) -> Driven {
    let Reply::Driven(driven) = bench.does(Command::Drive { dry_run: false }) else { panic!("a choice is answered") };
    *driven
}

fn steps(run: &Run) -> Vec<(&str, &str, StepStatus)> {
    run.steps.iter().map(|step| (&*step.step_id, &*step.title, step.status)).collect()
}

fn set(bench: &mut Bench, step: &str, status: &str) {
    bench.does(tell_with("noted", None, Some(step), json!({ "step_status": status })));
}

#[test]
fn a_todo_list_becomes_the_plan() {
    let mut bench = Bench::planned(&["old"]);
    let todos = vec![
        todo(None, " first ", StepStatus::Done),
        todo(Some("mine"), "second", StepStatus::InProgress),
        todo(None, "  ", StepStatus::Pending),
        todo(Some(" "), "third", StepStatus::Pending),
    ];
    let step = bench.ask(sync(todos, true)).unwrap();
    let want = [
        ("todo-1", "first", StepStatus::Done),
        ("mine", "second", StepStatus::InProgress),
        ("todo-4", "third", StepStatus::Pending),
    ];
    assert_eq!(steps(bench.run()), want);
    assert_eq!((bench.run().status, bench.run().started_at), (RunStatus::Running, Some(NOW)));
    assert_eq!(bench.run().why_next_step.as_deref(), Some("`mine` is next on the list: second"));
    assert_eq!((step.records.len(), &*step.records[0].event.name()), (1, "todo_synced"));
}

#[test]
fn a_todo_list_that_does_not_replace_changes_what_it_names_and_adds_the_rest() {
    let mut bench = Bench::planned(&["a", "b"]);
    let todos = vec![todo(Some("b"), "again", StepStatus::Runnable), todo(Some("c"), "new", StepStatus::Pending)];
    bench.does(sync(todos, false));
    let want =
        [("a", "do a", StepStatus::Pending), ("b", "again", StepStatus::Runnable), ("c", "new", StepStatus::Pending)];
    assert_eq!(steps(bench.run()), want);
    assert_eq!(bench.run().status, RunStatus::Planning);
}

#[test]
fn a_run_at_work_stays_at_work_whatever_becomes_of_its_plan() {
    let mut bench = Bench::planned(&["a"]);
    bench.tell("plan_approved");
    bench.does(sync(vec![todo(None, "new", StepStatus::Pending)], true));
    assert_eq!(bench.run().status, RunStatus::Running);
}

#[test]
fn a_list_that_is_done_ends_the_run_unless_tasks_are_left() {
    let done = || sync(vec![todo(None, "x", StepStatus::Done)], true);
    let mut bench = Bench::new();
    bench.does(done());
    assert_eq!((bench.run().status, bench.run().ended_at), (RunStatus::Completed, Some(NOW)));
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    bench.does(done());
    assert_eq!((bench.run().status, bench.run().ended_at), (RunStatus::Planning, None));
    // An empty list says nothing about the run.
    let mut bench = Bench::new();
    bench.does(sync(Vec::new(), true));
    assert_eq!(bench.run().status, RunStatus::Queued);
}

#[test]
fn a_list_wakes_no_run_that_was_stopped_that_waits_for_a_person_or_that_is_over() {
    for (word, status) in [
        ("run_paused", RunStatus::Paused),
        ("planning_started", RunStatus::AwaitingApproval),
        ("run_cancelled", RunStatus::Cancelled),
    ] {
        for listed in [StepStatus::InProgress, StepStatus::Done, StepStatus::Pending] {
            let mut bench = Bench::new();
            bench.tell(word);
            bench.does(sync(vec![todo(None, "x", listed)], true));
            assert_eq!(bench.run().status, status, "{listed:?}");
        }
    }
}

#[test]
fn a_list_is_checked_as_a_plan_is() {
    let mut bench = Bench::new();
    let one = |id: &str, content: &str| sync(vec![todo(Some(id), content, StepStatus::Pending)], true);
    let twice = sync(vec![todo(Some("a"), "x", StepStatus::Pending), todo(Some("a"), "y", StepStatus::Pending)], true);
    let many = sync(vec![todo(None, "x", StepStatus::Pending); limits::TODOS + 1], true);
    for bad in [one("a/b", "x"), one("a", &"x".repeat(limits::TITLE_BYTES + 1)), twice, many] {
        assert!(matches!(bench.refused(bad), Refused::Invalid { .. } | Refused::TooLarge { .. }));
    }
    // What is there counts too.
    bench.does(sync(vec![todo(None, "x", StepStatus::Pending); limits::TODOS], true));
    let more = sync(vec![todo(Some("more"), "x", StepStatus::Pending)], false);
    assert_eq!(bench.refused(more), Refused::Full { what: "steps", limit: limits::STEPS });
    let sources = [(Some("x".repeat(129)), None), (None, Some("\n".to_owned()))];
    for (source_session_id, source_run_id) in sources {
        let bad = SyncTodos { todos: Vec::new(), replace: false, source_session_id, source_run_id };
        bench.refused(Command::SyncTodos(bad));
    }
}

#[test]
fn words_of_todo_lists_mean_what_they_mean_elsewhere() {
    for (words, status) in [
        ("in_progress in-progress WORKING doing active", StepStatus::InProgress),
        ("runnable ready", StepStatus::Runnable),
        ("done completed Complete", StepStatus::Done),
        ("blocked", StepStatus::Blocked),
        ("failed error", StepStatus::Failed),
        ("pending todo whatever", StepStatus::Pending),
    ] {
        for word in words.split(' ') {
            assert_eq!(super::super::plan::todo_status(&format!(" {word} ")), status, "{word}");
        }
    }
}

#[test]
fn the_driver_goes_on_with_what_is_under_way() {
    let mut bench = Bench::planned(&["a", "b"]);
    set(&mut bench, "b", "in_progress");
    let driven = drive(&mut bench);
    assert_eq!((driven.selected_step_id.as_deref(), driven.target_status), (Some("b"), RunStatus::Running));
    let records = bench.log.len();
    assert_eq!(drive(&mut bench).why_next_step, driven.why_next_step);
    assert_eq!(bench.log.len(), records, "what was said already is no event");
}

#[test]
fn the_driver_prefers_what_is_ready_to_what_is_earlier() {
    let mut bench = Bench::planned(&["a", "b"]);
    set(&mut bench, "b", "runnable");
    let driven = drive(&mut bench);
    assert_eq!((driven.selected_step_id.as_deref(), driven.run.status), (Some("b"), RunStatus::Running));
    assert_eq!(driven.run.why_next_step.as_deref(), Some("step `b` is ready: do b"));
    assert_eq!(driven.run.steps[1].status, StepStatus::InProgress);
    let record = bench.log.last().unwrap();
    let Event::NextStepSelected { payload } = &record.event else { panic!("{record:?}") };
    assert_eq!((&*record.event.name(), record.step_id.as_deref()), ("meta_next_step_selected", Some("b")));
    assert_eq!(payload["why_next_step"], "step `b` is ready: do b");
    assert_eq!(payload["selected_step_previous_status"], "runnable");
}

#[test]
fn the_driver_leaves_alone_what_has_ended_or_waits() {
    for (word, why) in [
        ("run_paused", "the run is paused"),
        ("planning_started", "the plan waits for approval"),
        ("run_cancelled", "the run is cancelled"),
    ] {
        let mut bench = Bench::planned(&["a"]);
        bench.tell(word);
        let status = bench.run().status;
        let driven = drive(&mut bench);
        assert_eq!((driven.selected_step_id, driven.selected_task_id), (None, None));
        assert_eq!((driven.target_status, &*driven.why_next_step), (status, why));
        assert_eq!((bench.run().status, bench.run().steps[0].status), (status, StepStatus::Pending));
        if status.is_terminal() {
            assert_eq!(bench.log.len(), 2, "nothing is written about a run that is over");
        }
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let mut bench = Bench::planned(&["a"]);
    let step = bench.ask(Command::Drive { dry_run: true }).unwrap();
    assert!(step.records.is_empty() && step.parts.is_empty());
    let Reply::Driven(driven) = step.reply else { panic!() };
    assert_eq!((driven.selected_step_id.as_deref(), driven.target_status), (Some("a"), RunStatus::Running));
    assert_eq!((driven.run.revision, driven.run.status, driven.run.why_next_step), (1, RunStatus::Queued, None));
}

#[test]
fn a_run_without_anything_to_do_is_blocked() {
    let mut bench = Bench::new();
    let driven = drive(&mut bench);
    assert_eq!((driven.target_status, bench.run().status), (RunStatus::Blocked, RunStatus::Blocked));
    assert_eq!(driven.why_next_step, "there is nothing to do: no steps and no tasks");
}

#[test]
fn the_driver_considers_tasks_beside_steps() {
    let mut bench = Bench::planned(&["a"]);
    bench.create(vec![NewTask { max_attempts: Some(2), ..new_task("t") }]);
    // What can be claimed goes before what is only planned.
    let driven = drive(&mut bench);
    assert_eq!((driven.selected_task_id.as_deref(), driven.selected_step_id), (Some("t"), None));
    assert_eq!(bench.task("t").status, TaskStatus::Pending, "who does it is decided by a claim");
    let lease_token = Some(bench.token(claim("x")));
    assert_eq!(drive(&mut bench).why_next_step, "task `t` (build) is in progress");
    bench.say(Transition { lease_token, ..transition("t", Action::Fail) });
    // The plan goes on while a task waits for its time,
    assert_eq!(drive(&mut bench).selected_step_id.as_deref(), Some("a"));
    set(&mut bench, "a", "done");
    // and then that is waited for.
    let driven = drive(&mut bench);
    assert_eq!((driven.selected_task_id, driven.target_status), (None, RunStatus::Running));
    assert!(driven.why_next_step.starts_with("a task is tried again at 2026-"), "{}", driven.why_next_step);
    let lease_token = {
        bench.pass(RETRY_BASE_MS);
        Some(bench.token(claim("x")))
    };
    bench.say(Transition { lease_token, ..transition("t", Action::Complete) });
    let driven = drive(&mut bench);
    assert_eq!((driven.target_status, &*driven.why_next_step), (RunStatus::Completed, "everything is done"));
    assert_eq!(bench.run().ended_at, Some(bench.now));
}

#[test]
fn a_run_that_cannot_go_on_says_what_keeps_it() {
    let why = |bench: &mut Bench| {
        let driven = drive(bench);
        assert_eq!(driven.target_status, RunStatus::Blocked);
        driven.why_next_step
    };
    let mut bench = Bench::planned(&["a", "b"]);
    set(&mut bench, "a", "blocked");
    set(&mut bench, "b", "done");
    assert_eq!(why(&mut bench), "step `a` is blocked");
    set(&mut bench, "b", "failed");
    assert_eq!(why(&mut bench), "step `b` failed");

    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::Blocked);
    bench.create(vec![after_tasks("next", &["t"])]);
    assert_eq!(why(&mut bench), "task `t` is blocked");
    bench.say(transition("t", Action::Fail));
    assert_eq!(why(&mut bench), "task `next` waits for `t`, which is failed");
    bench.say(transition("t", Action::Status(TaskStatus::Cancelled)));
    assert_eq!(why(&mut bench), "task `next` waits for `t`, which is cancelled");
    bench.say(transition("next", Action::Status(TaskStatus::Cancelled)));
    assert_eq!(drive(&mut bench).target_status, RunStatus::Completed, "nothing is left to be done");
}

#[test]
fn a_plan_is_made_of_the_lines_of_an_objective() {
    let planned = |objective: &str| {
        let mut bench = Bench::with(NewRun { objective: objective.into(), ..NewRun::default() });
        bench.tell("planning_started");
        bench.run().steps.iter().map(|step| (step.step_id.clone(), step.title.clone())).collect::<Vec<_>>()
    };
    let lines = "- read it all\n  2. [ ] write a report\nshort\n* # check it twice\n\n";
    let titles = ["read it all", "write a report", "check it twice"];
    let want: Vec<_> = (1..).zip(titles).map(|(n, title)| (format!("step-{n}"), title.to_owned())).collect();
    assert_eq!(planned(lines), want);
    assert_eq!(planned(&"- line after line\n".repeat(9)).len(), 6);
    assert_eq!(planned("do it").len(), 3, "there is always a plan");
    let long = "é".repeat(limits::TITLE_BYTES);
    assert_eq!(planned(&long)[0].1.len(), limits::TITLE_BYTES);
}
