//! What a tool says while it works is durable and seen before its end, and belongs to the attempt that said it.

mod testbed;

use raddle_actors::Runtime;
use raddle_domain::{
    event::Event,
    id::{ItemId, ThreadKey},
    record::{EffectStatus, TurnStatus},
};
use testbed::*;

/// The deltas of a tool's item, and the text with which it ended.
async fn told(runtime: &Runtime, key: ThreadKey, item: ItemId) -> (Vec<String>, Option<String>) {
    let log = log(runtime, key).await;
    let deltas = log.iter().filter_map(|record| match &record.event {
        Event::ItemDelta(delta) if delta.item == item => Some(delta.delta.clone()),
        _ => None,
    });
    let end = log.iter().find_map(|record| match &record.event {
        Event::ItemCompleted(done) if done.id == item => Some(done.detail.clone()),
        _ => None,
    });
    (deltas.collect(), end)
}

/// Waits until so many tools have been heard.
async fn heard(runtime: &Runtime, key: ThreadKey, tools: usize) {
    let heard = async {
        loop {
            let log = log(runtime, key).await;
            let said =
                |item| log.iter().any(|record| matches!(&record.event, Event::ItemDelta(delta) if delta.item == item));
            if ledger(&log).iter().filter(|effect| said(effect.item_id)).count() >= tools {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, heard).await.expect("the tools are heard");
}

#[tokio::test]
async fn what_a_tool_says_is_seen_while_it_works() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    start(&runtime, key, "call once a says after").await;
    heard(&runtime, key, 1).await;
    bed.tools.acted(1).await;
    let effect = ledger(&log(&runtime, key).await).remove(0);
    assert_eq!(effect.status, EffectStatus::Started);
    let (said, end) = told(&runtime, key, effect.item_id).await;
    assert_eq!((said, end), (vec!["about to do a\n".to_owned()], None));
    bed.tools.after.add_permits(1);
    rests(&runtime, key).await;
    assert_eq!(told(&runtime, key, effect.item_id).await.1.as_deref(), Some("did a"));
    assert_sound(&log(&runtime, key).await, true);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn tools_that_work_side_by_side_are_told_apart() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    start(&runtime, key, "call read a says after; call read b says after").await;
    bed.tools.acted(2).await;
    heard(&runtime, key, 2).await;
    bed.tools.after.add_permits(2);
    rests(&runtime, key).await;
    let effects = ledger(&log(&runtime, key).await);
    for (effect, name) in effects.iter().zip(["a", "b"]) {
        let (said, end) = told(&runtime, key, effect.item_id).await;
        assert_eq!((said.concat(), end), (format!("about to do {name}\n"), Some(format!("did {name}"))));
    }
    assert_eq!(effects.len(), 2);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn an_attempt_after_a_restart_says_everything_anew() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "call idempotent a says after").await;
    heard(&runtime, key, 1).await;
    bed.tools.acted(1).await;
    // A shutdown gives the tool up; the next process starts it again.
    runtime.shutdown(std::time::Duration::ZERO).await;
    drop(runtime);
    bed.tools.after.add_permits(2);
    let runtime = bed.start().await;
    rests(&runtime, key).await;
    let effect = ledger(&log(&runtime, key).await).remove(0);
    assert_eq!(effect.attempt, 2);
    let (said, end) = told(&runtime, key, effect.item_id).await;
    assert_eq!((said.len(), end.as_deref()), (2, Some("did a")));
    assert_eq!(runtime.turn(key, turn.id).await.unwrap().status, TurnStatus::Completed);
    assert_sound(&log(&runtime, key).await, true);
    runtime.shutdown(LONG).await;
}
