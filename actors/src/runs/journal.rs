//! What tools do for runs, carried from the logs of threads into the ledgers of their runs.
//!
//! ```text
//!   thread's step ── effect.* with a run ──▶ feed ──▶ this hook ──▶ Journal ──▶ run's step ──▶ ledger
//!                                                        │
//!                                                        └── what did it do to files? ──▶ mutation
//! ```
//! It is a hook like those that are configured: it reads the log behind a cursor of its own, so nothing is lost by a
//! crash, or by a run that cannot be reached for a while. What comes twice the run passes over: it knows the newest event
//! of each thread that it has.

use std::{collections::BTreeMap, sync::Arc};

use raddle_domain::{
    event::{self, Event, Record},
    hook::{EventFilter, OnReject, Since},
    id::{RunId, TenantId},
    ports::{Files, HookBatch, Sink, SinkError, SinkWork},
    record::{Effect, EffectOutcome, EffectStatus},
    run::{LedgerPhase, LedgerRecord, LedgerStatus, MutationRecord, Source, command::Journal},
};
use tokio::sync::SetOnce;

use crate::{
    handle::{Error, WeakRuntime},
    hooks::Hook,
};

/// The name of its cursor; no hook that is configured can have it.
const NAME: &str = "raddle:ledger";

/// Where the ledger's events go: to the runs of the runtime that it is told of once there is one.
pub(crate) struct Ledger {
    runtime: Arc<SetOnce<WeakRuntime>>,
    files: Arc<dyn Files>,
}

/// The hook that carries effects, and the place where it is told of the runtime.
pub(crate) fn hook(files: Arc<dyn Files>) -> (Hook, Arc<SetOnce<WeakRuntime>>) {
    let runtime = Arc::new(SetOnce::new());
    let events = ["effect.started", "effect.settled", "effect.uncertain"].map(str::to_owned).to_vec();
    let hook = Hook {
        name: NAME.into(),
        kind: "ledger",
        events: EventFilter::parse(events).expect("these are events"),
        tenants: None,
        since: Since::Now,
        // A run that cannot be read does not keep the others waiting.
        on_reject: OnReject::Skip,
        sink: Arc::new(Ledger { runtime: runtime.clone(), files }),
    };
    (hook, runtime)
}

impl Sink for Ledger {
    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let (runtime, files) = (self.runtime.clone(), self.files.clone());
        Box::pin(async move {
            let mut by_run: BTreeMap<RunId, Vec<Journal>> = BTreeMap::new();
            for hooked in &batch.events {
                let record = Record::decode(event::SCHEMA, &hooked.event.json);
                let record = record.map_err(|why| SinkError::Rejected(why.to_string()))?;
                if let Some((run, journal)) = entry(&*files, batch.tenant, record).await? {
                    by_run.entry(run).or_default().push(journal);
                }
            }
            if by_run.is_empty() {
                return Ok(());
            }
            let runtime = runtime.wait().await.get().map_err(|why| later(&why))?;
            for (run, entries) in by_run {
                match runtime.journal(batch.tenant, run, entries).await {
                    // A run that is gone has no ledger, nor has one that never was.
                    Ok(()) | Err(Error::NotFound(_) | Error::Deleted) => {}
                    Err(why @ (Error::Run(_) | Error::ThreadUnavailable(_) | Error::Internal(_))) => {
                        return Err(SinkError::Rejected(format!("the run {run}: {why}")));
                    }
                    Err(why) => return Err(later(&why)),
                }
            }
            Ok(())
        })
    }
}

fn later(why: &impl ToString) -> SinkError {
    SinkError::Unavailable { why: why.to_string(), retry_after: None }
}

/// What an event of a thread says to the ledger of a run, if it is about one.
async fn entry(files: &dyn Files, tenant: TenantId, record: Record) -> Result<Option<(RunId, Journal)>, SinkError> {
    let (Event::EffectStarted(effect) | Event::EffectSettled(effect) | Event::EffectUncertain(effect)) = record.event
    else {
        return Ok(None);
    };
    let Some(run) = effect.run_id else { return Ok(None) };
    let source = Source {
        thread_id: effect.thread_id,
        turn_id: effect.turn_id,
        item_id: effect.item_id,
        operation_id: effect.operation_id,
        seq: record.seq,
    };
    let (phase, status) = standing(&effect);
    let changed = match phase {
        LedgerPhase::Invocation => None,
        LedgerPhase::Outcome => files.changed(tenant, effect.operation_id).await.map_err(|why| later(&why))?,
    };
    let mutation = changed.map(|changed| MutationRecord {
        source,
        task_id: None,
        tool: effect.tool.clone(),
        workspace: changed.workspace,
        files: changed.files,
    });
    let effect = LedgerRecord {
        source,
        task_id: None,
        tool: effect.tool,
        phase,
        status,
        attempt: effect.attempt,
        arguments_sha256: effect.arguments_sha256,
        output_sha256: effect.output_sha256,
        output_bytes: effect.output_bytes,
    };
    Ok(Some((run, Journal { effect, mutation })))
}

fn standing(effect: &Effect) -> (LedgerPhase, LedgerStatus) {
    match (effect.status, effect.outcome) {
        (EffectStatus::Intended | EffectStatus::Started, _) => (LedgerPhase::Invocation, LedgerStatus::Started),
        (EffectStatus::Uncertain, _) => (LedgerPhase::Outcome, LedgerStatus::Uncertain),
        (EffectStatus::Settled, Some(EffectOutcome::Succeeded)) => (LedgerPhase::Outcome, LedgerStatus::Succeeded),
        (EffectStatus::Settled, Some(EffectOutcome::Canceled)) => (LedgerPhase::Outcome, LedgerStatus::Blocked),
        (EffectStatus::Settled, Some(EffectOutcome::Failed) | None) => (LedgerPhase::Outcome, LedgerStatus::Failed),
    }
}
