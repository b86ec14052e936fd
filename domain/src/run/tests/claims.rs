use super::*;

#[test]
fn the_highest_priority_goes_first_and_then_the_oldest() {
    let mut bench = Bench::new();
    let of = |id, priority| NewTask { priority, ..new_task(id) };
    bench.create(vec![of("low", i32::MIN), of("old", 0), of("new", 0), of("high", i32::MAX)]);
    let order: Vec<_> = (0..5).map(|_| bench.gets(claim("a"))).collect();
    assert_eq!(order, [Some("high".into()), Some("old".into()), Some("new".into()), Some("low".into()), None]);
}

#[test]
fn a_task_that_comes_back_takes_the_place_of_its_age() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("old"), new_task("new")]);
    let token = bench.token(claim("a"));
    bench.say(Transition { lease_token: Some(token), ..transition("old", Action::Release) });
    assert_eq!(bench.gets(claim("b")).as_deref(), Some("old"));
}

#[test]
fn a_claim_gets_what_it_asks_for_by_type_and_workflow() {
    let mut bench = Bench::new();
    let of = |id: &str, kind: &str, flow: Option<&str>| NewTask {
        task_type: kind.into(),
        workflow_id: flow.map(str::to_owned),
        ..new_task(id)
    };
    bench.create(vec![of("1", "build", None), of("2", "test", Some("w")), of("3", "build", Some("w"))]);
    let asks = |kind: Option<&str>, flow: Option<&str>| Claim {
        task_type: kind.map(str::to_owned),
        workflow_id: flow.map(str::to_owned),
        ..claim("a")
    };
    assert_eq!(bench.gets(asks(Some("nothing"), None)), None);
    assert_eq!(bench.gets(asks(None, Some("v"))), None);
    assert_eq!(bench.gets(asks(Some("test"), Some("v"))), None);
    assert_eq!(bench.gets(asks(Some("build"), Some("w"))).as_deref(), Some("3"));
    assert_eq!(bench.gets(asks(None, Some("w"))).as_deref(), Some("2"));
    assert_eq!(bench.gets(asks(Some("build"), None)).as_deref(), Some("1"));
}

#[test]
fn a_type_is_asked_for_in_any_spelling_in_which_tasks_are_made() {
    let mut bench = Bench::new();
    bench.create(vec![NewTask { task_type: " fix-proposal ".into(), ..new_task("f") }]);
    bench.create(vec![NewTask { task_type: " build-it ".into(), ..new_task("b") }]);
    for (asked, got) in [("fix-proposal", "f"), (" build-it", "b")] {
        let task_type = Some(asked.to_owned());
        assert_eq!(bench.gets(Claim { task_type, ..claim("a") }).as_deref(), Some(got));
    }
}

#[test]
fn a_task_is_handed_out_when_all_that_it_waits_for_is_done() {
    let mut bench = Bench::new();
    // The first waits for what comes later in the same batch, twice.
    bench.create(vec![
        after_tasks("last", &["mid", "first", "mid"]),
        after_tasks("mid", &["first"]),
        new_task("first"),
    ]);
    for id in ["first", "mid", "last"] {
        let task = bench.claim(claim("a")).task.unwrap();
        assert_eq!(task.id, id);
        assert_eq!(bench.gets(claim("b")), None, "the others wait for {id}");
        let lease_token = task.lease.unwrap().token;
        bench.say(Transition { lease_token, ..transition(id, Action::Complete) });
    }
}

#[test]
fn what_was_done_before_is_waited_for_by_nobody() {
    let mut bench = Bench::new();
    bench.bring("done", TaskStatus::Done);
    bench.create(vec![after_tasks("next", &["done"])]);
    assert_eq!(bench.gets(claim("a")).as_deref(), Some("next"));
}

#[test]
fn what_failed_or_was_called_off_is_waited_for_until_it_is_done() {
    for over in [TaskStatus::Failed, TaskStatus::Cancelled] {
        let mut bench = Bench::new();
        bench.bring("on", over);
        bench.create(vec![after_tasks("next", &["on"])]);
        assert_eq!(bench.gets(claim("a")), None, "{over:?}");
        bench.say(transition("on", Action::Retry));
        let lease_token = Some(bench.token(claim("a")));
        bench.say(Transition { lease_token, ..transition("on", Action::Complete) });
        assert_eq!(bench.gets(claim("a")).as_deref(), Some("next"), "{over:?}");
    }
}

#[test]
fn a_task_that_is_made_as_blocked_waits_for_a_word() {
    let mut bench = Bench::new();
    bench.create(vec![NewTask { status: Some(TaskStatus::Blocked), ..new_task("t") }]);
    assert_eq!(bench.gets(claim("a")), None);
    bench.say(transition("t", Action::Status(TaskStatus::Runnable)));
    assert_eq!(bench.gets(claim("a")).as_deref(), Some("t"));
}

#[test]
fn a_run_that_is_paused_or_over_gives_nothing_and_says_why() {
    for (word, why) in [
        ("run_paused", "the run is paused"),
        ("run_cancelled", "the run is cancelled"),
        ("run_failed", "the run is failed"),
        ("run_completed", "the run is completed"),
    ] {
        let mut bench = Bench::new();
        bench.create(vec![new_task("t")]);
        let status = RunStatus::ALL.into_iter().find(|status| why.ends_with(status.as_str()));
        bench.does(tell_with(word, status, None, json!(null)));
        let by_id = Claim { task_id: Some("t".into()), ..claim("a") };
        for asked in [claim("a"), by_id] {
            assert_eq!(bench.claim(asked), Claimed { task: None, why: Some(why.into()) });
        }
        bench.tell("run_reopened");
        assert_eq!(bench.gets(claim("a")).as_deref(), Some("t"));
    }
}

#[test]
fn a_claim_by_name_gets_this_task_or_none() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("first"), after_tasks("waits", &["first"]), new_task("other")]);
    let asks = |id: &str| Claim { task_id: Some(id.into()), ..claim("a") };
    assert_eq!(bench.gets(asks("waits")), None);
    assert_eq!(bench.gets(Claim { task_type: Some("test".into()), ..asks("other") }), None);
    assert_eq!(bench.gets(Claim { workflow_id: Some("w".into()), ..asks("other") }), None);
    assert_eq!(bench.gets(Claim { task_type: Some("build".into()), ..asks("other") }).as_deref(), Some("other"));
    assert_eq!(bench.gets(asks("other")), None, "it is held");
    assert_eq!(bench.refused(Command::Claim(asks("nobody"))), Refused::NoTask);
}

#[test]
fn a_lease_is_as_long_as_asked_for_within_bounds() {
    let asked =
        [(None, 30_000), (Some(0), 5_000), (Some(5_001), 5_001), (Some(300_001), 300_000), (Some(u64::MAX), 300_000)];
    for (lease_ms, lasts) in asked {
        let mut bench = Bench::new();
        bench.create(vec![new_task("t")]);
        let task = bench.claim(Claim { lease_ms, ..claim("a") }).task.unwrap();
        assert_eq!(task.lease.unwrap().expires_at, UnixMs(NOW.0 + lasts), "{lease_ms:?}");
    }
}

#[test]
fn an_agent_has_a_name() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    for agent in ["", "  ", "a\nb"] {
        assert!(matches!(bench.refused(Command::Claim(claim(agent))), Refused::Invalid { .. }), "{agent:?}");
    }
    assert!(matches!(bench.refused(Command::Claim(claim(&"x".repeat(129)))), Refused::TooLarge { .. }));
}

#[test]
fn of_many_who_ask_for_one_task_one_gets_it() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let won = (0..20).filter_map(|n| bench.gets(claim(&format!("a{n}")))).count();
    assert_eq!(won, 1);
}

#[test]
fn a_token_is_told_to_its_holder_and_nobody_else() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let task = bench.claim(claim("a")).task.unwrap();
    let token = task.lease.unwrap().token.unwrap();
    assert!(token.len() > 64, "{token}");
    assert_eq!(bench.task("t").lease.as_ref().unwrap().token, None);
    // Not even when the holder shows it.
    let asked = Transition { lease_token: Some(token.clone()), ..transition("t", Action::Heartbeat) };
    assert_eq!(bench.say(asked).lease.unwrap().token, None);
    assert!(bench.log.iter().all(|record| !serde_json::to_string(record).unwrap().contains(&token)));
}

#[test]
fn one_step_takes_so_many_tasks_from_late_holders_and_the_next_goes_on() {
    let mut bench = Bench::new();
    for batch in 0..2 {
        bench.create((0..600).map(|n| new_task(&format!("t{batch}-{n}"))).collect());
    }
    // Not through the bench, which looks at everything after each.
    let cx = Cx { now: bench.now, ids: &bench.ids };
    for _ in 0..1_200 {
        bench.state.step(Command::Claim(claim("a")).into(), cx).unwrap();
    }
    let now = UnixMs(NOW.0 + 30_000);
    let cx = Cx { now, ids: &bench.ids };
    let first = bench.state.step(Command::Tick.into(), cx).unwrap();
    assert_eq!((first.records.len(), bench.state.owed().wake_at), (limits::SWEEP, Some(now)));
    let second = bench.state.step(Command::Tick.into(), cx).unwrap();
    assert_eq!((second.records.len(), bench.state.owed().wake_at), (200, None));
}
