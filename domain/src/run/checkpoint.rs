//! A run as it was: made and replaced as a whole, copied at a moment, begun anew from a copy.

use super::{
    Checkpoint, Image, RestoredFrom, Run, RunState, RunStatus, Task, TaskCounts, TaskStatus,
    apply::weight,
    command::{NewEntry, NewRun, NewTask, Patch, Refused, Replace, Reply},
    event::{EntryEvent, Event, Record, TaskEvent},
    image, limits, plan,
    step::{Cx, RUNTIME, Step, Stepper},
    task::{check_name, check_size, check_text},
    workspace::check_path,
};
use crate::id::{CheckpointId, RunId, Seq, TenantId};

impl RunState {
    /// A run that nobody knows yet.
    pub fn create(id: RunId, tenant: TenantId, new: NewRun, cx: Cx<'_>) -> Result<(Self, Step), Refused> {
        check_new(&new)?;
        let mut run = blank(id, tenant, cx);
        fill(&mut run, new);
        run.workspace.lease_epoch = u64::from(!run.workspace.canonical_path.is_empty());
        Ok(begin(run, cx, |stepper| Reply::Run(Box::new(stepper.state.run.clone()))))
    }
}

/// A run that begins as another one was: its plan, tasks and blackboard. Leases are not carried over, nor what tools did
/// for the other one, which is the other one's to take back.
pub fn restored(
    id: RunId,
    tenant: TenantId,
    (checkpoint_id, seq): (Option<CheckpointId>, Seq),
    image: Image,
    cx: Cx<'_>,
) -> Result<(RunState, Step), Refused> {
    check_copy(&image, cx)?;
    let from = RestoredFrom { run_id: image.run.id, checkpoint_id, seq };
    let old = image.run;
    let run = Run { task_counts: TaskCounts::default(), restored_from: Some(from), ..old };
    let run = Run { id, tenant, revision: 1, last_event_seq: 1, created_at: cx.now, updated_at: cx.now, ..run };
    Ok(begin(run, cx, |stepper| {
        stepper.by = RUNTIME.to_owned();
        for (_, task) in image.tasks {
            let status = if task.status == TaskStatus::InProgress { TaskStatus::Runnable } else { task.status };
            stepper.emit(Event::Task(TaskEvent::Created, Box::new(Task { status, lease: None, ..task })));
        }
        for entry in image.entries {
            let seq = stepper.state.seq() + 1;
            let entry = super::Entry { seq, ..entry };
            stepper.emit(Event::Entry(EntryEvent::Added, Box::new(entry)));
        }
        for (pack, text) in [(false, image.summaries.rolling), (true, image.summaries.latest_context_pack)] {
            if !text.is_empty() {
                stepper.emit(Event::Summary { pack, text });
            }
        }
        Reply::Run(Box::new(stepper.state.run.clone()))
    }))
}

/// More than anything of a run is ever counted to.
const COUNT: u64 = 1 << 53;

/// Whether a copy holds nothing that could not have been made here: it may come from lines that somebody else wrote.
/// All of it is tried on a run of no use.
fn check_copy(image: &Image, cx: Cx<'_>) -> Result<(), Refused> {
    let run = &image.run;
    check_new(&NewRun {
        run_type: Some(run.run_type.clone()),
        source_client: run.source_client.clone(),
        source_metadata: run.source_metadata.clone(),
        model_provider: run.model_provider.clone(),
        model_id: run.model_id.clone(),
        mcp_servers: run.mcp_servers.clone(),
        objective: run.objective.clone(),
        workspace: Some(run.workspace.clone()),
        steps: run.steps.clone(),
    })?;
    if run.workspace.lease_epoch > COUNT {
        return Err(Refused::invalid("workspace.lease_epoch", "is beyond anything that is counted"));
    }
    for (field, text) in [("why_next_step", &run.why_next_step), ("last_error", &run.last_error)] {
        let size = text.as_ref().map_or(0, String::len);
        if size > limits::PAYLOAD_BYTES {
            return Err(Refused::TooLarge { field: field.to_owned(), size, limit: limits::PAYLOAD_BYTES });
        }
    }
    if image.tasks.len() > limits::TASKS {
        return Err(Refused::Full { what: "tasks", limit: limits::TASKS });
    }
    let (mut scratch, _) = begin(blank(run.id, run.tenant, cx), cx, |_| Reply::Noted);
    let mut stepper = Stepper::new(&mut scratch, cx);
    let tasks: Vec<Task> = image.tasks.iter().map(|(_, task)| task.clone()).collect();
    tasks.iter().enumerate().try_for_each(|(at, task)| stepper.check_made(task, at))?;
    stepper.check_batch(&tasks)?;
    stepper.check_room(tasks.iter().map(weight).sum())?;
    for entry in &image.entries {
        stepper.patch(Patch::Add(NewEntry {
            kind: entry.kind,
            id: Some(entry.id.clone()),
            text: entry.text.clone(),
            path: entry.path.clone(),
            artifact_type: entry.artifact_type.clone(),
            step_id: entry.step_id.clone(),
            source_event_id: entry.source_event_id.clone(),
            ts_ms: entry.ts_ms,
        }))?;
        if entry.resolved || entry.resolution.is_some() {
            let (id, resolution) = (entry.id.clone(), entry.resolution.clone());
            stepper.patch(Patch::Resolve { kind: entry.kind, id, resolution })?;
        }
    }
    for (pack, text) in [(false, &image.summaries.rolling), (true, &image.summaries.latest_context_pack)] {
        stepper.patch(Patch::Summarise { pack, text: text.clone() })?;
    }
    Ok(())
}

impl Stepper<'_> {
    /// Whether a task is one that could have been made here, and could have become what it is.
    fn check_made(&self, task: &Task, at: usize) -> Result<(), Refused> {
        let field = |name: &str| format!("tasks[{at}].{name}");
        let as_new = self.made(
            NewTask {
                id: Some(task.id.clone()),
                task_type: task.task_type.clone(),
                payload: task.payload.clone(),
                status: None,
                workflow_id: task.workflow_id.clone(),
                workflow_node_id: task.workflow_node_id.clone(),
                parent_task_id: task.parent_task_id.clone(),
                depends_on_task_ids: task.depends_on_task_ids.clone(),
                decision_ids: task.decision_ids.clone(),
                artifact_ids: task.artifact_ids.clone(),
                priority: task.priority,
                max_attempts: Some(task.max_attempts),
            },
            at,
        )?;
        if (&as_new.task_type, &as_new.payload) != (&task.task_type, &task.payload) {
            return Err(Refused::invalid(field("payload"), "is not as its contract has it"));
        }
        if task.attempt > task.max_attempts {
            return Err(Refused::invalid(field("attempt"), "is beyond its `max_attempts`"));
        }
        if task.task_rev > COUNT {
            return Err(Refused::invalid(field("task_rev"), "is beyond anything that is counted"));
        }
        if task.next_retry_at.is_some() && task.status != TaskStatus::Failed {
            return Err(Refused::invalid(field("next_retry_at"), "is of failed tasks only"));
        }
        task.last_error.clone().map(|error| check_text(&field("last_error"), error)).transpose()?;
        task.assigned_agent.as_deref().map_or(Ok(()), |agent| check_name(&field("assigned_agent"), agent))?;
        task.output.as_ref().map_or(Ok(()), |output| check_size(&field("output"), output))
    }
}

/// The first step of a log.
fn begin(run: Run, cx: Cx<'_>, rest: impl FnOnce(&mut Stepper<'_>) -> Reply) -> (RunState, Step) {
    let first = Record {
        seq: 1,
        ts: cx.now,
        run_id: run.id,
        revision: 1,
        status: run.status,
        by: super::step::CLIENT.to_owned(),
        step_id: None,
        event: Event::Created,
        run: Some(Box::new(run)),
    };
    let mut state = RunState::begin(&first).expect("a new run begins as every run does");
    let mut stepper = Stepper::new(&mut state, cx);
    let reply = rest(&mut stepper);
    let mut step = stepper.finish(reply);
    step.records.insert(0, first);
    (state, step)
}

fn blank(id: RunId, tenant: TenantId, cx: Cx<'_>) -> Run {
    Run {
        id,
        run_type: "interactive".to_owned(),
        tenant,
        source_client: None,
        source_metadata: None,
        model_provider: None,
        model_id: None,
        mcp_servers: Vec::new(),
        status: RunStatus::Queued,
        objective: String::new(),
        workspace: super::RunWorkspace::default(),
        steps: Vec::new(),
        why_next_step: None,
        last_error: None,
        task_counts: TaskCounts::default(),
        restored_from: None,
        revision: 1,
        last_event_seq: 1,
        created_at: cx.now,
        started_at: None,
        ended_at: None,
        updated_at: cx.now,
    }
}

/// What a caller may say of a run, put into it.
fn fill(run: &mut Run, new: NewRun) {
    if let Some(run_type) = new.run_type {
        run.run_type = run_type;
    }
    run.source_client = new.source_client;
    // JSON cannot tell it from none.
    run.source_metadata = new.source_metadata.filter(|metadata| !metadata.is_null());
    run.model_provider = new.model_provider;
    run.model_id = new.model_id;
    run.mcp_servers = new.mcp_servers;
    run.objective = new.objective;
    run.steps = new.steps;
    run.workspace = new.workspace.unwrap_or_default();
}

fn check_new(new: &NewRun) -> Result<(), Refused> {
    if new.objective.trim().is_empty() {
        return Err(Refused::invalid("objective", "is blank"));
    }
    let size = new.objective.len();
    if size > limits::OBJECTIVE_BYTES {
        return Err(Refused::TooLarge { field: "objective".to_owned(), size, limit: limits::OBJECTIVE_BYTES });
    }
    let names = [
        ("run_type", &new.run_type),
        ("source_client", &new.source_client),
        ("model_provider", &new.model_provider),
        ("model_id", &new.model_id),
    ];
    for (field, name) in names {
        name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
    }
    if new.mcp_servers.len() > limits::NAMES {
        return Err(Refused::invalid("mcp_servers", format!("has more than {} entries", limits::NAMES)));
    }
    new.mcp_servers.iter().try_for_each(|name| check_name("mcp_servers", name))?;
    new.source_metadata.as_ref().map_or(Ok(()), |metadata| check_size("source_metadata", metadata))?;
    if let Some(workspace) = &new.workspace {
        check_path("workspace.canonical_path", &workspace.canonical_path)?;
        if !workspace.canonical_path.is_empty() && workspace.canonical_path.trim().is_empty() {
            return Err(Refused::invalid("workspace.canonical_path", "is blank"));
        }
        check_path("workspace.workspace_id", &workspace.workspace_id)?;
    }
    plan::check_steps(&new.steps)
}

impl Stepper<'_> {
    /// Puts another record in the place of this one, for whoever has seen this one.
    pub(super) fn replace(&mut self, replace: Replace, asked: bool) -> Result<Reply, Refused> {
        let head = self.state.run.revision;
        match replace.revision {
            Some(expected) if expected != head => return Err(Refused::Precondition { expected, head }),
            None if !asked => return Err(Refused::PreconditionRequired),
            _ => {}
        }
        check_new(&replace.new)?;
        if replace.tasks.as_ref().is_some_and(|tasks| !tasks.iter().eq(self.state.tasks())) {
            return Err(Refused::invalid("tasks", "are changed by their own verbs; leave them out, or as they are"));
        }
        let before = self.state.run.clone();
        if !before.status.may_become(replace.status) {
            return Err(Refused::RunTransition { from: before.status, to: replace.status });
        }
        let texts = [("why_next_step", &replace.why_next_step), ("last_error", &replace.last_error)];
        for (field, text) in texts {
            text.clone().map(|text| check_text(field, text)).transpose()?;
        }
        let mut run = before.clone();
        fill(&mut run, replace.new);
        let (old, new) = (&before.workspace, &mut run.workspace);
        let moved = old.canonical_path != new.canonical_path;
        if moved && old.lease_epoch > 0 && new.lease_epoch != old.lease_epoch {
            return Err(Refused::Epoch { presented: Some(new.lease_epoch), current: old.lease_epoch });
        }
        if moved && new.canonical_path.is_empty() {
            let why = "is taken by the run: it can be bound to another path, and not to none";
            return Err(Refused::invalid("workspace.canonical_path", why));
        }
        new.lease_epoch = old.lease_epoch + u64::from(moved);
        run.enter(replace.status, self.cx.now);
        (run.why_next_step, run.last_error) = (replace.why_next_step, replace.last_error);
        if run == before {
            return Ok(Reply::Run(Box::new(before)));
        }
        if moved && old.lease_epoch > 0 {
            self.take_all("the run was bound to another workspace");
            run.task_counts = self.state.run.task_counts;
        }
        self.emit_run(Event::Replaced, run);
        Ok(Reply::Run(Box::new(self.state.run.clone())))
    }

    /// Keeps a copy of the run as it is.
    pub(super) fn save_checkpoint(&mut self, reason: Option<String>) -> Result<Reply, Refused> {
        let reason = reason.map(|reason| check_text("reason", reason)).transpose()?;
        if self.state.checkpoints.len() >= limits::CHECKPOINTS {
            return Err(Refused::Full { what: "checkpoints", limit: limits::CHECKPOINTS });
        }
        let copy = image::bytes(&self.state.image());
        if copy.len() > limits::IMAGE_BYTES {
            let (field, size) = ("the run".to_owned(), copy.len());
            return Err(Refused::TooLarge { field, size, limit: limits::IMAGE_BYTES });
        }
        let checkpoint = Checkpoint {
            id: CheckpointId::new(self.cx.ids.mint()),
            seq: self.state.seq(),
            reason,
            created_at: self.cx.now,
        };
        let saved = self.emit(Event::CheckpointSaved(checkpoint.clone()));
        self.touched.image = Some((saved, copy));
        Ok(Reply::Checkpoint(checkpoint))
    }

    pub(super) fn delete_checkpoint(&mut self, id: CheckpointId) -> Result<Reply, Refused> {
        let found = self.state.checkpoints.values().find(|checkpoint| checkpoint.id == id).cloned();
        let checkpoint = found.ok_or(Refused::NoCheckpoint)?;
        self.emit(Event::CheckpointDeleted(checkpoint.clone()));
        Ok(Reply::Checkpoint(checkpoint))
    }
}
