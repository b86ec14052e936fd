//! What a tenant's feed holds after a cursor, read from one view.
//!
//! The feed names appends, the logs hold their events; both are read from the same commit. A thread that was deleted
//! since has no events any more. A log may be packed after it was written: what became one event belonged to several
//! appends, and between them may stand events of other threads. Such a delta is cut at the end of its append, so that
//! a reader may stop and go on at any place.

use raddle_domain::{
    event,
    id::{Seq, TenantId, ThreadId, ThreadKey},
    pack,
    ports::{Corrupt, Fed, StoreError, StoredEvent, View},
};

use super::tenant::Wanted;

/// Appends that one page looks at.
const ROWS: usize = 1_000;

/// A place among the events of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TenantCursor {
    /// The append in the feed; 0 before the first.
    pub position: u64,
    /// The event up to which the append was seen.
    pub seq: Seq,
}

/// A piece of what happened in a tenant's threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantPage {
    /// Each with the cursor behind it.
    pub events: Vec<(TenantCursor, StoredEvent)>,
    /// Threads whose events cannot be read, and why. The page goes on behind them.
    pub unavailable: Vec<(ThreadId, String)>,
    /// Where to go on.
    pub next: TenantCursor,
    /// Whether the feed may hold more.
    pub more: bool,
}

/// The newest place.
pub(crate) fn tenant_now(view: &dyn View, tenant: TenantId) -> Result<TenantCursor, StoreError> {
    let head = view.feed_head(tenant)?;
    let last = match head.checked_sub(1) {
        Some(before) => view.feed(tenant, before, 1)?.first().map(|fed| fed.last),
        None => None,
    };
    Ok(TenantCursor { position: head, seq: last.unwrap_or(0) })
}

/// Events of a tenant after `after`, as far as they are wanted: at most `limit`, and about `bytes` bytes.
pub(crate) fn tenant_page(
    view: &dyn View,
    tenant: TenantId,
    after: TenantCursor,
    wanted: &Wanted,
    limit: usize,
    bytes: usize,
) -> Result<TenantPage, StoreError> {
    // The append in which the cursor stands is looked at again: it may have been seen in part.
    let mut rows = view.feed(tenant, after.position.saturating_sub(1), ROWS)?;
    let more = rows.len() == ROWS;
    rows.retain(|row| (row.position, row.last) > (after.position, after.seq));
    let page = TenantPage { events: Vec::new(), unavailable: Vec::new(), next: after, more };
    let mut reading = Reading { view, tenant, page, limit, bytes };
    // Steps that follow each other in the feed and in their log are read at once.
    for run in rows.chunk_by(|row, next| row.thread == next.thread && row.last + 1 == next.first) {
        if wanted.has(ThreadKey { tenant, thread: run[0].thread }) && !reading.run(run, after)? {
            reading.page.more = true;
            break;
        }
        let last = run[run.len() - 1];
        reading.page.next = TenantCursor { position: last.position, seq: last.last };
    }
    Ok(reading.page)
}

/// A page in the making.
struct Reading<'v> {
    view: &'v dyn View,
    tenant: TenantId,
    page: TenantPage,
    /// How many events still fit.
    limit: usize,
    /// How many bytes still fit, about.
    bytes: usize,
}

impl Reading<'_> {
    /// Adds the events of a run of appends; whether all of them found room.
    fn run(&mut self, run: &[Fed], after: TenantCursor) -> Result<bool, StoreError> {
        match self.events(run, after) {
            // One damaged thread may not keep a reader from all the others.
            Err(StoreError::Corrupt(corrupt)) => {
                let thread = run[0].thread;
                if self.page.unavailable.iter().all(|(known, _)| *known != thread) {
                    self.page.unavailable.push((thread, corrupt.to_string()));
                }
                Ok(true)
            }
            read => read,
        }
    }

    fn events(&mut self, run: &[Fed], after: TenantCursor) -> Result<bool, StoreError> {
        let key = ThreadKey { tenant: self.tenant, thread: run[0].thread };
        let last = run[run.len() - 1].last;
        let mut from = run[0].first - 1;
        if run[0].position == after.position {
            from = from.max(after.seq);
        }
        while from < last {
            if self.limit == 0 {
                return Ok(false);
            }
            let chunks = self.view.events(key, from, self.limit, self.bytes)?;
            if chunks.is_empty() {
                return match self.view.row(key)? {
                    None => Ok(true),
                    Some(_) => Err(corrupt(key, from + 1, "the log ends before it, the feed does not").into()),
                };
            }
            let events = chunks.into_iter().flat_map(|chunk| (chunk.first..).zip(chunk.events));
            for (seq, event) in events {
                let (seq, event) =
                    if seq > last { (last, self.beginning(key, &event, from, last)?) } else { (seq, event) };
                let row = run[run.partition_point(|row| row.last < seq)];
                self.push(TenantCursor { position: row.position, seq }, event);
                from = seq;
                if from == last {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// The part up to `last` of a joined delta that goes on behind it.
    fn beginning(&self, key: ThreadKey, whole: &StoredEvent, prev: Seq, last: Seq) -> Result<StoredEvent, StoreError> {
        let rest = self.view.events(key, last, 1, 0)?.into_iter().flat_map(|chunk| chunk.events).next();
        let rest = rest.ok_or_else(|| corrupt(key, last, "the record is missing"))?;
        let part = pack::beginning(event::SCHEMA, whole, &rest, prev, last);
        Ok(part.map_err(|why| corrupt(key, last, &why.to_string()))?)
    }

    fn push(&mut self, cursor: TenantCursor, event: StoredEvent) {
        self.bytes = self.bytes.saturating_sub(event.json.len());
        self.limit = if self.bytes == 0 { 0 } else { self.limit.saturating_sub(1) };
        self.page.next = cursor;
        self.page.events.push((cursor, event));
    }
}

fn corrupt(key: ThreadKey, seq: Seq, why: &str) -> Corrupt {
    Corrupt { record: format!("log {key}/{seq}"), why: why.to_owned() }
}

#[cfg(test)]
mod tests;
