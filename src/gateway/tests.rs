//! The surface of the API: what holds for every route, without a thread being touched.

use axum::{
    body::{Body, to_bytes},
    http::{Request, Response, StatusCode},
};
use serde_json::Value;
use tower::ServiceExt;

use super::*;

/// The file that says what the API looked like last; rewritten with `UPDATE_GOLDEN=1`.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openapi.json");

#[test]
fn the_openapi_document_is_the_golden_one() {
    let now = openapi().unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &now).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    assert!(golden == now, "the API changed: look at the difference after UPDATE_GOLDEN=1");
}

#[test]
fn the_openapi_document_is_whole() {
    let document: Value = serde_json::from_str(&openapi().unwrap()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            ids.extend(operation["operationId"].as_str().map(str::to_owned));
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let named = |name: &str| parameters.iter().any(|p| p["in"] == "path" && p["name"] == name);
            for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                assert!(named(name), "{method} {path} does not describe {name}");
            }
            assert!(operation["responses"].as_object().is_some_and(|all| !all.is_empty()), "{method} {path}");
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids are unique");
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is not described");
    }
}

/// A gateway over a runtime that lives as long as the returned directory.
async fn gateway() -> (Router, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    // This program is a test, and does not know how to be the helper of a sandbox.
    let flags = [("data_dir", data), ("sandbox.kind", "off".to_owned())];
    let config = crate::config::Config::read(None, [], flags).unwrap();
    let app = crate::app::start(&config).await.unwrap();
    let (workspaces, mcp) = (Some(app.workspaces), Some(app.mcp));
    let config = GatewayConfig { body_bytes: 64, workspaces, mcp, ..GatewayConfig::default() };
    (router(app.runtime, config), dir)
}

async fn send(router: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap()
}

/// The status, code and document of a problem.
async fn problem(response: Response<Body>) -> (u16, String, Value) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], problem::CONTENT_TYPE);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let document: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(document["status"], status);
    assert_eq!(document["request_id"], id);
    let code = document["code"].as_str().unwrap().to_owned();
    assert_eq!(document["type"], format!("https://raddle.dev/problems/{code}"));
    (status, code, document)
}

const THREAD: &str = "/v1/threads/thr_01905d3c-7e57-7abc-8def-0123456789ab";

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_are_problems() {
    let (router, _dir) = gateway().await;
    let (status, code, _) = problem(send(&router, "GET", "/v1/nothing", &[], "").await).await;
    assert_eq!((status, code.as_str()), (404, "not-found"));
    let response = send(&router, "PUT", "/v1/threads", &[], "").await;
    let allow = response.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    let (status, code, _) = problem(response).await;
    assert_eq!((status, code.as_str()), (405, "method-not-allowed"));
}

#[tokio::test]
async fn what_is_not_built_says_so_on_its_own_route() {
    let (router, _dir) = gateway().await;
    let document: Value = serde_json::from_str(&openapi().unwrap()).unwrap();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !operation["summary"].as_str().is_some_and(|text| text.starts_with("Not built yet")) {
                continue;
            }
            let response = send(&router, &method.to_uppercase(), path, &[], "").await;
            let (status, code, _) = problem(response).await;
            assert_eq!((status, code.as_str()), (501, "not-implemented"), "{method} {path}");
            asked += 1;
        }
    }
    assert!(asked > 0);
}

#[tokio::test]
async fn a_bad_request_is_refused_before_any_thread_is_asked() {
    let (router, _dir) = gateway().await;
    let turns = format!("{THREAD}/turns");
    let interrupt = format!("{THREAD}/turns/turn_01905d3c-7e57-7abc-8def-0123456789ab/interrupt");
    let long = format!("{{\"prompt\":\"{}\"}}", "x".repeat(64));
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);
    let rows: Vec<Row> = vec![
        ("POST", "/v1/threads", &[], "{", 400, "bad-request"),
        ("POST", "/v1/threads", &[], "[]", 422, "invalid"),
        ("POST", "/v1/threads", &[], r#"{"titel":"x"}"#, 422, "unknown-field"),
        ("POST", "/v1/threads", &[], r#"{"title":7}"#, 422, "invalid"),
        ("POST", "/v1/threads?x=1", &[], "{}", 422, "invalid"),
        ("POST", "/v1/threads", &[("idempotency-key", "")], "{}", 422, "invalid"),
        ("POST", &turns, &[], &long, 413, "too-large"),
        ("POST", &turns, &[("content-length", "9999"), ("expect", "100-continue")], "", 413, "too-large"),
        ("POST", &turns, &[("if-match", "7")], r#"{"prompt":"x"}"#, 400, "bad-request"),
        ("POST", &interrupt, &[], r#"{"pause_queue":1}"#, 422, "invalid"),
        ("PATCH", THREAD, &[("if-match", "W/\"7\"")], "{}", 400, "bad-request"),
        ("GET", "/v1/threads?limit=501", &[], "", 422, "invalid"),
        ("GET", "/v1/threads?cursor=00", &[], "", 422, "invalid"),
        ("GET", "/v1/threads?archived=yes", &[], "", 422, "invalid"),
        ("GET", "/v1/threads?order=asc", &[], "", 422, "invalid"),
        ("GET", "/v1/usage?group_by=week", &[], "", 422, "invalid"),
        ("GET", "/v1/usage?since=yesterday", &[], "", 422, "invalid"),
        ("GET", "/v1/usage?since=1969-12-31", &[], "", 422, "invalid"),
        ("GET", "/v1/usage?since=2026-03-02&until=2026-03-01T23:59:59Z", &[], "", 422, "invalid"),
        ("GET", "/v1/usage?limit=5", &[], "", 422, "invalid"),
        ("GET", "/v1/routing-rules?limit=5", &[], "", 422, "invalid"),
        ("GET", "/v1/mcp?limit=5", &[], "", 422, "invalid"),
        ("PUT", "/v1/routing-rules", &[], "{}", 422, "invalid"),
        ("PUT", "/v1/routing-rules", &[], r#"{"rule":[]}"#, 422, "unknown-field"),
        ("PUT", "/v1/routing-rules", &[("if-match", "\"7\"")], r#"{"rules":[]}"#, 422, "invalid"),
        ("POST", "/v1/routing-rules", &[], r#"{"rules":[]}"#, 405, "method-not-allowed"),
        ("GET", "/v1/threads/thr_x", &[], "", 404, "not-found"),
        ("GET", "/v1/threads/%FF", &[], "", 404, "not-found"),
        ("DELETE", "/v1/threads/turn_01905d3c-7e57-7abc-8def-0123456789ab", &[], "", 404, "not-found"),
        ("GET", "/v1/threads/thr_x/events", &[("accept", "text/event-stream")], "", 404, "not-found"),
        ("GET", "/v1/threads", &[("host", "evil.example")], "", 403, "foreign-origin"),
        ("POST", "/v1/threads", &[("origin", "https://evil.example")], "{}", 403, "foreign-origin"),
    ];
    for (method, path, headers, body, status, code) in rows {
        let found = problem(send(&router, method, path, headers, body).await).await;
        assert_eq!((found.0, found.1.as_str()), (status, code), "{method} {path} {body}: {}", found.2);
    }
    for (header, value) in [("last-event-id", "x"), ("last-event-id", "-1")] {
        let response = send(&router, "GET", &format!("{THREAD}/events"), &[(header, value)], "").await;
        assert_eq!(problem(response).await.2["field"], "Last-Event-ID");
    }
}

#[tokio::test]
async fn a_list_of_rules_is_refused_with_the_field_that_is_wrong() {
    let (router, _dir) = gateway().await;
    let rows = [
        (r#"{"rules":7}"#, "rules"),
        (r#"{"rules":[{"intent":"a"}]}"#, "rules[0]"),
        (r#"{"rules":[{"intent":"a","model":7}]}"#, "rules[0].model"),
        (r#"{"rules":[{"intent":" ","model":"scripted"}]}"#, "rules[0].intent"),
        (r#"{"rules":[{"intent":"a","model":"gpt"}]}"#, "rules[0].model"),
    ];
    for (body, field) in rows {
        let (status, code, document) = problem(send(&router, "PUT", "/v1/routing-rules", &[], body).await).await;
        assert_eq!((status, code.as_str(), &document["field"]), (422, "invalid", &field.into()), "{document}");
    }
}

#[tokio::test]
async fn a_report_says_which_days_it_is_about() {
    let (router, _dir) = gateway().await;
    let report = async |query: &str| {
        let response = send(&router, "GET", &format!("/v1/usage{query}"), &[], "").await;
        assert_eq!(response.status(), StatusCode::OK, "{query}");
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    let all = report("").await;
    assert_eq!((&all["since"], &all["until"], &all["group_by"]), (&Value::Null, &Value::Null, &"day".into()));
    assert_eq!((&all["data"], &all["totals"]["cost_usd"]), (&Value::Array(vec![]), &0.into()));
    let some = report("?since=2026-03-01&until=2026-03-01T23:59:59-05:00&group_by=thread").await;
    assert_eq!((&some["since"], &some["until"]), (&"2026-03-01".into(), &"2026-03-02".into()));
    assert_eq!(some["group_by"], "thread");
    let (_, _, document) =
        problem(send(&router, "GET", "/v1/usage?until=2026-03-01T00:00:00+05:00", &[], "").await).await;
    assert!(document["detail"].as_str().unwrap().contains("%2B"), "{document}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let (router, _dir) = gateway().await;
    let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let request = Request::post("/v1/threads").body(body).unwrap();
    let (status, code, _) = problem(router.oneshot(request).await.unwrap()).await;
    assert_eq!((status, code.as_str()), (400, "bad-request"));
}

#[tokio::test]
async fn a_request_keeps_its_name() {
    let (router, _dir) = gateway().await;
    let response = send(&router, "GET", "/healthz", &[("x-request-id", "job-7")], "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-request-id"], "job-7");
    let response = send(&router, "GET", "/healthz", &[("x-request-id", "two words")], "").await;
    assert_ne!(response.headers()["x-request-id"], "two words");
}

#[tokio::test]
async fn a_panic_is_one_requests_problem() {
    async fn broken() {
        panic!("a secret");
    }
    let broken: Router = Router::new().route("/", axum::routing::get(broken)).layer(CatchPanicLayer::custom(panicked));
    let response = broken.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    assert!(!String::from_utf8_lossy(&body).contains("secret"));
}
