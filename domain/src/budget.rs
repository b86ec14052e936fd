//! Budgets: what model calls may spend, and the accounts by which that holds.
//!
//! ```text
//!   reserve ──▶ call ──▶ extend, chunk by chunk ──▶ settle
//!      │                    │                          by what the provider reports, or by what was counted
//!      └─ nothing fits      └─ nothing more fits
//!         no call              the call is stopped
//! ```
//!
//! A budget stands at a [`Level`]: a tenant's window, a thread, a turn. What a call may take is the least of what is
//! left at all of them ([`grant`]). Before a call its input is an estimate, and so is its output while it streams
//! ([`Meter`]); what a call came to is known when it has ended, so a level can be overdrawn by what the estimates of
//! the calls in flight were wrong by, and by no call that was begun after that was known.
//!
//! A thread makes one call at a time, so its machine keeps the accounts of its thread and turn. A tenant's calls race
//! each other: its account is a [`Book`], which counts what is in flight as if it were spent.
//!
//! Everything is counted in whole tokens and pico-dollars. What an agent with a model of its own takes is not known:
//! it is counted as what it was told once, and what it streamed.

use std::collections::HashMap;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use utoipa::ToSchema;

use crate::{
    id::ThreadId,
    price::{Cost, PICO, Price},
    record::Usage,
    tenant::{Budget, Budgets},
    time::UnixMs,
};

/// A token is taken for so many bytes. English prose has about four, code and other languages fewer: an estimate is
/// then too small, by half at the worst that is common. It is never what is billed where the provider says better.
pub const BYTES_PER_TOKEN: u64 = 4;
/// Milliseconds of a day. Days are those of UTC, which have no leap second in Unix time.
const DAY_MS: u64 = 86_400_000;
/// Pico-dollars of the smallest amount that is shown: a double holds no more digits of ten million dollars.
const MICRO: u64 = PICO / 1_000_000;

/// What model calls took, or are to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Amount {
    /// Input and output together.
    pub tokens: u64,
    /// As far as there is a price.
    pub pico_usd: u64,
}

/// Where a budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BudgetScope)]
pub enum Scope {
    Tenant,
    Thread,
    Turn,
}

/// How long a tenant's spending is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BudgetWindow)]
pub enum Window {
    /// A UTC day.
    Day,
    /// A UTC calendar month.
    Month,
    /// For ever.
    Total,
}

/// In what a budget is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BudgetUnit)]
pub enum Unit {
    Tokens,
    Usd,
}

/// A budget that is, or is nearly, spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetState {
    pub scope: Scope,
    /// Of a tenant's.
    pub window: Option<Window>,
    pub unit: Unit,
    /// Tokens, or micro-dollars.
    pub limit: u64,
    /// The same, rounded down; with what calls in flight may still take.
    pub spent: u64,
    /// When its window is over.
    pub resets_at: Option<UnixMs>,
}

/// Why a call may not be made, or go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    #[error(transparent)]
    Spent(BudgetState),
    /// What it costs nobody knows, so a budget in money could not be held.
    #[error("{} is in money, and the model has no price: the call could not be held to it", place(*.0, *.1))]
    Unpriced(Scope, Option<Window>),
}

/// What a token costs, in pico-dollars. Input is taken for input that is not cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub input: u64,
    pub output: u64,
}

/// What is to be reserved for a call: its input, and output from `least` to `most` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub rates: Option<Rates>,
    pub input: u64,
    /// Output that has come already.
    pub used: u64,
    pub least: u64,
    pub most: u64,
}

/// A budget, where it stands, and what is spent of it or promised to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub scope: Scope,
    pub window: Option<Window>,
    pub budget: Budget,
    pub spent: Amount,
    pub resets_at: Option<UnixMs>,
}

// ---- estimates -----------------------------------------------------------------------------------

/// About how many tokens so many bytes are.
pub const fn tokens_of(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

impl Amount {
    pub const fn is_zero(&self) -> bool {
        self.tokens == 0 && self.pico_usd == 0
    }

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            pico_usd: self.pico_usd.saturating_add(other.pico_usd),
        }
    }

    /// What a model call came to.
    pub fn of(usage: &Usage, cost: Option<Cost>) -> Self {
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        Self { tokens, pico_usd: cost.map_or(0, |cost| cost.pico_usd) }
    }

    pub(crate) fn estimated(rates: Option<Rates>, input: u64, output: u64) -> Self {
        let cost = |rates: Rates| rates.input.saturating_mul(input).saturating_add(rates.output.saturating_mul(output));
        Self { tokens: input.saturating_add(output), pico_usd: rates.map_or(0, cost) }
    }
}

impl From<&Price> for Rates {
    fn from(price: &Price) -> Self {
        Self { input: price.input, output: price.output }
    }
}

/// One model call while it lasts: what is reserved for it, and what was counted.
#[derive(Debug, Clone)]
pub struct Meter {
    rates: Option<Rates>,
    input: u64,
    bytes: u64,
    fragments: u64,
    reserved: u64,
    chunk: u64,
    max_tokens: u64,
}

impl Meter {
    /// For a request of `bytes`, reserving `chunk` tokens of output at a time, of which there are no more than
    /// `max_tokens`.
    pub fn new(bytes: u64, chunk: u64, max_tokens: Option<u32>, rates: Option<Rates>) -> Self {
        let max_tokens = max_tokens.map_or(u64::MAX, u64::from);
        Self { rates, input: tokens_of(bytes), bytes: 0, fragments: 0, reserved: 0, chunk: chunk.max(1), max_tokens }
    }

    /// The tokens of the request, as far as its bytes tell.
    pub const fn input(&self) -> u64 {
        self.input
    }

    /// The tokens that came: no provider streams less than one at a time.
    pub fn output(&self) -> u64 {
        tokens_of(self.bytes).max(self.fragments)
    }

    /// What is to be reserved before the call is made, or goes on.
    pub fn ask(&self) -> Ask {
        let used = self.output();
        let least = used.max(1);
        let most = used.saturating_add(self.chunk).min(self.max_tokens).max(least);
        Ask { rates: self.rates, input: self.input, used, least, most }
    }

    /// So much output was granted.
    pub fn granted(&mut self, output: u64) {
        self.reserved = output;
    }

    /// Counts a fragment. Whether that is beyond what is reserved: then more is to be asked for, or the call stopped.
    pub fn counts(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.fragments = self.fragments.saturating_add(1);
        self.output() > self.reserved
    }
}

// ---- levels --------------------------------------------------------------------------------------

/// How much output a call may reserve at all of `levels`: as much as it asks for, or as much as there is.
pub fn grant(levels: impl IntoIterator<Item = Level>, ask: Ask) -> Result<u64, Stopped> {
    levels.into_iter().try_fold(ask.most, |most, level| level.room(Ask { most, ..ask }))
}

impl Level {
    /// Whether there is a bound.
    pub fn bounds(&self) -> bool {
        self.budget.bounds()
    }

    fn units(&self) -> impl Iterator<Item = (Unit, u64, u64)> {
        let tokens = self.budget.tokens.map(|limit| (Unit::Tokens, limit, self.spent.tokens));
        let usd = self.budget.usd.map(|limit| (Unit::Usd, limit.0, self.spent.pico_usd));
        tokens.into_iter().chain(usd)
    }

    fn room(&self, ask: Ask) -> Result<u64, Stopped> {
        let mut most = ask.most;
        for (unit, limit, spent) in self.units() {
            let (input, each) = match (unit, ask.rates) {
                (Unit::Tokens, _) => (ask.input, 1),
                (Unit::Usd, Some(rates)) => (rates.input.saturating_mul(ask.input), rates.output),
                (Unit::Usd, None) => return Err(Stopped::Unpriced(self.scope, self.window)),
            };
            let left = limit.checked_sub(spent).and_then(|left| left.checked_sub(input));
            let fits = left.map(|left| left.checked_div(each).unwrap_or(u64::MAX)).filter(|fits| *fits >= ask.least);
            // A budget of which nothing is left stops also what costs nothing.
            let Some(fits) = fits.filter(|_| spent < limit) else {
                let used =
                    if ask.used > 0 { Amount::estimated(ask.rates, ask.input, ask.used) } else { Amount::default() };
                let level = Self { spent: self.spent.plus(used), ..*self };
                return Err(Stopped::Spent(level.state(unit)));
            };
            most = most.min(fits);
        }
        Ok(most)
    }

    fn state(&self, unit: Unit) -> BudgetState {
        let (limit, spent) = match unit {
            Unit::Tokens => (self.budget.tokens.unwrap_or_default(), self.spent.tokens),
            Unit::Usd => (self.budget.usd.unwrap_or_default().0 / MICRO, self.spent.pico_usd / MICRO),
        };
        let Self { scope, window, resets_at, .. } = *self;
        BudgetState { scope, window, unit, limit, spent, resets_at }
    }

    /// How it stands in each unit in which it is given.
    pub fn states(&self) -> impl Iterator<Item = BudgetState> {
        self.units().map(|(unit, ..)| self.state(unit))
    }

    /// The unit in which nothing is left, if there is one.
    pub fn exhausted(&self) -> Option<BudgetState> {
        self.units().find(|(_, limit, spent)| spent >= limit).map(|(unit, ..)| self.state(unit))
    }

    /// What of it is spent, with `more`, as far as a warning is due at.
    pub fn warnings(&self, more: Amount) -> impl Iterator<Item = BudgetState> + use<> {
        let with = Self { spent: self.spent.plus(more), ..*self };
        let percent = u128::from(self.budget.warn_percent.unwrap_or(Budget::WARN_PERCENT));
        let nearly = move |limit: u64, spent: u64| u128::from(spent) * 100 >= u128::from(limit) * percent;
        let due: Vec<_> = with.units().filter(|(_, limit, spent)| nearly(*limit, *spent)).collect();
        due.into_iter().map(move |(unit, ..)| with.state(unit))
    }
}

impl Budget {
    /// Where a warning is due unless it is said.
    pub const WARN_PERCENT: u8 = 80;

    /// Whether it bounds anything.
    pub const fn bounds(&self) -> bool {
        self.tokens.is_some() || self.usd.is_some()
    }
}

impl Budgets {
    /// Whether any of them bounds anything.
    pub fn bounds(&self) -> bool {
        self.windows().next().is_some()
    }

    /// Those that bound something.
    fn windows(&self) -> impl Iterator<Item = (Window, Budget)> {
        let all = [(Window::Day, self.day), (Window::Month, self.month), (Window::Total, self.total)];
        all.into_iter().filter_map(|(window, budget)| Some((window, budget.filter(Budget::bounds)?)))
    }

    /// The first day that has to be counted at `now`, if any has.
    pub fn since(&self, now: UnixMs) -> Option<u32> {
        self.windows().map(|(window, _)| window.begins(day(now))).min()
    }
}

// ---- windows -------------------------------------------------------------------------------------

/// The UTC day of an instant: days since 1970-01-01.
pub fn day(at: UnixMs) -> u32 {
    u32::try_from(at.0 / DAY_MS).unwrap_or(u32::MAX)
}

fn date(day: u32) -> NaiveDate {
    let first = DateTime::UNIX_EPOCH.date_naive();
    first.checked_add_days(Days::new(day.into())).unwrap_or(NaiveDate::MAX)
}

fn days(date: NaiveDate) -> u32 {
    u32::try_from(date.signed_duration_since(DateTime::UNIX_EPOCH.date_naive()).num_days()).unwrap_or(u32::MAX)
}

impl Window {
    /// The first day of the window that holds `day`.
    fn begins(self, day: u32) -> u32 {
        match self {
            Self::Day => day,
            Self::Month => days(date(day).with_day(1).unwrap_or(NaiveDate::MAX)),
            Self::Total => 0,
        }
    }

    /// When the window that holds `day` is over.
    fn resets_at(self, day: u32) -> Option<UnixMs> {
        let next = match self {
            Self::Day => day.checked_add(1)?,
            Self::Month => days(date(self.begins(day)).checked_add_months(Months::new(1))?),
            Self::Total => return None,
        };
        Some(UnixMs(u64::from(next) * DAY_MS))
    }
}

// ---- the account of a tenant -----------------------------------------------------------------------

/// What a tenant spent in its windows, and what its calls in flight may still take.
///
/// Days are only ever left behind; whoever finds a clock that was set back reads the sums again.
#[derive(Debug, Clone)]
pub struct Book {
    /// The first day that is counted.
    since: u32,
    today: u32,
    day: Amount,
    month: Amount,
    total: Amount,
    /// By the thread that makes the call.
    held: HashMap<ThreadId, Held>,
    in_flight: (u128, u128),
    /// Of what was warned, by the limit that was nearly reached.
    warned: Vec<(Window, Unit, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    call: u64,
    amount: Amount,
}

/// A tenant's budget, as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetStatus {
    /// Its `spent` is what was settled.
    pub state: BudgetState,
    /// What calls in flight may still take, in the state's unit.
    pub reserved: u64,
}

impl Book {
    /// Nothing was spent from the day `since` on, and today is that of `now`.
    pub fn new(since: u32, now: UnixMs) -> Self {
        let none = Amount::default();
        let (held, warned) = (HashMap::new(), Vec::new());
        Self { since, today: day(now), day: none, month: none, total: none, held, in_flight: (0, 0), warned }
    }

    /// Takes over what another book says of calls in flight, and of what its tenant was told.
    #[must_use]
    pub fn continuing(self, other: Self) -> Self {
        let warned = if other.today == self.today { other.warned } else { Vec::new() };
        Self { held: other.held, in_flight: other.in_flight, warned, ..self }
    }

    /// Goes on to the day of `now`. Whether the book is good for `budgets` then: if not, its sums are to be read again.
    pub fn reaches(&mut self, budgets: &Budgets, now: UnixMs) -> bool {
        let now_day = day(now);
        if now_day > self.today {
            self.day = Amount::default();
            self.warned.retain(|(window, ..)| *window != Window::Day);
            if Window::Month.begins(now_day) != Window::Month.begins(self.today) {
                self.month = Amount::default();
                self.warned.retain(|(window, ..)| *window != Window::Month);
            }
            self.today = now_day;
        }
        now_day == self.today && budgets.since(now).is_none_or(|since| since >= self.since)
    }

    /// Something was spent on `day`.
    pub fn spend(&mut self, day: u32, amount: Amount) {
        self.total = self.total.plus(amount);
        if Window::Month.begins(day) == Window::Month.begins(self.today) {
            self.month = self.month.plus(amount);
        }
        if day == self.today {
            self.day = self.day.plus(amount);
        }
    }

    /// Each of `budgets`, with what is spent of it and, beside that, `more`.
    fn levels(&self, budgets: &Budgets, more: Amount) -> impl Iterator<Item = Level> {
        budgets.windows().map(move |(window, budget)| {
            let spent = match window {
                Window::Day => self.day,
                Window::Month => self.month,
                Window::Total => self.total,
            };
            let resets_at = window.resets_at(self.today);
            Level { scope: Scope::Tenant, window: Some(window), budget, spent: spent.plus(more), resets_at }
        })
    }

    /// What is reserved for others than the call of `thread`.
    fn in_flight_beside(&self, thread: Option<ThreadId>) -> Amount {
        let own = thread.and_then(|thread| self.held.get(&thread)).map_or(Amount::default(), |held| held.amount);
        let fits = |all: u128, own: u64| u64::try_from(all.saturating_sub(own.into())).unwrap_or(u64::MAX);
        Amount { tokens: fits(self.in_flight.0, own.tokens), pico_usd: fits(self.in_flight.1, own.pico_usd) }
    }

    /// Reserves for a call of `thread`, in place of what is reserved for it: its input, and as much output as is asked
    /// for and there is. What does not fit changes nothing.
    pub fn hold(&mut self, thread: ThreadId, call: u64, budgets: &Budgets, ask: Ask) -> Result<u64, Stopped> {
        let granted = grant(self.levels(budgets, self.in_flight_beside(Some(thread))), ask)?;
        self.put(thread, Some(Held { call, amount: Amount::estimated(ask.rates, ask.input, granted) }));
        Ok(granted)
    }

    /// Gives back what is reserved for this call.
    pub fn release(&mut self, thread: ThreadId, call: u64) {
        if self.held.get(&thread).is_some_and(|held| held.call == call) {
            self.put(thread, None);
        }
    }

    /// Gives back what is reserved for the call of `thread`, which is over.
    pub fn ended(&mut self, thread: ThreadId) {
        self.put(thread, None);
    }

    fn put(&mut self, thread: ThreadId, held: Option<Held>) {
        let before = match held {
            Some(held) => self.held.insert(thread, held),
            None => self.held.remove(&thread),
        };
        let of = |held: Option<Held>| {
            held.map_or((0, 0), |held| (u128::from(held.amount.tokens), u128::from(held.amount.pico_usd)))
        };
        let ((tokens, pico), (old_tokens, old_pico)) = (of(held), of(before));
        self.in_flight = (self.in_flight.0 + tokens - old_tokens, self.in_flight.1 + pico - old_pico);
    }

    /// The warnings that are due and were not said, each once for a limit and a window. What is in flight counts as
    /// spent: a warning that waited for its end would come after the stop.
    pub fn warnings(&mut self, budgets: &Budgets) -> Vec<BudgetState> {
        let in_flight = self.in_flight_beside(None);
        let due: Vec<_> = self.levels(budgets, in_flight).flat_map(|level| level.warnings(Amount::default())).collect();
        let said = |state: &BudgetState| state.window.map(|window| (window, state.unit, state.limit));
        let fresh: Vec<_> =
            due.into_iter().filter(|state| said(state).is_some_and(|said| !self.warned.contains(&said))).collect();
        self.warned.extend(fresh.iter().filter_map(said));
        fresh
    }

    /// The budget of which nothing is left, if there is one; what is in flight may come back.
    pub fn exhausted(&self, budgets: &Budgets) -> Option<BudgetState> {
        self.levels(budgets, Amount::default()).find_map(|level| level.exhausted())
    }

    /// How each of `budgets` stands.
    pub fn status(&self, budgets: &Budgets) -> Vec<BudgetStatus> {
        let reserved = self.in_flight_beside(None);
        let of = |state: BudgetState| BudgetStatus {
            state,
            reserved: match state.unit {
                Unit::Tokens => reserved.tokens,
                Unit::Usd => reserved.pico_usd / MICRO,
            },
        };
        self.levels(budgets, Amount::default()).flat_map(|level| level.states().collect::<Vec<_>>()).map(of).collect()
    }
}

// ---- how it reads ----------------------------------------------------------------------------------

fn place(scope: Scope, window: Option<Window>) -> &'static str {
    match (scope, window) {
        (Scope::Tenant, Some(Window::Day)) => "the tenant's budget of the day",
        (Scope::Tenant, Some(Window::Month)) => "the tenant's budget of the month",
        (Scope::Tenant, Some(Window::Total) | None) => "the tenant's budget",
        (Scope::Thread, _) => "the thread's budget",
        (Scope::Turn, _) => "the turn's budget",
    }
}

impl std::error::Error for BudgetState {}

impl std::fmt::Display for BudgetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = place(self.scope, self.window);
        match self.unit {
            Unit::Tokens => write!(f, "{place} has no room left: {} of {} tokens are spent", self.spent, self.limit),
            Unit::Usd => {
                let [spent, limit] = [self.spent, self.limit].map(dollars);
                write!(f, "{place} has no room left: {spent} of {limit} dollars are spent")
            }
        }
    }
}

fn dollars(micro: u64) -> f64 {
    micro as f64 / 1e6
}

impl Unit {
    /// An amount of tokens or micro-dollars as a number that people read: dollars are written as dollars.
    pub fn number(self, amount: u64) -> serde_json::Number {
        match self {
            Self::Tokens => amount.into(),
            Self::Usd => serde_json::Number::from_f64(dollars(amount)).unwrap_or_else(|| 0.into()),
        }
    }
}

/// A [`BudgetState`] as it travels.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(as = BudgetState)]
struct Wire {
    scope: Scope,
    /// Of a tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
    unit: Unit,
    /// Tokens, or dollars.
    #[schema(value_type = f64)]
    limit: serde_json::Number,
    /// The same.
    #[schema(value_type = f64)]
    spent: serde_json::Number,
    /// When the window is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resets_at: Option<UnixMs>,
}

impl Serialize for BudgetState {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { scope, window, unit, limit, spent, resets_at } = *self;
        Wire { scope, window, unit, limit: unit.number(limit), spent: unit.number(spent), resets_at }.serialize(to)
    }
}

impl<'de> Deserialize<'de> for BudgetState {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Wire { scope, window, unit, limit, spent, resets_at } = Wire::deserialize(from)?;
        let read = |number: serde_json::Number| match unit {
            Unit::Tokens => number.as_u64(),
            // Micro-dollars below 2⁵³ come back as they were.
            Unit::Usd => {
                number.as_f64().filter(|dollars| *dollars >= 0.0).map(|dollars| (dollars * 1e6).round() as u64)
            }
        };
        let (limit, spent) = read(limit).zip(read(spent)).ok_or_else(|| D::Error::custom("not an amount"))?;
        Ok(Self { scope, window, unit, limit, spent, resets_at })
    }
}

impl utoipa::PartialSchema for BudgetState {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        Wire::schema()
    }
}

impl ToSchema for BudgetState {
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        Wire::schemas(schemas);
    }
}

#[cfg(test)]
mod tests;
