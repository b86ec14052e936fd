//! What the model calls of a thread and of its open turn may spend, and how a call is settled that was cut off.
//!
//! The machine keeps the accounts; whoever makes the calls holds them to it ([`ThreadState::levels`]), and to the
//! tenant's budgets, of which nothing is known here but what a report says. A call that is answered is settled by what
//! its provider reports. One that is not – interrupted, superseded, failed on its way, lost with its process – is
//! settled by what it is known to have taken: the last `budget.reserved`, and the text that the log has of it.
//! `budget.reserved` goes with the first append of a call, with one that may end it, and again when the text alone would
//! tell much too little; so an append is never made for it.
//!
//! Invariants: a call that is held to a budget leaves one `usage.recorded`, unless its provider did nothing for it or
//! its process was lost before anything of it was saved; somebody is warned of a limit once.

use super::{OpenTurn, ThreadState, step::Stepper};
use crate::{
    budget::{Amount, BudgetState, Level, Rates, Scope, tokens_of},
    command::{Metered, Refused},
    event::{Event, Reserved},
    history::CALL,
    id::TurnId,
    ports::ModelErrorKind,
    record::{Purpose, TurnError, TurnStatus, Usage, UsageEntry},
    tenant::{Budget, TenantRefused},
};

/// Tokens by which an estimate may exceed what the log tells without the log being told: the error of a call that was
/// lost with its process.
const UNTOLD: u64 = 256;

impl ThreadState {
    /// The budgets of the thread and of its open turn, and what is spent of them.
    pub fn levels(&self) -> Vec<Level> {
        let turn = self.open.as_ref().and_then(|open| Some((Scope::Turn, open.turn.budget?, open.spent)));
        let thread = self.view.budget.map(|budget| (Scope::Thread, budget, self.spent));
        let level = |(scope, budget, spent)| Level { scope, window: None, budget, spent, resets_at: None };
        thread.into_iter().chain(turn).map(level).filter(Level::bounds).collect()
    }
}

impl OpenTurn {
    /// Whether a model call is under way that is held to a budget, as far as the log knows.
    pub const fn is_metered(&self) -> bool {
        self.reserved.is_some()
    }

    /// What the call that is under way has taken at least, if it is held to a budget.
    fn taken(&self) -> Option<Reserved> {
        let Reserved { input_tokens, output_tokens } = self.reserved?;
        let of_call = self
            .items()
            .filter(|item| item.metadata.get(CALL).and_then(|number| number.as_u64()) == Some(u64::from(self.call)));
        let text: usize = of_call.map(|item| item.detail.len()).sum();
        Some(Reserved { input_tokens, output_tokens: output_tokens.max(tokens_of(text as u64)) })
    }
}

impl Stepper<'_> {
    /// Takes note of what the call that is under way takes.
    pub(super) fn metered(&mut self, turn: TurnId, call: u32, metered: &Metered) {
        let Some(open) = self.state.open.as_ref().filter(|open| open.turn.id == turn && open.call == call) else {
            return;
        };
        let Reserved { input_tokens, output_tokens } = metered.reserved;
        let told = open.taken();
        let begun = !metered.reserved.is_nothing();
        let untold = if metered.exactly { 1 } else { UNTOLD };
        if begun && told.is_none_or(|told| told.output_tokens.saturating_add(untold) <= output_tokens) {
            self.emit(Event::BudgetReserved(turn, metered.reserved));
        }
        if begun {
            let rates = self.state.open.as_ref().and_then(|open| open.turn.settings.price.as_ref()).map(Rates::from);
            self.warn(Amount::estimated(rates, input_tokens, output_tokens));
        }
        for warning in &metered.warnings {
            self.emit(Event::BudgetWarning(turn, Box::new(*warning)));
        }
    }

    /// Warns of what is nearly spent of the thread's and the turn's budgets, with `more`.
    pub(super) fn warn(&mut self, more: Amount) {
        for level in self.state.levels() {
            for state in level.warnings(more) {
                let Some(open) = &self.state.open else { return };
                let warned = if level.scope == Scope::Turn { &open.warned } else { &self.state.warned };
                if !warned.contains(&(state.unit, state.limit)) {
                    let turn = open.turn.id;
                    self.emit(Event::BudgetWarning(turn, Box::new(state)));
                }
            }
        }
    }

    /// Settles a call that failed.
    pub(super) fn settle_failed(&mut self, kind: ModelErrorKind, metered: Option<Reserved>) {
        let Some(open) = &self.state.open else { return };
        let (turn, told) = (open.turn.id, open.taken());
        let Some(known) = metered.or(told) else { return };
        if kind.is_free() && known.output_tokens == 0 {
            if told.is_some() {
                self.emit(Event::BudgetReserved(turn, Reserved { input_tokens: 0, output_tokens: 0 }));
            }
        } else {
            let output_tokens = told.map_or(0, |told| told.output_tokens).max(known.output_tokens);
            self.settle_call(turn, Reserved { output_tokens, ..known });
        }
    }

    /// Settles the call that is under way, by what the log knows: nobody will say more of it.
    pub(super) fn settle_lost(&mut self) {
        let Some(open) = &self.state.open else { return };
        let turn = open.turn.id;
        if let Some(taken) = open.taken() {
            self.settle_call(turn, taken);
        }
    }

    fn settle_call(&mut self, turn: TurnId, taken: Reserved) {
        let Some(open) = self.state.open.as_ref().filter(|_| !taken.is_nothing()) else {
            return;
        };
        let settings = &open.turn.settings;
        let usage = estimate(taken);
        let purpose = if open.compacting.is_some() { Purpose::Compaction } else { Purpose::Answer };
        let cost = settings.price.as_ref().map(|price| price.cost(&usage));
        let (engine, model) = (settings.engine.clone(), settings.model.clone());
        self.emit(Event::UsageRecorded(turn, Box::new(UsageEntry { engine, model, purpose, usage, cost })));
        self.warn(Amount::default());
    }

    /// Ends a turn for whose next call, or for more of it, there is no room in a budget. What it said stays.
    pub(super) fn out_of_budget(&mut self, told: TurnError, exceeded: Option<BudgetState>) {
        self.close_text(TurnStatus::Interrupted, |_| {});
        if let (Some(state), Some(open)) = (exceeded, &self.state.open) {
            let turn = open.turn.id;
            self.emit(Event::BudgetExceeded(turn, Box::new(state)));
        }
        self.end(TurnStatus::Failed, Some(told));
    }

    /// Whether anything is left of the thread's budget for another turn.
    pub(super) fn affordable(&self) -> Result<(), Refused> {
        let mut thread = self.state.levels().into_iter().filter(|level| level.scope == Scope::Thread);
        match thread.find_map(|level| level.exhausted()) {
            Some(state) => Err(Refused::BudgetExceeded(Box::new(state))),
            None => Ok(()),
        }
    }
}

/// The usage of a call of which nobody reported any. It is not counted as answered.
pub(super) fn estimate(taken: Reserved) -> Usage {
    let Reserved { input_tokens, output_tokens } = taken;
    Usage { input_tokens, output_tokens, estimated_calls: 1, ..Usage::default() }
}

/// Whether there can be such a budget.
pub(super) fn checked(budget: Option<&Budget>) -> Result<(), Refused> {
    match budget.map_or(Ok(()), |budget| budget.check("budget")) {
        Err(TenantRefused::Invalid { why, .. }) => Err(Refused::Invalid { field: "budget.warn_percent", why }),
        _ => Ok(()),
    }
}
