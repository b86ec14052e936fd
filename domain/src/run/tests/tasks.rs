use super::*;

/// The table in `task`, as it is to be: what each action makes of a task, under its lease where it has one.
const TABLE: &str = "
    action            | pending   | runnable  | in_progress | blocked   | failed    | cancelled | done
    heartbeat         | -         | -         | in_progress | -         | -         | -         | -
    complete          | -         | -         | done        | -         | -         | -         | -
    fail              | -         | -         | failed      | failed    | -         | -         | -
    release           | -         | -         | runnable    | runnable  | -         | -         | -
    retry             | -         | -         | -           | runnable  | runnable  | runnable  | -
    status:pending    | =         | -         | -           | -         | -         | -         | -
    status:runnable   | runnable  | =         | runnable    | runnable  | runnable  | -         | -
    status:in_progress| -         | -         | =           | -         | -         | -         | -
    status:blocked    | blocked   | blocked   | blocked     | =         | -         | -         | -
    status:done       | -         | -         | done        | -         | -         | -         | =
    status:failed     | -         | -         | failed      | failed    | =         | -         | -
    status:cancelled  | cancelled | cancelled | cancelled   | cancelled | cancelled | =         | -
";

fn status(word: &str) -> TaskStatus {
    TaskStatus::ALL.into_iter().find(|status| status.as_str() == word).unwrap()
}

fn action(word: &str) -> Action {
    match word {
        "heartbeat" => Action::Heartbeat,
        "complete" => Action::Complete,
        "fail" => Action::Fail,
        "release" => Action::Release,
        "retry" => Action::Retry,
        other => Action::Status(status(other.strip_prefix("status:").unwrap())),
    }
}

/// Each cell of the table: an action, a status, and what is to be.
fn cells() -> Vec<(Action, TaskStatus, &'static str)> {
    let mut rows = TABLE.trim().lines().map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let from: Vec<_> = rows.next().unwrap().into_iter().skip(1).map(status).collect();
    let row = |row: Vec<&'static str>| {
        from.iter().zip(row[1..].to_vec()).map(move |(from, to)| (action(row[0]), *from, to)).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}

#[test]
fn every_action_does_to_every_status_what_the_table_says() {
    let cells = cells();
    assert_eq!(cells.len(), 12 * 7);
    for (action, from, to) in cells {
        let mut bench = Bench::new();
        let lease_token = bench.bring("t", from);
        let before = bench.task("t").clone();
        let records = bench.log.len();
        let asked = Transition { lease_token, ..transition("t", action) };
        match to {
            "-" => {
                let Refused::TaskTransition { current, .. } = bench.cannot(asked) else {
                    panic!("{action:?} {from:?}")
                };
                assert_eq!(current, from, "{action:?} of {from:?}");
            }
            "=" => {
                assert_eq!(bench.say(asked), before, "{action:?} of {from:?}");
                assert_eq!(bench.log.len(), records, "what is so already is no event");
            }
            to => {
                let task = bench.say(asked);
                assert_eq!((task.status, task.task_rev), (status(to), before.task_rev + 1), "{action:?} of {from:?}");
                assert_eq!(bench.log.len(), records + 1);
            }
        }
    }
}

#[test]
fn whoever_speaks_of_a_leased_task_has_to_show_the_lease_unless_he_calls_it_off() {
    for (action, from, to) in cells().into_iter().filter(|(_, from, to)| *from == TaskStatus::InProgress && *to != "-")
    {
        let mut bench = Bench::new();
        bench.bring("t", from);
        let asked = transition("t", action);
        if action == Action::Status(TaskStatus::Cancelled) {
            assert_eq!(bench.say(asked).status, TaskStatus::Cancelled);
            continue;
        }
        assert_eq!(bench.cannot(asked.clone()), Refused::LeaseRequired, "{action:?} to {to}");
        let wrong = Transition { lease_token: Some("lease-0".into()), ..asked };
        assert!(matches!(bench.cannot(wrong), Refused::LeaseInvalid { .. }), "{action:?} to {to}");
    }
}

#[test]
fn a_claim_and_the_clock_move_tasks_as_the_table_says() {
    for from in TaskStatus::ALL {
        let mut bench = Bench::new();
        bench.bring("t", from);
        let claimed = bench.gets(claim("a"));
        let can = matches!(from, TaskStatus::Pending | TaskStatus::Runnable);
        assert_eq!(claimed.is_some(), can, "{from:?}");
        bench.tick(10 * 60 * 1000);
        let lost = can || from == TaskStatus::InProgress;
        assert_eq!(bench.task("t").status, if lost { TaskStatus::Runnable } else { from }, "{from:?}");
    }
}

#[test]
fn claim_then_complete_is_a_round_trip_by_revision_and_token() {
    let mut bench = Bench::new();
    let made = bench.create(vec![new_task("t")]);
    assert_eq!(
        (made[0].status, made[0].task_rev, made[0].attempt, made[0].max_attempts),
        (TaskStatus::Pending, 1, 0, 3)
    );
    let task = bench.claim(claim("a")).task.unwrap();
    assert_eq!((task.status, task.task_rev, task.assigned_agent.as_deref()), (TaskStatus::InProgress, 2, Some("a")));
    let lease = task.lease.unwrap();
    assert_eq!((&*lease.owner, lease.fence, lease.expires_at), ("a", bench.state.seq(), UnixMs(NOW.0 + 30_000)));
    let done = bench.say(Transition {
        lease_token: lease.token,
        expected_task_rev: Some(2),
        output: Some(json!({ "pr": 7 })),
        ..transition("t", Action::Complete)
    });
    assert_eq!(
        (done.status, done.task_rev, done.lease, done.output),
        (TaskStatus::Done, 3, None, Some(json!({"pr": 7})))
    );
    assert_eq!(bench.names()[1..], ["context.task.created", "context.task.claimed", "context.task.completed"]);
}

#[test]
fn every_event_of_a_task_names_it_and_the_revision_and_status_of_the_run() {
    let mut bench = Bench::new();
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    bench.say(Transition { lease_token, ..transition("t", Action::Heartbeat) });
    for record in &bench.log[1..] {
        let json = serde_json::to_value(record).unwrap();
        assert_eq!((&json["task_id"], &json["status"]), (&json!("t"), &json!("queued")));
        assert_eq!(json["payload"]["task"]["id"], "t");
        assert_eq!(json["revision"], record.revision);
    }
    // The last of them was a heartbeat, which is no change that anybody could miss.
    assert_eq!(bench.log.iter().map(|record| record.revision).collect::<Vec<_>>(), [1, 2, 3, 3]);
}

#[test]
fn what_cannot_be_done_is_told_before_what_was_not_shown() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::Done);
    let late = Transition { lease_token: Some("lease-0".into()), ..transition("t", Action::Complete) };
    let done = Refused::TaskTransition {
        what: "completed".into(),
        current: TaskStatus::Done,
        requested: Some(TaskStatus::Done),
    };
    assert_eq!(bench.cannot(late), done);
    assert_eq!(bench.cannot(transition("nobody", Action::Complete)), Refused::NoTask);
}

#[test]
fn a_task_is_begun_by_a_claim_alone() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::Runnable);
    let why = bench.cannot(transition("t", Action::Status(TaskStatus::InProgress)));
    assert_eq!(why.to_string(), "a task that is runnable cannot be put in progress but by a claim");
    for begun in [TaskStatus::InProgress, TaskStatus::Done, TaskStatus::Failed, TaskStatus::Cancelled] {
        let new = NewTask { status: Some(begun), ..new_task("u") };
        assert!(matches!(bench.refused(Command::CreateTasks(vec![new])), Refused::Invalid { .. }), "{begun:?}");
    }
}

#[test]
fn an_output_is_kept_by_completing_and_a_null_is_none() {
    let mut bench = Bench::new();
    for (id, output, kept) in
        [("a", None, None), ("b", Some(json!(null)), None), ("c", Some(json!([])), Some(json!([])))]
    {
        let lease_token = bench.bring(id, TaskStatus::InProgress);
        let done = bench.say(Transition { lease_token, output, ..transition(id, Action::Complete) });
        assert_eq!(done.output, kept);
    }
}

#[test]
fn a_holder_is_known_by_the_lease_whatever_name_is_given() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::Failed);
    let retried = bench.say(Transition { agent_id: Some("boss".into()), ..transition("t", Action::Retry) });
    assert_eq!(retried.assigned_agent.as_deref(), Some("holder"));
    assert_eq!(bench.log.last().unwrap().by, "agent:boss");
    let lease_token = Some(bench.token(claim("a")));
    let done = Transition { lease_token, agent_id: Some("b".into()), ..transition("t", Action::Complete) };
    assert_eq!(bench.say(done).assigned_agent.as_deref(), Some("a"));
    assert_eq!(bench.log.last().unwrap().by, "agent:a");
}

#[test]
fn words_about_tasks_are_bounded() {
    let mut bench = Bench::new();
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    let fail = Transition { lease_token, ..transition("t", Action::Fail) };
    let long = Transition { error: Some("x".repeat(limits::TEXT_BYTES + 1)), ..fail.clone() };
    assert!(matches!(bench.cannot(long), Refused::TooLarge { .. }));
    let named = Transition { agent_id: Some("x".repeat(limits::ID_BYTES + 1)), ..fail.clone() };
    assert!(matches!(bench.cannot(named), Refused::TooLarge { .. }));
    let large = Transition { output: Some(json!("x".repeat(limits::PAYLOAD_BYTES))), ..fail.clone() };
    assert!(matches!(bench.cannot(large), Refused::TooLarge { .. }));
    bench.say(Transition { error: Some("x".repeat(limits::TEXT_BYTES)), ..fail });
}

/// `levels` lists, one in another.
fn nested(levels: usize) -> Value {
    (1..levels).fold(json!([]), |inner, _| json!([inner]))
}

#[test]
fn what_is_nested_so_deeply_that_it_could_not_be_read_back_is_refused() {
    let mut bench = Bench::new();
    // Each as deep as a request may be.
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    let complete = |levels| Transition {
        lease_token: lease_token.clone(),
        output: Some(nested(levels)),
        ..transition("t", Action::Complete)
    };
    assert!(matches!(bench.cannot(complete(125)), Refused::Invalid { .. }));
    let new = NewTask { payload: json!({ "deep": nested(124) }), ..new_task("u") };
    assert!(matches!(bench.refused(Command::CreateTasks(vec![new])), Refused::Invalid { .. }));
    let deep = tell_with("said", None, None, nested(125));
    assert!(matches!(bench.refused(deep), Refused::Invalid { .. }));
    bench.say(complete(limits::DEPTH));
    bench.does(Command::SaveCheckpoint { reason: None });
    let checkpoint = bench.state.checkpoints().next().unwrap().clone();
    assert_eq!(bench.copy(&checkpoint).tasks.len(), 1);
}
