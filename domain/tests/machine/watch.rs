//! What must hold of any log, whatever led to it, checked event by event.

use std::collections::BTreeMap;

use raddle_domain::{
    event::{Event, Record},
    id::{ApprovalId, InputId, ItemId, OperationId, QuestionId, Seq, TurnId},
    record::{
        ApprovalStatus, DecidedBy, Delivery, Effect, EffectClass, EffectStatus, QuestionStatus, Resolution, TurnStatus,
    },
};

/// What a log has said so far.
#[derive(Debug, Default)]
pub struct Watch {
    seq: Seq,
    open: Option<TurnId>,
    pub ended: Vec<(TurnId, TurnStatus)>,
    pub undone: Vec<TurnId>,
    items: BTreeMap<ItemId, (TurnId, bool)>,
    pub approvals: BTreeMap<ApprovalId, (TurnId, ApprovalStatus)>,
    pub questions: BTreeMap<QuestionId, (TurnId, QuestionStatus)>,
    pub effects: BTreeMap<OperationId, Effect>,
    /// Starts of each effect, and words of a person that allowed another.
    starts: BTreeMap<OperationId, (u32, u32)>,
    compacting: bool,
    queue: Vec<InputId>,
    steers: Vec<InputId>,
}

/// Whether nothing may follow.
fn is_over(effect: &Effect) -> bool {
    effect.status == EffectStatus::Settled || effect.closed
}

impl Watch {
    pub fn of(log: &[Record]) -> Self {
        let mut watch = Self::default();
        log.iter().for_each(|record| watch.see(record));
        watch
    }

    pub fn see(&mut self, record: &Record) {
        assert_eq!(record.seq, self.seq + 1, "a hole in the log");
        self.seq = record.seq;
        let (event, name) = (&record.event, record.event.name());
        if let Some(turn) = event.turn_id() {
            let over = self.ended.iter().any(|(ended, _)| *ended == turn);
            assert_eq!(over, matches!(event, Event::TurnRolledBack(_)), "{name} of a turn that ended, or did not");
        }
        match event {
            Event::ThreadForked(_) => {
                self.queue.clear();
                assert_eq!(self.open, None);
            }
            Event::TurnStarted(turn) => assert_eq!(self.open.replace(turn.id), None, "two turns are open"),
            Event::TurnCompleted(turn) => {
                assert_eq!(self.open.take(), Some(turn.id));
                assert!(turn.status.is_terminal());
                let closed = self.items.values().all(|(of, over)| *of != turn.id || *over)
                    && self.approvals.values().all(|(of, status)| *of != turn.id || *status != ApprovalStatus::Pending)
                    && self.questions.values().all(|(of, status)| *of != turn.id || *status != QuestionStatus::Pending)
                    && self.effects.values().all(|effect| effect.turn_id != turn.id || is_over(effect));
                assert!(closed && !self.compacting && self.steers.is_empty(), "a turn ended with something open");
                self.ended.push((turn.id, turn.status));
            }
            Event::TurnRolledBack(turn) => {
                assert!(!self.undone.contains(&turn.id), "taken back twice");
                self.undone.push(turn.id);
            }
            Event::ItemStarted(item) => {
                assert_eq!(self.items.insert(item.id, (item.turn_id, false)), None);
            }
            Event::ItemDelta(delta) => assert_eq!(self.items[&delta.item], (delta.turn, false)),
            Event::ItemCompleted(item) => {
                assert_eq!(self.items.insert(item.id, (item.turn_id, true)), Some((item.turn_id, false)));
            }
            Event::ApprovalRequired(approval)
            | Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => {
                let before = self.approvals.insert(approval.id, (approval.turn_id, approval.status));
                let asked = !matches!(approval.by, Some(DecidedBy::Auto | DecidedBy::Session | DecidedBy::Policy));
                let pending = (approval.turn_id, ApprovalStatus::Pending);
                let expected = (asked && name != "approval.required").then_some(pending);
                assert_eq!(before, expected, "{name}: one end, and one beginning");
                if !asked {
                    self.approvals.remove(&approval.id);
                }
            }
            Event::QuestionAsked(question)
            | Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => {
                let before = self.questions.insert(question.id, (question.turn_id, question.status));
                let pending = (question.turn_id, QuestionStatus::Pending);
                assert_eq!(before, (name != "question.asked").then_some(pending), "{name}: one end, and one beginning");
            }
            Event::EffectIntended(effect) => {
                assert_eq!(self.effects.insert(effect.operation_id, (**effect).clone()), None);
            }
            Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect) => {
                let before = self.effects.insert(effect.operation_id, (**effect).clone());
                assert!(before.is_some_and(|before| !is_over(&before)), "{name} of an effect that is over");
                let (starts, retries) = self.starts.entry(effect.operation_id).or_default();
                *starts += u32::from(name == "effect.started");
                *retries += u32::from(name == "effect.reconciled" && effect.resolution == Some(Resolution::Retry));
                assert!(effect.class != EffectClass::Once || *starts <= 1 + *retries, "started twice");
                assert_eq!(effect.attempt, *starts);
            }
            Event::CompactionStarted(_) => assert!(!std::mem::replace(&mut self.compacting, true)),
            Event::CompactionCompleted(_) | Event::CompactionFailed(_) => {
                assert!(std::mem::take(&mut self.compacting));
            }
            Event::PromptAdmitted(admission) if admission.delivery == Delivery::Steer => {
                self.steers.push(admission.id);
            }
            Event::PromptAdmitted(admission) => self.queue.push(admission.id),
            Event::PromptEdited(admission, to) if admission.delivery != Delivery::Steer => {
                self.queue.retain(|id| *id != admission.id);
                self.queue.insert(*to as usize, admission.id);
            }
            Event::PromptWithdrawn(admission) => {
                self.queue.retain(|id| *id != admission.id);
                self.steers.retain(|id| *id != admission.id);
            }
            Event::PromptPromoted(admission) | Event::PromptNotDelivered(admission) => {
                let from = if admission.delivery == Delivery::Steer { &mut self.steers } else { &mut self.queue };
                assert_eq!(from.first(), Some(&admission.id), "{name} out of order");
                from.remove(0);
            }
            _ => {}
        }
    }
}
