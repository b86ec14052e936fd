//! What model calls cost: dated prices, exact sums.
//!
//! A price is in micro-dollars per million tokens, which is pico-dollars (10⁻¹² USD) per token: so a cost is a
//! product of integers, and sums are exact. A model without a price costs *unknown*, which is not zero.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{record::Usage, time::UnixMs};

/// Pico-dollars in a dollar.
pub const PICO: u64 = 1_000_000_000_000;

/// What one model costs, as it was when a turn began. In micro-dollars per million tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Price {
    /// Which row of which price file.
    pub version: String,
    pub input: u64,
    /// For input that the provider had cached; `None`: as other input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    pub output: u64,
}

/// A price and when it holds: from `from`, until before `until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The engine's name; `*` is any.
    pub engine: String,
    /// The model's name at its provider, compared without regard to case; a `*` at its end stands for any rest.
    pub model: String,
    pub from: UnixMs,
    pub until: Option<UnixMs>,
    pub price: Price,
}

/// Every price that is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prices {
    rows: Vec<Row>,
}

/// What a model call cost, in pico-dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Cost {
    pub pico_usd: u64,
    /// What it would have cost had nothing been cached.
    pub without_cache_pico_usd: u64,
}

/// Sums over model calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub turns: u64,
    pub model_calls: u64,
    /// Calls whose provider reported no usage: they are in no sum of tokens.
    pub unreported_calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
    /// Input of the calls that said how much of it was cached.
    pub cache_reported_tokens: u64,
    pub reasoning_tokens: u64,
    /// Calls with usage and without a price: their cost is unknown.
    pub unpriced_calls: u64,
    pub pico_usd: u64,
    pub without_cache_pico_usd: u64,
}

impl Prices {
    /// Where several rows fit, an exact model goes before a pattern, and a later row before an earlier one.
    pub fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    /// The price that holds at `now`.
    pub fn at(&self, engine: &str, model: &str, now: UnixMs) -> Option<&Price> {
        let holds = |row: &&Row| row.from <= now && row.until.is_none_or(|until| now < until);
        let fits = |row: &&Row| row.engine == "*" || row.engine == engine;
        let rows = || self.rows.iter().rev().filter(holds).filter(fits);
        let exact = rows().find(|row| row.model.eq_ignore_ascii_case(model));
        let pattern = || {
            rows().find(|row| {
                let start = row.model.strip_suffix('*');
                start.and_then(|start| model.get(..start.len()).map(|head| head.eq_ignore_ascii_case(start)))
                    == Some(true)
            })
        };
        exact.or_else(pattern).map(|row| &row.price)
    }
}

impl Price {
    /// What `usage` costs.
    pub fn cost(&self, usage: &Usage) -> Cost {
        let cached = usage.cached_tokens.unwrap_or(0).min(usage.input_tokens);
        let product = |tokens: u64, price: u64| tokens.saturating_mul(price);
        let output = product(usage.output_tokens, self.output);
        let input = product(usage.input_tokens - cached, self.input)
            .saturating_add(product(cached, self.cached_input.unwrap_or(self.input)));
        Cost {
            pico_usd: input.saturating_add(output),
            without_cache_pico_usd: product(usage.input_tokens, self.input).saturating_add(output),
        }
    }
}

impl Totals {
    /// The sums of one model call.
    pub fn of_call(usage: &Usage, cost: Option<Cost>) -> Self {
        let reported = u64::from(usage.unreported_calls == 0);
        let cost_of = cost.unwrap_or_default();
        Self {
            turns: 0,
            model_calls: u64::from(usage.model_calls),
            unreported_calls: u64::from(usage.unreported_calls),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cached_tokens: usage.cached_tokens.unwrap_or(0),
            cache_reported_tokens: usage.cached_tokens.map_or(0, |_| usage.input_tokens),
            reasoning_tokens: usage.reasoning_tokens.unwrap_or(0),
            unpriced_calls: if cost.is_none() { reported * u64::from(usage.model_calls) } else { 0 },
            pico_usd: cost_of.pico_usd,
            without_cache_pico_usd: cost_of.without_cache_pico_usd,
        }
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &Totals) {
        let pairs = [
            (&mut self.turns, other.turns),
            (&mut self.model_calls, other.model_calls),
            (&mut self.unreported_calls, other.unreported_calls),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.cached_tokens, other.cached_tokens),
            (&mut self.cache_reported_tokens, other.cache_reported_tokens),
            (&mut self.reasoning_tokens, other.reasoning_tokens),
            (&mut self.unpriced_calls, other.unpriced_calls),
            (&mut self.pico_usd, other.pico_usd),
            (&mut self.without_cache_pico_usd, other.without_cache_pico_usd),
        ];
        for (sum, more) in pairs {
            *sum = sum.saturating_add(more);
        }
    }
}
