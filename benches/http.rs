//! What a turn start costs over HTTP: request, command, step, durable append, reply.

mod support;

use std::time::{Duration, Instant};

use support::{net::Client, sqlite::TenCommits, *};

/// One measurement.
#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
    commits: f64,
}

/// Turn starts, each on an idle thread of its own, over `width` connections.
async fn starts(side: Side, count: usize, width: usize) -> Run {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = side.runtime(dir.path(), Silent).await;
    let keys = threads(&runtime, count).await;
    let (addr, server) = net::serve(runtime.clone()).await;
    let before = runtime.health().commits;
    let (seconds, mut times) = net::elsewhere(async move || {
        let requests: Vec<Vec<u8>> = keys.into_iter().map(net::start).collect();
        let mut clients = Vec::new();
        for _ in 0..width {
            clients.push(Client::connect(addr).await);
        }
        let begun = Instant::now();
        let next = std::cell::Cell::new(0);
        let work = clients.into_iter().map(async |mut client| {
            let mut times = Vec::with_capacity(count / width + 1);
            while next.get() < count {
                let at = next.replace(next.get() + 1);
                let begun = Instant::now();
                assert_eq!(client.send(&requests[at]).await, 201);
                times.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            times
        });
        let times = futures_util::future::join_all(work).await.concat();
        (begun.elapsed().as_secs_f64(), times)
    })
    .await;
    let commits = (runtime.health().commits - before) as f64 / count as f64;
    server.abort();
    runtime.shutdown(Duration::ZERO).await;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Run { rate: count as f64 / seconds, p50: at(0.5), p99: at(0.99), commits }
}

/// Turn starts per second of a runtime that makes ten commits of each, one after the other: no width makes it quicker.
fn ten_commits(count: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sqlite = TenCommits::open(dir.path(), count as i64);
    let begun = Instant::now();
    (0..count as i64).for_each(|thread| sqlite.start(thread));
    count as f64 / begun.elapsed().as_secs_f64()
}

const WIDTHS: [usize; 4] = [1, 16, 64, 256];
const SLOW: Duration = Duration::from_millis(4);

/// The sides, with how many starts each gets at each width.
const SIDES: [(&str, Side, [usize; 4]); 3] = [
    ("group commit", GROUPED, [500, 4_000, 12_000, 8_000]),
    ("one commit per request", SINGLE, [300, 500, 2_000, 500]),
    ("durability off", VOLATILE, [500, 4_000, 12_000, 6_000]),
];

fn main() {
    let begun = Instant::now();
    head("http: turn starts over HTTP");
    let mut runs: [[Vec<Run>; 4]; 3] = Default::default();
    let (mut raw, mut sqlite) = (Vec::new(), Vec::new());
    let (mut slow_grouped, mut slow_single) = (Vec::new(), Vec::new());
    for _ in 0..sized(5, 1) {
        for (at, width) in WIDTHS.into_iter().enumerate() {
            // The disk's own speed, measured between the sides: the neighbours are the same.
            let dir = tempfile::tempdir().expect("a directory");
            raw.push(raw_append(dir.path(), sized(1_000, 500)));
            sqlite.push(ten_commits(sized(200, 100)));
            for ((_, side, counts), runs) in SIDES.into_iter().zip(&mut runs) {
                runs[at].push(block_on(starts(side, sized(counts[at], counts[at] / 2), width)));
            }
        }
        slow_grouped.push(block_on(starts(GROUPED.slow(SLOW), sized(2_000, 1_000), 64)).rate);
        slow_single.push(block_on(starts(SINGLE.slow(SLOW), 200, 64)).rate);
    }
    let of = |side: usize, at: usize, what: fn(&Run) -> f64| median(runs[side][at].iter().map(what).collect());
    for (side, (name, ..)) in SIDES.into_iter().enumerate() {
        for (at, width) in WIDTHS.into_iter().enumerate() {
            figure(&format!("{name}, c = {width}"), of(side, at, |run| run.rate), "/s");
            if side == 0 {
                figure(&format!("its latency, c = {width}, p50"), of(side, at, |run| run.p50), " ms");
                figure(&format!("its latency, c = {width}, p99"), of(side, at, |run| run.p99), " ms");
            }
        }
    }
    let (raw, sqlite) = (median(raw), median(sqlite));
    let (slow_grouped, slow_single) = (median(slow_grouped), median(slow_single));
    figure("raw append of 512 B + fdatasync", raw, "/s");
    figure("ten SQLite commits with synchronous=FULL, no HTTP", sqlite, "/s");
    figure("group commit, c = 64, a disk with 4 ms syncs", slow_grouped, "/s");
    figure("one commit per request, c = 64, a disk with 4 ms syncs", slow_single, "/s");
    let rate = |side, at| of(side, at, |run| run.rate);
    bar("c = 64 vs one commit per request", rate(0, 2) / rate(1, 2), "×", 6.0, true);
    bar("the same on a disk with 4 ms syncs", slow_grouped / slow_single, "×", 15.0, true);
    bar("c = 64 vs durability off", rate(0, 2) / rate(2, 2), "×", 0.45, true);
    bar("c = 64 vs raw append + fdatasync", rate(0, 2) / raw, "×", 0.9, true);
    bar("c = 256 vs raw append + fdatasync", rate(0, 3) / raw, "×", 1.0, true);
    bar("p50 of one start at c = 1 vs one raw fdatasync", of(0, 0, |run| run.p50) / 1000.0 * raw, "×", 8.0, false);
    bar("commits per start at c = 64", of(0, 2, |run| run.commits), "", 1.0 / 16.0, false);
    bar("c = 64 vs ten SQLite commits per start", rate(0, 2) / sqlite, "×", 8.0, true);
    eprintln!("{:.0?}", begun.elapsed());
}
