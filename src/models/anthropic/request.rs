//! What is sent: a call as the body of a message.
//!
//! The API wants more order than a conversation may have, so it is made here, the same way for the same conversation:
//! what stands side by side in one role is one message; every tool call is followed by its result, all results of an
//! answer in one message; ids and names have the letters that are allowed; no text is blank. Within that, texts and
//! arguments go out as they came in, byte for byte.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
};

use raddle_domain::{
    history::{Message, ToolCall},
    ports::{ModelRequest, ToolSpec},
    record::Purpose,
};
use serde::Serialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

/// The longest name of a tool, in letters.
const NAME_LETTERS: usize = 128;

/// How this provider is asked.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// For calls that name none.
    pub max_tokens: u32,
    pub prompt_cache: bool,
}

/// The body of one request; it borrows the call.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Sent<'a>>,
    messages: Vec<Said<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Offered<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    User,
    Assistant,
}

#[derive(Debug, Serialize)]
struct Said<'a> {
    role: Role,
    content: Vec<Sent<'a>>,
}

/// A block, and whether the provider is to keep what ends with it.
#[derive(Debug, Serialize)]
struct Sent<'a> {
    #[serde(flatten)]
    block: Block<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<Kept>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Kept {
    Ephemeral,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Choice {
    None,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text {
        text: &'a str,
    },
    ToolUse {
        id: Cow<'a, str>,
        name: Cow<'a, str>,
        input: Box<RawValue>,
    },
    ToolResult {
        tool_use_id: Cow<'a, str>,
        #[serde(skip_serializing_if = "str::is_empty")]
        content: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
}

#[derive(Debug, Serialize)]
struct Offered<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    input_schema: Cow<'a, Value>,
}

impl<'a> Body<'a> {
    pub fn new(request: &'a ModelRequest, manner: Manner) -> Self {
        let ModelRequest { model, messages, turn_start: _, purpose, tools, temperature, top_p, max_tokens } = request;
        let tools = match purpose {
            Purpose::Answer => tools.as_slice(),
            // A summary is asked for, and nothing else.
            Purpose::Compaction => &[],
        };
        let mut talk = Talk::default();
        messages.iter().for_each(|message| talk.add(message));
        talk.settle();
        let Talk { mut system, mut said, called, .. } = talk;
        if manner.prompt_cache {
            let last = said.last_mut().and_then(|said| said.content.last_mut());
            for sent in [system.last_mut(), last].into_iter().flatten() {
                sent.cache_control = Some(Kept::Ephemeral);
            }
        }
        let mut offered: Vec<_> = tools.iter().map(|tool| offered(tool)).collect();
        // Calls that were made need tools that are known, also where none may be called.
        let closed = offered.is_empty() && !called.is_empty();
        if closed {
            offered.extend(called.into_iter().map(bygone));
        }
        Self {
            model,
            max_tokens: max_tokens.unwrap_or(manner.max_tokens),
            system,
            messages: said,
            tools: offered,
            tool_choice: closed.then_some(Choice::None),
            stream: true,
            temperature: *temperature,
            top_p: *top_p,
        }
    }
}

/// A conversation on its way into the order of the API.
#[derive(Debug, Default)]
struct Talk<'a> {
    system: Vec<Sent<'a>>,
    said: Vec<Said<'a>>,
    /// Calls without a result yet: the model's name for each, and the one that is sent.
    pending: Vec<(&'a str, Cow<'a, str>)>,
    ids: HashSet<Cow<'a, str>>,
    called: BTreeSet<Cow<'a, str>>,
}

impl<'a> Talk<'a> {
    fn add(&mut self, message: &'a Message) {
        match message {
            Message::System { content } => self.system.extend(text(content)),
            Message::User { content } => {
                self.settle();
                self.say(Role::User, text(content));
            }
            Message::Assistant { content, reasoning: _, tool_calls } => {
                self.settle();
                self.say(Role::Assistant, text(content));
                for call in tool_calls {
                    let block = self.call(call);
                    self.say(Role::Assistant, Some(sent(block)));
                }
            }
            Message::Tool { call_id, content, failed } => {
                let place = self.pending.iter().position(|(known, _)| known == call_id);
                let result = match place.map(|place| self.pending.remove(place)) {
                    Some((_, id)) => Some(sent(Block::ToolResult { tool_use_id: id, content, is_error: *failed })),
                    // Of a call that nobody knows: it was said, so it is shown. No result may stand behind a text.
                    None => {
                        self.settle();
                        text(content)
                    }
                };
                self.say(Role::User, result);
            }
        }
    }

    fn say(&mut self, role: Role, block: Option<Sent<'a>>) {
        let Some(block) = block else { return };
        match self.said.last_mut() {
            Some(last) if last.role == role => last.content.push(block),
            _ => self.said.push(Said { role, content: vec![block] }),
        }
    }

    fn call(&mut self, call: &'a ToolCall) -> Block<'a> {
        let ToolCall { call_id, name, arguments } = call;
        let is_fit = !call_id.is_empty() && call_id.chars().all(is_letter) && !self.ids.contains(call_id.as_str());
        let id = if is_fit {
            Cow::Borrowed(call_id.as_str())
        } else {
            let fresh = (self.ids.len()..).map(|number| Cow::Owned(format!("call_{number}")));
            fresh.into_iter().find(|id| !self.ids.contains(id)).unwrap_or_default()
        };
        self.ids.insert(id.clone());
        self.pending.push((call_id, id.clone()));
        let name = fit_name(name);
        self.called.insert(name.clone());
        Block::ToolUse { id, name, input: input(arguments) }
    }

    /// Gives a result to every call that has none.
    fn settle(&mut self) {
        for (_, id) in std::mem::take(&mut self.pending) {
            let nothing = Block::ToolResult { tool_use_id: id, content: "there is no result", is_error: true };
            self.say(Role::User, Some(sent(nothing)));
        }
    }
}

fn sent(block: Block<'_>) -> Sent<'_> {
    Sent { block, cache_control: None }
}

/// The API refuses a text without a visible letter.
fn text(text: &str) -> Option<Sent<'_>> {
    (!text.trim().is_empty()).then(|| sent(Block::Text { text }))
}

fn offered(tool: &ToolSpec) -> Offered<'_> {
    let ToolSpec { name, description, schema } = tool;
    Offered { name: fit_name(name), description, input_schema: Cow::Borrowed(schema) }
}

fn bygone(name: Cow<'_, str>) -> Offered<'_> {
    Offered { name, description: "", input_schema: Cow::Owned(json!({"type": "object"})) }
}

fn is_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-')
}

fn fit_name(name: &str) -> Cow<'_, str> {
    let is_fit = (1..=NAME_LETTERS).contains(&name.len()) && name.chars().all(is_letter);
    if is_fit {
        return Cow::Borrowed(name);
    }
    let fit: String =
        name.chars().take(NAME_LETTERS).map(|letter| if is_letter(letter) { letter } else { '_' }).collect();
    Cow::Owned(if fit.is_empty() { "_".to_owned() } else { fit })
}

/// The arguments of a call in the model's own words, if those are an object; the API takes nothing else.
fn input(arguments: &str) -> Box<RawValue> {
    let object = match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(_)) => RawValue::from_string(arguments.to_owned()),
        _ if arguments.trim().is_empty() => to_raw_value(&json!({})),
        _ => to_raw_value(&json!({ "arguments": arguments })),
    };
    object.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNER: Manner = Manner { max_tokens: 9, prompt_cache: false };

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

    fn body(request: &ModelRequest) -> Value {
        serde_json::from_str(&serde_json::to_string(&Body::new(request, MANNER)).unwrap()).unwrap()
    }

    fn messages(messages: Vec<Message>) -> Value {
        body(&request(messages))["messages"].take()
    }

    fn user(content: &str) -> Message {
        Message::User { content: content.into() }
    }

    fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
        ToolCall { call_id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    fn assistant(content: &str, tool_calls: Vec<ToolCall>) -> Message {
        Message::Assistant { content: content.into(), reasoning: "hm".into(), tool_calls }
    }

    fn result(id: &str, content: &str, failed: bool) -> Message {
        Message::Tool { call_id: id.into(), content: content.into(), failed }
    }

    #[test]
    fn a_bare_call_is_a_bare_body_and_what_is_set_is_sent() {
        let mut request = request(vec![Message::System { content: "be kind".into() }, user("hi")]);
        let message = json!({"role": "user", "content": [{"type": "text", "text": "hi"}]});
        let bare = json!({
            "model": "m", "max_tokens": 9, "stream": true,
            "system": [{"type": "text", "text": "be kind"}], "messages": [message],
        });
        assert_eq!(body(&request), bare);
        (request.temperature, request.top_p, request.max_tokens) = (Some(0.5), Some(1.0), Some(7));
        request.tools =
            vec![ToolSpec { name: "ls".into(), description: "lists".into(), schema: json!({"x": 1}) }.into()];
        let full = body(&request);
        assert_eq!((&full["temperature"], &full["top_p"], &full["max_tokens"]), (&json!(0.5), &json!(1.0), &json!(7)));
        assert_eq!(full["tools"], json!([{"name": "ls", "description": "lists", "input_schema": {"x": 1}}]));
        assert_eq!(full.get("tool_choice"), None);
    }

    #[test]
    fn the_results_of_one_answer_are_one_message_before_what_the_user_says() {
        let said = messages(vec![
            user("one"),
            user("two"),
            assistant("so", vec![call("c1", "ls", "{\"p\":1}"), call("c2", "cat", "")]),
            result("c1", "a", false),
            result("c2", "", true),
            user("steer"),
            assistant("bye", vec![]),
        ]);
        let expected = json!([
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "c1", "name": "ls", "input": {"p": 1}},
                {"type": "tool_use", "id": "c2", "name": "cat", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "a"},
                {"type": "tool_result", "tool_use_id": "c2", "is_error": true},
                {"type": "text", "text": "steer"},
            ]},
            {"role": "assistant", "content": [{"type": "text", "text": "bye"}]},
        ]);
        assert_eq!(said, expected);
    }

    #[test]
    fn a_call_without_a_result_gets_one_and_a_result_without_a_call_is_shown() {
        let said = messages(vec![
            assistant("", vec![call("c1", "ls", "{}"), call("c2", "ls", "{}")]),
            result("c2", "b", false),
            result("c9", "of another", false),
            user("go on"),
        ]);
        let nothing =
            json!({"type": "tool_result", "tool_use_id": "c1", "content": "there is no result", "is_error": true});
        assert_eq!(
            said[1]["content"],
            json!([
                {"type": "tool_result", "tool_use_id": "c2", "content": "b"},
                nothing,
                {"type": "text", "text": "of another"},
                {"type": "text", "text": "go on"},
            ])
        );
    }

    #[test]
    fn ids_and_names_have_letters_that_are_allowed_and_no_id_is_used_twice() {
        let odd = vec![call("a|b", "my tool", "{}"), call("same", "ls", "{}"), call("", "", "{}")];
        let said = messages(vec![
            assistant("", odd),
            result("a|b", "1", false),
            result("same", "2", false),
            result("", "3", false),
            assistant("", vec![call("same", "ls", "{}")]),
            result("same", "4", false),
        ]);
        let list = |message: usize, name: &str| -> Vec<String> {
            let blocks = said[message]["content"].as_array().unwrap();
            blocks.iter().map(|block| block[name].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(list(0, "id"), ["call_0", "same", "call_2"]);
        assert_eq!(list(0, "name"), ["my_tool", "ls", "_"]);
        assert_eq!(list(1, "tool_use_id"), ["call_0", "same", "call_2"]);
        assert_eq!((list(2, "id"), list(3, "tool_use_id")), (vec!["call_3".into()], vec!["call_3".into()]));
        assert_eq!(fit_name(&"x".repeat(200)).len(), NAME_LETTERS);
    }

    #[test]
    fn arguments_go_back_to_the_byte_if_they_are_an_object() {
        let arguments = "{ \"b\" : 1.50,\n\"a\":\"\\u00e9\\/\", \"a\": 1 }";
        let request = request(vec![assistant("", vec![call("c", "ls", arguments)])]);
        let sent = serde_json::to_string(&Body::new(&request, MANNER)).unwrap();
        assert!(sent.contains(&format!("\"input\":{arguments}")), "{sent}");
        let said = |arguments: &str| input(arguments).get().to_owned();
        assert_eq!(said(""), "{}");
        assert_eq!(said("[1]"), "{\"arguments\":\"[1]\"}");
        assert_eq!(said("{\"a\""), "{\"arguments\":\"{\\\"a\\\"\"}");
    }

    #[test]
    fn a_blank_text_is_not_sent() {
        let said = messages(vec![user("hi"), assistant(" \n", vec![]), user("\t"), user("there")]);
        assert_eq!(
            said,
            json!([{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]}])
        );
    }

    #[test]
    fn a_compaction_knows_the_tools_that_were_called_and_may_call_none() {
        let tool = ToolSpec { name: "put".into(), description: "d".into(), schema: json!({}) };
        let talk =
            vec![user("hi"), assistant("", vec![call("c1", "ls", "{}")]), result("c1", "a", false), user("sum up")];
        let compaction = ModelRequest { purpose: Purpose::Compaction, tools: vec![tool.into()], ..request(talk) };
        let sent = body(&compaction);
        assert_eq!(sent["tools"], json!([{"name": "ls", "input_schema": {"type": "object"}}]));
        assert_eq!(sent["tool_choice"], json!({"type": "none"}));
        let bare = ModelRequest { messages: vec![user("hi")], ..compaction };
        assert_eq!((body(&bare).get("tools"), body(&bare).get("tool_choice")), (None, None));
    }

    #[test]
    fn what_is_to_be_kept_ends_with_the_system_prompt_and_with_the_last_block() {
        let request = request(vec![Message::System { content: "s".into() }, user("a"), user("b")]);
        let sent = serde_json::to_value(Body::new(&request, Manner { prompt_cache: true, ..MANNER })).unwrap();
        let kept = json!({"type": "ephemeral"});
        assert_eq!(sent["system"][0]["cache_control"], kept);
        assert_eq!(sent["messages"][0]["content"][0].get("cache_control"), None);
        assert_eq!(sent["messages"][0]["content"][1], json!({"type": "text", "text": "b", "cache_control": kept}));
    }
}
