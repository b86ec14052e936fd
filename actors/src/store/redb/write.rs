//! One write inside a transaction: everything is checked before anything is written, so a refused write leaves no
//! trace while its neighbours are stored. Indexes follow the row's head, by comparing the old one with the new.

use ::redb::{ReadableTable, Table, WriteTransaction};
use raddle_domain::{
    id::{Seq, ThreadKey},
    ports::{Append, Write, WriteRefused},
    time::UnixMs,
};

use super::{
    super::{
        codec::{self, Head},
        keys::{
            EXPIRY, ExpiryKey, LOG, LogKey, OWING, OwingKey, RECEIPTS, RECENT, ReceiptKey, RecentKey, RowKey, StoreKey,
            THREADS, TIMERS, TURN_IDS, TURNS, TimerKey, TurnIdKey, TurnKey,
        },
    },
    Fault,
};

type Records<'t, K> = Option<Table<'t, K, &'static [u8]>>;
type Marks<'t, K> = Option<Table<'t, K, &'static [u8; 8]>>;

/// The tables of one transaction; each is opened when it is first needed, because a table that was opened costs
/// pages.
pub(super) struct Tables<'t> {
    txn: &'t WriteTransaction,
    log: Records<'t, LogKey>,
    threads: Records<'t, RowKey>,
    turns: Records<'t, TurnKey>,
    turn_ids: Records<'t, TurnIdKey>,
    receipts: Records<'t, ReceiptKey>,
    expiry: Marks<'t, ExpiryKey>,
    owing: Marks<'t, OwingKey>,
    recent: Marks<'t, RecentKey>,
    timers: Marks<'t, TimerKey>,
    tenant: tenant::TenantTables<'t>,
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

/// What a write may do, or why not.
type Checked<T> = Result<T, WriteRefused>;

mod tenant;

impl<'t> Tables<'t> {
    pub(super) fn new(txn: &'t WriteTransaction) -> Self {
        Self {
            txn,
            log: None,
            threads: None,
            turns: None,
            turn_ids: None,
            receipts: None,
            expiry: None,
            owing: None,
            recent: None,
            timers: None,
            tenant: tenant::TenantTables::new(txn),
        }
    }

    pub(super) fn apply(&mut self, write: &Write) -> Result<Checked<u64>, Fault> {
        match write {
            Write::Append(append) => self.append(append),
            Write::Erase { key, fence, expected } => Ok(self.erase(*key, *fence, *expected)?.map(|()| 0)),
            Write::Purge { key } => Ok(self.purge(*key)?.map(|()| 0)),
            Write::Documents { tenant, kind, documents } => {
                self.tenant.replace_documents(*tenant, *kind, documents)?;
                Ok(Ok(0))
            }
        }
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
        Ok(if fence < owner {
            Err(WriteRefused::Fenced { fence, owner })
        } else if expected != found {
            Err(WriteRefused::Conflict { expected, found })
        } else {
            Ok(old)
        })
    }

    /// The append's position in its tenant's feed.
    fn append(&mut self, append: &Append) -> Result<Checked<u64>, Fault> {
        let Append { key, expected, at, chunk, row, settled, receipts, .. } = append;
        let row_key = RowKey::new(*key);
        if let Err(refused) = super::super::follows(append) {
            return Ok(Err(refused));
        }
        let (old, is_new) = match self.owned(*key, row.head.fence, *expected)? {
            Ok(old) => (old.unwrap_or_default(), old.is_none()),
            Err(refused) => return Ok(Err(refused)),
        };

        let mut last_turn = old.last_turn;
        let mut turns: Vec<(TurnKey, Seq)> = Vec::with_capacity(settled.len());
        for turn in settled {
            let turn_key = TurnKey::new(*key, turn.started_seq);
            let planned = turns.iter().find(|(planned, _)| *planned == turn_key);
            let previous = if turn.started_seq > last_turn {
                std::mem::replace(&mut last_turn, turn.started_seq)
            } else if let Some((_, previous)) = planned {
                *previous
            } else {
                let Some(bytes) = open!(self.turns, TURNS).get(turn_key)? else {
                    return Ok(Err(super::super::unordered(*key, turn.started_seq, last_turn)));
                };
                match codec::read_turn(&turn_key, bytes.value()) {
                    Ok((_, previous)) => previous,
                    Err(corrupt) => return Ok(Err(corrupt.into())),
                }
            };
            turns.push((turn_key, previous));
        }

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
        // While a thread owes it is listed by that, and its place in `recent` stays behind.
        let recent_at = if row.head.owes_since.is_some() { old.recent_at } else { Some(row.head.listed_at) };
        let new = Head { head: row.head, recent_at, last_turn };
        let bytes = codec::seal_row(&row_key, &new, &row.view, &row.snapshot);
        open!(self.threads, THREADS).insert(row_key, bytes.as_slice())?;
        let (was, is) = (if is_new { Default::default() } else { old.head }, row.head);
        shift!(self.owing, OWING, OwingKey, *key, was.owes_since, is.owes_since);
        shift!(self.timers, TIMERS, TimerKey, *key, was.wake_at, is.wake_at);
        shift!(self.recent, RECENT, RecentKey, *key, old.recent_at, recent_at);

        for (turn, (turn_key, previous)) in settled.iter().zip(turns) {
            let bytes = codec::seal_turn(&turn_key, turn, previous);
            open!(self.turns, TURNS).insert(turn_key, bytes.as_slice())?;
            let id_key = TurnIdKey::new(*key, turn.id);
            let bytes = codec::seal_turn_id(&id_key, turn.started_seq);
            open!(self.turn_ids, TURN_IDS).insert(id_key, bytes.as_slice())?;
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
        Ok(Ok(self.tenant.append(append, planned)?))
    }

    fn erase(&mut self, key: ThreadKey, fence: u64, expected: Seq) -> Result<Checked<()>, Fault> {
        let old = match self.owned(key, fence, expected)? {
            Ok(Some(old)) => old,
            Ok(None) => return Ok(Ok(())),
            Err(refused) => return Ok(Err(refused)),
        };
        self.remove_records(key)?;
        shift!(self.owing, OWING, OwingKey, key, old.head.owes_since, None);
        shift!(self.timers, TIMERS, TimerKey, key, old.head.wake_at, None);
        shift!(self.recent, RECENT, RecentKey, key, old.recent_at, None);
        Ok(Ok(()))
    }

    /// Without its row nobody knows where the thread stands in the indexes, so they are read through.
    fn purge(&mut self, key: ThreadKey) -> Result<Checked<()>, Fault> {
        let row_key = RowKey::new(key);
        let row = open!(self.threads, THREADS).get(row_key)?;
        if let Some(Ok(old)) = row.map(|bytes| codec::read_head(&row_key, bytes.value())) {
            return Ok(Err(WriteRefused::Conflict { expected: 0, found: old.head.last_seq }));
        }
        self.remove_records(key)?;
        open!(self.owing, OWING).retain(|at, _| !at.names(key))?;
        open!(self.recent, RECENT).retain(|at, _| !at.names(key))?;
        open!(self.timers, TIMERS).retain(|at, _| !at.names(key))?;
        self.tenant.forget_entries(key)?;
        Ok(Ok(()))
    }

    fn remove_records(&mut self, key: ThreadKey) -> Result<(), Fault> {
        open!(self.threads, THREADS).remove(RowKey::new(key))?;
        // A damaged page can lead outside of the range: no other thread may lose a record to that.
        open!(self.log, LOG).retain_in(LogKey::all(key), |at, _| !at.is_of(key))?;
        open!(self.turns, TURNS).retain_in(TurnKey::all(key), |at, _| !at.is_of(key))?;
        open!(self.turn_ids, TURN_IDS).retain_in(TurnIdKey::all(key), |at, _| !at.is_of(key))?;
        self.tenant.forget(key)?;
        Ok(())
    }
}
