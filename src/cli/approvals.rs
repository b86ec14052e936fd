//! `raddle approvals`: list, show, decide.

use clap::{Args, Subcommand};
use raddle_domain::record::{Approval, Decision, summarize};

use super::{Failure, Remote, Which, collect, plain, say, say_json, word};

/// What to do with approvals.
#[derive(Debug, Args)]
pub struct Approvals {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List approvals, oldest first; those that are pending unless told otherwise
    Ls {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show an approval
    Show {
        approval: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let the call pass
    Approve {
        approval: String,
        /// And calls like it on the same thread
        #[arg(long, conflicts_with = "always")]
        session: bool,
        /// And calls like it from now on
        #[arg(long)]
        always: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Refuse the call; the model is told, and goes on
    Deny {
        approval: String,
        /// What to tell the model
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Refuse the call and end its turn
    Abort {
        approval: String,
        /// For the record
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Approvals {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Ls { which, remote } => {
                let client = remote.client()?;
                let (limit, filter) = which.asks_for("pending");
                let approvals = collect(limit, filter, async |query| client.approvals(&query).await).await?;
                if remote.json {
                    return say_json(&approvals);
                }
                approvals.iter().try_for_each(|approval| {
                    let (status, at) = (word(&approval.status), approval.requested_at);
                    say(&format!("{}  {status:<9}  {at}  {}", approval.id, call(approval)))
                })
            }
            Verb::Show { approval, remote } => {
                let approval = remote.client()?.approval(&approval).await?;
                if remote.json { say_json(&approval) } else { show(&approval) }
            }
            Verb::Approve { approval, session, always, remote } => {
                let decision = match (session, always) {
                    (true, _) => Decision::ApprovedForSession,
                    (_, true) => Decision::ApprovedAlways,
                    (false, false) => Decision::Approved,
                };
                decide(&remote, &approval, decision, None).await
            }
            Verb::Deny { approval, reason, remote } => {
                decide(&remote, &approval, Decision::Denied, reason.as_deref()).await
            }
            Verb::Abort { approval, reason, remote } => {
                decide(&remote, &approval, Decision::Abort, reason.as_deref()).await
            }
        }
    }
}

async fn decide(remote: &Remote, approval: &str, decision: Decision, reason: Option<&str>) -> Result<(), Failure> {
    let decided = remote.client()?.decide(approval, decision, reason).await?;
    if remote.json { say_json(&decided) } else { say(&format!("{}  {}", decided.id, word(&decided.status))) }
}

/// What is to be done, in a line.
pub(super) fn call(approval: &Approval) -> String {
    let arguments = approval.arguments.to_string();
    summarize(&plain(&format!("{} {}", approval.tool, approval.command.as_deref().unwrap_or(&arguments))))
}

/// Everything that somebody who decides should have seen.
fn show(approval: &Approval) -> Result<(), Failure> {
    let mut lines = vec![
        format!("{}  {}", approval.id, word(&approval.status)),
        format!("thread {}, turn {}", approval.thread_id, approval.turn_id),
        format!("tool {} ({}), because {}", approval.tool, word(&approval.effect_class), approval.reason),
    ];
    lines.extend(approval.command.as_ref().map(|command| format!("command {command}")));
    lines.extend(approval.cwd.as_ref().map(|cwd| format!("in {cwd}")));
    lines.push(format!("arguments {}", approval.arguments));
    lines.push(format!("sha256 {}", approval.arguments_sha256));
    lines.extend(approval.matched_rule.as_ref().map(|rule| format!("rule {rule}")));
    let words: Vec<_> = approval.available_decisions.iter().map(word).collect();
    lines.push(format!("may be {}", words.join(", ")));
    lines.push(format!("asked {}, expires {}", approval.requested_at, approval.expires_at));
    if let Some(at) = approval.decided_at {
        let decision = approval.decision.as_ref().map_or_else(|| word(&approval.status), word);
        let why = approval.decision_reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        lines.push(format!("{decision} at {at}{why}"));
    }
    lines.iter().try_for_each(|line| say(&plain(line)))
}
