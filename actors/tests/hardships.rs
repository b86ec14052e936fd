//! What becomes of work that is under way when the disk is full, the server goes down, or a tenant's policy cannot be
//! read.

mod testbed;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use raddle_actors::{Call, Error, Ports, Runtime};
use raddle_domain::{
    command::Interrupt,
    id::InputId,
    ports::{Document, DocumentKind, LogStore, StoreError, Write},
    record::{ApprovalStatus, Decision, Delivery, EffectOutcome, TurnStatus},
};
use testbed::*;
use uuid::Uuid;

#[tokio::test]
async fn a_full_disk_takes_neither_a_running_tool_nor_what_it_said() {
    let bed = Bed::new();
    let config = bed.config();
    let (full, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (is_full, told) = (full.clone(), refused.clone());
    let door: OnCommit = Box::new(move |writes, commit| {
        if !is_full.load(SeqCst) {
            return commit();
        }
        told.fetch_add(holds(writes, "effect.settled").into(), SeqCst);
        Err(StoreError::Full)
    });
    let store = Hooked::open(&config.store, door);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "call once a before").await;
    bed.tools.begun(1).await;
    full.store(true, SeqCst);
    let queued = runtime.start_turn(key, prompt("next", Delivery::Queue), Call::default()).await;
    assert!(matches!(queued, Err(Error::Store(StoreError::Full))), "{queued:?}");
    // The tool was not given up, and its outcome is offered until there is room for it.
    bed.tools.before.add_permits(1);
    let offered = async {
        while refused.load(SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, offered).await.expect("the outcome is offered again");
    full.store(false, SeqCst);
    rests(&runtime, key).await;
    let log = log(&runtime, key).await;
    assert_sound(&log, true);
    let effect = ledger(&log).remove(0);
    assert_eq!((effect.outcome, effect.attempt, bed.acts()), (Some(EffectOutcome::Succeeded), 1, 1));
    let turn = runtime.turn(key, turn.id).await.unwrap();
    assert_eq!((turn.status, turn.resume_count), (TurnStatus::Completed, 0));
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn what_a_commit_stored_that_failed_reaches_those_who_watch_already() {
    let bed = Bed::new();
    let config = bed.config();
    let fails = AtomicBool::new(true);
    let lossy: OnCommit = Box::new(move |writes, commit| {
        let stored = commit();
        match holds(writes, "turn.completed") && fails.swap(false, SeqCst) {
            true => Err(StoreError::Unavailable("the reply is lost".into())),
            false => stored,
        }
    });
    let store = Hooked::open(&config.store, lossy);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let key = create(&runtime).await;
    let mut watch = runtime.subscribe(key, 0).await.unwrap();
    let mut all = runtime.subscribe_tenant(OWNER, None, None).await.unwrap();
    start(&runtime, key, "hello").await;
    // Nobody writes to the thread again. Both are told, and not cut off.
    let told = async {
        let mut after = 0;
        loop {
            let next = watch.next().await.unwrap();
            assert!(!next.is_last(), "{next:?}");
            for (seq, event) in next.events() {
                assert_eq!(seq, after + 1);
                after = seq;
                if event.name == "turn.completed" {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(LONG, told).await.expect("the thread's watcher is told of the end");
    let told = async {
        loop {
            let next = all.next().await.unwrap();
            assert!(!next.is_last(), "{next:?}");
            if next.events().any(|(_, event)| event.name == "turn.completed") {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, told).await.expect("the tenant's watcher is told of the end");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_turn_that_shows_once_the_store_is_open_again_is_worked_on_whoever_asked_meanwhile() {
    let bed = Bed::new();
    let config = bed.config();
    let down = Arc::new(AtomicBool::new(true));
    let store = Hooked::hiding(&config.store, "turn.started", &down);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let key = create(&runtime).await;
    let failed = runtime.start_turn(key, prompt("hello", Delivery::Queue), Call::default()).await;
    assert!(matches!(failed, Err(Error::Store(StoreError::Unavailable(_)))), "{failed:?}");
    // Nothing of it would have to be stored: the thread alone could say that there is no such prompt.
    let nobody = InputId::new(Uuid::now_v7());
    let asked = runtime.withdraw_prompt(key, nobody, Call::default()).await;
    assert!(matches!(asked, Err(Error::Store(StoreError::Unavailable(_)))), "{asked:?}");
    down.store(false, SeqCst);
    happens(&runtime, key, "turn.completed", 1).await;
    rests(&runtime, key).await;
    assert_sound(&log(&runtime, key).await, true);
    runtime.shutdown(LONG).await;
}

/// Waits until the runtime takes no new work.
async fn drains(runtime: &Runtime) {
    let draining = async {
        while !runtime.health().draining {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, draining).await.expect("it drains");
}

#[tokio::test]
async fn a_prompt_that_waits_when_the_server_goes_down_is_begun_by_the_next_one() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "hold").await;
    answering(&runtime, key).await;
    runtime.start_turn(key, prompt("later", Delivery::Queue), Call::default()).await.unwrap();
    let going = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.shutdown(LONG).await }
    });
    drains(&runtime).await;
    bed.model.gate.add_permits(1);
    going.await.unwrap();
    drop(runtime);

    bed.clock.advance(1_000_000);
    let restarted = raddle_domain::ports::Clock::now(&*bed.clock);
    let runtime = bed.start().await;
    stands(&runtime, key, |thread| thread.queued == 0).await;
    rests(&runtime, key).await;
    let turns = runtime.turns(key, None, 9).await.unwrap().data;
    let ended: Vec<_> = turns.iter().map(|turn| (turn.status, turn.resume_count)).collect();
    assert_eq!((turns[0].id, ended), (turn.id, vec![(TurnStatus::Completed, 0); 2]));
    assert!(turns[0].created_at < restarted && turns[1].created_at >= restarted, "{turns:?}");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_person_is_heard_while_the_server_goes_down() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let (asks, works) = (create(&runtime).await, create(&runtime).await);
    start(&runtime, asks, "call gated_once a").await;
    waits(&runtime, asks).await;
    let turn = start(&runtime, works, "hold").await;
    answering(&runtime, works).await;
    let going = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.shutdown(LONG).await }
    });
    drains(&runtime).await;
    let new = runtime.start_turn(asks, prompt("new", Delivery::Queue), Call::default()).await;
    assert!(matches!(new, Err(Error::Draining)), "{new:?}");
    let approval = pending(&runtime, asks).await.remove(0).id;
    let denied = runtime.decide(OWNER, approval, Decision::Denied, None, Call::default()).await.unwrap();
    assert_eq!(denied.value.status, ApprovalStatus::Denied);
    // The model hangs: without the interrupt the shutdown would wait for its deadline.
    let interrupt = Interrupt { turn: turn.id, pause_queue: false };
    let receipt = runtime.interrupt(works, interrupt, Call::default()).await.unwrap();
    assert_eq!(receipt.value.turn.status, TurnStatus::Interrupted);
    tokio::time::timeout(LONG, going).await.expect("nothing holds the shutdown up").unwrap();
    drop(runtime);
    let runtime = bed.start().await;
    assert_eq!(runtime.turn(works, turn.id).await.unwrap().status, TurnStatus::Interrupted);
    assert_eq!(runtime.approval(OWNER, approval).await.unwrap().status, ApprovalStatus::Denied);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_rule_that_cannot_be_read_permits_nothing_and_stops_no_turn() {
    let bed = Bed::new();
    let config = bed.config();
    let store = Hooked::open(&config.store, Box::new(|_, commit| commit()));
    let torn = Document { kind: DocumentKind::PolicyRule, id: [7; 32], json: b"{\"tool\":".to_vec() };
    let documents = Write::Documents { tenant: OWNER, kind: DocumentKind::PolicyRule, documents: vec![torn] };
    store.commit(&[documents]).unwrap().remove(0).unwrap();
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "call gated_once a").await;
    waits(&runtime, key).await;
    let approval = pending(&runtime, key).await.remove(0).id;
    runtime.decide(OWNER, approval, Decision::Approved, None, Call::default()).await.unwrap();
    assert_eq!((ended(&runtime, key, turn.id).await, bed.acts()), (TurnStatus::Completed, 1));
    runtime.shutdown(LONG).await;
}
