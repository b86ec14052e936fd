//! What a client is told about money, and which model a routing rule chooses: over HTTP, against the real binary.

#[path = "support/openai_server.rs"]
mod openai_server;
mod support;

use std::{collections::BTreeMap, path::Path};

use openai_server::{Answer, OpenAiServer, delta, finish};
use reqwest::Method;
use serde_json::{Value, json};
use support::*;

/// The first row of `scripted` has ended long ago; nobody knows what models of another name than `dear…` cost.
const PRICES: &str = r#"
version = "test"

[[price]]
engine = "scripted"
model = "*"
from = 1970-01-01
until = 2020-01-01
input = "1000"
output = "1000"

[[price]]
engine = "scripted"
model = "*"
from = 2020-01-01
input = "2.50"
output = "10"

[[price]]
engine = "openai"
model = "dear*"
from = 2020-01-01
input = 1
cached_input = 0.10
output = 5
"#;

/// What this prompt costs at `scripted`, in micro-dollars: 1,000 × $2.50 and 50 × $10 per million.
const SPENDS: &str = "@say hello\n@usage 1000 50";
const COST: i64 = 3_000;

struct World {
    server: Server,
    provider: OpenAiServer,
    dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let provider = OpenAiServer::start().await;
    let server = server(dir.path(), &provider).await;
    World { server, provider, dir }
}

async fn server(dir: &Path, provider: &OpenAiServer) -> Server {
    let prices = dir.join("prices.toml");
    std::fs::write(&prices, PRICES).unwrap();
    let env = [
        ("RADDLE_PRICES_FILE", prices.to_str().unwrap()),
        ("RADDLE_MODEL_DEFAULT", "scripted"),
        ("RADDLE_MODEL_OPENAI_BASE_URL", provider.base_url()),
    ];
    Server::with(&dir.join("data"), &env).await
}

impl World {
    fn api(&self) -> &Api {
        &self.server.api
    }

    /// A turn with these settings, from its start to its end.
    async fn turn(&self, thread: &str, body: Value) -> Value {
        let reply = self.api().post(&format!("/v1/threads/{thread}/turns"), body).await.expect(201);
        let turn = self.api().wait(thread, &text(&reply["turn"]["id"])).await;
        assert_eq!(turn["status"], "completed", "{turn}");
        turn
    }

    async fn usage(&self, query: &str) -> Value {
        self.api().get(&format!("/v1/usage{query}")).await.expect(200)
    }
}

/// An answer of the provider that reports 100 tokens in, 60 of them cached, and 10 out.
fn reported() -> Answer {
    let usage = json!({"choices": [], "usage": {
        "prompt_tokens": 100, "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 4},
    }});
    Answer::stream().event(delta(json!({"content": "hi"}))).event(finish("stop")).event(usage).done()
}

/// The row of `data` in which these fields are so.
#[track_caller]
fn row(report: &Value, fields: Value) -> &Value {
    let fits = |row: &&Value| fields.as_object().unwrap().iter().all(|(name, value)| row[name] == *value);
    let rows = report["data"].as_array().unwrap();
    rows.iter().find(fits).unwrap_or_else(|| panic!("no row {fields}: {report}"))
}

/// Turns and cost of a row.
/// Turns, and what they cost in micro-dollars.
fn bill(row: &Value) -> (u64, Option<i64>) {
    let micros = |dollars: f64| (dollars * 1e6).round() as i64;
    (row["turns"].as_u64().unwrap(), row["cost_usd"].as_f64().map(micros))
}

#[tokio::test]
async fn a_server_on_which_nothing_was_spent_says_so() {
    let world = world().await;
    for group in ["day", "model", "provider", "thread"] {
        let report = world.usage(&format!("?group_by={group}")).await;
        assert_eq!((&report["group_by"], &report["data"]), (&json!(group), &json!([])));
        assert_eq!(report["totals"]["cost_usd"], 0);
    }
}

#[tokio::test]
async fn sums_are_those_of_the_turns_by_day_model_provider_and_thread() {
    let world = world().await;
    let api = world.api();
    let [first, second] = [api.create(json!({})).await, api.create(json!({})).await];
    let mut days: BTreeMap<String, u64> = BTreeMap::new();
    world.provider.answer(reported());
    for (thread, body) in [
        (&first, json!({"prompt": SPENDS})),
        (&first, json!({"prompt": SPENDS})),
        (&second, json!({"prompt": SPENDS})),
        (&second, json!({"prompt": "x", "model": "openai/dear-1"})),
    ] {
        let turn = world.turn(thread, body).await;
        *days.entry(text(&turn["ended_at"])[..10].to_owned()).or_default() += 1;
    }
    // 40 at $1, 60 at $0.10 and 10 at $5, per million.
    let (dear, whole) = (96, 0.000_150);

    let by_day = world.usage("").await;
    assert_eq!(by_day["data"].as_array().unwrap().len(), days.len());
    for (day, turns) in &days {
        assert_eq!(row(&by_day, json!({"day": day}))["turns"], json!(turns));
    }
    let totals = &by_day["totals"];
    assert_eq!(bill(totals), (4, Some(9_096)));
    let expected = json!({
        "turns": 4, "model_calls": 4, "unreported_calls": 0, "estimated_calls": 0, "unpriced_calls": 0, "input_tokens": 3_100,
        "output_tokens": 160, "cached_tokens": 60, "cache_miss_tokens": 40, "reasoning_tokens": 4,
        "cache_hit_rate": 0.6, "cost_usd": 0.009_096, "cost_without_cache_usd": 0.009_150, "savings_usd": 0.000_054,
    });
    assert_eq!(*totals, expected);

    let by_model = world.usage("?group_by=model").await;
    assert_eq!(bill(row(&by_model, json!({"provider": "scripted", "model": "scripted"}))), (3, Some(3 * COST)));
    let row_of_dear = row(&by_model, json!({"provider": "openai", "model": "dear-1"}));
    assert_eq!(bill(row_of_dear), (1, Some(dear)));
    assert_eq!(row_of_dear["cost_without_cache_usd"], json!(whole));
    assert_eq!(by_model["data"].as_array().unwrap().len(), 2);

    let by_provider = world.usage("?group_by=provider").await;
    assert_eq!(bill(row(&by_provider, json!({"provider": "scripted"}))).0, 3);
    assert_eq!(bill(row(&by_provider, json!({"provider": "openai"}))).0, 1);

    let by_thread = world.usage("?group_by=thread").await;
    assert_eq!(bill(row(&by_thread, json!({"thread_id": first}))), (2, Some(2 * COST)));
    assert_eq!(bill(row(&by_thread, json!({"thread_id": second}))), (2, Some(COST + dear)));
    for report in [&by_model, &by_provider, &by_thread] {
        assert_eq!(report["totals"], *totals);
    }

    // Only the days that were asked for, both of them counted.
    let (from, to) = (days.keys().next().unwrap(), days.keys().next_back().unwrap());
    assert_eq!(world.usage(&format!("?since={from}T23:59:59Z&until={to}")).await["totals"], *totals);
    assert_eq!(world.usage("?until=2020-01-01").await["data"], json!([]));
    // As written, not as a float would have it.
    let body = String::from_utf8(api.get("/v1/usage").await.body).unwrap();
    assert!(body.contains(r#""cost_usd":0.009096,"#), "{body}");
}

#[tokio::test]
async fn each_turn_is_priced_by_its_own_model_and_an_unknown_model_costs_null() {
    let world = world().await;
    let api = world.api();
    let thread = api.create(json!({})).await;
    let turn = world.turn(&thread, json!({"prompt": SPENDS})).await;
    assert_eq!((&turn["price"]["version"], &turn["price"]["input"]), (&json!("test#2"), &json!(2_500_000)));
    world.provider.answer(reported());
    api.patch(&format!("/v1/threads/{thread}"), json!({"model": "openai/nobody-knows"})).await.expect(200);
    let turn = world.turn(&thread, json!({"prompt": "x"})).await;
    assert!(turn.get("price").is_none_or(Value::is_null), "{turn}");
    world.turn(&thread, json!({"prompt": SPENDS, "model": "scripted"})).await;
    // A provider that reports nothing: what it cost is as unknown as what it used.
    let silent = Answer::stream().event(delta(json!({"content": "hi"}))).event(finish("stop")).done();
    world.provider.answer(silent);
    world.turn(&thread, json!({"prompt": "x", "model": "openai/dear-2"})).await;

    let report = world.usage("?group_by=model").await;
    assert_eq!(bill(row(&report, json!({"model": "scripted"}))), (2, Some(2 * COST)));
    let unknown = row(&report, json!({"model": "nobody-knows"}));
    assert_eq!((bill(unknown), &unknown["unpriced_calls"]), ((1, None), &json!(1)));
    assert_eq!((&unknown["savings_usd"], &unknown["input_tokens"]), (&Value::Null, &json!(100)));
    let silent = row(&report, json!({"model": "dear-2"}));
    assert_eq!(
        (bill(silent), &silent["unreported_calls"], &silent["unpriced_calls"]),
        ((1, None), &json!(1), &json!(0))
    );
    let totals = &report["totals"];
    assert_eq!((bill(totals), &totals["unpriced_calls"]), ((4, Some(2 * COST)), &json!(1)));

    // The log says the same, call by call.
    let log = api.log(&thread).await;
    let costs: Vec<_> = log.iter().filter(|event| event["event"] == "usage.recorded").collect();
    let cost = |at: usize| costs[at]["payload"]["usage"].get("cost").map(|cost| cost["pico_usd"].clone());
    assert_eq!(
        [cost(0), cost(1), cost(2), cost(3)],
        [Some(json!(3_000_000_000_u64)), None, Some(json!(3_000_000_000_u64)), None]
    );
}

#[tokio::test]
async fn a_bill_survives_a_restart_and_the_deletion_of_its_thread() {
    let world = world().await;
    let thread = world.api().create(json!({})).await;
    world.turn(&thread, json!({"prompt": SPENDS})).await;
    let before = world.usage("?group_by=thread").await;
    assert_eq!(bill(&before["totals"]), (1, Some(COST)));
    world.server.stop().await;
    let server = server(world.dir.path(), &world.provider).await;
    let world = World { server, ..world };
    assert_eq!(world.usage("?group_by=thread").await, before);
    assert_eq!(world.api().delete(&format!("/v1/threads/{thread}")).await.status, 204);
    assert_eq!(world.usage("?group_by=thread").await, before);
}

#[tokio::test]
async fn a_fork_is_billed_for_its_own_turns_only() {
    let world = world().await;
    let api = world.api();
    let parent = api.create(json!({})).await;
    world.turn(&parent, json!({"prompt": SPENDS})).await;
    let before = world.usage("?group_by=thread").await;
    assert_eq!(bill(&before["totals"]), (1, Some(COST)));
    let fork = text(&api.post(&format!("/v1/threads/{parent}/fork"), json!({})).await.expect(201)["id"]);
    assert_eq!(world.usage("?group_by=thread").await, before);
    world.turn(&fork, json!({"prompt": SPENDS})).await;
    let after = world.usage("?group_by=thread").await;
    for thread in [&parent, &fork] {
        assert_eq!(bill(row(&after, json!({"thread_id": thread}))), (1, Some(COST)));
    }
}

#[tokio::test]
async fn without_a_price_file_the_offline_model_is_known_to_be_free() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let thread = server.api.create(json!({})).await;
    let turn = server.api.start(&thread, SPENDS).await;
    server.api.wait(&thread, &turn).await;
    let report = server.api.get("/v1/usage?group_by=model").await.expect(200);
    let free = row(&report, json!({"provider": "scripted", "model": "scripted"}));
    assert_eq!((bill(free), &free["unpriced_calls"]), ((1, Some(0)), &json!(0)));
    assert_eq!((&free["input_tokens"], &free["output_tokens"]), (&json!(1_000), &json!(50)));
}

#[tokio::test]
async fn a_price_file_that_cannot_be_read_refuses_the_start_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("prices.toml");
    let path = prices.to_str().unwrap();
    for (old, new, why) in [
        ("output = 5", "output = \"five\"", "line 25: `output` must be dollars"),
        ("engine = \"openai\"", "engin = \"openai\"", "line 20: "),
        ("until = 2020-01-01", "until = 1970-01-01", "line 8: `until` is not after `from`"),
    ] {
        std::fs::write(&prices, PRICES.replace(old, new)).unwrap();
        let launched = Server::launch(&dir.path().join("data"), &[("RADDLE_PRICES_FILE", path)]).await;
        let Err(NotStarted { status, said }) = launched else { panic!("it started with {new}") };
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("`prices.file`") && said.contains(path) && said.contains(why), "{said}");
    }
    std::fs::remove_file(&prices).unwrap();
    let launched = Server::launch(&dir.path().join("data"), &[("RADDLE_PRICES_FILE", path)]).await;
    assert!(launched.is_err_and(|not| not.said.contains(path)));
}

// ---- routing -------------------------------------------------------------------------------------

async fn put_rules(api: &Api, rules: Value) -> support::Answer {
    api.send(api.request(Method::PUT, "/v1/routing-rules").json(&json!({"rules": rules}))).await
}

#[tokio::test]
async fn rules_are_replaced_whole_and_a_refused_list_changes_nothing() {
    let world = world().await;
    let api = world.api();
    let read = async || api.get("/v1/routing-rules").await.expect(200);
    assert_eq!(read().await, json!({"rules": []}));
    let kept = json!([{"intent": "Code", "model": "openai/dear-1"}, {"intent": "chat", "model": "scripted"}]);
    put_rules(api, json!([{"intent": "old", "model": "scripted"}])).await.expect(200);
    assert_eq!(put_rules(api, kept.clone()).await.expect(200), json!({"rules": kept}));
    assert_eq!(read().await, json!({"rules": kept}));
    for (rules, field) in [
        (json!([{"intent": "a", "model": "scripted"}, {"intent": " A", "model": "scripted"}]), "rules[1].intent"),
        (json!([{"intent": "a", "model": "openai/"}]), "rules[0].model"),
        (json!([{"intent": "", "model": "scripted"}]), "rules[0].intent"),
        (json!(vec![json!({"intent": "a", "model": "scripted"}); 201]), "rules"),
    ] {
        assert_eq!(put_rules(api, rules).await.problem(422, "invalid")["field"], field);
    }
    assert_eq!(read().await, json!({"rules": kept}));
    assert_eq!(put_rules(api, json!([])).await.expect(200), json!({"rules": []}));
    assert_eq!(read().await, json!({"rules": []}));
}

#[tokio::test]
async fn an_intent_chooses_the_model_and_the_bill_follows_it() {
    let world = world().await;
    let api = world.api();
    put_rules(api, json!([{"intent": "Code", "model": "openai/dear-1"}])).await.expect(200);
    let thread = api.create(json!({})).await;
    world.provider.answer(reported());
    let routed = world.turn(&thread, json!({"prompt": SPENDS, "route_intent": " CODE"})).await;
    assert_eq!((&routed["engine"], &routed["model"]), (&json!("openai"), &json!("dear-1")));
    let other = world.turn(&thread, json!({"prompt": SPENDS, "route_intent": "poetry"})).await;
    assert_eq!(other["model"], "scripted");
    let named = world.turn(&thread, json!({"prompt": SPENDS, "route_intent": "code", "model": "scripted"})).await;
    assert_eq!(named["model"], "scripted");
    let report = world.usage("?group_by=provider").await;
    assert_eq!(bill(row(&report, json!({"provider": "openai"}))).0, 1);
    assert_eq!(bill(row(&report, json!({"provider": "scripted"}))), (2, Some(2 * COST)));
}

// ---- the command line ----------------------------------------------------------------------------

#[tokio::test]
async fn the_command_line_shows_the_bill_and_sets_the_rules() {
    let world = world().await;
    let ask = |args: &[&str]| run(raddle().args(args).env("RADDLE_SERVER", &world.server.url), "");
    let thread = world.api().create(json!({})).await;
    let turn = world.turn(&thread, json!({"prompt": SPENDS})).await;
    let day = text(&turn["ended_at"])[..10].to_owned();

    let said = ask(&["usage", "--since", &day, "--until", &day, "--by", "model", "--json"]);
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|why| panic!("{why}: {said:?}"));
    let asked = format!("?since={day}&until={day}&group_by=model");
    assert_eq!((said.code, report), (Some(0), world.usage(&asked).await));
    let said = ask(&["usage", "--by", "model"]);
    assert!(said.out.contains("scripted/scripted") && said.out.contains("$0.0030"), "{}", said.out);
    assert_eq!(ask(&["usage", "--since", "yesterday"]).code, Some(3));
    assert_eq!(ask(&["usage", "--by", "week"]).code, Some(2));

    let said = ask(&["routing", "set", "code review=openai/dear-1", "chat=scripted"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "code review  openai/dear-1\nchat         scripted\n"));
    let said = ask(&["routing", "ls", "--json"]);
    let rules: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(json!({"rules": rules}), world.api().get("/v1/routing-rules").await.expect(200));
    let said = ask(&["routing", "set", "chat="]);
    assert!(said.code == Some(3) && said.said.contains("rules[0].model"), "{said:?}");
    for mistake in [&["routing", "set"][..], &["routing", "set", "chat"], &["routing", "set", "--none", "a=b"]] {
        assert_eq!(ask(mistake).code, Some(2), "{mistake:?}");
    }
    let said = ask(&["routing", "set", "--none"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""));
    assert_eq!(ask(&["routing", "ls"]).out, "");
}
