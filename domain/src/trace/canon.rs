//! What of a log is the same whenever the same was done: ids by the order in which they come up, no times, no places.
//!
//! Two logs with equal canons came of the same inputs under the same rules, however their text was cut into deltas.

use std::{collections::HashMap, fmt::Write as _};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    event::{Event, Record},
    id::Seq,
};

/// What is made of the text that streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deltas {
    /// Neighbouring pieces of one item are one. What came between them counts.
    Joined,
    /// Items count as they end: what came while they grew may come at another moment.
    Left,
}

/// A log in its canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Canon {
    lines: Vec<(Seq, String)>,
}

/// The first place in which two canons differ; `None` is the end of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference<'a> {
    /// Canonical events before it, which are equal.
    pub after: usize,
    /// The seq and the canonical JSON.
    pub expected: Option<(Seq, &'a str)>,
    pub found: Option<(Seq, &'a str)>,
}

impl Canon {
    pub fn of<'a>(log: impl IntoIterator<Item = &'a Record>, deltas: Deltas) -> Self {
        let mut names = Names::default();
        let mut lines = Vec::new();
        // A delta that may grow.
        let mut growing: Option<Record> = None;
        for record in log {
            match (&record.event, growing.as_mut().map(|grown| &mut grown.event)) {
                (Event::ItemDelta(_), _) if deltas == Deltas::Left => {}
                (Event::ItemDelta(delta), Some(Event::ItemDelta(grown))) if grown.item == delta.item => {
                    grown.delta.push_str(&delta.delta);
                }
                (event, _) => {
                    lines.extend(growing.take().map(|grown| names.line(&grown)));
                    match event {
                        Event::ItemDelta(_) => growing = Some(record.clone()),
                        _ => lines.push(names.line(record)),
                    }
                }
            }
        }
        lines.extend(growing.map(|grown| names.line(&grown)));
        Self { lines }
    }

    /// Canonical events.
    pub const fn len(&self) -> usize {
        self.lines.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// SHA-256 over the canonical events, one on a line; lower-case hex.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (_, line) in &self.lines {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
        hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// Where `found` begins to differ from this one.
    pub fn first_difference<'a>(&'a self, found: &'a Self) -> Option<Difference<'a>> {
        let at = |of: &'a Self, index: usize| of.lines.get(index).map(|(seq, line)| (*seq, line.as_str()));
        let after = self.lines.iter().zip(&found.lines).take_while(|((_, ours), (_, theirs))| ours == theirs).count();
        let (expected, theirs) = (at(self, after), at(found, after));
        (expected.is_some() || theirs.is_some()).then_some(Difference { after, expected, found: theirs })
    }
}

/// Ids by the order in which they came up.
#[derive(Default)]
struct Names {
    known: HashMap<Uuid, usize>,
}

impl Names {
    fn line(&mut self, record: &Record) -> (Seq, String) {
        let mut json = serde_json::to_value(record).expect("a record is JSON");
        // A build may keep keys in the order in which they came; ids are counted and written in one order all the same.
        json.sort_all_objects();
        self.plain(&mut json);
        json.sort_all_objects();
        (record.seq, json.to_string())
    }

    /// Takes times and places out of a record, and renames what it names.
    fn plain(&mut self, json: &mut Value) {
        match json {
            Value::Object(fields) => {
                fields.retain(|key, _| !is_moment(key));
                for (key, value) in fields {
                    if is_foreign(key) { self.renamed(value) } else { self.plain(value) }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.plain(value)),
            other => self.renamed(other),
        }
    }

    /// Renames ids in what is somebody else's: nothing is taken out of it.
    fn renamed(&mut self, json: &mut Value) {
        match json {
            Value::String(text) => self.rename(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.renamed(value)),
            Value::Object(fields) => {
                let named: Map<String, Value> = std::mem::take(fields)
                    .into_iter()
                    .map(|(mut key, mut value)| {
                        self.rename(&mut key);
                        self.renamed(&mut value);
                        (key, value)
                    })
                    .collect();
                *fields = named;
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn rename(&mut self, text: &mut String) {
        let mut from = 0;
        while let Some((at, uuid)) = next_uuid(text, from) {
            let next = self.known.len();
            let name = format!("#{}", self.known.entry(uuid).or_insert(next));
            text.replace_range(at..at + UUID, &name);
            from = at + name.len();
        }
    }
}

/// Characters of a UUID's one written form.
const UUID: usize = 36;

/// The next UUID of a text, at or behind a byte.
fn next_uuid(text: &str, from: usize) -> Option<(usize, Uuid)> {
    let bytes = text.as_bytes();
    let mut at = from;
    while at + UUID <= bytes.len() {
        let hyphens = [8, 13, 18, 23].iter().all(|place| bytes[at + place] == b'-');
        if hyphens && let Ok(uuid) = Uuid::try_parse_ascii(&bytes[at..at + UUID]) {
            return Some((at, uuid));
        }
        at += 1;
    }
    None
}

/// Whether a field of a record says when, or where in the log.
fn is_moment(key: &str) -> bool {
    key.ends_with("_at") || key.ends_with("_seq") || matches!(key, "seq" | "prev" | "ts" | "duration_ms")
}

/// Whether a field holds what callers or models wrote, which may have any key.
fn is_foreign(key: &str) -> bool {
    matches!(key, "metadata" | "arguments" | "detail" | "delta" | "prompt" | "policy" | "amendment")
}

#[cfg(test)]
mod tests;
