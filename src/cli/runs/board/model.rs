//! A run as a reader of its events knows it: what was read at first, and every event since.
//!
//! Events hold whole records, so folding one that is known already changes nothing in the end, and the parts of the
//! beginning need not be of the same moment: events that follow the oldest of them bring all to the newest.
//!
//! Absent on purpose: clocks, I/O, how it looks.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use raddle_domain::{
    id::Seq,
    run::{Entry, EntryKind, Image, Run, Task, TaskStatus},
};
use serde::de::DeserializeOwned;

use crate::client::{Blackboard, RunAndTasks, RunEvent};

/// Events that are remembered.
pub const NEWS: usize = 100;

/// Where a task stands on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// For tasks that are not done.
    Waiting,
    Claimable,
    InProgress,
    Blocked,
    Failed,
    Done,
    Cancelled,
}

#[derive(Debug, Clone)]
pub struct Board {
    run: Run,
    /// Oldest first.
    tasks: Vec<Task>,
    places: HashMap<String, usize>,
    entries: BTreeMap<Seq, Entry>,
    summary: String,
    /// Oldest first.
    news: VecDeque<RunEvent>,
}

impl Board {
    /// A board of what the server says, the run first: `news` are events up to the run's newest.
    pub fn new(whole: RunAndTasks, noted: Blackboard, news: Vec<RunEvent>) -> Self {
        let Blackboard { facts, decisions, open_questions, artifacts, summaries, .. } = noted;
        let entries = [facts, decisions, open_questions, artifacts].into_iter().flatten();
        Self::begin(whole.run, whole.tasks, entries, summaries.rolling, news)
    }

    /// A board of a run that is known whole.
    pub fn of(image: Image) -> Self {
        let tasks = image.tasks.into_iter().map(|(_, task)| task).collect();
        Self::begin(image.run, tasks, image.entries.into_iter(), image.summaries.rolling, Vec::new())
    }

    fn begin(
        run: Run,
        tasks: Vec<Task>,
        entries: impl Iterator<Item = Entry>,
        summary: String,
        news: Vec<RunEvent>,
    ) -> Self {
        let places = tasks.iter().enumerate().map(|(at, task)| (task.id.clone(), at)).collect();
        let entries = entries.map(|entry| (entry.seq, entry)).collect();
        Self { run, tasks, places, entries, summary, news: news.into() }
    }

    /// Folds what happened next. What was folded already is passed over: a stream that was cut may repeat.
    pub fn apply(&mut self, event: RunEvent) {
        if event.seq <= self.run.last_event_seq {
            return;
        }
        if let Some(run) = &event.run {
            self.run = (**run).clone();
        }
        (self.run.status, self.run.revision) = (event.status, event.revision);
        (self.run.last_event_seq, self.run.updated_at) = (event.seq, event.ts);
        if event.event.starts_with("context.task.")
            && let Some(task) = part(&event, "task")
        {
            self.put(task);
        }
        // A client may write what it likes under names of its own; these only the machine writes.
        if matches!(event.event.as_str(), "context.blackboard.patched" | "context.artifact.added") {
            if let Some(entry) = part::<Entry>(&event, "entry") {
                self.entries.insert(entry.seq, entry);
            }
            if event.payload["op"] == "set_rolling_summary"
                && let Some(text) = part(&event, "text")
            {
                self.summary = text;
            }
        }
        self.news.push_back(event);
        if self.news.len() > NEWS {
            self.news.pop_front();
        }
    }

    fn put(&mut self, task: Task) {
        match self.places.get(&task.id) {
            Some(at) if self.tasks[*at].task_rev >= task.task_rev => {}
            Some(at) => self.tasks[*at] = task,
            None => {
                self.places.insert(task.id.clone(), self.tasks.len());
                self.tasks.push(task);
            }
        }
    }

    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// The text that sums up the run; empty where there is none.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// Events, oldest first.
    pub fn news(&self) -> impl DoubleEndedIterator<Item = &RunEvent> {
        self.news.iter()
    }

    /// Lines of the blackboard of this kind, newest first.
    pub fn notes(&self, kind: EntryKind) -> impl Iterator<Item = &Entry> {
        self.entries.values().rev().filter(move |entry| entry.kind == kind)
    }

    /// How many tasks there are.
    pub fn count(&self) -> usize {
        self.tasks.len()
    }

    /// The tasks that stand there, those first that matter first: what can be claimed in the order in which it is handed
    /// out, what is held by the time that is left, what failed by the time at which it comes back.
    pub fn tasks(&self, column: Column) -> Vec<&Task> {
        let mut tasks: Vec<_> = self.tasks.iter().filter(|task| self.column(task) == column).collect();
        // Sorting is stable, and so age decides where nothing else does.
        match column {
            Column::InProgress => tasks.sort_by_key(|task| task.lease.as_ref().map(|lease| lease.expires_at)),
            // What comes back by itself, then what does not.
            Column::Failed => tasks.sort_by_key(|task| (task.next_retry_at.is_none(), task.next_retry_at)),
            _ => tasks.sort_by_key(|task| Reverse(task.priority)),
        }
        tasks
    }

    fn column(&self, task: &Task) -> Column {
        match task.status {
            TaskStatus::Pending | TaskStatus::Runnable if self.waits_for(task).next().is_some() => Column::Waiting,
            TaskStatus::Pending | TaskStatus::Runnable => Column::Claimable,
            TaskStatus::InProgress => Column::InProgress,
            TaskStatus::Blocked => Column::Blocked,
            TaskStatus::Failed => Column::Failed,
            TaskStatus::Done => Column::Done,
            TaskStatus::Cancelled => Column::Cancelled,
        }
    }

    /// The tasks that have to be done before this one and are not.
    pub fn waits_for<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = &'a str> {
        let done = |id: &str| self.places.get(id).is_some_and(|at| self.tasks[*at].status == TaskStatus::Done);
        task.depends_on_task_ids.iter().map(String::as_str).filter(move |id| !done(id))
    }
}

/// A record that an event holds, if it does and this build can read it.
fn part<T: DeserializeOwned>(event: &RunEvent, name: &str) -> Option<T> {
    T::deserialize(event.payload.get(name)?).ok()
}

#[cfg(test)]
pub mod tests {
    use raddle_domain::{
        id::RunId,
        run::{RunStatus, RunWorkspace, TaskCounts, TaskLease},
        time::UnixMs,
    };
    use serde_json::{Value, json};

    use super::*;

    pub const RUN: &str = "run_01905d3c-7e57-7abc-8def-000000000001";

    pub fn run(objective: &str) -> Run {
        Run {
            id: RUN.parse::<RunId>().unwrap(),
            run_type: "interactive".to_owned(),
            tenant: raddle_domain::id::TenantId::DEFAULT,
            source_client: None,
            source_metadata: None,
            model_provider: None,
            model_id: None,
            mcp_servers: Vec::new(),
            status: RunStatus::Running,
            objective: objective.to_owned(),
            workspace: RunWorkspace::default(),
            steps: Vec::new(),
            why_next_step: None,
            last_error: None,
            task_counts: TaskCounts::default(),
            restored_from: None,
            revision: 1,
            last_event_seq: 1,
            created_at: UnixMs(0),
            started_at: None,
            ended_at: None,
            updated_at: UnixMs(0),
        }
    }

    pub fn task(id: &str, status: TaskStatus) -> Task {
        Task {
            id: id.to_owned(),
            task_type: "research".to_owned(),
            payload: json!({}),
            status,
            workflow_id: None,
            workflow_node_id: None,
            parent_task_id: None,
            depends_on_task_ids: Vec::new(),
            decision_ids: Vec::new(),
            artifact_ids: Vec::new(),
            assigned_agent: None,
            priority: 0,
            attempt: 0,
            max_attempts: 3,
            last_error: None,
            next_retry_at: None,
            lease: None,
            output: None,
            task_rev: 1,
            created_at: UnixMs(0),
            updated_at: UnixMs(0),
        }
    }

    pub fn held(id: &str, owner: &str, expires_at: u64) -> Task {
        let lease = TaskLease {
            owner: owner.to_owned(),
            expires_at: UnixMs(expires_at),
            fence: 1,
            lease_epoch: 0,
            token_sha256: String::new(),
            token: None,
        };
        Task { lease: Some(lease), ..task(id, TaskStatus::InProgress) }
    }

    pub fn entry(seq: Seq, kind: EntryKind, text: &str) -> Entry {
        Entry {
            id: format!("e{seq}"),
            kind,
            text: text.to_owned(),
            path: None,
            artifact_type: None,
            step_id: None,
            source_event_id: None,
            ts_ms: None,
            resolved: false,
            resolution: None,
            seq,
            created_at: UnixMs(0),
            updated_at: UnixMs(0),
        }
    }

    pub fn event(seq: Seq, name: &str, payload: Value) -> RunEvent {
        RunEvent {
            seq,
            ts: UnixMs(seq * 1_000),
            revision: seq,
            status: RunStatus::Running,
            by: "client".to_owned(),
            step_id: None,
            task_id: payload["task"]["id"].as_str().map(str::to_owned),
            event: name.to_owned(),
            payload,
            run: None,
        }
    }

    pub fn board(run: Run, tasks: Vec<Task>, entries: Vec<Entry>) -> Board {
        Board::begin(run, tasks, entries.into_iter(), String::new(), Vec::new())
    }

    fn ids(board: &Board, column: Column) -> Vec<&str> {
        board.tasks(column).into_iter().map(|task| task.id.as_str()).collect()
    }

    #[test]
    fn a_task_waits_until_all_that_it_needs_is_done() {
        let c = Task { depends_on_task_ids: vec!["a".into(), "b".into()], ..task("c", TaskStatus::Pending) };
        let (a, b) = (task("a", TaskStatus::Done), task("b", TaskStatus::Runnable));
        let mut board = board(run("x"), vec![a, b, c], vec![]);
        assert_eq!((ids(&board, Column::Claimable), ids(&board, Column::Waiting)), (vec!["b"], vec!["c"]));
        assert_eq!(board.waits_for(&board.tasks[2]).collect::<Vec<_>>(), ["b"]);
        let done = Task { task_rev: 2, ..task("b", TaskStatus::Done) };
        board.apply(event(2, "context.task.completed", json!({ "task": done })));
        assert_eq!((ids(&board, Column::Claimable), ids(&board, Column::Waiting)), (vec!["c"], vec![]));
        // What was called off is not done, and a name that nobody knows neither.
        let lost = Task { depends_on_task_ids: vec!["gone".into()], ..task("d", TaskStatus::Pending) };
        board.apply(event(3, "context.task.created", json!({ "task": lost })));
        assert_eq!(ids(&board, Column::Waiting), ["d"]);
    }

    #[test]
    fn what_matters_first_stands_first() {
        let urgent = Task { priority: 5, ..task("urgent", TaskStatus::Pending) };
        let back = |id: &str, at: Option<u64>| Task { next_retry_at: at.map(UnixMs), ..task(id, TaskStatus::Failed) };
        let tasks = vec![
            task("old", TaskStatus::Runnable),
            urgent,
            task("young", TaskStatus::Pending),
            held("long", "a", 900),
            held("short", "b", 100),
            back("never", None),
            back("later", Some(70)),
            back("soon", Some(7)),
        ];
        let board = board(run("x"), tasks, vec![]);
        assert_eq!(ids(&board, Column::Claimable), ["urgent", "old", "young"]);
        assert_eq!(ids(&board, Column::InProgress), ["short", "long"]);
        assert_eq!(ids(&board, Column::Failed), ["soon", "later", "never"]);
    }

    #[test]
    fn an_event_that_comes_twice_or_late_changes_nothing() {
        let newer = Task { task_rev: 3, ..task("a", TaskStatus::Done) };
        let mut board = board(run("x"), vec![newer], vec![]);
        // The tasks were read after this had happened.
        let claimed = Task { task_rev: 2, ..held("a", "me", 9) };
        board.apply(event(2, "context.task.claimed", json!({ "task": claimed })));
        assert_eq!(ids(&board, Column::Done), ["a"]);
        let news = board.news().count();
        board.apply(event(2, "context.task.claimed", json!({ "task": claimed })));
        board.apply(event(1, "whatever", json!({})));
        assert_eq!((board.run().last_event_seq, board.news().count()), (2, news));
    }

    #[test]
    fn the_run_is_what_its_newest_event_says() {
        let mut board = board(run("x"), vec![], vec![]);
        let changed = Run { why_next_step: Some("because".into()), status: RunStatus::Paused, ..run("y") };
        board.apply(RunEvent {
            run: Some(Box::new(changed)),
            status: RunStatus::Paused,
            ..event(2, "run_paused", json!({}))
        });
        assert_eq!((board.run().status, board.run().objective.as_str()), (RunStatus::Paused, "y"));
        board.apply(RunEvent { status: RunStatus::Paused, ..event(3, "noted", json!({})) });
        let run = board.run();
        assert_eq!((run.revision, run.last_event_seq, run.updated_at), (3, 3, UnixMs(3_000)));
        assert_eq!(run.why_next_step.as_deref(), Some("because"));
    }

    #[test]
    fn the_blackboard_follows_its_patches() {
        let mut board = board(run("x"), vec![], vec![entry(1, EntryKind::Fact, "old")]);
        let edited = entry(1, EntryKind::Fact, "new");
        board.apply(event(2, "context.blackboard.patched", json!({ "op": "edit_fact", "entry": edited })));
        let added = entry(3, EntryKind::Fact, "more");
        board.apply(event(3, "context.blackboard.patched", json!({ "op": "add_fact", "entry": added })));
        let artifact = Entry { path: Some("a.txt".into()), ..entry(4, EntryKind::Artifact, "") };
        board.apply(event(4, "context.artifact.added", json!({ "op": "add_artifact", "entry": artifact })));
        board.apply(event(5, "context.blackboard.patched", json!({ "op": "set_rolling_summary", "text": "half" })));
        board.apply(event(6, "context.blackboard.patched", json!({ "op": "set_latest_context_pack", "text": "p" })));
        let facts: Vec<_> = board.notes(EntryKind::Fact).map(|entry| entry.text.as_str()).collect();
        assert_eq!((facts, board.summary()), (vec!["more", "new"], "half"));
        assert_eq!(board.notes(EntryKind::Artifact).count(), 1);
    }

    #[test]
    fn what_a_client_wrote_is_news_and_nothing_else() {
        let mut board = board(run("x"), vec![task("a", TaskStatus::Pending)], vec![]);
        let forged = Task { task_rev: 9, ..task("a", TaskStatus::Done) };
        board.apply(event(2, "task_completed", json!({ "task": forged, "op": "set_rolling_summary", "text": "x" })));
        assert_eq!((ids(&board, Column::Claimable), board.summary()), (vec!["a"], ""));
        assert_eq!(board.news().count(), 1);
    }

    #[test]
    fn only_the_newest_events_are_remembered() {
        let mut board = board(run("x"), vec![], vec![]);
        for seq in 2..NEWS as u64 + 12 {
            board.apply(event(seq, "noted", json!({})));
        }
        assert_eq!(board.news().count(), NEWS);
        assert_eq!(board.news().next_back().map(|event| event.seq), Some(NEWS as u64 + 11));
    }
}
