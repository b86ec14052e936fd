//! Backups, restores, exports and imports, at the command line and over HTTP.

mod support;
#[path = "support/tenants.rs"]
mod tenants;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::{Value, json};
use support::*;
use tenants::OPERATOR;

fn ask(server: &Server, args: &[&str]) -> Output {
    run(operators(server).args(args), "")
}

/// The command line, with the operator's key.
fn operators(server: &Server) -> std::process::Command {
    let mut command = raddle();
    command.env("RADDLE_SERVER", &server.url).env("RADDLE_KEY", OPERATOR);
    command
}

/// A server with an operator and the tenant `default`; the API as somebody of the tenant sees it.
async fn serve(dir: &Path) -> (Server, Api) {
    let server = tenants::start(dir, &[]).await;
    tenants::tenant(&server, "default", json!({})).await;
    let api = tenants::member(&server, "default", &["admin"]).await;
    (server, api)
}

fn offline(args: &[&str]) -> Output {
    run(raddle().args(args), "")
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Threads that said something.
async fn talked(api: &Api, count: usize) -> Vec<String> {
    let mut threads = Vec::new();
    for n in 0..count {
        let thread = api.create(json!({})).await;
        let turn = api.start(&thread, &format!("number {n}")).await;
        api.wait(&thread, &turn).await;
        threads.push(thread);
    }
    threads
}

#[tokio::test]
async fn a_backup_of_a_running_server_is_restored_and_served() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, api) = serve(dir.path()).await;
    let threads = talked(&api, 3).await;
    let file = out.path().join("all.backup");
    let made = ask(&server, &["backup", text_of(&file)]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.out.contains("3 logs"), "{made:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing else is left");
    // The server goes on: what is said now is in no backup.
    let turn = api.start(&threads[0], "later").await;
    api.wait(&threads[0], &turn).await;
    let log = api.log(&threads[1]).await;
    let again = ask(&server, &["backup", text_of(&file)]);
    assert_eq!(again.code, Some(2), "what is there is not written over: {again:?}");
    server.stop().await;

    let verified = offline(&["restore", text_of(&file), "--verify"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert!(verified.out.contains("is whole") && verified.out.contains("sha256 "), "{verified:?}");
    let new = out.path().join("new/data");
    let restored = offline(&["restore", text_of(&file), "--data-dir", text_of(&new)]);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
    let over = offline(&["restore", text_of(&file), "--data-dir", text_of(&new)]);
    assert_eq!(over.code, Some(1));
    assert!(over.said.contains("holds a database already"), "{over:?}");

    // Keys are good where their pepper is, which is in no backup.
    let lost = Server::launch(&new, &[]).await.err().expect("it does not start");
    assert!(lost.said.contains("pepper"), "{}", lost.said);
    fs::copy(dir.path().join("pepper"), new.join("pepper")).unwrap();
    let server = Server::start(&new).await;
    let used = offline(&["restore", text_of(&file), "--data-dir", text_of(&new)]);
    assert!(used.code == Some(1) && used.said.contains("is in use by the process"), "{used:?}");
    let api = Api { url: server.url.clone(), ..api };
    assert_eq!(api.log(&threads[1]).await, log);
    let turn = api.start(&threads[0], "and on").await;
    api.wait(&threads[0], &turn).await;
    let said = api.log(&threads[0]).await;
    check_log(&said, true);
    assert!(!said.iter().any(|event| event.to_string().contains("later")));
    server.stop().await;
}

#[tokio::test]
async fn a_directory_whose_server_is_down_is_backed_up_as_it_is() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, api) = serve(dir.path()).await;
    talked(&api, 2).await;
    let file = out.path().join("all.backup");
    let used = offline(&["backup", text_of(&file), "--data-dir", text_of(dir.path())]);
    assert!(used.code == Some(1) && used.said.contains("is in use by the process"), "{used:?}");
    server.stop().await;
    let made = offline(&["backup", text_of(&file), "--json", "--data-dir", text_of(dir.path())]);
    let summary: Value = serde_json::from_str(&made.out).unwrap_or_else(|_| panic!("{made:?}"));
    assert_eq!(summary["records"]["threads"], 2);
    let nothing = offline(&["backup", text_of(&out.path().join("b")), "--data-dir", text_of(out.path())]);
    assert!(nothing.code == Some(1) && nothing.said.contains("holds no database"), "{nothing:?}");
    let down =
        run(raddle().args(["backup", text_of(&out.path().join("c"))]).env("RADDLE_SERVER", "http://127.0.0.1:1"), "");
    assert_eq!(down.code, Some(4), "{down:?}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing is left of those that failed");
}

#[tokio::test]
async fn a_damaged_backup_is_refused_by_the_name_of_what_is_damaged() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, api) = serve(dir.path()).await;
    talked(&api, 2).await;
    let file = out.path().join("all.backup");
    assert_eq!(ask(&server, &["backup", text_of(&file)]).code, Some(0));
    server.stop().await;
    let whole = fs::read(&file).unwrap();
    // A name that stands in the log alone.
    let at = whole.windows(12).position(|window| window == b"turn.started").unwrap();
    let mut changed = whole.clone();
    changed[at] ^= 1;
    let new = out.path().join("new");
    for (bytes, names) in [
        (changed, "of table `log`, bytes "),
        (whole[..at].to_vec(), "the file ends in the middle of block 1 of table `log`"),
        ([&whole[..], b"x"].concat(), "bytes follow its end"),
        (b"hello".to_vec(), "the file ends in the middle of its beginning"),
    ] {
        fs::write(&file, bytes).unwrap();
        for args in [&["--verify"][..], &["--data-dir", text_of(&new)]] {
            let refused = offline(&[&["restore", text_of(&file)], args].concat());
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.said.contains(names), "{names}: {refused:?}");
            assert!(!new.exists());
        }
    }
}

#[tokio::test]
async fn a_tenant_is_exported_by_one_server_and_imported_by_another() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ((from, here), (to, there)) = (serve(dirs[0].path()).await, serve(dirs[1].path()).await);
    let threads = talked(&here, 3).await;
    let file = dirs[2].path().join("default.ndjson");
    let exported = ask(&from, &["export", "default", text_of(&file)]);
    assert_eq!((exported.code, exported.out.as_str()), (Some(0), ""), "{exported:?}");
    let lines = fs::read_to_string(&file).unwrap();
    let whole = ask(&from, &["export", "default", "-"]);
    assert_eq!(whole.out.lines().count(), lines.lines().count());
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["raddle"], &first["tenant"]), (&json!("export"), &json!("default")));
    assert!(lines.contains("number 1"), "people can read it");

    let changed = lines.replacen("number 1", "number 9", 1);
    let refused = run(operators(&to).args(["import", "-", "--tenant", "default"]), &changed);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.said.contains(&format!("line {}: ", lines.lines().count())), "{refused:?}");
    assert_eq!(there.list("/v1/threads", 9).await, Vec::<Value>::new());

    let imported = ask(&to, &["import", text_of(&file), "--tenant", "default"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.out.contains("default: 3 logs"), "{imported:?}");
    for thread in &threads {
        assert_eq!(there.log(thread).await, here.log(thread).await);
        assert_eq!(there.snapshot(thread).await, here.snapshot(thread).await);
    }
    let turn = there.start(&threads[0], "and on").await;
    there.wait(&threads[0], &turn).await;
    let twice = ask(&to, &["import", text_of(&file), "--tenant", "default"]);
    assert!(twice.code == Some(3) && twice.said.contains("needs an empty one"), "{twice:?}");
    let nowhere = ask(&to, &["import", text_of(&file), "--tenant", "No Tenant"]);
    assert_eq!(nowhere.code, Some(3), "{nowhere:?}");
    from.stop().await;
    to.stop().await;
}

#[tokio::test]
async fn the_routes_of_an_operator_answer_as_files_and_take_no_parameter() {
    let dir = tempfile::tempdir().unwrap();
    let (server, api) = serve(dir.path()).await;
    talked(&api, 1).await;
    let api = tenants::operator(&server);
    tenants::tenant(&server, "other", json!({})).await;
    let backup = api.get("/v1/admin/backup").await;
    assert_eq!((backup.status, backup.header("content-type")), (200, Some("application/octet-stream")));
    assert_eq!(backup.header("cache-control"), Some("no-store"));
    api.get("/v1/admin/backup?x=1").await.problem(422, "invalid");
    let export = api.post("/v1/admin/tenants/default/export", json!({})).await;
    assert_eq!((export.status, export.header("content-type")), (200, Some("application/x-ndjson")));
    api.post("/v1/admin/tenants/NO/export", json!({})).await.problem(404, "not-found");
    let bad = api.post("/v1/admin/tenants/other/import", json!({})).await.problem(422, "invalid");
    assert_eq!(bad["line"], 1);
    api.post("/v1/admin/tenants/default/import", json!({})).await.problem(409, "conflict");
    server.stop().await;
}

#[tokio::test]
async fn an_erased_tenant_is_gone_with_its_keys_and_leaves_a_receipt_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (server, api) = serve(dir.path()).await;
    let threads = talked(&api, 2).await;
    tenants::tenant(&server, "other", json!({})).await;
    let other = tenants::member(&server, "other", &["write"]).await;
    let stays = talked(&other, 1).await;
    let workspace = api.create(json!({ "workspace": "w" })).await;
    api.start(&workspace, "@tool write_file {\"path\": \"a.txt\", \"content\": \"x\"}").await;
    let mut stream =
        api.request(reqwest::Method::GET, "/v1/events").header("accept", "text/event-stream").send().await.unwrap();
    stream.chunk().await.unwrap().expect("it has begun");

    let unsure = ask(&server, &["tenants", "erase", "default"]);
    assert!(unsure.code == Some(2) && unsure.said.contains("--yes"), "{unsure:?}");
    api.get(&format!("/v1/threads/{}", threads[0])).await.expect(200);
    let erased = ask(&server, &["tenants", "erase", "default", "--yes"]);
    assert_eq!(erased.code, Some(0), "{erased:?}");
    let receipt: Value = serde_json::from_str(&erased.out).unwrap();
    assert_eq!((&receipt["tenant"], &receipt["records"]["threads"]), (&json!("default"), &json!(3)));
    assert!(receipt["records"]["documents"].as_u64() >= Some(3), "its record, key and audit log: {receipt}");

    let ends = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(LOST, ends).await.expect("a stream outlives its tenant");
    api.get("/v1/threads").await.problem(401, "unauthenticated");
    let operator = tenants::operator(&server);
    operator.get("/v1/admin/tenants/default").await.problem(404, "not-found");
    let again = operator.post("/v1/admin/tenants/default/erase", json!({})).await.expect(200);
    assert_eq!(again, receipt);
    operator.post("/v1/admin/tenants", json!({ "id": "default" })).await.problem(409, "conflict");
    operator.post("/v1/admin/tenants/nobody/erase", json!({})).await.problem(404, "not-found");
    assert!(!dir.path().join("workspaces/default").exists());
    assert!(!other.log(&stays[0]).await.is_empty());
    server.stop().await;
    let server = tenants::start(dir.path(), &[]).await;
    Api { url: server.url.clone(), ..api }.get("/v1/threads").await.problem(401, "unauthenticated");
    let ids = tenants::operator(&server).get("/v1/admin/tenants").await.expect(200);
    assert_eq!(ids["data"].as_array().unwrap().iter().map(|tenant| text(&tenant["id"])).collect::<Vec<_>>(), ["other"]);
    server.stop().await;
}
