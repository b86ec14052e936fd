use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::PathBuf,
    time::Duration,
};

use futures_util::FutureExt;
use raddle_domain::{
    history::ToolCall,
    policy::TenantRules,
    ports::{Judgement, Silence, Tools},
};
use tokio::time::Instant;

use super::*;
use crate::tools::{
    Toolbox,
    bench::{invocation, operation, scene, settings},
};

struct World {
    toolbox: Toolbox,
    /// The demo directory, and beside it a file that no tool may touch.
    root: tempfile::TempDir,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("secret"), "secret").unwrap();
    let toolbox = Toolbox::new(tools(&root.path().join("demo")).unwrap(), false).unwrap();
    World { toolbox, root }
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("demo").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn judge(&self, tool: &str, arguments: &Value) -> Judgement {
        let call = ToolCall { call_id: "c".into(), name: tool.into(), arguments: arguments.to_string() };
        self.toolbox.judge(&call, scene(&settings()), &TenantRules::default())
    }

    /// An attempt of a call that was judged.
    fn start(&self, tool: &str, number: u8, attempt: u32, arguments: Value) -> ToolRun {
        assert!(matches!(self.judge(tool, &arguments), Judgement::Run(_)), "{tool} {arguments}");
        self.toolbox.run(invocation(tool, number, attempt, arguments), Arc::new(Silence))
    }

    async fn run(&self, tool: &str, arguments: Value) -> ToolEnd {
        self.start(tool, 1, 1, arguments).await
    }

    async fn reconcile(&self, number: u8, arguments: Value) -> ToolEnd {
        self.toolbox.reconcile(invocation("demo_send", number, 1, arguments)).await
    }

    /// Operation (by its number), attempt and tool of each line of the ledger.
    fn ledger(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path(".ledger")).unwrap_or_default();
        let number = |line: &str| (0..9).find(|number| line.starts_with(&operation(*number).to_string())).unwrap();
        text.lines().map(|line| format!("{}{}", number(line), &line[line.find(' ').unwrap()..])).collect()
    }

    /// Everything in the demo directory but the ledger.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != ".ledger").collect();
        names.sort();
        names
    }
}

fn done(text: &str) -> ToolEnd {
    ToolEnd::Done(text.to_owned())
}

fn failed(text: &str) -> ToolEnd {
    ToolEnd::Failed(text.to_owned())
}

#[test]
fn there_is_one_tool_for_each_class_and_each_gate() {
    let world = world();
    let planned = |tool: &str, arguments: Value| match world.judge(tool, &arguments) {
        Judgement::Run(planned) => (planned.class, planned.gate, planned.reason),
        other => panic!("{other:?}"),
    };
    let file = || json!({"name": "a.txt"});
    let reason = |text: &str| text.to_owned();
    assert_eq!(planned("demo_read", file()), (EffectClass::Read, Gate::Open, reason("it reads the file `a.txt`")));
    assert_eq!(
        planned("demo_put", json!({"name": "a.txt", "text": ""})),
        (EffectClass::Idempotent, Gate::Ask, reason("it replaces the file `a.txt`"))
    );
    assert_eq!(
        planned("demo_send", json!({"to": "ada", "text": "hi"})),
        (EffectClass::Reconcilable, Gate::Ask, reason("it sends a message to `ada`"))
    );
    assert_eq!(
        planned("demo_append", json!({"name": "a.txt", "line": "x"})),
        (EffectClass::Once, Gate::Ask, reason("it appends a line to the file `a.txt`"))
    );
    assert_eq!(
        planned("demo_wipe", file()),
        (EffectClass::Once, Gate::FullAccess, reason("it removes the file `a.txt`"))
    );
}

#[tokio::test]
async fn a_file_is_put_read_appended_to_and_wiped() {
    let world = world();
    let name = || json!({"name": "a.txt"});
    assert_eq!(world.run("demo_put", json!({"name": "a.txt", "text": "é\n"})).await, done("wrote 3 bytes to a.txt"));
    let append = json!({"name": "a.txt", "line": "two"});
    assert_eq!(world.run("demo_append", append).await, done("appended a line to a.txt"));
    assert_eq!(world.run("demo_read", name()).await, done("é\ntwo\n"));
    assert_eq!(world.run("demo_wipe", name()).await, done("removed a.txt"));
    assert_eq!(world.run("demo_read", name()).await, failed("there is no file `a.txt`"));
    assert_eq!(world.run("demo_wipe", name()).await, failed("there is no file `a.txt`"));
    assert_eq!(world.files(), ["outbox"], "something was left behind");
    let ledger = world.ledger();
    assert_eq!(ledger[..4], ["1 1 demo_put", "1 1 demo_append", "1 1 demo_read", "1 1 demo_wipe"]);
}

#[tokio::test]
async fn putting_the_same_again_changes_nothing() {
    let world = world();
    for attempt in 1..=3 {
        let put = json!({"name": "a", "text": "whole"});
        assert_eq!(world.start("demo_put", 1, attempt, put).await, done("wrote 5 bytes to a"));
        assert_eq!(world.text("a"), "whole");
    }
    assert_eq!(world.run("demo_put", json!({"name": "a", "text": "x"})).await, done("wrote 1 bytes to a"));
    assert_eq!(world.text("a"), "x");
}

#[tokio::test]
async fn a_long_file_is_cut_and_the_model_is_told() {
    let world = world();
    fs::write(world.path("long"), "x".repeat(70_000)).unwrap();
    let ToolEnd::Done(text) = world.run("demo_read", json!({"name": "long"})).await else { panic!() };
    assert!(text.ends_with("x\n[cut: the file has 70000 bytes, and these are the first 65536]"));
}

#[tokio::test]
async fn a_message_is_delivered_once_per_operation_and_can_be_looked_for() {
    let world = world();
    let message = || json!({"to": "ada", "text": "hi"});
    assert_eq!(world.reconcile(1, message()).await, ToolEnd::NotDone);
    assert_eq!(world.start("demo_send", 1, 1, message()).await, done("delivered to ada"));
    assert_eq!(world.reconcile(1, message()).await, done("delivered"));
    assert_eq!(world.reconcile(2, message()).await, ToolEnd::NotDone);
    let file = format!("outbox/{}", operation(1));
    let sent = world.text(&file);
    assert_eq!(serde_json::from_str::<Value>(&sent).unwrap(), message());
    let again = world.start("demo_send", 1, 2, json!({"to": "ada", "text": "again"})).await;
    assert_eq!(again, done("delivered to ada by an earlier attempt"));
    assert_eq!(world.text(&file), sent);
    assert_eq!(fs::read_dir(world.path("outbox")).unwrap().count(), 1);
    assert_eq!(world.files(), ["outbox"]);
    assert_eq!(world.ledger(), ["1 1 demo_send", "1 2 demo_send"]);
}

#[tokio::test]
async fn an_outcome_can_be_made_unknown_now_and_also_later() {
    let world = world();
    let unknown = |end: ToolEnd| matches!(end, ToolEnd::Unknown(_));
    let once = || json!({"to": "ada", "text": "hi", "outcome_unknown": true});
    assert!(unknown(world.start("demo_send", 1, 1, once()).await));
    assert_eq!(world.reconcile(1, once()).await, done("delivered"));
    let always = || json!({"to": "ada", "text": "hi", "outcome_unknown": true, "reconcile_unknown": true});
    assert!(unknown(world.start("demo_send", 2, 1, always()).await));
    assert!(unknown(world.reconcile(2, always()).await));
    assert!(world.path(&format!("outbox/{}", operation(2))).is_file());
}

#[tokio::test]
async fn a_failure_that_was_asked_for_does_nothing() {
    let world = world();
    let fail = |mut arguments: Value| {
        arguments["fail"] = json!("out of ink");
        arguments
    };
    for (tool, arguments) in [
        ("demo_read", json!({"name": "a"})),
        ("demo_put", json!({"name": "a", "text": "x"})),
        ("demo_send", json!({"to": "a", "text": "x"})),
        ("demo_append", json!({"name": "a", "line": "x"})),
        ("demo_wipe", json!({"name": "a"})),
    ] {
        assert_eq!(world.run(tool, fail(arguments)).await, failed("out of ink"));
    }
    assert_eq!((world.files(), world.ledger()), (vec!["outbox".to_owned()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_before_the_act_or_behind_it() {
    let world = world();
    let append = || json!({"name": "a", "line": "x", "wait_ms": 3_000, "then_wait_ms": 4_000});
    let start = Instant::now();
    let run = world.start("demo_append", 1, 1, append());
    tokio::pin!(run);
    assert!(tokio::time::timeout(Duration::from_millis(2_999), &mut run).await.is_err());
    assert_eq!(world.ledger(), Vec::<String>::new());
    assert!(tokio::time::timeout(Duration::from_millis(1_000), &mut run).await.is_err());
    assert_eq!((world.text("a"), world.ledger()), ("x\n".to_owned(), vec!["1 1 demo_append".to_owned()]));
    assert_eq!(run.await, done("appended a line to a"));
    assert_eq!(start.elapsed().as_secs(), 7);
}

#[tokio::test]
async fn a_run_that_is_given_up_before_it_acts_does_not_act() {
    let world = world();
    let run = world.start("demo_append", 1, 1, json!({"name": "a", "line": "x", "wait_ms": 60_000}));
    assert_eq!(run.now_or_never(), None);
    assert_eq!((world.files(), world.ledger()), (vec!["outbox".to_owned()], vec![]));
}

#[test]
fn a_pause_is_bounded() {
    let world = world();
    for key in ["wait_ms", "then_wait_ms"] {
        for millis in [json!(600_001), json!(-1), json!(0.5), json!("1")] {
            let mut arguments = json!({"name": "a"});
            arguments[key] = millis;
            assert!(matches!(world.judge("demo_read", &arguments), Judgement::Invalid(_)), "{arguments}");
        }
        assert!(matches!(world.judge("demo_read", &json!({"name": "a", key: 600_000})), Judgement::Run(_)));
    }
}

/// Names that are no names of files in the directory.
const ESCAPES: [&str; 16] = [
    "",
    ".",
    "..",
    "../secret",
    "/etc/passwd",
    "a/b",
    "a/../../secret",
    "outbox/x",
    "a\0b",
    "a\\b",
    "a\nb",
    ".ledger",
    ".hidden",
    "%2e%2e%2fsecret",
    "~",
    "ａ",
];

#[tokio::test]
async fn no_name_leads_out_of_the_directory() {
    let world = world();
    for name in ESCAPES {
        for (tool, arguments) in [
            ("demo_read", json!({"name": name})),
            ("demo_put", json!({"name": name, "text": "x"})),
            ("demo_append", json!({"name": name, "line": "x"})),
            ("demo_wipe", json!({"name": name})),
        ] {
            assert!(matches!(world.judge(tool, &arguments), Judgement::Invalid(_)), "{tool} {name:?}");
            // A call that was judged by other rules is refused as well.
            let end = world.toolbox.run(invocation(tool, 1, 1, arguments), Arc::new(Silence)).await;
            assert_eq!(end, failed("that is no plain file name"), "{tool} {name:?}");
        }
    }
    assert_eq!((world.files(), world.ledger()), (vec!["outbox".to_owned()], vec![]));
}

#[tokio::test]
async fn a_link_is_not_followed_and_not_replaced() {
    let world = world();
    let secret = world.root.path().join("secret");
    symlink(&secret, world.path("link")).unwrap();
    symlink(world.root.path().join("new"), world.path("dangling")).unwrap();
    for name in ["link", "dangling"] {
        for (tool, arguments) in [
            ("demo_read", json!({"name": name})),
            ("demo_put", json!({"name": name, "text": "x"})),
            ("demo_append", json!({"name": name, "line": "x"})),
            ("demo_wipe", json!({"name": name})),
        ] {
            assert_eq!(world.run(tool, arguments).await, failed(&format!("`{name}` is not a regular file")), "{tool}");
        }
        assert!(world.path(name).is_symlink());
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert!(!world.root.path().join("new").exists());
}

#[tokio::test]
async fn links_in_place_of_the_ledger_and_the_outbox_are_not_followed() {
    let world = world();
    symlink(world.root.path().join("secret"), world.path(".ledger")).unwrap();
    let put = world.run("demo_put", json!({"name": "a", "text": "x"})).await;
    assert_eq!(put, failed("`.ledger` is not a regular file"));
    assert_eq!(fs::read_to_string(world.root.path().join("secret")).unwrap(), "secret");
    fs::remove_file(world.path(".ledger")).unwrap();
    fs::remove_dir(world.path("outbox")).unwrap();
    symlink(world.root.path(), world.path("outbox")).unwrap();
    let message = || json!({"to": "ada", "text": "hi"});
    assert_eq!(world.run("demo_send", message()).await, failed("`outbox` is not a directory"));
    assert!(matches!(world.reconcile(1, message()).await, ToolEnd::Unknown(_)));
    assert_eq!(fs::read_dir(world.root.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let world = world();
    fs::create_dir(world.path("folder")).unwrap();
    let listener = UnixListener::bind(world.path("socket")).unwrap();
    // Opening one waits for whoever opens its other end.
    #[cfg(target_os = "linux")]
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    let pipe = cfg!(target_os = "linux").then_some("pipe");
    for name in ["folder", "socket", "outbox", "Outbox"].into_iter().chain(pipe) {
        for (tool, arguments) in [
            ("demo_read", json!({"name": name})),
            ("demo_put", json!({"name": name, "text": "x"})),
            ("demo_append", json!({"name": name, "line": "x"})),
            ("demo_wipe", json!({"name": name})),
        ] {
            let end = world.run(tool, arguments).await;
            assert!(matches!(end, ToolEnd::Failed(_)), "{tool} {name}: {end:?}");
        }
    }
    let left = world.files();
    assert!(["folder", "outbox", "socket"].iter().all(|name| left.iter().any(|file| file == name)), "{left:?}");
    drop(listener);
}

#[tokio::test]
async fn a_directory_that_was_moved_is_still_the_one() {
    let world = world();
    let elsewhere = world.root.path().join("elsewhere");
    fs::rename(world.path(""), &elsewhere).unwrap();
    symlink(world.root.path(), world.root.path().join("demo")).unwrap();
    assert_eq!(world.run("demo_read", json!({"name": "secret"})).await, failed("there is no file `secret`"));
    assert_eq!(world.run("demo_put", json!({"name": "a", "text": "x"})).await, done("wrote 1 bytes to a"));
    assert!(elsewhere.join("a").is_file());
}

#[test]
fn the_pattern_for_models_and_our_own_rule_agree() {
    let pattern = json!({"type": "object", "properties": {"name": {"pattern": Name::PATTERN}}});
    let schema = crate::tools::arguments::Schema::new(&pattern).unwrap();
    let long = "x".repeat(100);
    let longer = "x".repeat(101);
    let good = ["a", "A.txt", "a..b", "-", "_x", "9.tar.gz", &long];
    let bad = ESCAPES.into_iter().chain([longer.as_str(), "a\n", "\u{130}"]);
    for (name, expected) in good.into_iter().map(|name| (name, true)).chain(bad.map(|name| (name, false))) {
        assert_eq!(Name::new(name).is_some(), expected, "{name:?}");
        assert_eq!(schema.read(&json!({ "name": name }).to_string()).is_ok(), expected, "{name:?}");
    }
    // Ours, and so not said to models.
    assert_eq!(Name::new("outbox"), None);
}
