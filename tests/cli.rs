//! What the command line promises to scripts: what is printed where, and the exit codes.

mod support;

use serde_json::{Value, json};
use support::*;
use tokio::net::TcpSocket;

/// Runs the command against a server.
fn ask(server: &Server, args: &[&str]) -> Output {
    run(raddle().args(args).env("RADDLE_SERVER", &server.url), "")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&output.out).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

/// An address that is taken, so that nobody else can listen there, and where nobody listens.
fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, format!("http://{address}"))
}

async fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(dir.path()).await, dir)
}

#[tokio::test]
async fn a_server_says_where_it_listens_and_nothing_else_on_stdout() {
    let (server, dir) = server().await;
    server.api.get("/healthz").await.expect(200);
    let said = server.said();
    assert!(said.contains(dir.path().to_str().unwrap()) && !said.contains("listening on"), "{said}");
    server.stop().await;
    let mut child = raddle()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(line.starts_with("listening on http://127.0.0.1:"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
    assert_eq!(rest, "");
}

#[tokio::test]
async fn a_piped_chat_answers_each_line_on_stdout_and_remarks_on_stderr() {
    let (server, _dir) = server().await;
    let chat =
        |args: &[&str], stdin: &str| run(raddle().arg("chat").args(args).env("RADDLE_SERVER", &server.url), stdin);
    let done = chat(&[], "hello ☃\n\nsecond\n");
    assert_eq!((done.code, done.out.as_str()), (Some(0), "echo: hello ☃\necho: second\n"), "{}", done.said);
    let thread = text(&server.api.list("/v1/threads", 10).await[0]["id"]);
    assert!(done.said.contains(&thread), "{}", done.said);
    // The same thread goes on; an answer without a line end before it is still an answer.
    let done = chat(&["--thread", &thread], "third");
    assert_eq!((done.code, done.out.as_str()), (Some(0), "echo: third\n"), "{}", done.said);
    assert_eq!(server.api.list(&format!("/v1/threads/{thread}/turns"), 10).await.len(), 3);
    check_log(&server.api.log(&thread).await, true);
    // A turn that fails is told on stderr.
    let done = chat(&[], "@fail 400 not today\n");
    assert_eq!((done.code, done.out.as_str()), (Some(0), ""));
    assert!(done.said.contains("not today"), "{}", done.said);
    // With --json every event of the turn is a line.
    let done = chat(&["--json"], "hello\n");
    let events: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.last().unwrap()["event"], "turn.completed");
    let said: String = events.iter().filter_map(|event| event["payload"]["delta"].as_str()).collect();
    assert_eq!(said, "echo: hello", "{}", done.out);
    let done = chat(&["--thread", "thr_00000000-0000-7000-8000-000000000000"], "x\n");
    assert_eq!((done.code, done.out.as_str()), (Some(3), ""));
}

#[tokio::test]
async fn threads_are_listed_shown_followed_and_deleted() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(api.create(json!({"title": format!("title {n}")})).await);
    }
    api.start(&ids[1], "hello ☃").await;
    api.rest(&ids[1]).await;
    api.patch(&format!("/v1/threads/{}", ids[0]), json!({"archived": true})).await.expect(200);

    let listed = ask(&server, &["threads", "ls"]);
    let lines: Vec<_> = listed.out.lines().collect();
    assert_eq!((listed.code, lines.len()), (Some(0), 2));
    assert!(lines[0].contains(&ids[1]) && lines[0].contains("idle") && lines[0].ends_with("title 1"), "{lines:?}");
    let found = |args: &[&str]| {
        let output = ask(&server, &[&["threads", "ls", "--json"], args].concat());
        json_of(&output).as_array().unwrap().iter().map(|thread| text(&thread["id"])).collect::<Vec<_>>()
    };
    assert_eq!(found(&[]), [&*ids[1], &ids[2]]);
    assert_eq!(found(&["--archived"]).len(), 3);
    assert_eq!(found(&["--archived", "--limit", "1"]).len(), 1);
    assert_eq!(found(&["-q", "TITLE 2"]), [&*ids[2]]);
    assert_eq!(found(&["--status", "archived"]), [&*ids[0]]);

    let shown = ask(&server, &["threads", "show", &ids[1]]);
    assert_eq!(shown.code, Some(0));
    for part in [&*ids[1], "title 1", "idle", "user_message: hello ☃", "agent_message: echo: hello ☃", "completed"]
    {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
    assert_eq!(json_of(&ask(&server, &["threads", "show", &ids[1], "--json"])), api.snapshot(&ids[1]).await);

    let log = api.log(&ids[1]).await;
    let tailed = ask(&server, &["threads", "tail", &ids[1], "--no-follow", "--json"]);
    let events: Vec<Value> = tailed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((tailed.code, events), (Some(0), log.clone()));
    let tailed = ask(&server, &["threads", "tail", &ids[1], "--no-follow", "--after", "1"]);
    assert_eq!(tailed.out.lines().count(), log.len() - 1);
    for (line, event) in tailed.out.lines().zip(&log[1..]) {
        assert!(line.trim_start().starts_with(&event["seq"].to_string()) && line.contains(&text(&event["event"])));
    }
    let past = ask(&server, &["threads", "tail", &ids[1], "--no-follow", "--after", "999"]);
    assert_eq!((past.code, past.out.as_str()), (Some(3), ""));

    assert_eq!(ask(&server, &["threads", "rm", &ids[1]]).code, Some(0));
    api.get(&format!("/v1/threads/{}", ids[1])).await.problem(404, "not-found");
    assert_eq!(json_of(&ask(&server, &["threads", "rm", &ids[2], "--json"])), json!({"deleted": ids[2]}));
    let gone = ask(&server, &["threads", "rm", &ids[1]]);
    assert_eq!((gone.code, gone.out.as_str()), (Some(3), ""));
    assert!(gone.said.contains("404 not-found"), "{}", gone.said);
}

#[tokio::test]
async fn a_log_longer_than_a_page_is_tailed_whole() {
    let (server, _dir) = server().await;
    let thread = server.api.create(json!({})).await;
    for n in 0..1_100 {
        server.api.patch(&format!("/v1/threads/{thread}"), json!({"title": n.to_string()})).await.expect(200);
    }
    let tailed = ask(&server, &["threads", "tail", &thread, "--no-follow", "--json"]);
    let seqs = tailed.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap());
    assert!(seqs.eq(1..=1_101));
}

#[tokio::test]
async fn a_follower_prints_what_happens_and_survives_a_restart() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    // A follower knows one address: the restarted server takes it again.
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let thread = server.api.create(json!({})).await;
    let mut child = raddle()
        .args(["threads", "tail", &thread, "--json", "--server", &server.url])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["event"], "thread.created");
    server.api.patch(&format!("/v1/threads/{thread}"), json!({"title": "a"})).await.expect(200);
    assert_eq!(next()["seq"], 2);
    server.stop().await;
    let server = Server::with(dir.path(), &[("RADDLE_LISTEN", &address)]).await;
    server.api.patch(&format!("/v1/threads/{thread}"), json!({"title": "b"})).await.expect(200);
    let after = next();
    assert_eq!((&after["seq"], &after["payload"]["thread"]["title"]), (&json!(3), &json!("b")));
    // The thread's end is the follower's.
    assert_eq!(server.api.delete(&format!("/v1/threads/{thread}")).await.status, 204);
    assert_eq!(next()["event"], "thread.deleted");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_doctor_says_what_is_well_and_what_is_not() {
    let (server, dir) = server().await;
    let said = ask(&server, &["doctor", "--json", "--data-dir", dir.path().to_str().unwrap()]);
    let checks = json_of(&said);
    let check = |name: &str| {
        let found = checks.as_array().unwrap().iter().find(|check| check["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no {name}: {checks}"))
    };
    for well in ["reachable", "version", "ready"] {
        assert_eq!(check(well)["ok"], true, "{checks}");
    }
    // Nobody but the script answers: that is worth a word.
    assert!(check("model")["detail"].as_str().unwrap().contains("scripted"), "{checks}");
    assert_eq!(said.code, Some(0), "{checks}");
    assert!(check("disk")["detail"].as_str().unwrap().contains("MiB free"));
    let plain = ask(&server, &["doctor"]);
    assert!(plain.out.contains("ok    ready") && plain.out.contains("ok    model"), "{}", plain.out);
    let (_held, nobody) = nobody();
    let gone = run(raddle().args(["doctor", "--json", "--server", &nobody]), "");
    assert_eq!((gone.code, &json_of(&gone)[0]["ok"]), (Some(4), &json!(false)));
}

#[tokio::test]
async fn the_printed_document_is_the_one_that_the_server_serves() {
    let (server, _dir) = server().await;
    let printed = run(raddle().arg("openapi"), "");
    assert_eq!(printed.code, Some(0));
    assert_eq!(json_of(&printed), server.api.get("/openapi.json").await.expect(200));
    let golden = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openapi.json")).unwrap();
    assert_eq!(printed.out, golden);
}

#[test]
fn completions_are_scripts_that_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(raddle().args(["completions", shell]), "");
        assert_eq!(script.code, Some(0));
        for command in ["serve", "chat", "threads", "doctor", "openapi"] {
            assert!(script.out.contains(command), "{shell} does not know {command}");
        }
    }
    let bash = run(raddle().args(["completions", "bash"]), "");
    let checked = run(std::process::Command::new("bash").arg("-n"), &bash.out);
    assert_eq!(checked.code, Some(0), "{}", checked.said);
}

#[tokio::test]
async fn exit_codes_tell_mistakes_refusals_and_silence_apart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    // 2: what was typed is wrong.
    for mistake in [
        &["nonsense"][..],
        &["threads", "ls", "--limit", "0"],
        &["threads", "show"],
        &["threads", "ls", "--server", "nonsense"],
        &["serve", "--listen", "nonsense", "--data-dir", data],
        &["serve", "--config", "/nonexistent/raddle.toml"],
    ] {
        let output = run(raddle().args(mistake), "");
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{mistake:?}: {}", output.said);
        assert!(!output.said.is_empty(), "{mistake:?}");
    }
    let typo = run(raddle().args(["serve", "--data-dir", data]).env("RADDLE_LISTN", "127.0.0.1:0"), "");
    assert_eq!(typo.code, Some(2));
    assert!(typo.said.contains("RADDLE_LISTN"), "{}", typo.said);
    // 1: it cannot be done.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failed = run(raddle().args(["serve", "--listen", &address, "--data-dir", data]), "");
    assert_eq!(failed.code, Some(1));
    assert!(failed.said.contains(&address), "{}", failed.said);
    // 4: nobody is there.
    let (_held, nobody) = nobody();
    for command in [&["threads", "ls"][..], &["threads", "show", "x"], &["threads", "tail", "x"], &["chat"]] {
        let output = run(raddle().args(command).args(["--server", &nobody]), "hello\n");
        assert_eq!((output.code, output.out.as_str()), (Some(4), ""), "{command:?}: {}", output.said);
        assert!(output.said.contains(&nobody), "{}", output.said);
    }
    // 3: the server says no.
    let server = Server::start(dir.path()).await;
    for command in [&["threads", "show", "x"][..], &["threads", "tail", "x"], &["threads", "ls", "--status", "x"]] {
        let output = ask(&server, command);
        assert_eq!((output.code, output.out.as_str()), (Some(3), ""), "{command:?}: {}", output.said);
    }
}
