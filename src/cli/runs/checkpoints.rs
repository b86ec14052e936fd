//! Checkpoints of a run.

use clap::{Args, Subcommand};
use raddle_domain::run::Checkpoint;
use serde_json::json;

use super::{brief, made};
use crate::cli::{Failure, Remote, say, say_json};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Checkpoints {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Keep a copy of the run as it is
    Save(Save),
    /// Make a run that begins as this one was
    Restore(One),
    /// Delete a checkpoint
    #[command(alias = "rm")]
    Delete(One),
}

#[derive(Debug, Args)]
struct List {
    #[arg(required = true)]
    run: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Save {
    run: String,
    /// What it is for
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct One {
    run: String,
    checkpoint: String,
    #[command(flatten)]
    remote: Remote,
}

impl Checkpoints {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            None => {
                let List { run, remote } = self.list;
                let saved = remote.client()?.run_checkpoints(&run.unwrap_or_default()).await?.data;
                if remote.json { say_json(&saved) } else { saved.iter().try_for_each(|saved| say(&line(saved))) }
            }
            Some(Verb::Save(Save { run, reason, remote })) => {
                let saved = remote.client()?.save_run_checkpoint(&run, reason.as_deref()).await?;
                if remote.json { say_json(&saved) } else { say(&saved.id.to_string()) }
            }
            Some(Verb::Restore(One { run, checkpoint, remote })) => {
                made(&remote, &remote.client()?.restore_run(&run, &checkpoint).await?)
            }
            Some(Verb::Delete(One { run, checkpoint, remote })) => {
                remote.client()?.delete_run_checkpoint(&run, &checkpoint).await?;
                if remote.json { say_json(&json!({ "deleted": checkpoint })) } else { Ok(()) }
            }
        }
    }
}

fn line(saved: &Checkpoint) -> String {
    let reason = saved.reason.as_deref().map(brief).unwrap_or_default();
    format!("{}  event {}  {}  {reason}", saved.id, saved.seq, saved.created_at).trim_end().to_owned()
}
