//! The servers whose tools are offered: how they are, and as a stream what changes.
//!
//! They are the installation's, not a tenant's. Their events are about this process and stored nowhere, so that the
//! stream has no cursors: it begins with how things are now.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use raddle_actors::Error;
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};
use utoipa::ToSchema;

use super::{
    Gateway,
    events::{Pieces, stream, wants_stream},
    frame,
    openapi::Reads,
    problem::Problem,
    request::{Caller, Params},
};
use crate::mcp::{
    Mcp,
    board::{Event, ServerState, Summary},
};

/// All servers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = McpServers)]
pub struct Servers {
    /// In the order of their names.
    #[schema(value_type = Vec<ServerState>)]
    data: Vec<Arc<ServerState>>,
    /// How the start went; not there while it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Summary>)]
    summary: Option<Arc<Summary>>,
}

/// Read or follow the state of the MCP servers.
///
/// With `Accept: text/event-stream` a stream: an event `mcp.server` for each server as it is now and whenever it
/// changes, and one `mcp.startup_complete` once none is being started for the first time any more. These events are
/// about the process: they are not stored, and have no `id:`.
#[utoipa::path(
    get, path = "/v1/mcp", tag = "mcp",
    params(("Accept" = Option<String>, Header, description = "`text/event-stream` for a stream")),
    responses(
        (status = 200, description = "The servers, or a stream of events", content(
            (Servers = "application/json"),
            (String = "text/event-stream"),
        )),
        Reads,
    ),
)]
pub async fn get_mcp(
    State(gateway): State<Arc<Gateway>>,
    _: Caller,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    params.end()?;
    let mcp = gateway.config.mcp.as_ref();
    if wants_stream(&headers) {
        return Ok(stream(match mcp {
            Some(mcp) => Watch::new(mcp.clone()),
            None => {
                Watch { mcp: None, now: VecDeque::from([Event::End]), later: broadcast::Sender::new(1).subscribe() }
            }
        }));
    }
    let (data, summary) = mcp.map(Mcp::states).unwrap_or_default();
    Ok(Json(Servers { data, summary }).into_response())
}

struct Watch {
    mcp: Option<Mcp>,
    now: VecDeque<Event>,
    later: broadcast::Receiver<Event>,
}

impl Watch {
    fn new(mcp: Mcp) -> Self {
        let (now, later) = mcp.watch();
        Self { mcp: Some(mcp), now: now.into(), later }
    }
}

impl Pieces for Watch {
    async fn next(&mut self) -> Result<(Bytes, bool), Error> {
        loop {
            if let Some(event) = self.now.pop_front() {
                return Ok(piece(&event));
            }
            match (self.later.recv().await, self.mcp.clone()) {
                (Ok(event), _) => return Ok(piece(&event)),
                // What was missed is part of how things are now.
                (Err(RecvError::Lagged(_)), Some(mcp)) => *self = Self::new(mcp),
                (Err(_), _) => return Ok(piece(&Event::End)),
            }
        }
    }
}

/// What to send, and whether anything follows.
fn piece(event: &Event) -> (Bytes, bool) {
    match event {
        Event::Server(server) => (frame::named("mcp.server", server), true),
        Event::StartupComplete(summary) => (frame::named("mcp.startup_complete", summary), true),
        Event::End => (frame::named("stream.end", &serde_json::json!({"reason": "shutdown"})), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_frame_without_a_cursor_and_the_end_is_the_last() {
        let summary = Summary { ready: vec!["a".into()], failed: vec![], cancelled: vec![] };
        let (bytes, goes_on) = piece(&Event::StartupComplete(Arc::new(summary)));
        let expected = "event: mcp.startup_complete\ndata: {\"ready\":[\"a\"],\"failed\":[],\"cancelled\":[]}\n\n";
        assert_eq!((bytes, goes_on), (Bytes::from_static(expected.as_bytes()), true));
        assert!(!piece(&Event::End).1);
    }
}
