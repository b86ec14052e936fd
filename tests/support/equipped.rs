//! A server whose models have tools: the demo tools on a directory that outlives every kill, and, where a test wants
//! to see what a model is shown, a provider that lives in the test.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    openai_server::{Answer, OpenAiServer},
    support::{Api, LOST, Server, check_log, text},
};

pub struct Equipped {
    pub server: Server,
    pub provider: Option<OpenAiServer>,
    env: Vec<(String, String)>,
    data: tempfile::TempDir,
    demo: tempfile::TempDir,
}

impl Equipped {
    /// Threads are answered by `scripted`.
    pub async fn start(env: &[(&str, &str)]) -> Self {
        Self::new(env, None).await
    }

    /// Threads are answered by the provider.
    pub async fn with_provider(env: &[(&str, &str)]) -> Self {
        let provider = OpenAiServer::start().await;
        let url = provider.base_url().to_owned();
        let more = [
            ("RADDLE_MODEL_DEFAULT", "openai/test-model"),
            ("RADDLE_MODEL_OPENAI_BASE_URL", &url),
            ("RADDLE_LIMITS_RETRY_BASE_MS", "1"),
        ];
        Self::new(&[&more, env].concat(), Some(provider)).await
    }

    async fn new(env: &[(&str, &str)], provider: Option<OpenAiServer>) -> Self {
        let (data, demo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tools = ("RADDLE_TOOLS_DEMO_DIR", demo.path().to_str().unwrap());
        let env: Vec<_> = env.iter().chain([&tools]).map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Self { server: launch(&data, &env).await, provider, env, data, demo }
    }

    pub fn api(&self) -> &Api {
        &self.server.api
    }

    /// What the provider is to answer next.
    pub fn answer(&self, answer: Answer) {
        self.provider.as_ref().expect("a provider").answer(answer);
    }

    /// The messages of each request to the provider.
    pub fn shown(&self) -> Vec<Vec<Value>> {
        let provider = self.provider.as_ref().expect("a provider");
        provider.asked().iter().map(|asked| asked.messages().to_vec()).collect()
    }

    /// SIGKILL, and a new process on the same data.
    pub async fn crash(&mut self) {
        self.server.kill();
        self.server = launch(&self.data, &self.env).await;
    }

    /// The same with another configuration from then on.
    pub async fn crash_into(&mut self, change: impl FnOnce(&mut Vec<(String, String)>)) {
        change(&mut self.env);
        self.crash().await;
    }

    /// Waits for the end of a server that was told to end, and starts a new one on the same data.
    pub async fn ended(self) -> Self {
        self.server.ended().await;
        let server = launch(&self.data, &self.env).await;
        Self { server, ..self }
    }

    /// Kills it, and starts it with another value of a variable.
    pub async fn reconfigure(&mut self, name: &str, value: &str) {
        self.crash_into(|env| {
            env.retain(|(known, _)| known != name);
            env.push((name.to_owned(), value.to_owned()));
        })
        .await;
    }

    /// What the tools did: operation, attempt and tool of each act.
    pub fn ledger(&self) -> Vec<(String, String, String)> {
        let ledger = std::fs::read_to_string(self.demo.path().join(".ledger")).unwrap_or_default();
        let act = |line: &str| {
            let parts: Vec<_> = line.split(' ').map(str::to_owned).collect();
            <[String; 3]>::try_from(parts).expect("a whole line").into()
        };
        ledger.lines().map(act).collect()
    }

    /// Waits until the tools did something so many times.
    pub async fn until_acted(&self, count: usize) {
        let acted = async {
            while self.ledger().len() < count {
                // A round trip is pause enough.
                self.api().get("/healthz").await;
            }
        };
        timeout(LOST, acted).await.expect("the tools do not act");
    }

    /// Waits until these files have a line: an act is on the ledger before it is done.
    pub async fn until_written(&self, names: &[&str]) {
        let written = async {
            while !names.iter().all(|name| self.file(name).is_some_and(|text| text.ends_with('\n'))) {
                self.api().get("/healthz").await;
            }
        };
        timeout(LOST, written).await.expect("the tools do not write");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.demo.path().join(name)
    }

    /// What a file of the demo directory holds, if it is there.
    pub fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    /// A metric of the server.
    pub async fn metric(&self, name: &str) -> u64 {
        let metrics = String::from_utf8(self.api().get("/metrics").await.body).unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name}: {metrics}"))
    }

    /// Waits until a metric is as asked.
    pub async fn until_metric(&self, name: &str, is: impl Fn(u64) -> bool) {
        let comes = async { while !is(self.metric(name).await) {} };
        timeout(LOST, comes).await.unwrap_or_else(|_| panic!("{name} stays as it is"));
    }

    /// Puts whatever rests or waits out of memory, on a server that keeps one thread.
    pub async fn evict(&self) {
        let evicted = self.metric("raddle_evictions_total").await;
        self.api().create(json!({})).await;
        self.until_metric("raddle_evictions_total", |now| now > evicted).await;
        self.until_metric("raddle_loaded_threads", |loaded| loaded <= 1).await;
    }

    /// Waits until the thread's record is as asked, and returns it.
    pub async fn stands(&self, thread: &str, is: impl Fn(&Value) -> bool) -> Value {
        let (api, path) = (self.api(), format!("/v1/threads/{thread}"));
        let stands = async {
            let mut stream = api.stream(thread, 0).await;
            loop {
                let found = api.get(&path).await.expect(200);
                if is(&found) {
                    return found;
                }
                stream.next().await.expect("the stream goes on");
            }
        };
        match timeout(LOST, stands).await {
            Ok(found) => found,
            Err(_) => panic!("the thread stands otherwise: {}", api.get(&path).await.json()),
        }
    }

    /// The approvals that wait on a thread, once it can go on no more without one.
    pub async fn asked(&self, thread: &str) -> Vec<Value> {
        self.stands(thread, |thread| thread["status"] == "awaiting_approval").await;
        self.api().list(&format!("/v1/approvals?status=pending&thread={thread}"), 50).await
    }

    /// The one approval that waits on a thread.
    pub async fn approval(&self, thread: &str) -> Value {
        let [approval] = <[Value; 1]>::try_from(self.asked(thread).await).expect("one approval waits");
        approval
    }

    pub async fn decide(&self, approval: &Value, decision: &str) -> Value {
        let path = format!("/v1/approvals/{}", text(&approval["id"]));
        self.api().post(&path, json!({ "decision": decision })).await.expect(200)
    }

    /// Starts a turn, and waits until its thread has nothing left to do.
    pub async fn say(&self, thread: &str, prompt: &str) -> Value {
        let turn = self.api().start(thread, prompt).await;
        self.api().rest(thread).await;
        self.turn(thread, &turn).await
    }

    pub async fn turn(&self, thread: &str, turn: &str) -> Value {
        self.api().get(&format!("/v1/threads/{thread}/turns/{turn}")).await.expect(200)
    }

    /// Kind, status and text of every item of a thread.
    pub async fn items(&self, thread: &str) -> Vec<(String, String, String)> {
        let items = self.api().list(&format!("/v1/threads/{thread}/items"), 500).await;
        items.iter().map(|item| (text(&item["kind"]), text(&item["status"]), text(&item["detail"]))).collect()
    }

    /// Prompt and end of every turn of a thread.
    pub async fn turns(&self, thread: &str) -> Vec<(String, String)> {
        let turns = self.api().list(&format!("/v1/threads/{thread}/turns"), 500).await;
        turns.iter().map(|turn| (text(&turn["input_summary"]), text(&turn["status"]))).collect()
    }

    /// The log, checked, of a thread that rests.
    pub async fn log(&self, thread: &str) -> Vec<Value> {
        let log = self.api().log(thread).await;
        check_log(&log, true);
        log
    }
}

async fn launch(data: &tempfile::TempDir, env: &[(String, String)]) -> Server {
    let env: Vec<_> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Server::with(data.path(), &env).await
}

/// Prompt, or kind, status and text, for comparing.
pub fn pair(prompt: &str, status: &str) -> (String, String) {
    (prompt.to_owned(), status.to_owned())
}

pub fn item(kind: &str, status: &str, detail: &str) -> (String, String, String) {
    (kind.to_owned(), status.to_owned(), detail.to_owned())
}

/// A script that calls a tool.
pub fn call(tool: &str, arguments: Value) -> String {
    format!("@tool {tool} {arguments}")
}
