//! The actor threads: made at the start, and gone when the runtime is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use actix::{System, prelude::*};
use raddle_domain::{
    ports::{Clock, Files, Ids, JobRunner, LogStore, Models, Tools},
    price::Prices,
};
use tokio::sync::{Semaphore, SetOnce, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    budgets::Books,
    bus::{EventBusActor, Inlet, Missed},
    config::{Config, Ports, StartError},
    fair::Gates,
    handle::WeakRuntime,
    hooks::{Hooks, Save},
    jobs::{Jobs, Locks, Look, Recover},
    registry::Registry,
    runs::journal,
    simulation::Scheduler,
    stage::{On, Stage, Tasks},
    store::{StoreActor, StoreHandle, redb::RedbStore},
    supervisor::{self, Supervisor, Sweep},
    tape::Tape,
    tenants::Tenants,
    timers::{self, Timers},
};

/// How long the end of the actor threads waits for what still runs beside them.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Backups and exports at once.
const BACKUPS: usize = 2;

/// What every actor and every handle can reach.
pub(crate) struct Shared {
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
    pub tape: Arc<Tape>,
    pub models: Arc<dyn Models>,
    pub tools: Arc<dyn Tools>,
    pub prices: Arc<Prices>,
    pub hooks: Arc<Hooks>,
    /// Where the hook that carries effects into ledgers is told of the runtime.
    pub way_to_runs: Arc<SetOnce<WeakRuntime>>,
    pub store: Arc<dyn LogStore>,
    pub store_handle: StoreHandle,
    pub bus: Addr<EventBusActor>,
    pub inlet: Arc<Inlet>,
    pub supervisor: Addr<Supervisor>,
    pub timers: Addr<Timers>,
    pub jobs: Addr<Jobs>,
    pub runner: Arc<dyn JobRunner>,
    pub files: Arc<dyn Files>,
    /// Runs of webhooks and commands: a shutdown waits for them as it does for turns.
    pub at_work: AtomicUsize,
    pub job_locks: Locks,
    pub registry: Arc<Registry>,
    pub tenants: Arc<Tenants>,
    pub gates: Gates,
    pub books: Arc<Books>,
    /// A place for each view that may be open for long: it holds room on the disk.
    pub backups: Arc<Semaphore>,
    /// Where actors run.
    pub stage: Stage,
    /// Where everything else does.
    pub tasks: Tasks,
    /// Set when a shutdown was announced.
    pub leaving: AtomicBool,
    pub draining: AtomicBool,
    /// Set when loaded threads are told to leave: no other is loaded from then on.
    pub parking: AtomicBool,
    /// Cancelled when watchers must leave.
    pub stopping: CancellationToken,
}

impl Shared {
    pub fn draining(&self) -> bool {
        self.draining.load(SeqCst)
    }
}

/// The OS thread that runs the actor system. Dropping it stops the system; what is open continues at the next start.
pub(crate) struct Threads {
    system: System,
    thread: Option<JoinHandle<()>>,
}

impl Threads {
    /// Opens the store and starts every actor.
    pub async fn start(config: Config, ports: Ports) -> Result<(Self, Arc<Shared>), StartError> {
        let (started, ready) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("raddle-actors".to_owned()).spawn(move || run(config, ports, started))?;
        match ready.await {
            Ok(Ok((system, shared))) => Ok((Self { system, thread: Some(thread) }, shared)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(std::io::Error::other("the actor thread ended while starting").into()),
        }
    }

    /// Stops the actors and waits for their threads. Blocks.
    pub fn stop(mut self) {
        self.system.stop();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.system.stop();
    }
}

type Started = Result<(System, Arc<Shared>), StartError>;

/// The body of the actor thread.
fn run(config: Config, ports: Ports, started: oneshot::Sender<Started>) {
    let engines = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.arbiters.div_ceil(2).max(1))
        .max_blocking_threads(64)
        .thread_name("raddle-engine")
        .enable_all()
        .build();
    let engines = match engines {
        Ok(engines) => engines,
        Err(error) => return drop(started.send(Err(error.into()))),
    };
    let prepared = match Prepared::read(&config, &ports) {
        Ok(prepared) => prepared,
        Err(error) => return drop(started.send(Err(error))),
    };
    let runner = System::new();
    let system = System::current();
    let pool = engines.handle().clone();
    let (shared, arbiters) = runner.block_on(async {
        let mut hosts: Vec<Arbiter> = (0..config.arbiters.max(1)).map(|_| Arbiter::new()).collect();
        let (front, back) = (Arbiter::new(), Arbiter::new());
        let threads = hosts.iter().map(Arbiter::handle).collect();
        let stage = Stage::Arbiters { hosts: threads, front: front.handle(), store: back.handle() };
        hosts.extend([front, back]);
        (tree(config, ports, prepared, stage, Tasks::Pool(pool)), hosts)
    });
    if started.send(Ok((system, shared.clone()))).is_err() {
        return;
    }
    if let Err(error) = runner.run() {
        tracing::error!(%error, "the actor system ended badly");
    }
    // The store's arbiter is one of them: what it was committing is done with when it has ended.
    for arbiter in arbiters {
        arbiter.stop();
        if arbiter.join().is_err() {
            tracing::error!("an arbiter ended in a panic");
        }
    }
    if let Err(error) = shared.store.rest() {
        tracing::warn!(%error, "the store could not come to rest; the next start takes longer");
    }
    drop(shared);
    // What they hold of the store is let go before another is opened in its place; what hangs is left.
    engines.shutdown_timeout(LETTING_GO);
}

/// The same tree on the current thread.
pub(crate) fn here(config: Config, ports: Ports, scheduler: Arc<Scheduler>) -> Result<Arc<Shared>, StartError> {
    let prepared = Prepared::read(&config, &ports)?;
    Ok(tree(config, ports, prepared, Stage::Here(scheduler.clone()), Tasks::Here(scheduler)))
}

/// What is known before any actor starts.
struct Prepared {
    store: Arc<dyn LogStore>,
    hooks: Hooks,
    way: Arc<SetOnce<WeakRuntime>>,
    tenants: Arc<Tenants>,
}

impl Prepared {
    fn read(config: &Config, ports: &Ports) -> Result<Self, StartError> {
        let store: Arc<dyn LogStore> = match ports.store.clone() {
            Some(store) => store,
            None => Arc::new(RedbStore::open(&config.store)?),
        };
        // Before anybody writes, so that a new hook begins with whatever this process does.
        let (ledger, way) = journal::hook(ports.files.clone());
        let hooks = Hooks::prepare(&*store, ports.hooks.iter().cloned().chain([ledger]).collect())?;
        let tenants = Arc::new(Tenants::load(&*store.view()?, config.quotas)?);
        Ok(Self { store, hooks, way, tenants })
    }
}

/// Starts the actors.
fn tree(config: Config, ports: Ports, prepared: Prepared, stage: Stage, tasks: Tasks) -> Arc<Shared> {
    let Prepared { store, hooks, way, tenants } = prepared;
    let hooks = Arc::new(hooks);
    let registry = Arc::new(Registry::default());
    let inlet = Arc::new(Inlet::default());
    let (limit, outlet) = (config.subscriber_bytes, inlet.clone());
    let bus = stage.start(On::Front, move |_| EventBusActor::new(limit, outlet));
    let supervisor = stage.start(On::Front, |_| Supervisor::new());
    let timers = stage.start(On::Front, |_| Timers::default());
    let jobs = stage.start(On::Front, |_| Jobs::default());

    let (to_bus, to_inlet, to_watchers) = (bus.clone(), inlet.clone(), bus.clone());
    let (to_supervisor, to_timers, to_jobs) = (supervisor.clone(), timers.clone(), jobs.clone());
    let to_hooks = hooks.clone();
    let weights = tenants.clone();
    let books = Arc::new(Books::default());
    let (to_books, books_in_doubt) = (books.clone(), books.clone());
    let store_handle = StoreActor::start_on(
        &stage,
        config.fair.then(|| Arc::new(move |tenant| weights.account(tenant).tenant().weight) as _),
        store.clone(),
        Arc::new(move |batches| {
            to_books.committed(&batches);
            to_hooks.committed(&batches);
            to_inlet.publish(&to_bus, batches);
        }),
        Arc::new(move |in_doubt| {
            books_in_doubt.doubt();
            if in_doubt {
                to_watchers.do_send(Missed);
                to_jobs.do_send(Recover);
            }
            to_supervisor.do_send(Sweep);
            to_timers.do_send(timers::Again);
            to_jobs.do_send(Look);
        }),
    );
    let save: Save = {
        let store = store_handle.clone();
        Arc::new(move |write| Box::pin(store.append(write)))
    };
    hooks.start(&tasks, &store, &ports.clock, &save);
    let shared = Arc::new(Shared {
        gates: Gates::new(&config, &tenants),
        config,
        clock: ports.clock,
        ids: ports.ids,
        tape: ports.tape,
        models: ports.models,
        tools: ports.tools,
        prices: ports.prices,
        hooks,
        way_to_runs: way,
        store,
        store_handle,
        bus,
        inlet,
        supervisor,
        timers,
        jobs,
        runner: ports.jobs,
        files: ports.files,
        at_work: AtomicUsize::new(0),
        job_locks: Locks::default(),
        registry,
        tenants,
        backups: Arc::new(Semaphore::new(BACKUPS)),
        books,
        stage,
        tasks,
        leaving: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        parking: AtomicBool::new(false),
        stopping: CancellationToken::new(),
    });
    shared.supervisor.do_send(supervisor::Begin(shared.clone()));
    shared.timers.do_send(timers::Begin(shared.clone()));
    shared
}
