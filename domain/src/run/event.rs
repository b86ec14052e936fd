//! The words of a run's log. Every change of a run is one of these, and nothing else changes a run.
//!
//! A [`Record`] is stored, streamed and paged as the same bytes:
//! `{seq, prev, ts, run_id, event_id, revision, status, by, step_id?, task_id?, event, payload, run?}`. `status` is the
//! run's after the event, and `run` its whole record then, where the event changed more of it than `revision`,
//! `last_event_seq`, `updated_at` and the counts. Payloads hold whole records: `{task}`, `{entry}`, `{checkpoint}`,
//! `{record}`. Of an event that a client wrote, the payload is the client's and is never obeyed: what it led to stands in
//! `run`, which only the machine writes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned, ser::SerializeMap};
use serde_json::Value;

use super::{Checkpoint, Entry, LedgerRecord, MutationRecord, Rollback, Run, RunStatus, Task};
use crate::{
    id::{RunId, Seq},
    time::UnixMs,
};

/// The schema that this build writes.
pub const SCHEMA: u8 = 1;

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The first event of every log.
    Created,
    /// The whole record was replaced.
    Replaced,
    /// What a client said happened, under its own name.
    Told {
        name: String,
        payload: Value,
    },
    TodosSynced {
        payload: Value,
    },
    NextStepSelected {
        payload: Value,
    },
    /// The first path was adopted.
    WorkspaceBound,
    /// Another path took its place: leases of before are void.
    WorkspaceRebound {
        was: String,
    },
    WorkspaceMismatch {
        payload: Value,
    },
    Task(TaskEvent, Box<Task>),
    /// A line of the blackboard was added, edited or resolved.
    Entry(EntryEvent, Box<Entry>),
    /// One of the two summaries.
    Summary {
        pack: bool,
        text: String,
    },
    CheckpointSaved(Checkpoint),
    CheckpointDeleted(Checkpoint),
    EffectRecorded(Box<LedgerRecord>),
    MutationRecorded(Box<MutationRecord>),
    RollbackStarted(Rollback),
    RollbackApplied {
        rollback: Rollback,
        files: u32,
    },
    /// It was refused, by the machine or by the files; nothing else has changed.
    RollbackBlocked(RollbackBlocked),
    /// The last word of a run. Published, not kept.
    Deleted,
}

/// A rollback that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackBlocked {
    pub event_ids: Vec<String>,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_event_ids: Vec<String>,
}

/// What happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskEvent {
    Created,
    Claimed,
    Heartbeat,
    Completed,
    Failed,
    Blocked,
    Cancelled,
    /// It can be claimed again.
    Requeued,
    /// Its lease ran out.
    StaleRequeued,
}

/// What happened to a line of the blackboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryEvent {
    Added,
    Edited,
    Resolved,
}

impl TaskEvent {
    const ALL: [Self; 9] = [
        Self::Created,
        Self::Claimed,
        Self::Heartbeat,
        Self::Completed,
        Self::Failed,
        Self::Blocked,
        Self::Cancelled,
        Self::Requeued,
        Self::StaleRequeued,
    ];

    /// The wire name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "context.task.created",
            Self::Claimed => "context.task.claimed",
            Self::Heartbeat => "context.task.heartbeat",
            Self::Completed => "context.task.completed",
            Self::Failed => "context.task.failed",
            Self::Blocked => "context.task.blocked",
            Self::Cancelled => "context.task.cancelled",
            Self::Requeued => "context.task.requeued",
            Self::StaleRequeued => "context.task.stale_requeued",
        }
    }
}

/// The families of events that the runtime writes. A tenant's stream and its hooks have those of runs among all others,
/// and know them by their names; what begins with `stream.` is about a connection.
const FAMILIES: [&str; 15] = [
    "context.",
    "stream.",
    "thread.",
    "turn.",
    "item.",
    "prompt.",
    "approval.",
    "question.",
    "effect.",
    "compaction.",
    "checkpoint.",
    "usage.",
    "job.",
    "schedule.",
    "mcp.",
];

/// Words that the machine alone may write, beside those families.
const OURS: [&str; 10] = [
    "todo_synced",
    "meta_next_step_selected",
    "workspace_validated",
    "workspace_rebound",
    "workspace_mismatch",
    "tool_effect_recorded",
    "mutation_checkpoint_recorded",
    "rollback_execution_started",
    "rollback_execution_applied",
    "rollback_execution_blocked",
];

/// Words that earlier systems kept for themselves, and that mean evidence to those who read them.
const KEPT: [&str; 4] = ["tool_routing_decision", "policy_decision_recorded", "session_tool_updated", "run_deleted"];

/// Whether a client may not write an event of this name, however it spells it.
pub fn is_reserved(name: &str) -> bool {
    let name = name.trim().to_ascii_lowercase();
    FAMILIES.iter().any(|family| name.starts_with(family)) || OURS.contains(&&*name) || KEPT.contains(&&*name)
}

impl Event {
    /// The wire name.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Created => "context.run.created",
            Self::Replaced => "context.run.replaced",
            Self::Told { name, .. } => return Cow::Owned(name.clone()),
            Self::TodosSynced { .. } => "todo_synced",
            Self::NextStepSelected { .. } => "meta_next_step_selected",
            Self::WorkspaceBound => "workspace_validated",
            Self::WorkspaceRebound { .. } => "workspace_rebound",
            Self::WorkspaceMismatch { .. } => "workspace_mismatch",
            Self::Task(event, _) => event.name(),
            Self::Entry(EntryEvent::Added, entry) if entry.kind == super::EntryKind::Artifact => {
                "context.artifact.added"
            }
            Self::Entry(..) | Self::Summary { .. } => "context.blackboard.patched",
            Self::CheckpointSaved(_) => "context.checkpoint.saved",
            Self::CheckpointDeleted(_) => "context.checkpoint.deleted",
            Self::EffectRecorded(_) => "tool_effect_recorded",
            Self::MutationRecorded(_) => "mutation_checkpoint_recorded",
            Self::RollbackStarted(_) => "rollback_execution_started",
            Self::RollbackApplied { .. } => "rollback_execution_applied",
            Self::RollbackBlocked(_) => "rollback_execution_blocked",
            Self::Deleted => "context.run.deleted",
        })
    }

    /// Which task it is about.
    pub fn task_id(&self) -> Option<&str> {
        match self {
            Self::Task(_, task) => Some(&task.id),
            Self::EffectRecorded(record) => record.task_id.as_deref(),
            Self::MutationRecorded(record) => record.task_id.as_deref(),
            _ => None,
        }
    }
}

/// What an event says, as it is written: from where it stands, without a copy.
struct Payload<'a>(&'a Event);

impl Serialize for Payload<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Event::Told { payload, .. }
            | Event::TodosSynced { payload }
            | Event::NextStepSelected { payload }
            | Event::WorkspaceMismatch { payload } => return payload.serialize(to),
            Event::RollbackBlocked(blocked) => return blocked.serialize(to),
            _ => {}
        }
        let mut map = to.serialize_map(None)?;
        match self.0 {
            Event::WorkspaceRebound { was } => map.serialize_entry("was", was)?,
            Event::Task(event, task) => {
                map.serialize_entry("task", task)?;
                if *event == TaskEvent::Failed {
                    map.serialize_entry("error", &task.last_error)?;
                }
            }
            Event::Entry(event, entry) => {
                map.serialize_entry("op", &op(*event, entry.kind))?;
                map.serialize_entry("entry", entry)?;
            }
            Event::Summary { pack, text } => {
                map.serialize_entry("op", summary_op(*pack))?;
                map.serialize_entry("text", text)?;
            }
            Event::CheckpointSaved(checkpoint) | Event::CheckpointDeleted(checkpoint) => {
                map.serialize_entry("checkpoint", checkpoint)?;
            }
            Event::EffectRecorded(record) => map.serialize_entry("record", record)?,
            Event::MutationRecorded(record) => map.serialize_entry("record", record)?,
            Event::RollbackStarted(rollback) => map.serialize_entry("rollback", rollback)?,
            Event::RollbackApplied { rollback, files } => {
                map.serialize_entry("rollback", rollback)?;
                map.serialize_entry("files", files)?;
            }
            Event::Created
            | Event::Replaced
            | Event::WorkspaceBound
            | Event::Deleted
            | Event::Told { .. }
            | Event::TodosSynced { .. }
            | Event::NextStepSelected { .. }
            | Event::WorkspaceMismatch { .. }
            | Event::RollbackBlocked(_) => {}
        }
        map.end()
    }
}

fn op(event: EntryEvent, kind: super::EntryKind) -> String {
    let verb = match event {
        EntryEvent::Added => "add",
        EntryEvent::Edited => "edit",
        EntryEvent::Resolved => "resolve",
    };
    format!("{verb}_{}", kind.as_str())
}

const fn summary_op(pack: bool) -> &'static str {
    if pack { "set_latest_context_pack" } else { "set_rolling_summary" }
}

/// An event at its place in a run's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub seq: Seq,
    pub ts: UnixMs,
    pub run_id: RunId,
    pub revision: u64,
    /// The run's, after it.
    pub status: RunStatus,
    /// Who brought it about: `client`, `runtime`, `agent:…`.
    pub by: String,
    pub step_id: Option<String>,
    pub event: Event,
    /// The run after it, where it changed.
    pub run: Option<Box<Run>>,
}

/// How an event is named within its run.
pub fn event_id(seq: Seq) -> String {
    format!("evt_{seq}")
}

/// The place that an event's name stands for.
pub fn seq_of(event_id: &str) -> Option<Seq> {
    let digits = event_id.strip_prefix("evt_")?;
    let seq = digits.parse().ok()?;
    // One name for each place.
    (self::event_id(seq) == event_id).then_some(seq)
}

#[derive(Serialize)]
struct Written<'a> {
    seq: Seq,
    prev: Seq,
    ts: UnixMs,
    run_id: RunId,
    event_id: String,
    revision: u64,
    status: RunStatus,
    by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<&'a str>,
    event: &'a str,
    payload: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a Run>,
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            seq: self.seq,
            prev: self.seq - 1,
            ts: self.ts,
            run_id: self.run_id,
            event_id: event_id(self.seq),
            revision: self.revision,
            status: self.status,
            by: &self.by,
            step_id: self.step_id.as_deref(),
            task_id: self.event.task_id(),
            event: &self.event.name(),
            payload: Payload(&self.event),
            run: self.run.as_deref(),
        };
        written.serialize(to)
    }
}

/// Why stored bytes are not a record of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("not a record: {0}")]
    Json(String),
    #[error("unknown event `{0}`")]
    Unknown(String),
    #[error("written by schema {0}, this build reads up to {SCHEMA}")]
    Newer(u8),
}

#[derive(Deserialize)]
struct Read {
    seq: Seq,
    ts: UnixMs,
    run_id: RunId,
    revision: u64,
    status: RunStatus,
    by: String,
    #[serde(default)]
    step_id: Option<String>,
    event: String,
    payload: Value,
    #[serde(default)]
    run: Option<Box<Run>>,
}

impl Record {
    /// Reads what an earlier, or this, build stored under `schema`.
    pub fn decode(schema: u8, json: &[u8]) -> Result<Self, BadRecord> {
        if schema > SCHEMA {
            return Err(BadRecord::Newer(schema));
        }
        let Read { seq, ts, run_id, revision, status, by, step_id, event, payload, run } =
            serde_json::from_slice(json).map_err(|why| BadRecord::Json(why.to_string()))?;
        if seq == 0 {
            return Err(BadRecord::Json("the seqs of a log begin with 1".to_owned()));
        }
        let event = read(event, payload)?;
        Ok(Self { seq, ts, run_id, revision, status, by, step_id, event, run })
    }
}

fn part<T: DeserializeOwned>(event: &str, payload: &mut Value, name: &str) -> Result<T, BadRecord> {
    let part = payload.get_mut(name).map(Value::take).unwrap_or_default();
    serde_json::from_value(part).map_err(|why| BadRecord::Json(format!("{event}: `{name}`: {why}")))
}

fn read(name: String, mut payload: Value) -> Result<Event, BadRecord> {
    let mut text = |field: &str| part::<String>(&name, &mut payload, field);
    Ok(match &*name {
        "context.run.created" => Event::Created,
        "context.run.replaced" => Event::Replaced,
        "context.run.deleted" => Event::Deleted,
        "todo_synced" => Event::TodosSynced { payload },
        "meta_next_step_selected" => Event::NextStepSelected { payload },
        "workspace_validated" => Event::WorkspaceBound,
        "workspace_rebound" => Event::WorkspaceRebound { was: text("was")? },
        "workspace_mismatch" => Event::WorkspaceMismatch { payload },
        "context.artifact.added" => Event::Entry(EntryEvent::Added, Box::new(part(&name, &mut payload, "entry")?)),
        "context.blackboard.patched" => {
            let op = text("op")?;
            let event = match op.split('_').next() {
                Some("add") => EntryEvent::Added,
                Some("edit") => EntryEvent::Edited,
                Some("resolve") => EntryEvent::Resolved,
                Some("set") => {
                    return Ok(Event::Summary { pack: op == summary_op(true), text: text("text")? });
                }
                _ => return Err(BadRecord::Unknown(format!("{name}: {op}"))),
            };
            Event::Entry(event, Box::new(part(&name, &mut payload, "entry")?))
        }
        "context.checkpoint.saved" => Event::CheckpointSaved(part(&name, &mut payload, "checkpoint")?),
        "context.checkpoint.deleted" => Event::CheckpointDeleted(part(&name, &mut payload, "checkpoint")?),
        "tool_effect_recorded" => Event::EffectRecorded(Box::new(part(&name, &mut payload, "record")?)),
        "mutation_checkpoint_recorded" => Event::MutationRecorded(Box::new(part(&name, &mut payload, "record")?)),
        "rollback_execution_started" => Event::RollbackStarted(part(&name, &mut payload, "rollback")?),
        "rollback_execution_applied" => Event::RollbackApplied {
            rollback: part(&name, &mut payload, "rollback")?,
            files: part(&name, &mut payload, "files")?,
        },
        "rollback_execution_blocked" => Event::RollbackBlocked(
            serde_json::from_value(payload).map_err(|why| BadRecord::Json(format!("{name}: {why}")))?,
        ),
        _ => match TaskEvent::ALL.into_iter().find(|event| event.name() == name) {
            Some(event) => Event::Task(event, Box::new(part(&name, &mut payload, "task")?)),
            None if is_reserved(&name) => return Err(BadRecord::Unknown(name)),
            None => Event::Told { name, payload },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_the_machine_writes_its_words() {
        for ours in [
            "context.task.completed",
            "Context.Task.Completed",
            " context.run.replaced",
            "tool_effect_recorded",
            "TOOL_EFFECT_RECORDED ",
            "mutation_checkpoint_recorded",
            "rollback_execution_applied",
            "policy_decision_recorded",
            "context.anything",
            "stream.gap",
            "turn.completed",
            "Approval.Decided",
            "job.failed",
        ] {
            assert!(is_reserved(ours), "{ours}");
        }
        for theirs in ["planning_started", "step_completed", "contextual", "run_paused", "deployed"] {
            assert!(!is_reserved(theirs), "{theirs}");
        }
    }

    #[test]
    fn no_event_comes_before_the_first() {
        let json = |seq: u64| {
            format!(
                r#"{{"seq":{seq},"ts":"2026-11-18T11:06:40.001Z","run_id":"run_01905d3c-7e57-7abc-8def-000000000001",
                "revision":1,"status":"running","by":"b","event":"deployed","payload":{{}}}}"#
            )
        };
        assert_eq!(Record::decode(SCHEMA, json(1).as_bytes()).unwrap().seq, 1);
        let before = Record::decode(SCHEMA, json(0).as_bytes());
        assert_eq!(before, Err(BadRecord::Json("the seqs of a log begin with 1".to_owned())));
    }

    #[test]
    fn an_event_has_one_name_in_its_run() {
        assert_eq!(seq_of(&event_id(17)), Some(17));
        for bad in ["evt_017", "evt_+1", "evt_", "17", "EVT_17", "evt_17 ", "evt_99999999999999999999"] {
            assert_eq!(seq_of(bad), None, "{bad}");
        }
    }
}
