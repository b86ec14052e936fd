//! What an overload does: three times as many turn starts as the server can do, offered whether or not it answers.
//!
//! `OVERLOAD_SECONDS` says for how long, if not for 60. Variables of the server are handed on to it.

mod support;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    load::{Answered, Generator, Pace, share},
    *,
};

/// Threads over which the starts are spread: with so many, the one whose turn it is has had its last turn long ago.
const THREADS: usize = 4096;
const CONNECTIONS: usize = 1024;
/// Requests under way at once while capacity is looked for.
const WIDTHS: [usize; 3] = [16, 32, 64];
const S: Duration = Duration::from_secs(1);

struct Server {
    child: Child,
    addr: SocketAddr,
    http: reqwest::Client,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_raddle"))
            .env_clear()
            .envs([
                ("RADDLE_LISTEN", "127.0.0.1:0"),
                ("RADDLE_SANDBOX_KIND", "off"),
                ("RADDLE_LOG", "warn"),
                ("RADDLE_LIMITS_LOADED_THREADS", "10000"),
                ("RADDLE_LIMITS_LOADED_BYTES", "4000000000"),
                // Most connections are for the overload, which comes late.
                ("RADDLE_LIMITS_IDLE_MS", "600000"),
            ])
            .envs(std::env::vars().filter(|(name, _)| name.starts_with("RADDLE_")))
            .args(["serve", "--data-dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let addr = line.trim().strip_prefix("listening on http://").expect("it listens").parse().expect("an address");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { child, addr, http }
    }

    async fn get(&self, path: &str) -> String {
        let answer = self.http.get(format!("http://{}{path}", self.addr)).send().await.expect("a server");
        answer.text().await.expect("text")
    }

    /// A new thread's id.
    async fn thread(&self) -> String {
        loop {
            let made = self.http.post(format!("http://{}/v1/threads", self.addr)).send().await.expect("a server");
            let made: Value = serde_json::from_str(&made.text().await.expect("text")).expect("JSON");
            if let Some(id) = made["id"].as_str() {
                return id.to_owned();
            }
            // It was busy, as a slow machine may be with so many at once.
        }
    }

    /// Turns of a thread.
    async fn turns(&self, thread: &str) -> (usize, usize) {
        let (mut all, mut completed, mut cursor) = (0, 0, String::new());
        loop {
            let page = self.get(&format!("/v1/threads/{thread}/turns?limit=500{cursor}")).await;
            let page: Value = serde_json::from_str(&page).expect("JSON");
            let turns = page["data"].as_array().expect("a list");
            all += turns.len();
            completed += turns.iter().filter(|turn| turn["status"] == "completed").count();
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return (all, completed),
            }
        }
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).expect("a figure")
    }

    /// Seconds of processor time that it has had.
    fn worked(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let ticks: f64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks")).sum();
        ticks / rustix::param::clock_ticks_per_second() as f64
    }

    /// MB that it holds in memory.
    fn resident(&self) -> f64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("it runs");
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
        pages * rustix::param::page_size() as f64 / 1e6
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn start(thread: &str) -> Vec<u8> {
    let body = r#"{"prompt":"hello","delivery":"reject"}"#;
    let length = body.len();
    format!(
        "POST /v1/threads/{thread}/turns HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into()
}

fn times(answers: &[Answered], status: u16) -> impl Iterator<Item = Duration> {
    answers.iter().filter(move |answer| answer.status == status).map(|answer| answer.took)
}

fn main() {
    let seconds =
        std::env::var("OVERLOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(sized(60, 6) as u32);
    let watched = sized(10, 4) as u32;
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(dir.path());
    let threads: Vec<String> = runtime.block_on(async {
        use futures_util::{StreamExt, stream};
        stream::iter(0..THREADS).map(|_| server.thread()).buffer_unordered(32).collect().await
    });
    let requests: Vec<Vec<u8>> = threads.iter().map(|thread| start(thread)).collect();
    let mut generator = Generator::new(server.addr, CONNECTIONS);
    let mut next = 0;
    let mut accepted = 0;
    let mut run = |pace, time, tick: &mut dyn FnMut(Duration)| {
        let answers = generator.run(&requests, &mut next, pace, time, tick);
        accepted += times(&answers, 201).count();
        answers
    };
    // Caches fill, threads are loaded.
    run(Pace::Closed(WIDTHS[1]), watched / 2 * S, &mut |_| {});
    // The best of some widths: with many at once some are refused, and cost their time too.
    let (capacity, a_start) = WIDTHS
        .map(|width| {
            let before = server.worked();
            let starts = times(&run(Pace::Closed(width), watched / 2 * S, &mut |_| {}), 201).count() as f64;
            (starts / f64::from(watched / 2), (server.worked() - before) / starts)
        })
        .into_iter()
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .expect("there are widths");
    let unloaded = run(Pace::Open(capacity / 2.0), watched * S, &mut |_| {});
    let (usual50, usual) = (share(times(&unloaded, 201), 0.5), share(times(&unloaded, 201), 0.99));
    let time = seconds * S;
    let (mut memory, before) = (vec![server.resident()], server.worked());
    let overload = run(Pace::Open(3.0 * capacity), time, &mut |now| {
        if now >= time / 4 * memory.len() as u32 && memory.len() < 5 {
            memory.push(server.resident());
        }
    });
    let worked = server.worked() - before;
    let after = run(Pace::Open(capacity / 2.0), watched * S, &mut |_| {});

    head("overload: three times what it can do");
    figure("capacity", capacity, "/s");
    figure("unloaded, at half of it, p50", usual50, " ms");
    figure("unloaded, at half of it, p99", usual, " ms");
    let refused: Vec<Duration> = times(&overload, 503).collect();
    let taken: Vec<Duration> = times(&overload, 201).collect();
    for (what, count) in [("offered", overload.len()), ("accepted", taken.len()), ("refused", refused.len())] {
        figure(what, count as f64 / f64::from(seconds), "/s");
    }
    let others = overload.iter().filter(|answer| ![201, 503].contains(&answer.status)).count();
    figure("neither (its thread had a turn open)", others as f64, "");
    figure("accepted, p50", share(taken.clone(), 0.5), " ms");
    figure("accepted, p99", share(taken.clone(), 0.99), " ms");
    figure("refused, p50", share(refused.clone(), 0.5), " ms");
    let a_refusal = (worked - taken.len() as f64 * a_start) / refused.len() as f64;
    figure("processor time of the server for a start with its turn", 1e6 * a_start, " µs");
    figure("processor time of the server for a refusal", 1e6 * a_refusal, " µs");
    bar("accepted p99 vs unloaded p99", share(taken, 0.99) / usual, "×", 2.0, false);
    bar("refused, p99", share(refused, 0.99), " ms", 50.0, false);
    let later = overload.iter().filter(|answer| answer.status == 201 && answer.due >= S).map(|answer| answer.took);
    figure("the same without the first second", share(later, 0.99) / usual, "×");
    for (quarter, megabytes) in memory.into_iter().enumerate() {
        figure(&format!("memory after {quarter} quarters of it"), megabytes, " MB");
    }
    // From when on what comes is as usual: single halves of a second have too few for a tail.
    let from =
        |half: u32| share(after.iter().filter(|answer| answer.due >= S / 2 * half).map(|answer| answer.took), 0.99);
    let normal = (0..2 * watched).find(|half| from(*half) <= 2.0 * usual).unwrap_or(2 * watched);
    bar("until p99 from then on is within 2× again", f64::from(normal) / 2.0, " s", 5.0, false);
    figure("refused afterwards", times(&after, 503).count() as f64, "");
    let (mut turns, mut completed) = (0, 0);
    runtime.block_on(async {
        while server.metric("raddle_running_turns").await > 0.0 {}
        for thread in &threads {
            let (all, done) = server.turns(thread).await;
            (turns, completed) = (turns + all, completed + done);
        }
    });
    bar("accepted turns that are not there", accepted as f64 - turns as f64, "", 0.0, false);
    bar("turns that are not completed", (turns - completed) as f64, "", 0.0, false);
    eprintln!("{:.0?}", begun.elapsed());
}
