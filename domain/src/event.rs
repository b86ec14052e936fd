//! The words of the log. Every change of a thread is one of these, and nothing else changes a thread.
//!
//! A [`Record`] is an event with its place. Its JSON is stored, streamed and paged as the same bytes:
//! `{seq, prev, ts, thread_id, turn_id?, item_id?, event, payload}`, where `prev` is the `seq` before it
//! (0 for the first). Payloads hold whole records, so the newest event about a thing says all of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, ser::SerializeMap};
use serde_json::value::RawValue;

use crate::{
    budget::BudgetState,
    id::{ItemId, Seq, ThreadId, TurnId},
    record::{
        Admission, Approval, Checkpoint, Compaction, DecidedBy, Decision, Effect, Item, ItemKind, Question, Thread,
        Turn, TurnError, TurnStatus, UsageEntry,
    },
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
    /// The first event of its own that a fork has: what comes before it is shared. No prompt waits, nothing is open.
    ThreadForked(Box<Thread>),
    /// The last word of a thread. Published, not kept: the log it would stand in is gone.
    ThreadDeleted(Box<Thread>),
    PromptAdmitted(Box<Admission>),
    PromptPromoted(Box<Admission>),
    /// A waiting prompt was changed; it now stands at this position of the inbox, from 0.
    PromptEdited(Box<Admission>, u32),
    PromptWithdrawn(Box<Admission>),
    /// A steer whose turn ends before the model could see it.
    PromptNotDelivered(Box<Admission>),
    TurnStarted(Box<Turn>),
    /// The turn goes on after the process that ran it was gone.
    TurnResumed(Box<Turn>),
    /// A model call failed in a way that another try may mend.
    TurnRetrying(Box<Retrying>),
    /// The model will see what was said meanwhile.
    TurnSteered(Box<Turn>),
    TurnInterruptRequested(Box<Turn>),
    /// The one terminal event of a turn, whatever its outcome.
    TurnCompleted(Box<Turn>),
    /// The turn, which has ended, is no longer part of the conversation.
    TurnRolledBack(Box<Turn>),
    ItemStarted(Box<Item>),
    /// Text to append to the item's `detail`.
    ItemDelta(ItemDelta),
    ItemCompleted(Box<Item>),
    UsageRecorded(TurnId, Box<UsageEntry>),
    /// What the model call that is under way has taken so far, by an estimate; both zero: it took nothing. Said of calls
    /// that are held to a budget, so that one that is lost is settled by it.
    BudgetReserved(TurnId, Reserved),
    /// So much of a budget is spent that a person should hear of it.
    BudgetWarning(TurnId, Box<BudgetState>),
    /// The model call was not made, or not to its end: there is no room for it in this budget.
    BudgetExceeded(TurnId, Box<BudgetState>),
    ApprovalRequired(Box<Approval>),
    ApprovalDecided(Box<Approval>),
    ApprovalExpired(Box<Approval>),
    ApprovalCancelled(Box<Approval>),
    QuestionAsked(Box<Question>),
    QuestionAnswered(Box<Question>),
    QuestionExpired(Box<Question>),
    QuestionCancelled(Box<Question>),
    EffectIntended(Box<Effect>),
    /// Saved before the tool is run.
    EffectStarted(Box<Effect>),
    EffectSettled(Box<Effect>),
    EffectUncertain(Box<Effect>),
    EffectReconciled(Box<Effect>),
    CompactionStarted(Box<Compaction>),
    CompactionCompleted(Box<Compaction>),
    CompactionFailed(Box<Compaction>),
    CheckpointSaved(Box<Checkpoint>),
    CheckpointDeleted(Box<Checkpoint>),
}

/// An estimate of what a model call has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reserved {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

impl Reserved {
    /// Whether the call has taken nothing: it was not made, or was turned away.
    pub const fn is_nothing(&self) -> bool {
        self.input_tokens == 0 && self.output_tokens == 0
    }
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
const NAMES: [&str; 58] = [
    "item.delta",
    "item.started",
    "item.completed",
    "turn.started",
    "turn.completed",
    "thread.status",
    "usage.recorded",
    "budget.reserved",
    "budget.warning",
    "budget.exceeded",
    "prompt.admitted",
    "prompt.promoted",
    "turn.resumed",
    "turn.retrying",
    "turn.interrupt_requested",
    "thread.created",
    "thread.updated",
    "thread.archived",
    "thread.deleted",
    "thread.forked",
    "prompt.edited",
    "prompt.withdrawn",
    "prompt.not_delivered",
    "turn.steered",
    "turn.rolled_back",
    "approval.required",
    "approval.decided",
    "approval.expired",
    "approval.cancelled",
    "question.asked",
    "question.answered",
    "question.expired",
    "question.cancelled",
    "effect.intended",
    "effect.started",
    "effect.settled",
    "effect.uncertain",
    "effect.reconciled",
    "compaction.started",
    "compaction.completed",
    "compaction.failed",
    "checkpoint.saved",
    "checkpoint.deleted",
    "job.queued",
    "job.started",
    "job.progress",
    "job.paused",
    "job.resumed",
    "job.completed",
    "job.failed",
    "job.retrying",
    "job.cancelled",
    "job.uncertain",
    "schedule.created",
    "schedule.updated",
    "schedule.fired",
    "schedule.skipped",
    "schedule.deleted",
];

/// Every word there is.
pub const fn names() -> &'static [&'static str] {
    &NAMES
}

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
            Self::ThreadForked(_) => "thread.forked",
            Self::ThreadDeleted(_) => "thread.deleted",
            Self::PromptAdmitted(_) => "prompt.admitted",
            Self::PromptPromoted(_) => "prompt.promoted",
            Self::PromptEdited(..) => "prompt.edited",
            Self::PromptWithdrawn(_) => "prompt.withdrawn",
            Self::PromptNotDelivered(_) => "prompt.not_delivered",
            Self::TurnStarted(_) => "turn.started",
            Self::TurnResumed(_) => "turn.resumed",
            Self::TurnRetrying(_) => "turn.retrying",
            Self::TurnSteered(_) => "turn.steered",
            Self::TurnInterruptRequested(_) => "turn.interrupt_requested",
            Self::TurnCompleted(_) => "turn.completed",
            Self::TurnRolledBack(_) => "turn.rolled_back",
            Self::ItemStarted(_) => "item.started",
            Self::ItemDelta(_) => "item.delta",
            Self::ItemCompleted(_) => "item.completed",
            Self::UsageRecorded(..) => "usage.recorded",
            Self::BudgetReserved(..) => "budget.reserved",
            Self::BudgetWarning(..) => "budget.warning",
            Self::BudgetExceeded(..) => "budget.exceeded",
            Self::ApprovalRequired(_) => "approval.required",
            Self::ApprovalDecided(_) => "approval.decided",
            Self::ApprovalExpired(_) => "approval.expired",
            Self::ApprovalCancelled(_) => "approval.cancelled",
            Self::QuestionAsked(_) => "question.asked",
            Self::QuestionAnswered(_) => "question.answered",
            Self::QuestionExpired(_) => "question.expired",
            Self::QuestionCancelled(_) => "question.cancelled",
            Self::EffectIntended(_) => "effect.intended",
            Self::EffectStarted(_) => "effect.started",
            Self::EffectSettled(_) => "effect.settled",
            Self::EffectUncertain(_) => "effect.uncertain",
            Self::EffectReconciled(_) => "effect.reconciled",
            Self::CompactionStarted(_) => "compaction.started",
            Self::CompactionCompleted(_) => "compaction.completed",
            Self::CompactionFailed(_) => "compaction.failed",
            Self::CheckpointSaved(_) => "checkpoint.saved",
            Self::CheckpointDeleted(_) => "checkpoint.deleted",
        }
    }

    /// The turn it is about.
    pub fn turn_id(&self) -> Option<TurnId> {
        match self {
            Self::ThreadCreated(_)
            | Self::ThreadUpdated(_)
            | Self::ThreadStatus(_)
            | Self::ThreadArchived(_)
            | Self::ThreadForked(_)
            | Self::ThreadDeleted(_)
            | Self::CheckpointSaved(_)
            | Self::CheckpointDeleted(_) => None,
            Self::PromptAdmitted(admission)
            | Self::PromptPromoted(admission)
            | Self::PromptEdited(admission, _)
            | Self::PromptWithdrawn(admission)
            | Self::PromptNotDelivered(admission) => admission.turn_id,
            Self::TurnStarted(turn)
            | Self::TurnResumed(turn)
            | Self::TurnSteered(turn)
            | Self::TurnInterruptRequested(turn)
            | Self::TurnCompleted(turn)
            | Self::TurnRolledBack(turn) => Some(turn.id),
            Self::TurnRetrying(retrying) => Some(retrying.turn.id),
            Self::ItemStarted(item) | Self::ItemCompleted(item) => Some(item.turn_id),
            Self::ItemDelta(delta) => Some(delta.turn),
            Self::UsageRecorded(turn, _)
            | Self::BudgetReserved(turn, _)
            | Self::BudgetWarning(turn, _)
            | Self::BudgetExceeded(turn, _) => Some(*turn),
            Self::ApprovalRequired(approval)
            | Self::ApprovalDecided(approval)
            | Self::ApprovalExpired(approval)
            | Self::ApprovalCancelled(approval) => Some(approval.turn_id),
            Self::QuestionAsked(question)
            | Self::QuestionAnswered(question)
            | Self::QuestionExpired(question)
            | Self::QuestionCancelled(question) => Some(question.turn_id),
            Self::EffectIntended(effect)
            | Self::EffectStarted(effect)
            | Self::EffectSettled(effect)
            | Self::EffectUncertain(effect)
            | Self::EffectReconciled(effect) => Some(effect.turn_id),
            Self::CompactionStarted(compaction)
            | Self::CompactionCompleted(compaction)
            | Self::CompactionFailed(compaction) => Some(compaction.turn_id),
        }
    }

    /// The item it is about.
    pub fn item_id(&self) -> Option<ItemId> {
        match self {
            Self::ItemStarted(item) | Self::ItemCompleted(item) => Some(item.id),
            Self::ItemDelta(delta) => Some(delta.item),
            Self::ApprovalRequired(approval)
            | Self::ApprovalDecided(approval)
            | Self::ApprovalExpired(approval)
            | Self::ApprovalCancelled(approval) => Some(approval.item_id),
            Self::QuestionAsked(question)
            | Self::QuestionAnswered(question)
            | Self::QuestionExpired(question)
            | Self::QuestionCancelled(question) => Some(question.item_id),
            Self::EffectIntended(effect)
            | Self::EffectStarted(effect)
            | Self::EffectSettled(effect)
            | Self::EffectUncertain(effect)
            | Self::EffectReconciled(effect) => Some(effect.item_id),
            Self::CompactionCompleted(compaction) => compaction.item_id,
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
#[derive(Serialize, Deserialize)]
struct OfReserved<T> {
    reserved: T,
}
#[derive(Serialize, Deserialize)]
struct OfBudget<T> {
    budget: T,
}
#[derive(Serialize, Deserialize)]
struct OfEdit<T> {
    admission: T,
    position: u32,
}
#[derive(Serialize, Deserialize)]
struct OfApproval<T> {
    approval: T,
}
#[derive(Serialize)]
struct OfDecision<'a> {
    approval: &'a Approval,
    decision: Option<Decision>,
    by: Option<DecidedBy>,
}
#[derive(Serialize, Deserialize)]
struct OfQuestion<T> {
    question: T,
}
#[derive(Serialize, Deserialize)]
struct OfEffect<T> {
    effect: T,
}
#[derive(Serialize, Deserialize)]
struct OfCompaction<T> {
    compaction: T,
}
#[derive(Serialize, Deserialize)]
struct OfCheckpoint<T> {
    checkpoint: T,
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
            | Event::ThreadForked(thread)
            | Event::ThreadDeleted(thread) => map.serialize_entry("payload", &OfThread { thread: &**thread })?,
            Event::PromptAdmitted(admission)
            | Event::PromptPromoted(admission)
            | Event::PromptWithdrawn(admission)
            | Event::PromptNotDelivered(admission) => {
                map.serialize_entry("payload", &OfAdmission { admission: &**admission })?;
            }
            Event::PromptEdited(admission, position) => {
                map.serialize_entry("payload", &OfEdit { admission: &**admission, position: *position })?;
            }
            Event::TurnStarted(turn)
            | Event::TurnResumed(turn)
            | Event::TurnSteered(turn)
            | Event::TurnInterruptRequested(turn) => map.serialize_entry("payload", &OfTurn { turn: &**turn })?,
            Event::TurnRetrying(retrying) => map.serialize_entry("payload", &**retrying)?,
            Event::TurnCompleted(turn) | Event::TurnRolledBack(turn) => {
                map.serialize_entry("payload", &OfEnd { turn, status: turn.status })?;
            }
            Event::ItemStarted(item) | Event::ItemCompleted(item) => {
                map.serialize_entry("payload", &OfItem { item: &**item })?;
            }
            Event::ItemDelta(delta) => {
                map.serialize_entry("payload", &OfDelta { kind: delta.kind, delta: delta.delta.as_str() })?;
            }
            Event::UsageRecorded(_, usage) => map.serialize_entry("payload", &OfUsage { usage: &**usage })?,
            Event::BudgetReserved(_, reserved) => {
                map.serialize_entry("payload", &OfReserved { reserved: *reserved })?;
            }
            Event::BudgetWarning(_, budget) | Event::BudgetExceeded(_, budget) => {
                map.serialize_entry("payload", &OfBudget { budget: &**budget })?;
            }
            Event::ApprovalDecided(approval) => {
                let (decision, by) = (approval.decision, approval.by);
                map.serialize_entry("payload", &OfDecision { approval, decision, by })?;
            }
            Event::ApprovalRequired(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => {
                map.serialize_entry("payload", &OfApproval { approval: &**approval })?;
            }
            Event::QuestionAsked(question)
            | Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => {
                map.serialize_entry("payload", &OfQuestion { question: &**question })?;
            }
            Event::EffectIntended(effect)
            | Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect) => {
                map.serialize_entry("payload", &OfEffect { effect: &**effect })?;
            }
            Event::CompactionStarted(compaction)
            | Event::CompactionCompleted(compaction)
            | Event::CompactionFailed(compaction) => {
                map.serialize_entry("payload", &OfCompaction { compaction: &**compaction })?;
            }
            Event::CheckpointSaved(checkpoint) | Event::CheckpointDeleted(checkpoint) => {
                map.serialize_entry("payload", &OfCheckpoint { checkpoint: &**checkpoint })?;
            }
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
        if envelope.seq == 0 {
            return Err(BadRecord::Json("the seqs of a log begin with 1".to_owned()));
        }
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
        let approval = || self.payload::<OfApproval<Box<Approval>>>().map(|payload| payload.approval);
        let question = || self.payload::<OfQuestion<Box<Question>>>().map(|payload| payload.question);
        let effect = || self.payload::<OfEffect<Box<Effect>>>().map(|payload| payload.effect);
        let compaction = || self.payload::<OfCompaction<Box<Compaction>>>().map(|payload| payload.compaction);
        let checkpoint = || self.payload::<OfCheckpoint<Box<Checkpoint>>>().map(|payload| payload.checkpoint);
        Ok(match &*self.event {
            "thread.created" => Event::ThreadCreated(thread()?),
            "thread.updated" => Event::ThreadUpdated(thread()?),
            "thread.status" => Event::ThreadStatus(thread()?),
            "thread.archived" => Event::ThreadArchived(thread()?),
            "thread.forked" => Event::ThreadForked(thread()?),
            "thread.deleted" => Event::ThreadDeleted(thread()?),
            "prompt.admitted" => Event::PromptAdmitted(admission()?),
            "prompt.promoted" => Event::PromptPromoted(admission()?),
            "prompt.edited" => {
                let OfEdit { admission, position } = self.payload()?;
                Event::PromptEdited(admission, position)
            }
            "prompt.withdrawn" => Event::PromptWithdrawn(admission()?),
            "prompt.not_delivered" => Event::PromptNotDelivered(admission()?),
            "turn.started" => Event::TurnStarted(turn()?),
            "turn.resumed" => Event::TurnResumed(turn()?),
            "turn.retrying" => Event::TurnRetrying(self.payload()?),
            "turn.steered" => Event::TurnSteered(turn()?),
            "turn.interrupt_requested" => Event::TurnInterruptRequested(turn()?),
            "turn.completed" => Event::TurnCompleted(turn()?),
            "turn.rolled_back" => Event::TurnRolledBack(turn()?),
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
            "budget.reserved" => {
                let OfReserved { reserved } = self.payload()?;
                Event::BudgetReserved(self.needs(self.turn_id, "turn")?, reserved)
            }
            "budget.warning" | "budget.exceeded" => {
                let OfBudget { budget } = self.payload()?;
                let turn = self.needs(self.turn_id, "turn")?;
                match &*self.event {
                    "budget.warning" => Event::BudgetWarning(turn, budget),
                    _ => Event::BudgetExceeded(turn, budget),
                }
            }
            "approval.required" => Event::ApprovalRequired(approval()?),
            "approval.decided" => Event::ApprovalDecided(approval()?),
            "approval.expired" => Event::ApprovalExpired(approval()?),
            "approval.cancelled" => Event::ApprovalCancelled(approval()?),
            "question.asked" => Event::QuestionAsked(question()?),
            "question.answered" => Event::QuestionAnswered(question()?),
            "question.expired" => Event::QuestionExpired(question()?),
            "question.cancelled" => Event::QuestionCancelled(question()?),
            "effect.intended" => Event::EffectIntended(effect()?),
            "effect.started" => Event::EffectStarted(effect()?),
            "effect.settled" => Event::EffectSettled(effect()?),
            "effect.uncertain" => Event::EffectUncertain(effect()?),
            "effect.reconciled" => Event::EffectReconciled(effect()?),
            "compaction.started" => Event::CompactionStarted(compaction()?),
            "compaction.completed" => Event::CompactionCompleted(compaction()?),
            "compaction.failed" => Event::CompactionFailed(compaction()?),
            "checkpoint.saved" => Event::CheckpointSaved(checkpoint()?),
            "checkpoint.deleted" => Event::CheckpointDeleted(checkpoint()?),
            unknown => return Err(BadRecord::Unknown(unknown.to_owned())),
        })
    }
}
