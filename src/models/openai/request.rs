//! What is sent: a call as the body of a chat completion.
//!
//! Sampling fields are sent only if they are set, so that the provider's defaults are its own. Texts, ids, names and
//! arguments go out as they came in, byte for byte: a provider that finds its own words again has them cached.
//!
//! Absent on purpose: `tool_choice`. Whether to call a tool is for the model, and its absence is understood by all.

use raddle_domain::{
    history::{Message, ToolCall},
    ports::{ModelRequest, ToolSpec},
    record::Purpose,
};
use serde::Serialize;
use serde_json::Value;

/// The body of one request; it borrows the call.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    model: &'a str,
    messages: Vec<Sent<'a>>,
    /// Absent where there are none: some providers refuse an empty list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Offered<'a>>,
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
struct Offered<'a> {
    r#type: &'static str,
    function: Described<'a>,
}

#[derive(Debug, Serialize)]
struct Described<'a> {
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
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
        let ModelRequest { model, messages, turn_start: _, purpose, tools, temperature, top_p, max_tokens } = request;
        let tools = match purpose {
            Purpose::Answer => tools.as_slice(),
            // A summary is asked for, and nothing else.
            Purpose::Compaction => &[],
        };
        Self {
            model,
            messages: messages.iter().map(|message| sent(message, send_reasoning)).collect(),
            tools: tools.iter().map(|tool| offered(tool)).collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: *temperature,
            top_p: *top_p,
            max_tokens: *max_tokens,
        }
    }
}

fn offered(tool: &ToolSpec) -> Offered<'_> {
    let ToolSpec { name, description, schema } = tool;
    Offered { r#type: "function", function: Described { name, description, parameters: schema } }
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
        Message::Tool { call_id, content, failed: _ } => Sent::Tool { tool_call_id: call_id, content },
    }
}

fn sent_call(call: &ToolCall) -> SentCall<'_> {
    // Models write nothing for a tool without parameters, and providers then refuse their own word.
    let arguments = if call.arguments.is_empty() { "{}" } else { call.arguments.as_str() };
    SentCall { id: &call.call_id, r#type: "function", function: Function { name: &call.name, arguments } }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(messages: Vec<Message>) -> ModelRequest {
        ModelRequest {
            model: "m".into(),
            messages,
            turn_start: 0,
            purpose: Purpose::Answer,
            tools: Vec::new(),
            temperature: None,
            top_p: None,
            max_tokens: None,
        }
    }

    fn body(messages: Vec<Message>, send_reasoning: bool) -> Value {
        serde_json::to_value(Body::new(&request(messages), send_reasoning)).unwrap()
    }

    fn user(content: &str) -> Message {
        Message::User { content: content.into() }
    }

    fn tool(name: &str) -> ToolSpec {
        let schema = json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": [1, null]}}});
        ToolSpec { name: name.into(), description: "Does\n\"it\".".into(), schema }
    }

    #[test]
    fn tools_are_sent_as_functions_to_the_byte() {
        let request =
            ModelRequest { tools: vec![tool("put").into(), tool("ask_user").into()], ..request(vec![user("hi")]) };
        let function = |name: &str| {
            let schema = r#"{"type":"object","properties":{"b":{"type":"string"},"a":{"enum":[1,null]}}}"#;
            format!(
                r#"{{"type":"function","function":{{"name":"{name}","description":"Does\n\"it\".","parameters":{schema}}}}}"#
            )
        };
        let expected = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"tools":[{},{}],"stream":true,"stream_options":{{"include_usage":true}}}}"#,
            function("put"),
            function("ask_user")
        );
        assert_eq!(serde_json::to_string(&Body::new(&request, false)).unwrap(), expected);
    }

    #[test]
    fn without_tools_the_field_is_absent_and_a_choice_is_never_sent() {
        let bare = body(vec![user("hi")], false);
        assert_eq!((bare.get("tools"), bare.get("tool_choice")), (None, None));
        let with = ModelRequest { tools: vec![tool("put").into()], ..request(vec![user("hi")]) };
        assert_eq!(serde_json::to_value(Body::new(&with, false)).unwrap().get("tool_choice"), None);
    }

    #[test]
    fn a_compaction_sends_its_messages_and_no_tools() {
        let call = ToolCall { call_id: "c1".into(), name: "put".into(), arguments: "{}".into() };
        let messages = vec![
            user("hi"),
            Message::Assistant { content: "so".into(), reasoning: String::new(), tool_calls: vec![call] },
            Message::Tool { call_id: "c1".into(), content: "done".into(), failed: false },
            user("summarise\n\nbe short"),
        ];
        let answer = ModelRequest { tools: vec![tool("put").into()], ..request(messages) };
        let compaction = ModelRequest { purpose: Purpose::Compaction, ..answer.clone() };
        let mut expected = serde_json::to_value(Body::new(&answer, false)).unwrap();
        expected.as_object_mut().unwrap().remove("tools");
        assert_eq!(serde_json::to_value(Body::new(&compaction, false)).unwrap(), expected);
    }

    #[test]
    fn what_a_model_said_goes_back_to_the_byte() {
        let arguments = "{ \"b\" : 1.50,\n\"a\":\"\\u00e9\\/\", \"a\": 1e400 ";
        let call = ToolCall { call_id: "call|é 1".into(), name: "ls".into(), arguments: arguments.into() };
        let tool_calls = vec![call];
        let said = Message::Assistant { content: " let me\nsee ".into(), reasoning: " hm\n".into(), tool_calls };
        let result = Message::Tool { call_id: "call|é 1".into(), content: String::new(), failed: false };
        assert_eq!(
            body(vec![said, result], true)["messages"],
            json!([
                {
                    "role": "assistant", "content": " let me\nsee ", "reasoning_content": " hm\n",
                    "tool_calls": [
                        {"id": "call|é 1", "type": "function", "function": {"name": "ls", "arguments": arguments}},
                    ],
                },
                {"role": "tool", "tool_call_id": "call|é 1", "content": ""},
            ])
        );
    }

    #[test]
    fn sampling_fields_are_sent_only_if_set() {
        let mut request = request(vec![]);
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
            Message::Tool { call_id: "c1".into(), content: "a".into(), failed: false },
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
