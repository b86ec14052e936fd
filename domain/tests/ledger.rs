//! What a run takes into its ledger, and under which task.

use raddle_domain::{
    id::{ItemId, OperationId, RunId, Seq, TenantId, ThreadId, TurnId},
    ports::{ChangedFile, Content, Ids},
    run::{
        Command, Cx, LedgerPhase, LedgerRecord, LedgerStatus, MutationRecord, RunState, Source,
        command::{Claim, Journal, NewRun, NewTask, WorkBy, Worker},
        event::Event,
    },
    time::UnixMs,
};
use uuid::Uuid;

/// Ids in a row.
#[derive(Default)]
struct Row(std::sync::atomic::AtomicU64);

impl Ids for Row {
    fn mint(&self) -> Uuid {
        let next = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Uuid::from_u128((7 << 76) | (2 << 62) | u128::from(next))
    }
}

struct Bench {
    state: RunState,
    ids: Row,
}

const fn thread(number: u8) -> ThreadId {
    ThreadId::from_bytes([number; 16])
}

const fn turn(number: u8) -> TurnId {
    TurnId::from_bytes([number; 16])
}

impl Bench {
    fn new(tasks: &[&str]) -> Self {
        let ids = Row::default();
        let cx = Cx { now: UnixMs(1), ids: &ids };
        let new = NewRun { objective: "o".into(), ..NewRun::default() };
        let (state, _) = RunState::create(RunId::new(ids.mint()), TenantId::DEFAULT, new, cx).unwrap();
        let mut bench = Self { state, ids };
        let new = |id: &&str| NewTask { id: Some((*id).into()), task_type: "t".into(), ..NewTask::default() };
        bench.does(Command::CreateTasks(tasks.iter().map(new).collect()));
        bench
    }

    fn does(&mut self, command: Command) -> Vec<Event> {
        let cx = Cx { now: UnixMs(2), ids: &self.ids };
        let step = self.state.step(command.into(), cx).unwrap();
        step.records.into_iter().map(|record| record.event).collect()
    }

    fn work(&mut self, thread: ThreadId, by: WorkBy) {
        self.does(Command::Work(Worker { thread, by }, Claim::default()));
    }

    /// What is recorded of this entry: tasks of effects, and how many mutations.
    fn journal(&mut self, entry: Journal) -> (Vec<Option<String>>, usize) {
        let mut mutations = 0;
        let mut tasks = Vec::new();
        for event in self.does(Command::Journal(vec![entry])) {
            match event {
                Event::EffectRecorded(effect) => tasks.push(effect.task_id),
                Event::MutationRecorded(_) => mutations += 1,
                other => panic!("{other:?}"),
            }
        }
        (tasks, mutations)
    }
}

fn entry(thread_id: ThreadId, turn_id: TurnId, seq: Seq, task_id: Option<&str>) -> Journal {
    let source = Source {
        thread_id,
        turn_id,
        item_id: ItemId::from_bytes([1; 16]),
        operation_id: OperationId::from_bytes([9; 16]),
        seq,
    };
    let effect = LedgerRecord {
        source,
        task_id: task_id.map(str::to_owned),
        tool: "tool".into(),
        phase: LedgerPhase::Outcome,
        status: LedgerStatus::Succeeded,
        attempt: 1,
        arguments_sha256: None,
        output_sha256: None,
        output_bytes: None,
    };
    Journal { effect, mutation: None }
}

fn with_file(journal: Journal) -> Journal {
    let content = |sha256: &str| Some(Content { sha256: sha256.to_owned(), bytes: 1 });
    let file = ChangedFile { path: "a".into(), before: content("1"), after: content("2"), mode: None };
    let mutation = MutationRecord {
        source: journal.effect.source,
        task_id: None,
        tool: "tool".into(),
        workspace: "w".into(),
        files: vec![file],
    };
    Journal { mutation: Some(mutation), ..journal }
}

#[test]
fn an_effect_is_of_the_task_that_its_own_turn_holds() {
    let mut bench = Bench::new(&["a", "b"]);
    bench.work(thread(1), WorkBy::Turn(turn(1)));
    assert_eq!(bench.journal(entry(thread(1), turn(1), 1, None)), (vec![Some("a".into())], 0));
    // Neither that of another turn of the thread, nor of that turn in another one.
    assert_eq!(bench.journal(entry(thread(1), turn(2), 2, None)), (vec![None], 0));
    assert_eq!(bench.journal(entry(thread(2), turn(1), 1, None)), (vec![None], 0));
    // A job's turn says itself for which task it is; what else goes on in its thread is not for that.
    let job = raddle_domain::id::JobId::from_bytes([5; 16]);
    bench.work(thread(3), WorkBy::Job(job, 1));
    assert_eq!(bench.journal(entry(thread(3), turn(3), 1, Some("b"))), (vec![Some("b".into())], 0));
    assert_eq!(bench.journal(entry(thread(3), turn(4), 2, None)), (vec![None], 0));
    // The thread may have been set to this run while its turn was for a task of another one.
    assert_eq!(bench.journal(entry(thread(3), turn(4), 3, Some("elsewhere"))), (vec![None], 0));
}

#[test]
fn an_event_of_a_thread_is_taken_once_and_in_order() {
    let mut bench = Bench::new(&["a"]);
    assert_eq!(bench.journal(entry(thread(1), turn(1), 5, None)).0.len(), 1);
    for again in [5, 4, 1] {
        assert_eq!(bench.journal(entry(thread(1), turn(1), again, None)).0.len(), 0, "{again}");
    }
    assert_eq!(bench.journal(entry(thread(1), turn(1), 6, None)).0.len(), 1);
    assert_eq!(bench.journal(entry(thread(2), turn(1), 1, None)).0.len(), 1, "each thread has its own order");
}

#[test]
fn what_an_effect_did_to_files_is_recorded_once_though_it_ended_twice() {
    let mut bench = Bench::new(&["a"]);
    let mut uncertain = with_file(entry(thread(1), turn(1), 1, None));
    uncertain.effect.status = LedgerStatus::Uncertain;
    assert_eq!(bench.journal(uncertain).1, 1);
    assert_eq!(bench.journal(with_file(entry(thread(1), turn(1), 2, None))), (vec![None], 0));
    assert_eq!(bench.state.mutations().count(), 1);
}
