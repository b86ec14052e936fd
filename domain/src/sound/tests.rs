use serde_json::json;

use super::*;
use crate::{event::SCHEMA, time::UnixMs};

/// A log of which each event is `(name, payload)`; ids are numbers in it.
fn log(events: &[(&str, serde_json::Value)]) -> Vec<Record> {
    let record = |(index, (name, payload)): (usize, &(&str, serde_json::Value))| {
        let (seq, at) = (index as Seq + 1, UnixMs(1));
        let thread = format!("thr_{}", Uuid::from_u128(9));
        let turn = payload["turn"]["id"].as_str().or(payload["item"]["turn_id"].as_str()).unwrap_or_default();
        let mut json = json!({"seq": seq, "prev": seq - 1, "ts": at, "thread_id": thread, "event": name});
        if !turn.is_empty() {
            json["turn_id"] = json!(turn);
        }
        json["payload"] = payload.clone();
        Record::decode(SCHEMA, json.to_string().as_bytes()).unwrap()
    };
    events.iter().enumerate().map(record).collect()
}

fn turn(number: u128, status: &str) -> serde_json::Value {
    json!({"turn": {
        "id": format!("turn_{}", Uuid::from_u128(number)), "thread_id": format!("thr_{}", Uuid::from_u128(9)),
        "kind": "prompt", "status": status, "input_summary": "p", "engine": "e", "model": "m", "mode": "agent",
        "allow_shell": false, "auto_approve": false, "trust_mode": false,
        "usage": {"input_tokens": 0, "output_tokens": 0, "model_calls": 0, "unreported_calls": 0},
        "item_ids": [], "steer_count": 0, "resume_count": 0, "created_at": UnixMs(1),
    }})
}

fn item(number: u128, status: &str) -> serde_json::Value {
    json!({"item": {
        "id": format!("item_{}", Uuid::from_u128(number)), "turn_id": format!("turn_{}", Uuid::from_u128(1)),
        "kind": "agent_message", "status": status, "summary": "", "detail": "", "metadata": {}, "artifact_refs": [],
        "started_at": UnixMs(1),
    }})
}

fn why(events: &[(&str, serde_json::Value)]) -> String {
    Sound::of(&log(events)).unwrap_err().why
}

#[test]
fn a_turn_with_its_items_inside_is_sound() {
    let events = [
        ("turn.started", turn(1, "in_progress")),
        ("item.started", item(2, "in_progress")),
        ("item.completed", item(2, "completed")),
        ("turn.completed", turn(1, "completed")),
    ];
    let sound = Sound::of(&log(&events)).unwrap();
    assert_eq!((sound.seq(), sound.ended().len(), sound.rests()), (4, 1, Ok(())));
    let open = Sound::of(&log(&events[..3])).unwrap();
    assert!(open.rests().unwrap_err().why.contains("did not end"));
}

#[test]
fn each_way_to_be_unsound_is_named() {
    let begins = ("turn.started", turn(1, "in_progress"));
    let ends = ("turn.completed", turn(1, "completed"));
    let opens = ("item.started", item(2, "in_progress"));
    let closes = ("item.completed", item(2, "completed"));
    for (events, expected) in [
        (vec![begins.clone(), ("turn.started", turn(3, "in_progress"))], "is open"),
        (vec![begins.clone(), ends.clone(), ends.clone()], "is not open"),
        (vec![begins.clone(), ends.clone(), opens.clone()], "is not open"),
        (vec![begins.clone(), opens.clone(), ends], "is open still"),
        (vec![begins.clone(), closes.clone()], "was not open"),
        (vec![begins.clone(), opens.clone(), closes, opens], "begins twice"),
        (vec![begins.clone(), ("turn.completed", turn(1, "in_progress"))], "has no end"),
        (vec![begins, ("turn.rolled_back", turn(1, "rolled_back"))], "has not ended"),
    ] {
        let why = why(&events);
        assert!(why.contains(expected), "{why}, not {expected}: {events:?}");
    }
}

#[test]
fn a_hole_is_a_hole_unless_deltas_were_joined_there() {
    let mut events = log(&[("turn.started", turn(1, "in_progress")), ("item.started", item(2, "in_progress"))]);
    let (turn, item) = (TurnId::new(Uuid::from_u128(1)), ItemId::new(Uuid::from_u128(2)));
    let delta =
        crate::event::ItemDelta { turn, item, kind: crate::record::ItemKind::AgentMessage, delta: "text".to_owned() };
    events.push(Record { seq: 5, event: Event::ItemDelta(delta), ..events[0].clone() });
    assert!(Sound::of(&events).unwrap_err().why.contains("a hole"));
    let mut packed = Sound::packed();
    events.iter().for_each(|record| packed.see(record).unwrap());
    let after = Record { seq: 7, ..events[1].clone() };
    assert!(packed.see(&after).unwrap_err().why.contains("a hole"));
}
