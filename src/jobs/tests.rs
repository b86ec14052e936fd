use std::sync::Mutex;

use raddle_domain::{
    id::{JobId, TenantId, ThreadId},
    policy::TenantRules,
    ports::{Saying, Silence, ToolRun, ToolSpec},
    record::EffectClass,
    time::UnixMs,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use uuid::Uuid;

use super::*;
use crate::tools::{Command, Tool, Toolbox};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";

/// A shell that runs nothing, and remembers what it was asked.
#[derive(Default)]
struct FakeShell(Mutex<Vec<Invocation>>);

impl Tool for FakeShell {
    fn spec(&self) -> ToolSpec {
        let schema = json!({
            "type": "object", "required": ["command"], "additionalProperties": false,
            "properties": {"command": {"type": "string"}, "cwd": {"type": "string"}, "timeout_ms": {"type": "integer"}},
        });
        ToolSpec { name: SHELL.into(), description: "runs".into(), schema }
    }
    fn class(&self) -> EffectClass {
        EffectClass::Once
    }
    fn gate(&self) -> Gate {
        Gate::Ask
    }
    fn offered(&self, scene: Scene<'_>) -> bool {
        scene.settings.allow_shell
    }
    fn reason(&self, _: &serde_json::Value) -> String {
        "it runs a command".into()
    }
    fn command(&self, arguments: &serde_json::Value, _: Scene<'_>) -> Option<Command> {
        let line = arguments["command"].as_str()?.to_owned();
        Some(Command { line, cwd: None, words: None })
    }
    fn run(&self, invocation: Invocation, output: Arc<dyn Output>) -> ToolRun {
        let command = invocation.arguments["command"].as_str().unwrap_or_default().to_owned();
        self.0.lock().unwrap().push(invocation);
        Box::pin(async move {
            output.say("working\n".into()).await;
            match command.as_str() {
                "false" => ToolEnd::Failed("exit 1".into()),
                "gone" => ToolEnd::Unknown("the line went dead".into()),
                _ => ToolEnd::Done("done".into()),
            }
        })
    }
}

fn runner(shell: Option<Arc<FakeShell>>) -> Runner {
    let tools = shell.map(|shell| shell as Arc<dyn Tool>);
    let tools = Toolbox::new(tools, false).unwrap();
    let egress = Egress::new(vec!["127.0.0.1".parse().unwrap()]).unwrap();
    Runner::new(Arc::new(tools), egress, secrets(&format!("ci = \"{SECRET}\"").into()).unwrap())
}

fn thread() -> Thread {
    let at = "2026-01-02T03:04:05.678Z";
    serde_json::from_value(json!({
        "id": ThreadId::new(Uuid::from_u128(1)), "title": null, "status": "idle", "engine": "scripted",
        "model": "scripted", "mode": "agent", "system_prompt": null, "workspace": "w", "allow_shell": false,
        "auto_approve": false, "trust_mode": false, "on_restart": "resume", "archived": false, "active_turn": null,
        "queued": 0, "pending_approvals": 0, "created_at": at, "updated_at": at, "seq": 1, "metadata": {},
    }))
    .unwrap()
}

fn run(work: Work) -> JobRun {
    let (tenant, job) = (TenantId::DEFAULT, JobId::new(Uuid::from_u128(7)));
    let rules = TenantRules { policy: Default::default(), permits: Vec::new() };
    JobRun { tenant, job, run: 2, at: UnixMs(1_795_000_000_000), work, thread: Some(thread()), rules }
}

fn hook(url: &str, secret: Option<&str>) -> JobRun {
    run(Work::Webhook(WebhookWork { url: url.into(), body: json!({"a": 1}), secret: secret.map(str::to_owned) }))
}

fn command(text: &str) -> JobRun {
    let thread_id = thread().id;
    run(Work::Command(CommandWork { thread_id, command: text.into(), cwd: None, timeout_ms: Some(5) }))
}

fn field(denied: Result<Option<String>, JobDenied>) -> &'static str {
    match denied {
        Err(JobDenied::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

/// Answers one request with `status`, and returns what it was.
async fn receive(status: u16) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        while !String::from_utf8_lossy(&heard).ends_with("{\"a\":1}") {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "it ends early: {}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&buffer[..read]);
        }
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 5\r\nconnection: close\r\n\r\nheard");
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(heard).unwrap()
    });
    (url, heard)
}

#[tokio::test]
async fn a_webhook_is_posted_signed_and_its_answer_kept() {
    let (url, heard) = receive(200).await;
    let end = runner(None).run(hook(&url, Some("ci")), Arc::new(Silence)).await;
    assert_eq!(end, JobEnd::Done(json!({"status": 200, "body": "heard"})));
    let heard = heard.await.unwrap();
    let header = |name: &'static str| {
        let line = heard.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    };
    assert_eq!(header("webhook-id"), Some(JobId::new(Uuid::from_u128(7)).to_string().as_str()));
    let body = heard.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(Secrets::parse(SECRET).unwrap().verify(header, body.as_bytes(), 1_795_000_000), Ok(()));
}

#[tokio::test]
async fn an_answer_other_than_2xx_is_a_failure_that_is_tried_again() {
    for status in [301, 404, 500] {
        let (url, heard) = receive(status).await;
        let end = runner(None).run(hook(&url, None), Arc::new(Silence)).await;
        assert_eq!(end, JobEnd::Failed { why: format!("it was answered with {status}: heard"), again: true });
        heard.await.unwrap();
    }
    // Nobody listens any more.
    let (url, heard) = receive(200).await;
    heard.abort();
    assert!(heard.await.is_err());
    let end = runner(None).run(hook(&url, None), Arc::new(Silence)).await;
    assert!(matches!(end, JobEnd::Failed { again: true, .. }), "{end:?}");
}

#[tokio::test]
async fn an_address_that_may_not_be_reached_is_refused_when_it_is_named_and_when_it_is_run() {
    let runner = runner(None);
    for url in ["http://169.254.169.254/latest", "http://10.0.0.1/", "http://[::1]/", "ftp://x/", "http://u:p@x/"] {
        assert_eq!(field(runner.judge(&hook(url, None))), "payload.url", "{url}");
        let end = runner.run(hook(url, None), Arc::new(Silence)).await;
        assert!(matches!(end, JobEnd::Failed { again: false, .. }), "{url}: {end:?}");
    }
    assert_eq!(runner.judge(&hook("http://127.0.0.1:7/", None)), Ok(None));
}

#[tokio::test]
async fn a_secret_is_named_and_never_given() {
    let runner = runner(None);
    assert_eq!(runner.judge(&hook("http://127.0.0.1:7/", Some("ci"))), Ok(None));
    assert_eq!(field(runner.judge(&hook("http://127.0.0.1:7/", Some(SECRET)))), "payload.secret");
    let end = runner.run(hook("http://127.0.0.1:7/", Some("gone")), Arc::new(Silence)).await;
    assert!(matches!(end, JobEnd::Failed { again: false, .. }));
    for bad in ["ci = 7", "ci", "ci = \"short\"", "ci = \"whsec_!\""] {
        let why = secrets(&bad.to_owned().into()).unwrap_err().to_string();
        assert!(!why.contains("short\"") && !why.contains('!'), "{why}");
    }
}

/// Remembers what was said.
#[derive(Default)]
struct Heard(Mutex<String>);

impl Output for Heard {
    fn say(&self, text: String) -> Saying<'_> {
        self.0.lock().unwrap().push_str(&text);
        Box::pin(async {})
    }
}

#[tokio::test]
async fn a_command_is_run_by_the_shell_in_the_threads_workspace() {
    let shell = Arc::new(FakeShell::default());
    let runner = runner(Some(shell.clone()));
    // The thread's models may not use the shell; its owner may.
    let note = runner.judge(&command("make")).unwrap().unwrap();
    assert!(note.contains("it runs a command"), "{note}");
    let heard = Arc::new(Heard::default());
    let ends = [
        ("make", JobEnd::Done(json!("done"))),
        ("false", JobEnd::Failed { why: "exit 1".into(), again: true }),
        ("gone", JobEnd::Unknown("the line went dead".into())),
    ];
    for (text, end) in ends {
        assert_eq!(runner.run(command(text), heard.clone()).await, end);
    }
    assert_eq!(*heard.0.lock().unwrap(), "working\n".repeat(3));
    let asked = shell.0.lock().unwrap();
    assert_eq!(asked[0].operation, OperationId::new(Uuid::from_u128(7)));
    assert_eq!((asked[0].attempt, asked[0].workspace.as_deref()), (2, Some("w")));
    assert_eq!(asked[0].arguments, json!({"command": "make", "timeout_ms": 5}));
}

#[test]
fn a_command_that_did_not_succeed_has_failed() {
    for (output, done) in [
        ("[exit 0]", true),
        ("it says [exit 7]\n[exit 0]", true),
        ("done", true),
        ("no\n[exit 1]", false),
        ("[exit 0]\n[exit 10]", false),
        ("x\n[killed by signal 9]", false),
    ] {
        assert_eq!(matches!(exited(output.into()), JobEnd::Done(_)), done, "{output}");
    }
}

#[test]
fn without_a_shell_there_are_no_commands() {
    assert_eq!(field(runner(None).judge(&command("make"))), "kind");
    let gone = JobRun { thread: None, ..command("make") };
    assert_eq!(field(runner(None).judge(&gone)), "payload.thread_id");
}
