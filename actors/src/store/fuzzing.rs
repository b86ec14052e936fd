//! What must hold of every byte that the store reads. Each function panics where it does not hold: for the targets in
//! `fuzz/`, and for tests with random and with damaged input.

use raddle_domain::{
    id::{TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Corrupt, DocumentKind, PartKind, PartName, RecordKind},
    time::UnixMs,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    backup, codec,
    export::Intake,
    keys::{
        ForkKey, LogKey, PartKey, ReceiptKey, RowKey, TurnIdKey, TurnKey, UnpackedKey,
        tenant::{DocumentKey, FeedKey, RecordKey, SpentKey},
    },
    rename, tables,
};

fn thread() -> ThreadKey {
    ThreadKey { tenant: "acme".parse().expect("a name"), thread: ThreadId::from_bytes([7; 16]) }
}

/// A record of any table: the first byte chooses it, the next two are its schema and flags, the rest its body, which
/// is read under a right checksum. Read without the first byte it is what a disk may hold.
pub fn record(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    let [schema, flags, body @ ..] = bytes else { return };
    macro_rules! read {
        ($($at:literal: $key:expr, $read:expr;)*) => {
            match which % 11 {
                $($at => {
                    let key = $key;
                    let _ = $read(&key, bytes);
                    let sealed = codec::seal_parts(&key, (*schema, *flags), body);
                    if $read(&key, &sealed).is_ok() {
                        let parts = codec::parts_of(&key, &sealed).expect("what is read was sealed");
                        assert_eq!(parts, (*schema, *flags, body));
                    }
                })*
                _ => {}
            }
        };
    }
    read! {
        0: LogKey::new(thread(), 41), chunk;
        1: LogKey::new(thread(), u64::MAX - 3), chunk;
        2: RowKey::new(thread()), row;
        3: TurnKey::new(thread(), 41), turn;
        4: ReceiptKey::new(thread().tenant, &[1; 32]), receipt;
        5: FeedKey::new(thread().tenant, 300), codec::tenant::read_feed_run;
        6: SpentKey::new(thread(), 20_776), codec::tenant::read_spent;
        7: RecordKey::new(thread(), RecordKind::Approval, Uuid::nil()), codec::tenant::read_record;
        8: PartKey::new(thread(), PartKind::Task, PartName::number(4)), codec::read_part;
        9: DocumentKey::new(thread().tenant, DocumentKind::Policy, &[5; 32]), codec::tenant::read_document;
        10: ForkKey::new(thread(), ThreadId::from_bytes([8; 16])), codec::read_fork;
    }
    let _ = codec::read_turn_id(&TurnIdKey::new(thread(), TurnId::from_bytes([9; 16])), bytes);
    let _ = codec::read_unpacked(&UnpackedKey::new(UnixMs(5), thread(), 41), bytes);
}

/// What is read of a chunk is written as what is read the same, packed or not; each of its deltas can be cut off.
fn chunk(key: &LogKey, bytes: &[u8]) -> Result<(), Corrupt> {
    let _ = codec::said_until(key, bytes, key.seq());
    let to = LogKey::new(ThreadKey { tenant: TenantId::DEFAULT, ..thread() }, key.seq());
    let _ = codec::move_chunk(key, &to, bytes, key.seq());
    let sealed = codec::open_chunk(key, bytes)?;
    let raw = sealed.raw()?;
    let mut places = Vec::new();
    for place in sealed.places(&raw) {
        let place = place?;
        for after in place.first.saturating_sub(1)..=place.last().min(place.first.saturating_add(3)) {
            let _ = place.rest(&sealed, after);
        }
        places.push(place.packed());
    }
    let again = codec::seal_places(key, &places);
    let sealed = codec::open_chunk(key, &again)?;
    let raw = sealed.raw()?;
    let read = sealed.places(&raw).map(|place| place.map(|place| place.packed())).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(read, places);
    Ok(())
}

fn row(key: &RowKey, bytes: &[u8]) -> Result<(), Corrupt> {
    let _ = codec::row_parts(key, bytes);
    let (row, head) = codec::read_row(key, bytes)?;
    assert_eq!(codec::read_head(key, bytes)?, head);
    let again = codec::seal_row(key, &head, &row.view, &row.snapshot);
    assert_eq!(codec::read_row(key, &again)?, (row, head));
    Ok(())
}

fn turn(key: &TurnKey, bytes: &[u8]) -> Result<(), Corrupt> {
    let _ = codec::turn_parts(key, bytes);
    let record = codec::read_turn(key, bytes)?;
    assert_eq!(codec::read_turn(key, &codec::seal_turn(key, &record))?, record);
    Ok(())
}

fn receipt(key: &ReceiptKey, bytes: &[u8]) -> Result<(), Corrupt> {
    let receipt = codec::read_receipt(key, &[1; 32], bytes)?;
    assert_eq!(codec::read_receipt(key, &[1; 32], &codec::seal_receipt(key, &receipt))?, receipt);
    Ok(())
}

/// A backup file; and one whose frames are these, with right checksums and a right digest.
pub fn backup(data: &[u8]) {
    let _ = backup::verify(data);
    let mut file = b"raddle backup\r\n\x01".to_vec();
    // The kind of each frame, its count, and its payload up to the next mark.
    for frame in data.split(|byte| *byte == 0xff) {
        let [kind, count, payload @ ..] = frame else { continue };
        let mut head = vec![*kind, 0, 0, 0];
        for number in [payload.len() as u32, u32::from(*count), crc32c::crc32c(payload)] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        let sum = crc32c::crc32c(&head);
        file.extend_from_slice(&head);
        file.extend_from_slice(&sum.to_le_bytes());
        file.extend_from_slice(payload);
    }
    let digest = Sha256::digest(&file);
    file.extend_from_slice(&digest);
    let _ = backup::verify(file.as_slice());
}

/// Lines as those of an export: what one brings is a record that can be kept.
pub fn export_lines(data: &[u8]) {
    let mut intake = Intake::new(thread().tenant);
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(raw) = intake.line(line) else { return };
        if let Some(raw) = raw {
            let table = tables::named(raw.table).expect("a table there is");
            table.check(&raw.key, &raw.value).expect("a record that was sealed");
            assert!(raw.key.windows(32).any(|part| part == thread().tenant.as_bytes()), "it is the tenant's");
        }
    }
    let _ = intake.end();
}

/// A text in which a thread's name is put for another: nothing is added, and doing it twice changes nothing more.
pub fn renaming(data: &[u8]) {
    let mut once = data.to_vec();
    rename::rename(&mut once, ThreadId::from_bytes([2; 16]));
    assert_eq!(once.len(), data.len());
    let mut twice = once.clone();
    rename::rename(&mut twice, ThreadId::from_bytes([2; 16]));
    assert_eq!(twice, once);
    let other = thread().tenant;
    let moved = rename::rename_tenant(data, TenantId::DEFAULT, other);
    assert_eq!(rename::rename_tenant(&moved, TenantId::DEFAULT, other), moved);
}

#[cfg(test)]
mod tests {
    include!("../../../fuzz/hold.rs");
    holds!(record backup export_lines renaming);
}
