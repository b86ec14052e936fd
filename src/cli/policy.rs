//! `raddle policy`: what would be decided about a command, by a server's rules or by a file's, and what the rules are.
//!
//! `check` answers with its exit code too: 0 allowed, 5 asked, 6 denied.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use raddle_domain::policy::{
    Action, Layer, Policy,
    decide::{Decided, Layers, Step},
};

use super::{Failure, Remote, plain, say, say_json, word};
use crate::{policy, tools};

/// What `check` found, for scripts.
const ASKED: u8 = 5;
const DENIED: u8 = 6;

#[derive(Debug, Args)]
pub struct PolicyCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what would be decided about a command, and why; exits with 0 if it is allowed, 5 if asked, 6 if denied
    Check {
        command: String,
        /// The tool that would run it
        #[arg(long, value_name = "NAME", default_value = "exec_shell")]
        tool: String,
        /// By this file of an installation, without a server
        #[arg(long, value_name = "FILE", conflicts_with = "thread")]
        file: Option<PathBuf>,
        /// With the rules of this thread
        #[arg(long, value_name = "ID")]
        thread: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show the tenant's own rules
    Show {
        #[command(flatten)]
        remote: Remote,
    },
    /// List the calls that were approved for ever, or take one such approval back
    Permits {
        #[command(subcommand)]
        verb: Option<Permits>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Hold the rules of a file against their examples
    Test { file: PathBuf },
}

#[derive(Debug, Subcommand)]
enum Permits {
    /// Take an approval back
    Rm {
        rule: String,
        #[command(flatten)]
        remote: Remote,
    },
}

impl PolicyCommand {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Check { command, tool, file, thread, remote } => {
                let decided = match file {
                    Some(file) => by_file(&read(&file)?, &tool, &command),
                    None => remote.client()?.check_command(&command, Some(&tool), thread.as_deref()).await?,
                };
                if remote.json {
                    say_json(&decided)?;
                } else {
                    shown(&decided).iter().try_for_each(|line| say(&plain(line)))?;
                }
                match decided.action {
                    Action::Allow => Ok(()),
                    Action::Ask => Err(Failure::Found(ASKED)),
                    Action::Deny => Err(Failure::Found(DENIED)),
                }
            }
            Verb::Show { remote } => {
                let policy = remote.client()?.policy().await?;
                if remote.json { say_json(&policy) } else { show(&policy) }
            }
            Verb::Permits { verb: Some(Permits::Rm { rule, remote }), .. } => {
                Ok(remote.client()?.revoke(&rule).await?)
            }
            Verb::Permits { verb: None, remote } => {
                let permits = remote.client()?.permits().await?;
                if remote.json {
                    return say_json(&permits);
                }
                permits.iter().try_for_each(|named| {
                    let permit = &named.permit;
                    let prefix = permit.command_prefix.as_ref().map(|words| format!("{} …", words.join(" ")));
                    let host = permit.host.as_ref().map(|host| format!("at {host}"));
                    let digest = permit.arguments_sha256.as_ref().map(|digest| format!("exactly {digest}"));
                    let what = prefix.or(host).or(digest).unwrap_or_default();
                    say(&plain(&format!("{}  {}  {what}", named.rule, permit.tool)))
                })
            }
            Verb::Test { file } => {
                let policy = read(&file)?;
                let examples = policy.rules.iter().map(|rule| rule.matches.len() + rule.not_match.len()).sum::<usize>();
                say(&format!("{} rules keep to {examples} examples", policy.rules.len()))
            }
        }
    }
}

fn read(path: &Path) -> Result<Policy, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::Failed(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|why| failed(&why))?;
    policy::file::parse(&text).map_err(|why| failed(&why))
}

/// As a server with this file would decide, on a thread and for a tenant without rules.
fn by_file(installation: &Policy, tool: &str, line: &str) -> Decided {
    let policies = vec![(Layer::BuiltIn, policy::built_in()), (Layer::Installation, installation)];
    tools::command(tool, line, &Layers { policies, permits: &[] })
}

/// The decision first, then what the rules say of each part.
fn shown(decided: &Decided) -> Vec<String> {
    let by = |rule: &Option<String>, layer: &Option<Layer>| match (rule, layer) {
        (Some(rule), Some(layer)) => format!(" by `{rule}` ({})", layer.as_str()),
        _ => String::new(),
    };
    let mut lines = vec![format!(
        "{}{}: {}{}",
        word(&decided.action),
        by(&decided.rule, &decided.layer),
        decided.reason,
        if decided.in_person { "; a person has to agree, whatever was approved before" } else { "" },
    )];
    lines.extend(decided.steps.iter().map(|step: &Step| {
        let says = step.action.as_ref().map_or_else(|| "no rule speaks".to_owned(), word);
        let note = step.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        format!("  {}: {says}{}{note}", step.part, by(&step.rule, &step.layer))
    }));
    lines
}

/// A line for the modes, and one for each rule.
fn show(policy: &Policy) -> Result<(), Failure> {
    let mode = |name: &str, word: String| if word.is_empty() { String::new() } else { format!("{name} = {word}  ") };
    let modes = mode("ask", policy.ask.as_ref().map(word).unwrap_or_default())
        + &mode("sandbox", policy.sandbox.as_ref().map(word).unwrap_or_default());
    if !modes.is_empty() {
        say(modes.trim_end())?;
    }
    policy.rules.iter().try_for_each(|rule| {
        let json = serde_json::to_string(rule).map_err(|err| Failure::Failed(err.to_string()))?;
        say(&plain(&format!("{:<5}  {json}", word(&rule.action))))
    })
}
