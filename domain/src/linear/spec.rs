//! One thread as its clients see it, doing one thing after the other.
//!
//! ```text
//! prompts in the order in which they were accepted:   over  over  over │ open  waits  waits
//!                                                                      └─ moves to the right as turns end
//! ```
//!
//! Turns end by themselves, and no client is told at once. So a [`State`] holds the fewest turns that must have ended by
//! now: whatever a thread could do of which more have ended, one of which fewer have can do too, by letting them end first.
//! That is why ends are no calls, and add nothing to the search.

use std::collections::{BTreeSet, VecDeque};

use super::{Bits, Call, End, History, Log, Numbers, Prompt, Verb, View};

/// Why a thread would not have answered so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Why {
    #[error("prompt {0} was accepted and is lost")]
    Lost(Prompt),
    #[error("a reader did not see prompt {0}, which had been accepted before it asked, and was neither over nor back")]
    Stale(Prompt),
    #[error("the turn of prompt {prompt} was started while that of prompt {open} was open")]
    Doubled { open: Prompt, prompt: Prompt },
    #[error("prompt {0} ran twice, or was accepted twice")]
    Twice(Prompt),
    #[error("prompt {before} went before prompt {behind}, which had been accepted first")]
    Reordered { before: Prompt, behind: Prompt },
    #[error("prompt {0} is there again after it was over or taken back")]
    Resurrected(Prompt),
    #[error("prompt {0} is there although nobody had asked for it yet, or it had been refused")]
    Unasked(Prompt),
    #[error("the turn of prompt {0} seems to be over, and nobody had ended it")]
    Held(Prompt),
    #[error("something was taken for the turn of prompt {0} after that was over")]
    Late(Prompt),
    #[error("the turn of prompt {0} was refused or made to wait, and none was open")]
    RefusedIdle(Prompt),
    #[error("prompt {0} was taken back, and did not wait")]
    NotWaiting(Prompt),
    #[error("there is no order of the calls")]
    NoOrder,
}

/// What a thread is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The open turn, and what waits behind it.
    tail: VecDeque<Prompt>,
    /// Prompts that ran to their end or were taken back, by their numbers.
    over: Bits,
    /// How many prompts that the log knows were accepted.
    accepted: usize,
    steered: usize,
}

/// What does not change: the prompts there are, and what the log says of them.
pub(super) struct Spec {
    numbers: Numbers,
    held: BTreeSet<Prompt>,
    log: Option<Log>,
    in_log: BTreeSet<Prompt>,
    /// Prompts that may have been taken back.
    withdrawn: BTreeSet<Prompt>,
    /// Prompts that may have been accepted.
    asked: BTreeSet<Prompt>,
}

impl Spec {
    pub(super) fn of(history: &History) -> Self {
        let mut numbers = Numbers::default();
        let (mut withdrawn, mut asked) = (BTreeSet::new(), BTreeSet::new());
        for call in &history.calls {
            let taken = !matches!(call.end, End::Refused | End::Nothing);
            match call.verb {
                Verb::Start(prompt) | Verb::Queue(prompt) | Verb::Steer { prompt, .. } if taken => {
                    asked.insert(prompt);
                }
                Verb::Withdraw(prompt) if taken => {
                    withdrawn.insert(prompt);
                }
                _ => {}
            }
            match call.verb {
                Verb::Start(prompt) | Verb::Queue(prompt) | Verb::Interrupt(prompt) => numbers.note(prompt),
                Verb::Withdraw(prompt) | Verb::Await(prompt) => numbers.note(prompt),
                Verb::Steer { turn, prompt } => [turn, prompt].into_iter().for_each(|prompt| numbers.note(prompt)),
                Verb::Look => {}
            }
            if let End::Saw(View { open, waiting }) = &call.end {
                open.iter().chain(waiting).for_each(|prompt| numbers.note(*prompt));
            }
        }
        let log = history.log.clone();
        let all = log.iter().flat_map(|log| log.ran.iter().chain(&log.steered));
        let in_log: BTreeSet<Prompt> = all.copied().collect();
        in_log.iter().for_each(|prompt| numbers.note(*prompt));
        Self { numbers, held: history.held.clone(), log, in_log, withdrawn, asked }
    }

    /// What no order of calls can explain.
    pub(super) fn contradiction(&self) -> Option<Why> {
        let log = self.log.as_ref()?;
        let mut known = BTreeSet::new();
        let mut all = log.ran.iter().chain(&log.steered);
        all.find_map(|prompt| match prompt {
            prompt if !known.insert(*prompt) => Some(Why::Twice(*prompt)),
            prompt if !self.asked.contains(prompt) => Some(Why::Unasked(*prompt)),
            _ => None,
        })
    }

    pub(super) fn begin(&self) -> State {
        State { tail: VecDeque::new(), over: Bits::with_room(self.numbers.0.len()), accepted: 0, steered: 0 }
    }

    /// Whether the log knows nothing more.
    pub(super) fn is_whole(&self, state: &State) -> bool {
        self.missing(state).is_none()
    }

    /// What the log knows, and nobody who was answered asked for.
    pub(super) fn missing(&self, state: &State) -> Option<Why> {
        let log = self.log.as_ref()?;
        let next = log.ran.get(state.accepted).or_else(|| log.steered.get(state.steered));
        next.map(|prompt| Why::Unasked(*prompt))
    }

    /// The state after a call that was answered so, `None` where it is the same. Of a call without an answer: the state
    /// after it had its effect.
    pub(super) fn step(&self, state: &State, call: &Call) -> Result<Option<State>, Why> {
        let mut next = state.clone();
        let thread = &mut Thread { spec: self, state: &mut next };
        match (call.verb, &call.end) {
            (Verb::Start(prompt), End::Done | End::Unknown) | (Verb::Queue(prompt), End::Done) => {
                thread.start(prompt)?
            }
            (Verb::Start(prompt), End::Refused) => thread.is_busy(prompt)?,
            (Verb::Queue(prompt), End::Waits) => {
                thread.is_busy(prompt)?;
                thread.accept(prompt)?;
            }
            // That it waits behind a turn which may have ended leaves more open than that it did not have to.
            (Verb::Queue(prompt), End::Unknown) => thread.accept(prompt)?,
            (Verb::Steer { turn, prompt }, End::Done) => thread.steer(turn, prompt)?,
            (Verb::Steer { turn, prompt }, End::Unknown) if thread.knows(turn) => thread.steer(turn, prompt)?,
            (Verb::Interrupt(turn), End::Done) => thread.interrupt(turn)?,
            (Verb::Interrupt(turn), End::Unknown) if thread.knows(turn) => thread.interrupt(turn)?,
            (Verb::Steer { turn, .. } | Verb::Interrupt(turn), End::Refused) => thread.is_not_open(turn)?,
            (Verb::Withdraw(prompt), End::Done) => thread.withdraw(prompt)?,
            (Verb::Withdraw(prompt), End::Unknown) if thread.waits(prompt) => thread.withdraw(prompt)?,
            (Verb::Withdraw(prompt), End::Refused) if thread.waits(prompt) => thread.open(prompt)?,
            (Verb::Await(turn), End::Done) => thread.is_over(turn)?,
            (Verb::Look, End::Saw(view)) => thread.look(view)?,
            // What cannot have had an effect, or says nothing.
            _ => {}
        }
        Ok((next != *state).then_some(next))
    }
}

/// A thread that is about to change.
struct Thread<'s> {
    spec: &'s Spec,
    state: &'s mut State,
}

impl Thread<'_> {
    fn knows(&self, prompt: Prompt) -> bool {
        self.state.tail.contains(&prompt)
    }

    fn waits(&self, prompt: Prompt) -> bool {
        self.state.tail.iter().skip(1).any(|waits| *waits == prompt)
    }

    fn was_over(&self, prompt: Prompt) -> bool {
        self.spec.numbers.of(prompt).is_some_and(|number| self.state.over.has(number))
    }

    /// What to say of a prompt that is not there.
    fn absent(&self, prompt: Prompt, gone: Why) -> Why {
        if self.was_over(prompt) { gone } else { Why::Unasked(prompt) }
    }

    fn put_away(&mut self, prompt: Prompt) {
        if let Some(number) = self.spec.numbers.of(prompt) {
            self.state.over.insert(number);
        }
    }

    /// The open turn ends by itself.
    fn end(&mut self) -> Result<(), Why> {
        match self.state.tail.front().copied() {
            Some(open) if self.spec.held.contains(&open) => Err(Why::Held(open)),
            Some(open) => {
                self.state.tail.pop_front();
                self.put_away(open);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Those before it end, so that it is open.
    fn open(&mut self, turn: Prompt) -> Result<(), Why> {
        if !self.knows(turn) {
            return Err(self.absent(turn, Why::Late(turn)));
        }
        while self.state.tail.front() != Some(&turn) {
            self.end()?;
        }
        Ok(())
    }

    fn is_busy(&self, prompt: Prompt) -> Result<(), Why> {
        if self.state.tail.is_empty() { Err(Why::RefusedIdle(prompt)) } else { Ok(()) }
    }

    fn start(&mut self, prompt: Prompt) -> Result<(), Why> {
        while !self.state.tail.is_empty() {
            self.end().map_err(|why| match why {
                Why::Held(open) => Why::Doubled { open, prompt },
                other => other,
            })?;
        }
        self.accept(prompt)
    }

    fn accept(&mut self, prompt: Prompt) -> Result<(), Why> {
        if self.knows(prompt) || self.was_over(prompt) {
            return Err(Why::Twice(prompt));
        }
        if let Some(log) = &self.spec.log {
            match log.ran.get(self.state.accepted) {
                Some(next) if *next == prompt => self.state.accepted += 1,
                _ if !self.spec.in_log.contains(&prompt) => {
                    if !self.spec.withdrawn.contains(&prompt) {
                        return Err(Why::Lost(prompt));
                    }
                }
                Some(next) => return Err(Why::Reordered { before: *next, behind: prompt }),
                None => return Err(Why::Lost(prompt)),
            }
        }
        self.state.tail.push_back(prompt);
        Ok(())
    }

    fn steer(&mut self, turn: Prompt, prompt: Prompt) -> Result<(), Why> {
        self.open(turn)?;
        if let Some(log) = &self.spec.log {
            match log.steered.get(self.state.steered) {
                Some(next) if *next == prompt => {}
                Some(next) if self.spec.in_log.contains(&prompt) => {
                    return Err(Why::Reordered { before: *next, behind: prompt });
                }
                _ => return Err(Why::Lost(prompt)),
            }
        }
        self.state.steered += 1;
        Ok(())
    }

    fn interrupt(&mut self, turn: Prompt) -> Result<(), Why> {
        self.open(turn)?;
        self.state.tail.pop_front();
        self.put_away(turn);
        Ok(())
    }

    fn is_not_open(&mut self, turn: Prompt) -> Result<(), Why> {
        if self.state.tail.front() == Some(&turn) { self.end() } else { Ok(()) }
    }

    fn is_over(&mut self, turn: Prompt) -> Result<(), Why> {
        match self.was_over(turn) {
            true => Ok(()),
            false => {
                self.open(turn)?;
                self.end()
            }
        }
    }

    fn withdraw(&mut self, prompt: Prompt) -> Result<(), Why> {
        if !self.waits(prompt) {
            return Err(Why::NotWaiting(prompt));
        }
        if self.spec.in_log.contains(&prompt) {
            return Err(Why::Resurrected(prompt));
        }
        self.state.tail.retain(|waits| *waits != prompt);
        self.put_away(prompt);
        Ok(())
    }

    fn look(&mut self, view: &View) -> Result<(), Why> {
        match view.open {
            Some(open) if self.knows(open) => self.open(open)?,
            Some(open) => return Err(self.absent(open, Why::Resurrected(open))),
            None => {
                while let Some(open) = self.state.tail.front().copied() {
                    self.end().map_err(|_| Why::Stale(open))?;
                }
            }
        }
        let here = || self.state.tail.iter().skip(1).copied();
        if here().eq(view.waiting.iter().copied()) {
            return Ok(());
        }
        if let Some(missing) = here().find(|waits| !view.waiting.contains(waits)) {
            return Err(Why::Stale(missing));
        }
        if let Some(more) = view.waiting.iter().find(|seen| !here().any(|waits| waits == **seen)) {
            return Err(self.absent(*more, Why::Resurrected(*more)));
        }
        let (behind, before) = here().zip(&view.waiting).find(|(here, seen)| here != *seen).unwrap_or((0, &0));
        Err(Why::Reordered { before: *before, behind })
    }
}
