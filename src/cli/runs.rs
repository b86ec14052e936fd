//! `raddle runs`: boards that many agents share.
//!
//! This file has the run itself; below it are `tasks`, `notes` (the blackboard), `plan`, `checkpoints`, `history`
//! (replay, export, import), `ledger` (and taking back), `watch` and `board`. Where a noun has verbs of its own, the noun
//! and a run list: `runs tasks RUN`, `runs tasks add RUN`.

mod board;
mod checkpoints;
mod history;
mod ledger;
mod notes;
mod plan;
mod tasks;
mod watch;

use std::io::Read;

use clap::{Args, Subcommand};
use raddle_domain::{
    record::summarize,
    run::{Run, RunStep, StepStatus},
};
use serde_json::{Value, json};

use super::{Failure, Remote, collect, plain, say, say_json};
use crate::client::{NewRun, NewRunWorkspace, RunAndTasks, TellRun};

/// What to do with runs.
#[derive(Debug, Args)]
pub struct Runs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a run
    Create(Create),
    /// List runs, oldest first
    #[command(alias = "ls")]
    List(List),
    /// Show a run with its plan and its tasks
    Show(One),
    /// Show a run in the terminal as it changes
    Board(board::Live),
    /// Print a run's events, and go on as they happen
    Watch(watch::Watch),
    /// Put on record what happened, and do what follows from it
    Tell(Tell),
    /// Hand out no tasks until the run is resumed
    Pause(One),
    /// Go on with a run that was paused
    Resume(One),
    /// End a run
    Cancel(One),
    /// Approve the plan
    Approve(One),
    /// Go on with a run that has ended
    Reopen(One),
    /// Make a todo list the plan
    Todos(plan::Todos),
    /// Say what comes next, and begin it
    Next(plan::Next),
    /// List the tasks of a run; add some, show one
    Tasks(Box<tasks::Tasks>),
    /// Claim the task that is next; fails when there is none
    Claim(tasks::Claim),
    /// Keep a task for another while
    Heartbeat(tasks::Heartbeat),
    /// Say that a task is done
    Complete(tasks::Complete),
    /// Say that a task failed; it comes back by itself as long as it has attempts left
    Fail(tasks::Fail),
    /// Say that a task cannot go on for now
    Block(tasks::Block),
    /// Give a task back, undone
    Release(tasks::Release),
    /// Make a task claimable that failed, is blocked or was cancelled
    Retry(tasks::Retry),
    /// Call a task off, whoever holds it
    CancelTask(tasks::CancelTask),
    /// List what agents of a run know; edit or resolve a line, set a summary
    Notes(notes::Notes),
    /// Note a fact
    Fact(notes::Note),
    /// Note a decision
    Decision(notes::Note),
    /// Note a question that is open
    Question(notes::Note),
    /// Note something that was made
    Artifact(notes::Artifact),
    /// List the checkpoints of a run; save, restore or delete one
    Checkpoints(checkpoints::Checkpoints),
    /// Make a run of its log alone, and compare; fails when something differs
    Replay(history::Replay),
    /// Write the log of a run as lines
    Export(history::Export),
    /// Make a run of the lines of another
    Import(history::Import),
    /// List what tools did for a run
    Ledger(ledger::Ledger),
    /// List what tools did to files for a run
    Mutations(ledger::Mutations),
    /// Show what could be taken back of it, and with `--execute` take it back
    Rollback(ledger::Rollback),
    /// Delete a run and everything in it
    #[command(alias = "rm")]
    Delete(One),
}

#[derive(Debug, Args)]
struct One {
    run: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Create {
    /// What is to be done. When planning starts, its lines become the plan, unless steps are given
    objective: String,
    /// What sort of run it is
    #[arg(long = "type", value_name = "WORD")]
    run_type: Option<String>,
    /// A step of the plan, as often as there are steps
    #[arg(long = "step", value_name = "TITLE")]
    steps: Vec<String>,
    /// Where its agents work
    #[arg(long, value_name = "PATH")]
    workspace: Option<String>,
    #[arg(long, value_name = "ID", help = "What that workspace is called")]
    workspace_id: Option<String>,
    /// Who makes it
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    #[arg(long, value_name = "NAME", help = "Whose model its agents use")]
    provider: Option<String>,
    #[arg(long, value_name = "M", help = "Which model its agents use")]
    model: Option<String>,
    /// An MCP server that its agents use, as often as there are such
    #[arg(long = "mcp", value_name = "NAME")]
    mcp_servers: Vec<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct List {
    /// Only those with this status
    #[arg(long)]
    status: Option<String>,
    /// Only those of this sort
    #[arg(long = "type", value_name = "WORD")]
    run_type: Option<String>,
    /// Only those that this one made
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only those whose agents work here
    #[arg(long, value_name = "PATH")]
    workspace: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Tell {
    run: String,
    /// Its name, such as `planning_started` or `step_completed`
    event: String,
    /// What the run is to be after it
    #[arg(long)]
    status: Option<String>,
    /// Which step it is about
    #[arg(long, value_name = "ID")]
    step: Option<String>,
    /// More about it
    #[arg(long, value_name = "JSON")]
    payload: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

impl Runs {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Create(create) => create.run().await,
            Verb::List(list) => list.run().await,
            Verb::Show(One { run, remote }) => {
                let whole = remote.client()?.run(&run).await?;
                if remote.json { say_json(&whole) } else { shown(&whole).iter().try_for_each(|line| say(line)) }
            }
            Verb::Board(board) => board.run().await,
            Verb::Watch(watch) => watch.run().await,
            Verb::Tell(tell) => tell.run().await,
            Verb::Pause(one) => one.tell("run_paused").await,
            Verb::Resume(one) => one.tell("run_resumed").await,
            Verb::Cancel(one) => one.tell("run_cancelled").await,
            Verb::Approve(one) => one.tell("plan_approved").await,
            Verb::Reopen(one) => one.tell("run_reopened").await,
            Verb::Todos(todos) => todos.run().await,
            Verb::Next(next) => next.run().await,
            Verb::Tasks(tasks) => tasks.run().await,
            Verb::Claim(claim) => claim.run().await,
            Verb::Heartbeat(heartbeat) => heartbeat.run().await,
            Verb::Complete(complete) => complete.run().await,
            Verb::Fail(fail) => fail.run().await,
            Verb::Block(block) => block.run().await,
            Verb::Release(release) => release.run().await,
            Verb::Retry(retry) => retry.run().await,
            Verb::CancelTask(cancel) => cancel.run().await,
            Verb::Notes(notes) => notes.run().await,
            Verb::Fact(note) => note.run("add_fact").await,
            Verb::Decision(note) => note.run("add_decision").await,
            Verb::Question(note) => note.run("add_open_question").await,
            Verb::Artifact(artifact) => artifact.run().await,
            Verb::Checkpoints(checkpoints) => checkpoints.run().await,
            Verb::Replay(replay) => replay.run().await,
            Verb::Export(export) => export.run().await,
            Verb::Import(import) => import.run().await,
            Verb::Ledger(ledger) => ledger.run().await,
            Verb::Mutations(mutations) => mutations.run().await,
            Verb::Rollback(rollback) => rollback.run().await,
            Verb::Delete(One { run, remote }) => {
                remote.client()?.delete_run(&run).await?;
                if remote.json { say_json(&json!({ "deleted": run })) } else { Ok(()) }
            }
        }
    }
}

impl One {
    /// Says that something happened which has a verb of its own.
    async fn tell(self, event: &str) -> Result<(), Failure> {
        let Self { run, remote } = self;
        told(&remote, &run, &TellRun { event, ..TellRun::default() }).await
    }
}

impl Create {
    async fn run(self) -> Result<(), Failure> {
        let step = |(at, title): (usize, &String)| RunStep {
            step_id: format!("step-{}", at + 1),
            title: title.clone(),
            status: StepStatus::Pending,
        };
        let workspace =
            NewRunWorkspace { workspace_id: self.workspace_id.as_deref(), canonical_path: self.workspace.as_deref() };
        let new = NewRun {
            objective: &self.objective,
            run_type: self.run_type.as_deref(),
            workspace: (self.workspace.is_some() || self.workspace_id.is_some()).then_some(workspace),
            source_client: self.source.as_deref(),
            model_provider: self.provider.as_deref(),
            model_id: self.model.as_deref(),
            mcp_servers: &self.mcp_servers,
            steps: self.steps.iter().enumerate().map(step).collect(),
        };
        made(&self.remote, &self.remote.client()?.create_run(&new).await?)
    }
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        let Self { status, run_type, source, workspace, limit, remote } = self;
        let named = [("status", status), ("run_type", run_type), ("source", source), ("workspace", workspace)];
        let filter = named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let client = remote.client()?;
        let runs = collect(limit as usize, filter, async |query| client.runs(&query).await).await?;
        if remote.json { say_json(&runs) } else { runs.iter().try_for_each(|run| say(&line(run))) }
    }
}

impl Tell {
    async fn run(self) -> Result<(), Failure> {
        let status = self.status.map(|word| {
            serde_json::from_value(Value::String(word.clone()))
                .map_err(|_| Failure::Usage(format!("`{}` is not a status of a run", plain(&word))))
        });
        let tell = TellRun {
            event: &self.event,
            status: status.transpose()?,
            step_id: self.step.as_deref(),
            payload: self.payload.as_deref().map(|text| parsed("--payload", text)).transpose()?,
        };
        told(&self.remote, &self.run, &tell).await
    }
}

async fn told(remote: &Remote, run: &str, tell: &TellRun<'_>) -> Result<(), Failure> {
    let event = remote.client()?.tell_run(run, tell).await?;
    if remote.json { say(event.get()) } else { say(&watch::line(&watch::read(event.get())?)) }
}

/// The new run's id, and nothing else: it is what a script goes on with.
fn made(remote: &Remote, run: &Run) -> Result<(), Failure> {
    if remote.json { say_json(run) } else { say(&run.id.to_string()) }
}

/// A text of somebody else as one line of a list.
fn brief(text: &str) -> String {
    summarize(&plain(text))
}

fn line(run: &Run) -> String {
    let counts = run.task_counts;
    let tasks = format!("{}/{}", counts.done, counts.all());
    let status = run.status.as_str();
    format!("{}  {status:<17}  {}  {tasks:>7} tasks  {}", run.id, run.updated_at, brief(&run.objective))
}

/// A run, as a person reads it.
fn shown(whole: &RunAndTasks) -> Vec<String> {
    let run = &whole.run;
    let mut lines = vec![
        format!("{}  {}", run.id, brief(&run.run_type)),
        format!("{}, revision {}, event {}", run.status.as_str(), run.revision, run.last_event_seq),
        plain(&run.objective),
    ];
    let optional = [
        ("next", run.why_next_step.as_deref().map(brief)),
        ("error", run.last_error.as_deref().map(brief)),
        ("model", model(run)),
        ("workspace", workspace(run)),
        ("source", run.source_client.as_deref().map(brief)),
        ("made from", run.restored_from.map(|from| format!("{} at event {}", from.run_id, from.seq))),
        ("created", Some(run.created_at.to_string())),
        ("started", run.started_at.map(|at| at.to_string())),
        ("ended", run.ended_at.map(|at| at.to_string())),
    ];
    lines.extend(optional.into_iter().filter_map(|(name, value)| Some(format!("{name:<9}  {}", value?))));
    if !run.steps.is_empty() {
        lines.push(String::new());
    }
    lines.extend(run.steps.iter().map(plan::line));
    if !whole.tasks.is_empty() {
        lines.push(String::new());
    }
    lines.extend(whole.tasks.iter().map(tasks::line));
    lines
}

/// Which model the agents of a run use.
fn model(run: &Run) -> Option<String> {
    let both = [&run.model_provider, &run.model_id].into_iter().flatten();
    let both: Vec<_> = both.map(|name| brief(name)).collect();
    (!both.is_empty()).then(|| both.join("/"))
}

/// Where the agents of a run work.
fn workspace(run: &Run) -> Option<String> {
    let workspace = &run.workspace;
    let path = Some(&workspace.canonical_path).filter(|path| !path.is_empty())?;
    Some(format!("{}, epoch {}", brief(path), workspace.lease_epoch))
}

/// The JSON of an option.
fn parsed(option: &str, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|why| Failure::Usage(format!("`{option}` is not JSON: {why}")))
}

/// All of a file, or of stdin where its name is `-`.
fn read_file(name: &str) -> Result<String, Failure> {
    let read = match name {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        name => std::fs::read_to_string(name),
    };
    read.map_err(|why| Failure::Failed(format!("{name}: {why}")))
}
