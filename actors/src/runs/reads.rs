//! What is asked of runs without changing them: from the last commit, without loading one.

use std::time::Duration;

use raddle_domain::{
    id::{CheckpointId, RunId, Seq, TenantId, ThreadKey},
    ports::{PartKind, PartName, RecordKind, StoreError, View},
    run::{
        Checkpoint, Entry, Image, LedgerRecord, LedgerSummary, Mutation, Record, Rest, Rollback, RollbackPreview, Run,
        RunState, RunStatus, Summaries, Task, TaskStatus,
        drift::{Drift, drift},
        event::{Event, RollbackBlocked},
        preview,
    },
    time::UnixMs,
};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{RollbackEnded, no_run};
use crate::{
    handle::{Error, Runtime},
    reads::{Events, Page},
    run::{corrupt, decode, image, parts},
    subscription::{Next, Subscription},
};

/// Runs that one page of a filtered list looks at.
const SCAN: usize = 2_000;
/// Events of a log that are read at a time.
const PAGE: usize = 2_000;
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Which runs to list; oldest first.
#[derive(Debug, Clone, Default)]
pub struct RunQuery {
    pub status: Option<RunStatus>,
    pub run_type: Option<String>,
    pub source: Option<String>,
    /// The path that they are bound to.
    pub workspace: Option<String>,
    pub after: Option<Uuid>,
    pub limit: usize,
}

impl RunQuery {
    fn wants(&self, run: &Run) -> bool {
        self.status.is_none_or(|status| run.status == status)
            && self.run_type.as_ref().is_none_or(|wanted| run.run_type.eq_ignore_ascii_case(wanted))
            && self.source.as_ref().is_none_or(|wanted| run.source_client.as_ref() == Some(wanted))
            && self.workspace.as_ref().is_none_or(|wanted| run.workspace.canonical_path == *wanted)
    }
}

/// Which tasks of a run to list; oldest first.
#[derive(Debug, Clone, Default)]
pub struct TaskQuery {
    pub status: Option<TaskStatus>,
    pub task_type: Option<String>,
    pub workflow_id: Option<String>,
    /// The place of the last one that was seen.
    pub after: Option<u64>,
    pub limit: usize,
}

impl TaskQuery {
    fn wants(&self, task: &Task) -> bool {
        self.status.is_none_or(|status| task.status == status)
            && self.task_type.as_ref().is_none_or(|wanted| task.task_type == *wanted)
            && self.workflow_id.as_ref().is_none_or(|wanted| task.workflow_id.as_ref() == Some(wanted))
    }
}

/// A page of runs. Those whose record cannot be read are named, not hidden.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunPage {
    pub data: Vec<Run>,
    pub unavailable: Vec<(RunId, String)>,
    pub next: Option<Uuid>,
}

/// A run with its tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct RunWhole {
    pub run: Run,
    pub tasks: Vec<Task>,
}

/// The blackboard of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Board {
    pub entries: Vec<Entry>,
    pub summaries: Summaries,
    pub tasks: Vec<Task>,
    pub revision: u64,
}

/// An event of the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    pub seq: Seq,
    pub ts: UnixMs,
    pub record: LedgerRecord,
}

/// A part of a ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerPage {
    pub entries: Vec<LedgerEntry>,
    /// Of all of it.
    pub summary: LedgerSummary,
    /// The event behind which the rest begins.
    pub next: Option<Seq>,
}

/// An attempt to put files back, or its end.
#[derive(Debug, Clone, PartialEq)]
pub struct RollbackEntry {
    pub seq: Seq,
    pub ts: UnixMs,
    pub what: RollbackWhat,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RollbackWhat {
    Started(Rollback),
    Applied(Rollback, u32),
    Blocked(RollbackBlocked),
}

/// A run as its log makes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    pub image: Image,
    pub from: Option<Checkpoint>,
    pub events: u64,
    /// What differs from what is kept, where all of the log was replayed.
    pub drift: Option<Drift>,
}

/// The record of a run; nothing where there is none of this very name.
fn record(view: &dyn View, tenant: TenantId, run: RunId) -> Result<Option<(Run, Rest)>, StoreError> {
    let key = run.log(tenant);
    let Some(row) = view.row(key)? else { return Ok(None) };
    let record: Run = serde_json::from_slice(&row.view).map_err(|why| corrupt(key, why))?;
    let rest = serde_json::from_slice(&row.snapshot).map_err(|why| corrupt(key, why))?;
    Ok((record.id == run).then_some((record, rest)))
}

fn read<T: DeserializeOwned>(key: ThreadKey, (_, json): &(PartName, Vec<u8>)) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|why| corrupt(key, why))
}

fn all<T: DeserializeOwned>(view: &dyn View, key: ThreadKey, kind: PartKind) -> Result<Vec<T>, StoreError> {
    parts(view, key, kind)?.iter().map(|part| read(key, part)).collect()
}

impl Runtime {
    /// Reads from one view what `read` wants of a run.
    pub(super) async fn of_run<T: Send + 'static>(
        &self,
        tenant: TenantId,
        run: RunId,
        read: impl FnOnce(&dyn View, ThreadKey, Run, Rest) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let found = self.read_of(tenant, move |view| {
            let Some((record, rest)) = record(view, tenant, run)? else { return Ok(None) };
            read(view, run.log(tenant), record, rest).map(Some)
        });
        found.await?.ok_or(Error::NotFound("run"))
    }

    /// The record of a run.
    pub async fn run(&self, tenant: TenantId, run: RunId) -> Result<Run, Error> {
        self.of_run(tenant, run, |_, _, record, _| Ok(record)).await
    }

    /// A run with all of its tasks.
    pub async fn run_whole(&self, tenant: TenantId, run: RunId) -> Result<RunWhole, Error> {
        let read = |view: &dyn View, key, run, _| Ok(RunWhole { run, tasks: all(view, key, PartKind::Task)? });
        self.of_run(tenant, run, read).await
    }

    /// Runs of a tenant, oldest first; the cursor is the last one's id. None of them is loaded for it.
    pub async fn runs(&self, tenant: TenantId, query: RunQuery) -> Result<RunPage, Error> {
        let read = move |view: &dyn View| {
            // What has ended stands behind what goes on, in an index of its own.
            let open = query.status.is_some_and(|status| !status.is_terminal());
            let mut page = RunPage::default();
            let mut after = query.after;
            for _ in 0..SCAN.div_ceil(query.limit.max(1)) {
                let found = view.records(tenant, RecordKind::Run, None, open, after, query.limit)?;
                let more = found.len() == query.limit;
                for place in found {
                    after = Some(place.id);
                    match record(view, tenant, RunId::new(place.id)) {
                        Ok(Some((run, _))) if query.wants(&run) => page.data.push(run),
                        Ok(_) => {}
                        Err(StoreError::Corrupt(why)) => {
                            page.unavailable.push((RunId::new(place.id), StoreError::Corrupt(why).to_string()));
                        }
                        Err(error) => return Err(error),
                    }
                    if page.data.len() == query.limit {
                        break;
                    }
                }
                page.next = after.filter(|_| more || page.data.len() == query.limit);
                if page.next.is_none() || page.data.len() == query.limit {
                    break;
                }
            }
            Ok(page)
        };
        self.read_of(tenant, read).await
    }

    /// Tasks of a run, oldest first; the cursor is the place of the last one.
    pub async fn tasks(&self, tenant: TenantId, run: RunId, query: TaskQuery) -> Result<Page<Task, u64>, Error> {
        let read = move |view: &dyn View, key, _, _| {
            let mut page = Page { data: Vec::new(), next: None };
            let mut after = query.after.map(PartName::number);
            loop {
                let found = view.parts(key, PartKind::Task, after, SCAN)?;
                let more = found.len() == SCAN;
                for part in &found {
                    let task: Task = read(key, part)?;
                    if query.wants(&task) {
                        if page.data.len() == query.limit {
                            page.next = after.map(|name| name.as_number());
                            return Ok(page);
                        }
                        page.data.push(task);
                    }
                    after = Some(part.0);
                }
                if !more {
                    return Ok(page);
                }
            }
        };
        self.of_run(tenant, run, read).await
    }

    /// A task by its id.
    pub async fn task(&self, tenant: TenantId, run: RunId, task: String) -> Result<Task, Error> {
        let found = self.of_run(tenant, run, move |view, key, _, _| {
            let Some(slot) = view.part(key, PartKind::TaskName, PartName::digest(&task))? else { return Ok(None) };
            let slot = serde_json::from_slice(&slot).map_err(|why| corrupt(key, why))?;
            let found = view.part(key, PartKind::Task, PartName::number(slot))?;
            let found = found.ok_or_else(|| corrupt(key, format!("the task at {slot} is missing")))?;
            let found: Task = serde_json::from_slice(&found).map_err(|why| corrupt(key, why))?;
            Ok(Some(found).filter(|found| found.id == task))
        });
        found.await?.ok_or(Error::NotFound("task"))
    }

    /// The blackboard of a run.
    pub async fn board(&self, tenant: TenantId, run: RunId) -> Result<Board, Error> {
        let read = |view: &dyn View, key, run: Run, _| {
            let mut summaries = Summaries::default();
            for part in parts(view, key, PartKind::Summary)? {
                let text =
                    if part.0.as_number() == 0 { &mut summaries.rolling } else { &mut summaries.latest_context_pack };
                *text = read(key, &part)?;
            }
            let (entries, tasks) = (all(view, key, PartKind::Entry)?, all(view, key, PartKind::Task)?);
            Ok(Board { entries, summaries, tasks, revision: run.revision })
        };
        self.of_run(tenant, run, read).await
    }

    /// Stored events of a run's log after `after`, at most `limit`.
    pub async fn run_events(&self, tenant: TenantId, run: RunId, after: Seq, limit: usize) -> Result<Events, Error> {
        self.run(tenant, run).await?;
        self.events(run.log(tenant), after, limit).await.map_err(no_run)
    }

    /// One event of a run's log, as it is stored.
    pub async fn run_event(&self, tenant: TenantId, run: RunId, seq: Seq) -> Result<bytes::Bytes, Error> {
        let read = move |view: &dyn View, key, _, _| {
            let stored = view.event(key, seq)?;
            stored.map(|stored| stored.json).ok_or_else(|| corrupt(key, format!("event {seq} is missing")))
        };
        self.of_run(tenant, run, read).await
    }

    /// Watches a run from right after `after`. An `after` beyond the head is refused as invalid.
    pub async fn subscribe_run(&self, tenant: TenantId, run: RunId, after: Seq) -> Result<Subscription, Error> {
        self.run(tenant, run).await?;
        self.subscribe(run.log(tenant), after).await.map_err(no_run)
    }

    /// The checkpoints of a run, oldest first.
    pub async fn run_checkpoints(&self, tenant: TenantId, run: RunId) -> Result<Vec<Checkpoint>, Error> {
        self.of_run(tenant, run, |view, key, _, _| all(view, key, PartKind::Checkpoint)).await
    }

    /// A checkpoint with its copy.
    pub async fn run_checkpoint(
        &self,
        tenant: TenantId,
        run: RunId,
        checkpoint: CheckpointId,
    ) -> Result<(Checkpoint, Image), Error> {
        let found = self.of_run(tenant, run, move |view, key, _, _| {
            for part in parts(view, key, PartKind::Checkpoint)? {
                let saved: Checkpoint = read(key, &part)?;
                if saved.id == checkpoint {
                    let copy = view.part(key, PartKind::Image, part.0)?;
                    let copy = copy.ok_or_else(|| corrupt(key, "the copy of a checkpoint is missing"))?;
                    let image = serde_json::from_slice(&copy).map_err(|why| corrupt(key, why))?;
                    return Ok(Some((saved, image)));
                }
            }
            Ok(None)
        });
        found.await?.ok_or(Error::NotFound("checkpoint"))
    }

    /// Events of a run's log from right after `after` to `upto`, piece by piece, each with the state that `fold` makes.
    async fn through_log<T: Send + 'static>(
        &self,
        key: ThreadKey,
        (after, upto): (Seq, Seq),
        mut state: T,
        fold: impl Fn(&mut T, Record) -> Result<(), StoreError> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let mut after = after;
        while after < upto {
            let fold = fold.clone();
            let read = self.read_of(key.tenant, move |view| {
                let mut at = after;
                for chunk in view.events(key, after, PAGE, PAGE_BYTES)? {
                    for (seq, stored) in (chunk.first..=upto).zip(&chunk.events) {
                        fold(&mut state, decode(key, seq, stored)?)?;
                        at = seq;
                    }
                }
                Ok((state, at))
            });
            let (folded, at) = read.await?;
            if at == after {
                return Err(Error::ThreadUnavailable(format!("the log of {key} ends at {at}, its row at {upto}")));
            }
            (state, after) = (folded, at);
        }
        Ok(state)
    }

    /// Makes a run from its log alone, or from a checkpoint on, and compares it with what is kept.
    pub async fn replay_run(
        &self,
        tenant: TenantId,
        run: RunId,
        upto: Option<Seq>,
        from: Option<CheckpointId>,
    ) -> Result<Replayed, Error> {
        let kept = self.of_run(tenant, run, |view, key, _, _| image(view, key)).await?;
        let (kept, head) = kept.ok_or(Error::NotFound("run"))?;
        let upto = upto.unwrap_or(head.last_seq);
        let beyond =
            |field, why: String| Err(raddle_domain::run::Refused::Invalid { field: String::from(field), why }.into());
        if upto > head.last_seq || upto == 0 {
            return beyond("upto_seq", format!("must be from 1 to {}, the newest event", head.last_seq));
        }
        let key = run.log(tenant);
        let (state, from) = match from {
            None => (None, None),
            Some(id) => {
                let (checkpoint, image) = self.run_checkpoint(tenant, run, id).await?;
                if checkpoint.seq > upto {
                    return beyond("upto_seq", format!("is before the checkpoint, which is at {}", checkpoint.seq));
                }
                let state = RunState::of(image).map_err(|bad| Error::from(corrupt(key, bad)))?;
                (Some(state), Some(checkpoint))
            }
        };
        let after = from.as_ref().map_or(0, |checkpoint| checkpoint.seq);
        let fold = move |state: &mut Option<RunState>, record: Record| {
            match state {
                Some(state) => state.apply(&record).map_err(|why| corrupt(key, why))?,
                None => *state = Some(RunState::begin(&record).map_err(|why| corrupt(key, why))?),
            }
            Ok(())
        };
        let state = self.through_log(key, (after, upto), state, fold).await?;
        let state = state.ok_or(Error::NotFound("run"))?;
        let drift = move || {
            let image = state.image();
            let drift = (upto == head.last_seq).then(|| drift(&kept, &image));
            Replayed { image, from, events: upto - after, drift }
        };
        // Thousands of tasks take a while to compare.
        let compared = self.shared().tasks.blocking(drift).await;
        compared.map_err(|why| Error::Internal(why.to_string()))
    }

    /// A page of the ledger, and what all of it comes to.
    pub async fn run_ledger(
        &self,
        tenant: TenantId,
        run: RunId,
        after: Seq,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        let (head, summary) = self.of_run(tenant, run, |_, _, run, rest| Ok((run.last_event_seq, rest.ledger))).await?;
        let found = self.named(run.log(tenant), (after, head), limit, |name| name == "tool_effect_recorded").await?;
        let (records, next) = found;
        let entries = records.into_iter().filter_map(|record| match record.event {
            Event::EffectRecorded(effect) => Some(LedgerEntry { seq: record.seq, ts: record.ts, record: *effect }),
            _ => None,
        });
        Ok(LedgerPage { entries: entries.collect(), summary, next })
    }

    /// At most `limit` events of some names, and where the rest begins. Others are not parsed.
    async fn named(
        &self,
        key: ThreadKey,
        (after, upto): (Seq, Seq),
        limit: usize,
        wanted: fn(&str) -> bool,
    ) -> Result<(Vec<Record>, Option<Seq>), Error> {
        let (mut found, mut at) = (Vec::new(), after);
        while at < upto {
            let room = limit - found.len();
            let read = self.read_of(key.tenant, move |view| {
                let (mut more, mut last) = (Vec::new(), at);
                for chunk in view.events(key, at, PAGE, PAGE_BYTES)? {
                    // What was said since is not part of what was looked at.
                    for (seq, stored) in (chunk.first..=upto).zip(&chunk.events) {
                        if wanted(&stored.name) {
                            if more.len() == room {
                                return Ok((more, last, true));
                            }
                            more.push(decode(key, seq, stored)?);
                        }
                        last = seq;
                    }
                }
                Ok((more, last, false))
            });
            let (more, last, full) = read.await?;
            found.extend(more);
            if full {
                return Ok((found, Some(last)));
            }
            if last == at {
                break;
            }
            at = last;
        }
        Ok((found, None))
    }

    /// What tools did to files for a run, oldest first, after the event `after`.
    pub async fn run_mutations(
        &self,
        tenant: TenantId,
        run: RunId,
        after: Seq,
        limit: usize,
    ) -> Result<Page<Mutation, Seq>, Error> {
        let read = move |view: &dyn View, key, _, _| {
            let found = view.parts(key, PartKind::Mutation, Some(PartName::number(after)), limit + 1)?;
            let more = found.len() > limit;
            let data: Vec<Mutation> = found.iter().take(limit).map(|part| read(key, part)).collect::<Result<_, _>>()?;
            let next = data.last().map(|last| last.seq).filter(|_| more);
            Ok(Page { data, next })
        };
        self.of_run(tenant, run, read).await
    }

    /// What could be taken back of what tools did to files.
    pub async fn rollback_preview(&self, tenant: TenantId, run: RunId) -> Result<RollbackPreview, Error> {
        let read = |view: &dyn View, key, run: Run, _| {
            let mutations: Vec<Mutation> = all(view, key, PartKind::Mutation)?;
            Ok(preview(run.status, mutations.iter()))
        };
        self.of_run(tenant, run, read).await
    }

    /// What was taken back, and what was asked to be, oldest first.
    pub async fn rollback_history(
        &self,
        tenant: TenantId,
        run: RunId,
        after: Seq,
        limit: usize,
    ) -> Result<Page<RollbackEntry, Seq>, Error> {
        let head = self.run(tenant, run).await?.last_event_seq;
        let wanted = |name: &str| name.starts_with("rollback_execution_");
        let (records, next) = self.named(run.log(tenant), (after, head), limit, wanted).await?;
        let entries = records.into_iter().filter_map(|record| {
            let what = match record.event {
                Event::RollbackStarted(rollback) => RollbackWhat::Started(rollback),
                Event::RollbackApplied { rollback, files } => RollbackWhat::Applied(rollback, files),
                Event::RollbackBlocked(blocked) => RollbackWhat::Blocked(blocked),
                _ => return None,
            };
            Some(RollbackEntry { seq: record.seq, ts: record.ts, what })
        });
        Ok(Page { data: entries.collect(), next })
    }

    /// How a rollback ended, once it has, or `None` when `timeout` has passed before.
    pub async fn rollback_ended(
        &self,
        tenant: TenantId,
        run: RunId,
        rollback: &Rollback,
        timeout: Duration,
    ) -> Result<Option<RollbackEnded>, Error> {
        let ended = async {
            // From its beginning: an end that has come already is then part of the backlog.
            let mut subscription = self.subscribe_run(tenant, run, rollback.started_seq).await?.uncounted();
            loop {
                let chunks = match subscription.next().await? {
                    Next::Stored(chunks) => chunks,
                    Next::Live { batch, .. } => vec![batch.chunk.clone()],
                    Next::Gap { .. } => {
                        subscription = self.subscribe_run(tenant, run, rollback.started_seq).await?.uncounted();
                        continue;
                    }
                    Next::Shutdown { .. } => return Err(Error::Draining),
                    Next::Deleted => return Err(Error::NotFound("run")),
                };
                for chunk in chunks {
                    for (seq, stored) in (chunk.first..).zip(&chunk.events) {
                        if !stored.name.starts_with("rollback_execution_") {
                            continue;
                        }
                        match decode(run.log(tenant), seq, stored)?.event {
                            Event::RollbackApplied { rollback: ended, files } if ended == *rollback => {
                                return Ok(RollbackEnded::Applied { seq, files });
                            }
                            Event::RollbackBlocked(blocked) if blocked.event_ids == rollback.event_ids => {
                                return Ok(RollbackEnded::Blocked(blocked));
                            }
                            _ => {}
                        }
                    }
                }
            }
        };
        match tokio::time::timeout(timeout, ended).await {
            // It goes on whether or not somebody can watch.
            Ok(Err(Error::Busy { .. })) | Err(_) => Ok(None),
            Ok(ended) => ended.map(Some),
        }
    }
}
