//! Threads in memory: the same promises except durability, for tests and simulation.
//!
//! A view is a shared copy of the whole state, taken when it is asked for; a commit behind it copies what it changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use raddle_domain::{
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{
        Append, Chunk, Document, DocumentKind, Fed, Fork, Found, Listed, LogStore, OwingPlace, Place, Receipt,
        RecordKind, SettledTurn, SpentBy, StoreError, StoredEvent, ThreadRow, View, Write, WriteRefused,
    },
    time::UnixMs,
};
use uuid::Uuid;

use super::{follows, page::Page, rename::rename, unknown_turn, unordered};

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
}

#[derive(Debug, Clone)]
struct Stored {
    row: ThreadRow,
    chunks: Vec<Chunk>,
    turns: BTreeMap<Seq, SettledTurn>,
    /// The last event that was written under another name.
    inherited: Seq,
}

impl State {
    fn owned(&self, key: ThreadKey, fence: u64, expected: Seq) -> Result<Option<&Arc<Stored>>, WriteRefused> {
        let old = self.threads.get(&key);
        let (owner, found) = old.map_or((0, 0), |old| (old.row.head.fence, old.row.head.last_seq));
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
        let named = |json: &[u8]| {
            let mut json = json.to_vec();
            rename(&mut json, key.thread);
            json
        };
        let past = |chunk: &Chunk| {
            let events = (chunk.first..=at).zip(&chunk.events);
            let event =
                |(_, event): (Seq, &StoredEvent)| StoredEvent { json: named(&event.json).into(), ..event.clone() };
            Chunk { first: chunk.first, events: events.map(event).collect() }
        };
        let chunks = parent.chunks.iter().map(past).filter(|chunk| !chunk.events.is_empty()).collect();
        let seen = |turn: &&SettledTurn| turn.items.iter().all(|seq| *seq <= at);
        let turns = parent.turns.range(..=at).map(|(_, turn)| turn).filter(seen).map(|turn| {
            let reverted = turn.reverted.filter(|seq| *seq <= at);
            (turn.started_seq, SettledTurn { turn: named(&turn.turn), reverted, ..turn.clone() })
        });
        Ok(Stored { row: parent.row.clone(), chunks, turns: turns.collect(), inherited: at })
    }

    fn append(&mut self, append: &Append) -> Result<u64, WriteRefused> {
        let Append { key, expected, at, chunk, row, settled, reverted, receipts, fork, .. } = append;
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
                None => Stored { row: row.clone(), chunks: Vec::new(), turns: BTreeMap::new(), inherited: 0 },
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
            stored.chunks.push(chunk.clone());
        }
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
            Write::Append(append) => state.append(append),
            Write::Documents { tenant, kind, documents } => {
                state.tenants.replace_documents(*tenant, *kind, documents);
                Ok(0)
            }
            Write::Erase { key, fence, expected } => {
                state.owned(*key, *fence, *expected)?;
                state.threads.remove(key);
                state.tenants.forget(*key);
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

    fn pack(&self, _before: UnixMs, _limit: usize) -> Result<usize, StoreError> {
        Ok(0)
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
    fn events_of(&self, key: ThreadKey) -> impl Iterator<Item = (Seq, &StoredEvent)> {
        let chunks = self.0.threads.get(&key).map_or(&[][..], |stored| &stored.chunks[..]);
        chunks.iter().flat_map(|chunk| (chunk.first..).zip(&chunk.events))
    }

    fn timers(&self) -> Vec<(UnixMs, ThreadKey)> {
        let timer = |(key, stored): (&ThreadKey, &Arc<Stored>)| stored.row.head.wake_at.map(|at| (at, *key));
        let mut timers: Vec<_> = self.0.threads.iter().filter_map(timer).collect();
        timers.sort_unstable();
        timers
    }
}

impl View for MemoryView {
    fn row(&self, key: ThreadKey) -> Result<Option<ThreadRow>, StoreError> {
        Ok(self.0.threads.get(&key).map(|stored| stored.row.clone()))
    }

    fn events(&self, key: ThreadKey, after: Seq, limit: usize, bytes: usize) -> Result<Vec<Chunk>, StoreError> {
        let mut page = Page::new(after, limit, bytes);
        let chunks = self.0.threads.get(&key).map_or(&[][..], |stored| &stored.chunks[..]);
        for chunk in chunks.iter().filter(|chunk| chunk.last() > after) {
            if page.is_full() {
                break;
            }
            page.begin(chunk.first);
            for (seq, event) in (chunk.first..).zip(&chunk.events) {
                if !page.skips(seq) && !page.is_full() {
                    page.push(event.name.clone(), event.json.clone());
                }
            }
        }
        Ok(page.finish())
    }

    fn event(&self, key: ThreadKey, seq: Seq) -> Result<Option<StoredEvent>, StoreError> {
        Ok(self.events_of(key).find(|(at, _)| *at == seq).map(|(_, event)| event.clone()))
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
        let mut list: Vec<_> = self.0.threads.iter().filter(|(key, _)| key.tenant == tenant).collect();
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
        let place = |(key, stored): (&ThreadKey, &Arc<Stored>)| {
            let since = stored.row.head.owes_since?;
            Some(OwingPlace { tenant: key.tenant, since, thread: key.thread })
        };
        let mut places: Vec<_> = self.0.threads.iter().filter_map(place).collect();
        places.retain(|place| cursor.is_none_or(|cursor| *place > cursor));
        places.sort_unstable();
        places.truncate(limit);
        Ok(places)
    }

    fn due(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        Ok(self.timers().into_iter().take_while(|(at, _)| *at <= until).take(limit).collect())
    }

    fn next_wake(&self) -> Result<Option<UnixMs>, StoreError> {
        Ok(self.timers().first().map(|(at, _)| *at))
    }

    fn feed(&self, tenant: TenantId, after: u64, limit: usize) -> Result<Vec<Fed>, StoreError> {
        Ok(self.0.tenants.feed(tenant, after, limit))
    }

    fn feed_head(&self, tenant: TenantId) -> Result<u64, StoreError> {
        Ok(self.0.tenants.feed_head(tenant))
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

    fn documents(&self, tenant: TenantId, kind: DocumentKind) -> Result<Vec<Document>, StoreError> {
        Ok(self.0.tenants.documents(tenant, kind))
    }
}
