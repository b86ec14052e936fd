//! The typed clients, each doing what a host does against the real binary: the Rust one here, those of `clients/` in
//! tests of their own, which `clients/test` runs. And what they are made of: the document, held against real events.
//!
//! `RADDLE_TEST_CLIENTS` names the directory that `clients/install` has filled. Where nobody has, it is filled once, next
//! to what cargo builds for tests. Whoever lacks Node.js, npm, Python or pip is told so by a test that fails.

mod support;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, pin_mut};
use raddle::client::{Client, ClientError, EventView, NewThread, StartTurn, Started};
use raddle_domain::record::{Decision, Delivery, TurnStatus};
use serde_json::{Value, json};
use support::{Api, LOST, Server, check_log, raddle, run, text};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::Mutex,
    time::timeout,
};

/// A server that is killed and started again, on the same data and port, by whoever asks for it.
struct Mortal {
    server: Mutex<Server>,
    data: PathBuf,
    demo: PathBuf,
    url: String,
    kills: AtomicUsize,
    _dir: tempfile::TempDir,
}

impl Mortal {
    async fn start() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (data, demo) = (dir.path().join("data"), dir.path().join("demo"));
        std::fs::create_dir(&demo).unwrap();
        let server = Self::launch(&data, &demo, "127.0.0.1:0").await;
        let url = server.url.clone();
        let (server, kills) = (Mutex::new(server), AtomicUsize::new(0));
        Arc::new(Self { server, data, demo, url, kills, _dir: dir })
    }

    async fn launch(data: &Path, demo: &Path, listen: &str) -> Server {
        let demo = demo.to_str().unwrap();
        Server::with(data, &[("RADDLE_LISTEN", listen), ("RADDLE_TOOLS_DEMO_DIR", demo)]).await
    }

    fn client(&self) -> Client {
        Client::new(&self.url, None).unwrap().retrying(4)
    }

    /// SIGKILL; the next one listens when this returns.
    async fn kill_and_restart(&self) {
        let mut server = self.server.lock().await;
        server.kill();
        *server = Self::launch(&self.data, &self.demo, self.url.strip_prefix("http://").unwrap()).await;
        self.kills.fetch_add(1, Ordering::Relaxed);
    }

    /// An address at which a line `kill` is answered with `up`.
    async fn control(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mortal = self.clone();
        tokio::spawn(async move {
            while let Ok((mut asks, _)) = listener.accept().await {
                let mut line = String::new();
                BufReader::new(&mut asks).read_line(&mut line).await.unwrap();
                assert_eq!(line, "kill\n");
                mortal.kill_and_restart().await;
                asks.write_all(b"up\n").await.unwrap();
                // The other end closes.
                let _ = asks.read(&mut [0]).await;
            }
        });
        address
    }
}

/// The directory with what `clients/test` needs.
fn installed() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = match std::env::var_os("RADDLE_TEST_CLIENTS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients"),
    };
    std::fs::create_dir_all(&dir).unwrap();
    // Tests run side by side.
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let done = Command::new(root.join("clients/install")).arg(&dir).stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "clients/install failed: {}", String::from_utf8_lossy(&done.stderr));
    dir
}

/// Runs the tests of a client; `names` must be among those that passed.
async fn drive(client: &'static str, names: &[&str]) {
    let mortal = Mortal::start().await;
    let control = mortal.control().await;
    let url = mortal.url.clone();
    let tests = tokio::task::spawn_blocking(move || {
        let dir = installed();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/test"));
        command.arg(client).arg(dir).stdin(Stdio::null()).env_clear();
        // Nothing of the caller's, such as a proxy between a test and its server.
        for name in ["PATH", "HOME"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.env("RADDLE_TEST_SERVER", url).env("RADDLE_TEST_CONTROL", control).output().unwrap()
    });
    let done = timeout(5 * LOST, tests).await.expect("the tests of a client do not end").unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{client}: {}\n{said}", done.status);
    for name in names {
        let line = said.lines().find(|line| line.contains(name));
        let line = line.unwrap_or_else(|| panic!("{client}: `{name}` did not run:\n{said}"));
        assert!(!line.to_lowercase().contains("skip"), "{line}");
    }
    assert_eq!(mortal.kills.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_typescript_client_does_what_a_host_does() {
    let names = [
        "a turn is followed to its end, and a prompt that was queued runs behind it",
        "a call waits for a person, who decides",
        "a refusal is an error with its code",
        "a stream goes on over a kill of the server, without a gap or a double",
        "every split gives the same blocks",
    ];
    drive("typescript", &names).await;
}

#[tokio::test]
async fn the_python_client_does_what_a_host_does() {
    let names = [
        "test_a_turn_is_followed_to_its_end_and_a_prompt_that_was_queued_runs_behind_it",
        "test_a_call_waits_for_a_person_who_decides",
        "test_a_refusal_is_an_error_with_its_code",
        "test_a_stream_goes_on_over_a_kill_of_the_server_without_a_gap_or_a_double",
        "test_every_split_gives_the_same_blocks",
    ];
    drive("python", &names).await;
}

// ---- the Rust client -----------------------------------------------------------------------------

/// The stored events as the client pages them.
async fn log(client: &Client, thread: &str) -> Vec<Value> {
    let mut log: Vec<Value> = Vec::new();
    loop {
        let after = log.last().map_or(0, |event| event["seq"].as_u64().unwrap());
        let page = client.event_page(thread, after).await.unwrap();
        if page.data.is_empty() {
            return log;
        }
        log.extend(page.data.iter().map(|json| serde_json::from_str::<Value>(json.get()).unwrap()));
    }
}

/// Nothing of the thread runs or waits.
fn at_rest(event: &EventView) -> bool {
    event.event == "thread.status" && event.payload["thread"]["status"] == "idle"
}

#[track_caller]
fn dense(events: &[EventView]) {
    for (at, event) in events.iter().enumerate() {
        assert_eq!((event.seq, event.prev), (at as u64 + 1, at as u64), "{event:?}");
    }
}

async fn new_thread(client: &Client) -> String {
    client.create_thread(&NewThread::default()).await.unwrap().id.to_string()
}

#[tokio::test]
async fn a_turn_is_followed_to_its_end_and_a_prompt_that_was_queued_runs_behind_it() {
    let mortal = Mortal::start().await;
    let client = mortal.client();
    let thread = new_thread(&client).await;
    let first =
        client.start_turn(&thread, &StartTurn { prompt: "@tokens 20 50", ..StartTurn::default() }).await.unwrap();
    let queue = StartTurn { prompt: "then this", delivery: Some(Delivery::Queue), ..StartTurn::default() };
    let Started::Queued { active_turn, .. } = client.deliver(&thread, &queue).await.unwrap() else {
        panic!("the prompt does not wait");
    };
    assert_eq!(active_turn, first.id);
    assert_eq!(client.inbox(&thread, &[]).await.unwrap().data.len(), 1);
    let stream = client.events(&thread, 0).into_stream();
    pin_mut!(stream);
    let (mut events, mut said, mut ended) = (Vec::new(), BTreeMap::<String, String>::new(), 0);
    while let Some(event) = timeout(LOST, stream.next()).await.unwrap() {
        let event = event.unwrap();
        match event.event.as_str() {
            "item.delta" => {
                said.entry(event.turn_id.clone().unwrap()).or_default().push_str(&text(&event.payload["delta"]))
            }
            "turn.completed" => ended += 1,
            _ => {}
        }
        events.push(event);
        if events.last().is_some_and(at_rest) {
            break;
        }
    }
    assert_eq!(ended, 2);
    dense(&events);
    assert_eq!(said[&first.id.to_string()].split_whitespace().count(), 20);
    assert!(said.values().any(|said| said == "echo: then this"), "{said:?}");
    assert_eq!(events.len(), log(&client, &thread).await.len());
    let turns = client.turns(&thread, &[]).await.unwrap().data;
    assert!(turns.len() == 2 && turns.iter().all(|turn| turn.status == TurnStatus::Completed));
    assert_eq!(client.turn(&thread, &first.id.to_string()).await.unwrap(), turns[0]);
}

#[tokio::test]
async fn a_call_waits_for_a_person_who_decides() {
    let mortal = Mortal::start().await;
    let client = mortal.client();
    let thread = new_thread(&client).await;
    let prompt = "@tool demo_put {\"name\": \"rust.txt\", \"text\": \"hello\"}\n@say done";
    let turn = client.start_turn(&thread, &StartTurn { prompt, ..StartTurn::default() }).await.unwrap().id.to_string();
    let mut events = client.events(&thread, 0);
    while let Some(event) = timeout(LOST, events.next()).await.unwrap().unwrap() {
        if event.event == "approval.required" {
            let approval = text(&event.payload["approval"]["id"]);
            assert_eq!(client.approvals(&[("status", "pending".into())]).await.unwrap().data.len(), 1);
            client.decide(&approval, Decision::Approved, None).await.unwrap();
            // The first word wins, and the second one is told which it was.
            let ClientError::Refused(late) = client.decide(&approval, Decision::Denied, None).await.unwrap_err() else {
                panic!("not a refusal");
            };
            assert_eq!(
                (late.status, late.code.as_str(), &late.extra["decision"]),
                (409, "already-decided", &json!("approved"))
            );
            break;
        }
    }
    let ended = client.wait_turn(&thread, &turn, Duration::from_secs(50)).await.unwrap();
    assert_eq!(ended.status, TurnStatus::Completed);
    assert_eq!(std::fs::read_to_string(mortal.demo.join("rust.txt")).unwrap(), "hello");
    let items = client.items(&thread, &[("turn", turn)]).await.unwrap().data;
    assert!(items.iter().any(|item| item.metadata.get("tool").is_some_and(|tool| tool == "demo_put")), "{items:?}");
}

#[tokio::test]
async fn a_refusal_is_an_error_with_its_code() {
    let mortal = Mortal::start().await;
    let client = mortal.client();
    let thread = new_thread(&client).await;
    let long = StartTurn { prompt: "@tokens 1000 10", ..StartTurn::default() };
    let turn = client.start_turn(&thread, &long).await.unwrap().id.to_string();
    let ClientError::Refused(refusal) = client.start_turn(&thread, &long).await.unwrap_err() else {
        panic!("not a refusal");
    };
    assert_eq!((refusal.status, refusal.code.as_str()), (409, "turn-open"));
    assert_eq!(refusal.extra["active_turn"], turn);
    assert!(refusal.request_id.is_some() && refusal.retry_after.is_none());
    assert_eq!(client.interrupt(&thread, &turn, false).await.unwrap().turn.status, TurnStatus::Interrupted);
    assert_eq!(client.wait_turn(&thread, &turn, Duration::ZERO).await.unwrap().status, TurnStatus::Interrupted);
    let nobody = Client::new("http://127.0.0.1:1", None).unwrap();
    assert!(matches!(nobody.info().await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn a_stream_goes_on_over_a_kill_of_the_server_without_a_gap_or_a_double() {
    let mortal = Mortal::start().await;
    let client = mortal.client();
    let since = client.now().await.unwrap();
    let thread = new_thread(&client).await;
    client.start_turn(&thread, &StartTurn { prompt: "@tokens 60 40", ..StartTurn::default() }).await.unwrap();
    let mut feed = client.follow_all(Some(since), &[&thread]);
    let fed = tokio::spawn(async move {
        let mut fed: Vec<Value> = Vec::new();
        loop {
            let told = timeout(LOST, feed.next()).await.unwrap().unwrap().unwrap();
            assert!(told.cursor.is_some());
            fed.push(told.read().unwrap());
            if at_rest(&told.read().unwrap()) {
                return fed;
            }
        }
    });
    let (mut events, mut killed) = (Vec::new(), false);
    let mut stream = client.events(&thread, 0);
    while let Some(event) = timeout(LOST, stream.next()).await.unwrap().unwrap() {
        if event.event == "item.delta" && !std::mem::replace(&mut killed, true) {
            mortal.kill_and_restart().await;
        }
        events.push(event);
        if events.last().is_some_and(at_rest) {
            break;
        }
    }
    dense(&events);
    assert!(events.iter().any(|event| event.event == "turn.resumed"));
    let log = log(&client, &thread).await;
    check_log(&log, true);
    assert_eq!(events.len(), log.len());
    assert_eq!(fed.await.unwrap(), log);
}

#[tokio::test]
async fn a_stream_ends_behind_the_deletion_of_its_thread() {
    let mortal = Mortal::start().await;
    let client = mortal.client();
    let thread = new_thread(&client).await;
    let mut events = client.events(&thread, 0);
    assert_eq!(events.next().await.unwrap().unwrap().event, "thread.created");
    client.delete_thread(&thread).await.unwrap();
    let rest: Vec<_> = timeout(LOST, events.into_stream().try_collect()).await.unwrap().unwrap();
    assert_eq!(rest.iter().map(|event| event.event.as_str()).collect::<Vec<_>>(), ["thread.deleted"]);
}

// ---- the document --------------------------------------------------------------------------------

/// What a schema of the document says of a value.
fn validator(document: &Value, name: &str) -> jsonschema::Validator {
    let schema = json!({"$ref": format!("#/components/schemas/{name}"), "components": document["components"]});
    jsonschema::options().with_draft(jsonschema::Draft::Draft202012).offline().build(&schema).unwrap()
}

#[track_caller]
fn check(validator: &jsonschema::Validator, page: &Value) {
    let wrong: Vec<_> = validator.iter_errors(page).map(|err| format!("{}: {err}", err.instance_path())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn events_are_what_the_document_says() {
    let mortal = Mortal::start().await;
    let api = Api::new(&mortal.url);
    let since = mortal.client().now().await.unwrap();
    let document: Value = serde_json::from_str(&run(raddle().arg("openapi"), "").out).unwrap();
    let thread = api.create(json!({"auto_approve": true})).await;
    let prompts = [
        "@think hm\n@say hello\n@usage 5 7",
        "@tool demo_append {\"name\": \"a\", \"line\": \"b\"}\n@tool demo_read {\"name\": \"none\"}\n@say done",
        "@fail 400 no",
    ];
    for prompt in prompts {
        let turn = api.start(&thread, prompt).await;
        api.wait(&thread, &turn).await;
    }
    let open = api.start(&thread, "@ask who?\n@say so").await;
    let waits = api.queue(&thread, "never").await;
    let path = format!("/v1/threads/{thread}");
    api.patch(&format!("{path}/inbox/{waits}"), json!({"prompt": "never!"})).await.expect(200);
    api.delete(&format!("{path}/inbox/{waits}")).await.expect(204);
    api.post(&format!("{path}/turns/{open}/interrupt"), json!({})).await.expect(200);
    let edited = api.post(&format!("{path}/edit"), json!({"prompt": "instead"})).await.expect(201);
    api.wait(&thread, &text(&edited["turn"]["id"])).await;
    let compacts = api.post(&format!("{path}/compact"), json!({})).await.expect(202);
    api.wait(&thread, &text(&compacts["turn"]["id"])).await;
    api.post(&format!("{path}/checkpoints"), json!({"name": "c"})).await.expect(201);
    api.patch(&path, json!({"archived": true})).await.expect(200);
    api.post(&format!("{path}/fork"), json!({})).await.expect(201);
    let work = json!({"thread_id": thread, "prompt": "x"});
    let job = api.post("/v1/jobs", json!({"name": "j", "kind": "turn", "payload": work, "max_attempts": 0})).await;
    let job = text(&job.expect(201)["id"]);
    api.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    let template = json!({"name": "j", "kind": "turn", "payload": work});
    api.post("/v1/schedules", json!({"cron": "0 0 1 1 *", "job": template})).await.expect(201);
    let board = text(&api.post("/v1/runs", json!({"objective": "o"})).await.expect(201)["run_id"]);
    let task = json!({"tasks": [{"id": "t", "task_type": "research"}]});
    api.post(&format!("/v1/runs/{board}/tasks"), task).await.expect(201);
    api.post(&format!("/v1/runs/{board}/tasks/claim"), json!({"agent_id": "ada"})).await.expect(200);
    let told = api.post(&format!("/v1/runs/{board}/events"), json!({"event": "mine", "payload": {"a": 1}})).await;
    check(&validator(&document, "RunEvent"), &told.expect(201));

    let page = api.get(&format!("{path}/events?limit=500")).await.expect(200);
    check(&validator(&document, "EventPage"), &page);
    let page = api.get(&format!("/v1/runs/{board}/events?limit=500")).await.expect(200);
    check(&validator(&document, "RunEventPage"), &page);
    let first = api.get(&format!("/v1/events?limit=500&after={since}")).await.expect(200);
    check(&validator(&document, "TenantEventPage"), &first);
    for kind in ["thread_id", "job_id", "schedule_id", "run_id"] {
        let some = first["data"].as_array().unwrap().iter().any(|event| event[kind].is_string());
        assert!(some, "no event with a {kind}");
    }
}
