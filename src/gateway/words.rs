//! Events as the OpenAPI document describes them: for every shape of a payload the names that have it.
//!
//! Only described here, never made: what is sent are the stored bytes. So that the description stays true, a test holds
//! its names against the words that there are, and `tests/clients.rs` real events against the whole of it.

#![expect(dead_code, reason = "these types describe what others write")]

use raddle_domain::{
    budget::BudgetState,
    event::Reserved,
    id::{ItemId, JobId, RunId, ScheduleId, Seq, ThreadId, TurnId},
    job::Job,
    record::{
        Admission, Approval, Checkpoint, Compaction, DecidedBy, Decision, Effect, Item, ItemKind, Question, Thread,
        Turn, TurnError, TurnStatus, UsageEntry,
    },
    run::{Run, RunStatus},
    schedule::{Schedule, Skipped},
    time::UnixMs,
};
use utoipa::{
    ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

/// Each record of a thread's log, with its names and its payload.
macro_rules! records {
    ($($(#[doc = $doc:literal])* $record:ident [$($name:literal)+] $payload:ident {
        $($(#[$about:meta])* $field:ident: $of:ty,)+
    })+) => {
        /// One event of a thread's log. What `payload` holds follows from `event`. More names may come.
        #[derive(ToSchema)]
        #[serde(untagged)]
        pub enum EventRecord { $($record($record),)+ }

        $(
            $(#[doc = $doc])*
            #[derive(ToSchema)]
            pub struct $record {
                pub seq: Seq,
                /// The `seq` before this one, as far as this reader is told; 0 for the first.
                pub prev: Seq,
                pub ts: UnixMs,
                pub thread_id: ThreadId,
                pub turn_id: Option<TurnId>,
                pub item_id: Option<ItemId>,
                #[schema(schema_with = $payload::names)]
                pub event: String,
                pub payload: $payload,
            }

            #[derive(ToSchema)]
            pub struct $payload { $($(#[$about])* pub $field: $of,)+ }

            impl $payload {
                fn names() -> Object { names(&[$($name),+]) }
            }
        )+
    };
}

records! {
    /// Something about a thread as a whole.
    ThreadEvent ["thread.created" "thread.updated" "thread.status" "thread.archived" "thread.forked" "thread.deleted"]
    ThreadPayload { thread: Thread, }
    /// A prompt that waits, or waits no more.
    PromptEvent ["prompt.admitted" "prompt.promoted" "prompt.withdrawn" "prompt.not_delivered"]
    PromptPayload { admission: Admission, }
    /// A prompt that waits was changed.
    PromptEdited ["prompt.edited"]
    PromptEditedPayload {
        admission: Admission,
        /// Its place in the inbox, from 0.
        position: u32,
    }
    /// A turn begins, or goes on.
    TurnEvent ["turn.started" "turn.resumed" "turn.steered" "turn.interrupt_requested"]
    TurnPayload { turn: Turn, }
    /// A turn has ended, or is no longer part of the conversation.
    TurnEnded ["turn.completed" "turn.rolled_back"]
    TurnEndedPayload { turn: Turn, status: TurnStatus, }
    /// A model call failed in a way that another try may mend.
    TurnRetrying ["turn.retrying"]
    TurnRetryingPayload {
        turn: Turn,
        /// The attempt that failed, from 1.
        attempt: u32,
        max_attempts: u32,
        retry_at: UnixMs,
        error: TurnError,
    }
    /// An item begins or ends.
    ItemEvent ["item.started" "item.completed"]
    ItemPayload { item: Item, }
    /// Text to append to the `detail` of an item.
    ItemDelta ["item.delta"]
    ItemDeltaPayload { kind: ItemKind, delta: String, }
    /// What a model call took.
    UsageRecorded ["usage.recorded"]
    UsagePayload { usage: UsageEntry, }
    /// A model call that is held to a budget, and what it may cost until it is settled.
    BudgetReserved ["budget.reserved"]
    BudgetReservedPayload { reserved: Reserved, }
    /// A budget comes to its end, or is there.
    BudgetEvent ["budget.warning" "budget.exceeded"]
    BudgetPayload { budget: BudgetState, }
    /// Somebody has to decide, or need not any more.
    ApprovalEvent ["approval.required" "approval.expired" "approval.cancelled"]
    ApprovalPayload { approval: Approval, }
    /// Somebody, or a rule, has decided.
    ApprovalDecided ["approval.decided"]
    ApprovalDecidedPayload { approval: Approval, decision: Option<Decision>, by: Option<DecidedBy>, }
    /// A question to a person.
    QuestionEvent ["question.asked" "question.answered" "question.expired" "question.cancelled"]
    QuestionPayload { question: Question, }
    /// What a tool is about to do, or did.
    EffectEvent ["effect.intended" "effect.started" "effect.settled" "effect.uncertain" "effect.reconciled"]
    EffectPayload { effect: Effect, }
    /// The conversation is shortened.
    CompactionEvent ["compaction.started" "compaction.completed" "compaction.failed"]
    CompactionPayload { compaction: Compaction, }
    /// A named place in the log.
    CheckpointEvent ["checkpoint.saved" "checkpoint.deleted"]
    CheckpointPayload { checkpoint: Checkpoint, }
}

/// One event of a tenant: of a thread, a job, a schedule or a run.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum TenantEventRecord {
    Thread(EventRecord),
    Job(JobEvent),
    Schedule(ScheduleEvent),
    Run(RunEvent),
}

/// Something that happened to a job.
#[derive(ToSchema)]
pub struct JobEvent {
    pub seq: Seq,
    pub prev: Seq,
    pub ts: UnixMs,
    pub job_id: JobId,
    #[schema(schema_with = JobPayload::names)]
    pub event: String,
    pub payload: JobPayload,
}

#[derive(ToSchema)]
pub struct JobPayload {
    pub job: Job,
}

impl JobPayload {
    fn names() -> Object {
        names(&[
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
        ])
    }
}

/// Something that happened to a schedule. `schedule.fired` stands in the log of its job.
#[derive(ToSchema)]
pub struct ScheduleEvent {
    pub seq: Seq,
    pub prev: Seq,
    pub ts: UnixMs,
    pub schedule_id: ScheduleId,
    pub job_id: Option<JobId>,
    #[schema(schema_with = SchedulePayload::names)]
    pub event: String,
    pub payload: SchedulePayload,
}

#[derive(ToSchema)]
pub struct SchedulePayload {
    pub schedule: Schedule,
    pub job_id: Option<JobId>,
    pub slot: Option<UnixMs>,
    pub reason: Option<Skipped>,
    pub count: Option<u64>,
}

impl SchedulePayload {
    fn names() -> Object {
        names(&["schedule.created", "schedule.updated", "schedule.fired", "schedule.skipped", "schedule.deleted"])
    }
}

/// Something that happened to a run.
#[derive(ToSchema)]
pub struct RunEvent {
    pub seq: Seq,
    pub prev: Seq,
    pub ts: UnixMs,
    pub run_id: RunId,
    pub event_id: String,
    pub revision: u64,
    /// The run's, after it.
    pub status: RunStatus,
    /// `client`, `runtime`, `agent:…`.
    pub by: String,
    pub step_id: Option<String>,
    pub task_id: Option<String>,
    /// Clients have names of their own.
    #[schema(example = "context.task.claimed")]
    pub event: String,
    #[schema(value_type = Object)]
    pub payload: serde_json::Value,
    /// The run after it, where it changed.
    pub run: Option<Run>,
}

fn names(words: &[&'static str]) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.iter().copied())).build()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn every_word_of_a_log_is_described_once() {
        let document: Value = serde_json::from_str(&crate::gateway::openapi().unwrap()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut described: Vec<_> = schemas
            .iter()
            .filter(|(_, schema)| schema["properties"]["payload"]["$ref"].is_string())
            .flat_map(|(_, schema)| schema["properties"]["event"]["enum"].as_array().cloned().unwrap_or_default())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        described.sort();
        let mut words = raddle_domain::event::names().to_vec();
        words.sort_unstable();
        assert_eq!(described, words);
    }
}
