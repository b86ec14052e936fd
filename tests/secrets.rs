//! What is secret shows nowhere: in no event, log line, error, metric or reply, whatever fails and whoever asks.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

/// One of each place where a secret can be kept, none of them a part of another.
const PLANTED: [&str; 7] = [
    "planted-openai-key-11aa",
    "planted-anthropic-key-22bb",
    "planted-webhook-key-33cc-33cc-33cc",
    "planted-url-token-44dd",
    "planted-mcp-token-55ee",
    "planted-environment-66ff",
    "planted-file-77gg",
];

#[tokio::test]
async fn what_is_planted_shows_nowhere() {
    let [openai, anthropic, webhook, token, mcp, environment, file] = PLANTED;
    let (data, beside, root) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |name: &str| beside.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("anthropic"), anthropic).unwrap();
    fs::write(path("file"), file).unwrap();
    let servers = json!({"mcpServers": {
        "gone": {"command": "/nonexistent/server", "args": ["--now"], "env": {"TOKEN": mcp}},
        "ends": {"command": "false", "env": {"TOKEN": mcp}},
        "far": {"type": "http", "url": "http://127.0.0.1:9/mcp", "headers": {"authorization": format!("Bearer {mcp}")}},
    }});
    fs::write(path("mcp.json"), servers.to_string()).unwrap();
    let env = [
        ("RADDLE_LOG", "trace"),
        ("RADDLE_SANDBOX_KIND", "auto"),
        ("RADDLE_LIMITS_RETRY_BASE_MS", "1"),
        ("RADDLE_WORKSPACES_ROOT", root.path().to_str().unwrap()),
        ("RADDLE_MODEL_OPENAI_BASE_URL", "http://127.0.0.1:9/v1"),
        ("RADDLE_MODEL_OPENAI_API_KEY", openai),
        ("RADDLE_MODEL_ANTHROPIC_BASE_URL", "http://127.0.0.1:9"),
        ("RADDLE_MODEL_ANTHROPIC_API_KEY_FILE", &path("anthropic")),
        ("RADDLE_EGRESS_ALLOW", "127.0.0.0/8"),
        ("RADDLE_HOOKS_OUT_KIND", "webhook"),
        ("RADDLE_HOOKS_OUT_URL", &format!("http://127.0.0.1:9/{token}")),
        ("RADDLE_HOOKS_OUT_SECRET", webhook),
        ("RADDLE_MCP_FILE", &path("mcp.json")),
        ("AWS_SECRET_ACCESS_KEY", environment),
    ];
    let server = Server::with(data.path(), &env).await;
    let api = &server.api;
    let mut told: Vec<(String, String)> = Vec::new();

    // Providers that fail.
    for model in ["openai/gpt-x", "anthropic/claude-x"] {
        let thread = api.create(json!({"model": model})).await;
        let turn = api.start(&thread, "hello").await;
        let turn = api.wait(&thread, &turn).await;
        assert_eq!(turn["status"], "failed", "{turn}");
    }
    // A command that looks wherever it can.
    let thread = api.create(json!({"allow_shell": true, "auto_approve": true})).await;
    let looks = [
        "env; set; cat /proc/self/environ /proc/$PPID/environ /proc/1/environ".to_owned(),
        format!("cat {} {} {}", path("file"), path("anthropic"), path("mcp.json")),
        format!(
            "ls -R {} | head; grep -r planted {} /proc/*/environ /tmp",
            data.path().display(),
            beside.path().display()
        ),
    ];
    let lines = looks.iter().map(|command| format!("@tool exec_shell {}\n", json!({"command": command})));
    let turn = api.start(&thread, &lines.collect::<String>()).await;
    let turn = timeout(LOST, api.wait(&thread, &turn)).await.expect("the commands end");
    assert_eq!(turn["status"], "completed", "{turn}");
    let ran = api.list(&format!("/v1/threads/{thread}/items?kind=command_execution"), 50).await;
    assert_eq!(ran.len(), looks.len(), "the commands were run: {ran:?}");
    assert!(ran.iter().all(|item| item["status"] == "completed"), "{ran:?}");

    // Whatever can be asked.
    for path in [
        "/metrics",
        "/v1/info",
        "/v1/hooks",
        "/v1/mcp",
        "/v1/policy",
        "/v1/usage",
        "/v1/approvals",
        "/v1/effects",
        "/v1/jobs",
        "/v1/threads",
        "/readyz",
        "/openapi.json",
        "/v1/nonsense",
        "/v1/threads/nonsense",
    ] {
        told.push((path.to_owned(), String::from_utf8_lossy(&api.get(path).await.body).into_owned()));
    }
    for thread in api.list("/v1/threads", 50).await {
        let log = api.log(&text(&thread["id"])).await;
        told.push(("a log".to_owned(), Value::from(log).to_string()));
    }
    let doctor = run(raddle().arg("doctor").env("RADDLE_SERVER", &server.url).envs(env), "");
    told.push(("doctor".to_owned(), doctor.out + &doctor.said));
    told.push(("the server's log".to_owned(), server.said()));
    server.terminate();
    for (place, said) in &told {
        for planted in PLANTED {
            assert!(!said.contains(planted), "{planted} shows in {place}: {said}");
        }
    }
    // They would have been noticed.
    let log = told.iter().find(|(place, _)| place == "a log").unwrap();
    assert!(log.1.contains("model-unreachable") || log.1.contains("exec_shell"), "{}", log.1);
}

#[tokio::test]
async fn a_configuration_that_is_refused_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("RADDLE_MODEL_OPENAI_API_KEY", "planted\u{7}key"),
        ("RADDLE_HOOKS_OUT_SECRET", "planted-key"),
        ("RADDLE_MODEL_OPENAI_BASE_URL", "planted-key://x"),
    ] {
        let env =
            [(name, value), ("RADDLE_HOOKS_OUT_KIND", "webhook"), ("RADDLE_HOOKS_OUT_URL", "gopher://planted-url")];
        let refused = Server::launch(dir.path(), &env).await.err().expect("refused");
        assert!(!refused.said.contains("planted"), "{name}: {}", refused.said);
    }
}

/// What callers send that is theirs alone, in the forms that can be told from other texts.
const SENT: [&str; 9] = [
    "sk-planted-request-0001",
    "planted-bearer-0002",
    "planted-basic-0003",
    "planted-query-0004",
    "planted-user-0005",
    "whsec_planted0006",
    "planted-key-0007",
    "sk-planted-path-0008",
    "eyJwbGFudGVkIjo.planted-token-0009.c2ln",
];

#[tokio::test]
async fn what_callers_send_is_not_logged_however_much_is() {
    let [request, bearer, basic, query, user, signing, key, path, token] = SENT;
    for format in ["text", "json"] {
        let data = tempfile::tempdir().unwrap();
        let server = Server::with(data.path(), &[("RADDLE_LOG", "trace"), ("RADDLE_LOG_FORMAT", format)]).await;
        let api = &server.api;
        let get = |path: String| api.request(reqwest::Method::GET, &path);
        api.send(get("/v1/threads".into()).header("x-request-id", request)).await;
        api.send(get("/v1/info".into()).bearer_auth(format!("rdl_keyid_{key}"))).await;
        api.send(get("/v1/info".into()).header("authorization", format!("Basic {basic}"))).await;
        api.send(get(format!("/v1/threads?access_token={query}&cursor={token}"))).await;
        api.send(get(format!("/v1/threads/{path}"))).await;
        api.post("/v1/threads", json!({"metadata": {"k": signing}, "model": token})).await;
        // What a provider says is logged when a turn fails.
        let thread = api.create(json!({})).await;
        let says = format!("asked http://{user}@h/ with Bearer {bearer}, {signing}, rdl_keyid_{key}");
        let turn = api.start(&thread, &format!("@fail 400 {says}")).await;
        assert_eq!(api.wait(&thread, &turn).await["status"], "failed");
        let said = server.said();
        server.terminate();
        for sent in SENT {
            assert!(!said.contains(sent), "{sent} is in the log: {said}");
        }
        // They would have been.
        assert!(said.contains("a turn failed") && said.contains("rdl_keyid_[hidden]"), "{said}");
        let named = if format == "json" { r#""request_id":"[hidden]""# } else { "request_id=[hidden]" };
        assert!(said.contains(named), "{said}");
    }
}
