//! What is promised of tasks of a run on which turns and jobs work: a task is claimed, kept while somebody works on it,
//! done once or given back, whoever is killed; and nobody can pass for a worker who is none.

#[path = "support/crew.rs"]
mod crew;
mod support;

use crew::{Crew, new_run, script};
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::*;
use tokio::time::timeout;

/// What a lease may say without a heartbeat, in heartbeats.
const OVER_A_LEASE: usize = 17;

fn claim() -> (&'static str, Value) {
    ("claim_task", json!({}))
}

fn finish(task: &str, more: Value) -> (&'static str, Value) {
    let mut arguments = json!({ "task_id": task });
    arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ("finish_task", arguments)
}

/// Status and text of each call of a tool, in order.
async fn calls(api: &Api, thread: &str) -> Vec<(String, String)> {
    let items = api.list(&format!("/v1/threads/{thread}/items"), 100).await;
    let calls =
        items.iter().filter(|item| !["user_message", "agent_message"].contains(&item["kind"].as_str().unwrap()));
    calls.map(|item| (text(&item["status"]), text(&item["detail"]))).collect()
}

/// The question for which a thread waits.
async fn question(api: &Api, thread: &str) -> String {
    let asked = async {
        loop {
            let pending = api.list(&format!("/v1/questions?status=pending&thread={thread}"), 9).await;
            if let Some(question) = pending.first() {
                return text(&question["id"]);
            }
        }
    };
    timeout(LOST, asked).await.expect("it asks")
}

// ---- turns ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_turn_claims_a_task_works_on_it_and_completes_it() {
    let crew = Crew::new().await;
    crew.tasks(&["a", "b"]).await;
    let thread = crew.thread("desk").await;
    let prompt = script(&[
        ("read_board", json!({})),
        claim(),
        ("write_file", json!({"path": "out", "content": "x"})),
        ("note_on_board", json!({"kind": "fact", "text": "it is tidy"})),
        ("note_on_board", json!({"kind": "artifact", "path": "out", "artifact_type": "file"})),
        finish("a", json!({"outcome": "done", "output": {"files": 1}})),
        ("read_board", json!({})),
    ]);
    assert_eq!(crew.say(&thread, &prompt).await["status"], "completed");
    let task = crew.task("a").await;
    assert_eq!(
        (&task["status"], &task["output"], &task["lease"]),
        (&json!("done"), &json!({"files": 1}), &Value::Null)
    );
    assert_eq!(crew.task("b").await["status"], "pending");
    let calls = calls(crew.api(), &thread).await;
    assert!(calls.iter().all(|(status, _)| status == "completed"), "{calls:?}");
    assert!(calls[1].1.contains(r#""about":"a""#), "the model is told what to do: {}", calls[1].1);
    assert_eq!(calls[5].1, "the task `a` is done");
    let board: Value = serde_json::from_str(&calls[6].1).unwrap();
    assert_eq!((&board["objective"], &board["task_counts"]["done"]), (&json!("tidy up"), &json!(1)));
    assert_eq!(board["facts"], json!([{"text": "it is tidy", "resolved": false}]));
    assert_eq!(board["artifacts"][0]["path"], "out");
    // One line for each call, also on the board itself.
    let board = crew.api().get(&crew.at("/blackboard")).await.expect(200);
    assert_eq!(board["facts"].as_array().unwrap().len(), 1, "{board}");
    // Nobody but a holder by token has one: it stands in nothing that a model, or a reader of a log, can see.
    for seen in [json!(crew.api().log(&thread).await), json!(crew.events().await), json!(calls)] {
        assert!(!seen.to_string().contains("lease-"), "{seen}");
    }
    check_log(&crew.api().log(&thread).await, true);
    crew.server.stop().await;
}

#[tokio::test]
async fn a_turn_may_fail_its_task_or_give_it_back() {
    let crew = Crew::new().await;
    crew.tasks(&["a", "b"]).await;
    let thread = crew.thread("desk").await;
    let fails = script(&[claim(), finish("a", json!({"outcome": "failed", "error": "no broom"}))]);
    crew.say(&thread, &fails).await;
    let task = crew.task("a").await;
    assert_eq!((&task["attempt"], &task["last_error"]), (&json!(1), &json!("no broom")), "{task}");
    let back = script(&[("claim_task", json!({"task_id": "b"})), finish("b", json!({"outcome": "released"}))]);
    crew.say(&thread, &back).await;
    let task = crew.task("b").await;
    assert_eq!((&task["status"], &task["attempt"]), (&json!("runnable"), &json!(0)), "{task}");
    // What is nobody's cannot be finished, nor what there is not.
    crew.say(&thread, &script(&[finish("b", json!({"outcome": "done"})), finish("c", json!({"outcome": "done"}))]))
        .await;
    let calls = calls(crew.api(), &thread).await;
    assert!(calls[4].0 == "failed" && calls[4].1.contains("never this worker's"), "{:?}", calls[4]);
    assert!(calls[5].0 == "failed" && calls[5].1.contains("no such task"), "{:?}", calls[5]);
}

#[tokio::test]
async fn a_turn_that_ends_without_finishing_gives_its_task_back() {
    let crew = Crew::new().await;
    crew.tasks(&["a"]).await;
    let thread = crew.thread("desk").await;
    let claims = "@tool claim_task {}\n";
    assert_eq!(crew.say(&thread, claims).await["status"], "completed");
    crew.task_is("a", "runnable").await;
    assert_eq!(crew.say(&thread, &format!("{claims}@fail 400 broken")).await["status"], "failed");
    crew.task_is("a", "runnable").await;
    let turn = crew.api().start(&thread, &format!("{claims}@wait 600000")).await;
    crew.task_is("a", "in_progress").await;
    crew.api().post(&format!("/v1/threads/{thread}/turns/{turn}/interrupt"), json!({})).await.expect(200);
    let task = crew.task_is("a", "runnable").await;
    assert_eq!(
        (&task["attempt"], &task["last_error"]),
        (&json!(0), &Value::Null),
        "nothing of it is a failure: {task}"
    );
    assert_eq!((crew.count("context.task.claimed").await, crew.count("context.task.requeued").await), (3, 3));
}

#[tokio::test]
async fn a_lease_is_kept_while_its_turn_goes_on_also_by_the_process_after_a_kill() {
    // On a machine on which the next process takes longer to come than a lease lasts there is nothing to keep.
    for _ in 0..5 {
        if is_kept_over_a_kill().await {
            return;
        }
    }
    panic!("no process came before the lease was over");
}

/// Whether it was kept; not so only where it was over before the next process was there.
async fn is_kept_over_a_kill() -> bool {
    let mut crew = Crew::new().await;
    crew.tasks(&["a"]).await;
    let thread = crew.thread("desk").await;
    let turn = crew
        .api()
        .start(
            &thread,
            "@tool claim_task {}\n@ask go on?\n@tool finish_task {\"task_id\": \"a\", \"outcome\": \"done\"}",
        )
        .await;
    question(crew.api(), &thread).await;
    let fence = crew.task("a").await["lease"]["fence"].clone();
    crew.happens("context.task.heartbeat", OVER_A_LEASE).await;
    crew.crash().await;
    let goes_on = async {
        loop {
            let events = crew.events().await;
            let named = |name: &'static str| events.iter().filter(move |event| event["event"] == name);
            if let Some(requeued) = named("context.task.stale_requeued").next() {
                let heard = named("context.task.heartbeat").next_back().unwrap();
                let over = text(&heard["payload"]["task"]["lease"]["expires_at"]);
                assert!(text(&requeued["ts"]) >= over, "it was taken back before it was over: {requeued} {heard}");
                return false;
            }
            if named("context.task.heartbeat").count() >= 2 * OVER_A_LEASE {
                return true;
            }
        }
    };
    if !timeout(LOST, goes_on).await.expect("nobody keeps the lease, and nobody takes it back") {
        return false;
    }
    let task = crew.task("a").await;
    assert_eq!((&task["status"], &task["lease"]["fence"]), (&json!("in_progress"), &fence));
    let owner = format!("{thread}/{turn}");
    assert_eq!(task["lease"]["owner"], *owner);
    let asked = question(crew.api(), &thread).await;
    crew.api().post(&format!("/v1/questions/{asked}"), json!({"answer": "yes"})).await.expect(200);
    assert_eq!(crew.api().wait(&thread, &turn).await["status"], "completed");
    assert_eq!(crew.task("a").await["status"], "done");
    assert_eq!((crew.count("context.task.claimed").await, crew.count("context.task.stale_requeued").await), (1, 0));
    true
}

#[tokio::test]
async fn a_turn_has_one_task_at_a_time_and_turns_that_race_have_different_ones() {
    let crew = Crew::new().await;
    let ids = ["a", "b", "c", "d"];
    crew.tasks(&ids).await;
    let threads = join_all((0..6).map(|_| crew.thread("desk"))).await;
    let prompt = "@tool claim_task {}\n@tool claim_task {\"task_id\": \"a\"}\n@ask done?";
    join_all(threads.iter().map(|thread| crew.api().start(thread, prompt))).await;
    let mut got = Vec::new();
    for thread in &threads {
        question(crew.api(), thread).await;
        let calls = calls(crew.api(), thread).await;
        if calls[0].1.starts_with("no task: ") {
            continue;
        }
        assert_eq!(calls[0].1, calls[1].1, "the same task, whatever is asked for");
        let task: Value = serde_json::from_str(&calls[0].1).unwrap();
        got.push(text(&task["task_id"]));
    }
    got.sort();
    assert_eq!(got, ids);
}

#[tokio::test]
async fn a_turn_whose_lease_was_lost_is_refused_and_does_not_undo_what_somebody_said() {
    let crew = Crew::new().await;
    crew.tasks(&["a"]).await;
    let thread = crew.thread("desk").await;
    let prompt =
        script(&[claim(), ("ask_user", json!({"question": "go on?"})), finish("a", json!({"outcome": "done"}))]);
    let turn = crew.api().start(&thread, &prompt).await;
    let asked = question(crew.api(), &thread).await;
    crew.transition("a", json!({"action": "status", "status": "cancelled", "error": "not today"})).await.expect(200);
    crew.api().post(&format!("/v1/questions/{asked}"), json!({"answer": "yes"})).await.expect(200);
    assert_eq!(crew.api().wait(&thread, &turn).await["status"], "completed");
    let calls = calls(crew.api(), &thread).await;
    assert!(calls[2].0 == "failed" && calls[2].1.contains("is over"), "{calls:?}");
    let task = crew.task("a").await;
    assert_eq!((&task["status"], &task["last_error"]), (&json!("cancelled"), &json!("not today")));
}

#[tokio::test]
async fn nobody_can_pass_for_a_worker() {
    let crew = Crew::new().await;
    crew.tasks(&["a", "b"]).await;
    let thread = crew.thread("desk").await;
    let turn = crew.api().start(&thread, "@tool claim_task {}\n@wait 600000").await;
    let owner = text(&crew.task_is("a", "in_progress").await["lease"]["owner"]);
    assert_eq!(owner, format!("{thread}/{turn}"));
    for name in [&owner, &format!(" {owner}"), &thread, "thr_", "\u{2003}thr_x"] {
        let claim = crew.api().post(&crew.at("/tasks/claim"), json!({ "agent_id": name })).await;
        assert_eq!(claim.problem(422, "invalid")["field"], "agent_id", "{name}");
        let done = crew.transition("a", json!({"action": "complete", "agent_id": name})).await;
        assert_eq!(done.problem(422, "invalid")["field"], "agent_id", "{name}");
    }
    // Without the name it takes a token, which there is nowhere.
    crew.transition("a", json!({"action": "complete"})).await.problem(409, "task-lease-required");
    let token = text(&crew.task("a").await["lease"]["token_sha256"]);
    let stolen = crew.transition("a", json!({"action": "complete", "lease_token": token})).await;
    stolen.problem(409, "task-lease-invalid");
    // What only the runtime says has no route, and no name among events.
    for verb in ["work", "say", "give-back", "journal", "restored", "ledger", "mutations", "rollback-history"] {
        let forged = crew.api().post(&crew.at(&format!("/{verb}")), json!({})).await;
        assert!([404, 405].contains(&forged.status), "{verb}: {}", forged.status);
    }
    for action in ["work", "say", "give_back", "journal"] {
        let forged = crew.transition("a", json!({ "action": action })).await;
        assert_eq!(forged.status, 422, "{action}");
    }
    let reserved = [
        "context.task.claimed",
        "context.task.completed",
        "tool_effect_recorded",
        "mutation_checkpoint_recorded",
        "rollback_execution_started",
        "rollback_execution_applied",
        "rollback_execution_blocked",
        " Tool_Effect_Recorded ",
    ];
    let before = crew.events().await.len();
    for event in reserved {
        let forged = crew.api().post(&crew.at("/events"), json!({"event": event, "payload": {"record": {}}})).await;
        assert_eq!(forged.status, 422, "{event}");
    }
    let told = crew.events().await.split_off(before);
    assert!(told.iter().all(|event| event["event"] == "context.task.heartbeat"), "{told:?}");
    // A client that is no worker has its task by its token alone.
    let mine = crew.api().post(&crew.at("/tasks/claim"), json!({"agent_id": "me"})).await.expect(200);
    let stranger = script(&[finish("b", json!({"outcome": "done"}))]);
    let other = crew.thread("desk").await;
    crew.say(&other, &stranger).await;
    assert_eq!(calls(crew.api(), &other).await[0].0, "failed");
    let body = json!({"action": "complete", "lease_token": mine["task"]["lease"]["token"]});
    crew.transition("b", body).await.expect(200);
}

#[tokio::test]
async fn tools_of_the_board_are_for_threads_that_work_for_a_run() {
    let crew = Crew::new().await;
    crew.tasks(&["a"]).await;
    let thread = crew.api().create(json!({"workspace": "desk", "auto_approve": true})).await;
    crew.say(&thread, &script(&[claim(), ("read_board", json!({}))])).await;
    let calls = calls(crew.api(), &thread).await;
    assert!(calls.iter().all(|(status, _)| status == "failed"), "{calls:?}");
    assert_eq!(crew.task("a").await["status"], "pending");
    // Nor for one of another run.
    let other = new_run(crew.api()).await;
    let elsewhere = crew.thread_of(&other, "desk").await;
    crew.say(&elsewhere, &script(&[("claim_task", json!({"task_id": "a"}))])).await;
    assert_eq!(crew.task("a").await["status"], "pending");
}

#[tokio::test]
async fn a_thread_works_for_a_run_that_there_is() {
    let crew = Crew::new().await;
    let nowhere = "run_01905d3c-7e57-7abc-8def-0123456789ab";
    let refused = crew.api().post("/v1/threads", json!({"run_id": nowhere})).await.problem(422, "invalid");
    assert_eq!(refused["field"], "run_id");
    let thread = crew.api().create(json!({})).await;
    let path = format!("/v1/threads/{thread}");
    let refused = crew.api().patch(&path, json!({"run_id": nowhere})).await.problem(422, "invalid");
    assert_eq!(refused["field"], "run_id");
    assert_eq!(crew.api().patch(&path, json!({"run_id": crew.run})).await.expect(200)["run_id"], *crew.run);
    let none = crew.api().patch(&path, json!({"run_id": null})).await.expect(200);
    assert!(none.get("run_id").is_none_or(Value::is_null), "{none}");
}

// ---- jobs ----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_job_does_a_task_and_says_what_it_came_to() {
    let crew = Crew::new().await;
    crew.tasks(&["a", "b"]).await;
    let thread = crew.thread("desk").await;
    let job = crew.make_job(&thread, "tidy this:", json!({"task_type": "chore"})).await;
    let done = crew.job_ends(&job).await;
    assert_eq!((&done["status"], &done["task_id"]), (&json!("completed"), &json!("a")), "{done}");
    let task = crew.task("a").await;
    assert_eq!((&task["status"], &task["output"]), (&json!("done"), &done["output"]));
    let said = text(&done["output"]["text"]);
    assert!(said.contains("tidy this:") && said.contains("`a`") && said.contains(r#""about": "a""#), "{said}");
    let turn = crew.api().get(&format!("/v1/threads/{thread}/turns/{}", text(&done["turn_id"]))).await.expect(200);
    assert_eq!(turn["task_id"], "a");
    let job = crew.make_job(&thread, "@fail 400 broken", json!({"task_id": "b"})).await;
    let failed = crew.job_becomes(&job, |job| job["attempt"].as_u64() > Some(0) || job["status"] == "failed").await;
    assert!(failed["history"].to_string().contains("broken"), "{failed}");
    let task = crew.task("b").await;
    assert!(task["attempt"].as_u64() >= Some(1) && text(&task["last_error"]).contains("broken"), "{task}");
    crew.server.stop().await;
}

#[tokio::test]
async fn a_job_for_a_task_is_refused_unless_its_thread_works_for_the_run() {
    let crew = Crew::new().await;
    let (bound, free) = (crew.thread("desk").await, crew.api().create(json!({})).await);
    let other = new_run(crew.api()).await;
    let nowhere = "run_01905d3c-7e57-7abc-8def-0123456789ab";
    for (thread, task, field) in [
        (&free, json!({"run_id": crew.run}), "payload.task.run_id"),
        (&bound, json!({"run_id": other}), "payload.task.run_id"),
        (&bound, json!({"run_id": nowhere}), "payload.task.run_id"),
    ] {
        let body = json!({"name": "n", "kind": "turn", "payload": {"thread_id": thread, "prompt": "x", "task": task}});
        assert_eq!(crew.api().post("/v1/jobs", body.clone()).await.problem(422, "invalid")["field"], field, "{body}");
        let schedule = json!({"cron": "0 3 * * *", "job": body});
        let refused = crew.api().post("/v1/schedules", schedule).await;
        assert_eq!(refused.status, 422, "{body}");
    }
    for task in [json!({}), json!({"run_id": crew.run, "token": "x"}), json!({"run_id": "x"})] {
        let body = json!({"name": "n", "kind": "turn", "payload": {"thread_id": bound, "prompt": "x", "task": task}});
        assert_eq!(crew.api().post("/v1/jobs", body.clone()).await.status, 422, "{body}");
    }
    assert_eq!(crew.api().get("/v1/jobs").await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn a_job_whose_task_is_called_off_ends_its_turn_and_fails() {
    let crew = Crew::new().await;
    crew.tasks(&["a"]).await;
    let thread = crew.thread("desk").await;
    let job = crew.make_job(&thread, "@wait 600000", json!({})).await;
    let works = crew.job_becomes(&job, |job| job["turn_id"].is_string()).await;
    crew.transition("a", json!({"action": "status", "status": "cancelled"})).await.expect(200);
    let failed = crew.job_ends(&job).await;
    assert_eq!((&failed["status"], &failed["detail"]), (&json!("failed"), &json!("its task was taken away")));
    assert_eq!(crew.api().wait(&thread, &text(&works["turn_id"])).await["status"], "interrupted");
    assert_eq!(crew.task("a").await["status"], "cancelled");
}

/// When the server is killed, seen from outside.
#[derive(Debug, Clone, Copy)]
enum Kill {
    Made,
    Claimed,
    Held,
    Turned,
    Acted,
    Completed,
}

#[tokio::test]
async fn a_job_does_its_task_once_whenever_its_server_is_killed() {
    let mut crew = Crew::with(&[("RADDLE_STORE_SYNC_DELAY_MS", "5")]).await;
    let kills = [Kill::Made, Kill::Claimed, Kill::Held, Kill::Turned, Kill::Acted, Kill::Completed];
    for (round, kill) in kills.into_iter().cycle().take(12).enumerate() {
        let id = format!("t{round}");
        crew.tasks(&[&id]).await;
        let thread = crew.thread("desk").await;
        let prompt = format!("@tool write_file {{\"path\": \"{id}\", \"content\": \"{id}\"}}");
        let job = crew.make_job(&thread, &prompt, json!({"task_id": id})).await;
        match kill {
            Kill::Made => {}
            Kill::Claimed => drop(timeout(LOST, async { while crew.task(&id).await["status"] == "pending" {} }).await),
            Kill::Held => drop(crew.job_becomes(&job, |job| job["task_id"].is_string()).await),
            Kill::Turned => drop(crew.job_becomes(&job, |job| job["turn_id"].is_string()).await),
            Kill::Acted => drop(
                timeout(LOST, async {
                    while crew.file("desk", &id).is_none() {
                        crew.task(&id).await;
                    }
                })
                .await,
            ),
            Kill::Completed => drop(crew.task_is(&id, "done").await),
        }
        crew.crash().await;
        let done = crew.job_ends(&job).await;
        assert_eq!(
            (&done["status"], &done["run"], &done["task_id"]),
            (&json!("completed"), &json!(1), &json!(id)),
            "{kill:?}: {done}"
        );
        let task = crew.task(&id).await;
        assert_eq!(
            (&task["status"], &task["attempt"], &task["output"]),
            (&json!("done"), &json!(0), &done["output"]),
            "{kill:?}"
        );
        let turns = crew.api().list(&format!("/v1/threads/{thread}/turns"), 9).await;
        assert_eq!(turns.len(), 1, "{kill:?}: {turns:?}");
        assert_eq!(crew.file("desk", &id).as_deref(), Some(&*id));
        check_log(&crew.api().log(&thread).await, true);
    }
    assert_eq!(crew.count("context.task.completed").await, 12);
    let effects = crew.ledger(24).await;
    assert!(effects.iter().all(|effect| effect["task_id"].is_string()), "{effects:#?}");
}
