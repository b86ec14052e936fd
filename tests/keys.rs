//! Who is heard, and for how long: keys, their scopes, their end; the operator; what was done in whose name.

mod support;
#[path = "support/tenants.rs"]
mod tenants;

use std::{fs, path::Path};

use reqwest::Method;
use serde_json::{Value, json};
use support::{Api, LOST, Server, text};
use tenants::{OPERATOR, key, member, operator, start, tenant};
use tokio::time::timeout;

/// Whether any file below `dir` holds these bytes.
fn holds(dir: &Path, wanted: &str) -> bool {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return holds(&path, wanted);
        }
        let bytes = fs::read(&path).unwrap_or_default();
        bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
    })
}

#[tokio::test]
async fn a_key_is_told_once_and_kept_as_a_digest() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let made = key(&server, "acme", &["read", "write"]).await;
    let whole = text(&made["key"]);
    let (id, secret) = whole.strip_prefix("rdl_").unwrap().split_once('_').unwrap();
    assert_eq!((made["key_id"].as_str(), &made["scopes"]), (Some(id), &json!(["read", "write"])));
    let listed = operator(&server).get("/v1/admin/tenants/acme/keys").await.expect(200);
    assert_eq!(listed["data"][0]["key_id"], id);
    assert!(!listed.to_string().contains(secret));
    server.api.with_key(&whole).get("/v1/threads").await.expect(200);
    assert!(!server.said().contains(secret));
    server.stop().await;
    assert!(holds(dir.path(), id) && !holds(dir.path(), secret));
}

#[tokio::test]
async fn nobody_is_heard_without_a_key_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let good = text(&key(&server, "acme", &["admin"]).await["key"]);
    let (head, secret) = good.rsplit_once('_').unwrap();
    let other = text(&key(&server, "acme", &["admin"]).await["key"]);
    let other_secret = other.rsplit_once('_').unwrap().1;
    let bad = [
        "x".to_owned(),
        "rdl_".to_owned(),
        format!("{head}_"),
        format!("{head}_{}", &secret[1..]),
        format!("{head}_{other_secret}"),
        format!("{good}x"),
        good.to_uppercase(),
        "eyJhbGciOiJub25lIn0.e30.".to_owned(),
    ];
    for key in bad {
        let refused = server.api.with_key(&key).get("/v1/threads").await;
        refused.problem(401, "unauthenticated");
        assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"), "{key}");
    }
    let refused = server.api.get("/v1/threads").await;
    refused.problem(401, "unauthenticated");
    let basic = server.api.request(Method::GET, "/v1/threads").header("authorization", format!("Basic {good}"));
    server.api.send(basic).await.problem(401, "unauthenticated");
    // A secret in a URL ends up in logs.
    server.api.get(&format!("/v1/threads?key={good}")).await.problem(401, "unauthenticated");
    for open in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/info"] {
        assert_eq!(server.api.get(open).await.status, 200, "{open}");
    }
    server.api.with_key(&good).get("/v1/threads").await.expect(200);
}

#[tokio::test]
async fn a_key_allows_what_its_scopes_say_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let [read, write, approve, admin] = [
        member(&server, "acme", &["read"]).await,
        member(&server, "acme", &["write"]).await,
        member(&server, "acme", &["approve"]).await,
        member(&server, "acme", &["admin"]).await,
    ];
    let thread = write.create(json!({})).await;
    for api in [&read, &write, &approve, &admin] {
        api.get(&format!("/v1/threads/{thread}")).await.expect(200);
    }
    for api in [&read, &approve] {
        let refused = api.post("/v1/threads", json!({})).await.problem(403, "insufficient-scope");
        assert_eq!(refused["scope"], "write");
    }
    let policy = json!({ "ask": "on_request" });
    let put = |api: &Api| api.request(Method::PUT, "/v1/policy").json(&policy);
    for api in [&read, &write] {
        let refused = api.send(put(api)).await.problem(403, "insufficient-scope");
        assert_eq!(refused["scope"], "approve");
    }
    approve.send(put(&approve)).await.expect(200);
    let rules = |api: &Api| api.request(Method::PUT, "/v1/routing-rules").json(&json!({ "rules": [] }));
    for api in [&read, &write, &approve] {
        api.send(rules(api)).await.problem(403, "insufficient-scope");
    }
    admin.send(rules(&admin)).await.expect(200);
}

/// Who may write and not decide must not decide by a flag.
#[tokio::test]
async fn a_key_that_may_not_approve_hands_no_approval_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let write = member(&server, "acme", &["write"]).await;
    let both = member(&server, "acme", &["write", "approve"]).await;
    let thread = write.create(json!({})).await;
    let turns = format!("/v1/threads/{thread}/turns");
    let turn = json!({ "thread_id": thread, "prompt": "x", "auto_approve": true });
    let job = json!({ "name": "n", "kind": "turn", "payload": turn });
    let schedule = json!({ "name": "n", "cron": "0 0 1 1 *", "job": job });
    let rows = [
        (Method::POST, "/v1/threads", json!({ "auto_approve": true })),
        (Method::POST, "/v1/threads", json!({ "trust_mode": true })),
        (Method::POST, "/v1/threads", json!({ "policy": { "ask": "never" } })),
        (Method::PATCH, &format!("/v1/threads/{thread}"), json!({ "auto_approve": true })),
        (Method::PATCH, &format!("/v1/threads/{thread}"), json!({ "policy": null })),
        (Method::POST, &turns, json!({ "prompt": "x", "auto_approve": true })),
        (Method::POST, "/v1/jobs", job),
        (Method::POST, "/v1/schedules", schedule),
    ];
    for (method, path, body) in rows {
        let send = async |api: &Api| api.send(api.request(method.clone(), path).json(&body)).await;
        send(&write).await.problem(403, "insufficient-scope");
        let allowed = send(&both).await;
        assert!(matches!(allowed.status, 200 | 201), "{method} {path} {body}: {}", allowed.json());
    }
    // What hands nothing over needs nobody's leave.
    write.post(&turns, json!({ "prompt": "x", "auto_approve": false, "delivery": "queue" })).await;
}

#[tokio::test]
async fn a_revoked_key_is_cut_off_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let made = key(&server, "acme", &["write"]).await;
    let api = server.api.with_key(&text(&made["key"]));
    let stays = member(&server, "acme", &["write"]).await;
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "@wait 600000").await;
    let events = format!("/v1/threads/{thread}/events");
    let open = |api: &Api, path: &str| api.request(Method::GET, path).header("accept", "text/event-stream").send();
    let mut streams = Vec::new();
    for path in [events.as_str(), "/v1/events"] {
        let mut stream = open(&api, path).await.unwrap();
        assert_eq!(stream.status(), 200);
        stream.chunk().await.unwrap().expect("it has begun");
        streams.push(stream);
    }
    let mut other = open(&stays, &events).await.unwrap();
    other.chunk().await.unwrap().expect("it has begun");
    let waits = tokio::spawn({
        let (api, path) = (api.clone(), format!("/v1/threads/{thread}/turns/{turn}/wait?timeout_ms=50000"));
        async move { api.get(&path).await }
    });
    let revoke = format!("/v1/admin/tenants/acme/keys/{}", text(&made["key_id"]));
    operator(&server).delete(&revoke).await.expect(204);
    api.get("/v1/threads").await.problem(401, "unauthenticated");
    for mut stream in streams {
        let mut said = Vec::new();
        let ends = async {
            while let Some(piece) = stream.chunk().await.expect("it ends in order") {
                said.extend(piece);
            }
        };
        timeout(LOST, ends).await.expect("a stream outlives its key");
        let last = "event: stream.end\ndata: {\"reason\":\"unauthenticated\"}\n\n";
        assert!(String::from_utf8_lossy(&said).ends_with(last), "{}", String::from_utf8_lossy(&said));
    }
    let waited = timeout(LOST, waits).await.expect("a wait outlives its key").unwrap();
    // It may have been refused before it began to wait.
    waited.problem(401, "unauthenticated");
    // What the key had begun goes on, and others watch it.
    let interrupt = format!("/v1/threads/{thread}/turns/{turn}/interrupt");
    stays.post(&interrupt, json!({})).await.expect(200);
    let mut rest = Vec::new();
    let hears = async {
        while !String::from_utf8_lossy(&rest).contains("event: turn.completed") {
            rest.extend(other.chunk().await.unwrap().expect("it goes on"));
        }
    };
    timeout(LOST, hears).await.expect("another key's stream was cut");
    operator(&server).delete(&revoke).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_key_ends_at_its_time_also_in_an_open_stream() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let keys = "/v1/admin/tenants/acme/keys";
    let soon = chrono::DateTime::from_timestamp_millis(now_ms() + 1_500).unwrap().to_rfc3339();
    let made = operator(&server).post(keys, json!({ "scopes": ["read"], "expires_at": soon })).await.expect(201);
    let api = server.api.with_key(&text(&made["key"]));
    let mut stream = api.request(Method::GET, "/v1/events").header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let ends = async { while let Ok(Some(_)) = stream.chunk().await {} };
    timeout(LOST, ends).await.expect("a stream outlives its key");
    let refused = api.get("/v1/threads").await.problem(401, "unauthenticated");
    assert!(refused["detail"].as_str().unwrap().contains("expired"), "{refused}");
    let past = json!({ "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z" });
    assert_eq!(operator(&server).post(keys, past).await.problem(422, "invalid")["field"], "expires_at");
}

fn now_ms() -> i64 {
    use raddle_actors::SystemClock;
    use raddle_domain::ports::Clock as _;
    i64::try_from(SystemClock.now().0).unwrap()
}

#[tokio::test]
async fn a_suspended_tenant_is_not_heard_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    tenant(&server, "other", json!({})).await;
    let (api, other) = (member(&server, "acme", &["write"]).await, member(&server, "other", &["write"]).await);
    let thread = api.create(json!({ "title": "stays" })).await;
    let mut stream = api.request(Method::GET, "/v1/events").header("accept", "text/event-stream").send().await.unwrap();
    stream.chunk().await.unwrap().expect("it has begun");
    let status =
        async |status: &str| operator(&server).patch("/v1/admin/tenants/acme", json!({ "status": status })).await;
    assert_eq!(status("suspended").await.expect(200)["status"], "suspended");
    api.get("/v1/threads").await.problem(403, "tenant-suspended");
    let ends = async { while let Ok(Some(_)) = stream.chunk().await {} };
    timeout(LOST, ends).await.expect("a stream outlives its tenant's suspension");
    other.get("/v1/threads").await.expect(200);
    status("active").await.expect(200);
    assert_eq!(api.get(&format!("/v1/threads/{thread}")).await.expect(200)["title"], "stays");
}

#[tokio::test]
async fn the_operator_administers_tenants_and_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    let operator = operator(&server);
    operator.get("/v1/threads").await.problem(403, "insufficient-scope");
    operator.post("/v1/threads", json!({})).await.problem(403, "insufficient-scope");
    let made = tenant(&server, "acme", json!({ "name": "Acme", "weight": 3, "quotas": { "threads": 9 } })).await;
    assert_eq!(
        (&made["name"], &made["weight"], &made["quotas"]),
        (&json!("Acme"), &json!(3), &json!({ "threads": 9 }))
    );
    operator.post("/v1/admin/tenants", json!({ "id": "acme" })).await.problem(409, "conflict");
    for (body, field) in [
        (json!({ "id": "No Such" }), "id"),
        (json!({ "id": "@raddle" }), "id"),
        (json!({ "id": "x", "quotas": { "thread": 1 } }), "quotas.thread"),
        (json!({ "id": "x", "budgets": { "day": { "usd": -1 } } }), "budgets.day.usd"),
    ] {
        let refused = operator.post("/v1/admin/tenants", body).await;
        assert_eq!(refused.problem(422, "invalid")["field"], field);
    }
    let minted = operator.post("/v1/admin/tenants", json!({})).await;
    let location = minted.header("location").unwrap().to_owned();
    let minted = minted.expect(201);
    assert_eq!(operator.get(&location).await.expect(200), minted);
    let read = operator.get("/v1/admin/tenants/acme").await;
    let (etag, before) = (read.header("etag").unwrap().to_owned(), read.expect(200));
    let patch = operator.request(Method::PATCH, "/v1/admin/tenants/acme").header("if-match", &etag);
    let after = operator.send(patch.json(&json!({ "quotas": {} }))).await.expect(200);
    assert_eq!((&after["quotas"], &after["name"]), (&json!({}), &before["name"]));
    let stale = operator.request(Method::PATCH, "/v1/admin/tenants/acme").header("if-match", &etag);
    operator.send(stale.json(&json!({ "name": "x" }))).await.problem(412, "precondition-failed");
    let first = operator.get("/v1/admin/tenants?limit=1").await.expect(200);
    let next = operator.get(&format!("/v1/admin/tenants?limit=1&cursor={}", text(&first["next_cursor"]))).await;
    let ids = [text(&first["data"][0]["id"]), text(&next.expect(200)["data"][0]["id"])];
    assert_eq!(ids.iter().filter(|id| *id == "acme").count(), 1, "{ids:?}");
    operator.get("/v1/admin/tenants/nobody").await.problem(404, "not-found");
    operator.post("/v1/admin/tenants/nobody/keys", json!({ "scopes": ["read"] })).await.problem(404, "not-found");
    operator.post("/v1/admin/tenants/acme/keys", json!({ "scopes": [] })).await.problem(422, "invalid");
}

#[tokio::test]
async fn an_administrator_of_a_tenant_makes_keys_for_it_and_for_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    tenant(&server, "other", json!({})).await;
    let admin = member(&server, "acme", &["admin"]).await;
    let made =
        admin.post("/v1/admin/tenants/acme/keys", json!({ "scopes": ["write"], "name": "ci" })).await.expect(201);
    server.api.with_key(&text(&made["key"])).create(json!({})).await;
    admin.get("/v1/admin/tenants/acme").await.expect(200);
    for path in ["/v1/admin/tenants/other", "/v1/admin/tenants/other/keys", "/v1/admin/tenants/other/audit"] {
        admin.get(path).await.problem(404, "not-found");
    }
    let theirs = text(&key(&server, "other", &["read"]).await["key_id"]);
    admin.delete(&format!("/v1/admin/tenants/other/keys/{theirs}")).await.problem(404, "not-found");
    admin.delete(&format!("/v1/admin/tenants/acme/keys/{theirs}")).await.problem(404, "not-found");
    admin.get("/v1/admin/tenants").await.problem(403, "insufficient-scope");
    admin.post("/v1/admin/tenants", json!({})).await.problem(403, "insufficient-scope");
    admin.patch("/v1/admin/tenants/acme", json!({ "quotas": {} })).await.problem(403, "insufficient-scope");
    let write = member(&server, "acme", &["write", "approve"]).await;
    write.get("/v1/admin/tenants/acme/keys").await.problem(403, "insufficient-scope");
    assert_eq!(admin.get("/v1/admin/tenants/acme/keys").await.expect(200)["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn what_was_done_in_a_tenants_name_is_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let demo = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[("RADDLE_TOOLS_DEMO_DIR", demo.path().to_str().unwrap())]).await;
    tenant(&server, "acme", json!({})).await;
    tenant(&server, "other", json!({})).await;
    let made = key(&server, "acme", &["write", "approve"]).await;
    let api = server.api.with_key(&text(&made["key"]));
    let by = format!("key:{}", text(&made["key_id"]));
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "@tool demo_put {\"name\": \"a\", \"text\": \"b\"}").await;
    let waits = async {
        loop {
            let pending = api.get("/v1/approvals?status=pending").await.expect(200);
            if let Some(approval) = pending["data"].get(0) {
                return text(&approval["id"]);
            }
            tokio::task::yield_now().await;
        }
    };
    let approval = timeout(LOST, waits).await.expect("nobody is asked");
    let decide = api.request(Method::POST, &format!("/v1/approvals/{approval}")).header("x-request-id", "the-decision");
    api.send(decide.json(&json!({ "decision": "approved" }))).await.expect(200);
    api.wait(&thread, &turn).await;
    api.send(api.request(Method::PUT, "/v1/policy").json(&json!({ "ask": "on_request" }))).await.expect(200);
    api.delete(&format!("/v1/threads/{thread}")).await.expect(204);
    operator(&server).delete(&format!("/v1/admin/tenants/acme/keys/{}", text(&made["key_id"]))).await.expect(204);

    let audit = operator(&server).get("/v1/admin/tenants/acme/audit?limit=500").await.expect(200);
    let lines: Vec<Value> = audit["data"].as_array().unwrap().clone();
    let said: Vec<_> =
        lines.iter().map(|line| (line["by"].as_str().unwrap(), line["action"].as_str().unwrap())).collect();
    let expected = [
        ("operator", "tenant.created"),
        ("operator", "key.created"),
        (by.as_str(), "approval.decided"),
        (&by, "policy.replaced"),
        (&by, "thread.deleted"),
        ("operator", "key.revoked"),
    ];
    assert_eq!(said, expected);
    let decided = &lines[2];
    assert_eq!((&decided["subject"], &decided["request_id"]), (&json!(approval), &json!("the-decision")));
    assert_eq!((&decided["detail"]["decision"], &decided["detail"]["thread_id"]), (&json!("approved"), &json!(thread)));
    let other = operator(&server).get("/v1/admin/tenants/other/audit").await.expect(200);
    assert_eq!(other["data"].as_array().unwrap().len(), 1);
    // In pages, and after a restart, it is the same.
    server.stop().await;
    let server = start(dir.path(), &[]).await;
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = operator(&server).get(&format!("/v1/admin/tenants/acme/audit?limit=2{cursor}")).await.expect(200);
        paged.extend(page["data"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(paged, lines);
}

#[tokio::test]
async fn keys_outlive_the_server_and_not_their_pepper() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), &[]).await;
    tenant(&server, "acme", json!({})).await;
    let good = text(&key(&server, "acme", &["read"]).await["key"]);
    let gone = key(&server, "acme", &["read"]).await;
    operator(&server).delete(&format!("/v1/admin/tenants/acme/keys/{}", text(&gone["key_id"]))).await.expect(204);
    server.kill();
    // Also where no operator is configured: keys that there are do not stop being asked for.
    let server = Server::with(dir.path(), &[]).await;
    server.api.with_key(&good).get("/v1/threads").await.expect(200);
    server.api.with_key(&text(&gone["key"])).get("/v1/threads").await.problem(401, "unauthenticated");
    server.api.get("/v1/threads").await.problem(401, "unauthenticated");
    server.stop().await;
    fs::remove_file(dir.path().join("pepper")).unwrap();
    let refused = Server::launch(dir.path(), &[]).await.err().expect("it does not start");
    assert!(refused.said.contains("pepper") && refused.status.code() == Some(1), "{}", refused.said);
}

#[tokio::test]
async fn a_server_that_others_can_reach_asks_for_keys_or_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let open = ("RADDLE_LISTEN", "0.0.0.0:0");
    let refused = Server::launch(dir.path(), &[open]).await.err().expect("it does not start");
    assert!(refused.said.contains("auth.admin_key") && refused.said.contains("0.0.0.0"), "{}", refused.said);
    drop(Server::with(dir.path(), &[open, ("RADDLE_AUTH_ADMIN_KEY", OPERATOR)]).await);
}

#[tokio::test]
async fn without_keys_everybody_on_the_machine_is_the_default_tenant_and_nobody_the_operator() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.api.create(json!({})).await;
    for (method, path) in [(Method::POST, "/v1/admin/tenants"), (Method::GET, "/v1/admin/tenants/default/keys")] {
        let refused = server.api.send(server.api.request(method, path)).await.problem(403, "insufficient-scope");
        assert!(refused["detail"].as_str().unwrap().contains("auth.admin_key"), "{refused}");
    }
    // What was kept so far is the default tenant's, once there are keys.
    server.stop().await;
    let server = start(dir.path(), &[]).await;
    server.api.get("/v1/threads").await.problem(401, "unauthenticated");
    tenant(&server, "default", json!({})).await;
    let api = member(&server, "default", &["read"]).await;
    assert_eq!(api.get("/v1/threads").await.expect(200)["data"].as_array().unwrap().len(), 1);
}

/// Signed with the first Ed25519 pair of RFC 8032, section 7.1, which is public: for the tenants `acme` and `nobody`,
/// until the year 2100.
#[cfg(feature = "jwt")]
const TOKENS: [&str; 2] = [
    "eyJhbGciOiJFZERTQSIsImtpZCI6ImEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoicmFkZGxlIiwic3ViIjoiYWRhIiwiZXhwIjo0MTAyNDQ0ODAwLCJ0ZW5hbnQiOiJhY21lIiwic2NvcGUiOiJyYWRkbGU6d3JpdGUgbWFpbCJ9.1n2w4XQUoqdvzs26oSa7SUo-dRHV6AJ1mPAdHCZuM8pypoBpMgXlijq7QxVmSI9aHvsMl9TONoYUiyayby6cBg",
    "eyJhbGciOiJFZERTQSIsImtpZCI6ImEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoicmFkZGxlIiwic3ViIjoiYWRhIiwiZXhwIjo0MTAyNDQ0ODAwLCJ0ZW5hbnQiOiJub2JvZHkiLCJzY29wZSI6IndyaXRlIn0.9UAuqzJkWizRd48RQuhBJQPXMzosBVfVeNV5oP65Y1fDd-IxrSjY3ysJTSqvWHBUmPB9CcGisEqG27j4hLISAg",
];

#[cfg(feature = "jwt")]
#[tokio::test]
async fn a_token_of_the_configured_issuer_speaks_for_the_tenant_in_its_claim() {
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("jwks.json");
    let public = json!({
        "kty": "OKP", "crv": "Ed25519", "kid": "a", "alg": "EdDSA", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    });
    fs::write(&jwks, json!({ "keys": [public] }).to_string()).unwrap();
    let issuer = [
        ("RADDLE_AUTH_JWT_JWKS_FILE", jwks.to_str().unwrap()),
        ("RADDLE_AUTH_JWT_ISSUER", "https://issuer.example"),
        ("RADDLE_AUTH_JWT_AUDIENCE", "raddle"),
    ];
    let data = dir.path().join("data");
    let server = start(&data, &issuer).await;
    let [acme, nobody] = TOKENS.map(|token| server.api.with_key(token));
    // A claim makes no tenant.
    acme.get("/v1/threads").await.problem(401, "unauthenticated");
    tenant(&server, "acme", json!({})).await;
    let thread = acme.create(json!({})).await;
    acme.delete(&format!("/v1/threads/{thread}")).await.expect(204);
    acme.send(acme.request(Method::PUT, "/v1/policy").json(&json!({}))).await.problem(403, "insufficient-scope");
    nobody.get("/v1/threads").await.problem(401, "unauthenticated");
    let audit = operator(&server).get("/v1/admin/tenants/acme/audit").await.expect(200);
    assert_eq!(audit["data"][1]["by"], "jwt:ada");
    let (head, _) = TOKENS[0].rsplit_once('.').unwrap();
    let other = TOKENS[1].rsplit_once('.').unwrap().1;
    for forged in [format!("{head}.{other}"), format!("{head}."), head.to_owned()] {
        server.api.with_key(&forged).get("/v1/threads").await.problem(401, "unauthenticated");
    }
    server.stop().await;
    // Without the issuer its tokens are nothing.
    let server = start(&data, &[]).await;
    server.api.with_key(TOKENS[0]).get("/v1/threads").await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn the_operator_can_have_a_place_of_his_own() {
    let dir = tempfile::tempdir().unwrap();
    // Where it is, is said in the log.
    let server = start(dir.path(), &[("RADDLE_ADMIN_LISTEN", "127.0.0.1:0")]).await;
    let said = async {
        loop {
            let said = server.said();
            let address = said.lines().find_map(|line| {
                let (_, rest) = line.split_once("served apart")?;
                Some(rest.split_once("address=")?.1.split_whitespace().next()?.to_owned())
            });
            match address {
                Some(address) => return address,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let address = timeout(LOST, said).await.expect("nobody says where the operator is heard");
    let apart = Api::new(&format!("http://{address}"));
    apart.with_key(OPERATOR).post("/v1/admin/tenants", json!({ "id": "acme" })).await.expect(201);
    let path = "/v1/admin/tenants/acme/keys";
    let made = apart.with_key(OPERATOR).post(path, json!({ "scopes": ["write"] })).await.expect(201);
    let made = text(&made["key"]);
    server.api.with_key(&made).create(json!({})).await;
    operator(&server).get("/v1/admin/tenants").await.problem(404, "not-found");
    apart.with_key(&made).get("/v1/threads").await.problem(404, "not-found");
    for api in [&apart, &server.api] {
        api.get("/healthz").await.expect(200);
    }
    server.stop().await;
}
