//! One run as a pure state machine: a plan, a board of leased tasks, a blackboard, a ledger.
//!
//! ```text
//!   run    queued ─▶ planning ─▶ awaiting_approval ─▶ running ◀─▶ paused, blocked ─▶ failed, completed, cancelled
//!          (the whole table: `status`; what an event of a client leads to: `tell`)
//!
//!   task   pending, runnable ── claim ──▶ in_progress ── complete ──▶ done
//!            ▲   ▲                          │   │  └──── fail ──────▶ failed ── its time has come, retry ──▶ runnable
//!            │   └── release, lease lost ───┘   └─ block ─▶ blocked ── release, retry ──▶ runnable
//!            └── its dependencies are done: only then is it handed out           (the whole table: `task`)
//!
//!   files  a tool changed them ─▶ recorded ── rollback ──▶ being put back ──▶ applied | blocked     (`ledger`)
//! ```
//!
//! [`RunState::step`] judges a request and, when it accepts, emits events; an event changes the state only through
//! [`RunState::apply`], which replay uses too, so live and replayed states are equal. [`RunState::owed`] says what must
//! happen while a state lasts; asking twice for it is harmless.
//!
//! A run may have thousands of tasks, so its state is no snapshot that is written again with every event: it is a
//! record, and parts ([`crate::ports::Part`]), of which a step writes those that it changed. [`Image`] is all of it.
//!
//! Invariants: seqs are dense; a task is held by one lease at a time, and while it is `in_progress` alone; fences grow;
//! what has ended stays so until it is opened again; what only the runtime may say, no verb of a client says; a refused
//! request changes nothing.
//!
//! Absent on purpose: clocks, fresh ids (both come with [`Cx`]), I/O, and tokens of leases, of which digests are kept.

mod apply;
mod board;
mod checkpoint;
pub mod command;
pub mod drift;
pub mod event;
pub mod image;
mod ledger;
pub mod lines;
mod plan;
mod queue;
mod record;
mod status;
mod step;
mod task;
mod tell;
#[cfg(test)]
mod tests;
mod workspace;

use std::collections::BTreeMap;

use self::queue::Queue;
pub use self::{
    apply::Impossible,
    checkpoint::restored,
    command::{Command, Owed, Refused, Reply, Request, RestoreDue},
    event::{Record, event_id},
    image::{Image, PartCounts, Rest},
    ledger::{RollbackAction, RollbackOperation, RollbackPreview, RollbackStep, may_roll_back, preview},
    plan::todo_status,
    record::*,
    step::{Cx, Step},
    task::{DEFAULT_LEASE_MS, LEASE_MS, RETRY_BASE_MS},
};
use crate::{
    id::{Seq, ThreadId},
    time::UnixMs,
};

/// Bounds of a run. Each is a choice: what lies beyond is refused by name.
pub mod limits {
    /// Tasks of a run, whatever their status.
    pub const TASKS: usize = 20_000;
    /// Tasks that are made at once.
    pub const BATCH: usize = 1_000;
    /// Lines on a blackboard.
    pub const ENTRIES: usize = 10_000;
    pub const STEPS: usize = 256;
    pub const TODOS: usize = STEPS;
    pub const CHECKPOINTS: usize = 64;
    /// Tasks that one waits for, and other lists of names.
    pub const NAMES: usize = 64;
    /// Bytes of an id that a caller chooses.
    pub const ID_BYTES: usize = 128;
    pub const OBJECTIVE_BYTES: usize = 16 * 1024;
    pub const TITLE_BYTES: usize = 1024;
    /// Bytes of a fact, an error, a reason.
    pub const TEXT_BYTES: usize = 16 * 1024;
    pub const SUMMARY_BYTES: usize = 64 * 1024;
    /// Bytes of a payload, an output or metadata as JSON.
    pub const PAYLOAD_BYTES: usize = 64 * 1024;
    /// Bytes of a checkpoint's copy.
    pub const IMAGE_BYTES: usize = 64 * 1024 * 1024;
    /// Levels of a payload, an output or metadata. Events and copies hold them some levels down, and have to be read back
    /// by parsers that end at 128.
    pub const DEPTH: usize = 64;
    /// Bytes of memory that tasks and blackboard hold, about.
    pub const HELD_BYTES: usize = 256 * 1024 * 1024;
    /// Tasks that one step takes from late holders, or brings back; the next tick goes on.
    pub const SWEEP: usize = 1_000;
    /// Mutations that one rollback names.
    pub const ROLLBACK: usize = 1_000;
    /// Mutations that can be taken back. Of more, the oldest are forgotten; they stay in the log.
    pub const MUTATIONS: usize = 10_000;
    /// Tools that the ledger counts by name. What others did is counted as one.
    pub const TOOLS: usize = 256;
}

/// The event that made a task: its place among all tasks, by age.
pub(crate) type Slot = Seq;

/// A loaded run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunState {
    run: Run,
    tasks: BTreeMap<Slot, Task>,
    names: BTreeMap<String, Slot>,
    queue: Queue,
    entries: BTreeMap<Seq, Entry>,
    entry_names: BTreeMap<String, Seq>,
    summaries: Summaries,
    /// By the event that saved them.
    checkpoints: BTreeMap<Seq, Checkpoint>,
    mutations: BTreeMap<Seq, Mutation>,
    /// The newest event of each thread that the ledger has.
    sources: BTreeMap<ThreadId, Seq>,
    ledger: LedgerSummary,
    rollback: Option<Rollback>,
    /// About how many bytes tasks, entries and mutations hold.
    bytes: usize,
}

impl RunState {
    /// The run as callers see it.
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// The newest event.
    pub const fn seq(&self) -> Seq {
        self.run.last_event_seq
    }

    /// Tasks, oldest first.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// A task by its id.
    pub fn task(&self, id: &str) -> Option<&Task> {
        self.tasks.get(self.names.get(id)?)
    }

    /// The lines of the blackboard, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Checkpoints, oldest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.values()
    }

    /// What tools did to files, oldest first.
    pub fn mutations(&self) -> impl Iterator<Item = &Mutation> {
        self.mutations.values()
    }

    /// What must happen while this state lasts.
    pub fn owed(&self) -> Owed {
        Owed { restore: self.restore_due(), wake_at: self.queue.wake_at() }
    }

    /// Since when the run has had work that must go on by itself: files that are being put back.
    pub fn owes_since(&self) -> Option<UnixMs> {
        self.rollback.as_ref().map(|rollback| rollback.started_at)
    }

    /// About how many bytes of memory the state holds.
    pub fn held_bytes(&self) -> usize {
        let run = &self.run;
        let steps: usize = run.steps.iter().map(|step| step.title.len() + 128).sum();
        let metadata = run.source_metadata.as_ref().map_or(0, apply::size);
        let texts = [&run.why_next_step, &run.last_error].into_iter().flatten().map(String::len).sum::<usize>();
        let summaries = self.summaries.rolling.len() + self.summaries.latest_context_pack.len();
        let small = 64 * self.sources.len() + 256 * self.checkpoints.len() + 128 * self.ledger.by_tool.len();
        4096 + run.objective.len() + steps + metadata + texts + summaries + small + self.bytes
    }
}
