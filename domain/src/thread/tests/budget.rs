//! What calls may spend, and how one is settled that was cut off.

use super::*;
use crate::{
    price::{Price, Row},
    record::UsageEntry,
    tenant::Usd,
};

fn reserved(input_tokens: u64, output_tokens: u64) -> Reserved {
    Reserved { input_tokens, output_tokens }
}

fn tokens(limit: u64) -> Budget {
    Budget { tokens: Some(limit), ..Budget::default() }
}

impl Bench {
    fn budget(&mut self, budget: Option<Budget>) -> Step {
        self.ask(Command::Patch(ThreadPatch { budget: Some(budget), ..ThreadPatch::default() })).unwrap()
    }

    fn start_with(&mut self, budget: Budget) -> Result<Step, Refused> {
        let overrides = TurnOverrides { budget: Some(budget), ..TurnOverrides::default() };
        self.ask(Command::Start(StartTurn { prompt: "p".into(), overrides, ..StartTurn::default() }))
    }

    fn usage(&self) -> Vec<UsageEntry> {
        let usage = |record: &Record| match &record.event {
            Event::UsageRecorded(_, entry) => Some((**entry).clone()),
            _ => None,
        };
        self.log.iter().filter_map(usage).collect()
    }

    /// Input, output, answered calls and estimated calls of everything that was recorded.
    fn recorded(&self) -> Vec<(u64, u64, u32, u32)> {
        let of = |UsageEntry { usage, .. }: &UsageEntry| {
            (usage.input_tokens, usage.output_tokens, usage.model_calls, usage.estimated_calls)
        };
        self.usage().iter().map(of).collect()
    }

    fn after(&self, first: &str) -> Vec<&'static str> {
        let names = self.names();
        let at = names.iter().rposition(|name| *name == first).expect("it was said");
        names[at..].to_vec()
    }
}

#[test]
fn a_call_that_is_interrupted_is_settled_by_what_it_is_known_to_have_taken() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.metered(reserved(100, 0), &[], None);
    bench.metered(reserved(100, 3), &["twelve bytes"], None);
    assert_eq!(bench.count("budget.reserved"), 1, "the text tells the rest");
    let receipt = bench.interrupt();
    assert_eq!(bench.recorded(), [(100, 3, 0, 1)]);
    assert_eq!((receipt.turn.usage.input_tokens, receipt.turn.usage.model_calls), (100, 0));
    assert_eq!(bench.after("item.completed"), ["item.completed", "usage.recorded", "turn.completed", "thread.status"]);
    assert_eq!(bench.state.context_tokens, None, "it says nothing of the conversation's length");
}

#[test]
fn what_no_text_tells_is_told_before_it_is_much() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.metered(reserved(10, 0), &[], None);
    bench.metered(reserved(10, 254), &[], None);
    assert_eq!(bench.count("budget.reserved"), 1);
    bench.metered(reserved(10, 256), &[], None);
    assert_eq!(bench.count("budget.reserved"), 2);
    // Odd numbers are told exactly.
    bench.metered(reserved(10, 257), &[], None);
    bench.metered(reserved(10, 257), &[], None);
    assert_eq!(bench.count("budget.reserved"), 3);
    bench.interrupt();
    assert_eq!(bench.recorded(), [(10, 257, 0, 1)]);
}

#[test]
fn a_lost_process_leaves_a_call_that_is_settled_before_it_is_made_again() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.metered(reserved(40, 2), &["eight by"], None);
    bench.recover();
    assert_eq!(bench.recorded(), [(40, 2, 0, 1)]);
    assert_eq!(bench.after("usage.recorded"), ["usage.recorded", "turn.resumed"]);
    // Once: the next call is another.
    bench.recover();
    assert_eq!(bench.recorded().len(), 1);
    bench.metered(reserved(41, 5), &["done"], Some(Ok(answer(&[]))));
    assert_eq!(bench.recorded()[1], (2, 3, 1, 0), "what the provider reports is what counts");
    assert_eq!(bench.ended().usage.model_calls, 1);
}

#[test]
fn an_answer_of_which_nobody_reports_usage_is_settled_by_its_estimate() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.metered(reserved(7, 1), &["done"], Some(Ok(Answered { usage: None, ..answer(&[]) })));
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "done")], Some(Ok(Answered { usage: None, ..answer(&[]) })));
    assert_eq!(bench.recorded(), [(7, 1, 1, 1), (0, 0, 1, 0)]);
    assert_eq!(bench.usage().iter().map(|entry| entry.usage.unreported_calls).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_failed_call_costs_what_came_of_it_and_its_input_unless_it_was_turned_away() {
    use ModelErrorKind::*;
    /// How it failed, the output that had come, and the input and output that are charged.
    type Case = (ModelErrorKind, u64, Option<(u64, u64)>);
    let table: [Case; 8] = [
        (Unavailable, 0, None),
        (RateLimited, 0, None),
        (Unreachable, 0, None),
        (Rejected, 0, None),
        (Unavailable, 9, Some((50, 9))),
        (CutOff, 0, Some((50, 0))),
        (Timeout, 0, Some((50, 0))),
        (Malformed, 400, Some((50, 400))),
    ];
    for (kind, output, settled) in table {
        for heard in [false, true] {
            let mut bench = Bench::new();
            bench.start("p").unwrap();
            if heard {
                bench.metered(reserved(50, 0), &[], None);
            }
            bench.metered(reserved(50, output), &[], Some(Err(failure(kind))));
            let recorded: Vec<_> = bench.recorded().iter().map(|(input, output, ..)| (*input, *output)).collect();
            assert_eq!(recorded, settled.into_iter().collect::<Vec<_>>(), "{kind:?} {output} {heard}");
            check_log(&bench.log);
        }
    }
}

#[test]
fn what_a_call_that_was_cut_off_took_uses_up_no_attempt_more() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    for attempt in 1..=3 {
        bench.metered(reserved(10, 1), &["par"], Some(Err(failure(ModelErrorKind::CutOff))));
        assert_eq!((bench.count("turn.retrying"), bench.recorded().len()), (attempt, attempt));
        bench.now = bench.state.wake_at().unwrap();
        bench.ask(Command::Tick).unwrap();
    }
    bench.metered(reserved(10, 1), &["par"], Some(Err(failure(ModelErrorKind::CutOff))));
    assert_eq!(bench.outcomes(), [("p".to_owned(), TurnStatus::Failed)]);
    assert_eq!(bench.ended().usage.estimated_calls, 4);
}

#[test]
fn a_stop_in_the_middle_keeps_what_was_said_then_names_the_budget_then_ends_the_turn() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.queue("next").unwrap();
    bench.metered(reserved(10, 2), &["hello wo"], None);
    bench.metered(reserved(10, 3), &["rld"], Some(Err(failure(ModelErrorKind::Budget))));
    let story = [
        "item.delta",
        "usage.recorded",
        "item.completed",
        "budget.exceeded",
        "turn.completed",
        "prompt.promoted",
        "turn.started",
        "item.started",
        "item.completed",
    ];
    assert_eq!(bench.after("item.delta"), story);
    let (ended, said) = (bench.ended(), bench.history());
    assert_eq!((ended.status, ended.error.unwrap().code), (TurnStatus::Failed, "budget-exceeded".to_owned()));
    assert!(
        said.iter().any(|message| matches!(message, Message::Assistant { content, .. } if content == "hello world"))
    );
    assert_eq!(bench.recorded(), [(10, 3, 0, 1)]);
}

#[test]
fn a_call_that_was_not_made_costs_nothing_and_ends_its_turn() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.metered(reserved(0, 0), &[], Some(Err(failure(ModelErrorKind::Budget))));
    assert_eq!(bench.after("budget.exceeded"), ["budget.exceeded", "turn.completed", "thread.status"]);
    assert_eq!(bench.recorded(), []);
}

#[test]
fn a_compaction_for_which_there_is_no_room_ends_its_turn_too() {
    let mut bench = Bench::with(Limits { compact_at_tokens: 5, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.finish();
    bench.start("q").unwrap();
    assert_eq!(bench.state.open().unwrap().purpose(), Purpose::Compaction);
    bench.metered(reserved(10, 2), &["a summ"], Some(Err(failure(ModelErrorKind::Budget))));
    assert_eq!(bench.outcomes()[1], ("q".to_owned(), TurnStatus::Failed));
    assert_eq!(bench.usage()[1].purpose, Purpose::Compaction);
    check_log(&bench.log);
}

#[test]
fn a_thread_whose_budget_is_spent_starts_nothing_until_it_is_raised() {
    let mut bench = Bench::new();
    bench.budget(Some(tokens(5)));
    bench.start("p").unwrap();
    bench.finish();
    let refused = bench.start("q").unwrap_err();
    let Refused::BudgetExceeded(state) = &refused else { panic!("{refused}") };
    assert_eq!((state.scope, state.unit, state.limit, state.spent), (Scope::Thread, Unit::Tokens, 5, 5));
    assert_eq!(bench.edit("q").unwrap_err(), refused);
    assert_eq!(bench.compact(Delivery::Reject).unwrap_err(), refused);
    assert_eq!(bench.state.view().spent, Some(Amount { tokens: 5, pico_usd: 0 }));
    bench.budget(Some(tokens(6)));
    bench.start("q").unwrap();
    bench.finish();
    bench.start("r").unwrap_err();
    bench.budget(None);
    bench.start("r").unwrap();
    assert_eq!((bench.state.view().budget, bench.state.view().spent), (None, None));
    // What was spent is not forgotten.
    bench.budget(Some(tokens(10)));
    assert_eq!(bench.state.levels()[0].spent.tokens, 10);
}

#[test]
fn a_turn_has_a_budget_of_its_own_and_money_is_counted_by_its_price() {
    let mut bench = Bench::new();
    bench.prices = Prices::new(vec![Row {
        engine: "scripted".into(),
        model: "scripted".into(),
        from: UnixMs(0),
        until: None,
        price: Price { version: "v".into(), input: 2, cached_input: None, output: 10 },
    }]);
    let budget = Budget { usd: Some(Usd(100)), ..Budget::default() };
    bench.budget(Some(budget));
    bench.start_with(tokens(1_000)).unwrap();
    let levels = bench.state.levels();
    assert_eq!(levels.iter().map(|level| level.scope).collect::<Vec<_>>(), [Scope::Thread, Scope::Turn]);
    bench.metered(reserved(3, 1), &["par"], Some(Err(failure(ModelErrorKind::CutOff))));
    let spent = Amount { tokens: 4, pico_usd: 16 };
    assert_eq!(bench.state.open().unwrap().turn().spent, Some(spent));
    assert_eq!(bench.state.view().spent, Some(spent));
    bench.interrupt();
    bench.start_with(tokens(1_000)).unwrap();
    assert_eq!(bench.state.open().unwrap().turn().spent, Some(Amount::default()));
    assert_eq!(bench.state.levels()[0].spent, spent);
    // A budget that bounds nothing is none.
    bench.budget(Some(Budget::default()));
    assert_eq!(bench.state.levels().len(), 1);
}

#[test]
fn somebody_is_warned_once_when_most_is_spent_while_it_streams() {
    let mut bench = Bench::new();
    bench.budget(Some(tokens(100)));
    bench.start_with(Budget { warn_percent: Some(50), ..tokens(100) }).unwrap();
    bench.metered(reserved(40, 9), &[], None);
    assert_eq!(bench.count("budget.warning"), 0);
    bench.metered(reserved(40, 10), &[], None);
    bench.metered(reserved(40, 39), &[], None);
    assert_eq!(bench.count("budget.warning"), 1, "the turn's");
    bench.metered(reserved(40, 40), &[], None);
    bench.metered(reserved(40, 41), &[], None);
    assert_eq!(bench.count("budget.warning"), 2, "and the thread's");
    bench.interrupt();
    bench.start_with(tokens(1_000)).unwrap();
    bench.finish();
    assert_eq!(bench.count("budget.warning"), 2);
    // Another limit is another warning.
    bench.budget(Some(tokens(101)));
    bench.start("p").unwrap();
    bench.finish();
    assert_eq!(bench.count("budget.warning"), 3);
}

#[test]
fn what_nobody_reserved_for_is_warned_of_when_it_is_known() {
    let mut bench = Bench::new();
    bench.start_with(tokens(6)).unwrap();
    bench.finish();
    assert_eq!(bench.count("budget.warning"), 1);
    assert_eq!(bench.after("usage.recorded")[..3], ["usage.recorded", "budget.warning", "turn.completed"]);
}

#[test]
fn a_budget_that_cannot_be_is_refused_by_name() {
    let mut bench = Bench::new();
    let absurd = Budget { warn_percent: Some(101), ..tokens(1) };
    let field = |refused: Refused| match refused {
        Refused::Invalid { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(bench.start_with(absurd).unwrap_err()), "budget.warn_percent");
    let patch = ThreadPatch { budget: Some(Some(absurd)), ..ThreadPatch::default() };
    assert_eq!(field(bench.ask(Command::Patch(patch)).unwrap_err()), "budget.warn_percent");
}
