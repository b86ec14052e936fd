//! What was acknowledged survives SIGKILL, and nothing else comes of it: a client keeps a journal of every reply,
//! the server is killed again and again, and in the end its logs are held against the journal, and each thread's calls
//! against what one thread can have answered.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use futures_util::future::join_all;
use raddle_domain::linear::{self, Call, End, History, NEVER, Prompt, Verb, Verdict, View};
use serde_json::{Value, json};
use support::*;
use tokio::sync::watch;

const SEED: u64 = 7_341;
const CLIENTS: usize = 6;
const THREADS: usize = 4;

/// What the clients were told, and what they were not.
#[derive(Default)]
struct Journal {
    threads: BTreeMap<String, String>,
    /// Prompts by their marker. A marker is in no other prompt.
    prompts: BTreeMap<String, Fate>,
    interrupts: Vec<(String, Value)>,
    titles: Vec<(String, String, u64)>,
    /// Accepted requests under a key, to be made again: path, key, body, and the reply's status and bytes.
    receipts: Vec<(String, String, Value, u16, Vec<u8>)>,
    /// Requests whose reply was lost.
    lost: Vec<Asked>,
    /// What was asked of each thread, and answered. A turn is named by its id until the log says whose it is.
    calls: BTreeMap<String, Vec<Noted>>,
}

/// A call, as far as it is known while the log is not.
struct Noted {
    asked: u64,
    answered: u64,
    what: What,
    end: End,
}

enum What {
    Start(Prompt),
    Queue(Prompt),
    Interrupt(String),
    /// What waits is in the end; the open turn, if there is one, is this.
    Look(Option<String>),
}

/// A request under a key.
#[derive(Clone)]
struct Asked {
    path: String,
    key: String,
    body: Value,
    kind: Kind,
    /// When it was asked for the first time.
    moment: u64,
}

#[derive(Clone)]
enum Kind {
    Create,
    Start { thread: String, marker: String },
}

/// What became of a prompt, as its client knows it.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Unknown,
    Refused,
    Turn { thread: String, id: String, seq: u64 },
    Admission { thread: String, id: String, seq: u64 },
}

struct Load {
    journal: Mutex<Journal>,
    /// How many replies are in the journal.
    noted: watch::Sender<u64>,
    next: AtomicU64,
    moments: AtomicU64,
}

impl Load {
    fn threads(&self) -> Vec<String> {
        self.journal.lock().unwrap().threads.keys().cloned().collect()
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, SeqCst)
    }

    /// Later than all that were handed out.
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, SeqCst)
    }

    /// Notes what was answered to a thread's client.
    fn told(&self, thread: &str, asked: u64, what: What, end: End) {
        let answered = if end == End::Unknown { NEVER } else { self.moment() };
        let noted = Noted { asked, answered, what, end };
        self.journal.lock().unwrap().calls.entry(thread.to_owned()).or_default().push(noted);
    }

    /// Notes a reply to a request under a key.
    fn note(&self, asked: &Asked, reply: &Answer) {
        if let Kind::Start { thread, marker } = &asked.kind {
            let number = marker.trim_matches('#').parse().unwrap();
            let what = if asked.body["delivery"] == "queue" { What::Queue(number) } else { What::Start(number) };
            let end = match reply.status {
                201 => End::Done,
                202 => End::Waits,
                409 => End::Refused,
                _ => End::Nothing,
            };
            self.told(thread, asked.moment, what, end);
        }
        let mut journal = self.journal.lock().unwrap();
        let receipt = (asked.path.clone(), asked.key.clone(), asked.body.clone(), reply.status, reply.body.clone());
        match (&asked.kind, reply.status) {
            (Kind::Create, 201) => {
                let id = text(&reply.json()["id"]);
                let title = text(&asked.body["title"]);
                assert!(journal.threads.values().all(|known| *known != title), "made twice under one key: {title}");
                journal.threads.insert(id, title);
                journal.receipts.push(receipt);
            }
            (Kind::Start { thread, marker }, 201 | 202) => {
                let (body, thread, seq) = (reply.json(), thread.clone(), reply.seq());
                let fate = match body["turn"]["id"].as_str() {
                    Some(id) => Fate::Turn { thread, id: id.to_owned(), seq },
                    None => Fate::Admission { thread, id: text(&body["admission"]["id"]), seq },
                };
                journal.prompts.insert(marker.clone(), fate);
                journal.receipts.push(receipt);
            }
            (Kind::Start { marker, .. }, 409 | 429) => {
                journal.prompts.insert(marker.clone(), Fate::Refused);
            }
            _ => panic!("{} answered {}", asked.path, String::from_utf8_lossy(&reply.body)),
        }
        drop(journal);
        self.noted.send_modify(|noted| *noted += 1);
    }

    /// Makes a request under a key; `false` when the server is gone.
    async fn ask(&self, api: &Api, asked: Asked) -> bool {
        if let Kind::Start { marker, .. } = &asked.kind {
            self.journal.lock().unwrap().prompts.insert(marker.clone(), Fate::Unknown);
        }
        match api.try_send(api.keyed(&asked.path, &asked.key, &asked.body)).await {
            Ok(reply) => {
                self.note(&asked, &reply);
                true
            }
            Err(_) => {
                self.journal.lock().unwrap().lost.push(asked);
                false
            }
        }
    }

    fn create(&self) -> Asked {
        let number = self.number();
        let on_restart = if number.is_multiple_of(3) { "interrupt" } else { "resume" };
        let body = json!({"title": format!("thread {number}"), "on_restart": on_restart});
        let (path, key) = ("/v1/threads".to_owned(), format!("create-{number}"));
        Asked { path, key, body, kind: Kind::Create, moment: self.moment() }
    }

    fn start(&self, thread: String, dice: &mut Dice) -> Asked {
        let marker = format!("#{}#", self.number());
        let script = match dice.below(10) {
            0..4 => "",
            4..7 => "@think ☃\n@tokens 20 400\n",
            7 => "@tokens 40 200\n",
            8 => "@say half\n@drop\n",
            _ => "@fail 500 no\n",
        };
        let delivery = if dice.below(3) == 0 { "reject" } else { "queue" };
        let body = json!({"prompt": format!("{script}{marker}"), "delivery": delivery});
        let path = format!("/v1/threads/{thread}/turns");
        let key = format!("start-{marker}");
        Asked { path, key, body, kind: Kind::Start { thread, marker }, moment: self.moment() }
    }

    /// Talks until the server is gone.
    async fn client(self: Arc<Self>, api: Api, mut dice: Dice) {
        loop {
            let threads = self.threads();
            let thread = threads[dice.below(threads.len())].clone();
            let alive = match dice.below(20) {
                0 if threads.len() < 4 * THREADS => self.ask(&api, self.create()).await,
                1..4 => self.interrupt(&api, &thread).await,
                5 => self.look(&api, &thread).await,
                4 => self.retitle(&api, &thread).await,
                _ => self.ask(&api, self.start(thread, &mut dice)).await,
            };
            if !alive {
                return;
            }
        }
    }

    async fn interrupt(&self, api: &Api, thread: &str) -> bool {
        let path = format!("/v1/threads/{thread}");
        let Ok(found) = api.try_send(api.request(reqwest::Method::GET, &path)).await else { return false };
        let Some(turn) = found.expect(200)["active_turn"].as_str().map(str::to_owned) else { return true };
        let interrupt = api.request(reqwest::Method::POST, &format!("{path}/turns/{turn}/interrupt"));
        let asked = self.moment();
        let Ok(reply) = api.try_send(interrupt).await else {
            self.told(thread, asked, What::Interrupt(turn), End::Unknown);
            return false;
        };
        let end = if reply.status == 200 { End::Done } else { End::Refused };
        self.told(thread, asked, What::Interrupt(turn), end);
        match reply.status {
            200 => {
                self.journal.lock().unwrap().interrupts.push((thread.to_owned(), reply.json()));
                self.noted.send_modify(|noted| *noted += 1);
            }
            _ => drop(reply.problem(409, "turn-not-active")),
        }
        true
    }

    /// Looks at a whole thread, as long as it is short.
    async fn look(&self, api: &Api, thread: &str) -> bool {
        if self.journal.lock().unwrap().calls.get(thread).is_some_and(|calls| calls.len() > 200) {
            return true;
        }
        let asked = self.moment();
        let snapshot = api.request(reqwest::Method::GET, &format!("/v1/threads/{thread}/snapshot"));
        let Ok(reply) = api.try_send(snapshot).await else { return false };
        let found = reply.expect(200);
        let waiting = found["inbox"].as_array().unwrap().iter().map(|waits| number_of(&waits["prompt"])).collect();
        let open = found["thread"]["active_turn"].as_str().map(str::to_owned);
        self.told(thread, asked, What::Look(open), End::Saw(View { open: None, waiting }));
        true
    }

    async fn retitle(&self, api: &Api, thread: &str) -> bool {
        let title = format!("title {}", self.number());
        let patch = api.request(reqwest::Method::PATCH, &format!("/v1/threads/{thread}"));
        let Ok(reply) = api.try_send(patch.json(&json!({"title": title}))).await else { return false };
        assert_eq!(reply.expect(200)["title"], *title);
        self.journal.lock().unwrap().titles.push((thread.to_owned(), title, reply.seq()));
        self.noted.send_modify(|noted| *noted += 1);
        true
    }

    /// After a crash: asks again for what was lost, and for some of what was answered.
    async fn retry(&self, api: &Api, dice: &mut Dice) {
        let lost = std::mem::take(&mut self.journal.lock().unwrap().lost);
        for asked in lost {
            let reply = api.send(api.keyed(&asked.path, &asked.key, &asked.body)).await;
            self.note(&asked, &reply);
        }
        let known = {
            let journal = self.journal.lock().unwrap();
            let count = journal.receipts.len();
            (0..5).map(|_| journal.receipts[dice.below(count)].clone()).collect::<Vec<_>>()
        };
        for (path, key, body, status, bytes) in known {
            let again = api.send(api.keyed(&path, &key, &body)).await;
            assert!(again.replayed(), "{path} {key} was forgotten");
            assert_eq!((again.status, again.body), (status, bytes));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_done_twice_however_often_the_server_is_killed() {
    let rounds: u64 = std::env::var("RADDLE_KILL_ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());
    println!("seed {SEED}, {rounds} rounds");
    let dir = tempfile::tempdir().unwrap();
    let env = [("RADDLE_LIMITS_RETRY_BASE_MS", "5"), ("RADDLE_LIMITS_RESUMES_WITHOUT_PROGRESS", "1000")];
    let mut dice = Dice::new(SEED);
    let load = Arc::new(Load {
        journal: Mutex::default(),
        noted: watch::channel(0).0,
        next: AtomicU64::new(1),
        moments: AtomicU64::new(1),
    });
    for round in 0..rounds {
        let mut server = Server::with(dir.path(), &env).await;
        server.api.get("/readyz").await.expect(200);
        if round == 0 {
            for _ in 0..THREADS {
                assert!(load.ask(&server.api, load.create()).await);
            }
        } else {
            let probe = &load.threads()[0];
            assert!(load.retitle(&server.api, probe).await);
            load.retry(&server.api, &mut dice).await;
        }
        let mut noted = load.noted.subscribe();
        let target = *noted.borrow() + 1 + dice.below(60) as u64;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let dice = Dice::new(dice.below(1 << 30) as u64);
                tokio::spawn(load.clone().client(server.api.clone(), dice))
            })
            .collect();
        tokio::time::timeout(LOST, noted.wait_for(|noted| *noted >= target)).await.expect("no replies").unwrap();
        server.kill();
        for client in join_all(clients).await {
            client.unwrap();
        }
    }

    let server = Server::with(dir.path(), &env).await;
    let api = &server.api;
    assert!(load.retitle(api, &load.threads()[0]).await);
    load.retry(api, &mut dice).await;
    println!("{} replies", *load.noted.borrow());

    let threads = load.threads();
    join_all(threads.iter().map(|thread| api.rest(thread))).await;
    let mut logs = BTreeMap::new();
    for thread in &threads {
        let log = api.log(thread).await;
        check_log(&log, true);
        assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(thread).await));
        logs.insert(thread.clone(), log);
    }
    let listed = api.list("/v1/threads?archived=true", 500).await;
    let listed: BTreeSet<_> = listed.iter().map(|thread| text(&thread["id"])).collect();
    assert_eq!(listed, threads.iter().cloned().collect(), "a thread that nobody was told of, or one that is lost");
    let journal = load.journal.lock().unwrap();
    hold_against(&journal, &logs);
    explain(&journal, &logs);
    println!(
        "{} threads, {} prompts, {} interrupts, {} events",
        threads.len(),
        journal.prompts.len(),
        journal.interrupts.len(),
        logs.values().map(Vec::len).sum::<usize>()
    );
}

/// The number of a prompt, which stands in its last line.
fn number_of(prompt: &Value) -> Prompt {
    text(prompt).lines().last().unwrap().trim_matches('#').parse().unwrap()
}

/// Of every thread there is an order of all calls that explains every answer, and the log.
fn explain(journal: &Journal, logs: &BTreeMap<String, Vec<Value>>) {
    for (thread, log) in logs {
        let mut prompts: BTreeMap<String, Prompt> = BTreeMap::new();
        let mut ran = Vec::new();
        for event in log.iter().filter(|event| event["event"] == "item.completed") {
            let item = &event["payload"]["item"];
            if item["kind"] == "user_message" {
                ran.push(number_of(&item["detail"]));
                prompts.insert(text(&event["turn_id"]), number_of(&item["detail"]));
            }
        }
        let calls = journal.calls.get(thread).into_iter().flatten().map(|noted| {
            let (verb, mut end) = match &noted.what {
                What::Start(prompt) => (Verb::Start(*prompt), noted.end.clone()),
                What::Queue(prompt) => (Verb::Queue(*prompt), noted.end.clone()),
                What::Interrupt(turn) => (Verb::Interrupt(prompts[turn]), noted.end.clone()),
                What::Look(_) => (Verb::Look, noted.end.clone()),
            };
            if let (What::Look(open), End::Saw(view)) = (&noted.what, &mut end) {
                view.open = open.as_ref().map(|turn| prompts[turn]);
            }
            Call { client: 0, asked: noted.asked, answered: noted.answered, verb, end }
        });
        let log = Some(linear::Log { ran, steered: Vec::new() });
        let history = History { calls: calls.collect(), log, ..History::default() };
        println!("{thread}: {} calls", history.calls.len());
        assert_eq!(history.check(1_000_000), Verdict::Legal, "{thread}");
    }
}

/// Every reply is in the logs, and every prompt in the logs was accepted, once.
fn hold_against(journal: &Journal, logs: &BTreeMap<String, Vec<Value>>) {
    let mut ids = BTreeSet::new();
    let mut ran: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut admitted: BTreeMap<String, (String, u64, String)> = BTreeMap::new();
    for (thread, log) in logs {
        for event in log {
            let payload = &event["payload"];
            match event["event"].as_str().unwrap() {
                "item.started" => assert!(ids.insert(text(&event["item_id"])), "an item of two threads: {event}"),
                "turn.started" => assert!(ids.insert(text(&event["turn_id"])), "a turn of two threads: {event}"),
                "item.completed" if payload["item"]["kind"] == "user_message" => {
                    let prompt = text(&payload["item"]["detail"]);
                    let marker = prompt.lines().last().unwrap().to_owned();
                    let turn = (thread.clone(), text(&event["turn_id"]));
                    assert_eq!(ran.insert(marker, turn), None, "a prompt ran twice: {event}");
                }
                "prompt.admitted" => {
                    let prompt = text(&payload["admission"]["prompt"]);
                    let marker = prompt.lines().last().unwrap().to_owned();
                    let (seq, id) = (event["seq"].as_u64().unwrap(), text(&payload["admission"]["id"]));
                    let before = admitted.insert(marker, (thread.clone(), seq, id));
                    assert_eq!(before, None, "a prompt was admitted twice: {event}");
                }
                _ => {}
            }
        }
    }
    for (marker, fate) in &journal.prompts {
        let turn = ran.get(marker);
        match fate {
            Fate::Unknown => panic!("{marker}: every request was repeated until it was answered"),
            Fate::Refused => {
                assert_eq!((turn, admitted.get(marker)), (None, None), "{marker} was refused, and left a trace");
            }
            Fate::Turn { thread, id, seq } => {
                assert_eq!(turn, Some(&(thread.clone(), id.clone())), "{marker}");
                let log = &logs[thread];
                let started = log.iter().find(|event| event["event"] == "turn.started" && event["turn_id"] == **id);
                let started = started.unwrap_or_else(|| panic!("{marker}: its turn is lost"));
                assert!(started["seq"].as_u64().unwrap() <= *seq);
                assert_eq!(admitted.get(marker), None, "{marker} ran at once, and waits too");
            }
            Fate::Admission { thread, id, seq } => {
                assert!(turn.is_some(), "{marker} never ran");
                let (found, at, admission) = admitted.get(marker).unwrap_or_else(|| panic!("{marker} is lost"));
                assert_eq!((found, admission), (thread, id));
                assert!(at <= seq);
            }
        }
    }
    assert!(ran.keys().all(|marker| journal.prompts.contains_key(marker)), "a prompt that nobody sent");
    for (thread, receipt) in &journal.interrupts {
        let event = &logs[thread][receipt["ended_seq"].as_u64().unwrap() as usize - 1];
        assert_eq!((&event["event"], &event["payload"]["turn"]), (&json!("turn.completed"), &receipt["turn"]));
        assert_eq!(event["payload"]["status"], "interrupted");
    }
    for (thread, title, seq) in &journal.titles {
        let event = logs[thread].iter().find(|event| event["payload"]["thread"]["title"] == **title);
        let event = event.unwrap_or_else(|| panic!("`{title}` is lost"));
        assert!(event["seq"].as_u64().unwrap() <= *seq);
    }
}

/// A shutdown that is asked for is not a crash: whoever gets an answer gets a true one, and a refusal is a refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_under_load_answers_truly_or_says_that_it_is_going_down() {
    const ROUNDS: u64 = 6;
    println!("seed {SEED}");
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(SEED);
    let mut made: BTreeSet<String> = BTreeSet::new();
    let mut unknown = 0;
    for _ in 0..ROUNDS {
        let server = Server::with(dir.path(), &[("RADDLE_SHUTDOWN_DEADLINE_MS", "100")]).await;
        let (counts, mut count) = watch::channel(0);
        let counts = Arc::new(counts);
        let clients: Vec<_> = (0..8)
            .map(|n| {
                let (api, counts) = (server.api.clone(), counts.clone());
                tokio::spawn(async move {
                    let (mut made, mut unknown) = (Vec::new(), 0);
                    loop {
                        let create = api.request(reqwest::Method::POST, "/v1/threads").json(&json!({}));
                        let thread = match api.try_send(create).await {
                            Ok(reply) if reply.status == 201 => text(&reply.json()["id"]),
                            Ok(reply) => {
                                let code = text(&reply.json()["code"]);
                                // Only what says so may have been stored all the same.
                                assert!(matches!(&*code, "draining" | "store-unavailable"), "{:?}", reply.json());
                                assert_eq!(reply.status, 503);
                                unknown += usize::from(code == "store-unavailable");
                                continue;
                            }
                            // It stopped listening; what was under way then may be stored.
                            Err(_) => return (made, unknown + 1),
                        };
                        made.push(thread.clone());
                        counts.send_modify(|count| *count += 1);
                        if n % 2 == 0 {
                            let start = api.request(reqwest::Method::POST, &format!("/v1/threads/{thread}/turns"));
                            match api.try_send(start.json(&json!({"prompt": "@tokens 20 400"}))).await {
                                Ok(reply) => assert!(
                                    reply.status == 201
                                        || reply.json()["code"] == "draining"
                                        || reply.json()["code"] == "store-unavailable",
                                    "{:?}",
                                    reply.json()
                                ),
                                Err(_) => return (made, unknown + 1),
                            }
                        }
                    }
                })
            })
            .collect();
        let target = 10 + dice.below(60);
        tokio::time::timeout(LOST, count.wait_for(|count| *count >= target)).await.expect("no replies").unwrap();
        server.terminate();
        assert_eq!(server.ended().await.code(), Some(0));
        for client in join_all(clients).await {
            let (theirs, lost) = client.unwrap();
            made.extend(theirs);
            unknown += lost;
        }
    }
    let server = Server::start(dir.path()).await;
    let found = server.api.list("/v1/threads", 500).await;
    let found: BTreeSet<_> = found.iter().map(|thread| text(&thread["id"])).collect();
    assert!(found.is_superset(&made), "an acknowledged thread is lost");
    let more = found.len() - made.len();
    println!("{} threads were acknowledged, {more} of {unknown} without an answer are there too", made.len());
    assert!(more <= unknown, "{more} threads are there though their creation was refused");
    for thread in &made {
        server.api.rest(thread).await;
        check_log(&server.api.log(thread).await, true);
    }
}

#[tokio::test]
async fn a_thread_that_interrupts_on_restart_closes_its_turn_and_runs_its_queue() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let id = server.api.create(json!({"on_restart": "interrupt"})).await;
    let turn = server.api.start(&id, "@think hmm\n@say part\n@wait 600000").await;
    server.api.queue(&id, "q1").await;
    server.api.queue(&id, "q2").await;
    let mut stream = server.api.stream(&id, 0).await;
    while stream.until("item.delta").await.json()["payload"]["kind"] != "agent_message" {}
    server.kill();

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let ended = api.wait(&id, &turn).await;
    assert_eq!((&ended["status"], &ended["resume_count"]), (&json!("interrupted"), &json!(0)));
    assert_eq!(ended["error"]["code"], "process-restarted");
    api.rest(&id).await;
    let log = api.log(&id).await;
    check_log(&log, true);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&id).await));
    assert!(!names(&log).contains(&"turn.resumed"));
    let turns = api.list(&format!("/v1/threads/{id}/turns"), 10).await;
    let ran: Vec<_> = turns.iter().map(|turn| (text(&turn["input_summary"]), text(&turn["status"]))).collect();
    assert_eq!(ran[1..], ["q1", "q2"].map(|prompt| (prompt.to_owned(), "completed".to_owned())));
    let items = api.list(&format!("/v1/threads/{id}/items?turn={turn}&kind=agent_message"), 10).await;
    assert_eq!(items.len(), 1);
    assert_eq!((&items[0]["detail"], &items[0]["status"]), (&json!("part"), &json!("interrupted")));
}

#[tokio::test]
async fn a_thread_that_resumes_asks_again_and_keeps_the_part_that_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let id = server.api.create(json!({})).await;
    let turn = server.api.start(&id, "@say part\n@wait 1500\n@say whole").await;
    let queued = server.api.queue(&id, "next").await;
    server.api.stream(&id, 0).await.until("item.delta").await;
    server.kill();

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let ended = api.wait(&id, &turn).await;
    assert_eq!((&ended["status"], &ended["resume_count"]), (&json!("completed"), &json!(1)));
    api.rest(&id).await;
    let log = api.log(&id).await;
    check_log(&log, true);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&id).await));
    let resumed = log.iter().filter(|event| event["event"] == "turn.resumed").collect::<Vec<_>>();
    assert_eq!(resumed.len(), 1);
    assert_eq!(resumed[0]["turn_id"], *turn);
    let items = api.list(&format!("/v1/threads/{id}/items?turn={turn}&kind=agent_message"), 10).await;
    let said: Vec<_> = items.iter().map(|item| (text(&item["detail"]), text(&item["status"]))).collect();
    let pair = |detail: &str, status: &str| (detail.to_owned(), status.to_owned());
    assert_eq!(said, [pair("part", "interrupted"), pair("part\nwhole", "completed")]);
    // The answer that was cut off is closed before the call is made again.
    let at = |event: &Value| event["seq"].as_u64().unwrap();
    let closed = log.iter().find(|event| event["event"] == "item.completed" && event["item_id"] == items[0]["id"]);
    assert!(at(closed.unwrap()) < at(resumed[0]));
    let promoted = log.iter().find(|event| event["event"] == "prompt.promoted").unwrap();
    assert_eq!(promoted["payload"]["admission"]["id"], *queued);
}

#[tokio::test]
async fn a_settled_turn_is_not_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let id = server.api.create(json!({})).await;
    server.api.start(&id, "once").await;
    server.api.rest(&id).await;
    let before = server.api.log(&id).await;
    for _ in 0..3 {
        server.kill();
        server = Server::start(dir.path()).await;
        assert_eq!(server.api.rest(&id).await["seq"], before.len());
    }
    assert_eq!(server.api.log(&id).await, before);
}

#[tokio::test]
async fn a_try_that_waits_is_made_after_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::with(dir.path(), &[("RADDLE_LIMITS_RETRY_BASE_MS", "1500")]).await;
    let id = server.api.create(json!({})).await;
    let turn = server.api.start(&id, "@fail 500 busy\n@say at last").await;
    server.api.stream(&id, 0).await.until("turn.retrying").await;
    server.kill();
    let server = Server::with(dir.path(), &[("RADDLE_LIMITS_RETRY_BASE_MS", "1")]).await;
    let ended = server.api.wait(&id, &turn).await;
    server.api.rest(&id).await;
    let log = server.api.log(&id).await;
    check_log(&log, true);
    assert!(ended["ended_at"].is_string());
    // The process was lost while nothing ran: the turn is continued by its own timer, not as after a crash.
    assert_eq!(ended["resume_count"], 0, "{:?}", names(&log));
    assert!(names(&log).iter().filter(|name| **name == "turn.resumed").count() >= 1);
}
