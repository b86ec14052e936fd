//! What the runtime promises a host that watches all threads of a tenant.

mod testbed;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures_util::future::join_all;
use raddle_actors::{Call, Config, Error, Runtime, TenantCursor, TenantNext, TenantSubscription};
use raddle_domain::{
    command::{Refused, ThreadPatch},
    event::{self, Event, Record},
    id::{Seq, TenantId, ThreadId, ThreadKey},
    ports::StoredEvent,
    record::ThreadStatus,
};
use testbed::*;

const LONG: Duration = Duration::from_secs(30);
const TENANT: TenantId = TenantId::DEFAULT;
const START: TenantCursor = TenantCursor { position: 0, seq: 0 };

fn record(event: &StoredEvent) -> Record {
    Record::decode(event::SCHEMA, &event.json).unwrap()
}

/// What a watcher has put together: the seqs of each thread, in the order in which they came.
#[derive(Debug, Default, PartialEq)]
struct Seen(BTreeMap<ThreadId, Vec<Seq>>);

impl Seen {
    fn add(&mut self, next: &TenantNext) {
        for (_, event) in next.events() {
            let record = record(event);
            self.0.entry(record.thread).or_default().push(record.seq);
        }
    }
}

async fn watch(runtime: &Runtime, after: Option<TenantCursor>) -> TenantSubscription {
    runtime.subscribe_tenant(TENANT, after, None).await.unwrap()
}

async fn rename(runtime: &Runtime, key: ThreadKey, title: &str) {
    let patch = ThreadPatch { title: Some(Some(title.into())), ..ThreadPatch::default() };
    runtime.patch_thread(key, patch, Call::default()).await.unwrap();
}

async fn rests(runtime: &Runtime, key: ThreadKey) {
    let mut watch = runtime.subscribe(key, 0).await.unwrap();
    while runtime.thread(key).await.unwrap().status != ThreadStatus::Idle {
        watch.next().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_every_event_of_every_thread_once_whenever_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let watchers = (0..6).map(|_| {
        let runtime = runtime.clone();
        tokio::spawn(async move {
            let mut watch = watch(&runtime, Some(START)).await;
            let mut seen = Seen::default();
            loop {
                match watch.next().await.unwrap() {
                    TenantNext::Shutdown { after } => {
                        assert_eq!(after, watch.after());
                        return seen;
                    }
                    next => seen.add(&next),
                }
            }
        })
    });
    let watchers: Vec<_> = watchers.collect();
    let threads = join_all((0..20).map(|n| {
        let runtime = &runtime;
        async move {
            let key = create(runtime).await;
            start(runtime, key, &format!("a prompt of some length, {n}")).await;
            rests(runtime, key).await;
            (key.thread, runtime.thread(key).await.unwrap().seq)
        }
    }))
    .await;
    runtime.shutdown(LONG).await;
    let whole = Seen(threads.into_iter().map(|(thread, head)| (thread, (1..=head).collect())).collect());
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), whole);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_more_steps_than_a_watcher_may_have_waiting_reaches_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let mut config = Config { subscriber_bytes: 64 << 20, ..Config::new(dir.path()) };
    // While one commit is synced the others gather.
    config.store.sync_delay = Duration::from_millis(50);
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    let mut watch = watch(&runtime, None).await;
    let first = create(&runtime).await;
    assert!(watch.next().await.unwrap().events().all(|(_, event)| record(event).thread == first.thread));
    join_all((0..1_000).map(|_| create(&runtime))).await;
    assert!(runtime.health().commits < 500, "{} commits", runtime.health().commits);
    let mut seen = Seen::default();
    while seen.0.len() < 1_000 {
        let next = watch.next().await.unwrap();
        assert!(!next.is_last(), "{next:?}");
        seen.add(&next);
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_watcher_that_lags_is_cut_off_where_it_is_and_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let config = Config { subscriber_bytes: 1, ..Config::new(dir.path()) };
    let runtime = Runtime::start(config, ports(&model)).await.unwrap();
    let key = create(&runtime).await;
    let mut lags = watch(&runtime, Some(START)).await;
    let mut seen = Seen::default();
    // Twice: what is stored, and the first that happens.
    seen.add(&lags.next().await.unwrap());
    rename(&runtime, key, "0").await;
    seen.add(&lags.next().await.unwrap());
    for n in 1..5 {
        rename(&runtime, key, &n.to_string()).await;
    }
    let cut = loop {
        match lags.next().await.unwrap() {
            TenantNext::Gap { after } => break after,
            next => seen.add(&next),
        }
    };
    assert!(cut.position < 6, "{cut:?}");
    let mut resumed = watch(&runtime, Some(cut)).await;
    while seen.0[&key.thread].len() < 6 {
        seen.add(&resumed.next().await.unwrap());
    }
    assert_eq!(seen.0[&key.thread], [1, 2, 3, 4, 5, 6]);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_cursor_in_the_middle_of_a_step_goes_on_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let key = create(&runtime).await;
    start(&runtime, key, "x").await;
    rests(&runtime, key).await;
    let all = runtime.tenant_events(TENANT, Some(START), None, 999).await.unwrap();
    assert!(all.events.windows(2).any(|pair| pair[0].0.position == pair[1].0.position), "no step has two events");
    for (at, (cursor, _)) in all.events.iter().enumerate() {
        let rest = runtime.tenant_events(TENANT, Some(*cursor), None, 999).await.unwrap();
        assert_eq!(rest.events, all.events[at + 1..]);
        let mut watch = watch(&runtime, Some(*cursor)).await;
        if let Some((next, _)) = all.events.get(at + 1) {
            assert_eq!(watch.next().await.unwrap().events().next().unwrap().0, Some(*next));
        }
    }
    let beyond = TenantCursor { position: all.next.position + 1, seq: 1 };
    for refused in [
        runtime.subscribe_tenant(TENANT, Some(beyond), None).await.err().unwrap(),
        runtime.tenant_events(TENANT, Some(beyond), None, 9).await.err().unwrap(),
    ] {
        assert!(matches!(refused, Error::Refused(Refused::Invalid { field: "after", .. })), "{refused:?}");
    }
    let elsewhere = "other".parse().unwrap();
    assert!(runtime.subscribe_tenant(elsewhere, Some(all.next), None).await.is_err());
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_deletion_is_heard_by_who_watches_its_thread_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let model = TestModel::new();
    let runtime = runtime(dir.path(), &model).await;
    let [gone, stays] = [create(&runtime).await, create(&runtime).await];
    let filtered = |key: ThreadKey| runtime.subscribe_tenant(TENANT, None, Some(HashSet::from([key.thread])));
    let (mut watches_gone, mut watches_stays) = (filtered(gone).await.unwrap(), filtered(stays).await.unwrap());
    // One that is behind when it happens passes the thread over, and hears its last word.
    let mut behind = watch(&runtime, Some(START)).await;
    runtime.delete_thread(gone, Call::default()).await.unwrap();
    rename(&runtime, stays, "x").await;
    let is_deletion = |event: &StoredEvent| matches!(record(event).event, Event::ThreadDeleted(_));
    let heard = watches_gone.next().await.unwrap();
    assert!(heard.events().any(|(cursor, event)| cursor.is_none() && is_deletion(event)));
    let heard = watches_stays.next().await.unwrap();
    assert!(heard.events().all(|(_, event)| record(event).thread == stays.thread));
    let stored = behind.next().await.unwrap();
    assert!(stored.events().all(|(_, event)| record(event).thread == stays.thread), "{stored:?}");
    assert!(behind.next().await.unwrap().events().any(|(_, event)| is_deletion(event)));
    runtime.shutdown(LONG).await;
}
