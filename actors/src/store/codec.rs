//! How records are written: `[format][schema][flags][reserved][CRC-32C, LE] body`.
//!
//! The checksum covers the table's name, the key, the four bytes before it and the body: a flipped bit is noticed,
//! and so is a record that is read under a key that is not its own. Integers are little-endian. JSON inside a body is
//! never parsed here. Decoding is bounded by the bytes at hand: garbage costs neither a panic nor an allocation
//! larger than itself, or than a packed chunk can be.

use std::{borrow::Cow, cmp::Ordering};

use bytes::Bytes;
use raddle_domain::{
    event,
    id::{Seq, ThreadId, TurnId},
    pack::{Packed, Run},
    ports::{Corrupt, LogKind, Receipt, RowHead, SettledTurn, StoredEvent, ThreadRow},
    time::UnixMs,
};

use super::keys::{
    ForkKey, LogKey, MetaKey, PartKey, ReceiptKey, RowKey, StoreKey, TurnIdKey, TurnKey, UnpackedKey, tenant::FeedKey,
};

/// The layout of the eight bytes before the body.
pub(crate) const FORMAT: u8 = 1;
const HEAD: usize = 8;
/// In `flags`: a chunk of the log, or a stretch of the feed, is packed.
const PACKED: u8 = 1;
/// The most bytes that are packed as one.
const PACKED_BYTES: usize = 16 << 20;

type Parsed<T> = Result<T, &'static str>;

/// The schema that this build writes, and the newest it reads, per table.
fn schema<K: StoreKey>() -> u8 {
    // Every other body is ours alone and changes with this file.
    match K::TABLE {
        LogKey::TABLE => event::SCHEMA,
        // 2: what the thread continues. 3: what counts against its tenant's quotas.
        RowKey::TABLE => 3,
        // 2: where the context begins, whether it was reverted, when it ended.
        TurnKey::TABLE => 2,
        _ => 1,
    }
}

fn checksum<K: StoreKey>(key: &K, head: &[u8], body: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(K::TABLE.as_bytes()), key.bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, head), body)
}

fn seal<K: StoreKey>(key: &K, size: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    seal_as(key, 0, size, fill)
}

fn seal_as<K: StoreKey>(key: &K, flags: u8, size: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + size);
    bytes.extend_from_slice(&[FORMAT, schema::<K>(), flags, 0, 0, 0, 0, 0]);
    fill(&mut bytes);
    let sum = checksum(key, &bytes[..4], &bytes[HEAD..]);
    bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn unseal<'a, K: StoreKey>(key: &K, bytes: &'a [u8]) -> Result<Body<'a>, Corrupt> {
    let Some((head, body)) = bytes.split_first_chunk::<HEAD>() else {
        return Err(key.corrupt(format!("{} bytes are too few", bytes.len())));
    };
    let [format, wrote, flags, reserved, sum @ ..] = *head;
    // Before the checksum: a later format may sum differently.
    if format > FORMAT {
        return Err(key.corrupt(format!("written in format {format}, this build reads up to {FORMAT}")));
    }
    if checksum(key, &head[..4], body) != u32::from_le_bytes(sum) {
        return Err(key.corrupt("the checksum does not match"));
    }
    if wrote > schema::<K>() {
        return Err(key.corrupt(format!("written by schema {wrote}, this build reads up to {}", schema::<K>())));
    }
    let known = if [LogKey::TABLE, FeedKey::TABLE].contains(&K::TABLE) { PACKED } else { 0 };
    if format == 0 || wrote == 0 || flags & !known != 0 || reserved != 0 {
        return Err(key.corrupt(format!("unknown kind of record ({format}, {wrote}, {flags}, {reserved})")));
    }
    Ok(Body { rest: body, schema: wrote, flags })
}

/// What is left to read.
#[derive(Clone, Copy)]
struct Body<'a> {
    rest: &'a [u8],
    /// The one it was written under.
    schema: u8,
    flags: u8,
}

impl<'a> Body<'a> {
    fn take(&mut self, length: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("the record is cut off")?;
        self.rest = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or("the record is cut off")?;
        self.rest = rest;
        Ok(*taken)
    }
    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }
    /// A length and so many bytes.
    fn blob(&mut self) -> Parsed<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }
    fn end(self) -> Parsed<()> {
        if self.rest.is_empty() { Ok(()) } else { Err("bytes follow the record") }
    }
}

fn put_blob(to: &mut Vec<u8>, blob: &[u8]) {
    // Every size is bounded far below 4 GiB before it comes here; redb refuses 3 GiB.
    to.extend_from_slice(&(blob.len() as u32).to_le_bytes());
    to.extend_from_slice(blob);
}

// ---- chunks of the log ------------------------------------------------------------------------------
//
// A count of seqs, then per event name and JSON. In a packed chunk what follows the count is compressed, and each
// event has the lengths of the deltas that were joined in it before it; one that is as it was has none.

/// An event name fits two bytes of length by far; a longer one is cut, because it may not cost the log.
fn name(event: &StoredEvent) -> &str {
    &event.name[..event.name.floor_char_boundary(usize::from(u16::MAX))]
}

fn put_event(to: &mut Vec<u8>, event: &StoredEvent) {
    let name = name(event);
    to.extend_from_slice(&(name.len() as u16).to_le_bytes());
    to.extend_from_slice(name.as_bytes());
    put_blob(to, &event.json);
}

/// Bytes that an event takes in a chunk.
fn event_size(event: &StoredEvent) -> usize {
    6 + event.name.len() + event.json.len()
}

/// Bytes of events as they count against a quota: what they say, and not what keeping them takes.
pub(crate) fn said_by<'e>(events: impl IntoIterator<Item = &'e StoredEvent>) -> u64 {
    events.into_iter().map(|event| (event.name.len() + event.json.len()) as u64).sum()
}

pub(crate) fn seal_chunk(key: &LogKey, events: &[StoredEvent]) -> Vec<u8> {
    let size = 4 + events.iter().map(event_size).sum::<usize>();
    seal(key, size, |to| {
        to.extend_from_slice(&(events.len() as u32).to_le_bytes());
        events.iter().for_each(|event| put_event(to, event));
    })
}

/// Bytes that a place takes in a packed chunk, before it is compressed.
pub(crate) fn place_size(place: &Packed) -> usize {
    match place {
        Packed::Event(event) => 4 + event_size(event),
        Packed::Run(run) => 4 + 4 * run.lengths.len() + event_size(&run.event),
    }
}

/// Places side by side as one packed chunk.
pub(crate) fn seal_places(key: &LogKey, places: &[Packed]) -> Vec<u8> {
    let size = places.iter().map(place_size).sum::<usize>();
    // One that is larger than a reader would unpack stays as it is.
    if let [Packed::Event(event)] = places
        && size > PACKED_BYTES
    {
        return seal_chunk(key, std::slice::from_ref(event));
    }
    let mut raw = Vec::with_capacity(size);
    let mut seqs = 0;
    for place in places {
        let (lengths, event) = match place {
            Packed::Event(event) => (&[][..], event),
            Packed::Run(run) => (&run.lengths[..], &run.event),
        };
        seqs += lengths.len().max(1) as u32;
        raw.extend_from_slice(&(lengths.len() as u32).to_le_bytes());
        lengths.iter().for_each(|length| raw.extend_from_slice(&length.to_le_bytes()));
        put_event(&mut raw, event);
    }
    let block = lz4_flex::block::compress_prepend_size(&raw);
    seal_as(key, PACKED, 4 + block.len(), |to| {
        to.extend_from_slice(&seqs.to_le_bytes());
        to.extend_from_slice(&block);
    })
}

/// A chunk whose checksum holds.
pub(crate) struct Sealed<'a> {
    key: LogKey,
    body: Body<'a>,
    /// Seqs that it covers.
    count: u32,
}

/// A stored event, and the deltas that were joined in it.
pub(crate) struct Place<'a> {
    /// The seq of the first delta, or of the event.
    pub first: Seq,
    /// Of each delta; empty for an event that is as it was.
    lengths: &'a [[u8; 4]],
    pub name: &'a str,
    pub json: &'a [u8],
}

impl Place<'_> {
    /// The seq of the stored event.
    pub(crate) fn last(&self) -> Seq {
        self.first + self.lengths.len().max(1) as Seq - 1
    }

    pub(crate) fn event(&self) -> StoredEvent {
        StoredEvent { name: event::name(self.name), json: Bytes::copy_from_slice(self.json) }
    }

    pub(crate) fn packed(&self) -> Packed {
        if self.lengths.is_empty() {
            return Packed::Event(self.event());
        }
        let lengths = self.lengths.iter().map(|length| u32::from_le_bytes(*length)).collect();
        Packed::Run(Run { first: self.first, lengths, event: self.event() })
    }

    /// What is left of joined deltas for a reader that has those up to `after`, if it has any of them.
    pub(crate) fn rest(&self, chunk: &Sealed<'_>, after: Seq) -> Result<Option<Bytes>, Corrupt> {
        if after < self.first {
            return Ok(None);
        }
        match self.packed() {
            Packed::Run(run) => {
                let rest = run.rest(chunk.schema(), after);
                Ok(Some(rest.map_err(|why| chunk.key.corrupt(why.to_string()))?.json))
            }
            Packed::Event(_) => Ok(None),
        }
    }
}

pub(crate) fn open_chunk<'a>(key: &LogKey, bytes: &'a [u8]) -> Result<Sealed<'a>, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let count = body.u32().map_err(|why| key.corrupt(why))?;
    let last = key.seq().checked_add(u64::from(count));
    if count == 0 || key.seq() == 0 || last.is_none() {
        return Err(key.corrupt("a chunk that holds no place in a log"));
    }
    Ok(Sealed { key: *key, body, count })
}

impl<'a> Sealed<'a> {
    pub(crate) fn key(&self) -> LogKey {
        self.key
    }
    pub(crate) fn first(&self) -> Seq {
        self.key.seq()
    }
    pub(crate) fn last(&self) -> Seq {
        self.key.seq() + u64::from(self.count) - 1
    }
    /// The schema under which its events were written.
    pub(crate) fn schema(&self) -> u8 {
        self.body.schema
    }
    pub(crate) fn is_packed(&self) -> bool {
        self.body.flags & PACKED != 0
    }

    /// Bytes of its places when they are unpacked, as it says.
    pub(crate) fn size(&self) -> usize {
        if !self.is_packed() {
            return self.body.rest.len();
        }
        lz4_flex::block::uncompressed_size(self.body.rest).map_or(usize::MAX, |(size, _)| size)
    }

    /// What its places are read from.
    pub(crate) fn raw(&self) -> Result<Cow<'a, [u8]>, Corrupt> {
        if !self.is_packed() {
            return Ok(Cow::Borrowed(self.body.rest));
        }
        let bad = |why: &str| self.key.corrupt(format!("what is packed cannot be unpacked: {why}"));
        let (size, block) = lz4_flex::block::uncompressed_size(self.body.rest).map_err(|_| bad("it is cut off"))?;
        // A byte becomes at most 255.
        if size > PACKED_BYTES || size / 256 > block.len() {
            return Err(bad("it is too large"));
        }
        let raw = lz4_flex::block::decompress(block, size).map_err(|why| bad(&why.to_string()))?;
        if raw.len() == size { Ok(Cow::Owned(raw)) } else { Err(bad("it is shorter than it says")) }
    }

    /// The places, in order, from what [`raw`](Self::raw) gave.
    pub(crate) fn places<'r>(&self, raw: &'r [u8]) -> impl Iterator<Item = Result<Place<'r>, Corrupt>> + use<'r> {
        let (key, packed, end) = (self.key, self.is_packed(), self.last() + 1);
        let mut body = Body { rest: raw, ..self.body };
        let mut seq = self.first();
        std::iter::from_fn(move || {
            let first = seq;
            if first == end {
                return None;
            }
            let mut next = || -> Parsed<_> {
                let count = if packed { body.u32()? as usize } else { 0 };
                let (lengths, _) = body.take(count.checked_mul(4).ok_or("the record is cut off")?)?.as_chunks::<4>();
                let length = body.array().map(u16::from_le_bytes)?;
                let name = std::str::from_utf8(body.take(usize::from(length))?).map_err(|_| "a name is not UTF-8")?;
                let place = Place { first, lengths, name, json: body.blob()? };
                match place.last().cmp(&(end - 1)) {
                    Ordering::Less => {}
                    Ordering::Equal => body.end()?,
                    Ordering::Greater => return Err("it holds more than it says"),
                }
                Ok(place)
            };
            let place = next().map_err(|why| key.corrupt(why));
            // Behind an error nothing can be made sense of.
            seq = place.as_ref().map_or(end, |place| place.last() + 1);
            Some(place)
        })
    }
}

/// The same of the events of a chunk up to `upto`, as they are stored by now; of one that cannot be read nothing.
pub(crate) fn said_until(key: &LogKey, bytes: &[u8], upto: Seq) -> u64 {
    let Ok(sealed) = open_chunk(key, bytes) else { return 0 };
    let Ok(raw) = sealed.raw() else { return 0 };
    let shared = sealed.places(&raw).map_while(Result::ok).take_while(|place| place.last() <= upto);
    shared.map(|place| (place.name.len() + place.json.len()) as u64).sum()
}

/// The record of a chunk under another key, without what is behind `upto`. One that cannot be read stays as it is,
/// which is not what would be read under the other key either.
pub(crate) fn move_chunk(from: &LogKey, to: &LogKey, bytes: &[u8], upto: Seq) -> Vec<u8> {
    let Ok(sealed) = open_chunk(from, bytes) else { return bytes.to_vec() };
    if sealed.last() <= upto {
        let mut moved = bytes.to_vec();
        let sum = checksum(to, &moved[..4], &moved[HEAD..]);
        moved[4..HEAD].copy_from_slice(&sum.to_le_bytes());
        return moved;
    }
    let cut = || {
        let raw = sealed.raw()?;
        let shared = sealed.places(&raw).take_while(|place| place.as_ref().map_or(true, |place| place.first <= upto));
        let packed = |place: Result<Place<'_>, Corrupt>| match place {
            Ok(place) if place.last() > upto => {
                Err(from.corrupt("deltas that were joined reach over the place of a fork"))
            }
            place => place.map(|place| place.packed()),
        };
        let places = shared.map(packed).collect::<Result<Vec<_>, Corrupt>>()?;
        let events: Option<Vec<_>> = places
            .iter()
            .map(|place| match place {
                Packed::Event(event) => Some(event.clone()),
                Packed::Run(_) => None,
            })
            .collect();
        Ok::<_, Corrupt>(match events {
            Some(events) if !sealed.is_packed() => seal_chunk(to, &events),
            _ => seal_places(to, &places),
        })
    };
    cut().unwrap_or_else(|_| bytes.to_vec())
}

// ---- thread rows: a fixed head, then two JSON texts -------------------------------------------------

/// What the store keeps in a row for itself, beside what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Head {
    pub head: RowHead,
    /// Where the thread stands in `recent`, if it does: behind `listed_at` while the thread owes.
    pub recent_at: Option<UnixMs>,
    /// The newest record in `turns`; 0 when there is none.
    pub last_turn: Seq,
    /// Where the events up to and with a seq are: stored under the name of another thread.
    pub base: Option<(ThreadId, Seq)>,
    /// The last event that was written under another name; 0 when the thread wrote all of its own.
    pub inherited: Seq,
    /// Bytes of the events that are stored under its own name, as they came: packing them changes nothing. What was
    /// written by a build that did not count is not in it.
    pub bytes: u64,
}

impl Head {
    /// The last event that is stored under another name: what is behind it is under the thread's own.
    pub(crate) fn floor(&self) -> Seq {
        self.base.map_or(0, |(_, at)| at)
    }
}

const ARCHIVED: u8 = 1;
const OWES: u8 = 2;
const WAKES: u8 = 4;
const RECENT: u8 = 8;
/// It began as a fork: `inherited` follows.
const FORKED: u8 = 16;
/// `base` follows.
const BASED: u8 = 32;
/// The log of a job, of a schedule, or of a run, which is both marks: a build that does not know of it refuses the row.
const JOB: u8 = 64;
const SCHEDULE: u8 = 128;
const RUN: u8 = JOB | SCHEDULE;

fn mark_of(kind: LogKind) -> u8 {
    match kind {
        LogKind::Thread => 0,
        LogKind::Job => JOB,
        LogKind::Schedule => SCHEDULE,
        LogKind::Run => RUN,
    }
}

pub(crate) fn seal_row(key: &RowKey, stored: &Head, view: &[u8], snapshot: &[u8]) -> Vec<u8> {
    let Head { head, recent_at, last_turn, base, inherited, bytes } = stored;
    seal(key, 117 + view.len() + snapshot.len(), |to| {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        to.push(
            bit(head.archived, ARCHIVED)
                | bit(head.owes_since.is_some(), OWES)
                | bit(head.wake_at.is_some(), WAKES)
                | bit(recent_at.is_some(), RECENT)
                | bit(*inherited > 0, FORKED)
                | bit(base.is_some(), BASED)
                | mark_of(head.kind),
        );
        let time = |at: Option<UnixMs>| at.unwrap_or_default().0;
        let numbers = [head.last_seq, head.snapshot_seq, head.fence, head.listed_at.0];
        let more = [time(head.owes_since), time(head.wake_at), time(*recent_at), *last_turn];
        for number in numbers.into_iter().chain(more) {
            to.extend_from_slice(&number.to_le_bytes());
        }
        to.extend_from_slice(&head.queued.to_le_bytes());
        to.extend_from_slice(&bytes.to_le_bytes());
        if *inherited > 0 {
            to.extend_from_slice(&inherited.to_le_bytes());
        }
        if let Some((thread, at)) = base {
            to.extend_from_slice(thread.as_bytes());
            to.extend_from_slice(&at.to_le_bytes());
        }
        put_blob(to, view);
        put_blob(to, snapshot);
    })
}

fn head(body: &mut Body<'_>) -> Parsed<Head> {
    let [bits] = body.array()?;
    let later = FORKED | BASED | RUN;
    let known = ARCHIVED | OWES | WAKES | RECENT | if body.schema < 2 { 0 } else { later };
    if bits & !known != 0 {
        return Err("unknown marks");
    }
    let kind = match bits & RUN {
        0 => LogKind::Thread,
        JOB => LogKind::Job,
        SCHEDULE => LogKind::Schedule,
        _ => LogKind::Run,
    };
    let [last_seq, snapshot_seq, fence, listed_at] = [body.u64()?, body.u64()?, body.u64()?, body.u64()?];
    let [owes, wakes, recent, last_turn] = [body.u64()?, body.u64()?, body.u64()?, body.u64()?];
    let (queued, bytes) = if body.schema < 3 { (0, 0) } else { (body.u32()?, body.u64()?) };
    let time = |bit, at| (bits & bit != 0).then_some(UnixMs(at));
    let head = RowHead {
        last_seq,
        snapshot_seq,
        fence,
        listed_at: UnixMs(listed_at),
        owes_since: time(OWES, owes),
        wake_at: time(WAKES, wakes),
        archived: bits & ARCHIVED != 0,
        queued,
        kind,
    };
    let inherited = if bits & FORKED != 0 { body.u64()? } else { 0 };
    let base = if bits & BASED != 0 { Some((ThreadId::from_bytes(body.array()?), body.u64()?)) } else { None };
    Ok(Head { head, recent_at: time(RECENT, recent), last_turn, base, inherited, bytes })
}

/// The head of a row; the whole row is checked.
pub(crate) fn read_head(key: &RowKey, bytes: &[u8]) -> Result<Head, Corrupt> {
    head(&mut unseal(key, bytes)?).map_err(|why| key.corrupt(why))
}

pub(crate) fn read_row(key: &RowKey, bytes: &[u8]) -> Result<(ThreadRow, Head), Corrupt> {
    let mut body = unseal(key, bytes)?;
    let mut read = || -> Parsed<_> {
        let stored = head(&mut body)?;
        let row = ThreadRow { head: stored.head, view: body.blob()?.into(), snapshot: body.blob()?.into() };
        body.end()?;
        Ok((row, stored))
    };
    read().map_err(|why| key.corrupt(why))
}

// ---- turns ------------------------------------------------------------------------------------------

/// A turn as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TurnRecord {
    pub turn: SettledTurn,
    /// The record before it under the same thread, 0 for the first: a hole in the table is noticed.
    pub previous: Seq,
    /// When it ended: its place among what is to be packed. 0 when it never had one.
    pub ended: UnixMs,
}

pub(crate) fn seal_turn(key: &TurnKey, record: &TurnRecord) -> Vec<u8> {
    let TurnRecord { turn, previous, ended } = record;
    seal(key, 60 + turn.turn.len() + 8 * turn.items.len(), |to| {
        to.extend_from_slice(&previous.to_le_bytes());
        // No event has the seq 0.
        for number in [turn.context_seq, turn.reverted.unwrap_or(0), ended.0] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        to.extend_from_slice(turn.id.as_bytes());
        put_blob(to, &turn.turn);
        to.extend_from_slice(&(turn.items.len() as u32).to_le_bytes());
        for item in &turn.items {
            to.extend_from_slice(&item.to_le_bytes());
        }
    })
}

pub(crate) fn read_turn(key: &TurnKey, bytes: &[u8]) -> Result<TurnRecord, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let mut read = || -> Parsed<_> {
        let previous = body.u64()?;
        let [context_seq, reverted, ended] =
            if body.schema < 2 { [0; 3] } else { [body.u64()?, body.u64()?, body.u64()?] };
        let id = TurnId::from_bytes(body.array()?);
        let turn = body.blob()?.to_vec();
        let count = body.u32()? as usize;
        let (items, []) = body.rest.as_chunks::<8>() else { return Err("the record is cut off") };
        if items.len() != count {
            return Err("the items are not as many as said");
        }
        let items = items.iter().map(|item| Seq::from_le_bytes(*item)).collect();
        let reverted = Some(reverted).filter(|seq| *seq > 0);
        let turn = SettledTurn { id, started_seq: key.seq(), turn, items, context_seq, reverted };
        Ok(TurnRecord { turn, previous, ended: UnixMs(ended) })
    };
    read().map_err(|why| key.corrupt(why))
}

pub(crate) fn seal_turn_id(key: &TurnIdKey, started: Seq) -> Vec<u8> {
    seal(key, 8, |to| to.extend_from_slice(&started.to_le_bytes()))
}

pub(crate) fn read_turn_id(key: &TurnIdKey, bytes: &[u8]) -> Result<Seq, Corrupt> {
    number(key, bytes)
}

/// Where the log of the fork leaves its parent's.
pub(crate) fn seal_fork(key: &ForkKey, at: Seq) -> Vec<u8> {
    seal(key, 8, |to| to.extend_from_slice(&at.to_le_bytes()))
}

pub(crate) fn read_fork(key: &ForkKey, bytes: &[u8]) -> Result<Seq, Corrupt> {
    number(key, bytes)
}

/// From where on the turn is still to be packed.
pub(crate) fn seal_unpacked(key: &UnpackedKey, from: Seq) -> Vec<u8> {
    seal(key, 8, |to| to.extend_from_slice(&from.to_le_bytes()))
}

pub(crate) fn read_unpacked(key: &UnpackedKey, bytes: &[u8]) -> Result<Seq, Corrupt> {
    number(key, bytes)
}

fn number<K: StoreKey>(key: &K, bytes: &[u8]) -> Result<u64, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let number = body.u64().and_then(|number| body.end().map(|()| number));
    number.map_err(|why| key.corrupt(why))
}

// ---- parts ------------------------------------------------------------------------------------------

pub(crate) fn seal_part(key: &PartKey, json: &[u8]) -> Vec<u8> {
    seal_json(key, json)
}

pub(crate) fn read_part(key: &PartKey, bytes: &[u8]) -> Result<Vec<u8>, Corrupt> {
    Ok(read_json(key, bytes)?.to_vec())
}

/// A record that is one JSON text.
fn seal_json<K: StoreKey>(key: &K, json: &[u8]) -> Vec<u8> {
    seal(key, 4 + json.len(), |to| put_blob(to, json))
}

fn read_json<'a, K: StoreKey>(key: &K, bytes: &'a [u8]) -> Result<&'a [u8], Corrupt> {
    let mut body = unseal(key, bytes)?;
    let json = body.blob().and_then(|json| body.end().map(|()| json));
    json.map_err(|why| key.corrupt(why))
}

// ---- any record -------------------------------------------------------------------------------------

/// Whether a record is what was written under its key. What its body means is not looked at.
pub(crate) fn check<K: StoreKey>(key: &K, bytes: &[u8]) -> Result<(), Corrupt> {
    unseal(key, bytes).map(drop)
}

/// The schema, the flags and the body of a record that is what was written.
pub(crate) fn parts_of<'a, K: StoreKey>(key: &K, bytes: &'a [u8]) -> Result<(u8, u8, &'a [u8]), Corrupt> {
    let Body { rest, schema, flags } = unseal(key, bytes)?;
    Ok((schema, flags, rest))
}

/// The record that has these parts, under this key.
pub(crate) fn seal_parts<K: StoreKey>(key: &K, (schema, flags): (u8, u8), body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(&[FORMAT, schema, flags, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(body);
    let sum = checksum(key, &bytes[..4], body);
    bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What stands in a row before its two texts, and those.
pub(crate) fn row_parts<'a>(key: &RowKey, bytes: &'a [u8]) -> Result<[&'a [u8]; 3], Corrupt> {
    let mut body = unseal(key, bytes)?;
    let whole = body.rest;
    let mut read = || -> Parsed<_> {
        head(&mut body)?;
        let before = &whole[..whole.len() - body.rest.len()];
        let (view, snapshot) = (body.blob()?, body.blob()?);
        body.end()?;
        Ok([before, view, snapshot])
    };
    read().map_err(|why| key.corrupt(why))
}

/// Where the writer's epoch stands in a row.
pub(crate) const FENCE_AT: std::ops::Range<usize> = 17..25;

/// What stands in the record of a turn before its text, the text, and what follows it.
pub(crate) fn turn_parts<'a>(key: &TurnKey, bytes: &'a [u8]) -> Result<[&'a [u8]; 3], Corrupt> {
    let mut body = unseal(key, bytes)?;
    let before = if body.schema < 2 { 8 + 16 } else { 32 + 16 };
    let mut read = || -> Parsed<_> { Ok([body.take(before)?, body.blob()?, body.rest]) };
    read().map_err(|why| key.corrupt(why))
}

/// The one text that a record is.
pub(crate) fn json_of<'a, K: StoreKey>(key: &K, bytes: &'a [u8]) -> Result<&'a [u8], Corrupt> {
    read_json(key, bytes)
}

/// Texts behind a length, as bodies hold them, with what stands before and between.
pub(crate) fn body_of(parts: &[BodyPart<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        match part {
            BodyPart::Bytes(bytes) => body.extend_from_slice(bytes),
            BodyPart::Text(text) => put_blob(&mut body, text),
        }
    }
    body
}

/// A piece of a body.
pub(crate) enum BodyPart<'a> {
    Bytes(&'a [u8]),
    Text(&'a [u8]),
}

/// The flags and the body of a chunk with these places.
pub(crate) fn chunk_parts(key: &LogKey, places: &[Packed], packed: bool) -> (u8, Vec<u8>) {
    let events = places.iter().filter_map(|place| match place {
        Packed::Event(event) => Some(event.clone()),
        Packed::Run(_) => None,
    });
    let sealed = if packed { seal_places(key, places) } else { seal_chunk(key, &events.collect::<Vec<_>>()) };
    (sealed[2], sealed[HEAD..].to_vec())
}

// ---- receipts, indexes, the store itself ------------------------------------------------------------

pub(crate) fn seal_receipt(key: &ReceiptKey, receipt: &Receipt) -> Vec<u8> {
    seal(key, 44 + receipt.reply.len(), |to| {
        to.extend_from_slice(&receipt.expires_at.0.to_le_bytes());
        to.extend_from_slice(&receipt.request);
        put_blob(to, &receipt.reply);
    })
}

pub(crate) fn read_receipt(key: &ReceiptKey, digest: &[u8; 32], bytes: &[u8]) -> Result<Receipt, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let mut read = || -> Parsed<_> {
        let expires_at = UnixMs(body.u64()?);
        let receipt = Receipt { key: *digest, request: body.array()?, reply: body.blob()?.to_vec(), expires_at };
        body.end()?;
        Ok(receipt)
    };
    read().map_err(|why| key.corrupt(why))
}

/// The value of an index entry, which is all key.
pub(crate) fn seal_mark<K: StoreKey>(key: &K) -> [u8; HEAD] {
    let mut mark = [FORMAT, schema::<K>(), 0, 0, 0, 0, 0, 0];
    let sum = checksum(key, &mark[..4], &[]);
    mark[4..].copy_from_slice(&sum.to_le_bytes());
    mark
}

pub(crate) fn check_mark<K: StoreKey>(key: &K, bytes: &[u8; HEAD]) -> Result<(), Corrupt> {
    unseal(key, bytes)?.end().map_err(|why| key.corrupt(why))
}

pub(crate) fn seal_epoch(epoch: u64) -> Vec<u8> {
    seal(&MetaKey::epoch(), 8, |to| to.extend_from_slice(&epoch.to_le_bytes()))
}

pub(crate) fn read_epoch(bytes: &[u8]) -> Result<u64, Corrupt> {
    number(&MetaKey::epoch(), bytes)
}

pub(crate) mod tenant;

#[cfg(test)]
mod tests;
