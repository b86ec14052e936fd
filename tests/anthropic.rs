//! Anthropic's messages API: what the client makes of every way in which it can answer, over real connections, and a
//! conversation through it, seen from outside.

#[path = "support/anthropic_server.rs"]
mod anthropic_server;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::time::Duration;

use anthropic_server::{Messages, delta, refusal, start};
use futures_util::StreamExt;
use openai_server::{Answer, Gate, OpenAiServer};
use raddle::models::anthropic::{Anthropic, AnthropicConfig};
use raddle_domain::{
    history::Message,
    ports::{FinishReason, Fragment, Model, ModelError, ModelErrorKind, ModelRequest, ModelStream, ToolSpec},
    record::{Purpose, Usage},
};
use serde_json::{Value, json};
use support::*;

// ---- the client ----------------------------------------------------------------------------------

fn hi() -> ModelRequest {
    ModelRequest {
        model: "claude-test".into(),
        messages: vec![Message::System { content: "be brief".into() }, Message::User { content: "hi".into() }],
        turn_start: 1,
        purpose: Purpose::Answer,
        tools: Vec::new(),
        temperature: None,
        top_p: None,
        max_tokens: None,
    }
}

fn call(provider: &OpenAiServer) -> ModelStream {
    Anthropic::new(AnthropicConfig::new(provider.root_url())).unwrap().call(hi())
}

type Fragments = Vec<Result<Fragment, ModelError>>;

async fn fragments(answer: Answer) -> Fragments {
    let provider = OpenAiServer::start().await;
    provider.answer(answer);
    call(&provider).collect().await
}

async fn error(answer: Answer) -> ModelError {
    fragments(answer).await.pop().unwrap().unwrap_err()
}

fn text(text: &str) -> Result<Fragment, ModelError> {
    Ok(Fragment::Text(text.into()))
}

/// What [`Messages::opened`] and [`Messages::closed`] report.
fn usage() -> Result<Fragment, ModelError> {
    let usage = Usage { input_tokens: 12, output_tokens: 7, cached_tokens: Some(5), ..Usage::default() };
    Ok(Fragment::Usage(usage))
}

const STOP: Result<Fragment, ModelError> = Ok(Fragment::Finish(FinishReason::Stop));

#[tokio::test]
async fn any_split_of_the_bytes_gives_the_same_answer() {
    let part = |index, call_id: Option<&str>, name: Option<&str>, arguments: &str| {
        let (call_id, name) = (call_id.map(str::to_owned), name.map(str::to_owned));
        Ok(Fragment::ToolCall { index, call_id, name, arguments: arguments.into() })
    };
    let expected = [
        Ok(Fragment::Reasoning("grübel 🤔".into())),
        text("Grüße, "),
        text("Welt 🌍!"),
        part(0, Some("toolu_1"), Some("ls"), ""),
        part(0, None, None, "{\"p\":"),
        part(0, None, None, "\"ä\"}"),
        usage(),
        Ok(Fragment::Finish(FinishReason::ToolCalls)),
    ];
    for size in (1..16).chain([1_000]) {
        let answer = Answer::opened()
            .thinking_block(0, "grübel 🤔")
            .raw(": still here\r\n\r\n")
            .text_block(1, "Grüße, Welt 🌍!")
            .say(json!({"type": "of_the_future", "index": 1}))
            .tool_block(2, "toolu_1", "ls", "{\"p\":\"ä\"}")
            .closed("tool_use");
        assert_eq!(fragments(answer.split_every(size)).await, expected, "in pieces of {size}");
    }
}

#[tokio::test]
async fn the_provider_is_sent_the_call_the_version_and_the_key() {
    let provider = OpenAiServer::start().await;
    provider.answer(Answer::message("ok"));
    let config = AnthropicConfig { api_key: Some("sk-ant-1".into()), ..AnthropicConfig::new(provider.root_url()) };
    let tool = ToolSpec { name: "ls".into(), description: "lists".into(), schema: json!({"type": "object"}) };
    let request = ModelRequest { tools: vec![tool.into()], ..hi() };
    Anthropic::new(config).unwrap().call(request).collect::<Vec<_>>().await;
    let [asked] = provider.asked().try_into().unwrap();
    assert_eq!(
        (&asked.headers["x-api-key"], &asked.headers["anthropic-version"]),
        (&"sk-ant-1".parse().unwrap(), &"2023-06-01".parse().unwrap())
    );
    assert_eq!(asked.headers.get("authorization"), None);
    assert_eq!(
        asked.body,
        json!({
            "model": "claude-test", "max_tokens": 8192, "stream": true,
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "tools": [{"name": "ls", "description": "lists", "input_schema": {"type": "object"}}],
        })
    );
}

#[tokio::test]
async fn a_refusal_has_a_kind_and_a_rate_limit_says_how_long_to_wait() {
    for (status, word, kind) in [
        (400, "invalid_request_error", ModelErrorKind::Rejected),
        (401, "authentication_error", ModelErrorKind::Rejected),
        (413, "request_too_large", ModelErrorKind::Rejected),
        (429, "rate_limit_error", ModelErrorKind::RateLimited),
        (500, "api_error", ModelErrorKind::Unavailable),
        (504, "timeout_error", ModelErrorKind::Unavailable),
        (529, "overloaded_error", ModelErrorKind::Unavailable),
    ] {
        let refused = error(Answer::json(status, &refusal(word, "so it is")).header("retry-after", "7")).await;
        assert_eq!(refused.kind, kind, "{word}");
        assert!(refused.message.ends_with(&format!("(status {status}): so it is")), "{refused}");
        let waits = kind.is_transient().then_some(Duration::from_secs(7));
        assert_eq!(refused.retry_after, waits, "{word}");
    }
}

#[tokio::test]
async fn an_error_within_the_stream_is_an_error_behind_what_came_before() {
    let broke = Answer::opened()
        .say(start(0, json!({"type": "text", "text": "a"})))
        .say(refusal("overloaded_error", "Overloaded"));
    let message = "the model provider broke off: Overloaded".to_owned();
    let unavailable = ModelError { kind: ModelErrorKind::Unavailable, message, retry_after: None };
    assert_eq!(fragments(broke).await, [text("a"), Err(unavailable)]);
}

#[tokio::test]
async fn an_answer_is_whole_with_its_stop_reason_and_cut_off_without_one() {
    let begun = || Answer::opened().text_block(0, "a");
    assert_eq!(error(begun()).await.kind, ModelErrorKind::CutOff);
    assert_eq!(error(begun().say(json!({"type": "message_stop"}))).await.kind, ModelErrorKind::CutOff);
    assert_eq!(error(begun().broken()).await.kind, ModelErrorKind::CutOff);
    let reason = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}});
    assert_eq!(fragments(begun().say(reason.clone())).await, [text("a"), usage(), STOP]);
    assert_eq!(fragments(begun().say(reason).broken()).await, [text("a"), usage(), STOP]);
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_read_as_one() {
    let body = json!({"type": "message", "content": [{"type": "text", "text": "hello"}], "stop_reason": "max_tokens",
        "usage": {"input_tokens": 12, "cache_read_input_tokens": 0, "output_tokens": 2}});
    let usage = Usage { input_tokens: 12, output_tokens: 2, cached_tokens: Some(0), ..Usage::default() };
    let expected = [text("hello"), Ok(Fragment::Usage(usage)), Ok(Fragment::Finish(FinishReason::Length))];
    assert_eq!(fragments(Answer::json(200, &body).split_every(5)).await, expected);
}

#[tokio::test]
async fn what_is_no_message_is_malformed_and_what_outgrows_its_bound_is_too_large() {
    for answer in [
        Answer::opened().raw("data: {\"type\": [\n\n"),
        Answer::new(200, "text/html").raw("<html>Sign in</html>"),
        Answer::json(200, &json!({"hello": "world"})),
    ] {
        assert_eq!(error(answer).await.kind, ModelErrorKind::Malformed);
    }
    let endless = Answer::opened().raw(format!("data: {}", "x".repeat((4 << 20) + 1)));
    assert_eq!(error(endless).await.kind, ModelErrorKind::TooLarge);
}

#[tokio::test]
async fn a_ping_keeps_a_stream_alive_and_silence_ends_it() {
    let (provider, gate) = (OpenAiServer::start().await, Gate::closed());
    provider.answer(Answer::opened().text_block(0, "a").wait(&gate).say(json!({"type": "ping"})).wait(&gate));
    let mut stream = call(&provider);
    assert_eq!(stream.next().await, Some(text("a")));
    gate.open();
    tokio::time::pause();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.message, "the model provider's answer did not go on within 60s");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_dropped_stream_ends_the_request() {
    let (provider, gate) = (OpenAiServer::start().await, Gate::closed());
    provider.answer(Answer::opened().say(start(0, json!({"type": "text", "text": "a"}))).wait(&gate));
    let mut stream = call(&provider);
    assert_eq!(stream.next().await, Some(text("a")));
    drop(stream);
    provider.until_over(1).await;
}

// ---- a conversation ------------------------------------------------------------------------------

struct World {
    server: Server,
    provider: OpenAiServer,
    _dir: tempfile::TempDir,
    thread: String,
}

async fn world(env: &[(&str, &str)]) -> World {
    let provider = OpenAiServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![
        ("RADDLE_MODEL_DEFAULT", "claude-sonnet-4-5"),
        ("RADDLE_MODEL_ANTHROPIC_BASE_URL", provider.root_url()),
        ("RADDLE_MODEL_ANTHROPIC_API_KEY", "sk-planted-secret"),
        ("RADDLE_LIMITS_RETRY_BASE_MS", "1"),
    ];
    all.extend_from_slice(env);
    let server = Server::with(dir.path(), &all).await;
    let thread = server.api.create(json!({ "system_prompt": "be brief" })).await;
    World { server, provider, _dir: dir, thread }
}

impl World {
    async fn turn(&self, prompt: &str) -> Value {
        let turn = self.server.api.start(&self.thread, prompt).await;
        self.server.api.wait(&self.thread, &turn).await
    }

    async fn items(&self, turn: &Value) -> Vec<(String, String, String)> {
        let path = format!("/v1/threads/{}/items?turn={}", self.thread, turn["id"].as_str().unwrap());
        let items = self.server.api.list(&path, 100).await;
        let field = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
        items.iter().map(|item| (field(item, "kind"), field(item, "status"), field(item, "detail"))).collect()
    }

    fn last_seen(&self) -> Vec<Value> {
        self.provider.asked().last().unwrap().messages().to_vec()
    }
}

fn item(kind: &str, status: &str, detail: &str) -> (String, String, String) {
    (kind.into(), status.into(), detail.into())
}

#[tokio::test]
async fn tool_calls_go_there_and_their_results_come_back_in_one_message() {
    let files = tempfile::tempdir().unwrap();
    let world = world(&[("RADDLE_TOOLS_DEMO_DIR", files.path().to_str().unwrap())]).await;
    let put = "{ \"path\" : \"é.txt\" }";
    let calls = Answer::opened()
        .thinking_block(0, "hm")
        .text_block(1, "let me see")
        .tool_block(2, "toolu_1", "demo_read", put)
        .tool_block(3, "toolu_2", "no_such_tool", "")
        .closed("tool_use");
    world.provider.answer(calls.split_every(7));
    world.provider.answer(Answer::message("there"));
    let turn = world.turn("look").await;
    let items = world.items(&turn).await;
    assert_eq!(items[1], item("reasoning", "completed", "hm"));
    assert_eq!(items[2], item("agent_message", "completed", "let me see"));
    assert_eq!(items[4], item("tool_call", "failed", "unknown tool: no_such_tool"));
    assert_eq!(items[5], item("agent_message", "completed", "there"));
    let tokens = ["input_tokens", "output_tokens", "cached_tokens", "model_calls"];
    assert_eq!(tokens.map(|name| turn["usage"][name].as_u64().unwrap()), [24, 14, 10, 2]);
    assert!(turn["usage"]["cost"].is_null() || turn["usage"]["cost"]["pico_usd"].as_u64().unwrap() > 0, "{turn}");

    let seen = world.last_seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    let [said, first, second] = seen[1]["content"].as_array().unwrap().as_slice() else { panic!("{seen:?}") };
    assert_eq!(*said, json!({"type": "text", "text": "let me see"}));
    assert_eq!((&first["id"], &first["input"]), (&json!("toolu_1"), &json!({"path": "é.txt"})));
    assert_eq!((&second["id"], &second["input"]), (&json!("toolu_2"), &json!({})));
    let results = seen[2]["content"].as_array().unwrap();
    assert_eq!(seen[2]["role"], "user");
    assert_eq!(
        (&results[0]["tool_use_id"], results[0].get("is_error").cloned()),
        (&json!("toolu_1"), (items[3].1 == "failed").then(|| json!(true)))
    );
    assert_eq!(
        results[1],
        json!({"type": "tool_result", "tool_use_id": "toolu_2", "content": "unknown tool: no_such_tool", "is_error": true})
    );
    world.server.stop().await;
}

#[tokio::test]
async fn an_overload_and_a_rate_limit_are_tried_again_where_everybody_sees_it() {
    let world = world(&[]).await;
    world.provider.answer(Answer::json(529, &refusal("overloaded_error", "Overloaded")));
    world.provider.answer(Answer::json(429, &refusal("rate_limit_error", "slow down")).header("retry-after", "0"));
    world.provider.answer(
        Answer::opened()
            .say(start(0, json!({"type": "text", "text": "half"})))
            .say(delta(0, json!({"type": "text_delta", "text": " an ans"})))
            .say(refusal("overloaded_error", "Overloaded")),
    );
    world.provider.answer(Answer::message("whole"));
    let turn = world.turn("go").await;
    assert_eq!(turn["status"], "completed");
    let expected = [
        item("user_message", "completed", "go"),
        item("agent_message", "interrupted", "half an ans"),
        item("agent_message", "completed", "whole"),
    ];
    assert_eq!(world.items(&turn).await, expected);
    let log = world.server.api.log(&world.thread).await;
    let retries: Vec<_> = log.iter().filter(|event| event["event"] == "turn.retrying").collect();
    let codes: Vec<_> = retries.iter().map(|event| event["payload"]["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["model-unavailable", "model-rate-limited", "model-unavailable"]);
    // Without its own half answer.
    assert_eq!(world.last_seen().len(), 1);
    world.server.stop().await;
}

#[tokio::test]
async fn a_wait_beyond_the_cap_and_a_bad_key_fail_the_turn_and_the_key_is_nowhere() {
    let world = world(&[]).await;
    world.provider.answer(Answer::json(429, &refusal("rate_limit_error", "slow down")).header("retry-after", "86000"));
    let turn = world.turn("one").await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-rate-limited")));
    world.provider.answer(Answer::json(401, &refusal("authentication_error", "bad key sk-planted-secret")));
    let turn = world.turn("two").await;
    assert_eq!((&turn["status"], &turn["error"]["code"]), (&json!("failed"), &json!("model-rejected")));
    let log = serde_json::to_string(&world.server.api.log(&world.thread).await).unwrap();
    assert!(log.contains("[secret]") && !log.contains("planted"), "{log}");
    assert!(!world.server.said().contains("planted"));
    world.server.stop().await;
}

#[tokio::test]
async fn the_history_survives_a_restart_byte_for_byte() {
    let mut world = world(&[]).await;
    let uses = |name: &str| Answer::uses(&[("toolu_1", name, "{\"b\":1,\"a\":[2]}")]);
    world.provider.answer(uses("ls"));
    world.provider.answer(Answer::message("one"));
    world.turn("first").await;
    world.server.kill();
    let env = [
        ("RADDLE_MODEL_DEFAULT", "anthropic/claude-sonnet-4-5"),
        ("RADDLE_MODEL_ANTHROPIC_BASE_URL", world.provider.root_url()),
    ];
    world.server = Server::with(world._dir.path(), &env).await;
    world.provider.answer(uses("cat"));
    world.provider.answer(Answer::message("two"));
    world.turn("second").await;
    let asked = world.provider.asked();
    assert_eq!(asked.len(), 4);
    for pair in asked.windows(2) {
        let (before, after) = (pair[0].messages(), pair[1].messages());
        assert_eq!(&after[..before.len()], before, "what the model had seen has changed");
    }
    world.server.stop().await;
}
