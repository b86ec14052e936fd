//! A conversation through an OpenAI-compatible provider, seen from outside: our server, their wire.
//!
//! Every way in which a provider can answer has one documented outcome: for the turn, for the log, and for what
//! the model is asked next.

#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use openai_server::{Answer, Gate, OpenAiServer, delta, finish};
use serde_json::{Value, json};
use support::*;

struct World {
    server: Server,
    provider: OpenAiServer,
    _dir: tempfile::TempDir,
    thread: String,
}

/// A server whose model is our provider; pauses before another try are a millisecond.
async fn world(env: &[(&str, &str)]) -> World {
    let provider = OpenAiServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![
        ("RADDLE_MODEL_DEFAULT", "openai/test-model"),
        ("RADDLE_MODEL_OPENAI_BASE_URL", provider.base_url()),
        ("RADDLE_MODEL_OPENAI_API_KEY", "sk-planted-secret"),
        ("RADDLE_LIMITS_RETRY_BASE_MS", "1"),
    ];
    all.extend_from_slice(env);
    let server = Server::with(dir.path(), &all).await;
    let thread = server.api.create(json!({ "system_prompt": "be brief" })).await;
    World { server, provider, _dir: dir, thread }
}

impl World {
    /// Asks, and waits for the turn's end.
    async fn turn(&self, prompt: &str) -> Value {
        let turn = self.server.api.start(&self.thread, prompt).await;
        self.server.api.wait(&self.thread, &turn).await
    }

    /// The items of a turn as (kind, status, detail).
    async fn items(&self, turn: &Value) -> Vec<(String, String, String)> {
        let path = format!("/v1/threads/{}/items?turn={}", self.thread, turn["id"].as_str().unwrap());
        let items = self.server.api.list(&path, 100).await;
        let field = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
        items.iter().map(|item| (field(item, "kind"), field(item, "status"), field(item, "detail"))).collect()
    }

    async fn names(&self) -> Vec<String> {
        let log = self.server.api.log(&self.thread).await;
        log.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    /// The messages of the last request, as the provider got them.
    fn last_seen(&self) -> Vec<Value> {
        self.provider.asked().last().unwrap().messages().to_vec()
    }
}

fn item(kind: &str, status: &str, detail: &str) -> (String, String, String) {
    (kind.into(), status.into(), detail.into())
}

fn content(text: &str) -> Value {
    delta(json!({ "content": text }))
}

fn usage(input: u32, output: u32, cached: u32, reasoning: u32) -> Value {
    json!({ "choices": [], "usage": {
        "prompt_tokens": input, "completion_tokens": output,
        "prompt_tokens_details": { "cached_tokens": cached },
        "completion_tokens_details": { "reasoning_tokens": reasoning },
    }})
}

#[tokio::test]
async fn a_conversation_is_the_same_however_its_bytes_are_split() {
    for size in [1, 2, 3, 7, 1_000] {
        let world = world(&[]).await;
        let first = Answer::stream()
            .event(delta(json!({ "role": "assistant", "reasoning_content": "grübel … " })))
            .event(delta(json!({ "reasoning_content": "🤔" })))
            .event(content("Grüße, "))
            .event(content("Welt 🌍!"))
            .event(finish("stop"))
            .event(usage(11, 7, 4, 2))
            .done();
        world.provider.answer(first.split_every(size));
        world.provider.answer(Answer::text("second").split_every(size));
        let turn = world.turn("one").await;
        assert_eq!(turn["status"], "completed");
        let expected = [
            item("user_message", "completed", "one"),
            item("reasoning", "completed", "grübel … 🤔"),
            item("agent_message", "completed", "Grüße, Welt 🌍!"),
        ];
        assert_eq!(world.items(&turn).await, expected, "in pieces of {size}");
        let tokens = ["input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "model_calls"];
        assert_eq!(tokens.map(|name| turn["usage"][name].as_u64().unwrap()), [11, 7, 4, 2, 1]);
        assert_eq!(turn["model"], "test-model");

        world.turn("two").await;
        let seen = [
            json!({ "role": "system", "content": "be brief" }),
            json!({ "role": "user", "content": "one" }),
            json!({ "role": "assistant", "content": "Grüße, Welt 🌍!" }),
            json!({ "role": "user", "content": "two" }),
        ];
        assert_eq!(world.last_seen(), seen);
        world.server.stop().await;
    }
}

#[tokio::test]
async fn a_tool_call_is_told_to_be_unknown_and_the_model_goes_on() {
    let world = world(&[]).await;
    let fragment = |value: Value| delta(json!({ "tool_calls": [value] }));
    let calls = Answer::stream()
        .event(content("let me see"))
        .event(fragment(json!({ "index": 0, "id": "c1", "function": { "name": "ls", "arguments": "{\"pa" } })))
        .event(fragment(json!({ "index": 1, "id": "c2", "function": { "name": "cat", "arguments": "" } })))
        .event(fragment(json!({ "index": 0, "function": { "arguments": "th\":\"/\"}" } })))
        .event(finish("tool_calls"))
        .done();
    world.provider.answer(calls.split_every(5));
    world.provider.answer(Answer::text("there is nothing"));
    let turn = world.turn("look").await;
    let expected = [
        item("user_message", "completed", "look"),
        item("agent_message", "completed", "let me see"),
        item("tool_call", "failed", "unknown tool: ls"),
        item("tool_call", "failed", "unknown tool: cat"),
        item("agent_message", "completed", "there is nothing"),
    ];
    assert_eq!(world.items(&turn).await, expected);
    let seen = world.last_seen();
    let asked = &seen[2]["tool_calls"];
    assert_eq!((&asked[0]["id"], &asked[0]["function"]["name"]), (&json!("c1"), &json!("ls")));
    let arguments: Value = serde_json::from_str(asked[0]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({ "path": "/" }));
    assert_eq!(seen[3], json!({ "role": "tool", "tool_call_id": "c1", "content": "unknown tool: ls" }));
    assert_eq!(seen[4]["tool_call_id"], "c2");
    world.server.stop().await;
}

#[tokio::test]
async fn an_error_that_may_pass_is_tried_again_and_the_cut_off_part_is_not_shown_to_the_model() {
    let overloaded = json!({ "error": { "message": "overloaded", "type": "overloaded_error", "code": 529 } });
    let world = world(&[]).await;
    world.provider.answer(Answer::stream().event(content("half an ans")).event(overloaded));
    world.provider.answer(Answer::stream().event(content("no finish rea")));
    world
        .provider
        .answer(Answer::json(429, &json!({ "error": { "message": "slow down" } })).header("retry-after", "0"));
    world.provider.answer(Answer::text("whole"));
    let turn = world.turn("go").await;
    assert_eq!(turn["status"], "completed");
    let expected = [
        item("user_message", "completed", "go"),
        item("agent_message", "interrupted", "half an ans"),
        item("agent_message", "interrupted", "no finish rea"),
        item("agent_message", "completed", "whole"),
    ];
    assert_eq!(world.items(&turn).await, expected);
    let log = world.server.api.log(&world.thread).await;
    let retries: Vec<_> = log.iter().filter(|event| event["event"] == "turn.retrying").collect();
    let codes: Vec<_> = retries.iter().map(|event| event["payload"]["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["model-unavailable", "model-cut-off", "model-rate-limited"]);
    assert_eq!(world.last_seen().len(), 2, "the model saw its own half answer: {:?}", world.last_seen());
    world.server.stop().await;
}

#[tokio::test]
async fn a_missing_done_after_a_finish_reason_is_an_answer() {
    let world = world(&[]).await;
    world.provider.answer(Answer::stream().event(content("all there")).event(finish("stop")));
    let turn = world.turn("go").await;
    assert_eq!(turn["status"], "completed");
    assert_eq!(world.items(&turn).await[1], item("agent_message", "completed", "all there"));
    assert_eq!(turn["usage"]["unreported_calls"], 1);
    world.server.stop().await;
}

#[tokio::test]
async fn an_error_for_good_fails_the_turn_at_once_and_the_queue_goes_on() {
    let world = world(&[]).await;
    let gate = Gate::closed();
    let bad_key = json!({ "error": { "message": "bad key sk-planted-secret", "type": "invalid_request_error" } });
    world.provider.answer(Answer::json(401, &bad_key).silent_until(&gate));
    world.provider.answer(Answer::text("after"));
    let first = world.server.api.start(&world.thread, "one").await;
    world.server.api.queue(&world.thread, "two").await;
    gate.open();
    let failed = world.server.api.wait(&world.thread, &first).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("model-rejected")));
    world.server.api.rest(&world.thread).await;
    assert_eq!(world.provider.asked().len(), 2);
    let log = serde_json::to_string(&world.server.api.log(&world.thread).await).unwrap();
    assert!(log.contains("after") && !log.contains("planted"), "{log}");
    assert!(!world.server.said().contains("planted"));
    world.server.stop().await;
}

#[tokio::test]
async fn a_provider_that_stays_down_fails_the_turn_after_the_last_try() {
    let world = world(&[("RADDLE_LIMITS_MODEL_ATTEMPTS", "3")]).await;
    for _ in 0..3 {
        world.provider.answer(Answer::json(500, &json!({ "error": { "message": "broken" } })));
    }
    let turn = world.turn("go").await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-unavailable")));
    assert_eq!(world.provider.asked().len(), 3);
    world.server.stop().await;
}

#[tokio::test]
async fn a_pause_beyond_the_cap_fails_the_turn_instead_of_holding_it() {
    let world = world(&[]).await;
    world.provider.answer(Answer::json(429, &json!({})).header("retry-after", "86000"));
    let turn = world.turn("go").await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-rate-limited")));
    world.server.stop().await;
}

#[tokio::test]
async fn a_model_that_hangs_is_given_up_and_asked_again() {
    let world = world(&[("RADDLE_MODEL_OPENAI_FIRST_BYTE_TIMEOUT_MS", "200")]).await;
    let never = Gate::closed();
    world.provider.answer(Answer::text("too late").silent_until(&never));
    world.provider.answer(Answer::text("in time"));
    let turn = world.turn("go").await;
    assert_eq!(turn["status"], "completed");
    assert!(world.names().await.contains(&"turn.retrying".to_owned()));
    assert_eq!(world.items(&turn).await[1], item("agent_message", "completed", "in time"));
    world.server.stop().await;
}

#[tokio::test]
async fn an_interrupt_ends_a_turn_whose_model_hangs_in_the_middle_and_hangs_up_on_it() {
    let world = world(&[]).await;
    let gate = Gate::closed();
    world.provider.answer(Answer::stream().event(content("so far")).wait(&gate).event(finish("stop")));
    let turn = world.server.api.start(&world.thread, "go").await;
    let path = format!("/v1/threads/{}", world.thread);
    let mut events = world.server.api.stream(&world.thread, 0).await;
    while events.next().await.unwrap().event != "item.delta" {}
    let receipt = world.server.api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    assert_eq!(receipt["turn"]["status"], "interrupted");
    // The call is over because we hung up: nobody opened the gate.
    world.provider.until_over(1).await;
    let items = world.items(&receipt["turn"]).await;
    assert_eq!(items[1], item("agent_message", "interrupted", "so far"));
    // What the person saw is part of the conversation.
    world.provider.answer(Answer::text("go on"));
    world.turn("and?").await;
    assert_eq!(world.last_seen()[2], json!({ "role": "assistant", "content": "so far" }));
    world.server.stop().await;
}

#[tokio::test]
async fn the_history_survives_eviction_and_restart_byte_for_byte() {
    let mut world = world(&[("RADDLE_LIMITS_LOADED_THREADS", "1")]).await;
    let call = |name: &str| Answer::tools(&[("c1", name, "{\"b\":1,\"a\":[2]}")]);
    world.provider.answer(call("ls"));
    world.provider.answer(Answer::text("one"));
    world.turn("first").await;
    let other = world.server.api.create(json!({})).await;
    world.server.api.patch(&format!("/v1/threads/{other}"), json!({ "title": "takes the place" })).await.expect(200);
    world.provider.answer(call("cat"));
    world.provider.answer(Answer::text("two"));
    world.turn("second").await;
    world.server.kill();
    let env =
        [("RADDLE_MODEL_DEFAULT", "openai/test-model"), ("RADDLE_MODEL_OPENAI_BASE_URL", world.provider.base_url())];
    world.server = Server::with(world._dir.path(), &env).await;
    world.provider.answer(Answer::text("three"));
    world.turn("third").await;
    let asked = world.provider.asked();
    assert_eq!(asked.len(), 5);
    for pair in asked.windows(2) {
        let (before, after) = (pair[0].messages(), pair[1].messages());
        assert_eq!(&after[..before.len()], before, "what the model had seen has changed");
    }
    world.server.stop().await;
}
