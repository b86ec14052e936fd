use super::*;
use crate::run::command::{WorkBy, Worker};

#[test]
fn each_event_of_a_thread_is_recorded_once() {
    let mut bench = Bench::new();
    let (a, b) = (thread(1), thread(2));
    let tell = |of, seq| Journal { effect: effect(of, seq), mutation: None };
    bench.does(Command::Journal(vec![tell(a, 3), tell(b, 3), tell(a, 3), tell(a, 4)]));
    assert_eq!(bench.state.rest().ledger.record_count, 3);
    // Told again, or too late.
    let step = bench.ask(Command::Journal(vec![tell(a, 4), tell(a, 1), tell(b, 3)])).unwrap();
    assert!(step.records.is_empty());
    bench.does(Command::Journal(vec![tell(b, 4)]));
    assert_eq!(bench.state.rest().ledger.record_count, 4);
    assert!(bench.log[1..].iter().all(|record| record.by == "runtime"));
    assert_eq!(bench.names()[1..], ["tool_effect_recorded"; 4]);
}

#[test]
fn an_effect_belongs_to_the_task_that_its_thread_holds() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t"), new_task("u")]);
    bench.token(claim("somebody else"));
    let worker = Worker { thread: thread(1), by: WorkBy::Turn(effect(thread(1), 1).source.turn_id) };
    bench.does(Command::Work(worker, Claim::default()));
    let files: &[_] = &[("a", None, Some("x"))];
    // A task that there is not is nobody's, whoever names it.
    let mut named = changed(thread(1), 1, files);
    named.effect.task_id = Some("x".into());
    bench.does(Command::Journal(vec![named]));
    bench.does(Command::Say(worker, transition("u", Action::Complete)));
    bench.does(Command::Journal(vec![changed(thread(1), 2, files)]));
    let of: Vec<_> = bench.log[5..].iter().map(|record| (record.event.name(), record.event.task_id())).collect();
    let [mutation, effect] = ["mutation_checkpoint_recorded", "tool_effect_recorded"].map(std::borrow::Cow::Borrowed);
    assert_eq!(of[..2], [(mutation.clone(), Some("u")), (effect.clone(), Some("u"))]);
    assert_eq!(of[3..], [(mutation, None), (effect, None)]);
}

#[test]
fn an_effect_that_names_its_task_is_for_that_one() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    let of_a_job = LedgerRecord { task_id: Some("t".into()), ..effect(thread(1), 1) };
    bench.does(Command::Journal(vec![Journal { effect: of_a_job, mutation: None }]));
    assert_eq!(bench.log.last().unwrap().event.task_id(), Some("t"));
}

#[test]
fn the_summary_counts_what_is_on_record() {
    let mut bench = Bench::new();
    let of = |seq, tool: &str, phase, status| Journal {
        effect: LedgerRecord { tool: tool.into(), phase, status, ..effect(thread(1), seq) },
        mutation: None,
    };
    bench.pass(9);
    bench.does(Command::Journal(vec![
        of(1, "read", LedgerPhase::Invocation, LedgerStatus::Started),
        of(2, "read", LedgerPhase::Outcome, LedgerStatus::Succeeded),
        of(3, "sh", LedgerPhase::Outcome, LedgerStatus::Blocked),
    ]));
    let summary = serde_json::to_value(bench.state.rest().ledger).unwrap();
    let want = json!({
        "record_count": 3,
        "by_status": { "started": 1, "succeeded": 1, "blocked": 1 },
        "by_phase": { "invocation": 1, "outcome": 2 },
        "by_tool": { "read": 2, "sh": 1 },
        "last_seq": 4,
        "last_ts": bench.now,
    });
    assert_eq!(summary, want);
}

#[test]
fn tools_beyond_number_are_counted_as_one() {
    let mut bench = Bench::new();
    let of =
        |n: u64| Journal { effect: LedgerRecord { tool: format!("tool-{n}"), ..effect(thread(1), n) }, mutation: None };
    bench.does(Command::Journal((1..300).map(of).collect()));
    bench.does(Command::Journal(vec![Journal {
        effect: LedgerRecord { tool: "tool-1".into(), ..effect(thread(1), 300) },
        mutation: None,
    }]));
    let ledger = bench.state.rest().ledger;
    assert_eq!((ledger.record_count, ledger.by_tool.len()), (300, limits::TOOLS + 1));
    assert_eq!((ledger.by_tool["(other tools)"], ledger.by_tool["tool-1"]), (43, 2));
}

#[test]
fn of_changes_beyond_number_the_oldest_are_forgotten() {
    let mut bench = Bench::new();
    let of = |n: u64| changed(thread(1), n, &[("a", None, Some("x"))]);
    let many = limits::MUTATIONS as u64;
    bench.does(Command::Journal((1..=many).map(of).collect()));
    let (held, oldest) = (bench.state.held_bytes(), bench.state.mutations().next().unwrap().clone());
    bench.does(Command::Journal(vec![of(many + 1)]));
    assert_eq!((bench.state.mutations().count(), bench.state.held_bytes()), (limits::MUTATIONS, held));
    assert_ne!(bench.state.mutations().next(), Some(&oldest));
    assert_eq!(bench.kept().mutations.len(), limits::MUTATIONS);
}
