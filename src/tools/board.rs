//! Tools of a thread that works for a run: it claims tasks, finishes them, reads the board and writes on it.
//!
//! | tool | class | what it does |
//! | --- | --- | --- |
//! | `claim_task` | idempotent | hands the turn the task that it holds, or the one that is next |
//! | `finish_task` | idempotent | says how the turn's work on its task ended |
//! | `read_board` | read | shows the objective, the plan, what is known and what is left |
//! | `note_on_board` | idempotent | adds a fact, a decision, an open question or an artifact |
//!
//! They are offered to threads that have a run, and act on that run alone. Nobody is asked: what an agent says on the
//! board of its own run is what the board is for; a rule may deny it. The turn holds its task by its name: no token is
//! shown to a model, and the lease is kept until the turn has ended.

use std::{sync::Arc, time::Duration};

use raddle_actors::{Call, Error, Idempotency, Runtime, WeakRuntime, WorkEnd};
use raddle_domain::{
    id::RunId,
    ports::{Gate, Invocation, Output, Scene, ToolEnd, ToolRun, ToolSpec},
    record::EffectClass,
    run::{
        Entry, EntryKind, Refused, Task,
        command::{Claim, Claimed, NewEntry, Patch, WorkBy, Worker},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{sync::SetOnce, time::sleep};

use super::Tool;

/// Lines of each kind that are shown: the newest.
const SHOWN: usize = 50;
/// The pause before what could not be done now is done again.
const AGAIN: Duration = Duration::from_secs(1);

/// The way to the runtime, which begins after its tools were made.
pub type Way = Arc<SetOnce<WeakRuntime>>;

/// All of them.
pub fn tools(way: &Way) -> impl Iterator<Item = Arc<dyn Tool>> + use<> {
    let way = way.clone();
    let tool = move |act| Arc::new(Board { act, way: way.clone() }) as Arc<dyn Tool>;
    [Act::Claim, Act::Finish, Act::Read, Act::Note].into_iter().map(tool)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Claim,
    Finish,
    Read,
    Note,
}

struct Board {
    act: Act,
    way: Way,
}

#[derive(Debug, Deserialize)]
struct ClaimArguments {
    task_id: Option<String>,
    task_type: Option<String>,
    workflow_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct FinishArguments {
    task_id: String,
    outcome: Outcome,
    output: Option<Value>,
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Done,
    Failed,
    Released,
}

#[derive(Debug, Deserialize)]
struct NoteArguments {
    kind: EntryKind,
    text: Option<String>,
    path: Option<String>,
    artifact_type: Option<String>,
}

impl Tool for Board {
    fn spec(&self) -> ToolSpec {
        let word = json!({"type": "string", "minLength": 1, "maxLength": 128});
        let text = json!({"type": "string", "maxLength": 16_384});
        let (name, description, properties, required): (_, _, _, &[&str]) = match self.act {
            Act::Claim => (
                "claim_task",
                "Claims the next task of the run that you work for, or shows the one that you hold. It is yours until \
                 you finish it or your turn ends.",
                json!({"task_id": word, "task_type": word, "workflow_id": word}),
                &[],
            ),
            Act::Finish => (
                "finish_task",
                "Says how your work on a task that you claimed ended: `done` with what it came to, `failed` with the \
                 reason, or `released` to give it back.",
                json!({
                    "task_id": word,
                    "outcome": {"enum": ["done", "failed", "released"]},
                    "output": {"description": "What it came to, with `done`."},
                    "error": text,
                }),
                &["task_id", "outcome"],
            ),
            Act::Read => (
                "read_board",
                "Shows the board of the run that you work for: its objective, its plan, what is known and what is left.",
                json!({}),
                &[],
            ),
            Act::Note => (
                "note_on_board",
                "Writes a line on the board of the run that you work for: a fact, a decision, an open question, or an \
                 artifact with its path and type.",
                json!({
                    "kind": {"enum": ["fact", "decision", "open_question", "artifact"]},
                    "text": text,
                    "path": {"type": "string", "maxLength": 4_096},
                    "artifact_type": word,
                }),
                &["kind"],
            ),
        };
        let schema = json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        });
        ToolSpec { name: name.to_owned(), description: description.to_owned(), schema }
    }

    fn class(&self) -> EffectClass {
        match self.act {
            Act::Read => EffectClass::Read,
            // By the name of the turn, and by the id of the operation.
            Act::Claim | Act::Finish | Act::Note => EffectClass::Idempotent,
        }
    }

    fn gate(&self) -> Gate {
        Gate::Open
    }

    fn offered(&self, scene: Scene<'_>) -> bool {
        scene.run.is_some()
    }

    fn reason(&self, _: &Value) -> String {
        match self.act {
            Act::Claim => "it claims a task of the run",
            Act::Finish => "it says how a task of the run ended",
            Act::Read => "it reads the board of the run",
            Act::Note => "it writes on the board of the run",
        }
        .to_owned()
    }

    fn run(&self, invocation: Invocation, _: Arc<dyn Output>) -> ToolRun {
        let (act, way) = (self.act, self.way.clone());
        Box::pin(async move {
            let Some(run) = invocation.run else {
                return ToolEnd::Failed("this thread works for no run".to_owned());
            };
            loop {
                // A server that goes down leaves the call to the next process, which makes it again.
                let Ok(runtime) = way.wait().await.get() else { return std::future::pending().await };
                match act.perform(&runtime, run, &invocation).await {
                    Ok(said) => return ToolEnd::Done(said),
                    Err(Failed::Arguments(why)) => return ToolEnd::Failed(why),
                    Err(Failed::Runtime(error)) if passes(&error) => sleep(AGAIN).await,
                    Err(Failed::Runtime(error)) => return ToolEnd::Failed(error.to_string()),
                }
            }
        })
    }
}

/// What may be over in a moment. The turn's own limit ends what is not.
const fn passes(error: &Error) -> bool {
    matches!(error, Error::Busy { .. } | Error::InFlight | Error::Draining | Error::Store(_))
}

enum Failed {
    Arguments(String),
    Runtime(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Runtime(error)
    }
}

fn read<'a, T: Deserialize<'a>>(arguments: &'a Value) -> Result<T, Failed> {
    T::deserialize(arguments).map_err(|why| Failed::Arguments(why.to_string()))
}

/// By what an attempt is known again.
fn once(invocation: &Invocation) -> Call {
    let digest = |what: &str| Sha256::digest(format!("{what} {}", invocation.operation)).into();
    let idempotency = Idempotency { key: digest("a tool of the board"), request: digest("its operation") };
    Call { idempotency: Some(idempotency), ..Call::default() }
}

impl Act {
    async fn perform(self, runtime: &Runtime, run: RunId, invocation: &Invocation) -> Result<String, Failed> {
        let tenant = invocation.key.tenant;
        let worker = Worker { thread: invocation.key.thread, by: WorkBy::Turn(invocation.turn) };
        match self {
            Self::Claim => {
                let ClaimArguments { task_id, task_type, workflow_id } = read(&invocation.arguments)?;
                let claim = Claim { task_id, task_type, workflow_id, ..Claim::default() };
                Ok(match runtime.work(tenant, run, worker, claim).await? {
                    Claimed { task: Some(task), .. } => shown(&task).to_string(),
                    Claimed { why, .. } => format!("no task: {}", why.unwrap_or_default()),
                })
            }
            Self::Finish => {
                let FinishArguments { task_id, outcome, output, error } = read(&invocation.arguments)?;
                let end = match outcome {
                    Outcome::Done => WorkEnd::Done(output),
                    Outcome::Failed => WorkEnd::Failed(error.unwrap_or_else(|| "it failed".to_owned())),
                    Outcome::Released => WorkEnd::Released,
                };
                let done = runtime.end_work(tenant, run, worker, (task_id, end), once(invocation)).await?;
                Ok(format!("the task `{}` is {}", done.value.id, done.value.status.as_str()))
            }
            Self::Read => board(runtime, run, invocation).await,
            Self::Note => {
                let NoteArguments { kind, text, path, artifact_type } = read(&invocation.arguments)?;
                let patch = Patch::Add(NewEntry {
                    kind,
                    id: Some(format!("{}-{}", kind.as_str(), invocation.operation)),
                    text: text.unwrap_or_default(),
                    path,
                    artifact_type,
                    step_id: None,
                    source_event_id: None,
                    ts_ms: None,
                });
                match runtime.patch_board(tenant, run, patch, once(invocation)).await {
                    // An attempt before this one wrote it.
                    Ok(_) | Err(Error::Run(Refused::EntryExists { .. })) => Ok("noted".to_owned()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// A task as a model sees it.
fn shown(task: &Task) -> Value {
    json!({
        "task_id": task.id, "task_type": task.task_type, "payload": task.payload, "status": task.status,
        "attempt": task.attempt, "max_attempts": task.max_attempts, "last_error": task.last_error,
        "depends_on_task_ids": task.depends_on_task_ids,
    })
}

async fn board(runtime: &Runtime, run: RunId, invocation: &Invocation) -> Result<String, Failed> {
    let tenant = invocation.key.tenant;
    let record = runtime.run(tenant, run).await?;
    let board = runtime.board(tenant, run).await?;
    let lines = |kind| {
        let of_kind: Vec<&Entry> = board.entries.iter().filter(|entry| entry.kind == kind).collect();
        let newest = of_kind.len().saturating_sub(SHOWN);
        let line = |entry: &&Entry| match kind {
            EntryKind::Artifact => json!({"path": entry.path, "type": entry.artifact_type, "text": entry.text}),
            _ => json!({"text": entry.text, "resolved": entry.resolved}),
        };
        of_kind[newest..].iter().map(line).collect::<Vec<_>>()
    };
    let board = json!({
        "objective": record.objective,
        "status": record.status,
        "why_next_step": record.why_next_step,
        "steps": record.steps,
        "task_counts": record.task_counts,
        "facts": lines(EntryKind::Fact),
        "decisions": lines(EntryKind::Decision),
        "open_questions": lines(EntryKind::OpenQuestion),
        "artifacts": lines(EntryKind::Artifact),
        "summary": board.summaries.rolling,
    });
    Ok(board.to_string())
}
