//! The page of a run: `RESULTS.md` and its plots, made of nothing but the lines that the benches of that run said.
//!
//! `bench_page LINES DIR`; `benches/run` calls it. It fails if a bar was not measured.

mod machine;
mod plot;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::ExitCode};

use serde::Deserialize;

/// What a bench said; see `support/lines.rs`.
#[derive(Deserialize, Clone)]
struct Said {
    bench: String,
    what: String,
    value: f64,
    unit: String,
    bar: Option<Bar>,
    met: Option<bool>,
}

#[derive(Deserialize, Clone)]
struct Bar {
    sign: String,
    value: f64,
}

/// What raddle is held to: in words, and under which name which bench says it.
const BARS: [(&str, &str, &str); 23] = [
    (
        "durable turn starts over HTTP, 64 at once, against one commit for each",
        "http",
        "c = 64 vs one commit per request",
    ),
    ("the same on a disk whose syncs take 4 ms", "http", "the same on a disk with 4 ms syncs"),
    ("against the same without durability", "http", "c = 64 vs durability off"),
    ("against a raw append with fdatasync on this disk", "http", "c = 64 vs raw append + fdatasync"),
    ("the same, 256 at once", "http", "c = 256 vs raw append + fdatasync"),
    ("one turn start by itself against one raw fdatasync", "http", "p50 of one start at c = 1 vs one raw fdatasync"),
    ("syncs for each turn start, 64 at once", "http", "commits per start at c = 64"),
    ("against ten SQLite commits with `synchronous=FULL` for each", "http", "c = 64 vs ten SQLite commits per start"),
    ("durable deltas against one commit for each", "append", "coalesced vs one commit each, 0 ms"),
    ("an event in a thread of 100,000 against one of 10", "append", "cost of an event after 100,000 vs after 10"),
    ("the same in a run", "runs", "an event that is told, after 100,000 events vs after 10"),
    ("events delivered to 1000 streams over HTTP", "fanout", "frames delivered to 1000 streams over HTTP, both ends"),
    (
        "99th percentile of 1000 watchers beside one that never reads, against without it",
        "fanout",
        "p99 of 1000 watchers beside one that never reads vs without it",
    ),
    ("replay of 100,000 events to a socket", "resume", "replay of 100,000 events to a socket"),
    ("memory of a loaded thread at rest", "resume", "memory of an idle loaded thread"),
    ("memory of a stream on which nothing happens, both ends", "resume", "memory of an idle stream, both ends"),
    ("opening the data after a kill, at rest", "resume", "open after a kill when idle"),
    ("the same under load, for each GB", "resume", "open after a kill under load, per GB"),
    ("loading a thread of 100,000 events against one of 100", "resume", "load alone, 100,000 vs 100"),
    ("bytes on disk for each byte of transcript, packed", "history", "bytes of pages per byte of transcript, packed"),
    (
        "99th percentile of what is accepted at three times the capacity against unloaded",
        "overload",
        "accepted p99 vs unloaded p99",
    ),
    (
        "99th percentile of a quiet tenant beside one that floods, against alone",
        "tenants",
        "beside the flood vs alone, p99",
    ),
    (
        "99th percentile beside a hook that takes a second for each event, against none",
        "hooks",
        "p99 beside a sink of 1 s vs none, c = 16",
    ),
];

/// All that was said, the newest of what was said twice.
struct Run(Vec<Said>);

impl Run {
    fn read(lines: &str) -> Result<Self, serde_json::Error> {
        let mut run = Vec::<Said>::new();
        for line in lines.lines() {
            let said: Said = serde_json::from_str(line)?;
            match run.iter_mut().find(|known| known.bench == said.bench && known.what == said.what) {
                Some(known) => *known = said,
                None => run.push(said),
            }
        }
        Ok(Self(run))
    }

    fn said(&self, bench: &str, what: &str) -> Option<&Said> {
        self.0.iter().find(|said| said.bench == bench && said.what == what)
    }

    fn missing(&self) -> impl Iterator<Item = &'static str> {
        BARS.into_iter().filter(|(_, bench, what)| self.said(bench, what).is_none()).map(|(bar, ..)| bar)
    }

    /// Points of a plot, from figures whose names differ by where they are.
    fn points(&self, bench: &str, places: &[f64], name: impl Fn(f64) -> String) -> Vec<(f64, f64)> {
        let point = |place: &f64| Some((*place, self.said(bench, &name(*place))?.value));
        places.iter().filter_map(point).collect()
    }

    /// The plots, by the names of their files. One of which nothing was measured is left out.
    fn plots(&self) -> BTreeMap<&'static str, String> {
        let mut plots = BTreeMap::new();
        let starts = [
            ("raddle, over HTTP", "group commit, c = 64"),
            ("raddle without durability", "durability off, c = 64"),
            ("one commit for each", "one commit per request, c = 64"),
            ("ten SQLite commits, no HTTP", "ten SQLite commits with synchronous=FULL, no HTTP"),
            ("raw append + fdatasync", "raw append of 512 B + fdatasync"),
        ];
        let starts: Vec<_> =
            starts.into_iter().filter_map(|(name, what)| Some((name, self.said("http", what)?.value))).collect();
        if !starts.is_empty() {
            plots.insert("turn-starts.svg", plot::bars("Turn starts per second, 64 at once", "/s", &starts));
        }
        let mut add = |file, title, x_name, unit, x: &[f64], lines: &[plot::Line<'_>]| {
            if lines.iter().all(|line| !line.points.is_empty()) {
                plots.insert(file, plot::lines(title, x_name, unit, x, lines));
            }
        };
        let widths = [1.0, 16.0, 64.0, 256.0];
        let side = |name, what: &str| plot::Line {
            name,
            points: self.points("http", &widths, |width| format!("{what}, c = {width}")),
        };
        let sides = [
            side("raddle", "group commit"),
            side("one commit for each", "one commit per request"),
            side("raddle without durability", "durability off"),
        ];
        add("width.svg", "Turn starts over HTTP", "requests at once", "/s", &widths, &sides);
        let pasts = [10.0, 100.0, 1_000.0, 5_000.0, 20_000.0];
        let sides = [
            plot::Line {
                name: "raddle, durable",
                points: self.points("append", &pasts, |past| format!("an event after {past}, durable")),
            },
            plot::Line {
                name: "JSONL that is read again, never synced",
                points: self.points("append", &pasts, |past| {
                    format!("an event after {past}, JSONL that is read again, never synced")
                }),
            },
        ];
        add("log-length.svg", "Time of an event", "events before it", " µs", &pasts, &sides);
        let delays = [0.0, 1.0, 4.0];
        let side = |name, what: &str| plot::Line {
            name,
            points: self
                .points("append", &delays, |delay| format!("durable deltas, {what}, {delay} ms added to a sync")),
        };
        let sides = [
            side("raddle, joined while a commit is under way", "coalesced"),
            side("one commit for each", "one commit each"),
        ];
        add("deltas.svg", "Streamed pieces made durable", "ms added to a sync", "/s", &delays, &sides);
        plots
    }

    fn page(&self, facts: &[(&str, String)], is_quick: bool) -> String {
        let mut page = "# Results\n\nOne run of all benches, as `benches/run` writes it down; nothing here is edited. \
            [README.md](README.md) says how to read it.\n\n"
            .to_owned();
        if is_quick {
            page += "**A quick run: few rounds of little, so figures are rough.**\n\n";
        }
        page += "| made on | |\n| --- | --- |\n";
        for (name, fact) in facts {
            _ = writeln!(page, "| {name} | {fact} |");
        }
        if let Some(raw) = self.said("http", "raw append of 512 B + fdatasync") {
            _ = writeln!(page, "| append of 512 B + fdatasync | {:.0} µs |", 1e6 / raw.value);
        }
        page += "\n## Bars\n\n";
        for file in self.plots().keys() {
            _ = writeln!(page, "![](plots/{file})");
        }
        page += "\n| what | value | bar | |\n| --- | --- | --- | --- |\n";
        for (bar, bench, what) in BARS {
            match self.said(bench, what) {
                Some(said) => _ = writeln!(page, "{}", row(bar, said)),
                None => _ = writeln!(page, "| {bar} | | | **not measured** |"),
            }
        }
        page += "\n## All figures\n";
        let mut bench = "";
        for said in &self.0 {
            if said.bench != bench {
                bench = &said.bench;
                _ = writeln!(page, "\n### {bench}\n\n| what | value | bar | |\n| --- | --- | --- | --- |");
            }
            _ = writeln!(page, "{}", row(&said.what, said));
        }
        page
    }
}

fn row(what: &str, said: &Said) -> String {
    let Said { value, unit, bar, met, .. } = said;
    // One space between a number and its unit, whichever of them brings it.
    let with_unit = |number: String| match number.contains(' ') {
        true => number + unit.trim_start(),
        false => number + unit,
    };
    // As it was set, unless that would be long.
    let round = |value: f64| if value < 1e4 { value.to_string() } else { number(value) };
    let bar = bar.as_ref().map_or(String::new(), |Bar { sign, value }| format!("{sign} {}", with_unit(round(*value))));
    let met = match met {
        Some(true) => "met",
        Some(false) => "**not met**",
        None => "",
    };
    format!("| {what} | {} | {bar} | {met} |", with_unit(number(*value)))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        large if large >= 1e6 => (value / 1e6, " M"),
        large if large >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        large if large >= 100.0 || value.fract() == 0.0 => 0,
        large if large >= 10.0 => 1,
        large if large >= 1.0 => 2,
        large if large >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}{suffix}")
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lines, dir] = &arguments[..] else {
        eprintln!("usage: bench_page LINES DIR");
        return ExitCode::from(2);
    };
    let (dir, lines) = (Path::new(dir), fs::read_to_string(lines).expect("lines"));
    let run = Run::read(&lines).expect("lines of benches");
    let is_quick = std::env::var_os("BENCH_QUICK").is_some();
    fs::write(dir.join("RESULTS.md"), run.page(&machine::facts(), is_quick)).expect("room");
    fs::create_dir_all(dir.join("plots")).expect("room");
    for (file, plot) in run.plots() {
        fs::write(dir.join("plots").join(file), plot).expect("room");
    }
    let missing: Vec<_> = run.missing().collect();
    missing.iter().for_each(|bar| eprintln!("not measured: {bar}"));
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(bench: &str, what: &str, value: f64) -> String {
        let bar = json!({ "sign": "≥", "value": 6.0 });
        json!({ "bench": bench, "what": what, "value": value, "unit": "×", "bar": bar, "met": value >= 6.0 })
            .to_string()
    }

    #[test]
    fn a_bar_that_is_not_met_or_not_measured_is_said_to_be() {
        let (_, bench, what) = BARS[0];
        let run = Run::read(&line(bench, what, 5.1)).unwrap();
        let page = run.page(&[("kernel", "some".to_owned())], false);
        assert!(page.contains(&format!("| {} | 5.10× | ≥ 6× | **not met** |", BARS[0].0)), "{page}");
        assert!(page.contains(&format!("| {} | | | **not measured** |", BARS[1].0)), "{page}");
        assert_eq!(run.missing().count(), BARS.len() - 1);
    }

    #[test]
    fn of_what_was_said_twice_the_last_counts() {
        let run = Run::read(&[line("http", "a", 5.0), line("http", "a", 7.0)].join("\n")).unwrap();
        assert_eq!(run.0.iter().map(|said| said.value).collect::<Vec<_>>(), [7.0]);
    }

    #[test]
    fn a_plot_has_a_point_for_each_figure_that_there_is() {
        let said = |past: u64, who: &str| line("append", &format!("an event after {past}, {who}"), past as f64);
        let who = ["durable", "JSONL that is read again, never synced"];
        let lines: Vec<String> = [10, 100, 1_000].into_iter().flat_map(|past| who.map(|who| said(past, who))).collect();
        let plots = Run::read(&lines.join("\n")).unwrap().plots();
        assert_eq!(plots.keys().copied().collect::<Vec<_>>(), ["log-length.svg"], "of others nothing was measured");
        assert_eq!(plots["log-length.svg"].matches("<circle").count(), 6);
    }

    #[test]
    fn numbers_show_three_digits() {
        let shown = [1_274_000.0, 15_500.0, 642.4, 12.34, 5.127, 0.0625, 6.0].map(number);
        assert_eq!(shown, ["1.27 M", "15.5 k", "642", "12.3", "5.13", "0.0625", "6"]);
    }
}
