//! What an agent says, as fragments. Pure; no process is needed to test it.
//!
//! A tool call of the agent is told in parts, each naming only what has changed; what is known of it by now goes with
//! every [`Act`]. An act ends once: what is said about it later is not heard. Whatever is not text, thought or tool
//! call (plans, modes, commands, titles) is between the agent and an editor.

use std::collections::HashMap;

use agent_client_protocol::v1::schema::{
    ContentBlock, PermissionOption, PermissionOptionId, PermissionOptionKind, RequestPermissionRequest, SessionUpdate,
    ToolCallContent, ToolCallStatus, ToolCallUpdate, ToolCallUpdateFields, ToolKind,
};
use raddle_domain::{
    ports::{Act, ActStep, Fragment, Gate, Planned},
    record::{EffectClass, ItemKind, MAX_DEPTH, Permit, nests_deeper},
};
use serde_json::{Value, json};
use similar::TextDiff;

use crate::tools::arguments;

/// The most of an act's arguments that is shown and kept, in bytes of JSON.
pub const ARGUMENT_BYTES: usize = 256 << 10;

/// The most of an act's output that is kept while it grows.
const OUTPUT_BYTES: usize = 1 << 20;

/// Both sides of a change beyond which it is told as its size.
const DIFF_BYTES: usize = 256 << 10;

/// Everything that was said in one answer.
#[derive(Debug, Default)]
pub struct Says {
    /// The agent's name, for people.
    agent: String,
    /// Where it works.
    cwd: String,
    acts: HashMap<String, Known>,
}

/// A tool call as far as it is known.
#[derive(Debug)]
struct Known {
    title: String,
    kind: ToolKind,
    input: Option<Value>,
    places: Vec<String>,
    changes: Vec<Value>,
    output: String,
    status: ToolCallStatus,
    told: Told,
    /// How much of the output was told.
    said: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Announced,
    Started,
    Ended,
}

impl Says {
    pub fn new(agent: &str, cwd: &str) -> Self {
        Self { agent: agent.to_owned(), cwd: cwd.to_owned(), acts: HashMap::new() }
    }

    /// What an update of the session says.
    pub fn update(&mut self, update: SessionUpdate) -> Vec<Fragment> {
        match update {
            SessionUpdate::AgentMessageChunk(chunk) => vec![Fragment::Text(text_of(&chunk.content))],
            SessionUpdate::AgentThoughtChunk(chunk) => vec![Fragment::Reasoning(text_of(&chunk.content))],
            SessionUpdate::ToolCall(call) => {
                let id = call.tool_call_id.to_string();
                // A name that is used again is another call.
                self.acts.retain(|known, act| *known != id || act.told != Told::Ended);
                self.act(ToolCallUpdate::from(call))
            }
            SessionUpdate::ToolCallUpdate(update) => self.act(update),
            _ => Vec::new(),
        }
    }

    /// What an agent says that asks for permission, ending with the question; nothing when it may not be asked.
    pub fn ask(&mut self, asked: RequestPermissionRequest) -> Option<(String, Vec<Fragment>)> {
        let id = asked.tool_call.tool_call_id.to_string();
        self.acts.retain(|known, act| *known != id || act.told != Told::Ended);
        let mut fragments = self.act(asked.tool_call);
        let act = self.acts.get_mut(&id)?;
        let arguments = act.arguments();
        let is_shown = size(&arguments) <= ARGUMENT_BYTES && !nests_deeper(&arguments, MAX_DEPTH);
        // What a person cannot be shown whole is not theirs to allow.
        let digest = arguments::digest(&arguments).ok().filter(|_| is_shown)?;
        // Only of a call that says what it is made of can it be said that another is the same.
        let says_all = act.input.as_ref().and_then(Value::as_object).is_some_and(|input| !input.is_empty());
        let planned = Planned {
            kind: item_kind(act.kind),
            class: EffectClass::Once,
            gate: Gate::Ask,
            arguments_sha256: digest.clone(),
            command: (act.kind == ToolKind::Execute).then(|| act.command()),
            cwd: Some(self.cwd.clone()),
            words: None,
            hosts: Vec::new(),
            reason: format!("the agent `{}` asks: {}", self.agent, act.title),
            asked_by: None,
            amendment: says_all.then(|| Permit {
                tool: act.tool(),
                arguments_sha256: Some(digest),
                command_prefix: None,
                host: None,
            }),
            permitted_by: None,
            arguments,
        };
        act.told = act.told.max(Told::Announced);
        fragments.push(act.says(&id, ActStep::Asks(Box::new(planned))));
        Some((id, fragments))
    }

    fn act(&mut self, update: ToolCallUpdate) -> Vec<Fragment> {
        let id = update.tool_call_id.to_string();
        let act = self.acts.entry(id.clone()).or_insert_with(Known::new);
        if act.told == Told::Ended {
            return Vec::new();
        }
        act.learn(update.fields);
        let mut fragments = Vec::new();
        match act.status {
            ToolCallStatus::InProgress => {
                if act.told < Told::Started {
                    act.told = Told::Started;
                    fragments.push(act.says(&id, ActStep::Started));
                }
                if act.output.len() > act.said {
                    let more = act.output[act.said..].to_owned();
                    act.said = act.output.len();
                    fragments.push(act.says(&id, ActStep::Said(more)));
                }
            }
            ToolCallStatus::Completed | ToolCallStatus::Failed => {
                act.told = Told::Ended;
                let done = act.status == ToolCallStatus::Completed;
                fragments.push(act.says(&id, ActStep::Ended { done, output: act.output.clone() }));
            }
            // It waits for its input, or for somebody's word.
            _ => {
                if act.told == Told::Nothing {
                    act.told = Told::Announced;
                    fragments.push(act.says(&id, ActStep::Announced));
                }
            }
        }
        fragments
    }
}

impl Known {
    fn new() -> Self {
        Self {
            title: String::new(),
            kind: ToolKind::Other,
            input: None,
            places: Vec::new(),
            changes: Vec::new(),
            output: String::new(),
            status: ToolCallStatus::Pending,
            told: Told::Nothing,
            said: 0,
        }
    }

    fn learn(&mut self, fields: ToolCallUpdateFields) {
        let ToolCallUpdateFields { kind, status, title, content, locations, raw_input, raw_output, .. } = fields;
        self.kind = kind.unwrap_or(self.kind);
        self.status = status.unwrap_or(self.status);
        self.title = title.unwrap_or_else(|| std::mem::take(&mut self.title));
        self.input = raw_input.or_else(|| self.input.take());
        if let Some(places) = locations {
            self.places = places.iter().map(|place| place.path.display().to_string()).collect();
        }
        if let Some(content) = &content {
            self.changes = content.iter().filter_map(change).collect();
        }
        let told = content.map(|content| output(&content)).filter(|text| !text.is_empty());
        let raw = || match raw_output {
            Some(Value::String(text)) => Some(text),
            Some(Value::Null) | None => None,
            Some(value) if self.output.is_empty() => Some(value.to_string()),
            Some(_) => None,
        };
        if let Some(mut output) = told.or_else(raw) {
            output.truncate(output.floor_char_boundary(OUTPUT_BYTES));
            // What was told can be added to, and not taken back before the end.
            if !output.starts_with(&self.output[..self.said]) {
                self.said = output.len();
            }
            self.output = output;
        }
    }

    fn says(&self, id: &str, step: ActStep) -> Fragment {
        let arguments = self.arguments();
        let arguments = match size(&arguments) {
            bytes if bytes > ARGUMENT_BYTES => json!({"title": self.title, "omitted_bytes": bytes}),
            _ if nests_deeper(&arguments, MAX_DEPTH) => json!({"title": self.title, "omitted": "nests too deep"}),
            _ => arguments,
        };
        Fragment::Act(Act {
            call_id: id.to_owned(),
            tool: self.tool(),
            title: if self.kind == ToolKind::Execute { self.command() } else { self.title.clone() },
            kind: item_kind(self.kind),
            arguments,
            step,
        })
    }

    fn tool(&self) -> String {
        let kind = serde_json::to_value(self.kind).ok();
        format!("acp:{}", kind.as_ref().and_then(Value::as_str).unwrap_or("other"))
    }

    /// What the call is made of, as it is shown and bound to an approval.
    fn arguments(&self) -> Value {
        let mut arguments = json!({"title": self.title});
        if let Some(input) = &self.input {
            arguments["input"] = input.clone();
        }
        if !self.places.is_empty() {
            arguments["paths"] = json!(self.places);
        }
        if !self.changes.is_empty() {
            arguments["changes"] = json!(self.changes);
        }
        arguments
    }

    fn command(&self) -> String {
        let input = self.input.as_ref();
        let command = input.and_then(|input| input["command"].as_str()).filter(|command| !command.is_empty());
        command.unwrap_or(&self.title).to_owned()
    }
}

/// The option that says what was decided, the narrowest of its kind. Without one the question is taken back.
pub fn choice(options: &[PermissionOption], allowed: bool) -> Option<PermissionOptionId> {
    let kinds = match allowed {
        true => [PermissionOptionKind::AllowOnce, PermissionOptionKind::AllowAlways],
        false => [PermissionOptionKind::RejectOnce, PermissionOptionKind::RejectAlways],
    };
    let of_kind = |kind: &PermissionOptionKind| options.iter().find(|option| option.kind == *kind);
    kinds.iter().find_map(of_kind).map(|option| option.option_id.clone())
}

fn item_kind(kind: ToolKind) -> ItemKind {
    match kind {
        ToolKind::Execute => ItemKind::CommandExecution,
        ToolKind::Edit | ToolKind::Delete | ToolKind::Move => ItemKind::FileChange,
        _ => ItemKind::ToolCall,
    }
}

fn text_of(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::ResourceLink(link) => link.uri.clone(),
        ContentBlock::Image(_) => "[image]".to_owned(),
        ContentBlock::Audio(_) => "[audio]".to_owned(),
        _ => "[resource]".to_owned(),
    }
}

fn output(content: &[ToolCallContent]) -> String {
    let parts = content.iter().filter_map(|part| match part {
        ToolCallContent::Content(content) => Some(text_of(&content.content)),
        ToolCallContent::Diff(diff) => {
            let (path, old) = (diff.path.display().to_string(), diff.old_text.as_deref().unwrap_or_default());
            if old.len() + diff.new_text.len() > DIFF_BYTES {
                return Some(format!("{path}: {} bytes, then {}", old.len(), diff.new_text.len()));
            }
            Some(TextDiff::from_lines(old, &diff.new_text).unified_diff().header(&path, &path).to_string())
        }
        _ => None,
    });
    parts.collect::<Vec<_>>().join("\n")
}

fn change(part: &ToolCallContent) -> Option<Value> {
    match part {
        ToolCallContent::Diff(diff) => {
            Some(json!({"path": diff.path.display().to_string(), "old": diff.old_text, "new": diff.new_text}))
        }
        _ => None,
    }
}

fn size(value: &Value) -> usize {
    value.to_string().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(says: &mut Says, update: Value) -> Vec<Fragment> {
        says.update(serde_json::from_value(update).unwrap())
    }

    fn acts(says: &mut Says, updates: &[Value]) -> Vec<(String, String, ActStep)> {
        let fragments = updates.iter().flat_map(|value| update(says, value.clone()));
        let act = |fragment| match fragment {
            Fragment::Act(act) => (act.call_id, act.title, act.step),
            other => panic!("{other:?}"),
        };
        fragments.map(act).collect()
    }

    fn call(id: &str, status: &str) -> Value {
        json!({"sessionUpdate": "tool_call", "toolCallId": id, "title": "list", "kind": "execute", "status": status})
    }

    fn change_to(id: &str, fields: Value) -> Value {
        let mut update = json!({"sessionUpdate": "tool_call_update", "toolCallId": id});
        update.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        update
    }

    fn text(text: &str) -> Value {
        json!([{"type": "content", "content": {"type": "text", "text": text}}])
    }

    fn asked(id: &str, input: Value) -> RequestPermissionRequest {
        let call = json!({"toolCallId": id, "title": "write", "kind": "edit", "rawInput": input});
        let options = json!([{"optionId": "y", "name": "yes", "kind": "allow_once"}]);
        serde_json::from_value(json!({"sessionId": "s", "toolCall": call, "options": options})).unwrap()
    }

    #[test]
    fn text_and_thoughts_are_told_and_plans_are_not() {
        let mut says = Says::default();
        let chunk = |kind: &str| json!({"sessionUpdate": kind, "content": {"type": "text", "text": "a"}});
        assert_eq!(update(&mut says, chunk("agent_message_chunk")), [Fragment::Text("a".into())]);
        assert_eq!(update(&mut says, chunk("agent_thought_chunk")), [Fragment::Reasoning("a".into())]);
        assert_eq!(update(&mut says, chunk("user_message_chunk")), []);
        assert_eq!(update(&mut says, json!({"sessionUpdate": "plan", "entries": []})), []);
    }

    #[test]
    fn an_act_is_announced_started_heard_and_ended_once() {
        let mut says = Says::default();
        let told = acts(
            &mut says,
            &[
                call("c", "pending"),
                change_to("c", json!({"rawInput": {"command": "ls -l"}})),
                change_to("c", json!({"status": "in_progress"})),
                change_to("c", json!({"content": text("one")})),
                change_to("c", json!({"content": text("one\ntwo")})),
                change_to("c", json!({"status": "completed"})),
                change_to("c", json!({"status": "failed"})),
            ],
        );
        let step = |title: &str, step| ("c".to_owned(), title.to_owned(), step);
        let said = |text: &str| ActStep::Said(text.to_owned());
        assert_eq!(
            told,
            [
                step("list", ActStep::Announced),
                step("ls -l", ActStep::Started),
                step("ls -l", said("one")),
                step("ls -l", said("\ntwo")),
                step("ls -l", ActStep::Ended { done: true, output: "one\ntwo".into() }),
            ]
        );
        // The same name again is another act.
        assert_eq!(acts(&mut says, &[call("c", "pending")]), [step("list", ActStep::Announced)]);
    }

    #[test]
    fn output_that_was_written_anew_is_told_with_the_end() {
        let told = acts(
            &mut Says::default(),
            &[
                call("c", "in_progress"),
                change_to("c", json!({"content": text("10 %")})),
                change_to("c", json!({"content": text("90 %")})),
                change_to("c", json!({"content": text("all"), "status": "completed"})),
            ],
        );
        let steps: Vec<_> = told.into_iter().map(|(_, _, step)| step).collect();
        let end = ActStep::Ended { done: true, output: "all".into() };
        assert_eq!(steps, [ActStep::Started, ActStep::Said("10 %".into()), end]);
    }

    #[test]
    fn a_change_of_a_file_is_told_as_a_difference() {
        let diff = json!([{"type": "diff", "path": "/a.txt", "oldText": "x\ny\n", "newText": "x\nz\n"}]);
        let told = acts(
            &mut Says::default(),
            &[call("c", "pending"), change_to("c", json!({"content": diff, "status": "completed"}))],
        );
        let ActStep::Ended { output, .. } = &told[1].2 else { panic!("{told:?}") };
        assert!(output.contains("-y\n+z\n") && output.contains("/a.txt"), "{output}");
    }

    #[test]
    fn a_question_names_what_it_is_about_and_binds_to_it() {
        let mut says = Says::new("helper", "/w");
        let plan = |says: &mut Says, id: &str, input| {
            let (asked, mut fragments) = says.ask(asked(id, input)).unwrap();
            assert_eq!(asked, id);
            let Some(Fragment::Act(Act { tool, step: ActStep::Asks(planned), .. })) = fragments.pop() else { panic!() };
            assert_eq!(tool, "acp:edit");
            *planned
        };
        let first = plan(&mut says, "a", json!({"path": "x"}));
        assert_eq!((first.kind, first.gate, first.cwd.as_deref()), (ItemKind::FileChange, Gate::Ask, Some("/w")));
        assert_eq!(first.arguments, json!({"title": "write", "input": {"path": "x"}}));
        assert_eq!(first.reason, "the agent `helper` asks: write");
        assert!(first.amendment.is_some());
        let other = plan(&mut says, "b", json!({"path": "y"}));
        assert_ne!(first.arguments_sha256, other.arguments_sha256);
        // Without its input nothing can be said to be the same call again.
        assert_eq!(plan(&mut says, "c", json!({})).amendment, None);
    }

    #[test]
    fn what_cannot_be_shown_whole_is_not_asked() {
        let mut says = Says::default();
        assert!(says.ask(asked("a", json!({"text": "x".repeat(ARGUMENT_BYTES)}))).is_none());
        assert!(says.ask(asked("b", json!({"n": u64::MAX}))).is_none());
        let mut deep = json!(1);
        (0..MAX_DEPTH + 1).for_each(|_| deep = json!([deep.take()]));
        assert!(says.ask(asked("c", json!({"deep": deep}))).is_none());
    }

    #[test]
    fn the_narrowest_option_is_chosen() {
        let options = |kinds: &[&str]| -> Vec<PermissionOption> {
            let option = |kind: &&str| json!({"optionId": kind, "name": "n", "kind": kind});
            serde_json::from_value(kinds.iter().map(option).collect()).unwrap()
        };
        let chosen = |kinds: &[&str], allowed| choice(&options(kinds), allowed).map(|id| id.to_string());
        let all = ["allow_always", "reject_always", "reject_once", "allow_once"];
        assert_eq!(chosen(&all, true).as_deref(), Some("allow_once"));
        assert_eq!(chosen(&all, false).as_deref(), Some("reject_once"));
        assert_eq!(chosen(&["allow_always"], true).as_deref(), Some("allow_always"));
        assert_eq!(chosen(&["allow_always"], false), None);
    }
}
