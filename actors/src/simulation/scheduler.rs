//! In which order things run here.
//!
//! The runtime below runs what is ready in the order in which it became ready, which is one order of the many that
//! threads would have. So each time that something is about to run, it may be put off: behind whatever else is ready,
//! or for some time. Which, follows from the seed and from what ran before, and from nothing else.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, Sleep, sleep},
};

use super::numbers::Numbers;
use crate::stage::On;

/// More than any process needs, which are some thousands.
const STEPS: u64 = 200_000;

/// How restless a scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    /// How often in a thousand a step is put off behind what else is ready.
    pub later: u64,
    /// How often in a thousand it is put off for some time,
    pub nap: u64,
    /// and for how long at most.
    pub longest_ms: u64,
    /// How long a read may take.
    pub read_ms: u64,
}

impl Manner {
    /// What is ready runs in order, and nothing takes time.
    pub const CALM: Self = Self { later: 0, nap: 0, longest_ms: 1, read_ms: 0 };
}

/// The scheduler of one process. Once it is dead nothing of it runs any more, wherever it stood.
pub(crate) struct Scheduler {
    manner: Manner,
    numbers: Mutex<Numbers>,
    dead: AtomicBool,
    steps: AtomicU64,
    /// Until when the store's disk does not answer.
    stalled: Mutex<Option<Instant>>,
    /// What panicked first, or how it else came to nothing.
    panicked: Mutex<Option<String>>,
    failed: Notify,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a step is made.
enum Turn {
    Now,
    Later,
    After(Duration),
}

impl Scheduler {
    pub fn new(manner: Manner, numbers: Numbers) -> Arc<Self> {
        Arc::new(Self {
            manner,
            numbers: Mutex::new(numbers),
            dead: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            stalled: Mutex::default(),
            panicked: Mutex::default(),
            failed: Notify::new(),
        })
    }

    /// Runs a task, inside a `LocalSet`.
    pub fn spawn<F: Future + 'static>(self: &Arc<Self>, task: F) -> JoinHandle<F::Output> {
        tokio::task::spawn_local(self.deferred(task))
    }

    /// Runs an actor.
    pub fn run(self: &Arc<Self>, on: On, actor: impl Future<Output = ()> + 'static) {
        let stalls = matches!(on, On::Store);
        drop(tokio::task::spawn_local(Deferred { stalls, ..self.deferred(actor) }));
    }

    /// Runs what would block a thread; here it takes its time and blocks nobody.
    pub fn blocking<T: 'static>(self: &Arc<Self>, work: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
        let wait = match self.manner.read_ms {
            0 => 0,
            longest => lock(&self.numbers).below(longest + 1),
        };
        self.spawn(async move {
            if wait > 0 {
                sleep(Duration::from_millis(wait)).await;
            }
            work()
        })
    }

    /// Makes a task one of those that run, or not, as is said here.
    pub fn deferred<F: Future>(self: &Arc<Self>, task: F) -> Deferred<F> {
        Deferred { scheduler: self.clone(), task: Box::pin(task), nap: None, stalls: false }
    }

    /// The process is dead from now on.
    pub fn die(&self) {
        self.dead.store(true, Relaxed);
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// The disk does not answer for some time.
    pub fn stall(&self, time: Duration) {
        *lock(&self.stalled) = Some(Instant::now() + time);
    }

    /// Steps that were made or put off.
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// What panicked first, if anything did.
    pub fn panicked(&self) -> Option<String> {
        lock(&self.panicked).clone()
    }

    /// Ready when something panicked.
    pub async fn failed(&self) {
        self.failed.notified().await;
    }

    fn fails(&self, why: String) {
        lock(&self.panicked).get_or_insert(why);
        self.failed.notify_one();
    }

    fn turn(&self, stalls: bool) -> Turn {
        if self.steps.fetch_add(1, Relaxed) == STEPS {
            self.die();
            self.fails(format!("after {STEPS} steps there is no end of it"));
        }
        if stalls && let Some(until) = lock(&self.stalled).take() {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Turn::After(left);
            }
        }
        let Manner { later, nap, longest_ms, .. } = self.manner;
        if later == 0 && nap == 0 {
            return Turn::Now;
        }
        let mut numbers = lock(&self.numbers);
        let drawn = numbers.below(1_000);
        if drawn < nap {
            // Mostly short.
            let longest = if numbers.chance(900) { longest_ms.min(5) } else { longest_ms };
            Turn::After(Duration::from_millis(numbers.within(1, longest)))
        } else if drawn < nap + later {
            Turn::Later
        } else {
            Turn::Now
        }
    }
}

/// A task whose steps are put off now and then.
pub(crate) struct Deferred<F> {
    scheduler: Arc<Scheduler>,
    task: Pin<Box<F>>,
    nap: Option<Pin<Box<Sleep>>>,
    /// Whether it is the one that waits for the disk.
    stalls: bool,
}

impl<F: Future> Future for Deferred<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if this.scheduler.is_dead() {
            return Poll::Pending;
        }
        match &mut this.nap {
            Some(nap) => {
                ready!(nap.as_mut().poll(cx));
                this.nap = None;
            }
            None => match this.scheduler.turn(this.stalls) {
                Turn::Now => {}
                Turn::Later => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Turn::After(time) => {
                    let nap = this.nap.insert(Box::pin(sleep(time)));
                    ready!(nap.as_mut().poll(cx));
                    this.nap = None;
                }
            },
        }
        match catch_unwind(AssertUnwindSafe(|| this.task.as_mut().poll(cx))) {
            Ok(polled) => polled,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let said = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                this.scheduler.fails(said.to_owned());
                resume_unwind(panic)
            }
        }
    }
}
