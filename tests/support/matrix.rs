//! The OpenAPI document as a list of requests: what every route takes, by rows of names, and what a row is missing for.
//!
//! A route is covered by rule: an id in its path, its query or its body is known by its name. Who adds a route with a
//! name that is not here, or with a body, adds a row; [`gaps`] says which.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Map, Value, json};

/// What stands in a place of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Means {
    /// Something of a tenant's that the server looks for, by its name among the things of [`super::estate`].
    Thing(&'static str),
    /// Several of them.
    Things(&'static str),
    /// A place in a list.
    Cursor,
    /// A text of the caller's own, which the server keeps or compares, and looks nothing up by.
    Label,
    /// Nothing that is anybody's.
    Plain,
}

use Means::{Cursor, Label, Plain, Thing, Things};

/// Parameters in paths.
pub const PATHS: &[(&str, Means)] = &[
    ("thread", Thing("thread")),
    ("turn", Thing("turn")),
    ("input", Thing("input")),
    ("name", Thing("checkpoint")),
    ("approval", Thing("approval")),
    ("question", Thing("question")),
    ("operation", Thing("operation")),
    ("rule", Thing("rule")),
    ("job", Thing("job")),
    ("schedule", Thing("schedule")),
    ("run", Thing("run")),
    ("task", Thing("task")),
    ("checkpoint", Thing("run_checkpoint")),
    ("tenant", Thing("tenant")),
    ("key_id", Thing("key")),
];

/// Parameters in queries that are texts; numbers and words of a fixed list are nobody's.
pub const QUERIES: &[(&str, Means)] = &[
    ("thread", Thing("thread")),
    ("threads", Thing("thread")),
    ("turn", Thing("turn")),
    ("runs", Thing("run")),
    ("from_checkpoint", Thing("run_checkpoint")),
    ("cursor", Cursor),
    ("after", Cursor),
    ("q", Label),
    ("source", Label),
    ("workspace", Label),
    ("run_type", Label),
    ("task_type", Label),
    ("workflow_id", Label),
    ("since", Plain),
    ("until", Plain),
];

/// Headers.
pub const HEADERS: &[(&str, Means)] = &[
    ("Accept", Plain),
    ("Idempotency-Key", Label),
    ("If-Match", Plain),
    // A number where `after` is one.
    ("Last-Event-ID", Cursor),
];

/// Fields of bodies, at any depth, whose names look as if they named something. A row with the field above it goes
/// before one without.
pub const FIELDS: &[(&str, Means)] = &[
    ("thread_id", Thing("thread")),
    ("run_id", Thing("run")),
    ("task_id", Thing("task")),
    // Of a job: it is looked for when the job begins, in the run that its thread works for.
    ("task.task_id", Label),
    ("parent_task_id", Thing("task")),
    ("depends_on_task_ids", Things("task")),
    ("expected_turn", Thing("turn")),
    ("before_turn", Thing("turn")),
    ("at_item", Thing("item")),
    ("checkpoint", Thing("checkpoint")),
    ("event_ids", Things("event")),
    ("lease_token", Thing("lease_token")),
    ("source_event_id", Label),
    ("id", Label),
    ("tenant", Label),
    ("agent_id", Label),
    ("artifact_ids", Label),
    ("decision_ids", Label),
    ("workflow_id", Label),
    ("workflow_node_id", Label),
    ("workspace_id", Label),
    ("source_run_id", Label),
    ("source_session_id", Label),
    ("step_id", Label),
    ("model_id", Label),
    ("run_type", Label),
    ("task_type", Label),
    ("event", Label),
    ("input_summary", Label),
    ("token", Label),
    ("token_sha256", Label),
    ("task_counts", Plain),
];

/// A body that each route takes which takes one. `{thing}` is one of whoever asks.
pub const BODIES: &[(&str, &str)] = &[
    ("POST /v1/admin/tenants", r#"{"id": "another"}"#),
    ("PATCH /v1/admin/tenants/{tenant}", r#"{"name": "renamed"}"#),
    ("POST /v1/admin/tenants/{tenant}/keys", r#"{"scopes": ["read"]}"#),
    // Nobody's: refused whoever asks.
    ("POST /v1/admin/tenants/{tenant}/import", "{\"no\": \"export\"}\n"),
    ("POST /v1/approvals/{approval}", r#"{"decision": "denied"}"#),
    ("POST /v1/questions/{question}", r#"{"answer": "so"}"#),
    ("POST /v1/effects/{operation}", r#"{"resolution": "abort"}"#),
    ("PUT /v1/policy", r#"{"ask": "on_request"}"#),
    ("POST /v1/policy/check", r#"{"tool": "demo_append", "arguments": {"name": "f", "line": "x"}}"#),
    ("PUT /v1/routing-rules", r#"{"rules": []}"#),
    (
        "POST /v1/jobs",
        r#"{"name": "n", "kind": "turn", "run_at": "2199-01-01T00:00:00Z",
            "payload": {"thread_id": "{worker}", "prompt": "p", "task": {"run_id": "{run}"}}}"#,
    ),
    ("POST /v1/jobs/{job}/cancel", "{}"),
    ("POST /v1/jobs/{job}/pause", "{}"),
    ("POST /v1/jobs/{job}/resume", "{}"),
    ("POST /v1/jobs/{job}/retry", "{}"),
    (
        "POST /v1/schedules",
        r#"{"at": "2199-01-01T00:00:00Z",
            "job": {"name": "n", "kind": "turn", "payload": {"thread_id": "{worker}", "prompt": "p", "task": {"run_id": "{run}"}}}}"#,
    ),
    (
        "PATCH /v1/schedules/{schedule}",
        r#"{"job": {"name": "n", "kind": "turn", "payload": {"thread_id": "{worker}", "prompt": "p", "task": {"run_id": "{run}"}}}}"#,
    ),
    ("POST /v1/runs", r#"{"objective": "o", "steps": [{"step_id": "s", "title": "t", "status": "pending"}]}"#),
    ("POST /v1/runs/import", "{export}"),
    (
        "PUT /v1/runs/{run}",
        r#"{"objective": "o", "status": "running", "revision": 1, "steps": [{"step_id": "s", "title": "t",
            "status": "pending"}], "tasks": [{"id": "a", "task_type": "t", "payload": {}, "status": "in_progress",
            "depends_on_task_ids": [], "decision_ids": [], "artifact_ids": [], "priority": 0, "attempt": 0,
            "max_attempts": 3, "task_rev": 1, "created_at": "2026-01-01T00:00:00Z", "lease": {"owner": "a",
            "expires_at": "2026-01-01T00:00:00Z", "fence": 1, "lease_epoch": 0, "token_sha256": "a"},
            "updated_at": "2026-01-01T00:00:00Z"}]}"#,
    ),
    ("POST /v1/runs/{run}/blackboard/patches", r#"{"op": "add_fact", "payload": {"text": "t"}}"#),
    ("POST /v1/runs/{run}/checkpoints", "{}"),
    ("POST /v1/runs/{run}/driver/next", r#"{"dry_run": true}"#),
    ("POST /v1/runs/{run}/events", r#"{"event": "deployed"}"#),
    ("POST /v1/runs/{run}/lease/validate", r#"{"current_path": "/w"}"#),
    (
        "POST /v1/runs/{run}/rollback-execute",
        r#"{"event_ids": ["evt_9999"], "confirm": "rollback", "policy_ack": "allow_rollback_execution"}"#,
    ),
    ("POST /v1/runs/{run}/tasks", r#"{"tasks": [{"task_type": "t", "status": "blocked"}]}"#),
    ("POST /v1/runs/{run}/tasks/claim", r#"{"agent_id": "a", "task_type": "nobody has it"}"#),
    ("POST /v1/runs/{run}/tasks/{task}/transition", r#"{"action": "heartbeat"}"#),
    ("POST /v1/runs/{run}/todos/sync", r#"{"todos": [{"content": "one"}]}"#),
    ("POST /v1/threads", "{}"),
    ("PATCH /v1/threads/{thread}", r#"{"mode": "m"}"#),
    ("POST /v1/threads/{thread}/checkpoints", r#"{"name": "c2"}"#),
    ("POST /v1/threads/{thread}/checkpoints/{name}/restore", "{}"),
    ("POST /v1/threads/{thread}/compact", "{}"),
    ("POST /v1/threads/{thread}/edit", r#"{"prompt": "p"}"#),
    ("POST /v1/threads/{thread}/fork", "{}"),
    ("PATCH /v1/threads/{thread}/inbox/{input}", r#"{"position": 0}"#),
    ("POST /v1/threads/{thread}/turns", r#"{"prompt": "p", "delivery": "queue"}"#),
    ("POST /v1/threads/{thread}/turns/{turn}/interrupt", "{}"),
    ("POST /v1/threads/{thread}/turns/{turn}/steer", r#"{"prompt": "p"}"#),
];

/// What stands in objects that the document says nothing of: the schemas that it describes them by, and fields that no
/// schema has.
pub const OPEN_OBJECTS: &[(&str, &str, &[&str])] = &[
    ("CreateJob", "payload", &["TurnWork", "CommandWork", "WebhookWork"]),
    ("NewTemplate", "payload", &["TurnWork", "CommandWork", "WebhookWork"]),
    ("PatchBoard", "payload", &["BoardEntry"]),
];

/// What a tenant's administrator may do of what is the operator's.
pub const KEEPERS: &[&str] = &[
    "GET /v1/admin/tenants/{tenant}",
    "GET /v1/admin/tenants/{tenant}/audit",
    "GET /v1/admin/tenants/{tenant}/keys",
    "GET /v1/admin/tenants/{tenant}/usage",
    "POST /v1/admin/tenants/{tenant}/export",
    "POST /v1/admin/tenants/{tenant}/keys",
    "DELETE /v1/admin/tenants/{tenant}/keys/{key_id}",
];

/// The rows, to be held against a document.
#[derive(Clone)]
pub struct Rows {
    pub paths: BTreeMap<&'static str, Means>,
    pub queries: BTreeMap<&'static str, Means>,
    pub headers: BTreeMap<&'static str, Means>,
    pub fields: BTreeMap<&'static str, Means>,
    pub bodies: BTreeMap<&'static str, &'static str>,
}

impl Rows {
    pub fn all() -> Self {
        let of = |rows: &[(&'static str, Means)]| rows.iter().copied().collect();
        Self {
            paths: of(PATHS),
            queries: of(QUERIES),
            headers: of(HEADERS),
            fields: of(FIELDS),
            bodies: BODIES.iter().copied().collect(),
        }
    }

    pub fn field(&self, field: &Field) -> Option<Means> {
        let mut above = field.way.iter().rev().skip(1).filter(|step| *step != "0");
        let whole = above.next().map(|above| format!("{above}.{}", field.name));
        whole.and_then(|whole| self.fields.get(&*whole)).or_else(|| self.fields.get(&*field.name)).copied()
    }
}

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    Nothing,
    /// A key of a tenant, with this scope.
    Scope(&'static str),
    Operator,
    /// The operator, or who administers the tenant.
    Keeper,
}

/// A method on a path.
#[derive(Debug, Clone)]
pub struct Operation {
    pub method: Method,
    pub path: String,
    /// Where it stands, its name, its schema.
    pub params: Vec<(String, String, Value)>,
    /// Its type, and its schema.
    pub body: Option<(String, Value)>,
    pub statuses: BTreeSet<u16>,
    pub asks: Asks,
    pub streams: bool,
}

impl Operation {
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn of(&self, place: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.params.iter().filter(move |(at, ..)| at == place).map(|(_, name, schema)| (&**name, schema))
    }

    /// Names of the path's parameters, as the path has them.
    pub fn path_names(&self) -> Vec<&str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect()
    }

    pub fn is_json(&self) -> bool {
        self.body.as_ref().is_some_and(|(kind, _)| kind == "application/json")
    }
}

const SCOPES: [&str; 4] = ["read", "write", "approve", "admin"];

/// Every operation of a document.
pub fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let params = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let params = params
                .iter()
                .map(|param| (text(&param["in"]), text(&param["name"]), param["schema"].clone()))
                .collect();
            let content = operation["requestBody"]["content"].as_object();
            let body = content.and_then(|content| content.iter().next());
            let body = body.map(|(kind, content)| (kind.clone(), content["schema"].clone()));
            let responses = operation["responses"].as_object().unwrap();
            let name = format!("{method} {path}");
            let scope = operation["security"].pointer("/0/key/0").map(text);
            let asks = match scope {
                None => Asks::Nothing,
                Some(_) if KEEPERS.contains(&&*name) => Asks::Keeper,
                Some(_) if path.starts_with("/v1/admin/") => Asks::Operator,
                Some(scope) => Asks::Scope(SCOPES.into_iter().find(|known| *known == scope).expect("a scope")),
            };
            all.push(Operation {
                path: path.clone(),
                params,
                body,
                statuses: responses.keys().map(|status| status.parse().unwrap()).collect(),
                asks,
                streams: responses.get("200").is_some_and(|ok| ok["content"].get("text/event-stream").is_some()),
                method,
            });
        }
    }
    all
}

/// A schema behind its reference, or behind the one thing that it may be beside `null`.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str() {
        let found = &document["components"]["schemas"][name.rsplit('/').next().unwrap()];
        return resolve(document, found);
    }
    match schema["oneOf"].as_array() {
        Some(choices) => match &choices.iter().filter(|choice| choice["type"] != "null").collect::<Vec<_>>()[..] {
            [only] => resolve(document, only),
            _ => schema,
        },
        None => schema,
    }
}

fn is(schema: &Value, kind: &str) -> bool {
    schema["type"] == kind || schema["type"].as_array().is_some_and(|kinds| kinds.iter().any(|known| known == kind))
}

/// Whether values of this schema can name anything: numbers, flags, dates and words of a list cannot.
pub fn may_name(document: &Value, schema: &Value) -> bool {
    let schema = resolve(document, schema);
    let text = is(schema, "string") && schema.get("enum").is_none();
    let dated = schema["format"].as_str().is_some_and(|format| format.starts_with("date"));
    let list = is(schema, "array") && may_name(document, &schema["items"]);
    (text && !dated) || list || (is(schema, "object") && schema.get("properties").is_none())
}

/// Words that make the name of a field look as if it named something.
fn looks_like_an_id(rows: &Rows, name: &str) -> bool {
    let words = ["id", "ids", "item", "event", "token", "cursor", "key"];
    // Too common a word.
    let of_paths = rows.paths.keys().filter(|name| **name != "name");
    let all: BTreeSet<&str> = words.into_iter().chain(of_paths.flat_map(|name| name.split('_'))).collect();
    name.split('_').any(|word| all.contains(word))
}

/// A field of a body that looks as if it named something: the way to it, and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// Names of fields; `0` is the one element of a list.
    pub way: Vec<String>,
    pub name: String,
    pub list: bool,
}

/// The fields of a schema that look as if they named something.
pub fn fields(document: &Value, rows: &Rows, schema: &Value) -> Vec<Field> {
    let mut found = Vec::new();
    walk(document, rows, schema, &mut Vec::new(), &mut found);
    found
}

fn walk(document: &Value, rows: &Rows, schema: &Value, way: &mut Vec<String>, found: &mut Vec<Field>) {
    let name = schema["$ref"].as_str().or_else(|| {
        let choices = schema["oneOf"].as_array()?;
        choices.iter().find_map(|choice| choice["$ref"].as_str())
    });
    let name = name.map(|name| name.rsplit('/').next().unwrap());
    let schema = resolve(document, schema);
    if is(schema, "array") {
        way.push("0".to_owned());
        walk(document, rows, &schema["items"], way, found);
        way.pop();
        return;
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for (field, inner) in properties {
        let described = OPEN_OBJECTS.iter().find(|(schema, at, _)| Some(*schema) == name && at == field);
        way.push(field.clone());
        if let Some((.., schemas)) = described {
            for schema in *schemas {
                walk(document, rows, &json!({ "$ref": schema }), way, found);
            }
        } else if may_name(document, inner) {
            if looks_like_an_id(rows, field) {
                let list = is(resolve(document, inner), "array");
                let one = Field { way: way.clone(), name: field.clone(), list };
                if !found.contains(&one) {
                    found.push(one);
                }
            }
        } else {
            walk(document, rows, inner, way, found);
        }
        way.pop();
    }
}

/// What a document has and no row is for, in words.
pub fn gaps(document: &Value, rows: &Rows) -> Vec<String> {
    let mut gaps = Vec::new();
    for operation in operations(document) {
        let name = operation.name();
        for param in operation.path_names() {
            if !rows.paths.contains_key(param) {
                gaps.push(format!("{name}: no row of PATHS says what `{{{param}}}` is"));
            }
        }
        for (param, schema) in operation.of("query") {
            if may_name(document, schema) && !rows.queries.contains_key(param) {
                gaps.push(format!("{name}: no row of QUERIES says what `{param}` is"));
            }
        }
        for (param, _) in operation.of("header") {
            if !rows.headers.contains_key(param) {
                gaps.push(format!("{name}: no row of HEADERS says what `{param}` is"));
            }
        }
        let Some((_, schema)) = &operation.body else { continue };
        if !rows.bodies.contains_key(&*name) {
            gaps.push(format!("{name}: no row of BODIES has one"));
        }
        for field in fields(document, rows, schema) {
            if rows.field(&field).is_none() {
                gaps.push(format!("{name}: no row of FIELDS says what `{}` is", field.way.join(".")));
            }
        }
    }
    gaps
}

/// Puts a value where a way leads, making what is not there.
pub fn put(body: &mut Value, way: &[String], value: Value) {
    let Some((step, rest)) = way.split_first() else {
        *body = value;
        return;
    };
    if step == "0" {
        if !body.is_array() {
            *body = json!([]);
        }
        let list = body.as_array_mut().unwrap();
        if list.is_empty() {
            list.push(Value::Null);
        }
        return put(&mut list[0], rest, value);
    }
    if !body.is_object() {
        *body = Value::Object(Map::new());
    }
    put(body.as_object_mut().unwrap().entry(step).or_insert(Value::Null), rest, value);
}
