//! Tasks: how they are made, handed out, and what may be said about them.
//!
//! | action | pending | runnable | in_progress | blocked | failed | cancelled | done |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | claim | when its dependencies are done: in_progress | the same | – | – | – | – | – |
//! | heartbeat | – | – | under its lease | – | – | – | – |
//! | complete | – | – | under its lease: done | – | – | – | – |
//! | fail | – | – | under its lease: failed | failed | – | – | – |
//! | release | – | – | under its lease: runnable | runnable | – | – | – |
//! | retry | – | – | – | runnable | runnable | runnable | – |
//! | status `runnable` | yes | = | under its lease | yes | yes | – | – |
//! | status `blocked` | yes | yes | under its lease | = | – | – | – |
//! | status `done` | – | – | under its lease | – | – | – | = |
//! | status `failed` | – | – | under its lease | failed | = | – | – |
//! | status `cancelled` | yes | yes | yes, whoever holds it | yes | yes | = | – |
//! | lease runs out | – | – | runnable | – | – | – | – |
//! | its retry time comes | – | – | – | – | runnable | – | – |
//!
//! A task fails for good with its `max_attempts`-th failure; before that it waits for
//! `RETRY_BASE_MS × 2^(failures − 1)` and comes back by itself. What a lost lease interrupts is no failure.
//! A lease is judged when it is spoken of: one that has run out is as good as lost, whether or not somebody has noticed.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    RunState, RunStatus, Slot, Task, TaskLease, TaskStatus,
    apply::{after, size, weight},
    command::{Action, Claim, Claimed, NewTask, Refused, Reply, Transition, Worker, is_a_workers},
    event::{Event, TaskEvent},
    limits,
    step::{RUNTIME, Stepper},
};
use crate::{id::ThreadId, time::UnixMs};

/// How long a lease lasts unless its holder says otherwise, and what he may say.
pub const DEFAULT_LEASE_MS: u64 = 30_000;
pub const LEASE_MS: std::ops::RangeInclusive<u64> = 5_000..=300_000;
/// The pause after the first failure; it doubles with each.
pub const RETRY_BASE_MS: u64 = 500;
/// The longest pause.
const LONGEST_RETRY_MS: u64 = 60 * 60 * 1000;
const MAX_ATTEMPTS: u32 = 3;
/// No task is called that: it stands where ids of tasks do.
const CLAIM: &str = "claim";
const MOST_ATTEMPTS: u32 = 100;

impl Stepper<'_> {
    /// Makes all of the tasks or none.
    pub(super) fn create_tasks(&mut self, new: Vec<NewTask>) -> Result<Reply, Refused> {
        if new.is_empty() {
            return Err(Refused::invalid("tasks", "is empty"));
        }
        if new.len() > limits::BATCH {
            return Err(Refused::invalid("tasks", format!("has more than {} entries", limits::BATCH)));
        }
        if self.state.tasks.len() + new.len() > limits::TASKS {
            return Err(Refused::Full { what: "tasks", limit: limits::TASKS });
        }
        let mut tasks = Vec::with_capacity(new.len());
        for (at, new) in new.into_iter().enumerate() {
            tasks.push(self.made(new, at)?);
        }
        self.check_batch(&tasks)?;
        self.check_room(tasks.iter().map(weight).sum())?;
        for task in &tasks {
            self.emit(Event::Task(TaskEvent::Created, Box::new(task.clone())));
        }
        Ok(Reply::Tasks(tasks))
    }

    /// Whether the run may hold this many bytes more.
    pub(super) fn check_room(&self, more: usize) -> Result<(), Refused> {
        if self.state.bytes + more <= limits::HELD_BYTES {
            return Ok(());
        }
        Err(Refused::Full { what: "bytes of tasks and blackboard", limit: limits::HELD_BYTES })
    }

    pub(super) fn made(&self, new: NewTask, at: usize) -> Result<Task, Refused> {
        let field = |name: &str| format!("tasks[{at}].{name}");
        let id = match new.id {
            Some(id) if id == CLAIM => return Err(Refused::invalid(field("id"), "is what claiming is called")),
            Some(id) => check_id(&field("id"), id)?,
            None => format!("task-{}", self.cx.ids.mint().as_hyphenated()),
        };
        let status = new.status.unwrap_or(TaskStatus::Pending);
        if !matches!(status, TaskStatus::Pending | TaskStatus::Runnable | TaskStatus::Blocked) {
            return Err(Refused::invalid(field("status"), "must be pending, runnable or blocked when a task is made"));
        }
        let max_attempts = new.max_attempts.unwrap_or(MAX_ATTEMPTS);
        if !(1..=MOST_ATTEMPTS).contains(&max_attempts) {
            return Err(Refused::invalid(field("max_attempts"), format!("must be from 1 to {MOST_ATTEMPTS}")));
        }
        let (task_type, payload) = contract(&id, &new.task_type, new.payload)?;
        check_name(&field("task_type"), &task_type)?;
        check_size(&field("payload"), &payload)?;
        for (name, ids) in [
            ("depends_on_task_ids", &new.depends_on_task_ids),
            ("decision_ids", &new.decision_ids),
            ("artifact_ids", &new.artifact_ids),
        ] {
            check_names(&field(name), ids)?;
        }
        let names = [
            ("workflow_id", &new.workflow_id),
            ("workflow_node_id", &new.workflow_node_id),
            ("parent_task_id", &new.parent_task_id),
        ];
        for (name, text) in names {
            text.as_deref().map_or(Ok(()), |text| check_name(&field(name), text))?;
        }
        Ok(Task {
            id,
            task_type,
            payload,
            status,
            workflow_id: new.workflow_id,
            workflow_node_id: new.workflow_node_id,
            parent_task_id: new.parent_task_id,
            depends_on_task_ids: new.depends_on_task_ids,
            decision_ids: new.decision_ids,
            artifact_ids: new.artifact_ids,
            assigned_agent: None,
            priority: new.priority,
            attempt: 0,
            max_attempts,
            last_error: None,
            next_retry_at: None,
            lease: None,
            output: None,
            task_rev: 1,
            created_at: self.cx.now,
            updated_at: self.cx.now,
        })
    }

    /// Whether tasks can be made beside those that there are: new names, known dependencies, no circles.
    pub(super) fn check_batch(&self, tasks: &[Task]) -> Result<(), Refused> {
        let mut places = BTreeMap::new();
        for (at, task) in tasks.iter().enumerate() {
            if self.state.names.contains_key(&task.id) || places.insert(task.id.as_str(), at).is_some() {
                return Err(Refused::TaskExists { id: task.id.clone() });
            }
        }
        let known = |id: &String| places.contains_key(id.as_str()) || self.state.names.contains_key(id);
        for (at, task) in tasks.iter().enumerate() {
            let field = format!("tasks[{at}].depends_on_task_ids");
            if let Some(unknown) = task.depends_on_task_ids.iter().find(|id| !known(id)) {
                return Err(Refused::invalid(field, format!("names the task `{unknown}`, which there is not")));
            }
            if task.parent_task_id.as_ref().is_some_and(|id| !known(id)) {
                return Err(Refused::invalid(format!("tasks[{at}].parent_task_id"), "names no task"));
            }
        }
        // What is there already waits for nothing that is new, so a circle is within the batch. A task whose
        // dependencies are settled is settled; what is left over at the end is in a circle, or waits for one.
        let mut waiting = vec![Vec::new(); tasks.len()];
        let mut open = vec![0_usize; tasks.len()];
        for (at, task) in tasks.iter().enumerate() {
            for on in task.depends_on_task_ids.iter().filter_map(|id| places.get(id.as_str())) {
                waiting[*on].push(at);
                open[at] += 1;
            }
        }
        let mut settled: Vec<usize> = (0..tasks.len()).filter(|at| open[*at] == 0).collect();
        while let Some(on) = settled.pop() {
            for at in std::mem::take(&mut waiting[on]) {
                open[at] -= 1;
                if open[at] == 0 {
                    settled.push(at);
                }
            }
        }
        let Some(at) = open.iter().position(|open| *open > 0) else { return Ok(()) };
        let why = format!("of `{}` lead back to itself, or to tasks that do", tasks[at].id);
        Err(Refused::invalid(format!("tasks[{at}].depends_on_task_ids"), why))
    }

    /// Hands out the task that is next, if there is one.
    pub(super) fn claim(&mut self, claim: Claim) -> Result<Reply, Refused> {
        check_name("agent_id", &claim.agent_id)?;
        if is_a_workers(&claim.agent_id) {
            let why = format!("begins with `{}`, as the names of the runtime's own workers do", ThreadId::PREFIX);
            return Err(Refused::invalid("agent_id", why));
        }
        self.hand_out(claim)
    }

    /// The same for a worker of the runtime: one that holds a task already, because it was interrupted, goes on with it.
    pub(super) fn work(&mut self, worker: Worker, claim: Claim) -> Result<Reply, Refused> {
        let agent_id = worker.to_string();
        if let Some(task) = self.state.held_as(&agent_id, self.cx.now) {
            return Ok(Reply::Claimed(Box::new(Claimed { task: Some(task.clone()), why: None })));
        }
        // The workspace of a thread is the runtime's to know: it cannot be another one than the run's by mistake.
        let lease_epoch = Some(self.state.run.workspace.lease_epoch);
        self.hand_out(Claim { agent_id, lease_epoch, ..claim })
    }

    fn hand_out(&mut self, claim: Claim) -> Result<Reply, Refused> {
        self.check_epoch(claim.lease_epoch)?;
        if let Some(id) = &claim.task_id
            && !self.state.names.contains_key(id)
        {
            return Err(Refused::NoTask);
        }
        self.by = RUNTIME.to_owned();
        self.sweep();
        let nothing = |why: String| Ok(Reply::Claimed(Box::new(Claimed { task: None, why: Some(why) })));
        let status = self.state.run.status;
        if status == RunStatus::Paused || status.is_terminal() {
            return nothing(format!("the run is {}", status.as_str()));
        }
        if self.state.rollback.is_some() {
            return nothing("files of the run are being put back".to_owned());
        }
        let Some(slot) = self.state.choose(&claim) else { return nothing("no task can be claimed now".to_owned()) };
        self.by = format!("agent:{}", claim.agent_id);
        let token = format!("lease-{}{}", self.cx.ids.mint().as_simple(), self.cx.ids.mint().as_simple());
        let task = self.state.tasks[&slot].clone();
        let lease = TaskLease {
            owner: claim.agent_id.clone(),
            expires_at: self.lease_end(claim.lease_ms),
            fence: self.state.seq() + 1,
            lease_epoch: self.state.run.workspace.lease_epoch,
            token_sha256: digest(&token),
            token: None,
        };
        let mut claimed = self.put(
            TaskEvent::Claimed,
            Task { status: TaskStatus::InProgress, assigned_agent: Some(claim.agent_id), lease: Some(lease), ..task },
        );
        if let Some(lease) = &mut claimed.lease {
            lease.token = Some(token);
        }
        Ok(Reply::Claimed(Box::new(Claimed { task: Some(claimed), why: None })))
    }

    fn lease_end(&self, asked: Option<u64>) -> UnixMs {
        let (shortest, longest) = LEASE_MS.into_inner();
        after(self.cx.now, asked.unwrap_or(DEFAULT_LEASE_MS).clamp(shortest, longest))
    }

    /// Saves a change of a task; what it is then.
    fn put(&mut self, event: TaskEvent, task: Task) -> Task {
        let task = Task { task_rev: task.task_rev + 1, updated_at: self.cx.now, ..task };
        self.emit(Event::Task(event, Box::new(task.clone())));
        task
    }

    /// Takes a worker's word about the task that it holds.
    pub(super) fn say(&mut self, worker: Worker, asked: Transition) -> Result<Reply, Refused> {
        let agent = worker.to_string();
        if self.state.task(&asked.task_id).is_none() {
            return Err(Refused::NoTask);
        }
        if self.state.held_as(&agent, self.cx.now).is_none_or(|held| held.id != asked.task_id) {
            return Err(Refused::LeaseInvalid { why: "is over, or was never this worker's", fence: None });
        }
        self.spoken(Transition { agent_id: Some(agent), ..asked }, true)
    }

    /// Takes back what a worker holds that is gone.
    pub(super) fn give_back(&mut self, worker: Worker) -> Reply {
        let agent = worker.to_string();
        if let Some(task) = self.state.held_as(&agent, self.cx.now).cloned() {
            self.by = format!("agent:{agent}");
            self.put(TaskEvent::Requeued, Task { status: TaskStatus::Runnable, lease: None, ..task });
        }
        Reply::Noted
    }

    /// Takes a word about a task.
    pub(super) fn transition(&mut self, asked: Transition) -> Result<Reply, Refused> {
        if asked.agent_id.as_deref().is_some_and(is_a_workers) {
            let why = format!("begins with `{}`, as the names of the runtime's own workers do", ThreadId::PREFIX);
            return Err(Refused::invalid("agent_id", why));
        }
        self.spoken(asked, false)
    }

    /// Takes a word about a task; `proven`: it is known to be the holder's.
    fn spoken(&mut self, asked: Transition, proven: bool) -> Result<Reply, Refused> {
        let task = self.state.task(&asked.task_id).ok_or(Refused::NoTask)?.clone();
        if let Some(expected) = asked.expected_task_rev
            && expected != task.task_rev
        {
            return Err(Refused::TaskRev { expected, task_rev: task.task_rev });
        }
        asked.agent_id.as_deref().map_or(Ok(()), |agent| check_name("agent_id", agent))?;
        // JSON cannot tell it from none.
        let output = asked.output.as_ref().filter(|output| !output.is_null()).cloned();
        output.as_ref().map_or(Ok(()), |output| check_size("output", output))?;
        let error = asked.error.clone().map(|error| check_text("error", error)).transpose()?;
        // What no holder could do is told first: whoever is late learns what became of the task.
        let to = target(&task, asked.action)?;
        if !proven {
            check_lease(&task, &asked, self.cx.now)?;
        }
        // Who holds a lease is known by the lease, whatever name is given with its token.
        let holder = task.lease.as_ref().filter(|_| proven || asked.lease_token.is_some()).map(|lease| &lease.owner);
        if let Some(agent) = holder.or(asked.agent_id.as_ref()) {
            self.by = format!("agent:{agent}");
        }
        let freed = Task { lease: None, ..task.clone() };
        let done = match (asked.action, to) {
            (Action::Heartbeat, _) => {
                let expires_at = self.lease_end(asked.lease_ms);
                let lease = task.lease.clone().map(|lease| TaskLease { expires_at, ..lease });
                self.put(TaskEvent::Heartbeat, Task { lease, ..freed })
            }
            // What is so already.
            (Action::Status(_), to) if to == task.status => task,
            (_, TaskStatus::Done) => {
                self.check_room(output.as_ref().map_or(0, size))?;
                self.put(TaskEvent::Completed, Task { status: to, output, last_error: None, ..freed })
            }
            (_, TaskStatus::Failed) => {
                let failed = self.failed(freed, error);
                self.put(TaskEvent::Failed, failed)
            }
            (_, TaskStatus::Blocked) => {
                let last_error = error.or_else(|| task.last_error.clone());
                self.put(TaskEvent::Blocked, Task { status: to, last_error, ..freed })
            }
            (_, TaskStatus::Cancelled) => {
                let last_error = error.or_else(|| task.last_error.clone());
                self.put(TaskEvent::Cancelled, Task { status: to, last_error, next_retry_at: None, ..freed })
            }
            (action, to) => {
                let back = Task { status: to, next_retry_at: None, ..freed };
                // Whoever makes a task claimable that has failed for good, or was called off, means all of its attempts.
                let renewed = task.attempt >= task.max_attempts || task.status == TaskStatus::Cancelled;
                let back = if renewed { Task { attempt: 0, ..back } } else { back };
                let back = if action == Action::Retry { Task { last_error: None, ..back } } else { back };
                self.put(TaskEvent::Requeued, back)
            }
        };
        Ok(Reply::Task(Box::new(done)))
    }

    /// A task that has failed once more.
    fn failed(&self, task: Task, error: Option<String>) -> Task {
        let attempt = task.attempt + 1;
        let again = attempt < task.max_attempts;
        let wait = RETRY_BASE_MS.saturating_mul(1 << (attempt - 1).min(20)).min(LONGEST_RETRY_MS);
        let next_retry_at = again.then(|| after(self.cx.now, wait));
        let last_error = error.or_else(|| task.last_error.clone());
        Task { status: TaskStatus::Failed, attempt, next_retry_at, last_error, ..task }
    }

    pub(super) fn tick(&mut self) -> Reply {
        self.by = RUNTIME.to_owned();
        self.sweep();
        Reply::Noted
    }

    /// Takes tasks from holders whose time is over, and brings back failed ones whose time has come.
    fn sweep(&mut self) {
        for slot in self.state.queue.expired(self.cx.now).take(limits::SWEEP).collect::<Vec<_>>() {
            let task = self.state.tasks[&slot].clone();
            let holder = task.lease.as_ref().map_or("nobody", |lease| &lease.owner);
            let last_error = Some(format!("the lease of {holder} ran out"));
            let back = Task { status: TaskStatus::Runnable, lease: None, last_error, ..task };
            self.put(TaskEvent::StaleRequeued, back);
        }
        for slot in self.state.queue.due(self.cx.now).take(limits::SWEEP).collect::<Vec<_>>() {
            let task = self.state.tasks[&slot].clone();
            self.put(TaskEvent::Requeued, Task { status: TaskStatus::Runnable, next_retry_at: None, ..task });
        }
    }

    /// Takes every task from whoever holds it.
    pub(super) fn take_all(&mut self, why: &str) {
        for slot in self.state.queue.held().collect::<Vec<_>>() {
            let task = self.state.tasks[&slot].clone();
            let last_error = Some(why.to_owned());
            self.put(TaskEvent::Requeued, Task { status: TaskStatus::Runnable, lease: None, last_error, ..task });
        }
    }
}

impl RunState {
    /// The task that is held under this name, and whose lease has not run out.
    fn held_as(&self, agent: &str, now: UnixMs) -> Option<&Task> {
        let mut held = self.queue.held().filter_map(|slot| self.tasks.get(&slot));
        held.find(|task| task.lease.as_ref().is_some_and(|lease| lease.owner == agent && lease.expires_at > now))
    }

    fn choose(&self, claim: &Claim) -> Option<Slot> {
        // Types are asked for in any spelling in which tasks are made.
        let task_type = claim.task_type.as_deref().map(type_of);
        let Some(id) = &claim.task_id else {
            return self.queue.next(task_type, claim.workflow_id.as_deref());
        };
        let slot = *self.names.get(id)?;
        let task = self.tasks.get(&slot)?;
        let fits = task_type.is_none_or(|wanted| *wanted == task.task_type)
            && claim.workflow_id.as_ref().is_none_or(|wanted| Some(wanted) == task.workflow_id.as_ref());
        (fits && self.queue.is_ready(slot, task)).then_some(slot)
    }
}

/// Lower-case hex SHA-256.
fn digest(text: &str) -> String {
    let digits = |byte: u8| [byte >> 4, byte & 15].map(|half| char::from(b"0123456789abcdef"[usize::from(half)]));
    Sha256::digest(text).iter().flat_map(|byte| digits(*byte)).collect()
}

/// Whether whoever speaks may speak of the task now.
fn check_lease(task: &Task, asked: &Transition, now: UnixMs) -> Result<(), Refused> {
    let fence = task.lease.as_ref().map(|lease| lease.fence);
    let invalid = |why| Err(Refused::LeaseInvalid { why, fence });
    #[cfg(feature = "planted")]
    if crate::planted::is(crate::planted::Fault::LateWord) {
        return Ok(());
    }
    match (&task.lease, &asked.lease_token) {
        (Some(lease), Some(token)) if digest(token) != lease.token_sha256 => invalid("is another one's"),
        (Some(lease), Some(_)) if lease.expires_at <= now => invalid("has run out"),
        (Some(_), Some(_)) => Ok(()),
        // Nobody needs a lease to call a task off.
        (Some(_), None) if asked.action == Action::Status(TaskStatus::Cancelled) => Ok(()),
        (Some(_), None) => Err(Refused::LeaseRequired),
        // It was completed, or taken away.
        (None, Some(_)) => invalid("is over"),
        (None, None) => Ok(()),
    }
}

/// What a task becomes, by the table above.
fn target(task: &Task, action: Action) -> Result<TaskStatus, Refused> {
    use TaskStatus::{Blocked, Cancelled, Done, Failed, InProgress, Pending, Runnable};
    let refused =
        |what: &str, requested| Err(Refused::TaskTransition { what: what.to_owned(), current: task.status, requested });
    match (action, task.status) {
        (Action::Heartbeat, InProgress) => Ok(InProgress),
        (Action::Complete, InProgress) => Ok(Done),
        (Action::Fail, InProgress | Blocked) => Ok(Failed),
        (Action::Release, InProgress | Blocked) => Ok(Runnable),
        (Action::Retry, Failed | Blocked | Cancelled) => Ok(Runnable),
        (Action::Status(to), from) if to == from => Ok(to),
        (Action::Status(Runnable), Pending | InProgress | Blocked | Failed) => Ok(Runnable),
        (Action::Status(Blocked), Pending | Runnable | InProgress) => Ok(Blocked),
        (Action::Status(Done), InProgress) => Ok(Done),
        (Action::Status(Failed), InProgress | Blocked) => Ok(Failed),
        (Action::Status(Cancelled), Pending | Runnable | InProgress | Blocked | Failed) => Ok(Cancelled),
        (Action::Heartbeat, _) => refused("kept by a heartbeat", None),
        (Action::Complete, _) => refused("completed", Some(Done)),
        (Action::Fail, _) => refused("failed", Some(Failed)),
        (Action::Release, _) => refused("released", Some(Runnable)),
        (Action::Retry, _) => refused("retried", Some(Runnable)),
        (Action::Status(InProgress), _) => refused("put in progress but by a claim", Some(InProgress)),
        (Action::Status(to), _) => refused(&format!("made {}", to.as_str()), Some(to)),
    }
}

// ---- contracts -----------------------------------------------------------------------------------

/// The kinds of tasks whose payload has a contract, and whether they write.
const KINDS: [(&str, bool); 5] = [
    ("implementation", true),
    ("inspection", false),
    ("research", false),
    ("validation", false),
    ("fix_proposal", false),
];

fn kind(word: &str) -> Option<(&'static str, bool)> {
    let word = word.trim().replace('-', "_");
    KINDS.into_iter().find(|(name, _)| *name == word)
}

/// A type as tasks have it.
fn type_of(word: &str) -> &str {
    kind(word).map_or(word.trim(), |(name, _)| name)
}

/// The type and the payload as the task's contract has them.
fn contract(id: &str, task_type: &str, payload: Value) -> Result<(String, Value), Refused> {
    let broken = |field, why: &str| Refused::Contract { task: id.to_owned(), field, why: why.to_owned() };
    let mut payload = match payload {
        Value::Null => Map::new(),
        Value::Object(payload) => payload,
        _ => return Err(broken("payload", "must be an object")),
    };
    if task_type.trim().is_empty() {
        return Err(broken("task_type", "is blank"));
    }
    let named = payload.get("task_kind").and_then(Value::as_str).and_then(kind);
    let Some((name, writes)) = named.or_else(|| kind(task_type)) else {
        return Ok((type_of(task_type).to_owned(), Value::Object(payload)));
    };
    payload.insert("task_kind".to_owned(), json!(name));
    payload.insert("execution_mode".to_owned(), json!(if writes { "strict_write" } else { "strict_nonwriting" }));
    if writes {
        let target = output_target(id, payload.get("output_target"))?;
        payload.insert("output_target".to_owned(), target);
    } else {
        payload.remove("write_required");
    }
    Ok((name.to_owned(), Value::Object(payload)))
}

/// Where an implementation writes, in one spelling.
fn output_target(id: &str, given: Option<&Value>) -> Result<Value, Refused> {
    let missing = || Refused::OutputTarget { task: id.to_owned() };
    let given = given.and_then(Value::as_object).ok_or_else(missing)?;
    let word = |names: &[&str]| {
        let mut found = names.iter().filter_map(|name| given.get(*name)?.as_str()).map(str::trim);
        found.find(|text| !text.is_empty()).map(str::to_owned)
    };
    let path = word(&["path", "file", "file_path", "target"]).ok_or_else(missing)?;
    if path.starts_with(['/', '\\']) || path.contains('\0') || path.split(['/', '\\']).any(|part| part == "..") {
        let why = "must stay in the workspace: relative, without `..`".to_owned();
        return Err(Refused::Contract { task: id.to_owned(), field: "payload.output_target.path", why });
    }
    let mut target = Map::from_iter([("path".to_owned(), json!(path))]);
    target.extend(word(&["kind", "type"]).map(|kind| ("kind".to_owned(), json!(kind))));
    target.extend(word(&["operation", "mode"]).map(|mode| ("operation".to_owned(), json!(mode))));
    Ok(Value::Object(target))
}

// ---- what callers may write ----------------------------------------------------------------------

/// An id that a caller chose: it stands in paths and in commands, so it is of few characters.
pub(super) fn check_id(field: &str, id: String) -> Result<String, Refused> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'@');
    let is_id = (1..=limits::ID_BYTES).contains(&id.len()) && id.bytes().all(fits) && id != "." && id != "..";
    if is_id {
        return Ok(id);
    }
    let why = format!("must be 1 to {} letters, digits, `-`, `_`, `.`, `:` and `@`", limits::ID_BYTES);
    Err(Refused::invalid(field, why))
}

/// A name of something that may be elsewhere.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Refused> {
    if name.trim().is_empty() {
        return Err(Refused::invalid(field, "is blank"));
    }
    if name.len() > limits::ID_BYTES {
        return Err(Refused::TooLarge { field: field.to_owned(), size: name.len(), limit: limits::ID_BYTES });
    }
    if name.chars().any(char::is_control) {
        return Err(Refused::invalid(field, "has control characters"));
    }
    Ok(())
}

fn check_names(field: &str, names: &[String]) -> Result<(), Refused> {
    if names.len() > limits::NAMES {
        return Err(Refused::invalid(field, format!("has more than {} entries", limits::NAMES)));
    }
    names.iter().try_for_each(|name| check_name(field, name))
}

pub(super) fn check_text(field: &str, text: String) -> Result<String, Refused> {
    if text.len() > limits::TEXT_BYTES {
        return Err(Refused::TooLarge { field: field.to_owned(), size: text.len(), limit: limits::TEXT_BYTES });
    }
    Ok(text)
}

pub(super) fn check_size(field: &str, value: &Value) -> Result<(), Refused> {
    if !is_within(value, limits::DEPTH) {
        return Err(Refused::invalid(field, format!("has more than {} levels", limits::DEPTH)));
    }
    let size = super::image::bytes(value).len();
    if size > limits::PAYLOAD_BYTES {
        return Err(Refused::TooLarge { field: field.to_owned(), size, limit: limits::PAYLOAD_BYTES });
    }
    Ok(())
}

fn is_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(all) => levels > 0 && all.iter().all(|value| is_within(value, levels - 1)),
        Value::Object(all) => levels > 0 && all.values().all(|value| is_within(value, levels - 1)),
        _ => true,
    }
}
