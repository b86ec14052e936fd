//! The records of a tenant: its feed, where records and documents stand, what was spent.

use raddle_domain::{
    id::{Seq, ThreadId},
    ports::{Corrupt, Fed, Spent},
    price::Totals,
};
use serde::{Deserialize, Serialize};

use super::{
    super::keys::{
        MetaKey, StoreKey,
        tenant::{DocumentKey, FeedKey, RecordIdKey, RecordKey, SpentKey},
    },
    Body, PACKED, Parsed, number, read_json, seal, seal_as, seal_json, unseal,
};

pub(crate) fn seal_feed(key: &FeedKey, thread: ThreadId, first: Seq, last: Seq) -> Vec<u8> {
    seal(key, 32, |to| {
        to.extend_from_slice(thread.as_bytes());
        to.extend_from_slice(&first.to_le_bytes());
        to.extend_from_slice(&last.to_le_bytes());
    })
}

/// The one append of a row.
pub(crate) fn read_feed(key: &FeedKey, bytes: &[u8]) -> Result<Fed, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let mut read = || -> Parsed<_> {
        if body.flags != 0 {
            return Err("it holds several appends");
        }
        let thread = ThreadId::from_bytes(body.array()?);
        let fed = Fed { position: key.position(), thread, first: body.u64()?, last: body.u64()? };
        body.end()?;
        if fed.first == 0 || fed.last < fed.first {
            return Err("an append that holds no place in a log");
        }
        Ok(fed)
    };
    read().map_err(|why| key.corrupt(why))
}

/// Appends at positions that follow each other, as one row under the key of the last: the threads that they are of,
/// then for each its thread's number, its first seq, and how many more there are.
pub(crate) fn seal_feed_run(key: &FeedKey, run: &[Fed]) -> Vec<u8> {
    let mut threads: Vec<ThreadId> = run.iter().map(|fed| fed.thread).collect();
    threads.sort_unstable();
    threads.dedup();
    seal_as(key, PACKED, 8 + 16 * threads.len() + 6 * run.len(), |to| {
        to.extend_from_slice(&(run.len() as u32).to_le_bytes());
        to.extend_from_slice(&(threads.len() as u32).to_le_bytes());
        threads.iter().for_each(|thread| to.extend_from_slice(thread.as_bytes()));
        for fed in run {
            // Every thread is among them.
            let thread = threads.partition_point(|known| *known < fed.thread);
            for number in [thread as u64, fed.first, fed.last - fed.first] {
                put_small(to, number);
            }
        }
    })
}

/// The appends that a row holds, in order; the last is at the position of its key.
pub(crate) fn read_feed_run(key: &FeedKey, bytes: &[u8]) -> Result<Vec<Fed>, Corrupt> {
    let mut body = unseal(key, bytes)?;
    if body.flags & PACKED == 0 {
        return Ok(vec![read_feed(key, bytes)?]);
    }
    let mut read = || -> Parsed<_> {
        let (count, threads) = (u64::from(body.u32()?), body.u32()? as usize);
        let (threads, _) = body.take(threads.checked_mul(16).ok_or("the record is cut off")?)?.as_chunks::<16>();
        let before = key.position().checked_sub(count).ok_or("it holds more than its place in a feed")?;
        let mut run = Vec::new();
        for position in before + 1..=key.position() {
            let thread = usize::try_from(small(&mut body)?).ok().and_then(|number| threads.get(number));
            let thread = ThreadId::from_bytes(*thread.ok_or("an append of no thread")?);
            let first = small(&mut body)?;
            let last = first.checked_add(small(&mut body)?).filter(|_| first > 0);
            run.push(Fed { position, thread, first, last: last.ok_or("an append that holds no place in a log")? });
        }
        body.end()?;
        if run.is_empty() { Err("it holds nothing") } else { Ok(run) }
    };
    read().map_err(|why| key.corrupt(why))
}

/// A number in as few bytes as it needs, seven bits in each, lowest first; the last has the eighth clear.
fn put_small(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn small(body: &mut Body<'_>) -> Parsed<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = body.array()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number without an end")
}

pub(crate) fn seal_record_id(key: &RecordIdKey, thread: ThreadId) -> Vec<u8> {
    seal(key, 16, |to| to.extend_from_slice(thread.as_bytes()))
}

pub(crate) fn read_record_id(key: &RecordIdKey, bytes: &[u8]) -> Result<ThreadId, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let thread = body.array().and_then(|id| body.end().map(|()| ThreadId::from_bytes(id)));
    thread.map_err(|why| key.corrupt(why))
}

pub(crate) fn seal_record(key: &RecordKey, seq: Seq, open: bool) -> Vec<u8> {
    seal(key, 9, |to| {
        to.extend_from_slice(&seq.to_le_bytes());
        to.push(u8::from(open));
    })
}

/// The seq of the event that holds it, and whether somebody has to act on it.
pub(crate) fn read_record(key: &RecordKey, bytes: &[u8]) -> Result<(Seq, bool), Corrupt> {
    let mut body = unseal(key, bytes)?;
    let mut read = || -> Parsed<_> {
        let seq = body.u64()?;
        let open = match body.array()? {
            [0] => false,
            [1] => true,
            _ => return Err("neither open nor closed"),
        };
        body.end()?;
        Ok((seq, open))
    };
    read().map_err(|why| key.corrupt(why))
}

/// A row of what was spent, as JSON: it is written once in a turn, and grows.
#[derive(Serialize, Deserialize)]
struct Row {
    engine: String,
    model: String,
    totals: Totals,
}

pub(crate) fn seal_spent(key: &SpentKey, rows: &[Spent]) -> Vec<u8> {
    let row = |row: &Spent| Row { engine: row.engine.clone(), model: row.model.clone(), totals: row.totals };
    // Names and numbers: nothing that JSON cannot say.
    let json = serde_json::to_vec(&rows.iter().map(row).collect::<Vec<_>>()).expect("rows are JSON");
    seal_json(key, &json)
}

pub(crate) fn read_spent(key: &SpentKey, bytes: &[u8]) -> Result<Vec<Spent>, Corrupt> {
    let rows: Vec<Row> = serde_json::from_slice(read_json(key, bytes)?)
        .map_err(|why| key.corrupt(format!("the rows cannot be read: {why}")))?;
    if rows.is_empty() {
        return Err(key.corrupt("nothing was spent"));
    }
    let day = key.day();
    Ok(rows.into_iter().map(|Row { engine, model, totals }| Spent { day, engine, model, totals }).collect())
}

pub(crate) fn seal_document(key: &DocumentKey, json: &[u8]) -> Vec<u8> {
    seal_json(key, json)
}

pub(crate) fn read_document(key: &DocumentKey, bytes: &[u8]) -> Result<Vec<u8>, Corrupt> {
    Ok(read_json(key, bytes)?.to_vec())
}

/// The layout, which says which tables there are.
pub(crate) fn seal_layout(layout: u64) -> Vec<u8> {
    seal(&MetaKey::layout(), 8, |to| to.extend_from_slice(&layout.to_le_bytes()))
}

pub(crate) fn read_layout(bytes: &[u8]) -> Result<u64, Corrupt> {
    number(&MetaKey::layout(), bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raddle_domain::{
        id::ThreadKey,
        ports::{DocumentKind, RecordKind},
    };
    use uuid::Uuid;

    use super::{
        super::{
            HEAD, checksum,
            tests::{same_as_golden, thread},
        },
        *,
    };

    fn record() -> RecordKey {
        RecordKey::new(thread(), RecordKind::Approval, Uuid::from_u128(9))
    }

    fn spent() -> Vec<Spent> {
        let totals = Totals { turns: 1, model_calls: 2, input_tokens: 30, pico_usd: 4_000, ..Totals::default() };
        let row = |model: &str| Spent { day: 20_776, engine: "openai".into(), model: model.into(), totals };
        vec![row("a"), row("b")]
    }

    #[test]
    fn records_of_a_tenant_are_written_and_read_as_committed() {
        let key = FeedKey::new(thread().tenant, 7);
        let bytes = same_as_golden("feed-f1-s1.bin", &seal_feed(&key, thread().thread, 41, 42));
        let fed = Fed { position: 7, thread: thread().thread, first: 41, last: 42 };
        assert_eq!(read_feed(&key, &bytes).unwrap(), fed);

        let key = FeedKey::new(thread().tenant, 300);
        let bytes = same_as_golden("feed-f1-s1-run.bin", &seal_feed_run(&key, &run()));
        assert_eq!(read_feed_run(&key, &bytes).unwrap(), run());

        let [key, _] = record().entries();
        let bytes = same_as_golden("record_ids-f1-s1.bin", &seal_record_id(&key, thread().thread));
        assert_eq!(read_record_id(&key, &bytes).unwrap(), thread().thread);

        let key = record();
        let bytes = same_as_golden("records-f1-s1.bin", &seal_record(&key, 42, true));
        assert_eq!(read_record(&key, &bytes).unwrap(), (42, true));

        let key = SpentKey::new(thread(), 20_776);
        let bytes = same_as_golden("spent-f1-s1.bin", &seal_spent(&key, &spent()));
        assert_eq!(read_spent(&key, &bytes).unwrap(), spent());

        let key = DocumentKey::new(thread().tenant, DocumentKind::RoutingRule, &[5; 32]);
        let bytes = same_as_golden("documents-f1-s1.bin", &seal_document(&key, b"{\"rule\":1}"));
        assert_eq!(read_document(&key, &bytes).unwrap(), b"{\"rule\":1}");

        let bytes = same_as_golden("meta-layout-f1-s1.bin", &seal_layout(2));
        assert_eq!(read_layout(&bytes).unwrap(), 2);
    }

    /// Appends of three threads that end at the position 300.
    fn run() -> Vec<Fed> {
        let append = |position, n, first, last| Fed { position, thread: ThreadId::from_bytes([n; 16]), first, last };
        vec![
            append(297, 9, 1, 3),
            append(298, 7, 1_000_000, 1_000_000),
            append(299, 9, 4, 204),
            append(300, 8, 1, Seq::MAX),
        ]
    }

    #[test]
    fn a_row_of_the_feed_holds_one_append_or_several() {
        let key = FeedKey::new(thread().tenant, 7);
        let one = seal_feed(&key, thread().thread, 41, 42);
        assert_eq!(read_feed_run(&key, &one).unwrap(), [read_feed(&key, &one).unwrap()]);
        let key = FeedKey::new(thread().tenant, 300);
        let several = seal_feed_run(&key, &run());
        assert!(read_feed(&key, &several).is_err());
        assert!(read_feed_run(&FeedKey::new(thread().tenant, 3), &several).is_err());
        // A row may not reach in front of the first position.
        let early = FeedKey::new(thread().tenant, 3);
        assert!(read_feed_run(&early, &seal_feed_run(&early, &run())).is_err());
        assert!(read_feed_run(&early, &seal_feed_run(&early, &[])).is_err());
    }

    #[test]
    fn an_append_without_a_place_in_a_log_is_corrupt() {
        let key = FeedKey::new(thread().tenant, 7);
        for (first, last) in [(0, 3), (4, 3)] {
            assert!(read_feed(&key, &seal_feed(&key, thread().thread, first, last)).is_err());
        }
    }

    /// Reads `bytes` as every kind of record; with a right checksum when asked, so that the bodies are reached.
    fn read_all(mut bytes: Vec<u8>, resealed: bool) {
        macro_rules! with {
            ($key:expr, $read:expr) => {{
                let key = $key;
                for flags in [0, PACKED] {
                    if resealed && bytes.len() >= HEAD {
                        bytes[..4].copy_from_slice(&[1, 1, flags, 0]);
                        let sum = checksum(&key, &bytes[..4], &bytes[HEAD..]);
                        bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());
                    }
                    let _ = $read(&key, &bytes[..]);
                }
            }};
        }
        with!(FeedKey::new(thread().tenant, 7), read_feed);
        with!(FeedKey::new(thread().tenant, 300), read_feed_run);
        with!(record().entries()[0], read_record_id);
        with!(record(), read_record);
        with!(SpentKey::new(thread(), 3), read_spent);
        with!(DocumentKey::new(thread().tenant, DocumentKind::PolicyRule, &[5; 32]), read_document);
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..99), resealed: bool) {
            read_all(bytes, resealed);
        }

        #[test]
        fn what_is_cut_or_changed_under_a_right_checksum_is_read_in_bounds(
            cut in 0usize..300, at in 0usize..300, to: u8,
        ) {
            let key = SpentKey::new(thread(), 20_776);
            for mut bytes in [
                seal_feed(&FeedKey::new(thread().tenant, 7), thread().thread, 1, 2),
                seal_feed_run(&FeedKey::new(thread().tenant, 300), &run()),
                seal_record(&record(), 5, false),
                seal_spent(&key, &spent()),
            ] {
                let length = bytes.len();
                bytes[at % length] = to;
                bytes.truncate(length - cut % length);
                read_all(bytes, true);
            }
        }
    }

    #[test]
    fn a_record_read_under_the_name_of_another_thread_or_tenant_is_corrupt() {
        let other = ThreadKey { thread: ThreadId::from_bytes([8; 16]), ..thread() };
        let bytes = seal_record(&record(), 1, true);
        assert!(read_record(&RecordKey::new(other, RecordKind::Approval, Uuid::from_u128(9)), &bytes).is_err());
        let bytes = seal_feed(&FeedKey::new(thread().tenant, 1), thread().thread, 1, 1);
        assert!(read_feed(&FeedKey::new("other".parse().unwrap(), 1), &bytes).is_err());
        assert!(read_feed(&FeedKey::new(thread().tenant, 2), &bytes).is_err());
    }
}
