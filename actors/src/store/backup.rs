//! A backup: every record of a store as one file, and how such a file is read again.
//!
//! ```text
//! magic and version   16 bytes
//! header              a frame: JSON, see `Header`
//! for each table      a frame with its name, then frames of records in the order of their keys
//! trailer             a frame: JSON, how many records each table has, and which were damaged already
//! digest              SHA-256 over everything before it
//! ```
//! A frame is `[kind][0; 3][length][count][CRC of the payload][CRC of the 16 bytes before]` and its payload; numbers are
//! little-endian, checksums CRC-32C. A record in a payload is the lengths of its key and its value, and both.
//!
//! What is written comes from one view, so it is what one commit left: a prefix of every log. Memory is bounded by a
//! frame on both sides. The reader believes nothing: each frame, each count, the order of the keys, the digest and the
//! seal of each record are looked at, and what is wrong is named by where it stands.
//!
//! A record that was damaged in the store is in its backup too, and is named in the trailer: one damaged thread must
//! not keep all others from being backed up, and damage that is in no trailer came after.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use bytes::Bytes;
use raddle_domain::{
    ports::{StoreError, View},
    time::UnixMs,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    codec,
    keys::{MetaKey, StoreKey},
    tables::{self, AnyTable, LAYOUT, TABLES},
};

const MAGIC: &[u8; 15] = b"raddle backup\r\n";
/// The version of the file, behind the magic.
const VERSION: u8 = 1;
/// Bytes in front of a payload.
const HEAD: usize = 20;
/// About the most bytes of records in one frame; one record may be larger.
const BLOCK: usize = 512 * 1024;
/// The largest payload that is read. No record comes near it.
const LARGEST: usize = 512 << 20;
/// The most damaged records that a backup takes along.
const DAMAGED: usize = 10_000;

const HEADER: u8 = b'H';
const TABLE: u8 = b'T';
const RECORDS: u8 = b'R';
const TRAILER: u8 = b'E';

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of raddle that wrote it.
    pub raddle: String,
    pub at: UnixMs,
    /// Which tables the store has.
    pub layout: u64,
    /// How often the store was opened.
    pub epoch: u64,
    pub tables: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    records: BTreeMap<String, u64>,
    damaged: Vec<String>,
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub header: Header,
    /// Records of each table.
    pub records: BTreeMap<String, u64>,
    /// Of the whole file.
    pub bytes: u64,
    /// Over the whole file but itself, in lower-case hex.
    pub sha256: String,
    /// Records that were damaged in the store already.
    pub damaged: Vec<String>,
}

/// Why a backup was not made, or is none.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever it was for has gone.
    #[error("nobody takes the backup any more")]
    Gone,
    #[error("the store is damaged in more than {DAMAGED} places; it has to be restored from an older backup")]
    Ruined,
    #[error("the file cannot be read: {0}")]
    Read(io::Error),
    #[error("the file is no backup of raddle's")]
    Foreign,
    #[error("the backup is of version {found}; this build reads {VERSION}")]
    Version { found: u8 },
    #[error("the backup is of a store with layout {found}; this build knows up to {LAYOUT}")]
    Layout { found: u64 },
    /// The sentence names what is damaged.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// What was read could not be kept.
    #[error("the backup cannot be restored: {0}")]
    Keep(String),
}

// ---- writing ----------------------------------------------------------------------------------------

struct Writer<F> {
    to: F,
    sum: Sha256,
    bytes: u64,
}

impl<F: FnMut(Bytes) -> Result<(), BackupError>> Writer<F> {
    fn put(&mut self, bytes: Vec<u8>) -> Result<(), BackupError> {
        self.sum.update(&bytes);
        self.bytes += bytes.len() as u64;
        (self.to)(bytes.into())
    }

    fn frame(&mut self, kind: u8, count: usize, payload: &[u8]) -> Result<(), BackupError> {
        let mut frame = Vec::with_capacity(HEAD + payload.len());
        frame.extend_from_slice(&[kind, 0, 0, 0]);
        // A value has less than 3 GiB in redb; the sum of a block is far below.
        for number in [payload.len() as u32, count as u32, crc32c::crc32c(payload)] {
            frame.extend_from_slice(&number.to_le_bytes());
        }
        let sum = crc32c::crc32c(&frame);
        frame.extend_from_slice(&sum.to_le_bytes());
        frame.extend_from_slice(payload);
        self.put(frame)
    }

    fn json(&mut self, kind: u8, value: &impl Serialize) -> Result<(), BackupError> {
        // Names and numbers: nothing that JSON cannot say.
        self.frame(kind, 1, &serde_json::to_vec(value).expect("it is JSON"))
    }
}

/// Writes everything that `view` shows, in pieces of a bounded size.
pub fn write(
    view: &dyn View,
    raddle: &str,
    at: UnixMs,
    to: impl FnMut(Bytes) -> Result<(), BackupError>,
) -> Result<Summary, BackupError> {
    let meta = view.stretch(MetaKey::TABLE, None, None, usize::MAX)?.records;
    let known = |key: MetaKey| meta.iter().find(|(at, _)| at == key.bytes()).map(|(_, value)| value.as_slice());
    let read = |value: Option<&[u8]>, read: fn(&[u8]) -> Result<u64, raddle_domain::ports::Corrupt>| {
        value.map(read).transpose().map_err(StoreError::Corrupt)
    };
    let layout = read(known(MetaKey::layout()), codec::tenant::read_layout)?.unwrap_or(1);
    let epoch = read(known(MetaKey::epoch()), codec::read_epoch)?.unwrap_or_default();
    let tables: Vec<_> = TABLES.iter().filter(|table| table.since() <= layout).collect();
    let names = tables.iter().map(|table| table.name().to_owned()).collect();
    let header = Header { raddle: raddle.to_owned(), at, layout, epoch, tables: names };

    let mut writer = Writer { to, sum: Sha256::new(), bytes: 0 };
    writer.put([&MAGIC[..], &[VERSION]].concat())?;
    writer.json(HEADER, &header)?;
    let (mut records, mut damaged) = (BTreeMap::new(), Vec::new());
    for table in tables {
        writer.frame(TABLE, 0, table.name().as_bytes())?;
        let (mut count, mut after) = (0, None);
        loop {
            let stretch = view.stretch(table.name(), None, after.as_deref(), BLOCK)?;
            let mut payload = Vec::with_capacity(BLOCK);
            for (key, value) in &stretch.records {
                if let Err(corrupt) = table.check(key, value) {
                    tracing::error!(%corrupt, "a record is damaged; it is backed up as it is");
                    damaged.push(corrupt.record);
                }
                for part in [key, value] {
                    payload.extend_from_slice(&(part.len() as u32).to_le_bytes());
                }
                payload.extend_from_slice(key);
                payload.extend_from_slice(value);
            }
            if damaged.len() > DAMAGED {
                return Err(BackupError::Ruined);
            }
            count += stretch.records.len() as u64;
            if !stretch.records.is_empty() {
                writer.frame(RECORDS, stretch.records.len(), &payload)?;
            }
            after = stretch.next;
            if after.is_none() {
                break;
            }
        }
        records.insert(table.name().to_owned(), count);
    }
    writer.json(TRAILER, &Trailer { records: records.clone(), damaged: damaged.clone() })?;
    let digest = writer.sum.clone().finalize();
    writer.put(digest.to_vec())?;
    Ok(Summary { header, records, bytes: writer.bytes, sha256: tables::hex(&digest), damaged })
}

// ---- reading ----------------------------------------------------------------------------------------

/// Who takes what is in a backup, as it is read. What comes is whole, as far as its own checksums tell; whether the
/// whole file is, is known at its end.
pub(crate) trait Keep {
    fn begin(&mut self, header: &Header) -> Result<(), BackupError>;
    fn records(&mut self, of: &'static dyn AnyTable, records: &[(&[u8], &[u8])]) -> Result<(), BackupError>;
}

struct Nobody;

impl Keep for Nobody {
    fn begin(&mut self, _: &Header) -> Result<(), BackupError> {
        Ok(())
    }
    fn records(&mut self, _: &'static dyn AnyTable, _: &[(&[u8], &[u8])]) -> Result<(), BackupError> {
        Ok(())
    }
}

/// Reads a backup to its end, and says what is in it if all of it is what was written.
pub fn verify(from: impl Read) -> Result<Summary, BackupError> {
    read(from, &mut Nobody)
}

struct Reader<R> {
    from: R,
    sum: Sha256,
    at: u64,
    /// What is being read, for people.
    place: String,
}

struct Frame {
    kind: u8,
    count: usize,
    payload: Vec<u8>,
    /// Where it begins.
    at: u64,
}

impl<R: Read> Reader<R> {
    /// The next bytes, as many as asked for.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = Vec::with_capacity(length.min(BLOCK));
        let read = (&mut self.from).take(length as u64).read_to_end(&mut bytes).map_err(BackupError::Read)?;
        if read < length {
            return Err(BackupError::Damaged(format!("the file ends in the middle of {}", self.place)));
        }
        self.at += length as u64;
        Ok(bytes)
    }

    fn summed(&mut self, length: usize) -> Result<Vec<u8>, BackupError> {
        let bytes = self.take(length)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn damaged(&self, from: u64, why: impl std::fmt::Display) -> BackupError {
        BackupError::Damaged(format!("{}, bytes {from}–{}: {why}", self.place, self.at))
    }

    fn frame(&mut self) -> Result<Frame, BackupError> {
        let at = self.at;
        let head = self.summed(HEAD)?;
        let number = |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
        if crc32c::crc32c(&head[..16]) != number(16) {
            return Err(self.damaged(at, "what stands before it does not match its checksum"));
        }
        let (length, count, sum) = (number(4) as usize, number(8) as usize, number(12));
        if length > LARGEST {
            return Err(self.damaged(at, format_args!("it says that it has {length} bytes")));
        }
        let payload = self.summed(length)?;
        if crc32c::crc32c(&payload) != sum {
            return Err(self.damaged(at, "it does not match its checksum"));
        }
        Ok(Frame { kind: head[0], count, payload, at })
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, frame: &Frame) -> Result<T, BackupError> {
        serde_json::from_slice(&frame.payload).map_err(|why| self.damaged(frame.at, why))
    }
}

/// The records of a frame: what could be read of them, and all of it if nothing is left.
fn records(frame: &Frame) -> Option<Vec<(&[u8], &[u8])>> {
    let mut rest = frame.payload.as_slice();
    let number = |rest: &mut &[u8]| {
        let (number, behind) = rest.split_first_chunk::<4>()?;
        *rest = behind;
        Some(u32::from_le_bytes(*number) as usize)
    };
    // A record has at least its two lengths.
    let mut all = Vec::with_capacity(frame.count.min(frame.payload.len() / 8));
    for _ in 0..frame.count {
        let (key, value) = (number(&mut rest)?, number(&mut rest)?);
        let (key, behind) = rest.split_at_checked(key)?;
        let (value, behind) = behind.split_at_checked(value)?;
        all.push((key, value));
        rest = behind;
    }
    rest.is_empty().then_some(all)
}

pub(crate) fn read(from: impl Read, keep: &mut dyn Keep) -> Result<Summary, BackupError> {
    let place = "its beginning".to_owned();
    let mut reader = Reader { from, sum: Sha256::new(), at: 0, place };
    let magic = reader.summed(MAGIC.len() + 1)?;
    match magic.split_last() {
        Some((version, magic)) if magic == MAGIC && *version == VERSION => {}
        Some((found, magic)) if magic == MAGIC => return Err(BackupError::Version { found: *found }),
        _ => return Err(BackupError::Foreign),
    }
    reader.place = "its header".to_owned();
    let frame = reader.frame()?;
    if frame.kind != HEADER {
        return Err(reader.damaged(frame.at, "it is something else"));
    }
    let header: Header = reader.json(&frame)?;
    if header.layout > LAYOUT || header.layout == 0 {
        return Err(BackupError::Layout { found: header.layout });
    }
    let wanted: Vec<_> = TABLES.iter().copied().filter(|table| table.since() <= header.layout).collect();
    let said: BTreeSet<_> = header.tables.iter().map(String::as_str).collect();
    if said != wanted.iter().map(|table| table.name()).collect() || said.len() != header.tables.len() {
        return Err(reader.damaged(frame.at, "its tables are not those of its layout"));
    }
    keep.begin(&header)?;

    let mut tables = header.tables.iter();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut broken: Vec<(String, String)> = Vec::new();
    let mut of: Option<&'static dyn AnyTable> = None;
    let (mut block, mut last) = (0u64, Vec::new());
    let trailer: Trailer = loop {
        let name = of.map_or("its header".to_owned(), |table| format!("table `{}`", table.name()));
        reader.place = match of {
            Some(_) => format!("block {} of {name}", block + 1),
            None => format!("what follows {name}"),
        };
        let frame = reader.frame()?;
        match (frame.kind, of) {
            (TABLE, _) => {
                let next = tables.next().filter(|next| next.as_bytes() == frame.payload);
                let Some(table) = next.and_then(|next| tables::named(next)) else {
                    return Err(reader.damaged(frame.at, "another table begins than the one that follows"));
                };
                (of, block, last) = (Some(table), 0, Vec::new());
                counts.insert(table.name().to_owned(), 0);
            }
            (RECORDS, Some(table)) => {
                block += 1;
                let Some(records) = records(&frame).filter(|records| !records.is_empty()) else {
                    return Err(reader.damaged(frame.at, "its records are not as many as it says"));
                };
                for (key, value) in &records {
                    if key.len() != table.width() || *key <= last.as_slice() {
                        return Err(reader.damaged(frame.at, "its keys are not in order"));
                    }
                    last.clear();
                    last.extend_from_slice(key);
                    if let Err(corrupt) = table.check(key, value) {
                        broken.push((corrupt.record, corrupt.why));
                    }
                }
                if broken.len() > DAMAGED {
                    return Err(BackupError::Ruined);
                }
                *counts.entry(table.name().to_owned()).or_default() += records.len() as u64;
                keep.records(table, &records)?;
            }
            (TRAILER, Some(_)) if tables.len() == 0 => {
                reader.place = "its trailer".to_owned();
                break reader.json(&frame)?;
            }
            _ => return Err(reader.damaged(frame.at, "it is not what follows here")),
        }
    };
    if let Some((table, count)) = counts.iter().find(|(table, count)| trailer.records.get(*table) != Some(count)) {
        let said = trailer.records.get(table).map_or("nothing of it".to_owned(), u64::to_string);
        return Err(BackupError::Damaged(format!("table `{table}` has {count} records, its trailer says {said}")));
    }
    let digest = reader.sum.clone().finalize();
    reader.place = "its digest".to_owned();
    if reader.take(digest.len())? != digest.as_slice() {
        return Err(BackupError::Damaged("its digest is not that of its bytes: it is not what was written".to_owned()));
    }
    let bytes = reader.at;
    if reader.from.read(&mut [0]).map_err(BackupError::Read)? > 0 {
        return Err(BackupError::Damaged(format!("bytes follow its end, which is at {bytes}")));
    }
    let known: BTreeSet<&String> = trailer.damaged.iter().collect();
    if let Some((record, why)) = broken.iter().find(|(record, _)| !known.contains(record)) {
        return Err(BackupError::Damaged(format!("record {record}: {why}")));
    }
    Ok(Summary { header, records: counts, bytes, sha256: tables::hex(&digest), damaged: trailer.damaged })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup whose frames are whole, with this in the place of the records of `threads`.
    fn framed(rows: &[(Vec<u8>, Vec<u8>)], trailer: impl FnOnce(&mut Trailer)) -> Vec<u8> {
        let mut file = Vec::new();
        let to = |piece: Bytes| {
            file.extend_from_slice(&piece);
            Ok(())
        };
        let mut writer = Writer { to, sum: Sha256::new(), bytes: 0 };
        writer.put([&MAGIC[..], &[VERSION]].concat()).unwrap();
        let tables: Vec<_> = tables::TABLES.iter().map(|table| table.name().to_owned()).collect();
        let mut said =
            Trailer { records: tables.iter().map(|table| (table.clone(), 0)).collect(), damaged: Vec::new() };
        said.records.insert("threads".into(), rows.len() as u64);
        let header = Header { raddle: "0".into(), at: UnixMs(1), layout: LAYOUT, epoch: 1, tables: tables.clone() };
        writer.json(HEADER, &header).unwrap();
        for table in tables {
            writer.frame(TABLE, 0, table.as_bytes()).unwrap();
            if table == "threads" && !rows.is_empty() {
                let mut payload = Vec::new();
                for (key, value) in rows {
                    payload.extend_from_slice(&(key.len() as u32).to_le_bytes());
                    payload.extend_from_slice(&(value.len() as u32).to_le_bytes());
                    payload.extend_from_slice(key);
                    payload.extend_from_slice(value);
                }
                writer.frame(RECORDS, rows.len(), &payload).unwrap();
            }
        }
        trailer(&mut said);
        writer.json(TRAILER, &said).unwrap();
        let digest = writer.sum.clone().finalize();
        writer.put(digest.to_vec()).unwrap();
        file
    }

    fn row(n: u8) -> (Vec<u8>, Vec<u8>) {
        let key = [&b"acme"[..], &[0; 28], &[n; 16]].concat();
        let value = tables::named("threads").unwrap().seal(&key, (1, 0), b"a row").unwrap();
        (key, value)
    }

    fn refusal(rows: &[(Vec<u8>, Vec<u8>)], trailer: impl FnOnce(&mut Trailer)) -> String {
        verify(framed(rows, trailer).as_slice()).unwrap_err().to_string()
    }

    #[test]
    fn every_record_is_what_was_written_under_its_key_or_was_known_to_be_damaged() {
        let rows = [row(1), row(2), row(3)];
        assert_eq!(verify(framed(&rows, |_| {}).as_slice()).unwrap().records["threads"], 3);
        let mut broken = rows.clone();
        broken[1].1[9] ^= 1;
        let why = refusal(&broken, |_| {});
        let record = "threads acme/thr_02020202-0202-0202-0202-020202020202";
        assert_eq!(why, format!("the backup is damaged: record {record}: the checksum does not match"));
        // One that stands under the key of another one.
        let mut moved = rows.clone();
        moved[0].1 = row(2).1;
        assert!(refusal(&moved, |_| {}).contains("record threads acme/thr_01010101"));
        // One that the store had damaged already does not keep the others from being restored.
        let file = framed(&broken, |trailer| trailer.damaged.push(record.to_owned()));
        assert_eq!(verify(file.as_slice()).unwrap().damaged, [record]);
    }

    #[test]
    fn a_record_is_there_once_and_in_its_place_and_none_is_missing() {
        assert!(refusal(&[row(1), row(1)], |_| {}).contains("of table `threads`, bytes"));
        assert!(refusal(&[row(2), row(1)], |_| {}).contains("its keys are not in order"));
        assert!(refusal(&[(vec![7; 47], row(1).1)], |_| {}).contains("its keys are not in order"));
        let lost = refusal(&[row(1)], |trailer| trailer.records.values_mut().for_each(|count| *count *= 2));
        assert_eq!(lost, "the backup is damaged: table `threads` has 1 records, its trailer says 2");
        let unknown = refusal(&[row(1)], |trailer| trailer.records.retain(|table, _| table != "log"));
        assert_eq!(unknown, "the backup is damaged: table `log` has 0 records, its trailer says nothing of it");
    }
}
