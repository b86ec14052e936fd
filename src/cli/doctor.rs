//! `raddle doctor`: is a server well, and if not, which part of it.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::{Failure, Remote, plain, say, say_json};
use crate::client::{Client, ClientError};

/// Less free space than this is trouble soon.
const ENOUGH_BYTES: u64 = 256 * 1024 * 1024;

/// Checks, one line each; exit code 1 when one fails, 4 when nobody is there.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Check the disk of this data directory too
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Only ask whether it takes work, and say nothing if it does: for health checks
    #[arg(long, conflicts_with = "data_dir")]
    ready: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
}

impl Doctor {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        if self.ready {
            return Ok(client.ready().await?);
        }
        let (mut checks, silent) = match server(&client).await {
            Ok(checks) => (checks, None),
            Err((checks, silence)) => (checks, Some(silence)),
        };
        checks.extend(self.data_dir.as_ref().map(disk));
        if self.remote.json {
            say_json(&checks)?;
        } else {
            for check in &checks {
                say(&format!(
                    "{:<5} {:<10} {}",
                    if check.ok { "ok" } else { "FAIL" },
                    check.name,
                    plain(&check.detail)
                ))?;
            }
        }
        match silent {
            Some(silence) => Err(silence.into()),
            None if checks.iter().all(|check| check.ok) => Ok(()),
            None => Err(Failure::Told),
        }
    }
}

/// The checks; with the error if nobody is there to be asked.
async fn server(client: &Client) -> Result<Vec<Check>, (Vec<Check>, ClientError)> {
    let check = |name, ok, detail: String| Check { name, ok, detail };
    let info = match client.info().await {
        Ok(info) => info,
        Err(err @ ClientError::Unreachable { .. }) => {
            return Err((vec![check("reachable", false, err.to_string())], err));
        }
        Err(err) => {
            let there = check("reachable", true, client.server().to_string());
            return Ok(vec![there, check("version", false, err.to_string())]);
        }
    };
    let ours = env!("CARGO_PKG_VERSION");
    let theirs = info["version"].as_str().unwrap_or("unknown");
    let version = match theirs == ours {
        true => check("version", true, theirs.to_owned()),
        false => check("version", false, format!("the server is {theirs}, this command is {ours}")),
    };
    let ready = match client.ready().await {
        Ok(()) => check("ready", true, "takes work".to_owned()),
        Err(err) => check("ready", false, err.to_string()),
    };
    let model = match (info["default_model"]["engine"].as_str(), info["default_model"]["model"].as_str()) {
        // Not a fault: it is what a server without a provider does.
        (Some("scripted"), _) => check("model", true, "`scripted` answers by default: see model.default".to_owned()),
        (Some(engine), Some(model)) => check("model", true, format!("{engine}/{model}")),
        _ => check("model", false, "no default model: set model.default".to_owned()),
    };
    let mut checks = vec![check("reachable", true, client.server().to_string()), version, ready, model];
    checks.extend(sandbox(&info["sandbox"]));
    Ok(checks)
}

/// What holds for commands. That there is no sandbox is a fault only where one was wanted.
fn sandbox(info: &Value) -> Vec<Check> {
    let texts = |of: &Value| -> Vec<String> {
        of.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    };
    let notes = texts(&info["notes"]).join("; ");
    let check = |ok, detail| Check { name: "sandbox", ok, detail };
    match (info["available"].as_bool(), info["kind"].as_str()) {
        (None, _) | (_, None) => Vec::new(),
        (Some(false), _) => {
            let off = notes == "`sandbox.kind` is `off`";
            vec![check(off, format!("no commands are run: {notes}"))]
        }
        (Some(true), Some("none")) => vec![check(false, notes)],
        (Some(true), Some(kind)) => {
            let yes = |key: &str, word: &str, not: &str| match info[key].as_bool() {
                Some(true) => word.to_owned(),
                _ => not.to_owned(),
            };
            let mut detail = vec![
                format!("{kind}, up to {}", info["mode"].as_str().unwrap_or("?")),
                format!("landlock {}", info["landlock"]),
                yes("seccomp", "seccomp", "NO seccomp"),
                yes("own_processes", "processes of its own", "SEES other processes"),
                yes("protects", "protected names", "NOTHING in a workspace is protected"),
                yes("network", "WITH a network", "no network"),
            ];
            if !notes.is_empty() {
                detail.push(format!("not used: {notes}"));
            }
            let tried = info["tried"].as_array().into_iter().flatten();
            let attempts = tried.map(|tried| {
                let text = |key: &str| tried[key].as_str().unwrap_or("?");
                let ok = tried["ok"].as_bool().unwrap_or(false);
                Check { name: "  tried", ok, detail: format!("{}: {}", text("what"), text("found")) }
            });
            [check(true, detail.join(", "))].into_iter().chain(attempts).collect()
        }
    }
}

fn disk(dir: &PathBuf) -> Check {
    let (ok, detail) = match rustix::fs::statvfs(dir) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            (free >= ENOUGH_BYTES, format!("{} MiB free at {}", free / (1024 * 1024), dir.display()))
        }
        Err(err) => (false, format!("cannot look at {}: {err}", dir.display())),
    };
    Check { name: "disk", ok, detail }
}
