use super::*;

/// Claims the task, and fails.
fn fail(bench: &mut Bench, error: Option<&str>) -> Task {
    let lease_token = Some(bench.token(claim("a")));
    bench.say(Transition { lease_token, error: error.map(str::to_owned), ..transition("t", Action::Fail) })
}

fn with_attempts(max_attempts: u32) -> Bench {
    let mut bench = Bench::new();
    bench.create(vec![NewTask { max_attempts: Some(max_attempts), ..new_task("t") }]);
    bench
}

#[test]
fn a_failure_is_counted_once_and_waited_out() {
    let mut bench = with_attempts(4);
    let mut waits = Vec::new();
    for attempt in 1..4 {
        let failed = fail(&mut bench, Some("broken"));
        assert_eq!((failed.status, failed.attempt), (TaskStatus::Failed, attempt));
        assert_eq!(failed.last_error.as_deref(), Some("broken"));
        waits.push(failed.next_retry_at.unwrap().since(bench.now));
        assert_eq!(bench.state.owed().wake_at, failed.next_retry_at);
        bench.pass(waits[attempt as usize - 1] - 1);
        assert_eq!(bench.gets(claim("a")), None, "its time has not come");
        let step = bench.tick(1);
        assert_eq!(&*step.records[0].event.name(), "context.task.requeued");
        assert_eq!((bench.task("t").status, bench.task("t").attempt), (TaskStatus::Runnable, attempt));
        assert_eq!(bench.task("t").last_error.as_deref(), Some("broken"), "why is still to be read");
    }
    assert_eq!(waits, [RETRY_BASE_MS, 2 * RETRY_BASE_MS, 4 * RETRY_BASE_MS]);
}

#[test]
fn after_its_attempts_a_task_has_failed_for_good() {
    let mut bench = with_attempts(2);
    fail(&mut bench, None);
    bench.tick(RETRY_BASE_MS);
    let failed = fail(&mut bench, None);
    assert_eq!((failed.status, failed.attempt, failed.next_retry_at), (TaskStatus::Failed, 2, None));
    assert_eq!(bench.state.owed().wake_at, None);
    bench.tick(u64::from(u32::MAX));
    assert_eq!(bench.gets(claim("a")), None);
}

#[test]
fn a_claim_finds_what_has_come_back_without_waiting_for_the_clock() {
    let mut bench = with_attempts(2);
    fail(&mut bench, None);
    bench.pass(RETRY_BASE_MS);
    assert_eq!(bench.gets(claim("a")).as_deref(), Some("t"));
}

#[test]
fn no_pause_is_longer_than_an_hour() {
    let mut bench = with_attempts(100);
    let mut waits = Vec::new();
    for _ in 0..99 {
        let wait = fail(&mut bench, None).next_retry_at.unwrap().since(bench.now);
        waits.push(wait);
        bench.tick(wait);
    }
    assert!(waits.is_sorted());
    assert_eq!(waits[98], 3_600_000);
    assert_eq!(fail(&mut bench, None).next_retry_at, None);
}

#[test]
fn a_retry_need_not_wait_and_forgets_the_failure() {
    let mut bench = with_attempts(3);
    fail(&mut bench, Some("broken"));
    let again = bench.say(transition("t", Action::Retry));
    assert_eq!((again.status, again.attempt, again.next_retry_at), (TaskStatus::Runnable, 1, None));
    assert_eq!(again.last_error, None);
    assert_eq!(bench.gets(claim("a")).as_deref(), Some("t"));
}

#[test]
fn whoever_brings_back_what_failed_for_good_gives_it_all_of_its_attempts() {
    for action in [Action::Retry, Action::Status(TaskStatus::Runnable)] {
        let mut bench = with_attempts(1);
        for _ in 0..3 {
            assert_eq!(fail(&mut bench, None).attempt, 1);
            assert_eq!(bench.say(transition("t", action)).attempt, 0, "{action:?}");
        }
    }
    let mut bench = with_attempts(3);
    fail(&mut bench, None);
    bench.say(transition("t", Action::Status(TaskStatus::Cancelled)));
    assert_eq!(bench.state.owed().wake_at, None, "what was called off does not come back by itself");
    assert_eq!(bench.say(transition("t", Action::Retry)).attempt, 0);
}

#[test]
fn what_is_blocked_may_fail_without_a_lease() {
    let mut bench = Bench::new();
    bench.create(vec![NewTask { status: Some(TaskStatus::Blocked), ..new_task("t") }]);
    let failed = bench.say(Transition { error: Some("no".into()), ..transition("t", Action::Fail) });
    assert_eq!((failed.attempt, failed.last_error.as_deref()), (1, Some("no")));
    assert!(failed.next_retry_at.is_some());
}

#[test]
fn attempts_are_a_few() {
    let mut bench = Bench::new();
    for max_attempts in [0, 101, u32::MAX] {
        let new = NewTask { max_attempts: Some(max_attempts), ..new_task("t") };
        assert!(matches!(bench.refused(Command::CreateTasks(vec![new])), Refused::Invalid { .. }), "{max_attempts}");
    }
}
