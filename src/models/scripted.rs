//! A model whose prompt is its script: deterministic, without a network.
//!
//! [`script`] reads a prompt, [`place`] finds what of it is due, and this file performs that. A call that compacts is
//! answered with a [`summary`], or plays the reason for it if that is a script. What a call answers depends on its
//! messages and purpose alone, so the same call made again answers the same; time only decides when.
//!
//! Absent on purpose: sampling. Temperature, top-p, token limits and the model's name change nothing here.

pub mod place;
pub mod script;
pub mod summary;

use std::collections::VecDeque;

use futures_util::stream::{self, StreamExt};
use raddle_domain::{
    history::{Message, ToolCall},
    ports::{FinishReason, Fragment, Model, ModelError, ModelErrorKind, ModelRequest, ModelStream},
    record::{Purpose, Usage},
};
use tokio::time::{Duration, Instant};

use self::{
    place::{Lost, Place},
    script::{End, Line, Script, Segment},
    summary::{Asked, Played},
};

/// The scripted model. It keeps nothing between calls.
#[derive(Debug, Default, Clone, Copy)]
pub struct Scripted;

impl Model for Scripted {
    fn call(&self, request: ModelRequest) -> ModelStream {
        let messages = &request.messages;
        let turn = messages.get(request.turn_start..).unwrap_or_default();
        let before = summary::before(request.turn_start.checked_sub(1).and_then(|last| messages.get(last)));
        let place = match request.purpose {
            Purpose::Answer => Place::find(turn, before),
            Purpose::Compaction => compaction(messages, turn, before),
        };
        match place {
            Err(lost) => {
                let error = failure(ModelErrorKind::Rejected, lost.to_string());
                Box::pin(stream::iter([Err(error)]))
            }
            Ok(place) => {
                let performance = Performance::new(place, messages, before);
                let played = stream::unfold(performance, |mut performance| async move {
                    let next = performance.next().await?;
                    Some((next, performance))
                });
                Box::pin(played.fuse())
            }
        }
    }
}

/// What a call that compacts has to play: its last message is the instruction, in the turn or all of it.
fn compaction(messages: &[Message], turn: &[Message], before: Played) -> Result<Place, Lost> {
    let Some((Message::User { content: instruction } | Message::System { content: instruction }, conversation)) =
        messages.split_last()
    else {
        return Err(Lost::NoInstruction);
    };
    let segment = match summary::asked(instruction) {
        Asked::Script(script) => Script::parse(script)?.segments.into_iter().next().unwrap_or_default(),
        Asked::Summary => {
            let turn = turn.split_last().map_or(turn, |(_, turn)| turn);
            let summary = summary::of(conversation, place::played(turn, before));
            Segment { lines: vec![Line::Say(summary)], ..Segment::default() }
        }
    };
    Ok(Place { answers: Vec::new(), steers: Vec::new(), segment })
}

fn failure(kind: ModelErrorKind, message: String) -> ModelError {
    ModelError { kind, message, retry_after: None }
}

/// The kind of failure that a status stands for.
fn kind_of(status: u16) -> ModelErrorKind {
    match status {
        429 => ModelErrorKind::RateLimited,
        500..=599 => ModelErrorKind::Unavailable,
        _ => ModelErrorKind::Rejected,
    }
}

/// One answer while it is given. Whoever stops polling stops it: there is no task behind it.
struct Performance {
    lines: VecDeque<Line>,
    end: Option<End>,
    /// How the ids of this call's tool calls begin: no other call of the turn has as many messages, or as many
    /// answers behind a summary.
    call_ids: String,
    reported: Option<(u64, u64)>,
    words_in: u64,
    words_out: u64,
    /// What is ready to be taken, in order.
    ready: VecDeque<Result<Fragment, ModelError>>,
    /// The numbered words that are being counted out.
    counting: Option<Counting>,
    /// Text, or reasoning, was streamed: the next line of its kind begins with a newline.
    spoke: bool,
    thought: bool,
}

/// `w1 w2 …`, and when each is due.
struct Counting {
    next: u32,
    count: u32,
    /// Since when, and how far apart.
    pace: Option<(Instant, f64)>,
}

impl Performance {
    fn new(place: Place, messages: &[Message], before: Played) -> Self {
        let answers = place.answers.iter().map(|answer| Line::Say(format!("answer: {answer}")));
        let steers = place.steers.iter().map(|steer| Line::Say(format!("heard: {steer}")));
        Self {
            lines: answers.chain(steers).chain(place.segment.lines).collect(),
            end: Some(place.segment.end),
            call_ids: match before.answers {
                0 => format!("call_{}", messages.len()),
                answers => format!("call_{}_{answers}", messages.len()),
            },
            reported: place.segment.usage,
            words_in: messages.iter().map(words_of).sum(),
            words_out: 0,
            ready: VecDeque::new(),
            counting: None,
            spoke: false,
            thought: false,
        }
    }

    async fn next(&mut self) -> Option<Result<Fragment, ModelError>> {
        loop {
            // What is never pending would never let go of its thread.
            tokio::task::coop::consume_budget().await;
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if let Some(word) = self.count().await {
                return Some(Ok(Fragment::Text(word)));
            }
            match self.lines.pop_front() {
                Some(Line::Say(text)) => self.speak(&text),
                Some(Line::Think(text)) => self.think(&text),
                Some(Line::Tokens { count, per_second }) => {
                    let pace = per_second.map(|rate| (Instant::now(), 1.0 / rate));
                    self.counting = Some(Counting { next: 0, count, pace });
                }
                Some(Line::Wait(time)) => tokio::time::sleep(time).await,
                None => {
                    let end = self.end.take()?;
                    self.conclude(end);
                }
            }
        }
    }

    /// Waits for the next numbered word; `None` when none is left.
    async fn count(&mut self) -> Option<String> {
        let counting = self.counting.as_ref().filter(|counting| counting.next < counting.count)?;
        let number = counting.next + 1;
        if let Some((start, apart)) = counting.pace {
            // From the start, not from the word before: lateness must not add up.
            tokio::time::sleep_until(start + Duration::from_secs_f64(f64::from(counting.next) * apart)).await;
        }
        let before = match (number, self.spoke) {
            (1, true) => "\n",
            (1, false) => "",
            _ => " ",
        };
        self.counting.iter_mut().for_each(|counting| counting.next = number);
        self.spoke = true;
        self.words_out += 1;
        Some(format!("{before}w{number}"))
    }

    fn speak(&mut self, text: &str) {
        let before = if std::mem::replace(&mut self.spoke, true) { "\n" } else { "" };
        self.words_out += words(text);
        self.ready.extend(pieces(before, text).map(|piece| Ok(Fragment::Text(piece))));
    }

    fn think(&mut self, text: &str) {
        let before = if std::mem::replace(&mut self.thought, true) { "\n" } else { "" };
        self.words_out += words(text);
        self.ready.extend(pieces(before, text).map(|piece| Ok(Fragment::Reasoning(piece))));
    }

    fn conclude(&mut self, end: End) {
        let finish = match end {
            End::Stop => FinishReason::Stop,
            End::Tools(calls) => {
                for (index, call) in (0..).zip(calls) {
                    let call_id = Some(format!("{}_{index}", self.call_ids));
                    let name = Some(call.name);
                    self.ready.push_back(Ok(Fragment::ToolCall { index, call_id, name, arguments: String::new() }));
                    let arguments = call.arguments;
                    self.ready.push_back(Ok(Fragment::ToolCall { index, call_id: None, name: None, arguments }));
                }
                FinishReason::ToolCalls
            }
            End::Fail { status, text } => return self.ready.push_back(Err(failure(kind_of(status), text))),
            End::Drop => return,
        };
        let (input_tokens, output_tokens) = self.reported.unwrap_or((self.words_in, self.words_out));
        let usage = Usage { input_tokens, output_tokens, ..Usage::default() };
        self.ready.extend([Ok(Fragment::Usage(usage)), Ok(Fragment::Finish(finish))]);
    }
}

/// `text` word by word, each with the space before it; together they are `before` and `text`, byte for byte.
fn pieces(before: &str, text: &str) -> impl Iterator<Item = String> {
    let mut pieces = Vec::new();
    let mut piece = before.to_owned();
    let mut in_word = false;
    for letter in text.chars() {
        if letter.is_whitespace() && in_word {
            pieces.push(std::mem::take(&mut piece));
        }
        in_word = !letter.is_whitespace();
        piece.push(letter);
    }
    pieces.push(piece);
    pieces.into_iter().filter(|piece| !piece.is_empty())
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

fn words_of(message: &Message) -> u64 {
    match message {
        Message::System { content } | Message::User { content } | Message::Tool { content, .. } => words(content),
        Message::Assistant { content, reasoning, tool_calls } => {
            let called = |call: &ToolCall| words(&call.name) + words(&call.arguments);
            words(content) + words(reasoning) + tool_calls.iter().map(called).sum::<u64>()
        }
    }
}

#[cfg(test)]
mod tests;
