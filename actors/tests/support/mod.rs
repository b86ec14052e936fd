//! Steps of threads, made short for tests of stores.
#![allow(dead_code)]

/// Runs each function on each store.
#[allow(unused_macros)]
macro_rules! suite {
    ($($fact:ident)*) => {
        mod memory {
            $(#[test] fn $fact() { super::$fact(&raddle_actors::store::memory::MemoryStore::default()); })*
        }
        mod redb {
            $(#[test] fn $fact() { super::$fact(&crate::support::redb(&Default::default())); })*
        }
    };
}

pub mod disk;
pub mod script;
pub mod talk;

use std::sync::Arc;

use raddle_actors::store::{backend::MemoryMedium, redb::RedbStore};
use raddle_domain::{
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{
        Append, Chunk, Document, DocumentKind, Indexed, LogStore, Part, PartKind, PartName, Receipt, RecordKind,
        RowHead, SettledTurn, Spent, StoredEvent, ThreadRow, Write, WriteRefused,
    },
    price::Totals,
    time::UnixMs,
};
use uuid::Uuid;

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

pub fn tenant(n: u8) -> TenantId {
    format!("tenant-{n}").parse().unwrap()
}

pub fn thread(tenant_no: u8, n: u8) -> ThreadKey {
    ThreadKey { tenant: tenant(tenant_no), thread: ThreadId::from_bytes([n; 16]) }
}

pub fn turn_id(n: u64) -> TurnId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    TurnId::from_bytes(bytes)
}

pub fn event(key: ThreadKey, seq: Seq) -> StoredEvent {
    let json =
        format!(r#"{{"seq":{seq},"prev":{},"thread_id":"{}","text":"{}"}}"#, seq - 1, key.thread, "x".repeat(40));
    StoredEvent { name: "item.delta".into(), json: json.into_bytes().into() }
}

/// A step of `count` events after `expected`, by the writer 1, listed at 100 + its end, owing nothing.
pub fn append(key: ThreadKey, expected: Seq, count: u64) -> Append {
    let last_seq = expected + count;
    let first = expected + 1;
    let chunk = Chunk { first, events: (first..=last_seq).map(|seq| event(key, seq)).collect() };
    let row = ThreadRow {
        head: RowHead {
            last_seq,
            snapshot_seq: last_seq,
            fence: 1,
            listed_at: UnixMs(100 + last_seq),
            ..RowHead::default()
        },
        view: Arc::from(format!(r#"{{"id":"{}","seq":{last_seq}}}"#, key.thread).into_bytes()),
        snapshot: Arc::from(format!(r#"{{"last":{last_seq}}}"#).into_bytes()),
    };
    Append::new(key, expected, UnixMs(u64::MAX), chunk, row)
}

pub fn settled(started_seq: Seq) -> SettledTurn {
    let turn = format!(r#"{{"started":{started_seq}}}"#).into_bytes();
    let items = vec![started_seq + 1, started_seq + 2];
    SettledTurn { id: turn_id(started_seq), started_seq, turn, items, context_seq: 0, reverted: None }
}

pub fn receipt(n: u8, expires_at: u64) -> Receipt {
    let reply = format!(r#"{{"expires":{expires_at}}}"#).into_bytes();
    Receipt { key: [n; 32], request: [n ^ 0xff; 32], reply, expires_at: UnixMs(expires_at) }
}

/// The record `n`, as the event at `seq` leaves it.
pub fn indexed(kind: RecordKind, n: u128, seq: Seq, open: bool) -> Indexed {
    Indexed { kind, id: Uuid::from_u128(n), seq, open }
}

/// One call of `model` on `day`.
pub fn spent(day: u32, model: &str, tokens: u64) -> Spent {
    let totals = Totals { model_calls: 1, input_tokens: tokens, pico_usd: 7 * tokens, ..Totals::default() };
    Spent { day, engine: "test".into(), model: model.into(), totals }
}

pub fn document(kind: DocumentKind, n: u8, text: &str) -> Document {
    Document { kind, id: [n; 32], json: format!(r#"{{"text":"{text}"}}"#).into_bytes() }
}

/// The part with this number, which is to be so.
pub fn part(kind: PartKind, number: u64, text: &str) -> Part {
    let json = format!(r#"{{"part":{number},"text":"{text}"}}"#).into_bytes();
    Part { kind, name: PartName::number(number), json: Some(json) }
}

/// The part with this number, which is to be no more.
pub fn no_part(kind: PartKind, number: u64) -> Part {
    Part { kind, name: PartName::number(number), json: None }
}

/// Commits one write.
pub fn put(store: &dyn LogStore, append: Append) -> Result<(), WriteRefused> {
    store.commit(&[Write::Append(append)]).unwrap().remove(0).map(|_| ())
}

/// Commits writes, and says what became of each.
pub fn commit(store: &dyn LogStore, writes: &[Write]) -> Vec<Result<(), WriteRefused>> {
    store.commit(writes).unwrap().into_iter().map(|result| result.map(|_| ())).collect()
}

pub fn redb(medium: &MemoryMedium) -> RedbStore {
    RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 0).unwrap()
}
