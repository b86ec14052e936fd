//! A prompt as a script: text in, segments out; nothing is performed here.
//!
//! One model call plays one [`Segment`]. A segment ends where the model hands over (tool calls), breaks
//! (`@fail`, `@drop`), or at the end of the prompt. A line that starts with `@` is a directive; the lines between
//! directives are one text, answered as `echo: TEXT` without its blank first and last lines. What a call speaks
//! in several lines is one answer, joined by newlines.
//!
//! A prompt is read whole before any of it is played: a mistake in its last line refuses it at once.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::tools::ask::ASK_USER;

/// A prompt, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// At least one.
    pub segments: Vec<Segment>,
}

/// What one model call plays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Segment {
    pub lines: Vec<Line>,
    /// Input and output tokens to report; the last `@usage` of the segment.
    pub usage: Option<(u64, u64)>,
    pub end: End,
}

/// One step of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    Say(String),
    Think(String),
    /// `w1 w2 … wN`; without a rate as fast as they are taken.
    Tokens {
        count: u32,
        per_second: Option<f64>,
    },
    Wait(Duration),
}

/// How a model call ends.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum End {
    #[default]
    Stop,
    /// One parallel batch.
    Tools(Vec<Call>),
    Fail {
        status: u16,
        text: String,
    },
    Drop,
}

/// A tool call to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// A JSON object, as written.
    pub arguments: String,
}

/// A line that is no script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the script: {mistake}")]
pub struct BadScript {
    /// From 1.
    pub line: usize,
    pub mistake: Mistake,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("unknown directive `@{0}`")]
    Unknown(String),
    /// Holds the form that was expected.
    #[error("expected `{0}`")]
    Malformed(&'static str),
    #[error("`@also` must follow `@tool`, `@ask` or another `@also`")]
    NothingToJoin,
}

impl Script {
    pub fn parse(prompt: &str) -> Result<Self, BadScript> {
        let mut reader = Reader::default();
        for (index, text) in prompt.lines().enumerate() {
            reader.read(text).map_err(|mistake| BadScript { line: index + 1, mistake })?;
        }
        Ok(reader.finish())
    }
}

#[derive(Default)]
struct Reader {
    segments: Vec<Segment>,
    open: Segment,
    /// Plain lines since the last directive.
    plain: Vec<String>,
}

impl Reader {
    fn read(&mut self, text: &str) -> Result<(), Mistake> {
        let Some(directive) = text.strip_prefix('@') else {
            self.plain.push(text.to_owned());
            return Ok(());
        };
        let (word, rest) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        if word == "also" {
            let call = tool("@also NAME {json}", rest)?;
            // A blank line between two calls does not part them; a spoken one does.
            let adjacent = self.open == Segment::default() && self.plain.iter().all(|line| line.trim().is_empty());
            return match self.segments.last_mut().map(|segment| &mut segment.end) {
                Some(End::Tools(batch)) if adjacent => {
                    batch.push(call);
                    Ok(())
                }
                _ => Err(Mistake::NothingToJoin),
            };
        }
        self.end_plain();
        match word {
            "say" => self.open.lines.push(Line::Say(rest.to_owned())),
            "think" => self.open.lines.push(Line::Think(rest.to_owned())),
            "tokens" => self.open.lines.push(tokens(rest)?),
            "wait" => {
                let [millis] = fields(rest).ok_or(Mistake::Malformed("@wait MS"))?;
                let millis = millis.parse().map_err(|_| Mistake::Malformed("@wait MS"))?;
                self.open.lines.push(Line::Wait(Duration::from_millis(millis)));
            }
            "usage" => {
                let expected = Mistake::Malformed("@usage IN OUT");
                let [input, output] = fields(rest).ok_or(expected.clone())?;
                let (Ok(input), Ok(output)) = (input.parse(), output.parse()) else { return Err(expected) };
                self.open.usage = Some((input, output));
            }
            "tool" => {
                let call = tool("@tool NAME {json}", rest)?;
                self.end_segment(End::Tools(vec![call]));
            }
            "ask" if rest.trim().is_empty() => return Err(Mistake::Malformed("@ask TEXT")),
            "ask" => {
                let arguments = serde_json::json!({ "question": rest.trim() }).to_string();
                self.end_segment(End::Tools(vec![Call { name: ASK_USER.to_owned(), arguments }]));
            }
            "fail" => {
                let end = fail(rest)?;
                self.end_segment(end);
            }
            "drop" if rest.trim().is_empty() => self.end_segment(End::Drop),
            "drop" => return Err(Mistake::Malformed("@drop")),
            _ => return Err(Mistake::Unknown(word.chars().take(40).collect())),
        }
        Ok(())
    }

    fn end_plain(&mut self) {
        let plain = std::mem::take(&mut self.plain);
        let spoken = |line: &String| !line.trim().is_empty();
        if let (Some(first), Some(last)) = (plain.iter().position(spoken), plain.iter().rposition(spoken)) {
            self.open.lines.push(Line::Say(format!("echo: {}", plain[first..=last].join("\n"))));
        }
    }

    fn end_segment(&mut self, end: End) {
        let segment = std::mem::take(&mut self.open);
        self.segments.push(Segment { end, ..segment });
    }

    fn finish(mut self) -> Script {
        self.end_plain();
        // Behind a tool call there is always another model call, if only to say nothing.
        let ended = matches!(self.segments.last(), Some(Segment { end: End::Fail { .. } | End::Drop, .. }));
        if !ended || self.open != Segment::default() {
            self.end_segment(End::Stop);
        }
        Script { segments: self.segments }
    }
}

/// Exactly `N` words.
fn fields<const N: usize>(rest: &str) -> Option<[&str; N]> {
    rest.split_whitespace().collect::<Vec<_>>().try_into().ok()
}

fn tokens(rest: &str) -> Result<Line, Mistake> {
    let expected = || Mistake::Malformed("@tokens N [RATE]");
    let (count, rate) = match *rest.split_whitespace().collect::<Vec<_>>() {
        [count] => (count, None),
        [count, rate] => (count, Some(rate)),
        _ => return Err(expected()),
    };
    let count = count.parse().map_err(|_| expected())?;
    // Between one word a day and a million a second: beyond that, time is not kept in numbers that can be added.
    let in_range = |rate: &f64| (1e-5..=1e6).contains(rate);
    let per_second = rate.map(|rate| rate.parse().ok().filter(in_range).ok_or_else(expected)).transpose()?;
    Ok(Line::Tokens { count, per_second })
}

fn tool(expected: &'static str, rest: &str) -> Result<Call, Mistake> {
    let rest = rest.trim();
    let (name, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, "{}"));
    let arguments = arguments.trim();
    let valid = !name.is_empty() && !name.starts_with('{');
    match serde_json::from_str::<Map<String, Value>>(arguments) {
        Ok(_) if valid => Ok(Call { name: name.to_owned(), arguments: arguments.to_owned() }),
        _ => Err(Mistake::Malformed(expected)),
    }
}

fn fail(rest: &str) -> Result<End, Mistake> {
    let expected = Mistake::Malformed("@fail STATUS [TEXT]");
    let rest = rest.trim();
    let (status, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let Some(status) = status.parse().ok().filter(|status| (400..=599).contains(status)) else { return Err(expected) };
    let text = match text.trim() {
        "" => format!("the script fails this call with status {status}"),
        text => text.to_owned(),
    };
    Ok(End::Fail { status, text })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(prompt: &str) -> Vec<Segment> {
        Script::parse(prompt).unwrap().segments
    }

    fn lines(prompt: &str) -> Vec<Line> {
        let [segment] = segments(prompt).try_into().unwrap();
        segment.lines
    }

    fn say(text: &str) -> Line {
        Line::Say(text.into())
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.into(), arguments: arguments.into() }
    }

    fn mistake(prompt: &str) -> String {
        Script::parse(prompt).unwrap_err().to_string()
    }

    #[test]
    fn text_without_directives_is_echoed_as_it_is() {
        assert_eq!(lines("hello"), [say("echo: hello")]);
        assert_eq!(lines("one\n\n  two \r\nuser@example.org"), [say("echo: one\n\n  two \nuser@example.org")]);
        assert_eq!(lines("\n \nhello\n\n"), [say("echo: hello")]);
        assert_eq!(lines(""), []);
    }

    #[test]
    fn directives_and_the_text_between_them_are_one_answer() {
        let prompt = "a\nb\n\n@say c  d\n@think e\n@tokens 3\n@tokens 2 0.5\n@wait 7\nf";
        assert_eq!(
            lines(prompt),
            [
                say("echo: a\nb"),
                say("c  d"),
                Line::Think("e".into()),
                Line::Tokens { count: 3, per_second: None },
                Line::Tokens { count: 2, per_second: Some(0.5) },
                Line::Wait(Duration::from_millis(7)),
                say("echo: f"),
            ]
        );
    }

    #[test]
    fn tool_calls_end_a_segment_and_also_joins_the_batch() {
        let [first, second, third] =
            segments("@say a\n@tool ls {\"p\": 1}\n\n@also cat\n@tool rm {}\n@say b").try_into().unwrap();
        assert_eq!(first.lines, [say("a")]);
        assert_eq!(first.end, End::Tools(vec![call("ls", "{\"p\": 1}"), call("cat", "{}")]));
        assert_eq!(second, Segment { end: End::Tools(vec![call("rm", "{}")]), ..Segment::default() });
        assert_eq!((third.lines, third.end), (vec![say("b")], End::Stop));
    }

    #[test]
    fn a_script_that_ends_in_a_tool_call_has_an_empty_last_segment() {
        assert_eq!(segments("@tool ls {}").last(), Some(&Segment::default()));
    }

    #[test]
    fn a_question_is_a_call_of_the_asking_tool() {
        let asked = call("ask_user", "{\"question\":\"really?\"}");
        assert_eq!(segments("@ask really?")[0].end, End::Tools(vec![asked]));
    }

    #[test]
    fn failures_and_drops_end_a_segment() {
        let fail = |status, text: &str| End::Fail { status, text: text.into() };
        assert_eq!(segments("@fail 503 too much")[0].end, fail(503, "too much"));
        assert_eq!(segments("@fail 400")[0].end, fail(400, "the script fails this call with status 400"));
        let [dropped, rest] = segments("@say a\n@drop\n@say b").try_into().unwrap();
        assert_eq!((dropped.lines, dropped.end), (vec![say("a")], End::Drop));
        assert_eq!(rest.lines, [say("b")]);
        assert_eq!(segments("@drop").len(), 1);
    }

    #[test]
    fn usage_belongs_to_the_segment_it_stands_in_and_the_last_one_counts() {
        let [first, second] = segments("@usage 1 2\n@usage 3 4\n@tool ls\n@say a").try_into().unwrap();
        assert_eq!((first.usage, second.usage), (Some((3, 4)), None));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        assert_eq!(mistake("hi\n@dance now"), "line 2 of the script: unknown directive `@dance`");
        assert_eq!(mistake("@"), "line 1 of the script: unknown directive `@`");
        assert_eq!(mistake("@say a\n\n@tokens many"), "line 3 of the script: expected `@tokens N [RATE]`");
    }

    #[test]
    fn malformed_arguments_are_mistakes() {
        for prompt in [
            "@tokens",
            "@tokens -1",
            "@tokens 1 0",
            "@tokens 1 NaN",
            "@tokens 1 1e-9",
            "@tokens 1 2 3",
            "@wait",
            "@wait soon",
            "@usage 1",
            "@usage 1 x",
            "@tool",
            "@tool {}",
            "@tool ls [1]",
            "@tool ls {\"a\"",
            "@tool ls {} {}",
            "@ask",
            "@fail",
            "@fail often",
            "@fail 200 fine",
            "@drop it",
        ] {
            assert!(mistake(prompt).starts_with("line 1 of the script: expected `@"), "{prompt}");
        }
        for prompt in ["@also ls {}", "@tool ls\nhm\n@also ls", "@tool ls\n@say a\n@also ls", "@fail 500\n@also ls"] {
            assert!(mistake(prompt).ends_with("`@also` must follow `@tool`, `@ask` or another `@also`"), "{prompt}");
        }
    }

    proptest! {
        #[test]
        fn any_prompt_is_a_script_or_a_mistake(prompt in "(@?[a-z]{0,6} ?[0-9{}\" ]{0,6}\r?\n?){0,8}|\\PC{0,60}") {
            if let Ok(script) = Script::parse(&prompt) {
                prop_assert!(!script.segments.is_empty());
            }
        }
    }
}
