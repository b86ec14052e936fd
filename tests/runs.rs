//! What a user is promised of context runs, route by route, by the real binary.

#[path = "support/runs.rs"]
mod board;
mod support;

use std::collections::BTreeSet;

use board::{Fold, Lease, ROUTES, Run, filled, import, method, names};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const UNKNOWN_RUN: &str = "run_01905d3c-7e57-7abc-8def-0123456789ab";
const UNKNOWN_CHECKPOINT: &str = "cp_01905d3c-7e57-7abc-8def-0123456789ab";

async fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(dir.path()).await, dir)
}

/// A run with something of everything that clients can bring about.
async fn busy(api: &Api) -> Run {
    let run = Run::make(
        api,
        json!({
            "objective": "- find what is wrong\n- mend what is wrong\n- tell everybody", "source_client": "tests",
            "source_metadata": {"k": [1, 0.1, 1e300, null, "☃"]}, "model_provider": "p", "model_id": "m",
            "mcp_servers": ["one"],
        }),
    )
    .await;
    run.tell("planning_started").await;
    run.tell("plan_approved").await;
    run.tell("deployed").await;
    run.post("/events", json!({"event": "step_completed", "step_id": "step-1", "payload": {"why_next_step": "w"}}))
        .await
        .expect(201);
    run.post("/lease/validate", json!({"current_path": "/w"})).await.expect(200);
    run.tasks(json!([
        {"id": "write", "task_type": "implementation", "payload": {"output_target": {"file": "src/a.rs"}, "n": 0.1}},
        {"id": "look", "task_type": "inspection", "priority": 5, "workflow_id": "w"},
        {"id": "last", "task_type": "free", "depends_on_task_ids": ["write", "look"], "priority": 9},
        {"id": "off", "task_type": "free", "status": "blocked"},
    ]))
    .await;
    let lease = run.claim("one").await.unwrap();
    assert_eq!(lease.task, "look");
    run.say_under(&lease, "heartbeat").await.expect(200);
    let output = json!({"action": "complete", "lease_token": lease.token, "output": {"found": [0.3, "☃"]}});
    run.say("look", output).await.expect(200);
    let lease = run.claim("two").await.unwrap();
    run.say_under(&lease, "release").await.expect(200);
    run.say("off", json!({"action": "status", "status": "cancelled", "error": "no"})).await.expect(200);
    let fact = run.add("add_fact", json!({"text": "a fact", "id": "f"})).await;
    run.add("edit_fact", json!({"id": fact["id"], "text": "another"})).await;
    let question = run.add("add_open_question", json!({"text": "why?"})).await;
    run.add("resolve_open_question", json!({"id": question["id"], "resolution": "because"})).await;
    run.add("add_decision", json!({"text": "so be it", "ts_ms": 7})).await;
    run.add("add_artifact", json!({"path": "src/a.rs", "artifact_type": "file", "text": "t"})).await;
    run.add("set_rolling_summary", json!("rolling")).await;
    run.add("set_latest_context_pack", json!({"text": "pack"})).await;
    let todos = json!({"replace": false, "todos": [{"id": "step-2", "content": "mended", "status": "working"}]});
    run.post("/todos/sync", todos).await.expect(200);
    run.post("/driver/next", json!({})).await.expect(200);
    run.post("/checkpoints", json!({"reason": "here"})).await.expect(201);
    run
}

/// Asks for what must be refused, and must leave no trace.
async fn refused(run: &Run, verb: Method, rest: &str, body: Value, (status, code): (u16, &str)) -> Value {
    let before = (run.show().await, run.get("/blackboard").await);
    let reply = run.api.send(run.api.request(verb.clone(), &run.at(rest)).json(&body)).await;
    assert_eq!(reply.status, status, "{verb} {rest} {body}: {}", String::from_utf8_lossy(&reply.body));
    let problem = reply.problem(status, code);
    assert_eq!((run.show().await, run.get("/blackboard").await), before, "{verb} {rest} {body}");
    problem
}

// ---- the routes ----------------------------------------------------------------------------------

#[tokio::test]
async fn the_routes_of_runs_are_those_of_the_table() {
    let (server, _dir) = server().await;
    let document = server.api.get("/openapi.json").await.expect(200);
    let paths = document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/v1/runs"));
    let documented: BTreeSet<(String, &str)> = paths
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.as_str()))
        })
        .filter(|(method, _)| method != "PARAMETERS")
        .collect();
    let tested: BTreeSet<_> = ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), *path)).collect();
    assert_eq!(tested, documented);
}

#[tokio::test]
async fn what_is_kept_is_what_the_log_says_after_everything_that_can_happen_to_a_run() {
    let (server, dir) = server().await;
    let run = busy(&server.api).await;
    let log = run.check().await;
    let created = &log[0];
    assert_eq!((&created["event"], &created["by"]), (&json!("context.run.created"), &json!("client")));
    let shown = run.show().await;
    assert_eq!((&shown["tenant"], &shown["run_type"]), (&json!("default"), &json!("interactive")));
    assert_eq!((&shown["status"], &shown["model_id"]), (&json!("running"), &json!("m")));
    assert_eq!(shown["source_metadata"], json!({"k": [1, 0.1, 1e300, null, "☃"]}));
    assert_eq!(shown["tasks"][0]["payload"]["execution_mode"], "strict_write");
    assert_eq!(shown["tasks"][0]["payload"]["output_target"], json!({"path": "src/a.rs"}));
    assert_eq!(shown["tasks"][1]["payload"]["execution_mode"], "strict_nonwriting");
    // Every task event names its task and the run's revision.
    for event in log.iter().filter(|event| event["event"].as_str().unwrap().starts_with("context.task.")) {
        assert!(event["task_id"].is_string() && event["revision"].is_u64(), "{event}");
    }
    for (rest, list) in [("/tasks", "data"), ("/checkpoints", "data"), ("/ledger", "data"), ("/mutations", "data")] {
        assert!(run.get(rest).await[list].is_array(), "{rest}");
    }
    assert_eq!(run.get("/ledger").await["summary"]["record_count"], 0);
    let preview = run.get("/rollback-preview").await;
    assert_eq!((&preview["executable"], &preview["step_count"]), (&json!(false), &json!(0)));
    assert_eq!(run.get("/rollback-history").await["data"], json!([]));
    assert_eq!(run.task("write").await, shown["tasks"][0]);
    // Nothing of it changes with the process.
    let board = run.get("/blackboard").await;
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let run = run.on(&server.api);
    assert_eq!((run.show().await, run.get("/blackboard").await), (shown, board));
    assert_eq!(run.check().await, log);
    // And the next change follows.
    run.tell("deployed").await;
    run.add("edit_fact", json!({"id": "f", "text": "a third"})).await;
    run.check().await;
}

#[tokio::test]
async fn a_run_that_there_is_not_is_not_found_by_any_route() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let others = run.id.replace("run_", "");
    let renamed: String = run.id.char_indices().map(|(at, c)| if at == 18 { '8' } else { c }).collect();
    for id in [UNKNOWN_RUN, &renamed, &others, &run.id.to_uppercase(), &format!("thr_{others}"), "run_", "nonsense"] {
        for (name, path, body) in ROUTES.iter().filter(|(_, path, _)| path.contains("{run}")) {
            let path = filled(path, id, "look", UNKNOWN_CHECKPOINT);
            let body: Value = body.map_or(json!({}), |body| serde_json::from_str(body).unwrap());
            let request = api.request(method(name), &path);
            let request = if *name == "GET" { request } else { request.json(&body) };
            api.send(request).await.problem(404, "not-found");
        }
        let stream = api.get(&format!("/v1/runs/stream?runs={id}")).await;
        assert!(stream.status == 404 || stream.status == 422, "{}", stream.status);
    }
    // A run's own things that there are not.
    for (verb, rest, body) in [
        (Method::GET, "/tasks/nothing", json!({})),
        (Method::POST, "/tasks/nothing/transition", json!({"action": "complete"})),
        (Method::POST, "/tasks/claim", json!({"agent_id": "a", "task_id": "nothing"})),
        (Method::GET, "/checkpoints/nothing", json!({})),
        (Method::DELETE, "/checkpoints/nothing", json!({})),
        (Method::POST, "/checkpoints/nothing/restore", json!({})),
        (Method::GET, &format!("/replay?from_checkpoint={}", unknown_checkpoint(&run).await), json!({})),
        (Method::POST, "/blackboard/patches", json!({"op": "edit_fact", "payload": {"id": "nothing", "text": "t"}})),
        // The same name, but of another kind.
        (Method::POST, "/blackboard/patches", json!({"op": "resolve_decision", "payload": {"id": "f"}})),
    ] {
        let request = api.request(verb.clone(), &run.at(rest));
        let request = if verb == Method::GET { request } else { request.json(&body) };
        api.send(request).await.problem(404, "not-found");
    }
}

/// An id as checkpoints have them, that no checkpoint has.
async fn unknown_checkpoint(run: &Run) -> String {
    let saved = run.get("/checkpoints").await;
    let mut id = text(&saved["data"][0]["checkpoint_id"]).into_bytes();
    let last = id.last_mut().unwrap();
    *last = if *last == b'0' { b'1' } else { b'0' };
    String::from_utf8(id).unwrap()
}

#[tokio::test]
async fn a_run_is_no_thread_and_no_job_under_whatever_name() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let log = run.log().await;
    let uuid = run.id.replace("run_", "");
    for version in ('0'..='9').chain('a'..='f') {
        let renamed: String = uuid.char_indices().map(|(at, c)| if at == 14 { version } else { c }).collect();
        let thread = format!("/v1/threads/thr_{renamed}");
        for rest in ["", "/events", "/snapshot", "/turns", "/items", "/inbox", "/checkpoints"] {
            api.get(&format!("{thread}{rest}")).await.problem(404, "not-found");
        }
        for rest in ["/turns", "/fork", "/compact", "/edit"] {
            api.post(&format!("{thread}{rest}"), json!({"prompt": "x"})).await;
        }
        api.patch(&thread, json!({"title": "x"})).await.problem(404, "not-found");
        api.delete(&thread).await.problem(404, "not-found");
        for other in [format!("/v1/jobs/job_{renamed}"), format!("/v1/schedules/sch_{renamed}")] {
            api.get(&other).await.problem(404, "not-found");
            api.delete(&other).await;
        }
    }
    assert_eq!(run.log().await, log);
    assert_eq!(api.get("/v1/threads").await.expect(200)["data"], json!([]));
    // Nor is a thread a run.
    let thread = api.create(json!({})).await.replace("thr_", "run_");
    api.get(&format!("/v1/runs/{thread}")).await.problem(404, "not-found");
    assert_eq!(api.get("/v1/runs").await.expect(200)["data"].as_array().unwrap().len(), 1);
}

/// Asks with these very bytes as its path: a client of HTTP would tidy them. The status.
async fn raw(server: &Server, method: &str, path: &str, body: &str) -> u16 {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}");
    tcp.write_all(format!("{head}\r\nContent-Type: application/json\r\n\r\n{body}").as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    timeout(LOST, tcp.read_to_end(&mut reply)).await.expect("a reply").unwrap();
    let reply = String::from_utf8_lossy(&reply);
    reply.split(' ').nth(1).unwrap_or_else(|| panic!("{path}: {reply}")).parse().unwrap()
}

/// Every file below a directory, with its length unless it is the database.
fn files(dir: &std::path::Path) -> BTreeSet<std::path::PathBuf> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            all.extend(files(&entry.path()));
        }
        all.insert(entry.path());
    }
    all
}

#[tokio::test]
async fn no_path_leads_out_of_the_runs() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    let server = Server::start(&dir).await;
    let run = busy(&server.api).await;
    let before = (run.log().await, files(outer.path()));
    let ids = [
        "..".to_owned(),
        ".".to_owned(),
        "%2e%2e".to_owned(),
        "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd".to_owned(),
        "..%2f..%2fescaped".to_owned(),
        "..%5c..%5cescaped".to_owned(),
        "%2Fetc%2Fpasswd".to_owned(),
        "/etc/passwd".to_owned(),
        "%00".to_owned(),
        "%ff%fe".to_owned(),
        "~root".to_owned(),
        format!("{}%00", run.id),
        format!("{}%2F..", run.id),
        format!("{}%20", run.id),
        format!("..%2F{}", run.id),
        format!("%20{}", run.id),
    ];
    for id in &ids {
        for (method, path, body) in ROUTES.iter().filter(|(_, path, _)| path.contains("{run}")) {
            let status = raw(&server, method, &filled(path, id, "look", "cp"), body.unwrap_or_default()).await;
            assert!([400, 404, 405].contains(&status), "{method} {path} of {id}: {status}");
        }
        for (method, path, body) in ROUTES.iter().filter(|(_, path, _)| path.contains("{task}")) {
            let status = raw(&server, method, &filled(path, &run.id, id, "cp"), body.unwrap_or_default()).await;
            assert!([400, 404, 405].contains(&status), "{method} {path} of {id}: {status}");
        }
        for (method, path, body) in ROUTES.iter().filter(|(_, path, _)| path.contains("{checkpoint}")) {
            let status = raw(&server, method, &filled(path, &run.id, "look", id), body.unwrap_or_default()).await;
            assert!([400, 404, 405].contains(&status), "{method} {path} of {id}: {status}");
        }
    }
    let long = "x".repeat(129);
    for bad in ["", " ", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0", "a\n", "☃", "%2e%2e", &long] {
        let made = |body: Value| (Method::POST, "/v1/runs".to_owned(), body);
        for (verb, path, body) in [
            made(json!({"objective": "o", "steps": [{"step_id": bad, "title": "t", "status": "pending"}]})),
            (Method::POST, run.at("/tasks"), json!({"tasks": [{"id": bad, "task_type": "t"}]})),
            (
                Method::POST,
                run.at("/blackboard/patches"),
                json!({"op": "add_fact", "payload": {"id": bad, "text": "t"}}),
            ),
        ] {
            let reply = run.api.send(run.api.request(verb, &path).json(&body)).await;
            assert_eq!(reply.status, 422, "{body}: {}", String::from_utf8_lossy(&reply.body));
            reply.problem(422, "invalid");
        }
    }
    assert_eq!((run.log().await, files(outer.path())), before);
}

// ---- what is refused -----------------------------------------------------------------------------

#[tokio::test]
async fn a_field_that_nobody_knows_is_refused_by_its_name() {
    let (server, _dir) = server().await;
    let run = busy(&server.api).await;
    let checkpoint = text(&run.get("/checkpoints").await["data"][0]["checkpoint_id"]);
    let before = run.log().await;
    for (name, path, body) in ROUTES {
        let path = filled(path, &run.id, "write", &checkpoint);
        if let Some(body) = body {
            let mut body: Value = serde_json::from_str(body).unwrap();
            body["surprise"] = json!(1);
            let request = run.api.request(method(name), &path).json(&body);
            let problem = run.api.send(request).await.problem(422, "unknown-field");
            assert_eq!(problem["field"], "surprise", "{name} {path}");
        }
        let request = run.api.request(method(name), &format!("{path}?surprise=1")).header("if-match", "\"1\"");
        let request = if *name == "GET" { request } else { request.body("{}") };
        let problem = run.api.send(request).await.problem(422, "invalid");
        assert_eq!(problem["field"], "surprise", "{name} {path}");
    }
    // Within what a field holds, the place is named.
    for (rest, body, field) in [
        ("/tasks", json!({"tasks": [{"task_type": "t"}, {"task_type": "t", "surprise": 1}]}), "tasks[1].surprise"),
        ("/todos/sync", json!({"todos": [{"content": "c", "surprise": 1}]}), "todos[0].surprise"),
        ("/blackboard/patches", json!({"op": "add_fact", "payload": {"text": "t", "surprise": 1}}), "payload.surprise"),
        (
            "/blackboard/patches",
            json!({"op": "edit_fact", "payload": {"id": "f", "text": "t", "surprise": 1}}),
            "payload.surprise",
        ),
        (
            "/blackboard/patches",
            json!({"op": "resolve_fact", "payload": {"id": "f", "surprise": 1}}),
            "payload.surprise",
        ),
        (
            "/blackboard/patches",
            json!({"op": "set_rolling_summary", "payload": {"text": "t", "surprise": 1}}),
            "payload.surprise",
        ),
    ] {
        let reply = run.post(rest, body.clone()).await;
        assert_eq!((reply.status, &reply.json()["field"]), (422, &json!(field)), "{body}: {}", reply.json());
    }
    assert_eq!(run.log().await, before);
}

#[tokio::test]
async fn whatever_is_refused_has_its_code_and_leaves_no_trace() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let post = Method::POST;
    let lease = run.claim("holder").await.unwrap();
    assert_eq!(lease.task, "write");
    let say = format!("/tasks/{}/transition", lease.task);
    let token = lease.token.clone();

    // Tasks: the revision, the lease, the table.
    let stale = json!({"action": "complete", "expected_task_rev": lease.rev - 1, "lease_token": token});
    let problem = refused(&run, post.clone(), &say, stale, (409, "task-rev-mismatch")).await;
    assert_eq!(problem["task_rev"], lease.rev);
    for action in ["heartbeat", "complete", "fail", "release"] {
        refused(&run, post.clone(), &say, json!({"action": action}), (409, "task-lease-required")).await;
        let other = json!({"action": action, "lease_token": format!("{token}x")});
        let problem = refused(&run, post.clone(), &say, other, (409, "task-lease-invalid")).await;
        assert_eq!(problem["fence"], lease.fence);
    }
    for status in ["runnable", "done", "failed", "blocked"] {
        let to = json!({"action": "status", "status": status});
        refused(&run, post.clone(), &say, to, (409, "task-lease-required")).await;
    }
    for (task, body) in [
        ("look", json!({"action": "complete", "lease_token": token})),
        ("look", json!({"action": "retry"})),
        ("look", json!({"action": "status", "status": "cancelled"})),
        ("last", json!({"action": "heartbeat"})),
        ("last", json!({"action": "complete"})),
        ("last", json!({"action": "fail"})),
        ("last", json!({"action": "release"})),
        ("last", json!({"action": "retry"})),
        ("last", json!({"action": "status", "status": "in_progress"})),
        ("last", json!({"action": "status", "status": "done"})),
        ("off", json!({"action": "status", "status": "runnable"})),
        ("write", json!({"action": "status", "status": "in_progress", "lease_token": "x"})),
        ("write", json!({"action": "retry", "lease_token": token})),
    ] {
        let rest = format!("/tasks/{task}/transition");
        let reply = run.say(task, body.clone()).await;
        if task == "write" && body["action"] == "status" {
            // What it is already; but the lease is another's.
            reply.problem(409, "task-lease-invalid");
            continue;
        }
        let problem = refused(&run, post.clone(), &rest, body, (409, "task-transition-invalid")).await;
        assert_eq!(problem["current_status"], run.task(task).await["status"]);
    }
    // Whoever held it once and comes back.
    run.say_under(&lease, "release").await.expect(200);
    for action in ["heartbeat", "complete", "fail", "release"] {
        let late = json!({"action": action, "lease_token": token});
        refused(&run, post.clone(), &say, late, (409, "task-transition-invalid")).await;
    }
    let again = run.claim("another").await.unwrap();
    assert!(again.task == lease.task && again.fence > lease.fence && again.token != lease.token);
    for action in ["heartbeat", "complete", "fail", "release"] {
        let late = json!({"action": action, "lease_token": token});
        let problem = refused(&run, post.clone(), &say, late, (409, "task-lease-invalid")).await;
        assert_eq!(problem["fence"], again.fence);
    }

    // Contracts: a batch is made whole or not at all.
    let good = json!({"id": "good", "task_type": "free"});
    for (bad, status, code, field) in [
        (json!({"task_type": "implementation"}), 422, "task-output-target-required", None),
        (
            json!({"task_type": "implementation", "payload": {"output_target": {"path": " "}}}),
            422,
            "task-output-target-required",
            None,
        ),
        (
            json!({"task_type": "x", "payload": {"task_kind": "implementation"}}),
            422,
            "task-output-target-required",
            None,
        ),
        (
            json!({"task_type": "implementation", "payload": {"output_target": {"path": "../x"}}}),
            422,
            "task-contract-invalid",
            Some("payload.output_target.path"),
        ),
        (
            json!({"task_type": "implementation", "payload": {"output_target": {"path": "/x"}}}),
            422,
            "task-contract-invalid",
            Some("payload.output_target.path"),
        ),
        (json!({"task_type": "free", "payload": [1]}), 422, "task-contract-invalid", Some("payload")),
        (json!({"task_type": " "}), 422, "task-contract-invalid", Some("task_type")),
        (json!({"task_type": "t", "id": "look"}), 409, "conflict", None),
        (json!({"task_type": "t", "id": "good"}), 409, "conflict", None),
        (
            json!({"task_type": "t", "depends_on_task_ids": ["nothing"]}),
            422,
            "invalid",
            Some("tasks[1].depends_on_task_ids"),
        ),
        (
            json!({"task_type": "t", "id": "self", "depends_on_task_ids": ["self"]}),
            422,
            "invalid",
            Some("tasks[1].depends_on_task_ids"),
        ),
        (json!({"task_type": "t", "parent_task_id": "nothing"}), 422, "invalid", Some("tasks[1].parent_task_id")),
        (json!({"task_type": "t", "status": "in_progress"}), 422, "invalid", Some("tasks[1].status")),
        (json!({"task_type": "t", "status": "done"}), 422, "invalid", Some("tasks[1].status")),
        (json!({"task_type": "t", "max_attempts": 0}), 422, "invalid", Some("tasks[1].max_attempts")),
        (json!({"task_type": "t", "payload": {"x": "x".repeat(70_000)}}), 413, "too-large", Some("tasks[1].payload")),
    ] {
        let both = json!({"tasks": [good, bad]});
        let problem = refused(&run, post.clone(), "/tasks", both, (status, code)).await;
        if let Some(field) = field {
            assert_eq!(problem["field"], field, "{bad}");
        }
    }
    let circle = json!({"tasks": [
        {"id": "x", "task_type": "t", "depends_on_task_ids": ["z"]}, {"id": "y", "task_type": "t", "depends_on_task_ids": ["x"]},
        {"id": "z", "task_type": "t", "depends_on_task_ids": ["y", "look"]},
    ]});
    refused(&run, post.clone(), "/tasks", circle, (422, "invalid")).await;
    refused(&run, post.clone(), "/tasks", json!({"tasks": []}), (422, "invalid")).await;

    // Words that only the runtime writes, in every spelling.
    for event in [
        "context.task.completed",
        "context.run.replaced",
        "Context.Task.Claimed",
        " context.x ",
        "todo_synced",
        "meta_next_step_selected",
        "workspace_validated",
        "workspace_rebound",
        "workspace_mismatch",
        "tool_effect_recorded",
        "TOOL_EFFECT_RECORDED",
        "mutation_checkpoint_recorded",
        "rollback_execution_started",
        "rollback_execution_applied",
        "rollback_execution_blocked",
        "tool_routing_decision",
        "policy_decision_recorded",
        "session_tool_updated",
        "run_deleted",
        "stream.gap",
        "stream.end",
        "Stream.Unavailable",
    ] {
        let problem = refused(&run, post.clone(), "/events", json!({"event": event}), (422, "event-reserved")).await;
        assert_eq!(problem["event"], event);
    }
    for event in ["", " ", "a\nb", "a\0b"] {
        refused(&run, post.clone(), "/events", json!({"event": event}), (422, "invalid")).await;
    }

    // Lines of the blackboard.
    for (op, payload, status, code) in [
        ("add_fact", json!({"text": " "}), 422, "invalid"),
        ("add_fact", json!({}), 422, "invalid"),
        ("add_fact", json!({"text": "t", "id": "f"}), 409, "conflict"),
        ("add_fact", json!({"text": "t", "path": "p"}), 422, "invalid"),
        ("add_artifact", json!({"path": "p"}), 422, "invalid"),
        ("add_fact", json!({"text": "x".repeat(20_000)}), 413, "too-large"),
        ("set_rolling_summary", json!({"text": "x".repeat(70_000)}), 413, "too-large"),
        ("add_fact", json!("text"), 422, "invalid"),
        ("add_task", json!({"task_type": "t"}), 422, "invalid"),
        ("update_task_state", json!({"task_id": "look", "status": "runnable"}), 422, "invalid"),
        ("update_task_lease", json!({"task_id": "look"}), 422, "invalid"),
    ] {
        let patch = json!({"op": op, "payload": payload});
        refused(&run, post.clone(), "/blackboard/patches", patch, (status, code)).await;
    }

    // The whole run.
    let put = Method::PUT;
    let whole = json!({"objective": "o", "status": "running"});
    refused(&run, put.clone(), "", whole.clone(), (428, "precondition-required")).await;
    let with = |more: Value| {
        let mut body = whole.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let problem = refused(&run, put.clone(), "", with(json!({"revision": 1})), (412, "precondition-failed")).await;
    let revision = run.revision().await;
    assert_eq!(problem["revision"], revision);
    for (more, status, code) in [
        (json!({"status": "queued"}), 409, "run-transition-invalid"),
        (json!({"objective": " "}), 422, "invalid"),
        (json!({"run_id": UNKNOWN_RUN}), 422, "invalid"),
        (json!({"tasks": []}), 422, "invalid"),
        (json!({"workspace": {"canonical_path": "/elsewhere"}}), 409, "workspace-epoch-stale"),
        (json!({"workspace": {"canonical_path": "", "lease_epoch": 1}}), 422, "invalid"),
        (json!({"steps": vec![json!({"step_id": "s", "title": "t", "status": "pending"}); 2]}), 422, "invalid"),
        (json!({"last_error": "x".repeat(20_000)}), 413, "too-large"),
    ] {
        let mut body = with(more);
        body["revision"] = json!(revision);
        if body.get("workspace").is_none() {
            body["workspace"] = json!({"canonical_path": "/w", "lease_epoch": 1});
        }
        refused(&run, put.clone(), "", body, (status, code)).await;
    }
    api.send(api.request(put.clone(), &run.at(""))).await.problem(400, "bad-request");
    // A run is named by the server: a name that was used before would be followed by what happened under it.
    api.post("/v1/runs", json!({"objective": "o", "run_id": run.id})).await.problem(422, "unknown-field");

    // The workspace.
    for epoch in [0, 2] {
        let claim = json!({"agent_id": "a", "lease_epoch": epoch});
        let problem = refused(&run, post.clone(), "/tasks/claim", claim, (409, "workspace-epoch-stale")).await;
        assert_eq!(problem["lease_epoch"], 1);
        let rebind = json!({"current_path": "/v", "rebind": true, "lease_epoch": epoch});
        refused(&run, post.clone(), "/lease/validate", rebind, (409, "workspace-epoch-stale")).await;
    }
    refused(&run, post.clone(), "/lease/validate", json!({"current_path": " "}), (422, "invalid")).await;
    refused(&run, post.clone(), "/tasks/claim", json!({"agent_id": " "}), (422, "invalid")).await;
    refused(&run, post.clone(), "/tasks/claim", json!({}), (422, "invalid")).await;

    // What has ended stays so.
    run.tell("run_cancelled").await;
    for event in ["planning_started", "plan_approved", "run_paused", "run_resumed", "session_run_started"] {
        let body = json!({"event": event});
        let problem = refused(&run, post.clone(), "/events", body, (409, "run-transition-invalid")).await;
        assert_eq!(problem["current_status"], "cancelled");
    }
    let body = json!({"event": "deployed", "status": "running"});
    refused(&run, post.clone(), "/events", body, (409, "run-transition-invalid")).await;
    run.tell("run_reopened").await;
    assert_eq!(run.show().await["status"], "running");
    run.check().await;
}

#[tokio::test]
async fn as_much_as_there_may_be_is_the_limit() {
    let (server, _dir) = server().await;
    let run = Run::new(&server.api).await;
    for _ in 0..64 {
        run.post("/checkpoints", json!({})).await.expect(201);
    }
    let problem = refused(&run, Method::POST, "/checkpoints", json!({}), (409, "limit-reached")).await;
    assert_eq!(problem["limit"], 64);
    let first = text(&run.get("/checkpoints").await["data"][0]["checkpoint_id"]);
    run.api.delete(&run.at(&format!("/checkpoints/{first}"))).await.expect(204);
    run.post("/checkpoints", json!({})).await.expect(201);
    let todos: Vec<_> = (0..256).map(|n| json!({"id": format!("s{n}"), "content": "c"})).collect();
    run.post("/todos/sync", json!({"todos": todos})).await.expect(200);
    let more = json!({"replace": false, "todos": [{"id": "more", "content": "c"}]});
    refused(&run, Method::POST, "/todos/sync", more, (409, "limit-reached")).await;
    let tasks: Vec<_> = (0..1_001).map(|_| json!({"task_type": "t"})).collect();
    refused(&run, Method::POST, "/tasks", json!({"tasks": tasks}), (422, "invalid")).await;
    let deep: Vec<_> = (0..65).map(|_| json!("x")).collect();
    let tasks = json!({"tasks": [{"task_type": "t", "decision_ids": deep}]});
    refused(&run, Method::POST, "/tasks", tasks, (422, "invalid")).await;
    run.check().await;
}

// ---- revisions and keys --------------------------------------------------------------------------

#[tokio::test]
async fn a_write_under_a_revision_that_has_passed_is_refused_by_every_route() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let checkpoint = text(&run.get("/checkpoints").await["data"][0]["checkpoint_id"]);
    let shown = api.get(&run.at("")).await;
    assert_eq!(json!(shown.seq()), shown.json()["revision"]);
    assert_eq!(api.get(&run.at("/blackboard")).await.seq(), shown.seq());
    let before = run.log().await;
    let writes = || {
        let writes = ROUTES.iter().filter(|(name, path, _)| *name != "GET" && path.contains("{run}"));
        // A new run is made; the one that it is made from does not change.
        writes.filter(|(_, path, _)| !path.ends_with("/restore"))
    };
    for stale in [shown.seq() - 1, shown.seq() + 1] {
        for (name, path, body) in writes() {
            let mut body: Value = serde_json::from_str(body.unwrap()).unwrap();
            body.as_object_mut().unwrap().remove("revision");
            let path = filled(path, &run.id, "write", &checkpoint);
            let request = api.request(method(name), &path).header("if-match", format!("\"{stale}\"")).json(&body);
            let problem = api.send(request).await.problem(412, "precondition-failed");
            assert_eq!(problem["revision"], shown.seq(), "{name} {path}");
        }
    }
    assert_eq!(run.log().await, before);
    for bad in ["1", "\"x\"", "W/\"1\"", "\"1\", \"2\"", ""] {
        let request = api.request(Method::POST, &run.at("/events")).header("if-match", bad);
        api.send(request.json(&json!({"event": "x"}))).await.problem(400, "bad-request");
    }
    // Under the one that is, each is taken, and says what the next has to name.
    let (deletes, writes): (Vec<_>, Vec<_>) =
        writes().partition(|(name, path, _)| *name == "DELETE" && !path.contains("checkpoint"));
    for (name, path, body) in writes.into_iter().chain(deletes) {
        let mut body: Value = serde_json::from_str(body.unwrap()).unwrap();
        if name == "PUT" {
            body = json!({"objective": "o", "status": "running", "workspace": run.show().await["workspace"]});
        }
        let revision = run.revision().await;
        // One that the claim before it did not hand out.
        let path = filled(path, &run.id, "last", &checkpoint);
        let request = api.request(method(name), &path).header("if-match", format!("\"{revision}\"")).json(&body);
        let reply = api.send(request).await;
        if path.ends_with("rollback-execute") {
            reply.problem(409, "rollback-blocked");
            continue;
        }
        assert!((200..300).contains(&reply.status), "{name} {path}: {}", String::from_utf8_lossy(&reply.body));
        if reply.status != 204 {
            assert_eq!(reply.seq(), run.revision().await, "{name} {path}");
        }
    }
    api.get(&run.at("")).await.problem(404, "not-found");
}

/// Every POST on a run, in an order in which all of them are accepted, with what it asks.
fn posts(checkpoint: &str) -> Vec<(String, Value)> {
    let posts = [
        ("/events", json!({"event": "deployed", "status": "running"})),
        ("/todos/sync", json!({"todos": [{"content": "one", "status": "ready"}]})),
        ("/driver/next", json!({})),
        ("/lease/validate", json!({"current_path": "/other"})),
        ("/events", json!({"event": "run_resumed"})),
        ("/blackboard/patches", json!({"op": "add_fact", "payload": {"text": "t"}})),
        ("/blackboard/patches", json!({"op": "set_rolling_summary", "payload": "t"})),
        ("/tasks", json!({"tasks": [{"task_type": "t"}, {"id": "named", "task_type": "t", "priority": 99}]})),
        ("/tasks/claim", json!({"agent_id": "a", "lease_ms": 300_000})),
        ("/tasks/named/transition", json!({"action": "status", "status": "cancelled"})),
        ("/checkpoints", json!({"reason": "r"})),
        (&format!("/checkpoints/{checkpoint}/restore"), json!({})),
    ];
    posts.into_iter().map(|(rest, body)| (rest.to_owned(), body)).collect()
}

#[tokio::test]
async fn every_post_is_answered_again_under_its_key_also_after_a_restart() {
    let (mut server, dir) = server().await;
    let run = busy(&server.api).await;
    let checkpoint = text(&run.get("/checkpoints").await["data"][0]["checkpoint_id"]);
    let lines = run.export().await;
    let create = json!({"objective": "made once"});
    let posts = posts(&checkpoint);
    let tested: BTreeSet<_> =
        posts.iter().map(|(rest, _)| rest.replace(&checkpoint, "{checkpoint}").replace("named", "{task}")).collect();
    let there: BTreeSet<_> = ROUTES
        .iter()
        .filter(|(name, path, _)| *name == "POST" && !path.ends_with("rollback-execute"))
        .filter_map(|(_, path, _)| path.strip_prefix("/v1/runs/{run}").map(str::to_owned))
        .collect();
    assert_eq!(tested, there);

    let api = server.api.clone();
    let asked = |api: &Api, n: usize| match posts.get(n) {
        Some((rest, body)) => run.on(api).keyed(rest, &format!("k{n}"), body),
        None if n == posts.len() => api.keyed("/v1/runs", "k", &create),
        None => api.request(Method::POST, "/v1/runs/import").header("idempotency-key", "k").body(lines.clone()),
    };
    let count = posts.len() + 2;
    let mut first = Vec::new();
    for n in 0..count {
        let reply = api.send(asked(&api, n)).await;
        assert!(
            (200..300).contains(&reply.status) && !reply.replayed(),
            "{n}: {}",
            String::from_utf8_lossy(&reply.body)
        );
        first.push(reply);
    }
    let blocked = json!({"event_ids": ["evt_1"], "confirm": "rollback"});
    let reply = api.send(run.keyed("/rollback-execute", "r", &blocked)).await;
    let why = reply.problem(409, "rollback-blocked")["detail"].clone();
    let log = run.log().await;
    let runs = api.list("/v1/runs", 500).await;
    for restart in [false, true] {
        if restart {
            server.kill();
            server = Server::start(dir.path()).await;
        }
        let api = server.api.clone();
        for (n, first) in first.iter().enumerate() {
            let again = api.send(asked(&api, n)).await;
            assert!(again.replayed(), "{n}, restarted: {restart}");
            assert_eq!((again.status, &again.body), (first.status, &first.body), "{n}");
            assert_eq!(
                (again.header("etag"), again.header("location")),
                (first.header("etag"), first.header("location"))
            );
        }
        for (n, (rest, body)) in posts.iter().enumerate() {
            let mut other = body.clone();
            other.as_object_mut().unwrap().clear();
            if *body != other {
                let other = run.on(&api).keyed(rest, &format!("k{n}"), &other);
                let reply = api.send(other).await;
                assert!(reply.status == 422, "{rest}: {}", reply.status);
            }
        }
        let other = json!({"agent_id": "b"});
        api.send(run.on(&api).keyed("/tasks/claim", "k8", &other)).await.problem(422, "idempotency-mismatch");
        assert_eq!(run.on(&api).log().await, log, "a replay leaves no trace");
        assert_eq!(api.list("/v1/runs", 500).await, runs);
    }
    // A refusal is no answer to keep: what was in the way may be gone.
    let run = run.on(&server.api);
    let again = server.api.send(run.keyed("/rollback-execute", "r", &blocked)).await;
    assert_eq!(again.problem(409, "rollback-blocked")["detail"], why);
    let names: Vec<_> = run.log().await[log.len()..].iter().map(|event| text(&event["event"])).collect();
    assert_eq!(names, ["rollback_execution_blocked"]);
}

#[tokio::test]
async fn a_claim_is_answered_with_the_same_task_and_token_after_five_hundred_events_and_a_restart() {
    let (mut server, dir) = server().await;
    let run = Run::new(&server.api).await;
    run.tasks(json!([{"id": "one", "task_type": "t"}, {"id": "two", "task_type": "t"}])).await;
    let body = json!({"agent_id": "a", "lease_ms": 300_000});
    // At once, and more than once: one of them claims.
    let asked = (0..8).map(|_| server.api.send(run.keyed("/tasks/claim", "key", &body)));
    let replies = join_all(asked).await;
    let mut leases = Vec::new();
    for reply in &replies {
        match reply.status {
            200 => leases.push(Lease::of(&reply.json()).unwrap()),
            _ => drop(reply.problem(409, "in-flight")),
        }
    }
    assert!(!leases.is_empty() && leases.iter().all(|lease| *lease == leases[0]), "{leases:?}");
    assert_eq!(replies.iter().filter(|reply| reply.status == 200 && !reply.replayed()).count(), 1);
    for batch in 0..6 {
        let facts = (0..100).map(|n| run.add("add_fact", json!({"text": format!("{batch} {n}")})));
        join_all(facts).await;
    }
    let log = run.log().await;
    assert!(log.len() > 600);
    for restart in [false, true] {
        if restart {
            server.kill();
            server = Server::start(dir.path()).await;
        }
        let run = run.on(&server.api);
        let again = server.api.send(run.keyed("/tasks/claim", "key", &body)).await;
        assert!(again.replayed());
        assert_eq!(Lease::of(&again.expect(200)).unwrap(), leases[0]);
        assert_eq!(run.log().await, log);
    }
    // The token that was told again is the one that counts, and the other task is still free.
    let run = run.on(&server.api);
    run.say_under(&leases[0], "complete").await.expect(200);
    assert_eq!(run.claim("b").await.unwrap().task, if leases[0].task == "one" { "two" } else { "one" });
    run.check().await;
}

// ---- what nobody may forge -----------------------------------------------------------------------

/// A run's lines with more events at their end, in form as a server writes them.
fn forged(lines: &[u8], more: &[(&str, Value)]) -> Vec<u8> {
    let text = std::str::from_utf8(lines).unwrap();
    let all: Vec<&str> = text.lines().collect();
    let mut events: Vec<String> = all[1..all.len() - 1].iter().map(|line| (*line).to_owned()).collect();
    for (name, payload) in more {
        let mut event: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        let seq = event["seq"].as_u64().unwrap() + 1;
        let fields = event.as_object_mut().unwrap();
        for field in ["run", "step_id", "task_id"] {
            fields.remove(field);
        }
        event["seq"] = json!(seq);
        event["prev"] = json!(seq - 1);
        event["event_id"] = json!(format!("evt_{seq}"));
        event["by"] = json!("runtime");
        event["event"] = json!(name);
        event["payload"] = payload.clone();
        events.push(event.to_string());
    }
    lines_of(serde_json::from_str(all[0]).unwrap(), &events)
}

/// The lines of these events, sealed.
fn lines_of(mut header: Value, events: &[String]) -> Vec<u8> {
    header["events"] = json!(events.len());
    let body: String = events.iter().map(|event| format!("{event}\n")).collect();
    let sha256: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{header}\n{body}{}\n", json!({"end": true, "sha256": sha256})).into_bytes()
}

/// What a runtime writes when a tool changed a file.
fn evidence() -> [(&'static str, Value); 2] {
    let id = |kind: &str| format!("{kind}_01905d3c-7e57-7abc-8def-0123456789ab");
    let source = json!({
        "thread_id": id("thr"), "turn_id": id("turn"), "item_id": id("item"), "operation_id": id("op"), "seq": 7,
    });
    let with = |more: Value| {
        let mut record = source.clone();
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"record": record})
    };
    let file = json!({"path": "etc/passwd", "before": null, "after": {"sha256": "0".repeat(64), "bytes": 3}});
    [
        ("mutation_checkpoint_recorded", with(json!({"tool": "write_file", "workspace": "/", "files": [file]}))),
        (
            "tool_effect_recorded",
            with(json!({"tool": "write_file", "phase": "outcome", "status": "succeeded", "attempt": 1})),
        ),
    ]
}

#[tokio::test]
async fn a_ledger_is_written_by_nobody_but_the_runtime() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let clean = async |run: &Run| {
        let ledger = run.get("/ledger").await;
        assert_eq!((&ledger["data"], &ledger["summary"]["record_count"]), (&json!([]), &json!(0)));
        assert_eq!(run.get("/mutations").await["data"], json!([]));
        assert_eq!(run.get("/rollback-preview").await["steps"], json!([]));
        let reserved = |name: &str| name.starts_with("tool_") || name.starts_with("mutation_");
        assert!(!names(&run.log().await).into_iter().any(reserved));
    };
    // By every route that takes JSON, in every field that takes anything.
    for (name, payload) in evidence() {
        for (route, path, body) in ROUTES.iter().filter(|(_, _, body)| body.is_some()) {
            if path.ends_with("/restore") || *route == "DELETE" {
                continue;
            }
            let body: Value = serde_json::from_str(body.unwrap()).unwrap();
            let path = filled(path, &run.id, "write", UNKNOWN_CHECKPOINT);
            for field in
                ["event", "type", "op", "payload", "record", "ledger", "mutations", "events", "rest", "source_metadata"]
            {
                let mut body = body.clone();
                body[field] = match field {
                    "event" | "type" | "op" => json!(name),
                    "events" => json!([{"event": name, "payload": payload}]),
                    _ => payload.clone(),
                };
                if field == "event" || field == "type" {
                    body["payload"] = payload.clone();
                }
                api.send(api.request(method(route), &path).json(&body)).await;
            }
        }
    }
    clean(&run).await;

    // By what is brought from elsewhere: the lines are sound, and what they say that tools did is left out.
    let lines = forged(&run.export().await, &evidence());
    let made = import(api, lines.clone()).await.expect(201);
    let imported = Run { api: api.clone(), id: text(&made["run_id"]) };
    clean(&imported).await;
    imported.check().await;
    let checkpoint = text(&imported.post("/checkpoints", json!({})).await.expect(201)["checkpoint_id"]);
    let made = imported.post(&format!("/checkpoints/{checkpoint}/restore"), json!({})).await.expect(201);
    let restored = Run { api: api.clone(), id: text(&made["run_id"]) };
    clean(&restored).await;
    restored.check().await;
    // A rollback that the lines say has begun is not gone on with.
    let rollback = json!({"rollback": {
        "operation_id": "op_01905d3c-7e57-7abc-8def-0123456789ab", "event_ids": ["evt_1"], "started_seq": 1,
        "started_at": "2026-01-01T00:00:00.000Z",
    }});
    let made = import(api, forged(&run.export().await, &[("rollback_execution_started", rollback)])).await.expect(201);
    let imported = Run { api: api.clone(), id: text(&made["run_id"]) };
    clean(&imported).await;
    imported.tasks(json!([{"task_type": "t"}])).await;
    assert!(imported.claim("a").await.is_some(), "nothing is being put back");
}

#[tokio::test]
async fn a_rollback_that_is_refused_is_on_record_and_changes_nothing_else() {
    let (server, _dir) = server().await;
    let run = busy(&server.api).await;
    for status in ["running", "paused", "failed"] {
        run.post("/events", json!({"event": "x", "status": status})).await.expect(201);
        let before = run.show().await;
        let mut refusals = 0;
        for (body, missing) in [
            (json!({"event_ids": ["evt_1"], "confirm": "rollback"}), false),
            (json!({"event_ids": ["evt_1"], "confirm": "rollback", "policy_ack": "yes"}), false),
            (
                json!({"event_ids": ["evt_1", "evt_999", "nonsense"], "confirm": "rollback", "policy_ack": "allow_rollback_execution"}),
                status != "running",
            ),
        ] {
            let problem = run.post("/rollback-execute", body).await.problem(409, "rollback-blocked");
            if missing {
                assert_eq!(problem["missing_event_ids"], json!(["evt_1", "evt_999", "nonsense"]), "{problem}");
            }
            refusals += 1;
        }
        for body in [
            json!({"event_ids": [], "confirm": "rollback"}),
            json!({"event_ids": ["evt_1"], "confirm": "yes"}),
            json!({"event_ids": ["evt_1", " evt_1"], "confirm": "rollback"}),
            json!({"event_ids": [" "], "confirm": "rollback"}),
            json!({"confirm": "rollback"}),
            json!({"event_ids": ["evt_1"]}),
        ] {
            run.post("/rollback-execute", body).await.problem(422, "invalid");
        }
        let after = run.show().await;
        let told = |shown: &Value| {
            let mut shown = shown.clone();
            for field in ["last_event_seq", "updated_at"] {
                shown.as_object_mut().unwrap().remove(field);
            }
            shown
        };
        assert_eq!(told(&after), told(&before));
        let seq = |shown: &Value| shown["last_event_seq"].as_u64().unwrap();
        assert_eq!(seq(&after), seq(&before) + refusals);
        if status == "failed" {
            let history = run.get("/rollback-history").await;
            let history = history["data"].as_array().unwrap();
            assert_eq!(history.len(), 9);
            assert!(history.iter().all(|entry| entry["outcome"] == "blocked" && entry["reason"].is_string()));
        }
    }
    run.check().await;
}

#[tokio::test]
async fn a_token_is_told_to_its_holder_and_shows_nowhere_else() {
    let (dir, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lines = beside.path().join("events.jsonl");
    let env = [
        ("RADDLE_LOG", "trace"),
        ("RADDLE_HOOKS_FILE_KIND", "jsonl"),
        ("RADDLE_HOOKS_FILE_PATH", lines.to_str().unwrap()),
    ];
    let server = Server::with(dir.path(), &env).await;
    let api = &server.api;
    let run = busy(api).await;
    let mut stream = run.stream(0).await;
    let many = format!("/v1/runs/stream?runs={}", run.id);
    let mut many = Stream::open(api.request(Method::GET, &many)).await;
    let tasks: Vec<_> = (0..8).map(|n| json!({"id": format!("t{n}"), "task_type": "t", "priority": 10})).collect();
    run.tasks(json!(tasks)).await;
    let mut leases = Vec::new();
    for n in 0..7 {
        leases.push(
            Lease::of(
                &api.send(run.keyed("/tasks/claim", &format!("c{n}"), &json!({"agent_id": "a"}))).await.expect(200),
            )
            .unwrap(),
        );
    }
    let mut told = Vec::new();
    let mut say = async |n: usize, mut body: Value| {
        body["lease_token"] = json!(leases[n].token);
        told.push(("a reply", run.say(&leases[n].task, body).await.expect(200).to_string()));
    };
    say(0, json!({"action": "heartbeat"})).await;
    say(1, json!({"action": "complete"})).await;
    say(2, json!({"action": "fail", "error": "e"})).await;
    say(3, json!({"action": "release"})).await;
    say(4, json!({"action": "status", "status": "blocked"})).await;
    say(5, json!({"action": "status", "status": "in_progress"})).await;
    for token in [&leases[0].token, &leases[1].token] {
        let body = json!({"action": "complete", "lease_token": token, "expected_task_rev": 1});
        told.push(("a refusal", run.say("t0", body).await.json().to_string()));
        told.push((
            "another",
            run.say("t6", json!({"action": "complete", "lease_token": token})).await.json().to_string(),
        ));
    }
    let checkpoint = text(&run.post("/checkpoints", json!({})).await.expect(201)["checkpoint_id"]);
    run.post("/checkpoints", json!({})).await.expect(201);
    let restored = run.post(&format!("/checkpoints/{checkpoint}/restore"), json!({})).await.expect(201);
    let restored = Run { api: api.clone(), id: text(&restored["run_id"]) };
    for run in [&run, &restored] {
        for rest in [
            "",
            "/blackboard",
            "/tasks",
            "/tasks/t6",
            "/events?limit=500",
            "/replay",
            "/checkpoints",
            "/ledger",
            "/export",
        ] {
            told.push(("a read", String::from_utf8(api.get(&run.at(rest)).await.body).unwrap()));
        }
    }
    told.push(("a checkpoint", run.get(&format!("/checkpoints/{checkpoint}")).await.to_string()));
    for path in ["/v1/runs", "/v1/runs?status=running", "/metrics", "/v1/events"] {
        told.push((path, String::from_utf8(api.get(path).await.body).unwrap()));
    }
    for stream in [&mut stream, &mut many] {
        loop {
            let frame = stream.next().await.unwrap();
            let saved = frame.event == "context.checkpoint.saved" && frame.data.contains(&checkpoint);
            told.push(("a stream", frame.data));
            if saved {
                break;
            }
        }
    }
    let driven = run.post("/driver/next", json!({})).await.expect(200);
    told.push(("the driver", driven.to_string()));
    let shown = run.show().await;
    let mut whole = shown.clone();
    whole["objective"] = json!("another");
    let put = api.send(api.request(Method::PUT, &run.at("")).json(&whole)).await.expect(200);
    told.push(("a whole run", put.to_string()));
    let said = server.said();
    server.stop().await;
    told.push(("the log of the server", said));
    told.push(("a hook", std::fs::read_to_string(lines).unwrap()));
    let hook = &told.last().unwrap().1;
    assert!(hook.contains("context.task.claimed") || hook.is_empty(), "it would have been noticed: {hook}");
    for (place, said) in &told {
        for lease in &leases {
            assert!(!said.contains(&lease.token), "a token shows in {place}: {said}");
        }
    }
    assert!(told.iter().any(|(place, said)| *place == "a read" && said.contains("token_sha256")));
}

// ---- gone, and brought back ----------------------------------------------------------------------

#[tokio::test]
async fn a_deleted_run_is_gone_with_all_that_was_its() {
    let (server, dir) = server().await;
    let api = &server.api;
    let (run, other) = (busy(api).await, busy(api).await);
    let kept = other.log().await;
    let made = api.send(api.keyed("/v1/runs", "k", &json!({"objective": "third"}))).await.expect(201);
    let claim = api.send(run.keyed("/tasks/claim", "c", &json!({"agent_id": "a"}))).await.expect(200);
    assert!(claim["task"].is_object());
    let mut watching = run.stream(0).await;
    let mut many =
        Stream::open(api.request(Method::GET, &format!("/v1/runs/stream?runs={},{}", run.id, other.id))).await;
    let stale = api.request(Method::DELETE, &run.at("")).header("if-match", "\"1\"");
    api.send(stale).await.problem(412, "precondition-failed");
    api.delete(&run.at("")).await.expect(204);
    let told = async {
        watching.until("context.run.deleted").await;
        assert_eq!(watching.next().await, None, "its stream ends");
    };
    timeout(LOST, told).await.expect("who watches the run is told");
    let told = async {
        many.until("context.run.deleted").await;
        other.tell("still here").await;
        assert_eq!(many.until("still here").await.json()["run_id"], *other.id, "the stream of many goes on");
    };
    timeout(LOST, told).await.expect("who watches many is told");
    let checkpoint = UNKNOWN_CHECKPOINT;
    for (name, path, body) in ROUTES.iter().filter(|(_, path, _)| path.contains("{run}")) {
        let request = api.request(method(name), &filled(path, &run.id, "look", checkpoint));
        let request = if *name == "GET" { request } else { request.body(body.unwrap_or("{}")) };
        api.send(request).await.problem(404, "not-found");
    }
    // What was answered about it is not answered again.
    let again = api.send(run.keyed("/tasks/claim", "c", &json!({"agent_id": "a"}))).await;
    again.problem(404, "not-found");
    let listed = api.list("/v1/runs", 500).await;
    let listed: Vec<_> = listed.iter().map(|run| text(&run["run_id"])).collect();
    assert_eq!(listed, [other.id.clone(), text(&made["run_id"])]);
    // Its events are in no stream any more, also after a restart.
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let page = api.get(&format!("/v1/runs/stream?limit=500&runs={}", other.id)).await.expect(200);
    let events = page["data"].as_array().unwrap();
    assert_eq!(events.len(), kept.len() + 1);
    api.get(&run.at("")).await.problem(404, "not-found");
    other.on(api).check().await;
}

/// What of a run travels: its plan, its tasks and its board, without what is of its place.
fn travels(run: &Value, board: &Value) -> (Value, Value) {
    let (mut run, mut board) = (run.clone(), board.clone());
    for field in ["run_id", "revision", "last_event_seq", "created_at", "updated_at", "restored_from"] {
        run.as_object_mut().unwrap().remove(field);
    }
    board.as_object_mut().unwrap().remove("revision");
    for kind in ["facts", "decisions", "open_questions", "artifacts"] {
        for entry in board[kind].as_array_mut().unwrap() {
            entry.as_object_mut().unwrap().remove("seq");
        }
    }
    (run, board)
}

#[tokio::test]
async fn an_export_comes_back_as_the_same_plan_tasks_and_board_and_so_does_a_checkpoint() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let checkpoint = text(&run.post("/checkpoints", json!({})).await.expect(201)["checkpoint_id"]);
    let before = travels(&run.show().await, &run.get("/blackboard").await);
    let lines = run.export().await;
    assert_eq!(lines, run.export().await, "the same log is the same lines");
    let imported = import(api, lines).await;
    let restored = run.post(&format!("/checkpoints/{checkpoint}/restore"), json!({})).await;
    for made in [imported, restored] {
        let id = text(&made.expect(201)["run_id"]);
        assert_eq!(made.header("location"), Some(&*format!("/v1/runs/{id}")));
        let copy = Run { api: api.clone(), id };
        assert_eq!(travels(&copy.show().await, &copy.get("/blackboard").await), before);
        assert_eq!(copy.show().await["restored_from"]["run_id"], *run.id);
        // It goes on by itself, and the other one does not notice.
        let lease = copy.claim("a").await.unwrap();
        copy.say_under(&lease, "complete").await.expect(200);
        copy.add("edit_fact", json!({"id": "f", "text": "of the copy"})).await;
        copy.check().await;
        // A copy of the copy is the copy.
        let again = text(&import(api, copy.export().await).await.expect(201)["run_id"]);
        let again = Run { api: api.clone(), id: again };
        let of = async |run: &Run| travels(&run.show().await, &run.get("/blackboard").await);
        assert_eq!(of(&again).await, of(&copy).await);
    }
    assert_eq!(travels(&run.show().await, &run.get("/blackboard").await), before);
}

#[tokio::test]
async fn leases_do_not_travel() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let lease = run.claim("holder").await.unwrap();
    let checkpoint = text(&run.post("/checkpoints", json!({})).await.expect(201)["checkpoint_id"]);
    let imported = import(api, run.export().await).await;
    let restored = run.post(&format!("/checkpoints/{checkpoint}/restore"), json!({})).await;
    for made in [imported, restored] {
        let copy = Run { api: api.clone(), id: text(&made.expect(201)["run_id"]) };
        assert_eq!(copy.task(&lease.task).await["status"], "runnable");
        assert_eq!(copy.task(&lease.task).await["lease"], Value::Null);
        copy.say_under(&lease, "complete").await.problem(409, "task-transition-invalid");
        assert_eq!(copy.claim("another").await.unwrap().task, lease.task);
        copy.say_under(&lease, "complete").await.problem(409, "task-lease-invalid");
    }
    run.say_under(&lease, "complete").await.expect(200);
}

#[tokio::test]
async fn lines_that_are_damaged_are_refused_with_the_number_of_the_line() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let lines = run.export().await;
    let runs = api.list("/v1/runs", 500).await;
    let text = String::from_utf8(lines.clone()).unwrap();
    let all: Vec<&str> = text.lines().collect();
    let refused = async |lines: Vec<u8>, line: Option<usize>| {
        let reply = import(api, lines).await;
        let detail = reply.problem(422, "invalid")["detail"].clone();
        let detail = detail.as_str().unwrap();
        if let Some(line) = line {
            assert!(detail.contains(&format!("line {line}:")), "line {line}: {detail}");
        }
    };
    // Cut anywhere, it is not a run.
    for cut in (1..lines.len() - 1).step_by(lines.len() / 60) {
        let whole = lines[..cut].iter().filter(|byte| **byte == b'\n').count();
        let ends_with_a_line = lines[cut - 1] == b'\n';
        refused(lines[..cut].to_vec(), ends_with_a_line.then_some(whole + 1)).await;
    }
    for at in 0..all.len() {
        let joined = |lines: Vec<&str>| lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
        // A line that is none, one that is missing, one that is there twice, one that is empty.
        let (mut garbage, mut missing, mut twice, mut empty) = (all.clone(), all.clone(), all.clone(), all.clone());
        garbage[at] = "{\"seq\":";
        refused(joined(garbage), Some(at + 1)).await;
        missing.remove(at);
        refused(joined(missing), None).await;
        twice.insert(at, all[at]);
        refused(joined(twice), Some(at + 2)).await;
        empty.insert(at, "");
        refused(joined(empty), Some(at + 1)).await;
    }
    // A letter that is another one, in what is still a record.
    let at = text.find("a fact").unwrap();
    let mut changed = lines.clone();
    changed[at] = b'A';
    refused(changed, Some(all.len())).await;
    // A sealed log that no run can have written.
    let header: Value = serde_json::from_str(all[0]).unwrap();
    let events: Vec<String> = all[1..all.len() - 1].iter().map(|line| (*line).to_owned()).collect();
    let with = |at: usize, change: &dyn Fn(&mut Value)| {
        let mut events = events.clone();
        let mut event: Value = serde_json::from_str(&events[at]).unwrap();
        change(&mut event);
        events[at] = event.to_string();
        lines_of(header.clone(), &events)
    };
    let claimed = events.iter().position(|event| event.contains("context.task.claimed")).unwrap();
    refused(with(claimed, &|event| event["seq"] = json!(1)), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["revision"] = json!(999)), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["status"] = json!("completed")), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["run_id"] = json!(UNKNOWN_RUN)), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["event"] = json!("context.task.conjured")), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["payload"]["task"]["task_rev"] = json!(77)), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["payload"]["task"]["lease"]["fence"] = json!(77)), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["payload"]["task"]["lease"] = Value::Null), Some(claimed + 2)).await;
    refused(with(claimed, &|event| event["payload"]["task"]["id"] = json!("conjured")), Some(claimed + 2)).await;
    refused(with(0, &|event| event["event"] = json!("deployed")), Some(2)).await;
    for (field, value) in [("format", json!("other")), ("version", json!(2)), ("run_id", json!(UNKNOWN_RUN))] {
        let mut header = header.clone();
        header[field] = value;
        refused(lines_of(header, &events), None).await;
    }
    import(api, Vec::new()).await.problem(400, "bad-request");
    refused(b"\n".to_vec(), None).await;
    refused(vec![0xff, 0xfe, 0x00], Some(1)).await;
    assert_eq!(api.list("/v1/runs", 500).await, runs, "what is refused leaves no trace");
    import(api, lines).await.expect(201);
}

#[tokio::test]
async fn lines_bring_nothing_that_could_not_have_been_made_here() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = Run::make(api, json!({"objective": "o", "workspace": {"canonical_path": "/w"}})).await;
    run.tasks(
        json!([{"id": "one", "task_type": "t"}, {"id": "two", "task_type": "t", "depends_on_task_ids": ["one"]}]),
    )
    .await;
    run.add("add_fact", json!({"id": "f", "text": "t"})).await;
    let lines = String::from_utf8(run.export().await).unwrap();
    let all: Vec<&str> = lines.lines().collect();
    let header: Value = serde_json::from_str(all[0]).unwrap();
    let events: Vec<Value> = all[1..all.len() - 1].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let runs = api.list("/v1/runs", 500).await.len();
    let long = "x".repeat(70_000);
    let steps: Vec<_> =
        (0..257).map(|n| json!({"step_id": format!("s{n}"), "title": "t", "status": "pending"})).collect();
    for (at, pointer, value) in [
        (0, "/run/objective", json!(long)),
        (0, "/run/objective", json!(" ")),
        (0, "/run/steps", json!(steps)),
        (0, "/run/steps", json!([{"step_id": "../x", "title": "t", "status": "pending"}])),
        (0, "/run/source_metadata", json!({"x": long})),
        (0, "/run/workspace/lease_epoch", json!(u64::MAX)),
        (0, "/run/workspace/canonical_path", json!("a\0b")),
        (0, "/run/mcp_servers", json!(vec!["x"; 65])),
        (1, "/payload/task/task_rev", json!(u64::MAX)),
        (1, "/payload/task/attempt", json!(u32::MAX)),
        (1, "/payload/task/max_attempts", json!(0)),
        (1, "/payload/task/payload", json!({"x": long})),
        (1, "/payload/task/last_error", json!(long)),
        (2, "/payload/task/id", json!("../x")),
        (2, "/payload/task/depends_on_task_ids", json!(["nothing"])),
        (1, "/payload/task/depends_on_task_ids", json!(["two"])),
        (1, "/payload/task/task_type", json!("")),
        (3, "/payload/entry/text", json!(long)),
        (3, "/payload/entry/id", json!("../x")),
    ] {
        let mut events = events.clone();
        if pointer == "/run/source_metadata" {
            events[at]["run"]["source_metadata"] = json!({});
        }
        *events[at].pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
        if let Some(task) = pointer.strip_prefix("/payload/task/id").map(|_| value.clone()) {
            events[at]["task_id"] = task;
        }
        let events: Vec<String> = events.iter().map(Value::to_string).collect();
        let reply = import(api, lines_of(header.clone(), &events)).await;
        let shown = value.to_string();
        let shown = &shown[..shown.len().min(60)];
        assert!(
            [413, 422, 409].contains(&reply.status),
            "{pointer} {shown}: {} {}",
            reply.status,
            String::from_utf8_lossy(&reply.body)
        );
    }
    assert_eq!(api.list("/v1/runs", 500).await.len(), runs);
}

// ---- reading -------------------------------------------------------------------------------------

#[tokio::test]
async fn runs_are_listed_filtered_and_walked_exactly_once() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let mut made = Vec::new();
    for n in 0..60 {
        let body = json!({
            "objective": "o", "run_type": if n % 2 == 0 { "batch" } else { "interactive" },
            "source_client": format!("c{}", n % 3), "workspace": {"canonical_path": format!("/w{}", n % 5)},
        });
        made.push(Run::make(api, body).await);
    }
    for run in made.iter().step_by(4) {
        run.tell("run_cancelled").await;
    }
    let ids = |runs: &[Value]| runs.iter().map(|run| text(&run["run_id"])).collect::<Vec<_>>();
    let wanted = |wants: &dyn Fn(usize) -> bool| {
        made.iter().enumerate().filter(|(n, _)| wants(*n)).map(|(_, run)| run.id.clone()).collect::<Vec<_>>()
    };
    for limit in [1, 7, 60, 500] {
        assert_eq!(ids(&api.list("/v1/runs", limit).await), wanted(&|_| true));
        assert_eq!(ids(&api.list("/v1/runs?status=cancelled", limit).await), wanted(&|n| n % 4 == 0));
        assert_eq!(ids(&api.list("/v1/runs?status=queued", limit).await), wanted(&|n| n % 4 != 0));
        assert_eq!(ids(&api.list("/v1/runs?run_type=BATCH", limit).await), wanted(&|n| n % 2 == 0));
        assert_eq!(ids(&api.list("/v1/runs?source=c1&workspace=/w0", limit).await), wanted(&|n| n % 15 == 10));
        assert_eq!(ids(&api.list("/v1/runs?workspace=/nowhere", limit).await), Vec::<String>::new());
    }
    let listed = &api.get("/v1/runs?limit=1").await.expect(200)["data"][0];
    assert!(listed.get("tasks").is_none(), "without their tasks");
    for bad in ["status=x", "limit=0", "limit=501", "cursor=zz", "surprise=1"] {
        api.get(&format!("/v1/runs?{bad}")).await.problem(422, "invalid");
    }
    // A cursor of another list is none of this one.
    let run = &made[1];
    run.tasks(json!([{"task_type": "a"}, {"task_type": "b", "workflow_id": "w"}, {"task_type": "a"}])).await;
    let cursor = text(&run.get("/tasks?limit=1").await["next_cursor"]);
    api.get(&format!("/v1/runs?cursor={cursor}")).await.problem(422, "invalid");
    api.get(&made[2].at(&format!("/tasks?cursor={cursor}"))).await.problem(422, "invalid");
    assert_eq!(api.list(&run.at("/tasks"), 1).await.len(), 3);
    assert_eq!(api.list(&run.at("/tasks?task_type=a"), 1).await.len(), 2);
    assert_eq!(api.list(&run.at("/tasks?workflow_id=w"), 1).await.len(), 1);
    assert_eq!(api.list(&run.at("/tasks?status=done"), 1).await.len(), 0);
}

#[tokio::test]
async fn a_replay_from_anywhere_to_anywhere_is_what_was_so_then() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = busy(api).await;
    let first = run.get("/checkpoints").await["data"][0].clone();
    let seen = run.get(&format!("/checkpoints/{}", text(&first["checkpoint_id"]))).await;
    run.tell("deployed").await;
    let lease = run.claim("a").await.unwrap();
    run.say_under(&lease, "complete").await.expect(200);
    let second = run.post("/checkpoints", json!({})).await.expect(201);
    let log = run.check().await;
    let replay = async |query: String| run.get(&format!("/replay?{query}")).await;
    // The copy is what the log makes of it then, and from it on everything is the same.
    let upto = replay(format!("upto_seq={}", first["seq"])).await;
    assert_eq!((&upto["replay"], &upto["drift"]), (&seen["image"], &Value::Null));
    let whole = run.get("/replay").await;
    for checkpoint in [&first, &second] {
        let from = replay(format!("from_checkpoint={}", text(&checkpoint["checkpoint_id"]))).await;
        assert_eq!((&from["replay"], &from["drift"]), (&whole["replay"], &whole["drift"]));
        assert_eq!(from["checkpoint_seq"], checkpoint["seq"]);
        assert_eq!(from["events_applied"], log.len() as u64 - checkpoint["seq"].as_u64().unwrap());
    }
    for upto in 1..=log.len() {
        let replayed = replay(format!("upto_seq={upto}")).await;
        let mut fold = Fold::of(&log[..upto]).run();
        let tasks = fold.as_object_mut().unwrap().remove("tasks").unwrap();
        assert_eq!(replayed["replay"]["run"], fold, "up to {upto}");
        let replayed: Vec<_> =
            replayed["replay"]["tasks"].as_array().unwrap().iter().map(|pair| pair[1].clone()).collect();
        assert_eq!(json!(replayed), tasks, "up to {upto}");
    }
    for bad in ["upto_seq=0", "upto_seq=99999", "upto_seq=x", "from_checkpoint=x", "surprise=1"] {
        api.get(&run.at(&format!("/replay?{bad}"))).await.problem(422, "invalid");
    }
    let before = format!("/replay?upto_seq=1&from_checkpoint={}", text(&first["checkpoint_id"]));
    api.get(&run.at(&before)).await.problem(422, "invalid");
}

#[tokio::test]
async fn a_value_as_deep_as_a_body_may_be_is_read_back_from_everywhere() {
    let (server, dir) = server().await;
    let api = &server.api;
    let deep = |levels: usize| {
        let text = format!("{{\"x\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        serde_json::from_str::<Value>(&text).unwrap()
    };
    // As deep as is taken: one level more is refused as JSON, or by name.
    let deepest = async |ask: &dyn Fn(Value) -> (String, Value)| {
        for levels in (1..=120).rev() {
            let (path, body) = ask(deep(levels));
            let reply = api.post(&path, body).await;
            if (200..300).contains(&reply.status) {
                return;
            }
            assert!([400, 422].contains(&reply.status), "{levels}: {}", reply.status);
        }
        panic!("nothing is taken");
    };
    let run = Run::new(api).await;
    run.tasks(json!([{"id": "one", "task_type": "t"}])).await;
    let lease = run.claim("a").await.unwrap();
    deepest(&|value| ("/v1/runs".to_owned(), json!({"objective": "deep", "source_metadata": value}))).await;
    deepest(&|value| (run.at("/events"), json!({"event": "deep", "payload": value}))).await;
    deepest(&|value| (run.at("/tasks"), json!({"tasks": [{"id": "deep", "task_type": "t", "payload": value}]}))).await;
    let transition = run.at("/tasks/one/transition");
    deepest(&|value| (transition.clone(), json!({"action": "complete", "lease_token": lease.token, "output": value})))
        .await;
    let claim = json!({"agent_id": "a"});
    let claimed = api.send(run.keyed("/tasks/claim", "deep", &claim)).await.expect(200);
    let made = api.list("/v1/runs", 500).await;
    let other = made.iter().find(|run| run["objective"] == "deep").unwrap();
    let other = Run { api: api.clone(), id: text(&other["run_id"]) };
    let mut checkpoints = Vec::new();
    for run in [&run, &other] {
        checkpoints.push(text(&run.post("/checkpoints", json!({})).await.expect(201)["checkpoint_id"]));
    }
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    for (run, checkpoint) in [run.on(api), other.on(api)].iter().zip(&checkpoints) {
        run.tell("goes on").await;
        run.check().await;
        let path = format!("/checkpoints/{checkpoint}");
        run.get(&path).await;
        let restored = run.post(&format!("{path}/restore"), json!({})).await.expect(201);
        Run { api: api.clone(), id: text(&restored["run_id"]) }.check().await;
        let imported = import(api, run.export().await).await.expect(201);
        Run { api: api.clone(), id: text(&imported["run_id"]) }.check().await;
    }
    let again = api.send(run.on(api).keyed("/tasks/claim", "deep", &claim)).await;
    assert_eq!((again.replayed(), again.expect(200)), (true, claimed));
}

// ---- the plan ------------------------------------------------------------------------------------

fn step(id: &str, status: &str) -> Value {
    json!({"step_id": id, "title": format!("title of {id}"), "status": status})
}

#[tokio::test]
async fn what_a_client_says_leads_to_what_the_table_says() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let with = async |steps: Value| Run::make(api, json!({"objective": "o", "steps": steps})).await;
    let status = async |run: &Run| text(&run.show().await["status"]);
    let of = |shown: &Value, id: &str| {
        let steps = shown["steps"].as_array().unwrap();
        text(&steps.iter().find(|step| step["step_id"] == id).unwrap()["status"])
    };

    let run =
        Run::make(api, json!({"objective": "* the first line\n12. the second line\nshort\n- [ ] the third line"}))
            .await;
    assert_eq!((status(&run).await, &run.show().await["started_at"]), ("queued".to_owned(), &Value::Null));
    run.tell(" Planning_Started ").await;
    let shown = run.show().await;
    let titles: Vec<_> = shown["steps"].as_array().unwrap().iter().map(|step| text(&step["title"])).collect();
    assert_eq!(titles, ["the first line", "the second line", "the third line"]);
    assert_eq!((&shown["status"], shown["started_at"].is_string()), (&json!("awaiting_approval"), true));
    run.tell("plan_approved").await;
    let shown = run.show().await;
    assert_eq!((&shown["status"], of(&shown, "step-1")), (&json!("running"), "in_progress".to_owned()));
    for (event, to) in [
        ("run_paused", "paused"),
        ("run_resumed", "running"),
        ("revision_requested", "blocked"),
        ("task_retry_requested", "running"),
        ("run_cancelled", "cancelled"),
        ("run_reopened", "running"),
    ] {
        run.tell(event).await;
        assert_eq!(status(&run).await, to, "{event}");
    }

    let run = with(json!([step("a", "pending"), step("b", "pending"), step("c", "pending")])).await;
    for (event, step, payload, becomes) in [
        ("step_started", "a", json!({}), "in_progress"),
        ("step_completed", "a", json!({}), "done"),
        ("step_done", "b", json!({}), "done"),
        ("step_failed", "b", json!({"error": "e"}), "failed"),
        ("task_started", "c", json!({}), "in_progress"),
        ("task_completed", "c", json!({}), "done"),
        ("task_failed", "c", json!({}), "failed"),
        ("anything", "c", json!({"step_status": "blocked"}), "blocked"),
        ("anything", "c", json!({"step_status": "nonsense"}), "blocked"),
        ("step_completed", "c", json!({"step_status": "runnable"}), "runnable"),
        ("anything", "c", json!({}), "runnable"),
    ] {
        let body = json!({"event": event, "step_id": step, "payload": payload, "status": "running"});
        let told = run.post("/events", body).await.expect(201);
        assert_eq!((&told["event"], &told["step_id"]), (&json!(event), &json!(step)));
        assert_eq!(of(&run.show().await, step), becomes, "{event} {payload}");
    }
    assert_eq!(run.show().await["last_error"], "e");
    // A step that there is not is left alone.
    run.post("/events", json!({"event": "step_started", "step_id": "z"})).await.expect(201);
    assert_eq!(run.show().await["steps"].as_array().unwrap().len(), 3);

    let run = with(json!([step("session-run", "pending")])).await;
    run.tell("session_run_started").await;
    assert_eq!(of(&run.show().await, "session-run"), "in_progress");
    run.post("/events", json!({"event": "session_run_finished", "status": "completed"})).await.expect(201);
    let shown = run.show().await;
    assert_eq!((of(&shown, "session-run"), &shown["status"]), ("done".to_owned(), &json!("completed")));
    let ended = shown["ended_at"].clone();
    assert!(ended.is_string());
    // What is said of an ended run is on record, and its end stays when it was.
    run.tell("deployed").await;
    run.post("/events", json!({"event": "x", "status": "completed"})).await.expect(201);
    assert_eq!(run.show().await["ended_at"], ended);
    run.tell("reopen").await;
    assert_eq!(run.show().await["ended_at"], Value::Null);
    run.check().await;
}

#[tokio::test]
async fn the_driver_says_what_comes_next_and_why_and_begins_it_unless_it_is_only_asked() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = Run::make(api, json!({"objective": "o", "steps": [step("a", "pending"), step("b", "runnable")]})).await;
    let before = (run.show().await, run.log().await);
    let dry = run.post("/driver/next", json!({"dry_run": true})).await.expect(200);
    assert_eq!((run.show().await, run.log().await), before, "nothing was written");
    // What is ready goes before what was planned earlier.
    assert_eq!(
        (&dry["selected_step_id"], &dry["target_status"], &dry["dry_run"]),
        (&json!("b"), &json!("running"), &json!(true))
    );
    let driven = run.post("/driver/next", json!({})).await.expect(200);
    assert_eq!(driven["selected_step_id"], "b");
    assert!(text(&driven["why_next_step"]).contains("`b`"));
    let shown = run.show().await;
    assert_eq!((&shown["status"], &shown["steps"][1]["status"]), (&json!("running"), &json!("in_progress")));
    assert_eq!(shown["why_next_step"], driven["why_next_step"]);
    let log = run.log().await;
    let event = log.last().unwrap();
    assert_eq!(
        (&event["event"], &event["payload"]["why_next_step"]),
        (&json!("meta_next_step_selected"), &driven["why_next_step"])
    );
    // Asked again, what is under way is kept.
    run.post("/events", json!({"event": "step_completed", "step_id": "b"})).await.expect(201);
    run.tasks(json!([{"id": "t", "task_type": "t"}])).await;
    let next = run.post("/driver/next", json!({})).await.expect(200);
    assert_eq!(next["selected_task_id"], "t", "a task that can be claimed goes before a step that is only planned");
    let lease = run.claim("x").await.unwrap();
    run.say_under(&lease, "complete").await.expect(200);
    assert_eq!(run.post("/driver/next", json!({})).await.expect(200)["selected_step_id"], "a");
    run.post("/events", json!({"event": "step_completed", "step_id": "a"})).await.expect(201);
    assert_eq!(run.post("/driver/next", json!({})).await.expect(200)["target_status"], "completed");
    let ended = run.log().await;
    let after = run.post("/driver/next", json!({})).await.expect(200);
    assert_eq!((&after["target_status"], &after["selected_step_id"]), (&json!("completed"), &Value::Null));
    assert_eq!(run.log().await, ended, "what has ended is not driven");
    run.check().await;

    let stuck = Run::make(api, json!({"objective": "o", "steps": [step("a", "failed")]})).await;
    let driven = stuck.post("/driver/next", json!({})).await.expect(200);
    assert_eq!(driven["target_status"], "blocked");
    assert!(text(&driven["why_next_step"]).contains("`a` failed"));
    // A task that waits for one that will not be done is named.
    let waits = Run::new(api).await;
    waits.tasks(json!([{"id": "x", "task_type": "t", "status": "blocked"}, {"id": "y", "task_type": "t", "depends_on_task_ids": ["x"]}])).await;
    waits.say("x", json!({"action": "status", "status": "cancelled"})).await.expect(200);
    let driven = waits.post("/driver/next", json!({})).await.expect(200);
    assert!(text(&driven["why_next_step"]).contains("`y` waits for `x`"), "{driven}");
}

#[tokio::test]
async fn a_todo_list_becomes_the_plan() {
    let (server, _dir) = server().await;
    let run = Run::new(&server.api).await;
    let todos = json!({"source_session_id": "s", "todos": [
        {"content": "one", "status": "completed"}, {"id": "x", "content": " two ", "status": "in-progress"},
        {"content": "  "}, {"content": "four", "status": "nonsense"},
    ]});
    let synced = run.post("/todos/sync", todos).await.expect(200);
    let steps: Vec<_> = synced["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (text(&step["step_id"]), text(&step["title"]), text(&step["status"])))
        .collect();
    let named = |id: &str, title: &str, status: &str| (id.to_owned(), title.to_owned(), status.to_owned());
    assert_eq!(
        steps,
        [named("todo-1", "one", "done"), named("x", "two", "in_progress"), named("todo-4", "four", "pending")]
    );
    assert_eq!(synced["status"], "running");
    let log = run.log().await;
    let event = log.last().unwrap();
    assert_eq!(
        (&event["event"], &event["payload"]["count"], &event["payload"]["source_session_id"]),
        (&json!("todo_synced"), &json!(4), &json!("s"))
    );
    let more = json!({"replace": false, "todos": [{"id": "x", "content": "two", "status": "done"}, {"id": "y", "content": "y"}]});
    let synced = run.post("/todos/sync", more).await.expect(200);
    assert_eq!((synced["steps"].as_array().unwrap().len(), &synced["status"]), (4, &json!("running")));
    let all = json!({"todos": [{"content": "one", "status": "done"}]});
    let done = run.post("/todos/sync", all).await.expect(200);
    assert_eq!((&done["status"], done["ended_at"].is_string()), (&json!("completed"), true));
    run.check().await;
}

#[tokio::test]
async fn another_workspace_pauses_the_run_and_binding_it_anew_voids_every_lease() {
    let (server, _dir) = server().await;
    let run = Run::new(&server.api).await;
    run.tasks(json!([{"id": "one", "task_type": "t"}, {"id": "two", "task_type": "t"}])).await;
    let validate = async |body: Value| run.post("/lease/validate", body).await.expect(200);
    let adopted = validate(json!({"current_path": "/w", "phase": "start"})).await;
    assert_eq!((&adopted["ok"], &adopted["lease_epoch"]), (&json!(true), &json!(1)));
    let log = run.log().await;
    assert_eq!(validate(json!({"current_path": "/w", "lease_epoch": 1})).await["ok"], true);
    assert_eq!(run.log().await, log, "the same path is no news");
    let lease = run.claim("a").await.unwrap();
    let other = validate(json!({"current_path": "/elsewhere"})).await;
    assert_eq!(
        (&other["mismatch"], &other["status"], &other["expected_path"]),
        (&json!(true), &json!("paused"), &json!("/w"))
    );
    assert_eq!(run.claim("b").await, None, "a run that is paused hands nothing out");
    run.tell("run_resumed").await;
    let bound = validate(json!({"current_path": "/elsewhere", "rebind": true, "lease_epoch": 1})).await;
    assert_eq!((&bound["ok"], &bound["lease_epoch"]), (&json!(true), &json!(2)));
    run.say_under(&lease, "complete").await.problem(409, "task-transition-invalid");
    run.post("/tasks/claim", json!({"agent_id": "a"})).await.problem(409, "workspace-epoch-stale");
    run.post("/lease/validate", json!({"current_path": "/elsewhere", "lease_epoch": 1}))
        .await
        .problem(409, "workspace-epoch-stale");
    let claimed = run.post("/tasks/claim", json!({"agent_id": "a", "lease_epoch": 2})).await.expect(200);
    let again = Lease::of(&claimed).unwrap();
    assert!(again.fence > lease.fence);
    run.say_under(&lease, "complete").await.problem(409, "task-lease-invalid");
    run.say_under(&again, "complete").await.expect(200);
    for status in ["paused", "failed", "completed", "cancelled"] {
        run.tell("reopen").await;
        run.post("/events", json!({"event": "x", "status": status})).await.expect(201);
        let claimed = run.post("/tasks/claim", json!({"agent_id": "a", "lease_epoch": 2})).await.expect(200);
        assert_eq!(claimed["task"], Value::Null, "{status}");
        assert!(text(&claimed["why"]).contains(status));
    }
    run.check().await;
}

#[tokio::test]
async fn a_task_that_fails_comes_back_and_after_its_last_attempt_it_does_not() {
    let (server, _dir) = server().await;
    let run = Run::new(&server.api).await;
    run.tasks(json!([{"id": "one", "task_type": "t", "max_attempts": 2}])).await;
    let mut stream = run.stream(0).await;
    let lease = run.claim("a").await.unwrap();
    let failed = json!({"action": "fail", "lease_token": lease.token, "error": "the first time"});
    let failed = run.say("one", failed).await.expect(200);
    assert_eq!((&failed["task"]["status"], &failed["task"]["attempt"]), (&json!("failed"), &json!(1)));
    assert!(failed["task"]["next_retry_at"].is_string());
    let told = stream.until("context.task.failed").await.json();
    assert_eq!((&told["task_id"], &told["payload"]["error"]), (&json!("one"), &json!("the first time")));
    // It comes back by itself when its time has come.
    let back = stream.until("context.task.requeued").await.json();
    assert_eq!((&back["by"], &back["payload"]["task"]["status"]), (&json!("runtime"), &json!("runnable")));
    let lease = run.claim("a").await.unwrap();
    let failed = run.say_under(&lease, "fail").await.expect(200);
    assert_eq!((&failed["task"]["attempt"], &failed["task"]["next_retry_at"]), (&json!(2), &Value::Null));
    assert_eq!(run.claim("a").await, None);
    // Until a person says so.
    let again = run.say("one", json!({"action": "retry"})).await.expect(200);
    assert_eq!((&again["task"]["status"], &again["task"]["attempt"]), (&json!("runnable"), &json!(0)));
    let lease = run.claim("a").await.unwrap();
    run.say_under(&lease, "complete").await.expect(200);
    run.check().await;
}

#[tokio::test]
async fn runs_of_one_server_do_not_touch_each_other() {
    let (server, _dir) = server().await;
    let runs = join_all((0..2).map(|_| Run::new(&server.api))).await;
    join_all(runs.iter().enumerate().map(|(at, run)| async move {
        for n in 0..20 {
            run.tasks(json!([{"id": format!("t{n}"), "task_type": format!("of {at}")}])).await;
            run.add("add_fact", json!({"id": format!("f{n}"), "text": format!("of {at}")})).await;
        }
    }))
    .await;
    for (at, run) in runs.iter().enumerate() {
        let log = run.check().await;
        assert_eq!(log.len(), 41);
        let other = format!("of {}", 1 - at);
        assert!(!json!(log).to_string().contains(&other));
    }
}

// ---- damage --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_damaged_run_says_so_by_name_and_costs_no_other() {
    const RECORD: &str = "an-objective-whose-record-will-be-damaged";
    const PART: &str = "a-task-whose-part-will-be-damaged";
    const EVENT: &str = "a-payload-whose-event-will-be-damaged";
    let (server, dir) = server().await;
    let api = &server.api;
    let record = Run::make(api, json!({"objective": RECORD})).await;
    let part = Run::new(api).await;
    part.tasks(json!([{"id": "one", "task_type": "t", "payload": {"x": PART}}])).await;
    let event = Run::new(api).await;
    event.post("/events", json!({"event": "deployed", "payload": {"x": EVENT}})).await.expect(201);
    event.tell("deployed again").await;
    let sound = busy(api).await;
    server.stop().await;
    for marker in [RECORD, PART, EVENT] {
        assert!(damage(dir.path(), marker) > 0, "{marker}");
    }
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    api.get("/readyz").await.expect(200);
    let named = |reply: Answer, run: &Run| {
        let detail = text(&reply.problem(503, "thread-unavailable")["detail"]);
        let uuid = run.id.replace("run_", "");
        assert!(detail.contains(&uuid[..13]) && detail.contains(&uuid[19..]), "{detail}");
    };
    let record = record.on(api);
    for rest in ["", "/blackboard", "/tasks", "/events", "/replay", "/export", "/ledger", "/checkpoints"] {
        named(api.get(&record.at(rest)).await, &record);
    }
    named(record.post("/events", json!({"event": "x"})).await, &record);
    // What of the others can be read is read; what cannot is never read wrong.
    let part = part.on(api);
    for rest in ["", "/blackboard", "/tasks", "/tasks/one", "/replay"] {
        named(api.get(&part.at(rest)).await, &part);
    }
    named(part.post("/tasks/claim", json!({"agent_id": "a"})).await, &part);
    let event = event.on(api);
    for rest in ["/events", "/replay"] {
        named(api.get(&event.at(rest)).await, &event);
    }
    assert_eq!(event.show().await["status"], "queued");
    let lines =
        api.try_send(api.request(Method::GET, &event.at("/export"))).await.map(|reply| reply.body).unwrap_or_default();
    let refused = import(api, lines).await;
    assert!([400, 422].contains(&refused.status), "an export that was cut has no end");
    // A list says which of them it cannot show.
    let list = api.get("/v1/runs").await.expect(200);
    let listed: BTreeSet<_> = list["data"].as_array().unwrap().iter().map(|run| text(&run["run_id"])).collect();
    assert_eq!(listed, [&part, &event, &sound].map(|run| run.id.clone()).into());
    assert_eq!(list["unavailable"][0]["id"], *record.id, "{list}");
    assert!(text(&list["unavailable"][0]["detail"]).contains("checksum"));
    sound.on(api).check().await;
    Run::new(api).await.check().await;
    // They can still be removed.
    for run in [&record, &part, &event] {
        api.delete(&run.at("")).await.expect(204);
        api.get(&run.at("")).await.problem(404, "not-found");
    }
    server.stop().await;
    let server = Server::start(dir.path()).await;
    assert_eq!(server.api.list("/v1/runs", 500).await.len(), 2);
}
