//! What hosts hold: every verb of the runtime as an async function, callable from any tokio program.
//!
//! Admission is here, before any mailbox: a command takes a place among all that are under way (see [`crate::admission`])
//! and among those of its thread, or is told to come back. Once sent it runs to its end, whether or not its caller still waits; the
//! outcome is found again by its idempotency key.

use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use actix::dev::SendError;
use dashmap::DashSet;
use raddle_domain::{
    command::{Command, Interrupt, NewThread, Refused, Reply, StartTurn, ThreadPatch},
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    job::JobRefused,
    ports::{Append, Fork, Models, Receipt, StoreError, View, Write, WriteRefused},
    record::{Admission, Approval, ApprovalStatus, Effect, InterruptReceipt, Question, Thread, Turn},
    tenant::{Attribution, TenantRefused},
    thread::{Cx, ThreadState},
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::{
    admission::{Busy, Place},
    batch::Batch,
    bus::{Barrier, Committed, Subscribe, SubscribeTenant, Watch},
    config::{Config, Ports, StartError},
    fair::Permit,
    hooks::{HookFigures, HookStatus},
    host::{Answer, Envelope, Held, Loaded, Machine, Outcome, Site, Steps},
    jobs,
    places::{Hold, NoPlace, Places},
    receipts::{Idempotency, Recalled},
    registry::{Health, Ticket},
    runs::{journal, worker},
    simulation::Scheduler,
    store::AppendError,
    subscription::{
        Follow, Next, OfTenant, OfThread, Subscription, TenantCursor, TenantPage, TenantSubscription, Wanted,
        tenant_now, tenant_page,
    },
    supervisor::{Adopt, Load},
    system::{self, Shared, Threads},
    tape::{Noted, Telling},
    thread::ThreadMachine,
    times::Figures,
};

/// Bytes of events in one page of a tenant's.
const FEED_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// What is full when no command is let in.
const COMMANDS: &str = "the command queue";

/// Commands that a tenant may have under way without being taken for a reason why there is a queue.
const QUIET: u64 = 4;

/// How long a shutdown waits for what should take no time, once its deadline has passed.
pub(crate) const PARKING: Duration = Duration::from_secs(10);

/// The runtime: cheap to clone, `Send`, and gone when [`Runtime::shutdown`] was awaited or the last clone dropped.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

/// A way back to a runtime that does not keep it; see [`Runtime::downgrade`].
#[derive(Clone)]
pub struct WeakRuntime(Weak<Inner>);

impl WeakRuntime {
    /// The runtime, while somebody holds it.
    pub fn get(&self) -> Result<Runtime, Error> {
        self.0.upgrade().map(|inner| Runtime { inner }).ok_or(Error::Draining)
    }
}

struct Inner {
    shared: Arc<Shared>,
    commands: Arc<Places>,
    reads: Arc<Places>,
    subscribers: Arc<Places>,
    in_flight: Arc<DashSet<(TenantId, [u8; 32])>>,
    threads: std::sync::Mutex<Option<Threads>>,
}

/// A place among the commands that are under way, of all and of those that are the tenant's.
pub(crate) struct Entry {
    place: Place,
    _hold: Hold,
}

impl Entry {
    /// The reply is durable: how long it took says how busy the server is.
    pub const fn durable(&mut self) {
        self.place.durable();
    }
}

/// What every verb may carry beside its own fields.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// For verbs that make something. Patching and deleting can be repeated as they are, and take no notice of it.
    pub idempotency: Option<Idempotency>,
    /// Refuse unless the thread's log ends here, or the run has this revision.
    pub if_match: Option<Seq>,
    /// Who asks: what has to be accounted for stands in the tenant's audit log under this name.
    pub by: Option<Arc<Attribution>>,
}

/// An accepted and durable command.
#[derive(Debug, Clone, PartialEq)]
pub struct Done<T> {
    pub value: T,
    /// What a precondition names the state by that the step led to: where the thread's log ended, the run's revision.
    pub seq: Seq,
    /// Whether this is the stored reply of an earlier, equal request.
    pub replayed: bool,
}

/// What a start became.
#[derive(Debug, Clone, PartialEq)]
pub enum Started {
    Turn(Box<Turn>),
    Queued { admission: Box<Admission>, active_turn: TurnId },
}

/// Why a verb or a read did not succeed. The sentences are for callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(Refused),
    #[error("no such {0}")]
    NotFound(&'static str),
    #[error("the thread was deleted")]
    Deleted,
    #[error("a request with this idempotency key is still in flight")]
    InFlight,
    #[error("this idempotency key was used with another request")]
    IdempotencyMismatch,
    /// A bound of the server is reached; try again after the given time.
    #[error("the server is busy: {what} is full")]
    Busy { what: &'static str, retry_after: Duration },
    #[error("the prompt became a turn already")]
    AlreadyPromoted(Box<Admission>),
    #[error("the approval {}", over(.0))]
    AlreadyDecided(Box<Approval>),
    #[error("the question is answered already")]
    AlreadyAnswered(Box<Question>),
    #[error("{}", if .0.closed { "the turn of the effect has ended: nothing can be done about it here any more" } else { "the effect is not uncertain any more" })]
    AlreadyResolved(Box<Effect>),
    #[error(transparent)]
    Job(#[from] JobRefused),
    #[error(transparent)]
    Run(#[from] raddle_domain::run::Refused),
    #[error(transparent)]
    Tenant(#[from] TenantRefused),
    /// A bound of the caller's tenant is reached; `limit` is the quota's name.
    #[error("the tenant's quota of `{limit}` is used up: the limit is {max}")]
    Quota { limit: &'static str, max: u64 },
    /// Nothing is stored of the tenant, and nothing of it is there.
    #[error("the tenant cannot be used: {0}")]
    TenantClosed(&'static str),
    #[error("the tenant has something already; an import needs an empty one")]
    TenantNotEmpty,
    /// What was to be imported is not what was exported.
    #[error("line {line}: {why}")]
    BadExport { line: u64, why: String },
    /// The caller's tenant asks more often than it may.
    #[error("the tenant makes more requests than its {limit} in a second")]
    RateLimited { limit: u32, retry_after: Duration },
    #[error("the server is shutting down")]
    Draining,
    /// One thread's records cannot be used; the sentence names the record.
    #[error("the thread is unavailable: {0}")]
    ThreadUnavailable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect of ours.
    #[error("internal error")]
    Internal(String),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Quota { limit, max } => Self::Quota { limit, max },
            refused => Self::Refused(refused),
        }
    }
}

/// Why nothing is left to decide.
fn over(approval: &Approval) -> &'static str {
    match approval.status {
        ApprovalStatus::Expired => "expired: nobody decided it in time",
        ApprovalStatus::Cancelled => "was cancelled: its turn ended before anybody decided",
        _ => "is decided already",
    }
}

/// An idempotency key that is in use until this is dropped.
pub(crate) struct InFlight {
    keys: Arc<DashSet<(TenantId, [u8; 32])>>,
    key: (TenantId, [u8; 32]),
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.keys.remove(&self.key);
    }
}

/// What an idempotency key leads to: a reply of before, or the right to go ahead.
enum Known<R> {
    Replay(Recalled<R>),
    New(Option<InFlight>),
}

/// A machine that nobody knows yet, and its first step.
pub(crate) struct Begun<M: Machine> {
    pub key: ThreadKey,
    pub machine: M,
    pub step: M::Step,
    pub fork: Option<Fork>,
    /// It has a past, of which bills and records by id are somebody else's.
    pub given: bool,
}

impl Runtime {
    /// Opens the store, starts the actor threads, and continues every turn that was open. Call it in any tokio
    /// runtime; the actors have threads of their own.
    pub async fn start(config: Config, ports: Ports) -> Result<Self, StartError> {
        let (threads, shared) = Threads::start(config, ports).await?;
        Ok(Self::begun(shared, Some(threads)))
    }

    /// The same on the current thread, inside a `LocalSet`. `ports.store` is there.
    pub(crate) fn start_here(config: Config, ports: Ports, scheduler: Arc<Scheduler>) -> Result<Self, StartError> {
        Ok(Self::begun(system::here(config, ports, scheduler)?, None))
    }

    fn begun(shared: Arc<Shared>, threads: Option<Threads>) -> Self {
        let Config { commands_in_flight, reads_in_flight, subscribers, tenant_share_percent, fair, .. } = shared.config;
        let share = if fair { tenant_share_percent } else { 100 };
        let places = |all| Places::new(all, share, shared.tenants.clone());
        let (commands, reads, subscribers) = (places(commands_in_flight), places(reads_in_flight), places(subscribers));
        let runtime = Self {
            inner: Arc::new(Inner {
                shared,
                commands,
                reads,
                subscribers,
                in_flight: Arc::default(),
                threads: std::sync::Mutex::new(threads),
            }),
        };
        let (shared, way) = (runtime.shared().clone(), runtime.downgrade());
        drop(shared.way_to_runs.set(way.clone()));
        if shared.config.retells {
            return runtime;
        }
        shared.tasks.spawn(worker::recover(shared.clone(), way.clone()));
        shared.jobs.do_send(jobs::Begin(shared.clone(), way.clone()));
        shared.tasks.spawn(async move {
            if let Ok(runtime) = way.get() {
                runtime.finish_closing().await;
            }
        });
        runtime
    }

    /// A way back to the runtime that does not keep it.
    pub fn downgrade(&self) -> WeakRuntime {
        WeakRuntime(Arc::downgrade(&self.inner))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn stopping(&self) -> CancellationToken {
        self.shared().stopping.clone()
    }

    /// The models that are configured.
    pub fn models(&self) -> &Arc<dyn Models> {
        &self.shared().models
    }

    /// The bounds it keeps to.
    pub fn config(&self) -> &Config {
        &self.shared().config
    }

    // ---- verbs -----------------------------------------------------------------------------------

    /// Makes a thread.
    pub async fn create_thread(&self, tenant: TenantId, new: NewThread, call: Call) -> Result<Done<Thread>, Error> {
        let begin = async {
            let shared = self.shared();
            let limits = &shared.config.limits;
            let thread = ThreadId::new(shared.ids.mint());
            let ids = Noted::of(shared.ids.clone());
            let cx = Cx {
                now: shared.clock.now(),
                ids: &ids,
                limits,
                prices: &shared.prices,
                draining: false,
                room: &raddle_domain::ports::Boundless,
            };
            let telling = shared.tape.wants(ThreadKey { tenant, thread }).then(|| Telling::to_be(&new));
            let (state, step) = ThreadState::create(thread, new, cx)?;
            let mut begun = Begun::thread(tenant, state, step, None);
            if let Some(telling) = telling {
                begun.machine.unsaved.note(begun.key, telling, (cx.now, cx.draining), ids.minted(), Ok(&begun.step));
            }
            Ok(begun)
        };
        self.make(tenant, call, begin, thread_of).await
    }

    /// Stores the first step of a machine that nobody knows yet, so that no actor is needed to keep its order.
    pub(crate) async fn make<M: Machine, T>(
        &self,
        tenant: TenantId,
        call: Call,
        begin: impl Future<Output = Result<Begun<M>, Error>>,
        expect: impl Fn(M::Reply) -> Result<T, Error>,
    ) -> Result<Done<T>, Error> {
        let mut place = self.admit(tenant)?;
        let in_flight = match self.known::<M>(tenant, call.idempotency).await? {
            Known::Replay(stored) => return replay(stored, expect),
            Known::New(in_flight) => in_flight,
        };
        let turn = self.turn_to_work(tenant).await?;
        let Begun { key, mut machine, step, fork, given } = begin.await?;
        let room = async {
            let coming = self.room_to_store(tenant, machine.held_bytes()).await?;
            Ok((coming, if key.is_run() { None } else { Some(self.room_for_thread(tenant)?) }))
        };
        let (coming, counted) = match room.await {
            Ok(room) => room,
            // It may be full of what this very request made, in a commit that failed and was stored all the same.
            Err(full) => return self.answered::<M, _>(tenant, call.idempotency, expect, full).await,
        };
        let shared = self.shared().clone();
        let (now, fence) = (shared.clock.now(), shared.store.epoch());
        let mut steps = Steps::default();
        let site = Site { key, now, world: None, shared: &shared };
        steps.receipts.extend(call.idempotency.and_then(|known| machine.receipt(&step, known, site)));
        let reply = machine.keep(step, &mut steps);
        if fork.is_some() {
            // A turn that is written again was its parent's.
            steps.spent.clear();
        }
        if given {
            steps = Steps { spent: Vec::new(), indexed: Vec::new(), documents: Vec::new(), ..steps };
        }
        let seq = machine.version();
        let append = steps.append(&mut machine, key, fence, now);
        let mut loaded = Loaded { machine, fence };
        let saved = shared.store_handle.append(Write::Append(Append { fork, ..append }));
        // In a task of its own, so that the key stays taken until the store has answered, whoever still waits.
        let supervisor = shared.supervisor.clone();
        let tasks = shared.tasks.clone();
        let saved = tasks.spawn(async move {
            let saved = saved.await;
            match (&saved, counted) {
                (Ok(()), Some(counted)) => counted.keep(),
                (Err(AppendError::Refused(_) | AppendError::Store(StoreError::Full)), Some(counted)) => counted.undo(),
                // Whether it is stored is not known: then nor is the count, once this is dropped.
                (_, _) => {}
            }
            if saved.is_ok() {
                loaded.machine.saved(&shared, key);
                // Before the reply, so that a command that follows it finds the machine.
                supervisor.do_send(Adopt { key, loaded });
                place.durable();
            }
            drop((place, turn, coming, in_flight));
            saved
        });
        match saved.await {
            Ok(Ok(())) => Ok(Done { value: expect(reply)?, seq, replayed: false }),
            Ok(Err(AppendError::Refused(WriteRefused::Repeated))) => {
                self.answered::<M, _>(tenant, call.idempotency, expect, Error::InFlight).await
            }
            // Its parent was deleted meanwhile.
            Ok(Err(AppendError::Refused(WriteRefused::Conflict { .. }))) if fork.is_some() => {
                Err(Error::NotFound(M::WHAT))
            }
            Ok(Err(error)) => Err(append_error(error)),
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
        }
    }

    /// Changes settings of a thread.
    pub async fn patch_thread(&self, key: ThreadKey, patch: ThreadPatch, call: Call) -> Result<Done<Thread>, Error> {
        let call = Call { idempotency: None, ..call };
        self.command::<ThreadMachine, _>(key, Command::Patch(patch), call, thread_of).await
    }

    /// Removes a thread with everything that was ever stored of it.
    pub async fn delete_thread(&self, key: ThreadKey, call: Call) -> Result<Done<()>, Error> {
        let call = Call { idempotency: None, ..call };
        let if_match = call.if_match;
        let deleted = self.command::<ThreadMachine, _>(key, Command::Delete, call, |reply| match reply {
            Reply::Deleted => Ok(()),
            other => Err(unexpected(&other)),
        });
        match deleted.await {
            // A thread that cannot be loaded has no actor to ask; it can still be removed.
            Err(Error::ThreadUnavailable(_)) if if_match.is_none() => self.purge(key).await,
            deleted => deleted,
        }
    }

    /// Removes what there is of a thread whose records cannot be used.
    pub(crate) async fn purge(&self, key: ThreadKey) -> Result<Done<()>, Error> {
        let fence = self.shared().store.epoch();
        let write = self.read(move |view| {
            Ok(match view.row(key) {
                Ok(None) | Err(StoreError::Corrupt(_)) => Write::Purge { key },
                Ok(Some(row)) => Write::Erase { key, fence, expected: row.head.last_seq },
                Err(error) => return Err(error),
            })
        });
        let write = write.await?;
        self.shared().store_handle.append(write).await.map_err(append_error)?;
        self.shared().tenants.account(key.tenant).tally.doubt();
        tracing::warn!(thread = %key, "a damaged log was removed");
        Ok(Done { value: (), seq: 0, replayed: false })
    }

    /// Starts a turn, or queues its prompt behind the open one.
    pub async fn start_turn(&self, key: ThreadKey, start: StartTurn, call: Call) -> Result<Done<Started>, Error> {
        let began = Instant::now();
        let start = match self.routed(key.tenant, start).await {
            Ok(start) => start,
            // What was accepted before stays so, whatever became of the rule.
            Err(error) => match self.recall::<ThreadMachine>(key.tenant, call.idempotency).await? {
                Some(recalled) => return replay(recalled, started),
                None => return Err(error),
            },
        };
        self.affordable(key.tenant, call.idempotency).await?;
        let done = self.command::<ThreadMachine, _>(key, Command::Start(start), call, started).await;
        if let Ok(Done { value: Started::Turn(_), replayed: false, .. }) = &done {
            self.shared().registry.counters.turn_start.took(began.elapsed());
        }
        done
    }

    /// Ends the open turn, if it is the one that is named.
    pub async fn interrupt(
        &self,
        key: ThreadKey,
        interrupt: Interrupt,
        call: Call,
    ) -> Result<Done<InterruptReceipt>, Error> {
        let turn = interrupt.turn;
        let interrupted =
            self.command::<ThreadMachine, _>(key, Command::Interrupt(interrupt), call, |reply| match reply {
                Reply::Interrupted(receipt) => Ok(*receipt),
                other => Err(unexpected(&other)),
            });
        match interrupted.await {
            // A turn that never was is told apart from one that is over.
            Err(Error::Refused(refused @ Refused::TurnNotActive { .. })) => {
                self.turn(key, turn).await?;
                Err(refused.into())
            }
            done => done,
        }
    }

    /// Sends a command to a machine, loaded or not, and waits for its outcome.
    pub(crate) async fn command<M: Machine, T>(
        &self,
        key: ThreadKey,
        command: M::Command,
        call: Call,
        expect: impl Fn(M::Reply) -> Result<T, Error>,
    ) -> Result<Done<T>, Error> {
        let Call { idempotency, if_match, by } = call;
        let (ends_work, frees) = (M::ends_work(&command), M::erases(&command));
        let mut place = if ends_work { self.admit_to_end_work(key.tenant)? } else { self.admit(key.tenant)? };
        let mut in_flight = match self.known::<M>(key.tenant, call.idempotency).await? {
            Known::Replay(stored) => return replay(stored, expect),
            Known::New(in_flight) => in_flight,
        };
        let mut coming = match ends_work || frees {
            true => None,
            false => self.room_to_store(key.tenant, M::bytes(&command)).await?,
        };
        let mut turn = if ends_work { None } else { self.turn_to_work(key.tenant).await? };
        let mut tried = false;
        // A machine may stop between being found and being reached; then it is loaded anew. Not for ever: one that
        // stops each time has something that a caller should hear of.
        for _ in 0..4 {
            // What stopped it may have stored the command all the same.
            if std::mem::replace(&mut tried, true)
                && let Some(recalled) = self.recall::<M>(key.tenant, idempotency).await?
            {
                return replay(recalled, expect);
            }
            let ticket = self.ticket::<M>(key, !ends_work && !frees).await?;
            let addr = ticket.actor().of::<M>().ok_or(Error::NotFound(M::WHAT))?.clone();
            let (answer, outcome) = Answer::new(Held { _ticket: ticket, place, turn, coming, in_flight });
            let (by, cause) = (by.clone(), Span::current());
            let command = command.clone();
            let envelope = Envelope { command, if_match, idempotency, by, world: None, answer, cause };
            // Closed or full: the envelope comes back, or is dropped; either way it says that it did not run.
            if let Err(SendError::Closed(unsent) | SendError::Full(unsent)) = addr.try_send(envelope) {
                drop(unsent);
            }
            match outcome.await {
                Ok(Outcome::Done { reply, seq }) => return Ok(Done { value: expect(reply)?, seq, replayed: false }),
                Ok(Outcome::Failed(error)) => {
                    // A commit that failed and was stored all the same may have come to light only after the key was
                    // looked for: then what stands in the way is this very command.
                    // Where nobody can tell, the refusal is none.
                    return match self.recall::<M>(key.tenant, idempotency).await? {
                        Some(recalled) => replay(recalled, expect),
                        None => Err(error),
                    };
                }
                Ok(Outcome::NotRun(held)) => {
                    let Some(held) = held else { break };
                    (place, turn, coming, in_flight) = (held.place, held.turn, held.coming, held.in_flight);
                    self.shared().registry.forget_closed(&key, &addr);
                    tokio::task::yield_now().await;
                }
                Err(_) => return Err(Error::Internal(format!("a {} failed while it ran a command", M::WHAT))),
            }
        }
        Err(StoreError::Unavailable(format!("the {} stops as soon as it is loaded", M::WHAT)).into())
    }

    /// A place among the commands that are under way, unless the server is going down.
    pub(crate) fn admit(&self, tenant: TenantId) -> Result<Entry, Error> {
        if self.shared().draining() {
            return Err(Error::Draining);
        }
        let hold = self.place(tenant)?;
        let place = match self.is_quiet(tenant, 1) {
            true => self.shared().gates.admission.enter_to_end_work(),
            false => self.shared().gates.admission.enter(),
        };
        Ok(Entry { place: place.map_err(|Busy| self.busy(COMMANDS))?, _hold: hold })
    }

    /// The same for a command that ends work, which is let in also when others are not.
    pub(crate) fn admit_to_end_work(&self, tenant: TenantId) -> Result<Entry, Error> {
        let hold = self.place(tenant)?;
        let place = self.shared().gates.admission.enter_to_end_work().map_err(|Busy| self.busy(COMMANDS))?;
        Ok(Entry { place, _hold: hold })
    }

    /// Whether a command of the tenant that makes work would be let in now. For those to whom it is cheaper to be refused
    /// before they have read what is asked; whoever is not refused here may still be later.
    pub fn has_room(&self, tenant: TenantId) -> Result<(), Error> {
        if self.is_quiet(tenant, 0) {
            return Ok(());
        }
        self.shared().gates.admission.look().map_err(|Busy| self.busy(COMMANDS))
    }

    /// Whether a tenant has so little under way, of which `own` is the asker's, that the queue that stands is not of its
    /// making. Somebody who floods is shed; whoever shares the server with him is not.
    fn is_quiet(&self, tenant: TenantId, own: u64) -> bool {
        self.shared().tenants.are_several() && self.inner.commands.taken_by(tenant) <= QUIET + own
    }

    fn place(&self, tenant: TenantId) -> Result<Hold, Error> {
        let whats = [COMMANDS, "the tenant's share of the command queue"];
        self.inner.commands.take(Some(tenant), None).map_err(|why| self.no_place(why, whats))
    }

    /// Waits for a turn among the commands of all tenants; one that has the server to itself needs none.
    pub(crate) async fn turn_to_work(&self, tenant: TenantId) -> Result<Option<Permit>, Error> {
        let shared = self.shared();
        if !shared.config.fair || !shared.tenants.are_several() {
            return Ok(None);
        }
        let turn = shared.gates.commands.door(&shared.tenants.account(tenant)).enter(1).await;
        if shared.draining() { Err(Error::Draining) } else { Ok(Some(turn)) }
    }

    /// A place among those who watch.
    pub(crate) fn place_to_watch(&self, tenant: impl Into<Option<TenantId>>) -> Result<Hold, Error> {
        let (tenant, tenants) = (tenant.into(), &self.shared().tenants);
        let quota = tenant.and_then(|tenant| tenants.quotas(&tenants.account(tenant)).subscribers);
        let whats = ["the list of watchers", "the tenant's share of the list of watchers"];
        self.inner.subscribers.take(tenant, quota).map_err(|why| self.no_place(why, whats))
    }

    /// Watchers of a tenant.
    pub(crate) fn watchers_of(&self, tenant: TenantId) -> u64 {
        self.inner.subscribers.taken_by(tenant)
    }

    fn no_place(&self, why: NoPlace, [all, share]: [&'static str; 2]) -> Error {
        match why {
            NoPlace::Full => self.busy(all),
            NoPlace::Share => self.busy(share),
            NoPlace::Quota(max) => self.over("subscribers", max),
        }
    }

    fn busy(&self, what: &'static str) -> Error {
        *self.shared().registry.counters.busy.entry(what).or_default() += 1;
        Error::Busy { what, retry_after: Duration::from_secs(1) }
    }

    async fn known<M: Machine>(&self, tenant: TenantId, call: Option<Idempotency>) -> Result<Known<M::Reply>, Error> {
        let in_flight = self.in_flight(tenant, call)?;
        Ok(match self.recall::<M>(tenant, call).await? {
            None => Known::New(in_flight),
            Some(recalled) => Known::Replay(recalled),
        })
    }

    /// The right to be the only one who uses a key, while it is held.
    pub(crate) fn in_flight(&self, tenant: TenantId, call: Option<Idempotency>) -> Result<Option<InFlight>, Error> {
        let Some(Idempotency { key, .. }) = call else { return Ok(None) };
        if !self.inner.in_flight.insert((tenant, key)) {
            return Err(Error::InFlight);
        }
        Ok(Some(InFlight { keys: self.inner.in_flight.clone(), key: (tenant, key) }))
    }

    /// The stored reply of an equal request, if there is one.
    pub(crate) async fn recall<M: Machine>(
        &self,
        tenant: TenantId,
        call: Option<Idempotency>,
    ) -> Result<Option<Recalled<M::Reply>>, Error> {
        self.recall_as(tenant, call, move |view, receipt| M::recall(view, tenant, receipt)).await
    }

    /// The reply that an equal request has had meanwhile, or else this refusal.
    async fn answered<M: Machine, T>(
        &self,
        tenant: TenantId,
        call: Option<Idempotency>,
        expect: impl Fn(M::Reply) -> Result<T, Error>,
        refused: Error,
    ) -> Result<Done<T>, Error> {
        match self.recall::<M>(tenant, call).await? {
            Some(recalled) => replay(recalled, expect),
            None => Err(refused),
        }
    }

    /// What `read` makes of the receipt of an equal request, if there is one.
    pub(crate) async fn recall_as<T: Send + 'static>(
        &self,
        tenant: TenantId,
        call: Option<Idempotency>,
        read: impl FnOnce(&dyn View, &Receipt) -> Result<Option<T>, StoreError> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let Some(Idempotency { key, request }) = call else { return Ok(None) };
        let now = self.shared().clock.now();
        let read = move |view: &dyn View| {
            let Some(receipt) = view.receipt(tenant, &key, now)? else { return Ok(Ok(None)) };
            if receipt.request != request {
                return Ok(Err(Error::IdempotencyMismatch));
            }
            Ok(read(view, &receipt)?.map(Some).ok_or(Error::Deleted))
        };
        self.read_of(tenant, read).await?
    }

    /// `asked`: whether the caller may be told that its tenant has as much loaded as it may.
    pub(crate) async fn ticket<M: Machine>(&self, key: ThreadKey, asked: bool) -> Result<Ticket, Error> {
        let ticket = match self.shared().registry.ticket(&key) {
            Some(ticket) => ticket,
            None => {
                let (reply, loaded) = oneshot::channel();
                self.shared().supervisor.do_send(Load { key, asked, reply });
                loaded.await.map_err(|_| Error::Draining)??
            }
        };
        if ticket.count() > self.shared().config.commands_per_thread {
            return Err(self.busy(M::QUEUE));
        }
        Ok(ticket)
    }

    // ---- watching --------------------------------------------------------------------------------

    /// Watches a thread from right after `after`. An `after` beyond the head is refused as invalid.
    pub async fn subscribe(&self, key: ThreadKey, after: Seq) -> Result<Subscription, Error> {
        let place = self.place_to_watch(key.tenant)?;
        let watch = self.watch(key).await?;
        let head = self.head(key).await?;
        if after > head {
            return Err(beyond(after, head));
        }
        Ok(Subscription(Follow::new(self.clone(), OfThread(key), after, watch, place)))
    }

    pub(crate) async fn watch(&self, key: ThreadKey) -> Result<Watch<Arc<Batch>>, Error> {
        let (reply, watch) = oneshot::channel();
        self.shared().bus.do_send(Subscribe { key, reply });
        watch.await.map_err(|_| Error::Draining)
    }

    /// Watches all threads of a tenant, or those among `threads`, from right after `after`; from now on without it.
    /// A cursor that the tenant's feed has not reached is refused as invalid. Threads that there are not say nothing.
    pub async fn subscribe_tenant(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        threads: Option<HashSet<ThreadId>>,
    ) -> Result<TenantSubscription, Error> {
        self.subscribe_feed(tenant, after, threads.into()).await
    }

    pub(crate) async fn subscribe_feed(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        wanted: Wanted,
    ) -> Result<TenantSubscription, Error> {
        let place = self.place_to_watch(tenant)?;
        let watch = self.watch_tenant(tenant).await?;
        let after = self.place_in_feed(tenant, after).await?;
        let source = OfTenant { tenant, wanted };
        Ok(TenantSubscription(Follow::new(self.clone(), source, after, watch, place)))
    }

    /// Stored events of a tenant after `after`, at most `limit`, and where to go on. Without a cursor there are none,
    /// and it goes on from now. A page may be short and have more behind it.
    pub async fn tenant_events(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        threads: Option<HashSet<ThreadId>>,
        limit: usize,
    ) -> Result<TenantPage, Error> {
        self.feed_events(tenant, after, threads.into(), limit).await
    }

    pub(crate) async fn feed_events(
        &self,
        tenant: TenantId,
        after: Option<TenantCursor>,
        wanted: Wanted,
        limit: usize,
    ) -> Result<TenantPage, Error> {
        let place = self.place_in_feed(tenant, after).await?;
        self.feed_page(OfTenant { tenant, wanted }, place, limit, FEED_PAGE_BYTES).await
    }

    /// The place that a caller names, if the feed has reached it; now if they name none.
    async fn place_in_feed(&self, tenant: TenantId, after: Option<TenantCursor>) -> Result<TenantCursor, Error> {
        let Some(after) = after else { return self.read_of(tenant, move |view| tenant_now(view, tenant)).await };
        let head = self.read_of(tenant, move |view| view.feed_head(tenant)).await?;
        if after.position > head {
            let why = "names a place that this tenant's events have not reached".to_owned();
            return Err(Refused::Invalid { field: "after", why }.into());
        }
        Ok(after)
    }

    pub(crate) async fn watch_tenant(&self, tenant: TenantId) -> Result<Watch<Committed>, Error> {
        let (reply, watch) = oneshot::channel();
        self.shared().bus.do_send(SubscribeTenant { tenant, reply });
        watch.await.map_err(|_| Error::Draining)
    }

    pub(crate) async fn feed_page(
        &self,
        OfTenant { tenant, wanted }: OfTenant,
        after: TenantCursor,
        limit: usize,
        bytes: usize,
    ) -> Result<TenantPage, Error> {
        self.read_of(tenant, move |view| tenant_page(view, tenant, after, &wanted, limit, bytes)).await
    }

    /// The turn, once it is terminal or `timeout` has passed.
    pub async fn wait_turn(&self, key: ThreadKey, turn: TurnId, timeout: Duration) -> Result<Turn, Error> {
        let ended = async {
            loop {
                // Watch first: an end that comes between the two is then seen by one of them.
                let mut subscription = self.subscribe(key, self.head(key).await?).await?.uncounted();
                let found = self.turn(key, turn).await?;
                if found.status.is_terminal() {
                    return Ok(found);
                }
                loop {
                    match subscription.next().await? {
                        Next::Stored(_) => break,
                        Next::Live { batch, .. } => {
                            if batch.chunk.events.iter().any(|event| event.name == "turn.completed") {
                                break;
                            }
                        }
                        Next::Gap { .. } => break,
                        Next::Shutdown { .. } => return Err(Error::Draining),
                        Next::Deleted => return Err(Error::Deleted),
                    }
                }
            }
        };
        match tokio::time::timeout(timeout, ended).await {
            Ok(ended) => ended,
            Err(_) => self.turn(key, turn).await,
        }
    }

    // ---- the rest --------------------------------------------------------------------------------

    /// Reads for the server itself.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_as(None, read).await
    }

    /// Reads for a tenant.
    pub(crate) async fn read_of<T: Send + 'static>(
        &self,
        tenant: TenantId,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_as(Some(tenant), read).await
    }

    /// Reads from a consistent view, off the async threads.
    async fn read_as<T: Send + 'static>(
        &self,
        of: Option<TenantId>,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let whats = ["the read queue", "the tenant's share of the read queue"];
        let place = self.inner.reads.take(of, None).map_err(|why| self.no_place(why, whats))?;
        let store = self.shared().store.clone();
        let read = self.shared().tasks.blocking(move || {
            let _place = place;
            read(&*store.view()?)
        });
        match read.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(StoreError::Corrupt(corrupt))) => Err(Error::ThreadUnavailable(corrupt.to_string())),
            Ok(Err(error)) => Err(error.into()),
            // The readers' threads have gone.
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
        }
    }

    /// How the runtime is.
    pub fn health(&self) -> Health {
        let shared = self.shared();
        let (registry, counters) = (&shared.registry, &shared.registry.counters);
        let (store, commands) = (shared.store_handle.stats(), self.shared().gates.admission.figures());
        Health {
            store_writable: store.writable.load(Relaxed),
            leaving: shared.leaving.load(SeqCst) || shared.draining(),
            draining: shared.draining(),
            loaded_threads: registry.len() as u64,
            loaded_bytes: registry.bytes() as u64,
            running_turns: registry.running() as u64,
            subscribers: self.inner.subscribers.taken(),
            commits: store.commits.load(Relaxed),
            steps: counters.steps.load(Relaxed),
            events: counters.events.load(Relaxed),
            store_errors: store.errors.load(Relaxed),
            store_full: store.full.load(Relaxed),
            turns_completed: counters.turns.completed.load(Relaxed),
            turns_failed: counters.turns.failed.load(Relaxed),
            turns_interrupted: counters.turns.interrupted.load(Relaxed),
            model_retries: counters.turns.retries.load(Relaxed),
            jobs: counters.jobs.figures(),
            evictions: counters.evictions.load(Relaxed),
            subscribers_dropped: counters.subscribers_dropped.load(Relaxed),
            commands_in_flight: commands.under_way,
            commands_limit: commands.limit,
            commands_refused_busy: counters.busy.iter().map(|full| *full.value()).sum(),
            refused_over_quota: counters.over_quota.load(Relaxed),
            commands_at_work: shared.gates.commands.figures(),
            turn_reads: shared.gates.reads.figures(),
            model_calls: shared.gates.models.figures(),
            tool_runs: shared.gates.tools.figures(),
        }
    }

    /// How long things took since the start, and what was refused.
    pub fn figures(&self) -> Figures {
        let (counters, store) = (&self.shared().registry.counters, self.shared().store_handle.stats());
        let mut refused: Vec<_> = counters.busy.iter().map(|full| (*full.key(), *full.value())).collect();
        refused.sort_unstable();
        Figures {
            commit: store.commit.read(),
            commit_wait: store.wait.read(),
            turn_start: counters.turn_start.read(),
            prompt_wait: counters.prompt_wait.read(),
            tool: counters.tool.read(),
            engines: counters.engines.read(),
            refused,
        }
    }

    /// The hooks that carry a tenant's events, and how they are doing.
    pub fn hooks(&self, tenant: TenantId) -> Vec<HookStatus> {
        self.shared().hooks.status(tenant)
    }

    /// How the hooks are doing over all tenants.
    pub fn hook_figures(&self) -> Vec<HookFigures> {
        self.shared().hooks.figures()
    }

    /// Says in [`Self::health`] that a shutdown will follow, and changes nothing else: whoever sends work hears of it
    /// while it is still taken.
    pub fn announce_shutdown(&self) {
        self.shared().leaving.store(true, SeqCst);
    }

    /// Refuses new commands, waits up to `deadline` for open turns to end, ends every subscription, makes the
    /// store rest, stops the actor threads. What is still open continues at the next start.
    pub async fn shutdown(&self, deadline: Duration) {
        let shared = self.shared();
        let until = Instant::now() + deadline;
        shared.draining.store(true, SeqCst);
        let resting = async {
            loop {
                let rested = shared.registry.rested.notified();
                if shared.registry.running() == 0 && shared.at_work.load(SeqCst) == 0 {
                    return;
                }
                rested.await;
            }
        };
        if tokio::time::timeout(deadline, resting).await.is_err() {
            tracing::info!(
                turns = shared.registry.running(),
                "the deadline has passed; open turns continue at the next start"
            );
        }
        // While runs can still be loaded.
        drop(tokio::time::timeout_at(until, shared.hooks.carried(journal::NAME, None)).await);
        shared.parking.store(true, SeqCst);
        let parked = shared.registry.all().into_iter().map(|actor| {
            let (done, parked) = oneshot::channel();
            actor.park(done);
            parked
        });
        let parked = futures_util::future::join_all(parked.collect::<Vec<_>>());
        if tokio::time::timeout(PARKING, parked).await.is_err() {
            tracing::warn!("some threads could not save their last words; they continue from what is stored");
        }
        // Nothing more will happen; what happened is carried as far as the time allows.
        shared.hooks.end(until, PARKING).await;
        // What was handed to the store is stored, and the store at rest, before anybody is told to go.
        drop(tokio::time::timeout(PARKING, shared.store_handle.shutdown()).await);
        // The last events are with the bus by now; a watcher is not told to leave before it has them.
        let (done, passed) = oneshot::channel();
        shared.bus.do_send(Barrier(done));
        drop(tokio::time::timeout(PARKING, passed).await);
        shared.stopping.cancel();
        let threads = self.inner.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(threads) = threads {
            let stopped = tokio::task::spawn_blocking(move || threads.stop());
            if tokio::time::timeout(PARKING, stopped).await.is_err() {
                tracing::warn!("the actor threads do not stop; the disk may hang");
            }
        }
    }
}

pub(crate) fn replay<R, T>(recalled: Recalled<R>, expect: impl Fn(R) -> Result<T, Error>) -> Result<Done<T>, Error> {
    Ok(Done { value: expect(recalled.reply)?, seq: recalled.seq, replayed: true })
}

pub(crate) fn started(reply: Reply) -> Result<Started, Error> {
    match reply {
        Reply::Started(turn) => Ok(Started::Turn(turn)),
        Reply::Queued { admission, active_turn } => Ok(Started::Queued { admission, active_turn }),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn thread_of(reply: Reply) -> Result<Thread, Error> {
    match reply {
        Reply::Thread(thread) => Ok(*thread),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn unexpected(reply: &Reply) -> Error {
    Error::Internal(format!("a machine gave another verb's reply: {reply:?}"))
}

pub(crate) fn beyond(after: Seq, head: Seq) -> Error {
    let why = format!("is {after}, beyond the newest event, {head}");
    Refused::Invalid { field: "after", why }.into()
}

/// What a failed save means to a caller.
pub(crate) fn append_error(error: AppendError) -> Error {
    match error {
        AppendError::Store(error) => error.into(),
        AppendError::Refused(WriteRefused::Corrupt(corrupt)) => Error::ThreadUnavailable(corrupt.to_string()),
        AppendError::Refused(
            refused @ (WriteRefused::Conflict { .. } | WriteRefused::Fenced { .. } | WriteRefused::Repeated),
        ) => Error::Internal(refused.to_string()),
        AppendError::Refused(WriteRefused::Closed(why)) => Error::TenantClosed(why),
        AppendError::Refused(WriteRefused::NotEmpty) => Error::TenantNotEmpty,
        AppendError::Closed => StoreError::Unavailable("the store has stopped".to_owned()).into(),
    }
}

impl Runtime {
    pub(crate) async fn head(&self, key: ThreadKey) -> Result<Seq, Error> {
        let row = self.read_of(key.tenant, move |view| view.row(key)).await?;
        row.map(|row| row.head.last_seq).ok_or(Error::NotFound("thread"))
    }

    pub(crate) async fn log_page(
        &self,
        key: ThreadKey,
        after: Seq,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<raddle_domain::ports::Chunk>, Error> {
        self.read_of(key.tenant, move |view| view.events(key, after, limit, bytes)).await
    }
}
