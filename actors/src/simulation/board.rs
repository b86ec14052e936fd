//! What must hold of the log of a run: who may hold a task, and who may speak of it.

use std::collections::BTreeMap;

use raddle_domain::{
    ports::StoredEvent,
    run::{
        Record, RunState, TaskLease, TaskStatus,
        event::{self, Event, TaskEvent},
    },
};

use super::witness::{Fact, Holds, LEASE, REPLAY, SOUND, Violation, unless};

/// A run, as its log makes it.
#[derive(Default)]
pub(crate) struct Board {
    /// What the rules make of it.
    pub state: Option<RunState>,
    /// Who holds which task, without asking the rules.
    held: BTreeMap<String, TaskLease>,
    /// The youngest lease.
    fence: u64,
}

pub(crate) fn decode(stored: &StoredEvent) -> Holds<Record> {
    let read = Record::decode(event::SCHEMA, &stored.json);
    read.map_err(|why| Violation { invariant: REPLAY, what: format!("{} cannot be read: {why}", stored.name) })
}

/// What a holder's word about a task is known by: the task's revision behind it, and the lease that it was said under.
pub(crate) fn word(task: &str, rev: u64, fence: u64) -> Fact {
    Fact::Thing("word on task", format!("{task} at {rev} under {fence}"))
}

pub(crate) fn claim(task: &str, fence: u64) -> Fact {
    Fact::Thing("lease of task", format!("{task} under {fence}"))
}

impl Board {
    /// The next event of log `number`; what it makes true.
    pub fn see(&mut self, number: usize, record: &Record) -> Holds<Vec<Fact>> {
        let folded = match &mut self.state {
            Some(state) => state.apply(record),
            None => RunState::begin(record).map(|state| self.state = Some(state)),
        };
        folded.map_err(|why| Violation { invariant: SOUND, what: format!("log {number}: {why}") })?;
        let Event::Task(event, task) = &record.event else { return Ok(Vec::new()) };
        let before = self.held.remove(&task.id);
        let (seq, at, id) = (record.seq, record.ts, &task.id);
        let lives = before.as_ref().is_some_and(|lease| lease.expires_at > at);
        let broken = |why: &str| format!("log {number}: event {seq}, {}: `{id}` {why}", event.name());
        let mut facts = Vec::new();
        match event {
            TaskEvent::Claimed => {
                unless(before.is_none(), LEASE, || broken("is held already"))?;
                let fence = task.lease.as_ref().map_or(0, |lease| lease.fence);
                unless(fence > self.fence, LEASE, || broken("has a lease that is older than another"))?;
                self.fence = fence;
                facts.push(claim(id, fence));
            }
            TaskEvent::Heartbeat | TaskEvent::Completed | TaskEvent::Failed => {
                unless(lives, LEASE, || broken("is spoken of by somebody who does not hold it"))?;
            }
            TaskEvent::StaleRequeued => {
                unless(before.is_some() && !lives, LEASE, || broken("is taken from who holds it"))?;
            }
            TaskEvent::Created | TaskEvent::Blocked | TaskEvent::Cancelled | TaskEvent::Requeued => {}
        }
        facts.push(word(id, task.task_rev, before.map_or(0, |lease| lease.fence)));
        unless(task.lease.is_some() == (task.status == TaskStatus::InProgress), LEASE, || {
            broken("has a lease and is not in progress, or the other way")
        })?;
        if let Some(lease) = &task.lease {
            self.held.insert(id.clone(), lease.clone());
        }
        Ok(facts)
    }
}
