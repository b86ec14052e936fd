//! One thread as a pure state machine: its inbox, its open turn, and the turn's steps.
//!
//! ```text
//!            start                    answer without tool calls, failure, interrupt
//!   idle ───────────────▶ calling ─────────────────────────────────────────────────▶ idle, or the
//!                         ▲  ▲  │ │                                                  next prompt's turn
//!                         │  │  │ └─ transient failure ─▶ pausing ─┐
//!                         │  └──┼───────────── tick at `retry_at` ─┘
//!                         │     │ answer with tool calls
//!        every call done: │     ▼
//!        steers are seen, └─ working ◀───────── decision, answer, resolution ────────┐
//!        a long history      │ the first call that is not done asks a person: ─▶ waiting
//!        is compacted        └ otherwise it is run ([`Owed::tools`])                (no engine)
//!
//!   any ── recover (its engine is gone) ─▶ calling again, with a fresh call number; tools by their class
//!   any ── interrupt, abort, deadline ──▶ idle, or the next prompt's turn; everything open is closed first
//! ```
//!
//! A tool call is `approval? → intended → started → settled | uncertain` (`tools`). An agent makes calls of its own while
//! it answers: they are written down, and what it asks for is asked here (`agent`). A compaction is a model call
//! whose answer takes the place of what came before; it runs in a turn of its own, or before a call of another
//! (`compaction`). What calls may spend, and what becomes of one that is cut off, is `budget`.
//!
//! [`ThreadState::step`] judges a request and, when it accepts, emits events; an event changes the state only
//! through [`ThreadState::apply`], which recovery uses too, so live and replayed states are equal.
//! [`ThreadState::owed`] says what must happen while a state lasts; asking twice for it is harmless.
//!
//! Invariants: seqs are dense; at most one turn is open; a turn, an item, an approval, a question and a tool call
//! end exactly once; nothing of a turn follows its end but its reversal; a refused request changes nothing; queued
//! prompts run in the order of the inbox; an effect of class `once` is started at most once without a person's word.
//!
//! Absent on purpose: clocks, fresh ids (both come with [`Cx`]), I/O, and any memory of settled turns but the last,
//! which can be edited; the others are found in the log.

mod agent;
mod apply;
mod budget;
mod causes;
mod compaction;
mod fork;
mod given;
mod inbox;
mod settings;
mod start;
mod step;
#[cfg(test)]
mod tests;
mod tools;
mod turn;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

pub use self::{
    apply::Impossible,
    compaction::INSTRUCTION,
    fork::ForkPoint,
    step::{Rest, Step},
};
use crate::{
    budget::{Amount, Unit},
    command::Limits,
    event::Reserved,
    id::{ApprovalId, InputId, ItemId, OperationId, QuestionId, Seq, ThreadId, ThreadKey, TurnId},
    ports::{Ids, Invocation, Room, Verdict},
    price::Prices,
    record::{
        Admission, Approval, ApprovalStatus, Checkpoint, Compaction, Effect, EffectClass, EffectStatus, Item,
        OnRestart, Permit, Purpose, Question, Thread, Turn,
    },
    time::UnixMs,
};

/// The checkpoint that is the newest, whatever its name.
pub const LATEST: &str = "latest";

/// What a step may know of the world.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    pub now: UnixMs,
    pub ids: &'a dyn Ids,
    pub limits: &'a Limits,
    pub prices: &'a Prices,
    /// The process is about to end: no turn is begun for a prompt that waits. The next process begins it.
    pub draining: bool,
    /// What the tenant may have more of.
    pub room: &'a dyn Room,
}

/// A loaded thread. Small while nothing goes on, for most of those that are held in memory do nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadState {
    /// The record as callers see it; `view.seq` is the head of the log.
    view: Thread,
    inbox: VecDeque<Queued>,
    open: Option<Box<OpenTurn>>,
    /// The last turn of the conversation, if it ended and can be taken out of it.
    last: Option<Box<Last>>,
    /// The `started_seq` of the turn that holds the newest compaction: what came before it, no model sees. 0: all.
    context_seq: Seq,
    /// Tokens of the last model call, where they were reported.
    context_tokens: Option<u64>,
    /// Calls that need not be asked about again on this thread.
    grants: Vec<Permit>,
    checkpoints: Vec<Checkpoint>,
    /// What its model calls have spent.
    spent: Amount,
    /// The limits of its budget of which somebody was warned.
    warned: Vec<(Unit, u64)>,
}

/// A prompt that waits, and the event that holds it.
#[derive(Debug, Clone, PartialEq)]
struct Queued {
    seq: Seq,
    admission: Admission,
}

/// The last turn that answered a prompt, and the compaction that came after it, if one did.
#[derive(Debug, Clone, PartialEq)]
pub struct Last {
    pub turn: Turn,
    pub started_seq: Seq,
    /// [`ThreadState::context_seq`] when it began.
    pub context_seq: Seq,
    compaction: Option<(Turn, Seq)>,
}

/// The turn that is not over yet.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenTurn {
    turn: Turn,
    started_seq: Seq,
    items: Vec<OpenItem>,
    /// The number of the model call that is due or running: it grows whenever another call takes its place, so
    /// what an engine that was given up still says is recognised by it.
    call: u32,
    /// Which try of the same answer this is, from 1.
    attempt: u32,
    /// Set while the turn waits before another try.
    retry_at: Option<UnixMs>,
    /// Times the turn was continued since it last got anywhere.
    resumes: u32,
    /// Tool calls of the last answer that are not done, in the model's order.
    calls: Vec<OpenCall>,
    /// What an agent is at in the model call that is under way.
    acts: Vec<OpenAct>,
    /// What that agent is to be told about its acts, in order.
    verdicts: Vec<Verdict>,
    /// Whether an act of that call may have happened: then the call is not made again.
    acted: bool,
    /// Effects that were started, of calls that are done, in the order in which these came to their end.
    effects: Vec<Effect>,
    /// What the model is to see at the next step.
    steers: VecDeque<Queued>,
    /// The compaction that the due model call is for.
    compacting: Option<Compaction>,
    /// Whether one was completed in this turn.
    compacted: bool,
    /// [`ThreadState::context_seq`] when the turn began.
    context_seq: Seq,
    /// What the model call that is under way has taken at least, if it is held to a budget.
    reserved: Option<Reserved>,
    /// What its model calls have spent.
    spent: Amount,
    /// The limits of its budget of which somebody was warned.
    warned: Vec<(Unit, u64)>,
    /// Since when it waits for a person.
    waiting_since: Option<UnixMs>,
    /// How long it waited before.
    waited_ms: u64,
}

/// An item of the open turn; `settled` is the seq of its `item.completed`.
#[derive(Debug, Clone, PartialEq)]
struct OpenItem {
    item: Item,
    settled: Option<Seq>,
}

/// A tool call that is not done.
#[derive(Debug, Clone, PartialEq)]
enum OpenCall {
    Approval(Box<Approval>),
    Question(Question),
    Effect {
        effect: Effect,
        /// The tool is to be asked what became of it before anything else.
        reconcile: bool,
    },
}

/// A call that an agent makes itself and that is not done.
#[derive(Debug, Clone, PartialEq)]
struct OpenAct {
    item: ItemId,
    /// The agent's name for it.
    call_id: String,
    /// Who is asked about it, or what has been started; nothing yet of one that was only announced.
    call: Option<OpenCall>,
}

/// A turn that just ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    pub turn: Turn,
    pub started_seq: Seq,
    /// The seqs of its items' final events, in item order.
    pub items: Vec<Seq>,
    /// Those items.
    pub said: Vec<Item>,
    /// Where the conversation before it begins.
    pub context_seq: Seq,
}

/// What a state demands of its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owed {
    /// Run this model call of the open turn; any other must not run.
    pub call: Option<(TurnId, u32)>,
    /// Tell the engine of this call, each once, in order.
    pub verdicts: Vec<Verdict>,
    /// Send [`crate::command::Command::Begin`]: tools are ready to be started.
    pub begin: bool,
    /// Run these tools; any other must not run.
    pub tools: Vec<Due>,
    /// Send a tick then, even if the thread must be loaded for it.
    pub wake_at: Option<UnixMs>,
}

/// One attempt of one tool call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub operation: OperationId,
    pub attempt: u32,
    /// Ask the tool what became of it instead of running it.
    pub reconcile: bool,
}

/// The state of a thread without an open turn, as it is stored. Prompts that wait are named by the event that holds
/// them, the last turn by its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    view: Thread,
    inbox: Vec<(InputId, Seq)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<LastRef>,
    #[serde(default, skip_serializing_if = "is_zero")]
    context_seq: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    context_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grants: Vec<Permit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    checkpoints: Vec<Checkpoint>,
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    spent: Amount,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warned: Vec<(Unit, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LastRef {
    started_seq: Seq,
    context_seq: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compaction: Option<Seq>,
}

fn is_zero(seq: &Seq) -> bool {
    *seq == 0
}

impl Snapshot {
    /// The events that [`ThreadState::restore`] needs beside the snapshot, in this order.
    pub fn needs(&self) -> impl Iterator<Item = Seq> {
        self.inbox.iter().map(|(_, seq)| *seq)
    }

    /// The settled turns that it needs, by their `started_seq`, in this order.
    pub fn needs_turns(&self) -> impl Iterator<Item = Seq> {
        self.last.into_iter().flat_map(|last| [Some(last.started_seq), last.compaction]).flatten()
    }
}

impl ThreadState {
    /// The thread as callers see it.
    pub const fn view(&self) -> &Thread {
        &self.view
    }

    /// The newest event.
    pub const fn seq(&self) -> Seq {
        self.view.seq
    }

    /// The open turn.
    pub fn open(&self) -> Option<&OpenTurn> {
        self.open.as_deref()
    }

    /// The last turn of the conversation, unless one is open or it was taken out.
    pub fn last(&self) -> Option<&Last> {
        self.last.as_deref()
    }

    /// The `started_seq` of the turn from which on a model sees the conversation; 0 for all of it.
    pub const fn context_seq(&self) -> Seq {
        self.context_seq
    }

    /// Prompts that wait, first to run first.
    pub fn inbox(&self) -> impl Iterator<Item = &Admission> {
        self.inbox.iter().map(|queued| &queued.admission)
    }

    /// Named places in the log, oldest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.iter()
    }

    /// Whether somebody will end each of its open items: what streams, or whatever is at a call. It is not so in the middle
    /// of a step, where nothing asks.
    pub(crate) fn is_whole(&self) -> bool {
        let Some(open) = &self.open else { return true };
        let text = open.open_text().map(|item| item.id);
        let called = open.every_call().map(OpenCall::item).chain(open.acts.iter().map(|act| act.item));
        let ended: Vec<_> = called.chain(text).collect();
        open.items.iter().all(|open| open.settled.is_some() || ended.contains(&open.item.id))
    }

    /// What must happen while this state lasts.
    pub fn owed(&self) -> Owed {
        let Some(open) = &self.open else { return Owed::default() };
        let mut owed = Owed { wake_at: self.wake_at(), begin: self.begins(), ..Owed::default() };
        if open.calls.is_empty() && open.retry_at.is_none() {
            owed.call = Some((open.turn.id, open.call));
            owed.verdicts.clone_from(&open.verdicts);
        }
        for (effect, reconcile) in open.due() {
            if effect.status == EffectStatus::Started {
                owed.tools.push(Due { operation: effect.operation_id, attempt: effect.attempt, reconcile });
            }
        }
        owed
    }

    /// [`Owed::wake_at`].
    pub fn wake_at(&self) -> Option<UnixMs> {
        self.open().and_then(OpenTurn::wake_at)
    }

    /// [`Owed::begin`].
    pub fn begins(&self) -> bool {
        let mut due = self.open().into_iter().flat_map(OpenTurn::due);
        due.any(|(effect, _)| effect.status != EffectStatus::Started)
    }

    /// Since when the thread has had work that must go on by itself.
    pub fn owes_since(&self) -> Option<UnixMs> {
        let Some(open) = &self.open else {
            let goes_on = !self.inbox.is_empty() && !self.view.queue_paused && !self.view.archived;
            return goes_on.then_some(self.view.updated_at);
        };
        // What waits for a person need not be loaded for it, unless a restart is to end it.
        let owes = !open.waits() || self.view.on_restart == OnRestart::Interrupt;
        owes.then_some(open.turn.created_at)
    }

    /// When the open turn has taken too long. Time in which it waits for a person does not count.
    pub fn deadline(&self, limits: &Limits) -> Option<UnixMs> {
        self.open.as_ref().filter(|open| !open.awaits()).map(|open| open.deadline(limits))
    }

    /// What the tool is told that is due.
    pub fn invocation(&self, key: ThreadKey, due: Due) -> Option<(Invocation, EffectClass)> {
        let open = self.open.as_ref()?;
        let (effect, _) = open.due().find(|(effect, _)| effect.operation_id == due.operation)?;
        let item = open.items().find(|item| item.id == effect.item_id)?;
        let invocation = Invocation {
            key,
            turn: open.turn.id,
            operation: due.operation,
            attempt: due.attempt,
            tool: effect.tool.clone(),
            arguments: item.metadata.get("arguments").cloned().unwrap_or_default(),
            workspace: self.view.workspace.clone(),
            policy: self.view.policy.clone(),
            trusted: open.turn.settings.trust_mode,
            // The thread may work for another one by now; the effect is in this one's ledger.
            run: effect.run_id,
        };
        Some((invocation, effect.class))
    }

    /// What the model calls the call that is due.
    pub fn call_id(&self, due: Due) -> Option<&str> {
        let mut all = self.open.as_ref()?.due();
        all.find(|(effect, _)| effect.operation_id == due.operation).map(|(effect, _)| effect.call_id.as_str())
    }

    /// About how many bytes of memory the state holds.
    pub fn held_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let view = text(&self.view.title) + text(&self.view.system_prompt) + text(&self.view.workspace);
        let inbox: usize = self.inbox.iter().map(|queued| queued.admission.prompt.len() + 512).sum();
        let lists = 256 * (self.grants.len() + self.checkpoints.len());
        2048 + view + inbox + lists + self.open().map_or(0, OpenTurn::held_bytes)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            view: self.view.clone(),
            inbox: self.inbox.iter().map(|queued| (queued.admission.id, queued.seq)).collect(),
            last: self.last.as_ref().map(|last| LastRef {
                started_seq: last.started_seq,
                context_seq: last.context_seq,
                compaction: last.compaction.as_ref().map(|(_, seq)| *seq),
            }),
            context_seq: self.context_seq,
            context_tokens: self.context_tokens,
            grants: self.grants.clone(),
            checkpoints: self.checkpoints.clone(),
            spent: self.spent,
            warned: self.warned.clone(),
        }
    }

    fn id(&self) -> ThreadId {
        self.view.id
    }
}

impl OpenTurn {
    /// The turn so far.
    pub const fn turn(&self) -> &Turn {
        &self.turn
    }

    /// The seq of its `turn.started`.
    pub const fn started_seq(&self) -> Seq {
        self.started_seq
    }

    /// Its items so far.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().map(|open| &open.item)
    }

    /// What the due model call is for.
    pub const fn purpose(&self) -> Purpose {
        match self.compacting {
            Some(_) => Purpose::Compaction,
            None => Purpose::Answer,
        }
    }

    /// The compaction that is under way.
    pub const fn compacting(&self) -> Option<&Compaction> {
        self.compacting.as_ref()
    }

    /// Approvals that wait for a decision.
    pub fn approvals(&self) -> impl Iterator<Item = &Approval> {
        self.every_call().filter_map(|call| match call {
            OpenCall::Approval(approval) if approval.status == ApprovalStatus::Pending => Some(&**approval),
            _ => None,
        })
    }

    /// Calls that are not done: those of the last answer, and those that an agent makes itself.
    fn every_call(&self) -> impl Iterator<Item = &OpenCall> {
        self.calls.iter().chain(self.acts.iter().filter_map(|act| act.call.as_ref()))
    }

    fn every_call_mut(&mut self) -> impl Iterator<Item = &mut OpenCall> {
        self.calls.iter_mut().chain(self.acts.iter_mut().filter_map(|act| act.call.as_mut()))
    }

    /// The effect of an act that is not done.
    fn act_effect(&self, item: ItemId) -> Option<&Effect> {
        let act = self.acts.iter().find(|act| act.item == item)?;
        match &act.call {
            Some(OpenCall::Effect { effect, .. }) => Some(effect),
            _ => None,
        }
    }

    fn approval(&self, id: ApprovalId) -> Option<&Approval> {
        self.approvals().find(|approval| approval.id == id)
    }

    fn questions(&self) -> impl Iterator<Item = &Question> {
        self.calls.iter().filter_map(|call| match call {
            OpenCall::Question(question) => Some(question),
            _ => None,
        })
    }

    fn question(&self, id: QuestionId) -> Option<&Question> {
        self.questions().find(|question| question.id == id)
    }

    /// Effects of calls of the last answer that are not done.
    fn open_effects(&self) -> impl Iterator<Item = &Effect> {
        self.calls.iter().filter_map(|call| match call {
            OpenCall::Effect { effect, .. } => Some(effect),
            _ => None,
        })
    }

    fn open_effect(&self, operation: OperationId) -> Option<&Effect> {
        self.open_effects().find(|effect| effect.operation_id == operation)
    }

    /// The effects that may run now, and whether the tool is to be asked first: calls run one after the other, but
    /// those that only read, together.
    fn due(&self) -> impl Iterator<Item = (&Effect, bool)> {
        let mut alone = false;
        self.calls.iter().enumerate().map_while(move |(at, call)| match call {
            OpenCall::Effect { effect, reconcile }
                if matches!(effect.status, EffectStatus::Intended | EffectStatus::Started) && !alone =>
            {
                let reads = effect.class == EffectClass::Read;
                alone = !reads;
                (reads || at == 0).then_some((effect, *reconcile))
            }
            _ => None,
        })
    }

    /// Whether nothing can happen before a person has spoken.
    fn waits(&self) -> bool {
        !self.calls.is_empty() && self.due().next().is_none()
    }

    /// Whether a person is waited for, by the turn or by an agent that goes on meanwhile.
    fn awaits(&self) -> bool {
        self.waits() || self.acts.iter().any(|act| matches!(act.call, Some(OpenCall::Approval(_))))
    }

    fn wake_at(&self) -> Option<UnixMs> {
        let approvals = self.approvals().map(|approval| approval.expires_at);
        let questions = self.questions().map(|question| question.expires_at);
        self.retry_at.into_iter().chain(approvals).chain(questions).min()
    }

    fn deadline(&self, limits: &Limits) -> UnixMs {
        UnixMs(self.turn.created_at.0.saturating_add(limits.turn_ms).saturating_add(self.waited_ms))
    }

    /// The item that streamed text may still be added to. At most one is open at a time.
    fn open_text(&self) -> Option<&Item> {
        let open = self.items.iter().rev().find(|open| open.settled.is_none() && !open.item.kind.is_tool());
        open.map(|open| &open.item)
    }

    fn item(&self, id: ItemId) -> Option<&Item> {
        self.items().find(|item| item.id == id)
    }

    fn held_bytes(&self) -> usize {
        let items: usize = self.items().map(|item| item.detail.len() + 512).sum();
        let steers: usize = self.steers.iter().map(|queued| queued.admission.prompt.len() + 512).sum();
        items + steers + 1024 * (self.calls.len() + self.acts.len() + self.effects.len())
    }
}
