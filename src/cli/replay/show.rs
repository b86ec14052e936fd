//! What a replay came to, for people.

use std::path::Path;

use raddle_actors::redrive::{Difference, Report, Trace};
use serde_json::Value;

use crate::{
    cli::{Failure, plain, say},
    replay::policy::{Otherwise, Rejudged},
};

/// Threads that are listed one by one.
const LISTED: usize = 20;
/// Fields of one event that are shown beside each other.
const FIELDS: usize = 8;
/// Characters of a value that are shown.
const WIDTH: usize = 160;

/// `counted` is what of a thread counts as an event.
pub fn report(path: &Path, trace: &Trace, report: &Report, counted: &str) -> Result<(), Failure> {
    let Report { replicas, told, refused, skipped, events, seconds, unloaded, watched, differing, .. } = report;
    let recorded: usize = report.threads.iter().map(|thread| thread.lines).sum();
    let at = serde_json::to_value(trace.header.recorded_at).ok();
    let at = at.as_ref().and_then(Value::as_str).unwrap_or_default();
    let what = if path == Path::new("-") { "the trace".to_owned() } else { path.display().to_string() };
    say(&format!(
        "{what}: {} in {}, recorded at {at}",
        many(report.threads.len() as u64, "thread"),
        many(recorded as u64, "line")
    ))?;
    let rate = *told as f64 / seconds.max(0.001);
    say(&format!(
        "told again to {}: {} in {seconds:.1} s ({rate:.0}/s), {}, threads left memory {unloaded} times",
        many(*replicas, "replica"),
        many(*told, "line"),
        format_args!("{events} {counted}"),
    ))?;
    say(&format!(
        "{refused} lines were refused again, {skipped} passed over because of a quota; {}",
        match watched {
            0 => "nobody watched".to_owned(),
            1 => "1 replica was watched".to_owned(),
            watched => format!("{watched} replicas were watched"),
        }
    ))?;
    match report.equal {
        true => say(&format!("equal: all of {}", many(*replicas, "replica")))?,
        false => say(&format!("DIFFERENT: {differing} of {}", many(*replicas, "replica")))?,
    }
    // Those that differ first.
    let mut threads: Vec<_> = report.threads.iter().collect();
    threads.sort_by_key(|thread| thread.differing == 0);
    for thread in threads.iter().take(LISTED) {
        let word = match (thread.equal, thread.differing) {
            (equal, 0) => format!("{equal} equal"),
            (equal, differing) => format!("{differing} different, {equal} equal"),
        };
        say(&format!(
            "  {}  {}  {} {counted}  {word}",
            thread.thread,
            &thread.digest[..12.min(thread.digest.len())],
            thread.events
        ))?;
    }
    if threads.len() > LISTED {
        say(&format!("  and {} more", threads.len() - LISTED))?;
    }
    for difference in &report.differences {
        say("")?;
        for line in told_of(difference) {
            say(&plain(&line))?;
        }
    }
    Ok(())
}

/// Calls about which something else is decided, and the first of each thread in full.
pub fn rejudged(rejudged: &Rejudged) -> Result<(), Failure> {
    let Rejudged { calls, unknown, different } = rejudged;
    let of = many(*calls, "call");
    match different.is_empty() {
        true if *unknown == 0 => say(&format!("the same is decided about all of {of}"))?,
        true => say(&format!("the same is decided about {} of {of}", calls - unknown))?,
        false => say(&format!("DIFFERENT: something else is decided about {} of {of}", different.len()))?,
    }
    if *unknown > 0 {
        say(&format!("{unknown} were of tools that are not configured here (--config): nobody can say"))?;
    }
    let mut seen = std::collections::BTreeSet::new();
    for otherwise in different.iter().filter(|otherwise| seen.insert(otherwise.thread.clone())) {
        let Otherwise { thread, line, tool, arguments, was, is } = otherwise;
        say("")?;
        say(&plain(&format!("{thread}, line {line} of the trace: {tool} {}", cut(arguments))))?;
        say(&plain(&format!("  was {was}")))?;
        say(&plain(&format!("  is  {is}")))?;
    }
    Ok(())
}

fn many(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The place, and of two events only what differs in them.
fn told_of(difference: &Difference) -> Vec<String> {
    let Difference { thread, replica, line, seq, what, expected, found } = difference;
    let place = [line.map(|line| format!("line {line} of the trace")), seq.map(|seq| format!("event {seq}"))];
    let place: String = place.into_iter().flatten().map(|place| format!(", {place}")).collect();
    let mut lines = vec![format!("replica {replica} of {thread}{place}: {what}")];
    let json = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    match (json(expected), json(found)) {
        (Some(expected), Some(found)) => {
            if let Some(name) = expected["event"].as_str().filter(|name| found["event"] == *name) {
                lines.push(format!("  in {name}:"));
            }
            let mut fields = Vec::new();
            differing(String::new(), &expected, &found, &mut fields);
            for (field, expected, found) in fields.iter().take(FIELDS) {
                lines.push(format!("  {field}"));
                lines.push(format!("    expected {}", short(expected)));
                lines.push(format!("    found    {}", short(found)));
            }
            if fields.len() > FIELDS {
                lines.push(format!("  and {} more fields", fields.len() - FIELDS));
            }
        }
        _ => {
            let text = |text: &Option<String>| text.as_deref().map_or_else(|| "nothing".to_owned(), cut);
            lines.push(format!("  expected {}", text(expected)));
            lines.push(format!("  found    {}", text(found)));
        }
    }
    lines
}

/// The fields in which two values differ, by their names from the top.
fn differing(name: String, expected: &Value, found: &Value, fields: &mut Vec<(String, Option<Value>, Option<Value>)>) {
    match (expected, found) {
        (Value::Object(of), Value::Object(other)) => {
            let keys = of.keys().chain(other.keys().filter(|key| !of.contains_key(*key)));
            for key in keys {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                match (of.get(key), other.get(key)) {
                    (Some(expected), Some(found)) => differing(name, expected, found, fields),
                    (expected, found) => fields.push((name, expected.cloned(), found.cloned())),
                }
            }
        }
        (expected, found) if expected == found => {}
        (expected, found) => fields.push((name, Some(expected.clone()), Some(found.clone()))),
    }
}

fn short(value: &Option<Value>) -> String {
    value.as_ref().map_or_else(|| "nothing".to_owned(), |value| cut(&value.to_string()))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_events_only_what_differs_is_shown() {
        let event = |detail: &str| {
            format!(r#"{{"event":"item.completed","payload":{{"item":{{"detail":"{detail}","id":"item_#1"}}}}}}"#)
        };
        let difference = Difference {
            thread: "default/thr_1".into(),
            replica: 7,
            line: Some(12),
            seq: Some(9),
            what: "the first event that differs",
            expected: Some(event("a")),
            found: Some(event("b")),
        };
        let told = [
            "replica 7 of default/thr_1, line 12 of the trace, event 9: the first event that differs",
            "  in item.completed:",
            "  payload.item.detail",
            "    expected \"a\"",
            "    found    \"b\"",
        ];
        assert_eq!(told_of(&difference), told);
        let missing = Difference { found: None, ..difference };
        assert_eq!(told_of(&missing)[2], "  found    nothing");
    }
}
