//! Who may speak of a leased task, and who is too late.

use super::*;

fn invalid(why: &'static str, fence: Option<u64>) -> Refused {
    Refused::LeaseInvalid { why, fence }
}

#[test]
fn another_ones_token_is_refused_and_told_the_fence() {
    let mut bench = Bench::new();
    let theirs = bench.bring("other", TaskStatus::InProgress);
    bench.bring("t", TaskStatus::InProgress);
    let fence = bench.task("t").lease.as_ref().unwrap().fence;
    for lease_token in [theirs, Some(String::new()), Some("lease-1".into())] {
        let asked = Transition { lease_token, ..transition("t", Action::Complete) };
        assert_eq!(bench.cannot(asked), invalid("is another one's", Some(fence)));
    }
    // What is kept of a token is no token.
    let lease_token = Some(bench.task("t").lease.as_ref().unwrap().token_sha256.clone());
    let asked = Transition { lease_token, ..transition("t", Action::Complete) };
    assert_eq!(bench.cannot(asked), invalid("is another one's", Some(fence)));
}

#[test]
fn a_lease_that_has_run_out_is_as_good_as_lost_even_if_nobody_has_noticed() {
    for action in
        [Action::Heartbeat, Action::Complete, Action::Fail, Action::Release, Action::Status(TaskStatus::Blocked)]
    {
        let mut bench = Bench::new();
        let lease_token = bench.bring("t", TaskStatus::InProgress);
        let asked = Transition { lease_token, ..transition("t", action) };
        bench.pass(30_000);
        let fence = bench.task("t").lease.as_ref().map(|lease| lease.fence);
        assert_eq!(bench.cannot(asked), invalid("has run out", fence), "{action:?}");
    }
    let mut bench = Bench::new();
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    bench.pass(29_999);
    bench.say(Transition { lease_token, ..transition("t", Action::Complete) });
}

#[test]
fn a_late_holder_is_fenced_however_far_things_have_gone_on() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let zombie = Transition { lease_token: Some(bench.token(claim("a"))), ..transition("t", Action::Complete) };
    bench.tick(30_000);
    // It was taken back,
    assert!(matches!(bench.cannot(zombie.clone()), Refused::TaskTransition { current: TaskStatus::Runnable, .. }));
    let asked = Transition { action: Action::Status(TaskStatus::Blocked), ..zombie.clone() };
    assert_eq!(bench.cannot(asked), invalid("is over", None));
    // is held by somebody else,
    let lease_token = Some(bench.token(claim("b")));
    let fence = bench.task("t").lease.as_ref().map(|lease| lease.fence);
    assert_eq!(bench.cannot(zombie.clone()), invalid("is another one's", fence));
    // and done.
    bench.say(Transition { lease_token, ..transition("t", Action::Complete) });
    assert!(matches!(bench.cannot(zombie), Refused::TaskTransition { current: TaskStatus::Done, .. }));
    assert_eq!(bench.task("t").assigned_agent.as_deref(), Some("b"));
}

#[test]
fn fences_grow_with_every_lease_of_a_run() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t"), new_task("u")]);
    let fence = |bench: &mut Bench, id: &str| {
        let asked = Claim { task_id: Some(id.into()), ..claim("a") };
        let lease = bench.claim(asked).task.unwrap().lease.unwrap();
        bench.say(Transition { lease_token: lease.token, ..transition(id, Action::Release) });
        lease.fence
    };
    let fences = ["t", "u", "t", "t", "u"].map(|id| fence(&mut bench, id));
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
}

#[test]
fn a_clock_that_is_set_back_lets_no_fence_shrink_and_no_event_go_astray() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let first = bench.claim(claim("a")).task.unwrap().lease.unwrap();
    bench.tick(30_000);
    bench.now = UnixMs(NOW.0 - 3_600_000);
    bench.create(vec![new_task("u")]);
    // The older task stays the older one.
    let second = bench.claim(claim("b")).task.unwrap();
    assert_eq!(second.id, "t");
    let lease = second.lease.unwrap();
    assert!(lease.fence > first.fence && lease.expires_at < first.expires_at);
    assert_eq!(bench.log.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
    bench.say(Transition { lease_token: lease.token, ..transition("t", Action::Complete) });
}

#[test]
fn a_revision_that_is_not_the_tasks_is_refused_before_anything_else() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::InProgress);
    for expected in [0, 1, 3, u64::MAX] {
        let asked = Transition { expected_task_rev: Some(expected), ..transition("t", Action::Complete) };
        assert_eq!(bench.cannot(asked), Refused::TaskRev { expected, task_rev: 2 });
    }
}

#[test]
fn a_heartbeat_renews_the_lease_from_now_and_keeps_its_fence() {
    let mut bench = Bench::new();
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    let (before, revision) = (bench.task("t").clone(), bench.run().revision);
    bench.pass(20_000);
    let beat = Transition { lease_token, ..transition("t", Action::Heartbeat) };
    let beaten = bench.say(beat.clone());
    let (was, is) = (before.lease.unwrap(), beaten.lease.unwrap());
    assert_eq!((is.fence, is.expires_at, beaten.task_rev), (was.fence, UnixMs(NOW.0 + 50_000), before.task_rev + 1));
    assert_eq!(bench.run().revision, revision, "nobody who replaces the run is stopped by it");
    bench.pass(29_999);
    let beaten = bench.say(Transition { lease_ms: Some(u64::MAX), ..beat });
    assert_eq!(beaten.lease.unwrap().expires_at, UnixMs(bench.now.0 + 300_000));
}

#[test]
fn the_clock_takes_tasks_from_late_holders_and_names_them() {
    let mut bench = Bench::new();
    bench.bring("t", TaskStatus::InProgress);
    assert_eq!(bench.state.owed().wake_at, Some(UnixMs(NOW.0 + 30_000)));
    assert!(bench.tick(29_999).records.is_empty());
    let step = bench.tick(1);
    assert_eq!((step.records.len(), &*step.records[0].event.name()), (1, "context.task.stale_requeued"));
    assert_eq!(step.records[0].by, "runtime");
    let task = bench.task("t");
    assert_eq!((task.status, task.attempt), (TaskStatus::Runnable, 0), "what a lost lease interrupts is no failure");
    assert_eq!(task.last_error.as_deref(), Some("the lease of holder ran out"));
    assert_eq!(bench.state.owed().wake_at, None);
}

#[test]
fn a_claim_takes_back_what_is_stale_without_waiting_for_the_clock() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    bench.token(claim("dead"));
    bench.pass(30_000);
    let step = bench.ask(Command::Claim(claim("alive"))).unwrap();
    let said: Vec<_> = step.records.iter().map(|record| (record.event.name().into_owned(), &*record.by)).collect();
    assert_eq!(
        said,
        [("context.task.stale_requeued".into(), "runtime"), ("context.task.claimed".into(), "agent:alive")]
    );
    assert_eq!(bench.task("t").last_error.as_deref(), Some("the lease of dead ran out"));
}
