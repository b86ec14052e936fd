//! What the runtime promises of jobs and schedules.

mod testbed;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use raddle_actors::{
    Config, Error, JobQuery, Ports, Runtime, TenantCursor,
    store::{backend::MemoryMedium, redb::RedbConfig},
};
use raddle_domain::{
    id::{JobId, ScheduleId, TenantId, ThreadId, ThreadKey},
    job::{CommandWork, Job, JobRefused, JobStatus, Template, WebhookWork, Work},
    ports::{JobDenied, JobEnd, JobRun, JobRunner, JobWork, Output},
    record::TurnStatus,
    schedule::{CatchUp, NewSchedule, Overlap, Schedule, SchedulePatch, ScheduleStatus},
    time::UnixMs,
};
use testbed::*;
use tokio::sync::{Semaphore, watch};

/// Runs what the text of a job's body, or of its command, says: `fail N` fails its first N runs, `never` always,
/// `hold` waits for a permit, `panic` panics, `deny` is forbidden. What it does to the world is in the ledger.
struct TestRunner {
    /// Each start, by job and run.
    begun: Mutex<Vec<(JobId, u32)>>,
    /// Each effect.
    done: Mutex<Vec<(JobId, u32)>>,
    now: AtomicUsize,
    most: AtomicUsize,
    hold: Semaphore,
    progress: watch::Sender<usize>,
}

impl TestRunner {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Mutex::default(),
            done: Mutex::default(),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            hold: Semaphore::new(0),
            progress: watch::Sender::new(0),
        })
    }

    async fn begun(&self, count: usize) {
        let begun = async { self.progress.subscribe().wait_for(|begun| *begun >= count).await.map(|_| ()).unwrap() };
        tokio::time::timeout(LONG, begun).await.expect("as many begin");
    }

    fn effects(&self) -> BTreeMap<JobId, usize> {
        let mut effects = BTreeMap::new();
        self.done.lock().unwrap().iter().for_each(|(job, _)| *effects.entry(*job).or_default() += 1);
        effects
    }
}

struct Held(Arc<TestRunner>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

struct Runner(Arc<TestRunner>);

fn text(run: &JobRun) -> String {
    match &run.work {
        Work::Webhook(hook) => hook.body.as_str().unwrap_or_default().to_owned(),
        Work::Command(command) => command.command.clone(),
        Work::Turn(_) => panic!("turns are not run here"),
    }
}

impl JobRunner for Runner {
    fn judge(&self, run: &JobRun) -> Result<Option<String>, JobDenied> {
        match text(run).as_str() {
            "deny" => Err(JobDenied::Forbidden { reason: "no".into(), rule: "r1".into() }),
            "ask" => Ok(Some("would have been asked".into())),
            _ => Ok(None),
        }
    }

    fn run(&self, run: JobRun, output: Arc<dyn Output>) -> JobWork {
        let runner = self.0.clone();
        Box::pin(async move {
            runner.begun.lock().unwrap().push((run.job, run.run));
            let now = runner.now.fetch_add(1, SeqCst) + 1;
            let _held = Held(runner.clone());
            runner.most.fetch_max(now, SeqCst);
            runner.progress.send_modify(|begun| *begun += 1);
            let text = text(&run);
            let words: Vec<&str> = text.split(' ').collect();
            if words.contains(&"hold") {
                runner.hold.acquire().await.unwrap().forget();
            }
            assert!(!words.contains(&"panic"), "told to");
            if words.contains(&"says") {
                output.say("half of it".into()).await;
                runner.hold.acquire().await.unwrap().forget();
            }
            let fails = words.iter().position(|word| *word == "fail").map(|at| words[at + 1].parse::<u32>().unwrap());
            if words.contains(&"never") || fails.is_some_and(|fails| run.run <= fails) {
                return JobEnd::Failed { why: "told to fail".into(), again: true };
            }
            runner.done.lock().unwrap().push((run.job, run.run));
            JobEnd::Done(format!("did {text}").into())
        })
    }
}

struct Jobs {
    bed: Bed,
    runner: Arc<TestRunner>,
}

impl Jobs {
    fn new() -> Self {
        let mut bed = Bed::new();
        bed.medium = Some(MemoryMedium::default());
        Self { bed, runner: TestRunner::new() }
    }

    fn config(&self) -> Config {
        Config { jobs_lease: Duration::from_secs(3_600), ..self.bed.config() }
    }

    async fn start_with(&self, config: Config) -> Runtime {
        let ports = Ports { jobs: Arc::new(Runner(self.runner.clone())), ..self.bed.ports() };
        Runtime::start(config, ports).await.unwrap()
    }

    async fn start(&self) -> Runtime {
        self.start_with(self.config()).await
    }
}

fn hook(text: &str) -> Template {
    Template::new("n", Work::Webhook(WebhookWork { url: "http://x/".into(), body: text.into(), secret: None }))
}

fn command(thread: ThreadId, text: &str) -> Template {
    Template::new(
        "n",
        Work::Command(CommandWork { thread_id: thread, command: text.into(), cwd: None, timeout_ms: None }),
    )
}

fn prompt_of(key: ThreadKey, prompt: &str) -> Template {
    let work = format!(r#"{{"kind":"turn","payload":{{"thread_id":"{}","prompt":"{prompt}"}}}}"#, key.thread);
    Template::new("n", serde_json::from_str(&work).unwrap())
}

fn call() -> raddle_actors::Call {
    raddle_actors::Call::default()
}

async fn make(runtime: &Runtime, template: Template) -> Job {
    runtime.create_job(OWNER, template, None, call()).await.unwrap().value
}

async fn job(runtime: &Runtime, id: JobId) -> Job {
    runtime.job(OWNER, id).await.unwrap()
}

/// Waits until the job is as asked. Whatever changes of it is in the tenant's feed.
async fn becomes(runtime: &Runtime, id: JobId, is: impl Fn(&Job) -> bool) -> Job {
    let becomes = async {
        let mut watch = runtime.subscribe_tenant(OWNER, None, None).await.unwrap();
        loop {
            let found = job(runtime, id).await;
            if is(&found) {
                return found;
            }
            watch.next().await.unwrap();
        }
    };
    match tokio::time::timeout(LONG, becomes).await {
        Ok(job) => job,
        Err(_) => panic!("the job stands otherwise: {:#?}", job(runtime, id).await),
    }
}

async fn ends(runtime: &Runtime, id: JobId) -> Job {
    becomes(runtime, id, |job| job.status.is_over()).await
}

/// Has the actor look at the clock again: time of the test does not pass by itself.
async fn nudge(runtime: &Runtime) {
    let far = Some(UnixMs::LAST);
    let job = runtime.create_job(OWNER, hook("far"), far, call()).await.unwrap().value;
    runtime.cancel_job(OWNER, job.id, call()).await.unwrap();
}

/// The names of a job's events, from the tenant's feed.
async fn events(runtime: &Runtime, id: JobId) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = TenantCursor { position: 0, seq: 0 };
    loop {
        let page = runtime.tenant_events(OWNER, Some(after), None, 1_000).await.unwrap();
        for (_, event) in &page.events {
            let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
            assert_eq!(json["event"], *event.name);
            if json["job_id"] == id.to_string() {
                assert_eq!(json["prev"], json["seq"].as_u64().unwrap() - 1);
                names.push(event.name.to_string());
            }
        }
        after = page.next;
        if !page.more {
            return names;
        }
    }
}

#[tokio::test]
async fn a_job_is_run_and_says_what_it_came_to() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let made = make(&runtime, hook("x")).await;
    let job = ends(&runtime, made.id).await;
    assert_eq!((job.status, job.progress, job.output.clone()), (JobStatus::Completed, 100, Some("did x".into())));
    assert_eq!((job.attempt, job.run, job.begun, job.lease), (0, 1, 1, None));
    assert_eq!(events(&runtime, made.id).await, ["job.queued", "job.started", "job.completed"]);
    let listed = runtime.jobs(OWNER, JobQuery { limit: 10, ..JobQuery::default() }).await.unwrap();
    assert_eq!(listed.data, [job]);
    let other: TenantId = "other".parse().unwrap();
    assert!(matches!(runtime.job(other, made.id).await, Err(Error::NotFound("job"))));
}

#[tokio::test]
async fn pauses_of_500_1000_and_2000_ms_and_the_fourth_failure_ends_it() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let id = make(&runtime, hook("never")).await.id;
    for (attempt, pause) in [(1, 500), (2, 1_000), (3, 2_000)] {
        let waits = becomes(&runtime, id, |job| job.attempt == attempt).await;
        assert_eq!((waits.status, waits.next_backoff_ms), (JobStatus::Queued, pause));
        assert_eq!(waits.next_retry_at, Some(UnixMs(waits.updated_at.0 + pause)));
        // A moment too early nothing happens: the next run is the one that the pause allows.
        bed.bed.clock.advance(pause - 1);
        nudge(&runtime).await;
        assert_eq!(job(&runtime, id).await.begun, attempt);
        bed.bed.clock.advance(1);
        nudge(&runtime).await;
    }
    let failed = ends(&runtime, id).await;
    assert_eq!((failed.status, failed.attempt, failed.next_retry_at), (JobStatus::Failed, 3, None));
    assert_eq!((failed.begun, failed.detail.as_deref()), (4, Some("told to fail")));
    // Not a moment too early: each run began when its pause was over.
    let begun: Vec<_> =
        failed.history.iter().filter(|phase| phase.phase == "running").map(|phase| phase.at.0).collect();
    assert_eq!(begun.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>(), [500, 1_000, 2_000]);
    let again = runtime.retry_job(OWNER, id, call()).await.unwrap().value;
    assert_eq!((again.status, again.attempt), (JobStatus::Queued, 0));
}

#[tokio::test]
async fn a_job_is_not_begun_before_its_time() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let at = UnixMs(1_795_000_000_000 + 5_000);
    let id = runtime.create_job(OWNER, hook("x"), Some(at), call()).await.unwrap().value.id;
    bed.bed.clock.advance(4_999);
    nudge(&runtime).await;
    assert_eq!(job(&runtime, id).await.begun, 0);
    bed.bed.clock.advance(1);
    nudge(&runtime).await;
    assert_eq!(ends(&runtime, id).await.started_at, Some(at));
}

#[tokio::test]
async fn the_same_request_makes_one_job() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let make = || runtime.create_job(OWNER, hook("x"), None, keyed(1, 1));
    let first = make().await.unwrap();
    ends(&runtime, first.value.id).await;
    let again = make().await.unwrap();
    assert!(again.replayed);
    // The reply of then.
    assert_eq!((again.value.id, again.value.status), (first.value.id, JobStatus::Queued));
    let mismatch = runtime.create_job(OWNER, hook("y"), None, keyed(1, 2)).await;
    assert!(matches!(mismatch, Err(Error::IdempotencyMismatch)));
    assert_eq!(bed.runner.effects().values().sum::<usize>(), 1);
}

#[tokio::test]
async fn a_paused_job_is_paused_after_a_restart() {
    let bed = Jobs::new();
    let first = bed.start().await;
    let at = Some(UnixMs(1_795_000_000_000 + 5_000));
    let id = first.create_job(OWNER, hook("x"), at, call()).await.unwrap().value.id;
    let running = make(&first, hook("hold")).await.id;
    bed.runner.begun(1).await;
    for id in [id, running] {
        first.pause_job(OWNER, id, call()).await.unwrap();
    }
    first.shutdown(LONG).await;
    let second = bed.start().await;
    bed.bed.clock.advance(10_000);
    nudge(&second).await;
    for id in [id, running] {
        assert_eq!(job(&second, id).await.status, JobStatus::Paused);
    }
    bed.runner.hold.add_permits(1);
    for id in [id, running] {
        second.resume_job(OWNER, id, call()).await.unwrap();
        assert_eq!(ends(&second, id).await.status, JobStatus::Completed);
    }
}

#[tokio::test]
async fn a_run_whose_process_is_lost_is_made_again_or_waits_for_a_word() {
    let bed = Jobs::new();
    let first = bed.start().await;
    let thread = create(&first).await;
    let again = make(&first, hook("hold")).await.id;
    let once = make(&first, command(thread.thread, "hold")).await.id;
    bed.runner.begun(2).await;
    // No time for them to end: as a crash would.
    first.shutdown(Duration::ZERO).await;
    let second = bed.start().await;
    let doubted = becomes(&second, once, |job| job.status == JobStatus::Uncertain).await;
    assert_eq!((doubted.lease, doubted.begun), (None, 1));
    bed.runner.begun(3).await;
    assert_eq!(bed.runner.begun.lock().unwrap()[2], (again, 1), "whoever is called knows the repeat");
    bed.runner.hold.add_permits(2);
    assert_eq!(ends(&second, again).await.status, JobStatus::Completed);
    let retried = second.retry_job(OWNER, once, call()).await.unwrap().value;
    assert_eq!(retried.status, JobStatus::Queued);
    assert_eq!(ends(&second, once).await.run, 2);
    assert_eq!(bed.runner.effects(), BTreeMap::from([(again, 1), (once, 1)]));
}

#[tokio::test]
async fn a_cancelled_run_is_given_up_and_ends_once() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let id = make(&runtime, hook("hold")).await.id;
    bed.runner.begun(1).await;
    let cancelled = runtime.cancel_job(OWNER, id, call()).await.unwrap().value;
    assert_eq!((cancelled.status, cancelled.lease), (JobStatus::Cancelled, None));
    let gone = async {
        while bed.runner.now.load(SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("the runner is given up");
    let again = runtime.cancel_job(OWNER, id, call()).await;
    assert!(matches!(again, Err(Error::Job(JobRefused::Not { status: JobStatus::Cancelled, .. }))));
    assert_eq!(events(&runtime, id).await, ["job.queued", "job.started", "job.cancelled"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cancel_and_a_completion_one_wins() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    for _ in 0..20 {
        let begun = *bed.runner.progress.borrow();
        let id = make(&runtime, hook("hold")).await.id;
        bed.runner.begun(begun + 1).await;
        let cancel = runtime.cancel_job(OWNER, id, call());
        bed.runner.hold.add_permits(1);
        let cancelled = cancel.await.is_ok();
        let job = ends(&runtime, id).await;
        assert_eq!(job.status == JobStatus::Cancelled, cancelled, "{job:#?}");
        let ends: Vec<_> = events(&runtime, id).await.split_off(2);
        assert_eq!(ends, [if cancelled { "job.cancelled" } else { "job.completed" }]);
        // A permit that nobody took is not for the next.
        while let Ok(permit) = bed.runner.hold.try_acquire() {
            permit.forget();
        }
    }
}

#[tokio::test]
async fn what_a_run_says_is_seen_before_its_end() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let id = make(&runtime, hook("says")).await.id;
    let speaks = becomes(&runtime, id, |job| job.detail.is_some()).await;
    assert_eq!((speaks.status, speaks.detail.as_deref()), (JobStatus::Running, Some("half of it")));
    bed.runner.hold.add_permits(1);
    assert_eq!(ends(&runtime, id).await.status, JobStatus::Completed);
}

#[tokio::test]
async fn a_job_whose_lease_is_due_while_it_is_changed_goes_on() {
    let bed = Bed::new();
    // Each change takes longer than the pause before the lease is renewed.
    let store = RedbConfig { sync_delay: Duration::from_millis(60), ..bed.config().store };
    let config = Config { store, jobs_lease: Duration::from_millis(30), ..bed.config() };
    let runtime = Runtime::start(config, bed.ports()).await.unwrap();
    let thread = create(&runtime).await;
    let id = make(&runtime, prompt_of(thread, "x")).await.id;
    let done = ends(&runtime, id).await;
    assert_eq!((done.status, done.begun), (JobStatus::Completed, 1));
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_runner_that_panics_fails_one_run() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let thread = create(&runtime).await;
    let once = make(&runtime, command(thread.thread, "panic")).await.id;
    assert_eq!(becomes(&runtime, once, |job| job.begun == 1 && job.lease.is_none()).await.status, JobStatus::Uncertain);
    let again = make(&runtime, hook("panic")).await.id;
    assert_eq!(becomes(&runtime, again, |job| job.attempt == 1).await.status, JobStatus::Queued);
    let next = make(&runtime, hook("x")).await.id;
    assert_eq!(ends(&runtime, next).await.status, JobStatus::Completed);
}

#[tokio::test]
async fn runs_are_bounded_and_tenants_take_turns() {
    let bed = Jobs::new();
    let config = Config { jobs_concurrent: 2, ..bed.config() };
    let runtime = bed.start_with(config).await;
    let (many, few): (TenantId, TenantId) = ("many".parse().unwrap(), "few".parse().unwrap());
    let make = |tenant| runtime.create_job(tenant, hook("hold"), None, call());
    let crowd: Vec<_> =
        join_all((0..50).map(|_| make(many))).await.into_iter().map(|job| job.unwrap().value.id).collect();
    bed.runner.begun(2).await;
    let lone = make(few).await.unwrap().value.id;
    // The actor has seen it once it has looked again; each job that ends has it look.
    for count in 3..60 {
        bed.runner.hold.add_permits(1);
        if count <= 51 {
            bed.runner.begun(count).await;
        }
    }
    let all = async {
        for (tenant, id) in crowd.iter().map(|id| (many, *id)).chain([(few, lone)]) {
            while !runtime.job(tenant, id).await.unwrap().status.is_over() {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(LONG, all).await.expect("all end");
    assert_eq!(bed.runner.most.load(SeqCst), 2);
    let order: Vec<_> = bed.runner.begun.lock().unwrap().iter().map(|(job, _)| *job).collect();
    let place = order.iter().position(|job| *job == lone).unwrap();
    assert!(place < 10, "the lone job had to wait for {place} of the crowd");
}

#[tokio::test]
async fn what_a_rule_forbids_is_not_made_and_what_would_be_asked_is_noted() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let denied = runtime.create_job(OWNER, hook("deny"), None, call()).await;
    assert!(matches!(denied, Err(Error::Job(JobRefused::Forbidden { ref rule, .. })) if rule == "r1"), "{denied:?}");
    let asked = make(&runtime, hook("ask")).await;
    assert_eq!(asked.history[0].detail.as_deref(), Some("would have been asked"));
    let nowhere = command(ThreadId::from_bytes([9; 16]), "x");
    let nowhere = runtime.create_job(OWNER, nowhere, None, call()).await;
    assert!(matches!(nowhere, Err(Error::Job(JobRefused::Invalid { field: "payload.thread_id", .. }))));
    let listed = runtime.jobs(OWNER, JobQuery { limit: 10, ..JobQuery::default() }).await.unwrap();
    assert_eq!(listed.data.len(), 1, "refused is no trace");
}

#[tokio::test]
async fn a_job_that_ended_is_forgotten_after_its_time() {
    let bed = Jobs::new();
    let runtime = bed.start_with(Config { jobs_retention: Duration::from_secs(60), ..bed.config() }).await;
    let id = make(&runtime, hook("x")).await.id;
    ends(&runtime, id).await;
    bed.bed.clock.advance(59_999);
    nudge(&runtime).await;
    job(&runtime, id).await;
    bed.bed.clock.advance(1);
    nudge(&runtime).await;
    let gone = async {
        while runtime.job(OWNER, id).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("it goes");
    let open = JobQuery { limit: 10, ..JobQuery::default() };
    assert!(runtime.jobs(OWNER, open).await.unwrap().data.iter().all(|job| job.id != id));
}

// ---- turns ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_turn_is_started_once_and_followed_to_its_end() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let thread = create(&runtime).await;
    let id = make(&runtime, prompt_of(thread, "hello")).await.id;
    let job = ends(&runtime, id).await;
    assert_eq!(job.status, JobStatus::Completed, "{job:#?}");
    let turn = job.turn_id.unwrap();
    assert_eq!(runtime.turn(thread, turn).await.unwrap().status, TurnStatus::Completed);
    assert_eq!(job.output.unwrap()["turn_id"], turn.to_string());
    assert_eq!(runtime.turns(thread, None, 10).await.unwrap().data.len(), 1);
}

#[tokio::test]
async fn a_thread_that_is_gone_fails_the_job_for_good() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let thread = create(&runtime).await;
    let at = Some(UnixMs(1_795_000_000_000 + 1_000));
    let id = runtime.create_job(OWNER, prompt_of(thread, "x"), at, call()).await.unwrap().value.id;
    runtime.delete_thread(thread, call()).await.unwrap();
    bed.bed.clock.advance(1_000);
    nudge(&runtime).await;
    let failed = ends(&runtime, id).await;
    assert_eq!((failed.status, failed.begun), (JobStatus::Failed, 1));
}

#[tokio::test]
async fn a_turn_is_found_again_by_the_next_process() {
    let bed = Jobs::new();
    let first = bed.start().await;
    let thread = create(&first).await;
    let id = make(&first, prompt_of(thread, "hold on")).await.id;
    let attached = becomes(&first, id, |job| job.turn_id.is_some()).await;
    answering(&first, thread).await;
    first.shutdown(Duration::ZERO).await;
    drop(first);
    let second = bed.start().await;
    let lost = becomes(&second, id, |job| job.begun == 2).await;
    assert_eq!((lost.turn_id, lost.run), (attached.turn_id, 1));
    bed.bed.model.gate.add_permits(9);
    assert_eq!(ends(&second, id).await.status, JobStatus::Completed);
    assert_eq!(second.turns(thread, None, 10).await.unwrap().data.len(), 1);
}

#[tokio::test]
async fn a_turn_that_waits_for_a_person_takes_no_place_and_is_no_timeout() {
    let bed = Jobs::new();
    let runtime = bed.start_with(Config { jobs_concurrent: 1, ..bed.config() }).await;
    let thread = create(&runtime).await;
    let asks = make(&runtime, prompt_of(thread, "call gated_once x")).await.id;
    waits(&runtime, thread).await;
    // There is one place, and it is free.
    let other = make(&runtime, hook("x")).await.id;
    assert_eq!(ends(&runtime, other).await.status, JobStatus::Completed);
    bed.bed.clock.advance(60 * 60 * 1000);
    nudge(&runtime).await;
    assert_eq!(job(&runtime, asks).await.status, JobStatus::Running);
    let approval = pending(&runtime, thread).await.remove(0);
    let decision = raddle_domain::record::Decision::Approved;
    runtime.decide(OWNER, approval.id, decision, None, call()).await.unwrap();
    assert_eq!(ends(&runtime, asks).await.status, JobStatus::Completed);
}

#[tokio::test]
async fn a_paused_turn_is_ended_and_another_begins_when_its_job_goes_on() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let thread = create(&runtime).await;
    let id = make(&runtime, prompt_of(thread, "hold on")).await.id;
    let first = becomes(&runtime, id, |job| job.turn_id.is_some()).await.turn_id.unwrap();
    runtime.pause_job(OWNER, id, call()).await.unwrap();
    assert_eq!(ended(&runtime, thread, first).await, TurnStatus::Interrupted);
    bed.bed.model.gate.add_permits(9);
    runtime.resume_job(OWNER, id, call()).await.unwrap();
    let done = ends(&runtime, id).await;
    assert_eq!((done.status, done.run), (JobStatus::Completed, 2), "{done:#?}");
    assert_ne!(done.turn_id, Some(first));
    assert_eq!(runtime.turns(thread, None, 10).await.unwrap().data.len(), 2);
}

#[tokio::test]
async fn the_turn_of_a_lost_run_is_ended_when_its_job_is_cancelled() {
    let bed = Jobs::new();
    let first = bed.start().await;
    let thread = create(&first).await;
    let holds = make(&first, hook("hold")).await.id;
    bed.runner.begun(1).await;
    bed.bed.clock.advance(1);
    let id = make(&first, prompt_of(thread, "hold on")).await.id;
    let turn = becomes(&first, id, |job| job.turn_id.is_some()).await.turn_id.unwrap();
    answering(&first, thread).await;
    first.shutdown(Duration::ZERO).await;
    drop(first);
    // There is one place, and the older job is there first: the turn goes on, and its job stays queued. Were the turn's
    // job faster the same would follow.
    let second = bed.start_with(Config { jobs_concurrent: 1, ..bed.config() }).await;
    becomes(&second, id, |job| job.status == JobStatus::Queued || job.begun == 2).await;
    let cancelled = second.cancel_job(OWNER, id, call()).await.unwrap().value;
    assert_eq!((cancelled.status, cancelled.turn_id), (JobStatus::Cancelled, Some(turn)));
    bed.runner.hold.add_permits(1);
    assert_eq!(ended(&second, thread, turn).await, TurnStatus::Interrupted);
    assert_eq!(ends(&second, holds).await.status, JobStatus::Completed);
    bed.bed.model.gate.add_permits(9);
    second.retry_job(OWNER, id, call()).await.unwrap();
    let done = ends(&second, id).await;
    assert_eq!((done.status, done.run), (JobStatus::Completed, 2), "{done:#?}");
    assert_ne!(done.turn_id, Some(turn));
}

#[tokio::test]
async fn a_lease_that_passes_is_another_runs() {
    let bed = Jobs::new();
    let runtime = bed.start_with(Config { jobs_lease: Duration::from_millis(60), ..bed.config() }).await;
    let id = make(&runtime, hook("hold")).await.id;
    bed.runner.begun(1).await;
    let first = job(&runtime, id).await.lease.unwrap();
    // A run that is at work says so: the lease moves with the clock, and no event tells of it.
    bed.bed.clock.advance(50);
    let moved = async {
        while job(&runtime, id).await.lease.unwrap().expires_at == first.expires_at {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, moved).await.expect("it is renewed");
    assert_eq!(job(&runtime, id).await.seq, 2);
    bed.runner.hold.add_permits(1);
    assert_eq!(ends(&runtime, id).await.begun, 1);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_one_jobs_problem() {
    use raddle_domain::ports::{Append, Chunk, LogKind, LogStore, RowHead, ThreadRow, Write};
    let bed = Jobs::new();
    let first = bed.start().await;
    let at = Some(UnixMs(1_795_000_000_000 + 5_000));
    let make = |text| first.create_job(OWNER, hook(text), at, call());
    let (broken, whole) = (make("x").await.unwrap().value, make("y").await.unwrap().value);
    first.shutdown(LONG).await;
    drop(first);
    {
        let medium = bed.bed.medium.clone().unwrap();
        let store = raddle_actors::store::redb::RedbStore::open_medium(Arc::new(medium), 1 << 20, 0).unwrap();
        let head = RowHead { last_seq: 1, fence: store.epoch(), wake_at: at, kind: LogKind::Job, ..RowHead::default() };
        let row = ThreadRow { head, view: Arc::from(&b"{"[..]), snapshot: Arc::from(&b""[..]) };
        let chunk = Chunk { first: 2, events: Vec::new() };
        let append = Append::new(broken.id.log(OWNER), 1, UnixMs(0), chunk, row);
        store.commit(&[Write::Append(append)]).unwrap().remove(0).unwrap();
    }
    let second = bed.start().await;
    bed.bed.clock.advance(5_000);
    nudge(&second).await;
    assert_eq!(ends(&second, whole.id).await.status, JobStatus::Completed);
    assert!(matches!(second.job(OWNER, broken.id).await, Err(Error::ThreadUnavailable(_))));
    let listed = second.jobs(OWNER, JobQuery { limit: 10, ..JobQuery::default() }).await.unwrap();
    assert!(listed.data.iter().any(|job| job.id == whole.id) && listed.data.iter().all(|job| job.id != broken.id));
}

// ---- schedules -----------------------------------------------------------------------------------

fn every(cron: &str, zone: &str, text: &str) -> NewSchedule {
    NewSchedule {
        name: None,
        cron: Some(cron.into()),
        at: None,
        timezone: Some(zone.into()),
        overlap: Overlap::Skip,
        catch_up: CatchUp::All,
        job: hook(text),
    }
}

fn at(text: &str) -> UnixMs {
    serde_json::from_str(&format!("\"{text}\"")).unwrap()
}

/// Moves the clock to `text`.
fn to(bed: &Jobs, text: &str) {
    let now = raddle_domain::ports::Clock::now(&*bed.bed.clock);
    bed.bed.clock.advance(at(text).0 - now.0);
}

async fn schedule(runtime: &Runtime, id: ScheduleId) -> Schedule {
    runtime.schedule(OWNER, id).await.unwrap()
}

/// Waits until as many jobs were made as asked.
async fn fires(runtime: &Runtime, id: ScheduleId, count: u64) -> Schedule {
    settles(runtime, id, |schedule| schedule.fired == count).await
}

async fn settles(runtime: &Runtime, id: ScheduleId, is: impl Fn(&Schedule) -> bool) -> Schedule {
    let settles = async {
        loop {
            let found = schedule(runtime, id).await;
            if is(&found) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    match tokio::time::timeout(LONG, settles).await {
        Ok(found) => found,
        Err(_) => panic!("the schedule stands otherwise: {:#?}", schedule(runtime, id).await),
    }
}

async fn slots(runtime: &Runtime, id: ScheduleId) -> Vec<String> {
    let jobs = runtime.jobs(OWNER, JobQuery { limit: 100, ..JobQuery::default() }).await.unwrap().data;
    let of = jobs.iter().filter(|job| job.schedule_id == Some(id));
    let mut slots: Vec<_> = of.map(|job| job.slot.unwrap().to_string()[..16].to_owned()).collect();
    slots.sort();
    slots
}

#[tokio::test]
async fn a_schedule_keeps_local_time_over_both_changes_of_the_clock() {
    let bed = Jobs::new();
    to(&bed, "2027-03-26T12:00:00Z");
    let year = Duration::from_secs(366 * 24 * 60 * 60);
    let runtime = bed.start_with(Config { jobs_retention: year, ..bed.config() }).await;
    // Berlin goes forward on 28 March 2027, and back on 31 October.
    let id = runtime.create_schedule(OWNER, every("30 2 * * *", "Europe/Berlin", "x"), call()).await.unwrap().value.id;
    let days = [
        ("2027-03-27T01:30", "2027-03-27T01:30:01Z"),
        ("2027-03-28T01:00", "2027-03-28T01:00:01Z"),
        ("2027-03-29T00:30", "2027-03-29T00:30:01Z"),
    ];
    for (count, (slot, now)) in days.iter().enumerate() {
        to(&bed, now);
        nudge(&runtime).await;
        let fired = fires(&runtime, id, count as u64 + 1).await;
        assert_eq!(&fired.last_at.unwrap().to_string()[..16], *slot);
        ends(&runtime, fired.last_job.unwrap()).await;
    }
    let autumn = SchedulePatch { paused: Some(true), ..SchedulePatch::default() };
    runtime.patch_schedule(OWNER, id, autumn, call()).await.unwrap();
    to(&bed, "2027-10-30T12:00:00Z");
    let again = SchedulePatch { paused: Some(false), ..SchedulePatch::default() };
    runtime.patch_schedule(OWNER, id, again, call()).await.unwrap();
    for (count, (slot, now)) in
        [("2027-10-31T00:30", "2027-10-31T02:00:00Z"), ("2027-11-01T01:30", "2027-11-01T01:30:01Z")].iter().enumerate()
    {
        to(&bed, now);
        nudge(&runtime).await;
        let fired = fires(&runtime, id, count as u64 + 4).await;
        assert_eq!(&fired.last_at.unwrap().to_string()[..16], *slot);
        ends(&runtime, fired.last_job.unwrap()).await;
    }
    assert_eq!(slots(&runtime, id).await.len(), 5);
}

#[tokio::test]
async fn after_a_time_without_a_server_slots_are_made_up_for_as_asked() {
    for (catch_up, expected, skipped) in [(CatchUp::None, 0, 4), (CatchUp::One, 1, 3), (CatchUp::All, 4, 0)] {
        let bed = Jobs::new();
        to(&bed, "2027-01-01T00:30:00Z");
        let first = bed.start().await;
        let new = NewSchedule { catch_up, overlap: Overlap::Queue, ..every("0 * * * *", "UTC", "x") };
        let id = first.create_schedule(OWNER, new, call()).await.unwrap().value.id;
        first.shutdown(LONG).await;
        to(&bed, "2027-01-01T04:30:00Z");
        let second = bed.start().await;
        let found = settles(&second, id, |schedule| schedule.fired == expected && schedule.waiting.is_empty()).await;
        let found = settles(&second, id, |schedule| schedule.skipped == skipped && schedule.seq >= found.seq).await;
        assert_eq!(found.next_at, Some(at("2027-01-01T05:00:00Z")), "{catch_up:?}");
        assert_eq!(slots(&second, id).await.len() as u64, expected);
    }
}

#[tokio::test]
async fn a_slot_that_comes_too_soon_is_left_out_waits_or_ends_the_last() {
    for overlap in [Overlap::Skip, Overlap::Queue, Overlap::CancelRunning] {
        let bed = Jobs::new();
        to(&bed, "2027-01-01T00:30:00Z");
        let runtime = bed.start().await;
        let new = NewSchedule { overlap, ..every("0 * * * *", "UTC", "hold") };
        let id = runtime.create_schedule(OWNER, new, call()).await.unwrap().value.id;
        to(&bed, "2027-01-01T01:00:01Z");
        nudge(&runtime).await;
        let first = fires(&runtime, id, 1).await.last_job.unwrap();
        bed.runner.begun(1).await;
        to(&bed, "2027-01-01T02:00:01Z");
        nudge(&runtime).await;
        match overlap {
            Overlap::Skip => {
                let found = settles(&runtime, id, |schedule| schedule.skipped == 1).await;
                assert_eq!((found.fired, found.last_job), (1, Some(first)));
            }
            Overlap::Queue => {
                let found = settles(&runtime, id, |schedule| !schedule.waiting.is_empty()).await;
                assert_eq!(found.waiting, [at("2027-01-01T02:00:00Z")]);
                bed.runner.hold.add_permits(1);
                fires(&runtime, id, 2).await;
                assert_eq!(job(&runtime, first).await.status, JobStatus::Completed);
            }
            Overlap::CancelRunning => {
                fires(&runtime, id, 2).await;
                assert_eq!(job(&runtime, first).await.status, JobStatus::Cancelled);
            }
        }
    }
}

#[tokio::test]
async fn slots_that_wait_are_found_after_a_restart() {
    let bed = Jobs::new();
    to(&bed, "2027-01-01T00:30:00Z");
    let first = bed.start().await;
    let new = NewSchedule { overlap: Overlap::Queue, ..every("0 * * * *", "UTC", "hold") };
    let id = first.create_schedule(OWNER, new, call()).await.unwrap().value.id;
    for (at, count) in [("2027-01-01T01:00:01Z", 0), ("2027-01-01T02:00:01Z", 1)] {
        to(&bed, at);
        nudge(&first).await;
        settles(&first, id, |schedule| schedule.waiting.len() == count && schedule.fired == 1).await;
    }
    first.shutdown(Duration::ZERO).await;
    bed.runner.hold.add_permits(2);
    let second = bed.start().await;
    let last = fires(&second, id, 2).await;
    assert_eq!(ends(&second, last.last_job.unwrap()).await.status, JobStatus::Completed);
    assert_eq!(slots(&second, id).await, ["2027-01-01T01:00", "2027-01-01T02:00"]);
}

#[tokio::test]
async fn a_time_is_a_slot_once_and_a_deleted_schedule_has_none() {
    let bed = Jobs::new();
    let runtime = bed.start().await;
    let when = UnixMs(1_795_000_000_000 + 1_000);
    let once = NewSchedule { cron: None, at: Some(when), ..every("", "UTC", "x") };
    let id = runtime.create_schedule(OWNER, once.clone(), call()).await.unwrap().value.id;
    let other = runtime.create_schedule(OWNER, once, call()).await.unwrap().value.id;
    runtime.delete_schedule(OWNER, other, call()).await.unwrap();
    assert!(matches!(runtime.schedule(OWNER, other).await, Err(Error::NotFound("schedule"))));
    bed.bed.clock.advance(1_000);
    nudge(&runtime).await;
    let done = fires(&runtime, id, 1).await;
    assert_eq!((done.status, done.next_at), (ScheduleStatus::Completed, None));
    let job = ends(&runtime, done.last_job.unwrap()).await;
    assert_eq!((job.slot, job.schedule_id), (Some(when), Some(id)));
    let names = events(&runtime, job.id).await;
    assert_eq!(names, ["schedule.fired", "job.queued", "job.started", "job.completed"]);
    assert_eq!(runtime.schedules(OWNER, None, 10).await.unwrap().data.len(), 1);
}

// ---- all of it -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_with_failures_pauses_and_restarts_each_end_as_their_history_says() {
    const JOBS: usize = 1_000;
    let bed = Jobs::new();
    let mut runtime = bed.start().await;
    let thread = create(&runtime).await;
    let mut numbers = Numbers(7);
    let mut made: Vec<(JobId, bool, &str)> = Vec::new();
    for block in 0..10 {
        let texts: Vec<_> = (0..JOBS / 10)
            .map(|_| {
                let text = ["x", "fail 1", "fail 2", "never", "x"][numbers.below(5) as usize];
                (numbers.below(3) == 0, text)
            })
            .collect();
        let jobs = texts.iter().map(|(once, text)| {
            let template = if *once { command(thread.thread, text) } else { hook(text) };
            make(&runtime, Template { backoff_base_ms: 1, ..template })
        });
        let jobs = join_all(jobs).await;
        made.extend(jobs.iter().zip(&texts).map(|(job, (once, text))| (job.id, *once, *text)));
        for job in jobs.iter().step_by(7) {
            // Too late for some of them.
            let _ = runtime.pause_job(OWNER, job.id, call()).await;
        }
        bed.bed.clock.advance(3);
        nudge(&runtime).await;
        if block % 3 == 1 {
            runtime.shutdown(Duration::ZERO).await;
            // Its store is closed before another is opened on the same medium.
            drop(runtime);
            runtime = bed.start().await;
        }
    }
    // Whoever has to say a word says it, until nothing is left.
    let over = async {
        loop {
            let mut left = 0;
            for (id, ..) in &made {
                match job(&runtime, *id).await.status {
                    JobStatus::Paused => drop(runtime.resume_job(OWNER, *id, call()).await),
                    JobStatus::Uncertain => drop(runtime.retry_job(OWNER, *id, call()).await),
                    status if status.is_over() => continue,
                    _ => {}
                }
                left += 1;
            }
            if left == 0 {
                return;
            }
            bed.bed.clock.advance(10);
            nudge(&runtime).await;
        }
    };
    tokio::time::timeout(4 * LONG, over).await.expect("all end");
    let effects = bed.runner.effects();
    for (id, once, text) in made {
        let job = job(&runtime, id).await;
        let doubts = job.history.iter().filter(|phase| phase.phase == "uncertain").count();
        let losses = job.history.iter().filter(|phase| phase.phase == "lost" || phase.phase == "paused").count();
        let done = effects.get(&id).copied().unwrap_or(0);
        if text == "never" {
            assert_eq!((job.status, done), (JobStatus::Failed, 0), "{job:#?}");
            assert_eq!(job.attempt, 3);
        } else {
            assert_eq!(job.status, JobStatus::Completed, "{job:#?}");
            // Once, but for runs of which nobody knows.
            let most = 1 + if once { doubts } else { losses };
            assert!((1..=most).contains(&done), "{done} effects of {job:#?}");
        }
        let terminal = events_of(&job);
        assert_eq!(terminal, 1, "{job:#?}");
    }
}

/// How often a job came to an end after a person had last spoken.
fn events_of(job: &Job) -> usize {
    let last = job.history.iter().rposition(|phase| phase.phase == "retried").unwrap_or(0);
    job.history[last..].iter().filter(|phase| phase.status.is_over()).count()
}
