//! `raddle usage`: what was spent.

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{Failure, Remote, plain, say};

/// Both days are counted, in UTC.
#[derive(Debug, Args)]
pub struct Usage {
    /// The first day: a date, or an RFC 3339 instant of that day
    #[arg(long, value_name = "DAY")]
    since: Option<String>,
    /// The last day
    #[arg(long, value_name = "DAY")]
    until: Option<String>,
    /// One row for each of these
    #[arg(long, value_enum, default_value_t = By::Day)]
    by: By,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Day,
    Model,
    Provider,
    Thread,
}

impl By {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Model => "model",
            Self::Provider => "provider",
            Self::Thread => "thread",
        }
    }
}

/// A report, as far as it is shown.
#[derive(Deserialize)]
struct Report {
    totals: Row,
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    day: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    thread_id: Option<String>,
    turns: u64,
    model_calls: u64,
    unreported_calls: u64,
    unpriced_calls: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    cache_hit_rate: Option<f64>,
    // To be looked at; whoever adds up reads the JSON.
    cost_usd: Option<f64>,
    savings_usd: Option<f64>,
}

/// The tenant's budgets, as far as they are shown.
#[derive(Deserialize)]
struct Budgets {
    data: Vec<BudgetLine>,
}

#[derive(Deserialize)]
struct BudgetLine {
    window: String,
    unit: String,
    limit: f64,
    spent: f64,
    left: f64,
    resets_at: Option<String>,
}

impl BudgetLine {
    fn line(&self) -> String {
        let amount = |amount: f64| match self.unit.as_str() {
            "usd" => dollars(Some(amount)),
            _ => format!("{amount} tokens"),
        };
        let [spent, limit, left] = [self.spent, self.limit, self.left].map(amount);
        let reset = self.resets_at.as_ref().map(|at| format!(", until {}", plain(at))).unwrap_or_default();
        format!("budget ({}): {spent} of {limit} spent, {left} left{reset}", plain(&self.window))
    }
}

impl Usage {
    pub async fn run(self) -> Result<(), Failure> {
        let Self { since, until, by, remote } = self;
        let mut query = vec![("group_by", by.as_str().to_owned())];
        query.extend(since.map(|since| ("since", since)));
        query.extend(until.map(|until| ("until", until)));
        let client = remote.client()?;
        let report = client.usage(&query).await?;
        if remote.json {
            // As it came: parsed, the money would lose digits.
            return say(report.get());
        }
        let report = serde_json::from_str(report.get())
            .map_err(|err| Failure::Failed(format!("the answer is not as expected: {err}")))?;
        lines(by, &report).iter().try_for_each(|line| say(line))?;
        let budgets: Budgets = serde_json::from_str(client.budgets().await?.get())
            .map_err(|err| Failure::Failed(format!("the answer is not as expected: {err}")))?;
        budgets.data.iter().map(BudgetLine::line).try_for_each(|line| say(&line))
    }
}

/// The report as a table, and a word about what its costs leave out.
fn lines(by: By, report: &Report) -> Vec<String> {
    let head = ["turns", "calls", "input", "cached", "hits", "output", "cost", "saved"].map(str::to_owned);
    let mut table = vec![(by.as_str().to_owned(), head)];
    table.extend(report.data.iter().map(|row| (row.key(), row.cells())));
    table.push(("total".to_owned(), report.totals.cells()));
    let name_width = table.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..8).map(|at| table.iter().map(|(_, cells)| cells[at].len()).max().unwrap_or(0)).collect();
    let line = |(name, cells): &(String, [String; 8])| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{name:<name_width$}{}", cells.collect::<String>())
    };
    let mut lines: Vec<_> = table.iter().map(line).collect();
    if report.totals.unknown() > 0 {
        let (calls, unpriced) = (report.totals.unknown(), report.totals.unpriced_calls);
        lines.push(format!("* without {calls} calls whose cost is not known: {unpriced} of them have no price"));
    }
    lines
}

impl Row {
    fn key(&self) -> String {
        let parts = [&self.day, &self.provider, &self.model, &self.thread_id];
        let parts: Vec<_> = parts.into_iter().flatten().map(|part| plain(part)).collect();
        parts.join("/")
    }

    /// Calls whose cost is not known.
    const fn unknown(&self) -> u64 {
        self.unpriced_calls.saturating_add(self.unreported_calls)
    }

    fn cells(&self) -> [String; 8] {
        let mark = if self.unknown() > 0 { "*" } else { "" };
        [
            self.turns.to_string(),
            self.model_calls.to_string(),
            self.input_tokens.to_string(),
            self.cached_tokens.to_string(),
            self.cache_hit_rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.0}%", rate * 100.0)),
            self.output_tokens.to_string(),
            format!("{}{mark}", dollars(self.cost_usd)),
            dollars(self.savings_usd),
        ]
    }
}

/// As many digits as a person wants to see.
fn dollars(amount: Option<f64>) -> String {
    match amount {
        None => "unknown".to_owned(),
        Some(0.0) => "$0".to_owned(),
        Some(amount) if amount < 0.0001 => "<$0.0001".to_owned(),
        Some(amount) if amount < 0.01 => format!("${amount:.4}"),
        Some(amount) => format!("${amount:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn row(key: Value, cost: Option<f64>, unpriced_calls: u64) -> Value {
        let mut row = json!({
            "turns": 2, "model_calls": 3, "unreported_calls": 0, "unpriced_calls": unpriced_calls,
            "input_tokens": 1000, "output_tokens": 50, "cached_tokens": 300, "cache_miss_tokens": 100,
            "reasoning_tokens": 7, "cache_hit_rate": 0.75, "cost_usd": cost, "cost_without_cache_usd": cost,
            "savings_usd": cost.map(|_| 0),
        });
        row.as_object_mut().unwrap().extend(key.as_object().unwrap().clone());
        row
    }

    #[test]
    fn a_table_is_aligned_and_says_what_it_leaves_out() {
        let known = row(json!({"provider": "openai", "model": "gpt"}), Some(12.345), 0);
        let unknown = row(json!({"provider": "openai", "model": "qwen"}), None, 3);
        let report = json!({"totals": row(json!({}), Some(12.345), 3), "data": [known, unknown]});
        let lines = lines(By::Model, &serde_json::from_value(report).unwrap());
        assert_eq!(
            lines,
            [
                "model        turns  calls  input  cached  hits  output      cost    saved",
                "openai/gpt       2      3   1000     300   75%      50    $12.35       $0",
                "openai/qwen      2      3   1000     300   75%      50  unknown*  unknown",
                "total            2      3   1000     300   75%      50   $12.35*       $0",
                "* without 3 calls whose cost is not known: 3 of them have no price",
            ]
        );
    }

    #[test]
    fn a_budget_is_a_line_in_its_own_unit() {
        let line = |budget: Value| serde_json::from_value::<BudgetLine>(budget).unwrap().line();
        let tokens = json!({"window": "day", "unit": "tokens", "limit": 1000, "spent": 300, "left": 600,
            "resets_at": "2026-03-02T00:00:00.000Z"});
        let day = "budget (day): 300 tokens of 1000 tokens spent, 600 tokens left, until 2026-03-02T00:00:00.000Z";
        assert_eq!(line(tokens), day);
        let usd = json!({"window": "total", "unit": "usd", "limit": 5.5, "spent": 1.25, "left": 4.25});
        assert_eq!(line(usd), "budget (total): $1.25 of $5.50 spent, $4.25 left");
    }

    #[test]
    fn small_amounts_are_not_shown_as_nothing() {
        let shown = [None, Some(0.0), Some(0.000_001), Some(0.001_25), Some(0.01), Some(1234.5)].map(dollars);
        assert_eq!(shown, ["unknown", "$0", "<$0.0001", "$0.0013", "$0.01", "$1234.50"]);
    }
}
