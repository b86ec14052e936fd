//! The blackboard of a run: what its agents know, decided, ask and made.

use clap::{Args, Subcommand};
use raddle_domain::run::{Entry, EntryKind};
use serde_json::{Value, json};

use super::brief;
use crate::{
    cli::{Failure, Remote, plain, say, say_json},
    client::{Blackboard, Client, PatchBoard},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Notes {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say a line in other words
    Edit(Edit),
    /// Say that a line is settled
    Resolve(Resolve),
    /// Set the text that sums up the run
    Summary(Summary),
}

#[derive(Debug, Args)]
struct List {
    #[arg(required = true)]
    run: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Edit {
    run: String,
    id: String,
    text: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Resolve {
    run: String,
    id: String,
    /// How: the answer to a question
    resolution: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Summary {
    run: String,
    text: String,
    /// The latest context pack instead
    #[arg(long)]
    pack: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Where a line comes from.
#[derive(Debug, Args)]
struct Origin {
    /// A name, new in the run
    #[arg(long)]
    id: Option<String>,
    /// The step that it belongs to
    #[arg(long, value_name = "ID")]
    step: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub struct Note {
    run: String,
    text: String,
    #[command(flatten)]
    origin: Origin,
}

#[derive(Debug, Args)]
pub struct Artifact {
    run: String,
    /// Where it is
    path: String,
    /// What sort of thing it is
    #[arg(long = "type", value_name = "WORD", default_value = "file")]
    artifact_type: String,
    /// What it is about
    #[arg(long)]
    text: Option<String>,
    #[command(flatten)]
    origin: Origin,
}

impl Notes {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            None => {
                let List { run, remote } = self.list;
                let board = remote.client()?.blackboard(&run.unwrap_or_default()).await?;
                if remote.json { say_json(&board) } else { shown(&board).iter().try_for_each(|line| say(line)) }
            }
            Some(Verb::Edit(Edit { run, id, text, remote })) => {
                let client = remote.client()?;
                let op = format!("edit_{}", kind(&client, &run, &id).await?.as_str());
                patch(&remote, &client, &run, &op, json!({ "id": id, "text": text })).await
            }
            Some(Verb::Resolve(Resolve { run, id, resolution, remote })) => {
                let client = remote.client()?;
                let op = format!("resolve_{}", kind(&client, &run, &id).await?.as_str());
                patch(&remote, &client, &run, &op, json!({ "id": id, "resolution": resolution })).await
            }
            Some(Verb::Summary(Summary { run, text, pack, remote })) => {
                let op = if pack { "set_latest_context_pack" } else { "set_rolling_summary" };
                patch(&remote, &remote.client()?, &run, op, json!({ "text": text })).await
            }
        }
    }
}

impl Note {
    pub async fn run(self, op: &str) -> Result<(), Failure> {
        let Self { run, text, origin: Origin { id, step, remote } } = self;
        patch(&remote, &remote.client()?, &run, op, json!({ "id": id, "text": text, "step_id": step })).await
    }
}

impl Artifact {
    pub async fn run(self) -> Result<(), Failure> {
        let Self { run, path, artifact_type, text, origin: Origin { id, step, remote } } = self;
        let text = text.unwrap_or_default();
        let payload = json!({ "id": id, "path": path, "artifact_type": artifact_type, "text": text, "step_id": step });
        patch(&remote, &remote.client()?, &run, "add_artifact", payload).await
    }
}

async fn patch(remote: &Remote, client: &Client, run: &str, op: &str, payload: Value) -> Result<(), Failure> {
    let entry = client.patch_blackboard(run, &PatchBoard { op, payload }).await?;
    match entry {
        entry if remote.json => say_json(&entry),
        Some(entry) => say(&line(&entry)),
        None => Ok(()),
    }
}

/// The kind of a line: its id is enough for a person to name it, and not for the server.
async fn kind(client: &Client, run: &str, id: &str) -> Result<EntryKind, Failure> {
    let board = client.blackboard(run).await?;
    let all = [&board.facts, &board.decisions, &board.open_questions, &board.artifacts];
    let found = all.into_iter().flatten().find(|entry| entry.id == id).map(|entry| entry.kind);
    match found {
        Some(EntryKind::Artifact) => Err(Failure::Refused("an artifact is neither edited nor resolved".to_owned())),
        Some(kind) => Ok(kind),
        None => Err(Failure::Refused("no such entry".to_owned())),
    }
}

/// A line of the blackboard in a list.
pub fn line(entry: &Entry) -> String {
    let settled = match (&entry.resolution, entry.resolved) {
        (Some(resolution), _) => format!("  (settled: {})", brief(resolution)),
        (None, true) => "  (settled)".to_owned(),
        (None, false) => String::new(),
    };
    format!("{:<13}  {}  {}{settled}", entry.kind.as_str(), brief(&entry.id), content(entry))
}

/// What a line of the blackboard says.
pub fn content(entry: &Entry) -> String {
    match (&entry.path, entry.text.is_empty()) {
        (Some(path), true) => brief(path),
        (Some(path), false) => format!("{}: {}", brief(path), brief(&entry.text)),
        (None, _) => brief(&entry.text),
    }
}

fn shown(board: &Blackboard) -> Vec<String> {
    let mut lines = Vec::new();
    let summaries = [("summary", &board.summaries.rolling), ("pack", &board.summaries.latest_context_pack)];
    lines.extend(summaries.iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| {
        // Whole: it was written to be read.
        format!("{name:<13}  {}", plain(text))
    }));
    let all = [&board.facts, &board.decisions, &board.open_questions, &board.artifacts];
    lines.extend(all.into_iter().flatten().map(line));
    lines
}
