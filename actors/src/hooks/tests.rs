//! Hooks against a store in memory, on a clock that stands still.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use raddle_domain::{
    id::{Seq, ThreadId, ThreadKey},
    ports::{Append, Chunk, RowHead, SinkWork, StoredEvent, ThreadRow},
};
use tokio::{sync::watch, task::JoinHandle};

use super::*;
use crate::store::memory::MemoryStore;

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> UnixMs {
        UnixMs(1_700_000_000_000)
    }
}

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// What a sink does about the next batch.
#[derive(Clone)]
enum Does {
    Take,
    Fail(SinkError),
    Hang,
    Panic,
}

fn down() -> Does {
    Does::Fail(SinkError::Unavailable { why: "nobody listens".to_owned(), retry_after: None })
}

fn refuses() -> Does {
    Does::Fail(SinkError::Rejected("410".to_owned()))
}

/// Takes everything, but does what it is told first; remembers what it took, and when it was asked.
struct Script {
    does: Mutex<BTreeMap<TenantId, VecDeque<Does>>>,
    taken: watch::Sender<Vec<(TenantId, u64, Seq, String)>>,
    asked: Mutex<Vec<Instant>>,
    most: usize,
    /// The only events that it looks at, if it does not look at all.
    looks: Option<&'static [u8]>,
}

impl Script {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            does: Mutex::default(),
            taken: watch::Sender::default(),
            asked: Mutex::default(),
            most,
            looks: None,
        })
    }

    fn then(self: &Arc<Self>, tenant: TenantId, does: impl IntoIterator<Item = Does>) -> Arc<Self> {
        self.does.lock().unwrap().entry(tenant).or_default().extend(does);
        self.clone()
    }

    fn taken(&self) -> Vec<(TenantId, u64, Seq, String)> {
        self.taken.borrow().clone()
    }

    fn names(&self) -> Vec<String> {
        self.taken().into_iter().map(|(.., name)| name).collect()
    }

    async fn has(&self, count: usize) {
        self.taken.subscribe().wait_for(|taken| taken.len() >= count).await.unwrap();
    }
}

/// A sink that several hooks may hold.
struct Shared(Arc<Script>);

impl Sink for Shared {
    fn most(&self) -> usize {
        self.0.most
    }

    fn looks_at(&self, event: &StoredEvent) -> bool {
        self.0.looks.is_none_or(|looks| event.json == looks)
    }

    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let script = self.0.clone();
        Box::pin(async move {
            script.asked.lock().unwrap().push(Instant::now());
            let does = script.does.lock().unwrap().entry(batch.tenant).or_default().pop_front();
            match does.unwrap_or(Does::Take) {
                Does::Take => {
                    let HookBatch { tenant, events, .. } = batch;
                    let events = events.into_iter().map(|on| (tenant, on.position, on.seq, on.event.name.into_owned()));
                    script.taken.send_modify(|taken| taken.extend(events));
                    Ok(())
                }
                Does::Fail(error) => Err(error),
                Does::Hang => std::future::pending().await,
                Does::Panic => panic!("on purpose"),
            }
        })
    }
}

fn hook(script: &Arc<Script>) -> Hook {
    Hook {
        name: "audit".into(),
        kind: "test",
        events: EventFilter::default(),
        tenants: None,
        since: Since::Now,
        on_reject: OnReject::Retry,
        sink: Arc::new(Shared(script.clone())),
    }
}

/// A store with hooks on it, as a runtime has them.
struct Bed {
    store: Arc<dyn LogStore>,
    hooks: Arc<Hooks>,
    saves: Arc<AtomicUsize>,
}

impl Bed {
    fn new() -> Self {
        Self { store: Arc::<MemoryStore>::default(), hooks: Arc::default(), saves: Arc::default() }
    }

    /// A process begins.
    fn start(&mut self, hooks: Vec<Hook>) {
        let hooks = Hooks::prepare(&*self.store, hooks).unwrap();
        let (store, saves) = (self.store.clone(), self.saves.clone());
        let save: Save = Arc::new(move |write| {
            saves.fetch_add(1, SeqCst);
            let stored = store.commit(&[write]).map(|_| ()).map_err(AppendError::from);
            Box::pin(async move { stored })
        });
        let clock: Arc<dyn Clock> = Arc::new(Fixed);
        hooks.start(&Tasks::Pool(tokio::runtime::Handle::current()), &self.store, &clock, &save);
        self.hooks = Arc::new(hooks);
    }

    /// The process is gone, whatever it was doing.
    async fn crash(&mut self) {
        let tasks: Vec<JoinHandle<()>> = std::mem::take(&mut *self.hooks.tasks.lock().unwrap());
        for task in tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }

    /// A step of a thread, stored and not told.
    fn store(&self, of: &str, thread: u8, names: &[&str]) -> Arc<Batch> {
        let key = ThreadKey { tenant: tenant(of), thread: ThreadId::from_bytes([thread; 16]) };
        let row = self.store.view().unwrap().row(key).unwrap();
        let expected = row.map_or(0, |row| row.head.last_seq);
        let event = |name: &&str| StoredEvent { name: (*name).to_owned().into(), json: (&b"{}"[..]).into() };
        let chunk = Chunk { first: expected + 1, events: names.iter().map(event).collect() };
        let head = RowHead { last_seq: chunk.last(), fence: 1, ..RowHead::default() };
        let row = ThreadRow { head, view: b"{}"[..].into(), snapshot: b"{}"[..].into() };
        let write = Write::Append(Append::new(key, expected, UnixMs(0), chunk.clone(), row));
        let position = self.store.commit(&[write]).unwrap().remove(0).unwrap();
        Arc::new(Batch::new(key, chunk, position))
    }

    /// A step of a thread.
    fn step(&self, of: &str, thread: u8, names: &[&str]) {
        self.hooks.committed(&[self.store(of, thread, names)]);
    }

    fn status(&self, of: &str) -> HookStatus {
        self.hooks.status(tenant(of)).remove(0)
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_carried_in_order_without_pieces() {
    let (mut bed, script) = (Bed::new(), Script::new(3));
    bed.start(vec![hook(&script)]);
    bed.step("default", 1, &["thread.created"]);
    bed.step("default", 2, &["thread.created", "turn.started", "item.delta"]);
    bed.step("default", 1, &["item.delta", "item.delta"]);
    bed.step("default", 2, &["item.delta", "turn.completed"]);
    script.has(4).await;
    let places: Vec<_> = script.taken().into_iter().map(|(_, position, seq, name)| (position, seq, name)).collect();
    let expected =
        [(1, 1, "thread.created"), (2, 1, "thread.created"), (2, 2, "turn.started"), (4, 5, "turn.completed")];
    assert_eq!(places, expected.map(|(position, seq, name)| (position, seq, name.to_owned())));
    let status = bed.status("default");
    assert_eq!((status.delivered, status.skipped, status.behind), (4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_down_is_tried_for_ever_after_pauses_that_double() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    script.then(TenantId::DEFAULT, vec![down(); 12]);
    bed.start(vec![hook(&script)]);
    bed.step("default", 1, &["thread.created", "turn.started"]);
    script.has(2).await;
    let asked = script.asked.lock().unwrap().clone();
    let pauses: Vec<_> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    let minute = 60_000;
    let doubling = [500, 1000, 2000, 4000, 8000, 16_000, 32_000];
    assert_eq!(pauses[..7], doubling);
    assert_eq!(pauses[7..12], [minute; 5]);
    assert_eq!(pauses[12], 0, "what follows is not held back");
    assert_eq!(script.names(), ["thread.created", "turn.started"]);
}

#[tokio::test(start_paused = true)]
async fn while_it_fails_it_says_so_and_afterwards_it_does_not() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    let busy = SinkError::Unavailable { why: "busy".to_owned(), retry_after: Some(Duration::from_secs(90)) };
    script.then(TenantId::DEFAULT, [down(), Does::Fail(busy)]);
    bed.start(vec![hook(&script)]);
    bed.step("default", 1, &["thread.created"]);
    sleep(Duration::from_secs(2)).await;
    let status = bed.status("default");
    assert_eq!(status.failing_since, Some(Fixed.now()));
    assert_eq!((status.last_error.as_deref(), status.behind, status.delivered), (Some("busy"), 1, 0));
    assert_eq!((bed.hooks.figures()[0].failures, bed.hooks.figures()[0].failing), (2, 1));
    sleep(Duration::from_secs(88)).await;
    assert_eq!(script.taken(), []);
    script.has(1).await;
    let status = bed.status("default");
    assert_eq!((status.failing_since, status.last_error.as_deref()), (None, Some("busy")));
    assert_eq!((status.behind, status.delivered, bed.hooks.figures()[0].failing), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_or_panics_is_tried_again() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    script.then(TenantId::DEFAULT, [Does::Hang, Does::Panic]);
    bed.start(vec![hook(&script)]);
    bed.step("default", 1, &["thread.created"]);
    script.has(1).await;
    assert_eq!(script.names(), ["thread.created"]);
    assert_eq!(bed.hooks.figures()[0].failures, 2);
}

#[tokio::test(start_paused = true)]
async fn one_tenants_failure_holds_back_nobody_else() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    script.then(tenant("a"), vec![down(); 5]);
    bed.start(vec![hook(&script)]);
    bed.step("a", 1, &["thread.created", "turn.started"]);
    bed.step("b", 2, &["thread.created", "turn.started"]);
    script.has(2).await;
    assert!(script.taken().iter().all(|(of, ..)| *of == tenant("b")));
    assert!(bed.status("a").failing_since.is_some() && bed.status("b").failing_since.is_none());
    script.has(4).await;
    let of_a: Vec<_> =
        script.taken().into_iter().filter(|(of, ..)| *of == tenant("a")).map(|(_, _, seq, _)| seq).collect();
    assert_eq!(of_a, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_refuses_blocks_unless_it_may_be_skipped() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    script.then(TenantId::DEFAULT, vec![refuses(); 40]);
    bed.start(vec![hook(&script)]);
    bed.step("default", 1, &["thread.created", "turn.started"]);
    sleep(Duration::from_secs(30 * 60)).await;
    assert!(script.asked.lock().unwrap().len() > 30);
    assert_eq!((script.taken(), bed.status("default").skipped), (vec![], 0));

    let (mut bed, script) = (Bed::new(), Script::new(1));
    // That it was away before is no refusal.
    script.then(TenantId::DEFAULT, [vec![down(); 9], vec![refuses(); REFUSALS as usize]].concat());
    bed.start(vec![Hook { on_reject: OnReject::Skip, ..hook(&script) }]);
    bed.step("default", 1, &["thread.created", "turn.started"]);
    script.has(1).await;
    assert_eq!(script.names(), ["turn.started"]);
    assert_eq!(script.asked.lock().unwrap().len(), 9 + REFUSALS as usize + 1);
    let status = bed.status("default");
    assert_eq!((status.skipped, status.delivered, status.failing_since), (1, 1, None));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loses_nothing_and_repeats_few() {
    for (most, crashes) in [(1, vec![1, 40, 200]), (7, vec![64, 65, 130]), (1000, vec![3, 64, 128, 300])] {
        let (mut bed, script) = (Bed::new(), Script::new(most));
        bed.start(vec![hook(&script)]);
        for n in 0..100u8 {
            bed.step(
                ["default", "a"][usize::from(n % 2)],
                1 + n % 3,
                &["turn.started", "item.delta", "turn.completed", "usage.recorded"],
            );
        }
        for at in crashes {
            script.has(at).await;
            bed.crash().await;
            bed.start(vec![hook(&script)]);
        }
        script.has(300).await;
        sleep(Duration::from_secs(120)).await;
        for of in ["default", "a"] {
            let places: Vec<_> = script
                .taken()
                .into_iter()
                .filter(|(by, ..)| *by == tenant(of))
                .map(|(_, at, seq, _)| (at, seq))
                .collect();
            let unique: BTreeSet<_> = places.iter().copied().collect();
            assert_eq!(unique.len(), 150, "each of them");
            let mut firsts = Vec::new();
            let mut seen = BTreeSet::new();
            for place in &places {
                if seen.insert(*place) {
                    firsts.push(*place);
                }
            }
            assert!(firsts.is_sorted(), "in order");
            // Each crash repeats what was taken behind the saved cursor.
            for (n, pair) in places.windows(2).enumerate().filter(|(_, pair)| pair[1] <= pair[0]) {
                let again = places[..=n].iter().filter(|place| **place >= pair[1]).collect::<BTreeSet<_>>().len();
                assert!(again <= TWICE, "{again} again");
            }
            assert_eq!(bed.status(of).behind, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cursors_are_saved_for_many_events_at_once() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    bed.start(vec![hook(&script)]);
    for _ in 0..TWICE * 4 {
        bed.step("default", 1, &["turn.started"]);
    }
    script.has(TWICE * 4).await;
    sleep(Duration::from_secs(5)).await;
    let saves = bed.saves.load(SeqCst);
    assert!((4..=5).contains(&saves), "{saves}");
    bed.crash().await;
    bed.start(vec![hook(&script)]);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(script.taken().len(), TWICE * 4, "nothing came again");
    assert_eq!(bed.status("default").delivered, 4 * TWICE as u64);
}

#[tokio::test(start_paused = true)]
async fn a_new_hook_begins_now_or_with_the_first_event() {
    let (mut bed, late, early) = (Bed::new(), Script::new(9), Script::new(9));
    bed.store("default", 1, &["thread.created"]);
    bed.store("a", 1, &["thread.created"]);
    let from_beginning = Hook { name: "early".into(), since: Since::Beginning, ..hook(&early) };
    bed.start(vec![hook(&late), from_beginning.clone()]);
    bed.step("a", 1, &["turn.started"]);
    bed.step("new", 1, &["thread.created"]);
    late.has(2).await;
    early.has(4).await;
    assert!(late.taken().contains(&(tenant("a"), 2, 2, "turn.started".to_owned())));
    assert!(late.taken().contains(&(tenant("new"), 1, 1, "thread.created".to_owned())));
    bed.crash().await;

    // It is the same hook afterwards, whatever it says now: what happened meanwhile is carried.
    bed.store("default", 1, &["turn.started"]);
    bed.store("other", 1, &["thread.created"]);
    let again = Script::new(9);
    bed.start(vec![Hook { since: Since::Beginning, ..hook(&again) }]);
    again.has(2).await;
    sleep(Duration::from_secs(120)).await;
    let newer: Vec<_> =
        again.taken().into_iter().filter(|(of, ..)| *of != tenant("a") && *of != tenant("new")).collect();
    let expected = [("default", 2, 2, "turn.started"), ("other", 1, 1, "thread.created")];
    assert_eq!(newer, expected.map(|(of, position, seq, name)| (tenant(of), position, seq, name.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_died_before_it_saved_anything_is_no_new_one() {
    let (mut bed, script) = (Bed::new(), Script::new(9));
    script.then(TenantId::DEFAULT, [Does::Hang]);
    bed.start(vec![hook(&script)]);
    bed.step("default", 1, &["thread.created"]);
    bed.step("a", 1, &["thread.created"]);
    bed.crash().await;
    bed.start(vec![hook(&script)]);
    script.has(2).await;
    assert_eq!(script.names(), ["thread.created", "thread.created"]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_told_of_is_found_within_a_minute() {
    let (mut bed, script) = (Bed::new(), Script::new(9));
    bed.start(vec![hook(&script)]);
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    bed.store("a", 1, &["thread.created"]);
    script.has(1).await;
    assert!(begun.elapsed() <= LOOK);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_passed_over() {
    let (mut bed, script) = (Bed::new(), Script::new(9));
    bed.start(vec![Hook { events: EventFilter::parse(vec!["turn.completed".to_owned()]).unwrap(), ..hook(&script) }]);
    for _ in 0..1000 {
        bed.step("default", 1, &["item.delta", "item.completed"]);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!((bed.status("default").behind, script.asked.lock().unwrap().len()), (0, 0));
    assert_eq!(bed.saves.load(SeqCst), 0);
    sleep(Duration::from_secs(40)).await;
    assert_eq!(bed.saves.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_does_not_look_at_costs_neither_a_page_nor_a_commit() {
    let mut bed = Bed::new();
    let script = Arc::new(Script { looks: Some(b"never"), ..Arc::into_inner(Script::new(9)).unwrap() });
    bed.start(vec![hook(&script)]);
    sleep(Duration::from_secs(1)).await;
    for _ in 0..PASSED_OVER - 1 {
        bed.step("a", 1, &["turn.started"]);
        let status = bed.status("a");
        assert_eq!((status.behind, status.cursor.position), (0, status.cursor.seq), "at once");
    }
    sleep(Duration::from_secs(24 * 60 * 60)).await;
    assert_eq!((bed.saves.load(SeqCst), script.asked.lock().unwrap().len()), (0, 0));
    bed.step("a", 1, &["turn.started"]);
    // Nobody wakes the courier for it.
    sleep(LOOK + SAVE_AFTER.1).await;
    assert_eq!(bed.saves.load(SeqCst), 1);
    // A process that knows nothing of the last of them passes over them again.
    bed.step("a", 1, &["turn.started"]);
    bed.crash().await;
    bed.start(vec![hook(&script)]);
    bed.hooks.carried("audit", None).await;
    assert_eq!(bed.status("a").cursor.position, PASSED_OVER + 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_hook_waits_for_what_there_is_and_not_for_what_comes() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    bed.start(vec![hook(&script)]);
    bed.hooks.carried("audit", Some(tenant("a"))).await;
    script.then(tenant("a"), [down()]);
    bed.step("a", 1, &["turn.started", "turn.completed"]);
    bed.step("b", 1, &["turn.started"]);
    bed.hooks.carried("audit", Some(tenant("b"))).await;
    assert!(script.taken().iter().any(|(of, ..)| *of == tenant("b")));
    bed.hooks.carried("audit", Some(tenant("a"))).await;
    assert_eq!(script.taken().iter().filter(|(of, ..)| *of == tenant("a")).count(), 2, "all of the append");
    // What hangs is another tenant's, or comes later.
    script.then(tenant("a"), [Does::Hang]);
    let waits = bed.hooks.carried("audit", None);
    bed.step("b", 1, &["item.delta"]);
    timeout(LINGER, waits).await.expect("what would be passed over at leisure is waited for");
    bed.step("a", 1, &["turn.started"]);
    assert!(timeout(Duration::from_secs(1), bed.hooks.carried("audit", None)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_passed_over_that_a_page_on_its_way_has_not_reached() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    let wanted = EventFilter::parse(vec!["turn.completed".to_owned()]).unwrap();
    bed.start(vec![Hook { events: wanted, ..hook(&script) }]);
    let mut dice: u32 = 7;
    let mut expected = 0;
    for _ in 0..2_000 {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let names: &[&str] = match dice >> 30 {
            0 => &["turn.completed"],
            1 => &["item.delta", "turn.completed", "item.delta"],
            _ => &["item.delta"],
        };
        expected += names.iter().filter(|name| **name == "turn.completed").count();
        bed.step("a", 1, names);
        // Each time the courier is somewhere else.
        for _ in 0..(dice >> 16) % 4 {
            tokio::task::yield_now().await;
        }
    }
    bed.hooks.carried("audit", None).await;
    let taken: Vec<_> = script.taken().into_iter().map(|(_, position, seq, _)| (position, seq)).collect();
    assert_eq!(taken.len(), expected);
    assert!(taken.is_sorted() && taken.windows(2).all(|pair| pair[0] != pair[1]), "in order, each once");
}

#[tokio::test(start_paused = true)]
async fn tenants_that_are_not_named_are_left_alone() {
    let (mut bed, script) = (Bed::new(), Script::new(9));
    let named = Some(BTreeSet::from([tenant("a")]));
    bed.start(vec![Hook { tenants: named, ..hook(&script) }]);
    bed.step("b", 1, &["thread.created"]);
    bed.step("a", 1, &["thread.created"]);
    script.has(1).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(script.taken(), [(tenant("a"), 1, 1, "thread.created".to_owned())]);
    assert_eq!((bed.hooks.status(tenant("b")), bed.hooks.status(tenant("a")).len()), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn an_end_carries_what_is_left_and_saves_it() {
    let (mut bed, script) = (Bed::new(), Script::new(1));
    bed.start(vec![hook(&script)]);
    for _ in 0..10 {
        bed.step("default", 1, &["turn.started"]);
    }
    bed.hooks.end(Instant::now() + Duration::from_secs(10), Duration::from_secs(10)).await;
    assert_eq!(script.taken().len(), 10);
    let again = Script::new(1);
    bed.start(vec![hook(&again)]);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(again.taken(), []);
}

#[tokio::test(start_paused = true)]
async fn an_end_does_not_wait_for_a_sink_that_hangs_and_waits_not_at_all_for_one_that_is_down() {
    for (does, waits) in [(Does::Hang, 10), (down(), 0)] {
        let (mut bed, script) = (Bed::new(), Script::new(1));
        script.then(TenantId::DEFAULT, [Does::Take, does]);
        bed.start(vec![hook(&script)]);
        bed.step("default", 1, &["thread.created", "turn.started"]);
        script.has(1).await;
        let begun = Instant::now();
        bed.hooks.end(begun + Duration::from_secs(10), Duration::from_secs(10)).await;
        assert_eq!(begun.elapsed().as_secs(), waits);
        // What was taken is saved, what was not comes at the next start.
        bed.start(vec![hook(&script)]);
        script.has(2).await;
        assert_eq!(script.names(), ["thread.created", "turn.started"]);
    }
}
