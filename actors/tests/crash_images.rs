//! Power that goes at any moment of a whole life: real threads, runs, jobs and tenants, the real writer and its real
//! records. Whatever the disk then holds, what was acknowledged is there, and nothing else but the one commit that was
//! under way.
//!
//! `RADDLE_CRASH_IMAGES` is how many disks are looked at, about; without it as many as CI asks for.

mod support;
mod testbed;

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt as _, stream};
use raddle_actors::{
    Ports, Runtime,
    store::{
        backend::{MemoryMedium, Op},
        backup,
        redb::RedbStore,
    },
};
use raddle_domain::{
    event::{self, Record},
    id::{TenantId, ThreadId, ThreadKey},
    ports::{Figures, LogKind, LogStore, StoreError, View, Write},
    time::UnixMs,
};
use support::{disk::images, script::Dice};
use testbed::*;

/// How many disks CI looks at, at least.
const IMAGES: usize = 2_000;

fn opened(image: Vec<u8>) -> Result<(RedbStore, MemoryMedium), String> {
    let medium = MemoryMedium::holding(image);
    medium.record();
    let store = RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 0).map_err(|why| why.to_string())?;
    Ok((store, medium))
}

fn tables(store: &dyn LogStore) -> Vec<String> {
    let summary = backup::write(&*store.view().unwrap(), "0", UnixMs(0), |_| Ok(())).unwrap();
    assert_eq!(summary.damaged, [] as [String; 0], "every record is what was written");
    // It counts the times that the store was opened, and nothing else.
    summary.header.tables.into_iter().filter(|table| table != "meta").collect()
}

fn records(view: &dyn View, table: &str, mut each: impl FnMut(&[u8], &[u8])) {
    let mut after = None::<Vec<u8>>;
    loop {
        let stretch = view.stretch(table, None, after.as_deref(), 1 << 20).unwrap();
        stretch.records.iter().for_each(|(key, value)| each(key, value));
        after = stretch.next;
        if after.is_none() {
            return;
        }
    }
}

/// Every byte of every record.
fn digest(store: &dyn LogStore, tables: &[String]) -> u64 {
    let view = store.view().unwrap();
    let mut hasher = DefaultHasher::new();
    for table in tables {
        table.hash(&mut hasher);
        records(&*view, table, |key, value| (key, value).hash(&mut hasher));
    }
    hasher.finish()
}

/// Asserts that every record can be read, and every log is what a log has to be.
fn assert_whole(store: &dyn LogStore) {
    tables(store);
    let view = store.view().unwrap();
    let mut logs = Vec::new();
    records(&*view, "threads", |key, _| {
        let tenant = TenantId::from_bytes(key[..32].try_into().unwrap()).unwrap();
        logs.push(ThreadKey { tenant, thread: ThreadId::from_bytes(key[32..].try_into().unwrap()) });
    });
    for key in logs {
        // A tenant that is being emptied shows nothing of itself.
        let Some(row) = view.row(key).unwrap() else { continue };
        let chunks = view.events(key, 0, usize::MAX, usize::MAX).unwrap();
        let events: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.events).collect();
        let mut last = 0;
        for event in &events {
            let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
            assert_eq!((json["prev"].as_u64(), json["event"].as_str()), (Some(last), Some(&*event.name)), "{key}");
            last = json["seq"].as_u64().unwrap();
        }
        assert_eq!(last, row.head.last_seq, "the log of {key} ends where its row says");
        if row.head.kind == LogKind::Thread {
            let log: Vec<_> = events.iter().map(|event| Record::decode(event::SCHEMA, &event.json).unwrap()).collect();
            assert_sound_packed(&log, false);
            for turn in view.turns(key, 0, usize::MAX).unwrap() {
                assert!(turn.items.iter().all(|item| view.event(key, *item).unwrap().is_some()), "{key}: {turn:?}");
            }
        }
    }
}

/// The store, and what it held after each of its commits: how many operations were done by then, and its digest.
struct Recorded {
    inner: RedbStore,
    medium: MemoryMedium,
    tables: Vec<String>,
    states: Arc<Mutex<Vec<(usize, u64)>>>,
}

impl Recorded {
    fn open(medium: &MemoryMedium, states: &Arc<Mutex<Vec<(usize, u64)>>>) -> Arc<Self> {
        let inner = support::redb(medium);
        let (medium, states) = (medium.clone(), states.clone());
        Arc::new(Self { tables: tables(&inner), inner, medium, states })
    }

    /// Notes what there is after something was done, before anything else is.
    fn after<T>(&self, does: impl FnOnce(&RedbStore) -> T) -> T {
        let mut states = self.states.lock().unwrap();
        let done = does(&self.inner);
        let state = digest(&self.inner, &self.tables);
        if states.last().is_none_or(|(_, before)| *before != state) {
            assert_whole(&self.inner);
            states.push((self.medium.recorded(), state));
        }
        done
    }
}

impl LogStore for Recorded {
    fn commit(&self, writes: &[Write]) -> Committed {
        self.after(|store| store.commit(writes))
    }
    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        self.inner.view()
    }
    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        self.inner.figures(tenant)
    }
    fn known_figures(&self, tenant: TenantId) -> Option<Figures> {
        self.inner.known_figures(tenant)
    }
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.after(|store| store.sweep_receipts(now, limit))
    }
    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.after(|store| store.pack(before, limit))
    }
    fn rest(&self) -> Result<(), StoreError> {
        self.after(RedbStore::rest)
    }
    fn reopen(&self) -> Result<(), StoreError> {
        self.after(RedbStore::reopen)
    }
}

/// What was lived.
struct Lived {
    ops: Vec<Op>,
    states: Vec<(usize, u64)>,
    /// What each command was answered, and how many operations were done by then.
    answers: Vec<(String, usize)>,
}

async fn lived() -> Lived {
    let (bed, medium) = (Bed::new(), MemoryMedium::default());
    medium.record();
    let states = Arc::default();
    let mut store = Recorded::open(&medium, &states);
    store.after(|_| ());
    let on = async |store: &Arc<Recorded>| {
        let ports = Ports { store: Some(store.clone()), ..bed.ports_without_store() };
        Runtime::start(bed.config(), ports).await.unwrap()
    };
    let mut runtime = on(&store).await;
    let (mut life, mut answers) = (Life::new(&bed), Vec::new());
    for n in 0..COMMANDS {
        let (answer, _) = life.live(&runtime, n, |error| panic!("{n}: {error}")).await;
        answers.push((answer, medium.recorded()));
        if n == 16 {
            assert!(store.pack(UnixMs(u64::MAX), 99).unwrap() > 0);
        }
        if n == 22 {
            runtime.shutdown(LONG).await;
            drop((runtime, store));
            store = Recorded::open(&medium, &states);
            runtime = on(&store).await;
        }
    }
    life.is_over(&runtime).await;
    // What is not said twice: a copy of a tenant, the end of a thread that others share, and of what was answered.
    let copy: Vec<_> = runtime.export_tenant(acme()).unwrap().map(Result::unwrap).map(Ok).collect().await;
    runtime.import_tenant("copy".parse().unwrap(), stream::iter(copy)).await.unwrap();
    let parent = life.threads().next().unwrap();
    runtime.delete_thread(parent, Default::default()).await.unwrap();
    runtime.shutdown(LONG).await;
    assert!(store.pack(UnixMs(u64::MAX), 99).unwrap() > 0);
    assert!(store.sweep_receipts(UnixMs(u64::MAX), 99).unwrap() > 0);
    store.rest().unwrap();
    drop((runtime, store));
    let states = std::mem::take(&mut *states.lock().unwrap());
    Lived { ops: medium.take_record(), states, answers }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_on_the_disk_when_the_power_goes_holds_what_was_acknowledged_and_at_most_one_commit_more() {
    let Lived { ops, states, answers } = lived().await;
    let wanted = std::env::var("RADDLE_CRASH_IMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(IMAGES);
    let rounds = wanted / ops.len() / 2 + 1;
    let names = tables(&support::redb(&MemoryMedium::default()));
    let mut dice = Dice(0x5eed_0003);
    let (mut count, mut again, mut after) = (0, 0, BTreeMap::new());
    let mut others = Dice(0x5eed_0004);
    images(&[], &ops, rounds, &mut dice, |end, image, what| {
        count += 1;
        // The last state that was acknowledged, and the one that may have been under way.
        let acked = states.partition_point(|(at, _)| *at <= end).saturating_sub(1);
        let may = &states[acked..states.len().min(acked + 2)];
        let found = |image: Vec<u8>, what: &str| {
            let (store, medium) = opened(image).unwrap_or_else(|why| panic!("{what}, {end} operations: {why}"));
            let state = digest(&store, &names);
            let fits = may.iter().position(|(_, known)| *known == state);
            let which = states.iter().position(|(_, known)| *known == state);
            let fits =
                fits.unwrap_or_else(|| panic!("{what}, {end} operations: acknowledged {acked}, found {which:?}"));
            drop(store);
            (acked + fits, medium.take_record())
        };
        let (state, opening) = found(image.to_vec(), what);
        // The power may go once more, while the store is opened.
        if others.roll(200) == 0 {
            images(image, &opening, 1, &mut others, |during, image, more| {
                again += 1;
                found(image.to_vec(), &format!("{what}, then {more} after {during} of its opening"));
            });
        }
        after.entry(state).or_insert_with(|| (end, image.to_vec()));
    });
    println!("{} operations, {} commits, {count} disks, {again} more of openings", ops.len(), states.len());
    assert!(count >= wanted.min(IMAGES) && again > 0, "only {count} disks");
    assert_eq!(after.len(), states.len(), "every commit was found on some disk");

    // Whoever goes on from what is there has lost nothing either, and does nothing twice.
    let every = if wanted > IMAGES { 1 } else { states.len().div_ceil(COMMANDS) };
    for (state, (end, image)) in after.into_iter().step_by(every) {
        let heard = answers.iter().filter(|(_, at)| *at <= end).count();
        let bed = Bed { medium: Some(MemoryMedium::holding(image)), ..Bed::new() };
        // What came after the last command.
        if states[state].0 > answers.last().unwrap().1 {
            break;
        }
        let runtime = bed.start().await;
        let mut life = Life::again(&bed);
        for (n, (first, _)) in answers.iter().enumerate() {
            let (answer, replayed) = life.live(&runtime, n, |error| panic!("{n}: {error}")).await;
            if n < heard {
                assert!(replayed, "command {n} was acknowledged, and is lost after {end} operations");
                assert!(answer.is_empty() || answer == *first, "{n}, after {end} operations: {answer}, not {first}");
            }
        }
        life.is_over(&runtime).await;
        runtime.shutdown(LONG).await;
    }
}
