//! What is promised to whoever runs a server: a configuration that can be read and checked beforehand, a shutdown that
//! is announced.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

fn config(args: &[&str], env: &[(&str, &str)]) -> Output {
    run(raddle().arg("config").args(args).envs(env.iter().copied()), "")
}

#[test]
fn what_is_shown_is_a_file_that_shows_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = "limits.loaded_threads = 7\n[model.openai]\nbase_url = \"http://127.0.0.1:9\"\n";
    fs::write(path("first"), file).unwrap();
    let env = [("RADDLE_MODEL_OPENAI_API_KEY", "planted-key"), ("RADDLE_LOG", "debug")];
    let shown = config(&["show", "--config", &path("first")], &env);
    assert_eq!((shown.code, &*shown.said), (Some(0), ""), "{shown:?}");
    assert!(shown.out.contains("\nlimits.loaded_threads = 7\n") && !shown.out.contains("planted"), "{}", shown.out);

    fs::write(path("again"), &shown.out).unwrap();
    let again = config(&["show", "--config", &path("again")], &env[..1]);
    assert_eq!(again.out, shown.out);
    // Without its secret the file says what is missing from it.
    let without = config(&["show", "--config", &path("again")], &[]);
    assert_eq!(without.code, Some(2));
    assert!(without.said.contains("`model.openai.api_key` (the configuration file) is `(set)`"), "{}", without.said);

    let origin = config(&["show", "--origin", "--listen", "127.0.0.1:1", "--config", &path("first")], &env);
    for (key, from) in [
        ("listen", "the flag --listen"),
        ("limits.loaded_threads", "line 1 of the file"),
        ("model.openai.base_url", "line 3 of the file"),
        ("log.level", "the variable RADDLE_LOG"),
        ("data_dir", "the default"),
    ] {
        let line = origin.out.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        assert!(line.ends_with(&format!("# {from}")), "{line}");
    }
    let listed: Value = serde_json::from_str(&config(&["show", "--json"], &env).out).unwrap();
    let key = listed.as_array().unwrap().iter().find(|setting| setting["key"] == "model.openai.api_key").unwrap();
    let expected = json!({"key": "model.openai.api_key", "value": "(set)", "secret": true,
        "origin": "the variable RADDLE_MODEL_OPENAI_API_KEY"});
    assert_eq!(*key, expected);
}

#[test]
fn a_check_names_every_mistake_with_its_key_and_origin_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let data = path("data");
    let fine = config(&["check", "--data-dir", &data], &[]);
    assert_eq!((fine.code, &*fine.out), (Some(0), "the configuration can be used\n"), "{fine:?}");
    assert!(!dir.path().join("data").exists());

    let policy = "[[rules]]\nname = \"x\"\ntool = \"t\"\naction = \"deny\"\nmatch = [\"u\"]";
    fs::write(path("policy"), policy).unwrap();
    let file = format!(
        "policy.file = {:?}\nworkspaces.root = {:?}\n[hooks.out]\nkind = \"webhook\"\nurl = \"http://10.0.0.1/planted\"",
        path("policy"),
        path("")
    );
    fs::write(path("file"), file).unwrap();
    let env = [("RADDLE_PRICES_FILE", "/nowhere"), ("RADDLE_HOOKS_OUT_SECRET", "planted-of-24-bytes-or-more")];
    let found = config(&["check", "--config", &path("file"), "--data-dir", &data], &env);
    assert_eq!(found.code, Some(1), "{found:?}");
    let lines: Vec<_> = found.out.lines().collect();
    let begin = [
        "`prices.file` (the variable RADDLE_PRICES_FILE): ",
        "`policy.file` (line 1 of the file): ",
        "`hooks.out.url` (line 5 of the file): ",
        "`workspaces.root` (line 2 of the file): ",
    ];
    assert_eq!(lines.len(), begin.len(), "{lines:?}");
    for (line, begins) in lines.iter().zip(begin) {
        assert!(line.starts_with(begins), "{line}");
    }
    assert!(lines[1].ends_with("line 1: the rule `x`: it does not cover its `match` example `u`"), "{lines:?}");
    assert!(!found.out.contains("planted") && !dir.path().join("data").exists());
    // What does not even read is found as well; what is no command is a matter of usage.
    let typo = config(&["check", "--json"], &[("RADDLE_LISTN", "x")]);
    assert_eq!(typo.code, Some(1));
    assert!(typo.out.contains("RADDLE_LISTN"), "{typo:?}");
    assert_eq!(config(&["check", "--config", "/nowhere"], &[]).code, Some(1));
    assert_eq!(config(&["chek"], &[]).code, Some(2));
}

#[tokio::test]
async fn a_server_that_is_about_to_go_says_so_while_it_still_takes_work() {
    let dir = tempfile::tempdir().unwrap();
    // A grace that does not end by itself while the test runs.
    let server = Server::with(dir.path(), &[("RADDLE_SHUTDOWN_GRACE_MS", "3600000")]).await;
    let api = server.api.clone();
    api.get("/readyz").await.expect(200);
    server.terminate();
    let told = async {
        loop {
            let reply = api.get("/readyz").await;
            if reply.status == 503 {
                return reply.problem(503, "draining");
            }
        }
    };
    timeout(LOST, told).await.expect("it does not say that it goes");
    assert!(api.get("/metrics").await.body.windows(18).any(|text| text == b"raddle_draining 1\n"));
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "hello").await;
    assert_eq!(api.wait(&thread, &turn).await["status"], "completed");
    // A second signal does not wait.
    server.terminate();
    assert_eq!(server.ended().await.code(), Some(143));
}

#[tokio::test]
async fn after_its_grace_a_server_goes_as_without() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(dir.path(), &[("RADDLE_SHUTDOWN_GRACE_MS", "1")]).await;
    server.stop().await;
}
