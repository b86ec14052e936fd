use super::*;
use crate::run::command::{WorkBy, Worker};

fn turn(n: u128) -> Worker {
    Worker { thread: thread(1), by: WorkBy::Turn(TurnId::new(Uuid::from_u128(0x300 + n))) }
}

fn job(run: u32) -> Worker {
    Worker { thread: thread(1), by: WorkBy::Job(crate::id::JobId::new(Uuid::from_u128(0x400)), run) }
}

fn holds(bench: &mut Bench, worker: Worker) -> Option<String> {
    let Reply::Claimed(claimed) = bench.does(Command::Work(worker, Claim::default())) else { panic!("it is answered") };
    claimed.task.map(|task| task.id)
}

#[test]
fn a_worker_reads_back_from_its_name_and_from_no_other() {
    for worker in [turn(1), job(1), job(77)] {
        assert_eq!(worker.to_string().parse(), Ok(worker));
    }
    for other in ["", "me", "thr_x/turn_y", &thread(1).to_string(), &format!("{}/x/1", thread(1))] {
        assert_eq!(other.parse::<Worker>(), Err(()), "{other}");
    }
}

#[test]
fn a_worker_that_holds_a_task_gets_that_one_again() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("a"), new_task("b"), new_task("c")]);
    assert_eq!(holds(&mut bench, turn(1)).as_deref(), Some("a"));
    let seq = bench.state.seq();
    assert_eq!(holds(&mut bench, turn(1)).as_deref(), Some("a"));
    assert_eq!(bench.state.seq(), seq, "it holds it already");
    assert_eq!(holds(&mut bench, turn(2)).as_deref(), Some("b"));
    assert_eq!(holds(&mut bench, job(1)).as_deref(), Some("c"));
    assert_eq!(holds(&mut bench, job(2)), None, "another run of the job is another worker");
}

#[test]
fn a_worker_speaks_of_what_it_holds_and_of_nothing_else() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("a"), new_task("b")]);
    holds(&mut bench, turn(1));
    holds(&mut bench, turn(2));
    let other = bench.refused(Command::Say(turn(1), transition("b", Action::Complete)));
    assert!(matches!(other, Refused::LeaseInvalid { .. }), "{other:?}");
    assert_eq!(bench.refused(Command::Say(turn(1), transition("x", Action::Complete))), Refused::NoTask);
    bench.does(Command::Say(turn(1), transition("a", Action::Complete)));
    assert_eq!(bench.state.task("a").unwrap().status, TaskStatus::Done);
    let late = bench.refused(Command::Say(turn(1), transition("a", Action::Fail)));
    assert!(matches!(late, Refused::LeaseInvalid { .. }), "{late:?}");
}

#[test]
fn a_worker_whose_time_is_over_holds_nothing() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("a")]);
    holds(&mut bench, turn(1));
    bench.pass(DEFAULT_LEASE_MS);
    let late = bench.refused(Command::Say(turn(1), transition("a", Action::Complete)));
    assert!(matches!(late, Refused::LeaseInvalid { .. }), "{late:?}");
    assert_eq!(holds(&mut bench, turn(2)).as_deref(), Some("a"));
    assert_eq!(holds(&mut bench, turn(1)), None);
}

#[test]
fn what_a_worker_gives_back_can_be_claimed_again() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("a")]);
    holds(&mut bench, turn(1));
    bench.does(Command::GiveBack(turn(2)));
    assert_eq!(bench.state.task("a").unwrap().status, TaskStatus::InProgress, "it is not that one's");
    bench.does(Command::GiveBack(turn(1)));
    let task = bench.state.task("a").unwrap();
    assert_eq!((task.status, task.attempt, &task.lease), (TaskStatus::Runnable, 0, &None));
    let seq = bench.state.seq();
    bench.does(Command::GiveBack(turn(1)));
    assert_eq!(bench.state.seq(), seq);
}

#[test]
fn nobody_else_has_a_workers_name() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("a")]);
    for name in [turn(1).to_string(), thread(1).to_string(), format!(" {}", turn(1)), "thr_".to_owned()] {
        let claimed = bench.refused(Command::Claim(claim(&name)));
        assert!(matches!(&claimed, Refused::Invalid { field, .. } if field == "agent_id"), "{name}: {claimed:?}");
        let said =
            Transition { agent_id: Some(name.clone()), ..transition("a", Action::Status(TaskStatus::Cancelled)) };
        let said = bench.refused(Command::Transition(said));
        assert!(matches!(&said, Refused::Invalid { field, .. } if field == "agent_id"), "{name}: {said:?}");
    }
}

#[test]
fn a_run_that_was_bound_anew_takes_its_tasks_from_workers_too() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("a")]);
    let at = |path: &str, rebind| ValidateLease { current_path: path.into(), rebind, ..ValidateLease::default() };
    bench.does(Command::ValidateLease(at("/a", false)));
    holds(&mut bench, turn(1));
    bench.does(Command::ValidateLease(at("/b", true)));
    let late = bench.refused(Command::Say(turn(1), transition("a", Action::Complete)));
    assert!(matches!(late, Refused::LeaseInvalid { .. }), "{late:?}");
    // The runtime knows where its own threads work.
    assert_eq!(holds(&mut bench, turn(1)).as_deref(), Some("a"));
}
