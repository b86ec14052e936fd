//! What is promised of a run's ledger and of taking back what was done to files: each effect once, nothing of what it
//! held, by nobody but the server; files come back all or none, once, and never over what somebody did since.

#[path = "support/crew.rs"]
mod crew;
mod support;

use std::{collections::BTreeMap, fs};

use crew::{Crew, new_run, script};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::*;
use tokio::time::timeout;

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &str, content: &str) -> (&'static str, Value) {
    ("write_file", json!({ "path": path, "content": content }))
}

fn edit(path: &str, old: &str, new: &str) -> (&'static str, Value) {
    ("edit_file", json!({ "path": path, "old_string": old, "new_string": new }))
}

fn remove(path: &str) -> (&'static str, Value) {
    ("apply_patch", json!({ "patch": format!("*** Begin Patch\n*** Delete File: {path}\n*** End Patch\n") }))
}

/// Phase, status, tool and place of each effect, as the log of a thread has them.
async fn due(api: &Api, thread: &str) -> Vec<(String, String, String, u64)> {
    let mut due = Vec::new();
    for event in api.log(thread).await {
        let effect = &event["payload"]["effect"];
        let (phase, status) = match event["event"].as_str().unwrap() {
            "effect.started" => ("invocation", "started"),
            "effect.uncertain" => ("outcome", "uncertain"),
            "effect.settled" => match effect["outcome"].as_str().unwrap() {
                "succeeded" => ("outcome", "succeeded"),
                "canceled" => ("outcome", "blocked"),
                _ => ("outcome", "failed"),
            },
            _ => continue,
        };
        due.push((phase.to_owned(), status.to_owned(), text(&effect["tool"]), event["seq"].as_u64().unwrap()));
    }
    due
}

/// The same, as the ledger has them.
fn recorded(records: &[Value], thread: &str) -> Vec<(String, String, String, u64)> {
    let of = records.iter().filter(|record| record["thread_id"] == thread);
    of.map(|record| {
        let seq = record["seq"].as_u64().unwrap();
        (text(&record["phase"]), text(&record["status"]), text(&record["tool"]), seq)
    })
    .collect()
}

// ---- the ledger ----------------------------------------------------------------------------------

#[tokio::test]
async fn each_effect_is_in_the_ledger_once_with_digests_and_nothing_that_it_held() {
    let crew = Crew::new().await;
    crew.tasks(&["a"]).await;
    let thread = crew.thread("desk").await;
    let planted = "planted-content-of-a-file";
    let prompt = script(&[
        write("planted-name", planted),
        ("claim_task", json!({})),
        ("read_file", json!({"path": "planted-name"})),
        ("demo_put", json!({"name": "x", "text": planted, "fail": "planted-failure"})),
        ("finish_task", json!({"task_id": "a", "outcome": "done", "output": planted})),
        ("list_dir", json!({})),
    ]);
    assert_eq!(crew.say(&thread, &prompt).await["status"], "completed");
    // The same for nobody's run leaves no trace here.
    let free = crew.api().create(json!({"workspace": "desk", "auto_approve": true})).await;
    crew.say(&free, &script(&[write("free", "x")])).await;
    let records = crew.ledger(12).await;
    assert_eq!(recorded(&records, &thread), due(crew.api(), &thread).await, "in order, and each once");
    assert_eq!(records.len(), 12, "{records:#?}");
    let of_task: Vec<_> = records.iter().map(|record| record["task_id"].as_str()).collect();
    let [none, task] = [None, Some("a")];
    // From the claim's end to the finish's beginning.
    assert_eq!(of_task, [none, none, none, task, task, task, task, task, task, none, none, none]);
    let raw = json!(records).to_string();
    assert!(!raw.contains("planted"), "{raw}");
    // Whoever has the log can check the digests.
    let items = crew.api().list(&format!("/v1/threads/{thread}/items"), 50).await;
    for record in records.iter().filter(|record| record["phase"] == "outcome") {
        let item = items.iter().find(|item| item["id"] == record["item_id"]).expect("an item for each effect");
        assert_eq!(record["output_sha256"], sha256(&text(&item["detail"])), "{record}");
        assert_eq!(record["output_bytes"], text(&item["detail"]).len());
    }
    // Keys in order, as RFC 8785 has them.
    let arguments = json!({"content": planted, "path": "planted-name"}).to_string();
    assert_eq!(records[0]["arguments_sha256"], sha256(&arguments));

    let summary = crew.api().get(&crew.at("/ledger?limit=1")).await.expect(200)["summary"].clone();
    let mut sums: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for record in &records {
        for (sum, of) in [("by_tool", "tool"), ("by_status", "status"), ("by_phase", "phase")] {
            *sums.entry(sum).or_default().entry(text(&record[of])).or_default() += 1;
        }
    }
    assert_eq!(summary["record_count"], 12);
    for (name, sum) in sums {
        assert_eq!(summary[name], json!(sum), "{name}");
    }
    let last = crew.api().list(&crew.at("/ledger"), 50).await.last().unwrap().clone();
    assert_eq!((&summary["last_seq"], &summary["last_ts"]), (&last["seq"], &last["ts"]));
    // What is only put on record changes no revision.
    let before = crew.record().await["revision"].clone();
    crew.say(&thread, &script(&[("list_dir", json!({}))])).await;
    crew.ledger(14).await;
    assert_eq!(crew.record().await["revision"], before);
    let replay = crew.api().get(&crew.at("/replay")).await.expect(200);
    assert_eq!(replay["drift"]["mismatch"], false, "{replay}");
    crew.server.stop().await;
}

#[tokio::test]
async fn an_effect_that_nobody_knows_of_is_uncertain_in_the_ledger_until_somebody_says_more() {
    let mut crew = Crew::new().await;
    let thread = crew.thread("desk").await;
    let append = ("demo_append", json!({"name": "f", "line": "x", "then_wait_ms": 600_000}));
    let turn = crew.api().start(&thread, &script(&[append])).await;
    let acted = async {
        while crew.demo("f").is_none() {
            crew.task_count().await;
        }
    };
    timeout(LOST, acted).await.expect("it acts");
    crew.crash().await;
    let records = crew.ledger(2).await;
    assert_eq!(records[1]["status"], "uncertain", "{records:#?}");
    let resolve = format!("/v1/effects/{}", text(&records[1]["operation_id"]));
    crew.api().post(&resolve, json!({"resolution": "settle", "output": "looked myself"})).await.expect(200);
    assert_eq!(crew.api().wait(&thread, &turn).await["status"], "completed");
    let records = crew.ledger(3).await;
    assert_eq!(recorded(&records, &thread), due(crew.api(), &thread).await);
    assert_eq!(records[2]["status"], "succeeded");
}

#[tokio::test]
async fn a_kill_loses_no_effect_and_doubles_none() {
    let mut crew = Crew::with(&[("RADDLE_STORE_SYNC_DELAY_MS", "3")]).await;
    let mut dice = Dice::new(7);
    let mut threads = Vec::new();
    for round in 0..10 {
        let thread = crew.thread("desk").await;
        let calls: Vec<_> = (0..6).map(|n| write(&format!("f{round}-{n}"), "x")).collect();
        let turn = crew.api().start(&thread, &script(&calls)).await;
        // Somewhere between the thread's commits and the ledger's.
        let some = dice.below(10);
        let comes = async {
            while crew
                .api()
                .log(&thread)
                .await
                .iter()
                .filter(|event| text(&event["event"]).starts_with("effect."))
                .count()
                < some
            {}
        };
        timeout(LOST, comes).await.expect("the turn goes on");
        crew.crash().await;
        crew.api().wait(&thread, &turn).await;
        threads.push(thread);
    }
    let mut expected = 0;
    for thread in &threads {
        expected += due(crew.api(), thread).await.len();
    }
    let records = crew.ledger(expected).await;
    for thread in &threads {
        assert_eq!(recorded(&records, thread), due(crew.api(), thread).await);
    }
    assert_eq!(records.len(), expected);
    // Each change of a file is there once, though its call may have been made again.
    let mutations = crew.mutations(60).await;
    assert_eq!(mutations.len(), 60);
    let replay = crew.api().get(&crew.at("/replay")).await.expect(200);
    assert_eq!(replay["drift"]["mismatch"], false, "{replay}");
}

#[tokio::test]
async fn a_run_that_is_deleted_takes_its_ledger_along_and_stops_no_other() {
    let crew = Crew::new().await;
    let gone = new_run(crew.api()).await;
    let (theirs, ours) = (crew.thread_of(&gone, "desk").await, crew.thread("desk").await);
    crew.say(&theirs, &script(&[write("x", "1")])).await;
    crew.api().delete(&format!("/v1/runs/{gone}")).await.expect(204);
    // The thread goes on; nobody keeps what it does.
    assert_eq!(crew.say(&theirs, &script(&[write("x", "2")])).await["status"], "completed");
    crew.say(&ours, &script(&[write("y", "1")])).await;
    let records = crew.ledger(2).await;
    assert_eq!(recorded(&records, &ours), due(crew.api(), &ours).await);
    crew.api().get(&format!("/v1/runs/{gone}/ledger")).await.problem(404, "not-found");
    let said = crew.server.said();
    assert!(!said.contains("are not taken"), "{said}");
}

#[tokio::test]
async fn a_server_that_goes_down_says_nothing_of_its_ledgers() {
    let crew = Crew::new().await;
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[write("x", "1")])).await;
    crew.api().start(&thread, "@tool write_file {\"path\": \"y\", \"content\": \"\"}\n@wait 600000").await;
    crew.server.terminate();
    crew.server.terminate();
    let ended = async { while crew.api().get_quietly("/healthz").await {} };
    timeout(LOST, ended).await.expect("it goes");
    let said = crew.server.said();
    assert!(!said.contains("raddle:ledger"), "{said}");
}

// ---- taking back ---------------------------------------------------------------------------------

impl Crew {
    async fn task_count(&self) -> u64 {
        self.record().await["task_counts"]["pending"].as_u64().unwrap()
    }

    /// Asks for a rollback of these changes, as one has to.
    async fn roll_back(&self, ids: &[&Value]) -> Answer {
        let body = json!({"event_ids": ids, "confirm": "rollback", "policy_ack": "allow_rollback_execution"});
        self.api().post(&self.at("/rollback-execute"), body).await
    }

    /// Outcomes of attempts, in order.
    async fn history(&self) -> Vec<Value> {
        self.api().list(&self.at("/rollback-history"), 2).await
    }

    /// What a refused attempt may change: nothing of this.
    async fn standing(&self) -> (Value, Value, Vec<Value>) {
        let record = self.record().await;
        (record["status"].clone(), record["revision"].clone(), self.api().list(&self.at("/mutations"), 50).await)
    }
}

impl Api {
    /// Whether somebody answers.
    async fn get_quietly(&self, path: &str) -> bool {
        self.try_send(self.request(reqwest::Method::GET, path)).await.is_ok()
    }
}

#[tokio::test]
async fn files_that_were_made_changed_and_removed_are_put_back_once() {
    let crew = Crew::new().await;
    crew.put("desk", "old", "old\n");
    crew.put("desk", "gone", "gone\n");
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[write("new/file", "new\n"), edit("old", "old", "changed"), remove("gone")])).await;
    assert_eq!((crew.file("desk", "old").as_deref(), crew.file("desk", "gone")), (Some("changed\n"), None));
    let mutations = crew.mutations(3).await;
    let tools: Vec<_> = mutations.iter().map(|mutation| text(&mutation["record"]["tool"])).collect();
    assert_eq!(tools, ["write_file", "edit_file", "apply_patch"]);
    let file = &mutations[1]["record"]["files"][0];
    assert_eq!(
        (&file["path"], &file["before"]["sha256"], &file["after"]["sha256"]),
        (&json!("old"), &json!(sha256("old\n")), &json!(sha256("changed\n")))
    );
    assert_eq!(mutations[0]["record"]["files"][0].get("before").filter(|before| !before.is_null()), None);
    let preview = crew.api().get(&crew.at("/rollback-preview")).await.expect(200);
    assert_eq!((&preview["executable"], &preview["step_count"]), (&json!(true), &json!(3)));
    let actions: Vec<_> =
        preview["steps"].as_array().unwrap().iter().map(|step| text(&step["operations"][0]["action"])).collect();
    assert_eq!(actions, ["recreate_deleted_file", "restore_previous_contents", "delete_created_file"], "newest first");
    assert_eq!(
        preview["by_action"],
        json!({"recreate_deleted_file": 1, "restore_previous_contents": 1, "delete_created_file": 1})
    );

    crew.tell("run_paused").await;
    let ids: Vec<&Value> = mutations.iter().map(|mutation| &mutation["event_id"]).collect();
    let before = crew.record().await;
    let done = crew.roll_back(&ids).await.expect(200);
    assert_eq!((&done["applied"], &done["files"]), (&json!(true), &json!(3)), "{done}");
    assert_eq!(crew.file("desk", "old").as_deref(), Some("old\n"));
    assert_eq!(crew.file("desk", "gone").as_deref(), Some("gone\n"));
    assert_eq!(crew.file("desk", "new/file"), None);
    let after = crew.record().await;
    assert_eq!(
        (&after["status"], after["revision"].as_u64()),
        (&before["status"], before["revision"].as_u64().map(|was| was + 1))
    );
    let outcomes: Vec<_> = crew.history().await.iter().map(|entry| text(&entry["outcome"])).collect();
    assert_eq!(outcomes, ["started", "applied"]);
    let preview = crew.api().get(&crew.at("/rollback-preview")).await.expect(200);
    assert_eq!((&preview["executable"], &preview["executable_step_count"]), (&json!(false), &json!(0)));

    // Once: also one of them, also after the files were changed back by hand.
    fs::write(crew.path("desk", "old"), "changed\n").unwrap();
    let again = crew.roll_back(&ids[1..2]).await.problem(409, "rollback-blocked");
    assert!(text(&again["reason"]).contains("taken back before"), "{again}");
    assert_eq!(crew.file("desk", "old").as_deref(), Some("changed\n"));
    let replay = crew.api().get(&crew.at("/replay")).await.expect(200);
    assert_eq!(replay["drift"]["mismatch"], false, "{replay}");
    crew.server.stop().await;
}

#[tokio::test]
async fn a_rollback_that_is_refused_changes_nothing_but_the_history() {
    let crew = Crew::new().await;
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[write("a", "1")])).await;
    let mutations = crew.mutations(1).await;
    let id = &mutations[0]["event_id"];
    let ask = async |body: Value| crew.api().post(&crew.at("/rollback-execute"), body).await;

    // What is badly asked is not even on record.
    let seq = crew.record().await["last_event_seq"].clone();
    let ack = "allow_rollback_execution";
    for body in [
        json!({"event_ids": [id], "confirm": "yes", "policy_ack": ack}),
        json!({"event_ids": [], "confirm": "rollback", "policy_ack": ack}),
        json!({"event_ids": [id, id], "confirm": "rollback", "policy_ack": ack}),
        json!({"event_ids": [" "], "confirm": "rollback", "policy_ack": ack}),
        json!({"event_ids": [id], "policy_ack": ack}),
        json!({"confirm": "rollback", "policy_ack": ack}),
    ] {
        assert_eq!(ask(body.clone()).await.status, 422, "{body}");
    }
    assert_eq!(crew.record().await["last_event_seq"], seq);

    crew.api().post(&crew.at("/events"), json!({"event": "session_run_started"})).await.expect(201);
    let standing = crew.standing().await;
    assert_eq!(standing.0, "running");
    let running = crew.roll_back(&[id]).await.problem(409, "rollback-blocked");
    assert!(text(&running["reason"]).contains("running"), "{running}");
    assert_eq!(crew.standing().await, standing);

    crew.tell("run_paused").await;
    let standing = crew.standing().await;
    for ack in [Value::Null, json!("yes"), json!("ALLOW_ROLLBACK_EXECUTION")] {
        let refused = ask(json!({"event_ids": [id], "confirm": " rollback ", "policy_ack": ack})).await;
        assert!(text(&refused.problem(409, "rollback-blocked")["reason"]).contains("policy_ack"), "{ack}");
    }
    let unknown = json!("evt_1");
    let refused = crew.roll_back(&[id, &unknown]).await.problem(409, "rollback-blocked");
    assert_eq!(
        (&refused["missing_event_ids"], &refused["selected_event_ids"]),
        (&json!([unknown]), &json!([id, unknown]))
    );
    assert_eq!(crew.standing().await, standing, "status, revision and readiness are what they were");
    assert_eq!(crew.file("desk", "a").as_deref(), Some("1"));
    let outcomes: Vec<_> = crew.history().await.iter().map(|entry| text(&entry["outcome"])).collect();
    assert_eq!(outcomes, vec!["blocked"; 5], "each attempt is on record");
    // And after all of that it is still possible.
    assert_eq!(crew.roll_back(&[id]).await.expect(200)["applied"], true);
    assert_eq!(crew.file("desk", "a"), None);
}

#[tokio::test]
async fn a_file_that_somebody_changed_since_keeps_all_of_them_as_they_are() {
    let crew = Crew::new().await;
    crew.put("desk", "a", "1");
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[write("a", "2"), write("b", "x"), write("c", "x")])).await;
    let mutations = crew.mutations(3).await;
    let ids: Vec<&Value> = mutations.iter().map(|mutation| &mutation["event_id"]).collect();
    crew.tell("run_paused").await;
    fs::write(crew.path("desk", "b"), "mine").unwrap();
    let standing = crew.standing().await;
    let refused = crew.roll_back(&ids).await.problem(409, "rollback-blocked");
    assert!(text(&refused["reason"]).contains("`b` was changed since"), "{refused}");
    let files = ["a", "b", "c"].map(|name| crew.file("desk", name).unwrap());
    assert_eq!(files, ["2", "mine", "x"]);
    assert_eq!(crew.standing().await, standing, "it can be seen in the history alone");
    let outcomes: Vec<_> = crew.history().await.iter().map(|entry| text(&entry["outcome"])).collect();
    assert_eq!(outcomes, ["started", "blocked"]);
    // Without that one it works, and then with it, once it is what the tool left.
    assert_eq!(crew.roll_back(&[ids[0], ids[2]]).await.expect(200)["files"], 2);
    assert_eq!((crew.file("desk", "a").as_deref(), crew.file("desk", "c")), (Some("1"), None));
    fs::write(crew.path("desk", "b"), "x").unwrap();
    assert_eq!(crew.roll_back(&[ids[1]]).await.expect(200)["files"], 1);
    assert_eq!(crew.file("desk", "b"), None);
}

#[tokio::test]
async fn several_changes_of_one_file_are_taken_back_as_one() {
    let crew = Crew::new().await;
    crew.put("desk", "a", "1");
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[edit("a", "1", "2"), edit("a", "2", "3"), edit("a", "3", "4")])).await;
    let mutations = crew.mutations(3).await;
    let ids: Vec<&Value> = mutations.iter().map(|mutation| &mutation["event_id"]).collect();
    crew.tell("run_paused").await;
    // An older one alone is under a newer one; the first and the last do not meet.
    let refused = crew.roll_back(&ids[..1]).await.problem(409, "rollback-blocked");
    assert!(text(&refused["reason"]).contains("was changed since"), "{refused}");
    let refused = crew.roll_back(&[ids[0], ids[2]]).await.problem(409, "rollback-blocked");
    assert!(text(&refused["reason"]).contains("in between"), "{refused}");
    assert_eq!(crew.roll_back(&ids[2..]).await.expect(200)["files"], 1);
    assert_eq!(crew.file("desk", "a").as_deref(), Some("3"));
    let done = crew.roll_back(&[ids[0], ids[1]]).await.expect(200);
    assert_eq!((&done["files"], &done["event_ids"]), (&json!(1), &json!([ids[1], ids[0]])), "newest first");
    assert_eq!(crew.file("desk", "a").as_deref(), Some("1"));
}

#[tokio::test]
async fn changes_in_two_workspaces_are_taken_back_one_by_one() {
    let crew = Crew::new().await;
    let (here, there) = (crew.thread("here").await, crew.thread("there").await);
    crew.say(&here, &script(&[write("a", "1")])).await;
    crew.mutations(1).await;
    crew.say(&there, &script(&[write("a", "2")])).await;
    let mutations = crew.mutations(2).await;
    assert_eq!(
        (&mutations[0]["record"]["workspace"], &mutations[1]["record"]["workspace"]),
        (&json!("here"), &json!("there"))
    );
    let ids: Vec<&Value> = mutations.iter().map(|mutation| &mutation["event_id"]).collect();
    crew.tell("run_paused").await;
    let refused = crew.roll_back(&ids).await.problem(409, "rollback-blocked");
    assert!(text(&refused["reason"]).contains("several workspaces"), "{refused}");
    assert_eq!(crew.roll_back(&ids[..1]).await.expect(200)["applied"], true);
    assert_eq!((crew.file("here", "a"), crew.file("there", "a").as_deref()), (None, Some("2")));
    assert_eq!(crew.roll_back(&ids[1..]).await.expect(200)["applied"], true);
    assert_eq!(crew.file("there", "a"), None);
}

#[tokio::test]
async fn a_link_that_leads_out_of_the_workspace_takes_no_rollback_along() {
    let crew = Crew::new().await;
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[write("dir/a", "1")])).await;
    let mutations = crew.mutations(1).await;
    crew.tell("run_paused").await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("a"), "1").unwrap();
    fs::remove_dir_all(crew.path("desk", "dir")).unwrap();
    std::os::unix::fs::symlink(outside.path(), crew.path("desk", "dir")).unwrap();
    crew.roll_back(&[&mutations[0]["event_id"]]).await.problem(409, "rollback-blocked");
    assert_eq!(fs::read_to_string(outside.path().join("a")).unwrap(), "1");
}

#[tokio::test]
async fn a_rollback_is_under_the_same_key_the_same_and_a_second_one_waits_for_nobody() {
    let crew = Crew::new().await;
    let thread = crew.thread("desk").await;
    crew.say(&thread, &script(&[write("a", "1")])).await;
    let mutations = crew.mutations(1).await;
    crew.tell("run_paused").await;
    let body = json!({
        "event_ids": [mutations[0]["event_id"]], "confirm": "rollback", "policy_ack": "allow_rollback_execution",
    });
    let path = crew.at("/rollback-execute");
    let first = crew.api().send(crew.api().keyed(&path, "k", &body)).await;
    let again = crew.api().send(crew.api().keyed(&path, "k", &body)).await;
    assert!(again.replayed());
    assert_eq!(again.expect(200), first.expect(200));
    assert_eq!(crew.history().await.len(), 2);
}

#[tokio::test]
async fn a_rollback_whose_server_is_killed_is_finished_by_the_next_one_once() {
    let mut crew = Crew::new().await;
    let thread = crew.thread("desk").await;
    crew.crash_into_a_slow_one(10).await;
    const FILES: usize = 12;
    for round in 0..8 {
        let mut patch = String::from("*** Begin Patch\n");
        for n in 0..FILES {
            patch += &format!("*** Add File: r{round}/{n}\n+{n}\n");
        }
        patch += "*** End Patch\n";
        crew.say(&thread, &script(&[("apply_patch", json!({ "patch": patch }))])).await;
        let mutations = crew.mutations(round + 1).await;
        let newest = mutations[round]["event_id"].clone();
        if crew.record().await["status"] != "paused" {
            crew.tell("run_paused").await;
        }
        let (api, path) = (crew.api().clone(), crew.at("/rollback-execute"));
        let body = json!({"event_ids": [newest], "confirm": "rollback", "policy_ack": "allow_rollback_execution"});
        let asked =
            tokio::spawn(
                async move { drop(api.try_send(api.request(reqwest::Method::POST, &path).json(&body)).await) },
            );
        let left = FILES - round;
        let begun = async {
            loop {
                // By round: once it is on record, or once so many files are gone.
                let there = (0..FILES).filter(|n| crew.file("desk", &format!("r{round}/{n}")).is_some()).count();
                let started = crew.count("rollback_execution_started").await > round;
                if (round % 2 == 0 && started) || there < left {
                    return;
                }
            }
        };
        timeout(LOST, begun).await.expect("it begins");
        crew.crash().await;
        asked.await.unwrap();
        crew.happens("rollback_execution_applied", round + 1).await;
        for n in 0..FILES {
            assert_eq!(crew.file("desk", &format!("r{round}/{n}")), None, "round {round}");
        }
        assert_eq!(crew.count("rollback_execution_blocked").await, 0);
        // The next process does not do it again when somebody makes the files anew.
        crew.put("desk", &format!("r{round}/0"), "0\n");
        crew.crash().await;
        crew.record().await;
        assert_eq!(crew.file("desk", &format!("r{round}/0")).as_deref(), Some("0\n"));
    }
    assert_eq!(crew.count("rollback_execution_applied").await, 8);
}
