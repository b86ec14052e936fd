//! The open turn: what the engine reports, how a turn ends, and how it goes on after a crash.

use std::time::Duration;

use serde_json::json;

use super::{budget::estimate, step::Stepper};
use crate::{
    budget::Amount,
    command::{Interrupt, Metered, Refused, Reply, Report, TextKind},
    event::{Event, ItemDelta, Retrying},
    history::{CALL, SUPERSEDED},
    id::{ItemId, TurnId},
    ports::{Answered, FinishReason, ModelError, ModelErrorKind},
    record::{
        InterruptReceipt, Item, ItemKind, Metadata, OnRestart, Purpose, Turn, TurnError, TurnStatus, Usage, UsageEntry,
        summarize,
    },
};

impl Stepper<'_> {
    /// What an engine says. Said about a call that is no longer the open one, it changes nothing.
    pub(super) fn report(&mut self, report: Report) -> Reply {
        let due = Some((report.turn, report.call));
        if self.state.owed().call != due {
            return Reply::Noted;
        }
        let grown =
            report.text.into_iter().try_for_each(|(kind, text)| self.grow(report.turn, report.call, kind, text));
        // Behind its text, which tells a part of it.
        if let Some(metered) = &report.metered {
            self.metered(report.turn, report.call, metered);
        }
        let mut acts = report.acts.into_iter();
        let acted = grown.and_then(|()| acts.try_for_each(|act| self.act(report.turn, report.call, act)));
        match (acted, report.end) {
            (Err(too_large), _) => self.failed(too_large, report.metered),
            (Ok(()), Some(Ok(answered))) => self.answered(report.turn, report.call, answered, report.metered),
            (Ok(()), Some(Err(error))) => self.failed(error, report.metered),
            (Ok(()), None) => {}
        }
        Reply::Noted
    }

    /// Adds streamed text to the open item of its kind, opening one where there is none.
    fn grow(&mut self, turn: TurnId, call: u32, kind: TextKind, text: String) -> Result<(), ModelError> {
        if text.is_empty() {
            return Ok(());
        }
        let kind = match (self.purpose(), kind) {
            (Purpose::Answer, kind) => kind.item(),
            (Purpose::Compaction, TextKind::Answer) => ItemKind::ContextCompaction,
            // What a model thinks about a summary is not part of the conversation.
            (Purpose::Compaction, TextKind::Reasoning) => return Ok(()),
        };
        let open = self.open_text().filter(|item| item.kind == kind);
        let limit = self.cx.limits.item_bytes;
        if open.as_ref().map_or(0, |item| item.detail.len()) + text.len() > limit {
            let message = format!("the model's answer is longer than the limit of {limit} bytes per item");
            return Err(ModelError { kind: ModelErrorKind::TooLarge, message, retry_after: None });
        }
        let item = match open {
            Some(item) => item.id,
            None => {
                self.close_text(TurnStatus::Completed, |_| {});
                let mut item = self.new_item(turn, call, kind);
                item.summary = summarize(&text);
                let id = item.id;
                self.emit(Event::ItemStarted(item));
                id
            }
        };
        self.emit(Event::ItemDelta(ItemDelta { turn, item, kind, delta: text }));
        Ok(())
    }

    fn answered(&mut self, turn: TurnId, call: u32, answered: Answered, metered: Option<Metered>) {
        let Answered { reason, usage, tool_calls } = answered;
        let usage = usage.or_else(|| metered.map(|metered| estimate(metered.reserved)));
        self.give_up_acts("the agent ended its answer without saying what became of it", false);
        if self.purpose() == Purpose::Compaction {
            return self.compacted(turn, usage);
        }
        self.close_text(TurnStatus::Completed, |item| {
            if !matches!(reason, FinishReason::Stop | FinishReason::ToolCalls) {
                item.metadata.insert("finish_reason".to_owned(), json!(reason.as_str()));
            }
        });
        let last = tool_calls.is_empty();
        for requested in tool_calls {
            self.request(turn, call, requested);
        }
        self.record_usage(turn, usage, Purpose::Answer);
        let steered = self.state.open.as_ref().is_some_and(|open| !open.steers.is_empty());
        if last && !(steered && self.may_call_again()) {
            self.end(TurnStatus::Completed, None);
        } else {
            self.proceed();
        }
    }

    /// Goes on to the next model call, once every tool call of the last answer is done. Ends a turn that has made all
    /// the model calls it may.
    pub(super) fn proceed(&mut self) {
        let Some(open) = self.state.open.as_ref().filter(|open| open.calls.is_empty()) else { return };
        if !self.may_call_again() {
            let calls = open.turn.usage.model_calls;
            let message = format!("the turn made {calls} model calls, its limit, without coming to an end");
            return self.end(TurnStatus::Failed, Some(TurnError { code: "step-limit".to_owned(), message }));
        }
        self.deliver_steers();
        self.compact_if_due();
    }

    fn may_call_again(&self) -> bool {
        let calls = self.state.open.as_ref().map_or(0, |open| open.turn.usage.model_calls);
        calls < self.cx.limits.model_calls_per_turn
    }

    pub(super) fn record_usage(&mut self, turn: TurnId, reported: Option<Usage>, purpose: Purpose) {
        let Some(open) = &self.state.open else { return };
        let settings = &open.turn.settings;
        let usage =
            Usage { model_calls: 1, unreported_calls: reported.is_none().into(), ..reported.unwrap_or_default() };
        let price = settings.price.as_ref().filter(|_| reported.is_some());
        let (engine, model) = (settings.engine.clone(), settings.model.clone());
        let entry = UsageEntry { engine, model, purpose, usage, cost: price.map(|price| price.cost(&usage)) };
        self.emit(Event::UsageRecorded(turn, Box::new(entry)));
        self.warn(Amount::default());
    }

    fn failed(&mut self, error: ModelError, metered: Option<Metered>) {
        let told = TurnError { code: error.kind.code().to_owned(), message: error.message.clone() };
        self.settle_failed(error.kind, metered.as_ref().map(|metered| metered.reserved));
        if error.kind == ModelErrorKind::Budget {
            return self.out_of_budget(told, metered.and_then(|metered| metered.exceeded));
        }
        match self.retry_pause(&error) {
            Some(pause) => {
                self.supersede();
                let Some(open) = &self.state.open else { return };
                let retrying = Retrying {
                    turn: open.turn.clone(),
                    attempt: open.attempt,
                    max_attempts: self.cx.limits.model_attempts,
                    retry_at: self.cx.now.after(pause),
                    error: told,
                };
                self.emit(Event::TurnRetrying(Box::new(retrying)));
            }
            None if self.purpose() == Purpose::Compaction => self.compaction_failed(&error),
            None => self.end(TurnStatus::Failed, Some(told)),
        }
    }

    /// How long to wait before another try, if there is to be one: `base × 2^(attempt − 1)`, or what the provider
    /// asked for, within the cap and the turn's deadline.
    fn retry_pause(&self, error: &ModelError) -> Option<Duration> {
        let (open, limits) = (self.state.open.as_ref()?, self.cx.limits);
        if !error.kind.is_transient() || open.attempt >= limits.model_attempts || open.acted {
            return None;
        }
        let cap = Duration::from_millis(limits.retry_cap_ms);
        let backoff = Duration::from_millis(limits.retry_base_ms.saturating_mul(1 << (open.attempt - 1).min(20)));
        let pause = match error.retry_after {
            Some(asked) if asked > cap => return None,
            Some(asked) => asked.max(Duration::from_millis(1)),
            None => backoff.min(cap),
        };
        (self.cx.now.after(pause) < open.deadline(limits)).then_some(pause)
    }

    pub(super) fn tick(&mut self) -> Reply {
        let now = self.cx.now;
        let deadline = self.state.deadline(self.cx.limits);
        if deadline.is_some_and(|deadline| deadline <= now) {
            let message = format!("the turn was at work for {} ms, its limit", self.cx.limits.turn_ms);
            self.end(TurnStatus::Failed, Some(TurnError { code: "deadline-exceeded".to_owned(), message }));
            return Reply::Noted;
        }
        self.expire();
        let Some(open) = &self.state.open else { return Reply::Noted };
        if open.retry_at.is_some_and(|at| at <= now || at.since(now) > self.cx.limits.retry_cap_ms) {
            // No pause is longer than the cap: if it seems so, the clock was set back.
            let turn = Box::new(open.turn.clone());
            self.emit(Event::TurnResumed(turn));
        }
        Reply::Noted
    }

    pub(super) fn recover(&mut self, restarted: bool) -> Reply {
        let Some(open) = &self.state.open else {
            // A prompt may have been left waiting by a process that was about to end.
            self.promote();
            return Reply::Noted;
        };
        let error = |code: &str, message: String| Some(TurnError { code: code.to_owned(), message });
        if restarted && self.state.view.on_restart == OnRestart::Interrupt {
            let why = error("process-restarted", "the process that ran the turn is gone".to_owned());
            self.end(TurnStatus::Interrupted, why);
        } else if open.retry_at.is_some() || open.waits() {
            // It only waits; its timer is durable.
        } else if open.acted {
            self.lose_agent();
        } else if open.resumes >= self.cx.limits.resumes_without_progress {
            let message = format!("the process was lost {} times without the turn getting anywhere", open.resumes);
            self.end(TurnStatus::Failed, error("resume-limit", message));
        } else {
            let mut turn = Box::new(open.turn.clone());
            turn.resume_count += 1;
            self.supersede();
            self.emit(Event::TurnResumed(turn));
            self.recover_effects();
        }
        Reply::Noted
    }

    pub(super) fn interrupt(&mut self, interrupt: Interrupt) -> Result<Reply, Refused> {
        let Interrupt { turn, pause_queue } = interrupt;
        let active = self.state.open.as_ref().map(|open| open.turn.id);
        if active != Some(turn) {
            return Err(Refused::TurnNotActive { turn, active });
        }
        let receipt = self.cut_off(pause_queue);
        self.promote();
        Ok(Reply::Interrupted(Box::new(receipt)))
    }

    /// Ends the open turn for its caller.
    pub(super) fn cut_off(&mut self, pause_queue: bool) -> InterruptReceipt {
        let Some(open) = &self.state.open else { unreachable!("every caller holds an open turn") };
        let requested = Box::new(open.turn.clone());
        self.emit(Event::TurnInterruptRequested(requested));
        if pause_queue && !self.state.view.queue_paused {
            let mut view = self.next_view();
            view.queue_paused = true;
            self.emit(Event::ThreadUpdated(view));
        }
        self.close_turn(TurnStatus::Interrupted, None)
    }

    /// Ends the open turn and starts that of the next prompt, if one waits.
    pub(super) fn end(&mut self, status: TurnStatus, error: Option<TurnError>) {
        self.close_turn(status, error);
        self.promote();
    }

    /// Ends the open turn, and everything that is open in it before.
    pub(super) fn close_turn(&mut self, status: TurnStatus, error: Option<TurnError>) -> InterruptReceipt {
        self.close_text(TurnStatus::Interrupted, |_| {});
        self.settle_lost();
        let why = error
            .clone()
            .unwrap_or_else(|| TurnError { code: "turn-ended".to_owned(), message: "the turn ended first".to_owned() });
        self.give_up_compaction(why);
        let effects = self.close_calls();
        let failed = self.fail_steers();
        let Some(open) = &self.state.open else { unreachable!("every caller holds an open turn") };
        let now = self.cx.now;
        let turn = Turn {
            status,
            error,
            not_delivered: failed.iter().map(|admission| admission.id).collect(),
            ended_at: Some(now),
            duration_ms: Some(now.since(open.turn.created_at)),
            ..open.turn.clone()
        };
        let ended_seq = self.emit(Event::TurnCompleted(Box::new(turn.clone())));
        self.requeue(failed);
        InterruptReceipt { turn, ended_seq, effects }
    }

    /// Closes what is open of an answer that will be asked for again.
    pub(super) fn supersede(&mut self) {
        self.give_up_acts("the answer that it was part of is asked for again", true);
        self.close_text(TurnStatus::Interrupted, |item| {
            item.metadata.insert(SUPERSEDED.to_owned(), json!(true));
        });
        self.supersede_closed();
        self.settle_lost();
    }

    /// Closes the item that text streams into, if one is open.
    pub(super) fn close_text(&mut self, status: TurnStatus, finish: impl FnOnce(&mut Item)) {
        let Some(item) = self.open_text().cloned() else { return };
        self.close_item(item, status, |item| {
            finish(item);
            item.summary = summarize(&item.detail);
        });
    }

    pub(super) fn close_item(&mut self, item: Item, status: TurnStatus, finish: impl FnOnce(&mut Item)) {
        let mut item = Box::new(Item { status, ended_at: Some(self.cx.now), ..item });
        finish(&mut item);
        self.emit(Event::ItemCompleted(item));
    }

    fn open_text(&self) -> Option<&Item> {
        self.state.open.as_ref().and_then(|open| open.open_text())
    }

    fn purpose(&self) -> Purpose {
        self.state.open.as_ref().map_or(Purpose::Answer, |open| open.purpose())
    }

    pub(super) fn new_item(&self, turn: TurnId, call: u32, kind: ItemKind) -> Box<Item> {
        Box::new(Item {
            id: ItemId::new(self.cx.ids.mint()),
            turn_id: turn,
            kind,
            status: TurnStatus::InProgress,
            summary: String::new(),
            detail: String::new(),
            metadata: Metadata::from_iter([(CALL.to_owned(), json!(call))]),
            artifact_refs: Vec::new(),
            started_at: self.cx.now,
            ended_at: None,
        })
    }
}
