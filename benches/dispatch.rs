//! What a turn start costs in process: command, step, durable append, reply. No HTTP.

mod support;

use std::time::Instant;

use raddle_actors::Call;
use raddle_domain::{command::StartTurn, record::Delivery};
use support::*;

/// Turn starts per second, each on an idle thread of its own, and syncs per start.
async fn starts(side: Side, count: usize, width: usize) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = side.runtime(dir.path(), Silent).await;
    let keys = threads(&runtime, count).await;
    let before = runtime.health().commits;
    let rate = rate(count, width, |n| {
        let (runtime, key) = (&runtime, keys[n]);
        async move {
            let start = StartTurn {
                prompt: "what is the weather like?".into(),
                delivery: Delivery::Reject,
                ..StartTurn::default()
            };
            runtime.start_turn(key, start, Call::default()).await.expect("it starts");
        }
    })
    .await;
    let commits = runtime.health().commits - before;
    runtime.shutdown(std::time::Duration::ZERO).await;
    (rate, commits as f64 / count as f64)
}

fn main() {
    let begun = Instant::now();
    head("dispatch: turn starts in process");
    let rounds = sized(3, 1);
    let mut raw = Vec::new();
    let mut grouped = vec![Vec::new(); 4];
    let mut syncs = vec![Vec::new(); 4];
    let mut single = Vec::new();
    let mut volatile = Vec::new();
    let widths = [1, 16, 64, 256];
    for _ in 0..rounds {
        let dir = tempfile::tempdir().expect("a directory");
        raw.push(raw_append(dir.path(), sized(5_000, 1_000)));
        for (at, width) in widths.into_iter().enumerate() {
            let count = if width == 1 { sized(1_000, 500) } else { sized(10_000, 4_000) };
            let (rate, per_start) = block_on(starts(GROUPED, count, width));
            grouped[at].push(rate);
            syncs[at].push(per_start);
        }
        single.push(block_on(starts(SINGLE, sized(2_000, 1_000), 64)).0);
        volatile.push(block_on(starts(VOLATILE, sized(10_000, 4_000), 64)).0);
    }
    let raw = median(raw);
    let grouped: Vec<f64> = grouped.into_iter().map(median).collect();
    let syncs: Vec<f64> = syncs.into_iter().map(median).collect();
    figure("raw append + fdatasync", raw, "/s");
    for (at, width) in widths.into_iter().enumerate() {
        figure(&format!("turn starts, c = {width}"), grouped[at], "/s");
    }
    bar("c = 64 vs one commit per request", grouped[2] / median(single), "×", 6.0, true);
    bar("c = 64 vs durability off", grouped[2] / median(volatile), "×", 0.45, true);
    bar("c = 64 vs raw append + fdatasync", grouped[2] / raw, "×", 0.9, true);
    bar("c = 256 vs raw append + fdatasync", grouped[3] / raw, "×", 1.0, true);
    bar("one start at c = 1 vs one raw fdatasync", raw / grouped[0], "×", 8.0, false);
    bar("syncs per start at c = 64", syncs[2], "", 1.0 / 16.0, false);
    eprintln!("{:.0?}", begun.elapsed());
}
