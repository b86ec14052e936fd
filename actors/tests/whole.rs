//! Backups under load, exports, imports and erasures, as a host of the runtime has them.

mod testbed;

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use raddle_actors::{
    Call, Config, Error, Pieces, Ports, RecordQuery, Runtime, ThreadQuery,
    store::redb::{RedbConfig, RedbStore, restore},
};
use raddle_domain::{
    closed::{Closed, State},
    command::NewThread,
    id::{TenantId, ThreadKey},
    ports::{Append, Chunk, DocumentKind, LogStore, Part, PartKind, PartName, Write},
    record::Delivery,
    run::command::NewRun,
    time::UnixMs,
};
use testbed::*;

fn named(name: &str) -> TenantId {
    name.parse().unwrap()
}

async fn create_for(runtime: &Runtime, tenant: TenantId) -> ThreadKey {
    let done = runtime.create_thread(tenant, NewThread::with(choice()), Call::default()).await.unwrap();
    ThreadKey { tenant, thread: done.value.id }
}

async fn whole(mut pieces: Pieces) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece.unwrap());
    }
    whole
}

/// In pieces that end where nothing does.
fn pieces(text: Vec<u8>) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let pieces: Vec<_> = text.chunks(333).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

async fn seqs(runtime: &Runtime, key: ThreadKey) -> u64 {
    log(runtime, key).await.len() as u64
}

/// Every key of a database in which a tenant's name stands, by table.
fn keys_of(dir: &Path, tenant: TenantId) -> Vec<(String, Vec<u8>)> {
    let store = RedbStore::open(&RedbConfig::new(dir)).unwrap();
    let mut keys = Vec::new();
    let mut file = Vec::new();
    raddle_actors::store::backup::write(&*store.view().unwrap(), "0", UnixMs(0), |piece| {
        file.extend_from_slice(&piece);
        Ok(())
    })
    .map(|summary| {
        for table in summary.header.tables {
            let mut after = None::<Vec<u8>>;
            loop {
                let stretch = store.view().unwrap().stretch(&table, None, after.as_deref(), 1 << 20).unwrap();
                let named = stretch.records.into_iter().map(|(key, _)| key);
                let named = named.filter(|key| key.windows(32).any(|window| window == tenant.as_bytes()));
                keys.extend(named.map(|key| (table.clone(), key)));
                after = stretch.next;
                if after.is_none() {
                    break;
                }
            }
        }
    })
    .unwrap();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_under_load_restores_to_a_prefix_that_holds_all_that_was_acknowledged_before_it() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let mut keys = Vec::new();
    for _ in 0..8 {
        keys.push(create(&runtime).await);
    }
    for key in &keys {
        say(&runtime, *key, "before").await;
    }
    // A turn that is open when the backup is taken, and stays so.
    let open = create(&runtime).await;
    start(&runtime, open, "hold on").await;
    let mut acked = Vec::new();
    for key in keys.iter().chain([&open]) {
        acked.push((*key, seqs(&runtime, *key).await));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = keys
        .iter()
        .map(|key| {
            let (runtime, key, stop) = (runtime.clone(), *key, stop.clone());
            tokio::spawn(async move {
                let mut said = 0u32;
                while !stop.load(SeqCst) {
                    say(&runtime, key, "meanwhile").await;
                    said += 1;
                }
                said
            })
        })
        .collect();
    let mut files = Vec::new();
    for _ in 0..3 {
        files.push(whole(runtime.backup().unwrap()).await);
    }
    stop.store(true, SeqCst);
    let mut said = 0;
    for writer in writers {
        said += writer.await.unwrap();
    }
    assert!(said > 0);
    let mut last = Vec::new();
    for key in &keys {
        last.push(seqs(&runtime, *key).await);
    }
    runtime.shutdown(std::time::Duration::ZERO).await;
    for file in files {
        let dir = tempfile::tempdir().unwrap();
        restore(file.as_slice(), dir.path()).unwrap();
        let restored = Bed { dir, ..Bed::new() };
        let runtime = restored.start().await;
        // The open turn goes on: its model call is made again.
        let asked = async {
            while restored.model.calls.load(SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, asked).await.expect("the open turn goes on");
        for (key, acked) in &acked {
            let log = log(&runtime, *key).await;
            assert_sound(&log, false);
            assert!(log.len() as u64 >= *acked, "{key}: {} of {acked}", log.len());
        }
        for (key, last) in keys.iter().zip(&last) {
            rests(&runtime, *key).await;
            let before = seqs(&runtime, *key).await;
            assert!(before <= *last + 20);
            say(&runtime, *key, "after").await;
            assert_sound(&log(&runtime, *key).await, true);
        }
        runtime.shutdown(std::time::Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_reader_that_goes_ends_its_backup_and_frees_its_place() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    say_some(&runtime, TenantId::DEFAULT, 3).await;
    let (one, two) = (runtime.backup().unwrap(), runtime.backup().unwrap());
    assert!(matches!(runtime.backup().map(drop), Err(Error::Busy { .. })));
    assert!(matches!(runtime.export_tenant(OWNER).map(drop), Err(Error::Busy { .. })));
    drop((one, two));
    let free = async {
        while runtime.backup().is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, free).await.expect("their places are free");
    runtime.shutdown(LONG).await;
}

/// Threads of a tenant that said something, one of them with a prompt that waits behind a turn that is open.
async fn say_some(runtime: &Runtime, tenant: TenantId, count: usize) -> Vec<ThreadKey> {
    let mut keys = Vec::new();
    for n in 0..count {
        let key = create_for(runtime, tenant).await;
        say(runtime, key, &format!("number {n}")).await;
        keys.push(key);
    }
    keys
}

#[tokio::test]
async fn an_import_under_another_name_is_the_tenant_that_was_exported() {
    let (here, there) = (Bed::new(), Bed::new());
    let (was, is) = (named("acme"), named("other"));
    let from = here.start().await;
    let mut keys = say_some(&from, was, 3).await;
    let open = create_for(&from, was).await;
    start(&from, open, "hold on").await;
    from.start_turn(open, prompt("later", Delivery::Queue), Call::default()).await.unwrap();
    let run = NewRun {
        objective: "o".to_owned(),
        source_metadata: Some(serde_json::json!({ "tenant": "acme" })),
        ..NewRun::default()
    };
    let run = from.create_run(was, run, Call::default()).await.unwrap().value;
    let lines = whole(from.export_tenant(was).unwrap()).await;

    let to = there.start().await;
    let counts = to.import_tenant(is, pieces(lines.clone())).await.unwrap();
    assert_eq!(counts["threads"], 5);
    // What was open goes on there.
    let asked = async {
        while there.model.calls.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("the open turn goes on");
    assert_eq!(to.tenant_figures(is).await.unwrap().threads, 4);
    let (mine, theirs) = (from.run(was, run.id).await.unwrap(), to.run(is, run.id).await.unwrap());
    assert_eq!((mine.tenant, theirs.tenant), (was, is));
    assert_eq!(theirs.source_metadata, mine.source_metadata);
    for key in &keys {
        let other = ThreadKey { tenant: is, ..*key };
        assert_eq!(to.thread(other).await.unwrap(), from.thread(*key).await.unwrap());
        assert_eq!(to.snapshot(other).await.unwrap(), from.snapshot(*key).await.unwrap());
        assert_eq!(log(&to, other).await, log(&from, *key).await);
    }
    assert_eq!(to.inbox(ThreadKey { tenant: is, ..open }).await.unwrap().len(), 1);
    let open_here = log(&from, open).await;
    assert_eq!(log(&to, ThreadKey { tenant: is, ..open }).await[..open_here.len()], open_here[..]);
    let usage = |runtime: &Runtime, tenant| {
        let (runtime, query) = (runtime.clone(), raddle_actors::UsageQuery::default());
        async move { format!("{:?}", runtime.usage(tenant, query).await.unwrap()) }
    };
    assert_eq!(usage(&to, is).await, usage(&from, was).await);
    // It is a tenant like any other: what comes next is stored behind what was.
    keys.truncate(1);
    say(&to, ThreadKey { tenant: is, ..keys[0] }, "more").await;
    // Under the same name in a third store it is the same to the letter.
    let third = Bed::new();
    let same = third.start().await;
    same.import_tenant(was, pieces(lines.clone())).await.unwrap();
    assert_eq!(same.run(was, run.id).await.unwrap(), mine);
    // Where there is something already, nothing is brought in.
    assert!(matches!(to.import_tenant(is, pieces(lines)).await, Err(Error::TenantNotEmpty)));
    for runtime in [from, to, same] {
        runtime.shutdown(std::time::Duration::ZERO).await;
    }
}

#[tokio::test]
async fn an_import_that_is_cut_off_or_changed_says_where_and_leaves_a_tenant_that_can_be_filled() {
    let (here, there) = (Bed::new(), Bed::new());
    let (was, is) = (named("acme"), named("other"));
    let from = here.start().await;
    say_some(&from, was, 4).await;
    let lines = String::from_utf8(whole(from.export_tenant(was).unwrap()).await).unwrap();
    from.shutdown(LONG).await;
    let to = there.start().await;
    let count = lines.lines().count();
    let cut = |lines_kept: usize| lines.lines().take(lines_kept).map(|line| format!("{line}\n")).collect::<String>();
    let mut changed: Vec<_> = lines.lines().map(str::to_owned).collect();
    let said = changed.iter().position(|line| line.contains("number 2")).unwrap();
    changed[said] = changed[said].replace("number 2", "number 3");
    let changed = changed.join("\n") + "\n";
    for (bad, at) in [
        (cut(count - 1), count),
        (cut(3), 4),
        (lines.trim_end().to_owned(), count),
        (changed, count),
        (String::new(), 1),
    ] {
        let refused = to.import_tenant(is, pieces(bad.into_bytes())).await;
        let Err(Error::BadExport { line, why }) = refused else { panic!("{refused:?}") };
        assert_eq!(line, at as u64, "{why}");
        assert_eq!(to.threads(is, ThreadQuery { limit: 9, ..ThreadQuery::default() }).await.unwrap().data, []);
    }
    // One whose sender is lost.
    let half = lines.as_bytes()[..lines.len() / 2].to_vec();
    let lost = pieces(half).chain(stream::iter([Err(std::io::Error::other("gone"))]));
    assert!(matches!(to.import_tenant(is, lost).await, Err(Error::BadExport { .. })));
    to.import_tenant(is, pieces(lines.into_bytes())).await.unwrap();
    to.shutdown(LONG).await;
    drop(to);
    assert!(!keys_of(there.dir.path(), is).is_empty());
}

#[tokio::test]
async fn an_erased_tenant_is_gone_its_agents_are_stopped_and_it_does_not_come_back() {
    let bed = Bed::new();
    let (gone, stays) = (named("acme"), named("other"));
    let runtime = bed.start().await;
    let keys = say_some(&runtime, gone, 3).await;
    let others = say_some(&runtime, stays, 2).await;
    let open = create_for(&runtime, gone).await;
    start(&runtime, open, "hold on").await;
    let other = log(&runtime, others[0]).await;
    let receipt = runtime.erase_tenant(gone).await.unwrap();
    assert_eq!((receipt.tenant, receipt.records["threads"]), (gone, 4));
    assert_eq!(runtime.health().running_turns, 0);
    let none = ThreadQuery { limit: 9, ..ThreadQuery::default() };
    assert_eq!(runtime.threads(gone, none).await.unwrap().data, []);
    for key in keys.iter().chain([&open]) {
        assert!(matches!(runtime.thread(*key).await, Err(Error::NotFound(_))));
        let said = runtime.start_turn(*key, prompt("again", Delivery::Reject), Call::default()).await;
        assert!(matches!(said, Err(Error::NotFound(_) | Error::TenantClosed(_))), "{said:?}");
    }
    let made = runtime.create_thread(gone, NewThread::with(choice()), Call::default()).await;
    assert!(matches!(made, Err(Error::TenantClosed(_))), "{made:?}");
    assert_eq!(runtime.erase_tenant(gone).await.unwrap(), receipt);
    assert_eq!(runtime.erasure(gone).await.unwrap(), Some(receipt.clone()));
    assert_eq!(runtime.erasures().await.unwrap(), std::slice::from_ref(&receipt));
    assert_eq!(log(&runtime, others[0]).await, other);
    say(&runtime, others[0], "more").await;
    runtime.shutdown(LONG).await;
    drop(runtime);
    let left = keys_of(bed.dir.path(), gone);
    assert!(matches!(&left[..], [(table, _)] if table == "documents"), "{left:?}");

    let runtime = bed.start().await;
    assert_eq!(runtime.erase_tenant(gone).await.unwrap(), receipt);
    runtime.readmit_tenant(gone).await.unwrap();
    assert_eq!(runtime.erasures().await.unwrap(), []);
    let anew = create_for(&runtime, gone).await;
    say(&runtime, anew, "anew").await;
    assert_eq!(runtime.erasure(gone).await.unwrap(), Some(receipt));
    runtime.shutdown(LONG).await;
}

// ---- a process that dies ----------------------------------------------------------------------------

const DIR: &str = "RADDLE_TEST_DIES_IN";
const AT: &str = "RADDLE_TEST_DIES_AT";
const WHAT: &str = "RADDLE_TEST_DIES_WITH";

/// Dies before or after the commit with this number among those that change a closed tenant.
fn deadly(at: usize, after: bool) -> OnCommit {
    let seen = AtomicUsize::new(0);
    Box::new(move |writes, commit| {
        let closes = |write: &Write| {
            matches!(write, Write::Close { .. } | Write::Sweep { .. } | Write::Import { .. } | Write::Open { .. })
        };
        let number = match writes.iter().any(closes) {
            true => seen.fetch_add(1, SeqCst),
            false => usize::MAX,
        };
        if number == at && !after {
            std::process::abort();
        }
        let done = commit();
        if number == at {
            std::process::abort();
        }
        done
    })
}

/// The process that dies: an erasure, or an import, of a tenant that takes several commits.
#[tokio::test]
#[ignore = "the other tests run it as a process of its own"]
async fn dies() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let at = std::env::var(AT).unwrap();
    let (after, at) = (at.starts_with('+'), at[1..].parse().unwrap());
    let config = Config::new(dir);
    let store = Hooked::open(&config.store, deadly(at, after));
    let ports = Ports { store: Some(Arc::new(store)), ..tool_ports(&TestModel::new(), &TestTools::new(dir)) };
    let runtime = Runtime::start(config, ports).await.unwrap();
    match std::env::var(WHAT).unwrap().as_str() {
        "erase" => drop(runtime.erase_tenant(named("acme")).await),
        _ => {
            let lines = std::fs::read(dir.join("lines")).unwrap();
            drop(runtime.import_tenant(named("new"), pieces(lines)).await);
        }
    }
    runtime.shutdown(LONG).await;
}

/// Whether it died.
async fn died(dir: &Path, at: &str, what: &str) -> bool {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "dies", "--ignored", "--nocapture", "--test-threads", "1"]);
    process.env(DIR, dir).env(AT, at).env(WHAT, what);
    let ended = tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
    assert!(signal == Some(6) || ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    signal.is_some()
}

/// A directory with a tenant whose records take more than one commit to remove, and its export.
async fn prepared() -> tempfile::TempDir {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let keys = say_some(&runtime, named("acme"), 12).await;
    say_some(&runtime, named("other"), 1).await;
    runtime.shutdown(LONG).await;
    drop(runtime);
    // Much that nobody reads.
    let store = RedbStore::open(&RedbConfig::new(bed.dir.path())).unwrap();
    for key in keys {
        let mut row = store.view().unwrap().row(key).unwrap().unwrap();
        row.head.fence = store.epoch();
        let (seq, json) = (row.head.last_seq, format!("\"{}\"", "x".repeat(250_000)).into_bytes());
        let nothing = Chunk { first: seq + 1, events: Vec::new() };
        let part = Part { kind: PartKind::Task, name: PartName::number(1), json: Some(json) };
        let append = Append { parts: vec![part], ..Append::new(key, seq, UnixMs(0), nothing, row) };
        assert!(store.commit(&[Write::Append(append)]).unwrap()[0].is_ok());
    }
    drop(store);
    let runtime = bed.start().await;
    let lines = whole(runtime.export_tenant(named("acme")).unwrap()).await;
    std::fs::write(bed.dir.path().join("lines"), lines).unwrap();
    runtime.shutdown(LONG).await;
    bed.dir
}

/// A copy to die in.
fn copied(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["raddle.redb", "lines"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    dir
}

async fn note(runtime: &RedbStore, tenant: TenantId) -> Option<State> {
    let notes = runtime.view().unwrap().documents(TenantId::SYSTEM, DocumentKind::Closed).unwrap();
    let notes = notes.iter().map(|note| serde_json::from_slice::<Closed>(&note.json).unwrap());
    notes.into_iter().find(|note| note.tenant == tenant).map(|note| note.state)
}

#[tokio::test]
async fn an_erasure_whose_process_dies_at_any_commit_is_finished_by_the_next_one() {
    let (from, gone) = (prepared().await, named("acme"));
    let mut commits = 0;
    for at in 0.. {
        let mut lived = 0;
        for when in ['-', '+'] {
            let dir = copied(from.path());
            if !died(dir.path(), &format!("{when}{at}"), "erase").await {
                lived += 1;
                continue;
            }
            let began = {
                let store = RedbStore::open(&RedbConfig::new(dir.path())).unwrap();
                note(&store, gone).await.is_some()
            };
            assert_eq!(began, at > 0 || when == '+');
            let bed = Bed { dir, ..Bed::new() };
            let runtime = bed.start().await;
            if began {
                // Nobody asks for it.
                let finished = async {
                    while runtime.erasure(gone).await.unwrap().is_none() {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(LONG, finished).await.expect("it goes on by itself");
            }
            let receipt = runtime.erase_tenant(gone).await.unwrap();
            assert_eq!(receipt.records["threads"], 12, "{when}{at}");
            let others = ThreadQuery { limit: 9, ..ThreadQuery::default() };
            assert_eq!(runtime.threads(named("other"), others).await.unwrap().data.len(), 1);
            runtime.shutdown(LONG).await;
            drop(runtime);
            assert_eq!(keys_of(bed.dir.path(), gone).len(), 1, "{when}{at}");
        }
        if lived == 2 {
            break;
        }
        commits += 1;
    }
    assert!(commits > 3, "{commits}");
}

#[tokio::test]
async fn an_import_whose_process_dies_at_any_commit_leaves_all_of_it_or_nothing() {
    let (from, new) = (prepared().await, named("new"));
    let (mut alls, mut nothings) = (0, 0);
    for at in 0.. {
        let mut lived = 0;
        for when in ['-', '+'] {
            let dir = copied(from.path());
            if !died(dir.path(), &format!("{when}{at}"), "import").await {
                lived += 1;
                continue;
            }
            let bed = Bed { dir, ..Bed::new() };
            let runtime = bed.start().await;
            // Whatever there is of it is taken back, and until then not seen.
            let query = ThreadQuery { limit: 99, ..ThreadQuery::default() };
            let count = runtime.threads(new, query).await.unwrap().data.len();
            assert!(count == 0 || count == 12, "{when}{at}: {count}");
            let lines = std::fs::read(bed.dir.path().join("lines")).unwrap();
            let again = async {
                loop {
                    match runtime.import_tenant(new, pieces(lines.clone())).await {
                        Err(Error::TenantClosed(_)) => tokio::task::yield_now().await,
                        done => return done,
                    }
                }
            };
            let again = tokio::time::timeout(LONG, again).await.expect("it is taken back");
            if count == 12 {
                alls += 1;
                assert!(matches!(again, Err(Error::TenantNotEmpty)), "{again:?}");
            } else {
                nothings += 1;
                again.unwrap();
            }
            let all = RecordQuery { limit: 9, ..RecordQuery::default() };
            assert_eq!(runtime.approvals(new, all).await.unwrap().data, []);
            runtime.shutdown(LONG).await;
        }
        if lived == 2 {
            break;
        }
    }
    assert!(alls == 1 && nothings > 6, "{alls} {nothings}");
}
