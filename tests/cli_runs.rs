//! What the command line promises about runs: a board that is worked on by commands alone.

mod support;

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    process::{Child, Stdio},
};

use axum::{Json, Router, routing::get};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};
use support::*;
use tokio::{sync::watch, time::timeout};

/// A run that there is not.
const NONE: &str = "run_01905d3c-7e57-7abc-8def-000000000001";

/// Runs `raddle runs …` against a server.
fn ask(server: &Server, args: &[&str]) -> Output {
    told(server, args, "")
}

fn told(server: &Server, args: &[&str], stdin: &str) -> Output {
    run(raddle().arg("runs").args(args).env("RADDLE_SERVER", &server.url), stdin)
}

/// What it printed, of a command that did what was asked.
fn said(output: &Output) -> &str {
    assert_eq!(output.code, Some(0), "{output:?}");
    output.out.trim_end()
}

fn json_of(server: &Server, args: &[&str]) -> Value {
    let output = ask(server, &[args, &["--json"]].concat());
    serde_json::from_str(said(&output)).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

async fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(dir.path()).await, dir)
}

fn create(server: &Server, objective: &str) -> String {
    said(&ask(server, &["create", objective])).to_owned()
}

/// Claims what is next: the task's id and its token.
fn claim(server: &Server, run: &str, agent: &str) -> (String, String) {
    let claimed = json_of(server, &["claim", run, "--agent", agent]);
    (text(&claimed["task"]["id"]), text(&claimed["task"]["lease"]["token"]))
}

#[test]
fn mistakes_are_told_before_a_server_is_asked() {
    for mistake in [
        &["create"][..],
        &["create", "x", "--id", "y"],
        &["list", "--limit", "0"],
        &["tell", "r"],
        &["tell", "r", "e", "--status", "perhaps"],
        &["tell", "r", "e", "--payload", "{"],
        &["tasks"],
        &["tasks", "add", "r"],
        &["tasks", "add", "r", "t", "--file", "f"],
        &["tasks", "add", "r", "t", "--payload", "{"],
        &["tasks", "add", "r", "t", "--payload", "1", "--target", "a"],
        &["claim", "r"],
        &["complete", "r", "t", "--output", "{"],
        &["replay"],
        &["replay", "r", "--file", "f"],
        &["replay", "--file", "f", "--upto", "3"],
        &["rollback", "r", "--yes"],
        &["rollback", "r", "evt_1"],
        &["rollback", "r", "--execute"],
        &["rollback", "r", "--execute", "--history"],
        &["board", "r", "--once", "--follow"],
    ] {
        let output = run(raddle().arg("runs").args(mistake).args(["--server", "http://127.0.0.1:1"]), "");
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{mistake:?}: {}", output.said);
        assert!(!output.said.is_empty(), "{mistake:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_an_exit_code_and_a_sentence_and_so_is_silence() {
    let (server, _dir) = server().await;
    let commands = [
        &["show", NONE][..],
        &["board", NONE],
        &["watch", NONE],
        &["tell", NONE, "noted"],
        &["pause", NONE],
        &["todos", NONE],
        &["next", NONE],
        &["tasks", NONE],
        &["tasks", "show", NONE, "t"],
        &["tasks", "add", NONE, "t"],
        &["claim", NONE, "--agent", "a"],
        &["heartbeat", NONE, "t"],
        &["retry", NONE, "t"],
        &["notes", NONE],
        &["fact", NONE, "f"],
        &["notes", "resolve", NONE, "f"],
        &["checkpoints", NONE],
        &["checkpoints", "save", NONE],
        &["replay", NONE],
        &["export", NONE],
        &["ledger", NONE],
        &["mutations", NONE],
        &["rollback", NONE],
        &["rollback", NONE, "--execute", "--yes"],
        &["delete", NONE],
    ];
    for command in commands {
        let output = told(&server, command, "- [ ] something");
        assert_eq!((output.code, output.out.as_str()), (Some(3), ""), "{command:?}: {}", output.said);
        assert!(output.said.contains("404 not-found"), "{command:?}: {}", output.said);
    }
    for command in commands {
        let output =
            run(raddle().arg("runs").args(command).args(["--server", "http://127.0.0.1:1"]), "- [ ] something");
        assert_eq!((output.code, output.out.as_str()), (Some(4), ""), "{command:?}: {}", output.said);
    }
}

#[tokio::test]
async fn a_run_lives_by_commands_alone() {
    let (server, _dir) = server().await;
    let made = json_of(
        &server,
        &[
            "create",
            "Write the parser\nTest the parser",
            "--type",
            "nightly",
            "--source",
            "ci",
            "--workspace",
            "/srv/p",
            "--provider",
            "openai",
            "--model",
            "m",
            "--mcp",
            "search",
        ],
    );
    let id = text(&made["run_id"]);
    assert_eq!(
        (&made["run_type"], &made["source_client"], &made["workspace"]["canonical_path"], &made["mcp_servers"]),
        (&json!("nightly"), &json!("ci"), &json!("/srv/p"), &json!(["search"]))
    );
    let other = create(&server, "something else");
    let listed = ask(&server, &["list", "--type", "nightly"]);
    assert!(said(&listed).starts_with(&id) && listed.out.contains("queued"), "{}", listed.out);
    assert_eq!(json_of(&server, &["list"]).as_array().unwrap().len(), 2);
    assert_eq!(json_of(&server, &["list", "--limit", "1"]).as_array().unwrap().len(), 1);

    // A plan, approved.
    let planned = json_of(&server, &["tell", &id, "planning_started"]);
    assert_eq!((&planned["event"], &planned["status"]), (&json!("planning_started"), &json!("awaiting_approval")));
    let dry = json_of(&server, &["next", &id, "--dry-run"]);
    assert_eq!((&dry["dry_run"], &dry["target_status"]), (&json!(true), &json!("awaiting_approval")));
    let approved = ask(&server, &["approve", &id]);
    assert!(said(&approved).contains("plan_approved") && approved.out.contains("running"), "{}", approved.out);
    let shown = ask(&server, &["show", &id]);
    for part in [&*id, "nightly", "running", "openai/m", "/srv/p", "Write the parser", "in_progress"] {
        assert!(said(&shown).contains(part), "{part}: {}", shown.out);
    }
    said(&ask(&server, &["tell", &id, "step_completed", "--step", "step-1"]));
    said(&ask(&server, &["tell", &id, "step_done", "--step", "step-2", "--payload", r#"{"why_next_step": "tasks"}"#]));

    // Tasks: one by options, others from a file; whole or not at all.
    let added = ask(
        &server,
        &["tasks", "add", &id, "implementation", "--id", "write", "--target", "src/p.rs", "--priority", "-1"],
    );
    assert_eq!(said(&added), "write");
    let lines = "{\"id\": \"look\", \"task_type\": \"research\"}\n\
                 {\"id\": \"test\", \"task_type\": \"validation\", \"depends_on_task_ids\": [\"write\"]}\n";
    assert_eq!(said(&told(&server, &["tasks", "add", &id, "--file", "-"], lines)), "look\ntest");
    let broken = told(&server, &["tasks", "add", &id, "--file", "-"], r#"[{"task_type": "a"}, {"task_type": ""}]"#);
    assert_eq!(broken.code, Some(3), "{}", broken.said);
    assert!(broken.said.contains("task-contract-invalid"), "{}", broken.said);
    let tasks = json_of(&server, &["tasks", &id]);
    assert_eq!(tasks.as_array().unwrap().len(), 3);
    assert_eq!(tasks[0]["payload"]["output_target"]["path"], "src/p.rs");
    let listed = ask(&server, &["tasks", &id, "--type", "validation"]);
    assert_eq!(said(&listed), "pending      test  validation  after write");

    // Claimed, kept, completed, failed, tried again, called off.
    let (task, token) = claim(&server, &id, "ada");
    assert_eq!(task, "look", "the priority decides");
    let early = ask(&server, &["complete", &id, &task]);
    assert_eq!(early.code, Some(3));
    assert!(early.said.contains("task-lease-required"), "{}", early.said);
    let kept = json_of(&server, &["heartbeat", &id, &task, "--token", &token, "--lease-ms", "60000", "--agent", "ada"]);
    assert_eq!(kept["status"], "in_progress");
    // A token need not stand among the arguments, which everybody on the machine can read.
    let done = run(
        raddle()
            .args(["runs", "complete", &id, &task, "--output", r#"{"pages": 3}"#, "--json"])
            .env("RADDLE_SERVER", &server.url)
            .env("RADDLE_LEASE", &token),
        "",
    );
    let done: Value = serde_json::from_str(said(&done)).unwrap();
    assert_eq!((&done["status"], &done["output"]["pages"]), (&json!("done"), &json!(3)));

    let once = ["claim", &id, "--agent", "bob", "--once", "k1"];
    let claimed = json_of(&server, &once);
    assert_eq!(json_of(&server, &once), claimed, "a claim that is repeated is the same claim");
    let plain = ask(&server, &once);
    let token = text(&claimed["task"]["lease"]["token"]);
    assert!(said(&plain).ends_with(&format!("token       {token}")), "{}", plain.out);
    assert!(plain.out.contains("bob until"), "{}", plain.out);
    let none = ask(&server, &["claim", &id, "--agent", "carol"]);
    assert_eq!((none.code, none.out.as_str()), (Some(1), ""), "{}", none.said);
    let none = ask(&server, &["claim", &id, "--agent", "carol", "--json"]);
    assert_eq!((none.code, none.out.starts_with(r#"{"task":null,"#)), (Some(1), true), "{none:?}");

    let late = ask(&server, &["release", &id, "write", "--token", "lease-nonsense"]);
    assert_eq!(late.code, Some(3));
    assert!(late.said.contains("task-lease-invalid"), "{}", late.said);
    let rev = claimed["task"]["task_rev"].to_string();
    let stale = ask(&server, &["release", &id, "write", "--token", &token, "--rev", "1"]);
    assert!(stale.said.contains("task-rev-mismatch"), "{}", stale.said);
    let back = ask(&server, &["release", &id, "write", "--token", &token, "--rev", &rev]);
    assert_eq!(said(&back), "runnable     write  implementation");
    let (_, token) = claim(&server, &id, "bob");
    let failed = ask(&server, &["fail", &id, "write", "--token", &token, "--error", "out of\nmemory\u{1b}[2J"]);
    assert!(said(&failed).contains("failed       write  implementation  again at"), "{}", failed.out);
    assert!(failed.out.ends_with(": out of memory[2J\n"), "{}", failed.out);
    let retried = ask(&server, &["retry", &id, "write"]);
    // It may have come back by itself meanwhile.
    assert!(retried.code == Some(0) || retried.said.contains("task-transition-invalid"), "{retried:?}");
    let (_, token) = claim(&server, &id, "bob");
    let blocked = ask(&server, &["block", &id, "write", "--token", &token, "--error", "no key"]);
    assert_eq!(said(&blocked), "blocked      write  implementation  because: no key");
    said(&ask(&server, &["cancel-task", &id, "write"]));
    said(&ask(&server, &["cancel-task", &id, "test", "--error", "not needed"]));
    let shown = ask(&server, &["tasks", "show", &id, "test"]);
    assert!(said(&shown).starts_with("cancelled    test  validation  because: not needed"), "{}", shown.out);

    // Held back, gone on with, ended, opened again.
    said(&ask(&server, &["pause", &id]));
    let held = ask(&server, &["claim", &id, "--agent", "ada"]);
    assert!(held.said.contains("paused"), "{held:?}");
    said(&ask(&server, &["resume", &id]));
    let next = ask(&server, &["next", &id]);
    assert!(said(&next).starts_with("completed  -  everything is done"), "{}", next.out);
    let over = ask(&server, &["pause", &id]);
    assert!(over.code == Some(3) && over.said.contains("run-transition-invalid"), "{over:?}");
    said(&ask(&server, &["reopen", &id]));
    said(&ask(&server, &["cancel", &id]));
    assert_eq!(json_of(&server, &["show", &id])["status"], "cancelled");

    assert_eq!(json_of(&server, &["delete", &other]), json!({ "deleted": other }));
    assert_eq!(ask(&server, &["show", &other]).code, Some(3));
}

#[tokio::test]
async fn a_todo_list_is_the_plan() {
    let (server, _dir) = server().await;
    let id = create(&server, "x");
    let synced = told(&server, &["todos", &id], "# List\n- [x] first\n- [~] second\n- third\n");
    assert_eq!(said(&synced), "done         todo-1  first\nin_progress  todo-2  second\npending      todo-3  third");
    let json = r#"{"todos": [{"id": "todo-2", "content": "second", "status": "completed"}]}"#;
    let merged = told(&server, &["todos", &id, "--merge"], json);
    assert_eq!(said(&merged), "done         todo-1  first\ndone         todo-2  second\npending      todo-3  third");
    let next = ask(&server, &["next", &id, "--dry-run"]);
    assert!(said(&next).starts_with("running  step todo-3  "), "{}", next.out);
    assert_eq!(json_of(&server, &["show", &id])["steps"][2]["status"], "pending", "it was only said");
    said(&ask(&server, &["next", &id]));
    assert_eq!(json_of(&server, &["show", &id])["steps"][2]["status"], "in_progress");
    assert_eq!(told(&server, &["todos", &id], "[{").code, Some(1));
    assert_eq!(ask(&server, &["todos", &id, "/nonexistent"]).code, Some(1));
}

#[tokio::test]
async fn what_agents_know_is_noted_changed_and_settled() {
    let (server, _dir) = server().await;
    let id = create(&server, "x");
    let fact = ask(&server, &["fact", &id, "water is\nwet", "--id", "f1", "--step", "step-1"]);
    assert_eq!(said(&fact), "fact           f1  water is wet");
    said(&ask(&server, &["decision", &id, "use tabs", "--id", "d1"]));
    said(&ask(&server, &["question", &id, "who pays?", "--id", "q1"]));
    let made =
        json_of(&server, &["artifact", &id, "out/a.md", "--type", "report", "--text", "the draft", "--id", "a1"]);
    assert_eq!((&made["path"], &made["artifact_type"]), (&json!("out/a.md"), &json!("report")));
    said(&ask(&server, &["notes", "edit", &id, "f1", "water was wet"]));
    let settled = ask(&server, &["notes", "resolve", &id, "q1", "we do"]);
    assert_eq!(said(&settled), "open_question  q1  who pays?  (settled: we do)");
    assert_eq!(json_of(&server, &["notes", "summary", &id, "half way"]), Value::Null);
    let expected = "\
summary        half way
fact           f1  water was wet
decision       d1  use tabs
open_question  q1  who pays?  (settled: we do)
artifact       a1  out/a.md: the draft";
    assert_eq!(said(&ask(&server, &["notes", &id])), expected);
    assert_eq!(json_of(&server, &["notes", &id])["facts"][0]["step_id"], "step-1");
    for command in [&["notes", "edit", &id, "nobody", "x"][..], &["notes", "resolve", &id, "a1"]] {
        assert_eq!(ask(&server, command).code, Some(3), "{command:?}");
    }
    let again = ask(&server, &["fact", &id, "x", "--id", "f1"]);
    assert_eq!(again.code, Some(3), "{}", again.said);
}

#[tokio::test]
async fn a_checkpoint_is_saved_listed_restored_and_deleted() {
    let (server, _dir) = server().await;
    let id = create(&server, "the work");
    said(&ask(&server, &["tasks", "add", &id, "chore", "--id", "a"]));
    let saved = said(&ask(&server, &["checkpoints", "save", &id, "--reason", "before"])).to_owned();
    said(&ask(&server, &["cancel-task", &id, "a"]));
    let listed = ask(&server, &["checkpoints", &id]);
    assert!(said(&listed).starts_with(&format!("{saved}  event 2  ")) && listed.out.ends_with("  before\n"));
    let fork = said(&ask(&server, &["checkpoints", "restore", &id, &saved])).to_owned();
    let forked = json_of(&server, &["show", &fork]);
    assert_eq!((&forked["restored_from"]["run_id"], &forked["tasks"][0]["status"]), (&json!(id), &json!("pending")));
    assert!(said(&ask(&server, &["show", &fork])).contains(&format!("made from  {id} at event 2")));
    let replayed = json_of(&server, &["replay", &id, "--from", &saved]);
    assert_eq!((&replayed["from_checkpoint"], &replayed["drift"]["mismatch"]), (&json!(saved), &json!(false)));
    assert_eq!(json_of(&server, &["checkpoints", "delete", &id, &saved]), json!({ "deleted": saved }));
    assert_eq!(json_of(&server, &["checkpoints", &id]), json!([]));
}

#[tokio::test]
async fn a_run_is_exported_replayed_without_a_server_and_imported() {
    let (server, dir) = server().await;
    let id = create(&server, "the work");
    said(&ask(&server, &["tasks", "add", &id, "chore", "--id", "a"]));
    let (_, token) = claim(&server, &id, "ada");
    said(&ask(&server, &["complete", &id, "a", "--token", &token]));
    said(&ask(&server, &["fact", &id, "it works"]));

    let replayed = ask(&server, &["replay", &id]);
    let lines: Vec<_> = said(&replayed).lines().collect();
    assert_eq!(lines, [&*format!("{id}  5 events applied, up to event 5"), "queued, revision 5", "no drift"]);
    let part = ask(&server, &["replay", &id, "--upto", "2"]);
    assert!(said(&part).contains("up to event 2") && part.out.contains("not compared"), "{}", part.out);
    let part = json_of(&server, &["replay", &id, "--upto", "2"]);
    assert_eq!((&part["replay"]["tasks"][0][1]["status"], &part["drift"]), (&json!("pending"), &Value::Null));

    let file = dir.path().join("lines.jsonl");
    let path = file.to_str().unwrap();
    let exported = ask(&server, &["export", &id, path]);
    assert_eq!((exported.code, exported.out.as_str()), (Some(0), ""), "{}", exported.said);
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(ask(&server, &["export", &id]).out, lines, "stdout has the same");
    assert_eq!(lines.lines().count(), 7);
    assert!(!lines.contains(&token), "a token is its holder's");
    assert!(!dir.path().join("lines.jsonl.part").exists());

    let kept = json_of(&server, &["replay", &id])["replay"].clone();
    let offline = |args: &[&str], stdin: &str| run(raddle().args(["runs", "replay"]).args(args), stdin);
    let here = offline(&["--file", path, "--json"], "");
    assert_eq!(serde_json::from_str::<Value>(said(&here)).unwrap(), kept);
    let drawn = offline(&["--file", "-"], &lines);
    assert!(said(&drawn).contains("TASKS 1 of 1 done") && drawn.out.contains("it works"), "{}", drawn.out);
    let tampered = offline(&["--file", "-"], &lines.replace("it works", "it worked"));
    assert_eq!((tampered.code, tampered.out.as_str()), (Some(1), ""));
    assert!(tampered.said.contains("line 7: the events have the digest"), "{}", tampered.said);
    let cut = offline(&["--file", "-"], &lines.lines().take(4).map(|line| format!("{line}\n")).collect::<String>());
    assert!(cut.code == Some(1) && cut.said.contains("the lines end before the run does"), "{cut:?}");
    assert_eq!(offline(&["--file", "/nonexistent"], "").code, Some(1));

    for import in [ask(&server, &["import", path]), told(&server, &["import", "-"], &lines)] {
        let copy = said(&import).to_owned();
        assert_ne!(copy, id);
        let copied = json_of(&server, &["show", &copy]);
        assert_eq!((&copied["restored_from"]["run_id"], &copied["tasks"][0]["status"]), (&json!(id), &json!("done")));
        assert_eq!(json_of(&server, &["notes", &copy])["facts"][0]["text"], "it works");
    }
    let refused = told(&server, &["import", "-"], &lines.replace("it works", "it worked"));
    assert_eq!((refused.code, refused.out.as_str()), (Some(3), ""), "{}", refused.said);
    assert!(refused.said.contains("line 7"), "{}", refused.said);
    assert_eq!(json_of(&server, &["list"]).as_array().unwrap().len(), 3);
    // What cannot be written leaves nothing behind.
    let nowhere = ask(&server, &["export", &id, "/nonexistent/lines"]);
    assert_eq!((nowhere.code, nowhere.said.contains("/nonexistent/lines.part")), (Some(1), true), "{}", nowhere.said);
}

#[tokio::test]
async fn without_a_terminal_a_board_is_drawn_once() {
    let (server, _dir) = server().await;
    let id = create(&server, "Ship it");
    let lines = r#"[{"id": "a", "task_type": "chore"}, {"id": "b", "task_type": "chore", "depends_on_task_ids": ["a"]},
                    {"id": "c", "task_type": "chore", "status": "blocked"}, {"id": "d", "task_type": "chore"}]"#;
    said(&told(&server, &["tasks", "add", &id, "--file", "-"], lines));
    said(&told(&server, &["todos", &id], "- [x] plan\n- build"));
    claim(&server, &id, "ada");
    said(&ask(&server, &["question", &id, "by when?"]));
    let board = ask(&server, &["board", &id]);
    let shown = said(&board);
    let words = |name: &str| {
        let line = shown.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name}: {shown}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(shown.starts_with("Ship it ") && words("Ship it").ends_with("planning"), "{shown}");
    assert!(words("next:").contains("build"));
    assert_eq!(words("PLAN"), "PLAN 1 of 2 done");
    assert_eq!(words("TASKS"), "TASKS 0 of 4 done");
    assert_eq!(words("WAITING"), "WAITING 1 CLAIMABLE 1 IN PROGRESS 1 BLOCKED 1 FAILED 0");
    assert_eq!(words("b chore"), "b chore d chore a chore c chore");
    assert!(words("after a").contains("ada ") && words("after a").ends_with('s'), "{shown}");
    assert_eq!(words("FACTS"), "FACTS 0 DECISIONS 0 OPEN QUESTIONS 1 ARTIFACTS 0");
    assert!(words("context.task.claimed").ends_with("agent:ada a"));
    assert!(!shown.contains('\u{1b}'), "nobody asked for colours");
    let json = json_of(&server, &["board", &id]);
    assert_eq!(
        (&json["run"]["run_id"], &json["blackboard"]["open_questions"][0]["text"]),
        (&json!(id), &json!("by when?"))
    );
}

/// A command that goes on, and its lines.
struct Goes {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Goes {
    fn start(server: &Server, args: &[&str]) -> Self {
        let mut child = raddle()
            .arg("runs")
            .args(args)
            .env("RADDLE_SERVER", &server.url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("it goes on").unwrap()
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Goes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_watcher_prints_what_happens_once_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let id = create(&server, "x");
    let mut watch = Goes::start(&server, &["watch", &id, "--json"]);
    assert_eq!(watch.json()["event"], "context.run.created");
    said(&ask(&server, &["fact", &id, "one"]));
    assert_eq!(watch.json()["payload"]["entry"]["text"], "one");
    server.stop().await;
    let server = Server::with(dir.path(), &[("RADDLE_LISTEN", &address)]).await;
    said(&ask(&server, &["fact", &id, "two"]));
    let event = watch.json();
    assert_eq!((&event["seq"], &event["payload"]["entry"]["text"]), (&json!(3), &json!("two")));

    // What is stored, and no more.
    let stored = ask(&server, &["watch", &id, "--no-follow", "--after", "1"]);
    let lines: Vec<_> = said(&stored).lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].trim_start().starts_with("2 ") && lines[0].ends_with("one"), "{lines:?}");
    // From now on.
    let mut board = Goes::start(&server, &["board", &id, "--follow"]);
    // The end of the run is the watcher's; the board may have begun to look only after that.
    said(&ask(&server, &["delete", &id]));
    assert_eq!(watch.json()["event"], "context.run.deleted");
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
    let code = board.child.wait().unwrap().code();
    match board.lines.next() {
        Some(line) => assert!(line.unwrap().contains("context.run.deleted") && code == Some(0)),
        None => assert_eq!(code, Some(3)),
    }
}

/// A terminal, and everything that was written to it.
struct Terminal {
    master: OwnedFd,
    shown: watch::Receiver<String>,
}

impl Terminal {
    fn open(columns: u16, rows: u16) -> (Self, Stdio) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = std::fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
        let mut reads = std::fs::File::from(master.try_clone().unwrap());
        let (hears, shown) = watch::channel(String::new());
        // Ends with the last process that has the terminal open.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reads.read(&mut bytes) {
                hears.send_modify(|shown| shown.push_str(&String::from_utf8_lossy(&bytes[..count])));
            }
        });
        let terminal = Self { master, shown };
        terminal.resize(columns, rows);
        (terminal, slave.into())
    }

    fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.master, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Waits for a drawing, as far as it has come, of which this is so.
    async fn until(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let newest = |shown: &str| shown.rsplit("\u{1b}[H").next().unwrap_or_default().to_owned();
        if let Ok(Ok(shown)) = timeout(LOST, self.shown.wait_for(|shown| is(&newest(shown)))).await {
            return newest(&shown);
        }
        panic!("{what} is never shown: {:?}", *self.shown.borrow())
    }
}

#[tokio::test]
async fn a_board_in_a_terminal_follows_the_run_and_gives_the_terminal_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let id = create(&server, "Ship it");
    let (mut terminal, stdout) = Terminal::open(100, 30);
    let mut command = raddle();
    command.args(["runs", "board", &id]).env("RADDLE_SERVER", &server.url).env("TERM", "xterm");
    let mut child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    // The terminal is the child's alone from here on.
    drop(command);
    let foot = |shown: &str| shown.contains("Ctrl-C leaves");
    let first = terminal.until("the board", foot).await;
    assert!(first.contains("Ship it") && first.contains("\u{1b}[1m"), "{first:?}");
    assert_eq!(first.matches("\r\n").count(), 29, "it fills the terminal: {first:?}");
    said(&ask(&server, &["tasks", "add", &id, "chore", "--id", "sweep"]));
    claim(&server, &id, "ada");
    let shown = terminal.until("the claim", |shown| shown.contains("ada") && foot(shown)).await;
    assert!(shown.contains("sweep") && shown.contains("IN PROGRESS 1"), "{shown:?}");
    // A server that goes away and comes back.
    server.stop().await;
    terminal.until("the loss", |shown| shown.contains("no connection")).await;
    let server = Server::with(dir.path(), &[("RADDLE_LISTEN", &address)]).await;
    said(&ask(&server, &["fact", &id, "it is back"]));
    terminal.until("what came after it", |shown| shown.contains("it is back") && foot(shown)).await;
    // Another size is drawn in.
    terminal.resize(60, 12);
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::WINCH).unwrap();
    terminal.until("the new size", |shown| shown.matches("\r\n").count() == 11 && foot(shown)).await;
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    terminal.until("the cursor", |shown| shown.ends_with("\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l")).await;
}

#[tokio::test]
async fn a_terminal_without_colours_gets_none() {
    let (server, _dir) = server().await;
    let id = create(&server, "Ship it");
    let (mut terminal, stdout) = Terminal::open(80, 24);
    let mut command = raddle();
    command.args(["runs", "board", &id, "--once"]).env("RADDLE_SERVER", &server.url).env("NO_COLOR", "1");
    let mut child = command.stdin(Stdio::null()).stdout(stdout).spawn().unwrap();
    drop(command);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let shown = terminal.until("the board", |shown| shown.contains("context.run.created")).await;
    assert!(shown.contains("Ship it") && !shown.contains('\u{1b}'), "{shown:?}");
}

#[tokio::test]
async fn a_run_for_which_no_tool_acted_has_nothing_to_take_back() {
    let (server, _dir) = server().await;
    let id = create(&server, "x");
    assert_eq!(said(&ask(&server, &["ledger", &id])), "0 records");
    assert_eq!(json_of(&server, &["ledger", &id])["summary"]["record_count"], 0);
    assert_eq!(json_of(&server, &["mutations", &id]), json!([]));
    assert_eq!(said(&ask(&server, &["rollback", &id])), "0 of 0 can be taken back");
    let nothing = ask(&server, &["rollback", &id, "--execute", "--yes"]);
    assert_eq!((nothing.code, nothing.out.as_str()), (Some(1), ""), "{}", nothing.said);
    // Naming one that there is not is refused, and on record.
    let unknown = ask(&server, &["rollback", &id, "evt_7", "--execute", "--yes"]);
    assert_eq!(unknown.code, Some(3), "{}", unknown.said);
    assert!(unknown.said.contains("rollback-blocked"), "{}", unknown.said);
    let history = ask(&server, &["rollback", &id, "--history"]);
    assert!(said(&history).contains("blocked   evt_7"), "{}", history.out);
}

#[tokio::test]
async fn what_a_tool_did_to_files_is_listed_and_taken_back_once_somebody_agreed() {
    let (server, dir) = server().await;
    let id = create(&server, "x");
    let mut events = Goes::start(&server, &["watch", &id, "--json"]);
    let thread = server.api.create(json!({"workspace": "play", "auto_approve": true, "run_id": id})).await;
    let arguments = json!({"path": "a.txt", "content": "hello"});
    let turn = server.api.start(&thread, &format!("@tool write_file {arguments}")).await;
    assert_eq!(server.api.wait(&thread, &turn).await["status"], "completed");
    while events.json()["payload"]["record"]["phase"] != "outcome" {}

    let ledger = ask(&server, &["ledger", &id]);
    assert!(said(&ledger).contains("outcome     succeeded  write_file"), "{}", ledger.out);
    assert!(said(&ledger).ends_with("2 records: 1 started, 1 succeeded"), "{}", ledger.out);
    let changed = json_of(&server, &["mutations", &id]);
    let event = text(&changed[0]["event_id"]);
    let listed = ask(&server, &["mutations", &id]);
    assert!(said(&listed).starts_with(&event) && listed.out.ends_with("write_file  a.txt\n"), "{}", listed.out);
    let shown = ask(&server, &["rollback", &id]);
    assert!(said(&shown).starts_with(&format!("{event}  write_file  ")), "{}", shown.out);
    assert!(shown.out.ends_with("\n  delete_created_file  a.txt\n1 of 1 can be taken back\n"), "{}", shown.out);

    // While its agents may work nothing is taken back; and not without somebody's word.
    said(&ask(&server, &["pause", &id]));
    let file = dir.path().join("workspaces/default/play/a.txt");
    let asks = ask(&server, &["rollback", &id, "--execute"]);
    assert_eq!((asks.code, asks.said.contains("--yes")), (Some(2), true), "{}", asks.said);
    let answers = |answer: &'static [u8]| {
        let (terminal, stdin) = Terminal::open(80, 24);
        let mut command = raddle();
        command.args(["runs", "rollback", &id, "--execute"]).env("RADDLE_SERVER", &server.url);
        rustix::io::write(&terminal.master, answer).unwrap();
        let output = command.stdin(stdin).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, out, told) = answers(b"no\n");
    assert_eq!((code, out.as_str()), (Some(1), ""), "{told}");
    assert!(told.contains("delete_created_file  a.txt") && told.contains("take back this change? [y/N]"), "{told}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hello");
    let (code, out, told) = answers(b"y\n");
    assert_eq!((code, out.as_str()), (Some(0), "1 file is what it was\n"), "{told}");
    assert!(!file.exists());
    let again = ask(&server, &["rollback", &id, &event, "--execute", "--yes"]);
    assert!(again.code == Some(3) && again.said.contains("rollback-blocked"), "{again:?}");
    let history = ask(&server, &["rollback", &id, "--history"]);
    for part in ["started ", "applied ", "blocked ", "1 files"] {
        assert!(said(&history).contains(part), "{part}: {}", history.out);
    }
    assert!(said(&ask(&server, &["mutations", &id])).contains("(taken back by event"));
    assert_eq!(json_of(&server, &["replay", &id])["drift"]["mismatch"], false);
}

/// A server that says what no healthy one does.
async fn says(path: &str, answers: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().nest(&format!("/v1/runs/{NONE}{path}"), answers);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn ask_at(server: &str, args: &[&str]) -> Output {
    let mut command = raddle();
    command.arg("runs").args(args).args(["--server", server]);
    tokio::task::spawn_blocking(move || run(&mut command, "")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_an_exit_code_and_a_report() {
    let names = [
        "run",
        "status",
        "why_next_step",
        "steps",
        "revision",
        "tasks",
        "blackboard",
        "checkpoints",
        "ledger",
        "mutations",
    ];
    let mut drift: serde_json::Map<_, _> =
        names.into_iter().map(|name| (format!("{name}_mismatch"), json!(name == "tasks"))).collect();
    drift.insert("mismatch".to_owned(), json!(true));
    drift.insert(
        "differences".to_owned(),
        json!([{ "at": "tasks[a].status\u{1b}[2J", "kept": "done", "replayed": "runnable" }]),
    );
    let replay = json!({
        "run_id": NONE, "from_checkpoint": null, "checkpoint_seq": null, "upto_seq": 4, "events_applied": 4,
        "replay": { "run": { "status": "running", "revision": 4 } }, "drift": drift,
    });
    let answer = replay.clone();
    let server = says("/replay", Router::new().route("/", get(move || async move { Json(answer) }))).await;
    let told = ask_at(&server, &["replay", NONE]).await;
    assert_eq!(told.code, Some(1), "{}", told.said);
    assert!(told.out.contains("drift:\n  tasks[a].status[2J: kept \"done\", replayed \"runnable\"\n"));
    let told = ask_at(&server, &["replay", NONE, "--json"]).await;
    assert_eq!((told.code, serde_json::from_str::<Value>(&told.out).unwrap()), (Some(1), replay));
}
