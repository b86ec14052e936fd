//! What a client sees of budgets: over HTTP, against the real binary.

mod support;

use serde_json::{Value, json};
use support::*;

/// The tokens of what a model is told on a fresh thread, as the server estimates them.
async fn input(api: &Api) -> u64 {
    let thread = api.create(json!({ "budget": { "tokens": 10_000_000 } })).await;
    let mut stream = api.stream(&thread, 0).await;
    let turn = api.start(&thread, "@say hi\n@wait 600000").await;
    stream.until("item.delta").await;
    api.post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    let usage = stream.until("usage.recorded").await.json();
    let usage = &usage["payload"]["usage"];
    assert_eq!((&usage["model_calls"], &usage["estimated_calls"]), (&json!(0), &json!(1)), "{usage}");
    let thread = api.get(&format!("/v1/threads/{thread}")).await.expect(200);
    let input = usage["input_tokens"].as_u64().unwrap();
    assert!(thread["spent"]["tokens"].as_u64().unwrap() > input, "{thread}");
    input
}

/// Where an event first is on the wire.
fn place(frames: &[Frame], event: &str) -> usize {
    let names: Vec<_> = frames.iter().map(|frame| &frame.event).collect();
    frames.iter().position(|frame| frame.event == event).unwrap_or_else(|| panic!("no {event}: {names:?}"))
}

#[tokio::test]
async fn an_answer_is_stopped_in_the_middle_and_nothing_more_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), &[("RADDLE_LIMITS_RESERVE_OUTPUT_TOKENS", "100")]).await;
    let api = &server.api;
    let limit = input(api).await + 2_000;
    let thread = api.create(json!({ "budget": { "tokens": limit, "warn_percent": 99 } })).await;
    let mut stream = api.stream(&thread, 0).await;
    let turn = api.start(&thread, "@tokens 100000").await;
    let mut frames = Vec::new();
    loop {
        frames.push(stream.next().await.expect("the turn ends"));
        if frames.last().unwrap().event == "turn.completed" {
            break;
        }
    }
    let order = ["turn.started", "item.delta", "budget.warning", "budget.exceeded", "turn.completed"];
    assert!(order.map(|event| place(&frames, event)).is_sorted(), "{order:?}");
    let last = frames.iter().rposition(|frame| frame.event == "item.delta").unwrap();
    assert!(last < place(&frames, "budget.exceeded"), "it is said before it is stopped");
    let exceeded = frames[place(&frames, "budget.exceeded")].json();
    let budget = &exceeded["payload"]["budget"];
    assert_eq!(
        (&budget["scope"], &budget["unit"], &budget["limit"]),
        (&json!("thread"), &json!("tokens"), &json!(limit))
    );
    assert_eq!(exceeded["turn_id"], json!(turn));
    let ended = frames.last().unwrap().json();
    assert_eq!(ended["payload"]["turn"]["error"]["code"], "budget-exceeded", "{ended}");
    assert_eq!(ended["payload"]["status"], "failed");
    check_log(&api.log(&thread).await, true);
    // What was said stays, and is about as much as there was room for.
    let snapshot = api.snapshot(&thread).await;
    let items = snapshot["items"].as_array().unwrap();
    let answer = items.iter().find(|item| item["kind"] == "agent_message").unwrap();
    let words = text(&answer["detail"]).split_whitespace().count();
    assert!((1_000..2_100).contains(&words), "{words} words");
    assert_eq!(answer["status"], "interrupted");

    let before = api.get(&format!("/v1/threads/{thread}")).await.expect(200);
    assert!(before["spent"]["tokens"].as_u64().unwrap() >= limit - 1, "{before}");
    for path in ["turns", "edit"] {
        let start = json!({ "prompt": "more", "delivery": "queue" });
        let body = if path == "turns" { start } else { json!({ "prompt": "more" }) };
        let problem = api.post(&format!("/v1/threads/{thread}/{path}"), body).await.problem(402, "budget-exceeded");
        let said = [&problem["scope"], &problem["unit"], &problem["limit"]];
        assert_eq!(said, [&json!("thread"), &json!("tokens"), &json!(limit)], "{problem}");
        assert!(problem["spent"].as_u64().unwrap() >= limit, "{problem}");
    }
    api.post(&format!("/v1/threads/{thread}/compact"), json!({})).await.problem(402, "budget-exceeded");
    assert_eq!(api.get(&format!("/v1/threads/{thread}")).await.expect(200), before, "something is stored");
    // A null takes the budget away.
    let patched = api.patch(&format!("/v1/threads/{thread}"), json!({ "budget": null })).await.expect(200);
    assert_eq!((patched.get("budget"), patched.get("spent")), (None, None));
    let turn = api.start(&thread, "more").await;
    assert_eq!(api.wait(&thread, &turn).await["status"], "completed");
}

#[tokio::test]
async fn a_turn_for_which_there_is_no_room_makes_no_call() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let body = json!({ "prompt": "hi", "budget": { "tokens": 1 } });
    let started = api.post(&format!("/v1/threads/{thread}/turns"), body).await.expect(201);
    assert_eq!(started["turn"]["budget"], json!({ "tokens": 1 }));
    let turn = api.wait(&thread, &text(&started["turn"]["id"])).await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("budget-exceeded")), "{turn}");
    assert_eq!(turn["spent"], json!({ "tokens": 0, "pico_usd": 0 }));
    let log = api.log(&thread).await;
    let names = names(&log);
    assert!(names.contains(&"budget.exceeded") && !names.contains(&"usage.recorded"), "{names:?}");
    // The next turn has a budget of its own, or none.
    let turn = api.start(&thread, "hi").await;
    assert_eq!(api.wait(&thread, &turn).await["status"], "completed");
    // In place of it, too.
    let edited = json!({ "prompt": "hi", "budget": { "tokens": 1 } });
    let started = api.post(&format!("/v1/threads/{thread}/edit"), edited).await.expect(201);
    let turn = api.wait(&thread, &text(&started["turn"]["id"])).await;
    assert_eq!(turn["error"]["code"], "budget-exceeded");
}

#[tokio::test]
async fn money_cannot_be_held_without_a_price_and_the_turn_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("prices.toml");
    let other = "[[price]]\nengine = \"openai\"\nmodel = \"*\"\nfrom = 2020-01-01\ninput = 1\noutput = 1\n";
    std::fs::write(&prices, format!("version = \"test\"\n\n{other}")).unwrap();
    let server = Server::with(&dir.path().join("data"), &[("RADDLE_PRICES_FILE", prices.to_str().unwrap())]).await;
    let api = &server.api;
    let thread = api.create(json!({ "budget": { "usd": 2.5 } })).await;
    let turn = api.start(&thread, "hi").await;
    let turn = api.wait(&thread, &turn).await;
    assert_eq!(turn["error"]["code"], "budget-exceeded", "{turn}");
    assert!(text(&turn["error"]["message"]).contains("no price"), "{turn}");
    let record = api.get(&format!("/v1/threads/{thread}")).await.expect(200);
    assert_eq!(record["budget"], json!({ "usd": 2.5 }));
}

#[tokio::test]
async fn a_budget_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let field = |problem: Value| text(&problem["field"]);
    let absurd = json!({ "budget": { "tokens": 1, "warn_percent": 101 } });
    let problem = api.post("/v1/threads", absurd.clone()).await.problem(422, "invalid");
    assert_eq!(field(problem), "budget.warn_percent");
    let thread = api.create(json!({})).await;
    let problem = api.patch(&format!("/v1/threads/{thread}"), absurd).await.problem(422, "invalid");
    assert_eq!(field(problem), "budget.warn_percent");
    for (budget, place) in [
        (json!({ "tokens": -1 }), "budget.tokens"),
        (json!({ "usd": -0.5 }), "budget.usd"),
        (json!({ "usd": "1" }), "budget.usd"),
        (json!({ "euros": 1 }), "budget.euros"),
    ] {
        let body = json!({ "prompt": "hi", "budget": budget });
        let problem = api.post(&format!("/v1/threads/{thread}/turns"), body).await.problem(422, "invalid");
        assert_eq!(field(problem), place);
    }
}

#[tokio::test]
async fn a_tenant_without_budgets_has_none_to_show() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    assert_eq!(server.api.get("/v1/usage/budgets").await.expect(200), json!({ "data": [] }));
    server.api.get("/v1/usage/budgets?day=1").await.problem(422, "invalid");
}
