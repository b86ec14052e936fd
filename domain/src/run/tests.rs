//! Rules, one fact at a time; and what holds of any sequence of commands.
//!
//! Every step of every test here is also replayed from what would be on disk, and compared.

mod any;
mod board;
mod checkpoints;
mod claims;
mod contracts;
mod drifts;
mod failures;
mod leases;
mod ledger;
mod plan;
mod rollback;
mod tasks;
mod tell;
mod whole;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    command::{
        Action, AskRollback, Claim, Claimed, Command, Journal, NewEntry, NewRun, NewTask, Patch, Refused, Reply,
        Request, RestoreReport, SyncTodos, Tell, Todo, Transition, ValidateLease,
    },
    drift::Drift,
    event::{Event, SCHEMA, TaskEvent},
    image::BadPart,
    *,
};
use crate::{
    id::{CheckpointId, ItemId, OperationId, RunId, Seq, TenantId, ThreadId, TurnId},
    ports::{ChangedFile, Content, Ids, PartKind, PartName},
    time::UnixMs,
};

struct Counter(AtomicU64);

impl Ids for Counter {
    fn mint(&self) -> Uuid {
        Uuid::from_u128(self.0.fetch_add(1, Ordering::Relaxed).into())
    }
}

const NOW: UnixMs = UnixMs(1_795_000_000_000);

/// A run with a clock that the test moves, its log, and what would be on disk.
struct Bench {
    state: RunState,
    log: Vec<Record>,
    /// What the log, as it is read back, makes.
    replayed: RunState,
    parts: BTreeMap<(PartKind, PartName), Vec<u8>>,
    now: UnixMs,
    ids: Counter,
    /// The tokens of every lease that was given.
    tokens: Vec<String>,
    watched: Watched,
}

/// What was so in an earlier state, and has to stay.
#[derive(Default)]
struct Watched {
    done: BTreeMap<String, Task>,
    fence: u64,
}

impl Bench {
    fn new() -> Self {
        Self::with(NewRun { objective: "ship it".into(), ..NewRun::default() })
    }

    fn with(new: NewRun) -> Self {
        let ids = Counter(AtomicU64::new(1));
        let cx = Cx { now: NOW, ids: &ids };
        let made = RunState::create(RunId::new(ids.mint()), TenantId::DEFAULT, new, cx).unwrap();
        Self::of(made, NOW, ids)
    }

    /// With steps of these names, all of them pending.
    fn planned(steps: &[&str]) -> Self {
        let step =
            |id: &&str| RunStep { step_id: (*id).to_owned(), title: format!("do {id}"), status: StepStatus::Pending };
        let steps = steps.iter().map(step).collect();
        Self::with(NewRun { objective: "ship it".into(), steps, ..NewRun::default() })
    }

    fn of((state, step): (RunState, Step), now: UnixMs, ids: Counter) -> Self {
        let replayed = RunState::begin(&stored(&step.records[0])).unwrap();
        let (parts, tokens, watched) = (BTreeMap::new(), Vec::new(), Watched::default());
        let mut bench = Self { state, log: Vec::new(), replayed, parts, now, ids, tokens, watched };
        let mut step = step;
        bench.log.push(step.records.remove(0));
        bench.save(&step);
        step.records.insert(0, bench.log[0].clone());
        bench
    }

    // ---- asking ------------------------------------------------------------------------------------

    fn request(&mut self, request: Request) -> Result<Step, Refused> {
        let before = self.state.clone();
        let cx = Cx { now: self.now, ids: &self.ids };
        let step =
            self.state.step(request, cx).inspect_err(|_| assert_eq!(before, self.state, "refused, yet changed"))?;
        if let Reply::Claimed(claimed) = &step.reply
            && let Some(token) = claimed.task.as_ref().and_then(|task| task.lease.as_ref()?.token.clone())
        {
            assert!(!self.tokens.contains(&token), "a token is given once");
            self.tokens.push(token);
        }
        let grown = self.state.run.revision - before.run.revision;
        assert!(grown <= 1, "the revision grew by {grown}");
        if step.records.is_empty() {
            assert_eq!(before, self.state, "changed without an event");
        }
        self.save(&step);
        Ok(step)
    }

    fn ask(&mut self, command: Command) -> Result<Step, Refused> {
        self.request(command.into())
    }

    /// What an accepted command is answered with.
    fn does(&mut self, command: Command) -> Reply {
        self.ask(command).unwrap().reply
    }

    fn refused(&mut self, command: Command) -> Refused {
        self.ask(command).unwrap_err()
    }

    // ---- tasks -------------------------------------------------------------------------------------

    fn create(&mut self, tasks: Vec<NewTask>) -> Vec<Task> {
        let Reply::Tasks(tasks) = self.does(Command::CreateTasks(tasks)) else { panic!("tasks are answered") };
        tasks
    }

    fn claim(&mut self, claim: Claim) -> Claimed {
        let Reply::Claimed(claimed) = self.does(Command::Claim(claim)) else { panic!("a claim is answered") };
        *claimed
    }

    /// Which task an agent gets, if it gets one.
    fn gets(&mut self, claim: Claim) -> Option<String> {
        self.claim(claim).task.map(|task| task.id)
    }

    /// The token of the task that an agent gets.
    fn token(&mut self, claim: Claim) -> String {
        self.claim(claim).task.unwrap().lease.unwrap().token.unwrap()
    }

    fn say(&mut self, transition: Transition) -> Task {
        let Reply::Task(task) = self.does(Command::Transition(transition)) else { panic!("a task is answered") };
        *task
    }

    fn cannot(&mut self, transition: Transition) -> Refused {
        self.refused(Command::Transition(transition))
    }

    fn task(&self, id: &str) -> &Task {
        self.state.task(id).unwrap()
    }

    /// Brings a new task, whose failures are final, into a status; with the token of its lease, if it has one.
    fn bring(&mut self, id: &str, to: TaskStatus) -> Option<String> {
        let status = (to == TaskStatus::Runnable).then_some(to);
        self.create(vec![NewTask { status, max_attempts: Some(1), ..new_task(id) }]);
        if matches!(to, TaskStatus::Pending | TaskStatus::Runnable) {
            return None;
        }
        let token = self.token(Claim { task_id: Some(id.into()), ..claim("holder") });
        let action = match to {
            TaskStatus::Blocked | TaskStatus::Cancelled => Action::Status(to),
            TaskStatus::Done => Action::Complete,
            TaskStatus::Failed => Action::Fail,
            _ => return Some(token),
        };
        self.say(Transition { lease_token: Some(token), ..transition(id, action) });
        None
    }

    // ---- time --------------------------------------------------------------------------------------

    fn pass(&mut self, ms: u64) {
        self.now = UnixMs(self.now.0 + ms);
    }

    fn tick(&mut self, ms: u64) -> Step {
        self.pass(ms);
        self.ask(Command::Tick).unwrap()
    }

    // ---- the run -----------------------------------------------------------------------------------

    fn run(&self) -> &Run {
        &self.state.run
    }

    fn tell(&mut self, name: &str) -> Step {
        self.ask(tell(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.log.iter().map(|record| record.event.name().into_owned()).collect()
    }

    // ---- what is on disk ---------------------------------------------------------------------------

    /// Saves a step, reads everything back, and compares.
    fn save(&mut self, step: &Step) {
        for record in &step.records {
            let bytes = serde_json::to_vec(record).unwrap();
            self.keeps_secrets(&bytes);
            let read = Record::decode(SCHEMA, &bytes).unwrap();
            assert_eq!(read, *record, "a record reads back as it was");
            let before = self.replayed.run.last_event_seq;
            self.replayed.apply(&read).unwrap();
            assert_eq!(self.replayed.run.last_event_seq, before + 1);
            if let Event::Task(TaskEvent::Claimed, task) = &record.event {
                let fence = task.lease.as_ref().unwrap().fence;
                assert!(fence > self.watched.fence, "a fence of {fence} after {}", self.watched.fence);
                self.watched.fence = fence;
            }
            self.log.push(record.clone());
        }
        for part in &step.parts {
            let name = (part.kind, part.name);
            match &part.json {
                Some(json) => {
                    self.keeps_secrets(json);
                    self.parts.insert(name, json.clone());
                }
                None => {
                    self.parts.remove(&name).expect("what is taken away was there");
                }
            }
        }
        assert_eq!(self.replayed, self.state, "replay is not live");
        let kept = self.kept();
        assert_eq!(RunState::of(kept.clone()).unwrap(), self.state, "what is kept is not live");
        assert_eq!(drift::drift(&kept, &self.replayed.image()), Drift::default());
        self.check();
    }

    /// The run as its row and its parts have it.
    fn kept(&self) -> Image {
        let record = serde_json::to_vec(self.state.run()).unwrap();
        let rest = serde_json::to_vec(&self.state.rest()).unwrap();
        self.keeps_secrets(&record);
        let of = |kind| {
            let parts = self.parts.iter().filter(|((of, _), _)| *of == kind);
            Ok::<_, BadPart>(parts.map(|((_, name), json)| (*name, json.clone())).collect())
        };
        Image::read(&record, &rest, of).unwrap()
    }

    /// The copy that belongs to a checkpoint.
    fn copy(&self, checkpoint: &Checkpoint) -> Image {
        let name = PartName::number(checkpoint.seq + 1);
        serde_json::from_slice(&self.parts[&(PartKind::Image, name)]).unwrap()
    }

    fn keeps_secrets(&self, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).unwrap();
        for token in &self.tokens {
            assert!(!text.contains(token), "{token} is in {text}");
        }
    }

    /// What holds of every state.
    fn check(&mut self) {
        let mut counts = TaskCounts::default();
        let mut pending = Vec::new();
        for task in self.state.tasks() {
            *counts.of(task.status) += 1;
            assert_eq!(task.lease.is_some(), task.status == TaskStatus::InProgress, "{}", task.id);
            assert!(task.attempt <= task.max_attempts, "{} failed {} times", task.id, task.attempt);
            if task.attempt == task.max_attempts {
                assert!(matches!(task.status, TaskStatus::Failed | TaskStatus::Cancelled), "{}", task.id);
            }
            assert!(task.next_retry_at.is_none() || task.status == TaskStatus::Failed, "{}", task.id);
            pending.extend(task.lease.as_ref().map(|lease| lease.expires_at));
            pending.extend(task.next_retry_at);
            if task.status == TaskStatus::Done {
                let first = self.watched.done.entry(task.id.clone()).or_insert_with(|| task.clone());
                assert_eq!(first, task, "what is done stays so");
            }
        }
        assert_eq!(counts, self.state.run.task_counts);
        assert_eq!(counts.done as usize, self.watched.done.len(), "what is done stays so");
        assert_eq!(self.state.owed().wake_at, pending.into_iter().min());
        assert_eq!(self.state.run.ended_at.is_some(), self.state.run.status.is_terminal());
        assert_eq!(self.state.owes_since().is_some(), self.state.owed().restore.is_some());
        self.check_queue();
    }

    /// Who is next is what one would find by looking at every task.
    fn check_queue(&self) {
        let tasks: Vec<&Task> = self.state.tasks().collect();
        if tasks.len() > 50 {
            return;
        }
        let is_done = |id: &String| self.state.task(id).is_some_and(|task| task.status == TaskStatus::Done);
        let mut ready: Vec<&Task> = tasks
            .iter()
            .copied()
            .filter(|task| matches!(task.status, TaskStatus::Pending | TaskStatus::Runnable))
            .filter(|task| task.depends_on_task_ids.iter().all(is_done))
            .collect();
        ready.sort_by_key(|task| std::cmp::Reverse(task.priority));
        let types: BTreeSet<Option<&str>> =
            tasks.iter().map(|task| Some(&*task.task_type)).chain([None, Some("none such")]).collect();
        let flows: BTreeSet<Option<&str>> =
            tasks.iter().map(|task| task.workflow_id.as_deref()).chain([None, Some("none such")]).collect();
        for kind in types {
            for flow in &flows {
                let fits = |task: &&&Task| {
                    kind.is_none_or(|kind| kind == task.task_type)
                        && flow.is_none_or(|flow| Some(flow) == task.workflow_id.as_deref())
                };
                let next = self.state.queue.next(kind, *flow).map(|slot| &*self.state.tasks[&slot].id);
                assert_eq!(next, ready.iter().find(fits).map(|task| &*task.id), "of {kind:?} in {flow:?}");
            }
        }
        for (slot, task) in &self.state.tasks {
            assert_eq!(self.state.queue.is_ready(*slot, task), ready.iter().any(|ready| ready.id == task.id));
        }
    }
}

/// The record as it comes back from the disk.
fn stored(record: &Record) -> Record {
    Record::decode(SCHEMA, &serde_json::to_vec(record).unwrap()).unwrap()
}

fn new_task(id: &str) -> NewTask {
    NewTask { id: Some(id.into()), task_type: "build".into(), ..NewTask::default() }
}

fn after_tasks(id: &str, on: &[&str]) -> NewTask {
    NewTask { depends_on_task_ids: on.iter().map(|on| (*on).to_owned()).collect(), ..new_task(id) }
}

fn claim(agent: &str) -> Claim {
    Claim { agent_id: agent.into(), ..Claim::default() }
}

fn transition(id: &str, action: Action) -> Transition {
    Transition {
        task_id: id.into(),
        action,
        lease_token: None,
        expected_task_rev: None,
        agent_id: None,
        error: None,
        lease_ms: None,
        output: None,
    }
}

fn tell(name: &str) -> Command {
    tell_with(name, None, None, json!({}))
}

fn tell_with(name: &str, status: Option<RunStatus>, step_id: Option<&str>, payload: Value) -> Command {
    Command::Tell(Tell { name: name.into(), status, step_id: step_id.map(str::to_owned), payload })
}

fn thread(n: u128) -> ThreadId {
    ThreadId::new(Uuid::from_u128(0x100 + n))
}

/// An effect of a thread, by the event of the thread that says so.
fn effect(of: ThreadId, seq: Seq) -> LedgerRecord {
    LedgerRecord {
        source: Source {
            thread_id: of,
            turn_id: TurnId::new(Uuid::from_u128(1)),
            item_id: ItemId::new(Uuid::from_u128(2)),
            operation_id: OperationId::new(Uuid::from_u128(0x1_0000 + u128::from(seq))),
            seq,
        },
        task_id: None,
        tool: "edit_file".into(),
        phase: LedgerPhase::Outcome,
        status: LedgerStatus::Succeeded,
        attempt: 1,
        arguments_sha256: Some("ab".into()),
        output_sha256: None,
        output_bytes: Some(3),
    }
}

/// Told by a thread: it changed these files, of which each is a path, what it was and what it is.
fn changed(of: ThreadId, seq: Seq, files: &[(&str, Option<&str>, Option<&str>)]) -> Journal {
    let content = |text: &str| Content { sha256: text.to_owned(), bytes: text.len() as u64 };
    let file = |(path, before, after): &(&str, Option<&str>, Option<&str>)| ChangedFile {
        path: (*path).to_owned(),
        before: before.map(content),
        after: after.map(content),
        mode: None,
    };
    let effect = effect(of, seq);
    let mutation = MutationRecord {
        source: effect.source,
        task_id: None,
        tool: effect.tool.clone(),
        workspace: "/w".into(),
        files: files.iter().map(file).collect(),
    };
    Journal { effect, mutation: Some(mutation) }
}
