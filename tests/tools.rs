//! What a client is promised about tools: who agrees, how often something is really done, and what a model sees of
//! it, through kills and evictions. `.ledger` in the directory of the demo tools says what was really done.

#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use equipped::{Equipped, call, item, pair};
use openai_server::Answer;
use serde_json::{Value, json};
use support::*;

/// One thread in memory: whatever rests or waits goes when another one is touched.
const CAP_ONE: (&str, &str) = ("RADDLE_LIMITS_LOADED_THREADS", "1");

fn append(line: &str) -> Value {
    json!({"name": "file", "line": line})
}

/// The provider calls `demo_append`.
fn appends(line: &str) -> Answer {
    Answer::tools(&[("c1", "demo_append", &append(line).to_string())])
}

/// How and by whom each approval of a log was decided, in order.
fn decided(log: &[Value]) -> Vec<(String, String)> {
    let decided = log.iter().filter(|event| event["event"] == "approval.decided");
    decided.map(|event| (text(&event["payload"]["decision"]), text(&event["payload"]["by"]))).collect()
}

// ---- a person decides ----------------------------------------------------------------------------

#[tokio::test]
async fn an_approved_call_runs_exactly_once_though_its_thread_was_evicted_and_its_server_killed() {
    let mut world = Equipped::with_provider(&[CAP_ONE]).await;
    let thread = world.api().create(json!({})).await;
    world.answer(appends("done"));
    let turn = world.api().start(&thread, "go").await;
    let approval = world.approval(&thread).await;
    assert_eq!((&approval["tool"], &approval["arguments"]), (&json!("demo_append"), &append("done")));
    assert_eq!(approval["effect_class"], "once");
    world.evict().await;
    world.crash().await;
    assert_eq!(world.approval(&thread).await, approval);
    assert_eq!(world.ledger(), []);

    world.answer(Answer::text("it is done"));
    let decided = world.decide(&approval, "approved").await;
    assert_eq!((&decided["status"], &decided["by"]), (&json!("approved"), &json!("caller")));
    assert_eq!(world.api().wait(&thread, &turn).await["status"], "completed");
    world.crash().await;
    world.api().rest(&thread).await;
    assert_eq!(world.file("file").unwrap(), "done\n");
    let operation = text(&approval["operation_id"]);
    assert_eq!(world.ledger(), [(operation, "1".to_owned(), "demo_append".to_owned())]);
    // Two calls of the model, and the second one sees what the tool said.
    let shown = world.shown();
    assert_eq!(shown.len(), 2);
    let result = json!({"role": "tool", "tool_call_id": "c1", "content": "appended a line to file"});
    assert_eq!(shown[1].last(), Some(&result));
    assert_eq!(world.items(&thread).await.last(), Some(&item("agent_message", "completed", "it is done")));
    assert_eq!(Fold::of(&world.log(&thread).await), Fold::from_snapshot(&world.api().snapshot(&thread).await));
}

#[tokio::test]
async fn a_denied_call_does_not_run_and_the_model_reads_why() {
    let world = Equipped::with_provider(&[]).await;
    let thread = world.api().create(json!({})).await;
    world.answer(appends("done"));
    world.api().start(&thread, "go").await;
    let approval = world.approval(&thread).await;
    world.answer(Answer::text("then not"));
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    world.api().post(&at, json!({"decision": "denied", "reason": "not on a Friday"})).await.expect(200);
    world.api().rest(&thread).await;
    assert_eq!((world.ledger(), world.file("file")), (vec![], None));
    assert_eq!(world.shown()[1].last().unwrap()["content"], "denied: not on a Friday");
    assert_eq!(world.items(&thread).await[1], item("tool_call", "failed", "denied: not on a Friday"));
    assert_eq!(world.turns(&thread).await, [pair("go", "completed")]);
    assert_eq!(decided(&world.log(&thread).await), [pair("denied", "caller")]);
}

#[tokio::test]
async fn an_abort_ends_the_turn_with_all_its_calls_and_the_queue_goes_on() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({})).await;
    let script = format!("{}\n@also demo_put {{\"name\": \"b\", \"text\": \"\"}}", call("demo_append", append("x")));
    let turn = world.api().start(&thread, &script).await;
    world.api().queue(&thread, "next").await;
    let asked = world.asked(&thread).await;
    assert_eq!(asked.len(), 2);
    world.decide(&asked[1], "abort").await;
    world.api().rest(&thread).await;
    let ended = world.turn(&thread, &turn).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("canceled"), &json!("aborted")));
    assert_eq!(world.turns(&thread).await[1], pair("next", "completed"));
    assert_eq!(world.ledger(), []);
    let path = format!("/v1/approvals/{}", text(&asked[0]["id"]));
    assert_eq!(world.api().get(&path).await.expect(200)["status"], "cancelled");
    let log = world.log(&thread).await;
    assert_eq!((decided(&log), names(&log).contains(&"approval.cancelled")), (vec![pair("abort", "caller")], true));
}

#[tokio::test]
async fn an_approval_that_nobody_decides_expires_and_its_turn_goes_on_without_the_call() {
    let mut world = Equipped::start(&[("RADDLE_APPROVALS_EXPIRY_MS", "1000")]).await;
    let (first, second) = (world.api().create(json!({})).await, world.api().create(json!({})).await);
    let script = format!("{}\n@say went on", call("demo_append", append("never")));
    for thread in [&first, &second] {
        world.api().start(thread, &script).await;
        world.api().stream(thread, 0).await.until("approval.required").await;
    }
    // What is to expire is not in a process alone.
    world.crash().await;
    for thread in [&first, &second] {
        world.stands(thread, |thread| thread["status"] == "idle").await;
        let log = world.log(thread).await;
        let expired = log.iter().find(|event| event["event"] == "approval.expired").expect("an event says so");
        let approval = &expired["payload"]["approval"];
        assert_eq!((&approval["status"], &approval["decision"]), (&json!("expired"), &Value::Null));
        let path = format!("/v1/approvals/{}", text(&approval["id"]));
        assert_eq!(world.api().get(&path).await.expect(200), *approval);
        let late = world.api().post(&path, json!({"decision": "approved"})).await.problem(409, "already-decided");
        assert_eq!((&late["approval"]["status"], &late["decision"]), (&json!("expired"), &Value::Null));
        let said = [
            item("tool_call", "failed", "not approved: nobody decided in time"),
            item("agent_message", "completed", "went on"),
        ];
        assert_eq!(world.items(thread).await[1..], said);
        assert_eq!(world.api().get(&format!("/v1/threads/{thread}")).await.expect(200)["pending_approvals"], 0);
        assert_eq!(world.api().log(thread).await, log);
    }
    assert_eq!(world.ledger(), []);
}

#[tokio::test]
async fn an_approval_for_the_session_lets_the_same_call_pass_and_no_other() {
    let mut world = Equipped::start(&[CAP_ONE]).await;
    let thread = world.api().create(json!({})).await;
    let same = call("demo_append", append("same"));
    world.api().start(&thread, &format!("{same}\n{same}")).await;
    let approval = world.approval(&thread).await;
    assert!(approval["available_decisions"].as_array().unwrap().contains(&json!("approved_for_session")));
    world.decide(&approval, "approved_for_session").await;
    world.api().rest(&thread).await;
    world.evict().await;
    // In another order they are the same arguments.
    world.say(&thread, "@tool demo_append {\"line\": \"same\", \"name\": \"file\"}").await;
    world.crash().await;
    world.say(&thread, &same).await;
    assert_eq!(world.file("file").unwrap(), "same\n".repeat(4));
    world.api().start(&thread, &call("demo_append", append("other"))).await;
    let other = world.approval(&thread).await;
    assert_eq!(other["arguments"], append("other"));
    world.decide(&other, "denied").await;
    world.api().rest(&thread).await;
    let mut expected = vec![pair("approved_for_session", "caller")];
    expected.extend(vec![pair("approved", "session"); 3]);
    expected.push(pair("denied", "caller"));
    assert_eq!(decided(&world.log(&thread).await), expected);
    // Another thread is another session.
    let elsewhere = world.api().create(json!({})).await;
    world.api().start(&elsewhere, &same).await;
    world.approval(&elsewhere).await;
    assert_eq!(world.ledger().len(), 4);
}

#[tokio::test]
async fn an_approval_for_ever_holds_for_every_thread_and_after_a_restart() {
    let mut world = Equipped::start(&[]).await;
    let (first, second) = (world.api().create(json!({})).await, world.api().create(json!({})).await);
    let same = call("demo_append", append("same"));
    world.api().start(&first, &same).await;
    let approval = world.approval(&first).await;
    world.decide(&approval, "approved_always").await;
    world.api().rest(&first).await;
    world.say(&second, &same).await;
    world.crash().await;
    let third = world.api().create(json!({})).await;
    for thread in [&second, &third] {
        world.say(thread, &same).await;
    }
    assert_eq!(world.file("file").unwrap(), "same\n".repeat(4));
    assert_eq!(decided(&world.log(&third).await), [pair("approved", "policy")]);
    world.api().start(&third, &call("demo_append", append("other"))).await;
    world.approval(&third).await;
}

#[tokio::test]
async fn without_a_person_pass_ordinary_calls_and_with_trust_those_that_need_full_access() {
    let world = Equipped::start(&[]).await;
    let script = format!("{}\n{}", call("demo_append", append("x")), call("demo_wipe", json!({"name": "file"})));
    // The turn's own word is stronger than the thread's.
    let careful = world.api().create(json!({"trust_mode": true})).await;
    world.api().post(&format!("/v1/threads/{careful}/turns"), json!({"prompt": script})).await.expect(201);
    assert_eq!(world.approval(&careful).await["tool"], "demo_append");
    let auto = world.api().create(json!({"auto_approve": true})).await;
    world.api().start(&auto, &script).await;
    assert_eq!(world.approval(&auto).await["tool"], "demo_wipe");
    assert_eq!(world.file("file").unwrap(), "x\n");
    let trusted = world.api().create(json!({"auto_approve": true})).await;
    let body = json!({"prompt": script, "trust_mode": true});
    world.api().post(&format!("/v1/threads/{trusted}/turns"), body).await.expect(201);
    world.api().rest(&trusted).await;
    assert_eq!(world.file("file"), None);
    // What nobody was asked about is an event all the same.
    assert_eq!(decided(&world.log(&trusted).await), [pair("approved", "auto"), pair("approved", "auto")]);
    assert_eq!(decided(&world.api().log(&auto).await), [pair("approved", "auto")]);
}

// ---- nobody knows --------------------------------------------------------------------------------

#[tokio::test]
async fn what_must_not_be_done_twice_waits_for_a_word_when_its_process_was_killed() {
    let mut world = Equipped::start(&[]).await;
    let mut threads = Vec::new();
    let names = ["settle", "abort", "retry"];
    for name in names {
        let thread = world.api().create(json!({"auto_approve": true})).await;
        let arguments = json!({"name": name, "line": "x", "then_wait_ms": 3_000});
        let turn = world.api().start(&thread, &format!("{}\n@say went on", call("demo_append", arguments))).await;
        threads.push((thread, turn));
    }
    world.until_written(&names).await;
    world.crash().await;
    let mut effects = Vec::new();
    for (thread, _) in &threads {
        world.stands(thread, |thread| thread["status"] == "awaiting_approval").await;
        let found = world.api().list(&format!("/v1/effects?status=uncertain&thread={thread}"), 50).await;
        let [effect] = <[Value; 1]>::try_from(found).unwrap();
        assert_eq!((&effect["attempt"], &effect["closed"]), (&json!(1), &json!(false)), "{effect}");
        effects.push(format!("/v1/effects/{}", text(&effect["operation_id"])));
    }
    // A further crash changes nothing about it.
    world.crash().await;
    assert_eq!(world.ledger().len(), 3);
    let settle = json!({"resolution": "settle", "output": "it was there"});
    for (effect, word) in effects.iter().zip([settle, json!({"resolution": "abort"}), json!({"resolution": "retry"})]) {
        world.api().post(effect, word).await.expect(200);
    }
    let mut ends = Vec::new();
    for (thread, turn) in &threads {
        world.api().rest(thread).await;
        world.log(thread).await;
        ends.push(text(&world.turn(thread, turn).await["status"]));
    }
    assert_eq!(ends, ["completed", "canceled", "completed"]);
    assert_eq!(world.items(&threads[0].0).await[1], item("tool_call", "completed", "it was there"));
    assert_eq!(world.items(&threads[2].0).await[1], item("tool_call", "completed", "appended a line to retry"));
    let files = names.map(|name| world.file(name).unwrap());
    assert_eq!(files, ["x\n", "x\n", "x\nx\n"]);
    // A second attempt is of the same operation.
    let ledger = world.ledger();
    let retried: Vec<_> = ledger.iter().filter(|(operation, ..)| effects[2].ends_with(operation.as_str())).collect();
    assert_eq!(retried.iter().map(|(_, attempt, _)| attempt.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(ledger.len(), 4);
}

// ---- a question ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_question_outlives_its_server_and_the_model_reads_the_answer() {
    let mut world = Equipped::with_provider(&[CAP_ONE]).await;
    let thread = world.api().create(json!({})).await;
    world.answer(Answer::tools(&[("q1", "ask_user", "{\"question\":\"which?\",\"options\":[\"red\",\"blue\"]}")]));
    let turn = world.api().start(&thread, "paint it").await;
    world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    world.evict().await;
    world.crash().await;
    let [question] = <[Value; 1]>::try_from(world.api().list("/v1/questions?status=pending", 50).await).unwrap();
    assert_eq!((&question["question"], &question["options"]), (&json!("which?"), &json!(["red", "blue"])));
    world.answer(Answer::text("green, then"));
    let at = format!("/v1/questions/{}", text(&question["id"]));
    world.api().post(&at, json!({"answer": "green"})).await.expect(200);
    assert_eq!(world.api().wait(&thread, &turn).await["status"], "completed");
    assert_eq!(world.shown()[1].last().unwrap()["content"], "green");
    let log = world.log(&thread).await;
    assert!(names(&log).contains(&"question.asked") && names(&log).contains(&"question.answered"));
}

#[tokio::test]
async fn a_question_that_nobody_answers_expires_and_the_turn_goes_on() {
    let world = Equipped::start(&[("RADDLE_QUESTIONS_EXPIRY_MS", "200")]).await;
    let thread = world.api().create(json!({})).await;
    let turn = world.say(&thread, "@ask which?\n@say went on").await;
    assert_eq!(turn["status"], "completed");
    assert_eq!(world.items(&thread).await[1], item("tool_call", "failed", "nobody answered in time"));
    let log = world.log(&thread).await;
    let expired = log.iter().find(|event| event["event"] == "question.expired").expect("an event says so");
    let at = format!("/v1/questions/{}", text(&expired["payload"]["question"]["id"]));
    let late = world.api().post(&at, json!({"answer": "red"})).await.problem(409, "already-decided");
    assert_eq!((&late["question"]["status"], &late["answer"]), (&json!("expired"), &Value::Null));
}

// ---- while a tool runs ---------------------------------------------------------------------------

#[tokio::test]
async fn an_interrupt_stops_what_has_not_acted_and_names_what_may_have() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({"auto_approve": true})).await;
    let acts = call("demo_append", json!({"name": "acted", "line": "x", "then_wait_ms": 600_000}));
    let turn = world.api().start(&thread, &format!("{acts}\n@also demo_put {{\"name\": \"b\", \"text\": \"\"}}")).await;
    world.until_acted(1).await;
    world.api().queue(&thread, &call("demo_append", json!({"name": "b", "line": "x", "wait_ms": 600_000}))).await;
    let receipt =
        world.api().post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    assert_eq!(receipt["turn"]["status"], "interrupted");
    let [effect] = &receipt["effects"].as_array().unwrap()[..] else { panic!("{receipt}") };
    assert_eq!((&effect["tool"], &effect["status"]), (&json!("demo_append"), &json!("uncertain")));
    assert_eq!((&effect["attempt"], &effect["closed"]), (&json!(1), &json!(true)));
    let listed = world.api().get("/v1/effects?status=uncertain").await.expect(200);
    assert_eq!(listed["data"], json!([effect]), "nobody can act on it, and it is uncertain all the same");
    let settle = json!({"resolution": "settle", "output": "x"});
    let late = world.api().post(&format!("/v1/effects/{}", text(&effect["operation_id"])), settle).await;
    assert!(text(&late.problem(409, "already-decided")["detail"]).contains("turn of the effect has ended"));
    // The one behind it was never begun, and what comes next is stopped before it acts.
    let next =
        world.stands(&thread, |thread| thread["active_turn"] != *turn && thread["active_turn"] != json!(null)).await;
    let next = text(&next["active_turn"]);
    let mut stream = world.api().stream(&thread, receipt["ended_seq"].as_u64().unwrap()).await;
    stream.until("effect.started").await;
    world.api().post(&format!("/v1/threads/{thread}/turns/{next}/interrupt"), json!({})).await.expect(200);
    world.api().rest(&thread).await;
    assert_eq!((world.ledger().len(), world.file("b")), (1, None));
    let ended = |(kind, status, _): &(String, String, String)| kind != "tool_call" || status == "interrupted";
    assert!(world.items(&thread).await.iter().all(ended));
    let log = world.log(&thread).await;
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&world.api().snapshot(&thread).await));
}

#[tokio::test]
async fn a_steer_that_comes_while_a_tool_waits_is_heard_after_the_tool() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({})).await;
    let script = format!("@say before\n{}\n@say after", call("demo_append", append("x")));
    let turn = world.api().start(&thread, &script).await;
    let approval = world.approval(&thread).await;
    let steer = format!("/v1/threads/{thread}/turns/{turn}/steer");
    world.api().post(&steer, json!({"prompt": "mind the gap"})).await.expect(202);
    world.decide(&approval, "approved").await;
    assert_eq!(world.api().rest(&thread).await["queued"], 0);
    assert_eq!(world.turn(&thread, &turn).await["steer_count"], 1);
    let said = world.items(&thread).await;
    assert_eq!(
        said[1..],
        [
            item("agent_message", "completed", "before"),
            item("tool_call", "completed", "appended a line to file"),
            item("user_message", "completed", "mind the gap"),
            item("agent_message", "completed", "heard: mind the gap\nafter"),
        ]
    );
    let log = world.log(&thread).await;
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&world.api().snapshot(&thread).await));
}

// ---- the conversation is changed -----------------------------------------------------------------

#[tokio::test]
async fn an_edit_after_tools_takes_the_exchange_out_of_what_the_model_sees() {
    let mut world = Equipped::with_provider(&[CAP_ONE]).await;
    let thread = world.api().create(json!({"auto_approve": true})).await;
    world.answer(Answer::text("hello"));
    world.say(&thread, "hi").await;
    world.answer(appends("MISTAKEN"));
    world.answer(Answer::text("MISTAKEN"));
    world.say(&thread, "MISTAKEN").await;
    world.answer(Answer::text("better"));
    world.api().post(&format!("/v1/threads/{thread}/edit"), json!({"prompt": "as meant"})).await.expect(201);
    world.api().rest(&thread).await;
    world.evict().await;
    world.answer(Answer::text("yes"));
    world.say(&thread, "still?").await;
    world.crash().await;
    world.answer(Answer::text("yes"));
    world.say(&thread, "and now?").await;
    let shown = world.shown();
    let user = |content: &str| json!({"role": "user", "content": content});
    let agent = |content: &str| json!({"role": "assistant", "content": content});
    let expected =
        [user("hi"), agent("hello"), user("as meant"), agent("better"), user("still?"), agent("yes"), user("and now?")];
    assert_eq!(shown.last().unwrap()[..], expected);
    assert!(expected.starts_with(&shown[4]) && expected.starts_with(&shown[3]), "{shown:#?}");
    // It is marked, not forgotten: what was done was done.
    assert_eq!(world.turns(&thread).await[1], pair("MISTAKEN", "rolled_back"));
    assert_eq!(world.file("file").unwrap(), "MISTAKEN\n");
    let log = world.log(&thread).await;
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&world.api().snapshot(&thread).await));
}

/// What a fork's log, stream and lists say: of itself, and of nobody else but where it came from.
async fn is_whole(world: &Equipped, fork: &str, parent: &str) -> Vec<Value> {
    let log = world.log(fork).await;
    let mut stream = world.api().stream(fork, 0).await;
    for event in &log {
        let frame = stream.next().await.unwrap();
        assert_eq!(frame.json(), *event);
        let mut event = event.clone();
        assert_eq!(event["thread_id"], *fork);
        let thread = event["payload"]["thread"].as_object_mut();
        if let Some(from) = thread.and_then(|thread| thread.remove("forked_from")) {
            assert_eq!(from["thread_id"], *parent);
        }
        assert!(!event.to_string().contains(parent), "a fork names its parent: {event}");
    }
    let snapshot = world.api().snapshot(fork).await;
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&snapshot));
    assert_eq!(snapshot["turns"].to_string().matches(parent).count(), 0);
    assert_eq!((&snapshot["thread"]["active_turn"], &snapshot["inbox"]), (&Value::Null, &json!([])));
    log
}

#[tokio::test]
async fn a_fork_of_a_working_thread_has_its_settled_past_and_outlives_it() {
    let mut world = Equipped::start(&[]).await;
    let parent = world.api().create(json!({"title": "parent"})).await;
    let path = format!("/v1/threads/{parent}");
    let script =
        format!("{}\n{}\n@say told", call("demo_append", append("x")), call("demo_read", json!({"name": "file"})));
    world.api().start(&parent, "one").await;
    world.api().rest(&parent).await;
    let second = world.api().start(&parent, &script).await;
    let approval = world.approval(&parent).await;
    world.decide(&approval, "approved").await;
    world.api().rest(&parent).await;
    let items = world.api().list(&format!("{path}/items?turn={second}"), 50).await;
    let read = items.iter().position(|item| item["detail"] == "x\n").expect("what was read");

    // A turn is open, an approval and a prompt wait.
    let open = world.api().start(&parent, &call("demo_append", append("LATER"))).await;
    world.api().queue(&parent, "QUEUED").await;
    world.approval(&parent).await;
    let usage = world.api().get("/v1/usage?group_by=thread").await.expect(200);
    let fork = async |at: Value| text(&world.api().post(&format!("{path}/fork"), at).await.expect(201)["id"]);
    let whole = fork(json!({})).await;
    let before = fork(json!({"before_turn": second})).await;
    let before_open = fork(json!({"before_turn": open})).await;
    let at_item = fork(json!({"at_item": items[read]["id"]})).await;
    let forks = [&whole, &before, &before_open, &at_item];
    let running = world.api().snapshot(&parent).await["items"].as_array().unwrap().last().unwrap()["id"].clone();
    world.api().post(&format!("{path}/fork"), json!({"at_item": running})).await.problem(404, "not-found");
    assert_eq!(world.turns(&whole).await, [pair("one", "completed"), pair(&script.replace('\n', " "), "completed")]);
    assert_eq!(world.turns(&whole).await, world.turns(&before_open).await);
    assert_eq!(world.turns(&before).await, [pair("one", "completed")]);
    assert_eq!(world.items(&whole).await, world.items(&parent).await[..2 + items.len()]);
    assert_eq!(world.items(&at_item).await, world.items(&parent).await[..2 + read + 1]);
    for fork in forks {
        let log = is_whole(&world, fork, &parent).await;
        assert!(!format!("{log:?}").contains("LATER") && !format!("{log:?}").contains("QUEUED"));
        assert_eq!(log.last().map(|last| &last["seq"]), Some(&json!(log.len())));
    }
    // Nobody was asked anything, and nothing is paid twice.
    assert_eq!(world.api().list("/v1/approvals?status=pending", 50).await.len(), 1);
    assert_eq!(world.api().get("/v1/usage?group_by=thread").await.expect(200), usage);

    // The parent goes, with what waited there; the forks stay and go on.
    world.api().delete(&path).await.expect(204);
    world.crash().await;
    for fork in forks {
        is_whole(&world, fork, &parent).await;
        world.say(fork, "on my own").await;
        assert_eq!(world.items(fork).await.last().unwrap().2, "echo: on my own");
        is_whole(&world, fork, &parent).await;
    }
    assert_eq!(world.ledger().len(), 2);
}

/// The effects of a thread, the newest form of each, oldest first.
async fn effects(world: &Equipped, thread: &str) -> Vec<Value> {
    let mut effects: Vec<Value> = Vec::new();
    for event in world.log(thread).await {
        if event["event"].as_str().is_some_and(|name| name.starts_with("effect.")) {
            let effect = event["payload"]["effect"].clone();
            effects.retain(|known| known["operation_id"] != effect["operation_id"]);
            effects.push(effect);
        }
    }
    effects
}

#[tokio::test]
async fn what_a_thread_does_for_a_run_is_marked_until_it_works_for_none_and_a_fork_works_for_none() {
    let mut world = Equipped::start(&[]).await;
    let run = world.api().post("/v1/runs", json!({"objective": "ship it"})).await.expect(201)["run_id"].clone();
    let thread = world.api().create(json!({"auto_approve": true, "run_id": run})).await;
    let path = format!("/v1/threads/{thread}");
    assert_eq!(world.api().get(&path).await.expect(200)["run_id"], run);
    let put = call("demo_put", json!({"name": "file", "text": "x"}));
    world.say(&thread, &put).await;
    world.crash().await;
    let fork = world.api().post(&format!("{path}/fork"), json!({})).await.expect(201);
    assert_eq!(fork.get("run_id"), None);
    assert_eq!(world.api().get(&path).await.expect(200)["run_id"], run);
    let freed = world.api().patch(&path, json!({"run_id": null})).await.expect(200);
    assert_eq!(freed.get("run_id"), None);
    world.say(&thread, &put).await;
    let [marked, plain] = <[Value; 2]>::try_from(effects(&world, &thread).await).expect("two effects");
    assert_eq!((&marked["run_id"], &marked["status"]), (&run, &json!("settled")));
    let detail = &world.items(&thread).await[1].2;
    assert_eq!(marked["output_bytes"], detail.len());
    assert!(["arguments_sha256", "output_sha256"].iter().all(|of| marked[of].as_str().unwrap().len() == 64));
    let unmarked = ["run_id", "arguments_sha256", "output_sha256", "output_bytes"];
    assert!(unmarked.iter().all(|name| plain.get(name).is_none()), "{plain}");
    // What names no run is refused, and changes nothing.
    for bad in [json!("run_1"), json!("thr_01905d3c-7e57-7abc-8def-000000000001"), json!("")] {
        let body = json!({ "run_id": bad });
        for refused in [world.api().post("/v1/threads", body.clone()).await, world.api().patch(&path, body).await] {
            assert_eq!(refused.problem(422, "invalid")["field"], "run_id");
        }
    }
    assert_eq!(world.api().get(&path).await.expect(200)["seq"], world.log(&thread).await.len());
}

/// The texts of the summaries, oldest first.
async fn summaries(world: &Equipped, thread: &str) -> Vec<String> {
    let items = world.api().list(&format!("/v1/threads/{thread}/items?kind=context_compaction"), 50).await;
    items.iter().map(|item| text(&item["detail"])).collect()
}

#[tokio::test]
async fn a_compaction_leaves_the_model_its_summary_and_what_came_after() {
    let mut world = Equipped::start(&[CAP_ONE]).await;
    let thread = world.api().create(json!({"auto_approve": true})).await;
    let path = format!("/v1/threads/{thread}");
    world.say(&thread, "one").await;
    world.say(&thread, &format!("{}\n@say two", call("demo_append", append("x")))).await;
    let compacted = world.api().post(&format!("{path}/compact"), json!({"reason": "long"})).await.expect(202);
    world.api().rest(&thread).await;
    assert_eq!(world.turn(&thread, &text(&compacted["turn"]["id"])).await["status"], "completed");
    // Two of `one`; of the other the prompt, the call, its result and the answer.
    assert_eq!(summaries(&world, &thread).await, ["summary of 6 messages"]);
    world.evict().await;
    world.say(&thread, "three").await;
    // Queued, it waits its turn like a prompt, before those that come after it.
    let open = world.api().start(&thread, "@ask go on?").await;
    world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    let queued = world.api().post(&format!("{path}/compact"), json!({"delivery": "queue"})).await.expect(202);
    assert_eq!(queued["active_turn"], *open);
    world.api().queue(&thread, "four").await;
    world.crash().await;
    let [question] = <[Value; 1]>::try_from(world.api().list("/v1/questions?status=pending", 50).await).unwrap();
    let at = format!("/v1/questions/{}", text(&question["id"]));
    world.api().post(&at, json!({"answer": "yes"})).await.expect(200);
    world.api().rest(&thread).await;
    // The summary, two of `three`, and prompt, call, result and answer of the question.
    assert_eq!(summaries(&world, &thread).await, ["summary of 6 messages", "summary of 7 messages"]);
    let ran = world.turns(&thread).await;
    assert_eq!(ran.last(), Some(&pair("four", "completed")));
    let kinds = world.api().list(&format!("{path}/turns"), 50).await;
    let kinds: Vec<_> = kinds.iter().map(|turn| text(&turn["kind"])).collect();
    assert_eq!(kinds, ["prompt", "prompt", "compaction", "prompt", "prompt", "compaction", "prompt"]);
    let log = world.log(&thread).await;
    assert_eq!(names(&log).iter().filter(|name| **name == "compaction.completed").count(), 2);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&world.api().snapshot(&thread).await));
}

#[tokio::test]
async fn a_conversation_that_has_grown_is_compacted_before_the_next_model_call() {
    let world = Equipped::start(&[("RADDLE_LIMITS_COMPACT_AT_TOKENS", "1000")]).await;
    let thread = world.api().create(json!({"auto_approve": true})).await;
    let script = format!("@usage 900 200\n{}\n@usage 5 5\n@say went on", call("demo_append", append("x")));
    let turn = world.say(&thread, &script).await;
    assert_eq!(turn["status"], "completed");
    // Within the turn: the script goes on where it was.
    assert_eq!(summaries(&world, &thread).await, ["summary of 3 messages; of the turn so far 1 answers, 0 steers"]);
    assert_eq!(world.items(&thread).await.last().unwrap().2, "went on");
    // Between turns: before the first call of the next one.
    world.say(&thread, "@usage 900 200\n@say big").await;
    assert_eq!(summaries(&world, &thread).await.len(), 1);
    world.say(&thread, "next").await;
    assert_eq!(summaries(&world, &thread).await.len(), 2);
    let log = world.log(&thread).await;
    let started: Vec<_> = log.iter().filter(|event| event["event"] == "compaction.started").collect();
    assert!(started.iter().all(|event| event["payload"]["compaction"]["automatic"] == true), "{started:?}");
    assert_eq!(started[1]["payload"]["compaction"]["tokens_before"], 1_100);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&world.api().snapshot(&thread).await));
    assert_eq!(world.file("file").unwrap(), "x\n");
}

#[tokio::test]
async fn a_checkpoint_restores_what_the_model_saw_there() {
    let mut world = Equipped::with_provider(&[]).await;
    let thread = world.api().create(json!({"auto_approve": true})).await;
    let checkpoints = format!("/v1/threads/{thread}/checkpoints");
    world.answer(appends("x"));
    world.answer(Answer::text("one"));
    world.say(&thread, "first").await;
    world.api().post(&checkpoints, json!({"name": "here"})).await.expect(201);
    world.answer(Answer::text("SUMMARY"));
    world.api().post(&format!("/v1/threads/{thread}/compact"), json!({})).await.expect(202);
    world.api().rest(&thread).await;
    world.answer(Answer::text("two"));
    world.say(&thread, "second").await;
    world.crash().await;
    let restored = world.api().post(&format!("{checkpoints}/here/restore"), json!({})).await.expect(201);
    let restored = text(&restored["id"]);
    world.answer(Answer::text("other"));
    world.say(&restored, "instead").await;
    let shown = world.shown();
    let (saw, sees) = (&shown[1], shown.last().unwrap());
    assert_eq!(sees[..saw.len()], saw[..], "the compaction came after the checkpoint");
    let then = [json!({"role": "assistant", "content": "one"}), json!({"role": "user", "content": "instead"})];
    assert_eq!(sees[saw.len()..], then);
    is_whole(&world, &restored, &thread).await;
}

// ---- everything together -------------------------------------------------------------------------

#[tokio::test]
async fn a_long_day_is_billed_once_for_each_of_its_turns() {
    let mut world = Equipped::start(&[]).await;
    let api = world.api().clone();
    let thread = api.create(json!({"auto_approve": true})).await;
    let path = format!("/v1/threads/{thread}");
    let open = api.start(&thread, "@ask go?\n@usage 10 1\n@say ok").await;
    world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    let mut inputs = Vec::new();
    for prompt in ["q1", "q2", "q3", "q4"] {
        inputs.push(format!("{path}/inbox/{}", api.queue(&thread, prompt).await));
    }
    api.patch(&inputs[3], json!({"position": 0})).await.expect(200);
    api.patch(&inputs[0], json!({"prompt": "@usage 100 10\n@say Q1"})).await.expect(200);
    api.delete(&inputs[1]).await.expect(204);
    let interrupt = format!("{path}/turns/{open}/interrupt");
    api.post(&interrupt, json!({"pause_queue": true})).await.expect(200);
    world.crash().await;
    let api = world.api().clone();
    let paused = api.get(&path).await.expect(200);
    assert_eq!((&paused["queue_paused"], &paused["queued"]), (&json!(true), &json!(3)));
    let waits = api.list(&format!("{path}/inbox"), 50).await;
    let waits: Vec<_> = waits.iter().map(|entry| text(&entry["prompt"])).collect();
    assert_eq!(waits, ["q4", "@usage 100 10\n@say Q1", "q3"]);
    api.patch(&path, json!({"queue_paused": false})).await.expect(200);
    api.rest(&thread).await;
    let said: Vec<_> = world.items(&thread).await.into_iter().filter(|(kind, ..)| kind == "agent_message").collect();
    assert_eq!(said.iter().map(|(.., said)| said.as_str()).collect::<Vec<_>>(), ["echo: q4", "Q1", "echo: q3"]);
    let tool = format!("@usage 20 2\n{}\n@usage 30 3\n@say done", call("demo_append", append("x")));
    world.say(&thread, &tool).await;
    let fork = text(&api.post(&format!("{path}/fork"), json!({})).await.expect(201)["id"]);
    world.say(&fork, "@usage 1000 100\n@say dear").await;
    api.post(&format!("{path}/edit"), json!({"prompt": "@usage 40 4\n@say other"})).await.expect(201);
    api.rest(&thread).await;

    // What was taken out of the conversation was spent all the same; what waited and never ran was not.
    let report = api.get("/v1/usage?group_by=thread").await.expect(200);
    let row = |id: &str| report["data"].as_array().unwrap().iter().find(|row| row["thread_id"] == *id).unwrap();
    let turns = api.list(&format!("{path}/turns"), 50).await;
    let sum = |name: &str| turns.iter().map(|turn| turn["usage"][name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(row(&thread)["turns"], turns.len());
    for name in ["input_tokens", "output_tokens", "model_calls"] {
        assert_eq!(row(&thread)[name], sum(name), "{name}");
    }
    assert_eq!((&row(&fork)["turns"], &row(&fork)["input_tokens"]), (&json!(1), &json!(1_000)));
    assert_eq!(report["totals"]["output_tokens"], sum("output_tokens") + 100);
    let log = world.log(&thread).await;
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&thread).await));
    world.log(&fork).await;
}
