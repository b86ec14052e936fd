//! A run as a whole: made, replaced, bound to a place, deleted.

use super::*;
use crate::run::command::{LeaseReply, Replace};

fn workspace(path: &str, lease_epoch: u64) -> RunWorkspace {
    RunWorkspace { workspace_id: "w".into(), canonical_path: path.into(), lease_epoch }
}

fn new_run() -> NewRun {
    NewRun { objective: "ship it".into(), ..NewRun::default() }
}

fn bound() -> Bench {
    Bench::with(NewRun { workspace: Some(workspace("/a", 0)), ..new_run() })
}

/// The whole record as the caller sees it.
fn seen(bench: &Bench) -> Replace {
    let run = bench.run().clone();
    let new = NewRun {
        run_type: Some(run.run_type),
        source_client: run.source_client,
        source_metadata: run.source_metadata,
        model_provider: run.model_provider,
        model_id: run.model_id,
        mcp_servers: run.mcp_servers,
        objective: run.objective,
        workspace: Some(run.workspace),
        steps: run.steps,
    };
    Replace {
        new,
        status: run.status,
        why_next_step: run.why_next_step,
        last_error: run.last_error,
        revision: Some(run.revision),
        tasks: None,
    }
}

fn put(replace: Replace) -> Command {
    Command::Replace(Box::new(replace))
}

#[test]
fn a_run_begins_with_an_event() {
    let mut bench = Bench::with(NewRun {
        run_type: Some("workflow".into()),
        source_metadata: Some(json!({ "k": 1 })),
        workspace: Some(workspace("/a", 77)),
        ..new_run()
    });
    let run = bench.run();
    assert_eq!((run.status, run.revision, run.last_event_seq), (RunStatus::Queued, 1, 1));
    assert_eq!((&*run.run_type, run.created_at, run.started_at, run.ended_at), ("workflow", NOW, None, None));
    assert_eq!(run.workspace.lease_epoch, 1, "an epoch is counted here");
    assert_eq!((bench.log[0].run.as_deref(), &*bench.names()[0]), (Some(bench.run()), "context.run.created"));
    assert!(bench.replayed.apply(&bench.log[0].clone()).is_err(), "a run is created once");
    assert_eq!(Bench::new().run().run_type, "interactive");
}

#[test]
fn what_is_said_of_a_new_run_is_checked() {
    let many: Vec<String> = (0..=limits::NAMES).map(|n| n.to_string()).collect();
    let step = |id: &str| RunStep { step_id: id.into(), title: "x".into(), status: StepStatus::Pending };
    let bad = [
        NewRun { objective: " ".into(), ..new_run() },
        NewRun { objective: "x".repeat(limits::OBJECTIVE_BYTES + 1), ..new_run() },
        NewRun { run_type: Some(" ".into()), ..new_run() },
        NewRun { model_id: Some("x".repeat(129)), ..new_run() },
        NewRun { mcp_servers: many, ..new_run() },
        NewRun { source_metadata: Some(json!("x".repeat(limits::PAYLOAD_BYTES))), ..new_run() },
        NewRun { workspace: Some(workspace("a\nb", 0)), ..new_run() },
        NewRun { workspace: Some(workspace("  ", 0)), ..new_run() },
        NewRun { workspace: Some(workspace(&"x".repeat(5000), 0)), ..new_run() },
        NewRun { steps: vec![step("a"), step("a")], ..new_run() },
        NewRun { steps: vec![step("a b")], ..new_run() },
        NewRun { steps: (0..=limits::STEPS).map(|n| step(&format!("s{n}"))).collect(), ..new_run() },
    ];
    let ids = Counter(AtomicU64::new(1));
    for new in bad {
        let cx = Cx { now: NOW, ids: &ids };
        RunState::create(RunId::new(ids.mint()), TenantId::DEFAULT, new, cx).unwrap_err();
    }
}

#[test]
fn a_null_is_no_metadata() {
    let bench = Bench::with(NewRun { source_metadata: Some(json!(null)), ..new_run() });
    assert_eq!(bench.run().source_metadata, None);
}

#[test]
fn nobody_replaces_a_run_that_he_has_not_seen() {
    let mut bench = Bench::new();
    let replace = Replace { revision: None, last_error: Some("x".into()), ..seen(&bench) };
    assert_eq!(bench.refused(put(replace.clone())), Refused::PreconditionRequired);
    bench.create(vec![new_task("t")]);
    let stale = Refused::Precondition { expected: 1, head: 2 };
    assert_eq!(bench.refused(put(Replace { revision: Some(1), ..replace.clone() })), stale);
    let request = |if_match| Request { command: put(replace.clone()), if_match: Some(if_match) };
    assert_eq!(bench.request(request(1)).unwrap_err(), stale);
    let Reply::Run(run) = bench.request(request(2)).unwrap().reply else { panic!() };
    assert_eq!((run.last_error.as_deref(), run.revision), (Some("x"), 3));
    assert!(bench.request(request(2)).is_err(), "what was seen then is not what is there now");
}

#[test]
fn a_precondition_holds_for_every_command() {
    let mut bench = Bench::new();
    for command in [tell("x"), Command::Claim(claim("a")), Command::Tick, Command::Delete] {
        let refused = bench.request(Request { command, if_match: Some(7) }).unwrap_err();
        assert_eq!(refused, Refused::Precondition { expected: 7, head: 1 });
    }
}

#[test]
fn a_replacement_takes_what_it_may_and_leaves_the_rest() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let steps = vec![RunStep { step_id: "s".into(), title: "new".into(), status: StepStatus::Done }];
    let replace = Replace { status: RunStatus::Running, ..seen(&bench) };
    let new = NewRun { objective: "another".into(), steps: steps.clone(), ..replace.new };
    bench.pass(5);
    let Reply::Run(run) = bench.does(put(Replace { new, ..replace })) else { panic!() };
    assert_eq!((&*run.objective, &run.steps, run.status), ("another", &steps, RunStatus::Running));
    assert_eq!((run.started_at, run.created_at), (Some(bench.now), NOW));
    assert_eq!((run.task_counts.pending, bench.state.tasks().count()), (1, 1));
    // As it is: nothing happens.
    let records = bench.log.len();
    bench.does(put(seen(&bench)));
    assert_eq!(bench.log.len(), records);
}

#[test]
fn a_replacement_does_not_revive_a_run() {
    let mut bench = Bench::new();
    bench.tell("run_cancelled");
    let replace = Replace { status: RunStatus::Running, ..seen(&bench) };
    let (from, to) = (RunStatus::Cancelled, RunStatus::Running);
    assert_eq!(bench.refused(put(replace)), Refused::RunTransition { from, to });
    bench.does(put(Replace { last_error: Some("why".into()), ..seen(&bench) }));
    assert_eq!(bench.run().status, RunStatus::Cancelled);
}

#[test]
fn tasks_are_not_changed_by_replacing_their_run() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::InProgress);
    let tasks: Vec<Task> = bench.state.tasks().cloned().collect();
    let with = |tasks: Vec<Task>| Replace { tasks: Some(tasks), last_error: Some("x".into()), ..seen(&bench) };
    let done = Task { status: TaskStatus::Done, lease: None, ..tasks[0].clone() };
    let (bad, good) = ([with(Vec::new()), with(vec![done])], with(tasks.clone()));
    for replace in bad {
        assert!(matches!(bench.refused(put(replace)), Refused::Invalid { .. }));
    }
    bench.does(put(good));
    assert_eq!(bench.task("t"), &tasks[0]);
}

#[test]
fn heartbeats_ledgers_and_checkpoints_do_not_stop_who_replaces_a_run() {
    let mut bench = Bench::new();
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    let revision = bench.run().revision;
    bench.say(Transition { lease_token, ..transition("t", Action::Heartbeat) });
    bench.does(Command::Journal(vec![changed(thread(1), 1, &[("a", None, Some("x"))])]));
    let Reply::Checkpoint(checkpoint) = bench.does(Command::SaveCheckpoint { reason: None }) else { panic!() };
    bench.does(Command::DeleteCheckpoint(checkpoint.id));
    bench.does(Command::Rollback(AskRollback {
        event_ids: vec!["evt_1".into()],
        confirm: "rollback".into(),
        policy_ack: None,
    }));
    assert_eq!(bench.run().revision, revision);
    assert_eq!(bench.state.seq(), 3 + 6);
    bench.does(put(Replace { revision: Some(revision), last_error: Some("x".into()), ..seen(&bench) }));
}

#[test]
fn the_first_path_is_adopted_and_another_one_stops_the_run() {
    let mut bench = Bench::new();
    let lease = |path: &str| ValidateLease { current_path: path.into(), ..ValidateLease::default() };
    let says = |bench: &mut Bench, asked| {
        let Reply::Lease(reply) = bench.does(Command::ValidateLease(asked)) else { panic!("a lease is answered") };
        reply
    };
    let fine =
        LeaseReply { ok: true, mismatch: false, status: RunStatus::Queued, expected_path: "/a".into(), lease_epoch: 1 };
    assert_eq!(says(&mut bench, lease("/a")), fine);
    assert_eq!(bench.names()[1..], ["workspace_validated"]);
    assert_eq!(says(&mut bench, ValidateLease { lease_epoch: Some(1), ..lease("/a") }), fine);
    assert_eq!(bench.log.len(), 2, "what is so already is no event");
    let mismatch = says(&mut bench, ValidateLease { phase: Some("begin".into()), ..lease("/a/") });
    let paused = LeaseReply { ok: false, mismatch: true, status: RunStatus::Paused, ..fine };
    assert_eq!(mismatch, paused);
    let record = bench.log.last().unwrap();
    let Event::WorkspaceMismatch { payload } = &record.event else { panic!("{record:?}") };
    assert_eq!(*payload, json!({ "phase": "begin", "expected_path": "/a", "actual_path": "/a/" }));
    // A run that is over is not stopped; it is on record all the same.
    bench.tell("run_cancelled");
    assert_eq!(says(&mut bench, lease("/b")).status, RunStatus::Cancelled);
    assert_eq!(bench.names().last().unwrap(), "workspace_mismatch");
    for path in ["", "  ", "a\tb", &"x".repeat(4097)] {
        bench.refused(Command::ValidateLease(lease(path)));
    }
}

#[test]
fn binding_a_run_anew_voids_every_lease_and_every_writer_has_to_know() {
    let mut bench = bound();
    bench.create(vec![new_task("t"), new_task("u")]);
    let lease_token = Some(bench.token(claim("old")));
    let rebind = |path: &str, lease_epoch| {
        Command::ValidateLease(ValidateLease {
            current_path: path.into(),
            rebind: true,
            lease_epoch,
            ..ValidateLease::default()
        })
    };
    let old = Refused::Epoch { presented: Some(7), current: 1 };
    assert_eq!(bench.refused(rebind("/b", Some(7))), old);
    bench.does(rebind("/b", Some(1)));
    assert_eq!(bench.run().workspace, workspace("/b", 2));
    assert_eq!(bench.names()[4..], ["context.task.requeued", "workspace_rebound"]);
    assert_eq!(bench.task("t").last_error.as_deref(), Some("the run was bound to another workspace"));
    let late = Transition { lease_token, ..transition("t", Action::Complete) };
    assert!(matches!(bench.cannot(late), Refused::TaskTransition { .. }));
    // Whoever does not say in which workspace he works works in the old one.
    assert_eq!(bench.refused(Command::Claim(claim("a"))), Refused::Epoch { presented: None, current: 2 });
    let asks = |lease_epoch| Claim { lease_epoch: Some(lease_epoch), ..claim("a") };
    assert_eq!(bench.refused(Command::Claim(asks(1))), Refused::Epoch { presented: Some(1), current: 2 });
    let task = bench.claim(asks(2)).task.unwrap();
    assert_eq!((&*task.id, task.lease.unwrap().lease_epoch), ("t", 2));
    let stale = ValidateLease { current_path: "/b".into(), lease_epoch: Some(1), ..ValidateLease::default() };
    assert_eq!(bench.refused(Command::ValidateLease(stale)), Refused::Epoch { presented: Some(1), current: 2 });
    assert_eq!(bench.refused(rebind("/c", None)), Refused::Epoch { presented: None, current: 2 });
}

#[test]
fn a_replacement_binds_anew_under_the_epoch_that_it_names() {
    let mut bench = bound();
    bench.bring("t", TaskStatus::InProgress);
    let moved = |bench: &Bench, path: &str, epoch| {
        let replace = seen(bench);
        put(Replace { new: NewRun { workspace: Some(workspace(path, epoch)), ..replace.new }, ..replace })
    };
    let wrong = moved(&bench, "/b", 0);
    assert_eq!(bench.refused(wrong), Refused::Epoch { presented: Some(0), current: 1 });
    let right = moved(&bench, "/b", 1);
    let Reply::Run(run) = bench.does(right) else { panic!() };
    assert_eq!((run.workspace.clone(), run.task_counts.in_progress), (workspace("/b", 2), 0));
    assert_eq!(bench.task("t").status, TaskStatus::Runnable);
    // Otherwise leases would be given that no later binding is known to void.
    let none = moved(&bench, "", 2);
    assert!(matches!(bench.refused(none), Refused::Invalid { .. }));
}

#[test]
fn the_last_word_of_a_run_is_that_it_is_deleted() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let step = bench.ask(Command::Delete).unwrap();
    assert_eq!((step.reply, &*bench.names().pop().unwrap()), (Reply::Deleted, "context.run.deleted"));
}

#[test]
fn a_log_that_no_run_can_have_written_is_refused() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::InProgress);
    bench.create(vec![new_task("u")]);
    let state = bench.state.clone();
    let next = |event: Event| Record {
        seq: state.seq() + 1,
        ts: NOW,
        run_id: state.run().id,
        revision: state.run().revision,
        status: state.run().status,
        by: "client".into(),
        step_id: None,
        event,
        run: None,
    };
    let task = |event, change: &dyn Fn(&mut Task)| {
        let mut task = state.task("t").unwrap().clone();
        task.task_rev += 1;
        change(&mut task);
        next(Event::Task(event, Box::new(task)))
    };
    let told = || next(Event::Told { name: "x".into(), payload: json!(null) });
    let another = Run { id: RunId::new(Uuid::from_u128(99)), ..state.run().clone() };
    let fence = |by: u64| move |task: &mut Task| task.lease.as_mut().unwrap().fence += by;
    let impossible = [
        Record { seq: state.seq(), ..told() },
        Record { seq: state.seq() + 2, ..told() },
        Record { run_id: another.id, ..told() },
        Record { revision: state.run().revision + 2, ..told() },
        Record { revision: state.run().revision - 1, ..told() },
        Record { status: RunStatus::Running, ..told() },
        Record { run: Some(Box::new(another)), ..told() },
        next(Event::Created),
        task(TaskEvent::Created, &|_| ()),
        task(TaskEvent::Heartbeat, &|task| task.task_rev += 1),
        task(TaskEvent::Heartbeat, &|task| task.id = "nobody".into()),
        task(TaskEvent::Heartbeat, &|task| task.lease = None),
        task(TaskEvent::Heartbeat, &fence(1)),
        task(TaskEvent::Completed, &|task| task.status = TaskStatus::Done),
        task(TaskEvent::Claimed, &fence(2)),
        task(TaskEvent::Created, &|task| task.id = "new".into()),
        next(Event::RollbackApplied {
            rollback: Rollback {
                operation_id: OperationId::new(Uuid::from_u128(1)),
                event_ids: vec![],
                started_seq: 1,
                started_at: NOW,
            },
            files: 0,
        }),
        next(Event::CheckpointSaved(Checkpoint {
            id: CheckpointId::new(Uuid::from_u128(1)),
            seq: 1,
            reason: None,
            created_at: NOW,
        })),
    ];
    for record in impossible {
        assert!(state.clone().apply(&record).is_err(), "{record:?}");
    }
    state.clone().apply(&told()).unwrap();
    state.clone().apply(&task(TaskEvent::Heartbeat, &|_| ())).unwrap();
}
