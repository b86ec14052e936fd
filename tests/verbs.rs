//! What a client is promised about the verbs beyond starting and ending a turn, and about what waits for a person.

mod support;

use raddle_domain::id::{ApprovalId, InputId, ItemId, OperationId, QuestionId, ThreadId, TurnId};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use uuid::Uuid;

const NOBODY: Uuid = Uuid::from_u128(1);

async fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(dir.path()).await, dir)
}

/// A server whose models may ask, and have tools to play with.
struct Equipped {
    server: Server,
    data: tempfile::TempDir,
    demo: tempfile::TempDir,
}

impl Equipped {
    async fn start() -> Self {
        let (data, demo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Self { server: Self::on(&data, &demo).await, data, demo }
    }

    async fn on(data: &tempfile::TempDir, demo: &tempfile::TempDir) -> Server {
        Server::with(data.path(), &[("RADDLE_TOOLS_DEMO_DIR", demo.path().to_str().unwrap())]).await
    }

    /// The same after the process was killed.
    async fn crash(mut self) -> Self {
        self.server.kill();
        let server = Self::on(&self.data, &self.demo).await;
        Self { server, ..self }
    }
}

/// A new thread's path.
async fn thread(api: &Api, body: Value) -> String {
    format!("/v1/threads/{}", api.create(body).await)
}

fn id_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// The prompts of the turns, and how each ended, oldest first.
async fn ran(api: &Api, path: &str) -> Vec<(String, String)> {
    let turns = api.list(&format!("{path}/turns"), 50).await;
    turns.iter().map(|turn| (text(&turn["input_summary"]), text(&turn["status"]))).collect()
}

fn pair(prompt: &str, status: &str) -> (String, String) {
    (prompt.to_owned(), status.to_owned())
}

/// Follows a thread until `event`, which must come before its turn ends.
async fn until(api: &Api, path: &str, event: &str) {
    let mut stream = api.stream(id_of(path), 0).await;
    loop {
        let frame = stream.next().await.unwrap();
        assert_ne!(frame.event, "turn.completed", "without `{event}`: {}", frame.data);
        if frame.event == event {
            return;
        }
    }
}

/// What waits, once it does: what a thread's stream announces is listed at once.
async fn announced(api: &Api, path: &str, event: &str, list: &str) -> Value {
    until(api, path, event).await;
    let all = api.list(&format!("{list}?status=pending&thread={}", id_of(path)), 50).await;
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

// ---- what is refused -----------------------------------------------------------------------------

#[tokio::test]
async fn a_body_that_makes_no_sense_is_refused_by_the_name_of_its_field() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let (turn, item) = (TurnId::new(NOBODY), ItemId::new(NOBODY));
    let turns = format!("{path}/turns");
    let steer = format!("{turns}/{turn}/steer");
    let interrupt = format!("{turns}/{turn}/interrupt");
    let (fork, compact, edit) = (format!("{path}/fork"), format!("{path}/compact"), format!("{path}/edit"));
    let checkpoints = format!("{path}/checkpoints");
    let restore = format!("{checkpoints}/latest/restore");
    let input = format!("{path}/inbox/{}", InputId::new(NOBODY));
    let approval = format!("/v1/approvals/{}", ApprovalId::new(NOBODY));
    let question = format!("/v1/questions/{}", QuestionId::new(NOBODY));
    let effect = format!("/v1/effects/{}", OperationId::new(NOBODY));
    let post = Method::POST;
    let patch = Method::PATCH;
    let rows = [
        (&post, &turns, json!({"prompt": "x", "if_idle": "reject"}), "invalid", "if_idle"),
        (&post, &turns, json!({"prompt": "x", "delivery": "queue", "undelivered": "queue"}), "invalid", "undelivered"),
        (&post, &turns, json!({"prompt": "x", "expected_turn": "turn_x"}), "invalid", "expected_turn"),
        (&post, &steer, json!({}), "invalid", "prompt"),
        (&post, &steer, json!({"prompt": "x", "undelivered": "later"}), "invalid", "undelivered"),
        (&post, &steer, json!({"prompt": "x", "delivery": "steer"}), "unknown-field", "delivery"),
        (&post, &interrupt, json!({"pause_queue": "yes"}), "invalid", "pause_queue"),
        (&post, &fork, json!({"at_item": item, "before_turn": turn}), "invalid", "at_item"),
        (&post, &fork, json!({"before_turn": turn, "checkpoint": "c"}), "invalid", "before_turn"),
        (&post, &fork, json!({"at_item": turn}), "invalid", "at_item"),
        (&post, &fork, json!({"at": item}), "unknown-field", "at"),
        (&post, &compact, json!({"delivery": "steer"}), "invalid", "delivery"),
        (&post, &compact, json!({"prompt": "x"}), "unknown-field", "prompt"),
        (&post, &edit, json!({}), "invalid", "prompt"),
        (&post, &edit, json!({"prompt": "x", "model": "nobody"}), "invalid", "model"),
        (&post, &edit, json!({"prompt": "x", "delivery": "queue"}), "unknown-field", "delivery"),
        (&post, &checkpoints, json!({}), "invalid", "name"),
        (&post, &checkpoints, json!({"name": 7}), "invalid", "name"),
        (&post, &restore, json!({"name": "x"}), "unknown-field", "name"),
        (&patch, &input, json!({"position": -1}), "invalid", "position"),
        (&patch, &input, json!({"delivery": "queue"}), "unknown-field", "delivery"),
        (&patch, &path, json!({"queue_paused": "yes"}), "invalid", "queue_paused"),
        (&post, &approval, json!({}), "invalid", "decision"),
        (&post, &approval, json!({"decision": "perhaps"}), "invalid", "decision"),
        (&post, &approval, json!({"decision": "denied", "by": "auto"}), "unknown-field", "by"),
        (&post, &question, json!({}), "invalid", "answer"),
        (&post, &effect, json!({}), "invalid", "resolution"),
        (&post, &effect, json!({"resolution": "settle"}), "invalid", "output"),
        (&post, &effect, json!({"resolution": "retry", "output": "x"}), "invalid", "output"),
        (&post, &effect, json!({"resolution": "abort", "output": "x"}), "invalid", "output"),
    ];
    for (method, path, body, code, field) in rows {
        let reply = api.send(api.request(method.clone(), path).json(&body)).await;
        assert_eq!(reply.problem(422, code)["field"], field, "{path} {body}");
    }
    assert_eq!(api.log(id_of(&path)).await.len(), 1);
}

#[tokio::test]
async fn a_bad_key_or_precondition_is_refused_on_every_verb() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let input = format!("{path}/inbox/{}", InputId::new(NOBODY));
    let verbs = [
        (format!("{path}/fork"), json!({})),
        (format!("{path}/compact"), json!({})),
        (format!("{path}/edit"), json!({"prompt": "x"})),
        (format!("{path}/turns/{}/steer", TurnId::new(NOBODY)), json!({"prompt": "x"})),
        (format!("{path}/checkpoints"), json!({"name": "x"})),
        (format!("{path}/checkpoints/x/restore"), json!({})),
        (format!("/v1/approvals/{}", ApprovalId::new(NOBODY)), json!({"decision": "denied"})),
        (format!("/v1/questions/{}", QuestionId::new(NOBODY)), json!({"answer": "x"})),
        (format!("/v1/effects/{}", OperationId::new(NOBODY)), json!({"resolution": "abort"})),
    ];
    for (verb, body) in &verbs {
        let keyed = api.send(api.keyed(verb, "two words", body)).await;
        assert_eq!(keyed.problem(422, "invalid")["field"], "Idempotency-Key", "{verb}");
        let when = api.request(Method::POST, verb).header("if-match", "7").json(body);
        api.send(when).await.problem(400, "bad-request");
    }
    for (method, verb) in [(Method::PATCH, &input), (Method::DELETE, &input)] {
        let when = api.request(method, verb).header("if-match", "W/\"7\"");
        api.send(when).await.problem(400, "bad-request");
    }
}

#[tokio::test]
async fn an_id_that_is_none_is_answered_like_one_that_nobody_has() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let lists = [
        ("/v1/approvals", ApprovalId::new(NOBODY).to_string(), json!({"decision": "denied"})),
        ("/v1/questions", QuestionId::new(NOBODY).to_string(), json!({"answer": "x"})),
        ("/v1/effects", OperationId::new(NOBODY).to_string(), json!({"resolution": "abort"})),
    ];
    let foreign = ThreadId::new(NOBODY).to_string();
    for (list, unknown, body) in &lists {
        let expected = api.post(&format!("{list}/{unknown}"), body.clone()).await.problem(404, "not-found");
        for id in [&foreign, "x", "%FF", &unknown.to_uppercase()] {
            let found = api.post(&format!("{list}/{id}"), body.clone()).await.problem(404, "not-found");
            assert_eq!(found["detail"], expected["detail"], "{list}/{id}");
        }
        if *list != "/v1/effects" {
            for id in [unknown, &foreign, "x"] {
                let found = api.get(&format!("{list}/{id}")).await.problem(404, "not-found");
                assert_eq!(found["detail"], expected["detail"], "{list}/{id}");
            }
        }
    }
    let path = thread(api, json!({})).await;
    for id in [&foreign, "x"] {
        api.patch(&format!("{path}/inbox/{id}"), json!({})).await.problem(404, "not-found");
        api.delete(&format!("{path}/inbox/{id}")).await.problem(404, "not-found");
        api.post(&format!("{path}/turns/{id}/steer"), json!({"prompt": "x"})).await.problem(404, "not-found");
    }
    for gone in [format!("/v1/threads/{foreign}"), "/v1/threads/x".to_owned()] {
        let verbs = [
            (Method::POST, "compact", json!({})),
            (Method::POST, "edit", json!({"prompt": "x"})),
            (Method::POST, "checkpoints", json!({"name": "x"})),
            (Method::GET, "checkpoints", json!({})),
            (Method::DELETE, "checkpoints/x", json!({})),
        ];
        for (method, verb, body) in verbs {
            let reply = api.send(api.request(method, &format!("{gone}/{verb}")).json(&body)).await;
            reply.problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn what_waits_for_a_person_is_listed_by_known_words_only() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let empty = json!({"data": [], "next_cursor": null});
    let lists = [
        ("/v1/approvals", &["pending", "approved", "denied", "aborted", "expired", "cancelled"][..]),
        ("/v1/questions", &["pending", "answered", "expired", "cancelled"]),
        ("/v1/effects", &["intended", "started", "settled", "uncertain"]),
    ];
    for (list, words) in lists {
        assert_eq!(api.get(list).await.expect(200), empty);
        for word in words {
            assert_eq!(api.get(&format!("{list}?status={word}")).await.expect(200), empty);
        }
        let of = ThreadId::new(NOBODY);
        assert_eq!(api.get(&format!("{list}?thread={of}&limit=1")).await.expect(200), empty);
        for bad in ["status=x", "thread=x", "limit=0", "limit=501", "cursor=00", "surprise=1"] {
            let field = bad.split('=').next().unwrap();
            assert_eq!(api.get(&format!("{list}?{bad}")).await.problem(422, "invalid")["field"], field, "{list}");
        }
    }
}

// ---- prompts that come while a turn is open ------------------------------------------------------

#[tokio::test]
async fn a_steer_that_comes_too_late_is_reported_or_waits_its_turn() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), "@wait 600000").await;
    let steer = format!("{path}/turns/{turn}/steer");
    let reported = api.send(api.keyed(&steer, "k", &json!({"prompt": "never mind"}))).await;
    let admission = reported.expect(202)["admission"].clone();
    assert_eq!((&admission["delivery"], &admission["status"]), (&json!("steer"), &json!("pending")));
    assert_eq!(admission["turn_id"], *turn);
    let again = api.send(api.keyed(&steer, "k", &json!({"prompt": "never mind"}))).await;
    assert_eq!((again.replayed(), &again.body), (true, &reported.body));
    let kept = api.post(&steer, json!({"prompt": "then this", "undelivered": "queue"})).await.expect(202);
    let unknown = format!("{path}/turns/{}/steer", TurnId::new(NOBODY));
    api.post(&unknown, json!({"prompt": "x"})).await.problem(404, "not-found");

    let ended = api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    assert_eq!(ended["turn"]["not_delivered"], json!([admission["id"], kept["admission"]["id"]]));
    api.rest(id_of(&path)).await;
    assert_eq!(ran(api, &path).await, [pair("@wait 600000", "interrupted"), pair("then this", "completed")]);
    let late = api.post(&steer, json!({"prompt": "x"})).await.problem(409, "turn-not-active");
    assert_eq!(late["active_turn"], Value::Null);
    let log = api.log(id_of(&path)).await;
    assert_eq!(names(&log).iter().filter(|name| **name == "prompt.not_delivered").count(), 2);
}

#[tokio::test]
async fn a_start_that_steers_says_what_it_does_on_an_idle_thread() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let turns = format!("{path}/turns");
    let reject = json!({"prompt": "x", "delivery": "steer", "if_idle": "reject"});
    let refused = api.post(&turns, reject).await.problem(409, "turn-not-active");
    assert_eq!(refused["active_turn"], Value::Null);
    assert_eq!(api.log(id_of(&path)).await.len(), 1);
    let start = json!({"prompt": "@wait 600000", "delivery": "steer"});
    let turn = text(&api.post(&turns, start).await.expect(201)["turn"]["id"]);
    let steered = api.post(&turns, json!({"prompt": "x", "delivery": "steer"})).await.expect(202);
    assert_eq!(steered["active_turn"], *turn);
}

#[tokio::test]
async fn a_prompt_that_interrupts_runs_before_those_that_wait() {
    let (server, _dir) = server().await;
    let api = &server.api;
    for (delivery, status) in [("interrupt", "interrupted"), ("rollback", "rolled_back")] {
        let path = thread(api, json!({})).await;
        api.start(id_of(&path), "@wait 600000").await;
        api.queue(id_of(&path), "later").await;
        let now = api.post(&format!("{path}/turns"), json!({"prompt": "now", "delivery": delivery})).await;
        assert!(matches!(now.status, 201 | 202), "{now:?}");
        api.rest(id_of(&path)).await;
        let expected = [pair("@wait 600000", status), pair("now", "completed"), pair("later", "completed")];
        assert_eq!(ran(api, &path).await, expected);
    }
}

#[tokio::test]
async fn a_start_that_expects_another_turn_leaves_no_trace() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), "@wait 600000").await;
    let before = api.log(id_of(&path)).await;
    for delivery in ["queue", "steer", "interrupt", "rollback"] {
        let body = json!({"prompt": "x", "delivery": delivery, "expected_turn": TurnId::new(NOBODY)});
        let refused = api.post(&format!("{path}/turns"), body).await.problem(409, "turn-not-active");
        assert_eq!(refused["active_turn"], *turn, "{delivery}");
    }
    assert_eq!(api.log(id_of(&path)).await, before);
    let body = json!({"prompt": "x", "delivery": "queue", "expected_turn": turn});
    api.post(&format!("{path}/turns"), body).await.expect(202);
}

#[tokio::test]
async fn a_paused_queue_waits_until_it_is_resumed() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), "@wait 600000").await;
    api.queue(id_of(&path), "later").await;
    let interrupt = format!("{path}/turns/{turn}/interrupt");
    api.post(&interrupt, json!({"pause_queue": true})).await.expect(200);
    let paused = api.get(&path).await.expect(200);
    assert_eq!((&paused["queue_paused"], &paused["queued"]), (&json!(true), &json!(1)));
    assert_eq!(paused["active_turn"], Value::Null);
    assert_eq!(api.patch(&path, json!({"queue_paused": false})).await.expect(200)["queue_paused"], false);
    api.rest(id_of(&path)).await;
    assert_eq!(ran(api, &path).await, [pair("@wait 600000", "interrupted"), pair("later", "completed")]);
}

#[tokio::test]
async fn prompts_that_wait_are_changed_moved_and_taken_back_until_they_run() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), "@wait 600000").await;
    let mut inputs = Vec::new();
    for prompt in ["q1", "q2", "q3"] {
        inputs.push(api.queue(id_of(&path), prompt).await);
    }
    let input = |at: usize| format!("{path}/inbox/{}", inputs[at]);
    let moved = api.patch(&input(2), json!({"position": 0})).await;
    assert_eq!((&moved.expect(200)["id"], &moved.json()["position"]), (&json!(inputs[2]), &json!(0)));
    assert_eq!(moved.seq(), api.get(&path).await.seq());
    let changed = api.patch(&input(0), json!({"prompt": "Q1", "position": 99})).await.expect(200);
    assert_eq!((&changed["prompt"], &changed["position"]), (&json!("Q1"), &json!(2)));
    let stale = api.request(Method::DELETE, &input(1)).header("if-match", "\"1\"");
    api.send(stale).await.problem(412, "precondition-failed");
    assert_eq!(api.delete(&input(1)).await.status, 204);
    api.delete(&input(1)).await.problem(404, "not-found");
    let unknown = format!("{path}/inbox/{}", InputId::new(NOBODY));
    api.patch(&unknown, json!({"prompt": "x"})).await.problem(404, "not-found");
    let waiting = api.list(&format!("{path}/inbox"), 50).await;
    assert_eq!(waiting.iter().map(|entry| text(&entry["prompt"])).collect::<Vec<_>>(), ["q3", "Q1"]);

    api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    api.rest(id_of(&path)).await;
    let turns = api.list(&format!("{path}/turns"), 50).await;
    assert_eq!(turns[1..].iter().map(|turn| text(&turn["input_summary"])).collect::<Vec<_>>(), ["q3", "Q1"]);
    for late in [api.patch(&input(0), json!({"prompt": "x"})).await, api.delete(&input(0)).await] {
        assert_eq!(late.problem(409, "already-promoted")["turn_id"], turns[2]["id"]);
    }
    // Another thread's prompt is unknown to this one.
    let other = thread(api, json!({})).await;
    api.delete(&format!("{other}/inbox/{}", inputs[0])).await.problem(404, "not-found");
}

// ---- the conversation ----------------------------------------------------------------------------

#[tokio::test]
async fn a_fork_shares_what_is_settled_and_goes_its_own_way() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({"title": "parent"})).await;
    let mut turns = Vec::new();
    for prompt in ["one", "two"] {
        turns.push(api.start(id_of(&path), prompt).await);
        api.rest(id_of(&path)).await;
    }
    let items = api.list(&format!("{path}/items"), 50).await;
    let log = api.log(id_of(&path)).await;
    let fork = format!("{path}/fork");
    let whole = api.send(api.keyed(&fork, "k", &json!({"title": "child"}))).await;
    let child = whole.expect(201);
    let child_path = format!("/v1/threads/{}", text(&child["id"]));
    assert_eq!(whole.header("location"), Some(child_path.as_str()));
    assert_eq!((&child["title"], &child["forked_from"]["thread_id"]), (&json!("child"), &json!(id_of(&path))));
    assert_eq!((whole.seq(), api.get(&child_path).await.expect(200)), (child["seq"].as_u64().unwrap(), child));
    let again = api.send(api.keyed(&fork, "k", &json!({"title": "child"}))).await;
    assert_eq!((again.replayed(), &again.body), (true, &whole.body));
    let said = |items: &[Value]| items.iter().map(|item| text(&item["detail"])).collect::<Vec<_>>();
    assert_eq!(said(&api.list(&format!("{child_path}/items"), 50).await), said(&items));

    let before = api.post(&fork, json!({"before_turn": turns[1]})).await.expect(201);
    let before = format!("/v1/threads/{}", text(&before["id"]));
    assert_eq!(ran(api, &before).await, [pair("one", "completed")]);
    let at = api.post(&fork, json!({"at_item": items[1]["id"]})).await.expect(201);
    let at = format!("/v1/threads/{}", text(&at["id"]));
    assert_eq!(said(&api.list(&format!("{at}/items"), 50).await), said(&items[..2]));
    for nowhere in [
        json!({"before_turn": TurnId::new(NOBODY)}),
        json!({"at_item": ItemId::new(NOBODY)}),
        json!({"checkpoint": "x"}),
    ] {
        api.post(&fork, nowhere).await.problem(404, "not-found");
    }
    let gone = format!("/v1/threads/{}/fork", ThreadId::new(NOBODY));
    api.post(&gone, json!({})).await.problem(404, "not-found");

    api.start(id_of(&child_path), "three").await;
    api.rest(id_of(&child_path)).await;
    assert_eq!(api.log(id_of(&path)).await, log);
}

#[tokio::test]
async fn a_checkpoint_is_a_place_to_go_on_from_until_it_is_forgotten() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let checkpoints = format!("{path}/checkpoints");
    assert_eq!(api.get(&checkpoints).await.expect(200), json!({"data": [], "next_cursor": null}));
    api.start(id_of(&path), "one").await;
    api.rest(id_of(&path)).await;
    let saved = api.post(&checkpoints, json!({"name": "first"})).await.expect(201);
    assert_eq!((&saved["name"], &saved["thread_id"]), (&json!("first"), &json!(id_of(&path))));
    api.start(id_of(&path), "two").await;
    api.rest(id_of(&path)).await;
    api.post(&checkpoints, json!({"name": "second"})).await.expect(201);
    let listed = api.get(&checkpoints).await.expect(200);
    assert_eq!((&listed["data"][0], &listed["data"][1]["name"]), (&saved, &json!("second")));

    for (name, expected) in [("first", &["one"][..]), ("second", &["one", "two"]), ("latest", &["one", "two"])] {
        let made = api.post(&format!("{checkpoints}/{name}/restore"), json!({"title": name})).await;
        let made_path = format!("/v1/threads/{}", text(&made.expect(201)["id"]));
        assert_eq!((made.header("location"), &made.json()["title"]), (Some(made_path.as_str()), &json!(name)));
        let ran = ran(api, &made_path).await;
        assert_eq!(ran.iter().map(|(prompt, _)| prompt.as_str()).collect::<Vec<_>>(), expected, "{name}");
    }
    assert_eq!(api.delete(&format!("{checkpoints}/first")).await.status, 204);
    api.delete(&format!("{checkpoints}/first")).await.problem(404, "not-found");
    api.post(&format!("{checkpoints}/first/restore"), json!({})).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_compaction_is_a_turn_of_its_own() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let compact = format!("{path}/compact");
    api.post(&compact, json!({})).await.problem(409, "conflict");
    api.start(id_of(&path), "hello").await;
    api.rest(id_of(&path)).await;
    let reply = api.send(api.keyed(&compact, "k", &json!({"reason": "long"}))).await;
    let turn = reply.expect(202)["turn"].clone();
    assert_eq!(turn["kind"], "compaction");
    assert_eq!(api.wait(id_of(&path), &text(&turn["id"])).await["status"], "completed");
    assert!(api.send(api.keyed(&compact, "k", &json!({"reason": "long"}))).await.replayed());
    let items = api.list(&format!("{path}/items?kind=context_compaction"), 50).await;
    assert_eq!(items.len(), 1);

    let open = api.start(id_of(&path), "@wait 600000").await;
    assert_eq!(api.post(&compact, json!({})).await.problem(409, "turn-open")["active_turn"], *open);
    let queued = api.post(&compact, json!({"delivery": "queue"})).await.expect(202);
    assert_eq!((&queued["active_turn"], &queued["admission"]["kind"]), (&json!(open), &json!("compaction")));
}

#[tokio::test]
async fn an_edit_takes_the_last_turn_out_of_the_conversation() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let path = thread(api, json!({})).await;
    let edit = format!("{path}/edit");
    api.post(&edit, json!({"prompt": "x"})).await.problem(409, "conflict");
    for prompt in ["one", "tow"] {
        api.start(id_of(&path), prompt).await;
        api.rest(id_of(&path)).await;
    }
    let reply = api.send(api.keyed(&edit, "k", &json!({"prompt": "two", "temperature": 0.5}))).await;
    let turn = reply.expect(201)["turn"].clone();
    let location = format!("{path}/turns/{}", text(&turn["id"]));
    assert_eq!((reply.header("location"), &turn["temperature"]), (Some(location.as_str()), &json!(0.5)));
    api.rest(id_of(&path)).await;
    assert!(api.send(api.keyed(&edit, "k", &json!({"prompt": "two", "temperature": 0.5}))).await.replayed());
    let expected = [pair("one", "completed"), pair("tow", "rolled_back"), pair("two", "completed")];
    assert_eq!(ran(api, &path).await, expected);
    let open = api.start(id_of(&path), "@wait 600000").await;
    assert_eq!(api.post(&edit, json!({"prompt": "x"})).await.problem(409, "turn-open")["active_turn"], *open);
}

// ---- a person decides ----------------------------------------------------------------------------

#[tokio::test]
async fn a_question_is_answered_once() {
    let equipped = Equipped::start().await;
    let api = &equipped.server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), "@ask which colour?").await;
    let question = announced(api, &path, "question.asked", "/v1/questions").await;
    assert_eq!((&question["question"], &question["turn_id"]), (&json!("which colour?"), &json!(turn)));
    assert_eq!(api.get(&path).await.expect(200)["status"], "awaiting_approval");
    let at = format!("/v1/questions/{}", text(&question["id"]));
    assert_eq!(api.get(&at).await.expect(200), question);
    let first = api.send(api.keyed(&at, "k", &json!({"answer": "blue"}))).await;
    let answered = first.expect(200);
    assert_eq!((&answered["status"], &answered["answer"]), (&json!("answered"), &json!("blue")));
    let again = api.send(api.keyed(&at, "k", &json!({"answer": "blue"}))).await;
    assert_eq!((again.replayed(), &again.body), (true, &first.body));
    let late = api.post(&at, json!({"answer": "red"})).await.problem(409, "already-decided");
    assert_eq!((&late["answer"], &late["question"]), (&json!("blue"), &answered));
    assert_eq!(api.wait(id_of(&path), &turn).await["status"], "completed");
    let said = api.list(&format!("{path}/items?kind=agent_message"), 50).await;
    assert!(said.iter().any(|item| text(&item["detail"]).contains("answer: blue")), "{said:?}");
    assert_eq!(api.list("/v1/questions?status=pending", 50).await, [] as [Value; 0]);
    assert_eq!(api.list("/v1/questions?status=answered", 1).await, [answered]);
}

/// Something that has to be asked for.
const GATED: &str = "@tool demo_append {\"name\": \"file\", \"line\": \"done\"}\n@say went on";

#[tokio::test]
async fn the_first_decision_on_an_approval_wins() {
    let equipped = Equipped::start().await;
    let api = &equipped.server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), GATED).await;
    let approval = announced(api, &path, "approval.required", "/v1/approvals").await;
    assert_eq!((&approval["tool"], &approval["turn_id"]), (&json!("demo_append"), &json!(turn)));
    let waits = api.get(&path).await.expect(200);
    assert_eq!((&waits["status"], &waits["pending_approvals"]), (&json!("awaiting_approval"), &json!(1)));
    assert_eq!(api.snapshot(id_of(&path)).await["approvals"], json!([approval]));
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    assert_eq!(api.get(&at).await.expect(200), approval);
    let denial = json!({"decision": "denied", "reason": "not today"});
    let first = api.send(api.keyed(&at, "k", &denial)).await;
    let denied = first.expect(200);
    assert_eq!((&denied["status"], &denied["decision"]), (&json!("denied"), &json!("denied")));
    assert_eq!(denied["decision_reason"], "not today");
    let again = api.send(api.keyed(&at, "k", &denial)).await;
    assert_eq!((again.replayed(), &again.body), (true, &first.body));
    let late = api.post(&at, json!({"decision": "approved"})).await.problem(409, "already-decided");
    assert_eq!((&late["decision"], &late["approval"]), (&json!("denied"), &denied));
    assert_eq!(api.wait(id_of(&path), &turn).await["status"], "completed");
    assert_eq!(api.list("/v1/approvals?status=pending", 50).await, [] as [Value; 0]);
    assert_eq!(api.list("/v1/approvals?status=denied", 1).await, [denied]);
    assert_eq!(api.snapshot(id_of(&path)).await["approvals"], json!([]));
}

#[tokio::test]
async fn what_waits_is_listed_in_pages_across_threads() {
    let equipped = Equipped::start().await;
    let api = &equipped.server.api;
    let mut asked = Vec::new();
    for _ in 0..3 {
        let path = thread(api, json!({})).await;
        api.start(id_of(&path), GATED).await;
        asked.push(announced(api, &path, "approval.required", "/v1/approvals").await);
    }
    for limit in [1, 2, 3, 50] {
        assert_eq!(api.list("/v1/approvals?status=pending", limit).await, asked);
        assert_eq!(api.list("/v1/approvals", limit).await, asked);
    }
    let at = format!("/v1/approvals/{}", text(&asked[1]["id"]));
    let denied = api.post(&at, json!({"decision": "denied"})).await.expect(200);
    // Pages in which nothing is denied are empty, and lead on.
    assert_eq!(api.list("/v1/approvals?status=denied", 1).await, [denied]);
    asked.remove(1);
    assert_eq!(api.list("/v1/approvals?status=pending", 1).await, asked);
    let cursor = text(&api.get("/v1/approvals?limit=1").await.expect(200)["next_cursor"]);
    api.get(&format!("/v1/questions?cursor={cursor}")).await.problem(422, "invalid");
}

#[tokio::test]
async fn an_approval_whose_turn_ends_first_was_decided_by_nobody() {
    let equipped = Equipped::start().await;
    let api = &equipped.server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), GATED).await;
    let approval = announced(api, &path, "approval.required", "/v1/approvals").await;
    api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    let late = api.post(&at, json!({"decision": "approved"})).await.problem(409, "already-decided");
    assert_eq!((&late["decision"], &late["approval"]["status"]), (&Value::Null, &json!("cancelled")));
}

#[tokio::test]
async fn an_aborted_approval_ends_its_turn() {
    let equipped = Equipped::start().await;
    let api = &equipped.server.api;
    let path = thread(api, json!({})).await;
    let turn = api.start(id_of(&path), GATED).await;
    let approval = announced(api, &path, "approval.required", "/v1/approvals").await;
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    assert_eq!(api.post(&at, json!({"decision": "abort"})).await.expect(200)["status"], "aborted");
    let ended = api.wait(id_of(&path), &turn).await;
    assert_ne!(ended["status"], "completed");
    let said = api.list(&format!("{path}/items?kind=agent_message"), 50).await;
    assert!(!format!("{said:?}").contains("went on"));
}

#[tokio::test]
async fn an_effect_that_a_crash_made_uncertain_waits_for_a_word() {
    let equipped = Equipped::start().await;
    let path = thread(&equipped.server.api, json!({"auto_approve": true})).await;
    let script = "@tool demo_append {\"name\": \"file\", \"line\": \"x\", \"then_wait_ms\": 600000}\n@say went on";
    let turn = equipped.server.api.start(id_of(&path), script).await;
    until(&equipped.server.api, &path, "effect.started").await;
    let equipped = equipped.crash().await;
    let api = &equipped.server.api;
    until(api, &path, "effect.uncertain").await;
    let uncertain = api.list(&format!("/v1/effects?status=uncertain&thread={}", id_of(&path)), 50).await;
    let [effect] = &uncertain[..] else { panic!("{uncertain:?}") };
    assert_eq!((&effect["tool"], &effect["turn_id"]), (&json!("demo_append"), &json!(turn)));
    let at = format!("/v1/effects/{}", text(&effect["operation_id"]));
    let settle = json!({"resolution": "settle", "output": "as it should be"});
    let first = api.send(api.keyed(&at, "k", &settle)).await;
    assert_eq!(first.expect(200)["resolution"], "settle");
    assert!(api.send(api.keyed(&at, "k", &settle)).await.replayed());
    let late = api.post(&at, json!({"resolution": "retry"})).await.problem(409, "already-decided");
    assert_eq!((&late["resolution"], &late["effect"]["operation_id"]), (&json!("settle"), &effect["operation_id"]));
    assert_eq!(api.wait(id_of(&path), &turn).await["status"], "completed");
    let items = api.list(&format!("{path}/items?turn={turn}"), 50).await;
    assert!(items.iter().any(|item| item["detail"] == "as it should be"), "{items:?}");
}
