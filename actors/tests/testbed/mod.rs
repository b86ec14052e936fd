//! A runtime with a model, tools and a clock that the test holds in its hand.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod conversation;
mod life;
mod model;
mod store;
mod tools;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use raddle_actors::{
    Call, Config, Idempotency, Ports, Runtime, Started,
    store::{backend::MemoryMedium, redb::RedbStore},
};
use raddle_domain::{
    command::{Limits, NewThread, StartTurn, ThreadPatch},
    event::{self, Event, Record},
    id::{TenantId, ThreadKey, TurnId},
    ports::{Clock, Ids, LogStore},
    record::{Approval, Delivery, Effect, Item, ItemKind, Thread, ThreadStatus, Turn, TurnStatus},
    time::UnixMs,
};

pub use self::{
    conversation::{LIFE, compacted, edited, live},
    life::{COMMANDS, Life, acme, gone},
    model::{OnCall, Registry, TestModel, choice},
    store::{Committed, Hooked, OnCommit, holds},
    tools::{Act, Shared, TestTools, acts},
};

/// Whose threads these are.
pub const OWNER: TenantId = TenantId::DEFAULT;

/// Longer than anything here takes: what is still not there by then never comes.
pub const LONG: Duration = Duration::from_secs(30);

/// A clock that stands still until it is told otherwise.
pub struct TestClock(AtomicU64);

impl TestClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_795_000_000_000)))
    }

    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(SeqCst))
    }
}

/// Mints ids until it is told to fail.
#[derive(Default)]
pub struct Brittle(pub AtomicBool);

impl Ids for Brittle {
    fn mint(&self) -> uuid::Uuid {
        assert!(!self.0.swap(false, SeqCst), "told to fail");
        uuid::Uuid::now_v7()
    }
}

/// Numbers that look random and are the same every time.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A data directory with everything that is needed to run a runtime on it again and again.
pub struct Bed {
    pub dir: tempfile::TempDir,
    pub model: Arc<TestModel>,
    pub tools: Arc<TestTools>,
    pub clock: Arc<TestClock>,
    pub limits: Limits,
    pub loaded_threads: usize,
    /// Where the store is, if not in the directory: there it waits for no disk.
    pub medium: Option<MemoryMedium>,
}

impl Bed {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tools = TestTools::new(dir.path());
        let (model, clock) = (TestModel::new(), TestClock::new());
        Self { dir, model, tools, clock, limits: Limits::default(), loaded_threads: 1_000, medium: None }
    }

    pub fn config(&self) -> Config {
        let (limits, loaded_threads) = (self.limits, self.loaded_threads);
        Config { limits, loaded_threads, ..Config::new(self.dir.path()) }
    }

    pub fn ports(&self) -> Ports {
        let open = |medium: &MemoryMedium| RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 0).unwrap();
        let store = self.medium.as_ref().map(|medium| Arc::new(open(medium)) as Arc<dyn LogStore>);
        Ports { store, ..self.ports_without_store() }
    }

    /// For a store that the test opens itself.
    pub fn ports_without_store(&self) -> Ports {
        Ports { clock: self.clock.clone(), ..tool_ports(&self.model, &self.tools) }
    }

    pub async fn start(&self) -> Runtime {
        Runtime::start(self.config(), self.ports()).await.unwrap()
    }

    pub fn acts(&self) -> usize {
        acts(self.dir.path()).len()
    }
}

pub fn ports(model: &Arc<TestModel>) -> Ports {
    Ports::with_models(Arc::new(Registry(model.clone())))
}

pub fn tool_ports(model: &Arc<TestModel>, tools: &Arc<TestTools>) -> Ports {
    Ports { tools: Arc::new(Shared(tools.clone())), ..ports(model) }
}

pub async fn runtime(dir: &Path, model: &Arc<TestModel>) -> Runtime {
    Runtime::start(Config::new(dir), ports(model)).await.unwrap()
}

pub async fn tool_runtime(dir: &Path, model: &Arc<TestModel>, tools: &Arc<TestTools>) -> Runtime {
    Runtime::start(Config::new(dir), tool_ports(model, tools)).await.unwrap()
}

pub fn key(thread: &Thread) -> ThreadKey {
    ThreadKey { tenant: TenantId::DEFAULT, thread: thread.id }
}

pub async fn create(runtime: &Runtime) -> ThreadKey {
    let done = runtime.create_thread(TenantId::DEFAULT, NewThread::with(choice()), Call::default()).await.unwrap();
    key(&done.value)
}

pub fn prompt(prompt: &str, delivery: Delivery) -> StartTurn {
    StartTurn { prompt: prompt.into(), delivery, ..StartTurn::default() }
}

/// A call with an idempotency key, and what stands for its body.
pub fn keyed(key: u8, request: u8) -> Call {
    Call { idempotency: Some(Idempotency { key: [key; 32], request: [request; 32] }), ..Call::default() }
}

pub async fn start(runtime: &Runtime, key: ThreadKey, text: &str) -> Turn {
    let done = runtime.start_turn(key, prompt(text, Delivery::Reject), Call::default()).await.unwrap();
    match done.value {
        Started::Turn(turn) => *turn,
        Started::Queued { .. } => panic!("queued"),
    }
}

/// Says something, and waits until the thread has nothing left to do.
pub async fn say(runtime: &Runtime, key: ThreadKey, text: &str) -> Turn {
    let turn = start(runtime, key, text).await;
    rests(runtime, key).await;
    runtime.turn(key, turn.id).await.unwrap()
}

pub async fn ended(runtime: &Runtime, key: ThreadKey, turn: TurnId) -> TurnStatus {
    runtime.wait_turn(key, turn, LONG).await.unwrap().status
}

/// Waits until the thread has nothing left to do.
pub async fn rests(runtime: &Runtime, key: ThreadKey) {
    stands(runtime, key, |thread| thread.status == ThreadStatus::Idle).await;
}

/// Waits until the open turn can go on no more before a person has spoken.
pub async fn waits(runtime: &Runtime, key: ThreadKey) {
    stands(runtime, key, |thread| thread.status == ThreadStatus::AwaitingApproval).await;
}

/// Waits until the thread's record is as asked.
pub async fn stands(runtime: &Runtime, key: ThreadKey, is: impl Fn(&Thread) -> bool) {
    let stands = async {
        let mut watch = runtime.subscribe(key, 0).await.unwrap();
        while !is(&runtime.thread(key).await.unwrap()) {
            watch.next().await.unwrap();
        }
    };
    if tokio::time::timeout(LONG, stands).await.is_err() {
        panic!("the thread stands otherwise: {:#?}", runtime.thread(key).await);
    }
}

/// Makes what is loaded leave memory. The cap must be one.
pub async fn unload(runtime: &Runtime) {
    let other = create(runtime).await;
    let title = ThreadPatch { title: Some(Some("loaded".into())), ..ThreadPatch::default() };
    runtime.patch_thread(other, title, Call::default()).await.unwrap();
    let falls = async {
        while runtime.health().loaded_threads > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, falls).await.expect("the cap holds once all rest");
}

/// Waits until the model has begun to answer.
pub async fn answering(runtime: &Runtime, key: ThreadKey) {
    happens(runtime, key, "item.delta", 1).await;
}

/// Waits until the log holds so many events of a name.
pub async fn happens(runtime: &Runtime, key: ThreadKey, name: &str, count: usize) {
    let happens = async {
        let mut watch = runtime.subscribe(key, 0).await.unwrap();
        let mut seen = 0;
        while seen < count {
            seen += watch.next().await.unwrap().events().filter(|(_, event)| event.name == name).count();
        }
    };
    if tokio::time::timeout(LONG, happens).await.is_err() {
        panic!("{name} does not happen: {:#?}", names(runtime, key).await);
    }
}

pub async fn log(runtime: &Runtime, key: ThreadKey) -> Vec<Record> {
    let events = runtime.events(key, 0, usize::MAX).await.unwrap();
    let stored = events.chunks.iter().flat_map(|chunk| &chunk.events);
    stored.map(|stored| Record::decode(event::SCHEMA, &stored.json).unwrap()).collect()
}

pub async fn names(runtime: &Runtime, key: ThreadKey) -> Vec<&'static str> {
    log(runtime, key).await.iter().map(|record| record.event.name()).collect()
}

/// The approvals of a thread that wait, in the order of its calls.
pub async fn pending(runtime: &Runtime, key: ThreadKey) -> Vec<Approval> {
    runtime.snapshot(key).await.unwrap().approvals
}

/// Every effect as the log leaves it, in the order in which they were intended.
pub fn ledger(log: &[Record]) -> Vec<Effect> {
    let mut effects: Vec<Effect> = Vec::new();
    for record in log {
        if let Event::EffectIntended(effect)
        | Event::EffectStarted(effect)
        | Event::EffectSettled(effect)
        | Event::EffectUncertain(effect)
        | Event::EffectReconciled(effect) = &record.event
        {
            match effects.iter_mut().find(|known| known.operation_id == effect.operation_id) {
                Some(known) => known.clone_from(effect),
                None => effects.push(Effect::clone(effect)),
            }
        }
    }
    effects
}

/// Asserts what holds of every log at any time: dense, and everything ends at most once, inside its turn; with
/// `rests`, exactly once.
pub fn assert_sound(log: &[Record], rests: bool) {
    assert!(log.iter().zip(1..).all(|(record, seq)| record.seq == seq), "the log is not dense");
    assert_sound_packed(log, rests);
}

/// The same of a log that may be packed: of deltas that were joined the last one is left.
pub fn assert_sound_packed(log: &[Record], rests: bool) {
    use std::collections::BTreeMap;
    let mut turns: BTreeMap<TurnId, u32> = BTreeMap::new();
    let mut things: BTreeMap<String, (TurnId, u32)> = BTreeMap::new();
    let mut waiting: BTreeMap<String, i32> = BTreeMap::new();
    let mut open: Option<TurnId> = None;
    let mut last = 0;
    for record in log {
        let event = &record.event;
        let follows = record.seq == last + 1 || (record.seq > last && matches!(event, Event::ItemDelta(_)));
        assert!(follows, "the log is not dense: {} follows {last}", record.seq);
        last = record.seq;
        let name = event.name();
        let mut begins = |what: String, turn| {
            assert!(things.insert(what.clone(), (turn, 0)).is_none(), "{what} begins twice");
        };
        match event {
            Event::TurnStarted(turn) => {
                assert_eq!(open.replace(turn.id), None, "two turns are open");
                assert!(turns.insert(turn.id, 0).is_none(), "{} starts twice", turn.id);
            }
            Event::ItemStarted(item) => begins(item.id.to_string(), item.turn_id),
            Event::ApprovalRequired(approval) => begins(approval.id.to_string(), approval.turn_id),
            Event::QuestionAsked(question) => begins(question.id.to_string(), question.turn_id),
            Event::EffectIntended(effect) => begins(effect.operation_id.to_string(), effect.turn_id),
            Event::PromptAdmitted(admission) => *waiting.entry(admission.id.to_string()).or_default() += 1,
            _ => {}
        }
        let mut ends = |what: String| {
            let (_, ends) = things.get_mut(&what).unwrap_or_else(|| panic!("{what} ends without a beginning"));
            *ends += 1;
            assert_eq!(*ends, 1, "{what} ends again with {name}");
        };
        match event {
            Event::ItemCompleted(item) => ends(item.id.to_string()),
            Event::ApprovalDecided(approval) if approval.by != Some(raddle_domain::record::DecidedBy::Caller) => {}
            Event::ApprovalDecided(approval)
            | Event::ApprovalExpired(approval)
            | Event::ApprovalCancelled(approval) => ends(approval.id.to_string()),
            Event::QuestionAnswered(question)
            | Event::QuestionExpired(question)
            | Event::QuestionCancelled(question) => ends(question.id.to_string()),
            Event::EffectSettled(effect) => ends(effect.operation_id.to_string()),
            // The last word about an effect, unless somebody said what is to become of it.
            Event::EffectUncertain(effect) if effect.closed => ends(effect.operation_id.to_string()),
            Event::EffectReconciled(effect) if effect.closed => ends(effect.operation_id.to_string()),
            Event::PromptPromoted(admission)
            | Event::PromptWithdrawn(admission)
            | Event::PromptNotDelivered(admission) => {
                let waits = waiting.entry(admission.id.to_string()).or_default();
                *waits -= 1;
                assert!(*waits >= 0, "{} leaves the inbox twice", admission.id);
            }
            _ => {}
        }
        match event {
            Event::TurnCompleted(turn) => {
                assert_eq!(open.take(), Some(turn.id), "another turn ends than is open");
                *turns.get_mut(&turn.id).expect("it started") += 1;
                let left: Vec<_> = things.iter().filter(|(_, (of, ends))| *of == turn.id && *ends != 1).collect();
                assert!(left.is_empty(), "{} ended with something open: {left:?}", turn.id);
            }
            Event::TurnRolledBack(turn) => assert_eq!(turns[&turn.id], 1, "an open turn is rolled back"),
            _ => {
                if let (Some(of), false) = (event.turn_id(), name.starts_with("prompt.")) {
                    assert_eq!(open, Some(of), "{name} of a turn that is not open");
                }
            }
        }
    }
    if rests {
        assert_eq!(open, None);
        assert!(turns.values().all(|ends| *ends == 1), "a turn did not end");
        assert!(things.values().all(|(_, ends)| *ends == 1), "something did not end: {things:?}");
    }
}

/// The answer's text of every turn, oldest first.
pub async fn answers(runtime: &Runtime, key: ThreadKey) -> Vec<String> {
    let snapshot = runtime.snapshot(key).await.unwrap();
    let agent = snapshot.items.into_iter().filter(|item| item.kind == ItemKind::AgentMessage);
    agent.map(|item| item.detail).collect()
}
