//! Threads in memory: the same promises except durability, for tests and simulation.
//!
//! A view is a shared copy of the whole state, taken when it is asked for; a commit behind it copies what it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[cfg(feature = "planted")]
use raddle_domain::planted;
use raddle_domain::{
    event::{BadRecord, SCHEMA},
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    pack::{Packed, Run},
    ports::{
        Append, Chunk, Corrupt, Document, DocumentKind, Fed, Figures, Fork, Found, Listed, LogKind, LogStore,
        OwingPlace, Part, PartKind, PartName, Place, Receipt, RecordKind, SettledTurn, SpentBy, StoreError,
        StoredEvent, ThreadRow, View, Write, WriteRefused,
    },
    time::UnixMs,
};
use uuid::Uuid;

use super::{
    follows,
    packing::{self, Means},
    page::Page,
    rename::rename,
    unknown_turn, unordered,
};

mod tenant;

/// The store.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<Arc<State>>,
}

#[derive(Debug, Default, Clone)]
struct State {
    threads: BTreeMap<ThreadKey, Arc<Stored>>,
    receipts: BTreeMap<(TenantId, [u8; 32]), Receipt>,
    tenants: tenant::Tenants,
    /// What is to be packed: when the turn ended, and its number.
    unpacked: BTreeSet<(UnixMs, u64)>,
    /// Turns that were ever stored.
    turns: u64,
}

#[derive(Debug, Clone)]
struct Stored {
    row: ThreadRow,
    pieces: Vec<Piece>,
    turns: BTreeMap<Seq, SettledTurn>,
    /// The number of each turn, which is the same in every fork that shares it.
    numbers: BTreeMap<Seq, u64>,
    /// The last event that was written under another name.
    inherited: Seq,
    parts: BTreeMap<(PartKind, PartName), Arc<[u8]>>,
    /// Where the events up to and with a seq are counted: under the name of another thread.
    base: Option<(ThreadId, Seq)>,
    /// Bytes of the events that are counted under its own.
    bytes: u64,
}

/// Events that were stored together.
#[derive(Debug, Clone)]
struct Piece {
    first: Seq,
    places: Arc<[Packed]>,
}

impl Piece {
    fn of(chunk: &Chunk) -> Self {
        Self { first: chunk.first, places: chunk.events.iter().cloned().map(Packed::Event).collect() }
    }

    /// Each place with its first seq and its last.
    fn places(&self) -> impl Iterator<Item = (Seq, Seq, &Packed)> {
        let mut next = self.first;
        self.places.iter().map(move |place| {
            let first = next;
            next += packing::seqs(place);
            (first, next - 1, place)
        })
    }

    /// The events up to `at`, under another name.
    fn past(&self, at: Seq, name: ThreadId) -> Self {
        let named = |event: &StoredEvent| StoredEvent { json: named(&event.json, name).into(), ..event.clone() };
        let past = self.places().take_while(|(_, last, _)| *last <= at).map(|(_, _, place)| match place {
            Packed::Event(event) => Packed::Event(named(event)),
            Packed::Run(run) => Packed::Run(Run { event: named(&run.event), ..run.clone() }),
        });
        Self { first: self.first, places: past.collect() }
    }
}

fn named(json: &[u8], name: ThreadId) -> Vec<u8> {
    let mut json = json.to_vec();
    rename(&mut json, name);
    json
}

/// The event of a place.
fn event_of(place: &Packed) -> &StoredEvent {
    match place {
        Packed::Event(event) => event,
        Packed::Run(run) => &run.event,
    }
}

impl Stored {
    /// Joins the deltas of the turn that began at `from`.
    fn pack(&mut self, from: Seq) -> Result<(), BadRecord> {
        let places = self.pieces.iter().flat_map(Piece::places).skip_while(|(first, ..)| *first < from);
        let mut end = None;
        for (seq, _, place) in places {
            match packing::means(&event_of(place).name, seq, from) {
                Means::GoesOn => {}
                Means::Ends => {
                    end = Some(seq);
                    break;
                }
                Means::Another => break,
            }
        }
        let Some(end) = end else { return Ok(()) };
        let first = self.pieces.first().map_or(1, |piece| piece.first);
        let places = self.pieces.iter().flat_map(|piece| piece.places.iter().cloned()).collect();
        let places = packing::join(first, places, from, end)?;
        self.pieces = vec![Piece { first, places: places.into() }];
        Ok(())
    }

    fn put_parts(&mut self, parts: &[Part]) {
        for Part { kind, name, json } in parts {
            match json {
                Some(json) => self.parts.insert((*kind, *name), json.as_slice().into()),
                None => self.parts.remove(&(*kind, *name)),
            };
        }
    }
}

impl State {
    fn owned(&self, key: ThreadKey, fence: u64, expected: Seq) -> Result<Option<&Arc<Stored>>, WriteRefused> {
        let old = self.threads.get(&key);
        let (owner, found) = old.map_or((0, 0), |old| (old.row.head.fence, old.row.head.last_seq));
        #[cfg(feature = "planted")]
        if planted::is(planted::Fault::SkipFence) {
            return Ok(old);
        }
        if fence < owner {
            Err(WriteRefused::Fenced { fence, owner })
        } else if expected != found {
            Err(WriteRefused::Conflict { expected, found })
        } else {
            Ok(old)
        }
    }

    /// What a fork begins with: a copy of its parent's past, under its own name.
    fn forked(&self, key: ThreadKey, fork: Fork) -> Result<Stored, WriteRefused> {
        let Fork { parent, at } = fork;
        if let Some(old) = self.threads.get(&key) {
            return Err(WriteRefused::Conflict { expected: at, found: old.row.head.last_seq });
        }
        let parent = self.threads.get(&ThreadKey { thread: parent, ..key });
        let found = parent.map_or(0, |parent| parent.row.head.last_seq);
        let Some(parent) = parent.filter(|_| at <= found) else {
            return Err(WriteRefused::Conflict { expected: at, found });
        };
        let pieces = parent.pieces.iter().map(|piece| piece.past(at, key.thread));
        let seen = |turn: &&SettledTurn| turn.items.iter().all(|seq| *seq <= at);
        let turns = parent.turns.range(..=at).map(|(_, turn)| turn).filter(seen).map(|turn| {
            let reverted = turn.reverted.filter(|seq| *seq <= at);
            (turn.started_seq, SettledTurn { turn: named(&turn.turn, key.thread), reverted, ..turn.clone() })
        });
        let turns: BTreeMap<_, _> = turns.collect();
        Ok(Stored {
            row: parent.row.clone(),
            pieces: pieces.filter(|piece| !piece.places.is_empty()).collect(),
            numbers: parent
                .numbers
                .iter()
                .map(|(at, number)| (*at, *number))
                .filter(|(at, _)| turns.contains_key(at))
                .collect(),
            turns,
            inherited: at,
            parts: BTreeMap::new(),
            base: Some((self.owner(ThreadKey { thread: fork.parent, ..key }, at), at)),
            bytes: 0,
        })
    }

    /// Under whose name the event at `seq` of a thread is counted.
    fn owner(&self, mut key: ThreadKey, seq: Seq) -> ThreadId {
        while let Some((base, at)) = self.threads.get(&key).and_then(|stored| stored.base)
            && seq <= at
        {
            key.thread = base;
        }
        key.thread
    }

    /// What an erased thread leaves to its forks is counted with the one that left last.
    fn bequeath(&mut self, key: ThreadKey, gone: &Stored) {
        let is_child = |stored: &Stored| stored.base.is_some_and(|(parent, _)| parent == key.thread);
        let of_tenant = self.threads.iter_mut().filter(|(of, stored)| of.tenant == key.tenant && is_child(stored));
        let mut children: Vec<_> = of_tenant.map(|(of, stored)| (of.thread, Arc::make_mut(stored))).collect();
        let upto = |stored: &Stored| stored.base.map_or(0, |(_, at)| at);
        let Some(heir) = (0..children.len()).max_by_key(|at| upto(children[*at].1)) else { return };
        let (heir, stored) = children.swap_remove(heir);
        let (floor, at) = (upto(gone), upto(stored));
        let own = gone.pieces.iter().flat_map(Piece::places).filter(|(first, last, _)| *first > floor && *last <= at);
        let kept = super::codec::said_by(own.map(|(.., place)| event_of(place)));
        stored.bytes += kept.min(gone.bytes);
        stored.base = gone.base;
        for (_, child) in children {
            child.base = Some((heir, upto(child)));
        }
    }

    fn append(&mut self, append: &Append) -> Result<u64, WriteRefused> {
        let Append { key, expected, at, chunk, row, settled, reverted, receipts, fork, parts, .. } = append;
        follows(append)?;
        let mut stored = match fork {
            Some(fork) => {
                if let Err(fenced @ WriteRefused::Fenced { .. }) = self.owned(*key, row.head.fence, 0) {
                    return Err(fenced);
                }
                self.forked(*key, *fork)?
            }
            None => match self.owned(*key, row.head.fence, *expected)? {
                Some(old) => Stored::clone(old),
                None => Stored {
                    row: row.clone(),
                    pieces: Vec::new(),
                    turns: BTreeMap::new(),
                    numbers: BTreeMap::new(),
                    inherited: 0,
                    parts: BTreeMap::new(),
                    base: None,
                    bytes: 0,
                },
            },
        };
        let turns = &mut stored.turns;
        for turn in settled {
            if turn.started_seq <= stored.inherited {
                return Err(unordered(*key, turn.started_seq, stored.inherited));
            }
            let last = turns.last_key_value().map_or(0, |(last, _)| *last);
            if turn.started_seq <= last && !turns.contains_key(&turn.started_seq) {
                return Err(unordered(*key, turn.started_seq, last));
            }
            turns.insert(turn.started_seq, turn.clone());
        }
        for taken in reverted {
            let turn = turns.get_mut(&taken.started_seq).ok_or_else(|| unknown_turn(*key, taken.started_seq))?;
            turn.reverted.get_or_insert(taken.seq);
        }
        let known = |receipt: &Receipt| self.receipts.get(&(key.tenant, receipt.key));
        if receipts.iter().filter_map(known).any(|old| *at < old.expires_at) {
            return Err(WriteRefused::Repeated);
        }
        self.tenants.check(append)?;
        if !chunk.events.is_empty() {
            stored.pieces.push(Piece::of(chunk));
            stored.bytes += super::codec::said_by(&chunk.events);
        }
        for started in stored.turns.keys() {
            stored.numbers.entry(*started).or_insert_with(|| {
                self.turns += 1;
                self.unpacked.insert((*at, self.turns));
                self.turns
            });
        }
        stored.put_parts(parts);
        stored.row = row.clone();
        self.threads.insert(*key, Arc::new(stored));
        for receipt in receipts {
            self.receipts.insert((key.tenant, receipt.key), receipt.clone());
        }
        Ok(self.tenants.append(append))
    }
}

impl MemoryStore {
    /// Nothing is left half changed under this lock.
    fn state(&self) -> MutexGuard<'_, Arc<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogStore for MemoryStore {
    fn commit(&self, writes: &[Write]) -> Result<Vec<Result<u64, WriteRefused>>, StoreError> {
        let mut held = self.state();
        let state = Arc::make_mut(&mut held);
        let apply = |write: &Write| match write {
            // What says so is in no store of this kind: nothing of it outlives its process.
            Write::Close { .. } | Write::Sweep { .. } | Write::Import { .. } | Write::Open { .. } => {
                Err(WriteRefused::Closed("a store in memory closes no tenant"))
            }
            Write::Append(append) => state.append(append),
            Write::Put { tenant, documents } => {
                state.tenants.put(*tenant, documents);
                Ok(0)
            }
            Write::Documents { tenant, kind, documents } => {
                state.tenants.replace_documents(*tenant, *kind, documents);
                Ok(0)
            }
            Write::Forget { tenant, kind, id } => {
                state.tenants.forget_document(*tenant, *kind, *id);
                Ok(0)
            }
            Write::Erase { key, fence, expected } => {
                state.owned(*key, *fence, *expected)?;
                if let Some(gone) = state.threads.remove(key) {
                    state.bequeath(*key, &gone);
                }
                state.tenants.forget(*key);
                let State { threads, unpacked, .. } = state;
                let known =
                    |number| threads.values().any(|stored| stored.numbers.values().any(|known| *known == number));
                unpacked.retain(|(_, number)| known(*number));
                Ok(0)
            }
            // No row of this store is ever damaged.
            Write::Purge { key } => match state.threads.get(key) {
                Some(old) => Err(WriteRefused::Conflict { expected: 0, found: old.row.head.last_seq }),
                None => Ok(0),
            },
        };
        Ok(writes.iter().map(apply).collect())
    }

    fn figures(&self, tenant: TenantId) -> Result<Figures, StoreError> {
        let state = self.state().clone();
        let mut figures = Figures::default();
        for stored in state.threads.iter().filter(|(key, _)| key.tenant == tenant).map(|(_, stored)| stored) {
            figures.threads += u64::from(stored.row.head.kind == LogKind::Thread);
            figures.queued += u64::from(stored.row.head.queued);
            figures.bytes += stored.bytes;
        }
        Ok(figures)
    }

    fn view(&self) -> Result<Box<dyn View + '_>, StoreError> {
        Ok(Box::new(MemoryView(self.state().clone())))
    }

    fn epoch(&self) -> u64 {
        1
    }

    fn sweep_receipts(&self, now: UnixMs, limit: usize) -> Result<usize, StoreError> {
        let mut held = self.state();
        let state = Arc::make_mut(&mut held);
        let mut expired: Vec<_> = state.receipts.iter().map(|(key, receipt)| (receipt.expires_at, *key)).collect();
        expired.retain(|(at, _)| *at <= now);
        expired.sort_unstable();
        expired.truncate(limit);
        for (_, key) in &expired {
            state.receipts.remove(key);
        }
        Ok(expired.len())
    }

    fn pack(&self, before: UnixMs, limit: usize) -> Result<usize, StoreError> {
        let mut held = self.state();
        let state = Arc::make_mut(&mut held);
        let due: Vec<_> = state.unpacked.range(..=(before, u64::MAX)).take(limit).copied().collect();
        for (at, number) in &due {
            state.unpacked.remove(&(*at, *number));
            for stored in state.threads.values_mut() {
                let started = stored.numbers.iter().find(|(_, known)| *known == number).map(|(started, _)| *started);
                if let Some(started) = started
                    && let Err(error) = Arc::make_mut(stored).pack(started)
                {
                    tracing::error!(%error, "a turn is not packed");
                }
            }
        }
        Ok(due.len())
    }

    fn rest(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

struct MemoryView(Arc<State>);

impl MemoryView {
    fn pieces(&self, key: ThreadKey) -> &[Piece] {
        self.0.threads.get(&key).map_or(&[], |stored| &stored.pieces)
    }

    /// Logs whose work is indexed with that of threads, or all others.
    fn logs(&self, threads: bool) -> impl Iterator<Item = (&ThreadKey, &Arc<Stored>)> {
        let with_threads = |stored: &Stored| match stored.row.head.kind {
            LogKind::Thread | LogKind::Run => true,
            LogKind::Job | LogKind::Schedule => false,
        };
        self.0.threads.iter().filter(move |(_, stored)| with_threads(stored) == threads)
    }

    fn timers(&self, threads: bool) -> Vec<(UnixMs, ThreadKey)> {
        let timer = |(key, stored): (&ThreadKey, &Arc<Stored>)| stored.row.head.wake_at.map(|at| (at, *key));
        let mut timers: Vec<_> = self.logs(threads).filter_map(timer).collect();
        timers.sort_unstable();
        timers
    }

    fn owing_of(&self, threads: bool, cursor: Option<OwingPlace>, limit: usize) -> Vec<OwingPlace> {
        let place = |(key, stored): (&ThreadKey, &Arc<Stored>)| {
            let since = stored.row.head.owes_since?;
            Some(OwingPlace { tenant: key.tenant, since, thread: key.thread })
        };
        let mut places: Vec<_> = self.logs(threads).filter_map(place).collect();
        places.retain(|place| cursor.is_none_or(|cursor| *place > cursor));
        places.sort_unstable();
        places.truncate(limit);
        places
    }

    fn due_of(&self, threads: bool, until: UnixMs, limit: usize) -> Vec<(UnixMs, ThreadKey)> {
        self.timers(threads).into_iter().take_while(|(at, _)| *at <= until).take(limit).collect()
    }
}

impl View for MemoryView {
    fn row(&self, key: ThreadKey) -> Result<Option<ThreadRow>, StoreError> {
        Ok(self.0.threads.get(&key).map(|stored| stored.row.clone()))
    }

    fn events(&self, key: ThreadKey, after: Seq, limit: usize, bytes: usize) -> Result<Vec<Chunk>, StoreError> {
        let mut page = Page::new(limit, bytes);
        for piece in self.pieces(key) {
            page.begin();
            for (_, last, place) in piece.places().filter(|(_, last, _)| *last > after) {
                if page.is_full() {
                    return Ok(page.finish());
                }
                let event = match place {
                    Packed::Event(event) => event.clone(),
                    Packed::Run(run) => run.rest(SCHEMA, after).map_err(|why| {
                        StoreError::Corrupt(Corrupt { record: format!("log {key}/{last}"), why: why.to_string() })
                    })?,
                };
                page.push(last, event.name, event.json);
            }
        }
        Ok(page.finish())
    }

    fn event(&self, key: ThreadKey, seq: Seq) -> Result<Option<StoredEvent>, StoreError> {
        let mut places = self.pieces(key).iter().flat_map(Piece::places);
        Ok(places.find(|(_, last, _)| *last == seq).map(|(_, _, place)| event_of(place).clone()))
    }

    fn turns(&self, key: ThreadKey, after: Seq, limit: usize) -> Result<Vec<SettledTurn>, StoreError> {
        let Some(stored) = self.0.threads.get(&key) else { return Ok(Vec::new()) };
        let Some(from) = after.checked_add(1) else { return Ok(Vec::new()) };
        Ok(stored.turns.range(from..).take(limit).map(|(_, turn)| turn.clone()).collect())
    }

    fn turn(&self, key: ThreadKey, id: TurnId) -> Result<Option<SettledTurn>, StoreError> {
        let stored = self.0.threads.get(&key);
        Ok(stored.and_then(|stored| stored.turns.values().find(|turn| turn.id == id)).cloned())
    }

    fn turn_before(&self, key: ThreadKey, before: Seq) -> Result<Option<SettledTurn>, StoreError> {
        let stored = self.0.threads.get(&key);
        Ok(stored.and_then(|stored| stored.turns.range(..before).next_back()).map(|(_, turn)| turn.clone()))
    }

    fn list(&self, tenant: TenantId, cursor: Option<Place>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let is_thread = |stored: &Stored| stored.row.head.kind == LogKind::Thread;
        let of_tenant = self.0.threads.iter().filter(|(key, _)| key.tenant == tenant);
        let mut list: Vec<_> = of_tenant.filter(|(_, stored)| is_thread(stored)).collect();
        let place = |key: &ThreadKey, stored: &Stored| {
            let head = &stored.row.head;
            Place { at: head.owes_since.unwrap_or(head.listed_at), thread: key.thread }
        };
        list.retain(|(key, stored)| cursor.is_none_or(|cursor| place(key, stored) < cursor));
        list.sort_by_key(|(key, stored)| std::cmp::Reverse(place(key, stored)));
        let listed = |(key, stored): (&ThreadKey, &Arc<Stored>)| Listed {
            place: place(key, stored),
            row: Ok(stored.row.clone()),
        };
        Ok(list.into_iter().take(limit).map(listed).collect())
    }

    fn receipt(&self, tenant: TenantId, key: &[u8; 32], now: UnixMs) -> Result<Option<Receipt>, StoreError> {
        Ok(self.0.receipts.get(&(tenant, *key)).filter(|receipt| now < receipt.expires_at).cloned())
    }

    fn owing(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError> {
        Ok(self.owing_of(true, cursor, limit))
    }

    fn due(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        Ok(self.due_of(true, until, limit))
    }

    fn next_wake(&self) -> Result<Option<UnixMs>, StoreError> {
        Ok(self.timers(true).first().map(|(at, _)| *at))
    }

    fn owing_jobs(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError> {
        Ok(self.owing_of(false, cursor, limit))
    }

    fn due_jobs(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        Ok(self.due_of(false, until, limit))
    }

    fn next_job(&self, after: UnixMs) -> Result<Option<UnixMs>, StoreError> {
        Ok(self.timers(false).into_iter().map(|(at, _)| at).find(|at| *at > after))
    }

    fn feed(&self, tenant: TenantId, after: u64, limit: usize) -> Result<Vec<Fed>, StoreError> {
        Ok(self.0.tenants.feed(tenant, after, limit))
    }

    fn feed_head(&self, tenant: TenantId) -> Result<u64, StoreError> {
        Ok(self.0.tenants.feed_head(tenant))
    }

    fn feeds(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.0.tenants.feeds())
    }

    fn record(&self, tenant: TenantId, kind: RecordKind, id: Uuid) -> Result<Option<Found>, StoreError> {
        Ok(self.0.tenants.record(tenant, kind, id))
    }

    fn records(
        &self,
        tenant: TenantId,
        kind: RecordKind,
        thread: Option<ThreadId>,
        open: bool,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Found>, StoreError> {
        let wanted = |found: &&Found| {
            thread.is_none_or(|thread| found.thread == thread)
                && (found.open || !open)
                && after.is_none_or(|after| found.id > after)
        };
        Ok(self.0.tenants.records(tenant, kind).filter(wanted).take(limit).copied().collect())
    }

    fn spent(
        &self,
        tenant: TenantId,
        from: u32,
        to: u32,
        after: Option<(u32, ThreadId)>,
        limit: usize,
    ) -> Result<Vec<SpentBy>, StoreError> {
        let wanted =
            |by: &SpentBy| (from..=to).contains(&by.day) && after.is_none_or(|after| (by.day, by.thread) > after);
        Ok(self.0.tenants.spent(tenant).filter(wanted).take(limit).collect())
    }

    fn documents_after(
        &self,
        tenant: TenantId,
        kind: DocumentKind,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        Ok(self.0.tenants.documents(tenant, kind, after, limit))
    }

    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.0.tenants.recorded())
    }

    fn part(&self, key: ThreadKey, kind: PartKind, name: PartName) -> Result<Option<Vec<u8>>, StoreError> {
        let stored = self.0.threads.get(&key);
        Ok(stored.and_then(|stored| stored.parts.get(&(kind, name))).map(|json| json.to_vec()))
    }

    fn parts(
        &self,
        key: ThreadKey,
        kind: PartKind,
        after: Option<PartName>,
        limit: usize,
    ) -> Result<Vec<(PartName, Vec<u8>)>, StoreError> {
        let Some(stored) = self.0.threads.get(&key) else { return Ok(Vec::new()) };
        let from = after.map_or(Bound::Included((kind, PartName([0; 32]))), |after| Bound::Excluded((kind, after)));
        let parts = stored.parts.range((from, Bound::Included((kind, PartName([0xff; 32])))));
        Ok(parts.take(limit).map(|((_, name), json)| (*name, json.to_vec())).collect())
    }
}
