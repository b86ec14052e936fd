//! What a client is promised about the tools of MCP servers: they come and go without costing anybody else anything,
//! a call that was cut off is never told as failed or done, and what a server was given to log in with is seen by
//! nobody but it.

#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/mcp.rs"]
mod mcp;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use equipped::{Equipped, call, item, pair};
use mcp::*;
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

/// A server with these MCP servers.
struct World {
    world: Equipped,
    _file: tempfile::TempDir,
}

impl World {
    async fn with(servers: Value, env: &[(&str, &str)]) -> Self {
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("mcp.json");
        std::fs::write(&path, json!({ "mcpServers": servers }).to_string()).unwrap();
        let env = [&[("RADDLE_MCP_FILE", path.to_str().unwrap())], env].concat();
        Self { world: Equipped::start(&env).await, _file: file }
    }

    async fn one(server: Value) -> Self {
        Self::with(json!({ "s": server }), &[]).await
    }

    fn api(&self) -> &Api {
        self.world.api()
    }

    async fn watch(&self) -> Stream {
        Stream::open(self.api().request(Method::GET, "/v1/mcp")).await
    }

    /// A server, once it is so.
    async fn until(&self, server: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut stream = self.watch().await;
        loop {
            let state = stream.next().await.expect("the stream goes on").json();
            if state["server"] == server && is(&state) {
                return state;
            }
        }
    }

    async fn ready(&self, server: &str) -> Value {
        self.until(server, |state| state["status"] == "ready").await
    }

    /// Starts a turn that calls the tool, and agrees.
    async fn call(&self, thread: &str, tool: &str, arguments: Value) {
        self.api().start(thread, &call(tool, arguments)).await;
        let approval = self.world.approval(thread).await;
        self.world.decide(&approval, "approved").await;
    }

    /// The end of such a call.
    async fn called(&self, tool: &str, arguments: Value) -> (String, String, String) {
        let thread = self.api().create(json!({})).await;
        self.call(&thread, tool, arguments).await;
        self.api().rest(&thread).await;
        self.world.items(&thread).await.into_iter().find(|item| item.0 == "tool_call").expect("a call")
    }

    /// The process of a server: our child is its guard.
    fn process(&self) -> u32 {
        let guards = children(self.world.server.pid());
        let servers: Vec<u32> = guards.iter().flat_map(|guard| children(*guard)).collect();
        let [server] = servers[..] else { panic!("not one server: {servers:?}") };
        server
    }
}

fn left_out(state: &Value) -> Vec<(String, String)> {
    let tools = state["tools"].as_array().unwrap().iter();
    tools
        .filter(|tool| !tool["left_out"].is_null())
        .map(|tool| (text(&tool["tool"]), text(&tool["left_out"])))
        .collect()
}

fn offered(state: &Value) -> Vec<String> {
    state["tools"].as_array().unwrap().iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect()
}

async fn gone(process: u32) {
    let gone = async {
        while is_alive(process) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LOST, gone).await.expect("a process outlives what started it");
}

// ---- a server as they are ------------------------------------------------------------------------

#[tokio::test]
async fn the_tools_of_a_server_are_listed_and_called_and_its_secrets_are_seen_nowhere() {
    const SECRET: &str = "planted-secret-0123456789";
    let mut server = everything_server();
    server["env"] = json!({"PLANTED": "${PLANTED_OUTSIDE}", "ALSO": format!("Bearer {SECRET}-too")});
    server["disabled_tools"] = json!(["get-tiny-image"]);
    let servers = json!({
        "everything": server, "off": {"command": "unused", "disabled": true},
        "gone": {"command": "/nowhere/at/all", "args": ["${PLANTED_OUTSIDE}"]},
    });
    let world = World::with(servers, &[("PLANTED_OUTSIDE", SECRET), ("RADDLE_LOG", "trace")]).await;

    let mut stream = world.watch().await;
    let summary = loop {
        let frame = stream.next().await.unwrap();
        assert!(frame.cursor.is_none(), "what is not stored has no cursor");
        if frame.event == "mcp.startup_complete" {
            break frame.json();
        }
        assert_eq!(frame.event, "mcp.server");
    };
    assert_eq!((&summary["ready"], &summary["cancelled"]), (&json!(["everything"]), &json!(["off"])));
    assert_eq!(summary["failed"], json!([{"server": "gone", "error": summary["failed"][0]["error"]}]));
    assert!(text(&summary["failed"][0]["error"]).contains("its command cannot be run"), "{summary}");
    let found = world.api().get("/v1/mcp").await.expect(200);
    assert_eq!(found["summary"], summary);
    let state = found["data"].as_array().unwrap().iter().find(|state| state["server"] == "everything").unwrap();
    let echo = json!({"name": "everything__echo", "tool": "echo", "class": "once"});
    assert!(state["tools"].as_array().unwrap().contains(&echo), "{state}");
    assert_eq!(
        (&state["status"], &state["transport"], &state["restarts"]),
        (&json!("ready"), &json!("stdio"), &json!(0))
    );
    let disabled = ("get-tiny-image".to_owned(), "it is disabled by the configuration".to_owned());
    assert_eq!(left_out(state), [disabled]);

    let said = world.called("everything__echo", json!({"message": "hi"})).await;
    assert_eq!(said, item("tool_call", "completed", "Echo: hi"));
    let wrong = world.api().create(json!({})).await;
    world.world.say(&wrong, &call("everything__echo", json!({"message": 7}))).await;
    assert!(world.world.items(&wrong).await[1].2.contains("at `/message`"));
    // The server is asked for its environment, and says all of it.
    let (_, status, environment) = world.called("everything__get-env", json!({})).await;
    assert!(status == "completed" && environment.contains("\"PLANTED\": \"[hidden]\""), "{environment}");
    assert!(!environment.contains("RADDLE_LOG"), "it has its own environment, not ours: {environment}");

    let metrics = String::from_utf8(world.api().get("/metrics").await.body).unwrap();
    for line in ["raddle_mcp_servers{status=\"ready\"} 1", "raddle_mcp_servers{status=\"cancelled\"} 1"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let events = world.api().get("/v1/events?limit=500").await.expect(200);
    let threads = world.api().list("/v1/threads", 50).await;
    let mut seen = vec![metrics, events.to_string(), found.to_string(), world.world.server.said()];
    for thread in &threads {
        seen.push(json!(world.world.log(thread["id"].as_str().unwrap()).await).to_string());
    }
    for text in seen {
        assert!(!text.contains(SECRET), "{text}");
    }
    let cli = raddle().args(["mcp", "--server", &world.api().url]).output().unwrap();
    let shown = String::from_utf8(cli.stdout).unwrap();
    assert!(shown.contains("everything  ready  (stdio)\n") && shown.contains("  everything__echo  once\n"), "{shown}");
}

#[tokio::test]
async fn a_call_whose_server_is_killed_is_uncertain_and_the_server_comes_back() {
    let world = World::one(everything_server()).await;
    world.ready("s").await;
    let thread = world.api().create(json!({})).await;
    let forever = json!({"duration": 6000, "steps": 60_000});
    world.call(&thread, "s__trigger-long-running-operation", forever).await;
    // Its progress is said while it runs.
    let mut stream = world.api().stream(&thread, 0).await;
    while !stream.next().await.unwrap().data.contains("1/60000") {}
    kill(world.process());
    world.world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    let effects = world.api().list(&format!("/v1/effects?status=uncertain&thread={thread}"), 50).await;
    let [effect] = &effects[..] else { panic!("{effects:?}") };
    assert!(effect.to_string().contains("did not answer"), "{effect}");
    let path = format!("/v1/effects/{}", text(&effect["operation_id"]));
    world.api().post(&path, json!({"resolution": "settle", "output": "seen to"})).await.expect(200);
    world.api().rest(&thread).await;

    let back = world.until("s", |state| state["status"] == "ready" && state["restarts"] == 1).await;
    assert!(offered(&back).contains(&"s__echo".to_owned()));
    let said = world.called("s__echo", json!({"message": "again"})).await;
    assert_eq!(said, item("tool_call", "completed", "Echo: again"));
    assert_eq!(world.world.metric("raddle_mcp_restarts_total").await, 1);
}

#[tokio::test]
async fn a_call_that_only_reads_fails_when_its_server_is_killed_and_nobody_is_asked() {
    let mut server = everything_server();
    // By its own hint it only reads.
    server["trust_hints"] = json!(true);
    let world = World::one(server).await;
    world.ready("s").await;
    let thread = world.api().create(json!({})).await;
    let forever = call("s__trigger-long-running-operation", json!({"duration": 6000, "steps": 60_000}));
    let turn = world.api().start(&thread, &forever).await;
    let mut stream = world.api().stream(&thread, 0).await;
    while !stream.next().await.unwrap().data.contains("1/60000") {}
    kill(world.process());
    assert_eq!(world.api().wait(&thread, &turn).await["status"], "completed");
    let (_, status, why) = world.world.items(&thread).await.swap_remove(1);
    assert!(status == "failed" && why.contains("the MCP server `s` was called and did not answer"), "{why}");
}

#[tokio::test]
async fn a_call_that_was_approved_before_a_kill_waits_for_its_server_to_start() {
    let mut world = World::one(everything_server()).await;
    world.ready("s").await;
    let thread = world.api().create(json!({})).await;
    world.api().start(&thread, &call("s__echo", json!({"message": "later"}))).await;
    let approval = world.world.approval(&thread).await;
    let before = world.process();
    world.world.crash().await;
    gone(before).await;
    // At once: the server cannot be ready yet, and it need not be.
    world.world.decide(&approval, "approved").await;
    world.api().rest(&thread).await;
    assert_eq!(world.world.items(&thread).await[1], item("tool_call", "completed", "Echo: later"));
    assert_eq!(world.world.turns(&thread).await.len(), 1);
}

#[tokio::test]
async fn a_server_over_http_is_called_and_its_calls_fail_clearly_while_it_is_away() {
    const SECRET: &str = "header-secret-0123456789";
    let http = HttpServer::start();
    let server = json!({"type": "http", "url": http.url(), "headers": {"Authorization": format!("Bearer {SECRET}")}});
    let world = World::with(json!({ "s": server }), &[("RADDLE_LOG", "trace")]).await;
    world.ready("s").await;
    let said = world.called("s__echo", json!({"message": "over http"})).await;
    assert_eq!(said, item("tool_call", "completed", "Echo: over http"));

    let cut_off = world.api().create(json!({})).await;
    let forever = json!({"duration": 6000, "steps": 60_000});
    world.call(&cut_off, "s__trigger-long-running-operation", forever).await;
    let mut stream = world.api().stream(&cut_off, 0).await;
    while !stream.next().await.unwrap().data.contains("1/60000") {}
    let port = http.kill();
    world.world.stands(&cut_off, |thread| thread["status"] == "awaiting_approval").await;
    let uncertain = world.api().list(&format!("/v1/effects?status=uncertain&thread={cut_off}"), 50).await;
    assert_eq!(uncertain.len(), 1);
    let (_, status, why) = world.called("s__echo", json!({"message": "into the void"})).await;
    assert_eq!(status, "failed");
    assert!(why.starts_with("the MCP server `s` is not running: ") && why.ends_with("it is being restarted"), "{why}");
    let http = HttpServer::on(port);
    world.until("s", |state| state["status"] == "ready" && state["restarts"].as_u64() > Some(0)).await;
    let said = world.called("s__echo", json!({"message": "back"})).await;
    assert_eq!(said, item("tool_call", "completed", "Echo: back"));
    drop(http);
    let seen = [world.world.server.said(), world.api().get("/v1/mcp").await.expect(200).to_string()];
    assert!(seen.iter().all(|text| !text.contains(SECRET)), "{seen:?}");
}

// ---- a server as they should not be --------------------------------------------------------------

#[tokio::test]
async fn a_hostile_server_costs_nobody_else_anything() {
    let modes = ["schemas", "abyss", "pages", "flood", "noisy", "dies"];
    let mut servers: serde_json::Map<String, Value> =
        modes.iter().map(|mode| ((*mode).to_owned(), hostile_server(mode))).collect();
    servers.insert("good".into(), hostile_server("good"));
    let world = World::with(Value::Object(servers), &[]).await;
    for well in ["good", "flood", "noisy"] {
        world.ready(well).await;
        let said = world.called(&format!("{well}__act"), json!({})).await;
        assert_eq!(said, item("tool_call", "completed", "done"), "{well}");
    }
    let schemas = world.ready("schemas").await;
    assert_eq!(offered(&schemas), ["schemas__good", "schemas__a_b", "schemas__fine"]);
    let reasons = [
        pair("giant", "its schema is larger than 65536 bytes"),
        pair("deep", "its schema nests deeper than 32 levels"),
        pair("elsewhere", "its schema refers to something outside of itself"),
        pair("a/b", "its name would be `schemas__a_b`, as that of `a.b`"),
        pair("bare", "it has no schema"),
    ];
    assert_eq!(left_out(&schemas), reasons);
    for (bad, why) in [
        ("abyss", "it sent a message that nests deeper than 100 levels"),
        ("pages", "its list of tools has more than 100 pages"),
        ("dies", "it ended with exit code 3"),
    ] {
        let failed = world.until(bad, |state| state["status"] == "failed").await;
        assert!(text(&failed["error"]).contains(why), "{failed}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_the_connection_and_not_us() {
    let world = World::one(hostile_server("large")).await;
    world.ready("s").await;
    let thread = world.api().create(json!({})).await;
    world.call(&thread, "s__act", json!({})).await;
    world.world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    let effects = world.api().list(&format!("/v1/effects?status=uncertain&thread={thread}"), 50).await;
    assert!(effects[0].to_string().contains("it sent a message of more than 4194304 bytes"), "{effects:?}");
    world.until("s", |state| state["status"] == "ready" && state["restarts"] == 1).await;
}

#[tokio::test]
async fn a_server_that_never_answers_delays_nobody_and_is_given_up() {
    let servers = json!({"s": hostile_server("silent")});
    let world = World::with(servers, &[("RADDLE_MCP_STARTUP_TIMEOUT_MS", "300")]).await;
    assert_eq!(world.api().get("/readyz").await.status, 200);
    let failed = world.until("s", |state| state["status"] == "failed").await;
    assert_eq!(failed["error"], "it was not ready within 300 ms");
    world.until("s", |state| state["restarts"] == 1).await;
    // What is not offered is not known, and a model that asks anyway is told so.
    let thread = world.api().create(json!({})).await;
    world.world.say(&thread, &call("s__act", json!({}))).await;
    assert!(world.world.items(&thread).await[1].2.contains("unknown tool"));
}

#[tokio::test]
async fn tools_that_come_while_the_server_runs_are_offered_from_then_on() {
    let world = World::one(hostile_server("changing")).await;
    assert_eq!(offered(&world.ready("s").await), ["s__act"]);
    world.called("s__act", json!({})).await;
    world.until("s", |state| offered(state) == ["s__act", "s__new0"]).await;
    let said = world.called("s__new0", json!({})).await;
    assert_eq!(said, item("tool_call", "completed", "grown"));
}

#[tokio::test]
async fn what_a_server_asks_of_its_client_is_declined() {
    let world = World::one(hostile_server("asking")).await;
    world.ready("s").await;
    let said = world.called("s__act", json!({})).await;
    assert_eq!(said, item("tool_call", "completed", "refused: -32601"));
}

#[tokio::test]
async fn an_interrupt_tells_the_server_that_nobody_waits_any_more() {
    let world = World::with(json!({"s": hostile_server("hanging")}), &[("RADDLE_LOG", "raddle=debug")]).await;
    world.ready("s").await;
    let thread = world.api().create(json!({})).await;
    world.call(&thread, "s__act", json!({})).await;
    let mut stream = world.api().stream(&thread, 0).await;
    while !stream.next().await.unwrap().data.contains("1: hanging") {}
    let turn = text(&world.api().get(&format!("/v1/threads/{thread}")).await.expect(200)["active_turn"]);
    world.api().post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    let heard = async {
        while !world.world.server.said().contains("cancelled true") {
            world.api().get("/healthz").await;
        }
    };
    timeout(LOST, heard).await.expect("the server is not told");
}

#[tokio::test]
async fn nothing_of_a_server_outlives_us_however_we_end() {
    for killed in [true, false] {
        let mut world = World::one(hostile_server("orphans")).await;
        world.ready("s").await;
        let (_, _, ids) = world.called("s__act", json!({})).await;
        let ids: Vec<u32> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
        assert!(ids.len() == 2 && ids.iter().all(|id| is_alive(*id)), "{ids:?}");
        let guards = children(world.world.server.pid());
        match killed {
            true => world.world.server.kill(),
            false => {
                world.world.server.terminate();
                let until = async {
                    while world.world.server.is_up() {
                        tokio::task::yield_now().await
                    }
                };
                timeout(LOST, until).await.expect("the server does not end");
            }
        }
        for id in ids.into_iter().chain(guards) {
            gone(id).await;
        }
    }
}

#[tokio::test]
async fn a_watchers_stream_ends_with_the_server() {
    let world = World::one(hostile_server("good")).await;
    let mut stream = world.watch().await;
    world.world.server.terminate();
    let mut last = None;
    while let Some(frame) = stream.next().await {
        last = Some(frame);
    }
    assert_eq!(last.map(|frame| frame.event).as_deref(), Some("stream.end"));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_with_the_place_and_without_the_value() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mcp.json");
    let refused = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        let env = [("RADDLE_MCP_FILE", file.to_str().unwrap())];
        let refused = Server::launch(&dir.path().join("data"), &env).await;
        refused.err().expect("it does not start").said
    };
    let said = refused(r#"{"mcpServers": {"s": {"command": "x", "env": {"KEY": "${NOT_THERE_AT_ALL}"}}}}"#).await;
    assert!(said.contains("names the variable `NOT_THERE_AT_ALL`, which is not set"), "{said}");
    let said = refused(r#"{"mcpServers": {"s": {"command": "x", "env": {"KEY": {"planted-secret": 1}}}}}"#).await;
    assert!(said.contains("`mcpServers.s.env.KEY` must be a text") && !said.contains("planted-secret"), "{said}");
    let said = refused(r#"{"mcpServers": {"s": {"comand": "x"}}}"#).await;
    assert!(said.contains("mcpServers.s"), "{said}");
}
