//! What a thread has of the threads whose logs it continues.
//!
//! A fork keeps no copy: its row says up to where its past is stored under the name of another thread, whose row may
//! say the same of a third. What a thread did after the place at which its fork left it is not part of the fork's
//! past; that a turn was reverted only later is not, either. What the fork itself says of a turn of its past stands
//! under the fork's own name, and is stronger.

use ::redb::ReadableTable;
use raddle_domain::{
    id::{Seq, ThreadKey, TurnId},
    ports::SettledTurn,
};

use super::{
    super::{
        codec::{self, Head, TurnRecord},
        keys::{RowKey, StoreKey, TurnIdKey, TurnKey},
    },
    Fault,
};

type Bytes = &'static [u8];

/// A stretch of a history: what one thread stored of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Under whose name it is stored.
    pub owner: ThreadKey,
    pub head: Head,
    /// How far it is part of the history.
    pub upto: Seq,
}

impl Part {
    /// The last event before it.
    pub(super) fn floor(&self) -> Seq {
        self.head.floor()
    }

    /// The turn as the thread at the end of the lineage sees it, if it does: a turn that ended behind the place of a
    /// fork is not part of the fork's past.
    pub(super) fn sees(&self, mut turn: SettledTurn) -> Option<SettledTurn> {
        turn.reverted = turn.reverted.filter(|seq| *seq <= self.upto);
        turn.items.iter().all(|seq| *seq <= self.upto).then_some(turn)
    }
}

/// The parts of a thread's history, newest first, each read when it is first needed.
pub(super) struct Lineage<'t, R> {
    rows: &'t R,
    parts: Vec<Part>,
}

impl<'t, R: ReadableTable<RowKey, Bytes>> Lineage<'t, R> {
    /// Of the thread whose row has this head.
    pub(super) fn new(rows: &'t R, owner: ThreadKey, head: Head) -> Self {
        // Its own turns are all part of it, wherever its log ends.
        Self { rows, parts: vec![Part { owner, head, upto: Seq::MAX }] }
    }

    /// The part that is so many forks back; `None` before the first.
    pub(super) fn part(&mut self, back: usize) -> Result<Option<Part>, Fault> {
        while self.parts.len() <= back {
            let Some(Part { owner, head, .. }) = self.parts.last().copied() else { return Ok(None) };
            let Some((thread, at)) = head.base else { return Ok(None) };
            let owner = ThreadKey { thread, ..owner };
            let row_key = RowKey::new(owner);
            let Some(bytes) = self.rows.get(row_key)? else {
                return Err(Fault::Corrupt(row_key.corrupt("the row is missing, a fork of it is there")));
            };
            let head = codec::read_head(&row_key, bytes.value()).map_err(Fault::Corrupt)?;
            // It also keeps a damaged lineage from being endless.
            if at <= head.floor() || at > head.head.last_seq {
                let why = format!("a fork shares the event {at}, which it does not hold");
                return Err(Fault::Corrupt(row_key.corrupt(why)));
            }
            self.parts.push(Part { owner, head, upto: at });
        }
        Ok(self.parts.get(back).copied())
    }

    /// The part that holds the event behind `after`, and how many forks back it is.
    pub(super) fn holding(&mut self, after: Seq) -> Result<usize, Fault> {
        let mut back = 0;
        while let Some(part) = self.part(back)? {
            if part.floor() <= after {
                break;
            }
            back += 1;
        }
        Ok(back)
    }

    /// The last turn that began before `before`.
    pub(super) fn turn_before(
        &mut self,
        turns: &impl ReadableTable<TurnKey, Bytes>,
        before: Seq,
    ) -> Result<Option<SettledTurn>, Fault> {
        let Some(mut to) = before.checked_sub(1) else { return Ok(None) };
        let mut back = 0;
        while let Some(part) = self.part(back)? {
            to = to.min(part.upto);
            while to > part.floor() {
                let Some(record) = last(turns, &part, to)?.filter(|record| record.turn.started_seq > part.floor())
                else {
                    break;
                };
                to = record.turn.started_seq - 1;
                if let Some(turn) = self.seen(turns, back, record)? {
                    return Ok(Some(turn));
                }
            }
            to = to.min(part.floor());
            back += 1;
        }
        Ok(None)
    }

    /// Turns that began after `after`, in order.
    pub(super) fn turns_after(
        &mut self,
        turns: &impl ReadableTable<TurnKey, Bytes>,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<SettledTurn>, Fault> {
        let mut list = Vec::new();
        if limit == 0 || after == Seq::MAX {
            return Ok(list);
        }
        for back in (0..=self.holding(after)?).rev() {
            let Some(part) = self.part(back)? else { continue };
            // Where the chain was seen to reach. It may begin between two turns; after that each names the one
            // before it.
            let (after, mut reached) = (after.max(part.floor()), None);
            for entry in turns.range(TurnKey::new(part.owner, after + 1)..=TurnKey::new(part.owner, Seq::MAX))? {
                let (at, bytes) = entry?;
                let record = read(&part, at.value(), bytes.value())?;
                let seq = record.turn.started_seq;
                if seq <= reached.unwrap_or(after)
                    || reached.map_or(record.previous > after, |at| record.previous != at)
                {
                    return Err(missing(&part, record.previous));
                }
                reached = Some(seq);
                if seq > part.upto {
                    break;
                }
                list.extend(self.seen(turns, back, record)?);
                if list.len() == limit {
                    return Ok(list);
                }
            }
            if reached.unwrap_or(after) < part.upto
                && reached.map_or(part.head.last_turn > after, |at| at != part.head.last_turn)
            {
                return Err(missing(&part, part.head.last_turn));
            }
        }
        Ok(list)
    }

    /// The turn of this id.
    pub(super) fn turn(
        &mut self,
        turns: &impl ReadableTable<TurnKey, Bytes>,
        ids: &impl ReadableTable<TurnIdKey, Bytes>,
        id: TurnId,
    ) -> Result<Option<SettledTurn>, Fault> {
        let mut back = 0;
        while let Some(part) = self.part(back)? {
            let id_key = TurnIdKey::new(part.owner, id);
            if let Some(bytes) = ids.get(id_key)? {
                let seq = codec::read_turn_id(&id_key, bytes.value()).map_err(Fault::Corrupt)?;
                if part.floor() < seq && seq <= part.upto {
                    let turn_key = TurnKey::new(part.owner, seq);
                    let Some(bytes) = turns.get(turn_key)? else { return Err(missing(&part, seq)) };
                    let record = codec::read_turn(&turn_key, bytes.value()).map_err(Fault::Corrupt)?;
                    if record.turn.id != id {
                        return Err(Fault::Corrupt(id_key.corrupt("it names another turn")));
                    }
                    return self.seen(turns, back, record);
                }
            }
            back += 1;
        }
        Ok(None)
    }

    /// The turn that began at `seq`.
    pub(super) fn turn_at(
        &mut self,
        turns: &impl ReadableTable<TurnKey, Bytes>,
        seq: Seq,
    ) -> Result<Option<SettledTurn>, Fault> {
        let Some(after) = seq.checked_sub(1) else { return Ok(None) };
        let back = self.holding(after)?;
        let Some(part) = self.part(back)?.filter(|part| seq <= part.upto) else { return Ok(None) };
        match at(turns, &part, seq)? {
            Some(record) => self.seen(turns, back, record),
            None => Ok(None),
        }
    }

    /// The turn of a record, as the newest part sees it: with what the parts after its own say of it.
    fn seen(
        &mut self,
        turns: &impl ReadableTable<TurnKey, Bytes>,
        back: usize,
        record: TurnRecord,
    ) -> Result<Option<SettledTurn>, Fault> {
        let Some(part) = self.part(back)? else { return Ok(None) };
        let Some(turn) = part.sees(record.turn) else { return Ok(None) };
        for newer in 0..back {
            let Some(part) = self.part(newer)? else { continue };
            if let Some(said) = at(turns, &part, turn.started_seq)?
                && said.turn.reverted.is_some_and(|seq| seq <= part.upto)
            {
                return Ok(Some(said.turn));
            }
        }
        Ok(Some(turn))
    }
}

fn missing(part: &Part, seq: Seq) -> Fault {
    Fault::Corrupt(TurnKey::new(part.owner, seq).corrupt("the record is missing"))
}

/// Reads the record under `key`, which must be the part's: a damaged page can lead outside of what was asked for.
fn read(part: &Part, key: TurnKey, bytes: &[u8]) -> Result<TurnRecord, Fault> {
    if key != TurnKey::new(part.owner, key.seq()) || key.seq() > part.head.last_turn {
        return Err(missing(part, part.head.last_turn));
    }
    codec::read_turn(&key, bytes).map_err(Fault::Corrupt)
}

/// The part's last record at or before `to`, and the certainty that there is none between the two.
fn last(turns: &impl ReadableTable<TurnKey, Bytes>, part: &Part, to: Seq) -> Result<Option<TurnRecord>, Fault> {
    let found = turns.range(TurnKey::new(part.owner, 0)..=TurnKey::new(part.owner, to))?.next_back().transpose()?;
    let found = found.map(|(key, bytes)| read(part, key.value(), bytes.value())).transpose()?;
    let named = named_behind(turns, part, to)?;
    let at = found.as_ref().map_or(0, |record| record.turn.started_seq);
    if at == named && at <= to { Ok(found) } else { Err(missing(part, named)) }
}

/// The part's record at `seq`, or the certainty that there is none.
fn at(turns: &impl ReadableTable<TurnKey, Bytes>, part: &Part, seq: Seq) -> Result<Option<TurnRecord>, Fault> {
    if seq > part.head.last_turn {
        return Ok(None);
    }
    let key = TurnKey::new(part.owner, seq);
    if let Some(bytes) = turns.get(key)? {
        return codec::read_turn(&key, bytes.value()).map(Some).map_err(Fault::Corrupt);
    }
    let named = named_behind(turns, part, seq)?;
    if named < seq { Ok(None) } else { Err(missing(part, named)) }
}

/// The last record at or before `seq`, as whatever follows it says.
fn named_behind(turns: &impl ReadableTable<TurnKey, Bytes>, part: &Part, seq: Seq) -> Result<Seq, Fault> {
    Ok(following(turns, part, seq)?.map_or(part.head.last_turn, |record| record.previous))
}

/// The part's first record behind `seq`, or the certainty that there is none.
pub(super) fn following(
    turns: &impl ReadableTable<TurnKey, Bytes>,
    part: &Part,
    seq: Seq,
) -> Result<Option<TurnRecord>, Fault> {
    if seq >= part.head.last_turn {
        return Ok(None);
    }
    match turns.range(TurnKey::new(part.owner, seq + 1)..=TurnKey::new(part.owner, Seq::MAX))?.next().transpose()? {
        Some((key, bytes)) => match read(part, key.value(), bytes.value())? {
            record if record.turn.started_seq > seq => Ok(Some(record)),
            _ => Err(missing(part, part.head.last_turn)),
        },
        None => Err(missing(part, part.head.last_turn)),
    }
}
