//! Logs of turns that ended a while ago, rewritten: deltas joined, chunks merged, and compressed.
//!
//! One call is one short transaction over about a MiB of log. What it could not finish it notes in the index and goes
//! on with later; what it cannot read it leaves as it is, for whoever reads it to be told.

use ::redb::{Database, ReadableDatabase, ReadableTable, Table};
use raddle_domain::{
    event::SCHEMA,
    id::{Seq, ThreadKey},
    pack::Packed,
    ports::StoredEvent,
    time::UnixMs,
};

use super::{
    super::{
        codec::{self, Sealed},
        keys::{LOG, LogKey, StoreKey, UNPACKED, UnpackedKey},
        packing::{self, Means},
    },
    Fault, begin,
};

/// About the most bytes of log that one call reads.
const BYTES: usize = 1 << 20;
/// The most turns.
const TURNS: usize = 1024;
/// About the most bytes of one packed chunk, unpacked: what reading a single event of it costs.
const CHUNK: usize = 256 * 1024;

type Log<'t> = Table<'t, LogKey, &'static [u8]>;

/// Packs turns that ended at `before` or earlier. Returns how many it looked at.
pub(super) fn pack(database: &Database, before: UnixMs, limit: usize) -> Result<usize, Fault> {
    // A look first: mostly there is nothing to do, and a commit is a sync.
    let txn = database.begin_read()?;
    if txn.open_table(UNPACKED)?.range(..=UnpackedKey::last(before))?.next().transpose()?.is_none() {
        return Ok(0);
    }
    txn.close()?;
    let txn = begin(database)?;
    let mut packed = 0;
    {
        let (mut unpacked, mut log) = (txn.open_table(UNPACKED)?, txn.open_table(LOG)?);
        let mut due = Vec::new();
        for entry in unpacked.range(..=UnpackedKey::last(before))?.take(limit.min(TURNS)) {
            let (key, from) = entry?;
            let key = key.value();
            due.push((key, codec::read_unpacked(&key, from.value())));
        }
        let mut budget = BYTES;
        for (key, from) in due {
            if budget == 0 {
                break;
            }
            let done = match (key.thread(), from) {
                (Some(owner), Ok(from)) => turn(&mut log, owner, from, &mut budget),
                (None, _) => Err(Fault::Corrupt(key.corrupt("it names no tenant"))),
                (_, Err(corrupt)) => Err(Fault::Corrupt(corrupt)),
            };
            match done {
                Ok(None) => drop(unpacked.remove(key)?),
                Ok(Some(from)) => drop(unpacked.insert(key, codec::seal_unpacked(&key, from).as_slice())?),
                // One turn that cannot be read may not keep all others from being packed.
                Err(Fault::Corrupt(corrupt)) => {
                    tracing::error!(%corrupt, "a turn is not packed");
                    unpacked.remove(key)?;
                }
                Err(other) => return Err(other),
            }
            packed += 1;
        }
    }
    txn.commit()?;
    Ok(packed)
}

/// Places that are rewritten together, and the records that they come from.
struct Stretch {
    first: Seq,
    places: Vec<Packed>,
    from: Vec<LogKey>,
}

/// Packs the turn that goes on at `from`. Returns from where on it is still to be packed.
fn turn(log: &mut Log<'_>, owner: ThreadKey, from: Seq, budget: &mut usize) -> Result<Option<Seq>, Fault> {
    let start = log.range(LogKey::new(owner, 0)..=LogKey::new(owner, from))?.next_back().transpose()?;
    let Some(start) = start.map(|(key, _)| key.value()).filter(|key| key.is_of(owner)) else { return Ok(None) };
    let mut stretch = Stretch { first: start.seq(), places: Vec::new(), from: Vec::new() };
    let (mut next, mut end) = (start.seq(), None);
    // What follows the turn in its last chunk and is not to be packed yet.
    let mut behind: Vec<StoredEvent> = Vec::new();
    let (mut read, mut whole) = (0, false);
    let mut all_packed = true;
    for entry in log.range(start..=LogKey::new(owner, Seq::MAX))? {
        let (at, bytes) = entry?;
        let at = at.value();
        if at != LogKey::new(owner, next) {
            return Err(Fault::Corrupt(LogKey::new(owner, next).corrupt("the record is missing")));
        }
        let sealed = codec::open_chunk(&at, bytes.value()).map_err(Fault::Corrupt)?;
        // What an older build wrote stays as that build wrote it.
        if sealed.schema() != SCHEMA {
            return Ok(None);
        }
        let raw = sealed.raw().map_err(Fault::Corrupt)?;
        for place in sealed.places(&raw) {
            let place = place.map_err(Fault::Corrupt)?;
            if end.is_none() && place.first >= from {
                match packing::means(place.name, place.first, from) {
                    Means::GoesOn => {}
                    Means::Ends => end = Some(place.first),
                    Means::Another => return Ok(None),
                }
            } else if end.is_some() && !sealed.is_packed() && (!behind.is_empty() || place.name == "turn.started") {
                behind.push(place.event());
                continue;
            }
            stretch.places.push(place.packed());
        }
        stretch.from.push(at);
        all_packed &= sealed.is_packed();
        next = sealed.last() + 1;
        read += raw.len();
        whole = end.is_some() || read >= *budget;
        if whole {
            break;
        }
    }
    *budget = budget.saturating_sub(read);
    // The log ends before the turn does: it is not what it seemed to be.
    if !whole {
        return Ok(None);
    }
    let goes_on = end.is_none().then_some(next);
    let places = stretch.places.len();
    let bad = |why: raddle_domain::event::BadRecord| Fault::Corrupt(LogKey::new(owner, from).corrupt(why.to_string()));
    stretch.places = packing::join(stretch.first, stretch.places, from, end.unwrap_or(next - 1)).map_err(bad)?;
    if all_packed && stretch.from.len() == 1 && stretch.places.len() == places {
        return Ok(goes_on);
    }
    take_before(log, owner, &mut stretch)?;
    write(log, owner, stretch, (next, behind))?;
    Ok(goes_on)
}

/// Takes the chunks in front of the stretch into it as long as they are no larger than it is, so that short turns
/// share chunks and yet no byte is rewritten more often than chunks double in size.
fn take_before(log: &Log<'_>, owner: ThreadKey, stretch: &mut Stretch) -> Result<(), Fault> {
    let mut size: usize = stretch.places.iter().map(codec::place_size).sum();
    while let Some(entry) = log.range(LogKey::new(owner, 0)..LogKey::new(owner, stretch.first))?.next_back() {
        let (at, bytes) = entry?;
        let at = at.value();
        let fits = |sealed: &Sealed<'_>| {
            let more = sealed.size();
            sealed.last() + 1 == stretch.first && sealed.schema() == SCHEMA && more <= size && size + more <= CHUNK
        };
        let Some(sealed) = codec::open_chunk(&at, bytes.value()).ok().filter(fits) else { break };
        let Ok(raw) = sealed.raw() else { break };
        let places = sealed.places(&raw).map(|place| place.map(|place| place.packed()));
        let Ok(mut places) = places.collect::<Result<Vec<_>, _>>() else { break };
        size += sealed.size();
        places.append(&mut stretch.places);
        *stretch = Stretch { first: sealed.first(), places, from: std::mem::take(&mut stretch.from) };
        stretch.from.push(at);
    }
    Ok(())
}

/// Puts the stretch in the place of the records that it comes from, and behind it the events that end before a seq.
fn write(log: &mut Log<'_>, owner: ThreadKey, stretch: Stretch, behind: (Seq, Vec<StoredEvent>)) -> Result<(), Fault> {
    for key in &stretch.from {
        log.remove(key)?;
    }
    let (mut first, mut places) = (stretch.first, &stretch.places[..]);
    while !places.is_empty() {
        let mut size = 0;
        let fits = |place: &&Packed| {
            size += codec::place_size(place);
            size <= CHUNK
        };
        let count = places.iter().take_while(fits).count().max(1);
        let (together, rest) = places.split_at(count);
        let key = LogKey::new(owner, first);
        log.insert(key, codec::seal_places(&key, together).as_slice())?;
        first += together.iter().map(packing::seqs).sum::<Seq>();
        places = rest;
    }
    let (next, events) = behind;
    if !events.is_empty() {
        let key = LogKey::new(owner, next - events.len() as Seq);
        log.insert(key, codec::seal_chunk(&key, &events).as_slice())?;
    }
    Ok(())
}
