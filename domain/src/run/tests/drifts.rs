//! What differs between a run as it is kept and as its log makes it.

use proptest::prelude::*;

use super::*;
use crate::run::drift::drift;

/// A run of which there is something everywhere.
fn busy() -> Bench {
    let mut bench = Bench::planned(&["a", "b"]);
    bench.tell("session_run_started");
    bench.create(vec![new_task("t-1"), after_tasks("t-2", &["t-1"])]);
    bench.bring("failed", TaskStatus::Failed);
    for (kind, id) in [(EntryKind::Fact, "f"), (EntryKind::Decision, "d")] {
        bench.does(Command::Patch(Patch::Add(NewEntry {
            kind,
            id: Some(id.into()),
            text: "it is so".into(),
            path: None,
            artifact_type: None,
            step_id: None,
            source_event_id: None,
            ts_ms: None,
        })));
    }
    bench.does(Command::Patch(Patch::Summarise { pack: true, text: "so far".into() }));
    bench.does(Command::Journal(vec![changed(thread(1), 1, &[("a", None, Some("x"))])]));
    bench.does(Command::SaveCheckpoint { reason: Some("why".into()) });
    bench
}

/// A field of the kept run that somebody has changed.
#[derive(Debug, Clone)]
enum Tampered {
    Status(RunStatus),
    Why,
    Objective,
    Revision(u64),
    Seq(u64),
    StepTitle(usize),
    StepStatus(usize, StepStatus),
    TaskStatus(usize, TaskStatus),
    TaskPayload(usize),
    TaskPlace(usize),
    TaskRev(usize, u64),
    Fact(usize),
    Resolved(usize),
    Summary,
    Ledger(u64),
    Source(u64),
    Mutation,
    Checkpoint,
}

impl Tampered {
    /// Changes it; where that is, and which of the flags are to say so.
    fn change(&self, image: &mut Image) -> (String, fn(&Drift) -> bool) {
        fn place<T>(all: &mut [T], at: usize) -> &mut T {
            let many = all.len();
            &mut all[at % many]
        }
        match self {
            Self::Status(status) => {
                image.run.status = *status;
                ("run.status".into(), |drift| drift.status_mismatch && drift.run_mismatch)
            }
            Self::Why => {
                image.run.why_next_step = None;
                ("run.why_next_step".into(), |drift| drift.why_next_step_mismatch && drift.run_mismatch)
            }
            Self::Objective => {
                image.run.objective.push('!');
                ("run.objective".into(), |drift| drift.run_mismatch)
            }
            Self::Revision(by) => {
                image.run.revision += by;
                ("run.revision".into(), |drift| drift.revision_mismatch)
            }
            Self::Seq(by) => {
                image.run.last_event_seq += by;
                ("run.last_event_seq".into(), |drift| drift.revision_mismatch)
            }
            Self::StepTitle(at) => {
                let step = place(&mut image.run.steps, *at);
                step.title.push('!');
                (format!("run.steps[{}].title", step.step_id), |drift| drift.steps_mismatch)
            }
            Self::StepStatus(at, status) => {
                let step = place(&mut image.run.steps, *at);
                step.status = *status;
                (format!("run.steps[{}].status", step.step_id), |drift| drift.steps_mismatch)
            }
            Self::TaskStatus(at, status) => {
                let (_, task) = place(&mut image.tasks, *at);
                task.status = *status;
                (format!("tasks[{}].status", task.id), |drift| drift.tasks_mismatch)
            }
            Self::TaskPayload(at) => {
                let (_, task) = place(&mut image.tasks, *at);
                task.payload["more"] = json!(1);
                (format!("tasks[{}].payload.more", task.id), |drift| drift.tasks_mismatch)
            }
            Self::TaskPlace(at) => {
                let (slot, task) = place(&mut image.tasks, *at);
                *slot += 100;
                (format!("tasks[{}].event", task.id), |drift| drift.tasks_mismatch)
            }
            Self::TaskRev(at, by) => {
                let (_, task) = place(&mut image.tasks, *at);
                task.task_rev += by;
                (format!("tasks[{}].task_rev", task.id), |drift| drift.tasks_mismatch)
            }
            Self::Fact(at) => {
                let line = place(&mut image.entries, *at);
                line.text.push('!');
                (format!("entries[{}].text", line.id), |drift| drift.blackboard_mismatch)
            }
            Self::Resolved(at) => {
                let line = place(&mut image.entries, *at);
                line.resolved = true;
                (format!("entries[{}].resolved", line.id), |drift| drift.blackboard_mismatch)
            }
            Self::Summary => {
                image.summaries.latest_context_pack.clear();
                ("summaries.latest_context_pack".into(), |drift| drift.blackboard_mismatch)
            }
            Self::Ledger(by) => {
                image.rest.ledger.record_count += by;
                ("rest.ledger.record_count".into(), |drift| drift.ledger_mismatch)
            }
            Self::Source(by) => {
                *image.sources.get_mut(&thread(1)).unwrap() += by;
                (format!("sources.{}", thread(1)), |drift| drift.ledger_mismatch)
            }
            Self::Mutation => {
                let mutation = &mut image.mutations[0];
                mutation.rolled_back_seq = Some(3);
                (format!("mutations[{}].rolled_back_seq", mutation.event_id), |drift| drift.mutations_mismatch)
            }
            Self::Checkpoint => {
                let (_, saved) = &mut image.checkpoints[0];
                saved.reason = None;
                (format!("checkpoints[{}].reason", saved.id), |drift| drift.checkpoints_mismatch)
            }
        }
    }
}

fn tampered() -> impl Strategy<Value = Tampered> {
    let at = || 0..8_usize;
    let by = || 1..1_000_000_u64;
    let task = prop::sample::select(TaskStatus::ALL.to_vec());
    let step = prop::sample::select(vec![StepStatus::Runnable, StepStatus::Done, StepStatus::Failed]);
    prop_oneof![
        prop::sample::select(RunStatus::ALL.to_vec()).prop_map(Tampered::Status),
        Just(Tampered::Why),
        Just(Tampered::Objective),
        by().prop_map(Tampered::Revision),
        by().prop_map(Tampered::Seq),
        at().prop_map(Tampered::StepTitle),
        (at(), step).prop_map(|(at, status)| Tampered::StepStatus(at, status)),
        (at(), task).prop_map(|(at, status)| Tampered::TaskStatus(at, status)),
        at().prop_map(Tampered::TaskPayload),
        at().prop_map(Tampered::TaskPlace),
        (at(), by()).prop_map(|(at, by)| Tampered::TaskRev(at, by)),
        at().prop_map(Tampered::Fact),
        at().prop_map(Tampered::Resolved),
        Just(Tampered::Summary),
        by().prop_map(Tampered::Ledger),
        by().prop_map(Tampered::Source),
        Just(Tampered::Mutation),
        Just(Tampered::Checkpoint),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn whatever_was_tampered_with_is_named(tampered in tampered()) {
        thread_local!(static REPLAYED: Image = busy().replayed.image());
        let replayed = REPLAYED.with(Image::clone);
        let mut kept = replayed.clone();
        let (at, flagged) = tampered.change(&mut kept);
        let told = drift(&kept, &replayed);
        if kept == replayed {
            prop_assert_eq!(told, Drift::default());
        } else {
            prop_assert!(told.mismatch && flagged(&told), "{:?}", told);
            prop_assert_eq!(told.differences.into_iter().map(|one| one.at).collect::<Vec<_>>(), [at]);
        }
    }
}

#[test]
fn what_is_missing_or_too_much_shows() {
    let replayed = busy().replayed.image();
    let mut kept = replayed.clone();
    let (_, lost) = kept.tasks.pop().unwrap();
    let told = drift(&kept, &replayed);
    assert!(told.tasks_mismatch && !told.run_mismatch);
    let [one] = &told.differences[..] else { panic!("{told:?}") };
    assert_eq!((&*one.at, &one.kept, &one.replayed), ("tasks", &json!("2 entries"), &json!("3 entries")));
    // The other way round.
    assert_eq!(drift(&replayed, &kept).differences[0].kept, json!("3 entries"));
    kept.tasks.push((99, Task { id: "forged".into(), ..lost }));
    let places: Vec<_> = drift(&kept, &replayed).differences.into_iter().map(|one| one.at).collect();
    assert_eq!(places, ["tasks[forged].event", "tasks[forged].id"]);
}

#[test]
fn of_many_differences_the_first_hundred_are_told() {
    let mut bench = Bench::new();
    bench.create((0..300).map(|n| new_task(&format!("t{n}"))).collect());
    let replayed = bench.replayed.image();
    let mut kept = replayed.clone();
    kept.tasks.iter_mut().for_each(|(_, task)| task.priority += 1);
    assert_eq!(drift(&kept, &replayed).differences.len(), 100);
}

#[test]
fn parts_that_are_none_or_contradict_the_record_are_no_run() {
    let bench = busy();
    let image = bench.kept();
    let twice = Image { tasks: [image.tasks.clone(), image.tasks.clone()].concat(), ..image.clone() };
    assert!(RunState::of(twice).unwrap_err().to_string().contains("there are two of `t-1`"));
    let lost = Image { tasks: image.tasks[1..].to_vec(), ..image.clone() };
    assert_eq!(RunState::of(lost).unwrap_err().to_string(), "the tasks: are not those that the record counts");
    let record = serde_json::to_vec(bench.state.run()).unwrap();
    let none = |_| Ok::<_, BadPart>(Vec::new());
    assert_eq!(Image::read(b"{", b"{}", none).unwrap_err().what, "the record");
    assert_eq!(Image::read(&record, b"", none).unwrap_err().what, "the rest");
    let rest = serde_json::to_vec(&Rest::default()).unwrap();
    let torn = |kind| {
        let part = (PartName::number(1), b"{".to_vec());
        Ok::<_, BadPart>(if kind == PartKind::Entry { vec![part] } else { Vec::new() })
    };
    assert_eq!(Image::read(&record, &rest, torn).unwrap_err().what, "an entry");
}
