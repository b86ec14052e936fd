//! A run, threads that work for it, and the files that they work on; all of it outlives every kill.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::support::{Api, LOST, Server, text};

pub struct Crew {
    pub server: Server,
    pub run: String,
    env: Vec<(String, String)>,
    data: tempfile::TempDir,
    root: tempfile::TempDir,
    demo: tempfile::TempDir,
}

/// The shortest lease that there is, renewed three times a second.
const LEASE: (&str, &str) = ("RADDLE_JOBS_LEASE_MS", "1000");

impl Crew {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(env: &[(&str, &str)]) -> Self {
        let [data, root, demo] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let more = [
            LEASE,
            ("RADDLE_WORKSPACES_ROOT", root.path().to_str().unwrap()),
            ("RADDLE_TOOLS_DEMO_DIR", demo.path().to_str().unwrap()),
        ];
        let env: Vec<_> =
            [&more, env].concat().iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let server = launch(&data, &env).await;
        let run = new_run(&server.api).await;
        Self { server, run, env, data, root, demo }
    }

    pub fn api(&self) -> &Api {
        &self.server.api
    }

    /// SIGKILL, and a new process on the same data.
    pub async fn crash(&mut self) {
        self.server.kill();
        self.server = launch(&self.data, &self.env).await;
    }

    /// The same, with the server taking its time over each commit from then on.
    pub async fn crash_into_a_slow_one(&mut self, ms: u32) {
        self.env.push(("RADDLE_STORE_SYNC_DELAY_MS".to_owned(), ms.to_string()));
        self.crash().await;
    }

    pub fn path(&self, workspace: &str, name: &str) -> PathBuf {
        self.root.path().join("default").join(workspace).join(name)
    }

    /// What a file of a workspace holds, if it is there.
    pub fn file(&self, workspace: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.path(workspace, name)).ok()
    }

    /// A file that is there before anybody works.
    pub fn put(&self, workspace: &str, name: &str, content: &str) {
        let path = self.path(workspace, name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The file of the demo directory.
    pub fn demo(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.demo.path().join(name)).ok()
    }

    /// A thread that works for the run, in a workspace, and asks nobody.
    pub async fn thread(&self, workspace: &str) -> String {
        self.thread_of(&self.run, workspace).await
    }

    pub async fn thread_of(&self, run: &str, workspace: &str) -> String {
        self.api().create(json!({"run_id": run, "workspace": workspace, "auto_approve": true})).await
    }

    pub fn at(&self, path: &str) -> String {
        format!("/v1/runs/{}{path}", self.run)
    }

    /// Makes tasks of these names.
    pub async fn tasks(&self, ids: &[&str]) {
        let tasks: Vec<_> =
            ids.iter().map(|id| json!({"id": id, "task_type": "chore", "payload": {"about": id}})).collect();
        self.api().post(&self.at("/tasks"), json!({ "tasks": tasks })).await.expect(201);
    }

    pub async fn task(&self, id: &str) -> Value {
        self.api().get(&self.at(&format!("/tasks/{id}"))).await.expect(200)
    }

    /// The task, once it stands there.
    pub async fn task_is(&self, id: &str, status: &str) -> Value {
        let stands = async {
            loop {
                let task = self.task(id).await;
                if task["status"] == status {
                    return task;
                }
            }
        };
        match timeout(LOST, stands).await {
            Ok(task) => task,
            Err(_) => panic!("it does not become {status}: {}", self.task(id).await),
        }
    }

    pub async fn transition(&self, id: &str, body: Value) -> super::support::Answer {
        self.api().post(&self.at(&format!("/tasks/{id}/transition")), body).await
    }

    pub async fn record(&self) -> Value {
        self.api().get(&self.at("")).await.expect(200)
    }

    /// The events of the run.
    pub async fn events(&self) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let page = self.api().get(&self.at(&format!("/events?limit=500&after={after}"))).await.expect(200);
            let events = page["data"].as_array().unwrap();
            let Some(last) = events.last() else { return all };
            after = last["seq"].as_u64().unwrap();
            all.extend(events.iter().cloned());
        }
    }

    /// How often something happened to the run.
    pub async fn count(&self, event: &str) -> usize {
        self.events().await.iter().filter(|known| known["event"] == event).count()
    }

    /// Waits until something has happened so often.
    pub async fn happens(&self, event: &str, count: usize) {
        let happens = async { while self.count(event).await < count {} };
        timeout(LOST, happens).await.unwrap_or_else(|_| panic!("{event} does not happen"));
    }

    pub async fn ledger_of(&self, run: &str) -> Vec<Value> {
        let entries = self.api().list(&format!("/v1/runs/{run}/ledger"), 3).await;
        entries.into_iter().map(|entry| entry["record"].clone()).collect()
    }

    /// The records of the ledger, once there are so many; no more come after a shutdown, which a test does that asks for
    /// all of them.
    pub async fn ledger(&self, count: usize) -> Vec<Value> {
        let complete = async {
            loop {
                let records = self.ledger_of(&self.run).await;
                if records.len() >= count {
                    return records;
                }
            }
        };
        match timeout(LOST, complete).await {
            Ok(records) => records,
            Err(_) => panic!("the ledger does not have {count}: {:#?}", self.ledger_of(&self.run).await),
        }
    }

    /// What tools did to files, once there is so much of it.
    pub async fn mutations(&self, count: usize) -> Vec<Value> {
        let complete = async {
            loop {
                let found = self.api().list(&self.at("/mutations"), 2).await;
                if found.len() >= count {
                    return found;
                }
            }
        };
        timeout(LOST, complete).await.expect("the changes are recorded")
    }

    pub async fn tell(&self, event: &str) {
        self.api().post(&self.at("/events"), json!({ "event": event })).await.expect(201);
    }

    /// Has a turn, to its end.
    pub async fn say(&self, thread: &str, prompt: &str) -> Value {
        let turn = self.api().start(thread, prompt).await;
        self.api().wait(thread, &turn).await
    }

    pub async fn job(&self, job: &str) -> Value {
        self.api().get(&format!("/v1/jobs/{job}")).await.expect(200)
    }

    pub async fn job_becomes(&self, job: &str, is: impl Fn(&Value) -> bool) -> Value {
        let becomes = async {
            loop {
                let found = self.job(job).await;
                if is(&found) {
                    return found;
                }
            }
        };
        match timeout(LOST, becomes).await {
            Ok(found) => found,
            Err(_) => panic!("the job stands otherwise: {}", self.job(job).await),
        }
    }

    pub async fn job_ends(&self, job: &str) -> Value {
        self.job_becomes(job, |job| ["completed", "failed", "cancelled"].contains(&job["status"].as_str().unwrap()))
            .await
    }

    /// A job that has a turn for a task.
    pub async fn make_job(&self, thread: &str, prompt: &str, task: Value) -> String {
        let mut wanted = json!({ "run_id": self.run });
        wanted.as_object_mut().unwrap().extend(task.as_object().unwrap().clone());
        let payload = json!({ "thread_id": thread, "prompt": prompt, "task": wanted });
        let body = json!({"name": "n", "kind": "turn", "payload": payload, "backoff_base_ms": 1});
        text(&self.api().post("/v1/jobs", body).await.expect(201)["id"])
    }
}

pub async fn new_run(api: &Api) -> String {
    text(&api.post("/v1/runs", json!({"objective": "tidy up"})).await.expect(201)["run_id"])
}

async fn launch(data: &tempfile::TempDir, env: &[(String, String)]) -> Server {
    let env: Vec<_> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Server::with(data.path(), &env).await
}

/// A script of tool calls, one answer of the model each.
pub fn script(lines: &[(&str, Value)]) -> String {
    lines.iter().map(|(tool, arguments)| format!("@tool {tool} {arguments}\n")).collect::<String>() + "@say all done"
}
