//! What a scripted model makes of a call that compacts, and what it later finds in its own summary.
//!
//! ```text
//! summary of 4 messages
//! summary of 7 messages; of the turn so far 2 answers, 1 steers
//! ```
//! The second form is for a conversation that is compacted within a turn. The summary takes the place of the answers
//! by which a script's place is told, so it has to say how many they were: otherwise the script would begin anew.

use raddle_domain::history::Message;

/// How much of a turn's script is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Played {
    pub answers: usize,
    /// Steers that answers have heard.
    pub steers: usize,
}

const TURN: &str = "; of the turn so far ";

/// What the last message of a call that compacts asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked<'a> {
    Summary,
    /// The reason for the compaction is a script, to be played instead.
    Script(&'a str),
}

/// Reads the instruction: the reason, if there is one, is its last paragraph.
pub fn asked(instruction: &str) -> Asked<'_> {
    let reason = instruction.rsplit("\n\n").next().unwrap_or_default();
    if reason.starts_with('@') { Asked::Script(reason) } else { Asked::Summary }
}

/// The summary of `messages`, those before the instruction.
pub fn of(messages: &[Message], played: Played) -> String {
    let count = messages.iter().filter(|message| !matches!(message, Message::System { .. })).count();
    let summary = format!("summary of {count} messages");
    match played {
        Played { answers: 0, .. } => summary,
        Played { answers, steers } => format!("{summary}{TURN}{answers} answers, {steers} steers"),
    }
}

/// What a summary right before the turn says of it; nothing where there is none, or another model wrote it.
pub fn before(turn: Option<&Message>) -> Played {
    let Some(Message::User { content }) = turn else { return Played::default() };
    read(content).unwrap_or_default()
}

fn read(content: &str) -> Option<Played> {
    let (summary, turn) = content.lines().next_back()?.split_once(TURN)?;
    let (answers, steers) = turn.strip_suffix(" steers")?.split_once(" answers, ")?;
    // Numbers that can be added to: anybody may have written them.
    let number = |text: &str| text.parse::<u32>().ok().map(|number| number as usize);
    let played = Played { answers: number(answers)?, steers: number(steers)? };
    summary.starts_with("summary of ").then_some(played)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: impl Into<String>) -> Message {
        Message::User { content: content.into() }
    }

    #[test]
    fn a_summary_counts_messages_without_the_system_prompt() {
        let messages = [Message::System { content: "be kind".into() }, user("a"), user("b")];
        assert_eq!(of(&messages, Played::default()), "summary of 2 messages");
        assert_eq!(of(&messages[..2], Played::default()), "summary of 1 messages");
        assert_eq!(of(&[], Played::default()), "summary of 0 messages");
    }

    #[test]
    fn what_a_summary_says_of_its_turn_is_found_in_it() {
        for played in [Played { answers: 1, steers: 0 }, Played { answers: 12, steers: 1 }] {
            let summary = of(&[user("a")], played);
            assert_eq!(before(Some(&user(summary.clone()))), played);
            assert_eq!(before(Some(&user(format!("[Summary]\n\n{summary}")))), played, "behind a heading");
        }
        assert_eq!(
            of(&[user("a")], Played { answers: 2, steers: 1 }),
            "summary of 1 messages; of the turn so far 2 answers, 1 steers"
        );
    }

    #[test]
    fn where_no_summary_speaks_of_the_turn_it_is_at_its_beginning() {
        let system = Message::System { content: of(&[], Played { answers: 1, steers: 1 }) };
        assert_eq!(before(None), Played::default());
        assert_eq!(before(Some(&system)), Played::default());
        for content in
            ["", "summary of 7 messages", "; of the turn so far 1 answers, 0 steers", "; of the turn so far "]
        {
            assert_eq!(before(Some(&user(content))), Played::default(), "{content}");
        }
    }

    #[test]
    fn only_a_reason_that_is_a_script_is_one() {
        assert_eq!(asked("Sum up.\nBriefly."), Asked::Summary);
        assert_eq!(asked("Sum up.\n\ntoo long @say x"), Asked::Summary);
        assert_eq!(asked("Sum up.\n\n@say x"), Asked::Script("@say x"));
        assert_eq!(asked("Sum up.\n\n@wait 1\n@say x"), Asked::Script("@wait 1\n@say x"));
        assert_eq!(asked("Sum up.\n@mention nobody"), Asked::Summary);
    }
}
