//! The inbox: prompts that wait, in their order. They can be changed, moved and taken back until they become turns.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode, response::Response};
use raddle_actors::Done;
use raddle_domain::id::{InputId, ThreadId};

use super::{
    Gateway,
    cursor::{self, List as Of},
    openapi::{IfMatch, Paged, Reads, Writes},
    problem::Problem,
    request::{OfInput, OfThread, Params, Verb},
    threads::reply,
    wire::{InboxEntry, List, Nothing, PatchInput, positions},
};

/// List the prompts that wait, in the order in which they will run.
#[utoipa::path(
    get, path = "/v1/threads/{thread}/inbox", tag = "inbox",
    params(
        ("thread" = ThreadId, Path),
        Paged,
    ),
    responses((status = 200, body = List<InboxEntry>, description = "A page"), Reads),
)]
pub async fn list_inbox(
    State(gateway): State<Arc<Gateway>>,
    OfThread(key): OfThread,
    mut params: Params,
) -> Result<Json<List<InboxEntry>>, Problem> {
    let of = Of::Inbox(key);
    let limit = params.limit()?;
    let after = params.text("cursor").map(|text| cursor::decode(of, &text)).transpose()?;
    params.end()?;
    let inbox = positions(gateway.runtime.inbox(key).await?);
    let (data, next) = inbox_page(inbox, after, limit);
    Ok(Json(List { data, next_cursor: next.map(|input| cursor::encode(of, &input)) }))
}

/// The `limit` entries after `after`. A prompt that left the inbox took all before it along: the rest starts at the front.
fn inbox_page(inbox: Vec<InboxEntry>, after: Option<InputId>, limit: usize) -> (Vec<InboxEntry>, Option<InputId>) {
    let seen = |entry: &InboxEntry| Some(entry.admission.id) == after;
    let from = inbox.iter().position(seen).map_or(0, |at| at + 1);
    let more = inbox.len() > from + limit;
    let data: Vec<_> = inbox.into_iter().skip(from).take(limit).collect();
    let next = data.last().filter(|_| more).map(|last| last.admission.id);
    (data, next)
}

/// Change a prompt that waits, or its place among those that wait.
#[utoipa::path(
    patch, path = "/v1/threads/{thread}/inbox/{input}", tag = "inbox", request_body = PatchInput,
    params(("thread" = ThreadId, Path), ("input" = InputId, Path), IfMatch),
    responses(
        (status = 200, body = InboxEntry, description = "As changed, and where it now stands", headers(("ETag" = String))),
        Writes,
    ),
)]
pub async fn patch_input(
    State(gateway): State<Arc<Gateway>>,
    OfInput(key, input): OfInput,
    Verb { body, call }: Verb<PatchInput>,
) -> Result<Response, Problem> {
    let Done { value, seq, replayed } = gateway.runtime.edit_prompt(key, body.into_command(input), call).await?;
    let (admission, position) = value;
    let entry = InboxEntry { admission, position: position as usize };
    Ok(reply(StatusCode::OK, Done { value: entry, seq, replayed }, None, Json))
}

/// Take a prompt back that waits.
#[utoipa::path(
    delete, path = "/v1/threads/{thread}/inbox/{input}", tag = "inbox",
    params(("thread" = ThreadId, Path), ("input" = InputId, Path), IfMatch),
    responses((status = 204, description = "It will not run"), Writes),
)]
pub async fn delete_input(
    State(gateway): State<Arc<Gateway>>,
    OfInput(key, input): OfInput,
    Verb { body: Nothing {}, call }: Verb<Nothing>,
) -> Result<StatusCode, Problem> {
    gateway.runtime.withdraw_prompt(key, input, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use raddle_domain::{
        record::{Admission, AdmissionStatus, Delivery, TurnOverrides},
        time::UnixMs,
    };
    use uuid::Uuid;

    use super::*;

    fn inbox(ids: &[u128]) -> Vec<InboxEntry> {
        let admission = |id: &u128| Admission {
            id: InputId::new(Uuid::from_u128(*id)),
            thread_id: ThreadId::new(Uuid::from_u128(1)),
            kind: Default::default(),
            delivery: Delivery::Queue,
            undelivered: Default::default(),
            status: AdmissionStatus::Pending,
            prompt: "x".into(),
            overrides: TurnOverrides::default(),
            turn_id: None,
            created_at: UnixMs(0),
        };
        positions(ids.iter().map(admission).collect())
    }

    fn page(ids: &[u128], after: Option<u128>, limit: usize) -> (Vec<usize>, bool) {
        let after = after.map(|id| InputId::new(Uuid::from_u128(id)));
        let (data, next) = inbox_page(inbox(ids), after, limit);
        (data.iter().map(|entry| entry.position).collect(), next.is_some())
    }

    #[test]
    fn an_inbox_is_paged_without_a_repeat_or_a_hole() {
        assert_eq!(page(&[1, 2, 3], None, 2), (vec![0, 1], true));
        assert_eq!(page(&[1, 2, 3], Some(2), 2), (vec![2], false));
        assert_eq!(page(&[1, 2, 3], None, 3), (vec![0, 1, 2], false));
        assert_eq!(page(&[], None, 3), (vec![], false));
    }

    #[test]
    fn a_cursor_whose_prompt_was_promoted_goes_on_at_the_front() {
        assert_eq!(page(&[3, 4], Some(2), 2), (vec![0, 1], false));
    }
}
