//! What it costs to have many watchers of one thread, and what one that does not read costs.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use raddle_actors::{Call, Next, Runtime, Subscription, batch::Audience};
use raddle_domain::{
    command::StartTurn,
    id::{Seq, ThreadKey},
    ports::Chunk,
    record::{Delivery, ThreadStatus},
};
use support::*;

const WATCHERS: u64 = 1000;
const WORDS: usize = 200;
const WATCHED: Duration = Duration::from_secs(6);
/// Turns after which the producer waits for every watcher.
const TURNS: usize = 8;

/// What all watchers got.
#[derive(Default)]
struct Got {
    frames: AtomicU64,
    bytes: AtomicU64,
    gaps: AtomicU64,
}

/// The bytes of a stream, as the gateway makes them.
fn frames(chunk: &Chunk) -> bytes::Bytes {
    let mut out = Vec::new();
    for (seq, event) in (chunk.first..).zip(&chunk.events) {
        out.extend_from_slice(format!("id: {seq}\nevent: {}\ndata: ", event.name).as_bytes());
        out.extend_from_slice(&event.json);
        out.extend_from_slice(b"\n\n");
    }
    out.into()
}

/// Watches from the first event on, until the runtime ends. An event that is missing, or comes twice, is a panic.
async fn watch(runtime: Runtime, key: ThreadKey, got: Arc<Got>) {
    let mut subscription = runtime.subscribe(key, 0).await.expect("it is there");
    let mut seen = 0;
    loop {
        let (first, events, bytes) = match subscription.next().await {
            Ok(Next::Stored(chunks)) => {
                let events = chunks.iter().map(|chunk| chunk.events.len()).sum::<usize>();
                (chunks[0].first, events, chunks.iter().map(|chunk| frames(chunk).len()).sum())
            }
            Ok(Next::Live { batch, skip }) => {
                let first = batch.chunk.first + skip as Seq;
                let rendered = batch.rendered(Audience::Thread, |batch| frames(&batch.chunk));
                (first, batch.chunk.events.len() - skip, rendered.len())
            }
            Ok(Next::Gap { after }) => {
                got.gaps.fetch_add(1, Relaxed);
                subscription = runtime.subscribe(key, after).await.expect("it is there");
                continue;
            }
            Ok(Next::Shutdown { .. } | Next::Deleted) | Err(_) => return,
        };
        assert_eq!(first, seen + 1, "each event once, in order");
        seen += events as Seq;
        got.bytes.fetch_add(bytes as u64, Relaxed);
        got.frames.fetch_add(events as u64, Relaxed);
    }
}

/// Queues so many turns and waits until the thread rests; returns where its log ends then.
async fn produce(runtime: &Runtime, key: ThreadKey, turns: usize) -> Seq {
    for _ in 0..turns {
        let start = StartTurn { prompt: "tell me more".into(), delivery: Delivery::Queue, ..StartTurn::default() };
        runtime.start_turn(key, start, Call::default()).await.expect("it is taken");
    }
    loop {
        let thread = runtime.thread(key).await.expect("it is there");
        if thread.status == ThreadStatus::Idle {
            return thread.seq;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// Goes live and then never looks again.
async fn stuck(runtime: &Runtime, key: ThreadKey, after: Seq) -> Subscription {
    let mut stuck = runtime.subscribe(key, after).await.expect("it is there");
    // What is stored is read to its end.
    while let Ok(next) = tokio::time::timeout(Duration::from_millis(50), stuck.next()).await {
        assert!(matches!(next, Ok(Next::Stored(_))));
    }
    stuck
}

async fn in_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = GROUPED.runtime(dir.path(), Words(WORDS)).await;
    let key = threads(&runtime, 1).await[0];
    let mut held = stuck(&runtime, key, 0).await;

    let got = Arc::new(Got::default());
    let watchers: Vec<_> = (0..WATCHERS).map(|_| tokio::spawn(watch(runtime.clone(), key, got.clone()))).collect();
    // All of them have all of it.
    let have = async |head: Seq| {
        while got.frames.load(Relaxed) < WATCHERS * head {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    };
    have(1).await;

    let (before, bytes) = (got.frames.load(Relaxed), got.bytes.load(Relaxed));
    let (begun, mut head) = (Instant::now(), 1);
    while begun.elapsed() < WATCHED {
        head = produce(&runtime, key, TURNS).await;
        have(head).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let frames = (got.frames.load(Relaxed) - before) as f64;
    figure("events committed meanwhile, in process", (head - 1) as f64 / seconds, "/s");
    figure("bytes delivered, in process", (got.bytes.load(Relaxed) - bytes) as f64 / seconds / 1e6, " MB/s");
    figure("watchers cut off and resumed", got.gaps.load(Relaxed) as f64, "");
    bar("frames delivered to 1000 watchers in process", frames / seconds, "/s", 100_000.0, true);

    let mut bytes = 0;
    let after = loop {
        match held.next().await.expect("a piece") {
            Next::Live { batch, .. } => bytes += batch.size(),
            Next::Gap { after } => break after,
            other => panic!("not what a stuck watcher gets: {other:?}"),
        }
    };
    assert!(after < head, "it missed something, and was told");
    bar("events held for a watcher that never read", bytes as f64 / 1024.0, " KiB", 256.0, false);

    // In turns, so that whatever else the machine does falls on both: as many turns of the thread as one that never reads is
    // there for before it is cut off.
    let mut times = [Vec::new(), Vec::new()];
    for block in 0..sized(200, 40) {
        let beside = block % 2;
        let stuck = if beside == 1 { Some(stuck(&runtime, key, head).await) } else { None };
        for _ in 0..TURNS {
            let begun = Instant::now();
            head = produce(&runtime, key, 1).await;
            have(head).await;
            times[beside].push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        drop(stuck);
    }
    let [without, beside] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[(times.len() - 1) * 99 / 100]
    });
    figure("a turn's events reach 1000 watchers without one that never reads, p99", without, " ms");
    figure("a turn's events reach 1000 watchers beside one that never reads, p99", beside, " ms");
    bar("p99 of 1000 watchers beside one that never reads vs without it", beside / without, "×", 1.1, false);
    runtime.shutdown(Duration::ZERO).await;
    for watcher in watchers {
        watcher.await.expect("it saw each event once, in order");
    }
}

/// The same over HTTP, to a thousand connections that read on a thread of their own. Every byte of every stream is waited
/// for.
async fn over_sockets() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = GROUPED.runtime(dir.path(), Words(WORDS)).await;
    let key = threads(&runtime, 1).await[0];
    let (addr, server) = net::serve(runtime.clone()).await;
    let got = Arc::new(AtomicU64::new(0));
    let counted = got.clone();
    let (over, end) = tokio::sync::oneshot::channel::<()>();
    let clients = tokio::spawn(net::elsewhere(async move || {
        let watch = async || net::Client::connect(addr).await.count(&net::follow(key), &counted).await;
        let all = futures_util::future::join_all((0..WATCHERS).map(|_| watch()));
        tokio::select! {
            _ = all => unreachable!("a stream does not end by itself"),
            end = end => end.expect("somebody says so"),
        }
    }));
    let delivered = async || {
        let (events, bytes) = net::extent(&runtime, key).await;
        while got.load(Relaxed) < WATCHERS * bytes as u64 {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        events
    };
    let before = delivered().await;
    let (begun, mut head) = (Instant::now(), before);
    while begun.elapsed() < WATCHED {
        // Little enough that none of them is cut off.
        produce(&runtime, key, 1).await;
        head = delivered().await;
    }
    let frames = ((head - before) * WATCHERS) as f64 / begun.elapsed().as_secs_f64();
    figure("events committed meanwhile, over sockets", frames / WATCHERS as f64, "/s");
    bar("frames delivered to 1000 streams over HTTP, both ends", frames, "/s", 100_000.0, true);
    over.send(()).expect("they read");
    clients.await.expect("they read to the end");
    server.abort();
    runtime.shutdown(Duration::ZERO).await;
}

fn main() {
    let begun = Instant::now();
    head("fanout: one thread, 1000 watchers");
    block_on(in_process());
    block_on(over_sockets());
    eprintln!("{:.0?}", begun.elapsed());
}
