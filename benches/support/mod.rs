//! What the benches share: a runtime whose model the bench chooses, a raw-disk yardstick, and figures.
//!
//! Every figure that matters is a ratio of two sides measured in turns in one run: absolute numbers drift with
//! whatever else the machine does.
#![allow(dead_code, reason = "each bench uses its part")]

pub mod files;
pub mod jsonl;
mod lines;
pub mod load;
pub mod log;
pub mod net;
pub mod sqlite;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use raddle_actors::{Call, Config, Ports, Runtime, store::redb::RedbStore};
use raddle_domain::{
    command::NewThread,
    id::{TenantId, ThreadKey},
    ports::{
        Figures, FinishReason, Fragment, LogStore, Model, ModelRequest, ModelStream, Models, StoreError, UnknownModel,
        View, Write, WriteRefused,
    },
    record::ModelChoice,
    time::UnixMs,
};

pub use self::lines::{bar, figure, head};

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Answers nothing, for ever: a turn that was started stays open and costs nothing more.
pub struct Silent;

impl Model for Silent {
    fn call(&self, _: ModelRequest) -> ModelStream {
        stream::pending().boxed()
    }
}

/// Streams this many words, as fast as they are taken.
pub struct Words(pub usize);

impl Model for Words {
    fn call(&self, _: ModelRequest) -> ModelStream {
        let words = (0..self.0).map(|n| Ok(Fragment::Text(format!("word{n} "))));
        stream::iter(words).chain(stream::iter([Ok(Fragment::Finish(FinishReason::Stop))])).boxed()
    }
}

/// One model under every name.
pub struct Only(pub Arc<dyn Model>);

impl Models for Only {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Ok(choice())
    }
    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        Some(self.0.clone())
    }
    fn engines(&self) -> Vec<String> {
        vec!["bench".into()]
    }
}

pub fn choice() -> ModelChoice {
    ModelChoice { engine: "bench".into(), model: "bench".into() }
}

/// How the store of one side is set up.
#[derive(Clone, Copy)]
pub struct Side {
    pub group_commit: bool,
    pub durable: bool,
    pub sync_delay: Duration,
}

pub const GROUPED: Side = Side { group_commit: true, durable: true, sync_delay: Duration::ZERO };
pub const SINGLE: Side = Side { group_commit: false, ..GROUPED };
pub const VOLATILE: Side = Side { durable: false, ..GROUPED };

impl Side {
    pub fn slow(self, delay: Duration) -> Self {
        Self { sync_delay: delay, ..self }
    }

    pub fn config(self, dir: &Path) -> Config {
        let mut config = Config::new(dir);
        config.loaded_threads = 1_000_000;
        config.loaded_bytes = usize::MAX;
        config.store.durable = self.durable;
        config.store.sync_delay = self.sync_delay;
        config
    }

    pub async fn runtime(self, dir: &Path, model: impl Model) -> Runtime {
        let config = self.config(dir);
        let mut ports = Ports::with_models(Arc::new(Only(Arc::new(model))));
        if !self.group_commit {
            let store = RedbStore::open(&config.store).expect("it opens");
            ports.store = Some(Arc::new(OneByOne(store)));
        }
        Runtime::start(config, ports).await.expect("it starts")
    }
}

/// The same store without group commit: every write is synced on its own.
struct OneByOne(RedbStore);

impl LogStore for OneByOne {
    fn commit(&self, writes: &[Write]) -> Result<Vec<Result<u64, WriteRefused>>, StoreError> {
        self.0.commit(writes)
    }
    fn batch_writes(&self) -> usize {
        1
    }
    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        self.0.view()
    }
    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        self.0.figures(tenant)
    }
    fn epoch(&self) -> u64 {
        self.0.epoch()
    }
    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.0.sweep_receipts(now, limit)
    }
    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.0.pack(before, limit)
    }

    fn rest(&self) -> Result<(), StoreError> {
        self.0.rest()
    }
    fn reopen(&self) -> Result<(), StoreError> {
        self.0.reopen()
    }
}

pub async fn threads(runtime: &Runtime, count: usize) -> Vec<ThreadKey> {
    let create = |_| async {
        let new = NewThread::with(choice());
        let done = runtime.create_thread(TenantId::DEFAULT, new, Call::default()).await.expect("it is created");
        ThreadKey { tenant: TenantId::DEFAULT, thread: done.value.id }
    };
    stream::iter(0..count).map(create).buffer_unordered(256).collect().await
}

/// Runs `work` over `0..count` with `width` at once; returns operations per second.
pub async fn rate<F: Future<Output = ()>>(count: usize, width: usize, work: impl Fn(usize) -> F) -> f64 {
    let start = Instant::now();
    stream::iter(0..count).for_each_concurrent(width, work).await;
    count as f64 / start.elapsed().as_secs_f64()
}

/// Appends of 512 bytes, each followed by fdatasync, per second.
pub fn raw_append(dir: &Path, count: usize) -> f64 {
    let mut file = File::create(dir.join("raw")).expect("a file");
    let block = [7; 512];
    let start = Instant::now();
    for _ in 0..count {
        file.write_all(&block).expect("room");
        file.sync_data().expect("synced");
    }
    count as f64 / start.elapsed().as_secs_f64()
}

/// Bytes that this process holds in memory.
pub fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * rustix::param::page_size() as f64
}

/// Bytes that this process has handed to write calls.
pub fn written() -> f64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("Linux");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("a count");
    line.parse().expect("a number")
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Whether the run is to be short: fewer rounds of less. Its figures are rough.
pub fn is_quick() -> bool {
    std::env::var_os("BENCH_QUICK").is_some()
}

/// So many, or fewer in a quick run.
pub fn sized(full: usize, quick: usize) -> usize {
    if is_quick() { quick } else { full }
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}
