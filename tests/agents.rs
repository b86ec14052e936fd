//! An agent at work: it edits files and runs commands in its workspace, asks before it acts, and goes on after the
//! server was killed, doing nothing twice and hiding nothing that it does not know.

mod support;

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

/// A server with a directory for its workspaces, which outlives every kill.
struct World {
    server: Server,
    data: tempfile::TempDir,
    root: tempfile::TempDir,
}

/// Files may be written, commands are asked about.
fn agent() -> Value {
    let rules = json!([{"tool": "write_file", "action": "allow"}, {"tool": "edit_file", "action": "allow"}]);
    json!({"allow_shell": true, "workspace": "desk", "policy": {"rules": rules}})
}

impl World {
    async fn new() -> Self {
        let (data, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = serve(&data, &root).await;
        Self { server, data, root }
    }

    async fn kill(&mut self) {
        self.server.kill();
        self.server = serve(&self.data, &self.root).await;
    }

    fn api(&self) -> &Api {
        &self.server.api
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("default/desk").join(name)
    }

    fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// The approval for which the thread waits.
    async fn asked(&self, thread: &str) -> Value {
        let asked = async {
            let mut stream = self.api().stream(thread, 0).await;
            while stream.next().await.expect("the stream goes on").event != "approval.required" {}
        };
        timeout(LOST, asked).await.expect("somebody is asked");
        let pending = self.api().list(&format!("/v1/approvals?status=pending&thread={thread}"), 10).await;
        let [approval] = <[Value; 1]>::try_from(pending).expect("one approval waits");
        approval
    }

    async fn approve(&self, approval: &Value) {
        let path = format!("/v1/approvals/{}", text(&approval["id"]));
        self.api().post(&path, json!({"decision": "approved"})).await.expect(200);
    }

    /// Waits until the log says that the command was started.
    async fn started(&self, thread: &str) {
        let started = async {
            let mut stream = self.api().stream(thread, 0).await;
            loop {
                let frame = stream.next().await.expect("the stream goes on");
                if frame.event == "effect.started" && frame.json()["payload"]["effect"]["tool"] == "exec_shell" {
                    return;
                }
            }
        };
        timeout(LOST, started).await.expect("the command is started");
    }

    /// The effects of a tool, newest form of each.
    async fn effects(&self, thread: &str, tool: &str) -> Vec<Value> {
        let mut effects: Vec<Value> = Vec::new();
        for event in self.api().log(thread).await {
            let effect = &event["payload"]["effect"];
            if effect["tool"] == tool {
                effects.retain(|known| known["operation_id"] != effect["operation_id"]);
                effects.push(effect.clone());
            }
        }
        effects
    }
}

async fn serve(data: &tempfile::TempDir, root: &tempfile::TempDir) -> Server {
    let root = root.path().to_str().unwrap();
    // A commit that takes its time gives a kill something to hit.
    Server::with(
        data.path(),
        &[("RADDLE_WORKSPACES_ROOT", root), ("RADDLE_STORE_SYNC_DELAY_MS", "5"), ("RADDLE_SANDBOX_KIND", "auto")],
    )
    .await
}

fn script(lines: &[(&str, Value)]) -> String {
    lines.iter().map(|(tool, arguments)| format!("@tool {tool} {arguments}\n")).collect::<String>() + "@say all done"
}

#[tokio::test]
async fn an_agent_edits_files_and_runs_a_command_once_somebody_agreed() {
    let world = World::new().await;
    let thread = world.api().create(agent()).await;
    let prompt = script(&[
        ("write_file", json!({"path": "src/hello.txt", "content": "hello\nworld\n"})),
        ("edit_file", json!({"path": "src/hello.txt", "old_string": "world", "new_string": "raddle"})),
        ("exec_shell", json!({"command": "wc -l < src/hello.txt && echo counted >> src/hello.txt"})),
        ("read_file", json!({"path": "src/hello.txt"})),
    ]);
    let turn = world.api().start(&thread, &prompt).await;
    let approval = world.asked(&thread).await;
    assert_eq!(world.file("src/hello.txt").as_deref(), Some("hello\nraddle\n"));
    assert_eq!((&approval["tool"], &approval["effect_class"]), (&json!("exec_shell"), &json!("once")));
    assert!(text(&approval["command"]).starts_with("wc -l"), "{approval}");
    assert!(text(&approval["cwd"]).ends_with("desk"), "{approval}");
    world.approve(&approval).await;
    assert_eq!(world.api().wait(&thread, &turn).await["status"], "completed");
    assert_eq!(world.file("src/hello.txt").as_deref(), Some("hello\nraddle\ncounted\n"));
    let items = world.api().list(&format!("/v1/threads/{thread}/items"), 50).await;
    let of = |kind: &str| items.iter().filter(|item| item["kind"] == kind).collect::<Vec<_>>();
    let changes = of("file_change");
    assert_eq!(changes.len(), 2, "{items:?}");
    assert!(text(&changes[1]["detail"]).contains("-world\n+raddle"), "{}", changes[1]);
    let [command] = of("command_execution")[..] else { panic!("{items:?}") };
    assert!(text(&command["detail"]).contains('2') && command["status"] == "completed", "{command}");
    assert!(of("tool_call").iter().any(|read| text(&read["detail"]).contains("counted")), "{items:?}");
    check_log(&world.api().log(&thread).await, true);
    world.server.stop().await;
}

/// Where the kill comes, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kill {
    /// As soon as the decision is acknowledged.
    Decided,
    /// Once the log says that the command was started.
    Started,
    /// While the command runs, after it has done its work.
    Done,
}

#[tokio::test]
async fn a_command_that_was_approved_before_a_kill_ran_once_or_is_uncertain() {
    let mut world = World::new().await;
    fs::create_dir_all(world.path("")).unwrap();
    for (round, kill) in [Kill::Decided, Kill::Started, Kill::Done].into_iter().cycle().take(12).enumerate() {
        let thread = world.api().create(agent()).await;
        let (ran, gate) = (format!("ran-{round}"), format!("gate-{round}"));
        // Nobody opens the other end: what was started is still at work when the server is killed.
        mkfifo(&world.path(&gate));
        let command = match kill {
            Kill::Decided => format!("echo ran >> {ran}"),
            Kill::Started | Kill::Done => format!("echo ran >> {ran}; echo seen; read -r line < {gate}"),
        };
        let prompt = script(&[
            ("write_file", json!({"path": "note", "content": "x"})),
            ("exec_shell", json!({"command": command})),
        ]);
        let turn = world.api().start(&thread, &prompt).await;
        let approval = world.asked(&thread).await;
        assert_eq!(world.file(&ran), None, "nothing is run before somebody agreed");
        world.approve(&approval).await;
        match kill {
            Kill::Decided => {}
            Kill::Started => world.started(&thread).await,
            Kill::Done => {
                let done = async {
                    while world.file(&ran).is_none() {
                        world.api().get("/healthz").await;
                    }
                };
                timeout(LOST, done).await.expect("the command runs");
            }
        }
        world.kill().await;
        let settled = async {
            loop {
                let found = world.api().get(&format!("/v1/threads/{thread}")).await.expect(200);
                if found["active_turn"].is_null() || found["status"] == "awaiting_approval" {
                    return;
                }
            }
        };
        timeout(LOST, settled).await.expect("the turn ends, or waits for somebody");
        let [effect] = <[Value; 1]>::try_from(world.effects(&thread, "exec_shell").await).expect("one command");
        let times = world.file(&ran).map_or(0, |text| text.lines().count());
        assert_eq!(effect["attempt"], 1, "{kill:?}: {effect}");
        match effect["status"].as_str() {
            Some("settled") => assert_eq!((times, kill), (1, Kill::Decided), "{effect}"),
            Some("uncertain") => {
                assert!(times <= 1 && (kill != Kill::Done || times == 1), "{kill:?}: ran {times} times: {effect}");
                let resolve = format!("/v1/effects/{}", text(&effect["operation_id"]));
                world
                    .api()
                    .post(&resolve, json!({"resolution": "settle", "output": "looked myself"}))
                    .await
                    .expect(200);
            }
            other => panic!("{kill:?}: {other:?}"),
        }
        let turn = world.api().wait(&thread, &turn).await;
        assert_eq!(turn["status"], "completed", "{kill:?}: {turn}");
        assert_eq!(world.file(&ran).map_or(0, |text| text.lines().count()), times, "nothing ran again");
        assert_eq!(world.file("note").as_deref(), Some("x"));
        check_log(&world.api().log(&thread).await, true);
    }
}

fn mkfifo(path: &std::path::Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}
