//! Prompts that wait: behind the open turn, or for its next step.

use super::{Queued, settings::fits, step::Stepper};
#[cfg(feature = "planted")]
use crate::planted;
use crate::{
    command::{EditPrompt, Refused, Reply, Steer},
    event::Event,
    id::{InputId, ItemId, TurnId},
    record::{Admission, AdmissionStatus, Delivery, TurnError, TurnKind, TurnOverrides, TurnStatus, Undelivered},
};

impl Stepper<'_> {
    /// Admits something behind the open turn.
    pub(super) fn queue(
        &mut self,
        kind: TurnKind,
        prompt: String,
        overrides: TurnOverrides,
        active_turn: TurnId,
    ) -> Result<Reply, Refused> {
        let admission = self.admission(Delivery::Queue, prompt)?;
        self.cx.room.prompt()?;
        let admission = Box::new(Admission { kind, overrides, ..admission });
        self.emit(Event::PromptAdmitted(admission.clone()));
        Ok(Reply::Queued { admission, active_turn })
    }

    pub(super) fn steer(&mut self, steer: Steer) -> Result<Reply, Refused> {
        self.readable(&steer.prompt)?;
        match self.state.open.as_ref().map(|open| open.turn.id) {
            Some(active) if active == steer.turn => {
                self.steer_open(active, steer.prompt, TurnOverrides::default(), steer.undelivered)
            }
            active => Err(Refused::TurnNotActive { turn: steer.turn, active }),
        }
    }

    /// Admits something that the open turn's model is to see at the next step. `overrides` are for the turn of its
    /// own that it becomes if it comes too late and is to be queued then.
    pub(super) fn steer_open(
        &mut self,
        active_turn: TurnId,
        prompt: String,
        overrides: TurnOverrides,
        undelivered: Undelivered,
    ) -> Result<Reply, Refused> {
        let admission = self.admission(Delivery::Steer, prompt)?;
        let admission = Box::new(Admission { overrides, undelivered, turn_id: Some(active_turn), ..admission });
        self.emit(Event::PromptAdmitted(admission.clone()));
        Ok(Reply::Queued { admission, active_turn })
    }

    fn admission(&self, delivery: Delivery, prompt: String) -> Result<Admission, Refused> {
        let limit = self.cx.limits.inbox_per_thread;
        let steers = self.state.open.as_ref().map_or(0, |open| open.steers.len());
        if (self.state.inbox.len() + steers) as u64 >= u64::from(limit) {
            return Err(Refused::InboxFull { limit });
        }
        Ok(Admission {
            id: InputId::new(self.cx.ids.mint()),
            thread_id: self.state.id(),
            kind: TurnKind::Prompt,
            delivery,
            status: AdmissionStatus::Pending,
            undelivered: Undelivered::Report,
            prompt,
            overrides: TurnOverrides::default(),
            turn_id: None,
            created_at: self.cx.now,
        })
    }

    /// The prompt that waits under this id, and its place among its like.
    fn waiting(&self, input: InputId) -> Result<(Admission, usize), Refused> {
        let steers = self.state.open.iter().flat_map(|open| open.steers.iter().enumerate());
        let mut waiting = self.state.inbox.iter().enumerate().chain(steers);
        let found = waiting.find(|(_, queued)| queued.admission.id == input);
        found.map(|(at, queued)| (queued.admission.clone(), at)).ok_or(Refused::NotQueued { input })
    }

    pub(super) fn edit_prompt(&mut self, edit: EditPrompt) -> Result<Reply, Refused> {
        let (mut admission, at) = self.waiting(edit.input)?;
        if edit.prompt.is_none() && edit.position.is_none() {
            return Err(Refused::Invalid { field: "body", why: "names nothing to change".to_owned() });
        }
        let steers = admission.delivery == Delivery::Steer;
        if steers && edit.position.is_some() {
            return Err(Refused::Invalid { field: "position", why: "is for prompts in the queue".to_owned() });
        }
        if let Some(prompt) = edit.prompt {
            match admission.kind {
                TurnKind::Prompt => self.readable(&prompt)?,
                TurnKind::Compaction => fits("prompt", &prompt, self.cx.limits.field_bytes)?,
            }
            admission.prompt = prompt;
        }
        let last = self.state.inbox.len().saturating_sub(1);
        let position = edit.position.map_or(at, |to| (to as usize).min(last)) as u32;
        let admission = Box::new(admission);
        self.emit(Event::PromptEdited(admission.clone(), position));
        Ok(Reply::Admission(admission, position))
    }

    pub(super) fn withdraw(&mut self, input: InputId) -> Result<Reply, Refused> {
        let (mut admission, _) = self.waiting(input)?;
        admission.status = AdmissionStatus::Withdrawn;
        self.emit(Event::PromptWithdrawn(Box::new(admission)));
        Ok(Reply::Withdrawn)
    }

    /// Starts the turn of the prompt that is next, if one waits and nothing holds it back.
    pub(super) fn promote(&mut self) {
        while self.state.open.is_none()
            && !self.cx.draining
            && !self.state.view.queue_paused
            && !self.state.view.archived
            && let Some(queued) = self.next_prompt()
        {
            let mut admission = Box::new(queued.admission.clone());
            let turn = TurnId::new(self.cx.ids.mint());
            admission.status = AdmissionStatus::Promoted;
            admission.turn_id = Some(turn);
            let (kind, prompt, overrides) = (admission.kind, admission.prompt.clone(), admission.overrides.clone());
            self.emit(Event::PromptPromoted(admission));
            let idle = kind == TurnKind::Compaction && self.nothing_to_compact();
            self.open_turn(turn, kind, prompt, overrides);
            if idle {
                // What came before it left nothing to do. A summary of a summary would also outlive an edit.
                let message = Refused::NothingToCompact.to_string();
                let error = TurnError { code: "nothing-to-compact".to_owned(), message };
                self.close_turn(TurnStatus::Failed, Some(error));
            }
        }
    }

    /// The prompt that is next.
    fn next_prompt(&self) -> Option<&Queued> {
        #[cfg(feature = "planted")]
        if planted::is(planted::Fault::NewestFirst) {
            return self.state.inbox.back();
        }
        self.state.inbox.front()
    }

    /// Shows the model what was said since its last step.
    pub(super) fn deliver_steers(&mut self) {
        while let Some(open) = &self.state.open
            && let Some(queued) = open.steers.front()
        {
            let mut admission = Box::new(queued.admission.clone());
            let mut turn = Box::new(open.turn.clone());
            let (id, prompt) = (turn.id, admission.prompt.clone());
            admission.status = AdmissionStatus::Promoted;
            turn.steer_count += 1;
            self.emit(Event::PromptPromoted(admission));
            self.emit(Event::TurnSteered(turn));
            let item = ItemId::new(self.cx.ids.mint());
            self.say(item, id, prompt);
        }
    }

    /// Says of the steers that nobody will see that it is so; returns them.
    pub(super) fn fail_steers(&mut self) -> Vec<Admission> {
        let mut failed = Vec::new();
        while let Some(queued) = self.state.open.as_ref().and_then(|open| open.steers.front()) {
            let admission = Admission { status: AdmissionStatus::NotDelivered, ..queued.admission.clone() };
            self.emit(Event::PromptNotDelivered(Box::new(admission.clone())));
            failed.push(admission);
        }
        failed
    }

    /// Puts those steers that ask for it before the prompts that wait.
    pub(super) fn requeue(&mut self, failed: Vec<Admission>) {
        let wanted = failed.into_iter().filter(|admission| admission.undelivered == Undelivered::Queue);
        for (position, admission) in wanted.enumerate() {
            let queued =
                Admission { delivery: Delivery::Queue, status: AdmissionStatus::Pending, turn_id: None, ..admission };
            self.emit(Event::PromptAdmitted(Box::new(queued.clone())));
            if self.state.inbox.len() > position + 1 {
                self.emit(Event::PromptEdited(Box::new(queued), position as u32));
            }
        }
    }
}
