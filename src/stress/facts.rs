//! What a thread's log says of prompts, turns and effects.

use std::collections::{BTreeMap, BTreeSet};

use raddle_domain::{
    event::{Event, Record},
    id::Seq,
    linear::Prompt,
    record::{ApprovalStatus, Delivery, Effect, EffectClass, ItemKind, TurnStatus},
};

/// The facts, each with where it stands.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub head: Seq,
    /// Prompts in the order in which their turns began, and where those did.
    pub ran: Vec<(Prompt, Seq)>,
    /// What was said to open turns, in the order in which it was admitted.
    pub steered: Vec<(Prompt, Seq)>,
    /// Whose prompt a turn is.
    pub prompts: BTreeMap<String, Prompt>,
    /// Under which id a prompt was let in that had to wait.
    pub admitted: BTreeMap<Prompt, (String, Seq)>,
    pub withdrawn: BTreeSet<String>,
    pub ended: BTreeMap<String, TurnStatus>,
    /// How approvals ended that somebody was asked for.
    pub approvals: BTreeMap<String, (ApprovalStatus, Seq)>,
    /// Effects of class `once` as the log left them.
    pub effects: BTreeMap<String, Effect>,
    /// The turn that began, until its prompt is known.
    pub(super) opening: Option<(String, Seq)>,
}

/// The text that a prompt is known by. It is its last line.
pub fn mark(prompt: Prompt) -> String {
    format!("#{prompt}#")
}

/// The number of a marked prompt.
pub fn number_of(prompt: &str) -> Option<Prompt> {
    prompt.lines().next_back()?.trim().strip_prefix('#')?.strip_suffix('#')?.parse().ok()
}

impl Facts {
    pub fn see(&mut self, record: &Record) {
        self.head = record.seq;
        match &record.event {
            Event::TurnStarted(turn) => self.opening = Some((turn.id.to_string(), record.seq)),
            Event::ItemCompleted(item) if item.kind == ItemKind::UserMessage => {
                // The first thing that a user says in a turn is its prompt; the others are steers.
                if let (Some((turn, seq)), Some(prompt)) = (self.opening.take(), number_of(&item.detail)) {
                    self.ran.push((prompt, seq));
                    self.prompts.insert(turn, prompt);
                }
            }
            Event::PromptAdmitted(admission) => {
                let Some(prompt) = number_of(&admission.prompt) else { return };
                match admission.delivery {
                    Delivery::Steer => self.steered.push((prompt, record.seq)),
                    _ => drop(self.admitted.insert(prompt, (admission.id.to_string(), record.seq))),
                }
            }
            Event::PromptWithdrawn(admission) => drop(self.withdrawn.insert(admission.id.to_string())),
            Event::TurnCompleted(turn) => drop(self.ended.insert(turn.id.to_string(), turn.status)),
            Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => {
                self.approvals.insert(approval.id.to_string(), (approval.status, record.seq));
            }
            Event::EffectIntended(effect)
            | Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect)
                if effect.class == EffectClass::Once =>
            {
                self.effects.insert(effect.operation_id.to_string(), (**effect).clone());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_known_by_its_last_line() {
        assert_eq!(number_of(&format!("@say a\n{}", mark(17))), Some(17));
        assert_eq!(number_of(&mark(0)), Some(0));
        assert_eq!(number_of("#1#\nand more"), None);
        assert_eq!(number_of(""), None);
    }
}
