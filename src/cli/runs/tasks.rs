//! Tasks of a run: listed, made, claimed, and whatever their holders say of them.

use clap::{Args, Subcommand};
use raddle_domain::run::{Task, TaskStatus};
use serde_json::{Map, Value, json};

use super::{brief, parsed, read_file};
use crate::{
    cli::{Failure, Remote, collect, plain, say, say_json},
    client::{ClaimTask, TransitionTask},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Tasks {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
enum Verb {
    /// Add tasks: one by options, or all of a file or none
    Add(Add),
    /// Show a task
    Show(Show),
}

#[derive(Debug, Args)]
struct List {
    #[arg(required = true)]
    run: Option<String>,
    /// Only those with this status
    #[arg(long)]
    status: Option<String>,
    /// Only those of this type
    #[arg(long = "type", value_name = "TYPE")]
    task_type: Option<String>,
    /// Only those of this workflow
    #[arg(long, value_name = "ID")]
    workflow: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Show {
    run: String,
    task: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct Add {
    run: String,
    /// `implementation`, `inspection`, `research`, `validation` and `fix_proposal` have a contract; any other is free
    #[arg(required_unless_present = "file")]
    task_type: Option<String>,
    /// Tasks as the API takes them, as a list or one after the other; `-` is stdin
    #[arg(long, conflicts_with = "task_type")]
    file: Option<String>,
    #[command(flatten)]
    new: New,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct New {
    /// A name, new in the run
    #[arg(long, conflicts_with = "file")]
    id: Option<String>,
    /// What is to be done
    #[arg(long, value_name = "JSON", conflicts_with = "file")]
    payload: Option<String>,
    /// Where an implementation writes: `output_target.path` of the payload
    #[arg(long, value_name = "PATH", conflicts_with = "file")]
    target: Option<String>,
    /// A task that has to be done first, as often as there are such
    #[arg(long = "after", value_name = "TASK", conflicts_with = "file")]
    depends_on: Vec<String>,
    /// The higher, the sooner
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "file")]
    priority: Option<i32>,
    /// Failures after which it has failed for good
    #[arg(long, value_name = "N", conflicts_with = "file")]
    max_attempts: Option<u32>,
    /// `pending`, `runnable` or `blocked`
    #[arg(long, conflicts_with = "file")]
    status: Option<String>,
    /// The workflow that it belongs to
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    workflow: Option<String>,
    /// Its place in that workflow
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    node: Option<String>,
    /// The task that it is a part of
    #[arg(long, value_name = "TASK", conflicts_with = "file")]
    parent: Option<String>,
}

#[derive(Debug, Args)]
pub struct Claim {
    run: String,
    /// Who wants it
    #[arg(long, value_name = "ID")]
    agent: String,
    /// This one, or none
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Only of this type
    #[arg(long = "type", value_name = "TYPE")]
    task_type: Option<String>,
    /// Only of this workflow
    #[arg(long, value_name = "ID")]
    workflow: Option<String>,
    /// How long the lease lasts; 30,000 unless given, and from 5,000 to 300,000 whatever is given
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u64>,
    /// The epoch of the workspace that the agent works in
    #[arg(long, value_name = "N")]
    lease_epoch: Option<u64>,
    /// A name for this claim: asked again under it, the answer is the same
    #[arg(long, value_name = "NAME")]
    once: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Of which task something is said.
#[derive(Debug, Args)]
struct Of {
    run: String,
    task: String,
    /// Who says so
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Refuse unless the task has this revision
    #[arg(long, value_name = "N")]
    rev: Option<u64>,
    #[command(flatten)]
    remote: Remote,
}

/// A word that takes the lease, where there is one.
#[derive(Debug, Args)]
struct Held {
    #[command(flatten)]
    of: Of,
    /// The lease's token, as the claim told it
    #[arg(long, env = "RADDLE_LEASE", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
}

#[derive(Debug, Args)]
pub struct Heartbeat {
    #[command(flatten)]
    held: Held,
    /// How long the lease lasts from now on
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Complete {
    #[command(flatten)]
    held: Held,
    /// What it came to
    #[arg(long, value_name = "JSON")]
    output: Option<String>,
}

#[derive(Debug, Args)]
pub struct Fail {
    #[command(flatten)]
    held: Held,
    /// Why
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

#[derive(Debug, Args)]
pub struct Block {
    #[command(flatten)]
    held: Held,
    /// Why
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

#[derive(Debug, Args)]
pub struct Release {
    #[command(flatten)]
    held: Held,
}

#[derive(Debug, Args)]
pub struct Retry {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, Args)]
pub struct CancelTask {
    #[command(flatten)]
    of: Of,
    /// Why
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

impl Tasks {
    pub async fn run(self) -> Result<(), Failure> {
        match self.verb {
            None => self.list.run().await,
            Some(Verb::Add(add)) => add.run().await,
            Some(Verb::Show(Show { run, task, remote })) => {
                let task = remote.client()?.task(&run, &task).await?;
                if remote.json { say_json(&task) } else { shown(&task).iter().try_for_each(|line| say(line)) }
            }
        }
    }
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        let Self { run, status, task_type, workflow, limit, remote } = self;
        let run = run.unwrap_or_default();
        let named = [("status", status), ("task_type", task_type), ("workflow_id", workflow)];
        let filter = named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let client = remote.client()?;
        let tasks = collect(limit as usize, filter, async |query| client.tasks(&run, &query).await).await?;
        if remote.json { say_json(&tasks) } else { tasks.iter().try_for_each(|task| say(&line(task))) }
    }
}

impl Add {
    async fn run(self) -> Result<(), Failure> {
        let tasks = match &self.file {
            Some(name) => tasks(&read_file(name)?).map_err(|why| Failure::Failed(format!("{name}: {why}")))?,
            None => vec![self.new.into_task(self.task_type.unwrap_or_default())?],
        };
        let tasks = self.remote.client()?.create_tasks(&self.run, &tasks).await?;
        if self.remote.json { say_json(&tasks) } else { tasks.iter().try_for_each(|task| say(&brief(&task.id))) }
    }
}

impl New {
    /// As a request has it.
    fn into_task(self, task_type: String) -> Result<Value, Failure> {
        let mut payload = self.payload.as_deref().map(|text| parsed("--payload", text)).transpose()?;
        if let Some(path) = self.target {
            match payload.get_or_insert_with(|| Value::Object(Map::new())) {
                Value::Object(payload) => payload.insert("output_target".to_owned(), json!({ "path": path })),
                _ => return Err(Failure::Usage("`--payload` has to be an object".to_owned())),
            };
        }
        Ok(json!({
            "id": self.id,
            "task_type": task_type,
            "payload": payload,
            "status": self.status,
            "workflow_id": self.workflow,
            "workflow_node_id": self.node,
            "parent_task_id": self.parent,
            "depends_on_task_ids": self.depends_on,
            "priority": self.priority,
            "max_attempts": self.max_attempts,
        }))
    }
}

/// Tasks of a file: values one after the other, as in lines, each a task or a list of them or `{"tasks": […]}`.
fn tasks(text: &str) -> Result<Vec<Value>, String> {
    let mut all = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter() {
        match value.map_err(|why| format!("not JSON: {why}"))? {
            Value::Array(tasks) => all.extend(tasks),
            Value::Object(mut object) => match object.remove("tasks") {
                Some(Value::Array(tasks)) if object.is_empty() => all.extend(tasks),
                Some(_) => return Err("`tasks` has to be a list, and alone".to_owned()),
                None => all.push(Value::Object(object)),
            },
            other => return Err(format!("{other} is not a task")),
        }
    }
    Ok(all)
}

impl Claim {
    pub async fn run(self) -> Result<(), Failure> {
        let claim = ClaimTask {
            agent_id: &self.agent,
            task_id: self.task.as_deref(),
            task_type: self.task_type.as_deref(),
            workflow_id: self.workflow.as_deref(),
            lease_ms: self.lease_ms,
            lease_epoch: self.lease_epoch,
        };
        let claimed = self.remote.client()?.claim_task(&self.run, &claim, self.once.as_deref()).await?;
        if self.remote.json {
            say_json(&claimed)?;
            return if claimed.task.is_some() { Ok(()) } else { Err(Failure::Told) };
        }
        let Some(task) = &claimed.task else {
            return Err(Failure::Failed(brief(claimed.why.as_deref().unwrap_or("no task can be claimed now"))));
        };
        shown(task).iter().try_for_each(|line| say(line))?;
        match task.lease.as_ref().and_then(|lease| lease.token.as_deref()) {
            Some(token) => say(&format!("token       {}", plain(token))),
            None => Ok(()),
        }
    }
}

impl Of {
    async fn say(self, word: TransitionTask<'_>) -> Result<(), Failure> {
        let word = TransitionTask { agent_id: self.agent.as_deref(), expected_task_rev: self.rev, ..word };
        let task = self.remote.client()?.transition_task(&self.run, &self.task, &word).await?;
        if self.remote.json { say_json(&task) } else { say(&line(&task)) }
    }
}

impl Held {
    async fn say(self, word: TransitionTask<'_>) -> Result<(), Failure> {
        let Self { of, token } = self;
        of.say(TransitionTask { lease_token: token.as_deref(), ..word }).await
    }
}

const fn word(action: &str) -> TransitionTask<'_> {
    TransitionTask {
        action,
        lease_token: None,
        expected_task_rev: None,
        agent_id: None,
        status: None,
        error: None,
        lease_ms: None,
        output: None,
    }
}

impl Heartbeat {
    pub async fn run(self) -> Result<(), Failure> {
        self.held.say(TransitionTask { lease_ms: self.lease_ms, ..word("heartbeat") }).await
    }
}

impl Complete {
    pub async fn run(self) -> Result<(), Failure> {
        let output = self.output.as_deref().map(|text| parsed("--output", text)).transpose()?;
        self.held.say(TransitionTask { output, ..word("complete") }).await
    }
}

impl Fail {
    pub async fn run(self) -> Result<(), Failure> {
        self.held.say(TransitionTask { error: self.error.as_deref(), ..word("fail") }).await
    }
}

impl Block {
    pub async fn run(self) -> Result<(), Failure> {
        let (status, error) = (Some(TaskStatus::Blocked), self.error.as_deref());
        self.held.say(TransitionTask { status, error, ..word("status") }).await
    }
}

impl Release {
    pub async fn run(self) -> Result<(), Failure> {
        self.held.say(word("release")).await
    }
}

impl Retry {
    pub async fn run(self) -> Result<(), Failure> {
        self.of.say(word("retry")).await
    }
}

impl CancelTask {
    pub async fn run(self) -> Result<(), Failure> {
        let (status, error) = (Some(TaskStatus::Cancelled), self.error.as_deref());
        self.of.say(TransitionTask { status, error, ..word("status") }).await
    }
}

/// A task in a list.
pub fn line(task: &Task) -> String {
    let (id, status, kind) = (brief(&task.id), task.status.as_str(), brief(&task.task_type));
    let error = task.last_error.as_deref().map(|error| format!(": {}", brief(error))).unwrap_or_default();
    let more = match (task.status, &task.lease, task.next_retry_at) {
        (_, Some(lease), _) => format!("  {} until {}", brief(&lease.owner), lease.expires_at),
        (TaskStatus::Failed, _, Some(at)) => format!("  again at {at}{error}"),
        (TaskStatus::Failed, ..) => format!("  for good{error}"),
        (TaskStatus::Blocked | TaskStatus::Cancelled, ..) if !error.is_empty() => format!("  because{error}"),
        (TaskStatus::Pending | TaskStatus::Runnable, ..) if !task.depends_on_task_ids.is_empty() => {
            format!("  after {}", brief(&task.depends_on_task_ids.join(", ")))
        }
        _ => String::new(),
    };
    format!("{status:<11}  {id}  {kind}{more}")
}

/// A task, as a person reads it.
fn shown(task: &Task) -> Vec<String> {
    let json = |value: &Value| plain(&value.to_string());
    let list = |ids: &[String]| (!ids.is_empty()).then(|| brief(&ids.join(", ")));
    let workflow = task.workflow_id.as_deref().map(|flow| match &task.workflow_node_id {
        Some(node) => format!("{}, {}", brief(flow), brief(node)),
        None => brief(flow),
    });
    let lease = task.lease.as_ref();
    let optional = [
        ("priority", (task.priority != 0).then(|| task.priority.to_string())),
        ("failures", (task.attempt > 0).then(|| format!("{} of {}", task.attempt, task.max_attempts))),
        ("workflow", workflow),
        ("parent", task.parent_task_id.as_deref().map(brief)),
        ("after", list(&task.depends_on_task_ids)),
        ("decisions", list(&task.decision_ids)),
        ("artifacts", list(&task.artifact_ids)),
        ("error", task.last_error.as_deref().map(brief)),
        ("payload", task.payload.as_object().filter(|fields| !fields.is_empty()).map(|_| json(&task.payload))),
        ("output", task.output.as_ref().map(json)),
        ("revision", Some(task.task_rev.to_string())),
        ("fence", lease.map(|lease| lease.fence.to_string())),
    ];
    let mut lines = vec![line(task)];
    lines.extend(optional.into_iter().filter_map(|(name, value)| Some(format!("{name:<10}  {}", value?))));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_of_a_file_are_a_list_or_lines_or_a_request() {
        let both = [json!({ "task_type": "a" }), json!({ "task_type": "b" })];
        for text in [
            r#"[{"task_type": "a"}, {"task_type": "b"}]"#,
            "{\"task_type\": \"a\"}\n\n{\"task_type\": \"b\"}\n",
            r#"{"tasks": [{"task_type": "a"}, {"task_type": "b"}]}"#,
            "{\n\"task_type\": \"a\"\n}\n[{\"task_type\": \"b\"}]",
        ] {
            assert_eq!(tasks(text).unwrap(), both, "{text}");
        }
        assert_eq!(tasks("\n").unwrap(), [] as [Value; 0]);
        for wrong in ["{", "1", r#"{"tasks": 1}"#, r#"{"tasks": [], "more": 1}"#, "{}\nnonsense"] {
            assert!(tasks(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_written_into_the_payload() {
        let new = |payload: Option<&str>| New {
            id: None,
            payload: payload.map(str::to_owned),
            target: Some("src/a.rs".to_owned()),
            depends_on: Vec::new(),
            priority: None,
            max_attempts: None,
            status: None,
            workflow: None,
            node: None,
            parent: None,
        };
        let payload = |given| new(given).into_task("implementation".to_owned()).map(|task| task["payload"].clone());
        assert_eq!(payload(None).unwrap(), json!({ "output_target": { "path": "src/a.rs" } }));
        assert_eq!(payload(Some(r#"{"a": 1}"#)).unwrap(), json!({ "a": 1, "output_target": { "path": "src/a.rs" } }));
        assert!(payload(Some("1")).is_err());
    }
}
