//! A thread that begins where another one stood.

use super::{Cx, Last, Step, ThreadState, settings::fits, step::Stepper};
use crate::{
    budget::Amount,
    command::{Refused, Reply},
    event::Event,
    id::{Seq, ThreadId},
    record::{ForkedFrom, Item, ItemKind, Thread, ThreadStatus, Turn, TurnError, TurnKind, TurnStatus, Usage},
};

/// A settled place in a thread's log, and what held there.
#[derive(Debug, Clone, PartialEq)]
pub struct ForkPoint {
    /// The parent as it is now: the fork takes over its settings.
    pub parent: Thread,
    /// The last event that the two share. No turn is open after it.
    pub at: Seq,
    pub last: Option<Last>,
    /// See [`ThreadState::context_seq`].
    pub context_seq: Seq,
    /// The parent's, unless given.
    pub title: Option<String>,
    /// A turn that began after `at`, and the first of its items, which the fork is to have as well.
    pub part: Option<(Turn, Vec<Item>)>,
}

impl Last {
    /// A turn that ended, as the last of a conversation.
    pub const fn new(turn: Turn, started_seq: Seq, context_seq: Seq) -> Self {
        Self { turn, started_seq, context_seq, compaction: None }
    }

    /// The same, with a compaction behind it.
    #[must_use]
    pub fn compacted_by(self, compaction: Turn, started_seq: Seq) -> Self {
        Self { compaction: Some((compaction, started_seq)), ..self }
    }
}

impl ThreadState {
    /// Makes a thread that continues another one's log, and the step that says so. Nothing that is open, waits, or
    /// was granted comes along, nor the run that the other one works for.
    pub fn fork(id: ThreadId, from: ForkPoint, cx: Cx<'_>) -> Result<(Self, Step), Refused> {
        let ForkPoint { parent, at, last, context_seq, title, part } = from;
        fits("title", title.as_deref().unwrap_or_default(), cx.limits.field_bytes)?;
        let thread = Thread {
            id,
            title: title.or_else(|| parent.title.clone()),
            status: ThreadStatus::Idle,
            archived: false,
            active_turn: None,
            queued: 0,
            queue_paused: false,
            pending_approvals: 0,
            // Nobody has set the fork to work for the parent's run. What it did would be on that run's account, and
            // could be rolled back with it, without a word of whoever made the fork.
            run_id: None,
            // What the parent spent is on the parent's account.
            spent: parent.budget.map(|_| Amount::default()),
            forked_from: Some(ForkedFrom { thread_id: parent.id, seq: at }),
            created_at: cx.now,
            updated_at: cx.now,
            seq: at + 1,
            ..parent
        };
        let mut state = Self::of(Thread { seq: at, ..thread.clone() });
        state.context_seq = context_seq;
        state.last = last.map(|mut last| {
            last.turn.thread_id = id;
            if let Some((compaction, _)) = &mut last.compaction {
                compaction.thread_id = id;
            }
            Box::new(last)
        });
        let mut stepper = Stepper::new(&mut state, cx);
        stepper.emit(Event::ThreadForked(Box::new(thread.clone())));
        if let Some((turn, items)) = part {
            stepper.repeat(turn, items);
        }
        let step = stepper.finish(Reply::Thread(Box::new(thread)));
        Ok((state, step))
    }
}

impl Stepper<'_> {
    /// Writes a turn of the parent again, up to the last of `items`. What it cost is the parent's.
    fn repeat(&mut self, turn: Turn, items: Vec<Item>) {
        let begun = Turn {
            thread_id: self.state.id(),
            status: TurnStatus::InProgress,
            spent: turn.budget.map(|_| Amount::default()),
            usage: Usage::default(),
            error: None,
            item_ids: items.iter().map(|item| item.id).collect(),
            not_delivered: Vec::new(),
            ended_at: None,
            duration_ms: None,
            ..turn
        };
        self.emit(Event::TurnStarted(Box::new(begun.clone())));
        let ended_at = items.iter().filter_map(|item| item.ended_at).max().unwrap_or(self.cx.now);
        for item in items {
            let started =
                Item { status: TurnStatus::InProgress, detail: String::new(), ended_at: None, ..item.clone() };
            let (id, summary) = (item.id, item.kind == ItemKind::ContextCompaction);
            let compacts = summary && item.status == TurnStatus::Completed;
            if compacts {
                self.begin_compaction(begun.kind == TurnKind::Prompt, None);
            }
            self.emit(Event::ItemStarted(Box::new(started)));
            self.emit(Event::ItemCompleted(Box::new(item)));
            if compacts {
                self.complete_compaction(id);
            }
        }
        let message = "the fork was made at an item of this turn; what it did later is not part of it".to_owned();
        let ended = Turn {
            status: TurnStatus::Interrupted,
            error: Some(TurnError { code: "forked".to_owned(), message }),
            ended_at: Some(ended_at),
            duration_ms: Some(ended_at.since(begun.created_at)),
            ..begun
        };
        self.emit(Event::TurnCompleted(Box::new(ended)));
    }
}
