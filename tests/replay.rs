//! What a server is told is recorded, and told again it leads to the same: the promises of `record` and `replay`.

#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use equipped::Equipped;
use serde_json::{Value, json};
use support::*;

/// Something that has to be asked for, and then ends.
const GATED: &str = "@think hm\n@tool demo_append {\"name\": \"file\", \"line\": \"done\"}\nso it is";

/// A recording that goes on beside a test.
struct Recorder(Child);

impl Recorder {
    /// It hears what is told from here on.
    fn start(server: &Server, out: &Path, args: &[&str]) -> Self {
        let mut child = raddle()
            .args(["record", "--server", &server.url, "--out"])
            .arg(out)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("recording"), "{line}");
        Self(child)
    }

    /// Ends it as somebody at a terminal does.
    fn end(mut self) {
        let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", self.0.id())]).status().unwrap();
        assert!(sent.success());
        assert!(self.0.wait().unwrap().success());
    }
}

/// A thread's day: answers, tools that ask, steers, a queue, an interrupt, and something that is refused.
async fn lives(api: &Api, number: usize) -> String {
    let thread = api.create(json!({ "title": format!("thread {number}") })).await;
    let turn = api.start(&thread, &format!("hello {number}")).await;
    api.wait(&thread, &turn).await;

    let turn = api.start(&thread, GATED).await;
    let approval = approval(api, &thread).await;
    api.queue(&thread, "and then").await;
    let steer = format!("/v1/threads/{thread}/turns/{turn}/steer");
    api.post(&steer, json!({ "prompt": "more to the left" })).await.expect(202);
    api.post(&format!("/v1/threads/{thread}/turns"), json!({ "prompt": "no" })).await.problem(409, "turn-open");
    let decision = if number.is_multiple_of(2) { "approved" } else { "denied" };
    api.post(&format!("/v1/approvals/{approval}"), json!({ "decision": decision })).await.expect(200);
    api.rest(&thread).await;

    let turn = api.start(&thread, "@tokens 200\n@wait 600000").await;
    happens(api, &thread, "item.delta").await;
    api.post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    api.rest(&thread).await;
    thread
}

/// The approval that a thread waits for.
async fn approval(api: &Api, thread: &str) -> String {
    happens(api, thread, "approval.required").await;
    let waiting = api.get(&format!("/v1/approvals?thread={thread}")).await.expect(200);
    text(&waiting["data"][0]["id"])
}

/// Waits until the newest turn has said so.
async fn happens(api: &Api, thread: &str, event: &str) {
    let after = api.log(thread).await.iter().rfind(|event| event["event"] == "turn.started").unwrap()["seq"].as_u64();
    let mut stream = api.stream(thread, after.unwrap()).await;
    while stream.next().await.unwrap().event != event {}
}

fn replay(trace: &Path, args: &[&str]) -> Output {
    run(raddle().arg("replay").arg(trace).args(args), "")
}

/// The report of a replay in which everything was equal.
fn equal(trace: &Path, args: &[&str]) -> Value {
    let output = replay(trace, &[args, &["--json"]].concat());
    assert_eq!(output.code, Some(0), "{} {}", output.out, output.said);
    let report: Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!((&report["equal"], &report["differing"]), (&json!(true), &json!(0)), "{report}");
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_under_load_was_told_is_the_same_in_every_replica() {
    let equipped = Equipped::start(&[]).await;
    let (api, dir) = (equipped.api(), tempfile::tempdir().unwrap());
    // There before anybody records.
    let before = lives(api, 98).await;
    let (trace, one) = (dir.path().join("trace"), dir.path().join("one"));
    let (all, alone) = (
        Recorder::start(&equipped.server, &trace, &[]),
        Recorder::start(&equipped.server, &one, &["--thread", &before]),
    );
    let turn = api.start(&before, "once more").await;
    api.wait(&before, &turn).await;
    futures_util::future::join_all((0..6).map(|number| lives(api, number))).await;
    let gone = lives(api, 99).await;
    api.delete(&format!("/v1/threads/{gone}")).await.expect(204);
    all.end();
    alone.end();

    let report = equal(&trace, &["--threads", "12", "--tenants", "3", "--loaded", "5", "--at-once", "40"]);
    assert_eq!(report["threads"].as_array().unwrap().len(), 8);
    assert_eq!(report["replicas"], 8 * 12);
    assert_eq!(report["refused"], 7 * 12, "what was refused is refused again");
    assert!(report["unloaded"].as_u64().unwrap() > 100, "{report}");
    assert!(report["watched"].as_u64().unwrap() > 0, "{report}");
    let log = api.log(&before).await;
    let of = |report: &Value| {
        let threads = report["threads"].as_array().unwrap().clone();
        threads.into_iter().find(|thread| text(&thread["thread"]).ends_with(&before)).unwrap()
    };
    assert_eq!(of(&report)["events"], log.len(), "the log that was there and what followed");

    let report = equal(&one, &["--threads", "2", "--speed", "1000"]);
    assert_eq!(report["threads"].as_array().unwrap().len(), 1);
    assert_eq!(of(&report)["events"], log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_was_changed_is_told_apart_by_its_first_event_and_no_trace_is_an_error() {
    let equipped = Equipped::start(&[]).await;
    let (api, dir) = (equipped.api(), tempfile::tempdir().unwrap());
    let trace = dir.path().join("trace");
    let recorder = Recorder::start(&equipped.server, &trace, &[]);
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "hello there").await;
    api.wait(&thread, &turn).await;
    recorder.end();
    equal(&trace, &[]);

    let whole = std::fs::read_to_string(&trace).unwrap();
    let line = whole.lines().position(|line| line.contains("\"start\"")).unwrap();
    let mut lines: Vec<_> = whole.lines().map(str::to_owned).collect();
    // What was said, not what came of it.
    lines[line] = lines[line].replacen("hello there", "hello you", 1);
    let changed = dir.path().join("changed");
    std::fs::write(&changed, lines.join("\n") + "\n").unwrap();
    let output = replay(&changed, &["--threads", "3"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let place = format!("replica 0 of default/{thread}, line {} of the trace, event 2", line + 1);
    for part in ["DIFFERENT: 3 of 3 replicas", &place, "in turn.started:", "payload.turn.input_summary"] {
        assert!(output.out.contains(part), "{part}: {}", output.out);
    }
    assert!(
        output.out.contains("expected \"hello there\"") && output.out.contains("found    \"hello you\""),
        "{}",
        output.out
    );

    let nothing = dir.path().join("nothing");
    std::fs::write(&nothing, "{\"a\": 1}\n").unwrap();
    let newer = dir.path().join("newer");
    std::fs::write(&newer, whole.replacen("\"raddle_trace\":1", "\"raddle_trace\":2", 1)).unwrap();
    for bad in [&nothing, &newer, &dir.path().join("not there")] {
        let output = replay(bad, &[]);
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{output:?}");
        assert!(!output.said.is_empty());
    }
}

/// A trace of one short turn.
async fn recorded(dir: &Path) -> String {
    let equipped = Equipped::start(&[]).await;
    let (api, trace) = (equipped.api(), dir.join("trace"));
    let recorder = Recorder::start(&equipped.server, &trace, &[]);
    let thread = api.create(json!({})).await;
    let turn = api.start(&thread, "hello there").await;
    api.wait(&thread, &turn).await;
    recorder.end();
    std::fs::read_to_string(&trace).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_off_is_left_out_aloud_and_no_trace_is_made_of_such_a_line_alone() {
    let dir = tempfile::tempdir().unwrap();
    let whole = recorded(dir.path()).await;
    let (file, lines) = (dir.path().join("cut"), whole.lines().count());

    std::fs::write(&file, whole.trim_end()).unwrap();
    let output = replay(&file, &[]);
    assert_eq!((output.code, output.said.as_str()), (Some(0), ""), "only its end is missing: {output:?}");

    std::fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    let output = replay(&file, &[]);
    let said = format!("the last line is cut off and was left out (line {lines})");
    assert!(output.code == Some(0) && output.said.contains(&said), "{output:?}");

    let header = whole.lines().next().unwrap();
    for (text, what) in [
        (format!("{header}\n{{\"tenant"), "line 2 is no line of a trace"),
        (format!("{header}\nnothing\n"), "line 2 is no line of a trace"),
        (header.replacen("\"raddle_trace\":1", "\"raddle_trace\":0", 1) + "\n", "the first line is no header"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = replay(&file, &[]);
        assert!(output.code == Some(2) && output.said.contains(what), "{what}: {output:?}");
    }
    std::fs::write(&file, &whole).unwrap();
    let output = replay(&file, &["--config", "not-there.toml"]);
    assert!(output.code == Some(2) && output.said.contains("not-there.toml"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_is_asked_again_and_one_that_dies_is_not_a_quiet_one() {
    let dir = tempfile::tempdir().unwrap();
    recorded(dir.path()).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // It is busy, makes a thread, ends the thread's stream without an event, and is gone.
    let server = std::thread::spawn(move || {
        let busy = r#"{"status":503,"code":"busy","detail":"later"}"#;
        let made = r#"{"id":"thr_01905d3c-7e57-7abc-8def-0123456789ab"}"#;
        let mut asked = Vec::new();
        for (status, kind, body) in [
            ("503 Service Unavailable", "application/problem+json", busy),
            ("201 Created", "application/json", made),
            ("200 OK", "text/event-stream", ""),
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let (mut key, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                request.read_line(&mut line).unwrap();
                match line.trim_end().split_once(": ") {
                    Some(("idempotency-key", value)) => value.clone_into(&mut key),
                    Some(("content-length", value)) => length = value.parse().unwrap(),
                    None if line.trim_end().is_empty() => break,
                    _ => {}
                }
            }
            request.read_exact(&mut vec![0; length]).unwrap();
            asked.push(key);
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nretry-after: 0\r\nconnection: close\r\n");
            write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
        asked
    });
    let output = replay(&dir.path().join("trace"), &["--server", &url, "--patience", "1"]);
    assert_eq!((output.code, output.out.as_str()), (Some(4), ""), "{output:?}");
    assert!(output.said.contains("cannot reach") && output.said.contains("does not answer any more"), "{output:?}");
    let asked = server.join().unwrap();
    assert!(!asked[0].is_empty() && asked[0] == asked[1], "the same is asked for: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_ended_by_a_signal_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let whole = recorded(dir.path()).await;
    let (before, last) = whole.trim_end().rsplit_once('\n').unwrap();
    let mut last: Value = serde_json::from_str(last).unwrap();
    last["at"] = json!("2999-01-01T00:00:00.000Z");
    let trace = dir.path().join("long");
    std::fs::write(&trace, format!("{before}\n{last}\n")).unwrap();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = raddle();
        command.arg("replay").arg(&trace).args(["--speed", "1"]).env("TMPDIR", scratch.path());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("the longest wait takes"), "{line}");
        let made: Vec<_> = scratch.path().read_dir().unwrap().map(Result::unwrap).collect();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0);
        line.clear();
        said.read_line(&mut line).unwrap();
        assert!(line.contains(&format!("SIG{signal} ended the replay")), "{line}");
    }
}

/// A server that records itself from its first moment on.
struct Recording {
    child: Child,
    api: Api,
}

impl Recording {
    fn start(dir: &Path, out: &Path) -> Self {
        let mut child = raddle()
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .arg("--record")
            .arg(out)
            .env("RADDLE_SANDBOX_KIND", "off")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let api = Api::new(line.trim().strip_prefix("listening on ").expect("it listens"));
        Self { child, api }
    }

    fn signal(&mut self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_and_the_one_that_goes_on_have_each_a_trace_that_holds() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let mut server = Recording::start(data.path(), &first);
    let thread = server.api.create(json!({})).await;
    let turn = server.api.start(&thread, "@tokens 40\n@wait 600000").await;
    happens(&server.api, &thread, "item.delta").await;
    server.api.queue(&thread, "and then").await;
    server.signal("KILL");
    // Its last line may be cut off.
    equal(&first, &["--threads", "3"]);

    let mut server = Recording::start(data.path(), &second);
    happens(&server.api, &thread, "turn.resumed").await;
    server.api.post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    server.api.rest(&thread).await;
    let log = server.api.log(&thread).await;
    server.signal("TERM");
    let report = equal(&second, &["--threads", "3"]);
    assert_eq!(report["threads"][0]["events"], log.len());
    assert!(std::fs::read_to_string(&second).unwrap().contains("{\"recover\":{\"restarted\":true}}"));

    let output = run(raddle().args(["serve", "--data-dir"]).arg(data.path()).arg("--record").arg(&second), "");
    assert_eq!(output.code, Some(1), "a recording that is there is not written over: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_of_nothing_is_in_nobodys_way() {
    let [data, other, dir] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let server = Server::with(data.path(), &[]).await;
    let out = dir.path().join("trace");
    let taken = server.url.strip_prefix("http://").unwrap();
    let serve = ["serve", "--listen", taken, "--data-dir"];
    let output = run(raddle().args(serve).arg(other.path()).arg("--record").arg(&out), "");
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(!out.exists(), "the next start would find it");
    let record =
        |args: &[&str]| run(raddle().args(["record", "--server", &server.url, "--out"]).arg(&out).args(args), "");
    let unknown = record(&["--thread", "thr_01905d3c-7e57-7abc-8def-0123456789ab", "--for", "1"]);
    assert_eq!(unknown.code, Some(3), "{unknown:?}");
    let of_another = record(&["--tenant", "nobody", "--for", "1"]);
    assert_eq!(of_another.code, Some(2), "{of_another:?}");
    assert!(!out.exists());
    let nothing = record(&["--for", "1"]);
    assert_eq!((nothing.code, nothing.said.contains("recorded: lines 0")), (Some(0), true), "{nothing:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_threads_are_replayed_as_they_must_have_been_told() {
    let [data, demo, dir] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let tools = demo.path().to_str().unwrap();
    let server = Server::with(data.path(), &[("RADDLE_TOOLS_DEMO_DIR", tools)]).await;
    let (one, two) = (lives(&server.api, 0).await, lives(&server.api, 1).await);
    let (online, offline) = (dir.path().join("online"), dir.path().join("offline"));
    let asked = run(raddle().args(["record", &one, "--server", &server.url, "--out"]).arg(&online), "");
    assert_eq!(asked.code, Some(0), "{asked:?}");
    let report = equal(&online, &["--threads", "3"]);
    assert_eq!(report["threads"][0]["thread"], format!("default/{one}"));
    let unknown =
        run(raddle().args(["record", "thr_01905d3c-7e57-7abc-8def-0123456789ab", "--server", &server.url]), "");
    assert_eq!(unknown.code, Some(3), "{unknown:?}");

    server.stop().await;
    let config = dir.path().join("raddle.toml");
    std::fs::write(&config, "limits.prompt_bytes = 54321\n").unwrap();
    let mut read = raddle();
    read.args(["record", "--all", "--data-dir"]).arg(data.path()).arg("--config").arg(&config);
    let read = run(read.arg("--out").arg(&offline), "");
    assert_eq!(read.code, Some(0), "{read:?}");
    let recorded = std::fs::read_to_string(&offline).unwrap();
    assert!(recorded.lines().next().unwrap().contains("54321"), "its limits are those of its server");
    let report = equal(&offline, &["--threads", "3", "--loaded", "2"]);
    let threads: Vec<_> = report["threads"].as_array().unwrap().iter().map(|thread| text(&thread["thread"])).collect();
    assert_eq!(threads, [format!("default/{one}"), format!("default/{two}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_nobody_reads_any_more_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut command = raddle();
    let child = command.args(["record", "--server", &server.url]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    // The header comes at once, and then nothing: no thread is told anything.
    let mut header = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut header).unwrap();
    assert!(header.contains("raddle"), "{header}");
    let ended = async {
        loop {
            match child.try_wait().unwrap() {
                Some(ended) => break ended,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let ended = tokio::time::timeout(LOST, ended).await;
    if ended.is_err() {
        child.kill().unwrap();
    }
    assert_eq!(ended.expect("it does not end").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_say_again_what_they_said_and_the_model_answers_as_it_did() {
    let equipped = Equipped::start(&[]).await;
    let (api, dir) = (equipped.api(), tempfile::tempdir().unwrap());
    let trace = dir.path().join("trace");
    let recorder = Recorder::start(&equipped.server, &trace, &[]);
    futures_util::future::join_all((0..3).map(|number| lives(api, number))).await;
    recorder.end();

    let (config, demo) = (dir.path().join("raddle.toml"), dir.path().join("demo"));
    std::fs::write(&config, format!("tools.demo_dir = {demo:?}\nsandbox.kind = \"off\"\n")).unwrap();
    let config = config.to_str().unwrap();
    let own = equal(&trace, &["--model", "scripted", "--config", config, "--threads", "4"]);
    assert_eq!((&own["replicas"], &own["refused"]), (&json!(12), &json!(12)));
    let other = Equipped::start(&[]).await;
    let there = equal(&trace, &["--server", &other.server.url, "--threads", "2"]);
    assert_eq!(there["replicas"], 6);
    assert_eq!(own["threads"][0]["digest"], there["threads"][0]["digest"]);

    // Without the tool something else comes of it.
    let plain = replay(&trace, &["--model", "scripted", "--patience", "1"]);
    assert_eq!(plain.code, Some(1), "{plain:?}");
    assert!(plain.out.contains("DIFFERENT: 3 of 3 replicas") && plain.out.contains("line "), "{}", plain.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_decided_anew_under_another_policy_and_the_first_that_differs_is_shown() {
    let equipped = Equipped::start(&[]).await;
    let (api, dir) = (equipped.api(), tempfile::tempdir().unwrap());
    let trace = dir.path().join("trace");
    let recorder = Recorder::start(&equipped.server, &trace, &[]);
    let thread = lives(api, 0).await;
    recorder.end();
    let (config, policy) = (dir.path().join("raddle.toml"), dir.path().join("policy.toml"));
    std::fs::write(&config, format!("tools.demo_dir = {:?}\nsandbox.kind = \"off\"\n", dir.path().join("demo")))
        .unwrap();
    let args = ["--config", config.to_str().unwrap(), "--policy", policy.to_str().unwrap()];

    std::fs::write(&policy, "").unwrap();
    let same = replay(&trace, &args);
    assert_eq!(same.code, Some(0), "{same:?}");
    assert_eq!(same.out, "the same is decided about all of 1 call\n");
    // Where there is no such tool nobody knows, and it is not called the same.
    let unknown = replay(&trace, &args[2..]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.out.starts_with("the same is decided about 0 of 1 call\n1 were of tools"), "{}", unknown.out);

    let rule = "[[rules]]\nname = \"no marks\"\ntool = \"demo_append\"\naction = \"deny\"\nreason = \"they stay\"\n";
    std::fs::write(&policy, rule).unwrap();
    let other = replay(&trace, &args);
    assert_eq!(other.code, Some(1), "{other:?}");
    for part in [
        &*thread,
        "line ",
        "demo_append {\"name\"",
        "was a person is asked",
        "is  denied by `",
        "no marks",
        "they stay",
    ] {
        assert!(other.out.contains(part), "{part}: {}", other.out);
    }
    std::fs::write(&policy, "[[rules]]\nno = 1\n").unwrap();
    assert_eq!(replay(&trace, &args).code, Some(2));
}
