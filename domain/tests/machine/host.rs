//! The machine under test, hosted as a server would: it keeps the log, the newest snapshot and the settled turns, and
//! knows things by the order in which they came to be.

use std::sync::atomic::{AtomicU64, Ordering};

use raddle_domain::{
    command::{
        Answer, Command, Compact, Decide, EditPrompt, IfIdle, Interrupt, Limits, NewThread, Refused, Reply, Report,
        Resolve, StartTurn, Steer, TextKind, ThreadPatch, ToolReport,
    },
    event::{Event, Record, SCHEMA},
    history::{History, Message, SUMMARY, ToolCall},
    id::{ApprovalId, InputId, OperationId, QuestionId, Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Answered, FinishReason, Gate, Ids, Judgement, ModelError, ModelErrorKind, Planned, Requested, ToolEnd},
    price::Prices,
    record::{
        AdmissionStatus, Delivery, EffectClass, ItemKind, ModelChoice, OnRestart, Permit, Resolution, Turn,
        Undelivered, Usage,
    },
    sound::Sound,
    thread::{Cx, ForkPoint, Rest, Settled, Snapshot, Step, ThreadState},
    time::UnixMs,
    trace::{self, Header, Rerun},
};
use serde_json::json;
use uuid::Uuid;

use crate::model::{self, End, Expects, LIMITS, Line, Model, Op, Place, Tool};

struct Counter(AtomicU64);

impl Ids for Counter {
    fn mint(&self) -> Uuid {
        Uuid::from_u128(self.0.fetch_add(1, Ordering::Relaxed).into())
    }
}

pub struct Host {
    state: ThreadState,
    /// As it comes back from the disk.
    log: Vec<Record>,
    settled: Vec<Settled>,
    rest: Rest,
    limits: Limits,
    ids: Counter,
    prices: Prices,
    sound: Sound,
    // In the order in which they came to be.
    turns: Vec<TurnId>,
    inputs: Vec<(InputId, AdmissionStatus)>,
    approvals: Vec<ApprovalId>,
    questions: Vec<QuestionId>,
    operations: Vec<OperationId>,
}

/// The name of what never was.
fn nobody() -> Uuid {
    Uuid::max()
}

/// The record as it comes back from the disk.
fn stored(record: &Record) -> Record {
    Record::decode(SCHEMA, &serde_json::to_vec(record).unwrap()).unwrap()
}

fn fold(log: &[Record]) -> ThreadState {
    let mut state = ThreadState::begin(&log[0]).unwrap();
    log[1..].iter().for_each(|record| state.apply(record).unwrap());
    state
}

impl Host {
    pub fn new(model: &Model) -> Self {
        let ids = Counter(AtomicU64::new(1));
        let limits = Limits { compact_at_tokens: if model.compacts { 5 } else { 0 }, ..LIMITS };
        let prices = Prices::default();
        let choice = ModelChoice { engine: "scripted".into(), model: "scripted".into() };
        let on_restart = if model.interrupts { OnRestart::Interrupt } else { OnRestart::Resume };
        let new = NewThread { on_restart, ..NewThread::with(choice) };
        let cx = Cx {
            now: UnixMs(model.now),
            ids: &ids,
            limits: &limits,
            prices: &prices,
            draining: false,
            room: &raddle_domain::ports::Boundless,
        };
        let (state, step) = ThreadState::create(ThreadId::new(ids.mint()), new, cx).unwrap();
        let sound = Sound::of(&step.records).unwrap();
        Self {
            state,
            log: step.records,
            settled: Vec::new(),
            rest: step.rest.unwrap(),
            limits,
            ids,
            prices,
            sound,
            turns: Vec::new(),
            inputs: Vec::new(),
            approvals: Vec::new(),
            questions: Vec::new(),
            operations: Vec::new(),
        }
    }

    // ---- one operation -----------------------------------------------------------------------------

    /// Does what the model has just done.
    pub fn play(&mut self, op: &Op, model: &Model) {
        let now = UnixMs(model.now);
        let told = match op {
            Op::Fork { at } => self.fork(*at, now),
            Op::Crash => {
                let folded = fold(&self.log);
                assert_eq!(folded, self.state, "the log says something else");
                self.state = folded;
                self.ask(Command::Recover { restarted: true }, now)
            }
            Op::Evict => {
                let restored = self.restored();
                assert_eq!(restored, self.state, "the snapshot and its tail say something else");
                self.state = restored;
                self.ask(Command::Recover { restarted: false }, now)
            }
            Op::Say { .. } | Op::Reply { .. } | Op::Fail { .. } => match self.speech(op) {
                Some(report) => self.ask(Command::Report(report), now),
                None => "noted",
            },
            Op::LateSay => {
                for report in self.late_speech() {
                    self.silently(Command::Report(report), now);
                }
                "noted"
            }
            Op::Tool { which, end } => {
                let owed = self.state.owed().tools;
                match owed.get(*which).or(owed.first()) {
                    Some(due) => {
                        let (operation, attempt) = (due.operation, due.attempt);
                        let report = |said: &str, end| ToolReport { operation, attempt, said: said.into(), end };
                        let (said, rest) = model::SAID.split_at(3);
                        let (said, ends) = (report(said, None), report(rest, Some(tool_end(*end))));
                        self.ask(Command::ToolReport(said), now);
                        self.ask(Command::ToolReport(ends), now)
                    }
                    None => "noted",
                }
            }
            Op::LateTool { which } => {
                for report in self.late_ends(model.newest(self.operations.len(), *which)) {
                    self.silently(Command::ToolReport(report), now);
                }
                "noted"
            }
            Op::Pass { rings: false, .. } => "noted",
            other => {
                let command = self.command(other, model);
                self.ask(command, now)
            }
        };
        assert_eq!(told, model.told);
    }

    fn command(&self, op: &Op, model: &Model) -> Command {
        let open = self.state.open().map(|open| open.turn().id);
        let nowhere = TurnId::new(nobody());
        let prompt = format!("p{}", model.prompts());
        let undelivered = |queue| if queue { Undelivered::Queue } else { Undelivered::Report };
        let named = |which| model.newest(self.inputs.len(), which);
        let input = |which: usize| self.inputs.get(named(which)).map_or(InputId::new(nobody()), |(id, _)| *id);
        match op {
            Op::Start { delivery, expects, unless_idle, queue_if_late } => Command::Start(StartTurn {
                prompt,
                delivery: *delivery,
                if_idle: if *unless_idle { IfIdle::Reject } else { IfIdle::Start },
                expected_turn: match expects {
                    Expects::Anything => None,
                    Expects::TheOpenTurn => Some(open.unwrap_or(nowhere)),
                    Expects::AnotherTurn => Some(nowhere),
                },
                undelivered: undelivered(*queue_if_late),
                ..StartTurn::default()
            }),
            Op::Edit => Command::Edit(StartTurn { prompt, ..StartTurn::default() }),
            Op::Compact { queue } => {
                let delivery = if *queue { Delivery::Queue } else { Delivery::Reject };
                Command::Compact(Compact { reason: None, delivery })
            }
            Op::Steer { open: known, queue_if_late } => {
                let turn = open.filter(|_| *known).unwrap_or(nowhere);
                Command::Steer(Steer { turn, prompt, undelivered: undelivered(*queue_if_late) })
            }
            Op::Interrupt { open: known, pause } => {
                let turn = open.filter(|_| *known).unwrap_or(nowhere);
                Command::Interrupt(Interrupt { turn, pause_queue: *pause })
            }
            Op::Patch { archived, paused, auto } => Command::Patch(ThreadPatch {
                archived: *archived,
                queue_paused: *paused,
                auto_approve: *auto,
                ..ThreadPatch::default()
            }),
            Op::EditPrompt { which, text, to } => {
                let prompt = text.then_some(prompt);
                Command::EditPrompt(EditPrompt { input: input(*which), prompt, position: *to })
            }
            Op::Withdraw { which } => Command::Withdraw(input(*which)),
            Op::Decide { which, decision } => {
                let known = self.approvals.get(model.newest(self.approvals.len(), *which));
                let approval = known.copied().unwrap_or(ApprovalId::new(nobody()));
                Command::Decide(Decide { approval, decision: *decision, reason: None })
            }
            Op::Answer { which } => {
                let known = self.questions.get(model.newest(self.questions.len(), *which));
                let question = known.copied().unwrap_or(QuestionId::new(nobody()));
                Command::Answer(Answer { question, answer: "answer".into() })
            }
            Op::Resolve { which, resolution } => {
                let known = self.operations.get(model.newest(self.operations.len(), *which));
                let operation = known.copied().unwrap_or(OperationId::new(nobody()));
                let output = (*resolution == Resolution::Settle).then(|| "settled".to_owned());
                Command::Resolve(Resolve { operation, resolution: *resolution, output })
            }
            Op::Save { name } => Command::SaveCheckpoint(name.to_string()),
            Op::Forget { name } => Command::DeleteCheckpoint(name.to_string()),
            Op::Begin => Command::Begin,
            Op::Pass { .. } => Command::Tick,
            other => unreachable!("{other:?} is not a command"),
        }
    }

    /// What the engine says, if one runs.
    fn speech(&self, op: &Op) -> Option<Report> {
        let (turn, call) = self.state.owed().call?;
        let mut report = Report { turn, call, text: Vec::new(), acts: Vec::new(), metered: None, end: None };
        match op {
            Op::Say { text } => report.text.push((TextKind::Answer, (*text).to_owned())),
            Op::Reply { text, tools, usage } => {
                report.text.push((TextKind::Answer, (*text).to_owned()));
                let usage = usage.then(|| Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() });
                let tool_calls = tools.iter().map(requested).collect();
                report.end = Some(Ok(Answered { reason: FinishReason::Stop, usage, tool_calls }));
            }
            Op::Fail { transient } => {
                let kind = if *transient { ModelErrorKind::CutOff } else { ModelErrorKind::Rejected };
                report.end = Some(Err(ModelError { kind, message: "no".into(), retry_after: None }));
            }
            other => unreachable!("{other:?} is not speech"),
        }
        Some(report)
    }

    /// What an engine would say that was given up.
    fn late_speech(&self) -> Vec<Report> {
        let report = |turn, call| Report {
            turn,
            call,
            text: vec![(TextKind::Answer, "late".into())],
            acts: Vec::new(),
            metered: None,
            end: None,
        };
        let due = self.state.owed().call;
        let gone = self.turns.iter().rev().take(3).filter(|turn| due.is_none_or(|(open, _)| open != **turn));
        let mut reports: Vec<Report> = gone.map(|turn| report(*turn, 1)).collect();
        if let Some((turn, call)) = due {
            reports.extend([report(turn, call - 1), report(turn, call + 1)]);
        }
        reports
    }

    /// What a tool would say that was given up.
    fn late_ends(&self, operation: usize) -> Vec<ToolReport> {
        let Some(operation) = self.operations.get(operation).copied() else { return Vec::new() };
        let report =
            |attempt| ToolReport { operation, attempt, said: "late".into(), end: Some(ToolEnd::Done("late".into())) };
        let due = self.state.owed().tools.into_iter().find(|due| due.operation == operation);
        let runs = |attempt: &u32| due.is_none_or(|due| due.attempt != *attempt);
        (0..4).filter(runs).map(report).collect()
    }

    fn silently(&mut self, command: Command, now: UnixMs) {
        let said = self.log.len();
        self.ask(command, now);
        assert_eq!(self.log.len(), said, "who was given up was heard");
    }

    /// Asks, and says in a word what the caller is told.
    fn ask(&mut self, command: Command, now: UnixMs) -> &'static str {
        let before = self.state.clone();
        let cx = Cx {
            now,
            ids: &self.ids,
            limits: &self.limits,
            prices: &self.prices,
            draining: false,
            room: &raddle_domain::ports::Boundless,
        };
        match self.state.step(command.into(), cx) {
            Ok(step) => self.save(step),
            Err(refused) => {
                assert_eq!(self.state, before, "refused, yet changed");
                refusal(&refused)
            }
        }
    }

    fn save(&mut self, step: Step) -> &'static str {
        for record in step.records {
            self.sound.see(&record).unwrap();
            self.name(&record.event);
            let stored = stored(&record);
            assert_eq!(stored, record, "it is read otherwise than it was meant");
            self.log.push(stored);
        }
        self.settled.extend(step.settled);
        self.rest = step.rest.unwrap_or(self.rest.clone());
        match step.reply {
            Reply::Thread(_) => "changed",
            Reply::Deleted => "deleted",
            Reply::Started(turn) => {
                assert_eq!(self.state.open().map(|open| open.turn().id), Some(turn.id));
                "started"
            }
            Reply::Queued { admission, .. } if admission.delivery == Delivery::Steer => "steered",
            Reply::Queued { .. } => "queued",
            Reply::Interrupted(receipt) => {
                let ended = &self.log[receipt.ended_seq as usize - 1];
                assert_eq!(ended.event, Event::TurnCompleted(Box::new(receipt.turn.clone())));
                let mut told: Vec<OperationId> = receipt.effects.iter().map(|effect| effect.operation_id).collect();
                told.sort();
                let started = self.sound.effects().values();
                let started = started.filter(|effect| effect.turn_id == receipt.turn.id && effect.attempt > 0);
                assert_eq!(told, started.map(|effect| effect.operation_id).collect::<Vec<_>>());
                assert!(receipt.effects.iter().all(|effect| self.sound.effects()[&effect.operation_id] == *effect));
                "interrupted"
            }
            Reply::Admission(admission, at) => {
                if admission.delivery == Delivery::Queue {
                    assert_eq!(self.state.inbox().nth(at as usize), Some(&*admission));
                }
                "edited"
            }
            Reply::Withdrawn => "withdrawn",
            Reply::Approval(_) => "decided",
            Reply::Question(_) => "answered",
            Reply::Effect(_) => "resolved",
            Reply::Checkpoint(_) => "saved",
            Reply::Noted => "noted",
        }
    }

    /// Gives what is new its place.
    fn name(&mut self, event: &Event) {
        let mut operation = |id| {
            if !self.operations.contains(&id) {
                self.operations.push(id);
            }
        };
        match event {
            Event::TurnStarted(turn) => self.turns.push(turn.id),
            Event::PromptAdmitted(admission)
            | Event::PromptPromoted(admission)
            | Event::PromptWithdrawn(admission)
            | Event::PromptNotDelivered(admission) => {
                match self.inputs.iter_mut().find(|(id, _)| *id == admission.id) {
                    Some((_, status)) => *status = admission.status,
                    None => self.inputs.push((admission.id, admission.status)),
                }
            }
            Event::ApprovalRequired(approval) => {
                operation(approval.operation_id);
                self.approvals.push(approval.id);
            }
            Event::QuestionAsked(question) => self.questions.push(question.id),
            Event::EffectIntended(effect) => operation(effect.operation_id),
            _ => {}
        }
    }

    fn restored(&self) -> ThreadState {
        let json = serde_json::to_vec(&self.rest.snapshot).unwrap();
        let snapshot: Snapshot = serde_json::from_slice(&json).unwrap();
        let needed: Vec<Record> = snapshot.needs().map(|seq| self.log[seq as usize - 1].clone()).collect();
        let turn = |started: Seq| {
            let settled = self.settled.iter().find(|settled| settled.started_seq == started).unwrap();
            serde_json::from_slice(&serde_json::to_vec(&settled.turn).unwrap()).unwrap()
        };
        let turns: Vec<Turn> = snapshot.needs_turns().map(turn).collect();
        let mut state = ThreadState::restore(snapshot, &needed, &turns).unwrap();
        self.log[self.rest.seq as usize..].iter().for_each(|record| state.apply(record).unwrap());
        state
    }

    /// Goes on as a fork, whose past is that of this thread under its own name.
    fn fork(&mut self, at: Place, now: UnixMs) -> &'static str {
        let starts = |seq: Seq| {
            let promoted = self.log[seq as usize - 2].event.name() == "prompt.promoted";
            seq - 1 - Seq::from(promoted)
        };
        let at = match at {
            Place::Settled => Some(self.state.open().map_or(self.state.seq(), |open| starts(open.started_seq()))),
            Place::Before { which } => {
                let started = self.log.iter().rev().filter(|record| matches!(record.event, Event::TurnStarted(_)));
                started.map(|record| starts(record.seq)).nth(which)
            }
            Place::Checkpoint { name } => {
                let known = self.state.checkpoints().find(|known| known.name == name.to_string());
                known.map(|known| starts(known.seq + 1))
            }
        };
        let Some(at) = at else { return "no-place" };
        let (parent, id) = (self.state.view().clone(), ThreadId::new(self.ids.mint()));
        let renamed = |record: &Record| {
            let json = serde_json::to_string(record).unwrap().replace(&parent.id.to_string(), &id.to_string());
            Record::decode(SCHEMA, json.as_bytes()).unwrap()
        };
        self.log = self.log[..at as usize].iter().map(renamed).collect();
        self.settled.retain(|settled| settled.started_seq <= at);
        self.settled.iter_mut().for_each(|settled| settled.turn.thread_id = id);
        let then = fold(&self.log);
        assert!(then.open().is_none(), "a fork begins where no turn is open");
        let point = ForkPoint {
            parent,
            at,
            last: then.last().cloned(),
            context_seq: then.context_seq(),
            title: None,
            part: None,
        };
        let cx = Cx {
            now,
            ids: &self.ids,
            limits: &self.limits,
            prices: &self.prices,
            draining: false,
            room: &raddle_domain::ports::Boundless,
        };
        let (state, step) = ThreadState::fork(id, point, cx).unwrap();
        self.state = state;
        self.sound = Sound::of(&self.log).unwrap();
        assert_eq!(self.save(step), "changed");
        assert_eq!(fold(&self.log), self.state, "a fork is what its log says");
        "forked"
    }

    // ---- comparison --------------------------------------------------------------------------------

    pub fn check(&self, model: &Model) {
        let turn = |id: &TurnId| self.turns.iter().position(|known| known == id).unwrap();
        let view = self.state.view();
        let open = self.state.open();
        assert_eq!(
            (view.archived, view.queue_paused, view.queued as usize, view.seq),
            (model.archived, model.paused, model.queue.len(), self.log.len() as Seq)
        );
        assert_eq!(view.active_turn, open.map(|open| open.turn().id));
        assert_eq!(open.map(|open| turn(&open.turn().id)), model.open.as_ref().map(|open| open.turn));
        let status = match (&model.open, model.archived) {
            (_, true) => "archived",
            (None, false) => "idle",
            (Some(_), false) if model.waits() => "awaiting_approval",
            (Some(_), false) => "running",
        };
        assert_eq!(view.status.as_str(), status);

        let queued = self.state.inbox().map(|admission| (admission.id, admission.prompt.clone()));
        let expected = model.queue.iter().map(|waiting| (self.inputs[waiting.input].0, waiting.prompt.clone()));
        assert_eq!(queued.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert!(model.open.is_some() || model.paused || model.archived || model.queue.is_empty());
        let inputs: Vec<AdmissionStatus> = self.inputs.iter().map(|(_, status)| *status).collect();
        assert_eq!(inputs, model.inputs.values().copied().collect::<Vec<_>>());

        let named = |id: &TurnId, status| (turn(id), status);
        let ended: Vec<_> = self.sound.ended().iter().map(|(id, status)| named(id, *status)).collect();
        assert_eq!(ended, model.book.ended);
        assert_eq!(self.sound.undone().iter().map(turn).collect::<Vec<_>>(), model.book.undone);
        let last = self.state.last().map(|last| turn(&last.turn.id));
        assert_eq!(last, model.book.last.map(|(turn, _)| turn));

        let approvals: Vec<_> =
            self.approvals.iter().map(|id| self.sound.approvals().get(id).map(|(_, to)| *to)).collect();
        let expected = (0..self.approvals.len()).map(|at| model.book.approvals.get(&at).copied());
        assert_eq!(approvals, expected.collect::<Vec<_>>());
        let pending =
            approvals.iter().filter(|status| **status == Some(raddle_domain::record::ApprovalStatus::Pending));
        assert_eq!(pending.count(), view.pending_approvals as usize);
        let questions = self.questions.iter().map(|id| self.sound.questions().get(id).map(|(_, to)| *to));
        let expected = (0..self.questions.len()).map(|at| model.book.questions.get(&at).copied());
        assert_eq!(questions.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        for (at, id) in self.operations.iter().enumerate() {
            let known = self.sound.effects().get(id).map(|effect| model::Ledger {
                class: effect.class,
                status: effect.status,
                starts: effect.attempt,
                outcome: effect.outcome,
                closed: effect.closed,
            });
            assert_eq!(known.as_ref(), model.book.effects.get(&at));
        }
        let counts =
            [self.turns.len(), self.inputs.len(), self.approvals.len(), self.questions.len(), self.operations.len()];
        assert_eq!(counts, model.counts());
        let checkpoints: Vec<String> = self.state.checkpoints().map(|checkpoint| checkpoint.name.clone()).collect();
        assert_eq!(checkpoints, model.checkpoints.iter().map(|(name, ..)| name.to_string()).collect::<Vec<_>>());

        assert_eq!(self.visible(), model.visible());
        self.check_owed(model);
    }

    fn check_owed(&self, model: &Model) {
        let owed = self.state.owed();
        assert_eq!(owed.call.is_some(), model.calls_model());
        if let Some((turn, _)) = owed.call {
            assert_eq!(Some(turn), self.state.open().map(|open| open.turn().id));
        }
        let calls = |at: usize| &model.open.as_ref().unwrap().calls[at];
        let due: Vec<_> = model.due().into_iter().map(calls).collect();
        let expected = due.iter().map(|call| {
            let operation = call.operation.unwrap();
            let asked = matches!(call.stage, model::Stage::Effect { asked: true });
            (self.operations[operation], model.book.effects[&operation].starts, asked)
        });
        let tools = owed.tools.iter().map(|due| (due.operation, due.attempt, due.reconcile));
        assert_eq!(tools.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert_eq!(owed.begin, model.runnable().len() > due.len());
        assert_eq!(owed.wake_at, model.wake_at().map(UnixMs));
        assert_eq!(self.state.deadline(&self.limits), model.deadline().map(UnixMs));
        let rests = model.open.is_none() || (model.waits() && !model.interrupts);
        assert_eq!(self.state.owes_since().is_none(), rests);
        let key = ThreadKey { tenant: TenantId::DEFAULT, thread: self.state.view().id };
        for due in &owed.tools {
            let (invocation, class) = self.state.invocation(key, *due).expect("what is due can be run");
            assert_eq!((invocation.operation, invocation.attempt), (due.operation, due.attempt));
            assert!(!due.reconcile || class == EffectClass::Reconcilable);
        }
    }

    /// The conversation as a model would see it now.
    fn visible(&self) -> Vec<Line> {
        let mut history = History::new(None);
        for settled in &self.settled {
            if settled.started_seq < self.state.context_seq() || self.sound.undone().contains(&settled.turn.id) {
                continue;
            }
            history.turn();
            for seq in &settled.items {
                let Event::ItemCompleted(item) = &self.log[*seq as usize - 1].event else {
                    panic!("event {seq} is not the end of an item")
                };
                history.push(item);
            }
        }
        history.turn();
        self.state.open().into_iter().flat_map(|open| open.items()).for_each(|item| history.push(item));
        let line = |message| match message {
            Message::User { content } => match content.strip_prefix(SUMMARY) {
                Some(summary) => Line::Summary(summary.trim_start_matches('\n').to_owned()),
                None => Line::User(content),
            },
            Message::Assistant { content, .. } => Line::Assistant(content),
            Message::Tool { content, .. } => Line::Tool(content),
            Message::System { .. } => panic!("the thread has no system prompt"),
        };
        history.finish().into_iter().map(line).collect()
    }

    /// At last: whatever way the thread is brought back, it is the same.
    pub fn finish(&self) {
        assert_eq!(fold(&self.log), self.state);
        assert_eq!(self.restored(), self.state);
        self.check_derived();
    }

    /// What the log says that the thread was told leads to the same log again.
    fn check_derived(&self) {
        let header = Header::new(UnixMs(0), self.limits, self.prices.clone());
        let derived = trace::derive(&header, TenantId::DEFAULT, &self.log).unwrap();
        let forked = self.log.iter().rev().find(|record| matches!(record.event, Event::ThreadForked(_)));
        let known = forked.map_or(0, |record| record.seq);
        let unexplained = || self.log[derived.given as usize - 1].clone();
        assert_eq!(derived.given, known, "nothing explains {:?}", unexplained());
        let mut rerun = Rerun::default();
        for line in &derived.lines {
            let line = trace::Line::read(1, &line.to_string()).unwrap();
            rerun.tell(&header, &line).unwrap();
        }
        assert_eq!(rerun.log(), self.log);
        assert_eq!(rerun.state(), Some(&self.state));
        // So does the log when nothing explains its beginning, wherever that ends: also in the middle of a step.
        for past in (1..4).map(|quarter| quarter * self.log.len() / 4) {
            let derived = trace::derive_behind(&header, TenantId::DEFAULT, &self.log, past).unwrap();
            let mut rerun = Rerun::default();
            for line in &derived.lines {
                rerun.tell(&header, line).unwrap();
            }
            assert_eq!(rerun.log(), self.log, "of which {past} are given");
        }
    }
}

fn requested(tool: &Tool) -> Requested {
    let (name, judgement) = match tool {
        Tool::Unknown => ("none", Judgement::Unknown),
        Tool::Question => ("ask", Judgement::Question { question: "which?".into(), options: Vec::new() }),
        Tool::Run { class, gate, arguments } => {
            let arguments_sha256 = format!("{arguments:064x}");
            let sha256 = Some(arguments_sha256.clone());
            let planned = Planned {
                kind: ItemKind::ToolCall,
                class: *class,
                gate: match gate {
                    model::Gate::Open => Gate::Open,
                    model::Gate::Ask => Gate::Ask,
                    model::Gate::Full => Gate::FullAccess,
                },
                arguments: json!({ "n": arguments }),
                arguments_sha256,
                command: None,
                cwd: None,
                words: None,
                hosts: Vec::new(),
                reason: "it writes".into(),
                amendment: Some(Permit {
                    tool: "t".into(),
                    arguments_sha256: sha256,
                    command_prefix: None,
                    host: None,
                }),
                permitted_by: None,
                asked_by: None,
            };
            ("t", Judgement::Run(Box::new(planned)))
        }
    };
    Requested { call: ToolCall { call_id: "c".into(), name: name.into(), arguments: "{}".into() }, judgement }
}

fn tool_end(end: End) -> ToolEnd {
    match end {
        End::Done => ToolEnd::Done("done".into()),
        End::Failed => ToolEnd::Failed("failed".into()),
        End::NotDone => ToolEnd::NotDone,
        End::Unknown => ToolEnd::Unknown("unknown".into()),
    }
}

fn refusal(refused: &Refused) -> &'static str {
    match refused {
        Refused::TurnOpen { .. } => "turn-open",
        Refused::ThreadArchived => "archived",
        Refused::TurnNotActive { .. } => "turn-not-active",
        Refused::Precondition { .. } => "precondition",
        Refused::NothingToSteer => "nothing-to-steer",
        Refused::NothingToEdit => "nothing-to-edit",
        Refused::NothingToCompact => "nothing-to-compact",
        Refused::NotQueued { .. } => "not-queued",
        Refused::NotPending { .. } => "not-pending",
        Refused::Expired { .. } => "expired",
        Refused::NotAsked { .. } => "not-asked",
        Refused::NotUncertain { .. } => "not-uncertain",
        Refused::NoCheckpoint { .. } => "no-checkpoint",
        Refused::BudgetExceeded(_) => "budget-exceeded",
        Refused::InboxFull { .. } => "inbox-full",
        Refused::Quota { .. } => "quota",
        Refused::Invalid { .. } => "invalid",
        Refused::TooLarge { .. } => "too-large",
    }
}
