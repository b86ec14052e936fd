//! Reading from one commit. Every record is checked when it is read, and so is what connects records: a log without
//! a gap up to where its row says it ends, turns that name the one before them, a row beside every log.

use std::{borrow::Cow, cell::RefCell, ops::Bound};

use ::redb::{Key, ReadOnlyTable, ReadTransaction, TableDefinition, Value};
use bytes::Bytes;
use raddle_domain::{
    event,
    id::{Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{
        Chunk, Corrupt, Document, DocumentKind, Fed, Found, Listed, LogKind, OwingPlace, PartKind, PartName, Place,
        Receipt, RecordKind, SettledTurn, SpentBy, StoreError, StoredEvent, Stretch, ThreadRow, View,
    },
    time::UnixMs,
};
use uuid::Uuid;

use super::{
    super::{
        backend::Medium,
        codec::{self, Head, Sealed},
        keys::{
            self, Due, JOB_OWING, JOB_TIMERS, LOG, LogKey, OWING, Owing, OwingKey, PARTS, PartKey, RECEIPTS, RECENT,
            ReceiptKey, RecentKey, RowKey, StoreKey, THREADS, TIMERS, TURN_IDS, TURNS, TurnKey,
        },
        page::Page,
        rename::rename,
        tables,
    },
    Fault, Quiet, fenced,
    lineage::{Lineage, Part},
};

mod tenant;

type Rows = ReadOnlyTable<RowKey, &'static [u8]>;
type Turns = ReadOnlyTable<TurnKey, &'static [u8]>;

pub(super) struct RedbView<'s> {
    txn: Quiet<ReadTransaction>,
    medium: &'s dyn Medium,
    unpacked: RefCell<Option<(LogKey, Bytes)>>,
}

impl<'s> RedbView<'s> {
    pub(super) fn new(txn: ReadTransaction, medium: &'s dyn Medium) -> Self {
        Self { txn: Quiet::new(txn), medium, unpacked: RefCell::default() }
    }

    fn read<T>(&self, read: impl FnOnce() -> Result<T, Fault>) -> Result<T, StoreError> {
        fenced(read).map_err(|fault| fault.store_error(self.medium))
    }

    /// Reads the row with `parse`, if there is a thread.
    fn row_as<T>(
        &self,
        key: ThreadKey,
        parse: impl FnOnce(&RowKey, &[u8]) -> Result<T, Corrupt>,
    ) -> Result<Option<T>, Fault> {
        let row_key = RowKey::new(key);
        if let Some(bytes) = self.txn.open_table(THREADS)?.get(row_key)? {
            return parse(&row_key, bytes.value()).map(Some).map_err(Fault::Corrupt);
        }
        // "No such thread" is an answer that people act on: a row that was lost must not give it.
        match self.txn.open_table(LOG)?.range(LogKey::all(key))?.next().transpose()? {
            Some(_) => Err(Fault::Corrupt(row_key.corrupt("the row is missing, its log is there"))),
            None => Ok(None),
        }
    }

    fn head(&self, key: ThreadKey) -> Result<Option<Head>, Fault> {
        self.row_as(key, codec::read_head)
    }

    /// Calls `each` with the chunks that hold the events of `part` from `from` on, until it returns `false`.
    fn chunks(
        &self,
        part: &Part,
        from: Seq,
        mut each: impl FnMut(&Sealed<'_>) -> Result<bool, Corrupt>,
    ) -> Result<(), Fault> {
        let (key, last) = (part.owner, part.head.head.last_seq);
        let log = self.txn.open_table(LOG)?;
        let missing = |seq| Fault::Corrupt(LogKey::new(key, seq).corrupt("the record is missing"));
        let start = log.range(LogKey::new(key, 0)..=LogKey::new(key, from))?.next_back().transpose()?;
        let Some((start, _)) = start else { return Err(missing(from)) };
        let mut wanted: Option<Seq> = None;
        for entry in log.range(start.value()..=LogKey::new(key, Seq::MAX))? {
            let (at, bytes) = entry?;
            let at = at.value();
            let sealed = codec::open_chunk(&at, bytes.value()).map_err(Fault::Corrupt)?;
            let (first, end) = (sealed.first(), sealed.last());
            // A damaged page can lead outside of what was asked for.
            if at != LogKey::new(key, first) {
                return Err(missing(wanted.unwrap_or(from)));
            }
            match wanted {
                Some(wanted) if first != wanted => return Err(missing(wanted)),
                None if first > from => return Err(missing(from)),
                None if end < from => return Err(missing(end + 1)),
                _ => {}
            }
            if first <= part.floor() {
                let why = format!("it begins at {first}, the log behind {}", part.floor());
                return Err(Fault::Corrupt(at.corrupt(why)));
            }
            if end > last {
                let why = format!("it ends at {end}, the log at {last}");
                return Err(Fault::Corrupt(at.corrupt(why)));
            }
            if !each(&sealed).map_err(Fault::Corrupt)? || end >= last.min(part.upto) {
                return Ok(());
            }
            wanted = Some(end + 1);
        }
        Err(missing(wanted.unwrap_or(from)))
    }

    /// What the places of a chunk are read from. Items of one turn are read one by one, and mostly stand in the same
    /// chunk: the one that was unpacked last is kept.
    fn raw(&self, sealed: &Sealed<'_>) -> Result<Bytes, Corrupt> {
        if !sealed.is_packed() {
            return Ok(Bytes::from(sealed.raw()?.into_owned()));
        }
        let mut unpacked = self.unpacked.borrow_mut();
        match &*unpacked {
            Some((key, raw)) if *key == sealed.key() => Ok(raw.clone()),
            _ => {
                let raw = Bytes::from(sealed.raw()?.into_owned());
                *unpacked = Some((sealed.key(), raw.clone()));
                Ok(raw)
            }
        }
    }

    /// Reads of the turns of a thread's whole history, if there is a thread.
    fn turns_of<T>(
        &self,
        key: ThreadKey,
        read: impl FnOnce(&mut Lineage<'_, Rows>, &Turns) -> Result<T, Fault>,
    ) -> Result<Option<(T, Head)>, Fault> {
        let Some(head) = self.head(key)? else { return Ok(None) };
        let (rows, turns) = (self.txn.open_table(THREADS)?, self.txn.open_table(TURNS)?);
        Ok(Some((read(&mut Lineage::new(&rows, key, head), &turns)?, head)))
    }

    fn listed(&self, tenant: TenantId, cursor: Option<Place>, limit: usize) -> Result<Vec<Listed>, Fault> {
        let ((first, from), (last, to)) = keys::ends(tenant);
        // Strictly before the cursor: it names the last place of the page before.
        let before = cursor.map(|place| (ThreadKey { tenant, thread: place.thread }, place.at));
        let owing = self.txn.open_table(OWING)?;
        let recent = self.txn.open_table(RECENT)?;
        let mut owing = match before {
            Some((key, at)) => owing.range(OwingKey::new(first, from)..OwingKey::new(key, at))?,
            None => owing.range(OwingKey::new(first, from)..=OwingKey::new(last, to))?,
        }
        .rev()
        .map(|entry| -> Result<_, Fault> {
            let (key, mark) = entry?;
            let key = key.value();
            Ok((key.at(), codec::check_mark(&key, mark.value())))
        })
        .peekable();
        let mut recent = match before {
            Some((key, at)) => recent.range(RecentKey::new(first, from)..RecentKey::new(key, at))?,
            None => recent.range(RecentKey::new(first, from)..=RecentKey::new(last, to))?,
        }
        .rev()
        .map(|entry| -> Result<_, Fault> {
            let (key, mark) = entry?;
            let key = key.value();
            Ok((key.at(), codec::check_mark(&key, mark.value())))
        })
        .peekable();

        let mut list = Vec::new();
        while list.len() < limit {
            let place = |entry: Option<&Result<((UnixMs, ThreadId), _), _>>| match entry {
                Some(Ok((place, _))) => Some(*place),
                // A failure comes first, so that it is met.
                Some(Err(_)) => Some((UnixMs(u64::MAX), ThreadId::from_bytes([0xff; 16]))),
                None => None,
            };
            let owes = place(owing.peek()) >= place(recent.peek());
            let Some(entry) = (if owes { owing.next() } else { recent.next() }) else { break };
            let ((at, thread), mark) = entry?;
            let key = ThreadKey { tenant, thread };
            // It owes beside the threads. As its name tells what it is, it costs no read, and is not taken for a
            // damaged thread when its row is damaged.
            if key.is_run() {
                continue;
            }
            let row = match mark {
                Ok(()) => self.listed_row(key, at, owes)?,
                Err(corrupt) => Some(Err(corrupt)),
            };
            if let Some(row) = row {
                list.push(Listed { place: Place { at, thread }, row });
            }
        }
        Ok(list)
    }

    /// What an index says has something under way.
    fn owing_in<K: Owing + Key + for<'k> Value<SelfType<'k> = K>>(
        &self,
        table: TableDefinition<K, &'static [u8; 8]>,
        cursor: Option<OwingPlace>,
        limit: usize,
    ) -> Result<Vec<OwingPlace>, Fault> {
        let owing = self.txn.open_table(table)?;
        let after = cursor.map(|OwingPlace { tenant, since, thread }| K::make(ThreadKey { tenant, thread }, since));
        let range = match after {
            Some(after) => owing.range((Bound::Excluded(after), Bound::<K>::Unbounded))?,
            None => owing.range::<K>(..)?,
        };
        let mut places = Vec::new();
        for entry in range {
            if places.len() == limit {
                break;
            }
            let (key, mark) = entry?;
            let key: K = key.value();
            let (since, thread) = key.place_of();
            match (key.tenant(), codec::check_mark(&key, mark.value())) {
                (Some(tenant), Ok(())) => places.push(OwingPlace { tenant, since, thread }),
                // One damaged entry may not keep every other one from its work.
                _ => tracing::error!(table = K::TABLE, record = %key.place(), "a damaged entry is passed over"),
            }
        }
        Ok(places)
    }

    /// What an index says is due at or before `until`.
    fn due_in<K: Due + Key + for<'k> Value<SelfType<'k> = K>>(
        &self,
        table: TableDefinition<K, &'static [u8; 8]>,
        until: UnixMs,
        limit: usize,
    ) -> Result<Vec<(UnixMs, ThreadKey)>, Fault> {
        let mut due = Vec::new();
        for entry in self.txn.open_table(table)?.range(..=K::upto(until))? {
            if due.len() == limit {
                break;
            }
            let (key, mark) = entry?;
            let key: K = key.value();
            match (key.owner(), codec::check_mark(&key, mark.value())) {
                (Some(owner), Ok(())) if key.due_at() <= until => due.push((key.due_at(), owner)),
                _ => tracing::error!(table = K::TABLE, record = %key.place(), "a damaged entry is passed over"),
            }
        }
        Ok(due)
    }

    /// The first time in an index, behind `after`.
    fn next_in<K: Due + Key + for<'k> Value<SelfType<'k> = K>>(
        &self,
        table: TableDefinition<K, &'static [u8; 8]>,
        after: Option<UnixMs>,
    ) -> Result<Option<UnixMs>, Fault> {
        let timers = self.txn.open_table(table)?;
        let range = match after {
            Some(after) => timers.range((Bound::Excluded(K::upto(after)), Bound::<K>::Unbounded))?,
            None => timers.range::<K>(..)?,
        };
        for entry in range {
            let (key, mark) = entry?;
            let key: K = key.value();
            // Waking for an entry that is passed over when it is due would never end.
            if key.owner().is_some() && codec::check_mark(&key, mark.value()).is_ok() {
                return Ok(Some(key.due_at()));
            }
        }
        Ok(None)
    }

    /// The row that an index names; `None` when it is no thread's, or the thread is listed elsewhere.
    fn listed_row(
        &self,
        key: ThreadKey,
        at: UnixMs,
        as_owing: bool,
    ) -> Result<Option<Result<ThreadRow, Corrupt>>, Fault> {
        let (row, head) = match self.row_as(key, codec::read_row) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Some(Err(RowKey::new(key).corrupt("the row is missing, an index names it")))),
            Err(Fault::Corrupt(corrupt)) => return Ok(Some(Err(corrupt))),
            Err(other) => return Err(other),
        };
        let stands = if as_owing { head.head.owes_since } else { head.recent_at };
        Ok(if head.head.kind != LogKind::Thread {
            None
        } else if stands != Some(at) {
            Some(Err(RowKey::new(key).corrupt("an index names another time than the row")))
        } else if !as_owing && head.head.owes_since.is_some() {
            None
        } else {
            Some(Ok(row))
        })
    }

    fn part_of(&self, key: ThreadKey, kind: PartKind, name: PartName) -> Result<Option<Vec<u8>>, Fault> {
        let part_key = PartKey::new(key, kind, name);
        let parts = self.txn.open_table(PARTS)?;
        let Some(bytes) = parts.get(part_key)? else { return Ok(None) };
        codec::read_part(&part_key, bytes.value()).map(Some).map_err(Fault::Corrupt)
    }

    fn parts_of(
        &self,
        key: ThreadKey,
        kind: PartKind,
        mut after: Option<PartName>,
        limit: usize,
    ) -> Result<Vec<(PartName, Vec<u8>)>, Fault> {
        let mut found = Vec::new();
        for entry in self.txn.open_table(PARTS)?.range(PartKey::after(key, kind, after))?.take(limit) {
            let (at, bytes) = entry?;
            let at = at.value();
            let json = codec::read_part(&at, bytes.value()).map_err(Fault::Corrupt)?;
            let name = at.name();
            // A damaged page can lead outside of what was asked for; one that led back would keep a reader of pages
            // for ever.
            if at != PartKey::new(key, kind, name) || after.is_some_and(|after| name <= after) {
                return Err(Fault::Corrupt(at.corrupt("it stands where another part belongs")));
            }
            after = Some(name);
            found.push((name, json));
        }
        Ok(found)
    }
}

/// An event as the thread's own.
fn named(head: &Head, key: ThreadKey, seq: Seq, json: Bytes) -> Bytes {
    if seq > head.inherited {
        return json;
    }
    let mut json = json.to_vec();
    rename(&mut json, key.thread);
    json.into()
}

/// A turn as the thread's own.
fn named_turn(head: &Head, key: ThreadKey, mut turn: SettledTurn) -> SettledTurn {
    if turn.started_seq <= head.inherited {
        rename(&mut turn.turn, key.thread);
    }
    turn
}

impl View for RedbView<'_> {
    fn stretch(
        &self,
        table: &str,
        of: Option<TenantId>,
        after: Option<&[u8]>,
        bytes: usize,
    ) -> Result<Stretch, StoreError> {
        let Some(table) = tables::named(table) else {
            return Err(StoreError::Unavailable(format!("there is no table `{table}`")));
        };
        self.read(|| Ok(table.stretch(&self.txn, of, after, bytes)?))
    }

    fn row(&self, key: ThreadKey) -> Result<Option<ThreadRow>, StoreError> {
        self.read(|| Ok(self.row_as(key, codec::read_row)?.map(|(row, _)| row)))
    }

    fn events(&self, key: ThreadKey, after: Seq, limit: usize, bytes: usize) -> Result<Vec<Chunk>, StoreError> {
        self.read(|| {
            let mut page = Page::new(limit, bytes);
            let head = self.head(key)?.filter(|head| after < head.head.last_seq && limit > 0);
            let Some(head) = head else { return Ok(page.finish()) };
            let rows = self.txn.open_table(THREADS)?;
            let mut lineage = Lineage::new(&rows, key, head);
            for back in (0..=lineage.holding(after)?).rev() {
                let Some(part) = lineage.part(back)? else { continue };
                let from = after.max(part.floor()) + 1;
                // A fork may not have said anything of its own yet.
                if from > part.head.head.last_seq || page.is_full() {
                    continue;
                }
                self.chunks(&part, from, |sealed| {
                    page.begin();
                    // One copy for all events of the chunk, which then share it.
                    let raw = self.raw(sealed)?;
                    for place in sealed.places(&raw) {
                        let place = place?;
                        if place.last() <= after {
                            continue;
                        }
                        if page.is_full() || place.first > part.upto {
                            break;
                        }
                        if place.last() > part.upto {
                            let why = format!("deltas that were joined reach over the place of a fork, {}", part.upto);
                            return Err(sealed.key().corrupt(why));
                        }
                        let rest = place.rest(sealed, after)?;
                        let json = rest.unwrap_or_else(|| raw.slice_ref(place.json));
                        page.push(place.last(), event::name(place.name), named(&head, key, place.last(), json));
                    }
                    Ok(!page.is_full())
                })?;
            }
            Ok(page.finish())
        })
    }

    fn event(&self, key: ThreadKey, seq: Seq) -> Result<Option<StoredEvent>, StoreError> {
        self.read(|| {
            let head = self.head(key)?.filter(|head| (1..=head.head.last_seq).contains(&seq));
            let Some(head) = head else { return Ok(None) };
            let rows = self.txn.open_table(THREADS)?;
            let mut lineage = Lineage::new(&rows, key, head);
            let back = lineage.holding(seq - 1)?;
            let Some(part) = lineage.part(back)? else { return Ok(None) };
            let mut found = None;
            self.chunks(&part, seq, |sealed| {
                let raw = if sealed.is_packed() { Some(self.raw(sealed)?) } else { None };
                let raw = match &raw {
                    Some(raw) => Cow::Borrowed(&raw[..]),
                    None => sealed.raw()?,
                };
                for place in sealed.places(&raw) {
                    let place = place?;
                    if place.last() >= seq {
                        // Of deltas that were joined the last one is left.
                        found = Some(place).filter(|place| place.last() == seq).map(|place| place.event());
                        break;
                    }
                }
                Ok(false)
            })?;
            Ok(found.map(|event| StoredEvent { json: named(&head, key, seq, event.json), ..event }))
        })
    }

    fn turns(&self, key: ThreadKey, after: Seq, limit: usize) -> Result<Vec<SettledTurn>, StoreError> {
        self.read(|| {
            let found = self.turns_of(key, |lineage, turns| lineage.turns_after(turns, after, limit))?;
            let Some((list, head)) = found else { return Ok(Vec::new()) };
            Ok(list.into_iter().map(|turn| named_turn(&head, key, turn)).collect())
        })
    }

    fn turn(&self, key: ThreadKey, id: TurnId) -> Result<Option<SettledTurn>, StoreError> {
        self.read(|| {
            let ids = self.txn.open_table(TURN_IDS)?;
            let found = self.turns_of(key, |lineage, turns| lineage.turn(turns, &ids, id))?;
            Ok(found.and_then(|(turn, head)| Some(named_turn(&head, key, turn?))))
        })
    }

    fn turn_before(&self, key: ThreadKey, before: Seq) -> Result<Option<SettledTurn>, StoreError> {
        self.read(|| {
            let found = self.turns_of(key, |lineage, turns| lineage.turn_before(turns, before))?;
            Ok(found.and_then(|(turn, head)| Some(named_turn(&head, key, turn?))))
        })
    }

    fn list(&self, tenant: TenantId, cursor: Option<Place>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.read(|| self.listed(tenant, cursor, limit))
    }

    fn receipt(&self, tenant: TenantId, key: &[u8; 32], now: UnixMs) -> Result<Option<Receipt>, StoreError> {
        self.read(|| {
            let receipt_key = ReceiptKey::new(tenant, key);
            let receipts = self.txn.open_table(RECEIPTS)?;
            let Some(bytes) = receipts.get(receipt_key)? else { return Ok(None) };
            let receipt = codec::read_receipt(&receipt_key, key, bytes.value()).map_err(Fault::Corrupt)?;
            Ok((now < receipt.expires_at).then_some(receipt))
        })
    }

    fn owing(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError> {
        self.read(|| self.owing_in(OWING, cursor, limit))
    }

    fn due(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        self.read(|| self.due_in(TIMERS, until, limit))
    }

    fn next_wake(&self) -> Result<Option<UnixMs>, StoreError> {
        self.read(|| self.next_in(TIMERS, None))
    }

    fn owing_jobs(&self, cursor: Option<OwingPlace>, limit: usize) -> Result<Vec<OwingPlace>, StoreError> {
        self.read(|| self.owing_in(JOB_OWING, cursor, limit))
    }

    fn due_jobs(&self, until: UnixMs, limit: usize) -> Result<Vec<(UnixMs, ThreadKey)>, StoreError> {
        self.read(|| self.due_in(JOB_TIMERS, until, limit))
    }

    fn next_job(&self, after: UnixMs) -> Result<Option<UnixMs>, StoreError> {
        self.read(|| self.next_in(JOB_TIMERS, Some(after)))
    }

    fn feed(&self, tenant: TenantId, after: u64, limit: usize) -> Result<Vec<Fed>, StoreError> {
        self.read(|| self.fed(tenant, after, limit))
    }

    fn feed_head(&self, tenant: TenantId) -> Result<u64, StoreError> {
        self.read(|| self.fed_head(tenant))
    }

    fn feeds(&self) -> Result<Vec<TenantId>, StoreError> {
        self.read(|| self.fed_tenants())
    }

    fn record(&self, tenant: TenantId, kind: RecordKind, id: Uuid) -> Result<Option<Found>, StoreError> {
        self.read(|| self.found(tenant, kind, id))
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
        self.read(|| match thread {
            Some(thread) => self.found_in_thread(ThreadKey { tenant, thread }, kind, open, after, limit),
            None => self.found_in_tenant(tenant, kind, open, after, limit),
        })
    }

    fn spent(
        &self,
        tenant: TenantId,
        from: u32,
        to: u32,
        after: Option<(u32, ThreadId)>,
        limit: usize,
    ) -> Result<Vec<SpentBy>, StoreError> {
        self.read(|| self.spent_by(tenant, from, to, after, limit))
    }

    fn documents_after(
        &self,
        tenant: TenantId,
        kind: DocumentKind,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        self.read(|| self.documents_of(tenant, kind, after, limit))
    }

    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.read(|| self.recorded_tenants())
    }

    fn part(&self, key: ThreadKey, kind: PartKind, name: PartName) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|| self.part_of(key, kind, name))
    }

    fn parts(
        &self,
        key: ThreadKey,
        kind: PartKind,
        after: Option<PartName>,
        limit: usize,
    ) -> Result<Vec<(PartName, Vec<u8>)>, StoreError> {
        self.read(|| self.parts_of(key, kind, after, limit))
    }
}
