//! What the command line promises about changing a conversation, and about what waits for a person.

mod support;

use serde_json::{Value, json};
use support::*;

fn ask(server: &Server, args: &[&str]) -> Output {
    run(raddle().args(args).env("RADDLE_SERVER", &server.url), "")
}

fn json_of(output: &Output) -> Value {
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.out).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

async fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(dir.path()).await, dir)
}

/// A server whose models may ask, and have tools to play with.
async fn equipped() -> (Server, [tempfile::TempDir; 2]) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let demo = dirs[1].path().to_str().unwrap();
    (Server::with(dirs[0].path(), &[("RADDLE_TOOLS_DEMO_DIR", demo)]).await, dirs)
}

/// Follows a thread until `event`, which must come before its turn ends.
async fn until(api: &Api, thread: &str, event: &str) {
    let mut stream = api.stream(thread, 0).await;
    loop {
        let frame = stream.next().await.unwrap();
        assert_ne!(frame.event, "turn.completed", "without `{event}`: {}", frame.data);
        if frame.event == event {
            return;
        }
    }
}

/// Something that has to be asked for.
const GATED: &str = "@tool demo_append {\"name\": \"file\", \"line\": \"done\"}";

#[tokio::test]
async fn mistakes_are_told_before_a_server_is_asked() {
    for mistake in [
        &["threads", "fork", "t", "--at-item", "i", "--before-turn", "u"][..],
        &["threads", "fork", "t", "--before-turn", "u", "--checkpoint", "c"],
        &["threads", "steer", "t"],
        &["threads", "checkpoint"],
        &["threads", "bind", "t"],
        &["threads", "bind", "t", "--run", "r"],
        &["approvals", "approve", "a", "--session", "--always"],
        &["approvals", "ls", "--all", "--status", "pending"],
        &["approvals", "ls", "--limit", "0"],
        &["questions", "answer", "q"],
        &["effects", "resolve", "o", "settle"],
        &["effects", "resolve", "o", "retry", "--output", "x"],
        &["effects", "resolve", "o", "perhaps"],
    ] {
        let output = run(raddle().args(mistake), "");
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{mistake:?}: {}", output.said);
        assert!(!output.said.is_empty(), "{mistake:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_an_exit_code_and_a_sentence() {
    let (server, _dir) = server().await;
    for command in [
        &["approvals", "show", "x"][..],
        &["approvals", "approve", "x"],
        &["approvals", "deny", "x", "--reason", "r"],
        &["approvals", "abort", "x"],
        &["approvals", "ls", "--status", "x"],
        &["questions", "show", "x"],
        &["questions", "answer", "x", "y"],
        &["effects", "resolve", "x", "settle", "--output", ""],
        &["effects", "ls", "--thread", "x"],
        &["threads", "fork", "x"],
        &["threads", "compact", "x"],
        &["threads", "edit", "x", "y"],
        &["threads", "steer", "x", "y"],
        &["threads", "interrupt", "x"],
        &["threads", "pause", "x"],
        &["threads", "checkpoint", "ls", "x"],
        &["threads", "checkpoint", "save", "x", "y"],
    ] {
        let output = ask(&server, command);
        assert_eq!((output.code, output.out.as_str()), (Some(3), ""), "{command:?}: {}", output.said);
        assert!(output.said.contains("404") || output.said.contains("422"), "{command:?}: {}", output.said);
    }
}

#[tokio::test]
async fn nothing_that_waits_is_an_empty_list() {
    let (server, _dir) = server().await;
    for what in ["approvals", "questions", "effects"] {
        let plain = ask(&server, &[what, "ls", "--all"]);
        assert_eq!((plain.code, plain.out.as_str()), (Some(0), ""));
        assert_eq!(json_of(&ask(&server, &[what, "ls", "--json"])), json!([]));
    }
}

#[tokio::test]
async fn an_idle_thread_has_nothing_to_interrupt() {
    let (server, _dir) = server().await;
    let thread = server.api.create(json!({})).await;
    let output = ask(&server, &["threads", "interrupt", &thread]);
    assert_eq!((output.code, output.out.as_str()), (Some(3), ""), "{}", output.said);
}

#[tokio::test]
async fn a_conversation_is_forked_shortened_and_edited() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    api.start(&thread, "one").await;
    api.rest(&thread).await;
    let fork = ask(&server, &["threads", "fork", &thread, "--title", "child"]);
    assert_eq!(fork.code, Some(0), "{}", fork.said);
    let child = api.get(&format!("/v1/threads/{}", fork.out.trim())).await.expect(200);
    assert_eq!(child["title"], "child");
    let edited = json_of(&ask(&server, &["threads", "edit", &thread, "two", "--json"]));
    api.rest(&thread).await;
    assert_eq!(edited["input_summary"], "two");
    let compacted = json_of(&ask(&server, &["threads", "compact", &thread, "--json"]));
    assert_eq!(compacted["turn"]["kind"], "compaction");
    api.rest(&thread).await;

    let saved = json_of(&ask(&server, &["threads", "checkpoint", "save", &thread, "here", "--json"]));
    assert_eq!(json_of(&ask(&server, &["threads", "checkpoint", "ls", &thread, "--json"])), json!([saved]));
    let listed = ask(&server, &["threads", "checkpoint", "ls", &thread]);
    assert!(listed.out.trim_end().ends_with("here"), "{}", listed.out);
    let restored = json_of(&ask(&server, &["threads", "checkpoint", "restore", &thread, "latest", "--json"]));
    assert_eq!(restored["forked_from"]["thread_id"], *thread);
    let gone = json_of(&ask(&server, &["threads", "checkpoint", "rm", &thread, "here", "--json"]));
    assert_eq!(gone, json!({"deleted": "here"}));
    assert_eq!(ask(&server, &["threads", "checkpoint", "rm", &thread, "here"]).code, Some(3));
}

#[tokio::test]
async fn an_open_turn_is_steered_and_interrupted_and_its_queue_paused() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "@wait 600000").await;
    api.queue(&thread, "later").await;
    let steered = json_of(&ask(&server, &["threads", "steer", &thread, "look here", "--json"]));
    assert_eq!((&steered["active_turn"], &steered["admission"]["prompt"]), (&json!(turn), &json!("look here")));
    let ended = json_of(&ask(&server, &["threads", "interrupt", &thread, "--pause", "--json"]));
    assert_eq!(ended["turn"]["status"], "interrupted");
    let path = format!("/v1/threads/{thread}");
    assert_eq!(api.get(&path).await.expect(200)["queue_paused"], true);
    assert!(ask(&server, &["threads", "show", &thread]).out.contains("queue paused"));
    let resumed = ask(&server, &["threads", "resume", &thread]);
    assert!(resumed.out.contains("not paused"), "{resumed:?}");
    api.rest(&thread).await;
    let paused = json_of(&ask(&server, &["threads", "pause", &thread, "--json"]));
    assert_eq!(paused["queue_paused"], true);
}

#[tokio::test]
async fn a_thread_is_bound_to_a_run_and_unbound() {
    let (server, _dir) = server().await;
    let path = format!("/v1/threads/{}", server.api.create(json!({})).await);
    let thread = path.rsplit('/').next().unwrap();
    let id = &server.api.post("/v1/runs", json!({"objective": "ship it"})).await.expect(201)["run_id"];
    let id = id.as_str().unwrap();
    let bound = json_of(&ask(&server, &["threads", "bind", thread, "--run", id, "--json"]));
    assert_eq!(bound["run_id"], id);
    assert!(ask(&server, &["threads", "show", thread]).out.contains(id));
    let unbound = ask(&server, &["threads", "unbind", thread]);
    assert_eq!((unbound.code, unbound.out.trim_end()), (Some(0), format!("{thread}  works for no run").as_str()));
    assert_eq!(server.api.get(&path).await.expect(200).get("run_id"), None);
    // A new one is made for it.
    let chat = run(raddle().args(["chat", "--run", id]).env("RADDLE_SERVER", &server.url), "hello\n");
    assert_eq!(chat.code, Some(0), "{}", chat.said);
    let listed = server.api.list("/v1/threads", 10).await;
    assert_eq!(listed.iter().filter(|thread| thread["run_id"] == id).count(), 1);
}

#[tokio::test]
async fn a_question_is_listed_shown_and_answered() {
    let (server, _dirs) = equipped().await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "@ask which colour?").await;
    until(api, &thread, "question.asked").await;
    let listed = json_of(&ask(&server, &["questions", "ls", "--thread", &thread, "--json"]));
    let question = text(&listed[0]["id"]);
    assert!(ask(&server, &["questions", "ls"]).out.contains("which colour?"));
    assert!(ask(&server, &["questions", "show", &question]).out.contains("which colour?"));
    let answered = ask(&server, &["questions", "answer", &question, "blue"]);
    assert_eq!((answered.code, answered.out), (Some(0), format!("{question}  answered\n")), "{}", answered.said);
    assert_eq!(api.wait(&thread, &turn).await["status"], "completed");
    let late = ask(&server, &["questions", "answer", &question, "red"]);
    assert_eq!(late.code, Some(3));
    assert!(late.said.contains("already-decided"), "{}", late.said);
}

#[tokio::test]
async fn an_approval_is_listed_shown_and_decided() {
    let (server, _dirs) = equipped().await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, &format!("{GATED}\n@say went on")).await;
    until(api, &thread, "approval.required").await;
    let listed = json_of(&ask(&server, &["approvals", "ls", "--json"]));
    let approval = text(&listed[0]["id"]);
    assert!(ask(&server, &["approvals", "ls"]).out.contains("demo_append"));
    assert!(ask(&server, &["approvals", "show", &approval]).out.contains("sha256"));
    let denied = json_of(&ask(&server, &["approvals", "deny", &approval, "--reason", "no", "--json"]));
    assert_eq!((&denied["status"], &denied["decision_reason"]), (&json!("denied"), &json!("no")));
    assert_eq!(api.wait(&thread, &turn).await["status"], "completed");
    assert_eq!(ask(&server, &["approvals", "approve", &approval]).code, Some(3));
}

#[tokio::test]
async fn a_piped_chat_gives_the_next_line_to_whoever_asks() {
    let (server, _dirs) = equipped().await;
    let chat =
        |args: &[&str], stdin: &str| run(raddle().arg("chat").args(args).env("RADDLE_SERVER", &server.url), stdin);
    let done = chat(&[], "@ask which colour?\nblue\nnext\n");
    assert_eq!((done.code, done.out.as_str()), (Some(0), "answer: blue\necho: next\n"), "{}", done.said);
    assert!(done.said.contains("which colour?"), "{}", done.said);
    // Nobody is left to answer: the turn waits on, and the command says for what.
    let left = chat(&[], "@ask which colour?\n");
    assert_eq!((left.code, left.out.as_str()), (Some(1), ""), "{}", left.said);
    assert!(left.said.contains("qst_"), "{}", left.said);
    // Somebody comes back to it.
    let waits = json_of(&ask(&server, &["questions", "ls", "--json"]));
    let thread = text(&waits[0]["thread_id"]);
    let done = chat(&["--thread", &thread], "red\n");
    assert_eq!((done.code, done.out.as_str()), (Some(0), "answer: red\n"), "{}", done.said);

    let thread = server.api.create(json!({})).await;
    let done = chat(&["--thread", &thread], &format!("{GATED}\nperhaps\nn not today\nafter\n"));
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert!(done.out.ends_with("echo: after\n") && done.said.contains("demo_append"), "{done:?}");
    let decided = server.api.list(&format!("/v1/approvals?thread={thread}"), 50).await;
    assert_eq!(decided[0]["decision_reason"], "not today");
}

#[tokio::test]
async fn a_chat_shows_what_tools_do_and_settles_in_place_what_nobody_knows() {
    let (server, _dirs) = equipped().await;
    let chat =
        |args: &[&str], stdin: &str| run(raddle().arg("chat").args(args).env("RADDLE_SERVER", &server.url), stdin);
    let sent = json!({"to": "ada", "text": "hi", "outcome_unknown": true, "reconcile_unknown": true});
    let thread = server.api.create(json!({})).await;
    let stdin = format!("@tool demo_send {sent}\ny\nperhaps\nsettle it was sent\nnext\n");
    let done = chat(&["--thread", &thread], &stdin);
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert!(done.out.ends_with("echo: next\n"), "{done:?}");
    for shown in
        ["[demo_send] to=ada text=hi", "would let pass: demo_send with exactly these arguments", "nobody knows"]
    {
        assert!(done.said.contains(shown), "{shown}: {}", done.said);
    }
    assert!(done.said.contains("  it was sent"), "the output is shown: {}", done.said);
    let items = server.api.list(&format!("/v1/threads/{thread}/items"), 50).await;
    assert!(items.iter().any(|item| item["kind"] == "tool_call" && item["detail"] == "it was sent"), "{items:?}");
    // Whoever comes back to it is asked again.
    let left = chat(&["--thread", &thread], &format!("@tool demo_send {sent}\ny\n"));
    assert_eq!(left.code, Some(1), "{}", left.said);
    assert!(left.said.contains("op_") && left.said.contains("raddle effects ls"), "{}", left.said);
    let done = chat(&["--thread", &thread], "abort\n");
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert!(done.said.contains("[canceled"), "{}", done.said);
}
