//! Tool calls: who must agree, what was intended, started and settled, and what nobody knows.
//!
//! ```text
//!                      ┌─ denied, expired ───────────────────────────────▶ done: the model is told
//!   asked for ─▶ gate ─┤
//!                      └─ agreed ─▶ intended ─▶ started ─▶ settled ──────▶ done
//!                                                 │  ▲
//!                        nobody knows, class once │  │ retry
//!                          or reconcilable        ▼  │
//!                                              uncertain ── settle ──▶ done;  abort ends the turn
//! ```
//!
//! `started` is saved before the tool is run. So what was only intended has not happened; what was started may have.
//! After a loss of the process, `read` and `idempotent` are started again under the same operation id, `reconcilable`
//! is asked first, and `once` becomes uncertain.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{OpenCall, settings::fits, step::Stepper};
use crate::{
    command::{Answer, Decide, Refused, Reply, Resolve, ToolReport},
    event::{Event, ItemDelta},
    history::{ARGUMENTS, ToolCall},
    id::{ApprovalId, ItemId, OperationId, QuestionId, TurnId},
    ports::{Gate, Judgement, Planned, Requested, ToolEnd},
    record::{
        Approval, ApprovalStatus, DecidedBy, Decision, Effect, EffectClass, EffectOutcome, EffectStatus, Item,
        ItemKind, Question, QuestionStatus, Resolution, ResolvedBy, TurnError, TurnStatus, summarize,
    },
};

/// A call that may happen now: nobody has to be asked, or whoever was asked has agreed.
pub(super) struct Intent {
    pub call_id: String,
    pub tool: String,
    pub operation: OperationId,
    pub class: EffectClass,
    pub arguments_sha256: Option<String>,
}

impl From<&Approval> for Intent {
    fn from(approval: &Approval) -> Self {
        Self {
            call_id: approval.call_id.clone(),
            tool: approval.tool.clone(),
            operation: approval.operation_id,
            class: approval.effect_class,
            arguments_sha256: Some(approval.arguments_sha256.clone()),
        }
    }
}

impl Stepper<'_> {
    /// Takes a tool call of the model's answer.
    pub(super) fn request(&mut self, turn: TurnId, call: u32, requested: Requested) {
        let Requested { call: asked, judgement } = requested;
        let kind = match &judgement {
            Judgement::Run(planned) => planned.kind,
            _ => ItemKind::ToolCall,
        };
        let mut item = self.new_item(turn, call, kind);
        item.summary = summarize(&asked.name);
        item.metadata.insert("call_id".to_owned(), json!(asked.call_id));
        item.metadata.insert("tool".to_owned(), json!(asked.name));
        let arguments = asked.arguments_value();
        let written = arguments.to_string();
        if arguments.is_object() && written != asked.arguments {
            // The model is to see its own words again, not ours for the same.
            item.metadata.insert(ARGUMENTS.to_owned(), json!(asked.arguments));
        }
        item.metadata.insert("arguments".to_owned(), arguments);
        let operation = OperationId::new(self.cx.ids.mint());
        if let Judgement::Run(planned) = &judgement {
            item.summary = summarize(planned.command.as_deref().unwrap_or(&asked.name));
            item.metadata.insert("effect_class".to_owned(), json!(planned.class));
            item.metadata.insert("operation_id".to_owned(), json!(operation));
        }
        let item = *item;
        self.emit(Event::ItemStarted(Box::new(item.clone())));
        match judgement {
            Judgement::Unknown => self.fail(item, format!("unknown tool: {}", asked.name)),
            Judgement::Invalid(why) => self.fail(item, format!("invalid arguments: {why}")),
            Judgement::Forbidden { reason, rule } => {
                self.fail(item, format!("forbidden by the rule `{rule}`: {reason}"))
            }
            Judgement::Question { question, options } => self.ask(&item, asked, question, options),
            Judgement::Run(planned) => {
                let (class, arguments_sha256) = (planned.class, Some(planned.arguments_sha256.clone()));
                if self.gate(&item, &asked, operation, *planned) {
                    let ToolCall { call_id, name: tool, .. } = asked;
                    self.intend(&item, Intent { call_id, tool, operation, class, arguments_sha256 });
                }
            }
        }
    }

    fn ask(&mut self, item: &Item, asked: ToolCall, question: String, options: Vec<String>) {
        let question = Question {
            id: QuestionId::new(self.cx.ids.mint()),
            thread_id: self.state.id(),
            turn_id: item.turn_id,
            item_id: item.id,
            call_id: asked.call_id,
            question,
            options,
            status: QuestionStatus::Pending,
            answer: None,
            asked_at: self.cx.now,
            expires_at: self.cx.now.after(Duration::from_millis(self.cx.limits.question_ms)),
            answered_at: None,
        };
        self.emit(Event::QuestionAsked(Box::new(question)));
    }

    /// Lets a call pass, or asks a person. Whether it passed.
    pub(super) fn gate(&mut self, item: &Item, asked: &ToolCall, operation: OperationId, planned: Planned) -> bool {
        let Some(open) = &self.state.open else { return false };
        let settings = &open.turn.settings;
        let (auto, trusted) = (settings.auto_approve, settings.trust_mode);
        let words = planned.words.as_deref();
        let mut grants = self.state.grants.iter();
        let granted = grants.any(|permit| permit.covers(&asked.name, &planned.arguments_sha256, words, &planned.hosts));
        let passes = match planned.gate {
            Gate::Open => None,
            Gate::Person => return self.require(item, asked, operation, planned),
            _ if planned.permitted_by.is_some() => Some(DecidedBy::Policy),
            _ if granted => Some(DecidedBy::Session),
            Gate::Ask if auto => Some(DecidedBy::Auto),
            Gate::FullAccess if auto && trusted => Some(DecidedBy::Auto),
            Gate::Ask | Gate::FullAccess => return self.require(item, asked, operation, planned),
        };
        if let Some(by) = passes {
            let mut approval = self.approval(item, asked, operation, planned);
            approval.status = ApprovalStatus::Approved;
            (approval.decision, approval.by) = (Some(Decision::Approved), Some(by));
            approval.decided_at = Some(self.cx.now);
            self.emit(Event::ApprovalDecided(Box::new(approval)));
        }
        true
    }

    fn require(&mut self, item: &Item, asked: &ToolCall, operation: OperationId, planned: Planned) -> bool {
        let approval = self.approval(item, asked, operation, planned);
        self.emit(Event::ApprovalRequired(Box::new(approval)));
        false
    }

    pub(super) fn approval(&self, item: &Item, asked: &ToolCall, operation: OperationId, planned: Planned) -> Approval {
        let lasting = [Decision::ApprovedForSession, Decision::ApprovedAlways];
        let lasting = lasting.into_iter().filter(|_| planned.amendment.is_some());
        Approval {
            id: ApprovalId::new(self.cx.ids.mint()),
            thread_id: self.state.id(),
            turn_id: item.turn_id,
            item_id: item.id,
            call_id: asked.call_id.clone(),
            operation_id: operation,
            tool: asked.name.clone(),
            effect_class: planned.class,
            arguments: planned.arguments,
            arguments_sha256: planned.arguments_sha256,
            command: planned.command,
            cwd: planned.cwd,
            reason: planned.reason,
            matched_rule: planned.permitted_by.or(planned.asked_by),
            available_decisions: [Decision::Approved]
                .into_iter()
                .chain(lasting)
                .chain([Decision::Denied, Decision::Abort])
                .collect(),
            amendment: planned.amendment,
            status: ApprovalStatus::Pending,
            decision: None,
            by: None,
            decision_reason: None,
            requested_at: self.cx.now,
            expires_at: self.cx.now.after(Duration::from_millis(self.cx.limits.approval_ms)),
            decided_at: None,
        }
    }

    pub(super) fn intend(&mut self, item: &Item, intent: Intent) {
        let Intent { call_id, tool, operation, class, arguments_sha256 } = intent;
        let run_id = self.state.view.run_id;
        let task_id = self.state.open.as_ref().and_then(|open| open.turn.task_id.clone()).filter(|_| run_id.is_some());
        let effect = Effect {
            operation_id: operation,
            thread_id: self.state.id(),
            turn_id: item.turn_id,
            item_id: item.id,
            call_id,
            tool,
            class,
            run_id,
            task_id,
            // Where there is no ledger nobody asks for it.
            arguments_sha256: arguments_sha256.filter(|_| run_id.is_some()),
            status: EffectStatus::Intended,
            attempt: 0,
            outcome: None,
            output_sha256: None,
            output_bytes: None,
            reason: None,
            resolution: None,
            resolved_by: None,
            closed: false,
            intended_at: self.cx.now,
            started_at: None,
            ended_at: None,
        };
        self.emit(Event::EffectIntended(Box::new(effect)));
    }

    // ---- a person speaks ----------------------------------------------------------------------------

    pub(super) fn decide(&mut self, decide: Decide) -> Result<Reply, Refused> {
        let Decide { approval: id, decision, reason } = decide;
        fits("reason", reason.as_deref().unwrap_or_default(), self.cx.limits.field_bytes)?;
        let pending = self.state.open.as_ref().and_then(|open| open.approval(id)).cloned();
        let Some(mut approval) = pending else { return Err(Refused::NotPending { approval: id }) };
        if approval.expires_at <= self.cx.now {
            // The next tick says so; until then it is nobody's to decide.
            return Err(Refused::Expired { at: approval.expires_at });
        }
        if !approval.available_decisions.contains(&decision) {
            return Err(Refused::Invalid { field: "decision", why: "is not available for this call".to_owned() });
        }
        approval.status = match decision {
            Decision::Approved | Decision::ApprovedForSession | Decision::ApprovedAlways => ApprovalStatus::Approved,
            Decision::Denied => ApprovalStatus::Denied,
            Decision::Abort => ApprovalStatus::Aborted,
        };
        (approval.decision, approval.by) = (Some(decision), Some(DecidedBy::Caller));
        (approval.decision_reason, approval.decided_at) = (reason, Some(self.cx.now));
        let Some(item) = self.open_item(approval.item_id) else { return Err(Refused::NotPending { approval: id }) };
        self.emit(Event::ApprovalDecided(Box::new(approval.clone())));
        let is_act = self.is_act(item.id);
        match approval.status {
            ApprovalStatus::Approved if is_act => self.set_off(&item, Some(approval.arguments_sha256.clone())),
            ApprovalStatus::Approved => self.intend(&item, Intent::from(&approval)),
            ApprovalStatus::Denied => {
                let why = approval.decision_reason.as_deref().map_or(String::new(), |reason| format!(": {reason}"));
                self.fail(item, format!("denied{why}"));
                if !is_act {
                    self.proceed();
                }
            }
            ApprovalStatus::Aborted => self.abort(),
            ApprovalStatus::Pending | ApprovalStatus::Expired | ApprovalStatus::Cancelled => {}
        }
        Ok(Reply::Approval(Box::new(approval)))
    }

    pub(super) fn answer(&mut self, answer: Answer) -> Result<Reply, Refused> {
        let Answer { question: id, answer } = answer;
        fits("answer", &answer, self.cx.limits.prompt_bytes)?;
        let pending = self.state.open.as_ref().and_then(|open| open.question(id)).cloned();
        let Some(mut question) = pending else { return Err(Refused::NotAsked { question: id }) };
        if question.expires_at <= self.cx.now {
            return Err(Refused::Expired { at: question.expires_at });
        }
        let Some(item) = self.open_item(question.item_id) else { return Err(Refused::NotAsked { question: id }) };
        question.status = QuestionStatus::Answered;
        (question.answer, question.answered_at) = (Some(answer.clone()), Some(self.cx.now));
        self.emit(Event::QuestionAnswered(Box::new(question.clone())));
        self.close_item(item, TurnStatus::Completed, |item| item.detail = answer);
        self.proceed();
        Ok(Reply::Question(Box::new(question)))
    }

    pub(super) fn resolve(&mut self, resolve: Resolve) -> Result<Reply, Refused> {
        let Resolve { operation, resolution, output } = resolve;
        fits("output", output.as_deref().unwrap_or_default(), self.cx.limits.item_bytes)?;
        match (resolution, &output) {
            (Resolution::Settle, None) => {
                return Err(Refused::Invalid { field: "output", why: "is needed to settle an effect".to_owned() });
            }
            (Resolution::Retry | Resolution::Abort, Some(_)) => {
                return Err(Refused::Invalid { field: "output", why: "is only for `settle`".to_owned() });
            }
            _ => {}
        }
        let uncertain = self.state.open.as_ref().and_then(|open| open.open_effect(operation));
        let Some(effect) = uncertain.filter(|effect| effect.status == EffectStatus::Uncertain).cloned() else {
            return Err(Refused::NotUncertain { operation });
        };
        let effect = self.reconciled(effect, resolution, ResolvedBy::Caller, resolution == Resolution::Abort);
        match resolution {
            Resolution::Retry => self.start_again(effect.clone()),
            Resolution::Settle => {
                self.succeed(effect.clone(), output.unwrap_or_default());
                self.proceed();
            }
            Resolution::Abort => self.abort(),
        }
        Ok(Reply::Effect(Box::new(effect)))
    }

    /// Ends the turn because a person said so in place of a decision.
    fn abort(&mut self) {
        let message = "a person ended the turn instead of letting a tool call go on".to_owned();
        self.end(TurnStatus::Canceled, Some(TurnError { code: "aborted".to_owned(), message }));
    }

    /// Closes what nobody has decided or answered in time.
    pub(super) fn expire(&mut self) {
        let now = self.cx.now;
        while let Some(open) = &self.state.open {
            let approval = open.approvals().find(|approval| approval.expires_at <= now).cloned();
            let question = open.questions().find(|question| question.expires_at <= now).cloned();
            let closed = if let Some(mut approval) = approval {
                (approval.status, approval.decided_at) = (ApprovalStatus::Expired, Some(now));
                let item = approval.item_id;
                self.emit(Event::ApprovalExpired(Box::new(approval)));
                Some((item, "not approved: nobody decided in time"))
            } else if let Some(mut question) = question {
                question.status = QuestionStatus::Expired;
                let item = question.item_id;
                self.emit(Event::QuestionExpired(Box::new(question)));
                Some((item, "nobody answered in time"))
            } else {
                None
            };
            let Some((item, why)) = closed else { return };
            let is_act = self.is_act(item);
            if let Some(item) = self.open_item(item) {
                self.fail(item, why.to_owned());
            }
            if !is_act {
                self.proceed();
            }
        }
    }

    // ---- the tool speaks ----------------------------------------------------------------------------

    /// The host is about to run what is due.
    pub(super) fn begin(&mut self) -> Reply {
        let open = self.state.open.as_ref();
        let intended = |(effect, _): (&Effect, bool)| (effect.status == EffectStatus::Intended).then(|| effect.clone());
        let due: Vec<Effect> = open.map(|open| open.due().filter_map(intended).collect()).unwrap_or_default();
        for effect in due {
            self.start_again(effect);
        }
        Reply::Noted
    }

    /// What a tool says. Said about an attempt that is not under way, it changes nothing.
    pub(super) fn tool_report(&mut self, report: ToolReport) -> Reply {
        let ToolReport { operation, attempt, said, end } = report;
        let open = self.state.open.as_ref().and_then(|open| open.open_effect(operation));
        let current = |effect: &&Effect| effect.status == EffectStatus::Started && effect.attempt == attempt;
        let Some(mut effect) = open.filter(current).cloned() else { return Reply::Noted };
        if let Some(item) = self.open_item(effect.item_id) {
            self.hear(&item, said);
        }
        let Some(end) = end else { return Reply::Noted };
        let due = self.state.owed().tools.into_iter().find(|due| due.operation == operation);
        if matches!(end, ToolEnd::Done(_)) && due.is_some_and(|due| due.reconcile) {
            effect = self.reconciled(effect, Resolution::Settle, ResolvedBy::Tool, false);
        }
        let more = effect.attempt < self.cx.limits.tool_attempts;
        match end {
            ToolEnd::Done(output) => self.succeed(effect, output),
            ToolEnd::Failed(why) => self.settle(effect, EffectOutcome::Failed, TurnStatus::Failed, why),
            // Only a tool that can say later what happened is believed that nothing did.
            ToolEnd::NotDone if more && effect.class != EffectClass::Once => {
                let effect = self.reconciled(effect, Resolution::Retry, ResolvedBy::Tool, false);
                self.start_again(effect);
            }
            ToolEnd::NotDone => {
                self.settle(effect, EffectOutcome::Failed, TurnStatus::Failed, "it could not be done".to_owned());
            }
            ToolEnd::Unknown(why) => match effect.class {
                EffectClass::Read | EffectClass::Idempotent if more => self.start_again(effect),
                EffectClass::Read => self.settle(effect, EffectOutcome::Failed, TurnStatus::Failed, why),
                EffectClass::Idempotent | EffectClass::Reconcilable | EffectClass::Once => {
                    self.lose(effect, why, false)
                }
            },
        }
        self.proceed();
        Reply::Noted
    }

    /// Adds what a tool, or an agent at an act, says to its item, up to the limit of an item.
    pub(super) fn hear(&mut self, item: &Item, mut said: String) {
        let room = self.cx.limits.item_bytes.saturating_sub(item.detail.len());
        said.truncate(said.floor_char_boundary(room));
        if !said.is_empty() {
            self.emit(Event::ItemDelta(ItemDelta { turn: item.turn_id, item: item.id, kind: item.kind, delta: said }));
        }
    }

    /// The process that ran the tools is gone.
    pub(super) fn recover_effects(&mut self) {
        let open = self.state.open.as_ref();
        let started = |effect: &&Effect| effect.status == EffectStatus::Started;
        let started: Vec<Effect> =
            open.map(|open| open.open_effects().filter(started).cloned().collect()).unwrap_or_default();
        for effect in started {
            match effect.class {
                EffectClass::Read | EffectClass::Idempotent => self.start_again(effect),
                // Asked by the host: the state owes it.
                EffectClass::Reconcilable => {}
                EffectClass::Once => {
                    let why = "the process that ran it was lost before its outcome was saved".to_owned();
                    self.lose(effect, why, false);
                }
            }
        }
    }

    /// Ends every call that is not done, because the turn ends. Returns what was started, and what is known of it.
    pub(super) fn close_calls(&mut self) -> Vec<Effect> {
        let why = "the turn ended before this call was done";
        self.give_up_acts(why, false);
        let Some(open) = &self.state.open else { return Vec::new() };
        for call in open.calls.clone() {
            let item = call.item();
            self.close_call(call, "the turn ended while it ran");
            if let Some(item) = self.open_item(item) {
                self.close_item(item, TurnStatus::Interrupted, |item| {
                    // What it said by then may be all that anybody will know of it.
                    if !item.detail.is_empty() {
                        item.detail.push('\n');
                    }
                    item.detail.push_str(why);
                });
            }
        }
        self.state.open.as_ref().map(|open| open.effects.clone()).unwrap_or_default()
    }

    /// Ends what is open of a call; `why` is what becomes of one that ran.
    pub(super) fn close_call(&mut self, call: OpenCall, why: &str) {
        let now = self.cx.now;
        match call {
            OpenCall::Approval(approval) => {
                // One that was just decided, by a word that ends the turn, has its end.
                if approval.status == ApprovalStatus::Pending {
                    self.cancel(*approval);
                }
            }
            OpenCall::Question(mut question) => {
                self.emit(if question.expires_at <= now {
                    question.status = QuestionStatus::Expired;
                    Event::QuestionExpired(Box::new(question))
                } else {
                    question.status = QuestionStatus::Cancelled;
                    Event::QuestionCancelled(Box::new(question))
                });
            }
            OpenCall::Effect { mut effect, .. } => match (effect.status, effect.class) {
                (EffectStatus::Intended, _) | (EffectStatus::Started, EffectClass::Read) => {
                    (effect.status, effect.outcome) = (EffectStatus::Settled, Some(EffectOutcome::Canceled));
                    effect.ended_at = Some(self.cx.now);
                    self.emit(Event::EffectSettled(Box::new(effect)));
                }
                // A person has just said what is to become of it.
                (EffectStatus::Uncertain, _) if effect.closed => {}
                (EffectStatus::Started, _) => {
                    self.lose(effect, why.to_owned(), true);
                }
                (EffectStatus::Uncertain, _) => {
                    let why = effect.reason.clone().unwrap_or_default();
                    self.lose(effect, why, true);
                }
                (EffectStatus::Settled, _) => {}
            },
        }
    }

    /// Ends an approval that nobody can decide any more.
    pub(super) fn cancel(&mut self, mut approval: Approval) {
        let now = self.cx.now;
        approval.decided_at = Some(now);
        // Somebody may have been told already that it is too late.
        self.emit(if approval.expires_at <= now {
            approval.status = ApprovalStatus::Expired;
            Event::ApprovalExpired(Box::new(approval))
        } else {
            approval.status = ApprovalStatus::Cancelled;
            Event::ApprovalCancelled(Box::new(approval))
        });
    }

    // ---- the ledger ---------------------------------------------------------------------------------

    pub(super) fn start_again(&mut self, effect: Effect) {
        let next = Effect {
            status: EffectStatus::Started,
            attempt: effect.attempt + 1,
            reason: None,
            resolution: None,
            resolved_by: None,
            started_at: Some(self.cx.now),
            ..effect
        };
        self.emit(Event::EffectStarted(Box::new(next)));
    }

    fn succeed(&mut self, effect: Effect, output: String) {
        self.settle(effect, EffectOutcome::Succeeded, TurnStatus::Completed, output);
    }

    fn settle(&mut self, effect: Effect, outcome: EffectOutcome, status: TurnStatus, output: String) {
        let Some(item) = self.open_item(effect.item_id) else { return };
        let output = self.settled(effect, outcome, output);
        self.close_item(item, status, |item| item.detail = output);
    }

    /// Says of an effect that it came to its end. Returns its output as its item is to hold it, which is what a ledger
    /// has the digest of: whoever can read the item can check it.
    pub(super) fn settled(&mut self, effect: Effect, outcome: EffectOutcome, output: String) -> String {
        let output = self.capped(output);
        let (outcome, ended_at) = (Some(outcome), Some(self.cx.now));
        let mut settled = Effect { status: EffectStatus::Settled, outcome, ended_at, ..effect };
        if settled.run_id.is_some() {
            settled.output_sha256 = Some(sha256(&output));
            settled.output_bytes = Some(output.len() as u64);
        }
        self.emit(Event::EffectSettled(Box::new(settled)));
        output
    }

    fn lose(&mut self, effect: Effect, why: String, closed: bool) {
        let (reason, ended_at) = (Some(summarize(&why)), Some(self.cx.now));
        let lost = Effect { status: EffectStatus::Uncertain, reason, ended_at, closed, ..effect };
        self.emit(Event::EffectUncertain(Box::new(lost)));
    }

    fn reconciled(&mut self, effect: Effect, resolution: Resolution, by: ResolvedBy, closed: bool) -> Effect {
        let effect = Effect { resolution: Some(resolution), resolved_by: Some(by), closed, ..effect };
        self.emit(Event::EffectReconciled(Box::new(effect.clone())));
        effect
    }

    /// Ends a call that is not to happen; the model is told why.
    pub(super) fn fail(&mut self, item: Item, why: String) {
        let why = self.capped(why);
        self.close_item(item, TurnStatus::Failed, |item| item.detail = why);
    }

    pub(super) fn capped(&self, mut text: String) -> String {
        let limit = self.cx.limits.item_bytes;
        if text.len() > limit {
            let whole = text.len();
            text.truncate(text.floor_char_boundary(limit));
            text.push_str(&format!("\n[cut: {limit} of {whole} bytes]"));
        }
        text
    }

    pub(super) fn open_item(&self, item: ItemId) -> Option<Item> {
        self.state.open.as_ref().and_then(|open| open.item(item)).filter(|item| item.ended_at.is_none()).cloned()
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
