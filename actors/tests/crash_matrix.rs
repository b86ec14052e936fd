//! The process dies at every boundary of a tool call, for every class of effect; what is found afterwards is what the
//! ledger promises. The process that dies is this test binary, run again; what it did to the world is in a file.

mod testbed;

use std::{path::Path, process::Command, sync::Arc};

use raddle_actors::{Call, Config, Error, Ports, RecordQuery, Runtime, ThreadQuery};
use raddle_domain::{
    command::Compact,
    event::Event,
    id::{TenantId, ThreadKey},
    ports::Write,
    record::{
        ApprovalStatus, Decision, Effect, EffectOutcome, EffectStatus, ItemKind, Resolution, ResolvedBy, ThreadStatus,
        TurnStatus,
    },
};
use testbed::*;

/// Where the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Right before the commit of the decision that lets the call pass, and right after it.
    Deciding,
    Decided,
    /// Right after the commit that holds it.
    Intended,
    Started,
    /// In the tool, right after it acted.
    Acted,
    /// Right before the commit that would hold it.
    Settling,
    Settled,
    /// When the model is called again.
    Calling,
    /// When the model is asked for a summary, and right after the commit that holds it.
    Summarising,
    Summarised,
}

const ALL: [At; 10] = [
    At::Deciding,
    At::Decided,
    At::Intended,
    At::Started,
    At::Acted,
    At::Settling,
    At::Settled,
    At::Calling,
    At::Summarising,
    At::Summarised,
];
const CLASSES: [&str; 4] = ["read", "idempotent", "reconcilable", "once"];
const DIR: &str = "RADDLE_TEST_DIES_IN";
const AT: &str = "RADDLE_TEST_DIES_AT";
const TOOL: &str = "RADDLE_TEST_DIES_WITH";

/// A store whose process dies at a commit.
fn deadly(at: At) -> OnCommit {
    let (before, after) = match at {
        At::Deciding => (Some("approval.decided"), None),
        At::Decided => (None, Some("approval.decided")),
        At::Intended => (None, Some("effect.intended")),
        At::Started => (None, Some("effect.started")),
        At::Settling => (Some("effect.settled"), None),
        At::Settled => (None, Some("effect.settled")),
        At::Summarised => (None, Some("compaction.completed")),
        At::Acted | At::Calling | At::Summarising => (None, None),
    };
    let dies = |name: Option<&str>, writes: &[Write]| {
        if name.is_some_and(|name| holds(writes, name)) {
            std::process::abort();
        }
    };
    Box::new(move |writes, commit| {
        dies(before, writes);
        let done = commit();
        dies(after, writes);
        done
    })
}

/// A model whose calls are counted in a file of `dir`, whichever process makes them.
fn counted(dir: &Path, dies: bool) -> Arc<TestModel> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("calls")).unwrap();
    TestModel::with(Box::new(move |number, _| {
        std::io::Write::write_all(&mut &file, b"call\n").unwrap();
        file.sync_all().unwrap();
        if dies && number == 2 {
            std::process::abort();
        }
    }))
}

fn calls(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("calls")).unwrap().lines().count()
}

/// The process that dies: one turn with one tool call.
#[tokio::test]
#[ignore = "the other tests run it as a process of its own"]
async fn dies() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let (dir, tool) = (Path::new(&dir), std::env::var(TOOL).unwrap());
    let at = std::env::var(AT).unwrap();
    let at = ALL.into_iter().find(|known| format!("{known:?}") == at).unwrap();
    let mut tools = TestTools::plain(dir);
    tools.on_act = Box::new(move |_| {
        if at == At::Acted {
            std::process::abort();
        }
    });
    let config = Config::new(dir);
    let store = Hooked::open(&config.store, deadly(at));
    let ports = Ports {
        store: Some(Arc::new(store)),
        ..tool_ports(&counted(dir, matches!(at, At::Calling | At::Summarising)), &Arc::new(tools))
    };
    let runtime = Runtime::start(config, ports).await.unwrap();
    let key = create(&runtime).await;
    // Its reply may come too late to be heard.
    let text = if tool.is_empty() { "a".to_owned() } else { format!("call {tool} a") };
    let start = prompt(&text, raddle_domain::record::Delivery::Reject);
    drop(runtime.start_turn(key, start, Call::default()).await);
    if matches!(at, At::Deciding | At::Decided) {
        waits(&runtime, key).await;
        let approval = pending(&runtime, key).await.remove(0);
        drop(runtime.decide(TenantId::DEFAULT, approval.id, Decision::Approved, None, keyed(7, 7)).await);
    }
    rests(&runtime, key).await;
    drop(runtime.compact(key, Compact::default(), Call::default()).await);
    rests(&runtime, key).await;
}

/// What was found after the process died and another one came to rest.
struct Found {
    dir: tempfile::TempDir,
    runtime: Runtime,
    key: ThreadKey,
    effect: Effect,
    acts: Vec<Act>,
}

async fn dead(at: At, tool: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "dies", "--ignored", "--nocapture", "--test-threads", "1"]);
    process.env(DIR, dir.path()).env(AT, format!("{at:?}")).env(TOOL, tool);
    let died = tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&died.status);
    assert_eq!(signal, Some(6), "{at:?} {tool}: {}", String::from_utf8_lossy(&died.stderr));
    dir
}

async fn after(at: At, tool: &str) -> Found {
    let dir = dead(at, tool).await;
    let (model, tools) = (counted(dir.path(), false), TestTools::new(dir.path()));
    let runtime = tool_runtime(dir.path(), &model, &tools).await;
    let listed = runtime.threads(TenantId::DEFAULT, ThreadQuery { limit: 9, ..ThreadQuery::default() }).await.unwrap();
    assert_eq!(listed.data.len(), 1, "{at:?} {tool}: the acknowledged thread is there");
    let key = key(&listed.data[0]);
    stands(&runtime, key, |thread| matches!(thread.status, ThreadStatus::Idle | ThreadStatus::AwaitingApproval)).await;
    let log = log(&runtime, key).await;
    assert_sound(&log, runtime.thread(key).await.unwrap().active_turn.is_none());
    let [effect] = &ledger(&log)[..] else { panic!("{at:?} {tool}: {log:#?}") };
    let (effect, acts) = (effect.clone(), acts(dir.path()));
    Found { dir, runtime, key, effect, acts }
}

/// Asserts that the turn ended well, the model saw the result, and no answered model call was made again.
async fn assert_done(found: &Found, at: At, tool: &str, output: &str) {
    let Found { dir, runtime, key, effect, acts } = found;
    let about = format!("{at:?} {tool}: {effect:?} {acts:?}");
    let turn = runtime.turns(*key, None, 9).await.unwrap().data.remove(0);
    assert_eq!(turn.status, TurnStatus::Completed, "{about}");
    assert_eq!((effect.status, effect.outcome), (EffectStatus::Settled, Some(EffectOutcome::Succeeded)), "{about}");
    let items = runtime.snapshot(*key).await.unwrap().items;
    let results: Vec<_> = items.iter().filter(|item| item.kind == ItemKind::ToolCall).collect();
    assert_eq!(results.len(), 1, "{about}");
    assert_eq!((results[0].detail.as_str(), results[0].status), (output, TurnStatus::Completed), "{about}");
    assert_eq!(items.last().unwrap().detail, format!("echo: {output}"), "{about}");
    assert!(acts.iter().all(|act| act.operation == effect.operation_id.to_string()), "{about}");
    // One for the tool call, one for the echo; the one that was cut off is made again.
    assert_eq!(calls(dir.path()), if at == At::Calling { 3 } else { 2 }, "{about}");
    assert_eq!(turn.usage.model_calls, 2, "{about}");
}

async fn matrix(at: At) {
    for tool in CLASSES {
        let found = after(at, tool).await;
        let about = format!("{at:?} {tool}: {:?} {:?}", found.effect, found.acts);
        let acted_twice = matches!(at, At::Acted | At::Settling) && matches!(tool, "read" | "idempotent");
        let lost = matches!(at, At::Started | At::Acted | At::Settling);
        if tool == "once" && lost {
            assert_eq!(found.effect.status, EffectStatus::Uncertain, "{about}");
            assert!(!found.effect.closed, "{about}");
            assert_eq!((found.effect.attempt, found.acts.len()), (1, usize::from(at != At::Started)), "{about}");
            let open = RecordQuery { open: true, limit: 9, ..RecordQuery::default() };
            let open = found.runtime.effects(TenantId::DEFAULT, open).await.unwrap().data;
            assert_eq!(open, std::slice::from_ref(&found.effect), "{about}");
            assert_eq!(found.runtime.health().running_turns, 0, "{about}");
            assert_eq!(calls(found.dir.path()), 1, "{about}");
        } else {
            assert_done(&found, at, tool, "did a").await;
            assert_eq!(found.acts.len(), if acted_twice { 2 } else { 1 }, "{about}");
            let asked = tool == "reconcilable" && matches!(at, At::Acted | At::Settling);
            assert_eq!(found.effect.resolved_by, asked.then_some(ResolvedBy::Tool), "{about}");
            let attempts: Vec<_> = found.acts.iter().map(|act| act.attempt).collect();
            assert!(attempts.is_sorted() && attempts.windows(2).all(|pair| pair[0] < pair[1]), "{about}");
        }
        found.runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn what_was_only_intended_happens_once_after_a_crash() {
    matrix(At::Intended).await;
}

#[tokio::test]
async fn what_was_started_and_did_not_act_is_run_asked_about_or_uncertain() {
    matrix(At::Started).await;
}

#[tokio::test]
async fn what_acted_before_anybody_knew_is_never_done_twice_where_that_matters() {
    matrix(At::Acted).await;
}

#[tokio::test]
async fn an_outcome_that_was_not_saved_was_not_known() {
    matrix(At::Settling).await;
}

#[tokio::test]
async fn a_saved_outcome_is_not_asked_for_again() {
    matrix(At::Settled).await;
}

#[tokio::test]
async fn only_the_model_call_that_was_cut_off_is_repeated() {
    matrix(At::Calling).await;
}

#[tokio::test]
async fn a_decision_that_was_not_saved_is_made_anew_and_a_saved_one_is_acted_on_once() {
    for at in [At::Deciding, At::Decided] {
        for class in CLASSES {
            let tool = format!("gated_{class}");
            let dir = dead(at, &tool).await;
            let (model, tools) = (counted(dir.path(), false), TestTools::new(dir.path()));
            let runtime = tool_runtime(dir.path(), &model, &tools).await;
            let all = RecordQuery { limit: 9, ..RecordQuery::default() };
            let asked = runtime.approvals(TenantId::DEFAULT, all).await.unwrap().data.remove(0);
            let key = ThreadKey { tenant: TenantId::DEFAULT, thread: asked.thread_id };
            if at == At::Deciding {
                waits(&runtime, key).await;
                assert_eq!((asked.status, acts(dir.path()).len()), (ApprovalStatus::Pending, 0), "{tool}");
            }
            // Whoever did not hear of it says it again, under the same key.
            let again =
                runtime.decide(TenantId::DEFAULT, asked.id, Decision::Approved, None, keyed(7, 7)).await.unwrap();
            assert_eq!(again.replayed, at == At::Decided, "{tool}");
            rests(&runtime, key).await;
            let log = log(&runtime, key).await;
            assert_sound(&log, true);
            let (effect, acts) = (ledger(&log).remove(0), acts(dir.path()));
            assert_eq!(acts.len(), 1, "{at:?} {tool}");
            assert_done(&Found { dir, runtime, key, effect, acts }, at, &tool, "did a").await;
        }
    }
}

#[tokio::test]
async fn a_crash_at_the_first_of_several_calls_leaves_each_of_the_others_to_run_once() {
    for at in [At::Intended, At::Started, At::Acted, At::Settling, At::Settled, At::Calling] {
        let dir = dead(at, "read x; call read y; call idempotent z; call once").await;
        let (model, tools) = (counted(dir.path(), false), TestTools::new(dir.path()));
        let runtime = tool_runtime(dir.path(), &model, &tools).await;
        let all = ThreadQuery { limit: 9, ..ThreadQuery::default() };
        let key = key(&runtime.threads(TenantId::DEFAULT, all).await.unwrap().data[0]);
        rests(&runtime, key).await;
        assert_sound(&log(&runtime, key).await, true);
        assert_eq!(answers(&runtime, key).await.last().unwrap(), "echo: did x, did y, did z, did a", "{at:?}");
        let acts = acts(dir.path());
        let of = |tool: &str| acts.iter().filter(|act| act.tool == tool).count();
        // Reads run side by side: the other one may have been at work as well.
        let read_twice = if matches!(at, At::Acted | At::Settling | At::Settled) { 2..=4 } else { 2..=2 };
        assert_eq!((of("idempotent"), of("once")), (1, 1), "{at:?} {acts:?}");
        assert!(read_twice.contains(&of("read")), "{at:?} {acts:?}");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn a_compaction_is_finished_after_a_crash_and_a_saved_summary_is_not_asked_for_again() {
    for at in [At::Summarising, At::Summarised] {
        let dir = dead(at, if at == At::Summarising { "" } else { "read" }).await;
        let (model, tools) = (counted(dir.path(), false), TestTools::new(dir.path()));
        let runtime = tool_runtime(dir.path(), &model, &tools).await;
        let all = ThreadQuery { limit: 9, ..ThreadQuery::default() };
        let key = key(&runtime.threads(TenantId::DEFAULT, all).await.unwrap().data[0]);
        rests(&runtime, key).await;
        let log = log(&runtime, key).await;
        assert_sound(&log, true);
        let count = |name: &str| log.iter().filter(|record| record.event.name() == name).count();
        assert_eq!((count("compaction.started"), count("compaction.completed")), (1, 1), "{at:?}");
        let turns = runtime.turns(key, None, 9).await.unwrap().data;
        assert!(turns.iter().all(|turn| turn.status == TurnStatus::Completed), "{at:?} {turns:?}");
        assert_eq!(calls(dir.path()), 3, "{at:?}");
        say(&runtime, key, "more").await;
        assert_eq!(model.last_seen().len(), 2, "the summary, and what is said now");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn an_uncertain_effect_ends_as_a_person_says() {
    for at in [At::Started, At::Acted, At::Settling] {
        for resolution in [Resolution::Retry, Resolution::Settle, Resolution::Abort] {
            let mut found = after(at, "once").await;
            let about = format!("{at:?} {resolution:?}");
            let output = (resolution == Resolution::Settle).then(|| "as seen".to_owned());
            let operation = found.effect.operation_id;
            let resolve = |output| found.runtime.resolve(TenantId::DEFAULT, operation, resolution, output, keyed(1, 1));
            let done = resolve(output.clone()).await.unwrap();
            assert_eq!((done.value.resolution, done.value.resolved_by), (Some(resolution), Some(ResolvedBy::Caller)));
            rests(&found.runtime, found.key).await;
            let again = resolve(output.clone()).await.unwrap();
            assert_eq!((again.value, again.replayed), (done.value, true), "{about}");
            let late =
                found.runtime.resolve(TenantId::DEFAULT, operation, Resolution::Abort, None, Call::default()).await;
            let log = log(&found.runtime, found.key).await;
            assert_sound(&log, true);
            found.effect = ledger(&log).remove(0);
            found.acts = acts(found.dir.path());
            let before = usize::from(at != At::Started);
            match resolution {
                Resolution::Retry => {
                    assert_done(&found, at, "once", "did a").await;
                    assert_eq!((found.acts.len(), found.effect.attempt), (before + 1, 2), "{about}");
                }
                Resolution::Settle => {
                    assert_done(&found, at, "once", "as seen").await;
                    assert_eq!((found.acts.len(), found.effect.attempt), (before, 1), "{about}");
                }
                Resolution::Abort => {
                    let turn = found.runtime.turns(found.key, None, 9).await.unwrap().data.remove(0);
                    assert_eq!(turn.status, TurnStatus::Canceled, "{about}");
                    assert_eq!(turn.error.unwrap().code, "aborted", "{about}");
                    assert_eq!((found.acts.len(), found.effect.status), (before, EffectStatus::Uncertain), "{about}");
                    assert!(found.effect.closed, "{about}");
                }
            }
            // Who comes later is told how it stands now, and the list says the same.
            let Err(Error::AlreadyResolved(known)) = late else { panic!("{about}: {late:?}") };
            assert_eq!(*known, found.effect, "{about}");
            let all = RecordQuery { limit: 9, ..RecordQuery::default() };
            let listed = found.runtime.effects(TenantId::DEFAULT, all.clone()).await.unwrap().data;
            assert_eq!(listed, [found.effect.clone()], "{about}");
            let open = RecordQuery { open: true, ..all };
            assert!(found.runtime.effects(TenantId::DEFAULT, open).await.unwrap().data.is_empty(), "{about}");
            found.runtime.shutdown(LONG).await;
        }
    }
}

#[tokio::test]
async fn an_uncertain_effect_survives_further_restarts_and_is_resolved_after_them() {
    let found = after(At::Acted, "once").await;
    let mut runtime = found.runtime;
    for _ in 0..2 {
        runtime.shutdown(LONG).await;
        drop(runtime);
        let model = counted(found.dir.path(), false);
        runtime = tool_runtime(found.dir.path(), &model, &TestTools::new(found.dir.path())).await;
        waits(&runtime, found.key).await;
        assert_eq!(runtime.health().loaded_threads, 0, "what waits for a person is not loaded for it");
    }
    let operation = found.effect.operation_id;
    runtime
        .resolve(TenantId::DEFAULT, operation, Resolution::Settle, Some("seen".into()), Call::default())
        .await
        .unwrap();
    rests(&runtime, found.key).await;
    assert_eq!(acts(found.dir.path()).len(), 1);
    let log = log(&runtime, found.key).await;
    assert_sound(&log, true);
    assert_eq!(log.iter().filter(|record| matches!(record.event, Event::EffectUncertain(_))).count(), 1);
    runtime.shutdown(LONG).await;
}
