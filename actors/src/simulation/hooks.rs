//! Hooks: sinks that take what they are offered, among other things late or not at all, and what must hold of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use raddle_domain::{
    hook::{OnReject, REFUSALS, Since},
    id::{Seq, TenantId, ThreadKey},
    ports::{HookBatch, HookEvent, Sink, SinkError, SinkWork},
};
use tokio::time::{Instant, sleep};

use super::{
    client::tenant,
    plan::{Answer, Listener},
    witness::{Holds, Log, TENANT, place, unless},
    world::World,
};
use crate::{Hook, TWICE, hooks::GIVE_UP};

pub(crate) const CARRIED: &str = "a hook carries everything, in order";
pub(crate) const REPEATS: &str = "a hook repeats few";
pub(crate) const ONE_BATCH: &str = "a hook has one batch on its way, which it gives up in time";

/// How much later than it should something may be done where steps are put off.
const LATE: Duration = Duration::from_secs(2);

/// The hooks of a process.
pub(crate) fn configured(world: &Arc<World>, listeners: &[Listener], process: u32) -> Vec<Hook> {
    let hook = |(nth, listener): (usize, &Listener)| Hook {
        name: listener.name.into(),
        kind: "scripted",
        events: listener.events.clone(),
        tenants: listener.tenant.map(|of| [tenant(of)].into()),
        since: if listener.from_start { Since::Beginning } else { Since::Now },
        on_reject: if listener.skips { OnReject::Skip } else { OnReject::Retry },
        sink: Arc::new(ScriptedSink { world: world.clone(), nth, most: listener.most }),
    };
    let all = listeners.iter().enumerate();
    all.filter(|(_, listener)| listener.since_process <= process).map(hook).collect()
}

struct ScriptedSink {
    world: Arc<World>,
    /// Which of the hooks it is the sink of.
    nth: usize,
    most: usize,
}

impl Sink for ScriptedSink {
    fn most(&self) -> usize {
        self.most
    }

    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let (world, nth) = (self.world.clone(), self.nth);
        Box::pin(async move {
            let answer = world.offered(nth, &batch);
            let _busy = Busy { world: world.clone(), nth, since: Instant::now() };
            match answer {
                Answer::Takes { after_ms } => {
                    sleep(Duration::from_millis(after_ms)).await;
                    world.took(nth, &batch);
                    Ok(())
                }
                Answer::Refuses => Err(SinkError::Rejected("told to refuse".to_owned())),
                Answer::Away { retry_ms } => {
                    let retry_after = retry_ms.map(Duration::from_millis);
                    Err(SinkError::Unavailable { why: "told to be away".to_owned(), retry_after })
                }
                Answer::Gone => Err(SinkError::Unavailable { why: "nobody is there".to_owned(), retry_after: None }),
            }
        })
    }
}

/// A sink that has a batch in its hands.
struct Busy {
    world: Arc<World>,
    nth: usize,
    since: Instant,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.world.lays_down(self.nth, self.since.elapsed());
    }
}

/// Appends of a tenant's feed, in order: of which log, and from where to where.
pub(crate) type Feed = Vec<(ThreadKey, Seq, Seq)>;

pub(crate) type Logs = BTreeMap<ThreadKey, Log>;

/// An event's place in a tenant's feed: the append, and its own in the log.
type Place = (u64, Seq);

/// An event as it was said, whatever it is joined with.
type Part = (ThreadKey, Seq);

/// A hook as it is seen from outside.
pub(crate) struct Heard {
    pub listener: Listener,
    /// What its sink says next.
    answers: VecDeque<Answer>,
    /// How long each feed was when it began, if it has.
    began: Option<BTreeMap<TenantId, u64>>,
    tenants: BTreeMap<TenantId, Carried>,
    busy: bool,
}

/// What was taken of a tenant's events.
#[derive(Default)]
struct Carried {
    parts: BTreeSet<Part>,
    /// The last process from which an event was taken.
    taken: BTreeMap<Place, u32>,
    refusals: BTreeMap<Part, u32>,
    /// Up to here nothing is missing.
    whole: Place,
}

impl Heard {
    pub fn new(listener: &Listener) -> Self {
        let answers = listener.answers.clone().into();
        Self { listener: listener.clone(), answers, began: None, tenants: BTreeMap::new(), busy: false }
    }

    /// A process begins.
    pub fn starts(&mut self, process: u32, feeds: &BTreeMap<TenantId, Feed>) {
        self.busy = false;
        if self.listener.since_process <= process && self.began.is_none() {
            let lengths = feeds.iter().map(|(tenant, feed)| (*tenant, feed.len() as u64));
            self.began = Some(if self.listener.from_start { BTreeMap::new() } else { lengths.collect() });
        }
    }

    /// Where nobody was, somebody is.
    pub fn mend(&mut self) {
        self.answers.clear();
    }

    /// What its sink says to the next batch.
    pub fn answer(&mut self, batch: &HookBatch, feed: &Feed, logs: &Logs) -> Holds<Answer> {
        self.busy = true;
        let answer = match self.answers.front() {
            Some(Answer::Gone) => Answer::Gone,
            _ => self.answers.pop_front().unwrap_or(Answer::Takes { after_ms: 0 }),
        };
        if answer == Answer::Refuses {
            let refusals = &mut self.tenants.entry(batch.tenant).or_default().refusals;
            for on in &batch.events {
                parts(on, feed, logs)?.for_each(|part| *refusals.entry(part).or_default() += 1);
            }
        }
        Ok(answer)
    }

    /// Whether a process may offer this.
    pub fn offered(&mut self, process: u32, batch: &HookBatch, feed: &Feed, logs: &Logs) -> Holds {
        let (listener, name) = (&self.listener, self.listener.name);
        unless(!self.busy, ONE_BATCH, || format!("`{name}` has two"))?;
        unless(listener.tenant.is_none_or(|only| tenant(only) == batch.tenant), TENANT, || {
            format!("`{name}` carries events of {}", batch.tenant)
        })?;
        let is_wanted = batch.events.iter().all(|on| listener.events.wants(&on.event.name));
        unless(is_wanted && batch.events.len() <= listener.most, CARRIED, || {
            format!("`{name}` does not want so much, or something else: {:?}", batch.events)
        })?;
        let places: Vec<Place> = batch.events.iter().map(|on| (on.position, on.seq)).collect();
        unless(places.is_sorted_by(|before, place| before < place), CARRIED, || {
            format!("`{name}` is offered events in another order: {places:?}")
        })?;
        let mut offered = BTreeSet::new();
        for on in &batch.events {
            offered.extend(parts(on, feed, logs)?);
        }
        let (first, last) = (places[0], places[places.len() - 1]);
        let missed = self.missing(batch.tenant, feed, logs).take_while(|(place, _)| *place <= last);
        let missed = missed.map(|(_, part)| part).find(|part| !offered.contains(part));
        unless(missed.is_none(), CARRIED, || format!("`{name}` passes over {missed:?}, and offers {places:?}"))?;
        let Some(known) = self.tenants.get(&batch.tenant) else { return Ok(()) };
        let again = known.taken.range(first..);
        unless(again.clone().all(|(_, by)| *by < process), REPEATS, || {
            format!("`{name}` offers again what was taken from the same process: {places:?}")
        })?;
        unless(again.count() <= TWICE, REPEATS, || format!("`{name}` begins again with {first:?}"))
    }

    /// Its sink has taken a batch.
    pub fn took(&mut self, process: u32, batch: &HookBatch, feed: &Feed, logs: &Logs) -> Holds {
        let known = self.tenants.entry(batch.tenant).or_default();
        for on in &batch.events {
            known.parts.extend(parts(on, feed, logs)?);
            known.taken.insert((on.position, on.seq), process);
        }
        let next = self.missing(batch.tenant, feed, logs).next();
        let whole = next.map_or((feed.len() as u64, Seq::MAX), |((position, seq), _)| (position, seq - 1));
        self.tenants.entry(batch.tenant).or_default().whole = whole;
        Ok(())
    }

    /// It has no batch in its hands any more.
    pub fn lays_down(&mut self, after: Duration) -> Holds {
        self.busy = false;
        unless(after <= GIVE_UP + LATE, ONE_BATCH, || format!("`{}` waits for {after:?}", self.listener.name))
    }

    /// Nothing is under way, and every sink takes what comes.
    pub fn is_up_to_date(&self, tenant: TenantId, feed: &Feed, logs: &Logs) -> Holds {
        let missing = self.missing(tenant, feed, logs).next();
        unless(missing.is_none(), CARRIED, || {
            format!("`{}` has not carried {missing:?} of {}", self.listener.name, feed.len())
        })
    }

    /// What a tenant said since it began, and was neither taken nor given up, nor has gone with its log.
    fn missing<'a>(&'a self, of: TenantId, feed: &'a Feed, logs: &'a Logs) -> impl Iterator<Item = (Place, Part)> + 'a {
        let known = self.tenants.get(&of);
        let (whole, first) = known.map_or((0, 0), |known| known.whole);
        let is_theirs = self.listener.tenant.is_none_or(|only| tenant(only) == of);
        let began = self.began.as_ref().filter(|_| is_theirs);
        let from = began.map_or(u64::MAX, |began| began.get(&of).copied().unwrap_or_default());
        let appends = (1..).zip(feed).skip_while(move |(position, _)| *position <= from || *position < whole);
        let events = appends
            .flat_map(|(position, (key, first, last))| (*first..=*last).map(move |seq| ((position, seq), (*key, seq))));
        let is_settled = move |part: &Part| {
            let given_up = |known: &Carried| self.listener.skips && known.refusals.get(part) >= Some(&REFUSALS);
            known.is_some_and(|known| known.parts.contains(part) || given_up(known))
        };
        events.filter(move |(place, (key, seq))| {
            let there = logs.get(key).filter(|log| !log.gone);
            let stored = there.and_then(|log| log.events.get(*seq as usize - 1));
            let wanted = stored.is_some_and(|stored| self.listener.events.wants(&stored.name));
            *place > (whole, first) && wanted && !is_settled(&(*key, *seq))
        })
    }
}

/// What an event was said as, which must be what is stored in its place.
fn parts(on: &HookEvent, feed: &Feed, logs: &Logs) -> Holds<impl Iterator<Item = Part> + use<>> {
    let HookEvent { position, seq, event } = on;
    let said = place(event)?;
    let known = feed.get(*position as usize - 1).filter(|(_, first, last)| (*first..=*last).contains(seq));
    let known = known.and_then(|(key, ..)| Some((*key, logs.get(key)?)));
    let is_stored = match known {
        Some((_, log)) => said.seq == *seq && log.has(said.prev, *seq, event)?,
        None => false,
    };
    let key = known.map(|(key, _)| key).filter(|_| is_stored);
    unless(key.is_some(), CARRIED, || {
        format!("a hook is offered what is not stored: {} at {position}, {seq}", event.name)
    })?;
    Ok((said.prev + 1..=*seq).filter_map(move |seq| Some((key?, seq))))
}
