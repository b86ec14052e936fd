//! What a client is promised about streams: whatever happens to a connection, the reader ends with the log.

mod support;

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::*;
use tokio::{sync::watch, time::timeout};

/// What a reader has put together, event by event.
#[derive(Default)]
struct Reader {
    after: u64,
    events: Vec<String>,
    /// Item to the text of its deltas.
    texts: BTreeMap<String, String>,
}

impl Reader {
    /// Takes a frame; whether it was an event of the log.
    fn take(&mut self, frame: &Frame) -> bool {
        let Some(id) = frame.id else { return false };
        let event = frame.json();
        assert_eq!(id, self.after + 1, "a gap or a repetition: {frame:?}");
        assert_eq!((&event["seq"], &event["prev"]), (&json!(id), &json!(self.after)));
        assert_eq!(event["event"], *frame.event);
        if frame.event == "item.delta" {
            *self.texts.entry(text(&event["item_id"])).or_default() += event["payload"]["delta"].as_str().unwrap();
        }
        self.after = id;
        self.events.push(frame.data.clone());
        true
    }

    /// Whether the thread was last seen at rest.
    fn at_rest(&self) -> bool {
        self.events.last().is_some_and(|last| last.contains(r#""event":"thread.status""#) && last.contains("\"idle\""))
    }

    /// Compares with the log and the items as they are stored.
    async fn check(&self, api: &Api, thread: &str) {
        let read: Vec<Value> = self.events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let log = api.log(thread).await;
        check_log(&log, true);
        assert_eq!(read, log);
        let items = api.list(&format!("/v1/threads/{thread}/items"), 500).await;
        let streamed = items.iter().filter(|item| item["kind"] == "agent_message" || item["kind"] == "reasoning");
        let stored: BTreeMap<_, _> = streamed.map(|item| (text(&item["id"]), text(&item["detail"]))).collect();
        assert!(!stored.is_empty());
        assert_eq!(self.texts, stored);
    }
}

/// Reads a thread through `cuts` cut connections, and then to its rest.
async fn read_with_cuts(api: &Api, thread: &str, cuts: usize, dice: &mut Dice) -> Reader {
    let mut reader = Reader::default();
    for cut in 0..=cuts {
        let mut stream = match dice.below(2) {
            0 => api.stream(thread, reader.after).await,
            _ => api.stream_from_last(thread, reader.after).await,
        };
        // The last connection reads to the end; each other one is dropped in the middle of whatever comes.
        let mut left = if cut == cuts { usize::MAX } else { dice.below(5) };
        while left > 0 && !reader.at_rest() {
            let frame = stream.next().await.expect("nobody but the reader cuts");
            assert!(reader.take(&frame), "{frame:?}");
            left -= 1;
        }
    }
    reader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_cut_a_hundred_times_ends_with_the_log_byte_for_byte() {
    const SEED: u64 = 20_240_611;
    println!("seed {SEED}");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let script = "@think größer, ☃ and 🦀\n@say naïve\n@tokens 200 60\n@think again\n@say fin ☃";
    let readers = (0..4).map(|n| {
        let api = server.api.clone();
        tokio::spawn(async move {
            let thread = api.create(json!({})).await;
            api.start(&thread, script).await;
            api.queue(&thread, "@tokens 200 400").await;
            let reader = read_with_cuts(&api, &thread, 100, &mut Dice::new(SEED + n)).await;
            reader.check(&api, &thread).await;
            let answer: Vec<_> = (1..=200).map(|word| format!("w{word}")).collect();
            assert!(reader.texts.values().any(|text| *text == format!("naïve\n{}", answer.join(" "))));
            assert!(reader.texts.values().any(|text| *text == answer.join(" ")));
        })
    });
    for reader in join_all(readers).await {
        reader.unwrap();
    }
}

#[tokio::test]
async fn who_watches_and_who_replays_read_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let mut live = api.stream(&thread, 0).await;
    api.start(&thread, "@think a\n@tokens 100 500\n@say ☃").await;
    api.queue(&thread, "@tokens 100").await;
    let head = api.rest(&thread).await["seq"].as_u64().unwrap();
    let read = async |stream: &mut Stream| {
        let mut frames = Vec::new();
        while frames.len() < head as usize {
            frames.push(stream.next().await.unwrap());
        }
        frames
    };
    let live = read(&mut live).await;
    let replayed = read(&mut api.stream(&thread, 0).await).await;
    assert_eq!(live, replayed);
    let log = api.log(&thread).await;
    assert_eq!(live.iter().map(Frame::json).collect::<Vec<_>>(), log);
    // A page holds the same bytes as the stream.
    let page = api.get(&format!("/v1/threads/{thread}/events?limit=500")).await;
    let body = String::from_utf8(page.body).unwrap();
    assert!(live.iter().all(|frame| body.contains(&frame.data)));
    // The header is stronger than the query.
    let both = api.request(reqwest::Method::GET, &format!("/v1/threads/{thread}/events?after=1"));
    let both = api.send(both.header("last-event-id", head - 1)).await.expect(200);
    assert_eq!((both["data"].as_array().unwrap().len(), &both["head"]), (1, &json!(head)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_the_events_after_it_are_the_log_while_turns_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    api.start(&thread, "@think a\n@tokens 60 200").await;
    for n in 0..4 {
        api.queue(&thread, &format!("@think {n}\n@tokens 40 200\n@say ☃")).await;
    }
    let mut taken = BTreeMap::new();
    // Settings change meanwhile as well.
    for n in 0.. {
        let snapshot = api.snapshot(&thread).await;
        let rests = snapshot["thread"]["active_turn"].is_null();
        taken.insert(snapshot["seq"].as_u64().unwrap(), snapshot);
        if rests {
            break;
        }
        if n % 3 == 0 {
            api.patch(&format!("/v1/threads/{thread}"), json!({"title": n.to_string()})).await.expect(200);
        }
    }
    let last = Fold::from_snapshot(&api.snapshot(&thread).await);
    let log = api.log(&thread).await;
    check_log(&log, true);
    assert_eq!(Fold::of(&log), last);
    assert!(taken.len() > 7, "only {} snapshots differ", taken.len());
    for (seq, snapshot) in &taken {
        let before = Fold::of(&log[..*seq as usize]);
        assert_eq!(before, Fold::from_snapshot(snapshot), "a snapshot at {seq} is not the log up to it");
        let after = api.log_after(&thread, *seq).await;
        assert_eq!(Fold::from_snapshot(snapshot).and(&after), last, "from the snapshot at {seq}");
        let mut stream = api.stream(&thread, *seq).await;
        for expected in &after {
            assert_eq!(stream.next().await.unwrap().json(), *expected);
        }
    }
}

#[tokio::test]
async fn a_cursor_that_the_log_has_not_reached_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let path = format!("/v1/threads/{thread}/events");
    for accept in ["text/event-stream", "application/json"] {
        let ask = |path: &str| api.request(reqwest::Method::GET, path).header("accept", accept);
        api.send(ask(&format!("{path}?after=2"))).await.problem(422, "invalid");
        api.send(ask(&path).header("last-event-id", 2)).await.problem(422, "invalid");
        api.send(ask(&format!("{path}?after=-1"))).await.problem(422, "invalid");
        api.send(ask(&path).header("last-event-id", "x")).await.problem(422, "invalid");
    }
    let at_head = api.get(&format!("{path}?after=1")).await.expect(200);
    assert_eq!(at_head, json!({"data": [], "head": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_cut_off_with_a_cursor_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("RADDLE_LIMITS_SUBSCRIBER_BYTES", "65536"),
        ("RADDLE_LIMITS_METADATA_BYTES", "600000"),
        // Its connection is not ended for that: it reads in the end.
        ("RADDLE_LIMITS_STALL_MS", "600000"),
    ];
    let server = Server::with(dir.path(), &env).await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let path = format!("/v1/threads/{thread}");
    let slow = RawWatcher::open(&server, &format!("{path}/events?after=0")).await;
    let (says, mut quick_is_at) = watch::channel(0);
    let quick = {
        let mut stream = api.stream(&thread, 0).await;
        tokio::spawn(async move {
            let mut reader = Reader::default();
            while !reader.events.last().is_some_and(|last| last.contains("the last title")) {
                let frame = stream.next().await.expect("the quick watcher was cut off");
                assert!(reader.take(&frame), "the quick watcher was told {frame:?}");
                says.send(reader.after).unwrap();
            }
            reader
        })
    };
    let mut seen = async |seq: u64| {
        let at = timeout(LOST, quick_is_at.wait_for(|at| *at >= seq)).await;
        at.expect("the quick watcher is held up").expect("the quick watcher is gone");
    };
    let talk = async |prompt: &str| {
        api.start(&thread, prompt).await;
        api.rest(&thread).await["seq"].as_u64().unwrap()
    };
    seen(talk("@think before ☃\n@tokens 100").await).await;
    // More than all buffers between a server and a reader hold. The quick watcher takes each piece before the next.
    for n in 0..50 {
        let large = json!({"metadata": {"n": n, "large": "x".repeat(500_000)}});
        let patched = api.patch(&path, large).await;
        patched.expect(200);
        seen(patched.seq()).await;
    }
    api.patch(&path, json!({"metadata": {}})).await.expect(200);
    seen(talk("after 🦀").await).await;
    api.patch(&path, json!({"title": "the last title"})).await.expect(200);
    let quick = timeout(LOST, quick).await.expect("the quick watcher is held up").unwrap();

    // The slow one now reads what it was sent, and learns where it was let go.
    let mut reader = Reader::default();
    let frames = slow.rest().await;
    let (last, seen) = frames.split_last().expect("something was sent");
    assert!(seen.iter().all(|frame| reader.take(frame)));
    assert_eq!((last.event.as_str(), last.id), ("stream.gap", None));
    assert_eq!(last.json()["after"], reader.after);
    let head = quick.after;
    assert!(reader.after < head, "{} of {head}", reader.after);
    let mut stream = api.stream(&thread, reader.after).await;
    while reader.after < head {
        assert!(reader.take(&stream.next().await.unwrap()));
    }
    assert!(reader.events == quick.events, "the slow watcher read something else");
    assert_eq!(reader.texts, quick.texts);
    reader.check(api, &thread).await;
    let metrics = String::from_utf8(api.get("/metrics").await.body).unwrap();
    assert!(metrics.lines().any(|line| line == "raddle_subscribers_dropped_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_stream_says_that_the_server_ends_and_goes_on_after_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), &[("RADDLE_SHUTDOWN_DEADLINE_MS", "200")]).await;
    let api = server.api.clone();
    let (idle, busy) = (api.create(json!({})).await, api.create(json!({})).await);
    api.start(&busy, "@say begun\n@wait 600000").await;
    let (mut quiet, mut open) = (api.stream(&idle, 0).await, api.stream(&busy, 0).await);
    let mut reader = Reader::default();
    reader.take(&quiet.next().await.unwrap());
    let delta = open.until("item.delta").await;
    let waits = {
        let (api, turn) = (api.clone(), text(&delta.json()["turn_id"]));
        let path = format!("/v1/threads/{busy}/turns/{turn}/wait?timeout_ms=50000");
        tokio::spawn(async move { api.get(&path).await })
    };
    server.terminate();
    let end = quiet.until("stream.end").await;
    assert_eq!((end.id, &end.json()["after"], &end.json()["reason"]), (None, &json!(1), &json!("shutdown")));
    assert_eq!(quiet.next().await, None);
    let end = open.until("stream.end").await;
    assert_eq!(end.json()["after"], delta.id.unwrap());
    assert_eq!(open.next().await, None);
    waits.await.unwrap().problem(503, "draining");
    assert_eq!(server.ended().await.code(), Some(0));

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let mut stream = api.stream(&idle, reader.after).await;
    api.start(&idle, "after the restart").await;
    while !reader.at_rest() {
        assert!(reader.take(&stream.next().await.unwrap()));
    }
    reader.check(api, &idle).await;
    // The open turn goes on where the stream of before ended.
    let mut open = api.stream_from_last(&busy, delta.id.unwrap()).await;
    let first = open.next().await.unwrap();
    assert_eq!(first.id, Some(delta.id.unwrap() + 1));
    if first.event != "turn.resumed" {
        open.until("turn.resumed").await;
    }
}

#[tokio::test]
async fn a_deletion_ends_the_streams_of_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let mut stream = api.stream(&thread, 0).await;
    api.start(&thread, "@wait 600000").await;
    stream.until("item.completed").await;
    assert_eq!(api.delete(&format!("/v1/threads/{thread}")).await.status, 204);
    let last = stream.until("thread.deleted").await;
    assert_eq!(last.json()["thread_id"], *thread);
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_silent_stream_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let thread = server.api.create(json!({})).await;
    let mut stream = server.api.stream(&thread, 1).await;
    // Nothing happens: a stream at the head is neither ended nor given anything.
    assert!(timeout(Duration::from_millis(300), stream.next()).await.is_err());
    server.api.patch(&format!("/v1/threads/{thread}"), json!({"title": "x"})).await.expect(200);
    assert_eq!(stream.next().await.unwrap().event, "thread.updated");
}
