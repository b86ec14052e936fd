//! A trace, told to many threads at once through the whole runtime, and what came of it compared with what was recorded.
//!
//! ```text
//!   Trace ──▶ Recorded (one thread) ──K times, under other ids──▶ told ──▶ read back ──▶ compared ──▶ Report
//! ```
//! Every recorded thread has K replicas, spread over T tenants, all at once over a cap of loaded threads that is smaller
//! than they are many: so they are unloaded and loaded again while they are told. Nothing happens in such a runtime
//! but what the trace says, in the world of each line.
//!
//! What a replica is compared by is its log as it is stored at the end, in canonical form, and, of some, what a watcher
//! saw meanwhile.

mod compare;
mod recorded;
mod replica;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use raddle_domain::{
    command::Command,
    id::{Seq, TenantId, ThreadKey},
    ports::{Model, Models, UnknownModel},
    record::ModelChoice,
    time::UnixMs,
    trace::{Came, Header, Told},
};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::{
    compare::{Difference, Report, ThreadReport},
    recorded::{Numbered, ReadError, Recorded, Trace},
    replica::Replica,
};
use self::{
    compare::{Found, Watcher},
    recorded::{Prepared, Retelling},
};
use crate::{
    config::{Config, Ports, StartError},
    handle::{Error, Runtime},
    host::World,
    retell::Again,
};

/// Lines of one thread that are under way together.
const BATCH: usize = 32;
/// Differences that a report shows in full.
const SHOWN: usize = 20;

/// How a trace is told again.
#[derive(Debug, Clone)]
pub struct Redrive {
    /// Where the database is made. Nothing may be there yet.
    pub dir: PathBuf,
    /// Replicas of each recorded thread.
    pub copies: u32,
    /// Tenants that they are spread over.
    pub tenants: u32,
    /// Threads held in memory.
    pub loaded_threads: usize,
    /// Replicas that are told something at once.
    pub at_once: usize,
    /// By how much faster than it was recorded; as fast as it goes, without it.
    pub speed: Option<f64>,
    /// Replicas that are watched while they are told, about.
    pub watched: u32,
    /// Ends it early; afterwards nothing touches the directory.
    pub stop: CancellationToken,
}

impl Redrive {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            copies: 1,
            tenants: 1,
            loaded_threads: 256,
            at_once: 512,
            speed: None,
            watched: 64,
            stop: CancellationToken::new(),
        }
    }
}

/// No replay is slower, by how much faster than it was recorded.
pub const SLOWEST: f64 = 0.001;

/// How far a replay is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Lines to be told, and replicas to be compared, in all.
    pub lines: AtomicU64,
    pub replicas: AtomicU64,
    pub told: AtomicU64,
    pub compared: AtomicU64,
}

/// Why a trace could not be told.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    #[error("the trace has no thread")]
    Empty,
    #[error("there cannot be no replica, no tenant and no thread in memory")]
    Nothing,
    #[error("it was ended")]
    Stopped,
    #[error(transparent)]
    Start(#[from] StartError),
    /// The runtime failed, not the replay.
    #[error("replica {replica} of the thread of line {line}: {why}")]
    Failed { replica: u32, line: usize, why: Error },
}

/// What a replica was told, and what was seen of it.
struct Retold {
    of: usize,
    replica: Replica,
    key: ThreadKey,
    told: u64,
    skipped: u64,
    refused: u64,
    /// The first line of which something else came at once.
    slipped: Option<Slip>,
    watcher: Option<Watcher>,
}

/// Something else came of a line.
struct Slip {
    line: usize,
    /// It was refused then or now: there are no two events that could be compared.
    refused: bool,
    expected: String,
    found: String,
}

/// Nobody answers: a replay asks no model.
struct Nobody;

impl Models for Nobody {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Err(UnknownModel("a replay asks no model".to_owned()))
    }

    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        None
    }

    fn engines(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Commands of one thread that are told together, with their lines.
struct Batch<'a> {
    lines: Vec<&'a Retelling>,
    commands: Vec<Again>,
    skipped: u64,
    next: usize,
}

struct Stage {
    runtime: Runtime,
    redrive: Redrive,
    threads: Vec<Prepared>,
    progress: Arc<Progress>,
    /// The moment of the first line, and when it was told again.
    began: (UnixMs, Instant),
}

impl Redrive {
    fn config(&self, header: &Header) -> Config {
        Config {
            retells: true,
            limits: header.limits,
            loaded_threads: self.loaded_threads,
            commands_in_flight: self.at_once.saturating_mul(2 * BATCH).max(4_096),
            commands_per_thread: 4 * BATCH,
            reads_in_flight: self.at_once.max(1_024),
            subscribers: self.watched as usize + self.at_once,
            fair: false,
            pack_after: Duration::from_secs(u64::from(u32::MAX)),
            ..Config::new(&self.dir)
        }
    }

    /// Tells the trace to the replicas, reads them back and compares.
    pub async fn run(self, trace: &Trace, progress: Arc<Progress>) -> Result<Report, RedriveError> {
        if self.copies == 0 || self.tenants == 0 || self.loaded_threads == 0 || self.at_once == 0 {
            return Err(RedriveError::Nothing);
        }
        let threads: Vec<_> = trace.threads.iter().map(Prepared::of).collect();
        let first = trace.threads.iter().filter_map(|thread| thread.lines.first());
        let from = first.map(|line| line.line.at).min().ok_or(RedriveError::Empty)?;
        let lines: usize = trace.threads.iter().map(|thread| thread.lines.len()).sum();
        progress.lines.store(lines as u64 * u64::from(self.copies), Relaxed);
        progress.replicas.store(threads.len() as u64 * u64::from(self.copies), Relaxed);
        let prices = Arc::new(trace.header.prices.clone());
        let ports = Ports { prices, ..Ports::with_models(Arc::new(Nobody)) };
        let runtime = Runtime::start(self.config(&trace.header), ports).await?;
        let began = Instant::now();
        let (stage, began) = (runtime.clone(), (from, began));
        let stage = Arc::new(Stage { runtime: stage, redrive: self, threads, progress, began });
        let done = tokio::select! {
            done = stage.clone().play() => done,
            () = stage.redrive.stop.cancelled() => Err(RedriveError::Stopped),
        };
        let health = runtime.health();
        runtime.shutdown(Duration::ZERO).await;
        let mut report = done?;
        report.seconds = began.1.elapsed().as_secs_f64();
        report.unloaded = health.evictions;
        report.commits = health.commits;
        Ok(report)
    }
}

impl Stage {
    async fn play(self: Arc<Self>) -> Result<Report, RedriveError> {
        let places = Arc::new(Semaphore::new(self.redrive.at_once));
        let mut telling = JoinSet::new();
        let count = self.threads.len() as u32 * self.redrive.copies;
        let every = (count / self.redrive.watched.max(1)).max(1);
        // All replicas of one number side by side, as their threads were.
        for number in 0..count {
            let (of, copy) = (number as usize % self.threads.len(), number / self.threads.len() as u32);
            let watched = self.redrive.watched > 0 && number.is_multiple_of(every);
            let (stage, places) = (self.clone(), places.clone());
            telling.spawn(async move {
                let _place = places.acquire_owned().await;
                stage.retell(of, Replica(copy), watched).await
            });
        }
        let mut retold = Vec::with_capacity(count as usize);
        while let Some(done) = telling.join_next().await {
            retold.push(done.map_err(|why| self.failed(0, Replica(0), Error::Internal(why.to_string())))??);
        }
        let report = Arc::new(Mutex::new(Report::new(&self.threads, self.redrive.copies)));
        let mut comparing = JoinSet::<Result<(), RedriveError>>::new();
        for retold in retold {
            let (stage, places, report) = (self.clone(), places.clone(), report.clone());
            comparing.spawn(async move {
                let _place = places.acquire_owned().await;
                let found = stage.look(retold).await?;
                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                report.add(&stage.threads, found, SHOWN);
                stage.progress.compared.fetch_add(1, Relaxed);
                Ok(())
            });
        }
        while let Some(done) = comparing.join_next().await {
            done.map_err(|why| self.failed(0, Replica(0), Error::Internal(why.to_string())))??;
        }
        let report = std::mem::take(&mut *report.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(report)
    }

    fn failed(&self, of: usize, replica: Replica, why: Error) -> RedriveError {
        RedriveError::Failed { replica: replica.0, line: self.threads[of].first_line(), why }
    }

    /// The name under which a replica of a thread is kept.
    fn key(&self, of: usize, replica: Replica) -> ThreadKey {
        let tenant = format!("replay-{}", replica.0 % self.redrive.tenants);
        let tenant: TenantId = tenant.parse().unwrap_or(TenantId::DEFAULT);
        ThreadKey { tenant, thread: replica.thread(self.threads[of].key.thread) }
    }

    /// Waits until a line of that moment is due.
    async fn due(&self, at: UnixMs) {
        let Some(speed) = self.redrive.speed else { return };
        let (from, began) = self.began;
        let after = Duration::from_millis(at.since(from)).div_f64(speed.max(SLOWEST));
        tokio::time::sleep_until(began + after).await;
    }

    /// Tells a replica everything, until something else comes of it than was recorded.
    async fn retell(&self, of: usize, replica: Replica, watched: bool) -> Result<Retold, RedriveError> {
        let (thread, key) = (&self.threads[of], self.key(of, replica));
        let failed = |why| self.failed(of, replica, why);
        let mut retold = Retold { of, replica, key, told: 0, skipped: 0, refused: 0, slipped: None, watcher: None };
        let (mut next, mut head) = (0, 0);
        while next < thread.lines.len() && retold.slipped.is_none() {
            let batch = self.batch(&thread.lines, next, replica);
            let first = &thread.lines[next];
            self.due(first.at).await;
            let came = match first.told(replica) {
                Told::Created(new) => vec![self.runtime.tell_to_be(key, *new, first.world(replica)).await],
                Told::Given => vec![self.runtime.give(key.tenant, first.log(replica)).await],
                Told::Command { .. } => self.runtime.tell(key, batch.commands).await.map_err(failed)?,
            };
            self.progress.told.fetch_add(came.len() as u64, Relaxed);
            retold.told += came.len() as u64;
            retold.skipped += batch.skipped;
            for (line, came) in batch.lines.into_iter().zip(came) {
                match (line.head(), came) {
                    (Ok(last), Ok(seq)) if last.unwrap_or(head) == seq => head = seq,
                    (Err(why), Err(Error::Refused(refused))) if replica.text(why) == refused.to_string() => {
                        retold.refused += 1;
                    }
                    (_, Err(why)) if !matches!(why, Error::Refused(_)) => return Err(failed(why)),
                    (expected, came) => {
                        let refused = expected.is_err() || came.is_err();
                        let expected = said(expected.map(|last| last.unwrap_or(head)));
                        let found = said(came);
                        retold.slipped = Some(Slip { line: line.number, refused, expected, found });
                        break;
                    }
                }
            }
            next = batch.next;
            if watched && retold.watcher.is_none() {
                retold.watcher = match Watcher::of(&self.runtime, key).await {
                    Ok(watcher) => Some(watcher),
                    // Deleted before anybody could watch.
                    Err(Error::NotFound(_)) if thread.deleted => None,
                    Err(why) => return Err(failed(why)),
                };
            }
        }
        Ok(retold)
    }

    /// What is told together from the line at `from` on: a thread's beginning alone, or commands that are due at once.
    fn batch<'a>(&self, lines: &'a [Retelling], from: usize, replica: Replica) -> Batch<'a> {
        let mut batch = Batch { lines: Vec::new(), commands: Vec::new(), skipped: 0, next: from };
        for line in lines.iter().skip(from).take(BATCH) {
            if self.redrive.speed.is_some() && line.at > lines[from].at {
                break;
            }
            match line.told(replica) {
                Told::Command { .. } if line.is_skipped() => batch.skipped += 1,
                Told::Command { command, if_match } => {
                    batch.commands.push(Again { world: line.world(replica), command: *command, if_match });
                    batch.lines.push(line);
                }
                Told::Created(_) | Told::Given => {
                    batch.lines.push(line);
                    batch.next += 1;
                    break;
                }
            }
            batch.next += 1;
        }
        batch
    }

    /// Reads back what is stored of a replica.
    async fn look(&self, retold: Retold) -> Result<Found, RedriveError> {
        let (of, replica) = (retold.of, retold.replica);
        Found::read(&self.runtime, &self.threads[of], retold).await.map_err(|why| self.failed(of, replica, why))
    }
}

fn said(came: Result<Seq, impl fmt::Display>) -> String {
    match came {
        Ok(seq) => format!("the log ends at {seq}"),
        Err(why) => format!("refused: {why}"),
    }
}

/// What is not told again, because what it was refused for is not in a trace.
const fn is_skipped(came: &Came) -> bool {
    matches!(came, Came::Refused { quota: true, .. })
}

/// The world of a line, for a replica.
fn world(at: UnixMs, draining: bool, minted: &[uuid::Uuid], replica: Replica) -> World {
    World { at, draining, minted: minted.iter().map(|id| replica.id(*id)).collect() }
}

/// Whether nothing is left of a thread behind it.
const fn deletes(command: &Command) -> bool {
    matches!(command, Command::Delete)
}
