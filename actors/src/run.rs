//! Context runs, as the host has them: a state that is a record and parts, and whoever puts files back for it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use raddle_domain::{
    id::{OperationId, RunId, Seq, TenantId, ThreadKey},
    ports::{
        Corrupt, Files, Indexed, LogKind, PartKind, PartName, Receipt, RecordKind, Restore, Restored, RowHead,
        StoreError, StoredEvent, ThreadRow, View,
    },
    run::{
        Command, Image, Record, Refused, Reply, Request, RestoreDue, RunState, Step, command::RestoreReport, event,
        image::BadPart,
    },
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    admin::Deed,
    disk,
    host::{Crew, Loaded, Machine, Place, Said, Site, Steps},
    receipts::{self, Idempotency, Recalled},
};

/// Parts that are read at a time.
const PAGE: usize = 1_000;
/// The pause before files are tried again that are restored in part.
const TORN_PAUSE: Duration = Duration::from_secs(5);

/// A loaded run.
pub(crate) struct RunMachine {
    state: RunState,
    /// Whether the index has it among those that go on; nothing for one that it does not have.
    listed: Option<bool>,
}

impl RunMachine {
    /// One that nobody knows yet.
    pub fn new(state: RunState) -> Self {
        Self { state, listed: None }
    }
}

/// What a receipt of a run holds: the reply itself, for a lease's token stands nowhere else.
#[derive(Serialize, Deserialize)]
struct Stub {
    run: RunId,
    version: u64,
    reply: Reply,
}

/// The error about something of a run's.
pub(crate) fn corrupt(key: ThreadKey, why: impl ToString) -> StoreError {
    Corrupt { record: format!("the run {key}"), why: why.to_string() }.into()
}

/// All parts of a kind.
pub(crate) fn parts(view: &dyn View, key: ThreadKey, kind: PartKind) -> Result<Vec<(PartName, Vec<u8>)>, StoreError> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|(name, _)| *name);
        let page = view.parts(key, kind, after, PAGE)?;
        let more = page.len() == PAGE;
        all.extend(page);
        if !more {
            return Ok(all);
        }
    }
}

/// What is kept of a run.
pub(crate) fn image(view: &dyn View, key: ThreadKey) -> Result<Option<(Image, RowHead)>, StoreError> {
    /// What reading met: the store's fault, or a part's.
    struct Met(Result<BadPart, StoreError>);
    impl From<BadPart> for Met {
        fn from(bad: BadPart) -> Self {
            Self(Ok(bad))
        }
    }
    let Some(row) = view.row(key)? else { return Ok(None) };
    let read = Image::read(&row.view, &row.snapshot, |kind| parts(view, key, kind).map_err(|why| Met(Err(why))));
    match read {
        Ok(image) if image.run.last_event_seq == row.head.last_seq => Ok(Some((image, row.head))),
        Ok(_) => Err(corrupt(key, "the record is of another place in the log")),
        Err(Met(Ok(bad))) => Err(corrupt(key, bad)),
        Err(Met(Err(error))) => Err(error),
    }
}

/// Reads one stored event.
pub(crate) fn decode(key: ThreadKey, seq: Seq, stored: &StoredEvent) -> Result<Record, StoreError> {
    let bad = |why: String| Corrupt { record: format!("log {key}/{seq}"), why };
    let record = Record::decode(event::SCHEMA, &stored.json).map_err(|why| bad(why.to_string()))?;
    if record.seq == seq { Ok(record) } else { Err(bad(format!("it says that it is {}", record.seq)).into()) }
}

impl Machine for RunMachine {
    type Command = Command;
    type Step = Step;
    type Reply = Reply;
    type Refused = Refused;
    type Crew = RunCrew;

    const WHAT: &'static str = "run";
    const QUEUE: &'static str = "the run's command queue";

    fn load(view: &dyn View, key: ThreadKey) -> Result<Option<Loaded<Self>>, StoreError> {
        let Some((image, head)) = image(view, key)? else { return Ok(None) };
        let state = RunState::of(image).map_err(|bad| corrupt(key, bad))?;
        let listed = Some(!state.run().status.is_terminal());
        Ok(Some(Loaded { machine: Self { state, listed }, fence: head.fence }))
    }

    fn keep(&mut self, step: Step, steps: &mut Steps) -> Reply {
        let stored = |record: &Record| StoredEvent { name: record.event.name(), json: disk::json(record).into() };
        steps.events.extend(step.records.iter().map(stored));
        steps.parts.extend(step.parts);
        let open = !self.state.run().status.is_terminal();
        if self.listed != Some(open) {
            self.listed = Some(open);
            let id = Uuid::from_bytes(*self.state.run().id.as_bytes());
            steps.indexed.push(Indexed { kind: RecordKind::Run, id, seq: self.state.seq(), open });
        }
        step.reply
    }

    fn row(&mut self, fence: u64) -> ThreadRow {
        let head = RowHead {
            last_seq: self.state.seq(),
            snapshot_seq: self.state.seq(),
            fence,
            listed_at: self.state.run().updated_at,
            owes_since: self.state.owes_since(),
            wake_at: self.wake_at(),
            archived: false,
            queued: 0,
            kind: LogKind::Run,
        };
        ThreadRow { head, view: disk::json(self.state.run()).into(), snapshot: disk::json(&self.state.rest()).into() }
    }

    fn receipt(&self, step: &Step, known: Idempotency, site: Site<'_>) -> Option<Receipt> {
        if matches!(step.reply, Reply::RollbackBlocked(_)) {
            return None;
        }
        let stub = Stub { run: self.state.run().id, version: self.version(), reply: step.reply.clone() };
        Some(receipts::of(known, disk::json(&stub), site.now))
    }

    fn recall(view: &dyn View, tenant: TenantId, receipt: &Receipt) -> Result<Option<Recalled<Reply>>, StoreError> {
        let broken = |why: String| Corrupt { record: format!("a receipt of {tenant}"), why };
        let stub: Stub = serde_json::from_slice(&receipt.reply).map_err(|why| broken(why.to_string()))?;
        // Nothing of a run outlives its deletion.
        let there = view.row(stub.run.log(tenant))?.is_some();
        Ok(there.then_some(Recalled { reply: stub.reply, seq: stub.version }))
    }

    fn step(&mut self, command: Command, if_match: Option<u64>, site: Site<'_>) -> Result<Step, Refused> {
        let cx = raddle_domain::run::Cx { now: site.now, ids: &*site.shared.ids };
        self.state.step(Request { command, if_match }, cx)
    }

    fn first(&self, _: bool) -> Vec<Command> {
        let owed = self.state.owed();
        if owed.restore.is_some() || owed.wake_at.is_some() { vec![Command::Tick] } else { Vec::new() }
    }

    fn tick() -> Command {
        Command::Tick
    }

    fn bytes(command: &Command) -> usize {
        match command {
            Command::Replace(replace) => 1024 + replace.new.objective.len(),
            Command::CreateTasks(tasks) => 2048 * tasks.len(),
            Command::Journal(entries) => 1024 * entries.len(),
            _ => 1024,
        }
    }

    fn erases(command: &Command) -> bool {
        *command == Command::Delete
    }

    /// What a worker has to say of a task that it holds, and what was done.
    fn ends_work(command: &Command) -> bool {
        matches!(command, Command::Transition(_) | Command::Say(..) | Command::GiveBack(_) | Command::Journal(_))
    }

    fn deed(command: &Command, key: ThreadKey) -> Option<Deed> {
        let run = key.thread.of_run()?;
        match command {
            Command::Delete => Some(Deed::new("run.deleted", run)),
            Command::Rollback(_) => Some(Deed::new("run.rolled_back", run)),
            _ => None,
        }
    }

    fn seq(&self) -> Seq {
        self.state.seq()
    }

    fn version(&self) -> u64 {
        self.state.run().revision
    }

    fn owes_since(&self) -> Option<UnixMs> {
        self.state.owes_since()
    }

    fn wake_at(&self) -> Option<UnixMs> {
        self.state.owed().wake_at
    }

    fn rests(&self) -> bool {
        self.state.owes_since().is_none()
    }

    fn held_bytes(&self) -> usize {
        self.state.held_bytes()
    }
}

/// Who works for a run: at most one task that puts files back.
#[derive(Default)]
pub(crate) struct RunCrew {
    restoring: Option<Restoring>,
}

struct Restoring {
    operation: OperationId,
    task: JoinHandle<()>,
    ended: Arc<Mutex<Option<RestoreReport>>>,
}

impl Drop for Restoring {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Restoring {
    fn start(due: RestoreDue, place: &Place<'_, RunMachine>) -> Self {
        let RestoreDue { operation, run, workspace, files } = due;
        let (wake, port) = (place.wake(), place.shared.files.clone());
        let restore = Restore { tenant: place.key.tenant, operation, workspace, files };
        let ended = Arc::<Mutex<Option<RestoreReport>>>::default();
        let told = ended.clone();
        let task = place.shared.tasks.spawn(async move {
            let refused = restored(&*port, restore, run).await;
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(RestoreReport { operation, refused });
            wake();
        });
        Self { operation, task, ended }
    }

    fn ended(&self) -> Option<RestoreReport> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Puts files back, until that has come to an end: why no file was touched, or nothing when all are what they were.
async fn restored(files: &dyn Files, restore: Restore, run: RunId) -> Option<String> {
    loop {
        match files.restore(restore.clone()).await {
            Restored::Done => return None,
            Restored::Refused(why) => return Some(why),
            Restored::Torn(why) => {
                tracing::warn!(%run, operation = %restore.operation, why, "files are restored in part; trying again");
                tokio::time::sleep(TORN_PAUSE).await;
            }
        }
    }
}

impl Crew<RunMachine> for RunCrew {
    fn pay(&mut self, machine: &RunMachine, leaving: bool, place: &Place<'_, RunMachine>) {
        let due = machine.state.owed().restore;
        let wanted = due.as_ref().map(|due| due.operation);
        if self.restoring.as_ref().map(|restoring| restoring.operation) != wanted {
            self.restoring = None;
            if let (Some(due), false) = (due, leaving) {
                self.restoring = Some(Restoring::start(due, place));
            }
        }
    }

    fn works(&self) -> bool {
        self.restoring.is_some()
    }

    fn said(&mut self, _: bool) -> Said<Command> {
        let ended = self.restoring.as_ref().and_then(Restoring::ended);
        Said { commands: ended.map(Command::Restored).into_iter().collect(), lingers: None }
    }

    fn has_more(&self) -> bool {
        self.restoring.as_ref().is_some_and(|restoring| restoring.ended().is_some())
    }
}
