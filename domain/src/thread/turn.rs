//! The open turn: what the engine reports, how a turn ends, and how it goes on after a crash.

use std::time::Duration;

use serde_json::json;

use super::step::Stepper;
use crate::{
    command::{Refused, Reply, Report, TextKind},
    event::{Event, ItemDelta, Retrying},
    history::{CALL, SUPERSEDED, ToolCall},
    id::{ItemId, Seq, TurnId},
    ports::{Answered, FinishReason, ModelError, ModelErrorKind},
    record::{
        InterruptReceipt, Item, ItemKind, Metadata, OnRestart, Turn, TurnError, TurnStatus, Usage, UsageEntry,
        summarize,
    },
};

impl Stepper<'_> {
    /// What an engine says. Said about a call that is no longer the open one, it changes nothing.
    pub(super) fn report(&mut self, report: Report) -> Reply {
        let current =
            |open: &super::OpenTurn| open.turn.id == report.turn && open.call == report.call && open.retry_at.is_none();
        if !self.state.open.as_ref().is_some_and(current) {
            return Reply::Noted;
        }
        let grown =
            report.text.into_iter().try_for_each(|(kind, text)| self.grow(report.turn, report.call, kind, text));
        match (grown, report.end) {
            (Err(too_large), _) => self.failed(too_large),
            (Ok(()), Some(Ok(answered))) => self.answered(report.turn, report.call, answered),
            (Ok(()), Some(Err(error))) => self.failed(error),
            (Ok(()), None) => {}
        }
        Reply::Noted
    }

    /// Adds streamed text to the open item of its kind, opening one where there is none.
    fn grow(&mut self, turn: TurnId, call: u32, kind: TextKind, text: String) -> Result<(), ModelError> {
        if text.is_empty() {
            return Ok(());
        }
        let kind = kind.item();
        let open = self.open_item().filter(|item| item.kind == kind);
        let limit = self.cx.limits.item_bytes;
        if open.as_ref().map_or(0, |item| item.detail.len()) + text.len() > limit {
            let message = format!("the model's answer is longer than the limit of {limit} bytes per item");
            return Err(ModelError { kind: ModelErrorKind::TooLarge, message, retry_after: None });
        }
        let item = match open {
            Some(item) => item.id,
            None => {
                self.close_item(TurnStatus::Completed, |_| {});
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

    fn answered(&mut self, turn: TurnId, call: u32, answered: Answered) {
        let Answered { reason, usage, tool_calls } = answered;
        self.close_item(TurnStatus::Completed, |item| {
            if !matches!(reason, FinishReason::Stop | FinishReason::ToolCalls) {
                item.metadata.insert("finish_reason".to_owned(), json!(reason.as_str()));
            }
        });
        let last = tool_calls.is_empty();
        for tool_call in tool_calls {
            self.settle_unknown_tool(turn, call, &tool_call.call);
        }
        self.record_usage(turn, usage);
        let calls = self.state.open.as_ref().map_or(0, |open| open.turn.usage.model_calls);
        if last {
            self.end(TurnStatus::Completed, None);
        } else if calls >= self.cx.limits.model_calls_per_turn {
            let message = format!("the turn made {calls} model calls, its limit, without coming to an end");
            self.end(TurnStatus::Failed, Some(TurnError { code: "step-limit".to_owned(), message }));
        }
    }

    /// No tool is offered to models, so whatever is called is unknown; the model is told, and goes on.
    fn settle_unknown_tool(&mut self, turn: TurnId, call: u32, tool_call: &ToolCall) {
        let mut item = self.new_item(turn, call, ItemKind::ToolCall);
        item.summary = summarize(&tool_call.name);
        item.metadata.insert("call_id".to_owned(), json!(tool_call.call_id));
        item.metadata.insert("tool".to_owned(), json!(tool_call.name));
        item.metadata.insert("arguments".to_owned(), tool_call.arguments_value());
        self.emit(Event::ItemStarted(item));
        self.close_item(TurnStatus::Failed, |item| item.detail = format!("unknown tool: {}", tool_call.name));
    }

    fn record_usage(&mut self, turn: TurnId, reported: Option<Usage>) {
        let Some(open) = &self.state.open else { return };
        let usage =
            Usage { model_calls: 1, unreported_calls: reported.is_none().into(), ..reported.unwrap_or_default() };
        let entry = UsageEntry {
            engine: open.turn.settings.engine.clone(),
            model: open.turn.settings.model.clone(),
            purpose: Default::default(),
            usage,
            cost: None,
        };
        self.emit(Event::UsageRecorded(turn, Box::new(entry)));
    }

    fn failed(&mut self, error: ModelError) {
        let told = TurnError { code: error.kind.code().to_owned(), message: error.message.clone() };
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
            None => self.end(TurnStatus::Failed, Some(told)),
        }
    }

    /// How long to wait before another try, if there is to be one: `base × 2^(attempt − 1)`, or what the provider
    /// asked for, within the cap and the turn's deadline.
    fn retry_pause(&self, error: &ModelError) -> Option<Duration> {
        let (open, limits) = (self.state.open.as_ref()?, self.cx.limits);
        if !error.kind.is_transient() || open.attempt >= limits.model_attempts {
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
        let Some(open) = &self.state.open else { return Reply::Noted };
        if open.deadline(self.cx.limits) <= self.cx.now {
            let message = format!("the turn was open for {} ms, its limit", self.cx.limits.turn_ms);
            self.end(TurnStatus::Failed, Some(TurnError { code: "deadline-exceeded".to_owned(), message }));
        } else if open
            .retry_at
            .is_some_and(|at| at <= self.cx.now || at.since(self.cx.now) > self.cx.limits.retry_cap_ms)
        {
            // No pause is longer than the cap: if it seems so, the clock was set back.
            let turn = Box::new(open.turn.clone());
            self.emit(Event::TurnResumed(turn));
        }
        Reply::Noted
    }

    pub(super) fn recover(&mut self, restarted: bool) -> Reply {
        let Some(open) = &self.state.open else { return Reply::Noted };
        let error = |code: &str, message: String| Some(TurnError { code: code.to_owned(), message });
        if restarted && self.state.view.on_restart == OnRestart::Interrupt {
            let why = error("process-restarted", "the process that ran the turn is gone".to_owned());
            self.end(TurnStatus::Interrupted, why);
        } else if open.retry_at.is_some() {
            // It only waits; its timer is durable.
        } else if open.resumes >= self.cx.limits.resumes_without_progress {
            let message = format!("the process was lost {} times without the turn getting anywhere", open.resumes);
            self.end(TurnStatus::Failed, error("resume-limit", message));
        } else {
            let mut turn = Box::new(open.turn.clone());
            turn.resume_count += 1;
            self.supersede();
            self.emit(Event::TurnResumed(turn));
        }
        Reply::Noted
    }

    pub(super) fn interrupt(&mut self, turn: TurnId) -> Result<Reply, Refused> {
        let active = self.state.open.as_ref().map(|open| &open.turn);
        let Some(requested) = active.filter(|open| open.id == turn).cloned() else {
            return Err(Refused::TurnNotActive { turn, active: active.map(|open| open.id) });
        };
        self.emit(Event::TurnInterruptRequested(Box::new(requested)));
        let (turn, ended_seq) = self.close_turn(TurnStatus::Interrupted, None);
        self.promote();
        Ok(Reply::Interrupted(Box::new(InterruptReceipt { turn, ended_seq, effects: Vec::new() })))
    }

    /// Ends the open turn and starts that of the next prompt, if one waits.
    fn end(&mut self, status: TurnStatus, error: Option<TurnError>) {
        self.close_turn(status, error);
        self.promote();
    }

    fn close_turn(&mut self, status: TurnStatus, error: Option<TurnError>) -> (Turn, Seq) {
        self.close_item(TurnStatus::Interrupted, |_| {});
        let Some(open) = &self.state.open else { unreachable!("every caller holds an open turn") };
        let now = self.cx.now;
        let turn = Turn {
            status,
            error,
            ended_at: Some(now),
            duration_ms: Some(now.since(open.turn.created_at)),
            ..open.turn.clone()
        };
        let seq = self.emit(Event::TurnCompleted(Box::new(turn.clone())));
        (turn, seq)
    }

    /// Closes the open item as part of an answer that will be asked for again.
    fn supersede(&mut self) {
        self.close_item(TurnStatus::Interrupted, |item| {
            item.metadata.insert(SUPERSEDED.to_owned(), json!(true));
        });
    }

    fn close_item(&mut self, status: TurnStatus, finish: impl FnOnce(&mut Item)) {
        let Some(mut item) = self.open_item().cloned().map(Box::new) else { return };
        item.status = status;
        item.ended_at = Some(self.cx.now);
        finish(&mut item);
        if item.kind != ItemKind::ToolCall {
            item.summary = summarize(&item.detail);
        }
        self.emit(Event::ItemCompleted(item));
    }

    fn open_item(&self) -> Option<&Item> {
        self.state.open.as_ref().and_then(|open| open.open_item())
    }

    fn new_item(&self, turn: TurnId, call: u32, kind: ItemKind) -> Box<Item> {
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
