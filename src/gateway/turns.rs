//! Turns and their items: start, steer, interrupt, compact, edit, read, list, wait.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use raddle_actors::{Done, ItemQuery, Started};
use raddle_domain::{
    command,
    id::{ThreadId, TurnId},
    record::{InterruptReceipt, Item, ItemKind, Turn},
};

use super::{
    Gateway,
    cursor::{self, List as Of},
    openapi::{IfMatch, Once, Paged, Reads, Spends, Writes},
    problem::Problem,
    request::{OfThread, OfTurn, Params, Verb},
    threads::reply,
    wire::{
        CompactThread, Compacting, EditThread, Interrupt, List, PromptQueued, StartTurn, SteerAccepted, SteerTurn,
        TurnStarted,
    },
};

const WAIT_DEFAULT_MS: u64 = 30_000;
const WAIT_MAX_MS: u64 = 300_000;

/// Start a turn, or say what an open one makes of the prompt: nothing, a place in the inbox, or its own end.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/turns", tag = "turns", request_body = StartTurn,
    params(
        ("thread" = ThreadId, Path),
        Once,
        IfMatch,
    ),
    responses(
        (status = 201, body = TurnStarted, description = "Started, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        (status = 202, body = PromptQueued, description = "In the inbox, and durable",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
        Spends,
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
        Started::Turn(turn) => started(Done { value: *turn, seq, replayed }),
        Started::Queued { admission, active_turn } => {
            let done = Done { value: PromptQueued { admission: *admission, active_turn }, seq, replayed };
            reply(StatusCode::ACCEPTED, done, None, Json)
        }
    })
}

/// The reply to a request whose turn runs.
fn started(Done { value: turn, seq, replayed }: Done<Turn>) -> Response {
    let location = format!("/v1/threads/{}/turns/{}", turn.thread_id, turn.id);
    reply(StatusCode::CREATED, Done { value: TurnStarted { turn }, seq, replayed }, Some(location), Json)
}

/// Take the last prompt's turn out of the conversation, and start another in its place.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/edit", tag = "threads", request_body = EditThread,
    params(("thread" = ThreadId, Path), Once, IfMatch),
    responses(
        (status = 201, body = TurnStarted, description = "Started, and durable",
            headers(("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
        Spends,
    ),
)]
pub async fn edit_thread(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body, call }: Verb<EditThread>,
) -> Result<Response, Problem> {
    let start = StartTurn::from(body).into_command(&**gateway.runtime.models())?;
    gateway.runtime.edit_last(key, start, call).await.map(started).map_err(Problem::from)
}

/// Replace the conversation so far by a summary, in a turn of its own.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/compact", tag = "threads", request_body = CompactThread,
    params(("thread" = ThreadId, Path), Once, IfMatch),
    responses(
        (status = 202, body = Compacting, description = "It runs, or waits for the open turn; durable either way",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
        Spends,
    ),
)]
pub async fn compact_thread(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    Verb { body, call }: Verb<CompactThread>,
) -> Result<Response, Problem> {
    let Done { value, seq, replayed } = gateway.runtime.compact(key, body.into_command(), call).await?;
    let value = match value {
        Started::Turn(turn) => Compacting::Started(Box::new(TurnStarted { turn: *turn })),
        Started::Queued { admission, active_turn } => {
            Compacting::Queued(Box::new(PromptQueued { admission: *admission, active_turn }))
        }
    };
    Ok(reply(StatusCode::ACCEPTED, Done { value, seq, replayed }, None, Json))
}

/// Give the model of the turn, which must be the active one, something to see at its next step.
#[utoipa::path(
    post, path = "/v1/threads/{thread}/turns/{turn}/steer", tag = "turns", request_body = SteerTurn,
    params(("thread" = ThreadId, Path), ("turn" = TurnId, Path), Once, IfMatch),
    responses(
        (status = 202, body = SteerAccepted, description = "Durable; the model sees it, or the turn's end reports it",
            headers(("ETag" = String), ("Idempotent-Replayed" = Option<String>))),
        Writes,
    ),
)]
pub async fn steer_turn(
    State(gateway): State<Arc<Gateway>>,
    OfTurn(key, turn): OfTurn,
    Verb { body, call }: Verb<SteerTurn>,
) -> Result<Response, Problem> {
    let Done { value, seq, replayed } = gateway.runtime.steer(key, body.into_command(turn)?, call).await?;
    Ok(reply(StatusCode::ACCEPTED, Done { value: SteerAccepted { admission: value }, seq, replayed }, None, Json))
}

/// List turns, oldest first.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/turns", tag = "turns",
    params(
        ("thread" = ThreadId, Path),
        Paged,
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
        Once,
        IfMatch,
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
    let interrupt = command::Interrupt { turn, pause_queue: body.pause_queue.unwrap_or_default() };
    let done = gateway.runtime.interrupt(key, interrupt, call).await?;
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
        Paged,
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
