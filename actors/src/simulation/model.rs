//! A model and tools that do what their prompts say, among other things badly.
//!
//! A prompt is `#N ` and rounds, divided by ` / `; the next round is what the model does once it has the results of the
//! tools that it called in the last one. A round is steps, divided by `; `:
//!
//! * `say N`: so many pieces of text; `think`: some reasoning; `wait MS`: nothing for so long; `hang`: nothing for ever;
//! * `fail KIND N`, `cut N`: the first N times that it gets here the call fails, or the answer ends too soon;
//! * `call TOOL LABEL WORDS`: a call of a tool, when all else is said.
//!
//! `read`, `idempotent`, `reconcilable` and `once` are tools named for their class; `gated_` in front of one makes it ask,
//! `person_` makes it ask whatever the thread says; `ask` is a question. The words: `slow` and `late` take their time before
//! they act, or after; `says` speaks; `fails`, `unknown`, `undone` and `hang` say how it ends, and with a `1` how its first
//! attempt does; of a `mute` operation nothing can be said later.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use raddle_domain::{
    budget::tokens_of,
    history::{Message, ToolCall},
    id::TurnId,
    policy::TenantRules,
    ports::{
        Errand, FinishReason, Fragment, Gate, Invocation, Judgement, Model, ModelError, ModelErrorKind, ModelRequest,
        ModelStream, Models, Output, Planned, Scene, ToolEnd, ToolRun, ToolSpec, Tools, UnknownModel,
    },
    record::{EffectClass, ItemKind, ModelChoice, Permit, Purpose, Usage},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::world::World;

/// The one that there is.
pub(crate) fn choice() -> ModelChoice {
    ModelChoice { engine: "scripted".to_owned(), model: "script".to_owned() }
}

/// The configuration in which every name is the scripted model.
pub(crate) struct Scripted(pub Arc<World>);

impl Models for Scripted {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Ok(choice())
    }
    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        Some(Arc::new(Self(self.0.clone())))
    }
    fn engines(&self) -> Vec<String> {
        vec![choice().engine]
    }
}

/// A piece of what a call does.
enum Piece {
    Give(Fragment),
    Wait(u64),
    Fail(ModelError),
    /// The answer ends.
    Cut,
    Hang,
}

impl Model for Scripted {
    fn call(&self, _: ModelRequest) -> ModelStream {
        unreachable!("whoever asks says on which errand")
    }

    fn act(&self, request: ModelRequest, errand: Errand) -> ModelStream {
        self.0.call_begins(errand.key, tokens_of(request.bytes()));
        let pieces = pieces(&self.0, &request, errand.turn);
        let pieces = stream::unfold(pieces.into_iter(), |mut pieces| async move {
            loop {
                match pieces.next()? {
                    Piece::Give(fragment) => return Some((Ok(fragment), pieces)),
                    Piece::Wait(ms) => sleep(Duration::from_millis(ms)).await,
                    Piece::Fail(error) => return Some((Err(error), Vec::new().into_iter())),
                    Piece::Cut => return None,
                    Piece::Hang => pending().await,
                }
            }
        });
        pieces.boxed()
    }
}

fn pieces(world: &World, request: &ModelRequest, turn: TurnId) -> Vec<Piece> {
    let text = |text: &str| Piece::Give(Fragment::Text(text.to_owned()));
    let end = |reason| [Piece::Give(Fragment::Usage(usage(request))), Piece::Give(Fragment::Finish(reason))];
    let messages = &request.messages;
    if request.purpose == Purpose::Compaction {
        let said = [text("what was "), Piece::Wait(20), text("said")];
        return said.into_iter().chain(end(FinishReason::Stop)).collect();
    }
    let last = messages.iter().rposition(|message| matches!(message, Message::User { .. })).unwrap_or(0);
    let prompt = match messages.get(last) {
        Some(Message::User { content }) => content.as_str(),
        _ => "",
    };
    let called =
        |message: &&Message| matches!(message, Message::Assistant { tool_calls, .. } if !tool_calls.is_empty());
    let number = messages.iter().skip(last).filter(called).count();
    let tries = world.tries(turn, number);
    let script = prompt.split_once(' ').map_or("", |(_, script)| script);
    let Some(round) = script.split(" / ").nth(number) else {
        return [text("done")].into_iter().chain(end(FinishReason::Stop)).collect();
    };
    let (mut pieces, mut calls) = (Vec::new(), Vec::new());
    for step in round.split("; ") {
        let words: Vec<&str> = step.split(' ').collect();
        let number_at = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(1);
        match words[0] {
            "say" => pieces.extend((0..number_at(1)).flat_map(|at| [text(&format!("piece {at}. ")), Piece::Wait(3)])),
            "think" => pieces.push(Piece::Give(Fragment::Reasoning("hm. ".to_owned()))),
            "wait" => pieces.push(Piece::Wait(number_at(1))),
            "hang" => pieces.push(Piece::Hang),
            "cut" if u64::from(tries) <= number_at(1) => pieces.push(Piece::Cut),
            "fail" if u64::from(tries) <= number_at(2) => pieces.push(Piece::Fail(failure(words.get(1).copied()))),
            "call" if words.len() > 2 => calls.push((words[1], words[2..].join(" "))),
            _ => {}
        }
    }
    let reason = if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
    pieces.extend(calls.iter().zip(0..).map(|((tool, argument), index)| {
        Piece::Give(Fragment::ToolCall {
            index,
            call_id: Some(format!("c{}", index + 1)),
            name: Some((*tool).to_owned()),
            arguments: json!({ "argument": argument }).to_string(),
        })
    }));
    pieces.extend(end(reason));
    pieces
}

fn usage(request: &ModelRequest) -> Usage {
    Usage { input_tokens: request.bytes() / 4, output_tokens: 7, ..Usage::default() }
}

fn failure(kind: Option<&str>) -> ModelError {
    let (kind, retry_after) = match kind {
        Some("limited") => (ModelErrorKind::RateLimited, Some(Duration::from_millis(700))),
        Some("rejected") => (ModelErrorKind::Rejected, None),
        _ => (ModelErrorKind::Unavailable, None),
    };
    ModelError { kind, message: "told to fail".to_owned(), retry_after }
}

/// The tools.
pub(crate) struct ScriptedTools(pub Arc<World>);

/// What a tool is, by its name.
fn class(tool: &str) -> Option<(EffectClass, Gate)> {
    let (gate, class) = match tool.split_once('_') {
        None => (Gate::Open, tool),
        Some(("gated", class)) => (Gate::Ask, class),
        Some(("person", class)) => (Gate::Person, class),
        Some(_) => return None,
    };
    let class = match class {
        "read" => EffectClass::Read,
        "idempotent" => EffectClass::Idempotent,
        "reconcilable" => EffectClass::Reconcilable,
        "once" => EffectClass::Once,
        _ => return None,
    };
    Some((class, gate))
}

/// How an attempt goes.
fn says(invocation: &Invocation, word: &str) -> bool {
    let argument = invocation.arguments["argument"].as_str().unwrap_or_default();
    let first = invocation.attempt == 1;
    argument.split(' ').any(|said| said == word || (first && said.strip_suffix('1') == Some(word)))
}

impl Tools for ScriptedTools {
    fn specs(&self, _: Scene<'_>) -> Vec<Arc<ToolSpec>> {
        Vec::new()
    }

    fn judge(&self, call: &ToolCall, _: Scene<'_>, rules: &TenantRules) -> Judgement {
        let arguments = call.arguments_value();
        if call.name == "ask" {
            return Judgement::Question { question: arguments.to_string(), options: vec!["yes".to_owned()] };
        }
        let Some((class, gate)) = class(&call.name) else { return Judgement::Unknown };
        let digest = Sha256::digest(arguments.to_string());
        let arguments_sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let covers = |permit: &Permit| permit.covers(&call.name, &arguments_sha256, None, &[]);
        let permitted_by = rules.permits.iter().find(|(_, permit)| covers(permit)).map(|(rule, _)| rule.clone());
        let amendment = Permit {
            tool: call.name.clone(),
            arguments_sha256: Some(arguments_sha256.clone()),
            command_prefix: None,
            host: None,
        };
        Judgement::Run(Box::new(Planned {
            kind: ItemKind::ToolCall,
            class,
            gate,
            arguments,
            arguments_sha256,
            command: None,
            cwd: None,
            words: None,
            hosts: Vec::new(),
            reason: "it acts".to_owned(),
            asked_by: None,
            amendment: Some(amendment),
            permitted_by,
        }))
    }

    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let world = self.0.clone();
        Box::pin(async move {
            world.tool_begins(&invocation);
            if says(&invocation, "slow") {
                sleep(Duration::from_millis(400)).await;
            }
            if says(&invocation, "hang") {
                pending::<()>().await;
            }
            if says(&invocation, "undone") {
                return ToolEnd::NotDone;
            }
            if says(&invocation, "fails") {
                return ToolEnd::Failed("told to fail".to_owned());
            }
            if says(&invocation, "says") {
                output.say("about to act\n".to_owned()).await;
            }
            world.tool_acts(&invocation);
            if says(&invocation, "late") {
                sleep(Duration::from_millis(1_500)).await;
            }
            if says(&invocation, "unknown") {
                return ToolEnd::Unknown("the line went dead".to_owned());
            }
            ToolEnd::Done("acted".to_owned())
        })
    }

    fn reconcile(&self, invocation: Invocation) -> ToolRun {
        let world = self.0.clone();
        Box::pin(async move {
            sleep(Duration::from_millis(10)).await;
            match world.has_acted(&invocation) {
                _ if says(&invocation, "mute") => ToolEnd::Unknown("nobody remembers".to_owned()),
                true => ToolEnd::Done("acted".to_owned()),
                false => ToolEnd::NotDone,
            }
        })
    }
}
