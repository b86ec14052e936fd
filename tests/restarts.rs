//! A server that is restarted again and again, asked to end or killed, while two hundred turns stream: whoever comes
//! back by cursor has every event once, what was accepted is there once, and no model is asked again what it has
//! answered.
//!
//! The provider lives in the test and outlives every server. It says a word when the test has seen one, so that nothing
//! here has a pace of its own; each server calls it by an address of its own, which tells their calls apart.
//! `RADDLE_RESTARTS` says how many restarts there are.

#[path = "support/openai_server.rs"]
mod openai_server;
mod support;
#[path = "support/tenants.rs"]
mod tenants;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, body::Body, extract::State, response::Response, routing::post};
use futures_util::{future::join_all, stream};
use openai_server::{delta, finish};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

const SEED: u64 = 9_173;
const TENANTS: usize = 4;
/// Of each tenant, each with a turn that is open.
const THREADS: usize = 50;
/// Of each tenant, watched by themselves as well.
const WATCHED: usize = 5;
/// Words that were said and not seen, at most.
const WINDOW: usize = 64;

// ---- the provider --------------------------------------------------------------------------------

/// What a turn's model calls are told apart by: the prompt's marker, and how many calls the turn has behind it.
type Call = (String, usize);

struct Provider {
    /// What a server asked that it should not have.
    fault: watch::Sender<Option<String>>,
    /// The servers that made each call, in order.
    calls: Mutex<BTreeMap<Call, Vec<usize>>>,
    /// What may still be said to each server.
    words: Mutex<BTreeMap<usize, Arc<Semaphore>>>,
}

impl Provider {
    fn words(&self, server: usize) -> Arc<Semaphore> {
        self.words.lock().unwrap().entry(server).or_insert_with(|| Arc::new(Semaphore::new(WINDOW))).clone()
    }

    async fn start() -> (Arc<Self>, String) {
        let provider =
            Arc::new(Self { fault: watch::Sender::new(None), calls: Mutex::default(), words: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/{server}/v1/chat/completions", post(answer)).with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (provider, url)
    }
}

/// A prompt: its marker, how many words are the answer, and whether a tool is called first.
fn prompt(marker: u64, dice: &mut Dice) -> String {
    let tool = if dice.below(3) == 0 { "tool" } else { "none" };
    format!("#{marker}# {} {tool}", 6 + dice.below(30))
}

async fn answer(
    State(provider): State<Arc<Provider>>,
    axum::extract::Path(server): axum::extract::Path<usize>,
    Json(body): Json<Value>,
) -> Response {
    let messages = body["messages"].as_array().unwrap();
    let asked = messages.iter().rposition(|message| message["role"] == "user").unwrap();
    let content = text(&messages[asked]["content"]);
    let [marker, words, tool] = content.split(' ').collect::<Vec<_>>()[..] else { panic!("{content}") };
    let step = messages[asked..].iter().filter(|message| message["role"] == "tool").count();
    let before = {
        let mut calls = provider.calls.lock().unwrap();
        let servers = calls.entry((marker.to_owned(), step)).or_default();
        if servers.contains(&server) {
            let fault =
                format!("{marker}: one server asked twice for its call {step}: {servers:?}, and again {server}");
            provider.fault.send_replace(Some(fault));
        }
        servers.push(server);
        servers.len() - 1
    };
    let mut lines = Vec::new();
    if tool == "tool" && step == 0 {
        let call = json!({ "index": 0, "id": "c1", "type": "function",
            "function": { "name": "demo_read", "arguments": "{\"name\": \"file\"}" } });
        lines.extend([delta(json!({ "tool_calls": [call] })), finish("tool_calls")]);
    } else {
        // Whoever has to ask again and again gets less, and comes to an end.
        let count = (words.parse::<usize>().unwrap() >> before).max(1);
        lines.extend((0..count).map(|n| delta(json!({ "content": format!("w{n} ") }))));
        lines.push(finish("stop"));
    }
    lines.push(json!({ "choices": [], "usage": { "prompt_tokens": 1, "completion_tokens": 1 } }));
    let mut lines: Vec<_> = lines.iter().map(|line| format!("data: {line}\n\n")).collect();
    lines.push("data: [DONE]\n\n".to_owned());
    let words = provider.words(server);
    let body = stream::unfold((lines.into_iter(), words), |(mut lines, words)| async move {
        let line = lines.next()?;
        if line.contains("\"content\"") {
            words.acquire().await.unwrap().forget();
        }
        Some((Ok::<_, Infallible>(line), (lines, words)))
    });
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(body)).unwrap()
}

// ---- clients -------------------------------------------------------------------------------------

/// Where the server is now; how many there were before it.
#[derive(Debug, Clone, Default)]
struct Now {
    server: usize,
    url: String,
}

/// What all clients share.
struct World {
    provider: Arc<Provider>,
    now: watch::Sender<Now>,
    /// How many events the readers have seen.
    seen: watch::Sender<u64>,
    /// How many turns their tenants saw end.
    ended: watch::Sender<usize>,
    /// What was accepted, by marker: thread and turn.
    accepted: Mutex<BTreeMap<String, (String, String)>>,
    /// Markers that were sent, whatever became of them.
    sent: Mutex<BTreeSet<String>>,
    /// No turn is started any more.
    closing: watch::Sender<bool>,
}

impl World {
    /// The API for this key, of the server that is there now.
    fn api(&self, keyed: &Api) -> (usize, Api) {
        let now = self.now.borrow().clone();
        (now.server, Api { http: keyed.http.clone(), url: now.url })
    }

    /// How many turns are open, as far as anybody here knows.
    fn open(&self) -> usize {
        let accepted = self.accepted.lock().unwrap().len();
        accepted.saturating_sub(*self.ended.borrow())
    }

    /// Waits for a server after this one.
    async fn after(&self, server: usize) {
        let mut now = self.now.subscribe();
        now.wait_for(|now| now.server > server).await.unwrap();
    }
}

/// What a reader has of each thread: the events as they came.
type Seen = BTreeMap<String, Vec<String>>;

/// Reads a stream through every restart, and notes what it says. It ends with its task.
async fn read(
    world: Arc<World>,
    keyed: Api,
    path: String,
    mut cursor: Option<String>,
    seen: Arc<Mutex<Seen>>,
    ends: Option<mpsc::UnboundedSender<String>>,
) {
    loop {
        let (server, api) = world.api(&keyed);
        let mut request = api.request(Method::GET, &path).header("accept", "text/event-stream");
        if let Some(cursor) = &cursor {
            request = request.header("last-event-id", cursor);
        }
        let Some(mut response) = request.send().await.ok().filter(|response| response.status() == 200) else {
            world.after(server).await;
            continue;
        };
        let mut frames = Frames::default();
        let mut cut = false;
        while let Ok(Some(bytes)) = response.chunk().await {
            frames.feed(&bytes);
            while let Some(frame) = frames.next() {
                match &*frame.event {
                    "stream.gap" => cut = true,
                    "stream.end" => {}
                    other => {
                        assert!(!other.starts_with("stream."), "{frame:?}");
                        note(&world, server, frame, &seen, ends.as_ref());
                    }
                }
            }
        }
        cursor = frames.last_id.or(cursor);
        if !cut {
            world.after(server).await;
        }
    }
}

/// Notes an event, which must be the next of its thread.
fn note(world: &World, server: usize, frame: Frame, seen: &Mutex<Seen>, ends: Option<&mpsc::UnboundedSender<String>>) {
    let event = frame.json();
    let thread = text(&event["thread_id"]);
    let mut all = seen.lock().unwrap();
    let mine = all.entry(thread.clone()).or_default();
    let last = mine.len() as u64;
    let place = (event["seq"].as_u64().unwrap(), event["prev"].as_u64().unwrap());
    assert_eq!(place, (last + 1, last), "lost or doubled: {event}");
    mine.push(frame.data);
    drop(all);
    world.seen.send_modify(|seen| *seen += 1);
    // One reader of each tenant is who keeps things going.
    let Some(ends) = ends else { return };
    match &*frame.event {
        "item.delta" => {
            let words = text(&event["payload"]["delta"]).matches(' ').count();
            world.provider.words(server).add_permits(words);
        }
        "turn.completed" => {
            world.ended.send_modify(|ended| *ended += 1);
            // At the end nobody starts another.
            let _ = ends.send(thread);
        }
        _ => {}
    }
}

/// Starts a turn on every thread that it is told of; what has no answer is asked again under its key.
async fn start(world: Arc<World>, keyed: Api, mut idle: mpsc::UnboundedReceiver<String>, mut dice: Dice, tenant: u64) {
    let mut next = 0;
    let mut closing = world.closing.subscribe();
    loop {
        let thread = tokio::select! {
            biased;
            closes = closing.wait_for(|closing| *closing) => return drop(closes.unwrap()),
            thread = idle.recv() => thread.unwrap(),
        };
        let number = tenant * 1_000_000 + next;
        next += 1;
        let marker = format!("#{number}#");
        world.sent.lock().unwrap().insert(marker.clone());
        let body = json!({ "prompt": prompt(number, &mut dice) });
        loop {
            let (server, api) = world.api(&keyed);
            let asked = api.keyed(&format!("/v1/threads/{thread}/turns"), &marker, &body);
            match api.try_send(asked).await {
                Ok(reply) if reply.status == 503 => world.after(server).await,
                Ok(reply) => {
                    let turn = text(&reply.expect(201)["turn"]["id"]);
                    world.accepted.lock().unwrap().insert(marker, (thread, turn));
                    break;
                }
                Err(_) => world.after(server).await,
            }
        }
    }
}

async fn launch(dir: &Path, demo: &Path, provider: &str, server: usize) -> Server {
    let url = format!("{provider}/{server}/v1");
    let env = [
        ("RADDLE_MODEL_DEFAULT", "openai/test-model"),
        ("RADDLE_MODEL_OPENAI_BASE_URL", &*url),
        ("RADDLE_TOOLS_DEMO_DIR", demo.to_str().unwrap()),
        ("RADDLE_LIMITS_RESUMES_WITHOUT_PROGRESS", "1000"),
        ("RADDLE_SHUTDOWN_DEADLINE_MS", "100"),
    ];
    tenants::start(dir, &env).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_lose_and_double_no_event_and_repeat_no_model_call_but_the_one_in_flight() {
    let restarts: usize = std::env::var("RADDLE_RESTARTS").map_or(100, |restarts| restarts.parse().unwrap());
    println!("seed {SEED}, {restarts} restarts");
    let [data, demo] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    std::fs::write(demo.path().join("file"), "what the file says").unwrap();
    let (provider, provider_url) = Provider::start().await;
    let mut dice = Dice::new(SEED);
    let mut server = launch(data.path(), demo.path(), &provider_url, 0).await;
    let world = Arc::new(World {
        provider: provider.clone(),
        now: watch::Sender::new(Now { server: 0, url: server.url.clone() }),
        seen: watch::Sender::new(0),
        ended: watch::Sender::new(0),
        accepted: Mutex::default(),
        sent: Mutex::default(),
        closing: watch::Sender::new(false),
    });

    let mut members = Vec::new();
    let mut alone = Vec::new();
    let mut readers = Vec::new();
    let mut starters = Vec::new();
    for tenant in 0..TENANTS {
        let name = format!("tenant-{tenant}");
        tenants::tenant(&server, &name, json!({})).await;
        let api = tenants::member(&server, &name, &["read", "write"]).await;
        let (tells, idle) = mpsc::unbounded_channel();
        let seen = Arc::new(Mutex::new(Seen::new()));
        // From now on, before there is anything.
        let now = text(&api.get("/v1/events").await.expect(200)["next_cursor"]);
        let all = "/v1/events".to_owned();
        let reader = read(world.clone(), api.clone(), all, Some(now), seen.clone(), Some(tells.clone()));
        readers.push(tokio::spawn(reader));
        let dice = Dice::new(dice.below(1 << 30) as u64);
        starters.push(tokio::spawn(start(world.clone(), api.clone(), idle, dice, tenant as u64)));
        let mut threads: Vec<String> = Vec::new();
        for few in (0..THREADS).collect::<Vec<_>>().chunks(10) {
            threads.extend(join_all(few.iter().map(|_| api.create(json!({})))).await);
        }
        for thread in &threads[..WATCHED] {
            let (path, seen) = (format!("/v1/threads/{thread}/events"), Arc::new(Mutex::new(Seen::new())));
            readers.push(tokio::spawn(read(world.clone(), api.clone(), path, None, seen.clone(), None)));
            alone.push((thread.clone(), seen));
        }
        threads.iter().for_each(|thread| tells.send(thread.clone()).unwrap());
        members.push((api, threads, seen));
    }

    let begun = async {
        let mut seen = world.seen.subscribe();
        while world.accepted.lock().unwrap().len() < TENANTS * THREADS {
            seen.changed().await.unwrap();
        }
    };
    timeout(LOST, begun).await.expect("the turns do not begin");

    let mut open = Vec::new();
    for restart in 1..=restarts {
        let mut seen = world.seen.subscribe();
        // Some fall in the middle of what the last one left to be gone on with.
        let more = if dice.below(4) == 0 { dice.below(150) } else { 250 + dice.below(600) };
        let target = *seen.borrow() + 1 + more as u64;
        let most = || world.open() >= TENANTS * THREADS * 9 / 10;
        let happens = seen.wait_for(|seen| *seen >= target && most());
        let mut fault = provider.fault.subscribe();
        tokio::select! {
            happens = timeout(LOST, happens) => drop(happens.expect("nothing happens").unwrap()),
            fault = fault.wait_for(Option::is_some) => panic!("{}", fault.unwrap().clone().unwrap()),
        }
        open.push(world.open());
        if restart.is_multiple_of(2) {
            server.terminate();
            assert_eq!(server.ended().await.code(), Some(0));
        } else {
            server.kill();
        }
        server = launch(data.path(), demo.path(), &provider_url, restart).await;
        world.now.send_replace(Now { server: restart, url: server.url.clone() });
        assert!(readers.iter().chain(&starters).all(|task| !task.is_finished()), "a client has failed");
    }

    open.sort_unstable();
    if let [least, ..] = open[..] {
        println!("turns open at a restart: {least} at least, {} mostly", open[open.len() / 2]);
    }

    // Let everything come to its end.
    world.closing.send_replace(true);
    for starter in starters {
        timeout(LOST, starter).await.expect("a start is not answered").unwrap();
    }
    provider.words(restarts).add_permits(1 << 20);
    let mut logs: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (keyed, threads, _) in &members {
        let (_, api) = world.api(keyed);
        for few in threads.chunks(10) {
            let found = join_all(few.iter().map(async |thread| {
                api.rest(thread).await;
                (thread.clone(), api.log(thread).await)
            }));
            logs.extend(found.await);
        }
    }
    let each = members.iter().flat_map(|(_, threads, seen)| threads.iter().map(move |thread| (thread, seen)));
    for (thread, seen) in each.chain(alone.iter().map(|(thread, seen)| (thread, seen))) {
        let log = &logs[thread];
        let mut moves = world.seen.subscribe();
        let count = || seen.lock().unwrap().get(thread).map_or(0, Vec::len);
        let comes = moves.wait_for(|_| count() >= log.len());
        timeout(LOST, comes).await.expect("a reader does not come to the end").unwrap();
        let seen: Vec<Value> =
            seen.lock().unwrap()[thread].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
        for (seen, stored) in seen.iter().zip(log) {
            assert_eq!(seen, stored, "what a reader saw is not what is stored");
        }
        assert_eq!(seen.len(), log.len(), "a reader saw what is not stored: {:?}", seen.last());
    }
    hold_against(&world, &logs, restarts);
    assert!(readers.iter().all(|task| !task.is_finished()), "a client has failed");
    readers.iter().for_each(|task| task.abort());
    server.stop().await;
}

/// Every turn that was accepted is there once and has ended, and nobody else's is; each call of it was made by one
/// server, and made again only by one that found it in flight.
fn hold_against(world: &World, logs: &BTreeMap<String, Vec<Value>>, restarts: usize) {
    assert_eq!(*world.provider.fault.borrow(), None);
    let (accepted, sent) = (world.accepted.lock().unwrap(), world.sent.lock().unwrap());
    let calls = world.provider.calls.lock().unwrap();
    let mut ran: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut resumed: BTreeMap<String, usize> = BTreeMap::new();
    let (mut events, mut again) = (0, 0);
    for (thread, log) in logs {
        check_log(log, true);
        events += log.len();
        for event in log {
            let payload = &event["payload"];
            match event["event"].as_str().unwrap() {
                "item.completed" if payload["item"]["kind"] == "user_message" => {
                    let marker = text(&payload["item"]["detail"]).split(' ').next().unwrap().to_owned();
                    let before = ran.insert(marker, (thread.clone(), text(&event["turn_id"])));
                    assert_eq!(before, None, "a prompt ran twice: {event}");
                }
                "turn.resumed" => *resumed.entry(text(&event["turn_id"])).or_default() += 1,
                "turn.retrying" => panic!("the provider never fails: {event}"),
                "turn.completed" => assert_eq!(payload["status"], "completed", "{event}"),
                _ => {}
            }
        }
    }
    assert!(ran.keys().all(|marker| sent.contains(marker)), "a prompt that nobody sent");
    for (marker, turn) in accepted.iter() {
        assert_eq!(ran.get(marker), Some(turn), "{marker} was accepted, and is not there");
    }
    assert_eq!(accepted.len(), ran.len(), "a turn whose client was not told of it when it asked again");
    for (marker, (_, turn)) in &ran {
        let steps: Vec<&Vec<usize>> = (0..).map_while(|step| calls.get(&(marker.clone(), step))).collect();
        assert!(!steps.is_empty(), "{marker} ran, and its model was not asked");
        for pair in steps.windows(2) {
            assert!(pair[0].last() <= pair[1].first(), "{marker}: asked again what had been answered: {steps:?}");
        }
        let made: usize = steps.iter().map(|servers| servers.len()).sum();
        let resumed = resumed.get(turn).copied().unwrap_or(0);
        assert!(made <= steps.len() + resumed, "{marker}: {made} calls, and it was gone on with {resumed} times");
        assert!(resumed <= restarts);
        again += made - steps.len();
    }
    println!("{} turns, {events} events, {again} calls made again in {restarts} restarts", ran.len());
    assert!(again > 0 || restarts == 0, "nothing was in flight");
}
