//! A turn on its way to the terminal: the answer, and what tools do for it.

use std::{
    collections::HashSet,
    io::{IsTerminal, Write},
};

use raddle_domain::record::ItemKind;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cli::{Failure, plain, say, write},
    client::EventView,
};

/// Lines of a tool's output, or of a change, that are shown.
const LINES: usize = 40;

/// Where a line is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    /// stdout
    Answer,
    /// stderr
    Remarks,
}

/// One turn on its way to the terminal.
pub(super) struct Show<'a> {
    pub turn: &'a str,
    json: bool,
    /// Reasoning can be told from the answer only where it can be dimmed.
    dims: bool,
    /// The item whose text stands on the current line, and where that is.
    line: Option<(Option<String>, Out)>,
    /// Tools whose output was shown as it came.
    heard: HashSet<String>,
    /// How often the turn was continued after the process that ran it was gone.
    resumes: u64,
}

impl<'a> Show<'a> {
    pub fn new(turn: &'a str, json: bool) -> Self {
        Self { turn, json, dims: std::io::stdout().is_terminal(), line: None, heard: HashSet::new(), resumes: 0 }
    }

    /// Shows an event; `true` when the turn has ended with it.
    pub fn event(&mut self, event: &EventView, json: &str) -> Result<bool, Failure> {
        if event.turn_id.as_deref() != Some(self.turn) {
            return Ok(false);
        }
        let over = event.event == "turn.completed";
        if self.json {
            say(json)?;
            return Ok(over);
        }
        match event.event.as_str() {
            "item.delta" => self.delta(event)?,
            "item.started" => self.begins(&event.payload["item"])?,
            "item.completed" => self.ends(&event.payload["item"])?,
            "turn.retrying" => {
                self.end()?;
                let why = event.payload["error"]["message"].as_str().unwrap_or_default();
                eprintln!("[the answer starts again: {}]", plain(why));
            }
            // It follows a pause between two tries too; that was told already.
            "turn.resumed" if event.payload["turn"]["resume_count"].as_u64() > Some(self.resumes) => {
                self.resumes = event.payload["turn"]["resume_count"].as_u64().unwrap_or_default();
                self.end()?;
                eprintln!("[the answer starts again: the server was restarted]");
            }
            "turn.completed" => {
                self.end()?;
                let status = event.payload["status"].as_str().unwrap_or_default();
                if status != "completed" {
                    let why = event.payload["turn"]["error"]["message"].as_str();
                    eprintln!("[{}{}]", plain(status), why.map(|why| format!(": {}", plain(why))).unwrap_or_default());
                }
            }
            _ => {}
        }
        Ok(over)
    }

    fn delta(&mut self, event: &EventView) -> Result<(), Failure> {
        let text = plain(event.payload["delta"].as_str().unwrap_or_default());
        let kind = kind(&event.payload);
        let dim = |text: &str| format!("\u{1b}[2m{text}\u{1b}[0m");
        match kind {
            Some(kind) if kind.is_tool() => {
                self.heard.extend(event.item_id.clone());
                self.onto(event.item_id.as_deref(), Out::Remarks)?;
                let text = if std::io::stderr().is_terminal() { dim(&text) } else { text };
                eprint!("{text}");
                Ok(std::io::stderr().flush()?)
            }
            Some(ItemKind::Reasoning) if !self.dims => Ok(()),
            Some(ItemKind::Reasoning) => {
                self.onto(event.item_id.as_deref(), Out::Answer)?;
                write(dim(&text).as_bytes())
            }
            _ => {
                self.onto(event.item_id.as_deref(), Out::Answer)?;
                write(text.as_bytes())
            }
        }
    }

    /// A call of a tool begins.
    fn begins(&mut self, item: &Value) -> Result<(), Failure> {
        if !kind(item).is_some_and(ItemKind::is_tool) {
            return Ok(());
        }
        self.end()?;
        let text = |value: &Value| plain(value.as_str().unwrap_or_default());
        let (tool, summary) = (text(&item["metadata"]["tool"]), text(&item["summary"]));
        let what = if summary == tool { brief(&item["metadata"]["arguments"]) } else { summary };
        eprintln!("[{tool}] {what}");
        Ok(())
    }

    /// A call of a tool is over.
    fn ends(&mut self, item: &Value) -> Result<(), Failure> {
        if !kind(item).is_some_and(ItemKind::is_tool) {
            return Ok(());
        }
        self.end()?;
        let (status, output) =
            (item["status"].as_str().unwrap_or_default(), item["detail"].as_str().unwrap_or_default());
        if !item["id"].as_str().is_some_and(|id| self.heard.remove(id)) {
            let colours = std::io::stderr().is_terminal();
            let lines: Vec<_> = output.lines().collect();
            lines.iter().take(LINES).for_each(|line| eprintln!("  {}", painted(&plain(line), colours)));
            if let Some(more) = lines.len().checked_sub(LINES).filter(|more| *more > 0) {
                eprintln!("  … {more} more lines");
            }
        }
        if status != "completed" {
            eprintln!("[{}]", plain(status));
        }
        Ok(())
    }

    /// Goes to the line of an item.
    fn onto(&mut self, item: Option<&str>, out: Out) -> Result<(), Failure> {
        let here = Some((item.map(str::to_owned), out));
        if self.line != here {
            self.end()?;
            self.line = here;
        }
        Ok(())
    }

    /// Ends the line that is being written, if there is one.
    pub fn end(&mut self) -> Result<(), Failure> {
        match self.line.take() {
            Some((_, Out::Answer)) => write(b"\n"),
            Some((_, Out::Remarks)) => {
                eprintln!();
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn kind(value: &Value) -> Option<ItemKind> {
    ItemKind::deserialize(&value["kind"]).ok()
}

/// Arguments in a line, the long ones cut.
fn brief(arguments: &Value) -> String {
    let Value::Object(arguments) = arguments else { return String::new() };
    let shown = arguments.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}={}", cut(text, 60)),
        other => format!("{name}={}", cut(&other.to_string(), 60)),
    });
    plain(&shown.collect::<Vec<_>>().join(" "))
}

/// The beginning of a text, as one line.
fn cut(text: &str, chars: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(chars).collect();
    if short.len() < text.len() { short + "…" } else { short }
}

/// What arguments would change in a file, as the lines of a diff; `None` where they are not of that sort.
pub(super) fn changes(arguments: &Value) -> Option<Vec<String>> {
    let text = |name: &str| arguments.get(name).and_then(Value::as_str);
    let marked = |mark: &str, text: &str| text.lines().map(|line| format!("{mark}{line}")).collect::<Vec<_>>();
    let mut lines = match (text("old_string"), text("new_string"), text("patch"), text("content")) {
        (Some(old), Some(new), ..) => [marked("-", old), marked("+", new)].concat(),
        (_, _, Some(patch), _) => marked("", patch),
        (.., Some(content)) => marked("+", content),
        _ => return None,
    };
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if more > 0 {
        lines.push(format!("… {more} more lines"));
    }
    Some(lines)
}

/// A line of a diff in its colour.
pub(super) fn painted(line: &str, colours: bool) -> String {
    let colour = match line.as_bytes().first() {
        Some(b'+') => 32,
        Some(b'-') => 31,
        Some(b'@') => 36,
        _ => return line.to_owned(),
    };
    if colours { format!("\u{1b}[{colour}m{line}\u{1b}[0m") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_edit_would_change_reads_as_a_diff() {
        let edit = json!({"path": "a", "old_string": "one\ntwo", "new_string": "one\n2"});
        assert_eq!(changes(&edit).unwrap(), ["-one", "-two", "+one", "+2"]);
        assert_eq!(changes(&json!({"path": "a", "content": "x\ny\n"})).unwrap(), ["+x", "+y"]);
        assert_eq!(changes(&json!({"patch": "@@\n-a\n+b"})).unwrap(), ["@@", "-a", "+b"]);
        assert_eq!(changes(&json!({"command": "ls"})), None);
        let long = changes(&json!({"content": "x\n".repeat(LINES + 3)})).unwrap();
        assert_eq!((long.len(), long.last().unwrap().as_str()), (LINES + 1, "… 3 more lines"));
    }

    #[test]
    fn arguments_are_one_line_however_long_they_are() {
        let shown = brief(&json!({"path": "a.txt", "content": "first\nsecond", "n": 3, "long": "é".repeat(100)}));
        assert_eq!(shown, format!("path=a.txt content=first… n=3 long={}…", "é".repeat(60)));
        assert_eq!(brief(&json!(null)), "");
    }

    #[test]
    fn only_the_lines_of_a_diff_are_coloured_and_only_in_a_terminal() {
        assert_eq!(painted("+a", true), "\u{1b}[32m+a\u{1b}[0m");
        assert_eq!((painted("+a", false), painted(" a", true)), ("+a".to_owned(), " a".to_owned()));
    }
}
