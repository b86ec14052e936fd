//! What every host of a machine does with the disk: rebuild a state from its row and the log's tail, and turn steps
//! into one append.

use std::sync::Arc;

use raddle_domain::{
    event::{self, BadRecord, Event, Record},
    id::{Seq, ThreadKey},
    ports::{Append, Chunk, Corrupt, Receipt, RowHead, SettledTurn, StoreError, StoredEvent, ThreadRow, View},
    record::{Item, Thread, Turn},
    thread::{Rest, Settled, Snapshot, Step, ThreadState},
    time::UnixMs,
};

/// Events read from the log at a time while a state is rebuilt.
const PAGE: usize = 1_000;
const PAGE_BYTES: usize = 1024 * 1024;

/// A state as the store holds it.
pub(crate) struct Loaded {
    pub state: ThreadState,
    pub head: RowHead,
    /// The snapshot that the row holds, to be written again until a newer one takes its place.
    pub rest: SavedRest,
}

/// A snapshot as bytes, and the event after which it held.
#[derive(Clone)]
pub(crate) struct SavedRest {
    pub seq: Seq,
    pub json: Arc<[u8]>,
}

/// Rebuilds a thread from its row and what its log says since.
pub(crate) fn load(view: &dyn View, key: ThreadKey) -> Result<Option<Loaded>, StoreError> {
    let Some(row) = view.row(key)? else { return Ok(None) };
    let corrupt = |why: String| StoreError::Corrupt(Corrupt { record: format!("threads {key}"), why });
    let snapshot: Snapshot = serde_json::from_slice(&row.snapshot).map_err(|why| corrupt(why.to_string()))?;
    let mut needed = Vec::new();
    for seq in snapshot.needs() {
        let stored = view.event(key, seq)?.ok_or_else(|| corrupt(format!("event {seq} of the log is missing")))?;
        needed.push(decode(key, seq, &stored)?);
    }
    let mut state = ThreadState::restore(snapshot, &needed).map_err(|why| corrupt(why.to_string()))?;
    if state.seq() != row.head.snapshot_seq {
        return Err(corrupt("the snapshot is of another place in the log".to_owned()));
    }
    while state.seq() < row.head.last_seq {
        let chunks = view.events(key, state.seq(), PAGE, PAGE_BYTES)?;
        if chunks.is_empty() {
            return Err(corrupt(format!("the log ends at {}, the row at {}", state.seq(), row.head.last_seq)));
        }
        for record in records(key, &chunks) {
            state.apply(&record?).map_err(|why| corrupt(why.to_string()))?;
        }
    }
    let rest = SavedRest { seq: row.head.snapshot_seq, json: row.snapshot };
    Ok(Some(Loaded { state, head: row.head, rest }))
}

/// The records of `chunks`.
pub(crate) fn records(key: ThreadKey, chunks: &[Chunk]) -> impl Iterator<Item = Result<Record, StoreError>> {
    chunks.iter().flat_map(move |chunk| {
        chunk.events.iter().zip(chunk.first..).map(move |(stored, seq)| decode(key, seq, stored))
    })
}

/// Reads one stored event.
pub(crate) fn decode(key: ThreadKey, seq: Seq, stored: &StoredEvent) -> Result<Record, StoreError> {
    let corrupt = |why: BadRecord| Corrupt { record: format!("log {key}/{seq}"), why: why.to_string() };
    Ok(Record::decode(event::SCHEMA, &stored.json).map_err(corrupt)?)
}

/// Steps of one thread that are saved together.
#[derive(Default)]
pub(crate) struct Steps {
    events: Vec<StoredEvent>,
    settled: Vec<SettledTurn>,
    rest: Option<Rest>,
    pub receipts: Vec<Receipt>,
}

impl Steps {
    /// Adds what a step emitted.
    pub fn add(&mut self, step: &Step) {
        self.events.extend(step.records.iter().map(stored));
        self.settled.extend(step.settled.iter().map(settled));
        if step.rest.is_some() {
            self.rest.clone_from(&step.rest);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// The append that saves them, and the snapshot that its row holds. `state` is the state after them.
    pub fn append(
        self,
        key: ThreadKey,
        fence: u64,
        state: &ThreadState,
        last: Option<&SavedRest>,
        now: UnixMs,
    ) -> (Append, SavedRest) {
        let expected = state.seq() - self.events.len() as Seq;
        let rest = match (self.rest, last) {
            (Some(rest), _) => SavedRest { seq: rest.seq, json: json(&rest.snapshot).into() },
            (None, Some(last)) => last.clone(),
            (None, None) => unreachable!("a thread rests when it is created"),
        };
        let head = RowHead {
            last_seq: state.seq(),
            snapshot_seq: rest.seq,
            fence,
            listed_at: state.view().updated_at,
            owes_since: state.owes_since(),
            wake_at: state.owed().wake_at,
            archived: state.view().archived,
        };
        let row = ThreadRow { head, view: json(state.view()).into(), snapshot: rest.json.clone() };
        let chunk = Chunk { first: expected + 1, events: self.events };
        (Append { settled: self.settled, receipts: self.receipts, ..Append::new(key, expected, now, chunk, row) }, rest)
    }
}

/// An event as the bytes that are stored and streamed.
pub(crate) fn stored(record: &Record) -> StoredEvent {
    StoredEvent { name: record.event.name().into(), json: json(record).into() }
}

fn settled(settled: &Settled) -> SettledTurn {
    SettledTurn {
        id: settled.turn.id,
        started_seq: settled.started_seq,
        turn: json(&settled.turn),
        items: settled.items.clone(),
        context_seq: 0,
        reverted: None,
    }
}

/// The JSON of a record of ours.
pub(crate) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Records hold strings, numbers and string-keyed maps: nothing that JSON cannot say.
    serde_json::to_vec(value).expect("records are JSON")
}

/// The items of a turn that ended, from the places in the log that it names.
pub(crate) fn items(view: &dyn View, key: ThreadKey, turn: &SettledTurn) -> Result<Vec<Item>, StoreError> {
    let item = |seq: &Seq| {
        let stored = view.event(key, *seq)?;
        let record = stored.map(|stored| decode(key, *seq, &stored)).transpose()?;
        match record.map(|record| record.event) {
            Some(Event::ItemCompleted(item)) => Ok(*item),
            _ => {
                let why = format!("event {seq} is not the end of an item");
                Err(StoreError::Corrupt(Corrupt { record: format!("turns {key}/{}", turn.id), why }))
            }
        }
    };
    turn.items.iter().map(item).collect()
}

/// The record of a turn that ended.
pub(crate) fn turn(key: ThreadKey, settled: &SettledTurn) -> Result<Turn, StoreError> {
    let corrupt =
        |why: serde_json::Error| Corrupt { record: format!("turns {key}/{}", settled.id), why: why.to_string() };
    Ok(serde_json::from_slice(&settled.turn).map_err(corrupt)?)
}

/// The record of a thread, as its row holds it.
pub(crate) fn thread(key: ThreadKey, row: &ThreadRow) -> Result<Thread, StoreError> {
    let corrupt = |why: serde_json::Error| Corrupt { record: format!("threads {key}"), why: why.to_string() };
    Ok(serde_json::from_slice(&row.view).map_err(corrupt)?)
}
