//! What a client is promised about the streams of runs: whatever happens to a connection, the reader ends with the log.

#[path = "support/runs.rs"]
mod board;
mod support;

use std::collections::BTreeMap;

use board::{Fold, Run};
use futures_util::{StreamExt, future::join_all, stream};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

const PATH: &str = "/v1/runs/stream";

async fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(dir.path()).await, dir)
}

fn named(runs: &[Run]) -> String {
    runs.iter().map(|run| run.id.as_str()).collect::<Vec<_>>().join(",")
}

/// Asks for the stream of many; `after` goes into the query or into the header.
async fn open(api: &Api, query: &str, after: Option<&str>, in_header: bool) -> Stream {
    let mut path = format!("{PATH}?{query}");
    if let (Some(after), false) = (after, in_header) {
        path += &format!("&after={after}");
    }
    let mut request = api.request(Method::GET, &path);
    if let (Some(after), true) = (after, in_header) {
        request = request.header("last-event-id", after);
    }
    Stream::open(request).await
}

/// What a reader has put together, run by run.
#[derive(Default)]
struct Reader {
    cursor: Option<String>,
    logs: BTreeMap<String, Vec<Value>>,
    count: usize,
}

impl Reader {
    fn add(&mut self, event: Value) {
        assert!(event.get("thread_id").is_none() && event.get("job_id").is_none(), "another's event: {event}");
        let log = self.logs.entry(text(&event["run_id"])).or_default();
        let last = log.last().map_or(0, |last| last["seq"].as_u64().unwrap());
        assert_eq!(
            (&event["prev"], &event["seq"]),
            (&json!(last), &json!(last + 1)),
            "a gap, a repetition or another order"
        );
        log.push(event);
        self.count += 1;
    }

    fn take(&mut self, frame: &Frame) {
        let event = frame.json();
        assert_eq!(event["event"], *frame.event);
        self.cursor = Some(frame.cursor.clone().unwrap_or_else(|| panic!("no cursor: {frame:?}")));
        self.add(event);
    }

    /// Compares with the whole logs of these runs, and nothing else.
    async fn check(&self, runs: &[Run]) {
        assert_eq!(self.logs.len(), runs.len());
        for run in runs {
            let log = run.log().await;
            assert!(self.logs[&run.id] == log, "{} events of {}", self.logs[&run.id].len(), log.len());
            Fold::of(&log);
        }
    }
}

/// Lets things happen to runs: `count` requests, several at once.
async fn happen(runs: &[Run], count: usize) {
    stream::iter(0..count)
        .map(|n| {
            let run = runs[n % runs.len()].clone();
            async move {
                match n % 5 {
                    0 => drop(run.tasks(json!([{"task_type": "t"}, {"task_type": "t", "priority": n}])).await),
                    1 => drop(run.add("add_fact", json!({"text": format!("größer als {n} ☃")})).await),
                    2 => drop(run.claim("a").await),
                    _ => drop(run.tell("deployed").await),
                }
            }
        })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await;
}

// ---- one run -------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_a_run_and_who_replays_it_read_the_same_bytes() {
    let (server, _dir) = server().await;
    let run = Run::new(&server.api).await;
    let live = {
        let mut stream = run.stream(0).await;
        tokio::spawn(async move {
            let mut frames = Vec::new();
            loop {
                let frame = stream.next().await.expect("nobody cuts");
                let last = frame.event == "the last";
                frames.push(frame);
                if last {
                    return frames;
                }
            }
        })
    };
    happen(std::slice::from_ref(&run), 100).await;
    // What a client calls its events ends no stream.
    for name in ["deleted", "end", "thread_deleted"] {
        run.tell(name).await;
    }
    happen(std::slice::from_ref(&run), 100).await;
    run.tell("the last").await;
    let live = live.await.unwrap();
    let log = run.log().await;
    assert_eq!(live.iter().map(Frame::json).collect::<Vec<_>>(), log);
    assert_eq!(
        live.iter().map(|frame| frame.id.unwrap()).collect::<Vec<_>>(),
        (1..=log.len() as u64).collect::<Vec<_>>()
    );
    for after in [0, 1, 7, log.len() / 2, log.len() - 1] {
        let mut query = run.stream(after as u64).await;
        let request = server.api.request(Method::GET, &run.at("/events?after=3")).header("last-event-id", after);
        let mut header = Stream::open(request).await;
        for frame in &live[after..] {
            assert_eq!(query.next().await.as_ref(), Some(frame));
            assert_eq!(header.next().await.as_ref(), Some(frame), "the header is stronger");
        }
    }
    for bad in ["after=x", "after=-1", "limit=0", "surprise=1"] {
        server.api.get(&run.at(&format!("/events?{bad}"))).await.problem(422, "invalid");
    }
    let beyond = run.at(&format!("/events?after={}", log.len() + 1));
    let beyond = server.api.request(Method::GET, &beyond).header("accept", "text/event-stream");
    server.api.send(beyond).await.problem(422, "invalid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_a_run_that_does_not_read_is_cut_off_with_its_place_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        Server::with(dir.path(), &[("RADDLE_LIMITS_SUBSCRIBER_BYTES", "65536"), ("RADDLE_LIMITS_STALL_MS", "600000")])
            .await;
    let run = Run::new(&server.api).await;
    let slow = RawWatcher::open(&server, &run.at("/events")).await;
    let many = RawWatcher::open(&server, &format!("{PATH}?runs={}", run.id)).await;
    // More than all buffers between a server and a reader hold.
    let large = "x".repeat(60_000);
    for n in 0..300 {
        let body = json!({"event": "deployed", "payload": {"n": n, "large": large}});
        run.post("/events", body).await.expect(201);
    }
    let log = run.log().await;
    for (watcher, one) in [(slow, true), (many, false)] {
        let frames = timeout(LOST, watcher.rest()).await.expect("the slow reader is not cut off");
        let (gap, seen) = frames.split_last().expect("something was sent");
        assert_eq!((gap.event.as_str(), &gap.cursor), ("stream.gap", &None));
        let mut reader = Reader::default();
        seen.iter().for_each(|frame| reader.take(frame));
        assert!(reader.count < log.len());
        let after = &gap.json()["after"];
        let mut stream = if one {
            assert_eq!(*after, json!(seen.last().map_or(0, |last| last.id.unwrap())));
            run.stream(after.as_u64().unwrap()).await
        } else {
            assert_eq!(after.as_str(), reader.cursor.as_deref());
            open(&server.api, &format!("runs={}", run.id), after.as_str(), true).await
        };
        while reader.count < log.len() {
            reader.take(&stream.next().await.unwrap());
        }
        reader.check(std::slice::from_ref(&run)).await;
    }
}

// ---- many runs -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_comes_back_a_hundred_times_over_ten_thousand_events_ends_with_every_log() {
    const SEED: u64 = 4_711;
    println!("seed {SEED}");
    let (server, _dir) = server().await;
    let api = &server.api;
    let runs = join_all((0..5).map(|_| Run::new(api))).await;
    // Batches: a hundred events of one request each, and others in between.
    let writes = {
        let runs = runs.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                let tasks: Vec<_> = (0..100).map(|_| json!({"task_type": "t"})).collect();
                join_all(runs.iter().map(|run| run.tasks(json!(tasks)))).await;
                happen(&runs, 10).await;
                if n == 10 {
                    // What happens elsewhere is in no stream of runs.
                    let thread = runs[0].api.create(json!({})).await;
                    runs[0].api.start(&thread, "@tokens 20 400").await;
                    runs[0].api.rest(&thread).await;
                }
            }
            join_all(runs.iter().map(|run| run.tell("the last"))).await;
        })
    };
    let query = format!("runs={}", named(&runs));
    let (mut reader, mut dice, mut connections) = (Reader::default(), Dice::new(SEED), 0);
    let ended = |reader: &Reader| {
        reader.logs.len() == 5 && reader.logs.values().all(|log| log.last().unwrap()["event"] == "the last")
    };
    while !ended(&reader) {
        connections += 1;
        if dice.below(4) == 0 {
            let after = reader.cursor.as_ref().map(|cursor| format!("&after={cursor}")).unwrap_or_default();
            let page = api.get(&format!("{PATH}?{query}&limit={}{after}", 1 + dice.below(60))).await.expect(200);
            page["data"].as_array().unwrap().iter().for_each(|event| reader.add(event.clone()));
            reader.cursor = Some(text(&page["next_cursor"]));
            continue;
        }
        let mut stream = open(api, &query, reader.cursor.as_deref(), dice.below(2) == 0).await;
        for _ in 0..dice.below(180) {
            if ended(&reader) {
                break;
            }
            reader.take(&stream.next().await.expect("nobody but the reader cuts"));
        }
    }
    writes.await.unwrap();
    assert!(connections >= 100 && reader.count >= 10_000, "{connections} connections, {} events", reader.count);
    reader.check(&runs).await;
}

#[tokio::test]
async fn a_stream_of_all_runs_has_those_that_are_made_later_and_nothing_of_threads_and_jobs() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let old = Run::new(api).await;
    let mut all = open(api, "", None, false).await;
    let start = all.place().await;
    let thread = api.create(json!({})).await;
    api.start(&thread, "hello").await;
    api.rest(&thread).await;
    let job = json!({"name": "j", "kind": "turn", "payload": {"thread_id": thread, "prompt": "x"}, "run_at": "2999-01-01T00:00:00Z"});
    api.post("/v1/jobs", job).await.expect(201);
    let new = Run::new(api).await;
    new.tasks(json!([{"id": "one", "task_type": "t"}])).await;
    old.tell("deployed").await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(all.next().await.unwrap());
    }
    let told: Vec<_> = seen.iter().map(|frame| (frame.event.clone(), text(&frame.json()["run_id"]))).collect();
    let expected = [("context.run.created", &new), ("context.task.created", &new), ("deployed", &old)];
    assert_eq!(told, expected.map(|(event, run)| (event.to_owned(), run.id.clone())));
    // The place that was said before anything happened is one to come back to, and a page has the same.
    let mut again = open(api, "", Some(&start), true).await;
    for frame in &seen {
        assert_eq!(again.next().await.as_ref(), Some(frame));
    }
    let page = api.get(&format!("{PATH}?after={start}&limit=500")).await.expect(200);
    assert_eq!(page["data"], json!(seen.iter().map(Frame::json).collect::<Vec<_>>()));
    assert_eq!(page["next_cursor"], json!(seen[2].cursor));
    // Runs that are named are told from their beginning.
    let page = api.get(&format!("{PATH}?runs={}&limit=500", old.id)).await.expect(200);
    assert_eq!(page["data"], json!(old.log().await));
    let mut stream = open(api, &format!("runs={},{}", old.id, new.id), None, false).await;
    let mut reader = Reader::default();
    for _ in 0..4 {
        reader.take(&stream.next().await.unwrap());
    }
    reader.check(&[old, new]).await;
}

#[tokio::test]
async fn a_cursor_is_the_servers_and_what_is_none_is_refused_by_name() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let run = Run::new(api).await;
    let good = text(&api.get(&format!("{PATH}?runs={}", run.id)).await.expect(200)["next_cursor"]);
    let mut damaged = good.clone().into_bytes();
    damaged[5] = if damaged[5] == b'0' { b'1' } else { b'0' };
    let damaged = String::from_utf8(damaged).unwrap();
    let runs = text(&{
        Run::new(api).await;
        api.get("/v1/runs?limit=1").await.expect(200)["next_cursor"].clone()
    });
    for bad in ["", "0", "12", "zz", &good[2..], &runs, &damaged] {
        for accept in ["text/event-stream", "application/json"] {
            let ask = |path: &str| api.request(Method::GET, path).header("accept", accept);
            assert_eq!(api.send(ask(&format!("{PATH}?after={bad}"))).await.problem(422, "invalid")["field"], "after");
            api.send(ask(PATH).header("last-event-id", bad)).await.problem(422, "invalid");
        }
    }
    for bad in ["runs=", "runs=x", "runs=%2e%2e", "limit=0", "cursor=x", "surprise=1"] {
        api.get(&format!("{PATH}?{bad}")).await.problem(422, "invalid");
    }
    api.get(&format!("{PATH}?runs=run_01905d3c-7e57-7abc-8def-0123456789ab")).await.problem(404, "not-found");
    api.get(&format!("{PATH}?after={good}")).await.expect(200);
}

#[tokio::test]
async fn a_stream_of_runs_says_that_the_server_ends_and_goes_on_after_the_restart() {
    let (mut server, dir) = server().await;
    let run = Run::new(&server.api).await;
    let query = format!("runs={}", run.id);
    let mut one = run.stream(0).await;
    let mut many = open(&server.api, &query, None, false).await;
    let mut reader = Reader::default();
    reader.take(&many.next().await.unwrap());
    one.next().await.unwrap();
    server.terminate();
    let end = many.until("stream.end").await;
    assert_eq!(end.json()["after"].as_str(), reader.cursor.as_deref());
    assert_eq!(one.until("stream.end").await.json()["after"], 1);
    assert_eq!((many.next().await, one.next().await), (None, None));
    assert_eq!(server.ended().await.code(), Some(0));
    server = Server::start(dir.path()).await;
    let run = run.on(&server.api);
    run.tell("deployed").await;
    let mut many = open(&server.api, &query, reader.cursor.as_deref(), true).await;
    reader.take(&many.next().await.unwrap());
    reader.check(&[run]).await;
}
