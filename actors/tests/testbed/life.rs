//! A life of a whole server, command by command: threads with tools, approvals, a queue, a steer, a fork, an edit, a
//! compaction; a run, a job, a schedule, tenants that come, are copied and go.
//!
//! Each command has a key of its own, or can be repeated as it is. So whoever does not know whether one was heard says
//! it again, and a life can be begun again on what was left of another.

use raddle_actors::{Error, ForkAt, Idempotency, RecordQuery, RoutingRule, RulesError};
use raddle_domain::{
    command::{Compact, Refused, Steer},
    id::{JobId, RunId},
    job::{Template, Work},
    ports::StoreError,
    record::{Decision, Resolution},
    run::{
        EntryKind,
        command::{Action, Claim, NewEntry, NewRun, NewTask, Patch, Transition},
    },
    schedule::{CatchUp, NewSchedule, Overlap},
    tenant::{TenantPatch, TenantRefused},
};

use super::*;

/// How many commands it has.
pub const COMMANDS: usize = 30;

/// What a command came to: what it was answered, as text, and whether that was the answer of before.
pub type Told = Result<(String, bool), Error>;

pub struct Life {
    clock: Arc<TestClock>,
    gate: Arc<tokio::sync::Semaphore>,
    threads: std::collections::BTreeMap<&'static str, ThreadKey>,
    turn: Option<TurnId>,
    run: Option<RunId>,
    job: Option<JobId>,
    token: Option<String>,
}

/// The tenants of a life, beside [`OWNER`].
pub fn acme() -> TenantId {
    "acme".parse().unwrap()
}
pub fn gone() -> TenantId {
    "gone".parse().unwrap()
}

fn under(n: usize) -> Call {
    let digest = |text: String| raddle_domain::ports::PartName::digest(&text).0;
    let [key, request] = [digest(format!("key {n}")), digest(format!("request {n}"))];
    Call { idempotency: Some(Idempotency { key, request }), ..Call::default() }
}

fn told<T: std::fmt::Debug>(done: raddle_actors::Done<T>) -> (String, bool) {
    (format!("{:?} {}", done.value, done.seq), done.replayed)
}

/// What is said again without a key: its answer is not compared.
fn said<T>(_: T) -> (String, bool) {
    (String::new(), true)
}

impl Life {
    pub fn new(bed: &Bed) -> Self {
        let (clock, gate) = (bed.clock.clone(), bed.model.gate.clone());
        Self { clock, gate, threads: Default::default(), turn: None, run: None, job: None, token: None }
    }

    /// A life that begins again on what was left of another: nothing waits for what comes later.
    pub fn again(bed: &Bed) -> Self {
        bed.model.gate.add_permits(1_000);
        Self::new(bed)
    }

    /// The threads that there are by now.
    pub fn threads(&self) -> impl Iterator<Item = ThreadKey> + '_ {
        self.threads.values().copied()
    }

    async fn make(&mut self, runtime: &Runtime, n: usize, name: &'static str, tenant: TenantId) -> Told {
        let done = runtime.create_thread(tenant, NewThread::with(choice()), under(n)).await?;
        self.threads.insert(name, ThreadKey { tenant, thread: done.value.id });
        Ok(told(done))
    }

    async fn say(&mut self, runtime: &Runtime, n: usize, name: &str, text: &str) -> Told {
        let done = runtime.start_turn(self.threads[name], prompt(text, Delivery::Reject), under(n)).await?;
        if let Started::Turn(turn) = &done.value {
            self.turn = Some(turn.id);
        }
        Ok(told(done))
    }

    /// Says the nth command.
    pub async fn step(&mut self, runtime: &Runtime, n: usize) -> Told {
        let run = self.run.unwrap_or_else(|| RunId::new(uuid::Uuid::nil()));
        let acme = acme();
        match n {
            0 | 27 => {
                let id = if n == 0 { acme } else { gone() };
                match runtime.create_tenant(id, TenantPatch::default(), None).await {
                    Ok(_) | Err(Error::Tenant(TenantRefused::Exists)) => Ok(said(())),
                    // It was erased in a life before this one.
                    Err(Error::TenantClosed(_)) if n == 27 => Ok(said(())),
                    Err(error) => Err(error),
                }
            }
            1 => self.make(runtime, n, "a", OWNER).await,
            2 => self.say(runtime, n, "a", "hello").await,
            3 => self.say(runtime, n, "a", "call idempotent x; call read y").await,
            4 => self.say(runtime, n, "a", "call once z").await,
            5 => self.make(runtime, n, "b", acme).await,
            6 => self.say(runtime, n, "b", "call gated_idempotent w; call ask sure").await,
            7 => {
                let all = RecordQuery { limit: 9, ..RecordQuery::default() };
                let asked = runtime.approvals(acme, all).await?.data.remove(0);
                Ok(told(runtime.decide(acme, asked.id, Decision::Approved, None, under(n)).await?))
            }
            8 => {
                let all = RecordQuery { limit: 9, ..RecordQuery::default() };
                let asked = runtime.questions(acme, all).await?.data.remove(0);
                Ok(told(runtime.answer(acme, asked.id, "yes".into(), under(n)).await?))
            }
            9 => self.say(runtime, n, "a", "hold on").await,
            10 => {
                let queued = runtime.start_turn(self.threads["a"], prompt("next", Delivery::Queue), under(n)).await?;
                Ok(told(queued))
            }
            11 => {
                let turn = self.turn.unwrap();
                let steer = Steer { turn, prompt: "and this".into(), undelivered: Default::default() };
                match runtime.steer(self.threads["a"], steer, under(n)).await {
                    // Nobody had heard it, and its turn has ended meanwhile.
                    Err(Error::Refused(Refused::TurnNotActive { .. })) => Ok(said(())),
                    done => Ok(told(done?)),
                }
            }
            12 => Ok(told(runtime.save_checkpoint(self.threads["a"], "here".into(), under(n)).await?)),
            13 => {
                let done = runtime.fork(self.threads["a"], ForkAt::Settled, None, under(n)).await?;
                self.threads.insert("c", ThreadKey { tenant: OWNER, thread: done.value.id });
                Ok(told(done))
            }
            14 => self.say(runtime, n, "c", "more").await,
            15 => {
                let instead = prompt("instead", Delivery::Reject);
                Ok(told(runtime.edit_last(self.threads["c"], instead, under(n)).await?))
            }
            16 => Ok(told(runtime.compact(self.threads["a"], Compact::default(), under(n)).await?)),
            17 => {
                let new = NewRun { objective: "all of it".into(), ..NewRun::default() };
                let done = runtime.create_run(acme, new, under(n)).await?;
                self.run = Some(done.value.id);
                Ok(told(done))
            }
            18 => {
                let task = |id: &str| NewTask {
                    id: Some(id.to_owned()),
                    task_type: "t".to_owned(),
                    payload: serde_json::json!({ "n": 0.1 }),
                    ..NewTask::default()
                };
                Ok(told(runtime.create_tasks(acme, run, vec![task("one"), task("two")], under(n)).await?))
            }
            19 => {
                let claim = Claim { agent_id: "somebody".into(), ..Claim::default() };
                let done = runtime.claim_task(acme, run, claim, under(n)).await?;
                let lease = done.value.task.as_ref().and_then(|task| task.lease.as_ref());
                self.token = lease.and_then(|lease| lease.token.clone());
                Ok(told(done))
            }
            20 => {
                let done = Transition {
                    task_id: "one".to_owned(),
                    action: Action::Complete,
                    lease_token: self.token.clone(),
                    expected_task_rev: None,
                    agent_id: None,
                    error: None,
                    lease_ms: None,
                    output: Some(serde_json::json!({ "done": true })),
                };
                Ok(told(runtime.transition_task(acme, run, done, under(n)).await?))
            }
            21 => {
                let fact = Patch::Add(NewEntry {
                    kind: EntryKind::Fact,
                    id: Some("f".to_owned()),
                    text: "so it is".to_owned(),
                    path: None,
                    artifact_type: None,
                    step_id: None,
                    source_event_id: None,
                    ts_ms: None,
                });
                Ok(told(runtime.patch_board(acme, run, fact, under(n)).await?))
            }
            22 => Ok(told(runtime.save_run_checkpoint(acme, run, Some("so far".into()), under(n)).await?)),
            23 => {
                let done = runtime.create_job(OWNER, self.prompts("c", "in a job"), None, under(n)).await?;
                self.job = Some(done.value.id);
                Ok(told(done))
            }
            24 => {
                let new = NewSchedule {
                    name: Some("daily".into()),
                    cron: Some("0 3 * * *".into()),
                    at: None,
                    timezone: None,
                    overlap: Overlap::default(),
                    catch_up: CatchUp::default(),
                    job: self.prompts("c", "in a slot"),
                };
                Ok(told(runtime.create_schedule(OWNER, new, under(n)).await?))
            }
            25 => {
                let rule = |intent: &str| RoutingRule { intent: intent.to_owned(), model: "test".to_owned() };
                match runtime.set_routing_rules(OWNER, vec![rule("one"), rule("two")], None).await {
                    Ok(()) => Ok(said(())),
                    Err(RulesError::Failed(error)) => Err(error),
                    Err(error) => panic!("{error}"),
                }
            }
            26 => {
                let patch = TenantPatch { name: Some("Acme".into()), ..TenantPatch::default() };
                runtime.patch_tenant(acme, patch, None, None).await.map(said)
            }
            28 => match runtime.create_thread(gone(), NewThread::with(choice()), Call::default()).await {
                Ok(_) | Err(Error::TenantClosed(_)) => Ok(said(())),
                Err(error) => Err(error),
            },
            29 => runtime.erase_tenant(gone()).await.map(said),
            _ => panic!("{n} is too many"),
        }
    }

    fn prompts(&self, name: &str, prompt: &str) -> Template {
        let work = serde_json::json!({
            "kind": "turn", "payload": { "thread_id": self.threads[name].thread, "prompt": prompt },
        });
        let work: Work = serde_json::from_value(work).unwrap();
        Template::new("n", work)
    }

    /// Says the nth command until it is answered, and waits until what it led to has been done. Whatever keeps it
    /// from being heard is shown to `meanwhile`.
    pub async fn live(&mut self, runtime: &Runtime, n: usize, mut meanwhile: impl FnMut(&Error)) -> (String, bool) {
        let told = loop {
            match self.step(runtime, n).await {
                Ok(told) => break told,
                Err(error) => {
                    assert!(passes(&error), "{n}: {error}");
                    meanwhile(&error);
                    tokio::task::yield_now().await;
                }
            }
        };
        if n == 11 {
            // More than one: a call that is made again waits again.
            self.gate.add_permits(1_000);
        }
        if !matches!(n, 6 | 7 | 9 | 10) {
            self.settles(runtime, n, meanwhile).await;
        } else if n == 6 || n == 7 {
            let asked = |thread: &Thread| thread.status != ThreadStatus::Running;
            self.until(runtime, self.threads["b"], n, asked, &mut meanwhile).await;
        }
        told
    }

    /// Waits until no thread has anything left to do. What is uncertain by then was done, says a person.
    async fn settles(&self, runtime: &Runtime, n: usize, mut meanwhile: impl FnMut(&Error)) {
        if let Some(job) = self.job {
            loop {
                match runtime.job(OWNER, job).await {
                    Ok(job) if job.status.is_over() => break,
                    Ok(_) => {}
                    Err(error) => {
                        assert!(passes(&error), "{n}: {error}");
                        meanwhile(&error);
                    }
                }
                self.clock.advance(10);
                tokio::task::yield_now().await;
            }
        }
        for (name, key) in &self.threads {
            // In a life that begins again it may be there already, and wait for what is said later.
            let asks = *name == "b" && n < 8;
            let rests = |thread: &Thread| match thread.status {
                ThreadStatus::Idle => thread.queued == 0,
                ThreadStatus::AwaitingApproval => asks,
                _ => false,
            };
            self.until(runtime, *key, n, rests, &mut meanwhile).await;
        }
    }

    async fn until(
        &self,
        runtime: &Runtime,
        key: ThreadKey,
        n: usize,
        is: impl Fn(&Thread) -> bool,
        meanwhile: &mut impl FnMut(&Error),
    ) {
        let until = async {
            loop {
                match runtime.thread(key).await {
                    Ok(thread) if is(&thread) => return,
                    Ok(_) => {}
                    Err(error) => {
                        assert!(passes(&error), "{n}: {error}");
                        meanwhile(&error);
                    }
                }
                let open = RecordQuery { open: true, limit: 9, ..RecordQuery::default() };
                for effect in runtime.effects(key.tenant, open).await.map_or(Vec::new(), |page| page.data) {
                    // Whether it was heard shows in the list.
                    let (settle, id) = (Resolution::Settle, effect.operation_id);
                    drop(runtime.resolve(key.tenant, id, settle, Some("it was".into()), Call::default()).await);
                }
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(LONG, until).await.is_err() {
            panic!("command {n}: the thread stands otherwise: {:#?}", runtime.thread(key).await);
        }
    }

    /// Asserts what holds once all was said: every turn has ended well, and every log is sound.
    pub async fn is_over(&self, runtime: &Runtime) {
        for key in self.threads() {
            let turns = runtime.turns(key, None, 99).await.unwrap().data;
            let ended = |turn: &Turn| matches!(turn.status, TurnStatus::Completed | TurnStatus::RolledBack);
            assert!(turns.iter().all(ended), "{turns:#?}");
            assert_sound_packed(&log(runtime, key).await, true);
        }
        let [a, b, c] = ["a", "b", "c"].map(|name| self.threads[name]);
        let mut said = Vec::new();
        for key in [a, b, c] {
            let turns = runtime.turns(key, None, 99).await.unwrap().data;
            said.push(turns.into_iter().map(|turn| turn.input_summary).collect::<Vec<_>>());
        }
        let of_a = ["hello", "call idempotent x; call read y", "call once z", "hold on", "next"];
        assert_eq!(said[0][..5], of_a, "each was said once, in order");
        assert_eq!(said[1], ["call gated_idempotent w; call ask sure"]);
        assert_eq!(said[2].iter().filter(|said| *said == "in a job").count(), 1, "{said:?}");
        let run = runtime.run(acme(), self.run.unwrap()).await.unwrap();
        let replayed = runtime.replay_run(acme(), run.id, None, None).await.unwrap();
        assert!(!replayed.drift.unwrap().mismatch, "what is kept of the run is what its log says");
        assert!(runtime.erasure(gone()).await.unwrap().is_some());
    }
}

/// Whether an error is one of those that a caller is told to come back after.
fn passes(error: &Error) -> bool {
    matches!(
        error,
        Error::Store(StoreError::Full | StoreError::Unavailable(_))
            | Error::ThreadUnavailable(_)
            | Error::Busy { .. }
            | Error::InFlight
    )
}
