//! What many threads on disk cost in memory: as much as few. Alone in its file, so that its process is its own.

mod testbed;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use futures_util::{StreamExt, future::join_all, stream};
use raddle_actors::{Call, Config, Runtime, ThreadQuery};
use raddle_domain::{
    command::NewThread,
    event::{Event, Record},
    id::{ThreadId, ThreadKey},
    record::{ItemKind, TurnStatus},
};
use testbed::*;

const THREADS: usize = 100_000;
/// Creations at once: so many can share a commit, and its sync.
const CREATED_AT_ONCE: usize = 1_024;
const TOUCHES: usize = 10_000;
/// Touches at once; when they are done everything rests.
const ROUND: usize = 100;
/// Touches before the process is looked at, which is looked at again after all of them.
const WARM: usize = 1_000;

/// About what so many threads hold, of which one in sixteen has long instructions: chance says which cap is met first.
const LOADED_THREADS: usize = 256;
const LOADED_BYTES: usize = 832 * 1024;
const INSTRUCTED: usize = 16;
const INSTRUCTIONS: usize = 4 * 1024;

/// What the process may grow by for each thread that is made, and for each that is touched. One that stayed in memory
/// would take three times as much. It is not nothing, because allocators give back late what many needed at once.
const GROWTH: usize = 2 * 1024;

/// Bytes of memory that this process has, where the system says so.
fn resident() -> Option<usize> {
    let statm = Path::new("/proc/self/statm");
    if !statm.exists() {
        eprintln!("SKIPPED: how much memory the process has; there is no {}", statm.display());
        return None;
    }
    let statm = std::fs::read_to_string(statm).unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    Some(pages * rustix::param::page_size())
}

fn grew_little(before: Option<usize>, now: Option<usize>, for_each: usize) {
    if let (Some(before), Some(now)) = (before, now) {
        println!("{before} bytes resident, {now} after {for_each} threads");
        assert!(now <= before + GROWTH * for_each, "the process grew from {before} to {now} bytes");
    }
}

/// Threads and bytes that are loaded.
fn loaded(runtime: &Runtime) -> (usize, usize) {
    let health = runtime.health();
    (health.loaded_threads as usize, health.loaded_bytes as usize)
}

/// Waits until no more is loaded than may be.
async fn under_the_caps(runtime: &Runtime) {
    let falls = async {
        // The supervisor hears of each rest through its mailbox.
        while loaded(runtime).0 > LOADED_THREADS || loaded(runtime).1 > LOADED_BYTES {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(LONG, falls).await.is_err() {
        panic!("all rest, and so many threads and bytes are loaded: {:?}", loaded(runtime));
    }
}

async fn create_all(runtime: &Runtime) -> Vec<ThreadKey> {
    let create = |n| async move {
        let system_prompt = (n % INSTRUCTED == 0).then(|| "p".repeat(INSTRUCTIONS));
        let new = NewThread { system_prompt, ..NewThread::with(choice()) };
        key(&runtime.create_thread(OWNER, new, Call::default()).await.unwrap().value)
    };
    stream::iter(0..THREADS).map(create).buffer_unordered(CREATED_AT_ONCE).collect().await
}

/// Every thread that is listed, as often as it is.
async fn listed(runtime: &Runtime) -> Vec<ThreadId> {
    let (mut threads, mut after) = (Vec::new(), None);
    loop {
        let page = runtime.threads(OWNER, ThreadQuery { limit: 500, after, ..ThreadQuery::default() }).await.unwrap();
        threads.extend(page.data.iter().map(|thread| thread.id));
        after = page.next;
        if after.is_none() {
            return threads;
        }
    }
}

/// Speaks to a thread and hears its answer, or reads all of it.
async fn touch(runtime: &Runtime, key: ThreadKey, said: Option<String>) {
    match said {
        Some(said) => {
            let turn = start(runtime, key, &said).await;
            assert_eq!(ended(runtime, key, turn.id).await, TurnStatus::Completed);
        }
        None => assert_eq!(runtime.snapshot(key).await.unwrap().thread.id, key.thread),
    }
}

/// What is said in a round.
fn said(round: usize) -> String {
    format!("round {round}")
}

/// What a log says was asked and answered.
fn talk(log: &[Record]) -> Vec<String> {
    let mut talk = Vec::new();
    for record in log {
        match &record.event {
            Event::TurnStarted(turn) => talk.push(turn.input_summary.clone()),
            Event::ItemCompleted(item) if item.kind == ItemKind::AgentMessage => talk.push(item.detail.clone()),
            _ => {}
        }
    }
    talk
}

#[tokio::test]
async fn a_hundred_thousand_threads_take_no_more_memory_than_the_caps_say_whichever_are_touched() {
    let bed = Bed { loaded_threads: LOADED_THREADS, ..Bed::new() };
    let mut config = Config { loaded_bytes: LOADED_BYTES, ..bed.config() };
    // Full at once: what the store keeps is not the threads'.
    config.store.cache_bytes = 4 << 20;
    let runtime = Runtime::start(config, bed.ports()).await.unwrap();
    let empty = resident();
    let keys = create_all(&runtime).await;
    under_the_caps(&runtime).await;
    grew_little(empty, resident(), THREADS);

    let mut numbers = Numbers(7);
    // Of each thread the rounds in which it was touched, and whether it was spoken to.
    let mut touches: Vec<Vec<(usize, bool)>> = vec![Vec::new(); THREADS];
    let (mut warm, mut met) = (None, BTreeSet::new());
    for round in 0..TOUCHES / ROUND {
        let mut touched = BTreeMap::new();
        while touched.len() < ROUND {
            touched.insert(numbers.below(THREADS as u64) as usize, numbers.below(4) > 0);
        }
        join_all(touched.iter().map(|(thread, speaks)| touch(&runtime, keys[*thread], speaks.then(|| said(round)))))
            .await;
        touched.into_iter().for_each(|(thread, speaks)| touches[thread].push((round, speaks)));
        under_the_caps(&runtime).await;
        met.insert(loaded(&runtime).0 == LOADED_THREADS);
        // The model remembers what it was shown.
        bed.model.seen.lock().unwrap().clear();
        if (round + 1) * ROUND == WARM {
            warm = resident();
        }
    }
    grew_little(warm, resident(), TOUCHES - WARM);
    assert_eq!(met.len(), 2, "each of the caps was met");

    for (key, touches) in keys.iter().zip(&touches).filter(|(_, touches)| !touches.is_empty()) {
        let log = log(&runtime, *key).await;
        assert_sound(&log, true);
        let said = touches.iter().filter(|(_, speaks)| *speaks).map(|(round, _)| said(*round));
        let expected: Vec<_> = said.flat_map(|said| [said.clone(), format!("echo: {said}")]).collect();
        assert_eq!(talk(&log), expected, "{key}");
    }
    let mut made: Vec<_> = keys.iter().map(|key| key.thread).collect();
    let mut listed = listed(&runtime).await;
    made.sort();
    listed.sort();
    assert_eq!(listed.len(), THREADS);
    assert!(listed == made, "each is listed once");
    under_the_caps(&runtime).await;
    runtime.shutdown(LONG).await;
}
