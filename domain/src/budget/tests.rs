use proptest::prelude::*;

use super::*;
use crate::tenant::Usd;

const NOON: UnixMs = UnixMs(20_000 * DAY_MS + DAY_MS / 2);

fn tokens(limit: u64) -> Budget {
    Budget { tokens: Some(limit), ..Budget::default() }
}

fn usd(pico: u64) -> Budget {
    Budget { usd: Some(Usd(pico)), ..Budget::default() }
}

fn total(budget: Budget) -> Budgets {
    Budgets { total: Some(budget), ..Budgets::default() }
}

fn level(budget: Budget, spent: u64) -> Level {
    let spent = Amount { tokens: spent, pico_usd: spent };
    Level { scope: Scope::Thread, window: None, budget, spent, resets_at: None }
}

fn ask(input: u64, least: u64, most: u64) -> Ask {
    Ask { rates: Some(Rates { input: 2, output: 10 }), input, used: 0, least, most }
}

fn thread(n: u8) -> ThreadId {
    ThreadId::from_bytes([n; 16])
}

#[test]
fn a_call_gets_what_it_asks_for_or_what_there_is_or_nothing() {
    //    limit spent | input least most | granted
    let table: [(u64, u64, u64, u64, u64, Option<u64>); 9] = [
        (1_000, 0, 100, 1, 500, Some(500)),
        (1_000, 500, 100, 1, 500, Some(400)),
        (1_000, 899, 100, 1, 500, Some(1)),
        // The input fits, and not one token of an answer.
        (1_000, 900, 100, 1, 500, None),
        (1_000, 901, 100, 1, 500, None),
        (1_000, 1_000, 0, 1, 500, None),
        // Overdrawn.
        (1_000, 1_001, 0, 1, 500, None),
        (0, 0, 0, 1, 1, None),
        // What came already has to fit as well.
        (1_000, 500, 100, 401, 1_400, None),
    ];
    for (limit, spent, input, least, most, granted) in table {
        let found = grant([level(tokens(limit), spent)], ask(input, least, most));
        assert_eq!(found.ok(), granted, "{limit} {spent} {input} {least} {most}");
    }
}

#[test]
fn money_is_counted_at_the_price_of_what_is_asked_for() {
    let table: [(u64, u64, u64, Option<u64>); 5] = [
        // 100 of input cost 200, so 80 tokens of output are left for.
        (1_000, 0, 100, Some(80)),
        (1_000, 700, 100, Some(10)),
        (1_000, 799, 100, None),
        (209, 0, 100, None),
        (210, 0, 100, Some(1)),
    ];
    for (limit, spent, input, granted) in table {
        assert_eq!(grant([level(usd(limit), spent)], ask(input, 1, 500)).ok(), granted, "{limit} {spent} {input}");
    }
    let free = Ask { rates: Some(Rates { input: 0, output: 0 }), ..ask(100, 1, 500) };
    assert_eq!(grant([level(usd(5), 4)], free), Ok(500));
    assert!(grant([level(usd(5), 5)], free).is_err(), "what is spent is spent");
}

#[test]
fn a_model_without_a_price_is_not_called_under_a_budget_in_money() {
    let unpriced = Ask { rates: None, ..ask(1, 1, 1) };
    let refused = grant([level(usd(u64::MAX), 0)], unpriced).unwrap_err();
    assert_eq!(refused, Stopped::Unpriced(Scope::Thread, None));
    assert!(refused.to_string().contains("has no price"), "{refused}");
    assert_eq!(grant([level(tokens(10), 0)], unpriced), Ok(1));
}

#[test]
fn every_level_holds_and_the_tightest_decides() {
    let levels = || [level(tokens(1_000), 0), level(tokens(150), 0), level(usd(10_000), 0)];
    assert_eq!(grant(levels(), ask(100, 1, 500)), Ok(50));
    let Err(Stopped::Spent(state)) = grant(levels(), ask(200, 1, 500)) else { panic!("it fits") };
    assert_eq!((state.unit, state.limit, state.spent), (Unit::Tokens, 150, 0));
    assert_eq!(grant([], ask(u64::MAX, 1, 7)), Ok(7));
}

#[test]
fn a_token_is_four_bytes_or_a_fragment_whichever_is_more() {
    assert_eq!([0, 1, 4, 5].map(tokens_of), [0, 1, 1, 2]);
    let mut meter = Meter::new(9, 10, Some(25), None);
    assert_eq!((meter.input(), meter.output()), (3, 0));
    let Ask { least, most, .. } = meter.ask();
    assert_eq!((least, most), (1, 10));
    meter.granted(10);
    assert!(!meter.counts(40), "ten tokens fit");
    assert!(meter.counts(1), "an eleventh does not");
    let Ask { used, least, most, .. } = meter.ask();
    assert_eq!((used, least, most), (11, 11, 21));
    meter.granted(21);
    // Small fragments are a token each.
    (0..8).for_each(|_| assert!(!meter.counts(1)));
    (0..11).for_each(|_| assert!(!meter.counts(1)));
    assert!(meter.counts(1));
    assert_eq!(meter.output(), 22);
    // There is never more than the model may say, unless it says it.
    assert_eq!(meter.ask().most, 25);
    meter.counts(400);
    assert_eq!((meter.ask().least, meter.ask().most), (116, 116));
}

#[test]
fn a_window_is_a_day_or_a_month_of_utc() {
    // 2024-10-04 is the day 20,000.
    assert_eq!(Window::Month.begins(20_000), 19_997);
    assert_eq!(Window::Month.resets_at(20_000), Some(UnixMs(20_028 * DAY_MS)));
    assert_eq!(Window::Day.resets_at(20_000), Some(UnixMs(20_001 * DAY_MS)));
    assert_eq!((Window::Total.begins(20_000), Window::Total.resets_at(20_000)), (0, None));
    // December, and the last day that there is.
    assert_eq!(Window::Month.resets_at(20_088), Some(UnixMs(20_089 * DAY_MS)));
    assert_eq!(Window::Month.begins(u32::MAX), Window::Month.begins(u32::MAX));
}

#[test]
fn windows_begin_anew_and_what_is_for_ever_stays() {
    let budget = Some(tokens(100));
    let budgets = Budgets { day: budget, month: budget, total: budget };
    let mut book = Book::new(0, NOON);
    book.spend(20_000, Amount { tokens: 60, pico_usd: 0 });
    book.spend(19_999, Amount { tokens: 30, pico_usd: 0 });
    book.spend(19_000, Amount { tokens: 5, pico_usd: 0 });
    let spent = |book: &Book| book.status(&budgets).iter().map(|status| status.state.spent).collect::<Vec<_>>();
    assert_eq!(spent(&book), [60, 90, 95]);
    assert!(book.reaches(&budgets, UnixMs(20_001 * DAY_MS - 1)));
    assert_eq!(spent(&book), [60, 90, 95]);
    assert!(book.reaches(&budgets, UnixMs(20_001 * DAY_MS)));
    assert_eq!(spent(&book), [0, 90, 95]);
    // What was spent yesterday and is committed today.
    book.spend(20_000, Amount { tokens: 1, pico_usd: 0 });
    assert_eq!(spent(&book), [0, 91, 96]);
    assert!(book.reaches(&budgets, UnixMs(20_028 * DAY_MS)));
    assert_eq!(spent(&book), [0, 0, 96]);
    assert!(!book.reaches(&budgets, NOON), "a clock that was set back");
    assert!(!Book::new(20_000, NOON).reaches(&budgets, NOON), "a book that begins too late");
    assert!(Book::new(20_000, NOON).reaches(&Budgets { day: budget, ..Budgets::default() }, NOON));
}

#[test]
fn calls_in_flight_are_as_good_as_spent_for_each_other() {
    let (budgets, mut book) = (total(tokens(100)), Book::new(0, NOON));
    assert_eq!(book.hold(thread(1), 1, &budgets, ask(10, 1, 50)), Ok(50));
    assert_eq!(book.hold(thread(2), 2, &budgets, ask(10, 1, 50)), Ok(30));
    assert!(book.hold(thread(3), 3, &budgets, ask(1, 1, 1)).is_err());
    assert_eq!((book.status(&budgets)[0].reserved, book.exhausted(&budgets)), (100, None));
    // An extension takes the place of what was reserved before.
    assert_eq!(book.hold(thread(1), 1, &budgets, ask(10, 45, 100)), Ok(50));
    assert!(book.hold(thread(1), 1, &budgets, ask(10, 51, 100)).is_err());
    assert_eq!(book.status(&budgets)[0].reserved, 100, "what does not fit changes nothing");
    book.ended(thread(1));
    book.spend(20_000, Amount { tokens: 20, pico_usd: 0 });
    assert_eq!(book.hold(thread(3), 3, &budgets, ask(10, 1, 50)), Ok(30));
    // Another call's end gives nothing of this one back.
    book.release(thread(3), 2);
    assert!(book.hold(thread(4), 4, &budgets, ask(0, 1, 1)).is_err());
    book.release(thread(3), 3);
    assert_eq!(book.hold(thread(4), 4, &budgets, ask(0, 1, 1)), Ok(1));
    // A lower limit holds for the next word of a running call.
    assert!(book.hold(thread(2), 2, &total(tokens(30)), ask(10, 31, 32)).is_err());
}

#[test]
fn a_limit_is_warned_of_once_and_a_new_one_again() {
    let (budgets, mut book) = (total(tokens(100)), Book::new(0, NOON));
    book.spend(20_000, Amount { tokens: 79, pico_usd: 0 });
    assert_eq!(book.warnings(&budgets), []);
    book.spend(20_000, Amount { tokens: 1, pico_usd: 0 });
    let [warning] = book.warnings(&budgets)[..] else { panic!("one warning is due") };
    assert_eq!((warning.window, warning.limit, warning.spent), (Some(Window::Total), 100, 80));
    assert_eq!(book.warnings(&budgets), []);
    let early = Budget { warn_percent: Some(50), ..tokens(160) };
    assert_eq!(book.warnings(&total(early)).len(), 1);
    // Each day anew.
    let day = Budgets { day: Some(tokens(10)), ..Budgets::default() };
    assert_eq!(book.warnings(&day).len(), 1);
    assert!(book.reaches(&day, UnixMs(20_001 * DAY_MS)));
    assert_eq!(book.warnings(&day).len(), 0);
    book.spend(20_001, Amount { tokens: 9, pico_usd: 0 });
    assert_eq!(book.warnings(&day).len(), 1);
}

#[test]
fn a_state_reads_in_its_unit_and_comes_back_as_it_was() {
    let money = BudgetState {
        scope: Scope::Tenant,
        window: Some(Window::Month),
        unit: Unit::Usd,
        limit: 1_500_000,
        spent: 1_234_567,
        resets_at: Some(UnixMs(20_028 * DAY_MS)),
    };
    let json = serde_json::to_value(money).unwrap();
    let expected = serde_json::json!({"scope": "tenant", "window": "month", "unit": "usd", "limit": 1.5,
        "spent": 1.234567, "resets_at": "2024-11-01T00:00:00.000Z"});
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<BudgetState>(json).unwrap(), money);
    assert_eq!(
        money.to_string(),
        "the tenant's budget of the month has no room left: 1.234567 of 1.5 dollars are spent"
    );
    let tokens = BudgetState { unit: Unit::Tokens, window: None, scope: Scope::Turn, resets_at: None, ..money };
    let json = serde_json::to_value(tokens).unwrap();
    assert_eq!((&json["limit"], json.get("window")), (&serde_json::json!(1_500_000), None));
    assert_eq!(serde_json::from_value::<BudgetState>(json).unwrap(), tokens);
}

/// What may happen to one of several calls.
#[derive(Debug, Clone, Copy)]
enum Deed {
    /// A fragment of so many bytes comes; where there is no call, one is begun with a request of so many.
    Go(usize),
    /// It ends, having taken a little more or less than was counted.
    Settle(i64),
    /// It ends without a word, and was not heard of: nothing is settled.
    Lose,
}

fn deeds() -> impl Strategy<Value = Vec<(u8, Deed)>> {
    let deed = prop_oneof![
        6 => (0_usize..200).prop_map(Deed::Go),
        2 => (-20_i64..20).prop_map(Deed::Settle),
        1 => Just(Deed::Lose),
    ];
    prop::collection::vec((0_u8..8, deed), 0..300)
}

proptest! {
    #[test]
    fn nothing_is_overdrawn_by_more_than_estimates_were_wrong(
        deeds in deeds(), limit in 0_u64..2_000, chunk in 1_u64..64, priced in any::<bool>(),
    ) {
        let budgets = total(if priced { Budget { tokens: None, ..usd(limit * 10) } } else { tokens(limit) });
        let rates = Some(Rates { input: 2, output: 10 });
        let of = |amount: Amount| if priced { amount.pico_usd } else { amount.tokens };
        let bound = if priced { limit * 10 } else { limit };
        let mut book = Book::new(0, NOON);
        let mut calls: HashMap<u8, (u64, Meter)> = HashMap::new();
        let (mut spent, mut errors, mut next) = (Amount::default(), 0_u64, 0);
        for (who, deed) in deeds {
            match (deed, calls.remove(&who)) {
                (Deed::Go(bytes), None) => {
                    let mut meter = Meter::new(bytes as u64, chunk, None, rates);
                    next += 1;
                    if let Ok(granted) = book.hold(thread(who), next, &budgets, meter.ask()) {
                        prop_assert!(granted >= 1 && granted <= chunk);
                        meter.granted(granted);
                        calls.insert(who, (next, meter));
                    }
                }
                (Deed::Go(bytes), Some((call, mut meter))) => {
                    let fits = !meter.counts(bytes);
                    let held = if fits { Ok(meter.reserved) } else { book.hold(thread(who), call, &budgets, meter.ask()) };
                    match held {
                        Ok(granted) => {
                            meter.granted(granted);
                            calls.insert(who, (call, meter));
                        }
                        // Stopped: what came last was not reserved for, and is paid for.
                        Err(_) => {
                            let beyond = meter.output() - meter.reserved;
                            let took = Amount::estimated(rates, meter.input(), meter.output());
                            errors += of(Amount::estimated(rates, 0, beyond));
                            book.ended(thread(who));
                            book.spend(20_000, took);
                            spent = spent.plus(took);
                        }
                    }
                }
                (Deed::Settle(off), Some((_, meter))) => {
                    let output = meter.output().saturating_add_signed(off);
                    let took = Amount::estimated(rates, meter.input(), output);
                    errors += of(Amount::estimated(rates, 0, output.saturating_sub(meter.reserved)));
                    book.ended(thread(who));
                    book.spend(20_000, took);
                    spent = spent.plus(took);
                }
                (Deed::Lose, Some((call, _))) => book.release(thread(who), call),
                (Deed::Settle(_) | Deed::Lose, None) => {}
            }
            let [status] = book.status(&budgets)[..] else { panic!("there is one budget") };
            let held: u64 = calls.values().map(|(_, meter)| of(Amount::estimated(rates, meter.input(), meter.reserved))).sum();
            let exact = book.in_flight_beside(None);
            prop_assert_eq!(of(exact), held, "what is held is what was granted");
            prop_assert_eq!(status.state.spent, if priced { of(spent) / MICRO } else { of(spent) });
            prop_assert!(of(spent) <= bound + errors, "{:?} of {bound}, wrong by {errors}", spent);
        }
        for (who, (call, _)) in calls {
            book.release(thread(who), call);
        }
        prop_assert_eq!((book.in_flight, book.held.len()), ((0, 0), 0), "all was given back");
    }
}
