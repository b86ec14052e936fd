//! What cannot be seen from outside: databases of an earlier layout, feeds with a hole or a damaged row, damaged runs.

use ::redb::{Key, TableDefinition, TableHandle};
use raddle_domain::{
    id::{RunId, TenantId, ThreadId, ThreadKey},
    ports::{Append, Chunk, Fed, LogKind, Part, PartKind, PartName, RowHead, StoredEvent, ThreadRow},
};

use super::{
    super::{
        keys::{
            PARTS, PartKey, RowKey, THREADS,
            tenant::{FEED, FeedKey},
        },
        tables,
    },
    *,
};

fn key() -> ThreadKey {
    ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([1; 16]) }
}

fn step(expected: u64) -> Write {
    let event = StoredEvent { name: "item.delta".into(), json: (&b"{}"[..]).into() };
    let head = RowHead { last_seq: expected + 1, fence: 1, ..RowHead::default() };
    let row = ThreadRow { head, view: Arc::from(&b"{}"[..]), snapshot: Arc::from(&b"{}"[..]) };
    Write::Append(Append::new(key(), expected, UnixMs(0), Chunk { first: expected + 1, events: vec![event] }, row))
}

fn open(medium: &MemoryMedium) -> Result<RedbStore, String> {
    RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 0).map_err(|error| error.to_string())
}

/// Changes the database behind the store's back.
fn tamper(medium: &MemoryMedium, change: impl FnOnce(&WriteTransaction)) {
    let database = Builder::new().create_with_backend(medium.clone()).unwrap();
    let txn = database.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

fn remove<K: Key + 'static>(txn: &WriteTransaction, table: TableDefinition<K, &[u8]>, key: K::SelfType<'_>) {
    assert!(txn.open_table(table).unwrap().remove(key).unwrap().is_some());
}

/// What a build before there were layouts left behind, with three events in its log.
fn first_layout() -> MemoryMedium {
    let medium = MemoryMedium::default();
    let store = open(&medium).unwrap();
    for expected in 0..3 {
        assert!(store.commit(&[step(expected)]).unwrap()[0].is_ok());
    }
    drop(store);
    let first =
        ["log", "threads", "turns", "turn_ids", "receipts", "receipt_expiry", "owing", "recent", "timers", "meta"];
    tamper(&medium, |txn| {
        let later: Vec<_> = txn.list_tables().unwrap().filter(|table| !first.contains(&table.name())).collect();
        assert!(!later.is_empty());
        for table in later {
            assert!(txn.delete_table(table).unwrap());
        }
        remove(txn, META, MetaKey::layout());
    });
    medium
}

#[test]
fn a_database_of_the_first_layout_is_opened_and_gets_the_tables_it_lacks() {
    let medium = first_layout();
    for expected in [3, 4] {
        let store = open(&medium).unwrap();
        // Its feed begins with what is appended from now on.
        assert_eq!(store.commit(&[step(expected)]).unwrap(), [Ok(expected - 2)]);
        let view = store.view().unwrap();
        assert_eq!(view.events(key(), 0, 99, 9999).unwrap().len() as u64, expected + 1);
        let fed = Fed { position: 1, thread: key().thread, first: 4, last: 4 };
        assert_eq!(view.feed(key().tenant, 0, 1).unwrap(), [fed]);
    }
}

fn put_layout(txn: &WriteTransaction, layout: u64) {
    let bytes = codec::tenant::seal_layout(layout);
    txn.open_table(META).unwrap().insert(MetaKey::layout(), bytes.as_slice()).unwrap();
}

/// A database of an earlier layout, which lacks these tables, with one event in its log.
fn earlier(layout: u64, lacks: &[&str]) -> MemoryMedium {
    let medium = MemoryMedium::default();
    let store = open(&medium).unwrap();
    assert!(store.commit(&[step(0)]).unwrap()[0].is_ok());
    drop(store);
    tamper(&medium, |txn| {
        let later: Vec<_> = txn.list_tables().unwrap().filter(|table| lacks.contains(&table.name())).collect();
        assert_eq!(later.len(), lacks.len());
        for table in later {
            assert!(txn.delete_table(table).unwrap());
        }
        put_layout(txn, layout);
    });
    medium
}

#[test]
fn a_database_of_the_second_layout_gets_the_indexes_of_jobs() {
    let store = open(&earlier(2, &["job_owing", "job_timers", "parts"])).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.row(key()).unwrap().unwrap().head.last_seq, 1);
    assert_eq!((view.owing_jobs(None, 9).unwrap(), view.due_jobs(UnixMs(u64::MAX), 9).unwrap()), (vec![], vec![]));
}

#[test]
fn a_database_of_the_third_layout_gets_the_table_of_parts() {
    let medium = earlier(3, &["parts"]);
    let store = open(&medium).unwrap();
    let parts = || store.view().unwrap().parts(key(), PartKind::Task, None, 9).unwrap();
    assert_eq!((parts(), store.view().unwrap().row(key()).unwrap().unwrap().head.last_seq), (vec![], 1));
    assert!(store.commit(&[run_step(key(), 1, &[1])]).unwrap()[0].is_ok());
    assert_eq!(parts().len(), 1);
    drop(store);
    // From now on it is missed.
    tamper(&medium, |txn| assert!(txn.delete_table(PARTS).unwrap()));
    assert!(open(&medium).err().unwrap().contains("parts: the table is missing"));
}

#[test]
fn a_table_that_was_lost_is_noticed_whichever_layout_it_came_with() {
    for lost in ["log", "feed", "spent", "records", "job_owing", "job_timers", "parts"] {
        let medium = MemoryMedium::default();
        drop(open(&medium).unwrap());
        tamper(&medium, |txn| {
            let table = txn.list_tables().unwrap().find(|table| table.name() == lost).unwrap();
            txn.delete_table(table).unwrap();
        });
        let error = open(&medium).err().unwrap();
        assert!(error.contains(lost), "{error}");
    }
}

#[test]
fn a_log_whose_row_was_lost_is_neither_shown_nor_begun_anew() {
    let medium = MemoryMedium::default();
    assert!(open(&medium).unwrap().commit(&[step(0)]).unwrap()[0].is_ok());
    tamper(&medium, |txn| remove(txn, THREADS, RowKey::new(key())));
    let store = open(&medium).unwrap();
    let refused = store.commit(&[step(0)]).unwrap().remove(0).unwrap_err();
    assert_eq!(refused, RowKey::new(key()).corrupt("the row is missing, its log is there").into());
    let shown = store.view().unwrap().events(key(), 0, 99, 9999);
    assert!(matches!(shown, Err(StoreError::Corrupt(_))), "{shown:?}");
}

#[test]
fn a_file_that_another_process_opened_since_is_not_gone_on_with() {
    let medium = MemoryMedium::default();
    let first = open(&medium).unwrap();
    assert!(first.commit(&[step(0)]).unwrap()[0].is_ok());
    medium.set_fault(Some(super::super::backend::Fault { at: 0, errno: 5, lasting: true }));
    assert!(first.commit(&[step(1)]).is_err());
    medium.set_fault(None);
    let second = open(&medium).unwrap();
    assert!(second.commit(&[step(1)]).unwrap()[0].is_ok());
    drop(second);
    let why = first.reopen().unwrap_err().to_string();
    assert!(why.contains("the epoch is 2, this process began 1"), "{why}");
    assert_eq!(first.commit(&[step(2)]).unwrap_err().to_string(), why);
}

#[test]
fn a_layout_that_was_lost_or_is_not_known_is_refused() {
    let medium = MemoryMedium::default();
    drop(open(&medium).unwrap());
    tamper(&medium, |txn| remove(txn, META, MetaKey::layout()));
    assert!(open(&medium).err().unwrap().contains("the layout is missing"));
    let put = |layout| tamper(&medium, |txn| put_layout(txn, layout));
    put(LAYOUT + 1);
    let error = open(&medium).err().unwrap();
    assert!(error.contains(&format!("this build knows up to {LAYOUT}")), "{error}");
    put(LAYOUT);
    open(&medium).unwrap();
}

/// A store whose feed has so many appends, and the row of `position` is changed by `change`.
fn damaged(appends: u64, position: u64, change: impl FnOnce(&mut Vec<u8>)) -> RedbStore {
    let medium = MemoryMedium::default();
    let store = open(&medium).unwrap();
    let steps: Vec<_> = (0..appends).map(step).collect();
    assert_eq!(store.commit(&steps).unwrap(), (1..=appends).map(Ok).collect::<Vec<_>>());
    drop(store);
    tamper(&medium, |txn| {
        let mut feed = txn.open_table(FEED).unwrap();
        let at = FeedKey::new(key().tenant, position);
        let mut bytes = feed.get(at).unwrap().unwrap().value().to_vec();
        change(&mut bytes);
        if bytes.is_empty() {
            feed.remove(at).unwrap();
        } else {
            feed.insert(at, bytes.as_slice()).unwrap();
        }
    });
    open(&medium).unwrap()
}

#[test]
fn a_hole_in_a_feed_is_noticed_from_both_of_its_sides() {
    let store = damaged(10, 5, Vec::clear);
    let view = store.view().unwrap();
    assert_eq!(view.feed(key().tenant, 0, 4).unwrap().len(), 4);
    for after in [0, 4] {
        let error = view.feed(key().tenant, after, 9).unwrap_err().to_string();
        assert!(error.contains("feed default/5") && error.contains("missing"), "{error}");
    }
    assert_eq!(view.feed(key().tenant, 5, 9).unwrap().len(), 5);
}

#[test]
fn a_damaged_row_of_a_feed_is_noticed_and_never_written_over() {
    for position in [5, 10] {
        let store = damaged(10, position, |bytes| bytes[9] ^= 1);
        assert_eq!(store.commit(&[step(10)]).unwrap(), [Ok(11)]);
        let view = store.view().unwrap();
        let error = view.feed(key().tenant, 0, 99).unwrap_err().to_string();
        assert!(error.contains(&format!("feed default/{position}")) && error.contains("checksum"), "{error}");
        assert_eq!(view.feed(key().tenant, 10, 9).unwrap()[0].first, 11);
    }
}

#[test]
fn a_feed_is_one_row_for_many_appends_and_reads_the_same() {
    let store = damaged(700, 600, |_| {});
    let view = store.view().unwrap();
    assert_eq!(view.feed_head(key().tenant).unwrap(), 700);
    for after in (0..700).step_by(13).chain([255, 256, 257, 511, 512, 699]) {
        let rest = view.feed(key().tenant, after, 999).unwrap();
        let fed = |position| Fed { position, thread: key().thread, first: position, last: position };
        assert_eq!(rest, (after + 1..=700).map(fed).collect::<Vec<_>>());
        assert_eq!(view.feed(key().tenant, after, 5).unwrap(), rest[..rest.len().min(5)]);
    }
    let txn = store.slot.read().unwrap().as_ref().unwrap().database.begin_read().unwrap();
    assert_eq!(txn.open_table(FEED).unwrap().range::<FeedKey>(..).unwrap().count(), 2 + 700 - 512);
}

#[test]
fn a_damaged_row_of_many_appends_is_noticed_and_never_written_over() {
    for appends in [256, 300, 512, 520] {
        let store = damaged(appends, 256, |bytes| bytes[9] ^= 1);
        assert_eq!(store.commit(&[step(appends)]).unwrap(), [Ok(appends + 1)]);
        let view = store.view().unwrap();
        for after in [0, 200, 255] {
            let error = view.feed(key().tenant, after, 99).unwrap_err().to_string();
            assert!(error.contains("feed default/256") && error.contains("checksum"), "{error}");
        }
        let rest = view.feed(key().tenant, 256, 999).unwrap();
        assert_eq!(rest.last().unwrap().position, appends + 1);
        assert_eq!(rest.len() as u64, appends + 1 - 256);
    }
}

#[test]
fn appends_beside_a_damaged_row_are_not_made_one_with_it() {
    let store = damaged(255, 100, |bytes| bytes[9] ^= 1);
    assert_eq!(store.commit(&[step(255), step(256)]).unwrap(), [Ok(256), Ok(257)]);
    let view = store.view().unwrap();
    assert_eq!(view.feed(key().tenant, 0, 99).unwrap().len(), 99);
    assert!(view.feed(key().tenant, 99, 1).unwrap_err().to_string().contains("feed default/100"));
    assert_eq!(view.feed(key().tenant, 100, 999).unwrap().len(), 157);
}

fn run() -> ThreadKey {
    RunId::from_bytes([7; 16]).log(TenantId::DEFAULT)
}

/// A step of a run that owes, with tasks of these numbers.
fn run_step(key: ThreadKey, expected: u64, tasks: &[u64]) -> Write {
    let Write::Append(mut append) = step(expected) else { unreachable!() };
    let head = &mut append.row.head;
    (head.kind, head.owes_since, head.wake_at) = (LogKind::Run, Some(UnixMs(3)), Some(UnixMs(4)));
    let task = |number: &u64| Part {
        kind: PartKind::Task,
        name: PartName::number(*number),
        json: Some(number.to_string().into()),
    };
    Write::Append(Append { key, parts: tasks.iter().map(task).collect(), ..append })
}

/// A store with a run of three tasks, and the record under `at` is damaged.
fn damaged_run<K: Key + Copy + for<'k> ::redb::Value<SelfType<'k> = K>>(
    table: TableDefinition<K, &[u8]>,
    at: K,
) -> RedbStore {
    let medium = MemoryMedium::default();
    let store = open(&medium).unwrap();
    assert!(store.commit(&[run_step(run(), 0, &[1, 2, 3])]).unwrap()[0].is_ok());
    drop(store);
    tamper(&medium, |txn| {
        let mut table = txn.open_table(table).unwrap();
        let mut bytes = table.get(at).unwrap().unwrap().value().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        table.insert(at, bytes.as_slice()).unwrap();
    });
    open(&medium).unwrap()
}

#[test]
fn a_damaged_part_is_named_and_the_others_are_read() {
    let at = PartKey::new(run(), PartKind::Task, PartName::number(2));
    let store = damaged_run(PARTS, at);
    let view = store.view().unwrap();
    let part = |number| view.part(run(), PartKind::Task, PartName::number(number));
    let parts = |after| view.parts(run(), PartKind::Task, Some(PartName::number(after)), 9);
    let damage = Err(StoreError::Corrupt(at.corrupt("the checksum does not match")));
    assert_eq!([part(1), part(2), part(3)], [Ok(Some(b"1".to_vec())), damage.clone(), Ok(Some(b"3".to_vec()))]);
    assert_eq!([parts(0).map(drop), parts(1).map(drop)], [damage.clone().map(drop), damage.map(drop)]);
    assert_eq!(parts(2).unwrap(), [(PartName::number(3), b"3".to_vec())]);
    // One that is written anew is whole, and one that is not goes with its log.
    for write in [run_step(run(), 1, &[2]), Write::Erase { key: run(), fence: 1, expected: 2 }] {
        assert!(store.commit(&[write]).unwrap()[0].is_ok());
        assert!(store.view().unwrap().parts(run(), PartKind::Task, None, 9).is_ok());
    }
}

#[test]
fn a_run_whose_row_is_damaged_is_in_no_list_of_threads_and_can_be_purged_whole() {
    let store = damaged_run(THREADS, RowKey::new(run()));
    let view = store.view().unwrap();
    assert!(view.row(run()).is_err());
    assert_eq!(view.list(run().tenant, None, 9).unwrap(), []);
    assert_eq!((view.owing(None, 9).unwrap().len(), view.next_wake().unwrap()), (1, Some(UnixMs(4))));
    assert_eq!(view.parts(run(), PartKind::Task, None, 9).unwrap().len(), 3);
    assert_eq!(store.commit(&[Write::Purge { key: run() }]).unwrap(), [Ok(0)]);
    let view = store.view().unwrap();
    assert_eq!(
        (view.row(run()).unwrap(), view.owing(None, 9).unwrap(), view.next_wake().unwrap()),
        (None, vec![], None)
    );
    assert_eq!(view.parts(run(), PartKind::Task, None, 9).unwrap(), []);
}

#[test]
fn every_table_of_a_database_is_walked() {
    let medium = MemoryMedium::default();
    drop(open(&medium).unwrap());
    let database = Builder::new().create_with_backend(medium).unwrap();
    let mut there: Vec<_> =
        database.begin_read().unwrap().list_tables().unwrap().map(|table| table.name().to_owned()).collect();
    let mut walked: Vec<_> = TABLES.iter().map(|table| table.name().to_owned()).collect();
    there.sort_unstable();
    walked.sort_unstable();
    assert_eq!(there, walked);
    // What is asked for by its name is found, and all that is a tenant's says where in its key the tenant stands.
    assert!(TABLES.iter().all(|table| tables::named(table.name()).is_some()));
    let nobodys: Vec<_> = TABLES.iter().filter(|table| table.tenant_at().is_none()).map(|table| table.name()).collect();
    assert_eq!(nobodys, ["meta"]);
}

#[test]
fn a_damaged_record_is_backed_up_as_it_is_named_and_stays_damaged() {
    let medium = MemoryMedium::default();
    let store = open(&medium).unwrap();
    assert!(store.commit(&[step(0)]).unwrap()[0].is_ok());
    drop(store);
    tamper(&medium, |txn| {
        let mut threads = txn.open_table(THREADS).unwrap();
        let mut row = threads.get(RowKey::new(key())).unwrap().unwrap().value().to_vec();
        row[20] ^= 1;
        threads.insert(RowKey::new(key()), row.as_slice()).unwrap();
    });
    let store = open(&medium).unwrap();
    let mut file = Vec::new();
    let written = super::super::backup::write(&*store.view().unwrap(), "0", UnixMs(1), |piece| {
        file.extend_from_slice(&piece);
        Ok(())
    });
    let damaged = written.unwrap().damaged;
    assert!(matches!(&damaged[..], [row] if row.starts_with("threads default/thr_")), "{damaged:?}");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(restore(file.as_slice(), dir.path()).unwrap().damaged, damaged);
    let restored = RedbStore::open(&RedbConfig::new(dir.path())).unwrap();
    assert!(matches!(restored.view().unwrap().row(key()), Err(StoreError::Corrupt(_))));
    // What cannot be counted is somebody's thread.
    assert_eq!(restored.figures(TenantId::DEFAULT).unwrap(), Figures { threads: 1, queued: 0, bytes: 0 });
}

/// What a build before there were parts left behind.
#[test]
fn a_backup_of_an_earlier_layout_is_restored_as_it_was_and_brought_up_by_the_next_start() {
    let medium = first_layout();
    // As that build would have written it: its tables alone.
    let database = Builder::new().create_with_backend(medium).unwrap();
    let watch = Arc::new(Watch::default());
    let opened = Opened { database: Quiet::new(database), watch, broken: AtomicBool::new(false) };
    let name = MemoryMedium::default();
    let view = view::RedbView::new(opened.database.begin_read().unwrap(), &name);
    let mut file = Vec::new();
    let written = super::super::backup::write(&view, "0", UnixMs(1), |piece| {
        file.extend_from_slice(&piece);
        Ok(())
    });
    let summary = written.unwrap();
    assert_eq!((summary.header.layout, summary.header.tables.len()), (1, 10));
    let dir = tempfile::tempdir().unwrap();
    restore(file.as_slice(), dir.path()).unwrap();
    let restored = RedbStore::open(&RedbConfig::new(dir.path())).unwrap();
    assert_eq!(restored.view().unwrap().row(key()).unwrap().unwrap().head.last_seq, 3);
    assert_eq!(restored.view().unwrap().feed_head(TenantId::DEFAULT).unwrap(), 0);
}
