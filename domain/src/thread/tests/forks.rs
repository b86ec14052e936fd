//! Threads that begin where another one stood.

use super::{EffectClass::Once, *};

impl Bench {
    /// A fork of the thread as it is, or before its open turn, with its past as its own log.
    fn fork(&self, point: ForkPoint) -> Bench {
        let ids = Counter(AtomicU64::new(1_000));
        let (id, parent) = (ThreadId::new(ids.mint()), self.state.id());
        let at = point.at;
        let cx = Cx {
            now: self.now,
            ids: &ids,
            limits: &self.limits,
            prices: &self.prices,
            draining: false,
            room: &crate::ports::Boundless,
        };
        let (state, step) = ThreadState::fork(id, point, cx).unwrap();
        let renamed = |record: &Record| {
            let json = serde_json::to_string(record).unwrap().replace(&parent.to_string(), &id.to_string());
            Record::decode(SCHEMA, json.as_bytes()).unwrap()
        };
        let mut log: Vec<Record> = self.log[..at as usize].iter().map(renamed).collect();
        log.extend(step.records);
        let mut settled: Vec<Settled> = self.settled.iter().filter(|turn| turn.started_seq <= at).cloned().collect();
        settled.iter_mut().for_each(|settled| settled.turn.thread_id = id);
        settled.extend(step.settled);
        Bench {
            state,
            log,
            rest: step.rest.unwrap(),
            now: self.now,
            ids,
            limits: self.limits,
            first_limits: self.limits,
            steady: self.steady,
            draining: false,
            prices: self.prices.clone(),
            settled,
        }
    }

    fn whole(&self) -> ForkPoint {
        ForkPoint {
            parent: self.state.view().clone(),
            at: self.state.seq(),
            last: self.state.last().cloned(),
            context_seq: self.state.context_seq(),
            title: None,
            part: None,
        }
    }
}

fn items(bench: &Bench, settled: &Settled) -> Vec<Item> {
    let item = |seq: &Seq| match &bench.log[*seq as usize - 1].event {
        Event::ItemCompleted(item) => (**item).clone(),
        other => panic!("{other:?}"),
    };
    settled.items.iter().map(item).collect()
}

#[test]
fn a_fork_has_the_past_and_nothing_that_waits_or_was_granted() {
    let mut bench = Bench::new();
    bench.ask(Command::SaveCheckpoint("here".into())).unwrap();
    bench.start("p").unwrap();
    bench.call(vec![gated("t", Once)]);
    bench.decide("t", Decision::ApprovedForSession).unwrap();
    bench.queue("q").unwrap();
    bench.ask(Command::Interrupt(Interrupt { turn: bench.turn(), pause_queue: true })).unwrap();
    let mut fork = bench.fork(bench.whole());
    assert_eq!(fork.log.last().unwrap().event.name(), "thread.forked");
    let view = fork.state.view();
    assert_eq!((view.queued, view.queue_paused, view.status), (0, false, ThreadStatus::Idle));
    let from = view.forked_from.unwrap();
    assert_eq!((from.thread_id, from.seq), (bench.state.id(), bench.state.seq()));
    assert_eq!((fork.waiting(), fork.state.checkpoints().count()), (Vec::<&str>::new(), 0));
    assert_eq!(fork.replayed(), fork.state);
    assert_eq!(fork.reloaded(), fork.state);
    assert_eq!(fork.history(), bench.history());
    fork.start("r").unwrap();
    fork.call(vec![gated("t", Once)]);
    assert_eq!(fork.approval("t").status, ApprovalStatus::Pending);
}

#[test]
fn a_fork_works_for_no_run_until_somebody_says_so() {
    let mut bench = Bench::new();
    let run_id = Some(crate::id::RunId::new(Uuid::from_u128(1)));
    bench.ask(Command::Patch(ThreadPatch { run_id: Some(run_id), ..ThreadPatch::default() })).unwrap();
    let mut fork = bench.fork(bench.whole());
    assert_eq!((bench.state.view().run_id, fork.state.view().run_id), (run_id, None));
    assert_eq!((fork.replayed(), fork.reloaded()), (fork.state.clone(), fork.state.clone()));
    fork.start("p").unwrap();
    fork.call(vec![free("t", Once)]);
    assert_eq!(fork.effect("t").run_id, None);
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.finish();
    let mut fork = bench.fork(bench.whole());
    fork.edit("q").unwrap();
    bench.start("r").unwrap();
    assert_eq!((fork.said(), bench.said()), (vec!["q".to_owned()], vec!["p".to_owned(), "r".to_owned()]));
    assert_eq!(fork.replayed(), fork.state);
    fork.finish();
    assert_eq!(fork.reloaded(), fork.state);
}

#[test]
fn a_fork_of_an_open_thread_begins_before_its_open_turn() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.finish();
    let point = bench.whole();
    bench.start("q").unwrap();
    let fork = bench.fork(ForkPoint { parent: bench.state.view().clone(), ..point });
    assert_eq!(fork.state.view().status, ThreadStatus::Idle);
    assert_eq!((fork.state.view().active_turn, fork.said()), (None, vec!["p".to_owned()]));
    assert_eq!(fork.replayed(), fork.state);
}

#[test]
fn a_fork_at_an_item_has_the_turn_up_to_there_and_does_not_pay_for_it() {
    let mut bench = Bench::new();
    let point = bench.whole();
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Reasoning, "hm"), (TextKind::Answer, "yes")], Some(Ok(answer(&[]))));
    bench.now = UnixMs(1_000_000);
    let settled = &bench.settled[0];
    let part = Some((settled.turn.clone(), items(&bench, settled)[..2].to_vec()));
    let fork = bench.fork(ForkPoint { part, ..point });
    let turn = fork.ended();
    assert_eq!((turn.status, turn.error.unwrap().code), (TurnStatus::Interrupted, "forked".to_owned()));
    assert_eq!((turn.usage, turn.duration_ms, turn.item_ids.len()), (Usage::default(), Some(0), 2));
    assert_eq!(fork.history().len(), 2);
    assert_eq!((fork.replayed(), fork.reloaded()), (fork.state.clone(), fork.state.clone()));
}

#[test]
fn a_fork_at_a_summary_can_take_it_back_with_the_turn_it_stands_for() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.finish();
    let point = bench.whole();
    bench.compact(Delivery::Reject).unwrap();
    bench.report(&[(TextKind::Answer, "they said p")], Some(Ok(answer(&[]))));
    let settled = &bench.settled[1];
    let part = Some((settled.turn.clone(), items(&bench, settled)));
    let mut fork = bench.fork(ForkPoint { part, ..point });
    assert_eq!(fork.said(), ["[S] they said p"]);
    assert_eq!(fork.state.context_seq(), fork.settled[1].started_seq);
    assert_eq!(fork.compact(Delivery::Reject).unwrap_err(), Refused::NothingToCompact);
    fork.edit("q").unwrap();
    assert_eq!(fork.said(), ["q"]);
    assert_eq!(fork.replayed(), fork.state);
}

#[test]
fn a_fork_of_a_compacted_thread_sees_the_summary_and_can_edit_what_came_before() {
    let mut bench = Bench::new();
    for prompt in ["p", "q"] {
        bench.start(prompt).unwrap();
        bench.finish();
    }
    bench.compact(Delivery::Reject).unwrap();
    bench.report(&[(TextKind::Answer, "they said p and q")], Some(Ok(answer(&[]))));
    let mut fork = bench.fork(bench.whole());
    assert_eq!(fork.said(), ["[S] they said p and q"]);
    assert_eq!(fork.reloaded(), fork.state);
    fork.edit("r").unwrap();
    assert_eq!(fork.said(), ["p", "r"]);
    assert_eq!(fork.replayed(), fork.state);
}

#[test]
fn a_fork_is_named_after_its_parent_unless_it_is_given_a_name() {
    let mut bench = Bench::new();
    let title = |title: &str| Some(Some(title.to_owned()));
    bench
        .ask(Command::Patch(ThreadPatch { title: title("a"), archived: Some(true), ..ThreadPatch::default() }))
        .unwrap();
    let fork = bench.fork(bench.whole());
    assert_eq!((fork.state.view().title.as_deref(), fork.state.view().archived), (Some("a"), false));
    let fork = bench.fork(ForkPoint { title: Some("b".into()), ..bench.whole() });
    assert_eq!(fork.state.view().title.as_deref(), Some("b"));
    let long = ForkPoint { title: Some("x".repeat(5_000)), ..bench.whole() };
    let cx = Cx {
        now: bench.now,
        ids: &bench.ids,
        limits: &bench.limits,
        prices: &bench.prices,
        draining: false,
        room: &crate::ports::Boundless,
    };
    let refused = ThreadState::fork(bench.state.id(), long, cx).unwrap_err();
    assert!(matches!(refused, Refused::TooLarge { field: "title", .. }));
}

#[test]
fn a_fork_cannot_begin_while_a_turn_is_open() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let event = Event::ThreadForked(Box::new(bench.state.view().clone()));
    let record = Record { seq: bench.state.seq() + 1, ts: bench.now, thread: bench.state.id(), event };
    assert!(bench.state.clone().apply(&record).is_err());
}
