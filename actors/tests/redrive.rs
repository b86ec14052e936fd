//! What a runtime is told is recorded as it is told, and told again it leads to the same.

mod testbed;

use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use raddle_actors::{
    Call, Config, Error, ForkAt, Ports, RecordError, Recording, Runtime, Tape, Whose,
    redrive::{Progress, ReadError, Redrive, Replica, Report, Trace},
    store::redb::RedbStore,
};
use raddle_domain::{
    command::{Command, Compact, Interrupt, Steer, ThreadPatch},
    id::ThreadKey,
    ports::{LogStore, StoreError},
    record::{Decision, Delivery, TurnStatus, Undelivered},
    time::UnixMs,
    trace::{BadTrace, Came, Header, Line, Rerun, Told},
};
use testbed::*;
use tokio::task::JoinHandle;

/// A recording as it is written to a file.
struct File {
    header: Header,
    lines: Vec<Line>,
}

impl File {
    fn text(&self) -> String {
        let lines: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        format!("{}\n{lines}", self.header)
    }

    fn trace(&self) -> Trace {
        Trace::read(Cursor::new(self.text())).unwrap()
    }

    fn of(&self, key: ThreadKey) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.key() == key).collect()
    }

    /// The rules alone make the same of it.
    fn holds(&self) {
        for thread in self.trace().threads {
            let mut rerun = Rerun::default();
            for line in &thread.lines {
                rerun.tell(&self.header, &line.line).unwrap_or_else(|why| panic!("{}: {why}", thread.key));
            }
        }
    }
}

/// Somebody who writes down what he hears.
struct Scribe {
    header: Header,
    lines: JoinHandle<Vec<Line>>,
}

impl Scribe {
    fn of(runtime: &Runtime, mut recording: Recording) -> Self {
        let lines = tokio::spawn(async move {
            let mut lines = Vec::new();
            while let Some(more) = recording.next().await.unwrap() {
                lines.extend(more);
            }
            assert_eq!(recording.left_out(), 0);
            lines
        });
        Self { header: runtime.trace_header(), lines }
    }

    fn all(runtime: &Runtime) -> Self {
        Self::of(runtime, runtime.record(Whose::default()).unwrap())
    }

    /// What was recorded, once the runtime has gone down.
    async fn ends(self, runtime: &Runtime) -> File {
        runtime.shutdown(LONG).await;
        File { header: self.header, lines: self.lines.await.unwrap() }
    }
}

async fn told_again(trace: &Trace, copies: u32) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let redrive =
        Redrive { copies, tenants: 3, loaded_threads: 4, at_once: 32, watched: 8, ..Redrive::new(dir.path()) };
    redrive.run(trace, Arc::new(Progress::default())).await.unwrap()
}

async fn decide(runtime: &Runtime, key: ThreadKey, decision: Decision) {
    waits(runtime, key).await;
    let approval = pending(runtime, key).await.remove(0);
    runtime.decide(OWNER, approval.id, decision, Some("so be it".into()), Call::default()).await.unwrap();
}

/// A day of a thread: tools, questions to people, steers, a queue, interrupts, refusals.
async fn lives(bed: &Bed, runtime: &Runtime, key: ThreadKey) {
    start(runtime, key, "call once a says; call gated_once b; call fails").await;
    decide(runtime, key, Decision::Approved).await;
    rests(runtime, key).await;
    start(runtime, key, "call gated_read c").await;
    decide(runtime, key, Decision::Denied).await;
    rests(runtime, key).await;

    let turn = start(runtime, key, "hold think call read d").await;
    answering(runtime, key).await;
    let queued = runtime.start_turn(key, prompt("next", Delivery::Queue), Call::default()).await.unwrap();
    let refused = runtime.start_turn(key, prompt("not now", Delivery::Reject), Call::default()).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let late = Call { if_match: Some(1), ..Call::default() };
    assert!(runtime.patch_thread(key, ThreadPatch::default(), late).await.is_err());
    let steer = Steer { turn: turn.id, prompt: "to the left".into(), undelivered: Undelivered::Queue };
    runtime.steer(key, steer, Call::default()).await.unwrap();
    drop(queued);
    bed.model.gate.add_permits(1);
    rests(runtime, key).await;

    let turn = start(runtime, key, "hold and go").await;
    answering(runtime, key).await;
    let interrupt = Interrupt { turn: turn.id, pause_queue: false };
    runtime.interrupt(key, interrupt, Call::default()).await.unwrap();
    runtime.compact(key, Compact::default(), Call::default()).await.unwrap();
    rests(runtime, key).await;
    runtime.save_checkpoint(key, "here".into(), Call::default()).await.unwrap();
    runtime.edit_last(key, prompt("otherwise", Delivery::Reject), Call::default()).await.unwrap();
    rests(runtime, key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_threads_were_told_leads_to_the_same_in_every_replica_of_them() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let before = create(&runtime).await;
    say(&runtime, before, "call once z").await;

    let scribe = Scribe::all(&runtime);
    let (lived, deleted) = (create(&runtime).await, create(&runtime).await);
    lives(&bed, &runtime, lived).await;
    say(&runtime, before, "and more").await;
    let fork = key(&runtime.fork(lived, ForkAt::Settled, None, Call::default()).await.unwrap().value);
    say(&runtime, fork, "call read f").await;
    start(&runtime, deleted, "call gated_once never").await;
    waits(&runtime, deleted).await;
    runtime.delete_thread(deleted, Call::default()).await.unwrap();
    let file = scribe.ends(&runtime).await;

    file.holds();
    assert!(matches!(file.of(lived)[0].told, Told::Created(_)));
    assert!(matches!(file.of(before)[0].told, Told::Given));
    assert!(matches!(file.of(fork)[0].told, Told::Given));
    let refused = file.of(lived).iter().filter(|line| matches!(line.came, Came::Refused { .. })).count() as u64;
    assert_eq!(refused, 2);

    let report = told_again(&file.trace(), 20).await;
    assert!(report.equal, "{:#?}", report.differences);
    assert_eq!((report.replicas, report.differing, report.skipped), (80, 0, 0));
    assert_eq!((report.told, report.refused), (20 * file.lines.len() as u64, 20 * refused));
    assert!(report.unloaded > 80, "threads leave memory while they are told: {}", report.unloaded);
    assert!(report.watched >= 8, "{}", report.watched);
    assert!(report.threads.iter().all(|thread| thread.equal == 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_died_in_the_middle_is_replayed_as_the_next_one_took_it_up() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let thread = create(&runtime).await;
    start(&runtime, thread, "call read a; call once b after; call reconcilable c").await;
    bed.tools.acted(2).await;
    runtime.shutdown(Duration::ZERO).await;
    drop(runtime);

    // It hears what is taken up at the start.
    let tape = Arc::<Tape>::default();
    let ear = tape.listen(Whose::default());
    let runtime = Runtime::start(bed.config(), Ports { tape, ..bed.ports() }).await.unwrap();
    waits(&runtime, thread).await;
    let scribe = Scribe::of(&runtime, runtime.record_from(ear));
    let uncertain = runtime.effects(OWNER, open()).await.unwrap().data.remove(0);
    let settle = raddle_domain::record::Resolution::Settle;
    runtime.resolve(OWNER, uncertain.operation_id, settle, Some("it went well".into()), Call::default()).await.unwrap();
    rests(&runtime, thread).await;
    let file = scribe.ends(&runtime).await;

    file.holds();
    let told: Vec<_> = file.of(thread).into_iter().map(|line| &line.told).collect();
    assert!(matches!(told[0], Told::Given));
    let recovers = |told: &&&Told| matches!(told, Told::Command { command, .. } if **command == Command::Recover { restarted: true });
    assert_eq!(told.iter().filter(recovers).count(), 1);
    let report = told_again(&file.trace(), 20).await;
    assert!(report.equal, "{:#?}", report.differences);
}

fn open() -> raddle_actors::RecordQuery {
    raddle_actors::RecordQuery { open: true, limit: 9, ..raddle_actors::RecordQuery::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_whose_deltas_were_joined_is_given_as_many_as_there_were() {
    let bed = Bed::new();
    let store = Arc::new(RedbStore::open(&bed.config().store).unwrap());
    let ports = Ports { store: Some(store.clone()), ..bed.ports_without_store() };
    let runtime = Runtime::start(bed.config(), ports).await.unwrap();
    let thread = create(&runtime).await;
    start(&runtime, thread, "hold a").await;
    answering(&runtime, thread).await;
    bed.model.gate.add_permits(1);
    rests(&runtime, thread).await;
    let whole = log(&runtime, thread).await;
    assert!(store.pack(UnixMs(u64::MAX), 9).unwrap() > 0);
    assert!(log(&runtime, thread).await.len() < whole.len());

    let scribe = Scribe::all(&runtime);
    say(&runtime, thread, "b").await;
    let file = scribe.ends(&runtime).await;
    file.holds();
    let Came::Events(given) = &file.lines[0].came else { panic!("a log") };
    assert_eq!(given.len(), whole.len());
    let report = told_again(&file.trace(), 3).await;
    assert!(report.equal, "{:#?}", report.differences);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_fails_is_recorded_as_its_thread_went_on() {
    let bed = Bed::new();
    let brittle = Arc::new(Brittle::default());
    let runtime = Runtime::start(bed.config(), Ports { ids: brittle.clone(), ..bed.ports() }).await.unwrap();
    let scribe = Scribe::all(&runtime);
    let thread = create(&runtime).await;
    start(&runtime, thread, "hold a").await;
    answering(&runtime, thread).await;
    brittle.0.store(true, SeqCst);
    // The actor that is loaded in its place takes it.
    runtime.start_turn(thread, prompt("b", Delivery::Queue), Call::default()).await.unwrap();
    bed.model.gate.add_permits(9);
    rests(&runtime, thread).await;
    let file = scribe.ends(&runtime).await;
    file.holds();
    let recovers = Command::Recover { restarted: false };
    let is = |line: &&Line| matches!(&line.told, Told::Command { command, .. } if **command == recovers);
    assert_eq!(file.lines.iter().filter(is).count(), 1);
    let report = told_again(&file.trace(), 5).await;
    assert!(report.equal, "{:#?}", report.differences);
}

#[tokio::test]
async fn a_step_that_was_not_saved_is_on_no_tape() {
    let bed = Bed::new();
    let fails = Arc::new(AtomicBool::new(false));
    let told = fails.clone();
    let store = Hooked::open(
        &bed.config().store,
        Box::new(move |writes, commit| match holds(writes, "turn.started") && told.swap(false, SeqCst) {
            true => Err(StoreError::Full),
            false => commit(),
        }),
    );
    let store: Arc<dyn LogStore> = Arc::new(store);
    let ports = Ports { store: Some(store), ..bed.ports_without_store() };
    let runtime = Runtime::start(bed.config(), ports).await.unwrap();
    let scribe = Scribe::all(&runtime);
    let thread = create(&runtime).await;
    fails.store(true, SeqCst);
    let full = runtime.start_turn(thread, prompt("lost", Delivery::Reject), Call::default()).await;
    assert!(matches!(full, Err(Error::Store(StoreError::Full))), "{full:?}");
    assert_eq!(say(&runtime, thread, "kept").await.status, TurnStatus::Completed);
    let file = scribe.ends(&runtime).await;
    assert!(!file.text().contains("lost") && file.text().contains("kept"));
    file.holds();
}

#[tokio::test]
async fn whoever_cannot_keep_up_loses_his_recording_and_nobody_else_anything() {
    let bed = Bed::new();
    let tape = Arc::<Tape>::default();
    let (slow, quick) = (tape.listen_within(Whose::default(), 4_000), tape.listen(Whose::default()));
    let runtime = Runtime::start(bed.config(), Ports { tape, ..bed.ports() }).await.unwrap();
    let thread = create(&runtime).await;
    for _ in 0..3 {
        assert_eq!(say(&runtime, thread, "call read a").await.status, TurnStatus::Completed);
    }
    let mut slow = runtime.record_from(slow);
    let mut lines = 0;
    let lost = loop {
        match slow.next().await {
            Ok(Some(more)) => lines += more.len(),
            Ok(None) => panic!("it was told nothing of its loss"),
            Err(lost) => break lost,
        }
    };
    assert!(matches!(lost, RecordError::Overrun) && lines > 0, "{lost}");
    Scribe::of(&runtime, runtime.record_from(quick)).ends(&runtime).await.holds();
}

#[tokio::test]
async fn a_recording_takes_a_place_among_those_who_watch() {
    let bed = Bed::new();
    let config = Config { subscribers: 1, ..bed.config() };
    let runtime = Runtime::start(config, bed.ports()).await.unwrap();
    let recording = runtime.record(Whose::default()).unwrap();
    assert!(matches!(runtime.record(Whose::default()), Err(Error::Busy { .. })));
    drop(recording);
    assert!(runtime.record(Whose::default()).is_ok());
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn only_what_is_listened_to_is_heard() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let other = "other".parse().unwrap();
    let (one, two) = (create(&runtime).await, create(&runtime).await);
    let scribe = Scribe::of(&runtime, runtime.record(Whose { tenant: Some(OWNER), thread: Some(one.thread) }).unwrap());
    let nobody = Scribe::of(&runtime, runtime.record(Whose { tenant: Some(other), thread: None }).unwrap());
    say(&runtime, one, "a").await;
    say(&runtime, two, "b").await;
    let file = scribe.ends(&runtime).await;
    assert!(!file.lines.is_empty() && file.lines.iter().all(|line| line.key() == one));
    assert!(nobody.ends(&runtime).await.lines.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_was_changed_differs_and_the_first_event_is_named() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let scribe = Scribe::all(&runtime);
    let (thread, other) = (create(&runtime).await, create(&runtime).await);
    say(&runtime, thread, "call read a").await;
    say(&runtime, other, "same").await;
    let file = scribe.ends(&runtime).await;

    // What was told: everything behind it is something else.
    let number = file.text().lines().position(|line| line.contains("did a")).unwrap();
    let mut lines: Vec<_> = file.text().lines().map(str::to_owned).collect();
    lines[number] = lines[number].replacen("did a", "did b", 1);
    let changed = Trace::read(Cursor::new(lines.join("\n") + "\n")).unwrap();
    let report = told_again(&changed, 2).await;
    assert!(!report.equal);
    assert_eq!(report.differing, 2);
    let first = &report.differences[0];
    assert_eq!((&first.thread, first.replica, first.line), (&thread.to_string(), 0, Some(number + 1)));
    let (expected, found) = (first.expected.as_deref().unwrap(), first.found.as_deref().unwrap());
    assert!(expected.contains("did a") && found.contains("did b"), "{first}");
    let seq = first.seq.unwrap();
    let event = file.lines.iter().find_map(|line| match &line.came {
        Came::Events(events) => events.iter().find(|event| event.0.seq == seq && line.key() == thread),
        Came::Refused { .. } => None,
    });
    assert!(first.to_string().contains(&format!("event {seq}")), "{first}");
    assert!(expected.contains(event.unwrap().0.event.name()), "{first}");
    let reports: Vec<_> = report.threads.iter().map(|of| (of.thread.clone(), of.equal, of.differing)).collect();
    assert_eq!(reports, [(thread.to_string(), 0, 2), (other.to_string(), 2, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_and_is_not_again_differs_and_a_quota_is_passed_over() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let scribe = Scribe::all(&runtime);
    let thread = create(&runtime).await;
    let late = Call { if_match: Some(9), ..Call::default() };
    let title = |title: &str| ThreadPatch { title: Some(Some(title.into())), ..ThreadPatch::default() };
    assert!(runtime.patch_thread(thread, title("a"), late).await.is_err());
    runtime.patch_thread(thread, title("b"), Call::default()).await.unwrap();
    let mut file = scribe.ends(&runtime).await;
    assert!(told_again(&file.trace(), 2).await.equal);

    let Told::Command { if_match, .. } = &mut file.lines[1].told else { panic!("a patch") };
    let refused = if_match.take();
    let report = told_again(&file.trace(), 2).await;
    assert_eq!((report.equal, report.differing), (false, 2));
    assert_eq!(report.differences[0].line, Some(3), "{}", report.differences[0]);

    let Told::Command { if_match, .. } = &mut file.lines[1].told else { panic!("a patch") };
    *if_match = refused;
    file.lines[1].came = Came::Refused { why: "the tenant has enough".into(), quota: true };
    let report = told_again(&file.trace(), 2).await;
    assert!(report.equal, "{:#?}", report.differences);
    assert_eq!((report.skipped, report.refused), (2, 0));
}

#[test]
fn a_line_that_belongs_to_no_thread_is_named() {
    let key =
        ThreadKey { tenant: OWNER, thread: Replica(1).thread(raddle_domain::id::ThreadId::new(uuid::Uuid::now_v7())) };
    let header = Header::new(UnixMs(1), Default::default(), Default::default());
    let line = Line {
        tenant: key.tenant,
        thread: key.thread,
        at: UnixMs(1),
        draining: false,
        minted: Vec::new(),
        told: Told::Command { command: Box::new(Command::Tick), if_match: None },
        came: Came::Events(Vec::new()),
    };
    let bad = Trace::read(Cursor::new(format!("{header}\n{line}\n"))).unwrap_err();
    assert!(matches!(bad, ReadError::Bad(BadTrace::Line { line: 2, .. })), "{bad}");
    let alone = Trace::read(Cursor::new(format!("{header}\n{{\"ten"))).unwrap_err();
    assert!(matches!(alone, ReadError::Bad(BadTrace::Line { line: 2, .. })), "{alone}");
}
