use super::*;

fn save(bench: &mut Bench, reason: &str) -> Checkpoint {
    let Reply::Checkpoint(saved) = bench.does(Command::SaveCheckpoint { reason: Some(reason.into()) }) else {
        panic!("a checkpoint is answered")
    };
    saved
}

/// A run of which there is something everywhere.
fn busy() -> Bench {
    let mut bench = Bench::planned(&["a", "b"]);
    bench.tell("session_run_started");
    for (id, status) in TaskStatus::ALL.into_iter().map(|status| (status.as_str(), status)) {
        bench.bring(id, status);
    }
    bench.create(vec![after_tasks("waits", &["in_progress", "done"])]);
    let fact = NewEntry {
        kind: EntryKind::Fact,
        id: Some("f".into()),
        text: "so".into(),
        path: None,
        artifact_type: None,
        step_id: None,
        source_event_id: None,
        ts_ms: None,
    };
    bench.does(Command::Patch(Patch::Add(fact)));
    bench.does(Command::Patch(Patch::Resolve { kind: EntryKind::Fact, id: "f".into(), resolution: None }));
    bench.does(Command::Patch(Patch::Summarise { pack: false, text: "so far".into() }));
    bench.does(Command::Journal(vec![changed(thread(1), 1, &[("a", None, Some("x"))])]));
    bench
}

#[test]
fn a_checkpoint_is_the_run_as_it_was() {
    let mut bench = busy();
    let image = bench.state.image();
    let saved = save(&mut bench, "before");
    assert_eq!((saved.seq, saved.reason.as_deref()), (bench.state.seq() - 1, Some("before")));
    bench.tell("run_paused");
    assert_eq!(bench.copy(&saved), image);
    // From the copy, the tail of the log makes what is there now.
    let mut state = RunState::of(bench.copy(&saved)).unwrap();
    bench.log.iter().filter(|record| record.seq > saved.seq).for_each(|record| state.apply(record).unwrap());
    assert_eq!(state, bench.state);
}

#[test]
fn a_checkpoint_is_deleted_once_with_its_copy() {
    let mut bench = busy();
    let (first, second) = (save(&mut bench, "1"), save(&mut bench, "2"));
    bench.does(Command::DeleteCheckpoint(first.id));
    assert_eq!(bench.refused(Command::DeleteCheckpoint(first.id)), Refused::NoCheckpoint);
    assert_eq!(bench.state.checkpoints().collect::<Vec<_>>(), [&second]);
    assert_eq!(bench.parts.keys().filter(|(kind, _)| *kind == PartKind::Image).count(), 1);
}

#[test]
fn a_run_keeps_so_many_checkpoints() {
    let mut bench = Bench::new();
    for _ in 0..limits::CHECKPOINTS {
        save(&mut bench, "x");
    }
    let full = Refused::Full { what: "checkpoints", limit: limits::CHECKPOINTS };
    assert_eq!(bench.refused(Command::SaveCheckpoint { reason: None }), full);
    let long = Command::SaveCheckpoint { reason: Some("x".repeat(limits::TEXT_BYTES + 1)) };
    assert!(matches!(bench.refused(long), Refused::TooLarge { .. }));
}

#[test]
fn another_run_begins_as_this_one_was() {
    let mut bench = busy();
    let saved = save(&mut bench, "before");
    bench.tell("run_cancelled");
    let (id, ids) = (RunId::new(Uuid::from_u128(4711)), Counter(AtomicU64::new(5_000)));
    let now = UnixMs(NOW.0 + 1_000);
    let cx = Cx { now, ids: &ids };
    // The bench also rebuilds it from its own log alone, and from its parts.
    let made = restored(id, TenantId::DEFAULT, (Some(saved.id), saved.seq), bench.copy(&saved), cx).unwrap();
    let mut other = Bench::of(made, now, ids);

    let (old, new) = (bench.run().clone(), other.run().clone());
    assert_eq!((new.id, new.created_at, new.status), (id, now, RunStatus::Running));
    let from = RestoredFrom { run_id: old.id, checkpoint_id: Some(saved.id), seq: saved.seq };
    assert_eq!((new.restored_from, &new.steps, &new.objective), (Some(from), &old.steps, &old.objective));
    assert_eq!(new.revision, 2, "the next step is one more");
    // Nobody holds anything; all else of the tasks is as it was.
    for (was, is) in bench.state.tasks().zip(other.state.tasks()) {
        let (status, lease) = match was.status {
            TaskStatus::InProgress => (TaskStatus::Runnable, None),
            status => (status, None),
        };
        assert_eq!(*is, Task { status, lease, ..was.clone() });
    }
    assert_eq!(other.state.tasks().count(), 8);
    let lines =
        |bench: &Bench| bench.state.entries().map(|line| (line.text.clone(), line.resolved)).collect::<Vec<_>>();
    assert_eq!(lines(&other), lines(&bench));
    assert_eq!(other.state.image().summaries, bench.state.image().summaries);
    // What tools did for the other run is the other run's to take back.
    let Rest { ledger, rollback, parts } = other.state.rest();
    assert_eq!((ledger, rollback), (LedgerSummary::default(), None));
    assert_eq!((parts.mutations, parts.sources), (0, 0));
    assert_eq!(other.state.checkpoints().count(), 0);
    // Old tokens are worth nothing, and the first claim is fenced by its own log.
    let asked = Claim { task_id: Some("in_progress".into()), ..claim("x") };
    let task = other.claim(asked).task.unwrap();
    assert_eq!(task.lease.unwrap().fence, other.state.seq());
    let late = Transition { lease_token: bench.tokens.last().cloned(), ..transition("in_progress", Action::Complete) };
    assert!(matches!(other.cannot(late), Refused::LeaseInvalid { .. }));
}
