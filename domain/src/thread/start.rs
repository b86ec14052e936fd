//! Prompts that start a turn: at once, in place of the open one, or in place of the last.

use super::{budget::checked, settings::fits, step::Stepper};
use crate::{
    budget::Amount,
    command::{IfIdle, Refused, Reply, StartTurn},
    event::Event,
    id::{ItemId, TurnId},
    record::{
        Delivery, Item, ItemKind, Metadata, Turn, TurnKind, TurnOverrides, TurnSettings, TurnStatus, Usage, summarize,
    },
};

impl Stepper<'_> {
    pub(super) fn start(&mut self, start: StartTurn) -> Result<Reply, Refused> {
        self.acceptable(&start)?;
        let active = self.state.open.as_ref().map(|open| open.turn.id);
        if let Some(turn) = start.expected_turn.filter(|turn| Some(*turn) != active) {
            return Err(Refused::TurnNotActive { turn, active });
        }
        match (start.delivery, active) {
            (Delivery::Steer, None) if start.if_idle == IfIdle::Reject => Err(Refused::NothingToSteer),
            (_, None) => {
                self.cx.room.turn()?;
                Ok(self.open_prompt(start.prompt, start.overrides))
            }
            (Delivery::Reject, Some(turn)) => Err(Refused::TurnOpen { turn }),
            (Delivery::Queue, Some(active)) => self.queue(TurnKind::Prompt, start.prompt, start.overrides, active),
            (Delivery::Steer, Some(active)) => {
                self.steer_open(active, start.prompt, start.overrides, start.undelivered)
            }
            (Delivery::Interrupt, Some(_)) => {
                self.cx.room.turn()?;
                self.cut_off(false);
                Ok(self.open_prompt(start.prompt, start.overrides))
            }
            (Delivery::Rollback, Some(active)) => {
                self.cx.room.turn()?;
                self.cut_off(false);
                // A turn that only compacts is not part of the conversation.
                if self.state.last.as_ref().is_some_and(|last| last.turn.id == active) {
                    self.roll_back();
                }
                Ok(self.open_prompt(start.prompt, start.overrides))
            }
        }
    }

    /// Takes the last prompt's turn out of the conversation and starts another in its place.
    pub(super) fn edit(&mut self, start: StartTurn) -> Result<Reply, Refused> {
        self.acceptable(&start)?;
        if let Some(open) = &self.state.open {
            return Err(Refused::TurnOpen { turn: open.turn.id });
        }
        if self.state.last.is_none() {
            return Err(Refused::NothingToEdit);
        }
        self.cx.room.turn()?;
        self.roll_back();
        Ok(self.open_prompt(start.prompt, start.overrides))
    }

    /// Takes the last turn, and the compaction behind it, out of the conversation, newest first.
    fn roll_back(&mut self) {
        let compaction =
            self.state.last.as_ref().and_then(|last| last.compaction.as_ref()).map(|(turn, _)| turn.clone());
        let turn = self.state.last.as_ref().map(|last| last.turn.clone());
        for turn in [compaction, turn].into_iter().flatten() {
            self.emit(Event::TurnRolledBack(Box::new(Turn { status: TurnStatus::RolledBack, ..turn })));
        }
    }

    fn acceptable(&self, start: &StartTurn) -> Result<(), Refused> {
        self.readable(&start.prompt)?;
        self.sane(&start.overrides)?;
        if self.state.view.archived {
            return Err(Refused::ThreadArchived);
        }
        self.affordable()
    }

    /// Whether something can be said to a model.
    pub(super) fn readable(&self, prompt: &str) -> Result<(), Refused> {
        fits("prompt", prompt, self.cx.limits.prompt_bytes)?;
        if prompt.trim().is_empty() {
            return Err(Refused::Invalid { field: "prompt", why: "is blank".to_owned() });
        }
        Ok(())
    }

    fn open_prompt(&mut self, prompt: String, overrides: TurnOverrides) -> Reply {
        let id = TurnId::new(self.cx.ids.mint());
        Reply::Started(Box::new(self.open_turn(id, TurnKind::Prompt, prompt, overrides)))
    }

    /// Starts a turn where none is open. Of a compaction, `prompt` is the reason.
    pub(super) fn open_turn(&mut self, id: TurnId, kind: TurnKind, prompt: String, overrides: TurnOverrides) -> Turn {
        let now = self.cx.now;
        let thread = &self.state.view;
        let (engine, model) = match overrides.choice {
            Some(choice) => (choice.engine, choice.model),
            None => (thread.engine.clone(), thread.model.clone()),
        };
        let settings = TurnSettings {
            price: self.cx.prices.at(&engine, &model, now).cloned(),
            engine,
            model,
            mode: overrides.mode.unwrap_or_else(|| thread.mode.clone()),
            allow_shell: overrides.allow_shell.unwrap_or(thread.allow_shell),
            auto_approve: overrides.auto_approve.unwrap_or(thread.auto_approve),
            trust_mode: overrides.trust_mode.unwrap_or(thread.trust_mode),
            temperature: overrides.temperature,
            top_p: overrides.top_p,
            max_tokens: overrides.max_tokens,
        };
        let item = (kind == TurnKind::Prompt).then(|| ItemId::new(self.cx.ids.mint()));
        let turn = Turn {
            id,
            thread_id: self.state.id(),
            kind,
            status: TurnStatus::InProgress,
            input_summary: overrides.input_summary.unwrap_or_else(|| summarize(&prompt)),
            task_id: overrides.task_id,
            settings,
            budget: overrides.budget,
            spent: overrides.budget.map(|_| Amount::default()),
            usage: Usage::default(),
            error: None,
            item_ids: item.into_iter().collect(),
            steer_count: 0,
            resume_count: 0,
            not_delivered: Vec::new(),
            created_at: now,
            started_at: Some(now),
            ended_at: None,
            duration_ms: None,
        };
        self.emit(Event::TurnStarted(Box::new(turn.clone())));
        match item {
            Some(item) => {
                self.say(item, id, prompt);
                self.compact_if_due();
            }
            None => self.begin_compaction(false, Some(prompt).filter(|reason| !reason.is_empty())),
        }
        turn
    }

    /// Adds what a user says to the open turn.
    pub(super) fn say(&mut self, item: ItemId, turn: TurnId, prompt: String) {
        let mut user = Box::new(Item {
            id: item,
            turn_id: turn,
            kind: ItemKind::UserMessage,
            status: TurnStatus::InProgress,
            summary: summarize(&prompt),
            detail: String::new(),
            metadata: Metadata::new(),
            artifact_refs: Vec::new(),
            started_at: self.cx.now,
            ended_at: None,
        });
        self.emit(Event::ItemStarted(user.clone()));
        user.status = TurnStatus::Completed;
        user.detail = prompt;
        user.ended_at = Some(self.cx.now);
        self.emit(Event::ItemCompleted(user));
    }

    fn sane(&self, overrides: &TurnOverrides) -> Result<(), Refused> {
        let invalid = |field, why: &str| Err(Refused::Invalid { field, why: why.to_owned() });
        let field_bytes = self.cx.limits.field_bytes;
        fits("input_summary", overrides.input_summary.as_deref().unwrap_or_default(), field_bytes)?;
        fits("route_intent", overrides.route_intent.as_deref().unwrap_or_default(), field_bytes)?;
        fits("mode", overrides.mode.as_deref().unwrap_or_default(), field_bytes)?;
        if overrides.mode.as_deref().is_some_and(|mode| mode.trim().is_empty()) {
            return invalid("mode", "is blank");
        }
        if overrides.temperature.is_some_and(|value| !(0.0..=2.0).contains(&value)) {
            return invalid("temperature", "is not between 0 and 2");
        }
        if overrides.top_p.is_some_and(|value| !(value > 0.0 && value <= 1.0)) {
            return invalid("top_p", "is not above 0 and at most 1");
        }
        checked(overrides.budget.as_ref())?;
        if overrides.max_tokens == Some(0) {
            return invalid("max_tokens", "is zero");
        }
        Ok(())
    }
}
