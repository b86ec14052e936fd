//! What must hold of every log, whatever led to it, told event by event. It shares no code with the machine: it is the
//! second opinion that replay, simulation, stress and tests ask for.
//!
//! The log is dense; one turn is open at most, and everything of a turn is inside it; turns, items, approvals, questions
//! and effects begin once and end once, and nothing outlives its turn; an effect of class `once` is started once for
//! each word of a person; prompts leave the inbox once, in its order.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::{
    event::{Event, Record},
    id::{ApprovalId, InputId, ItemId, OperationId, QuestionId, Seq, TurnId},
    record::{
        ApprovalStatus, DecidedBy, Delivery, Effect, EffectClass, EffectStatus, QuestionStatus, Resolution, TurnStatus,
    },
};

/// What a log has said so far.
#[derive(Debug, Clone, Default)]
pub struct Sound {
    seq: Seq,
    /// Whether deltas may have been joined: then the seqs before a delta may be missing.
    packed: bool,
    open: Option<TurnId>,
    ended: Vec<(TurnId, TurnStatus)>,
    /// The same, to be found.
    over: BTreeSet<TurnId>,
    undone: Vec<TurnId>,
    items: BTreeSet<ItemId>,
    /// What began and did not end, by what it is: its turn has to outlive it.
    live: BTreeMap<(&'static str, Uuid), TurnId>,
    approvals: BTreeMap<ApprovalId, (TurnId, ApprovalStatus)>,
    questions: BTreeMap<QuestionId, (TurnId, QuestionStatus)>,
    effects: BTreeMap<OperationId, Effect>,
    /// Starts of each effect, and words of a person that allowed another.
    starts: BTreeMap<OperationId, (u32, u32)>,
    compacting: bool,
    queue: Vec<InputId>,
    steers: Vec<InputId>,
}

/// A log that cannot be right, and since when.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {seq}, {event}: {why}")]
pub struct Unsound {
    pub seq: Seq,
    pub event: &'static str,
    pub why: String,
}

/// Whether nothing may follow.
fn is_over(effect: &Effect) -> bool {
    effect.status == EffectStatus::Settled || effect.closed
}

fn must(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

impl Sound {
    /// For a log whose deltas may have been joined since.
    pub fn packed() -> Self {
        Self { packed: true, ..Self::default() }
    }

    /// Reads a whole log.
    pub fn of<'a>(log: impl IntoIterator<Item = &'a Record>) -> Result<Self, Unsound> {
        let mut sound = Self::default();
        log.into_iter().try_for_each(|record| sound.see(record))?;
        Ok(sound)
    }

    /// Reads the next event.
    pub fn see(&mut self, record: &Record) -> Result<(), Unsound> {
        self.judge(record).map_err(|why| Unsound { seq: record.seq, event: record.event.name(), why })?;
        self.seq = record.seq;
        Ok(())
    }

    /// Whether the log may end here, if nothing is under way.
    pub fn rests(&self) -> Result<(), Unsound> {
        let why = match (&self.open, self.compacting) {
            (Some(turn), _) => format!("the turn {turn} did not end"),
            (None, true) => "a compaction did not end".to_owned(),
            (None, false) => return Ok(()),
        };
        Err(Unsound { seq: self.seq, event: "the end", why })
    }

    /// The newest event.
    pub const fn seq(&self) -> Seq {
        self.seq
    }

    /// Turns that ended, in that order.
    pub fn ended(&self) -> &[(TurnId, TurnStatus)] {
        &self.ended
    }

    /// Turns that were taken back, in that order.
    pub fn undone(&self) -> &[TurnId] {
        &self.undone
    }

    /// The approvals that somebody was asked for.
    pub const fn approvals(&self) -> &BTreeMap<ApprovalId, (TurnId, ApprovalStatus)> {
        &self.approvals
    }

    pub const fn questions(&self) -> &BTreeMap<QuestionId, (TurnId, QuestionStatus)> {
        &self.questions
    }

    /// Every effect as the log left it.
    pub const fn effects(&self) -> &BTreeMap<OperationId, Effect> {
        &self.effects
    }

    /// Prompts that wait for a turn of their own, next first.
    pub fn queue(&self) -> &[InputId] {
        &self.queue
    }

    fn judge(&mut self, record: &Record) -> Result<(), String> {
        let event = &record.event;
        let joined = self.packed && record.seq > self.seq && matches!(event, Event::ItemDelta(_));
        must(record.seq == self.seq + 1 || joined, || format!("a hole in the log, which was at {}", self.seq))?;
        self.place(event)?;
        match event {
            Event::ThreadForked(_) => {
                self.queue.clear();
                must(self.open.is_none(), || "a fork begins in a turn".to_owned())
            }
            Event::TurnStarted(turn) => match self.open.replace(turn.id) {
                None => Ok(()),
                Some(other) => Err(format!("the turn {other} is open")),
            },
            Event::TurnCompleted(turn) => {
                must(turn.status.is_terminal(), || "the turn has no end".to_owned())?;
                self.close(turn.id)?;
                self.ended.push((turn.id, turn.status));
                self.over.insert(turn.id);
                Ok(())
            }
            Event::TurnRolledBack(turn) => {
                must(!self.undone.contains(&turn.id), || "taken back twice".to_owned())?;
                self.undone.push(turn.id);
                Ok(())
            }
            Event::ItemStarted(item) => {
                must(self.items.insert(item.id), || format!("the item {} begins twice", item.id))?;
                self.begin("item", item.id.uuid(), item.turn_id)
            }
            Event::ItemDelta(delta) => {
                let known = self.live.get(&("item", delta.item.uuid()));
                must(known == Some(&delta.turn), || format!("the item {} is not open", delta.item))
            }
            Event::ItemCompleted(item) => self.end("item", item.id.uuid(), item.turn_id),
            Event::ApprovalRequired(approval)
            | Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => {
                let asked = !matches!(approval.by, Some(DecidedBy::Auto | DecidedBy::Session | DecidedBy::Policy));
                let begins = !asked || matches!(event, Event::ApprovalRequired(_));
                let before = self.approvals.get(&approval.id).copied();
                let pending = (approval.turn_id, ApprovalStatus::Pending);
                must(before == (!begins).then_some(pending), || {
                    format!("the approval {} begins once and ends once", approval.id)
                })?;
                match (asked, begins) {
                    (false, _) => return Ok(()),
                    (true, true) => self.begin("approval", approval.id.uuid(), approval.turn_id)?,
                    (true, false) => self.end("approval", approval.id.uuid(), approval.turn_id)?,
                }
                self.approvals.insert(approval.id, (approval.turn_id, approval.status));
                Ok(())
            }
            Event::QuestionAsked(question)
            | Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => {
                let before = self.questions.insert(question.id, (question.turn_id, question.status));
                let pending = (question.turn_id, QuestionStatus::Pending);
                let begins = matches!(event, Event::QuestionAsked(_));
                must(before == (!begins).then_some(pending), || {
                    format!("the question {} begins once and ends once", question.id)
                })?;
                if begins {
                    self.begin("question", question.id.uuid(), question.turn_id)
                } else {
                    self.end("question", question.id.uuid(), question.turn_id)
                }
            }
            Event::EffectIntended(effect) => {
                let before = self.effects.insert(effect.operation_id, (**effect).clone());
                must(before.is_none(), || format!("the effect {} is intended twice", effect.operation_id))?;
                self.begin("effect", effect.operation_id.uuid(), effect.turn_id)
            }
            Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect) => self.go_on(event, effect),
            Event::CompactionStarted(_) => {
                must(!std::mem::replace(&mut self.compacting, true), || "a compaction is under way".to_owned())
            }
            Event::CompactionCompleted(_) | Event::CompactionFailed(_) => {
                must(std::mem::take(&mut self.compacting), || "no compaction is under way".to_owned())
            }
            Event::PromptAdmitted(admission) => {
                let to = if admission.delivery == Delivery::Steer { &mut self.steers } else { &mut self.queue };
                to.push(admission.id);
                Ok(())
            }
            Event::PromptEdited(admission, to) if admission.delivery != Delivery::Steer => {
                self.leave(admission.id)?;
                self.queue.insert((*to as usize).min(self.queue.len()), admission.id);
                Ok(())
            }
            Event::PromptWithdrawn(admission) => self.leave(admission.id),
            Event::PromptPromoted(admission) | Event::PromptNotDelivered(admission) => {
                let from = if admission.delivery == Delivery::Steer { &self.steers } else { &self.queue };
                must(from.first() == Some(&admission.id), || {
                    format!("the prompt {} is not the next of the inbox", admission.id)
                })?;
                self.leave(admission.id)
            }
            _ => Ok(()),
        }
    }

    /// What is of a turn is inside it, and its reversal behind it.
    fn place(&self, event: &Event) -> Result<(), String> {
        let Some(turn) = event.turn_id() else { return Ok(()) };
        let over = self.over.contains(&turn);
        let waits = event.name().starts_with("prompt.");
        match event {
            Event::TurnStarted(_) => must(!over, || format!("the turn {turn} has ended")),
            Event::TurnRolledBack(_) => must(over, || format!("the turn {turn} has not ended")),
            // A prompt is promoted before its turn begins.
            _ if waits => must(!over, || format!("the turn {turn} has ended")),
            _ => must(self.open == Some(turn), || format!("the turn {turn} is not open")),
        }
    }

    fn close(&mut self, turn: TurnId) -> Result<(), String> {
        self.open = None;
        if let Some(((what, id), _)) = self.live.iter().find(|(_, of)| **of == turn) {
            return Err(format!("the {what} {id} is open still"));
        }
        if let Some(id) = self.steers.first() {
            return Err(format!("the steer {id} waits still"));
        }
        must(!self.compacting, || "the compaction is open still".to_owned())
    }

    /// An effect goes on that was intended.
    fn go_on(&mut self, event: &Event, effect: &Effect) -> Result<(), String> {
        let id = effect.operation_id;
        let before = self.effects.insert(id, effect.clone());
        must(before.is_some_and(|before| !is_over(&before)), || format!("the effect {id} is over, or never was"))?;
        let (starts, retries) = self.starts.entry(id).or_default();
        *starts += u32::from(matches!(event, Event::EffectStarted(_)));
        let again = matches!(event, Event::EffectReconciled(_)) && effect.resolution == Some(Resolution::Retry);
        *retries += u32::from(again);
        must(effect.class != EffectClass::Once || *starts <= 1 + *retries, || {
            format!("the effect {id} may happen once, and is started again")
        })?;
        let starts = *starts;
        must(effect.attempt == starts, || format!("the effect {id} was started {starts} times"))?;
        if is_over(effect) { self.end("effect", id.uuid(), effect.turn_id) } else { Ok(()) }
    }

    fn begin(&mut self, what: &'static str, id: Uuid, turn: TurnId) -> Result<(), String> {
        let before = self.live.insert((what, id), turn);
        must(before.is_none(), || format!("the {what} {id} begins twice"))
    }

    fn end(&mut self, what: &'static str, id: Uuid, turn: TurnId) -> Result<(), String> {
        let before = self.live.remove(&(what, id));
        must(before == Some(turn), || format!("the {what} {id} ends, and was not open"))
    }

    fn leave(&mut self, id: InputId) -> Result<(), String> {
        let waits = self.queue.contains(&id) || self.steers.contains(&id);
        self.queue.retain(|known| *known != id);
        self.steers.retain(|known| *known != id);
        must(waits, || format!("the prompt {id} does not wait"))
    }
}

#[cfg(test)]
mod tests;
