//! The thread's machine as it is hosted: how its state is rebuilt, stepped and saved. Who works for it is its
//! [`crew`].
//!
//! A thread's row holds a snapshot of the last moment at rest; what came after is folded from the log.

mod crew;
mod past;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use raddle_domain::{
    command::{Command, Interrupt, Refused, Reply, Request, ToolReport},
    id::{Seq, TenantId, ThreadKey},
    ports::{ActStep, Corrupt, Fork, LogKind, Receipt, RowHead, StoreError, ThreadRow, ToolEnd, View},
    record::ThreadStatus,
    thread::{Cx, Rest, Snapshot, Step, ThreadState},
    time::UnixMs,
};

use serde_json::json;

pub(crate) use self::past::Before;
use self::{crew::ThreadCrew, past::Kept};
use crate::{
    admin::Deed,
    config::Config,
    disk,
    handle::Begun,
    host::{Loaded, Machine, Site, Steps},
    quotas::{Reserved, Seat, StepRoom, Underway, What},
    receipts::{self, Idempotency, Recalled},
    retell,
    system::Shared,
    tape::{Noted, Telling, Unsaved},
};

/// Events read from the log at a time while a state is rebuilt.
const PAGE: usize = 1_000;
const PAGE_BYTES: usize = 1024 * 1024;

/// A thread, and what its row holds beside the record.
pub(crate) struct ThreadMachine {
    pub state: ThreadState,
    /// The snapshot that the row holds, to be written again until a newer one takes its place. A thread has one when
    /// it is created.
    rest: Option<SavedRest>,
    /// The newer one, if there is one that is not in a row.
    newer: Option<Box<Rest>>,
    /// What of the conversation need not be read for the next model call.
    kept: Kept,
    counted: Counted,
    /// For the tape.
    pub unsaved: Unsaved,
}

/// What of the thread counts against its tenant's quotas.
#[derive(Default)]
struct Counted {
    /// Held while anybody works for it.
    seat: Option<Seat>,
    /// Prompts of steps that are not saved.
    coming: Vec<Reserved>,
    /// By how many fewer wait by those steps, beside the ones that come.
    going: i64,
    /// Whether the thread goes with them.
    erasing: bool,
    /// Held while they change what is counted beside what comes.
    underway: Option<Underway>,
}

/// A snapshot as bytes, and the event after which it held.
struct SavedRest {
    seq: Seq,
    json: Arc<[u8]>,
}

impl ThreadMachine {
    fn of(state: ThreadState) -> Self {
        let kept = Kept::nothing(&state);
        Self { state, rest: None, newer: None, kept, counted: Counted::default(), unsaved: Unsaved::default() }
    }
}

/// The state of a thread as the store holds it.
pub(crate) fn state(view: &dyn View, key: ThreadKey) -> Result<Option<ThreadState>, StoreError> {
    Ok(ThreadMachine::load(view, key)?.map(|loaded| loaded.machine.state))
}

/// The state that a row's snapshot is of.
fn restore(view: &dyn View, key: ThreadKey, row: &ThreadRow) -> Result<ThreadState, StoreError> {
    let snapshot: Snapshot = serde_json::from_slice(&row.snapshot).map_err(|why| corrupt(key, why))?;
    let mut needed = Vec::new();
    for seq in snapshot.needs() {
        let stored = view.event(key, seq)?.ok_or_else(|| corrupt(key, format!("event {seq} of the log is missing")))?;
        needed.push(disk::decode(key, seq, &stored)?);
    }
    let mut turns = Vec::new();
    for started in snapshot.needs_turns() {
        let found = view.turns(key, started.saturating_sub(1), 1)?.into_iter().find(|turn| turn.started_seq == started);
        let found = found.ok_or_else(|| corrupt(key, format!("the turn at {started} is missing")))?;
        turns.push(disk::turn(key, &found)?);
    }
    let state = ThreadState::restore(snapshot, &needed, &turns).map_err(|why| corrupt(key, why))?;
    if state.seq() != row.head.snapshot_seq {
        return Err(corrupt(key, "the snapshot is of another place in the log"));
    }
    Ok(state)
}

fn corrupt(key: ThreadKey, why: impl ToString) -> StoreError {
    Corrupt { record: format!("threads {key}"), why: why.to_string() }.into()
}

impl Machine for ThreadMachine {
    type Command = Command;
    type Step = Step;
    type Reply = Reply;
    type Refused = Refused;
    type Crew = ThreadCrew;

    const WHAT: &'static str = "thread";
    const QUEUE: &'static str = "the thread's command queue";

    fn load(view: &dyn View, key: ThreadKey) -> Result<Option<Loaded<Self>>, StoreError> {
        let Some(row) = view.row(key)? else { return Ok(None) };
        let mut state = restore(view, key, &row)?;
        while state.seq() < row.head.last_seq {
            let chunks = view.events(key, state.seq(), PAGE, PAGE_BYTES)?;
            if chunks.is_empty() {
                let why = format!("the log ends at {}, the row at {}", state.seq(), row.head.last_seq);
                return Err(corrupt(key, why));
            }
            for record in disk::records(key, &chunks) {
                state.apply(&record?).map_err(|why| corrupt(key, why))?;
            }
        }
        let rest = SavedRest { seq: row.head.snapshot_seq, json: row.snapshot };
        let machine = Self { rest: Some(rest), ..Self::of(state) };
        Ok(Some(Loaded { machine, fence: row.head.fence }))
    }

    fn keep(&mut self, step: Step, steps: &mut Steps) -> Reply {
        self.kept.step(&step, &self.state);
        steps.events.extend(step.records.iter().map(disk::stored));
        steps.settled.extend(step.settled.iter().map(disk::settled));
        steps.reverted.extend(step.reverted);
        for record in &step.records {
            steps.indexed.extend(disk::indexed(record));
            steps.spent.extend(disk::spent(record));
            steps.documents.extend(disk::document(record));
        }
        self.newer = step.rest.map(Box::new).or(self.newer.take());
        step.reply
    }

    fn row(&mut self, fence: u64) -> ThreadRow {
        if let Some(newer) = self.newer.take() {
            self.rest = Some(SavedRest { seq: newer.seq, json: disk::json(&newer.snapshot).into() });
        }
        let rest = self.rest.as_ref().expect("a thread rests when it is created");
        let head = RowHead {
            last_seq: self.state.seq(),
            snapshot_seq: rest.seq,
            fence,
            listed_at: self.state.view().updated_at,
            owes_since: self.state.owes_since(),
            wake_at: self.state.wake_at(),
            archived: self.state.view().archived,
            queued: self.state.view().queued,
            kind: LogKind::Thread,
        };
        ThreadRow { head, view: disk::json(self.state.view()).into(), snapshot: rest.json.clone() }
    }

    fn receipt(&self, step: &Step, known: Idempotency, site: Site<'_>) -> Option<Receipt> {
        Some(receipts::write(known, site.key.thread, step, site.now))
    }

    fn recall(view: &dyn View, tenant: TenantId, receipt: &Receipt) -> Result<Option<Recalled<Reply>>, StoreError> {
        receipts::read(view, tenant, receipt)
    }

    fn step(&mut self, command: Command, if_match: Option<Seq>, site: Site<'_>) -> Result<Step, Refused> {
        let Site { key, now, world, shared } = site;
        let room = StepRoom::new(shared, key.tenant, self.counted.seat.is_some());
        let telling = shared.tape.wants(key).then(|| Telling::command(&command, if_match, self.state.seq()));
        let noted = Noted::of(retell::ids(world, shared));
        let draining = world.map_or_else(|| shared.draining(), |world| world.draining);
        let cx = Cx { now, ids: &noted, limits: &shared.config.limits, prices: &shared.prices, draining, room: &room };
        let (queued, erases) = (self.state.view().queued, Self::erases(&command));
        let step = self.state.step(Request { command, if_match }, cx);
        if let Some(telling) = telling {
            self.unsaved.note(key, telling, (now, draining), noted.minted(), step.as_ref());
        }
        let (seat, coming) = room.taken();
        let step = match step {
            Ok(step) => step,
            Err(refused) => {
                coming.into_iter().for_each(Reserved::undo);
                if let Refused::Quota { .. } = refused {
                    shared.registry.counters.over_quota.fetch_add(1, Relaxed);
                }
                return Err(refused);
            }
        };
        self.counted.going += i64::from(queued) + coming.len() as i64 - i64::from(self.state.view().queued);
        self.counted.coming.extend(coming);
        if self.counted.underway.is_none() && (self.counted.going != 0 || erases) {
            self.counted.underway = Some(Underway::new(shared.tenants.account(key.tenant)));
        }
        if seat.is_some() {
            self.counted.seat = seat;
        }
        // With the step that ends or continues a turn, not once it is seen to: who sees the one finds its place free, who
        // sees the other finds it taken.
        let at_work = self.state.open().is_some() && self.state.view().status != ThreadStatus::AwaitingApproval;
        self.works(at_work, shared, key);
        shared.registry.counters.note(key, &step);
        Ok(step)
    }

    fn saved(&mut self, shared: &Shared, key: ThreadKey) {
        self.unsaved.saved(&shared.tape);
        let Counted { coming, going, erasing, .. } = &mut self.counted;
        coming.drain(..).for_each(Reserved::keep);
        let (going, erased) = (std::mem::take(going), std::mem::take(erasing));
        if erased {
            shared.tenants.account(key.tenant).tally.gone(What::Threads, 1);
        }
        if going != 0 {
            let tally = &shared.tenants.account(key.tenant).tally;
            match u64::try_from(going) {
                Ok(fewer) => tally.gone(What::Queued, fewer),
                Err(_) => tally.come(What::Queued, going.unsigned_abs()),
            }
        }
        if let Some(underway) = self.counted.underway.take() {
            underway.end();
        }
    }

    fn erasing(&mut self) {
        self.counted.going += i64::from(self.state.view().queued);
        self.counted.erasing = true;
    }

    fn works(&mut self, works: bool, shared: &Shared, key: ThreadKey) {
        match (works, &self.counted.seat) {
            (true, None) => self.counted.seat = Some(Seat::take(shared.tenants.account(key.tenant))),
            (false, Some(_)) => self.counted.seat = None,
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn first(&self, restarted: bool) -> Vec<Command> {
        if self.state.open().is_some() || self.state.owes_since().is_some() {
            vec![Command::Recover { restarted }, Command::Tick]
        } else {
            Vec::new()
        }
    }

    fn tick() -> Command {
        Command::Tick
    }

    /// What was intended is saved by then. It is started behind what has come meanwhile, which may end its turn.
    fn next(&self) -> Option<Command> {
        self.state.begins().then_some(Command::Begin)
    }

    fn bytes(command: &Command) -> usize {
        match command {
            Command::Start(start) | Command::Edit(start) => start.prompt.len(),
            Command::Steer(steer) => steer.prompt.len(),
            Command::EditPrompt(edit) => edit.prompt.as_ref().map_or(0, String::len),
            Command::Answer(answer) => answer.answer.len(),
            Command::Resolve(resolve) => resolve.output.as_ref().map_or(0, String::len),
            Command::Report(report) => {
                let acts = report.acts.iter().map(|act| match &act.step {
                    ActStep::Said(text) | ActStep::Ended { output: text, .. } => text.len(),
                    ActStep::Announced | ActStep::Asks(_) | ActStep::Forbidden { .. } | ActStep::Started => 0,
                });
                report.text.iter().map(|(_, text)| text.len()).chain(acts).sum()
            }
            Command::ToolReport(ToolReport { said, end, .. }) => {
                let end = end.as_ref().map_or(0, |end| match end {
                    ToolEnd::Done(text) | ToolEnd::Failed(text) | ToolEnd::Unknown(text) => text.len(),
                    ToolEnd::NotDone => 0,
                });
                said.len() + end
            }
            _ => 0,
        }
    }

    fn erases(command: &Command) -> bool {
        *command == Command::Delete
    }

    /// The call that is under way is settled: what a thread spent stays on the bill when it goes.
    fn parting(&self) -> Option<Command> {
        let open = self.state.open().filter(|open| open.is_metered())?;
        Some(Command::Interrupt(Interrupt { turn: open.turn().id, pause_queue: true }))
    }

    fn ends_work(command: &Command) -> bool {
        command.ends_work()
    }

    /// A person's word on what an agent may do, and the end of a thread.
    fn deed(command: &Command, key: ThreadKey) -> Option<Deed> {
        let on = |deed: Deed| deed.with("thread_id", key.thread.to_string());
        Some(match command {
            Command::Decide(decide) => {
                on(Deed::new("approval.decided", decide.approval).with("decision", json!(decide.decision)))
            }
            Command::Answer(answer) => on(Deed::new("question.answered", answer.question)),
            Command::Resolve(resolve) => {
                on(Deed::new("effect.resolved", resolve.operation).with("resolution", json!(resolve.resolution)))
            }
            Command::Delete => Deed::new("thread.deleted", key.thread),
            Command::Patch(patch) => {
                let deed = Deed::new("thread.trusted", key.thread);
                let flags = [("auto_approve", patch.auto_approve), ("trust_mode", patch.trust_mode)];
                let given = flags.into_iter().filter_map(|(name, flag)| Some((name, flag?)));
                let deed = given.fold(deed, |deed, (name, flag)| deed.with(name, flag));
                let deed = patch.policy.iter().fold(deed, |deed, policy| deed.with("policy", json!(policy)));
                return (!deed.detail.is_empty()).then_some(deed);
            }
            _ => return None,
        })
    }

    fn seq(&self) -> Seq {
        self.state.seq()
    }

    fn owes_since(&self) -> Option<UnixMs> {
        self.state.owes_since()
    }

    fn wake_at(&self) -> Option<UnixMs> {
        self.state.wake_at()
    }

    fn alarm(&self, config: &Config) -> Option<UnixMs> {
        self.state.wake_at().into_iter().chain(self.state.deadline(&config.limits)).min()
    }

    fn rests(&self) -> bool {
        self.state.open().is_none()
    }

    fn held_bytes(&self) -> usize {
        self.state.held_bytes() + self.rest.as_ref().map_or(0, |rest| rest.json.len()) + self.kept.held_bytes()
    }
}

impl Begun<ThreadMachine> {
    /// A thread, and the step that made it.
    pub fn thread(tenant: TenantId, state: ThreadState, step: Step, fork: Option<Fork>) -> Self {
        let key = ThreadKey { tenant, thread: state.view().id };
        Self { key, machine: ThreadMachine::of(state), step, fork, given: false }
    }
}
