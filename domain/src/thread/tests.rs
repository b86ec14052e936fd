//! Rules, one fact at a time; and what holds of any sequence of commands.

mod agent;
mod budget;
mod compaction;
mod forks;
mod inbox;
mod ledger;
mod settings;
mod tools;
mod turns;
mod verbs;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    budget::{BudgetState, Scope, Window},
    command::{
        Answer, Command, Compact, Decide, EditPrompt, IfIdle, Interrupt, Metered, NewThread, Refused, Reply, Report,
        Request, Resolve, StartTurn, Steer, TextKind, ThreadPatch, ToolReport,
    },
    event::{Event, Record, SCHEMA},
    history::{History, Message, ToolCall},
    id::TenantId,
    ports::{
        Act, ActStep, Answered, FinishReason, Gate, Judgement, ModelError, ModelErrorKind, Planned, Requested, ToolEnd,
    },
    record::{
        DecidedBy, Decision, Delivery, InterruptReceipt, ItemKind, ModelChoice, OnRestart, QuestionStatus, Resolution,
        ThreadStatus, TurnKind, TurnOverrides, TurnStatus, Undelivered, Usage,
    },
    tenant::Budget,
    trace::{self, Header, Rerun},
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
    first_limits: Limits,
    /// Whether all was asked under the first limits.
    steady: bool,
    prices: Prices,
    draining: bool,
    settled: Vec<Settled>,
}

/// Whatever a test made of a thread, what it was told can be derived of its log.
impl Drop for Bench {
    fn drop(&mut self) {
        // A trace has one set of limits.
        if !std::thread::panicking() && self.steady {
            self.check_derived();
        }
    }
}

static NO_PRICES: std::sync::LazyLock<Prices> = std::sync::LazyLock::new(Prices::default);

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default(), OnRestart::Resume)
    }

    fn with(limits: Limits, on_restart: OnRestart) -> Self {
        let ids = Counter(AtomicU64::new(1));
        let cx = Cx {
            now: UnixMs(1_000),
            ids: &ids,
            limits: &limits,
            prices: &NO_PRICES,
            draining: false,
            room: &crate::ports::Boundless,
        };
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
            first_limits: limits,
            steady: true,
            prices: Prices::default(),
            draining: false,
            settled: Vec::new(),
        }
    }

    fn request(&mut self, request: Request) -> Result<Step, Refused> {
        let before = self.state.clone();
        self.steady &= self.limits == self.first_limits;
        let Self { now, draining, .. } = *self;
        let cx = Cx {
            now,
            ids: &self.ids,
            limits: &self.limits,
            prices: &self.prices,
            draining,
            room: &crate::ports::Boundless,
        };
        let step =
            self.state.step(request, cx).inspect_err(|_| assert_eq!(before, self.state, "refused, yet changed"))?;
        self.log.extend(step.records.iter().cloned());
        self.settled.extend(step.settled.iter().cloned());
        if let Some(rest) = &step.rest {
            self.rest = rest.clone();
        }
        Ok(step)
    }

    fn check_derived(&self) {
        let header = Header::new(self.now, self.limits, trace::prices(&self.log));
        let derived = trace::derive(&header, TenantId::DEFAULT, &self.log).unwrap();
        let forked = self.log.iter().rposition(|record| matches!(record.event, Event::ThreadForked(_)));
        let known = forked.map_or(0, |at| {
            // What a fork writes again of its parent's turn is its parent's past as well.
            let again = matches!(self.log.get(at + 1).map(|record| &record.event), Some(Event::TurnStarted(_)));
            let ends = |record: &Record| matches!(record.event, Event::TurnCompleted(_));
            let more = self.log[at..].iter().position(ends).filter(|_| again).unwrap_or(0);
            (at + more) as u64 + 1
        });
        let unexplained = derived.given as usize;
        let why = || {
            let names: Vec<_> = self.log.iter().map(|record| record.event.name()).collect();
            format!("event {unexplained} of {names:?}, or some before it")
        };
        assert!(derived.given <= known, "nothing explains {}", why());
        let mut rerun = Rerun::default();
        derived.lines.iter().for_each(|line| rerun.tell(&header, line).unwrap());
        assert_eq!((rerun.log(), rerun.state()), (&*self.log, Some(&self.state)));
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
        self.ask(Command::Report(Report { turn, call, text, acts: Vec::new(), metered: None, end })).unwrap()
    }

    /// What an engine says of a call that is held to a budget.
    fn metered(&mut self, reserved: Reserved, said: &[&str], end: Option<Result<Answered, ModelError>>) -> Step {
        let (turn, call) = self.state.owed().call.expect("a call is due");
        let text = said.iter().map(|said| (TextKind::Answer, (*said).to_owned())).collect();
        let over = matches!(&end, Some(Err(error)) if error.kind == ModelErrorKind::Budget);
        let exceeded = over.then_some(BudgetState {
            scope: Scope::Tenant,
            window: Some(Window::Day),
            unit: Unit::Tokens,
            limit: 1,
            spent: 1,
            resets_at: None,
        });
        let metered =
            Some(Metered { reserved, exactly: reserved.output_tokens % 2 == 1, warnings: Vec::new(), exceeded });
        self.ask(Command::Report(Report { turn, call, text, acts: Vec::new(), metered, end })).unwrap()
    }

    /// What an agent says that answers the call which is due.
    fn act(&mut self, call_id: &str, step: ActStep) -> Step {
        let (turn, call) = self.state.owed().call.expect("a call is due");
        let act = Act {
            call_id: call_id.into(),
            tool: "act".into(),
            title: format!("does {call_id}"),
            kind: ItemKind::CommandExecution,
            arguments: serde_json::json!({"of": call_id}),
            step,
        };
        self.ask(Command::Report(Report { turn, call, text: Vec::new(), acts: vec![act], metered: None, end: None }))
            .unwrap()
    }

    fn finish(&mut self) -> Step {
        self.report(&[(TextKind::Answer, "done")], Some(Ok(answer(&[]))))
    }

    /// The model calls these tools, and says nothing else.
    fn call(&mut self, tools: Vec<Requested>) -> Step {
        let end = Answered { tool_calls: tools, reason: FinishReason::ToolCalls, ..answer(&[]) };
        self.report(&[], Some(Ok(end)))
    }

    fn deliver(&mut self, delivery: Delivery, prompt: &str) -> Result<Step, Refused> {
        self.ask(Command::Start(StartTurn { prompt: prompt.into(), delivery, ..StartTurn::default() }))
    }

    fn steer(&mut self, prompt: &str, undelivered: Undelivered) -> Result<Step, Refused> {
        let turn = self.turn();
        self.ask(Command::Steer(Steer { turn, prompt: prompt.into(), undelivered }))
    }

    fn compact(&mut self, delivery: Delivery) -> Result<Step, Refused> {
        self.ask(Command::Compact(Compact { reason: Some("too long".into()), delivery }))
    }

    fn edit(&mut self, prompt: &str) -> Result<Step, Refused> {
        self.ask(Command::Edit(StartTurn { prompt: prompt.into(), ..StartTurn::default() }))
    }

    fn interrupt(&mut self) -> InterruptReceipt {
        let step = self.ask(interrupt(self.turn())).unwrap();
        let Reply::Interrupted(receipt) = step.reply else { panic!("{:?}", step.reply) };
        *receipt
    }

    fn begin(&mut self) -> Step {
        self.ask(Command::Begin).unwrap()
    }

    fn recover(&mut self) -> Step {
        self.ask(Command::Recover { restarted: true }).unwrap()
    }

    fn tick(&mut self, at: UnixMs) -> Step {
        self.now = at;
        self.ask(Command::Tick).unwrap()
    }

    fn pass(&mut self, ms: u64) -> Step {
        self.tick(UnixMs(self.now.0 + ms))
    }

    fn queue_paused(&mut self, paused: bool) -> Step {
        let queue_paused = Some(paused);
        self.ask(Command::Patch(ThreadPatch { queue_paused, ..ThreadPatch::default() })).unwrap()
    }

    /// The newest that the log says of a tool's effect.
    fn effect(&self, tool: &str) -> Effect {
        let effect = |record: &Record| match &record.event {
            Event::EffectIntended(effect)
            | Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect)
                if effect.tool == tool =>
            {
                Some((**effect).clone())
            }
            _ => None,
        };
        self.log.iter().rev().find_map(effect).expect("the tool has an effect")
    }

    /// The newest that the log says of a tool's approval.
    fn approval(&self, tool: &str) -> Approval {
        let approval = |record: &Record| match &record.event {
            Event::ApprovalRequired(approval)
            | Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval)
                if approval.tool == tool =>
            {
                Some((**approval).clone())
            }
            _ => None,
        };
        self.log.iter().rev().find_map(approval).expect("the tool has an approval")
    }

    /// The newest question.
    fn question(&self) -> Question {
        let question = |record: &Record| match &record.event {
            Event::QuestionAsked(question)
            | Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => Some((**question).clone()),
            _ => None,
        };
        self.log.iter().rev().find_map(question).expect("something was asked")
    }

    /// The attempt of the tool that is under way comes to its end.
    fn tool(&mut self, tool: &str, end: ToolEnd) -> Step {
        let effect = self.effect(tool);
        self.ask(Command::ToolReport(ToolReport {
            operation: effect.operation_id,
            attempt: effect.attempt,
            said: String::new(),
            end: Some(end),
        }))
        .unwrap()
    }

    /// The attempt of the tool that is under way says something.
    fn says(&mut self, tool: &str, said: &str) -> Step {
        let Effect { operation_id: operation, attempt, .. } = self.effect(tool);
        self.ask(Command::ToolReport(ToolReport { operation, attempt, said: said.into(), end: None })).unwrap()
    }

    /// What the open item of a tool call holds.
    fn heard(&self, tool: &str) -> String {
        let item = self.effect(tool).item_id;
        let items = self.state.open().expect("a turn is open").items();
        items.filter(|open| open.id == item).map(|open| open.detail.clone()).collect()
    }

    fn done(&mut self, tool: &str) -> Step {
        self.tool(tool, ToolEnd::Done(format!("{tool} is done")))
    }

    fn decide(&mut self, tool: &str, decision: Decision) -> Result<Step, Refused> {
        let approval = self.approval(tool).id;
        self.ask(Command::Decide(Decide { approval, decision, reason: None }))
    }

    fn answer(&mut self, answer: &str) -> Result<Step, Refused> {
        let question = self.question().id;
        self.ask(Command::Answer(Answer { question, answer: answer.into() }))
    }

    fn resolve(&mut self, tool: &str, resolution: Resolution, output: Option<&str>) -> Result<Step, Refused> {
        let operation = self.effect(tool).operation_id;
        self.ask(Command::Resolve(Resolve { operation, resolution, output: output.map(Into::into) }))
    }

    /// What the newest finished item of a tool call says.
    fn output(&self, tool: &str) -> (TurnStatus, String) {
        let item = |record: &Record| match &record.event {
            Event::ItemCompleted(item) if item.metadata.get("tool").is_some_and(|name| name == tool) => {
                Some((item.status, item.detail.clone()))
            }
            _ => None,
        };
        self.log.iter().rev().find_map(item).expect("the call is over")
    }

    /// The tools that are to be run, by name, and whether they are to be asked instead.
    fn due(&self) -> Vec<(String, u32, bool)> {
        let name = |due: &Due| {
            let (invocation, _) = self.state.invocation(key(), *due).unwrap();
            (invocation.tool, due.attempt, due.reconcile)
        };
        self.state.owed().tools.iter().map(name).collect()
    }

    /// The turn that ended last.
    fn ended(&self) -> Turn {
        let ended = |record: &Record| match &record.event {
            Event::TurnCompleted(turn) => Some((**turn).clone()),
            _ => None,
        };
        self.log.iter().rev().find_map(ended).expect("a turn ended")
    }

    /// How often an event of this name is in the log.
    fn count(&self, name: &str) -> usize {
        self.names().iter().filter(|known| **known == name).count()
    }

    /// What a model would see now: the settled turns of the conversation from the context on, then the open one.
    fn history(&self) -> Vec<Message> {
        let reverted = |turn: TurnId| {
            self.log.iter().any(|record| matches!(&record.event, Event::TurnRolledBack(gone) if gone.id == turn))
        };
        let mut history = History::new(None);
        for settled in &self.settled {
            if settled.started_seq < self.state.context_seq() || reverted(settled.turn.id) {
                continue;
            }
            history.turn();
            for seq in &settled.items {
                let Event::ItemCompleted(item) = &self.log[*seq as usize - 1].event else {
                    panic!("not an item's end")
                };
                history.push(item);
            }
        }
        history.turn();
        self.state.open().into_iter().flat_map(OpenTurn::items).for_each(|item| history.push(item));
        history.finish()
    }

    /// What users said, and summaries, as a model would see it now.
    fn said(&self) -> Vec<String> {
        let said = |message: Message| match message {
            Message::User { content } => Some(content.replace(crate::history::SUMMARY, "[S]").replace("\n\n", " ")),
            _ => None,
        };
        self.history().into_iter().filter_map(said).collect()
    }

    fn waiting(&self) -> Vec<&str> {
        self.state.inbox().map(|admission| admission.prompt.as_str()).collect()
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

    /// What a reading of the whole log makes.
    fn replayed(&self) -> ThreadState {
        let mut state = ThreadState::begin(&stored(&self.log[0])).unwrap();
        self.log[1..].iter().for_each(|record| state.apply(&stored(record)).unwrap());
        state
    }

    /// What a load from disk makes of the row and the tail.
    fn reloaded(&self) -> ThreadState {
        let json = serde_json::to_vec(&self.rest.snapshot).unwrap();
        let snapshot: Snapshot = serde_json::from_slice(&json).unwrap();
        let needed: Vec<Record> = snapshot.needs().map(|seq| stored(&self.log[seq as usize - 1])).collect();
        let turn = |started| {
            let settled = self.settled.iter().find(|settled| settled.started_seq == started).unwrap();
            serde_json::from_slice(&serde_json::to_vec(&settled.turn).unwrap()).unwrap()
        };
        let turns: Vec<Turn> = snapshot.needs_turns().map(turn).collect();
        let mut state = ThreadState::restore(snapshot, &needed, &turns).unwrap();
        self.log[self.rest.seq as usize..].iter().for_each(|record| state.apply(&stored(record)).unwrap());
        state
    }
}

/// The record as it comes back from the disk.
fn stored(record: &Record) -> Record {
    Record::decode(SCHEMA, &serde_json::to_vec(record).unwrap()).unwrap()
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

fn key() -> ThreadKey {
    ThreadKey { tenant: crate::id::TenantId::DEFAULT, thread: ThreadId::new(Uuid::nil()) }
}

fn planned(name: &str, class: EffectClass, gate: Gate) -> Planned {
    let arguments_sha256 = "d1".repeat(32);
    Planned {
        kind: ItemKind::ToolCall,
        class,
        gate,
        arguments: serde_json::json!({}),
        arguments_sha256: arguments_sha256.clone(),
        command: None,
        cwd: None,
        words: None,
        hosts: Vec::new(),
        reason: "it writes".into(),
        amendment: Some(Permit {
            tool: name.into(),
            arguments_sha256: Some(arguments_sha256),
            command_prefix: None,
            host: None,
        }),
        permitted_by: None,
        asked_by: None,
    }
}

fn judged(name: &str, judgement: Judgement) -> Requested {
    Requested { call: ToolCall { call_id: format!("c-{name}"), name: name.into(), arguments: "{}".into() }, judgement }
}

/// A call of a tool that nobody has to agree to.
fn free(name: &str, class: EffectClass) -> Requested {
    judged(name, Judgement::Run(Box::new(planned(name, class, Gate::Open))))
}

/// A call of a tool that a person has to agree to.
fn gated(name: &str, class: EffectClass) -> Requested {
    judged(name, Judgement::Run(Box::new(planned(name, class, Gate::Ask))))
}

fn asks(name: &str) -> Requested {
    judged(name, Judgement::Question { question: "which?".into(), options: vec!["a".into()] })
}

fn failure(kind: ModelErrorKind) -> ModelError {
    ModelError { kind, message: "no".into(), retry_after: None }
}

// ---- any command sequence ------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Op {
    Start(Delivery, bool),
    Edit,
    Compact(Delivery),
    Steer(bool, Undelivered),
    Interrupt(bool, bool),
    Patch {
        archived: Option<bool>,
        paused: Option<bool>,
        auto: Option<bool>,
    },
    EditPrompt(usize, Option<u32>),
    Withdraw(usize),
    Decide(usize, Decision),
    Answer,
    Resolve(Resolution),
    Checkpoint(bool),
    Text(bool, &'static str),
    Reply(Vec<(EffectClass, Option<Gate>)>),
    Fail(ModelErrorKind),
    Act(usize, ActStep),
    Stale,
    Begin,
    Tool(usize, ToolEnd),
    Pass(u64),
    Recover(bool),
    /// The thread's budget is another.
    Budget(Option<u64>),
    /// The engine tells what its call has taken, and may find that there is no room for more.
    Meter(u64, u64, bool),
}

fn op() -> impl Strategy<Value = Op> {
    use ModelErrorKind::*;
    use prop::sample::select;
    let delivery =
        || select(vec![Delivery::Reject, Delivery::Queue, Delivery::Steer, Delivery::Interrupt, Delivery::Rollback]);
    let kinds = select(vec![Unavailable, CutOff, RateLimited, Rejected, Malformed]);
    let undelivered = || select(vec![Undelivered::Report, Undelivered::Queue]);
    let classes =
        select(vec![EffectClass::Read, EffectClass::Idempotent, EffectClass::Reconcilable, EffectClass::Once]);
    let gates = select(vec![None, Some(Gate::Open), Some(Gate::Open), Some(Gate::Ask), Some(Gate::FullAccess)]);
    let decisions = select(vec![
        Decision::Approved,
        Decision::Approved,
        Decision::ApprovedForSession,
        Decision::ApprovedAlways,
        Decision::Denied,
        Decision::Abort,
    ]);
    let ends = select(vec![
        ToolEnd::Done("ok".into()),
        ToolEnd::Done("ok".into()),
        ToolEnd::Failed("no".into()),
        ToolEnd::NotDone,
        ToolEnd::Unknown("?".into()),
    ]);
    let ask = |gate| ActStep::Asks(Box::new(planned("act", EffectClass::Once, gate)));
    let steps = select(vec![
        ActStep::Announced,
        ask(Gate::Ask),
        ask(Gate::Ask),
        ask(Gate::Open),
        ActStep::Started,
        ActStep::Said("said".into()),
        ActStep::Ended { done: true, output: "done".into() },
        ActStep::Ended { done: false, output: "failed".into() },
    ]);
    let resolutions = select(vec![Resolution::Retry, Resolution::Settle, Resolution::Abort]);
    prop_oneof![
        6 => (delivery(), any::<bool>()).prop_map(|(delivery, expects)| Op::Start(delivery, expects)),
        1 => Just(Op::Edit),
        2 => select(vec![Delivery::Reject, Delivery::Queue]).prop_map(Op::Compact),
        2 => (any::<bool>(), undelivered()).prop_map(|(active, undelivered)| Op::Steer(active, undelivered)),
        1 => any::<(bool, bool)>().prop_map(|(active, pause)| Op::Interrupt(active, pause)),
        1 => any::<(Option<bool>, Option<bool>, Option<bool>)>()
            .prop_map(|(archived, paused, auto)| Op::Patch { archived, paused, auto }),
        1 => (0..4usize, prop::option::of(0..4u32)).prop_map(|(which, to)| Op::EditPrompt(which, to)),
        1 => (0..4usize).prop_map(Op::Withdraw),
        3 => (0..3usize, decisions).prop_map(|(which, decision)| Op::Decide(which, decision)),
        1 => Just(Op::Answer),
        2 => resolutions.prop_map(Op::Resolve),
        1 => any::<bool>().prop_map(Op::Checkpoint),
        4 => (any::<bool>(), select(vec!["a", "bé", ""])).prop_map(|(kind, text)| Op::Text(kind, text)),
        6 => prop::collection::vec((classes, gates), 0..4).prop_map(Op::Reply),
        2 => kinds.prop_map(Op::Fail),
        5 => (0..3usize, steps).prop_map(|(which, step)| Op::Act(which, step)),
        1 => Just(Op::Stale),
        3 => Just(Op::Begin),
        5 => (0..3usize, ends).prop_map(|(which, end)| Op::Tool(which, end)),
        2 => (0u64..4_000).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Recover),
        1 => prop::option::of(0..2_000u64).prop_map(Op::Budget),
        3 => (0..9u64, 0..700u64, prop::bool::weighted(0.2)).prop_map(|(input, output, stops)| Op::Meter(input, output, stops)),
    ]
}

impl Bench {
    /// The input at this place among all that were ever admitted, newest first.
    fn admitted(&self, which: usize) -> InputId {
        let admitted = |record: &Record| match &record.event {
            Event::PromptAdmitted(admission) => Some(admission.id),
            _ => None,
        };
        self.log.iter().rev().filter_map(admitted).nth(which).unwrap_or(InputId::new(Uuid::max()))
    }

    fn play(&mut self, op: Op) {
        let nobody = TurnId::new(Uuid::max());
        let due = self.state.owed().call;
        let active = self.state.open().map(|open| open.turn().id);
        let end = |bench: &mut Self, end| {
            if let Some((turn, call)) = due {
                bench
                    .ask(Command::Report(Report {
                        turn,
                        call,
                        text: Vec::new(),
                        acts: Vec::new(),
                        metered: None,
                        end: Some(end),
                    }))
                    .unwrap();
            }
        };
        match op {
            Op::Start(delivery, expects) => {
                let expected_turn = active.filter(|_| expects);
                let start = StartTurn { prompt: "prompt".into(), delivery, expected_turn, ..StartTurn::default() };
                let _ = self.ask(Command::Start(start));
            }
            Op::Edit => {
                let _ = self.edit("edited");
            }
            Op::Compact(delivery) => {
                let _ = self.compact(delivery);
            }
            Op::Steer(known, undelivered) => {
                let turn = active.filter(|_| known).unwrap_or(nobody);
                let _ = self.ask(Command::Steer(Steer { turn, prompt: "steer".into(), undelivered }));
            }
            Op::Interrupt(known, pause_queue) => {
                let turn = active.filter(|_| known).unwrap_or(nobody);
                let _ = self.ask(Command::Interrupt(Interrupt { turn, pause_queue }));
            }
            Op::Patch { archived, paused, auto } => {
                let title = Some(Some(format!("t{}", self.log.len())));
                let patch =
                    ThreadPatch { title, archived, queue_paused: paused, auto_approve: auto, ..Default::default() };
                let _ = self.ask(Command::Patch(patch));
            }
            Op::EditPrompt(which, position) => {
                let prompt = position.is_none().then(|| "changed".to_owned());
                let _ = self.ask(Command::EditPrompt(EditPrompt { input: self.admitted(which), prompt, position }));
            }
            Op::Withdraw(which) => {
                let _ = self.ask(Command::Withdraw(self.admitted(which)));
            }
            Op::Decide(which, decision) => {
                let pending = self.state.open().and_then(|open| open.approvals().nth(which));
                let approval = pending.map_or(ApprovalId::new(Uuid::max()), |approval| approval.id);
                let _ = self.ask(Command::Decide(Decide { approval, decision, reason: None }));
            }
            Op::Answer => {
                let asked = self.state.open().and_then(|open| open.questions().next());
                let question = asked.map_or(QuestionId::new(Uuid::max()), |question| question.id);
                let _ = self.ask(Command::Answer(Answer { question, answer: "answer".into() }));
            }
            Op::Resolve(resolution) => {
                let uncertain = |effect: &&Effect| effect.status == EffectStatus::Uncertain;
                let effect = self.state.open().and_then(|open| open.open_effects().find(uncertain));
                let operation = effect.map_or(OperationId::new(Uuid::max()), |effect| effect.operation_id);
                let output = (resolution == Resolution::Settle).then(|| "settled".to_owned());
                let _ = self.ask(Command::Resolve(Resolve { operation, resolution, output }));
            }
            Op::Checkpoint(save) => {
                let name = "c".to_owned();
                let _ = self.ask(if save { Command::SaveCheckpoint(name) } else { Command::DeleteCheckpoint(name) });
            }
            Op::Text(reasoning, text) => {
                let kind = if reasoning { TextKind::Reasoning } else { TextKind::Answer };
                if due.is_some() {
                    self.report(&[(kind, text)], None);
                }
            }
            Op::Reply(tools) => {
                let tool = |(class, gate): (EffectClass, Option<Gate>)| match gate {
                    None if class == EffectClass::Once => judged("ask", asks("ask").judgement),
                    None => unknown(ToolCall { name: "none".into(), ..ToolCall::default() }),
                    Some(gate) => judged("t", Judgement::Run(Box::new(planned("t", class, gate)))),
                };
                end(self, Ok(Answered { tool_calls: tools.into_iter().map(tool).collect(), ..answer(&[]) }));
            }
            Op::Fail(kind) => end(self, Err(failure(kind))),
            Op::Act(which, step) => {
                if due.is_some() {
                    self.act(&format!("act-{which}"), step);
                }
            }
            Op::Stale => {
                let (turn, call) = due.unwrap_or((nobody, 1));
                let stale = Report {
                    turn,
                    call: call + 7,
                    text: vec![(TextKind::Answer, "x".into())],
                    acts: Vec::new(),
                    metered: None,
                    end: None,
                };
                assert!(self.ask(Command::Report(stale)).unwrap().records.is_empty());
            }
            Op::Begin => {
                self.begin();
            }
            Op::Tool(which, end) => {
                let owed = self.state.owed().tools;
                if let Some(due) = owed.get(which).or(owed.first()) {
                    let late = ToolReport {
                        operation: due.operation,
                        attempt: due.attempt - 1,
                        said: "late".into(),
                        end: Some(end.clone()),
                    };
                    assert!(self.ask(Command::ToolReport(late)).unwrap().records.is_empty());
                    let report = ToolReport {
                        operation: due.operation,
                        attempt: due.attempt,
                        said: String::new(),
                        end: Some(end),
                    };
                    assert!(!self.ask(Command::ToolReport(report)).unwrap().records.is_empty());
                }
            }
            Op::Pass(ms) => {
                self.pass(ms);
            }
            Op::Recover(restarted) => {
                self.ask(Command::Recover { restarted }).unwrap();
            }
            Op::Budget(tokens) => {
                let budget = Some(tokens.map(|tokens| Budget { tokens: Some(tokens), ..Budget::default() }));
                self.ask(Command::Patch(ThreadPatch { budget, ..ThreadPatch::default() })).unwrap();
            }
            Op::Meter(input_tokens, output_tokens, stops) => {
                if due.is_some() {
                    let reserved = Reserved { input_tokens, output_tokens };
                    self.metered(reserved, &[], stops.then(|| Err(failure(ModelErrorKind::Budget))));
                }
            }
        }
    }
}

/// What must hold of any log, whatever led to it.
fn check_log(log: &[Record]) {
    let mut ended = BTreeMap::new();
    let mut open_turn = None;
    let mut items: BTreeMap<_, (String, bool)> = BTreeMap::new();
    // Approvals, questions and effects, with their turns, that are not over; and those that are.
    let (mut open, mut over) = (BTreeMap::new(), BTreeSet::new());
    // Starts, and words of a person that allow another.
    let mut starts: BTreeMap<OperationId, (u32, u32)> = BTreeMap::new();
    let (mut queue, mut steers) = (Vec::new(), Vec::new());
    let mut compacting = None;
    // A call that is held to a budget, and not settled; and what was warned of.
    let (mut metered, mut warned) = (false, Vec::new());
    for (index, record) in log.iter().enumerate() {
        assert_eq!(record.seq, index as Seq + 1);
        if let Some(turn) = record.event.turn_id() {
            let reverts = matches!(record.event, Event::TurnRolledBack(_));
            assert_eq!(ended.contains_key(&turn), reverts, "{} at {}", record.event.name(), record.seq);
        }
        match &record.event {
            Event::TurnStarted(turn) => assert_eq!(open_turn.replace(turn.id), None, "two turns open"),
            Event::TurnCompleted(turn) => {
                assert_eq!(open_turn.take(), Some(turn.id));
                assert!(turn.status.is_terminal());
                assert!(turn.item_ids.iter().all(|id| items[id].1), "an item of an ended turn is open");
                assert!(open.values().all(|of| *of != turn.id), "something of an ended turn is open");
                assert!(steers.is_empty(), "a steer was lost");
                assert!(!metered, "a call was left unsettled");
                assert_eq!(compacting, None);
                ended.insert(turn.id, false);
            }
            Event::BudgetReserved(_, reserved) => metered = !reserved.is_nothing(),
            Event::UsageRecorded(_, entry) => {
                assert!(metered || entry.usage.model_calls > 0, "what was not begun is settled");
                metered = false;
            }
            Event::TurnRetrying(_) | Event::TurnResumed(_) => assert!(!metered, "a call was left unsettled"),
            Event::BudgetWarning(_, state) => {
                // The same limit may come again, after another one.
                let last = warned.iter().rev().find(|known: &&BudgetState| known.scope == state.scope);
                assert!(last.is_none_or(|last| last.limit != state.limit), "warned of twice");
                warned.push(**state);
            }
            Event::TurnRolledBack(turn) => assert_eq!(ended.insert(turn.id, true), Some(false), "reverted twice"),
            Event::ItemStarted(item) => assert!(items.insert(item.id, (String::new(), false)).is_none()),
            Event::ItemDelta(delta) => items.get_mut(&delta.item).unwrap().0.push_str(&delta.delta),
            Event::ItemCompleted(item) => {
                let (text, done) = items.get_mut(&item.id).unwrap();
                assert!(!*done && item.status.is_terminal());
                if matches!(item.kind, ItemKind::AgentMessage | ItemKind::Reasoning | ItemKind::ContextCompaction) {
                    assert_eq!(*text, item.detail, "deltas do not add up to the item");
                }
                *done = true;
            }
            Event::ApprovalRequired(approval) => {
                assert!(open.insert(*approval.id.as_bytes(), approval.turn_id).is_none());
            }
            Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => {
                let asked = open.remove(approval.id.as_bytes()).is_some();
                assert_eq!(
                    asked,
                    !matches!(approval.by, Some(DecidedBy::Auto | DecidedBy::Session | DecidedBy::Policy))
                );
                assert!(over.insert(*approval.id.as_bytes()), "decided twice");
            }
            Event::QuestionAsked(question) => {
                assert!(open.insert(*question.id.as_bytes(), question.turn_id).is_none());
            }
            Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => {
                assert!(open.remove(question.id.as_bytes()).is_some() && over.insert(*question.id.as_bytes()));
            }
            Event::EffectIntended(effect) => {
                assert!(open.insert(*effect.operation_id.as_bytes(), effect.turn_id).is_none());
            }
            Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect) => {
                assert!(open.contains_key(effect.operation_id.as_bytes()), "an effect goes on after its end");
                let (starts, retries) = starts.entry(effect.operation_id).or_default();
                match (&record.event, effect.resolution) {
                    (Event::EffectStarted(_), _) => *starts += 1,
                    (Event::EffectReconciled(_), Some(Resolution::Retry)) => *retries += 1,
                    _ => {}
                }
                assert_eq!(effect.attempt, *starts);
                assert!(effect.class != EffectClass::Once || *starts <= 1 + *retries, "started twice");
                if effect.status == EffectStatus::Settled || effect.closed {
                    open.remove(effect.operation_id.as_bytes());
                    assert!(over.insert(*effect.operation_id.as_bytes()));
                }
            }
            Event::CompactionStarted(compaction) => assert_eq!(compacting.replace(compaction.turn_id), None),
            Event::CompactionCompleted(compaction) | Event::CompactionFailed(compaction) => {
                assert_eq!(compacting.take(), Some(compaction.turn_id));
            }
            Event::PromptAdmitted(admission) if admission.delivery == Delivery::Steer => steers.push(admission.id),
            Event::PromptAdmitted(admission) => queue.push(admission.id),
            Event::PromptEdited(admission, to) if admission.delivery != Delivery::Steer => {
                queue.retain(|id| *id != admission.id);
                queue.insert(*to as usize, admission.id);
            }
            Event::PromptWithdrawn(admission) => {
                steers.retain(|id| *id != admission.id);
                queue.retain(|id| *id != admission.id);
            }
            Event::PromptPromoted(admission) | Event::PromptNotDelivered(admission) => {
                let from = if admission.delivery == Delivery::Steer { &mut steers } else { &mut queue };
                assert_eq!(from.remove(0), admission.id, "out of order");
            }
            _ => {}
        }
        let json = serde_json::to_vec(record).unwrap();
        assert_eq!(Record::decode(SCHEMA, &json).as_ref(), Ok(record));
    }
    assert!(open.values().all(|of| Some(*of) == open_turn));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_keeps_the_invariants_and_replays_to_the_same_state(
        ops in prop::collection::vec(op(), 1..60), interrupts in any::<bool>(), compacts in any::<bool>(),
    ) {
        let on_restart = if interrupts { OnRestart::Interrupt } else { OnRestart::Resume };
        let limits = Limits {
            inbox_per_thread: 3,
            turn_ms: 20_000,
            model_calls_per_turn: 5,
            approval_ms: 10_000,
            question_ms: 5_000,
            compact_at_tokens: if compacts { 5 } else { 0 },
            ..Limits::default()
        };
        let mut bench = Bench::with(limits, on_restart);
        for op in ops {
            bench.play(op);
            prop_assert_eq!(&bench.reloaded(), &bench.state);
        }
        prop_assert_eq!(&bench.replayed(), &bench.state);
        let view = bench.state.view();
        let held = view.queue_paused || view.archived || bench.state.open().is_some();
        prop_assert!(held || bench.state.inbox().count() == 0, "a prompt waits for nothing");
        check_log(&bench.log);
        let entries = bench.log.iter().filter_map(|record| match &record.event {
            Event::UsageRecorded(_, entry) => Some(entry),
            _ => None,
        });
        let spent = entries.fold(Amount::default(), |sum, entry| sum.plus(Amount::of(&entry.usage, entry.cost)));
        prop_assert_eq!(bench.state.spent, spent);
    }
}
