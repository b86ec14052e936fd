use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use proptest::prelude::*;
use raddle_domain::{
    event::{Event, ItemDelta, Record},
    id::{ItemId, TurnId},
    pack::Packed,
    ports::{
        Chunk, Document, DocumentKind, Found, Listed, OwingPlace, PartKind, PartName, Place, Receipt, RecordKind,
        RowHead, SettledTurn, SpentBy, ThreadRow,
    },
    record::ItemKind,
    time::UnixMs,
};
use serde_json::Value;
use uuid::Uuid;

use super::*;

const TENANT: TenantId = TenantId::DEFAULT;

fn thread(n: u8) -> ThreadId {
    ThreadId::from_bytes([n; 16])
}

fn delta(of: ThreadId, seq: Seq, item: u128, text: &str) -> StoredEvent {
    let turn = TurnId::new(Uuid::nil());
    let item = ItemId::new(Uuid::from_u128(item));
    let delta = ItemDelta { turn, item, kind: ItemKind::AgentMessage, delta: text.to_owned() };
    let record = Record { seq, ts: UnixMs(seq), thread: of, event: Event::ItemDelta(delta) };
    StoredEvent { name: "item.delta".into(), json: serde_json::to_vec(&record).unwrap().into() }
}

/// A feed over logs of which some are packed, some damaged, and some gone.
#[derive(Default)]
struct Fake {
    feed: Vec<Fed>,
    logs: BTreeMap<ThreadId, Vec<StoredEvent>>,
    packed: BTreeMap<ThreadId, Vec<Packed>>,
    damaged: Option<ThreadId>,
    gone: Option<ThreadId>,
}

impl Fake {
    fn append(&mut self, n: u8, texts: &[(u128, String)]) {
        let log = self.logs.entry(thread(n)).or_default();
        let first = log.len() as Seq + 1;
        for (item, text) in texts {
            log.push(delta(thread(n), log.len() as Seq + 1, *item, text));
        }
        let position = self.feed.len() as u64 + 1;
        self.feed.push(Fed { position, thread: thread(n), first, last: log.len() as Seq });
    }

    fn pack(&mut self, n: u8) {
        if let Some(log) = self.logs.get(&thread(n)) {
            self.packed.insert(thread(n), pack::pack(event::SCHEMA, 1, log.clone()).unwrap());
        }
    }

    /// The events after `after`, each with its seq.
    fn log(&self, of: ThreadId, after: Seq) -> Vec<(Seq, StoredEvent)> {
        let Some(packed) = self.packed.get(&of) else {
            let log = (1..).zip(self.logs.get(&of).cloned().unwrap_or_default());
            return log.filter(|(seq, _)| *seq > after).collect();
        };
        let (mut seq, mut log) = (0, Vec::new());
        for place in packed {
            seq = match place {
                Packed::Event(_) => seq + 1,
                Packed::Run(run) => run.last(),
            };
            if seq > after {
                log.push((
                    seq,
                    match place {
                        Packed::Event(event) => event.clone(),
                        Packed::Run(run) => run.rest(event::SCHEMA, after).unwrap(),
                    },
                ));
            }
        }
        log
    }
}

impl View for Fake {
    fn feed(&self, _: TenantId, after: u64, limit: usize) -> Result<Vec<Fed>, StoreError> {
        Ok(self.feed.iter().filter(|fed| fed.position > after).take(limit).copied().collect())
    }
    fn feed_head(&self, _: TenantId) -> Result<u64, StoreError> {
        Ok(self.feed.len() as u64)
    }
    fn events(&self, key: ThreadKey, after: Seq, limit: usize, bytes: usize) -> Result<Vec<Chunk>, StoreError> {
        if self.gone == Some(key.thread) {
            return Ok(Vec::new());
        }
        if self.damaged == Some(key.thread) {
            return Err(corrupt(key, after + 1, "a flipped bit").into());
        }
        let mut room = bytes;
        let mut chunks: Vec<Chunk> = Vec::new();
        for (first, event) in self.log(key.thread, after).into_iter().take(limit) {
            if !chunks.is_empty() && room == 0 {
                break;
            }
            room = room.saturating_sub(event.json.len());
            chunks.push(Chunk { first, events: vec![event] });
        }
        Ok(chunks)
    }
    fn row(&self, key: ThreadKey) -> Result<Option<ThreadRow>, StoreError> {
        let none = || std::sync::Arc::from(&b""[..]);
        let row = ThreadRow { head: RowHead::default(), view: none(), snapshot: none() };
        Ok((self.gone != Some(key.thread)).then_some(row))
    }

    // Not asked by what is tested here.
    fn feeds(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }
    fn owing_jobs(&self, _: Option<OwingPlace>, _: usize) -> Result<Vec<OwingPlace>, StoreError> {
        Ok(Vec::new())
    }
    fn due_jobs(&self, _: UnixMs, _: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        Ok(Vec::new())
    }
    fn next_job(&self, _: UnixMs) -> Result<Option<UnixMs>, StoreError> {
        Ok(None)
    }
    fn event(&self, _: ThreadKey, _: Seq) -> Result<Option<StoredEvent>, StoreError> {
        Ok(None)
    }
    fn turns(&self, _: ThreadKey, _: Seq, _: usize) -> Result<Vec<SettledTurn>, StoreError> {
        Ok(Vec::new())
    }
    fn turn(&self, _: ThreadKey, _: TurnId) -> Result<Option<SettledTurn>, StoreError> {
        Ok(None)
    }
    fn turn_before(&self, _: ThreadKey, _: Seq) -> Result<Option<SettledTurn>, StoreError> {
        Ok(None)
    }
    fn list(&self, _: TenantId, _: Option<Place>, _: usize) -> Result<Vec<Listed>, StoreError> {
        Ok(Vec::new())
    }
    fn receipt(&self, _: TenantId, _: &[u8; 32], _: UnixMs) -> Result<Option<Receipt>, StoreError> {
        Ok(None)
    }
    fn owing(&self, _: Option<OwingPlace>, _: usize) -> Result<Vec<OwingPlace>, StoreError> {
        Ok(Vec::new())
    }
    fn due(&self, _: UnixMs, _: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        Ok(Vec::new())
    }
    fn next_wake(&self) -> Result<Option<UnixMs>, StoreError> {
        Ok(None)
    }
    fn record(&self, _: TenantId, _: RecordKind, _: Uuid) -> Result<Option<Found>, StoreError> {
        Ok(None)
    }
    fn records(
        &self,
        _: TenantId,
        _: RecordKind,
        _: Option<ThreadId>,
        _: bool,
        _: Option<Uuid>,
        _: usize,
    ) -> Result<Vec<Found>, StoreError> {
        Ok(Vec::new())
    }
    fn spent(
        &self,
        _: TenantId,
        _: u32,
        _: u32,
        _: Option<(u32, ThreadId)>,
        _: usize,
    ) -> Result<Vec<SpentBy>, StoreError> {
        Ok(Vec::new())
    }
    fn documents_after(
        &self,
        _: TenantId,
        _: DocumentKind,
        _: Option<[u8; 32]>,
        _: usize,
    ) -> Result<Vec<Document>, StoreError> {
        Ok(Vec::new())
    }
    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }
    fn part(&self, _: ThreadKey, _: PartKind, _: PartName) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }
    fn parts(
        &self,
        _: ThreadKey,
        _: PartKind,
        _: Option<PartName>,
        _: usize,
    ) -> Result<Vec<(PartName, Vec<u8>)>, StoreError> {
        Ok(Vec::new())
    }
}

const START: TenantCursor = TenantCursor { position: 0, seq: 0 };

/// What a reader puts together: per thread the newest seq, and per item its text.
#[derive(Debug, Default, PartialEq)]
struct Read {
    newest: BTreeMap<String, Seq>,
    texts: BTreeMap<(String, String), String>,
}

impl Read {
    fn take(&mut self, cursor: TenantCursor, event: &StoredEvent) {
        let json: Value = serde_json::from_slice(&event.json).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (of, seq) = (text(&json["thread_id"]), json["seq"].as_u64().unwrap());
        let newest = self.newest.entry(of.clone()).or_default();
        assert_eq!((json["prev"].as_u64(), cursor.seq), (Some(*newest), seq), "{json}");
        assert!(seq > *newest);
        *newest = seq;
        *self.texts.entry((of, text(&json["item_id"]))).or_default() += &text(&json["payload"]["delta"]);
    }

    /// What is to be read of all logs.
    fn whole(fake: &Fake) -> Self {
        let mut whole = Self::default();
        for log in fake.logs.values() {
            for (seq, event) in (1..).zip(log) {
                whole.take(TenantCursor { position: 1, seq }, event);
            }
        }
        whole
    }
}

fn page(fake: &Fake, after: TenantCursor, limit: usize) -> TenantPage {
    tenant_page(fake, TENANT, after, &Wanted::Everyones, limit, 9_999).unwrap()
}

fn texts(words: &[&str]) -> Vec<(u128, String)> {
    words.iter().map(|word| (1, (*word).to_owned())).collect()
}

proptest! {
    #[test]
    fn a_reader_that_stops_anywhere_and_goes_on_reads_every_thread_whole(
        appends in prop::collection::vec((0u8..3, prop::collection::vec((0..2u128, "[a-zé☃]{0,3}"), 1..4)), 1..20),
        packs in prop::collection::vec(prop::option::of((0usize..20, 0u8..3)), 0..4),
        stops in prop::collection::vec((1usize..6, 1usize..6, 1usize..400), 1..60),
    ) {
        let mut fake = Fake::default();
        for (n, texts) in &appends {
            fake.append(*n, texts);
        }
        let (mut read, mut after) = (Read::default(), START);
        let mut stops = stops.into_iter().cycle();
        let mut turns = 0;
        loop {
            // Logs are packed while it reads.
            for (_, n) in packs.iter().flatten().filter(|(at, _)| *at == turns) {
                fake.pack(*n);
            }
            turns += 1;
            let (limit, keep, bytes) = stops.next().unwrap();
            let page = tenant_page(&fake, TENANT, after, &Wanted::Everyones, limit, bytes).unwrap();
            prop_assert!(page.events.len() <= limit);
            for (cursor, event) in page.events.iter().take(keep) {
                read.take(*cursor, event);
                after = *cursor;
            }
            if page.events.len() <= keep {
                after = page.next;
                if !page.more {
                    break;
                }
            }
        }
        prop_assert_eq!(read, Read::whole(&fake));
        prop_assert_eq!(after, tenant_now(&fake, TENANT).unwrap());
    }
}

#[test]
fn a_run_that_goes_on_behind_other_threads_is_cut_where_they_stand() {
    let mut fake = Fake::default();
    for (n, words) in [(1, ["a", "b"]), (2, ["x", "y"]), (1, ["c", "d"])] {
        fake.append(n, &texts(&words));
    }
    fake.pack(1);
    let shown: Vec<_> = page(&fake, START, 9)
        .events
        .iter()
        .map(|(cursor, event)| {
            let json: Value = serde_json::from_slice(&event.json).unwrap();
            (cursor.position, cursor.seq, json["payload"]["delta"].as_str().unwrap().to_owned())
        })
        .collect();
    let word = |position, seq, text: &str| (position, seq, text.to_owned());
    assert_eq!(shown, [word(1, 2, "ab"), word(2, 1, "x"), word(2, 2, "y"), word(3, 4, "cd")]);
}

#[test]
fn a_thread_that_is_gone_is_passed_over_and_one_that_is_damaged_is_named() {
    let mut fake = Fake::default();
    for n in [1, 2, 3, 2, 1] {
        fake.append(n, &texts(&["a"]));
    }
    (fake.gone, fake.damaged) = (Some(thread(1)), Some(thread(2)));
    let page = page(&fake, START, 9);
    assert_eq!(page.events.iter().map(|(cursor, _)| cursor.position).collect::<Vec<_>>(), [3]);
    let named: Vec<_> = page.unavailable.iter().map(|(of, why)| (*of, why.contains("flipped"))).collect();
    assert_eq!(named, [(thread(2), true)]);
    assert_eq!((page.next, page.more), (TenantCursor { position: 5, seq: 2 }, false));
}

#[test]
fn a_log_that_ends_before_its_feed_is_damage() {
    let mut fake = Fake::default();
    fake.append(1, &texts(&["a", "b"]));
    fake.logs.get_mut(&thread(1)).unwrap().pop();
    let page = page(&fake, START, 9);
    assert_eq!((page.events.len(), page.unavailable.len()), (1, 1));
}

#[test]
fn what_nobody_asked_for_takes_no_room_and_is_passed() {
    let mut fake = Fake::default();
    for n in [1, 2, 2, 1, 2] {
        fake.append(n, &texts(&["a", "b"]));
    }
    let only = Wanted::These(Arc::new(HashSet::from([thread(1)])));
    let page = tenant_page(&fake, TENANT, START, &only, 4, 9_999).unwrap();
    assert_eq!(page.events.iter().map(|(cursor, _)| cursor.position).collect::<Vec<_>>(), [1, 1, 4, 4]);
    assert_eq!((page.next, page.more), (TenantCursor { position: 5, seq: 6 }, false));
    let nobody = tenant_page(&fake, TENANT, START, &Wanted::These(Arc::default()), 4, 9_999).unwrap();
    assert_eq!((nobody.events.len(), nobody.next), (0, page.next));
}
