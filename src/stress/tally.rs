//! What was asked, how it ended and how long that took: per operation, and step by step.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::histogram::Histogram;

/// What an operation is called where it was done.
pub const DONE: &str = "ok";
/// How long a step is: short enough to show how long a server is away.
pub const STEP: Duration = Duration::from_millis(250);
/// Steps of a second.
const A_SECOND: usize = 4;
/// Nobody answered, or not to the end.
pub const UNREACHABLE: &str = "unreachable";

/// Counts everything.
#[derive(Debug)]
pub struct Tally {
    began: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone)]
pub struct Counts {
    pub operations: BTreeMap<&'static str, Operation>,
    /// [`STEP`] by [`STEP`] since the beginning.
    pub steps: Vec<Step>,
    /// How long the load lasted; nothing while it does.
    pub lasted: Option<Duration>,
    pub kills: Vec<Killed>,
}

/// All requests of one kind.
#[derive(Debug, Default, Clone)]
pub struct Operation {
    /// [`DONE`], the code of a problem, or [`UNREACHABLE`].
    pub outcomes: BTreeMap<String, u64>,
    /// Of those that were done.
    pub latency: Histogram,
}

/// What happened in one step.
#[derive(Debug, Default, Clone, Copy)]
pub struct Step {
    pub done: u64,
    pub refused: u64,
    pub failed: u64,
}

/// The server was killed.
#[derive(Debug, Clone, Copy)]
pub struct Killed {
    /// Since the beginning.
    pub at: Duration,
    /// Until the first command was acknowledged after that.
    pub recovery: Duration,
}

/// How it goes.
#[derive(Debug, Clone, Default)]
pub struct Glance {
    pub elapsed: Duration,
    pub done: u64,
    /// In the last whole second.
    pub per_second: u64,
    pub kills: usize,
    /// What was not done, by how it ended, most often first.
    pub problems: Vec<(String, u64)>,
}

impl Tally {
    pub fn new() -> Self {
        Self { began: Instant::now(), counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a request; `status` is what it was refused with, if it was.
    pub fn note(&self, operation: &'static str, outcome: &str, status: Option<u16>, took: Duration) {
        let step = (self.began.elapsed().as_millis() / STEP.as_millis()) as usize;
        let mut counts = self.counts();
        let of = counts.operations.entry(operation).or_default();
        match of.outcomes.get_mut(outcome) {
            Some(count) => *count += 1,
            None => drop(of.outcomes.insert(outcome.to_owned(), 1)),
        }
        if outcome == DONE {
            of.latency.record(took);
        }
        // What comes when the load is over is no part of how much there was of it.
        if counts.lasted.is_some() {
            return;
        }
        if counts.steps.len() <= step {
            counts.steps.resize(step + 1, Step::default());
        }
        let now = &mut counts.steps[step];
        match (outcome, status) {
            (DONE, _) => now.done += 1,
            (_, Some(..500)) | ("busy" | "draining", _) => now.refused += 1,
            _ => now.failed += 1,
        }
    }

    pub fn killed(&self, at: Instant, recovery: Duration) {
        self.counts().kills.push(Killed { at: at.duration_since(self.began), recovery });
    }

    /// The load is over, if it was not before.
    pub fn stop(&self) {
        self.counts().lasted.get_or_insert(self.began.elapsed());
    }

    pub fn whole(&self) -> Counts {
        self.counts().clone()
    }

    pub fn glance(&self) -> Glance {
        let elapsed = self.began.elapsed();
        let counts = self.counts();
        let mut problems: BTreeMap<&str, u64> = BTreeMap::new();
        let all = counts.operations.values().flat_map(|of| &of.outcomes);
        all.for_each(|(outcome, count)| *problems.entry(outcome).or_default() += count);
        let done = problems.remove(DONE).unwrap_or(0);
        let mut problems: Vec<_> = problems.into_iter().map(|(code, count)| (code.to_owned(), count)).collect();
        problems.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        // The newest step is not over.
        let whole = counts.steps.len().saturating_sub(1);
        let per_second = counts.steps[whole.saturating_sub(A_SECOND)..whole].iter().map(|step| step.done).sum();
        Glance { elapsed, done, per_second, kills: counts.kills.len(), problems }
    }
}
