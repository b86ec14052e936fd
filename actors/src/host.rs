//! Hosts one machine: takes what has come, steps, saves, answers, pays what the new state owes.
//!
//! Which machine it is, is a [`Machine`]; what works for it beside the actor is its [`Crew`]. Nothing here knows more
//! of the two.
//!
//! Whatever arrives while an append is under way is taken together in the next step; that is where commands are
//! grouped and deltas coalesce. Nothing is answered before it is durable, and nothing runs that is not.
//!
//! If a save fails the state here may be ahead of the log or not: the actor stops, and the machine is rebuilt from
//! what is stored when it is next needed.

mod machine;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    any::Any,
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
#[cfg(feature = "planted")]
use raddle_domain::planted;
use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{Chunk, StoreError, Write, WriteRefused},
    tenant::Attribution,
    time::UnixMs,
};
use tokio::sync::oneshot;
use tracing::Span;

pub use self::machine::World;
pub(crate) use self::machine::{Crew, Loaded, Machine, Place, Said, Site, Steps};
use crate::{
    batch::Batch,
    fair::Permit,
    handle::{Entry, Error, InFlight, append_error},
    quotas::Coming,
    receipts::Idempotency,
    registry::{Gauge, Ticket},
    store::AppendError,
    supervisor::{Rested, Stopped},
    system::Shared,
};

/// How long a full disk is left alone before what the crew said is offered to it again.
const FULL_PAUSE: Duration = Duration::from_millis(500);
/// Commands' text that one append takes; the rest goes with the next.
const STEP_BYTES: usize = 1024 * 1024;

pub(crate) struct Host<M: Machine> {
    key: ThreadKey,
    shared: Arc<Shared>,
    gauge: Arc<Gauge>,
    machine: M,
    crew: M::Crew,
    pending: VecDeque<Envelope<M>>,
    saving: bool,
    /// Set while a full disk is left alone.
    again: Option<SpawnHandle>,
    linger: Option<SpawnHandle>,
    alarm: Option<(UnixMs, SpawnHandle)>,
    park: Option<oneshot::Sender<()>>,
    /// Whether the log says that work is owed; the state here may be ahead of it.
    owes: bool,
    /// Whether the actor was told to stop.
    dismissed: bool,
}

/// One command on its way, and whoever waits for it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Envelope<M: Machine> {
    pub command: M::Command,
    /// See [`crate::Call`].
    pub if_match: Option<u64>,
    pub idempotency: Option<Idempotency>,
    /// See [`crate::Call`].
    pub by: Option<Arc<Attribution>>,
    /// The world in which it is judged, where that is not this one.
    pub world: Option<Box<World>>,
    pub answer: Answer<M::Reply>,
    /// What asks for it.
    pub cause: Span,
}

/// Whoever waits for a command, and the places it takes until it is answered. Dropped before its step went to the
/// store it says that it did not run; dropped after that, it says nothing, for nobody knows.
pub(crate) struct Answer<R> {
    to: Option<oneshot::Sender<Outcome<R>>>,
    held: Option<Held>,
    submitted: bool,
}

/// What a command in flight holds on to, whether or not its caller still waits.
pub(crate) struct Held {
    /// Keeps the machine loaded.
    pub _ticket: Ticket,
    pub place: Entry,
    /// Its turn among the commands of all tenants.
    pub turn: Option<Permit>,
    /// What it adds to what its tenant has stored.
    pub coming: Option<Coming>,
    pub in_flight: Option<InFlight>,
}

/// How a command ended.
pub(crate) enum Outcome<R> {
    Done {
        reply: R,
        seq: Seq,
    },
    Failed(Error),
    /// The actor stopped before it came to this command: it can be sent again. The places are given back.
    NotRun(Option<Held>),
}

impl<R> Answer<R> {
    /// An answer that somebody waits for.
    pub fn new(held: Held) -> (Self, oneshot::Receiver<Outcome<R>>) {
        let (to, outcome) = oneshot::channel();
        (Self { to: Some(to), held: Some(held), submitted: false }, outcome)
    }

    fn nobody() -> Self {
        Self { to: None, held: None, submitted: false }
    }

    fn send(mut self, outcome: Outcome<R>) {
        if let (Outcome::Done { .. }, Some(held)) = (&outcome, &mut self.held) {
            held.place.durable();
        }
        // Its key and its places are free by the time the caller hears of it.
        self.held = None;
        if let Some(to) = self.to.take() {
            drop(to.send(outcome));
        }
    }
}

impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        if let Some(to) = self.to.take().filter(|_| !self.submitted) {
            drop(to.send(Outcome::NotRun(self.held.take())));
        }
    }
}

impl<M: Machine> Envelope<M> {
    /// One that nobody waits for.
    fn internal(command: M::Command) -> Self {
        let (answer, cause) = (Answer::nobody(), Span::none());
        Self { command, if_match: None, idempotency: None, by: None, world: None, answer, cause }
    }
}

/// A command whose step is being saved.
struct Waiting<M: Machine> {
    answer: Answer<M::Reply>,
    outcome: Result<(M::Reply, Seq), M::Refused>,
}

/// Somebody of the crew has something to say, or it is time to look whether there is anything left to do.
#[derive(Message)]
#[rtype(result = "()")]
struct Spoke;

/// Stop: the machine was taken out of the registry at rest.
#[derive(Message)]
#[rtype(result = "()")]
struct Unload;

/// Save what the crew has said, stop it, stop. What is open continues at the next start.
#[derive(Message)]
#[rtype(result = "()")]
struct Park(oneshot::Sender<()>);

/// The actor of a loaded machine, for those to whom it is the same which machine it is.
pub(crate) trait Hosted: Any + Send + Sync {
    /// Time has passed.
    fn tick(&self);
    /// Its last command has ended while it rested: nobody else would see that it may be unloaded.
    fn released(&self);
    /// See [`Unload`].
    fn unload(&self);
    /// See [`Park`]; `done` hears of it.
    fn park(&self, done: oneshot::Sender<()>);
}

impl<M: Machine> Hosted for Addr<Host<M>> {
    fn tick(&self) {
        self.do_send(Envelope::internal(M::tick()));
    }

    fn released(&self) {
        self.do_send(Spoke);
    }

    fn unload(&self) {
        self.do_send(Unload);
    }

    fn park(&self, done: oneshot::Sender<()>) {
        self.do_send(Park(done));
    }
}

impl dyn Hosted {
    /// The address to which commands for `M` can be sent, if it is such a machine.
    pub fn of<M: Machine>(&self) -> Option<&Addr<Host<M>>> {
        (self as &dyn Any).downcast_ref()
    }
}

impl<M: Machine> Host<M> {
    pub fn new(key: ThreadKey, shared: Arc<Shared>, gauge: Arc<Gauge>, loaded: Loaded<M>) -> Self {
        let Loaded { machine, fence } = loaded;
        let first = match shared.config.retells {
            true => Vec::new(),
            false => machine.first(fence != shared.store.epoch()),
        };
        let owes = machine.owes_since().is_some();
        Self {
            key,
            shared,
            gauge,
            machine,
            crew: M::Crew::default(),
            pending: first.into_iter().map(Envelope::internal).collect(),
            saving: false,
            again: None,
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
        let follows = self.next().is_some();
        for command in self.said(ctx) {
            taken += M::bytes(&command);
            self.step(Envelope::internal(command), &mut steps, &mut waiting);
        }
        while let Some(mut envelope) = self.pending.pop_front_if(|_| taken < STEP_BYTES) {
            taken += M::bytes(&envelope.command);
            let erases = M::erases(&envelope.command);
            if erases
                && envelope.if_match.is_none_or(|expected| expected == self.machine.version())
                && let Some(parting) = self.machine.parting()
            {
                // Saved first, with a step of its own: the log may go when that is known to stand.
                envelope.if_match = None;
                self.pending.push_front(envelope);
                self.step(Envelope::internal(parting), &mut steps, &mut waiting);
                break;
            }
            self.step(envelope, &mut steps, &mut waiting);
            if erases && waiting.last().is_some_and(|last| last.outcome.is_ok()) {
                return self.erase(steps, waiting, ctx);
            }
        }
        if follows && let Some(next) = self.next() {
            self.step(Envelope::internal(next), &mut steps, &mut waiting);
        }
        if waiting.is_empty() {
            return self.idle(ctx);
        }
        self.shared.registry.counters.steps.fetch_add(1, Relaxed);
        if steps.is_empty() {
            self.crew.saved();
            self.machine.saved(&self.shared, self.key);
            answer(waiting);
            self.settle(ctx);
            return;
        }
        self.shared.registry.counters.events.fetch_add(steps.events.len() as u64, Relaxed);
        let append = steps.append(&mut self.machine, self.key, self.shared.store.epoch(), self.shared.clock.now());
        self.save(Write::Append(append), waiting, ctx, |this, ctx| this.settle(ctx));
    }

    fn step(&mut self, envelope: Envelope<M>, steps: &mut Steps, waiting: &mut Vec<Waiting<M>>) {
        let Envelope { command, if_match, idempotency, by, world, answer, cause } = envelope;
        self.crew.told(&command, &cause);
        let world = world.as_deref();
        let now = world.map_or_else(|| self.shared.clock.now(), |world| world.at);
        let site = Site { key: self.key, now, world, shared: &self.shared };
        let deed = M::deed(&command, self.key);
        let outcome = self.machine.step(command, if_match, site).map(|step| {
            steps.documents.extend(deed.map(|deed| deed.document(by.as_deref(), &self.shared)));
            steps.receipts.extend(idempotency.and_then(|known| self.machine.receipt(&step, known, site)));
            let reply = self.machine.keep(step, steps);
            (reply, self.machine.version())
        });
        waiting.push(Waiting { answer, outcome });
    }

    /// Sends `write` to the store and answers when it is durable.
    fn save(
        &mut self,
        write: Write,
        mut waiting: Vec<Waiting<M>>,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        self.saving = true;
        self.gauge.set_pinned(true);
        waiting.iter_mut().for_each(|waiting| waiting.answer.submitted = true);
        #[cfg(feature = "planted")]
        if planted::is(planted::Fault::ReplyEarly) {
            answer(std::mem::take(&mut waiting));
        }
        let saved = self.shared.store_handle.append(write);
        ctx.spawn(saved.into_actor(self).map(move |saved, this, ctx| {
            this.saving = false;
            match saved {
                Ok(()) => {
                    this.crew.saved();
                    this.machine.saved(&this.shared, this.key);
                    answer(waiting);
                    then(this, ctx);
                }
                Err(error) => this.broken(&error, waiting, ctx),
            }
        }));
    }

    /// The state may be ahead of the log or not: whoever needs the machine next gets it rebuilt.
    fn broken(&mut self, error: &AppendError, waiting: Vec<Waiting<M>>, ctx: &mut Context<Self>) {
        tracing::warn!(thread = %self.key, %error, "a step was not saved; the {} is rebuilt from its log", M::WHAT);
        for Waiting { mut answer, .. } in waiting {
            match error {
                // Our state was stale and nothing of the step is stored: it may run on the machine as it really is.
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
            for Envelope { command, answer, cause, .. } in self.pending.drain(..) {
                self.crew.told(&command, &cause);
                answer.send(Outcome::Failed(error.clone().into()));
            }
        }
        if *error == AppendError::Store(StoreError::Full) && self.crew.stays() && self.reload() {
            self.tell_again(ctx);
        } else {
            ctx.stop();
        }
    }

    /// Goes back to what is stored, which a full disk leaves as it is. Whether that was possible.
    fn reload(&mut self) -> bool {
        match self.shared.store.view().and_then(|view| M::load(&*view, self.key)) {
            Ok(Some(Loaded { machine, .. })) => {
                self.machine = machine;
                true
            }
            _ => false,
        }
    }

    /// Tries again to save what the crew said, until there is room.
    fn tell_again(&mut self, ctx: &mut Context<Self>) {
        self.crew.hold();
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
        self.owes = self.machine.owes_since().is_some();
        self.pay(ctx);
        self.shared.registry.set_bytes(&self.gauge, self.machine.held_bytes());
        self.gauge.set_wake_at(self.machine.wake_at());
        if !self.pending.is_empty() || self.next().is_some() || (self.park.is_none() && self.crew.has_more()) {
            self.advance_later(ctx);
        } else {
            // A parked crew's last words were saved with this step; it may not go on for ever.
            self.idle(ctx);
        }
    }

    /// What is to be said to the machine without anybody having asked, unless it is about to leave.
    fn next(&self) -> Option<M::Command> {
        if self.park.is_some() || self.shared.config.retells { None } else { self.machine.next() }
    }

    /// Nothing is to be saved now.
    fn idle(&mut self, ctx: &mut Context<Self>) {
        if self.park.is_some() {
            self.leave(ctx);
        } else {
            // One command is larger than all else that a machine at rest holds.
            self.pending = VecDeque::new();
            let rests = !self.crew.works();
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
        if self.shared.config.retells {
            return;
        }
        let place = Place { key: self.key, shared: &self.shared, ctx };
        self.crew.pay(&self.machine, self.park.is_some(), &place);
        // What is about to be started runs too.
        let running = self.crew.works() || self.next().is_some();
        self.machine.works(running, &self.shared, self.key);
        if self.shared.registry.set_running(&self.gauge, running) && !running {
            self.shared.supervisor.do_send(Rested(self.key));
        }
        let alarm = self.machine.alarm(&self.shared.config);
        // What is due and cannot be saved is not tried all the time.
        let soonest = self.again.map_or(UnixMs(0), |_| self.shared.clock.now().after(FULL_PAUSE));
        self.set_alarm(alarm.map(|at| at.max(soonest)), ctx);
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
                this.pending.push_back(Envelope::internal(M::tick()));
                this.advance(ctx);
            });
            (at, alarm)
        });
    }

    /// What the crew has said, where it is time to save it.
    fn said(&mut self, ctx: &mut Context<Self>) -> Vec<M::Command> {
        let hurry = !self.pending.is_empty() || self.park.is_some();
        let Said { commands, lingers } = self.crew.said(hurry);
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

    fn erase(&mut self, steps: Steps, waiting: Vec<Waiting<M>>, ctx: &mut Context<Self>) {
        let expected = self.machine.seq() - steps.events.len() as Seq;
        if !steps.documents.is_empty() {
            // What is a tenant's outlives the log. Handed over first, so it is stored no later than the log is gone.
            let write = Write::Put { tenant: self.key.tenant, documents: steps.documents };
            drop(self.shared.store_handle.append(write));
        }
        self.machine.erasing();
        let write = Write::Erase { key: self.key, fence: self.shared.store.epoch(), expected };
        let chunk = Chunk { first: expected + 1, events: steps.events };
        let last = Arc::new(Batch::new(self.key, chunk, 0));
        self.save(write, waiting, ctx, |this, ctx| {
            this.shared.inlet.publish(&this.shared.bus, vec![last]);
            // What was sent after the deletion finds nothing.
            this.pending.drain(..).for_each(|envelope| envelope.answer.send(Outcome::Failed(Error::Deleted)));
            this.leave(ctx);
        });
    }

    fn leave(&mut self, ctx: &mut Context<Self>) {
        self.dismissed = true;
        self.crew = M::Crew::default();
        if let Some(parked) = self.park.take() {
            // Nobody waits any more: the deadline of a shutdown may have passed.
            let _ = parked.send(());
        }
        ctx.stop();
    }
}

fn answer<M: Machine>(waiting: Vec<Waiting<M>>) {
    for Waiting { answer, outcome } in waiting {
        answer.send(match outcome {
            Ok((reply, seq)) => Outcome::Done { reply, seq },
            Err(refused) => Outcome::Failed(refused.into()),
        });
    }
}

/// Nothing in it is pinned.
impl<M: Machine> Unpin for Host<M> {}

impl<M: Machine> Actor for Host<M> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.registry.set_bytes(&self.gauge, self.machine.held_bytes());
        self.advance(ctx);
    }
}

impl<M: Machine> Handler<Envelope<M>> for Host<M> {
    type Result = ();

    fn handle(&mut self, envelope: Envelope<M>, ctx: &mut Self::Context) {
        self.gauge.set_pinned(true);
        let first = self.pending.is_empty();
        self.pending.push_back(envelope);
        if first && !self.saving {
            self.advance_later(ctx);
        }
    }
}

impl<M: Machine> Handler<Spoke> for Host<M> {
    type Result = ();

    fn handle(&mut self, _: Spoke, ctx: &mut Self::Context) {
        self.advance(ctx);
    }
}

impl<M: Machine> Handler<Unload> for Host<M> {
    type Result = ();

    fn handle(&mut self, _: Unload, ctx: &mut Self::Context) {
        // An alarm may have rung since the machine was taken out: then it does not go quietly.
        self.dismissed = !self.saving && self.pending.is_empty() && !self.crew.works();
        ctx.stop();
    }
}

impl<M: Machine> Handler<Park> for Host<M> {
    type Result = ();

    fn handle(&mut self, Park(done): Park, ctx: &mut Self::Context) {
        self.park = Some(done);
        self.advance(ctx);
    }
}

impl<M: Machine> Drop for Host<M> {
    /// However the actor ended, also by a panic, its place is free and somebody knows.
    fn drop(&mut self) {
        self.shared.registry.forget(&self.key, &self.gauge);
        if !self.dismissed {
            // A step that was not saved, or not yet known to be, may have begun work.
            let owes = self.owes || self.machine.owes_since().is_some();
            self.shared.supervisor.do_send(Stopped { key: self.key, owes });
        }
    }
}
