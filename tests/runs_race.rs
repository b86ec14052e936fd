//! What agents are promised who work on one board at once: each task is done once, whoever crashes, comes back late or
//! asks twice, and nobody's write is erased.

#[path = "support/runs.rs"]
mod board;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use board::{Fold, Lease, Run};
use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use support::*;
use tokio::{sync::watch, time::timeout};

/// What the agents were told.
#[derive(Default)]
struct Journal {
    /// By the key under which it was claimed.
    claims: BTreeMap<String, Lease>,
    /// Tasks whose completion was accepted, and under which fence.
    completions: BTreeMap<String, u64>,
    /// Leases whose holder went away without a word.
    left: Vec<Lease>,
    /// Accepted requests under a key: path, key, body, and the reply.
    receipts: Vec<(String, String, Value, Answer)>,
}

/// A board, the agents at it, and a server that may be killed under them.
struct Race {
    run: Run,
    /// The server that is there now, by how often it was started.
    server: watch::Sender<(usize, Api)>,
    /// The newest event that somebody saw.
    seen: watch::Sender<u64>,
    /// Replies so far.
    noted: watch::Sender<usize>,
    tasks: usize,
    done: AtomicUsize,
    over: AtomicBool,
    journal: Mutex<Journal>,
}

impl Race {
    /// Sends until a whole reply comes, if need be to the next server: under a key, that is one request.
    async fn ask(&self, make: impl Fn(&Api) -> RequestBuilder) -> Answer {
        let asks = async {
            loop {
                let (number, api) = self.server.borrow().clone();
                match api.try_send(make(&api)).await {
                    // The same request is still in flight, or the server is going down.
                    Ok(reply) if reply.status == 409 && reply.json()["code"] == "in-flight" => {
                        tokio::task::yield_now().await
                    }
                    Ok(reply) => return reply,
                    Err(_) => drop(self.server.subscribe().wait_for(|(now, _)| *now > number).await.unwrap()),
                }
            }
        };
        let reply = timeout(2 * LOST, asks).await.expect("no reply");
        self.noted.send_modify(|noted| *noted += 1);
        reply
    }

    async fn keyed(&self, rest: &str, key: &str, body: &Value) -> Answer {
        let path = self.run.at(rest);
        let reply = self.ask(|api| api.keyed(&path, key, body)).await;
        if reply.status == 200 {
            self.journal.lock().unwrap().receipts.push((path, key.to_owned(), body.clone(), reply.clone()));
        }
        reply
    }

    /// Follows the log, through whatever happens to the server, until every task is done.
    async fn watch(self: Arc<Self>) {
        let mut after = 0;
        while self.done.load(SeqCst) < self.tasks {
            let (number, api) = self.server.borrow().clone();
            let path = self.run.at(&format!("/events?after={after}"));
            let request = api.request(Method::GET, &path).header("accept", "text/event-stream");
            if let Ok(response) = request.send().await {
                let (mut response, mut frames) = (response, Frames::default());
                while let Ok(Some(bytes)) = response.chunk().await {
                    frames.feed(&bytes);
                    while let Some(frame) = frames.next() {
                        let Some(seq) = frame.id else { continue };
                        assert_eq!(seq, after + 1, "a gap or a repetition");
                        after = seq;
                        let completed = frame.event == "context.task.completed";
                        let done = self.done.fetch_add(completed.into(), SeqCst) + usize::from(completed);
                        self.over.store(done == self.tasks, SeqCst);
                        self.seen.send_replace(seq);
                    }
                    if self.over.load(SeqCst) {
                        return;
                    }
                }
            }
            // It was killed: the next one goes on where this one was.
            let mut server = self.server.subscribe();
            timeout(LOST, server.wait_for(|(now, _)| *now > number)).await.expect("a server").unwrap();
        }
    }

    /// Claims under a key, sometimes twice at once.
    async fn claim(&self, agent: &str, key: &str, twice: bool) -> Option<Lease> {
        let body = json!({"agent_id": agent, "lease_ms": 5_000});
        let ask = || async { Lease::of(&self.keyed("/tasks/claim", key, &body).await.expect(200)) };
        let mut told = if twice { join_all([ask(), ask()]).await } else { vec![ask().await] };
        told.retain(Option::is_some);
        assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "two leases under one key: {told:?}");
        let lease = told.pop().flatten()?;
        let before = self.journal.lock().unwrap().claims.insert(key.to_owned(), lease.clone());
        assert!(before.is_none_or(|before| before == lease));
        Some(lease)
    }

    /// Says something under a lease; whether it was accepted. What is not is refused as late.
    async fn say(&self, lease: &Lease, key: &str, action: &str, twice: bool) -> bool {
        let body = json!({
            "action": action, "lease_token": lease.token, "error": (action == "fail").then_some("told to"),
            "output": (action == "complete").then(|| json!({"fence": lease.fence})),
        });
        let body = Value::Object(
            body.as_object()
                .unwrap()
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        );
        let rest = format!("/tasks/{}/transition", lease.task);
        let ask = || self.keyed(&rest, key, &body);
        let replies = if twice { join_all([ask(), ask()]).await } else { vec![ask().await] };
        let accepted = replies.iter().any(|reply| reply.status == 200);
        for reply in replies.iter().filter(|reply| reply.status != 200) {
            assert!(!accepted, "one of two equal requests was refused: {}", reply.json());
            let code = text(&reply.json()["code"]);
            assert!(["task-lease-invalid", "task-transition-invalid"].contains(&&*code), "{}", reply.json());
            reply.problem(409, &code);
        }
        if accepted && action == "complete" {
            let before = self.journal.lock().unwrap().completions.insert(lease.task.clone(), lease.fence);
            assert_eq!(before, None, "{} was completed twice", lease.task);
        }
        accepted
    }

    async fn agent(self: Arc<Self>, number: usize, mut dice: Dice) {
        let name = format!("agent-{number}");
        let mut changes = self.seen.subscribe();
        let mut old: Vec<Lease> = Vec::new();
        for n in 0.. {
            changes.borrow_and_update();
            if self.over.load(SeqCst) {
                break;
            }
            let key = |what: &str| format!("{name}-{n}-{what}");
            // One that was thought dead comes back.
            if !old.is_empty() && dice.below(6) == 0 {
                let lease = old.swap_remove(dice.below(old.len()));
                let action = ["complete", "heartbeat", "fail", "release"][dice.below(4)];
                self.say(&lease, &key("late"), action, false).await;
                self.journal.lock().unwrap().left.push(lease);
            }
            let Some(lease) = self.claim(&name, &key("claim"), dice.below(4) == 0).await else {
                if !self.over.load(SeqCst) {
                    timeout(LOST, changes.changed()).await.expect("nothing happens any more").unwrap();
                }
                continue;
            };
            // Towards the end nobody goes away, or it would last as long as the last lease.
            let early = self.done.load(SeqCst) * 4 < self.tasks * 3;
            match dice.below(20) {
                // One is thought dead for a while, the other is.
                0 if early => old.push(lease),
                1 if early => self.journal.lock().unwrap().left.push(lease),
                2 if early => drop(self.say(&lease, &key("fail"), "fail", false).await),
                3 => drop(self.say(&lease, &key("release"), "release", dice.below(2) == 0).await),
                4..8 => {
                    self.say(&lease, &key("keep"), "heartbeat", false).await;
                    self.say(&lease, &key("done"), "complete", dice.below(2) == 0).await;
                }
                _ => drop(self.say(&lease, &key("done"), "complete", dice.below(4) == 0).await),
            }
        }
        self.journal.lock().unwrap().left.extend(old);
    }
}

/// Tasks that wait for each other, of some priorities.
fn tasks(count: usize, dice: &mut Dice) -> Vec<Value> {
    let one = |n: usize| {
        let on: BTreeSet<_> = (0..dice.below(4)).filter(|_| n > 0).map(|_| format!("t{}", dice.below(n))).collect();
        json!({
            "id": format!("t{n}"), "task_type": "t", "priority": dice.below(5), "max_attempts": 100,
            "depends_on_task_ids": on,
        })
    };
    (0..count).map(one).collect()
}

/// Whoever claimed got the first of those that could be had: by priority, then by age.
fn check_order(log: &[Value]) {
    let mut tasks: Vec<Value> = Vec::new();
    for event in log.iter().filter(|event| event["event"].as_str().unwrap().starts_with("context.task.")) {
        let task = &event["payload"]["task"];
        if event["event"] == "context.task.claimed" {
            let is_done = |id: &Value| tasks.iter().any(|task| task["id"] == *id && task["status"] == "done");
            let ready = tasks.iter().filter(|task| {
                let free = matches!(task["status"].as_str(), Some("pending" | "runnable"));
                free && task["depends_on_task_ids"].as_array().unwrap().iter().all(is_done)
            });
            // `max_by_key` takes the last of equals.
            let first = ready.rev().max_by_key(|task| task["priority"].as_i64()).unwrap();
            assert_eq!(first["id"], task["id"], "{event}");
        }
        match tasks.iter_mut().find(|known| known["id"] == task["id"]) {
            Some(known) => *known = task.clone(),
            None => tasks.push(task.clone()),
        }
    }
}

async fn race(dir: &Path, agents: usize, count: usize, kills: usize, seed: u64) {
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut server = Server::start(dir).await;
    let run = Run::new(&server.api).await;
    for batch in tasks(count, &mut dice).chunks(50) {
        run.tasks(json!(batch)).await;
    }
    let race = Arc::new(Race {
        server: watch::Sender::new((0, server.api.clone())),
        seen: watch::Sender::new(0),
        noted: watch::Sender::new(0),
        tasks: count,
        done: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        journal: Mutex::default(),
        run,
    });
    let watching = tokio::spawn(race.clone().watch());
    let working: Vec<_> = (0..agents)
        .map(|number| tokio::spawn(race.clone().agent(number, Dice::new(dice.below(1 << 30) as u64))))
        .collect();
    for kill in 1..=kills {
        let mut noted = race.noted.subscribe();
        let target = *noted.borrow() + count / 2 + dice.below(count);
        let over =
            async { noted.wait_for(|noted| *noted >= target || race.over.load(SeqCst)).await.map(drop).unwrap() };
        timeout(LOST, over).await.expect("replies");
        server.kill();
        server = Server::start(dir).await;
        race.server.send_replace((kill, server.api.clone()));
    }
    timeout(3 * LOST, watching).await.expect("every task is done").unwrap();
    for agent in working {
        timeout(2 * LOST, agent).await.expect("an agent ends").unwrap();
    }

    let run = race.run.on(&server.api);
    let log = run.check().await;
    let fold = Fold::of(&log);
    assert_eq!(fold.done.len(), count, "every task was completed, and once");
    check_order(&log);
    let mut journal = std::mem::take(&mut *race.journal.lock().unwrap());
    // No claim was lost, none was made that nobody was told of.
    let claimed: BTreeMap<u64, &Value> = log
        .iter()
        .filter(|event| event["event"] == "context.task.claimed")
        .map(|event| (event["payload"]["task"]["lease"]["fence"].as_u64().unwrap(), event))
        .collect();
    assert_eq!(claimed.len(), journal.claims.len());
    for (key, lease) in &journal.claims {
        let event = claimed[&lease.fence];
        assert_eq!(event["task_id"], *lease.task, "{key}");
        assert!(key.starts_with(&text(&event["payload"]["task"]["lease"]["owner"])), "{key}: {event}");
    }
    // Only the last holder completed, and he was told so.
    assert_eq!(journal.completions.len(), count);
    for (task, fence) in &journal.completions {
        let kept = fold.task(task);
        assert_eq!(kept["output"], json!({"fence": fence}), "{task}");
        let last = claimed.iter().rfind(|(_, event)| event["task_id"] == **task).unwrap();
        assert_eq!(last.0, fence, "{task} was completed under a lease that was not its last");
    }
    // Whoever comes back now changes nothing.
    for (n, lease) in journal.left.iter().enumerate() {
        for action in ["complete", "heartbeat", "fail", "release"] {
            let body = json!({"action": action, "lease_token": lease.token});
            let late = server.api.send(run.keyed(
                &format!("/tasks/{}/transition", lease.task),
                &format!("z{n}{action}"),
                &body,
            ));
            late.await.problem(409, "task-transition-invalid");
        }
    }
    // What was answered is answered again.
    for _ in 0..40 {
        let (path, key, body, reply) = journal.receipts.swap_remove(dice.below(journal.receipts.len()));
        // What led to nothing is not kept.
        if reply.json()["task"].is_null() {
            continue;
        }
        let again = server.api.send(server.api.keyed(&path, &key, &body)).await;
        assert_eq!((again.replayed(), again.status, &again.body), (true, 200, &reply.body), "{path} {key}");
    }
    assert_eq!(run.log().await, log);
    let stale = names_of(&log, "context.task.stale_requeued");
    println!(
        "{} events, {} claims, {stale} leases ran out, {} came back late",
        log.len(),
        claimed.len(),
        journal.left.len()
    );
    assert!(stale > 0, "nobody went away");
}

fn names_of(log: &[Value], name: &str) -> usize {
    log.iter().filter(|event| event["event"] == name).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_agents_that_race_crash_come_back_late_and_ask_twice_each_task_is_done_once() {
    let dir = tempfile::tempdir().unwrap();
    race(dir.path(), 24, 150, 0, 90_125).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_its_agents_loses_nothing_acknowledged_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    race(dir.path(), 100, 1_000, 4, 5_150).await;
}

#[tokio::test]
async fn of_many_claims_of_one_task_at_once_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let run = Run::new(&server.api).await;
    for round in 0..5 {
        let id = format!("t{round}");
        run.tasks(json!([{"id": id, "task_type": "t"}])).await;
        let agents: Vec<_> = (0..50).map(|n| format!("a{n}")).collect();
        let claims = join_all(agents.iter().map(|agent| run.claim(agent))).await;
        let won: Vec<_> = claims.iter().flatten().collect();
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(won[0].task, id);
    }
    run.check().await;
}

/// Changes the run as a whole, as often as somebody was quicker; how often that was.
async fn replace(run: &Run, writer: &str, key: usize) -> usize {
    for lost in 0.. {
        let seen = run.api.get(&run.at("")).await;
        let mut whole = seen.expect(200);
        let body = whole.as_object_mut().unwrap();
        body.remove("task_counts");
        let writers = body["source_metadata"]["writers"].as_array_mut().unwrap();
        writers.push(json!(writer));
        let put = run.api.request(Method::PUT, &run.at("")).header("if-match", format!("\"{}\"", seen.seq()));
        // With `revision` and `tasks` as they were seen, or without.
        if key.is_multiple_of(2) {
            body.remove("tasks");
            body.remove("revision");
        }
        let reply = run.api.send(put.json(&whole)).await;
        if reply.status == 200 {
            return lost;
        }
        let problem = reply.problem(412, "precondition-failed");
        assert!(problem["revision"].as_u64().unwrap() > seen.seq(), "{problem}");
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_writes_whole_runs_plans_and_claims_at_once_erases_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let body = json!({"objective": "o", "source_metadata": {"writers": []}});
    let run = Run::make(&server.api, body).await;
    let tasks: Vec<_> = (0..100).map(|n| json!({"id": format!("t{n}"), "task_type": "t"})).collect();
    run.tasks(json!(tasks)).await;
    let spawn = |n: usize| {
        let run = run.clone();
        tokio::spawn(async move {
            let lease = run.claim(&format!("a{n}")).await.expect("there is one for everybody");
            if n.is_multiple_of(3) {
                run.say_under(&lease, "complete").await.expect(200);
            }
            lease
        })
    };
    let puts: Vec<_> = (0..8)
        .map(|n| {
            let run = run.clone();
            tokio::spawn(async move { replace(&run, &format!("w{n}"), n).await })
        })
        .collect();
    let todos: Vec<_> = (0..20)
        .map(|n| {
            let run = run.clone();
            tokio::spawn(async move {
                let todo = json!({"id": format!("s{n}"), "content": format!("step {n}"), "status": "ready"});
                run.post("/todos/sync", json!({"replace": false, "todos": [todo]})).await.expect(200);
                run.post("/driver/next", json!({})).await.expect(200);
                run.add("add_fact", json!({"id": format!("f{n}"), "text": "t"})).await;
            })
        })
        .collect();
    let claims: Vec<_> = (0..100).map(spawn).collect();
    let leases: Vec<Lease> = join_all(claims).await.into_iter().map(Result::unwrap).collect();
    join_all(todos).await.into_iter().for_each(|todo| todo.unwrap());
    let lost: usize = join_all(puts).await.into_iter().map(Result::unwrap).sum();
    println!("{lost} times a writer was told that somebody was quicker");

    let log = run.check().await;
    let shown = run.show().await;
    assert_eq!(leases.iter().map(|lease| lease.task.clone()).collect::<BTreeSet<_>>().len(), 100);
    for (n, lease) in leases.iter().enumerate() {
        let task = run.task(&lease.task).await;
        if n.is_multiple_of(3) {
            assert_eq!(task["status"], "done");
        } else {
            assert_eq!((&task["status"], &task["lease"]["fence"]), (&json!("in_progress"), &json!(lease.fence)));
            run.say_under(lease, "complete").await.expect(200);
        }
    }
    let writers: BTreeSet<_> = shown["source_metadata"]["writers"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(writers, (0..8).map(|n| format!("w{n}")).collect());
    let steps: BTreeSet<_> = shown["steps"].as_array().unwrap().iter().map(|step| text(&step["step_id"])).collect();
    assert_eq!(steps, (0..20).map(|n| format!("s{n}")).collect());
    // A step that the driver began is not begun again, nor put back.
    let begun = log.iter().filter(|event| event["payload"]["selected_step_previous_status"] == "runnable").count();
    assert!(begun <= 1, "what is in progress is kept");
    assert_eq!(run.get("/blackboard").await["facts"].as_array().unwrap().len(), 20);
    run.check().await;
    // Whoever has not looked is told so, and nothing is written.
    let stale = json!({"objective": "stale", "status": "running", "revision": 1});
    run.api.send(run.api.request(Method::PUT, &run.at("")).json(&stale)).await.problem(412, "precondition-failed");
    let stale = run.api.request(Method::POST, &run.at("/todos/sync")).header("if-match", "\"1\"");
    run.api.send(stale.json(&json!({"todos": []}))).await.problem(412, "precondition-failed");
    assert_eq!(run.show().await["objective"], "o");
}
