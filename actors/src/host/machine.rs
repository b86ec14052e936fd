//! What a machine is to its host: the differences between one that can be hosted and another.

use std::{sync::Arc, time::Duration};

use actix::{AsyncContext, Context};
use raddle_domain::{
    id::{Seq, TenantId, ThreadKey},
    ports::{
        Append, Chunk, Document, Indexed, Part, Receipt, Reverted, SettledTurn, Spent, StoreError, StoredEvent,
        ThreadRow, View,
    },
    time::UnixMs,
};
use tracing::Span;
use uuid::Uuid;

use super::{Host, Spoke};
use crate::{
    admin::Deed,
    config::Config,
    handle::Error,
    receipts::{Idempotency, Recalled},
    system::Shared,
};

/// A state with a log, and the rules by which it changes. The rules are the domain's; here is how they are hosted.
pub(crate) trait Machine: Sized + Send + 'static {
    type Command: Clone + Send + 'static;
    /// What an accepted command did.
    type Step;
    type Reply: Send + 'static;
    type Refused: Into<Error>;
    type Crew: Crew<Self>;

    /// What a caller is told that there is none of.
    const WHAT: &'static str;
    /// What a caller is told that is full.
    const QUEUE: &'static str;

    // ---- the disk --------------------------------------------------------------------------------

    /// Rebuilds a machine from what is stored of it.
    fn load(view: &dyn View, key: ThreadKey) -> Result<Option<Loaded<Self>>, StoreError>;

    /// Adds what a step brings to what is saved. Its reply is left.
    fn keep(&mut self, step: Self::Step, steps: &mut Steps) -> Self::Reply;

    /// The row of the machine as it is now, for an append of everything that was kept. Its `last_seq` is
    /// [`Machine::seq`], and its `fence` the one that is given.
    fn row(&mut self, fence: u64) -> ThreadRow;

    /// The receipt of a step, made before it is kept. One that is a refusal has none: it is judged anew.
    fn receipt(&self, step: &Self::Step, known: Idempotency, site: Site<'_>) -> Option<Receipt>;

    /// The reply that a receipt leads to; `None` when what it is about is gone.
    fn recall(
        view: &dyn View,
        tenant: TenantId,
        receipt: &Receipt,
    ) -> Result<Option<Recalled<Self::Reply>>, StoreError>;

    // ---- steps -----------------------------------------------------------------------------------

    /// Judges a command. An accepted one has changed the machine when the call returns: its step is kept, and saved,
    /// or the machine is forgotten. A refused one has changed nothing.
    fn step(
        &mut self,
        command: Self::Command,
        if_match: Option<u64>,
        site: Site<'_>,
    ) -> Result<Self::Step, Self::Refused>;

    /// What the machine is told first when it was loaded; `restarted` when another process wrote it last. One that
    /// owes something, or waits for a time, must be told something: what it owes is paid after a step.
    fn first(&self, restarted: bool) -> Vec<Self::Command>;

    /// Time has passed.
    fn tick() -> Self::Command;

    /// What it is to be told without anybody having asked: once what that follows from is saved, and behind what has
    /// come meanwhile, if it still follows then.
    fn next(&self) -> Option<Self::Command> {
        None
    }

    /// What the tenant has to account for, if the command is accepted.
    fn deed(_: &Self::Command, _: ThreadKey) -> Option<Deed> {
        None
    }

    /// Bytes of text that a command brings.
    fn bytes(command: &Self::Command) -> usize;

    /// Whether the log is gone with a command.
    fn erases(_: &Self::Command) -> bool {
        false
    }

    /// What it is told before its log goes, if something would be lost with it that its tenant has to account for.
    fn parting(&self) -> Option<Self::Command> {
        None
    }

    /// Whether a command is heard although the server goes down.
    fn ends_work(command: &Self::Command) -> bool;

    // ---- what is counted -------------------------------------------------------------------------

    /// What it was told last is saved.
    fn saved(&mut self, _: &Shared, _: ThreadKey) {}

    /// Its log is gone with what is saved next.
    fn erasing(&mut self) {}

    /// Whether anybody works for it.
    fn works(&mut self, _: bool, _: &Shared, _: ThreadKey) {}

    // ---- the state -------------------------------------------------------------------------------

    /// The newest event.
    fn seq(&self) -> Seq;

    /// What callers know its state by: a precondition names it.
    fn version(&self) -> u64 {
        self.seq()
    }

    /// Since when it has had work that must go on by itself.
    fn owes_since(&self) -> Option<UnixMs>;

    /// When it must be awake, loaded or not.
    fn wake_at(&self) -> Option<UnixMs>;

    /// When it must tick while it is loaded.
    fn alarm(&self, _: &Config) -> Option<UnixMs> {
        self.wake_at()
    }

    /// Whether nothing is under way that may fail again as it failed before.
    fn rests(&self) -> bool;

    /// About how many bytes of memory it holds.
    fn held_bytes(&self) -> usize;
}

/// Whatever works for a machine beside its actor, and speaks to it through outboxes. Dropping it ends all of it.
pub(crate) trait Crew<M: Machine>: Default + 'static {
    /// Starts what the machine demands and stops what it no longer demands. Nothing is started once the actor is
    /// `leaving`.
    fn pay(&mut self, machine: &M, leaving: bool, place: &Place<'_, M>);

    /// Whether anybody works.
    fn works(&self) -> bool;

    /// Takes what was said, where it is time to save it. There is a `hurry` when something is saved anyway, or the
    /// actor leaves.
    fn said(&mut self, hurry: bool) -> Said<M::Command>;

    /// Whether anything was said that is not taken.
    fn has_more(&self) -> bool;

    /// The machine is told this, by whoever that span is of; it may be the crew's own word. It is not saved yet.
    fn told(&mut self, _: &M::Command, _: &Span) {}

    /// What the machine was told is saved.
    fn saved(&mut self) {}

    /// Whether it works on although the disk is full, and what it said is told again until there is room: because it
    /// knows what otherwise nobody would.
    fn stays(&self) -> bool {
        false
    }

    /// What the machine was told is not saved: of that, what may not be lost goes before whatever is said next.
    fn hold(&mut self) {}
}

/// What a crew has said, as commands.
pub(crate) struct Said<C> {
    pub commands: Vec<C>,
    /// How long what was left may wait to be joined by more.
    pub lingers: Option<Duration>,
}

/// A machine as the store holds it, and the fence of its last writer.
pub(crate) struct Loaded<M> {
    pub machine: M,
    pub fence: u64,
}

/// Where and when a step is made.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub key: ThreadKey,
    pub now: UnixMs,
    /// The world in which it is made, if that is another one.
    pub world: Option<&'a World>,
    pub shared: &'a Shared,
}

/// A world that was: what is told again is judged as it was in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    pub at: UnixMs,
    pub draining: bool,
    /// The ids that the rules got, in order.
    pub minted: Vec<Uuid>,
}

/// Where a crew works.
pub(crate) struct Place<'a, M: Machine> {
    pub key: ThreadKey,
    pub shared: &'a Arc<Shared>,
    pub(super) ctx: &'a Context<Host<M>>,
}

impl<M: Machine> Place<'_, M> {
    /// Makes the actor take what an outbox has. At most one such call is under way for each time the outbox is taken.
    pub fn wake(&self) -> Box<dyn Fn() + Send + Sync> {
        let addr = self.ctx.address();
        Box::new(move || addr.do_send(Spoke))
    }
}

/// Steps of one machine that are saved together: what they bring beside the row.
#[derive(Default)]
pub(crate) struct Steps {
    pub events: Vec<StoredEvent>,
    pub settled: Vec<SettledTurn>,
    pub reverted: Vec<Reverted>,
    pub receipts: Vec<Receipt>,
    pub indexed: Vec<Indexed>,
    pub spent: Vec<Spent>,
    pub documents: Vec<Document>,
    pub parts: Vec<Part>,
}

impl Steps {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The append that saves them. `machine` is as it is after them.
    pub fn append<M: Machine>(self, machine: &mut M, key: ThreadKey, fence: u64, now: UnixMs) -> Append {
        let expected = machine.seq() - self.events.len() as Seq;
        let Self { events, settled, reverted, receipts, indexed, spent, documents, parts } = self;
        let append = Append::new(key, expected, now, Chunk { first: expected + 1, events }, machine.row(fence));
        Append { settled, reverted, receipts, indexed, spent, documents, parts, ..append }
    }
}
