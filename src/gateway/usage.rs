//! What was spent: the report, as it travels.

use std::{fmt, sync::Arc};

use axum::{Json, extract::State};
use chrono::DateTime;
use raddle_actors::{GroupBy, UsageKey, UsageQuery, UsageReport};
use raddle_domain::{
    budget::{BudgetState, BudgetStatus},
    id::ThreadId,
    price::{Cost, PICO, Totals},
    time::UnixMs,
};
use serde::{Serialize, Serializer, ser::Error};
use serde_json::{Number, value::RawValue};
use utoipa::ToSchema;

use super::{
    Gateway,
    openapi::Reads,
    problem::Problem,
    request::{Caller, Params},
};
use crate::instant;

const GROUPS: [(&str, GroupBy); 4] =
    [("day", GroupBy::Day), ("model", GroupBy::Model), ("provider", GroupBy::Provider), ("thread", GroupBy::Thread)];

/// What a report's rows stand for.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase", as = UsageGroup)]
#[expect(dead_code, reason = "it only describes the parameter; `request::Params` reads it")]
pub enum Group {
    Day,
    Model,
    Provider,
    Thread,
}

/// Sums over model calls.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageFigures)]
pub struct Figures {
    turns: u64,
    /// Calls that were answered.
    model_calls: u64,
    /// Calls whose provider reported no usage: they are in no sum of tokens, and their cost is unknown.
    unreported_calls: u64,
    /// Calls whose tokens are estimates, and are in the sums: they were held to a budget, and were cut off, or their
    /// provider reported no usage. One that was cut off is not in `model_calls`.
    estimated_calls: u64,
    /// Calls with usage and without a price: their cost is unknown.
    unpriced_calls: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// Input that the provider had cached.
    cached_tokens: u64,
    /// Input that it had not, of the calls that said how much was cached.
    cache_miss_tokens: u64,
    reasoning_tokens: u64,
    /// The cached part of the input of the calls that said how much was; `null` when none did.
    #[schema(required, minimum = 0, maximum = 1)]
    cache_hit_rate: Option<f64>,
    /// What the calls with a price cost, to the last of twelve decimals; `null` when calls were made and none has one.
    #[schema(required, value_type = Option<f64>)]
    cost_usd: Option<Dollars>,
    /// The same if nothing had been cached.
    #[schema(required, value_type = Option<f64>)]
    cost_without_cache_usd: Option<Dollars>,
    #[schema(required, value_type = Option<f64>)]
    savings_usd: Option<Dollars>,
}

/// The sums of one day, model, provider or thread: of what was asked for, and named by that.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageRow)]
pub struct Row {
    /// A UTC date.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Date)]
    day: Option<String>,
    /// The engine that made the calls; beside every model, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The thread may have been deleted since.
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<ThreadId>,
    #[serde(flatten)]
    figures: Figures,
}

/// What was spent on the days from `since` to `until`, both counted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageReport)]
pub struct Report {
    /// A UTC date; `null` for the first day there is.
    #[schema(required, format = Date)]
    since: Option<String>,
    /// A UTC date; `null` for the last day there is.
    #[schema(required, format = Date)]
    until: Option<String>,
    #[schema(value_type = Group)]
    group_by: &'static str,
    totals: Figures,
    /// In the order of their keys.
    data: Vec<Row>,
}

/// Read what was spent.
///
/// Sums are kept by the whole UTC day, so `since` and `until` name the days that hold them, and both days are
/// counted. What a thread spent stays in them when it is deleted; a fork does not repeat what its parent spent.
#[utoipa::path(
    get, path = "/v1/usage", tag = "usage",
    params(
        ("since" = Option<String>, Query, description = "A date, or an RFC 3339 instant; from the first day unless given"),
        ("until" = Option<String>, Query, description = "A date, or an RFC 3339 instant; to the last day unless given"),
        ("group_by" = inline(Option<Group>), Query, description = "`day` unless given"),
    ),
    responses((status = 200, body = Report, description = "Sums, and what they are made of"), Reads),
)]
pub async fn get_usage(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Report>, Problem> {
    let (query, group) = query(&mut params)?;
    params.end()?;
    let report = gateway.runtime.usage(caller.tenant, query).await?;
    Ok(Json(Report::new(&query, group, report)))
}

/// The tenant's budgets, each in each unit in which it is given.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BudgetList)]
pub struct BudgetList {
    pub data: Vec<BudgetLine>,
}

/// How one budget stands.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BudgetStatus)]
pub struct BudgetLine {
    #[serde(flatten)]
    budget: BudgetState,
    /// What calls in flight may still take; it is not in `spent`.
    #[schema(value_type = f64)]
    reserved: Number,
    /// What is neither spent nor reserved.
    #[schema(value_type = f64)]
    left: Number,
}

/// Read what is left of the tenant's budgets.
///
/// Those of threads and turns stand in their records.
#[utoipa::path(
    get, path = "/v1/usage/budgets", tag = "usage",
    responses((status = 200, body = BudgetList, description = "Every budget of the tenant, as it stands"), Reads),
)]
pub async fn get_budgets(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    params: Params,
) -> Result<Json<BudgetList>, Problem> {
    params.end()?;
    let status = gateway.runtime.budget_status(caller.tenant).await?;
    Ok(Json(BudgetList { data: status.into_iter().map(BudgetLine::new).collect() }))
}

impl BudgetLine {
    pub fn new(BudgetStatus { state, reserved }: BudgetStatus) -> Self {
        let left = state.limit.saturating_sub(state.spent).saturating_sub(reserved);
        Self { budget: state, reserved: state.unit.number(reserved), left: state.unit.number(left) }
    }
}

fn query(params: &mut Params) -> Result<(UsageQuery, &'static str), Problem> {
    let since = at(params, "since")?;
    let until = at(params, "until")?;
    let group_by = params.word("group_by", &GROUPS)?.unwrap_or_default();
    let word = GROUPS.iter().find(|(_, group)| *group == group_by).map_or("", |(word, _)| word);
    Ok((UsageQuery { since, until, group_by }, word))
}

fn at(params: &mut Params, name: &str) -> Result<Option<UnixMs>, Problem> {
    let Some(text) = params.text(name) else { return Ok(None) };
    let why = || {
        // What happens to an offset that was not escaped deserves a word: nobody sees it.
        let hint = if text.contains(' ') { "; in a URL a `+` is written `%2B`" } else { "" };
        Problem::invalid(name, format_args!("must be {}{hint}", instant::EXPECTED))
    };
    instant::read(&text).map(Some).ok_or_else(why)
}

impl Report {
    fn new(query: &UsageQuery, group_by: &'static str, report: UsageReport) -> Self {
        let data = report.rows.into_iter().map(|(key, totals)| Row::new(key, &totals)).collect();
        let day = |at: UnixMs| date(at.0);
        let (since, until) = (query.since.map(day), query.until.map(day));
        Self { since, until, group_by, totals: Figures::new(&report.totals), data }
    }
}

impl Row {
    fn new(key: UsageKey, totals: &Totals) -> Self {
        let row = Self { day: None, provider: None, model: None, thread_id: None, figures: Figures::new(totals) };
        match key {
            UsageKey::Day(day) => Self { day: Some(date(u64::from(day) * 86_400_000)), ..row },
            UsageKey::Model { provider, model } => Self { provider: Some(provider), model: Some(model), ..row },
            UsageKey::Provider(provider) => Self { provider: Some(provider), ..row },
            UsageKey::Thread(thread) => Self { thread_id: Some(thread), ..row },
        }
    }
}

/// The UTC date of an instant.
fn date(ms: u64) -> String {
    let instant =
        i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis).unwrap_or(DateTime::<chrono::Utc>::MAX_UTC);
    instant.format("%Y-%m-%d").to_string()
}

impl Figures {
    fn new(totals: &Totals) -> Self {
        let cost = totals.cost();
        let dollars = |pico: fn(&Cost) -> u64| cost.as_ref().map(pico).map(Dollars);
        Self {
            turns: totals.turns,
            model_calls: totals.model_calls,
            unreported_calls: totals.unreported_calls,
            estimated_calls: totals.estimated_calls,
            unpriced_calls: totals.unpriced_calls,
            input_tokens: totals.input_tokens,
            output_tokens: totals.output_tokens,
            cached_tokens: totals.cached_tokens,
            cache_miss_tokens: totals.cache_miss_tokens(),
            reasoning_tokens: totals.reasoning_tokens,
            cache_hit_rate: totals.cache_hit_rate(),
            cost_usd: dollars(|cost| cost.pico_usd),
            cost_without_cache_usd: dollars(|cost| cost.without_cache_pico_usd),
            savings_usd: dollars(Cost::savings_pico_usd),
        }
    }
}

/// Pico-dollars, as a number of dollars.
///
/// A JSON number, because whoever reads it compares and adds; written from the digits of the integer and not by way
/// of a float, because the sums are exact and a reader with decimals is to get them so. Twelve decimals say a
/// pico-dollar, so nothing is rounded; zeros at the end are left out. A reader that knows only doubles gets the
/// nearest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dollars(u64);

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / PICO, self.0 % PICO);
        let decimals = format!("{rest:012}");
        match decimals.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            decimals => write!(f, "{whole}.{decimals}"),
        }
    }
}

impl Serialize for Dollars {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(S::Error::custom)?.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn json_of(value: &impl Serialize) -> Value {
        serde_json::from_slice(&serde_json::to_vec(value).unwrap()).unwrap()
    }

    fn totals() -> Totals {
        Totals {
            turns: 2,
            model_calls: 3,
            unreported_calls: 1,
            estimated_calls: 1,
            input_tokens: 1_000,
            output_tokens: 50,
            cached_tokens: 300,
            cache_reported_tokens: 400,
            reasoning_tokens: 7,
            unpriced_calls: 1,
            pico_usd: 1_234_500_000,
            without_cache_pico_usd: 2_000_000_000,
        }
    }

    #[test]
    fn dollars_are_exact_to_the_last_digit() {
        let written = |pico| serde_json::to_string(&Dollars(pico)).unwrap();
        assert_eq!(written(0), "0");
        assert_eq!(written(1), "0.000000000001");
        assert_eq!(written(PICO), "1");
        assert_eq!(written(12 * PICO + PICO / 2), "12.5");
        assert_eq!(written(100 * PICO), "100");
        // More digits than a double can tell apart.
        assert_eq!(written(9_007_199_254_740_993), "9007.199254740993");
        assert_eq!(written(u64::MAX), "18446744.073709551615");
    }

    #[test]
    fn a_row_carries_every_figure() {
        let figures = json_of(&Figures::new(&totals()));
        let expected = json!({
            "turns": 2, "model_calls": 3, "unreported_calls": 1, "estimated_calls": 1, "unpriced_calls": 1, "input_tokens": 1000,
            "output_tokens": 50, "cached_tokens": 300, "cache_miss_tokens": 100, "reasoning_tokens": 7,
            "cache_hit_rate": 0.75, "cost_usd": 0.0012345, "cost_without_cache_usd": 0.002, "savings_usd": 0.0007655,
        });
        assert_eq!(figures, expected);
    }

    #[test]
    fn a_cost_that_nobody_knows_is_null_and_not_zero() {
        let totals = Totals { unpriced_calls: 2, pico_usd: 0, without_cache_pico_usd: 0, ..totals() };
        let figures = json_of(&Figures::new(&totals));
        for name in ["cost_usd", "cost_without_cache_usd", "savings_usd"] {
            assert_eq!(figures.get(name), Some(&Value::Null), "{name}");
        }
        let nothing = json_of(&Figures::new(&Totals::default()));
        assert_eq!((&nothing["cost_usd"], &nothing["cache_hit_rate"]), (&json!(0), &Value::Null));
    }

    #[test]
    fn a_row_is_named_by_what_was_asked_for_and_by_nothing_else() {
        let names = |key| {
            let row = json_of(&Row::new(key, &Totals::default()));
            let figures = json_of(&Figures::new(&Totals::default()));
            let object = row.as_object().unwrap().iter().filter(|(name, _)| figures.get(name.as_str()).is_none());
            Value::Object(object.map(|(name, value)| (name.clone(), value.clone())).collect())
        };
        assert_eq!(names(UsageKey::Day(20_513)), json!({"day": "2026-03-01"}));
        let model = UsageKey::Model { provider: "openai".into(), model: "m".into() };
        assert_eq!(names(model), json!({"provider": "openai", "model": "m"}));
        assert_eq!(names(UsageKey::Provider("openai".into())), json!({"provider": "openai"}));
        let thread = ThreadId::from_bytes([1; 16]);
        assert_eq!(names(UsageKey::Thread(thread)), json!({"thread_id": thread.to_string()}));
    }

    #[test]
    fn days_that_were_asked_for_are_said_back_as_dates() {
        let query = UsageQuery { since: instant::read("2026-03-01T23:30:00-02:00"), ..UsageQuery::default() };
        let report = json_of(&Report::new(&query, "day", UsageReport::default()));
        assert_eq!((&report["since"], &report["until"]), (&json!("2026-03-02"), &Value::Null));
        assert_eq!((&report["group_by"], &report["data"]), (&json!("day"), &json!([])));
    }
}
