//! The reference: what becomes of a thread, said as plainly as possible and without a look at the machine.
//!
//! There are no events here and no ids: things are named by the order in which they came to be, and every rule changes
//! the state in place.

use std::{collections::BTreeMap, rc::Rc};

use raddle_domain::{
    command::Limits,
    record::{
        AdmissionStatus, ApprovalStatus, Decision, Delivery, EffectClass, EffectOutcome, EffectStatus, QuestionStatus,
        Resolution, TurnStatus,
    },
};

/// Small, so that they are met.
pub const LIMITS: Limits = Limits {
    inbox_per_thread: 4,
    prompt_bytes: 1_000,
    item_bytes: 1_000,
    field_bytes: 1_000,
    system_prompt_bytes: 1_000,
    metadata_bytes: 1_000,
    model_calls_per_turn: 6,
    model_attempts: 3,
    retry_base_ms: 500,
    retry_cap_ms: 60_000,
    turn_ms: 60_000,
    resumes_without_progress: 3,
    approval_ms: 20_000,
    question_ms: 10_000,
    compact_at_tokens: 0,
    tool_attempts: 2,
    checkpoints: 2,
    reserve_output_tokens: 8,
};

/// What every tool says before it ends, in two pieces.
pub const SAID: &str = "on its way";
pub const CUT_SHORT: &str = "the turn ended before this call was done";

/// What may be asked, and what engines, tools, clocks and accidents do.
#[derive(Debug, Clone)]
pub enum Op {
    Start {
        delivery: Delivery,
        expects: Expects,
        unless_idle: bool,
        queue_if_late: bool,
    },
    Edit,
    Compact {
        queue: bool,
    },
    Steer {
        open: bool,
        queue_if_late: bool,
    },
    Interrupt {
        open: bool,
        pause: bool,
    },
    Patch {
        archived: Option<bool>,
        paused: Option<bool>,
        auto: Option<bool>,
    },
    /// `which` counts back from the newest.
    EditPrompt {
        which: usize,
        text: bool,
        to: Option<u32>,
    },
    Withdraw {
        which: usize,
    },
    Decide {
        which: usize,
        decision: Decision,
    },
    Answer {
        which: usize,
    },
    Resolve {
        which: usize,
        resolution: Resolution,
    },
    Save {
        name: u8,
    },
    Forget {
        name: u8,
    },
    Say {
        text: &'static str,
    },
    Reply {
        text: &'static str,
        tools: Vec<Tool>,
        usage: bool,
    },
    Fail {
        transient: bool,
    },
    /// An engine that was given up goes on talking.
    LateSay,
    Begin,
    Tool {
        which: usize,
        end: End,
    },
    /// A tool that was given up comes to its end.
    LateTool {
        which: usize,
    },
    /// The alarm may come late.
    Pass {
        ms: u64,
        rings: bool,
    },
    /// The process is gone; the log is read from its first event.
    Crash,
    /// The thread is unloaded and loaded from its snapshot.
    Evict,
    Fork {
        at: Place,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    Anything,
    TheOpenTurn,
    AnotherTurn,
}

#[derive(Debug, Clone, Copy)]
pub enum Place {
    Settled,
    Before { which: usize },
    Checkpoint { name: u8 },
}

#[derive(Debug, Clone, Copy)]
pub enum Tool {
    Unknown,
    Question,
    /// `arguments`: one of two.
    Run {
        class: EffectClass,
        gate: Gate,
        arguments: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    Ask,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    Failed,
    NotDone,
    Unknown,
}

/// A line of a conversation, as a model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    User(String),
    Assistant(String),
    Tool(String),
    Summary(String),
}

#[derive(Debug, Clone)]
pub struct Waiting {
    pub input: usize,
    pub compaction: bool,
    pub prompt: String,
    pub queue_if_late: bool,
}

/// What an effect came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    pub class: EffectClass,
    pub status: EffectStatus,
    pub starts: u32,
    pub outcome: Option<EffectOutcome>,
    pub closed: bool,
}

/// What is in the log for good.
#[derive(Debug, Clone, Default)]
pub struct Book {
    talk: Vec<(usize, Vec<Line>)>,
    pub ended: Vec<(usize, TurnStatus)>,
    pub undone: Vec<usize>,
    /// The last prompt's turn, and the compaction behind it.
    pub last: Option<(usize, Option<usize>)>,
    pub approvals: BTreeMap<usize, ApprovalStatus>,
    pub questions: BTreeMap<usize, QuestionStatus>,
    pub effects: BTreeMap<usize, Ledger>,
}

#[derive(Debug, Clone)]
pub enum Stage {
    Approval { id: usize, expires: u64, arguments: usize },
    Question { id: usize, expires: u64 },
    Effect { asked: bool },
}

#[derive(Debug, Clone)]
pub struct Call {
    pub stage: Stage,
    /// Of what runs, or may.
    pub operation: Option<usize>,
    class: EffectClass,
    line: usize,
}

#[derive(Debug, Clone)]
pub struct Open {
    pub turn: usize,
    compaction: bool,
    auto: bool,
    created_at: u64,
    lines: Vec<Line>,
    partial: String,
    pub calls: Vec<Call>,
    pub steers: Vec<Waiting>,
    pub compacting: bool,
    attempt: u32,
    pub retry_at: Option<u64>,
    resumes: u32,
    model_calls: u32,
    waiting_since: Option<u64>,
    waited: u64,
}

/// A thread, and what its caller was told last.
#[derive(Debug, Clone)]
pub struct Model {
    pub compacts: bool,
    pub interrupts: bool,
    pub now: u64,
    pub archived: bool,
    pub paused: bool,
    auto: bool,
    pub queue: Vec<Waiting>,
    pub open: Option<Open>,
    pub book: Book,
    /// Whether the last answer said how long the conversation is.
    long: bool,
    granted: [bool; 2],
    pub checkpoints: Vec<(u8, Rc<Book>, usize)>,
    /// What was in the log when each turn began.
    past: Vec<(usize, Rc<Book>)>,
    pub inputs: BTreeMap<usize, AdmissionStatus>,
    turns: usize,
    approvals: usize,
    questions: usize,
    operations: usize,
    prompts: usize,
    pub told: &'static str,
}

impl Model {
    pub fn new(compacts: bool, interrupts: bool) -> Self {
        Self {
            compacts,
            interrupts,
            now: 1_000,
            archived: false,
            paused: false,
            auto: false,
            queue: Vec::new(),
            open: None,
            book: Book::default(),
            long: false,
            granted: [false; 2],
            checkpoints: Vec::new(),
            past: Vec::new(),
            inputs: BTreeMap::new(),
            turns: 0,
            approvals: 0,
            questions: 0,
            operations: 0,
            prompts: 0,
            told: "",
        }
    }

    pub fn play(&mut self, op: &Op) {
        self.told = match op {
            Op::Start { delivery, expects, unless_idle, queue_if_late } => {
                self.start(*delivery, *expects, *unless_idle, *queue_if_late)
            }
            Op::Edit => self.edit(),
            Op::Compact { queue } => self.compact(*queue),
            Op::Steer { open, queue_if_late } => {
                let prompt = self.prompt();
                match &self.open {
                    Some(_) if *open => self.steer(prompt, *queue_if_late),
                    _ => "turn-not-active",
                }
            }
            Op::Interrupt { open, pause } => {
                if *open && self.open.is_some() {
                    self.paused |= pause;
                    self.end(TurnStatus::Interrupted);
                    self.promote();
                    "interrupted"
                } else {
                    "turn-not-active"
                }
            }
            Op::Patch { archived, paused, auto } => {
                if (archived, paused, auto) == (&None, &None, &None) {
                    "invalid"
                } else if *archived == Some(true) && self.open.is_some() {
                    "turn-open"
                } else {
                    self.archived = archived.unwrap_or(self.archived);
                    self.paused = paused.unwrap_or(self.paused);
                    self.auto = auto.unwrap_or(self.auto);
                    self.promote();
                    "changed"
                }
            }
            Op::EditPrompt { which, text, to } => self.edit_prompt(self.newest(self.inputs.len(), *which), *text, *to),
            Op::Withdraw { which } => self.withdraw(self.newest(self.inputs.len(), *which)),
            Op::Decide { which, decision } => self.decide(self.newest(self.approvals, *which), *decision),
            Op::Answer { which } => self.answer(self.newest(self.questions, *which)),
            Op::Resolve { which, resolution } => self.resolve(self.newest(self.operations, *which), *resolution),
            Op::Save { name } => self.save(*name),
            Op::Forget { name } => {
                let known = self.checkpoints.len();
                self.checkpoints.retain(|(other, ..)| other != name);
                if self.checkpoints.len() < known { "noted" } else { "no-checkpoint" }
            }
            Op::Say { text } => {
                if self.calls_model()
                    && let Some(open) = &mut self.open
                {
                    open.partial.push_str(text);
                }
                "noted"
            }
            Op::Reply { text, tools, usage } => {
                if self.calls_model() {
                    self.open.as_mut().unwrap().partial.push_str(text);
                    self.reply(tools, *usage);
                }
                "noted"
            }
            Op::Fail { transient } => {
                if self.calls_model() {
                    self.fail(*transient);
                }
                "noted"
            }
            Op::Begin => {
                for at in self.runnable() {
                    if self.status(at) == EffectStatus::Intended {
                        self.run(at);
                    }
                }
                "noted"
            }
            Op::Tool { which, end } => {
                let due: Vec<usize> = self.due();
                if let Some(at) = due.get(*which).or(due.first()) {
                    self.tool(*at, *end);
                }
                "noted"
            }
            Op::LateSay | Op::LateTool { .. } => "noted",
            Op::Pass { ms, rings } => {
                self.now += ms;
                if *rings {
                    self.tick();
                }
                "noted"
            }
            Op::Crash => {
                self.recover(true);
                "noted"
            }
            Op::Evict => {
                self.recover(false);
                "noted"
            }
            Op::Fork { at } => self.fork(*at),
        };
        let waits = self.waits();
        let now = self.now;
        if let Some(open) = &mut self.open {
            match open.waiting_since {
                None if waits => open.waiting_since = Some(now),
                Some(since) if !waits => {
                    open.waited += now - since;
                    open.waiting_since = None;
                }
                _ => {}
            }
        }
    }

    /// The thing that is `which` before the newest of `count`; one that never was, if there are not so many.
    pub fn newest(&self, count: usize, which: usize) -> usize {
        count.checked_sub(which + 1).unwrap_or(usize::MAX)
    }

    /// What can be decided, answered, resolved, or changed in the inbox: each by how far it is from the newest.
    pub fn waiting_for(&self) -> [Vec<usize>; 4] {
        let calls = || self.open.iter().flat_map(|open| &open.calls);
        let approvals = calls().filter_map(|call| match call.stage {
            Stage::Approval { id, .. } => Some(self.approvals - 1 - id),
            _ => None,
        });
        let questions = calls().filter_map(|call| match call.stage {
            Stage::Question { id, .. } => Some(self.questions - 1 - id),
            _ => None,
        });
        let is_uncertain =
            |id: &usize| self.book.effects.get(id).is_some_and(|effect| effect.status == EffectStatus::Uncertain);
        let uncertain = calls().filter_map(|call| call.operation).filter(is_uncertain);
        let inputs = self.queue.iter().chain(self.open.iter().flat_map(|open| &open.steers));
        [
            approvals.collect(),
            questions.collect(),
            uncertain.map(|id| self.operations - 1 - id).collect(),
            inputs.map(|waiting| self.inputs.len() - 1 - waiting.input).collect(),
        ]
    }

    pub fn counts(&self) -> [usize; 5] {
        [self.turns, self.inputs.len(), self.approvals, self.questions, self.operations]
    }

    fn prompt(&mut self) -> String {
        self.prompts += 1;
        format!("p{}", self.prompts)
    }

    pub fn prompts(&self) -> usize {
        self.prompts
    }

    // ---- what is to be done ------------------------------------------------------------------------

    /// Whether a model call is due.
    pub fn calls_model(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.calls.is_empty() && open.retry_at.is_none())
    }

    fn status(&self, at: usize) -> EffectStatus {
        let operation = self.open.as_ref().and_then(|open| open.calls[at].operation);
        self.book.effects[&operation.unwrap()].status
    }

    /// Calls that run now or may: all reads at the beginning, or the first call.
    pub fn runnable(&self) -> Vec<usize> {
        let Some(open) = &self.open else { return Vec::new() };
        let runs = |at: &usize| {
            matches!(open.calls[*at].stage, Stage::Effect { .. })
                && matches!(self.status(*at), EffectStatus::Intended | EffectStatus::Started)
        };
        let reads = |at: &usize| runs(at) && open.calls[*at].class == EffectClass::Read;
        let together: Vec<usize> = (0..open.calls.len()).take_while(reads).collect();
        if together.is_empty() { (0..open.calls.len().min(1)).filter(runs).collect() } else { together }
    }

    /// Calls that run now.
    pub fn due(&self) -> Vec<usize> {
        self.runnable().into_iter().filter(|at| self.status(*at) == EffectStatus::Started).collect()
    }

    pub fn waits(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.calls.is_empty()) && self.runnable().is_empty()
    }

    pub fn deadline(&self) -> Option<u64> {
        let open = self.open.as_ref().filter(|_| !self.waits())?;
        Some(open.created_at + LIMITS.turn_ms + open.waited)
    }

    pub fn wake_at(&self) -> Option<u64> {
        let open = self.open.as_ref()?;
        let expiries = open.calls.iter().filter_map(|call| match call.stage {
            Stage::Approval { expires, .. } | Stage::Question { expires, .. } => Some(expires),
            Stage::Effect { .. } => None,
        });
        expiries.chain(open.retry_at).min()
    }

    /// What a model would see now.
    pub fn visible(&self) -> Vec<Line> {
        let talk = self.book.talk.iter().filter(|(turn, _)| !self.book.undone.contains(turn));
        let mut lines: Vec<Line> = talk.flat_map(|(_, lines)| lines.clone()).collect();
        if let Some(open) = &self.open {
            lines.extend(open.lines.clone());
            if !open.partial.is_empty() && !open.compacting {
                lines.push(Line::Assistant(open.partial.clone()));
            }
        }
        let from = lines.iter().rposition(|line| matches!(line, Line::Summary(_))).unwrap_or(0);
        lines.split_off(from)
    }

    // ---- callers -----------------------------------------------------------------------------------

    fn start(&mut self, delivery: Delivery, expects: Expects, unless_idle: bool, queue_if_late: bool) -> &'static str {
        let prompt = self.prompt();
        if self.archived {
            return "archived";
        }
        if expects == Expects::AnotherTurn || (expects == Expects::TheOpenTurn && self.open.is_none()) {
            return "turn-not-active";
        }
        if self.open.is_none() {
            if delivery == Delivery::Steer && unless_idle {
                return "nothing-to-steer";
            }
            self.begin(Some(prompt), false);
            return "started";
        }
        match delivery {
            Delivery::Reject => "turn-open",
            Delivery::Queue => self.enqueue(false, prompt),
            Delivery::Steer => self.steer(prompt, queue_if_late),
            Delivery::Interrupt => {
                self.end(TurnStatus::Interrupted);
                self.begin(Some(prompt), false);
                "started"
            }
            Delivery::Rollback => {
                let compaction = self.open.as_ref().is_some_and(|open| open.compaction);
                self.end(TurnStatus::Interrupted);
                if !compaction {
                    self.undo();
                }
                self.begin(Some(prompt), false);
                "started"
            }
        }
    }

    fn edit(&mut self) -> &'static str {
        let prompt = self.prompt();
        if self.archived {
            "archived"
        } else if self.open.is_some() {
            "turn-open"
        } else if self.book.last.is_none() {
            "nothing-to-edit"
        } else {
            self.undo();
            self.begin(Some(prompt), false);
            "started"
        }
    }

    fn undo(&mut self) {
        if let Some((turn, compaction)) = self.book.last.take() {
            self.book.undone.extend(compaction);
            self.book.undone.push(turn);
            self.long = false;
        }
    }

    fn nothing_to_compact(&self) -> bool {
        self.book.last.is_none_or(|(_, compaction)| compaction.is_some())
    }

    fn compact(&mut self, queue: bool) -> &'static str {
        if self.archived {
            "archived"
        } else if self.open.is_some() {
            if queue { self.enqueue(true, String::new()) } else { "turn-open" }
        } else if self.nothing_to_compact() {
            "nothing-to-compact"
        } else {
            self.begin(None, false);
            "started"
        }
    }

    fn has_room(&self) -> bool {
        let steers = self.open.as_ref().map_or(0, |open| open.steers.len());
        self.queue.len() + steers < LIMITS.inbox_per_thread as usize
    }

    fn admit(&mut self, compaction: bool, prompt: String, queue_if_late: bool) -> Waiting {
        let input = self.inputs.len();
        self.inputs.insert(input, AdmissionStatus::Pending);
        Waiting { input, compaction, prompt, queue_if_late }
    }

    fn enqueue(&mut self, compaction: bool, prompt: String) -> &'static str {
        if !self.has_room() {
            return "inbox-full";
        }
        let waiting = self.admit(compaction, prompt, false);
        self.queue.push(waiting);
        "queued"
    }

    fn steer(&mut self, prompt: String, queue_if_late: bool) -> &'static str {
        if !self.has_room() {
            return "inbox-full";
        }
        let waiting = self.admit(false, prompt, queue_if_late);
        self.open.as_mut().unwrap().steers.push(waiting);
        "steered"
    }

    fn edit_prompt(&mut self, input: usize, text: bool, to: Option<u32>) -> &'static str {
        let prompt = self.prompt();
        let steer = self.open.iter_mut().flat_map(|open| &mut open.steers).find(|waiting| waiting.input == input);
        let queued = self.queue.iter().position(|waiting| waiting.input == input);
        match (steer, queued) {
            (None, None) => "not-queued",
            _ if !text && to.is_none() => "invalid",
            (Some(_), _) if to.is_some() => "invalid",
            (Some(steer), _) => {
                steer.prompt = prompt;
                "edited"
            }
            (None, Some(at)) => {
                let mut waiting = self.queue.remove(at);
                if text {
                    waiting.prompt = prompt;
                }
                self.queue.insert(to.map_or(at, |to| (to as usize).min(self.queue.len())), waiting);
                "edited"
            }
        }
    }

    fn withdraw(&mut self, input: usize) -> &'static str {
        let others = |waiting: &Waiting| waiting.input != input;
        let held = self.queue.len() + self.open.as_ref().map_or(0, |open| open.steers.len());
        self.queue.retain(others);
        self.open.iter_mut().for_each(|open| open.steers.retain(others));
        let holds = self.queue.len() + self.open.as_ref().map_or(0, |open| open.steers.len());
        if holds == held {
            return "not-queued";
        }
        self.inputs.insert(input, AdmissionStatus::Withdrawn);
        "withdrawn"
    }

    fn decide(&mut self, approval: usize, decision: Decision) -> &'static str {
        let calls = self.open.iter().flat_map(|open| open.calls.iter().enumerate());
        let mut pending = calls.filter_map(|(at, call)| match call.stage {
            Stage::Approval { id, expires, arguments } if id == approval => Some((at, expires, arguments)),
            _ => None,
        });
        let Some((at, expires, arguments)) = pending.next() else { return "not-pending" };
        if expires <= self.now {
            return "expired";
        }
        let status = match decision {
            Decision::Denied => ApprovalStatus::Denied,
            Decision::Abort => ApprovalStatus::Aborted,
            Decision::Approved | Decision::ApprovedForSession | Decision::ApprovedAlways => ApprovalStatus::Approved,
        };
        self.book.approvals.insert(approval, status);
        match decision {
            Decision::Denied => {
                self.close_call(at, "denied");
                self.go_on();
            }
            Decision::Abort => {
                self.end(TurnStatus::Canceled);
                self.promote();
            }
            lasting => {
                self.granted[arguments] |= lasting == Decision::ApprovedForSession;
                self.intend(at);
            }
        }
        "decided"
    }

    fn answer(&mut self, question: usize) -> &'static str {
        let calls = self.open.iter().flat_map(|open| open.calls.iter().enumerate());
        let mut pending = calls.filter_map(|(at, call)| match call.stage {
            Stage::Question { id, expires } if id == question => Some((at, expires)),
            _ => None,
        });
        match pending.next() {
            None => "not-asked",
            Some((_, expires)) if expires <= self.now => "expired",
            Some((at, _)) => {
                self.book.questions.insert(question, QuestionStatus::Answered);
                self.close_call(at, "answer");
                self.go_on();
                "answered"
            }
        }
    }

    fn resolve(&mut self, operation: usize, resolution: Resolution) -> &'static str {
        let calls = self.open.iter().flat_map(|open| open.calls.iter().enumerate());
        let mut named = calls.filter(|(_, call)| call.operation == Some(operation)).map(|(at, _)| at);
        let uncertain = named.next().filter(|_| {
            self.book.effects.get(&operation).is_some_and(|effect| effect.status == EffectStatus::Uncertain)
        });
        let Some(at) = uncertain else { return "not-uncertain" };
        match resolution {
            Resolution::Retry => self.run(at),
            Resolution::Settle => {
                self.settle(at, EffectOutcome::Succeeded, "settled");
                self.go_on();
            }
            Resolution::Abort => {
                self.end(TurnStatus::Canceled);
                self.promote();
            }
        }
        "resolved"
    }

    fn save(&mut self, name: u8) -> &'static str {
        if self.checkpoints.iter().filter(|(other, ..)| *other != name).count() >= LIMITS.checkpoints as usize {
            return "invalid";
        }
        self.checkpoints.retain(|(other, ..)| *other != name);
        let (book, past) = self.settled();
        self.checkpoints.push((name, book, past));
        "saved"
    }

    /// What is in the log without the open turn, and how many turns are.
    fn settled(&self) -> (Rc<Book>, usize) {
        match (&self.open, self.past.last()) {
            (Some(_), Some((_, book))) => (book.clone(), self.past.len() - 1),
            _ => (Rc::new(self.book.clone()), self.past.len()),
        }
    }

    fn fork(&mut self, at: Place) -> &'static str {
        let place = match at {
            Place::Settled => Some(self.settled()),
            Place::Before { which } => {
                let at = self.newest(self.past.len(), which);
                self.past.get(at).map(|(_, book)| (book.clone(), at))
            }
            Place::Checkpoint { name } => {
                let known = self.checkpoints.iter().find(|(other, ..)| *other == name);
                known.map(|(_, book, past)| (book.clone(), *past))
            }
        };
        let Some((book, past)) = place else { return "no-place" };
        self.past.truncate(past);
        self.book = (*book).clone();
        self.open = None;
        self.queue.clear();
        (self.archived, self.paused, self.long, self.granted) = (false, false, false, [false; 2]);
        self.checkpoints.clear();
        "forked"
    }

    // ---- turns -------------------------------------------------------------------------------------

    /// Opens the turn of a prompt, or of a compaction.
    fn begin(&mut self, prompt: Option<String>, idle: bool) {
        let turn = self.turns;
        self.turns += 1;
        self.past.push((turn, Rc::new(self.book.clone())));
        self.open = Some(Open {
            turn,
            compaction: prompt.is_none(),
            auto: self.auto,
            created_at: self.now,
            compacting: prompt.is_none() || (self.compacts && self.long),
            lines: prompt.map(Line::User).into_iter().collect(),
            partial: String::new(),
            calls: Vec::new(),
            steers: Vec::new(),
            attempt: 1,
            retry_at: None,
            resumes: 0,
            model_calls: 0,
            waiting_since: None,
            waited: 0,
        });
        if idle {
            self.end(TurnStatus::Failed);
        }
    }

    fn promote(&mut self) {
        while self.open.is_none() && !self.paused && !self.archived && !self.queue.is_empty() {
            let next = self.queue.remove(0);
            self.inputs.insert(next.input, AdmissionStatus::Promoted);
            let idle = next.compaction && self.nothing_to_compact();
            self.begin(Some(next.prompt).filter(|_| !next.compaction), idle);
        }
    }

    /// Ends the open turn with everything in it.
    fn end(&mut self, status: TurnStatus) {
        for at in (0..self.open.as_ref().map_or(0, |open| open.calls.len())).rev() {
            let call = self.open.as_ref().unwrap().calls[at].clone();
            match call.stage {
                Stage::Approval { id, expires, .. } => {
                    let late = expires <= self.now;
                    self.book.approvals.entry(id).and_modify(|status| {
                        if *status == ApprovalStatus::Pending {
                            *status = if late { ApprovalStatus::Expired } else { ApprovalStatus::Cancelled };
                        }
                    });
                }
                Stage::Question { id, expires } => {
                    let late = expires <= self.now;
                    let status = if late { QuestionStatus::Expired } else { QuestionStatus::Cancelled };
                    self.book.questions.insert(id, status);
                }
                Stage::Effect { .. } => {
                    let effect = self.book.effects.get_mut(&call.operation.unwrap()).unwrap();
                    if effect.status == EffectStatus::Intended || effect.class == EffectClass::Read {
                        (effect.status, effect.outcome) = (EffectStatus::Settled, Some(EffectOutcome::Canceled));
                    } else {
                        (effect.status, effect.closed) = (EffectStatus::Uncertain, true);
                    }
                }
            }
            let said = match self.line(at) {
                Line::Tool(said) if !said.is_empty() => format!("{said}\n"),
                _ => String::new(),
            };
            self.close_call(at, &format!("{said}{CUT_SHORT}"));
        }
        let Some(mut open) = self.open.take() else { return };
        if open.compacting {
            self.long = false;
        } else if !open.partial.is_empty() {
            open.lines.push(Line::Assistant(open.partial));
        }
        let mut late = Vec::new();
        for steer in open.steers {
            self.inputs.insert(steer.input, AdmissionStatus::NotDelivered);
            if steer.queue_if_late {
                self.inputs.insert(steer.input, AdmissionStatus::Pending);
                late.push(steer);
            }
        }
        self.queue.splice(0..0, late);
        self.book.ended.push((open.turn, status));
        if !open.compaction {
            self.book.last = Some((open.turn, None));
        } else if let (Some((_, compaction)), [Line::Summary(_)]) = (&mut self.book.last, &open.lines[..]) {
            *compaction = Some(open.turn);
        }
        self.book.talk.push((open.turn, open.lines));
    }

    /// Goes on to the next model call, if every call is done.
    fn go_on(&mut self) {
        let (compacts, long) = (self.compacts, self.long);
        let Some(open) = self.open.as_mut().filter(|open| open.calls.is_empty()) else { return };
        if open.model_calls >= LIMITS.model_calls_per_turn {
            self.end(TurnStatus::Failed);
            return self.promote();
        }
        for steer in std::mem::take(&mut open.steers) {
            self.inputs.insert(steer.input, AdmissionStatus::Promoted);
            open.lines.push(Line::User(steer.prompt));
        }
        open.compacting = compacts && long;
    }

    fn reply(&mut self, tools: &[Tool], usage: bool) {
        let open = self.open.as_mut().unwrap();
        let text = std::mem::take(&mut open.partial);
        (open.attempt, open.resumes) = (1, 0);
        open.model_calls += 1;
        if open.compacting {
            open.compacting = false;
            self.long = false;
            let compaction = open.compaction;
            let empty = text.trim().is_empty();
            if !empty {
                open.lines.retain(|line| matches!(line, Line::User(_)));
                open.lines.insert(0, Line::Summary(text));
            }
            if compaction {
                self.end(if empty { TurnStatus::Failed } else { TurnStatus::Completed });
                return self.promote();
            }
            return self.go_on();
        }
        self.long = usage;
        if !text.is_empty() || !tools.is_empty() {
            open.lines.push(Line::Assistant(text));
        }
        let over = open.steers.is_empty() || open.model_calls >= LIMITS.model_calls_per_turn;
        for tool in tools {
            self.request(*tool);
        }
        if tools.is_empty() && over {
            self.end(TurnStatus::Completed);
            self.promote();
        } else {
            self.go_on();
        }
    }

    fn request(&mut self, tool: Tool) {
        let now = self.now;
        let open = self.open.as_mut().unwrap();
        let line = open.lines.len();
        let class = match tool {
            Tool::Run { class, .. } => class,
            Tool::Unknown | Tool::Question => EffectClass::Once,
        };
        let mut call = Call { stage: Stage::Effect { asked: false }, operation: None, class, line };
        match tool {
            Tool::Unknown => return open.lines.push(Line::Tool("unknown tool: none".to_owned())),
            Tool::Question => {
                let id = self.questions;
                self.questions += 1;
                self.book.questions.insert(id, QuestionStatus::Pending);
                call.stage = Stage::Question { id, expires: now + LIMITS.question_ms };
            }
            Tool::Run { gate, arguments, .. } => {
                call.operation = Some(self.operations);
                self.operations += 1;
                let passes = match gate {
                    Gate::Open => true,
                    Gate::Ask => open.auto || self.granted[arguments],
                    Gate::Full => self.granted[arguments],
                };
                if !passes {
                    let id = self.approvals;
                    self.approvals += 1;
                    self.book.approvals.insert(id, ApprovalStatus::Pending);
                    call.stage = Stage::Approval { id, expires: now + LIMITS.approval_ms, arguments };
                }
            }
        }
        let intends = matches!(call.stage, Stage::Effect { .. });
        open.lines.push(Line::Tool(String::new()));
        open.calls.push(call);
        let at = open.calls.len() - 1;
        if intends {
            self.intend(at);
        }
    }

    fn fail(&mut self, transient: bool) {
        let now = self.now;
        let deadline = self.deadline();
        let open = self.open.as_mut().unwrap();
        let pause = LIMITS.retry_base_ms << (open.attempt - 1);
        if transient && open.attempt < LIMITS.model_attempts && Some(now + pause) < deadline {
            open.partial.clear();
            open.attempt += 1;
            open.retry_at = Some(now + pause);
        } else if open.compacting && !open.compaction {
            open.partial.clear();
            (open.attempt, open.resumes, open.compacting) = (1, 0, false);
            self.long = false;
            self.go_on();
        } else {
            self.end(TurnStatus::Failed);
            self.promote();
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.end(TurnStatus::Failed);
            return self.promote();
        }
        while let Some(open) = &self.open {
            let over = open.calls.iter().position(|call| match call.stage {
                Stage::Approval { expires, .. } | Stage::Question { expires, .. } => expires <= now,
                Stage::Effect { .. } => false,
            });
            let Some(at) = over else { break };
            match open.calls[at].stage {
                Stage::Approval { id, .. } => {
                    self.book.approvals.insert(id, ApprovalStatus::Expired);
                    self.close_call(at, "not approved: nobody decided in time");
                }
                Stage::Question { id, .. } => {
                    self.book.questions.insert(id, QuestionStatus::Expired);
                    self.close_call(at, "nobody answered in time");
                }
                Stage::Effect { .. } => {}
            }
            self.go_on();
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.retry_at.is_some_and(|at| at <= now)) {
            open.retry_at = None;
        }
    }

    fn recover(&mut self, restarted: bool) {
        let waits = self.waits();
        let Some(open) = &mut self.open else { return };
        if restarted && self.interrupts {
            self.end(TurnStatus::Interrupted);
            self.promote();
        } else if waits || open.retry_at.is_some() {
            // It only waits.
        } else if open.resumes >= LIMITS.resumes_without_progress {
            self.end(TurnStatus::Failed);
            self.promote();
        } else {
            open.partial.clear();
            open.resumes += 1;
            for at in self.due() {
                let call = &mut self.open.as_mut().unwrap().calls[at];
                match call.class {
                    EffectClass::Read | EffectClass::Idempotent => self.run(at),
                    EffectClass::Reconcilable => call.stage = Stage::Effect { asked: true },
                    EffectClass::Once => self.effect(at).status = EffectStatus::Uncertain,
                }
            }
        }
    }

    // ---- tools -------------------------------------------------------------------------------------

    fn effect(&mut self, at: usize) -> &mut Ledger {
        let operation = self.open.as_ref().and_then(|open| open.calls[at].operation);
        self.book.effects.get_mut(&operation.unwrap()).unwrap()
    }

    fn intend(&mut self, at: usize) {
        let call = &mut self.open.as_mut().unwrap().calls[at];
        call.stage = Stage::Effect { asked: false };
        let (class, status) = (call.class, EffectStatus::Intended);
        let ledger = Ledger { class, status, starts: 0, outcome: None, closed: false };
        self.book.effects.insert(call.operation.unwrap(), ledger);
    }

    fn run(&mut self, at: usize) {
        self.open.as_mut().unwrap().calls[at].stage = Stage::Effect { asked: false };
        let effect = self.effect(at);
        effect.status = EffectStatus::Started;
        effect.starts += 1;
        *self.line(at) = Line::Tool(String::new());
    }

    /// What the conversation has for a call that is open.
    fn line(&mut self, at: usize) -> &mut Line {
        let open = self.open.as_mut().unwrap();
        &mut open.lines[open.calls[at].line]
    }

    fn settle(&mut self, at: usize, outcome: EffectOutcome, output: &str) {
        let effect = self.effect(at);
        (effect.status, effect.outcome) = (EffectStatus::Settled, Some(outcome));
        self.close_call(at, output);
    }

    fn close_call(&mut self, at: usize, output: &str) {
        let open = self.open.as_mut().unwrap();
        let call = open.calls.remove(at);
        open.lines[call.line] = Line::Tool(output.to_owned());
        open.resumes = 0;
    }

    fn tool(&mut self, at: usize, end: End) {
        use EffectClass::{Idempotent, Once, Read};
        let class = self.effect(at).class;
        let more = self.effect(at).starts < LIMITS.tool_attempts;
        match end {
            End::Done => self.settle(at, EffectOutcome::Succeeded, "done"),
            End::Failed => self.settle(at, EffectOutcome::Failed, "failed"),
            End::NotDone if more && class != Once => self.run(at),
            End::NotDone => self.settle(at, EffectOutcome::Failed, "it could not be done"),
            End::Unknown if more && matches!(class, Read | Idempotent) => self.run(at),
            End::Unknown if class == Read => self.settle(at, EffectOutcome::Failed, "unknown"),
            End::Unknown => {
                self.effect(at).status = EffectStatus::Uncertain;
                *self.line(at) = Line::Tool(SAID.to_owned());
            }
        }
        self.go_on();
    }
}
