//! `raddle simulate`: what it prints where, and what it ends with. What it finds is seen where the runtime is tested.

mod support;

use serde_json::Value;
use support::*;

fn simulate(args: &[&str]) -> Output {
    run(raddle().arg("simulate").args(args), "")
}

#[test]
fn seeds_that_hold_are_summed_up_and_no_server_is_asked() {
    let output = run(raddle().args(["simulate", "--seeds", "3..9"]).env("RADDLE_SERVER", "http://127.0.0.1:1"), "");
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.out.starts_with("all hold: 6 seeds, ") && output.out.contains(" seeds/s)"), "{output:?}");
    let json = simulate(&["--seeds", "6", "--json", "--threads", "1"]);
    let sum: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((sum["seeds"].as_u64(), &sum["broken"]), (Some(6), &Value::Null), "{sum}");
    assert!(sum["commits"].as_u64() > Some(6) && sum["virtual_seconds"].as_u64() > Some(60), "{sum}");
}

#[test]
fn a_seed_is_told_the_same_way_by_two_processes() {
    let [first, again] = [(); 2].map(|()| simulate(&["--seed", "4", "--story"]));
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.out.contains("create thread 0") && first.out.contains("process   1 starts"), "{first:?}");
    let digest = first.out.lines().last().filter(|line| line.starts_with("seed 4 holds; its digest is "));
    assert!(digest.is_some(), "{first:?}");
    assert_eq!(first.out, again.out);
    let json: Value = serde_json::from_str(&simulate(&["--seed", "4", "--story", "--json"]).out).unwrap();
    assert!(digest.unwrap().ends_with(json["digest"].as_str().unwrap()), "{json}");
}

#[test]
fn what_is_no_range_of_seeds_is_a_usage_error() {
    for args in [
        &["--seeds", "9..3"][..],
        &["--seeds", "x"],
        &["--seeds", "0"],
        &["--seeds", "1..2", "--seed", "1"],
        &["--story"],
        &["--story", "--seeds", "5..8"],
        &["--seed", "18446744073709551615"],
    ] {
        let output = simulate(args);
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{args:?}: {output:?}");
    }
}
