//! What a run was made on.

use std::{fs, process::Command};

/// Names and values, as far as they can be found out.
pub fn facts() -> Vec<(&'static str, String)> {
    let unknown = |fact: Option<String>| fact.unwrap_or_else(|| "unknown".to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    vec![
        ("processor", format!("{}, {cores} cores", unknown(line_of("/proc/cpuinfo", "model name")))),
        ("memory", unknown(line_of("/proc/meminfo", "MemTotal").as_deref().and_then(gibibytes))),
        ("file system of the data", unknown(file_system())),
        ("kernel", unknown(kernel())),
        ("compiler", unknown(output_of("rustc", &["--version"]))),
        ("commit", unknown(commit())),
    ]
}

fn line_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Its version, without what whoever built it calls it.
fn kernel() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let version = release.trim().split('-').next()?;
    Some(format!("Linux {version}"))
}

fn gibibytes(kibibytes: &str) -> Option<String> {
    let number: f64 = kibibytes.strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{:.0} GiB", number / 1024.0 / 1024.0))
}

/// Of where the benches put their data.
fn file_system() -> Option<String> {
    let dir = fs::canonicalize(std::env::temp_dir()).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let place = |line: &str| {
        let (mount, rest) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        dir.starts_with(point).then(|| (point.len(), rest.split(' ').next().unwrap_or_default().to_owned()))
    };
    // Of two on the same place the later one is seen.
    mounts.lines().filter_map(place).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

fn commit() -> Option<String> {
    let commit = output_of("git", &["rev-parse", "--short=12", "HEAD"])?;
    // The page and its plots are what a run changes.
    let changed = output_of(
        "git",
        &["status", "--porcelain", "--untracked-files=no", "--", ":!benches/RESULTS.md", ":!benches/plots"],
    )?;
    Some(if changed.is_empty() { commit } else { format!("{commit}, with changes") })
}

fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
