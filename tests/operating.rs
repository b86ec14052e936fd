//! What is promised to whoever runs a server: a configuration that can be read and checked beforehand, a shutdown that
//! is announced, and files to begin with that are true.

mod support;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use raddle::config::Config;
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

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

#[test]
fn the_example_of_a_configuration_can_be_used_with_and_without_what_it_proposes() {
    let text = repository("ops/raddle.toml");
    let config = Config::read(Some(&text), [], []).unwrap();
    let usual = Config::read(None, [], []).unwrap();
    assert_ne!(config.limits.loaded_threads, usual.limits.loaded_threads);
    let proposed: Vec<_> = text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).collect();
    // Prose has a space behind its sign.
    let proposed: Vec<_> = proposed.into_iter().filter(|line| !line.starts_with(' ')).collect();
    let whole = Config::read(Some(&proposed.join("\n")), [], []).unwrap();
    assert!(whole.model.openai.is_some() && whole.model.anthropic.is_some() && whole.hooks.len() == 1);
}

#[test]
fn the_guide_explains_every_key_with_its_default() {
    let guide = repository("docs/OPERATING.md");
    let row = |key: &str| guide.lines().find_map(|line| line.strip_prefix(&format!("| `{key}` | ")));
    for key in Config::keys() {
        assert!(row(&key).is_some(), "docs/OPERATING.md has no row for `{key}`");
    }
    let (_, settings) = Config::explain(None, [], []).unwrap();
    for setting in settings {
        let default = setting.shown().map_or("–".to_owned(), |value| format!("`{value}`"));
        let said = row(&setting.key).unwrap().split(" | ").next().unwrap();
        assert_eq!(said, default, "docs/OPERATING.md: the default of `{}`", setting.key);
    }
    // Nothing is explained that is no key.
    let known: BTreeSet<_> = Config::keys().into_iter().collect();
    let (_, table) = guide.split_once("| key | default | |").unwrap();
    for line in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let key = line.split('`').nth(1).unwrap();
        assert!(known.contains(key), "docs/OPERATING.md explains `{key}`");
    }
}

/// The address of a heading on the page.
fn anchor(heading: &str) -> String {
    let plain = heading.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-'));
    plain.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_section_that_is_named_is_there() {
    let guide = repository("docs/OPERATING.md");
    let headings = guide.lines().filter(|line| line.starts_with("##"));
    let sections: BTreeSet<_> = headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect();
    let ends = |char: char| matches!(char, ')' | '"' | ' ' | '\n');
    let within = guide.split("](#").skip(1);
    let alerts = repository("ops/prometheus-alerts.yml");
    let from_alerts = alerts.split("docs/OPERATING.md#").skip(1);
    let named: Vec<_> = within.chain(from_alerts).map(|rest| rest.split(ends).next().unwrap()).collect();
    assert!(named.len() > 30);
    for section in named {
        assert!(sections.contains(section), "{section}");
    }
    // Every alert says what to do.
    assert_eq!(alerts.matches("- alert: ").count(), alerts.matches("docs/OPERATING.md#").count());
}

#[tokio::test]
async fn every_metric_that_is_named_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let events = dir.path().join("events");
    let env = [("RADDLE_HOOKS_OUT_KIND", "jsonl"), ("RADDLE_HOOKS_OUT_PATH", events.to_str().unwrap())];
    let server = Server::with(&dir.path().join("data"), &env).await;
    let thread = server.api.create(json!({})).await;
    let turn = server.api.start(&thread, "hello").await;
    server.api.wait(&thread, &turn).await;
    let text = String::from_utf8(server.api.get("/metrics").await.body).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut there = BTreeSet::new();
    for (name, kind) in types {
        let ends: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => &[""],
        };
        there.extend(ends.iter().map(|end| format!("{name}{end}")));
    }
    let is_name = |char: char| char.is_ascii_lowercase() || char == '_';
    let (alerts, guide) = (repository("ops/prometheus-alerts.yml"), repository("docs/OPERATING.md"));
    let exprs = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let words = exprs.flat_map(|expr| expr.split(|char| !is_name(char)));
    let alerted: BTreeSet<_> =
        words.filter(|word| word.starts_with("raddle_") || word.starts_with("process_")).collect();
    assert!(alerted.len() > 15, "{alerted:?}");
    for name in alerted {
        assert!(there.contains(name), "{name} of ops/prometheus-alerts.yml");
    }
    // In prose a histogram goes by its name.
    let quoted = guide.split('`').skip(1).step_by(2);
    for name in quoted.filter(|word| word.chars().all(is_name) && word.starts_with("raddle_")) {
        assert!(there.contains(name) || there.contains(&format!("{name}_count")), "{name} of docs/OPERATING.md");
    }
    // What the work above must have left.
    for name in ["store_commit", "store_wait", "turn_start", "model_call", "model_first_token"] {
        let counted = text.lines().find(|line| line.starts_with(&format!("raddle_{name}_seconds_count")));
        assert!(counted.is_some_and(|line| !line.ends_with(" 0")), "{name}: {counted:?}");
    }
    assert!(text.contains(&format!("raddle_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))));
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_health_check_is_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let check = |url: &str| run(raddle().args(["doctor", "--ready"]).env("RADDLE_SERVER", url), "");
    let there = check(&server.url);
    assert_eq!((there.code, &*there.out, &*there.said), (Some(0), "", ""));
    let url = server.url.clone();
    server.stop().await;
    assert_eq!(check(&url).code, Some(4));
}

#[test]
fn the_unit_and_the_image_name_what_there_is_and_wait_long_enough() {
    let unit = repository("ops/raddle.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap();
    let example = Config::read(Some(&repository("ops/raddle.toml")), [], []).unwrap().shutdown;
    let waits = Duration::from_secs(value("TimeoutStopSec").parse().unwrap());
    assert!(waits > example.grace + example.deadline + Duration::from_secs(5), "{waits:?}");
    // What the program is called with is a command line of it, and each variable is a key.
    for (start, args) in [("ExecStartPre", &["config", "check"][..]), ("ExecStart", &["serve"])] {
        let words: Vec<_> = value(start).split(' ').collect();
        assert_eq!((words[0], &words[1..=args.len()]), ("/usr/local/bin/raddle", args));
        assert_eq!(&words[1 + args.len()..], ["--config", "/etc/raddle/raddle.toml"]);
    }
    let docker = repository("Dockerfile");
    let set = |text: &str| -> Vec<(String, String)> {
        let words = text.split([' ', '\n']).filter_map(|word| word.trim_start_matches("Environment=").split_once('='));
        let ours = words.filter(|(name, _)| name.starts_with("RADDLE_"));
        ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    for text in [&unit, &docker] {
        let mut env = set(text);
        assert!(env.len() >= 2);
        // Beyond loopback there have to be keys, which is not for the image to say.
        env.retain(|(name, _)| name != "RADDLE_LISTEN");
        Config::read(None, env, []).unwrap();
    }
    // Everything that the image is built of is there, and reaches the build.
    let (copied, ignored) = (docker.lines().filter_map(|line| line.strip_prefix("COPY ")), repository(".dockerignore"));
    let sources: Vec<_> = copied
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| {
            let mut words: Vec<_> = line.split(' ').collect();
            words.pop();
            words
        })
        .collect();
    assert!(sources.len() > 5);
    for source in sources {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).exists(), "{source}");
        assert!(ignored.lines().any(|line| line == format!("!{source}")), "{source}");
    }
    let check = docker.split_once("HEALTHCHECK").unwrap().1;
    assert!(check.contains(r#"["/usr/local/bin/raddle", "doctor", "--ready"]"#), "{check}");
    let user = docker.lines().rfind(|line| line.starts_with("USER ")).unwrap();
    assert!(!user.contains("root") && !user.starts_with("USER 0"), "{user}");
}
