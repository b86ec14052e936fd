//! The replies to requests that named an idempotency key.
//!
//! A thread's receipt says where in its log the reply stands, not what it says: so it is small, and nothing of a
//! thread outlives its deletion.

use std::time::Duration;

use raddle_domain::{
    command::Reply,
    event::{Event, Record},
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Receipt, StoreError, View},
    record::{Effect, EffectStatus, InterruptReceipt},
    thread::Step,
    time::UnixMs,
};
use serde::{Deserialize, Serialize};

use crate::disk;

/// How long a reply can be repeated.
pub(crate) const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// The digests by which a repeated request is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// SHA-256 over method, route and the caller's key.
    pub key: [u8; 32],
    /// SHA-256 over the request's path and body.
    pub request: [u8; 32],
}

/// What a receipt of a thread holds.
#[derive(Debug, Serialize, Deserialize)]
struct Stub {
    thread: ThreadId,
    /// Where the log ended with the step.
    seq: Seq,
    /// The event that holds the reply.
    event: Seq,
    /// Of a queued prompt: the turn that it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    active_turn: Option<TurnId>,
}

/// A reply of before.
pub(crate) struct Recalled<R> {
    pub reply: R,
    pub seq: Seq,
}

/// A receipt that holds `reply`.
pub(crate) fn of(known: Idempotency, reply: Vec<u8>, now: UnixMs) -> Receipt {
    Receipt { key: known.key, request: known.request, reply, expires_at: now.after(LIFE) }
}

/// The receipt of a thread's step.
pub(crate) fn write(known: Idempotency, thread: ThreadId, step: &Step, now: UnixMs) -> Receipt {
    let holds = |record: &&Record| holds_reply(&record.event, &step.reply);
    let last = step.records.last().map_or(0, |record| record.seq);
    let active_turn = match &step.reply {
        Reply::Queued { active_turn, .. } => Some(*active_turn),
        _ => None,
    };
    let event = step.records.iter().find(holds).map_or(last, |record| record.seq);
    of(known, disk::json(&Stub { thread, seq: last, event, active_turn }), now)
}

fn holds_reply(event: &Event, reply: &Reply) -> bool {
    match reply {
        Reply::Thread(_) => {
            matches!(
                event,
                Event::ThreadCreated(_) | Event::ThreadForked(_) | Event::ThreadUpdated(_) | Event::ThreadArchived(_)
            )
        }
        Reply::Started(_) => matches!(event, Event::TurnStarted(_)),
        Reply::Queued { .. } => matches!(event, Event::PromptAdmitted(_)),
        Reply::Interrupted(_) => matches!(event, Event::TurnCompleted(_)),
        Reply::Admission(..) => matches!(event, Event::PromptEdited(..)),
        Reply::Withdrawn => matches!(event, Event::PromptWithdrawn(_)),
        Reply::Approval(_) => matches!(event, Event::ApprovalDecided(_)),
        Reply::Question(_) => matches!(event, Event::QuestionAnswered(_)),
        Reply::Effect(_) => matches!(event, Event::EffectReconciled(_)),
        Reply::Checkpoint(_) => matches!(event, Event::CheckpointSaved(_)),
        Reply::Deleted | Reply::Noted => false,
    }
}

/// The reply that a thread's receipt leads to; `None` when the thread is gone.
pub(crate) fn read(
    view: &dyn View,
    tenant: TenantId,
    receipt: &Receipt,
) -> Result<Option<Recalled<Reply>>, StoreError> {
    let broken = |why: String| raddle_domain::ports::Corrupt { record: format!("a receipt of {tenant}"), why };
    let stub: Stub = serde_json::from_slice(&receipt.reply).map_err(|why| broken(why.to_string()))?;
    let key = ThreadKey { tenant, thread: stub.thread };
    let Some(stored) = view.event(key, stub.event)? else { return Ok(None) };
    let reply = match disk::decode(key, stub.event, &stored)?.event {
        Event::ThreadCreated(thread)
        | Event::ThreadForked(thread)
        | Event::ThreadUpdated(thread)
        | Event::ThreadArchived(thread) => Reply::Thread(thread),
        Event::TurnStarted(turn) => Reply::Started(turn),
        Event::PromptAdmitted(admission) => {
            let active_turn = stub.active_turn.ok_or_else(|| broken("it names no turn".to_owned()))?;
            Reply::Queued { admission, active_turn }
        }
        Event::TurnCompleted(turn) => {
            let effects = effects(view, key, turn.id, stub.event)?;
            Reply::Interrupted(Box::new(InterruptReceipt { turn: *turn, ended_seq: stub.event, effects }))
        }
        Event::PromptEdited(admission, position) => Reply::Admission(admission, position),
        Event::PromptWithdrawn(_) => Reply::Withdrawn,
        Event::ApprovalDecided(approval) => Reply::Approval(approval),
        Event::QuestionAnswered(question) => Reply::Question(question),
        Event::EffectReconciled(effect) => Reply::Effect(effect),
        Event::CheckpointSaved(checkpoint) => Reply::Checkpoint(checkpoint),
        other => return Err(broken(format!("it leads to {}", other.name())).into()),
    };
    Ok(Some(Recalled { reply, seq: stub.seq }))
}

/// Every effect that a turn had started, as it was when the turn ended at `ended`, in the order in which they ended.
fn effects(view: &dyn View, key: ThreadKey, turn: TurnId, ended: Seq) -> Result<Vec<Effect>, StoreError> {
    let Some(settled) = view.turn(key, turn)? else { return Ok(Vec::new()) };
    let mut effects: Vec<Effect> = Vec::new();
    let mut after = settled.started_seq;
    while after < ended {
        let chunks = view.events(key, after, 1_000, 1024 * 1024)?;
        let Some(last) = chunks.last() else { break };
        after = last.last();
        for record in disk::records(key, &chunks) {
            let record = record?;
            let (Event::EffectSettled(effect) | Event::EffectUncertain(effect) | Event::EffectReconciled(effect)) =
                record.event
            else {
                continue;
            };
            let is_over = effect.closed || effect.status == EffectStatus::Settled;
            if is_over && effect.attempt > 0 && record.seq < ended {
                effects.push(*effect);
            }
        }
    }
    Ok(effects)
}
