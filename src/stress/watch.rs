//! Watchers: what they saw of each thread, or run, so that it can be compared with the log.
//!
//! Kept are digests of events, not events. Whether a thread has a watcher is a matter of room: the first threads do.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use raddle_domain::id::Seq;
use serde::Deserialize;
use tokio::{sync::watch, task::JoinSet};

use super::{
    dice::Dice,
    world::{Who, World},
};

/// The most watchers, beside those that are slow on purpose.
const MOST: usize = 256;
/// How long one of those that are slow rests after each event.
const REST: Duration = Duration::from_millis(40);

/// An event as it was seen: its place, and a digest of its bytes.
pub type Glimpse = (Seq, u64);

/// What one watcher saw.
#[derive(Debug, Default)]
pub struct Watched {
    pub thread: String,
    pub slow: bool,
    pub seen: Vec<Glimpse>,
    /// Times that an event did not follow the last one.
    pub gaps: u64,
    /// Times that it came back.
    pub returns: u64,
}

/// All watchers.
#[derive(Default)]
pub struct Watchers {
    inner: Mutex<Inner>,
    /// The load is over: where logs end is what watchers have to come to.
    goals: watch::Sender<Option<Arc<Goals>>>,
}

type Goals = std::collections::BTreeMap<String, Seq>;

#[derive(Default)]
struct Inner {
    all: Vec<Arc<Mutex<Watched>>>,
    slow: usize,
    tasks: JoinSet<()>,
}

pub fn digest(event: &str) -> u64 {
    // It has fixed keys: two runs agree, and so do two readers.
    let mut hasher = DefaultHasher::new();
    event.hash(&mut hasher);
    hasher.finish()
}

#[derive(Deserialize)]
struct OfSeq {
    seq: Seq,
}

/// Begins to watch a thread, if there is room for more watchers.
pub fn begin(world: &Arc<World>, who: &Arc<Who>, thread: &str) {
    let (count, hangs_up) = world.plan.scenario.watchers();
    let mut inner = world.watchers.inner.lock().unwrap_or_else(PoisonError::into_inner);
    let quick = count.min(MOST.saturating_sub(inner.all.len() - inner.slow));
    // Each thread has one that is slow, until there are enough.
    let slow = usize::from(inner.slow < world.plan.slow_subscribers);
    for number in 0..quick + slow {
        let slow = number >= quick;
        inner.slow += usize::from(slow);
        let watched = Arc::new(Mutex::new(Watched { thread: thread.to_owned(), slow, ..Watched::default() }));
        let seed = world.plan.seed ^ inner.all.len() as u64;
        inner.all.push(watched.clone());
        let watcher = Watcher {
            world: world.clone(),
            who: who.clone(),
            watched,
            hangs_up: hangs_up.then(|| Dice::new(seed)),
            slow,
        };
        inner.tasks.spawn(watcher.watch(thread.to_owned()));
    }
}

impl Watchers {
    /// How many there are, or were, that are slow.
    pub fn slow(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).slow
    }

    /// Says where logs end, and waits until everybody has come there, or long enough. Everything that was seen.
    pub async fn finish(&self, goals: Goals, patience: Duration) -> Vec<Arc<Mutex<Watched>>> {
        self.goals.send_replace(Some(Arc::new(goals)));
        let (all, mut tasks) = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut inner.all), std::mem::take(&mut inner.tasks))
        };
        drop(tokio::time::timeout(patience, async { while tasks.join_next().await.is_some() {} }).await);
        all
    }
}

struct Watcher {
    world: Arc<World>,
    who: Arc<Who>,
    watched: Arc<Mutex<Watched>>,
    /// One that hangs up now and then.
    hangs_up: Option<Dice>,
    slow: bool,
}

impl Watcher {
    fn with<T>(&self, read: impl FnOnce(&mut Watched) -> T) -> T {
        read(&mut self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn last(&self) -> Seq {
        self.with(|watched| watched.seen.last().map_or(0, |(seq, _)| *seq))
    }

    async fn watch(mut self, thread: String) {
        let world = self.world.clone();
        let mut goals = world.watchers.goals.subscribe();
        loop {
            let goal = goals.borrow_and_update().as_ref().map(|goals| goals.get(&thread).copied().unwrap_or(0));
            if goal.is_some_and(|goal| self.last() >= goal) {
                return;
            }
            let served = world.served();
            let client = served.client_of(&self.who);
            let mut follow = match thread.starts_with("run_") {
                true => client.follow_run(&thread, self.last()),
                false => client.follow(&thread, self.last()),
            };
            let mut until = self.hangs_up.as_mut().map(|dice| 1 + dice.below(30));
            loop {
                let hurries = goals.borrow().is_some();
                let told = tokio::select! {
                    told = follow.next() => told,
                    () = world.after(served.number) => break,
                    // There is nothing to wait for, maybe.
                    Ok(()) = goals.changed() => break,
                };
                let Ok(Some(told)) = told else {
                    // Whatever is the matter is found by whoever compares.
                    drop(tokio::time::timeout(REST, world.after(served.number)).await);
                    break;
                };
                let Ok(OfSeq { seq }) = told.read() else { continue };
                self.with(|watched| watched.seen.push((seq, digest(&told.json))));
                if hurries && goal.is_some_and(|goal| seq >= goal) {
                    break;
                }
                if self.slow && !hurries {
                    tokio::time::sleep(REST).await;
                }
                until = until.map(|left| left - 1);
                if until == Some(0) {
                    break;
                }
            }
            let gaps = follow.gaps();
            self.with(|watched| {
                watched.gaps += gaps;
                watched.returns += 1;
            });
        }
    }
}

/// Why a watcher did not see the log, as far as it goes.
pub fn difference(watched: &Watched, log: &[Glimpse]) -> Option<String> {
    let (thread, seen) = (&watched.thread, &watched.seen);
    if watched.gaps > 0 {
        return Some(format!("a stream of thread {thread} left out events, {} times", watched.gaps));
    }
    let differs = seen.iter().zip(log).position(|(seen, stored)| seen != stored);
    match differs {
        Some(at) if seen[at].0 == log[at].0 => {
            Some(format!("event {} of thread {thread} is stored otherwise than a watcher was told it", log[at].0))
        }
        Some(at) => {
            Some(format!("a watcher of thread {thread} saw event {} in place of event {}", seen[at].0, log[at].0))
        }
        None if seen.len() < log.len() => {
            let (seq, _) = log[seen.len()];
            Some(format!("a watcher of thread {thread} never saw event {seq}, nor what followed it"))
        }
        None if seen.len() > log.len() => {
            Some(format!("a watcher of thread {thread} saw event {}, which is not stored", seen[log.len()].0))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seen: &[Glimpse], gaps: u64) -> Option<String> {
        let watched = Watched { thread: "T".to_owned(), seen: seen.to_vec(), gaps, ..Watched::default() };
        difference(&watched, &[(1, 10), (2, 20), (3, 30)])
    }

    #[test]
    fn a_watcher_has_to_see_the_log_and_nothing_else() {
        assert_eq!(told(&[(1, 10), (2, 20), (3, 30)], 0), None);
        let why = |seen: &[Glimpse]| told(seen, 0).unwrap();
        assert_eq!(why(&[(1, 10), (2, 20)]), "a watcher of thread T never saw event 3, nor what followed it");
        assert_eq!(why(&[(1, 10), (3, 30)]), "a watcher of thread T saw event 3 in place of event 2");
        assert_eq!(why(&[(1, 10), (2, 21)]), "event 2 of thread T is stored otherwise than a watcher was told it");
        assert_eq!(
            why(&[(1, 10), (2, 20), (3, 30), (4, 40)]),
            "a watcher of thread T saw event 4, which is not stored"
        );
        assert_eq!(told(&[(1, 10), (2, 20), (3, 30)], 1).unwrap(), "a stream of thread T left out events, 1 times");
    }
}
