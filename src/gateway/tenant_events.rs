//! The events of all threads of a tenant, as one stream, or in pages.
//!
//! Its cursors are the server's own: a place in the tenant's feed, sealed with the tenant's name. One is said at the
//! beginning and with every sign of life, so that also a reader who was told of no event knows where to go on.

use std::{collections::HashSet, sync::Arc};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use raddle_actors::{
    Error, TenantCursor, TenantNext, TenantPage, TenantSubscription,
    batch::{Audience, Batch},
};
use raddle_domain::{
    id::{TenantId, ThreadId},
    ports::StoredEvent,
};

use super::{
    Gateway,
    cursor::{self, List},
    events::{Pieces, stream, wants_stream},
    frame,
    openapi::Reads,
    problem::Problem,
    request::{Caller, Params},
    wire::{TenantEventPage, Unavailable},
};

/// Read or follow the events of all threads.
///
/// With `Accept: text/event-stream` a stream: what is stored after the cursor, then what happens. Its `id:` is a
/// cursor. Events of one thread come in their order, none missing, none twice; those of a thread that was deleted
/// meanwhile are left out, and `thread.deleted` is told to those who are connected. Otherwise a page.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(
        ("after" = Option<String>, Query, description = "A cursor: the `id:` of an event, or `next_cursor`; from now on unless given"),
        ("threads" = Option<String>, Query, description = "Ids of the threads whose events are wanted, with commas between them; all unless given. An id that there is not says nothing, and is not an error"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Of a page; 50 unless given"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same as `after`, and stronger"),
        ("Accept" = Option<String>, Header, description = "`text/event-stream` for a stream"),
    ),
    responses(
        (status = 200, description = "A page, or a stream of events", content(
            (TenantEventPage = "application/json"),
            (String = "text/event-stream"),
        )),
        Reads,
    ),
)]
pub async fn list_tenant_events(
    State(gateway): State<Arc<Gateway>>,
    Caller { tenant }: Caller,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = params.limit()?;
    let after = after(tenant, &mut params, &headers)?;
    let threads = params.text("threads").map(|text| threads(&text)).transpose()?;
    params.end()?;
    if wants_stream(&headers) {
        let subscription = gateway.runtime.subscribe_tenant(tenant, after, threads).await?;
        return Ok(stream(Feed { tenant, subscription }));
    }
    let page = gateway.runtime.tenant_events(tenant, after, threads, limit).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], list(tenant, page)).into_response())
}

/// Behind which event a reader of the feed wants to go on.
pub fn after(tenant: TenantId, params: &mut Params, headers: &HeaderMap) -> Result<Option<TenantCursor>, Problem> {
    let place = |name: &str, text: &str| cursor::decode_in(name, List::Events(tenant), text);
    let after = params.text("after").map(|text| place("after", &text)).transpose()?;
    let last = headers.get("last-event-id").map(|value| place("Last-Event-ID", value.to_str().unwrap_or_default()));
    Ok(last.transpose()?.or(after))
}

/// The ids of a list. Whether there are such threads is nobody's business here.
fn threads(text: &str) -> Result<HashSet<ThreadId>, Problem> {
    let ids = text.split(',').map(str::parse).collect::<Result<_, _>>();
    ids.map_err(|_| Problem::invalid("threads", "must be ids of threads with commas between them"))
}

/// A page of the feed.
pub fn list(tenant: TenantId, page: TenantPage) -> Bytes {
    let named = |id: ThreadId| id.of_run().map_or_else(|| id.to_string(), |run| run.to_string());
    let unavailable: Vec<_> =
        page.unavailable.into_iter().map(|(id, detail)| Unavailable { id: named(id), detail }).collect();
    let next = text(tenant, &page.next);
    let more = format!("\"next_cursor\":\"{next}\",\"unavailable\":{}", serde_json::json!(unavailable));
    frame::list(page.events.iter().map(|(_, event)| event), &more)
}

/// The feed as a stream.
pub struct Feed {
    pub tenant: TenantId,
    pub subscription: TenantSubscription,
}

impl Pieces for Feed {
    async fn next(&mut self) -> Result<(Bytes, bool), Error> {
        let next = self.subscription.next().await?;
        Ok(piece(self.tenant, &next))
    }

    fn place(&self) -> Bytes {
        frame::cursor(&text(self.tenant, &self.subscription.after()))
    }
}

/// The name of a place, for clients.
fn text(tenant: TenantId, place: &TenantCursor) -> String {
    cursor::encode(List::Events(tenant), place)
}

fn frames<'a>(tenant: TenantId, events: impl Iterator<Item = (Option<TenantCursor>, &'a StoredEvent)>) -> Bytes {
    frame::frames_by_cursor(events.map(|(place, event)| (place.map(|place| text(tenant, &place)), event)))
}

/// What to send, and whether anything follows.
fn piece(tenant: TenantId, next: &TenantNext) -> (Bytes, bool) {
    let shared = |batch: &Arc<Batch>| batch.rendered(Audience::Tenant, |batch| frames(tenant, batch.in_feed()));
    match next {
        TenantNext::Stored(page) => {
            let named = page.unavailable.iter().map(|(thread, why)| frame::unavailable(*thread, why));
            let all: Vec<Bytes> = std::iter::once(frames(tenant, next.events())).chain(named).collect();
            (all.concat().into(), true)
        }
        TenantNext::Live(batches) => match batches.as_slice() {
            [one] => (shared(one), true),
            several => (several.iter().map(shared).collect::<Vec<_>>().concat().into(), true),
        },
        TenantNext::Gap { after } => (frame::gap(text(tenant, after)), false),
        TenantNext::Shutdown { after } => (frame::shutdown(text(tenant, after)), false),
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::{id::ThreadKey, ports::Chunk};

    use super::*;

    const TENANT: TenantId = TenantId::DEFAULT;

    fn batch(position: u64) -> Arc<Batch> {
        let key = ThreadKey { tenant: TENANT, thread: ThreadId::from_bytes([1; 16]) };
        let event = StoredEvent { name: "item.delta".into(), json: (&b"{}"[..]).into() };
        Arc::new(Batch::new(key, Chunk { first: 4, events: vec![event] }, position))
    }

    fn id(position: u64, seq: u64) -> String {
        text(TENANT, &TenantCursor { position, seq })
    }

    fn shown(next: TenantNext) -> (String, bool) {
        let (bytes, goes_on) = piece(TENANT, &next);
        (String::from_utf8(bytes.to_vec()).unwrap(), goes_on)
    }

    #[test]
    fn a_live_event_and_a_stored_one_are_the_same_bytes() {
        let stored = TenantPage {
            events: vec![(TenantCursor { position: 7, seq: 4 }, batch(7).chunk.events[0].clone())],
            unavailable: Vec::new(),
            next: TenantCursor { position: 7, seq: 4 },
            more: false,
        };
        let expected = format!("id: {}\nevent: item.delta\ndata: {{}}\n\n", id(7, 4));
        assert_eq!(shown(TenantNext::Stored(stored)), (expected.clone(), true));
        assert_eq!(shown(TenantNext::Live(vec![batch(7)])), (expected, true));
        assert_eq!(shown(TenantNext::Live(vec![batch(0)])).0, "event: item.delta\ndata: {}\n\n");
    }

    #[test]
    fn a_committed_batch_is_framed_once_for_all_watchers() {
        let next = TenantNext::Live(vec![batch(7)]);
        assert_eq!(piece(TENANT, &next).0.as_ptr(), piece(TENANT, &next).0.as_ptr());
    }

    #[test]
    fn the_last_word_says_where_to_go_on_and_nothing_follows() {
        let after = TenantCursor { position: 7, seq: 4 };
        let gap = format!("event: stream.gap\ndata: {{\"after\":\"{}\"}}\n\n", id(7, 4));
        assert_eq!(shown(TenantNext::Gap { after }), (gap, false));
        let (end, goes_on) = shown(TenantNext::Shutdown { after });
        assert!(end.starts_with("event: stream.end") && end.contains(&id(7, 4)) && !goes_on, "{end}");
    }

    #[test]
    fn a_thread_that_cannot_be_read_is_named_in_streams_and_pages() {
        let thread = ThreadId::from_bytes([9; 16]);
        let next = TenantCursor { position: 7, seq: 4 };
        let page =
            TenantPage { events: Vec::new(), unavailable: vec![(thread, "damaged".to_owned())], next, more: false };
        let (frames, goes_on) = shown(TenantNext::Stored(page.clone()));
        assert!(frames.starts_with("event: stream.unavailable\n") && frames.contains(&thread.to_string()) && goes_on);
        let page: serde_json::Value = serde_json::from_slice(&list(TENANT, page)).unwrap();
        let unavailable = serde_json::json!([{ "id": thread, "detail": "damaged" }]);
        assert_eq!(page, serde_json::json!({ "data": [], "next_cursor": id(7, 4), "unavailable": unavailable }));
    }

    #[test]
    fn a_list_of_threads_is_ids_and_commas() {
        let ids = [1, 2].map(|n| ThreadId::from_bytes([n; 16]));
        assert_eq!(threads(&format!("{},{}", ids[0], ids[1])).unwrap(), HashSet::from(ids));
        for bad in ["", ",", "thr_x", &format!("{},", ids[0]), &format!("{}, {}", ids[0], ids[1])] {
            assert!(threads(bad).is_err(), "{bad}");
        }
    }
}
