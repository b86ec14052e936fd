//! What is promised to tasks of runs that the runtime's own workers hold, turns and jobs, and to the ledger of what they
//! do: kept as long as somebody works, free when nobody does, done and put on record once, whatever process dies.

mod testbed;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use raddle_actors::{Call, Config, Error, Ports, Runtime, WorkEnd, store::backend::MemoryMedium};
use raddle_domain::{
    command::{Interrupt, NewThread},
    event::{Event, Record},
    id::{JobId, RunId, Seq, ThreadKey, TurnId},
    job::{Job, JobRefused, JobStatus, Template},
    ports::StoreError,
    record::{Delivery, EffectOutcome, TurnStatus},
    run::{
        LedgerPhase, LedgerRecord, LedgerStatus, Refused, Task, TaskStatus,
        command::{Action, Claim, NewRun, NewTask, Transition, WorkBy, Worker},
    },
};
use serde_json::json;
use testbed::*;

/// The shortest time that a lease lasts, by the clock of the test.
const LEASE_MS: u64 = 5_000;

fn call() -> Call {
    Call::default()
}

/// Leases are renewed every 50 ms of real time, and last five seconds of the test's.
fn config(bed: &Bed) -> Config {
    Config { jobs_lease: Duration::from_millis(150), ..bed.config() }
}

fn bed() -> Bed {
    Bed { medium: Some(MemoryMedium::default()), ..Bed::new() }
}

async fn start_with(bed: &Bed) -> Runtime {
    Runtime::start(config(bed), bed.ports()).await.unwrap()
}

async fn new_run(runtime: &Runtime) -> RunId {
    let new = NewRun { objective: "o".into(), ..NewRun::default() };
    runtime.create_run(OWNER, new, call()).await.unwrap().value.id
}

async fn add_tasks(runtime: &Runtime, run: RunId, ids: &[&str]) {
    let new = |id: &&str| NewTask { id: Some((*id).into()), task_type: "t".into(), ..NewTask::default() };
    runtime.create_tasks(OWNER, run, ids.iter().map(new).collect(), call()).await.unwrap();
}

/// A thread that works for a run.
async fn bound(runtime: &Runtime, run: RunId) -> ThreadKey {
    let new = NewThread { run_id: Some(run), ..NewThread::with(choice()) };
    key(&runtime.create_thread(OWNER, new, call()).await.unwrap().value)
}

fn by_turn(key: ThreadKey, turn: TurnId) -> Worker {
    Worker { thread: key.thread, by: WorkBy::Turn(turn) }
}

async fn claim(runtime: &Runtime, run: RunId, worker: Worker) -> Option<Task> {
    runtime.work(OWNER, run, worker, Claim::default()).await.unwrap().task
}

async fn task(runtime: &Runtime, run: RunId, id: &str) -> Task {
    runtime.task(OWNER, run, id.to_owned()).await.unwrap()
}

/// Waits until it is so; whatever changes is read again and again.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let comes = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(LONG, comes).await.unwrap_or_else(|_| panic!("it does not come to this: {what}"))
}

async fn task_is(runtime: &Runtime, run: RunId, id: &str, status: TaskStatus) -> Task {
    until(&format!("{id} is {status:?}"), async || {
        Some(task(runtime, run, id).await).filter(|task| task.status == status)
    })
    .await
}

/// The names of a run's events from right after `after`, and the newest.
async fn told(runtime: &Runtime, run: RunId, after: Seq) -> (Vec<String>, Seq) {
    let events = runtime.run_events(OWNER, run, after, usize::MAX).await.unwrap();
    let names: Vec<_> =
        events.chunks.iter().flat_map(|chunk| &chunk.events).map(|event| event.name.to_string()).collect();
    let last = after + names.len() as Seq;
    (names, last)
}

async fn count(runtime: &Runtime, run: RunId, name: &str) -> usize {
    told(runtime, run, 0).await.0.iter().filter(|known| *known == name).count()
}

/// Waits until a lease was renewed once more.
async fn beats(runtime: &Runtime, run: RunId) {
    let (_, from) = told(runtime, run, 0).await;
    let beaten = async || {
        let (names, _) = told(runtime, run, from).await;
        names.iter().any(|name| name == "context.task.heartbeat").then_some(())
    };
    until("a heartbeat", beaten).await;
}

async fn records(runtime: &Runtime, run: RunId) -> Vec<LedgerRecord> {
    let page = runtime.run_ledger(OWNER, run, 0, 10_000).await.unwrap();
    assert_eq!(page.summary.record_count as usize, page.entries.len());
    page.entries.into_iter().map(|entry| entry.record).collect()
}

// ---- turns ---------------------------------------------------------------------------------------

#[tokio::test]
async fn the_lease_of_a_turn_is_kept_over_many_beats_and_given_back_at_its_end() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a", "b"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    let worker = by_turn(key, turn.id);
    let claimed = claim(&runtime, run, worker).await.unwrap();
    let lease = claimed.lease.as_ref().unwrap();
    assert_eq!((lease.owner.clone(), &lease.token), (worker.to_string(), &None), "no token leaves the runtime");
    assert_eq!(claim(&runtime, run, worker).await.unwrap().id, claimed.id, "a turn has one task at a time");
    for _ in 0..4 {
        beats(&runtime, run).await;
        bed.clock.advance(LEASE_MS - 1_000);
    }
    let held = task(&runtime, run, "a").await;
    assert_eq!((held.status, held.lease.unwrap().fence), (TaskStatus::InProgress, lease.fence), "the same lease");
    bed.model.gate.add_permits(1);
    assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    let back = task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    assert_eq!((back.attempt, back.lease), (0, None), "what was given back has not failed");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_turn_that_is_interrupted_or_whose_thread_is_deleted_gives_its_task_back() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    for deleted in [false, true] {
        let key = bound(&runtime, run).await;
        let turn = start(&runtime, key, "hold").await;
        claim(&runtime, run, by_turn(key, turn.id)).await.unwrap();
        if deleted {
            runtime.delete_thread(key, call()).await.unwrap();
        } else {
            runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, call()).await.unwrap();
        }
        task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_claim_that_comes_after_the_end_of_its_turn_is_given_back() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = say(&runtime, key, "x").await;
    claim(&runtime, run, by_turn(key, turn.id)).await.unwrap();
    task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_caller_is_gone_is_given_back_with_its_turn() {
    let bed = Bed::new();
    let config = config(&bed);
    let (open, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_open, told) = (open.clone(), reached.clone());
    let door: OnCommit = Box::new(move |writes, commit| {
        if holds(writes, "context.task.claimed") {
            told.store(true, SeqCst);
            while !is_open.load(SeqCst) {
                std::thread::yield_now();
            }
        }
        commit()
    });
    let store = Hooked::open(&config.store, door);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    answering(&runtime, key).await;
    let caller = tokio::spawn({
        let runtime = runtime.clone();
        async move { claim(&runtime, run, by_turn(key, turn.id)).await }
    });
    until("the claim is being stored", async || reached.load(SeqCst).then_some(())).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    open.store(true, SeqCst);
    task_is(&runtime, run, "a", TaskStatus::InProgress).await;
    beats(&runtime, run).await;
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_lease_needs_no_place_among_the_watchers() {
    let bed = bed();
    let runtime = Runtime::start(Config { subscribers: 0, ..config(&bed) }, bed.ports()).await.unwrap();
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    claim(&runtime, run, by_turn(key, turn.id)).await.unwrap();
    for _ in 0..3 {
        beats(&runtime, run).await;
        bed.clock.advance(LEASE_MS - 1_000);
    }
    assert_eq!(task(&runtime, run, "a").await.status, TaskStatus::InProgress);
    assert_eq!(runtime.health().subscribers, 0);
    bed.model.gate.add_permits(1);
    task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_turn_that_goes_on_in_the_next_process_keeps_its_task() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    let worker = by_turn(key, turn.id);
    claim(&runtime, run, worker).await.unwrap();
    // No time for the turn to end: as a crash would.
    runtime.shutdown(Duration::ZERO).await;
    drop(runtime);
    bed.clock.advance(LEASE_MS - 1_000);
    let runtime = start_with(&bed).await;
    for _ in 0..3 {
        beats(&runtime, run).await;
        bed.clock.advance(LEASE_MS - 1_000);
    }
    let done = ("a".to_owned(), WorkEnd::Done(Some(json!("well"))));
    let done = runtime.end_work(OWNER, run, worker, done, call()).await.unwrap().value;
    assert_eq!((done.status, done.output), (TaskStatus::Done, Some(json!("well"))));
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    assert_eq!(task(&runtime, run, "a").await.status, TaskStatus::Done);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_task_whose_turn_ended_with_its_process_is_given_back_by_the_next_one() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    claim(&runtime, run, by_turn(key, turn.id)).await.unwrap();
    answering(&runtime, key).await;
    // The turn ends while the server goes down, and nobody has the time to speak of its task.
    let going = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.shutdown(LONG).await }
    });
    until("it drains", async || runtime.health().draining.then_some(())).await;
    bed.model.gate.add_permits(1);
    going.await.unwrap();
    drop(runtime);
    let runtime = start_with(&bed).await;
    assert_eq!(runtime.turn(key, turn.id).await.unwrap().status, TurnStatus::Completed);
    let back = task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    assert_eq!(back.last_error, None, "it was given back, and not found lost");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_lease_that_was_lost_says_nothing_any_more() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    let worker = by_turn(key, turn.id);
    claim(&runtime, run, worker).await.unwrap();
    let off = Transition::new("a".into(), Action::Status(TaskStatus::Cancelled));
    runtime.transition_task(OWNER, run, off, call()).await.unwrap();
    let late = runtime.end_work(OWNER, run, worker, ("a".into(), WorkEnd::Done(None)), call()).await;
    assert!(matches!(late, Err(Error::Run(Refused::LeaseInvalid { .. }))), "{late:?}");
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    assert_eq!(task(&runtime, run, "a").await.status, TaskStatus::Cancelled);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn turns_that_claim_at_once_get_different_tasks() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    let ids: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
    add_tasks(&runtime, run, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut workers = Vec::new();
    for _ in 0..12 {
        let key = bound(&runtime, run).await;
        workers.push(by_turn(key, start(&runtime, key, "hold").await.id));
    }
    let claims = workers.iter().map(|worker| claim(&runtime, run, *worker));
    let claimed = futures_util::future::join_all(claims).await;
    let mut got: Vec<String> = claimed.into_iter().flatten().map(|task| task.id).collect();
    got.sort();
    assert_eq!(got, ids, "each task once, and the rest get none");
    bed.model.gate.add_permits(12);
    for id in &ids {
        task_is(&runtime, run, id, TaskStatus::Runnable).await;
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn the_last_owner_of_a_runtime_is_no_keeper() {
    let bed = Bed::new();
    // A beat that nobody waits for.
    let config = || Config { jobs_lease: Duration::from_secs(300), ..bed.config() };
    let runtime = Runtime::start(config(), bed.ports()).await.unwrap();
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "hold").await;
    claim(&runtime, run, by_turn(key, turn.id)).await.unwrap();
    drop(runtime);
    // The directory is free once the actors are gone.
    let again = until("the directory is free", async || Runtime::start(config(), bed.ports()).await.ok()).await;
    assert_eq!(task(&again, run, "a").await.status, TaskStatus::InProgress);
    again.shutdown(Duration::ZERO).await;
}

// ---- jobs ----------------------------------------------------------------------------------------

fn for_a_task(key: ThreadKey, prompt: &str, run: RunId, which: serde_json::Value) -> Template {
    let mut wanted = json!({ "run_id": run });
    wanted.as_object_mut().unwrap().extend(which.as_object().unwrap().clone());
    let payload = json!({ "thread_id": key.thread, "prompt": prompt, "task": wanted });
    let work = serde_json::from_value(json!({ "kind": "turn", "payload": payload })).unwrap();
    Template { backoff_base_ms: 0, ..Template::new("n", work) }
}

async fn make(runtime: &Runtime, template: Template) -> JobId {
    runtime.create_job(OWNER, template, None, call()).await.unwrap().value.id
}

async fn job(runtime: &Runtime, id: JobId) -> Job {
    runtime.job(OWNER, id).await.unwrap()
}

async fn job_is(runtime: &Runtime, id: JobId, what: &str, is: impl Fn(&Job) -> bool) -> Job {
    until(what, async || Some(job(runtime, id).await).filter(|job| is(job))).await
}

async fn job_ends(runtime: &Runtime, id: JobId) -> Job {
    job_is(runtime, id, "the job is over", |job| job.status.is_over()).await
}

/// A job's task and its turn are there.
async fn job_works(runtime: &Runtime, id: JobId) -> Job {
    job_is(runtime, id, "the job works", |job| job.task_id.is_some() && job.turn_id.is_some()).await
}

#[tokio::test]
async fn a_job_claims_a_task_has_a_turn_for_it_and_completes_it() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    let payload = json!({ "about": "marmots" });
    let new = NewTask { id: Some("a".into()), task_type: "dig".into(), payload, ..NewTask::default() };
    runtime.create_tasks(OWNER, run, vec![new], call()).await.unwrap();
    let key = bound(&runtime, run).await;
    let id = make(&runtime, for_a_task(key, "hold do it", run, json!({ "task_type": "dig" }))).await;
    let works = job_works(&runtime, id).await;
    assert_eq!(works.task_id.as_deref(), Some("a"));
    let turn = works.turn_id.unwrap();
    assert_eq!(runtime.turn(key, turn).await.unwrap().task_id.as_deref(), Some("a"));
    for _ in 0..3 {
        beats(&runtime, run).await;
        bed.clock.advance(LEASE_MS - 1_000);
    }
    bed.model.gate.add_permits(1);
    let done = job_ends(&runtime, id).await;
    assert_eq!((done.status, done.attempt), (JobStatus::Completed, 0));
    let task = task(&runtime, run, "a").await;
    assert_eq!((task.status, &task.output), (TaskStatus::Done, &done.output));
    let seen = bed.model.seen.lock().unwrap().clone();
    let said = format!("{:?}", seen.last().unwrap());
    assert!(said.contains("do it") && said.contains("marmots") && said.contains("`a`"), "{said}");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn an_output_that_fits_no_task_does_not_keep_it_from_being_done() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a", "b"]).await;
    let key = bound(&runtime, run).await;
    // The model echoes it.
    let long = make(&runtime, for_a_task(key, &"x".repeat(60_000), run, json!({}))).await;
    assert_eq!(job_ends(&runtime, long).await.status, JobStatus::Completed);
    let cut = task(&runtime, run, "a").await;
    assert!(cut.status == TaskStatus::Done && cut.output.is_some(), "{cut:?}");
    // Six bytes of JSON for each of these.
    let wide = make(&runtime, for_a_task(key, &"\u{1}".repeat(9_000), run, json!({}))).await;
    assert_eq!(job_ends(&runtime, wide).await.status, JobStatus::Completed);
    assert_eq!(task(&runtime, run, "b").await.status, TaskStatus::Done);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_turn_that_fails_costs_its_task_an_attempt_and_the_job_claims_again() {
    let mut bed = bed();
    let failing = Arc::new(AtomicUsize::new(2));
    let fails = failing.clone();
    bed.model = TestModel::with(Box::new(move |_, _| {
        let left = fails.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "told to fail");
    }));
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let template = Template { backoff_base_ms: 500, ..for_a_task(key, "x", run, json!({ "task_id": "a" })) };
    let id = make(&runtime, template).await;
    // Its retry comes by the clock, and the job claims it then.
    let done = until("the job is over", async || {
        bed.clock.advance(100);
        // A job that waits is looked at when something is told.
        drop(runtime.create_thread(OWNER, NewThread::with(choice()), call()).await);
        Some(job(&runtime, id).await).filter(|job| job.status.is_over())
    })
    .await;
    let task = task(&runtime, run, "a").await;
    let attempts = count(&runtime, run, "context.task.failed").await;
    assert_eq!((done.status, task.status), (JobStatus::Completed, TaskStatus::Done), "{done:#?}");
    assert_eq!(task.attempt as usize, attempts, "each failure once");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_job_that_finds_no_task_is_tried_again_and_then_fails() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    let key = bound(&runtime, run).await;
    let id = make(&runtime, for_a_task(key, "x", run, json!({}))).await;
    let failed = job_ends(&runtime, id).await;
    assert_eq!((failed.status, failed.attempt, failed.turn_id), (JobStatus::Failed, 3, None));
    assert!(failed.detail.as_deref().unwrap().contains("no task"), "{failed:?}");
    let unknown = make(&runtime, for_a_task(key, "x", run, json!({ "task_id": "none" }))).await;
    let failed = job_ends(&runtime, unknown).await;
    assert_eq!((failed.status, failed.attempt), (JobStatus::Failed, 0), "such a task never comes");
    assert!(runtime.turns(key, None, 9).await.unwrap().data.is_empty(), "no turn without a task");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_job_that_is_cancelled_or_paused_gives_its_task_back_once_its_turn_has_ended() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let id = make(&runtime, for_a_task(key, "hold", run, json!({}))).await;
    let works = job_works(&runtime, id).await;
    runtime.cancel_job(OWNER, id, call()).await.unwrap();
    task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    let turn = runtime.turn(key, works.turn_id.unwrap()).await.unwrap();
    assert_eq!(turn.status, TurnStatus::Interrupted, "nobody is at the task any more");

    let id = make(&runtime, for_a_task(key, "hold", run, json!({}))).await;
    job_works(&runtime, id).await;
    runtime.pause_job(OWNER, id, call()).await.unwrap();
    task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    job_is(&runtime, id, "the turn was told", |job| !job.stopping).await;
    bed.model.gate.add_permits(1);
    runtime.resume_job(OWNER, id, call()).await.unwrap();
    let done = job_ends(&runtime, id).await;
    assert_eq!((done.status, done.run), (JobStatus::Completed, 2));
    assert_eq!(task(&runtime, run, "a").await.status, TaskStatus::Done);
    assert_eq!(count(&runtime, run, "context.task.completed").await, 1);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_turn_that_somebody_interrupts_gives_the_jobs_task_back() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let id = make(&runtime, for_a_task(key, "hold", run, json!({}))).await;
    let turn = job_works(&runtime, id).await.turn_id.unwrap();
    runtime.interrupt(key, Interrupt { turn, pause_queue: false }, call()).await.unwrap();
    assert_eq!(job_ends(&runtime, id).await.status, JobStatus::Cancelled);
    let back = task_is(&runtime, run, "a", TaskStatus::Runnable).await;
    assert_eq!(back.attempt, 0);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_task_that_is_taken_away_ends_the_turn_and_fails_the_job() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let id = make(&runtime, for_a_task(key, "hold", run, json!({}))).await;
    let turn = job_works(&runtime, id).await.turn_id.unwrap();
    let off = Transition::new("a".into(), Action::Status(TaskStatus::Cancelled));
    runtime.transition_task(OWNER, run, off, call()).await.unwrap();
    let failed = job_ends(&runtime, id).await;
    assert_eq!((failed.status, failed.detail.as_deref()), (JobStatus::Failed, Some("its task was taken away")));
    assert_eq!(ended(&runtime, key, turn).await, TurnStatus::Interrupted);
    assert_eq!(task(&runtime, run, "a").await.status, TaskStatus::Cancelled);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_prompt_that_waits_is_taken_back_with_its_task() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    start(&runtime, key, "hold").await;
    let id = make(&runtime, for_a_task(key, "never", run, json!({}))).await;
    job_is(&runtime, id, "its prompt waits", |job| job.input_id.is_some()).await;
    let off = Transition::new("a".into(), Action::Status(TaskStatus::Cancelled));
    runtime.transition_task(OWNER, run, off, call()).await.unwrap();
    assert_eq!(job_ends(&runtime, id).await.status, JobStatus::Failed);
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    assert_eq!(answers(&runtime, key).await.len(), 1, "nobody works on what is somebody else's");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_run_that_is_deleted_ends_the_job_that_works_for_it() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let id = make(&runtime, for_a_task(key, "hold", run, json!({}))).await;
    let turn = job_works(&runtime, id).await.turn_id.unwrap();
    runtime.delete_run(OWNER, run, call()).await.unwrap();
    assert_eq!(job_ends(&runtime, id).await.status, JobStatus::Failed);
    assert_eq!(ended(&runtime, key, turn).await, TurnStatus::Interrupted);
    // One that was made before, and begins only now.
    let refused = runtime.create_job(OWNER, for_a_task(key, "x", run, json!({})), None, call()).await;
    let field = "payload.task.run_id";
    assert!(matches!(refused, Err(Error::Job(JobRefused::Invalid { field: of, .. })) if of == field), "{refused:?}");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_thread_that_was_set_to_other_work_does_no_task_of_the_run() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let (run, other) = (new_run(&runtime).await, new_run(&runtime).await);
    add_tasks(&runtime, run, &["a"]).await;
    let key = bound(&runtime, run).await;
    let later = raddle_domain::time::UnixMs(1_795_000_000_000 + 1_000);
    let made = runtime.create_job(OWNER, for_a_task(key, "x", run, json!({})), Some(later), call()).await;
    let id = made.unwrap().value.id;
    let patch = raddle_domain::command::ThreadPatch { run_id: Some(Some(other)), ..Default::default() };
    runtime.patch_thread(key, patch, call()).await.unwrap();
    bed.clock.advance(1_000);
    runtime.retry_job(OWNER, id, call()).await.ok();
    // Another job's coming has the actor look at the clock.
    let nudge = for_a_task(bound(&runtime, other).await, "x", other, json!({}));
    make(&runtime, nudge).await;
    assert_eq!(job_ends(&runtime, id).await.status, JobStatus::Failed);
    let free = task(&runtime, run, "a").await;
    assert_eq!((free.status, free.attempt), (TaskStatus::Pending, 0));
    runtime.shutdown(LONG).await;
}

/// A store that loses every write from the `n`th on: what a process stores that dies right before it.
fn dying(n: usize, config: &Config) -> (Hooked, Arc<AtomicBool>) {
    let (left, dead) = (AtomicUsize::new(n), Arc::new(AtomicBool::new(false)));
    let died = dead.clone();
    let door: OnCommit = Box::new(move |_, commit| {
        if left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return commit();
        }
        died.store(true, SeqCst);
        Err(StoreError::Unavailable("the process died".into()))
    });
    (Hooked::open(&config.store, door), dead)
}

#[tokio::test]
async fn a_job_whose_process_dies_at_any_commit_does_its_task_once() {
    for n in 0.. {
        let bed = Bed::new();
        let config = || Config { jobs_lease: Duration::from_millis(150), ..bed.config() };
        let runtime = Runtime::start(config(), bed.ports()).await.unwrap();
        let run = new_run(&runtime).await;
        add_tasks(&runtime, run, &["a", "b"]).await;
        let key = bound(&runtime, run).await;
        runtime.shutdown(LONG).await;
        drop(runtime);

        // The first commit is that of the start.
        let (store, dead) = dying(n + 1, &config());
        let dies = Runtime::start(config(), Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
        let template = || for_a_task(key, "call once x; ", run, json!({}));
        let made = dies.create_job(OWNER, template(), None, keyed(1, 1)).await;
        let lived = until("it dies, or comes to its end", async || {
            let over = match &made {
                Ok(done) => dies.job(OWNER, done.value.id).await.is_ok_and(|job| job.status.is_over()),
                Err(_) => false,
            };
            if dead.load(SeqCst) {
                return Some(false);
            }
            over.then_some(true)
        })
        .await;
        dies.shutdown(Duration::ZERO).await;
        drop(dies);

        let runtime = Runtime::start(config(), bed.ports()).await.unwrap();
        let id = runtime.create_job(OWNER, template(), None, keyed(1, 1)).await.unwrap().value.id;
        let found = until("the job goes on", async || {
            // What nobody may know of is for a person to say.
            for effect in runtime
                .effects(OWNER, raddle_actors::RecordQuery { open: true, limit: 9, ..Default::default() })
                .await
                .unwrap()
                .data
            {
                let resolution = raddle_domain::record::Resolution::Settle;
                drop(runtime.resolve(OWNER, effect.operation_id, resolution, Some("done".into()), call()).await);
            }
            Some(job(&runtime, id).await).filter(|job| job.status.is_over())
        })
        .await;
        assert_eq!((found.status, found.run, found.attempt), (JobStatus::Completed, 1, 0), "{n}: {found:#?}");
        let (a, b) = (task(&runtime, run, "a").await, task(&runtime, run, "b").await);
        assert_eq!((a.status, a.attempt, a.output), (TaskStatus::Done, 0, found.output), "{n}");
        assert_eq!((b.status, b.assigned_agent), (TaskStatus::Pending, None), "{n}: one job, one task");
        assert_eq!(count(&runtime, run, "context.task.completed").await, 1, "{n}");
        assert_eq!(runtime.turns(key, None, 9).await.unwrap().data.len(), 1, "{n}");
        assert!(bed.acts() <= 1, "{n}");
        ledger_is_exact(&runtime, run, key).await;
        runtime.shutdown(LONG).await;
        if lived {
            assert!(n > 8, "only {n} commits: hardly a matrix");
            return;
        }
    }
}

#[tokio::test]
async fn a_job_that_lost_its_task_while_it_was_away_does_no_other() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a", "b"]).await;
    let key = bound(&runtime, run).await;
    let template = Template { max_attempts: 0, ..for_a_task(key, "hold", run, json!({})) };
    let id = make(&runtime, template).await;
    let turn = job_works(&runtime, id).await.turn_id.unwrap();
    runtime.shutdown(Duration::ZERO).await;
    drop(runtime);
    // Somebody else gets it before the job is there again.
    bed.clock.advance(LEASE_MS);
    let other = Runtime::start(Config { jobs_concurrent: 1, ..config(&bed) }, bed.ports()).await.unwrap();
    let by = Claim { agent_id: "somebody".into(), task_id: Some("a".into()), ..Claim::default() };
    let claimed = other.claim_task(OWNER, run, by, call()).await.unwrap().value.task;
    match claimed {
        // The job was quicker: its lease had run out, but nobody had the task, so it goes on with it.
        None => {
            bed.model.gate.add_permits(1);
            assert_eq!(job_ends(&other, id).await.status, JobStatus::Completed);
            assert_eq!(task(&other, run, "a").await.status, TaskStatus::Done);
        }
        Some(_) => {
            assert_eq!(job_ends(&other, id).await.status, JobStatus::Failed);
            assert_eq!(ended(&other, key, turn).await, TurnStatus::Interrupted);
            assert_eq!(task(&other, run, "a").await.assigned_agent.as_deref(), Some("somebody"));
        }
    }
    assert_eq!(task(&other, run, "b").await.status, TaskStatus::Pending);
    other.shutdown(LONG).await;
}

// ---- the ledger ----------------------------------------------------------------------------------

/// What a log says to a ledger.
fn due(log: &[Record]) -> Vec<(LedgerPhase, LedgerStatus, String, u32, Seq)> {
    let entry = |record: &Record| {
        let (phase, effect) = match &record.event {
            Event::EffectStarted(effect) => (LedgerPhase::Invocation, effect),
            Event::EffectSettled(effect) | Event::EffectUncertain(effect) => (LedgerPhase::Outcome, effect),
            _ => return None,
        };
        effect.run_id?;
        let status = match (&record.event, effect.outcome) {
            (Event::EffectStarted(_), _) => LedgerStatus::Started,
            (Event::EffectUncertain(_), _) => LedgerStatus::Uncertain,
            (_, Some(EffectOutcome::Succeeded)) => LedgerStatus::Succeeded,
            (_, Some(EffectOutcome::Canceled)) => LedgerStatus::Blocked,
            _ => LedgerStatus::Failed,
        };
        Some((phase, status, effect.operation_id.to_string(), effect.attempt, record.seq))
    };
    log.iter().filter_map(entry).collect()
}

/// Waits until the ledger has what the log says, and sees that it has nothing else.
async fn ledger_is_exact(runtime: &Runtime, run: RunId, key: ThreadKey) {
    let expected = due(&log(runtime, key).await);
    let found = until("the ledger is complete", async || {
        let found = records(runtime, run).await;
        (found.len() >= expected.len()).then_some(found)
    })
    .await;
    let found: Vec<_> = found
        .iter()
        .filter(|record| record.source.thread_id == key.thread)
        .map(|record| {
            let source = record.source;
            (record.phase, record.status, source.operation_id.to_string(), record.attempt, source.seq)
        })
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn every_effect_is_in_the_ledger_once_though_its_process_died_at_any_commit() {
    for n in 0.. {
        let bed = Bed::new();
        let runtime = bed.start().await;
        let run = new_run(&runtime).await;
        let key = bound(&runtime, run).await;
        runtime.shutdown(LONG).await;
        drop(runtime);

        let (store, dead) = dying(n + 1, &bed.config());
        let ports = Ports { store: Some(Arc::new(store)), ..bed.ports() };
        let dies = Runtime::start(bed.config(), ports).await.unwrap();
        let started =
            dies.start_turn(key, prompt("call idempotent a; call read b", Delivery::Reject), keyed(1, 1)).await;
        let lived = until("it dies, or the ledger is complete", async || {
            if dead.load(SeqCst) {
                return Some(false);
            }
            started.as_ref().unwrap();
            let complete = dies.run_ledger(OWNER, run, 0, 99).await.is_ok_and(|page| page.entries.len() == 4);
            complete.then_some(true)
        })
        .await;
        dies.shutdown(Duration::ZERO).await;
        drop(dies);

        let runtime = bed.start().await;
        let start = prompt("call idempotent a; call read b", Delivery::Reject);
        runtime.start_turn(key, start, keyed(1, 1)).await.unwrap();
        rests(&runtime, key).await;
        ledger_is_exact(&runtime, run, key).await;
        let replayed = runtime.replay_run(OWNER, run, None, None).await.unwrap();
        assert!(replayed.drift.as_ref().is_some_and(|drift| !drift.mismatch), "{n}: {:?}", replayed.drift);
        runtime.shutdown(LONG).await;
        if lived {
            assert!(n > 5, "only {n} commits: hardly a matrix");
            return;
        }
    }
}

#[tokio::test]
async fn a_run_that_cannot_be_written_keeps_no_other_from_its_ledger() {
    let bed = Bed::new();
    let config = bed.config();
    let (stuck, refused) = (Arc::new(std::sync::Mutex::new(None::<ThreadKey>)), Arc::new(AtomicUsize::new(0)));
    let (is_stuck, told) = (stuck.clone(), refused.clone());
    let door: OnCommit = Box::new(move |writes, commit| {
        let stuck = *is_stuck.lock().unwrap();
        let touches = |write: &raddle_domain::ports::Write| matches!(write, raddle_domain::ports::Write::Append(append) if Some(append.key) == stuck);
        if writes.iter().any(touches) {
            told.fetch_add(1, SeqCst);
            return Err(StoreError::Full);
        }
        commit()
    });
    let store = Hooked::open(&config.store, door);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    // The hook delivers by run, in the order of their names.
    let (first, second) = (new_run(&runtime).await, new_run(&runtime).await);
    let (ours, theirs) = (bound(&runtime, first).await, bound(&runtime, second).await);
    *stuck.lock().unwrap() = Some(first.log(OWNER));
    say(&runtime, ours, "call once a").await;
    say(&runtime, theirs, "call once b").await;
    ledger_is_exact(&runtime, second, theirs).await;
    assert!(records(&runtime, first).await.is_empty() && refused.load(SeqCst) > 0);
    // Nor does one that is gone.
    let gone = new_run(&runtime).await;
    let gone_thread = bound(&runtime, gone).await;
    runtime.delete_run(OWNER, gone, call()).await.unwrap();
    say(&runtime, gone_thread, "call once c").await;
    *stuck.lock().unwrap() = None;
    say(&runtime, theirs, "call once d").await;
    ledger_is_exact(&runtime, second, theirs).await;
    ledger_is_exact(&runtime, first, ours).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn effects_are_of_the_task_that_their_turn_was_for() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a", "b", "c"]).await;
    let key = bound(&runtime, run).await;
    // Several jobs of one thread hold their tasks while their prompts wait for each other, and for a turn of nobody's.
    let open = start(&runtime, key, "hold call once none").await;
    let mut jobs = Vec::new();
    for id in ["a", "b", "c"] {
        let job = make(&runtime, for_a_task(key, &format!("call once {id}; "), run, json!({ "task_id": id }))).await;
        job_is(&runtime, job, "its prompt waits", |job| job.input_id.is_some()).await;
        jobs.push(job);
    }
    bed.model.gate.add_permits(1);
    assert_eq!(ended(&runtime, key, open.id).await, TurnStatus::Completed);
    for job in jobs {
        assert_eq!(job_ends(&runtime, job).await.status, JobStatus::Completed);
    }
    rests(&runtime, key).await;
    ledger_is_exact(&runtime, run, key).await;
    let mut of = BTreeMap::<TurnId, Option<String>>::new();
    for record in records(&runtime, run).await {
        let known = of.entry(record.source.turn_id).or_insert_with(|| record.task_id.clone());
        assert_eq!(*known, record.task_id, "{record:?}");
    }
    for turn in runtime.turns(key, None, 9).await.unwrap().data {
        assert_eq!(of.remove(&turn.id).unwrap(), turn.task_id, "{turn:?}");
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn effects_are_of_the_task_that_their_turn_held_however_late_the_ledger_is() {
    let bed = bed();
    let runtime = start_with(&bed).await;
    let run = new_run(&runtime).await;
    add_tasks(&runtime, run, &["a", "b"]).await;
    let key = bound(&runtime, run).await;
    let turn = start(&runtime, key, "call once x after; call once y after; call once z after").await;
    let worker = by_turn(key, turn.id);
    // Between the calls the turn takes a task and leaves it, at once after what was done before.
    bed.tools.acted(1).await;
    let claimed = claim(&runtime, run, worker).await.unwrap().id;
    bed.tools.after.add_permits(1);
    bed.tools.acted(2).await;
    runtime.end_work(OWNER, run, worker, (claimed, WorkEnd::Done(None)), call()).await.unwrap();
    let claimed = claim(&runtime, run, worker).await.unwrap().id;
    bed.tools.after.add_permits(1);
    bed.tools.acted(3).await;
    runtime.end_work(OWNER, run, worker, (claimed, WorkEnd::Done(None)), call()).await.unwrap();
    bed.tools.after.add_permits(1);
    rests(&runtime, key).await;
    ledger_is_exact(&runtime, run, key).await;
    let of: Vec<_> = records(&runtime, run).await.into_iter().map(|record| record.task_id).collect();
    let [a, b] = ["a", "b"].map(|id| Some(id.to_owned()));
    assert_eq!(of, [None, a.clone(), a, b.clone(), b, None], "invocation and outcome of each call");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_shutdown_leaves_complete_ledgers_behind() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let run = new_run(&runtime).await;
    let key = bound(&runtime, run).await;
    say(&runtime, key, "call once a; call once b").await;
    runtime.shutdown(LONG).await;
    drop(runtime);
    // A process that can store nothing more than that it has begun.
    let (store, _) = dying(1, &bed.config());
    let ports = Ports { store: Some(Arc::new(store)), ..bed.ports() };
    let reads = Runtime::start(bed.config(), ports).await.unwrap();
    assert_eq!(records(&reads, run).await.len(), 4);
    reads.shutdown(Duration::ZERO).await;
}
