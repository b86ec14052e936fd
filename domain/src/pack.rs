//! A log takes less room once its turns have ended: neighbouring deltas of one item become one.
//!
//! A reader whose cursor is between deltas that were joined gets exactly the rest of the text, so what it puts
//! together is the same for any schedule of disconnects. The joined event has the seq of its last delta; `prev` is
//! the event that this reader has before it.

use crate::{
    event::{After, BadRecord, Event, ItemDelta, Record},
    id::Seq,
    ports::StoredEvent,
};

/// About the most text of one joined delta, so that a page and a frame stay small.
const RUN_BYTES: usize = 64 * 1024;

/// Deltas that were joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The seq of its first delta.
    pub first: Seq,
    /// The bytes of text of each delta.
    pub lengths: Vec<u32>,
    /// The one delta that took their place, as a reader gets it who has none of them.
    pub event: StoredEvent,
}

/// A place, or several, of a packed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packed {
    Event(StoredEvent),
    Run(Run),
}

impl Run {
    /// The seq of its last delta, which is also the joined event's.
    pub fn last(&self) -> Seq {
        self.first + self.lengths.len() as Seq - 1
    }

    /// What a reader gets whose newest event is the one at `after`, which is before [`Run::last`].
    /// `schema` is the schema under which the joined event was stored.
    pub fn rest(&self, schema: u8, after: Seq) -> Result<StoredEvent, BadRecord> {
        if after < self.first {
            return Ok(self.event.clone());
        }
        let bad = |why: &str| BadRecord::Json(why.to_owned());
        let mut record = Record::decode(schema, &self.event.json)?;
        let Event::ItemDelta(delta) = &mut record.event else { return Err(bad("a run of deltas is not a delta")) };
        let read: usize =
            self.lengths.iter().take((after + 1 - self.first) as usize).map(|length| *length as usize).sum();
        let rest = delta.delta.get(read..).ok_or_else(|| bad("a run of deltas is shorter than its parts"))?;
        delta.delta = rest.to_owned();
        Ok(stored(&record, after))
    }
}

/// Joins the deltas among the events that begin at `first`. All of them must be of turns that ended, and were
/// stored under `schema`.
pub fn pack(schema: u8, first: Seq, events: Vec<StoredEvent>) -> Result<Vec<Packed>, BadRecord> {
    let mut packed = Vec::with_capacity(events.len());
    let mut open: Option<Joining> = None;
    for (seq, event) in (first..).zip(events) {
        if event.name != "item.delta" {
            packed.extend(open.take().map(Joining::close));
            packed.push(Packed::Event(event));
            continue;
        }
        let record = Record::decode(schema, &event.json)?;
        let Event::ItemDelta(delta) = &record.event else {
            return Err(BadRecord::Json("an event is not what its name says".to_owned()));
        };
        match &mut open {
            Some(joining) if joining.takes(delta) => joining.add(seq, record, event),
            _ => {
                packed.extend(open.take().map(Joining::close));
                open = Some(Joining { first: seq, lengths: vec![delta.delta.len() as u32], record, event });
            }
        }
    }
    packed.extend(open.map(Joining::close));
    Ok(packed)
}

/// The beginning of a joined delta, up to `last`, for a reader whose newest event is the one at `prev`: what that
/// reader gets at once is `whole`, and what one gets whose newest event is the one at `last` is `rest`.
/// `schema` is the schema under which they were stored.
pub fn beginning(
    schema: u8,
    whole: &StoredEvent,
    rest: &StoredEvent,
    prev: Seq,
    last: Seq,
) -> Result<StoredEvent, BadRecord> {
    let bad = || BadRecord::Json("two parts of a log do not belong to one run of deltas".to_owned());
    let (mut record, rest) = (Record::decode(schema, &whole.json)?, Record::decode(schema, &rest.json)?);
    let Event::ItemDelta(end) = &rest.event else { return Err(bad()) };
    match &mut record.event {
        Event::ItemDelta(delta) if delta.item == end.item && record.seq == rest.seq && last < rest.seq => {
            let length = delta.delta.strip_suffix(end.delta.as_str()).ok_or_else(bad)?.len();
            delta.delta.truncate(length);
        }
        _ => return Err(bad()),
    }
    record.seq = last;
    Ok(stored(&record, prev))
}

/// The same log without the places that are empty because deltas were joined: so many deltas as there were, and the text
/// in the last of them.
pub fn spread(log: Vec<Record>) -> Vec<Record> {
    let mut all = Vec::with_capacity(log.len());
    let mut next = 1;
    for record in log {
        if let Event::ItemDelta(delta) = &record.event {
            for seq in next..record.seq {
                let part = ItemDelta { delta: String::new(), ..delta.clone() };
                all.push(Record { seq, event: Event::ItemDelta(part), ..record.clone() });
            }
        }
        next = record.seq + 1;
        all.push(record);
    }
    all
}

/// Deltas that are being joined.
struct Joining {
    first: Seq,
    lengths: Vec<u32>,
    record: Record,
    /// The only delta so far, as it was stored.
    event: StoredEvent,
}

impl Joining {
    fn delta(record: &mut Record) -> &mut ItemDelta {
        match &mut record.event {
            Event::ItemDelta(delta) => delta,
            _ => unreachable!("only deltas are joined"),
        }
    }

    fn takes(&self, next: &ItemDelta) -> bool {
        match &self.record.event {
            Event::ItemDelta(mine) => {
                mine.item == next.item && mine.kind == next.kind && mine.delta.len() + next.delta.len() <= RUN_BYTES
            }
            _ => false,
        }
    }

    fn add(&mut self, seq: Seq, mut next: Record, event: StoredEvent) {
        let text = std::mem::take(&mut Self::delta(&mut next).delta);
        self.lengths.push(text.len() as u32);
        Self::delta(&mut self.record).delta.push_str(&text);
        (self.record.seq, self.record.ts) = (seq, next.ts);
        self.event = event;
    }

    fn close(self) -> Packed {
        if self.lengths.len() == 1 {
            return Packed::Event(self.event);
        }
        let event = stored(&self.record, self.first - 1);
        Packed::Run(Run { first: self.first, lengths: self.lengths, event })
    }
}

fn stored(record: &Record, prev: Seq) -> StoredEvent {
    // A record that was read is JSON.
    let json = serde_json::to_vec(&After { record, prev }).expect("records are JSON");
    StoredEvent { name: record.event.name().into(), json: json.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{
        event::SCHEMA,
        id::{ItemId, ThreadId, TurnId},
        record::ItemKind,
        time::UnixMs,
    };

    fn delta(seq: Seq, item: u128, text: &str) -> StoredEvent {
        let delta = ItemDelta {
            turn: TurnId::new(Uuid::nil()),
            item: ItemId::new(Uuid::from_u128(item)),
            kind: ItemKind::AgentMessage,
            delta: text.to_owned(),
        };
        let thread = ThreadId::new(Uuid::nil());
        let record = Record { seq, ts: UnixMs(seq), thread, event: Event::ItemDelta(delta) };
        stored(&record, seq - 1)
    }

    /// What a reader at `after` gets of a packed log: seq, prev and text of each event.
    fn replay(packed: &[Packed], first: Seq, after: Seq) -> Vec<(Seq, Seq, String)> {
        let (mut seq, mut got) = (first, Vec::new());
        for place in packed {
            let event = match place {
                Packed::Event(event) => {
                    seq += 1;
                    (seq - 1 > after).then(|| event.clone())
                }
                Packed::Run(run) => {
                    assert_eq!(run.first, seq);
                    seq = run.last() + 1;
                    (run.last() > after).then(|| run.rest(SCHEMA, after).unwrap())
                }
            };
            got.extend(event.map(|event| {
                let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
                let text = json["payload"]["delta"].as_str().unwrap().to_owned();
                (json["seq"].as_u64().unwrap(), json["prev"].as_u64().unwrap(), text)
            }));
        }
        got
    }

    proptest! {
        #[test]
        fn a_reader_puts_the_same_text_together_wherever_it_was_cut_off(
            texts in prop::collection::vec((0..2u128, "[a-zé☃\"\n]{0,4}"), 1..20),
            cut in 0..20u64,
        ) {
            let first = 5;
            let events: Vec<_> =
                (first..).zip(&texts).map(|(seq, (item, text))| delta(seq, *item, text)).collect();
            let packed = pack(SCHEMA, first, events).unwrap();
            let last = first + texts.len() as Seq - 1;
            let after = (first - 1 + cut).min(last);
            let read: String = texts[..(after + 1 - first) as usize].iter().map(|(_, text)| text.as_str()).collect();
            let got = replay(&packed, first, after);
            let rest: String = got.iter().map(|(_, _, text)| text.as_str()).collect();
            let whole: String = texts.iter().map(|(_, text)| text.as_str()).collect();
            prop_assert_eq!(read + &rest, whole);
            // Every event names the one that this reader has before it.
            let mut before = after;
            for (seq, prev, _) in &got {
                prop_assert_eq!(*prev, before);
                before = *seq;
            }
            prop_assert_eq!(before, last);
        }
    }

    #[test]
    fn a_run_is_cut_at_its_end_as_it_is_at_its_beginning() {
        let texts = ["é", "", "é", "☃é"];
        let events: Vec<_> = (5..).zip(texts).map(|(seq, text)| delta(seq, 1, text)).collect();
        let packed = pack(SCHEMA, 5, events).unwrap();
        let [Packed::Run(run)] = packed.as_slice() else { panic!("{packed:?}") };
        for after in 4..7 {
            for last in after + 1..8 {
                let [whole, rest] = [after, last].map(|after| run.rest(SCHEMA, after).unwrap());
                let part = beginning(SCHEMA, &whole, &rest, after, last).unwrap();
                let text = texts[(after - 4) as usize..(last - 4) as usize].concat();
                assert_eq!(replay(&[Packed::Event(part)], last, after), [(last, after, text)]);
            }
        }
        let (whole, other) = (run.rest(SCHEMA, 4).unwrap(), delta(8, 2, "é"));
        assert!(beginning(SCHEMA, &whole, &other, 4, 7).is_err());
        assert!(beginning(SCHEMA, &whole, &whole, 4, 8).is_err());
    }

    #[test]
    fn deltas_of_different_items_are_not_joined() {
        let events = vec![delta(1, 1, "a"), delta(2, 1, "b"), delta(3, 2, "c")];
        let packed = pack(SCHEMA, 1, events).unwrap();
        assert_eq!(replay(&packed, 1, 0), [(2, 0, "ab".to_owned()), (3, 2, "c".to_owned())]);
    }
}
