//! What a thread may have been told, judging by what came of it: guesses, which the rules are then asked about.
//!
//! Every guess is cheap and none has to be right. What matters is that a right one is among them for whatever a log can
//! hold: the machine's tests derive every log that they make.

mod report;
mod request;

use self::report::Reports;
use super::ThreadState;
use crate::{
    command::{
        Answer, Command, Compact, Decide, EditPrompt, Interrupt, Limits, Resolve, StartTurn, Steer, ThreadPatch,
        ToolReport,
    },
    event::{Event, Record},
    id::OperationId,
    ports::ToolEnd,
    record::{
        Admission, Approval, DecidedBy, Delivery, Effect, EffectOutcome, EffectStatus, Item, ModelChoice, Resolution,
        ResolvedBy, Thread, Turn, TurnKind, TurnOverrides,
    },
};

impl ThreadState {
    /// What the thread may have been told, of which the first of `next` came, in this state.
    pub(crate) fn causes(&self, next: &[Record], limits: &Limits) -> Vec<Command> {
        let Some(first) = next.first() else { return Vec::new() };
        let mut causes = match &first.event {
            Event::ThreadUpdated(thread) | Event::ThreadArchived(thread) => {
                vec![Command::Patch(patch(&self.view, thread))]
            }
            Event::PromptAdmitted(admission) => admitted(admission),
            Event::PromptEdited(admission, to) => {
                let position = (admission.delivery != Delivery::Steer).then_some(*to);
                let edit = EditPrompt { input: admission.id, prompt: Some(admission.prompt.clone()), position };
                vec![Command::EditPrompt(edit)]
            }
            Event::PromptWithdrawn(admission) => vec![Command::Withdraw(admission.id)],
            Event::TurnStarted(turn) => vec![started(turn, next, Delivery::Reject)],
            Event::TurnInterruptRequested(turn) => self.interrupted(turn, next),
            Event::TurnRolledBack(_) => opened(next, Delivery::Reject).map(Command::Edit).into_iter().collect(),
            Event::ApprovalDecided(approval) => decided(approval),
            Event::QuestionAnswered(question) => {
                let answer = question.answer.clone().unwrap_or_default();
                vec![Command::Answer(Answer { question: question.id, answer })]
            }
            Event::EffectReconciled(effect) => self.reconciled_by(effect, next),
            Event::CheckpointSaved(checkpoint) => vec![Command::SaveCheckpoint(checkpoint.name.clone())],
            Event::CheckpointDeleted(checkpoint) => vec![Command::DeleteCheckpoint(checkpoint.name.clone())],
            _ => Vec::new(),
        };
        causes.extend(self.tool_said(next).map(Command::ToolReport));
        if let Some(reports) = Reports::new(self, next, limits) {
            causes.extend(reports.guesses().into_iter().map(Command::Report));
        }
        causes.extend([
            Command::Begin,
            Command::Tick,
            Command::Recover { restarted: true },
            Command::Recover { restarted: false },
        ]);
        causes
    }

    /// The open turn was asked to end: for its own sake, or to make place for another.
    fn interrupted(&self, turn: &Turn, next: &[Record]) -> Vec<Command> {
        let pause_queue = matches!(next.get(1).map(|record| &record.event), Some(Event::ThreadUpdated(_)));
        let interrupt = Command::Interrupt(Interrupt { turn: turn.id, pause_queue });
        let instead = [Delivery::Interrupt, Delivery::Rollback];
        let instead = instead.into_iter().filter_map(|delivery| opened(next, delivery)).map(Command::Start);
        [interrupt].into_iter().chain(instead).collect()
    }

    fn reconciled_by(&self, effect: &Effect, next: &[Record]) -> Vec<Command> {
        let (Some(resolution), Some(ResolvedBy::Caller)) = (effect.resolution, effect.resolved_by) else {
            return Vec::new();
        };
        let output = (resolution == Resolution::Settle).then(|| ended(next, effect).unwrap_or_default());
        vec![Command::Resolve(Resolve { operation: effect.operation_id, resolution, output })]
    }

    /// What a tool may have said.
    fn tool_said(&self, next: &[Record]) -> impl Iterator<Item = ToolReport> {
        let attempt = |operation: OperationId| {
            let open = self.open.as_ref()?.open_effect(operation)?;
            (open.status == EffectStatus::Started).then_some(open.attempt)
        };
        let end = |effect: &Effect, end| {
            let (operation, said) = (effect.operation_id, String::new());
            attempt(operation).map(|attempt| ToolReport { operation, attempt, said, end: Some(end) })
        };
        let found: Vec<Option<ToolReport>> = match next.first().map(|first| &first.event) {
            Some(Event::ItemDelta(delta)) => {
                let effects = self.open.iter().flat_map(|open| open.open_effects());
                let of_item = effects.filter(|effect| effect.item_id == delta.item);
                let said = |effect: &Effect| {
                    let (operation, said) = (effect.operation_id, delta.delta.clone());
                    attempt(operation).map(|attempt| ToolReport { operation, attempt, said, end: None })
                };
                of_item.map(said).collect()
            }
            Some(Event::EffectSettled(effect)) => {
                let output = ended(next, effect).unwrap_or_default();
                let done = effect.outcome == Some(EffectOutcome::Succeeded);
                vec![end(effect, if done { ToolEnd::Done(output) } else { ToolEnd::Failed(output) })]
            }
            Some(Event::EffectUncertain(effect)) => {
                vec![end(effect, ToolEnd::Unknown(effect.reason.clone().unwrap_or_default()))]
            }
            // Another attempt of what can be tried again.
            Some(Event::EffectStarted(effect)) => vec![end(effect, ToolEnd::Unknown(String::new()))],
            Some(Event::EffectReconciled(effect)) if effect.resolved_by == Some(ResolvedBy::Tool) => {
                let again = effect.resolution == Some(Resolution::Retry);
                let done = || ToolEnd::Done(ended(next, effect).unwrap_or_default());
                vec![end(effect, if again { ToolEnd::NotDone } else { done() })]
            }
            _ => Vec::new(),
        };
        found.into_iter().flatten()
    }
}

/// A person has decided.
fn decided(approval: &Approval) -> Vec<Command> {
    let (Some(decision), Some(DecidedBy::Caller)) = (approval.decision, approval.by) else { return Vec::new() };
    vec![Command::Decide(Decide { approval: approval.id, decision, reason: approval.decision_reason.clone() })]
}

/// How the item of an effect ends, in what is next.
fn ended(next: &[Record], effect: &Effect) -> Option<String> {
    completed(next).find(|item| item.id == effect.item_id).map(|item| uncut(&item.detail))
}

/// A text that is cut to this one, where it says that it was cut.
fn uncut(text: &str) -> String {
    let told = text.rsplit_once("\n[cut: ").and_then(|(kept, rest)| {
        let (limit, whole) = rest.strip_suffix(" bytes]")?.split_once(" of ")?;
        Some((kept, limit.parse::<usize>().ok()?, whole.parse::<usize>().ok()?))
    });
    let Some((kept, limit, whole)) = told else { return text.to_owned() };
    // Where the cut left room, the character behind it was too wide for that.
    let wide = ["x", "é", "€", "𝄞"].into_iter().find(|wide| kept.len() + wide.len() > limit).unwrap_or_default();
    let rest = whole.saturating_sub(kept.len() + wide.len());
    format!("{kept}{wide}{}", "x".repeat(rest))
}

/// The items that end in what is next.
fn completed(next: &[Record]) -> impl Iterator<Item = &Item> {
    next.iter().filter_map(|record| match &record.event {
        Event::ItemCompleted(item) => Some(&**item),
        _ => None,
    })
}

/// What changes one record of a thread into another.
fn patch(before: &Thread, after: &Thread) -> ThreadPatch {
    fn set<T: Clone + PartialEq>(before: &T, after: &T) -> Option<T> {
        (before != after).then(|| after.clone())
    }
    let choice = |thread: &Thread| ModelChoice { engine: thread.engine.clone(), model: thread.model.clone() };
    ThreadPatch {
        title: set(&before.title, &after.title),
        choice: set(&choice(before), &choice(after)),
        mode: set(&before.mode, &after.mode),
        system_prompt: set(&before.system_prompt, &after.system_prompt),
        workspace: set(&before.workspace, &after.workspace),
        allow_shell: set(&before.allow_shell, &after.allow_shell),
        auto_approve: set(&before.auto_approve, &after.auto_approve),
        trust_mode: set(&before.trust_mode, &after.trust_mode),
        on_restart: set(&before.on_restart, &after.on_restart),
        policy: set(&before.policy, &after.policy),
        run_id: set(&before.run_id, &after.run_id),
        budget: set(&before.budget, &after.budget),
        archived: set(&before.archived, &after.archived),
        queue_paused: set(&before.queue_paused, &after.queue_paused),
        metadata: set(&before.metadata, &after.metadata),
    }
}

/// A prompt waits. One that steers may have come by either of two verbs, of which one asks for a budget.
fn admitted(admission: &Admission) -> Vec<Command> {
    let Admission { prompt, delivery, undelivered, overrides, .. } = admission.clone();
    if admission.kind == TurnKind::Compaction {
        let reason = Some(prompt).filter(|reason| !reason.is_empty());
        return vec![Command::Compact(Compact { reason, delivery })];
    }
    let steered = admission.turn_id.map(|turn| Steer { turn, prompt: prompt.clone(), undelivered });
    let start = StartTurn { prompt, delivery, undelivered, overrides, ..StartTurn::default() };
    [Command::Start(start)].into_iter().chain(steered.map(Command::Steer)).collect()
}

/// A turn was started that is the next to begin.
fn started(turn: &Turn, next: &[Record], delivery: Delivery) -> Command {
    match turn.kind {
        TurnKind::Prompt => Command::Start(opened(next, delivery).unwrap_or_default()),
        TurnKind::Compaction => {
            let reason = next.iter().find_map(|record| match &record.event {
                Event::CompactionStarted(compaction) => Some(compaction.reason.clone()),
                _ => None,
            });
            Command::Compact(Compact { reason: reason.flatten(), delivery })
        }
    }
}

/// The prompt of the next turn to begin, with everything that the turn says of it.
fn opened(next: &[Record], delivery: Delivery) -> Option<StartTurn> {
    let turn = next.iter().find_map(|record| match &record.event {
        Event::TurnStarted(turn) if turn.kind == TurnKind::Prompt => Some(turn),
        _ => None,
    })?;
    let said = completed(next).find(|item| turn.item_ids.first() == Some(&item.id))?;
    let settings = &turn.settings;
    let overrides = TurnOverrides {
        choice: Some(ModelChoice { engine: settings.engine.clone(), model: settings.model.clone() }),
        mode: Some(settings.mode.clone()),
        allow_shell: Some(settings.allow_shell),
        auto_approve: Some(settings.auto_approve),
        trust_mode: Some(settings.trust_mode),
        temperature: settings.temperature,
        top_p: settings.top_p,
        max_tokens: settings.max_tokens,
        budget: turn.budget,
        input_summary: Some(turn.input_summary.clone()),
        route_intent: None,
        task_id: turn.task_id.clone(),
    };
    Some(StartTurn { prompt: said.detail.clone(), delivery, overrides, ..StartTurn::default() })
}
