//! Logs of turns that ended are packed: nobody who reads them can tell, but by the number of deltas.

mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::{Api, LOST, Server, text};
use tokio::time::timeout;

/// The texts of the items, as the deltas among these events say, each with the place behind which it goes on.
fn texts(events: &[Value]) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for event in events.iter().filter(|event| event["event"] == "item.delta") {
        let text: &mut String = texts.entry(event["item_id"].to_string()).or_default();
        *text += event["payload"]["delta"].as_str().unwrap();
    }
    texts
}

/// Every event names the one that this reader has before it, and the last is the head.
#[track_caller]
fn check_chain(events: &[Value], after: u64, head: u64) {
    let mut before = after;
    for event in events {
        assert_eq!(event["prev"], before, "{event}");
        before = event["seq"].as_u64().unwrap();
    }
    assert_eq!(before, head);
}

/// What a stream shows from this cursor up to the head.
async fn streamed(api: &Api, thread: &str, after: u64, head: u64) -> Vec<Value> {
    let (mut stream, mut events) = (api.stream_from_last(thread, after).await, Vec::new());
    let mut at = after;
    while at < head {
        let frame = stream.next().await.unwrap();
        at = frame.id.unwrap();
        assert_eq!(frame.json()["seq"], at);
        events.push(frame.json());
    }
    events
}

fn deltas(log: &[Value]) -> usize {
    log.iter().filter(|event| event["event"] == "item.delta").count()
}

/// The log, once no more than so many deltas are left.
async fn packed(api: &Api, thread: &str, left: usize) -> Vec<Value> {
    let waits = async {
        loop {
            let log = api.log(thread).await;
            if deltas(&log) <= left {
                return log;
            }
        }
    };
    match timeout(LOST, waits).await {
        Ok(log) => log,
        Err(_) => panic!("the log is not packed: {:?}", support::names(&api.log(thread).await)),
    }
}

/// What there is of a thread beside its events.
async fn records(api: &Api, thread: &str) -> (Value, Vec<Value>, Vec<Value>) {
    let path = format!("/v1/threads/{thread}");
    (
        api.snapshot(thread).await,
        api.list(&format!("{path}/items"), 3).await,
        api.list(&format!("{path}/turns"), 2).await,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_gets_the_same_text_from_every_cursor_before_and_after_a_log_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let thread = api.create(json!({"title": "long"})).await;
    api.start(&thread, "@think größer, ☃ and 🦀\n@say naïve \"quoted\"\n@tokens 300 300").await;
    api.rest(&thread).await;
    api.start(&thread, "@tokens 60 200\n@say fin ☃").await;
    api.rest(&thread).await;
    let log = api.log(&thread).await;
    let head = log.last().unwrap()["seq"].as_u64().unwrap();
    check_chain(&log, 0, head);
    assert!(deltas(&log) > 20, "only {} deltas", deltas(&log));
    let before = records(api, &thread).await;
    server.stop().await;

    let server = Server::with(dir.path(), &[("RADDLE_STORE_PACK_AFTER_MS", "0")]).await;
    let api = &server.api;
    // Two answers and a thought.
    let after = packed(api, &thread, 3).await;
    assert_eq!(records(api, &thread).await, before);
    let others = |log: &[Value]| log.iter().filter(|event| event["event"] != "item.delta").cloned().collect::<Vec<_>>();
    assert_eq!(others(&after), others(&log));
    assert_eq!(texts(&after), texts(&log));
    for cursor in 0..=head {
        let expected = texts(&log[cursor as usize..]);
        let page = api.log_after(&thread, cursor).await;
        check_chain(&page, cursor, head);
        // Nothing is left of a text that was read whole, be it an empty piece.
        assert_eq!(texts(&page), expected, "after {cursor}");
        if cursor % 5 == 0 {
            assert_eq!(streamed(api, &thread, cursor, head).await, page);
        }
    }

    // The thread goes on, and what is new is packed in its turn.
    let mut watcher = api.stream(&thread, head).await;
    api.start(&thread, "@tokens 100 300").await;
    let head = api.rest(&thread).await["seq"].as_u64().unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &Value| event["seq"] != head) {
        seen.push(watcher.next().await.unwrap().json());
    }
    let whole = packed(api, &thread, 4).await;
    check_chain(&whole, 0, head);
    let last = whole.iter().rfind(|event| event["event"] == "item.delta").unwrap();
    assert_eq!(texts(&seen)[&last["item_id"].to_string()], text(&last["payload"]["delta"]));
    // A reader that was cut off in the middle of it.
    for piece in seen.iter().filter(|event| event["event"] == "item.delta") {
        let cursor = piece["seq"].as_u64().unwrap();
        let rest = streamed(api, &thread, cursor, head).await;
        check_chain(&rest, cursor, head);
        let read = seen.iter().filter(|event| event["seq"].as_u64() <= Some(cursor)).cloned().collect::<Vec<_>>();
        assert_eq!(texts(&[read, rest].concat()), texts(&seen));
    }
}
