//! What was asked, how it ended and how long that took: per operation, and second by second.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::histogram::Histogram;

/// What an operation is called where it was done.
pub const DONE: &str = "ok";
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
    /// Second by second since the beginning.
    pub seconds: Vec<Second>,
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

/// What happened in one second.
#[derive(Debug, Default, Clone, Copy)]
pub struct Second {
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
        let second = self.began.elapsed().as_secs() as usize;
        let mut counts = self.counts();
        let of = counts.operations.entry(operation).or_default();
        match of.outcomes.get_mut(outcome) {
            Some(count) => *count += 1,
            None => drop(of.outcomes.insert(outcome.to_owned(), 1)),
        }
        if outcome == DONE {
            of.latency.record(took);
        }
        // What comes when the load is over is no part of how much there was in which second.
        if counts.lasted.is_some() {
            return;
        }
        if counts.seconds.len() <= second {
            counts.seconds.resize(second + 1, Second::default());
        }
        let now = &mut counts.seconds[second];
        match (outcome, status) {
            (DONE, _) => now.done += 1,
            (_, Some(..500)) => now.refused += 1,
            _ => now.failed += 1,
        }
    }

    pub fn killed(&self, at: Instant, recovery: Duration) {
        self.counts().kills.push(Killed { at: at.duration_since(self.began), recovery });
    }

    /// The load is over.
    pub fn stop(&self) {
        self.counts().lasted = Some(self.began.elapsed());
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
        let last = (elapsed.as_secs() as usize).checked_sub(1).and_then(|last| counts.seconds.get(last));
        let per_second = last.map_or(0, |last| last.done);
        Glance { elapsed, done, per_second, kills: counts.kills.len(), problems }
    }
}
