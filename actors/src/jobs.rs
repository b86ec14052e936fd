//! Jobs and schedules: begins what is due, a bounded number at a time and the tenants in turn.
//!
//! ```text
//!   due in the store ──read──▶ ready (a queue per tenant) ──a place is free──▶ a task ──▶ Ended
//!        ▲                                                                       │ lease, run, report (`run`)
//!        └── job and schedule rows: `book` ◀── verbs of people (`verbs`) ◀───────┘ slots of schedules (`tick`)
//! ```
//! A job is changed in one place ([`book::update`]): read, judged by the machine, saved as one append that names the
//! seq it expects. So whoever wants something of a job, a person, its run, the clock, finds it as it is; a run that
//! lost its lease finds that out by the refusal. The actor owns no job: it owns the places, and the one sleeping timer.
//!
//! At the start whatever another process had under way is found by the index of that, and is lost by its class:
//! queued again, or uncertain. A turn goes on by itself; its job finds it again by the run's number.
//!
//! Absent on purpose: a poll per job, a cache of jobs, and a second writer of threads: a job of kind `turn` asks the
//! runtime for its turn as any caller does.

mod book;
mod run;
mod task;
mod tick;
mod verbs;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use raddle_domain::{
    id::{TenantId, ThreadKey},
    job::JobEvent,
    ports::StoreError,
    time::UnixMs,
};
use tokio::{sync::oneshot, task::AbortHandle};

pub(crate) use self::book::Locks;
pub use self::verbs::JobQuery;
use crate::{
    handle::{Error, WeakRuntime},
    system::Shared,
};

/// Entries of the index that are read at a time: jobs of other tenants that are due behind so many have to wait.
const SCAN: usize = 4_096;
/// The longest sleep: what a clock that was set back can cost.
const LONGEST: Duration = Duration::from_secs(60);
/// How long what met an error of the store is left alone.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Jobs {
    shared: Option<Arc<Shared>>,
    runtime: Option<WeakRuntime>,
    /// What is due and has no place yet, the tenants in turn.
    ready: VecDeque<(TenantId, VecDeque<ThreadKey>)>,
    known: HashSet<ThreadKey>,
    working: HashMap<ThreadKey, Working>,
    /// Of `working`, those that take a place.
    places: usize,
    /// What met an error of the store, until its pause is over: it is due all the while.
    resting: HashSet<ThreadKey>,
    /// What cannot be read: it is not tried again by this process.
    broken: HashSet<ThreadKey>,
    /// Tenants for whom nothing more is done, and who waits until nothing is.
    dismissed: Vec<(TenantId, oneshot::Sender<()>)>,
    sleep: Option<(UnixMs, SpawnHandle)>,
    scanning: Scanning,
}

struct Working {
    task: AbortHandle,
    /// Which task it is: an old one's last words are not those of the one that took its place.
    number: u64,
    waits: bool,
    /// Asked for again meanwhile.
    again: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Scanning {
    #[default]
    No,
    Yes,
    Again,
}

/// What all actors share, and the way to the runtime; the first message.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin(pub Arc<Shared>, pub WeakRuntime);

/// Something may be due that was not.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Look;

/// This log has something to be done about, whatever the index of times says.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Tend(pub ThreadKey);

/// The store is open again, and may hold what failed to be said.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Recover;

/// The run of this job was taken from it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Stop(pub ThreadKey);

/// Nothing is done any more for a tenant that is erased; answered when nothing is.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Dismiss(pub TenantId, pub oneshot::Sender<()>);

/// A turn waits for a person, or does no longer.
#[derive(Message)]
#[rtype(result = "()")]
struct Waits {
    key: ThreadKey,
    number: u64,
    waits: bool,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Ended {
    key: ThreadKey,
    number: u64,
    how: How,
}

/// How a task left a log.
#[derive(Debug)]
enum How {
    Done,
    /// To be tried again after a pause.
    Later,
    Broken,
}

/// What a task needs.
#[derive(Clone)]
struct Desk {
    shared: Arc<Shared>,
    runtime: WeakRuntime,
    key: ThreadKey,
    number: u64,
}

impl Desk {
    fn waits(&self, waits: bool) {
        self.shared.jobs.do_send(Waits { key: self.key, number: self.number, waits });
    }
}

impl Jobs {
    fn desk(&self) -> Option<(Arc<Shared>, WeakRuntime)> {
        Some((self.shared.clone()?, self.runtime.clone()?))
    }

    /// Reads what is due, then begins what has a place.
    fn scan(&mut self, ctx: &mut Context<Self>) {
        let Some((shared, _)) = self.desk() else { return };
        if self.scanning != Scanning::No {
            self.scanning = Scanning::Again;
            return;
        }
        self.scanning = Scanning::Yes;
        let now = shared.clock.now();
        let passed_over = self.known.len() + self.working.len() + self.resting.len() + self.broken.len();
        let limit = SCAN + passed_over;
        let store = shared.store.clone();
        let read = shared.tasks.blocking(move || {
            let view = store.view()?;
            Ok::<_, StoreError>((view.due_jobs(now, limit)?, view.next_job(now)?))
        });
        ctx.spawn(read.into_actor(self).map(move |read, this, ctx| {
            let again = std::mem::take(&mut this.scanning) == Scanning::Again;
            let next = match read {
                Ok(Ok((due, next))) => {
                    due.into_iter().for_each(|(_, key)| this.add(key));
                    next
                }
                failed => {
                    tracing::warn!(?failed, "cannot read which jobs are due; trying again");
                    Some(now.after(PAUSE))
                }
            };
            this.dispatch(ctx);
            if again {
                return this.scan(ctx);
            }
            this.arm(next.unwrap_or(UnixMs::LAST), ctx);
        }));
    }

    fn add(&mut self, key: ThreadKey) {
        let passed_over = self.working.contains_key(&key) || self.resting.contains(&key) || self.broken.contains(&key);
        if passed_over || !self.known.insert(key) {
            return;
        }
        match self.ready.iter_mut().find(|(tenant, _)| *tenant == key.tenant) {
            Some((_, queue)) => queue.push_back(key),
            None => self.ready.push_back((key.tenant, VecDeque::from([key]))),
        }
    }

    /// Begins what is ready while there is a place, a job of each tenant in turn.
    fn dispatch(&mut self, ctx: &mut Context<Self>) {
        let Some((shared, runtime)) = self.desk() else { return };
        while self.places < shared.config.jobs_concurrent.max(1) && !shared.draining() {
            let Some((tenant, mut queue)) = self.ready.pop_front() else { return };
            let Some(key) = queue.pop_front() else { continue };
            if !queue.is_empty() {
                self.ready.push_back((tenant, queue));
            }
            self.known.remove(&key);
            self.begin(key, Desk { shared: shared.clone(), runtime: runtime.clone(), key, number: 0 }, ctx);
        }
    }

    fn begin(&mut self, key: ThreadKey, desk: Desk, _: &mut Context<Self>) {
        let counters = &desk.shared.registry.counters.jobs;
        let number = counters.tasks.fetch_add(1, Relaxed) + 1;
        let desk = Desk { number, ..desk };
        let (jobs, tasks) = (desk.shared.jobs.clone(), desk.shared.tasks.clone());
        let task = tasks.spawn(run::tend(desk));
        let abort = task.abort_handle();
        tasks.spawn(async move {
            let how = match task.await {
                Ok(how) => how,
                // Whoever aborted it has something else to be done about the log.
                Err(why) if why.is_cancelled() => How::Done,
                Err(why) => {
                    tracing::error!(job = %key.thread, %why, "the work on a job failed");
                    How::Later
                }
            };
            jobs.do_send(Ended { key, number, how });
        });
        self.places += 1;
        self.working.insert(key, Working { task: abort, number, waits: false, again: false });
    }

    /// Ends the work on a log, and has it begun anew.
    fn stop(&mut self, key: ThreadKey) {
        match self.working.get_mut(&key) {
            Some(working) => {
                working.task.abort();
                working.again = true;
            }
            None => self.add(key),
        }
    }

    /// Ends the work for a tenant.
    fn dismiss(&mut self, tenant: TenantId, done: oneshot::Sender<()>) {
        self.ready.retain(|(of, _)| *of != tenant);
        self.known.retain(|key| key.tenant != tenant);
        for (_, working) in self.working.iter_mut().filter(|(key, _)| key.tenant == tenant) {
            working.task.abort();
            working.again = false;
        }
        self.dismissed.push((tenant, done));
        self.tell_dismissed();
    }

    /// Tells whoever waits for it that the work for a tenant has ended.
    fn tell_dismissed(&mut self) {
        let ended = |tenant: TenantId| !self.working.keys().any(|key| key.tenant == tenant);
        let over = self.dismissed.extract_if(.., |(tenant, _)| ended(*tenant));
        for (_, done) in over {
            // Nobody waits any more: it took too long.
            let _ = done.send(());
        }
    }

    /// Sleeps until `at`, unless it wakes before.
    fn arm(&mut self, at: UnixMs, ctx: &mut Context<Self>) {
        let Some(shared) = &self.shared else { return };
        if let Some((_, sleep)) = self.sleep.take() {
            ctx.cancel_future(sleep);
        }
        let wait = Duration::from_millis(at.since(shared.clock.now())).min(LONGEST);
        let sleep = ctx.run_later(wait, |this, ctx| {
            this.sleep = None;
            this.scan(ctx);
        });
        self.sleep = Some((at, sleep));
    }

    /// Finds what another process had under way, and what was taken from a run of this one without a word.
    fn recover(&mut self, ctx: &mut Context<Self>) {
        let Some((shared, _)) = self.desk() else { return };
        let working = self.working.keys().copied().collect();
        let owing = async move {
            let owing = book::recover(shared.clone()).await?;
            Ok::<_, Error>((owing, book::taken(&shared, working).await?))
        };
        ctx.spawn(owing.into_actor(self).map(|found, this, ctx| match found {
            Ok((owing, taken)) => {
                owing.into_iter().for_each(|key| this.add(key));
                taken.into_iter().for_each(|key| this.stop(key));
                this.scan(ctx);
            }
            Err(error) => {
                tracing::error!(%error, "cannot find the jobs that were under way; trying again");
                ctx.run_later(PAUSE, Self::recover);
            }
        }));
    }
}

impl Actor for Jobs {
    type Context = Context<Self>;
}

impl Handler<Begin> for Jobs {
    type Result = ();

    fn handle(&mut self, Begin(shared, runtime): Begin, ctx: &mut Self::Context) {
        (self.shared, self.runtime) = (Some(shared), Some(runtime));
        self.recover(ctx);
    }
}

impl Handler<Look> for Jobs {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Self::Context) {
        self.scan(ctx);
    }
}

impl Handler<Tend> for Jobs {
    type Result = ();

    fn handle(&mut self, Tend(key): Tend, ctx: &mut Self::Context) {
        match self.working.get_mut(&key) {
            Some(working) => working.again = true,
            None => self.add(key),
        }
        self.dispatch(ctx);
    }
}

impl Handler<Stop> for Jobs {
    type Result = ();

    fn handle(&mut self, Stop(key): Stop, ctx: &mut Self::Context) {
        self.stop(key);
        self.dispatch(ctx);
    }
}

impl Handler<Dismiss> for Jobs {
    type Result = ();

    fn handle(&mut self, Dismiss(tenant, done): Dismiss, _: &mut Self::Context) {
        self.dismiss(tenant, done);
    }
}

impl Handler<Recover> for Jobs {
    type Result = ();

    fn handle(&mut self, _: Recover, ctx: &mut Self::Context) {
        self.recover(ctx);
    }
}

impl Handler<Waits> for Jobs {
    type Result = ();

    fn handle(&mut self, Waits { key, number, waits }: Waits, ctx: &mut Self::Context) {
        let Some(working) = self.working.get_mut(&key).filter(|working| working.number == number) else { return };
        if std::mem::replace(&mut working.waits, waits) != waits {
            // One that goes on takes a place though there be none.
            self.places = if waits { self.places - 1 } else { self.places + 1 };
            self.dispatch(ctx);
        }
    }
}

impl Handler<Ended> for Jobs {
    type Result = ();

    fn handle(&mut self, Ended { key, number, how }: Ended, ctx: &mut Self::Context) {
        let known = self.working.get(&key).is_some_and(|working| working.number == number);
        let Some(ended) = self.working.remove(&key).filter(|_| known) else { return };
        self.places -= usize::from(!ended.waits);
        self.tell_dismissed();
        match how {
            How::Done if ended.again => self.add(key),
            How::Done => {}
            How::Later => {
                self.resting.insert(key);
                ctx.run_later(PAUSE, move |this, ctx| {
                    this.resting.remove(&key);
                    this.add(key);
                    this.dispatch(ctx);
                });
            }
            How::Broken => {
                self.broken.insert(key);
            }
        }
        self.dispatch(ctx);
        // What is due may be more than was read, or be this very one again.
        if self.ready.is_empty() {
            self.scan(ctx);
        }
    }
}

/// What became of jobs since the start of this process.
#[derive(Debug, Default)]
pub(crate) struct JobCounters {
    tasks: AtomicU64,
    pub running: AtomicU64,
    created: AtomicU64,
    runs: AtomicU64,
    retries: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    uncertain: AtomicU64,
    pub fired: AtomicU64,
    pub skipped: AtomicU64,
}

/// The same, as numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobFigures {
    /// Runs that are under way.
    pub running: u64,
    pub created: u64,
    pub runs: u64,
    pub retries: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub uncertain: u64,
    /// Slots of schedules for which a job was made, and those that were left out.
    pub fired: u64,
    pub skipped: u64,
}

impl JobCounters {
    fn made(&self) {
        self.created.fetch_add(1, Relaxed);
    }

    fn note(&self, event: JobEvent) {
        let counter = match event {
            JobEvent::Started => &self.runs,
            JobEvent::Retrying => &self.retries,
            JobEvent::Completed => &self.completed,
            JobEvent::Failed => &self.failed,
            JobEvent::Cancelled => &self.cancelled,
            JobEvent::Uncertain => &self.uncertain,
            JobEvent::Queued | JobEvent::Progress | JobEvent::Paused | JobEvent::Resumed => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub fn figures(&self) -> JobFigures {
        let is = |counter: &AtomicU64| counter.load(Relaxed);
        JobFigures {
            running: is(&self.running),
            created: is(&self.created),
            runs: is(&self.runs),
            retries: is(&self.retries),
            completed: is(&self.completed),
            failed: is(&self.failed),
            cancelled: is(&self.cancelled),
            uncertain: is(&self.uncertain),
            fired: is(&self.fired),
            skipped: is(&self.skipped),
        }
    }
}
