//! What tools did for the run, and taking back what they did to files.
//!
//! ```text
//!   a thread's effect ──▶ journal ──▶ recorded (each event of a thread once, by its seq)
//!
//!   rollback asked ──▶ confirmed? acknowledged? may the run be touched? known, not taken back yet, one workspace?
//!        │ no: blocked, which is on record and changes nothing else
//!        ▼ yes
//!     started ── the files are what they became ──▶ applied (each mutation once)
//!        └────── they are not ────────────────────▶ blocked: no file was touched
//! ```
//! Several mutations of one file are taken back as one: the newest says what the file must be now, the oldest what it
//! becomes, and between them each must begin where the other ended.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    LedgerRecord, LedgerSummary, Mutation, MutationRecord, Rollback, RunState, RunStatus,
    command::{AskRollback, Journal, Refused, Reply, RestoreDue, RestoreReport, WorkBy, Worker},
    event::{Event, Record, RollbackBlocked, event_id, seq_of},
    limits,
    step::{RUNTIME, Stepper},
    task::check_name,
};
use crate::{
    id::{OperationId, Seq, ThreadId, TurnId},
    ports::ChangedFile,
};

/// What has to be said for a rollback to happen.
const CONFIRM: &str = "rollback";
const POLICY_ACK: &str = "allow_rollback_execution";
/// What tools are counted as that come when the ledger counts many by name already.
const OTHER_TOOLS: &str = "(other tools)";
/// Mutations among which one is looked for that is on record already.
const REMEMBERED: usize = 1_000;

/// Counts one more record.
pub(super) fn count(ledger: &mut LedgerSummary, effect: &LedgerRecord, record: &Record) {
    ledger.record_count += 1;
    *ledger.by_status.entry(effect.status).or_default() += 1;
    *ledger.by_phase.entry(effect.phase).or_default() += 1;
    let named = ledger.by_tool.len() < limits::TOOLS || ledger.by_tool.contains_key(&effect.tool);
    *ledger.by_tool.entry(if named { effect.tool.clone() } else { OTHER_TOOLS.to_owned() }).or_default() += 1;
    (ledger.last_seq, ledger.last_ts) = (record.seq, Some(record.ts));
}

/// The mutation that an event tells of.
pub(super) fn mutation(mutation: &MutationRecord, record: &Record) -> Mutation {
    Mutation {
        event_id: event_id(record.seq),
        seq: record.seq,
        ts: record.ts,
        record: mutation.clone(),
        rolled_back_seq: None,
    }
}

/// What taking a file back would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollbackAction {
    DeleteCreatedFile,
    RecreateDeletedFile,
    RestorePreviousContents,
    NoAction,
}

impl RollbackAction {
    fn of(file: &ChangedFile) -> Self {
        match (&file.before, &file.after) {
            (None, Some(_)) => Self::DeleteCreatedFile,
            (Some(_), None) => Self::RecreateDeletedFile,
            (Some(_), Some(_)) => Self::RestorePreviousContents,
            (None, None) => Self::NoAction,
        }
    }
}

/// What taking one mutation back would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackStep {
    pub event_id: String,
    pub seq: Seq,
    pub tool: String,
    pub workspace: String,
    /// Not taken back yet, and something to be done.
    pub executable: bool,
    pub operations: Vec<RollbackOperation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackOperation {
    pub action: RollbackAction,
    #[serde(flatten)]
    pub file: ChangedFile,
}

/// What a rollback of everything would do, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackPreview {
    /// Whether all that can be taken back can be at once: there is something, and it is in one workspace.
    pub executable: bool,
    /// Whether the run stands so that anything may be taken back now.
    pub eligible: bool,
    pub step_count: usize,
    pub executable_step_count: usize,
    #[schema(value_type = Object)]
    pub by_action: BTreeMap<RollbackAction, usize>,
    pub steps: Vec<RollbackStep>,
}

/// What could be taken back, of a run that stands like this.
pub fn preview<'m>(status: RunStatus, mutations: impl Iterator<Item = &'m Mutation>) -> RollbackPreview {
    let mut by_action = BTreeMap::new();
    let mut steps: Vec<RollbackStep> = mutations
        .map(|mutation| {
            let operations: Vec<_> = mutation
                .record
                .files
                .iter()
                .map(|file| RollbackOperation { action: RollbackAction::of(file), file: file.clone() })
                .collect();
            let acts = operations.iter().any(|operation| operation.action != RollbackAction::NoAction);
            operations.iter().for_each(|operation| *by_action.entry(operation.action).or_default() += 1);
            RollbackStep {
                event_id: mutation.event_id.clone(),
                seq: mutation.seq,
                tool: mutation.record.tool.clone(),
                workspace: mutation.record.workspace.clone(),
                executable: acts && mutation.rolled_back_seq.is_none(),
                operations,
            }
        })
        .collect();
    steps.reverse();
    let executable_step_count = steps.iter().filter(|step| step.executable).count();
    let mut places = steps.iter().filter(|step| step.executable).map(|step| &step.workspace);
    let first = places.next();
    RollbackPreview {
        executable: first.is_some() && places.all(|place| Some(place) == first),
        eligible: may_roll_back(status),
        step_count: steps.len(),
        executable_step_count,
        by_action,
        steps,
    }
}

/// Whether files of a run may be put back while it stands like this.
pub const fn may_roll_back(status: RunStatus) -> bool {
    matches!(
        status,
        RunStatus::AwaitingApproval
            | RunStatus::Paused
            | RunStatus::Blocked
            | RunStatus::Failed
            | RunStatus::Completed
            | RunStatus::Cancelled
    )
}

impl Stepper<'_> {
    /// Puts on record what threads did. What is there already is passed over, so telling it twice does no harm.
    pub(super) fn journal(&mut self, entries: Vec<Journal>) -> Reply {
        self.by = RUNTIME.to_owned();
        for Journal { mut effect, mutation } in entries {
            let source = effect.source;
            if self.state.sources.get(&source.thread_id).is_some_and(|known| *known >= source.seq) {
                continue;
            }
            let named = effect.task_id.take().filter(|id| self.state.names.contains_key(id));
            effect.task_id = named.or_else(|| self.state.held_in(source.thread_id, source.turn_id));
            let task_id = effect.task_id.clone();
            // An effect that nobody was sure of has come to an end twice; what it did to files was done once.
            let is_new =
                |mutation: &MutationRecord| !mutation.files.is_empty() && !self.state.has_changed(source.operation_id);
            if let Some(mutation) = mutation.filter(is_new) {
                self.emit(Event::MutationRecorded(Box::new(MutationRecord { task_id, ..mutation })));
            }
            self.emit(Event::EffectRecorded(Box::new(effect)));
        }
        Reply::Noted
    }

    /// Begins to put files back, or says on record why not.
    pub(super) fn ask_rollback(&mut self, asked: AskRollback) -> Result<Reply, Refused> {
        if asked.confirm.trim() != CONFIRM {
            return Err(Refused::invalid("confirm", format!("must be `{CONFIRM}`")));
        }
        if asked.event_ids.is_empty() || asked.event_ids.len() > limits::ROLLBACK {
            return Err(Refused::invalid("event_ids", format!("must have 1 to {} entries", limits::ROLLBACK)));
        }
        let ids: Vec<String> = asked.event_ids.iter().map(|id| id.trim().to_owned()).collect();
        ids.iter().try_for_each(|id| check_name("event_ids", id))?;
        let mut once = BTreeSet::new();
        if let Some(twice) = ids.iter().find(|id| !once.insert(*id)) {
            return Err(Refused::invalid("event_ids", format!("has `{twice}` twice")));
        }
        if self.state.rollback.is_some() {
            return Err(Refused::RollbackOpen);
        }
        match self.state.judge_rollback(&ids, asked.policy_ack.as_deref()) {
            Ok(newest_first) => {
                let rollback = Rollback {
                    operation_id: OperationId::new(self.cx.ids.mint()),
                    event_ids: newest_first.into_iter().map(event_id).collect(),
                    started_seq: self.state.seq() + 1,
                    started_at: self.cx.now,
                };
                self.emit(Event::RollbackStarted(rollback.clone()));
                Ok(Reply::Rollback(rollback))
            }
            Err(why) => {
                let blocked = RollbackBlocked { event_ids: ids, ..why };
                self.emit(Event::RollbackBlocked(blocked.clone()));
                Ok(Reply::RollbackBlocked(blocked))
            }
        }
    }

    /// Takes the word of whoever put files back, if it is about what is under way.
    pub(super) fn restored(&mut self, report: RestoreReport) -> Reply {
        self.by = RUNTIME.to_owned();
        let due = self.state.restore_due();
        let open = self.state.rollback.clone().filter(|open| open.operation_id == report.operation);
        if let (Some(rollback), Some(due)) = (open, due) {
            match report.refused {
                None => {
                    let files = u32::try_from(due.files.len()).unwrap_or(u32::MAX);
                    self.emit(Event::RollbackApplied { rollback, files });
                }
                Some(reason) => {
                    let event_ids = rollback.event_ids;
                    let blocked = RollbackBlocked { event_ids, reason, missing_event_ids: Vec::new() };
                    self.emit(Event::RollbackBlocked(blocked));
                }
            }
        }
        Reply::Noted
    }
}

impl RunState {
    /// The task that this turn has claimed.
    fn held_in(&self, thread: ThreadId, turn: TurnId) -> Option<String> {
        let worker = Worker { thread, by: WorkBy::Turn(turn) }.to_string();
        let mut held = self.queue.held().filter_map(|slot| self.tasks.get(&slot));
        let held = held.find(|task| task.lease.as_ref().is_some_and(|lease| lease.owner == worker));
        held.map(|task| task.id.clone())
    }

    /// Whether it is on record what an operation did to files, as far as that is no long time ago.
    fn has_changed(&self, operation: OperationId) -> bool {
        self.mutations.values().rev().take(REMEMBERED).any(|known| known.record.source.operation_id == operation)
    }

    /// The mutations that are to be taken back, newest first, or why that cannot be.
    fn judge_rollback(&self, ids: &[String], ack: Option<&str>) -> Result<Vec<Seq>, RollbackBlocked> {
        let blocked = |reason: String| RollbackBlocked { event_ids: Vec::new(), reason, missing_event_ids: Vec::new() };
        if ack.map(str::trim) != Some(POLICY_ACK) {
            return Err(blocked(format!("`policy_ack` must be `{POLICY_ACK}`")));
        }
        if !may_roll_back(self.run.status) {
            return Err(blocked(format!("a run that is {} cannot be rolled back: pause it", self.run.status.as_str())));
        }
        let known = |id: &String| seq_of(id).filter(|seq| self.mutations.contains_key(seq));
        let missing: Vec<String> = ids.iter().filter(|id| known(id).is_none()).cloned().collect();
        if !missing.is_empty() {
            let reason = "there are no such changes of files".to_owned();
            return Err(RollbackBlocked { missing_event_ids: missing, ..blocked(reason) });
        }
        let mut seqs: Vec<Seq> = ids.iter().filter_map(known).collect();
        seqs.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(again) = seqs.iter().find(|seq| self.mutations[seq].rolled_back_seq.is_some()) {
            return Err(blocked(format!("`{}` was taken back before", event_id(*again))));
        }
        self.joined(&seqs).map(|_| seqs).map_err(blocked)
    }

    /// What mutations, newest first, come to: the workspace, and each file once.
    fn joined(&self, seqs: &[Seq]) -> Result<(String, Vec<ChangedFile>), String> {
        let mut files: BTreeMap<&str, ChangedFile> = BTreeMap::new();
        let mut workspace: Option<&str> = None;
        for record in seqs.iter().filter_map(|seq| self.mutations.get(seq)).map(|mutation| &mutation.record) {
            if *workspace.get_or_insert(&record.workspace) != record.workspace {
                return Err("the changes were made in several workspaces: take them back one by one".to_owned());
            }
            for file in &record.files {
                match files.get_mut(file.path.as_str()) {
                    None => {
                        files.insert(&file.path, file.clone());
                    }
                    // What an older change left is where the newer one began.
                    Some(newer) if newer.before == file.after => newer.before.clone_from(&file.before),
                    Some(_) => {
                        return Err(format!("`{}` was changed in between by something else", file.path));
                    }
                }
            }
        }
        // What came back to what it was is looked at too: something else may be there by now.
        let files: Vec<ChangedFile> = files.into_values().collect();
        match workspace {
            Some(workspace) if files.iter().any(|file| file.before != file.after) => Ok((workspace.to_owned(), files)),
            _ => Err("there is nothing to be taken back".to_owned()),
        }
    }

    /// The files that are to be put back now.
    pub(super) fn restore_due(&self) -> Option<RestoreDue> {
        let rollback = self.rollback.as_ref()?;
        let seqs: Vec<Seq> = rollback.event_ids.iter().filter_map(|id| seq_of(id)).collect();
        let (workspace, files) = self.joined(&seqs).ok()?;
        Some(RestoreDue { operation: rollback.operation_id, run: self.run.id, workspace, files })
    }
}
