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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
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
    /// Calls whose tokens are estimates: held to a budget, and cut off or not reported.
    #[serde(skip_serializing_if = "is_zero")]
    pub estimated_calls: u64,
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

const fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Prices {
    /// Rows in the order of their file. Which of them holds is decided by [`Prices::at`].
    pub fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    /// The price that holds at `now`. Where several rows fit, the most specific one does: an exact model goes before
    /// a pattern, a longer pattern before a shorter one, a named engine before any; then a later beginning before an
    /// earlier one, and at last a later row before an earlier one.
    pub fn at(&self, engine: &str, model: &str, now: UnixMs) -> Option<&Price> {
        let holds = |row: &&Row| row.from <= now && row.until.is_none_or(|until| now < until);
        let rows = self.rows.iter().filter(holds);
        let ranked = rows.filter_map(|row| Some((row.fits(engine, model)?, row.from, row)));
        // The last of equals.
        ranked.max_by_key(|(fit, from, _)| (*fit, *from)).map(|(.., row)| &row.price)
    }
}

/// How closely a row fits a model: greater is closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    exact: bool,
    /// Bytes of the model's name that the row spells out.
    spelled: usize,
    engine: bool,
}

impl Row {
    fn fits(&self, engine: &str, model: &str) -> Option<Fit> {
        let any = self.engine == "*";
        if !any && self.engine != engine {
            return None;
        }
        let (start, exact) = match self.model.strip_suffix('*') {
            Some(start) => (start, false),
            None => (self.model.as_str(), true),
        };
        let head = if exact { model } else { model.get(..start.len())? };
        head.eq_ignore_ascii_case(start).then_some(Fit { exact, spelled: start.len(), engine: !any })
    }
}

impl Price {
    /// What `usage` costs. Beyond what 64 bits hold, some 18 million dollars, it stays at the greatest number.
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
            estimated_calls: u64::from(usage.estimated_calls),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            // More than there was cannot have been cached, whatever a provider says.
            cached_tokens: usage.cached_tokens.unwrap_or(0).min(usage.input_tokens),
            cache_reported_tokens: usage.cached_tokens.map_or(0, |_| usage.input_tokens),
            reasoning_tokens: usage.reasoning_tokens.unwrap_or(0),
            unpriced_calls: match cost {
                Some(_) => 0,
                None => reported * u64::from(usage.model_calls.max(usage.estimated_calls)),
            },
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
            (&mut self.estimated_calls, other.estimated_calls),
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

    /// What it cost, as far as that is known; `None` when calls were made and of none of them is it known.
    pub fn cost(&self) -> Option<Cost> {
        let unknown = self.unreported_calls.saturating_add(self.unpriced_calls);
        let known = unknown == 0 || self.model_calls > unknown || self.pico_usd > 0;
        known.then_some(Cost { pico_usd: self.pico_usd, without_cache_pico_usd: self.without_cache_pico_usd })
    }

    /// Input that was not cached, of the calls that said how much was.
    pub fn cache_miss_tokens(&self) -> u64 {
        self.cache_reported_tokens.saturating_sub(self.cached_tokens)
    }

    /// The part of the input that was cached, of the calls that said so; `None` when none did.
    pub fn cache_hit_rate(&self) -> Option<f64> {
        // A share is for people to look at: what a float loses of it nobody adds up.
        (self.cache_reported_tokens > 0).then(|| self.cached_tokens as f64 / self.cache_reported_tokens as f64)
    }
}

impl Cost {
    /// What the cache saved.
    pub const fn savings_pico_usd(&self) -> u64 {
        self.without_cache_pico_usd.saturating_sub(self.pico_usd)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400_000;

    fn price(version: &str) -> Price {
        Price { version: version.into(), input: 2_500_000, cached_input: Some(1_250_000), output: 10_000_000 }
    }

    /// Rows `(engine, model, first day, day it ends, version)`.
    fn prices(rows: &[(&str, &str, u64, Option<u64>, &str)]) -> Prices {
        let row = |&(engine, model, from, until, version): &(&str, &str, u64, Option<u64>, &str)| Row {
            engine: engine.into(),
            model: model.into(),
            from: UnixMs(from * DAY),
            until: until.map(|until| UnixMs(until * DAY)),
            price: price(version),
        };
        Prices::new(rows.iter().map(row).collect())
    }

    fn version<'a>(prices: &'a Prices, engine: &str, model: &str, now: u64) -> Option<&'a str> {
        prices.at(engine, model, UnixMs(now)).map(|price| price.version.as_str())
    }

    fn usage(input: u64, cached: Option<u64>, output: u64) -> Usage {
        Usage { input_tokens: input, output_tokens: output, cached_tokens: cached, model_calls: 1, ..Usage::default() }
    }

    #[test]
    fn the_most_specific_row_wins_wherever_it_stands() {
        let rows = [
            ("*", "*", 0, None, "any"),
            ("openai", "*", 0, None, "engine"),
            ("*", "gpt-4o*", 0, None, "short"),
            ("openai", "gpt-4o-mini*", 0, None, "long"),
            ("*", "gpt-4o-mini", 0, None, "exact"),
            ("openai", "gpt-4o-mini", 0, None, "exact of the engine"),
        ];
        let mut backwards = rows;
        backwards.reverse();
        for rows in [rows, backwards] {
            let prices = prices(&rows);
            assert_eq!(version(&prices, "openai", "gpt-4o-mini", 0), Some("exact of the engine"));
            assert_eq!(version(&prices, "other", "gpt-4o-mini", 0), Some("exact"));
            assert_eq!(version(&prices, "openai", "gpt-4o-mini-x", 0), Some("long"));
            assert_eq!(version(&prices, "other", "gpt-4o-mini-x", 0), Some("short"));
            assert_eq!(version(&prices, "openai", "gpt-5", 0), Some("engine"));
            assert_eq!(version(&prices, "other", "gpt-5", 0), Some("any"));
        }
    }

    #[test]
    fn a_later_beginning_wins_and_then_a_later_row() {
        let rows = [("*", "m", 5, None, "new"), ("*", "m", 1, None, "old"), ("*", "m", 5, None, "newer")];
        let prices = prices(&rows);
        assert_eq!(version(&prices, "e", "m", 4 * DAY), Some("old"));
        assert_eq!(version(&prices, "e", "m", 5 * DAY), Some("newer"));
    }

    #[test]
    fn a_price_holds_from_its_first_instant_until_before_its_last() {
        let prices = prices(&[("*", "m", 1, Some(2), "one"), ("*", "m", 2, Some(3), "two")]);
        let at = |now| version(&prices, "e", "m", now);
        assert_eq!([at(DAY - 1), at(DAY), at(2 * DAY - 1)], [None, Some("one"), Some("one")]);
        assert_eq!([at(2 * DAY), at(3 * DAY - 1), at(3 * DAY)], [Some("two"), Some("two"), None]);
    }

    #[test]
    fn a_model_is_found_in_any_case_and_an_engine_in_its_own() {
        let prices = prices(&[("openai", "GPT-x*", 0, None, "p"), ("openai", "O1", 0, None, "o")]);
        assert_eq!(version(&prices, "openai", "gpt-X", 0), Some("p"));
        assert_eq!(version(&prices, "openai", "gpt-x-1", 0), Some("p"));
        assert_eq!(version(&prices, "openai", "o1", 0), Some("o"));
        for unknown in ["gpt", "o1-mini", "", "gpt-☃"] {
            assert_eq!(version(&prices, "openai", unknown, 0), None, "{unknown}");
        }
        assert_eq!(version(&prices, "OpenAI", "o1", 0), None);
    }

    #[test]
    fn every_token_is_charged_to_the_last_digit() {
        let price = Price { version: "v".into(), input: 3_625, cached_input: Some(1), output: 870_001 };
        let cost = price.cost(&usage(10, Some(7), 3));
        assert_eq!(cost.pico_usd, 3 * 3_625 + 7 + 3 * 870_001);
        assert_eq!(cost.without_cache_pico_usd, 10 * 3_625 + 3 * 870_001);
        assert_eq!(cost.savings_pico_usd(), 7 * 3_624);
        // A million tokens cost what the price says, in micro-dollars.
        assert_eq!(price.cost(&usage(1_000_000, None, 0)).pico_usd, 3_625 * (PICO / 1_000_000));
    }

    #[test]
    fn what_was_cached_is_cheaper_and_never_more_than_the_input() {
        let price = price("v");
        let [all, half, none] = [Some(100), Some(50), Some(0)].map(|cached| price.cost(&usage(100, cached, 1)));
        assert!(all.pico_usd < half.pico_usd && half.pico_usd < none.pico_usd);
        assert_eq!(none, price.cost(&usage(100, None, 1)));
        assert_eq!(none.pico_usd, none.without_cache_pico_usd);
        assert_eq!(price.cost(&usage(100, Some(1_000), 1)), all);
        let flat = Price { cached_input: None, ..price };
        assert_eq!(flat.cost(&usage(100, Some(100), 1)), none);
    }

    #[test]
    fn what_no_number_can_hold_is_the_greatest_number() {
        let price = Price { version: "v".into(), input: u64::MAX, cached_input: Some(u64::MAX), output: u64::MAX };
        let cost = price.cost(&usage(u64::MAX, Some(5), u64::MAX));
        assert_eq!((cost.pico_usd, cost.without_cache_pico_usd), (u64::MAX, u64::MAX));
        let mut sums = Totals::of_call(&usage(u64::MAX, Some(5), u64::MAX), Some(cost));
        sums.add(&sums.clone());
        assert_eq!((sums.pico_usd, sums.input_tokens, sums.model_calls), (u64::MAX, u64::MAX, 2));
    }

    #[test]
    fn unknown_costs_stay_unknown_beside_known_ones() {
        let unpriced = Totals::of_call(&usage(5, None, 5), None);
        assert_eq!((unpriced.unpriced_calls, unpriced.cost()), (1, None));
        let silent = Usage { model_calls: 1, unreported_calls: 1, ..Usage::default() };
        let unreported = Totals::of_call(&silent, None);
        assert_eq!((unreported.unpriced_calls, unreported.unreported_calls, unreported.cost()), (0, 1, None));
        let used = usage(5, None, 5);
        let priced = Totals::of_call(&used, Some(price("v").cost(&used)));
        let mut sums = unpriced;
        sums.add(&unreported);
        assert_eq!(sums.cost(), None);
        sums.add(&priced);
        assert_eq!(sums.cost(), priced.cost());
        assert_eq!((sums.model_calls, sums.unpriced_calls, sums.unreported_calls), (3, 1, 1));
        // Free is known, and so is nothing at all.
        assert_eq!(Totals::of_call(&used, Some(Cost::default())).cost(), Some(Cost::default()));
        assert_eq!(Totals::default().cost(), Some(Cost::default()));
    }

    #[test]
    fn the_hit_rate_is_that_of_the_calls_that_reported_it() {
        let mut sums = Totals::of_call(&usage(1_000, None, 0), None);
        assert_eq!((sums.cache_hit_rate(), sums.cache_miss_tokens()), (None, 0));
        sums.add(&Totals::of_call(&usage(80, Some(60), 0), None));
        assert_eq!((sums.cache_hit_rate(), sums.cache_miss_tokens()), (Some(0.75), 20));
        let liar = Totals::of_call(&usage(10, Some(99), 0), None);
        assert_eq!((liar.cache_hit_rate(), liar.cache_miss_tokens()), (Some(1.0), 0));
    }

    proptest! {
        #[test]
        fn the_sum_of_the_costs_is_the_cost_of_the_sum(
            calls in prop::collection::vec((0_u64..1 << 30, 0_u64..1 << 30, 0_u64..1 << 30), 1..9),
        ) {
            let price = price("v");
            let (mut sums, mut all) = (Totals::default(), Usage::default());
            for (input, cached, output) in calls {
                let used = usage(input, Some(cached.min(input)), output);
                sums.add(&Totals::of_call(&used, Some(price.cost(&used))));
                all.add(&used);
            }
            prop_assert_eq!(sums.cost(), Some(price.cost(&all)));
        }
    }
}
