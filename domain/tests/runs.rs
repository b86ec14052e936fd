//! The words of the logs of runs, and the copies of runs, as they were ever stored: whatever was written is read as it
//! was meant, and today's words are written unchanged.
//!
//! A golden file is never edited. What is written differently from some day on, without being read differently, gets
//! a file of its own beside those before it.

use std::collections::BTreeMap;

use raddle_domain::{
    id::{CheckpointId, ItemId, OperationId, RunId, TenantId, ThreadId, TurnId},
    ports::{ChangedFile, Content},
    run::{
        Checkpoint, Entry, EntryKind, Image, LedgerPhase, LedgerRecord, LedgerStatus, LedgerSummary, Mutation,
        MutationRecord, PartCounts, Record, Rest, RestoredFrom, Rollback, Run, RunState, RunStatus, RunStep,
        RunWorkspace, Source, StepStatus, Summaries, Task, TaskCounts, TaskLease, TaskStatus,
        event::{EntryEvent, Event, RollbackBlocked, SCHEMA, TaskEvent},
    },
    time::UnixMs,
};
use serde_json::json;
use uuid::Uuid;

const EVENTS: &str = include_str!("golden/run-events-1.jsonl");
const COPY: &str = include_str!("golden/run-copy-1.json");

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0000_0000_0000 + n)
}

fn at(ms: u64) -> UnixMs {
    UnixMs(1_795_000_000_000 + ms)
}

fn thread() -> ThreadId {
    ThreadId::new(uuid(2))
}

fn run() -> Run {
    let step = |id: &str, status| RunStep { step_id: id.into(), title: "do \"it\"\n".into(), status };
    Run {
        id: RunId::new(uuid(1)),
        run_type: "interactive".into(),
        tenant: TenantId::DEFAULT,
        source_client: Some("cli".into()),
        source_metadata: Some(json!({ "k": [1, null, "é"] })),
        model_provider: Some("openai".into()),
        model_id: Some("m".into()),
        mcp_servers: vec!["files".into()],
        status: RunStatus::Running,
        objective: "ship 🌍".into(),
        workspace: RunWorkspace { workspace_id: "w".into(), canonical_path: "/w".into(), lease_epoch: 1 },
        steps: vec![
            step("s-1", StepStatus::Pending),
            step("s-2", StepStatus::Runnable),
            step("s-3", StepStatus::InProgress),
            step("s-4", StepStatus::Blocked),
            step("s-5", StepStatus::Done),
            step("s-6", StepStatus::Failed),
        ],
        why_next_step: Some("so".into()),
        last_error: Some("broken".into()),
        task_counts: TaskCounts { in_progress: 1, ..TaskCounts::default() },
        restored_from: Some(RestoredFrom {
            run_id: RunId::new(uuid(9)),
            checkpoint_id: Some(CheckpointId::new(uuid(8))),
            seq: 6,
        }),
        revision: 3,
        last_event_seq: 7,
        created_at: at(0),
        started_at: Some(at(1)),
        ended_at: None,
        updated_at: at(2),
    }
}

/// A run of which nothing is said.
fn blank() -> Run {
    Run {
        source_client: None,
        source_metadata: None,
        model_provider: None,
        model_id: None,
        mcp_servers: Vec::new(),
        steps: Vec::new(),
        why_next_step: None,
        last_error: None,
        restored_from: None,
        started_at: None,
        ended_at: Some(at(3)),
        status: RunStatus::Completed,
        ..run()
    }
}

fn task(status: TaskStatus) -> Box<Task> {
    let lease = (status == TaskStatus::InProgress).then(|| TaskLease {
        owner: "agent".into(),
        expires_at: at(30_000),
        fence: 5,
        lease_epoch: 1,
        token_sha256: "ab".repeat(32),
        token: None,
    });
    Box::new(Task {
        id: "task-7".into(),
        task_type: "implementation".into(),
        payload: json!({ "output_target": { "path": "a" }, "ratio": 0.907_303_832_202_868_9 }),
        status,
        workflow_id: Some("flow".into()),
        workflow_node_id: Some("node".into()),
        parent_task_id: Some("task-1".into()),
        depends_on_task_ids: vec!["task-2".into()],
        decision_ids: vec!["d".into()],
        artifact_ids: vec!["a".into()],
        assigned_agent: Some("agent".into()),
        priority: -1,
        attempt: 1,
        max_attempts: 3,
        last_error: Some("broken".into()),
        next_retry_at: (status == TaskStatus::Failed).then_some(at(500)),
        lease,
        output: (status == TaskStatus::Done).then(|| json!({ "pr": 7 })),
        task_rev: 4,
        created_at: at(1),
        updated_at: at(2),
    })
}

/// A task of which nothing is said.
fn bare() -> Box<Task> {
    Box::new(Task {
        payload: json!({}),
        workflow_id: None,
        workflow_node_id: None,
        parent_task_id: None,
        depends_on_task_ids: Vec::new(),
        decision_ids: Vec::new(),
        artifact_ids: Vec::new(),
        assigned_agent: None,
        last_error: None,
        ..*task(TaskStatus::Pending)
    })
}

fn entry(kind: EntryKind, resolved: bool) -> Box<Entry> {
    let of_artifact = |text: &str| (kind == EntryKind::Artifact).then(|| text.to_owned());
    Box::new(Entry {
        id: format!("{}-1", kind.as_str()),
        kind,
        text: of_artifact("").unwrap_or("it is so".into()),
        path: of_artifact("out/a.md"),
        artifact_type: of_artifact("report"),
        step_id: Some("s-1".into()),
        source_event_id: Some("evt_3".into()),
        ts_ms: Some(u64::MAX),
        resolved,
        resolution: resolved.then(|| "checked".into()),
        seq: 6,
        created_at: at(1),
        updated_at: at(2),
    })
}

fn checkpoint() -> Checkpoint {
    Checkpoint { id: CheckpointId::new(uuid(3)), seq: 6, reason: Some("before".into()), created_at: at(4) }
}

fn source() -> Source {
    Source {
        thread_id: thread(),
        turn_id: TurnId::new(uuid(4)),
        item_id: ItemId::new(uuid(5)),
        operation_id: OperationId::new(uuid(6)),
        seq: 17,
    }
}

fn effect(phase: LedgerPhase, status: LedgerStatus) -> Box<LedgerRecord> {
    let ended = phase == LedgerPhase::Outcome;
    Box::new(LedgerRecord {
        source: source(),
        task_id: ended.then(|| "task-7".into()),
        tool: "edit_file".into(),
        phase,
        status,
        attempt: 1,
        arguments_sha256: Some("cd".repeat(32)),
        output_sha256: ended.then(|| "ef".repeat(32)),
        output_bytes: ended.then_some(9),
    })
}

fn mutation() -> Box<MutationRecord> {
    let content = |byte: &str| Some(Content { sha256: byte.repeat(32), bytes: 3 });
    let file = |path: &str, before, after| ChangedFile { path: path.into(), before, after, mode: None };
    Box::new(MutationRecord {
        source: source(),
        task_id: Some("task-7".into()),
        tool: "edit_file".into(),
        workspace: "/w".into(),
        files: vec![file("made", None, content("01")), file("gone", content("02"), None)],
    })
}

fn rollback() -> Rollback {
    let event_ids = vec!["evt_9".into(), "evt_7".into()];
    Rollback { operation_id: OperationId::new(uuid(7)), event_ids, started_seq: 12, started_at: at(5) }
}

/// Every word, with everything it can say; and what stands beside it: a step, and the run after it.
fn today() -> Vec<(Event, Option<&'static str>, Option<Run>)> {
    use TaskEvent::{Blocked, Cancelled, Claimed, Completed, Created, Failed, Heartbeat, Requeued, StaleRequeued};
    let plain = |event| (event, None, None);
    let payload = || json!({ "n": [1, -0.5], "why_next_step": "so" });
    let blocked = |missing_event_ids| {
        let (event_ids, reason) = (vec!["evt_9".into()], "no".into());
        Event::RollbackBlocked(RollbackBlocked { event_ids, reason, missing_event_ids })
    };
    vec![
        (Event::Created, None, Some(run())),
        (Event::Replaced, None, Some(blank())),
        (Event::Told { name: "Deployed it".into(), payload: payload() }, Some("s-1"), None),
        (Event::TodosSynced { payload: payload() }, None, Some(run())),
        (Event::NextStepSelected { payload: payload() }, Some("s-2"), Some(run())),
        (Event::WorkspaceBound, None, Some(run())),
        (Event::WorkspaceRebound { was: "/v".into() }, None, Some(run())),
        (Event::WorkspaceMismatch { payload: payload() }, None, None),
        plain(Event::Task(Created, bare())),
        plain(Event::Task(Claimed, task(TaskStatus::InProgress))),
        plain(Event::Task(Heartbeat, task(TaskStatus::InProgress))),
        plain(Event::Task(Completed, task(TaskStatus::Done))),
        plain(Event::Task(Failed, task(TaskStatus::Failed))),
        plain(Event::Task(Blocked, task(TaskStatus::Blocked))),
        plain(Event::Task(Cancelled, task(TaskStatus::Cancelled))),
        plain(Event::Task(Requeued, task(TaskStatus::Runnable))),
        plain(Event::Task(StaleRequeued, task(TaskStatus::Runnable))),
        plain(Event::Entry(EntryEvent::Added, entry(EntryKind::Fact, false))),
        plain(Event::Entry(EntryEvent::Added, entry(EntryKind::Artifact, false))),
        plain(Event::Entry(EntryEvent::Edited, entry(EntryKind::Decision, false))),
        plain(Event::Entry(EntryEvent::Resolved, entry(EntryKind::OpenQuestion, true))),
        plain(Event::Summary { pack: false, text: "so far".into() }),
        plain(Event::Summary { pack: true, text: String::new() }),
        plain(Event::CheckpointSaved(checkpoint())),
        plain(Event::CheckpointDeleted(Checkpoint { reason: None, ..checkpoint() })),
        plain(Event::EffectRecorded(effect(LedgerPhase::Invocation, LedgerStatus::Started))),
        plain(Event::EffectRecorded(effect(LedgerPhase::Outcome, LedgerStatus::Uncertain))),
        plain(Event::MutationRecorded(mutation())),
        plain(Event::RollbackStarted(rollback())),
        plain(Event::RollbackApplied { rollback: rollback(), files: 2 }),
        plain(blocked(Vec::new())),
        plain(blocked(vec!["evt_1".into()])),
        plain(Event::Deleted),
    ]
}

/// The place of a word among all words: a new one does not compile before it has a line of its own.
fn word(event: &Event) -> usize {
    match event {
        Event::Created => 0,
        Event::Replaced => 1,
        Event::Told { .. } => 2,
        Event::TodosSynced { .. } => 3,
        Event::NextStepSelected { .. } => 4,
        Event::WorkspaceBound => 5,
        Event::WorkspaceRebound { .. } => 6,
        Event::WorkspaceMismatch { .. } => 7,
        Event::Task(event, _) => match event {
            TaskEvent::Created => 8,
            TaskEvent::Claimed => 9,
            TaskEvent::Heartbeat => 10,
            TaskEvent::Completed => 11,
            TaskEvent::Failed => 12,
            TaskEvent::Blocked => 13,
            TaskEvent::Cancelled => 14,
            TaskEvent::Requeued => 15,
            TaskEvent::StaleRequeued => 16,
        },
        Event::Entry(event, _) => match event {
            EntryEvent::Added => 17,
            EntryEvent::Edited => 18,
            EntryEvent::Resolved => 19,
        },
        Event::Summary { .. } => 20,
        Event::CheckpointSaved(_) => 21,
        Event::CheckpointDeleted(_) => 22,
        Event::EffectRecorded(_) => 23,
        Event::MutationRecorded(_) => 24,
        Event::RollbackStarted(_) => 25,
        Event::RollbackApplied { .. } => 26,
        Event::RollbackBlocked(_) => 27,
        Event::Deleted => 28,
    }
}

fn records() -> Vec<Record> {
    let record = |(seq, (event, step_id, run)): (u64, (Event, Option<&str>, Option<Run>))| Record {
        seq,
        ts: at(seq),
        run_id: RunId::new(uuid(1)),
        revision: 3,
        status: run.as_ref().map_or(RunStatus::Paused, |run| run.status),
        by: ["client", "runtime", "agent:a b"][seq as usize % 3].into(),
        step_id: step_id.map(str::to_owned),
        event,
        run: run.map(Box::new),
    };
    (1..).zip(today()).map(record).collect()
}

fn read() -> Vec<Record> {
    EVENTS.lines().map(|line| Record::decode(1, line.as_bytes()).unwrap()).collect()
}

/// A run of which there is something everywhere.
fn copy() -> Image {
    let ledger = LedgerSummary {
        record_count: 15,
        by_status: BTreeMap::from([
            (LedgerStatus::Started, 1),
            (LedgerStatus::Succeeded, 2),
            (LedgerStatus::Failed, 3),
            (LedgerStatus::Blocked, 4),
            (LedgerStatus::Uncertain, 5),
        ]),
        by_phase: BTreeMap::from([(LedgerPhase::Invocation, 1), (LedgerPhase::Outcome, 14)]),
        by_tool: BTreeMap::from([("edit_file".into(), 15)]),
        last_seq: 30,
        last_ts: Some(at(6)),
    };
    Image {
        run: run(),
        tasks: vec![(5, *task(TaskStatus::InProgress))],
        entries: vec![*entry(EntryKind::Fact, true)],
        summaries: Summaries { rolling: "so far".into(), latest_context_pack: "the pack".into() },
        checkpoints: vec![(7, checkpoint())],
        mutations: vec![Mutation {
            event_id: "evt_9".into(),
            seq: 9,
            ts: at(3),
            record: *mutation(),
            rolled_back_seq: Some(11),
        }],
        sources: BTreeMap::from([(thread(), 17)]),
        rest: Rest {
            ledger,
            rollback: Some(rollback()),
            parts: PartCounts { entries: 1, checkpoints: 1, mutations: 1, sources: 1 },
        },
    }
}

#[test]
fn whatever_schema_1_stored_is_read_as_it_was_meant() {
    assert_eq!(read(), records());
    let image: Image = serde_json::from_str(COPY).unwrap();
    assert_eq!(image, copy());
    assert_eq!(RunState::of(image.clone()).unwrap().image(), image);
}

#[test]
fn today_writes_what_the_golden_files_say() {
    assert_eq!(SCHEMA, 1, "a new schema gets a golden file of its own");
    let written: Vec<String> = records().iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    for (line, golden) in written.iter().zip(EVENTS.lines()) {
        assert_eq!(line, golden);
    }
    assert_eq!(written.len(), EVENTS.lines().count());
    assert_eq!(serde_json::to_string(&copy()).unwrap(), COPY.trim_end());
}

#[test]
fn every_word_has_a_golden_line() {
    let mut places: Vec<usize> = read().iter().map(|record| word(&record.event)).collect();
    places.dedup();
    // An artifact is a line like any other, and two are said in two ways.
    assert_eq!(places, (0..29).collect::<Vec<_>>());
}

#[test]
fn what_no_schema_wrote_is_refused_by_name() {
    let refusal = |schema, json: &str| Record::decode(schema, json.as_bytes()).unwrap_err().to_string();
    let first = EVENTS.lines().next().unwrap();
    assert_eq!(refusal(2, first), "written by schema 2, this build reads up to 1");
    let invented = first.replace("context.run.created", "context.run.invented");
    assert_eq!(refusal(1, &invented), "unknown event `context.run.invented`");
    assert!(refusal(1, &first[..40]).starts_with("not a record"));
    let line = |name: &str| EVENTS.lines().find(|line| line.contains(name)).unwrap();
    let headless = line("context.task.claimed").replace("\"task\":", "\"job\":");
    assert!(refusal(1, &headless).starts_with("not a record: context.task.claimed: `task`"));
    let op = line("context.blackboard.patched").replace("\"add_fact\"", "\"drop_fact\"");
    assert_eq!(refusal(1, &op), "unknown event `context.blackboard.patched: drop_fact`");
    // A word of a client's is nobody's business.
    let told = line("Deployed it").replace("Deployed it", "deployed");
    assert_eq!(Record::decode(1, told.as_bytes()).unwrap().event.name(), "deployed");
}

/// Whoever reads the feed of a tenant knows events by their names alone.
#[test]
fn no_client_can_say_what_threads_jobs_and_schedules_say() {
    let words = [
        include_str!("golden/events-1.jsonl"),
        include_str!("golden/events-2.jsonl"),
        include_str!("golden/events-3.jsonl"),
    ];
    for line in words.iter().flat_map(|lines| lines.lines()) {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = event["event"].as_str().unwrap();
        assert!(raddle_domain::run::event::is_reserved(name), "{name}");
    }
}
