use serde_json::json;

use super::*;
use crate::{
    event::ItemDelta,
    id::ThreadId,
    record::{Checkpoint, ItemKind},
    time::UnixMs,
};

fn record(seq: Seq, event: Event) -> Record {
    Record { seq, ts: UnixMs(seq), thread: ThreadId::new(Uuid::from_u128(7)), event }
}

fn delta(seq: Seq, item: u128, text: &str) -> Record {
    let (turn, item) = (crate::id::TurnId::new(Uuid::from_u128(1)), crate::id::ItemId::new(Uuid::from_u128(item)));
    record(seq, Event::ItemDelta(ItemDelta { turn, item, kind: ItemKind::AgentMessage, delta: text.to_owned() }))
}

fn saved(seq: Seq, at: u64) -> Record {
    let thread_id = ThreadId::new(Uuid::from_u128(7));
    let checkpoint = Checkpoint { name: "c".to_owned(), thread_id, seq, created_at: UnixMs(at) };
    record(seq, Event::CheckpointSaved(Box::new(checkpoint)))
}

fn joined(log: &[Record]) -> Canon {
    Canon::of(log, Deltas::Joined)
}

#[test]
fn how_text_was_cut_when_and_where_makes_no_difference() {
    let cut = joined(&[saved(1, 5), delta(2, 3, "He"), delta(3, 3, "llo"), saved(4, 6)]);
    let whole = joined(&[saved(1, 9), delta(2, 3, "Hello"), saved(3, 9)]);
    assert_eq!((cut.digest(), cut.len()), (whole.digest(), 3));
    assert_eq!(cut.first_difference(&whole), None);
}

#[test]
fn what_came_between_text_counts_unless_text_is_left() {
    let before = [delta(1, 3, "He"), saved(2, 5), delta(3, 3, "llo")];
    let after = [delta(1, 3, "Hello"), saved(2, 5)];
    let (ours, theirs) = (joined(&before), joined(&after));
    let difference = ours.first_difference(&theirs).unwrap();
    assert_eq!((difference.after, difference.expected.unwrap().0, difference.found.unwrap().0), (0, 1, 1));
    assert_eq!(Canon::of(&before, Deltas::Left), Canon { lines: Canon::of(&after, Deltas::Left).lines });
}

#[test]
fn ids_are_named_by_the_order_in_which_they_come_up() {
    let (one, other) = (joined(&[delta(1, 3, "a"), delta(2, 4, "b")]), joined(&[delta(1, 8, "a"), delta(2, 9, "b")]));
    assert_eq!(one.digest(), other.digest());
    let twice = joined(&[delta(1, 3, "a"), delta(2, 3, "b")]);
    assert_ne!(one.digest(), twice.digest());
}

#[test]
fn the_end_of_a_log_is_a_difference() {
    let (short, long) = (joined(&[saved(1, 1)]), joined(&[saved(1, 1), saved(2, 1)]));
    let difference = short.first_difference(&long).unwrap();
    assert_eq!((difference.after, difference.expected), (1, None));
    assert_eq!(long.first_difference(&short).unwrap().found, None);
}

#[test]
fn an_id_is_found_in_any_text_and_what_looks_like_a_moment_stays_in_what_others_wrote() {
    let mut names = Names::default();
    let uuid = Uuid::from_u128(5).to_string();
    let mut json = json!({"at": {"created_at": 5, "metadata": {"created_at": format!("é{uuid}, {uuid}")}}});
    names.plain(&mut json);
    assert_eq!(json, json!({"at": {"metadata": {"created_at": "é#0, #0"}}}));
}
