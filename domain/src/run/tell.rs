//! What a client says happened, and what that leads to.
//!
//! | event | the run becomes | the step |
//! | --- | --- | --- |
//! | `session_run_started` | running | its step, or `session-run`: in_progress |
//! | `session_run_finished` | what `status` says | done, blocked or failed, as the run |
//! | `planning_started` | awaiting_approval; without steps they are made from the objective | – |
//! | `plan_approved` | running | the first pending or runnable one: in_progress |
//! | `run_paused`, `run_resumed`, `run_cancelled` | paused, running, cancelled | – |
//! | `run_reopened`, `reopen` | running, also after its end | – |
//! | `task_retry_requested` | running | runnable |
//! | `revision_requested` | blocked | – |
//! | `step_started`, `task_started` | what `status` says | in_progress |
//! | `step_completed`, `step_done`, `task_completed` | what `status` says | done |
//! | `step_failed`, `task_failed` | what `status` says | failed |
//! | any other | what `status` says | what `payload.step_status` says |
//!
//! `status` may be left out: then the run stays what it is. Names are compared trimmed and in lower case. A step status
//! in the payload goes before the one of the table, in the last four rows. A step that there is not is left alone. Tasks
//! are changed by their own verbs: these events are about steps, whatever they are called.

use serde_json::Value;

use super::{
    Run, RunStatus, StepStatus,
    command::{Refused, Reply, Tell},
    event::{Event, is_reserved},
    limits, plan,
    step::Stepper,
    task::{check_name, check_size},
};

/// The step that stands for a session.
const SESSION: &str = "session-run";

/// Whether an event of this name goes on with a run that has ended.
pub(super) fn reopens(name: &str) -> bool {
    matches!(word(name).as_str(), "run_reopened" | "reopen")
}

fn word(name: &str) -> String {
    name.trim().to_ascii_lowercase()
}

impl Stepper<'_> {
    pub(super) fn tell(&mut self, tell: Tell) -> Result<Reply, Refused> {
        check_name("event", &tell.name)?;
        if is_reserved(&tell.name) {
            return Err(Refused::Reserved { event: tell.name });
        }
        check_size("payload", &tell.payload)?;
        tell.step_id.as_deref().map_or(Ok(()), |step| check_name("step_id", step))?;
        let before = &self.state.run;
        let mut run = before.clone();
        let told = Told { now: self.cx.now, tell: &tell };
        told.lead(&mut run)?;
        let changed = run != *before;
        let Tell { name, payload, step_id, .. } = tell;
        let event = Event::Told { name, payload };
        let seq = self.emit_with(event, step_id, changed.then_some(run));
        Ok(Reply::Told { seq })
    }
}

/// An event on its way into a run.
struct Told<'a> {
    now: crate::time::UnixMs,
    tell: &'a Tell,
}

impl Told<'_> {
    /// Changes the run as the table says.
    fn lead(&self, run: &mut Run) -> Result<(), Refused> {
        let name = word(&self.tell.name);
        let claimed = self.tell.status.unwrap_or(run.status);
        match name.as_str() {
            "session_run_started" => {
                self.begin(run, RunStatus::Running)?;
                let step = self.tell.step_id.as_deref().unwrap_or(SESSION).to_owned();
                set(run, &step, StepStatus::InProgress);
                run.why_next_step = Some(clip(self.why().unwrap_or("the session has begun")));
            }
            "session_run_finished" => {
                self.enter(run, claimed)?;
                let step = self.tell.step_id.as_deref().unwrap_or(SESSION).to_owned();
                let status = match claimed {
                    RunStatus::Failed => StepStatus::Failed,
                    RunStatus::Cancelled | RunStatus::Blocked | RunStatus::Paused => StepStatus::Blocked,
                    _ => StepStatus::Done,
                };
                set(run, &step, status);
                self.note_error(run);
                run.why_next_step = Some(clip(self.why().unwrap_or("the session has ended")));
            }
            "planning_started" => {
                self.begin(run, RunStatus::AwaitingApproval)?;
                run.started_at.get_or_insert(self.now);
                if run.steps.is_empty() {
                    run.steps = plan::from_objective(&run.objective);
                }
                run.why_next_step = Some("the plan waits for approval".to_owned());
            }
            "plan_approved" => {
                self.begin(run, RunStatus::Running)?;
                let ready = |status| matches!(status, StepStatus::Pending | StepStatus::Runnable);
                let first = run.steps.iter_mut().find(|step| ready(step.status));
                run.why_next_step = Some(match first {
                    Some(step) => {
                        step.status = StepStatus::InProgress;
                        format!("the plan is approved: `{}` is first", step.step_id)
                    }
                    None => "the plan is approved".to_owned(),
                });
            }
            "run_paused" => {
                self.enter(run, RunStatus::Paused)?;
                run.why_next_step = Some("the run is paused".to_owned());
            }
            "run_resumed" => {
                self.enter(run, RunStatus::Running)?;
                run.why_next_step = Some("the run goes on".to_owned());
            }
            "run_cancelled" => {
                self.enter(run, RunStatus::Cancelled)?;
                run.why_next_step = Some("the run is cancelled".to_owned());
            }
            name if reopens(name) => {
                run.reopen();
                run.started_at.get_or_insert(self.now);
                run.why_next_step = Some(clip(self.why().unwrap_or("the run is open again")));
            }
            "task_retry_requested" => {
                self.begin(run, RunStatus::Running)?;
                run.why_next_step = Some(match &self.tell.step_id {
                    Some(step) => {
                        set(run, step, StepStatus::Runnable);
                        format!("step `{step}` is to be tried again")
                    }
                    None => "it is to be tried again".to_owned(),
                });
            }
            "revision_requested" => {
                self.enter(run, RunStatus::Blocked)?;
                let feedback = self.tell.payload.get("feedback").and_then(Value::as_str).unwrap_or("no reason given");
                run.why_next_step = Some(clip(&format!("the plan is to be revised: {feedback}")));
            }
            "step_started" | "task_started" => self.step(run, claimed, Some(StepStatus::InProgress))?,
            "step_completed" | "step_done" | "task_completed" => self.step(run, claimed, Some(StepStatus::Done))?,
            "step_failed" | "task_failed" => self.step(run, claimed, Some(StepStatus::Failed))?,
            _ => self.step(run, claimed, None)?,
        }
        Ok(())
    }

    fn enter(&self, run: &mut Run, status: RunStatus) -> Result<(), Refused> {
        if !run.status.may_become(status) {
            return Err(Refused::RunTransition { from: run.status, to: status });
        }
        run.enter(status, self.now);
        Ok(())
    }

    /// The run goes to work: what went wrong before is over.
    fn begin(&self, run: &mut Run, status: RunStatus) -> Result<(), Refused> {
        self.enter(run, status)?;
        run.last_error = None;
        Ok(())
    }

    /// An event about a step: the run becomes what it claims, the step what the payload says, or `usual`.
    fn step(&self, run: &mut Run, claimed: RunStatus, usual: Option<StepStatus>) -> Result<(), Refused> {
        self.enter(run, claimed)?;
        if let (Some(step), Some(status)) = (&self.tell.step_id, self.step_status().or(usual)) {
            set(run, step, status);
        }
        if let Some(why) = self.why() {
            run.why_next_step = Some(clip(why));
        }
        self.note_error(run);
        Ok(())
    }

    fn note_error(&self, run: &mut Run) {
        if let Some(error) = self.tell.payload.get("error").and_then(Value::as_str) {
            run.last_error = Some(clip(error));
        }
    }

    fn why(&self) -> Option<&str> {
        self.tell.payload.get("why_next_step").and_then(Value::as_str)
    }

    fn step_status(&self) -> Option<StepStatus> {
        let names = ["step_status", "stepStatus", "step-state"];
        let said = names.iter().find_map(|name| self.tell.payload.get(*name)?.as_str())?;
        let status = plan::todo_status(said);
        // Of a word that is not known nothing follows.
        (status != StepStatus::Pending || word(said) == "pending").then_some(status)
    }
}

fn set(run: &mut Run, step: &str, status: StepStatus) {
    if let Some(step) = run.step_mut(step) {
        step.status = status;
    }
}

fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(limits::TEXT_BYTES)].to_owned()
}
