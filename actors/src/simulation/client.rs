//! Whoever asks something of the runtime, as somebody far away does: who may hear nothing, and then asks again.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use raddle_domain::{
    command::{Compact, EditPrompt, Interrupt, NewThread, StartTurn, Steer, ThreadPatch},
    id::{ApprovalId, InputId, JobId, OperationId, QuestionId, RunId, TenantId, ThreadId, ThreadKey},
    job::{CommandWork, Template, TurnWork, WebhookWork, Work},
    record::{Decision, OnRestart, Resolution, Thread, Turn, Undelivered},
    run::{
        TaskLease,
        command::{Claim, NewRun, NewTask, Transition, ValidateLease},
    },
    schedule::NewSchedule,
    tenant::{Budget, Budgets, Quotas, TenantPatch},
};
use sha2::{Digest, Sha256};
use tokio::{task::LocalSet, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    agent, board, chores,
    model::choice,
    plan::{At, Change, Chore, Move, Verb, Word},
    quota::{self, ROOM},
    scheduler::Scheduler,
    watcher,
    witness::{DEFECT, Fact, REPLAY, Replied, Told, Violation, unless},
    world::World,
};
use crate::{Call, Done, Error, ForkAt, Idempotency, RecordQuery, Runtime, Started};

/// How often something is asked again.
const TRIES: u32 = 12;
/// How often, and how long after each other, somebody looks for what he is to speak about.
const LOOKS: u32 = 12;
const LOOK: Duration = Duration::from_millis(350);
/// The one name that a checkpoint gets.
const CHECKPOINT: &str = "here";

/// What clients know.
pub(crate) struct Outside {
    pub world: Arc<World>,
    pub door: RefCell<Option<Door>>,
    /// Processes that there were.
    pub lives: Cell<u32>,
    /// The threads that they made.
    pub threads: RefCell<Vec<Option<ThreadKey>>>,
    /// The logs of the runs that they made.
    pub runs: RefCell<Vec<Option<ThreadKey>>>,
    /// The jobs that they made, and whose they are.
    pub work: RefCell<Vec<Option<(TenantId, JobId)>>>,
    pub watchers: RefCell<Vec<Rc<watcher::Watcher>>>,
    /// What was refused for a quota.
    pub refused: RefCell<BTreeMap<u32, (Move, Request)>>,
    /// Set when nobody begins anything any more.
    pub over: Cell<bool>,
}

/// The way into a process that is there.
pub(crate) struct Door {
    pub runtime: Runtime,
    pub local: Weak<LocalSet>,
    pub scheduler: Arc<Scheduler>,
}

impl Outside {
    /// Lets something run in the process that is there; nothing if there is none, or it died meanwhile.
    pub async fn call<T: 'static>(&self, ask: impl AsyncFnOnce(Runtime) -> T + 'static) -> Option<T> {
        let running = {
            let door = self.door.borrow();
            let door = door.as_ref()?;
            let runtime = door.runtime.clone();
            let task = door.scheduler.deferred(async move { ask(runtime).await });
            AbortOnDropHandle::new(door.local.upgrade()?.spawn_local(task))
        };
        running.await.ok()
    }

    /// The same, until there is an answer.
    pub async fn insist<T: 'static>(&self, ask: impl AsyncFnOnce(Runtime) -> T + Clone + 'static) -> T {
        loop {
            if let Some(answer) = self.call(ask.clone()).await {
                return answer;
            }
            sleep(Duration::from_millis(30)).await;
        }
    }

    fn thread(&self, place: usize) -> Option<ThreadKey> {
        self.threads.borrow().get(place).copied().flatten()
    }

    pub fn run(&self, place: usize) -> Option<ThreadKey> {
        self.runs.borrow().get(place).copied().flatten()
    }
}

fn keep<T: Clone>(keys: &RefCell<Vec<Option<T>>>, place: usize, key: T) {
    let mut keys = keys.borrow_mut();
    if keys.len() <= place {
        keys.resize(place + 1, None);
    }
    keys[place] = Some(key);
}

/// The tenant of a thread that is made.
pub(crate) fn tenant(number: usize) -> TenantId {
    if number == 0 { TenantId::DEFAULT } else { "other".parse().expect("it is a name") }
}

/// A request as it is sent, and sent again.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Create(TenantId, NewThread),
    Start(ThreadKey, StartTurn),
    Steer(ThreadKey, Steer),
    EditLast(ThreadKey, StartTurn),
    EditPrompt(ThreadKey, EditPrompt),
    Withdraw(ThreadKey, InputId),
    Interrupt(ThreadKey, Interrupt),
    Compact(ThreadKey, Compact),
    Decide(ThreadKey, ApprovalId, Decision),
    Answer(ThreadKey, QuestionId),
    Resolve(ThreadKey, OperationId, Resolution),
    Patch(ThreadKey, ThreadPatch),
    SaveCheckpoint(ThreadKey),
    DeleteCheckpoint(ThreadKey),
    Fork(ThreadKey, ForkAt),
    Delete(ThreadKey),
    Allow(TenantId, u64),
    Grant(TenantId, Quotas),
    Erase(TenantId),
    CreateRun(TenantId),
    AddTasks(ThreadKey, Vec<NewTask>),
    Bind(ThreadKey, ValidateLease),
    Claim(ThreadKey, Claim),
    Enqueue(TenantId, Template),
    Repeat(TenantId, NewSchedule),
    Tell(TenantId, JobId, Word),
    /// Under a lease with this fence.
    Say(ThreadKey, Transition, u64),
}

/// Makes a move, to its end.
pub(crate) async fn play(outside: Rc<Outside>, step: Move, tenants: usize) {
    sleep(Duration::from_millis(step.at_ms)).await;
    let number = step.number;
    match &step.verb {
        Verb::Watch { thread, from_start, slow_ms, for_ms } => {
            if let Some(key) = outside.thread(*thread) {
                watcher::watch(outside, number, key, *from_start, *slow_ms, *for_ms).await;
            }
            return;
        }
        Verb::WatchTenant { tenant: of, slow_ms } => {
            return watcher::watch_tenant(outside, number, tenant(*of), *slow_ms).await;
        }
        Verb::Work { .. } => return agent::work(outside, step).await,
        Verb::Read { thread } => {
            if let Some(key) = outside.thread(*thread) {
                read(&outside, number, key).await;
            }
            return;
        }
        _ => {}
    }
    let mut found = request(&outside, &step, tenants).await;
    // A person waits for what he is to speak about.
    for _ in 0..LOOKS {
        if found.is_some() || outside.over.get() {
            break;
        }
        sleep(LOOK).await;
        found = request(&outside, &step, tenants).await;
    }
    let Some(request) = found else {
        outside.world.note(format_args!("move {number:<4} has nothing to be about"));
        return;
    };
    if answered(&outside, &step, &request).await.is_some() && step.again {
        sleep(Duration::from_millis(500)).await;
        answered(&outside, &step, &request).await;
    }
}

/// Reads a thread, and compares it with what is known.
async fn read(outside: &Rc<Outside>, number: u32, key: ThreadKey) {
    let world = outside.world.clone();
    let before = world.know(|witness| witness.log(key).map_or(0, super::witness::Log::head));
    let Some(Ok(thread)) = outside.call(async move |runtime: Runtime| runtime.thread(key).await).await else { return };
    world.note(format_args!("move {number:<4} reads {} at {}", thread.status.as_str(), thread.seq));
    world.witness(|witness| {
        let log = witness.log(key);
        let (head, gone) = log.map_or((0, true), |log| (log.head(), log.gone));
        unless(gone || (before..=head).contains(&thread.seq), REPLAY, || {
            format!("{} is read at {}; it went from {before} to {head} meanwhile", witness.name(key), thread.seq)
        })
    });
}

/// Asks until there is an answer, or it is not worth another try. The answer, if there was one.
pub(crate) async fn answered(outside: &Rc<Outside>, step: &Move, request: &Request) -> Option<Replied> {
    let mut pause = Duration::from_millis(step.pause_ms);
    for _ in 0..TRIES {
        if outside.over.get() {
            return None;
        }
        let is_there = outside.door.borrow().is_some();
        if is_there {
            match once(outside, step, request).await {
                Some(Ok(replied)) => return Some(replied),
                Some(Err(error)) if !passes(&error) => return None,
                Some(Err(_)) | None => {}
            }
            if !step.insists {
                return None;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
    None
}

/// Asks once. Nothing if nothing is heard.
pub(crate) async fn once(outside: &Rc<Outside>, step: &Move, request: &Request) -> Option<Result<Replied, Error>> {
    let (world, number) = (&outside.world, step.number);
    let idempotency = step.is_keyed().then(|| Idempotency { key: digest(number, 0), request: digest(number, 1) });
    match request {
        Request::Allow(tenant, tokens) => world.allows(*tenant, *tokens),
        Request::Grant(tenant, quotas) => world.grants(*tenant, *quotas),
        _ => {}
    }
    let (asked, call) = (request.clone(), Call { idempotency, ..Call::default() });
    let to = world.clone();
    let heard = outside.call(async move |runtime: Runtime| {
        let heard = ask(&runtime, asked, call).await;
        hear(&to, (number, idempotency), &heard);
        heard
    });
    let heard = heard.await;
    match &heard {
        Some(Ok(replied)) => {
            outside.refused.borrow_mut().remove(&number);
            match (&step.verb, &replied.fact) {
                (Verb::Create { to, .. } | Verb::Fork { to, .. }, Fact::Thread) => {
                    keep(&outside.threads, *to, replied.key);
                }
                (Verb::CreateRun { to }, _) => keep(&outside.runs, *to, replied.key),
                (Verb::Enqueue { to, .. }, _) => {
                    if let (Told::Job(job), tenant) = (&replied.told, replied.key.tenant) {
                        keep(&outside.work, *to, (tenant, *job));
                    }
                }
                _ => {}
            }
        }
        Some(Err(Error::Quota { .. })) => {
            outside.refused.borrow_mut().insert(number, (step.clone(), request.clone()));
        }
        Some(Err(_)) => {}
        None => world.note(format_args!("move {number:<4} hears nothing")),
    }
    heard
}

/// What is answered must be so.
fn hear(world: &World, (number, named): (u32, Option<Idempotency>), heard: &Result<Replied, Error>) {
    match heard {
        Ok(replied) => {
            let again = if replied.replayed { " again" } else { "" };
            world.note(format_args!("move {number:<4} is done{again}, at {}: {:?}", replied.seq, replied.fact));
            world.witness(|witness| witness.replied(number, named.is_some(), replied));
        }
        Err(error) => {
            world.note(format_args!("move {number:<4} is refused: {error}"));
            if let Error::Internal(why) = error {
                world.violated(Violation { invariant: DEFECT, what: format!("move {number}: {why}") });
            }
            let gone = matches!(error, Error::Deleted | Error::NotFound(_) | Error::TenantClosed(_));
            let over = matches!(error, Error::Quota { .. });
            if over && world.know(|witness| witness.has_room) {
                world.violated(Violation { invariant: ROOM, what: format!("move {number}: {error}") });
            }
            if let Some(named) = named.filter(|_| (over || !passes(error)) && !gone) {
                world.witness(|witness| witness.refused(number, named.key, &error.to_string()));
            }
        }
    }
}

/// Whether it may be otherwise a moment later.
pub(crate) fn passes(error: &Error) -> bool {
    matches!(error, Error::Busy { .. } | Error::Draining | Error::Store(_) | Error::InFlight | Error::Quota { .. })
}

fn digest(number: u32, what: u32) -> [u8; 32] {
    Sha256::digest([number.to_be_bytes(), what.to_be_bytes()].concat()).into()
}

/// What a move comes to now; nothing if there is nothing that it could be about.
async fn request(outside: &Rc<Outside>, step: &Move, tenants: usize) -> Option<Request> {
    let number = step.number;
    let said = |script: &str| format!("#{number} {script}");
    let late = |requeue: &bool| if *requeue { Undelivered::Queue } else { Undelivered::Report };
    let place = match &step.verb {
        Verb::Create { to, auto_approve, interrupts, budget } => {
            let on_restart = if *interrupts { OnRestart::Interrupt } else { OnRestart::Resume };
            let budget = budget.map(tokens);
            let new = NewThread { auto_approve: *auto_approve, on_restart, budget, ..NewThread::with(choice()) };
            return Some(Request::Create(tenant(to % tenants), new));
        }
        Verb::CreateRun { to } => return Some(Request::CreateRun(tenant(to % tenants))),
        Verb::AddTasks { run, count, attempts } => {
            let task = |nth| NewTask {
                id: Some(format!("task-{number}-{nth}")),
                task_type: "work".to_owned(),
                max_attempts: Some(*attempts),
                ..NewTask::default()
            };
            return Some(Request::AddTasks(outside.run(*run)?, (0..*count).map(task).collect()));
        }
        Verb::Allow { tenant: of, tokens } => return Some(Request::Allow(tenant(*of), *tokens)),
        Verb::Erase { tenant: of } => return Some(Request::Erase(tenant(*of))),
        Verb::Grant { tenant: of, quotas } => return Some(Request::Grant(tenant(*of), *quotas)),
        Verb::Enqueue { chore, attempts, base_ms, .. } => {
            let (tenant, work) = work(outside, chore, number)?;
            let template = Template {
                max_attempts: *attempts,
                backoff_base_ms: *base_ms,
                ..Template::new(format!("#{number}"), work)
            };
            return Some(Request::Enqueue(tenant, template));
        }
        Verb::Repeat { chore, overlap, catch_up, .. } => {
            let (tenant, work) = work(outside, chore, number)?;
            let new = NewSchedule {
                name: None,
                cron: Some("* * * * *".to_owned()),
                at: None,
                timezone: None,
                overlap: *overlap,
                catch_up: *catch_up,
                job: Template::new(format!("#{number}"), work),
            };
            return Some(Request::Repeat(tenant, new));
        }
        Verb::Tell { job, word } => {
            let (tenant, job) = outside.work.borrow().get(*job).copied().flatten()?;
            return Some(Request::Tell(tenant, job, *word));
        }
        Verb::Start { thread, .. }
        | Verb::Steer { thread, .. }
        | Verb::EditLast { thread, .. }
        | Verb::EditPrompt { thread, .. }
        | Verb::Withdraw { thread, .. }
        | Verb::Interrupt { thread, .. }
        | Verb::Compact { thread, .. }
        | Verb::Decide { thread, .. }
        | Verb::Answer { thread, .. }
        | Verb::Resolve { thread, .. }
        | Verb::Patch { thread, .. }
        | Verb::SaveCheckpoint { thread }
        | Verb::DeleteCheckpoint { thread }
        | Verb::Fork { thread, .. }
        | Verb::Delete { thread } => *thread,
        Verb::Read { .. } | Verb::Watch { .. } | Verb::WatchTenant { .. } | Verb::Work { .. } => return None,
    };
    let key = outside.thread(place)?;
    let start = |script: &str, delivery, requeue: &bool| StartTurn {
        prompt: said(script),
        delivery,
        undelivered: late(requeue),
        ..StartTurn::default()
    };
    Some(match &step.verb {
        Verb::Start { delivery, script, requeue, .. } => Request::Start(key, start(script, *delivery, requeue)),
        Verb::EditLast { script, .. } => Request::EditLast(key, start(script, Default::default(), &false)),
        Verb::Compact { delivery, .. } => Request::Compact(key, Compact { reason: None, delivery: *delivery }),
        Verb::SaveCheckpoint { .. } => Request::SaveCheckpoint(key),
        Verb::DeleteCheckpoint { .. } => Request::DeleteCheckpoint(key),
        Verb::Delete { .. } => Request::Delete(key),
        Verb::Patch { change, .. } => Request::Patch(key, patch(*change, number)),
        Verb::Steer { script, requeue, .. } => {
            let turn = thread_of(outside, key).await?.active_turn?;
            Request::Steer(key, Steer { turn, prompt: said(script), undelivered: late(requeue) })
        }
        Verb::Interrupt { pause, .. } => {
            let turn = thread_of(outside, key).await?.active_turn?;
            Request::Interrupt(key, Interrupt { turn, pause_queue: *pause })
        }
        Verb::EditPrompt { nth, script, position, .. } => {
            let prompt = script.as_deref().map(said);
            let input = waiting(outside, key, *nth).await?;
            Request::EditPrompt(key, EditPrompt { input, prompt, position: *position })
        }
        Verb::Withdraw { nth, .. } => Request::Withdraw(key, waiting(outside, key, *nth).await?),
        Verb::Decide { nth, decision, .. } => {
            let listed = outside.call(async move |runtime: Runtime| runtime.approvals(key.tenant, of(key)).await);
            Request::Decide(key, nth_of(listed.await?.ok()?.data, *nth)?.id, *decision)
        }
        Verb::Answer { nth, .. } => {
            let listed = outside.call(async move |runtime: Runtime| runtime.questions(key.tenant, of(key)).await);
            Request::Answer(key, nth_of(listed.await?.ok()?.data, *nth)?.id)
        }
        Verb::Resolve { nth, resolution, .. } => {
            let listed = outside.call(async move |runtime: Runtime| runtime.effects(key.tenant, of(key)).await);
            Request::Resolve(key, nth_of(listed.await?.ok()?.data, *nth)?.operation_id, *resolution)
        }
        Verb::Fork { at, .. } => Request::Fork(
            key,
            match at {
                At::Settled => ForkAt::Settled,
                At::Checkpoint => ForkAt::Checkpoint(CHECKPOINT.to_owned()),
                At::LastTurn => {
                    let turns = outside.call(async move |runtime: Runtime| runtime.turns(key, None, 100).await);
                    ForkAt::BeforeTurn(turns.await?.ok()?.data.last().map(|turn: &Turn| turn.id)?)
                }
            },
        ),
        Verb::Create { .. }
        | Verb::Read { .. }
        | Verb::Watch { .. }
        | Verb::WatchTenant { .. }
        | Verb::CreateRun { .. }
        | Verb::AddTasks { .. }
        | Verb::Work { .. }
        | Verb::Enqueue { .. }
        | Verb::Repeat { .. }
        | Verb::Tell { .. }
        | Verb::Allow { .. }
        | Verb::Grant { .. }
        | Verb::Erase { .. } => {
            return None;
        }
    })
}

/// What a job is to do, and for whom. Its words are not those of a move: each of its runs may say them.
fn work(outside: &Outside, chore: &Chore, number: u32) -> Option<(TenantId, Work)> {
    Some(match chore {
        Chore::Turn { thread, script } => {
            let key = outside.thread(*thread)?;
            (key.tenant, turn(key.thread, format!("job{number} {script}")))
        }
        Chore::Command { thread, words } => {
            let key = outside.thread(*thread)?;
            let command = CommandWork { thread_id: key.thread, command: words.clone(), cwd: None, timeout_ms: None };
            (key.tenant, Work::Command(command))
        }
        Chore::Webhook { words } => {
            let hook = WebhookWork { url: "http://far/".to_owned(), body: words.as_str().into(), secret: None };
            (TenantId::DEFAULT, Work::Webhook(hook))
        }
    })
}

fn turn(thread_id: ThreadId, prompt: String) -> Work {
    Work::Turn(TurnWork {
        thread_id,
        prompt,
        model: None,
        mode: None,
        allow_shell: None,
        auto_approve: None,
        trust_mode: None,
        route_intent: None,
        max_tokens: None,
        budget: None,
        input_summary: None,
        task: None,
    })
}

/// What is open of a thread.
pub(crate) fn of(key: ThreadKey) -> RecordQuery {
    RecordQuery { thread: Some(key.thread), open: true, after: None, limit: 100 }
}

fn nth_of<T>(mut found: Vec<T>, nth: usize) -> Option<T> {
    (!found.is_empty()).then(|| found.remove(nth % found.len()))
}

async fn thread_of(outside: &Outside, key: ThreadKey) -> Option<Thread> {
    outside.call(async move |runtime: Runtime| runtime.thread(key).await).await?.ok()
}

async fn waiting(outside: &Outside, key: ThreadKey, nth: usize) -> Option<InputId> {
    let inbox = outside.call(async move |runtime: Runtime| runtime.inbox(key).await).await?.ok()?;
    nth_of(inbox, nth).map(|admission| admission.id)
}

pub(crate) fn patch(change: Change, number: u32) -> ThreadPatch {
    match change {
        Change::Title => ThreadPatch { title: Some(Some(format!("#{number}"))), ..ThreadPatch::default() },
        Change::AutoApprove(auto) => ThreadPatch { auto_approve: Some(auto), ..ThreadPatch::default() },
        Change::Archived(archived) => ThreadPatch { archived: Some(archived), ..ThreadPatch::default() },
        Change::QueuePaused(paused) => ThreadPatch { queue_paused: Some(paused), ..ThreadPatch::default() },
    }
}

fn replied<T: std::fmt::Debug>(key: ThreadKey, done: &Done<T>, fact: Fact) -> Replied {
    let value = format!("{:?}", done.value);
    Replied { key, seq: done.seq, replayed: done.replayed, value, fact, told: Told::Nothing }
}

fn thing(kind: &'static str, id: impl ToString) -> Fact {
    Fact::Thing(kind, id.to_string())
}

fn began(started: &Started) -> Fact {
    match started {
        Started::Turn(turn) => thing("turn", turn.id),
        Started::Queued { admission, .. } => thing("prompt", admission.id),
    }
}

fn tokens(limit: u64) -> Budget {
    Budget { tokens: Some(limit), ..Budget::default() }
}

fn run(log: ThreadKey) -> Result<RunId, Error> {
    log.thread.of_run().ok_or(Error::NotFound("run"))
}

/// Sends a request.
async fn ask(runtime: &Runtime, request: Request, call: Call) -> Result<Replied, Error> {
    Ok(match request {
        Request::Create(tenant, new) => {
            let done = runtime.create_thread(tenant, new, call).await?;
            replied(ThreadKey { tenant, thread: done.value.id }, &done, Fact::Thread)
        }
        Request::Start(key, start) => {
            let done = runtime.start_turn(key, start, call).await?;
            replied(key, &done, began(&done.value))
        }
        Request::Steer(key, steer) => {
            let done = runtime.steer(key, steer, call).await?;
            replied(key, &done, thing("prompt", done.value.id))
        }
        Request::EditLast(key, start) => {
            let done = runtime.edit_last(key, start, call).await?;
            replied(key, &done, thing("turn", done.value.id))
        }
        Request::EditPrompt(key, edit) => {
            let done = runtime.edit_prompt(key, edit, call).await?;
            replied(key, &done, thing("change of prompt", done.value.0.id))
        }
        Request::Withdraw(key, input) => {
            let done = runtime.withdraw_prompt(key, input, call).await?;
            replied(key, &done, thing("withdrawal of prompt", input))
        }
        Request::Interrupt(key, interrupt) => {
            let done = runtime.interrupt(key, interrupt, call).await?;
            replied(key, &done, thing("end of turn", done.value.turn.id))
        }
        Request::Compact(key, compact) => {
            let done = runtime.compact(key, compact, call).await?;
            replied(key, &done, began(&done.value))
        }
        Request::Decide(key, approval, decision) => {
            let done = runtime.decide(key.tenant, approval, decision, None, call).await?;
            replied(key, &done, thing("decision on", approval))
        }
        Request::Answer(key, question) => {
            let done = runtime.answer(key.tenant, question, "yes".to_owned(), call).await?;
            replied(key, &done, thing("answer to", question))
        }
        Request::Resolve(key, operation, resolution) => {
            let output = (resolution == Resolution::Settle).then(|| "as a person says".to_owned());
            let done = runtime.resolve(key.tenant, operation, resolution, output, call).await?;
            replied(key, &done, thing("resolution of", operation))
        }
        Request::Patch(key, patch) => {
            let done = runtime.patch_thread(key, patch, call).await?;
            replied(key, &done, Fact::Thread)
        }
        Request::SaveCheckpoint(key) => {
            let done = runtime.save_checkpoint(key, CHECKPOINT.to_owned(), call).await?;
            replied(key, &done, thing("checkpoint", CHECKPOINT))
        }
        Request::DeleteCheckpoint(key) => {
            let done = runtime.delete_checkpoint(key, CHECKPOINT.to_owned(), call).await?;
            replied(key, &done, Fact::Thread)
        }
        Request::Fork(key, at) => {
            let done = runtime.fork(key, at, None, call).await?;
            replied(ThreadKey { thread: done.value.id, ..key }, &done, Fact::Thread)
        }
        Request::Delete(key) => {
            let done = runtime.delete_thread(key, call).await?;
            replied(key, &done, Fact::Deleted)
        }
        Request::CreateRun(tenant) => {
            let new = NewRun { objective: "to be done".to_owned(), ..NewRun::default() };
            let done = runtime.create_run(tenant, new, call).await?;
            replied(done.value.id.log(tenant), &done, Fact::Thread)
        }
        Request::AddTasks(key, tasks) => {
            let done = runtime.create_tasks(key.tenant, run(key)?, tasks, call).await?;
            replied(key, &done, Fact::Thread)
        }
        Request::Bind(key, lease) => {
            let done = runtime.validate_run_lease(key.tenant, run(key)?, lease, call).await?;
            Replied { told: Told::Epoch(done.value.lease_epoch), ..replied(key, &done, Fact::Thread) }
        }
        Request::Claim(key, claim) => {
            let done = runtime.claim_task(key.tenant, run(key)?, claim, call).await?;
            let held = done.value.task.as_ref().and_then(|task| Some((task.id.clone(), task.lease.clone()?)));
            match held {
                Some((task, TaskLease { token: Some(token), fence, .. })) => {
                    let fact = board::claim(&task, fence);
                    Replied { told: Told::Lease { task, token, fence }, ..replied(key, &done, fact) }
                }
                _ => replied(key, &done, Fact::Thread),
            }
        }
        Request::Say(key, transition, fence) => {
            let done = runtime.transition_task(key.tenant, run(key)?, transition, call).await?;
            replied(key, &done, board::word(&done.value.id, done.value.task_rev, fence))
        }
        Request::Enqueue(tenant, template) => {
            let done = runtime.create_job(tenant, template, None, call).await?;
            let job = done.value.id;
            Replied { told: Told::Job(job), ..replied(job.log(tenant), &done, chores::told(done.seq)) }
        }
        Request::Repeat(tenant, new) => {
            let done = runtime.create_schedule(tenant, new, call).await?;
            replied(done.value.id.log(tenant), &done, chores::told(done.seq))
        }
        Request::Tell(tenant, job, word) => {
            let done = match word {
                Word::Pause => runtime.pause_job(tenant, job, call).await?,
                Word::Resume => runtime.resume_job(tenant, job, call).await?,
                Word::Cancel => runtime.cancel_job(tenant, job, call).await?,
                Word::Retry => runtime.retry_job(tenant, job, call).await?,
            };
            replied(job.log(tenant), &done, chores::told(done.seq))
        }
        Request::Allow(tenant, limit) => {
            let budgets = Budgets { total: Some(tokens(limit)), ..Budgets::default() };
            patch_tenant(runtime, tenant, TenantPatch { budgets: Some(budgets), ..TenantPatch::default() }).await?;
            of_tenant(tenant, Fact::Allowed)
        }
        Request::Grant(tenant, quotas) => {
            quota::grant(runtime, tenant, quotas).await?;
            of_tenant(tenant, Fact::Granted)
        }
        Request::Erase(tenant) => {
            runtime.erase_tenant(tenant).await?;
            of_tenant(tenant, Fact::Erased)
        }
    })
}

/// Changes a tenant; one of whom nobody has said anything is made.
pub(crate) async fn patch_tenant(runtime: &Runtime, tenant: TenantId, patch: TenantPatch) -> Result<(), Error> {
    match runtime.patch_tenant(tenant, patch.clone(), None, None).await {
        Err(Error::NotFound(_)) => runtime.create_tenant(tenant, patch, None).await.map(drop),
        kept => kept.map(drop),
    }
}

/// What of a tenant is so, and stands in no log.
fn of_tenant(tenant: TenantId, fact: Fact) -> Replied {
    let key = ThreadKey { tenant, thread: ThreadId::new(Uuid::nil()) };
    Replied { key, seq: 0, replayed: false, value: String::new(), fact, told: Told::Nothing }
}
