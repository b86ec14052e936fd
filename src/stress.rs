//! `raddle stress`: load on a real server, faults while it lasts, and afterwards a comparison of everything that clients
//! were told with everything that is found.
//!
//! ```text
//! Plan ──▶ server (a child process, killed and restarted; or somebody's)
//!            ▲ ask                                  │ streams
//!      talk, decide, board ──▶ tally, journal     watch
//!                                   └──────┬────────┘
//!                                        check ──▶ Outcome ──▶ JSON, report
//! ```
//!
//! A [`Scenario`] says who does what. Every request goes through [`world::World::ask`], which times it and counts its
//! outcome; what it says of a thread stands in the [`journal`] with the moments of question and answer. When the load is
//! over the threads are let come to rest, and [`check`] reads their logs: nothing acknowledged is lost, nothing is doubled,
//! logs are sound, streams were whole, and each thread's history is one that a thread can have
//! ([`raddle_domain::linear`]).
//!
//! The same seed makes the same choices; which client is quicker is the machine's. Every call is kept until it is checked:
//! some 300 bytes each.

use std::{path::PathBuf, sync::Arc, time::Duration};

use raddle_actors::SystemClock;
use raddle_domain::ports::Clock;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::Instant,
};

use self::{dice::Dice, server::Child, talk::Slots, world::Who};
pub use self::{
    outcome::{Check, Holds, Outcome},
    scenario::Scenario,
    tally::Glance,
    world::World,
};
use crate::client::{Client, ClientError};

mod board;
mod check;
mod decide;
mod dice;
mod facts;
pub mod histogram;
mod journal;
mod kill;
pub mod outcome;
pub mod report;
mod scenario;
mod server;
mod talk;
mod tally;
mod watch;
mod world;

/// How long threads may take to come to rest, and streams to come to their end.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much time there is for each kill at least.
const FOR_A_KILL: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    pub scenario: Scenario,
    pub target: Target,
    /// Threads (of `board`: runs) at a time.
    pub threads: usize,
    pub clients: usize,
    pub duration: Duration,
    pub seed: u64,
    /// How often the server is killed.
    pub kills: u32,
    /// Added to every sync of the disk.
    pub disk_latency: Duration,
    /// Of a million writes and syncs, those that fail.
    pub disk_faults: u32,
    /// Watchers that read more slowly than things happen.
    pub slow_subscribers: usize,
}

/// Whose server it is.
#[derive(Debug, Clone)]
pub enum Target {
    /// One of our own: this program, started as a child.
    Own {
        program: PathBuf,
    },
    Given {
        url: String,
        key: Option<String>,
    },
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum StressError {
    /// What is wanted makes no sense.
    #[error("{0}")]
    Plan(String),
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The server is not there any more, and nobody here has ended it.
    #[error("{0}")]
    Gone(String),
    #[error("interrupted: nothing is checked, and nothing is left behind")]
    Interrupted,
    #[error("{0}")]
    Failed(String),
}

impl Plan {
    /// Whether it can be done.
    pub fn check(&self) -> Result<(), StressError> {
        let own = matches!(self.target, Target::Own { .. });
        let only = |wanted: bool, what: &str| match wanted && !own {
            true => Err(StressError::Plan(format!(
                "{what} is for a server that this command starts itself: leave out --server"
            ))),
            false => Ok(()),
        };
        only(self.kills > 0, "--kill")?;
        only(!self.disk_latency.is_zero(), "--disk-latency")?;
        only(self.disk_faults > 0, "--disk-faults")?;
        if self.threads == 0 || self.clients == 0 {
            return Err(StressError::Plan("there must be a client and a thread".to_owned()));
        }
        if self.duration.is_zero() {
            return Err(StressError::Plan("--duration must be longer than nothing".to_owned()));
        }
        if self.kills > 0 && self.duration / self.kills < FOR_A_KILL {
            return Err(StressError::Plan(format!(
                "--kill {} needs a --duration of {} ms at least",
                self.kills,
                (FOR_A_KILL * self.kills).as_millis()
            )));
        }
        Ok(())
    }
}

/// Does it all. `watch` is given the world while the load lasts, for whoever shows how it goes.
pub async fn run(plan: Plan, watch: impl FnOnce(Arc<World>)) -> Result<Outcome, StressError> {
    plan.check()?;
    let began_at = SystemClock.now();
    let mut signals = Signals::new().map_err(|err| StressError::Failed(err.to_string()))?;
    let (child, client) = match &plan.target {
        Target::Own { program } => {
            let mut child = Child::new(program.clone(), plan.scenario.environment(&plan))?;
            let started = tokio::select! {
                started = child.start() => started,
                () = signals.next() => Err(StressError::Interrupted),
            };
            let url = match started {
                Ok(url) => url,
                Err(StressError::Interrupted) => {
                    child.kill().await;
                    child.end(false).await;
                    return Err(StressError::Interrupted);
                }
                Err(err) => return Err(err),
            };
            (Some(child), Client::new(&url, plan.scenario.operator())?)
        }
        Target::Given { url, key } => {
            let client = Client::new(url, key.clone())?;
            client.ready().await?;
            (None, client)
        }
    };
    let home = child.as_ref().map(|child| child.home().to_owned());
    let world = Arc::new(World::new(plan, client, home));
    watch(world.clone());
    let mut stress = Stress { world: world.clone(), child, tasks: JoinSet::new() };
    let result = match attended(&world, &mut signals, stress.run()).await {
        // What was counted until then is worth a report; of what was promised nothing can be found out.
        Err(StressError::Gone(why)) => {
            world.tally.stop();
            Ok(vec![check::gone(why)])
        }
        result => result,
    };
    let kept = match (&result, stress.child) {
        (Ok(checks), Some(child)) => child.end(checks.iter().any(|check| check.holds == Holds::No)).await,
        (Err(StressError::Interrupted), Some(mut child)) => {
            child.kill().await;
            child.end(false).await
        }
        (Err(_), Some(child)) => child.end(true).await,
        (_, None) => None,
    };
    let checks = result.map_err(|err| match &kept {
        Some(dir) => StressError::Failed(format!("{err}; what there is was kept in {}", dir.display())),
        None => err,
    })?;
    Ok(Outcome::of(&world, began_at, checks, kept))
}

/// Does the work while it is attended to who wants it to end, and to whether a given server is still there. The first
/// signal ends the load early: what there is so far is checked. A further one, or one during the checks, ends it all.
async fn attended<T>(
    world: &World,
    signals: &mut Signals,
    work: impl Future<Output = Result<T, StressError>>,
) -> Result<T, StressError> {
    let silent = async {
        match &world.plan.target {
            Target::Given { url, .. } => {
                world.silence().await;
                StressError::Gone(format!("the server at {url} does not answer any more"))
            }
            // One of our own is killed, and is given its own time to come back.
            Target::Own { .. } => std::future::pending().await,
        }
    };
    tokio::pin!(work, silent);
    loop {
        tokio::select! {
            done = &mut work => return done,
            silent = &mut silent => return Err(silent),
            () = signals.next() => {
                if world.stop.is_cancelled() {
                    return Err(StressError::Interrupted);
                }
                world.stop.cancel();
                eprintln!("raddle: the load ends early, and is checked; another signal ends this at once");
            }
        }
    }
}

/// What asks us to end.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let (term, int, hup) = (SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup());
        Ok(Self { term: signal(term)?, int: signal(int)?, hup: signal(hup)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}

struct Stress {
    world: Arc<World>,
    child: Option<Child>,
    tasks: JoinSet<()>,
}

impl Stress {
    async fn run(&mut self) -> Result<Vec<Check>, StressError> {
        let world = self.world.clone();
        let plan = &world.plan;
        let mut dice = Dice::new(plan.seed);
        let made = async {
            let people = world.people().await?;
            let (mut boards, mut circles) = (Vec::new(), Vec::new());
            match plan.scenario {
                Scenario::Board => boards = board::make(&world, &people[0]).await?,
                _ => {
                    let each = plan.threads.div_ceil(people.len());
                    for who in &people {
                        circles.push(Arc::new(Slots::make(&world, who, each).await?));
                    }
                }
            }
            Ok((people, boards, circles))
        };
        let (people, boards, circles) = while_it_lives(&mut self.child, made).await?;
        for number in 0..plan.clients {
            let (world, dice, client) = (world.clone(), dice.split(), number as u32);
            let style = plan.scenario.style(number);
            match (circles.get(number % circles.len().max(1)), boards.get(number % boards.len().max(1))) {
                (Some(slots), _) => {
                    let other = circles.get((number + 1) % circles.len()).filter(|_| circles.len() > 1).cloned();
                    self.tasks.spawn(talk::client(world, client, slots.clone(), other, style, dice));
                }
                (None, Some(board)) => drop(self.tasks.spawn(board::client(world, client, board.clone(), dice))),
                (None, None) => {}
            }
        }
        let decides = plan.scenario == Scenario::Approvals;
        let deciders = if decides { (plan.clients / 2).max(2) } else { 0 };
        let mut desk = JoinSet::new();
        for _ in 0..deciders {
            desk.spawn(decide::decider(world.clone(), people[0].clone(), dice.split()));
        }

        let until = Instant::now() + plan.duration;
        if let Some(child) = &mut self.child {
            kill::kills(&world, child, &people[0], dice.split(), until).await?;
        }
        let Self { child, tasks, .. } = self;
        let found = async {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = world.stop.cancelled() => {}
            }
            world.tally.stop();
            world.stop.cancel();
            while let Some(ended) = tasks.join_next().await {
                ended.map_err(|err| StressError::Failed(format!("a client failed: {err}")))?;
            }
            let rested = check::settle(&world).await;
            desk.abort_all();
            let mut checks = check::all(&world, rested).await?;
            checks.extend(board::check(&world, &boards).await?);
            Ok(checks)
        };
        while_it_lives(child, found).await
    }
}

/// Does what needs the server, unless one of our own ends by itself.
async fn while_it_lives<T>(
    child: &mut Option<Child>,
    work: impl Future<Output = Result<T, StressError>>,
) -> Result<T, StressError> {
    let Some(child) = child else { return work.await };
    tokio::select! {
        gone = child.gone() => Err(gone),
        done = work => done,
    }
}

impl World {
    /// Those on whose behalf clients ask: one, or of `tenants` several.
    async fn people(&self) -> Result<Vec<Arc<Who>>, StressError> {
        match self.plan.scenario {
            Scenario::Tenants => self.tenants().await,
            _ => Ok(vec![Arc::new(Who::default())]),
        }
    }
}
