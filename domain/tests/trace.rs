//! Traces: what is read as it was written, what leads to the same again, and what is noticed that does not.
//!
//! The golden file is never edited: what any released version recorded is told again by today's rules, to the byte.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use raddle_domain::{
    command::{
        Answer, Command, Decide, EditPrompt, Interrupt, Limits, NewThread, Report, Request, Resolve, StartTurn, Steer,
        TextKind, ThreadPatch, ToolReport,
    },
    event::{Event, Record},
    history::ToolCall,
    id::{OperationId, TenantId, ThreadId},
    ports::{
        Answered, Boundless, FinishReason, Gate, Ids, Judgement, ModelError, ModelErrorKind, Planned, Requested,
        ToolEnd,
    },
    price::{Price, Prices, Row},
    record::{Decision, Delivery, EffectClass, ItemKind, ModelChoice, Resolution, Undelivered, Usage},
    thread::{Cx, ThreadState},
    time::UnixMs,
    trace::{BadTrace, Came, Canon, Deltas, Differs, Header, Line, Logged, Rerun, Told, VERSION, Why, derive},
};
use serde_json::json;
use uuid::Uuid;

const GOLDEN: &str = include_str!("golden/trace-1.jsonl");

/// Remembers what it minted.
#[derive(Default)]
struct Recorded {
    next: AtomicU64,
    minted: Mutex<Vec<Uuid>>,
}

impl Ids for Recorded {
    fn mint(&self) -> Uuid {
        let uuid =
            Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0000_0000_0000 + u128::from(self.next.fetch_add(1, Relaxed)));
        self.minted.lock().unwrap().push(uuid);
        uuid
    }
}

/// A thread that is recorded while it is told things.
struct Recording {
    header: Header,
    now: UnixMs,
    ids: Recorded,
    state: ThreadState,
    lines: Vec<Line>,
}

impl Recording {
    fn new() -> Self {
        let price = Price { version: "1".into(), input: 3_000_000, cached_input: None, output: 15_000_000 };
        let row = Row { engine: "e".into(), model: "*".into(), from: UnixMs(0), until: None, price };
        let now = UnixMs(1_795_000_000_000);
        let header = Header::new(now, Limits { approval_ms: 60_000, ..Limits::default() }, Prices::new(vec![row]));
        let thread = ThreadId::new(Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_ffff_0000_0000));
        let choice = ModelChoice { engine: "e".into(), model: "m".into() };
        let new = NewThread { title: Some("é".into()), ..NewThread::with(choice) };
        let ids = Recorded::default();
        let (state, step) = ThreadState::create(thread, new.clone(), cx(&header, now, &ids)).unwrap();
        let mut this = Self { header, now, ids, state, lines: Vec::new() };
        this.write(Told::Created(Box::new(new)), Came::Events(step.records.into_iter().map(Logged).collect()));
        this
    }

    fn write(&mut self, told: Told, came: Came) {
        let minted = std::mem::take(&mut *self.ids.minted.lock().unwrap());
        let (tenant, thread) = (TenantId::DEFAULT, self.state.view().id);
        self.lines.push(Line { tenant, thread, at: self.now, draining: false, minted, told, came });
    }

    fn tell(&mut self, command: Command) {
        self.now = UnixMs(self.now.0 + 7);
        let request = Request { command: command.clone(), if_match: None };
        let came = match self.state.step(request, cx(&self.header, self.now, &self.ids)) {
            Ok(step) => Came::Events(step.records.into_iter().map(Logged).collect()),
            Err(refused) => Came::Refused { why: refused.to_string(), quota: false },
        };
        self.write(Told::Command { command: Box::new(command), if_match: None }, came);
    }

    fn start(&mut self, prompt: &str, delivery: Delivery) {
        self.tell(Command::Start(StartTurn { prompt: prompt.into(), delivery, ..StartTurn::default() }));
    }

    fn report(&mut self, text: &[(TextKind, &str)], end: Option<Result<Answered, ModelError>>) {
        let (turn, call) = self.state.owed().call.expect("a call is due");
        let text = text.iter().map(|(kind, text)| (*kind, (*text).to_owned())).collect();
        self.tell(Command::Report(Report { turn, call, text, acts: Vec::new(), metered: None, end }));
    }

    fn log(&self) -> Vec<Record> {
        let events = self.lines.iter().filter_map(|line| match &line.came {
            Came::Events(events) => Some(events),
            Came::Refused { .. } => None,
        });
        events.flatten().map(|Logged(record)| record.clone()).collect()
    }

    fn text(&self) -> String {
        let lines = self.lines.iter().map(Line::to_string);
        std::iter::once(self.header.to_string()).chain(lines).map(|line| line + "\n").collect()
    }
}

fn cx<'a>(header: &'a Header, now: UnixMs, ids: &'a dyn Ids) -> Cx<'a> {
    Cx { now, ids, limits: &header.limits, prices: &header.prices, draining: false, room: &Boundless }
}

fn answered(tool_calls: Vec<Requested>) -> Answered {
    let reason = if tool_calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
    let usage = Usage { input_tokens: 20, output_tokens: 3, ..Usage::default() };
    Answered { reason, usage: Some(usage), tool_calls }
}

fn tool(call_id: &str, class: EffectClass, gate: Gate) -> Requested {
    let planned = Planned {
        kind: ItemKind::ToolCall,
        class,
        gate,
        arguments: json!({"n": 1}),
        arguments_sha256: "d1".repeat(32),
        command: None,
        cwd: None,
        words: None,
        hosts: Vec::new(),
        reason: "it writes".into(),
        asked_by: None,
        amendment: None,
        permitted_by: None,
    };
    let call = ToolCall { call_id: call_id.into(), name: "t".into(), arguments: "{\"n\": 1}".into() };
    Requested { call, judgement: Judgement::Run(Box::new(planned)) }
}

/// A day in the life of a thread: every sort of thing that one can be told.
fn recording() -> Recording {
    let mut thread = Recording::new();
    thread.start("one", Delivery::Reject);
    thread.start("two", Delivery::Reject);
    thread.start("two", Delivery::Queue);
    thread.start("three", Delivery::Queue);
    let three = thread.state.inbox().nth(1).unwrap().id;
    thread.tell(Command::EditPrompt(EditPrompt { input: three, prompt: Some("3".into()), position: Some(0) }));
    thread.report(&[(TextKind::Reasoning, "hm")], None);
    thread.report(&[(TextKind::Answer, "I ")], None);
    let turn = thread.state.open().unwrap().turn().id;
    let undelivered = Undelivered::Report;
    thread.tell(Command::Steer(Steer { turn, prompt: "be brief".into(), undelivered }));
    let question = Judgement::Question { question: "which?".into(), options: vec!["this".into()] };
    let ask = ToolCall { call_id: "c2".into(), name: "ask".into(), arguments: "{}".into() };
    let calls = vec![
        tool("c1", EffectClass::Once, Gate::Ask),
        Requested { call: ask, judgement: question },
        tool("c3", EffectClass::Read, Gate::Open),
    ];
    thread.report(&[(TextKind::Answer, "try")], Some(Ok(answered(calls))));
    let approval = thread.state.open().unwrap().approvals().next().unwrap().id;
    thread.tell(Command::Decide(Decide { approval, decision: Decision::Approved, reason: None }));
    let asked = thread.log().iter().find_map(|record| match &record.event {
        Event::QuestionAsked(question) => Some(question.id),
        _ => None,
    });
    thread.tell(Command::Answer(Answer { question: asked.unwrap(), answer: "this".into() }));
    thread.tell(Command::Begin);
    // The process is lost while something runs that may not run twice.
    thread.tell(Command::Recover { restarted: true });
    let operation = |thread: &Recording| -> OperationId {
        let effects = thread.log().into_iter().rev().find_map(|record| match record.event {
            Event::EffectUncertain(effect) | Event::EffectStarted(effect) => Some(effect.operation_id),
            _ => None,
        });
        effects.unwrap()
    };
    let resolve = Resolve { operation: operation(&thread), resolution: Resolution::Retry, output: None };
    thread.tell(Command::Resolve(resolve));
    let (once, end) = (operation(&thread), Some(ToolEnd::Done("done".into())));
    thread.tell(Command::ToolReport(ToolReport { operation: once, attempt: 2, said: "half".into(), end: None }));
    thread.tell(Command::ToolReport(ToolReport { operation: once, attempt: 2, said: String::new(), end }));
    thread.tell(Command::Begin);
    let read = operation(&thread);
    let end = Some(ToolEnd::Failed("no".into()));
    thread.tell(Command::ToolReport(ToolReport { operation: read, attempt: 1, said: String::new(), end }));
    let busy = ModelError { kind: ModelErrorKind::Unavailable, message: "busy".into(), retry_after: None };
    thread.report(&[(TextKind::Answer, "We")], Some(Err(busy)));
    thread.now = UnixMs(thread.now.0 + 1_000);
    thread.tell(Command::Tick);
    thread.report(&[(TextKind::Answer, "Well")], Some(Ok(answered(Vec::new()))));
    thread.report(&[], Some(Ok(answered(vec![tool("c4", EffectClass::Once, Gate::Person)]))));
    thread.now = UnixMs(thread.now.0 + 60_000);
    thread.tell(Command::Tick);
    let turn = thread.state.open().unwrap().turn().id;
    thread.tell(Command::Interrupt(Interrupt { turn, pause_queue: false }));
    thread.report(&[(TextKind::Answer, "4")], Some(Ok(answered(Vec::new()))));
    thread.tell(Command::SaveCheckpoint("c".into()));
    thread.tell(Command::Patch(ThreadPatch { title: Some(None), auto_approve: Some(true), ..ThreadPatch::default() }));
    thread
}

fn parse(text: &str) -> (Header, Vec<Line>) {
    let mut lines = text.lines().enumerate();
    let header = Header::read(lines.next().unwrap().1).unwrap();
    (header, lines.map(|(at, text)| Line::read(at + 1, text).unwrap()).collect())
}

fn rerun(header: &Header, lines: &[Line]) -> Result<Rerun, Differs> {
    let mut rerun = Rerun::default();
    lines.iter().try_for_each(|line| rerun.tell(header, line))?;
    Ok(rerun)
}

#[test]
fn what_is_recorded_is_written_as_ever() {
    let thread = recording();
    // In which order an object's keys stand is up to the build: another crate of it may ask for their order to be kept.
    let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    for (ours, golden) in thread.text().lines().zip(GOLDEN.lines()) {
        assert_eq!(value(ours), value(golden));
    }
    assert_eq!(thread.text().lines().count(), GOLDEN.lines().count());
}

#[test]
fn a_trace_of_any_version_leads_to_the_same_events() {
    let (header, lines) = parse(GOLDEN);
    let again = rerun(&header, &lines).unwrap();
    let thread = recording();
    assert_eq!((again.log(), again.state()), (&*thread.log(), Some(&thread.state)));
    assert!(lines.iter().any(|line| matches!(line.came, Came::Refused { .. })), "a refusal is refused again");
}

#[test]
fn what_a_stored_thread_was_told_is_derived_of_its_log() {
    let thread = recording();
    let derived = derive(&thread.header, TenantId::DEFAULT, &thread.log()).unwrap();
    assert_eq!(derived.given, 0);
    let again = rerun(&thread.header, &derived.lines).unwrap();
    assert_eq!(again.log(), thread.log());
    let canon = |log: &[Record]| Canon::of(log, Deltas::Joined).digest();
    assert_eq!(canon(again.log()), canon(&thread.log()));
}

#[test]
fn what_no_command_explains_is_given_with_what_came_before_it() {
    let thread = recording();
    let mut log = thread.log();
    let second = log.iter().position(|record| record.event.name() == "prompt.admitted").unwrap();
    let Event::PromptAdmitted(admission) = &mut log[second].event else { unreachable!() };
    // No thread would have let it in.
    admission.prompt = " ".into();
    let derived = derive(&thread.header, TenantId::DEFAULT, &log).unwrap();
    assert_eq!(derived.lines[0].told, Told::Given);
    assert!(derived.given > second as u64 && derived.given < log.len() as u64, "{}", derived.given);
    assert_eq!(rerun(&thread.header, &derived.lines).unwrap().log(), log);
}

#[test]
fn what_was_tampered_with_differs_and_the_line_is_named() {
    let (header, lines) = parse(GOLDEN);
    let told = |name: &str| {
        let is = |line: &Line| match &line.told {
            Told::Command { command, .. } => serde_json::to_value(command).unwrap().get(name).is_some(),
            _ => false,
        };
        lines.iter().position(is).unwrap()
    };
    // Another prompt than was recorded.
    let mut other = lines.clone();
    let Told::Command { command, .. } = &mut other[told("start")].told else { unreachable!() };
    let Command::Start(start) = &mut **command else { unreachable!() };
    start.prompt = "uno".into();
    let Differs { line, why } = rerun(&header, &other).unwrap_err();
    assert_eq!(line, 2);
    assert!(matches!(why, Why::Event { at: 1, .. }), "{why}");
    // A decision was left out.
    let mut fewer = lines.clone();
    fewer.remove(told("decide"));
    assert!(matches!(rerun(&header, &fewer).unwrap_err().why, Why::Event { .. } | Why::Refused { .. }));
    // What was refused is said to have been accepted, and the other way round.
    let mut refused = lines.clone();
    let Came::Refused { why, .. } = &mut refused[2].came else { unreachable!() };
    *why = "another reason".into();
    assert!(matches!(rerun(&header, &refused).unwrap_err().why, Why::OtherRefusal { .. }));
    refused[2].came = Came::Events(Vec::new());
    assert!(matches!(rerun(&header, &refused).unwrap_err().why, Why::Refused { .. }));
    let mut accepted = lines.clone();
    accepted[1].came = Came::Refused { why: "no".into(), quota: false };
    assert!(matches!(rerun(&header, &accepted).unwrap_err().why, Why::Accepted { .. }));
    // It begins twice, or not at all.
    assert!(matches!(rerun(&header, &lines[1..]).unwrap_err().why, Why::Misplaced(_)));
    assert!(matches!(rerun(&header, &[&lines[..1], &lines[..1]].concat()).unwrap_err().why, Why::Misplaced(_)));
}

#[test]
fn what_was_refused_for_a_quota_is_left_out_and_counted() {
    let (header, mut lines) = parse(GOLDEN);
    let whole = rerun(&header, &lines).unwrap();
    // Told again it would be taken: what the tenant had elsewhere is in no trace.
    let queue = lines.iter().find(|line| line.to_string().contains("\"delivery\":\"queue\"")).unwrap().clone();
    let refused = Came::Refused { why: "the quota is used up".into(), quota: true };
    let at = lines.iter().position(|line| *line == queue).unwrap();
    lines.insert(at, Line { came: refused, ..queue });
    let again = rerun(&header, &lines).unwrap();
    assert_eq!((again.log(), again.skipped(), whole.skipped()), (whole.log(), 1, 0));
}

#[test]
fn other_limits_are_another_world() {
    let (mut header, lines) = parse(GOLDEN);
    header.limits.approval_ms = 1;
    assert!(matches!(rerun(&header, &lines).unwrap_err().why, Why::Event { .. }));
}

#[test]
fn what_is_no_trace_is_refused_by_name() {
    let (header, _) = parse(GOLDEN);
    let none = serde_json::to_string(&Header { raddle_trace: 0, ..header.clone() }).unwrap();
    assert!(matches!(Header::read(&none).unwrap_err(), BadTrace::Header(_)));
    let newer = serde_json::to_string(&Header { raddle_trace: VERSION + 1, ..header }).unwrap();
    assert_eq!(Header::read(&newer).unwrap_err(), BadTrace::Newer(VERSION + 1));
    assert!(matches!(Header::read("{}").unwrap_err(), BadTrace::Header(_)));
    assert!(matches!(Line::read(7, "{\"thread\": 1}").unwrap_err(), BadTrace::Line { line: 7, .. }));
}

/// The rule is broken on purpose: the newest prompt that waits is next.
#[cfg(feature = "planted")]
#[test]
fn a_broken_rule_is_caught_by_replay() {
    use raddle_domain::planted::{Fault, plant};
    let (header, lines) = parse(GOLDEN);
    plant(Some(Fault::NewestFirst));
    let differs = rerun(&header, &lines);
    plant(None);
    let Differs { why, .. } = differs.unwrap_err();
    let Why::Event { expected, found, .. } = &why else { panic!("{why}") };
    let promoted = |json: &Option<String>| json.as_ref().is_some_and(|json| json.contains("prompt.promoted"));
    assert!(promoted(expected) && promoted(found), "{why}");
    assert!(rerun(&header, &lines).is_ok());
}
