//! What is sent: a call as the body of a chat completion.
//!
//! Sampling fields are sent only if they are set, so that the provider's defaults are its own.

use raddle_domain::{
    history::{Message, ToolCall},
    ports::ModelRequest,
};
use serde::Serialize;

/// The body of one request; it borrows the call.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    model: &'a str,
    messages: Vec<Sent<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, Serialize)]
#[serde(tag = "role", rename_all = "snake_case")]
enum Sent<'a> {
    System {
        content: &'a str,
    },
    User {
        content: &'a str,
    },
    Assistant {
        /// Null where an answer was tool calls only: some providers refuse an empty text beside them.
        content: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning_content: Option<&'a str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<SentCall<'a>>,
    },
    Tool {
        tool_call_id: &'a str,
        content: &'a str,
    },
}

#[derive(Debug, Serialize)]
struct SentCall<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Debug, Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> Body<'a> {
    /// With `send_reasoning`, what the model thought earlier goes back to it as `reasoning_content`.
    pub fn new(request: &'a ModelRequest, send_reasoning: bool) -> Self {
        let ModelRequest { model, messages, turn_start: _, purpose: _, tools: _, temperature, top_p, max_tokens } =
            request;
        Self {
            model,
            messages: messages.iter().map(|message| sent(message, send_reasoning)).collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: *temperature,
            top_p: *top_p,
            max_tokens: *max_tokens,
        }
    }
}

fn sent(message: &Message, send_reasoning: bool) -> Sent<'_> {
    match message {
        Message::System { content } => Sent::System { content },
        Message::User { content } => Sent::User { content },
        Message::Assistant { content, reasoning, tool_calls } => Sent::Assistant {
            content: Some(content.as_str()).filter(|content| !content.is_empty() || tool_calls.is_empty()),
            reasoning_content: Some(reasoning.as_str()).filter(|text| send_reasoning && !text.is_empty()),
            tool_calls: tool_calls.iter().map(sent_call).collect(),
        },
        Message::Tool { call_id, content } => Sent::Tool { tool_call_id: call_id, content },
    }
}

fn sent_call(call: &ToolCall) -> SentCall<'_> {
    // Models write nothing for a tool without parameters, and providers then refuse their own word.
    let arguments = if call.arguments.is_empty() { "{}" } else { call.arguments.as_str() };
    SentCall { id: &call.call_id, r#type: "function", function: Function { name: &call.name, arguments } }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn body(messages: Vec<Message>, send_reasoning: bool) -> Value {
        let request = ModelRequest {
            model: "m".into(),
            messages,
            turn_start: 0,
            purpose: raddle_domain::record::Purpose::Answer,
            tools: Vec::new(),
            temperature: None,
            top_p: None,
            max_tokens: None,
        };
        serde_json::to_value(Body::new(&request, send_reasoning)).unwrap()
    }

    #[test]
    fn sampling_fields_are_sent_only_if_set() {
        let mut request = ModelRequest {
            model: "m".into(),
            messages: vec![],
            turn_start: 0,
            purpose: raddle_domain::record::Purpose::Answer,
            tools: Vec::new(),
            temperature: None,
            top_p: None,
            max_tokens: None,
        };
        let bare = json!({"model": "m", "messages": [], "stream": true, "stream_options": {"include_usage": true}});
        assert_eq!(serde_json::to_value(Body::new(&request, false)).unwrap(), bare);
        (request.temperature, request.top_p, request.max_tokens) = (Some(0.5), Some(1.0), Some(7));
        let full = serde_json::to_value(Body::new(&request, false)).unwrap();
        assert_eq!((&full["temperature"], &full["top_p"], &full["max_tokens"]), (&json!(0.5), &json!(1.0), &json!(7)));
    }

    #[test]
    fn messages_have_the_shape_of_chat_completions() {
        let call =
            |id: &str, arguments: &str| ToolCall { call_id: id.into(), name: "ls".into(), arguments: arguments.into() };
        let assistant = |content: &str, tool_calls| Message::Assistant {
            content: content.into(),
            reasoning: "hm".into(),
            tool_calls,
        };
        let messages = vec![
            Message::System { content: "be kind".into() },
            Message::User { content: "hi".into() },
            assistant("", vec![call("c1", "{\"p\":1}"), call("c2", "")]),
            Message::Tool { call_id: "c1".into(), content: "a".into() },
            assistant("", vec![]),
            assistant("bye", vec![]),
        ];
        let function =
            |id, arguments| json!({"id": id, "type": "function", "function": {"name": "ls", "arguments": arguments}});
        let mut expected = json!([
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [function("c1", "{\"p\":1}"), function("c2", "{}")]},
            {"role": "tool", "tool_call_id": "c1", "content": "a"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "bye"},
        ]);
        assert_eq!(body(messages.clone(), false)["messages"], expected);
        for index in [2, 4, 5] {
            expected[index]["reasoning_content"] = json!("hm");
        }
        assert_eq!(body(messages, true)["messages"], expected);
    }
}
