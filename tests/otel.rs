//! What a collector is told: the spans of a turn, in the words of OpenTelemetry's conventions, and nothing that was
//! said. Only in a build with the feature `otel`.
#![cfg(feature = "otel")]

#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use openai_server::{Answer, OpenAiServer};
use serde_json::json;
use support::*;

/// What was posted to a collector of our own.
type Posted = Arc<Mutex<Vec<Bytes>>>;

async fn collector() -> (String, Posted) {
    let posted = Posted::default();
    let take = async |State(posted): State<Posted>, body: Bytes| posted.lock().unwrap().push(body);
    let router = Router::new().route("/v1/traces", post(take)).with_state(posted.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, posted)
}

/// A field of a protobuf message: its number, and its bytes or its value.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>, u64)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let (mut text, mut value) = (Vec::new(), 0);
        match tag & 7 {
            0 => value = varint(&mut bytes),
            kind => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    2 => usize::try_from(varint(&mut bytes)).unwrap(),
                    other => panic!("wire type {other}"),
                };
                text = bytes[..length].to_vec();
                bytes = &bytes[length..];
            }
        }
        all.push((tag >> 3, text, value));
    }
    all
}

fn all(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    fields(message).into_iter().filter(|(field, ..)| *field == number).map(|(_, bytes, _)| bytes).collect()
}

fn one(message: &[u8], number: u64) -> Vec<u8> {
    all(message, number).pop().unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug)]
struct Told {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    failed: bool,
    attributes: BTreeMap<String, String>,
}

fn told(span: &[u8]) -> Told {
    let number = |of: &[u8], field| fields(of).into_iter().find(|(at, ..)| *at == field).map_or(0, |found| found.2);
    let value = |of: &[u8]| match fields(of).first() {
        Some((1, text, _)) => String::from_utf8(text.clone()).unwrap(),
        Some((5, list, _)) => {
            format!(
                "{:?}",
                all(list, 1)
                    .iter()
                    .map(|one| String::from_utf8_lossy(&self::one(one, 1)).into_owned())
                    .collect::<Vec<_>>()
            )
        }
        Some((_, _, number)) => number.to_string(),
        None => String::new(),
    };
    let attributes = all(span, 9);
    let attributes = attributes.iter().map(|pair| (String::from_utf8(one(pair, 1)).unwrap(), value(&one(pair, 2))));
    Told {
        trace: hex(&one(span, 1)),
        id: hex(&one(span, 2)),
        parent: hex(&one(span, 4)),
        name: String::from_utf8(one(span, 5)).unwrap(),
        kind: number(span, 6),
        failed: number(&one(span, 15), 3) == 2,
        attributes: attributes.collect(),
    }
}

fn spans(posted: &Posted) -> Vec<Told> {
    let posted = posted.lock().unwrap();
    let resources = posted.iter().flat_map(|body| all(body, 1));
    let scopes = resources.flat_map(|resource| all(&resource, 2));
    scopes.flat_map(|scope| all(&scope, 2)).map(|span| told(&span)).collect()
}

#[tokio::test]
async fn a_turn_with_a_tool_call_is_a_tree_of_spans_below_its_caller_and_nothing_said_is_in_it() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const CALLER: &str = "00f067aa0ba902b7";
    let (collector, posted) = collector().await;
    let provider = OpenAiServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("RADDLE_OTEL_ENDPOINT", collector.as_str()),
        ("RADDLE_MODEL_DEFAULT", "openai/test-model"),
        ("RADDLE_MODEL_OPENAI_BASE_URL", provider.base_url()),
        // Whatever the log is told.
        ("RADDLE_LOG", "off"),
    ];
    let server = Server::with(dir.path(), &env).await;
    let api = &server.api;
    let thread = api.create(json!({"auto_approve": true})).await;
    provider.answer(Answer::tools(&[("call_7", "list_dir", r#"{"path": ".", "planted-argument": 1}"#)]));
    provider.answer(Answer::tools(&[("call_8", "list_dir", r#"{"path": "."}"#)]));
    provider.answer(Answer::text("planted-answer"));
    let path = format!("/v1/threads/{thread}/turns");
    let start = api.request(reqwest::Method::POST, &path).header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let turn = text(&api.send(start.json(&json!({"prompt": "planted-prompt"}))).await.expect(201)["turn"]["id"]);
    assert_eq!(api.wait(&thread, &turn).await["status"], "completed");
    provider.answer(Answer::json(400, &json!({"error": {"message": "planted-failure"}})));
    let failed = api.start(&thread, "planted-prompt").await;
    assert_eq!(api.wait(&thread, &failed).await["status"], "failed");
    server.stop().await;

    let all = spans(&posted);
    assert!(!posted.lock().unwrap().iter().any(|body| String::from_utf8_lossy(body).contains("planted")), "{all:?}");
    let of_trace: Vec<_> = all.iter().filter(|span| span.trace == TRACE).collect();
    let named = |name: &str| -> Vec<&Told> { of_trace.iter().copied().filter(|span| span.name == name).collect() };
    let [request] = named("POST /v1/threads/{thread}/turns")[..] else { panic!("{all:?}") };
    let [invoked] = named("invoke_agent")[..] else { panic!("{all:?}") };
    let (chats, tools) = (named("chat test-model"), named("execute_tool list_dir"));
    assert_eq!(of_trace.len(), 2 + chats.len() + tools.len(), "{all:?}");
    // A call of which the arguments make no sense is no attempt.
    assert_eq!((chats.len(), tools.len()), (3, 1), "{all:?}");
    assert_eq!(
        (&*request.parent, request.kind, request.attributes["http.response.status_code"].as_str()),
        (CALLER, 2, "201")
    );
    assert_eq!(invoked.parent, request.id);
    assert!(chats.iter().chain(&tools).all(|span| span.parent == invoked.id), "{all:?}");
    for span in chats.iter().chain(&tools).chain([&invoked]) {
        assert_eq!(span.attributes["gen_ai.conversation.id"], thread);
    }
    let chat = chats.iter().find(|chat| chat.attributes["gen_ai.response.finish_reasons"] == r#"["stop"]"#).unwrap();
    for (name, value) in
        [("gen_ai.operation.name", "chat"), ("gen_ai.provider.name", "openai"), ("gen_ai.request.model", "test-model")]
    {
        assert_eq!(chat.attributes[name], value);
    }
    assert!(chat.attributes["gen_ai.usage.input_tokens"].parse::<u64>().is_ok(), "{chat:?}");
    let tool = &tools[0].attributes;
    assert_eq!((&*tool["gen_ai.tool.name"], &*tool["gen_ai.tool.call.id"]), ("list_dir", "call_8"));
    assert_eq!((chat.kind, chat.failed, tools[0].failed), (3, false, false));
    // The provider can go on with the trace.
    let carried = provider.asked()[0].headers["traceparent"].to_str().unwrap().to_owned();
    assert!(chats.iter().any(|chat| carried == format!("00-{TRACE}-{}-01", chat.id)), "{carried}");
    // Another turn, of a caller who traces nothing, is a trace of its own, and says how it failed.
    let failed: Vec<_> = all.iter().filter(|span| span.trace != TRACE && span.failed).collect();
    assert_eq!(failed.len(), 1, "{all:?}");
    assert_eq!(failed[0].attributes["error.type"], "model-rejected");
}
