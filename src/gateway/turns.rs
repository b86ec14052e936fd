//! Turns and their items: start, interrupt, read, list, wait.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use raddle_actors::{Done, ItemQuery, Started};
use raddle_domain::{
    id::{ThreadId, TurnId},
    record::{InterruptReceipt, Item, ItemKind, Turn},
};

use super::{
    Gateway,
    cursor::{self, List as Of},
    openapi::{Reads, Writes},
    problem::Problem,
    request::{OfThread, OfTurn, Params, Verb},
    threads::reply,
    wire::{Interrupt, List, PromptQueued, StartTurn, TurnStarted},
};

const WAIT_DEFAULT_MS: u64 = 30_000;
const WAIT_MAX_MS: u64 = 300_000;

/// Start a turn, or queue its prompt.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/turns", tag = "turns", request_body = StartTurn,
    params(
        ("thread" = ThreadId, Path),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "Makes a repeated request harmless"),
        ("If-Match" = Option<String>, Header, pattern = "^(\"[0-9]+\"|\\*)$", description = "The thread's `seq` that the caller saw, in quotes"),
    ),
    responses(
        (status = 201, body = TurnStarted, description = "Started, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        (status = 202, body = PromptQueued, description = "Queued, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn start_turn(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body, call }: Verb<StartTurn>,
) -> Result<Response, Problem> {
    let start = body.into_command(&**gateway.runtime.models())?;
    let Done { value, seq, replayed } = gateway.runtime.start_turn(key, start, call).await?;
    Ok(match value {
        Started::Turn(turn) => {
            let location = format!("/v1/threads/{}/turns/{}", turn.thread_id, turn.id);
            let done = Done { value: TurnStarted { turn: *turn }, seq, replayed };
            reply(StatusCode::CREATED, done, Some(location), Json)
        }
        Started::Queued { admission, active_turn } => {
            let done = Done { value: PromptQueued { admission: *admission, active_turn }, seq, replayed };
            reply(StatusCode::ACCEPTED, done, None, Json)
        }
    })
}

/// List turns, oldest first.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/turns", tag = "turns",
    params(
        ("thread" = ThreadId, Path),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = List<Turn>, description = "A page"), Reads),
)]
pub async fn list_turns(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    mut params: Params,
) -> Result<Json<List<Turn>>, Problem> {
    let of = Of::Turns(key);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    let page = gateway.runtime.turns(key, after, limit).await?;
    Ok(Json(List { data: page.data, next_cursor: page.next.map(|seq| cursor::encode(of, &seq)) }))
}

/// Read a turn.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/turns/{turn}", tag = "turns",
    params(("thread" = ThreadId, Path), ("turn" = TurnId, Path)),
    responses((status = 200, body = Turn, description = "As it stands"), Reads),
)]
pub async fn get_turn(
    State(gateway): State<Arc<Gateway>>,
    OfTurn(key, turn): OfTurn,
    params: Params,
) -> Result<Json<Turn>, Problem> {
    params.end()?;
    Ok(Json(gateway.runtime.turn(key, turn).await?))
}

/// Interrupt the turn, which must be the active one.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/turns/{turn}/interrupt", tag = "turns", request_body = Interrupt,
    params(
        ("thread" = ThreadId, Path),
        ("turn" = TurnId, Path),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "Makes a repeated request harmless"),
        ("If-Match" = Option<String>, Header, pattern = "^(\"[0-9]+\"|\\*)$", description = "The thread's `seq` that the caller saw, in quotes"),
    ),
    responses(
        (status = 200, body = InterruptReceipt, description = "Ended, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn interrupt_turn(
    State(gateway): State<Arc<Gateway>>,
    OfTurn(key, turn): OfTurn,
    Verb { body, call }: Verb<Interrupt>,
) -> Result<Response, Problem> {
    if body.pause_queue == Some(true) {
        return Err(Problem::not_built("pausing the queue with `pause_queue`"));
    }
    let done =
        gateway.runtime.interrupt(key, raddle_domain::command::Interrupt { turn, pause_queue: false }, call).await?;
    Ok(reply(StatusCode::OK, done, None, Json))
}

/// Wait until the turn has ended.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/turns/{turn}/wait", tag = "turns",
    params(
        ("thread" = ThreadId, Path),
        ("turn" = TurnId, Path),
        ("timeout_ms" = Option<u64>, Query, maximum = 300_000, description = "30000 unless given"),
    ),
    responses(
        (status = 200, body = Turn, description = "It has ended"),
        (status = 202, body = Turn, description = "Not yet"),
        Reads,
    ),
)]
pub async fn wait_turn(
    State(gateway): State<Arc<Gateway>>,
    OfTurn(key, turn): OfTurn,
    mut params: Params,
) -> Result<Response, Problem> {
    let what = format!("a number from 0 to {WAIT_MAX_MS}");
    let timeout = params.take("timeout_ms", &what)?.unwrap_or(WAIT_DEFAULT_MS);
    if timeout > WAIT_MAX_MS {
        return Err(Problem::invalid("timeout_ms", format_args!("must be {what}")));
    }
    params.end()?;
    let turn = gateway.runtime.wait_turn(key, turn, Duration::from_millis(timeout)).await?;
    let status = if turn.status.is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(turn)).into_response())
}

/// List items, oldest first.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/items", tag = "turns",
    params(
        ("thread" = ThreadId, Path),
        ("turn" = Option<TurnId>, Query, description = "Of this turn only"),
        ("kind" = Option<ItemKind>, Query, description = "Of this kind only"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = List<Item>, description = "A page"), Reads),
)]
pub async fn list_items(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    mut params: Params,
) -> Result<Json<List<Item>>, Problem> {
    let of = Of::Items(key);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    let turn = params.take("turn", "a turn id")?;
    let kind = params.word("kind", &KINDS)?;
    params.end()?;
    let page = gateway.runtime.items(key, ItemQuery { turn, kind, after, limit }).await?;
    Ok(Json(List { data: page.data, next_cursor: page.next.map(|place| cursor::encode(of, &place)) }))
}

const KINDS: [(&str, ItemKind); 9] = [
    ("user_message", ItemKind::UserMessage),
    ("agent_message", ItemKind::AgentMessage),
    ("reasoning", ItemKind::Reasoning),
    ("tool_call", ItemKind::ToolCall),
    ("command_execution", ItemKind::CommandExecution),
    ("file_change", ItemKind::FileChange),
    ("context_compaction", ItemKind::ContextCompaction),
    ("status", ItemKind::Status),
    ("error", ItemKind::Error),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_asked_for_by_the_words_that_items_carry() {
        for (word, kind) in KINDS {
            assert_eq!(serde_json::to_value(kind).unwrap(), word);
        }
    }
}
