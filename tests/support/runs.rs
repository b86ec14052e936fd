//! Context runs over HTTP: what tests of them share. Nothing here shares code with the server.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Answer, Api, Stream, text};

/// Every route, and a body that it takes where it takes JSON.
pub const ROUTES: &[(&str, &str, Option<&str>)] = &[
    ("POST", "/v1/runs", Some(r#"{"objective": "o"}"#)),
    ("GET", "/v1/runs", None),
    ("GET", "/v1/runs/stream", None),
    ("POST", "/v1/runs/import", None),
    ("GET", "/v1/runs/{run}", None),
    ("PUT", "/v1/runs/{run}", Some(r#"{"objective": "o", "status": "queued", "revision": 1}"#)),
    ("DELETE", "/v1/runs/{run}", Some("{}")),
    ("POST", "/v1/runs/{run}/events", Some(r#"{"event": "deployed"}"#)),
    ("GET", "/v1/runs/{run}/events", None),
    ("POST", "/v1/runs/{run}/todos/sync", Some(r#"{"todos": [{"content": "one"}]}"#)),
    ("POST", "/v1/runs/{run}/driver/next", Some("{}")),
    ("POST", "/v1/runs/{run}/lease/validate", Some(r#"{"current_path": "/w"}"#)),
    ("GET", "/v1/runs/{run}/blackboard", None),
    ("POST", "/v1/runs/{run}/blackboard/patches", Some(r#"{"op": "add_fact", "payload": {"text": "t"}}"#)),
    ("POST", "/v1/runs/{run}/tasks", Some(r#"{"tasks": [{"task_type": "t"}]}"#)),
    ("GET", "/v1/runs/{run}/tasks", None),
    ("POST", "/v1/runs/{run}/tasks/claim", Some(r#"{"agent_id": "a"}"#)),
    ("GET", "/v1/runs/{run}/tasks/{task}", None),
    ("POST", "/v1/runs/{run}/tasks/{task}/transition", Some(r#"{"action": "status", "status": "blocked"}"#)),
    ("POST", "/v1/runs/{run}/checkpoints", Some("{}")),
    ("GET", "/v1/runs/{run}/checkpoints", None),
    ("GET", "/v1/runs/{run}/checkpoints/{checkpoint}", None),
    ("DELETE", "/v1/runs/{run}/checkpoints/{checkpoint}", Some("{}")),
    ("POST", "/v1/runs/{run}/checkpoints/{checkpoint}/restore", Some("{}")),
    ("GET", "/v1/runs/{run}/replay", None),
    ("GET", "/v1/runs/{run}/export", None),
    ("GET", "/v1/runs/{run}/ledger", None),
    ("GET", "/v1/runs/{run}/mutations", None),
    ("GET", "/v1/runs/{run}/rollback-preview", None),
    ("POST", "/v1/runs/{run}/rollback-execute", Some(r#"{"event_ids": ["evt_1"], "confirm": "rollback"}"#)),
    ("GET", "/v1/runs/{run}/rollback-history", None),
];

/// The path of a route, about these.
pub fn filled(path: &str, run: &str, task: &str, checkpoint: &str) -> String {
    path.replace("{run}", run).replace("{task}", task).replace("{checkpoint}", checkpoint)
}

pub fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// A run on a server.
#[derive(Clone)]
pub struct Run {
    pub api: Api,
    pub id: String,
}

/// The right to speak of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub task: String,
    pub token: String,
    pub fence: u64,
    pub rev: u64,
}

impl Lease {
    /// What a claim was answered with; none where nothing could be claimed.
    pub fn of(claimed: &Value) -> Option<Self> {
        let task = &claimed["task"];
        if task.is_null() {
            assert!(claimed["why"].is_string(), "{claimed}");
            return None;
        }
        let lease = &task["lease"];
        Some(Self {
            task: text(&task["id"]),
            token: text(&lease["token"]),
            fence: lease["fence"].as_u64().unwrap(),
            rev: task["task_rev"].as_u64().unwrap(),
        })
    }
}

impl Run {
    pub async fn make(api: &Api, body: Value) -> Self {
        let id = text(&api.post("/v1/runs", body).await.expect(201)["run_id"]);
        Self { api: api.clone(), id }
    }

    pub async fn new(api: &Api) -> Self {
        Self::make(api, json!({"objective": "an objective"})).await
    }

    /// The same run on another server.
    pub fn on(&self, api: &Api) -> Self {
        Self { api: api.clone(), id: self.id.clone() }
    }

    pub fn at(&self, rest: &str) -> String {
        format!("/v1/runs/{}{rest}", self.id)
    }

    pub async fn get(&self, rest: &str) -> Value {
        self.api.get(&self.at(rest)).await.expect(200)
    }

    pub async fn post(&self, rest: &str, body: Value) -> Answer {
        self.api.post(&self.at(rest), body).await
    }

    pub fn keyed(&self, rest: &str, key: &str, body: &Value) -> RequestBuilder {
        self.api.keyed(&self.at(rest), key, body)
    }

    /// The run with its tasks.
    pub async fn show(&self) -> Value {
        self.get("").await
    }

    pub async fn revision(&self) -> u64 {
        self.show().await["revision"].as_u64().unwrap()
    }

    /// Says that something happened.
    pub async fn tell(&self, event: &str) -> Value {
        self.post("/events", json!({ "event": event })).await.expect(201)
    }

    /// Makes tasks of these bodies.
    pub async fn tasks(&self, tasks: Value) -> Vec<Value> {
        let made = self.post("/tasks", json!({ "tasks": tasks })).await.expect(201);
        made["tasks"].as_array().unwrap().clone()
    }

    pub async fn task(&self, id: &str) -> Value {
        self.get(&format!("/tasks/{id}")).await
    }

    pub async fn claim(&self, agent: &str) -> Option<Lease> {
        Lease::of(&self.post("/tasks/claim", json!({"agent_id": agent, "lease_ms": 300_000})).await.expect(200))
    }

    /// Says something of a task.
    pub async fn say(&self, task: &str, body: Value) -> Answer {
        self.post(&format!("/tasks/{task}/transition"), body).await
    }

    /// Says something of a task under its lease.
    pub async fn say_under(&self, lease: &Lease, action: &str) -> Answer {
        self.say(&lease.task, json!({"action": action, "lease_token": lease.token})).await
    }

    pub async fn add(&self, op: &str, payload: Value) -> Value {
        self.post("/blackboard/patches", json!({"op": op, "payload": payload})).await.expect(201)["entry"].clone()
    }

    /// The log, in pages.
    pub async fn log(&self) -> Vec<Value> {
        let (mut log, mut after): (Vec<Value>, u64) = (Vec::new(), 0);
        loop {
            let page = self.get(&format!("/events?limit=500&after={after}")).await;
            let events = page["data"].as_array().unwrap();
            log.extend(events.iter().cloned());
            match events.last() {
                Some(last) => after = last["seq"].as_u64().unwrap(),
                None => return log,
            }
        }
    }

    pub async fn stream(&self, after: u64) -> Stream {
        Stream::open(self.api.request(Method::GET, &self.at(&format!("/events?after={after}")))).await
    }

    /// The lines of an export.
    pub async fn export(&self) -> Vec<u8> {
        let exported = self.api.get(&self.at("/export")).await;
        assert_eq!((exported.status, exported.header("content-type")), (200, Some("application/x-ndjson")));
        exported.body
    }

    /// Asserts that what is kept, what the log says by the reading of these tests, and what the server makes of the
    /// log are the same. Returns the log.
    pub async fn check(&self) -> Vec<Value> {
        let log = self.log().await;
        let fold = Fold::of(&log);
        let shown = self.show().await;
        assert_eq!(fold.run(), shown);
        let board = self.get("/blackboard").await;
        assert_eq!(fold.board(), board);
        let replayed = self.get("/replay").await;
        assert_eq!(replayed["drift"]["mismatch"], false, "{}", replayed["drift"]);
        assert_eq!(replayed["drift"]["differences"], json!([]));
        assert_eq!((&replayed["upto_seq"], &replayed["events_applied"]), (&json!(log.len()), &json!(log.len())));
        log
    }
}

/// Makes a run of lines.
pub async fn import(api: &Api, lines: Vec<u8>) -> Answer {
    api.send(api.request(Method::POST, "/v1/runs/import").body(lines)).await
}

pub fn names(log: &[Value]) -> Vec<&str> {
    log.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

/// What the log of a run says, by the page about events and by nothing of the server's own; on the way it checks what
/// holds for the log of every run.
#[derive(Debug, Clone, Default)]
pub struct Fold {
    run: Value,
    /// In the order in which they were made.
    tasks: Vec<Value>,
    entries: Vec<Value>,
    summaries: BTreeMap<String, String>,
    seq: u64,
    revision: u64,
    /// The fence of the last lease of any task.
    fence: u64,
    /// Tasks that were completed.
    pub done: BTreeSet<String>,
    /// How often each task was claimed.
    pub claims: BTreeMap<String, u64>,
}

impl Fold {
    pub fn of(log: &[Value]) -> Self {
        let mut fold = Self::default();
        log.iter().for_each(|event| fold.apply(event));
        fold
    }

    fn apply(&mut self, event: &Value) {
        let name = event["event"].as_str().unwrap();
        assert_eq!((&event["seq"], &event["prev"]), (&json!(self.seq + 1), &json!(self.seq)), "{event}");
        self.seq += 1;
        assert_eq!(event["event_id"], format!("evt_{}", self.seq));
        let revision = event["revision"].as_u64().unwrap();
        assert!(revision == self.revision || revision == self.revision + 1, "{event}");
        self.revision = revision;
        if event["run"].is_object() {
            self.run = event["run"].clone();
        }
        assert_eq!((&event["run_id"], &event["status"]), (&self.run["run_id"], &self.run["status"]), "{event}");
        self.run["revision"] = json!(revision);
        self.run["last_event_seq"] = json!(self.seq);
        self.run["updated_at"] = event["ts"].clone();
        let payload = &event["payload"];
        if name.starts_with("context.task.") {
            assert_eq!(event["task_id"], payload["task"]["id"]);
            self.take_task(name, &payload["task"], event);
        } else if let Some(entry) = payload.get("entry").filter(|_| name.starts_with("context.")) {
            match self.entries.iter_mut().find(|known| known["id"] == entry["id"]) {
                None => {
                    assert!(payload["op"].as_str().unwrap().starts_with("add_"), "{event}");
                    assert_eq!(entry["seq"], self.seq);
                    self.entries.push(entry.clone());
                }
                Some(known) => {
                    assert!(!payload["op"].as_str().unwrap().starts_with("add_"), "added twice: {event}");
                    *known = entry.clone();
                }
            }
        } else if name == "context.blackboard.patched" {
            let op = text(&payload["op"]);
            self.summaries.insert(op.strip_prefix("set_").unwrap().to_owned(), text(&payload["text"]));
        }
    }

    fn take_task(&mut self, name: &str, task: &Value, event: &Value) {
        let id = text(&task["id"]);
        let held = task["lease"].is_object();
        assert_eq!(held, task["status"] == "in_progress", "leased while it is in progress, and only then: {event}");
        assert!(task["lease"].get("token").is_none(), "a token in the log: {event}");
        let known = self.tasks.iter_mut().find(|known| known["id"] == task["id"]);
        let Some(known) = known else {
            assert_eq!(name, "context.task.created", "{event}");
            self.tasks.push(task.clone());
            return;
        };
        assert_ne!(name, "context.task.created", "made twice: {event}");
        assert_ne!(known["status"], "done", "a task that is done stays so: {event}");
        assert_eq!(task["task_rev"], known["task_rev"].as_u64().unwrap() + 1, "{event}");
        match name {
            "context.task.claimed" => {
                let fence = task["lease"]["fence"].as_u64().unwrap();
                assert!(fence > self.fence, "a fence that does not grow: {event}");
                self.fence = fence;
                assert_ne!(known["status"], "in_progress", "claimed from under its holder: {event}");
                *self.claims.entry(id).or_default() += 1;
            }
            "context.task.heartbeat" => assert_eq!(task["lease"]["fence"], known["lease"]["fence"], "{event}"),
            "context.task.completed" => {
                assert_eq!(known["status"], "in_progress", "{event}");
                assert!(self.done.insert(id), "completed twice: {event}");
            }
            _ => {}
        }
        *known = task.clone();
    }

    /// As a GET shows it.
    pub fn run(&self) -> Value {
        let mut run = self.run.clone();
        let count = |status: &str| self.tasks.iter().filter(|task| task["status"] == status).count();
        let statuses = ["pending", "runnable", "in_progress", "blocked", "done", "failed", "cancelled"];
        run["task_counts"] = statuses.iter().map(|status| ((*status).to_owned(), json!(count(status)))).collect();
        run["tasks"] = json!(self.tasks);
        run
    }

    pub fn task(&self, id: &str) -> &Value {
        self.tasks.iter().find(|task| task["id"] == id).unwrap_or_else(|| panic!("no task {id}"))
    }

    pub fn tasks(&self) -> &[Value] {
        &self.tasks
    }

    fn board(&self) -> Value {
        let of = |kind: &str| -> Vec<&Value> { self.entries.iter().filter(|entry| entry["kind"] == kind).collect() };
        let summary = |name: &str| self.summaries.get(name).cloned().unwrap_or_default();
        json!({
            "facts": of("fact"), "decisions": of("decision"), "open_questions": of("open_question"),
            "artifacts": of("artifact"), "tasks": self.tasks, "revision": self.revision,
            "summaries": {
                "rolling": summary("rolling_summary"), "latest_context_pack": summary("latest_context_pack"),
            },
        })
    }
}
