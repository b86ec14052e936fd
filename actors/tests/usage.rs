//! What a turn costs, what a report adds up, and which model a routing rule chooses, on the real actors and stores.

mod support;
mod testbed;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use raddle_actors::{
    Call, Config, Error, ForkAt, GroupBy, Ports, RoutingRule, Runtime, Started, UsageKey, UsageQuery, UsageReport,
    store::memory::MemoryStore,
};
use raddle_domain::{
    command::{NewThread, Refused, StartTurn, ThreadPatch},
    id::{TenantId, ThreadId, ThreadKey},
    ports::{Clock, LogStore, Model, Models, Spent, UnknownModel, Write},
    price::{Price, Prices, Row, Totals},
    record::{Delivery, ModelChoice, Turn, TurnOverrides},
    time::UnixMs,
};
use testbed::*;

const LONG: Duration = Duration::from_secs(30);
const DAY: u64 = 86_400_000;
/// The day on which the dearer price of `a` begins.
const CHANGE: u64 = 20_000;

/// Time as the test says it.
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(SeqCst))
    }
}

/// Every name is a model, until `gone` is set: then `b` is none any more.
struct Named {
    models: Arc<dyn Models>,
    gone: AtomicBool,
}

impl Models for Named {
    fn resolve(&self, _: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        match model {
            Some("b") if self.gone.load(SeqCst) => Err(UnknownModel("it was taken away".into())),
            model => Ok(named(model.unwrap_or("a"))),
        }
    }
    fn engine(&self, engine: &str) -> Option<Arc<dyn Model>> {
        self.models.engine(engine)
    }
    fn engines(&self) -> Vec<String> {
        self.models.engines()
    }
}

fn named(model: &str) -> ModelChoice {
    ModelChoice { engine: "test".into(), model: model.into() }
}

struct World {
    runtime: Runtime,
    model: Arc<TestModel>,
    clock: Arc<TestClock>,
    models: Arc<Named>,
    dir: tempfile::TempDir,
}

/// `a` costs 1 per token and, from the day of the change, 10; `b` costs 100; nobody knows what others cost.
fn prices() -> Prices {
    let row = |model: &str, from: u64, until: Option<u64>, pico: u64, version: &str| Row {
        engine: "test".into(),
        model: model.into(),
        from: UnixMs(from * DAY),
        until: until.map(|until| UnixMs(until * DAY)),
        price: Price { version: version.into(), input: pico, cached_input: None, output: pico },
    };
    Prices::new(vec![
        row("a", 0, Some(CHANGE), 1, "before"),
        row("a", CHANGE, None, 10, "after"),
        row("b", 0, None, 100, "b"),
    ])
}

fn ports_of(model: &Arc<TestModel>) -> (Ports, Arc<TestClock>, Arc<Named>) {
    // A second before the price changes.
    let clock = Arc::new(TestClock(AtomicU64::new(CHANGE * DAY - 1_000)));
    let ports = ports(model);
    let models = Arc::new(Named { models: ports.models.clone(), gone: false.into() });
    let ports = Ports { models: models.clone(), prices: Arc::new(prices()), clock: clock.clone(), ..ports };
    (ports, clock, models)
}

async fn world() -> World {
    world_with(|dir: &Path| Config::new(dir)).await
}

async fn world_with(config: impl FnOnce(&Path) -> Config) -> World {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let (ports, clock, models) = ports_of(&model);
    let runtime = Runtime::start(config(dir.path()), ports).await.unwrap();
    World { runtime, model, clock, models, dir }
}

impl World {
    async fn thread(&self, model: &str) -> ThreadKey {
        let new = NewThread::with(named(model));
        key(&self.runtime.create_thread(TenantId::DEFAULT, new, Call::default()).await.unwrap().value)
    }

    async fn start(&self, key: ThreadKey, text: &str, overrides: TurnOverrides) -> Result<Started, Error> {
        let start = StartTurn { overrides, ..prompt(text, Delivery::Queue) };
        Ok(self.runtime.start_turn(key, start, Call::default()).await?.value)
    }

    async fn ended(&self, key: ThreadKey, started: Started) -> Turn {
        let Started::Turn(turn) = started else { panic!("queued") };
        self.runtime.wait_turn(key, turn.id, LONG).await.unwrap()
    }

    /// A turn, from its start to its end.
    async fn turn(&self, key: ThreadKey, text: &str, overrides: TurnOverrides) -> Turn {
        let started = self.start(key, text, overrides).await.unwrap();
        self.ended(key, started).await
    }

    async fn set_rules(&self, rules: &[(&str, &str)]) {
        let rule = |&(intent, model): &(&str, &str)| RoutingRule { intent: intent.into(), model: model.into() };
        self.runtime.set_routing_rules(TenantId::DEFAULT, rules.iter().map(rule).collect(), None).await.unwrap();
    }

    async fn report(&self, group_by: GroupBy) -> UsageReport {
        self.runtime.usage(TenantId::DEFAULT, UsageQuery { group_by, ..UsageQuery::default() }).await.unwrap()
    }
}

/// What the model reports for a prompt: a token in, and a token out for every letter of the answer.
fn tokens(text: &str) -> u64 {
    1 + format!("echo: {text}").len() as u64
}

fn intent(intent: &str) -> TurnOverrides {
    TurnOverrides { route_intent: Some(intent.into()), ..TurnOverrides::default() }
}

fn explicit(model: &str) -> TurnOverrides {
    TurnOverrides { choice: Some(named(model)), ..TurnOverrides::default() }
}

// ---- money ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_turn_costs_what_its_model_cost_when_the_turn_began() {
    let world = world().await;
    let key = world.thread("a").await;
    let held = world.start(key, "hold", TurnOverrides::default()).await.unwrap();
    // The price changes while the turn is open.
    world.clock.0.store(CHANGE * DAY, SeqCst);
    world.model.gate.add_permits(1);
    let first = world.ended(key, held).await;
    let second = world.turn(key, "next", TurnOverrides::default()).await;
    let version = |turn: &Turn| turn.settings.price.as_ref().map(|price| price.version.clone()).unwrap_or_default();
    assert_eq!([version(&first), version(&second)], ["before", "after"]);
    let report = world.report(GroupBy::Day).await;
    // What is reported is on the bill of the day on which it was reported.
    let [(UsageKey::Day(day), _)] = report.rows[..] else { panic!("{report:?}") };
    assert_eq!(u64::from(day), CHANGE);
    assert_eq!((report.totals.turns, report.totals.model_calls), (2, 2));
    assert_eq!(report.totals.pico_usd, tokens("hold") + 10 * tokens("next"));
    assert_eq!(report.totals.unpriced_calls, 0);
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn each_turn_is_priced_by_its_own_model_however_often_the_thread_changes_its() {
    let world = world().await;
    let key = world.thread("a").await;
    world.turn(key, "one", TurnOverrides::default()).await;
    let patch = ThreadPatch { choice: Some(named("b")), ..ThreadPatch::default() };
    world.runtime.patch_thread(key, patch, Call::default()).await.unwrap();
    world.turn(key, "two", TurnOverrides::default()).await;
    world.turn(key, "three", explicit("a")).await;
    world.turn(key, "four", explicit("nobody knows")).await;
    let report = world.report(GroupBy::Model).await;
    let cost = |model: &str| {
        let key = UsageKey::Model { provider: "test".into(), model: model.into() };
        let found = report.rows.iter().find(|(of, _)| *of == key).map(|(_, totals)| totals);
        found.unwrap_or_else(|| panic!("no {model}: {report:?}")).cost().map(|cost| cost.pico_usd)
    };
    let [a, b] = [tokens("one") + tokens("three"), 100 * tokens("two")];
    assert_eq!([cost("a"), cost("b"), cost("nobody knows")], [Some(a), Some(b), None]);
    assert_eq!(report.rows.len(), 3);
    assert_eq!((report.totals.pico_usd, report.totals.unpriced_calls, report.totals.turns), (a + b, 1, 4));
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn what_was_spent_is_the_same_after_a_restart_with_other_prices() {
    let world = world().await;
    let key = world.thread("a").await;
    world.turn(key, "one", TurnOverrides::default()).await;
    let before = world.report(GroupBy::Thread).await;
    assert_eq!(before.totals.turns, 1);
    world.runtime.shutdown(LONG).await;
    drop(world.runtime);
    let (ports, ..) = ports_of(&world.model);
    let ports = Ports { prices: Arc::default(), ..ports };
    let runtime = Runtime::start(Config::new(world.dir.path()), ports).await.unwrap();
    let query = UsageQuery { group_by: GroupBy::Thread, ..UsageQuery::default() };
    assert_eq!(runtime.usage(TenantId::DEFAULT, query).await.unwrap(), before);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_fork_does_not_repeat_what_its_parent_spent() {
    let world = world().await;
    let parent = world.thread("a").await;
    world.turn(parent, "one", TurnOverrides::default()).await;
    let before = world.report(GroupBy::Thread).await;
    assert_eq!(before.totals.turns, 1);
    let fork = world.runtime.fork(parent, ForkAt::Settled, None, Call::default()).await.unwrap().value;
    assert_eq!(world.report(GroupBy::Thread).await, before);
    let fork = key(&fork);
    world.turn(fork, "two", TurnOverrides::default()).await;
    let report = world.report(GroupBy::Thread).await;
    let spent = |key: ThreadKey| {
        let found = report.rows.iter().find(|(of, _)| *of == UsageKey::Thread(key.thread));
        found.map(|(_, totals)| (totals.turns, totals.pico_usd))
    };
    assert_eq!([spent(parent), spent(fork)], [Some((1, tokens("one"))), Some((1, tokens("two")))]);
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_deleted_thread_stays_on_the_bill_and_another_tenants_never_was() {
    let world = world().await;
    let key = world.thread("a").await;
    world.turn(key, "one", TurnOverrides::default()).await;
    let before = world.report(GroupBy::Thread).await;
    assert_eq!(before.totals.turns, 1);
    world.runtime.delete_thread(key, Call::default()).await.unwrap();
    assert_eq!(world.report(GroupBy::Thread).await, before);
    let other: TenantId = "other".parse().unwrap();
    assert_eq!(world.runtime.usage(other, UsageQuery::default()).await.unwrap(), UsageReport::default());
    world.runtime.shutdown(LONG).await;
}

/// A runtime over a store in which each of `count` threads spent a turn, 5,000 threads a day.
async fn long_bill(count: u64) -> (Runtime, tempfile::TempDir) {
    let store = MemoryStore::default();
    let writes = (0..count).map(|n| {
        let thread = ThreadId::from_bytes(u128::from(n + 1).to_be_bytes());
        let mut append = support::append(ThreadKey { tenant: TenantId::DEFAULT, thread }, 0, 1);
        let totals = Totals { turns: 1, ..Totals::default() };
        let day = u32::try_from(n / 5_000).unwrap();
        append.spent.push(Spent { day, engine: "e".into(), model: "m".into(), totals });
        Write::Append(append)
    });
    assert!(store.commit(&writes.collect::<Vec<_>>()).unwrap().iter().all(Result::is_ok));
    let dir = tempfile::tempdir().unwrap();
    let (ports, ..) = ports_of(&TestModel::new());
    let ports = Ports { store: Some(Arc::new(store)), ..ports };
    (Runtime::start(Config::new(dir.path()), ports).await.unwrap(), dir)
}

#[tokio::test]
async fn a_bill_of_many_pages_is_added_up_whole() {
    let (runtime, _dir) = long_bill(10_001).await;
    let report = async |group_by, since: Option<u64>, until: Option<u64>| {
        let [since, until] = [since, until].map(|at| at.map(UnixMs));
        runtime.usage(TenantId::DEFAULT, UsageQuery { since, until, group_by }).await
    };
    let all = report(GroupBy::Day, None, None).await.unwrap();
    let turns: Vec<_> = all.rows.iter().map(|(key, totals)| (key.clone(), totals.turns)).collect();
    assert_eq!(turns, [(UsageKey::Day(0), 5_000), (UsageKey::Day(1), 5_000), (UsageKey::Day(2), 1)]);
    assert_eq!(all.totals.turns, 10_001);
    // Both days are counted, whatever their hour.
    let some = report(GroupBy::Provider, Some(2 * DAY - 1), Some(2 * DAY)).await.unwrap();
    assert_eq!(some.totals.turns, 5_001);
    let threads = report(GroupBy::Thread, None, Some(DAY)).await.unwrap();
    assert_eq!(threads.rows.len(), 10_000);
    // More rows than one answer should hold.
    let refused = report(GroupBy::Thread, None, None).await;
    assert!(matches!(refused, Err(Error::Refused(Refused::Invalid { field: "group_by", .. }))), "{refused:?}");
    let refused = report(GroupBy::Day, Some(DAY), Some(DAY - 1)).await;
    assert!(matches!(refused, Err(Error::Refused(Refused::Invalid { field: "since", .. }))), "{refused:?}");
    runtime.shutdown(LONG).await;
}

// ---- routing -------------------------------------------------------------------------------------

#[tokio::test]
async fn an_intent_chooses_the_model_of_its_rule_and_of_no_other() {
    let world = world().await;
    let key = world.thread("a").await;
    world.set_rules(&[("Code", "b"), ("chat", "c")]).await;
    let model = async |overrides| world.turn(key, "x", overrides).await.settings.model;
    assert_eq!(model(intent(" CODE ")).await, "b");
    assert_eq!(model(intent("chat")).await, "c");
    // No rule: the thread's own model. No intent: no rule.
    assert_eq!(model(intent("poetry")).await, "a");
    assert_eq!(model(TurnOverrides::default()).await, "a");
    // Whoever names a model gets it.
    assert_eq!(model(TurnOverrides { choice: Some(named("d")), ..intent("code") }).await, "d");
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn rules_are_replaced_whole_kept_as_given_and_outlive_a_restart() {
    let world = world().await;
    let rules = async |runtime: &Runtime| {
        let rules = runtime.routing_rules(TenantId::DEFAULT).await.unwrap();
        rules.into_iter().map(|rule| (rule.intent, rule.model)).collect::<Vec<_>>()
    };
    assert_eq!(rules(&world.runtime).await, []);
    world.set_rules(&[("z", "b"), (" A ", "c"), ("m", "d")]).await;
    world.set_rules(&[("z", "b"), (" A ", "c")]).await;
    let kept = [("z".to_owned(), "b".to_owned()), (" A ".to_owned(), "c".to_owned())];
    assert_eq!(rules(&world.runtime).await, kept);
    let other: TenantId = "other".parse().unwrap();
    assert_eq!(world.runtime.routing_rules(other).await.unwrap(), []);
    // What is refused changes nothing.
    let bad = vec![RoutingRule { intent: " ".into(), model: "b".into() }];
    world.runtime.set_routing_rules(TenantId::DEFAULT, bad, None).await.unwrap_err();
    world.runtime.shutdown(LONG).await;
    drop(world.runtime);
    let (ports, ..) = ports_of(&world.model);
    let runtime = Runtime::start(Config::new(world.dir.path()), ports).await.unwrap();
    assert_eq!(rules(&runtime).await, kept);
    runtime.set_routing_rules(TenantId::DEFAULT, Vec::new(), None).await.unwrap();
    assert_eq!(rules(&runtime).await, []);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_prompt_that_waits_keeps_the_model_that_was_chosen_when_it_came() {
    let world = world().await;
    let key = world.thread("a").await;
    world.set_rules(&[("code", "b")]).await;
    let held = world.start(key, "hold", TurnOverrides::default()).await.unwrap();
    let Ok(Started::Queued { admission, .. }) = world.start(key, "later", intent("code")).await else {
        panic!("not queued")
    };
    assert_eq!(admission.overrides.route_intent.as_deref(), Some("code"));
    world.set_rules(&[("code", "c")]).await;
    world.model.gate.add_permits(1);
    world.ended(key, held).await;
    let turns = world.runtime.turns(key, None, 10).await.unwrap().data;
    let later = world.ended(key, Started::Turn(Box::new(turns[1].clone()))).await;
    assert_eq!(later.settings.model, "b");
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_rule_whose_model_is_gone_refuses_the_start_and_leaves_no_trace() {
    let world = world().await;
    let key = world.thread("a").await;
    world.set_rules(&[("code", "b")]).await;
    let before = world.runtime.thread(key).await.unwrap();
    world.models.gone.store(true, SeqCst);
    let refused = world.start(key, "x", intent("code")).await;
    assert!(matches!(refused, Err(Error::Refused(Refused::Invalid { field: "route_intent", .. }))), "{refused:?}");
    assert_eq!(world.runtime.thread(key).await.unwrap(), before);
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_start_that_was_accepted_is_replayed_though_its_rule_leads_nowhere_any_more() {
    let world = world().await;
    let key = world.thread("a").await;
    world.set_rules(&[("code", "b")]).await;
    let asked = || StartTurn { prompt: "x".into(), overrides: intent("code"), ..StartTurn::default() };
    let first = world.runtime.start_turn(key, asked(), keyed(1, 1)).await.unwrap();
    world.models.gone.store(true, SeqCst);
    let again = world.runtime.start_turn(key, asked(), keyed(1, 1)).await.unwrap();
    assert_eq!((again.value, again.replayed), (first.value, true));
    let other = world.runtime.start_turn(key, asked(), keyed(1, 2)).await;
    assert!(matches!(other, Err(Error::IdempotencyMismatch)), "{other:?}");
    world.runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_start_that_names_no_intent_reads_nothing() {
    // A runtime in which nothing can be read.
    let world = world_with(|dir| Config { reads_in_flight: 0, ..Config::new(dir) }).await;
    let key = world.thread("a").await;
    assert!(world.start(key, "x", TurnOverrides::default()).await.is_ok());
    assert!(world.start(key, "x", TurnOverrides { choice: Some(named("b")), ..intent("code") }).await.is_ok());
    let refused = world.start(key, "x", intent("code")).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    world.runtime.shutdown(LONG).await;
}
