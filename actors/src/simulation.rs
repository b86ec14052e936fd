//! The whole runtime on one thread, in a world that a seed makes up.
//!
//! The actors, tasks and stores are the real ones (`stage` starts them here rather than on threads); time is virtual, and
//! everything that the runtime asks of the world is made up from the seed: in which order things run, how long they take,
//! what models and tools do, what clients ask and when, when the disk fails, when the process dies. One seed is one
//! history: simulated again it is the same to the last byte, which its digest shows.
//!
//! ```text
//!   Plan ──▶ clients, watchers ──▶ Runtime, actors ──▶ store that fails ──▶ disk
//!    of            │                    │ models, tools        │           outlives the process
//!   a seed         └────────────────────┴─────▶ Witness ◀──────┘
//!                                 everything that must hold, all along and at the end
//! ```
//! A history that breaks an invariant is told by the shortest plan that was found to break it too ([`shrink`]).
//!
//! Tenants and threads have budgets of tokens, agents work on the tasks of runs, jobs are done later and on schedule, and
//! hooks carry what happens to sinks that are slow, refuse, or are away. Tenants have quotas, and are erased.
//!
//! Absent: of runs, what threads do for them (workers of the runtime, ledgers, rollbacks), checkpoints and deletion;
//! budgets that are lowered, in money, or of a turn; quotas that are lowered, of bytes, of what is loaded, or of requests in
//! time; tenants that come back after their erasure. Absent on purpose: torn pages and flipped bits, which tests of the
//! store make.

mod agent;
mod board;
mod chores;
mod client;
mod disk;
mod drawn;
mod ending;
mod erasure;
#[cfg(test)]
mod found;
mod hooks;
mod lives;
mod model;
mod numbers;
mod plan;
mod quota;
mod scheduler;
mod shrink;
mod told;
mod watcher;
mod witness;
mod world;

use std::{
    cell::{Cell, RefCell},
    panic::resume_unwind,
    rc::Rc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{runtime::Builder, task::LocalSet, time::sleep};

use self::client::Outside;
pub(crate) use self::scheduler::Scheduler;
pub use self::{
    plan::Plan,
    shrink::{Shrunk, shrink},
    witness::Violation,
};

/// Longer than any history.
const LONG: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What came of a seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub seed: u64,
    /// Of everything that happened, in lower-case hex.
    pub digest: String,
    /// How much that was.
    pub happened: u64,
    pub commits: u32,
    /// How many processes there were.
    pub processes: u32,
    /// Virtual time.
    pub time: Duration,
    /// What did not hold, first of all.
    pub violation: Option<Violation>,
    /// What happened, line by line, where it was asked for.
    pub lines: Vec<String>,
}

/// Simulates a seed.
pub fn simulate(seed: u64) -> Outcome {
    run(&Plan::new(seed), false)
}

/// Simulates plans on so many threads at once, in about their order. `heard` hears of each, and says whether to go on.
pub fn each(plans: impl Iterator<Item = Plan> + Send, threads: usize, heard: impl Fn(Plan, Outcome) -> bool + Sync) {
    let (plans, goes_on) = (Mutex::new(plans), AtomicBool::new(true));
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while goes_on.load(Relaxed) {
                    let next = plans.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(plan) = next else { break };
                    let outcome = on_this_thread(&plan, false);
                    if !heard(plan, outcome) {
                        goes_on.store(false, Relaxed);
                    }
                }
            });
        }
    });
}

/// Simulates a plan; `told`: with what happened, line by line. Blocks.
pub fn run(plan: &Plan, told: bool) -> Outcome {
    // On a thread of its own: whoever asks may be in a runtime, and another clock is not his.
    let ran = thread::scope(|scope| scope.spawn(|| on_this_thread(plan, told)).join());
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}

fn on_this_thread(plan: &Plan, told: bool) -> Outcome {
    #[cfg(feature = "planted")]
    raddle_domain::planted::plant(plan.plant);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O has nothing that could be missing");
    let all = LocalSet::new();
    let outcome = runtime.block_on(all.run_until(history(plan, told)));
    // What is dropped looks for its clock.
    let _guard = runtime.enter();
    drop(all);
    outcome
}

async fn history(plan: &Plan, told: bool) -> Outcome {
    let world = world::World::new(plan, told);
    let outside = Rc::new(Outside {
        world: world.clone(),
        door: RefCell::new(None),
        lives: Cell::new(0),
        threads: RefCell::default(),
        runs: RefCell::default(),
        work: RefCell::default(),
        watchers: RefCell::default(),
        refused: RefCell::default(),
        over: Cell::new(false),
    });
    let mut tasks = vec![tokio::task::spawn_local(lives::live(outside.clone(), plan.clone()))];
    tasks.extend(
        plan.faults.iter().map(|fault| tokio::task::spawn_local(lives::strike(outside.clone(), fault.clone()))),
    );
    // Those who watch do so to the end.
    let (watches, moves): (Vec<_>, Vec<_>) = plan.moves.iter().cloned().partition(plan::Move::watches);
    let play = |step| tokio::task::spawn_local(client::play(outside.clone(), step, plan.tenants));
    tasks.extend(watches.into_iter().map(play));
    let moves: Vec<_> = moves.into_iter().map(play).collect();
    let played = async {
        join_all(moves).await;
        ending::end(&outside, plan).await;
    };
    tokio::select! {
        biased;
        () = world.broken.notified() => {}
        () = played => {}
        // Where nothing is left to happen, time passes in no time.
        () = sleep(LONG) => {
            let what = format!("{} hours pass and nothing happens", LONG.as_secs() / 3_600);
            world.violated(Violation { invariant: witness::RESTS, what });
        }
    }
    let time = world.elapsed();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let (digest, happened, lines) = world.told();
    Outcome {
        seed: plan.seed,
        digest,
        happened,
        commits: world.commits_so_far(),
        processes: outside.lives.get(),
        time,
        violation: world.is_broken(),
        lines,
    }
}
