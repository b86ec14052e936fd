use super::*;
use crate::run::{command::RestoreDue, event::RollbackBlocked};

/// What one change does to files: their paths, what they were, and what they are.
type Files<'a> = &'a [(&'a str, Option<&'a str>, Option<&'a str>)];

/// A paused run in which these were changed; and their names, oldest first.
fn after_changes(changes: &[Files<'_>]) -> (Bench, Vec<String>) {
    let mut bench = Bench::new();
    let journal = (1..).zip(changes).map(|(seq, files)| changed(thread(1), seq, files)).collect();
    bench.does(Command::Journal(journal));
    bench.tell("run_paused");
    let names = bench.state.mutations().map(|mutation| mutation.event_id.clone()).collect();
    (bench, names)
}

fn asked(event_ids: &[String]) -> AskRollback {
    AskRollback {
        event_ids: event_ids.to_vec(),
        confirm: " rollback ".into(),
        policy_ack: Some("allow_rollback_execution".into()),
    }
}

fn begin(bench: &mut Bench, event_ids: &[String]) -> RestoreDue {
    let Reply::Rollback(_) = bench.does(Command::Rollback(asked(event_ids))) else { panic!("it is begun") };
    bench.state.owed().restore.unwrap()
}

fn blocked(bench: &mut Bench, asked: AskRollback) -> RollbackBlocked {
    let before = bench.run().clone();
    let Reply::RollbackBlocked(blocked) = bench.does(Command::Rollback(asked)) else { panic!("it is refused") };
    // It is on record, and nothing else has changed.
    let run = bench.run();
    assert_eq!(
        (run.status, run.revision, run.last_event_seq),
        (before.status, before.revision, before.last_event_seq + 1)
    );
    assert_eq!(bench.state.owed().restore, None);
    assert_eq!(bench.names().last().unwrap(), "rollback_execution_blocked");
    blocked
}

fn report(bench: &mut Bench, due: &RestoreDue, refused: Option<&str>) -> Step {
    let report = RestoreReport { operation: due.operation, refused: refused.map(str::to_owned) };
    bench.ask(Command::Restored(report)).unwrap()
}

fn files(due: &RestoreDue) -> Vec<(&str, Option<&str>, Option<&str>)> {
    due.files
        .iter()
        .map(|file| {
            let [before, after] = [&file.before, &file.after].map(|content| content.as_ref().map(|it| &*it.sha256));
            (&*file.path, before, after)
        })
        .collect()
}

#[test]
fn a_rollback_has_to_be_confirmed_and_to_name_something() {
    let (mut bench, names) = after_changes(&[&[("a", None, Some("x"))]]);
    let fine = asked(&names);
    let bad = [
        AskRollback { confirm: String::new(), ..fine.clone() },
        AskRollback { confirm: "Rollback".into(), ..fine.clone() },
        AskRollback { event_ids: vec![], ..fine.clone() },
        AskRollback { event_ids: vec![names[0].clone(), format!(" {}", names[0])], ..fine.clone() },
        AskRollback { event_ids: vec![" ".into()], ..fine.clone() },
        AskRollback { event_ids: (0..=limits::ROLLBACK).map(|n| n.to_string()).collect(), ..fine },
    ];
    for asked in bad {
        let why = bench.refused(Command::Rollback(asked.clone()));
        assert!(matches!(why, Refused::Invalid { .. }), "{asked:?}");
    }
    let long = AskRollback { event_ids: vec!["x".repeat(limits::ID_BYTES + 1)], ..asked(&names) };
    assert!(matches!(bench.refused(Command::Rollback(long)), Refused::TooLarge { .. }));
}

#[test]
fn a_rollback_is_acknowledged_in_these_words() {
    let (mut bench, names) = after_changes(&[&[("a", None, Some("x"))]]);
    for policy_ack in [None, Some(String::new()), Some("yes".into()), Some("ALLOW_ROLLBACK_EXECUTION".into())] {
        let why = blocked(&mut bench, AskRollback { policy_ack, ..asked(&names) });
        assert_eq!(why.reason, "`policy_ack` must be `allow_rollback_execution`");
    }
}

#[test]
fn files_of_a_run_that_works_are_not_put_back() {
    for status in RunStatus::ALL {
        let (mut bench, names) = after_changes(&[&[("a", None, Some("x"))]]);
        if status == RunStatus::Queued {
            continue;
        }
        bench.does(tell_with("moved", Some(status), None, json!(null)));
        if may_roll_back(status) {
            begin(&mut bench, &names);
        } else {
            let why = blocked(&mut bench, asked(&names)).reason;
            assert_eq!(why, format!("a run that is {} cannot be rolled back: pause it", status.as_str()));
        }
        assert_eq!(bench.run().status, status, "whatever came of it");
    }
    let may = RunStatus::ALL.into_iter().filter(|status| may_roll_back(*status)).count();
    assert_eq!(may, 6);
}

#[test]
fn what_is_not_a_change_of_files_cannot_be_taken_back() {
    let (mut bench, mut names) = after_changes(&[&[("a", None, Some("x"))]]);
    let unknown = ["evt_1".to_owned(), "evt_999".into(), "nothing".into(), "evt_02".into()];
    names.extend(unknown.clone());
    let why = blocked(&mut bench, asked(&names));
    assert_eq!((why.missing_event_ids, why.event_ids), (unknown.to_vec(), names));
}

#[test]
fn a_rollback_happens_once() {
    let (mut bench, names) = after_changes(&[&[("a", None, Some("x")), ("b", Some("1"), Some("2"))]]);
    let began = bench.now;
    let due = begin(&mut bench, &names);
    assert_eq!((&*due.workspace, due.run), ("/w", bench.run().id));
    assert_eq!(files(&due), [("a", None, Some("x")), ("b", Some("1"), Some("2"))]);
    // While it lasts there is no other, and nobody gets work.
    assert_eq!(bench.refused(Command::Rollback(asked(&names))), Refused::RollbackOpen);
    bench.tell("run_resumed");
    bench.create(vec![new_task("t")]);
    assert_eq!(bench.claim(claim("a")).why.as_deref(), Some("files of the run are being put back"));
    bench.pass(5);
    bench.tell("run_paused");
    assert_eq!(bench.state.owed().restore.as_ref(), Some(&due), "the same for every attempt");
    assert_eq!(bench.state.owes_since(), Some(began), "whatever else happens meanwhile");
    // A report about something else counts for nothing.
    let other = RestoreDue { operation: OperationId::new(Uuid::from_u128(99)), ..due.clone() };
    assert!(report(&mut bench, &other, None).records.is_empty());
    let step = report(&mut bench, &due, None);
    let Event::RollbackApplied { files, .. } = &step.records[0].event else { panic!("{step:?}") };
    assert_eq!((*files, &*step.records[0].by), (2, "runtime"));
    assert!(report(&mut bench, &due, None).records.is_empty(), "nor does one that comes again");
    assert_eq!(bench.state.mutations().next().unwrap().rolled_back_seq, Some(bench.state.seq()));
    assert_eq!((bench.state.owed().restore, bench.state.owes_since()), (None, None));
    let why = blocked(&mut bench, asked(&names)).reason;
    assert_eq!(why, format!("`{}` was taken back before", names[0]));
    bench.tell("run_resumed");
    assert_eq!(bench.gets(claim("a")).as_deref(), Some("t"));
}

#[test]
fn files_that_are_not_what_they_became_block_it_and_it_may_be_asked_for_again() {
    let (mut bench, names) = after_changes(&[&[("a", None, Some("x"))]]);
    let due = begin(&mut bench, &names);
    let revision = bench.run().revision;
    let step = report(&mut bench, &due, Some("`a` was changed since"));
    let Event::RollbackBlocked(blocked) = &step.records[0].event else { panic!("{step:?}") };
    assert_eq!((&*blocked.reason, &blocked.event_ids), ("`a` was changed since", &names));
    assert_eq!((bench.run().revision, bench.run().status), (revision, RunStatus::Paused));
    assert_eq!(bench.state.mutations().next().unwrap().rolled_back_seq, None);
    let again = begin(&mut bench, &names);
    assert_ne!(again.operation, due.operation);
}

#[test]
fn changes_of_one_file_are_taken_back_as_one() {
    let changes: [Files<'_>; 3] = [
        &[("a", Some("1"), Some("2")), ("b", None, Some("x"))],
        &[("a", Some("2"), Some("3"))],
        &[("a", Some("3"), None), ("b", Some("x"), None)],
    ];
    let (mut bench, names) = after_changes(&changes);
    // In whatever order they are named. What is as it was is looked at all the same: something else may be there.
    let due = begin(&mut bench, &[names[1].clone(), names[0].clone(), names[2].clone()]);
    assert_eq!(files(&due), [("a", Some("1"), None), ("b", None, None)]);
    let newest_first: Vec<_> = names.iter().rev().cloned().collect();
    assert_eq!(bench.kept().rest.rollback.unwrap().event_ids, newest_first);
    report(&mut bench, &due, None);
    assert!(bench.state.mutations().all(|mutation| mutation.rolled_back_seq.is_some()));
}

#[test]
fn a_chain_with_a_link_missing_is_not_taken_back() {
    let changes: [Files<'_>; 3] =
        [&[("a", Some("1"), Some("2"))], &[("a", Some("2"), Some("3"))], &[("a", Some("3"), Some("4"))]];
    let (mut bench, names) = after_changes(&changes);
    let why = blocked(&mut bench, asked(&[names[0].clone(), names[2].clone()])).reason;
    assert_eq!(why, "`a` was changed in between by something else");
    begin(&mut bench, &names[1..]);
}

#[test]
fn nothing_is_taken_back_across_workspaces_or_where_nothing_is_left_to_do() {
    let mut bench = Bench::new();
    let mut other = changed(thread(1), 2, &[("b", None, Some("x"))]);
    other.mutation.as_mut().unwrap().workspace = "/v".into();
    let none = changed(thread(1), 3, &[("c", Some("1"), Some("1"))]);
    // A record without files is none.
    let empty = changed(thread(1), 4, &[]);
    bench.does(Command::Journal(vec![changed(thread(1), 1, &[("a", None, Some("x"))]), other, none, empty]));
    bench.tell("run_paused");
    let names: Vec<_> = bench.state.mutations().map(|mutation| mutation.event_id.clone()).collect();
    assert_eq!(names.len(), 3);
    let why = blocked(&mut bench, asked(&names[..2])).reason;
    assert_eq!(why, "the changes were made in several workspaces: take them back one by one");
    assert_eq!(blocked(&mut bench, asked(&names[2..])).reason, "there is nothing to be taken back");
}

#[test]
fn a_preview_says_what_would_be_done_newest_first() {
    let changes: [Files<'_>; 2] =
        [&[("a", None, Some("x"))], &[("b", Some("1"), None), ("c", Some("1"), Some("2")), ("d", None, None)]];
    let (mut bench, names) = after_changes(&changes);
    let all = preview(bench.run().status, bench.state.mutations());
    assert_eq!((all.executable, all.step_count, all.executable_step_count), (true, 2, 2));
    assert_eq!(all.steps.iter().map(|step| &step.event_id).collect::<Vec<_>>(), [&names[1], &names[0]]);
    let counted = serde_json::to_value(&all.by_action).unwrap();
    let want = json!({
        "delete_created_file": 1,
        "recreate_deleted_file": 1,
        "restore_previous_contents": 1,
        "no_action": 1,
    });
    assert_eq!(counted, want);
    let due = begin(&mut bench, &names[1..]);
    report(&mut bench, &due, None);
    let rest = preview(bench.run().status, bench.state.mutations());
    assert_eq!((rest.executable, rest.executable_step_count), (true, 1), "what is left can be");
    assert!(!preview(RunStatus::Paused, [].into_iter()).executable);
}

#[test]
fn what_is_being_taken_back_is_not_forgotten_meanwhile() {
    let (mut bench, names) = after_changes(&[&[("a", None, Some("x"))]]);
    let due = begin(&mut bench, &names);
    let more = (0..limits::MUTATIONS as u64).map(|n| changed(thread(2), n + 1, &[("b", None, Some("x"))]));
    bench.does(Command::Journal(more.collect()));
    assert_eq!(bench.state.owed().restore.as_ref(), Some(&due));
    report(&mut bench, &due, None);
    bench.does(Command::Journal(vec![changed(thread(2), 20_000, &[("b", None, Some("x"))])]));
    assert_eq!(bench.state.mutations().count(), limits::MUTATIONS);
}
