//! What the model sees: messages, rebuilt from items, the same every time they are rebuilt.
//!
//! One model call made one run of items (reasoning, text, tool calls); they become one assistant message
//! followed by a tool message per call. An item marked superseded belongs to an answer that was cut off
//! and asked for again, so no model sees it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::{Item, ItemKind, MAX_DEPTH, TurnStatus, nests_deeper};

/// Metadata key of an item whose answer was cut off and requested again.
pub const SUPERSEDED: &str = "superseded";
/// Metadata key: which model call of its turn made the item, from 1.
pub const CALL: &str = "call";
/// Metadata key: the arguments of a tool call in the model's own words, where `arguments` says the same differently.
pub const ARGUMENTS: &str = "arguments_text";
/// Metadata key of a tool call that an agent made itself, in the middle of its answer.
pub const AGENT: &str = "agent";
/// What stands before a summary, so that the model knows what it is.
pub const SUMMARY: &str = "[Summary of the conversation so far; what it replaces is not shown again]";

/// One message of a conversation, in the terms that chat models share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    System {
        content: String,
    },
    User {
        content: String,
    },
    Assistant {
        content: String,
        reasoning: String,
        tool_calls: Vec<ToolCall>,
    },
    Tool {
        call_id: String,
        content: String,
        /// Whether the call came to nothing. Some providers are told.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        failed: bool,
    },
}

impl Message {
    fn held_bytes(&self) -> usize {
        let texts = match self {
            Self::System { content } | Self::User { content } => content.len(),
            Self::Assistant { content, reasoning, tool_calls } => {
                let call = |call: &ToolCall| {
                    size_of::<ToolCall>() + call.call_id.len() + call.name.len() + call.arguments.len()
                };
                content.len() + reasoning.len() + tool_calls.iter().map(call).sum::<usize>()
            }
            Self::Tool { call_id, content, .. } => call_id.len() + content.len(),
        };
        size_of::<Self>() + texts
    }
}

/// A tool call as the model asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ToolCall {
    /// The provider's name for the call.
    pub call_id: String,
    pub name: String,
    /// The arguments as text: a JSON object, unless the model wrote something else.
    pub arguments: String,
}

impl ToolCall {
    /// The arguments as items show them: an object where they are one that can be read back, otherwise the raw text.
    pub fn arguments_value(&self) -> Value {
        match serde_json::from_str::<Value>(&self.arguments) {
            Ok(object @ Value::Object(_)) if !nests_deeper(&object, MAX_DEPTH) => object,
            _ => Value::String(self.arguments.clone()),
        }
    }
}

/// Turns that ended, as a model sees them that is called later: a conversation without its system prompt and its open
/// turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Past {
    messages: Vec<Message>,
    bytes: usize,
}

impl Past {
    /// Messages among which there is no system prompt.
    pub fn of(messages: Vec<Message>) -> Self {
        let bytes = messages.iter().map(Message::held_bytes).sum();
        Self { messages, bytes }
    }

    /// The same, and a turn that came after it.
    #[must_use]
    pub fn then(self, items: &[Item]) -> Self {
        let mut history = History { messages: self.messages, ..History::default() };
        history.turn();
        items.iter().for_each(|item| history.push(item));
        history.past()
    }

    /// About how many bytes of memory it holds.
    pub const fn held_bytes(&self) -> usize {
        self.bytes
    }
}

/// Builds the messages of a conversation, an item at a time, oldest first.
#[derive(Debug, Default)]
pub struct History {
    messages: Vec<Message>,
    /// The assistant message that is being put together, and the call that made it.
    open: Option<(Option<u64>, Message)>,
    results: Vec<Message>,
    turn_start: usize,
}

impl History {
    /// Starts with the system prompt, if there is one.
    pub fn new(system_prompt: Option<&str>) -> Self {
        let system = system_prompt.map(|content| Message::System { content: content.to_owned() });
        Self { messages: system.into_iter().collect(), ..Self::default() }
    }

    /// Starts with the system prompt, if there is one, and what came before.
    pub fn after(past: &Past, system_prompt: Option<&str>) -> Self {
        let mut history = Self::new(system_prompt);
        history.messages.extend_from_slice(&past.messages);
        history
    }

    /// Adds the next item.
    pub fn push(&mut self, item: &Item) {
        if item.metadata.get(SUPERSEDED).is_some() {
            // Only the last item of an answer that was cut off says so; what its call said before goes with it.
            let call = item.metadata.get(CALL).and_then(Value::as_u64);
            if self.open.take_if(|(open, _)| *open == call).is_some() {
                self.results.clear();
            }
            return;
        }
        match item.kind {
            ItemKind::UserMessage => {
                self.close();
                self.messages.push(Message::User { content: item.detail.clone() });
            }
            ItemKind::AgentMessage => self.assistant(item, |content, _, _| content.push_str(&item.detail)),
            ItemKind::Reasoning => self.assistant(item, |_, reasoning, _| reasoning.push_str(&item.detail)),
            ItemKind::ToolCall | ItemKind::CommandExecution | ItemKind::FileChange => {
                let text = |key: &str| item.metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                let arguments = match item.metadata.get(ARGUMENTS).or_else(|| item.metadata.get("arguments")) {
                    Some(Value::String(raw)) => raw.clone(),
                    Some(value) => value.to_string(),
                    None => String::new(),
                };
                let call = ToolCall { call_id: text("call_id"), name: text("tool"), arguments };
                let failed = item.status != TurnStatus::Completed;
                self.results.push(Message::Tool {
                    call_id: call.call_id.clone(),
                    content: item.detail.clone(),
                    failed,
                });
                self.assistant(item, |_, _, calls| calls.push(call));
            }
            ItemKind::ContextCompaction if item.status == TurnStatus::Completed => self.compact(&item.detail),
            // Told to people, not to models.
            ItemKind::ContextCompaction | ItemKind::Status | ItemKind::Error => {}
        }
    }

    /// Begins the next turn.
    pub fn turn(&mut self) {
        self.close();
        self.turn_start = self.messages.len();
    }

    /// Where in the messages the turn begins that was begun last.
    pub const fn turn_start(&self) -> usize {
        self.turn_start
    }

    /// Replaces what came before by its summary: all but the system prompt, and what users said in this turn.
    fn compact(&mut self, summary: &str) {
        self.close();
        let said = self.messages.split_off(self.turn_start);
        self.messages.retain(|message| matches!(message, Message::System { .. }));
        self.messages.push(Message::User { content: format!("{SUMMARY}\n\n{summary}") });
        self.turn_start = self.messages.len();
        self.messages.extend(said.into_iter().filter(|message| matches!(message, Message::User { .. })));
    }

    /// The messages so far.
    pub fn finish(mut self) -> Vec<Message> {
        self.close();
        self.messages
    }

    /// The messages so far, to go on from. There must be no system prompt among them.
    pub fn past(self) -> Past {
        Past::of(self.finish())
    }

    fn assistant(&mut self, item: &Item, add: impl FnOnce(&mut String, &mut String, &mut Vec<ToolCall>)) {
        let call = item.metadata.get(CALL).and_then(Value::as_u64);
        if self.open.as_ref().is_some_and(|(open, _)| *open != call) {
            // The result just pushed, if any, belongs to the message that is about to open.
            let own = matches!(item.kind, ItemKind::ToolCall | ItemKind::CommandExecution | ItemKind::FileChange)
                .then(|| self.results.pop())
                .flatten();
            self.close();
            self.results.extend(own);
        }
        let empty =
            || (call, Message::Assistant { content: String::new(), reasoning: String::new(), tool_calls: Vec::new() });
        let (_, message) = self.open.get_or_insert_with(empty);
        if let Message::Assistant { content, reasoning, tool_calls } = message {
            add(content, reasoning, tool_calls);
        }
    }

    fn close(&mut self) {
        self.messages.extend(self.open.take().map(|(_, message)| message));
        self.messages.append(&mut self.results);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::{
        id::{ItemId, TurnId},
        time::UnixMs,
    };

    fn item(kind: ItemKind, detail: &str, metadata: Value) -> Item {
        Item {
            id: ItemId::new(Uuid::nil()),
            turn_id: TurnId::new(Uuid::nil()),
            kind,
            status: TurnStatus::Completed,
            summary: String::new(),
            detail: detail.to_owned(),
            metadata: metadata.as_object().cloned().unwrap_or_default(),
            artifact_refs: Vec::new(),
            started_at: UnixMs(0),
            ended_at: None,
        }
    }

    fn history(items: &[Item]) -> Vec<Message> {
        let mut history = History::new(Some("be kind"));
        items.iter().for_each(|item| history.push(item));
        history.finish()
    }

    fn assistant(content: &str, reasoning: &str, calls: &[(&str, &str, &str)]) -> Message {
        let tool_calls = calls
            .iter()
            .map(|(call_id, name, arguments)| ToolCall {
                call_id: (*call_id).into(),
                name: (*name).into(),
                arguments: (*arguments).into(),
            })
            .collect();
        Message::Assistant { content: content.into(), reasoning: reasoning.into(), tool_calls }
    }

    #[test]
    fn the_items_of_one_call_are_one_message_followed_by_its_results() {
        let items = [
            item(ItemKind::UserMessage, "hi", json!({})),
            item(ItemKind::Reasoning, "hm", json!({"call": 1})),
            item(ItemKind::AgentMessage, "let me look", json!({"call": 1})),
            item(ItemKind::ToolCall, "a.txt", json!({"call": 1, "call_id": "c1", "tool": "ls", "arguments": {"p": 1}})),
            item(
                ItemKind::ToolCall,
                "b.txt",
                json!({"call": 1, "call_id": "c2", "tool": "ls", "arguments": "not json"}),
            ),
            item(ItemKind::ToolCall, "c.txt", json!({"call": 2, "call_id": "c3", "tool": "ls", "arguments": {}})),
            item(ItemKind::AgentMessage, "done", json!({"call": 3})),
        ];
        let tool =
            |id: &str, content: &str| Message::Tool { call_id: id.into(), content: content.into(), failed: false };
        assert_eq!(
            history(&items),
            [
                Message::System { content: "be kind".into() },
                Message::User { content: "hi".into() },
                assistant("let me look", "hm", &[("c1", "ls", "{\"p\":1}"), ("c2", "ls", "not json")]),
                tool("c1", "a.txt"),
                tool("c2", "b.txt"),
                assistant("", "", &[("c3", "ls", "{}")]),
                tool("c3", "c.txt"),
                assistant("done", "", &[]),
            ]
        );
    }

    #[test]
    fn what_an_answer_said_before_it_was_cut_off_is_not_shown_either() {
        let items = [
            item(ItemKind::UserMessage, "hi", json!({})),
            item(ItemKind::AgentMessage, "one", json!({"call": 1})),
            item(ItemKind::Reasoning, "hm", json!({"call": 2})),
            item(ItemKind::AgentMessage, "tw", json!({"call": 2})),
            item(ItemKind::Reasoning, "mh", json!({"call": 2, "superseded": true})),
            item(ItemKind::AgentMessage, "two", json!({"call": 3})),
        ];
        assert_eq!(history(&items)[2..], [assistant("one", "", &[]), assistant("two", "", &[])]);
    }

    #[test]
    fn a_superseded_part_of_an_answer_is_not_shown_to_the_model() {
        let items = [
            item(ItemKind::UserMessage, "hi", json!({})),
            item(ItemKind::AgentMessage, "hel", json!({"call": 1, "superseded": true})),
            item(ItemKind::AgentMessage, "hello", json!({"call": 2})),
        ];
        assert_eq!(history(&items)[2..], [assistant("hello", "", &[])]);
    }
}
