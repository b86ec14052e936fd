//! The machine of a thread against a small model of it: any sequence of requests, reports, jumps of the clock, crashes,
//! evictions and forks, compared after each.
//!
//! `PROPTEST_CASES` says how many sequences are played.

mod host;
mod model;

use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, FileFailurePersistence},
};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use raddle_domain::record::{Decision, Delivery, EffectClass, Resolution};

use crate::{
    host::Host,
    model::{End, Expects, Gate, Model, Op, Place, Tool},
};

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Self> {
        (any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(compacts, interrupts)| Model::new(compacts, interrupts))
            .boxed()
    }

    /// Anything can happen anywhere; what leads somewhere happens more often.
    fn transitions(model: &Self) -> BoxedStrategy<Op> {
        let often = |likely: bool, weight: u32| if likely { weight } else { 1 };
        let (calls, runs) = (model.calls_model(), !model.due().is_empty());
        let begins = model.runnable().len() > model.due().len();
        let open = model.open.is_some();
        let [approvals, questions, uncertain, inputs] = model.waiting_for();
        let compacts = model.open.as_ref().is_some_and(|open| open.compacting);
        prop_oneof![
            often(!open, 10) + 3 => start(),
            often(!open, 2) => Just(Op::Edit),
            2 => any::<bool>().prop_map(|queue| Op::Compact { queue }),
            often(open, 3) => (prop::bool::weighted(0.9), any::<bool>())
                .prop_map(|(open, queue_if_late)| Op::Steer { open, queue_if_late }),
            1 => (prop::bool::weighted(0.7), prop::bool::weighted(0.3))
                .prop_map(|(open, pause)| Op::Interrupt { open, pause }),
            often(model.paused || model.archived, 4) => (flag(), flag(), flag())
                .prop_map(|(archived, paused, auto)| Op::Patch { archived, paused, auto }),
            often(model.queue.len() > 1, 3) => (any_of(&inputs), any::<bool>(), prop::option::of(0..5u32))
                .prop_map(|(which, text, to)| Op::EditPrompt { which, text, to }),
            1 => any_of(&inputs).prop_map(|which| Op::Withdraw { which }),
            often(!approvals.is_empty(), 8) => (any_of(&approvals), decision()).prop_map(|(which, decision)| Op::Decide { which, decision }),
            often(!questions.is_empty(), 4) => any_of(&questions).prop_map(|which| Op::Answer { which }),
            often(!uncertain.is_empty(), 8) => (any_of(&uncertain), resolution())
                .prop_map(|(which, resolution)| Op::Resolve { which, resolution }),
            1 => (0..3u8).prop_map(|name| Op::Save { name }),
            1 => (0..3u8).prop_map(|name| Op::Forget { name }),
            often(calls, 6) => select(vec!["a", "é", " ", ""]).prop_map(|text| Op::Say { text }),
            often(calls, 12) => (reply(compacts), prop::bool::weighted(0.8))
                .prop_map(|((text, tools), usage)| Op::Reply { text, tools, usage }),
            often(calls, 3) => prop::bool::weighted(0.7).prop_map(|transient| Op::Fail { transient }),
            1 => Just(Op::LateSay),
            often(begins, 12) => Just(Op::Begin),
            often(runs, 12) => (0..3usize, select(vec![End::Done, End::Done, End::Failed, End::NotDone, End::Unknown]))
                .prop_map(|(which, end)| Op::Tool { which, end }),
            1 => (0..4usize).prop_map(|which| Op::LateTool { which }),
            often(!approvals.is_empty() || !questions.is_empty(), 3) + 2 =>
                (select(vec![0, 400, 500, 1_000, 6_000, 10_000, 20_000, 61_000]), prop::bool::weighted(0.6))
                .prop_map(|(ms, rings)| Op::Pass { ms, rings }),
            often(open, 3) => Just(Op::Crash),
            2 => Just(Op::Evict),
            1 => place().prop_map(|at| Op::Fork { at }),
        ]
        .boxed()
    }

    fn apply(mut model: Self, op: &Op) -> Self {
        model.play(op);
        model
    }
}

fn start() -> impl Strategy<Value = Op> {
    let deliveries = prop_oneof![
        2 => Just(Delivery::Reject),
        8 => Just(Delivery::Queue),
        4 => Just(Delivery::Steer),
        1 => Just(Delivery::Interrupt),
        1 => Just(Delivery::Rollback),
    ];
    let expects = prop_oneof![
        8 => Just(Expects::Anything),
        1 => Just(Expects::TheOpenTurn),
        1 => Just(Expects::AnotherTurn),
    ];
    (deliveries, expects, any::<bool>(), any::<bool>()).prop_map(|(delivery, expects, unless_idle, queue_if_late)| {
        Op::Start { delivery, expects, unless_idle, queue_if_late }
    })
}

/// Mostly one of these, sometimes another.
fn any_of(these: &[usize]) -> BoxedStrategy<usize> {
    let any = 0..5usize;
    if these.is_empty() { any.boxed() } else { prop_oneof![6 => select(these.to_vec()), 1 => any].boxed() }
}

/// Text and tool calls of an answer; a summary is mostly text.
fn reply(summary: bool) -> BoxedStrategy<(&'static str, Vec<Tool>)> {
    if summary {
        (select(vec!["sum", "sum", "up", ""]), prop::collection::vec(tool(), 0..1)).boxed()
    } else {
        (select(vec!["", "yes"]), prop::collection::vec(tool(), 0..4)).boxed()
    }
}

fn resolution() -> impl Strategy<Value = Resolution> {
    prop_oneof![3 => Just(Resolution::Retry), 3 => Just(Resolution::Settle), 1 => Just(Resolution::Abort)]
}

fn flag() -> impl Strategy<Value = Option<bool>> {
    prop_oneof![2 => Just(None), 2 => Just(Some(false)), 1 => Just(Some(true))]
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        6 => Just(Decision::Approved),
        1 => Just(Decision::ApprovedForSession),
        1 => Just(Decision::ApprovedAlways),
        2 => Just(Decision::Denied),
        1 => Just(Decision::Abort),
    ]
}

fn tool() -> impl Strategy<Value = Tool> {
    let class = select(vec![EffectClass::Read, EffectClass::Idempotent, EffectClass::Reconcilable, EffectClass::Once]);
    let gate = prop_oneof![4 => Just(Gate::Open), 2 => Just(Gate::Ask), 1 => Just(Gate::Full)];
    prop_oneof![
        1 => Just(Tool::Unknown),
        1 => Just(Tool::Question),
        8 => (class, gate, 0..2usize).prop_map(|(class, gate, arguments)| Tool::Run { class, gate, arguments }),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::Settled),
        (0..5usize).prop_map(|which| Place::Before { which }),
        (0..3u8).prop_map(|name| Place::Checkpoint { name }),
    ]
}

struct Machine;

impl StateMachineTest for Machine {
    type SystemUnderTest = Host;
    type Reference = Model;

    fn init_test(model: &Model) -> Host {
        Host::new(model)
    }

    fn apply(mut host: Host, model: &Model, op: Op) -> Host {
        host.play(&op, model);
        host
    }

    fn check_invariants(host: &Host, model: &Model) {
        host.check(model);
    }

    fn teardown(host: Host, _: Model) {
        host.finish();
    }
}

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    Config {
        cases: cases.unwrap_or(2_000),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/machine/regressions.txt"))),
        ..Config::default()
    }
}

prop_state_machine! {
    #![proptest_config(config())]
    #[test]
    fn any_thread_is_what_a_small_model_of_it_says(sequential 1..100 => Machine);
}

/// The rule is broken on purpose: the newest prompt that waits is next.
#[cfg(feature = "planted")]
#[test]
fn a_broken_rule_is_caught_by_the_model() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    use raddle_domain::planted::{Fault, plant};
    let mut runner = TestRunner::deterministic();
    let mut found = (0..2_000).filter_map(|_| {
        let (model, ops, _) = Model::sequential_strategy(1..100).new_tree(&mut runner).unwrap().current();
        plant(Some(Fault::NewestFirst));
        let played = std::panic::catch_unwind(|| Machine::test_sequential(Config::default(), model, ops, None));
        plant(None);
        played.err()
    });
    let why = found.next().expect("somebody notices");
    let why = why.downcast_ref::<String>().expect("a sentence");
    assert!(why.contains("is not the next of the inbox"), "{why}");
}
