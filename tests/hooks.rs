//! What is promised to those to whom events are sent: each of them at least once, in order, whatever becomes of the
//! server or of whoever listens; and nobody waits for them.

mod support;

use std::{
    collections::{BTreeSet, VecDeque},
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::Uri};
use raddle::webhook::Secrets;
use reqwest::{StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::*;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, UnixListener},
    sync::watch,
    time::timeout,
};

/// Planted: it may show nowhere.
const KEY: &str = "planted-secret-of-32-bytes-or-so";
/// The same, in base64.
const SECRET: &str = "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMzItYnl0ZXMtb3Itc28=";
const TOKEN: &str = "planted-token-of-a-url";

// ---- who listens ---------------------------------------------------------------------------------

/// A message as it came.
#[derive(Debug, Clone)]
struct Message {
    id: String,
    timestamp: String,
    signature: String,
    body: Vec<u8>,
    uri: String,
}

#[derive(Debug, Clone, Copy)]
enum Reply {
    Status(u16),
    /// None until [`Receiver::release`].
    Hang,
}

/// A receiver of webhooks. Answers as it is told, and 200 when it is told nothing.
#[derive(Clone)]
struct Receiver {
    port: u16,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    /// Whatever came.
    heard: watch::Sender<usize>,
    /// What was answered with 200.
    taken: watch::Sender<Vec<Message>>,
    released: watch::Sender<bool>,
}

impl Receiver {
    /// One that has a port, and does not listen yet.
    fn away() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (heard, taken, released) = Default::default();
        Self { port, replies: Arc::default(), heard, taken, released }
    }

    async fn listen(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let router = Router::new().fallback(receive).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    async fn here() -> Self {
        let receiver = Self::away();
        receiver.listen().await;
        receiver
    }

    fn then(&self, replies: &[Reply]) {
        self.replies.lock().unwrap().extend(replies);
    }

    fn release(&self) {
        self.released.send_replace(true);
    }

    /// Waits for so many messages, whatever they were answered.
    async fn hears(&self, count: usize) {
        let mut heard = self.heard.subscribe();
        timeout(2 * LOST, heard.wait_for(|heard| *heard >= count)).await.expect("nothing comes").unwrap();
    }

    /// Waits until it has taken all of these events, at least once.
    async fn has(&self, log: &[Value]) {
        let ids: BTreeSet<String> = log.iter().map(name).collect();
        let mut taken = self.taken.subscribe();
        let all = taken.wait_for(|taken| ids.is_subset(&taken.iter().map(|message| name(&message.event())).collect()));
        if timeout(2 * LOST, all).await.is_err() {
            panic!("{} messages, {} events", self.taken.borrow().len(), ids.len());
        }
    }

    fn taken(&self) -> Vec<Message> {
        self.taken.borrow().clone()
    }

    /// The variables of a hook that posts here.
    fn env(&self) -> Vec<(String, String)> {
        vec![
            ("RADDLE_HOOKS_SINK_KIND".to_owned(), "webhook".to_owned()),
            ("RADDLE_HOOKS_SINK_URL".to_owned(), format!("http://127.0.0.1:{}/{TOKEN}?token={TOKEN}", self.port)),
            ("RADDLE_HOOKS_SINK_SECRET".to_owned(), SECRET.to_owned()),
            ("RADDLE_EGRESS_ALLOW".to_owned(), "127.0.0.1".to_owned()),
        ]
    }
}

async fn receive(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    receiver.heard.send_modify(|heard| *heard += 1);
    let reply = receiver.replies.lock().unwrap().pop_front().unwrap_or(Reply::Status(200));
    let status = match reply {
        Reply::Status(status) => status,
        Reply::Hang => {
            drop(receiver.released.subscribe().wait_for(|released| *released).await);
            200
        }
    };
    if status == 200 {
        let header = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "application/json");
        let (id, timestamp, signature) =
            (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
        let message = Message { id, timestamp, signature, body: body.to_vec(), uri: uri.to_string() };
        receiver.taken.send_modify(|taken| taken.push(message));
    }
    StatusCode::from_u16(status).unwrap()
}

impl Message {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn event(&self) -> Value {
        self.json()["event"].clone()
    }
}

/// Which event it is, by nothing that a hook adds.
fn name(event: &Value) -> String {
    format!("{}/{}", event["thread_id"], event["seq"])
}

/// The specification by hand: HMAC as RFC 2104 has it, and base64 as RFC 4648 has it.
fn signature_by_hand(key: &[u8], message: &Message) -> String {
    assert!(key.len() <= 64);
    let pad = |with: u8| (0..64).map(|at| key.get(at).copied().unwrap_or(0) ^ with).collect::<Vec<u8>>();
    let signed = [message.id.as_bytes(), b".", message.timestamp.as_bytes(), b".", &message.body].concat();
    let inner = Sha256::digest([pad(0x36), signed].concat());
    let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("v1,");
    for three in outer.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        for place in 0..4 {
            let symbol = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

/// Checks that messages are signed, that their ids stand for their events, and that, each taken the first time that
/// it came, they are the log.
#[track_caller]
fn check(messages: &[Message], log: &[Value]) {
    let secrets = Secrets::parse(SECRET).unwrap();
    let mut seen: Vec<(&str, Value)> = Vec::new();
    for message in messages {
        assert_eq!(message.signature, signature_by_hand(KEY.as_bytes(), message));
        let header = |name| match name {
            "webhook-id" => Some(message.id.as_str()),
            "webhook-timestamp" => Some(message.timestamp.as_str()),
            _ => Some(message.signature.as_str()),
        };
        secrets.verify(header, &message.body, message.timestamp.parse().unwrap()).unwrap();
        let said = message.json();
        assert_eq!((&said["tenant"], &said["hook"]), (&json!("default"), &json!("sink")));
        assert_eq!(message.id, format!("evt_{}", text(&said["cursor"])));
        match seen.iter().find(|(id, _)| *id == message.id) {
            Some((_, event)) => assert_eq!(said["event"], *event, "one id, two events"),
            None => seen.push((&message.id, said["event"].clone())),
        }
    }
    let events: Vec<_> = seen.into_iter().map(|(_, event)| event).collect();
    same(&events, log);
}

#[track_caller]
fn same(events: &[Value], log: &[Value]) {
    let names = |events: &[Value]| events.iter().map(name).collect::<Vec<_>>();
    assert_eq!(names(events), names(log));
    assert!(events == log);
}

// ---- what happens --------------------------------------------------------------------------------

/// A server with variables that were put together.
async fn serve(dir: &Path, env: &[(String, String)]) -> Server {
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Server::with(dir, &env).await
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Where a reader stands who begins now.
async fn now(api: &Api) -> String {
    text(&api.get("/v1/events?limit=1").await.expect(200)["next_cursor"])
}

/// What happened in all threads after `after`, as a hook is told it unless it asks for more.
async fn log(api: &Api, after: &str) -> Vec<Value> {
    let (mut log, mut after) = (Vec::new(), after.to_owned());
    loop {
        let page = api.get(&format!("/v1/events?limit=500&after={after}")).await.expect(200);
        let events = page["data"].as_array().unwrap();
        log.extend(events.iter().filter(|event| event["event"] != "item.delta").cloned());
        if events.is_empty() {
            return log;
        }
        after = text(&page["next_cursor"]);
    }
}

/// A few turns of two threads.
async fn happen(api: &Api, turns: usize) {
    let threads = [api.create(json!({"title": "größer"})).await, api.create(json!({})).await];
    for turn in 0..turns {
        for thread in &threads {
            api.start(thread, &format!("@say ☃ {turn}\n@tokens 5")).await;
        }
        for thread in &threads {
            api.rest(thread).await;
        }
    }
}

async fn hook(api: &Api) -> Value {
    api.get("/v1/hooks").await.expect(200)["data"][0].clone()
}

/// The one hook there is, once it is as it should be. Paced by the server's own answers.
async fn hook_that(api: &Api, is: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            let hook = hook(api).await;
            if is(&hook) {
                return hook;
            }
        }
    };
    timeout(2 * LOST, found).await.expect("the hook does not get there")
}

/// The events of whole lines.
fn events(lines: &str) -> Vec<Value> {
    assert!(lines.is_empty() || lines.ends_with('\n'), "half a line");
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone()).collect()
}

/// The events of a file of lines.
fn file(path: &Path) -> Vec<Value> {
    events(&std::fs::read_to_string(path).unwrap_or_default())
}

// ---- promises ------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_was_away_gets_every_event_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::away();
    let server = serve(dir.path(), &receiver.env()).await;
    let api = &server.api;
    let start = now(api).await;

    // Nobody listens.
    happen(api, 2).await;
    let failing = hook_that(api, |hook| hook["failing_since"].is_string()).await;
    assert_eq!(failing["last_error"], "cannot connect to 127.0.0.1");
    assert_eq!(
        (&failing["delivered"], &failing["name"], &failing["kind"]),
        (&json!(0), &json!("sink"), &json!("webhook"))
    );
    assert!(failing["behind"].as_u64() > Some(0));

    // Somebody does, and is not well.
    receiver.then(&[Reply::Status(503), Reply::Status(429), Reply::Status(404), Reply::Status(302)]);
    receiver.listen().await;
    receiver.hears(3).await;
    assert_eq!(receiver.taken().len(), 0);
    happen(api, 2).await;

    // And then is.
    let whole = log(api, &start).await;
    receiver.has(&whole).await;
    happen(api, 1).await;
    let whole = log(api, &start).await;
    receiver.has(&whole).await;
    check(&receiver.taken(), &whole);
    assert!(receiver.taken().iter().all(|message| message.uri == format!("/{TOKEN}?token={TOKEN}")));

    let well = hook_that(api, |hook| hook["behind"] == 0).await;
    assert_eq!((&well["failing_since"], &well["skipped"]), (&Value::Null, &json!(0)));
    assert_eq!(well["delivered"].as_u64(), Some(whole.len() as u64));
    // Where it stands is a place in the events.
    let after = text(&well["position"]);
    assert_eq!(api.get(&format!("/v1/events?limit=10&after={after}")).await.expect(200)["data"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_in_the_middle_loses_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let (receiver, lines) = (Receiver::here().await, dir.path().join("lines"));
    let both = [
        receiver.env(),
        env(&[("RADDLE_HOOKS_FILE_KIND", "jsonl"), ("RADDLE_HOOKS_FILE_PATH", lines.to_str().unwrap())]),
    ]
    .concat();
    let data = dir.path().join("data");
    let mut server = serve(&data, &both).await;
    let start = now(&server.api).await;
    for round in 1..=4 {
        let api = server.api.clone();
        let work = tokio::spawn(async move { happen(&api, 50).await });
        receiver.hears(40 * round).await;
        let open = server.api.create(json!({})).await;
        server.api.start(&open, "@wait 500").await;
        // What the client was doing is cut short with the server, and this turn in any case.
        server.kill();
        assert!(work.await.is_err());
        server = serve(&data, &both).await;
    }
    happen(&server.api, 1).await;
    for thread in server.api.list("/v1/threads", 100).await {
        server.api.rest(&text(&thread["id"])).await;
    }
    let whole = log(&server.api, &start).await;
    assert!(whole.iter().any(|event| event["event"] == "turn.resumed"), "nothing was cut short");
    receiver.has(&whole).await;
    check(&receiver.taken(), &whole);
    let again = receiver.taken().len() - whole.len();
    assert!(again <= 4 * raddle_actors::TWICE, "{again} came again");

    server.stop().await;
    let (mut seen, mut firsts) = (BTreeSet::new(), Vec::new());
    for event in file(&lines) {
        if seen.insert(name(&event)) {
            firsts.push(event);
        }
    }
    same(&firsts, &whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_comes_later_is_told_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let unix = env(&[
        ("RADDLE_HOOKS_SINK_KIND", "unix"),
        ("RADDLE_HOOKS_SINK_PATH", path.to_str().unwrap()),
        ("RADDLE_HOOKS_SINK_EVENTS", "turn.*,thread.created"),
    ]);
    let server = serve(&dir.path().join("data"), &unix).await;
    let api = &server.api;
    let start = now(api).await;
    happen(api, 3).await;
    let failing = hook_that(api, |hook| hook["failing_since"].is_string()).await;
    assert!(text(&failing["last_error"]).starts_with("nobody listens on the socket"), "{failing}");

    let listener = UnixListener::bind(&path).unwrap();
    // The first one who listens goes away without having read.
    drop(timeout(LOST, listener.accept()).await.unwrap().unwrap());
    let wanted = |event: &Value| {
        let name = text(&event["event"]);
        name.starts_with("turn.") || name == "thread.created"
    };
    let whole: Vec<_> = log(api, &start).await.into_iter().filter(wanted).collect();
    let mut told = String::new();
    while events(&told).len() < whole.len() {
        let (mut stream, _) = timeout(LOST, listener.accept()).await.unwrap().unwrap();
        stream.read_to_string(&mut told).await.unwrap();
    }
    same(&events(&told), &whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_a_torn_line_ends_as_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, data) = (dir.path().join("lines"), dir.path().join("data"));
    let jsonl = env(&[
        ("RADDLE_HOOKS_SINK_KIND", "jsonl"),
        ("RADDLE_HOOKS_SINK_PATH", lines.to_str().unwrap()),
        ("RADDLE_HOOKS_SINK_FROM", "beginning"),
    ]);
    // What happened before there was a hook.
    let server = Server::start(&data).await;
    let start = now(&server.api).await;
    happen(&server.api, 1).await;
    server.stop().await;

    let server = serve(&data, &jsonl).await;
    happen(&server.api, 2).await;
    let before = log(&server.api, &start).await;
    // An end carries what is left: nobody waited for the file.
    server.stop().await;
    same(&file(&lines), &before);

    let whole = std::fs::read_to_string(&lines).unwrap();
    let last = whole.lines().last().unwrap();
    std::fs::write(&lines, format!("{whole}{}", &last[..last.len() / 2])).unwrap();
    let server = serve(&data, &jsonl).await;
    happen(&server.api, 1).await;
    let after = log(&server.api, &start).await;
    server.stop().await;
    assert!(after.len() > before.len());
    same(&file(&lines), &after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stdout_gets_a_line_for_each_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = raddle()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path())
        .env("RADDLE_HOOKS_OUT_KIND", "stdout")
        .env("RADDLE_HOOKS_OUT_EVENTS", "turn.completed,item.delta")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = out.next().unwrap().unwrap();
    let api = Api::new(line.strip_prefix("listening on ").unwrap());
    let thread = api.create(json!({})).await;
    api.start(&thread, "@say one\n@say two").await;
    api.rest(&thread).await;
    let wanted = |event: &Value| matches!(event["event"].as_str(), Some("turn.completed" | "item.delta"));
    let log: Vec<_> = api.log(&thread).await.into_iter().filter(wanted).collect();
    assert!(log.len() > 1);
    let told = tokio::task::spawn_blocking({
        let count = log.len();
        move || out.by_ref().take(count).map(|line| line.unwrap() + "\n").collect::<String>()
    });
    let told = timeout(LOST, told).await.expect("nothing is told").unwrap();
    same(&events(&told), &log);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_hangs_delays_no_turn() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::here().await;
    receiver.then(&[Reply::Hang]);
    let server = serve(dir.path(), &receiver.env()).await;
    let api = &server.api;
    let start = now(api).await;
    let thread = api.create(json!({})).await;
    receiver.hears(1).await;
    // From here to the release the sink has its first message, and has not answered.
    for turn in 0..5 {
        api.start(&thread, &format!("@say {turn}")).await;
        assert_eq!(api.rest(&thread).await["status"], "idle");
    }
    happen(api, 2).await;
    assert_eq!((*receiver.heard.borrow(), receiver.taken().len()), (1, 0), "the sink answered too early");
    receiver.release();
    let whole = log(api, &start).await;
    receiver.has(&whole).await;
    check(&receiver.taken(), &whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_reaches_nothing_inside_unless_it_is_allowed_to() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::here().await;
    let url = |host: &str| format!("http://{host}:{}/", receiver.port);
    let inside = |url: String| {
        let env = [("RADDLE_HOOKS_SINK_KIND", "webhook"), ("RADDLE_HOOKS_SINK_SECRET", SECRET)];
        [self::env(&env), vec![("RADDLE_HOOKS_SINK_URL".to_owned(), url)]].concat()
    };
    // What can never be right is said at once.
    for (bad, why) in [
        (url("127.0.0.1"), "127.0.0.1 is a loopback address"),
        (url("2130706433"), "127.0.0.1 is a loopback address"),
        ("http://169.254.169.254/latest".to_owned(), "an address of a cloud's metadata service"),
        ("file:///etc/passwd".to_owned(), "only http and https"),
        (url("user:pass@example.com"), "a user or a password"),
    ] {
        let env = inside(bad);
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let refused = Server::launch(dir.path(), &env).await.err().expect("it starts");
        assert!(refused.said.contains("`hooks.sink.url`") && refused.said.contains(why), "{}", refused.said);
    }
    // A name is judged when it is resolved. The proxy of the environment is not asked.
    let proxy = format!("http://127.0.0.1:{}", receiver.port);
    let proxies = [("HTTP_PROXY", &*proxy), ("http_proxy", &*proxy), ("ALL_PROXY", &*proxy)];
    let server = serve(dir.path(), &[inside(url("localhost")), env(&proxies)].concat()).await;
    happen(&server.api, 1).await;
    let failing = hook_that(&server.api, |hook| hook["failing_since"].is_string()).await;
    assert_eq!(failing["last_error"], "localhost is a loopback address, which is not requested");
    server.stop().await;
    assert_eq!(*receiver.heard.borrow(), 0);

    let allowed = [inside(url("localhost")), env(&[("RADDLE_EGRESS_ALLOW", "localhost")])].concat();
    let server = serve(dir.path(), &allowed).await;
    receiver.hears(1).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_show_nowhere_and_figures_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::here().await;
    receiver.then(&[Reply::Status(503), Reply::Status(404)]);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let mut env = receiver.env();
    env.retain(|(name, _)| name != "RADDLE_HOOKS_SINK_SECRET");
    env.push(("RADDLE_HOOKS_SINK_SECRET_FILE".to_owned(), secret.to_str().unwrap().to_owned()));
    env.push(("RADDLE_LOG".to_owned(), "debug".to_owned()));
    let server = serve(&dir.path().join("data"), &env).await;
    let api = server.api.clone();
    let start = now(&api).await;
    happen(&api, 1).await;
    let whole = log(&api, &start).await;
    receiver.has(&whole).await;
    check(&receiver.taken(), &whole);
    hook_that(&api, |hook| hook["behind"] == 0).await;

    let metrics = String::from_utf8(api.get("/metrics").await.body).unwrap();
    let figures =
        [("behind", 0), ("failing", 0), ("delivered_total", whole.len()), ("skipped_total", 0), ("failures_total", 2)];
    for (figure, value) in figures {
        assert!(metrics.contains(&format!("raddle_hook_{figure}{{hook=\"sink\"}} {value}\n")), "{figure}: {metrics}");
    }
    let hooks = String::from_utf8(api.get("/v1/hooks").await.body).unwrap();
    let shown = run(raddle().args(["hooks", "--server", &server.url]), "");
    assert_eq!((shown.code, shown.out.starts_with("sink ")), (Some(0), true), "{shown:?}");
    let as_json = run(raddle().args(["hooks", "--json", "--server", &server.url]), "");
    assert_eq!(serde_json::from_str::<Value>(&as_json.out).unwrap(), serde_json::from_str::<Value>(&hooks).unwrap());
    let log = serde_json::to_string(&whole).unwrap();
    let info = String::from_utf8(api.get("/v1/info").await.body).unwrap();
    server.terminate();
    let said = server.said();
    assert!(said.contains("answered 503"), "the failures are not in the log: {said}");

    // A configuration that is refused says nothing of it either.
    env.push(("RADDLE_HOOKS_SINK_SECRET".to_owned(), SECRET.to_owned()));
    let both: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let refused = Server::launch(&dir.path().join("other"), &both).await.err().expect("it starts").said;
    std::fs::write(&secret, "hush-too-short").unwrap();
    let short: Vec<_> = both[..both.len() - 1].to_vec();
    let short = Server::launch(&dir.path().join("other"), &short).await.err().expect("it starts").said;
    assert!(short.contains("`hooks.sink.secret`") && !short.contains("hush"), "{short}");
    let everything = [metrics, hooks, shown.out, as_json.out, log, info, said, refused, short];
    for text in everything {
        for planted in [KEY, &SECRET["whsec_".len()..], TOKEN] {
            assert!(!text.contains(planted), "{planted} shows in: {text}");
        }
    }
    for message in receiver.taken() {
        let body = String::from_utf8(message.body).unwrap();
        assert!(!body.contains(KEY) && !body.contains(SECRET) && !body.contains(TOKEN));
    }
}
