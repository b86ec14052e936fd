//! What it costs to make events durable: the store alone, and streamed answers through a whole runtime.

mod support;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use raddle_actors::{
    Call, Next, Runtime,
    store::{StoreActor, StoreHandle, redb::RedbStore},
};
use raddle_domain::{
    command::StartTurn,
    id::{Seq, TenantId, ThreadId, ThreadKey},
    ports::{Append, Chunk, Ids, LogStore, RowHead, StoredEvent, ThreadRow, Write},
    record::Delivery,
    time::UnixMs,
};
use support::{jsonl::JsonLines, *};

const THREADS: usize = 1000;
/// As long as a delta's record and a thread's row usually are.
const EVENT: usize = 330;
const ROW: usize = 480;

/// Threads whose open turn grows, one event per write.
struct Growing {
    store: StoreHandle,
    fence: u64,
    threads: Vec<(ThreadKey, Seq)>,
    row: Arc<[u8]>,
}

impl Growing {
    /// Must run in an actor system.
    fn new(side: Side, dir: &Path, threads: usize) -> Self {
        let store = RedbStore::open(&side.config(dir).store).expect("it opens");
        let fence = store.epoch();
        let arbiter = actix::Arbiter::new().handle();
        let store = StoreActor::start_in(&arbiter, Arc::new(store), Arc::new(|_| {}), Arc::new(|_| {}));
        let mut growing = Self { store, fence, threads: Vec::new(), row: vec![b'r'; ROW].into() };
        growing.more(threads);
        growing
    }

    fn more(&mut self, threads: usize) {
        let key = |_| ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::new(raddle_actors::UuidIds.mint()) };
        self.threads.extend((0..threads).map(key).map(|key| (key, 0)));
    }

    fn write(&mut self, thread: usize, events: usize) -> BoxFuture<'static, ()> {
        let (key, seq) = &mut self.threads[thread];
        let event = StoredEvent { name: "item.delta".into(), json: vec![b'e'; EVENT].into() };
        let chunk = Chunk { first: *seq + 1, events: vec![event; events] };
        let expected = *seq;
        *seq = chunk.last();
        let head = RowHead { last_seq: *seq, fence: self.fence, owes_since: Some(UnixMs(1)), ..RowHead::default() };
        let row = ThreadRow { head, view: self.row.clone(), snapshot: self.row.clone() };
        let saved = self.store.append(Write::Append(Append::new(*key, expected, UnixMs(0), chunk, row)));
        saved.map(|saved| saved.expect("it is stored")).boxed()
    }

    /// Events per second with `width` writes in flight, over all threads in a scattered order.
    async fn rate(&mut self, count: usize, width: usize) -> f64 {
        let begun = Instant::now();
        let writes = (0..count).map(|n| self.write(n * 617 % THREADS, 1));
        stream::iter(writes).buffer_unordered(width).count().await;
        count as f64 / begun.elapsed().as_secs_f64()
    }

    /// Seconds per event when it is awaited before the next is written.
    async fn cost(&mut self, thread: usize, count: usize) -> f64 {
        let begun = Instant::now();
        for _ in 0..count {
            self.write(thread, 1).await;
        }
        begun.elapsed().as_secs_f64() / count as f64
    }
}

/// Runs in an actor system, where a store's actor can be started.
fn in_system<T>(work: impl Future<Output = T>) -> T {
    actix::System::new().block_on(work)
}

const WIDTHS: [usize; 5] = [1, 16, 64, 256, 1024];
const DELAYS: [u64; 3] = [0, 1, 4];

/// The store alone.
async fn scattered() {
    for delay in DELAYS {
        let dir = tempfile::tempdir().expect("a directory");
        let mut growing = Growing::new(GROUPED.slow(Duration::from_millis(delay)), dir.path(), THREADS);
        growing.rate(THREADS, THREADS).await;
        let mut rates = vec![Vec::new(); WIDTHS.len()];
        let (mut bytes, mut raw) = (vec![0.0; WIDTHS.len()], Vec::new());
        for _ in 0..sized(3, 1) {
            if delay == 0 {
                raw.push(raw_append(dir.path(), 1_000));
            }
            for (at, width) in WIDTHS.into_iter().enumerate() {
                let most = sized(if delay == 0 { 10_000 } else { 4_000 }, 2_000);
                let count = (width * 100).clamp(if delay == 0 { 1_000 } else { 100 }, most);
                let before = written();
                rates[at].push(growing.rate(count, width).await);
                bytes[at] = (written() - before) / count as f64;
            }
        }
        if delay == 0 {
            figure("raw append of 512 B + fdatasync", median(raw), "/s");
        }
        for (at, width) in WIDTHS.into_iter().enumerate() {
            let what = format!("events, 1000 threads, {width} in flight, {delay} ms added to a sync");
            figure(&what, median(rates[at].clone()), "/s");
            if delay == 0 {
                figure(&format!("bytes written per event, {width} in flight"), bytes[at], " B");
            }
        }
        growing.store.shutdown().await;
    }
}

const WORDS: usize = 200;
const ANSWERS: usize = 20;

/// Fragments of models' answers that become durable, per second: 64 threads, each with answers in a row.
async fn answers(side: Side) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = side.runtime(dir.path(), Words(WORDS)).await;
    let keys = threads(&runtime, 64).await;
    let begun = Instant::now();
    stream::iter(&keys).for_each_concurrent(None, |key| answered(&runtime, *key)).await;
    let rate = (keys.len() * ANSWERS * WORDS) as f64 / begun.elapsed().as_secs_f64();
    runtime.shutdown(Duration::ZERO).await;
    rate
}

/// Queues prompts and waits until each has its answer, durable.
async fn answered(runtime: &Runtime, key: ThreadKey) {
    let mut subscription = runtime.subscribe(key, 1).await.expect("it is there");
    for _ in 0..ANSWERS {
        let start = StartTurn { prompt: "tell me more".into(), delivery: Delivery::Queue, ..StartTurn::default() };
        runtime.start_turn(key, start, Call::default()).await.expect("it is taken");
    }
    let mut ended = 0;
    while ended < ANSWERS {
        let chunks = match subscription.next().await.expect("a piece") {
            Next::Stored(chunks) => chunks,
            Next::Live { batch, .. } => vec![batch.chunk.clone()],
            Next::Gap { after } => {
                subscription = runtime.subscribe(key, after).await.expect("it is there");
                continue;
            }
            last => panic!("the stream ended with {last:?}"),
        };
        ended += chunks.iter().flat_map(|chunk| &chunk.events).filter(|event| event.name == "turn.completed").count();
    }
}

/// The same fragments, each committed before the next is looked at.
async fn one_by_one(side: Side, count: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let mut growing = Growing::new(side, dir.path(), 64);
    let begun = Instant::now();
    for n in 0..count {
        growing.write(n % 64, 1).await;
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    growing.store.shutdown().await;
    rate
}

fn deltas() {
    for delay in DELAYS {
        let side = GROUPED.slow(Duration::from_millis(delay));
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..sized(3, 1) {
            together.push(block_on(answers(side)));
            alone.push(in_system(one_by_one(side, if delay == 0 { 1_000 } else { 200 })));
        }
        let (together, alone) = (median(together), median(alone));
        figure(&format!("durable deltas, coalesced, {delay} ms added to a sync"), together, "/s");
        figure(&format!("durable deltas, one commit each, {delay} ms added to a sync"), alone, "/s");
        bar(&format!("coalesced vs one commit each, {delay} ms"), together / alone, "×", 30.0, true);
        if delay == 0 {
            bar("durable deltas, or else", together, "/s", 80_000.0, true);
        }
    }
}

/// An event's cost in a long log and in a short one.
async fn length() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut growing = Growing::new(GROUPED, dir.path(), 1);
    for _ in 0..100_000 / 50 {
        growing.write(0, 50).await;
    }
    let (mut long, mut short) = (Vec::new(), Vec::new());
    for round in 0..sized(60, 20) {
        growing.more(1);
        growing.write(round + 1, 10).await;
        short.push(growing.cost(round + 1, 20).await);
        long.push(growing.cost(0, 20).await);
    }
    bar("cost of an event after 100,000 vs after 10", median(long) / median(short), "×", 1.3, false);
    growing.store.shutdown().await;
}

/// Events that a log has before another one is added.
const PASTS: [Seq; 5] = [10, 100, 1_000, 5_000, 20_000];

/// The same in a log that is read again for each event: the longer it is, the more each of them costs.
async fn read_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut growing = Growing::new(GROUPED, dir.path(), 0);
    let mut here = [const { Vec::new() }; PASTS.len()];
    let mut files = [const { Vec::new() }; PASTS.len()];
    for round in 0..sized(20, 7) {
        for (at, past) in PASTS.into_iter().enumerate() {
            let thread = round * PASTS.len() + at;
            growing.more(1);
            growing.write(thread, past as usize).await;
            here[at].push(growing.cost(thread, 5).await);
            let file = JsonLines::with_past(dir.path(), thread, past);
            let begun = Instant::now();
            assert!((1..=3).all(|n| file.add() == past + n));
            files[at].push(begun.elapsed().as_secs_f64() / 3.0);
        }
    }
    for (at, past) in PASTS.into_iter().enumerate() {
        let (here, files) = (median(here[at].clone()), median(files[at].clone()));
        figure(&format!("an event after {past}, durable"), here * 1e6, " µs");
        figure(&format!("an event after {past}, JSONL that is read again, never synced"), files * 1e6, " µs");
        figure(&format!("an event after {past}, JSONL vs durable"), files / here, "×");
    }
    growing.store.shutdown().await;
}

fn main() {
    let begun = Instant::now();
    head("append: making events durable");
    in_system(scattered());
    deltas();
    in_system(length());
    in_system(read_again());
    eprintln!("{:.0?}", begun.elapsed());
}
