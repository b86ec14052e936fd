//! What a client is promised about workspaces and the tools that work in them, over HTTP: whose files are whose, what
//! is asked before it is done, and that a killed server leaves every file old or new, and every change made once.

#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::path::{Path, PathBuf};

use equipped::{Equipped, call};
use openai_server::Answer;
use serde_json::{Value, json};
use support::*;

/// A server, its workspaces, and nobody to be asked.
struct World {
    equipped: Equipped,
    root: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let equipped = Equipped::start(&[("RADDLE_WORKSPACES_ROOT", root.path().to_str().unwrap())]).await;
        Self { equipped, root }
    }

    fn api(&self) -> &Api {
        self.equipped.api()
    }

    fn tenant(&self) -> PathBuf {
        self.root.path().join("default")
    }

    /// A thread that approves by itself.
    async fn thread(&self, workspace: Option<&str>) -> String {
        self.api().create(json!({"workspace": workspace, "auto_approve": true})).await
    }

    /// Plays a script, and gives what its tools said: the status and the detail of each call.
    async fn play(&self, thread: &str, script: &str) -> Vec<(String, String)> {
        let turn = self.api().start(thread, script).await;
        self.api().wait(thread, &turn).await;
        let items = self.api().list(&format!("/v1/threads/{thread}/items?turn={turn}"), 100).await;
        let tools = items.iter().filter(|item| ["tool_call", "file_change"].contains(&item["kind"].as_str().unwrap()));
        tools.map(|item| (text(&item["status"]), text(&item["detail"]))).collect()
    }
}

fn done(detail: impl Into<String>) -> (String, String) {
    ("completed".to_owned(), detail.into())
}

// ---- workspaces ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_workspace_that_cannot_be_used_is_refused_and_says_why() {
    let world = World::start().await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(world.tenant()).unwrap();
    std::os::unix::fs::symlink(outside.path(), world.tenant().join("link")).unwrap();
    std::fs::write(world.tenant().join("file"), "").unwrap();
    let thread = world.api().create(json!({"workspace": "good"})).await;
    let path = format!("/v1/threads/{thread}");
    let other = world.root.path().join("other/w").display().to_string();
    for (workspace, why) in [
        ("../other/w", "leads upwards"),
        (&other, "outside of the directory of its tenant"),
        ("/etc", "outside of the directory of its tenant"),
        ("/proc/self/root/etc", "outside of the directory of its tenant"),
        ("link", "outside of the directory of its tenant"),
        ("file", "is not a directory"),
        (".raddle", "kept for the server"),
        ("a\u{0}b", "control character"),
        ("", "names no directory"),
        (&"x".repeat(300), "too long"),
    ] {
        let body = json!({"workspace": workspace});
        let before = world.api().log(&thread).await;
        for refused in [world.api().post("/v1/threads", body.clone()).await, world.api().patch(&path, body).await] {
            let problem = refused.problem(422, "invalid");
            assert_eq!(problem["field"], "workspace");
            let said = text(&problem["detail"]);
            assert!(said.starts_with("`workspace` ") && said.contains(why), "{workspace}: {said}");
            assert!(!said.contains(world.root.path().to_str().unwrap()) || workspace.starts_with('/'), "{said}");
        }
        assert_eq!(world.api().log(&thread).await, before);
    }
    assert_eq!(world.api().get("/v1/threads").await.expect(200)["data"].as_array().unwrap().len(), 1);
    // A refused name has left nothing, nor has one that was only set.
    let left: Vec<_> = std::fs::read_dir(world.tenant()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    let absolute = world.tenant().join("a/b").display().to_string();
    assert_eq!(world.api().patch(&path, json!({"workspace": absolute})).await.expect(200)["workspace"], absolute);
    assert_eq!(world.api().patch(&path, json!({"workspace": null})).await.expect(200)["workspace"], Value::Null);
}

#[tokio::test]
async fn threads_have_a_directory_each_unless_they_name_the_same() {
    let world = World::start().await;
    let write = |text: &str| call("write_file", json!({"path": "f", "content": text}));
    let read = call("read_file", json!({"path": "f"}));
    let [one, two] = [world.thread(None).await, world.thread(None).await];
    world.play(&one, &write("of one\n")).await;
    assert_eq!(world.play(&two, &read).await, [("failed".to_owned(), "there is no `f`".to_owned())]);
    assert_eq!(std::fs::read_to_string(world.tenant().join("threads").join(&one).join("f")).unwrap(), "of one\n");
    let [shared, also] = [world.thread(Some("team/x")).await, world.thread(Some("./team//x/")).await];
    world.play(&shared, &write("shared\n")).await;
    assert_eq!(world.play(&also, &read).await, [done("1\tshared\n")]);
    // A fork works where its parent works if that was said, and begins with nothing where it was not.
    for (parent, said) in [(&shared, done("1\tshared\n")), (&one, ("failed".to_owned(), "there is no `f`".to_owned()))]
    {
        let fork = world.api().post(&format!("/v1/threads/{parent}/fork"), json!({})).await.expect(201);
        assert_eq!(world.play(&text(&fork["id"]), &read).await, [said]);
    }
    // What is in a workspace outlives its thread.
    world.api().delete(&format!("/v1/threads/{one}")).await;
    assert!(world.tenant().join("threads").join(&one).join("f").exists());
}

#[tokio::test]
async fn the_store_is_in_no_workspace() {
    let equipped = Equipped::start(&[]).await;
    let thread = equipped.api().create(json!({})).await;
    for path in ["../../../../raddle.redb", "/proc/self/cwd/raddle.redb"] {
        equipped.say(&thread, &call("read_file", json!({"path": path}))).await;
    }
    let items = equipped.items(&thread).await;
    let failed = items.iter().filter(|item| **item != equipped::item("agent_message", "completed", ""));
    assert!(failed.clone().any(|item| format!("{item:?}").contains("`..`")), "{items:?}");
    assert!(failed.clone().any(|item| format!("{item:?}").contains("is absolute")), "{items:?}");
}

// ---- tools ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_change_is_asked_for_with_all_that_it_would_do_and_its_diff_is_what_the_model_sees() {
    let root = tempfile::tempdir().unwrap();
    let world = Equipped::with_provider(&[("RADDLE_WORKSPACES_ROOT", root.path().to_str().unwrap())]).await;
    let file = root.path().join("default/w/src/a.rs");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "fn a() {}\n").unwrap();
    let thread = world.api().create(json!({"workspace": "w"})).await;
    let arguments = json!({"path": "src/a.rs", "old_string": "a()", "new_string": "b()"});
    world.answer(Answer::tools(&[("c1", "read_file", "{\"path\": \"src/a.rs\"}")]));
    world.answer(Answer::tools(&[("c2", "edit_file", &arguments.to_string())]));
    let turn = world.api().start(&thread, "rename it").await;
    let approval = world.approval(&thread).await;
    assert_eq!((&approval["tool"], &approval["arguments"]), (&json!("edit_file"), &arguments));
    assert_eq!(
        (&approval["effect_class"], &approval["reason"]),
        (&json!("idempotent"), &json!("it replaces text in `src/a.rs`"))
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "fn a() {}\n");
    world.answer(Answer::text("renamed"));
    world.decide(&approval, "approved").await;
    world.api().wait(&thread, &turn).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "fn b() {}\n");
    let diff = "changed src/a.rs in 1 place\n--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1 +1 @@\n-fn a() {}\n+fn b() {}\n";
    let shown = world.shown();
    assert_eq!(shown[1].last().unwrap()["content"], "1\tfn a() {}\n");
    assert_eq!(shown[2].last().unwrap()["content"], diff);
    let items = world.items(&thread).await;
    assert_eq!(items[1], equipped::item("tool_call", "completed", "1\tfn a() {}\n"));
    assert_eq!(items[2], equipped::item("file_change", "completed", diff));
}

#[tokio::test]
async fn every_tool_works_below_its_workspace_and_no_path_leads_out_of_it() {
    let world = World::start().await;
    let thread = world.thread(Some("w")).await;
    std::fs::create_dir_all(world.tenant().join("beside")).unwrap();
    std::fs::write(world.tenant().join("beside/key"), "hush").unwrap();
    let patch = "*** Begin Patch\n*** Update File: a.txt\n@@\n-two\n+2\n*** Add File: b/c.txt\n+new\n*** End Patch";
    let script = [
        call("write_file", json!({"path": "a.txt", "content": "one\ntwo\n"})),
        call("apply_patch", json!({"patch": patch})),
        call("list_dir", json!({"depth": 2})),
        call("grep", json!({"pattern": "^[0-9n]"})),
    ];
    let said = world.play(&thread, &script.join("\n")).await;
    assert_eq!(said[2..], [done("a.txt (6 bytes)\nb/\nb/c.txt (4 bytes)\n"), done("a.txt:2:2\nb/c.txt:1:new\n")]);
    assert!(said.iter().all(|(status, _)| status == "completed"), "{said:?}");
    // Links that a person, or a command, put there.
    std::os::unix::fs::symlink("../beside", world.tenant().join("w/out")).unwrap();
    std::os::unix::fs::symlink("../beside/key", world.tenant().join("w/key")).unwrap();
    assert_eq!(std::fs::read_to_string(world.tenant().join("w/out/key")).unwrap(), "hush");
    let absolute = world.tenant().join("beside/key").display().to_string();
    for path in ["../beside/key", &absolute, "out/key", "key"] {
        let update = format!("*** Begin Patch\n*** Update File: {path}\n@@\n-hush\n+mine\n*** End Patch");
        let script = [
            call("read_file", json!({"path": path})),
            call("grep", json!({"path": path, "pattern": "."})),
            call("write_file", json!({"path": path, "content": "mine"})),
            call("edit_file", json!({"path": path, "old_string": "hush", "new_string": "mine"})),
            call("apply_patch", json!({"patch": update})),
        ];
        let said = world.play(&thread, &script.join("\n")).await;
        assert_eq!(said.len(), 5);
        for (status, why) in said {
            assert_eq!(status, "failed", "{path}: {why}");
            assert!(!why.contains("hush\n") || why.contains("outside"), "{why}");
        }
    }
    assert_eq!(std::fs::read_to_string(world.tenant().join("beside/key")).unwrap(), "hush");
}

#[tokio::test]
async fn where_commands_may_change_nothing_tools_change_no_file() {
    let world = World::start().await;
    let thread = world.api().create(json!({"auto_approve": true, "policy": {"sandbox": "read-only"}})).await;
    let write = call("write_file", json!({"path": "f", "content": ""}));
    let forbidden = "forbidden by the rule `sandbox = read-only`: nothing may be changed here";
    assert_eq!(world.play(&thread, &write).await, [("failed".to_owned(), forbidden.to_owned())]);
    assert_eq!(world.play(&thread, &call("list_dir", json!({}))).await[0].0, "completed");
    // The thread's own layer is the only one that says so.
    world.api().patch(&format!("/v1/threads/{thread}"), json!({"policy": null})).await.expect(200);
    assert_eq!(world.play(&thread, &write).await[0].0, "completed");
}

#[tokio::test]
async fn a_workspace_that_is_no_longer_there_takes_its_tools_with_it() {
    let mut world = World::start().await;
    let thread = world.thread(Some("w")).await;
    let write = call("write_file", json!({"path": "f", "content": ""}));
    assert_eq!(world.play(&thread, &write).await[0].0, "completed");
    std::fs::remove_dir_all(world.tenant().join("w")).unwrap();
    std::os::unix::fs::symlink("/", world.tenant().join("w")).unwrap();
    let unknown = ("failed".to_owned(), "unknown tool: write_file".to_owned());
    assert_eq!(world.play(&thread, &write).await, std::slice::from_ref(&unknown));
    // Nor are there any where they are turned off.
    world.equipped.reconfigure("RADDLE_TOOLS_FILES", "false").await;
    let other = world.thread(None).await;
    assert_eq!(world.play(&other, &write).await, [unknown]);
}

#[tokio::test]
async fn what_files_were_is_kept_for_a_run_and_for_nobody_else_out_of_reach() {
    let mut world = World::start().await;
    let write = |text: &str| call("write_file", json!({"path": "f", "content": text}));
    let blobs = world.tenant().join(".raddle/blobs");
    let plain = world.thread(Some("w")).await;
    world.play(&plain, &format!("{}\n{}", write("one\n"), write("two\n"))).await;
    assert!(!blobs.exists());
    let run = world.api().post("/v1/runs", json!({"objective": "ship it"})).await.expect(201)["run_id"].clone();
    let thread = json!({"workspace": "w", "auto_approve": true, "run_id": run});
    let thread = world.api().create(thread).await;
    world.play(&thread, &write("three\n")).await;
    world.equipped.crash().await;
    let kept = |path: &Path| path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let [drawer] = &kept(&blobs)[..] else { panic!("{:?}", kept(&blobs)) };
    let [blob] = &kept(drawer)[..] else { panic!("{:?}", kept(drawer)) };
    assert_eq!(std::fs::read_to_string(blob).unwrap(), "two\n");
    let below = blob.strip_prefix(world.tenant()).unwrap().display();
    for path in [format!("../{below}"), blob.display().to_string()] {
        let said = world.play(&thread, &call("read_file", json!({ "path": path }))).await;
        assert_eq!(said[0].0, "failed", "{said:?}");
    }
}

// ---- crashes -------------------------------------------------------------------------------------

/// Kills the server while a patch of two files, and an edit, are under way again and again. Each of them would show
/// if it were made twice or by half.
#[tokio::test]
async fn a_killed_server_leaves_files_old_or_new_and_each_change_made_once() {
    const CHANGES: usize = 40;
    let mut world = World::start().await;
    let thread = world.thread(Some("w")).await;
    let dir = world.tenant().join("w");
    std::fs::create_dir_all(&dir).unwrap();
    let names = ["a", "b"];
    for name in names {
        std::fs::write(dir.join(name), "end\n").unwrap();
    }
    let change = |number: usize| match number % 2 {
        0 => {
            let hunk = |name| format!("*** Update File: {name}\n@@\n+line {number}\n end\n");
            let patch = format!("*** Begin Patch\n{}{}*** End Patch", hunk("a"), hunk("b"));
            call("apply_patch", json!({"patch": patch}))
        }
        _ => call("edit_file", json!({"path": "a", "old_string": "end", "new_string": format!("line {number}\nend")})),
    };
    let script: Vec<String> = (0..CHANGES).map(change).collect();
    let turn = world.api().start(&thread, &script.join("\n")).await;
    let held = |dir: &Path, name: &str| -> Vec<usize> {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        let lines = text.strip_suffix("end\n").expect("a file is whole");
        lines.lines().map(|line| line.strip_prefix("line ").expect("a line is whole").parse().unwrap()).collect()
    };
    // Each kill a few changes further, and somewhere else within one.
    let mut kills = 0;
    for round in 1.. {
        let reached = |held: usize| held >= (round * 4).min(CHANGES);
        while !reached(held(&dir, "a").len()) {
            world.api().get("/healthz").await;
        }
        if held(&dir, "a").len() == CHANGES {
            break;
        }
        for _ in 0..round {
            world.api().get("/healthz").await;
        }
        world.equipped.crash().await;
        kills += 1;
    }
    assert!(kills >= 3, "{kills}");
    assert_eq!(world.api().wait(&thread, &turn).await["status"], "completed");
    assert_eq!(held(&dir, "a"), (0..CHANGES).collect::<Vec<_>>());
    assert_eq!(held(&dir, "b"), (0..CHANGES).step_by(2).collect::<Vec<_>>());
    let log = world.equipped.log(&thread).await;
    let settled = log.iter().filter(|event| event["event"] == "effect.settled").count();
    let uncertain = log.iter().filter(|event| event["event"] == "effect.uncertain").count();
    assert_eq!((settled, uncertain), (CHANGES, 0));
    check_log(&log, true);
    // Nothing was left beside them.
    let mut left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, names);
}
