//! What an agent does by itself, in the middle of a model call: acts of its own, and what it asks a person for.
//!
//! ```text
//!   announced ─┬──────────────────────────────────────▶ started ─▶ settled
//!              └─ asks ─▶ gate ─┬─ agreed ────────────────┘  │
//!                               └─ denied, expired: done     └─ uncertain: the call ended first
//! ```
//!
//! An act is an item with an effect of class `once`: nobody but the agent can do it, and nobody can do it again. It
//! counts as started as soon as it may have happened: when the agent says so, or when it is told that it may.
//!
//! While a person is asked the model call goes on. The verdict is owed to the engine ([`Owed::verdicts`]
//! (super::Owed)), by the agent's name for the call; a denied agent decides itself how to go on.
//!
//! Invariants: a call in which an act was started is never made again, after a failure or a crash; whatever is open of
//! an act ends with its call.

use serde_json::json;

use super::{OpenAct, OpenCall, step::Stepper, tools::Intent};
use crate::{
    event::Event,
    history::{AGENT, CALL, SUPERSEDED, ToolCall},
    id::{ItemId, OperationId, TurnId},
    ports::{Act, ActStep, ModelError, ModelErrorKind, Planned},
    record::{
        ApprovalStatus, DecidedBy, Decision, EffectClass, EffectOutcome, Item, ItemKind, TurnError, TurnStatus,
        summarize,
    },
};

/// Acts of one model call.
pub(super) const ACTS: usize = 1_000;

impl Stepper<'_> {
    /// Takes what an agent says about one of its acts.
    pub(super) fn act(&mut self, turn: TurnId, call: u32, act: Act) -> Result<(), ModelError> {
        let open = self.open_act(&act.call_id);
        if open.is_none() {
            self.room_for_an_act(call)?;
        }
        match act.step.clone() {
            ActStep::Announced => {
                self.item_of(turn, call, &act);
            }
            ActStep::Asks(planned) => {
                self.leave_begun(&act);
                let item = self.item_of(turn, call, &act);
                self.ask_for(&item, &act, *planned);
            }
            ActStep::Forbidden { planned, reason, rule } => {
                self.leave_begun(&act);
                let item = self.item_of(turn, call, &act);
                self.forbid(&item, &act, *planned, reason, &rule);
            }
            ActStep::Started => {
                self.started(turn, call, &act);
            }
            ActStep::Said(text) => {
                let item = self.started(turn, call, &act);
                self.hear(&item, text);
            }
            // It was told that it may not, and that is what it has to say about it.
            ActStep::Ended { done: false, .. } if open.is_none() && self.was_refused(call, &act.call_id) => {}
            ActStep::Ended { done, output } => {
                let item = self.started(turn, call, &act);
                self.ended(&item, &act, done, output);
            }
        }
        Ok(())
    }

    fn room_for_an_act(&self, call: u32) -> Result<(), ModelError> {
        let made = self.items_of(call).filter(|item| item.metadata.contains_key(AGENT)).count();
        if made < ACTS {
            return Ok(());
        }
        let message = format!("the agent made more than {ACTS} calls in one answer");
        Err(ModelError { kind: ModelErrorKind::TooLarge, message, retry_after: None })
    }

    /// The item of an act, which is begun if there is none yet.
    fn item_of(&mut self, turn: TurnId, call: u32, act: &Act) -> Item {
        if let Some(item) = self.open_act(&act.call_id).and_then(|open| self.open_item(open.item)) {
            return item;
        }
        self.close_text(TurnStatus::Completed, |_| {});
        let mut item = self.new_item(turn, call, act.kind);
        item.summary = summarize(&act.title);
        for (key, value) in [
            (AGENT, json!(true)),
            ("call_id", json!(act.call_id)),
            ("tool", json!(act.tool)),
            ("arguments", act.arguments.clone()),
            ("effect_class", json!(EffectClass::Once)),
            ("operation_id", json!(OperationId::new(self.cx.ids.mint()))),
        ] {
            item.metadata.insert(key.to_owned(), value);
        }
        self.emit(Event::ItemStarted(item.clone()));
        *item
    }

    /// An agent that asks about an act which it has begun means another one by the same name: how the first one ended,
    /// it does not say.
    fn leave_begun(&mut self, act: &Act) {
        let open = self.open_act(&act.call_id);
        if let Some(begun) = open.filter(|open| matches!(open.call, Some(OpenCall::Effect { .. }))) {
            self.give_up_act(
                begun,
                "the agent asked for leave after it had begun, and did not say how this ended",
                false,
            );
        }
    }

    fn ask_for(&mut self, item: &Item, act: &Act, planned: Planned) {
        // A second question about an act for which somebody is asked, or which goes on, changes nothing.
        let asked_already = self.open_act(&act.call_id).is_some_and(|open| open.call.is_some());
        if asked_already {
            return;
        }
        let arguments_sha256 = planned.arguments_sha256.clone();
        if self.gate(item, &asked_by(act), operation(item), planned) {
            self.set_off(item, Some(arguments_sha256));
        }
    }

    /// Says no for a rule. The agent is told as if a person had said it.
    fn forbid(&mut self, item: &Item, act: &Act, planned: Planned, reason: String, rule: &str) {
        // Somebody is asked about it already, and will be heard.
        if self.open_act(&act.call_id).is_some_and(|open| open.call.is_some()) {
            return;
        }
        let why = format!("forbidden by the rule `{rule}`: {reason}");
        let mut approval = self.approval(item, &asked_by(act), operation(item), planned);
        (approval.status, approval.decision) = (ApprovalStatus::Denied, Some(Decision::Denied));
        (approval.by, approval.matched_rule) = (Some(DecidedBy::Policy), Some(rule.to_owned()));
        (approval.decision_reason, approval.decided_at) = (Some(reason), Some(self.cx.now));
        self.emit(Event::ApprovalDecided(Box::new(approval)));
        self.fail(item.clone(), why);
    }

    /// Makes sure that the ledger knows of an act which may have happened.
    fn started(&mut self, turn: TurnId, call: u32, act: &Act) -> Item {
        let item = self.item_of(turn, call, act);
        match self.open_act(&act.call_id).and_then(|open| open.call) {
            Some(OpenCall::Effect { .. }) => {}
            // It did not wait for the answer.
            Some(OpenCall::Approval(approval)) if approval.status == ApprovalStatus::Pending => {
                let arguments_sha256 = approval.arguments_sha256.clone();
                self.cancel(*approval);
                self.set_off(&item, Some(arguments_sha256));
            }
            _ => self.set_off(&item, None),
        }
        item
    }

    /// Writes down that an act is about to happen, and that it may have.
    pub(super) fn set_off(&mut self, item: &Item, arguments_sha256: Option<String>) {
        let text = |key: &str| item.metadata.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let (call_id, tool, operation) = (text("call_id"), text("tool"), operation(item));
        self.intend(item, Intent { call_id, tool, operation, class: EffectClass::Once, arguments_sha256 });
        let intended = self.state.open.as_ref().and_then(|open| open.act_effect(item.id)).cloned();
        if let Some(effect) = intended {
            self.start_again(effect);
        }
    }

    fn ended(&mut self, item: &Item, act: &Act, done: bool, output: String) {
        let Some(effect) = self.state.open.as_ref().and_then(|open| open.act_effect(item.id)).cloned() else { return };
        let (outcome, status) = match done {
            true => (EffectOutcome::Succeeded, TurnStatus::Completed),
            false => (EffectOutcome::Failed, TurnStatus::Failed),
        };
        let output = self.settled(effect, outcome, output);
        self.close_item(item.clone(), status, |item| {
            // What it was is often only known by now.
            item.summary = summarize(&act.title);
            item.metadata.insert("arguments".to_owned(), act.arguments.clone());
            item.detail = output;
        });
    }

    /// Whether a person, or nobody in time, has said no to the last act of this name.
    fn was_refused(&self, call: u32, call_id: &str) -> bool {
        let named = |item: &&Item| item.metadata.get("call_id").and_then(|id| id.as_str()) == Some(call_id);
        let acts = self.items_of(call).filter(|item| item.metadata.contains_key(AGENT));
        acts.filter(named).last().is_some_and(|item| item.status == TurnStatus::Failed)
    }

    /// Ends whatever is open of the agent's acts, because its call is over.
    pub(super) fn give_up_acts(&mut self, why: &str, superseded: bool) {
        let Some(open) = &self.state.open else { return };
        for act in open.acts.clone() {
            self.give_up_act(act, why, superseded);
        }
    }

    fn give_up_act(&mut self, act: OpenAct, why: &str, superseded: bool) {
        let OpenAct { item, call, .. } = act;
        if let Some(call) = call {
            self.close_call(call, why);
        }
        if let Some(item) = self.open_item(item) {
            self.close_item(item, TurnStatus::Interrupted, |item| {
                if superseded {
                    item.metadata.insert(SUPERSEDED.to_owned(), json!(true));
                }
                if !item.detail.is_empty() {
                    item.detail.push('\n');
                }
                item.detail.push_str(why);
            });
        }
    }

    /// Says of an answer that will be asked for again that it is not part of the conversation, where nothing of it is
    /// open that could say so.
    pub(super) fn supersede_closed(&mut self) {
        let Some(open) = &self.state.open else { return };
        let (turn, call) = (open.turn.id, open.call);
        let told = |item: &Item| item.metadata.contains_key(SUPERSEDED);
        if self.items_of(call).next().is_none() || self.items_of(call).any(told) {
            return;
        }
        let mut item = self.new_item(turn, call, ItemKind::Status);
        item.metadata.insert(SUPERSEDED.to_owned(), json!(true));
        item.summary = "the answer is asked for again".to_owned();
        self.emit(Event::ItemStarted(item.clone()));
        self.close_item(*item, TurnStatus::Completed, |item| item.detail = item.summary.clone());
    }

    /// Ends a turn whose agent is gone after it had begun to act: nobody may ask it to do all that again.
    pub(super) fn lose_agent(&mut self) {
        let why = "the process that ran the agent was lost before the act's outcome was saved";
        self.give_up_acts(why, false);
        let message = "the agent was lost after it had begun to act; what it was doing is not done again".to_owned();
        self.end(TurnStatus::Failed, Some(TurnError { code: "agent-lost".to_owned(), message }));
    }

    /// Whether the item is that of an act that is not done.
    pub(super) fn is_act(&self, item: ItemId) -> bool {
        self.state.open.as_ref().is_some_and(|open| open.acts.iter().any(|act| act.item == item))
    }

    fn open_act(&self, call_id: &str) -> Option<OpenAct> {
        let open = self.state.open.as_ref()?;
        open.acts.iter().find(|act| act.call_id == call_id).cloned()
    }

    fn items_of(&self, call: u32) -> impl Iterator<Item = &Item> {
        let items = self.state.open.iter().flat_map(|open| open.items());
        items.filter(move |item| item.metadata.get(CALL).and_then(|number| number.as_u64()) == Some(call.into()))
    }
}

/// An act as a call that somebody is asked about.
fn asked_by(act: &Act) -> ToolCall {
    ToolCall { call_id: act.call_id.clone(), name: act.tool.clone(), arguments: act.arguments.to_string() }
}

/// What the effect of an act is called.
fn operation(item: &Item) -> OperationId {
    let minted = item.metadata.get("operation_id").cloned().unwrap_or_default();
    serde_json::from_value(minted).unwrap_or_else(|_| unreachable!("every act is begun with an operation"))
}
