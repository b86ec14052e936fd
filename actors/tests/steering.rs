//! What is said to a running turn is seen by its model, or it is said that it was not.

mod testbed;

use std::sync::atomic::Ordering::SeqCst;

use raddle_actors::{Call, Error, Runtime, Started, store::backend::MemoryMedium};
use raddle_domain::{
    command::{IfIdle, Interrupt, Refused, StartTurn, Steer},
    event::{Event, Record},
    history::Message,
    id::{ThreadKey, TurnId},
    record::{Admission, AdmissionStatus, Delivery, ItemKind, TurnStatus, Undelivered},
};
use testbed::*;

fn steer(turn: TurnId, prompt: &str, undelivered: Undelivered) -> Steer {
    Steer { turn, prompt: prompt.into(), undelivered }
}

fn said(content: &str) -> Message {
    Message::User { content: content.into() }
}

/// The events about one prompt, in order.
fn fate(log: &[Record], admission: &Admission) -> Vec<&'static str> {
    let about = |record: &&Record| match &record.event {
        Event::PromptAdmitted(known)
        | Event::PromptPromoted(known)
        | Event::PromptWithdrawn(known)
        | Event::PromptNotDelivered(known)
        | Event::PromptEdited(known, _) => known.id == admission.id,
        _ => false,
    };
    log.iter().filter(about).map(|record| record.event.name()).collect()
}

#[tokio::test]
async fn a_steer_is_seen_at_the_next_step_and_by_nothing_before_it() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "call once a before").await;
    bed.tools.begun(1).await;
    let first = runtime.steer(key, steer(turn.id, "be quick", Undelivered::Report), Call::default()).await.unwrap();
    let delivered = StartTurn { expected_turn: Some(turn.id), ..prompt("and neat", Delivery::Steer) };
    let second = runtime.start_turn(key, delivered, Call::default()).await.unwrap();
    assert_eq!((first.value.status, first.value.turn_id), (AdmissionStatus::Pending, Some(turn.id)));
    assert!(matches!(second.value, Started::Queued { active_turn, .. } if active_turn == turn.id));
    bed.tools.before.add_permits(1);
    rests(&runtime, key).await;
    let seen = bed.model.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    let Message::Tool { content, .. } = &seen[1][2] else { panic!("{:?}", seen[1]) };
    assert_eq!(content, "did a");
    assert_eq!(seen[1][3..], [said("be quick"), said("and neat")]);
    assert_eq!(answers(&runtime, key).await, ["calling", "echo: and neat"]);
    let turn = runtime.turn(key, turn.id).await.unwrap();
    assert_eq!((turn.status, turn.steer_count), (TurnStatus::Completed, 2));
    assert_eq!(runtime.turns(key, None, 9).await.unwrap().data.len(), 1);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_steer_while_a_person_decides_is_seen_after_the_decision_also_after_a_restart() {
    let bed = Bed::new();
    let first = bed.start().await;
    let key = create(&first).await;
    let turn = start(&first, key, "call gated_once a").await;
    waits(&first, key).await;
    first.steer(key, steer(turn.id, "be quick", Undelivered::Report), Call::default()).await.unwrap();
    first.shutdown(LONG).await;
    drop(first);
    let second = bed.start().await;
    let approval = pending(&second, key).await.remove(0);
    let denied = raddle_domain::record::Decision::Denied;
    second.decide(OWNER, approval.id, denied, None, Call::default()).await.unwrap();
    rests(&second, key).await;
    assert_eq!(bed.model.last_seen().last(), Some(&said("be quick")));
    assert_sound(&log(&second, key).await, true);
    second.shutdown(LONG).await;
}

#[tokio::test]
async fn a_steer_is_refused_without_a_trace_where_there_is_nothing_to_steer() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let over = say(&runtime, key, "one").await;
    let before = log(&runtime, key).await;
    let late = runtime.steer(key, steer(over.id, "x", Undelivered::Queue), Call::default()).await;
    assert!(matches!(late, Err(Error::Refused(Refused::TurnNotActive { active: None, .. }))), "{late:?}");
    let never = runtime.steer(key, steer(TurnId::from_bytes([7; 16]), "x", Undelivered::Queue), Call::default()).await;
    assert!(matches!(never, Err(Error::NotFound("turn"))), "{never:?}");
    let idle = StartTurn { if_idle: IfIdle::Reject, ..prompt("x", Delivery::Steer) };
    let idle = runtime.start_turn(key, idle, Call::default()).await;
    assert!(matches!(idle, Err(Error::Refused(Refused::NothingToSteer))), "{idle:?}");
    assert_eq!(log(&runtime, key).await, before);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_steer_that_came_too_late_is_reported_and_goes_before_the_queue_if_it_is_to_run() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let turn = start(&runtime, key, "hold").await;
    answering(&runtime, key).await;
    runtime.start_turn(key, prompt("q1", Delivery::Queue), Call::default()).await.unwrap();
    let mut steers = Vec::new();
    for (text, undelivered) in [("s1", Undelivered::Queue), ("s2", Undelivered::Report), ("s3", Undelivered::Queue)] {
        steers.push(runtime.steer(key, steer(turn.id, text, undelivered), Call::default()).await.unwrap().value);
    }
    let interrupt = Interrupt { turn: turn.id, pause_queue: true };
    let receipt = runtime.interrupt(key, interrupt, Call::default()).await.unwrap().value;
    assert_eq!(receipt.turn.not_delivered, steers.iter().map(|steer| steer.id).collect::<Vec<_>>());
    let waiting = runtime.inbox(key).await.unwrap();
    assert_eq!(waiting.iter().map(|admission| admission.prompt.as_str()).collect::<Vec<_>>(), ["s1", "s3", "q1"]);
    // The order holds where it is read again.
    runtime.shutdown(LONG).await;
    drop(runtime);
    let runtime = bed.start().await;
    let resume = raddle_domain::command::ThreadPatch { queue_paused: Some(false), ..Default::default() };
    runtime.patch_thread(key, resume, Call::default()).await.unwrap();
    rests(&runtime, key).await;
    assert_eq!(answers(&runtime, key).await[1..], ["echo: s1", "echo: s3", "echo: q1"]);
    let log = log(&runtime, key).await;
    assert_sound(&log, true);
    assert_eq!(fate(&log, &steers[1]), ["prompt.admitted", "prompt.not_delivered"]);
    runtime.shutdown(LONG).await;
}

/// One round's steers, as they were asked for, and what was answered.
struct Round {
    key: ThreadKey,
    turn: TurnId,
    steers: Vec<(String, Undelivered, Result<Admission, Error>)>,
}

async fn race(
    runtime: Runtime,
    bed: &Bed,
    number: usize,
    numbers: &mut Numbers,
) -> impl Future<Output = Round> + use<> {
    let key = create(&runtime).await;
    let kind = number % 5;
    let text = match kind {
        0 => format!("hold {number}"),
        1 => format!("call once {number} before"),
        2 => format!("call read {number} before; call read b{number}; call idempotent c{number}"),
        3 => format!("quick {number}"),
        // This one hangs for ever.
        _ => format!("call once {number} after"),
    };
    let turn = start(&runtime, key, &text).await.id;
    let mut asked = Vec::new();
    for which in 0..1 + numbers.below(3) {
        let undelivered = if numbers.below(2) == 0 { Undelivered::Report } else { Undelivered::Queue };
        let text = format!("steer {number}.{which}");
        let ours = runtime.clone();
        let said = steer(turn, &text, undelivered);
        let steered = tokio::spawn(async move { ours.steer(key, said, Call::default()).await.map(|done| done.value) });
        asked.push((text, undelivered, steered));
    }
    for _ in 0..numbers.below(4) {
        tokio::task::yield_now().await;
    }
    // Some are there in time for certain.
    if kind == 4 || (kind == 0 && number.is_multiple_of(2)) {
        happens(&runtime, key, "prompt.admitted", 1).await;
    }
    match kind {
        0 => bed.model.gate.add_permits(1),
        1 | 2 => bed.tools.before.add_permits(1),
        4 => {
            let interrupt = Interrupt { turn, pause_queue: false };
            runtime.interrupt(key, interrupt, Call::default()).await.unwrap();
        }
        _ => {}
    }
    async move {
        let mut steers = Vec::new();
        for (text, undelivered, steered) in asked {
            steers.push((text, undelivered, steered.await.unwrap()));
        }
        rests(&runtime, key).await;
        Round { key, turn, steers }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_and_fifty_races_no_accepted_steer_is_lost() {
    const ROUNDS: usize = 150;
    let bed = Bed { medium: Some(MemoryMedium::default()), ..Bed::new() };
    let runtime = bed.start().await;
    let mut numbers = Numbers(3);
    let mut rounds = Vec::new();
    for number in 0..ROUNDS {
        let round = race(runtime.clone(), &bed, number, &mut numbers).await;
        rounds.push(tokio::spawn(round));
    }
    let (mut seen_by_model, mut too_late, mut refused) = (0, 0, 0);
    for round in rounds {
        let Round { key, turn, steers } = round.await.unwrap();
        let log = log(&runtime, key).await;
        assert_sound(&log, true);
        let snapshot = runtime.snapshot(key).await.unwrap();
        let seen: Vec<_> = bed.model.seen.lock().unwrap().iter().flatten().cloned().collect();
        let of_turn = |turn: TurnId| snapshot.items.iter().filter(move |item| item.turn_id == turn);
        let first = snapshot.turns.iter().find(|known| known.id == turn).unwrap();
        let mut delivered = Vec::new();
        for (text, undelivered, steered) in &steers {
            let Ok(admission) = steered else {
                assert!(matches!(steered, Err(Error::Refused(Refused::TurnNotActive { .. }))), "{steered:?}");
                assert!(!seen.contains(&said(text)) && !format!("{log:?}").contains(&format!("{text:?}")));
                refused += 1;
                continue;
            };
            let fate = fate(&log, admission);
            if fate == ["prompt.admitted", "prompt.promoted"] {
                delivered.push(text.as_str());
                seen_by_model += 1;
                assert!(!first.not_delivered.contains(&admission.id));
                assert!(seen.contains(&said(text)), "{text} was delivered and not seen: {log:#?}");
                continue;
            }
            too_late += 1;
            assert!(first.not_delivered.contains(&admission.id), "{fate:?}");
            let own = snapshot.turns.iter().find(|turn| turn.input_summary == *text);
            match undelivered {
                Undelivered::Report => {
                    assert_eq!(fate, ["prompt.admitted", "prompt.not_delivered"]);
                    assert!(own.is_none() && !seen.contains(&said(text)));
                }
                Undelivered::Queue => {
                    assert_eq!(fate[..3], ["prompt.admitted", "prompt.not_delivered", "prompt.admitted"]);
                    assert_eq!(fate.last(), Some(&"prompt.promoted"));
                    let own = own.expect("it became a turn");
                    assert_eq!(of_turn(own.id).next_back().unwrap().detail, format!("echo: {text}"));
                }
            }
        }
        assert_eq!(first.steer_count as usize, delivered.len());
        let users: Vec<_> = of_turn(turn).filter(|item| item.kind == ItemKind::UserMessage).collect();
        let mut told: Vec<_> = users[1..].iter().map(|item| item.detail.as_str()).collect();
        told.sort_unstable();
        delivered.sort_unstable();
        assert_eq!(told, delivered);
        for turn in &snapshot.turns {
            let interrupted = turn.id == first.id && turn.status == TurnStatus::Interrupted;
            assert!(interrupted || turn.status == TurnStatus::Completed, "{turn:?}");
            let items: Vec<_> = of_turn(turn.id).map(|item| item.id).collect();
            assert_eq!(items, turn.item_ids, "the list of items is whole");
            assert!(of_turn(turn.id).all(|item| item.ended_at.is_some()));
        }
    }
    let certain = (seen_by_model >= ROUNDS / 10, too_late >= ROUNDS / 5);
    assert_eq!(certain, (true, true), "{seen_by_model} seen, {too_late} too late, {refused} refused");
    assert!(bed.model.calls.load(SeqCst) > ROUNDS as u32);
    runtime.shutdown(LONG).await;
}
