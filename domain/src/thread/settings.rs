//! Creating, changing and deleting a thread.

use super::{Cx, LATEST, Rest, Step, ThreadState, budget::checked, step::Stepper};
use crate::{
    budget::Amount,
    command::{Limits, NewThread, Refused, Reply, ThreadPatch},
    event::{Event, Record},
    id::ThreadId,
    record::{Checkpoint, MAX_DEPTH, Thread, ThreadStatus, nests_deeper},
};

impl ThreadState {
    /// Makes a thread that did not exist, and the step that says so.
    pub fn create(id: ThreadId, new: NewThread, cx: Cx<'_>) -> Result<(Self, Step), Refused> {
        let thread = Thread {
            id,
            title: new.title,
            status: ThreadStatus::Idle,
            engine: new.choice.engine,
            model: new.choice.model,
            mode: new.mode.unwrap_or_else(|| "agent".to_owned()),
            system_prompt: new.system_prompt,
            workspace: new.workspace,
            allow_shell: new.allow_shell,
            auto_approve: new.auto_approve,
            trust_mode: new.trust_mode,
            on_restart: new.on_restart,
            policy: new.policy,
            run_id: new.run_id,
            spent: new.budget.map(|_| Amount::default()),
            budget: new.budget,
            archived: false,
            active_turn: None,
            queued: 0,
            queue_paused: false,
            pending_approvals: 0,
            forked_from: None,
            created_at: cx.now,
            updated_at: cx.now,
            seq: 1,
            metadata: new.metadata,
        };
        within(&thread, cx.limits)?;
        let event = Event::ThreadCreated(Box::new(thread.clone()));
        let record = Record { seq: 1, ts: cx.now, thread: id, event };
        let Ok(state) = ThreadState::begin(&record) else { unreachable!("a log begins with this event") };
        let rest = Some(Rest { seq: 1, snapshot: state.snapshot() });
        let reply = Reply::Thread(Box::new(thread));
        Ok((state, Step { records: vec![record], settled: Vec::new(), reverted: Vec::new(), rest, reply }))
    }
}

impl Stepper<'_> {
    pub(super) fn patch(&mut self, patch: ThreadPatch) -> Result<Reply, Refused> {
        if patch == ThreadPatch::default() {
            return Err(Refused::Invalid { field: "body", why: "names no setting to change".to_owned() });
        }
        let mut view = self.next_view();
        let before = view.clone();
        let ThreadPatch { title, choice, mode, system_prompt, workspace, .. } = patch;
        set(&mut view.title, title);
        set(&mut view.mode, mode);
        set(&mut view.system_prompt, system_prompt);
        set(&mut view.workspace, workspace);
        if let Some(choice) = choice {
            view.engine = choice.engine;
            view.model = choice.model;
        }
        set(&mut view.allow_shell, patch.allow_shell);
        set(&mut view.auto_approve, patch.auto_approve);
        set(&mut view.trust_mode, patch.trust_mode);
        set(&mut view.on_restart, patch.on_restart);
        set(&mut view.policy, patch.policy);
        set(&mut view.run_id, patch.run_id);
        set(&mut view.budget, patch.budget);
        view.spent = view.budget.map(|_| self.state.spent);
        set(&mut view.archived, patch.archived);
        set(&mut view.queue_paused, patch.queue_paused);
        set(&mut view.metadata, patch.metadata);
        within(&view, self.cx.limits)?;
        let archives = view.archived && !before.archived;
        if let (true, Some(open)) = (archives, &self.state.open) {
            return Err(Refused::TurnOpen { turn: open.turn.id });
        }
        if view != before {
            view.updated_at = self.cx.now;
            view.status = match (view.archived, view.status) {
                (true, _) => ThreadStatus::Archived,
                (false, ThreadStatus::Archived) => ThreadStatus::Idle,
                (false, status) => status,
            };
            self.emit(if archives { Event::ThreadArchived(view) } else { Event::ThreadUpdated(view) });
            // The queue may have been let go.
            self.promote();
        }
        Ok(Reply::Thread(Box::new(self.state.view.clone())))
    }

    pub(super) fn save_checkpoint(&mut self, name: String) -> Result<Reply, Refused> {
        fits("name", &name, 200)?;
        let invalid = |why: &str| Err(Refused::Invalid { field: "name", why: why.to_owned() });
        if name.trim().is_empty() || name.contains(|char: char| char.is_control() || char == '/') {
            return invalid("is blank, or has characters that a path cannot have");
        }
        if name == LATEST {
            return invalid("`latest` means the newest checkpoint, and is not a name for one");
        }
        let limit = self.cx.limits.checkpoints;
        let others = self.state.checkpoints.iter().filter(|known| known.name != name).count();
        if others as u64 >= u64::from(limit) {
            return Err(Refused::Invalid { field: "name", why: format!("would be one more than {limit} checkpoints") });
        }
        // What is open now is not part of it.
        let seq = self.state.open.as_ref().map_or(self.state.view.seq, |open| open.started_seq - 1);
        let checkpoint = Box::new(Checkpoint { name, thread_id: self.state.id(), seq, created_at: self.cx.now });
        self.emit(Event::CheckpointSaved(checkpoint.clone()));
        Ok(Reply::Checkpoint(checkpoint))
    }

    pub(super) fn delete_checkpoint(&mut self, name: String) -> Result<Reply, Refused> {
        let Some(known) = self.state.checkpoints.iter().find(|known| known.name == name) else {
            return Err(Refused::NoCheckpoint { name });
        };
        let known = Box::new(known.clone());
        self.emit(Event::CheckpointDeleted(known));
        Ok(Reply::Noted)
    }

    /// The host erases the log; the one event is for those who watch.
    pub(super) fn delete(&mut self) -> Reply {
        let view = self.next_view();
        self.emit(Event::ThreadDeleted(view));
        Reply::Deleted
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Refuses what is too large or empty where it may not be.
fn within(thread: &Thread, limits: &Limits) -> Result<(), Refused> {
    let optional = [
        ("title", &thread.title, limits.field_bytes),
        ("system_prompt", &thread.system_prompt, limits.system_prompt_bytes),
        ("workspace", &thread.workspace, limits.field_bytes),
    ];
    for (field, value, limit) in optional {
        fits(field, value.as_deref().unwrap_or_default(), limit)?;
    }
    for (field, value) in [("mode", &thread.mode), ("model", &thread.model), ("engine", &thread.engine)] {
        fits(field, value, limits.field_bytes)?;
        if value.trim().is_empty() {
            return Err(Refused::Invalid { field, why: "is blank".to_owned() });
        }
    }
    if thread.metadata.values().any(|value| nests_deeper(value, MAX_DEPTH)) {
        return Err(Refused::Invalid { field: "metadata", why: format!("nests deeper than {MAX_DEPTH} levels") });
    }
    checked(thread.budget.as_ref())?;
    let policy = thread.policy.as_ref().map_or(0, json_bytes);
    for (field, size) in [("metadata", json_bytes(&thread.metadata)), ("policy", policy)] {
        if size > limits.metadata_bytes {
            return Err(Refused::TooLarge { field, size, limit: limits.metadata_bytes });
        }
    }
    Ok(())
}

pub(super) fn fits(field: &'static str, value: &str, limit: usize) -> Result<(), Refused> {
    let size = value.len();
    if size > limit { Err(Refused::TooLarge { field, size, limit }) } else { Ok(()) }
}

fn json_bytes(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}
