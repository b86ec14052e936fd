//! Reads: each from one consistent view of the last commit. No thread is loaded for them.

use raddle_domain::{
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Chunk, Place, SettledTurn, StoreError, View},
    record::{Admission, Approval, Item, ItemKind, Thread, ThreadStatus, Turn},
    thread::OpenTurn,
};

use crate::{
    disk,
    handle::{Error, Runtime, beyond},
    thread,
};

/// Rows of a listing that one call looks at before it hands over to the next page.
const EXAMINED: usize = 2_000;
/// Bytes of events in one page.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Turns read at a time.
const TURNS: usize = 256;

/// Which threads to list.
#[derive(Debug, Clone, Default)]
pub struct ThreadQuery {
    pub archived: Archived,
    pub status: Option<ThreadStatus>,
    /// Case-insensitive part of the title or of the id.
    pub q: Option<String>,
    pub after: Option<Place>,
    pub limit: usize,
}

/// Whether archived threads are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Archived {
    #[default]
    Without,
    With,
    Only,
}

/// A part of a list, and where the rest begins. A page may be shorter than asked for and still have a `next`.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, C> {
    pub data: Vec<T>,
    pub next: Option<C>,
}

/// A page of threads. Those whose record cannot be read are named, not hidden.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadPage {
    pub data: Vec<Thread>,
    pub unavailable: Vec<(ThreadId, String)>,
    pub next: Option<Place>,
}

/// Which items to list; oldest first.
#[derive(Debug, Clone, Default)]
pub struct ItemQuery {
    pub turn: Option<TurnId>,
    pub kind: Option<ItemKind>,
    pub after: Option<ItemPlace>,
    pub limit: usize,
}

/// Where in a thread's items: the turn, by the seq of its start, and how many of its items are behind us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemPlace {
    pub turn_started: Seq,
    pub items: u32,
}

/// A thread, whole, as of `seq`.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub thread: Thread,
    pub turns: Vec<Turn>,
    pub items: Vec<Item>,
    /// Those that wait for a decision.
    pub approvals: Vec<Approval>,
    pub inbox: Vec<Admission>,
    pub seq: Seq,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    pub chunks: Vec<Chunk>,
    /// Where the log ended when it was read.
    pub head: Seq,
}

impl Runtime {
    /// A thread's record.
    pub async fn thread(&self, key: ThreadKey) -> Result<Thread, Error> {
        let found =
            self.read_of(key.tenant, move |view| view.row(key)?.map(|row| disk::thread(key, &row)).transpose()).await?;
        found.ok_or(Error::NotFound("thread"))
    }

    /// Threads of a tenant, most recently updated first.
    pub async fn threads(&self, tenant: TenantId, query: ThreadQuery) -> Result<ThreadPage, Error> {
        self.read_of(tenant, move |view| list(view, tenant, &query)).await
    }

    /// Everything of a thread; events after its `seq` continue it exactly.
    pub async fn snapshot(&self, key: ThreadKey) -> Result<Snapshot, Error> {
        self.read_of(key.tenant, move |view| snapshot(view, key)).await?.ok_or(Error::NotFound("thread"))
    }

    /// Turns in order; the cursor is the seq at which the last one of the page started.
    pub async fn turns(&self, key: ThreadKey, after: Option<Seq>, limit: usize) -> Result<Page<Turn, Seq>, Error> {
        let read = move |view: &dyn View| {
            let Some(state) = thread::state(view, key)? else { return Ok(None) };
            let after = after.unwrap_or(0);
            let settled = view.turns(key, after, limit.saturating_add(1))?;
            let mut turns = Vec::with_capacity(settled.len() + 1);
            for turn in &settled {
                turns.push((turn.started_seq, disk::turn(key, turn)?));
            }
            let open = state.open().filter(|open| open.started_seq() > after);
            turns.extend(open.map(|open| (open.started_seq(), open.turn().clone())));
            let more = turns.len() > limit;
            turns.truncate(limit);
            let next = turns.last().map(|(seq, _)| *seq).filter(|_| more);
            Ok(Some(Page { data: turns.into_iter().map(|(_, turn)| turn).collect(), next }))
        };
        self.read_of(key.tenant, read).await?.ok_or(Error::NotFound("thread"))
    }

    /// One turn, open or ended.
    pub async fn turn(&self, key: ThreadKey, turn: TurnId) -> Result<Turn, Error> {
        let read = move |view: &dyn View| {
            let Some(row) = view.row(key)? else { return Ok(Err(Error::NotFound("thread"))) };
            if let Some(settled) = view.turn(key, turn)? {
                return disk::turn(key, &settled).map(Ok);
            }
            // Only an active turn is worth folding the tail for.
            let active = disk::thread(key, &row)?.active_turn == Some(turn);
            let state = if active { thread::state(view, key)? } else { None };
            let open = state.and_then(|state| state.open().map(|open| open.turn().clone()));
            Ok(open.ok_or(Error::NotFound("turn")))
        };
        self.read_of(key.tenant, read).await?
    }

    /// Items in the order in which they began.
    pub async fn items(&self, key: ThreadKey, query: ItemQuery) -> Result<Page<Item, ItemPlace>, Error> {
        self.read_of(key.tenant, move |view| items(view, key, &query)).await?
    }

    /// Prompts that wait, in the order in which they will run.
    pub async fn inbox(&self, key: ThreadKey) -> Result<Vec<Admission>, Error> {
        let read = move |view: &dyn View| {
            Ok(thread::state(view, key)?.map(|state| state.inbox().cloned().collect::<Vec<_>>()))
        };
        self.read_of(key.tenant, read).await?.ok_or(Error::NotFound("thread"))
    }

    /// Stored events after `after`, at most `limit`. An `after` beyond the head is refused as invalid.
    pub async fn events(&self, key: ThreadKey, after: Seq, limit: usize) -> Result<Events, Error> {
        let read = move |view: &dyn View| {
            let Some(row) = view.row(key)? else { return Ok(Err(Error::NotFound("thread"))) };
            let head = row.head.last_seq;
            if after > head {
                return Ok(Err(beyond(after, head)));
            }
            Ok(Ok(Events { chunks: view.events(key, after, limit, PAGE_BYTES)?, head }))
        };
        self.read_of(key.tenant, read).await?
    }
}

fn list(view: &dyn View, tenant: TenantId, query: &ThreadQuery) -> Result<ThreadPage, StoreError> {
    let q = query.q.as_deref().map(str::to_lowercase);
    let mut page = ThreadPage { data: Vec::new(), unavailable: Vec::new(), next: None };
    let mut after = query.after;
    let mut examined = 0;
    loop {
        let ask = query.limit.saturating_add(1).min(256);
        let rows = view.list(tenant, after, ask)?;
        let last = rows.len() < ask;
        for listed in rows {
            if page.data.len() == query.limit || examined == EXAMINED {
                page.next = after;
                return Ok(page);
            }
            examined += 1;
            after = Some(listed.place);
            let key = ThreadKey { tenant, thread: listed.place.thread };
            match listed.row.map_err(StoreError::from).and_then(|row| disk::thread(key, &row)) {
                Ok(thread) if matches(&thread, query, q.as_deref()) => page.data.push(thread),
                Ok(_) => {}
                Err(error) => page.unavailable.push((key.thread, error.to_string())),
            }
        }
        if last {
            return Ok(page);
        }
    }
}

fn matches(thread: &Thread, query: &ThreadQuery, q: Option<&str>) -> bool {
    let archived = match query.archived {
        Archived::Without => !thread.archived,
        Archived::With => true,
        Archived::Only => thread.archived,
    };
    let said = |q: &str| {
        thread.title.as_ref().is_some_and(|title| title.to_lowercase().contains(q)) || thread.id.to_string().contains(q)
    };
    archived && query.status.is_none_or(|status| status == thread.status) && q.is_none_or(said)
}

fn snapshot(view: &dyn View, key: ThreadKey) -> Result<Option<Snapshot>, StoreError> {
    let Some(state) = thread::state(view, key)? else { return Ok(None) };
    let (mut turns, mut all) = (Vec::new(), Vec::new());
    let mut after = 0;
    loop {
        let settled = view.turns(key, after, TURNS)?;
        for turn in &settled {
            after = turn.started_seq;
            turns.push(disk::turn(key, turn)?);
            all.extend(disk::items(view, key, turn)?);
        }
        if settled.len() < TURNS {
            break;
        }
    }
    if let Some(open) = state.open() {
        turns.push(open.turn().clone());
        all.extend(open.items().cloned());
    }
    let thread = state.view().clone();
    let inbox = state.inbox().cloned().collect();
    let approvals = state.open().map(|open| open.approvals().cloned().collect()).unwrap_or_default();
    Ok(Some(Snapshot { seq: thread.seq, thread, turns, items: all, approvals, inbox }))
}

/// A turn whose items are to be listed.
enum Listed<'a> {
    Settled(SettledTurn),
    Open(&'a OpenTurn),
}

impl Listed<'_> {
    fn started_seq(&self) -> Seq {
        match self {
            Self::Settled(turn) => turn.started_seq,
            Self::Open(turn) => turn.started_seq(),
        }
    }

    fn items(&self, view: &dyn View, key: ThreadKey) -> Result<Vec<Item>, StoreError> {
        match self {
            Self::Settled(turn) => disk::items(view, key, turn),
            Self::Open(turn) => Ok(turn.items().cloned().collect()),
        }
    }
}

fn items(
    view: &dyn View,
    key: ThreadKey,
    query: &ItemQuery,
) -> Result<Result<Page<Item, ItemPlace>, Error>, StoreError> {
    let Some(state) = thread::state(view, key)? else { return Ok(Err(Error::NotFound("thread"))) };
    let open = state.open();
    let mut page = Page { data: Vec::new(), next: None };
    let from = query.after.unwrap_or(ItemPlace { turn_started: 0, items: 0 });
    // The place names a turn that is not done with, so the walk begins at it, not after it.
    let mut before = from.turn_started.saturating_sub(1);
    loop {
        let mut turns: Vec<Listed<'_>> = match query.turn {
            Some(id) => match (view.turn(key, id)?, open.filter(|open| open.turn().id == id)) {
                (Some(turn), _) => vec![Listed::Settled(turn)],
                (None, Some(open)) => vec![Listed::Open(open)],
                (None, None) => return Ok(Err(Error::NotFound("turn"))),
            },
            None => view.turns(key, before, TURNS)?.into_iter().map(Listed::Settled).collect(),
        };
        let last = query.turn.is_some() || turns.len() < TURNS;
        if last && query.turn.is_none() {
            turns.extend(open.filter(|open| open.started_seq() > before).map(Listed::Open));
        }
        for turn in &turns {
            before = turn.started_seq();
            let behind = if before == from.turn_started { from.items as usize } else { 0 };
            for (index, item) in turn.items(view, key)?.into_iter().enumerate().skip(behind) {
                if page.data.len() == query.limit {
                    page.next = Some(ItemPlace { turn_started: before, items: index as u32 });
                    return Ok(Ok(page));
                }
                if query.kind.is_none_or(|kind| kind == item.kind) {
                    page.data.push(item);
                }
            }
        }
        if last {
            return Ok(Ok(page));
        }
    }
}
