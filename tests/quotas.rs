//! What a tenant hears that has as much as it may: which bound it was, how much that is, and when to come again. That
//! each bound is exact under many requests at once is `actors/tests/quotas.rs`.

mod support;
#[path = "support/tenants.rs"]
mod tenants;

use reqwest::Method;
use serde_json::{Value, json};
use support::{Answer, Api, Server};
use tenants::{member, start, tenant};

const EVERYTHING: [&str; 3] = ["read", "write", "approve"];
/// A prompt whose turn is open until it is interrupted.
const LONG: &str = "@tokens 10000000";

/// A tenant with these bounds, as one of its members sees the API.
async fn bound(server: &Server, id: &str, quotas: Value) -> Api {
    tenant(server, id, json!({ "quotas": quotas })).await;
    member(server, id, &EVERYTHING).await
}

fn refused(answer: &Answer, code: &str, limit: &str, max: u64) {
    let problem = answer.problem(429, code);
    assert_eq!((&problem["limit"], &problem["max"]), (&json!(limit), &json!(max)), "{problem}");
    let seconds: u64 = answer.header("retry-after").expect("when to come again").parse().expect("seconds");
    assert!(seconds > 0);
}

async fn queue(api: &Api, thread: &str) -> Answer {
    api.post(&format!("/v1/threads/{thread}/turns"), json!({ "prompt": "next", "delivery": "queue" })).await
}

#[tokio::test]
async fn a_refusal_for_a_quota_names_it_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;

    let few = bound(&server, "few", json!({ "threads": 1 })).await;
    let thread = few.create(json!({})).await;
    refused(&few.post("/v1/threads", json!({})).await, "quota-exceeded", "threads", 1);
    refused(&few.post(&format!("/v1/threads/{thread}/fork"), json!({})).await, "quota-exceeded", "threads", 1);
    assert_eq!(few.list("/v1/threads", 10).await.len(), 1);
    // A place that is given back can be taken.
    few.delete(&format!("/v1/threads/{thread}")).await;
    few.create(json!({})).await;

    let busy = bound(&server, "busy", json!({ "active_turns": 1, "queued_prompts": 1 })).await;
    let (first, second) = (busy.create(json!({})).await, busy.create(json!({})).await);
    busy.start(&first, LONG).await;
    let start = busy.post(&format!("/v1/threads/{second}/turns"), json!({ "prompt": "hello" })).await;
    refused(&start, "quota-exceeded", "active_turns", 1);
    assert_eq!(busy.list(&format!("/v1/threads/{second}/turns"), 10).await.len(), 0);
    queue(&busy, &first).await.expect(202);
    refused(&queue(&busy, &first).await, "quota-exceeded", "queued_prompts", 1);

    let watched = bound(&server, "watched", json!({ "subscribers": 1 })).await;
    let thread = watched.create(json!({})).await;
    let stream = watched.stream(&thread, 0).await;
    let second = watched.request(Method::GET, &format!("/v1/threads/{thread}/events"));
    let second = watched.send(second.header("accept", "text/event-stream")).await;
    refused(&second, "quota-exceeded", "subscribers", 1);
    drop(stream);

    let small = bound(&server, "small", json!({ "stored_bytes": 2_000 })).await;
    let thread = small.create(json!({})).await;
    // The last one that is let in may lead beyond it.
    let turn = small.start(&thread, &"x".repeat(2_000)).await;
    assert_eq!(small.wait(&thread, &turn).await["status"], "completed");
    let next = small.post(&format!("/v1/threads/{thread}/turns"), json!({ "prompt": "hello" })).await;
    refused(&next, "quota-exceeded", "stored_bytes", 2_000);

    // None of them is anybody else's bound.
    let other = bound(&server, "other", json!({})).await;
    for _ in 0..3 {
        let thread = other.create(json!({})).await;
        other.start(&thread, "hello").await;
    }
    server.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_hears_when_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[]).await;
    let api = bound(&server, "often", json!({ "requests_per_second": 1, "request_burst": 2 })).await;
    let mut answers = Vec::new();
    // However slow the machine is, one of so many comes before the next second.
    while answers.len() < 200 && answers.last().is_none_or(|answer: &Answer| answer.status != 429) {
        answers.push(api.get("/v1/threads").await);
    }
    refused(answers.last().unwrap(), "rate-limited", "requests_per_second", 1);
    assert!(answers.len() > 2, "two at once are let in");
    server.stop().await;
}

#[tokio::test]
async fn a_tenants_budget_ends_the_turn_that_meets_it_and_refuses_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &[("RADDLE_LIMITS_RESERVE_OUTPUT_TOKENS", "100")]).await;
    tenant(&server, "acme", json!({ "budgets": { "total": { "tokens": 3_000 } } })).await;
    let api = member(&server, "acme", &EVERYTHING).await;
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "@tokens 100000").await;
    let ended = api.wait(&thread, &turn).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("budget-exceeded")), "{ended}");
    let log = api.log(&thread).await;
    let exceeded = log.iter().find(|event| event["event"] == "budget.exceeded").expect("it is said");
    assert_eq!(exceeded["payload"]["budget"]["scope"], "tenant", "{exceeded}");
    // All of its threads are held to it, and nobody else's.
    let other = api.create(json!({})).await;
    let next = api.post(&format!("/v1/threads/{other}/turns"), json!({ "prompt": "hello" })).await;
    let problem = next.problem(402, "budget-exceeded");
    assert!(problem.to_string().contains("tenant"), "{problem}");
    tenant(&server, "other", json!({})).await;
    let free = member(&server, "other", &EVERYTHING).await;
    let thread = free.create(json!({})).await;
    let turn = free.start(&thread, "hello").await;
    assert_eq!(free.wait(&thread, &turn).await["status"], "completed");
    server.stop().await;
}
