//! A run kept in files, as systems without a store keep it: a snapshot that is written anew with every event, two logs
//! that grow by a line, and a board. Nothing is held in memory: every request reads what it needs again, as often as the
//! layers that it passes each do for themselves.
//!
//! | operation | parses of the events | of the patches, with the board | of the snapshot | rewrites |
//! | --- | --- | --- | --- | --- |
//! | post an event | 3 | 1 | 5 | the snapshot |
//! | create a task | 4 | 4 | 9 | the snapshot, the board twice |
//! | claim | 8 | 4 | 12 | the snapshot, the board twice |
//! | complete | 4 | 3 | 7 | the snapshot, the board twice |
//!
//! A line and its end are two writes; a whole file is replaced by renaming. The records are those of the other side.

use std::{
    cell::Cell,
    fs::{File, OpenOptions},
    hint::black_box,
    io::Write,
    path::{Path, PathBuf},
};

use raddle_actors::{SystemClock, UuidIds};
use raddle_domain::{
    id::Seq,
    ports::{Clock, Ids},
    run::{Entry, Run, RunStatus, Task, TaskLease, TaskStatus},
    time::UnixMs,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const SNAPSHOT: &str = "run_state.json";
const EVENTS: &str = "events.jsonl";
const BOARD: &str = "blackboard.json";
const PATCHES: &str = "blackboard_patches.jsonl";

/// Events among which a repeated command is looked for.
const REMEMBERED: usize = 500;

/// How often an operation reads and rewrites whole files.
#[derive(Clone, Copy)]
struct Work {
    events: u32,
    patches: u32,
    snapshots: u32,
    boards: u32,
}

const POST: Work = Work { events: 3, patches: 1, snapshots: 5, boards: 0 };
const CREATE: Work = Work { events: 4, patches: 4, snapshots: 9, boards: 2 };
const CLAIM: Work = Work { events: 8, patches: 4, snapshots: 12, boards: 2 };
const COMPLETE: Work = Work { events: 4, patches: 3, snapshots: 7, boards: 2 };

#[derive(Serialize, Deserialize)]
struct Snapshot {
    run: Run,
    tasks: Vec<Task>,
}

#[derive(Serialize, Deserialize)]
struct Event {
    event_id: String,
    run_id: String,
    seq: Seq,
    ts_ms: UnixMs,
    r#type: String,
    status: RunStatus,
    revision: u64,
    step_id: Option<String>,
    task_id: Option<String>,
    command_id: Option<String>,
    payload: Value,
}

#[derive(Serialize, Deserialize)]
struct Patch {
    patch_id: String,
    run_id: String,
    seq: Seq,
    ts_ms: UnixMs,
    source_event_seq: Seq,
    op: String,
    payload: Value,
}

/// What the patches come to, but for tasks, which are the snapshot's.
#[derive(Default, Serialize, Deserialize)]
struct Board {
    facts: Vec<Entry>,
    decisions: Vec<Entry>,
    open_questions: Vec<Entry>,
    artifacts: Vec<Entry>,
    revision: Seq,
}

/// All that an operation has read.
struct Seen {
    snapshot: Snapshot,
    board: Board,
    events: Vec<Event>,
}

pub struct FileRun {
    dir: PathBuf,
    /// Whether every write is synced, which such systems leave out.
    pub synced: Cell<bool>,
}

impl FileRun {
    /// A run with tasks that are done: each has been created, claimed and completed.
    pub fn with_past(dir: &Path, run: Run, done: Vec<Task>) -> Self {
        let this = Self { dir: dir.to_owned(), synced: Cell::new(false) };
        let (mut events, mut patches) = (Vec::new(), Vec::new());
        let mut snapshot = Snapshot { run: Run { last_event_seq: 0, ..run }, tasks: Vec::new() };
        for task in &done {
            let past = [
                ("context.task.created", "add_task", TaskStatus::Pending),
                ("context.task.claimed", "update_task_lease", TaskStatus::InProgress),
                ("context.task.completed", "update_task_state", TaskStatus::Done),
            ];
            for (name, op, status) in past {
                let task = Task { status, ..task.clone() };
                let (event, patch) = next(&mut snapshot, name, Some((op, &task)), json!({}), None);
                line(&mut events, &event);
                patch.iter().for_each(|patch| line(&mut patches, patch));
            }
        }
        snapshot.tasks = done;
        this.put(EVENTS, &events);
        this.put(PATCHES, &patches);
        this.put(SNAPSHOT, &pretty(&snapshot));
        this.put(BOARD, &pretty(&Board { revision: snapshot.run.last_event_seq, ..Board::default() }));
        this
    }

    pub fn post(&self, name: &str, payload: Value) {
        let Seen { mut snapshot, .. } = self.look(POST, None);
        let (event, _) = next(&mut snapshot, name, None, payload, None);
        self.append(EVENTS, &event);
        self.put(SNAPSHOT, &pretty(&snapshot));
    }

    pub fn create(&self, task: Task) {
        let command = fresh("cmd");
        let mut seen = self.look(CREATE, Some(&command));
        seen.snapshot.tasks.push(task.clone());
        self.commit(CREATE, seen, ("context.task.created", "add_task"), &task, command);
    }

    /// The task that is next: by priority, then by age, with its dependencies done.
    pub fn claim(&self, agent: &str) -> Option<Task> {
        let command = fresh("cmd");
        let mut seen = self.look(CLAIM, Some(&command));
        let now = SystemClock.now();
        let tasks = &mut seen.snapshot.tasks;
        let done = |id: &String| tasks.iter().any(|task| task.id == *id && task.status == TaskStatus::Done);
        let claimable = |task: &&Task| {
            matches!(task.status, TaskStatus::Pending | TaskStatus::Runnable)
                && task.next_retry_at.is_none_or(|at| at <= now)
                && task.depends_on_task_ids.iter().all(done)
        };
        let next = tasks.iter().filter(claimable).min_by_key(|task| (-task.priority, task.created_at))?.id.clone();
        let task = tasks.iter_mut().find(|task| task.id == next)?;
        task.status = TaskStatus::InProgress;
        task.assigned_agent = Some(agent.to_owned());
        task.lease = Some(TaskLease {
            owner: agent.to_owned(),
            expires_at: UnixMs(now.0 + 30_000),
            fence: 0,
            lease_epoch: 0,
            token_sha256: String::new(),
            token: Some(fresh("lease")),
        });
        task.task_rev += 1;
        let task = task.clone();
        self.commit(CLAIM, seen, ("context.task.claimed", "update_task_lease"), &task, command);
        Some(task)
    }

    pub fn complete(&self, id: &str) {
        let command = fresh("cmd");
        let mut seen = self.look(COMPLETE, Some(&command));
        let task = seen.snapshot.tasks.iter_mut().find(|task| task.id == id).expect("it is there");
        (task.status, task.lease) = (TaskStatus::Done, None);
        task.task_rev += 1;
        let task = task.clone();
        self.commit(COMPLETE, seen, ("context.task.completed", "update_task_state"), &task, command);
    }

    /// Reads everything, as often as `work` says.
    fn look(&self, work: Work, command: Option<&str>) -> Seen {
        let (mut events, mut snapshot, mut board) = (Vec::new(), None, Board::default());
        for _ in 0..work.snapshots {
            snapshot = Some(black_box(self.read(SNAPSHOT)));
        }
        for _ in 0..work.events {
            events = black_box(self.lines::<Event>(EVENTS));
        }
        for _ in 0..work.patches {
            board = self.read(BOARD);
            let last = black_box(self.lines::<Patch>(PATCHES)).last().map_or(0, |patch| patch.seq);
            assert_eq!(last, board.revision, "what is missing would have to be folded");
        }
        let repeated = |event: &Event| event.command_id.as_deref() == command;
        assert!(command.is_none() || !events.iter().rev().take(REMEMBERED).any(repeated));
        Seen { snapshot: snapshot.expect("it was read"), board, events }
    }

    /// Saves a change of a task that the snapshot has already: event, snapshot, patch, board, in this order.
    fn commit(&self, work: Work, seen: Seen, (name, op): (&str, &str), task: &Task, command: String) {
        let Seen { mut snapshot, mut board, events } = seen;
        let highest = events.last().map_or(0, |event| event.seq);
        snapshot.run.last_event_seq = snapshot.run.last_event_seq.max(highest);
        let (event, patch) = next(&mut snapshot, name, Some((op, task)), json!({}), Some(command));
        self.append(EVENTS, &event);
        self.put(SNAPSHOT, &pretty(&snapshot));
        self.append(PATCHES, &patch);
        board.revision = event.seq;
        for _ in 0..work.boards {
            self.put(BOARD, &pretty(&board));
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> T {
        let bytes = std::fs::read(self.dir.join(name)).expect("it is there");
        serde_json::from_slice(&bytes).expect("ours")
    }

    fn lines<T: DeserializeOwned>(&self, name: &str) -> Vec<T> {
        let text = std::fs::read_to_string(self.dir.join(name)).expect("it is there");
        text.lines().map(|line| serde_json::from_str(line).expect("ours")).collect()
    }

    fn append(&self, name: &str, value: &impl Serialize) {
        let mut file = OpenOptions::new().append(true).open(self.dir.join(name)).expect("it is there");
        file.write_all(&serde_json::to_vec(value).expect("JSON")).expect("room");
        file.write_all(b"\n").expect("room");
        self.sync(&file);
    }

    /// Puts a file in the place of the one of this name.
    fn put(&self, name: &str, bytes: &[u8]) {
        let new = self.dir.join(format!("{name}.tmp"));
        let mut file = File::create(&new).expect("a file");
        file.write_all(bytes).expect("room");
        self.sync(&file);
        std::fs::rename(new, self.dir.join(name)).expect("the same directory");
        if self.synced.get() {
            self.sync(&File::open(&self.dir).expect("a directory"));
        }
    }

    fn sync(&self, file: &File) {
        if self.synced.get() {
            file.sync_all().expect("synced");
        }
    }
}

/// The next event, and its patch if it is about a task; the snapshot's head moves on.
fn next(
    snapshot: &mut Snapshot,
    name: &str,
    task: Option<(&str, &Task)>,
    payload: Value,
    command: Option<String>,
) -> (Event, Option<Patch>) {
    let run = &mut snapshot.run;
    run.last_event_seq += 1;
    run.revision += 1;
    run.updated_at = SystemClock.now();
    let (seq, run_id, ts_ms) = (run.last_event_seq, run.id.to_string(), run.updated_at);
    let id = task.map(|(_, task)| task.id.clone());
    let event = Event {
        event_id: fresh("evt"),
        run_id: run_id.clone(),
        seq,
        ts_ms,
        r#type: name.to_owned(),
        status: run.status,
        revision: run.revision,
        step_id: id.clone(),
        task_id: id,
        command_id: command,
        payload: task.map_or(payload, |(_, task)| json!({ "task": task, "patch_seq": seq })),
    };
    let patch = task.map(|(op, task)| Patch {
        patch_id: fresh("bbp"),
        run_id,
        seq,
        ts_ms,
        source_event_seq: seq,
        op: op.to_owned(),
        payload: json!(task),
    });
    (event, patch)
}

fn fresh(what: &str) -> String {
    format!("{what}-{}", UuidIds.mint().as_hyphenated())
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("JSON")
}

fn line(to: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(&mut *to, value).expect("JSON");
    to.push(b'\n');
}
