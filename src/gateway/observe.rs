//! What is noticed about every request: its name, its span in the log, its count and its time.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use super::{Gateway, problem::Problem, shed};

/// The header that names a request, in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT: String;
}

/// The name of the request that this task is answering.
pub fn request_id() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Wraps a request: names it, opens its span, counts its answer.
pub async fn observe(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = name(request.headers());
    // The template, never the path: a label per thread would grow without bound.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let trace = request.headers().get("traceparent").and_then(|value| trace_id(value.to_str().ok()?));
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        %method,
        route = route.as_ref().map_or("unmatched", MatchedPath::as_str),
        trace_id = trace,
    );
    let value = HeaderValue::from_str(&id);
    let full = shed::makes_work(&method, route.as_ref().map_or("", MatchedPath::as_str))
        .then(|| gateway.runtime.has_room().err())
        .flatten();
    let answered = async {
        match full {
            // The body is left where it is.
            Some(full) => Problem::from(full).into_response(),
            None => next.run(request).await,
        }
    };
    let mut response = CURRENT.scope(id, answered.instrument(span.clone())).await;
    if let Ok(value) = value {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let elapsed = began.elapsed();
    let status = response.status();
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ?elapsed, "answered"));
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    gateway.metrics.request(route, &method, status, elapsed);
    response
}

/// The caller's name for the request if it is short and plain, a fresh one otherwise.
fn name(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()) => id.to_owned(),
        _ => Uuid::now_v7().to_string(),
    }
}

/// The trace of a W3C `traceparent`: `version-trace-parent-flags` in lower-case hex.
fn trace_id(text: &str) -> Option<&str> {
    let mut parts = text.split('-');
    let mut hex = |length: usize| {
        let part = parts.next()?;
        let plain = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (part.len() == length && plain).then_some(part)
    };
    let (version, trace, parent) = (hex(2)?, hex(32)?, hex(16)?);
    hex(2)?;
    let null = |part: &str| part.bytes().all(|byte| byte == b'0');
    (version != "ff" && !null(trace) && !null(parent)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_from_a_well_formed_parent_only() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&format!("00-{trace}-00f067aa0ba902b7-01")), Some(trace));
        for bad in [
            String::new(),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_request_keeps_a_plain_name_and_loses_any_other() {
        let named = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(value).unwrap());
            name(&headers)
        };
        assert_eq!(named("job-7"), "job-7");
        assert_ne!(named("two words"), "two words");
        assert_ne!(named(&"x".repeat(129)), "x".repeat(129));
        assert!(Uuid::parse_str(&name(&HeaderMap::new())).is_ok());
    }
}
