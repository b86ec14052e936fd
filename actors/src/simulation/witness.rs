//! Who knows everything that was ever stored, answered, published and done, and says what of it must not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use raddle_domain::{
    event::{self, Event, Record},
    id::{InputId, JobId, OperationId, RunId, ScheduleId, Seq, TenantId, ThreadId, ThreadKey, TurnId},
    ports::{Append, HookBatch, Invocation, JobRun, LogKind, ModelErrorKind, StoredEvent, Write, WriteRefused},
    record::{
        ApprovalStatus, Delivery, Effect, EffectClass, EffectOutcome, EffectStatus, Resolution, ResolvedBy,
        ThreadStatus, TurnStatus, Usage,
    },
    sound::Sound,
};
use serde::Deserialize;

use super::{
    board::{self, Board},
    chores::{self, Chore},
    erasure::Erasure,
    hooks::{Feed, Heard},
    plan::{Answer, Plan},
    quota::{Bounds, within},
};
use crate::store::rename;

/// Something that must hold and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

pub(crate) type Holds<T = ()> = Result<T, Violation>;

pub(crate) const ACKED: &str = "acked is durable";
pub(crate) const DENSE: &str = "the log is dense";
pub(crate) const SOUND: &str = "the log is sound";
pub(crate) const WRITER: &str = "there is one writer";
pub(crate) const ONCE: &str = "once is once";
pub(crate) const ATTEMPT: &str = "an attempt runs once";
pub(crate) const STORED_FIRST: &str = "what runs is stored first";
pub(crate) const AGREED: &str = "what a person must agree to runs when he has";
pub(crate) const REQUEST: &str = "a request runs once";
pub(crate) const STREAM: &str = "a stream is a piece of the log without a gap";
pub(crate) const TENANT: &str = "a tenant sees its own";
pub(crate) const FEED: &str = "the feed is dense";
pub(crate) const RESTS: &str = "everything comes to rest";
pub(crate) const REPLAY: &str = "what is stored is what was";
pub(crate) const DEFECT: &str = "nobody is told of a defect";
pub(crate) const LEASE: &str = "a task is its holder's";
pub(crate) const BUDGET: &str = "a budget holds";
pub(crate) const PLACES: &str = "every place is given back";

pub(crate) fn unless(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Holds {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}

/// What was answered to a client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replied {
    pub key: ThreadKey,
    pub seq: Seq,
    pub replayed: bool,
    /// The reply, as text.
    pub value: String,
    /// What must be in the log for it to be true.
    pub fact: Fact,
    pub told: Told,
}

/// What of a reply its client goes on from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    Nothing,
    /// Of the workspace of a run.
    Epoch(u64),
    Lease {
        task: String,
        token: String,
        fence: u64,
    },
    Job(JobId),
}

/// What a reply says that there is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fact {
    Thread,
    Deleted,
    /// A bound of what a tenant may spend.
    Allowed,
    /// A bound of what it may have.
    Granted,
    /// That nothing of a tenant is left.
    Erased,
    /// A turn, a prompt, a decided approval, …: by its kind and its id.
    Thing(&'static str, String),
}

#[derive(Default)]
pub(crate) struct Witness {
    logs: BTreeMap<ThreadKey, Log>,
    feeds: BTreeMap<TenantId, Feed>,
    pub hooks: Vec<Heard>,
    /// The number of the process that is there.
    process: u32,
    /// Whether something failed in it, so that it may know less than is stored.
    shaken: bool,
    pub bounds: Bounds,
    /// The tenants that are erased, and how far that has come.
    pub erasures: BTreeMap<TenantId, Erasure>,
    /// Whether everybody has as much as he wants.
    pub has_room: bool,
    /// Streams that are open.
    open: BTreeMap<TenantId, usize>,
    effects: BTreeMap<OperationId, Done>,
    begun: BTreeSet<(OperationId, u32)>,
    /// Slots of schedules for which there is a job.
    slots: BTreeMap<ScheduleId, BTreeSet<u64>>,
    /// Turns that began with the words of a move.
    turns_of: BTreeMap<u32, u32>,
    replies: BTreeMap<u32, Replied>,
    /// The keys of requests that were done, whether or not anybody was told.
    receipts: BTreeMap<[u8; 32], TenantId>,
    /// Who was told of which lease.
    leases: BTreeMap<(ThreadKey, u64), u32>,
    accounts: BTreeMap<TenantId, Account>,
    /// Times that a commit failed and was stored, with what it said of spending.
    doubts: u64,
}

/// A log as it was stored.
#[derive(Default)]
pub(crate) struct Log {
    /// What people call it.
    pub number: usize,
    pub events: Vec<StoredEvent>,
    /// The first event of its own, behind those of its parent.
    pub own: Seq,
    pub fence: u64,
    pub gone: bool,
    things: BTreeSet<Fact>,
    sound: Sound,
    /// Of a run.
    pub board: Board,
    /// Of a job, or a schedule.
    pub chore: Chore,
    /// What it is the log of.
    pub kind: LogKind,
    pub account: Account,
    /// The turn that was stopped for lack of a budget.
    exceeded: Option<TurnId>,
    /// Prompts that callers let wait.
    pub waiting: BTreeSet<InputId>,
    /// Whether its turn is at work, and waits for nobody.
    pub works: bool,
}

/// What is spent, in tokens.
#[derive(Default)]
pub(crate) struct Account {
    pub spent: u64,
    /// The most that somebody asked to allow: which of two came last, nobody can say here.
    asked: u64,
    /// The same, once one of them was answered.
    limit: Option<u64>,
    /// The call that took most.
    dearest: u64,
}

impl Account {
    fn spends(&mut self, usage: &Usage) {
        let tokens = usage.input_tokens + usage.output_tokens;
        self.spent += tokens;
        self.dearest = self.dearest.max(tokens);
    }

    /// Whether a call may begin that tells a model so many tokens: there is room for them, and for an answer.
    fn has_room(&self, input: u64) -> bool {
        self.limit.is_none_or(|limit| self.spent + input < limit)
    }
}

/// What is known of an operation.
#[derive(Default)]
struct Done {
    class: Option<EffectClass>,
    status: Option<EffectStatus>,
    attempt: u32,
    /// Times that a person said that it may be started again.
    retries: u32,
    approved: bool,
    /// Which process ended its turn around it.
    closed: Option<u64>,
    acts: u32,
}

/// What a stream's reader looks at of an event.
#[derive(Deserialize)]
pub(crate) struct Place {
    pub seq: Seq,
    pub prev: Seq,
    thread_id: Option<ThreadId>,
    run_id: Option<RunId>,
    job_id: Option<JobId>,
    schedule_id: Option<ScheduleId>,
}

impl Log {
    pub fn head(&self) -> Seq {
        self.events.len() as Seq
    }

    /// Whether it has this behind `after`: the next event; or the deltas of one item up to `seq`, joined.
    pub fn has(&self, after: Seq, seq: Seq, stored: &StoredEvent) -> Holds<bool> {
        let Some(known) = self.events.get(after as usize..seq as usize).filter(|known| !known.is_empty()) else {
            // Of a log that is gone nobody can say.
            return Ok(self.gone);
        };
        if let [next] = known
            && next.json == stored.json
        {
            return Ok(true);
        }
        let Event::ItemDelta(joined) = decode(stored)?.event else { return Ok(false) };
        let mut text = String::new();
        for part in known {
            match decode(part)?.event {
                Event::ItemDelta(delta) if delta.item == joined.item => text.push_str(&delta.delta),
                _ => return Ok(false),
            }
        }
        Ok(text == joined.delta)
    }
}

impl Witness {
    /// One who knows what a plan's hooks are to carry, and what its tenants may have.
    pub fn new(plan: &Plan) -> Self {
        let hooks = plan.listeners.iter().map(Heard::new).collect();
        Self { hooks, bounds: Bounds::new(plan.quotas), ..Self::default() }
    }

    pub fn logs(&self) -> impl Iterator<Item = (ThreadKey, &Log)> {
        self.logs.iter().map(|(key, log)| (*key, log))
    }

    pub fn log(&self, key: ThreadKey) -> Option<&Log> {
        self.logs.get(&key)
    }

    /// What people call a thread.
    pub fn name(&self, key: ThreadKey) -> String {
        self.logs.get(&key).map_or_else(|| "an unknown thread".to_owned(), |log| format!("log {}", log.number))
    }

    /// A write was stored, or refused.
    pub fn committed(&mut self, write: &Write, result: &Result<u64, WriteRefused>) -> Holds {
        if let Ok(left) = result {
            self.erases(write, *left)?;
        }
        match (write, result) {
            (Write::Append(append), Ok(position)) => self.appended(append, *position),
            (Write::Erase { key, .. }, Ok(_)) => {
                if let Some(log) = self.logs.get_mut(key) {
                    log.gone = true;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Nothing of a tenant is there any more, or known, or counts.
    pub fn forget(&mut self, tenant: TenantId) {
        let theirs = self.logs.iter_mut().filter(|(key, _)| key.tenant == tenant);
        theirs.for_each(|(_, log)| log.gone = true);
        self.accounts.remove(&tenant);
        self.receipts.retain(|_, of| *of != tenant);
        self.replies.retain(|_, replied| replied.key.tenant != tenant);
    }

    fn appended(&mut self, append: &Append, position: u64) -> Holds {
        let Append { key, chunk, fork, row, receipts, .. } = append;
        // What it shares with its parent, under its own name.
        let past: Vec<StoredEvent> =
            match fork.and_then(|fork| self.logs.get(&ThreadKey { thread: fork.parent, ..*key })) {
                Some(parent) => {
                    parent.events.iter().take(append.expected as usize).map(|event| named(event, *key)).collect()
                }
                None => Vec::new(),
            };
        let number = self.logs.len();
        let kind = row.head.kind;
        let log = self.logs.entry(*key).or_insert_with(|| Log { number, own: 1, kind, ..Log::default() });
        unless(!log.gone, WRITER, || format!("log {} is written to after it was deleted", log.number))?;
        if let Some(fork) = fork {
            log.events = past;
            log.own = fork.at + 1;
            for at in 0..log.events.len() {
                let record = decode(&log.events[at])?;
                unsound(log.number, log.sound.see(&record))?;
            }
        }
        let (number, head, fence, worked) = (log.number, log.head(), row.head.fence, log.works);
        unless(chunk.first == head + 1, WRITER, || {
            format!("log {number} ends at {head}, and an append from {} on is taken", chunk.first)
        })?;
        unless(fence >= log.fence, WRITER, || {
            format!("log {number} belongs to process {}, and an append of process {fence} is taken", log.fence)
        })?;
        log.fence = fence;
        self.receipts.extend(receipts.iter().map(|receipt| (receipt.key, key.tenant)));
        let feed = self.feeds.entry(key.tenant).or_default();
        if !chunk.events.is_empty() {
            feed.push((*key, chunk.first, chunk.last()));
            let length = feed.len() as u64;
            unless(length == position, FEED, || format!("an append has position {position} instead of {length}"))?;
        }
        for stored in &chunk.events {
            match kind {
                LogKind::Thread => {}
                LogKind::Run => {
                    self.saw_of_run(*key, stored)?;
                    continue;
                }
                LogKind::Job | LogKind::Schedule => {
                    self.saw_of_work(*key, stored)?;
                    continue;
                }
            }
            let record = decode(stored)?;
            let log = self.logs.get_mut(key).expect("it was put in above");
            unless(record.seq == log.head() + 1 && record.thread == key.thread, DENSE, || {
                format!("log {number} has {} events, and the next one says {}", log.head(), record.seq)
            })?;
            log.events.push(stored.clone());
            unsound(number, log.sound.see(&record))?;
            self.saw(*key, &record, fork.is_some())?;
        }
        self.fits(append, head == 0 || fork.is_some(), worked)
    }

    /// Whether its tenant may have what an append has brought: a log that is new, or a turn.
    fn fits(&self, append: &Append, is_new: bool, worked: bool) -> Holds {
        let Append { key, chunk, row, .. } = append;
        let (of, bounds) = (key.tenant, self.bounds.of(key.tenant));
        if is_new && bounds.threads.is_some() {
            within(of, self.threads_of(of), bounds.threads, "threads")?;
        }
        let has = |name: &str| chunk.events.iter().any(|event| &*event.name == name);
        if bounds.active_turns.is_some() && !self.shaken && !worked && has("turn.started") && !has("prompt.promoted") {
            within(of, self.turns_of(of, row.head.fence), bounds.active_turns, "turns at work")?;
        }
        if bounds.queued_prompts.is_some() && has("prompt.admitted") {
            within(of, self.prompts_of(of), bounds.queued_prompts, "prompts that wait")?;
        }
        Ok(())
    }

    fn saw_of_run(&mut self, key: ThreadKey, stored: &StoredEvent) -> Holds {
        let (record, place) = (board::decode(stored)?, place(stored)?);
        let log = self.logs.get_mut(&key).expect("whoever asks has put it in");
        let (number, head) = (log.number, log.head());
        let follows = record.seq == head + 1 && place.prev == head && record.run_id.log(key.tenant) == key;
        unless(follows, DENSE, || {
            format!("log {number} has {head} events, and the next one says {} behind {}", record.seq, place.prev)
        })?;
        log.events.push(stored.clone());
        log.things.extend(log.board.see(number, &record)?);
        Ok(())
    }

    fn saw_of_work(&mut self, key: ThreadKey, stored: &StoredEvent) -> Holds {
        let place = place(stored)?;
        let log = self.logs.get_mut(&key).expect("whoever asks has put it in");
        let (number, head) = (log.number, log.head());
        unless((place.seq, place.prev) == (head + 1, head), DENSE, || {
            format!("log {number} has {head} events, and the next one says {} behind {}", place.seq, place.prev)
        })?;
        log.events.push(stored.clone());
        log.things.insert(chores::told(place.seq));
        match log.kind {
            LogKind::Schedule => {
                let (schedule, says) = chores::made(stored)?;
                log.chore.schedule = Some(schedule);
                let made = self.slots.get(&schedule).map_or(0, BTreeSet::len) as u64;
                unless(says <= made, STORED_FIRST, || {
                    format!("log {number} says that {says} jobs were made, and there are {made}")
                })
            }
            _ if &*stored.name == "schedule.fired" => {
                let Some((schedule, slot)) = chores::fired(stored)? else { return Ok(()) };
                let first = self.slots.entry(schedule).or_default().insert(slot);
                unless(first, ONCE, || format!("log {number} is the second job of the slot {slot}"))
            }
            _ => log.chore.see(number, stored),
        }
    }

    /// A runner begins with a run of a job.
    pub fn run_begins(&mut self, run: &JobRun) -> Holds {
        self.is_for(run.tenant, "a run of a job begins")?;
        let log = self.logs.entry(run.job.log(run.tenant)).or_default();
        log.chore.begins(log.number, run)
    }

    /// It acts.
    pub fn run_acts(&mut self, run: &JobRun) -> Holds {
        self.is_for(run.tenant, "a run of a job acts")?;
        let log = self.logs.entry(run.job.log(run.tenant)).or_default();
        log.chore.acts(log.number, run)
    }

    fn saw(&mut self, key: ThreadKey, record: &Record, forks: bool) -> Holds {
        let log = self.logs.get_mut(&key).expect("whoever asks has put it in");
        let mut thing = |kind, id: String| {
            log.things.insert(Fact::Thing(kind, id));
        };
        match &record.event {
            Event::ThreadStatus(thread) => {
                log.works = thread.active_turn.is_some() && thread.status != ThreadStatus::AwaitingApproval;
            }
            // Until it is time to try again it may be out of memory, and then it is in nobody's way.
            Event::TurnRetrying(..) => log.works = false,
            Event::TurnResumed(..) => log.works = true,
            Event::TurnStarted(turn) => {
                thing("turn", turn.id.to_string());
                log.works = true;
                if let (Some(number), false) = (label(&turn.input_summary), forks) {
                    let turns = self.turns_of.entry(number).or_default();
                    *turns += 1;
                    unless(*turns == 1, REQUEST, || format!("move {number} has become {turns} turns"))?;
                }
            }
            Event::TurnCompleted(turn) => {
                thing("end of turn", turn.id.to_string());
                log.works = false;
                let stopped = turn.error.as_ref().is_some_and(|error| error.code == ModelErrorKind::Budget.code());
                let (number, exceeded) = (log.number, log.exceeded.take());
                let fits = stopped == (turn.status == TurnStatus::Failed && exceeded == Some(turn.id));
                unless(fits && stopped == exceeded.is_some(), BUDGET, || {
                    let (status, error) = (turn.status, &turn.error);
                    format!(
                        "log {number}: of {exceeded:?} a budget was exceeded; {} ends {status:?}, {error:?}",
                        turn.id
                    )
                })?;
            }
            Event::BudgetExceeded(turn, _) => log.exceeded = Some(*turn),
            Event::UsageRecorded(_, entry) => self.spent(key, &entry.usage)?,
            Event::ThreadCreated(thread) | Event::ThreadForked(thread) => {
                log.account = Account { limit: thread.budget.and_then(|budget| budget.tokens), ..Account::default() };
            }
            Event::PromptAdmitted(admission) => {
                // One that comes too late for its turn is admitted once more.
                let first = log.things.insert(Fact::Thing("prompt", admission.id.to_string()));
                if first && admission.delivery == Delivery::Queue {
                    log.waiting.insert(admission.id);
                }
            }
            Event::PromptPromoted(admission, ..) => drop(log.waiting.remove(&admission.id)),
            Event::PromptEdited(admission, _) => thing("change of prompt", admission.id.to_string()),
            Event::PromptWithdrawn(admission) => {
                thing("withdrawal of prompt", admission.id.to_string());
                log.waiting.remove(&admission.id);
            }
            Event::QuestionAnswered(question) => thing("answer to", question.id.to_string()),
            Event::CheckpointSaved(checkpoint) => thing("checkpoint", checkpoint.name.clone()),
            Event::ApprovalDecided(approval) => {
                thing("decision on", approval.id.to_string());
                let done = self.effects.entry(approval.operation_id).or_default();
                done.approved |= approval.status == ApprovalStatus::Approved;
            }
            Event::EffectIntended(effect)
            | Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect) => {
                self.effect(key, effect);
            }
            Event::EffectReconciled(effect) => {
                thing("resolution of", effect.operation_id.to_string());
                let (resolution, by) = (effect.resolution, effect.resolved_by);
                let done = self.effect(key, effect);
                if (resolution, by) == (Some(Resolution::Retry), Some(ResolvedBy::Caller)) {
                    done.retries += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What a model call came to.
    fn spent(&mut self, key: ThreadKey, usage: &Usage) -> Holds {
        let log = self.logs.get_mut(&key).expect("whoever asks has put it in");
        log.account.spends(usage);
        let Account { spent, limit, dearest, .. } = log.account;
        unless(limit.is_none_or(|limit| spent < limit + dearest), BUDGET, || {
            format!("log {} may spend {limit:?}, and has spent {spent}; its dearest call took {dearest}", log.number)
        })?;
        let account = self.accounts.entry(key.tenant).or_default();
        account.spends(usage);
        let Account { spent, limit, .. } = *account;
        // When the limit is reached each thread has one call at most that goes on, or is not settled.
        let theirs = self.logs.iter().filter(|(of, _)| of.tenant == key.tenant);
        let calls: u64 = theirs.map(|(_, log)| log.account.dearest).sum();
        let most = limit.map(|limit| limit + calls * (1 + self.doubts));
        unless(most.is_none_or(|most| spent <= most), BUDGET, || {
            format!("{} may spend {limit:?}, and has spent {spent}; a call of each thread takes {calls}", key.tenant)
        })
    }

    /// A model is called, and told so many tokens. What earlier calls came to is known.
    pub fn call_begins(&self, key: ThreadKey, input: u64) -> Holds {
        self.is_for(key.tenant, "a model is called")?;
        let thread = self.log(key).map(|log| &log.account);
        for account in thread.into_iter().chain(self.accounts.get(&key.tenant)) {
            unless(account.has_room(input), BUDGET, || {
                let Account { spent, limit, .. } = account;
                format!("a call of {} begins with {input} tokens: of {limit:?} {spent} are spent", self.name(key))
            })?;
        }
        Ok(())
    }

    /// Something fails.
    pub const fn shakes(&mut self) {
        self.shaken = true;
    }

    /// A commit failed and was stored.
    pub const fn doubts(&mut self) {
        self.doubts += 1;
    }

    /// A tenant is to be allowed so many tokens, from now on or later.
    pub fn allows(&mut self, tenant: TenantId, tokens: u64) {
        let Account { asked, limit, .. } = self.accounts.entry(tenant).or_default();
        *asked = tokens.max(*asked);
        *limit = limit.map(|before| before.max(tokens));
    }

    /// Whether a tenant may not spend what it likes.
    pub fn is_thrifty(&self, tenant: TenantId) -> bool {
        self.accounts.get(&tenant).is_some_and(|account| account.asked > 0)
    }

    /// What a tenant has spent.
    pub fn spent_by(&self, tenant: TenantId) -> u64 {
        self.accounts.get(&tenant).map_or(0, |account| account.spent)
    }

    pub fn tenants(&self) -> impl Iterator<Item = TenantId> {
        self.accounts.keys().copied()
    }

    fn effect(&mut self, key: ThreadKey, effect: &Effect) -> &mut Done {
        let process = self.logs.get(&key).map_or(0, |log| log.fence);
        let done = self.effects.entry(effect.operation_id).or_default();
        (done.class, done.status, done.attempt) = (Some(effect.class), Some(effect.status), effect.attempt);
        let closed = effect.closed || effect.outcome == Some(EffectOutcome::Canceled);
        done.closed = closed.then_some(process);
        done
    }

    // ---- what tools do ---------------------------------------------------------------------------

    pub fn tool_begins(&mut self, invocation: &Invocation) -> Holds {
        let Invocation { operation, attempt, tool, .. } = invocation;
        self.is_for(invocation.key.tenant, "a tool begins")?;
        unless(self.begun.insert((*operation, *attempt)), ATTEMPT, || {
            format!("attempt {attempt} of `{tool}` begins twice")
        })?;
        let process = self.logs.get(&invocation.key).map(|log| log.fence);
        let done = self.effects.entry(*operation).or_default();
        let (status, known) = (done.status, done.attempt);
        // One whose turn ends just then may begin before it is told so: only what has no consequence is said to have been
        // cancelled, all else to be uncertain. Another process knows it.
        let closes = done.closed.is_some()
            && done.closed == process
            && match status {
                Some(EffectStatus::Settled) => done.class == Some(EffectClass::Read),
                status => status == Some(EffectStatus::Uncertain),
            };
        unless(known == *attempt && (closes || status == Some(EffectStatus::Started)), STORED_FIRST, || {
            format!("attempt {attempt} of `{tool}` begins; the log says {status:?}, attempt {known}")
        })?;
        let asks = tool.starts_with("gated_") || tool.starts_with("person_");
        unless(!asks || done.approved, AGREED, || format!("`{tool}` begins and nobody has agreed"))
    }

    pub fn tool_acts(&mut self, invocation: &Invocation) -> Holds {
        self.is_for(invocation.key.tenant, "a tool acts")?;
        let done = self.effects.entry(invocation.operation).or_default();
        done.acts += 1;
        let (acts, retries) = (done.acts, done.retries);
        unless(done.class != Some(EffectClass::Once) || acts <= 1 + retries, ONCE, || {
            format!("`{}` acts {acts} times; a person agreed to {retries} more", invocation.tool)
        })
    }

    pub fn has_acted(&self, operation: OperationId) -> bool {
        self.effects.get(&operation).is_some_and(|done| done.acts > 0)
    }

    // ---- what clients are told -------------------------------------------------------------------

    /// A client was answered; `keyed`: each time that he asks it is the same request.
    pub fn replied(&mut self, number: u32, keyed: bool, replied: &Replied) -> Holds {
        if replied.fact == Fact::Allowed && !self.is_erased(replied.key.tenant) {
            let Account { spent, asked, limit, .. } = self.accounts.entry(replied.key.tenant).or_default();
            // What was spent before cannot be taken back.
            limit.get_or_insert((*asked).max(*spent));
        }
        if let Some(before) = self.replies.get(&number).filter(|_| keyed) {
            unless((&before.value, before.seq) == (&replied.value, replied.seq), REQUEST, || {
                let (seq, now) = (before.seq, replied.seq);
                format!("move {number} was answered twice, at {seq} and {now}: {} and {}", before.value, replied.value)
            })?;
        } else {
            unless(self.holds(replied), ACKED, || {
                let Replied { key, seq, fact, .. } = replied;
                let head = self.log(*key).map_or(0, Log::head);
                format!("move {number} is told of {fact:?} at {seq}; {} ends at {head}", self.name(*key))
            })?;
            // An answer that comes when its tenant is being erased is one of those that went with it.
            if replied.fact == Fact::Erased || !self.is_erased(replied.key.tenant) {
                self.replies.insert(number, replied.clone());
            }
        }
        if replied.fact == Fact::Erased {
            self.erasures.insert(replied.key.tenant, Erasure::Answered);
        }
        if let Told::Lease { fence, task, .. } = &replied.told {
            let holder = *self.leases.entry((replied.key, *fence)).or_insert(number);
            unless(holder == number, LEASE, || {
                format!("`{task}` is given to move {number} under {fence}, which is the lease of move {holder}")
            })?;
        }
        Ok(())
    }

    /// Whether a reply is true.
    fn holds(&self, replied: &Replied) -> bool {
        let log = |is_so: &dyn Fn(&Log) -> bool| self.log(replied.key).is_some_and(is_so);
        let reaches = |log: &Log| log.head() >= replied.seq;
        match &replied.fact {
            // What it means shows in what is done from then on.
            Fact::Allowed | Fact::Granted => true,
            Fact::Erased => self.erasures.get(&replied.key.tenant) >= Some(&Erasure::Ended),
            Fact::Deleted => log(&|log| log.gone),
            Fact::Thread => log(&|log| log.gone || reaches(log)),
            thing => log(&|log| log.gone || (reaches(log) && log.things.contains(thing))),
        }
    }

    /// A client was refused for good what it asks under this key. What its own first try did, though nobody may have
    /// been told, is no reason.
    pub fn refused(&self, number: u32, key: [u8; 32], why: &str) -> Holds {
        unless(!self.replies.contains_key(&number) && !self.receipts.contains_key(&key), REQUEST, || {
            format!("move {number} was done, and is now refused: {why}")
        })
    }

    // ---- what watchers see -----------------------------------------------------------------------

    /// A watcher of one thread, at `after`, is told of an event.
    pub fn streamed(&self, key: ThreadKey, after: Seq, seq: Seq, stored: &StoredEvent) -> Holds {
        let Some(log) = self.log(key) else {
            return unless(false, STREAM, || "a watcher hears of a thread that is not stored".to_owned());
        };
        let (number, name) = (log.number, &stored.name);
        if name == "thread.deleted" {
            return unless(log.gone, STREAM, || format!("a watcher hears that log {number} is deleted, and it is not"));
        }
        let place = place(stored)?;
        unless(place.seq == seq && place.prev == after, STREAM, || {
            format!("a watcher of log {number} at {after} is told of {seq}, {name}, behind {}", place.prev)
        })?;
        unless(log.has(after, seq, stored)?, STREAM, || {
            format!("a watcher of log {number} at {after} is told of {seq}, {name}, which is not what is stored")
        })
    }

    /// A watcher of a tenant, who has seen `seen` of its threads, is told of an event. Gives its thread and seq.
    pub fn fed(
        &self,
        tenant: TenantId,
        seen: &BTreeMap<ThreadKey, Seq>,
        stored: &StoredEvent,
    ) -> Holds<Option<(ThreadKey, Seq)>> {
        let place = place(stored)?;
        let run = || place.run_id.map(|run| run.log(tenant));
        let job = || place.job_id.map(|job| job.log(tenant));
        let schedule = || place.schedule_id.map(|schedule| schedule.log(tenant));
        let key =
            place.thread_id.map(|thread| ThreadKey { tenant, thread }).or_else(run).or_else(job).or_else(schedule);
        let Some((key, log)) = key.and_then(|key| Some((key, self.log(key)?))) else {
            return Err(Violation { invariant: TENANT, what: format!("{tenant} hears {} of another's", stored.name) });
        };
        if matches!(&*stored.name, "thread.deleted" | "schedule.deleted") {
            return Ok(None);
        }
        let after = seen.get(&key).copied().unwrap_or(log.own - 1);
        unless(log.gone || log.has(after, place.seq, stored)?, STREAM, || {
            format!("{tenant} has seen {after} of log {}, and is told of {}, {}", log.number, place.seq, stored.name)
        })?;
        Ok(Some((key, place.seq)))
    }

    /// A watcher of a tenant, or of a thread of his, has come.
    pub fn opened(&mut self, tenant: TenantId) -> Holds {
        let open = self.open.entry(tenant).or_default();
        *open += 1;
        within(tenant, *open, self.bounds.of(tenant).subscribers, "streams")
    }

    /// He has gone.
    pub fn closed(&mut self, tenant: TenantId) {
        let open = self.open.entry(tenant).or_default();
        *open = open.saturating_sub(1);
    }

    // ---- what hooks carry ------------------------------------------------------------------------

    /// A process begins.
    pub fn starts(&mut self, process: u32) {
        (self.process, self.shaken) = (process, false);
        self.hooks.iter_mut().for_each(|hook| hook.starts(process, &self.feeds));
    }

    /// A hook offers its sink a batch. What that says to it.
    pub fn offered(&mut self, nth: usize, batch: &HookBatch) -> Holds<Answer> {
        self.is_for(batch.tenant, "a hook carries something")?;
        let (hook, feed) = (&mut self.hooks[nth], self.feeds.entry(batch.tenant).or_default());
        hook.offered(self.process, batch, feed, &self.logs)?;
        hook.answer(batch, feed, &self.logs)
    }

    pub fn took(&mut self, nth: usize, batch: &HookBatch) -> Holds {
        let feed = self.feeds.entry(batch.tenant).or_default();
        self.hooks[nth].took(self.process, batch, feed, &self.logs)
    }

    /// Nothing is under way, and every sink takes what comes.
    pub fn carried(&self) -> Holds {
        let feeds = || self.feeds.iter();
        let carried = |hook: &Heard| feeds().try_for_each(|(of, feed)| hook.is_up_to_date(*of, feed, &self.logs));
        self.hooks.iter().try_for_each(carried)
    }

    /// What of every log must hold when nothing is under way.
    pub fn rests(&self) -> Holds {
        self.logs.values().filter(|log| !log.gone).try_for_each(|log| unsound(log.number, log.sound.rests()))
    }
}

/// The number of the move whose words these are.
fn label(text: &str) -> Option<u32> {
    text.strip_prefix('#')?.split(' ').next()?.parse().ok()
}

/// An event of a parent, as its fork has it.
fn named(event: &StoredEvent, key: ThreadKey) -> StoredEvent {
    let mut json = event.json.to_vec();
    rename(&mut json, key.thread);
    StoredEvent { json: json.into(), ..event.clone() }
}

pub(crate) fn place(stored: &StoredEvent) -> Holds<Place> {
    let read = serde_json::from_slice(&stored.json);
    read.map_err(|why| Violation { invariant: STREAM, what: format!("{} is no event: {why}", stored.name) })
}

pub(crate) fn decode(stored: &StoredEvent) -> Holds<Record> {
    let read = Record::decode(event::SCHEMA, &stored.json);
    read.map_err(|why| Violation { invariant: REPLAY, what: format!("{} cannot be read: {why}", stored.name) })
}

fn unsound<E: fmt::Display>(number: usize, sound: Result<(), E>) -> Holds {
    sound.map_err(|why| Violation { invariant: SOUND, what: format!("log {number}: {why}") })
}
