//! One step: a request is judged, and what it leads to is emitted, event by event.

use super::{Cx, Settled, Snapshot, ThreadState, apply::Ended};
use crate::{
    command::{Command, Refused, Reply, Request},
    event::{Event, Record},
    id::Seq,
    ports::Reverted,
    record::{Thread, ThreadStatus},
};

/// What an accepted request did: to be saved as one, and answered when it is saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// In order; empty when what was asked for is already so.
    pub records: Vec<Record>,
    /// Turns that ended.
    pub settled: Vec<Settled>,
    /// Turns that were taken out of the conversation.
    pub reverted: Vec<Reverted>,
    /// The last moment of the step in which no turn was open.
    pub rest: Option<Rest>,
    pub reply: Reply,
}

/// A state to rebuild from, and the event after which it held.
#[derive(Debug, Clone, PartialEq)]
pub struct Rest {
    pub seq: Seq,
    pub snapshot: Snapshot,
}

/// A step that is being made. Events are applied as they are emitted, so each rule sees what the one before it did.
pub(super) struct Stepper<'a> {
    pub state: &'a mut ThreadState,
    pub cx: Cx<'a>,
    status: ThreadStatus,
    records: Vec<Record>,
    settled: Vec<Settled>,
    reverted: Vec<Reverted>,
    rest: Option<Rest>,
}

impl ThreadState {
    /// Judges `request`. An accepted one has changed this state when the call returns; the host must save the
    /// step, or forget the state and rebuild it from the log. A refused one has changed nothing.
    pub fn step(&mut self, request: Request, cx: Cx<'_>) -> Result<Step, Refused> {
        match request.if_match {
            Some(expected) if expected != self.seq() => {
                return Err(Refused::Precondition { expected, head: self.seq() });
            }
            _ => {}
        }
        let mut stepper = Stepper::new(self, cx);
        let reply = match request.command {
            Command::Patch(patch) => stepper.patch(patch)?,
            Command::Delete => stepper.delete(),
            Command::Start(start) => stepper.start(start)?,
            Command::Edit(start) => stepper.edit(start)?,
            Command::Steer(steer) => stepper.steer(steer)?,
            Command::Compact(compact) => stepper.compact(compact)?,
            Command::Interrupt(interrupt) => stepper.interrupt(interrupt)?,
            Command::EditPrompt(edit) => stepper.edit_prompt(edit)?,
            Command::Withdraw(input) => stepper.withdraw(input)?,
            Command::Decide(decide) => stepper.decide(decide)?,
            Command::Answer(answer) => stepper.answer(answer)?,
            Command::Resolve(resolve) => stepper.resolve(resolve)?,
            Command::SaveCheckpoint(name) => stepper.save_checkpoint(name)?,
            Command::DeleteCheckpoint(name) => stepper.delete_checkpoint(name)?,
            Command::Report(report) => stepper.report(report),
            Command::Recover { restarted } => stepper.recover(restarted),
            Command::Begin => stepper.begin(),
            Command::ToolReport(report) => stepper.tool_report(report),
            Command::Tick => stepper.tick(),
        };
        Ok(stepper.finish(reply))
    }
}

impl<'a> Stepper<'a> {
    pub(super) fn new(state: &'a mut ThreadState, cx: Cx<'a>) -> Self {
        let status = state.view.status;
        Self { state, cx, status, records: Vec::new(), settled: Vec::new(), reverted: Vec::new(), rest: None }
    }

    /// Makes `event` the next of the log. Returns its seq.
    pub(super) fn emit(&mut self, event: Event) -> Seq {
        let seq = self.state.seq() + 1;
        let record = Record { seq, ts: self.cx.now, thread: self.state.id(), event };
        match self.state.fold(&record) {
            Ok(None) => {}
            Ok(Some(ended)) => {
                match ended {
                    Ended::Settled(settled) => self.settled.push(*settled),
                    Ended::Reverted(reverted) => self.reverted.push(reverted),
                }
                // The next prompt's turn may open in this very step: what holds in between is worth a snapshot.
                self.rest = Some(Rest { seq, snapshot: self.state.snapshot() });
            }
            // A defect of a rule. Nothing is saved yet; the host rebuilds the thread from what is.
            Err(impossible) => panic!("{} emitted the impossible: {impossible}", record.event.name()),
        }
        self.records.push(record);
        seq
    }

    /// The thread's record as it will be with the next event.
    pub(super) fn next_view(&self) -> Box<Thread> {
        Box::new(Thread { seq: self.state.seq() + 1, ..self.state.view.clone() })
    }

    pub(super) fn finish(mut self, reply: Reply) -> Step {
        let told = self.records.last().is_some_and(|last| last.event.name().starts_with("thread."));
        if self.state.view.status != self.status && !told {
            let view = self.next_view();
            self.emit(Event::ThreadStatus(view));
        }
        if self.state.open.is_none() && !self.records.is_empty() {
            self.rest = Some(Rest { seq: self.state.seq(), snapshot: self.state.snapshot() });
        }
        Step { records: self.records, settled: self.settled, reverted: self.reverted, rest: self.rest, reply }
    }
}
