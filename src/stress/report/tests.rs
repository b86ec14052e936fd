use std::collections::BTreeMap;

use raddle_domain::time::UnixMs;

use super::*;
use crate::stress::outcome::{Bar, Kill, OfStep, Percentiles, VERSION};

fn outcome() -> Outcome {
    let percentiles =
        Percentiles { count: 1_234, min: 0.2, mean: 3.0, p50: 2.0, p90: 4.0, p99: 20.0, p999: 90.0, max: 120.0 };
    let bar = |from_ms: f64, to_ms, count| Bar { from_ms, to_ms, count };
    let operation = |name: &str, latency_ms| OfOperation {
        name: name.to_owned(),
        count: 1_300,
        outcomes: BTreeMap::from([("ok".to_owned(), 1_234), ("turn-open".to_owned(), 66)]),
        latency_ms,
        histogram: vec![bar(0.2, 0.21, 34), bar(2.0, 2.1, 1_100), bar(20.0, 20.5, 99), bar(119.0, 123.0, 1)],
    };
    let check = |name: &str, holds, faults: &[&str]| Check {
        name: name.to_owned(),
        says: "what must be".to_owned(),
        holds,
        examined: 17,
        of: "things".to_owned(),
        faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        more: 3,
    };
    Outcome {
        version: VERSION,
        raddle: "0.0.0".to_owned(),
        began_at: UnixMs(0),
        plan: Planned {
            scenario: Scenario::QueueStorm,
            server: None,
            threads: 8,
            clients: 16,
            duration_ms: 3_000.0,
            seed: 7,
            kills: 1,
            disk_latency_ms: 4.0,
            disk_fault_rate: 0.001,
            slow_subscribers: 2,
        },
        lasted_ms: 3_000.0,
        passed: false,
        checks: vec![check("once", Holds::Yes, &[]), check("streams", Holds::No, &["<b>thread</b> \"T\" & co"])],
        operations: vec![operation("start", Some(percentiles)), operation("peek", None)],
        slow_subscribers: 0,
        timeline: (0..3)
            .map(|step| OfStep { at_ms: f64::from(step) * 1_000.0, done: 400, refused: 20, failed: 2 })
            .collect(),
        step_ms: 1_000.0,
        kills: vec![Kill { at_ms: 1_500.0, recovery_ms: 300.0 }],
        recovery_ms: Some(Percentiles { count: 1, ..percentiles }),
        kept: None,
    }
}

/// The text between tags must be that: each tag that is opened is closed in order.
fn well_formed(html: &str) {
    let mut open: Vec<String> = Vec::new();
    for part in html.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("not closed: <{part}"));
        assert!(!text.contains('>'), "not escaped: {text}");
        let name = tag.split_whitespace().next().unwrap().trim_end_matches('/').to_owned();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
            None if tag.ends_with('/') || name == "!doctype" || name == "meta" => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_from_elsewhere() {
    let page = html(&outcome());
    well_formed(&page);
    for foreign in ["<script", "src=", "href=", "http:", "https:", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[test]
fn what_is_shown_is_shown_as_text() {
    let page = html(&outcome());
    assert!(page.contains("&lt;b&gt;thread&lt;/b&gt; &quot;T&quot; &amp; co"));
    assert!(page.contains("and 3 more") && page.contains("a check failed"));
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn the_page_says_how_to_do_it_again() {
    let again = "raddle stress queue-storm --threads 8 --clients 16 --duration 3000ms --seed 7 --kill 1 --disk-latency 4 \
                 --disk-faults 0.001 --slow-subscribers 2";
    assert!(html(&outcome()).contains(again));
}

#[test]
fn nothing_at_all_is_a_page_too() {
    let nothing = Outcome {
        lasted_ms: 0.0,
        passed: true,
        checks: vec![],
        operations: vec![],
        slow_subscribers: 0,
        timeline: vec![],
        kills: vec![],
        recovery_ms: None,
        ..outcome()
    };
    let page = html(&nothing);
    well_formed(&page);
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn numbers_are_told_as_people_say_them() {
    assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    let times = [0.25, 3.12, 42.4, 1_500.0, 65_000.0].map(time);
    assert_eq!(times, ["0.25 ms", "3.1 ms", "42 ms", "1.50 s", "65.0 s"]);
}
