//! What hooks cost those who work: turn starts beside a sink that takes a second for each event, and beside none.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use raddle_actors::{Call, Hook, Ports, Runtime};
use raddle_domain::{
    command::StartTurn,
    hook::{EventFilter, OnReject, Since},
    ports::{HookBatch, Sink, SinkWork},
    record::Delivery,
};
use support::*;

/// Takes its time for each event.
#[derive(Default)]
struct Slow(Arc<AtomicUsize>);

impl Sink for Slow {
    fn most(&self) -> usize {
        1
    }

    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let taken = self.0.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            taken.fetch_add(batch.events.len(), Relaxed);
            Ok(())
        })
    }
}

/// Takes everything at once, for nothing.
#[derive(Default)]
struct Quick(Arc<AtomicUsize>);

impl Sink for Quick {
    fn deliver(&self, batch: HookBatch) -> SinkWork {
        self.0.fetch_add(batch.events.len(), Relaxed);
        Box::pin(async { Ok(()) })
    }
}

fn hook(sink: Arc<dyn Sink>) -> Hook {
    Hook {
        name: "bench".into(),
        kind: "bench",
        events: EventFilter::default(),
        tenants: None,
        since: Since::Now,
        on_reject: OnReject::Retry,
        sink,
    }
}

/// What turn starts took, in milliseconds: half of them were quicker than the first, of a hundred one was slower than
/// the second.
async fn starts(hooks: Vec<Hook>, count: usize, width: usize) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = Ports { hooks, ..Ports::with_models(Arc::new(Only(Arc::new(Silent)))) };
    let runtime = Runtime::start(GROUPED.config(dir.path()), ports).await.expect("it starts");
    let keys = threads(&runtime, count).await;
    let times = std::sync::Mutex::new(Vec::with_capacity(count));
    rate(count, width, |n| {
        let (runtime, key, times) = (&runtime, keys[n], &times);
        async move {
            let begun = Instant::now();
            let start = StartTurn {
                prompt: "what is the weather like?".into(),
                delivery: Delivery::Reject,
                ..StartTurn::default()
            };
            runtime.start_turn(key, start, Call::default()).await.expect("it starts");
            times.lock().expect("no panic").push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    })
    .await;
    runtime.shutdown(Duration::ZERO).await;
    let mut times = times.into_inner().expect("no panic");
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    (at(0.5), at(0.99))
}

fn main() {
    let begun = Instant::now();
    head("hooks: turn starts beside sinks");
    for width in [1, 16, 64] {
        let count = if width == 1 { 2_000 } else { sized(10_000, 4_000) };
        let (mut none, mut slow, mut quick) = (Vec::new(), Vec::new(), Vec::new());
        let taken = Arc::new(AtomicUsize::new(0));
        // One to warm up.
        block_on(starts(Vec::new(), 1_000, width));
        for round in 0..sized(7, 1) {
            // In turns, and not always in the same order: what the machine does meanwhile falls on all of them.
            for side in 0..3 {
                match (round + side) % 3 {
                    0 => none.push(block_on(starts(Vec::new(), count, width))),
                    1 => slow.push(block_on(starts(vec![hook(Arc::new(Slow::default()))], count, width))),
                    _ => quick.push(block_on(starts(vec![hook(Arc::new(Quick(taken.clone())))], count, width))),
                }
            }
        }
        let of = |runs: &[(f64, f64)], what: fn(&(f64, f64)) -> f64| median(runs.iter().map(what).collect());
        for (name, runs) in [("no hook", &none), ("a slow one", &slow), ("a quick one", &quick)] {
            let (p50, p99) = (of(runs, |run| run.0), of(runs, |run| run.1));
            figure(&format!("{name}, c = {width}, p50"), p50, " ms");
            figure(&format!("{name}, c = {width}, p99"), p99, " ms");
        }
        // Of neighbours: a round in which all of them wait for the disk says nothing about hooks.
        let ratio = |runs: &[(f64, f64)]| median(runs.iter().zip(&none).map(|(run, none)| run.1 / none.1).collect());
        bar(&format!("p99 beside a sink of 1 s vs none, c = {width}"), ratio(&slow), "×", 1.1, false);
        figure(&format!("p99 beside a sink that takes all at once vs none, c = {width}"), ratio(&quick), "×");
        assert!(taken.load(Relaxed) > 0, "the quick sink was told nothing");
    }
    eprintln!("{:.0?}", begun.elapsed());
}
