//! `raddle simulate`: whole histories of a runtime, made up from seeds and checked.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use raddle_actors::simulation::{self, Outcome, Plan, Shrunk, shrink};
use serde_json::{Value, json};

use super::{Failure, progress::NEWS, say, say_json};

/// Simulations that it may take to tell a story shortly.
const BUDGET: u32 = 400;

/// Try this build out in worlds that seeds make up
///
/// The whole runtime runs on a virtual clock, in memory, while disks fail, processes die, models and tools misbehave and
/// clients ask everything there is to ask; everything that must hold is checked all along. A seed is always the same
/// history. One that breaks an invariant is shown by the shortest story that was found to break it too, and the exit
/// code is 1. Asks no server, and leaves nothing behind.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Which seeds: from the first up to, and without, the last; or so many from 0 on
    #[arg(long, value_name = "A..B", value_parser = range, default_value = "0..200", conflicts_with = "seed")]
    seeds: Range<u64>,
    /// One seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..u64::MAX))]
    seed: Option<u64>,
    /// Show what happens in it, whether it holds or not
    #[arg(long, requires = "seed")]
    story: bool,
    /// How many at once, 1 to 1024; as many as there are processors unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Put this fault in, to see that it is found
    #[cfg(feature = "planted")]
    #[arg(long, value_name = "FAULT")]
    plant: Option<raddle_domain::planted::Fault>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let bounds = text.split_once("..").unwrap_or(("0", text));
    let range: Option<Range<u64>> = bounds.0.parse().ok().zip(bounds.1.parse().ok()).map(|(from, to)| from..to);
    match range {
        None => Err("is to be like 0..200".to_owned()),
        Some(range) if range.is_empty() => Err("holds no seed: the first is not below the last".to_owned()),
        Some(range) => Ok(range),
    }
}

/// What came of all seeds so far.
struct Sum {
    began: Instant,
    told: Instant,
    seeds: u64,
    commits: u64,
    processes: u64,
    time: Duration,
    /// The first that broke something.
    broken: Option<(Plan, Outcome)>,
}

impl Simulate {
    pub fn run(self) -> Result<(), Failure> {
        if self.story {
            // The parser does not ask for it where --seeds rules it out.
            return match self.seed {
                Some(seed) => self.tell(seed),
                None => Err(Failure::Usage("--story is of one seed: give --seed N".to_owned())),
            };
        }
        let seeds = self.seed.map_or(self.seeds.clone(), |seed| seed..seed + 1);
        let threads = self.threads.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
        let now = Instant::now();
        let [commits, processes] = [0; 2];
        let sum =
            Mutex::new(Sum { began: now, told: now, seeds: 0, commits, processes, time: Duration::ZERO, broken: None });
        let plans = seeds.clone().map(|seed| self.plan(seed));
        simulation::each(plans, threads, |plan, outcome| {
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(plan, outcome, seeds.end - seeds.start)
        });
        let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        let shrunk = sum.broken.as_ref().and_then(|(plan, outcome)| {
            eprintln!("seed {} does not hold; looking for the shortest story", plan.seed);
            Some((plan.seed, shrink(plan, outcome.violation.as_ref()?, BUDGET)))
        });
        if self.json {
            say_json(&sum.json(shrunk.as_ref()))?;
        } else {
            match &shrunk {
                None => say(&format!("all hold: {}", sum.words()))?,
                Some((seed, shrunk)) => say(&story(*seed, shrunk))?,
            }
        }
        match shrunk {
            None => Ok(()),
            Some(_) => Err(Failure::Told),
        }
    }

    fn plan(&self, seed: u64) -> Plan {
        let plan = Plan::new(seed);
        #[cfg(feature = "planted")]
        let plan = plan.planted(self.plant);
        plan
    }

    fn tell(&self, seed: u64) -> Result<(), Failure> {
        let plan = self.plan(seed);
        let outcome = simulation::run(&plan, true);
        let holds = outcome.violation.is_none();
        if self.json {
            say_json(&one(&outcome))?;
        } else {
            let end = match &outcome.violation {
                None => format!("holds; its digest is {}", outcome.digest),
                Some(violation) => format!("breaks {violation}"),
            };
            say(&format!("seed {}\n{plan}\n{}\n\nseed {} {end}", plan.seed, outcome.lines.join("\n"), plan.seed))?;
        }
        if holds { Ok(()) } else { Err(Failure::Told) }
    }
}

impl Sum {
    /// Adds an outcome; whether to go on.
    fn add(&mut self, plan: Plan, outcome: Outcome, all: u64) -> bool {
        self.seeds += 1;
        self.commits += u64::from(outcome.commits);
        self.processes += u64::from(outcome.processes);
        self.time += outcome.time;
        if self.told.elapsed() > NEWS {
            self.told = Instant::now();
            eprintln!("{} of {all}: {}", self.seeds, self.words());
        }
        if outcome.violation.is_some() && self.broken.as_ref().is_none_or(|(known, _)| plan.seed < known.seed) {
            self.broken = Some((plan, outcome));
        }
        self.broken.is_none()
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn words(&self) -> String {
        let Self { seeds, commits, processes, time, .. } = self;
        let (days, seconds) = (time.as_secs_f64() / 86_400.0, self.seconds());
        let rate = *seeds as f64 / seconds.max(0.001);
        format!(
            "{seeds} seeds, {commits} commits of {processes} processes, {days:.1} virtual days in {seconds:.1} s ({rate:.0} seeds/s)"
        )
    }

    fn json(&self, shrunk: Option<&(u64, Shrunk)>) -> Value {
        let broken = shrunk.map(|(seed, shrunk)| {
            json!({
                "seed": seed,
                "invariant": shrunk.violation.invariant,
                "what": shrunk.violation.what,
                "plan": shrunk.plan.to_string().lines().map(str::trim).collect::<Vec<_>>(),
                "parts": shrunk.sizes.1,
                "parts_before": shrunk.sizes.0,
                "simulations": shrunk.runs,
                "story": shrunk.lines,
            })
        });
        json!({
            "seeds": self.seeds,
            "commits": self.commits,
            "processes": self.processes,
            "virtual_seconds": self.time.as_secs(),
            "seconds": self.seconds(),
            "broken": broken,
        })
    }
}

fn one(outcome: &Outcome) -> Value {
    let broken = outcome.violation.as_ref();
    json!({
        "seed": outcome.seed,
        "digest": outcome.digest,
        "commits": outcome.commits,
        "processes": outcome.processes,
        "virtual_seconds": outcome.time.as_secs(),
        "broken": broken.map(|violation| json!({ "invariant": violation.invariant, "what": violation.what })),
        "story": outcome.lines,
    })
}

fn story(seed: u64, shrunk: &Shrunk) -> String {
    let (before, after) = shrunk.sizes;
    format!(
        "seed {seed} breaks {}\n\nThe shortest story found, {after} of {before} parts, by {} simulations:\n{}\n{}",
        shrunk.violation,
        shrunk.runs,
        shrunk.plan,
        shrunk.lines.join("\n")
    )
}
