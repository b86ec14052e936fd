//! What goes through a whole store: backups and what they restore to, exports and what they bring in, erased tenants.

mod support;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use raddle_actors::store::{
    backend::MemoryMedium,
    backup::{self, BackupError, Summary},
    export::{self, Intake},
    redb::{RedbConfig, RedbStore, RestoreError, restore},
};
use raddle_domain::{
    closed::{Closed, State},
    id::{TenantId, ThreadKey},
    ports::{
        Closing, DocumentKind, Figures, Fork, LogKind, LogStore, PartKind, RecordKind, StoreError, View, Write,
        WriteRefused,
    },
    time::UnixMs,
};
use support::{
    append, commit, document, event, indexed, part, put, receipt, redb,
    script::{Dice, script, shown},
    settled, spent, tenant, thread,
};

/// Every table, in the order in which they are backed up.
fn tables() -> Vec<String> {
    let store = redb(&MemoryMedium::default());
    backed_up(&store).1.header.tables
}

fn backed_up(store: &dyn LogStore) -> (Vec<u8>, Summary) {
    let mut file = Vec::new();
    let summary = backup::write(&*store.view().unwrap(), "0.0.0", UnixMs(77), |piece| {
        // One frame at most, whose size is bounded.
        assert!(piece.len() < 1 << 20, "{}", piece.len());
        file.extend_from_slice(&piece);
        Ok(())
    });
    (file, summary.unwrap())
}

/// A store after the script that touches every table.
fn lived() -> RedbStore {
    let store = redb(&MemoryMedium::default());
    script().iter().for_each(|act| act.on(&store).unwrap());
    store
}

/// A store in which every table has something, and little of it.
fn small() -> RedbStore {
    let store = redb(&MemoryMedium::default());
    for n in [1, 2] {
        let mut step = append(thread(n, 1), 0, 3);
        (step.row.head.owes_since, step.row.head.wake_at) = (Some(UnixMs(5)), Some(UnixMs(9)));
        step.settled = vec![settled(1)];
        step.receipts = vec![receipt(n, 99)];
        step.indexed = vec![indexed(RecordKind::Approval, 3, 1, true)];
        step.spent = vec![spent(20_000, "m", 5)];
        step.documents = vec![document(DocumentKind::Policy, 0, "a policy")];
        step.parts = vec![part(PartKind::Task, 1, "a part")];
        put(&store, step).unwrap();
        let mut fork = append(thread(n, 2), 2, 1);
        fork.fork = Some(Fork { parent: thread(n, 1).thread, at: 2 });
        put(&store, fork).unwrap();
        let mut job = append(thread(n, 3), 0, 1);
        job.row.head.kind = LogKind::Job;
        (job.row.head.owes_since, job.row.head.wake_at) = (Some(UnixMs(5)), Some(UnixMs(9)));
        put(&store, job).unwrap();
    }
    store
}

/// Keys and values, by table.
type Records = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

/// Every record there is, by table.
fn all(store: &dyn LogStore) -> Records {
    let view = store.view().unwrap();
    let of = |table: String| {
        let (mut all, mut after) = (Vec::new(), None::<Vec<u8>>);
        loop {
            let stretch = view.stretch(&table, None, after.as_deref(), 4096).unwrap();
            all.extend(stretch.records);
            after = stretch.next;
            if after.is_none() {
                return (table, all);
            }
        }
    };
    tables().into_iter().map(of).collect()
}

fn names(key: &[u8], tenant: TenantId) -> bool {
    key.windows(32).any(|window| window == tenant.as_bytes())
}

/// The records whose keys hold the tenant.
fn of(store: &dyn LogStore, tenant: TenantId) -> Records {
    let mut all = all(store);
    all.values_mut().for_each(|records| records.retain(|(key, _)| names(key, tenant)));
    all.retain(|_, records| !records.is_empty());
    all
}

fn opened(dir: &Path) -> RedbStore {
    RedbStore::open(&RedbConfig::new(dir)).unwrap()
}

// ---- backups ----------------------------------------------------------------------------------------

#[test]
fn a_restored_store_is_the_store_that_was_backed_up_and_opens_with_a_younger_epoch() {
    let store = lived();
    let (file, summary) = backed_up(&store);
    assert_eq!(backup::verify(file.as_slice()).unwrap(), summary);
    assert_eq!((summary.bytes, summary.damaged.len()), (file.len() as u64, 0));
    let there: BTreeMap<_, _> = all(&store).into_iter().map(|(table, records)| (table, records.len() as u64)).collect();
    assert_eq!(summary.records, there);

    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("made/here");
    assert_eq!(restore(file.as_slice(), &dir).unwrap(), summary);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let restored = opened(&dir);
    assert_eq!(shown(&restored), shown(&store));
    let (mut before, mut after) = (all(&store), all(&restored));
    assert_ne!(before.remove("meta"), after.remove("meta"));
    assert_eq!(before, after);
    assert!(restored.epoch() > store.epoch());
    put(&restored, append(thread(1, 99), 0, 1)).unwrap();
}

#[test]
fn every_table_is_in_the_backup_of_a_store_that_has_something_in_each() {
    let (_, summary) = backed_up(&small());
    let empty: Vec<_> = summary.records.iter().filter(|(_, count)| **count == 0).collect();
    assert_eq!(empty, []);
}

#[test]
fn a_backup_shows_one_commit_whatever_is_committed_while_it_is_written() {
    let store = small();
    let before = all(&store);
    let (mut file, mut n) = (Vec::new(), 10);
    backup::write(&*store.view().unwrap(), "0.0.0", UnixMs(77), |piece| {
        file.extend_from_slice(&piece);
        n += 1;
        put(&store, append(thread(1, n), 0, 2)).unwrap();
        put(&store, append(thread(1, 1), 3 + u64::from(n) - 11, 1)).unwrap();
        Ok(())
    })
    .unwrap();
    assert_ne!(all(&store), before);
    let dir = tempfile::tempdir().unwrap();
    restore(file.as_slice(), dir.path()).unwrap();
    let mut restored = all(&opened(dir.path()));
    restored.insert("meta".into(), before["meta"].clone());
    assert_eq!(restored, before);
}

#[test]
fn a_changed_byte_is_refused_wherever_it_is_and_what_is_damaged_is_named() {
    let (file, summary) = backed_up(&small());
    let mut named = std::collections::BTreeSet::new();
    let mut dice = Dice(7);
    let first = 40;
    let places = (0..first).chain((first..file.len()).filter(|at| at % 3 == 0));
    for at in places {
        let mut changed = file.clone();
        changed[at] ^= 1 << dice.roll(8);
        let why = backup::verify(changed.as_slice()).unwrap_err().to_string();
        named.extend(summary.header.tables.iter().filter(|table| why.contains(&format!("`{table}`"))).cloned());
        let places =
            ["block ", "what follows its header", "its header", "its digest", "no backup", "version", "its trailer"];
        assert!(places.iter().any(|place| why.contains(place)), "{at}: {why}");
        // What has a checksum of its own is not left to the digest of all, which says of no place that it is there.
        assert_eq!(why.contains("its digest"), at >= file.len() - 32, "{at}: {why}");
    }
    assert_eq!(named.len(), summary.header.tables.len(), "{named:?}");
}

#[test]
fn a_backup_that_is_cut_off_is_refused_at_every_length_and_one_with_more_behind_it_too() {
    let (file, _) = backed_up(&small());
    for length in 0..file.len() {
        let why = backup::verify(&file[..length]).unwrap_err().to_string();
        assert!(why.contains("the file ends in the middle of"), "{length}: {why}");
    }
    for more in [&b"\0"[..], b"raddle", &file] {
        let why = backup::verify([&file, more].concat().as_slice()).unwrap_err().to_string();
        assert!(why.contains("bytes follow its end"), "{why}");
    }
    // The place is named.
    let whys = (0..file.len()).map(|length| backup::verify(&file[..length]).unwrap_err().to_string());
    let named = whys.filter(|why| why.ends_with("the file ends in the middle of block 1 of table `threads`"));
    assert!(named.count() > 20);
}

#[test]
fn nothing_is_left_of_a_restore_that_was_refused() {
    let (mut file, _) = backed_up(&lived());
    let last = file.len() - 1;
    file[last] ^= 1;
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("new");
    assert!(matches!(restore(file.as_slice(), &dir).unwrap_err(), RestoreError::Backup(BackupError::Damaged(_))));
    assert!(!dir.exists());
    // A directory that was there stays, and without a database.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "x").unwrap();
    restore(&file[..last / 2], &dir).unwrap_err();
    let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort_unstable();
    assert_eq!(left, ["mine", "raddle.lock"]);
    // And a good one still goes there.
    file[last] ^= 1;
    restore(file.as_slice(), &dir).unwrap();
    assert_eq!(shown(&opened(&dir)), shown(&lived()));
}

#[test]
fn a_directory_with_a_database_or_a_server_is_left_alone() {
    let (file, _) = backed_up(&small());
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    put(&store, append(thread(1, 1), 0, 1)).unwrap();
    assert!(matches!(restore(file.as_slice(), dir.path()).unwrap_err(), RestoreError::Open(_)));
    let before = all(&store);
    drop(store);
    let why = restore(file.as_slice(), dir.path()).unwrap_err();
    assert!(matches!(why, RestoreError::Exists(_)), "{why}");
    let mut after = all(&opened(dir.path()));
    after.insert("meta".into(), before["meta"].clone());
    assert_eq!(after, before);
}

#[test]
fn a_backup_of_a_later_version_or_layout_says_so() {
    let (mut file, _) = backed_up(&small());
    file[15] = 9;
    assert!(matches!(backup::verify(file.as_slice()).unwrap_err(), BackupError::Version { found: 9 }));
    assert!(matches!(backup::verify(&b"PK\x03\x04 something else"[..]).unwrap_err(), BackupError::Foreign));
}

#[test]
fn a_reader_that_goes_ends_the_backup() {
    let mut pieces = 0;
    let done = backup::write(&*lived().view().unwrap(), "0.0.0", UnixMs(0), |_| {
        pieces += 1;
        if pieces > 3 { Err(BackupError::Gone) } else { Ok(()) }
    });
    assert!(matches!(done, Err(BackupError::Gone)));
    assert_eq!(pieces, 4);
}

// ---- exports ----------------------------------------------------------------------------------------

fn exported(store: &dyn LogStore, tenant: TenantId) -> String {
    let mut lines = String::new();
    export::write::<StoreError>(&*store.view().unwrap(), tenant, UnixMs(5), "0.0.0", |piece| {
        lines.push_str(&piece);
        Ok(())
    })
    .unwrap();
    lines
}

/// Brings the lines in as the runtime does. The line that is wrong, and why.
fn imported(store: &dyn LogStore, tenant: TenantId, lines: &str) -> Result<BTreeMap<String, u64>, (u64, String)> {
    let close = Write::Close { tenant, to: Closing::Import, at: UnixMs(6) };
    assert_eq!(commit(store, &[close]), [Ok(())]);
    let mut intake = Intake::new(tenant);
    for line in lines.lines() {
        let raw = intake.line(line.as_bytes()).map_err(|why| (intake.lines, why))?;
        let records = raw.into_iter().collect();
        assert_eq!(commit(store, &[Write::Import { tenant, records }]), [Ok(())]);
    }
    let at = intake.lines + 1;
    let counts = intake.end().map_err(|why| (at, why))?;
    assert_eq!(commit(store, &[Write::Open { tenant, documents: Vec::new() }]), [Ok(())]);
    Ok(counts)
}

fn undo(store: &dyn LogStore, tenant: TenantId) {
    assert_eq!(commit(store, &[Write::Close { tenant, to: Closing::Undo, at: UnixMs(7) }]), [Ok(())]);
    while store.commit(&[Write::Sweep { tenant, at: UnixMs(8) }]).unwrap() != [Ok(0)] {}
}

/// The lines but the first and the last, which name the tenant and the digest.
fn body(lines: &str) -> Vec<&str> {
    let lines: Vec<_> = lines.lines().collect();
    lines[1..lines.len() - 1].to_vec()
}

#[test]
fn what_was_exported_is_what_an_import_under_another_name_exports() {
    let (store, other) = (lived(), redb(&MemoryMedium::default()));
    put(&other, append(thread(5, 1), 0, 1)).unwrap();
    let before = of(&other, tenant(5));
    for n in [1, 2] {
        let lines = exported(&store, tenant(n));
        let new = tenant(n + 10);
        let counts = imported(&other, new, &lines).unwrap();
        let again = exported(&other, new);
        assert_eq!(body(&again), body(&lines));
        assert_eq!(counts.values().sum::<u64>() as usize, body(&lines).len());
        assert_eq!(other.figures(new).unwrap(), store.figures(tenant(n)).unwrap());
        // And every thread is read as it was, by whoever writes next.
        let (here, there) = (store.view().unwrap(), other.view().unwrap());
        for n_thread in [1, 2, 3, 4, 5, 6, 7, 9] {
            let (was, is) = (thread(n, n_thread), thread(n + 10, n_thread));
            let read = |view: &dyn View, key| {
                let events = view.events(key, 0, 999, usize::MAX).unwrap();
                (events, view.turns(key, 0, 99).unwrap(), view.row(key).unwrap().map(|row| (row.view, row.snapshot)))
            };
            assert_eq!(read(&*here, was), read(&*there, is));
        }
    }
    assert_eq!(of(&other, tenant(5)), before);
    assert_eq!(of(&other, tenant(1)), BTreeMap::new());
    let head = other.view().unwrap().row(thread(11, 1)).unwrap().unwrap().head;
    assert_eq!(head.fence, 0);
    put(&other, append(thread(11, 1), head.last_seq, 1)).unwrap();
}

#[test]
fn an_export_can_be_read_by_people_and_says_what_is_missing() {
    let lines = exported(&lived(), tenant(1));
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((first["raddle"].as_str(), first["tenant"].as_str()), (Some("export"), Some("tenant-1")));
    assert!(first["left_out"].to_string().contains("receipts"));
    assert!(!lines.contains("\"table\":\"receipt"));
    let records: Vec<serde_json::Value> = body(&lines).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let log: Vec<_> = records.iter().filter(|record| record["table"] == "log").collect();
    // Packed or not, an event is an event.
    assert!(log.iter().any(|record| record["flags"] == 1));
    assert!(
        log.iter().all(|record| record["events"][0]["event"].is_object() || record["events"][0]["event"].is_number())
    );
    for (table, field) in
        [("threads", "view"), ("turns", "turn"), ("parts", "json"), ("spent", "json"), ("documents", "json")]
    {
        assert!(
            records.iter().filter(|record| record["table"] == table).all(|record| !record[field].is_null()),
            "{table}"
        );
    }
}

#[test]
fn lines_that_were_changed_are_refused_by_their_number_and_leave_nothing() {
    let lines = exported(&small(), tenant(1));
    let store = redb(&MemoryMedium::default());
    put(&store, append(thread(9, 1), 0, 1)).unwrap();
    let (new, before) = (tenant(3), all(&store));
    let refused = |lines: &str| {
        let (line, why) = imported(&store, new, lines).unwrap_err();
        // Nothing of it was ever to be seen.
        assert_eq!(store.view().unwrap().list(new, None, 9).unwrap(), []);
        assert_eq!(store.view().unwrap().owing(None, 9).unwrap(), []);
        undo(&store, new);
        assert_eq!(all(&store), before, "line {line}: {why}");
        (line, why)
    };
    let all_lines: Vec<_> = lines.lines().collect();
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    for at in 0..all_lines.len() {
        let mut without = all_lines.clone();
        without.remove(at);
        refused(&joined(&without));
        let mut twice = all_lines.clone();
        twice.insert(at, all_lines[at]);
        refused(&joined(&twice));
        // A digit of a key, or of anything else in it.
        let mut changed = all_lines.clone();
        let other = all_lines[at].replacen('0', "1", 1);
        changed[at] = &other;
        if other != all_lines[at] && at > 0 {
            refused(&joined(&changed));
        }
        let cut = &all_lines[at][..all_lines[at].len() - 1];
        changed[at] = cut;
        let (line, _) = refused(&joined(&changed));
        assert_eq!(line, at as u64 + 1);
    }
    refused("");
    refused("{}\n");
    assert_eq!(refused(&(lines.clone() + "{}\n")), (all_lines.len() as u64 + 1, "it follows the last line".to_owned()));
    imported(&store, new, &lines).unwrap();
}

#[test]
fn lines_reach_no_table_that_is_not_a_tenants_and_no_secret() {
    let lines = exported(&small(), tenant(1));
    let first = lines.lines().next().unwrap();
    for line in [
        r#"{"table":"meta","record":"","key":"","schema":1,"body":""}"#,
        r#"{"table":"receipts","record":"","key":"","schema":1,"body":""}"#,
        r#"{"table":"nothing","record":"","key":"","schema":1,"body":""}"#,
        r#"{"table":"threads","record":"","key":"00","schema":1,"body":""}"#,
        &format!(r#"{{"table":"documents","record":"","key":"20{}","schema":1,"json":{{}}}}"#, "00".repeat(32)),
        &format!(r#"{{"table":"threads","record":"","key":"{}","schema":9,"body":""}}"#, "00".repeat(16)),
    ] {
        let mut intake = Intake::new(tenant(3));
        assert_eq!(intake.line(first.as_bytes()), Ok(None));
        assert!(intake.line(line.as_bytes()).is_err(), "{line}");
    }
}

#[test]
fn how_far_a_hook_has_come_with_a_tenant_that_has_nothing_is_nothing_and_stays() {
    let store = redb(&MemoryMedium::default());
    let cursor = document(DocumentKind::HookCursor, 1, "at the beginning");
    let put = Write::Put { tenant: tenant(1), documents: vec![cursor.clone()] };
    assert_eq!(commit(&store, &[put]), [Ok(())]);
    let mut lines = exported(&small(), tenant(1));
    lines.truncate(lines.len() / 2);
    imported(&store, tenant(1), &lines).unwrap_err();
    undo(&store, tenant(1));
    assert_eq!(store.view().unwrap().documents(tenant(1), DocumentKind::HookCursor).unwrap(), [cursor]);
    assert_eq!(of(&store, tenant(1)).values().map(Vec::len).sum::<usize>(), 1);
}

#[test]
fn only_an_empty_tenant_is_filled() {
    let store = small();
    let close =
        |tenant| store.commit(&[Write::Close { tenant, to: Closing::Import, at: UnixMs(1) }]).unwrap().remove(0);
    assert_eq!(close(tenant(1)), Err(WriteRefused::NotEmpty));
    assert_eq!(close(tenant(7)), Ok(0));
    // One at a time, and nobody else writes meanwhile.
    assert!(matches!(close(tenant(7)), Err(WriteRefused::Closed(_))));
    assert!(matches!(put(&store, append(thread(7, 1), 0, 1)), Err(WriteRefused::Closed(_))));
    undo(&store, tenant(7));
    put(&store, append(thread(7, 1), 0, 1)).unwrap();
    // Records of another tenant are none of this one's.
    assert_eq!(close(tenant(8)), Ok(0));
    let records = exported(&store, tenant(1));
    let mut intake = Intake::new(tenant(9));
    let raw = records.lines().filter_map(|line| intake.line(line.as_bytes()).unwrap()).next().unwrap();
    let import = Write::Import { tenant: tenant(8), records: vec![raw] };
    assert!(matches!(&commit(&store, &[import])[..], [Err(WriteRefused::Corrupt(_))]));
}

// ---- erasing ----------------------------------------------------------------------------------------

fn erase_step(store: &dyn LogStore, tenant: TenantId, at: u64) -> u64 {
    store.commit(&[Write::Sweep { tenant, at: UnixMs(at) }]).unwrap().remove(0).unwrap()
}

fn note(store: &dyn LogStore, tenant: TenantId) -> Option<Closed> {
    let notes = store.view().unwrap().documents(TenantId::SYSTEM, DocumentKind::Closed).unwrap();
    let notes = notes.iter().map(|note| serde_json::from_slice::<Closed>(&note.json).unwrap());
    notes.into_iter().find(|note| note.tenant == tenant)
}

/// What may be left of an erased tenant: the note, by its name.
fn assert_gone(store: &dyn LogStore, tenant: TenantId) {
    let left = of(store, tenant);
    assert_eq!(left.keys().collect::<Vec<_>>(), ["documents"]);
    assert!(left["documents"].iter().all(|(key, _)| key.starts_with(TenantId::SYSTEM.as_bytes())));
    assert_eq!(left["documents"].len(), 1);
    assert_eq!(store.figures(tenant).unwrap(), Figures::default());
}

/// Without the notes about tenants.
fn of_others(store: &dyn LogStore, gone: TenantId) -> Records {
    let mut all = all(store);
    all.remove("meta");
    all.values_mut().for_each(|records| records.retain(|(key, _)| !names(key, gone)));
    all
}

#[test]
fn an_erased_tenant_leaves_its_receipt_alone_and_others_as_they_were() {
    for store in [lived(), small()] {
        for gone in [tenant(1), tenant(2)] {
            let (others, records) = (of_others(&store, gone), of(&store, gone));
            let close = Write::Close { tenant: gone, to: Closing::Erase, at: UnixMs(40) };
            assert_eq!(commit(&store, std::slice::from_ref(&close)), [Ok(())]);
            // From here on there is nothing to be seen of it.
            let view = store.view().unwrap();
            assert_eq!((view.list(gone, None, 9).unwrap(), view.feed_head(gone).unwrap()), (vec![], 0));
            assert!(view.owing(None, 99).unwrap().iter().all(|place| place.tenant != gone));
            assert!(view.due(UnixMs(u64::MAX), 99).unwrap().iter().all(|(_, key)| key.tenant != gone));
            assert!(view.due_jobs(UnixMs(u64::MAX), 99).unwrap().iter().all(|(_, key)| key.tenant != gone));
            assert!(!view.feeds().unwrap().contains(&gone));
            drop(view);
            while erase_step(&store, gone, 50) > 0 {}
            assert_gone(&store, gone);
            assert_eq!(of_others(&store, gone), others);
            let erased = note(&store, gone).unwrap();
            let counts = records.iter().map(|(table, records)| (table.clone(), records.len() as u64));
            assert_eq!(erased.records, counts.collect());
            let receipt = erased.receipt().unwrap();
            assert_eq!((receipt.began_at, receipt.erased_at), (UnixMs(40), UnixMs(50)));
            // Again: nothing happens, and the receipt is the same.
            assert_eq!(commit(&store, &[close]), [Ok(())]);
            assert_eq!(erase_step(&store, gone, 60), 0);
            assert_eq!(note(&store, gone).unwrap().receipt(), Some(receipt));
            // And nobody comes back.
            assert!(matches!(put(&store, append(first_of(gone), 0, 1)), Err(WriteRefused::Closed(_))));
            assert_gone(&store, gone);
        }
    }
}

/// A thread of a tenant.
fn first_of(tenant: TenantId) -> ThreadKey {
    ThreadKey { tenant, ..thread(1, 1) }
}

/// A tenant that takes several steps to remove, beside another one.
fn large(medium: &MemoryMedium) -> RedbStore {
    let store = redb(medium);
    for n in 1..60 {
        let mut step = append(thread(1, n), 0, 3);
        (step.row.head.owes_since, step.row.head.wake_at) = (Some(UnixMs(5)), Some(UnixMs(u64::from(n))));
        step.settled = vec![settled(1)];
        step.receipts = vec![receipt(n, u64::from(n))];
        for event in &mut step.chunk.events {
            event.json = vec![b'7'; 30_000].into();
        }
        put(&store, step).unwrap();
        put(&store, append(thread(2, n), 0, 1)).unwrap();
    }
    store
}

#[test]
fn an_erasure_that_ended_after_any_of_its_commits_goes_on_when_the_store_is_opened_again() {
    let medium = MemoryMedium::default();
    let store = large(&medium);
    let (gone, others) = (tenant(1), of_others(&store, tenant(1)));
    let records = of(&store, gone);
    let close = Write::Close { tenant: gone, to: Closing::Erase, at: UnixMs(40) };
    assert_eq!(commit(&store, &[close]), [Ok(())]);
    let mut commits = 0;
    loop {
        // What a process leaves that dies here.
        let left = MemoryMedium::holding(medium.bytes());
        let next = redb(&left);
        assert_eq!(note(&next, gone).map(|note| note.state), Some(State::Erasing));
        assert!(matches!(put(&next, append(thread(1, 1), 0, 1)), Err(WriteRefused::Closed(_))));
        while erase_step(&next, gone, 50) > 0 {}
        assert_gone(&next, gone);
        assert_eq!(of_others(&next, gone), others);
        let counts = records.iter().map(|(table, records)| (table.clone(), records.len() as u64));
        assert_eq!(note(&next, gone).unwrap().records, counts.collect(), "after {commits}");
        commits += 1;
        if erase_step(&store, gone, 50) == 0 {
            break;
        }
    }
    assert!(commits > 4, "{commits}");
    assert_gone(&store, gone);
}

#[test]
fn a_tenant_that_is_readmitted_begins_anew_and_its_next_erasure_has_a_receipt_of_its_own() {
    let store = small();
    let gone = tenant(1);
    let erase = |at| {
        assert_eq!(commit(&store, &[Write::Close { tenant: gone, to: Closing::Erase, at: UnixMs(at) }]), [Ok(())]);
        while erase_step(&store, gone, at + 1) > 0 {}
        note(&store, gone).unwrap().receipt().unwrap()
    };
    let open = || commit(&store, &[Write::Open { tenant: gone, documents: Vec::new() }]);
    let first = erase(10);
    assert_eq!(open(), [Ok(())]);
    // Nothing came: the receipt says it all.
    assert_eq!(erase(20), first);
    assert_eq!(open(), [Ok(())]);
    put(&store, append(thread(1, 1), 0, 2)).unwrap();
    assert_eq!(store.view().unwrap().feed_head(gone).unwrap(), 1);
    let second = erase(30);
    assert_eq!((second.began_at, second.records["log"]), (UnixMs(30), 1));
    assert_gone(&store, gone);
    // One that is emptied cannot be filled before it is readmitted, and what was erased stays known then.
    let import = Write::Close { tenant: gone, to: Closing::Import, at: UnixMs(40) };
    assert!(matches!(&commit(&store, std::slice::from_ref(&import))[..], [Err(WriteRefused::Closed(_))]));
    assert_eq!(open(), [Ok(())]);
    assert_eq!(commit(&store, &[import]), [Ok(())]);
    undo(&store, gone);
    assert_eq!(note(&store, gone).unwrap().receipt(), Some(second));
    put(&store, append(thread(1, 1), 0, 2)).unwrap();
}

#[test]
fn the_installation_itself_cannot_be_erased_and_no_text_names_it() {
    let store = small();
    let close = Write::Close { tenant: TenantId::SYSTEM, to: Closing::Erase, at: UnixMs(1) };
    assert!(matches!(&commit(&store, &[close])[..], [Err(WriteRefused::Closed(_))]));
    assert!(TenantId::SYSTEM.to_string().parse::<TenantId>().is_err());
}

#[test]
fn turns_of_an_erased_tenant_are_not_packed_back() {
    let store = lived();
    let gone = tenant(1);
    assert_eq!(commit(&store, &[Write::Close { tenant: gone, to: Closing::Erase, at: UnixMs(1) }]), [Ok(())]);
    while erase_step(&store, gone, 2) > 0 {
        store.pack(UnixMs(u64::MAX), usize::MAX).unwrap();
    }
    store.pack(UnixMs(u64::MAX), usize::MAX).unwrap();
    assert_gone(&store, gone);
}

#[test]
fn events_are_what_a_view_shows_of_an_open_tenant_beside_a_closed_one() {
    let store = small();
    assert_eq!(commit(&store, &[Write::Close { tenant: tenant(1), to: Closing::Erase, at: UnixMs(1) }]), [Ok(())]);
    let view = store.view().unwrap();
    assert_eq!(view.event(thread(2, 1), 1).unwrap(), Some(event(thread(2, 1), 1)));
    assert_eq!(view.event(thread(1, 1), 1).unwrap(), None);
    assert_eq!(view.owing(None, 1).unwrap()[0].tenant, tenant(2));
    assert_eq!(view.due(UnixMs(99), 1).unwrap()[0].1.tenant, tenant(2));
    assert_eq!(view.next_wake().unwrap(), Some(UnixMs(9)));
}
