//! What tenants are promised that share a runtime: whoever floods it, the others are served in their turn.

mod testbed;

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

use raddle_actors::{Call, Config, Error, Ports, Runtime, Started};
use raddle_domain::{
    command::{Interrupt, NewThread},
    history::Message,
    id::{TenantId, ThreadKey},
    record::{Delivery, Turn, TurnStatus},
    tenant::TenantPatch,
};
use testbed::*;

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

async fn thread_of(runtime: &Runtime, name: &str) -> ThreadKey {
    let done = runtime.create_thread(tenant(name), NewThread::with(choice()), Call::default()).await.unwrap();
    ThreadKey { tenant: tenant(name), thread: done.value.id }
}

async fn weigh(runtime: &Runtime, name: &str, weight: u32) {
    let patch = TenantPatch { weight: NonZeroU32::new(weight), ..TenantPatch::default() };
    runtime.create_tenant(tenant(name), patch, None).await.unwrap();
}

async fn begin(runtime: &Runtime, name: &str, text: &str) -> (ThreadKey, Turn) {
    let key = thread_of(runtime, name).await;
    let done = runtime.start_turn(key, prompt(text, Delivery::Reject), Call::default()).await.unwrap();
    match done.value {
        Started::Turn(turn) => (key, *turn),
        Started::Queued { .. } => panic!("queued"),
    }
}

/// Waits until the runtime's figures are as asked.
async fn until(what: &str, is: impl Fn() -> bool) {
    let becomes = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, becomes).await.unwrap_or_else(|_| panic!("it does not become so: {what}"));
}

/// A model that notes the order in which it is asked.
fn noting() -> (Arc<TestModel>, Arc<Mutex<Vec<String>>>) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = order.clone();
    let model = TestModel::with(Box::new(move |_, request| {
        let said = request.messages.iter().rev().find_map(|message| match message {
            Message::User { content } => Some(content.clone()),
            _ => None,
        });
        noted.lock().unwrap().extend(said);
    }));
    (model, order)
}

/// Turns of these tenants come to a gate with one place, one after the other, while it is taken: the order in which the
/// model is asked for them.
async fn order_of(fair: bool, weights: &[(&str, u32)], coming: &[(&str, &str)]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let (model, order) = noting();
    let config = Config { model_calls: 1, fair, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    for (name, weight) in weights {
        weigh(&runtime, name, *weight).await;
    }
    begin(&runtime, "first", "hold").await;
    until("the place is taken", || !order.lock().unwrap().is_empty()).await;
    let mut turns = Vec::new();
    for (at, (name, text)) in coming.iter().enumerate() {
        turns.push(begin(&runtime, name, text).await);
        until("it waits", || runtime.health().model_calls.waiting == at as u64 + 1).await;
    }
    let figures = runtime.health().model_calls;
    assert_eq!((figures.places, figures.in_use), (1, 1));
    // A turn that waits for a place is at work.
    until("all count as running", || runtime.health().running_turns == coming.len() as u64 + 1).await;
    model.gate.add_permits(1);
    for (key, turn) in turns {
        assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    }
    until("every place is free again", || runtime.health().model_calls.in_use == 0).await;
    runtime.shutdown(LONG).await;
    let order = order.lock().unwrap();
    order[1..].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_call_of_who_asks_once_is_next_after_one_of_who_floods() {
    let coming = [("flood", "f1"), ("flood", "f2"), ("flood", "f3"), ("flood", "f4"), ("quiet", "q1")];
    assert_eq!(order_of(true, &[], &coming).await, ["f1", "q1", "f2", "f3", "f4"]);
    assert_eq!(order_of(false, &[], &coming).await, ["f1", "f2", "f3", "f4", "q1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_served_by_weight() {
    let coming = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("b", "b3"), ("b", "b4")];
    let wanted = ["a1", "b1", "b2", "a2", "b3", "b4", "a3"];
    assert_eq!(order_of(true, &[("a", 1), ("b", 2)], &coming).await, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_calls_cost_their_share() {
    let long = "x".repeat(3 * 4 * 1_024);
    let coming = [("a", long.as_str()), ("a", "a2"), ("b", "b1"), ("b", "b2"), ("b", "b3"), ("b", "b4")];
    let order = order_of(true, &[], &coming).await;
    assert_eq!(order.iter().map(|text| &text[..1]).collect::<String>(), "bbxbab");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_interrupted_while_it_waits_leaves_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let (model, order) = noting();
    let runtime = Runtime::start(Config { model_calls: 1, ..Config::new(dir.path()) }, ports(&model)).await.unwrap();
    let (first, held) = begin(&runtime, "a", "hold").await;
    until("the place is taken", || !order.lock().unwrap().is_empty()).await;
    let (gone, turn) = begin(&runtime, "a", "gone").await;
    let (last, waits) = begin(&runtime, "a", "last").await;
    until("both wait", || runtime.health().model_calls.waiting == 2).await;
    let interrupt = Interrupt { turn: turn.id, pause_queue: false };
    runtime.interrupt(gone, interrupt, Call::default()).await.unwrap();
    until("one waits", || runtime.health().model_calls.waiting == 1).await;
    assert_eq!(ended(&runtime, gone, turn.id).await, TurnStatus::Interrupted);
    // So does one that has the place.
    runtime.interrupt(first, Interrupt { turn: held.id, pause_queue: false }, Call::default()).await.unwrap();
    assert_eq!(ended(&runtime, last, waits.id).await, TurnStatus::Completed);
    until("every place is free", || runtime.health().model_calls.in_use == 0).await;
    assert_eq!(*order.lock().unwrap(), ["hold", "last"]);
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_tools_are_served_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tools) = (TestModel::new(), TestTools::new(dir.path()));
    let config = Config { tool_runs: 1, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, tool_ports(&model, &tools)).await.unwrap();
    let mut turns = vec![begin(&runtime, "first", "call read before").await];
    tools.begun(1).await;
    for (at, (name, text)) in
        [("flood", "f1"), ("flood", "f2"), ("flood", "f3"), ("quiet", "q1")].into_iter().enumerate()
    {
        turns.push(begin(&runtime, name, &format!("call read {text}")).await);
        until("it waits", || runtime.health().tool_runs.waiting == at as u64 + 1).await;
    }
    tools.before.add_permits(1);
    for (key, turn) in turns {
        assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed);
    }
    let order: Vec<_> = acts(dir.path()).into_iter().map(|act| act.argument).collect();
    assert_eq!(order, ["before", "f1", "q1", "f2", "f3"]);
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_the_last_places_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let config = Config { subscribers: 4, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, Ports { ..ports(&model) }).await.unwrap();
    let own = thread_of(&runtime, "a").await;
    let mut watches = Vec::new();
    // Alone it has all of them.
    for _ in 0..4 {
        watches.push(runtime.subscribe(own, 0).await.unwrap());
    }
    assert!(matches!(runtime.subscribe(own, 0).await, Err(Error::Busy { what: "the list of watchers", .. })));
    let other = thread_of(&runtime, "b").await;
    watches.truncate(2);
    let refused = runtime.subscribe(own, 0).await.err();
    assert!(matches!(refused, Some(Error::Busy { what: "the tenant's share of the list of watchers", .. })));
    for _ in 0..2 {
        watches.push(runtime.subscribe(other, 0).await.unwrap());
    }
    runtime.shutdown(LONG).await;
}
