//! What the runtime promises a host, on the real actors and the real store.

mod testbed;

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use raddle_actors::{Call, Config, Error, Idempotency, Next, Runtime, Started, Subscription, ThreadQuery};
use raddle_domain::{
    command::{Interrupt, Refused, ThreadPatch},
    event::Event,
    id::{Seq, TenantId},
    record::{Delivery, OnRestart, ThreadStatus, TurnStatus},
};
use testbed::*;

#[tokio::test]
async fn a_conversation_is_answered_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    for prompt in ["one", "two"] {
        let turn = start(&runtime, key, prompt).await;
        assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
        rests(&runtime, key).await;
    }
    assert_eq!(answers(&runtime, key).await, ["echo: one", "echo: two"]);
    assert_eq!(model.seen.lock().unwrap()[1].len(), 3);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn queued_prompts_run_in_order_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let first = runtime(dir.path(), &model).await;
    let key = create(&first).await;
    start(&first, key, "hold").await;
    for queued in ["q1", "q2", "q3"] {
        let done = first.start_turn(key, prompt(queued, Delivery::Queue), Call::default()).await.unwrap();
        assert!(matches!(done.value, Started::Queued { .. }));
    }
    first.shutdown(Duration::ZERO).await;
    drop(first);

    model.gate.add_permits(1);
    let second = runtime(dir.path(), &model).await;
    rests(&second, key).await;
    let turns = second.turns(key, None, 10).await.unwrap().data;
    let prompts: Vec<_> = turns.iter().map(|turn| turn.input_summary.as_str()).collect();
    assert_eq!(prompts, ["hold", "q1", "q2", "q3"]);
    assert!(turns.iter().all(|turn| turn.status == TurnStatus::Completed));
    assert_eq!(turns[0].resume_count, 1);
    assert_eq!(answers(&second, key).await.last().unwrap(), "echo: q3");
    second.shutdown(LONG).await;
}

#[tokio::test]
async fn of_fifty_simultaneous_starts_exactly_one_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    let starts = (0..50).map(|n| {
        let runtime = runtime.clone();
        tokio::spawn(async move {
            runtime.start_turn(key, prompt(&format!("hold {n}"), Delivery::Reject), Call::default()).await
        })
    });
    let outcomes = futures_util::future::join_all(starts).await;
    let accepted = outcomes.iter().filter(|outcome| outcome.as_ref().unwrap().is_ok()).count();
    let refused = |outcome: &Result<_, Error>| matches!(outcome, Err(Error::Refused(Refused::TurnOpen { .. })));
    assert_eq!(accepted, 1);
    assert_eq!(
        outcomes
            .iter()
            .filter(|outcome| refused(&outcome.as_ref().unwrap().as_ref().map(drop).map_err(Clone::clone)))
            .count(),
        49
    );
    assert_eq!(runtime.turns(key, None, 100).await.unwrap().data.len(), 1);
    runtime.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn an_interrupt_ends_a_turn_whose_model_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "hold").await;
    let receipt =
        runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, Call::default()).await.unwrap().value;
    assert_eq!(receipt.turn.status, TurnStatus::Interrupted);
    assert_eq!(log(&runtime, key).await[receipt.ended_seq as usize - 1].event.name(), "turn.completed");
    let again =
        runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, Call::default()).await.unwrap_err();
    assert!(matches!(again, Error::Refused(Refused::TurnNotActive { .. })), "{again:?}");
    let never = raddle_domain::id::TurnId::new(uuid::Uuid::nil());
    assert!(matches!(
        runtime.interrupt(key, Interrupt { turn: never, pause_queue: false }, Call::default()).await,
        Err(Error::NotFound("turn"))
    ));
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_thread_that_interrupts_on_restart_closes_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let first = runtime(dir.path(), &model).await;
    let key = create(&first).await;
    let patch = ThreadPatch { on_restart: Some(OnRestart::Interrupt), ..ThreadPatch::default() };
    first.patch_thread(key, patch, Call::default()).await.unwrap();
    let turn = start(&first, key, "hold").await;
    answering(&first, key).await;
    first.shutdown(Duration::ZERO).await;
    drop(first);
    let second = runtime(dir.path(), &model).await;
    assert_eq!(ended(&second, key, turn.id).await, TurnStatus::Interrupted);
    assert_eq!(model.calls.load(SeqCst), 1);
    second.shutdown(LONG).await;
}

#[tokio::test]
async fn a_request_under_the_same_key_is_replayed_and_under_another_body_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    let call =
        |request| Call { idempotency: Some(Idempotency { key: [7; 32], request: [request; 32] }), ..Call::default() };
    let first = runtime.start_turn(key, prompt("a", Delivery::Reject), call(1)).await.unwrap();
    rests(&runtime, key).await;
    let again = runtime.start_turn(key, prompt("a", Delivery::Reject), call(1)).await.unwrap();
    assert_eq!((again.value, again.seq, again.replayed), (first.value, first.seq, true));
    assert!(matches!(
        runtime.start_turn(key, prompt("b", Delivery::Reject), call(2)).await,
        Err(Error::IdempotencyMismatch)
    ));
    assert_eq!(runtime.turns(key, None, 10).await.unwrap().data.len(), 1);
    // What is deleted is not remembered by a receipt either.
    runtime.delete_thread(key, Call::default()).await.unwrap();
    let gone = runtime.start_turn(key, prompt("a", Delivery::Reject), call(1)).await;
    assert!(matches!(gone, Err(Error::Deleted)), "{gone:?}");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn every_verb_is_replayed_as_it_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let call = |n| Call { idempotency: Some(Idempotency { key: [n; 32], request: [n; 32] }), ..Call::default() };
    let new = raddle_domain::command::NewThread::with(choice());
    let created = runtime.create_thread(TenantId::DEFAULT, new.clone(), call(1)).await.unwrap();
    let key = testbed::key(&created.value);
    let started = runtime.start_turn(key, prompt("hold", Delivery::Reject), call(2)).await.unwrap();
    let queued = runtime.start_turn(key, prompt("q", Delivery::Queue), call(3)).await.unwrap();
    let Started::Turn(turn) = &started.value else { panic!("{started:?}") };
    let interrupted = runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, call(4)).await.unwrap();
    rests(&runtime, key).await;
    let again = runtime.create_thread(TenantId::DEFAULT, new, call(1)).await.unwrap();
    assert_eq!((&again.value, again.seq, again.replayed), (&created.value, created.seq, true));
    let again = runtime.start_turn(key, prompt("hold", Delivery::Reject), call(2)).await.unwrap();
    assert_eq!((&again.value, again.seq, again.replayed), (&started.value, started.seq, true));
    let again = runtime.start_turn(key, prompt("q", Delivery::Queue), call(3)).await.unwrap();
    assert_eq!((&again.value, again.seq, again.replayed), (&queued.value, queued.seq, true));
    let again = runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, call(4)).await.unwrap();
    assert_eq!((&again.value, again.seq, again.replayed), (&interrupted.value, interrupted.seq, true));
    assert_eq!(runtime.turns(key, None, 10).await.unwrap().data.len(), 2);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn loaded_threads_fall_back_under_the_cap_once_they_rest() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let config = Config { loaded_threads: 64, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..1_000 {
        keys.push(create(&runtime).await);
    }
    for chunk in keys.chunks(50) {
        let turns = chunk.iter().map(|key| start(&runtime, *key, "hi"));
        futures_util::future::join_all(turns).await;
    }
    for key in &keys {
        rests(&runtime, *key).await;
    }
    // The supervisor hears of each rest through its mailbox; what it unloads takes a moment to go.
    let falls = async {
        while runtime.health().loaded_threads > 64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, falls).await.expect("the cap holds once all rest");
    assert!(runtime.health().evictions >= 900);
    assert_eq!(model.calls.load(SeqCst), 1_000);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn no_more_threads_are_unloaded_for_their_bytes_than_have_to_be() {
    const FIT: u64 = 64;
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let one = {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime(dir.path(), &model).await;
        create(&runtime).await;
        let loads = async {
            while runtime.health().loaded_bytes == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, loads).await.expect("what is loaded counts, also before it was told anything");
        runtime.health().loaded_bytes
    };
    let config = Config { loaded_bytes: (FIT * one) as usize, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    for n in 1..=4 * FIT {
        create(&runtime).await;
        // Each that is too many makes one other leave.
        let stands = async {
            while runtime.health().evictions < n.saturating_sub(FIT) || runtime.health().loaded_threads < n.min(FIT) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, stands).await.expect("as many stay as fit");
        assert_eq!(runtime.health().evictions, n.saturating_sub(FIT));
    }
    runtime.shutdown(LONG).await;
}

fn title(title: &str) -> ThreadPatch {
    ThreadPatch { title: Some(Some(title.into())), ..ThreadPatch::default() }
}

#[tokio::test]
async fn an_unloaded_thread_shows_the_model_the_same_history() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let config = Config { loaded_threads: 1, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    let (key, other) = (create(&runtime).await, create(&runtime).await);
    for n in 0..4 {
        start(&runtime, key, &format!("prompt {n}")).await;
        rests(&runtime, key).await;
        runtime.patch_thread(other, title(&format!("t{n}")), Call::default()).await.unwrap();
    }
    assert!(runtime.health().evictions >= 4);
    let seen = model.seen.lock().unwrap().clone();
    for pair in seen.windows(2) {
        assert!(pair[1].starts_with(&pair[0]), "the history changed: {pair:?}");
    }
    assert_eq!(seen[3].len(), 7);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_watcher_sees_each_event_once_whenever_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    start(&runtime, key, "hold").await;
    for n in 0..20 {
        runtime.start_turn(key, prompt(&format!("queued prompt {n}"), Delivery::Queue), Call::default()).await.unwrap();
    }
    let watchers: Vec<_> = [0, 1, 5, 9]
        .into_iter()
        .map(|after| {
            let runtime = runtime.clone();
            tokio::spawn(async move {
                let mut watch = runtime.subscribe(key, after).await.unwrap();
                let mut seqs: Vec<Seq> = Vec::new();
                loop {
                    match watch.next().await.unwrap() {
                        Next::Stored(chunks) => seqs.extend(chunks.iter().flat_map(|chunk| chunk.first..=chunk.last())),
                        Next::Live { batch, skip } => seqs.extend(batch.chunk.first + skip as Seq..=batch.chunk.last()),
                        Next::Shutdown { .. } => return (after, seqs),
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    model.gate.add_permits(1);
    rests(&runtime, key).await;
    let head = runtime.thread(key).await.unwrap().seq;
    runtime.shutdown(LONG).await;
    for watcher in watchers {
        let (after, seqs) = watcher.await.unwrap();
        assert_eq!(seqs, (after + 1..=head).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_snapshot_and_what_follows_its_cursor_are_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    start(&runtime, key, "hold").await;
    for n in 0..10 {
        runtime.start_turn(key, prompt(&format!("p{n}"), Delivery::Queue), Call::default()).await.unwrap();
    }
    model.gate.add_permits(1);
    let mut seqs = BTreeSet::new();
    while runtime.thread(key).await.unwrap().status != ThreadStatus::Idle {
        let snapshot = runtime.snapshot(key).await.unwrap();
        assert_eq!(snapshot.thread.seq, snapshot.seq);
        seqs.insert(snapshot.seq);
        let log = log(&runtime, key).await;
        let ended =
            log[..snapshot.seq as usize].iter().filter(|record| matches!(record.event, Event::TurnCompleted(_)));
        let terminal = snapshot.turns.iter().filter(|turn| turn.status.is_terminal());
        assert_eq!(ended.count(), terminal.count());
        let begun = log[..snapshot.seq as usize].iter().filter(|record| matches!(record.event, Event::ItemStarted(_)));
        assert_eq!(begun.count(), snapshot.items.len());
    }
    assert!(!seqs.is_empty());
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_deleted_thread_is_gone_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    let mut watch = runtime.subscribe(key, 0).await.unwrap();
    start(&runtime, key, "hold").await;
    runtime.delete_thread(key, Call::default()).await.unwrap();
    let mut last = None;
    loop {
        match watch.next().await {
            Ok(Next::Deleted) | Err(Error::NotFound(_)) => break,
            Ok(next) => last = Some(next),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(last.is_some());
    assert!(matches!(runtime.thread(key).await, Err(Error::NotFound("thread"))));
    assert!(matches!(runtime.events(key, 0, 10).await, Err(Error::NotFound("thread"))));
    assert!(matches!(runtime.patch_thread(key, title("x"), Call::default()).await, Err(Error::NotFound("thread"))));
    let listed = runtime.threads(TenantId::DEFAULT, ThreadQuery { limit: 10, ..ThreadQuery::default() }).await.unwrap();
    assert!(listed.data.is_empty());
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_second_runtime_on_the_same_directory_is_refused_with_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let error = Runtime::start(Config::new(dir.path()), ports(&model)).await.err().unwrap();
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_thread_whose_actor_panics_is_brought_back_from_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let ids = std::sync::Arc::new(Brittle::default());
    let ports = raddle_actors::Ports { ids: ids.clone(), ..ports(&model) };
    let runtime = Runtime::start(Config::new(dir.path()), ports).await.unwrap();
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "hold").await;
    // Once the answer has begun, the next id is the admission's.
    answering(&runtime, key).await;
    ids.0.store(true, SeqCst);
    // The step that failed was never saved, so the command is run again on the thread that was brought back.
    let queued = runtime.start_turn(key, prompt("q", Delivery::Queue), Call::default()).await.unwrap();
    assert!(matches!(queued.value, Started::Queued { .. }));
    model.gate.add_permits(1);
    assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    assert_eq!(runtime.turn(key, turn.id).await.unwrap().resume_count, 1);
    rests(&runtime, key).await;
    assert_eq!(answers(&runtime, key).await.last().unwrap(), "echo: q");
    assert_eq!(runtime.turns(key, None, 10).await.unwrap().data.len(), 2);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_thread_that_stops_while_it_owes_a_turn_comes_back_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let ids = std::sync::Arc::new(Brittle::default());
    let ports = raddle_actors::Ports { ids: ids.clone(), ..ports(&model) };
    let runtime = Runtime::start(Config::new(dir.path()), ports).await.unwrap();
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "hold").await;
    answering(&runtime, key).await;
    runtime.start_turn(key, prompt("q", Delivery::Queue), Call::default()).await.unwrap();
    // The next id is that of the turn after this one: the step that ends the answer fails, with nobody waiting.
    ids.0.store(true, SeqCst);
    model.gate.add_permits(2);
    assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    assert!(runtime.turn(key, turn.id).await.unwrap().resume_count >= 1);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_watcher_that_lagged_behind_a_deletion_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let config = Config { subscriber_bytes: 1, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    let key = create(&runtime).await;
    let mut watch = runtime.subscribe(key, 0).await.unwrap();
    for n in 0..3 {
        runtime.patch_thread(key, title(&n.to_string()), Call::default()).await.unwrap();
    }
    runtime.delete_thread(key, Call::default()).await.unwrap();
    let end = async { while watch.next().await.is_ok_and(|next| !next.is_last()) {} };
    tokio::time::timeout(LONG, end).await.expect("the watcher hears of the end");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn who_is_cut_off_is_counted_and_who_looks_again_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let config = Config { subscriber_bytes: 1, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    let key = create(&runtime).await;
    let dropped = || runtime.health().subscribers_dropped;
    let titles = AtomicU64::new(0);
    let retitle = async || {
        for _ in 0..3 {
            let next = titles.fetch_add(1, SeqCst).to_string();
            runtime.patch_thread(key, title(&next), Call::default()).await.unwrap();
        }
        // Whoever watches anew does so once all of this was handed over. It is not counted, as it reads nothing.
        drop(runtime.subscribe(key, 0).await.unwrap());
    };
    // Something happens whenever there is nothing to read.
    let live = async |watch: &mut Subscription| loop {
        tokio::select! {
            biased;
            next = watch.next() => match next.unwrap() {
                Next::Stored(_) => {}
                Next::Live { .. } => break,
                other => panic!("{other:?}"),
            },
            () = tokio::time::sleep(Duration::from_millis(20)) => retitle().await,
        }
    };
    // More happens than it may hold before it has read what is stored: it reads that too, and goes on.
    let mut watch = runtime.subscribe(key, 0).await.unwrap();
    retitle().await;
    live(&mut watch).await;
    assert_eq!(dropped(), 0);
    // So does a wait that is let go.
    let turn = start(&runtime, key, "hold").await;
    let mut waits = pin!(ended(&runtime, key, turn.id));
    tokio::time::timeout(Duration::from_millis(50), &mut waits).await.unwrap_err();
    retitle().await;
    model.gate.add_permits(1);
    assert_eq!(waits.await, TurnStatus::Completed);
    assert_eq!(dropped(), 0);
    // It did not read meanwhile, and hears of it.
    while !watch.next().await.unwrap().is_last() {}
    assert_eq!(dropped(), 1);
    // Nor did this one, and never will.
    let mut watch = runtime.subscribe(key, 0).await.unwrap();
    live(&mut watch).await;
    retitle().await;
    drop(watch);
    assert_eq!(dropped(), 2);
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_can_be_used_again_as_soon_as_its_reply_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    start(&runtime, key, "hold").await;
    for n in 0..90 {
        let call = Call { idempotency: Some(Idempotency { key: [n; 32], request: [n; 32] }), ..Call::default() };
        let first = runtime.start_turn(key, prompt("q", Delivery::Queue), call.clone()).await.unwrap();
        let again = runtime.start_turn(key, prompt("q", Delivery::Queue), call).await.unwrap();
        assert_eq!((&again.value, again.replayed), (&first.value, true));
    }
    runtime.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_fragment_without_text_does_not_make_a_turn_deaf() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    // This model says nothing, waits, and goes on.
    let turn = start(&runtime, key, "hold empty").await;
    let other = create(&runtime).await;
    let first = start(&runtime, other, "x").await;
    assert_eq!(ended(&runtime, other, first.id).await, TurnStatus::Completed);
    model.gate.add_permits(1);
    assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    runtime.shutdown(LONG).await;
}
