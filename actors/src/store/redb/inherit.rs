//! What an erased thread leaves to its forks.
//!
//! Of the forks, the one that left last becomes the heir: what any fork shares is moved to its name, and the others
//! share it with the heir from then on. What no fork shares is not kept. A record that cannot be read is moved as it
//! is, so that it stays an error and does not become a gap; and a fork whose past cannot be had keeps naming the
//! thread that is gone, which is an error too.

use std::collections::BTreeMap;

use ::redb::ReadableTable;
use raddle_domain::{
    id::{Seq, ThreadId, ThreadKey},
    ports::ThreadRow,
    time::UnixMs,
};

use super::{
    super::{
        codec::{self, Head, TurnRecord},
        keys::{
            FORKS, ForkKey, LOG, LogKey, RowKey, StoreKey, THREADS, TURN_IDS, TURNS, TurnIdKey, TurnKey, UNPACKED,
            UnpackedKey,
        },
    },
    Fault,
    lineage::Part,
    write::{Tables, open},
};

/// A fork and where it left.
type Left = (ThreadId, Seq);

/// A fork of a thread that is erased.
struct Child {
    key: ThreadKey,
    /// The last event that it shares.
    at: Seq,
    row: ThreadRow,
    head: Head,
}

/// A record of a turn on its way to the heir.
struct Moved {
    /// As it was read, or its bytes if it could not be.
    record: Result<TurnRecord, Vec<u8>>,
    /// The record that it names before it, if that is not the one that stood there: a gap that must stay one.
    gap: Option<Seq>,
}

impl Tables<'_> {
    /// Hands what others share over, before the records of `key` are removed. Its head is given if it can be read.
    pub(super) fn bequeath(&mut self, key: ThreadKey, old: Option<&Head>) -> Result<(), Fault> {
        let base = match old {
            Some(old) => old.base,
            None => self.lost_base(key)?,
        };
        if let Some((parent, _)) = base {
            open!(self.forks, FORKS).remove(ForkKey::new(ThreadKey { thread: parent, ..key }, key.thread))?;
        }
        let (mut children, unread) = self.children(key)?;
        let Some(heir) = (0..children.len()).max_by_key(|at| children[*at].at) else { return Ok(()) };
        let Child { key: heir, at: upto, row, mut head } = children.swap_remove(heir);
        let Some(kept) = self.move_log(key, heir, upto)? else { return Ok(()) };
        // What was written by a build that did not count stays uncounted.
        let kept = old.map_or(0, |old| kept.min(old.bytes));
        head.bytes += kept;
        self.change(key.tenant).bytes += kept as i64;
        let whole = Head { base, ..old.copied().unwrap_or_default() };
        head.last_turn = self.move_turns(&Part { owner: key, head: whole, upto }, old.is_some(), heir, &head)?;
        head.base = base;
        self.rewrite(heir, &head, &row)?;

        let forks = open!(self.forks, FORKS);
        forks.remove(ForkKey::new(key, heir.thread))?;
        if let Some((parent, at)) = base {
            let fork = ForkKey::new(ThreadKey { thread: parent, ..key }, heir.thread);
            forks.insert(fork, codec::seal_fork(&fork, at).as_slice())?;
        }
        let read = children.iter().map(|child| (child.key.thread, child.at));
        // One that left later than the heir shared what is not kept.
        for (child, at) in read.chain(unread.into_iter().filter(|(_, at)| *at <= upto)) {
            forks.remove(ForkKey::new(key, child))?;
            let fork = ForkKey::new(heir, child);
            forks.insert(fork, codec::seal_fork(&fork, at).as_slice())?;
        }
        for Child { key, at, row, head } in children {
            self.rewrite(key, &Head { base: Some((heir.thread, at)), ..head }, &row)?;
        }
        Ok(())
    }

    /// The forks of `key`, and of those whose rows cannot be read the places at which they left.
    fn children(&mut self, key: ThreadKey) -> Result<(Vec<Child>, Vec<Left>), Fault> {
        let (mut children, mut unread) = (Vec::new(), Vec::new());
        let threads = open!(self.threads, THREADS);
        for entry in open!(self.forks, FORKS).range(ForkKey::all(key))? {
            let (fork, bytes) = entry?;
            let fork = fork.value();
            let child = ThreadKey { thread: fork.child(), ..key };
            if fork != ForkKey::new(key, child.thread) {
                continue;
            }
            let row_key = RowKey::new(child);
            let row = threads.get(row_key)?;
            match row.map(|bytes| codec::read_row(&row_key, bytes.value())) {
                Some(Ok((row, head))) if head.base.is_some_and(|(parent, _)| parent == key.thread) => {
                    children.push(Child { key: child, at: head.floor(), row, head });
                }
                Some(Err(_)) => {
                    tracing::error!(thread = %child, "a fork whose row cannot be read loses what it shares");
                    unread.extend(codec::read_fork(&fork, bytes.value()).ok().map(|at| (child.thread, at)));
                }
                _ => tracing::error!(record = %fork.place(), "an entry of `forks` names a thread that is no fork"),
            }
        }
        Ok((children, unread))
    }

    /// What the thread continued, when its row cannot be read.
    fn lost_base(&mut self, key: ThreadKey) -> Result<Option<(ThreadId, Seq)>, Fault> {
        for entry in open!(self.forks, FORKS).range(ForkKey::of_tenant(key.tenant))? {
            let (fork, bytes) = entry?;
            let fork = fork.value();
            if fork.child() == key.thread
                && let Ok(at) = codec::read_fork(&fork, bytes.value())
            {
                return Ok(Some((fork.parent(), at)));
            }
        }
        // A log that begins later continues something: what that was nobody knows, and nobody may take it for nothing.
        let first = open!(self.log, LOG).range(LogKey::all(key))?.next().transpose()?;
        Ok(first.map(|(at, _)| at.value().seq()).filter(|first| *first > 1).map(|first| (key.thread, first - 1)))
    }

    fn rewrite(&mut self, key: ThreadKey, head: &Head, row: &ThreadRow) -> Result<(), Fault> {
        let row_key = RowKey::new(key);
        let bytes = codec::seal_row(&row_key, head, &row.view, &row.snapshot);
        open!(self.threads, THREADS).insert(row_key, bytes.as_slice())?;
        Ok(())
    }

    /// Moves the log up to `upto`. Returns the bytes of its events, if there were any.
    fn move_log(&mut self, from: ThreadKey, to: ThreadKey, upto: Seq) -> Result<Option<u64>, Fault> {
        let log = open!(self.log, LOG);
        let mut moved = Vec::new();
        for entry in log.range(LogKey::new(from, 0)..=LogKey::new(from, upto))? {
            moved.extend(Some(entry?.0.value()).filter(|at| at.is_of(from)));
        }
        let mut kept = 0;
        for at in &moved {
            let Some(bytes) = log.remove(at)?.map(|bytes| bytes.value().to_vec()) else { continue };
            let key = LogKey::new(to, at.seq());
            kept += codec::said_until(at, &bytes, upto);
            log.insert(key, codec::move_chunk(at, &key, &bytes, upto).as_slice())?;
        }
        Ok((!moved.is_empty()).then_some(kept))
    }

    /// Moves the turns that end up to where `part` does, and puts them between those of the heir. Returns the heir's
    /// last. `named` is whether the part's head says which of its turns is the last.
    fn move_turns(&mut self, part: &Part, named: bool, heir: ThreadKey, head: &Head) -> Result<Seq, Fault> {
        let (turns, ids) = (open!(self.turns, TURNS), open!(self.turn_ids, TURN_IDS));
        let Chain { records, last, next } = chain(turns, part.owner, part.upto)?;
        // The gap at its end, if there is one.
        let top = match &next {
            Some(next) => Some(next.previous),
            None => Some(part.head.last_turn).filter(|top| named && *top <= part.upto),
        };
        let top = top.filter(|top| *top != last);

        let heirs = chain(turns, heir, part.upto)?;
        let mut all = heirs.records;
        let unpacked = open!(self.unpacked, UNPACKED);
        for (seq, Moved { record, gap }) in records {
            let ended = record.as_ref().map_or(UnixMs(0), |record| record.ended);
            match (all.get_mut(&seq), record) {
                // What the heir says of the turn is the newer word, and from now on the only one.
                (Some(Moved { record: Ok(said), .. }), Ok(record)) => said.ended = record.ended,
                (Some(_), _) => {}
                (None, Err(bytes)) => {
                    all.insert(seq, Moved { record: Err(bytes), gap });
                }
                (None, Ok(record)) => {
                    let Some(turn) = part.sees(record.turn) else { continue };
                    // Of a turn that the thread shared itself it kept that it was taken out, and nothing else.
                    if seq <= part.floor() && turn.reverted.is_none() {
                        continue;
                    }
                    all.insert(seq, Moved { record: Ok(TurnRecord { turn, ..record }), gap });
                }
            }
            let at = UnpackedKey::new(ended, part.owner, seq);
            let from = unpacked.remove(at)?.and_then(|from| codec::read_unpacked(&at, from.value()).ok());
            if let Some(from) = from {
                let at = UnpackedKey::new(ended, heir, seq);
                unpacked.insert(at, codec::seal_unpacked(&at, from).as_slice())?;
            }
        }
        let mut names = Vec::new();
        for entry in ids.range(TurnIdKey::all(part.owner))? {
            let (at, bytes) = entry?;
            let at = at.value();
            let seq = codec::read_turn_id(&at, bytes.value()).ok();
            names.extend(seq.filter(|seq| at.is_of(part.owner) && all.contains_key(seq)).map(|seq| (at.turn(), seq)));
        }
        for (id, seq) in names {
            let id_key = TurnIdKey::new(heir, id);
            ids.insert(id_key, codec::seal_turn_id(&id_key, seq).as_slice())?;
        }

        let mut previous = 0;
        for (seq, Moved { record, gap }) in all {
            let key = TurnKey::new(heir, seq);
            let bytes = match record {
                Ok(record) => codec::seal_turn(&key, &TurnRecord { previous: gap.unwrap_or(previous), ..record }),
                Err(bytes) => bytes,
            };
            turns.insert(key, bytes.as_slice())?;
            previous = seq;
        }
        let previous = top.unwrap_or(previous);
        match heirs.next {
            // What it names before it was not there before either.
            Some(next) if next.previous != heirs.last => {}
            Some(next) => {
                let key = TurnKey::new(heir, next.turn.started_seq);
                turns.insert(key, codec::seal_turn(&key, &TurnRecord { previous, ..next }).as_slice())?;
            }
            None if head.last_turn == heirs.last => return Ok(previous),
            None => {}
        }
        Ok(head.last_turn)
    }
}

/// The records of a thread's turns up to some place.
struct Chain {
    records: BTreeMap<Seq, Moved>,
    /// The last of them; 0 when there is none.
    last: Seq,
    /// The first behind the place, if it can be read.
    next: Option<TurnRecord>,
}

fn chain(turns: &impl ReadableTable<TurnKey, &'static [u8]>, owner: ThreadKey, upto: Seq) -> Result<Chain, Fault> {
    let mut chain = Chain { records: BTreeMap::new(), last: 0, next: None };
    for entry in turns.range(TurnKey::all(owner))? {
        let (key, bytes) = entry?;
        let key = key.value();
        if !key.is_of(owner) {
            continue;
        }
        let record = codec::read_turn(&key, bytes.value());
        if key.seq() > upto {
            chain.next = record.ok();
            break;
        }
        let gap = record.as_ref().ok().map(|record| record.previous).filter(|previous| *previous != chain.last);
        let record = record.map_err(|_| bytes.value().to_vec());
        chain.last = key.seq();
        chain.records.insert(key.seq(), Moved { record, gap });
    }
    Ok(chain)
}
