//! A new thread that continues another one's log from a settled place.
//!
//! What a fork needs of its parent is read from one view; no actor of the parent is asked. The parent may move on
//! meanwhile: what is settled stays settled, and the store refuses a fork of a thread that is gone.

use raddle_domain::{
    id::{ItemId, Seq, ThreadId, ThreadKey, TurnId},
    ports::{Corrupt, SettledTurn, StoreError, View},
    record::{Item, ItemKind, Thread, Turn, TurnKind, TurnStatus},
    thread::{Cx, ForkPoint, LATEST, Last, ThreadState},
};

use crate::{
    disk,
    handle::{Begun, Call, Done, Error, Runtime, thread_of},
    thread,
};

/// Where a fork leaves its parent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ForkAt {
    /// After everything that is settled.
    #[default]
    Settled,
    /// After this item; what its turn did later is not part of the fork.
    Item(ItemId),
    /// Before this turn began.
    BeforeTurn(TurnId),
    /// At a checkpoint; `latest` is the newest one.
    Checkpoint(String),
}

impl Runtime {
    /// Makes a thread that shares the parent's history up to `at`. Nothing open comes along: no turn, no queued
    /// prompt, no approval, no usage.
    pub async fn fork(
        &self,
        parent: ThreadKey,
        at: ForkAt,
        title: Option<String>,
        call: Call,
    ) -> Result<Done<Thread>, Error> {
        let if_match = call.if_match;
        let begin = async {
            let point = self.read_of(parent.tenant, move |view| point(view, parent, &at)).await??;
            if let Some(expected) = if_match
                && expected != point.parent.seq
            {
                let head = point.parent.seq;
                return Err(raddle_domain::command::Refused::Precondition { expected, head }.into());
            }
            let shared = self.shared();
            let limits = &shared.config.limits;
            let cx = Cx {
                now: shared.clock.now(),
                ids: &*shared.ids,
                limits,
                prices: &shared.prices,
                draining: false,
                room: &raddle_domain::ports::Boundless,
            };
            let fork = raddle_domain::ports::Fork { parent: parent.thread, at: point.at };
            let (state, step) = ThreadState::fork(ThreadId::new(shared.ids.mint()), ForkPoint { title, ..point }, cx)?;
            let seq = state.seq();
            let mut begun = Begun::thread(parent.tenant, state, step, Some(fork));
            if shared.tape.wants(begun.key) {
                begun.machine.unsaved.begins_at(begun.key, seq);
            }
            Ok(begun)
        };
        self.make(parent.tenant, call, begin, thread_of).await
    }
}

/// The place in the parent's log, and what held there.
fn point(view: &dyn View, key: ThreadKey, at: &ForkAt) -> Result<Result<ForkPoint, Error>, StoreError> {
    let Some(row) = view.row(key)? else { return Ok(Err(Error::NotFound("thread"))) };
    let head = row.head.last_seq;
    let Some(state) = thread::state(view, key)? else { return Ok(Err(Error::NotFound("thread"))) };
    let found = match at {
        ForkAt::Settled => match state.open() {
            Some(open) => before(view, key, &state, open.started_seq())?,
            None => whole(&state, head),
        },
        ForkAt::BeforeTurn(turn) => match started(view, key, &state, *turn)? {
            Some(started) => before(view, key, &state, started)?,
            None => return Ok(Err(Error::NotFound("turn"))),
        },
        ForkAt::Checkpoint(name) => {
            let mut checkpoints = state.checkpoints();
            let known = match name.as_str() {
                LATEST => checkpoints.last(),
                name => checkpoints.find(|known| known.name == name),
            };
            let Some(known) = known else { return Ok(Err(Error::NotFound("checkpoint"))) };
            before(view, key, &state, known.seq + 1)?
        }
        ForkAt::Item(item) => match holder(view, key, *item)? {
            Some((turn, items)) if turn.reverted.is_none() && items.len() == turn.items.len() => {
                // Nothing of the turn is left out: so it is shared, not written again.
                let next = view.turns(key, turn.started_seq, 1)?.first().map(|next| next.started_seq);
                match next.or(state.open().map(|open| open.started_seq())) {
                    Some(next) => before(view, key, &state, next)?,
                    None => whole(&state, head),
                }
            }
            Some((turn, items)) => {
                let part = Some((disk::turn(key, &turn)?, items));
                ForkPoint { part, ..before(view, key, &state, turn.started_seq)? }
            }
            None => return Ok(Err(Error::NotFound("settled item"))),
        },
    };
    Ok(Ok(found))
}

/// Everything, of a thread without an open turn.
fn whole(state: &ThreadState, head: Seq) -> ForkPoint {
    ForkPoint {
        parent: state.view().clone(),
        at: head,
        last: state.last().cloned(),
        context_seq: state.context_seq(),
        title: None,
        part: None,
    }
}

/// The place right before the turn that started, or would start, at `started`.
fn before(view: &dyn View, key: ThreadKey, state: &ThreadState, started: Seq) -> Result<ForkPoint, StoreError> {
    let mut at = ahead_of(view, key, started)?;
    // A fork's log has to say which turn is its last, and behind a turn that was taken out a log does not: what held
    // before that one began is the same, and said.
    while let Some(started) = taken_out(view, key, at)? {
        at = ahead_of(view, key, started)?;
    }
    after(view, key, state, at)
}

/// The last event before a turn and what goes with its start: a prompt that waited is promoted by the event before it.
fn ahead_of(view: &dyn View, key: ThreadKey, started: Seq) -> Result<Seq, StoreError> {
    let promoted = view.event(key, started - 1)?.is_some_and(|event| event.name == "prompt.promoted");
    Ok(started - 1 - Seq::from(promoted))
}

/// Where the turn began that the event at `at` took out of the conversation, if it did.
fn taken_out(view: &dyn View, key: ThreadKey, at: Seq) -> Result<Option<Seq>, StoreError> {
    if view.event(key, at)?.is_none_or(|event| event.name != "turn.rolled_back") {
        return Ok(None);
    }
    let mut place = at;
    while let Some(settled) = view.turn_before(key, place)? {
        if settled.reverted == Some(at) {
            return Ok(Some(settled.started_seq));
        }
        place = settled.started_seq;
    }
    let why = "the turn that it takes out is not there".to_owned();
    Err(StoreError::Corrupt(Corrupt { record: format!("events {key}/{at}"), why }))
}

/// The place right after `at`, where no turn was open and none had just been taken out: as the log said then, not as it
/// says now.
fn after(view: &dyn View, key: ThreadKey, state: &ThreadState, at: Seq) -> Result<ForkPoint, StoreError> {
    let (mut last, mut compaction, mut context_seq) = (None, None, None);
    let mut place = at + 1;
    while last.is_none()
        && let Some(settled) = view.turn_before(key, place)?
    {
        place = settled.started_seq;
        // It may have been taken out since.
        let turn: Turn = disk::turn(key, &SettledTurn { reverted: None, ..settled.clone() })?;
        let compacts = compacts(view, key, &settled)?;
        match turn.kind {
            // It came to nothing.
            TurnKind::Compaction if !compacts => continue,
            TurnKind::Compaction => compaction = Some((turn, place)),
            TurnKind::Prompt => last = Some(Last::new(turn, place, settled.context_seq)),
        }
        context_seq.get_or_insert(if compacts { place } else { settled.context_seq });
    }
    let last = match (last, compaction) {
        (Some(last), Some((turn, started))) => Some(last.compacted_by(turn, started)),
        (last, _) => last,
    };
    let context_seq = context_seq.unwrap_or_default();
    Ok(ForkPoint { parent: state.view().clone(), at, last, context_seq, title: None, part: None })
}

/// Whether a summary took the place of the conversation during a turn.
fn compacts(view: &dyn View, key: ThreadKey, turn: &SettledTurn) -> Result<bool, StoreError> {
    let summary = |item: &Item| item.kind == ItemKind::ContextCompaction && item.status == TurnStatus::Completed;
    Ok(disk::items(view, key, turn)?.iter().any(summary))
}

fn started(view: &dyn View, key: ThreadKey, state: &ThreadState, turn: TurnId) -> Result<Option<Seq>, StoreError> {
    let open = state.open().filter(|open| open.turn().id == turn).map(|open| open.started_seq());
    match open {
        Some(started) => Ok(Some(started)),
        None => Ok(view.turn(key, turn)?.map(|settled| settled.started_seq)),
    }
}

/// The settled turn of an item, and its items up to that one.
fn holder(view: &dyn View, key: ThreadKey, item: ItemId) -> Result<Option<(SettledTurn, Vec<Item>)>, StoreError> {
    // Newest first: people go back a little more often than far. There is no index of items.
    let mut place = Seq::MAX;
    while let Some(settled) = view.turn_before(key, place)? {
        place = settled.started_seq;
        let turn = disk::turn(key, &settled)?;
        let Some(count) = turn.item_ids.iter().position(|known| *known == item).map(|at| at + 1) else { continue };
        let mut items =
            disk::items(view, key, &SettledTurn { items: settled.items[..count].to_vec(), ..settled.clone() })?;
        // Items come to their end in another order than they began in where tools run side by side.
        items.retain(|item| item.ended_at.is_some());
        if items.last().is_none_or(|last| last.id != item) {
            let why = "its items are not those that its record names".to_owned();
            return Err(StoreError::Corrupt(Corrupt { record: format!("turns {key}/{}", settled.id), why }));
        }
        return Ok(Some((settled, items)));
    }
    Ok(None)
}
