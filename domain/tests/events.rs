//! The words of the log, as they were ever stored: whatever was written is read as it was meant, and today's words
//! are written unchanged.
//!
//! A golden file is never edited. What is written differently from some day on, without being read differently, gets
//! a file of its own beside those before it.

use std::borrow::Cow;

use raddle_domain::{
    budget::{Amount, BudgetState, Scope, Unit, Window},
    event::{self, Event, ItemDelta, Record, Reserved, Retrying, SCHEMA},
    id::{ApprovalId, InputId, ItemId, OperationId, QuestionId, RunId, ThreadId, TurnId},
    price::{Cost, Price},
    record::{
        Admission, AdmissionStatus, Approval, ApprovalStatus, Checkpoint, Compaction, DecidedBy, Decision, Delivery,
        Effect, EffectClass, EffectOutcome, EffectStatus, ForkedFrom, Item, ItemKind, Metadata, ModelChoice, OnRestart,
        Permit, Purpose, Question, QuestionStatus, Resolution, ResolvedBy, Thread, ThreadStatus, Turn, TurnError,
        TurnKind, TurnOverrides, TurnSettings, TurnStatus, Undelivered, Usage, UsageEntry,
    },
    tenant::{Budget, Usd},
    time::UnixMs,
};
use serde_json::json;
use uuid::Uuid;

/// Before steers, approvals, effects, compactions, checkpoints, forks and prices had words.
const FIRST: &str = include_str!("golden/events-1.jsonl");
const TODAY: &str = include_str!("golden/events-2.jsonl");
/// What threads say more that work for a run.
const OF_A_RUN: &str = include_str!("golden/events-3.jsonl");
/// What is said of budgets.
const OF_BUDGETS: &str = include_str!("golden/events-4.jsonl");

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
        policy: None,
        run_id: None,
        budget: None,
        spent: None,
        archived: false,
        active_turn: Some(TurnId::new(uuid(2))),
        queued: 1,
        queue_paused: false,
        pending_approvals: 0,
        forked_from: None,
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
        kind: TurnKind::Prompt,
        status: TurnStatus::Failed,
        input_summary: "hi".into(),
        task_id: None,
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
            price: None,
        },
        budget: None,
        spent: None,
        usage: Usage { input_tokens: 1, output_tokens: 2, cached_tokens: Some(3), model_calls: 1, ..Usage::default() },
        error: Some(TurnError { code: "model-rejected".into(), message: "no".into() }),
        item_ids: vec![ItemId::new(uuid(3))],
        steer_count: 0,
        resume_count: 1,
        not_delivered: Vec::new(),
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
        kind: TurnKind::Prompt,
        delivery: Delivery::Queue,
        status: AdmissionStatus::Promoted,
        undelivered: Undelivered::Report,
        prompt: "later".into(),
        overrides: TurnOverrides { choice, top_p: Some(0.25), ..TurnOverrides::default() },
        turn_id: Some(TurnId::new(uuid(5))),
        created_at: UnixMs(1_795_000_000_000),
    })
}

/// What the first golden file says.
fn first() -> Vec<Event> {
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
        purpose: Purpose::Answer,
        usage: Usage { reasoning_tokens: Some(4), model_calls: 1, unreported_calls: 1, ..Usage::default() },
        cost: None,
    };
    vec![
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
    ]
}

fn approval(status: ApprovalStatus, decision: Option<Decision>, by: Option<DecidedBy>) -> Box<Approval> {
    Box::new(Approval {
        id: ApprovalId::new(uuid(6)),
        thread_id: ThreadId::new(uuid(1)),
        turn_id: TurnId::new(uuid(2)),
        item_id: ItemId::new(uuid(3)),
        call_id: "c1".into(),
        operation_id: OperationId::new(uuid(7)),
        tool: "exec_shell".into(),
        effect_class: EffectClass::Once,
        arguments: json!({ "command": "rm x", "ratio": 0.9073038322028689 }),
        arguments_sha256: "ab".repeat(32),
        command: Some("rm x".into()),
        cwd: Some("/w".into()),
        reason: "it writes".into(),
        matched_rule: Some("ask-writes".into()),
        available_decisions: vec![
            Decision::Approved,
            Decision::ApprovedForSession,
            Decision::ApprovedAlways,
            Decision::Denied,
            Decision::Abort,
        ],
        amendment: Some(Permit {
            tool: "exec_shell".into(),
            arguments_sha256: Some("ab".repeat(32)),
            command_prefix: Some(vec!["rm".into()]),
            host: None,
        }),
        status,
        decision,
        by,
        decision_reason: decision.map(|_| "why \"not\"".into()),
        requested_at: UnixMs(1_795_000_000_000),
        expires_at: UnixMs(1_795_086_400_000),
        decided_at: (status != ApprovalStatus::Pending).then_some(UnixMs(1_795_000_000_100)),
    })
}

fn question(status: QuestionStatus) -> Box<Question> {
    let answered = status == QuestionStatus::Answered;
    Box::new(Question {
        id: QuestionId::new(uuid(8)),
        thread_id: ThreadId::new(uuid(1)),
        turn_id: TurnId::new(uuid(2)),
        item_id: ItemId::new(uuid(3)),
        call_id: "c2".into(),
        question: "which one?".into(),
        options: vec!["left".into(), "right".into()],
        status,
        answer: answered.then(|| "the middle".into()),
        asked_at: UnixMs(1_795_000_000_000),
        expires_at: UnixMs(1_795_086_400_000),
        answered_at: answered.then_some(UnixMs(1_795_000_000_100)),
    })
}

fn effect(status: EffectStatus) -> Box<Effect> {
    let (started, ended) = match status {
        EffectStatus::Intended => (false, false),
        EffectStatus::Started => (true, false),
        EffectStatus::Settled | EffectStatus::Uncertain => (true, true),
    };
    Box::new(Effect {
        operation_id: OperationId::new(uuid(7)),
        thread_id: ThreadId::new(uuid(1)),
        turn_id: TurnId::new(uuid(2)),
        item_id: ItemId::new(uuid(3)),
        call_id: "c1".into(),
        tool: "exec_shell".into(),
        class: EffectClass::Reconcilable,
        run_id: None,
        task_id: None,
        arguments_sha256: None,
        status,
        attempt: u32::from(started),
        outcome: (status == EffectStatus::Settled).then_some(EffectOutcome::Succeeded),
        output_sha256: None,
        output_bytes: None,
        reason: (status == EffectStatus::Uncertain).then(|| "lost".into()),
        resolution: None,
        resolved_by: None,
        closed: false,
        intended_at: UnixMs(1_795_000_000_000),
        started_at: started.then_some(UnixMs(1_795_000_000_050)),
        ended_at: ended.then_some(UnixMs(1_795_000_000_200)),
    })
}

fn compaction(item: bool, error: bool) -> Box<Compaction> {
    Box::new(Compaction {
        turn_id: TurnId::new(uuid(2)),
        automatic: !error,
        reason: error.then(|| "too long".into()),
        tokens_before: Some(9_000),
        item_id: item.then(|| ItemId::new(uuid(3))),
        error: error.then(|| TurnError { code: "model-malformed".into(), message: "no summary".into() }),
    })
}

/// Every word, with everything it can say today.
fn today() -> Vec<Event> {
    let forked_from = Some(ForkedFrom { thread_id: ThreadId::new(uuid(9)), seq: 6 });
    let thread = || Box::new(Thread { queue_paused: true, forked_from, ..*thread() });
    let price = Price { version: "2026-11".into(), input: 3_000_000, cached_input: Some(300_000), output: 15_000_000 };
    let settings = TurnSettings { price: Some(price), ..turn().settings };
    let not_delivered = vec![InputId::new(uuid(4))];
    let turn = || {
        let (settings, not_delivered) = (settings.clone(), not_delivered.clone());
        Box::new(Turn { kind: TurnKind::Compaction, settings, not_delivered, ..*turn() })
    };
    let steer = |status| {
        let (delivery, undelivered) = (Delivery::Steer, Undelivered::Queue);
        Box::new(Admission { kind: TurnKind::Compaction, delivery, undelivered, status, ..*admission() })
    };
    let checkpoint = || {
        let created_at = UnixMs(1_795_000_000_000);
        Box::new(Checkpoint { name: "é 1".into(), thread_id: ThreadId::new(uuid(1)), seq: 6, created_at })
    };
    let usage = UsageEntry {
        engine: "openai".into(),
        model: "m".into(),
        purpose: Purpose::Compaction,
        usage: Usage { input_tokens: 5, output_tokens: 6, model_calls: 1, ..Usage::default() },
        cost: Some(Cost { pico_usd: 105_000_000, without_cache_pico_usd: 105_000_000 }),
    };
    let reconciled = Effect {
        resolution: Some(Resolution::Settle),
        resolved_by: Some(ResolvedBy::Tool),
        ..*effect(EffectStatus::Started)
    };
    let mut events = first();
    for event in &mut events {
        match event {
            Event::ThreadCreated(old)
            | Event::ThreadUpdated(old)
            | Event::ThreadStatus(old)
            | Event::ThreadArchived(old)
            | Event::ThreadDeleted(old) => *old = thread(),
            Event::PromptAdmitted(old) => *old = steer(AdmissionStatus::Pending),
            Event::PromptPromoted(old) => *old = steer(AdmissionStatus::Promoted),
            Event::TurnStarted(old)
            | Event::TurnResumed(old)
            | Event::TurnInterruptRequested(old)
            | Event::TurnCompleted(old) => *old = turn(),
            Event::TurnRetrying(retrying) => retrying.turn = *turn(),
            Event::UsageRecorded(_, old) => **old = usage.clone(),
            _ => {}
        }
    }
    events.extend([
        Event::ThreadForked(thread()),
        Event::PromptEdited(admission(), 2),
        Event::PromptWithdrawn(Box::new(Admission { status: AdmissionStatus::Withdrawn, ..*admission() })),
        Event::PromptNotDelivered(steer(AdmissionStatus::NotDelivered)),
        Event::TurnSteered(turn()),
        Event::TurnRolledBack(Box::new(Turn { status: TurnStatus::RolledBack, ..*turn() })),
        Event::ApprovalRequired(approval(ApprovalStatus::Pending, None, None)),
        Event::ApprovalDecided(approval(ApprovalStatus::Denied, Some(Decision::Denied), Some(DecidedBy::Caller))),
        Event::ApprovalExpired(approval(ApprovalStatus::Expired, None, None)),
        Event::ApprovalCancelled(approval(ApprovalStatus::Cancelled, None, None)),
        Event::QuestionAsked(question(QuestionStatus::Pending)),
        Event::QuestionAnswered(question(QuestionStatus::Answered)),
        Event::QuestionExpired(question(QuestionStatus::Expired)),
        Event::QuestionCancelled(question(QuestionStatus::Cancelled)),
        Event::EffectIntended(effect(EffectStatus::Intended)),
        Event::EffectStarted(effect(EffectStatus::Started)),
        Event::EffectSettled(effect(EffectStatus::Settled)),
        Event::EffectUncertain(Box::new(Effect { closed: true, ..*effect(EffectStatus::Uncertain) })),
        Event::EffectReconciled(Box::new(reconciled)),
        Event::CompactionStarted(compaction(false, false)),
        Event::CompactionCompleted(compaction(true, false)),
        Event::CompactionFailed(compaction(false, true)),
        Event::CheckpointSaved(checkpoint()),
        Event::CheckpointDeleted(checkpoint()),
    ]);
    events
}

/// The words in which a thread that works for a run says more than another.
fn of_a_run() -> Vec<Event> {
    let run_id = Some(RunId::new(uuid(10)));
    let thread = || Box::new(Thread { run_id, ..*thread() });
    let effect = |status| {
        let arguments_sha256 = Some("cd".repeat(32));
        Box::new(Effect { run_id, arguments_sha256, ..*effect(status) })
    };
    let (output_sha256, output_bytes) = (Some("ef".repeat(32)), Some(12));
    let settled = Effect { output_sha256, output_bytes, ..*effect(EffectStatus::Settled) };
    vec![
        Event::ThreadCreated(thread()),
        Event::ThreadUpdated(thread()),
        Event::EffectIntended(effect(EffectStatus::Intended)),
        Event::EffectStarted(effect(EffectStatus::Started)),
        Event::EffectSettled(Box::new(settled)),
        Event::EffectUncertain(effect(EffectStatus::Uncertain)),
        Event::EffectReconciled(effect(EffectStatus::Started)),
    ]
}

/// What is said of budgets.
fn of_budgets() -> Vec<Event> {
    let (tokens, dollars) = (Some(1_000), Usd::from_dollars(2.5));
    let budget = Some(Budget { tokens, usd: dollars, warn_percent: Some(90) });
    let spent = Some(Amount { tokens: 30, pico_usd: 105_000_000 });
    let turn_id = TurnId::new(uuid(2));
    let usage = UsageEntry {
        engine: "openai".into(),
        model: "m".into(),
        purpose: Purpose::Answer,
        usage: Usage { input_tokens: 5, output_tokens: 6, estimated_calls: 1, ..Usage::default() },
        cost: None,
    };
    let state = BudgetState {
        scope: Scope::Tenant,
        window: Some(Window::Month),
        unit: Unit::Usd,
        limit: 2_500_000,
        spent: 2_400_001,
        resets_at: Some(UnixMs(1_796_083_200_000)),
    };
    let of_turn = BudgetState {
        scope: Scope::Turn,
        window: None,
        unit: Unit::Tokens,
        limit: 1_000,
        spent: 1_001,
        resets_at: None,
    };
    let overrides = TurnOverrides { budget, ..admission().overrides };
    vec![
        Event::ThreadCreated(Box::new(Thread { budget, spent, ..*thread() })),
        Event::PromptAdmitted(Box::new(Admission { overrides, ..*admission() })),
        Event::TurnStarted(Box::new(Turn { budget, spent, ..*turn() })),
        Event::UsageRecorded(turn_id, Box::new(usage)),
        Event::BudgetReserved(turn_id, Reserved { input_tokens: 3, output_tokens: 256 }),
        Event::BudgetWarning(turn_id, Box::new(state)),
        Event::BudgetExceeded(turn_id, Box::new(of_turn)),
    ]
}

/// The place of a word among all words: a new one does not compile before it has a line of its own.
fn word(event: &Event) -> usize {
    match event {
        Event::ThreadCreated(_) => 0,
        Event::ThreadUpdated(_) => 1,
        Event::ThreadStatus(_) => 2,
        Event::ThreadArchived(_) => 3,
        Event::ThreadDeleted(_) => 4,
        Event::PromptAdmitted(_) => 5,
        Event::PromptPromoted(_) => 6,
        Event::TurnStarted(_) => 7,
        Event::TurnResumed(_) => 8,
        Event::TurnRetrying(_) => 9,
        Event::TurnInterruptRequested(_) => 10,
        Event::TurnCompleted(_) => 11,
        Event::ItemStarted(_) => 12,
        Event::ItemDelta(_) => 13,
        Event::ItemCompleted(_) => 14,
        Event::UsageRecorded(..) => 15,
        Event::ThreadForked(_) => 16,
        Event::PromptEdited(..) => 17,
        Event::PromptWithdrawn(_) => 18,
        Event::PromptNotDelivered(_) => 19,
        Event::TurnSteered(_) => 20,
        Event::TurnRolledBack(_) => 21,
        Event::ApprovalRequired(_) => 22,
        Event::ApprovalDecided(_) => 23,
        Event::ApprovalExpired(_) => 24,
        Event::ApprovalCancelled(_) => 25,
        Event::QuestionAsked(_) => 26,
        Event::QuestionAnswered(_) => 27,
        Event::QuestionExpired(_) => 28,
        Event::QuestionCancelled(_) => 29,
        Event::EffectIntended(_) => 30,
        Event::EffectStarted(_) => 31,
        Event::EffectSettled(_) => 32,
        Event::EffectUncertain(_) => 33,
        Event::EffectReconciled(_) => 34,
        Event::CompactionStarted(_) => 35,
        Event::CompactionCompleted(_) => 36,
        Event::CompactionFailed(_) => 37,
        Event::CheckpointSaved(_) => 38,
        Event::CheckpointDeleted(_) => 39,
        Event::BudgetReserved(..) => 40,
        Event::BudgetWarning(..) => 41,
        Event::BudgetExceeded(..) => 42,
    }
}

fn records(events: Vec<Event>) -> Vec<Record> {
    let record = |(seq, event)| Record { seq, ts: UnixMs(1_795_000_000_123), thread: ThreadId::new(uuid(1)), event };
    (1..).zip(events).map(record).collect()
}

fn read(golden: &str) -> Vec<Record> {
    golden.lines().map(|line| Record::decode(1, line.as_bytes()).unwrap()).collect()
}

#[test]
fn whatever_schema_1_stored_is_read_as_it_was_meant() {
    assert_eq!(read(FIRST), records(first()));
    assert_eq!(read(TODAY), records(today()));
    assert_eq!(read(OF_A_RUN), records(of_a_run()));
    assert_eq!(read(OF_BUDGETS), records(of_budgets()));
}

#[test]
fn today_writes_what_the_golden_file_says() {
    assert_eq!(SCHEMA, 1, "a new schema gets a golden file of its own");
    for (events, golden) in [(today(), TODAY), (of_a_run(), OF_A_RUN), (of_budgets(), OF_BUDGETS)] {
        let records = records(events);
        let written: Vec<String> = records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
        for (line, golden) in written.iter().zip(golden.lines()) {
            assert_eq!(line, golden);
        }
        assert_eq!(written.len(), golden.lines().count());
    }
}

#[test]
fn every_word_has_a_golden_line_and_a_name_that_costs_no_memory() {
    let newest = read(OF_BUDGETS).into_iter().skip(4);
    let all: Vec<Record> = read(TODAY).into_iter().chain(newest).collect();
    let places: Vec<usize> = all.iter().map(|record| word(&record.event)).collect();
    assert_eq!(places, (0..43).collect::<Vec<_>>());
    for record in all {
        assert!(matches!(event::name(record.event.name()), Cow::Borrowed(_)), "{}", record.event.name());
    }
}

#[test]
fn what_no_schema_wrote_is_refused_by_name() {
    let refusal = |schema, json: &str| Record::decode(schema, json.as_bytes()).unwrap_err().to_string();
    let first = FIRST.lines().next().unwrap();
    assert_eq!(refusal(2, first), "written by schema 2, this build reads up to 1");
    assert_eq!(refusal(1, &first.replace("thread.created", "thread.invented")), "unknown event `thread.invented`");
    assert!(refusal(1, &first[..40]).starts_with("not a record"));
    assert!(first.contains("\"seq\":1,"));
    assert!(refusal(1, &first.replace("\"seq\":1,", "\"seq\":0,")).ends_with("the seqs of a log begin with 1"));
    let delta = FIRST.lines().find(|line| line.contains("item.delta")).unwrap();
    assert_eq!(refusal(1, &delta.replace("\"item_id\"", "\"other_id\"")), "`item.delta` names no item");
}
