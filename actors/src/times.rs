//! How long things take: counts that are added to without a lock, and read when somebody looks.
//!
//! One set of bounds serves everything from a commit to an answer of a model, so that two of them can be compared.
//! Absent on purpose: quantiles, which whoever reads the counts can work out over as many servers as there are.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;

/// Upper bounds in seconds; beyond the last one there is one more count.
pub const BOUNDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// Times that are being counted.
#[derive(Debug)]
pub(crate) struct Times {
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: array::from_fn(|_| AtomicU64::new(0)), micros: AtomicU64::new(0) }
    }
}

impl Times {
    pub fn took(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[at].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn read(&self) -> Distribution {
        let counts = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        Distribution { counts, seconds: self.micros.load(Relaxed) as f64 / 1e6 }
    }
}

/// Times that were counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// One for each of [`BOUNDS`], of those above the bound before it, and one for what is above all.
    pub counts: Vec<u64>,
    /// All of them together.
    pub seconds: f64,
}

/// What is counted of one engine's calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// Until the first piece of an answer.
    pub first: Times,
    /// Until the end, whatever it was.
    pub whole: Times,
    pub failed: AtomicU64,
    pub input_tokens: AtomicU64,
    pub output_tokens: AtomicU64,
}

/// The calls of all engines. Their names are those that are configured.
#[derive(Debug, Default)]
pub(crate) struct Engines(DashMap<String, Arc<Calls>>);

impl Engines {
    pub fn of(&self, engine: &str) -> Arc<Calls> {
        let known = self.0.get(engine).map(|calls| calls.clone());
        known.unwrap_or_else(|| self.0.entry(engine.to_owned()).or_default().clone())
    }

    /// In the order of the names.
    pub fn read(&self) -> Vec<EngineFigures> {
        let mut all: Vec<_> = self.0.iter().map(|calls| EngineFigures::of(calls.key(), calls.value())).collect();
        all.sort_by(|one, other| one.engine.cmp(&other.engine));
        all
    }
}

/// How the calls of one engine go.
#[derive(Debug, Clone, Default)]
pub struct EngineFigures {
    pub engine: String,
    pub first: Distribution,
    pub whole: Distribution,
    pub failed: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

impl EngineFigures {
    fn of(engine: &str, calls: &Calls) -> Self {
        Self {
            engine: engine.to_owned(),
            first: calls.first.read(),
            whole: calls.whole.read(),
            failed: calls.failed.load(Relaxed),
            input_tokens: calls.input_tokens.load(Relaxed),
            output_tokens: calls.output_tokens.load(Relaxed),
        }
    }
}

/// How long things took since the start, and what was refused.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// A commit of the store, from the first write handed to the disk to the last one known to be there.
    pub commit: Distribution,
    /// How long a write waited until its commit began.
    pub commit_wait: Distribution,
    /// From the admission of a start to its turn being durable.
    pub turn_start: Distribution,
    /// From the admission of a queued prompt to the start of its turn.
    pub prompt_wait: Distribution,
    /// An attempt of a tool.
    pub tool: Distribution,
    pub engines: Vec<EngineFigures>,
    /// How many requests were refused because a bound was reached, by what was full.
    pub refused: Vec<(&'static str, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_under_the_first_bound_that_holds_it() {
        let times = Times::default();
        for micros in [0, 500, 501, 1_800_000_000, 1_800_000_001] {
            times.took(Duration::from_micros(micros));
        }
        let read = times.read();
        assert_eq!((read.counts[0], read.counts[1], read.counts.iter().sum::<u64>()), (2, 1, 5));
        assert_eq!((read.counts[BOUNDS.len() - 1], read.counts[BOUNDS.len()]), (1, 1));
        assert_eq!(read.seconds, 3600.001002);
        assert!(BOUNDS.is_sorted());
    }
}
