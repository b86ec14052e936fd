//! Every verb on an idle thread, while a turn runs, and while it waits for a person.

use super::{EffectClass::Once, *};

/// Where a thread can stand: [no turn, one that runs, one that waits].
fn stands() -> [Bench; 3] {
    [0, 1, 2].map(|at| {
        let mut bench = Bench::new();
        bench.start("before").unwrap();
        bench.finish();
        if at > 0 {
            bench.start("p").unwrap();
        }
        if at > 1 {
            bench.call(vec![gated("t", Once)]);
        }
        bench
    })
}

/// What came of a verb, in a word.
fn outcome(asked: Result<Step, Refused>) -> &'static str {
    match asked.map(|step| step.reply) {
        Ok(Reply::Started(_)) => "started",
        Ok(Reply::Queued { admission, .. }) if admission.delivery == Delivery::Steer => "steered",
        Ok(Reply::Queued { .. }) => "queued",
        Ok(Reply::Interrupted(_)) => "interrupted",
        Ok(Reply::Approval(_)) => "decided",
        Ok(Reply::Question(_)) => "answered",
        Ok(Reply::Effect(_)) => "resolved",
        Ok(Reply::Admission(..)) => "edited",
        Ok(Reply::Withdrawn) => "withdrawn",
        Ok(Reply::Checkpoint(_)) => "saved",
        Ok(Reply::Thread(_)) => "changed",
        Ok(Reply::Deleted) => "deleted",
        Ok(Reply::Noted) => "noted",
        Err(Refused::TurnOpen { .. }) => "turn-open",
        Err(Refused::TurnNotActive { .. }) => "turn-not-active",
        Err(Refused::NothingToSteer) => "nothing-to-steer",
        Err(Refused::NotPending { .. }) => "not-pending",
        Err(Refused::NotAsked { .. }) => "not-asked",
        Err(Refused::NotUncertain { .. }) => "not-uncertain",
        Err(Refused::NotQueued { .. }) => "not-queued",
        Err(Refused::NoCheckpoint { .. }) => "no-checkpoint",
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_verb_does_what_the_table_says_wherever_the_thread_stands() {
    type Verb = fn(&mut Bench) -> Result<Step, Refused>;
    let table: [(&str, Verb, [&str; 3]); 19] = [
        ("reject", |bench| bench.start("q"), ["started", "turn-open", "turn-open"]),
        ("queue", |bench| bench.queue("q"), ["started", "queued", "queued"]),
        ("steer", |bench| bench.deliver(Delivery::Steer, "q"), ["started", "steered", "steered"]),
        (
            "steer, not idle",
            |bench| {
                let (delivery, if_idle) = (Delivery::Steer, IfIdle::Reject);
                bench.ask(Command::Start(StartTurn { prompt: "q".into(), delivery, if_idle, ..StartTurn::default() }))
            },
            ["nothing-to-steer", "steered", "steered"],
        ),
        ("interrupt by start", |bench| bench.deliver(Delivery::Interrupt, "q"), ["started"; 3]),
        ("rollback", |bench| bench.deliver(Delivery::Rollback, "q"), ["started"; 3]),
        (
            "start that expects another turn",
            |bench| {
                let (delivery, expected_turn) = (Delivery::Queue, Some(TurnId::new(Uuid::max())));
                let start = StartTurn { prompt: "q".into(), delivery, expected_turn, ..StartTurn::default() };
                bench.ask(Command::Start(start))
            },
            ["turn-not-active"; 3],
        ),
        (
            "steer of the open turn",
            |bench| {
                let turn = bench.state.open().map_or(TurnId::new(Uuid::max()), |open| open.turn().id);
                bench.ask(Command::Steer(Steer { turn, prompt: "q".into(), undelivered: Undelivered::Report }))
            },
            ["turn-not-active", "steered", "steered"],
        ),
        (
            "steer of another turn",
            |bench| {
                let turn = bench.settled[0].turn.id;
                bench.ask(Command::Steer(Steer { turn, prompt: "q".into(), undelivered: Undelivered::Report }))
            },
            ["turn-not-active"; 3],
        ),
        (
            "interrupt",
            |bench| {
                let turn = bench.state.open().map_or(bench.settled[0].turn.id, |open| open.turn().id);
                bench.ask(interrupt(turn))
            },
            ["turn-not-active", "interrupted", "interrupted"],
        ),
        ("interrupt of another turn", |bench| bench.ask(interrupt(bench.settled[0].turn.id)), ["turn-not-active"; 3]),
        (
            "approve",
            |bench| {
                let id = bench.state.open().and_then(|open| open.approvals().next()).map(|approval| approval.id);
                let approval = id.unwrap_or(ApprovalId::new(Uuid::max()));
                bench.ask(Command::Decide(Decide { approval, decision: Decision::Approved, reason: None }))
            },
            ["not-pending", "not-pending", "decided"],
        ),
        (
            "answer nobody asked for",
            |bench| {
                let question = QuestionId::new(Uuid::max());
                bench.ask(Command::Answer(Answer { question, answer: "a".into() }))
            },
            ["not-asked"; 3],
        ),
        (
            "resolve what is certain",
            |bench| {
                let operation = OperationId::new(Uuid::max());
                bench.ask(Command::Resolve(Resolve { operation, resolution: Resolution::Retry, output: None }))
            },
            ["not-uncertain"; 3],
        ),
        ("edit", |bench| bench.edit("q"), ["started", "turn-open", "turn-open"]),
        ("compact", |bench| bench.compact(Delivery::Reject), ["started", "turn-open", "turn-open"]),
        ("compact, queued", |bench| bench.compact(Delivery::Queue), ["started", "queued", "queued"]),
        ("withdraw", |bench| bench.ask(Command::Withdraw(InputId::new(Uuid::max()))), ["not-queued"; 3]),
        ("checkpoint", |bench| bench.ask(Command::SaveCheckpoint("c".into())), ["saved"; 3]),
    ];
    for (verb, ask, expected) in table {
        for (mut bench, expected) in stands().into_iter().zip(expected) {
            let stood = bench.state.view().status;
            let got = outcome(ask(&mut bench));
            assert_eq!(got, expected, "{verb} on a thread that is {stood:?}");
            assert_eq!((bench.replayed(), bench.reloaded()), (bench.state.clone(), bench.state.clone()), "{verb}");
            check_log(&bench.log);
        }
    }
}

#[test]
fn an_interrupting_prompt_runs_before_the_queue() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.steer("s", Undelivered::Queue).unwrap();
    let step = bench.deliver(Delivery::Interrupt, "now").unwrap();
    assert!(matches!(step.reply, Reply::Started(turn) if turn.input_summary == "now"));
    assert_eq!(bench.waiting(), ["s", "q"]);
    assert_eq!(bench.said(), ["p", "now"]);
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Interrupted)]);
}

#[test]
fn a_rollback_takes_the_open_turn_out_of_the_conversation() {
    let mut bench = stands().into_iter().nth(2).unwrap();
    let turn = bench.turn();
    bench.deliver(Delivery::Rollback, "now").unwrap();
    assert_eq!(bench.said(), ["before", "now"]);
    let names = bench.names();
    let end = names.iter().rposition(|name| *name == "turn.completed").unwrap();
    assert_eq!(names[end..end + 3], ["turn.completed", "turn.rolled_back", "turn.started"]);
    let Event::TurnRolledBack(gone) = &bench.log[end + 1].event else { panic!() };
    assert_eq!((gone.id, gone.status), (turn, TurnStatus::RolledBack));
    bench.finish();
    bench.edit("again").unwrap();
    assert_eq!(bench.said(), ["before", "again"]);
}

#[test]
fn an_edit_replaces_the_last_prompt_and_what_came_of_it() {
    let mut bench = stands().into_iter().next().unwrap();
    bench.start("p").unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::Rejected))));
    bench.edit("q").unwrap();
    assert_eq!(bench.said(), ["before", "q"]);
    bench.finish();
    bench.edit("r").unwrap();
    assert_eq!(bench.said(), ["before", "r"]);
    assert_eq!(bench.count("turn.rolled_back"), 2);
    let mut fresh = Bench::new();
    assert_eq!(fresh.edit("q").unwrap_err(), Refused::NothingToEdit);
}

#[test]
fn nothing_blank_is_said_to_a_model() {
    let blank = |asked: Result<Step, Refused>| matches!(asked, Err(Refused::Invalid { field: "prompt", .. }));
    for mut bench in stands() {
        for delivery in [Delivery::Reject, Delivery::Queue, Delivery::Steer, Delivery::Interrupt, Delivery::Rollback] {
            assert!(blank(bench.deliver(delivery, " \n\t\u{a0}")));
        }
        assert!(blank(bench.edit("")));
        if bench.state.open().is_some() {
            assert!(blank(bench.steer(" ", Undelivered::Queue)));
        }
    }
}

#[test]
fn every_way_a_turn_ends_closes_everything_that_is_open_in_it_once() {
    type Way = fn(&mut Bench);
    let tools = || {
        vec![
            free("read", EffectClass::Read),
            free("gone", EffectClass::Once),
            gated("asked", Once),
            asks("ask"),
            free("later", Once),
        ]
    };
    let ways: [(&str, Way, TurnStatus); 6] = [
        ("interrupt", |bench| drop(bench.interrupt()), TurnStatus::Interrupted),
        ("interrupting start", |bench| drop(bench.deliver(Delivery::Interrupt, "n").unwrap()), TurnStatus::Interrupted),
        ("rollback", |bench| drop(bench.deliver(Delivery::Rollback, "n").unwrap()), TurnStatus::Interrupted),
        ("abort", |bench| drop(bench.decide("asked", Decision::Abort).unwrap()), TurnStatus::Canceled),
        ("deadline", |bench| drop(bench.pass(3_600_000)), TurnStatus::Failed),
        (
            "restart",
            |bench| {
                let on_restart = Some(OnRestart::Interrupt);
                bench.ask(Command::Patch(ThreadPatch { on_restart, ..ThreadPatch::default() })).unwrap();
                bench.recover();
            },
            TurnStatus::Interrupted,
        ),
    ];
    for (way, end, status) in ways {
        for stage in 0..3 {
            let mut bench = Bench::new();
            bench.start("p").unwrap();
            bench.call(tools());
            bench.steer("s", Undelivered::Queue).unwrap();
            bench.queue("q").unwrap();
            if stage > 0 {
                bench.begin();
            }
            if stage > 1 {
                bench.done("read");
                bench.begin();
            }
            end(&mut bench);
            assert_eq!(bench.settled[0].turn.status, status, "{way}");
            check_log(&bench.log);
            assert_eq!((bench.replayed(), bench.reloaded()), (bench.state.clone(), bench.state.clone()), "{way}");
        }
        let text = |compacting: bool| {
            let mut bench = stands().into_iter().next().unwrap();
            if compacting {
                bench.compact(Delivery::Reject).unwrap();
            } else {
                bench.start("p").unwrap();
            }
            bench.report(&[(TextKind::Answer, "half")], None);
            bench
        };
        for mut bench in [text(false), text(true)] {
            if way == "abort" {
                continue;
            }
            end(&mut bench);
            assert_eq!(bench.settled[1].turn.status, status, "{way}");
            check_log(&bench.log);
            assert_eq!(bench.count("compaction.started"), bench.count("compaction.failed"), "{way}");
        }
    }
}
