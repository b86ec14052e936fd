//! Where a conversation stands in its script, told from its messages alone.
//!
//! Which user message opened the turn, and is the script? Messages do not say, so this is a rule:
//! * A user message behind tool results is a **steer**: it came while the turn went on.
//! * Any other user message **opens** a turn: the first one, one behind an answer without tool calls, and one behind
//!   another opener, whose turn then left no answer.
//! * Two kinds of message behind tool results open a turn nevertheless: one that holds a directive, and one behind a
//!   script whose due segment fails before it says anything, because such a turn ended right there.
//!
//! The place within the script is then the number of answers with tool calls since the opener.
//!
//! Not decidable from messages, and so wrong: a plain prompt after a turn that was stopped between a tool result
//! and the next answer is taken for a steer of it; a steer that reached a turn behind its last answer, or before its
//! first, is taken for a prompt. A prompt with a directive is always taken for what it is.

use raddle_domain::history::Message;

use super::script::{ASK_TOOL, BadScript, Script, Segment};

/// What a call has to play.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Results of the questions that the answer before asked.
    pub answers: Vec<String>,
    /// Steers that no answer has heard.
    pub steers: Vec<String>,
    pub segment: Segment,
}

/// Why there is nothing to play.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the conversation holds no prompt")]
    NoPrompt,
    #[error(transparent)]
    BadScript(#[from] BadScript),
}

impl Place {
    /// Finds what the next answer to `messages` is.
    pub fn find(messages: &[Message]) -> Result<Self, Lost> {
        let mut turn: Option<Turn> = None;
        for message in messages {
            match (message, turn.as_mut()) {
                (Message::User { content }, Some(turn)) if turn.is_steered_by(content) => turn.steers.push(content),
                (Message::User { content }, _) => turn = Some(Turn::open(content)),
                (Message::Assistant { tool_calls, .. }, Some(turn)) => {
                    turn.steers.clear();
                    turn.answers.clear();
                    turn.has_results = false;
                    turn.played += usize::from(!tool_calls.is_empty());
                    turn.questions = tool_calls
                        .iter()
                        .filter(|call| call.name == ASK_TOOL)
                        .map(|call| call.call_id.as_str())
                        .collect();
                }
                (Message::Tool { call_id, content }, Some(turn)) => {
                    turn.has_results = true;
                    if turn.questions.contains(&call_id.as_str()) {
                        turn.answers.push(content);
                    }
                }
                (Message::System { .. } | Message::Assistant { .. } | Message::Tool { .. }, _) => {}
            }
        }
        let turn = turn.ok_or(Lost::NoPrompt)?;
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let segment = turn.due()?.unwrap_or_default();
        Ok(Self { answers: owned(turn.answers), steers: owned(turn.steers), segment })
    }
}

/// The turn that the messages so far are in.
struct Turn<'a> {
    prompt: &'a str,
    /// Answers with tool calls.
    played: usize,
    /// Nothing but results, and steers, since such an answer.
    has_results: bool,
    questions: Vec<&'a str>,
    answers: Vec<&'a str>,
    steers: Vec<&'a str>,
}

impl<'a> Turn<'a> {
    fn open(prompt: &'a str) -> Self {
        let none = Vec::new;
        Self { prompt, played: 0, has_results: false, questions: none(), answers: none(), steers: none() }
    }

    /// The segment to play; `None` behind the last one.
    fn due(&self) -> Result<Option<Segment>, BadScript> {
        Ok(Script::parse(self.prompt)?.segments.into_iter().nth(self.played))
    }

    fn is_steered_by(&self, content: &str) -> bool {
        // A question's answer is spoken before anything fails.
        let ended_here =
            || self.answers.is_empty() && self.due().is_ok_and(|due| due.is_some_and(|due| due.fails_silently()));
        self.has_results && !Script::has_directive(content) && (!self.steers.is_empty() || !ended_here())
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::history::ToolCall;

    use super::*;
    use crate::models::scripted::script::{End, Line};

    fn user(content: &str) -> Message {
        Message::User { content: content.into() }
    }

    fn said(content: &str) -> Message {
        Message::Assistant { content: content.into(), reasoning: String::new(), tool_calls: Vec::new() }
    }

    fn called(call_id: &str, name: &str) -> Message {
        let call = ToolCall { call_id: call_id.into(), name: name.into(), arguments: "{}".into() };
        Message::Assistant { content: String::new(), reasoning: String::new(), tool_calls: vec![call] }
    }

    fn result(call_id: &str, content: &str) -> Message {
        Message::Tool { call_id: call_id.into(), content: content.into() }
    }

    /// The first line due, and what comes before it.
    fn due(messages: &[Message]) -> (Vec<String>, Vec<String>, Option<Line>) {
        let place = Place::find(messages).unwrap();
        (place.answers, place.steers, place.segment.lines.first().cloned())
    }

    fn say(text: &str) -> Option<Line> {
        Some(Line::Say(text.into()))
    }

    const SCRIPT: &str = "@tool a\n@say one\n@tool b\n@say two";

    #[test]
    fn the_place_is_the_number_of_answers_with_tool_calls_since_the_prompt() {
        let messages = [
            user("@tool x\n@tool y"),
            called("0", "x"),
            said("stopped"),
            user(SCRIPT),
            called("1", "a"),
            result("1", ""),
        ];
        assert!(matches!(Place::find(&messages[..4]).unwrap().segment.end, End::Tools(_)));
        assert_eq!(due(&messages), (vec![], vec![], say("one")));
    }

    #[test]
    fn behind_the_last_segment_nothing_is_due() {
        let messages = [user("hi"), called("1", "a"), result("1", "")];
        assert_eq!(Place::find(&messages).unwrap().segment, Segment::default());
    }

    #[test]
    fn a_user_message_behind_results_is_a_steer_until_it_is_answered() {
        let mut messages = vec![user(SCRIPT), called("1", "a"), result("1", ""), user("left"), user("right")];
        assert_eq!(due(&messages), (vec![], vec!["left".into(), "right".into()], say("one")));
        messages.extend([called("2", "b"), result("2", "")]);
        assert_eq!(due(&messages), (vec![], vec![], say("two")));
    }

    #[test]
    fn a_user_message_behind_a_last_answer_opens_a_turn() {
        assert_eq!(due(&[user("hi"), said("echo: hi"), user("ho")]), (vec![], vec![], say("echo: ho")));
    }

    #[test]
    fn a_prompt_behind_one_that_was_never_answered_opens_a_turn() {
        assert_eq!(due(&[user("@fail 500"), user("hi")]), (vec![], vec![], say("echo: hi")));
        assert_eq!(due(&[user("@nonsense"), user("hi")]), (vec![], vec![], say("echo: hi")));
    }

    #[test]
    fn a_prompt_behind_an_answer_that_was_cut_off_opens_a_turn() {
        let messages = [user(SCRIPT), called("1", "a"), result("1", ""), said("o"), user("hi")];
        assert_eq!(due(&messages), (vec![], vec![], say("echo: hi")));
    }

    #[test]
    fn a_prompt_behind_results_opens_a_turn_when_the_script_fails_there() {
        for end in ["@fail 400", "@wait 1\n@drop"] {
            let messages =
                [user(&format!("@tool a\n{end}")), called("1", "a"), result("1", ""), user("hi"), user("ho")];
            assert_eq!(due(&messages[..4]), (vec![], vec![], say("echo: hi")));
            assert_eq!(due(&messages), (vec![], vec![], say("echo: ho")));
        }
        let speaks_first = [user("@tool a\n@say b\n@drop"), called("1", "a"), result("1", ""), user("hi")];
        assert_eq!(due(&speaks_first), (vec![], vec!["hi".into()], say("b")));
    }

    #[test]
    fn a_prompt_with_a_directive_opens_a_turn_wherever_it_stands() {
        let messages = [user(SCRIPT), called("1", "a"), result("1", ""), user("@say new")];
        assert_eq!(due(&messages), (vec![], vec![], say("new")));
    }

    #[test]
    fn the_results_of_questions_are_answers_and_those_of_tools_are_not() {
        let messages = [user("@ask who?\n@say hi"), called("1", ASK_TOOL), result("1", "me"), user("quick")];
        assert_eq!(due(&messages[..3]), (vec!["me".into()], vec![], say("hi")));
        assert_eq!(due(&messages), (vec!["me".into()], vec!["quick".into()], say("hi")));
        assert_eq!(due(&[user("@tool a\n@say hi"), called("1", "a"), result("1", "me")]).0, Vec::<String>::new());
    }

    #[test]
    fn no_prompt_and_a_bad_script_are_errors() {
        assert_eq!(Place::find(&[]), Err(Lost::NoPrompt));
        assert_eq!(Place::find(&[said("hi")]), Err(Lost::NoPrompt));
        assert!(matches!(Place::find(&[user("@nonsense")]), Err(Lost::BadScript(_))));
    }
}
