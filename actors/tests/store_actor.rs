//! The one writer: who is told what, and when; and how it comes back from a failed disk. Time is paused: it moves
//! when nothing else can.

mod support;

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use raddle_actors::{
    batch::Batch,
    store::{AppendError, OnCommit, OnRecovered, StoreActor, StoreHandle, backend::Fault, backend::MemoryMedium},
};
use raddle_domain::{
    id::TenantId,
    ports::{Figures, LogStore, StoreError, View, Write, WriteRefused},
    time::UnixMs,
};
use support::{EIO, ENOSPC, append, redb, thread};
use tokio::{sync::Notify, task::LocalSet};

/// A store that can be made to panic, and counts.
struct Probed {
    inner: Box<dyn LogStore>,
    panics: AtomicBool,
    commits: Mutex<Vec<usize>>,
    rests: AtomicUsize,
    rested: Notify,
}

impl LogStore for Probed {
    fn commit(&self, writes: &[Write]) -> Result<Vec<Result<u64, WriteRefused>>, StoreError> {
        self.commits.lock().unwrap().push(writes.len());
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on cue");
        self.inner.commit(writes)
    }
    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        self.inner.view()
    }
    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        self.inner.figures(tenant)
    }
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.inner.sweep_receipts(now, limit)
    }
    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        self.inner.pack(before, limit)
    }
    fn rest(&self) -> Result<(), StoreError> {
        self.rests.fetch_add(1, Ordering::SeqCst);
        self.rested.notify_one();
        self.inner.rest()
    }
    fn reopen(&self) -> Result<(), StoreError> {
        self.inner.reopen()
    }
}

struct Scene {
    medium: MemoryMedium,
    store: Arc<Probed>,
    handle: StoreHandle,
    published: Arc<Mutex<Vec<Vec<Arc<Batch>>>>>,
    recovered: Arc<Notify>,
}

fn scene_with(start: impl FnOnce(Arc<dyn LogStore>, OnCommit, OnRecovered) -> StoreHandle) -> Scene {
    let medium = MemoryMedium::default();
    let store = Arc::new(Probed {
        inner: Box::new(redb(&medium)),
        panics: AtomicBool::new(false),
        commits: Mutex::default(),
        rests: AtomicUsize::new(0),
        rested: Notify::new(),
    });
    let published = Arc::new(Mutex::new(Vec::new()));
    let recovered = Arc::new(Notify::new());
    let (told, woken) = (published.clone(), recovered.clone());
    let handle = start(
        store.clone(),
        Arc::new(move |batches| told.lock().unwrap().push(batches)),
        Arc::new(move |_| woken.notify_one()),
    );
    Scene { medium, store, handle, published, recovered }
}

fn play<F: Future<Output = ()>>(test: impl FnOnce(Scene) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { test(scene_with(StoreActor::start_here)).await });
}

fn write(n: u8, expected: u64) -> Write {
    Write::Append(append(thread(1, n), expected, 1))
}

impl Scene {
    fn published(&self) -> Vec<Vec<(u8, u64)>> {
        let name = |batch: &Arc<Batch>| (batch.key.thread.as_bytes()[0], batch.chunk.first);
        self.published.lock().unwrap().iter().map(|batches| batches.iter().map(name).collect()).collect()
    }
    fn last_seq(&self, n: u8) -> u64 {
        self.store.view().unwrap().row(thread(1, n)).unwrap().map_or(0, |row| row.head.last_seq)
    }
    fn commits(&self) -> Vec<usize> {
        self.store.commits.lock().unwrap().clone()
    }
    fn writable(&self) -> bool {
        self.handle.stats().writable.load(Ordering::SeqCst)
    }
    fn fail(&self, errno: i32) {
        self.medium.set_fault(Some(Fault { at: 0, errno, lasting: true }));
    }
}

#[test]
fn what_waits_of_any_tenant_is_refused_when_a_commit_fails() {
    play(|scene| async move {
        scene.fail(EIO);
        let of = |tenant, n| Write::Append(append(thread(tenant, n), 0, 1));
        let writes: Vec<_> = (0..60).map(|n| scene.handle.append(of(1 + n % 3, n))).collect();
        for write in writes {
            assert!(matches!(write.await, Err(AppendError::Store(StoreError::Unavailable(_)))));
        }
        assert!(scene.commits().len() == 1 && scene.published().is_empty());
    });
}

#[test]
fn writes_that_wait_together_share_a_commit_and_reach_the_bus_in_order() {
    play(|scene| async move {
        let waiting: Vec<_> = (1..=50).map(|n| scene.handle.append(write(n, 0))).collect();
        for append in waiting {
            append.await.unwrap();
        }
        assert_eq!(scene.commits(), [50]);
        assert_eq!(scene.published(), [(1..=50).map(|n| (n, 1)).collect::<Vec<_>>()]);
        assert_eq!(scene.handle.stats().rows.load(Ordering::SeqCst), 50);
    });
}

#[test]
fn a_commit_has_a_bound_in_writes_and_in_bytes() {
    play(|scene| async move {
        let waiting: Vec<_> = (0..2500).map(|expected| scene.handle.append(write(1, expected))).collect();
        for append in waiting {
            append.await.unwrap();
        }
        assert_eq!(scene.commits(), [1024, 1024, 452]);
        let large = |n| {
            let mut step = append(thread(1, n), 0, 1);
            step.chunk.events[0].json = vec![b'7'; 700 << 10].into();
            scene.handle.append(Write::Append(step))
        };
        for append in [large(2), large(3), large(4)] {
            append.await.unwrap();
        }
        assert_eq!(scene.commits()[3..], [1, 1, 1]);
    });
}

#[test]
fn the_bus_is_told_before_the_writer_and_of_stored_steps_alone() {
    play(|scene| async move {
        let (good, bad) = (scene.handle.append(write(1, 0)), scene.handle.append(write(2, 7)));
        good.await.unwrap();
        assert_eq!(scene.published(), [[(1, 1)]]);
        let conflict = WriteRefused::Conflict { expected: 7, found: 0 };
        assert_eq!(bad.await, Err(AppendError::Refused(conflict)));
        let erase = Write::Erase { key: thread(1, 1), fence: 1, expected: 1 };
        scene.handle.append(erase).await.unwrap();
        assert_eq!((scene.published().len(), scene.last_seq(1)), (1, 0));
    });
}

#[test]
fn a_writer_that_goes_away_takes_nothing_back() {
    play(|scene| async move {
        drop(scene.handle.append(write(1, 0)));
        scene.handle.append(write(2, 0)).await.unwrap();
        assert_eq!((scene.last_seq(1), scene.published()), (1, vec![vec![(1, 1), (2, 1)]]));
    });
}

#[test]
fn after_an_io_error_appends_are_refused_until_the_store_is_open_again() {
    play(|scene| async move {
        scene.handle.append(write(1, 0)).await.unwrap();
        scene.fail(EIO);
        let failed = scene.handle.append(write(1, 1)).await;
        assert!(matches!(failed, Err(AppendError::Store(StoreError::Unavailable(_)))), "{failed:?}");
        assert!(!scene.writable());
        let commits = scene.commits().len();
        let refused = scene.handle.append(write(1, 1)).await;
        assert!(matches!(refused, Err(AppendError::Store(StoreError::Unavailable(_)))), "{refused:?}");
        assert_eq!(scene.commits().len(), commits);
        scene.medium.set_fault(None);
        scene.recovered.notified().await;
        assert!(scene.writable());
        let last = scene.last_seq(1);
        scene.handle.append(write(1, last)).await.unwrap();
        assert_eq!(scene.last_seq(1), last + 1);
    });
}

#[test]
fn what_waits_behind_a_failed_commit_is_refused_with_it() {
    play(|scene| async move {
        scene.fail(EIO);
        let waiting: Vec<_> = (0..1500).map(|expected| scene.handle.append(write(1, expected))).collect();
        for append in waiting {
            assert!(matches!(append.await, Err(AppendError::Store(StoreError::Unavailable(_)))));
        }
        assert_eq!(scene.commits(), [1024]);
        assert_eq!(scene.published().len(), 0);
    });
}

#[test]
fn a_disk_that_ran_full_is_used_again_when_there_is_room() {
    play(|scene| async move {
        scene.handle.append(write(1, 0)).await.unwrap();
        scene.fail(ENOSPC);
        // Whether the database says full or unavailable depends on where the room ran out; both heal.
        assert!(matches!(scene.handle.append(write(1, 1)).await, Err(AppendError::Store(_))));
        assert!(!scene.writable());
        scene.medium.set_fault(None);
        scene.recovered.notified().await;
        scene.handle.append(write(1, 1)).await.unwrap();
    });
}

#[test]
fn low_space_refuses_writes_and_is_over_without_a_write() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let medium = MemoryMedium::default();
        let store = raddle_actors::store::redb::RedbStore::open_medium(Arc::new(medium.clone()), 1 << 20, 1000);
        let recovered = Arc::new(Notify::new());
        let woken = recovered.clone();
        let on_recovered: OnRecovered = Arc::new(move |_| woken.notify_one());
        let handle = StoreActor::start_here(Arc::new(store.unwrap()), Arc::new(|_| {}), on_recovered);
        for room_comes_by_append in [true, false] {
            medium.set_free(999);
            for _ in 0..3 {
                assert_eq!(handle.append(write(1, 9)).await, Err(AppendError::Store(StoreError::Full)));
            }
            assert!(!handle.stats().writable.load(Ordering::SeqCst));
            medium.set_free(1000);
            if room_comes_by_append {
                handle.append(write(1, 0)).await.unwrap();
            }
            recovered.notified().await;
            assert!(handle.stats().writable.load(Ordering::SeqCst));
        }
        handle.append(write(1, 1)).await.unwrap();
    });
}

#[test]
fn a_panic_in_a_commit_is_an_error_and_not_the_end() {
    play(|scene| async move {
        scene.store.panics.store(true, Ordering::SeqCst);
        let failed = scene.handle.append(write(1, 0)).await;
        assert!(matches!(failed, Err(AppendError::Store(StoreError::Unavailable(_)))), "{failed:?}");
        scene.recovered.notified().await;
        scene.handle.append(write(1, 0)).await.unwrap();
    });
}

#[test]
fn the_store_rests_once_when_nothing_comes() {
    play(|scene| async move {
        scene.handle.append(write(1, 0)).await.unwrap();
        scene.store.rested.notified().await;
        // A day without work.
        tokio::time::advance(std::time::Duration::from_secs(86_400)).await;
        scene.handle.append(write(1, 1)).await.unwrap();
        assert_eq!(scene.store.rests.load(Ordering::SeqCst), 1);
        scene.store.rested.notified().await;
        assert_eq!(scene.store.rests.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn shutdown_stores_what_was_handed_over_and_closes() {
    play(|scene| async move {
        let waiting: Vec<_> = (0..1500).map(|expected| scene.handle.append(write(1, expected))).collect();
        scene.handle.shutdown().await;
        for append in waiting {
            append.await.unwrap();
        }
        assert_eq!(scene.store.rests.load(Ordering::SeqCst), 1);
        assert_eq!(scene.handle.append(write(1, 1500)).await, Err(AppendError::Closed));
        scene.handle.shutdown().await;
        assert_eq!(scene.last_seq(1), 1500);
    });
}

#[test]
fn the_store_works_on_an_arbiter_of_its_own() {
    actix::System::new().block_on(async {
        let arbiter = actix::Arbiter::new();
        let on = arbiter.handle();
        let scene = scene_with(|store, bus, on_recovered| StoreActor::start_in(&on, store, bus, on_recovered));
        let tasks: Vec<_> = (1..=20).map(|n| tokio::spawn(scene.handle.append(write(n, 0)))).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(scene.published().concat().len(), 20);
        scene.handle.shutdown().await;
        arbiter.stop();
    });
}
