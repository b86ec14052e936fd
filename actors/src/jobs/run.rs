//! The work on one log: whatever its state demands, to its end or to the next time at which it is due.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use futures_util::FutureExt;
use raddle_domain::{
    command::{Interrupt, StartTurn},
    id::{InputId, JobId, ThreadKey, TurnId},
    job::{DETAIL_BYTES, Job, JobRefused, JobStatus, Token, TurnWork, Verb, Work},
    ports::{JobDenied, JobEnd, JobRun, Output, RecordKind, Saying, SettledTurn, StoreError, View},
    record::{AdmissionStatus, Delivery, ItemKind, ThreadStatus, TurnOverrides, TurnStatus},
    time::UnixMs,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Notify, oneshot},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Desk, How,
    book::{self, Found},
    task, tick,
};
use crate::{
    bus::Subscribe,
    disk,
    handle::{Call, Error, Runtime, Started},
    receipts::Idempotency,
    system::Shared,
    thread::ThreadMachine,
};

/// How long what a run says may wait to be joined by more: at first, and, as each of these is an event with the whole
/// record, twice as long each time, up to the longest.
const SAYING: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long a server that is busy is left alone.
pub(super) const BUSY: Duration = Duration::from_secs(1);
/// The longest pause before a start that finds no room is tried again.
const FULL: Duration = Duration::from_secs(15);

/// Does what a log demands.
pub(super) async fn tend(desk: Desk) -> How {
    match tended(&desk).await {
        Ok(()) | Err(Error::NotFound(_) | Error::Draining) => How::Done,
        // Somebody was faster: it is due again, or not.
        Err(Error::Job(_)) => How::Done,
        Err(Error::ThreadUnavailable(why)) => {
            tracing::error!(key = %desk.key, why, "a job or schedule cannot be read; it is left alone");
            How::Broken
        }
        Err(error) => {
            tracing::warn!(key = %desk.key, %error, "a job or schedule is tried again");
            How::Later
        }
    }
}

async fn tended(desk: &Desk) -> Result<(), Error> {
    let Desk { shared, key, .. } = desk;
    let key = *key;
    loop {
        let job = match book::read(shared, move |view| book::found(view, key)).await? {
            None => return Ok(()),
            Some(Found::Schedule(_)) => return tick::tick(desk).await,
            Some(Found::Job(job)) => *job,
        };
        let (now, owner) = (shared.clock.now(), shared.store.epoch());
        if job.stopping {
            let again = tell(desk, &job).await?;
            book::update(shared, key, Verb::Stopped { again }, Call::default()).await?;
            continue;
        }
        match job.status {
            JobStatus::Running => match job.lease {
                Some(lease) if lease.owner < owner => lose(shared, key, Verb::Lose { owner }).await?,
                Some(lease) if lease.expires_at <= now => lose(shared, key, Verb::Expire).await?,
                _ => return Ok(()),
            },
            JobStatus::Queued if job.due_at() <= now => return begin(desk, &job).await,
            JobStatus::Queued | JobStatus::Paused | JobStatus::Uncertain => return Ok(()),
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
                let forgotten = job.head(owner, book::retention(shared)).wake_at;
                return match forgotten {
                    Some(at) if at <= now => book::erase(shared, key, job.seq).await,
                    _ => Ok(()),
                };
            }
        }
    }
}

async fn lose(shared: &Arc<Shared>, key: ThreadKey, verb: Verb) -> Result<(), Error> {
    book::update(shared, key, verb, Call::default()).await.map(drop)
}

/// Takes the lease. One that was stored although its commit failed is taken up: it would run out with nobody having run.
async fn take(desk: &Desk, due: &Job) -> Result<(Job, Token), Error> {
    let Desk { shared, key, .. } = desk;
    let key = *key;
    let ours = Token { owner: shared.store.epoch(), term: due.begun + 1 };
    let held = |job: Job| job.lease.map(|lease| lease.token()).filter(|token| *token == ours).map(|token| (job, token));
    let mut in_doubt = false;
    loop {
        let expires_at = shared.clock.now().after(shared.config.jobs_lease);
        match book::update(shared, key, Verb::Begin { owner: ours.owner, expires_at }, Call::default()).await {
            Err(Error::Store(StoreError::Unavailable(_))) if !shared.draining() => {
                in_doubt = true;
                sleep(BUSY).await;
            }
            Err(Error::Job(refused)) if in_doubt => {
                let job = book::read(shared, move |view| book::job(view, key)).await?;
                return job.and_then(held).ok_or(Error::Job(refused));
            }
            begun => return begun.map(held)?.ok_or(Error::Job(JobRefused::NotYours)),
        }
    }
}

/// Takes the lease and runs.
async fn begin(desk: &Desk, due: &Job) -> Result<(), Error> {
    let shared = &desk.shared;
    let (job, token) = take(desk, due).await?;
    let _counted = Counted::new(shared, !matches!(job.work, Work::Turn(_)));
    let output = Arc::new(Said::default());
    let work = async {
        match &job.work {
            Work::Turn(turn) => task::worked(desk, &job, turn, token).await,
            _ => other(desk, &job, output.clone()).await,
        }
    };
    let Some(end) = held(desk, token, &output, work).await? else { return Ok(()) };
    let verb = match end {
        End::Of(JobEnd::Done(output)) => Verb::Complete { token, output },
        End::Of(JobEnd::Failed { why, again }) => Verb::Fail { token, why, again },
        // What may be done twice is done again.
        End::Of(JobEnd::Unknown(why)) if job.work.may_repeat() => Verb::Fail { token, why, again: true },
        End::Of(JobEnd::Unknown(why)) => Verb::Doubt { token, why },
        End::GivenUp(why) => Verb::GiveUp { token, why },
    };
    report(desk, verb).await
}

/// Saves how a run ended. What cannot be saved now may be saved later: an outcome that is known must not become one
/// that nobody knows.
async fn report(desk: &Desk, verb: Verb) -> Result<(), Error> {
    loop {
        match book::update(&desk.shared, desk.key, verb.clone(), Call::default()).await {
            Ok(_) | Err(Error::Job(JobRefused::NotYours)) => return Ok(()),
            Err(Error::Store(StoreError::Full | StoreError::Unavailable(_))) if !desk.shared.draining() => {
                sleep(BUSY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// How a run ended, or that it was ended.
pub(super) enum End {
    Of(JobEnd),
    GivenUp(String),
}

/// A run that counts as one that is under way.
struct Counted<'s> {
    shared: &'s Arc<Shared>,
    waited_for: bool,
}

impl<'s> Counted<'s> {
    fn new(shared: &'s Arc<Shared>, waited_for: bool) -> Self {
        shared.registry.counters.jobs.running.fetch_add(1, Relaxed);
        shared.at_work.fetch_add(usize::from(waited_for), SeqCst);
        Self { shared, waited_for }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.shared.registry.counters.jobs.running.fetch_sub(1, Relaxed);
        self.shared.at_work.fetch_sub(usize::from(self.waited_for), SeqCst);
        self.shared.registry.rested.notify_waiters();
    }
}

/// What a run says, until it is saved.
#[derive(Default)]
struct Said {
    text: Mutex<String>,
    more: Notify,
}

impl Output for Said {
    fn say(&self, text: String) -> Saying<'_> {
        let mut said = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        said.push_str(&text);
        // Twice what is kept: the machine keeps the end, and cuts it where a letter ends.
        if said.len() > 2 * DETAIL_BYTES {
            let mut from = said.len() - DETAIL_BYTES;
            while !said.is_char_boundary(from) {
                from += 1;
            }
            said.drain(..from);
        }
        drop(said);
        self.more.notify_one();
        Box::pin(async {})
    }
}

/// Does `work` while the lease is held; `None` when it was lost, and nobody is to hear of the rest.
async fn held(
    desk: &Desk,
    token: Token,
    said: &Said,
    work: impl Future<Output = Result<End, Error>>,
) -> Result<Option<End>, Error> {
    let Desk { shared, key, .. } = desk;
    let lease = shared.config.jobs_lease;
    let mut beat = interval((lease / 3).max(Duration::from_millis(10)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.tick().await;
    let kept = async {
        let mut saying = SAYING.0;
        loop {
            let verb = tokio::select! {
                _ = beat.tick() => Verb::Renew { token, expires_at: shared.clock.now().after(lease) },
                () = said.more.notified() => {
                    sleep(saying.min(lease / 3)).await;
                    saying = (saying * 2).min(SAYING.1);
                    let detail = said.text.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    Verb::Progress { token, progress: None, detail: Some(detail) }
                }
            };
            if !still(book::update(shared, *key, verb, Call::default()).await) {
                return;
            }
        }
    };
    // Side by side: the work changes the job too, and whoever waits for its turn to do that while the other one, which
    // has it, stands still, waits for ever.
    tokio::select! {
        ended = AssertUnwindSafe(work).catch_unwind() => match ended {
            Ok(end) => end.map(Some),
            Err(_) => {
                tracing::error!(%key, "the runner of a job panicked");
                Ok(Some(End::Of(JobEnd::Unknown("its runner broke off; this is a defect".to_owned()))))
            }
        },
        () = kept => Ok(None),
    }
}

/// Whether the lease is held, as far as anybody knows.
fn still(saved: Result<Job, Error>) -> bool {
    !matches!(saved, Err(Error::Job(_) | Error::NotFound(_)))
}

// ---- webhooks and commands -----------------------------------------------------------------------

/// What a runner is told.
pub(super) fn run_of(
    view: &dyn View,
    key: ThreadKey,
    job: JobId,
    run: u32,
    work: &Work,
    at: UnixMs,
) -> Result<JobRun, StoreError> {
    let tenant = key.tenant;
    let thread = match work.thread() {
        None => None,
        Some(thread) => {
            let key = ThreadKey { tenant, thread };
            view.row(key)?.map(|row| disk::thread(key, &row)).transpose()?
        }
    };
    Ok(JobRun { tenant, job, run, at, work: work.clone(), thread, rules: disk::rules(view, tenant)? })
}

async fn other(desk: &Desk, job: &Job, output: Arc<Said>) -> Result<End, Error> {
    let (key, id, run, work, now) = (desk.key, job.id, job.run, job.work.clone(), desk.shared.clock.now());
    let run = book::read(&desk.shared, move |view| run_of(view, key, id, run, &work, now)).await?;
    let failed = |why: String| Ok(End::Of(JobEnd::Failed { why, again: false }));
    if run.work.thread().is_some() && run.thread.is_none() {
        return failed("its thread is gone".to_owned());
    }
    // The rules may have changed since it was asked for.
    match desk.shared.runner.judge(&run) {
        Ok(_) => Ok(End::Of(desk.shared.runner.run(run, output).await)),
        Err(JobDenied::Invalid { field, why }) => failed(format!("`{field}` {why}")),
        Err(JobDenied::Forbidden { reason, rule }) => failed(format!("the rule {rule} forbids it: {reason}")),
    }
}

// ---- turns ---------------------------------------------------------------------------------------

/// By what the request for a run's turn is known again.
fn idempotency(job: JobId, run: u32) -> Call {
    let digest = |what: &str| -> [u8; 32] { Sha256::digest(format!("{what} {job} {run}")).into() };
    Call { idempotency: Some(Idempotency { key: digest("turn of"), request: digest("prompt of") }), ..Call::default() }
}

fn start_of(runtime: &Runtime, job: &Job, work: &TurnWork) -> Result<StartTurn, Error> {
    let choice = work.model.as_deref().map(|model| runtime.models().resolve(None, Some(model))).transpose();
    let choice = choice.map_err(|unknown| JobRefused::Invalid { field: "payload.model", why: unknown.0 })?;
    let overrides = TurnOverrides {
        choice,
        mode: work.mode.clone(),
        allow_shell: work.allow_shell,
        auto_approve: work.auto_approve,
        trust_mode: work.trust_mode,
        temperature: None,
        top_p: None,
        max_tokens: work.max_tokens,
        budget: work.budget,
        input_summary: work.input_summary.clone(),
        route_intent: work.route_intent.clone(),
        task_id: job.task_id.clone(),
    };
    Ok(StartTurn { prompt: work.prompt.clone(), delivery: Delivery::Queue, overrides, ..StartTurn::default() })
}

/// What of the world may be over in a moment.
pub(super) const fn passes(error: &Error) -> bool {
    matches!(
        error,
        Error::Busy { .. }
            | Error::RateLimited { .. }
            | Error::InFlight
            | Error::Store(StoreError::Full | StoreError::Unavailable(_))
    )
}

/// What passes once somebody else has done something: bounds of the tenant, and of the thread's inbox.
const fn is_full(error: &Error) -> bool {
    matches!(error, Error::Quota { .. } | Error::Refused(raddle_domain::command::Refused::InboxFull { .. }))
}

/// Finds the turn of the run, or starts it, and follows it to its end.
pub(super) async fn follow(desk: &Desk, job: &Job, work: &TurnWork, token: Token) -> Result<End, Error> {
    let thread = ThreadKey { tenant: desk.key.tenant, thread: work.thread_id };
    let (mut input, mut turn) = (job.input_id, job.turn_id);
    if input.is_none() && turn.is_none() {
        match start(desk, job, work, thread).await? {
            Ok((of_input, of_turn)) => (input, turn) = (of_input, of_turn),
            Err(end) => return Ok(end),
        }
        attach(desk, token, input, turn).await?;
    }
    loop {
        let (reply, watch) = oneshot::channel();
        desk.shared.bus.do_send(Subscribe { key: thread, reply });
        let mut watch = watch.await.map_err(|_| Error::Draining)?;
        loop {
            let seen = book::read(&desk.shared, move |view| look(view, thread, input, turn)).await;
            match seen {
                Ok(Seen::Promoted(promoted)) => {
                    turn = Some(promoted);
                    attach(desk, token, input, turn).await?;
                    continue;
                }
                Ok(Seen::Open { waits }) => desk.waits(waits),
                Ok(Seen::Ended(end)) => {
                    desk.waits(false);
                    return Ok(end);
                }
                Err(error) if passes(&error) => {
                    sleep(BUSY).await;
                    // Nothing was seen: what would wake it may have been the thread's last event.
                    continue;
                }
                Err(error) => return Err(error),
            }
            // Only what may end it, or have it wait, is worth a look.
            loop {
                let Some(batch) = watch.next().await else { break };
                let matters = |name: &str| {
                    ["turn.completed", "thread.", "prompt.", "approval.", "question.", "effect."]
                        .iter()
                        .any(|prefix| name.starts_with(prefix))
                };
                if batch.chunk.events.iter().any(|event| matters(&event.name)) {
                    break;
                }
            }
            if watch.was_let_go() {
                break;
            }
        }
    }
}

async fn attach(desk: &Desk, token: Token, input: Option<InputId>, turn: Option<TurnId>) -> Result<(), Error> {
    loop {
        match book::update(&desk.shared, desk.key, Verb::Attach { token, input, turn }, Call::default()).await {
            Err(error) if passes(&error) => sleep(BUSY).await,
            attached => return attached.map(drop),
        }
    }
}

/// The prompt, or the turn, that the run became.
type Begun = (Option<InputId>, Option<TurnId>);

async fn start(desk: &Desk, job: &Job, work: &TurnWork, thread: ThreadKey) -> Result<Result<Begun, End>, Error> {
    let failed = |why: String| Ok(Err(End::Of(JobEnd::Failed { why, again: false })));
    let mut pause = BUSY;
    loop {
        let runtime = desk.runtime.get()?;
        let started = match start_of(&runtime, job, work) {
            Ok(start) => runtime.start_turn(thread, start, idempotency(job.id, job.run)).await,
            Err(error) => Err(error),
        };
        drop(runtime);
        return match started.map(|done| done.value) {
            Ok(Started::Turn(turn)) => Ok(Ok((None, Some(turn.id)))),
            Ok(Started::Queued { admission, .. }) => Ok(Ok((Some(admission.id), None))),
            Err(Error::Draining) => Err(Error::Draining),
            Err(error) if passes(&error) => {
                sleep(BUSY).await;
                continue;
            }
            Err(error) if is_full(&error) => {
                // That is no failure of the job, and may take long: nobody else waits for its place meanwhile.
                desk.waits(true);
                sleep(pause).await;
                pause = (pause * 2).min(FULL);
                desk.waits(false);
                continue;
            }
            Err(Error::NotFound(_) | Error::Deleted) => failed("its thread is gone".to_owned()),
            Err(error) => failed(error.to_string()),
        };
    }
}

/// What can be seen of a run's turn.
enum Seen {
    Promoted(TurnId),
    Open { waits: bool },
    Ended(End),
}

fn look(view: &dyn View, key: ThreadKey, input: Option<InputId>, turn: Option<TurnId>) -> Result<Seen, StoreError> {
    let ended = |end| Ok(Seen::Ended(end));
    let failed = |why: String, again| ended(End::Of(JobEnd::Failed { why, again }));
    let Some(row) = view.row(key)? else { return failed("its thread is gone".to_owned(), false) };
    let Some(turn) = turn else { return prompt(view, key, input) };
    let Some(settled) = view.turn(key, turn)? else {
        let waits = disk::thread(key, &row)?.status == ThreadStatus::AwaitingApproval;
        return Ok(Seen::Open { waits });
    };
    let record = disk::turn(key, &settled)?;
    match record.status {
        TurnStatus::Completed | TurnStatus::RolledBack => ended(End::Of(JobEnd::Done(output_of(view, key, &settled)?))),
        TurnStatus::Interrupted => ended(End::GivenUp("its turn was interrupted".to_owned())),
        _ => failed(record.error.map_or_else(|| "its turn failed".to_owned(), |error| error.message), true),
    }
}

/// What a turn that was completed came to; nothing if there is no such turn any more.
pub(super) fn came_to(view: &dyn View, key: ThreadKey, turn: TurnId) -> Result<Option<Value>, StoreError> {
    view.turn(key, turn)?.map(|settled| output_of(view, key, &settled)).transpose()
}

fn output_of(view: &dyn View, key: ThreadKey, settled: &SettledTurn) -> Result<Value, StoreError> {
    let items = disk::items(view, key, settled)?;
    let said = items.into_iter().rev().find(|item| item.kind == ItemKind::AgentMessage);
    let text = said.map(|item| item.detail).unwrap_or_default();
    Ok(json!({ "turn_id": settled.id, "text": text }))
}

/// What became of a prompt that waits behind another turn.
fn prompt(view: &dyn View, key: ThreadKey, input: Option<InputId>) -> Result<Seen, StoreError> {
    let Some(input) = input else {
        let why = "nobody knows what became of its prompt".to_owned();
        return Ok(Seen::Ended(End::Of(JobEnd::Unknown(why))));
    };
    let id = uuid::Uuid::from_bytes(*input.as_bytes());
    let Some(found) = view.record(key.tenant, RecordKind::Input, id)? else { return Ok(Seen::Open { waits: false }) };
    let Some(stored) = view.event(key, found.seq)? else { return Ok(Seen::Open { waits: false }) };
    use raddle_domain::event::Event;
    let admission = match disk::decode(key, found.seq, &stored)?.event {
        Event::PromptPromoted(admission) | Event::PromptWithdrawn(admission) | Event::PromptNotDelivered(admission) => {
            admission
        }
        _ => return Ok(Seen::Open { waits: false }),
    };
    Ok(match (admission.status, admission.turn_id) {
        (AdmissionStatus::Promoted, Some(turn)) => Seen::Promoted(turn),
        (AdmissionStatus::Pending, _) => Seen::Open { waits: false },
        _ => Seen::Ended(End::GivenUp("its prompt was taken back".to_owned())),
    })
}

/// Tells the turn of a run that was taken from it, and says what becomes of its task. Whether the work is then to be
/// done again: not if the turn was completed before it could be told.
async fn tell(desk: &Desk, job: &Job) -> Result<bool, Error> {
    let Work::Turn(work) = &job.work else { return Ok(true) };
    let completed = call_off(desk, job).await?;
    // Only now: nobody else may be at the task while the turn goes on.
    task::settled(desk, job, work, completed).await?;
    Ok(completed.is_none())
}

/// Ends what a run became: a prompt that waits is taken back, a turn that is open is ended. The turn, if it was completed
/// before.
pub(super) async fn call_off(desk: &Desk, job: &Job) -> Result<Option<TurnId>, Error> {
    let Work::Turn(work) = &job.work else { return Ok(None) };
    let key = ThreadKey { tenant: desk.key.tenant, thread: work.thread_id };
    let (mut input, mut turn) = (job.input_id, job.turn_id);
    let runtime = desk.runtime.get()?;
    if input.is_none() && turn.is_none() {
        let call = idempotency(job.id, job.run);
        // While the request is under way nobody can say; then it is asked again after a pause.
        let _alone = runtime.in_flight(key.tenant, call.idempotency)?;
        match runtime.recall::<ThreadMachine>(key.tenant, call.idempotency).await {
            Ok(Some(recalled)) => match crate::handle::started(recalled.reply)? {
                Started::Turn(started) => turn = Some(started.id),
                Started::Queued { admission, .. } => input = Some(admission.id),
            },
            Ok(None) | Err(Error::Deleted) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    if let (Some(input), None) = (input, turn) {
        match runtime.withdraw_prompt(key, input, Call::default()).await {
            Err(Error::AlreadyPromoted(admission)) => turn = admission.turn_id,
            Err(Error::NotFound(_) | Error::Deleted) | Ok(_) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let Some(turn) = turn else { return Ok(None) };
    match runtime.interrupt(key, Interrupt { turn, pause_queue: false }, Call::default()).await {
        Ok(_) | Err(Error::NotFound(_) | Error::Deleted) => Ok(None),
        Err(Error::Refused(_)) => match runtime.turn(key, turn).await {
            Ok(ended) => Ok(Some(turn).filter(|_| ended.status == TurnStatus::Completed)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}
