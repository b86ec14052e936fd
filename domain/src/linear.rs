//! Whether what the clients of a thread were told can be true of one thread that did one thing after the other.
//!
//! Each client keeps a journal of its [`Call`]s: when it asked, when it was answered, and what. [`History::check`] looks
//! for an order of all calls, each somewhere between its question and its answer, that a thread as the [`spec`] describes
//! it would have answered so. A call without an answer may have happened at any time since it was asked, or not at all.
//! Where the whole log is known once the thread rests, the order must be that of the log as well.
//!
//! The search is that of J. M. Wing and C. Gong ("Testing and Verifying Concurrent Objects", Journal of Parallel and
//! Distributed Computing 17, 1993), which remembers where it has been, as G. Lowe proposes ("Testing for
//! Linearizability", Concurrency and Computation 29, 2017). It is exponential at worst, and short here: it is made for
//! each thread by itself, a call that changes nothing is placed as soon as it may be, and turns need not be tried at every
//! moment at which they may have ended: see [`spec`].
//!
//! Absent on purpose: clocks. Moments are numbers that grow from every answer to every question asked after it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
};

pub mod spec;

use spec::{Spec, State, Why};

/// A prompt, by its number in a journal. No two prompts of a thread share one.
pub type Prompt = u32;

/// The moment of an answer that never came.
pub const NEVER: u64 = u64::MAX;

/// Something that a client asked of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who asked; for messages alone.
    pub client: u32,
    pub asked: u64,
    /// [`NEVER`] where nobody knows what became of it.
    pub answered: u64,
    pub verb: Verb,
    pub end: End,
}

/// What was asked. A turn is named by its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A turn, now or not at all.
    Start(Prompt),
    /// A turn, now or once those before it have ended.
    Queue(Prompt),
    /// A word to the model of an open turn.
    Steer {
        turn: Prompt,
        prompt: Prompt,
    },
    Interrupt(Prompt),
    /// A prompt that waits, back.
    Withdraw(Prompt),
    /// What is open, and what waits.
    Look,
    /// The end of a turn.
    Await(Prompt),
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was done. Of a prompt that might have had to wait: its turn began at once.
    Done,
    /// The prompt waits.
    Waits,
    /// The thread did not stand so that it could be done.
    Refused,
    /// It was not taken, for a reason that says nothing about the thread: it must leave no trace.
    Nothing,
    /// No answer came.
    Unknown,
    Saw(View),
}

/// What a reader saw at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub open: Option<Prompt>,
    /// In the order in which they are to run.
    pub waiting: Vec<Prompt>,
}

/// What a log says once nothing of its thread runs or waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Prompts in the order in which their turns began.
    pub ran: Vec<Prompt>,
    /// What was said to open turns, in the order in which it was admitted.
    pub steered: Vec<Prompt>,
}

/// Everything that is known of one thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub calls: Vec<Call>,
    /// Prompts whose turns end when they are interrupted, and not by themselves.
    pub held: BTreeSet<Prompt>,
    pub log: Option<Log>,
}

/// What came of the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Legal,
    Illegal(Illegal),
    /// There are more orders than were to be tried.
    Undecided,
}

/// Why there is no order. Where several calls contradict each other, the one is named that the best order cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Illegal {
    /// The call, by its place in the history; none where it is the log that fits no order of the calls.
    pub call: Option<usize>,
    pub why: Why,
    /// How many calls the best order holds.
    pub placed: usize,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call {
            Some(call) => write!(f, "call {call}: {}", self.why),
            None => write!(f, "the log: {}", self.why),
        }
    }
}

impl History {
    /// Whether there is an order. At most `limit` of its beginnings are tried.
    pub fn check(&self, limit: usize) -> Verdict {
        let spec = Spec::of(self);
        match spec.contradiction() {
            Some(why) => Verdict::Illegal(Illegal { call: None, why, placed: 0 }),
            None => Search::new(self, &spec).run(limit),
        }
    }
}

/// A set of small numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    fn with_room(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }
}

/// The beginning of an order.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Beginning {
    /// Calls that it holds.
    placed: Bits,
    state: State,
}

/// A beginning whose continuations are being tried.
struct Frame {
    at: Beginning,
    count: usize,
    untried: Vec<(usize, State)>,
}

struct Search<'h> {
    spec: &'h Spec,
    calls: &'h [Call],
    /// The calls in the order in which they were asked.
    order: Vec<usize>,
    /// Calls that were answered.
    answered: usize,
    seen: HashSet<Beginning>,
    best: Option<Illegal>,
}

impl<'h> Search<'h> {
    fn new(history: &'h History, spec: &'h Spec) -> Self {
        let calls = &history.calls;
        let mut order: Vec<usize> = (0..calls.len()).filter(|at| calls[*at].end != End::Nothing).collect();
        order.sort_by_key(|at| (calls[*at].asked, calls[*at].answered));
        let answered = order.iter().filter(|at| calls[**at].end != End::Unknown).count();
        Self { spec, calls, order, answered, seen: HashSet::new(), best: None }
    }

    fn run(mut self, limit: usize) -> Verdict {
        let nothing = Beginning { placed: Bits::with_room(self.calls.len()), state: self.spec.begin() };
        let mut stack = Vec::new();
        let mut next = Some((nothing, 0));
        loop {
            if let Some((at, count)) = next.take() {
                match self.enter(at, count) {
                    Entered::Whole => return Verdict::Legal,
                    Entered::Seen => {}
                    Entered::Frame(frame) => stack.push(frame),
                }
                if self.seen.len() > limit {
                    return Verdict::Undecided;
                }
            }
            let Some(frame) = stack.last_mut() else { break };
            match frame.untried.pop() {
                None => drop(stack.pop()),
                Some((call, state)) => {
                    let mut placed = frame.at.placed.clone();
                    placed.insert(call);
                    let answered = usize::from(self.calls[call].end != End::Unknown);
                    next = Some((Beginning { placed, state }, frame.count + answered));
                }
            }
        }
        let unplaced = || Illegal { call: None, why: Why::NoOrder, placed: 0 };
        Verdict::Illegal(self.best.unwrap_or_else(unplaced))
    }

    /// Places what may be placed without a choice, and finds the choices behind it. `count` is how many calls are placed
    /// of those that were answered.
    fn enter(&mut self, mut at: Beginning, mut count: usize) -> Entered {
        loop {
            if count == self.answered && self.spec.is_whole(&at.state) {
                return Entered::Whole;
            }
            let next = self.next(&at.placed);
            let mut untried = Vec::new();
            let mut harmless = None;
            for call in next.iter().copied() {
                let of = &self.calls[call];
                match self.spec.step(&at.state, of) {
                    // It fits here, and fitting it in later would be no better.
                    Ok(None) if of.end != End::Unknown => {
                        harmless = Some(call);
                        break;
                    }
                    Ok(Some(state)) => untried.push((call, state)),
                    Ok(None) | Err(_) => {}
                }
            }
            if let Some(call) = harmless {
                at.placed.insert(call);
                count += 1;
                continue;
            }
            if !self.seen.insert(at.clone()) {
                return Entered::Seen;
            }
            self.note(&at, count, &next);
            // The one that was asked first is tried first.
            untried.reverse();
            return Entered::Frame(Frame { at, count, untried });
        }
    }

    /// The calls that may be next: those that were asked before any other was answered that is not placed.
    fn next(&self, placed: &Bits) -> Vec<usize> {
        let mut next = Vec::new();
        let mut first_answer = NEVER;
        for call in self.order.iter().copied() {
            if self.calls[call].asked > first_answer {
                break;
            }
            if !placed.has(call) {
                next.push(call);
                first_answer = first_answer.min(self.calls[call].answered);
            }
        }
        next
    }

    /// Takes note of what the call says that must be next, where it cannot be.
    fn note(&mut self, at: &Beginning, count: usize, next: &[usize]) {
        if self.best.as_ref().is_some_and(|best| best.placed >= count) {
            return;
        }
        let known = next.iter().copied().filter(|call| self.calls[*call].end != End::Unknown);
        let found = match known.min_by_key(|call| self.calls[*call].answered) {
            Some(call) => self.spec.step(&at.state, &self.calls[call]).err().map(|why| (Some(call), why)),
            None => self.spec.missing(&at.state).map(|why| (None, why)),
        };
        if let Some((call, why)) = found {
            self.best = Some(Illegal { call, why, placed: count });
        }
    }
}

enum Entered {
    /// It is an order of everything.
    Whole,
    /// It was tried.
    Seen,
    Frame(Frame),
}

/// Numbers prompts as they come.
#[derive(Debug, Clone, Default)]
struct Numbers(BTreeMap<Prompt, usize>);

impl Numbers {
    fn note(&mut self, prompt: Prompt) {
        let next = self.0.len();
        self.0.entry(prompt).or_insert(next);
    }

    fn of(&self, prompt: Prompt) -> Option<usize> {
        self.0.get(&prompt).copied()
    }
}

#[cfg(test)]
mod tests;
