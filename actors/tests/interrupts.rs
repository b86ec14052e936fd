//! An interrupt is heard at any instant: whatever hangs, the reply comes, everything open has its end, and the queue
//! goes on unless it is told not to. And what becomes of tools that are cut off, or do not end well.

mod testbed;

use std::sync::{
    Arc, Condvar, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use raddle_actors::{Call, Config, Ports, Runtime, Started};
use raddle_domain::{
    command::{Compact, Interrupt, ThreadPatch},
    event::Event,
    id::{ThreadKey, TurnId},
    record::{Delivery, EffectClass, EffectOutcome, EffectStatus, InterruptReceipt, ThreadStatus, TurnStatus},
};
use testbed::*;

/// Something that hangs until it is let go.
#[derive(Default)]
struct Hold(Mutex<bool>, Condvar);

impl Hold {
    fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |free| !*free).unwrap());
    }

    fn release(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Lets go when the test ends, however it does.
struct Release(Arc<Hold>);

/// Interrupts `turn`, with a prompt behind it, and checks what is true of every interrupt.
async fn interrupted(runtime: &Runtime, key: ThreadKey, turn: TurnId, pause_queue: bool) -> InterruptReceipt {
    let queued = runtime.start_turn(key, prompt("next", Delivery::Queue), Call::default()).await.unwrap();
    assert!(matches!(queued.value, Started::Queued { .. }), "{queued:?}");
    let interrupt = runtime.interrupt(key, Interrupt { turn, pause_queue }, keyed(9, 9));
    let done = tokio::time::timeout(LONG, interrupt).await.expect("the reply comes").unwrap();
    let receipt = done.value;
    assert_eq!((receipt.turn.id, receipt.turn.status), (turn, TurnStatus::Interrupted));
    rests(runtime, key).await;
    if pause_queue {
        let thread = runtime.thread(key).await.unwrap();
        assert_eq!((thread.queued, thread.queue_paused), (1, true));
        assert_eq!(runtime.turns(key, None, 99).await.unwrap().data.last().unwrap().id, turn);
        assert_sound(&log(runtime, key).await, true);
        let resume = ThreadPatch { queue_paused: Some(false), ..ThreadPatch::default() };
        runtime.patch_thread(key, resume, Call::default()).await.unwrap();
        rests(runtime, key).await;
    }
    let log = log(runtime, key).await;
    assert_sound(&log, true);
    let ended = &log[receipt.ended_seq as usize - 1].event;
    assert!(matches!(ended, Event::TurnCompleted(ended) if **ended == receipt.turn));
    let mut started: Vec<_> =
        ledger(&log).into_iter().filter(|effect| effect.turn_id == turn && effect.attempt > 0).collect();
    let mut told = receipt.effects.clone();
    started.sort_by_key(|effect| effect.operation_id);
    told.sort_by_key(|effect| effect.operation_id);
    assert_eq!(told, started, "the receipt lists what was started");
    assert_eq!(answers(runtime, key).await.last().unwrap(), "echo: next");
    // Said again it is the same, in the same order.
    let again = runtime.interrupt(key, Interrupt { turn, pause_queue }, keyed(9, 9)).await.unwrap();
    assert_eq!((&again.value, again.seq, again.replayed), (&receipt, done.seq, true));
    receipt
}

#[tokio::test]
async fn an_interrupt_is_heard_before_the_engine_picks_the_turn_up() {
    for pause_queue in [false, true] {
        let mut bed = Bed::new();
        let (hold, first, (told, picking)) =
            (Arc::<Hold>::default(), AtomicBool::new(true), std::sync::mpsc::channel());
        let _release = Release(hold.clone());
        let mut tools = TestTools::plain(bed.dir.path());
        tools.on_specs = Box::new(move || {
            if first.swap(false, SeqCst) {
                told.send(()).unwrap();
                hold.wait();
            }
        });
        bed.tools = Arc::new(tools);
        // One of the engines' threads hangs.
        let runtime = Runtime::start(Config { arbiters: 4, ..bed.config() }, bed.ports()).await.unwrap();
        let key = create(&runtime).await;
        let turn = start(&runtime, key, "never seen").await;
        tokio::task::spawn_blocking(move || picking.recv().unwrap()).await.unwrap();
        let receipt = interrupted(&runtime, key, turn.id, pause_queue).await;
        assert_eq!(receipt.turn.item_ids.len(), 1);
        assert_eq!(bed.model.calls.load(SeqCst), 1, "only what came next was asked");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn an_interrupt_is_heard_while_the_model_streams() {
    for pause_queue in [false, true] {
        let bed = Bed::new();
        let runtime = bed.start().await;
        let key = create(&runtime).await;
        let turn = start(&runtime, key, "hold").await;
        answering(&runtime, key).await;
        let receipt = interrupted(&runtime, key, turn.id, pause_queue).await;
        assert_eq!(receipt.effects, []);
        assert_eq!(answers(&runtime, key).await[0], "held ");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn an_interrupt_is_heard_while_a_tool_hangs_and_says_what_was_started() {
    for (tool, word) in [("read", "before"), ("idempotent", "after"), ("reconcilable", "before"), ("once", "after")] {
        for pause_queue in [false, true] {
            let bed = Bed::new();
            let runtime = bed.start().await;
            let key = create(&runtime).await;
            let text = format!("call once x; call read y; call {tool} a {word}; call once never");
            let turn = start(&runtime, key, &text).await;
            bed.tools.begun(3).await;
            // Calls that only read run beside each other.
            happens(&runtime, key, "effect.settled", 2).await;
            let receipt = interrupted(&runtime, key, turn.id, pause_queue).await;
            let [x, y, a] = &receipt.effects[..] else { panic!("{receipt:#?}") };
            assert_eq!((x.outcome, y.outcome), (Some(EffectOutcome::Succeeded), Some(EffectOutcome::Succeeded)));
            match a.class {
                // It changes nothing, so nothing about it is uncertain.
                EffectClass::Read => assert_eq!(a.outcome, Some(EffectOutcome::Canceled)),
                _ => assert_eq!((a.status, a.closed), (EffectStatus::Uncertain, true)),
            }
            // What hung goes on too late, and changes nothing.
            let acts = bed.acts();
            bed.tools.before.add_permits(1);
            bed.tools.after.add_permits(1);
            say(&runtime, key, "more").await;
            assert_eq!(bed.acts(), acts);
            runtime.shutdown(LONG).await;
        }
    }
}

#[tokio::test]
async fn a_receipt_names_effects_in_the_order_in_which_they_ended_now_and_later() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "call read slow after; call read quick; call read slower before").await;
    happens(&runtime, key, "effect.settled", 1).await;
    let receipt = interrupted(&runtime, key, turn.id, false).await;
    assert_eq!(receipt.effects.len(), 3);
    assert_eq!(receipt.effects[0].outcome, Some(EffectOutcome::Succeeded));
    runtime.shutdown(LONG).await;
    drop(runtime);
    let runtime = bed.start().await;
    let again = runtime.interrupt(key, Interrupt { turn: turn.id, pause_queue: false }, keyed(9, 9)).await.unwrap();
    assert_eq!((again.value, again.replayed), (receipt, true));
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn an_interrupt_is_heard_while_a_person_is_waited_for_loaded_or_not() {
    for text in
        ["call gated_once a; call once b", "call ask why?; call gated_once b", "call once a panics; call read b"]
    {
        for pause_queue in [false, true] {
            let bed = Bed { loaded_threads: 1, ..Bed::new() };
            let runtime = bed.start().await;
            let key = create(&runtime).await;
            let turn = start(&runtime, key, text).await;
            waits(&runtime, key).await;
            if pause_queue {
                unload(&runtime).await;
            }
            let receipt = interrupted(&runtime, key, turn.id, pause_queue).await;
            assert_eq!(receipt.effects.len(), usize::from(text.contains("panics")), "{text}");
            assert_eq!(bed.acts(), receipt.effects.len(), "{text}");
            runtime.shutdown(LONG).await;
        }
    }
}

#[tokio::test]
async fn an_interrupt_is_heard_during_a_compaction_asked_for_or_not() {
    for (automatic, pause_queue) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut bed = Bed::new();
        bed.limits.compact_at_tokens = if automatic { 1_000 } else { 0 };
        let runtime = bed.start().await;
        let key = create(&runtime).await;
        bed.model.input_tokens.store(2_000, SeqCst);
        say(&runtime, key, "one").await;
        bed.model.input_tokens.store(1, SeqCst);
        bed.model.summaries.forget_permits(usize::MAX);
        let turn = if automatic {
            start(&runtime, key, "two").await.id
        } else {
            let Started::Turn(turn) = runtime.compact(key, Compact::default(), Call::default()).await.unwrap().value
            else {
                panic!("it is queued");
            };
            turn.id
        };
        happens(&runtime, key, "item.delta", 2).await;
        interrupted(&runtime, key, turn, pause_queue).await;
        let names = names(&runtime, key).await;
        assert_eq!(names.iter().filter(|name| **name == "compaction.failed").count(), 1, "{names:?}");
        assert!(!names.contains(&"compaction.completed"));
        let kept = bed.model.last_seen();
        let said = |content: &str| raddle_domain::history::Message::User { content: content.into() };
        assert!(kept.contains(&said("one")), "{kept:?}");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn an_interrupt_is_heard_right_after_a_rollback() {
    for pause_queue in [false, true] {
        let bed = Bed::new();
        let runtime = bed.start().await;
        let key = create(&runtime).await;
        start(&runtime, key, "call once a after").await;
        bed.tools.acted(1).await;
        let rolled = runtime.start_turn(key, prompt("hold", Delivery::Rollback), Call::default()).await.unwrap();
        let Started::Turn(turn) = rolled.value else { panic!("{rolled:?}") };
        interrupted(&runtime, key, turn.id, pause_queue).await;
        let turns = runtime.turns(key, None, 9).await.unwrap().data;
        let statuses: Vec<_> = turns.iter().map(|turn| turn.status).collect();
        assert_eq!(statuses, [TurnStatus::RolledBack, TurnStatus::Interrupted, TurnStatus::Completed]);
        let seen = format!("{:?}", bed.model.last_seen());
        assert!(!seen.contains("call once a"), "{seen}");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn an_interrupt_that_names_another_turn_changes_nothing() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let over = say(&runtime, key, "one").await;
    start(&runtime, key, "hold").await;
    let before = runtime.thread(key).await.unwrap().active_turn;
    let refused = runtime.interrupt(key, Interrupt { turn: over.id, pause_queue: true }, Call::default()).await;
    assert!(refused.is_err());
    let thread = runtime.thread(key).await.unwrap();
    assert_eq!((thread.active_turn, thread.queue_paused, thread.status), (before, false, ThreadStatus::Running));
    bed.model.gate.add_permits(1);
    rests(&runtime, key).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_shutdown_that_waits_does_not_take_a_turn_between_two_steps_for_one_that_ended() {
    let bed = Bed::new();
    let config = bed.config();
    let (hold, (told, starting)) = (Arc::<Hold>::default(), std::sync::mpsc::channel());
    let (held, told) = (hold.clone(), Mutex::new(told));
    let slow: OnCommit = Box::new(move |writes, commit| {
        if holds(writes, "effect.started") {
            told.lock().unwrap().send(()).unwrap();
            held.wait();
        }
        commit()
    });
    let _release = Release(hold.clone());
    let store = Hooked::open(&config.store, slow);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "call once a").await;
    tokio::task::spawn_blocking(move || starting.recv().unwrap()).await.unwrap();
    // The answer is saved, and the tool is not started yet.
    tokio::join!(runtime.shutdown(LONG), async { hold.release() });
    drop(runtime);
    let runtime = bed.start().await;
    rests(&runtime, key).await;
    let turn = runtime.turn(key, turn.id).await.unwrap();
    assert_eq!((turn.status, turn.resume_count), (TurnStatus::Completed, 0));
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_tool_whose_thread_was_lost_is_given_up_and_what_it_did_is_as_after_a_crash() {
    for tool in ["read", "idempotent", "reconcilable", "once"] {
        let bed = Bed::new();
        let ids = Arc::new(Brittle::default());
        let runtime = Runtime::start(bed.config(), Ports { ids: ids.clone(), ..bed.ports() }).await.unwrap();
        let key = create(&runtime).await;
        let turn = start(&runtime, key, &format!("call {tool} a before")).await;
        bed.tools.begun(1).await;
        // The next id is the admission's; the command is run again on the thread that was brought back.
        ids.0.store(true, SeqCst);
        runtime.start_turn(key, prompt("next", Delivery::Queue), Call::default()).await.unwrap();
        if tool == "once" {
            waits(&runtime, key).await;
            let effect = ledger(&log(&runtime, key).await).remove(0);
            assert_eq!((effect.status, bed.acts()), (EffectStatus::Uncertain, 0));
            let retry = raddle_domain::record::Resolution::Retry;
            runtime.resolve(OWNER, effect.operation_id, retry, None, Call::default()).await.unwrap();
        }
        bed.tools.before.add_permits(1);
        rests(&runtime, key).await;
        let log = log(&runtime, key).await;
        assert_sound(&log, true);
        let effect = ledger(&log).remove(0);
        assert_eq!((effect.outcome, effect.attempt), (Some(EffectOutcome::Succeeded), 2), "{tool}");
        assert_eq!(bed.acts(), 1, "{tool}: the attempt that was given up does nothing any more");
        assert_eq!(runtime.turn(key, turn.id).await.unwrap().resume_count, 1, "{tool}");
        assert_eq!(answers(&runtime, key).await.last().unwrap(), "echo: next");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn a_tool_that_fails_panics_or_does_not_know_ends_as_its_class_says() {
    use EffectOutcome::{Failed, Succeeded};
    // What is asked for, how it ends, in how many attempts, with how many acts; or it stays uncertain.
    let cases = [
        ("read a fails", Some(Failed), 1, 0),
        ("once a fails", Some(Failed), 1, 0),
        ("read a unknown1", Some(Succeeded), 2, 2),
        ("read a unknown", Some(Failed), 3, 3),
        ("idempotent a panics1", Some(Succeeded), 2, 2),
        ("idempotent a panics", None, 3, 3),
        ("reconcilable a unknown", Some(Succeeded), 1, 1),
        ("reconcilable a undone1", Some(Succeeded), 2, 1),
        ("reconcilable a undone", Some(Failed), 3, 0),
        ("reconcilable a panics mute", None, 1, 1),
        ("once a panics", None, 1, 1),
        ("once a undone1", Some(Failed), 1, 0),
    ];
    let bed = Bed::new();
    let runtime = bed.start().await;
    for (call, outcome, attempts, acts) in cases {
        let key = create(&runtime).await;
        let before = bed.acts();
        start(&runtime, key, &format!("call {call}")).await;
        match outcome {
            Some(_) => rests(&runtime, key).await,
            None => waits(&runtime, key).await,
        }
        let log = log(&runtime, key).await;
        assert_sound(&log, outcome.is_some());
        let effect = ledger(&log).remove(0);
        assert_eq!((effect.outcome, effect.attempt, bed.acts() - before), (outcome, attempts, acts), "{call}");
        assert_eq!(effect.status == EffectStatus::Uncertain, outcome.is_none(), "{call}");
    }
    runtime.shutdown(LONG).await;
}
