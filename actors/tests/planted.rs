//! Faults that are put into the runtime on purpose, each of which simulation has to find.
//!
//! `RADDLE_WRITE=1 cargo test -p raddle-actors --features planted --test planted` writes `planted.md` anew.

use std::{collections::BTreeMap, env, fs, path::PathBuf, sync::Mutex, thread};

use raddle_actors::simulation::{self, Plan, shrink};
use raddle_domain::planted::Fault;

/// Within so many seeds each has to be found.
const SEEDS: u64 = 2_000;
/// Simulations that it may take to tell a story shortly.
const BUDGET: u32 = 600;

/// How a fault was found.
struct Found {
    seed: u64,
    invariant: &'static str,
    /// Parts of the plan: all, and those of the shortest story.
    parts: (usize, usize),
    story: String,
}

fn find(fault: Fault) -> Found {
    let broken = Mutex::new(BTreeMap::new());
    let plans = (0..SEEDS).map(|seed| Plan::new(seed).planted(Some(fault)));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    simulation::each(plans, threads, |plan, outcome| {
        let holds = outcome.violation.is_none();
        if let Some(violation) = outcome.violation {
            broken.lock().unwrap().insert(plan.seed, (plan, violation));
        }
        holds
    });
    let first = broken.into_inner().unwrap().pop_first();
    let (seed, (plan, violation)) = first.unwrap_or_else(|| panic!("{fault} is not found in {SEEDS} seeds"));
    let shrunk = shrink(&plan, &violation, BUDGET);
    assert_eq!(shrunk.violation.invariant, violation.invariant, "the shortest story is another one");
    let held = simulation::run(&shrunk.plan.clone().planted(None), false);
    assert_eq!(held.violation, None, "without {fault} the same story breaks something too");
    let story = format!("{}: {}\n{}", fault, shrunk.violation, shrunk.plan);
    Found { seed, invariant: violation.invariant, parts: shrunk.sizes, story }
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/planted.md")
}

#[test]
fn every_planted_fault_is_found_and_told_shortly() {
    let mut table = String::from(
        "# Planted faults\n\n\
         What simulation finds when the runtime is wrong on purpose (`domain/src/planted.rs` says what each fault is).\n\
         The parts of a story are what clients do and what goes wrong in it. Written by\n\
         `RADDLE_WRITE=1 cargo test -p raddle-actors --features planted --test planted`.\n\n\
         | fault | first seed that finds it | what it breaks | parts of its plan | parts of the shortest story |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    let mut stories = String::new();
    for fault in Fault::ALL {
        let Found { seed, invariant, parts: (before, after), story } = find(fault);
        assert!(after <= 10, "{story}");
        table.push_str(&format!("| `{fault}` | {seed} | {invariant} | {before} | {after} |\n"));
        stories.push_str(&format!("\n```text\n{}\n```\n", story.trim_end()));
    }
    table.push_str("\nThe shortest stories:\n");
    table.push_str(&stories);
    if env::var_os("RADDLE_WRITE").is_some() {
        fs::write(file(), &table).unwrap();
    }
    // Seeds change with whatever changes the order of things; which fault breaks what does not.
    let written = fs::read_to_string(file()).unwrap();
    let rows = |text: &str| -> Vec<(String, String)> {
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.split(" | ").map(str::to_owned).collect::<Vec<_>>())
            .map(|cells| (cells[0].clone(), cells[2].clone()))
            .collect()
    };
    assert_eq!(rows(&table), rows(&written), "{table}");
}
