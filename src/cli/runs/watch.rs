//! The events of a run, a line each.

use clap::Args;
use raddle_domain::id::Seq;
use serde_json::Value;

use super::{brief, notes};
use crate::{
    cli::{Failure, Remote, plain, say},
    client::{Client, RunEvent},
};

/// Events that are asked for at once.
const PAGE: u64 = 500;

#[derive(Debug, Args)]
pub struct Watch {
    run: String,
    /// Only events after this seq
    #[arg(long, default_value_t = 0, value_name = "SEQ")]
    after: Seq,
    /// Stop at the end of what is stored
    #[arg(long)]
    no_follow: bool,
    #[command(flatten)]
    remote: Remote,
}

impl Watch {
    pub async fn run(self) -> Result<(), Failure> {
        let client = self.remote.client()?;
        // Asked once plainly: a server that is not there is said at once, not after every try to come back.
        let head = client.run(&self.run).await?.run.last_event_seq;
        if self.no_follow {
            stored(&self.remote, &client, &self.run, self.after, head).await
        } else {
            follow(&self.remote, &client, &self.run, self.after).await
        }
    }
}

/// What is stored, up to `end`.
async fn stored(remote: &Remote, client: &Client, run: &str, mut after: Seq, end: Seq) -> Result<(), Failure> {
    loop {
        let page = client.run_event_page(run, after, PAGE).await?;
        let Some(last) = page.data.last().map(|json| read(json.get())).transpose()? else { return Ok(()) };
        page.data.iter().try_for_each(|json| print(remote, json.get()))?;
        after = last.seq;
        if after >= end {
            return Ok(());
        }
    }
}

/// What happens after `after`, until the run is deleted.
pub async fn follow(remote: &Remote, client: &Client, run: &str, after: Seq) -> Result<(), Failure> {
    let mut events = client.follow_run(run, after);
    while let Some(told) = events.next().await? {
        print(remote, &told.json)?;
    }
    Ok(())
}

fn print(remote: &Remote, json: &str) -> Result<(), Failure> {
    if remote.json { say(json) } else { say(&line(&read(json)?)) }
}

pub fn read(json: &str) -> Result<RunEvent, Failure> {
    serde_json::from_str(json).map_err(|err| Failure::Failed(format!("an event is not as expected: {err}")))
}

/// An event in a list.
pub fn line(event: &RunEvent) -> String {
    let (name, by) = (brief(&event.event), brief(&event.by));
    format!("{:>6}  {}  {name:<26}  {by:<14}  {}", event.seq, event.ts, about(event)).trim_end().to_owned()
}

/// What an event is about.
pub fn about(event: &RunEvent) -> String {
    let payload = &event.payload;
    let text = |value: &Value| value.as_str().map(brief).filter(|text| !text.is_empty());
    let entry = || serde_json::from_value(payload["entry"].clone()).ok().map(|entry| notes::content(&entry));
    let what = match event.event.as_str() {
        name if name.starts_with("context.task.") => text(&payload["task"]["last_error"]),
        "context.artifact.added" => entry(),
        "context.blackboard.patched" => entry().or_else(|| text(&payload["text"])),
        name if name.starts_with("context.checkpoint.") => text(&payload["checkpoint"]["reason"]),
        "tool_effect_recorded" => {
            let both = [&payload["record"]["tool"], &payload["record"]["status"]].into_iter().filter_map(text);
            Some(both.collect::<Vec<_>>().join(" "))
        }
        "mutation_checkpoint_recorded" => {
            let files = payload["record"]["files"].as_array().map_or(0, Vec::len);
            Some(format!("{}, {files} files", text(&payload["record"]["tool"]).unwrap_or_default()))
        }
        name if name.starts_with("rollback_") => text(&payload["reason"]),
        _ => event.run.as_ref().map(|_| event.status.as_str().to_owned()),
    };
    let on = [event.task_id.as_deref(), event.step_id.as_deref()].into_iter().flatten().next().map(brief);
    plain(&on.into_iter().chain(what.filter(|what| !what.is_empty())).collect::<Vec<_>>().join(": "))
}

#[cfg(test)]
mod tests {
    use raddle_domain::{run::RunStatus, time::UnixMs};
    use serde_json::json;

    use super::*;

    fn event(name: &str, task: Option<&str>, payload: Value) -> RunEvent {
        RunEvent {
            seq: 7,
            ts: UnixMs(0),
            revision: 3,
            status: RunStatus::Running,
            by: "agent:a\u{1b}[2J".to_owned(),
            step_id: None,
            task_id: task.map(str::to_owned),
            event: name.to_owned(),
            payload,
            run: None,
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let payload = json!({ "task": { "last_error": "one\ntwo\u{1b}]0;x\u{7}" } });
        let shown = line(&event("context.task.failed", Some("t\n1"), payload));
        let expected = "     7  1970-01-01T00:00:00.000Z  context.task.failed         agent:a[2J      t 1: one two]0;x";
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_event_says_what_it_is_about() {
        let fact = json!({ "op": "set_rolling_summary", "text": "half way" });
        assert_eq!(about(&event("context.blackboard.patched", None, fact)), "half way");
        let effect = json!({ "record": { "tool": "edit_file", "status": "succeeded" } });
        assert_eq!(about(&event("tool_effect_recorded", Some("t"), effect)), "t: edit_file succeeded");
        assert_eq!(about(&event("deployed", None, json!({ "to": "prod" }))), "");
    }
}
