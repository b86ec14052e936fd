//! What is done with the disk: rebuild a state from its row and the log's tail, and turn steps
//! into one append.

use std::sync::Arc;

use raddle_domain::{
    event::{self, BadRecord, Event, Record},
    id::{Seq, TenantId, ThreadKey},
    policy::{Policy, TenantRules},
    ports::{
        Append, Chunk, Corrupt, Document, DocumentKind, Indexed, LogKind, Receipt, RecordKind, Reverted, RowHead,
        SettledTurn, Spent, StoreError, StoredEvent, ThreadRow, View,
    },
    price::Totals,
    record::{ApprovalStatus, Decision, EffectClass, Item, Permit, QuestionStatus, Thread, Turn, TurnStatus},
    thread::{Rest, Settled, Snapshot, Step, ThreadState},
    time::UnixMs,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Events read from the log at a time while a state is rebuilt.
const PAGE: usize = 1_000;
const PAGE_BYTES: usize = 1024 * 1024;

/// A state as the store holds it.
pub(crate) struct Loaded {
    pub state: ThreadState,
    pub head: RowHead,
    /// The snapshot that the row holds, to be written again until a newer one takes its place.
    pub rest: SavedRest,
}

/// A snapshot as bytes, and the event after which it held.
#[derive(Clone)]
pub(crate) struct SavedRest {
    pub seq: Seq,
    pub json: Arc<[u8]>,
}

/// Rebuilds a thread from its row and what its log says since.
pub(crate) fn load(view: &dyn View, key: ThreadKey) -> Result<Option<Loaded>, StoreError> {
    let Some(row) = view.row(key)? else { return Ok(None) };
    let corrupt = |why: String| StoreError::Corrupt(Corrupt { record: format!("threads {key}"), why });
    let snapshot: Snapshot = serde_json::from_slice(&row.snapshot).map_err(|why| corrupt(why.to_string()))?;
    let mut needed = Vec::new();
    for seq in snapshot.needs() {
        let stored = view.event(key, seq)?.ok_or_else(|| corrupt(format!("event {seq} of the log is missing")))?;
        needed.push(decode(key, seq, &stored)?);
    }
    let mut turns = Vec::new();
    for started in snapshot.needs_turns() {
        let found = view.turns(key, started.saturating_sub(1), 1)?.into_iter().find(|turn| turn.started_seq == started);
        let found = found.ok_or_else(|| corrupt(format!("the turn at {started} is missing")))?;
        turns.push(turn(key, &found)?);
    }
    let mut state = ThreadState::restore(snapshot, &needed, &turns).map_err(|why| corrupt(why.to_string()))?;
    if state.seq() != row.head.snapshot_seq {
        return Err(corrupt("the snapshot is of another place in the log".to_owned()));
    }
    while state.seq() < row.head.last_seq {
        let chunks = view.events(key, state.seq(), PAGE, PAGE_BYTES)?;
        if chunks.is_empty() {
            return Err(corrupt(format!("the log ends at {}, the row at {}", state.seq(), row.head.last_seq)));
        }
        for record in records(key, &chunks) {
            state.apply(&record?).map_err(|why| corrupt(why.to_string()))?;
        }
    }
    let rest = SavedRest { seq: row.head.snapshot_seq, json: row.snapshot };
    Ok(Some(Loaded { state, head: row.head, rest }))
}

/// The records of `chunks`.
pub(crate) fn records(key: ThreadKey, chunks: &[Chunk]) -> impl Iterator<Item = Result<Record, StoreError>> {
    chunks.iter().flat_map(move |chunk| {
        chunk.events.iter().zip(chunk.first..).map(move |(stored, seq)| decode(key, seq, stored))
    })
}

/// Reads one stored event.
pub(crate) fn decode(key: ThreadKey, seq: Seq, stored: &StoredEvent) -> Result<Record, StoreError> {
    let corrupt = |why: BadRecord| Corrupt { record: format!("log {key}/{seq}"), why: why.to_string() };
    Ok(Record::decode(event::SCHEMA, &stored.json).map_err(corrupt)?)
}

/// Steps of one thread that are saved together.
#[derive(Default)]
pub(crate) struct Steps {
    events: Vec<StoredEvent>,
    settled: Vec<SettledTurn>,
    reverted: Vec<Reverted>,
    rest: Option<Rest>,
    pub receipts: Vec<Receipt>,
    indexed: Vec<Indexed>,
    pub spent: Vec<Spent>,
    documents: Vec<Document>,
}

impl Steps {
    /// Adds what a step emitted.
    pub fn add(&mut self, step: &Step) {
        self.events.extend(step.records.iter().map(stored));
        self.settled.extend(step.settled.iter().map(settled));
        self.reverted.extend(&step.reverted);
        for record in &step.records {
            self.indexed.extend(indexed(record));
            self.spent.extend(spent(record));
            self.documents.extend(document(record));
        }
        if step.rest.is_some() {
            self.rest.clone_from(&step.rest);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// The append that saves them, and the snapshot that its row holds. `state` is the state after them.
    pub fn append(
        self,
        key: ThreadKey,
        fence: u64,
        state: &ThreadState,
        last: Option<&SavedRest>,
        now: UnixMs,
    ) -> (Append, SavedRest) {
        let expected = state.seq() - self.events.len() as Seq;
        let rest = match (self.rest, last) {
            (Some(rest), _) => SavedRest { seq: rest.seq, json: json(&rest.snapshot).into() },
            (None, Some(last)) => last.clone(),
            (None, None) => unreachable!("a thread rests when it is created"),
        };
        let head = RowHead {
            last_seq: state.seq(),
            snapshot_seq: rest.seq,
            fence,
            listed_at: state.view().updated_at,
            owes_since: state.owes_since(),
            wake_at: state.owed().wake_at,
            archived: state.view().archived,
            kind: LogKind::Thread,
        };
        let row = ThreadRow { head, view: json(state.view()).into(), snapshot: rest.json.clone() };
        let chunk = Chunk { first: expected + 1, events: self.events };
        let Self { settled, reverted, receipts, indexed, spent, documents, .. } = self;
        let append = Append::new(key, expected, now, chunk, row);
        (Append { settled, reverted, receipts, indexed, spent, documents, ..append }, rest)
    }
}

/// An event as the bytes that are stored and streamed.
pub(crate) fn stored(record: &Record) -> StoredEvent {
    StoredEvent { name: record.event.name().into(), json: json(record).into() }
}

fn settled(settled: &Settled) -> SettledTurn {
    SettledTurn {
        id: settled.turn.id,
        started_seq: settled.started_seq,
        turn: json(&settled.turn),
        items: settled.items.clone(),
        context_seq: settled.context_seq,
        reverted: None,
    }
}

/// The JSON of a record of ours.
pub(crate) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Records hold strings, numbers and string-keyed maps: nothing that JSON cannot say.
    serde_json::to_vec(value).expect("records are JSON")
}

/// The items of a turn that ended, from the places in the log that it names.
pub(crate) fn items(view: &dyn View, key: ThreadKey, turn: &SettledTurn) -> Result<Vec<Item>, StoreError> {
    let item = |seq: &Seq| {
        let stored = view.event(key, *seq)?;
        let record = stored.map(|stored| decode(key, *seq, &stored)).transpose()?;
        match record.map(|record| record.event) {
            Some(Event::ItemCompleted(item)) => Ok(*item),
            _ => {
                let why = format!("event {seq} is not the end of an item");
                Err(StoreError::Corrupt(Corrupt { record: format!("turns {key}/{}", turn.id), why }))
            }
        }
    };
    turn.items.iter().map(item).collect()
}

/// The record of a turn that ended.
pub(crate) fn turn(key: ThreadKey, settled: &SettledTurn) -> Result<Turn, StoreError> {
    let corrupt =
        |why: serde_json::Error| Corrupt { record: format!("turns {key}/{}", settled.id), why: why.to_string() };
    let turn: Turn = serde_json::from_slice(&settled.turn).map_err(corrupt)?;
    Ok(match settled.reverted {
        Some(_) => Turn { status: TurnStatus::RolledBack, ..turn },
        None => turn,
    })
}

/// What an event says of a record that is found by its id.
fn indexed(record: &Record) -> Option<Indexed> {
    let (kind, id, open) = match &record.event {
        Event::ApprovalRequired(approval)
        | Event::ApprovalDecided(approval)
        | Event::ApprovalExpired(approval)
        | Event::ApprovalCancelled(approval) => {
            (RecordKind::Approval, approval.id.as_bytes(), approval.status == ApprovalStatus::Pending)
        }
        Event::QuestionAsked(question)
        | Event::QuestionAnswered(question)
        | Event::QuestionExpired(question)
        | Event::QuestionCancelled(question) => {
            (RecordKind::Question, question.id.as_bytes(), question.status == QuestionStatus::Pending)
        }
        Event::EffectUncertain(effect) => (RecordKind::Effect, effect.operation_id.as_bytes(), !effect.closed),
        Event::EffectReconciled(effect) => (RecordKind::Effect, effect.operation_id.as_bytes(), false),
        // What became of one that was uncertain before: it was settled by a word, or goes on with another attempt.
        Event::EffectStarted(effect) | Event::EffectSettled(effect)
            if effect.resolution.is_some() || (effect.attempt > 1 && effect.class != EffectClass::Read) =>
        {
            (RecordKind::Effect, effect.operation_id.as_bytes(), false)
        }
        Event::PromptPromoted(admission) | Event::PromptWithdrawn(admission) | Event::PromptNotDelivered(admission) => {
            (RecordKind::Input, admission.id.as_bytes(), false)
        }
        _ => return None,
    };
    Some(Indexed { kind, id: Uuid::from_bytes(*id), seq: record.seq, open })
}

/// What an event says of money.
fn spent(record: &Record) -> Option<Spent> {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let (engine, model, totals) = match &record.event {
        Event::UsageRecorded(_, entry) => (&entry.engine, &entry.model, Totals::of_call(&entry.usage, entry.cost)),
        Event::TurnCompleted(turn) => {
            (&turn.settings.engine, &turn.settings.model, Totals { turns: 1, ..Totals::default() })
        }
        _ => return None,
    };
    let day = u32::try_from(record.ts.0 / DAY).unwrap_or(u32::MAX);
    Some(Spent { day, engine: engine.clone(), model: model.clone(), totals })
}

/// The rule that a decision makes for the whole tenant.
fn document(record: &Record) -> Option<Document> {
    let Event::ApprovalDecided(approval) = &record.event else { return None };
    let permit = approval.amendment.as_ref().filter(|_| approval.decision == Some(Decision::ApprovedAlways))?;
    let id = Sha256::digest(json(permit)).into();
    Some(Document { kind: DocumentKind::PolicyRule, id, json: json(permit) })
}

/// What the tenant has said about calls.
///
/// What it says of a layer that cannot be read may have been a denial: until somebody writes it anew, everything is
/// asked, and nothing that was allowed before passes.
pub(crate) fn rules(view: &dyn View, tenant: TenantId) -> Result<TenantRules, StoreError> {
    match policy(view, tenant) {
        Ok(policy) => Ok(TenantRules { policy, permits: permits(view, tenant)? }),
        Err(StoreError::Corrupt(why)) => {
            tracing::error!(%tenant, %why, "the tenant's policy cannot be read: everything is asked");
            Ok(TenantRules { policy: Policy::unreadable(), permits: Vec::new() })
        }
        Err(why) => Err(why),
    }
}

/// The tenant's own layer.
pub(crate) fn policy(view: &dyn View, tenant: TenantId) -> Result<Policy, StoreError> {
    let corrupt = |why: serde_json::Error| Corrupt { record: format!("the policy of {tenant}"), why: why.to_string() };
    let documents = view.documents(tenant, DocumentKind::Policy)?;
    let Some(document) = documents.first() else { return Ok(Policy::default()) };
    Ok(serde_json::from_slice(&document.json).map_err(corrupt)?)
}

/// How a permit's rule is named: by the beginning of its document's id.
pub(crate) fn permit_name(id: &[u8; 32]) -> String {
    id[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The calls that the tenant approved for ever, by the names of their rules.
pub(crate) fn permits(view: &dyn View, tenant: TenantId) -> Result<Vec<(String, Permit)>, StoreError> {
    // What cannot be read permits nothing: then somebody is asked, and the tenant's turns go on.
    let unreadable =
        |why: &dyn std::fmt::Display| tracing::error!(%tenant, %why, "a rule of the policy is passed over");
    let documents = match view.documents(tenant, DocumentKind::PolicyRule) {
        Err(StoreError::Corrupt(corrupt)) => {
            unreadable(&corrupt);
            Vec::new()
        }
        documents => documents?,
    };
    let permit = |document: &Document| match serde_json::from_slice(&document.json) {
        Ok(permit) => Some((permit_name(&document.id), permit)),
        Err(why) => {
            unreadable(&why);
            None
        }
    };
    Ok(documents.iter().filter_map(permit).collect())
}

/// The record of a thread, as its row holds it.
pub(crate) fn thread(key: ThreadKey, row: &ThreadRow) -> Result<Thread, StoreError> {
    let corrupt = |why: serde_json::Error| Corrupt { record: format!("threads {key}"), why: why.to_string() };
    Ok(serde_json::from_slice(&row.view).map_err(corrupt)?)
}
