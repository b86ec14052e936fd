//! What holds of any sequence of commands. The bench looks at every step; here is what is asked.

use proptest::{prelude::*, sample::select, test_runner::FileFailurePersistence};

use super::*;
use crate::{
    id::JobId,
    run::command::{Replace, WorkBy, Worker},
};

/// What somebody does, or what happens meanwhile. Places are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Ask(Box<Command>, Option<IfMatch>),
    /// With `fits`: under new names, and waiting for what there is.
    Create {
        new: Vec<NewTask>,
        fits: bool,
    },
    /// A word about a task, under a token of this run; about one that is held, if it says which.
    Say {
        said: Box<Transition>,
        held: Option<usize>,
        shown: Shown,
        rev: Option<i64>,
    },
    /// The whole record as it is, but for this.
    Replace {
        status: RunStatus,
        path: Option<u8>,
        epoch: i64,
        tasks: bool,
    },
    /// Somebody says where he works, with the epoch so far from the right one.
    Lease {
        path: u8,
        rebind: bool,
        epoch: Option<i64>,
    },
    /// With `goes`: once the run goes on, if it does not.
    Claim {
        claim: Claim,
        epoch: Option<i64>,
        goes: bool,
    },
    /// With `paused`: once the run is paused, if it is not.
    Rollback {
        paused: bool,
        which: Vec<usize>,
        confirm: bool,
        ack: bool,
        forged: bool,
    },
    Restored {
        refused: bool,
        forged: bool,
    },
    DeleteCheckpoint(usize),
    /// Go on with a run that begins as a checkpoint of this one.
    Restore(usize),
    Pass(u64),
    /// The clock is set back.
    Back(u64),
    /// Ring when something is owed.
    Wake,
}

#[derive(Debug, Clone, Copy)]
enum IfMatch {
    Seen,
    Stale,
}

/// Which token is shown.
#[derive(Debug, Clone, Copy)]
enum Shown {
    /// The last that was given for the task, whether or not it is worth anything now.
    Of,
    None,
    /// One that was given at some time.
    Other(usize),
    Wrong,
}

fn id() -> impl Strategy<Value = String> {
    select(vec!["t0", "t1", "t2", "t3", "t4", "t5"]).prop_map(str::to_owned)
}

fn maybe<T: Clone + std::fmt::Debug + 'static>(of: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Option<T>> {
    prop_oneof![3 => Just(None), 2 => of.prop_map(Some)].boxed()
}

fn agent() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("a".to_owned()),
        3 => Just("b".to_owned()),
        3 => Just(thread(1).to_string()),
        1 => Just(String::new()),
    ]
}

fn text() -> impl Strategy<Value = String> {
    select(vec!["", " ", "so", "é \"and\" \u{1f30d}\n", "line one of it\n- line two of it"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Value> {
    select(vec![
        json!(null),
        json!({}),
        json!({ "why_next_step": "so", "step_status": "done", "error": "e" }),
        json!({ "step_status": "working", "n": [1, -1, u64::MAX, 0.907_303_832_202_868_9, -0.0], "": null }),
        json!({ "run": {}, "task": { "id": "t0" }, "task_kind": "research" }),
        json!({ "output_target": { "file": "a" } }),
        json!([[[]]]),
        json!("text"),
    ])
}

fn new() -> impl Strategy<Value = NewTask> {
    let kind = select(vec!["build", "build", "test", "fix-proposal", "implementation", " "]).prop_map(str::to_owned);
    let status = maybe(select(vec![TaskStatus::Runnable, TaskStatus::Blocked, TaskStatus::Done]));
    let on = prop::collection::vec(prop_oneof![9 => id(), 1 => Just("nobody".to_owned())], 0..3);
    let named = prop_oneof![9 => id().prop_map(Some), 1 => Just(None)];
    let rest = (maybe(select(vec!["v", "w"])), -1..2_i32, maybe(0..4_u32), maybe(id()));
    let payload = prop_oneof![3 => Just(json!(null)), 2 => value()];
    (named, kind, status, on, payload, rest).prop_map(|(id, task_type, status, on, payload, rest)| {
        let (workflow, priority, max_attempts, parent_task_id) = rest;
        NewTask {
            id,
            task_type,
            payload,
            status,
            workflow_id: workflow.map(str::to_owned),
            workflow_node_id: None,
            parent_task_id: parent_task_id.filter(|_| priority == 1),
            depends_on_task_ids: on,
            decision_ids: vec!["d".into(); usize::from(priority == 0)],
            artifact_ids: Vec::new(),
            priority,
            max_attempts,
        }
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::Heartbeat),
        4 => Just(Action::Complete),
        4 => Just(Action::Fail),
        2 => Just(Action::Release),
        3 => Just(Action::Retry),
        4 => select(TaskStatus::ALL.to_vec()).prop_map(Action::Status),
    ]
}

fn say() -> impl Strategy<Value = Op> {
    let lease_ms = maybe(select(vec![0, 5_000, 60_000, u64::MAX]));
    let shown = prop_oneof![
        9 => Just(Shown::Of),
        2 => Just(Shown::None),
        1 => (0..9_usize).prop_map(Shown::Other),
        1 => Just(Shown::Wrong),
    ];
    let rest = (maybe(agent()), maybe(text()), lease_ms, maybe(value()));
    let which = (id(), prop_oneof![2 => Just(None), 3 => (0..4_usize).prop_map(Some)]);
    let rev = prop_oneof![4 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(-1))];
    (which, action(), shown, rev, rest).prop_map(
        |((task_id, held), action, shown, rev, (agent_id, error, lease_ms, output))| {
            let said = Transition { agent_id, error, lease_ms, output, ..transition(&task_id, action) };
            Op::Say { said: Box::new(said), held, shown, rev }
        },
    )
}

fn claims() -> impl Strategy<Value = Op> {
    let kind = maybe(select(vec!["build", "test", "fix_proposal", "fix-proposal", "none"]));
    let lease_ms = maybe(select(vec![0, 5_000, 60_000, u64::MAX]));
    let how = (prop_oneof![1 => Just(None), 4 => Just(Some(0)), 1 => Just(Some(-1))], prop::bool::weighted(0.7));
    let narrow = (maybe(id()), kind, maybe(select(vec!["v", "w"])));
    let asks = prop_oneof![1 => narrow, 1 => Just((None, None, None))];
    (agent(), asks, lease_ms, how).prop_map(|(agent_id, (task_id, kind, flow), lease_ms, (epoch, goes))| {
        let (task_type, workflow_id) = (kind.map(str::to_owned), flow.map(str::to_owned));
        let claim = Claim { agent_id, task_id, task_type, workflow_id, lease_ms, lease_epoch: None };
        Op::Claim { claim, epoch, goes }
    })
}

/// What the runtime's own workers do: two turns of one thread, and a job.
fn work() -> impl Strategy<Value = Command> {
    let turn = |n| WorkBy::Turn(TurnId::new(Uuid::from_u128(n)));
    let by = select(vec![turn(1), turn(2), WorkBy::Job(JobId::new(Uuid::from_u128(3)), 1)]);
    let worker = by.prop_map(|by| Worker { thread: thread(1), by });
    let says = (id(), action(), maybe(text()), maybe(value())).prop_map(|(id, action, error, output)| Transition {
        error,
        output,
        ..transition(&id, action)
    });
    (worker, says, 0..6_u8).prop_map(|(worker, said, what)| match what {
        0..3 => Command::Work(worker, Claim::default()),
        3..5 => Command::Say(worker, said),
        _ => Command::GiveBack(worker),
    })
}

fn tells() -> impl Strategy<Value = Command> {
    let name = select(vec![
        "session_run_started",
        "session_run_finished",
        "planning_started",
        "plan_approved",
        "run_paused",
        "run_resumed",
        "run_resumed",
        "run_cancelled",
        "run_reopened",
        "run_reopened",
        "reopen",
        "task_retry_requested",
        "revision_requested",
        "step_started",
        "step_completed",
        "step_failed",
        " Whatever ",
        "context.task.done",
        "todo_synced",
        "",
    ]);
    let step = maybe(select(vec!["s0", "s1", "session-run", "step-1", "todo-1"]));
    (name, maybe(select(RunStatus::ALL.to_vec())), step, value())
        .prop_map(|(name, status, step, payload)| tell_with(name, status.filter(|_| step.is_some()), step, payload))
}

fn patches() -> impl Strategy<Value = Patch> {
    let kind = || select(vec![EntryKind::Fact, EntryKind::Decision, EntryKind::OpenQuestion, EntryKind::Artifact]);
    let name = || select(vec!["e0", "e1", "e2"]).prop_map(str::to_owned);
    let add = (kind(), maybe(name()), text(), maybe(text()), maybe(any::<u64>())).prop_map(
        |(kind, id, text, path, ts_ms)| {
            let artifact_type = path.clone().filter(|_| kind == EntryKind::Artifact);
            let step_id = ts_ms.map(|_| "s0".to_owned());
            NewEntry { kind, id, text, path, artifact_type, step_id, source_event_id: None, ts_ms }
        },
    );
    prop_oneof![
        3 => add.prop_map(Patch::Add),
        2 => (kind(), name(), text()).prop_map(|(kind, id, text)| Patch::Edit { kind, id, text }),
        2 => (kind(), name(), maybe(text()))
            .prop_map(|(kind, id, resolution)| Patch::Resolve { kind, id, resolution }),
        1 => (any::<bool>(), text()).prop_map(|(pack, text)| Patch::Summarise { pack, text }),
    ]
}

fn todos() -> impl Strategy<Value = Command> {
    let status = select(vec![StepStatus::Pending, StepStatus::Runnable, StepStatus::InProgress, StepStatus::Done]);
    let todo = (maybe(select(vec!["s0", "s1", " ", "a/b"])), text(), status).prop_map(|(id, content, status)| Todo {
        id: id.map(str::to_owned),
        content,
        status,
    });
    (prop::collection::vec(todo, 0..3), any::<bool>(), maybe(agent())).prop_map(|(todos, replace, source)| {
        Command::SyncTodos(SyncTodos { todos, replace, source_session_id: source, source_run_id: None })
    })
}

fn journals() -> impl Strategy<Value = Command> {
    let hash = || maybe(select(vec!["1", "2"]));
    let files = prop::collection::vec((select(vec!["f", "g"]), hash(), hash()), 0..2);
    let one = (0..2_u128, 1..12_u64, files, any::<bool>()).prop_map(|(of, seq, files, changes)| {
        let journal = changed(thread(of), seq, &files);
        Journal { mutation: journal.mutation.filter(|_| changes), ..journal }
    });
    prop::collection::vec(one, 1..4).prop_map(Command::Journal)
}

fn op() -> impl Strategy<Value = Op> {
    let ask = |command| Op::Ask(Box::new(command), None);
    let matched = prop_oneof![Just(IfMatch::Seen), Just(IfMatch::Stale)];
    let epoch = || prop_oneof![1 => Just(None), 3 => Just(Some(0_i64)), 1 => Just(Some(1))];
    prop_oneof![
        8 => (prop::collection::vec(new(), 1..4), prop::bool::weighted(0.8))
            .prop_map(|(new, fits)| Op::Create { new, fits }),
        14 => claims(),
        24 => say(),
        8 => work().prop_map(ask),
        8 => tells().prop_map(ask),
        2 => (tells(), matched).prop_map(|(command, matched)| Op::Ask(Box::new(command), Some(matched))),
        5 => patches().prop_map(move |patch| ask(Command::Patch(patch))),
        3 => todos().prop_map(ask),
        3 => any::<bool>().prop_map(move |dry_run| ask(Command::Drive { dry_run })),
        5 => journals().prop_map(ask),
        2 => Just(ask(Command::SaveCheckpoint { reason: None })),
        1 => (0..4_usize).prop_map(Op::DeleteCheckpoint),
        1 => (0..4_usize).prop_map(Op::Restore),
        3 => (select(RunStatus::ALL.to_vec()), maybe(0..3_u8), -1..2_i64, any::<bool>())
            .prop_map(|(status, path, epoch, tasks)| Op::Replace { status, path, epoch, tasks }),
        3 => (0..3_u8, any::<bool>(), epoch()).prop_map(|(path, rebind, epoch)| Op::Lease { path, rebind, epoch }),
        4 => (prop::collection::vec(0..6_usize, 0..3), 0..8_u8, 0..8_u8, 0..8_u8).prop_map(
            |(which, confirm, ack, forged)| Op::Rollback {
                paused: confirm > 2,
                which,
                confirm: confirm > 0,
                ack: ack > 0,
                forged: forged == 0,
            },
        ),
        4 => (any::<bool>(), 0..4_u8).prop_map(|(refused, forged)| Op::Restored { refused, forged: forged == 0 }),
        4 => select(vec![1, 400, 400, 5_000, 5_000, 30_000, 3_600_000]).prop_map(Op::Pass),
        1 => select(vec![1, 20_000, 7_200_000]).prop_map(Op::Back),
        2 => Just(Op::Wake),
        2 => Just(ask(Command::Tick)),
    ]
}

/// A whole life: what is asked, and which of the tokens belongs to which task.
struct Life {
    bench: Bench,
    /// The newest of each task.
    tokens: BTreeMap<String, String>,
    restored: u128,
}

fn epoch_of(bench: &Bench, off: i64) -> u64 {
    bench.run().workspace.lease_epoch.wrapping_add_signed(off)
}

impl Life {
    fn new() -> Self {
        Self { bench: Bench::planned(&["s0", "s1", "session-run"]), tokens: BTreeMap::new(), restored: 0 }
    }

    fn play(&mut self, op: Op) {
        let bench = &mut self.bench;
        let asked = match op {
            Op::Ask(command, None) => bench.ask(*command),
            Op::Ask(command, Some(matched)) => {
                let revision = bench.run().revision;
                let if_match = match matched {
                    IfMatch::Seen => revision,
                    IfMatch::Stale => revision - 1,
                };
                bench.request(Request { command: *command, if_match: Some(if_match) })
            }
            Op::Create { mut new, fits } => {
                if fits {
                    self.fit(&mut new);
                }
                self.bench.ask(Command::CreateTasks(new))
            }
            Op::Claim { claim, epoch, goes } => {
                if goes && (bench.run().status.is_terminal() || bench.run().status == RunStatus::Paused) {
                    bench.tell("run_reopened");
                }
                let lease_epoch = epoch.map(|off| epoch_of(bench, off));
                let asked = bench.ask(Command::Claim(Claim { lease_epoch, ..claim }));
                if let Ok(Step { reply: Reply::Claimed(claimed), .. }) = &asked
                    && let Some(task) = &claimed.task
                {
                    self.tokens.insert(task.id.clone(), task.lease.clone().unwrap().token.unwrap());
                }
                asked
            }
            Op::Say { mut said, held, shown, rev } => {
                let is_held = |task: &&Task| task.status == TaskStatus::InProgress;
                if let Some(task) = held.and_then(|at| bench.state.tasks().filter(is_held).nth(at)) {
                    said.task_id.clone_from(&task.id);
                }
                let task_rev = bench.state.task(&said.task_id).map_or(0, |task| task.task_rev);
                let lease_token = match shown {
                    Shown::Of => self.tokens.get(&said.task_id).cloned(),
                    Shown::None => None,
                    Shown::Other(at) if bench.tokens.is_empty() => Some(at.to_string()),
                    Shown::Other(at) => Some(bench.tokens[at % bench.tokens.len()].clone()),
                    Shown::Wrong => Some("lease-wrong".into()),
                };
                let expected_task_rev = rev.map(|off| task_rev.wrapping_add_signed(off));
                bench.ask(Command::Transition(Transition { lease_token, expected_task_rev, ..*said }))
            }
            Op::Replace { status, path, epoch, tasks } => {
                let run = bench.run().clone();
                let lease_epoch = epoch_of(bench, epoch);
                let canonical_path =
                    path.map_or(run.workspace.canonical_path, |path| ["", "/a", "/b"][path as usize].into());
                let workspace = RunWorkspace { workspace_id: "w".into(), canonical_path, lease_epoch };
                let new = NewRun {
                    objective: run.objective,
                    source_metadata: tasks.then_some(json!(null)),
                    workspace: Some(workspace),
                    steps: run.steps,
                    ..NewRun::default()
                };
                let replace = Replace {
                    new,
                    status,
                    why_next_step: None,
                    last_error: None,
                    revision: Some(run.revision),
                    tasks: tasks.then(|| bench.state.tasks().cloned().collect()),
                };
                bench.ask(Command::Replace(Box::new(replace)))
            }
            Op::Lease { path, rebind, epoch } => {
                let lease_epoch = epoch.map(|off| epoch_of(bench, off));
                let current_path = ["", "/a", "/b"][path as usize].to_owned();
                bench.ask(Command::ValidateLease(ValidateLease {
                    phase: None,
                    current_path,
                    step_id: None,
                    lease_epoch,
                    rebind,
                }))
            }
            Op::Rollback { paused, which, confirm, ack, forged } => {
                if paused && !may_roll_back(bench.run().status) {
                    bench.tell("run_paused");
                }
                let known: Vec<_> = bench.state.mutations().map(|mutation| mutation.event_id.clone()).collect();
                let mut event_ids: Vec<_> = which.iter().filter_map(|at| known.get(*at).cloned()).collect();
                event_ids.extend(forged.then(|| "evt_1".to_owned()));
                bench.ask(Command::Rollback(AskRollback {
                    event_ids,
                    confirm: if confirm { "rollback" } else { "yes" }.into(),
                    policy_ack: ack.then(|| "allow_rollback_execution".into()),
                }))
            }
            Op::Restored { refused, forged } => {
                let due = bench.state.owed().restore.filter(|_| !forged).map(|due| due.operation);
                let operation = due.unwrap_or(OperationId::new(Uuid::from_u128(3)));
                let refused = refused.then(|| "changed".to_owned());
                bench.ask(Command::Restored(RestoreReport { operation, refused }))
            }
            Op::DeleteCheckpoint(at) => {
                let saved = bench.state.checkpoints().nth(at).map(|saved| saved.id);
                bench.ask(Command::DeleteCheckpoint(saved.unwrap_or(CheckpointId::new(Uuid::from_u128(3)))))
            }
            Op::Restore(at) => {
                let Some(saved) = bench.state.checkpoints().nth(at).cloned() else { return };
                self.restore(&saved);
                return;
            }
            Op::Pass(ms) => {
                bench.pass(ms);
                return;
            }
            Op::Back(ms) => {
                bench.now = UnixMs(bench.now.0 - ms);
                return;
            }
            Op::Wake => {
                let Some(at) = bench.state.owed().wake_at else { return };
                bench.now = bench.now.max(at);
                let step = bench.ask(Command::Tick);
                assert!(step.as_ref().is_ok_and(|step| !step.records.is_empty()), "it was owed: {step:?}");
                step
            }
        };
        drop(asked);
    }

    /// Names tasks that fit beside those that there are.
    fn fit(&self, new: &mut [NewTask]) {
        let mut free = (0..).map(|n| format!("t{n}")).filter(|id| self.bench.state.task(id).is_none());
        for task in new.iter_mut() {
            task.id = free.next();
            task.payload = json!({ "output_target": { "path": "a" } });
            task.max_attempts = task.max_attempts.filter(|most| *most > 0);
            task.status = task.status.filter(|status| *status != TaskStatus::Done);
            if task.task_type.trim().is_empty() {
                task.task_type = "build".into();
            }
        }
        let names: Vec<_> = new.iter().filter_map(|task| task.id.clone()).collect();
        let known = |id: &String| self.bench.state.task(id).is_some();
        for (at, task) in new.iter_mut().enumerate() {
            // On what is there, or on what comes later in the same batch.
            task.depends_on_task_ids.retain(|id| known(id) || names[at + 1..].contains(id));
            task.parent_task_id = task.parent_task_id.take().filter(known);
        }
    }

    fn restore(&mut self, saved: &Checkpoint) {
        self.restored += 1;
        let bench = &self.bench;
        let id = RunId::new(Uuid::from_u128(0x1000 + self.restored));
        let (copy, cx) = (bench.copy(saved), Cx { now: bench.now, ids: &bench.ids });
        let made = restored(id, TenantId::DEFAULT, (Some(saved.id), saved.seq), copy, cx).unwrap();
        let ids = Counter(AtomicU64::new(bench.ids.0.load(Ordering::Relaxed)));
        let tokens = bench.tokens.clone();
        self.bench = Bench { tokens, ..Bench::of(made, bench.now, ids) };
    }
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(500),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("src/run/tests/regressions.txt"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever is asked, what the bench checks after each step holds: a refusal is no trace, the log and the parts each
    /// make the same state, they do not drift, records read back, tokens are kept, counts and queue are right.
    #[test]
    fn any_run_is_what_its_log_and_its_parts_make_of_it(ops in prop::collection::vec(op(), 1..120)) {
        let mut life = Life::new();
        for op in ops {
            life.play(op);
        }
        // Once more, all at once.
        let log = &life.bench.log;
        let mut state = RunState::begin(&log[0]).unwrap();
        log[1..].iter().for_each(|record| state.apply(record).unwrap());
        prop_assert_eq!(state, life.bench.state);
    }
}
