//! What an engine may have reported.

use std::time::Duration;

use super::{completed, request};
use crate::{
    budget::{BudgetState, Scope, Unit},
    command::{Limits, Metered, Report, TextKind},
    event::{Event, Record, Reserved},
    history::AGENT,
    id::{ItemId, TurnId},
    ports::{Act, ActStep, Answered, FinishReason, ModelError, ModelErrorKind},
    record::{Approval, DecidedBy, Decision, Effect, EffectClass, EffectOutcome, Item, ItemKind, TurnStatus},
    thread::{OpenTurn, ThreadState},
};

/// Guesses about reports of the model call that is due.
pub(super) struct Reports<'a> {
    state: &'a ThreadState,
    open: &'a OpenTurn,
    next: &'a [Record],
    limits: &'a Limits,
    turn: TurnId,
    call: u32,
}

impl<'a> Reports<'a> {
    /// `None`: no model call is due.
    pub fn new(state: &'a ThreadState, next: &'a [Record], limits: &'a Limits) -> Option<Self> {
        let (turn, call) = state.owed().call?;
        Some(Self { state, open: state.open()?, next, limits, turn, call })
    }

    pub fn guesses(&self) -> Vec<Report> {
        let mut guesses: Vec<Report> = self.text().into_iter().collect();
        guesses.extend(self.metered());
        guesses.extend(self.acts().map(|act| Report { acts: vec![act], ..self.report() }));
        guesses.extend(self.answered());
        guesses.extend(self.failed());
        guesses
    }

    fn report(&self) -> Report {
        let (turn, call) = (self.turn, self.call);
        Report { turn, call, text: Vec::new(), acts: Vec::new(), metered: None, end: None }
    }

    fn event(&self, at: usize) -> Option<&'a Event> {
        self.next.get(at).map(|record| &record.event)
    }

    /// Text came, for the open item, or for another, whose beginning ends the open one.
    fn text(&self) -> Option<Report> {
        let closes = matches!(self.event(0), Some(Event::ItemCompleted(item)) if item.status == TurnStatus::Completed);
        let at = usize::from(closes);
        let opens = matches!(self.event(at), Some(Event::ItemStarted(_)));
        let Some(Event::ItemDelta(delta)) = self.event(at + usize::from(opens)) else { return None };
        let kind = match delta.kind {
            ItemKind::Reasoning => TextKind::Reasoning,
            ItemKind::AgentMessage | ItemKind::ContextCompaction => TextKind::Answer,
            _ => return None,
        };
        Some(Report { text: vec![(kind, delta.delta.clone())], ..self.report() })
    }

    // ---- budgets ---------------------------------------------------------------------------------

    /// It was said what the call takes.
    fn metered(&self) -> Option<Report> {
        let metered = match self.event(0)? {
            Event::BudgetReserved(_, reserved) => self.meter(*reserved),
            Event::BudgetWarning(_, state) if state.scope == Scope::Tenant => {
                self.meter(Reserved { input_tokens: 0, output_tokens: 0 })
            }
            Event::BudgetWarning(_, warned) => Metered { exactly: false, ..self.meter(self.untold(warned)?) },
            _ => return None,
        };
        Some(Report { metered: Some(metered), ..self.report() })
    }

    /// What a call takes of which nothing was said but a warning.
    fn untold(&self, warned: &BudgetState) -> Option<Reserved> {
        let level = self.state.levels().into_iter().find(|level| level.scope == warned.scope)?;
        let input_tokens = self.open.reserved.map_or(0, |reserved| reserved.input_tokens);
        let before = level.spent.tokens.saturating_add(input_tokens);
        (warned.unit == Unit::Tokens)
            .then(|| Reserved { input_tokens, output_tokens: warned.spent.saturating_sub(before) })
    }

    fn meter(&self, reserved: Reserved) -> Metered {
        let about = self.next.iter().skip_while(|record| matches!(record.event, Event::BudgetReserved(..)));
        let warnings = about.map_while(|record| match &record.event {
            Event::BudgetWarning(_, state) => Some(**state),
            _ => None,
        });
        let warnings: Vec<BudgetState> = warnings.filter(|state| state.scope == Scope::Tenant).collect();
        Metered { reserved, exactly: true, warnings, exceeded: None }
    }

    // ---- the end ---------------------------------------------------------------------------------

    fn answered(&self) -> Vec<Report> {
        let tool_calls = request::requests(self.state, self.next);
        let finished = self.open.open_text().and_then(|open| completed(self.next).find(|item| item.id == open.id));
        let word = finished.and_then(|item| item.metadata.get("finish_reason")).and_then(|word| word.as_str());
        let reason = match word {
            Some("length") => FinishReason::Length,
            Some(other) => FinishReason::Other(other.to_owned()),
            None if tool_calls.is_empty() => FinishReason::Stop,
            None => FinishReason::ToolCalls,
        };
        let usage = self.next.iter().find_map(|record| match &record.event {
            Event::UsageRecorded(_, entry) => Some(entry.usage),
            _ => None,
        });
        let Some(usage) = usage else { return Vec::new() };
        let reported = (usage.unreported_calls == 0).then_some(usage);
        let answered = Answered { reason, usage: reported, tool_calls };
        vec![Report { end: Some(Ok(answered)), ..self.report() }]
    }

    fn failed(&self) -> Vec<Report> {
        let first = self.next.iter().find_map(|record| match &record.event {
            Event::TurnRetrying(retrying) => Some((&retrying.error, Some(retrying.retry_at.since(record.ts)))),
            Event::CompactionFailed(compaction) => compaction.error.as_ref().map(|error| (error, None)),
            Event::TurnCompleted(turn) => turn.error.as_ref().map(|error| (error, None)),
            _ => None,
        });
        let Some((error, pause)) = first else { return Vec::new() };
        let Some(kind) = ModelErrorKind::all().find(|kind| kind.code() == error.code) else { return Vec::new() };
        let failed = |retry_after| ModelError { kind, message: error.message.clone(), retry_after };
        // A pause is as long as ours, or as the provider asked; one that asked for too much ends the tries.
        let asked = match pause {
            Some(pause) => Duration::from_millis(pause),
            None => Duration::from_millis(self.limits.retry_cap_ms.saturating_add(1)),
        };
        let ends = [failed(None), failed(Some(asked))];
        ends.into_iter()
            .flat_map(|end| self.taken().into_iter().map(move |metered| (end.clone(), metered)))
            .map(|(end, metered)| Report { end: Some(Err(end)), metered, ..self.report() })
            .collect()
    }

    /// What the call may have been known to take when it failed.
    fn taken(&self) -> Vec<Option<Metered>> {
        let exceeded = self.next.iter().find_map(|record| match &record.event {
            Event::BudgetExceeded(_, state) => Some(**state),
            _ => None,
        });
        let told = self.next.iter().find_map(|record| match &record.event {
            Event::BudgetReserved(_, reserved) => Some(*reserved),
            _ => None,
        });
        let settled = self.next.iter().find_map(|record| match &record.event {
            Event::UsageRecorded(_, entry) => {
                let usage = entry.usage;
                Some(Reserved { input_tokens: usage.input_tokens, output_tokens: usage.output_tokens })
            }
            _ => None,
        });
        let nothing = Reserved { input_tokens: 0, output_tokens: 0 };
        let metered = |(reserved, exactly)| Some(Metered { exceeded, exactly, ..self.meter(reserved) });
        let known = [told, settled].into_iter().flatten().chain([nothing]);
        let known = known.flat_map(|reserved| [(reserved, true), (reserved, false)]).map(metered);
        std::iter::once(None).chain(known).collect()
    }

    // ---- acts ------------------------------------------------------------------------------------

    /// What an agent may have said about an act of its own.
    fn acts(&self) -> impl Iterator<Item = Act> {
        // What was open may be closed first: text, or an act of the same name.
        let closes = |record: &&Record| matches!(record.event, Event::ItemCompleted(_) | Event::EffectUncertain(_));
        let at = self.next.iter().take_while(closes).count();
        let begun = match self.event(at) {
            Some(Event::ItemStarted(item)) if item.metadata.contains_key(AGENT) => {
                Some(self.step_of(item, &self.next[at + 1..]))
            }
            _ => None,
        };
        let acts = begun.into_iter().chain(self.open_act().map(|item| self.step_of(item, self.next)));
        // What nobody is asked about looks as if it had not been asked for.
        acts.flat_map(|act| {
            let asked = (act.step == ActStep::Started).then(|| self.unasked(&act));
            [Some(act), asked].into_iter().flatten()
        })
    }

    fn unasked(&self, act: &Act) -> Act {
        let intended = self.next.iter().find_map(|record| match &record.event {
            Event::EffectIntended(effect) => effect.arguments_sha256.clone(),
            _ => None,
        });
        let (arguments, digest) = (act.arguments.clone(), intended.unwrap_or_default());
        let planned = request::open(act.kind, arguments, EffectClass::Once, digest);
        Act { step: ActStep::Asks(Box::new(planned)), ..act.clone() }
    }

    /// The act that the first event is about.
    fn open_act(&self) -> Option<&'a Item> {
        let about = match self.event(0)? {
            Event::ItemDelta(delta) => delta.item,
            Event::ItemCompleted(item) => item.id,
            Event::ApprovalRequired(approval) | Event::ApprovalDecided(approval) => approval.item_id,
            Event::ApprovalCancelled(approval) | Event::ApprovalExpired(approval) => approval.item_id,
            Event::EffectIntended(effect) | Event::EffectSettled(effect) => effect.item_id,
            _ => return None,
        };
        self.open.items().find(|item| item.id == about && item.metadata.contains_key(AGENT))
    }

    fn step_of(&self, item: &Item, next: &[Record]) -> Act {
        let step = match next.first().map(|record| &record.event) {
            Some(Event::ItemDelta(delta)) if delta.item == item.id => ActStep::Said(delta.delta.clone()),
            Some(Event::ApprovalRequired(approval)) if approval.item_id == item.id => {
                ActStep::Asks(Box::new(request::asked(item, approval)))
            }
            Some(Event::ApprovalDecided(approval)) if approval.item_id == item.id => self.judged(item, approval),
            Some(Event::EffectSettled(effect)) if effect.item_id == item.id => return ends(item, effect, next),
            Some(Event::EffectIntended(effect)) if effect.item_id == item.id => ActStep::Started,
            // The agent did not wait for the answer.
            Some(Event::ApprovalCancelled(approval) | Event::ApprovalExpired(approval))
                if approval.item_id == item.id =>
            {
                ActStep::Started
            }
            _ => ActStep::Announced,
        };
        act(item, step)
    }

    fn judged(&self, item: &Item, approval: &Approval) -> ActStep {
        match (approval.by, approval.decision) {
            (Some(DecidedBy::Policy), Some(Decision::Denied)) => ActStep::Forbidden {
                planned: Box::new(request::asked(item, approval)),
                reason: approval.decision_reason.clone().unwrap_or_default(),
                rule: approval.matched_rule.clone().unwrap_or_default(),
            },
            _ => ActStep::Asks(Box::new(request::passed(self.state, item, approval))),
        }
    }
}

fn ends(item: &Item, effect: &Effect, next: &[Record]) -> Act {
    let is = |id: ItemId| move |done: &&Item| done.id == id;
    let done = completed(next).find(is(item.id)).unwrap_or(item);
    let outcome = effect.outcome == Some(EffectOutcome::Succeeded);
    act(done, ActStep::Ended { done: outcome, output: done.detail.clone() })
}

fn act(item: &Item, step: ActStep) -> Act {
    let text = |key: &str| item.metadata.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    Act {
        call_id: text("call_id"),
        tool: text("tool"),
        title: item.summary.clone(),
        kind: item.kind,
        arguments: item.metadata.get("arguments").cloned().unwrap_or_default(),
        step,
    }
}
