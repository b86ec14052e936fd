//! Threads that work for a run: whose ledger an effect is in, and what it says there.

use super::{
    EffectClass::{Idempotent, Once, Reconcilable},
    *,
};
use crate::id::RunId;

fn run(number: u128) -> RunId {
    RunId::new(Uuid::from_u128(number))
}

/// A thread that works for the first run, with an open turn.
fn working() -> Bench {
    let mut bench = Bench::new();
    bench.work_for(Some(run(1)));
    bench.start("p").unwrap();
    bench
}

impl Bench {
    fn work_for(&mut self, run: Option<RunId>) -> Step {
        self.ask(Command::Patch(ThreadPatch { run_id: Some(run), ..ThreadPatch::default() })).unwrap()
    }

    /// Which ledger each event of an effect says that it is in.
    fn ledgers(&self) -> Vec<(&'static str, Option<RunId>)> {
        let ledger = |record: &Record| match &record.event {
            Event::EffectIntended(effect)
            | Event::EffectStarted(effect)
            | Event::EffectSettled(effect)
            | Event::EffectUncertain(effect)
            | Event::EffectReconciled(effect) => Some((record.event.name(), effect.run_id)),
            _ => None,
        };
        self.log.iter().filter_map(ledger).collect()
    }
}

fn digest(text: &str) -> Option<String> {
    use sha2::{Digest, Sha256};
    Some(Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[test]
fn a_thread_works_for_the_run_that_was_named_last_and_for_none_once_it_is_cleared() {
    let mut bench = Bench::new();
    assert_eq!(bench.work_for(None).records.len(), 0);
    for named in [Some(run(1)), Some(run(2)), None] {
        assert_eq!(bench.work_for(named).records.len(), 1);
        assert_eq!(bench.state.view().run_id, named);
        assert_eq!((bench.replayed(), bench.reloaded()), (bench.state.clone(), bench.state.clone()));
    }
    let choice = ModelChoice { engine: "scripted".into(), model: "scripted".into() };
    let new = NewThread { run_id: Some(run(3)), ..NewThread::with(choice) };
    let Bench { now, ids, limits, prices, .. } = &bench;
    let cx = Cx { now: *now, ids, limits, prices, draining: false, room: &crate::ports::Boundless };
    let (made, _) = ThreadState::create(ThreadId::new(Uuid::nil()), new, cx).unwrap();
    assert_eq!(made.view().run_id, Some(run(3)));
}

#[test]
fn every_event_of_an_effect_says_whose_ledger_it_is_in() {
    let mut bench = working();
    bench.call(vec![free("t", Reconcilable), gated("u", Once)]);
    bench.begin();
    bench.recover();
    bench.tool("t", ToolEnd::NotDone);
    bench.tool("t", ToolEnd::Unknown("lost".into()));
    bench.resolve("t", Resolution::Settle, Some("it was there")).unwrap();
    bench.decide("u", Decision::Approved).unwrap();
    bench.begin();
    bench.done("u");
    let ledgers = bench.ledgers();
    let names: BTreeSet<&str> = ledgers.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(ledgers.iter().all(|(_, ledger)| *ledger == Some(run(1))), "{ledgers:?}");
}

#[test]
fn an_effect_stays_in_the_ledger_in_which_it_was_intended() {
    let mut bench = working();
    bench.call(vec![free("t", Idempotent), gated("u", Once)]);
    bench.work_for(Some(run(2)));
    bench.begin();
    let due = bench.state.owed().tools[0];
    assert_eq!(bench.state.invocation(key(), due).unwrap().0.run, Some(run(1)));
    bench.done("t");
    assert_eq!(bench.effect("t").run_id, Some(run(1)));
    // Intended by the word of a person, which came later.
    bench.decide("u", Decision::Approved).unwrap();
    assert_eq!(bench.effect("u").run_id, Some(run(2)));
    bench.work_for(None);
    bench.begin();
    bench.done("u");
    assert_eq!(bench.effect("u").run_id, Some(run(2)));
}

#[test]
fn a_ledger_has_digests_of_what_was_asked_for_and_of_what_the_item_holds() {
    let limits = Limits { item_bytes: 5, ..Limits::default() };
    let mut bench = Bench::with(limits, OnRestart::Resume);
    bench.work_for(Some(run(1)));
    bench.start("p").unwrap();
    bench.call(vec![free("t", Idempotent), gated("u", Once)]);
    bench.begin();
    assert_eq!((bench.effect("t").output_sha256, bench.effect("t").output_bytes), (None, None));
    bench.tool("t", ToolEnd::Done("1234é6".into()));
    let (effect, held) = (bench.effect("t"), bench.output("t").1);
    assert_eq!(held, "1234\n[cut: 5 of 7 bytes]");
    assert_eq!((effect.output_sha256, effect.output_bytes), (digest(&held), Some(held.len() as u64)));
    assert_eq!(effect.arguments_sha256, Some("d1".repeat(32)));
    bench.decide("u", Decision::Approved).unwrap();
    assert_eq!(bench.effect("u").arguments_sha256, Some("d1".repeat(32)));
    bench.begin();
    bench.tool("u", ToolEnd::Failed(String::new()));
    let effect = bench.effect("u");
    assert_eq!((effect.output_sha256, effect.output_bytes), (digest(""), Some(0)));
}

#[test]
fn an_act_of_an_agent_is_in_the_ledger_from_when_it_begins() {
    let mut bench = working();
    bench.act("a", ActStep::Announced);
    bench.work_for(Some(run(2)));
    bench.act("a", ActStep::Started);
    bench.act("a", ActStep::Ended { done: true, output: "it is done".into() });
    let effect = bench.effect("act");
    assert_eq!((effect.run_id, effect.arguments_sha256), (Some(run(2)), None));
    assert_eq!((effect.output_sha256, effect.output_bytes), (digest("it is done"), Some(10)));
    // What was asked about has arguments that somebody has seen.
    for (call, decided) in [("b", true), ("c", false)] {
        bench.act(call, ActStep::Asks(Box::new(planned("act", Once, Gate::Ask))));
        if decided {
            bench.decide("act", Decision::Approved).unwrap();
        } else {
            bench.act(call, ActStep::Started);
        }
        assert_eq!(bench.effect("act").arguments_sha256, Some("d1".repeat(32)), "{call}");
        bench.act(call, ActStep::Ended { done: true, output: String::new() });
    }
    assert!(bench.ledgers().iter().all(|(_, ledger)| *ledger == Some(run(2))));
}

#[test]
fn without_a_run_the_log_says_nothing_of_ledgers() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.call(vec![free("t", Idempotent)]);
    bench.begin();
    let due = bench.state.owed().tools[0];
    assert_eq!(bench.state.invocation(key(), due).unwrap().0.run, None);
    bench.done("t");
    bench.finish();
    let log = serde_json::to_string(&bench.log).unwrap();
    let words = ["run_id", "output_sha256", "output_bytes", "\"arguments_sha256\""];
    assert!(words.iter().all(|word| !log.contains(word)), "{log}");
}
