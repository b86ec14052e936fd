//! The words of the log. Every change of a thread is one of these, and nothing else changes a thread.
//!
//! A [`Record`] is an event with its place. Its JSON is stored, streamed and paged as the same bytes:
//! `{seq, prev, ts, thread_id, turn_id?, item_id?, event, payload}`, where `prev` is the `seq` before it
//! (0 for the first). Payloads hold whole records, so the newest event about a thing says all of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, ser::SerializeMap};
use serde_json::value::RawValue;

use crate::{
    id::{ItemId, Seq, ThreadId, TurnId},
    record::{Admission, Item, ItemKind, Thread, Turn, TurnError, TurnStatus, UsageEntry},
    time::UnixMs,
};

/// The schema that this build writes; stored beside every chunk of the log.
pub const SCHEMA: u8 = 1;

/// Something that happened to a thread.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    ThreadCreated(Box<Thread>),
    ThreadUpdated(Box<Thread>),
    /// The thread's `status` changed.
    ThreadStatus(Box<Thread>),
    ThreadArchived(Box<Thread>),
    /// The last word of a thread. Published, not kept: the log it would stand in is gone.
    ThreadDeleted(Box<Thread>),
    PromptAdmitted(Box<Admission>),
    PromptPromoted(Box<Admission>),
    TurnStarted(Box<Turn>),
    /// The turn goes on after the process that ran it was gone.
    TurnResumed(Box<Turn>),
    /// A model call failed in a way that another try may mend.
    TurnRetrying(Box<Retrying>),
    TurnInterruptRequested(Box<Turn>),
    /// The one terminal event of a turn, whatever its outcome.
    TurnCompleted(Box<Turn>),
    ItemStarted(Box<Item>),
    /// Text to append to the item's `detail`.
    ItemDelta(ItemDelta),
    ItemCompleted(Box<Item>),
    UsageRecorded(TurnId, Box<UsageEntry>),
}

/// A failed model call that will be made again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrying {
    pub turn: Turn,
    /// The attempt that failed, from 1.
    pub attempt: u32,
    pub max_attempts: u32,
    pub retry_at: UnixMs,
    pub error: TurnError,
}

/// A piece of an item's text.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemDelta {
    pub turn: TurnId,
    pub item: ItemId,
    pub kind: ItemKind,
    pub delta: String,
}

/// An event at its place in a thread's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub seq: Seq,
    pub ts: UnixMs,
    pub thread: ThreadId,
    pub event: Event,
}

/// Why stored bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("not a record: {0}")]
    Json(String),
    #[error("unknown event `{0}`")]
    Unknown(String),
    #[error("`{event}` names no {missing}")]
    Incomplete { event: String, missing: &'static str },
    #[error("written by schema {0}, this build reads up to {SCHEMA}")]
    Newer(u8),
}

/// Every word, so that a name that was read costs no memory of its own.
const NAMES: [&str; 16] = [
    "item.delta",
    "item.started",
    "item.completed",
    "turn.started",
    "turn.completed",
    "thread.status",
    "usage.recorded",
    "prompt.admitted",
    "prompt.promoted",
    "turn.resumed",
    "turn.retrying",
    "turn.interrupt_requested",
    "thread.created",
    "thread.updated",
    "thread.archived",
    "thread.deleted",
];

/// The name as text that lives for ever, if it is one of ours.
pub fn name(text: &str) -> Cow<'static, str> {
    match NAMES.iter().find(|name| **name == text) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(text.to_owned()),
    }
}

impl Event {
    /// The wire name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ThreadCreated(_) => "thread.created",
            Self::ThreadUpdated(_) => "thread.updated",
            Self::ThreadStatus(_) => "thread.status",
            Self::ThreadArchived(_) => "thread.archived",
            Self::ThreadDeleted(_) => "thread.deleted",
            Self::PromptAdmitted(_) => "prompt.admitted",
            Self::PromptPromoted(_) => "prompt.promoted",
            Self::TurnStarted(_) => "turn.started",
            Self::TurnResumed(_) => "turn.resumed",
            Self::TurnRetrying(_) => "turn.retrying",
            Self::TurnInterruptRequested(_) => "turn.interrupt_requested",
            Self::TurnCompleted(_) => "turn.completed",
            Self::ItemStarted(_) => "item.started",
            Self::ItemDelta(_) => "item.delta",
            Self::ItemCompleted(_) => "item.completed",
            Self::UsageRecorded(..) => "usage.recorded",
        }
    }

    /// The turn it is about.
    pub fn turn_id(&self) -> Option<TurnId> {
        match self {
            Self::ThreadCreated(_)
            | Self::ThreadUpdated(_)
            | Self::ThreadStatus(_)
            | Self::ThreadArchived(_)
            | Self::ThreadDeleted(_)
            | Self::PromptAdmitted(_) => None,
            Self::PromptPromoted(admission) => admission.turn_id,
            Self::TurnStarted(turn)
            | Self::TurnResumed(turn)
            | Self::TurnInterruptRequested(turn)
            | Self::TurnCompleted(turn) => Some(turn.id),
            Self::TurnRetrying(retrying) => Some(retrying.turn.id),
            Self::ItemStarted(item) | Self::ItemCompleted(item) => Some(item.turn_id),
            Self::ItemDelta(delta) => Some(delta.turn),
            Self::UsageRecorded(turn, _) => Some(*turn),
        }
    }

    /// The item it is about.
    pub fn item_id(&self) -> Option<ItemId> {
        match self {
            Self::ItemStarted(item) | Self::ItemCompleted(item) => Some(item.id),
            Self::ItemDelta(delta) => Some(delta.item),
            _ => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct OfThread<T> {
    thread: T,
}
#[derive(Serialize, Deserialize)]
struct OfAdmission<T> {
    admission: T,
}
#[derive(Serialize, Deserialize)]
struct OfTurn<T> {
    turn: T,
}
#[derive(Serialize)]
struct OfEnd<'a> {
    turn: &'a Turn,
    status: TurnStatus,
}
#[derive(Serialize, Deserialize)]
struct OfItem<T> {
    item: T,
}
#[derive(Serialize, Deserialize)]
struct OfDelta<T> {
    kind: ItemKind,
    delta: T,
}
#[derive(Serialize, Deserialize)]
struct OfUsage<T> {
    usage: T,
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.write(self.seq - 1, to)
    }
}

impl Record {
    /// Writes the record with `prev` as the event before it.
    fn write<S: serde::Serializer>(&self, prev: Seq, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("seq", &self.seq)?;
        map.serialize_entry("prev", &prev)?;
        map.serialize_entry("ts", &self.ts)?;
        map.serialize_entry("thread_id", &self.thread)?;
        if let Some(turn) = self.event.turn_id() {
            map.serialize_entry("turn_id", &turn)?;
        }
        if let Some(item) = self.event.item_id() {
            map.serialize_entry("item_id", &item)?;
        }
        map.serialize_entry("event", self.event.name())?;
        match &self.event {
            Event::ThreadCreated(thread)
            | Event::ThreadUpdated(thread)
            | Event::ThreadStatus(thread)
            | Event::ThreadArchived(thread)
            | Event::ThreadDeleted(thread) => map.serialize_entry("payload", &OfThread { thread: &**thread })?,
            Event::PromptAdmitted(admission) | Event::PromptPromoted(admission) => {
                map.serialize_entry("payload", &OfAdmission { admission: &**admission })?;
            }
            Event::TurnStarted(turn) | Event::TurnResumed(turn) | Event::TurnInterruptRequested(turn) => {
                map.serialize_entry("payload", &OfTurn { turn: &**turn })?;
            }
            Event::TurnRetrying(retrying) => map.serialize_entry("payload", &**retrying)?,
            Event::TurnCompleted(turn) => {
                map.serialize_entry("payload", &OfEnd { turn, status: turn.status })?;
            }
            Event::ItemStarted(item) | Event::ItemCompleted(item) => {
                map.serialize_entry("payload", &OfItem { item: &**item })?;
            }
            Event::ItemDelta(delta) => {
                map.serialize_entry("payload", &OfDelta { kind: delta.kind, delta: delta.delta.as_str() })?;
            }
            Event::UsageRecorded(_, usage) => map.serialize_entry("payload", &OfUsage { usage: &**usage })?,
        }
        map.end()
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    seq: Seq,
    ts: UnixMs,
    thread_id: ThreadId,
    turn_id: Option<TurnId>,
    item_id: Option<ItemId>,
    #[serde(borrow)]
    event: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// A record in a stream in which another event than the one at `seq - 1` comes before it.
pub(crate) struct After<'a> {
    pub record: &'a Record,
    pub prev: Seq,
}

impl Serialize for After<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.record.write(self.prev, to)
    }
}

impl Record {
    /// Reads what an earlier, or this, build stored under `schema`.
    pub fn decode(schema: u8, json: &[u8]) -> Result<Self, BadRecord> {
        if schema > SCHEMA {
            return Err(BadRecord::Newer(schema));
        }
        let envelope: Envelope<'_> = serde_json::from_slice(json).map_err(|why| BadRecord::Json(why.to_string()))?;
        let event = envelope.read()?;
        Ok(Self { seq: envelope.seq, ts: envelope.ts, thread: envelope.thread_id, event })
    }
}

impl Envelope<'_> {
    fn payload<'de, T: Deserialize<'de>>(&'de self) -> Result<T, BadRecord> {
        serde_json::from_str(self.payload.get()).map_err(|why| BadRecord::Json(format!("{}: {why}", self.event)))
    }

    fn needs<T>(&self, part: Option<T>, missing: &'static str) -> Result<T, BadRecord> {
        part.ok_or_else(|| BadRecord::Incomplete { event: self.event.to_string(), missing })
    }

    fn read(&self) -> Result<Event, BadRecord> {
        let thread = || self.payload::<OfThread<Box<Thread>>>().map(|payload| payload.thread);
        let admission = || self.payload::<OfAdmission<Box<Admission>>>().map(|payload| payload.admission);
        let turn = || self.payload::<OfTurn<Box<Turn>>>().map(|payload| payload.turn);
        let item = || self.payload::<OfItem<Box<Item>>>().map(|payload| payload.item);
        Ok(match &*self.event {
            "thread.created" => Event::ThreadCreated(thread()?),
            "thread.updated" => Event::ThreadUpdated(thread()?),
            "thread.status" => Event::ThreadStatus(thread()?),
            "thread.archived" => Event::ThreadArchived(thread()?),
            "thread.deleted" => Event::ThreadDeleted(thread()?),
            "prompt.admitted" => Event::PromptAdmitted(admission()?),
            "prompt.promoted" => Event::PromptPromoted(admission()?),
            "turn.started" => Event::TurnStarted(turn()?),
            "turn.resumed" => Event::TurnResumed(turn()?),
            "turn.retrying" => Event::TurnRetrying(self.payload()?),
            "turn.interrupt_requested" => Event::TurnInterruptRequested(turn()?),
            "turn.completed" => Event::TurnCompleted(turn()?),
            "item.started" => Event::ItemStarted(item()?),
            "item.delta" => {
                let OfDelta { kind, delta } = self.payload()?;
                let turn = self.needs(self.turn_id, "turn")?;
                let item = self.needs(self.item_id, "item")?;
                Event::ItemDelta(ItemDelta { turn, item, kind, delta })
            }
            "item.completed" => Event::ItemCompleted(item()?),
            "usage.recorded" => {
                let OfUsage { usage } = self.payload()?;
                Event::UsageRecorded(self.needs(self.turn_id, "turn")?, usage)
            }
            unknown => return Err(BadRecord::Unknown(unknown.to_owned())),
        })
    }
}
