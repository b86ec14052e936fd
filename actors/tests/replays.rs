//! A request that is made again under its key is answered as it was the first time; what was spent is counted once.

mod testbed;

use std::sync::{Arc, atomic::Ordering::SeqCst};

use raddle_actors::{Call, Done, Error, ForkAt, Ports, RecordQuery, Runtime};
use raddle_domain::{
    command::{Compact, Interrupt, Steer},
    event::Event,
    id::{TenantId, ThreadId, ThreadKey},
    ports::LogStore,
    price::{Price, Prices, Row, Totals},
    record::{Decision, Delivery, Resolution, Undelivered},
    time::UnixMs,
};
use testbed::*;

/// What a verb answered, in a form that all of them share.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    value: String,
    seq: u64,
}

fn told<T: std::fmt::Debug>(done: Result<Done<T>, Error>) -> Result<(Told, bool), Error> {
    done.map(|done| (Told { value: format!("{:?}", done.value), seq: done.seq }, done.replayed))
}

/// The threads that the verbs are tried on, and what they are about.
struct Stage {
    steered: (ThreadKey, raddle_domain::id::TurnId),
    decided: raddle_domain::id::ApprovalId,
    answered: raddle_domain::id::QuestionId,
    uncertain: (ThreadKey, raddle_domain::id::OperationId),
    edited: ThreadKey,
    forked: ThreadKey,
    compacted: ThreadKey,
    saved: ThreadKey,
    interrupted: (ThreadKey, raddle_domain::id::TurnId),
    queued: ThreadKey,
    rolled_back: ThreadKey,
}

const VERBS: [&str; 12] = [
    "steer",
    "deliver",
    "decide",
    "answer",
    "resolve",
    "edit",
    "fork",
    "compact",
    "checkpoint",
    "interrupt",
    "queue",
    "rollback",
];

async fn stage(runtime: &Runtime) -> Stage {
    let waiting = async |text: &str| {
        let key = create(runtime).await;
        let turn = start(runtime, key, text).await.id;
        waits(runtime, key).await;
        (key, turn)
    };
    let talked = async || {
        let key = create(runtime).await;
        say(runtime, key, "one").await;
        key
    };
    let steered = waiting("call gated_once a").await;
    let (decided, _) = waiting("call gated_once a").await;
    let decided = pending(runtime, decided).await.remove(0).id;
    waiting("call ask why?").await;
    let all = RecordQuery { open: true, limit: 9, ..RecordQuery::default() };
    let answered = runtime.questions(OWNER, all.clone()).await.unwrap().data.remove(0).id;
    let (uncertain, _) = waiting("call once a panics").await;
    let uncertain = (uncertain, runtime.effects(OWNER, all).await.unwrap().data.remove(0).operation_id);
    let (edited, forked, compacted, saved) = (talked().await, talked().await, talked().await, talked().await);
    let interrupted = waiting("call once a; call gated_once b").await;
    let (queued, _) = waiting("call gated_once a").await;
    let (rolled_back, _) = waiting("call gated_once a").await;
    Stage { steered, decided, answered, uncertain, edited, forked, compacted, saved, interrupted, queued, rolled_back }
}

async fn run(runtime: &Runtime, stage: &Stage, verb: &str, call: Call) -> Result<(Told, bool), Error> {
    match verb {
        "steer" => {
            let steer = Steer { turn: stage.steered.1, prompt: "s".into(), undelivered: Undelivered::Report };
            told(runtime.steer(stage.steered.0, steer, call).await)
        }
        "deliver" => told(runtime.start_turn(stage.steered.0, prompt("d", Delivery::Steer), call).await),
        "decide" => told(runtime.decide(OWNER, stage.decided, Decision::Approved, None, call).await),
        "answer" => told(runtime.answer(OWNER, stage.answered, "because".into(), call).await),
        "resolve" => told(runtime.resolve(OWNER, stage.uncertain.1, Resolution::Retry, None, call).await),
        "edit" => told(runtime.edit_last(stage.edited, prompt("e", Delivery::Reject), call).await),
        "fork" => told(runtime.fork(stage.forked, ForkAt::Settled, None, call).await),
        "compact" => told(runtime.compact(stage.compacted, Compact::default(), call).await),
        "checkpoint" => told(runtime.save_checkpoint(stage.saved, "here".into(), call).await),
        "interrupt" => {
            let interrupt = Interrupt { turn: stage.interrupted.1, pause_queue: true };
            told(runtime.interrupt(stage.interrupted.0, interrupt, call).await)
        }
        "queue" => told(runtime.start_turn(stage.queued, prompt("q", Delivery::Queue), call).await),
        "rollback" => told(runtime.start_turn(stage.rolled_back, prompt("r", Delivery::Rollback), call).await),
        other => panic!("{other}"),
    }
}

/// Where every thread's log ends.
async fn heads(runtime: &Runtime) -> Vec<(ThreadId, u64)> {
    let all = raddle_actors::ThreadQuery { limit: 99, ..raddle_actors::ThreadQuery::default() };
    let mut heads: Vec<_> =
        runtime.threads(OWNER, all).await.unwrap().data.iter().map(|thread| (thread.id, thread.seq)).collect();
    heads.sort();
    heads
}

#[tokio::test]
async fn every_verb_is_replayed_as_it_was_answered_now_and_after_a_restart_and_refused_with_another_body() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let stage = stage(&runtime).await;
    let mut first = Vec::new();
    for (number, verb) in (1..).zip(VERBS) {
        let (value, replayed) = run(&runtime, &stage, verb, keyed(number, number)).await.unwrap();
        assert!(!replayed, "{verb}");
        first.push(value);
    }
    for key in [stage.edited, stage.compacted, stage.rolled_back, stage.interrupted.0] {
        rests(&runtime, key).await;
    }
    let decided = runtime.approval(OWNER, stage.decided).await.unwrap().thread_id;
    rests(&runtime, ThreadKey { tenant: OWNER, thread: decided }).await;
    let answered = runtime.questions(OWNER, RecordQuery { limit: 9, ..RecordQuery::default() }).await.unwrap().data;
    rests(&runtime, ThreadKey { tenant: OWNER, thread: answered[0].thread_id }).await;
    // Once it was tried again it is as uncertain as before.
    happens(&runtime, stage.uncertain.0, "effect.uncertain", 2).await;
    waits(&runtime, stage.uncertain.0).await;
    let mut runtime = runtime;
    for restarted in [false, true] {
        if restarted {
            runtime.shutdown(LONG).await;
            drop(runtime);
            runtime = bed.start().await;
        }
        let before = heads(&runtime).await;
        let calls = bed.model.calls.load(SeqCst);
        for ((number, verb), first) in (1..).zip(VERBS).zip(&first) {
            let (again, replayed) = run(&runtime, &stage, verb, keyed(number, number)).await.unwrap();
            assert_eq!((&again, replayed), (first, true), "{verb}, restarted: {restarted}");
            let other = run(&runtime, &stage, verb, keyed(number, 99)).await;
            assert!(matches!(other, Err(Error::IdempotencyMismatch)), "{verb}: {other:?}");
        }
        assert_eq!(heads(&runtime).await, before, "a replay leaves no trace");
        assert_eq!(bed.model.calls.load(SeqCst), calls);
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn of_simultaneous_requests_under_one_key_one_runs_and_the_others_are_its_replays() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let stage = Arc::new(stage(&runtime).await);
    for (number, verb) in (1..).zip(VERBS) {
        let asked = (0..8).map(|_| {
            let (runtime, stage) = (runtime.clone(), stage.clone());
            tokio::spawn(async move {
                loop {
                    match run(&runtime, &stage, verb, keyed(number, number)).await {
                        Err(Error::InFlight) => tokio::task::yield_now().await,
                        done => break done,
                    }
                }
            })
        });
        let done: Vec<_> =
            futures_util::future::join_all(asked).await.into_iter().map(|done| done.unwrap().unwrap()).collect();
        assert_eq!(done.iter().filter(|(_, replayed)| !replayed).count(), 1, "{verb}");
        assert!(done.iter().all(|(value, _)| *value == done[0].0), "{verb}: {done:?}");
    }
    runtime.shutdown(LONG).await;
}

// ---- what was spent ------------------------------------------------------------------------------

/// A store whose view the test can take too.
fn spent(store: &dyn LogStore, tenant: TenantId) -> Vec<(ThreadId, Totals)> {
    let view = store.view().unwrap();
    let mut sums: Vec<(ThreadId, Totals)> = Vec::new();
    for by in view.spent(tenant, 0, u32::MAX, None, 999).unwrap() {
        for row in by.rows {
            assert_eq!((row.engine.as_str(), row.model.as_str()), ("test", "test"));
            match sums.iter_mut().find(|(thread, _)| *thread == by.thread) {
                Some((_, sum)) => sum.add(&row.totals),
                None => sums.push((by.thread, row.totals)),
            }
        }
    }
    sums
}

#[tokio::test]
async fn what_a_thread_spent_is_the_sum_of_its_model_calls_and_a_fork_adds_nothing() {
    let bed = Bed::new();
    let config = bed.config();
    let store: Arc<dyn LogStore> = Arc::new(Hooked::open(&config.store, Box::new(|_, commit| commit())));
    let price = Price { version: "v1".into(), input: 3_000_000, cached_input: None, output: 15_000_000 };
    let row = Row { engine: "test".into(), model: "*".into(), from: UnixMs(0), until: None, price: price.clone() };
    let ports = Ports { store: Some(store.clone()), prices: Arc::new(Prices::new(vec![row])), ..bed.ports() };
    let runtime = Runtime::start(config, ports).await.unwrap();
    let key = create(&runtime).await;
    bed.model.input_tokens.store(100, SeqCst);
    say(&runtime, key, "call once a; call read b").await;
    runtime.compact(key, Compact::default(), Call::default()).await.unwrap();
    rests(&runtime, key).await;
    let last = say(&runtime, key, "more").await;
    let sums = spent(&*store, OWNER);
    // Two calls around the tools, the summary, the last answer.
    let output = ["calling", "echo: did a, did b", "summary of 5 messages", "echo: more"].map(str::len);
    let output = output.iter().sum::<usize>() as u64;
    let cost = 400 * price.input + output * price.output;
    let expected = Totals {
        turns: 3,
        model_calls: 4,
        input_tokens: 400,
        output_tokens: output,
        pico_usd: cost,
        without_cache_pico_usd: cost,
        ..Totals::default()
    };
    assert_eq!(sums, [(key.thread, expected)]);
    let log = log(&runtime, key).await;
    let recorded = log.iter().filter(|record| matches!(record.event, Event::UsageRecorded(..))).count();
    assert_eq!(recorded, 4);

    // Whole, before a turn, and in the middle of one, which is written again.
    let items = runtime.snapshot(key).await.unwrap().items;
    let answer = items.iter().rfind(|item| item.turn_id == last.id).unwrap();
    let mut forks = Vec::new();
    for at in [ForkAt::Settled, ForkAt::BeforeTurn(last.id), ForkAt::Item(answer.id)] {
        let fork = runtime.fork(key, at, None, Call::default()).await.unwrap().value;
        forks.push(testbed::key(&fork));
    }
    assert_eq!(spent(&*store, OWNER), sums);
    // What a fork does itself is its own.
    say(&runtime, forks[0], "x").await;
    let own = Totals { turns: 1, model_calls: 1, ..Totals::default() };
    let after = spent(&*store, OWNER);
    let found = after.iter().find(|(thread, _)| *thread == forks[0].thread).unwrap();
    assert_eq!((found.1.turns, found.1.model_calls), (own.turns, own.model_calls));
    assert_eq!(after.len(), 2);
    // A turn that is taken back was paid for all the same; one that is interrupted counts for what it used.
    runtime.edit_last(key, prompt("hold", Delivery::Reject), Call::default()).await.unwrap();
    let turn = runtime.thread(key).await.unwrap().active_turn.unwrap();
    runtime.interrupt(key, Interrupt { turn, pause_queue: false }, Call::default()).await.unwrap();
    let after = spent(&*store, OWNER);
    let found = after.iter().find(|(thread, _)| *thread == key.thread).unwrap();
    assert_eq!(found.1, Totals { turns: 4, ..expected });
    runtime.shutdown(LONG).await;
}
