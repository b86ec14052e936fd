//! The cases in which a runtime for threads goes wrong most easily, each held to what a correct one does.
//!
//! [`ROWS`] says which tests prove which case; `README.md` beside this file says it to people. Tests that stand here
//! name their row first; the others are where their topic is.

#[path = "support/equipped.rs"]
mod equipped;
#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use equipped::{Equipped, call, pair};
use futures_util::future::{join, join_all, join3};
use openai_server::{Answer, Gate, delta, finish};
use raddle_domain::id::{ApprovalId, TurnId};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;
use tokio::{sync::Barrier, time::timeout};
use uuid::Uuid;

/// Row, file, test.
const ROWS: &[(&str, &str, &str)] = &[
    ("A1", "tests/acceptance.rs", "prompts_queued_behind_a_turn_run_in_their_order_when_it_ends"),
    ("A2", "tests/acceptance.rs", "a_prompt_queued_after_a_refusal_runs_and_the_refused_one_never_does"),
    ("A2", "tests/lifecycle.rs", "a_refused_start_leaves_no_trace_and_never_runs"),
    ("A3", "tests/acceptance.rs", "prompts_queued_around_an_interrupt_all_run_once"),
    ("A4", "tests/acceptance.rs", "an_interrupt_of_another_turn_leaves_the_queue_alone"),
    ("A5", "tests/acceptance.rs", "prompts_queued_during_a_compaction_run_behind_it"),
    ("A6", "tests/acceptance.rs", "a_killed_turn_goes_on_and_its_queue_behind_it_in_order"),
    ("A6", "tests/crash.rs", "a_thread_that_interrupts_on_restart_closes_its_turn_and_runs_its_queue"),
    ("A7", "tests/lifecycle.rs", "of_fifty_simultaneous_starts_exactly_one_is_accepted"),
    ("A8", "actors/tests/acceptance.rs", "a_start_repeated_after_a_crash_at_any_commit_is_one_turn"),
    ("A9", "actors/tests/acceptance.rs", "a_start_repeated_after_a_crash_at_any_commit_is_one_turn"),
    ("A9", "tests/crash.rs", "nothing_acknowledged_is_lost_or_done_twice_however_often_the_server_is_killed"),
    ("A10", "tests/acceptance.rs", "a_turn_whose_engine_is_gone_fails_and_the_queue_goes_on"),
    ("A11", "actors/tests/acceptance.rs", "a_turn_whose_engine_dies_fails_with_the_reason_and_the_next_one_runs"),
    ("A12", "actors/tests/acceptance.rs", "a_turn_outlives_a_disk_that_fails_for_a_while"),
    ("A13", "tests/tools.rs", "an_interrupt_stops_what_has_not_acted_and_names_what_may_have"),
    ("A13", "actors/tests/interrupts.rs", "an_interrupt_is_heard_during_a_compaction_asked_for_or_not"),
    ("A14", "actors/tests/interrupts.rs", "an_interrupt_is_heard_before_the_engine_picks_the_turn_up"),
    ("A15", "actors/tests/steering.rs", "of_a_hundred_and_fifty_races_no_accepted_steer_is_lost"),
    ("A15", "tests/verbs.rs", "a_steer_that_comes_too_late_is_reported_or_waits_its_turn"),
    ("A16", "tests/acceptance.rs", "steers_among_many_items_lose_none_of_them"),
    ("A17", "tests/tools.rs", "an_approval_that_nobody_decides_expires_and_its_turn_goes_on_without_the_call"),
    ("A18", "tests/acceptance.rs", "a_decision_after_the_turn_ended_changes_nothing"),
    (
        "A19",
        "actors/tests/approvals.rs",
        "equal_calls_of_two_threads_are_two_approvals_and_another_tenant_sees_neither",
    ),
    ("A20", "tests/acceptance.rs", "a_decision_that_misses_changes_nothing_and_the_right_one_counts"),
    ("A21", "tests/tools.rs", "an_approved_call_runs_exactly_once_though_its_thread_was_evicted_and_its_server_killed"),
    ("A21", "tests/acceptance.rs", "an_approval_of_a_thread_that_interrupts_on_restart_is_closed_with_an_event"),
    ("A22", "tests/acceptance.rs", "watchers_that_come_at_full_rate_read_the_log"),
    ("A23", "tests/streams.rs", "a_watcher_that_does_not_read_is_cut_off_with_a_cursor_and_disturbs_nobody"),
    ("A24", "tests/streams.rs", "a_snapshot_and_the_events_after_it_are_the_log_while_turns_run"),
    ("A25", "tests/streams.rs", "a_reader_that_is_cut_a_hundred_times_ends_with_the_log_byte_for_byte"),
    ("A26", "tests/streams.rs", "who_watches_and_who_replays_read_the_same_bytes"),
    ("A27", "tests/acceptance.rs", "more_busy_threads_than_the_cap_fall_back_under_it"),
    ("A28", "actors/tests/acceptance.rs", "whoever_asks_at_once_for_an_unloaded_thread_gets_the_same_one"),
    ("A29", "actors/tests/conversations.rs", "the_history_is_the_same_when_it_is_read_again_after_whatever_happened"),
    ("A29", "actors/tests/conversations.rs", "an_unloaded_thread_goes_on_as_if_it_had_stayed"),
    ("A30", "tests/acceptance.rs", "a_title_given_while_a_turn_starts_is_kept"),
    ("A31", "tests/acceptance.rs", "settings_outlive_a_kill"),
    ("A32", "tests/tools.rs", "a_fork_of_a_working_thread_has_its_settled_past_and_outlives_it"),
    ("A32", "tests/usage.rs", "a_fork_is_billed_for_its_own_turns_only"),
    ("A33", "tests/tools.rs", "an_edit_after_tools_takes_the_exchange_out_of_what_the_model_sees"),
    ("A34", "tests/acceptance.rs", "a_second_server_leaves_the_turns_of_the_first_alone"),
    ("A34", "tests/damage.rs", "a_second_server_on_the_same_data_is_refused_with_the_first_ones_pid"),
    ("A35", "tests/damage.rs", "a_thread_whose_record_is_damaged_is_named_and_all_others_work"),
    ("A35", "tests/damage.rs", "a_thread_whose_log_is_damaged_never_reads_it_wrong"),
    ("A36", "actors/tests/usage.rs", "a_turn_costs_what_its_model_cost_when_the_turn_began"),
    ("A36", "actors/tests/usage.rs", "each_turn_is_priced_by_its_own_model_however_often_the_thread_changes_its"),
    ("A37", "actors/tests/acceptance.rs", "two_thousand_fragments_are_a_few_commits"),
    ("A38", "tests/verbs.rs", "a_question_is_answered_once"),
    ("A38", "tests/tools.rs", "a_question_that_nobody_answers_expires_and_the_turn_goes_on"),
    ("A39", "tests/acceptance.rs", "whatever_the_state_does_not_allow_is_a_conflict"),
    ("A40", "tests/acceptance.rs", "a_shutdown_ends_what_can_end_and_keeps_the_rest_and_the_queue"),
];

/// The names of the tests of a source file that are always run.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    let mut attributes = String::new();
    for line in source.lines() {
        let line = line.trim();
        if line.starts_with("#[") {
            attributes.push_str(line);
            continue;
        }
        let function = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split_once('('));
        let is_test = attributes.contains("#[test]") || attributes.contains("#[tokio::test");
        if let (Some((name, _)), true, false) = (function, is_test, attributes.contains("#[ignore")) {
            tests.insert(name);
        }
        attributes.clear();
    }
    tests
}

#[test]
fn every_row_names_tests_that_there_are_and_the_readme_names_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
    let files: BTreeSet<_> = ROWS.iter().map(|(_, file, _)| *file).collect();
    let sources: BTreeMap<_, _> = files.into_iter().map(|file| (file, read(file))).collect();
    let mut map: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (row, file, test) in ROWS {
        assert!(tests_of(&sources[file]).contains(test), "{row}: {file} has no test `{test}`");
        map.entry(row).or_default().insert(format!("{file}::{test}"));
    }
    let rows: BTreeSet<_> = (1..=40).map(|row| format!("A{row}")).collect();
    assert_eq!(map.keys().map(|row| (*row).to_owned()).collect::<BTreeSet<_>>(), rows);
    let readme = read("tests/README.md");
    let told: BTreeMap<_, BTreeSet<_>> = readme
        .lines()
        .filter_map(|line| {
            let row = line.strip_prefix("| A").filter(|row| row.starts_with(|first: char| first.is_ascii_digit()))?;
            let cells: Vec<_> = row.split(" | ").collect();
            let tests = cells.last()?.split('`').filter(|part| part.contains("::")).map(str::to_owned);
            Some((format!("A{}", cells[0]), tests.collect()))
        })
        .collect();
    for (row, tests) in &map {
        assert_eq!(told.get(*row), Some(tests), "{row} in tests/README.md");
    }
    assert_eq!(told.len(), map.len());
}

#[test]
fn every_test_that_the_readme_of_the_tests_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
    let readme = read("tests/README.md");
    let named: BTreeSet<_> = readme.split('`').filter_map(|part| part.split_once(".rs::")).collect();
    assert!(named.len() > 50, "the map is there");
    for (file, test) in named {
        assert!(tests_of(&read(&format!("{file}.rs"))).contains(test), "{file}.rs has no test `{test}`");
    }
}

#[test]
fn every_case_of_context_runs_has_its_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("tests/README.md")).unwrap();
    let (_, section) = readme.split_once("## Cases of context runs").expect("the section is there");
    let mut told = BTreeSet::new();
    for line in section.lines().take_while(|line| !line.starts_with("## ")) {
        let Some((row, rest)) = line.strip_prefix("| R").and_then(|row| row.split_once(" | ")) else { continue };
        assert!(told.insert(format!("R{row}")), "R{row} is there twice");
        // Whether a test that is named is there, another test says.
        let tests = rest.matches(".rs::").count();
        assert_eq!(tests == 0, rest.starts_with("Does not apply: "), "R{row} names tests, or says why there are none");
    }
    let rows = (1..=35).map(|row| format!("R{row}")).chain(('A'..='V').map(|row| format!("R{row}")));
    assert_eq!(told, rows.collect());
}

/// A thread with a turn that is open until it is answered; thread, turn and where to answer.
async fn open_turn(world: &Equipped) -> (String, String, String) {
    let thread = world.api().create(json!({})).await;
    let turn = world.api().start(&thread, "@ask go on?").await;
    world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    let asked = world.api().list(&format!("/v1/questions?status=pending&thread={thread}"), 50).await;
    let question = format!("/v1/questions/{}", text(&asked[0]["id"]));
    (thread, turn, question)
}

async fn answer(world: &Equipped, question: &str) {
    world.api().post(question, json!({"answer": "yes"})).await.expect(200);
}

fn unknown_turn() -> TurnId {
    TurnId::new(Uuid::from_u128(1))
}

/// A streamed answer that begins, and goes on when the gate opens.
fn held(gate: &Gate) -> Answer {
    Answer::stream().event(delta(json!({"content": "part"}))).wait(gate).event(finish("stop")).done()
}

// ---- the queue -----------------------------------------------------------------------------------

/// A1
#[tokio::test]
async fn prompts_queued_behind_a_turn_run_in_their_order_when_it_ends() {
    let world = Equipped::start(&[]).await;
    let (thread, _, question) = open_turn(&world).await;
    for prompt in ["q1", "q2", "q3"] {
        world.api().queue(&thread, prompt).await;
    }
    answer(&world, &question).await;
    assert_eq!(world.api().rest(&thread).await["queued"], 0);
    let expected = ["@ask go on?", "q1", "q2", "q3"].map(|prompt| pair(prompt, "completed"));
    assert_eq!(world.turns(&thread).await, expected);
    let log = world.log(&thread).await;
    assert_eq!(names(&log).iter().filter(|name| **name == "prompt.promoted").count(), 3);
}

/// A2
#[tokio::test]
async fn a_prompt_queued_after_a_refusal_runs_and_the_refused_one_never_does() {
    let mut world = Equipped::start(&[]).await;
    let (thread, _, question) = open_turn(&world).await;
    let turns = format!("/v1/threads/{thread}/turns");
    world.api().post(&turns, json!({"prompt": "REFUSED"})).await.problem(409, "turn-open");
    world.api().queue(&thread, "q").await;
    answer(&world, &question).await;
    world.api().rest(&thread).await;
    world.crash().await;
    assert_eq!(world.turns(&thread).await[1..], [pair("q", "completed")]);
    assert_eq!(world.api().list(&format!("/v1/threads/{thread}/inbox"), 50).await, [] as [Value; 0]);
    assert!(!format!("{:?}", world.log(&thread).await).contains("REFUSED"));
}

/// A3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_queued_around_an_interrupt_all_run_once() {
    let world = Equipped::start(&[]).await;
    let api = world.api();
    for round in 0..20 {
        let thread = api.create(json!({})).await;
        let turn = api.start(&thread, "@wait 600000").await;
        let turns = format!("/v1/threads/{thread}/turns");
        let at = format!("{turns}/{turn}/interrupt");
        let interrupt = api.post(&at, json!({}));
        let queue = |prompt: &str| api.post(&turns, json!({"prompt": prompt, "delivery": "queue"}));
        let mut sent = vec!["@wait 600000"];
        let replies = if round % 2 == 0 {
            let (ended, q1, q2) = join3(interrupt, queue("q1"), queue("q2")).await;
            [ended, q1, q2]
        } else {
            [interrupt.await, queue("q1").await, queue("q2").await]
        };
        replies[0].expect(200);
        for (prompt, reply) in ["q1", "q2"].iter().zip(&replies[1..]) {
            assert!(matches!(reply.status, 201 | 202), "{reply:?}");
            sent.push(prompt);
        }
        api.rest(&thread).await;
        let mut ran: Vec<_> = world.turns(&thread).await.into_iter().map(|(prompt, _)| prompt).collect();
        if round % 2 == 0 {
            ran[1..].sort();
        }
        assert_eq!(ran, sent);
        world.log(&thread).await;
    }
}

/// A4
#[tokio::test]
async fn an_interrupt_of_another_turn_leaves_the_queue_alone() {
    let world = Equipped::start(&[]).await;
    let api = world.api();
    let (thread, _, question) = open_turn(&world).await;
    let (other, ended, asked) = open_turn(&world).await;
    answer(&world, &asked).await;
    api.rest(&other).await;
    api.queue(&thread, "q1").await;
    let before = api.log(&thread).await;
    for turn in [unknown_turn().to_string(), ended.clone()] {
        let interrupt = format!("/v1/threads/{thread}/turns/{turn}/interrupt");
        api.post(&interrupt, json!({"pause_queue": true})).await.problem(404, "not-found");
    }
    api.post(&format!("/v1/threads/{other}/turns/{ended}/interrupt"), json!({})).await.problem(409, "turn-not-active");
    assert_eq!(api.log(&thread).await, before);
    answer(&world, &question).await;
    api.rest(&thread).await;
    assert_eq!(world.turns(&thread).await, ["@ask go on?", "q1"].map(|prompt| pair(prompt, "completed")));
}

/// A5
#[tokio::test]
async fn prompts_queued_during_a_compaction_run_behind_it() {
    let world = Equipped::with_provider(&[]).await;
    let thread = world.api().create(json!({})).await;
    world.answer(Answer::text("hello"));
    world.say(&thread, "hi").await;
    let gate = Gate::closed();
    world.answer(held(&gate));
    world.api().post(&format!("/v1/threads/{thread}/compact"), json!({})).await.expect(202);
    for prompt in ["q1", "q2"] {
        world.api().queue(&thread, prompt).await;
        world.answer(Answer::text(&format!("to {prompt}")));
    }
    gate.open();
    world.api().rest(&thread).await;
    assert_eq!(world.turns(&thread).await[2..], ["q1", "q2"].map(|prompt| pair(prompt, "completed")));
    let shown = world.shown();
    let last = shown.last().unwrap();
    assert!(last[0]["content"].as_str().unwrap().ends_with("part"), "the summary stands first: {last:?}");
    assert_eq!(last[1..].iter().map(|message| text(&message["content"])).collect::<Vec<_>>(), ["q1", "to q1", "q2"]);
    world.log(&thread).await;
}

/// A6
#[tokio::test]
async fn a_killed_turn_goes_on_and_its_queue_behind_it_in_order() {
    let mut world = Equipped::with_provider(&[]).await;
    let thread = world.api().create(json!({"on_restart": "resume"})).await;
    world.answer(held(&Gate::closed()));
    let turn = world.api().start(&thread, "p").await;
    for prompt in ["q1", "q2"] {
        world.api().queue(&thread, prompt).await;
    }
    world.api().stream(&thread, 0).await.until("item.delta").await;
    for answer in ["whole", "a1", "a2"] {
        world.answer(Answer::text(answer));
    }
    world.crash().await;
    world.api().rest(&thread).await;
    assert_eq!(world.turns(&thread).await, ["p", "q1", "q2"].map(|prompt| pair(prompt, "completed")));
    assert_eq!(world.turn(&thread, &turn).await["resume_count"], 1);
    let log = world.log(&thread).await;
    let resumed: Vec<_> = log.iter().filter(|event| event["event"] == "turn.resumed").collect();
    assert_eq!((resumed.len(), &resumed[0]["turn_id"]), (1, &json!(turn)));
    let said = world.items(&thread).await;
    let said: Vec<_> = said.iter().filter(|(kind, ..)| kind == "agent_message").map(|(.., said)| said).collect();
    assert_eq!(said, ["part", "whole", "a1", "a2"]);
    assert_eq!(world.shown().len(), 4, "one call of the model is repeated, and no other");
}

// ---- engines -------------------------------------------------------------------------------------

/// A10
#[tokio::test]
async fn a_turn_whose_engine_is_gone_fails_and_the_queue_goes_on() {
    let mut world = Equipped::with_provider(&[]).await;
    let thread = world.api().create(json!({})).await;
    let path = format!("/v1/threads/{thread}");
    world.answer(held(&Gate::closed()));
    let turn = world.api().start(&thread, "p").await;
    let lost = world.api().queue(&thread, "q1").await;
    let body = json!({"prompt": "q2", "delivery": "queue", "model": "scripted"});
    world.api().post(&format!("{path}/turns"), body).await.expect(202);
    world
        .crash_into(|env| {
            env.retain(|(name, _)| !name.starts_with("RADDLE_MODEL"));
        })
        .await;
    world.api().rest(&thread).await;
    assert_eq!(world.turns(&thread).await, [pair("p", "failed"), pair("q1", "failed"), pair("q2", "completed")]);
    let failed = world.turn(&thread, &turn).await;
    assert!(text(&failed["error"]["message"]).contains("openai"), "{failed}");
    let log = world.log(&thread).await;
    assert!(
        log.iter().any(|event| event["event"] == "prompt.promoted" && event["payload"]["admission"]["id"] == *lost)
    );
    world.api().patch(&path, json!({"model": "scripted"})).await.expect(200);
    assert_eq!(world.say(&thread, "and on").await["status"], "completed");
}

// ---- steers --------------------------------------------------------------------------------------

/// A16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steers_among_many_items_lose_none_of_them() {
    let world = Equipped::start(&[]).await;
    let api = world.api();
    std::fs::write(world.path("file"), "x").unwrap();
    let thread = api.create(json!({})).await;
    // Held by a question until the steers are sent; then twenty calls, with a steer before each of the last ten.
    let reads = "@tool demo_read {\"name\": \"file\"}\n".repeat(20);
    let turn = api.start(&thread, &format!("@ask go?\n{reads}@say done")).await;
    world.stands(&thread, |thread| thread["status"] == "awaiting_approval").await;
    let asked = api.list("/v1/questions?status=pending", 50).await;
    let question = format!("/v1/questions/{}", text(&asked[0]["id"]));
    let steer = format!("/v1/threads/{thread}/turns/{turn}/steer");
    let steers =
        join_all((0..20).map(|n| api.post(&steer, json!({"prompt": format!("s{n}"), "undelivered": "queue"}))));
    let (steers, ()) = join(steers, answer(&world, &question)).await;
    let accepted = steers.iter().filter(|reply| reply.status == 202).count();
    let refused = steers.iter().filter(|reply| reply.status != 202);
    refused.for_each(|reply| drop(reply.problem(409, "turn-not-active")));
    api.rest(&thread).await;
    let ended = world.turn(&thread, &turn).await;
    assert_eq!(ended["status"], "completed");
    let log = world.log(&thread).await;
    let begun = log.iter().filter(|event| event["event"] == "item.started" && event["turn_id"] == *turn);
    let begun: Vec<_> = begun.map(|event| event["item_id"].clone()).collect();
    assert_eq!(ended["item_ids"], json!(begun));
    let items = api.list(&format!("/v1/threads/{thread}/items?turn={turn}"), 500).await;
    assert_eq!(items.iter().map(|item| item["id"].clone()).collect::<Vec<_>>(), begun);
    let count = |kind: &str| items.iter().filter(|item| item["kind"] == kind).count();
    assert_eq!(count("tool_call"), 21);
    let steered = ended["steer_count"].as_u64().unwrap() as usize;
    assert_eq!(count("user_message"), 1 + steered);
    // What came too late runs by itself: none is lost.
    let late = ended["not_delivered"].as_array().map_or(0, Vec::len);
    assert_eq!(steered + late, accepted);
    assert_eq!(world.turns(&thread).await.len(), 1 + late);
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&thread).await));
}

// ---- approvals -----------------------------------------------------------------------------------

fn gated() -> String {
    call("demo_append", json!({"name": "file", "line": "x"}))
}

/// A18
#[tokio::test]
async fn a_decision_after_the_turn_ended_changes_nothing() {
    let world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({})).await;
    let turn = world.api().start(&thread, &gated()).await;
    let approval = world.approval(&thread).await;
    world.api().post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    let (before, log) = (world.api().snapshot(&thread).await, world.log(&thread).await);
    assert_eq!(before["thread"]["status"], "idle");
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    for decision in ["approved", "approved_for_session", "approved_always", "denied", "abort"] {
        world.api().post(&at, json!({"decision": decision})).await.problem(409, "already-decided");
    }
    assert_eq!((world.api().snapshot(&thread).await, world.api().log(&thread).await), (before, log));
    assert_eq!(world.ledger(), []);
    // Nor was anything granted.
    world.api().start(&thread, &gated()).await;
    world.approval(&thread).await;
}

/// A20
#[tokio::test]
async fn a_decision_that_misses_changes_nothing_and_the_right_one_counts() {
    let world = Equipped::start(&[]).await;
    let api = world.api();
    let (thread, other) = (api.create(json!({})).await, api.create(json!({})).await);
    api.start(&thread, &gated()).await;
    api.start(&other, &gated()).await;
    let (approval, others) = (world.approval(&thread).await, world.approval(&other).await);
    assert_eq!(approval["call_id"], others["call_id"], "what tells them apart is not the model's name for the call");
    let before = [api.log(&thread).await, api.log(&other).await];
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    let body = json!({"decision": "approved"});
    let unknown = format!("/v1/approvals/{}", ApprovalId::new(Uuid::from_u128(1)));
    api.post(&unknown, body.clone()).await.problem(404, "not-found");
    for foreign in [&approval["thread_id"], &approval["turn_id"], &approval["operation_id"]] {
        api.post(&format!("/v1/approvals/{}", text(foreign)), body.clone()).await.problem(404, "not-found");
    }
    let stale = api.request(Method::POST, &at).header("if-match", "\"1\"").json(&body);
    api.send(stale).await.problem(412, "precondition-failed");
    assert_eq!([api.log(&thread).await, api.log(&other).await], before);
    api.post(&at, body).await.expect(200);
    api.rest(&thread).await;
    assert_eq!(world.approval(&other).await, others);
    assert_eq!(world.ledger().len(), 1);
}

/// A21
#[tokio::test]
async fn an_approval_of_a_thread_that_interrupts_on_restart_is_closed_with_an_event() {
    let mut world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({"on_restart": "interrupt"})).await;
    world.api().start(&thread, &gated()).await;
    world.api().queue(&thread, "next").await;
    let approval = world.approval(&thread).await;
    world.crash().await;
    world.stands(&thread, |thread| thread["status"] == "idle").await;
    let ran = world.turns(&thread).await;
    assert_eq!((ran[0].1.as_str(), &ran[1]), ("interrupted", &pair("next", "completed")));
    let log = world.log(&thread).await;
    let closed = log.iter().find(|event| event["event"] == "approval.cancelled").expect("an event says so");
    assert_eq!(closed["payload"]["approval"]["id"], approval["id"]);
    let at = format!("/v1/approvals/{}", text(&approval["id"]));
    assert_eq!(world.api().get(&at).await.expect(200)["status"], "cancelled");
    world.api().post(&at, json!({"decision": "approved"})).await.problem(409, "already-decided");
    assert_eq!(world.ledger(), []);
}

// ---- streams -------------------------------------------------------------------------------------

/// A22
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_come_at_full_rate_read_the_log() {
    const WATCHERS: usize = 20;
    const LAST: &str = "the last title";
    let world = Equipped::start(&[("RADDLE_LIMITS_SUBSCRIBER_BYTES", "16777216")]).await;
    let api = world.api();
    let thread = api.create(json!({})).await;
    let connected = Arc::new(Barrier::new(WATCHERS + 1));
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|n| {
            let (api, thread, connected) = (api.clone(), thread.clone(), connected.clone());
            tokio::spawn(async move {
                let path = format!("/v1/threads/{thread}");
                let head = api.get(&path).await.expect(200)["seq"].as_u64().unwrap();
                // Whoever comes gives the others something to read while they come.
                for _ in 0..3 {
                    let more = json!({"prompt": "@think a\n@tokens 500\n@think b\n@say ☃", "delivery": "queue"});
                    let reply = api.post(&format!("{path}/turns"), more).await;
                    assert!(matches!(reply.status, 201 | 202), "{reply:?}");
                }
                let after = head - head.min(n as u64 % 4);
                let mut stream = api.stream(&thread, after).await;
                connected.wait().await;
                let mut read = Vec::new();
                while read.last().is_none_or(|last: &Value| last["payload"]["thread"]["title"] != LAST) {
                    read.push(stream.next().await.expect("a watcher was cut off").json());
                }
                (after, read)
            })
        })
        .collect();
    timeout(LOST, connected.wait()).await.expect("the watchers do not come");
    api.rest(&thread).await;
    api.patch(&format!("/v1/threads/{thread}"), json!({"title": LAST})).await.expect(200);
    let log = world.log(&thread).await;
    for watcher in join_all(watchers).await {
        let (after, read) = watcher.unwrap();
        assert_eq!(read[..], log[after as usize..]);
    }
}

// ---- memory --------------------------------------------------------------------------------------

/// A27
#[tokio::test]
async fn more_busy_threads_than_the_cap_fall_back_under_it() {
    let world = Equipped::with_provider(&[("RADDLE_LIMITS_LOADED_THREADS", "2")]).await;
    let gate = Gate::closed();
    let mut threads = Vec::new();
    for n in 1..=3 {
        world.answer(held(&gate));
        let thread = world.api().create(json!({})).await;
        world.api().start(&thread, "p").await;
        world.provider.as_ref().unwrap().until_asked(n).await;
        threads.push(thread);
    }
    assert_eq!(world.metric("raddle_loaded_threads").await, 3, "what is busy stays");
    assert_eq!(world.metric("raddle_running_turns").await, 3);
    (0..3).for_each(|_| gate.open());
    for thread in &threads {
        assert_eq!(world.api().rest(thread).await["status"], "idle");
        assert_eq!(world.turns(thread).await, [pair("p", "completed")]);
    }
    world.until_metric("raddle_loaded_threads", |loaded| loaded <= 2).await;
}

/// A30
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_title_given_while_a_turn_starts_is_kept() {
    let world = Equipped::start(&[("RADDLE_LIMITS_LOADED_THREADS", "1")]).await;
    let api = world.api();
    let (thread, other) = (api.create(json!({})).await, api.create(json!({})).await);
    let path = format!("/v1/threads/{thread}");
    for round in 0..20 {
        // The other one takes its place in memory: it has to be loaded again.
        api.patch(&format!("/v1/threads/{other}"), json!({"title": round.to_string()})).await.expect(200);
        let title = json!({"title": round.to_string(), "archived": false, "metadata": {"round": round}});
        let turns = format!("{path}/turns");
        let (patched, started) = join(api.patch(&path, title), api.post(&turns, json!({"prompt": "p"}))).await;
        assert_eq!(patched.expect(200)["title"], round.to_string());
        started.expect(201);
        let found = api.rest(&thread).await;
        assert_eq!((&found["title"], &found["metadata"]["round"]), (&json!(round.to_string()), &json!(round)));
    }
    let log = world.log(&thread).await;
    assert_eq!(Fold::of(&log), Fold::from_snapshot(&api.snapshot(&thread).await));
    assert_eq!(world.turns(&thread).await.len(), 20);
}

/// A31
#[tokio::test]
async fn settings_outlive_a_kill() {
    let mut world = Equipped::start(&[]).await;
    let thread = world.api().create(json!({"title": "before", "metadata": {"old": 1}})).await;
    let path = format!("/v1/threads/{thread}");
    let settings = json!({
        "title": "after", "model": "scripted", "mode": "plan", "system_prompt": "be brief", "workspace": "w",
        "allow_shell": true, "auto_approve": true, "trust_mode": true, "on_restart": "interrupt",
        "queue_paused": true, "metadata": {"k": [1, null, "☃"]},
    });
    let patched = world.api().patch(&path, settings.clone()).await.expect(200);
    world.crash().await;
    let found = world.api().get(&path).await.expect(200);
    assert_eq!(found, patched);
    for (name, value) in settings.as_object().unwrap() {
        assert_eq!(found[name], *value, "{name}");
    }
    // They are what a turn runs with.
    let turn = world.say(&thread, "p").await;
    for name in ["mode", "allow_shell", "auto_approve", "trust_mode"] {
        assert_eq!(turn[name], settings[name], "{name}");
    }
}

// ---- processes -----------------------------------------------------------------------------------

/// A34
#[tokio::test]
async fn a_second_server_leaves_the_turns_of_the_first_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::start(dir.path()).await;
    let api = &first.api;
    let [resumes, interrupts] = [api.create(json!({})).await, api.create(json!({"on_restart": "interrupt"})).await];
    let mut before = Vec::new();
    for thread in [&resumes, &interrupts] {
        api.start(thread, "@say part\n@wait 600000").await;
        api.queue(thread, "q").await;
        api.stream(thread, 0).await.until("item.delta").await;
        before.push(api.log(thread).await);
    }
    let refused = Server::launch(dir.path(), &[]).await.err().expect("two servers on one directory");
    assert!(refused.said.contains(&format!("process {}", first.pid())), "{}", refused.said);
    for (thread, before) in [&resumes, &interrupts].into_iter().zip(before) {
        assert_eq!(api.log(thread).await, before);
        let open = api.get(&format!("/v1/threads/{thread}")).await.expect(200);
        let interrupt = format!("/v1/threads/{thread}/turns/{}/interrupt", text(&open["active_turn"]));
        api.post(&interrupt, json!({})).await.expect(200);
        api.rest(thread).await;
        check_log(&api.log(thread).await, true);
    }
}

/// A39
#[tokio::test]
async fn whatever_the_state_does_not_allow_is_a_conflict() {
    let world = Equipped::start(&[]).await;
    let api = world.api();
    let (thread, turn, question) = open_turn(&world).await;
    let path = format!("/v1/threads/{thread}");
    let turns = format!("{path}/turns");
    let queued = api.queue(&thread, "q").await;
    let before = api.log(&thread).await;
    let (x, none) = (json!({"prompt": "x"}), json!({}));
    for (verb, body, code) in [
        (&turns, json!({"prompt": "x"}), "turn-open"),
        (&format!("{path}/edit"), x.clone(), "turn-open"),
        (&format!("{path}/compact"), none.clone(), "turn-open"),
        (&turns, json!({"prompt": "x", "delivery": "queue", "expected_turn": unknown_turn()}), "turn-not-active"),
    ] {
        let problem = api.post(verb, body).await.problem(409, code);
        assert_eq!(problem["active_turn"], *turn, "{verb}");
    }
    assert_eq!(api.log(&thread).await, before);
    // The workspace may be changed at any time: it is kept, answered for, and the open turn is not disturbed.
    assert_eq!(api.patch(&path, json!({"workspace": "elsewhere"})).await.expect(200)["workspace"], "elsewhere");
    answer(&world, &question).await;
    assert_eq!(api.rest(&thread).await["workspace"], "elsewhere");
    assert_eq!(world.turns(&thread).await.len(), 2);

    let before = api.log(&thread).await;
    let (steer, interrupt) = (format!("{turns}/{turn}/steer"), format!("{turns}/{turn}/interrupt"));
    for (method, verb, body, code) in [
        (Method::POST, &steer, x.clone(), "turn-not-active"),
        (Method::POST, &interrupt, none.clone(), "turn-not-active"),
        (Method::POST, &turns, json!({"prompt": "x", "delivery": "steer", "if_idle": "reject"}), "turn-not-active"),
        (Method::POST, &question, json!({"answer": "no"}), "already-decided"),
        (Method::PATCH, &format!("{path}/inbox/{queued}"), x.clone(), "already-promoted"),
        (Method::DELETE, &format!("{path}/inbox/{queued}"), none.clone(), "already-promoted"),
    ] {
        api.send(api.request(method, verb).json(&body)).await.problem(409, code);
    }
    assert_eq!(api.log(&thread).await, before);
    let empty = format!("/v1/threads/{}", api.create(json!({})).await);
    api.post(&format!("{empty}/edit"), x.clone()).await.problem(409, "conflict");
    api.post(&format!("{empty}/compact"), none.clone()).await.problem(409, "conflict");
    api.patch(&path, json!({"archived": true})).await.expect(200);
    for (verb, body) in [(&turns, &x), (&format!("{path}/edit"), &x), (&format!("{path}/compact"), &none)] {
        api.post(verb, body.clone()).await.problem(409, "thread-archived");
    }
}

/// A40
#[tokio::test]
async fn a_shutdown_ends_what_can_end_and_keeps_the_rest_and_the_queue() {
    let world = Equipped::with_provider(&[("RADDLE_SHUTDOWN_DEADLINE_MS", "50000")]).await;
    let thread = world.api().create(json!({})).await;
    let gate = Gate::closed();
    world.answer(held(&gate));
    let turn = world.api().start(&thread, "ends").await;
    for prompt in ["q1", "q2"] {
        world.api().queue(&thread, prompt).await;
        world.answer(Answer::text("done"));
    }
    world.api().stream(&thread, 0).await.until("item.delta").await;
    // Whoever is to go is not asked for anything new, and finishes what it has begun.
    let api = world.api().clone();
    let mut stream = api.stream(&thread, 0).await;
    world.server.terminate();
    let refused = async {
        loop {
            let reply = api.post(&format!("/v1/threads/{thread}/turns"), json!({"prompt": "REFUSED"})).await;
            if reply.status == 503 {
                return reply.problem(503, "draining");
            }
            reply.problem(409, "turn-open");
        }
    };
    timeout(LOST, refused).await.expect("the server does not drain");
    gate.open();
    let end = stream.until("turn.completed").await.json();
    assert_eq!((&end["turn_id"], &end["payload"]["status"]), (&json!(turn), &json!("completed")));
    stream.until("stream.end").await;
    let mut world = world.ended().await;
    world.api().rest(&thread).await;
    assert_eq!(world.turns(&thread).await, ["ends", "q1", "q2"].map(|prompt| pair(prompt, "completed")));
    let log = world.log(&thread).await;
    assert!(!format!("{log:?}").contains("REFUSED"));

    // What cannot end in time is closed, or goes on, at the next start; and the queue behind it.
    world.reconfigure("RADDLE_SHUTDOWN_DEADLINE_MS", "0").await;
    for (on_restart, status) in [("interrupt", "interrupted"), ("resume", "completed")] {
        let thread = world.api().create(json!({"on_restart": on_restart})).await;
        world.answer(held(&Gate::closed()));
        let turn = world.api().start(&thread, "open").await;
        for prompt in ["q1", "q2"] {
            world.api().queue(&thread, prompt).await;
        }
        world.api().stream(&thread, 0).await.until("item.delta").await;
        if status == "completed" {
            world.answer(Answer::text("whole"));
        }
        world.answer(Answer::text("a1"));
        world.answer(Answer::text("a2"));
        world.server.terminate();
        world = world.ended().await;
        world.api().rest(&thread).await;
        assert_eq!(
            world.turns(&thread).await,
            [pair("open", status), pair("q1", "completed"), pair("q2", "completed")],
            "{on_restart}"
        );
        let log = world.log(&thread).await;
        let end = log.iter().find(|event| event["event"] == "turn.completed").unwrap();
        assert_eq!((&end["turn_id"], &end["payload"]["status"]), (&json!(turn), &json!(status)));
        assert_eq!(names(&log).contains(&"turn.resumed"), status == "completed");
    }
}
