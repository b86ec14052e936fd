//! Where the agents of a run work: the first path is adopted, another one stops the run, and binding it anew voids every
//! lease that was given before.

use serde_json::json;

use super::{
    RunStatus, RunWorkspace,
    command::{LeaseReply, Refused, Reply, ValidateLease},
    event::Event,
    step::Stepper,
    task::check_name,
};

/// Bytes of a path.
const PATH_BYTES: usize = 4096;

/// Whether a text can name a place. It is compared to the letter, and never opened.
pub(super) fn check_path(field: &str, path: &str) -> Result<(), Refused> {
    if path.len() > PATH_BYTES {
        return Err(Refused::TooLarge { field: field.to_owned(), size: path.len(), limit: PATH_BYTES });
    }
    if path.chars().any(char::is_control) {
        return Err(Refused::invalid(field, "has control characters"));
    }
    Ok(())
}

impl Stepper<'_> {
    pub(super) fn validate_lease(&mut self, asked: ValidateLease) -> Result<Reply, Refused> {
        if asked.current_path.trim().is_empty() {
            return Err(Refused::invalid("current_path", "is blank"));
        }
        check_path("current_path", &asked.current_path)?;
        for (field, name) in [("phase", &asked.phase), ("step_id", &asked.step_id)] {
            name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
        }
        let bound = self.state.run.workspace.clone();
        if bound.canonical_path.is_empty() {
            self.bind(asked.current_path, Event::WorkspaceBound, asked.step_id);
        } else if bound.canonical_path == asked.current_path {
            if let Some(presented) = asked.lease_epoch
                && presented != bound.lease_epoch
            {
                return Err(Refused::Epoch { presented: Some(presented), current: bound.lease_epoch });
            }
        } else if asked.rebind {
            // Whoever binds it anew has to know what it is bound to.
            self.check_epoch(asked.lease_epoch)?;
            self.take_all("the run was bound to another workspace");
            self.bind(asked.current_path, Event::WorkspaceRebound { was: bound.canonical_path }, asked.step_id);
        } else {
            return Ok(self.mismatch(asked, bound));
        }
        let run = &self.state.run;
        Ok(Reply::Lease(LeaseReply {
            ok: true,
            mismatch: false,
            status: run.status,
            expected_path: run.workspace.canonical_path.clone(),
            lease_epoch: run.workspace.lease_epoch,
        }))
    }

    /// Binds the run to a path: from here on, this is where its agents work.
    fn bind(&mut self, path: String, event: Event, step_id: Option<String>) {
        let mut run = self.state.run.clone();
        run.workspace.canonical_path = path;
        run.workspace.lease_epoch += 1;
        self.emit_with(event, step_id, Some(run));
    }

    fn mismatch(&mut self, asked: ValidateLease, bound: RunWorkspace) -> Reply {
        let mut run = self.state.run.clone();
        if !run.status.is_terminal() {
            run.enter(RunStatus::Paused, self.cx.now);
            run.why_next_step = Some("an agent works in another workspace than the run".to_owned());
        }
        let changed = run != self.state.run;
        let payload = json!({
            "phase": asked.phase,
            "expected_path": bound.canonical_path,
            "actual_path": asked.current_path,
        });
        self.emit_with(Event::WorkspaceMismatch { payload }, asked.step_id, changed.then_some(run));
        Reply::Lease(LeaseReply {
            ok: false,
            mismatch: true,
            status: self.state.run.status,
            expected_path: bound.canonical_path,
            lease_epoch: bound.lease_epoch,
        })
    }

    /// Whether a writer works in the workspace that the run is bound to now. Once it was bound anew, he has to say so.
    pub(super) fn check_epoch(&self, presented: Option<u64>) -> Result<(), Refused> {
        let current = self.state.run.workspace.lease_epoch;
        match presented {
            None if current <= 1 => Ok(()),
            Some(presented) if presented == current => Ok(()),
            presented => Err(Refused::Epoch { presented, current }),
        }
    }
}
