//! Seeds: whole histories of a runtime, made up and checked. `raddle simulate --seed N --story` tells the story of one.

use std::{env, sync::Mutex, thread};

use raddle_actors::simulation::{self, Outcome, Plan, shrink};

/// As many as a build has time for; `RADDLE_SEEDS=100000` takes longer.
const SEEDS: u64 = 2_000;
/// Simulations that it may take to tell a story shortly.
const BUDGET: u32 = 300;

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What a person needs to know of a seed that fails.
fn story(plan: &Plan, outcome: &Outcome) -> String {
    let Some(violation) = &outcome.violation else { return String::new() };
    let shrunk = shrink(plan, violation, BUDGET);
    format!("seed {} breaks {}\n{}\n{}", plan.seed, shrunk.violation, shrunk.plan, shrunk.lines.join("\n"))
}

#[test]
fn every_seed_holds() {
    let seeds = env::var("RADDLE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let broken = Mutex::new(None);
    simulation::each((0..seeds).map(Plan::new), threads(), |plan, outcome| {
        let holds = outcome.violation.is_none();
        if !holds {
            *broken.lock().unwrap() = Some((plan, outcome));
        }
        holds
    });
    if let Some((plan, outcome)) = broken.into_inner().unwrap() {
        panic!("{}", story(&plan, &outcome));
    }
}

#[test]
fn a_seed_is_one_history() {
    let first = Mutex::new(Vec::new());
    simulation::each((0..120).map(Plan::new), threads(), |_, outcome| {
        first.lock().unwrap().push((outcome.seed, outcome.digest, outcome.happened));
        true
    });
    for (seed, digest, happened) in first.into_inner().unwrap() {
        let again = simulation::simulate(seed);
        assert!(happened > 5, "nothing happens in seed {seed}");
        assert_eq!((again.digest, again.happened), (digest, happened), "seed {seed} is told in two ways");
    }
}

#[test]
fn another_seed_is_another_history() {
    assert_ne!(simulation::simulate(1).digest, simulation::simulate(2).digest);
}
