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

use std::{collections::BTreeMap, io::ErrorKind, sync::Arc, time::Duration};

use raddle_domain::{
    event::{self, Event, Record},
    hook::{EventFilter, OnReject, Since},
    id::{RunId, TenantId},
    ports::{Files, HookBatch, Sink, SinkError, SinkWork, StoredEvent},
    record::{Effect, EffectOutcome, EffectStatus},
    run::{LedgerPhase, LedgerRecord, LedgerStatus, MutationRecord, Source, command::Journal},
};
use tokio::sync::SetOnce;

use crate::{
    handle::{Error, Runtime, WeakRuntime},
    hooks::Hook,
};

/// The name of its cursor; no hook that is configured can have it.
pub(crate) const NAME: &str = "raddle:ledger";
/// How long a worker's word about a task waits for the ledger. Usually that is no time at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where an effect says that it is in a ledger.
const OF_A_RUN: &[u8] = br#""run_id":"run_"#;

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
        // A run that fails time after time does not keep the others waiting for ever.
        on_reject: OnReject::Skip,
        sink: Arc::new(Ledger { runtime: runtime.clone(), files }),
    };
    (hook, runtime)
}

impl Runtime {
    /// Ready when the ledgers have whatever threads of a tenant have done up to now, or do not get it soon. What is said
    /// of a task after that cannot be taken for something that was there before.
    pub(crate) async fn ledgers_are_up(&self, tenant: TenantId) {
        let carried = self.shared().hooks.carried(NAME, Some(tenant));
        if tokio::time::timeout(PATIENCE, carried).await.is_err() {
            tracing::warn!(%tenant, "the ledgers are late: effects may miss the task that they were for");
        }
    }
}

impl Sink for Ledger {
    /// Most effects are of threads that work for no run: their events are passed over without being read.
    fn looks_at(&self, event: &StoredEvent) -> bool {
        event.json.windows(OF_A_RUN.len()).any(|part| part == OF_A_RUN)
    }

    fn deliver(&self, batch: HookBatch) -> SinkWork {
        let (runtime, files) = (self.runtime.clone(), self.files.clone());
        Box::pin(async move {
            let mut by_run: BTreeMap<RunId, Vec<Journal>> = BTreeMap::new();
            for hooked in &batch.events {
                let record = match Record::decode(event::SCHEMA, &hooked.event.json) {
                    Ok(record) => record,
                    Err(why) => {
                        let HookBatch { tenant, .. } = batch;
                        tracing::error!(%tenant, position = hooked.position, %why, "an effect is in no ledger");
                        continue;
                    }
                };
                if let Some((run, journal)) = entry(&*files, batch.tenant, record).await? {
                    by_run.entry(run).or_default().push(journal);
                }
            }
            if by_run.is_empty() {
                return Ok(());
            }
            let runtime = runtime.wait().await.get().map_err(|why| later(&why))?;
            // Each run gets its own, whatever becomes of the others: those that have it pass over it the next time.
            let (mut waits, mut refused) = (None, None);
            for (run, entries) in by_run {
                match runtime.journal(batch.tenant, run, entries).await {
                    // A run that is gone has no ledger, nor has one that never was.
                    Ok(()) | Err(Error::NotFound(_) | Error::Deleted) => {}
                    // That would be so for ever.
                    Err(why @ (Error::Run(_) | Error::ThreadUnavailable(_))) => {
                        tracing::error!(tenant = %batch.tenant, %run, %why, "effects are not in the ledger of their run");
                    }
                    Err(why @ Error::Internal(_)) => refused = Some(format!("the run {run}: {why}")),
                    Err(why) => waits = Some(later(&why)),
                }
            }
            match (waits, refused) {
                (Some(waits), _) => Err(waits),
                (None, Some(refused)) => Err(SinkError::Rejected(refused)),
                (None, None) => Ok(()),
            }
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
        LedgerPhase::Outcome => match files.changed(tenant, effect.operation_id).await {
            Ok(changed) => changed,
            // A note that is damaged stays so. What was done to files cannot be taken back then; that it was done is told.
            Err(why) if matches!(why.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
                tracing::error!(%tenant, operation = %effect.operation_id, %why, "what a tool did to files is not known");
                None
            }
            Err(why) => return Err(later(&why)),
        },
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
        task_id: effect.task_id,
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
