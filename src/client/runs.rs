//! The client's words for runs.

use bytes::Bytes;
use futures_util::Stream;
use raddle_domain::{
    id::{OperationId, RunId, Seq},
    run::{
        Checkpoint as RunCheckpoint, Entry, LedgerRecord, LedgerSummary, Mutation, RollbackPreview, Run, RunStatus,
        RunStep, Summaries, Task, TaskStatus, drift::Drift,
    },
    time::UnixMs,
};

use super::*;

/// How long the lines of a run may take on their way up, and until they are a run.
const IMPORT_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What a run is made with.
#[derive(Debug, Default, Serialize)]
pub struct NewRun<'a> {
    pub objective: &'a str,
    pub run_type: Option<&'a str>,
    pub workspace: Option<NewRunWorkspace<'a>>,
    pub source_client: Option<&'a str>,
    pub model_provider: Option<&'a str>,
    pub model_id: Option<&'a str>,
    pub mcp_servers: &'a [String],
    pub steps: Vec<RunStep>,
}

#[derive(Debug, Default, Serialize)]
pub struct NewRunWorkspace<'a> {
    pub workspace_id: Option<&'a str>,
    pub canonical_path: Option<&'a str>,
}

/// A run with its tasks, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunAndTasks {
    #[serde(flatten)]
    pub run: Run,
    pub tasks: Vec<Task>,
}

/// Something that happened to a run.
#[derive(Debug, Default, Serialize)]
pub struct TellRun<'a> {
    pub event: &'a str,
    pub status: Option<RunStatus>,
    pub step_id: Option<&'a str>,
    pub payload: Option<Value>,
}

/// An event of a run, as far as it is read here. Its name and payload are taken as they are: a server may know more
/// events than its client.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RunEvent {
    pub seq: Seq,
    pub ts: UnixMs,
    pub revision: u64,
    /// The run's, after it.
    pub status: RunStatus,
    pub by: String,
    #[serde(default)]
    pub step_id: Option<String>,
    #[serde(default)]
    pub task_id: Option<String>,
    pub event: String,
    pub payload: Value,
    /// The run after it, where it changed.
    #[serde(default)]
    pub run: Option<Box<Run>>,
}

/// What comes next.
#[derive(Debug, Serialize, Deserialize)]
pub struct NextStep {
    pub dry_run: bool,
    pub selected_step_id: Option<String>,
    pub selected_task_id: Option<String>,
    pub target_status: RunStatus,
    pub why_next_step: String,
    pub run: Run,
}

/// What agents of a run know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Blackboard {
    pub facts: Vec<Entry>,
    pub decisions: Vec<Entry>,
    pub open_questions: Vec<Entry>,
    pub artifacts: Vec<Entry>,
    pub summaries: Summaries,
    pub tasks: Vec<Task>,
    pub revision: u64,
}

/// A change of the blackboard, named by its op.
#[derive(Debug, Serialize)]
pub struct PatchBoard<'a> {
    pub op: &'a str,
    pub payload: Value,
}

#[derive(Deserialize)]
struct Patched {
    entry: Option<Entry>,
}

/// An agent that wants work.
#[derive(Debug, Default, Serialize)]
pub struct ClaimTask<'a> {
    pub agent_id: &'a str,
    pub task_id: Option<&'a str>,
    pub task_type: Option<&'a str>,
    pub workflow_id: Option<&'a str>,
    pub lease_ms: Option<u64>,
    pub lease_epoch: Option<u64>,
}

/// A task under a lease with its token, or none and why.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClaimedTask {
    pub task: Option<Task>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A word about a task.
#[derive(Debug, Default, Serialize)]
pub struct TransitionTask<'a> {
    pub action: &'a str,
    pub lease_token: Option<&'a str>,
    pub expected_task_rev: Option<u64>,
    pub agent_id: Option<&'a str>,
    pub status: Option<TaskStatus>,
    pub error: Option<&'a str>,
    pub lease_ms: Option<u64>,
    pub output: Option<Value>,
}

#[derive(Deserialize)]
struct OfTask {
    task: Task,
}

#[derive(Deserialize)]
struct OfTasks {
    tasks: Vec<Task>,
}

/// A run as its log makes it, and what differs from what is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunReplay {
    pub run_id: RunId,
    pub from_checkpoint: Option<String>,
    pub checkpoint_seq: Option<Seq>,
    pub upto_seq: Seq,
    pub events_applied: u64,
    pub replay: Value,
    /// Nothing where only a part of the log was replayed.
    pub drift: Option<Drift>,
}

/// An effect that a tool had, or may have had.
#[derive(Debug, Serialize, Deserialize)]
pub struct LedgerEvent {
    pub seq: Seq,
    pub ts: UnixMs,
    pub event_id: String,
    pub record: LedgerRecord,
}

/// A part of a ledger, and what all of it comes to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ledger {
    pub data: Vec<LedgerEvent>,
    pub next_cursor: Option<String>,
    pub summary: LedgerSummary,
}

/// What became of a rollback.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolledBack {
    /// Not while files are still being put back.
    pub applied: bool,
    pub operation_id: OperationId,
    pub event_ids: Vec<String>,
    pub files: u32,
}

/// An attempt to take something back, or its end.
#[derive(Debug, Serialize, Deserialize)]
pub struct RollbackEvent {
    pub seq: Seq,
    pub ts: UnixMs,
    pub event_id: String,
    pub outcome: String,
    pub selected_event_ids: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_event_ids: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u32>,
}

/// An answer that is read piece by piece.
pub struct Download(Response);

impl Download {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match tokio::time::timeout(SILENCE, self.0.chunk()).await {
            Ok(piece) => piece.map_err(|err| ClientError::Failed(cause(&err))),
            Err(_) => Err(ClientError::Failed("the server has gone silent".to_owned())),
        }
    }
}

impl Client {
    pub async fn create_run(&self, new: &NewRun<'_>) -> Result<Run, ClientError> {
        self.json(self.post(&["v1", "runs"]).json(new)).await
    }

    pub async fn runs(&self, query: &[(&str, String)]) -> Result<Page<Run>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs"], query)).await
    }

    pub async fn run(&self, run: &str) -> Result<RunAndTasks, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run], &[])).await
    }

    pub async fn delete_run(&self, run: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "runs", run]).await
    }

    /// Puts on record what happened; the event as it stands in the log.
    pub async fn tell_run(&self, run: &str, tell: &TellRun<'_>) -> Result<Box<RawValue>, ClientError> {
        self.json(self.post(&["v1", "runs", run, "events"]).json(tell)).await
    }

    /// At most `limit` stored events after `after`.
    pub async fn run_event_page(&self, run: &str, after: Seq, limit: u64) -> Result<EventPage, ClientError> {
        let query = [("after", after.to_string()), ("limit", limit.to_string())];
        self.json(self.request(Method::GET, &["v1", "runs", run, "events"], &query)).await
    }

    /// The events of a run after `after`, as they happen, each once and in order, through every interruption.
    pub fn run_events(&self, run: &str, after: Seq) -> Events<RunEvent> {
        self.follow_run(run, after).records()
    }

    /// The same as the server writes them.
    pub fn follow_run(&self, run: &str, after: Seq) -> Follow {
        self.follow_log(["v1", "runs", run, "events"], "context.run.deleted", after)
    }

    /// Makes a todo list the plan; unless it is to `replace` it, steps that are not in the list stay.
    pub async fn sync_todos(&self, run: &str, todos: &[Value], replace: bool) -> Result<Run, ClientError> {
        let body = json!({ "todos": todos, "replace": replace });
        self.json(self.post(&["v1", "runs", run, "todos", "sync"]).json(&body)).await
    }

    pub async fn drive_run(&self, run: &str, dry_run: bool) -> Result<NextStep, ClientError> {
        self.json(self.post(&["v1", "runs", run, "driver", "next"]).json(&json!({ "dry_run": dry_run }))).await
    }

    pub async fn blackboard(&self, run: &str) -> Result<Blackboard, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "blackboard"], &[])).await
    }

    /// Changes the blackboard; the line as it is then, or nothing after a summary was set.
    pub async fn patch_blackboard(&self, run: &str, patch: &PatchBoard<'_>) -> Result<Option<Entry>, ClientError> {
        let request = self.post(&["v1", "runs", run, "blackboard", "patches"]).json(patch);
        self.json(request).await.map(|of: Patched| of.entry)
    }

    pub async fn tasks(&self, run: &str, query: &[(&str, String)]) -> Result<Page<Task>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "tasks"], query)).await
    }

    pub async fn task(&self, run: &str, task: &str) -> Result<Task, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "tasks", task], &[])).await
    }

    /// Makes all of the tasks or none.
    pub async fn create_tasks(&self, run: &str, tasks: &[Value]) -> Result<Vec<Task>, ClientError> {
        let request = self.post(&["v1", "runs", run, "tasks"]).json(&json!({ "tasks": tasks }));
        self.json(request).await.map(|of: OfTasks| of.tasks)
    }

    /// Claims the task that is next. The same claim under the same `once` gets the same task and the same token.
    pub async fn claim_task(
        &self,
        run: &str,
        claim: &ClaimTask<'_>,
        once: Option<&str>,
    ) -> Result<ClaimedTask, ClientError> {
        let path = ["v1", "runs", run, "tasks", "claim"];
        let request = match once {
            Some(key) => self.request(Method::POST, &path, &[]).header("idempotency-key", key),
            None => self.post(&path),
        };
        self.json(request.json(claim)).await
    }

    pub async fn transition_task(&self, run: &str, task: &str, word: &TransitionTask<'_>) -> Result<Task, ClientError> {
        let request = self.post(&["v1", "runs", run, "tasks", task, "transition"]).json(word);
        self.json(request).await.map(|of: OfTask| of.task)
    }

    pub async fn save_run_checkpoint(&self, run: &str, reason: Option<&str>) -> Result<RunCheckpoint, ClientError> {
        let body = json!({ "reason": reason });
        self.json(self.post(&["v1", "runs", run, "checkpoints"]).json(&body)).await
    }

    pub async fn run_checkpoints(&self, run: &str) -> Result<Page<RunCheckpoint>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "checkpoints"], &[])).await
    }

    pub async fn delete_run_checkpoint(&self, run: &str, checkpoint: &str) -> Result<(), ClientError> {
        self.delete(&["v1", "runs", run, "checkpoints", checkpoint]).await
    }

    /// Makes a run that begins as this one was.
    pub async fn restore_run(&self, run: &str, checkpoint: &str) -> Result<Run, ClientError> {
        let path = ["v1", "runs", run, "checkpoints", checkpoint, "restore"];
        self.json(self.post(&path).json(&json!({}))).await
    }

    pub async fn replay_run(&self, run: &str, query: &[(&str, String)]) -> Result<RunReplay, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "replay"], query)).await
    }

    /// The lines of a run, as they come. Whoever reads them has to look for their end: an export can be cut.
    pub async fn export_run(&self, run: &str) -> Result<Download, ClientError> {
        self.send(self.request(Method::GET, &["v1", "runs", run, "export"], &[])).await.map(Download)
    }

    /// Makes a run of lines; `bytes` is how long they are, where that is known.
    pub async fn import_run(
        &self,
        lines: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        bytes: Option<u64>,
    ) -> Result<Run, ClientError> {
        let request = self.post(&["v1", "runs", "import"]).timeout(IMPORT_PATIENCE);
        let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
        let request = match bytes {
            Some(bytes) => request.header(header::CONTENT_LENGTH, bytes),
            None => request,
        };
        let response = self.send(request.body(reqwest::Body::wrap_stream(lines))).await?;
        response.json().await.map_err(|err| ClientError::Failed(format!("the answer is not as expected: {err}")))
    }

    pub async fn run_ledger(&self, run: &str, query: &[(&str, String)]) -> Result<Ledger, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "ledger"], query)).await
    }

    pub async fn run_mutations(&self, run: &str, query: &[(&str, String)]) -> Result<Page<Mutation>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "mutations"], query)).await
    }

    pub async fn preview_rollback(&self, run: &str) -> Result<RollbackPreview, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "rollback-preview"], &[])).await
    }

    /// Takes back what tools did to files. Whoever calls this says for a person that he means it.
    pub async fn execute_rollback(&self, run: &str, events: &[String]) -> Result<RolledBack, ClientError> {
        let body = json!({ "event_ids": events, "confirm": "rollback", "policy_ack": "allow_rollback_execution" });
        self.json(self.post(&["v1", "runs", run, "rollback-execute"]).json(&body)).await
    }

    pub async fn rollbacks(&self, run: &str, query: &[(&str, String)]) -> Result<Page<RollbackEvent>, ClientError> {
        self.json(self.request(Method::GET, &["v1", "runs", run, "rollback-history"], query)).await
    }
}
