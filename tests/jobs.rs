//! What a user is promised of jobs and schedules, by the real binary, killed where that matters.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use futures_util::{StreamExt, future::join_all, stream};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::{sync::watch, time::timeout};

/// A receiver of webhooks that outlives the server. A body `{"fails": n}` is refused so often, per message.
#[derive(Clone)]
struct Receiver {
    url: String,
    /// How often each message came, and how often it was taken.
    ledger: Arc<Mutex<BTreeMap<String, (u32, u32)>>>,
    heard: watch::Sender<u32>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let receiver = Self { url, ledger: Arc::default(), heard: watch::Sender::new(0) };
        let app = Router::new().route("/", post(receive)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        receiver
    }

    fn came(&self, job: &str) -> (u32, u32) {
        self.ledger.lock().unwrap().get(job).copied().unwrap_or_default()
    }

    async fn heard(&self, count: u32) {
        let heard = async { self.heard.subscribe().wait_for(|heard| *heard >= count).await.map(drop).unwrap() };
        timeout(LOST, heard).await.expect("as many messages come");
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let fails = body["fails"].as_u64().unwrap_or(0);
    let taken = {
        let mut ledger = receiver.ledger.lock().unwrap();
        let (came, taken) = ledger.entry(id).or_default();
        *came += 1;
        let takes = u64::from(*came) > fails;
        *taken += u32::from(takes);
        takes
    };
    receiver.heard.send_modify(|heard| *heard += 1);
    if taken { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Webhooks may go to the machine itself.
const LOCAL: (&str, &str) = ("RADDLE_EGRESS_ALLOW", "127.0.0.1");

async fn server() -> (Server, Receiver, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::with(dir.path(), &[LOCAL]).await, Receiver::start().await, dir)
}

fn hook(receiver: &Receiver, fails: u64) -> Value {
    json!({
        "name": "hook", "kind": "webhook", "payload": { "url": receiver.url, "body": { "fails": fails } },
        "backoff_base_ms": 5,
    })
}

/// A job, once it is as asked.
async fn becomes(api: &Api, job: &str, is: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/jobs/{job}");
    let becomes = async {
        loop {
            let found = api.get(&path).await.expect(200);
            if is(&found) {
                return found;
            }
        }
    };
    match timeout(LOST, becomes).await {
        Ok(found) => found,
        Err(_) => panic!("the job stands otherwise: {}", api.get(&path).await.json()),
    }
}

fn is_over(job: &Value) -> bool {
    ["completed", "failed", "cancelled"].contains(&job["status"].as_str().unwrap())
}

async fn make(api: &Api, body: &Value) -> String {
    text(&api.post("/v1/jobs", body.clone()).await.expect(201)["id"])
}

#[tokio::test]
async fn a_job_is_made_once_read_listed_and_told_what_it_may() {
    let (server, receiver, _dir) = server().await;
    let api = &server.api;
    let made = api.send(api.keyed("/v1/jobs", "k", &hook(&receiver, 0))).await;
    let job = made.expect(201);
    let id = text(&job["id"]);
    assert_eq!((made.header("location").unwrap(), made.seq()), (format!("/v1/jobs/{id}").as_str(), 1));
    assert_eq!((&job["kind"], &job["attempt"], &job["max_attempts"]), (&json!("webhook"), &json!(0), &json!(3)));
    let done = becomes(api, &id, is_over).await;
    assert_eq!(
        (&done["status"], &done["progress"], &done["output"]["status"]),
        (&json!("completed"), &json!(100), &json!(200))
    );
    let again = api.send(api.keyed("/v1/jobs", "k", &hook(&receiver, 0))).await;
    assert!(again.replayed());
    assert_eq!(again.expect(201)["id"], *id);
    api.send(api.keyed("/v1/jobs", "k", &hook(&receiver, 1))).await.problem(422, "idempotency-mismatch");
    assert_eq!(receiver.came(&id), (1, 1));

    let path = format!("/v1/jobs/{id}");
    for verb in ["pause", "resume", "cancel", "retry"] {
        let refused = api.post(&format!("{path}/{verb}"), json!({})).await.problem(409, "conflict");
        assert_eq!(refused["status"], 409);
    }
    api.get("/v1/jobs/job_01905d3c-7e57-7abc-8def-0123456789ab").await.problem(404, "not-found");
    // A job is no thread, under whatever name.
    api.get(&format!("/v1/threads/{}", id.replace("job_", "thr_"))).await.problem(404, "not-found");
    let renamed: String =
        id.replace("job_", "thr_").char_indices().map(|(at, c)| if at == 18 { '8' } else { c }).collect();
    api.get(&format!("/v1/threads/{renamed}/events")).await.problem(404, "not-found");
    assert_eq!(api.get("/v1/threads").await.expect(200)["data"], json!([]));

    for (body, field) in [
        (json!({"name": "n", "kind": "webhook", "payload": {"url": "http://10.0.0.1/"}}), "payload.url"),
        (json!({"name": "n", "kind": "webhook", "payload": {"url": receiver.url, "secret": "x"}}), "payload.secret"),
        (
            json!({"name": "n", "kind": "turn", "payload": {"thread_id": "thr_01905d3c-7e57-7abc-8def-0123456789ab", "prompt": "x"}}),
            "payload.thread_id",
        ),
        (json!({"name": "", "kind": "webhook", "payload": {"url": receiver.url}}), "name"),
        (
            json!({"name": "n", "kind": "webhook", "payload": {"url": receiver.url}, "max_attempts": 101}),
            "max_attempts",
        ),
        (json!({"name": "n", "kind": "cake", "payload": {}}), "kind"),
    ] {
        assert_eq!(api.post("/v1/jobs", body.clone()).await.problem(422, "invalid")["field"], field, "{body}");
    }
    let unknown = json!({"name": "n", "kind": "webhook", "payload": {"url": receiver.url, "x": 1}});
    api.post("/v1/jobs", unknown).await.problem(422, "unknown-field");

    let mut ids = vec![id];
    for _ in 0..4 {
        ids.push(make(api, &hook(&receiver, 0)).await);
    }
    let first = api.get("/v1/jobs?limit=3").await.expect(200);
    let second = api.get(&format!("/v1/jobs?limit=3&cursor={}", text(&first["next_cursor"]))).await.expect(200);
    let listed: Vec<_> = [first, second].iter().flat_map(|page| page["data"].as_array().unwrap().clone()).collect();
    assert_eq!(listed.iter().map(|job| text(&job["id"])).collect::<Vec<_>>(), ids);
    for id in &ids {
        becomes(api, id, is_over).await;
    }
    assert_eq!(api.get("/v1/jobs?status=queued").await.expect(200)["data"], json!([]));
    assert_eq!(api.get("/v1/jobs?status=completed").await.expect(200)["data"].as_array().unwrap().len(), 5);
    api.get("/v1/jobs?status=done").await.problem(422, "invalid");
    assert!(String::from_utf8(api.get("/metrics").await.body).unwrap().contains("raddle_jobs_completed_total 5\n"));
}

#[tokio::test]
async fn failures_are_tried_again_and_the_fourth_ends_it() {
    let (server, receiver, _dir) = server().await;
    let api = &server.api;
    let id = make(api, &hook(&receiver, 3)).await;
    let done = becomes(api, &id, is_over).await;
    assert_eq!((&done["status"], &done["attempt"], receiver.came(&id)), (&json!("completed"), &json!(3), (4, 1)));
    let id = make(api, &hook(&receiver, 9)).await;
    let failed = becomes(api, &id, is_over).await;
    assert_eq!(
        (&failed["status"], &failed["attempt"], &failed["next_retry_at"]),
        (&json!("failed"), &json!(3), &Value::Null)
    );
    let retried: Vec<_> = failed["history"].as_array().unwrap().iter().map(|phase| text(&phase["phase"])).collect();
    assert_eq!(retried.iter().filter(|phase| *phase == "failed").count(), 4);
    let again = api.post(&format!("/v1/jobs/{id}/retry"), json!({})).await.expect(200);
    assert_eq!((&again["status"], &again["attempt"]), (&json!("queued"), &json!(0)));
}

#[tokio::test]
async fn what_becomes_of_jobs_is_among_the_events_of_the_tenant() {
    let (server, receiver, _dir) = server().await;
    let api = &server.api;
    let before = text(&api.get("/v1/events").await.expect(200)["next_cursor"]);
    let id = make(api, &hook(&receiver, 1)).await;
    becomes(api, &id, is_over).await;
    let page = api.get(&format!("/v1/events?after={before}&limit=500")).await.expect(200);
    let events = page["data"].as_array().unwrap();
    let names: Vec<_> = events.iter().map(|event| text(&event["event"])).collect();
    assert_eq!(names, ["job.queued", "job.started", "job.retrying", "job.started", "job.completed"]);
    for (seq, event) in (1..).zip(events) {
        assert_eq!((&event["seq"], &event["prev"], &event["job_id"]), (&json!(seq), &json!(seq - 1), &json!(id)));
        assert_eq!((&event["payload"]["job"]["id"], &event["payload"]["job"]["seq"]), (&json!(id), &json!(seq)));
    }
}

#[tokio::test]
async fn a_turn_waits_its_turn_and_a_cancelled_one_is_ended() {
    let (server, _, _dir) = server().await;
    let api = &server.api;
    let thread = api.create(json!({})).await;
    let open = api.start(&thread, "@wait 600000").await;
    let turn = |prompt: &str| json!({"name": "t", "kind": "turn", "payload": {"thread_id": thread, "prompt": prompt}});
    let (first, second) = (make(api, &turn("@wait 600000")).await, make(api, &turn("hello")).await);
    becomes(api, &second, |job| job["input_id"].is_string()).await;
    api.post(&format!("/v1/threads/{thread}/turns/{open}/interrupt"), json!({})).await.expect(200);
    let runs = becomes(api, &first, |job| job["turn_id"].is_string()).await;
    api.post(&format!("/v1/jobs/{first}/cancel"), json!({})).await.expect(200);
    assert_eq!(api.wait(&thread, &text(&runs["turn_id"])).await["status"], "interrupted");
    let done = becomes(api, &second, is_over).await;
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(done["output"]["text"], "echo: hello");
    // A turn that somebody else ends ends its job.
    let third = make(api, &turn("@wait 600000")).await;
    let runs = becomes(api, &third, |job| job["turn_id"].is_string()).await;
    let interrupt = format!("/v1/threads/{thread}/turns/{}/interrupt", text(&runs["turn_id"]));
    api.post(&interrupt, json!({})).await.expect(200);
    assert_eq!(becomes(api, &third, is_over).await["status"], "cancelled");
}

#[tokio::test]
async fn a_turn_is_found_again_after_a_kill_and_a_paused_job_is_still_paused() {
    let (mut server, receiver, dir) = server().await;
    let thread = server.api.create(json!({})).await;
    let body = json!({"name": "t", "kind": "turn", "payload": {"thread_id": thread, "prompt": "@ask really?"}});
    let asks = make(&server.api, &body).await;
    becomes(&server.api, &asks, |job| job["turn_id"].is_string()).await;
    let later = json!({"run_at": "2999-01-01T00:00:00Z"});
    let mut paused = hook(&receiver, 0);
    paused.as_object_mut().unwrap().extend(later.as_object().unwrap().clone());
    let paused = make(&server.api, &paused).await;
    server.api.post(&format!("/v1/jobs/{paused}/pause"), json!({})).await.expect(200);
    server.kill();
    let server = Server::with(dir.path(), &[LOCAL]).await;
    let api = &server.api;
    let question = async {
        loop {
            let found = api.get("/v1/questions?status=pending").await.expect(200);
            if let Some(question) = found["data"].get(0) {
                return text(&question["id"]);
            }
        }
    };
    let question = timeout(LOST, question).await.expect("it is still asked");
    api.post(&format!("/v1/questions/{question}"), json!({"answer": "yes"})).await.expect(200);
    assert_eq!(becomes(api, &asks, is_over).await["status"], "completed");
    assert_eq!(api.get(&format!("/v1/threads/{thread}/turns")).await.expect(200)["data"].as_array().unwrap().len(), 1);
    let found = api.get(&format!("/v1/jobs/{paused}")).await.expect(200);
    assert_eq!((&found["status"], receiver.came(&paused)), (&json!("paused"), (0, 0)));
}

#[tokio::test]
async fn a_schedule_makes_a_job_of_its_own_for_a_time() {
    let (server, receiver, _dir) = server().await;
    let api = &server.api;
    let before = text(&api.get("/v1/events").await.expect(200)["next_cursor"]);
    let new = json!({"name": "once", "at": "2020-01-01T00:00:00Z", "job": hook(&receiver, 0)});
    let made = api.send(api.keyed("/v1/schedules", "s", &new)).await;
    let id = text(&made.expect(201)["id"]);
    assert!(api.send(api.keyed("/v1/schedules", "s", &new)).await.replayed());
    let path = format!("/v1/schedules/{id}");
    let fired = async {
        loop {
            let found = api.get(&path).await.expect(200);
            if found["status"] == "completed" {
                return found;
            }
        }
    };
    let fired = timeout(LOST, fired).await.expect("it fires");
    assert_eq!((&fired["fired"], &fired["next_at"]), (&json!(1), &Value::Null));
    let job = becomes(api, &text(&fired["last_job"]), is_over).await;
    assert_eq!((&job["schedule_id"], &job["slot"]), (&json!(id), &json!("2020-01-01T00:00:00.000Z")));
    let page = api.get(&format!("/v1/events?after={before}")).await.expect(200);
    let names: Vec<_> = page["data"].as_array().unwrap().iter().map(|event| text(&event["event"])).collect();
    assert_eq!(names, ["schedule.created", "schedule.fired", "job.queued", "job.started", "job.completed"]);

    let cron = json!({"cron": "0 3 * * *", "timezone": "Europe/Berlin", "overlap": "queue", "catch_up": "all", "job": hook(&receiver, 0)});
    let cron = api.post("/v1/schedules", cron).await.expect(201);
    let path = format!("/v1/schedules/{}", text(&cron["id"]));
    let paused = api.patch(&path, json!({"status": "paused", "name": "nightly"})).await;
    assert_eq!((&paused.expect(200)["status"], paused.seq()), (&json!("paused"), 2));
    let stale = api.request(Method::PATCH, &path).header("if-match", "\"1\"").json(&json!({"name": null}));
    api.send(stale).await.problem(412, "precondition-failed");
    assert_eq!(api.patch(&path, json!({"status": "active"})).await.expect(200)["status"], "active");
    for (bad, field) in [
        (json!({"cron": "61 * * * *", "job": hook(&receiver, 0)}), "cron"),
        (json!({"cron": "0 0 30 2 *", "job": hook(&receiver, 0)}), "cron"),
        (json!({"cron": "* * * * *", "timezone": "Mars", "job": hook(&receiver, 0)}), "timezone"),
        (json!({"cron": "* * * * *", "at": "2030-01-01T00:00:00Z", "job": hook(&receiver, 0)}), "at"),
        (json!({"cron": "* * * * *"}), "job"),
        (json!({"cron": "* * * * *", "job": {"name": "n", "kind": "webhook", "payload": {}}}), "job.payload.url"),
    ] {
        assert_eq!(api.post("/v1/schedules", bad.clone()).await.problem(422, "invalid")["field"], field, "{bad}");
    }
    assert_eq!(api.get("/v1/schedules").await.expect(200)["data"].as_array().unwrap().len(), 2);
    api.delete(&path).await.expect(204);
    api.get(&path).await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_outlive_kills_and_none_is_lost_or_done_too_often() {
    const HOOKS: usize = 900;
    const TURNS: usize = 100;
    const KILLS: u32 = 4;
    let (mut server, receiver, dir) = server().await;
    let threads: Vec<_> = join_all((0..5).map(|_| server.api.create(json!({})))).await;
    let bodies: Vec<Value> = (0..HOOKS)
        .map(|n| hook(&receiver, [0, 0, 1, 2, 9][n % 5]))
        .chain((0..TURNS).map(|n| {
            let payload = json!({"thread_id": threads[n % 5], "prompt": format!("number {n}")});
            json!({"name": "turn", "kind": "turn", "payload": payload})
        }))
        .collect();
    let mut ids: BTreeMap<usize, String> = BTreeMap::new();
    for kill in 0..=KILLS {
        // Whatever was not acknowledged is asked for again, under its key.
        let upto = bodies.len() * (kill as usize + 1) / (KILLS as usize + 1);
        let missing: Vec<_> = (0..upto).filter(|n| !ids.contains_key(n)).collect();
        let made: Vec<_> = stream::iter(missing)
            .map(|n| {
                let api = server.api.clone();
                let request = api.keyed("/v1/jobs", &format!("job-{n}"), &bodies[n]);
                async move { (n, api.try_send(request).await.unwrap()) }
            })
            .buffer_unordered(16)
            .collect()
            .await;
        ids.extend(made.iter().map(|(n, made)| (*n, text(&made.expect(201)["id"]))));
        for id in ids.values().step_by(11) {
            // Some of them are over, and cannot be.
            server.api.post(&format!("/v1/jobs/{id}/pause"), json!({})).await;
        }
        if kill < KILLS {
            receiver.heard(60 * (kill + 1)).await;
            server.kill();
            server = Server::with(dir.path(), &[LOCAL]).await;
        }
    }
    let api = &server.api;
    assert_eq!(ids.values().collect::<BTreeSet<_>>().len(), bodies.len(), "a key makes one job");
    for id in ids.values() {
        let job = api.get(&format!("/v1/jobs/{id}")).await.expect(200);
        if job["status"] == "paused" {
            api.post(&format!("/v1/jobs/{id}/resume"), json!({})).await.expect(200);
        }
    }
    for (n, id) in &ids {
        let job = becomes(api, id, is_over).await;
        let entries = job["history"].as_array().unwrap();
        let count = |phase: &str| entries.iter().filter(|entry| entry["phase"] == phase).count() as u32;
        if *n >= HOOKS {
            // A turn that a pause ended is begun anew; apart from that each has one.
            assert_eq!(job["status"], "completed", "{job}");
            continue;
        }
        let (came, taken) = receiver.came(id);
        let fails = bodies[*n]["payload"]["body"]["fails"].as_u64().unwrap() as u32;
        let again = count("lost") + count("paused");
        if fails == 9 {
            // A message that came before its process was lost counts at the receiver, not here.
            assert_eq!((job["status"].as_str(), count("failed")), (Some("failed"), 4), "{job}");
            assert!((4..=4 + again).contains(&came), "{came}: {job}");
        } else {
            assert_eq!(job["status"], "completed", "{job}");
            assert!((1..=1 + again).contains(&taken), "{taken} of {came}: {job}");
        }
    }
    let turns = ids.iter().filter(|(n, _)| **n >= HOOKS);
    let mut named = BTreeSet::new();
    for (_, id) in turns {
        let job = api.get(&format!("/v1/jobs/{id}")).await.expect(200);
        assert!(named.insert(text(&job["turn_id"])), "two jobs have one turn");
    }
    for thread in &threads {
        api.rest(thread).await;
        let found = api.get(&format!("/v1/threads/{thread}/turns?limit=500")).await.expect(200);
        for turn in found["data"].as_array().unwrap() {
            let is_ours = named.contains(&text(&turn["id"]));
            assert!(is_ours || turn["status"] == "interrupted", "a turn was begun for nobody: {turn}");
        }
    }
}

// ---- the command line ----------------------------------------------------------------------------

fn ask(server: &Server, args: &[&str]) -> Output {
    run(raddle().args(args).env("RADDLE_SERVER", &server.url), "")
}

fn json_of(output: &Output) -> Value {
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.out).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

// The receiver lives in this process, and has to answer while a command runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_does_what_the_api_does() {
    let (server, receiver, _dir) = server().await;
    let create = ["jobs", "create", "hook", "--url", &receiver.url, "--body", "{\"fails\":0}"];
    let made = ask(&server, &create);
    assert_eq!(made.code, Some(0), "{}", made.said);
    let id = made.out.trim();
    let watched = ask(&server, &["jobs", "watch", id]);
    assert_eq!(watched.code, Some(0), "{}", watched.said);
    assert!(watched.out.contains("completed"), "{}", watched.out);
    assert!(ask(&server, &["jobs", "show", id]).out.contains("created"));
    assert_eq!(json_of(&ask(&server, &["jobs", "show", id, "--json"]))["id"], *id);
    assert_eq!(ask(&server, &["jobs", "pause", id]).code, Some(3));
    let later = ["jobs", "create", "later", "--url", &receiver.url, "--run-at", "2999-01-01T00:00:00Z", "--json"];
    let later = text(&json_of(&ask(&server, &later))["id"]);
    for (verb, status) in [("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")] {
        assert_eq!(json_of(&ask(&server, &["jobs", verb, &later, "--json"]))["status"], status);
    }
    becomes(&server.api, &later, is_over).await;
    assert_eq!(
        json_of(&ask(&server, &["jobs", "list", "--status", "completed", "--json"])).as_array().unwrap().len(),
        2
    );
    assert!(ask(&server, &["jobs", "ls"]).out.contains(id));

    let nightly = ["schedules", "create", "nightly", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"];
    let nightly =
        [&nightly[..], &["--overlap", "cancel-running", "--catch-up", "none", "--url", &receiver.url]].concat();
    let made = ask(&server, &nightly);
    assert_eq!(made.code, Some(0), "{}", made.said);
    let id = made.out.trim();
    assert_eq!(json_of(&ask(&server, &["schedules", "show", id, "--json"]))["overlap"], "cancel_running");
    assert!(ask(&server, &["schedules", "pause", id]).out.contains("paused"));
    assert!(ask(&server, &["schedules", "resume", id]).out.contains("active"));
    assert!(ask(&server, &["schedules", "list"]).out.contains("Europe/Berlin"));
    assert_eq!(ask(&server, &["schedules", "delete", id]).code, Some(0));
    assert_eq!(json_of(&ask(&server, &["schedules", "list", "--json"])), json!([]));

    for mistake in [
        &["jobs", "create", "n"][..],
        &["jobs", "create", "n", "--prompt", "x"],
        &["jobs", "create", "n", "--url", "http://x", "--thread", "t"],
        &["jobs", "create", "n", "--url", "http://x", "--body", "{"],
        &["schedules", "create", "n", "--url", "http://x"],
        &["schedules", "create", "n", "--url", "http://x", "--cron", "* * * * *", "--at", "x"],
    ] {
        assert_eq!(ask(&server, mistake).code, Some(2), "{mistake:?}");
    }
    for refused in [&["jobs", "show", "x"][..], &["schedules", "show", "x"], &["jobs", "cancel", "x"]] {
        assert_eq!(ask(&server, refused).code, Some(3), "{refused:?}");
    }
}
