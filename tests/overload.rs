//! What somebody can hold of the server who means it no good, or who asks for more than there is.
//!
//! Bounds are set so low that they are reached at once; what is waited for is what they lead to.

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

async fn server_with(env: &[(&str, &str)]) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::with(dir.path(), env).await, dir)
}

/// A connection as the attacker has it.
struct Raw(TcpStream);

impl Raw {
    async fn open(server: &Server) -> Self {
        // Little room: what is not read is the server's to keep.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        Self(socket.connect(address).await.unwrap())
    }

    /// Says something; the server may have hung up.
    async fn say(&mut self, text: &str) -> std::io::Result<()> {
        self.0.write_all(text.as_bytes()).await
    }

    /// A whole answer: its status, its head and its body.
    async fn answer(&mut self) -> (u16, String, Vec<u8>) {
        let answer = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.expect("an answer"));
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            self.0.read_exact(&mut body).await.unwrap();
            (head[9..12].parse().unwrap(), head, body)
        };
        timeout(LOST, answer).await.expect("no answer comes")
    }

    async fn ask(&mut self, path: &str) -> (u16, String, Vec<u8>) {
        self.say(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await.unwrap();
        self.answer().await
    }

    /// What still comes until the server hangs up, however it does.
    async fn rest(&mut self) -> usize {
        let rest = async {
            let (mut all, mut piece) = (0, [0; 4096]);
            while let Ok(read @ 1..) = self.0.read(&mut piece).await {
                all += read;
            }
            all
        };
        timeout(LOST, rest).await.expect("the server does not hang up")
    }

    /// The code of a problem that is answered.
    async fn problem(&mut self) -> (u16, String) {
        let (status, _, body) = self.answer().await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        (status, text(&body["code"]))
    }
}

/// A figure of the metrics, once it is one that is wanted.
async fn figure(api: &Api, name: &str, wanted: impl Fn(u64) -> bool) {
    let found = async {
        loop {
            let metrics = String::from_utf8(api.get("/metrics").await.body).unwrap();
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            if wanted(line.unwrap_or_else(|| panic!("there is no {name}:\n{metrics}")).parse().unwrap()) {
                return;
            }
        }
    };
    timeout(LOST, found).await.unwrap_or_else(|_| panic!("{name} does not become what is wanted"));
}

const CUT_HEADER: &str = "raddle_connections_cut_total{reason=\"header\"}";
const CUT_IDLE: &str = "raddle_connections_cut_total{reason=\"idle\"}";
const CUT_STALL: &str = "raddle_connections_cut_total{reason=\"stall\"}";

// ---- connections ---------------------------------------------------------------------------------

#[tokio::test]
async fn slowloris_is_cut_however_steadily_it_drips() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_HEADER_TIMEOUT_MS", "1000")]).await;
    let mut slow = Raw::open(&server).await;
    slow.say("GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let drips = async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        loop {
            pace.tick().await;
            if slow.say("x: y\r\n").await.is_err() {
                return;
            }
        }
    };
    timeout(LOST, drips).await.expect("it is never cut");
    figure(&server.api, CUT_HEADER, |cut| cut == 1).await;
}

#[tokio::test]
async fn a_connection_without_requests_is_cut_and_one_with_a_stream_is_not() {
    let (server, _dir) =
        server_with(&[("RADDLE_LIMITS_IDLE_MS", "300"), ("RADDLE_LIMITS_HEADER_TIMEOUT_MS", "1000")]).await;
    let thread = server.api.create(json!({})).await;
    let mut stream = server.api.stream(&thread, 0).await;
    stream.until("thread.created").await;
    for _ in 0..2 {
        let mut idle = Raw::open(&server).await;
        assert_eq!(idle.ask("/healthz").await.0, 200);
        assert_eq!(idle.rest().await, 0);
    }
    // Nor may one wait for its first.
    assert_eq!(Raw::open(&server).await.rest().await, 0);
    figure(&server.api, CUT_IDLE, |cut| cut >= 3).await;
    server.api.start(&thread, "hello").await;
    stream.until("turn.completed").await;
}

#[tokio::test]
async fn too_many_connections_are_told_so_and_their_places_come_back() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_CONNECTIONS", "3")]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::open(&server).await;
        assert_eq!(raw.ask("/healthz").await.0, 200);
        held.push(raw);
    }
    let mut more = Raw::open(&server).await;
    let (status, head, body) = more.answer().await;
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &problem["code"]), (503, &json!("busy")), "{problem}");
    assert!(
        head.contains("content-type: application/problem+json\r\n") && head.contains("retry-after: 1\r\n"),
        "{head}"
    );
    assert_eq!(more.rest().await, 0);
    // Those who are in are served.
    assert_eq!(held[0].ask("/healthz").await.0, 200);
    drop(held.pop());
    let freed = async {
        loop {
            let mut raw = Raw::open(&server).await;
            // The refusal may come before the question is said.
            drop(raw.say("GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await);
            let (status, _, body) = raw.answer().await;
            if status == 200 {
                return String::from_utf8(body).unwrap();
            }
        }
    };
    let metrics = timeout(LOST, freed).await.expect("the place does not come back");
    assert!(metrics.contains("raddle_connections 3\n"), "{metrics}");
}

#[tokio::test]
async fn who_does_not_read_a_reply_is_cut_and_others_go_on() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_STALL_MS", "300")]).await;
    let thread = server.api.create(json!({})).await;
    let mut stream = server.api.stream(&thread, 0).await;
    let mut deaf = Raw::open(&server).await;
    // More than any buffer between the two takes.
    let ask = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(64);
    deaf.say(&ask).await.unwrap();
    figure(&server.api, CUT_STALL, |cut| cut == 1).await;
    let whole = server.api.get("/openapi.json").await.body.len();
    assert!(deaf.rest().await < 64 * whole);
    server.api.start(&thread, "hello").await;
    stream.until("turn.completed").await;
}

#[tokio::test]
async fn who_does_not_read_a_reply_over_http2_is_cut() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_STALL_MS", "300")]).await;
    // The connection has room; it is this one reply of which no more is taken.
    let deaf = reqwest::Client::builder().no_proxy().http2_prior_knowledge();
    let deaf = deaf.http2_initial_stream_window_size(65_535).http2_initial_connection_window_size(8 << 20);
    let answer = deaf.build().unwrap().get(format!("{}/openapi.json", server.url)).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    figure(&server.api, CUT_STALL, |cut| cut == 1).await;
    assert!(answer.bytes().await.is_err());
}

#[tokio::test]
async fn a_reply_over_http2_that_is_read_comes_whole() {
    let (server, _dir) = server_with(&[]).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let answer = client.get(format!("{}/openapi.json", server.url)).send().await.unwrap();
    let announced = answer.content_length();
    let body = answer.bytes().await.unwrap();
    assert_eq!(announced, Some(body.len() as u64));
    assert_eq!(body, server.api.get("/openapi.json").await.body);
}

#[tokio::test]
async fn what_a_client_speaks_is_told_also_when_its_first_bytes_come_one_by_one() {
    let (server, _dir) = server_with(&[]).await;
    let mut post = Raw::open(&server).await;
    // Both protocols may begin like that.
    post.say("P").await.unwrap();
    server.api.get("/healthz").await.expect(200);
    post.say("OST /v1/threads HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n").await.unwrap();
    post.say("content-type: application/json\r\n\r\n{}").await.unwrap();
    assert_eq!(post.answer().await.0, 201);
    let mut two = Raw::open(&server).await;
    for piece in ["PR", "I * HTTP/2.0\r\n\r\nS", "M\r\n\r\n", "\0\0\0\x04\0\0\0\0\0"] {
        two.say(piece).await.unwrap();
        server.api.get("/healthz").await.expect(200);
    }
    let mut frame = [0; 9];
    timeout(LOST, two.0.read_exact(&mut frame)).await.expect("no answer comes").unwrap();
    assert_eq!(frame[3], 4, "the settings of the server: {frame:?}");
}

#[tokio::test]
async fn who_begins_to_speak_http2_and_does_not_go_on_is_cut() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_HEADER_TIMEOUT_MS", "300")]).await;
    let mut slow = Raw::open(&server).await;
    slow.say("PRI * HTTP").await.unwrap();
    slow.rest().await;
    figure(&server.api, CUT_HEADER, |cut| cut == 1).await;
}

#[tokio::test]
async fn a_server_that_goes_closes_connections_that_nobody_uses() {
    let (server, _dir) = server_with(&[("RADDLE_SHUTDOWN_DEADLINE_MS", "60000")]).await;
    let mut idle = Raw::open(&server).await;
    assert_eq!(idle.ask("/healthz").await.0, 200);
    let mut silent = Raw::open(&server).await;
    server.terminate();
    assert_eq!((idle.rest().await, silent.rest().await), (0, 0));
    assert_eq!(server.ended().await.code(), Some(0));
}

// ---- heads ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_head_bomb_is_refused_by_its_size_and_by_its_fields() {
    let (server, _dir) = server_with(&[]).await;
    let fields: String = (0..200).map(|nth| format!("x-{nth}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(100 * 1024));
    for bomb in [fields, long] {
        let mut raw = Raw::open(&server).await;
        // It may be answered before it has arrived.
        drop(raw.say(&format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{bomb}\r\n")).await);
        assert_eq!(raw.answer().await.0, 431);
        raw.rest().await;
    }
    let mut path = Raw::open(&server).await;
    drop(path.say(&format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(100 * 1024))).await);
    assert!([414, 431].contains(&path.answer().await.0));
}

// ---- bodies --------------------------------------------------------------------------------------

const POST: &str = "POST /v1/threads HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";

/// Nothing of it was done.
async fn no_thread(server: &Server) {
    assert_eq!(server.api.get("/v1/threads").await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn a_body_that_drips_is_given_up() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_BODY_TIMEOUT_MS", "300")]).await;
    let mut slow = Raw::open(&server).await;
    slow.say(&format!("{POST}content-length: 1000000\r\n\r\n{{")).await.unwrap();
    let drips = async {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        let mut byte = [0];
        loop {
            tokio::select! {
                answered = slow.0.peek(&mut byte) => return answered.unwrap(),
                _ = pace.tick() => drop(slow.0.try_write(b" ")),
            }
        }
    };
    timeout(LOST, drips).await.expect("it is never given up");
    assert_eq!(slow.problem().await, (400, "bad-request".to_owned()));
    slow.rest().await;
    no_thread(&server).await;
}

#[tokio::test]
async fn a_chunked_body_without_an_end_is_refused_at_the_limit() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_BODY_BYTES", "1000")]).await;
    let mut endless = Raw::open(&server).await;
    endless.say(&format!("{POST}transfer-encoding: chunked\r\n\r\n")).await.unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
    let floods = async {
        let mut byte = [0];
        loop {
            tokio::select! {
                biased;
                answered = endless.0.peek(&mut byte) => return answered.is_ok_and(|bytes| bytes > 0),
                ready = endless.0.writable() => {
                    let wrote = ready.and_then(|()| endless.0.try_write(chunk.as_bytes()));
                    if wrote.is_err_and(|why| why.kind() != std::io::ErrorKind::WouldBlock) {
                        return false;
                    }
                }
            }
            // Neither of the two need ever wait: the time limit must be heard all the same.
            tokio::task::yield_now().await;
        }
    };
    // Who goes on sending may have the answer swept away by the end of the connection.
    if timeout(LOST, floods).await.expect("it is read for ever") {
        let (status, code) = endless.problem().await;
        // A write that did not fit tears the chunks apart: then it is no body any more.
        assert!([(413, "too-large"), (400, "bad-request")].contains(&(status, code.as_str())), "{status} {code}");
        endless.rest().await;
    }
    no_thread(&server).await;
}

#[tokio::test]
async fn who_waits_for_a_100_gets_it_or_the_refusal_and_need_not_send_the_rest() {
    let (server, _dir) =
        server_with(&[("RADDLE_LIMITS_BODY_TIMEOUT_MS", "300"), ("RADDLE_LIMITS_BODY_BYTES", "1000")]).await;
    let mut polite = Raw::open(&server).await;
    polite.say(&format!("{POST}expect: 100-continue\r\ncontent-length: 2\r\n\r\n")).await.unwrap();
    assert_eq!(polite.answer().await.0, 100);
    polite.say("{}").await.unwrap();
    assert_eq!(polite.answer().await.0, 201);
    let mut large = Raw::open(&server).await;
    large.say(&format!("{POST}expect: 100-continue\r\ncontent-length: 1000000\r\n\r\n")).await.unwrap();
    assert_eq!(large.problem().await, (413, "too-large".to_owned()));
    let mut silent = Raw::open(&server).await;
    silent.say(&format!("{POST}expect: 100-continue\r\ncontent-length: 2\r\n\r\n")).await.unwrap();
    assert_eq!(silent.answer().await.0, 100);
    assert_eq!(silent.problem().await, (400, "bad-request".to_owned()));
    silent.rest().await;
}

#[tokio::test]
async fn a_length_that_is_a_lie_does_nothing() {
    let (server, _dir) = server_with(&[]).await;
    // More is announced than comes.
    let mut short = Raw::open(&server).await;
    short.say(&format!("{POST}content-length: 1000\r\n\r\n{{}}")).await.unwrap();
    short.0.shutdown().await.unwrap();
    short.rest().await;
    // Two lengths, or a length and chunks: whoever reads the one and whoever reads the other see two requests.
    let mut two = Raw::open(&server).await;
    two.say(&format!("{POST}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}} ")).await.unwrap();
    assert_eq!(two.answer().await.0, 400);
    no_thread(&server).await;
    // Less is announced than comes: the rest is no request.
    let mut long = Raw::open(&server).await;
    long.say(&format!("{POST}content-length: 2\r\n\r\n{{}}garbage\r\n\r\n")).await.unwrap();
    assert_eq!(long.answer().await.0, 201);
    assert_eq!(long.answer().await.0, 400);
    long.rest().await;
}

#[tokio::test]
async fn a_gzip_bomb_is_not_unpacked_and_not_taken_for_a_body() {
    let (server, _dir) = server_with(&[]).await;
    let post = |encoding: &str| {
        server.api.request(Method::POST, "/v1/threads").header("content-encoding", encoding).body("{}")
    };
    for encoding in ["gzip", "identity, gzip", "br"] {
        let problem = server.api.send(post(encoding)).await.problem(422, "invalid");
        assert_eq!(problem["field"], "Content-Encoding", "{problem}");
    }
    no_thread(&server).await;
    server.api.send(post("identity")).await.expect(201);
}

#[tokio::test]
async fn a_body_as_deep_as_it_is_long_is_refused_and_the_server_lives() {
    let (mut server, _dir) = server_with(&[]).await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let (open, close) = (open.repeat(50_000), close.repeat(50_000));
        let body = format!("{{\"metadata\":{{\"a\":{open}1{close}}}}}");
        let request = server.api.request(Method::POST, "/v1/threads").header("content-type", "application/json");
        server.api.send(request.body(body)).await.problem(400, "bad-request");
    }
    assert!(server.is_up());
    no_thread(&server).await;
}

// ---- admission -----------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_shed_leaves_no_trace_and_what_is_accepted_is_not_shed() {
    let (server, dir) =
        server_with(&[("RADDLE_LIMITS_COMMANDS_IN_FLIGHT", "2"), ("RADDLE_STORE_SYNC_DELAY_MS", "20")]).await;
    let create = |nth: usize| server.api.post("/v1/threads", json!({"title": format!("{nth}")}));
    let (mut accepted, mut shed, mut round) = (Vec::new(), 0, 0);
    // However the requests meet, some find the list full.
    while accepted.is_empty() || shed == 0 {
        for answer in join_all((0..30).map(|nth| create(100 * round + nth))).await {
            if answer.status == 201 {
                accepted.push(text(&answer.json()["id"]));
                continue;
            }
            let problem = answer.problem(503, "busy");
            assert!(text(&problem["detail"]).contains("the command queue"), "{problem}");
            assert_eq!(answer.header("retry-after"), Some("1"));
            shed += 1;
        }
        round += 1;
    }
    figure(&server.api, "raddle_refused_total{full=\"command_queue\"}", |refused| refused == shed).await;
    let threads = |server: &Server| {
        let api = server.api.clone();
        async move {
            let mut ids: Vec<_> = api.list("/v1/threads", 100).await.iter().map(|thread| text(&thread["id"])).collect();
            ids.sort();
            ids
        }
    };
    accepted.sort();
    assert_eq!(threads(&server).await, accepted);

    // The same of turns: each accepted one ends, and no other is there.
    let (mut started, mut shed) = (0, false);
    for ids in accepted.iter().cycle().take(10 * accepted.len()).collect::<Vec<_>>().chunks(accepted.len().min(20)) {
        let paths: Vec<_> = ids.iter().map(|id| format!("/v1/threads/{id}/turns")).collect();
        let starts = paths.iter().map(|path| server.api.post(path, json!({"prompt": "x", "delivery": "queue"})));
        for answer in join_all(starts).await {
            match answer.status {
                201 | 202 => started += 1,
                _ => {
                    answer.problem(503, "busy");
                    shed = true;
                }
            }
        }
        if shed && started > 0 {
            break;
        }
    }
    let mut ended = 0;
    for id in &accepted {
        server.api.rest(id).await;
        let turns = server.api.list(&format!("/v1/threads/{id}/turns"), 100).await;
        assert!(turns.iter().all(|turn| turn["status"] == "completed"), "{turns:?}");
        ended += turns.len();
    }
    assert_eq!(ended, started);
    // Nor is there one after a restart.
    server.stop().await;
    assert_eq!(threads(&Server::start(dir.path()).await).await, accepted);
}

#[tokio::test]
async fn a_request_that_is_shed_need_not_send_its_body() {
    let (server, _dir) = server_with(&[
        ("RADDLE_LIMITS_COMMANDS_IN_FLIGHT", "1"),
        // Longer than everything else here takes.
        ("RADDLE_STORE_SYNC_DELAY_MS", "3000"),
    ])
    .await;
    let api = server.api.clone();
    let first = tokio::spawn(async move { api.post("/v1/threads", json!({})).await });
    figure(&server.api, "raddle_commands_in_flight", |under_way| under_way == 1).await;
    let mut raw = Raw::open(&server).await;
    raw.say(&format!("{POST}content-length: 1000\r\n\r\n")).await.unwrap();
    assert_eq!(raw.problem().await, (503, "busy".to_owned()));
    raw.rest().await;
    first.await.unwrap().expect(201);
    assert_eq!(server.api.list("/v1/threads", 100).await.len(), 1);
}
