//! Threads, and what their tenants said of calls, in the words of the store: what is stored is read as records, and
//! records are written as what is stored.

use raddle_domain::{
    event::{self, BadRecord, Event, Record},
    id::{Seq, TenantId, ThreadKey},
    policy::{Policy, TenantRules},
    ports::{
        Chunk, Corrupt, Document, DocumentKind, Indexed, RecordKind, SettledTurn, Spent, StoreError, StoredEvent,
        ThreadRow, View,
    },
    price::Totals,
    record::{ApprovalStatus, Decision, EffectClass, Item, Permit, QuestionStatus, Thread, Turn, TurnStatus},
    thread::Settled,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

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

/// An event as the bytes that are stored and streamed.
pub(crate) fn stored(record: &Record) -> StoredEvent {
    StoredEvent { name: record.event.name().into(), json: json(record).into() }
}

/// A turn that ended, as its row.
pub(crate) fn settled(settled: &Settled) -> SettledTurn {
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
pub(crate) fn indexed(record: &Record) -> Option<Indexed> {
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
pub(crate) fn spent(record: &Record) -> Option<Spent> {
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
pub(crate) fn document(record: &Record) -> Option<Document> {
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
