//! What a bench says: a row of a table for whoever watches it, and the same as a line of JSON for [the page](../page).
//!
//! `BENCH_LINES` names the file that lines are added to; without it there are only rows.

use std::{fs::OpenOptions, io::Write as _};

use serde_json::{Value, json};

/// What a figure is to be.
enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    fn is_met(&self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= *bar,
            Self::AtMost(bar) => value <= *bar,
        }
    }

    fn sign(&self) -> (&'static str, f64) {
        match self {
            Self::AtLeast(bar) => ("≥", *bar),
            Self::AtMost(bar) => ("≤", *bar),
        }
    }
}

/// A figure with its bar.
pub fn bar(what: &str, value: f64, unit: &str, bar: f64, at_least: bool) {
    say(what, value, unit, Some(if at_least { Bar::AtLeast(bar) } else { Bar::AtMost(bar) }));
}

/// A figure that explains others.
pub fn figure(what: &str, value: f64, unit: &str) {
    say(what, value, unit, None);
}

pub fn head(title: &str) {
    println!("\n### {title}\n\n| what | value | bar | |\n| --- | --- | --- | --- |");
}

fn say(what: &str, value: f64, unit: &str, bar: Option<Bar>) {
    let met = bar.as_ref().map(|bar| bar.is_met(value));
    let sign = bar.as_ref().map(Bar::sign);
    match (sign, met) {
        (Some((sign, bar)), Some(met)) => {
            let met = if met { "met" } else { "**missed**" };
            println!("| {what} | {value:.3}{unit} | {sign} {bar}{unit} | {met} |");
        }
        _ => println!("| {what} | {value:.1}{unit} | | |"),
    }
    let bar = sign.map_or(Value::Null, |(sign, value)| json!({ "sign": sign, "value": value }));
    let bench = env!("CARGO_CRATE_NAME");
    add(&json!({ "bench": bench, "what": what, "value": value, "unit": unit, "bar": bar, "met": met }));
}

fn add(line: &Value) {
    let Some(path) = std::env::var_os("BENCH_LINES") else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    // In one write: a bench may have children that say something too.
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).expect("the lines can be written");
}
