//! Tool calls, read back from the items and approvals that came of them.

use serde_json::Value;

use crate::{
    event::{Event, Record},
    history::{AGENT, ARGUMENTS, ToolCall},
    ports::{Gate, Judgement, Planned, Requested},
    record::{Approval, DecidedBy, EffectClass, Item, ItemKind, Permit, TurnStatus, summarize},
    thread::ThreadState,
};

/// The calls that begin in what is next, up to the end of the answer that made them.
pub(super) fn requests(state: &ThreadState, next: &[Record]) -> Vec<Requested> {
    let answer = next.iter().take_while(|record| !matches!(record.event, Event::UsageRecorded(..))).count();
    let begins = |(at, record): (usize, &Record)| match &record.event {
        Event::ItemStarted(item) if is_call(item) => Some(at),
        _ => None,
    };
    let starts: Vec<usize> = next[..answer].iter().enumerate().filter_map(begins).collect();
    let ends = starts.iter().skip(1).copied().chain([answer]);
    starts.iter().zip(ends).filter_map(|(start, end)| requested(state, &next[*start..end])).collect()
}

fn is_call(item: &Item) -> bool {
    item.metadata.contains_key("tool") && !item.metadata.contains_key(AGENT)
}

/// One call, from the events between its item's beginning and the next call's.
fn requested(state: &ThreadState, events: &[Record]) -> Option<Requested> {
    let Event::ItemStarted(item) = &events.first()?.event else { return None };
    let call = call(item);
    let judgement = match &events.get(1)?.event {
        Event::ItemCompleted(done) if done.status == TurnStatus::Failed => refused(&call.name, &done.detail),
        Event::QuestionAsked(asked) => {
            Judgement::Question { question: asked.question.clone(), options: asked.options.clone() }
        }
        Event::ApprovalRequired(approval) => Judgement::Run(Box::new(asked(item, approval))),
        Event::ApprovalDecided(approval) => Judgement::Run(Box::new(passed(state, item, approval))),
        Event::EffectIntended(effect) => {
            let digest = effect.arguments_sha256.clone().unwrap_or_default();
            let arguments = item.metadata.get("arguments").cloned().unwrap_or_default();
            // An item is summed up by its command, where it has one.
            let command = (item.summary != summarize(&call.name)).then(|| item.summary.clone());
            Judgement::Run(Box::new(Planned { command, ..open(item.kind, arguments, effect.class, digest) }))
        }
        _ => return None,
    };
    Some(Requested { call, judgement })
}

/// The call of an item.
fn call(item: &Item) -> ToolCall {
    let text = |key: &str| item.metadata.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let value = item.metadata.get("arguments").cloned().unwrap_or_default();
    let written = item.metadata.get(ARGUMENTS).and_then(|text| text.as_str()).map(str::to_owned);
    let said = value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string());
    ToolCall { call_id: text("call_id"), name: text("tool"), arguments: written.unwrap_or(said) }
}

fn refused(tool: &str, why: &str) -> Judgement {
    if why == format!("unknown tool: {tool}") {
        return Judgement::Unknown;
    }
    let forbidden = why.strip_prefix("forbidden by the rule `").and_then(|rest| rest.split_once("`: "));
    match forbidden {
        Some((rule, reason)) => Judgement::Forbidden { reason: reason.to_owned(), rule: rule.to_owned() },
        None => Judgement::Invalid(why.strip_prefix("invalid arguments: ").unwrap_or(why).to_owned()),
    }
}

/// A call that nobody had to be asked about.
pub(super) fn open(kind: ItemKind, arguments: Value, class: EffectClass, arguments_sha256: String) -> Planned {
    Planned {
        kind,
        class,
        gate: Gate::Open,
        arguments,
        arguments_sha256,
        command: None,
        cwd: None,
        words: None,
        hosts: Vec::new(),
        reason: String::new(),
        asked_by: None,
        amendment: None,
        permitted_by: None,
    }
}

/// A call for which a person was asked.
pub(super) fn asked(item: &Item, approval: &Approval) -> Planned {
    Planned {
        gate: Gate::Person,
        command: approval.command.clone(),
        cwd: approval.cwd.clone(),
        reason: approval.reason.clone(),
        asked_by: approval.matched_rule.clone(),
        amendment: approval.amendment.clone(),
        ..open(item.kind, approval.arguments.clone(), approval.effect_class, approval.arguments_sha256.clone())
    }
}

/// A call that a rule, an earlier word or the turn's settings let pass.
pub(super) fn passed(state: &ThreadState, item: &Item, approval: &Approval) -> Planned {
    let planned = Planned { gate: Gate::Ask, ..asked(item, approval) };
    match approval.by {
        Some(DecidedBy::Policy) => Planned { asked_by: None, permitted_by: approval.matched_rule.clone(), ..planned },
        Some(DecidedBy::Session) => {
            // What the earlier word covered of it is not in the log; anything that it covers will do.
            let covers = |permit: &&Permit| {
                let (words, hosts) = reach(permit);
                permit.covers(&approval.tool, &approval.arguments_sha256, words.as_deref(), &hosts)
            };
            let (words, hosts) = state.grants.iter().find(covers).map(reach).unwrap_or_default();
            Planned { words, hosts, ..planned }
        }
        _ => planned,
    }
}

fn reach(permit: &Permit) -> (Option<Vec<String>>, Vec<String>) {
    (permit.command_prefix.clone(), permit.host.clone().into_iter().collect())
}
