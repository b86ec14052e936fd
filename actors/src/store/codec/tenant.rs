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
    Parsed, number, put_blob, seal, unseal,
};

pub(crate) fn seal_feed(key: &FeedKey, thread: ThreadId, first: Seq, last: Seq) -> Vec<u8> {
    seal(key, 32, |to| {
        to.extend_from_slice(thread.as_bytes());
        to.extend_from_slice(&first.to_le_bytes());
        to.extend_from_slice(&last.to_le_bytes());
    })
}

pub(crate) fn read_feed(key: &FeedKey, bytes: &[u8]) -> Result<Fed, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let mut read = || -> Parsed<_> {
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
    seal(key, 4 + json.len(), |to| put_blob(to, &json))
}

pub(crate) fn read_spent(key: &SpentKey, bytes: &[u8]) -> Result<Vec<Spent>, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let blob = body.blob().and_then(|blob| body.end().map(|()| blob));
    let rows: Vec<Row> = serde_json::from_slice(blob.map_err(|why| key.corrupt(why))?)
        .map_err(|why| key.corrupt(format!("the rows cannot be read: {why}")))?;
    if rows.is_empty() {
        return Err(key.corrupt("nothing was spent"));
    }
    let day = key.day();
    Ok(rows.into_iter().map(|Row { engine, model, totals }| Spent { day, engine, model, totals }).collect())
}

pub(crate) fn seal_document(key: &DocumentKey, json: &[u8]) -> Vec<u8> {
    seal(key, 4 + json.len(), |to| put_blob(to, json))
}

pub(crate) fn read_document(key: &DocumentKey, bytes: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let mut body = unseal(key, bytes)?;
    let json = body.blob().and_then(|json| body.end().map(|()| json.to_vec()));
    json.map_err(|why| key.corrupt(why))
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
                if resealed && bytes.len() >= HEAD {
                    bytes[..4].copy_from_slice(&[1, 1, 0, 0]);
                    let sum = checksum(&key, &bytes[..4], &bytes[HEAD..]);
                    bytes[4..HEAD].copy_from_slice(&sum.to_le_bytes());
                }
                let _ = $read(&key, &bytes[..]);
            }};
        }
        with!(FeedKey::new(thread().tenant, 7), read_feed);
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
