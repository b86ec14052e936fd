//! The words of the log, as they were ever stored: every released schema is read, today's is written unchanged.

use raddle_domain::{
    event::{Event, ItemDelta, Record, Retrying, SCHEMA},
    id::{InputId, ItemId, ThreadId, TurnId},
    record::{
        Admission, AdmissionStatus, Delivery, Item, ItemKind, Metadata, ModelChoice, OnRestart, Thread, ThreadStatus,
        Turn, TurnError, TurnOverrides, TurnSettings, TurnStatus, Usage, UsageEntry,
    },
    time::UnixMs,
};
use serde_json::json;
use uuid::Uuid;

const GOLDEN: &str = include_str!("golden/events-1.jsonl");

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0000_0000_0000 + n)
}

fn metadata() -> Metadata {
    json!({ "k": [1, null, "é"] }).as_object().cloned().unwrap()
}

fn thread() -> Box<Thread> {
    Box::new(Thread {
        id: ThreadId::new(uuid(1)),
        title: Some("a \"title\"\n".into()),
        status: ThreadStatus::Running,
        engine: "openai".into(),
        model: "m".into(),
        mode: "agent".into(),
        system_prompt: None,
        workspace: Some("/w".into()),
        allow_shell: true,
        auto_approve: false,
        trust_mode: false,
        on_restart: OnRestart::Interrupt,
        archived: false,
        active_turn: Some(TurnId::new(uuid(2))),
        queued: 1,
        pending_approvals: 0,
        created_at: UnixMs(1_795_000_000_000),
        updated_at: UnixMs(1_795_000_000_001),
        seq: 7,
        metadata: metadata(),
    })
}

fn turn() -> Box<Turn> {
    Box::new(Turn {
        id: TurnId::new(uuid(2)),
        thread_id: ThreadId::new(uuid(1)),
        status: TurnStatus::Failed,
        input_summary: "hi".into(),
        settings: TurnSettings {
            engine: "openai".into(),
            model: "m".into(),
            mode: "plan".into(),
            allow_shell: true,
            auto_approve: false,
            trust_mode: true,
            temperature: Some(0.5),
            top_p: None,
            max_tokens: Some(9),
        },
        usage: Usage { input_tokens: 1, output_tokens: 2, cached_tokens: Some(3), model_calls: 1, ..Usage::default() },
        error: Some(TurnError { code: "model-rejected".into(), message: "no".into() }),
        item_ids: vec![ItemId::new(uuid(3))],
        steer_count: 0,
        resume_count: 1,
        created_at: UnixMs(1_795_000_000_000),
        started_at: Some(UnixMs(1_795_000_000_000)),
        ended_at: Some(UnixMs(1_795_000_000_250)),
        duration_ms: Some(250),
    })
}

fn item() -> Box<Item> {
    Box::new(Item {
        id: ItemId::new(uuid(3)),
        turn_id: TurnId::new(uuid(2)),
        kind: ItemKind::AgentMessage,
        status: TurnStatus::Completed,
        summary: "hel…".into(),
        detail: "hello 🌍".into(),
        metadata: metadata(),
        artifact_refs: vec!["a".into()],
        started_at: UnixMs(1_795_000_000_000),
        ended_at: Some(UnixMs(1_795_000_000_200)),
    })
}

fn admission() -> Box<Admission> {
    let choice = Some(ModelChoice { engine: "openai".into(), model: "m".into() });
    Box::new(Admission {
        id: InputId::new(uuid(4)),
        thread_id: ThreadId::new(uuid(1)),
        delivery: Delivery::Queue,
        status: AdmissionStatus::Promoted,
        prompt: "later".into(),
        overrides: TurnOverrides { choice, top_p: Some(0.25), ..TurnOverrides::default() },
        turn_id: Some(TurnId::new(uuid(5))),
        created_at: UnixMs(1_795_000_000_000),
    })
}

/// One record of every word.
fn records() -> Vec<Record> {
    let delta = ItemDelta {
        turn: TurnId::new(uuid(2)),
        item: ItemId::new(uuid(3)),
        kind: ItemKind::Reasoning,
        delta: "…".into(),
    };
    let error = TurnError { code: "model-cut-off".into(), message: "cut".into() };
    let retry_at = UnixMs(1_795_000_001_000);
    let retrying = Retrying { turn: *turn(), attempt: 1, max_attempts: 4, retry_at, error };
    let usage = UsageEntry {
        engine: "openai".into(),
        model: "m".into(),
        usage: Usage { reasoning_tokens: Some(4), model_calls: 1, unreported_calls: 1, ..Usage::default() },
    };
    let events = [
        Event::ThreadCreated(thread()),
        Event::ThreadUpdated(thread()),
        Event::ThreadStatus(thread()),
        Event::ThreadArchived(thread()),
        Event::ThreadDeleted(thread()),
        Event::PromptAdmitted(Box::new(Admission { turn_id: None, status: AdmissionStatus::Pending, ..*admission() })),
        Event::PromptPromoted(admission()),
        Event::TurnStarted(turn()),
        Event::TurnResumed(turn()),
        Event::TurnRetrying(Box::new(retrying)),
        Event::TurnInterruptRequested(turn()),
        Event::TurnCompleted(turn()),
        Event::ItemStarted(item()),
        Event::ItemDelta(delta),
        Event::ItemCompleted(item()),
        Event::UsageRecorded(TurnId::new(uuid(2)), Box::new(usage)),
    ];
    let record = |(seq, event)| Record { seq, ts: UnixMs(1_795_000_000_123), thread: ThreadId::new(uuid(1)), event };
    (1..).zip(events).map(record).collect()
}

#[test]
fn what_schema_1_stored_is_read_as_it_was_meant() {
    let read: Vec<Record> = GOLDEN.lines().map(|line| Record::decode(1, line.as_bytes()).unwrap()).collect();
    assert_eq!(read, records());
}

#[test]
fn today_writes_what_the_golden_file_says() {
    assert_eq!(SCHEMA, 1, "a new schema gets a golden file of its own");
    let written: Vec<String> = records().iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    for (line, golden) in written.iter().zip(GOLDEN.lines()) {
        assert_eq!(line, golden);
    }
    assert_eq!(written.len(), GOLDEN.lines().count());
}

#[test]
fn what_no_schema_wrote_is_refused_by_name() {
    let refusal = |schema, json: &str| Record::decode(schema, json.as_bytes()).unwrap_err().to_string();
    let first = GOLDEN.lines().next().unwrap();
    assert_eq!(refusal(2, first), "written by schema 2, this build reads up to 1");
    assert_eq!(refusal(1, &first.replace("thread.created", "thread.invented")), "unknown event `thread.invented`");
    assert!(refusal(1, &first[..40]).starts_with("not a record"));
    let delta = GOLDEN.lines().find(|line| line.contains("item.delta")).unwrap();
    assert_eq!(refusal(1, &delta.replace("\"item_id\"", "\"other_id\"")), "`item.delta` names no item");
}
