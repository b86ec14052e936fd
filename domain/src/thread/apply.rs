//! Folding events into the state: the only way in which a state changes, live or replayed.

use std::collections::VecDeque;

use super::{Last, OpenAct, OpenCall, OpenItem, OpenTurn, Queued, Settled, Snapshot, ThreadState};
use crate::{
    budget::{Amount, BudgetState, Scope},
    event::{Event, Record},
    history::AGENT,
    id::Seq,
    ports::{Reverted, Verdict},
    record::{
        Admission, Approval, ApprovalStatus, Decision, Delivery, Effect, EffectClass, EffectStatus, Item, Purpose,
        Thread, ThreadStatus, Turn, TurnKind, TurnStatus,
    },
    time::UnixMs,
};

/// Calls that a thread remembers as approved for its session; the oldest is forgotten first, and asked about again.
const GRANTS: usize = 64;

/// A log that no thread can have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {seq}: {why}")]
pub struct Impossible {
    pub seq: Seq,
    pub why: &'static str,
}

/// What an event ended for good.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ended {
    Settled(Box<Settled>),
    Reverted(Reverted),
}

impl ThreadState {
    /// A thread as its first event makes it.
    pub fn begin(first: &Record) -> Result<Self, Impossible> {
        match &first.event {
            Event::ThreadCreated(thread) if first.seq == 1 => Ok(Self::of(Thread { seq: 1, ..(**thread).clone() })),
            _ => Err(Impossible { seq: first.seq, why: "a log begins with thread.created at 1" }),
        }
    }

    /// A thread with its record and nothing else.
    pub(super) fn of(view: Thread) -> Self {
        Self {
            view,
            inbox: VecDeque::new(),
            open: None,
            last: None,
            context_seq: 0,
            context_tokens: None,
            grants: Vec::new(),
            checkpoints: Vec::new(),
            spent: Amount::default(),
            warned: Vec::new(),
        }
    }

    /// A thread as its snapshot, and the events and turns that [`Snapshot::needs`] and [`Snapshot::needs_turns`]
    /// name, make it.
    pub fn restore(snapshot: Snapshot, needed: &[Record], turns: &[Turn]) -> Result<Self, Impossible> {
        let seq = snapshot.view.seq;
        let mut inbox = VecDeque::new();
        for (index, (id, at)) in snapshot.inbox.iter().enumerate() {
            match needed.get(index).map(|record| (record.seq, &record.event)) {
                Some((found, Event::PromptAdmitted(admission) | Event::PromptEdited(admission, _)))
                    if found == *at && admission.id == *id =>
                {
                    inbox.push_back(Queued { seq: *at, admission: (**admission).clone() });
                }
                _ => return Err(Impossible { seq, why: "a waiting prompt is not where the snapshot says" }),
            }
        }
        let mut turns = turns.iter().cloned();
        let mut turn = || turns.next().ok_or(Impossible { seq, why: "the last turn is not where the snapshot says" });
        let last = match snapshot.last {
            None => None,
            Some(last) => Some(Box::new(Last {
                turn: turn()?,
                started_seq: last.started_seq,
                context_seq: last.context_seq,
                compaction: last.compaction.map(|started| Ok((turn()?, started))).transpose()?,
            })),
        };
        let Snapshot { view, context_seq, context_tokens, grants, checkpoints, spent, warned, .. } = snapshot;
        Ok(Self { inbox, last, context_seq, context_tokens, grants, checkpoints, spent, warned, ..Self::of(view) })
    }

    /// Folds the next event.
    pub fn apply(&mut self, record: &Record) -> Result<(), Impossible> {
        self.fold(record).map(|_| ())
    }

    /// Folds the next event, and says what it ended.
    pub(super) fn fold(&mut self, record: &Record) -> Result<Option<Ended>, Impossible> {
        let impossible = |why| Impossible { seq: record.seq, why };
        if record.seq != self.view.seq + 1 {
            return Err(impossible("not the seq after the last"));
        }
        let mut ended = None;
        match &record.event {
            Event::ThreadCreated(_) => return Err(impossible("a thread is created once")),
            Event::ThreadUpdated(thread)
            | Event::ThreadStatus(thread)
            | Event::ThreadArchived(thread)
            | Event::ThreadDeleted(thread) => self.view = (**thread).clone(),
            Event::ThreadForked(thread) => {
                if self.open.is_some() {
                    return Err(impossible("a fork begins where no turn is open"));
                }
                let Self { last, context_seq, .. } = self;
                *self = Self { last: last.take(), context_seq: *context_seq, ..Self::of((**thread).clone()) };
            }
            Event::PromptAdmitted(admission) => {
                let queued = Queued { seq: record.seq, admission: (**admission).clone() };
                match &mut self.open {
                    _ if admission.delivery != Delivery::Steer => self.inbox.push_back(queued),
                    Some(open) => open.steers.push_back(queued),
                    None => return Err(impossible("no turn is open that could be steered")),
                }
            }
            Event::PromptPromoted(admission)
            | Event::PromptWithdrawn(admission)
            | Event::PromptNotDelivered(admission) => {
                self.take(admission).ok_or_else(|| impossible("the prompt does not wait"))?;
            }
            Event::PromptEdited(admission, position) => {
                let queued = Queued { seq: record.seq, admission: (**admission).clone() };
                if admission.delivery == Delivery::Steer {
                    let steers = self.open.iter_mut().flat_map(|open| &mut open.steers);
                    let mut steers = steers.filter(|known| known.admission.id == admission.id);
                    *steers.next().ok_or_else(|| impossible("the edited prompt does not wait"))? = queued;
                } else {
                    self.take(admission).ok_or_else(|| impossible("the edited prompt does not wait"))?;
                    self.inbox.insert((*position as usize).min(self.inbox.len()), queued);
                }
            }
            Event::TurnStarted(turn) => {
                if self.open.is_some() {
                    return Err(impossible("another turn is open"));
                }
                self.open = Some(Box::new(OpenTurn::begin((**turn).clone(), record.seq, self.context_seq)));
                self.view.updated_at = record.ts;
            }
            Event::TurnCompleted(turn) => {
                let open = self.open.take().ok_or_else(|| impossible("no turn is open"))?;
                if open.turn.id != turn.id {
                    return Err(impossible("another turn is open"));
                }
                let items: Option<Vec<Seq>> = open.items.iter().map(|item| item.settled).collect();
                let items = items.ok_or_else(|| impossible("the turn still has an open item"))?;
                let (started_seq, context_seq) = (open.started_seq, open.context_seq);
                if open.compacted {
                    self.context_seq = started_seq;
                }
                match (turn.kind, &mut self.last) {
                    (TurnKind::Prompt, last) => {
                        let turn = (**turn).clone();
                        *last = Some(Box::new(Last { turn, started_seq, context_seq, compaction: None }));
                    }
                    (TurnKind::Compaction, Some(last)) if open.compacted => {
                        last.compaction = Some(((**turn).clone(), started_seq));
                    }
                    (TurnKind::Compaction, _) => {}
                }
                let said = open.items.into_iter().map(|open| open.item).collect();
                let settled = Settled { turn: (**turn).clone(), started_seq, items, said, context_seq };
                ended = Some(Ended::Settled(Box::new(settled)));
                self.view.updated_at = record.ts;
            }
            Event::TurnRolledBack(turn) => {
                let started_seq = self.revert(turn).ok_or_else(|| impossible("the turn is not the last one"))?;
                ended = Some(Ended::Reverted(Reverted { started_seq, seq: record.seq }));
            }
            Event::CheckpointSaved(checkpoint) => {
                self.checkpoints.retain(|known| known.name != checkpoint.name);
                self.checkpoints.push((**checkpoint).clone());
            }
            Event::CheckpointDeleted(checkpoint) => self.checkpoints.retain(|known| known.name != checkpoint.name),
            event => {
                if let Event::ApprovalDecided(approval) = event
                    && approval.decision == Some(Decision::ApprovedForSession)
                    && let Some(permit) = &approval.amendment
                    && !self.grants.contains(permit)
                {
                    if self.grants.len() >= GRANTS {
                        self.grants.remove(0);
                    }
                    self.grants.push(permit.clone());
                }
                match event {
                    Event::UsageRecorded(_, entry) => {
                        self.spent = self.spent.plus(Amount::of(&entry.usage, entry.cost));
                        // One that was cut off says nothing about how long the conversation is.
                        if entry.purpose == Purpose::Answer && entry.usage.model_calls > 0 {
                            let sum = entry.usage.input_tokens.saturating_add(entry.usage.output_tokens);
                            let reported = entry.usage.unreported_calls == 0 && entry.usage.estimated_calls == 0;
                            self.context_tokens = reported.then_some(sum);
                        }
                    }
                    Event::BudgetWarning(_, state) if state.scope == Scope::Thread => note(&mut self.warned, state),
                    Event::CompactionCompleted(_) | Event::CompactionFailed(_) => self.context_tokens = None,
                    _ => {}
                }
                let open = self.open.as_mut().ok_or_else(|| impossible("no turn is open"))?;
                open.apply(event, record.seq).map_err(impossible)?;
            }
        }
        self.view.seq = record.seq;
        self.show(record.ts);
        Ok(ended)
    }

    /// Brings the record that callers see up to date.
    fn show(&mut self, now: UnixMs) {
        let waits = self.open.as_mut().is_some_and(|open| open.show(now));
        self.view.spent = self.view.budget.map(|_| self.spent);
        self.view.active_turn = self.open.as_ref().map(|open| open.turn.id);
        self.view.queued = self.inbox.len() as u32;
        self.view.pending_approvals = self.open.as_ref().map_or(0, |open| open.approvals().count() as u32);
        self.view.status = match (self.view.archived, &self.open) {
            (true, _) => ThreadStatus::Archived,
            (false, None) => ThreadStatus::Idle,
            (false, Some(_)) if waits => ThreadStatus::AwaitingApproval,
            (false, Some(_)) => ThreadStatus::Running,
        };
    }

    /// Takes a prompt out that waits, for its turn or for the next step of the open one.
    fn take(&mut self, admission: &Admission) -> Option<Queued> {
        fn take(from: &mut VecDeque<Queued>, admission: &Admission) -> Option<Queued> {
            from.remove(from.iter().position(|queued| queued.admission.id == admission.id)?)
        }
        let steer = self.open.as_mut().and_then(|open| take(&mut open.steers, admission));
        steer.or_else(|| take(&mut self.inbox, admission))
    }

    /// Takes the last turn, or the compaction behind it, out of the conversation; returns where it began.
    fn revert(&mut self, turn: &Turn) -> Option<Seq> {
        let last = self.last.as_mut()?;
        self.context_tokens = None;
        if let Some((_, started)) = last.compaction.take_if(|(compaction, _)| compaction.id == turn.id) {
            return Some(started);
        }
        let last = self.last.take_if(|last| last.turn.id == turn.id)?;
        self.context_seq = last.context_seq;
        Some(last.started_seq)
    }
}

impl OpenTurn {
    pub(super) fn begin(turn: Turn, started_seq: Seq, context_seq: Seq) -> Self {
        Self {
            turn,
            started_seq,
            items: Vec::new(),
            call: 1,
            attempt: 1,
            retry_at: None,
            resumes: 0,
            calls: Vec::new(),
            acts: Vec::new(),
            verdicts: Vec::new(),
            acted: false,
            effects: Vec::new(),
            steers: VecDeque::new(),
            compacting: None,
            compacted: false,
            context_seq,
            reserved: None,
            spent: Amount::default(),
            warned: Vec::new(),
            waiting_since: None,
            waited_ms: 0,
        }
    }

    /// Brings what shows of the turn up to date; returns whether a person is waited for.
    fn show(&mut self, now: UnixMs) -> bool {
        let waits = self.awaits();
        match (waits, self.waiting_since) {
            (true, None) => self.waiting_since = Some(now),
            (false, Some(since)) => {
                self.waited_ms = self.waited_ms.saturating_add(now.since(since));
                self.waiting_since = None;
            }
            _ => {}
        }
        self.turn.spent = self.turn.budget.map(|_| self.spent);
        self.turn.status = if waits { TurnStatus::AwaitingApproval } else { TurnStatus::InProgress };
        waits
    }

    /// Folds an event of the open turn.
    fn apply(&mut self, event: &Event, seq: Seq) -> Result<(), &'static str> {
        if event.turn_id() != Some(self.turn.id) {
            return Err("the event is of another turn");
        }
        match event {
            Event::TurnInterruptRequested(_) => {}
            Event::TurnSteered(turn) => self.turn.steer_count = turn.steer_count,
            Event::TurnResumed(turn) => {
                if turn.resume_count > self.turn.resume_count {
                    self.resumes += 1;
                    self.reconcile();
                }
                self.turn = (**turn).clone();
                self.retry_at = None;
                self.next_call();
            }
            Event::TurnRetrying(retrying) => {
                self.retry_at = Some(retrying.retry_at);
                self.attempt = retrying.attempt + 1;
                self.next_call();
            }
            Event::UsageRecorded(_, entry) => {
                self.turn.usage.add(&entry.usage);
                self.spent = self.spent.plus(Amount::of(&entry.usage, entry.cost));
                self.reserved = None;
                // One that was cut off is made again, or was the last.
                if entry.usage.model_calls > 0 {
                    self.answered();
                }
            }
            Event::BudgetReserved(_, reserved) => {
                self.reserved = Some(*reserved).filter(|reserved| !reserved.is_nothing());
            }
            Event::BudgetWarning(_, state) => {
                if state.scope == Scope::Turn {
                    note(&mut self.warned, state);
                }
            }
            Event::BudgetExceeded(..) => {}
            Event::CompactionStarted(compaction) => self.compacting = Some((**compaction).clone()),
            Event::CompactionCompleted(_) => {
                self.compacting = None;
                self.compacted = true;
            }
            Event::CompactionFailed(_) => {
                self.compacting = None;
                self.answered();
            }
            Event::ItemStarted(item) => {
                if self.open_text().is_some() {
                    return Err("another item is open");
                }
                if !self.turn.item_ids.contains(&item.id) {
                    self.turn.item_ids.push(item.id);
                }
                if item.metadata.contains_key(AGENT) {
                    let call_id = item.metadata.get("call_id").and_then(|id| id.as_str()).unwrap_or_default();
                    self.acts.push(OpenAct { item: item.id, call_id: call_id.to_owned(), call: None });
                }
                self.items.push(OpenItem { item: (**item).clone(), settled: None });
            }
            Event::ItemDelta(delta) => {
                self.open_item_mut(delta.item).ok_or("the item is not open")?.detail.push_str(&delta.delta);
            }
            Event::ItemCompleted(done) => {
                let mut open = self.items.iter_mut().rev().filter(|open| open.settled.is_none());
                let open = open.find(|open| open.item.id == done.id).ok_or("the item is not open")?;
                open.item = Item::clone(done);
                open.settled = Some(seq);
                if done.kind.is_tool() {
                    self.resumes = 0;
                }
                // Whatever it waited for, the call is done. What it started is not forgotten.
                let acts = self.acts.extract_if(.., |act| act.item == done.id).filter_map(|act| act.call);
                for call in self.calls.extract_if(.., |call| call.item() == done.id).chain(acts) {
                    if let OpenCall::Effect { effect, .. } = call
                        && effect.attempt > 0
                    {
                        self.effects.push(effect);
                    }
                }
            }
            Event::ApprovalRequired(approval) => self.put(OpenCall::Approval(approval.clone())),
            Event::ApprovalDecided(next) | Event::ApprovalExpired(next) | Event::ApprovalCancelled(next) => {
                self.note_verdict(next);
                // One that nobody had to be asked about never was here.
                for call in self.every_call_mut() {
                    if let OpenCall::Approval(approval) = call
                        && approval.id == next.id
                    {
                        approval.clone_from(next);
                    }
                }
            }
            Event::QuestionAsked(question) => self.calls.push(OpenCall::Question((**question).clone())),
            Event::QuestionAnswered(_) | Event::QuestionExpired(_) | Event::QuestionCancelled(_) => {}
            Event::EffectIntended(effect) => {
                self.put(OpenCall::Effect { effect: (**effect).clone(), reconcile: false });
            }
            Event::EffectStarted(next)
            | Event::EffectSettled(next)
            | Event::EffectUncertain(next)
            | Event::EffectReconciled(next) => {
                let (effect, reconcile) = self.effect_mut(next).ok_or("the effect is not open")?;
                if effect.class == EffectClass::Once
                    && next.attempt > effect.attempt.max(1)
                    && effect.resolution.is_none()
                {
                    return Err("an effect of class `once` is started again");
                }
                let (again, item) = (next.attempt > effect.attempt.max(1), effect.item_id);
                *effect = Effect::clone(next);
                *reconcile = false;
                self.acted |= self.acts.iter().any(|act| act.item == item);
                if again {
                    // Another attempt says everything anew.
                    self.open_item_mut(next.item_id).ok_or("the item is not open")?.detail.clear();
                }
            }
            _ => return Err("not an event of an open turn"),
        }
        Ok(())
    }

    /// A model call came to its end; the next one is another.
    fn answered(&mut self) {
        self.next_call();
        self.attempt = 1;
        self.resumes = 0;
    }

    /// Another call takes the place of the one that was due.
    fn next_call(&mut self) {
        self.call += 1;
        self.reserved = None;
        self.verdicts.clear();
        self.acted = false;
    }

    /// Takes what is known of a call, in place of what was known before.
    fn put(&mut self, call: OpenCall) {
        if let Some(act) = self.acts.iter_mut().find(|act| act.item == call.item()) {
            act.call = Some(call);
        } else if let Some(known) = self.calls.iter_mut().find(|known| known.item() == call.item()) {
            *known = call;
        } else {
            self.calls.push(call);
        }
    }

    /// An agent is told what becomes of its question, unless it no longer waits for it.
    fn note_verdict(&mut self, approval: &Approval) {
        let Some(act) = self.acts.iter().find(|act| act.item == approval.item_id) else { return };
        let allowed = match approval.status {
            ApprovalStatus::Approved => true,
            ApprovalStatus::Denied | ApprovalStatus::Expired => false,
            ApprovalStatus::Pending | ApprovalStatus::Aborted | ApprovalStatus::Cancelled => return,
        };
        self.verdicts.push(Verdict { call_id: act.call_id.clone(), allowed });
    }

    /// The process that ran the tools is gone: those that can say what became of an operation are to be asked.
    fn reconcile(&mut self) {
        for call in &mut self.calls {
            if let OpenCall::Effect { effect, reconcile } = call {
                *reconcile = effect.class == EffectClass::Reconcilable && effect.status == EffectStatus::Started;
            }
        }
    }

    fn open_item_mut(&mut self, id: crate::id::ItemId) -> Option<&mut Item> {
        let mut open = self.items.iter_mut().rev().filter(|open| open.settled.is_none());
        open.find(|open| open.item.id == id).map(|open| &mut open.item)
    }

    fn effect_mut(&mut self, which: &Effect) -> Option<(&mut Effect, &mut bool)> {
        self.every_call_mut().find_map(|call| match call {
            OpenCall::Effect { effect, reconcile } if effect.operation_id == which.operation_id => {
                Some((effect, reconcile))
            }
            _ => None,
        })
    }
}

/// Somebody was warned of this limit: nobody is again.
fn note(warned: &mut Vec<(crate::budget::Unit, u64)>, state: &BudgetState) {
    warned.retain(|(unit, _)| *unit != state.unit);
    warned.push((state.unit, state.limit));
}

impl OpenCall {
    /// The item of the call.
    pub(super) fn item(&self) -> crate::id::ItemId {
        match self {
            Self::Approval(approval) => approval.item_id,
            Self::Question(question) => question.item_id,
            Self::Effect { effect, .. } => effect.item_id,
        }
    }
}
