//! What a damaged, taken or full disk costs: one thread, one start, or the writes of a while; never the server.

mod support;

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use serde_json::json;
use support::*;
use tokio::time::Instant;

/// Whether everything that a client does with a thread works.
async fn works(api: &Api, thread: &str) {
    let turn = api.start(thread, "still here").await;
    assert_eq!(api.wait(thread, &turn).await["status"], "completed");
    api.rest(thread).await;
    let log = api.log(thread).await;
    check_log(&log, true);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(thread).await));
}

#[tokio::test]
async fn a_thread_whose_record_is_damaged_is_named_and_all_others_work() {
    const MARKER: &str = "the-title-whose-record-will-be-damaged";
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut others = Vec::new();
    for n in 0..5 {
        others.push(server.api.create(json!({"title": format!("other {n}")})).await);
    }
    let damaged = server.api.create(json!({"title": MARKER})).await;
    server.api.start(&damaged, "hello").await;
    server.api.rest(&damaged).await;
    server.stop().await;
    assert!(damage(dir.path(), MARKER) > 0);

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    api.get("/readyz").await.expect(200);
    let path = format!("/v1/threads/{damaged}");
    for read in ["", "/snapshot", "/turns", "/items", "/inbox"] {
        let problem = api.get(&format!("{path}{read}")).await.problem(503, "thread-unavailable");
        let detail = text(&problem["detail"]);
        assert!(detail.contains("threads") && detail.contains(&damaged), "{read}: {detail}");
    }
    let reply = api.post(&format!("{path}/turns"), json!({"prompt": "x"})).await;
    assert!(text(&reply.problem(503, "thread-unavailable")["detail"]).contains(&damaged));
    assert!(reply.header("retry-after").is_some());
    api.patch(&path, json!({"title": "mended"})).await.problem(503, "thread-unavailable");

    let list = api.get("/v1/threads").await.expect(200);
    let listed: Vec<_> = list["data"].as_array().unwrap().iter().map(|thread| text(&thread["id"])).collect();
    assert_eq!(listed, others.iter().rev().cloned().collect::<Vec<_>>());
    let unavailable = list["unavailable"].as_array().expect("a damaged thread is listed as such");
    assert_eq!(unavailable.len(), 1);
    assert_eq!(unavailable[0]["id"], *damaged);
    assert!(text(&unavailable[0]["detail"]).contains("checksum"), "{list}");
    let shown = run(raddle().args(["threads", "ls", "--server", &server.url]), "");
    assert_eq!((shown.code, shown.out.lines().count()), (Some(0), others.len()));
    assert!(shown.said.contains(&damaged) && shown.said.contains("checksum"), "{}", shown.said);
    for other in &others {
        works(api, other).await;
    }
    works(api, &api.create(json!({})).await).await;
    // It can still be removed, and then nothing is left of it, also for the next start.
    api.delete(&path).await.expect(204);
    api.get(&path).await.problem(404, "not-found");
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let list = server.api.get("/v1/threads?limit=500").await.expect(200);
    assert!(list["unavailable"].as_array().is_none_or(Vec::is_empty), "{list}");
    assert_eq!(list["data"].as_array().unwrap().len(), others.len() + 1);
}

#[tokio::test]
async fn a_thread_whose_log_is_damaged_never_reads_it_wrong() {
    const MARKER: &str = "a-prompt-whose-record-will-be-damaged";
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let other = server.api.create(json!({})).await;
    let damaged = server.api.create(json!({"title": "sound"})).await;
    server.api.start(&damaged, MARKER).await;
    server.api.rest(&damaged).await;
    server.stop().await;
    assert!(damage(dir.path(), MARKER) > 0);

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    let path = format!("/v1/threads/{damaged}");
    for read in ["/events", "/items", "/snapshot"] {
        let problem = api.get(&format!("{path}{read}")).await.problem(503, "thread-unavailable");
        let detail = text(&problem["detail"]);
        assert!(detail.contains(&damaged), "{read}: {detail}");
    }
    // Its row is sound, and is shown.
    assert_eq!(api.get(&path).await.expect(200)["title"], "sound");
    works(api, &other).await;
    // It can still be got rid of.
    assert_eq!(api.delete(&path).await.status, 204);
    api.get(&path).await.problem(404, "not-found");
}

#[tokio::test]
async fn an_open_turn_whose_log_is_damaged_holds_up_nobody_elses_turn() {
    const MARKER: &str = "an-open-turn-whose-record-will-be-damaged";
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), &[("RADDLE_SHUTDOWN_DEADLINE_MS", "0")]).await;
    let damaged = server.api.create(json!({})).await;
    let turn = server.api.start(&damaged, &format!("@wait 600000\n{MARKER}")).await;
    let open = server.api.create(json!({})).await;
    let goes_on = server.api.start(&open, "@wait 1000\n@say done").await;
    server.stop().await;
    assert!(damage(dir.path(), MARKER) > 0);

    let server = Server::start(dir.path()).await;
    let api = &server.api;
    assert_eq!(api.wait(&open, &goes_on).await["status"], "completed");
    let path = format!("/v1/threads/{damaged}");
    let problem = api.get(&format!("{path}/snapshot")).await.problem(503, "thread-unavailable");
    assert!(text(&problem["detail"]).contains(&damaged), "{problem}");
    let interrupt = api.post(&format!("{path}/turns/{turn}/interrupt"), json!({})).await;
    interrupt.problem(503, "thread-unavailable");
    api.rest(&open).await;
    works(api, &open).await;
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused_with_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Server::start(dir.path()).await;
    let refused = Server::launch(dir.path(), &[]).await.err().expect("two servers on one directory");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.said.contains(&format!("process {}", first.pid())), "{}", refused.said);
    assert!(refused.said.contains(dir.path().to_str().unwrap()), "{}", refused.said);
    works(&first.api, &first.api.create(json!({})).await).await;
    // A process that is gone holds nothing.
    first.kill();
    let third = Server::start(dir.path()).await;
    works(&third.api, &third.api.create(json!({})).await).await;
}

// ---- a full disk ---------------------------------------------------------------------------------

/// A small disk of its own.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// `None`, with the reason printed, where nobody may mount.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Self { dir }),
            Ok(done) => {
                println!("SKIPPED: cannot mount: {}", String::from_utf8_lossy(&done.stderr));
                None
            }
            Err(why) => {
                println!("SKIPPED: cannot run mount: {why}");
                None
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut ballast = File::create(self.dir.path().join("ballast")).unwrap();
        let mut piece = vec![0; 64 * 1024];
        loop {
            match ballast.write(&piece) {
                Ok(_) => {}
                Err(why) if why.kind() == ErrorKind::StorageFull && piece.len() > 1 => piece.truncate(piece.len() / 2),
                Err(why) if why.kind() == ErrorKind::StorageFull => return,
                Err(why) => panic!("{why}"),
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.dir.path().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that is about to be killed may still hold it.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// Repeats a write until it is taken. The one thing here that has no event to wait for is room on a disk.
async fn until_writable(api: &Api) -> u32 {
    let began = Instant::now();
    let mut refused = 0;
    loop {
        let reply = api.post("/v1/threads", json!({})).await;
        if reply.status == 201 {
            return refused;
        }
        assert!(matches!(reply.status, 503 | 507), "{}", String::from_utf8_lossy(&reply.body));
        assert!(began.elapsed() < Duration::from_secs(10), "there is room, and no write is taken: {:?}", reply.json());
        refused += 1;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else_until_there_is_room() {
    let Some(disk) = Disk::mount("24m") else { return };
    let env = [("RADDLE_STORE_MIN_FREE_BYTES", "2000000")];
    let mut server = Server::with(&disk.data(), &env).await;
    let api = server.api.clone();
    let thread = api.create(json!({"title": "kept"})).await;
    let turn = api.start(&thread, "before").await;
    api.rest(&thread).await;
    let open = api.create(json!({})).await;
    let hangs = api.start(&open, "@say part\n@wait 600000").await;
    let busy = api.create(json!({})).await;
    let speaks = api.start(&busy, "@wait 300\n@tokens 20").await;
    let (log, snapshot) = (api.log(&thread).await, api.snapshot(&thread).await);

    for round in 0..3 {
        disk.fill();
        let path = format!("/v1/threads/{thread}");
        for _ in 0..10 {
            api.post("/v1/threads", json!({})).await.problem(507, "storage-full");
            api.patch(&path, json!({"title": "lost"})).await.problem(507, "storage-full");
            api.post(&format!("{path}/turns"), json!({"prompt": "lost"})).await.problem(507, "storage-full");
            api.delete(&path).await.problem(507, "storage-full");
        }
        api.post(&format!("/v1/threads/{open}/turns/{hangs}/interrupt"), json!({})).await.problem(507, "storage-full");
        let not_ready = api.get("/readyz").await;
        not_ready.problem(503, "store-unavailable");
        api.get("/healthz").await.expect(200);
        // Reads go on, and a refused write is nowhere.
        if round == 0 {
            assert_eq!((api.log(&thread).await, api.snapshot(&thread).await), (log.clone(), snapshot.clone()));
        }
        assert_eq!(api.get(&format!("{path}/turns/{turn}")).await.expect(200)["status"], "completed");
        assert_eq!(api.list("/v1/threads", 2).await.len(), 3 + round);
        assert!(server.is_up());
        disk.make_room();
        until_writable(&api).await;
        works(&api, &thread).await;
        assert_eq!(api.get("/readyz").await.status, 200);
    }
    // What ran when the disk was full goes on by itself.
    assert_eq!(api.wait(&busy, &speaks).await["status"], "completed");
    let path = format!("/v1/threads/{open}/turns/{hangs}");
    api.post(&format!("{path}/interrupt"), json!({})).await.expect(200);
    for id in [&thread, &open, &busy] {
        api.rest(id).await;
        let log = api.log(id).await;
        check_log(&log, true);
        assert!(!format!("{log:?}").contains("lost"));
        assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(id).await));
    }
    server.stop().await;
    let server = Server::with(&disk.data(), &env).await;
    works(&server.api, &thread).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_under_writes_loses_nothing_that_was_acknowledged() {
    let Some(disk) = Disk::mount("24m") else { return };
    // Nothing is kept free: the disk itself says when it is full.
    let env = [("RADDLE_STORE_MIN_FREE_BYTES", "0")];
    let mut server = Server::with(&disk.data(), &env).await;
    let api = server.api.clone();
    let large = "x".repeat(12_000);
    let mut made = Vec::new();
    let refused = loop {
        let reply = api.post("/v1/threads", json!({"metadata": {"n": made.len(), "large": large}})).await;
        match reply.status {
            201 => made.push(text(&reply.json()["id"])),
            _ => break reply,
        }
        assert!(made.len() < 10_000, "the disk never fills");
    };
    // Whether the commit that met the end of the disk is stored is not known before the database is opened again.
    assert!(matches!(refused.status, 503 | 507), "{}", String::from_utf8_lossy(&refused.body));
    println!("{} threads were made", made.len());
    assert!(server.is_up());
    let deleted = made.remove(0);
    for _ in 0..3 {
        // Some may still fit, or may not; nothing else can be the answer.
        let reply = api.patch(&format!("/v1/threads/{}", made[0]), json!({"title": "x".repeat(4000)})).await;
        assert!(matches!(reply.status, 200 | 503 | 507), "{}", String::from_utf8_lossy(&reply.body));
    }
    server.kill();
    // An operator makes room by giving the disk more of it.
    let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(disk.dir.path()).status().unwrap();
    assert!(grown.success());
    let server = Server::with(&disk.data(), &env).await;
    let api = &server.api;
    assert_eq!(api.delete(&format!("/v1/threads/{deleted}")).await.status, 204);
    for id in &made {
        let thread = api.get(&format!("/v1/threads/{id}")).await.expect(200);
        assert_eq!(thread["metadata"]["large"], *large);
    }
    works(api, &made[0]).await;
}
