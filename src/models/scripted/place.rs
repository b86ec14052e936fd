//! Where a turn stands in its script, told from its messages alone.
//!
//! The turn's first message is the script. Each answer since has played one segment of it. What a user said behind
//! the last answer is a steer that no answer has heard. Where a summary took the place of the turn's first answers,
//! it says how many they were.

use raddle_domain::history::Message;

use super::{
    script::{BadScript, Script, Segment},
    summary::Played,
};
use crate::tools::ask::ASK_USER;

/// What a call has to play.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Results of the questions that the answer before asked.
    pub answers: Vec<String>,
    /// Steers that no answer has heard.
    pub steers: Vec<String>,
    /// Empty behind the last one.
    pub segment: Segment,
}

/// Why there is nothing to play.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the turn does not begin with a prompt")]
    NoPrompt,
    #[error("the call that compacts does not end with an instruction")]
    NoInstruction,
    #[error(transparent)]
    BadScript(#[from] BadScript),
}

impl Place {
    /// Finds what the next answer in `turn`, its messages from the prompt on, is. `before` is what a summary says of
    /// the turn's beginning.
    pub fn find(turn: &[Message], before: Played) -> Result<Self, Lost> {
        let Some((Message::User { content: prompt }, since)) = turn.split_first() else { return Err(Lost::NoPrompt) };
        let script = Script::parse(prompt)?;
        let played = before.answers + since.iter().filter(|message| is_answer(message)).count();
        let last = since.iter().rposition(is_answer);
        let questions: Vec<&str> = match last.map(|at| &since[at]) {
            Some(Message::Assistant { tool_calls, .. }) => {
                tool_calls.iter().filter(|call| call.name == ASK_USER).map(|call| call.call_id.as_str()).collect()
            }
            _ => Vec::new(),
        };
        let (mut answers, mut steers) = (Vec::new(), Vec::new());
        // A summary leaves what users said in the turn, heard or not.
        let mut heard = if last.is_none() { before.steers } else { 0 };
        for message in &since[last.map_or(0, |at| at + 1)..] {
            match message {
                Message::User { .. } if heard > 0 => heard -= 1,
                Message::User { content } => steers.push(content.clone()),
                Message::Tool { call_id, content, .. } if questions.contains(&call_id.as_str()) => {
                    answers.push(content.clone());
                }
                Message::Tool { .. } | Message::System { .. } | Message::Assistant { .. } => {}
            }
        }
        let segment = script.segments.into_iter().nth(played).unwrap_or_default();
        Ok(Self { answers, steers, segment })
    }
}

/// How much of `turn`, its messages from the prompt on, has been played.
pub fn played(turn: &[Message], before: Played) -> Played {
    let since = turn.get(1..).unwrap_or_default();
    let last = since.iter().rposition(is_answer);
    let is_user = |message: &&Message| matches!(message, Message::User { .. });
    Played {
        answers: before.answers + since.iter().filter(|message| is_answer(message)).count(),
        // Every answer hears what was said before it.
        steers: last.map_or(before.steers, |last| since[..last].iter().filter(is_user).count()),
    }
}

fn is_answer(message: &Message) -> bool {
    matches!(message, Message::Assistant { .. })
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
        Message::Tool { call_id: call_id.into(), content: content.into(), failed: false }
    }

    /// What is due: answers, steers, and the first line.
    fn due(turn: &[Message]) -> (Vec<String>, Vec<String>, Option<Line>) {
        let place = Place::find(turn, Played::default()).unwrap();
        (place.answers, place.steers, place.segment.lines.first().cloned())
    }

    fn say(text: &str) -> Option<Line> {
        Some(Line::Say(text.into()))
    }

    const SCRIPT: &str = "@tool a\n@say one\n@tool b\n@say two";

    #[test]
    fn each_answer_has_played_a_segment() {
        let turn = [user(SCRIPT), called("1", "a"), result("1", ""), called("2", "b"), result("2", "")];
        assert!(matches!(Place::find(&turn[..1], Played::default()).unwrap().segment.end, End::Tools(_)));
        assert_eq!(due(&turn[..3]), (vec![], vec![], say("one")));
        assert_eq!(due(&turn), (vec![], vec![], say("two")));
    }

    #[test]
    fn behind_the_last_segment_nothing_is_due() {
        let turn = [user("hi"), called("1", "a"), result("1", "")];
        assert_eq!(Place::find(&turn, Played::default()).unwrap().segment, Segment::default());
        assert_eq!(due(&[user("hi"), said("echo: hi"), user("ho")]), (vec![], vec!["ho".into()], None));
    }

    #[test]
    fn what_a_user_says_in_a_turn_is_a_steer_until_it_is_answered() {
        let mut turn = vec![user(SCRIPT), user("early")];
        assert_eq!(due(&turn).1, ["early"]);
        turn.extend([called("1", "a"), result("1", ""), user("@say left"), user("right")]);
        assert_eq!(due(&turn), (vec![], vec!["@say left".into(), "right".into()], say("one")));
        turn.extend([called("2", "b"), result("2", "")]);
        assert_eq!(due(&turn), (vec![], vec![], say("two")));
    }

    #[test]
    fn the_results_of_questions_are_answers_and_those_of_tools_are_not() {
        let turn = [user("@ask who?\n@say hi"), called("1", ASK_USER), result("1", "me"), user("quick")];
        assert_eq!(due(&turn[..3]), (vec!["me".into()], vec![], say("hi")));
        assert_eq!(due(&turn), (vec!["me".into()], vec!["quick".into()], say("hi")));
        assert_eq!(due(&[user("@tool a\n@say hi"), called("1", "a"), result("1", "me")]).0, Vec::<String>::new());
    }

    #[test]
    fn behind_a_summary_the_script_goes_on_where_it_was() {
        let before = Played { answers: 1, steers: 1 };
        let due = |turn: &[Message]| {
            let place = Place::find(turn, before).unwrap();
            (place.steers, place.segment.lines.first().cloned())
        };
        let turn = [user(SCRIPT), user("heard"), user("new"), called("2", "b"), result("2", ""), user("newer")];
        assert_eq!(due(&turn[..2]), (vec![], say("one")));
        assert_eq!(due(&turn[..3]), (vec!["new".into()], say("one")));
        assert_eq!(due(&turn), (vec!["newer".into()], say("two")));
        assert_eq!(played(&turn[..3], before), before);
        assert_eq!(played(&turn, before), Played { answers: 2, steers: 2 });
    }

    #[test]
    fn no_prompt_and_a_bad_script_are_errors() {
        assert_eq!(Place::find(&[], Played::default()), Err(Lost::NoPrompt));
        assert_eq!(Place::find(&[said("hi")], Played::default()), Err(Lost::NoPrompt));
        assert!(matches!(Place::find(&[user("@nonsense")], Played::default()), Err(Lost::BadScript(_))));
    }
}
