//! A real agent, in a process of its own, as the engine of threads: what it says becomes items, what it does becomes
//! effects, what it asks for becomes approvals, and what it was doing when everything died is not done again.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::path::PathBuf;

use equipped::{Equipped, item};
use reqwest::Method;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use support::*;

struct World {
    raddle: Equipped,
    dir: tempfile::TempDir,
    thread: String,
}

async fn world() -> World {
    world_of(json!({})).await
}

async fn world_of(thread: Value) -> World {
    let dir = tempfile::tempdir().unwrap();
    let config = agent::configure(dir.path());
    let env = [
        ("RADDLE_CONFIG", config.to_str().unwrap()),
        ("RADDLE_MODEL_DEFAULT", "acp/helper"),
        ("RADDLE_LIMITS_RETRY_BASE_MS", "1"),
    ];
    let raddle = Equipped::start(&env).await;
    let thread = raddle.api().create(thread).await;
    World { raddle, dir, thread }
}

impl World {
    /// A file that the agent writes to.
    fn file(&self) -> PathBuf {
        self.dir.path().join("written")
    }

    fn written(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap_or_default()
    }

    /// A line of the agent's script that writes to the file.
    fn line(&self, word: &str, id: &str) -> String {
        format!("{word} {id} {}", self.file().display())
    }

    async fn start(&self, lines: &[&str]) -> String {
        self.raddle.api().start(&self.thread, &lines.join("\n")).await
    }

    async fn ended(&self, turn: &str) -> Value {
        self.raddle.api().rest(&self.thread).await;
        self.raddle.turn(&self.thread, turn).await
    }

    async fn say(&self, lines: &[&str]) -> Value {
        self.raddle.say(&self.thread, &lines.join("\n")).await
    }

    async fn items(&self) -> Vec<(String, String, String)> {
        self.raddle.items(&self.thread).await
    }

    /// The events of the thread that begin so, once its log was checked.
    async fn events(&self, prefix: &str) -> Vec<String> {
        let log = self.raddle.api().log(&self.thread).await;
        check_log(&log, true);
        names(&log).into_iter().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
    }

    /// The effects as they stand at the end: tool, status, outcome, and whether they are closed.
    async fn effects(&self) -> Vec<(String, String, Value, bool)> {
        let log = self.raddle.api().log(&self.thread).await;
        let mut effects: Vec<Value> = Vec::new();
        for event in log.iter().filter(|event| event["event"].as_str().unwrap().starts_with("effect.")) {
            let effect = &event["payload"]["effect"];
            effects.retain(|known| known["operation_id"] != effect["operation_id"]);
            effects.push(effect.clone());
        }
        let shown = |effect: &Value| {
            let closed = effect["closed"].as_bool().unwrap_or(false);
            (text(&effect["tool"]), text(&effect["status"]), effect["outcome"].clone(), closed)
        };
        effects.iter().map(shown).collect()
    }

    /// Waits until the agent has written so much.
    async fn until_written(&self, expected: &str) {
        let written = async {
            // Paced by round trips.
            while self.written() != expected {
                self.raddle.api().get("/v1/threads?limit=1").await.expect(200);
            }
        };
        let in_time = tokio::time::timeout(LOST, written).await;
        in_time.unwrap_or_else(|_| panic!("the agent wrote {:?}", self.written()));
    }

    /// Waits until there is no such process.
    async fn until_gone(&self, pid: &str) {
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        let gone = async {
            // Paced by round trips.
            while test_kill_process(pid).is_ok() {
                self.raddle.api().get("/v1/threads?limit=1").await.expect(200);
            }
        };
        tokio::time::timeout(LOST, gone).await.expect("the agent ends");
    }
}

fn effect(tool: &str, status: &str, outcome: Value, closed: bool) -> (String, String, Value, bool) {
    (tool.into(), status.into(), outcome, closed)
}

#[tokio::test]
async fn what_an_agent_says_and_does_becomes_items_and_effects() {
    let world = world().await;
    let turn = world.say(&["think hm", "say let me see", &world.line("run", "a"), "say done"]).await;
    assert_eq!((&turn["status"], &turn["engine"]), (&json!("completed"), &json!("acp:helper")));
    let expected = [
        item("reasoning", "completed", "hm"),
        item("agent_message", "completed", "let me see"),
        item("command_execution", "completed", "begun\ndone"),
        item("agent_message", "completed", "done"),
    ];
    assert_eq!(world.items().await[1..], expected);
    assert_eq!(world.written(), "a\n");
    assert_eq!(world.effects().await, [effect("acp:execute", "settled", json!("succeeded"), false)]);
    assert_eq!(world.events("effect.").await, ["effect.intended", "effect.started", "effect.settled"]);
    assert_eq!(turn["usage"]["unreported_calls"], 1);
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn a_permission_is_an_approval_and_the_agent_waits_for_it() {
    let world = world().await;
    let turn = world.start(&[&world.line("ask", "a"), "say after"]).await;
    let approval = world.raddle.approval(&world.thread).await;
    assert_eq!((&approval["tool"], &approval["effect_class"]), (&json!("acp:edit"), &json!("once")));
    assert_eq!(approval["arguments"], json!({"title": "write a", "input": {"command": "append a"}}));
    assert_eq!(approval["reason"], "the agent `helper` asks: write a");
    assert_eq!(world.written(), "");
    world.raddle.decide(&approval, "approved").await;
    assert_eq!(world.ended(&turn).await["status"], "completed");
    assert_eq!(world.written(), "a\n");
    let expected = [item("file_change", "completed", "written"), item("agent_message", "completed", "after")];
    assert_eq!(world.items().await[1..], expected);
    let order = ["approval.required", "approval.decided"];
    assert_eq!(world.events("approval.").await, order);
    assert_eq!(world.events("effect.").await, ["effect.intended", "effect.started", "effect.settled"]);
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn a_denial_is_told_to_the_agent_which_goes_on_as_it_likes() {
    let world = world().await;
    let turn = world.start(&[&world.line("ask", "a"), &world.line("ask", "b")]).await;
    let first = world.raddle.approval(&world.thread).await;
    let path = format!("/v1/approvals/{}", text(&first["id"]));
    world.raddle.api().post(&path, json!({"decision": "denied", "reason": "not this one"})).await.expect(200);
    let second = world
        .raddle
        .stands(&world.thread, |thread| thread["pending_approvals"] == 1 && thread["status"] == "awaiting_approval");
    second.await;
    let mut approval = world.raddle.approval(&world.thread).await;
    while approval["id"] == first["id"] {
        approval = world.raddle.approval(&world.thread).await;
    }
    world.raddle.decide(&approval, "approved").await;
    assert_eq!(world.ended(&turn).await["status"], "completed");
    assert_eq!(world.written(), "b\n");
    let expected = [
        item("file_change", "failed", "denied: not this one"),
        item("agent_message", "completed", "a was refused"),
        item("file_change", "completed", "written"),
    ];
    assert_eq!(world.items().await[1..], expected);
    assert_eq!(world.effects().await, [effect("acp:edit", "settled", json!("succeeded"), false)]);
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn where_nobody_need_be_asked_an_agent_is_told_so_and_that_is_on_record() {
    let world = world_of(json!({"auto_approve": true})).await;
    let turn = world.say(&[&world.line("ask", "a")]).await;
    assert_eq!((&turn["status"], world.written().as_str()), (&json!("completed"), "a\n"));
    let log = world.raddle.api().log(&world.thread).await;
    let decided: Vec<_> = log.iter().filter(|event| event["event"] == "approval.decided").collect();
    assert_eq!((decided.len(), &decided[0]["payload"]["approval"]["by"]), (1, &json!("auto")));
    assert!(!names(&log).contains(&"approval.required"));
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn what_was_approved_for_the_session_or_for_ever_is_not_asked_again() {
    let world = world().await;
    let turn = world.start(&[&world.line("ask", "a"), &world.line("ask", "a")]).await;
    let approval = world.raddle.approval(&world.thread).await;
    world.raddle.decide(&approval, "approved_for_session").await;
    assert_eq!((&world.ended(&turn).await["status"], world.written().as_str()), (&json!("completed"), "a\na\n"));
    let turn = world.start(&[&world.line("ask", "b")]).await;
    let approval = world.raddle.approval(&world.thread).await;
    world.raddle.decide(&approval, "approved_always").await;
    world.ended(&turn).await;
    let other = world.raddle.api().create(json!({})).await;
    let turn = world.raddle.say(&other, &world.line("ask", "b")).await;
    assert_eq!((&turn["status"], world.written().as_str()), (&json!("completed"), "a\na\nb\nb\n"));
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn rules_answer_an_agent_in_the_place_of_a_person() {
    let world = world_of(json!({"auto_approve": true})).await;
    let api = world.raddle.api();
    let rule = |action: &str| json!({"rules": [{"name": "hands off", "tool": "acp:edit", "action": action}]});
    let set = async |policy: Value| api.send(api.request(Method::PUT, "/v1/policy").json(&policy)).await.expect(200);
    // A denial is no matter of settings, and nobody is asked.
    set(rule("deny")).await;
    let turn = world.say(&[&world.line("ask", "a")]).await;
    assert_eq!((&turn["status"], world.written().as_str()), (&json!("completed"), ""));
    let items = world.items().await;
    assert!(
        items.iter().any(|(kind, status, said)| {
            kind == "file_change" && status == "failed" && said.contains("forbidden by the rule `hands off`")
        }),
        "{items:?}"
    );
    let log = api.log(&world.thread).await;
    let decided: Vec<_> = log.iter().filter(|event| event["event"] == "approval.decided").collect();
    let [decided] = decided[..] else { panic!("{decided:?}") };
    let approval = &decided["payload"]["approval"];
    assert_eq!((&approval["by"], &approval["status"]), (&json!("policy"), &json!("denied")));
    assert!(!names(&log).contains(&"effect.intended"));
    check_log(&log, true);
    // A rule that asks is stronger than a setting, and one that allows stands for a person.
    set(rule("ask")).await;
    let turn = world.start(&[&world.line("ask", "b")]).await;
    let approval = world.raddle.approval(&world.thread).await;
    assert_eq!(approval["matched_rule"], "hands off");
    world.raddle.decide(&approval, "approved").await;
    assert_eq!((&world.ended(&turn).await["status"], world.written().as_str()), (&json!("completed"), "b\n"));
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn an_abort_ends_the_turn_and_the_agent() {
    let world = world().await;
    let turn = world.start(&["pid", &world.line("ask", "a"), &world.line("run", "b")]).await;
    let approval = world.raddle.approval(&world.thread).await;
    world.raddle.decide(&approval, "abort").await;
    assert_eq!(world.ended(&turn).await["status"], "canceled");
    let items = world.items().await;
    assert_eq!(items[2].1, "interrupted");
    world.until_gone(&items[1].2).await;
    // It was never told that nobody answers it without having been told to stop.
    assert_eq!(world.written(), "");
    assert!(world.events("effect.").await.is_empty());
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn an_interrupt_cancels_the_agent_and_says_what_it_was_at() {
    let world = world().await;
    let turn = world.start(&[&world.line("run", "a"), &world.line("hold", "b"), &world.line("run", "c")]).await;
    world.until_written("a\nbegun\n").await;
    // The server hears of what was done after it was.
    world.raddle.api().stream(&world.thread, 0).await.until("effect.settled").await;
    let path = format!("/v1/threads/{}/turns/{turn}/interrupt", world.thread);
    let receipt = world.raddle.api().post(&path, json!({})).await.expect(200);
    assert_eq!(receipt["turn"]["status"], "interrupted");
    let statuses: Vec<_> =
        receipt["effects"].as_array().unwrap().iter().map(|effect| text(&effect["status"])).collect();
    assert_eq!(statuses[0], "settled");
    // The agent heard of it, and stopped: what came behind was not done.
    world.until_written("a\nbegun\ncancelled\n").await;
    let turn = world.say(&["say still here"]).await;
    assert_eq!(turn["status"], "completed");
    assert_eq!(world.written(), "a\nbegun\ncancelled\n");
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn what_an_agent_was_doing_when_the_server_was_killed_is_uncertain_and_not_done_again() {
    let mut world = world().await;
    let turn = world.start(&[&world.line("run", "a"), &world.line("hold", "b"), &world.line("run", "c")]).await;
    world.until_written("a\nbegun\n").await;
    world.raddle.api().stream(&world.thread, 0).await.until("effect.settled").await;
    world
        .raddle
        .stands(&world.thread, |thread| thread["status"] == "running" && thread["seq"].as_u64() > Some(8))
        .await;
    world.raddle.crash().await;
    let ended = world.ended(&turn).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("agent-lost")));
    let effects = world.effects().await;
    assert_eq!(effects[0], effect("acp:execute", "settled", json!("succeeded"), false));
    for lost in &effects[1..] {
        assert_eq!(*lost, effect("acp:execute", "uncertain", Value::Null, true));
    }
    assert_eq!(world.items().await[1], item("command_execution", "completed", "begun\ndone"));
    assert!(!world.events("turn.").await.contains(&"turn.resumed".to_owned()));
    // The thread is free, and the agent is not asked to do it again.
    assert_eq!(world.say(&["say still here"]).await["status"], "completed");
    assert_eq!(world.written(), "a\nbegun\n");
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn a_question_dies_with_its_agent_and_the_call_is_made_again_if_nothing_was_done() {
    let mut world = world().await;
    let turn = world.start(&["say let me", &world.line("ask", "a")]).await;
    let lost = world.raddle.approval(&world.thread).await;
    world.raddle.crash().await;
    let again = async {
        loop {
            let approval = world.raddle.approval(&world.thread).await;
            if approval["id"] != lost["id"] {
                return approval;
            }
        }
    };
    let approval = tokio::time::timeout(LOST, again).await.expect("the agent asks again");
    let path = format!("/v1/approvals/{}", text(&lost["id"]));
    assert_eq!(world.raddle.api().get(&path).await.expect(200)["status"], "cancelled");
    world.raddle.decide(&approval, "approved").await;
    let ended = world.ended(&turn).await;
    assert_eq!((&ended["status"], &ended["resume_count"]), (&json!("completed"), &json!(1)));
    assert_eq!(world.written(), "a\n");
    // What was said before the crash is not part of the conversation.
    world.say(&["recite"]).await;
    let said = world.items().await.pop().unwrap().2;
    assert_eq!(said.matches("You: let me").count(), 1, "{said}");
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn an_agent_that_dies_is_started_again_unless_it_had_begun_to_act() {
    let world = world().await;
    let turn = world.say(&["die"]).await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-cut-off")));
    assert_eq!(world.events("turn.retrying").await.len(), 3);
    let turn = world.say(&[&world.line("run", "a"), "die"]).await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-cut-off")));
    assert_eq!(world.events("turn.retrying").await.len(), 3);
    assert_eq!(world.written(), "a\n");
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn an_agent_is_told_the_conversation_and_has_little_of_our_environment() {
    let world = world_of(json!({"system_prompt": "be brief"})).await;
    world.say(&["say one"]).await;
    world.say(&["recite"]).await;
    let said = world.items().await.pop().unwrap().2;
    let told = "be brief\n---\nThe conversation so far, which you are to continue:\n\nUser: say one\n\nYou: one\n\n\
                (end of what was said)\n---\nrecite";
    assert_eq!(said, told);
    world.say(&["cwd"]).await;
    let said = world.items().await.pop().unwrap().2;
    let (cwd, names) = said.split_once(' ').unwrap();
    // It works in the thread's own workspace.
    assert!(cwd.ends_with(&format!("/threads/{}", world.thread)), "{cwd}");
    assert!(names.contains("ACP_SDK") && !names.contains("RADDLE"), "{names}");
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn a_steer_is_seen_by_the_agent_behind_its_answer() {
    let world = world().await;
    let turn = world.start(&[&world.line("ask", "a"), "say one"]).await;
    let approval = world.raddle.approval(&world.thread).await;
    let steer = json!({"prompt": "say two"});
    world.raddle.api().post(&format!("/v1/threads/{}/turns/{turn}/steer", world.thread), steer).await.expect(202);
    world.raddle.decide(&approval, "approved").await;
    let ended = world.ended(&turn).await;
    assert_eq!((&ended["status"], &ended["usage"]["model_calls"]), (&json!("completed"), &json!(2)));
    assert_eq!(world.items().await.pop(), Some(item("agent_message", "completed", "two")));
    world.raddle.server.stop().await;
}

#[tokio::test]
async fn an_agent_that_cannot_be_started_fails_the_turn() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("raddle.toml");
    std::fs::write(&config, format!("[model.acp.gone]\ncommand = \"/nowhere/agent\"\ncwd = {:?}\n", dir.path()))
        .unwrap();
    let raddle = Equipped::start(&[("RADDLE_CONFIG", config.to_str().unwrap())]).await;
    let thread = raddle.api().create(json!({"model": "acp/gone"})).await;
    let turn = raddle.say(&thread, "hi").await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-rejected")));
    assert!(text(&turn["error"]["message"]).starts_with("the agent `gone` cannot be started"), "{turn}");
    raddle.server.stop().await;
}
