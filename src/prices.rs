//! The price file: dated prices of models, in dollars, as a person writes them.
//!
//! ```toml
//! version = "2026-03"                # shown with every price; the file's name unless given
//! currency = "USD"                   # the only one
//!
//! [[price]]
//! engine = "openai"                  # or "*"
//! model = "gpt-4.1-mini*"            # a `*` at the end stands for any rest
//! from = 2026-03-01                  # the first instant at which it holds
//! until = 2026-06-01                 # the first at which it does not; open unless given
//! input = "0.40"                     # USD per million tokens, at most six decimals
//! cached_input = 0.10                # as `input` unless given
//! output = "1.60"
//! ```
//!
//! Prices are read digit by digit, never through a float. Pure: a text in, [`Prices`] or a sentence out; the sentence
//! names the line. A table is built in, see `prices.toml`; a file replaces it.

use std::ops::Range;

use raddle_domain::{
    price::{Price, Prices, Row},
    time::UnixMs,
};
use serde::Deserialize;
use toml::{Spanned, Value};

use crate::instant;

/// The table of this build.
const BUILT_IN: &str = include_str!("prices.toml");

/// Dollars per million tokens beyond which a price is taken for a slip.
const MOST_USD: u64 = 1_000_000;
/// Micro-dollars in a dollar, and the decimals that they are.
const MICRO: u64 = 1_000_000;
const DECIMALS: usize = 6;

/// Why a price file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", line.map(|line| format!("line {line}: ")).unwrap_or_default())]
pub struct BadPrices {
    pub line: Option<usize>,
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: Option<String>,
    currency: Option<Spanned<String>>,
    #[serde(default)]
    price: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    engine: Spanned<String>,
    model: Spanned<String>,
    from: Spanned<Value>,
    until: Option<Spanned<Value>>,
    input: Spanned<Value>,
    cached_input: Option<Spanned<Value>>,
    output: Spanned<Value>,
}

/// The prices of this build.
pub fn built_in() -> Result<Prices, BadPrices> {
    parse("built-in", BUILT_IN)
}

/// Reads a price file; `name` is the version of one that names none.
pub fn parse(name: &str, text: &str) -> Result<Prices, BadPrices> {
    let source = Source(text);
    let file: File = toml::from_str(text).map_err(|err| BadPrices {
        line: err.span().map(|span| source.line(span.start)),
        why: err.message().to_owned(),
    })?;
    if let Some(currency) = file.currency.filter(|currency| currency.as_ref() != "USD") {
        return Err(source.bad(currency.span(), "`currency` must be USD"));
    }
    let version = file.version.as_deref().unwrap_or(name);
    let mut rows: Vec<Row> = Vec::with_capacity(file.price.len());
    for (number, entry) in (1_usize..).zip(file.price) {
        let span = entry.span();
        let row = source.row(format!("{version}#{number}"), entry.into_inner())?;
        let same = |other: &Row| {
            other.from == row.from && other.engine == row.engine && other.model.eq_ignore_ascii_case(&row.model)
        };
        if let Some(other) = rows.iter().position(same) {
            let why = format!("price {number} has the engine, the model and the `from` of price {}", other + 1);
            return Err(source.bad(span, why));
        }
        rows.push(row);
    }
    Ok(Prices::new(rows))
}

/// The text of a file, to say where in it something stands.
struct Source<'a>(&'a str);

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.0.get(..at).unwrap_or_default().matches('\n').count()
    }

    fn bad(&self, at: Range<usize>, why: impl Into<String>) -> BadPrices {
        BadPrices { line: Some(self.line(at.start)), why: why.into() }
    }

    fn row(&self, version: String, entry: Entry) -> Result<Row, BadPrices> {
        for (field, text) in [("engine", &entry.engine), ("model", &entry.model)] {
            if text.as_ref().trim().is_empty() {
                return Err(self.bad(text.span(), format!("`{field}` is blank")));
            }
        }
        let model = entry.model.as_ref();
        if model.strip_suffix('*').unwrap_or(model).contains('*') {
            return Err(self.bad(entry.model.span(), "`model` may hold a `*` at its end only"));
        }
        let from = self.instant("from", &entry.from)?;
        let until = entry.until.as_ref().map(|until| self.instant("until", until)).transpose()?;
        if let (Some(span), Some(until)) = (entry.until.as_ref().map(Spanned::span), until)
            && until <= from
        {
            return Err(self.bad(span, "`until` is not after `from`"));
        }
        let input = self.micro_usd("input", &entry.input)?;
        let cached_input = entry.cached_input.as_ref().map(|cached| self.micro_usd("cached_input", cached));
        let cached_input = cached_input.transpose()?;
        if let (Some(span), Some(cached)) = (entry.cached_input.as_ref().map(Spanned::span), cached_input)
            && cached > input
        {
            return Err(self.bad(span, "`cached_input` is more than `input`"));
        }
        let output = self.micro_usd("output", &entry.output)?;
        let price = Price { version, input, cached_input, output };
        Ok(Row { engine: entry.engine.into_inner(), model: entry.model.into_inner(), from, until, price })
    }

    fn instant(&self, field: &str, value: &Spanned<Value>) -> Result<UnixMs, BadPrices> {
        let read = match value.as_ref() {
            Value::String(text) => instant::read(text),
            Value::Datetime(datetime) => instant::read(&datetime.to_string()),
            _ => None,
        };
        read.ok_or_else(|| self.bad(value.span(), format!("`{field}` must be {}", instant::EXPECTED)))
    }

    fn micro_usd(&self, field: &str, value: &Spanned<Value>) -> Result<u64, BadPrices> {
        let read = match value.as_ref() {
            Value::String(text) => micro_usd(text),
            // A number as it is written: what became of it in binary is not looked at.
            Value::Integer(_) | Value::Float(_) => self.0.get(value.span()).and_then(micro_usd),
            _ => None,
        };
        let why = || {
            format!(
                "`{field}` must be dollars per million tokens, such as 2.50: at most {DECIMALS} decimals, \
                 at most {MOST_USD}"
            )
        };
        read.ok_or_else(|| self.bad(value.span(), why()))
    }
}

/// Dollars in decimal digits as micro-dollars. `None` for anything else, and for what micro-dollars cannot say.
fn micro_usd(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > DECIMALS {
        return None;
    }
    let whole: u64 = whole.parse().ok().filter(|whole| *whole <= MOST_USD)?;
    let micro: u64 = format!("{fraction:0<DECIMALS$}").parse().ok()?;
    Some(whole * MICRO + micro).filter(|all| *all <= MOST_USD * MICRO)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "[[price]]\nengine = \"e\"\nmodel = \"m\"\nfrom = 2026-01-01\ninput = \"2\"\noutput = 3\n";

    fn at(day: &str) -> UnixMs {
        instant::read(day).unwrap()
    }

    fn refused(text: &str) -> String {
        parse("f", text).unwrap_err().to_string()
    }

    #[test]
    fn the_built_in_table_can_be_read_and_knows_the_offline_model() {
        let prices = built_in().unwrap();
        let now = at("2026-01-01");
        let free = prices.at("scripted", "scripted", now).unwrap();
        assert_eq!((free.input, free.cached_input, free.output), (0, None, 0));
        let mini = prices.at("openai", "gpt-4.1-mini", now).unwrap();
        assert_eq!((mini.input, mini.cached_input, mini.output), (400_000, Some(100_000), 1_600_000));
        let o3 = |day| prices.at("openai", "o3", at(day)).map(|price| price.output);
        assert_eq!([o3("2025-04-15"), o3("2025-06-09")], [None, Some(40_000_000)]);
        assert_eq!(o3("2025-06-10"), Some(8_000_000));
        for unknown in ["gpt-4o-audio-preview", "o1-pro", "qwen3"] {
            assert_eq!(prices.at("openai", unknown, now), None, "{unknown}");
        }
    }

    #[test]
    fn a_price_says_which_row_of_which_table_it_is() {
        let version =
            |text: &str| parse("prices.toml", text).unwrap().at("e", "m", at("2026-01-01")).unwrap().version.clone();
        assert_eq!(version(ROW), "prices.toml#1");
        let other = ROW.replace("\"m\"", "\"x\"");
        assert_eq!(version(&format!("version = \"2026-03\"\n{other}{ROW}")), "2026-03#2");
    }

    #[test]
    fn dollars_are_read_digit_by_digit() {
        let read = ["0", "2", "2.50", "0.0145", "0.003625", "0.1", "0.3", "0.000001", "1000000", "007", "1.2500000"];
        let micro =
            [0, 2_000_000, 2_500_000, 14_500, 3_625, 100_000, 300_000, 1, 1_000_000_000_000, 7_000_000, 1_250_000];
        assert_eq!(read.map(micro_usd), micro.map(Some));
        let never = ["", ".", "1.", ".5", "-1", "+1", "1e3", "1_000", "1,5", "0.0000001", "1000000.000001", "nan", "٣"];
        assert_eq!(never.map(micro_usd), [None; 13]);
    }

    #[test]
    fn a_number_is_as_good_as_a_text() {
        for written in ["\"0.0145\"", "0.0145", "0.014500"] {
            let prices = parse("f", &ROW.replace("\"2\"", written)).unwrap();
            assert_eq!(prices.at("e", "m", at("2026-01-01")).unwrap().input, 14_500, "{written}");
        }
        // Binary would round this to 0.1.
        assert!(refused(&ROW.replace("\"2\"", "0.1000000000000000055")).starts_with("line 5: `input` must be"));
    }

    #[test]
    fn dates_are_written_with_quotes_or_without() {
        for written in ["2026-01-01", "\"2026-01-01\"", "2026-01-01T00:00:00Z", "\"2026-01-01T02:00:00+02:00\""] {
            let prices = parse("f", &ROW.replace("2026-01-01", written)).unwrap();
            let holds = |at| prices.at("e", "m", at).is_some();
            assert!(holds(at("2026-01-01")) && !holds(UnixMs(at("2026-01-01").0 - 1)), "{written}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let with = |line: &str| refused(&format!("{ROW}{line}\n"));
        let instead = |old: &str, new: &str| refused(&ROW.replace(old, new));
        assert_eq!(with("until = 2026-01-01"), "line 7: `until` is not after `from`");
        assert_eq!(with("cached_input = 2.000001"), "line 7: `cached_input` is more than `input`");
        assert_eq!(instead("\"e\"", "\" \""), "line 2: `engine` is blank");
        assert_eq!(instead("\"m\"", "\"*-m\""), "line 3: `model` may hold a `*` at its end only");
        assert!(instead("2026-01-01", "2026-01-01T00:00:00").starts_with("line 4: `from` must be a date"));
        assert!(instead("2026-01-01", "7").starts_with("line 4: `from` must be a date"));
        assert!(instead("\"2\"", "-2").starts_with("line 5: `input` must be dollars"));
        assert!(instead("3", "\"three\"").starts_with("line 6: `output` must be dollars"));
        assert!(with("cached_input = true").starts_with("line 7: `cached_input` must be dollars"));
        assert!(with("input_cached = 1").starts_with("line 7: unknown field `input_cached`"));
        assert_eq!(instead("output = 3\n", ""), "line 1: missing field `output`");
        assert_eq!(refused(&format!("currency = \"EUR\"\n{ROW}")), "line 1: `currency` must be USD");
        assert!(refused("[[price]\n").starts_with("line 1: "));
        assert!(refused("prices = []").starts_with("line 1: unknown field `prices`"));
        let twice = format!("{ROW}{}", ROW.replace("\"m\"", "\"M\""));
        assert_eq!(refused(&twice), "line 7: price 2 has the engine, the model and the `from` of price 1");
    }

    #[test]
    fn a_file_without_rows_knows_no_price() {
        assert_eq!(parse("f", "").unwrap(), Prices::default());
    }
}
