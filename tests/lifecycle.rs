//! What a client is promised about threads and turns, status by status.

mod support;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use raddle_domain::id::TurnId;
use reqwest::Method;
use serde_json::{Value, json};
use support::*;

const UNKNOWN_THREAD: &str = "/v1/threads/thr_00000000-0000-7000-8000-000000000000";

fn unknown_turn() -> String {
    TurnId::new(uuid::Uuid::from_u128(1)).to_string()
}

async fn server() -> (Server, tempfile::TempDir) {
    server_with(&[]).await
}

async fn server_with(env: &[(&str, &str)]) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::with(dir.path(), env).await, dir)
}

/// Everything a client can see of a thread.
async fn seen(api: &Api, thread: &str) -> (Value, Value, Vec<Value>) {
    let inbox = api.get(&format!("/v1/threads/{thread}/inbox")).await.expect(200);
    (api.snapshot(thread).await, inbox, api.log(thread).await)
}

#[tokio::test]
async fn a_thread_lives_from_creation_to_deletion() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let settings = json!({
        "title": "one", "mode": "plan", "system_prompt": "be brief", "workspace": "w", "allow_shell": true,
        "auto_approve": true, "trust_mode": true, "on_restart": "interrupt", "metadata": {"k": [1, null]},
    });
    let made = api.post("/v1/threads", settings.clone()).await;
    let thread = made.expect(201);
    let id = text(&thread["id"]);
    let path = format!("/v1/threads/{id}");
    assert_eq!(made.header("location"), Some(path.as_str()));
    assert_eq!(made.seq(), 1);
    for (name, value) in settings.as_object().unwrap() {
        assert_eq!(thread[name], *value, "{name}");
    }
    assert_eq!((&thread["status"], &thread["queued"], &thread["seq"]), (&json!("idle"), &json!(0), &json!(1)));

    let read = api.get(&path).await;
    assert_eq!((read.expect(200), read.seq()), (thread.clone(), 1));
    let listed = api.get("/v1/threads").await.expect(200);
    assert_eq!((&listed["data"], &listed["next_cursor"]), (&json!([thread]), &Value::Null));

    let patched = api.patch(&path, json!({"title": null, "mode": "agent"})).await;
    assert_eq!((&patched.expect(200)["title"], patched.seq()), (&Value::Null, 2));
    assert_eq!(patched.json()["workspace"], "w");

    assert_eq!(api.patch(&path, json!({"archived": true})).await.expect(200)["status"], "archived");
    assert_eq!(api.get("/v1/threads").await.expect(200)["data"], json!([]));
    for all in ["archived=true", "archived=only", "status=archived"] {
        assert_eq!(api.get(&format!("/v1/threads?{all}")).await.expect(200)["data"][0]["id"], *id, "{all}");
    }
    let refused = api.post(&format!("{path}/turns"), json!({"prompt": "x"})).await;
    refused.problem(409, "thread-archived");
    assert_eq!(api.patch(&path, json!({"archived": false})).await.expect(200)["status"], "idle");

    let turn = api.start(&id, "hello").await;
    api.rest(&id).await;
    assert_eq!(api.delete(&path).await.status, 204);
    for gone in ["", "/snapshot", "/turns", "/items", "/inbox", "/events", &format!("/turns/{turn}")] {
        api.get(&format!("{path}{gone}")).await.problem(404, "not-found");
    }
    api.get(&format!("{path}/turns/{turn}/wait")).await.problem(404, "not-found");
    api.patch(&path, json!({"title": "x"})).await.problem(404, "not-found");
    api.delete(&path).await.problem(404, "not-found");
    api.post(&format!("{path}/turns"), json!({"prompt": "x"})).await.problem(404, "not-found");
    api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await.problem(404, "not-found");
    assert_eq!(api.get("/v1/threads?archived=true").await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn a_deleted_thread_stays_deleted_after_a_restart() {
    let (server, dir) = server().await;
    let (kept, gone) = (server.api.create(json!({})).await, server.api.create(json!({})).await);
    server.api.start(&gone, "@wait 600000").await;
    assert_eq!(server.api.delete(&format!("/v1/threads/{gone}")).await.status, 204);
    server.stop().await;
    let server = Server::start(dir.path()).await;
    server.api.get(&format!("/v1/threads/{gone}")).await.problem(404, "not-found");
    let listed = server.api.list("/v1/threads", 10).await;
    assert_eq!(listed.iter().map(|thread| text(&thread["id"])).collect::<Vec<_>>(), [kept]);
}

#[tokio::test]
async fn a_conversation_goes_on_over_several_turns() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({"title": "talk"})).await;
    let mut turns = Vec::new();
    for prompt in ["one", "two\nlines", "drei ☃"] {
        let turn = api.start(&id, prompt).await;
        let ended = api.wait(&id, &turn).await;
        assert_eq!((&ended["status"], &ended["error"]), (&json!("completed"), &Value::Null));
        assert_eq!(ended, api.get(&format!("/v1/threads/{id}/turns/{turn}")).await.expect(200));
        turns.push(ended);
        api.rest(&id).await;
    }
    assert_eq!(api.list(&format!("/v1/threads/{id}/turns"), 2).await, turns);
    let items = api.list(&format!("/v1/threads/{id}/items"), 4).await;
    let said: Vec<_> = items.iter().map(|item| (text(&item["kind"]), text(&item["detail"]))).collect();
    let pair = |user: &str| {
        [("user_message".to_owned(), user.to_owned()), ("agent_message".to_owned(), format!("echo: {user}"))]
    };
    assert_eq!(said, ["one", "two\nlines", "drei ☃"].map(pair).concat());
    // Each call was sent all that was said before.
    let words = |turn: &Value| turn["usage"]["input_tokens"].as_u64().unwrap();
    assert!(words(&turns[0]) < words(&turns[1]) && words(&turns[1]) < words(&turns[2]), "{turns:?}");
    let log = api.log(&id).await;
    check_log(&log, true);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&id).await));
}

#[tokio::test]
async fn queued_prompts_run_in_their_order_each_as_its_own_turn() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let first = api.start(&id, "@wait 600000").await;
    let mut admissions = Vec::new();
    for (position, prompt) in ["q1", "q2", "q3"].into_iter().enumerate() {
        admissions.push(api.queue(&id, prompt).await);
        let inbox = api.get(&format!("/v1/threads/{id}/inbox")).await.expect(200);
        let last = &inbox["data"][position];
        assert_eq!((&last["prompt"], &last["position"]), (&json!(prompt), &json!(position)));
        assert_eq!((&last["id"], &last["status"]), (&json!(admissions[position]), &json!("pending")));
    }
    assert_eq!(api.get(&format!("/v1/threads/{id}")).await.expect(200)["queued"], 3);
    assert_eq!(api.list(&format!("/v1/threads/{id}/inbox"), 2).await.len(), 3);
    api.post(&format!("/v1/threads/{id}/turns/{first}/interrupt"), json!({})).await.expect(200);
    api.rest(&id).await;
    let turns = api.list(&format!("/v1/threads/{id}/turns"), 50).await;
    let ran: Vec<_> = turns.iter().map(|turn| (text(&turn["input_summary"]), text(&turn["status"]))).collect();
    let done = |prompt: &str| (prompt.to_owned(), "completed".to_owned());
    assert_eq!(ran[0], ("@wait 600000".to_owned(), "interrupted".to_owned()));
    assert_eq!(ran[1..], ["q1", "q2", "q3"].map(done));
    let log = api.log(&id).await;
    check_log(&log, true);
    let promoted = log.iter().filter(|event| event["event"] == "prompt.promoted");
    let promoted: Vec<_> = promoted.map(|event| text(&event["payload"]["admission"]["id"])).collect();
    assert_eq!(promoted, admissions);
}

#[tokio::test]
async fn a_refused_start_leaves_no_trace_and_never_runs() {
    let (server, dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({"on_restart": "interrupt"})).await;
    let turns = format!("/v1/threads/{id}/turns");
    let active = api.start(&id, "@wait 600000").await;
    let before = seen(api, &id).await;
    let refused = api.post(&turns, json!({"prompt": "NEVER"})).await.problem(409, "turn-open");
    assert_eq!(refused["active_turn"], *active);
    let refused = api.send(api.keyed(&turns, "k", &json!({"prompt": "NEVER"}))).await;
    refused.problem(409, "turn-open");
    assert_eq!(seen(api, &id).await, before);
    // Neither when there is room, nor by a restart.
    api.post(&format!("{turns}/{active}/interrupt"), json!({})).await.expect(200);
    api.rest(&id).await;
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let after = seen(&server.api, &id).await;
    assert_eq!(after.0["turns"].as_array().unwrap().len(), 1);
    assert!(!format!("{after:?}").contains("NEVER"));
    // A refusal holds no key: the same request may be made again, and is judged anew.
    let again = server.api.send(server.api.keyed(&turns, "k", &json!({"prompt": "NEVER"}))).await;
    again.expect(201);
    assert!(!again.replayed());
}

#[tokio::test]
async fn of_fifty_simultaneous_starts_exactly_one_is_accepted() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let path = format!("/v1/threads/{id}/turns");
    let starts = (0..50).map(|n| api.post(&path, json!({"prompt": format!("@wait 600000\n{n}")})));
    let replies = join_all(starts).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201);
    assert_eq!((accepted.len(), refused.len()), (1, 49));
    let turn = &accepted[0].json()["turn"]["id"];
    for reply in refused {
        assert_eq!(reply.problem(409, "turn-open")["active_turn"], *turn);
    }
    let log = api.log(&id).await;
    assert_eq!(names(&log).iter().filter(|name| **name == "turn.started").count(), 1);
    assert_eq!(api.get(&format!("/v1/threads/{id}")).await.expect(200)["queued"], 0);
}

#[tokio::test]
async fn an_interrupt_ends_a_hanging_turn_and_gives_a_receipt() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let turn = api.start(&id, "@think hmm\n@say part\n@wait 600000\n@say rest").await;
    let path = format!("/v1/threads/{id}/turns/{turn}");
    // The answer is on its way, and will never come to its end.
    let mut stream = api.stream(&id, 0).await;
    while stream.until("item.delta").await.json()["payload"]["kind"] != "agent_message" {}
    let reply = api.post(&format!("{path}/interrupt"), json!({})).await;
    let receipt = reply.expect(200);
    assert_eq!((&receipt["turn"]["status"], &receipt["effects"]), (&json!("interrupted"), &json!([])));
    let log = api.log(&id).await;
    check_log(&log, true);
    let ended = &log[receipt["ended_seq"].as_u64().unwrap() as usize - 1];
    assert_eq!((&ended["event"], &ended["payload"]["turn"]), (&json!("turn.completed"), &receipt["turn"]));
    let items = api.list(&format!("/v1/threads/{id}/items?turn={turn}"), 50).await;
    let ends: Vec<_> = items.iter().map(|item| (text(&item["kind"]), text(&item["status"]))).collect();
    let pair = |kind: &str, status: &str| (kind.to_owned(), status.to_owned());
    assert_eq!(
        ends,
        [pair("user_message", "completed"), pair("reasoning", "completed"), pair("agent_message", "interrupted")]
    );
    assert_eq!(items[2]["detail"], "part");

    let late = api.post(&format!("{path}/interrupt"), json!({})).await;
    assert_eq!(late.problem(409, "turn-not-active")["active_turn"], Value::Null);
    assert_eq!(api.log(&id).await.len(), log.len());
    let never = format!("/v1/threads/{id}/turns/{}/interrupt", unknown_turn());
    api.post(&never, json!({})).await.problem(404, "not-found");
    // Another thread's turn is unknown to this one.
    let other = api.create(json!({})).await;
    let foreign = api.start(&other, "@wait 600000").await;
    api.post(&format!("/v1/threads/{id}/turns/{foreign}/interrupt"), json!({})).await.problem(404, "not-found");
}

#[tokio::test]
async fn of_fifty_simultaneous_interrupts_exactly_one_ends_the_turn() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let turn = api.start(&id, "@wait 600000").await;
    let path = format!("/v1/threads/{id}/turns/{turn}/interrupt");
    let replies = join_all((0..50).map(|_| api.post(&path, json!({})))).await;
    let (ended, late): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert_eq!((ended.len(), late.len()), (1, 49));
    late.iter().for_each(|reply| drop(reply.problem(409, "turn-not-active")));
    check_log(&api.log(&id).await, true);
}

#[tokio::test]
async fn a_turn_can_be_waited_for() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let turn = api.start(&id, "@wait 600000").await;
    let path = format!("/v1/threads/{id}/turns/{turn}");
    let early = api.get(&format!("{path}/wait?timeout_ms=0")).await.expect(202);
    assert_eq!(early["status"], "in_progress");
    let long = format!("{path}/wait?timeout_ms=50000");
    let (waited, _) = tokio::join!(api.get(&long), async {
        // The queued prompt's turn is not the one that is waited for.
        api.queue(&id, "next").await;
        api.post(&format!("{path}/interrupt"), json!({})).await.expect(200)
    });
    assert_eq!(waited.expect(200)["status"], "interrupted");
    assert_eq!(api.get(&format!("{path}/wait?timeout_ms=0")).await.expect(200), waited.json());
    api.get(&format!("{path}/wait?timeout_ms=300001")).await.problem(422, "invalid");
    let never = unknown_turn();
    api.get(&format!("/v1/threads/{id}/turns/{never}/wait")).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_the_same_bytes() {
    let (server, dir) = server().await;
    let id = server.api.create(json!({})).await;
    let turns = format!("/v1/threads/{id}/turns");
    let create = |api: &Api| api.keyed("/v1/threads", "create", &json!({"title": "once"}));
    let start = |api: &Api| api.keyed(&turns, "start", &json!({"prompt": "@wait 600000"}));
    let queue = |api: &Api| api.keyed(&turns, "queue", &json!({"prompt": "later", "delivery": "queue"}));
    let all = |api: &Api| [create(api), start(api), queue(api)];
    let mut first = Vec::new();
    for request in all(&server.api) {
        first.push(server.api.send(request).await);
    }
    assert_eq!(first.iter().map(|reply| reply.status).collect::<Vec<_>>(), [201, 201, 202]);
    let turn = text(&first[1].json()["turn"]["id"]);
    let interrupt = format!("{turns}/{turn}/interrupt");
    first.push(server.api.send(server.api.keyed(&interrupt, "interrupt", &json!({}))).await);
    server.api.rest(&id).await;
    let log = server.api.log(&id).await;

    let same = async |api: &Api| {
        let requests = all(api).into_iter().chain([api.keyed(&interrupt, "interrupt", &json!({}))]);
        for (request, first) in requests.zip(&first) {
            let again = api.send(request).await;
            assert_eq!((again.status, &again.body), (first.status, &first.body));
            assert!(again.replayed() && !first.replayed());
            assert_eq!(again.seq(), first.seq());
            assert_eq!(again.header("location"), first.header("location"));
        }
        assert_eq!(api.log(&id).await, log);
        assert_eq!(api.list("/v1/threads", 10).await.len(), 2);
    };
    same(&server.api).await;
    let other = server.api.keyed(&turns, "start", &json!({"prompt": "other"}));
    server.api.send(other).await.problem(422, "idempotency-mismatch");
    // The order of fields is no difference, the path is.
    let reordered = server.api.request(Method::POST, &turns).header("idempotency-key", "queue");
    let reordered = reordered.body(r#"{"delivery":"queue",  "prompt":"later"}"#);
    assert!(server.api.send(reordered).await.replayed());
    let elsewhere = format!("/v1/threads/{}/turns", text(&first[0].json()["id"]));
    let elsewhere = server.api.keyed(&elsewhere, "start", &json!({"prompt": "@wait 600000"}));
    server.api.send(elsewhere).await.problem(422, "idempotency-mismatch");
    // The same key on another route is another key.
    server.api.send(server.api.keyed("/v1/threads", "start", &json!({}))).await.expect(201);
    let newest = text(&server.api.list("/v1/threads", 10).await[0]["id"]);
    assert_eq!(server.api.delete(&format!("/v1/threads/{newest}")).await.status, 204);

    server.stop().await;
    let server = Server::start(dir.path()).await;
    same(&server.api).await;
}

#[tokio::test]
async fn simultaneous_requests_under_one_key_have_one_effect() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let path = format!("/v1/threads/{id}/turns");
    let body = json!({"prompt": "@wait 600000", "delivery": "queue"});
    let replies = join_all((0..30).map(|_| api.send(api.keyed(&path, "one", &body)))).await;
    let made: BTreeSet<_> = replies.iter().filter(|reply| reply.status == 201).map(|reply| &reply.body).collect();
    assert_eq!(made.len(), 1);
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        reply.problem(409, "in-flight");
    }
    assert_eq!(replies.iter().filter(|reply| reply.status == 201 && !reply.replayed()).count(), 1);
    assert_eq!(api.get(&format!("/v1/threads/{id}")).await.expect(200)["queued"], 0);
}

#[tokio::test]
async fn a_precondition_refuses_what_the_caller_did_not_see() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let path = format!("/v1/threads/{id}");
    let when = |method: Method, path: &str, seq: &str| api.request(method, path).header("if-match", seq.to_owned());
    assert_eq!(api.patch(&path, json!({"title": "a"})).await.seq(), 2);
    let stale = api.send(when(Method::PATCH, &path, "\"1\"").json(&json!({"title": "b"}))).await;
    assert_eq!(stale.problem(412, "precondition-failed")["seq"], 2);
    let stale = when(Method::POST, &format!("{path}/turns"), "\"1\"").json(&json!({"prompt": "x"}));
    api.send(stale).await.problem(412, "precondition-failed");
    api.send(when(Method::DELETE, &path, "\"1\"")).await.problem(412, "precondition-failed");
    api.send(when(Method::PATCH, &path, "2").json(&json!({"title": "b"}))).await.problem(400, "bad-request");
    assert_eq!(api.get(&path).await.expect(200)["seq"], 2);
    let fresh = api.send(when(Method::PATCH, &path, "\"2\"").json(&json!({"title": "c"}))).await;
    assert_eq!((fresh.expect(200)["title"].as_str(), fresh.seq()), (Some("c"), 3));
    // Of many who saw the same, one may act.
    let all = (0..20).map(|n| api.send(when(Method::PATCH, &path, "\"3\"").json(&json!({"title": n.to_string()}))));
    let replies = join_all(all).await;
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1);
    assert_eq!(replies.iter().filter(|reply| reply.status == 412).count(), 19);
    assert_eq!(api.send(when(Method::DELETE, &path, "\"4\"")).await.status, 204);
}

#[tokio::test]
async fn a_full_inbox_says_when_to_come_back() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_INBOX_PER_THREAD", "2")]).await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let turn = api.start(&id, "@wait 600000").await;
    api.queue(&id, "a").await;
    api.queue(&id, "b").await;
    let before = seen(api, &id).await;
    let queue = json!({"prompt": "c", "delivery": "queue"});
    let full = api.post(&format!("/v1/threads/{id}/turns"), queue.clone()).await;
    assert_eq!(full.problem(429, "inbox-full")["limit"], 2);
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(seen(api, &id).await, before);
    api.post(&format!("/v1/threads/{id}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    api.rest(&id).await;
    let log = api.log(&id).await;
    assert_eq!(names(&log).iter().filter(|name| **name == "turn.started").count(), 3);
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_stored_nowhere() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_PROMPT_BYTES", "1000")]).await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let path = format!("/v1/threads/{id}");
    let before = seen(api, &id).await;
    let long = api.post(&format!("{path}/turns"), json!({"prompt": "x".repeat(1001)})).await;
    let problem = long.problem(413, "too-large");
    assert_eq!((&problem["field"], &problem["limit"]), (&json!("prompt"), &json!(1000)));
    let whole = api.post(&format!("{path}/turns"), json!({"prompt": "x".repeat(2 << 20)})).await;
    whole.problem(413, "too-large");
    let chunks = futures_util::stream::iter((0..64).map(|_| Ok::<_, std::io::Error>("x".repeat(64 * 1024))));
    let unannounced = api.request(Method::POST, "/v1/threads").body(reqwest::Body::wrap_stream(chunks));
    api.send(unannounced).await.problem(413, "too-large");
    api.patch(&path, json!({"title": "x".repeat(5000)})).await.problem(413, "too-large");
    api.patch(&path, json!({"metadata": {"k": "x".repeat(17 * 1024)}})).await.problem(413, "too-large");
    assert_eq!(seen(api, &id).await, before);
    assert_eq!(api.list("/v1/threads", 10).await.len(), 1);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_by_name() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let path = format!("/v1/threads/{id}");
    for (method, to) in [
        (Method::POST, "/v1/threads".to_owned()),
        (Method::PATCH, path.clone()),
        (Method::POST, format!("{path}/turns")),
        (Method::DELETE, path.clone()),
    ] {
        let reply = api.send(api.request(method, &to).json(&json!({"prompt": "x", "surprise": 1}))).await;
        assert_eq!(reply.expect(422)["code"], "unknown-field", "{to}");
    }
    let field = api.post("/v1/threads", json!({"surprise": 1})).await.problem(422, "unknown-field");
    assert_eq!(field["field"], "surprise");
    for body in [json!({}), json!({"prompt": " "}), json!({"prompt": 1}), json!({"prompt": "x", "delivery": "fax"})] {
        api.post(&format!("{path}/turns"), body).await.problem(422, "invalid");
    }
    for body in [json!({"prompt": "x", "temperature": 3}), json!({"prompt": "x", "max_tokens": 0})] {
        api.post(&format!("{path}/turns"), body).await.problem(422, "invalid");
    }
    let garbage = api.request(Method::POST, "/v1/threads").body("{");
    api.send(garbage).await.problem(400, "bad-request");
    for query in ["limit=0", "limit=501", "limit=x", "cursor=zz", "status=x", "archived=x", "surprise=1", "q=a&q=b"] {
        api.get(&format!("/v1/threads?{query}")).await.problem(422, "invalid");
    }
    assert_eq!(api.get(&path).await.expect(200)["seq"], 1);
    api.get("/v1/threads/nonsense").await.problem(404, "not-found");
    api.get(UNKNOWN_THREAD).await.problem(404, "not-found");
    api.get("/v1/nonsense").await.problem(404, "not-found");
    let wrong = api.send(api.request(Method::PUT, &path)).await;
    wrong.problem(405, "method-not-allowed");
    assert!(wrong.header("allow").unwrap().contains("PATCH"));
}

#[tokio::test]
async fn what_is_not_built_says_so_and_changes_nothing() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    api.start(&id, "@wait 600000").await;
    let before = seen(api, &id).await;
    api.get("/").await.problem(501, "not-implemented");
    assert_eq!(seen(api, &id).await, before);
}

#[tokio::test]
async fn cursors_walk_all_threads_exactly_once() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let mut made = Vec::new();
    for n in 0..120 {
        made.push(api.create(json!({"title": format!("t{n}")})).await);
    }
    // Threads that run, and have run, stand in the same order as all others.
    let running = api.start(&made[3], "@wait 600000").await;
    api.start(&made[7], "hello").await;
    api.rest(&made[7]).await;
    for limit in [1, 7, 50, 120, 500] {
        let listed = api.list("/v1/threads", limit).await;
        let ids: Vec<_> = listed.iter().map(|thread| text(&thread["id"])).collect();
        assert_eq!(ids.len(), 120, "limit {limit}");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>(), made.iter().collect::<BTreeSet<_>>());
        assert!(listed.windows(2).all(|two| text(&two[0]["updated_at"]) >= text(&two[1]["updated_at"])));
        assert_eq!(ids[..2].iter().collect::<BTreeSet<_>>(), [&made[3], &made[7]].into_iter().collect());
    }
    let found = api.list("/v1/threads?q=T11", 3).await;
    assert_eq!(found.len(), 11);
    assert_eq!(api.list("/v1/threads?status=running", 10).await.len(), 1);
    let page = api.get("/v1/threads?limit=2").await.expect(200);
    let cursor = text(&page["next_cursor"]);
    api.get(&format!("/v1/threads/{}/items?cursor={cursor}", made[7])).await.problem(422, "invalid");
    api.post(&format!("/v1/threads/{}/turns/{running}/interrupt", made[3]), json!({})).await.expect(200);
}

#[tokio::test]
async fn items_are_paged_and_filtered() {
    let (server, _dir) = server().await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let mut turns = Vec::new();
    for n in 0..5 {
        turns.push(api.start(&id, &format!("@think t{n}\n@say a{n}")).await);
        api.rest(&id).await;
    }
    // An open turn's items stand last.
    turns.push(api.start(&id, "@wait 600000").await);
    let path = format!("/v1/threads/{id}/items");
    let whole = api.list(&path, 500).await;
    assert_eq!(whole.len(), 5 * 3 + 1);
    for limit in [1, 2, 3, 7] {
        assert_eq!(api.list(&path, limit).await, whole, "limit {limit}");
    }
    assert_eq!(json!(whole), api.snapshot(&id).await["items"]);
    let ids = |items: &[Value]| items.iter().map(|item| text(&item["turn_id"])).collect::<Vec<_>>();
    assert_eq!(ids(&api.list(&format!("{path}?turn={}", turns[2]), 2).await), [&*turns[2]; 3]);
    let answers = api.list(&format!("{path}?kind=agent_message"), 2).await;
    assert_eq!(ids(&answers), turns[..5]);
    let one = api.list(&format!("{path}?kind=reasoning&turn={}", turns[4]), 1).await;
    assert_eq!(one.iter().map(|item| text(&item["detail"])).collect::<Vec<_>>(), ["t4"]);
    api.get(&format!("{path}?turn={}", unknown_turn())).await.problem(404, "not-found");
    api.get(&format!("{path}?kind=nonsense")).await.problem(422, "invalid");
}

#[tokio::test]
async fn a_failing_model_is_tried_again_and_then_told_about() {
    let (server, _dir) = server_with(&[("RADDLE_LIMITS_RETRY_BASE_MS", "1")]).await;
    let api = &server.api;
    let id = api.create(json!({})).await;
    let turn = api.start(&id, "@fail 400 no such thing").await;
    let ended = api.wait(&id, &turn).await;
    assert_eq!(ended["status"], "failed");
    assert!(text(&ended["error"]["message"]).contains("no such thing"), "{ended}");
    api.rest(&id).await;
    let turn = api.start(&id, "@say half\n@drop").await;
    let ended = api.wait(&id, &turn).await;
    api.rest(&id).await;
    let log = api.log(&id).await;
    check_log(&log, true);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&id).await));
    assert!(names(&log).contains(&"turn.retrying"), "{ended}");
    // A thread whose turn failed goes on.
    let turn = api.start(&id, "and now").await;
    assert_eq!(api.wait(&id, &turn).await["status"], "completed");
}
