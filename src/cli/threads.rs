//! `raddle threads`: list, show, follow, delete.

use clap::{Args, Subcommand};
use raddle_domain::id::Seq;
use serde_json::{Value, json};

use super::{Failure, Remote, plain, say, say_json};
use crate::client::EventView;

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
    /// Delete a thread and everything in it
    Rm {
        thread: String,
        #[command(flatten)]
        remote: Remote,
    },
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
            Verb::Rm { thread, remote } => {
                remote.client()?.delete_thread(&thread).await?;
                if remote.json { say_json(&json!({ "deleted": thread })) } else { Ok(()) }
            }
        }
    }
}

async fn list(remote: &Remote, filter: Vec<(&str, String)>, limit: usize) -> Result<(), Failure> {
    let client = remote.client()?;
    let mut threads = Vec::new();
    let mut cursor = None;
    loop {
        let mut query = filter.clone();
        query.push(("limit", (limit - threads.len()).min(500).to_string()));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page = client.threads(&query).await?;
        threads.extend(page.data);
        for lost in page.unavailable {
            let text = |name: &str| plain(lost[name].as_str().unwrap_or_default());
            eprintln!("{} is unavailable: {}", text("id"), text("detail"));
        }
        cursor = page.next_cursor;
        if cursor.is_none() || threads.len() >= limit {
            break;
        }
    }
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
        "{}, {}/{}, seq {}",
        text(&thread["status"]),
        text(&thread["engine"]),
        text(&thread["model"]),
        snapshot["seq"]
    ))?;
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
        let page = client.events(thread, after).await?;
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
    while let Some((_, json)) = events.next().await? {
        event(remote, &json)?;
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
        "prompt.admitted" | "prompt.promoted" => payload["admission"]["prompt"].as_str(),
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
