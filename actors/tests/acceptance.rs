//! Cases that only a test which holds the store, the model or the process can bring about. The map of all of them is
//! in `tests/README.md` of the workspace.

mod testbed;

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::{StreamExt, stream};
use raddle_actors::{Call, Config, Error, Ports, RecordQuery, Runtime, Started, ThreadQuery};
use raddle_domain::{
    command::{NewThread, ThreadPatch},
    event::{Event, Record},
    id::ThreadKey,
    ports::{FinishReason, Fragment, Model, ModelRequest, ModelStream, Models, StoreError, UnknownModel},
    record::{Delivery, ItemKind, ModelChoice, Resolution, ThreadStatus, TurnStatus},
};
use testbed::*;

// ---- A8, A9: a process that dies at any commit ---------------------------------------------------

const DIR: &str = "RADDLE_TEST_DIES_IN";
/// How many commits go through.
const AFTER: &str = "RADDLE_TEST_DIES_AFTER";
/// Whether the one that it dies at is stored.
const STORED: &str = "RADDLE_TEST_DIES_STORED";

/// The requests of a client: each is made again under its key until it is answered. Returns the thread, and what the
/// prompts became.
async fn ask_all(runtime: &Runtime) -> (ThreadKey, [Started; 2]) {
    let made = runtime.create_thread(OWNER, NewThread::with(choice()), keyed(1, 1)).await.unwrap();
    let key = key(&made.value);
    let first = runtime.start_turn(key, prompt("call once a", Delivery::Queue), keyed(2, 2)).await.unwrap();
    let second = runtime.start_turn(key, prompt("q", Delivery::Queue), keyed(3, 3)).await.unwrap();
    (key, [first.value, second.value])
}

/// The process that dies.
#[tokio::test]
#[ignore = "the other test runs it as a process of its own"]
async fn dies() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let after: usize = std::env::var(AFTER).unwrap().parse().unwrap();
    let stored = std::env::var(STORED).is_ok();
    let dir = Path::new(&dir);
    let config = Config::new(dir);
    let commits = AtomicUsize::new(0);
    let deadly: OnCommit = Box::new(move |_, commit| {
        let dies = commits.fetch_add(1, SeqCst) == after;
        if dies && !stored {
            std::process::abort();
        }
        let done = commit();
        if dies {
            std::process::abort();
        }
        done
    });
    let store = Hooked::open(&config.store, deadly);
    let ports = Ports { store: Some(Arc::new(store)), ..tool_ports(&TestModel::new(), &TestTools::new(dir)) };
    let runtime = Runtime::start(config, ports).await.unwrap();
    let (key, _) = ask_all(&runtime).await;
    rests(&runtime, key).await;
}

/// Runs it in `dir`; whether it died.
async fn died(dir: &Path, after: usize, stored: bool) -> bool {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "dies", "--ignored", "--nocapture", "--test-threads", "1"]);
    process.env(DIR, dir).env(AFTER, after.to_string());
    if stored {
        process.env(STORED, "yes");
    }
    let ended = tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap();
    match std::os::unix::process::ExitStatusExt::signal(&ended.status) {
        Some(6) => true,
        _ => {
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
            false
        }
    }
}

#[tokio::test]
async fn a_start_repeated_after_a_crash_at_any_commit_is_one_turn() {
    let mut points = 0;
    for after in 0.. {
        let mut any = false;
        for stored in [false, true] {
            let bed = Bed::new();
            if !died(bed.dir.path(), after, stored).await {
                continue;
            }
            any = true;
            points += 1;
            let about = format!("commit {after}, stored: {stored}");
            let runtime = tool_runtime(bed.dir.path(), &bed.model, &bed.tools).await;
            let (key, became) = ask_all(&runtime).await;
            let again = ask_all(&runtime).await;
            assert_eq!((again.0, &again.1), (key, &became), "{about}");
            settles(&bed, &runtime, key).await;
            let listed = runtime.threads(OWNER, ThreadQuery { limit: 9, ..ThreadQuery::default() }).await.unwrap();
            assert_eq!(listed.data.len(), 1, "{about}");
            let turns = runtime.turns(key, None, 9).await.unwrap().data;
            let prompts: Vec<_> = turns.iter().map(|turn| turn.input_summary.as_str()).collect();
            assert_eq!(prompts, ["call once a", "q"], "{about}");
            assert!(turns.iter().all(|turn| turn.status == TurnStatus::Completed), "{about}: {turns:#?}");
            assert_eq!(bed.acts(), 1, "{about}");
            let log = log(&runtime, key).await;
            assert_sound(&log, true);
            assert_referred(&log, &about);
            let snapshot = runtime.snapshot(key).await.unwrap();
            for turn in &snapshot.turns {
                let items = snapshot.items.iter().filter(|item| item.turn_id == turn.id).map(|item| item.id);
                assert_eq!(items.collect::<Vec<_>>(), turn.item_ids, "{about}");
                assert!(!turn.item_ids.is_empty(), "{about}");
            }
            runtime.shutdown(LONG).await;
        }
        if !any {
            break;
        }
    }
    assert!(points >= 12, "only {points} commits");
}

/// Waits until nothing is left to do, and says of what nobody knows that it happened if it did.
async fn settles(bed: &Bed, runtime: &Runtime, key: ThreadKey) {
    stands(runtime, key, |thread| matches!(thread.status, ThreadStatus::Idle | ThreadStatus::AwaitingApproval)).await;
    let open = RecordQuery { open: true, limit: 9, ..RecordQuery::default() };
    for effect in runtime.effects(OWNER, open).await.unwrap().data {
        let (word, output) = match bed.acts() {
            0 => (Resolution::Retry, None),
            _ => (Resolution::Settle, Some("did a".to_owned())),
        };
        runtime.resolve(OWNER, effect.operation_id, word, output, Call::default()).await.unwrap();
    }
    rests(runtime, key).await;
}

/// No event names what is not there, and no promoted prompt is without a turn.
fn assert_referred(log: &[Record], about: &str) {
    let mut turns = Vec::new();
    let mut items = Vec::new();
    for (at, record) in log.iter().enumerate() {
        match &record.event {
            Event::TurnStarted(turn) => turns.push(turn.id),
            Event::PromptPromoted(admission) => {
                let next = log.get(at + 1).and_then(|next| next.event.turn_id());
                assert_eq!(next, admission.turn_id, "{about}: a promoted prompt without a turn");
                continue;
            }
            Event::ItemStarted(item) => items.push(item.id),
            _ => {}
        }
        let event = &record.event;
        assert!(event.turn_id().is_none_or(|turn| turns.contains(&turn)), "{about}: {event:?}");
        assert!(event.item_id().is_none_or(|item| items.contains(&item)), "{about}: {event:?}");
    }
}

// ---- A11: an engine that dies --------------------------------------------------------------------

#[tokio::test]
async fn a_turn_whose_engine_dies_fails_with_the_reason_and_the_next_one_runs() {
    // At the first call of a turn, and in its middle.
    for dies_at in [1, 2] {
        let mut bed = Bed::new();
        bed.model = TestModel::with(Box::new(move |number, _| assert_ne!(number, dies_at, "told to fail")));
        let runtime = bed.start().await;
        let key = create(&runtime).await;
        let turn = start(&runtime, key, "call read a").await;
        let queued = runtime.start_turn(key, prompt("q", Delivery::Queue), Call::default()).await;
        assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Failed, "{dies_at}");
        let failed = runtime.turn(key, turn.id).await.unwrap();
        assert!(failed.error.as_ref().is_some_and(|error| error.message.contains("engine")), "{failed:?}");
        // It was queued, or came when the turn had failed already.
        drop(queued.unwrap());
        rests(&runtime, key).await;
        assert_eq!(say(&runtime, key, "and on").await.status, TurnStatus::Completed);
        let statuses: Vec<_> = runtime.turns(key, None, 9).await.unwrap().data.iter().map(|turn| turn.status).collect();
        assert_eq!(statuses, [TurnStatus::Failed, TurnStatus::Completed, TurnStatus::Completed]);
        assert_sound(&log(&runtime, key).await, true);
        runtime.shutdown(LONG).await;
    }
}

// ---- A12: a disk that fails ----------------------------------------------------------------------

#[tokio::test]
async fn a_turn_outlives_a_disk_that_fails_for_a_while() {
    let bed = Bed::new();
    let config = bed.config();
    let broken = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(AtomicUsize::new(0));
    let (breaks, fails) = (broken.clone(), failed.clone());
    let flaky: OnCommit = Box::new(move |_, commit| {
        if breaks.load(SeqCst) {
            fails.fetch_add(1, SeqCst);
            return Err(StoreError::Unavailable("told to fail".into()));
        }
        commit()
    });
    let store = Hooked::open(&config.store, flaky);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let (key, other) = (create(&runtime).await, create(&runtime).await);
    let turn = start(&runtime, key, "hold").await;
    answering(&runtime, key).await;
    let before = log(&runtime, key).await;

    broken.store(true, SeqCst);
    bed.model.gate.add_permits(1);
    // Nobody is told that something is done which is not, and what is done can be read.
    while failed.load(SeqCst) < 5 {
        let told = runtime.start_turn(other, prompt("x", Delivery::Reject), Call::default()).await;
        assert!(matches!(told, Err(Error::Store(_) | Error::Busy { .. })), "{told:?}");
        assert_eq!(runtime.turn(key, turn.id).await.unwrap().status, TurnStatus::InProgress);
        tokio::task::yield_now().await;
    }
    assert!(runtime.health().store_errors > 0);
    assert_eq!(log(&runtime, key).await, before);

    broken.store(false, SeqCst);
    // The call that was cut off is made again.
    bed.model.gate.add_permits(1);
    assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    rests(&runtime, key).await;
    for key in [key, other] {
        assert_eq!(say(&runtime, key, "and on").await.status, TurnStatus::Completed);
        assert_sound(&log(&runtime, key).await, true);
    }
    assert_eq!(runtime.turns(other, None, 9).await.unwrap().data.len(), 1, "what was refused left no trace");
    runtime.shutdown(LONG).await;
}

// ---- A28: a load that everybody wants ------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_at_once_for_an_unloaded_thread_gets_the_same_one() {
    let mut bed = Bed::new();
    bed.loaded_threads = 1;
    let runtime = bed.start().await;
    let (key, other) = (create(&runtime).await, create(&runtime).await);
    for round in 0..20_u32 {
        let title = ThreadPatch { title: Some(Some(round.to_string())), ..ThreadPatch::default() };
        runtime.patch_thread(other, title, Call::default()).await.unwrap();
        let (calls, seq) = (bed.model.calls.load(SeqCst), runtime.thread(key).await.unwrap().seq);
        let asks = (0..20).map(|n| {
            let runtime = runtime.clone();
            tokio::spawn(async move {
                let metadata = [(format!("k{round}"), n.into())].into_iter().collect();
                let patch = ThreadPatch { metadata: Some(metadata), ..ThreadPatch::default() };
                let patched = runtime.patch_thread(key, patch, Call::default()).await.unwrap();
                let start = prompt(&format!("p {round} {n}"), Delivery::Reject);
                (patched.seq, runtime.start_turn(key, start, Call::default()).await.is_ok())
            })
        });
        let done = futures_util::future::join_all(asks).await;
        let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
        rests(&runtime, key).await;
        // One actor puts them into one order: every change has its own place, each turn one engine.
        let mut places: Vec<_> = done.iter().map(|(seq, _)| *seq).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!((places.len(), places[0] > seq), (20, true));
        let started = done.iter().filter(|(_, started)| *started).count();
        assert!(started >= 1);
        assert_eq!(bed.model.calls.load(SeqCst) - calls, started as u32);
    }
    let log = log(&runtime, key).await;
    assert_sound(&log, true);
    assert!(log.iter().all(|record| !matches!(record.event, Event::TurnResumed(_))), "an engine was lost");
    assert_eq!(runtime.health().store_errors, 0, "no second writer was fenced off");
    assert!(runtime.health().evictions >= 20);
    runtime.shutdown(LONG).await;
}

// ---- A37: many fragments -------------------------------------------------------------------------

/// Says all its words at once.
struct Chatty(usize);

impl Model for Chatty {
    fn call(&self, _: ModelRequest) -> ModelStream {
        let words = (0..self.0).map(|word| Ok(Fragment::Text(format!("w{word} "))));
        stream::iter(words.chain([Ok(Fragment::Finish(FinishReason::Stop))]).collect::<Vec<_>>()).boxed()
    }
}

struct OnlyChatty(usize);

impl Models for OnlyChatty {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Ok(choice())
    }
    fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
        Some(Arc::new(Chatty(self.0)))
    }
    fn engines(&self) -> Vec<String> {
        vec!["test".into()]
    }
}

#[tokio::test]
async fn two_thousand_fragments_are_a_few_commits() {
    const WORDS: usize = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let runtime =
        Runtime::start(Config::new(dir.path()), Ports::with_models(Arc::new(OnlyChatty(WORDS)))).await.unwrap();
    let key = create(&runtime).await;
    let before = runtime.health();
    say(&runtime, key, "go").await;
    let after = runtime.health();
    let text: String = (0..WORDS).map(|word| format!("w{word} ")).collect();
    let items = runtime.snapshot(key).await.unwrap().items;
    assert_eq!(items.iter().find(|item| item.kind == ItemKind::AgentMessage).unwrap().detail, text);
    let log = log(&runtime, key).await;
    let deltas: Vec<_> = log.iter().filter(|record| matches!(record.event, Event::ItemDelta(_))).collect();
    // A delta is worth saving for its size, or for how long it has waited: however slow this machine is, it says
    // itself how long that was.
    let elapsed = deltas.last().unwrap().ts.since(deltas[0].ts);
    let bound = 2 + text.len() / 4_096 + usize::try_from(elapsed / 30).unwrap();
    assert!(deltas.len() <= bound, "{} deltas in {elapsed} ms, at most {bound}", deltas.len());
    // And around them the turn's beginning and its end.
    let commits = usize::try_from(after.commits - before.commits).unwrap();
    assert!(commits <= bound + 4, "{commits} commits in {elapsed} ms");
    runtime.shutdown(LONG).await;
}
