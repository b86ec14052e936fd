//! A machine that is not a thread, through everything that its host does for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use raddle_domain::{
    command::{Command, Refused, Reply},
    id::{Seq, TenantId, ThreadId, ThreadKey},
    ports::{
        Append, Chunk, Clock, LogKind, LogStore, Model, Models, Receipt, RowHead, StoreError, StoredEvent, ThreadRow,
        UnknownModel, View, Write,
    },
    record::ModelChoice,
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::AbortHandle};

use super::{Crew, Loaded, Machine, Place, Said, Site, Steps};
use crate::{
    Call, Config, Done, Error, Idempotency, Next, Ports, Runtime,
    disk::json,
    handle::Begun,
    outbox::Outbox,
    receipts::{LIFE, Recalled},
    store::memory::MemoryStore,
    supervisor::Load,
    thread::ThreadMachine,
    timers::Rearm,
};

/// The version digit of counters' names, which nothing else has.
const COUNTER: u8 = 0xb0;
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);
/// What a counter's crew fetches for it.
const FETCHED: u64 = 1_000;

/// A number that grows, can be told to ring, and can have a number fetched that is added to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counter {
    seq: Seq,
    count: u64,
    ring_at: Option<u64>,
    fetches_since: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Asked {
    Add(u64),
    RingAt(UnixMs),
    Fetch,
    Fetched(u64),
    Erase,
    Tick,
}

pub(crate) struct Counted {
    event: Option<&'static str>,
    count: u64,
}

#[derive(Serialize, Deserialize)]
struct Stub {
    count: u64,
    seq: Seq,
}

pub(crate) fn is_counter(key: &ThreadKey) -> bool {
    key.thread.as_bytes()[6] == COUNTER
}

fn counter(number: u8) -> ThreadKey {
    let mut id = [number; 16];
    id[6] = COUNTER;
    ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes(id) }
}

impl Machine for Counter {
    type Command = Asked;
    type Step = Counted;
    type Reply = u64;
    type Refused = Refused;
    type Crew = Fetcher;

    const WHAT: &'static str = "counter";
    const QUEUE: &'static str = "the counter's command queue";

    fn load(view: &dyn View, key: ThreadKey) -> Result<Option<Loaded<Self>>, StoreError> {
        let loaded =
            |row: ThreadRow| Loaded { machine: serde_json::from_slice(&row.snapshot).unwrap(), fence: row.head.fence };
        Ok(view.row(key)?.map(loaded))
    }

    fn keep(&mut self, step: Counted, steps: &mut Steps) -> u64 {
        steps.events.extend(step.event.map(|name| StoredEvent { name: name.into(), json: json(self).into() }));
        step.count
    }

    fn row(&mut self, fence: u64) -> ThreadRow {
        let head = RowHead {
            last_seq: self.seq,
            snapshot_seq: self.seq,
            fence,
            owes_since: self.owes_since(),
            wake_at: self.wake_at(),
            // So that it is found by what looks for threads that owe, or are due.
            kind: LogKind::Thread,
            ..RowHead::default()
        };
        ThreadRow { head, view: json(self).into(), snapshot: json(self).into() }
    }

    fn receipt(&self, step: &Counted, known: Idempotency, site: Site<'_>) -> Option<Receipt> {
        let reply = json(&Stub { count: step.count, seq: self.seq });
        Some(Receipt { key: known.key, request: known.request, reply, expires_at: site.now.after(LIFE) })
    }

    fn recall(_: &dyn View, _: TenantId, receipt: &Receipt) -> Result<Option<Recalled<u64>>, StoreError> {
        let Stub { count, seq } = serde_json::from_slice(&receipt.reply).unwrap();
        Ok(Some(Recalled { reply: count, seq }))
    }

    fn step(&mut self, asked: Asked, if_match: Option<u64>, site: Site<'_>) -> Result<Counted, Refused> {
        if let Some(expected) = if_match.filter(|expected| *expected != self.seq) {
            return Err(Refused::Precondition { expected, head: self.seq });
        }
        let event = match asked {
            Asked::Add(more) => {
                self.count += more;
                Some("counter.added")
            }
            Asked::RingAt(at) => {
                self.ring_at = Some(at.0);
                Some("counter.set")
            }
            Asked::Fetch => {
                self.fetches_since = Some(site.now.0);
                Some("counter.fetches")
            }
            Asked::Fetched(more) => self.fetches_since.take().map(|_| {
                self.count += more;
                "counter.fetched"
            }),
            Asked::Erase => Some("counter.erased"),
            Asked::Tick => self.ring_at.take_if(|at| *at <= site.now.0).map(|_| "counter.rang"),
        };
        self.seq += u64::from(event.is_some());
        Ok(Counted { event, count: self.count })
    }

    fn first(&self, _: bool) -> Vec<Asked> {
        if self.owes_since().is_some() || self.wake_at().is_some() { vec![Asked::Tick] } else { Vec::new() }
    }

    fn tick() -> Asked {
        Asked::Tick
    }

    fn bytes(_: &Asked) -> usize {
        0
    }

    fn erases(asked: &Asked) -> bool {
        *asked == Asked::Erase
    }

    fn ends_work(_: &Asked) -> bool {
        false
    }

    fn seq(&self) -> Seq {
        self.seq
    }

    fn owes_since(&self) -> Option<UnixMs> {
        self.fetches_since.map(UnixMs)
    }

    fn wake_at(&self) -> Option<UnixMs> {
        self.ring_at.map(UnixMs)
    }

    fn rests(&self) -> bool {
        self.fetches_since.is_none()
    }

    fn held_bytes(&self) -> usize {
        100
    }
}

/// Fetches a number, at most one at a time.
#[derive(Default)]
pub(crate) struct Fetcher(Option<Fetching>);

struct Fetching {
    outbox: Arc<Outbox<(), u64>>,
    task: AbortHandle,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Crew<Counter> for Fetcher {
    fn pay(&mut self, counter: &Counter, leaving: bool, place: &Place<'_, Counter>) {
        if counter.fetches_since.is_none() {
            self.0 = None;
        } else if self.0.is_none() && !leaving {
            let outbox = Arc::new(Outbox::new(place.wake()));
            let told = outbox.clone();
            let task = place.shared.tasks.spawn(async move { told.end(FETCHED) });
            self.0 = Some(Fetching { outbox, task: task.abort_handle() });
        }
    }

    fn works(&self) -> bool {
        self.0.is_some()
    }

    fn said(&mut self, _: bool) -> Said<Asked> {
        let end = self.0.as_ref().and_then(|fetching| fetching.outbox.take()).and_then(|(_, end)| end);
        Said { commands: end.map(Asked::Fetched).into_iter().collect(), lingers: None }
    }

    fn has_more(&self) -> bool {
        self.0.as_ref().is_some_and(|fetching| fetching.outbox.waiting().1)
    }
}

// ---- a runtime without models, on a store in memory --------------------------------------------------

struct NoModels;

impl Models for NoModels {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Err(UnknownModel("there are no models".to_owned()))
    }
    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        None
    }
    fn engines(&self) -> Vec<String> {
        Vec::new()
    }
}

struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(SeqCst))
    }
}

struct Bed {
    store: Arc<MemoryStore>,
    clock: Arc<TestClock>,
    runtime: Runtime,
}

impl Bed {
    async fn start(store: MemoryStore, loaded_threads: usize) -> Self {
        let (store, clock) = (Arc::new(store), Arc::new(TestClock(AtomicU64::new(1_795_000_000_000))));
        let config = Config { loaded_threads, arbiters: 1, ..Config::new("not used") };
        let ports =
            Ports { store: Some(store.clone()), clock: clock.clone(), ..Ports::with_models(Arc::new(NoModels)) };
        Self { runtime: Runtime::start(config, ports).await.unwrap(), store, clock }
    }

    async fn make(&self, key: ThreadKey, call: Call) -> Result<Done<u64>, Error> {
        let step = Counted { event: Some("counter.made"), count: 0 };
        let machine = Counter { seq: 1, ..Counter::default() };
        let begun = async { Ok(Begun { key, machine, step, fork: None, given: false }) };
        self.runtime.make(key.tenant, call, begun, Ok).await
    }

    async fn ask(&self, key: ThreadKey, asked: Asked, call: Call) -> Result<Done<u64>, Error> {
        self.runtime.command::<Counter, _>(key, asked, call, Ok).await
    }

    async fn add(&self, key: ThreadKey, more: u64) -> u64 {
        self.ask(key, Asked::Add(more), Call::default()).await.unwrap().value
    }

    /// Waits until the log has an event of that name.
    async fn says(&self, key: ThreadKey, name: &str) {
        let says = |chunk: &Chunk| chunk.events.iter().any(|event| event.name == name);
        let mut log = self.runtime.subscribe(key, 0).await.unwrap();
        let found = async {
            loop {
                match log.next().await.unwrap() {
                    Next::Stored(chunks) if chunks.iter().any(says) => return,
                    Next::Live { batch, .. } if says(&batch.chunk) => return,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(LONG, found).await.expect(name);
    }

    fn stored(&self, key: ThreadKey) -> Counter {
        Counter::load(&*self.store.view().unwrap(), key).unwrap().unwrap().machine
    }

    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let held = async {
            while !holds(self) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, held).await.expect("it holds at last");
    }

    async fn end(self) {
        self.runtime.shutdown(Duration::from_secs(5)).await;
    }
}

/// What somebody else than the actor stores: the counter as it is then.
fn behind_its_back(mut counter: Counter, key: ThreadKey) -> Write {
    let expected = counter.seq;
    counter.seq += 1;
    let event = StoredEvent { name: "counter.changed".into(), json: json(&counter).into() };
    let chunk = Chunk { first: counter.seq, events: vec![event] };
    Write::Append(Append::new(key, expected, UnixMs(0), chunk, counter.row(1)))
}

fn once(key: u8, request: u8) -> Call {
    Call { idempotency: Some(Idempotency { key: [key; 32], request: [request; 32] }), ..Call::default() }
}

#[tokio::test]
async fn a_machine_is_made_and_steps_and_a_refusal_changes_nothing() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    assert_eq!(bed.make(key, Call::default()).await.unwrap(), Done { value: 0, seq: 1, replayed: false });
    assert_eq!((bed.add(key, 2).await, bed.add(key, 3).await), (2, 5));
    let stale = Call { if_match: Some(1), ..Call::default() };
    let refused = bed.ask(key, Asked::Add(9), stale).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refused::Precondition { expected: 1, head: 3 })), "{refused}");
    assert_eq!(bed.stored(key), Counter { seq: 3, count: 5, ..Counter::default() });
    bed.end().await;
}

#[tokio::test]
async fn a_repeated_request_has_the_reply_of_before() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    let made = [bed.make(key, once(1, 1)).await.unwrap(), bed.make(key, once(1, 1)).await.unwrap()];
    assert_eq!(made.map(|done| (done.seq, done.replayed)), [(1, false), (1, true)]);
    let added = bed.ask(key, Asked::Add(7), once(2, 2)).await.unwrap();
    bed.add(key, 1).await;
    assert_eq!(bed.ask(key, Asked::Add(7), once(2, 2)).await.unwrap(), Done { replayed: true, ..added });
    let other = bed.ask(key, Asked::Add(8), once(2, 3)).await.unwrap_err();
    assert!(matches!(other, Error::IdempotencyMismatch), "{other}");
    assert_eq!(bed.stored(key).count, 8);
    bed.end().await;
}

#[tokio::test]
async fn a_machine_that_was_unloaded_comes_back_as_it_was() {
    let bed = Bed::start(MemoryStore::default(), 1).await;
    let keys = [1, 2, 3].map(counter);
    for key in keys {
        bed.make(key, Call::default()).await.unwrap();
    }
    for round in 1..=3 {
        for key in keys {
            assert_eq!(bed.add(key, 1).await, round);
        }
        bed.until(|bed| bed.runtime.health().loaded_threads == 1).await;
    }
    assert!(bed.runtime.health().evictions >= 6);
    bed.end().await;
}

#[tokio::test]
async fn a_machine_whose_last_command_ends_while_it_rests_is_unloaded() {
    let (bed, keys) = (Bed::start(MemoryStore::default(), 1).await, [1, 2].map(counter));
    let mut tickets = Vec::new();
    for key in keys {
        bed.make(key, Call::default()).await.unwrap();
        tickets.push(bed.runtime.ticket::<Counter>(key, true).await.unwrap());
        bed.add(key, 1).await;
        // Nothing is saved for this one: once it is answered, what came before is over, and the machine rests.
        let stale = Call { if_match: Some(1), ..Call::default() };
        bed.ask(key, Asked::Add(1), stale).await.unwrap_err();
    }
    // The supervisor, which was told that they rest, has seen that neither may go.
    let (reply, heard) = oneshot::channel();
    bed.runtime.shared().supervisor.do_send(Load { key: keys[0], asked: false, reply });
    tickets.push(heard.await.unwrap().unwrap());
    assert_eq!(bed.runtime.health().loaded_threads, 2);
    drop(tickets);
    bed.until(|bed| bed.runtime.health().loaded_threads == 1).await;
    bed.end().await;
}

#[tokio::test]
async fn a_step_on_a_stale_state_is_made_again_on_what_is_stored() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    bed.make(key, Call::default()).await.unwrap();
    bed.add(key, 1).await;
    let changed = Counter { count: 100, ..bed.stored(key) };
    bed.store.commit(&[behind_its_back(changed, key)]).unwrap().remove(0).unwrap();
    assert_eq!(bed.add(key, 1).await, 101);
    bed.end().await;
}

#[tokio::test]
async fn an_alarm_rings_while_the_machine_is_loaded() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    bed.make(key, Call::default()).await.unwrap();
    let at = bed.clock.now().after(Duration::from_millis(20));
    bed.ask(key, Asked::RingAt(at), Call::default()).await.unwrap();
    bed.clock.0.store(at.0, SeqCst);
    bed.says(key, "counter.rang").await;
    bed.end().await;
}

#[tokio::test]
async fn a_time_that_comes_loads_the_machine_that_waits_for_it() {
    let (bed, [key, other]) = (Bed::start(MemoryStore::default(), 1).await, [1, 2].map(counter));
    bed.make(key, Call::default()).await.unwrap();
    let at = bed.clock.now().after(Duration::from_secs(3_600));
    bed.ask(key, Asked::RingAt(at), Call::default()).await.unwrap();
    bed.make(other, Call::default()).await.unwrap();
    bed.add(other, 1).await;
    bed.until(|bed| !bed.runtime.shared().registry.contains(&key)).await;
    bed.clock.0.store(at.0, SeqCst);
    // The timer sleeps by another clock.
    bed.runtime.shared().timers.do_send(Rearm(UnixMs(0)));
    bed.says(key, "counter.rang").await;
    assert_eq!(bed.stored(key).ring_at, None);
    bed.end().await;
}

#[tokio::test]
async fn what_a_crew_says_is_a_step() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    bed.make(key, Call::default()).await.unwrap();
    bed.ask(key, Asked::Fetch, Call::default()).await.unwrap();
    bed.says(key, "counter.fetched").await;
    assert_eq!(bed.add(key, 1).await, FETCHED + 1);
    assert_eq!(bed.runtime.health().running_turns, 0);
    bed.end().await;
}

#[tokio::test]
async fn what_a_machine_owes_is_paid_after_a_start() {
    let (store, key) = (MemoryStore::default(), counter(1));
    let owing = Counter { fetches_since: Some(1), ..Counter::default() };
    store.commit(&[behind_its_back(owing, key)]).unwrap().remove(0).unwrap();
    let bed = Bed::start(store, 10).await;
    bed.says(key, "counter.fetched").await;
    bed.end().await;
}

#[tokio::test]
async fn an_erased_machine_is_not_found() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    bed.make(key, Call::default()).await.unwrap();
    bed.ask(key, Asked::Erase, Call::default()).await.unwrap();
    let gone = bed.ask(key, Asked::Add(1), Call::default()).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound("counter")), "{gone}");
    bed.end().await;
}

#[tokio::test]
async fn a_command_reaches_no_machine_of_another_kind() {
    let (bed, key) = (Bed::start(MemoryStore::default(), 10).await, counter(1));
    bed.make(key, Call::default()).await.unwrap();
    let tick = bed.runtime.command::<ThreadMachine, Reply>(key, Command::Tick, Call::default(), Ok).await.unwrap_err();
    assert!(matches!(tick, Error::NotFound("thread")), "{tick}");
    assert_eq!(bed.runtime.shared().registry.counters.steps.load(Relaxed), 0);
    bed.end().await;
}
