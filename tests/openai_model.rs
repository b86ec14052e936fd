//! What the OpenAI client makes of every way in which a provider can answer, over real connections.
//!
//! Where time decides, the clock is stopped once both sides wait: the runtime then moves it to the next timeout.

#[path = "support/openai_server.rs"]
mod openai_server;

use std::time::Duration;

use futures_util::StreamExt;
use raddle::models::{
    openai::{OpenAi, OpenAiConfig},
    provider::Patience,
};
use raddle_domain::{
    history::{Message, ToolCall},
    ports::{FinishReason, Fragment, Model, ModelError, ModelErrorKind, ModelRequest, ModelStream},
    record::Usage,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use openai_server::{Answer, Gate, OpenAiServer, delta, finish};

fn request(messages: Vec<Message>) -> ModelRequest {
    ModelRequest {
        model: "m".into(),
        messages,
        turn_start: 0,
        purpose: raddle_domain::record::Purpose::Answer,
        tools: Vec::new(),
        temperature: None,
        top_p: None,
        max_tokens: None,
    }
}

fn hi() -> ModelRequest {
    request(vec![Message::User { content: "hi".into() }])
}

fn call(base_url: &str) -> ModelStream {
    OpenAi::new(OpenAiConfig::new(base_url)).unwrap().call(hi())
}

type Fragments = Vec<Result<Fragment, ModelError>>;

/// Everything that a call gets for one recorded answer.
async fn fragments(answer: Answer) -> Fragments {
    let server = OpenAiServer::start().await;
    server.answer(answer);
    call(server.base_url()).collect().await
}

/// The error that a call ends with, and nothing after it.
async fn error(answer: Answer) -> ModelError {
    fragments(answer).await.pop().unwrap().unwrap_err()
}

fn text(text: &str) -> Result<Fragment, ModelError> {
    Ok(Fragment::Text(text.into()))
}

fn usage(input_tokens: u64, output_tokens: u64) -> Result<Fragment, ModelError> {
    Ok(Fragment::Usage(Usage { input_tokens, output_tokens, ..Usage::default() }))
}

fn content(text: &str) -> Value {
    delta(json!({ "content": text }))
}

const STOP: Result<Fragment, ModelError> = Ok(Fragment::Finish(FinishReason::Stop));

#[tokio::test]
async fn an_answer_is_streamed_to_its_finish() {
    assert_eq!(fragments(Answer::text("hello world")).await, [text("hello "), text("world"), usage(1, 2), STOP]);
}

#[tokio::test]
async fn fragments_come_while_the_answer_goes_on() {
    let (server, gate) = (OpenAiServer::start().await, Gate::closed());
    server.answer(Answer::stream().event(content("a")).wait(&gate).event(content("b")).event(finish("stop")).done());
    let mut stream = call(server.base_url());
    assert_eq!(stream.next().await, Some(text("a")));
    gate.open();
    assert_eq!(stream.collect::<Vec<_>>().await, [text("b"), STOP]);
}

#[tokio::test]
async fn any_split_of_the_bytes_gives_the_same_answer() {
    for size in 1..12 {
        let answer = Answer::stream()
            .raw("\u{feff}: hi\r\n\r\n")
            .event(content("é😀"))
            .raw(format!("data: {}\r\rdata: {}\r\n\r\n", content("ü"), finish("stop")))
            .done();
        assert_eq!(fragments(answer.split_every(size)).await, [text("é😀"), text("ü"), STOP], "{size}");
    }
}

#[tokio::test]
async fn reasoning_and_tool_calls_and_detailed_usage_are_read() {
    let call = |part: Value| delta(json!({ "tool_calls": [part] }));
    let reported = json!({"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3}});
    let answer = Answer::stream()
        .event(delta(json!({"reasoning_content": "hm"})))
        .event(call(json!({"index": 0, "id": "c1", "function": {"name": "ls", "arguments": ""}})))
        .event(call(json!({"index": 0, "function": {"arguments": "{}"}})))
        .event(finish("tool_calls"))
        .event(json!({"choices": [], "usage": reported}))
        .done();
    let part = |call_id: Option<&str>, name: Option<&str>, arguments: &str| {
        let (call_id, name) = (call_id.map(str::to_owned), name.map(str::to_owned));
        Ok(Fragment::ToolCall { index: 0, call_id, name, arguments: arguments.into() })
    };
    let usage = Usage {
        input_tokens: 9,
        output_tokens: 5,
        cached_tokens: Some(4),
        reasoning_tokens: Some(3),
        ..Usage::default()
    };
    assert_eq!(
        fragments(answer).await,
        [
            Ok(Fragment::Reasoning("hm".into())),
            part(Some("c1"), Some("ls"), ""),
            part(None, None, "{}"),
            Ok(Fragment::Usage(usage)),
            Ok(Fragment::Finish(FinishReason::ToolCalls)),
        ]
    );
}

#[tokio::test]
async fn the_provider_is_sent_the_call_and_the_key() {
    let server = OpenAiServer::start().await;
    server.answer(Answer::text("ok"));
    let config = OpenAiConfig {
        api_key: Some("sk-1".into()),
        headers: vec![("x-team".into(), "blue".into())],
        send_reasoning: true,
        ..OpenAiConfig::new(format!("{}/", server.base_url()))
    };
    let call = ToolCall { call_id: "c1".into(), name: "ls".into(), arguments: "{\"p\":1}".into() };
    let mut request = request(vec![
        Message::System { content: "be kind".into() },
        Message::User { content: "hi".into() },
        Message::Assistant { content: String::new(), reasoning: "hm".into(), tool_calls: vec![call] },
        Message::Tool { call_id: "c1".into(), content: "a.txt".into(), failed: false },
    ]);
    request.temperature = Some(0.5);
    OpenAi::new(config).unwrap().call(request).collect::<Vec<_>>().await;
    let [asked] = server.asked().try_into().unwrap();
    assert_eq!(asked.headers["authorization"], "Bearer sk-1");
    assert_eq!(asked.headers["x-team"], "blue");
    assert_eq!(asked.headers["content-type"], "application/json");
    let function = json!({"name": "ls", "arguments": "{\"p\":1}"});
    assert_eq!(
        asked.body,
        json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5,
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": null, "reasoning_content": "hm",
                 "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
                {"role": "tool", "tool_call_id": "c1", "content": "a.txt"},
            ],
        })
    );
}

/// The one tool call of an answer, put together as it came.
async fn called(stream: ModelStream) -> ToolCall {
    let mut whole = ToolCall::default();
    for fragment in stream.collect::<Fragments>().await {
        if let Fragment::ToolCall { index: 0, call_id, name, arguments } = fragment.unwrap() {
            whole.call_id.push_str(&call_id.unwrap_or_default());
            whole.name.push_str(&name.unwrap_or_default());
            whole.arguments.push_str(&arguments);
        }
    }
    whole
}

#[tokio::test]
async fn a_tool_call_goes_back_as_it_came_to_the_byte() {
    let arguments = "{ \"b\" : 1.50, \"a\":\"é\\u00e9\\/\\n😀\",\n \"b\": 10000000000000000000000 }\t";
    let (server, id) = (OpenAiServer::start().await, "call|Ä-1");
    for size in [1, 3, 1_000] {
        server.answer(Answer::tools(&[(id, "ls", arguments)]).split_every(size));
        server.answer(Answer::text("ok"));
        let model = OpenAi::new(OpenAiConfig::new(server.base_url())).unwrap();
        let call = called(model.call(hi())).await;
        assert_eq!(call, ToolCall { call_id: id.into(), name: "ls".into(), arguments: arguments.into() });
        let said = Message::Assistant { content: String::new(), reasoning: String::new(), tool_calls: vec![call] };
        model.call(request(vec![said])).collect::<Vec<_>>().await;
        let asked = server.asked().pop().unwrap();
        let function = json!({"name": "ls", "arguments": arguments});
        assert_eq!(
            asked.body["messages"][0]["tool_calls"],
            json!([{"id": id, "type": "function", "function": function}])
        );
    }
}

#[tokio::test]
async fn a_configured_header_wins_over_the_key() {
    let server = OpenAiServer::start().await;
    server.answer(Answer::text("ok"));
    let headers = vec![("Authorization".into(), "Basic x".into())];
    let config = OpenAiConfig { api_key: Some("sk-1".into()), headers, ..OpenAiConfig::new(server.base_url()) };
    OpenAi::new(config).unwrap().call(hi()).collect::<Vec<_>>().await;
    let sent: Vec<_> = server.asked()[0].headers.get_all("authorization").iter().cloned().collect();
    assert_eq!(sent, ["Basic x"]);
}

#[tokio::test]
async fn answers_are_chosen_by_a_marker_or_else_in_order() {
    let server = OpenAiServer::start().await;
    server.answer_to("hi", Answer::tools(&[("c1", "ls", "{}")]));
    server.answer(Answer::text("ordered"));
    let model = OpenAi::new(OpenAiConfig::new(server.base_url())).unwrap();
    let said = |content: &str| request(vec![Message::User { content: content.into() }]);
    for _ in 0..2 {
        let last = model.call(said("oh hi")).collect::<Vec<_>>().await.pop();
        assert_eq!(last, Some(Ok(Fragment::Finish(FinishReason::ToolCalls))));
    }
    assert_eq!(model.call(said("ho")).next().await, Some(text("ordered")));
    let error = model.call(said("ho")).next().await.unwrap().unwrap_err();
    assert_eq!(error.message, "the model provider refused the call (status 400): the test recorded no answer");
}

#[tokio::test]
async fn an_error_object_within_the_stream_is_an_error_behind_what_came_before() {
    let broke = json!({"error": {"message": "too many", "type": "server_error", "code": null}});
    let fragments = fragments(Answer::stream().event(content("a")).event(broke).done()).await;
    let message = "the model provider broke off: too many".to_owned();
    let unavailable = ModelError { kind: ModelErrorKind::Unavailable, message, retry_after: None };
    assert_eq!(fragments, [text("a"), Err(unavailable)]);
    let refused = error(Answer::stream().event(json!({"error": {"message": "no", "code": "bad_request"}}))).await;
    assert_eq!(refused.kind, ModelErrorKind::Rejected);
    let limited = error(Answer::stream().raw("event: error\ndata: {\"code\": 429, \"message\": \"slow\"}\n\n")).await;
    assert_eq!(limited.kind, ModelErrorKind::RateLimited);
}

#[tokio::test]
async fn a_missing_done_is_no_failure_behind_a_finish_reason() {
    assert_eq!(fragments(Answer::stream().event(content("a")).event(finish("stop"))).await, [text("a"), STOP]);
}

#[tokio::test]
async fn a_stream_that_ends_before_a_finish_reason_is_cut_off() {
    assert_eq!(error(Answer::stream().event(content("a"))).await.kind, ModelErrorKind::CutOff);
    assert_eq!(error(Answer::stream().event(content("a")).done()).await.kind, ModelErrorKind::CutOff);
    assert_eq!(error(Answer::stream()).await.kind, ModelErrorKind::CutOff);
    let half = format!("data: {}\n", finish("stop"));
    assert_eq!(error(Answer::stream().raw(half)).await.kind, ModelErrorKind::CutOff);
}

#[tokio::test]
async fn a_connection_that_breaks_cuts_off_what_is_not_finished() {
    let fragments_of = |answer: Answer| fragments(answer.broken());
    let mut cut = fragments_of(Answer::stream().event(content("a"))).await;
    assert_eq!(cut.pop().unwrap().unwrap_err().kind, ModelErrorKind::CutOff);
    assert_eq!(cut, [text("a")]);
    let whole = fragments_of(Answer::stream().event(content("a")).event(finish("stop"))).await;
    assert_eq!(whole, [text("a"), STOP]);
}

#[tokio::test]
async fn a_connection_that_closes_before_any_answer_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = call(&format!("http://{}/v1", listener.local_addr().unwrap()));
    let (error, accepted) = tokio::join!(stream.next(), async { listener.accept().await.map(drop) });
    accepted.unwrap();
    assert_eq!(error.unwrap().unwrap_err().kind, ModelErrorKind::CutOff);
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let fragments: Fragments = call(&format!("http://{address}/v1")).collect().await;
    let [Err(error)] = fragments.as_slice() else { panic!("an answer from nobody") };
    assert_eq!(error.kind, ModelErrorKind::Unreachable);
    assert!(!error.message.contains("http"), "{error}");
}

#[tokio::test]
async fn a_rate_limit_says_how_long_to_wait() {
    let limited = |wait: &str| {
        Answer::json(429, &json!({"error": {"message": "slow down"}}))
            .header("date", "Wed, 21 Oct 2015 07:28:00 GMT")
            .header("retry-after", wait)
    };
    let error_of = |wait: &'static str| error(limited(wait));
    let expected = |seconds| ModelError {
        kind: ModelErrorKind::RateLimited,
        message: "the model provider limits the rate of calls (status 429): slow down".into(),
        retry_after: Some(Duration::from_secs(seconds)),
    };
    assert_eq!(error_of("7").await, expected(7));
    assert_eq!(error_of("Wed, 21 Oct 2015 07:29:00 GMT").await, expected(60));
    assert_eq!(error(Answer::new(429, "text/plain")).await.retry_after, None);
}

#[tokio::test]
async fn a_server_error_is_unavailable_and_its_wait_is_kept() {
    let failed = error(Answer::new(500, "text/html").raw("<h1>Oops</h1>")).await;
    assert_eq!(
        (failed.kind, failed.message.as_str()),
        (ModelErrorKind::Unavailable, "the model provider is not available (status 500)")
    );
    let busy = error(Answer::new(503, "text/plain").header("retry-after", "2")).await;
    assert_eq!((busy.kind, busy.retry_after), (ModelErrorKind::Unavailable, Some(Duration::from_secs(2))));
}

#[tokio::test]
async fn a_refusal_is_rejected_and_never_repeats_the_key() {
    let server = OpenAiServer::start().await;
    server.answer(Answer::json(401, &json!({"error": {"message": "wrong key: sk-secret"}})));
    server.answer(Answer::stream().event(json!({"error": {"message": "wrong key: sk-secret"}})));
    let config = OpenAiConfig { api_key: Some("sk-secret".into()), ..OpenAiConfig::new(server.base_url()) };
    let model = OpenAi::new(config).unwrap();
    let mut said = Vec::new();
    for _ in 0..2 {
        let error = model.call(hi()).next().await.unwrap().unwrap_err();
        assert_eq!(error.kind, ModelErrorKind::Rejected);
        said.push(error.message);
    }
    assert_eq!(
        said,
        [
            "the model provider refused the call (status 401): wrong key: [secret]",
            "the model provider broke off: wrong key: [secret]"
        ]
    );
}

#[tokio::test]
async fn a_redirect_is_refused_and_the_key_stays_here() {
    let (server, elsewhere) = (OpenAiServer::start().await, OpenAiServer::start().await);
    let target = format!("{}/chat/completions", elsewhere.base_url());
    server.answer(Answer::new(307, "text/plain").header("location", &target));
    let error = call(server.base_url()).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind, ModelErrorKind::Rejected);
    assert!(!error.message.contains(&target), "{error}");
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn a_long_refusal_is_cut() {
    let refused = error(Answer::json(400, &json!({"error": {"message": "x".repeat(10_000)}}))).await;
    assert!(refused.message.chars().count() < 600);
    // Beyond what is read at all: half an object is not shown.
    let endless = error(Answer::json(400, &json!({"error": {"message": "x".repeat(1_000_000)}}))).await;
    assert_eq!(endless.message, "the model provider refused the call (status 400)");
}

#[tokio::test]
async fn a_provider_that_never_answers_is_given_up() {
    let (server, gate) = (OpenAiServer::start().await, Gate::closed());
    server.answer(Answer::text("late").silent_until(&gate));
    let mut stream = call(server.base_url());
    let answered = tokio::spawn(async move { stream.next().await });
    server.until_asked(1).await;
    tokio::time::pause();
    let error = answered.await.unwrap().unwrap().unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ModelErrorKind::Timeout, "the model provider did not answer within 60s")
    );
}

#[tokio::test]
async fn headers_are_not_yet_the_first_byte_of_an_answer() {
    let (server, gate) = (OpenAiServer::start().await, Gate::closed());
    server.answer(Answer::stream().wait(&gate));
    let patience = Patience { idle: Duration::from_secs(5), ..Patience::default() };
    let config = OpenAiConfig { patience, ..OpenAiConfig::new(server.base_url()) };
    let mut stream = OpenAi::new(config).unwrap().call(hi());
    let answered = tokio::spawn(async move { stream.next().await });
    server.until_asked(1).await;
    tokio::time::pause();
    let error = answered.await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.message, "the model provider did not answer within 60s");
}

#[tokio::test]
async fn an_answer_that_stalls_is_given_up_unless_it_is_finished() {
    let (server, gate) = (OpenAiServer::start().await, Gate::closed());
    server.answer(Answer::stream().event(content("a")).wait(&gate));
    server.answer(Answer::stream().event(content("a")).event(finish("stop")).wait(&gate));
    let model = OpenAi::new(OpenAiConfig::new(server.base_url())).unwrap();
    let (mut stalled, mut finished) = (model.call(hi()), model.call(hi()));
    assert_eq!(stalled.next().await, Some(text("a")));
    assert_eq!(finished.next().await, Some(text("a")));
    tokio::time::pause();
    let stopped = tokio::time::Instant::now();
    let error = stalled.next().await.unwrap().unwrap_err();
    assert_eq!(stopped.elapsed().as_secs(), 60);
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ModelErrorKind::Timeout, "the model provider's answer did not go on within 60s")
    );
    assert_eq!(finished.collect::<Vec<_>>().await, [STOP]);
}

#[tokio::test]
async fn a_connection_that_is_never_made_is_given_up() {
    // The other side takes the connection and then says nothing to the handshake that belongs to it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = call(&format!("https://{}/v1", listener.local_addr().unwrap()));
    let answered = tokio::spawn(async move { stream.next().await });
    let _held = listener.accept().await.unwrap();
    tokio::time::pause();
    let error = answered.await.unwrap().unwrap().unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ModelErrorKind::Timeout, "no connection to the model provider in time")
    );
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_read_as_one() {
    let body = json!({
        "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    });
    let expected = [text("hello"), usage(1, 2), Ok(Fragment::Finish(FinishReason::Length))];
    assert_eq!(fragments(Answer::json(200, &body).split_every(5)).await, expected);
    let untyped = Answer::new(200, "application/octet-stream").raw(body.to_string());
    assert_eq!(fragments(untyped).await, expected);
    let cut = Answer::new(200, "application/json").raw(&body.to_string().as_bytes()[..20]);
    assert_eq!(error(cut.clone()).await.kind, ModelErrorKind::Malformed);
    assert_eq!(error(cut.broken()).await.kind, ModelErrorKind::CutOff);
}

#[tokio::test]
async fn what_is_no_completion_is_malformed() {
    for answer in [
        Answer::stream().event(content("a")).raw("data: {\"choices\": [\n\n"),
        Answer::new(200, "text/html").raw("<html>Sign in</html>"),
        Answer::json(200, &json!({"hello": "world"})),
    ] {
        assert_eq!(error(answer).await.kind, ModelErrorKind::Malformed);
    }
}

#[tokio::test]
async fn what_outgrows_its_bound_is_too_large() {
    let long = "x".repeat((4 << 20) + 1);
    for answer in [
        Answer::stream().raw(format!("data: {long}")),
        Answer::stream().raw(format!(": {long}")),
        Answer::json(200, &json!({"choices": [{"message": {"content": long}}]})),
    ] {
        assert_eq!(error(answer).await.kind, ModelErrorKind::TooLarge);
    }
}

#[tokio::test]
async fn a_dropped_stream_ends_the_request() {
    let (server, gate) = (OpenAiServer::start().await, Gate::closed());
    server.answer(Answer::stream().event(content("a")).wait(&gate));
    let mut stream = call(server.base_url());
    assert_eq!(stream.next().await, Some(text("a")));
    drop(stream);
    server.until_over(1).await;
}

#[tokio::test]
async fn a_call_dropped_before_any_answer_ends_the_request() {
    let (server, gate) = (OpenAiServer::start().await, Gate::closed());
    server.answer(Answer::text("late").silent_until(&gate));
    let mut stream = call(server.base_url());
    let answered = tokio::spawn(async move { stream.next().await });
    server.until_asked(1).await;
    answered.abort();
    server.until_over(1).await;
}
