//! One of everything that a tenant can have, with texts that are found again wherever they turn up.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    support::{Api, LOST, Server, text},
    tenants,
};

/// What a tenant has.
pub struct Estate {
    pub tenant: String,
    /// In every text that the tenant ever said.
    pub mark: String,
    /// A key with all scopes, one that may only read, and one that was revoked.
    pub admin: Api,
    pub reads: Api,
    pub revoked: Api,
    /// By kind.
    pub things: BTreeMap<&'static str, String>,
    pub threads: Vec<String>,
    pub runs: Vec<String>,
    /// A create that was accepted: its key, its body, its reply.
    pub once: (String, Value, Vec<u8>),
}

/// Variables of a server on which there can be one of everything.
pub fn env<'a>(demo: &'a Path, root: &'a Path) -> [(&'static str, &'a str); 3] {
    [
        ("RADDLE_LOG", "debug"),
        ("RADDLE_TOOLS_DEMO_DIR", demo.to_str().unwrap()),
        ("RADDLE_WORKSPACES_ROOT", root.to_str().unwrap()),
    ]
}

/// The half before the crash that makes an effect uncertain.
pub struct Begun {
    tenant: String,
    mark: String,
    keys: [Value; 3],
    uncertain: Vec<String>,
    run: String,
}

pub async fn begin(server: &Server, (tenant, mark): (&str, &str), demo: &Path) -> Begun {
    tenants::tenant(server, tenant, json!({ "name": format!("name-{mark}") })).await;
    let mut keys = Vec::new();
    for scopes in [&["admin"][..], &["read"], &["admin"]] {
        let body = json!({ "scopes": scopes, "name": format!("key-{mark}") });
        let path = format!("/v1/admin/tenants/{tenant}/keys");
        keys.push(tenants::operator(server).post(&path, body).await.expect(201));
    }
    let keys: [Value; 3] = keys.try_into().unwrap();
    let api = server.api.with_key(&text(&keys[0]["key"]));
    let run = json!({
        "objective": format!("objective-{mark}"), "run_type": format!("label-{mark}"),
        "source_client": format!("label-{mark}"), "source_metadata": { "note": format!("metadata-{mark}") },
        "workspace": { "workspace_id": format!("label-{mark}") },
        "steps": [{ "step_id": format!("step-{mark}"), "title": format!("step-{mark}"), "status": "pending" }],
    });
    let run = text(&api.post("/v1/runs", run).await.expect(201)["run_id"]);
    let mut uncertain = Vec::new();
    for n in 0..2 {
        let thread = api.create(json!({ "auto_approve": true, "title": format!("title-{mark}") })).await;
        let name = format!("sent-{n}-{mark}");
        let call = json!({ "name": name, "line": format!("line-{mark}"), "then_wait_ms": 600_000 });
        api.start(&thread, &format!("@tool demo_append {call}")).await;
        let acts = async {
            while !demo.join(&name).exists() {
                api.get("/healthz").await;
            }
        };
        timeout(LOST, acts).await.expect("the tool does not act");
        uncertain.push(thread);
    }
    Begun { tenant: tenant.to_owned(), mark: mark.to_owned(), keys, uncertain, run }
}

/// Everything else, on the server after the crash.
pub async fn finish(server: &Server, begun: Begun) -> Estate {
    let Begun { tenant, mark, keys, uncertain, run } = begun;
    let [admin, reads, revoked] = std::array::from_fn(|at| server.api.with_key(&text(&keys[at]["key"])));
    let path = format!("/v1/admin/tenants/{tenant}/keys/{}", text(&keys[2]["key_id"]));
    tenants::operator(server).delete(&path).await.expect(204);
    let spare = tenants::key(server, &tenant, &["read"]).await;
    let api = &admin;
    let say = |what: &str| format!("{what}-{mark}");
    let mut things = BTreeMap::from([
        ("tenant", tenant.clone()),
        ("key", text(&spare["key_id"])),
        ("run", run.clone()),
        ("label", say("label")),
        ("checkpoint", say("checkpoint")),
        ("task", say("task")),
    ]);
    let mut threads = uncertain.clone();

    // What is the run's own.
    let at = |rest: &str| format!("/v1/runs/{run}{rest}");
    let tasks = json!({ "tasks": [
        { "id": say("task"), "task_type": say("label"), "workflow_id": say("label"), "payload": { "note": say("payload") } },
        { "id": say("second"), "task_type": say("label"), "payload": { "note": say("payload") } },
        { "id": say("free"), "task_type": say("label") },
    ] });
    api.post(&at("/tasks"), tasks).await.expect(201);
    for op in ["add_fact", "add_decision", "add_open_question"] {
        api.post(&at("/blackboard/patches"), json!({ "op": op, "payload": { "text": say("board") } }))
            .await
            .expect(201);
    }
    api.post(&at("/events"), json!({ "event": "deployed", "payload": { "note": say("event") } })).await.expect(201);
    let saved = api.post(&at("/checkpoints"), json!({ "reason": say("reason") })).await.expect(201);
    things.insert("run_checkpoint", text(&saved["checkpoint_id"]));
    // Another, whose id is not looked for.
    let other = text(&api.post("/v1/runs", json!({ "objective": say("objective") })).await.expect(201)["run_id"]);

    // Files, and an effect that the run's ledger knows.
    let worker = json!({ "run_id": run, "auto_approve": true, "workspace": "desk", "title": say("title") });
    let worker = api.create(worker).await;
    let write = |name: &str| format!("@tool write_file {}", json!({ "path": name, "content": say("content") }));
    api.start(&worker, &format!("{}\n{}\n@say {}", write("a"), write("b"), say("said"))).await;
    api.rest(&worker).await;
    let mutations = async {
        loop {
            let found = api.list(&at("/mutations"), 500).await;
            if found.len() >= 2 {
                return found;
            }
        }
    };
    let mutations = timeout(LOST, mutations).await.expect("the ledger stays empty");
    things.insert("event", text(&mutations[0]["event_id"]));
    for _ in 0..2 {
        let ask = json!({ "event_ids": [say("evt")], "confirm": "rollback", "policy_ack": "allow_rollback_execution" });
        api.post(&at("/rollback-execute"), ask).await.problem(409, "rollback-blocked");
    }

    // What was approved for ever, and what may be.
    let append =
        |n: usize| format!("@tool demo_append {}", json!({ "name": say("file"), "line": format!("{n}-{mark}") }));
    let pending = async |thread: &str, what: &str| {
        let waits = async {
            loop {
                let path = format!("/v1/{what}?status=pending&thread={thread}");
                if let Some(found) = api.get(&path).await.expect(200)["data"].get(0) {
                    return found.clone();
                }
            }
        };
        timeout(LOST, waits).await.expect("nobody is asked")
    };
    let asks = json!({ "title": say("title") });
    for decision in [Some("approved_always"), None, None] {
        let thread = api.create(asks.clone()).await;
        api.start(&thread, &append(threads.len())).await;
        let approval = text(&pending(&thread, "approvals").await["id"]);
        if let Some(decision) = decision {
            api.post(&format!("/v1/approvals/{approval}"), json!({ "decision": decision })).await.expect(200);
            api.rest(&thread).await;
        }
        things.insert("approval", approval);
        threads.push(thread);
    }
    things.insert("rule", text(&api.get("/v1/policy/permits").await.expect(200)["data"][0]["rule"]));
    for _ in 0..2 {
        let thread = api.create(asks.clone()).await;
        api.start(&thread, &format!("@ask {}", say("question"))).await;
        things.insert("question", text(&pending(&thread, "questions").await["id"]));
        threads.push(thread);
    }
    for thread in &uncertain {
        let waits = async {
            loop {
                let path = format!("/v1/effects?status=uncertain&thread={thread}");
                if let Some(found) = api.get(&path).await.expect(200)["data"].get(0) {
                    return text(&found["operation_id"]);
                }
            }
        };
        things.insert("operation", timeout(LOST, waits).await.expect("nothing is uncertain"));
    }

    // A thread with a past, a present and a future.
    let main = json!({
        "title": say("title"), "system_prompt": say("system"), "metadata": { "note": say("metadata") },
        "auto_approve": true, "policy": { "rules": [{ "name": say("rule"), "tool": "demo_wipe", "action": "ask", "reason": say("reason") }] },
    });
    let thread = api.create(main).await;
    let put = json!({ "name": say("kept"), "text": say("text") });
    api.start(
        &thread,
        &format!("{}\n@think {}\n@tool demo_put {put}\n@say {}", say("prompt"), say("thought"), say("said")),
    )
    .await;
    api.rest(&thread).await;
    api.post(&format!("/v1/threads/{thread}/checkpoints"), json!({ "name": say("checkpoint") })).await.expect(201);
    threads.push(text(&api.post(&format!("/v1/threads/{thread}/fork"), json!({})).await.expect(201)["id"]));
    things.insert("turn", api.start(&thread, &format!("@say {}\n@wait 36000000", say("said"))).await);
    for _ in 0..2 {
        things.insert("input", api.queue(&thread, &say("queued")).await);
    }
    let runs = async {
        loop {
            let items = api.list(&format!("/v1/threads/{thread}/items"), 500).await;
            let last = items.last().unwrap();
            if last["detail"].as_str().is_some_and(|detail| detail.ends_with(&say("said")))
                && last["turn_id"] == *things["turn"]
            {
                return text(&items[0]["id"]);
            }
        }
    };
    let item = timeout(LOST, runs).await.expect("the turn says nothing");
    things.insert("item", item);
    things.insert("thread", thread.clone());
    let idle = api.create(json!({ "title": say("title") })).await;
    things.insert("idle", idle.clone());

    for n in 0..2 {
        let payload = json!({ "thread_id": idle, "prompt": say("prompt") });
        let work = json!({ "name": say("work"), "kind": "turn", "payload": payload });
        let mut job = work.clone();
        job["run_at"] = json!("2199-01-01T00:00:00Z");
        things.insert("job", text(&api.post("/v1/jobs", job).await.expect(201)["id"]));
        let schedule = json!({ "name": format!("{n}-{mark}"), "at": "2199-01-01T00:00:00Z", "job": work });
        things.insert("schedule", text(&api.post("/v1/schedules", schedule).await.expect(201)["id"]));
    }
    let policy =
        json!({ "rules": [{ "name": say("rule"), "tool": "demo_send", "action": "ask", "reason": say("reason") }] });
    api.send(api.request(reqwest::Method::PUT, "/v1/policy").json(&policy)).await.expect(200);
    let rules = json!({ "rules": [{ "intent": say("intent"), "model": "scripted" }] });
    let routed = api.send(api.request(reqwest::Method::PUT, "/v1/routing-rules").json(&rules)).await;
    assert_eq!(routed.status, 200, "{}", routed.json());

    let (key, body) = (say("once"), json!({ "title": "as anybody may say" }));
    let made = api.send(api.keyed("/v1/threads", &key, &body)).await;
    threads.push(text(&made.expect(201)["id"]));
    let claim = json!({ "agent_id": say("agent"), "task_id": say("task"), "lease_ms": 300_000 });
    let claimed = api.post(&at("/tasks/claim"), claim).await.expect(200);
    things.insert("lease_token", text(&claimed["task"]["lease"]["token"]));
    let export = api.get(&format!("/v1/runs/{other}/export")).await;
    things.insert("export", String::from_utf8(export.body).unwrap());
    things.insert("other_run", other.clone());
    things.insert("worker", worker.clone());
    threads.extend([worker, thread, idle]);
    Estate {
        tenant,
        mark,
        admin,
        reads,
        revoked,
        things,
        threads,
        runs: vec![run, other],
        once: (key, body, made.body),
    }
}
