//! `raddle stress` as somebody uses it: every scenario for a moment, with kills, on a bad disk, and on a server that is
//! somebody else's. What is looked at is the outcome that it writes; nothing is timed.

mod support;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use serde_json::{Value, json};
use support::*;

/// Runs it on a machine on which other tests run, and reads its outcome.
fn stress(scenario: &str, more: &[&str]) -> (Output, Value) {
    let mut command = raddle();
    command.args(["stress", scenario, "--json", "-", "--duration", "1s", "--clients", "6", "--threads", "6"]);
    let output = run(command.args(more), "");
    let outcome = serde_json::from_str(&output.out).unwrap_or_else(|why| panic!("{why}: {output:?}"));
    (output, outcome)
}

/// Runs it, and expects that everything holds.
#[track_caller]
fn stands(scenario: &str, more: &[&str]) -> Value {
    let (output, outcome) = stress(scenario, more);
    assert_eq!(output.code, Some(0), "{}", output.said);
    assert_eq!((&outcome["version"], &outcome["plan"]["scenario"]), (&1.into(), &scenario.into()));
    assert_eq!(outcome["passed"], true);
    for check in outcome["checks"].as_array().unwrap() {
        assert_eq!((&check["holds"], check["faults"].as_array().unwrap().len()), (&"yes".into(), 0), "{check}");
    }
    outcome
}

fn names(outcome: &Value) -> Vec<String> {
    outcome["checks"].as_array().unwrap().iter().map(|check| text(&check["name"])).collect()
}

/// How often an operation ended so.
fn times(outcome: &Value, operation: &str, how: &str) -> u64 {
    let of = outcome["operations"].as_array().unwrap().iter().find(|of| of["name"] == operation);
    of.and_then(|of| of["outcomes"][how].as_u64()).unwrap_or(0)
}

fn examined(outcome: &Value, name: &str) -> u64 {
    let check = outcome["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no check {name}"))["examined"].as_u64().unwrap()
}

/// What is checked of threads.
const OF_THREADS: [&str; 6] = ["rest", "acknowledged", "once", "logs", "linearizable", "streams"];

#[test]
fn conversations_leave_nothing_unexplained() {
    let outcome = stands("chat", &["--slow-subscribers", "2"]);
    assert_eq!(names(&outcome), OF_THREADS);
    assert_eq!(outcome["slow_subscribers"], 2);
    assert!(times(&outcome, "start", "ok") > 0 && times(&outcome, "await", "ok") > 0);
    assert!(OF_THREADS.iter().all(|name| examined(&outcome, name) > 0), "{outcome}");
    // Percentiles are those of what was done, in order.
    let start = outcome["operations"].as_array().unwrap().iter().find(|of| of["name"] == "start").unwrap();
    let latency = &start["latency_ms"];
    let told = ["min", "p50", "p90", "p99", "p99.9", "max"].map(|name| latency[name].as_f64().unwrap());
    assert!(told.is_sorted(), "{latency}");
    let counted: u64 = start["histogram"].as_array().unwrap().iter().map(|bar| bar["count"].as_u64().unwrap()).sum();
    assert_eq!((latency["count"].as_u64(), counted), (Some(counted), times(&outcome, "start", "ok")));
}

#[test]
fn a_storm_of_queued_prompts_keeps_its_order() {
    let outcome = stands("queue-storm", &[]);
    assert!(times(&outcome, "queue", "ok") > 0);
}

#[test]
fn a_storm_of_steers_loses_none() {
    let outcome = stands("steer-storm", &[]);
    assert!(times(&outcome, "steer", "ok") > 0);
}

#[test]
fn calls_are_decided_once() {
    let outcome = stands("approvals", &["--kill", "1"]);
    assert!(times(&outcome, "decide", "ok") > 0);
    assert!(examined(&outcome, "decisions") > 0 && examined(&outcome, "effects") > 0, "{outcome}");
}

#[test]
fn watchers_that_hang_up_and_come_back_miss_nothing() {
    let outcome = stands("reconnect-storm", &[]);
    assert!(examined(&outcome, "streams") > examined(&outcome, "logs"));
}

#[test]
fn threads_that_come_and_go_are_the_same_threads() {
    stands("eviction-churn", &["--disk-latency", "2"]);
}

#[test]
fn tenants_see_their_own_alone() {
    let outcome = stands("tenants", &["--kill", "1"]);
    assert!(examined(&outcome, "isolation") > 0);
}

#[test]
fn agents_share_boards_without_losing_a_task() {
    let outcome = stands("board", &["--kill", "1"]);
    assert_eq!(names(&outcome), ["board", "replay", "streams"]);
    assert!(times(&outcome, "task.complete", "ok") > 0);
}

#[test]
fn a_server_that_is_killed_has_kept_its_word_and_the_report_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.html");
    let outcome = stands("queue-storm", &["--kill", "3", "--report", report.to_str().unwrap()]);
    let kills = outcome["kills"].as_array().unwrap();
    assert_eq!((kills.len(), outcome["recovery_ms"]["count"].as_u64()), (3, Some(3)));
    assert!(kills.iter().all(|kill| kill["recovery_ms"].as_f64().unwrap() > 0.0));
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains("all 6 checks hold") && page.contains("recovery, p99"), "{page}");
    assert!(!page.contains("<script") && !page.contains("http:") && !page.contains("https:"));
}

#[test]
fn a_disk_that_fails_now_and_then_costs_nothing_that_was_acknowledged() {
    let outcome = stands("chat", &["--disk-faults", "0.01"]);
    let operations = outcome["operations"].as_array().unwrap();
    let told = |of: &&Value| of["outcomes"].get("store-unavailable").is_some();
    assert!(operations.iter().any(|of| told(&of)), "no fault was noticed: {operations:?}");
}

#[test]
fn the_help_does_not_offer_a_bad_disk_and_a_server_that_has_one_says_so() {
    let help = run(raddle().args(["serve", "--help"]), "");
    assert!(!help.out.contains("faults_per_million"));
    let shown = |value: &str| {
        let mut command = raddle();
        run(command.args(["config", "show"]).env("RADDLE_STORE_FAULTS_PER_MILLION", value), "").out
    };
    assert!(!shown("0").contains("faults_per_million"));
    assert!(shown("7").contains("store.faults_per_million = 7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_somebody_elses_is_put_under_load_and_neither_killed_nor_hurt() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let on = |more: &'static [&'static str]| {
        let url = server.url.clone();
        tokio::task::spawn_blocking(move || {
            let mut command: Command = raddle();
            command.args(["stress", "chat", "--duration", "1s", "--clients", "2", "--threads", "2", "--server", &url]);
            run(command.args(more), "")
        })
    };
    for (refused, named) in [
        (&["--kill"][..], "--kill"),
        (&["--disk-latency", "1"], "--disk-latency"),
        (&["--disk-faults", "0.1"], "--disk-faults"),
    ] {
        let output = on(refused).await.unwrap();
        assert_eq!(output.code, Some(2));
        assert!(output.said.contains(named) && output.said.contains("--server"), "{}", output.said);
    }
    let output = on(&[]).await.unwrap();
    assert_eq!(output.code, Some(0), "{}", output.said);
    assert!(output.out.contains("linearizable"), "{}", output.out);
    assert!(!server.api.list("/v1/threads", 500).await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_in_threads_of_others_are_left_alone() {
    let (dir, demo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::with(dir.path(), &[("RADDLE_TOOLS_DEMO_DIR", demo.path().to_str().unwrap())]).await;
    let thread = server.api.create(json!({ "model": "scripted" })).await;
    server.api.start(&thread, "@tool demo_append {\"name\": \"file\", \"line\": \"theirs\"}").await;
    let mut stream = server.api.stream(&thread, 0).await;
    stream.until("approval.required").await;
    let of_theirs = format!("/v1/approvals?status=pending&thread={thread}");
    let theirs = server.api.list(&of_theirs, 50).await;
    assert_eq!(theirs.len(), 1);

    let url = server.url.clone();
    let stressed = tokio::task::spawn_blocking(move || stands("approvals", &["--server", &url]));
    let outcome = stressed.await.unwrap();
    assert!(times(&outcome, "decide", "ok") > 0 && examined(&outcome, "decisions") > 0);
    assert_eq!(server.api.list(&of_theirs, 50).await, theirs);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgets_is_found_out() {
    // Between the clients and the server stands somebody who lies: one prompt is answered as if it had been taken, and is
    // not passed on.
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let liar = forgetful(&server).await;
    let output = tokio::task::spawn_blocking(move || {
        let mut command = raddle();
        command.args(["stress", "chat", "--duration", "2s", "--clients", "4", "--threads", "4", "--server", &liar]);
        run(&mut command, "")
    });
    let output = output.await.unwrap();
    assert_eq!(output.code, Some(1), "{output:?}");
    let said = &output.said;
    assert!(said.contains("raddle: acknowledged: thread thr_") && said.contains("has lost the turn"), "{said}");
    assert!(said.contains("raddle: linearizable: thread thr_") && said.contains("is lost"), "{said}");
    assert!(said.contains("raddle threads tail thr_"), "{said}");
}

/// What somebody is going to say who says once what is not true.
enum Lie {
    NotYet,
    Ready(Bytes),
    Told,
}

/// A proxy that answers one prompt itself, in the words of the answer to another. Its address.
async fn forgetful(server: &Server) -> String {
    let (http, url) = (server.api.http.clone(), server.url.clone());
    let lie = Arc::new(Mutex::new(Lie::NotYet));
    let pass = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
        let (http, url, lie) = (http.clone(), url.clone(), lie.clone());
        async move {
            let starts = method == Method::POST && uri.path().ends_with("/turns");
            if starts && matches!(*lie.lock().unwrap(), Lie::Ready(_)) {
                let told = std::mem::replace(&mut *lie.lock().unwrap(), Lie::Told);
                if let Lie::Ready(told) = told {
                    return Response::builder().status(201).body(Body::from(told)).unwrap();
                }
            }
            let mut request = http.request(method, format!("{url}{uri}")).body(body);
            for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
                request = request.header(name, value);
            }
            let reply = request.send().await.unwrap();
            let status = reply.status();
            let mut response = Response::builder().status(status);
            if let Some(kind) = reply.headers().get("content-type") {
                response = response.header("content-type", kind);
            }
            if !starts {
                return response.body(Body::from_stream(reply.bytes_stream())).unwrap();
            }
            let body = reply.bytes().await.unwrap();
            let mut lie = lie.lock().unwrap();
            if status == 201 && matches!(*lie, Lie::NotYet) {
                *lie = Lie::Ready(body.clone());
            }
            response.body(Body::from(body)).unwrap()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(pass)).await });
    format!("http://{address}")
}

/// Where a server of its own lives, once it does.
fn home_of(child: &mut Child, temporary: &Path) -> PathBuf {
    loop {
        let homes = std::fs::read_dir(temporary).unwrap().map(|entry| entry.unwrap().path());
        if let Some(home) = homes.into_iter().find(|home| home.join("data/raddle.redb").exists()) {
            return home;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ends before its server lives");
        std::thread::yield_now();
    }
}

/// A load that ends when it is told to.
fn lasting() -> Command {
    let mut command = raddle();
    command.args(["stress", "chat", "--duration", "1h", "--clients", "2", "--threads", "2", "--json", "-"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_signal_leaves_nothing_behind() {
    for name in ["INT", "TERM"] {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = lasting().env("TMPDIR", temporary.path()).spawn().unwrap();
        let home = home_of(&mut child, temporary.path());
        let mode = std::fs::metadata(&home).unwrap().permissions().mode();
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        // It is heard while the server starts, which ends everything, or afterwards.
        assert!(matches!(output.status.code(), Some(0 | 130)), "{said}");
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "{said}");
        assert_eq!(mode & 0o777, 0o700);
    }
}

#[test]
fn a_server_that_ends_by_itself_is_noticed_and_what_was_counted_is_told() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = lasting().env("TMPDIR", temporary.path()).spawn().unwrap();
    let home = home_of(&mut child, temporary.path());
    // This is said once it listens.
    while !std::fs::read_to_string(home.join("server.log")).is_ok_and(|log| log.contains("to begin")) {
        assert!(child.try_wait().unwrap().is_none(), "it ends before its server lives");
        std::thread::yield_now();
    }
    let server = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    assert!(Command::new("kill").args(["-KILL", server.trim()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ended by itself (signal: 9 (SIGKILL))"), "{said}");
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["passed"], names(&outcome)), (&false.into(), vec!["there".to_owned()]));
    assert_eq!(outcome["kept"], home.to_str().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_the_load_and_what_there_is_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let child = lasting().args(["--server", &server.url]).spawn().unwrap();
    while server.api.list("/v1/threads", 50).await.is_empty() {}
    signal(&child, "INT");
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("ends early"), "{said}");
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["passed"], names(&outcome)), (&true.into(), OF_THREADS.map(str::to_owned).to_vec()));
    server.stop().await;
}

#[test]
fn places_for_what_comes_of_it_are_looked_at_before_the_load() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::os::unix::fs::symlink(dir.path(), at("link")).unwrap();
    // A server that is not there is found out after this.
    let said = |args: &[&str]| run(raddle().args(["stress", "chat", "--server", "http://127.0.0.1:1"]).args(args), "");
    for refused in [
        vec!["--json", &at("same"), "--report", &at("same")],
        vec!["--json", &at("same"), "--report", &at("link/same")],
        vec!["--json", &at("none/file")],
        vec!["--report", &at("none/file")],
        vec!["--json", &at("")],
    ] {
        let output = said(&refused);
        assert_eq!(output.code, Some(2), "{refused:?}: {}", output.said);
    }
    assert_eq!(said(&["--json", &at("one"), "--report", &at("other")]).code, Some(4));
    let none = run(raddle().args(["stress", "chat"]).env("TMPDIR", at("none")), "");
    assert_eq!(none.code, Some(1), "{}", none.said);
    assert!(!dir.path().join("none").exists());
}

#[test]
fn what_cannot_be_done_is_said_at_once() {
    let said = |args: &[&str]| run(raddle().arg("stress").args(args), "");
    assert_eq!(said(&["chat", "--duration", "soon"]).code, Some(2));
    assert_eq!(said(&["chat", "--clients", "0"]).code, Some(2));
    assert_eq!(said(&["dance"]).code, Some(2));
    assert_eq!(said(&["chat", "--slow-subscribers", "10001"]).code, Some(2));
    assert_eq!(said(&["chat", "--disk-latency", "60001"]).code, Some(2));
    let hurried = said(&["chat", "--duration", "1s", "--kill", "21"]);
    assert_eq!(hurried.code, Some(2));
    assert!(hurried.said.contains("1050 ms"), "{}", hurried.said);
    assert_eq!(said(&["chat", "--server", "http://127.0.0.1:1"]).code, Some(4));
}
