//! What a conversation goes through.

use raddle_actors::{Call, Runtime, Started};
use raddle_domain::{
    command::{Compact, Interrupt, Steer},
    id::ThreadKey,
    record::{Decision, Delivery, TurnKind, Undelivered},
};

use super::*;

pub async fn compacted(runtime: &Runtime, key: ThreadKey) {
    let done = runtime.compact(key, Compact::default(), Call::default()).await.unwrap();
    assert!(matches!(&done.value, Started::Turn(turn) if turn.kind == TurnKind::Compaction), "{done:?}");
    rests(runtime, key).await;
}

pub async fn edited(runtime: &Runtime, key: ThreadKey, text: &str) {
    runtime.edit_last(key, prompt(text, Delivery::Reject), Call::default()).await.unwrap();
    rests(runtime, key).await;
}

/// Does one of the things that a conversation goes through.
pub async fn live(bed: &Bed, runtime: &Runtime, key: ThreadKey, what: &str) {
    match what {
        "tools" => {
            say(runtime, key, "think: call once a; call read b; call nothing c; call read d fails").await;
        }
        "approval" => {
            start(runtime, key, "call gated_once a; call gated_read b; call ask why?").await;
            waits(runtime, key).await;
            for decision in [Decision::Approved, Decision::Denied] {
                stands(runtime, key, |thread| thread.pending_approvals > 0).await;
                let approval = pending(runtime, key).await.remove(0);
                let reason = Some("so it is".to_owned());
                runtime.decide(OWNER, approval.id, decision, reason, Call::default()).await.unwrap();
            }
            let open = raddle_actors::RecordQuery {
                thread: Some(key.thread),
                open: true,
                limit: 9,
                ..raddle_actors::RecordQuery::default()
            };
            let question = runtime.questions(OWNER, open).await.unwrap().data.remove(0);
            runtime.answer(OWNER, question.id, "because".into(), Call::default()).await.unwrap();
            rests(runtime, key).await;
        }
        "steer" => {
            let begun = bed.tools.progress.borrow().0;
            let turn = start(runtime, key, "call once a before").await.id;
            bed.tools.begun(begun + 1).await;
            let steer = Steer { turn, prompt: "be quick".into(), undelivered: Undelivered::Report };
            runtime.steer(key, steer, Call::default()).await.unwrap();
            bed.tools.before.add_permits(1);
            rests(runtime, key).await;
        }
        "edit" => {
            say(runtime, key, "wrong").await;
            edited(runtime, key, "right").await;
        }
        "rollback" => {
            let deltas = names(runtime, key).await.iter().filter(|name| **name == "item.delta").count();
            start(runtime, key, "hold wrong").await;
            happens(runtime, key, "item.delta", deltas + 1).await;
            runtime.start_turn(key, prompt("right", Delivery::Rollback), Call::default()).await.unwrap();
            rests(runtime, key).await;
        }
        "interrupt" => {
            let deltas = names(runtime, key).await.iter().filter(|name| **name == "item.delta").count();
            let turn = start(runtime, key, "hold this").await.id;
            happens(runtime, key, "item.delta", deltas + 1).await;
            runtime.interrupt(key, Interrupt { turn, pause_queue: false }, Call::default()).await.unwrap();
        }
        "compaction" => {
            say(runtime, key, "more").await;
            compacted(runtime, key).await;
        }
        "edit over a compaction" => {
            say(runtime, key, "wrong").await;
            compacted(runtime, key).await;
            edited(runtime, key, "right").await;
        }
        "queue" => {
            for text in ["first", "call once second", "third"] {
                runtime.start_turn(key, prompt(text, Delivery::Queue), Call::default()).await.unwrap();
            }
            rests(runtime, key).await;
        }
        "system prompt" => {
            let system_prompt = Some(Some("be brief".into()));
            let patch = ThreadPatch { system_prompt, ..ThreadPatch::default() };
            runtime.patch_thread(key, patch, Call::default()).await.unwrap();
        }
        "edit of what was" => edited(runtime, key, "instead").await,
        other => panic!("{other}"),
    }
}

/// All of them.
pub const LIFE: [&str; 9] = [
    "tools",
    "approval",
    "steer",
    "edit",
    "rollback",
    "interrupt",
    "compaction",
    "edit over a compaction",
    "edit of what was",
];
