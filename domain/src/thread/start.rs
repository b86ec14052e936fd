//! Prompts: those that start a turn at once, and those that wait for their turn.

use super::{settings::fits, step::Stepper};
use crate::{
    command::{Refused, Reply, StartTurn},
    event::Event,
    id::{InputId, ItemId, TurnId},
    record::{
        Admission, AdmissionStatus, Delivery, Item, ItemKind, Metadata, Turn, TurnKind, TurnOverrides, TurnSettings,
        TurnStatus, Undelivered, Usage, summarize,
    },
};

impl Stepper<'_> {
    pub(super) fn start(&mut self, start: StartTurn) -> Result<Reply, Refused> {
        let StartTurn { prompt, delivery, overrides, .. } = start;
        fits("prompt", &prompt, self.cx.limits.prompt_bytes)?;
        if prompt.trim().is_empty() {
            return Err(Refused::Invalid { field: "prompt", why: "is blank".to_owned() });
        }
        self.sane(&overrides)?;
        if self.state.view.archived {
            return Err(Refused::ThreadArchived);
        }
        match (delivery, &self.state.open) {
            (Delivery::Steer, _) => Err(Refused::NotImplemented("delivery `steer`")),
            (Delivery::Interrupt, _) => Err(Refused::NotImplemented("delivery `interrupt`")),
            (Delivery::Rollback, _) => Err(Refused::NotImplemented("delivery `rollback`")),
            (Delivery::Reject | Delivery::Queue, None) => {
                let id = TurnId::new(self.cx.ids.mint());
                let turn = self.open_turn(id, prompt, overrides);
                Ok(Reply::Started(Box::new(turn)))
            }
            (Delivery::Reject, Some(open)) => Err(Refused::TurnOpen { turn: open.turn.id }),
            (Delivery::Queue, Some(open)) => {
                let active_turn = open.turn.id;
                let limit = self.cx.limits.inbox_per_thread;
                if self.state.inbox.len() as u64 >= u64::from(limit) {
                    return Err(Refused::InboxFull { limit });
                }
                let admission = Box::new(Admission {
                    id: InputId::new(self.cx.ids.mint()),
                    thread_id: self.state.id(),
                    kind: TurnKind::Prompt,
                    delivery,
                    undelivered: Undelivered::Report,
                    status: AdmissionStatus::Pending,
                    prompt,
                    overrides,
                    turn_id: None,
                    created_at: self.cx.now,
                });
                self.emit(Event::PromptAdmitted(admission.clone()));
                Ok(Reply::Queued { admission, active_turn })
            }
        }
    }

    /// Starts the turn of the prompt that has waited longest, if one waits.
    pub(super) fn promote(&mut self) {
        let Some(queued) = self.state.inbox.front() else { return };
        let mut admission = Box::new(queued.admission.clone());
        let turn = TurnId::new(self.cx.ids.mint());
        admission.status = AdmissionStatus::Promoted;
        admission.turn_id = Some(turn);
        let (prompt, overrides) = (admission.prompt.clone(), admission.overrides.clone());
        self.emit(Event::PromptPromoted(admission));
        self.open_turn(turn, prompt, overrides);
    }

    fn open_turn(&mut self, id: TurnId, prompt: String, overrides: TurnOverrides) -> Turn {
        let now = self.cx.now;
        let thread = &self.state.view;
        let (engine, model) = match overrides.choice {
            Some(choice) => (choice.engine, choice.model),
            None => (thread.engine.clone(), thread.model.clone()),
        };
        let settings = TurnSettings {
            engine,
            model,
            mode: overrides.mode.unwrap_or_else(|| thread.mode.clone()),
            allow_shell: overrides.allow_shell.unwrap_or(thread.allow_shell),
            auto_approve: overrides.auto_approve.unwrap_or(thread.auto_approve),
            trust_mode: overrides.trust_mode.unwrap_or(thread.trust_mode),
            temperature: overrides.temperature,
            top_p: overrides.top_p,
            max_tokens: overrides.max_tokens,
            price: None,
        };
        let item = ItemId::new(self.cx.ids.mint());
        let turn = Turn {
            id,
            thread_id: self.state.id(),
            kind: TurnKind::Prompt,
            status: TurnStatus::InProgress,
            input_summary: overrides.input_summary.unwrap_or_else(|| summarize(&prompt)),
            settings,
            usage: Usage::default(),
            error: None,
            item_ids: vec![item],
            steer_count: 0,
            resume_count: 0,
            not_delivered: Vec::new(),
            created_at: now,
            started_at: Some(now),
            ended_at: None,
            duration_ms: None,
        };
        self.emit(Event::TurnStarted(Box::new(turn.clone())));
        let mut user = Box::new(Item {
            id: item,
            turn_id: id,
            kind: ItemKind::UserMessage,
            status: TurnStatus::InProgress,
            summary: summarize(&prompt),
            detail: String::new(),
            metadata: Metadata::new(),
            artifact_refs: Vec::new(),
            started_at: now,
            ended_at: None,
        });
        self.emit(Event::ItemStarted(user.clone()));
        user.status = TurnStatus::Completed;
        user.detail = prompt;
        user.ended_at = Some(now);
        self.emit(Event::ItemCompleted(user));
        turn
    }

    fn sane(&self, overrides: &TurnOverrides) -> Result<(), Refused> {
        let invalid = |field, why: &str| Err(Refused::Invalid { field, why: why.to_owned() });
        let field_bytes = self.cx.limits.field_bytes;
        fits("input_summary", overrides.input_summary.as_deref().unwrap_or_default(), field_bytes)?;
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
        if overrides.max_tokens == Some(0) {
            return invalid("max_tokens", "is zero");
        }
        Ok(())
    }
}
