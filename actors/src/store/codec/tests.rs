use std::{fs, path::PathBuf};

use proptest::prelude::*;
use raddle_domain::{
    id::{TenantId, ThreadId, ThreadKey},
    ports::{PartKind, PartName},
};

use super::*;

pub(super) fn thread() -> ThreadKey {
    ThreadKey { tenant: "acme".parse().unwrap(), thread: ThreadId::from_bytes([7; 16]) }
}

fn events() -> Vec<StoredEvent> {
    let event = |name: &str, json: &str| StoredEvent { name: name.to_owned().into(), json: json.to_owned().into() };
    vec![
        event("turn.started", r#"{"seq":41,"prev":40,"event":"turn.started"}"#),
        event("item.delta", r#"{"seq":42,"prev":41,"event":"item.delta"}"#),
    ]
}

fn stored_head() -> Head {
    let head = RowHead {
        last_seq: 42,
        snapshot_seq: 40,
        fence: 3,
        listed_at: UnixMs(1_795_000_000_007),
        owes_since: Some(UnixMs(1_795_000_000_001)),
        wake_at: None,
        archived: true,
        queued: 5,
        kind: LogKind::Thread,
    };
    let recent_at = Some(UnixMs(1_794_000_000_000));
    Head { head, recent_at, last_turn: 33, base: None, inherited: 0, bytes: 77_000 }
}

/// What a build left behind that counted neither prompts nor bytes.
fn uncounted(head: Head) -> Head {
    Head { head: RowHead { queued: 0, ..head.head }, bytes: 0, ..head }
}

fn head_of(kind: LogKind) -> Head {
    let stored = stored_head();
    Head { head: RowHead { kind, archived: false, ..stored.head }, recent_at: None, last_turn: 0, ..stored }
}

fn forked_head() -> Head {
    Head { base: Some((ThreadId::from_bytes([8; 16]), 20)), inherited: 30, ..stored_head() }
}

fn turn() -> TurnRecord {
    let turn = SettledTurn {
        id: TurnId::from_bytes([9; 16]),
        started_seq: 41,
        turn: b"{\"turn\":1}".into(),
        items: vec![42, 43],
        context_seq: 17,
        reverted: Some(50),
    };
    TurnRecord { turn, previous: 33, ended: UnixMs(1_795_000_000_009) }
}

fn part() -> PartKey {
    PartKey::new(thread(), PartKind::Task, PartName::number(41))
}

fn receipt() -> Receipt {
    Receipt { key: [1; 32], request: [2; 32], reply: b"{\"ok\":true}".into(), expires_at: UnixMs(99) }
}

fn chunk_places(key: &LogKey, bytes: &[u8]) -> Result<Vec<Packed>, Corrupt> {
    let sealed = open_chunk(key, bytes)?;
    let raw = sealed.raw()?;
    sealed.places(&raw).map(|place| place.map(|place| place.packed())).collect()
}

fn chunk_events(key: &LogKey, bytes: &[u8]) -> Result<Vec<StoredEvent>, Corrupt> {
    let event = |place| match place {
        Packed::Event(event) => event,
        Packed::Run(run) => run.event,
    };
    Ok(chunk_places(key, bytes)?.into_iter().map(event).collect())
}

fn places() -> Vec<Packed> {
    let [event, joined] = <[StoredEvent; 2]>::try_from(events()).unwrap();
    let run = Run { first: 42, lengths: vec![3, 0, 7], event: joined };
    vec![Packed::Event(event.clone()), Packed::Run(run), Packed::Event(event)]
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What was committed under this name. `RADDLE_BLESS=1` makes a missing file of what today's encoder writes.
pub(super) fn committed(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = golden(name);
    if !path.exists() && std::env::var_os("RADDLE_BLESS").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    fs::read(&path).unwrap()
}

/// What today's encoder writes must be what was committed under this name.
pub(super) fn same_as_golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let committed = committed(name, bytes);
    assert!(committed == bytes, "{name}: the encoder no longer writes what this schema is");
    committed
}

#[test]
fn records_are_written_and_read_as_committed() {
    let key = LogKey::new(thread(), 41);
    let bytes = same_as_golden("log-f1-s1.bin", &seal_chunk(&key, &events()));
    assert_eq!(chunk_events(&key, &bytes).unwrap(), events());

    let key = RowKey::new(thread());
    for (name, head) in [
        ("threads-f1-s3.bin", stored_head()),
        ("threads-f1-s3-fork.bin", forked_head()),
        ("threads-f1-s3-job.bin", head_of(LogKind::Job)),
        ("threads-f1-s3-schedule.bin", head_of(LogKind::Schedule)),
        ("threads-f1-s3-run.bin", head_of(LogKind::Run)),
    ] {
        let bytes = same_as_golden(name, &seal_row(&key, &head, b"{\"view\":1}", b"{\"snap\":2}"));
        let (row, found) = read_row(&key, &bytes).unwrap();
        assert_eq!((found, &*row.view, &*row.snapshot), (head, &b"{\"view\":1}"[..], &b"{\"snap\":2}"[..]));
        assert_eq!(read_head(&key, &bytes).unwrap(), head);
    }

    let key = TurnKey::new(thread(), 41);
    let bytes = same_as_golden("turns-f1-s2.bin", &seal_turn(&key, &turn()));
    assert_eq!(read_turn(&key, &bytes).unwrap(), turn());

    let key = TurnIdKey::new(thread(), turn().turn.id);
    let bytes = same_as_golden("turn_ids-f1-s1.bin", &seal_turn_id(&key, 41));
    assert_eq!(read_turn_id(&key, &bytes).unwrap(), 41);

    let key = ReceiptKey::new(thread().tenant, &receipt().key);
    let bytes = same_as_golden("receipts-f1-s1.bin", &seal_receipt(&key, &receipt()));
    assert_eq!(read_receipt(&key, &receipt().key, &bytes).unwrap(), receipt());

    let key = super::super::keys::OwingKey::new(thread(), UnixMs(5));
    let bytes = same_as_golden("owing-f1-s1.bin", &seal_mark(&key));
    check_mark(&key, &bytes.try_into().unwrap()).unwrap();

    let key = super::super::keys::JobOwingKey::new(thread(), UnixMs(5));
    let bytes = same_as_golden("job_owing-f1-s1.bin", &seal_mark(&key));
    check_mark(&key, &bytes.try_into().unwrap()).unwrap();

    let key = super::super::keys::JobTimerKey::new(thread(), UnixMs(5));
    let bytes = same_as_golden("job_timers-f1-s1.bin", &seal_mark(&key));
    check_mark(&key, &bytes.try_into().unwrap()).unwrap();

    let bytes = same_as_golden("meta-epoch-f1-s1.bin", &seal_epoch(12));
    assert_eq!(read_epoch(&bytes).unwrap(), 12);

    // Packed records are read for ever; how well they are packed is not promised.
    let key = LogKey::new(thread(), 41);
    let bytes = committed("log-f1-s1-packed.bin", &seal_places(&key, &places()));
    assert_eq!(chunk_places(&key, &bytes).unwrap(), places());

    let key = UnpackedKey::new(UnixMs(5), thread(), 41);
    let bytes = same_as_golden("unpacked-f1-s1.bin", &seal_unpacked(&key, 43));
    assert_eq!(read_unpacked(&key, &bytes).unwrap(), 43);

    let key = ForkKey::new(thread(), ThreadId::from_bytes([8; 16]));
    let bytes = same_as_golden("forks-f1-s1.bin", &seal_fork(&key, 12));
    assert_eq!(read_fork(&key, &bytes).unwrap(), 12);

    let bytes = same_as_golden("parts-f1-s1.bin", &seal_part(&part(), b"{\"part\":1}"));
    assert_eq!(read_part(&part(), &bytes).unwrap(), b"{\"part\":1}");
}

#[test]
fn records_of_older_schemas_are_read_as_what_they_meant() {
    let key = RowKey::new(thread());
    let (row, head) = read_row(&key, &committed("threads-f1-s1.bin", b"")).unwrap();
    let stored = (&b"{\"view\":1}"[..], &b"{\"snap\":2}"[..]);
    assert_eq!((head, (&*row.view, &*row.snapshot)), (uncounted(stored_head()), stored));
    for (name, stored) in [
        ("threads-f1-s2.bin", stored_head()),
        ("threads-f1-s2-fork.bin", forked_head()),
        ("threads-f1-s2-job.bin", head_of(LogKind::Job)),
        ("threads-f1-s2-schedule.bin", head_of(LogKind::Schedule)),
        ("threads-f1-s2-run.bin", head_of(LogKind::Run)),
    ] {
        assert_eq!(read_head(&key, &committed(name, b"")).unwrap(), uncounted(stored), "{name}");
    }

    let key = TurnKey::new(thread(), 41);
    let old = SettledTurn { context_seq: 0, reverted: None, ..turn().turn };
    let expected = TurnRecord { turn: old, ended: UnixMs(0), ..turn() };
    assert_eq!(read_turn(&key, &committed("turns-f1-s1.bin", b"")).unwrap(), expected);
}

#[test]
fn a_packed_chunk_covers_the_seqs_of_what_was_joined() {
    let key = LogKey::new(thread(), 41);
    let bytes = seal_places(&key, &places());
    let sealed = open_chunk(&key, &bytes).unwrap();
    assert!(sealed.is_packed());
    assert_eq!((sealed.first(), sealed.last()), (41, 45));
    assert_eq!(sealed.size(), places().iter().map(place_size).sum::<usize>());
    let raw = sealed.raw().unwrap();
    let shown: Vec<_> =
        sealed.places(&raw).map(|place| place.map(|place| (place.first, place.last())).unwrap()).collect();
    assert_eq!(shown, [(41, 41), (42, 44), (45, 45)]);
}

#[test]
fn a_chunk_that_is_moved_is_cut_where_it_has_to_be() {
    let (from, to) = (LogKey::new(thread(), 41), LogKey::new(ThreadKey { tenant: TenantId::DEFAULT, ..thread() }, 41));
    let plain = seal_chunk(&from, &events());
    assert_eq!(chunk_events(&to, &move_chunk(&from, &to, &plain, 42)).unwrap(), events());
    assert_eq!(chunk_events(&to, &move_chunk(&from, &to, &plain, 41)).unwrap(), events()[..1]);
    let packed = seal_places(&from, &places());
    assert_eq!(chunk_places(&to, &move_chunk(&from, &to, &packed, 45)).unwrap(), places());
    assert_eq!(chunk_places(&to, &move_chunk(&from, &to, &packed, 44)).unwrap(), places()[..2]);
    // Nobody forks within a turn; were it so, nothing wrong would be read.
    assert!(chunk_places(&to, &move_chunk(&from, &to, &packed, 43)).is_err());
    for mut damaged in [plain, packed] {
        damaged[20] ^= 1;
        assert!(chunk_events(&to, &move_chunk(&from, &to, &damaged, 41)).is_err());
    }
}

#[test]
fn what_says_that_it_unpacks_to_more_than_it_can_is_not_unpacked() {
    let key = LogKey::new(thread(), 41);
    for size in [PACKED_BYTES + 1, 100_000, u32::MAX as usize] {
        let bytes = seal_as(&key, PACKED, 0, |to| {
            to.extend_from_slice(&1u32.to_le_bytes());
            to.extend_from_slice(&(size as u32).to_le_bytes());
            to.extend_from_slice(&[0; 64]);
        });
        let sealed = open_chunk(&key, &bytes).unwrap();
        assert!(sealed.raw().unwrap_err().why.contains("too large"));
    }
}

#[test]
fn an_event_larger_than_a_reader_would_unpack_stays_as_it_is() {
    let key = LogKey::new(thread(), 41);
    let large = StoredEvent { name: "item.completed".into(), json: vec![b'x'; PACKED_BYTES].into() };
    let bytes = seal_places(&key, &[Packed::Event(large.clone())]);
    assert!(!open_chunk(&key, &bytes).unwrap().is_packed());
    assert_eq!(chunk_events(&key, &bytes).unwrap(), [large]);
}

#[test]
fn a_record_read_under_another_key_is_corrupt() {
    let here = LogKey::new(thread(), 41);
    let bytes = seal_chunk(&here, &events());
    let other = ThreadKey { tenant: TenantId::DEFAULT, ..thread() };
    for key in [LogKey::new(thread(), 42), LogKey::new(other, 41)] {
        let corrupt = open_chunk(&key, &bytes).err().unwrap();
        assert_eq!(corrupt.why, "the checksum does not match");
        assert!(corrupt.record.starts_with("log ") && corrupt.record.contains("/thr_07070707"), "{}", corrupt.record);
    }
    // A turn and a chunk may have the same key bytes: the table's name tells them apart.
    assert!(read_turn(&TurnKey::new(thread(), 41), &bytes).is_err());

    let bytes = seal_part(&part(), b"{}");
    for key in [
        PartKey::new(thread(), PartKind::Entry, PartName::number(41)),
        PartKey::new(thread(), PartKind::Task, PartName::number(42)),
        PartKey::new(other, PartKind::Task, PartName::number(41)),
    ] {
        assert_eq!(read_part(&key, &bytes).unwrap_err(), key.corrupt("the checksum does not match"));
    }
}

#[test]
fn a_record_of_a_later_build_says_so() {
    let key = RowKey::new(thread());
    let mut bytes = seal_row(&key, &stored_head(), b"", b"");
    bytes[1] = 9;
    let sum = checksum(&key, &bytes[..4], &bytes[HEAD..]);
    bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(read_head(&key, &bytes).unwrap_err().why, "written by schema 9, this build reads up to 3");
    bytes[0] = 2;
    assert_eq!(read_head(&key, &bytes).unwrap_err().why, "written in format 2, this build reads up to 1");
}

/// Reads `bytes` as every kind of record; with a right checksum when asked, so that the bodies are reached.
fn read_all(mut bytes: Vec<u8>, resealed: bool) {
    macro_rules! with {
        ($key:expr, $read:expr) => {{
            let key = $key;
            for (schema, flags) in [(1, 0), (2, 0), (1, PACKED)] {
                if resealed && bytes.len() >= HEAD {
                    bytes[..4].copy_from_slice(&[1, schema, flags, 0]);
                    let sum = checksum(&key, &bytes[..4], &bytes[HEAD..]);
                    bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());
                }
                #[allow(clippy::redundant_closure_call)]
                let _ = $read(&key, &bytes[..]);
            }
        }};
    }
    with!(LogKey::new(thread(), 41), chunk_events);
    with!(LogKey::new(thread(), u64::MAX), chunk_events);
    with!(RowKey::new(thread()), read_row);
    with!(RowKey::new(thread()), read_head);
    with!(TurnKey::new(thread(), 41), read_turn);
    with!(TurnIdKey::new(thread(), turn().turn.id), read_turn_id);
    with!(ReceiptKey::new(thread().tenant, &[1; 32]), |key: &ReceiptKey, bytes: &[u8]| read_receipt(
        key, &[1; 32], bytes
    ));
    with!(ForkKey::new(thread(), ThreadId::from_bytes([8; 16])), read_fork);
    with!(UnpackedKey::new(UnixMs(5), thread(), 41), read_unpacked);
    with!(part(), read_part);
    with!(MetaKey::epoch(), |_: &MetaKey, bytes: &[u8]| read_epoch(bytes));
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), resealed: bool) {
        read_all(bytes, resealed);
    }

    #[test]
    fn no_single_flipped_bit_goes_unnoticed(bit in 0usize..8 * 160) {
        let key = LogKey::new(thread(), 41);
        let mut bytes = seal_chunk(&key, &events());
        let bit = bit % (8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(open_chunk(&key, &bytes).is_err());
    }

    #[test]
    fn what_is_cut_or_changed_under_a_right_checksum_is_read_in_bounds(
        cut in 0usize..200, at in 0usize..200, to: u8,
    ) {
        for mut bytes in [
            seal_chunk(&LogKey::new(thread(), 41), &events()),
            seal_places(&LogKey::new(thread(), 41), &places()),
            seal_row(&RowKey::new(thread()), &forked_head(), b"{}", b"{}"),
            seal_turn(&TurnKey::new(thread(), 41), &turn()),
            seal_receipt(&ReceiptKey::new(thread().tenant, &[1; 32]), &receipt()),
            seal_part(&part(), b"{}"),
        ] {
            let length = bytes.len();
            bytes[at % length] = to;
            bytes.truncate(length - cut % length);
            read_all(bytes, true);
        }
    }

    #[test]
    fn packed_chunks_read_back(
        texts in prop::collection::vec(
            ("[a-z.]{0,20}", prop::collection::vec(any::<u8>(), 0..50), prop::collection::vec(any::<u32>(), 0..4)),
            1..9,
        ),
    ) {
        let mut first = 5;
        let places: Vec<_> = texts.into_iter().map(|(name, json, lengths)| {
            let event = StoredEvent { name: name.into(), json: json.into() };
            let place = if lengths.is_empty() { Packed::Event(event) } else { Packed::Run(Run { first, lengths, event }) };
            first += super::super::packing::seqs(&place);
            place
        }).collect();
        let key = LogKey::new(thread(), 5);
        let bytes = seal_places(&key, &places);
        prop_assert_eq!(open_chunk(&key, &bytes).unwrap().last(), first - 1);
        prop_assert_eq!(chunk_places(&key, &bytes).unwrap(), places);
    }

    #[test]
    fn chunks_read_back(texts in prop::collection::vec(("[a-z.]{0,20}", prop::collection::vec(any::<u8>(), 0..50)), 1..9)) {
        let events: Vec<_> = texts.into_iter().map(|(name, json)| StoredEvent { name: name.into(), json: json.into() }).collect();
        let key = LogKey::new(thread(), 5);
        let bytes = seal_chunk(&key, &events);
        prop_assert_eq!(open_chunk(&key, &bytes).unwrap().last(), 4 + events.len() as u64);
        prop_assert_eq!(chunk_events(&key, &bytes).unwrap(), events);
    }
}
