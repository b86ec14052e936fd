//! What one tenant that floods the server costs the others: 50 quiet tenants with 100 threads each, and one that sends
//! as fast as it can.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use raddle_actors::{Call, Config, Ports, Runtime};
use raddle_domain::{
    command::{NewThread, StartTurn},
    id::{TenantId, ThreadKey},
    ports::{FinishReason, Fragment, Model, ModelRequest, ModelStream},
    record::Delivery,
};
use support::*;

const QUIET: usize = 50;
const THREADS: usize = 100;
/// Starts per second of each quiet tenant.
const PACE: u64 = 4;
/// How long one side is watched.
const WATCHED: Duration = Duration::from_secs(8);
/// Requests that the flooding tenant has under way at once, on all of its threads.
const FLOOD: usize = 2_000;
/// What a client that was refused takes to come again.
const ROUND_TRIP: Duration = Duration::from_millis(1);

/// Answers as a model does that is quick: the first word after 20 ms, twenty in all, 5 ms apart.
struct Paced;

impl Model for Paced {
    fn call(&self, _: ModelRequest) -> ModelStream {
        let words = stream::iter(0..20_u64).then(|n| async move {
            tokio::time::sleep(Duration::from_millis(if n == 0 { 20 } else { 5 })).await;
            Ok(Fragment::Text(format!("word{n} ")))
        });
        words.chain(stream::iter([Ok(Fragment::Finish(FinishReason::Stop))])).boxed()
    }
}

fn tenant(n: usize) -> TenantId {
    format!("tenant-{n}").parse().expect("a name")
}

async fn threads_of(runtime: &Runtime, tenant: TenantId) -> Vec<ThreadKey> {
    let create = |_| async move {
        let done = runtime.create_thread(tenant, NewThread::with(choice()), Call::default()).await;
        ThreadKey { tenant, thread: done.expect("it is created").value.id }
    };
    stream::iter(0..THREADS).map(create).buffer_unordered(32).collect().await
}

fn prompt(delivery: Delivery) -> StartTurn {
    StartTurn { prompt: "what is the weather like?".into(), delivery, ..StartTurn::default() }
}

/// Milliseconds from a start's admission to the durable start of its turn, and to the first word of its answer.
#[derive(Default)]
struct Taken {
    started: Vec<f64>,
    answered: Vec<f64>,
}

fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 99 / 100]
}

async fn quiet(runtime: &Runtime, keys: &[ThreadKey], tenant: usize, until: Instant, taken: &Mutex<Taken>) {
    let pace = Duration::from_millis(1_000 / PACE);
    // Not all at the same moment.
    tokio::time::sleep(pace * tenant as u32 / QUIET as u32).await;
    let mut beat = tokio::time::interval(pace);
    let mut turns = Vec::new();
    for key in keys.iter().cycle() {
        beat.tick().await;
        if Instant::now() >= until {
            break;
        }
        let (runtime, key) = (runtime.clone(), *key);
        let head = runtime.thread(key).await.expect("it is there").seq;
        let mut watch = runtime.subscribe(key, head).await.expect("there is room");
        turns.push(tokio::spawn(async move {
            let since = Instant::now();
            runtime.start_turn(key, prompt(Delivery::Queue), Call::default()).await.expect("a quiet tenant is let in");
            let started = since.elapsed();
            loop {
                let next = watch.next().await.expect("it goes on");
                if next.events().any(|(_, event)| event.name == "item.delta") {
                    return (started, since.elapsed());
                }
            }
        }));
    }
    for turn in turns {
        let (started, answered) = turn.await.expect("it ends");
        let mut taken = taken.lock().expect("whole");
        taken.started.push(started.as_secs_f64() * 1_000.0);
        taken.answered.push(answered.as_secs_f64() * 1_000.0);
    }
}

/// What quiet tenants find, and how many starts per second the flooding one got through.
async fn side(floods: bool, fair: bool) -> (Taken, f64) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config { fair, loaded_threads: 10_000, ..Config::new(dir.path()) };
    let ports = Ports::with_models(Arc::new(Only(Arc::new(Paced))));
    let runtime = Runtime::start(config, ports).await.expect("it starts");
    let mut keys = Vec::new();
    for n in 0..=QUIET {
        keys.push(threads_of(&runtime, tenant(n)).await);
    }
    let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flooding = floods.then(|| {
        let (runtime, keys, over, sent) = (runtime.clone(), keys[QUIET].clone(), over.clone(), sent.clone());
        let flood = stream::iter(0..FLOOD).for_each_concurrent(FLOOD, move |n| {
            let (runtime, key, over, sent) = (runtime.clone(), keys[n % THREADS], over.clone(), sent.clone());
            async move {
                while !over.load(Relaxed) {
                    match runtime.start_turn(key, prompt(Delivery::Queue), Call::default()).await {
                        Ok(_) => drop(sent.fetch_add(1, Relaxed)),
                        Err(_) => tokio::time::sleep(ROUND_TRIP).await,
                    }
                }
            }
        });
        // Its clients are not those of the others.
        let clients = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        std::thread::spawn(move || clients.block_on(flood))
    });
    // Until the flood is in full flow, or nothing is left of what made the threads.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (taken, since) = (Mutex::new(Taken::default()), Instant::now());
    let before = sent.load(Relaxed);
    let until = since + WATCHED;
    let all = keys[..QUIET].iter().enumerate().map(|(n, keys)| quiet(&runtime, keys, n, until, &taken));
    futures_util::future::join_all(all).await;
    let rate = (sent.load(Relaxed) - before) as f64 / since.elapsed().as_secs_f64();
    over.store(true, Relaxed);
    if let Some(flooding) = flooding {
        tokio::task::spawn_blocking(move || flooding.join()).await.expect("it is waited for").expect("it ends");
    }
    runtime.shutdown(Duration::ZERO).await;
    (taken.into_inner().expect("whole"), rate)
}

fn main() {
    let begun = Instant::now();
    head("tenants: 50 quiet ones beside one that floods");
    let sides = [(false, true), (true, true), (true, false)];
    let mut started = vec![Vec::new(); sides.len()];
    let mut answered = vec![Vec::new(); sides.len()];
    let mut rates = vec![Vec::new(); sides.len()];
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(sized(3, 1));
    for _ in 0..rounds {
        for (at, (floods, fair)) in sides.into_iter().enumerate() {
            let (taken, rate) = block_on(side(floods, fair));
            started[at].push(p99(taken.started));
            answered[at].push(p99(taken.answered));
            rates[at].push(rate);
        }
    }
    let started: Vec<f64> = started.into_iter().map(median).collect();
    let answered: Vec<f64> = answered.into_iter().map(median).collect();
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    figure("a quiet start alone, p99", started[0], " ms");
    figure("a quiet start alone to the first word, p99", answered[0], " ms");
    figure("a quiet start beside the flood, p99", started[1], " ms");
    figure("a quiet start beside the flood to the first word, p99", answered[1], " ms");
    figure("starts of the flooding tenant", rates[1], "/s");
    bar("beside the flood vs alone, p99", started[1] / started[0], "×", 2.0, false);
    bar("beside the flood vs alone to the first word, p99", answered[1] / answered[0], "×", 2.0, false);
    figure("without fairness vs alone, p99", started[2] / started[0], "×");
    figure("without fairness vs alone to the first word, p99", answered[2] / answered[0], "×");
    figure("starts of the flooding tenant without fairness", rates[2], "/s");
    eprintln!("{:.0?}", begun.elapsed());
}
