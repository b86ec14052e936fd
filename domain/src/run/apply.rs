//! Folding events into the state: the only way in which a state changes, live or replayed.

use std::collections::BTreeSet;

use super::{
    Entry, Mutation, Run, RunState, Slot, Task, TaskStatus,
    event::{EntryEvent, Event, Record, TaskEvent},
    image::Image,
    ledger, limits,
};
use crate::{
    id::{Seq, ThreadId},
    time::UnixMs,
};

/// A log that no run can have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {seq}: {why}")]
pub struct Impossible {
    pub seq: Seq,
    pub why: &'static str,
}

/// Which parts of a run an event has changed.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub tasks: BTreeSet<Slot>,
    /// Those of `tasks` that are new.
    pub names: BTreeSet<Slot>,
    pub entries: BTreeSet<Seq>,
    pub summaries: BTreeSet<bool>,
    pub checkpoints: BTreeSet<Seq>,
    /// The copy that belongs to a checkpoint that was saved.
    pub image: Option<(Seq, Vec<u8>)>,
    pub mutations: BTreeSet<Seq>,
    pub sources: BTreeSet<ThreadId>,
}

impl RunState {
    /// A run as its first event makes it.
    pub fn begin(first: &Record) -> Result<Self, Impossible> {
        let impossible = |why| Impossible { seq: first.seq, why };
        match (&first.event, &first.run) {
            (Event::Created, Some(run)) if first.seq == 1 && run.id == first.run_id => {
                Self::of(Image::new((**run).clone())).map_err(|_| impossible("the record does not fit"))
            }
            _ => Err(impossible("a log begins with context.run.created at 1")),
        }
    }

    /// Folds the next event of the log.
    pub fn apply(&mut self, record: &Record) -> Result<(), Impossible> {
        self.fold(record, &mut Touched::default())
    }

    pub(super) fn fold(&mut self, record: &Record, touched: &mut Touched) -> Result<(), Impossible> {
        let impossible = |why| Impossible { seq: record.seq, why };
        if record.seq != self.seq() + 1 || record.run_id != self.run.id {
            return Err(impossible("it does not follow"));
        }
        if record.revision < self.run.revision || record.revision > self.run.revision + 1 {
            return Err(impossible("the revision does not follow"));
        }
        self.check_run(record).map_err(impossible)?;
        match &record.event {
            Event::Created => return Err(impossible("a run is created once")),
            Event::Task(event, task) => self.fold_task(*event, task, record.seq, touched).map_err(impossible)?,
            Event::Entry(event, entry) => self.fold_entry(*event, entry, record.seq, touched).map_err(impossible)?,
            Event::Summary { pack, text } => {
                touched.summaries.insert(*pack);
                self.summary_mut(*pack).clone_from(text);
            }
            Event::CheckpointSaved(checkpoint) => {
                if checkpoint.seq + 1 != record.seq {
                    return Err(impossible("a checkpoint is of the moment before it"));
                }
                touched.checkpoints.insert(record.seq);
                self.checkpoints.insert(record.seq, checkpoint.clone());
            }
            Event::CheckpointDeleted(checkpoint) => {
                let saved = checkpoint.seq + 1;
                touched.checkpoints.insert(saved);
                self.checkpoints.remove(&saved).ok_or(impossible("there is no such checkpoint"))?;
            }
            Event::EffectRecorded(effect) => {
                let source = effect.source;
                touched.sources.insert(source.thread_id);
                if self.sources.insert(source.thread_id, source.seq).is_some_and(|known| known >= source.seq) {
                    return Err(impossible("an effect is recorded once"));
                }
                ledger::count(&mut self.ledger, effect, record);
            }
            Event::MutationRecorded(mutation) => {
                touched.mutations.insert(record.seq);
                self.put_mutation(ledger::mutation(mutation, record));
                // What is being taken back is not forgotten meanwhile.
                while self.rollback.is_none()
                    && self.mutations.len() > limits::MUTATIONS
                    && let Some((seq, oldest)) = self.mutations.pop_first()
                {
                    touched.mutations.insert(seq);
                    self.bytes -= weight_of(&oldest);
                }
            }
            Event::RollbackStarted(rollback) => {
                if self.rollback.is_some() {
                    return Err(impossible("a rollback is under way"));
                }
                self.rollback = Some(rollback.clone());
            }
            Event::RollbackApplied { rollback, .. } => {
                if self.rollback.take().as_ref() != Some(rollback) {
                    return Err(impossible("no such rollback is under way"));
                }
                for seq in rollback.event_ids.iter().filter_map(|id| super::event::seq_of(id)) {
                    touched.mutations.insert(seq);
                    let mutation = self.mutations.get_mut(&seq).ok_or(impossible("there is no such mutation"))?;
                    mutation.rolled_back_seq = Some(record.seq);
                }
            }
            Event::RollbackBlocked(blocked) => {
                self.rollback = self.rollback.take().filter(|rollback| rollback.event_ids != blocked.event_ids);
            }
            Event::Replaced
            | Event::Told { .. }
            | Event::TodosSynced { .. }
            | Event::NextStepSelected { .. }
            | Event::WorkspaceBound
            | Event::WorkspaceRebound { .. }
            | Event::WorkspaceMismatch { .. }
            | Event::Deleted => {}
        }
        if let Some(run) = &record.run {
            self.run = Run { task_counts: self.run.task_counts, ..(**run).clone() };
        }
        self.run.revision = record.revision;
        self.run.last_event_seq = record.seq;
        self.run.updated_at = record.ts;
        Ok(())
    }

    /// Whether the record that an event holds may take the place of the one that is there.
    fn check_run(&self, record: &Record) -> Result<(), &'static str> {
        let Some(run) = &record.run else {
            return if record.status == self.run.status { Ok(()) } else { Err("the status changes without a record") };
        };
        let same = run.id == self.run.id && run.tenant == self.run.tenant && run.created_at == self.run.created_at;
        if !same || run.status != record.status {
            return Err("the record is another run's");
        }
        let reopens = matches!(&record.event, Event::Told { name, .. } if super::tell::reopens(name));
        if !self.run.status.may_become(run.status) && !reopens {
            return Err("no such status may follow");
        }
        Ok(())
    }

    fn fold_task(
        &mut self,
        event: TaskEvent,
        task: &Task,
        seq: Seq,
        touched: &mut Touched,
    ) -> Result<(), &'static str> {
        if task.lease.is_some() != (task.status == TaskStatus::InProgress) {
            return Err("a task is leased while it is in progress, and only then");
        }
        let known = self.names.get(&task.id).copied();
        let slot = match (event, known) {
            (TaskEvent::Created, None) => seq,
            (TaskEvent::Created, Some(_)) => return Err("a task is made once"),
            (_, Some(slot)) => slot,
            (_, None) => return Err("there is no such task"),
        };
        let before = known.and_then(|slot| self.tasks.get(&slot));
        if let Some(before) = before {
            if task.task_rev != before.task_rev + 1 {
                return Err("the task's revision does not follow");
            }
            if before.status == TaskStatus::Done {
                return Err("a task that is done stays so");
            }
        }
        let fence = |task: &Task| task.lease.as_ref().map(|lease| lease.fence);
        match event {
            TaskEvent::Claimed if before.and_then(fence).is_some() => return Err("a task is held by one lease"),
            TaskEvent::Claimed if fence(task) != Some(seq) => return Err("a lease is fenced by its own event"),
            TaskEvent::Claimed => {}
            // Nothing but a claim gives a lease.
            _ if fence(task).is_some() && fence(task) != before.and_then(fence) => {
                return Err("a lease is given by a claim");
            }
            _ => {}
        }
        touched.tasks.insert(slot);
        if known.is_none() {
            touched.names.insert(slot);
        }
        self.put_task(slot, task.clone());
        Ok(())
    }

    /// Puts a task in its place, and keeps everything that is derived from tasks.
    pub(super) fn put_task(&mut self, slot: Slot, task: Task) {
        let before = self.tasks.remove(&slot);
        if let Some(before) = &before {
            *self.run.task_counts.of(before.status) -= 1;
            self.bytes -= weight(before);
        } else {
            self.names.insert(task.id.clone(), slot);
        }
        *self.run.task_counts.of(task.status) += 1;
        self.bytes += weight(&task);
        let tasks = &self.tasks;
        self.queue.put(slot, before.as_ref(), &task, |slot| tasks.get(&slot));
        self.tasks.insert(slot, task);
    }

    fn fold_entry(
        &mut self,
        event: EntryEvent,
        entry: &Entry,
        seq: Seq,
        touched: &mut Touched,
    ) -> Result<(), &'static str> {
        match (event, self.entry_names.get(&entry.id)) {
            (EntryEvent::Added, None) if entry.seq == seq => {}
            (EntryEvent::Edited | EntryEvent::Resolved, Some(known)) if *known == entry.seq => {}
            _ => return Err("an entry is added once, and changed afterwards"),
        }
        touched.entries.insert(entry.seq);
        self.put_entry(entry.clone());
        Ok(())
    }

    pub(super) fn put_entry(&mut self, entry: Entry) {
        self.bytes += weight_of_line(&entry);
        self.entry_names.insert(entry.id.clone(), entry.seq);
        if let Some(before) = self.entries.insert(entry.seq, entry) {
            self.bytes -= weight_of_line(&before);
        }
    }

    pub(super) fn put_mutation(&mut self, mutation: Mutation) {
        self.bytes += weight_of(&mutation);
        self.mutations.insert(mutation.seq, mutation);
    }

    pub(super) const fn summary_mut(&mut self, pack: bool) -> &mut String {
        if pack { &mut self.summaries.latest_context_pack } else { &mut self.summaries.rolling }
    }
}

/// About how many bytes of memory a task holds.
pub(super) fn weight(task: &Task) -> usize {
    let waits: usize = task.depends_on_task_ids.iter().map(|id| 2 * id.len() + 128).sum();
    let names: usize = task.decision_ids.iter().chain(&task.artifact_ids).map(|id| id.len() + 24).sum();
    let error = task.last_error.as_ref().map_or(0, String::len);
    let output = task.output.as_ref().map_or(0, size);
    2048 + waits + names + error + size(&task.payload) + output
}

/// The same for a line of the blackboard.
pub(super) fn weight_of_line(entry: &Entry) -> usize {
    let more = [&entry.path, &entry.artifact_type, &entry.resolution];
    512 + entry.text.len() + more.into_iter().flatten().map(String::len).sum::<usize>()
}

/// The same for files that a tool changed.
fn weight_of(mutation: &Mutation) -> usize {
    512 + mutation.record.files.iter().map(|file| 256 + file.path.len()).sum::<usize>()
}

pub(super) fn size(value: &serde_json::Value) -> usize {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match value {
        Null | Bool(_) | Number(_) => 32,
        String(text) => 32 + text.len(),
        Array(all) => 32 + all.iter().map(size).sum::<usize>(),
        Object(all) => 32 + all.iter().map(|(name, value)| 64 + name.len() + size(value)).sum::<usize>(),
    }
}

/// The end of a span that begins at `now`.
pub(super) fn after(now: UnixMs, ms: u64) -> UnixMs {
    now.after(std::time::Duration::from_millis(ms))
}
