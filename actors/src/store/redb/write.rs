//! One write inside a transaction: everything is checked before anything is written, so a refused write leaves no
//! trace while its neighbours are stored. Indexes follow the row's head, by comparing the old one with the new.

use std::collections::{BTreeMap, HashMap};

use ::redb::{ReadableTable, Table, WriteTransaction};
#[cfg(feature = "planted")]
use raddle_domain::planted;
use raddle_domain::{
    closed::State,
    id::{Seq, TenantId, ThreadKey},
    ports::{Append, Fork, LogKind, Write, WriteRefused},
    time::UnixMs,
};

use super::{
    super::{
        codec::{self, Head, TurnRecord},
        keys::{
            EXPIRY, ExpiryKey, FORKS, ForkKey, JOB_OWING, JOB_TIMERS, JobOwingKey, JobTimerKey, LOG, LogKey, OWING,
            OwingKey, PARTS, PartKey, RECEIPTS, RECENT, ReceiptKey, RecentKey, RowKey, StoreKey, THREADS, TIMERS,
            TURN_IDS, TURNS, TimerKey, TurnIdKey, TurnKey, UNPACKED, UnpackedKey,
        },
    },
    Fault,
    figures::Change,
    lineage::{self, Lineage, Part},
};

type Records<'t, K> = Option<Table<'t, K, &'static [u8]>>;
type Marks<'t, K> = Option<Table<'t, K, &'static [u8; 8]>>;

/// The tables of one transaction; each is opened when it is first needed, because a table that was opened costs
/// pages.
pub(super) struct Tables<'t> {
    pub(super) txn: &'t WriteTransaction,
    pub(super) log: Records<'t, LogKey>,
    pub(super) threads: Records<'t, RowKey>,
    pub(super) turns: Records<'t, TurnKey>,
    pub(super) turn_ids: Records<'t, TurnIdKey>,
    pub(super) forks: Records<'t, ForkKey>,
    pub(super) unpacked: Records<'t, UnpackedKey>,
    receipts: Records<'t, ReceiptKey>,
    expiry: Marks<'t, ExpiryKey>,
    owing: Marks<'t, OwingKey>,
    recent: Marks<'t, RecentKey>,
    timers: Marks<'t, TimerKey>,
    job_owing: Marks<'t, JobOwingKey>,
    job_timers: Marks<'t, JobTimerKey>,
    parts: Records<'t, PartKey>,
    tenant: tenant::TenantTables<'t>,
    /// What this transaction does to the figures of tenants.
    pub(super) changes: HashMap<TenantId, Change>,
    /// Tenants that are closed, and why.
    pub(super) closed: HashMap<TenantId, State>,
}

/// The table in the slot, opened if it is not.
macro_rules! open {
    ($self:ident.$slot:ident, $definition:ident) => {
        match &mut $self.$slot {
            Some(table) => table,
            slot => slot.insert($self.txn.open_table($definition)?),
        }
    };
}
pub(super) use open;

/// Moves an index entry from where the old head says to where the new one says.
macro_rules! shift {
    ($self:ident.$slot:ident, $definition:ident, $kind:ident, $key:expr, $old:expr, $new:expr) => {
        let (old, new): (Option<UnixMs>, Option<UnixMs>) = ($old, $new);
        if old != new {
            let table = open!($self.$slot, $definition);
            if let Some(at) = old {
                table.remove($kind::new($key, at))?;
            }
            if let Some(at) = new {
                let key = $kind::new($key, at);
                table.insert(key, &codec::seal_mark(&key))?;
            }
        }
    };
}

/// The records of turns that an append writes.
struct TurnRecords {
    records: BTreeMap<Seq, TurnRecord>,
    /// The newest of all, then.
    last_turn: Seq,
    /// The turns that end with it.
    ends: Vec<Seq>,
}

/// What a write may do, or why not.
type Checked<T> = Result<T, WriteRefused>;

mod closed;
mod tenant;

impl<'t> Tables<'t> {
    pub(super) fn new(txn: &'t WriteTransaction, closed: HashMap<TenantId, State>) -> Self {
        Self {
            txn,
            log: None,
            threads: None,
            turns: None,
            turn_ids: None,
            forks: None,
            unpacked: None,
            receipts: None,
            expiry: None,
            owing: None,
            recent: None,
            timers: None,
            job_owing: None,
            job_timers: None,
            parts: None,
            tenant: tenant::TenantTables::new(txn),
            changes: HashMap::new(),
            closed,
        }
    }

    pub(super) fn apply(&mut self, write: &Write) -> Result<Checked<u64>, Fault> {
        let opens =
            matches!(write, Write::Close { .. } | Write::Sweep { .. } | Write::Import { .. } | Write::Open { .. });
        if let Some(state) = self.closed.get(&write.tenant())
            && !opens
        {
            return Ok(Err(WriteRefused::Closed(state.why())));
        }
        match write {
            Write::Append(append) => self.append(append),
            Write::Erase { key, fence, expected } => Ok(self.erase(*key, *fence, *expected)?.map(|()| 0)),
            Write::Purge { key } => Ok(self.purge(*key)?.map(|()| 0)),
            Write::Put { tenant, documents } => {
                self.tenant.put_documents(*tenant, documents)?;
                Ok(Ok(0))
            }
            Write::Documents { tenant, kind, documents } => {
                self.tenant.replace_documents(*tenant, *kind, documents)?;
                Ok(Ok(0))
            }
            Write::Forget { tenant, kind, id } => {
                self.tenant.forget_document(*tenant, *kind, id)?;
                Ok(Ok(0))
            }
            Write::Close { tenant, to, at } => self.close(*tenant, *to, *at),
            Write::Sweep { tenant, at } => self.sweep(*tenant, *at),
            Write::Import { tenant, records } => self.import(*tenant, records),
            Write::Open { tenant, documents } => self.open(*tenant, documents),
        }
    }

    /// What this transaction does to the figures of a tenant.
    pub(super) fn change(&mut self, tenant: TenantId) -> &mut Change {
        self.changes.entry(tenant).or_default()
    }

    /// The head of the thread's row if `fence` and `expected` fit; nothing for a thread that does not exist.
    fn owned(&mut self, key: ThreadKey, fence: u64, expected: Seq) -> Result<Checked<Option<Head>>, Fault> {
        let row_key = RowKey::new(key);
        let row = open!(self.threads, THREADS).get(row_key)?;
        let old = match row.map(|bytes| codec::read_head(&row_key, bytes.value())).transpose() {
            Ok(old) => old,
            Err(corrupt) => return Ok(Err(corrupt.into())),
        };
        // A row that is missing beside its log was lost; a new thread over it would hide that.
        if old.is_none() && open!(self.log, LOG).range(LogKey::all(key))?.next().transpose()?.is_some() {
            return Ok(Err(row_key.corrupt("the row is missing, its log is there").into()));
        }
        let (owner, found) = old.map_or((0, 0), |old| (old.head.fence, old.head.last_seq));
        #[cfg(feature = "planted")]
        if planted::is(planted::Fault::SkipFence) {
            return Ok(Ok(old));
        }
        Ok(if fence < owner {
            Err(WriteRefused::Fenced { fence, owner })
        } else if expected != found {
            Err(WriteRefused::Conflict { expected, found })
        } else {
            Ok(old)
        })
    }

    /// The head under which the events of an append begin, and whether the thread is new.
    fn begun(&mut self, append: &Append) -> Result<Checked<(Head, bool)>, Fault> {
        let Append { key, expected, row, fork, .. } = append;
        let Some(fork) = fork else {
            let old = match self.owned(*key, row.head.fence, *expected)? {
                Ok(old) => old,
                Err(refused) => return Ok(Err(refused)),
            };
            // Forks that still name it would take what is new for their past.
            if old.is_none() && open!(self.forks, FORKS).range(ForkKey::all(*key))?.next().transpose()?.is_some() {
                let row_key = RowKey::new(*key);
                return Ok(Err(row_key.corrupt("the row is missing, a fork of it is there").into()));
            }
            return Ok(Ok((old.unwrap_or_default(), old.is_none())));
        };
        match self.owned(*key, row.head.fence, 0)? {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Err(WriteRefused::Conflict { expected: *expected, found: 0 })),
            Err(WriteRefused::Conflict { found, .. }) => {
                return Ok(Err(WriteRefused::Conflict { expected: *expected, found }));
            }
            Err(refused) => return Ok(Err(refused)),
        }
        Ok(self.forked(*key, *fork)?.map(|head| (head, true)))
    }

    /// The head of a thread that continues another one's log.
    fn forked(&mut self, key: ThreadKey, fork: Fork) -> Result<Checked<Head>, Fault> {
        let Fork { parent, at } = fork;
        let parent = ThreadKey { thread: parent, ..key };
        let row_key = RowKey::new(parent);
        let threads = open!(self.threads, THREADS);
        let head = match threads.get(row_key)?.map(|bytes| codec::read_head(&row_key, bytes.value())).transpose() {
            Ok(head) => head,
            Err(corrupt) => return Ok(Err(corrupt.into())),
        };
        let found = head.map_or(0, |head| head.head.last_seq);
        let Some(head) = head.filter(|_| at <= found) else {
            return Ok(Err(WriteRefused::Conflict { expected: at, found }));
        };
        // The event may be one that the parent shares itself: then it is shared with whoever really holds it.
        let mut lineage = Lineage::new(threads, parent, head);
        let owner = match lineage.holding(at - 1).and_then(|back| lineage.part(back)) {
            Ok(Some(part)) => part.owner,
            Ok(None) => parent,
            Err(Fault::Corrupt(corrupt)) => return Ok(Err(corrupt.into())),
            Err(other) => return Err(other),
        };
        Ok(Ok(Head { base: Some((owner.thread, at)), inherited: at, ..Head::default() }))
    }

    /// The records of turns that an append leads to.
    fn turn_records(&mut self, append: &Append, old: &Head) -> Result<Checked<TurnRecords>, Fault> {
        let Append { key, at, settled, reverted, .. } = append;
        let mut records: BTreeMap<Seq, TurnRecord> = BTreeMap::new();
        let (mut last_turn, mut ends) = (old.last_turn, Vec::new());
        for turn in settled {
            let seq = turn.started_seq;
            let mut ended = *at;
            let previous = if seq <= old.inherited {
                return Ok(Err(super::super::unordered(*key, seq, old.inherited)));
            } else if seq > last_turn {
                ends.push(seq);
                std::mem::replace(&mut last_turn, seq)
            } else if let Some(planned) = records.get(&seq) {
                planned.previous
            } else {
                let turn_key = TurnKey::new(*key, seq);
                let Some(bytes) = open!(self.turns, TURNS).get(turn_key)? else {
                    return Ok(Err(super::super::unordered(*key, seq, last_turn)));
                };
                match codec::read_turn(&turn_key, bytes.value()) {
                    Ok(record) => {
                        ended = record.ended;
                        record.previous
                    }
                    Err(corrupt) => return Ok(Err(corrupt.into())),
                }
            };
            records.insert(seq, TurnRecord { turn: turn.clone(), previous, ended });
        }
        for taken in reverted {
            match self.revert(*key, old, taken.started_seq, taken.seq, &mut records, &mut last_turn) {
                Ok(true) => {}
                Ok(false) => return Ok(Err(super::super::unknown_turn(*key, taken.started_seq))),
                Err(Fault::Corrupt(corrupt)) => return Ok(Err(corrupt.into())),
                Err(other) => return Err(other),
            }
        }
        Ok(Ok(TurnRecords { records, last_turn, ends }))
    }

    /// Plans the record that says that the turn was taken out. Returns whether there is such a turn.
    fn revert(
        &mut self,
        key: ThreadKey,
        old: &Head,
        started: Seq,
        seq: Seq,
        records: &mut BTreeMap<Seq, TurnRecord>,
        last_turn: &mut Seq,
    ) -> Result<bool, Fault> {
        // A turn that was taken out before stays taken out since then.
        if let Some(planned) = records.get_mut(&started) {
            planned.turn.reverted.get_or_insert(seq);
            return Ok(true);
        }
        let turn_key = TurnKey::new(key, started);
        let (threads, turns) = (open!(self.threads, THREADS), open!(self.turns, TURNS));
        if let Some(bytes) = turns.get(turn_key)? {
            let mut record = codec::read_turn(&turn_key, bytes.value()).map_err(Fault::Corrupt)?;
            record.turn.reverted.get_or_insert(seq);
            records.insert(started, record);
            return Ok(true);
        }
        // A shared one is taken out here alone: by a record of our own.
        let found = Lineage::new(threads, key, *old).turn_at(turns, started)?;
        let Some(mut turn) = found.filter(|turn| turn.started_seq <= old.inherited) else { return Ok(false) };
        if turn.reverted.replace(seq).is_some() {
            return Ok(true);
        }
        // Its place among our records: between the one that it follows and the one that followed that.
        let part = Part { owner: key, head: *old, upto: Seq::MAX };
        let stored = lineage::following(turns, &part, started)?;
        let planned = records.range(started..).next().map(|(seq, _)| *seq);
        let next = match (stored, planned) {
            (Some(record), planned) if planned.is_none_or(|seq| record.turn.started_seq < seq) => {
                let seq = record.turn.started_seq;
                records.insert(seq, record);
                Some(seq)
            }
            (_, planned) => planned,
        };
        let previous = match next.and_then(|next| records.get_mut(&next)) {
            Some(next) => std::mem::replace(&mut next.previous, started),
            None => std::mem::replace(last_turn, started),
        };
        records.insert(started, TurnRecord { turn, previous, ended: UnixMs(0) });
        Ok(true)
    }

    /// The append's position in its tenant's feed.
    fn append(&mut self, append: &Append) -> Result<Checked<u64>, Fault> {
        let Append { key, at, chunk, row, receipts, fork, .. } = append;
        let row_key = RowKey::new(*key);
        if let Err(refused) = super::super::follows(append) {
            return Ok(Err(refused));
        }
        let (old, is_new) = match self.begun(append)? {
            Ok(begun) => begun,
            Err(refused) => return Ok(Err(refused)),
        };
        let TurnRecords { records, last_turn, ends } = match self.turn_records(append, &old)? {
            Ok(planned) => planned,
            Err(refused) => return Ok(Err(refused)),
        };

        for receipt in receipts {
            let receipt_key = ReceiptKey::new(key.tenant, &receipt.key);
            let old = open!(self.receipts, RECEIPTS).get(receipt_key)?;
            let old = old.and_then(|old| codec::read_receipt(&receipt_key, &receipt.key, old.value()).ok());
            if old.is_some_and(|old| *at < old.expires_at) {
                return Ok(Err(WriteRefused::Repeated));
            }
        }

        let planned = match self.tenant.check(append)? {
            Ok(planned) => planned,
            Err(refused) => return Ok(Err(refused)),
        };

        // Nothing is refused from here on.
        if !chunk.events.is_empty() {
            let log_key = LogKey::new(*key, chunk.first);
            open!(self.log, LOG).insert(log_key, codec::seal_chunk(&log_key, &chunk.events).as_slice())?;
        }
        // While a thread owes it is listed by that, and its place in `recent` stays behind. Other logs have none.
        let is_thread = row.head.kind == LogKind::Thread;
        let stays = row.head.owes_since.is_some() || !is_thread;
        let recent_at = if stays { old.recent_at } else { Some(row.head.listed_at) };
        let more = codec::said_by(&chunk.events);
        let new = Head { head: row.head, recent_at, last_turn, bytes: old.bytes + more, ..old };
        let bytes = codec::seal_row(&row_key, &new, &row.view, &row.snapshot);
        open!(self.threads, THREADS).insert(row_key, bytes.as_slice())?;
        let (was, is) = (if is_new { Default::default() } else { old.head }, row.head);
        self.shift_work(*key, row.head.kind, [was.owes_since, is.owes_since], [was.wake_at, is.wake_at])?;
        shift!(self.recent, RECENT, RecentKey, *key, old.recent_at, recent_at);
        let change = self.change(key.tenant);
        change.threads += i64::from(is_new && is_thread);
        change.queued += i64::from(is.queued) - i64::from(was.queued);
        change.bytes += more as i64;

        if let (Some(_), Some((owner, at))) = (fork, old.base) {
            let fork_key = ForkKey::new(ThreadKey { thread: owner, ..*key }, key.thread);
            open!(self.forks, FORKS).insert(fork_key, codec::seal_fork(&fork_key, at).as_slice())?;
        }
        for seq in ends {
            let key = UnpackedKey::new(*at, *key, seq);
            open!(self.unpacked, UNPACKED).insert(key, codec::seal_unpacked(&key, seq).as_slice())?;
        }
        for (seq, record) in records {
            let turn_key = TurnKey::new(*key, seq);
            open!(self.turns, TURNS).insert(turn_key, codec::seal_turn(&turn_key, &record).as_slice())?;
            // A shared turn is found by its id where it is stored.
            if seq > old.floor() {
                let id_key = TurnIdKey::new(*key, record.turn.id);
                open!(self.turn_ids, TURN_IDS).insert(id_key, codec::seal_turn_id(&id_key, seq).as_slice())?;
            }
        }
        for receipt in receipts {
            let receipt_key = ReceiptKey::new(key.tenant, &receipt.key);
            let bytes = codec::seal_receipt(&receipt_key, receipt);
            let before = open!(self.receipts, RECEIPTS).insert(receipt_key, bytes.as_slice())?;
            // An unreadable one keeps its entry, which removes it, and this one, no later than it was due.
            let before = before.and_then(|old| codec::read_receipt(&receipt_key, &receipt.key, old.value()).ok());
            let expiry = open!(self.expiry, EXPIRY);
            if let Some(before) = before {
                expiry.remove(ExpiryKey::new(before.expires_at, &receipt_key))?;
            }
            let expiry_key = ExpiryKey::new(receipt.expires_at, &receipt_key);
            expiry.insert(expiry_key, &codec::seal_mark(&expiry_key))?;
        }
        self.put_parts(append)?;
        Ok(Ok(self.tenant.append(append, planned)?))
    }

    fn put_parts(&mut self, append: &Append) -> Result<(), Fault> {
        for part in &append.parts {
            let part_key = PartKey::new(append.key, part.kind, part.name);
            let parts = open!(self.parts, PARTS);
            match &part.json {
                Some(json) => parts.insert(part_key, codec::seal_part(&part_key, json).as_slice())?,
                None => parts.remove(part_key)?,
            };
        }
        Ok(())
    }

    /// Moves a log in the indexes of its kind: of what is under way, and of what is due.
    fn shift_work(
        &mut self,
        key: ThreadKey,
        kind: LogKind,
        owes: [Option<UnixMs>; 2],
        wakes: [Option<UnixMs>; 2],
    ) -> Result<(), Fault> {
        match kind {
            LogKind::Thread | LogKind::Run => {
                shift!(self.owing, OWING, OwingKey, key, owes[0], owes[1]);
                shift!(self.timers, TIMERS, TimerKey, key, wakes[0], wakes[1]);
            }
            LogKind::Job | LogKind::Schedule => {
                shift!(self.job_owing, JOB_OWING, JobOwingKey, key, owes[0], owes[1]);
                shift!(self.job_timers, JOB_TIMERS, JobTimerKey, key, wakes[0], wakes[1]);
            }
        }
        Ok(())
    }

    fn erase(&mut self, key: ThreadKey, fence: u64, expected: Seq) -> Result<Checked<()>, Fault> {
        let old = match self.owned(key, fence, expected)? {
            Ok(Some(old)) => old,
            Ok(None) => return Ok(Ok(())),
            Err(refused) => return Ok(Err(refused)),
        };
        self.bequeath(key, Some(&old))?;
        for entry in open!(self.turns, TURNS).range(TurnKey::all(key))? {
            let (at, bytes) = entry?;
            // That of a record which cannot be read is dropped when its turn comes, and there is none.
            if let Ok(record) = codec::read_turn(&at.value(), bytes.value()) {
                open!(self.unpacked, UNPACKED).remove(UnpackedKey::new(record.ended, key, at.value().seq()))?;
            }
        }
        self.remove_records(key)?;
        self.shift_work(key, old.head.kind, [old.head.owes_since, None], [old.head.wake_at, None])?;
        shift!(self.recent, RECENT, RecentKey, key, old.recent_at, None);
        let change = self.change(key.tenant);
        change.threads -= i64::from(old.head.kind == LogKind::Thread);
        change.queued -= i64::from(old.head.queued);
        change.bytes -= old.bytes as i64;
        Ok(Ok(()))
    }

    /// Without its row nobody knows where the thread stands in the indexes, so they are read through.
    fn purge(&mut self, key: ThreadKey) -> Result<Checked<()>, Fault> {
        let row_key = RowKey::new(key);
        let row = open!(self.threads, THREADS).get(row_key)?;
        if let Some(Ok(old)) = row.map(|bytes| codec::read_head(&row_key, bytes.value())) {
            return Ok(Err(WriteRefused::Conflict { expected: 0, found: old.head.last_seq }));
        }
        self.bequeath(key, None)?;
        self.remove_records(key)?;
        open!(self.owing, OWING).retain(|at, _| !at.names(key))?;
        open!(self.recent, RECENT).retain(|at, _| !at.names(key))?;
        open!(self.timers, TIMERS).retain(|at, _| !at.names(key))?;
        open!(self.job_owing, JOB_OWING).retain(|at, _| !at.names(key))?;
        open!(self.job_timers, JOB_TIMERS).retain(|at, _| !at.names(key))?;
        self.tenant.forget_entries(key)?;
        // What it counted for nobody can read any more.
        self.change(key.tenant).unknown = true;
        open!(self.unpacked, UNPACKED).retain(|at, _| at.thread() != Some(key))?;
        Ok(Ok(()))
    }

    fn remove_records(&mut self, key: ThreadKey) -> Result<(), Fault> {
        open!(self.threads, THREADS).remove(RowKey::new(key))?;
        // A damaged page can lead outside of the range: no other thread may lose a record to that.
        open!(self.log, LOG).retain_in(LogKey::all(key), |at, _| !at.is_of(key))?;
        open!(self.turns, TURNS).retain_in(TurnKey::all(key), |at, _| !at.is_of(key))?;
        open!(self.turn_ids, TURN_IDS).retain_in(TurnIdKey::all(key), |at, _| !at.is_of(key))?;
        open!(self.parts, PARTS).retain_in(PartKey::all(key), |at, _| !at.is_of(key))?;
        self.tenant.forget(key)?;
        Ok(())
    }
}
