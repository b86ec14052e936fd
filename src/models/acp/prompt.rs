//! What an agent is asked: the conversation as a prompt. Pure.
//!
//! An agent has a session of its own for each call, so what was said before goes with the prompt, as text. A first
//! prompt goes alone, as it was written.

use raddle_domain::{history::Message, ports::ModelRequest, record::Purpose};

/// The parts of the prompt, in order.
pub fn parts(request: &ModelRequest) -> Vec<String> {
    let ModelRequest { messages, turn_start, purpose, .. } = request;
    // A summary is asked for last, and of everything before.
    let asked_from = match purpose {
        Purpose::Answer => (*turn_start).min(messages.len()),
        Purpose::Compaction => messages.len().saturating_sub(1),
    };
    let (before, now) = messages.split_at(asked_from);
    let mut parts: Vec<String> = messages.iter().filter_map(system).collect();
    let told: Vec<String> = before.iter().filter_map(retold).collect();
    if !told.is_empty() {
        let told = told.join("\n\n");
        parts.push(format!("The conversation so far, which you are to continue:\n\n{told}\n\n(end of what was said)"));
    }
    match now {
        [Message::User { content }] => parts.push(content.clone()),
        now => {
            // The person went on before the turn was over.
            parts.extend(now.iter().filter_map(|message| match message {
                Message::User { content } => Some(content.clone()),
                other => retold(other),
            }));
        }
    }
    parts
}

fn system(message: &Message) -> Option<String> {
    match message {
        Message::System { content } if !content.trim().is_empty() => Some(content.clone()),
        _ => None,
    }
}

fn retold(message: &Message) -> Option<String> {
    match message {
        Message::System { .. } => None,
        Message::User { content } => Some(format!("User: {content}")),
        Message::Assistant { content, tool_calls, .. } => {
            let calls = tool_calls.iter().map(|call| format!("[used {}: {}]", call.name, call.arguments));
            let said = Some(content.clone()).filter(|content| !content.trim().is_empty());
            let lines: Vec<String> = said.into_iter().chain(calls).collect();
            (!lines.is_empty()).then(|| format!("You: {}", lines.join("\n")))
        }
        Message::Tool { content, failed, .. } => {
            Some(format!("[{}: {content}]", if *failed { "failed" } else { "result" }))
        }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::history::ToolCall;

    use super::*;

    fn request(messages: Vec<Message>, turn_start: usize, purpose: Purpose) -> ModelRequest {
        ModelRequest {
            model: "m".into(),
            messages,
            turn_start,
            purpose,
            tools: Vec::new(),
            temperature: None,
            top_p: None,
            max_tokens: None,
        }
    }

    fn user(content: &str) -> Message {
        Message::User { content: content.into() }
    }

    fn talk() -> Vec<Message> {
        let call = ToolCall { call_id: "c".into(), name: "acp:edit".into(), arguments: "{}".into() };
        vec![
            Message::System { content: "be kind".into() },
            user("one"),
            Message::Assistant { content: "so".into(), reasoning: "hm".into(), tool_calls: vec![call] },
            Message::Tool { call_id: "c".into(), content: "denied".into(), failed: true },
        ]
    }

    #[test]
    fn a_first_prompt_goes_as_it_was_written() {
        assert_eq!(parts(&request(vec![user("hi ")], 0, Purpose::Answer)), ["hi "]);
    }

    #[test]
    fn what_was_said_before_goes_with_the_prompt() {
        let mut messages = talk();
        messages.push(user("two"));
        let told = "The conversation so far, which you are to continue:\n\nUser: one\n\nYou: so\n\
                    [used acp:edit: {}]\n\n[failed: denied]\n\n(end of what was said)";
        assert_eq!(parts(&request(messages, 4, Purpose::Answer)), ["be kind", told, "two"]);
    }

    #[test]
    fn a_steer_follows_what_was_answered_to_the_prompt() {
        let mut messages = talk();
        messages.extend([user("steer")]);
        let expected = ["be kind", "one", "You: so\n[used acp:edit: {}]", "[failed: denied]", "steer"];
        assert_eq!(parts(&request(messages, 1, Purpose::Answer)), expected);
    }

    #[test]
    fn a_summary_is_of_everything_before() {
        let mut messages = talk();
        messages.push(user("sum up"));
        let parts = parts(&request(messages, 1, Purpose::Compaction));
        assert_eq!((parts.len(), parts[2].as_str()), (3, "sum up"));
        assert!(parts[1].contains("User: one"));
    }
}
