//! What a provider says that speaks the messages API: answers for the server of [`openai_server`](super::openai_server).

#![allow(dead_code, reason = "each test file uses its own part of it")]

use serde_json::{Value, json};

use super::openai_server::Answer;

/// Answers in the words of the messages API.
pub trait Messages: Sized {
    /// One event, with its name.
    fn say(self, data: Value) -> Self;

    /// What every answer begins with: a message without content, and what its input cost.
    fn opened() -> Self;

    /// Why the answer ended, and that it did.
    fn closed(self, reason: &str) -> Self;

    /// A block of text, in two parts.
    fn text_block(self, index: u32, text: &str) -> Self;

    /// A block of thinking, with a signature.
    fn thinking_block(self, index: u32, text: &str) -> Self;

    /// A tool call whose arguments come in two parts.
    fn tool_block(self, index: u32, id: &str, name: &str, arguments: &str) -> Self;

    /// A whole answer of text.
    fn message(text: &str) -> Self {
        Self::opened().text_block(0, text).closed("end_turn")
    }

    /// A whole answer of tool calls: `(id, name, arguments)` each.
    fn uses(calls: &[(&str, &str, &str)]) -> Self {
        let blocks = (0..).zip(calls);
        let call = |answer: Self, (index, (id, name, arguments)): (u32, &(&str, &str, &str))| {
            answer.tool_block(index, id, name, arguments)
        };
        blocks.fold(Self::opened(), call).closed("tool_use")
    }
}

impl Messages for Answer {
    fn say(self, data: Value) -> Self {
        let name = data["type"].as_str().unwrap_or("message").to_owned();
        self.raw(format!("event: {name}\ndata: {data}\n\n"))
    }

    fn opened() -> Self {
        let usage = json!({"input_tokens": 3, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 5, "output_tokens": 1});
        let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": null, "usage": usage});
        Self::stream().say(json!({"type": "message_start", "message": message})).say(json!({"type": "ping"}))
    }

    fn closed(self, reason: &str) -> Self {
        let delta = json!({"stop_reason": reason, "stop_sequence": null});
        self.say(json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}))
            .say(json!({"type": "message_stop"}))
    }

    fn text_block(self, index: u32, text: &str) -> Self {
        let begun = self.say(start(index, json!({"type": "text", "text": ""})));
        let half = text.floor_char_boundary(text.len() / 2);
        let part = |part: &str| delta(index, json!({"type": "text_delta", "text": part}));
        begun.say(part(&text[..half])).say(part(&text[half..])).say(stop(index))
    }

    fn thinking_block(self, index: u32, text: &str) -> Self {
        self.say(start(index, json!({"type": "thinking", "thinking": "", "signature": ""})))
            .say(delta(index, json!({"type": "thinking_delta", "thinking": text})))
            .say(delta(index, json!({"type": "signature_delta", "signature": "c2lnbmVk"})))
            .say(stop(index))
    }

    fn tool_block(self, index: u32, id: &str, name: &str, arguments: &str) -> Self {
        let begun = self.say(start(index, json!({"type": "tool_use", "id": id, "name": name, "input": {}})));
        let half = arguments.floor_char_boundary(arguments.len() / 2);
        let (head, tail) = arguments.split_at(half);
        let part = |part: &str| delta(index, json!({"type": "input_json_delta", "partial_json": part}));
        begun.say(part("")).say(part(head)).say(part(tail)).say(stop(index))
    }
}

/// A block's beginning.
pub fn start(index: u32, block: Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

/// A part of a block.
pub fn delta(index: u32, delta: Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn stop(index: u32) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

/// A refusal, as a body or as an event.
pub fn refusal(kind: &str, message: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})
}
