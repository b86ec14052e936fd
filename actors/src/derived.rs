//! Logs of stored threads as lines of a trace: given as they are, or as what they must have been told, which the rules find
//! from what came of it. All from one view, without an actor.

use raddle_domain::{
    command::Limits,
    event::{Event, Record},
    id::{Seq, TenantId, ThreadKey},
    pack::spread,
    ports::{Corrupt, StoreError, View},
    time::UnixMs,
    trace::{Came, Derived, Header, Line, Logged, Told, derive, prices},
};

use crate::{
    disk,
    handle::{Error, Runtime},
};

/// Threads that are listed at a time.
const PAGE: usize = 256;
/// Events of a log that are read at a time.
const EVENTS: usize = 4_000;
const EVENTS_BYTES: usize = 4 * 1024 * 1024;

/// The threads of a tenant, or of all that there are, oldest first.
pub fn keys(view: &dyn View, tenant: Option<TenantId>) -> Result<Vec<ThreadKey>, StoreError> {
    let mut tenants = match tenant {
        Some(tenant) => vec![tenant],
        None => view.tenants()?.into_iter().chain([TenantId::DEFAULT]).collect(),
    };
    tenants.sort();
    tenants.dedup();
    let mut keys = Vec::new();
    for tenant in tenants {
        let mut after = None;
        loop {
            let page = view.list(tenant, after, PAGE)?;
            after = page.last().map(|last| last.place);
            keys.extend(page.iter().map(|listed| ThreadKey { tenant, thread: listed.place.thread }));
            if page.len() < PAGE {
                break;
            }
        }
    }
    keys.sort();
    Ok(keys)
}

/// The first line of a trace of these threads: as of their newest event, with the prices that their turns began with.
pub fn header(view: &dyn View, keys: &[ThreadKey], limits: Limits) -> Result<Header, StoreError> {
    let (mut began, mut newest) = (Vec::new(), UnixMs(0));
    for key in keys {
        let log = log(view, *key, Seq::MAX)?.unwrap_or_default();
        newest = newest.max(log.last().map_or(newest, |last| last.ts));
        began.extend(log.into_iter().filter(|record| matches!(record.event, Event::TurnStarted(_))));
    }
    Ok(Header::new(newest, limits, prices(&began)))
}

/// What a thread must have been told, under the limits and prices of `header`.
pub fn derived(view: &dyn View, key: ThreadKey, header: &Header) -> Result<Option<Derived>, StoreError> {
    let Some(log) = log(view, key, Seq::MAX)? else { return Ok(None) };
    let corrupt = |why: String| Corrupt { record: format!("log {key}"), why };
    Ok(Some(derive(header, key.tenant, &log).map_err(|why| corrupt(why.to_string()))?))
}

/// The line that a thread's trace begins with when it was there before: its log, up to `until`.
pub fn given(view: &dyn View, key: ThreadKey, until: Seq) -> Result<Option<Line>, StoreError> {
    let Some(log) = log(view, key, until)? else { return Ok(None) };
    let at = log.last().map_or(UnixMs(0), |last| last.ts);
    let came = Came::Events(log.into_iter().map(Logged).collect());
    let ThreadKey { tenant, thread } = key;
    Ok(Some(Line { tenant, thread, at, draining: false, minted: Vec::new(), told: Told::Given, came }))
}

/// A log up to `until`, without the places that are empty because deltas were joined.
fn log(view: &dyn View, key: ThreadKey, until: Seq) -> Result<Option<Vec<Record>>, StoreError> {
    let Some(row) = view.row(key)? else { return Ok(None) };
    let until = until.min(row.head.last_seq);
    let (mut log, mut after) = (Vec::new(), 0);
    while after < until {
        let chunks = view.events(key, after, EVENTS, EVENTS_BYTES)?;
        let Some(last) = chunks.last() else { break };
        after = last.last();
        for record in disk::records(key, &chunks) {
            log.extend(Some(record?).filter(|record| record.seq <= until));
        }
    }
    Ok(Some(spread(log)))
}

impl Runtime {
    /// See [`given`].
    pub(crate) async fn given(&self, key: ThreadKey, until: Seq) -> Result<Line, Error> {
        let given = self.read_of(key.tenant, move |view| given(view, key, until)).await?;
        given.ok_or(Error::NotFound("thread"))
    }

    /// What a stored thread must have been told, and the first line of its trace.
    pub async fn derive(&self, key: ThreadKey) -> Result<(Header, Derived), Error> {
        let limits = self.config().limits;
        let read = move |view: &dyn View| {
            let header = header(view, &[key], limits)?;
            Ok(derived(view, key, &header)?.map(|derived| (header, derived)))
        };
        self.read_of(key.tenant, read).await?.ok_or(Error::NotFound("thread"))
    }
}
