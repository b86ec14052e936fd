//! What tools did for a run, and taking back what they did to files.

use std::{
    cell::RefCell,
    io::{IsTerminal, Write},
};

use clap::Args;
use raddle_domain::run::{LedgerSummary, Mutation, RollbackPreview, RollbackStep};
use serde_json::json;

use super::brief;
use crate::{
    cli::{Failure, Remote, collect, say, say_json, word},
    client::{Client, LedgerEvent, Page, RollbackEvent},
};

#[derive(Debug, Args)]
pub struct Ledger {
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub struct Mutations {
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
struct Listing {
    run: String,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub struct Rollback {
    run: String,
    /// Only these mutations, such as `evt_12`; all that can be taken back unless given
    #[arg(value_name = "EVENT", requires = "execute")]
    events: Vec<String>,
    /// Take them back
    #[arg(long)]
    execute: bool,
    /// Without asking
    #[arg(long, requires = "execute")]
    yes: bool,
    /// List what was taken back, and what was asked to be
    #[arg(long, conflicts_with = "execute")]
    history: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Ledger {
    pub async fn run(self) -> Result<(), Failure> {
        let Listing { run, limit, remote } = self.listing;
        let client = remote.client()?;
        let summary = RefCell::new(LedgerSummary::default());
        let entries = collect(limit as usize, Vec::new(), async |query| {
            let page = client.run_ledger(&run, &query).await?;
            *summary.borrow_mut() = page.summary;
            Ok(Page { data: page.data, next_cursor: page.next_cursor, unavailable: Vec::new() })
        });
        let (entries, summary) = (entries.await?, summary.into_inner());
        if remote.json {
            return say_json(&json!({ "data": entries, "summary": summary }));
        }
        entries.iter().try_for_each(|entry| say(&effect(entry)))?;
        say(&total(&summary))
    }
}

fn effect(entry: &LedgerEvent) -> String {
    let record = &entry.record;
    let task = record.task_id.as_deref().map(|task| format!("  {}", brief(task))).unwrap_or_default();
    let (phase, status) = (word(&record.phase), word(&record.status));
    format!("{:>6}  {}  {phase:<10}  {status:<9}  {}{task}", entry.seq, entry.ts, brief(&record.tool))
}

fn total(summary: &LedgerSummary) -> String {
    let by = summary.by_status.iter().map(|(status, count)| format!("{count} {}", word(status)));
    let by = by.collect::<Vec<_>>().join(", ");
    let by = if by.is_empty() { by } else { format!(": {by}") };
    format!("{} records{by}", summary.record_count)
}

impl Mutations {
    pub async fn run(self) -> Result<(), Failure> {
        let Listing { run, limit, remote } = self.listing;
        let client = remote.client()?;
        let all = collect(limit as usize, Vec::new(), async |query| client.run_mutations(&run, &query).await).await?;
        if remote.json { say_json(&all) } else { all.iter().try_for_each(|mutation| say(&change(mutation))) }
    }
}

fn change(mutation: &Mutation) -> String {
    let record = &mutation.record;
    let paths = brief(&record.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "));
    let back = mutation.rolled_back_seq.map(|seq| format!("  (taken back by event {seq})")).unwrap_or_default();
    format!("{}  {}  {}  {paths}{back}", brief(&mutation.event_id), mutation.ts, brief(&record.tool))
}

impl Rollback {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        if self.history {
            return history(&self.remote, &client, &self.run).await;
        }
        // What would have to be asked of somebody who is not there is not begun.
        if self.execute && !self.yes && !std::io::stdin().is_terminal() {
            return Err(Failure::Usage("nobody can be asked here: say `--yes`".to_owned()));
        }
        let preview = client.preview_rollback(&self.run).await?;
        if !self.execute {
            return if self.remote.json { say_json(&preview) } else { previewed(&preview) };
        }
        let steps = preview.steps.iter().filter(|step| step.executable).map(|step| &step.event_id);
        let events = if self.events.is_empty() { steps.cloned().collect() } else { self.events };
        if events.is_empty() {
            return Err(Failure::Failed("there is nothing to be taken back".to_owned()));
        }
        if !self.yes && !agreed(&preview, &events)? {
            return Err(Failure::Failed("nothing was taken back".to_owned()));
        }
        let mut all = Vec::new();
        for events in by_workspace(&preview, events) {
            let done = client.execute_rollback(&self.run, &events).await?;
            match (self.remote.json, done.applied) {
                (true, _) => {}
                (false, true) if done.files == 1 => say("1 file is what it was")?,
                (false, true) => say(&format!("{} files are what they were", done.files))?,
                (false, false) => say("files are still being put back; `--history` tells the end")?,
            }
            all.push(done);
        }
        if self.remote.json { say_json(&all) } else { Ok(()) }
    }
}

/// Threads have workspaces of their own, and what is taken back at once is in one: the newest first.
fn by_workspace(preview: &RollbackPreview, events: Vec<String>) -> Vec<Vec<String>> {
    let place = |event: &String| {
        let step = preview.steps.iter().find(|step| step.event_id == *event);
        step.map(|step| step.workspace.as_str())
    };
    let mut groups: Vec<(Option<&str>, Vec<String>)> = Vec::new();
    for event in events {
        let place = place(&event);
        match groups.iter_mut().find(|(known, _)| *known == place) {
            Some((_, group)) => group.push(event),
            None => groups.push((place, vec![event])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn previewed(preview: &RollbackPreview) -> Result<(), Failure> {
    for step in &preview.steps {
        shown(step).iter().try_for_each(|line| say(line))?;
    }
    say(&format!("{} of {} can be taken back", preview.executable_step_count, preview.step_count))
}

fn shown(step: &RollbackStep) -> Vec<String> {
    let note = if step.executable { "" } else { "  (not to be taken back)" };
    let mut lines = vec![format!("{}  {}  {}{note}", brief(&step.event_id), brief(&step.tool), brief(&step.workspace))];
    lines.extend(
        step.operations
            .iter()
            .map(|operation| format!("  {}  {}", word(&operation.action), brief(&operation.file.path))),
    );
    lines
}

/// Asks whoever sits at the terminal, who sees what he is asked about.
fn agreed(preview: &RollbackPreview, events: &[String]) -> Result<bool, Failure> {
    for step in preview.steps.iter().filter(|step| events.contains(&step.event_id)) {
        shown(step).iter().for_each(|line| eprintln!("{line}"));
    }
    let what = if events.len() == 1 { "this change" } else { "these changes" };
    eprint!("take back {what}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

async fn history(remote: &Remote, client: &Client, run: &str) -> Result<(), Failure> {
    let all = collect(usize::MAX, Vec::new(), async |query| client.rollbacks(run, &query).await).await?;
    if remote.json { say_json(&all) } else { all.iter().try_for_each(|event| say(&attempt(event))) }
}

fn attempt(event: &RollbackEvent) -> String {
    let selected = brief(&event.selected_event_ids.join(" "));
    let files = event.files.map(|files| format!("{files} files"));
    let why = event.reason.as_deref().map(brief).or(files).map(|more| format!("  {more}")).unwrap_or_default();
    format!("{:>6}  {}  {:<8}  {selected}{why}", event.seq, event.ts, brief(&event.outcome))
}
