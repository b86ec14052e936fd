use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    command::{Command, Interrupt, NewThread, Refused, Reply, Report, Request, StartTurn, TextKind, ThreadPatch},
    event::{Event, Record, SCHEMA},
    history::{Message, ToolCall},
    ports::{Answered, FinishReason, Judgement, ModelError, ModelErrorKind, Requested},
    record::{Delivery, ItemKind, ModelChoice, OnRestart, ThreadStatus, TurnStatus, Usage},
};

struct Counter(AtomicU64);

impl Ids for Counter {
    fn mint(&self) -> Uuid {
        Uuid::from_u128(self.0.fetch_add(1, Ordering::Relaxed).into())
    }
}

/// A thread with a clock that the test moves, its whole log, and what would be on disk.
struct Bench {
    state: ThreadState,
    log: Vec<Record>,
    rest: Rest,
    now: UnixMs,
    ids: Counter,
    limits: Limits,
    settled: Vec<Settled>,
}

static NO_PRICES: std::sync::LazyLock<Prices> = std::sync::LazyLock::new(Prices::default);

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default(), OnRestart::Resume)
    }

    fn with(limits: Limits, on_restart: OnRestart) -> Self {
        let ids = Counter(AtomicU64::new(1));
        let cx = Cx { now: UnixMs(1_000), ids: &ids, limits: &limits, prices: &NO_PRICES };
        let choice = ModelChoice { engine: "scripted".into(), model: "scripted".into() };
        let new = NewThread { on_restart, ..NewThread::with(choice) };
        let (state, step) = ThreadState::create(ThreadId::new(ids.mint()), new, cx).unwrap();
        Self {
            state,
            log: step.records,
            rest: step.rest.unwrap(),
            now: UnixMs(1_000),
            ids,
            limits,
            settled: Vec::new(),
        }
    }

    fn request(&mut self, request: Request) -> Result<Step, Refused> {
        let before = self.state.clone();
        let cx = Cx { now: self.now, ids: &self.ids, limits: &self.limits, prices: &NO_PRICES };
        let step =
            self.state.step(request, cx).inspect_err(|_| assert_eq!(before, self.state, "refused, yet changed"))?;
        self.log.extend(step.records.iter().cloned());
        self.settled.extend(step.settled.iter().cloned());
        if let Some(rest) = &step.rest {
            self.rest = rest.clone();
        }
        Ok(step)
    }

    fn ask(&mut self, command: Command) -> Result<Step, Refused> {
        self.request(command.into())
    }

    fn start(&mut self, prompt: &str) -> Result<Step, Refused> {
        self.ask(Command::Start(StartTurn { prompt: prompt.into(), ..StartTurn::default() }))
    }

    fn queue(&mut self, prompt: &str) -> Result<Step, Refused> {
        self.ask(Command::Start(StartTurn { prompt: prompt.into(), delivery: Delivery::Queue, ..StartTurn::default() }))
    }

    fn report(&mut self, text: &[(TextKind, &str)], end: Option<Result<Answered, ModelError>>) -> Step {
        let (turn, call) = self.state.owed().call.expect("a call is due");
        let text = text.iter().map(|(kind, text)| (*kind, (*text).to_owned())).collect();
        self.ask(Command::Report(Report { turn, call, text, end })).unwrap()
    }

    fn finish(&mut self) -> Step {
        self.report(&[(TextKind::Answer, "done")], Some(Ok(answer(&[]))))
    }

    fn turn(&self) -> TurnId {
        self.state.open().unwrap().turn().id
    }

    fn names(&self) -> Vec<&'static str> {
        self.log.iter().map(|record| record.event.name()).collect()
    }

    fn outcomes(&self) -> Vec<(String, TurnStatus)> {
        let ended = |record: &Record| match &record.event {
            Event::TurnCompleted(turn) => Some((turn.input_summary.clone(), turn.status)),
            _ => None,
        };
        self.log.iter().filter_map(ended).collect()
    }

    fn replayed(&self) -> ThreadState {
        let mut state = ThreadState::begin(&self.log[0]).unwrap();
        self.log[1..].iter().for_each(|record| state.apply(record).unwrap());
        state
    }

    /// What a load from disk makes of the row and the tail.
    fn reloaded(&self) -> ThreadState {
        let json = serde_json::to_vec(&self.rest.snapshot).unwrap();
        let snapshot: Snapshot = serde_json::from_slice(&json).unwrap();
        let at = |seq: Seq| self.log[seq as usize - 1].clone();
        let needed: Vec<Record> = snapshot.needs().map(at).collect();
        let settled = |started| self.settled.iter().find(|settled| settled.started_seq == started).unwrap();
        let turns: Vec<Turn> = snapshot.needs_turns().map(|started| settled(started).turn.clone()).collect();
        let mut state = ThreadState::restore(snapshot, &needed, &turns).unwrap();
        self.log[self.rest.seq as usize..].iter().for_each(|record| state.apply(record).unwrap());
        state
    }
}

fn interrupt(turn: TurnId) -> Command {
    Command::Interrupt(Interrupt { turn, pause_queue: false })
}

fn unknown(call: ToolCall) -> Requested {
    Requested { call, judgement: Judgement::Unknown }
}

fn answer(tools: &[&str]) -> Answered {
    let tool_calls: Vec<ToolCall> = tools
        .iter()
        .map(|name| ToolCall { call_id: format!("c-{name}"), name: (*name).into(), arguments: "{}".into() })
        .collect();
    let reason = if tools.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
    let usage = Some(Usage { input_tokens: 2, output_tokens: 3, ..Usage::default() });
    let tool_calls = tool_calls.into_iter().map(unknown).collect();
    Answered { reason, usage, tool_calls }
}

fn failure(kind: ModelErrorKind) -> ModelError {
    ModelError { kind, message: "no".into(), retry_after: None }
}

#[test]
fn a_turn_tells_its_whole_story_in_order() {
    let mut bench = Bench::new();
    bench.start("hi").unwrap();
    bench.report(&[(TextKind::Reasoning, "hm"), (TextKind::Answer, "hel")], None);
    bench.report(&[(TextKind::Answer, "lo")], Some(Ok(answer(&[]))));
    let story = [
        "thread.created",
        "turn.started",
        "item.started",
        "item.completed",
        "thread.status",
        "item.started",
        "item.delta",
        "item.completed",
        "item.started",
        "item.delta",
        "item.delta",
        "item.completed",
        "usage.recorded",
        "turn.completed",
        "thread.status",
    ];
    assert_eq!(bench.names(), story);
    let Event::ItemCompleted(item) = &bench.log[11].event else { panic!("{:?}", bench.log[11]) };
    assert_eq!((item.kind, item.detail.as_str()), (ItemKind::AgentMessage, "hello"));
    assert_eq!(bench.state.view().status, ThreadStatus::Idle);
    assert_eq!(bench.state.owed(), Owed::default());
}

#[test]
fn a_refused_start_leaves_no_trace_and_never_runs() {
    let mut bench = Bench::new();
    bench.start("first").unwrap();
    let turn = bench.turn();
    assert_eq!(bench.start("refused").unwrap_err(), Refused::TurnOpen { turn });
    assert_eq!(bench.state.inbox().count(), 0);
    bench.finish();
    assert_eq!(bench.outcomes(), [("first".to_owned(), TurnStatus::Completed)]);
    assert!(!serde_json::to_string(&bench.log).unwrap().contains("refused"));
}

#[test]
fn queued_prompts_run_in_order_each_as_its_own_turn() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    for prompt in ["q1", "q2", "q3"] {
        let step = bench.queue(prompt).unwrap();
        assert!(matches!(step.reply, Reply::Queued { active_turn, .. } if active_turn == bench.turn()));
    }
    for _ in 0..4 {
        bench.finish();
    }
    let order: Vec<String> = bench.outcomes().into_iter().map(|(prompt, _)| prompt).collect();
    assert_eq!(order, ["p", "q1", "q2", "q3"]);
    assert_eq!(bench.state.view().queued, 0);
}

#[test]
fn a_full_inbox_refuses_and_keeps_what_it_has() {
    let mut bench = Bench::with(Limits { inbox_per_thread: 1, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.queue("q1").unwrap();
    assert_eq!(bench.queue("q2").unwrap_err(), Refused::InboxFull { limit: 1 });
    assert_eq!(bench.state.inbox().count(), 1);
}

#[test]
fn an_interrupt_ends_everything_of_the_turn_and_the_queue_goes_on() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let turn = bench.turn();
    let engine = bench.state.owed().call.unwrap();
    bench.report(&[(TextKind::Answer, "part")], None);
    bench.queue("q1").unwrap();
    let step = bench.ask(interrupt(turn)).unwrap();
    let Reply::Interrupted(receipt) = step.reply else { panic!() };
    assert_eq!(receipt.turn.status, TurnStatus::Interrupted);
    assert_eq!(bench.log[receipt.ended_seq as usize - 1].event.name(), "turn.completed");
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q1");
    let late = Report { turn: engine.0, call: engine.1, text: vec![(TextKind::Answer, "late".into())], end: None };
    assert!(bench.ask(Command::Report(late)).unwrap().records.is_empty());
}

#[test]
fn an_interrupt_that_names_another_turn_has_no_effect() {
    let mut bench = Bench::new();
    let nowhere = TurnId::new(Uuid::max());
    assert_eq!(bench.ask(interrupt(nowhere)).unwrap_err(), Refused::TurnNotActive { turn: nowhere, active: None });
    bench.start("p").unwrap();
    bench.queue("q1").unwrap();
    let active = Some(bench.turn());
    assert_eq!(bench.ask(interrupt(nowhere)).unwrap_err(), Refused::TurnNotActive { turn: nowhere, active });
    bench.finish();
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q1");
}

#[test]
fn a_transient_failure_waits_and_asks_again_until_the_attempts_are_used_up() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    for pause in [500, 1_000, 2_000] {
        bench.report(&[(TextKind::Answer, "par")], Some(Err(failure(ModelErrorKind::Unavailable))));
        let due = bench.now.after(std::time::Duration::from_millis(pause));
        assert_eq!(bench.state.owed(), Owed { wake_at: Some(due), ..Owed::default() });
        bench.now = UnixMs(due.0 - 1);
        assert!(bench.ask(Command::Tick).unwrap().records.is_empty());
        bench.now = due;
        bench.ask(Command::Tick).unwrap();
        assert_eq!(bench.state.owed().wake_at, None);
    }
    bench.report(&[], Some(Err(failure(ModelErrorKind::Unavailable))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "model-unavailable");
}

#[test]
fn a_provider_that_names_its_pause_is_obeyed_up_to_the_cap() {
    let asked = |seconds| ModelError {
        retry_after: Some(std::time::Duration::from_secs(seconds)),
        ..failure(ModelErrorKind::RateLimited)
    };
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[], Some(Err(asked(7))));
    assert_eq!(bench.state.owed().wake_at, Some(UnixMs(8_000)));
    bench.now = UnixMs(8_000);
    bench.ask(Command::Tick).unwrap();
    bench.report(&[], Some(Err(asked(3_600))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
}

#[test]
fn a_refusal_of_the_model_fails_the_turn_at_once() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::Rejected))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
}

#[test]
fn an_unknown_tool_is_told_to_the_model_which_goes_on() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "looking")], Some(Ok(answer(&["ls", "cat"]))));
    let items: Vec<_> = bench.state.open().unwrap().items().cloned().collect();
    assert_eq!(items[2].detail, "unknown tool: ls");
    assert_eq!(items[3].metadata["call_id"], "c-cat");
    let mut history = crate::history::History::new(None);
    items.iter().for_each(|item| history.push(item));
    assert!(matches!(history.finish().last(), Some(Message::Tool { call_id, .. }) if call_id == "c-cat"));
    bench.finish();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Completed)]);
}

#[test]
fn a_turn_that_only_calls_tools_ends_at_its_limit() {
    let mut bench = Bench::with(Limits { model_calls_per_turn: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.report(&[], Some(Ok(answer(&["ls"]))));
    bench.report(&[], Some(Ok(answer(&["ls"]))));
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "step-limit");
    assert_eq!(turn.usage.input_tokens, 4);
}

#[test]
fn a_turn_ends_at_its_deadline() {
    let mut bench = Bench::with(Limits { turn_ms: 5_000, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "so far")], None);
    bench.now = bench.state.deadline(&bench.limits).unwrap();
    bench.ask(Command::Tick).unwrap();
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "deadline-exceeded");
}

#[test]
fn after_a_crash_the_cut_off_answer_is_asked_for_again() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let lost = bench.state.owed().call.unwrap();
    bench.report(&[(TextKind::Answer, "hel")], None);
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_ne!(bench.state.owed().call.unwrap(), lost);
    let partial = bench.state.open().unwrap().items().last().unwrap();
    assert_eq!((partial.status, partial.detail.as_str()), (TurnStatus::Interrupted, "hel"));
    bench.report(&[(TextKind::Answer, "hello")], Some(Ok(answer(&[]))));
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!((turn.status, turn.resume_count), (TurnStatus::Completed, 1));
}

#[test]
fn after_a_restart_an_interrupting_thread_closes_its_turn_and_runs_its_queue() {
    let mut bench = Bench::with(Limits::default(), OnRestart::Interrupt);
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.report(&[(TextKind::Answer, "hel")], None);
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Interrupted)]);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
}

#[test]
fn a_turn_that_is_lost_again_and_again_without_progress_fails() {
    let mut bench = Bench::with(Limits { resumes_without_progress: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    for _ in 0..2 {
        bench.ask(Command::Recover { restarted: true }).unwrap();
    }
    bench.report(&[], Some(Ok(answer(&["ls"]))));
    for _ in 0..2 {
        bench.ask(Command::Recover { restarted: true }).unwrap();
    }
    assert!(bench.outcomes().is_empty());
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
}

#[test]
fn a_turn_that_waits_for_its_retry_is_not_disturbed_by_a_restart() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::RateLimited))));
    let owed = bench.state.owed();
    assert!(bench.ask(Command::Recover { restarted: true }).unwrap().records.is_empty());
    assert_eq!(bench.state.owed(), owed);
}

#[test]
fn a_stale_precondition_refuses_whatever_is_asked() {
    let mut bench = Bench::new();
    let start = Command::Start(StartTurn { prompt: "p".into(), ..StartTurn::default() });
    let refused = bench.request(Request { command: start.clone(), if_match: Some(7) }).unwrap_err();
    assert_eq!(refused, Refused::Precondition { expected: 7, head: 1 });
    bench.request(Request { command: start, if_match: Some(1) }).unwrap();
}

#[test]
fn an_archived_thread_starts_nothing_until_it_is_unarchived() {
    let mut bench = Bench::new();
    let archive = |archived| Command::Patch(ThreadPatch { archived: Some(archived), ..ThreadPatch::default() });
    bench.ask(archive(true)).unwrap();
    assert_eq!(bench.log.last().unwrap().event.name(), "thread.archived");
    assert_eq!(bench.state.view().status, ThreadStatus::Archived);
    assert_eq!(bench.start("p").unwrap_err(), Refused::ThreadArchived);
    bench.ask(archive(false)).unwrap();
    bench.start("p").unwrap();
    assert_eq!(bench.ask(archive(true)).unwrap_err(), Refused::TurnOpen { turn: bench.turn() });
}

#[test]
fn a_patch_that_changes_nothing_writes_nothing() {
    let mut bench = Bench::new();
    let title = |title: &str| Command::Patch(ThreadPatch { title: Some(Some(title.into())), ..ThreadPatch::default() });
    assert_eq!(bench.ask(title("a")).unwrap().records.len(), 1);
    assert_eq!(bench.ask(title("a")).unwrap().records.len(), 0);
    assert!(matches!(bench.ask(Command::Patch(ThreadPatch::default())), Err(Refused::Invalid { .. })));
    assert!(matches!(bench.ask(title(&"x".repeat(5_000))), Err(Refused::TooLarge { field: "title", .. })));
}

#[test]
fn an_answer_beyond_the_item_limit_fails_the_turn_and_keeps_what_fits() {
    let mut bench = Bench::with(Limits { item_bytes: 8, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "12345")], None);
    bench.report(&[(TextKind::Answer, "6789")], None);
    let Event::TurnCompleted(turn) = &bench.log[bench.log.len() - 2].event else { panic!() };
    assert_eq!(turn.error.as_ref().unwrap().code, "output-too-large");
}

#[test]
fn what_nests_too_deep_to_be_read_back_is_refused_or_kept_as_text() {
    let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let metadata = |depth| Some(serde_json::from_str(&nested(depth)).unwrap());
    let mut bench = Bench::new();
    let patch = |depth| Command::Patch(ThreadPatch { metadata: metadata(depth), ..ThreadPatch::default() });
    assert!(matches!(bench.ask(patch(66)), Err(Refused::Invalid { field: "metadata", .. })));
    bench.ask(patch(65)).unwrap();
    bench.start("p").unwrap();
    let call = |depth| ToolCall { call_id: "c".into(), name: "t".into(), arguments: nested(depth) };
    let end = Answered { tool_calls: [call(64), call(65), call(126)].map(unknown).to_vec(), ..answer(&["t"]) };
    bench.report(&[], Some(Ok(end)));
    let kinds: Vec<bool> =
        bench.state.open().unwrap().items().skip(1).map(|item| item.metadata["arguments"].is_object()).collect();
    assert_eq!(kinds, [true, false, false]);
    check_log(&bench.log);
    assert_eq!(bench.reloaded(), bench.state);
}

// ---- any command sequence ------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Op {
    Start(bool),
    Interrupt(bool),
    Patch(Option<bool>),
    Text(bool, &'static str),
    Answer(usize),
    Fail(ModelErrorKind),
    Stale,
    Pass(u64),
    Recover(bool),
}

fn op() -> impl Strategy<Value = Op> {
    use ModelErrorKind::*;
    let kinds = prop::sample::select(vec![Unavailable, CutOff, RateLimited, Rejected, Malformed]);
    prop_oneof![
        3 => any::<bool>().prop_map(Op::Start),
        1 => any::<bool>().prop_map(Op::Interrupt),
        1 => any::<Option<bool>>().prop_map(Op::Patch),
        4 => (any::<bool>(), prop::sample::select(vec!["a", "bé", ""])).prop_map(|(kind, text)| Op::Text(kind, text)),
        3 => (0usize..3).prop_map(Op::Answer),
        2 => kinds.prop_map(Op::Fail),
        1 => Just(Op::Stale),
        2 => (0u64..4_000).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Recover),
    ]
}

impl Bench {
    fn play(&mut self, op: Op) {
        let due = self.state.owed().call;
        let end = |bench: &mut Self, end| {
            if let Some((turn, call)) = due {
                bench.ask(Command::Report(Report { turn, call, text: Vec::new(), end: Some(end) })).unwrap();
            }
        };
        match op {
            Op::Start(queue) => {
                let _ = if queue { self.queue("prompt") } else { self.start("prompt") };
            }
            Op::Interrupt(active) => {
                let turn = self.state.open().filter(|_| active).map_or(TurnId::new(Uuid::max()), |open| open.turn().id);
                let _ = self.ask(interrupt(turn));
            }
            Op::Patch(archived) => {
                let title = Some(Some(format!("t{}", self.log.len())));
                let _ = self.ask(Command::Patch(ThreadPatch { title, archived, ..ThreadPatch::default() }));
            }
            Op::Text(reasoning, text) => {
                let kind = if reasoning { TextKind::Reasoning } else { TextKind::Answer };
                if due.is_some() {
                    self.report(&[(kind, text)], None);
                }
            }
            Op::Answer(tools) => end(self, Ok(answer(&["ls", "cat"][..tools]))),
            Op::Fail(kind) => end(self, Err(failure(kind))),
            Op::Stale => {
                let (turn, call) = due.unwrap_or((TurnId::new(Uuid::max()), 1));
                let stale = Report { turn, call: call + 7, text: vec![(TextKind::Answer, "x".into())], end: None };
                assert!(self.ask(Command::Report(stale)).unwrap().records.is_empty());
            }
            Op::Pass(ms) => {
                self.now = UnixMs(self.now.0 + ms);
                self.ask(Command::Tick).unwrap();
            }
            Op::Recover(restarted) => {
                self.ask(Command::Recover { restarted }).unwrap();
            }
        }
    }
}

/// What must hold of any log, whatever led to it.
fn check_log(log: &[Record]) {
    let ended = RefCell::new(BTreeSet::new());
    let mut open_turn = None;
    let mut items: BTreeMap<_, (String, bool)> = BTreeMap::new();
    let (mut admitted, mut promoted) = (Vec::new(), Vec::new());
    for (index, record) in log.iter().enumerate() {
        assert_eq!(record.seq, index as Seq + 1);
        if let Some(turn) = record.event.turn_id() {
            assert!(!ended.borrow().contains(&turn), "{} follows its turn's end", record.event.name());
        }
        match &record.event {
            Event::TurnStarted(turn) => assert_eq!(open_turn.replace(turn.id), None, "two turns open"),
            Event::TurnCompleted(turn) => {
                assert_eq!(open_turn.take(), Some(turn.id));
                assert!(turn.status.is_terminal());
                assert!(turn.item_ids.iter().all(|id| items[id].1), "an item of an ended turn is open");
                ended.borrow_mut().insert(turn.id);
            }
            Event::ItemStarted(item) => assert!(items.insert(item.id, (String::new(), false)).is_none()),
            Event::ItemDelta(delta) => items.get_mut(&delta.item).unwrap().0.push_str(&delta.delta),
            Event::ItemCompleted(item) => {
                let (text, done) = items.get_mut(&item.id).unwrap();
                assert!(!*done && item.status.is_terminal());
                if matches!(item.kind, ItemKind::AgentMessage | ItemKind::Reasoning) {
                    assert_eq!(*text, item.detail, "deltas do not add up to the item");
                }
                *done = true;
            }
            Event::PromptAdmitted(admission) => admitted.push(admission.id),
            Event::PromptPromoted(admission) => promoted.push(admission.id),
            _ => {}
        }
        let json = serde_json::to_vec(record).unwrap();
        assert_eq!(Record::decode(SCHEMA, &json).as_ref(), Ok(record));
    }
    assert!(admitted.starts_with(&promoted), "promoted out of order");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_keeps_the_invariants_and_replays_to_the_same_state(
        ops in prop::collection::vec(op(), 1..60), interrupts in any::<bool>(),
    ) {
        let on_restart = if interrupts { OnRestart::Interrupt } else { OnRestart::Resume };
        let limits = Limits { inbox_per_thread: 3, turn_ms: 20_000, model_calls_per_turn: 4, ..Limits::default() };
        let mut bench = Bench::with(limits, on_restart);
        for op in ops {
            bench.play(op);
            prop_assert_eq!(&bench.reloaded(), &bench.state);
        }
        prop_assert_eq!(&bench.replayed(), &bench.state);
        prop_assert_eq!(bench.state.open().is_none() && bench.state.inbox().count() > 0, false, "a prompt waits for nothing");
        check_log(&bench.log);
    }
}
