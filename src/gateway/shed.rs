//! Refusing early: a request that makes work is turned away before its body is read, when the runtime would not let
//! its command in. So a refusal costs a fraction of what is refused.
//!
//! This is an economy, not the rule: who is let in is decided by the runtime, once, when the command asks. A request that
//! ends work is not on the list, and neither is one of which few are ever sent.

use axum::http::Method;

/// The paths whose POST makes work.
const MAKE_WORK: [&str; 12] = [
    "/v1/threads",
    "/v1/threads/{thread}/turns",
    "/v1/threads/{thread}/fork",
    "/v1/threads/{thread}/edit",
    "/v1/threads/{thread}/compact",
    "/v1/jobs",
    "/v1/schedules",
    "/v1/runs",
    "/v1/runs/import",
    "/v1/runs/{run}/events",
    "/v1/runs/{run}/tasks",
    "/v1/runs/{run}/tasks/claim",
];

/// Whether a request makes work, by its route alone.
pub fn makes_work(method: &Method, route: &str) -> bool {
    method == Method::POST && MAKE_WORK.contains(&route)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_refused_early_is_a_route_that_there_is() {
        let document: Value = serde_json::from_str(&crate::gateway::openapi().unwrap()).unwrap();
        for path in MAKE_WORK {
            assert!(document["paths"][path]["post"].is_object(), "{path}");
        }
    }

    #[test]
    fn what_ends_work_or_reads_is_never_refused_early() {
        for path in [
            "/v1/threads/{thread}/turns/{turn}/interrupt",
            "/v1/approvals/{approval}",
            "/v1/questions/{question}",
            "/v1/effects/{operation}",
            "/v1/jobs/{job}/cancel",
            "/v1/jobs/{job}/pause",
            "/v1/runs/{run}/tasks/{task}/transition",
        ] {
            assert!(!makes_work(&Method::POST, path), "{path}");
        }
        assert!(!makes_work(&Method::GET, "/v1/threads"));
        assert!(makes_work(&Method::POST, "/v1/threads"));
    }
}
