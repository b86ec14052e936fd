//! What a tenant may have so much of: refused exactly at the bound, free again with what frees it, as much after a
//! restart, and nobody else's concern.

mod testbed;

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use futures_util::future::join_all;
use raddle_actors::{Call, Config, Error, ForkAt, Ports, Runtime, Started};
use raddle_domain::{
    command::{Interrupt, NewThread},
    id::{TenantId, ThreadKey, TurnId},
    job::{JobStatus, Template, TurnWork, Work},
    ports::StoreError,
    record::{Decision, Delivery, TurnStatus},
    tenant::{Quotas, TenantPatch},
};
use testbed::*;

fn other() -> TenantId {
    "other".parse().unwrap()
}

async fn start_with(bed: &Bed, quotas: Quotas) -> Runtime {
    Runtime::start(Config { quotas, ..bed.config() }, bed.ports()).await.unwrap()
}

async fn make(runtime: &Runtime, tenant: TenantId) -> Result<ThreadKey, Error> {
    let done = runtime.create_thread(tenant, NewThread::with(choice()), Call::default()).await?;
    Ok(ThreadKey { tenant, thread: done.value.id })
}

async fn send(runtime: &Runtime, key: ThreadKey, text: &str) -> Result<Started, Error> {
    let done = runtime.start_turn(key, prompt(text, Delivery::Queue), Call::default()).await?;
    Ok(done.value)
}

async fn turn(runtime: &Runtime, key: ThreadKey, text: &str) -> TurnId {
    match send(runtime, key, text).await.unwrap() {
        Started::Turn(turn) => turn.id,
        Started::Queued { .. } => panic!("queued"),
    }
}

/// How many succeeded; the others were refused for this quota.
fn succeeded<T: std::fmt::Debug>(all: Vec<Result<T, Error>>, limit: &str, max: u64) -> Vec<T> {
    let check = |result: Result<T, Error>| match result {
        Ok(done) => Some(done),
        Err(Error::Quota { limit: by, max: most }) if by == limit && most == max => None,
        Err(error) => panic!("refused otherwise: {error:?}"),
    };
    all.into_iter().filter_map(check).collect()
}

async fn used(runtime: &Runtime, tenant: TenantId, limit: &str) -> (u64, Option<u64>) {
    let all = runtime.quota_status(tenant).await.unwrap();
    all.into_iter().find(|status| status.limit == limit).map(|status| (status.used, status.max)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_are_made_up_to_the_bound_and_not_beyond() {
    let bed = Bed::new();
    let quotas = Quotas { threads: Some(10), ..Quotas::default() };
    let runtime = start_with(&bed, quotas).await;
    let made = join_all((0..100).map(|_| make(&runtime, OWNER))).await;
    let made = succeeded(made, "threads", 10);
    assert_eq!(made.len(), 10);
    assert_eq!(used(&runtime, OWNER, "threads").await, (10, Some(10)));
    let fork = runtime.fork(made[0], ForkAt::Settled, None, Call::default()).await;
    assert!(matches!(fork, Err(Error::Quota { limit: "threads", max: 10 })));
    runtime.delete_thread(made[3], Call::default()).await.unwrap();
    runtime.fork(made[0], ForkAt::Settled, None, Call::default()).await.unwrap();
    assert!(make(&runtime, OWNER).await.is_err());
    for _ in 0..10 {
        make(&runtime, other()).await.unwrap();
    }
    runtime.shutdown(LONG).await;
    drop(runtime);
    let again = start_with(&bed, quotas).await;
    assert!(succeeded(join_all((0..20).map(|_| make(&again, OWNER))).await, "threads", 10).is_empty());
    again.delete_thread(made[0], Call::default()).await.unwrap();
    assert_eq!(succeeded(join_all((0..20).map(|_| make(&again, OWNER))).await, "threads", 10).len(), 1);
    assert!(again.health().refused_over_quota >= 39);
    again.shutdown(LONG).await;
}

#[tokio::test]
async fn what_shows_only_once_the_store_is_open_again_counts_like_all_else() {
    let (bed, down) = (Bed::new(), Arc::new(AtomicBool::new(true)));
    let config = Config { quotas: Quotas { threads: Some(1), ..Quotas::default() }, ..bed.config() };
    let store = Hooked::hiding(&config.store, "thread.created", &down);
    let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
    for _ in 0..2 {
        let failed = make(&runtime, OWNER).await;
        assert!(matches!(failed, Err(Error::Store(StoreError::Unavailable(_)))), "{failed:?}");
    }
    down.store(false, SeqCst);
    let told = async {
        loop {
            match make(&runtime, OWNER).await {
                Err(Error::Store(_)) => tokio::task::yield_now().await,
                told => break told,
            }
        }
    };
    let told = tokio::time::timeout(LONG, told).await.expect("the store is open again");
    assert!(matches!(told, Err(Error::Quota { limit: "threads", max: 1 })), "{told:?}");
    assert_eq!(used(&runtime, OWNER, "threads").await, (1, Some(1)));
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_repeated_counts_once_and_is_answered_though_the_bound_is_reached() {
    let bed = Bed::new();
    let runtime = start_with(&bed, Quotas { threads: Some(2), ..Quotas::default() }).await;
    let create = |call| runtime.create_thread(OWNER, NewThread::with(choice()), call);
    let first = create(keyed(1, 1)).await.unwrap();
    create(keyed(2, 2)).await.unwrap();
    let again = create(keyed(1, 1)).await.unwrap();
    assert_eq!((again.value.id, again.replayed), (first.value.id, true));
    assert!(create(keyed(3, 3)).await.is_err());
    // What was refused is no trace: the same request is judged anew.
    runtime.delete_thread(key(&first.value), Call::default()).await.unwrap();
    assert!(!create(keyed(3, 3)).await.unwrap().replayed);
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_wait_up_to_the_bound_and_promotion_makes_room() {
    let bed = Bed::new();
    let quotas = Quotas { queued_prompts: Some(5), ..Quotas::default() };
    let runtime = start_with(&bed, quotas).await;
    let keys = [make(&runtime, OWNER).await.unwrap(), make(&runtime, OWNER).await.unwrap()];
    for key in keys {
        turn(&runtime, key, "hold").await;
    }
    let sent = join_all((0..100).map(|n| send(&runtime, keys[n % 2], "more"))).await;
    let queued = succeeded(sent, "queued_prompts", 5);
    assert_eq!(queued.len(), 5);
    assert_eq!(used(&runtime, OWNER, "queued_prompts").await, (5, Some(5)));
    let key = make(&runtime, other()).await.unwrap();
    turn(&runtime, key, "hold").await;
    send(&runtime, key, "more").await.unwrap();
    // One is taken back.
    let Started::Queued { admission, .. } = &queued[0] else { panic!("a turn") };
    let of = ThreadKey { tenant: OWNER, thread: admission.thread_id };
    runtime.withdraw_prompt(of, admission.id, Call::default()).await.unwrap();
    assert_eq!(succeeded(join_all((0..20).map(|_| send(&runtime, of, "more"))).await, "queued_prompts", 5).len(), 1);
    runtime.shutdown(std::time::Duration::ZERO).await;
    drop(runtime);
    let again = start_with(&bed, quotas).await;
    assert!(succeeded(join_all((0..20).map(|_| send(&again, of, "more"))).await, "queued_prompts", 5).is_empty());
    // All that waits is promoted, and the thread that it waited on is deleted with what else waits.
    bed.model.gate.add_permits(3);
    for key in keys {
        rests(&again, key).await;
    }
    assert_eq!(used(&again, OWNER, "queued_prompts").await.0, 0);
    turn(&again, of, "hold").await;
    assert_eq!(succeeded(join_all((0..20).map(|_| send(&again, of, "more"))).await, "queued_prompts", 5).len(), 5);
    again.delete_thread(of, Call::default()).await.unwrap();
    let left = if of == keys[0] { keys[1] } else { keys[0] };
    turn(&again, left, "hold").await;
    assert_eq!(succeeded(join_all((0..20).map(|_| send(&again, left, "more"))).await, "queued_prompts", 5).len(), 5);
    again.shutdown(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_begin_up_to_the_bound_and_who_waits_for_a_person_is_not_counted() {
    let bed = Bed::new();
    let quotas = Quotas { active_turns: Some(3), ..Quotas::default() };
    let runtime = start_with(&bed, quotas).await;
    let keys = join_all((0..50).map(|_| async { make(&runtime, OWNER).await.unwrap() })).await;
    let sent = join_all(keys.iter().map(|key| async { send(&runtime, *key, "hold").await.map(|_| *key) })).await;
    let begun = succeeded(sent, "active_turns", 3);
    assert_eq!(begun.len(), 3);
    assert_eq!(used(&runtime, OWNER, "active_turns").await, (3, Some(3)));
    // Behind an open turn there is room, and what waits takes the place of the one before it.
    send(&runtime, begun[0], "hold").await.unwrap();
    let stranger = make(&runtime, other()).await.unwrap();
    turn(&runtime, stranger, "echo").await;
    let mut free = keys.iter().copied().filter(|key| !begun.contains(key));
    bed.model.gate.add_permits(1);
    let full = async |key| matches!(send(&runtime, key, "hold").await, Err(Error::Quota { limit: "active_turns", .. }));
    // Whichever of the three went on: either it was the one with a prompt behind it, or there is room now.
    let ended = async {
        while runtime.health().turns_completed < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, ended).await.expect("one ends");
    loop {
        if runtime.thread(begun[0]).await.unwrap().queued == 0 {
            break assert!(full(free.next().unwrap()).await);
        }
        if used(&runtime, OWNER, "active_turns").await.0 == 2 {
            assert!(!full(free.next().unwrap()).await);
            break assert!(full(free.next().unwrap()).await);
        }
    }
    // Whatever is at work is interrupted: that makes room.
    for key in keys {
        while let Some(turn) = runtime.thread(key).await.unwrap().active_turn {
            let interrupt = Interrupt { turn, pause_queue: true };
            drop(runtime.interrupt(key, interrupt, Call::default()).await);
        }
    }
    assert_eq!(used(&runtime, OWNER, "active_turns").await.0, 0);
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_waits_for_a_person_makes_room_and_goes_on_beyond_the_bound() {
    let bed = Bed::new();
    let quotas = Quotas { active_turns: Some(1), ..Quotas::default() };
    let runtime = start_with(&bed, quotas).await;
    let (asks, works) = (make(&runtime, OWNER).await.unwrap(), make(&runtime, OWNER).await.unwrap());
    let asking = turn(&runtime, asks, "call gated_once x").await;
    waits(&runtime, asks).await;
    let working = turn(&runtime, works, "hold").await;
    let approval = pending(&runtime, asks).await.remove(0);
    runtime.decide(OWNER, approval.id, Decision::Approved, None, Call::default()).await.unwrap();
    assert_eq!(ended(&runtime, asks, asking).await, TurnStatus::Completed);
    bed.model.gate.add_permits(1);
    assert_eq!(ended(&runtime, works, working).await, TurnStatus::Completed);
    rests(&runtime, works).await;
    turn(&runtime, asks, "hold").await;
    assert!(send(&runtime, works, "x").await.is_err());
    // The turn goes on with the next process, and counts there.
    runtime.shutdown(std::time::Duration::ZERO).await;
    drop(runtime);
    let again = start_with(&bed, quotas).await;
    happens(&again, asks, "turn.resumed", 1).await;
    assert!(matches!(send(&again, works, "x").await, Err(Error::Quota { limit: "active_turns", max: 1 })));
    again.shutdown(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_and_waits_come_up_to_the_bound() {
    let bed = Bed::new();
    let runtime = start_with(&bed, Quotas { subscribers: Some(3), ..Quotas::default() }).await;
    let key = make(&runtime, OWNER).await.unwrap();
    let watches = join_all((0..100).map(|_| runtime.subscribe(key, 0))).await;
    let refused = watches.iter().filter(|watch| matches!(watch, Err(Error::Quota { limit: "subscribers", max: 3 })));
    assert_eq!(refused.count(), 97);
    assert!(matches!(runtime.subscribe_tenant(OWNER, None, None).await, Err(Error::Quota { .. })));
    let begun = turn(&runtime, key, "echo").await;
    assert!(matches!(runtime.wait_turn(key, begun, LONG).await, Err(Error::Quota { limit: "subscribers", .. })));
    let stranger = make(&runtime, other()).await.unwrap();
    runtime.subscribe(stranger, 0).await.unwrap();
    drop(watches);
    assert_eq!(used(&runtime, OWNER, "subscribers").await, (0, Some(3)));
    runtime.subscribe_tenant(OWNER, None, None).await.unwrap();
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_makes_room_for_its_own_threads_among_its_own() {
    let bed = Bed::new();
    let runtime = start_with(&bed, Quotas { loaded_threads: Some(3), ..Quotas::default() }).await;
    let strangers = join_all((0..3).map(|_| async { make(&runtime, other()).await.unwrap() })).await;
    for key in &strangers {
        turn(&runtime, *key, "hold").await;
    }
    let keys = join_all((0..10).map(|_| async { make(&runtime, OWNER).await.unwrap() })).await;
    // What rests goes for what is needed.
    for key in &keys {
        say(&runtime, *key, "hello").await;
        assert!(used(&runtime, OWNER, "loaded_threads").await.0 <= 3);
    }
    let mut working = Vec::new();
    for key in &keys[..3] {
        working.push(turn(&runtime, *key, "hold").await);
    }
    // What works does not.
    let refused = join_all(keys[3..].iter().map(|key| send(&runtime, *key, "hello"))).await;
    assert!(succeeded(refused, "loaded_threads", 3).is_empty());
    // To make one is no load, and to read one neither; and an interrupt is heard.
    make(&runtime, OWNER).await.unwrap();
    runtime.snapshot(keys[9]).await.unwrap();
    let interrupt = Interrupt { turn: working[0], pause_queue: false };
    runtime.interrupt(keys[0], interrupt, Call::default()).await.unwrap();
    rests(&runtime, keys[0]).await;
    say(&runtime, keys[5], "hello").await;
    assert_eq!(used(&runtime, other(), "loaded_threads").await.0, 3);
    runtime.shutdown(std::time::Duration::ZERO).await;
    // Open turns are loaded whatever the bound.
    drop(runtime);
    let again = start_with(&bed, Quotas { loaded_threads: Some(1), ..Quotas::default() }).await;
    for key in &keys[1..3] {
        happens(&again, *key, "turn.resumed", 1).await;
    }
    assert!(matches!(send(&again, keys[7], "x").await, Err(Error::Quota { limit: "loaded_threads", max: 1 })));
    again.shutdown(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_stored_as_much_as_he_may_stores_no_more_until_he_deletes() {
    let bed = Bed::new();
    let quotas = Quotas { stored_bytes: Some(20_000), ..Quotas::default() };
    let runtime = start_with(&bed, quotas).await;
    let (small, large) = (make(&runtime, OWNER).await.unwrap(), make(&runtime, OWNER).await.unwrap());
    let begun = turn(&runtime, small, "hold").await;
    say(&runtime, large, &"x".repeat(20_000)).await;
    assert!(used(&runtime, OWNER, "stored_bytes").await.0 > 20_000, "{:?}", runtime.quota_status(OWNER).await);
    let refused = join_all((0..100).map(|_| send(&runtime, large, "more"))).await;
    assert!(succeeded(refused, "stored_bytes", 20_000).is_empty());
    assert!(matches!(make(&runtime, OWNER).await, Err(Error::Quota { limit: "stored_bytes", .. })));
    let work = Work::Turn(work_on(large));
    let job = runtime.create_job(OWNER, Template::new("job", work), None, Call::default()).await;
    assert!(matches!(job, Err(Error::Quota { limit: "stored_bytes", .. })));
    let stranger = make(&runtime, other()).await.unwrap();
    say(&runtime, stranger, "hello").await;
    // What was accepted goes on, and what ends work is heard.
    bed.model.gate.add_permits(1);
    assert_eq!(ended(&runtime, small, begun).await, TurnStatus::Completed);
    runtime.shutdown(LONG).await;
    drop(runtime);
    let again = start_with(&bed, quotas).await;
    assert!(matches!(send(&again, small, "more").await, Err(Error::Quota { limit: "stored_bytes", .. })));
    again.delete_thread(large, Call::default()).await.unwrap();
    say(&again, small, "more").await;
    again.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_much_at_once_stores_no_more_than_who_sends_it_bit_by_bit() {
    let bed = Bed::new();
    let runtime = start_with(&bed, Quotas { stored_bytes: Some(20_000), ..Quotas::default() }).await;
    let key = make(&runtime, OWNER).await.unwrap();
    turn(&runtime, key, "hold").await;
    let prompt = "x".repeat(3_000);
    let sent = join_all((0..20).map(|_| send(&runtime, key, &prompt))).await;
    let accepted = succeeded(sent, "stored_bytes", 20_000).len();
    // Each is stored with about a fifth beside its text.
    assert!((3..=7).contains(&accepted), "{accepted} were let in");
    assert!(used(&runtime, OWNER, "stored_bytes").await.0 < 20_000 + 5_000, "{:?}", runtime.quota_status(OWNER).await);
    bed.model.gate.add_permits(100);
    runtime.shutdown(LONG).await;
}

fn work_on(key: ThreadKey) -> TurnWork {
    serde_json::from_value(serde_json::json!({ "thread_id": key.thread, "prompt": "work" })).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_finds_no_room_waits_and_uses_up_no_attempt() {
    let mut bed = Bed::new();
    bed.limits.inbox_per_thread = 1;
    let runtime = start_with(&bed, Quotas { active_turns: Some(1), ..Quotas::default() }).await;
    let (busy, free) = (make(&runtime, OWNER).await.unwrap(), make(&runtime, OWNER).await.unwrap());
    turn(&runtime, busy, "hold").await;
    send(&runtime, busy, "hold").await.unwrap();
    let mut jobs = Vec::new();
    // The one finds the inbox full, the other as many turns at work as there may be.
    for key in [busy, free] {
        let template = Template { max_attempts: 0, ..Template::new("job", Work::Turn(work_on(key))) };
        jobs.push(runtime.create_job(OWNER, template, None, Call::default()).await.unwrap().value.id);
    }
    let refused = async {
        while runtime.health().refused_over_quota == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, refused).await.expect("it is tried");
    bed.model.gate.add_permits(2);
    for job in jobs {
        let done = async {
            loop {
                let found = runtime.job(OWNER, job).await.unwrap();
                if found.status.is_over() {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        let done = tokio::time::timeout(LONG, done).await.expect("it ends");
        assert_eq!((done.status, done.run, done.attempt), (JobStatus::Completed, 1, 0), "{done:?}");
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_come_as_often_as_they_may() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let [rate, burst] = [2, 5].map(NonZeroU32::new);
    let quotas = Quotas { requests_per_second: rate, request_burst: burst, ..Quotas::default() };
    let patch = TenantPatch { quotas: Some(quotas), ..TenantPatch::default() };
    runtime.create_tenant(OWNER, patch, None).await.unwrap();
    let let_in = |count: usize| (0..count).filter(|_| runtime.admit_request(OWNER).is_ok()).count();
    assert_eq!(let_in(100), 5);
    assert_eq!(used(&runtime, OWNER, "requests_per_second").await, (5, Some(2)));
    let Err(Error::RateLimited { limit, retry_after }) = runtime.admit_request(OWNER) else { panic!("let in") };
    assert_eq!((limit, retry_after.as_millis()), (2, 500));
    for _ in 0..1_000 {
        runtime.admit_request(other()).unwrap();
    }
    bed.clock.advance(500);
    assert_eq!(let_in(100), 1);
    // What holds is what the tenant's record says now.
    let patch = TenantPatch { quotas: Some(Quotas::default()), ..TenantPatch::default() };
    runtime.patch_tenant(OWNER, patch, None, None).await.unwrap();
    assert_eq!(let_in(100), 100);
    runtime.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_that_comes_later_counts_what_was_there_before() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    for _ in 0..4 {
        make(&runtime, OWNER).await.unwrap();
    }
    let patch =
        TenantPatch { quotas: Some(Quotas { threads: Some(6), ..Quotas::default() }), ..TenantPatch::default() };
    runtime.create_tenant(OWNER, patch, None).await.unwrap();
    assert_eq!(succeeded(join_all((0..100).map(|_| make(&runtime, OWNER))).await, "threads", 6).len(), 2);
    runtime.shutdown(LONG).await;
}
