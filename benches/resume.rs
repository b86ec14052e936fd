//! What it costs to come back: of a watcher to a long log, of a thread to memory, of a server to its data.

mod support;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use raddle_actors::{Call, Runtime, ThreadQuery, store::redb::RedbStore};
use raddle_domain::{
    command::{StartTurn, ThreadPatch},
    id::{Seq, TenantId, ThreadKey},
    record::Delivery,
};
use support::*;
use tower::ServiceExt;

const LONG: Seq = 100_000;

fn open(dir: &Path) -> (RedbStore, f64) {
    let begun = Instant::now();
    let store = RedbStore::open(&GROUPED.config(dir).store).expect("it opens");
    (store, begun.elapsed().as_secs_f64())
}

// ---- replay --------------------------------------------------------------------------------------

/// Seconds until the stream's body has given so many bytes, without a socket.
async fn in_process(runtime: &Runtime, key: ThreadKey, bytes: usize) -> f64 {
    let router = raddle::gateway::router(runtime.clone(), raddle::gateway::GatewayConfig::default());
    let request = axum::http::Request::get(format!("/v1/threads/{}/events", key.thread))
        .header("accept", "text/event-stream")
        .body(axum::body::Body::empty())
        .expect("a request");
    let begun = Instant::now();
    let mut body = router.oneshot(request).await.expect("an answer").into_body().into_data_stream();
    let mut read = 0;
    while read < bytes {
        read += body.next().await.expect("more").expect("bytes").len();
    }
    assert_eq!(read, bytes);
    begun.elapsed().as_secs_f64()
}

async fn replay(dir: &Path, key: ThreadKey) {
    let runtime = GROUPED.runtime(dir, Silent).await;
    let (events, bytes) = net::extent(&runtime, key).await;
    let (addr, server) = net::serve(runtime.clone()).await;
    let (mut inside, mut socket) = (Vec::new(), Vec::new());
    for _ in 0..sized(7, 3) {
        inside.push(events as f64 / in_process(&runtime, key, bytes).await);
        let taken = net::elsewhere(async move || {
            let mut client = net::Client::connect(addr).await;
            let begun = Instant::now();
            client.read(&net::follow(key), bytes).await;
            begun.elapsed().as_secs_f64()
        });
        socket.push(events as f64 / taken.await);
    }
    figure("bytes of a frame", bytes as f64 / events as f64, " B");
    figure("replay of 100,000 events in process", median(inside), "/s");
    bar("replay of 100,000 events to a socket", median(socket), "/s", 1e6, true);
    server.abort();
    runtime.shutdown(Duration::ZERO).await;
}

// ---- loading a thread ----------------------------------------------------------------------------

/// Seconds until a command on a thread that is not loaded is answered.
async fn load(runtime: &Runtime, key: ThreadKey, write: bool) -> f64 {
    // A command that a loaded thread refuses shows the load alone.
    let if_match = (!write).then_some(0);
    let patch = ThreadPatch { title: Some(Some("a title".into())), ..ThreadPatch::default() };
    let begun = Instant::now();
    let done = runtime.patch_thread(key, patch, Call { if_match, ..Call::default() }).await;
    let taken = begun.elapsed().as_secs_f64();
    assert_eq!(done.is_ok(), write);
    // The actor comes to rest after it has answered; only then can the next load put it out.
    tokio::time::sleep(Duration::from_millis(1)).await;
    taken
}

async fn loads(dir: &Path, long: ThreadKey, short: &[ThreadKey]) {
    let mut config = GROUPED.config(dir);
    // Each load puts the thread before it out.
    config.loaded_threads = 1;
    let models = std::sync::Arc::new(Only(std::sync::Arc::new(Silent)));
    let runtime = Runtime::start(config, raddle_actors::Ports::with_models(models)).await.expect("it starts");
    for write in [false, true] {
        let (mut longs, mut shorts) = (Vec::new(), Vec::new());
        for round in 0..sized(200, 100) {
            shorts.push(load(&runtime, short[round % short.len()], write).await);
            longs.push(load(&runtime, long, write).await);
        }
        let (longs, shorts) = (median(longs), median(shorts));
        let what = if write { "load and first write" } else { "load alone" };
        figure(&format!("{what}, 100 events of history"), shorts * 1e6, " µs");
        figure(&format!("{what}, 100,000 events of history"), longs * 1e6, " µs");
        bar(&format!("{what}, 100,000 vs 100"), longs / shorts, "×", 1.5, false);
    }
    let evictions = runtime.health().evictions;
    assert!(evictions > sized(600, 300) as u64, "{evictions} evictions: the threads were not loaded anew");
    runtime.shutdown(Duration::ZERO).await;
}

// ---- opening the store ---------------------------------------------------------------------------

/// This bench again, as a server that will be killed: starts turns in `dir` until then, or a few and then nothing.
fn victim(dir: &Path, idle: bool) {
    block_on(async {
        let runtime = GROUPED.runtime(dir, Words(20)).await;
        let keys = threads(&runtime, 64).await;
        let starts = if idle { 2_000 } else { usize::MAX };
        println!("ready");
        rate(starts, 64, |n| {
            let (runtime, key) = (&runtime, keys[n % keys.len()]);
            async move {
                let start = StartTurn { prompt: "go on".into(), delivery: Delivery::Queue, ..StartTurn::default() };
                // A full inbox refuses; there is load enough.
                drop(runtime.start_turn(key, start, Call::default()).await);
            }
        })
        .await;
        while runtime.health().running_turns > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("rests");
        std::future::pending::<()>().await;
    });
}

async fn killed(dir: &Path, idle: bool) -> f64 {
    let role = if idle { "idle" } else { "loaded" };
    let mut server = child(role, dir).stdout(Stdio::piped()).spawn().expect("it runs");
    let word = if idle { "rests" } else { "ready" };
    let lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == word));
    tokio::time::sleep(Duration::from_millis(if idle { 300 } else { 1_500 })).await;
    server.kill().expect("it was there");
    server.wait().expect("it ended");
    let (store, seconds) = open(dir);
    drop(store);
    seconds
}

async fn opens(filled: &Path) {
    let gigabytes = |dir: &Path| std::fs::metadata(dir.join("raddle.redb")).expect("a file").len() as f64 / 1e9;
    let copy = |from: &Path| {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("raddle.redb");
        std::fs::copy(from.join("raddle.redb"), &file).expect("room");
        // What the copy left in memory is not for the open to write.
        std::fs::File::open(file).and_then(|file| file.sync_all()).expect("synced");
        dir
    };
    let (mut clean, mut idle, mut loaded, mut per_gb) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..sized(5, 3) {
        let dir = copy(filled);
        clean.push(open(dir.path()).1 * 1000.0);
        idle.push(killed(dir.path(), true).await * 1000.0);
        let seconds = killed(dir.path(), false).await;
        loaded.push(seconds * 1000.0);
        per_gb.push(seconds / gigabytes(dir.path()));
    }
    figure("size of the file", gigabytes(filled) * 1000.0, " MB");
    bar("open after a clean stop", median(clean), " ms", 10.0, false);
    bar("open after a kill when idle", median(idle), " ms", 10.0, false);
    figure("open after a kill under load", median(loaded), " ms");
    bar("open after a kill under load, per GB", median(per_gb), " s", 3.0, false);
}

// ---- memory --------------------------------------------------------------------------------------

/// So many that what the allocator keeps or gives back meanwhile is little for each.
const IDLE_THREADS: usize = 40_000;
const IDLE_STREAMS: usize = 1_000;

async fn loaded(runtime: &Runtime, keys: &[ThreadKey]) {
    futures_util::stream::iter(keys)
        .for_each_concurrent(16, |key| async {
            load(runtime, *key, false).await;
        })
        .await;
}

/// In a process of its own, where nothing that was needed before is still being given back.
async fn memory(dir: &Path) {
    let runtime = GROUPED.runtime(dir, Silent).await;
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let query = ThreadQuery { limit: 500, after, ..ThreadQuery::default() };
        let page = runtime.threads(TenantId::DEFAULT, query).await.expect("a page");
        keys.extend(page.data.iter().map(|thread| ThreadKey { tenant: TenantId::DEFAULT, thread: thread.id }));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let (warm, keys) = keys.split_at(1_000);
    loaded(&runtime, warm).await;
    // What is read is in the store's cache from here on: that is not the threads' memory.
    for key in keys {
        runtime.events(*key, 0, 1).await.expect("it is there");
    }
    let before = resident();
    loaded(&runtime, keys).await;
    assert_eq!(runtime.health().loaded_threads as usize, IDLE_THREADS + 1_000);
    let each = (resident() - before) / keys.len() as f64 / 1000.0;
    bar("memory of an idle loaded thread", each, " KB", 4.0, false);

    let (addr, server) = net::serve(runtime.clone()).await;
    let mut streams = Vec::new();
    let mut before = 0.0;
    for (n, key) in keys.iter().take(IDLE_STREAMS + 100).enumerate() {
        // The first few pay for what all share.
        if n == 100 {
            before = resident();
        }
        let mut client = net::Client::connect(addr).await;
        client.read(&net::follow(*key), 1).await;
        streams.push(client);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let each = (resident() - before) / IDLE_STREAMS as f64 / 1000.0;
    bar("memory of an idle stream, both ends", each, " KB", 25.0, false);
    drop(streams);
    server.abort();
    runtime.shutdown(Duration::ZERO).await;
}

/// This bench again, in a process of its own.
fn child(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.env("RADDLE_BENCH_ROLE", role).env("RADDLE_BENCH_DIR", dir);
    command
}

fn main() {
    if let (Ok(role), Ok(dir)) = (std::env::var("RADDLE_BENCH_ROLE"), std::env::var("RADDLE_BENCH_DIR")) {
        let dir = Path::new(&dir);
        return match role.as_str() {
            "memory" => block_on(memory(dir)),
            role => victim(dir, role == "idle"),
        };
    }
    let begun = Instant::now();
    head("resume: coming back");
    let dir = tempfile::tempdir().expect("a directory");
    let (long, short) = {
        let (store, _) = open(dir.path());
        let filled = (log::fill(&store, 1, LONG)[0], log::fill(&store, 50, 100));
        use raddle_domain::ports::LogStore;
        store.rest().expect("it rests");
        filled
    };
    let many = tempfile::tempdir().expect("a directory");
    log::fill(&open(many.path()).0, IDLE_THREADS + 1_000, 1);
    assert!(child("memory", many.path()).status().expect("it runs").success());
    block_on(replay(dir.path(), long));
    block_on(loads(dir.path(), long, &short));
    block_on(opens(dir.path()));
    eprintln!("{:.0?}", begun.elapsed());
}
