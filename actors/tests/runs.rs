//! What the runtime promises of context runs, with a clock and a disk that the test holds in its hand.

mod testbed;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::future::join_all;
use raddle_actors::{
    Call, Done, Error, Idempotency, Ports, RunQuery, Runtime, TaskQuery, WorkEnd,
    store::{
        backend::{MemoryMedium, Op},
        redb::RedbStore,
    },
};
use raddle_domain::{
    id::{CheckpointId, OperationId, RunId, TenantId, ThreadId, TurnId},
    ports::{Append, Chunk, Clock, LogStore, Part, PartKind, PartName, StoredEvent, ThreadRow, Write},
    run::{
        EntryKind, Image, Record, Refused, Rollback, RunStatus, RunStep, StepStatus, Task, TaskStatus,
        command::{
            Action, AskRollback, Claim, NewEntry, NewRun, NewTask, Patch, Replace, SyncTodos, Tell, Todo, Transition,
            ValidateLease, WorkBy, Worker,
        },
        event::{self, Event, TaskEvent},
    },
    time::UnixMs,
};
use serde_json::{Value, json};
use testbed::*;
use uuid::Uuid;

fn call() -> Call {
    Call::default()
}

/// A call under a key that is made of a text.
fn under(key: &str) -> Call {
    let digest = |text: &str| PartName::digest(text).0;
    Call {
        idempotency: Some(Idempotency { key: digest(key), request: digest(&format!("{key} asks")) }),
        ..Call::default()
    }
}

fn bed() -> Bed {
    Bed { medium: Some(MemoryMedium::default()), ..Bed::new() }
}

fn objective(text: &str) -> NewRun {
    NewRun { objective: text.to_owned(), ..NewRun::default() }
}

fn task(id: &str) -> NewTask {
    NewTask { id: Some(id.to_owned()), task_type: "t".to_owned(), payload: json!({"n": 0.1}), ..NewTask::default() }
}

fn claim(agent: &str) -> Claim {
    Claim { agent_id: agent.to_owned(), ..Claim::default() }
}

fn say(task: &str, action: Action, token: Option<&str>) -> Transition {
    Transition {
        task_id: task.to_owned(),
        action,
        lease_token: token.map(str::to_owned),
        expected_task_rev: None,
        agent_id: None,
        error: None,
        lease_ms: None,
        output: None,
    }
}

fn tell(name: &str) -> Tell {
    Tell { name: name.to_owned(), status: None, step_id: None, payload: json!({}) }
}

fn fact(id: &str, text: &str) -> Patch {
    Patch::Add(NewEntry {
        kind: EntryKind::Fact,
        id: Some(id.to_owned()),
        text: text.to_owned(),
        path: None,
        artifact_type: None,
        step_id: None,
        source_event_id: None,
        ts_ms: None,
    })
}

fn todos(content: &str) -> SyncTodos {
    let todo = Todo { id: None, content: content.to_owned(), status: StepStatus::Runnable };
    SyncTodos { todos: vec![todo], replace: false, source_session_id: None, source_run_id: None }
}

async fn make(runtime: &Runtime, tenant: TenantId) -> RunId {
    runtime.create_run(tenant, objective("o"), call()).await.unwrap().value.id
}

/// The lease of a task that is claimed: its token and its fence.
async fn claimed(runtime: &Runtime, run: RunId, claim: Claim) -> Option<(Task, String, u64)> {
    let task = runtime.claim_task(OWNER, run, claim, call()).await.unwrap().value.task?;
    let lease = task.lease.clone().unwrap();
    Some((task, lease.token.unwrap(), lease.fence))
}

async fn records(runtime: &Runtime, run: RunId) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let after = records.last().map_or(0, |last| last.seq);
        let events = runtime.run_events(OWNER, run, after, usize::MAX).await.unwrap();
        let stored = events.chunks.iter().flat_map(|chunk| &chunk.events);
        records.extend(stored.map(|stored| Record::decode(event::SCHEMA, &stored.json).unwrap()));
        if records.last().is_none_or(|last| last.seq == events.head) {
            return records;
        }
    }
}

async fn names_of(runtime: &Runtime, run: RunId) -> Vec<String> {
    records(runtime, run).await.iter().map(|record| record.event.name().into_owned()).collect()
}

/// Asserts that what is kept is what the log makes; what that is.
async fn healthy(runtime: &Runtime, run: RunId) -> Image {
    let replayed = runtime.replay_run(OWNER, run, None, None).await.unwrap();
    let drift = replayed.drift.unwrap();
    assert!(!drift.mismatch, "{drift:#?}");
    replayed.image
}

/// Makes everything that is loaded leave memory. The cap must be one.
async fn unloaded(runtime: &Runtime) -> RunId {
    let other = make(runtime, OWNER).await;
    runtime.tell_run(OWNER, other, tell("loaded"), call()).await.unwrap();
    let falls = async {
        while runtime.health().loaded_threads > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, falls).await.expect("the cap holds once all rest");
    other
}

/// Waits until the log of a run has so many events of a name. It is watched, not loaded.
async fn comes(runtime: &Runtime, run: RunId, name: &str, count: usize) {
    let comes = async {
        let mut watch = runtime.subscribe_run(OWNER, run, 0).await.unwrap();
        let mut seen = 0;
        while seen < count {
            seen += watch.next().await.unwrap().events().filter(|(_, event)| event.name == name).count();
        }
    };
    if tokio::time::timeout(LONG, comes).await.is_err() {
        panic!("{name} does not come: {:?}", names_of(runtime, run).await);
    }
}

// ---- tenants -------------------------------------------------------------------------------------

/// Everything that may be asked about a run.
const ASKED: &[&str] = &[
    "restore_run",
    "replace_run",
    "delete_run",
    "tell_run",
    "sync_todos",
    "drive_run",
    "patch_board",
    "create_tasks",
    "claim_task",
    "transition_task",
    "validate_run_lease",
    "save_run_checkpoint",
    "delete_run_checkpoint",
    "ask_rollback",
    "run",
    "run_whole",
    "tasks",
    "task",
    "board",
    "run_events",
    "run_event",
    "subscribe_run",
    "run_checkpoints",
    "run_checkpoint",
    "replay_run",
    "run_ledger",
    "run_mutations",
    "rollback_preview",
    "rollback_history",
    "rollback_ended",
    "export_run",
    "subscribe_runs",
    "runs_events",
    "work",
    "end_work",
];

/// What is asked of a tenant, and of no run of it.
const NOT_OF_A_RUN: &[&str] = &["create_run", "import_run", "runs"];

/// The same, about a run of somebody.
async fn asks(runtime: &Runtime, name: &str, of: TenantId, run: RunId, checkpoint: CheckpointId) -> Result<(), Error> {
    let page = TaskQuery { limit: 9, ..TaskQuery::default() };
    let rollback = || Rollback {
        operation_id: OperationId::new(Uuid::now_v7()),
        event_ids: vec!["evt_1".to_owned()],
        started_seq: 0,
        started_at: UnixMs(0),
    };
    let asked = AskRollback { event_ids: vec!["evt_1".to_owned()], confirm: "rollback".to_owned(), policy_ack: None };
    let worker = || Worker { thread: ThreadId::new(Uuid::now_v7()), by: WorkBy::Turn(TurnId::new(Uuid::now_v7())) };
    match name {
        "restore_run" => runtime.restore_run(of, run, checkpoint, call()).await.map(drop),
        "replace_run" => {
            let new = objective("x");
            let replace = Replace {
                new,
                status: RunStatus::Running,
                why_next_step: None,
                last_error: None,
                revision: None,
                tasks: None,
            };
            runtime.replace_run(of, run, replace, call()).await.map(drop)
        }
        "delete_run" => runtime.delete_run(of, run, call()).await.map(drop),
        "tell_run" => runtime.tell_run(of, run, tell("x"), call()).await.map(drop),
        "sync_todos" => runtime.sync_todos(of, run, todos("x"), call()).await.map(drop),
        "drive_run" => runtime.drive_run(of, run, false, call()).await.map(drop),
        "patch_board" => runtime.patch_board(of, run, fact("x", "x"), call()).await.map(drop),
        "create_tasks" => runtime.create_tasks(of, run, vec![task("x")], call()).await.map(drop),
        "claim_task" => runtime.claim_task(of, run, claim("a"), call()).await.map(drop),
        "transition_task" => {
            let cancel = say("one", Action::Status(TaskStatus::Cancelled), None);
            runtime.transition_task(of, run, cancel, call()).await.map(drop)
        }
        "validate_run_lease" => {
            let lease = ValidateLease { current_path: "/w".to_owned(), ..ValidateLease::default() };
            runtime.validate_run_lease(of, run, lease, call()).await.map(drop)
        }
        "save_run_checkpoint" => runtime.save_run_checkpoint(of, run, None, call()).await.map(drop),
        "delete_run_checkpoint" => runtime.delete_run_checkpoint(of, run, checkpoint, call()).await.map(drop),
        "ask_rollback" => runtime.ask_rollback(of, run, asked, call()).await.map(drop),
        "run" => runtime.run(of, run).await.map(drop),
        "run_whole" => runtime.run_whole(of, run).await.map(drop),
        "tasks" => runtime.tasks(of, run, page).await.map(drop),
        "task" => runtime.task(of, run, "one".to_owned()).await.map(drop),
        "board" => runtime.board(of, run).await.map(drop),
        "run_events" => runtime.run_events(of, run, 0, 9).await.map(drop),
        "run_event" => runtime.run_event(of, run, 1).await.map(drop),
        "subscribe_run" => runtime.subscribe_run(of, run, 0).await.map(drop),
        "run_checkpoints" => runtime.run_checkpoints(of, run).await.map(drop),
        "run_checkpoint" => runtime.run_checkpoint(of, run, checkpoint).await.map(drop),
        "replay_run" => runtime.replay_run(of, run, None, None).await.map(drop),
        "run_ledger" => runtime.run_ledger(of, run, 0, 9).await.map(drop),
        "run_mutations" => runtime.run_mutations(of, run, 0, 9).await.map(drop),
        "rollback_preview" => runtime.rollback_preview(of, run).await.map(drop),
        "rollback_history" => runtime.rollback_history(of, run, 0, 9).await.map(drop),
        "rollback_ended" => runtime.rollback_ended(of, run, &rollback(), std::time::Duration::ZERO).await.map(drop),
        "export_run" => runtime.export_run(of, run).await.map(drop),
        "subscribe_runs" => runtime.subscribe_runs(of, None, Some(vec![run])).await.map(drop),
        "runs_events" => runtime.runs_events(of, None, Some(vec![run]), 9).await.map(drop),
        "work" => runtime.work(of, run, worker(), claim("")).await.map(drop),
        "end_work" => {
            let end = ("one".to_owned(), WorkEnd::Released);
            runtime.end_work(of, run, worker(), end, call()).await.map(drop)
        }
        other => panic!("nothing is asked by {other}"),
    }
}

#[test]
fn whatever_can_be_asked_about_a_run_is_among_what_is_tried() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    let parts = std::fs::read_dir(root.join("runs")).unwrap().map(|file| file.unwrap().path());
    for file in parts.chain([root.join("runs.rs")]) {
        let text = std::fs::read_to_string(file).unwrap();
        let verbs = text.split("    pub async fn ").skip(1);
        found.extend(verbs.filter_map(|verb| {
            let (name, rest) = verb.split_once('(')?;
            let (parameters, _) = rest.split_once("->")?;
            parameters.contains("tenant: TenantId").then(|| name.to_owned())
        }));
    }
    let tried: BTreeSet<_> = ASKED.iter().chain(NOT_OF_A_RUN).map(|name| (*name).to_owned()).collect();
    assert_eq!(tried, found);
}

#[tokio::test]
async fn another_tenants_run_is_not_found_by_anything_that_can_be_asked() {
    let bed = bed();
    let runtime = bed.start().await;
    let stranger: TenantId = "stranger".parse().unwrap();
    let run = make(&runtime, OWNER).await;
    runtime.create_tasks(OWNER, run, vec![task("one")], call()).await.unwrap();
    let saved = runtime.save_run_checkpoint(OWNER, run, None, call()).await.unwrap().value.id;
    let before = records(&runtime, run).await;
    for name in ASKED {
        let asked = asks(&runtime, name, stranger, run, saved).await;
        // Exactly as for one that nobody has.
        let unknown = asks(&runtime, name, OWNER, RunId::new(Uuid::now_v7()), saved).await;
        assert!(matches!(asked, Err(Error::NotFound("run"))), "{name}: {asked:?}");
        assert!(matches!(unknown, Err(Error::NotFound("run"))), "{name}: {unknown:?}");
    }
    assert_eq!(records(&runtime, run).await, before);
    let all = RunQuery { limit: 9, ..RunQuery::default() };
    assert!(runtime.runs(stranger, all.clone()).await.unwrap().data.is_empty());
    assert!(runtime.runs_events(stranger, Some(Default::default()), None, 9).await.unwrap().events.is_empty());
    // Its owner finds it by all of them.
    let last = ["delete_run_checkpoint", "delete_run"];
    for name in ASKED.iter().filter(|name| !last.contains(name)).chain(&last) {
        let asked = asks(&runtime, name, OWNER, run, saved).await;
        assert!(matches!(asked, Ok(()) | Err(Error::Run(_))), "{name}: {asked:?}");
    }
    let left = runtime.runs(OWNER, all).await.unwrap().data;
    assert_eq!(left.len(), 1, "the restored one");
    runtime.shutdown(LONG).await;
}

// ---- memory --------------------------------------------------------------------------------------

/// What two runs have in common that lived alike.
fn shape(image: &Image) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for field in ["token_sha256", "checkpoint_id", "run_id"] {
                    fields.remove(field);
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(all) => all.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(image).unwrap();
    strip(&mut value);
    value
}

/// A life of a run, command by command. The nth is asked under a key of its own, and answers what can be compared.
struct Life {
    /// What its keys begin with: the run has no name before it is made.
    name: Uuid,
    run: RunId,
    tokens: BTreeMap<String, String>,
    checkpoint: Option<CheckpointId>,
}

const COMMANDS: usize = 24;

impl Life {
    fn new() -> Self {
        let name = Uuid::now_v7();
        Self { name, run: RunId::new(name), tokens: BTreeMap::new(), checkpoint: None }
    }

    fn token(&self, task: &str) -> Option<&str> {
        Some(self.tokens.get(task).map_or("none", String::as_str))
    }

    async fn claim(&mut self, runtime: &Runtime, call: Call) -> Result<(String, bool), Error> {
        let done = runtime.claim_task(OWNER, self.run, claim("a"), call).await?;
        let task = done.value.task.clone().expect("there is one");
        let lease = task.lease.unwrap();
        self.tokens.insert(task.id.clone(), lease.token.clone().unwrap());
        Ok((format!("{} {:?} {}", task.id, lease.token, lease.fence), done.replayed))
    }

    /// Does the nth command. What it was answered, and whether that was a replay.
    async fn step(&mut self, runtime: &Runtime, n: usize) -> Result<(String, bool), Error> {
        fn told<T: std::fmt::Debug>(done: Result<Done<T>, Error>) -> Result<(String, bool), Error> {
            done.map(|done| (format!("{:?} {}", done.value, done.seq), done.replayed))
        }
        let (run, call) = (self.run, under(&format!("{} {n}", self.name)));
        match n {
            0 => {
                let step =
                    |id: &str| RunStep { step_id: id.to_owned(), title: "t".to_owned(), status: StepStatus::Pending };
                let metadata = Some(json!({"f": [0.1, 1e300, -0.0, 1.5e-310, u64::MAX, i64::MIN, "☃\u{0}"]}));
                let new = NewRun { steps: vec![step("a"), step("b")], source_metadata: metadata, ..objective("o") };
                let made = runtime.create_run(OWNER, new, call).await?;
                self.run = made.value.id;
                told(Ok(made))
            }
            1 => {
                let last =
                    NewTask { depends_on_task_ids: vec!["one".into(), "two".into()], priority: 9, ..task("last") };
                told(runtime.create_tasks(OWNER, run, vec![task("one"), task("two"), last, task("off")], call).await)
            }
            2 => told(runtime.tell_run(OWNER, run, tell("planning_started"), call).await),
            3 => told(runtime.tell_run(OWNER, run, tell("plan_approved"), call).await),
            4 | 7 | 12 | 17 => self.claim(runtime, call).await,
            5 => {
                told(runtime.transition_task(OWNER, run, say("one", Action::Heartbeat, self.token("one")), call).await)
            }
            6 => {
                let done =
                    Transition { output: Some(json!({"f": 0.1})), ..say("one", Action::Complete, self.token("one")) };
                told(runtime.transition_task(OWNER, run, done, call).await)
            }
            8 => {
                let failed = Transition { error: Some("e".into()), ..say("two", Action::Fail, self.token("two")) };
                told(runtime.transition_task(OWNER, run, failed, call).await)
            }
            9 => told(runtime.patch_board(OWNER, run, fact("f", "größer, ☃"), call).await),
            10 => {
                let edit = Patch::Edit { kind: EntryKind::Fact, id: "f".into(), text: "edited".into() };
                told(runtime.patch_board(OWNER, run, edit, call).await)
            }
            11 => told(runtime.transition_task(OWNER, run, say("two", Action::Retry, None), call).await),
            13 => told(runtime.transition_task(OWNER, run, say("two", Action::Release, self.token("two")), call).await),
            14 => {
                let done = runtime.save_run_checkpoint(OWNER, run, Some("r".into()), call).await?;
                self.checkpoint = Some(done.value.id);
                Ok((format!("{:?}", done.value), done.replayed))
            }
            15 => told(runtime.sync_todos(OWNER, run, todos("todo"), call).await),
            16 => told(runtime.drive_run(OWNER, run, false, call).await),
            18 => told(runtime.patch_board(OWNER, run, Patch::Summarise { pack: false, text: "s".into() }, call).await),
            19 => {
                let lease = ValidateLease { current_path: "/w".into(), ..ValidateLease::default() };
                told(runtime.validate_run_lease(OWNER, run, lease, call).await)
            }
            20 => {
                let resolve = Patch::Resolve { kind: EntryKind::Fact, id: "f".into(), resolution: None };
                told(runtime.patch_board(OWNER, run, resolve, call).await)
            }
            21 => {
                let off = say("off", Action::Status(TaskStatus::Cancelled), None);
                told(runtime.transition_task(OWNER, run, off, call).await)
            }
            22 => told(runtime.save_run_checkpoint(OWNER, run, None, call).await),
            23 => told(runtime.tell_run(OWNER, run, tell("run_paused"), call).await),
            _ => panic!("{n} is too many"),
        }
    }
}

#[tokio::test]
async fn a_run_that_leaves_memory_after_every_command_is_what_one_that_stayed_is() {
    let mut images = Vec::new();
    for leaves in [false, true] {
        let bed = Bed { loaded_threads: if leaves { 1 } else { 100 }, ..bed() };
        let runtime = bed.start().await;
        let mut life = Life::new();
        for n in 0..COMMANDS {
            life.step(&runtime, n).await.unwrap_or_else(|error| panic!("{n}: {error}"));
            if leaves {
                unloaded(&runtime).await;
            }
            healthy(&runtime, life.run).await;
        }
        images.push(shape(&healthy(&runtime, life.run).await));
        runtime.shutdown(LONG).await;
    }
    assert_eq!(images[0], images[1]);
}

#[tokio::test]
async fn a_lease_that_runs_out_and_a_retry_that_is_due_need_nobody_to_ask_for_the_run() {
    let bed = Bed { loaded_threads: 1, ..bed() };
    let runtime = bed.start().await;
    let [held, fails, first] = [make(&runtime, OWNER).await, make(&runtime, OWNER).await, make(&runtime, OWNER).await];
    for run in [held, fails, first] {
        let task = NewTask { max_attempts: Some(10), ..task("one") };
        runtime.create_tasks(OWNER, run, vec![task], call()).await.unwrap();
    }
    claimed(&runtime, held, claim("gone")).await.unwrap();
    // The fifth failure is followed by eight seconds.
    for _ in 0..5 {
        let (_, token, _) = claimed(&runtime, fails, claim("a")).await.unwrap();
        runtime.transition_task(OWNER, fails, say("one", Action::Fail, Some(&token)), call()).await.unwrap();
        let at = runtime.task(OWNER, fails, "one".into()).await.unwrap().next_retry_at.unwrap();
        let now = bed.clock.now();
        if at.since(now) < 8_000 {
            bed.clock.advance(at.since(now));
        }
    }
    unloaded(&runtime).await;
    // One that is due before them is loaded when the clock is set forward, and leaves.
    let short = Claim { lease_ms: Some(5_000), ..claim("gone too") };
    claimed(&runtime, first, short).await.unwrap();
    assert_eq!(runtime.health().loaded_threads, 1);
    bed.clock.advance(30_000);
    unloaded(&runtime).await;
    for (run, name, count) in [
        (held, "context.task.stale_requeued", 1),
        (first, "context.task.stale_requeued", 1),
        (fails, "context.task.requeued", 1),
    ] {
        comes(&runtime, run, name, count).await;
        let task = runtime.task(OWNER, run, "one".into()).await.unwrap();
        assert_eq!((task.status, task.lease, task.next_retry_at), (TaskStatus::Runnable, None, None));
        let last = records(&runtime, run).await.pop().unwrap();
        assert_eq!(last.by, "runtime");
    }
    let task = runtime.task(OWNER, held, "one".into()).await.unwrap();
    assert_eq!((task.last_error.as_deref(), task.attempt), (Some("the lease of gone ran out"), 0));
    for run in [held, fails, first] {
        healthy(&runtime, run).await;
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn what_came_due_while_there_was_no_server_is_seen_to_at_the_next_start() {
    let bed = bed();
    let runtime = bed.start().await;
    let run = make(&runtime, OWNER).await;
    runtime.create_tasks(OWNER, run, vec![task("one")], call()).await.unwrap();
    let (_, token, fence) = claimed(&runtime, run, claim("gone")).await.unwrap();
    runtime.shutdown(LONG).await;
    drop(runtime);
    bed.clock.advance(30_000);
    let runtime = bed.start().await;
    comes(&runtime, run, "context.task.stale_requeued", 1).await;
    let late = runtime.transition_task(OWNER, run, say("one", Action::Complete, Some(&token)), call()).await;
    assert!(matches!(late, Err(Error::Run(Refused::TaskTransition { .. }))), "{late:?}");
    let (_, _, next) = claimed(&runtime, run, claim("next")).await.unwrap();
    assert!(next > fence);
    let late = runtime.transition_task(OWNER, run, say("one", Action::Complete, Some(&token)), call()).await;
    assert!(matches!(late, Err(Error::Run(Refused::LeaseInvalid { fence: Some(now), .. })) if now == next), "{late:?}");
    healthy(&runtime, run).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_lease_that_has_run_out_is_over_before_anybody_noticed() {
    let bed = bed();
    let runtime = bed.start().await;
    let run = make(&runtime, OWNER).await;
    runtime.create_tasks(OWNER, run, vec![task("one")], call()).await.unwrap();
    let (_, token, _) = claimed(&runtime, run, claim("late")).await.unwrap();
    bed.clock.advance(29_999);
    let kept = runtime.transition_task(OWNER, run, say("one", Action::Heartbeat, Some(&token)), call()).await.unwrap();
    assert_eq!(kept.value.lease.unwrap().expires_at, bed.clock.now().after(std::time::Duration::from_secs(30)));
    bed.clock.advance(30_000);
    for action in [Action::Heartbeat, Action::Complete, Action::Fail, Action::Release, Action::Status(TaskStatus::Done)]
    {
        let late = runtime.transition_task(OWNER, run, say("one", action, Some(&token)), call()).await;
        assert!(
            matches!(late, Err(Error::Run(Refused::LeaseInvalid { .. } | Refused::TaskTransition { .. }))),
            "{action:?}: {late:?}"
        );
    }
    let (task, _, _) = claimed(&runtime, run, claim("next")).await.unwrap();
    assert_eq!((task.last_error.as_deref(), task.attempt), (Some("the lease of late ran out"), 0));
    // What a holder asks for is held within its bounds.
    for (asked, given) in [(1, 5_000), (u64::MAX, 300_000)] {
        runtime.create_tasks(OWNER, run, vec![self::task(&format!("t{given}"))], call()).await.unwrap();
        let (task, _, _) = claimed(&runtime, run, Claim { lease_ms: Some(asked), ..claim("a") }).await.unwrap();
        assert_eq!(task.lease.unwrap().expires_at.since(bed.clock.now()), given);
    }
    healthy(&runtime, run).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_changes_no_order_and_takes_no_lease() {
    let bed = bed();
    let runtime = bed.start().await;
    bed.clock.advance(1_000_000);
    let run = make(&runtime, OWNER).await;
    runtime.create_tasks(OWNER, run, vec![task("one"), task("two")], call()).await.unwrap();
    let (_, token, fence) = claimed(&runtime, run, claim("a")).await.unwrap();
    bed.clock.advance(0u64.wrapping_sub(500_000));
    let (_, other, next) = claimed(&runtime, run, claim("b")).await.unwrap();
    assert!(next > fence, "fences follow the log, not the clock");
    runtime.patch_board(OWNER, run, fact("f", "t"), call()).await.unwrap();
    for (task, token) in [("one", token), ("two", other)] {
        runtime.transition_task(OWNER, run, say(task, Action::Complete, Some(&token)), call()).await.unwrap();
    }
    let records = records(&runtime, run).await;
    assert!(records.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
    assert!(records.windows(2).any(|pair| pair[1].ts < pair[0].ts), "the clock was set back");
    healthy(&runtime, run).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn ten_thousand_runs_are_listed_and_a_crowd_of_unknown_ones_asked_for_without_loading_any() {
    const RUNS: usize = 10_000;
    let bed = Bed { loaded_threads: 64, ..bed() };
    let runtime = bed.start().await;
    let mut made = Vec::new();
    for _ in 0..RUNS / 500 {
        made.extend(join_all((0..500).map(|_| make(&runtime, OWNER))).await);
    }
    made.sort();
    runtime.shutdown(LONG).await;
    drop(runtime);
    let runtime = bed.start().await;
    let before = runtime.health();
    assert_eq!(before.loaded_threads, 0);
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = runtime.runs(OWNER, RunQuery { after, limit: 500, ..RunQuery::default() }).await.unwrap();
        listed.extend(page.data.into_iter().map(|run| run.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, made);
    let none = RunQuery { source: Some("nobody".into()), limit: 500, ..RunQuery::default() };
    assert!(runtime.runs(OWNER, none).await.unwrap().data.is_empty());
    for run in made.iter().step_by(100) {
        runtime.run_whole(OWNER, *run).await.unwrap();
        runtime.board(OWNER, *run).await.unwrap();
        healthy(&runtime, *run).await;
    }
    assert_eq!(runtime.health().loaded_threads, 0, "reads load nothing");
    // Ids that nobody has: read, written to, and under keys.
    for batch in 0..50 {
        let unknown = (0..400).map(|n| {
            let (runtime, run) = (&runtime, RunId::new(Uuid::now_v7()));
            async move {
                let asked = match n % 4 {
                    0 => runtime.run(OWNER, run).await.map(drop),
                    1 => runtime.tell_run(OWNER, run, tell("x"), call()).await.map(drop),
                    2 => runtime.claim_task(OWNER, run, claim("a"), under(&format!("{batch} {n}"))).await.map(drop),
                    _ => runtime.subscribe_run(OWNER, run, 0).await.map(drop),
                };
                assert!(matches!(asked, Err(Error::NotFound("run"))), "{asked:?}");
            }
        });
        join_all(unknown).await;
    }
    let after = runtime.health();
    assert_eq!((after.loaded_threads, after.loaded_bytes), (before.loaded_threads, before.loaded_bytes));
    assert_eq!((after.subscribers, after.commands_in_flight), (0, 0));
    assert_eq!(after.commits, before.commits, "nothing was written");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_page_of_a_run_is_not_empty_because_others_had_much_to_say() {
    let runtime = bed().start().await;
    let run = make(&runtime, OWNER).await;
    let quiet = runtime.runs_events(OWNER, None, Some(vec![run]), 9).await.unwrap();
    for _ in 0..4 {
        join_all((0..500).map(|_| make(&runtime, OWNER))).await;
    }
    runtime.tell_run(OWNER, run, tell("deployed"), call()).await.unwrap();
    let page = runtime.runs_events(OWNER, Some(quiet.next), Some(vec![run]), 9).await.unwrap();
    assert_eq!(page.events.len(), 1);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_deleted_run_leaves_nothing() {
    let bed = bed();
    let runtime = bed.start().await;
    let mut life = Life::new();
    for n in 0..COMMANDS {
        life.step(&runtime, n).await.unwrap();
    }
    let run = life.run;
    let mut watch = runtime.subscribe_run(OWNER, run, 0).await.unwrap();
    let stale = Call { if_match: Some(1), ..call() };
    let stale = runtime.delete_run(OWNER, run, stale).await;
    assert!(matches!(stale, Err(Error::Run(Refused::Precondition { expected: 1, .. }))), "{stale:?}");
    runtime.delete_run(OWNER, run, call()).await.unwrap();
    let ends = async {
        loop {
            if watch.next().await.unwrap().is_last() {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, ends).await.expect("its watchers are told");
    for again in [false, true] {
        let gone = runtime.delete_run(OWNER, run, call()).await;
        assert!(matches!(gone, Err(Error::NotFound("run"))), "{again}: {gone:?}");
    }
    assert!(matches!(runtime.task(OWNER, run, "one".into()).await, Err(Error::NotFound("run"))));
    assert!(matches!(runtime.run_checkpoints(OWNER, run).await, Err(Error::NotFound("run"))));
    runtime.shutdown(LONG).await;
}

// ---- the disk ------------------------------------------------------------------------------------

/// Does an operation to bytes.
fn put_op(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Install(whole) => bytes.clone_from(whole),
        Op::Write { offset, data } => {
            let from = usize::try_from(*offset).unwrap();
            if bytes.len() < from + data.len() {
                bytes.resize(from + data.len(), 0);
            }
            bytes[from..from + data.len()].copy_from_slice(data);
        }
        Op::SetLen(length) => bytes.resize(usize::try_from(*length).unwrap(), 0),
        Op::Sync => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_operation_of_the_store_loses_no_acknowledged_command_and_doubles_none() {
    let bed = bed();
    let medium = bed.medium.clone().unwrap();
    medium.record();
    let runtime = bed.start().await;
    let mut life = Life::new();
    let (mut answers, mut acked_at) = (Vec::new(), Vec::new());
    for n in 0..COMMANDS {
        answers.push(life.step(&runtime, n).await.unwrap().0);
        acked_at.push(medium.recorded());
    }
    let whole = shape(&healthy(&runtime, life.run).await);
    let events = names_of(&runtime, life.run).await;
    runtime.shutdown(LONG).await;
    drop(runtime);
    let ops = medium.take_record();
    let (mut written, mut synced, mut tried) = (Vec::new(), Vec::new(), BTreeSet::new());
    for end in 0..=ops.len() {
        if let Some(op) = end.checked_sub(1).map(|at| &ops[at]) {
            put_op(&mut written, op);
            if matches!(op, Op::Sync | Op::Install(_)) {
                synced.clone_from(&written);
            }
        }
        let acked = acked_at.iter().filter(|at| **at <= end).count();
        // All that was written, and what is certain to be on the disk.
        for image in [&written, &synced] {
            if image.is_empty() || !tried.insert((acked, PartName::digest(&String::from_utf8_lossy(image)).0)) {
                continue;
            }
            let after = Bed { medium: Some(MemoryMedium::holding(image.clone())), ..Bed::new() };
            let runtime = after.start().await;
            let mut again = Life { name: life.name, ..Life::new() };
            for (n, first) in answers.iter().enumerate() {
                let (answer, replayed) =
                    again.step(&runtime, n).await.unwrap_or_else(|why| panic!("{end}, {n}: {why}"));
                if n < acked {
                    assert!(replayed, "command {n} was acknowledged, and is lost after {end} operations");
                    assert_eq!(answer, *first, "command {n} after {end} operations");
                }
            }
            assert_eq!(shape(&healthy(&runtime, again.run).await), whole, "after {end} operations");
            assert_eq!(names_of(&runtime, again.run).await, events, "after {end} operations");
            runtime.shutdown(LONG).await;
        }
    }
    println!("{} operations, {} different disks", ops.len(), tried.len());
    assert!(tried.len() > COMMANDS);
}

/// A store that the test can write to as well.
fn shared_store(bed: &Bed) -> Arc<dyn LogStore> {
    let medium = bed.medium.clone().unwrap();
    Arc::new(RedbStore::open_medium(Arc::new(medium), 1 << 20, 0).unwrap())
}

async fn on(bed: &Bed, store: &Arc<dyn LogStore>) -> Runtime {
    Runtime::start(bed.config(), Ports { store: Some(store.clone()), ..bed.ports_without_store() }).await.unwrap()
}

/// Writes to a run past the runtime: an event that is sound, with a record and parts that may not be.
fn tamper(store: &dyn LogStore, run: RunId, change: impl FnOnce(&mut Value, &mut Vec<Part>)) {
    let key = run.log(OWNER);
    let row = store.view().unwrap().row(key).unwrap().unwrap();
    let mut view: Value = serde_json::from_slice(&row.view).unwrap();
    let seq = row.head.last_seq + 1;
    view["last_event_seq"] = json!(seq);
    view["revision"] = json!(view["revision"].as_u64().unwrap() + 1);
    let event = json!({
        "seq": seq, "prev": seq - 1, "ts": view["updated_at"], "run_id": view["run_id"], "event_id": format!("evt_{seq}"),
        "revision": view["revision"], "status": view["status"], "by": "client", "event": "x", "payload": {},
    });
    let mut parts = Vec::new();
    change(&mut view, &mut parts);
    let event = StoredEvent { name: "x".into(), json: serde_json::to_vec(&event).unwrap().into() };
    let mut head = row.head;
    (head.last_seq, head.snapshot_seq) = (seq, seq);
    let row = ThreadRow { head, view: serde_json::to_vec(&view).unwrap().into(), snapshot: row.snapshot };
    let append = Append::new(key, seq - 1, UnixMs(0), Chunk { first: seq, events: vec![event] }, row);
    let wrote = store.commit(&[Write::Append(Append { parts, ..append })]).unwrap();
    assert!(wrote[0].is_ok(), "{wrote:?}");
}

#[tokio::test]
async fn what_was_tampered_with_shows_as_drift_and_nothing_else_does() {
    let bed = bed();
    let store = shared_store(&bed);
    let runtime = on(&bed, &store).await;
    let part = |kind, number, value: &Value| {
        let json = Some(serde_json::to_vec(value).unwrap());
        Part { kind, name: PartName::number(number), json }
    };
    for (what, flag) in [
        ("nothing", ""),
        ("task", "tasks_mismatch"),
        ("task gone", "tasks_mismatch"),
        ("fact", "blackboard_mismatch"),
        ("summary", "blackboard_mismatch"),
        ("checkpoint", "checkpoints_mismatch"),
        ("step", "steps_mismatch"),
        ("status", "status_mismatch"),
        ("why", "why_next_step_mismatch"),
        ("revision", "revision_mismatch"),
        ("objective", "run_mismatch"),
    ] {
        let mut life = Life::new();
        for n in 0..COMMANDS {
            life.step(&runtime, n).await.unwrap();
        }
        let run = life.run;
        let image = healthy(&runtime, run).await;
        tamper(&*store, run, |view, parts| match what {
            "task" => {
                let (slot, task) = &image.tasks[0];
                let mut task = serde_json::to_value(task).unwrap();
                task["output"] = json!("something else");
                parts.push(part(PartKind::Task, *slot, &task));
            }
            "task gone" => {
                let name = PartName::number(image.tasks[3].0);
                parts.push(Part { kind: PartKind::Task, name, json: None });
                view["task_counts"]["cancelled"] = json!(0);
            }
            "fact" => {
                let mut entry = serde_json::to_value(&image.entries[0]).unwrap();
                entry["text"] = json!("something else");
                parts.push(part(PartKind::Entry, image.entries[0].seq, &entry));
            }
            "summary" => parts.push(part(PartKind::Summary, 0, &json!("something else"))),
            "checkpoint" => {
                let (seq, saved) = &image.checkpoints[0];
                let mut saved = serde_json::to_value(saved).unwrap();
                saved["reason"] = json!("something else");
                parts.push(part(PartKind::Checkpoint, *seq, &saved));
            }
            "step" => view["steps"][0]["title"] = json!("something else"),
            "status" => view["status"] = json!("blocked"),
            "why" => view["why_next_step"] = json!("something else"),
            "revision" => view["revision"] = json!(view["revision"].as_u64().unwrap() + 7),
            "objective" => view["objective"] = json!("something else"),
            _ => {}
        });
        let drift = runtime.replay_run(OWNER, run, None, None).await.unwrap().drift.unwrap();
        let flags = serde_json::to_value(&drift).unwrap();
        let told: BTreeSet<_> = flags
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, on)| **on == json!(true))
            .map(|(name, _)| name.as_str())
            .collect();
        if flag.is_empty() {
            assert_eq!((told.len(), drift.differences.len()), (0, 0), "{drift:?}");
            continue;
        }
        assert!(told.contains(flag) && told.contains("mismatch"), "{what}: {told:?}");
        assert!(!drift.differences.is_empty(), "{what}");
        let expected: BTreeSet<_> = ["mismatch", flag, "run_mismatch"].into();
        assert!(told.is_subset(&expected), "{what}: {told:?}");
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_part_or_an_event_that_cannot_be_read_is_reported_by_name_and_never_passed_over() {
    let bed = bed();
    let store = shared_store(&bed);
    let runtime = on(&bed, &store).await;
    for (what, kind, bytes) in [
        ("a task that is no JSON", PartKind::Task, &b"{\"id\":"[..]),
        ("a task that is none", PartKind::Task, b"{}"),
        ("an entry that is none", PartKind::Entry, b"[]"),
        ("a summary that is none", PartKind::Summary, b"{}"),
        ("a checkpoint that is none", PartKind::Checkpoint, b"7"),
        ("a task that the record does not count", PartKind::Task, b""),
    ] {
        let mut life = Life::new();
        for n in 0..COMMANDS {
            life.step(&runtime, n).await.unwrap();
        }
        let run = life.run;
        let image = healthy(&runtime, run).await;
        let number = match kind {
            PartKind::Task => image.tasks[0].0,
            PartKind::Entry => image.entries[0].seq,
            PartKind::Checkpoint => image.checkpoints[0].0,
            _ => 0,
        };
        let json = Some(bytes.to_vec()).filter(|bytes| !bytes.is_empty());
        tamper(&*store, run, |_, parts| parts.push(Part { kind, name: PartName::number(number), json }));
        let named = |why: &str| {
            let uuid = run.to_string().replace("run_", "");
            assert!(why.contains(&uuid[..13]) && why.contains(&uuid[19..]), "{what}: {why}");
        };
        let damaged = |error: Error| match error {
            Error::Store(raddle_domain::ports::StoreError::Corrupt(why)) => named(&why.record),
            Error::ThreadUnavailable(why) => named(&why),
            other => panic!("{what}: {other:?}"),
        };
        // The loaded state was there before: it is the next writer who finds that somebody else wrote.
        let replayed = runtime.replay_run(OWNER, run, None, None).await;
        match (bytes.is_empty(), replayed) {
            // What is missing is no damage to the reader of parts, but it shows.
            (true, Ok(replayed)) => assert!(replayed.drift.unwrap().tasks_mismatch),
            (_, replayed) => damaged(replayed.unwrap_err()),
        }
        let tries = runtime.tell_run(OWNER, run, tell("x"), call()).await;
        damaged(tries.unwrap_err());
        // It costs nobody else anything, and can be removed.
        let other = make(&runtime, OWNER).await;
        healthy(&runtime, other).await;
        runtime.delete_run(OWNER, run, call()).await.unwrap();
        assert!(matches!(runtime.run(OWNER, run).await, Err(Error::NotFound("run"))));
    }
    runtime.shutdown(LONG).await;
}

// ---- the race ------------------------------------------------------------------------------------

/// What all agents know together.
#[derive(Default)]
struct Told {
    /// Leases that were given, by fence: the task and the agent.
    leases: BTreeMap<u64, (String, String)>,
    /// Whose completion was accepted, by task.
    done: BTreeMap<String, u64>,
    refused: usize,
}

struct Race {
    runtime: Runtime,
    run: RunId,
    clock: Arc<TestClock>,
    told: Mutex<Told>,
    done: AtomicUsize,
    tasks: usize,
}

impl Race {
    /// Asks, twice at once if need be, until the answer is there. Equal requests have equal answers.
    async fn ask<T, F>(twice: bool, ask: impl Fn() -> F) -> Result<T, Error>
    where
        T: PartialEq + std::fmt::Debug,
        F: Future<Output = Result<Done<T>, Error>>,
    {
        if !twice {
            return Self::once(&ask).await;
        }
        match futures_util::future::join(Self::once(&ask), Self::once(&ask)).await {
            (Ok(one), Ok(two)) => {
                assert_eq!(one, two, "equal requests, and two answers");
                Ok(one)
            }
            (one, _) => one,
        }
    }

    async fn once<T, F: Future<Output = Result<Done<T>, Error>>>(ask: &impl Fn() -> F) -> Result<T, Error> {
        loop {
            match ask().await {
                Err(Error::InFlight | Error::Busy { .. }) => tokio::task::yield_now().await,
                done => return done.map(|done| done.value),
            }
        }
    }

    async fn claim(&self, agent: &str, key: &str, twice: bool) -> Option<(String, String, u64)> {
        let asked = Claim { lease_ms: Some(5_000), ..claim(agent) };
        let ask = || {
            let (runtime, run, asked, call) = (self.runtime.clone(), self.run, asked.clone(), under(key));
            async move { runtime.claim_task(OWNER, run, asked, call).await }
        };
        // What leads to nothing is not remembered: the second may get what the first did not.
        let claimed = match Self::ask(false, &ask).await.unwrap().task {
            Some(task) if twice => {
                let again = Self::ask(false, &ask).await.unwrap().task.unwrap();
                assert_eq!(again, task, "a claim that is repeated is the same claim");
                task
            }
            Some(task) => task,
            None => return None,
        };
        let lease = claimed.lease.unwrap();
        let mut told = self.told.lock().unwrap();
        let before = told.leases.insert(lease.fence, (claimed.id.clone(), agent.to_owned()));
        assert!(before.is_none(), "a fence was given twice");
        Some((claimed.id, lease.token.unwrap(), lease.fence))
    }

    async fn say(&self, held: &(String, String, u64), action: Action, key: &str, twice: bool) {
        let (task, token, fence) = held;
        let output = (action == Action::Complete).then(|| json!({ "fence": fence }));
        let asked = Transition { output, ..say(task, action, Some(token)) };
        let ask = || {
            let (runtime, run, asked, call) = (self.runtime.clone(), self.run, asked.clone(), under(key));
            async move { runtime.transition_task(OWNER, run, asked, call).await }
        };
        match Self::ask(twice, ask).await {
            Ok(_) if action == Action::Complete => {
                let before = self.told.lock().unwrap().done.insert(task.clone(), *fence);
                assert_eq!(before, None, "{task} was completed twice");
                self.done.fetch_add(1, SeqCst);
            }
            Ok(_) => {}
            Err(Error::Run(Refused::LeaseInvalid { .. } | Refused::TaskTransition { .. })) => {
                self.told.lock().unwrap().refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn agent(self: Arc<Self>, number: u64) {
        let name = format!("agent-{number}");
        let mut numbers = Numbers(number * 7_919 + 17);
        let mut old: Vec<(String, String, u64)> = Vec::new();
        for n in 0.. {
            if self.done.load(SeqCst) == self.tasks {
                break;
            }
            let key = |what: &str| format!("{name} {n} {what}");
            if !old.is_empty() && numbers.below(4) == 0 {
                let held = old.swap_remove(numbers.below(old.len() as u64) as usize);
                let action =
                    [Action::Complete, Action::Heartbeat, Action::Fail, Action::Release][numbers.below(4) as usize];
                self.say(&held, action, &key("late"), false).await;
            }
            let Some(held) = self.claim(&name, &key("claim"), numbers.below(4) == 0).await else {
                // Time passes: whoever went away is given up, and what failed is due again.
                self.clock.advance(numbers.below(200));
                tokio::task::yield_now().await;
                continue;
            };
            match numbers.below(20) {
                0..2 => old.push(held),
                2 => self.say(&held, Action::Fail, &key("fail"), false).await,
                3 => self.say(&held, Action::Release, &key("release"), numbers.below(2) == 0).await,
                4 => {
                    // It takes longer than it may.
                    self.clock.advance(numbers.below(6_000));
                    self.say(&held, Action::Complete, &key("done"), false).await;
                }
                5..9 => {
                    self.say(&held, Action::Heartbeat, &key("keep"), false).await;
                    self.say(&held, Action::Complete, &key("done"), true).await;
                }
                _ => self.say(&held, Action::Complete, &key("done"), numbers.below(4) == 0).await,
            }
        }
        // Too late for anything.
        for (at, held) in old.iter().enumerate() {
            self.say(held, Action::Complete, &format!("{name} at the end {at}"), false).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_agents_that_race_for_a_thousand_tasks_do_each_once() {
    const AGENTS: u64 = 100;
    const TASKS: usize = 1_000;
    let bed = bed();
    let runtime = bed.start().await;
    let run = make(&runtime, OWNER).await;
    let mut numbers = Numbers(20_250_731);
    let mut all: Vec<NewTask> = Vec::new();
    for n in 0..TASKS {
        let on: BTreeSet<String> =
            (0..numbers.below(4)).filter(|_| n > 0).map(|_| format!("t{}", numbers.below(n as u64))).collect();
        all.push(NewTask {
            priority: numbers.below(5) as i32,
            max_attempts: Some(100),
            depends_on_task_ids: on.into_iter().collect(),
            ..task(&format!("t{n}"))
        });
    }
    runtime.create_tasks(OWNER, run, all, call()).await.unwrap();
    let race = Arc::new(Race {
        runtime: runtime.clone(),
        run,
        clock: bed.clock.clone(),
        told: Mutex::default(),
        done: AtomicUsize::new(0),
        tasks: TASKS,
    });
    let working: Vec<_> = (0..AGENTS).map(|number| tokio::spawn(race.clone().agent(number))).collect();
    for agent in working {
        tokio::time::timeout(8 * LONG, agent).await.expect("the agents end").unwrap();
    }
    let image = healthy(&runtime, run).await;
    let records = records(&runtime, run).await;
    let told = std::mem::take(&mut *race.told.lock().unwrap());
    let (mut fences, mut holders, mut done, mut stale) = (0, BTreeMap::new(), BTreeMap::new(), 0);
    for record in &records {
        let Event::Task(event, task) = &record.event else { continue };
        match event {
            TaskEvent::Claimed => {
                let lease = task.lease.as_ref().unwrap();
                assert!(lease.fence > fences, "fences grow");
                fences = lease.fence;
                holders.insert(task.id.clone(), fences);
                assert_eq!(
                    told.leases.get(&fences),
                    Some(&(task.id.clone(), lease.owner.clone())),
                    "a claim of nobody"
                );
            }
            TaskEvent::Completed => {
                let fence = task.output.as_ref().unwrap()["fence"].as_u64().unwrap();
                assert_eq!(holders[&task.id], fence, "{} was completed by one who had lost it", task.id);
                assert!(done.insert(task.id.clone(), fence).is_none(), "{} was completed twice", task.id);
            }
            TaskEvent::StaleRequeued => stale += 1,
            _ => {}
        }
    }
    assert_eq!(done, told.done, "what was told is what is so");
    assert_eq!(done.len(), TASKS);
    assert!(image.tasks.iter().all(|(_, task)| task.status == TaskStatus::Done));
    let claims = records.iter().filter(|record| matches!(&record.event, Event::Task(TaskEvent::Claimed, _))).count();
    assert_eq!(claims, told.leases.len(), "a claim that was made is one that somebody was told of");
    println!("{} events, {claims} claims, {stale} leases ran out, {} came too late", records.len(), told.refused);
    assert!(stale > 0 && told.refused > 0);
    runtime.shutdown(LONG).await;
}
