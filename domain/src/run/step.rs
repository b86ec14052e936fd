//! One step: a request is judged, and what it leads to is emitted, event by event.

use super::{
    Run, RunState,
    apply::Touched,
    command::{Command, Refused, Reply, Request},
    event::{Event, Record},
};
use crate::{
    id::Seq,
    ports::{Ids, Part},
    time::UnixMs,
};

/// What a step may know of the world.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub now: UnixMs,
    pub ids: &'a dyn Ids,
}

/// What an accepted request did: to be saved as one, and answered when it is saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// In order; empty when what was asked for is already so.
    pub records: Vec<Record>,
    /// What the store holds of the run beside its row, where that has changed.
    pub parts: Vec<Part>,
    pub reply: Reply,
}

/// A step that is being made. Events are applied as they are emitted, so each rule sees what the one before it did.
pub(super) struct Stepper<'a> {
    pub state: &'a mut RunState,
    pub cx: Cx<'a>,
    pub by: String,
    /// Before the step.
    revision: u64,
    records: Vec<Record>,
    pub touched: Touched,
}

/// The words for whoever speaks.
pub(super) const CLIENT: &str = "client";
pub(super) const RUNTIME: &str = "runtime";

impl RunState {
    /// Judges `request`. An accepted one has changed this state when the call returns; the host must save the
    /// step, or forget the state and rebuild it from what is stored. A refused one has changed nothing.
    pub fn step(&mut self, request: Request, cx: Cx<'_>) -> Result<Step, Refused> {
        if let Some(expected) = request.if_match
            && expected != self.run.revision
        {
            return Err(Refused::Precondition { expected, head: self.run.revision });
        }
        let asked = request.if_match.is_some();
        let mut stepper = Stepper::new(self, cx);
        let reply = match request.command {
            Command::Replace(replace) => stepper.replace(*replace, asked)?,
            Command::Tell(tell) => stepper.tell(tell)?,
            Command::SyncTodos(todos) => stepper.sync_todos(todos)?,
            Command::Drive { dry_run } => stepper.drive(dry_run),
            Command::Patch(patch) => stepper.patch(patch)?,
            Command::CreateTasks(tasks) => stepper.create_tasks(tasks)?,
            Command::Claim(claim) => stepper.claim(claim)?,
            Command::Transition(transition) => stepper.transition(transition)?,
            Command::Work(worker, claim) => stepper.work(worker, claim)?,
            Command::Say(worker, transition) => stepper.say(worker, transition)?,
            Command::GiveBack(worker) => stepper.give_back(worker),
            Command::ValidateLease(lease) => stepper.validate_lease(lease)?,
            Command::SaveCheckpoint { reason } => stepper.save_checkpoint(reason)?,
            Command::DeleteCheckpoint(checkpoint) => stepper.delete_checkpoint(checkpoint)?,
            Command::Rollback(rollback) => stepper.ask_rollback(rollback)?,
            Command::Delete => stepper.delete(),
            Command::Journal(entries) => stepper.journal(entries),
            Command::Restored(report) => stepper.restored(report),
            Command::Tick => stepper.tick(),
        };
        Ok(stepper.finish(reply))
    }
}

impl<'a> Stepper<'a> {
    pub fn new(state: &'a mut RunState, cx: Cx<'a>) -> Self {
        let revision = state.run.revision;
        Self { state, cx, by: CLIENT.to_owned(), revision, records: Vec::new(), touched: Touched::default() }
    }

    /// Makes `event` the next of the log. Returns its seq.
    pub fn emit(&mut self, event: Event) -> Seq {
        self.emit_with(event, None, None)
    }

    /// The same for an event that changes the run's record.
    pub fn emit_run(&mut self, event: Event, run: Run) -> Seq {
        self.emit_with(event, None, Some(run))
    }

    pub fn emit_with(&mut self, event: Event, step_id: Option<String>, run: Option<Run>) -> Seq {
        let seq = self.state.seq() + 1;
        let revision = if event.is_a_change() { self.revision + 1 } else { self.state.run.revision };
        let run = run.map(|run| Box::new(Run { revision, last_event_seq: seq, updated_at: self.cx.now, ..run }));
        let status = run.as_ref().map_or(self.state.run.status, |run| run.status);
        let record = Record {
            seq,
            ts: self.cx.now,
            run_id: self.state.run.id,
            revision,
            status,
            by: self.by.clone(),
            step_id,
            event,
            run,
        };
        // A defect of a rule. Nothing is saved yet; the host rebuilds the run from what is.
        if let Err(impossible) = self.state.fold(&record, &mut self.touched) {
            panic!("{} emitted the impossible: {impossible}", record.event.name());
        }
        self.records.push(record);
        seq
    }

    pub fn finish(self, reply: Reply) -> Step {
        let Self { state, records, touched, .. } = self;
        Step { records, parts: state.parts(touched), reply }
    }

    /// Removes the run. Its log goes with it, this event included.
    fn delete(&mut self) -> Reply {
        self.emit(Event::Deleted);
        Reply::Deleted
    }
}

impl Event {
    /// Whether it changes what callers see of the run and its board. What is only put on record does not, nor does a
    /// lease that is renewed: whoever replaces a run under the revision that he saw is not stopped by them.
    fn is_a_change(&self) -> bool {
        !matches!(
            self,
            Self::EffectRecorded(_)
                | Self::MutationRecorded(_)
                // Until files have been put back, a rollback may still be refused.
                | Self::RollbackStarted(_)
                | Self::RollbackBlocked(_)
                | Self::CheckpointSaved(_)
                | Self::CheckpointDeleted(_)
                | Self::Task(super::event::TaskEvent::Heartbeat, _)
        )
    }
}
