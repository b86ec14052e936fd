//! Jobs and schedules: who runs what no turn is, among other things badly, and what must hold of their logs.
//!
//! What a runner is told are words, as tools are: `slow` and `late` take their time before they act, or after; `says`
//! speaks; `fails`, `never` and `unknown` say how it ends, and with a `1` how the first run does.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use raddle_domain::{
    id::{ScheduleId, TurnId},
    job::{self, Job, JobStatus, Work},
    ports::{JobDenied, JobEnd, JobRun, JobRunner, JobWork, Output, StoredEvent},
    schedule,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::sleep;

use super::{
    witness::{ATTEMPT, Fact, Holds, LEASE, ONCE, REPLAY, REQUEST, SOUND, STORED_FIRST, Violation, unless},
    world::World,
};

/// What a client of a verb is told is in the log.
pub(crate) fn told(seq: u64) -> Fact {
    Fact::Thing("event of work", seq.to_string())
}

pub(crate) struct ScriptedRunner(pub Arc<World>);

fn says(run: &JobRun, word: &str) -> bool {
    let script = match &run.work {
        Work::Command(command) => command.command.as_str(),
        Work::Webhook(hook) => hook.body.as_str().unwrap_or_default(),
        Work::Turn(_) => "",
    };
    script.split(' ').any(|said| said == word || (run.run == 1 && said.strip_suffix('1') == Some(word)))
}

impl JobRunner for ScriptedRunner {
    fn judge(&self, _: &JobRun) -> Result<Option<String>, JobDenied> {
        Ok(None)
    }

    fn run(&self, run: JobRun, output: Arc<dyn Output>) -> JobWork {
        let world = self.0.clone();
        Box::pin(async move {
            let kind = run.work.kind();
            world.note(format_args!("runner    run {} of a {kind} begins", run.run));
            world.witness(|witness| witness.run_begins(&run));
            if says(&run, "slow") {
                sleep(Duration::from_millis(400)).await;
            }
            if says(&run, "never") {
                return JobEnd::Failed { why: "told never to succeed".to_owned(), again: false };
            }
            if says(&run, "fails") {
                return JobEnd::Failed { why: "told to fail".to_owned(), again: true };
            }
            if says(&run, "says") {
                output.say("about to act\n".to_owned()).await;
            }
            world.note(format_args!("runner    run {} of a {kind} acts", run.run));
            world.witness(|witness| witness.run_acts(&run));
            if says(&run, "late") {
                sleep(Duration::from_millis(1_500)).await;
            }
            if says(&run, "unknown") {
                return JobEnd::Unknown("the line went dead".to_owned());
            }
            JobEnd::Done(json!("acted"))
        })
    }
}

/// A job, or a schedule, as its log makes it.
#[derive(Default)]
pub(crate) struct Chore {
    pub job: Option<Job>,
    pub schedule: Option<ScheduleId>,
    /// Of each run, the turn that it became, and how often it acted.
    turns: BTreeMap<u32, TurnId>,
    acts: BTreeMap<u32, u32>,
    /// The last lease under which a run began.
    begun: u32,
}

fn read<T: DeserializeOwned>(stored: &StoredEvent) -> Holds<T> {
    let read = serde_json::from_slice(&stored.json);
    read.map_err(|why| Violation { invariant: REPLAY, what: format!("{} cannot be read: {why}", stored.name) })
}

/// The slot that a schedule has made a job for.
pub(crate) fn fired(stored: &StoredEvent) -> Holds<Option<(ScheduleId, u64)>> {
    let schedule::Record { schedule_id, payload, .. } = read(stored)?;
    Ok(payload.slot.map(|slot| (schedule_id, slot.0)))
}

/// How many jobs a schedule says that it made.
pub(crate) fn made(stored: &StoredEvent) -> Holds<(ScheduleId, u64)> {
    let record: schedule::Record = read(stored)?;
    Ok((record.schedule_id, record.payload.schedule.fired))
}

impl Chore {
    /// The next event of a job's log, which has this number.
    pub fn see(&mut self, number: usize, stored: &StoredEvent) -> Holds {
        let job = Job::apply(read::<job::Record>(stored)?);
        let name = &*stored.name;
        let broken = |why: &str| format!("log {number}: {name}: the job {why}");
        unless(job.attempt <= job.max_attempts, ATTEMPT, || broken("is tried more often than it may be"))?;
        if let Some(turn) = job.turn_id {
            let known = *self.turns.entry(job.run).or_insert(turn);
            unless(known == turn, REQUEST, || broken("has become two turns by one run"))?;
        }
        if let Some(before) = self.job.replace(job) {
            let job = self.job.as_ref().unwrap_or(&before);
            unless(job.seq == before.seq + 1, SOUND, || broken("says another place of its log"))?;
            unless(!before.status.is_over() || name == "job.queued", SOUND, || broken("goes on behind its end"))?;
            unless((before.run..=before.run + 1).contains(&job.run), SOUND, || broken("has lost a run"))?;
            let begins = name == "job.started";
            unless(!begins || job.begun == before.begun + 1, LEASE, || broken("is begun under an old lease"))?;
            let ends = matches!(name, "job.completed" | "job.failed" | "job.retrying" | "job.uncertain");
            unless(!ends || before.status == JobStatus::Running, LEASE, || broken("ends, and nobody ran it"))?;
        }
        Ok(())
    }

    /// A runner begins.
    pub fn begins(&mut self, number: usize, run: &JobRun) -> Holds {
        let known = self.job.as_ref().map(|job| (job.status, job.run));
        // One that is taken from its run just then may begin before the run is told so. A paused one goes on to the next.
        let is_stored = match known {
            Some((JobStatus::Running | JobStatus::Cancelled, known)) => known == run.run,
            Some((JobStatus::Paused, known)) => known == run.run + 1,
            _ => false,
        };
        unless(is_stored, STORED_FIRST, || format!("log {number}: run {} begins; the log says {known:?}", run.run))?;
        let term = self.job.as_ref().map_or(0, |job| job.begun);
        unless(term > self.begun, ATTEMPT, || format!("log {number}: run {} begins twice under one lease", run.run))?;
        self.begun = term;
        Ok(())
    }

    /// It acts, which of a command is done once by a run. A webhook may come again: it says which run it is.
    pub fn acts(&mut self, number: usize, run: &JobRun) -> Holds {
        let acts = self.acts.entry(run.run).or_default();
        *acts += 1;
        unless(*acts == 1 || run.work.may_repeat(), ONCE, || {
            format!("log {number}: run {} of a command acts {acts} times", run.run)
        })
    }
}
