//! One thread as a pure state machine: its inbox, its open turn, and the turn's steps.
//!
//! ```text
//!            start                    answer without tool calls, failure, interrupt
//!   idle ───────────────▶ calling ─────────────────────────────────────────────────▶ idle, or the
//!                         ▲  ▲  │ │                                                  next prompt's turn
//!      answer with calls, │  │  │ └─ transient failure ─▶ waiting ─┐
//!      all of them settled└──┼──┘                                  │ tick at `retry_at`
//!                            └─────────────────────────────────────┘
//!   any ── recover (its engine is gone) ─▶ calling again, with a fresh call number; or interrupted
//! ```
//!
//! [`ThreadState::step`] judges a request and, when it accepts, emits events; an event changes the state only
//! through [`ThreadState::apply`], which recovery uses too, so live and replayed states are equal.
//! [`ThreadState::owed`] says what must happen while a state lasts; asking twice for it is harmless.
//!
//! Invariants: seqs are dense; at most one turn is open; a turn, and an item, ends exactly once; nothing of a turn
//! follows its end; a refused request changes nothing; queued prompts run in the order in which they were admitted.
//!
//! Absent on purpose: clocks, fresh ids (both come with [`Cx`]), I/O, and any memory of settled turns, which
//! are found in the log.

mod apply;
mod settings;
mod start;
mod step;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

pub use self::{
    apply::Impossible,
    step::{Rest, Step},
};
use crate::{
    command::Limits,
    id::{InputId, Seq, ThreadId, TurnId},
    ports::Ids,
    record::{Admission, Checkpoint, Item, Thread, Turn},
    time::UnixMs,
};

/// What a step may know of the world.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub now: UnixMs,
    pub ids: &'a dyn Ids,
    pub limits: &'a Limits,
}

/// A loaded thread.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadState {
    /// The record as callers see it; `view.seq` is the head of the log.
    view: Thread,
    inbox: VecDeque<Queued>,
    open: Option<OpenTurn>,
    checkpoints: Vec<Checkpoint>,
}

/// A prompt that waits, and the event that holds it.
#[derive(Debug, Clone, PartialEq)]
struct Queued {
    seq: Seq,
    admission: Admission,
}

/// The turn that is not over yet.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenTurn {
    turn: Turn,
    started_seq: Seq,
    items: Vec<OpenItem>,
    /// The number of the model call that is due or running: it grows whenever another call takes its place, so
    /// what an engine that was given up still says is recognised by it.
    call: u32,
    /// Which try of the same answer this is, from 1.
    attempt: u32,
    /// Set while the turn waits before another try.
    retry_at: Option<UnixMs>,
    /// Times the turn was continued since it last got anywhere.
    resumes: u32,
}

/// An item of the open turn; `settled` is the seq of its `item.completed`.
#[derive(Debug, Clone, PartialEq)]
struct OpenItem {
    item: Item,
    settled: Option<Seq>,
}

/// A turn that just ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    pub turn: Turn,
    pub started_seq: Seq,
    /// The seqs of its items' final events, in item order.
    pub items: Vec<Seq>,
}

/// What a state demands of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owed {
    /// Run this model call of the open turn; any other must not run.
    pub call: Option<(TurnId, u32)>,
    /// Send a tick then, even if the thread must be loaded for it.
    pub wake_at: Option<UnixMs>,
}

/// The state of a thread without an open turn, as it is stored. Prompts that wait are named by the event that holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    view: Thread,
    inbox: Vec<(InputId, Seq)>,
}

impl Snapshot {
    /// The events that [`ThreadState::restore`] needs beside the snapshot, in this order.
    pub fn needs(&self) -> impl Iterator<Item = Seq> {
        self.inbox.iter().map(|(_, seq)| *seq)
    }
}

impl ThreadState {
    /// The thread as callers see it.
    pub const fn view(&self) -> &Thread {
        &self.view
    }

    /// The newest event.
    pub const fn seq(&self) -> Seq {
        self.view.seq
    }

    /// The open turn.
    pub const fn open(&self) -> Option<&OpenTurn> {
        self.open.as_ref()
    }

    /// Prompts that wait, first to run first.
    pub fn inbox(&self) -> impl Iterator<Item = &Admission> {
        self.inbox.iter().map(|queued| &queued.admission)
    }

    /// Named places in the log, oldest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.iter()
    }

    /// What must happen while this state lasts.
    pub fn owed(&self) -> Owed {
        match &self.open {
            None => Owed::default(),
            Some(OpenTurn { retry_at: Some(at), .. }) => Owed { call: None, wake_at: Some(*at) },
            Some(open) => Owed { call: Some((open.turn.id, open.call)), wake_at: None },
        }
    }

    /// Since when the thread has had work that must go on by itself.
    pub fn owes_since(&self) -> Option<UnixMs> {
        self.open.as_ref().map(|open| open.turn.created_at)
    }

    /// When the open turn has taken too long.
    pub fn deadline(&self, limits: &Limits) -> Option<UnixMs> {
        self.open.as_ref().map(|open| open.deadline(limits))
    }

    /// About how many bytes of memory the state holds.
    pub fn held_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let view = text(&self.view.title) + text(&self.view.system_prompt) + text(&self.view.workspace);
        let inbox: usize = self.inbox.iter().map(|queued| queued.admission.prompt.len() + 512).sum();
        let open = self.open.as_ref().map_or(0, |open| open.items().map(|item| item.detail.len() + 512).sum());
        1024 + view + inbox + open
    }

    fn snapshot(&self) -> Snapshot {
        let inbox = self.inbox.iter().map(|queued| (queued.admission.id, queued.seq)).collect();
        Snapshot { view: self.view.clone(), inbox }
    }

    fn id(&self) -> ThreadId {
        self.view.id
    }
}

impl OpenTurn {
    /// The turn so far.
    pub const fn turn(&self) -> &Turn {
        &self.turn
    }

    /// The seq of its `turn.started`.
    pub const fn started_seq(&self) -> Seq {
        self.started_seq
    }

    /// Its items so far.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().map(|open| &open.item)
    }

    fn deadline(&self, limits: &Limits) -> UnixMs {
        UnixMs(self.turn.created_at.0.saturating_add(limits.turn_ms))
    }

    /// The item that text may still be added to. At most one is open at a time.
    fn open_item(&self) -> Option<&Item> {
        self.items.last().filter(|open| open.settled.is_none()).map(|open| &open.item)
    }
}
