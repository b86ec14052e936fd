//! Who is next: the tasks that can be handed out, by priority and then by age, found in the same time however many
//! there are.
//!
//! It is derived: [`Queue::put`] is told of every task as it becomes, and nothing of it is stored.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{Slot, Task, TaskStatus};
use crate::time::UnixMs;

/// What a claim may ask for: a type, a workflow, both or neither.
type Filter = (Option<String>, Option<String>);

/// The first is handed out first.
type Rank = (Reverse<i32>, Slot);

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Queue {
    /// What can be handed out, under each filter that it passes.
    ready: BTreeSet<(Filter, Rank)>,
    leases: BTreeSet<(UnixMs, Slot)>,
    /// Failed tasks that come back by themselves.
    retries: BTreeSet<(UnixMs, Slot)>,
    /// By the id of a task that is not done: those that wait for it.
    dependents: BTreeMap<String, BTreeSet<Slot>>,
    /// How many tasks that are not done one waits for.
    open: BTreeMap<Slot, usize>,
    done: BTreeSet<String>,
}

fn filters(task: &Task) -> impl Iterator<Item = Filter> + use<'_> {
    let kind = Some(task.task_type.clone());
    let flow = task.workflow_id.clone();
    let with = flow.is_some().then(|| [(None, flow.clone()), (kind.clone(), flow.clone())]);
    [(None, None), (kind, None)].into_iter().chain(with.into_iter().flatten())
}

fn rank(slot: Slot, task: &Task) -> Rank {
    (Reverse(task.priority), slot)
}

const fn waits_to_be_claimed(task: &Task) -> bool {
    matches!(task.status, TaskStatus::Pending | TaskStatus::Runnable)
}

impl Queue {
    /// Takes a task as it is now. `before`: as it was here; nothing for a new one. `of` finds a task by its slot.
    pub fn put<'t>(&mut self, slot: Slot, before: Option<&Task>, now: &Task, of: impl Fn(Slot) -> Option<&'t Task>) {
        match before {
            Some(before) => self.take(slot, before),
            None => self.wait_for(slot, now),
        }
        if waits_to_be_claimed(now) && !self.open.contains_key(&slot) {
            self.ready.extend(filters(now).map(|filter| (filter, rank(slot, now))));
        }
        if let Some(lease) = &now.lease {
            self.leases.insert((lease.expires_at, slot));
        }
        if let Some(at) = now.next_retry_at {
            self.retries.insert((at, slot));
        }
        if now.status == TaskStatus::Done && self.done.insert(now.id.clone()) {
            self.let_go(&now.id, of);
        }
    }

    fn take(&mut self, slot: Slot, task: &Task) {
        if waits_to_be_claimed(task) {
            filters(task).for_each(|filter| {
                self.ready.remove(&(filter, rank(slot, task)));
            });
        }
        if let Some(lease) = &task.lease {
            self.leases.remove(&(lease.expires_at, slot));
        }
        if let Some(at) = task.next_retry_at {
            self.retries.remove(&(at, slot));
        }
    }

    fn wait_for(&mut self, slot: Slot, task: &Task) {
        let mut open = 0;
        for id in task.depends_on_task_ids.iter().filter(|id| !self.done.contains(*id)) {
            open += usize::from(self.dependents.entry(id.clone()).or_default().insert(slot));
        }
        if open > 0 {
            self.open.insert(slot, open);
        }
    }

    /// What waited for this task waits for it no longer.
    fn let_go<'t>(&mut self, id: &str, of: impl Fn(Slot) -> Option<&'t Task>) {
        for slot in self.dependents.remove(id).unwrap_or_default() {
            let Some(open) = self.open.get_mut(&slot) else { continue };
            *open -= 1;
            if *open > 0 {
                continue;
            }
            self.open.remove(&slot);
            if let Some(task) = of(slot).filter(|task| waits_to_be_claimed(task)) {
                self.ready.extend(filters(task).map(|filter| (filter, rank(slot, task))));
            }
        }
    }

    /// The task that is next for whoever asks like this.
    pub fn next(&self, task_type: Option<&str>, workflow: Option<&str>) -> Option<Slot> {
        let filter = (task_type.map(str::to_owned), workflow.map(str::to_owned));
        let from = (filter.clone(), (Reverse(i32::MAX), 0));
        let to = (filter, (Reverse(i32::MIN), Slot::MAX));
        self.ready.range(from..=to).next().map(|(_, (_, slot))| *slot)
    }

    /// Whether this very task can be handed out.
    pub fn is_ready(&self, slot: Slot, task: &Task) -> bool {
        waits_to_be_claimed(task) && !self.open.contains_key(&slot)
    }

    /// Tasks whose lease has run out, the longest ago first.
    pub fn expired(&self, now: UnixMs) -> impl Iterator<Item = Slot> + '_ {
        self.leases.range(..=(now, Slot::MAX)).map(|(_, slot)| *slot)
    }

    /// Failed tasks whose time has come, the longest ago first.
    pub fn due(&self, now: UnixMs) -> impl Iterator<Item = Slot> + '_ {
        self.retries.range(..=(now, Slot::MAX)).map(|(_, slot)| *slot)
    }

    /// When the next failed task comes back.
    pub fn next_retry(&self) -> Option<UnixMs> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// The tasks that are held.
    pub fn held(&self) -> impl Iterator<Item = Slot> + '_ {
        self.leases.iter().map(|(_, slot)| *slot)
    }

    /// When something happens by itself.
    pub fn wake_at(&self) -> Option<UnixMs> {
        let lease = self.leases.first().map(|(at, _)| *at);
        lease.into_iter().chain(self.next_retry()).min()
    }
}
