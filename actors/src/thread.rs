//! Hosts one thread machine: takes what has come, steps, saves, answers, pays what the new state owes.
//!
//! Whatever arrives while an append is under way is taken together in the next step; that is where commands are
//! grouped and deltas coalesce. Nothing is answered before it is durable, and nothing runs that is not.
//!
//! If a save fails the state here may be ahead of the log or not: the actor stops, and the thread is rebuilt from
//! the log when it is next needed.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use raddle_domain::{
    command::{Command, Refused, Reply, Request, ToolReport},
    id::{Seq, ThreadKey},
    ports::{ActStep, StoreError, ToolEnd, Write, WriteRefused},
    thread::{Cx, Due, ThreadState},
    time::UnixMs,
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    batch::Batch,
    disk::{self, Loaded, SavedRest, Steps},
    engine::{Engine, EngineCall},
    handle::{Error, InFlight, append_error},
    outbox::DELTA_BYTES,
    receipts::{self, Idempotency},
    registry::{Gauge, Ticket},
    store::AppendError,
    supervisor::{Rested, Stopped},
    system::Shared,
    tool::ToolTask,
};

/// How long streamed text may wait to be joined by more, unless there is enough of it. It only matters while no
/// append is under way.
const DELTA_LINGER: Duration = Duration::from_millis(30);
/// How long a full disk is left alone before what tools said is offered to it again.
const FULL_PAUSE: Duration = Duration::from_millis(500);
/// Commands that an actor at rest keeps room for.
const PENDING: usize = 4;
/// Commands' text that one append takes; the rest goes with the next.
const STEP_BYTES: usize = 1024 * 1024;

pub(crate) struct ThreadActor {
    key: ThreadKey,
    shared: Arc<Shared>,
    gauge: Arc<Gauge>,
    state: ThreadState,
    rest: SavedRest,
    pending: VecDeque<Envelope>,
    saving: bool,
    engine: Option<Engine>,
    tools: Vec<ToolTask>,
    /// What tools said in the step that is being saved.
    told: Vec<ToolReport>,
    /// What tools said in a step for which there was no room: it goes before whatever they say next.
    held: Vec<ToolReport>,
    /// Set while a full disk is left alone.
    again: Option<SpawnHandle>,
    /// When streamed text was last saved.
    spoke: Option<Instant>,
    linger: Option<SpawnHandle>,
    alarm: Option<(UnixMs, SpawnHandle)>,
    park: Option<oneshot::Sender<()>>,
    /// Whether the log says that a turn is open; the state here may be ahead of it.
    owes: bool,
    /// Whether the actor was told to stop.
    dismissed: bool,
}

/// One command on its way, and whoever waits for it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Envelope {
    pub request: Request,
    pub idempotency: Option<Idempotency>,
    pub answer: Answer,
}

/// Whoever waits for a command, and the places it takes until it is answered. Dropped before its step went to the
/// store it says that it did not run; dropped after that, it says nothing, for nobody knows.
pub(crate) struct Answer {
    to: Option<oneshot::Sender<Outcome>>,
    held: Option<Held>,
    submitted: bool,
}

/// What a command in flight holds on to, whether or not its caller still waits.
pub(crate) struct Held {
    /// Keeps the thread loaded.
    pub _ticket: Ticket,
    pub place: OwnedSemaphorePermit,
    pub in_flight: Option<InFlight>,
}

/// How a command ended.
pub(crate) enum Outcome {
    Done {
        reply: Reply,
        seq: Seq,
    },
    Failed(Error),
    /// The actor stopped before it came to this command: it can be sent again. The places are given back.
    NotRun(Option<Held>),
}

impl Answer {
    /// An answer that somebody waits for.
    pub fn new(held: Held) -> (Self, oneshot::Receiver<Outcome>) {
        let (to, outcome) = oneshot::channel();
        (Self { to: Some(to), held: Some(held), submitted: false }, outcome)
    }

    fn nobody() -> Self {
        Self { to: None, held: None, submitted: false }
    }

    fn send(mut self, outcome: Outcome) {
        // Its key and its places are free by the time the caller hears of it.
        self.held = None;
        if let Some(to) = self.to.take() {
            drop(to.send(outcome));
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(to) = self.to.take().filter(|_| !self.submitted) {
            drop(to.send(Outcome::NotRun(self.held.take())));
        }
    }
}

/// A command whose step is being saved.
struct Waiting {
    answer: Answer,
    outcome: Result<(Reply, Seq), Refused>,
}

/// The engine has something to say.
#[derive(Message)]
#[rtype(result = "()")]
struct Spoke;

/// Stop: the thread was taken out of the registry at rest.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Unload;

/// Save what the engine has said, stop it, stop. The open turn continues at the next start.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Park(pub oneshot::Sender<()>);

impl ThreadActor {
    pub fn new(key: ThreadKey, shared: Arc<Shared>, gauge: Arc<Gauge>, loaded: Loaded) -> Self {
        let Loaded { state, head, rest } = loaded;
        let mut pending = VecDeque::new();
        let owes = state.owes_since().is_some();
        if state.open().is_some() || owes {
            let restarted = head.fence != shared.store.epoch();
            pending.push_back(Envelope::internal(Command::Recover { restarted }));
            pending.push_back(Envelope::internal(Command::Tick));
        }
        Self {
            key,
            shared,
            gauge,
            state,
            rest,
            pending,
            saving: false,
            engine: None,
            tools: Vec::new(),
            told: Vec::new(),
            held: Vec::new(),
            again: None,
            spoke: None,
            linger: None,
            alarm: None,
            park: None,
            owes,
            dismissed: false,
        }
    }

    /// Steps through everything that has come and saves it as one append.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if self.saving {
            return;
        }
        let mut steps = Steps::default();
        let mut waiting = Vec::new();
        let mut taken = 0;
        // What was intended is saved by now. It is started behind what has come meanwhile, which may end its turn.
        let begins = self.begins();
        let held = std::mem::take(&mut self.held).into_iter().map(Command::ToolReport);
        for command in held.chain(self.said(ctx)) {
            let envelope = Envelope::internal(command);
            taken += envelope.bytes();
            self.step(envelope, &mut steps, &mut waiting);
        }
        while let Some(envelope) = self.pending.pop_front_if(|_| taken < STEP_BYTES) {
            taken += envelope.bytes();
            let erases = envelope.request.command == Command::Delete;
            self.step(envelope, &mut steps, &mut waiting);
            if erases && waiting.last().is_some_and(|last| last.outcome.is_ok()) {
                return self.erase(steps, waiting, ctx);
            }
        }
        if begins && self.begins() {
            self.step(Envelope::internal(Command::Begin), &mut steps, &mut waiting);
        }
        if waiting.is_empty() {
            return self.idle(ctx);
        }
        self.shared.registry.counters.steps.fetch_add(1, Relaxed);
        if steps.is_empty() {
            self.told.clear();
            answer(waiting);
            self.settle(ctx);
            return;
        }
        self.shared.registry.counters.events.fetch_add(steps.events() as u64, Relaxed);
        let (append, rest) =
            steps.append(self.key, self.shared.store.epoch(), &self.state, Some(&self.rest), self.shared.clock.now());
        self.rest = rest;
        self.save(Write::Append(append), waiting, ctx, |this, ctx| this.settle(ctx));
    }

    fn step(&mut self, envelope: Envelope, steps: &mut Steps, waiting: &mut Vec<Waiting>) {
        let Envelope { request, idempotency, answer } = envelope;
        if let Command::ToolReport(report) = &request.command {
            self.told.push(report.clone());
        }
        let now = self.shared.clock.now();
        let cx = Cx {
            now,
            ids: &*self.shared.ids,
            limits: &self.shared.config.limits,
            prices: &self.shared.prices,
            draining: self.shared.draining(),
        };
        let outcome = self.state.step(request, cx).map(|step| {
            steps.add(&step);
            self.shared.registry.counters.turns.note(self.key, &step);
            let seq = self.state.seq();
            steps.receipts.extend(idempotency.map(|known| receipts::write(known, self.key.thread, &step, now)));
            (step.reply, seq)
        });
        waiting.push(Waiting { answer, outcome });
    }

    /// Sends `write` to the store and answers when it is durable.
    fn save(
        &mut self,
        write: Write,
        mut waiting: Vec<Waiting>,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        self.saving = true;
        self.gauge.set_pinned(true);
        waiting.iter_mut().for_each(|waiting| waiting.answer.submitted = true);
        let saved = self.shared.store_handle.append(write);
        ctx.spawn(saved.into_actor(self).map(move |saved, this, ctx| {
            this.saving = false;
            match saved {
                Ok(()) => {
                    this.told.clear();
                    answer(waiting);
                    then(this, ctx);
                }
                Err(error) => this.broken(&error, waiting, ctx),
            }
        }));
    }

    /// The state may be ahead of the log or not: whoever needs the thread next gets it rebuilt.
    fn broken(&mut self, error: &AppendError, waiting: Vec<Waiting>, ctx: &mut Context<Self>) {
        tracing::warn!(thread = %self.key, %error, "a step was not saved; the thread is rebuilt from its log");
        for Waiting { mut answer, .. } in waiting {
            match error {
                // Our state was stale and nothing of the step is stored: it may run on the thread as it really is.
                AppendError::Refused(
                    WriteRefused::Conflict { .. } | WriteRefused::Fenced { .. } | WriteRefused::Repeated,
                ) => {
                    answer.submitted = false;
                }
                error => answer.send(Outcome::Failed(append_error(error.clone()))),
            }
        }
        if let AppendError::Store(error) = error {
            // What has come meanwhile would meet the same; it did not run, and its caller may hear why.
            for Envelope { request, answer, .. } in self.pending.drain(..) {
                match request.command {
                    Command::ToolReport(report) => self.told.push(report),
                    _ => answer.send(Outcome::Failed(error.clone().into())),
                }
            }
        }
        if *error == AppendError::Store(StoreError::Full) && self.keeps_tools() {
            self.tell_again(ctx);
        } else {
            ctx.stop();
        }
    }

    /// Goes back to what is stored without giving up tools that run, or what they said: a full disk stores nothing,
    /// and an outcome that is known must not become one that nobody knows. Whether that was possible.
    fn keeps_tools(&mut self) -> bool {
        if self.engine.is_some() || (self.tools.is_empty() && self.told.is_empty()) {
            return false;
        }
        match self.shared.store.view().and_then(|view| disk::load(&*view, self.key)) {
            Ok(Some(Loaded { state, rest, .. })) => {
                (self.state, self.rest) = (state, rest);
                true
            }
            _ => false,
        }
    }

    /// Tries again to save what tools said, until there is room.
    fn tell_again(&mut self, ctx: &mut Context<Self>) {
        self.held.append(&mut self.told);
        if self.again.is_none() {
            self.again = Some(ctx.run_later(FULL_PAUSE, |this, ctx| {
                this.again = None;
                this.advance(ctx);
            }));
        }
        self.pay(ctx);
    }

    /// After a step: pays what the state owes, and takes what has come meanwhile.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        self.owes = self.state.owes_since().is_some();
        self.pay(ctx);
        self.shared.registry.set_bytes(&self.gauge, self.state.held_bytes() + self.rest.json.len());
        self.gauge.set_wake_at(self.state.owed().wake_at);
        if !self.pending.is_empty() || self.begins() || (self.park.is_none() && self.has_more()) {
            self.advance_later(ctx);
        } else {
            // A parked engine's last words were saved with this step; it may not go on for ever.
            self.idle(ctx);
        }
    }

    /// Whether tools are ready to be started, and may be.
    fn begins(&self) -> bool {
        self.park.is_none() && self.state.owed().begin
    }

    /// Nothing is to be saved now.
    fn idle(&mut self, ctx: &mut Context<Self>) {
        if self.park.is_some() {
            self.leave(ctx);
        } else {
            self.pending.shrink_to(PENDING);
            let rests = self.engine.is_none() && self.tools.is_empty();
            self.gauge.set_pinned(!rests);
            if rests && self.shared.registry.is_over(&self.shared.config) {
                self.shared.supervisor.do_send(Rested(self.key));
            }
        }
    }

    fn advance_later(&mut self, ctx: &mut Context<Self>) {
        // Through the mailbox, so that what waits there joins the step.
        ctx.notify(Spoke);
    }

    /// Starts, or stops, what the state demands, or no longer demands.
    fn pay(&mut self, ctx: &mut Context<Self>) {
        let owed = self.state.owed();
        let runs = self.engine.as_ref().map(|engine| (engine.turn, engine.call));
        if runs != owed.call {
            self.engine = None;
            self.spoke = None;
            if let (Some((turn, call)), None) = (owed.call, &self.park) {
                self.engine = Some(self.start_engine(turn, call, ctx));
            }
        }
        if let Some(engine) = &mut self.engine {
            engine.tell(&owed.verdicts);
        }
        self.tools.retain(|tool| owed.tools.contains(&tool.due));
        if self.park.is_none() {
            for due in &owed.tools {
                if !self.tools.iter().any(|tool| tool.due == *due) {
                    self.tools.extend(self.start_tool(*due, ctx));
                }
            }
        }
        // A turn whose tools are about to be started runs too.
        let running = self.engine.is_some() || !self.tools.is_empty() || (owed.begin && self.park.is_none());
        if self.shared.registry.set_running(&self.gauge, running) && !running {
            self.shared.supervisor.do_send(Rested(self.key));
        }
        let deadline = self.state.deadline(&self.shared.config.limits);
        let alarm = owed.wake_at.into_iter().chain(deadline).min();
        // What is due and cannot be saved is not tried all the time.
        let soonest = self.again.map_or(UnixMs(0), |_| self.shared.clock.now().after(FULL_PAUSE));
        self.set_alarm(alarm.map(|at| at.max(soonest)), ctx);
    }

    fn start_engine(&self, turn: raddle_domain::id::TurnId, call: u32, ctx: &Context<Self>) -> Engine {
        let open = self.state.open();
        let call = EngineCall {
            key: self.key,
            turn,
            call,
            settings: open.map(|open| open.turn().settings.clone()).expect("a call is owed by an open turn"),
            system_prompt: self.state.view().system_prompt.clone(),
            workspace: self.state.view().workspace.clone(),
            policy: self.state.view().policy.clone(),
            items: open.map(|open| open.items().cloned().collect()).unwrap_or_default(),
            tool_bytes: self.shared.config.limits.item_bytes,
            // Only the thread's creation stands before the first turn's start.
            is_first: open.is_some_and(|open| open.started_seq() == 2),
            context_seq: self.state.context_seq(),
            compaction: open.and_then(|open| open.compacting().cloned()),
        };
        let addr = ctx.address();
        // At most one of these is under way for each time the outbox is taken.
        let wake = Box::new(move || addr.do_send(Spoke));
        let Shared { store, models, tools, engines, .. } = &*self.shared;
        Engine::start(call, store.clone(), models.clone(), tools.clone(), engines, wake)
    }

    fn start_tool(&self, due: Due, ctx: &Context<Self>) -> Option<ToolTask> {
        let (invocation, class) = self.state.invocation(self.key, due)?;
        let addr = ctx.address();
        // At most one of these is under way for each time the outbox is taken.
        let wake = Box::new(move || addr.do_send(Spoke));
        let Shared { store, tools, engines, .. } = &*self.shared;
        Some(ToolTask::start(due, class, invocation, store.clone(), tools.clone(), engines, wake))
    }

    fn set_alarm(&mut self, at: Option<UnixMs>, ctx: &mut Context<Self>) {
        if self.alarm.as_ref().map(|(at, _)| *at) == at {
            return;
        }
        if let Some((_, alarm)) = self.alarm.take() {
            ctx.cancel_future(alarm);
        }
        self.alarm = at.map(|at| {
            let wait = Duration::from_millis(at.since(self.shared.clock.now()));
            let alarm = ctx.run_later(wait, |this, ctx| {
                this.alarm = None;
                this.gauge.set_pinned(true);
                this.pending.push_back(Envelope::internal(Command::Tick));
                this.advance(ctx);
            });
            (at, alarm)
        });
    }

    /// What engine and tools have said, where it is time to save it.
    fn said(&mut self, ctx: &mut Context<Self>) -> Vec<Command> {
        let hurry = !self.pending.is_empty() || self.park.is_some();
        let mut commands = Vec::new();
        let mut lingers: Option<Duration> = None;
        let mut is_due = |(bytes, ended): (usize, bool), spoke: Option<Instant>| {
            if bytes == 0 && !ended {
                return false;
            }
            let lingered = spoke.map_or(DELTA_LINGER, |spoke| spoke.elapsed());
            let due = hurry || ended || bytes >= DELTA_BYTES || lingered >= DELTA_LINGER;
            if !due {
                let left = DELTA_LINGER - lingered;
                lingers = Some(lingers.map_or(left, |known| known.min(left)));
            }
            due
        };
        if let Some(engine) = &self.engine
            && is_due(engine.outbox.waiting(), self.spoke)
        {
            self.spoke = Some(Instant::now());
            commands.extend(engine.take().into_iter().map(Command::Report));
        }
        for tool in &mut self.tools {
            if is_due(tool.outbox.waiting(), tool.spoke) {
                commands.extend(tool.take().map(Command::ToolReport));
            }
        }
        if let Some(wait) = lingers
            && self.linger.is_none()
        {
            self.linger = Some(ctx.run_later(wait, |this, ctx| {
                this.linger = None;
                this.advance(ctx);
            }));
        }
        commands
    }

    /// Whether engine or tools have something to save.
    fn has_more(&self) -> bool {
        let mut waiting = self.tools.iter().map(|tool| tool.outbox.waiting());
        let waiting = waiting.by_ref().chain(self.engine.iter().map(|engine| engine.outbox.waiting()));
        waiting.into_iter().any(|(bytes, ended)| bytes > 0 || ended)
    }

    fn erase(&mut self, steps: Steps, waiting: Vec<Waiting>, ctx: &mut Context<Self>) {
        let now = self.shared.clock.now();
        let (append, _) = steps.append(self.key, self.shared.store.epoch(), &self.state, Some(&self.rest), now);
        let write = Write::Erase { key: self.key, fence: append.row.head.fence, expected: append.expected };
        let last = Arc::new(Batch::new(self.key, append.chunk, 0));
        self.save(write, waiting, ctx, |this, ctx| {
            this.shared.inlet.publish(&this.shared.bus, vec![last]);
            // What was sent after the deletion finds no thread.
            this.pending.drain(..).for_each(|envelope| envelope.answer.send(Outcome::Failed(Error::Deleted)));
            this.leave(ctx);
        });
    }

    fn leave(&mut self, ctx: &mut Context<Self>) {
        self.dismissed = true;
        self.engine = None;
        self.tools.clear();
        if let Some(parked) = self.park.take() {
            // Nobody waits any more: the deadline of a shutdown may have passed.
            let _ = parked.send(());
        }
        ctx.stop();
    }
}

fn answer(waiting: Vec<Waiting>) {
    for Waiting { answer, outcome } in waiting {
        answer.send(match outcome {
            Ok((reply, seq)) => Outcome::Done { reply, seq },
            Err(refused) => Outcome::Failed(refused.into()),
        });
    }
}

impl Envelope {
    /// One that nobody waits for.
    pub fn internal(command: Command) -> Self {
        Self { request: command.into(), idempotency: None, answer: Answer::nobody() }
    }

    fn bytes(&self) -> usize {
        match &self.request.command {
            Command::Start(start) | Command::Edit(start) => start.prompt.len(),
            Command::Steer(steer) => steer.prompt.len(),
            Command::EditPrompt(edit) => edit.prompt.as_ref().map_or(0, String::len),
            Command::Answer(answer) => answer.answer.len(),
            Command::Resolve(resolve) => resolve.output.as_ref().map_or(0, String::len),
            Command::Report(report) => {
                let acts = report.acts.iter().map(|act| match &act.step {
                    ActStep::Said(text) | ActStep::Ended { output: text, .. } => text.len(),
                    ActStep::Announced | ActStep::Asks(_) | ActStep::Forbidden { .. } | ActStep::Started => 0,
                });
                report.text.iter().map(|(_, text)| text.len()).chain(acts).sum()
            }
            Command::ToolReport(ToolReport { said, end, .. }) => {
                let end = end.as_ref().map_or(0, |end| match end {
                    ToolEnd::Done(text) | ToolEnd::Failed(text) | ToolEnd::Unknown(text) => text.len(),
                    ToolEnd::NotDone => 0,
                });
                said.len() + end
            }
            _ => 0,
        }
    }
}

impl Actor for ThreadActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.advance(ctx);
    }
}

impl Handler<Envelope> for ThreadActor {
    type Result = ();

    fn handle(&mut self, envelope: Envelope, ctx: &mut Self::Context) {
        self.gauge.set_pinned(true);
        let first = self.pending.is_empty();
        self.pending.push_back(envelope);
        if first && !self.saving {
            self.advance_later(ctx);
        }
    }
}

impl Handler<Spoke> for ThreadActor {
    type Result = ();

    fn handle(&mut self, _: Spoke, ctx: &mut Self::Context) {
        self.advance(ctx);
    }
}

impl Handler<Unload> for ThreadActor {
    type Result = ();

    fn handle(&mut self, _: Unload, ctx: &mut Self::Context) {
        // An alarm may have rung since the thread was taken out: then it does not go quietly.
        let works = self.engine.is_some() || !self.tools.is_empty();
        self.dismissed = !self.saving && self.pending.is_empty() && !works;
        ctx.stop();
    }
}

impl Handler<Park> for ThreadActor {
    type Result = ();

    fn handle(&mut self, Park(done): Park, ctx: &mut Self::Context) {
        self.park = Some(done);
        self.advance(ctx);
    }
}

impl Drop for ThreadActor {
    /// However the actor ended, also by a panic, its place is free and somebody knows.
    fn drop(&mut self) {
        self.shared.registry.forget(&self.key, &self.gauge);
        if !self.dismissed {
            // A step that was not saved, or not yet known to be, may have opened a turn.
            let owes = self.owes || self.state.owes_since().is_some();
            self.shared.supervisor.do_send(Stopped { key: self.key, owes });
        }
    }
}
