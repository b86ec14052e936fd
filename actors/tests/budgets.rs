//! What tenants, threads and turns may spend, on the real actors and stores: who is stopped, when, and what is counted.

mod testbed;

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use raddle_actors::{
    Call, Config, Error, GroupBy, Ports, Runtime, ThreadQuery, UsageQuery, store::backend::MemoryMedium,
};
use raddle_domain::{
    budget::{Scope, Unit, Window},
    command::{Interrupt, NewThread, Refused, StartTurn, ThreadPatch},
    event::Event,
    id::{ThreadKey, TurnId},
    price::{Price, Prices, Row},
    record::{Delivery, Turn, TurnOverrides, TurnStatus},
    tenant::{Budget, Budgets, TenantPatch, TenantStatus, Usd},
    time::UnixMs,
};
use testbed::*;

const DAY: u64 = 86_400_000;

fn tokens(limit: u64) -> Budget {
    Budget { tokens: Some(limit), ..Budget::default() }
}

fn total(limit: u64) -> Budgets {
    Budgets { total: Some(tokens(limit)), ..Budgets::default() }
}

fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.medium = Some(MemoryMedium::default());
    bed.limits.reserve_output_tokens = 16;
    bed
}

/// Without tools, whose descriptions a model would be told.
async fn start_on(bed: &Bed) -> Runtime {
    let Ports { store, clock, .. } = bed.ports();
    Runtime::start(bed.config(), Ports { store, clock, ..ports(&bed.model) }).await.unwrap()
}

async fn bound(runtime: &Runtime, budgets: Budgets) {
    let patch = TenantPatch { budgets: Some(budgets), ..TenantPatch::default() };
    if runtime.tenant(OWNER).is_err() {
        runtime.create_tenant(OWNER, patch, None).await.unwrap();
    } else {
        runtime.patch_tenant(OWNER, patch, None, None).await.unwrap();
    }
}

/// What is spent of the tenant's only budget, and reserved.
async fn spent(runtime: &Runtime) -> (u64, u64) {
    let [status] = runtime.budget_status(OWNER).await.unwrap()[..] else { panic!("one budget in one unit") };
    (status.state.spent, status.reserved)
}

/// What the bill says, in tokens.
async fn billed(runtime: &Runtime) -> u64 {
    let query = UsageQuery { group_by: GroupBy::Day, ..UsageQuery::default() };
    let totals = runtime.usage(OWNER, query).await.unwrap().totals;
    totals.input_tokens + totals.output_tokens
}

async fn refused(runtime: &Runtime, key: ThreadKey) -> raddle_domain::budget::BudgetState {
    let before = runtime.thread(key).await.unwrap();
    let error = runtime.start_turn(key, prompt("p", Delivery::Queue), Call::default()).await.unwrap_err();
    let Error::Refused(Refused::BudgetExceeded(state)) = error else { panic!("{error}") };
    assert_eq!(runtime.thread(key).await.unwrap(), before, "something is stored");
    *state
}

fn code(turn: &Turn) -> (TurnStatus, &str) {
    (turn.status, turn.error.as_ref().map_or("", |error| error.code.as_str()))
}

#[tokio::test]
async fn a_thousand_threads_that_race_one_budget_overdraw_it_by_what_their_estimates_were_wrong() {
    const LIMIT: u64 = 10_000;
    const THREADS: usize = 1_000;
    let mut bed = bed();
    bed.loaded_threads = 2 * THREADS;
    // What the model says of each call is this much more than its bytes tell.
    const ERROR: u64 = 30;
    let text = format!("hold {}", "x".repeat(195));
    let input = text.len() as u64 / 4;
    bed.model.input_tokens.store(input + ERROR, SeqCst);
    let runtime = start_on(&bed).await;
    bound(&runtime, total(LIMIT)).await;
    let race = (0..THREADS).map(|_| {
        let (runtime, text) = (runtime.clone(), text.clone());
        tokio::spawn(async move {
            let key = create(&runtime).await;
            match runtime.start_turn(key, prompt(&text, Delivery::Reject), Call::default()).await {
                Ok(done) => match done.value {
                    raddle_actors::Started::Turn(turn) => Some((key, turn.id)),
                    raddle_actors::Started::Queued { .. } => panic!("queued"),
                },
                Err(Error::Refused(Refused::BudgetExceeded(_))) => None,
                Err(error) => panic!("{error}"),
            }
        })
    });
    let mut turns: Vec<(ThreadKey, TurnId)> = Vec::new();
    for started in race.collect::<Vec<_>>() {
        turns.extend(started.await.unwrap());
    }
    // Whoever got no reservation has failed by the time the others go on.
    let all_in_flight = async {
        while runtime.health().turns_failed + u64::from(bed.model.calls.load(SeqCst)) < turns.len() as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, all_in_flight).await.expect("what has no room ends");
    let calls = u64::from(bed.model.calls.load(SeqCst));
    assert!(calls >= LIMIT / (input + 16) && calls <= LIMIT / (input + 1), "{calls} calls fit");
    let (before, reserved) = spent(&runtime).await;
    assert!(before == 0 && reserved <= LIMIT, "{before} {reserved}");

    bed.model.gate.add_permits(THREADS);
    let (mut done, mut stopped) = (0, 0);
    for (key, turn) in turns {
        let turn = runtime.wait_turn(key, turn, LONG).await.unwrap();
        match code(&turn) {
            (TurnStatus::Completed, _) => done += 1,
            (TurnStatus::Failed, "budget-exceeded") => stopped += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(stopped > 0, "{done} were answered");
    let (spent, reserved) = spent(&runtime).await;
    assert_eq!(reserved, 0, "all was given back");
    assert_eq!(spent, billed(&runtime).await, "what is in memory is what is on the bill");
    // A fragment of the model is one token: it is what a call may be stopped too late by.
    assert!(spent <= LIMIT + calls * (ERROR + 1), "{spent} spent by {calls} calls");
    assert!(spent > LIMIT / 2, "{spent} spent");
    let key = create(&runtime).await;
    if spent >= LIMIT {
        assert_eq!(refused(&runtime, key).await.spent, spent);
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_budget_that_is_lowered_stops_a_running_call_and_keeps_what_it_said() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    bound(&runtime, total(10_000)).await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, &format!("hold {}", "x".repeat(100))).await;
    answering(&runtime, key).await;
    bound(&runtime, total(20)).await;
    bed.model.gate.add_permits(1);
    let turn = runtime.wait_turn(key, turn.id, LONG).await.unwrap();
    assert_eq!(code(&turn), (TurnStatus::Failed, "budget-exceeded"));
    let names = names(&runtime, key).await;
    let place = |name: &str| names.iter().rposition(|known| *known == name).unwrap_or_else(|| panic!("{names:?}"));
    let order = ["item.delta", "item.completed", "budget.exceeded", "turn.completed"].map(place);
    assert!(order.is_sorted(), "{names:?}");
    assert_eq!(place("budget.reserved"), names.iter().position(|name| *name == "item.delta").unwrap() + 1);
    let [answer] = &answers(&runtime, key).await[..] else { panic!("one answer") };
    assert!(answer.starts_with("held echo: ") && answer.len() < 60, "{answer}");
    assert_eq!(spent(&runtime).await, (billed(&runtime).await, 0));
    assert_sound(&log(&runtime, key).await, true);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_day_s_budget_is_there_again_after_midnight_and_a_restart_forgets_nothing() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    bound(&runtime, Budgets { day: Some(tokens(20)), ..Budgets::default() }).await;
    let key = create(&runtime).await;
    say(&runtime, key, "twenty letters and some").await;
    let state = refused(&runtime, key).await;
    assert_eq!((state.scope, state.window, state.unit), (Scope::Tenant, Some(Window::Day), Unit::Tokens));
    let midnight = state.resets_at.unwrap();
    assert!(midnight.0 % DAY == 0 && midnight.0 > 1_795_000_000_000 && midnight.0 - 1_795_000_000_000 <= DAY);
    runtime.shutdown(LONG).await;

    let runtime = start_on(&bed).await;
    assert_eq!(refused(&runtime, key).await, state);
    bed.clock.advance(midnight.0 - 1 - 1_795_000_000_000);
    assert_eq!(refused(&runtime, key).await, state);
    bed.clock.advance(1);
    assert_eq!(spent(&runtime).await, (0, 0));
    say(&runtime, key, "x").await;
    assert!(spent(&runtime).await.0 > 0);
    // What is for ever is still counted, also where nobody asked for it before.
    bound(&runtime, total(21)).await;
    let state = refused(&runtime, key).await;
    assert_eq!((state.window, state.resets_at), (Some(Window::Total), None));
    assert_eq!(state.spent, billed(&runtime).await);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn an_interrupt_is_no_way_around_a_budget_and_nor_is_the_end_of_the_thread() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    bound(&runtime, total(10_000)).await;
    let text = format!("hold empty {}", "x".repeat(389));
    let mut known = 0;
    for delete in [false, true] {
        let key = create(&runtime).await;
        let calls = bed.model.calls.load(SeqCst);
        let turn = start(&runtime, key, &text).await;
        // It has said nothing yet.
        while bed.model.calls.load(SeqCst) == calls {
            tokio::task::yield_now().await;
        }
        assert!(spent(&runtime).await.1 >= 100, "it is reserved for");
        if delete {
            runtime.delete_thread(key, Call::default()).await.unwrap();
        } else {
            let interrupt = Interrupt { turn: turn.id, pause_queue: false };
            runtime.interrupt(key, interrupt, Call::default()).await.unwrap();
            let log = log(&runtime, key).await;
            let usage = log.iter().find_map(|record| match &record.event {
                Event::UsageRecorded(_, entry) => Some(entry.usage),
                _ => None,
            });
            let usage = usage.expect("it is settled");
            assert_eq!((usage.input_tokens, usage.model_calls, usage.estimated_calls), (100, 0, 1));
        }
        let (spent, reserved) = spent(&runtime).await;
        assert_eq!((spent >= known + 100, reserved), (true, 0), "{spent}");
        assert_eq!(spent, billed(&runtime).await);
        known = spent;
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn who_has_no_budget_is_told_of_none() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    let key = create(&runtime).await;
    say(&runtime, key, "p").await;
    let turn = start(&runtime, key, "hold p").await;
    answering(&runtime, key).await;
    runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, Call::default()).await.unwrap();
    let names = names(&runtime, key).await;
    assert_eq!(names.iter().filter(|name| **name == "usage.recorded").count(), 1, "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("budget.")), "{names:?}");
    assert_eq!(runtime.budget_status(OWNER).await.unwrap(), []);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_budget_that_comes_while_a_call_runs_holds_for_what_comes() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, &format!("hold {}", "x".repeat(100))).await;
    answering(&runtime, key).await;
    let budget = Some(Some(tokens(50)));
    runtime.patch_thread(key, ThreadPatch { budget, ..ThreadPatch::default() }, Call::default()).await.unwrap();
    // Whoever is heard after it finds the engine told of it.
    let title = ThreadPatch { title: Some(Some("heard".into())), ..ThreadPatch::default() };
    runtime.patch_thread(key, title, Call::default()).await.unwrap();
    bed.model.gate.add_permits(1);
    let turn = runtime.wait_turn(key, turn.id, LONG).await.unwrap();
    assert_eq!(code(&turn), (TurnStatus::Failed, "budget-exceeded"));
    let thread = runtime.thread(key).await.unwrap();
    assert!(thread.spent.unwrap().tokens >= 50, "{:?}", thread.spent);
    assert_eq!(refused(&runtime, key).await.scope, Scope::Thread);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn no_model_is_called_for_a_tenant_that_is_suspended() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    bound(&runtime, Budgets::default()).await;
    let suspend = |suspended| TenantPatch { suspended: Some(suspended), ..TenantPatch::default() };
    let tenant = runtime.patch_tenant(OWNER, suspend(true), None, None).await.unwrap();
    assert_eq!(tenant.status, TenantStatus::Suspended);
    let key = create(&runtime).await;
    assert_eq!(code(&say(&runtime, key, "p").await), (TurnStatus::Failed, "tenant-suspended"));
    assert_eq!(bed.model.calls.load(SeqCst), 0);
    runtime.patch_tenant(OWNER, suspend(false), None, None).await.unwrap();
    assert_eq!(say(&runtime, key, "p").await.status, TurnStatus::Completed);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn what_has_no_price_is_not_called_under_a_budget_in_money() {
    let bed = bed();
    let priced = Price { version: "v".into(), input: 1_000_000, cached_input: None, output: 1_000_000 };
    let (from, until) = (UnixMs(0), None);
    let row = Row { engine: "test".into(), model: "test".into(), from, until, price: priced };
    let dollars = |dollars| Budget { usd: Usd::from_dollars(dollars), ..Budget::default() };
    for (prices, expected) in [
        (Prices::default(), (TurnStatus::Failed, "budget-exceeded")),
        (Prices::new(vec![row]), (TurnStatus::Completed, "")),
    ] {
        let Ports { store, clock, .. } = bed.ports();
        let ports = Ports { store, clock, prices: Arc::new(prices), ..ports(&bed.model) };
        let runtime = Runtime::start(bed.config(), ports).await.unwrap();
        bound(&runtime, Budgets { month: Some(dollars(0.001)), ..Budgets::default() }).await;
        let key = create(&runtime).await;
        let turn = say(&runtime, key, "p").await;
        assert_eq!(code(&turn), expected, "{:?}", turn.error);
        if let Some(error) = &turn.error {
            assert!(error.message.contains("no price"), "{}", error.message);
        } else {
            // A micro-dollar for each token.
            assert_eq!(spent(&runtime).await.0, billed(&runtime).await);
        }
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn a_tenant_is_warned_once_in_whichever_thread_it_is() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    bound(&runtime, total(100)).await;
    let keys = [create(&runtime).await, create(&runtime).await, create(&runtime).await];
    let mut warnings = 0;
    for key in keys {
        say(&runtime, key, &"x".repeat(25)).await;
        warnings += names(&runtime, key).await.iter().filter(|name| **name == "budget.warning").count();
    }
    assert_eq!(warnings, 1);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn prompts_that_wait_fail_one_by_one_when_nothing_is_left() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    let new = NewThread { budget: Some(tokens(30)), ..NewThread::with(choice()) };
    let key = key(&runtime.create_thread(OWNER, new, Call::default()).await.unwrap().value);
    start(&runtime, key, "hold a prompt of some length").await;
    for text in ["q1", "q2"] {
        runtime.start_turn(key, prompt(text, Delivery::Queue), Call::default()).await.unwrap();
    }
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    let turns = runtime.turns(key, None, 9).await.unwrap().data;
    assert_eq!(turns.iter().map(code).collect::<Vec<_>>(), [(TurnStatus::Failed, "budget-exceeded"); 3]);
    assert_eq!(bed.model.calls.load(SeqCst), 1);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_request_that_was_accepted_is_answered_again_though_nothing_is_left() {
    let bed = bed();
    let runtime = start_on(&bed).await;
    bound(&runtime, total(10)).await;
    let key = create(&runtime).await;
    let first = runtime.start_turn(key, prompt("ten letters", Delivery::Queue), keyed(1, 1)).await.unwrap();
    rests(&runtime, key).await;
    refused(&runtime, key).await;
    let again = runtime.start_turn(key, prompt("ten letters", Delivery::Queue), keyed(1, 1)).await.unwrap();
    assert!(again.replayed && !first.replayed);
    runtime.shutdown(LONG).await;
}

// ---- a process that dies -------------------------------------------------------------------------

const DIR: &str = "RADDLE_TEST_DIES_IN";
const COMMIT: &str = "RADDLE_TEST_DIES_AT_COMMIT";
/// More than the commits of the life below.
const COMMITS: u32 = 14;
const LIMIT: u64 = 200;

/// A life under a budget: two turns, of which the second is stopped.
async fn life(runtime: &Runtime) {
    bound(runtime, total(LIMIT)).await;
    let key = create(runtime).await;
    for _ in 0..3 {
        let start = StartTurn { overrides: TurnOverrides::default(), ..prompt(&"x".repeat(80), Delivery::Reject) };
        if let Ok(done) = runtime.start_turn(key, start, Call::default()).await
            && let raddle_actors::Started::Turn(turn) = done.value
        {
            drop(runtime.wait_turn(key, turn.id, LONG).await);
        }
    }
}

/// The process that dies.
#[tokio::test]
#[ignore = "another test runs it as a process of its own"]
async fn dies() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let at: u32 = std::env::var(COMMIT).unwrap().parse().unwrap();
    let count = AtomicU32::new(0);
    let config = config(Path::new(&dir));
    // Odd ones die before their commit, even ones after it.
    let store = Hooked::open(
        &config.store,
        Box::new(move |_, commit| {
            let place = count.fetch_add(2, SeqCst);
            if place + 1 == at {
                std::process::abort();
            }
            let done = commit();
            if place + 2 == at {
                std::process::abort();
            }
            done
        }),
    );
    let ports = Ports { store: Some(Arc::new(store)), clock: TestClock::new(), ..ports(&TestModel::new()) };
    let runtime = Runtime::start(config, ports).await.unwrap();
    life(&runtime).await;
    runtime.shutdown(LONG).await;
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.limits.reserve_output_tokens = 16;
    config
}

#[tokio::test]
async fn a_process_that_dies_at_any_commit_leaves_no_budget_overdrawn() {
    let mut died = 0;
    for at in 1..=2 * COMMITS {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "dies", "--ignored", "--nocapture", "--test-threads", "1"]);
        process.env(DIR, dir.path()).env(COMMIT, at.to_string());
        let ended = tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap();
        match std::os::unix::process::ExitStatusExt::signal(&ended.status) {
            Some(6) => died += 1,
            // The life was shorter.
            signal => assert!(ended.status.success(), "{signal:?}: {}", String::from_utf8_lossy(&ended.stderr)),
        }
        let ports = Ports { clock: TestClock::new(), ..ports(&TestModel::new()) };
        let runtime = Runtime::start(config(dir.path()), ports).await.unwrap();
        for thread in runtime.threads(OWNER, ThreadQuery { limit: 9, ..ThreadQuery::default() }).await.unwrap().data {
            rests(&runtime, key(&thread)).await;
            assert_sound(&log(&runtime, key(&thread)).await, true);
        }
        life(&runtime).await;
        let (spent, reserved) = spent(&runtime).await;
        assert_eq!(reserved, 0);
        assert_eq!(spent, billed(&runtime).await);
        // Nothing is wrong with the estimates of this model but the one token by which it is noticed.
        assert!(spent <= LIMIT + 4, "{spent} spent when the process died at {at}");
        assert!(spent >= LIMIT / 2, "{spent} spent when the process died at {at}");
        runtime.shutdown(LONG).await;
    }
    assert!(died >= COMMITS, "the process died {died} times");
}
