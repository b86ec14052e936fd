//! The plan: steps from an objective or from a todo list, and what comes next of steps and tasks.

use serde_json::json;

use super::{
    Run, RunState, RunStatus, RunStep, StepStatus, TaskStatus,
    command::{Driven, Refused, Reply, SyncTodos, Todo},
    event::Event,
    limits,
    step::Stepper,
    task::{check_id, check_name},
};

/// Lines of an objective that become steps, and how long one has to be.
const PLANNED: usize = 6;
const LINE_BYTES: usize = 8;

/// The steps that an objective names: its lines, without the marks of lists.
pub(super) fn from_objective(objective: &str) -> Vec<RunStep> {
    let mark = |mark: char| mark.is_ascii_digit() || "-*#.)[] \t".contains(mark);
    let lines = objective.lines().map(|line| line.trim().trim_start_matches(mark).trim());
    let titles: Vec<&str> = lines.filter(|line| line.len() >= LINE_BYTES).take(PLANNED).collect();
    let titles =
        if titles.is_empty() { vec!["Understand what is wanted", "Do it", "Check the outcome"] } else { titles };
    let step = |(at, title): (usize, &str)| RunStep {
        step_id: format!("step-{}", at + 1),
        title: title[..title.floor_char_boundary(limits::TITLE_BYTES)].to_owned(),
        status: StepStatus::Pending,
    };
    titles.into_iter().enumerate().map(step).collect()
}

/// Whether these can be the steps of a run.
pub(super) fn check_steps(steps: &[RunStep]) -> Result<(), Refused> {
    if steps.len() > limits::STEPS {
        return Err(Refused::Full { what: "steps", limit: limits::STEPS });
    }
    for (at, step) in steps.iter().enumerate() {
        check_id(&format!("steps[{at}].step_id"), step.step_id.clone())?;
        let field = format!("steps[{at}].title");
        if step.title.len() > limits::TITLE_BYTES {
            return Err(Refused::TooLarge { field, size: step.title.len(), limit: limits::TITLE_BYTES });
        }
        if steps[..at].iter().any(|before| before.step_id == step.step_id) {
            return Err(Refused::invalid(format!("steps[{at}].step_id"), "is there twice"));
        }
    }
    Ok(())
}

impl Stepper<'_> {
    pub(super) fn sync_todos(&mut self, sync: SyncTodos) -> Result<Reply, Refused> {
        for (field, name) in [("source_session_id", &sync.source_session_id), ("source_run_id", &sync.source_run_id)] {
            name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
        }
        let listed = sync.todos.len();
        let todos = steps_of(sync.todos)?;
        let mut run = self.state.run.clone();
        if sync.replace {
            run.steps = todos;
        } else {
            for todo in todos {
                match run.steps.iter_mut().find(|step| step.step_id == todo.step_id) {
                    Some(step) => *step = todo,
                    None => run.steps.push(todo),
                }
            }
        }
        check_steps(&run.steps)?;
        // A list changes the plan. It neither approves it nor lets a run go on that somebody has stopped.
        let waits = matches!(run.status, RunStatus::Paused | RunStatus::AwaitingApproval);
        if !run.status.is_terminal() && !waits {
            let any = |status| run.steps.iter().any(|step| step.status == status);
            let all_done = run.steps.iter().all(|step| step.status == StepStatus::Done);
            let status = match run.steps.is_empty() {
                true => run.status,
                false if any(StepStatus::InProgress) => RunStatus::Running,
                false if all_done && self.state.tasks_are_over() => RunStatus::Completed,
                // A run at work stays at work, whatever becomes of its plan.
                false if run.status == RunStatus::Running => RunStatus::Running,
                false => RunStatus::Planning,
            };
            run.enter(status, self.cx.now);
        }
        let next = [StepStatus::InProgress, StepStatus::Runnable, StepStatus::Pending];
        let next = next.iter().find_map(|status| run.steps.iter().find(|step| step.status == *status));
        run.why_next_step = next.map(|step| format!("`{}` is next on the list: {}", step.step_id, step.title));
        let payload = json!({
            "count": listed,
            "replace": sync.replace,
            "source_session_id": sync.source_session_id,
            "source_run_id": sync.source_run_id,
        });
        self.emit_run(Event::TodosSynced { payload }, run);
        Ok(Reply::Run(Box::new(self.state.run.clone())))
    }

    /// Says what comes next, and unless it is only to be said, begins it.
    pub(super) fn drive(&mut self, dry_run: bool) -> Reply {
        let Choice { step, task, status, why } = self.state.choose_next();
        let mut run = self.state.run.clone();
        let mut before = None;
        if let Some(step) = step.and_then(|at| run.steps.get_mut(at)) {
            before = Some(std::mem::replace(&mut step.status, StepStatus::InProgress));
        }
        let begun = before.is_some_and(|before| before != StepStatus::InProgress);
        run.enter(status, self.cx.now);
        let changes = begun || run.status != self.state.run.status || run.why_next_step.as_ref() != Some(&why);
        run.why_next_step = Some(why.clone());
        let step_id = step.map(|at| run.steps[at].step_id.clone());
        if changes && !dry_run && !self.state.run.status.is_terminal() {
            let payload = json!({
                "why_next_step": why,
                "selected_step_id": step_id,
                "selected_step_previous_status": before,
                "selected_task_id": task,
            });
            self.emit_with(Event::NextStepSelected { payload }, step_id.clone(), Some(run));
        }
        Reply::Driven(Box::new(Driven {
            selected_step_id: step_id,
            selected_task_id: task,
            target_status: status,
            why_next_step: why,
            run: self.state.run.clone(),
        }))
    }
}

/// The words of a todo list, as steps.
fn steps_of(todos: Vec<Todo>) -> Result<Vec<RunStep>, Refused> {
    if todos.len() > limits::TODOS {
        return Err(Refused::invalid("todos", format!("has more than {} entries", limits::TODOS)));
    }
    let mut steps = Vec::new();
    for (at, todo) in todos.into_iter().enumerate() {
        let title = todo.content.trim();
        if title.is_empty() {
            continue;
        }
        let id = todo.id.as_deref().map(str::trim).filter(|id| !id.is_empty());
        let step_id = id.map_or_else(|| format!("todo-{}", at + 1), str::to_owned);
        steps.push(RunStep { step_id, title: title.to_owned(), status: todo.status });
    }
    Ok(steps)
}

/// The status that a word of a todo list means; what is not known is `pending`.
pub fn todo_status(word: &str) -> StepStatus {
    match word.trim().to_ascii_lowercase().replace('-', "_").as_str() {
        "in_progress" | "working" | "doing" | "active" => StepStatus::InProgress,
        "runnable" | "ready" => StepStatus::Runnable,
        "done" | "completed" | "complete" => StepStatus::Done,
        "blocked" => StepStatus::Blocked,
        "failed" | "error" => StepStatus::Failed,
        _ => StepStatus::Pending,
    }
}

/// What comes next.
struct Choice {
    /// The place of a step in the plan.
    step: Option<usize>,
    task: Option<String>,
    status: RunStatus,
    why: String,
}

impl RunState {
    /// Whether no task is left to be done.
    fn tasks_are_over(&self) -> bool {
        let counts = self.run.task_counts;
        counts.all() == counts.done + counts.cancelled
    }

    /// Picks the next work: what is under way, else what is ready, else what is planned. Steps go before tasks where
    /// both could: the plan is what the run is about.
    fn choose_next(&self) -> Choice {
        let run = &self.run;
        let nothing = |status, why: String| Choice { step: None, task: None, status, why };
        match run.status {
            status if status.is_terminal() => return nothing(status, format!("the run is {}", status.as_str())),
            RunStatus::Paused => return nothing(run.status, "the run is paused".to_owned()),
            RunStatus::AwaitingApproval => return nothing(run.status, "the plan waits for approval".to_owned()),
            _ => {}
        }
        let step = |status| run.steps.iter().position(|step| step.status == status);
        let on_step = |at: usize, why: &str| {
            let why = format!("step `{}` {why}: {}", run.steps[at].step_id, run.steps[at].title);
            Choice { step: Some(at), task: None, status: RunStatus::Running, why }
        };
        let on_task = |task: &super::Task, why: &str| {
            let why = format!("task `{}` ({}) {why}", task.id, task.task_type);
            Choice { step: None, task: Some(task.id.clone()), status: RunStatus::Running, why }
        };
        if let Some(at) = step(StepStatus::InProgress) {
            return on_step(at, "is in progress");
        }
        if let Some(task) = self.queue.held().next().and_then(|slot| self.tasks.get(&slot)) {
            return on_task(task, "is in progress");
        }
        if let Some(at) = step(StepStatus::Runnable) {
            return on_step(at, "is ready");
        }
        if let Some(task) = self.queue.next(None, None).and_then(|slot| self.tasks.get(&slot)) {
            return on_task(task, "can be claimed");
        }
        if let Some(at) = step(StepStatus::Pending) {
            return on_step(at, "is next in the plan");
        }
        if let Some(at) = self.queue.next_retry() {
            return nothing(RunStatus::Running, format!("a task is tried again at {at}"));
        }
        if run.steps.is_empty() && self.tasks.is_empty() {
            return nothing(RunStatus::Blocked, "there is nothing to do: no steps and no tasks".to_owned());
        }
        let steps_done = run.steps.iter().all(|step| step.status == StepStatus::Done);
        if steps_done && self.tasks_are_over() {
            return nothing(RunStatus::Completed, "everything is done".to_owned());
        }
        nothing(RunStatus::Blocked, self.why_blocked())
    }

    /// What keeps a run from going on, by name.
    fn why_blocked(&self) -> String {
        let step = |status| self.run.steps.iter().find(|step| step.status == status);
        if let Some(step) = step(StepStatus::Failed) {
            return format!("step `{}` failed", step.step_id);
        }
        if let Some(step) = step(StepStatus::Blocked) {
            return format!("step `{}` is blocked", step.step_id);
        }
        let task = |status| self.tasks.values().find(|task| task.status == status);
        // A task that waits for one that will not be done waits for ever: whoever reads this has to know which.
        for waiting in
            self.tasks.values().filter(|task| matches!(task.status, TaskStatus::Pending | TaskStatus::Runnable))
        {
            let mut on = waiting.depends_on_task_ids.iter().filter_map(|id| self.task(id));
            if let Some(on) = on.find(|on| matches!(on.status, TaskStatus::Failed | TaskStatus::Cancelled)) {
                return format!("task `{}` waits for `{}`, which is {}", waiting.id, on.id, on.status.as_str());
            }
        }
        match (task(TaskStatus::Failed), task(TaskStatus::Blocked)) {
            (Some(failed), _) => format!("task `{}` failed", failed.id),
            (None, Some(blocked)) => format!("task `{}` is blocked", blocked.id),
            (None, None) => "what is left waits for what is blocked".to_owned(),
        }
    }
}

impl Run {
    /// The step of this name.
    pub(super) fn step_mut(&mut self, id: &str) -> Option<&mut RunStep> {
        self.steps.iter_mut().find(|step| step.step_id == id)
    }
}
