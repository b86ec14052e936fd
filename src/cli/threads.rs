//! `raddle threads`: list, show, follow, delete; and what is done to a conversation.

use clap::{Args, Subcommand};
use raddle_domain::{
    command::IfIdle,
    id::{RunId, Seq},
    record::{Delivery, Thread, Turn, Undelivered},
};
use serde_json::{Value, json};

use super::{Failure, Parameters, Remote, collect, plain, say, say_json, word};
use crate::client::{EventView, Fork, PatchThread, StartTurn, Started};

/// What to do with threads.
#[derive(Debug, Args)]
pub struct Threads {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List threads, most recently updated first
    Ls {
        /// Only those with this in their title or id
        #[arg(short, long)]
        q: Option<String>,
        /// Only those with this status
        #[arg(long)]
        status: Option<String>,
        /// Archived ones too
        #[arg(long)]
        archived: bool,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a thread with its turns, items and inbox
    Show {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Print a thread's events, and go on as they happen
    Tail {
        thread: String,
        /// Only events after this seq
        #[arg(long, default_value_t = 0, value_name = "SEQ")]
        after: Seq,
        /// Stop at the end of what is stored
        #[arg(long)]
        no_follow: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a thread that goes on from this one
    Fork {
        thread: String,
        /// After this item
        #[arg(long, value_name = "ITEM", conflicts_with_all = ["before_turn", "checkpoint"])]
        at_item: Option<String>,
        /// Before this turn
        #[arg(long, value_name = "TURN", conflicts_with = "checkpoint")]
        before_turn: Option<String>,
        /// At this checkpoint; `latest` is the newest one
        #[arg(long, value_name = "NAME")]
        checkpoint: Option<String>,
        /// What the new thread is called
        #[arg(long)]
        title: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Replace the conversation so far by a summary
    Compact {
        thread: String,
        /// What the summary is for
        #[arg(long)]
        reason: Option<String>,
        /// Wait for the open turn instead of being refused
        #[arg(long)]
        queue: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Ask the last question in other words: its turn leaves the conversation
    Edit {
        thread: String,
        prompt: String,
        /// Which model answers
        #[arg(long, value_name = "M")]
        model: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Tell the model of the open turn something while it works
    Steer {
        thread: String,
        prompt: String,
        /// If it comes too late, let it wait as the next prompt
        #[arg(long)]
        queue: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// End the open turn
    Interrupt {
        thread: String,
        /// And let queued prompts wait until the thread is resumed
        #[arg(long)]
        pause: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let queued prompts wait although no turn is open
    Pause {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let queued prompts run again
    Resume {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let a thread work for a run: what its tools do from then on is in that run's ledger
    Bind {
        thread: String,
        #[arg(long, value_name = "ID")]
        run: RunId,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let a thread work for no run
    Unbind {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Save, list, forget and restore checkpoints
    Checkpoint(Checkpoint),
    /// Delete a thread and everything in it
    Rm {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
}

/// What to do with the checkpoints of a thread.
#[derive(Debug, Args)]
struct Checkpoint {
    #[command(subcommand)]
    verb: CheckpointVerb,
}

#[derive(Debug, Subcommand)]
enum CheckpointVerb {
    /// Name the thread's last settled moment
    Save {
        thread: String,
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// List checkpoints, oldest first
    Ls {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Forget a checkpoint
    Rm {
        thread: String,
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a thread that goes on from a checkpoint
    Restore {
        thread: String,
        /// `latest` is the newest one
        name: String,
        /// What the new thread is called
        #[arg(long)]
        title: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Checkpoint {
    async fn run(self) -> Result<(), Failure> {
        match self.verb {
            CheckpointVerb::Save { thread, name, remote } => {
                let saved = remote.client()?.save_checkpoint(&thread, &name).await?;
                if remote.json { say_json(&saved) } else { say(&format!("{}  seq {}", plain(&saved.name), saved.seq)) }
            }
            CheckpointVerb::Ls { thread, remote } => {
                let saved = remote.client()?.checkpoints(&thread).await?.data;
                if remote.json {
                    return say_json(&saved);
                }
                saved.iter().try_for_each(|saved| {
                    say(&format!("{:>6}  {}  {}", saved.seq, saved.created_at, plain(&saved.name)))
                })
            }
            CheckpointVerb::Rm { thread, name, remote } => {
                remote.client()?.delete_checkpoint(&thread, &name).await?;
                if remote.json { say_json(&json!({ "deleted": name })) } else { Ok(()) }
            }
            CheckpointVerb::Restore { thread, name, title, remote } => {
                made(&remote, &remote.client()?.restore(&thread, &name, title.as_deref()).await?)
            }
        }
    }
}

impl Threads {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Ls { q, status, archived, limit, remote } => {
                let mut filter = Vec::new();
                filter.extend(q.map(|q| ("q", q)));
                filter.extend(status.map(|status| ("status", status)));
                filter.extend(archived.then(|| ("archived", "true".to_owned())));
                list(&remote, filter, limit as usize).await
            }
            Verb::Show { thread, remote } => {
                let snapshot = remote.client()?.snapshot(&thread).await?;
                if remote.json { say_json(&snapshot) } else { show(&snapshot) }
            }
            Verb::Tail { thread, after, no_follow, remote } => {
                if no_follow {
                    print(&remote, &thread, after).await
                } else {
                    follow(&remote, &thread, after).await
                }
            }
            Verb::Fork { thread, at_item, before_turn, checkpoint, title, remote } => {
                let fork = Fork {
                    at_item: at_item.as_deref(),
                    before_turn: before_turn.as_deref(),
                    checkpoint: checkpoint.as_deref(),
                    title: title.as_deref(),
                };
                made(&remote, &remote.client()?.fork(&thread, &fork).await?)
            }
            Verb::Compact { thread, reason, queue, remote } => {
                started(&remote, &remote.client()?.compact(&thread, reason.as_deref(), queue).await?)
            }
            Verb::Edit { thread, prompt, model, remote } => {
                let turn = remote.client()?.edit(&thread, &prompt, model.as_deref()).await?;
                if remote.json { say_json(&turn) } else { stands(&turn) }
            }
            Verb::Steer { thread, prompt, queue, remote } => {
                let start = StartTurn {
                    prompt: &prompt,
                    delivery: Some(Delivery::Steer),
                    if_idle: Some(IfIdle::Reject),
                    undelivered: queue.then_some(Undelivered::Queue),
                    ..StartTurn::default()
                };
                started(&remote, &remote.client()?.deliver(&thread, &start).await?)
            }
            Verb::Interrupt { thread, pause, remote } => {
                let client = remote.client()?;
                let Some(turn) = client.thread(&thread).await?.active_turn else {
                    return Err(Failure::Refused("no turn is open".to_owned()));
                };
                let receipt = client.interrupt(&thread, &turn.to_string(), pause).await?;
                if remote.json { say_json(&receipt) } else { stands(&receipt.turn) }
            }
            Verb::Pause { thread, remote } => pause(&remote, &thread, true).await,
            Verb::Resume { thread, remote } => pause(&remote, &thread, false).await,
            Verb::Bind { thread, run, remote } => bind(&remote, &thread, Some(run)).await,
            Verb::Unbind { thread, remote } => bind(&remote, &thread, None).await,
            Verb::Checkpoint(checkpoint) => checkpoint.run().await,
            Verb::Rm { thread, remote } => {
                remote.client()?.delete_thread(&thread).await?;
                if remote.json { say_json(&json!({ "deleted": thread })) } else { Ok(()) }
            }
        }
    }
}

/// The new thread's id, and nothing else: it is what a script goes on with.
fn made(remote: &Remote, thread: &Thread) -> Result<(), Failure> {
    if remote.json { say_json(thread) } else { say(&thread.id.to_string()) }
}

fn started(remote: &Remote, started: &Started) -> Result<(), Failure> {
    match started {
        started if remote.json => say_json(started),
        Started::Turn { turn } => stands(turn),
        Started::Queued { admission, active_turn } => say(&format!("{}  waits for {active_turn}", admission.id)),
    }
}

fn stands(turn: &Turn) -> Result<(), Failure> {
    say(&format!("{}  {}", turn.id, word(&turn.status)))
}

async fn pause(remote: &Remote, thread: &str, queue_paused: bool) -> Result<(), Failure> {
    let patch = PatchThread { queue_paused: Some(queue_paused), ..PatchThread::default() };
    let thread = remote.client()?.patch_thread(thread, &patch).await?;
    if remote.json {
        return say_json(&thread);
    }
    let how = if thread.queue_paused { "paused" } else { "not paused" };
    say(&format!("{}  {how}, {} queued", thread.id, thread.queued))
}

async fn bind(remote: &Remote, thread: &str, run: Option<RunId>) -> Result<(), Failure> {
    let patch = PatchThread { run_id: Some(run), ..PatchThread::default() };
    let thread = remote.client()?.patch_thread(thread, &patch).await?;
    match thread.run_id {
        _ if remote.json => say_json(&thread),
        Some(run) => say(&format!("{}  works for {run}", thread.id)),
        None => say(&format!("{}  works for no run", thread.id)),
    }
}

async fn list(remote: &Remote, filter: Parameters, limit: usize) -> Result<(), Failure> {
    let client = remote.client()?;
    let threads = collect(limit, filter, async |query| {
        let page = client.threads(&query).await?;
        for lost in &page.unavailable {
            let text = |name: &str| plain(lost[name].as_str().unwrap_or_default());
            eprintln!("{} is unavailable: {}", text("id"), text("detail"));
        }
        Ok(page)
    });
    let threads = threads.await?;
    if remote.json {
        return say_json(&threads);
    }
    for thread in &threads {
        let text = |name: &str| plain(thread[name].as_str().unwrap_or_default());
        say(&format!("{}  {:<17}  {}  {}", text("id"), text("status"), text("updated_at"), text("title")))?;
    }
    Ok(())
}

/// The conversation, as a person reads it.
fn show(snapshot: &Value) -> Result<(), Failure> {
    let text = |value: &Value| plain(value.as_str().unwrap_or_default());
    let rows = |name: &str| snapshot[name].as_array().cloned().unwrap_or_default();
    let thread = &snapshot["thread"];
    say(&format!("{}  {}", text(&thread["id"]), text(&thread["title"])))?;
    say(&format!(
        "{}{}, {}/{}, seq {}",
        text(&thread["status"]),
        if thread["queue_paused"] == true { ", queue paused" } else { "" },
        text(&thread["engine"]),
        text(&thread["model"]),
        snapshot["seq"]
    ))?;
    if let Some(run) = thread["run_id"].as_str() {
        say(&format!("works for {}", plain(run)))?;
    }
    let items = rows("items");
    for turn in rows("turns") {
        say(&format!("\n{}  {}", text(&turn["id"]), text(&turn["status"])))?;
        for item in items.iter().filter(|item| item["turn_id"] == turn["id"]) {
            say(&format!("{}: {}", text(&item["kind"]), text(&item["detail"])))?;
        }
        if let Some(why) = turn["error"]["message"].as_str() {
            say(&format!("error: {}", plain(why)))?;
        }
    }
    for approval in rows("approvals") {
        say(&format!("\napproval {}: {}", text(&approval["id"]), text(&approval["tool"])))?;
    }
    for entry in rows("inbox") {
        say(&format!("\nwaiting {}: {}", entry["position"], text(&entry["prompt"])))?;
    }
    Ok(())
}

/// What is stored, to the end as it was at the beginning.
async fn print(remote: &Remote, thread: &str, mut after: Seq) -> Result<(), Failure> {
    let client = remote.client()?;
    let mut end = None;
    loop {
        let page = client.event_page(thread, after).await?;
        let end = *end.get_or_insert(page.head);
        let Some(last) = page.data.last().map(|json| view(json.get())).transpose()? else { return Ok(()) };
        for json in &page.data {
            event(remote, json.get())?;
        }
        after = last.seq;
        if after >= end {
            return Ok(());
        }
    }
}

async fn follow(remote: &Remote, thread: &str, after: Seq) -> Result<(), Failure> {
    let client = remote.client()?;
    // Asked once plainly: a server that is not there is said at once, not after every try to come back.
    client.thread(thread).await?;
    let mut events = client.follow(thread, after);
    while let Some(told) = events.next().await? {
        event(remote, &told.json)?;
    }
    Ok(())
}

fn event(remote: &Remote, json: &str) -> Result<(), Failure> {
    if remote.json {
        return say(json);
    }
    let event = view(json)?;
    let payload = &event.payload;
    let about = match event.event.as_str() {
        "item.delta" => payload["delta"].as_str(),
        "item.started" | "item.completed" => payload["item"]["summary"].as_str(),
        "turn.completed" => payload["status"].as_str(),
        name if name.starts_with("prompt.") => payload["admission"]["prompt"].as_str(),
        name if name.starts_with("approval.") => payload["approval"]["tool"].as_str(),
        name if name.starts_with("question.") => payload["question"]["question"].as_str(),
        name if name.starts_with("effect.") => payload["effect"]["tool"].as_str(),
        name if name.starts_with("checkpoint.") => payload["checkpoint"]["name"].as_str(),
        name if name.starts_with("turn.") => payload["turn"]["input_summary"].as_str(),
        name if name.starts_with("thread.") => payload["thread"]["status"].as_str(),
        _ => None,
    };
    let about = raddle_domain::record::summarize(&plain(about.unwrap_or_default()));
    say(&format!("{:>6}  {}  {:<24}  {about}", event.seq, plain(&event.ts), plain(&event.event)))
}

fn view(json: &str) -> Result<EventView, Failure> {
    serde_json::from_str(json).map_err(|err| Failure::Failed(format!("an event is not as expected: {err}")))
}
