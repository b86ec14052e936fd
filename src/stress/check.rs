//! What must be true in the end, whatever happened meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, PoisonError},
};

use futures_util::{StreamExt, stream};
use raddle_domain::{
    event::{Record, SCHEMA},
    id::Seq,
    linear::{Prompt, Verdict},
    record::{ApprovalStatus, TurnStatus},
    sound::Sound,
};
use tokio::time::{Duration, Instant};

use super::{
    Check, Holds, Outcome, PATIENCE, Scenario, StressError,
    facts::{Facts, mark},
    journal::{Asks, OfThread, Told},
    talk::Talk,
    watch::{Glimpse, difference, digest},
    world::{Who, World},
};
use crate::client::ClientError;

/// Faults that are told of one check; the others are counted.
const TOLD: usize = 20;
/// Beginnings of orders that are tried for one thread.
const ORDERS: usize = 300_000;
/// Threads that are worked on at a time.
const AT_A_TIME: usize = 16;
/// How long a turn is waited for before it is interrupted: it may be one that waits for that.
const TURN: Duration = Duration::from_millis(500);

/// A check while it is made.
pub struct Finding {
    name: &'static str,
    says: &'static str,
    of: &'static str,
    examined: u64,
    undecided: bool,
    faults: Vec<String>,
    more: u64,
}

impl Finding {
    pub fn new(name: &'static str, says: &'static str, of: &'static str) -> Self {
        Self { name, says, of, examined: 0, undecided: false, faults: Vec::new(), more: 0 }
    }

    pub fn examine(&mut self, count: usize) {
        self.examined += count as u64;
    }

    pub fn fault(&mut self, sentence: String) {
        if self.faults.len() < TOLD { self.faults.push(sentence) } else { self.more += 1 }
    }

    pub fn end(self) -> Check {
        let holds = match (self.faults.is_empty(), self.undecided) {
            (false, _) => Holds::No,
            (true, true) => Holds::Undecided,
            (true, false) => Holds::Yes,
        };
        let Self { name, says, of, examined, faults, more, .. } = self;
        Check { name: name.to_owned(), says: says.to_owned(), holds, examined, of: of.to_owned(), faults, more }
    }
}

/// That the server is there no more.
pub fn gone(why: String) -> Check {
    let mut finding = Finding::new(Outcome::THERE, "the server is there to the end", "server");
    finding.examine(1);
    finding.fault(why);
    finding.end()
}

/// Lets every thread come to rest: nothing is open, nothing waits.
pub async fn settle(world: &World) -> Check {
    let mut finding = Finding::new("rest", "every thread comes to rest once it is left alone", "threads");
    let threads = world.journal.threads();
    finding.examine(threads.len());
    let until = Instant::now() + PATIENCE;
    let each = threads.iter().map(|(thread, who)| rest(world, who, thread, until));
    let restless: Vec<_> = stream::iter(each).buffer_unordered(AT_A_TIME).filter_map(async |why| why).collect().await;
    restless.into_iter().for_each(|why| finding.fault(why));
    finding.end()
}

/// Why a thread does not come to rest.
async fn rest(world: &World, who: &Who, thread: &str, until: Instant) -> Option<String> {
    let talk = Talk { world, who, client: u32::MAX, thread };
    loop {
        let found = match world.read(who, |client| async move { client.thread(thread).await }).await {
            Ok(found) => found,
            Err(err) => return Some(format!("thread {thread} cannot be read: {err}")),
        };
        let Some(turn) = found.active_turn.map(|turn| turn.to_string()) else {
            return (found.queued > 0)
                .then(|| format!("in thread {thread} {} prompts wait behind nothing", found.queued));
        };
        if Instant::now() > until {
            return Some(format!("in thread {thread} the turn {turn} does not end"));
        }
        // Calls that wait are decided meanwhile.
        let may_interrupt = world.plan.scenario != Scenario::Approvals;
        if !talk.wait(&turn, TURN).await && may_interrupt {
            talk.interrupt(&turn, false).await;
        }
    }
}

/// A log as it is stored.
struct Read {
    thread: String,
    of: OfThread,
    glimpses: Vec<Glimpse>,
    facts: Facts,
    /// Why it is not sound.
    unsound: Option<String>,
}

/// All checks of threads.
pub async fn all(world: &Arc<World>, rested: Check) -> Result<Vec<Check>, StressError> {
    let threads = world.journal.threads();
    let each = threads.iter().map(|(thread, who)| read(world, who, thread));
    let logs: Vec<Result<Read, ClientError>> = stream::iter(each).buffer_unordered(AT_A_TIME).collect().await;
    let logs = logs.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut checks = Vec::new();
    if !logs.is_empty() {
        checks.push(rested);
        let watched = streams(world, &logs).await;
        let world = world.clone();
        let judged = tokio::task::spawn_blocking(move || judge(&world, &logs));
        checks.extend(judged.await.map_err(|err| StressError::Failed(format!("a check failed: {err}")))?);
        checks.push(watched);
    }
    if world.plan.scenario == Scenario::Tenants {
        let says = "nobody is shown, or told of, what is another tenant's";
        let mut finding = Finding::new("isolation", says, "attempts");
        let attempts = world.tally.whole().operations.get("peek").map_or(0, |of| of.outcomes.values().sum());
        finding.examine(attempts as usize);
        world.journal.faults("isolation").into_iter().for_each(|fault| finding.fault(fault));
        checks.push(finding.end());
    }
    Ok(checks)
}

async fn read(world: &World, who: &Who, thread: &str) -> Result<Read, ClientError> {
    let (mut glimpses, mut facts) = (Vec::new(), Facts::default());
    let mut sound = Ok(Sound::default());
    let mut after: Seq = 0;
    loop {
        let page = world.read(who, |client| async move { client.event_page(thread, after).await }).await?;
        if page.data.is_empty() {
            break;
        }
        for event in &page.data {
            let record = match Record::decode(SCHEMA, event.get().as_bytes()) {
                Ok(record) => record,
                Err(why) => return Err(ClientError::Failed(format!("after event {after} of {thread}: {why}"))),
            };
            sound =
                sound.and_then(|mut sound: Sound| sound.see(&record).map(|()| sound).map_err(|why| why.to_string()));
            after = record.seq;
            glimpses.push((record.seq, digest(event.get())));
            facts.see(&record);
        }
    }
    let unsound = sound.and_then(|sound| sound.rests().map_err(|why| why.to_string())).err();
    Ok(Read { thread: thread.to_owned(), of: world.journal.take(thread), glimpses, facts, unsound })
}

async fn streams(world: &World, logs: &[Read]) -> Check {
    let says = "every stream brings the log, whole, in order and once, however often it is cut";
    let mut finding = Finding::new("streams", says, "events seen");
    let goals = logs.iter().map(|log| (log.thread.clone(), log.facts.head)).collect();
    let by_thread: BTreeMap<&str, &Read> = logs.iter().map(|log| (&*log.thread, log)).collect();
    for watched in world.watchers.finish(goals, PATIENCE).await {
        let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        finding.examine(watched.seen.len());
        if let Some(log) = by_thread.get(&*watched.thread)
            && let Some(why) = difference(&watched, &log.glimpses)
        {
            finding.fault(format!("{why}; {}", look_at(&watched.thread, 0)));
        }
    }
    finding.end()
}

/// How to see for oneself.
fn look_at(thread: &str, seq: Seq) -> String {
    format!("see `raddle threads tail {thread} --after {} --no-follow`", seq.saturating_sub(1))
}

fn judge(world: &World, logs: &[Read]) -> Vec<Check> {
    let mut checks = vec![acknowledged(logs), once(logs), sound(logs), linearizable(logs)];
    if world.plan.scenario == Scenario::Approvals {
        checks.push(decisions(world, logs));
        checks.extend(world.home.as_deref().map(|home| effects(home, logs)));
    }
    checks
}

fn sound(logs: &[Read]) -> Check {
    let mut finding = Finding::new("logs", "every log is dense, and everything in it begins and ends once", "events");
    for log in logs {
        finding.examine(log.glimpses.len());
        if let Some(why) = &log.unsound {
            finding.fault(format!("thread {}, {why}; {}", log.thread, look_at(&log.thread, 0)));
        }
    }
    finding.end()
}

/// Everything that was acknowledged is in the log, under the id that was told.
fn acknowledged(logs: &[Read]) -> Check {
    let mut finding = Finding::new("acknowledged", "what was acknowledged is there", "acknowledgements");
    for Read { thread, of, facts, .. } in logs {
        for noted in &of.calls {
            let missing = match (&noted.asks, &noted.told) {
                (Asks::Start(prompt) | Asks::Queue(prompt), Told::Turn(turn)) => (facts.prompts.get(turn)
                    != Some(prompt))
                .then(|| format!("the turn {turn} of prompt {}", mark(*prompt))),
                (Asks::Queue(prompt), Told::Admitted(input)) => {
                    let there = facts.admitted.get(prompt).is_some_and(|(id, _)| id == input);
                    (!there).then(|| format!("prompt {} as {input}", mark(*prompt)))
                }
                (Asks::Steer { prompt, .. }, Told::Admitted(_)) => {
                    let there = facts.steered.iter().any(|(steered, _)| steered == prompt);
                    (!there).then(|| format!("what was said to a turn, {}", mark(*prompt)))
                }
                (Asks::Interrupt { turn }, Told::Done) => (facts.ended.get(turn) != Some(&TurnStatus::Interrupted))
                    .then(|| format!("the interruption of turn {turn}")),
                (Asks::Withdraw { input, .. }, Told::Done) => {
                    (!facts.withdrawn.contains(input)).then(|| format!("the withdrawal of {input}"))
                }
                (Asks::Await { turn }, Told::Done) => {
                    (!facts.ended.contains_key(turn)).then(|| format!("the end of turn {turn}"))
                }
                _ => continue,
            };
            finding.examine(1);
            if let Some(what) = missing {
                finding.fault(format!("thread {thread} has lost {what}; {}", look_at(thread, 0)));
            }
        }
    }
    finding.end()
}

/// Every prompt in a log was sent, was not refused, and is there once.
fn once(logs: &[Read]) -> Check {
    let mut finding =
        Finding::new("once", "nothing is done twice, and nothing that was refused leaves a trace", "prompts");
    let mut ran: BTreeSet<Prompt> = BTreeSet::new();
    for Read { thread, of, facts, .. } in logs {
        let mut sent: BTreeMap<Prompt, bool> = BTreeMap::new();
        for noted in &of.calls {
            if let Asks::Start(prompt) | Asks::Queue(prompt) | Asks::Steer { prompt, .. } = noted.asks {
                sent.insert(prompt, matches!(noted.told, Told::Refused | Told::Nothing));
            }
        }
        let admitted = facts.admitted.iter().map(|(prompt, (_, seq))| (*prompt, *seq));
        let mut began: BTreeSet<Prompt> = BTreeSet::new();
        let trace = |prompt: Prompt, seq: Seq, what: &str, finding: &mut Finding| match sent.get(&prompt) {
            Some(false) => {}
            Some(true) => {
                let mark = mark(prompt);
                let see = look_at(thread, seq);
                finding.fault(format!("thread {thread}, event {seq}: prompt {mark} was refused, and {what}; {see}"));
            }
            None => {
                let see = look_at(thread, seq);
                finding.fault(format!("thread {thread}, event {seq}: nobody sent prompt {}; {see}", mark(prompt)));
            }
        };
        for (prompt, seq) in admitted {
            trace(prompt, seq, "waits", &mut finding);
        }
        for (prompt, seq) in facts.ran.iter().chain(&facts.steered) {
            finding.examine(1);
            trace(*prompt, *seq, "ran", &mut finding);
            if !began.insert(*prompt) || !ran.insert(*prompt) {
                let see = look_at(thread, *seq);
                finding.fault(format!("thread {thread}, event {seq}: prompt {} ran twice; {see}", mark(*prompt)));
            }
        }
    }
    finding.end()
}

fn linearizable(logs: &[Read]) -> Check {
    let says = "of every thread there is an order of all calls that explains every answer";
    let mut finding = Finding::new("linearizable", says, "calls");
    for Read { thread, of, facts, .. } in logs {
        let history = of.history(facts);
        finding.examine(history.calls.len());
        match history.check(ORDERS) {
            Verdict::Legal => {}
            Verdict::Undecided => finding.undecided = true,
            Verdict::Illegal(illegal) => {
                let told = illegal.call.and_then(|call| of.calls.get(call)).map(|noted| {
                    let (client, asks, told) = (noted.client, &noted.asks, &noted.told);
                    format!("client {client} was told {told:?} of {asks:?}: ")
                });
                let see = look_at(thread, 0);
                finding.fault(format!("thread {thread}: {}{}; {see}", told.unwrap_or_default(), illegal.why));
            }
        }
    }
    finding.end()
}

/// Of each approval one decision was acknowledged, and it is the one in the log.
fn decisions(world: &World, logs: &[Read]) -> Check {
    let mut finding = Finding::new("decisions", "the first word about a call wins, and stays", "decisions");
    let approvals: BTreeMap<&str, (ApprovalStatus, &str, Seq)> = logs
        .iter()
        .flat_map(|log| log.facts.approvals.iter().map(|(id, (status, seq))| (&**id, (*status, &*log.thread, *seq))))
        .collect();
    for (approval, words) in world.journal.decisions() {
        finding.examine(words.len());
        if words.len() > 1 {
            finding.fault(format!("approval {approval} was acknowledged as {words:?}"));
        }
        match approvals.get(&*approval) {
            None => finding.fault(format!("the decision about approval {approval} is lost")),
            Some((status, thread, seq)) => {
                let kept = format!("{status:?}").to_lowercase();
                if !words.contains(&kept) {
                    let see = look_at(thread, *seq);
                    finding.fault(format!("thread {thread}, event {seq}: approval {approval} is {kept}; {see}"));
                }
            }
        }
    }
    finding.end()
}

/// What must not be done twice was done at most once, and where the log says that it was done, it was.
fn effects(home: &Path, logs: &[Read]) -> Check {
    let says = "an effect that must not be repeated happens once, with approval, and not without";
    let mut finding = Finding::new("effects", says, "effects");
    let ledger = std::fs::read_to_string(home.join("demo/.ledger")).unwrap_or_default();
    let mut done: BTreeMap<&str, u32> = BTreeMap::new();
    for line in ledger.lines().filter(|line| line.ends_with(" demo_append")) {
        *done.entry(line.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    for (operation, times) in &done {
        finding.examine(1);
        if *times > 1 {
            finding.fault(format!("the effect {operation} happened {times} times"));
        }
    }
    let known: BTreeMap<_, _> = logs
        .iter()
        .flat_map(|log| log.facts.effects.iter().map(|(id, effect)| (&**id, (effect, &log.thread))))
        .collect();
    for operation in done.keys() {
        match known.get(operation) {
            Some((effect, _)) if effect.attempt > 0 => {}
            _ => finding.fault(format!("the effect {operation} happened, and no log says that it was started")),
        }
    }
    for (operation, (effect, thread)) in &known {
        let by_tool = effect.resolved_by.is_none();
        let succeeded = effect.outcome == Some(raddle_domain::record::EffectOutcome::Succeeded);
        if by_tool && succeeded && !done.contains_key(operation) {
            finding.fault(format!(
                "the effect {operation} of thread {thread} is told as done, and was not; {}",
                look_at(thread, 0)
            ));
        }
    }
    finding.end()
}

#[cfg(test)]
mod tests;
