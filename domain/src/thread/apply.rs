//! Folding events into the state: the only way in which a state changes, live or replayed.

use std::collections::VecDeque;

use super::{OpenItem, OpenTurn, Queued, Settled, Snapshot, ThreadState};
use crate::{
    event::{Event, Record},
    id::Seq,
    record::{Item, Thread, ThreadStatus},
};

/// A log that no thread can have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {seq}: {why}")]
pub struct Impossible {
    pub seq: Seq,
    pub why: &'static str,
}

impl ThreadState {
    /// A thread as its first event makes it.
    pub fn begin(first: &Record) -> Result<Self, Impossible> {
        match &first.event {
            Event::ThreadCreated(thread) if first.seq == 1 => Ok(Self {
                view: Thread { seq: 1, ..(**thread).clone() },
                inbox: VecDeque::new(),
                open: None,
                checkpoints: Vec::new(),
            }),
            _ => Err(Impossible { seq: first.seq, why: "a log begins with thread.created at 1" }),
        }
    }

    /// A thread as its snapshot, and the events that [`Snapshot::needs`] names, make it.
    pub fn restore(snapshot: Snapshot, needed: &[Record]) -> Result<Self, Impossible> {
        let seq = snapshot.view.seq;
        let mut inbox = VecDeque::new();
        for (index, (id, at)) in snapshot.inbox.iter().enumerate() {
            match needed.get(index).map(|record| (record.seq, &record.event)) {
                Some((found, Event::PromptAdmitted(admission))) if found == *at && admission.id == *id => {
                    inbox.push_back(Queued { seq: *at, admission: (**admission).clone() });
                }
                _ => return Err(Impossible { seq, why: "a waiting prompt is not where the snapshot says" }),
            }
        }
        Ok(Self { view: snapshot.view, inbox, open: None, checkpoints: Vec::new() })
    }

    /// Folds the next event. Returns the turn that it ended, if it ended one.
    pub fn apply(&mut self, record: &Record) -> Result<Option<Settled>, Impossible> {
        let impossible = |why| Impossible { seq: record.seq, why };
        if record.seq != self.view.seq + 1 {
            return Err(impossible("not the seq after the last"));
        }
        let mut settled = None;
        match &record.event {
            Event::ThreadCreated(_) => return Err(impossible("a thread is created once")),
            Event::ThreadUpdated(thread)
            | Event::ThreadStatus(thread)
            | Event::ThreadArchived(thread)
            | Event::ThreadDeleted(thread) => self.view = (**thread).clone(),
            Event::PromptAdmitted(admission) => {
                self.inbox.push_back(Queued { seq: record.seq, admission: (**admission).clone() });
            }
            Event::PromptPromoted(admission) => {
                let at = self.inbox.iter().position(|queued| queued.admission.id == admission.id);
                let at = at.ok_or_else(|| impossible("the promoted prompt does not wait"))?;
                self.inbox.remove(at);
            }
            Event::TurnStarted(turn) => {
                if self.open.is_some() {
                    return Err(impossible("another turn is open"));
                }
                let turn = (**turn).clone();
                let (started_seq, items) = (record.seq, Vec::new());
                self.open =
                    Some(OpenTurn { turn, started_seq, items, call: 1, attempt: 1, retry_at: None, resumes: 0 });
                self.view.updated_at = record.ts;
            }
            Event::TurnCompleted(turn) => {
                let open = self.open.take().ok_or_else(|| impossible("no turn is open"))?;
                if open.turn.id != turn.id {
                    return Err(impossible("another turn is open"));
                }
                let items: Option<Vec<Seq>> = open.items.iter().map(|item| item.settled).collect();
                let items = items.ok_or_else(|| impossible("the turn still has an open item"))?;
                settled = Some(Settled { turn: (**turn).clone(), started_seq: open.started_seq, items });
                self.view.updated_at = record.ts;
            }
            event => {
                let open = self.open.as_mut().ok_or_else(|| impossible("no turn is open"))?;
                open.apply(event, record.seq).map_err(impossible)?;
            }
        }
        self.view.seq = record.seq;
        self.view.active_turn = self.open.as_ref().map(|open| open.turn.id);
        self.view.queued = self.inbox.len() as u32;
        self.view.status = match (self.view.archived, &self.open) {
            (true, _) => ThreadStatus::Archived,
            (false, None) => ThreadStatus::Idle,
            (false, Some(_)) => ThreadStatus::Running,
        };
        Ok(settled)
    }
}

impl OpenTurn {
    /// Folds an event of the open turn.
    fn apply(&mut self, event: &Event, seq: Seq) -> Result<(), &'static str> {
        if event.turn_id() != Some(self.turn.id) {
            return Err("the event is of another turn");
        }
        match event {
            Event::TurnInterruptRequested(_) => {}
            Event::TurnResumed(turn) => {
                if turn.resume_count > self.turn.resume_count {
                    self.resumes += 1;
                }
                self.turn = (**turn).clone();
                self.retry_at = None;
                self.call += 1;
            }
            Event::TurnRetrying(retrying) => {
                self.retry_at = Some(retrying.retry_at);
                self.attempt = retrying.attempt + 1;
                self.call += 1;
            }
            Event::UsageRecorded(_, entry) => {
                self.turn.usage.add(&entry.usage);
                self.call += 1;
                self.attempt = 1;
                self.resumes = 0;
            }
            Event::ItemStarted(item) => {
                if self.open_item().is_some() {
                    return Err("another item is open");
                }
                if !self.turn.item_ids.contains(&item.id) {
                    self.turn.item_ids.push(item.id);
                }
                self.items.push(OpenItem { item: (**item).clone(), settled: None });
            }
            Event::ItemDelta(delta) => match self.items.last_mut() {
                Some(OpenItem { item, settled: None }) if item.id == delta.item => item.detail.push_str(&delta.delta),
                _ => return Err("the item is not open"),
            },
            Event::ItemCompleted(done) => match self.items.last_mut() {
                Some(OpenItem { item, settled: settled @ None }) if item.id == done.id => {
                    *item = Item::clone(done);
                    *settled = Some(seq);
                }
                _ => return Err("the item is not open"),
            },
            _ => return Err("not an event of an open turn"),
        }
        Ok(())
    }
}
