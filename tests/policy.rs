//! What a client is promised about rules: who is heard first, which layers speak, what can be taken back. The demo
//! tools are called, and `.ledger` in their directory says what was really done.

#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use equipped::{Equipped, call};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;

fn append(name: &str, line: &str) -> String {
    call("demo_append", json!({"name": name, "line": line}))
}

async fn put_policy(api: &Api, policy: Value) -> support::Answer {
    api.send(api.request(Method::PUT, "/v1/policy").json(&policy)).await
}

async fn set(world: &Equipped, policy: Value) {
    assert_eq!(put_policy(world.api(), policy.clone()).await.expect(200), policy);
}

/// Status and text of the tool calls of a thread.
async fn calls(world: &Equipped, thread: &str) -> Vec<(String, String)> {
    let items = world.items(thread).await;
    items.into_iter().filter(|(kind, ..)| kind == "tool_call").map(|(_, status, text)| (status, text)).collect()
}

fn asked_and_decided(log: &[Value]) -> Vec<(String, Value)> {
    let of = log.iter().filter(|event| text(&event["event"]).starts_with("approval."));
    of.map(|event| (text(&event["event"]), event["payload"]["approval"].clone())).collect()
}

// ---- denied, asked, allowed ------------------------------------------------------------------------

#[tokio::test]
async fn what_a_rule_denies_is_neither_run_nor_asked_whatever_the_turn_may_do() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({"auto_approve": true, "trust_mode": true})).await;
    set(
        &world,
        json!({"rules": [
            {"name": "anything goes", "tool": "demo_append", "action": "allow"},
            {"name": "no secrets", "path": "**/*.key", "action": "deny", "reason": "keys stay as they are"},
        ]}),
    )
    .await;
    for name in ["a.key", "b.txt"] {
        world.say(&thread, &append(name, "x")).await;
    }
    let refused = "forbidden by the rule `no secrets`: keys stay as they are";
    let expected = [("failed", refused), ("completed", "appended a line to b.txt")];
    assert_eq!(calls(&world, &thread).await, expected.map(|(status, text)| (status.to_owned(), text.to_owned())));
    assert_eq!((world.ledger().len(), world.file("a.key")), (1, None));
    // Reading needs nobody's word, and a rule is heard all the same.
    world.say(&thread, &call("demo_read", json!({"name": "a.key"}))).await;
    assert_eq!(calls(&world, &thread).await[2], ("failed".to_owned(), refused.to_owned()));
    let log = world.log(&thread).await;
    let approvals = asked_and_decided(&log);
    let [(event, approval)] = &approvals[..] else { panic!("{approvals:?}") };
    assert_eq!((event.as_str(), &approval["by"]), ("approval.decided", &json!("policy")));
    assert_eq!(approval["matched_rule"], "anything goes");
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_neither_denied_nor_asked() {
    let world = Equipped::start(&[]).await;
    set(&world, json!({"rules": [{"tool": "demo_append", "action": "ask"}, {"tool": "demo_put", "action": "deny"}]}))
        .await;
    let thread = world.api().create(json!({})).await;
    for tool in ["demo_append", "demo_put"] {
        world.say(&thread, &call(tool, json!({"name": 7}))).await;
    }
    let calls = calls(&world, &thread).await;
    assert!(
        calls.iter().all(|(status, text)| status == "failed" && text.starts_with("invalid arguments: ")),
        "{calls:?}"
    );
    assert_eq!(asked_and_decided(&world.log(&thread).await), []);
}

#[tokio::test]
async fn what_a_rule_asks_is_asked_although_the_turn_approves_by_itself_and_for_ever_is_no_answer() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({"auto_approve": true, "trust_mode": true})).await;
    // Approved for ever before the rule came.
    let asks = world.api().create(json!({})).await;
    world.api().start(&asks, &append("f", "x")).await;
    let approval = world.approval(&asks).await;
    world.decide(&approval, "approved_always").await;
    world.api().rest(&asks).await;
    world.say(&asks, &append("f", "x")).await;
    assert_eq!(world.ledger().len(), 2);
    set(&world, json!({"rules": [{"name": "look", "tool": "demo_append", "action": "ask", "reason": "of note"}]}))
        .await;
    for thread in [&thread, &asks] {
        world.api().start(thread, &append("f", "x")).await;
        let approval = world.approval(thread).await;
        assert_eq!(approval["matched_rule"], "look");
        assert_eq!(approval["reason"], "it appends a line to the file `f`; of note");
        assert_eq!(approval["available_decisions"], json!(["approved", "denied", "abort"]));
        assert_eq!(approval.get("amendment"), None);
        let path = format!("/v1/approvals/{}", text(&approval["id"]));
        world.api().post(&path, json!({"decision": "approved_always"})).await.problem(422, "invalid");
        world.decide(&approval, "approved").await;
        world.api().rest(thread).await;
    }
    assert_eq!(world.ledger().len(), 4);
}

#[tokio::test]
async fn never_denies_what_would_be_asked_and_runs_what_is_allowed() {
    let world = Equipped::start(&[]).await;
    set(
        &world,
        json!({"ask": "never", "rules": [{"name": "logs", "tool": "demo_append", "path": "log-*", "action": "allow"}]}),
    )
    .await;
    let thread = world.api().create(json!({"auto_approve": true, "trust_mode": true})).await;
    for name in ["log-1", "other"] {
        world.say(&thread, &append(name, "x")).await;
    }
    world.say(&thread, &call("demo_read", json!({"name": "log-1"}))).await;
    let found = calls(&world, &thread).await;
    assert_eq!(found[0], ("completed".to_owned(), "appended a line to log-1".to_owned()));
    assert!(found[1].0 == "failed" && found[1].1.starts_with("forbidden by the rule `ask = never`: "), "{found:?}");
    assert_eq!(found[2].0, "completed");
    assert_eq!(world.file("other"), None);
    assert!(!names(&world.log(&thread).await).contains(&"approval.required"));
}

#[tokio::test]
async fn on_request_asks_although_everything_was_allowed_and_on_failure_asks_only_for_full_access() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({"auto_approve": true, "trust_mode": true})).await;
    set(&world, json!({"ask": "on_request", "rules": [{"tool": "demo_append", "action": "allow"}]})).await;
    world.api().start(&thread, &append("f", "x")).await;
    let approval = world.approval(&thread).await;
    world.decide(&approval, "denied").await;
    world.api().rest(&thread).await;
    assert_eq!(world.ledger(), []);
    set(&world, json!({"ask": "on_failure"})).await;
    let careful = world.api().create(json!({})).await;
    world.say(&careful, &append("f", "x")).await;
    assert_eq!(world.file("f").unwrap(), "x\n");
    let approvals = asked_and_decided(&world.log(&careful).await);
    assert_eq!((approvals.len(), &approvals[0].1["matched_rule"]), (1, &json!("ask = on_failure")));
    world.api().start(&careful, &call("demo_wipe", json!({"name": "f"}))).await;
    assert_eq!(world.approval(&careful).await["tool"], "demo_wipe");
}

// ---- layers --------------------------------------------------------------------------------------

#[tokio::test]
async fn the_strictest_of_installation_tenant_and_thread_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let rules = "[[rules]]\nname = \"of the house\"\npath = \"house-*\"\naction = \"deny\"\nmatch = [\"house-1\"]\n";
    std::fs::write(&file, rules).unwrap();
    let world = Equipped::start(&[("RADDLE_POLICY_FILE", file.to_str().unwrap())]).await;
    set(
        &world,
        json!({"rules": [{"name": "of the tenant", "path": "tenant-*", "action": "deny"},
        {"name": "all", "tool": "demo_append", "action": "allow"}]}),
    )
    .await;
    let own = json!({"rules": [{"name": "of the thread", "path": "thread-*", "action": "deny"},
        {"name": "mine", "path": "**", "action": "allow"}]});
    let thread = world.api().create(json!({"policy": own})).await;
    for (name, rule) in [("house-1", "of the house"), ("tenant-1", "of the tenant"), ("thread-1", "of the thread")] {
        world.say(&thread, &append(name, "x")).await;
        let (status, text) = calls(&world, &thread).await.pop().unwrap();
        assert!(status == "failed" && text.contains(&format!("`{rule}`")), "{text}");
    }
    world.say(&thread, &append("free", "x")).await;
    assert_eq!(world.ledger().len(), 1);
    // Another thread has no such rule, and a thread may drop its own.
    let other = world.api().create(json!({})).await;
    world.say(&other, &append("thread-1", "x")).await;
    world.api().patch(&format!("/v1/threads/{thread}"), json!({"policy": null})).await.expect(200);
    world.say(&thread, &append("thread-1", "x")).await;
    assert_eq!(world.ledger().len(), 3);
}

#[tokio::test]
async fn hosts_are_looked_at_like_paths() {
    let world = Equipped::start(&[]).await;
    set(&world, json!({"ask": "never", "rules": [{"host": "*.example.com", "action": "allow"}]})).await;
    let thread = world.api().create(json!({})).await;
    for to in ["a@mail.EXAMPLE.com", "a@example.com", "a@mail.example.com.evil.org", "nowhere"] {
        world.say(&thread, &call("demo_send", json!({"to": to, "text": "x"}))).await;
    }
    let statuses: Vec<_> = calls(&world, &thread).await.into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, ["completed", "failed", "failed", "failed"]);
}

#[tokio::test]
async fn a_call_beside_an_allowed_one_is_judged_by_itself() {
    let world = Equipped::start(&[]).await;
    set(&world, json!({"rules": [{"path": "free", "action": "allow"}, {"tool": "demo_wipe", "action": "deny"}]})).await;
    let thread = world.api().create(json!({})).await;
    let also = |tool: &str, arguments: Value| call(tool, arguments).replacen("@tool", "@also", 1);
    let script = [
        append("free", "x"),
        also("demo_append", json!({"name": "bound", "line": "x"})),
        also("demo_wipe", json!({"name": "free"})),
        append("bound", "y"),
    ];
    world.api().start(&thread, &script.join("\n")).await;
    let approval = world.approval(&thread).await;
    assert_eq!(approval["arguments"]["name"], "bound");
    world.decide(&approval, "approved").await;
    // What was approved is that call, not the next one with other arguments.
    let next = world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    assert_eq!(next["pending_approvals"], 1);
    let second = world.approval(&thread).await;
    assert_eq!((&second["arguments"]["line"], second["id"] == approval["id"]), (&json!("y"), false));
    let again =
        world.api().post(&format!("/v1/approvals/{}", text(&approval["id"])), json!({"decision": "approved"})).await;
    again.problem(409, "already-decided");
    world.decide(&second, "denied").await;
    world.api().rest(&thread).await;
    assert_eq!((world.file("free").unwrap(), world.file("bound").unwrap()), ("x\n".into(), "x\n".into()));
}

// ---- approved for ever ---------------------------------------------------------------------------

#[tokio::test]
async fn what_was_approved_for_ever_is_listed_and_can_be_taken_back() {
    let mut world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({})).await;
    let permits = async |world: &Equipped| world.api().get("/v1/policy/permits").await.expect(200)["data"].clone();
    assert_eq!(permits(&world).await, json!([]));
    for line in ["x", "y"] {
        world.api().start(&thread, &append("f", line)).await;
        let approval = world.approval(&thread).await;
        world.decide(&approval, "approved_always").await;
        world.api().rest(&thread).await;
    }
    world.crash().await;
    world.say(&thread, &append("f", "x")).await;
    let listed = permits(&world).await;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let log = world.log(&thread).await;
    let (_, decided) = asked_and_decided(&log).pop().unwrap();
    let rule = text(&decided["matched_rule"]);
    let named = listed.as_array().unwrap().iter().find(|permit| permit["rule"] == *rule).unwrap();
    assert_eq!((&named["tool"], &named["arguments_sha256"]), (&json!("demo_append"), &decided["arguments_sha256"]));
    let path = format!("/v1/policy/permits/{rule}");
    let revoke = async || world.api().send(world.api().request(Method::DELETE, &path)).await;
    assert_eq!(revoke().await.status, 204);
    revoke().await.problem(404, "not-found");
    assert_eq!(permits(&world).await.as_array().unwrap().len(), 1);
    // The other one holds, this one is asked again.
    world.say(&thread, &append("f", "y")).await;
    world.api().start(&thread, &append("f", "x")).await;
    assert_eq!(world.approval(&thread).await["arguments"]["line"], "x");
}

#[tokio::test]
async fn an_approval_for_ever_of_a_host_covers_that_host() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({})).await;
    let send = |to: &str, text: &str| call("demo_send", json!({"to": to, "text": text}));
    world.api().start(&thread, &send("a@b.org", "one")).await;
    let approval = world.approval(&thread).await;
    assert_eq!(approval["amendment"], json!({"tool": "demo_send", "host": "b.org"}));
    world.decide(&approval, "approved_for_session").await;
    world.api().rest(&thread).await;
    world.say(&thread, &send("c@b.org", "two")).await;
    assert_eq!(world.ledger().len(), 2);
    world.api().start(&thread, &send("a@evil.org", "three")).await;
    world.approval(&thread).await;
}

// ---- rules that cannot be taken --------------------------------------------------------------------

#[tokio::test]
async fn a_layer_whose_rules_break_their_examples_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let kept = json!({"ask": "untrusted", "rules": [{"name": "a", "tool": "t", "action": "deny"}]});
    put_policy(api, kept.clone()).await.expect(200);
    let broken =
        json!({"name": "pushes", "command": ["git", "push"], "action": "deny", "match": ["git push", "git pull"]});
    let refused =
        put_policy(api, json!({"rules": [{"tool": "t", "action": "deny"}, broken]})).await.problem(422, "invalid");
    assert_eq!((&refused["field"], &refused["rule"]), (&json!("rules[1].match"), &json!("pushes")));
    assert_eq!(refused["example"], "git pull");
    for (policy, field) in [
        (json!({"rules": [{"action": "deny"}]}), "rules[0].tool"),
        (json!({"rules": [{"path": "[", "action": "deny"}]}), "rules[0].path"),
        (json!({"rules": [{"command": ["sudo"], "action": "allow"}]}), "rules[0].command"),
        (json!({"ask": "sometimes"}), "ask"),
    ] {
        assert_eq!(put_policy(api, policy).await.problem(422, "invalid")["field"], field);
    }
    put_policy(api, json!({"rule": []})).await.problem(422, "unknown-field");
    assert_eq!(api.get("/v1/policy").await.expect(200), kept);
    // The same for a thread's own layer.
    let bad = json!({"policy": {"rules": [{"name": "x", "host": "a", "action": "deny", "not_match": ["A."]}]}});
    let refused = api.post("/v1/threads", bad.clone()).await.problem(422, "invalid");
    assert_eq!((&refused["field"], &refused["example"]), (&json!("policy.rules[0].not_match"), &json!("A.")));
    let thread = api.create(json!({})).await;
    let path = format!("/v1/threads/{thread}");
    api.send(api.request(Method::PATCH, &path).json(&bad)).await.problem(422, "invalid");
    assert_eq!(api.get(&path).await.expect(200).get("policy"), None);
}

#[tokio::test]
async fn a_file_whose_rules_break_their_examples_keeps_the_server_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    std::fs::write(
        &file,
        "\n[[rules]]\nname = \"looks\"\ncommand = [\"ls\"]\naction = \"allow\"\nmatch = [\"ls > x\"]\n",
    )
    .unwrap();
    let launched = Server::launch(&dir.path().join("data"), &[("RADDLE_POLICY_FILE", file.to_str().unwrap())]).await;
    let Err(not) = launched else { panic!("it started") };
    assert!(
        not.said.contains("line 2: the rule `looks`: it does not cover its `match` example `ls > x`"),
        "{}",
        not.said
    );
}

// ---- what would be decided -------------------------------------------------------------------------

#[tokio::test]
async fn a_check_says_what_would_be_decided_and_does_nothing() {
    let world = Equipped::start(&[]).await;
    let api = world.api();
    set(
        &world,
        json!({"rules": [
            {"name": "looks", "command": [["ls", "wc"]], "action": "allow"},
            {"name": "no pushes", "command": ["git", "push"], "action": "deny", "reason": "reviewed first"},
            {"name": "keys", "path": "*.key", "action": "deny"},
        ]}),
    )
    .await;
    let check = async |body: Value| api.post("/v1/policy/check", body).await;
    for (command, decision, rule) in [
        ("ls -l | wc -l", "allow", json!("looks")),
        ("ls && sudo git -C x push", "deny", json!("no pushes")),
        ("ls > x", "ask", json!(null)),
        ("rm -rf /", "deny", json!("built-in: removes everything")),
    ] {
        let found = check(json!({"command": command})).await.expect(200);
        assert_eq!((&found["decision"], &found["rule"]), (&json!(decision), &rule), "{found}");
    }
    let found = check(json!({"command": "ls && git push"})).await.expect(200);
    let steps: Vec<_> =
        found["steps"].as_array().unwrap().iter().map(|step| (text(&step["part"]), text(&step["rule"]))).collect();
    assert_eq!(steps, [("ls".into(), "looks".into()), ("git push".into(), "no pushes".into())]);
    assert_eq!((&found["layer"], &found["reason"]), (&json!("tenant"), &json!("reviewed first")));
    let found = check(json!({"tool": "demo_put", "arguments": {"name": "a.key", "text": ""}})).await.expect(200);
    assert_eq!((&found["decision"], &found["rule"]), (&json!("deny"), &json!("keys")));
    let thread = api.create(json!({"policy": {"ask": "never"}})).await;
    let found = check(json!({"command": "cargo test", "thread_id": thread})).await.expect(200);
    assert_eq!((&found["decision"], &found["ask"]), (&json!("deny"), &json!("never")));
    for (body, field) in [
        (json!({}), "command"),
        (json!({"command": "ls", "arguments": {}}), "arguments"),
        (json!({"tool": "nothing"}), "tool"),
        (json!({"tool": "demo_put", "arguments": {"name": 7}}), "arguments"),
    ] {
        assert_eq!(check(body).await.problem(422, "invalid")["field"], field);
    }
    let nobody = json!({"command": "ls", "thread_id": "thr_01905d3c-7e57-7abc-8def-0123456789ab"});
    check(nobody).await.problem(404, "not-found");
    assert_eq!(world.ledger(), []);
}

#[tokio::test]
async fn the_command_line_checks_with_and_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    std::fs::write(
        &file,
        "[[rules]]\nname = \"looks\"\ncommand = [\"ls\"]\naction = \"allow\"\nmatch = [\"ls -l\"]\n\
         [[rules]]\nname = \"no pushes\"\ncommand = [\"git\", \"push\"]\naction = \"deny\"\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let offline = |args: &[&str]| run(raddle().arg("policy").args(args).env("RADDLE_SERVER", "http://127.0.0.1:1"), "");
    for (command, code, first) in [
        ("ls -l", 0, "allow by `looks` (installation): every part of it is allowed"),
        ("ls $x", 5, "ask: only a shell can say what it does: its words depend on what they expand to"),
        ("echo $(git push)", 6, "deny by `no pushes` (installation): a rule denies it"),
    ] {
        let said = offline(&["check", command, "--file", file]);
        assert_eq!((said.code, said.out.lines().next()), (Some(code), Some(first)), "{said:?}");
    }
    let said = offline(&["check", "ls; git push", "--file", file, "--json"]);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, &found["decision"], &found["rule"]), (Some(6), &json!("deny"), &json!("no pushes")));
    assert_eq!(offline(&["test", file]).out, "2 rules keep to 1 examples\n");
    std::fs::write(
        dir.path().join("bad.toml"),
        "[[rules]]\nname = \"x\"\nhost = \"a\"\naction = \"deny\"\nmatch = [\"b\"]",
    )
    .unwrap();
    let said = offline(&["test", dir.path().join("bad.toml").to_str().unwrap()]);
    assert!(said.code == Some(1) && said.said.contains("line 1: the rule `x`"), "{said:?}");
    assert_eq!(offline(&["check", "ls"]).code, Some(4));

    let world = Equipped::start(&[("RADDLE_POLICY_FILE", file)]).await;
    let online = |args: &[&str]| run(raddle().arg("policy").args(args).env("RADDLE_SERVER", &world.server.url), "");
    assert_eq!((online(&["check", "ls"]).code, online(&["check", "git push"]).code), (Some(0), Some(6)));
    let thread = world.api().create(json!({"policy": {"ask": "on_request"}})).await;
    let said = online(&["check", "ls", "--thread", &thread]);
    assert!(said.code == Some(5) && said.out.contains("a person has to agree"), "{said:?}");
    set(&world, json!({"ask": "untrusted", "rules": [{"tool": "demo_put", "action": "ask"}]})).await;
    let said = online(&["show"]);
    assert_eq!(said.out, "ask = untrusted\nask    {\"tool\":\"demo_put\",\"action\":\"ask\"}\n");
    let asks = world.api().create(json!({})).await;
    world.api().start(&asks, &append("f", "x")).await;
    let approval = world.approval(&asks).await;
    world.decide(&approval, "approved_always").await;
    world.api().rest(&asks).await;
    let listed = online(&["permits"]).out;
    let rule = listed.split(' ').next().unwrap();
    assert!(listed.contains("demo_append  exactly "), "{listed}");
    assert_eq!(online(&["permits", "rm", rule]).code, Some(0));
    assert_eq!((online(&["permits"]).out.as_str(), online(&["permits", "rm", rule]).code), ("", Some(3)));
}
