//! `raddle stress`: how a server bears load, slow disks and its own death, and whether it kept its word.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::{
    Failure, plain,
    progress::{self, Step},
    say, write,
};
use crate::{
    sandbox,
    stress::{self, Holds, Outcome, Plan, Scenario, StressError, Target, World, outcome::OfOperation, report},
};

/// Puts a server under load, and holds what it said against what is found
///
/// The server is one of its own, on a directory of its own, unless one is given. Exit code 1 says that a check failed.
#[derive(Debug, Args)]
pub struct Stress {
    #[arg(value_enum)]
    scenario: Scenario,
    /// Threads (of `board`: runs) at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    threads: u32,
    /// Clients at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// How long: seconds, or with `ms`, `s`, `m` or `h` behind the number
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    duration: Duration,
    /// What is chosen by chance is chosen the same for the same seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kill the server with SIGKILL so many times, spread over the duration, and start it again [without a number: 5]
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "5", default_value_t = 0, hide_default_value = true)]
    kill: u32,
    /// Add this much to every sync of the disk
    #[arg(long, value_name = "MS", default_value_t = 0, hide_default_value = true,
        value_parser = clap::value_parser!(u64).range(..=60_000))]
    disk_latency: u64,
    /// Let this part of all writes and syncs fail, such as 0.001
    #[arg(long, value_name = "RATE", default_value = "0", hide_default_value = true, value_parser = rate)]
    disk_faults: u32,
    /// Watch with so many readers that are too slow
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(..=10_000))]
    slow_subscribers: u32,
    /// Put this server under load; what it is told stays on it
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The key to send to it; for `tenants` the operator's
    #[arg(long, env = "RADDLE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Write the outcome as JSON; `-` is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report that a browser shows
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Show nothing on the way, and no summary
    #[arg(long, short)]
    quiet: bool,
}

/// The exit code where no server answers, as of every command.
const UNREACHABLE: u8 = 4;
/// The exit code of what a signal ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// A number of milliseconds, seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("is no time such as 500ms, 30s or 5m".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "is no time such as 500ms, 30s or 5m".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|err| err.to_string())
}

/// A part of one, as so many of a million.
fn rate(text: &str) -> Result<u32, String> {
    let rate: f64 = text.parse().map_err(|_| "is no number".to_owned())?;
    match (0.0..=1.0).contains(&rate) {
        true => Ok((rate * 1e6).round() as u32),
        false => Err("is not between 0 and 1".to_owned()),
    }
}

impl Stress {
    /// Whether there are places for what comes of it, one for each: it would be late to find out afterwards.
    fn places(&self) -> Result<(), Failure> {
        let json = self.json.as_deref().filter(|path| *path != Path::new("-")).map(place).transpose()?;
        let report = self.report.as_deref().map(place).transpose()?;
        match json.is_some() && json == report {
            true => Err(Failure::Usage("--json and --report are the same file".to_owned())),
            false => Ok(()),
        }
    }

    pub async fn run(self) -> Result<(), Failure> {
        self.places()?;
        let target = match self.server {
            Some(url) => Target::Given { url, key: self.key },
            None => Target::Own { program: sandbox::this_program() },
        };
        let plan = Plan {
            scenario: self.scenario,
            target,
            threads: self.threads as usize,
            clients: self.clients as usize,
            duration: self.duration,
            seed: self.seed,
            kills: self.kill,
            disk_latency: Duration::from_millis(self.disk_latency),
            disk_faults: self.disk_faults,
            slow_subscribers: self.slow_subscribers as usize,
        };
        let length = plan.duration;
        let mut shows = None;
        let done = stress::run(plan, |world| {
            shows = (!self.quiet).then(|| tokio::spawn(progress::show(move || step(&world, length))));
        })
        .await;
        if let Some(shows) = shows {
            shows.abort();
            // Once the bar is gone.
            drop(shows.await);
        }
        let outcome = done.map_err(|err| match err {
            StressError::Plan(why) => Failure::Usage(why),
            StressError::Client(err) => err.into(),
            StressError::Interrupted => {
                eprintln!("raddle: {err}");
                Failure::Found(INTERRUPTED)
            }
            StressError::Failed(why) | StressError::Gone(why) => Failure::Failed(why),
        })?;
        let json = serde_json::to_string_pretty(&outcome).map_err(|err| Failure::Failed(err.to_string()))? + "\n";
        let to_stdout = self.json.as_deref() == Some(Path::new("-"));
        match self.json.as_deref() {
            Some(_) if to_stdout => write(json.as_bytes())?,
            Some(path) => put(path, &json)?,
            None => {}
        }
        if let Some(path) = &self.report {
            put(path, &report::html(&outcome))?;
        }
        if !self.quiet && !to_stdout {
            summary(&outcome)?;
        }
        for check in outcome.checks.iter().filter(|check| check.holds == Holds::No) {
            for fault in &check.faults {
                eprintln!("raddle: {}: {}", check.name, plain(fault));
            }
            if check.more > 0 {
                eprintln!("raddle: {}: and {} more", check.name, check.more);
            }
        }
        if let Some(kept) = &outcome.kept {
            let data = kept.join("data");
            eprintln!("the server's data is kept: look at it with `raddle serve --data-dir {}`", data.display());
        }
        match outcome.passed {
            true => Ok(()),
            false if outcome.is_unreachable() => Err(Failure::Found(UNREACHABLE)),
            false => Err(Failure::Told),
        }
    }
}

/// Where a file is going to be, without links, if one can be there.
fn place(path: &Path) -> Result<PathBuf, Failure> {
    let cannot = |why: &str| Failure::Usage(format!("cannot write {}: {why}", path.display()));
    if path.is_dir() {
        return Err(cannot("it is a directory"));
    }
    if let Ok(there) = path.canonicalize() {
        return Ok(there);
    }
    let name = path.file_name().ok_or_else(|| cannot("it has no name"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match dir.canonicalize() {
        Ok(dir) if dir.is_dir() => Ok(dir.join(name)),
        Ok(_) => Err(cannot("what it would be in is no directory")),
        Err(err) => Err(cannot(&err.to_string())),
    }
}

fn put(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|err| Failure::Failed(format!("cannot write {}: {err}", path.display())))
}

/// How it goes.
fn step(world: &World, length: Duration) -> Step {
    let glance = world.tally.glance();
    let elapsed = glance.elapsed.min(length);
    let kills = if glance.kills > 0 { format!(" · {} kills", glance.kills) } else { String::new() };
    let phase = if world.stop.is_cancelled() { " · checking" } else { "" };
    let problems = glance.problems.iter().take(4).map(|(code, count)| format!(" · {code} {count}"));
    let problems: String = problems.collect();
    let (seconds, done, rate) = (elapsed.as_secs(), glance.done, glance.per_second);
    Step {
        at: elapsed.as_millis() as u64,
        of: length.as_millis() as u64,
        says: format!("{seconds:>3}s · {done} done · {rate}/s{kills}{phase}{problems}"),
    }
}

/// What came of it, for whoever reads along.
fn summary(outcome: &Outcome) -> Result<(), Failure> {
    say(&format!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>9}  not done",
        "operation", "done", "p50 ms", "p99 ms", "p99.9 ms", "max ms"
    ))?;
    for of in &outcome.operations {
        say(&row(of))?;
    }
    if let Some(recovery) = &outcome.recovery_ms {
        let kills = outcome.kills.len();
        say(&format!("{kills} kills, recovery p50 {:.0} ms, p99 {:.0} ms", recovery.p50, recovery.p99))?;
    }
    if outcome.plan.slow_subscribers > 0 {
        say(&format!("{} slow subscribers, of {} asked for", outcome.slow_subscribers, outcome.plan.slow_subscribers))?;
    }
    for check in &outcome.checks {
        let word = match check.holds {
            Holds::Yes => "ok",
            Holds::No => "FAIL",
            Holds::Undecided => "?",
        };
        say(&format!("{word:<5} {:<14} {} {}: {}", check.name, check.examined, check.of, check.says))?;
    }
    Ok(())
}

fn row(of: &OfOperation) -> String {
    let done = of.outcomes.get("ok").copied().unwrap_or(0);
    let others = of.outcomes.iter().filter(|(outcome, _)| *outcome != "ok");
    let others: Vec<_> = others.map(|(outcome, count)| format!("{outcome} {count}")).collect();
    let figures = of.latency_ms.map_or([f64::NAN; 4], |of| [of.p50, of.p99, of.p999, of.max]);
    let figures = figures.map(|ms| if ms.is_nan() { format!("{:>9}", "–") } else { format!("{ms:>9.1}") });
    format!("{:<14} {done:>9} {}  {}", of.name, figures.join(" "), others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_read_as_people_write_them() {
        let read = |text: &str| duration(text).map(|time| time.as_millis());
        assert_eq!(
            (read("500ms"), read("10"), read("1.5m"), read("2h")),
            (Ok(500), Ok(10_000), Ok(90_000), Ok(7_200_000))
        );
        for none in ["", "soon", "10 parsecs", "-1s", "1e400h"] {
            assert!(duration(none).is_err(), "{none}");
        }
        assert_eq!((rate("0.001"), rate("1"), rate("0")), (Ok(1_000), Ok(1_000_000), Ok(0)));
        assert!(rate("1.1").is_err() && rate("often").is_err());
    }
}
