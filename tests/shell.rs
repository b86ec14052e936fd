//! What a client is promised about `exec_shell`, over HTTP.

mod support;

use std::{
    fs::{self, File},
    path::PathBuf,
};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

/// What a server gets that must not reach a command.
const POISON: [(&str, &str); 8] = [
    ("RADDLE_MODEL_OPENAI_BASE_URL", "http://127.0.0.1:1/v1"),
    ("RADDLE_MODEL_OPENAI_API_KEY", "poison"),
    ("LD_LIBRARY_PATH", "/poison"),
    ("GIT_EXTERNAL_DIFF", "poison"),
    ("PAGER", "poison"),
    ("BASH_ENV", "/poison"),
    ("SSH_AUTH_SOCK", "/poison"),
    ("AWS_SECRET_ACCESS_KEY", "poison"),
];

struct World {
    server: Server,
    _data: tempfile::TempDir,
    workspace: PathBuf,
}

impl World {
    async fn with(env: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::with(data.path(), &[&[("RADDLE_SANDBOX_KIND", "auto")], env].concat()).await;
        let workspace = data.path().join("workspaces/default/desk");
        Self { server, _data: data, workspace }
    }

    /// A thread that may use a shell, and asks nobody.
    async fn thread(&self, more: Value) -> String {
        let mut body = json!({"model": "scripted", "allow_shell": true, "auto_approve": true, "workspace": "desk"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.server.api.create(body).await
    }

    /// Makes one call, and says what the model was told.
    async fn call(&self, thread: &str, arguments: Value) -> Value {
        let turn = self.server.api.start(thread, &format!("@tool exec_shell {arguments}")).await;
        self.server.api.wait(thread, &turn).await;
        let items = self.server.api.list(&format!("/v1/threads/{thread}/items"), 100).await;
        items.into_iter().rfind(|item| item["kind"] == "command_execution" || item["kind"] == "tool_call").unwrap()
    }

    async fn doctor(&self) -> (bool, String) {
        let url = self.server.url.clone();
        let ran =
            tokio::task::spawn_blocking(move || run(raddle().args(["doctor", "--server", &url]), "")).await.unwrap();
        (ran.code == Some(0), ran.out)
    }

    /// Whether commands can be run here at all. Where they cannot, nothing is claimed.
    async fn works(&self) -> bool {
        let info = self.server.api.get("/v1/info").await.expect(200);
        let works = info["sandbox"]["available"] == true;
        if !works {
            eprintln!("NOT TESTED: {}", info["sandbox"]["notes"]);
            let thread = self.thread(json!({})).await;
            let item = self.call(&thread, json!({"command": "echo ran > ran"})).await;
            assert_eq!(item["status"], "failed", "{item}");
            assert!(!self.workspace.join("ran").exists());
        }
        works
    }
}

/// A command that holds a lock, says so, and stays; so does a daemon of it.
const STAYS: &str = "exec 9>lock; flock 9; setsid bash -c 'trap \"\" TERM INT HUP; while :; do read -r x < /dev/zero; done' \
     >/dev/null 2>&1 </dev/null & echo ready; wait";

async fn released(lock: PathBuf) {
    let waits = move || rustix::fs::flock(File::open(lock).unwrap(), FlockOperation::LockExclusive).unwrap();
    timeout(LOST, tokio::task::spawn_blocking(waits)).await.expect("somebody holds the lock still").unwrap();
}

#[tokio::test]
async fn a_command_runs_in_the_workspace_and_sees_nothing_of_the_server() {
    let world = World::with(&[&POISON[..], &[("RADDLE_MODEL_DEFAULT", "scripted")]].concat()).await;
    if !world.works().await {
        return;
    }
    let thread = world.thread(json!({})).await;
    let item = world.call(&thread, json!({"command": "env; pwd; echo made > file; exit 3"})).await;
    let said = text(&item["detail"]);
    assert_eq!(item["kind"], "command_execution");
    assert!(said.ends_with("[exit 3]"), "{said}");
    assert!(said.contains(world.workspace.canonicalize().unwrap().to_str().unwrap()), "{said}");
    for (name, value) in POISON {
        assert!(!said.contains(name) && !said.contains(value), "{name} in {said}");
    }
    assert_eq!(fs::read_to_string(world.workspace.join("file")).unwrap(), "made\n");
    let data = world.workspace.ancestors().nth(3).unwrap();
    let item = world.call(&thread, json!({"command": format!("cat {}/* | head -c 10", data.display())})).await;
    let said = text(&item["detail"]);
    assert!(said.contains("denied") || said.contains("No such file"), "{said}");
    let item = world.call(&thread, json!({"command": "pwd", "cwd": "../.."})).await;
    assert_eq!(item["status"], "failed");
    assert!(text(&item["detail"]).contains("it was not run"), "{item}");
}

#[tokio::test]
async fn a_shell_is_offered_only_where_the_thread_allows_one_and_asks_a_person() {
    let world = World::with(&[]).await;
    if !world.works().await {
        return;
    }
    let closed = world.thread(json!({"allow_shell": false})).await;
    let item = world.call(&closed, json!({"command": "echo ran > ran"})).await;
    assert_eq!(item["status"], "failed");
    assert!(text(&item["detail"]).contains("unknown"), "{item}");
    let asks = world.thread(json!({"auto_approve": false})).await;
    world.server.api.start(&asks, r#"@tool exec_shell {"command": "echo ran > ran"}"#).await;
    let mut stream = world.server.api.stream(&asks, 0).await;
    let asked = stream.until("approval.required").await.json();
    let approval = &asked["payload"]["approval"];
    assert_eq!((&approval["tool"], &approval["command"]), (&json!("exec_shell"), &json!("echo ran > ran")), "{asked}");
    let id = text(&approval["id"]);
    world.server.api.post(&format!("/v1/approvals/{id}"), json!({"decision": "denied"})).await.expect(200);
    world.server.api.rest(&asks).await;
    assert!(!world.workspace.join("ran").exists());
}

#[tokio::test]
async fn full_access_is_there_only_where_the_configuration_has_it_and_is_another_question() {
    let narrow = World::with(&[]).await;
    if !narrow.works().await {
        return;
    }
    let thread = narrow.thread(json!({"trust_mode": true})).await;
    let item = narrow.call(&thread, json!({"command": "echo ran > ran", "full_access": true})).await;
    assert_eq!(item["status"], "failed", "{item}");
    assert!(!narrow.workspace.join("ran").exists());
    let wide = World::with(&[("RADDLE_SANDBOX_MODE", "danger-full-access")]).await;
    let outside = wide.workspace.ancestors().nth(3).unwrap().join("outside");
    let write = json!({"command": format!("echo ran > {}", outside.display()), "full_access": true});
    // Approving by itself is not enough to leave the sandbox.
    let thread = wide.thread(json!({})).await;
    wide.server.api.start(&thread, &format!("@tool exec_shell {write}")).await;
    wide.server.api.stream(&thread, 0).await.until("approval.required").await;
    assert!(!outside.exists());
    let trusted = wide.thread(json!({"trust_mode": true})).await;
    wide.call(&trusted, write).await;
    assert_eq!(fs::read_to_string(&outside).unwrap(), "ran\n");
    // Whoever does not ask to leave it stays inside.
    let item = wide.call(&trusted, json!({"command": format!("echo again > {}", outside.display())})).await;
    assert!(!text(&item["detail"]).ends_with("[exit 0]"), "{item}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "ran\n");
}

#[tokio::test]
async fn a_command_that_is_to_be_in_a_sandbox_is_not_run_where_there_is_none() {
    let free = World::with(&[("RADDLE_SANDBOX_KIND", "none")]).await;
    let thread = free.thread(json!({"trust_mode": true, "policy": {"sandbox": "workspace-write"}})).await;
    let item = free.call(&thread, json!({"command": "echo ran > ran"})).await;
    assert_eq!(item["status"], "failed", "{item}");
    assert!(text(&item["detail"]).contains("there is none here"), "{item}");
    assert!(!free.workspace.join("ran").exists());
    // Where nobody asks for one, it runs as whoever set up the server has said.
    let thread = free.thread(json!({"trust_mode": true})).await;
    free.call(&thread, json!({"command": "echo ran > ran"})).await;
    assert!(free.workspace.join("ran").exists());
}

#[tokio::test]
async fn a_command_of_a_killed_server_dies_with_it() {
    let mut world = World::with(&[]).await;
    if !world.works().await {
        return;
    }
    let thread = world.thread(json!({})).await;
    world.server.api.start(&thread, &format!("@tool exec_shell {}", json!({"command": STAYS}))).await;
    let heard = world.server.api.stream(&thread, 0).await.until("item.delta").await;
    assert!(heard.json().to_string().contains("ready"));
    let lock = world.workspace.join("lock");
    assert!(rustix::fs::flock(File::open(&lock).unwrap(), FlockOperation::NonBlockingLockExclusive).is_err());
    world.server.kill();
    released(lock).await;
}

#[tokio::test]
async fn an_interrupt_ends_a_command_and_what_it_started() {
    let world = World::with(&[]).await;
    if !world.works().await {
        return;
    }
    let thread = world.thread(json!({})).await;
    let turn = world.server.api.start(&thread, &format!("@tool exec_shell {}", json!({"command": STAYS}))).await;
    world.server.api.stream(&thread, 0).await.until("item.delta").await;
    world.server.api.post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    released(world.workspace.join("lock")).await;
}

#[tokio::test]
async fn a_command_that_takes_too_long_has_failed_and_shows_what_it_wrote() {
    let world = World::with(&[]).await;
    if !world.works().await {
        return;
    }
    let thread = world.thread(json!({})).await;
    let item = world.call(&thread, json!({"command": STAYS, "timeout_ms": 500})).await;
    assert_eq!(
        (&item["status"], text(&item["detail"])),
        (&json!("failed"), "ready\n[timed out after 500 ms]".to_owned())
    );
    released(world.workspace.join("lock")).await;
}

#[tokio::test]
async fn doctor_says_what_holds_and_why_nothing_does() {
    let world = World::with(&[]).await;
    if world.works().await {
        let (well, said) = world.doctor().await;
        assert!(well, "{said}");
        assert!(said.contains("seccomp") && said.contains("read a file outside of it"), "{said}");
    }
    let off = World::with(&[("RADDLE_SANDBOX_KIND", "off")]).await;
    let (well, said) = off.doctor().await;
    assert!(well && said.contains("no commands are run"), "{said}");
    let free = World::with(&[("RADDLE_SANDBOX_KIND", "none")]).await;
    let (well, said) = free.doctor().await;
    assert!(!well && said.contains("commands may do whatever the server may"), "{said}");
}
