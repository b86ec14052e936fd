//! What a run costs the agents that share it: an event of a long run and of a short one, a claim among few tasks and
//! among many, a list of thousands, and the same work on files that are read again for every request.

mod support;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use raddle_actors::{Call, Error, Idempotency, Ports, RunQuery, Runtime, UuidIds};
use raddle_domain::{
    id::{RunId, Seq, TenantId},
    ports::Ids,
    run::{
        EntryKind, Refused, RunStep, StepStatus, Task,
        command::{Action, Claim, NewEntry, NewRun, NewTask, Patch, Tell, Transition},
    },
};
use serde_json::json;
use support::{files::FileRun, *};
use uuid::Uuid;

const TENANT: TenantId = TenantId::DEFAULT;
/// Of whom nobody asks for anything but these tests.
const FEW: &str = "rare";
const MANY: &str = "common";
/// Commands under way while a past is made: fewer than a run takes.
const WIDTH: usize = 200;

// ---- what agents say -----------------------------------------------------------------------------

async fn new_run(runtime: &Runtime, tenant: TenantId) -> RunId {
    let step = |n| RunStep { step_id: format!("step-{n}"), title: "a part of it".into(), status: StepStatus::Pending };
    let new = NewRun {
        objective: "make the tests of the parser pass on every platform".into(),
        steps: (0..6).map(step).collect(),
        ..NewRun::default()
    };
    runtime.create_run(tenant, new, Call::default()).await.expect("it is created").value.id
}

fn new_task(n: usize, task_type: &str) -> NewTask {
    NewTask {
        task_type: task_type.into(),
        payload: json!({
            "title": "find out why the lexer loses a line end",
            "input": { "path": "src/lexer.rs", "lines": [120, 164], "hint": "it happens with windows line ends only" },
            "expected": "a short text that names the cause, and a test that fails because of it",
        }),
        workflow_id: Some("repair".into()),
        priority: n as i32 % 5,
        ..NewTask::default()
    }
}

fn a_tell() -> Tell {
    let payload = json!({ "note": "the second file compiles now; the third still lacks two imports", "done": 2 });
    Tell { name: "progress_noted".into(), status: None, step_id: Some("step-1".into()), payload }
}

fn a_fact() -> Patch {
    Patch::Add(NewEntry {
        kind: EntryKind::Fact,
        id: None,
        text: "the lexer counts a carriage return as a column of its own, the parser does not".into(),
        path: None,
        artifact_type: None,
        step_id: None,
        source_event_id: None,
        ts_ms: None,
    })
}

async fn create(runtime: &Runtime, run: RunId, tasks: Vec<NewTask>, call: Call) -> Vec<Task> {
    runtime.create_tasks(TENANT, run, tasks, call).await.expect("they are created").value
}

async fn claim(runtime: &Runtime, run: RunId, task_type: Option<&str>, call: Call) -> Task {
    let claim = Claim { agent_id: "agent-1".into(), task_type: task_type.map(str::to_owned), ..Claim::default() };
    let claimed = runtime.claim_task(TENANT, run, claim, call).await.expect("it is heard").value;
    claimed.task.expect("there is a task")
}

async fn say(runtime: &Runtime, run: RunId, task: &Task, action: Action, call: Call) {
    let transition = Transition {
        task_id: task.id.clone(),
        action,
        lease_token: task.lease.as_ref().and_then(|lease| lease.token.clone()),
        expected_task_rev: Some(task.task_rev),
        agent_id: None,
        error: None,
        lease_ms: None,
        output: None,
    };
    runtime.transition_task(TENANT, run, transition, call).await.expect("it holds the task");
}

async fn tell(runtime: &Runtime, run: RunId) {
    runtime.tell_run(TENANT, run, a_tell(), Call::default()).await.expect("it is heard");
}

async fn patch(runtime: &Runtime, run: RunId) {
    runtime.patch_board(TENANT, run, a_fact(), Call::default()).await.expect("it is written");
}

/// A request that can be repeated.
fn repeatable() -> Call {
    let fresh = || {
        let mut digest = [0; 32];
        digest[..16].copy_from_slice(UuidIds.mint().as_bytes());
        digest
    };
    Call { idempotency: Some(Idempotency { key: fresh(), request: fresh() }), ..Call::default() }
}

// ---- pasts ---------------------------------------------------------------------------------------

async fn head(runtime: &Runtime, run: RunId) -> Seq {
    runtime.run(TENANT, run).await.expect("it is there").last_event_seq
}

async fn waiting_tasks(runtime: &Runtime, run: RunId, task_types: impl Iterator<Item = &str>) {
    let tasks: Vec<NewTask> = task_types.enumerate().map(|(n, kind)| new_task(n, kind)).collect();
    for batch in tasks.chunks(1_000) {
        create(runtime, run, batch.to_vec(), Call::default()).await;
    }
}

/// Tasks that were made, claimed and completed: three events each.
async fn done_tasks(runtime: &Runtime, run: RunId, count: usize) {
    waiting_tasks(runtime, run, std::iter::repeat_n(MANY, count)).await;
    let each = |_| async {
        let task = claim(runtime, run, None, Call::default()).await;
        say(runtime, run, &task, Action::Complete, Call::default()).await;
    };
    stream::iter(0..count).for_each_concurrent(WIDTH, each).await;
}

/// A run with so many events: of tasks, facts, and whatever clients said.
async fn with_events(runtime: &Runtime, events: Seq) -> RunId {
    let run = new_run(runtime, TENANT).await;
    let all = events as usize;
    done_tasks(runtime, run, all / 10).await;
    stream::iter(0..all / 15).for_each_concurrent(WIDTH, |_| patch(runtime, run)).await;
    let left = events - head(runtime, run).await;
    stream::iter(0..left).for_each_concurrent(WIDTH, |_| tell(runtime, run)).await;
    assert_eq!(head(runtime, run).await, events);
    run
}

/// A run whose tasks all wait, three of them of the type that there are few of.
async fn with_tasks(runtime: &Runtime, count: usize) -> RunId {
    let run = new_run(runtime, TENANT).await;
    let few = [FEW; 3].into_iter();
    waiting_tasks(runtime, run, std::iter::repeat_n(MANY, count - few.len()).chain(few)).await;
    run
}

// ---- an event, after many and after few ----------------------------------------------------------

const LONG: Seq = 100_000;
const SHORT: Seq = 10;
/// Rounds, and how often each operation is done in one, on each side. A short run must not become a long one.
const ROUNDS: usize = 120;
const EACH: usize = 5;

#[derive(Clone, Copy)]
enum Operation {
    Tell,
    ClaimAndComplete,
    Patch,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Tell, Self::ClaimAndComplete, Self::Patch];

    const fn name(self) -> &'static str {
        match self {
            Self::Tell => "an event that is told",
            Self::ClaimAndComplete => "claim and complete",
            Self::Patch => "a patch of the board",
        }
    }

    /// Does it a few times; seconds of each.
    async fn costs(self, runtime: &Runtime, run: RunId, costs: &mut Vec<f64>) {
        for _ in 0..EACH {
            let begun = Instant::now();
            match self {
                Self::Tell => tell(runtime, run).await,
                Self::Patch => patch(runtime, run).await,
                Self::ClaimAndComplete => {
                    let task = claim(runtime, run, None, Call::default()).await;
                    say(runtime, run, &task, Action::Complete, Call::default()).await;
                }
            }
            costs.push(begun.elapsed().as_secs_f64());
        }
    }
}

async fn length(runtime: &Runtime) -> RunId {
    let begun = Instant::now();
    let long = with_events(runtime, LONG).await;
    figure("a run of 100,000 events, 200 commands in flight", LONG as f64 / begun.elapsed().as_secs_f64(), " events/s");
    for operation in Operation::ALL {
        let (mut costs, mut bytes) = ([Vec::new(), Vec::new()], [0.0; 2]);
        let rounds = sized(ROUNDS, ROUNDS / 4);
        for round in 0..rounds {
            let runs = [with_events(runtime, SHORT).await, long];
            if matches!(operation, Operation::ClaimAndComplete) {
                for run in runs {
                    waiting_tasks(runtime, run, [MANY; EACH].into_iter()).await;
                }
            }
            for at in [round % 2, 1 - round % 2] {
                let before = written();
                operation.costs(runtime, runs[at], &mut costs[at]).await;
                bytes[at] += (written() - before) / (rounds * EACH) as f64 / 1024.0;
            }
        }
        let ([short, long], what) = (costs.map(median), operation.name());
        figure(&format!("{what}, after 10 events"), short * 1e6, " µs");
        figure(&format!("{what}, after 100,000 events"), long * 1e6, " µs");
        figure(&format!("bytes written for {what}, after 10 events"), bytes[0], " KiB");
        figure(&format!("bytes written for {what}, after 100,000 events"), bytes[1], " KiB");
        bar(&format!("{what}, after 100,000 events vs after 10"), long / short, "×", 1.3, false);
    }
    long
}

// ---- a claim, among many tasks and among few -----------------------------------------------------

const CLAIMS: usize = 4_000;

fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() as f64 * part) as usize]
}

async fn claims(runtime: &Runtime) {
    let runs = [with_tasks(runtime, 10).await, with_tasks(runtime, 10_000).await];
    for (what, filter) in [("claim", None), ("claim of a type of which there are 3", Some(FEW))] {
        let mut taken = [Vec::new(), Vec::new()];
        for round in 0..sized(CLAIMS, CLAIMS / 4) {
            for at in [round % 2, 1 - round % 2] {
                let begun = Instant::now();
                let task = claim(runtime, runs[at], filter, Call::default()).await;
                taken[at].push(begun.elapsed().as_secs_f64());
                say(runtime, runs[at], &task, Action::Release, Call::default()).await;
            }
        }
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let [few, many] = &mut taken;
            let (few, many) = (percentile(few, part), percentile(many, part));
            figure(&format!("{name} of a {what}, 10 tasks"), few * 1e6, " µs");
            figure(&format!("{name} of a {what}, 10,000 tasks"), many * 1e6, " µs");
            bar(&format!("{name} of a {what}, 10,000 tasks vs 10"), many / few, "×", 1.3, false);
        }
    }
}

// ---- a list of many runs -------------------------------------------------------------------------

const RUNS: usize = 10_000;
const PAGE: usize = 100;

/// The next page of a tenant's runs, the cursor behind it, and the seconds that it took.
async fn page(runtime: &Runtime, tenant: TenantId, after: Option<Uuid>) -> (usize, Option<Uuid>, f64) {
    let begun = Instant::now();
    let query = RunQuery { after, limit: PAGE, ..RunQuery::default() };
    let page = runtime.runs(tenant, query).await.expect("a page");
    (page.data.len(), page.next, begun.elapsed().as_secs_f64())
}

fn tenants() -> [(usize, TenantId); 2] {
    [(PAGE, "small"), (RUNS, "large")].map(|(count, name)| (count, name.parse().expect("a name")))
}

async fn make_lists(dir: &Path) {
    let runtime = GROUPED.runtime(dir, Silent).await;
    for (count, tenant) in tenants() {
        let make = async |_| _ = new_run(&runtime, tenant).await;
        stream::iter(0..count).for_each_concurrent(WIDTH, make).await;
    }
    runtime.shutdown(Duration::ZERO).await;
}

async fn lists(dir: &Path) {
    let runtime = GROUPED.runtime(dir, Silent).await;
    let [(_, small), (_, large)] = tenants();
    let mut taken = [Vec::new(), Vec::new()];
    for _ in 0..sized(10, 3) {
        let (mut after, mut found) = (None, 0);
        loop {
            let (runs, next, seconds) = page(&runtime, large, after).await;
            if runs == 0 {
                break;
            }
            (after, found) = (next, found + runs);
            taken[1].push(seconds / runs as f64);
            let (runs, _, seconds) = page(&runtime, small, None).await;
            assert_eq!(runs, PAGE);
            taken[0].push(seconds / runs as f64);
        }
        assert_eq!(found, RUNS);
    }
    assert_eq!(runtime.health().loaded_threads, 0, "a list loads nothing");
    let [few, many] = taken.map(median);
    figure("a run of a page of 100, of 100 runs", few * 1e6, " µs");
    figure("a run of a page of 100, of 10,000 runs", many * 1e6, " µs");
    bar("a run of a page of 100, of 10,000 vs of 100", many / few, "×", 1.3, false);
    runtime.shutdown(Duration::ZERO).await;
}

// ---- beside a run that is kept in files ----------------------------------------------------------

const VERBS: [&str; 4] = ["create", "claim", "complete", "event"];

/// Milliseconds of each verb.
async fn stored(runtime: &Runtime, run: RunId) -> [f64; 4] {
    let mut clock = Laps::new();
    create(runtime, run, vec![new_task(0, MANY)], repeatable()).await;
    clock.lap();
    let task = claim(runtime, run, None, repeatable()).await;
    clock.lap();
    say(runtime, run, &task, Action::Complete, repeatable()).await;
    clock.lap();
    tell(runtime, run).await;
    clock.lap();
    clock.taken()
}

fn filed(run: &FileRun, task: Task) -> [f64; 4] {
    let mut clock = Laps::new();
    run.create(task);
    clock.lap();
    let task = run.claim("agent-1").expect("there is a task");
    clock.lap();
    run.complete(&task.id);
    clock.lap();
    let Tell { name, payload, .. } = a_tell();
    run.post(&name, payload);
    clock.lap();
    clock.taken()
}

struct Laps(Instant, Vec<f64>);

impl Laps {
    fn new() -> Self {
        Self(Instant::now(), Vec::new())
    }

    fn lap(&mut self) {
        let now = Instant::now();
        self.1.push((now - self.0).as_secs_f64() * 1000.0);
        self.0 = now;
    }

    fn taken(self) -> [f64; 4] {
        self.1.try_into().expect("a lap for each verb")
    }
}

async fn beside_files(runtime: &Runtime) {
    // Where the files take long, there is time to look at the other side more often.
    for (events, rounds, looks) in [(10, sized(60, 15), 1), (1_000, sized(15, 5), 5), (5_000, sized(7, 3), 10)] {
        let mut taken = [const { [const { Vec::new() }; 3] }; 4];
        let mut took = |side: usize, all: [f64; 4]| {
            all.into_iter().zip(&mut taken).for_each(|(ms, verb): (_, &mut [Vec<f64>; 3])| verb[side].push(ms));
        };
        for _ in 0..rounds {
            let run = new_run(runtime, TENANT).await;
            done_tasks(runtime, run, events / 3).await;
            let whole = runtime.run_whole(TENANT, run).await.expect("it is there");
            let other = new_run(runtime, TENANT).await;
            let task = create(runtime, other, vec![new_task(0, MANY)], Call::default()).await.remove(0);
            let dir = tempfile::tempdir().expect("a directory");
            let files = FileRun::with_past(dir.path(), whole.run, whole.tasks);
            // The files' past is on its way to the disk, and the first sync of anything takes it along.
            stored(runtime, run).await;
            for _ in 0..looks {
                took(0, stored(runtime, run).await);
            }
            for (side, synced) in [(1, false), (2, true)] {
                files.synced.set(synced);
                took(side, filed(&files, Task { id: UuidIds.mint().to_string(), ..task.clone() }));
            }
        }
        for (verb, sides) in VERBS.into_iter().zip(taken) {
            let [here, files, synced] = sides.map(median);
            figure(&format!("{verb} after {events} events, durable"), here, " ms");
            figure(&format!("{verb} after {events} events, files, never synced, vs that"), files / here, "×");
            figure(&format!("{verb} after {events} events, files, synced, vs that"), synced / here, "×");
        }
    }
}

// ---- coming back ---------------------------------------------------------------------------------

/// Seconds until a command to a run that is not loaded is refused, which is all that it needs the run for.
async fn load(runtime: &Runtime, run: RunId) -> f64 {
    let call = Call { if_match: Some(0), ..Call::default() };
    let begun = Instant::now();
    let refused = runtime.tell_run(TENANT, run, a_tell(), call).await;
    let taken = begun.elapsed().as_secs_f64();
    assert!(matches!(refused, Err(Error::Run(Refused::Precondition { .. }))));
    // The actor comes to rest after it has answered; only then can the next load put it out.
    tokio::time::sleep(Duration::from_millis(1)).await;
    taken
}

async fn loads(dir: &Path, long: RunId) {
    let mut config = GROUPED.config(dir);
    // Each load puts the run before it out.
    config.loaded_threads = 1;
    let runtime =
        Runtime::start(config, Ports::with_models(Arc::new(Only(Arc::new(Silent))))).await.expect("it starts");
    let (few, many) = (with_tasks(&runtime, 10).await, with_tasks(&runtime, 10_000).await);
    let mut taken = [Vec::new(), Vec::new()];
    let before = runtime.health().evictions;
    for _ in 0..30 {
        for (at, run) in [few, many].into_iter().enumerate() {
            taken[at].push(load(&runtime, run).await * 1000.0);
        }
    }
    let evictions = runtime.health().evictions - before;
    assert!(evictions >= 55, "{evictions} evictions: the runs were not loaded anew");
    let [few, many] = taken.map(median);
    figure("first command to a run with 10 tasks that is not loaded", few, " ms");
    figure("first command to a run with 10,000 tasks that is not loaded", many, " ms");
    let mut replays = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let replayed = runtime.replay_run(TENANT, long, None, None).await.expect("it is whole");
        replays.push(begun.elapsed().as_secs_f64());
        assert!(replayed.events >= LONG && replayed.drift.is_some_and(|drift| !drift.mismatch));
    }
    figure("replay of 100,000 events and comparison", median(replays) * 1000.0, " ms");
    runtime.shutdown(Duration::ZERO).await;
}

fn main() {
    let begun = Instant::now();
    support::head("runs: a board that agents share");
    let dir = tempfile::tempdir().expect("a directory");
    let long = block_on(async {
        let runtime = GROUPED.runtime(dir.path(), Silent).await;
        let long = length(&runtime).await;
        claims(&runtime).await;
        beside_files(&runtime).await;
        runtime.shutdown(Duration::ZERO).await;
        long
    });
    block_on(loads(dir.path(), long));
    let dir = tempfile::tempdir().expect("a directory");
    block_on(make_lists(dir.path()));
    block_on(lists(dir.path()));
    eprintln!("{:.0?}", begun.elapsed());
}
