//! The bounds of a runtime and what it is made of. Every queue has its bound here.

use std::{path::PathBuf, sync::Arc, time::Duration};

use raddle_domain::{
    command::Limits,
    ports::{Clock, Files, Ids, JobRunner, LogStore, Models, NoFiles, NoRunner, NoTools, StoreError, Tools},
    price::Prices,
    tenant::Quotas,
};

use crate::{
    clock::{SystemClock, UuidIds},
    hooks::Hook,
    store::redb::{OpenError, RedbConfig},
    tape::Tape,
};

/// How a runtime is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the database is, and how it is kept. One runtime per directory.
    pub store: RedbConfig,
    /// What one thread keeps to.
    pub limits: Limits,
    /// Threads held in memory. Those with a running engine are never unloaded, so the cap holds once they rest.
    pub loaded_threads: usize,
    /// Bytes that loaded threads may hold together, about.
    pub loaded_bytes: usize,
    /// Commands that are under way at once; beyond it callers are told to come back.
    pub commands_in_flight: usize,
    /// Of them, those that threads and the store are busy with while the server knows more than one tenant; the others
    /// wait, and tenants are served by their weights. Few, so that nobody waits long behind what others have begun.
    pub commands_at_work: usize,
    /// Commands of one thread that are under way at once.
    pub commands_per_thread: usize,
    /// How long even the fastest command may take before fewer of them are let in, see [`raddle_domain::admission`]. For
    /// ever unless somebody says otherwise: a host can hold back by itself what it has in its own process.
    pub command_wait: Duration,
    /// Reads that are under way at once.
    pub reads_in_flight: usize,
    /// Watchers at once.
    pub subscribers: usize,
    /// Bytes of events that wait for one watcher; beyond it the watcher is cut off with a cursor.
    pub subscriber_bytes: usize,
    /// Arbiters that thread actors are spread over.
    pub arbiters: usize,
    /// Runs of jobs at once; a turn that waits for a person is not counted.
    pub jobs_concurrent: usize,
    /// How long a job that has ended is remembered.
    pub jobs_retention: Duration,
    /// How long a run may go on without a word of its process.
    pub jobs_lease: Duration,
    /// Model calls at once; beyond it turns wait, and tenants are served by their weights.
    pub model_calls: usize,
    /// Runs of tools at once; the same.
    pub tool_runs: usize,
    /// Of the places for commands, reads and watchers, what one tenant may hold while others are there too; 100: all.
    pub tenant_share_percent: u8,
    /// Whether tenants are told apart where they wait for each other. Off only to measure what that is good for.
    #[doc(hidden)]
    pub fair: bool,
    /// What holds for a tenant whose own record does not say otherwise.
    pub quotas: Quotas,
    /// Whether threads do nothing by themselves, because they are told again everything that others were told, see
    /// [`crate::Runtime::tell`]: no engine, no tool, no timer, and nothing that was left is taken up.
    pub retells: bool,
    /// How long after its end a turn's log is packed: its deltas are joined, and what is stored is compressed.
    pub pack_after: Duration,
}

impl Config {
    /// The defaults, in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            store: RedbConfig::new(data_dir),
            limits: Limits::default(),
            loaded_threads: 1_000,
            loaded_bytes: 256 * 1024 * 1024,
            commands_in_flight: 4_096,
            commands_at_work: 16,
            commands_per_thread: 256,
            command_wait: Duration::MAX,
            reads_in_flight: 1_024,
            subscribers: 4_096,
            subscriber_bytes: 256 * 1024,
            jobs_concurrent: 16,
            jobs_retention: Duration::from_secs(7 * 24 * 60 * 60),
            jobs_lease: Duration::from_secs(60),
            model_calls: 1_024,
            tool_runs: 256,
            tenant_share_percent: 50,
            fair: true,
            quotas: Quotas::default(),
            retells: false,
            pack_after: Duration::from_secs(60 * 60),
            arbiters: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}

/// What a runtime gets from its host.
#[derive(Clone)]
pub struct Ports {
    pub models: Arc<dyn Models>,
    pub tools: Arc<dyn Tools>,
    pub jobs: Arc<dyn JobRunner>,
    /// Who knows what tools did to files.
    pub files: Arc<dyn Files>,
    pub prices: Arc<Prices>,
    /// Where events go, beside those who ask for them.
    pub hooks: Vec<Hook>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
    /// Hears what threads are told.
    pub tape: Arc<Tape>,
    /// A store other than the one in `data_dir`, which is then not opened.
    pub store: Option<Arc<dyn LogStore>>,
}

impl Ports {
    /// The real clock, fresh ids, the store in the data directory; no tools, no prices, nobody who runs jobs but turns.
    pub fn with_models(models: Arc<dyn Models>) -> Self {
        Self {
            models,
            tools: Arc::new(NoTools),
            jobs: Arc::new(NoRunner),
            files: Arc::new(NoFiles),
            prices: Arc::default(),
            hooks: Vec::new(),
            clock: Arc::new(SystemClock),
            ids: Arc::new(UuidIds),
            tape: Arc::default(),
            store: None,
        }
    }
}

/// Why a runtime did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the actor threads: {0}")]
    Threads(#[from] std::io::Error),
}
