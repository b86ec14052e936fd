//! Compaction: a model call whose answer takes the place of the conversation before it.
//!
//! What users said in the open turn is kept word for word (see [`crate::history`]). A compaction that fails changes
//! nothing that a model sees.

use super::{settings::fits, step::Stepper};
use crate::{
    command::{Compact, Refused, Reply},
    event::Event,
    id::{ItemId, TurnId},
    ports::{ModelError, ModelErrorKind},
    record::{Compaction, Delivery, Purpose, TurnError, TurnKind, TurnOverrides, TurnStatus, Usage},
};

/// What the model is asked for.
pub const INSTRUCTION: &str = "Summarise the conversation so far, for yourself: your summary takes its place, and \
    nothing else of it will be seen again. Keep what is needed to go on: what was asked for, what was decided and why, \
    what was done and with which result, names, paths, numbers and open ends. Do not answer anything, call no tool, \
    and write nothing but the summary.";

impl Stepper<'_> {
    pub(super) fn compact(&mut self, compact: Compact) -> Result<Reply, Refused> {
        let reason = compact.reason.unwrap_or_default();
        fits("reason", &reason, self.cx.limits.field_bytes)?;
        if self.state.view.archived {
            return Err(Refused::ThreadArchived);
        }
        self.affordable()?;
        match (compact.delivery, self.state.open.as_ref().map(|open| open.turn.id)) {
            (Delivery::Reject, Some(turn)) => Err(Refused::TurnOpen { turn }),
            (Delivery::Queue, Some(active)) => {
                self.queue(TurnKind::Compaction, reason, TurnOverrides::default(), active)
            }
            (Delivery::Reject | Delivery::Queue, None) => {
                if self.nothing_to_compact() {
                    return Err(Refused::NothingToCompact);
                }
                self.cx.room.turn()?;
                let id = TurnId::new(self.cx.ids.mint());
                let turn = self.open_turn(id, TurnKind::Compaction, reason, TurnOverrides::default());
                Ok(Reply::Started(Box::new(turn)))
            }
            (Delivery::Steer | Delivery::Interrupt | Delivery::Rollback, _) => {
                Err(Refused::Invalid { field: "delivery", why: "is neither `reject` nor `queue`".to_owned() })
            }
        }
    }

    /// Whether there is nothing, or nothing but a summary.
    pub(super) fn nothing_to_compact(&self) -> bool {
        self.state.last.as_ref().is_none_or(|last| last.compaction.is_some())
    }

    /// Makes the due model call one that compacts, if the conversation has grown to where it is worth it.
    pub(super) fn compact_if_due(&mut self) {
        let threshold = self.cx.limits.compact_at_tokens;
        let grown = threshold > 0 && self.state.context_tokens.is_some_and(|tokens| tokens >= threshold);
        if grown && self.state.open.as_ref().is_some_and(|open| open.compacting.is_none()) {
            self.begin_compaction(true, None);
        }
    }

    pub(super) fn begin_compaction(&mut self, automatic: bool, reason: Option<String>) {
        let Some(open) = &self.state.open else { return };
        let compaction = Compaction {
            turn_id: open.turn.id,
            automatic,
            reason,
            tokens_before: self.state.context_tokens,
            item_id: None,
            error: None,
        };
        self.emit(Event::CompactionStarted(Box::new(compaction)));
    }

    /// The model has answered a call that compacts.
    pub(super) fn compacted(&mut self, turn: TurnId, usage: Option<Usage>) {
        let Some(open) = &self.state.open else { return };
        let summary = open.open_text().filter(|item| !item.detail.trim().is_empty()).map(|item| item.id);
        let kind = open.turn.kind;
        let Some(item) = summary else {
            self.record_usage(turn, usage, Purpose::Compaction);
            let message = "the model gave no summary".to_owned();
            return self.compaction_failed(&ModelError { kind: ModelErrorKind::Malformed, message, retry_after: None });
        };
        self.close_text(TurnStatus::Completed, |_| {});
        self.complete_compaction(item);
        self.record_usage(turn, usage, Purpose::Compaction);
        if kind == TurnKind::Compaction {
            self.end(TurnStatus::Completed, None);
        } else {
            self.proceed();
        }
    }

    /// Says that `item` now stands for the conversation before it.
    pub(super) fn complete_compaction(&mut self, item: ItemId) {
        let compaction = self.state.open.as_ref().and_then(|open| open.compacting.clone());
        if let Some(compaction) = compaction {
            self.emit(Event::CompactionCompleted(Box::new(Compaction { item_id: Some(item), ..compaction })));
        }
    }

    /// A call that compacts has failed for good. A turn that was only for it fails; another goes on without.
    pub(super) fn compaction_failed(&mut self, error: &ModelError) {
        let told = TurnError { code: error.kind.code().to_owned(), message: error.message.clone() };
        self.supersede();
        self.give_up_compaction(told.clone());
        match self.state.open.as_ref().map(|open| open.turn.kind) {
            Some(TurnKind::Compaction) => self.end(TurnStatus::Failed, Some(told)),
            Some(TurnKind::Prompt) => self.proceed(),
            None => {}
        }
    }

    /// Says that the compaction under way, if one is, came to nothing.
    pub(super) fn give_up_compaction(&mut self, error: TurnError) {
        let compaction = self.state.open.as_ref().and_then(|open| open.compacting.clone());
        if let Some(compaction) = compaction {
            self.emit(Event::CompactionFailed(Box::new(Compaction { error: Some(error), ..compaction })));
        }
    }
}
