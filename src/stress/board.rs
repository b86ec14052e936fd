//! Agents that share runs: they make tasks, claim and complete them, and write down facts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use raddle_domain::{id::Seq, run::TaskStatus};
use serde::Deserialize;
use serde_json::json;

use super::{
    Check, PATIENCE, StressError,
    check::Finding,
    dice::Dice,
    facts::mark,
    watch::{self, Glimpse, difference, digest},
    world::{Answer, Who, World},
};
use crate::client::{ClaimTask, ClaimedTask, ClientError, NewRun, PatchBoard, TransitionTask};

/// Far longer than a run of this lasts: no lease ends by itself.
const LEASE_MS: u64 = 300_000;

/// A run, and what its clients were told of it.
pub struct Board {
    who: Arc<Who>,
    run: String,
    told: Mutex<OfBoard>,
}

#[derive(Default)]
struct OfBoard {
    /// Tasks and facts that were asked for, and whether that was acknowledged, refused, or nobody knows.
    tasks: BTreeMap<String, Fate>,
    facts: BTreeMap<String, Fate>,
    /// Who was told that he completed a task.
    completed: BTreeMap<String, Vec<u32>>,
    /// The fences of leases, and who was given them.
    fences: BTreeMap<u64, Vec<u32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

impl Fate {
    const fn of<T>(answer: &Answer<T>) -> Self {
        match answer {
            Answer::Done(_) => Self::Acknowledged,
            Answer::Refused(_) => Self::Refused,
            Answer::Unknown => Self::Unknown,
        }
    }
}

impl Board {
    fn told(&self) -> MutexGuard<'_, OfBoard> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes as many runs as there are to be threads.
pub async fn make(world: &Arc<World>, who: &Arc<Who>) -> Result<Vec<Arc<Board>>, StressError> {
    let mut boards = Vec::new();
    for _ in 0..world.plan.threads {
        let new = NewRun { objective: "stand the load", ..NewRun::default() };
        let made = world.read(who, |client| {
            let new = &new;
            async move { client.create_run(new).await }
        });
        let run = made.await?.id.to_string();
        watch::begin(world, who, &run);
        boards.push(Arc::new(Board { who: who.clone(), run, told: Mutex::default() }));
    }
    Ok(boards)
}

/// An agent, as long as the load lasts.
pub async fn client(world: Arc<World>, number: u32, board: Arc<Board>, mut dice: Dice) {
    let agent = Agent { world: &world, board: &board, number, name: format!("agent-{number}") };
    while !world.stop.is_cancelled() {
        match dice.below(14) {
            0..4 => agent.adds(&mut dice).await,
            4..10 => agent.works(&mut dice).await,
            10..13 => agent.writes(&mut dice).await,
            _ => agent.looks().await,
        }
    }
}

struct Agent<'b> {
    world: &'b World,
    board: &'b Board,
    number: u32,
    name: String,
}

impl Agent<'_> {
    async fn adds(&self, dice: &mut Dice) {
        let task = format!("task-{}", self.world.number());
        let tasks = [json!({ "id": task, "task_type": "stress", "priority": dice.below(3) })];
        let (run, tasks) = (&*self.board.run, &tasks[..]);
        let asked = self.world.ask(&self.board.who, "task.add", dice.one_in(8), |client| async move {
            client.create_tasks(run, tasks).await
        });
        let fate = Fate::of(&asked.await);
        self.board.told().tasks.insert(task, fate);
    }

    async fn works(&self, dice: &mut Dice) {
        let claim = ClaimTask { agent_id: &self.name, lease_ms: Some(LEASE_MS), ..ClaimTask::default() };
        let (run, claim) = (&*self.board.run, &claim);
        let asked = self.world.ask(&self.board.who, "task.claim", false, |client| async move {
            client.claim_task(run, claim, None).await
        });
        let Answer::Done(ClaimedTask { task: Some(task), .. }) = asked.await else { return };
        let Some(lease) = task.lease else { return };
        self.board.told().fences.entry(lease.fence).or_default().push(self.number);
        let completes = !dice.one_in(5);
        let action = if completes { "complete" } else { "release" };
        let word = TransitionTask {
            action,
            lease_token: lease.token.as_deref(),
            agent_id: Some(&self.name),
            ..TransitionTask::default()
        };
        let (id, word) = (&*task.id, &word);
        let operation = if completes { "task.complete" } else { "task.release" };
        let asked = self.world.ask(&self.board.who, operation, false, |client| async move {
            client.transition_task(run, id, word).await
        });
        if matches!(asked.await, Answer::Done(_)) && completes {
            self.board.told().completed.entry(task.id.clone()).or_default().push(self.number);
        }
    }

    async fn writes(&self, dice: &mut Dice) {
        let fact = mark(self.world.number());
        let patch = PatchBoard { op: "add_fact", payload: json!({ "text": fact }) };
        let (run, patch) = (&*self.board.run, &patch);
        let asked = self.world.ask(&self.board.who, "fact", dice.one_in(8), |client| async move {
            client.patch_blackboard(run, patch).await
        });
        let fate = Fate::of(&asked.await);
        self.board.told().facts.insert(fact, fate);
    }

    async fn looks(&self) {
        let run = &*self.board.run;
        drop(
            self.world.ask(&self.board.who, "board", true, |client| async move { client.blackboard(run).await }).await,
        );
    }
}

#[derive(Deserialize)]
struct Link {
    seq: Seq,
    prev: Seq,
}

/// What must be true of runs.
pub async fn check(world: &World, boards: &[Arc<Board>]) -> Result<Vec<Check>, ClientError> {
    if boards.is_empty() {
        return Ok(Vec::new());
    }
    let says = "tasks and facts that were acknowledged are there once, and each task is completed by one agent";
    let mut finding = Finding::new("board", says, "tasks and facts");
    let mut drifts = Finding::new("replay", "a run is what its log makes of it, and its log is dense", "events");
    let mut logs = BTreeMap::new();
    for board in boards {
        let (run, who) = (&*board.run, &*board.who);
        let found = world.read(who, |client| async move { client.run(run).await }).await?;
        let kept = world.read(who, |client| async move { client.blackboard(run).await }).await?;
        let replay = world.read(who, |client| async move { client.replay_run(run, &[]).await }).await?;
        let glimpses = log(world, who, run, &mut drifts).await?;
        if replay.drift.is_some_and(|drift| drift.mismatch) {
            drifts.fault(format!("run {run} is not what its log makes of it; see `raddle runs replay {run}`"));
        }
        let tasks: BTreeMap<String, TaskStatus> =
            found.tasks.iter().map(|task| (task.id.clone(), task.status)).collect();
        hold_against(&board.told(), run, &tasks, kept.facts.iter().map(|fact| &*fact.text), &mut finding);
        logs.insert(board.run.clone(), glimpses);
    }
    let says = "every stream brings the log, whole, in order and once, however often it is cut";
    let mut streams = Finding::new("streams", says, "events seen");
    let goals = logs.iter().map(|(run, log)| (run.clone(), log.last().map_or(0, |(seq, _)| *seq))).collect();
    for watched in world.watchers.finish(goals, PATIENCE).await {
        let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        streams.examine(watched.seen.len());
        if let Some(why) = logs.get(&watched.thread).and_then(|log| difference(&watched, log)) {
            streams.fault(why.replace("of thread", "of run"));
        }
    }
    Ok(vec![finding.end(), drifts.end(), streams.end()])
}

/// The log of a run, as it is stored.
async fn log(world: &World, who: &Who, run: &str, drifts: &mut Finding) -> Result<Vec<Glimpse>, ClientError> {
    let mut glimpses: Vec<Glimpse> = Vec::new();
    loop {
        let after = glimpses.last().map_or(0, |(seq, _)| *seq);
        let page = world.read(who, |client| async move { client.run_event_page(run, after, 500).await }).await?;
        if page.data.is_empty() {
            drifts.examine(glimpses.len());
            return Ok(glimpses);
        }
        for event in &page.data {
            let link: Link = serde_json::from_str(event.get())
                .map_err(|err| ClientError::Failed(format!("an event of {run} is not as expected: {err}")))?;
            let last = glimpses.last().map_or(0, |(seq, _)| *seq);
            if (link.seq, link.prev) != (last + 1, last) {
                drifts.fault(format!("run {run} has a hole before event {}; see `raddle runs watch {run}`", link.seq));
            }
            glimpses.push((link.seq, digest(event.get())));
        }
    }
}

fn hold_against<'f>(
    told: &OfBoard,
    run: &str,
    tasks: &BTreeMap<String, TaskStatus>,
    facts: impl Iterator<Item = &'f str>,
    finding: &mut Finding,
) {
    finding.examine(told.tasks.len() + told.facts.len());
    let see = format!("see `raddle runs show {run}`");
    for (task, fate) in &told.tasks {
        match (fate, tasks.contains_key(task)) {
            (Fate::Acknowledged, false) => finding.fault(format!("run {run} has lost {task}; {see}")),
            (Fate::Refused, true) => finding.fault(format!("run {run} has {task}, which was refused; {see}")),
            _ => {}
        }
    }
    for (task, by) in &told.completed {
        if by.len() > 1 {
            finding.fault(format!("{task} of run {run} was completed by several agents, {by:?}; {see}"));
        }
        if tasks.get(task) != Some(&TaskStatus::Done) {
            finding.fault(format!("{task} of run {run} was completed, and is not done; {see}"));
        }
    }
    for (fence, by) in told.fences.iter().filter(|(_, by)| by.len() > 1) {
        finding.fault(format!("the fence {fence} of run {run} was given to several agents, {by:?}; {see}"));
    }
    let mut known = BTreeSet::new();
    for fact in facts {
        let doubled = !known.insert(fact.to_owned());
        let why = match told.facts.get(fact) {
            _ if doubled => "is there twice",
            None => "was written by nobody",
            Some(Fate::Refused) => "was refused, and is there",
            Some(Fate::Acknowledged | Fate::Unknown) => continue,
        };
        finding.fault(format!("the fact {fact} of run {run} {why}; see `raddle runs notes {run}`"));
    }
    let lost = told.facts.iter().filter(|(fact, fate)| **fate == Fate::Acknowledged && !known.contains(*fact));
    lost.for_each(|(fact, _)| {
        finding.fault(format!("run {run} has lost the fact {fact}; see `raddle runs notes {run}`"))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::Holds;

    fn checked(told: &OfBoard, tasks: &[(&str, TaskStatus)], facts: &[&str]) -> Vec<String> {
        let mut finding = Finding::new("board", "", "");
        let tasks = tasks.iter().map(|(task, status)| ((*task).to_owned(), *status)).collect();
        hold_against(told, "R", &tasks, facts.iter().copied(), &mut finding);
        let check = finding.end();
        assert_eq!(check.holds == Holds::No, !check.faults.is_empty());
        check.faults
    }

    #[test]
    fn what_agents_were_told_of_a_run_must_be_so() {
        let fates = |all: &[(&str, Fate)]| all.iter().map(|(what, fate)| ((*what).to_owned(), *fate)).collect();
        let told = OfBoard {
            tasks: fates(&[("a", Fate::Acknowledged), ("b", Fate::Unknown), ("c", Fate::Refused)]),
            facts: fates(&[("#1#", Fate::Acknowledged), ("#2#", Fate::Unknown)]),
            completed: BTreeMap::from([("a".to_owned(), vec![3])]),
            fences: BTreeMap::from([(1, vec![3])]),
        };
        assert_eq!(checked(&told, &[("a", TaskStatus::Done)], &["#1#"]), Vec::<String>::new());
        let faults = checked(&told, &[("a", TaskStatus::Pending), ("c", TaskStatus::Pending)], &["#2#", "#2#", "#9#"]);
        let said = faults.join("\n");
        for fault in
            ["c, which was refused", "a of run R was completed, and is not done", "#2# of run R is there twice"]
        {
            assert!(said.contains(fault), "{fault}: {said}");
        }
        assert!(said.contains("#9# of run R was written by nobody") && said.contains("lost the fact #1#"), "{said}");
    }

    #[test]
    fn a_task_has_one_winner_and_a_fence_one_holder() {
        let told = OfBoard {
            completed: BTreeMap::from([("a".to_owned(), vec![3, 4])]),
            fences: BTreeMap::from([(7, vec![3, 4])]),
            ..OfBoard::default()
        };
        let faults = checked(&told, &[("a", TaskStatus::Done)], &[]);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
