//! What came of it, as it is written: the JSON of `raddle stress --json`.
//!
//! `version` is [`VERSION`]. Within it fields are added and never change their meaning. Times are in milliseconds, with
//! fractions; `histogram` leaves out what is empty.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use raddle_domain::time::UnixMs;
use serde::{Deserialize, Serialize};

use super::{
    Scenario, Target, World,
    histogram::Histogram,
    tally::{Counts, Operation, STEP, Step},
};

/// Of this form.
pub const VERSION: u32 = 1;

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub version: u32,
    /// Of this program.
    pub raddle: String,
    pub began_at: UnixMs,
    pub plan: Planned,
    /// How long the load lasted.
    pub lasted_ms: f64,
    /// Every check held.
    pub passed: bool,
    pub checks: Vec<Check>,
    /// By name.
    pub operations: Vec<OfOperation>,
    /// How much was answered, step by step.
    pub timeline: Vec<OfStep>,
    /// Watchers that were too slow. There is one for each thread at most, so that it may be fewer than planned.
    #[serde(default)]
    pub slow_subscribers: usize,
    pub step_ms: f64,
    pub kills: Vec<Kill>,
    /// Of the kills, where there were any.
    pub recovery_ms: Option<Percentiles>,
    /// Where the server's data was kept, because a check failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<PathBuf>,
}

/// What was to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub scenario: Scenario,
    /// The address of a server that was given.
    pub server: Option<String>,
    pub threads: usize,
    pub clients: usize,
    pub duration_ms: f64,
    pub seed: u64,
    pub kills: u32,
    pub disk_latency_ms: f64,
    /// Of all writes and syncs.
    pub disk_fault_rate: f64,
    pub slow_subscribers: usize,
}

/// Something that had to be true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Stable, one word.
    pub name: String,
    /// What had to be true.
    pub says: String,
    pub holds: Holds,
    /// How many things were looked at, and what they are.
    pub examined: u64,
    pub of: String,
    /// What is wrong: the first of it.
    pub faults: Vec<String>,
    /// And so much more.
    pub more: u64,
}

/// Whether it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    Yes,
    No,
    /// It was too much to find out.
    Undecided,
}

/// Requests of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfOperation {
    pub name: String,
    pub count: u64,
    /// `ok`, `unreachable`, or the code of a problem, with how often.
    pub outcomes: BTreeMap<String, u64>,
    /// Of those that were done; nothing where none was.
    pub latency_ms: Option<Percentiles>,
    pub histogram: Vec<Bar>,
}

/// How a distribution is told in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    pub max: f64,
}

/// From `from_ms` to below `to_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    pub from_ms: f64,
    pub to_ms: f64,
    pub count: u64,
}

/// What was answered in one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OfStep {
    /// Where it begins.
    pub at_ms: f64,
    pub done: u64,
    /// Refused by the rules, or because there was too much.
    pub refused: u64,
    /// Not answered, or with a failure of the server.
    pub failed: u64,
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// Since the beginning.
    pub at_ms: f64,
    /// Until the first command was acknowledged after it.
    pub recovery_ms: f64,
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

fn ms_of(time: Duration) -> f64 {
    ms(time.as_micros() as u64)
}

impl Percentiles {
    /// Nothing of nothing.
    pub fn of(histogram: &Histogram) -> Option<Self> {
        (histogram.count() > 0).then(|| Self {
            count: histogram.count(),
            min: ms(histogram.min()),
            mean: ms(histogram.mean()),
            p50: ms(histogram.quantile(0.5)),
            p90: ms(histogram.quantile(0.9)),
            p99: ms(histogram.quantile(0.99)),
            p999: ms(histogram.quantile(0.999)),
            max: ms(histogram.max()),
        })
    }
}

impl OfOperation {
    fn of(name: &str, operation: &Operation) -> Self {
        let histogram = operation.latency.buckets();
        let bar = |bucket: super::histogram::Bucket| Bar {
            from_ms: ms(bucket.low),
            to_ms: ms(bucket.high),
            count: bucket.count,
        };
        Self {
            name: name.to_owned(),
            count: operation.outcomes.values().sum(),
            outcomes: operation.outcomes.clone(),
            latency_ms: Percentiles::of(&operation.latency),
            histogram: histogram.map(bar).collect(),
        }
    }
}

impl Outcome {
    /// The check that fails where the server was gone before the end: then it is the only one.
    pub(super) const THERE: &str = "there";

    /// Whether somebody's server was gone before the end, as one that is down.
    pub fn is_unreachable(&self) -> bool {
        self.plan.server.is_some() && self.checks.iter().any(|check| check.name == Self::THERE)
    }

    pub(super) fn of(world: &World, began_at: UnixMs, checks: Vec<Check>, kept: Option<PathBuf>) -> Self {
        let plan = &world.plan;
        let Counts { operations, steps, lasted, kills } = world.tally.whole();
        let mut recoveries = Histogram::default();
        kills.iter().for_each(|kill| recoveries.record(kill.recovery));
        let step = |(at, of): (usize, Step)| OfStep {
            at_ms: at as f64 * ms_of(STEP),
            done: of.done,
            refused: of.refused,
            failed: of.failed,
        };
        Self {
            version: VERSION,
            raddle: env!("CARGO_PKG_VERSION").to_owned(),
            began_at,
            plan: Planned {
                scenario: plan.scenario,
                server: match &plan.target {
                    Target::Own { .. } => None,
                    Target::Given { url, .. } => Some(url.clone()),
                },
                threads: plan.threads,
                clients: plan.clients,
                duration_ms: ms_of(plan.duration),
                seed: plan.seed,
                kills: plan.kills,
                disk_latency_ms: ms_of(plan.disk_latency),
                disk_fault_rate: f64::from(plan.disk_faults) / 1e6,
                slow_subscribers: plan.slow_subscribers,
            },
            lasted_ms: lasted.map_or(0.0, ms_of),
            passed: checks.iter().all(|check| check.holds != Holds::No),
            checks,
            operations: operations.iter().map(|(name, of)| OfOperation::of(name, of)).collect(),
            timeline: steps.into_iter().enumerate().map(step).collect(),
            slow_subscribers: world.watchers.slow(),
            step_ms: ms_of(STEP),
            kills: kills.iter().map(|kill| Kill { at_ms: ms_of(kill.at), recovery_ms: ms_of(kill.recovery) }).collect(),
            recovery_ms: Percentiles::of(&recoveries),
            kept,
        }
    }
}
