//! What a client is promised about the stream of all threads: whatever happens to a connection, the reader ends with
//! every thread's log.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

const PATH: &str = "/v1/events";

/// Asks for the stream; `after` goes into the query or into the header.
async fn open(api: &Api, after: Option<&str>, in_header: bool, threads: Option<&str>) -> Stream {
    let mut query = Vec::new();
    query.extend(threads.map(|threads| ("threads", threads)));
    query.extend(after.filter(|_| !in_header).map(|after| ("after", after)));
    let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut request = api.request(Method::GET, &format!("{PATH}?{}", query.join("&")));
    if let (Some(after), true) = (after, in_header) {
        request = request.header("last-event-id", after);
    }
    Stream::open(request).await
}

/// A page after `after`.
async fn page(api: &Api, after: Option<&str>, more: &str) -> Value {
    let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
    api.get(&format!("{PATH}?limit=500{after}{more}")).await.expect(200)
}

/// Where a reader stands who begins now.
async fn now(api: &Api) -> String {
    let page = page(api, None, "").await;
    assert_eq!(page["data"], json!([]));
    text(&page["next_cursor"])
}

/// What a reader has put together, thread by thread.
#[derive(Default)]
struct Reader {
    cursor: Option<String>,
    logs: BTreeMap<String, Vec<Value>>,
}

impl Reader {
    fn from(cursor: &str) -> Self {
        Self { cursor: Some(cursor.to_owned()), logs: BTreeMap::new() }
    }

    fn add(&mut self, event: Value) {
        let log = self.logs.entry(text(&event["thread_id"])).or_default();
        if let Some(last) = log.last() {
            assert_eq!(event["prev"], last["seq"], "a gap, a repetition or another order: {event}");
        }
        assert!(event["seq"].as_u64() > event["prev"].as_u64());
        log.push(event);
    }

    /// Takes a frame of an event.
    fn take(&mut self, frame: &Frame) {
        let event = frame.json();
        assert_eq!(event["event"], *frame.event);
        self.cursor = Some(frame.cursor.clone().unwrap_or_else(|| panic!("no cursor: {frame:?}")));
        self.add(event);
    }

    /// Whether something of `thread` was seen.
    fn knows(&self, thread: &str) -> bool {
        self.logs.contains_key(thread)
    }

    /// Compares with the whole logs of `threads`, and nothing else.
    async fn check(&self, api: &Api, threads: &[String]) {
        let seen: BTreeSet<_> = self.logs.keys().collect();
        assert_eq!(seen, threads.iter().collect());
        for thread in threads {
            let log = api.log(thread).await;
            check_log(&log, true);
            assert!(self.logs[thread] == log, "{thread}: {} events of {}", self.logs[thread].len(), log.len());
        }
    }
}

/// A thread with a life: turns, queued prompts and settings.
async fn live(api: &Api, n: usize) -> String {
    let thread = api.create(json!({"title": n.to_string()})).await;
    api.start(&thread, "@think größer, ☃\n@say naïve\n@tokens 60 400").await;
    for _ in 0..2 {
        api.queue(&thread, "@tokens 40 400\n@say ☃").await;
    }
    let path = format!("/v1/threads/{thread}");
    for patch in 0..5 {
        api.patch(&path, json!({"title": format!("{n}, {patch}")})).await.expect(200);
    }
    api.rest(&thread).await;
    thread
}

/// Several threads that live at once; their ids, the last one a thread that was made when all others rested.
async fn lives(api: &Api, count: usize) -> Vec<String> {
    let mut threads = join_all((0..count).map(|n| live(api, n))).await;
    threads.push(api.create(json!({"title": "the last"})).await);
    threads
}

/// Reads through cut connections and pages until `done` says so.
async fn read_with_cuts(api: &Api, mut reader: Reader, dice: &mut Dice, done: impl Fn(&Reader) -> bool) -> Reader {
    while !done(&reader) {
        if dice.below(4) == 0 {
            let path = format!("{PATH}?limit={}&after={}", 1 + dice.below(20), reader.cursor.as_ref().unwrap());
            let page = api.get(&path).await.expect(200);
            page["data"].as_array().unwrap().iter().for_each(|event| reader.add(event.clone()));
            reader.cursor = Some(text(&page["next_cursor"]));
            continue;
        }
        let mut stream = open(api, reader.cursor.as_deref(), dice.below(2) == 0, None).await;
        let mut left = dice.below(30);
        while left > 0 && !done(&reader) {
            let frame = stream.next().await.expect("nobody but the reader cuts");
            reader.take(&frame);
            left -= 1;
        }
    }
    reader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_are_cut_while_many_threads_write_end_with_every_log() {
    const SEED: u64 = 20_250_117;
    println!("seed {SEED}");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let start = now(api).await;
    let writes = {
        let api = api.clone();
        tokio::spawn(async move { lives(&api, 5).await })
    };
    let readers: Vec<_> = (0..3)
        .map(|n| {
            let (api, start) = (api.clone(), start.clone());
            let last =
                |reader: &Reader| reader.logs.values().any(|log| log[0]["payload"]["thread"]["title"] == "the last");
            tokio::spawn(
                async move { read_with_cuts(&api, Reader::from(&start), &mut Dice::new(SEED + n), last).await },
            )
        })
        .collect();
    let threads = writes.await.unwrap();
    for reader in join_all(readers).await {
        reader.unwrap().check(api, &threads).await;
    }
    // Whoever comes when all is over reads the same.
    let last = threads.last().unwrap();
    let late = read_with_cuts(api, Reader::from(&start), &mut Dice::new(SEED), |reader| reader.knows(last)).await;
    late.check(api, &threads).await;
}

#[tokio::test]
async fn a_stream_without_a_cursor_begins_now_and_says_where_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let old = api.create(json!({})).await;
    let mut stream = open(api, None, false, None).await;
    let start = stream.place().await;
    assert_eq!(start, now(api).await);
    let new = api.create(json!({"title": "new"})).await;
    api.patch(&format!("/v1/threads/{old}"), json!({"title": "seen"})).await.expect(200);
    let seen = [stream.next().await.unwrap(), stream.next().await.unwrap()];
    assert_eq!(seen.each_ref().map(|frame| frame.event.as_str()), ["thread.created", "thread.updated"]);
    assert_eq!(seen.each_ref().map(|frame| text(&frame.json()["thread_id"])), [new, old]);
    // The place that was said before anything happened is one to come back to.
    let mut again = open(api, Some(&start), true, None).await;
    assert_eq!([again.next().await.unwrap(), again.next().await.unwrap()], seen);
    // And a page holds the same events.
    let page = page(api, Some(&start), "").await;
    assert_eq!(page["data"], json!(seen.each_ref().map(Frame::json)));
    assert_eq!((&page["next_cursor"], &page["unavailable"]), (&json!(seen[1].cursor), &json!([])));
}

#[tokio::test]
async fn the_header_is_stronger_than_the_query() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let first = now(api).await;
    api.create(json!({})).await;
    let second = now(api).await;
    for (header, count) in [(&first, 1), (&second, 0)] {
        let request = api.request(Method::GET, &format!("{PATH}?after={first}")).header("last-event-id", header);
        assert_eq!(api.send(request).await.expect(200)["data"].as_array().unwrap().len(), count);
    }
}

#[tokio::test]
async fn a_reader_of_some_threads_is_told_of_no_others_and_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let [wanted, other] = [api.create(json!({})).await, api.create(json!({})).await];
    let start = now(api).await;
    let unknown = "thr_01905d3c-7e57-7abc-8def-0123456789ab";
    let filter = format!("{wanted},{unknown}");
    let mut watching = open(api, None, false, Some(&filter)).await;
    watching.place().await;
    let title = async |thread: &str, title: &str| {
        api.patch(&format!("/v1/threads/{thread}"), json!({ "title": title })).await.expect(200);
    };
    for n in 0..20 {
        title(&other, &n.to_string()).await;
        if n % 5 == 0 {
            title(&wanted, &n.to_string()).await;
        }
    }
    title(&wanted, "the last").await;
    let mut replaying = open(api, Some(&start), true, Some(&filter)).await;
    for stream in [&mut watching, &mut replaying] {
        let mut seqs = Vec::new();
        for _ in 0..5 {
            let event = stream.next().await.unwrap().json();
            assert_eq!(event["thread_id"], *wanted);
            seqs.push(event["seq"].as_u64().unwrap());
        }
        assert_eq!(seqs, [2, 3, 4, 5, 6]);
    }
    // Nothing is said of the others, but the place moves past them.
    let page = page(api, Some(&start), &format!("&threads={unknown}")).await;
    assert_eq!((&page["data"], text(&page["next_cursor"])), (&json!([]), now(api).await));
}

#[tokio::test]
async fn a_stream_says_that_the_server_ends_and_goes_on_after_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), &[("RADDLE_SHUTDOWN_DEADLINE_MS", "200")]).await;
    let mut stream = open(&server.api, None, false, None).await;
    let mut reader = Reader::from(&stream.place().await);
    let [busy, quiet] = [server.api.create(json!({})).await, server.api.create(json!({})).await];
    server.api.start(&busy, "@say begun\n@wait 600000").await;
    // It has seen a part when the server goes.
    for _ in 0..3 {
        reader.take(&stream.next().await.unwrap());
    }
    server.terminate();
    let end = loop {
        let frame = stream.next().await.expect("an end is said");
        if frame.event == "stream.end" {
            break frame;
        }
        reader.take(&frame);
    };
    assert_eq!((end.cursor.as_ref(), &end.json()["reason"]), (None, &json!("shutdown")));
    assert_eq!(end.json()["after"], *reader.cursor.as_ref().unwrap());
    assert_eq!(stream.next().await, None);
    assert_eq!(server.ended().await.code(), Some(0));

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let mut stream = open(api, reader.cursor.as_deref(), true, None).await;
    let path = format!("/v1/threads/{busy}");
    let turn = text(&api.get(&path).await.expect(200)["active_turn"]);
    api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    api.rest(&busy).await;
    let last = api.create(json!({})).await;
    while !reader.knows(&last) {
        reader.take(&stream.next().await.unwrap());
    }
    reader.check(api, &[busy, quiet, last]).await;
}

#[tokio::test]
async fn a_cursor_of_anything_else_is_refused_by_name() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, other) = (Server::start(dir.path()).await, Server::start(other_dir.path()).await);
    let api = &server.api;
    for api in [api, &other.api] {
        for _ in 0..2 {
            api.create(json!({})).await;
        }
    }
    other.api.create(json!({})).await;
    let good = now(api).await;
    let threads = text(&api.get("/v1/threads?limit=1").await.expect(200)["next_cursor"]);
    let ahead = now(&other.api).await;
    let mut damaged = good.clone().into_bytes();
    damaged[5] = if damaged[5] == b'0' { b'1' } else { b'0' };
    let damaged = String::from_utf8(damaged).unwrap();
    for bad in ["", "0", "12", "x", "zz", &good[2..], &threads, &damaged, &ahead, &good.to_uppercase()] {
        for accept in ["text/event-stream", "application/json"] {
            let ask = |path: &str| api.request(Method::GET, path).header("accept", accept);
            let problem = api.send(ask(&format!("{PATH}?after={bad}"))).await.problem(422, "invalid");
            assert_eq!(problem["field"], "after", "{bad}");
            api.send(ask(PATH).header("last-event-id", bad)).await.problem(422, "invalid");
        }
    }
    for bad in ["threads=", "threads=x", "limit=0", "cursor=x"] {
        api.get(&format!("{PATH}?{bad}")).await.problem(422, "invalid");
    }
    // Nor is it a cursor of anything else.
    api.get(&format!("/v1/threads?cursor={good}")).await.problem(422, "invalid");
    api.get(&format!("{PATH}?after={good}")).await.expect(200);
}

#[tokio::test]
async fn a_deletion_is_told_to_those_who_are_there_and_takes_its_events_along() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let mut stream = open(api, None, false, None).await;
    let start = stream.place().await;
    let [gone, stays] = [api.create(json!({})).await, api.create(json!({})).await];
    let mut only_other = open(api, None, false, Some(&stays)).await;
    only_other.place().await;
    assert_eq!(api.delete(&format!("/v1/threads/{gone}")).await.status, 204);
    let deleted = stream.until("thread.deleted").await;
    // It stands in no log, so nobody resumes behind it.
    assert_eq!((deleted.cursor.as_ref(), text(&deleted.json()["thread_id"])), (None, gone));
    // The stream goes on.
    api.patch(&format!("/v1/threads/{stays}"), json!({"title": "x"})).await.expect(200);
    assert_eq!(stream.next().await.unwrap().event, "thread.updated");
    assert_eq!(only_other.next().await.unwrap().event, "thread.updated");
    let page = page(api, Some(&start), "").await;
    let shown: Vec<_> = page["data"].as_array().unwrap().iter().map(|event| text(&event["thread_id"])).collect();
    assert_eq!(shown, [&*stays, &*stays]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_cut_off_with_a_cursor_and_ends_with_every_log() {
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("RADDLE_LIMITS_SUBSCRIBER_BYTES", "65536"),
        ("RADDLE_LIMITS_METADATA_BYTES", "600000"),
        // Its connection is not ended for that: it reads in the end.
        ("RADDLE_LIMITS_STALL_MS", "600000"),
    ];
    let server = Server::with(dir.path(), &env).await;
    let api = &server.api;
    let start = now(api).await;
    let slow = RawWatcher::open(&server, &format!("{PATH}?after={start}")).await;
    let threads = [live(api, 1).await, api.create(json!({})).await];
    // More than all buffers between a server and a reader hold.
    let path = format!("/v1/threads/{}", threads[1]);
    for n in 0..50 {
        api.patch(&path, json!({"metadata": {"n": n, "large": "x".repeat(500_000)}})).await.expect(200);
    }
    let frames = timeout(LOST, slow.rest()).await.expect("the slow reader is not cut off");
    let (last, seen) = frames.split_last().expect("something was sent");
    let mut reader = Reader::from(&start);
    seen.iter().for_each(|frame| reader.take(frame));
    assert_eq!((last.event.as_str(), &last.cursor), ("stream.gap", &None));
    assert_eq!(last.json()["after"], *reader.cursor.as_ref().unwrap());
    let mut stream = open(api, reader.cursor.as_deref(), false, None).await;
    let head = api.get(&path).await.expect(200)["seq"].clone();
    while reader.logs.get(&threads[1]).and_then(|log| log.last()).is_none_or(|event| event["seq"] != head) {
        reader.take(&stream.next().await.unwrap());
    }
    reader.check(api, &threads).await;
}
