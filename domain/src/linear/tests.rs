use proptest::prelude::*;

use super::{spec::Why, *};

const LIMIT: usize = 100_000;

/// A call that nobody disturbs: asked at `at`, and answered before anything else is asked.
fn call(at: u64, verb: Verb, end: End) -> Call {
    let answered = if end == End::Unknown { NEVER } else { at * 10 + 5 };
    Call { client: at as u32, asked: at * 10, answered, verb, end }
}

/// The calls one after the other.
fn history<const N: usize>(calls: [(Verb, End); N]) -> History {
    let calls = (0..).zip(calls).map(|(at, (verb, end))| call(at, verb, end)).collect();
    History { calls, ..History::default() }
}

fn saw(open: Option<Prompt>, waiting: &[Prompt]) -> End {
    End::Saw(View { open, waiting: waiting.to_vec() })
}

fn logged(history: History, ran: &[Prompt], steered: &[Prompt]) -> History {
    History { log: Some(Log { ran: ran.to_vec(), steered: steered.to_vec() }), ..history }
}

fn held(history: History, held: &[Prompt]) -> History {
    History { held: held.iter().copied().collect(), ..history }
}

#[track_caller]
fn legal(history: &History) {
    assert_eq!(history.check(LIMIT), Verdict::Legal);
}

/// The call that is named, and why.
#[track_caller]
fn bad(history: &History) -> (Option<usize>, Why) {
    match history.check(LIMIT) {
        Verdict::Illegal(Illegal { call, why, .. }) => (call, why),
        other => panic!("{other:?}"),
    }
}

use End::{Done, Refused, Unknown, Waits};
use Verb::{Await, Interrupt, Look, Queue, Start, Withdraw};

// ---- five histories that no thread has ------------------------------------------------------------

#[test]
fn an_acknowledged_prompt_that_the_log_does_not_have_is_lost() {
    let told = history([(Start(1), Done), (Queue(2), Waits), (Queue(3), Waits)]);
    legal(&logged(told.clone(), &[1, 2, 3], &[]));
    assert_eq!(bad(&logged(told.clone(), &[1, 3], &[])), (Some(1), Why::Lost(2)));
    assert_eq!(bad(&logged(told, &[1, 2], &[])), (Some(2), Why::Lost(3)));
}

#[test]
fn a_read_that_does_not_see_what_was_acknowledged_before_it_is_stale() {
    let told = |seen| held(history([(Start(1), Done), (Queue(2), Waits), (Look, seen)]), &[1]);
    legal(&told(saw(Some(1), &[2])));
    assert_eq!(bad(&told(saw(Some(1), &[]))), (Some(2), Why::Stale(2)));
    assert_eq!(bad(&told(saw(None, &[]))), (Some(2), Why::Stale(1)));
}

#[test]
fn of_starts_at_one_time_two_cannot_be_accepted() {
    let both = |second| {
        let start = |prompt, end| Call { client: prompt, asked: 0, answered: 9, verb: Start(prompt), end };
        held(History { calls: vec![start(1, Done), start(2, second)], ..History::default() }, &[1, 2])
    };
    legal(&both(Refused));
    let (_, why) = bad(&both(Done));
    assert!(matches!(why, Why::Doubled { .. }), "{why:?}");
}

#[test]
fn prompts_that_ran_in_another_order_than_they_were_accepted_in_are_reordered() {
    let told = history([(Start(1), Done), (Queue(2), Waits), (Queue(3), Waits)]);
    let why = Why::Reordered { before: 3, behind: 2 };
    assert_eq!(bad(&logged(told.clone(), &[1, 3, 2], &[])), (Some(1), why));
    let mut read = held(told, &[1]);
    read.calls.push(call(3, Look, saw(Some(1), &[3, 2])));
    assert_eq!(bad(&read), (Some(3), why));
}

#[test]
fn a_prompt_that_was_taken_back_and_is_there_again_is_resurrected() {
    let told = held(history([(Start(1), Done), (Queue(2), Waits), (Withdraw(2), Done)]), &[1]);
    let mut seen = told.clone();
    seen.calls.push(call(3, Look, saw(Some(1), &[2])));
    assert_eq!(bad(&seen), (Some(3), Why::Resurrected(2)));
    assert_eq!(bad(&logged(told, &[1, 2], &[])), (Some(2), Why::Resurrected(2)));
    let over = history([(Start(1), Done), (Await(1), Done), (Look, saw(Some(1), &[]))]);
    assert_eq!(bad(&over), (Some(2), Why::Resurrected(1)));
}

// ---- what else is not so ---------------------------------------------------------------------------

#[test]
fn a_refused_prompt_leaves_no_trace() {
    let told = |end| logged(history([(Start(1), Done), (Start(2), end)]), &[1, 2], &[]);
    legal(&told(Done));
    for end in [Refused, End::Nothing] {
        assert_eq!(bad(&told(end)), (None, Why::Unasked(2)));
    }
}

#[test]
fn a_prompt_runs_once() {
    let told = logged(history([(Start(1), Done), (Queue(2), Waits)]), &[1, 2, 1], &[]);
    assert_eq!(bad(&told), (None, Why::Twice(1)));
    assert_eq!(bad(&history([(Start(1), Done), (Start(1), Done)])), (Some(1), Why::Twice(1)));
}

#[test]
fn nothing_is_refused_for_a_turn_that_was_over() {
    assert_eq!(bad(&history([(Start(1), Refused)])), (Some(0), Why::RefusedIdle(1)));
    let over = history([(Start(1), Done), (Await(1), Done), (Queue(2), Waits)]);
    assert_eq!(bad(&over), (Some(2), Why::RefusedIdle(2)));
    let late = history([(Start(1), Done), (Interrupt(1), Done), (Interrupt(1), Done)]);
    assert_eq!(bad(&late), (Some(2), Why::Late(1)));
}

#[test]
fn a_turn_that_is_held_ends_when_it_is_interrupted() {
    let told = |end| held(history([(Start(1), Done), (Interrupt(1), end), (Start(2), Done)]), &[1, 2]);
    legal(&told(Done));
    // It may have been.
    legal(&told(Unknown));
    assert_eq!(bad(&told(Refused)), (Some(1), Why::Held(1)));
}

#[test]
fn what_is_said_to_a_turn_is_kept_in_order_and_taken_while_it_is_open() {
    let steer = |turn, prompt| Verb::Steer { turn, prompt };
    let told = history([(Start(1), Done), (steer(1, 7), Done), (steer(1, 8), Done), (Await(1), Done)]);
    legal(&logged(told.clone(), &[1], &[7, 8]));
    assert_eq!(bad(&logged(told.clone(), &[1], &[8, 7])), (Some(1), Why::Reordered { before: 8, behind: 7 }));
    assert_eq!(bad(&logged(told.clone(), &[1], &[7])), (Some(2), Why::Lost(8)));
    let mut late = told;
    late.calls.push(call(4, steer(1, 9), Done));
    assert_eq!(bad(&late), (Some(4), Why::Late(1)));
}

#[test]
fn what_was_not_answered_may_have_happened_or_not() {
    let told = history([(Start(1), Done), (Queue(2), Unknown), (Queue(3), Waits), (Withdraw(3), Unknown)]);
    for ran in [&[1, 2, 3][..], &[1, 3], &[1, 3, 2], &[1, 2], &[1]] {
        legal(&logged(told.clone(), ran, &[]));
    }
    assert_eq!(bad(&logged(told, &[2, 1, 3], &[])).1, Why::Reordered { before: 2, behind: 1 });
}

#[test]
fn what_is_asked_at_one_time_may_have_happened_in_any_order() {
    let queue = |prompt| Call { client: prompt, asked: 10, answered: 20, verb: Queue(prompt), end: Waits };
    let mut told = held(history([(Start(1), Done)]), &[1]);
    told.calls.extend([2, 3, 4, 5].map(queue));
    legal(&told);
    told.calls.push(call(3, Look, saw(Some(1), &[5, 3, 2, 4])));
    legal(&told);
    // Two readers cannot have seen two orders.
    told.calls.push(call(4, Look, saw(Some(1), &[5, 3, 4, 2])));
    assert_eq!(bad(&told).0, Some(6));
}

#[test]
fn a_search_that_would_take_too_long_is_given_up() {
    let queue = |prompt| Call { client: prompt, asked: 10, answered: 20, verb: Queue(prompt), end: Waits };
    let mut told = held(history([(Start(1), Done)]), &[1]);
    told.calls.extend((2..14).map(queue));
    told.calls.push(call(3, Look, saw(Some(1), &[])));
    assert_eq!(told.check(100), Verdict::Undecided);
}

// ---- histories that a thread has -------------------------------------------------------------------

/// What happens next in a thread, whoever wants it; chosen by a number where there is a choice.
#[derive(Debug, Clone, Copy)]
enum Next {
    Start,
    Queue,
    Steer,
    Interrupt,
    Withdraw(usize),
    Look,
    Await,
    /// The open turn ends by itself.
    End,
}

/// A happening, and how long before it was asked for and after it was answered; lost if no answer came.
#[derive(Debug, Clone)]
struct Happening {
    next: Next,
    before: u64,
    after: u64,
    lost: bool,
}

fn happening() -> impl Strategy<Value = Happening> {
    let next = prop_oneof![
        3 => Just(Next::Start),
        4 => Just(Next::Queue),
        2 => Just(Next::Steer),
        1 => Just(Next::Interrupt),
        2 => (0..8_usize).prop_map(Next::Withdraw),
        4 => Just(Next::Look),
        2 => Just(Next::Await),
        3 => Just(Next::End),
    ];
    (next, 0..35_u64, 0..35_u64, prop::bool::weighted(0.15)).prop_map(|(next, before, after, lost)| Happening {
        next,
        before,
        after,
        lost,
    })
}

/// A thread that does what it is told, and what its clients noted: the history, with the log.
fn lived(happenings: &[Happening]) -> History {
    let (mut tail, mut log): (Vec<Prompt>, Log) = Default::default();
    let (mut calls, mut last_over) = (Vec::new(), None);
    let mut fresh = 0;
    for (at, happening) in (1..).zip(happenings) {
        let mut prompt = || {
            fresh += 1;
            fresh
        };
        let open = tail.first().copied();
        let (verb, end) = match happening.next {
            Next::Start => match (prompt(), open) {
                (prompt, None) => {
                    tail.push(prompt);
                    log.ran.push(prompt);
                    (Start(prompt), Done)
                }
                (prompt, Some(_)) => (Start(prompt), Refused),
            },
            Next::Queue => {
                let prompt = prompt();
                tail.push(prompt);
                if open.is_none() {
                    log.ran.push(prompt);
                }
                (Queue(prompt), if open.is_none() { Done } else { Waits })
            }
            Next::Steer => match (open, last_over) {
                (Some(turn), _) => {
                    let prompt = prompt();
                    log.steered.push(prompt);
                    (Verb::Steer { turn, prompt }, Done)
                }
                (None, Some(turn)) => (Verb::Steer { turn, prompt: prompt() }, Refused),
                (None, None) => continue,
            },
            Next::Interrupt | Next::End => {
                let Some(turn) = open else { continue };
                last_over = Some(tail.remove(0));
                log.ran.extend(tail.first());
                if matches!(happening.next, Next::End) {
                    continue;
                }
                (Interrupt(turn), Done)
            }
            Next::Withdraw(which) => match tail.len() {
                0 => continue,
                1 => (Withdraw(tail[0]), Refused),
                waits => (Withdraw(tail.remove(1 + which % (waits - 1))), Done),
            },
            Next::Look => (Look, saw(open, tail.get(1..).unwrap_or_default())),
            Next::Await => match last_over {
                Some(over) => (Await(over), Done),
                None => continue,
            },
        };
        // A reader who was not answered saw nothing.
        let end = match end {
            End::Saw(_) => end,
            _ if happening.lost => Unknown,
            end => end,
        };
        let answered = if end == Unknown { NEVER } else { at * 10 + happening.after };
        calls.push(Call {
            client: at as u32,
            asked: (at * 10_u64).saturating_sub(happening.before),
            answered,
            verb,
            end,
        });
    }
    // In the end everything has run.
    log.ran.extend(tail.get(1..).unwrap_or_default());
    History { calls, log: Some(log), ..History::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_a_thread_does_is_legal(happenings in prop::collection::vec(happening(), 0..60)) {
        let history = lived(&happenings);
        prop_assert_eq!(history.check(LIMIT), Verdict::Legal);
    }

    #[test]
    fn what_a_thread_does_is_legal_without_its_log(happenings in prop::collection::vec(happening(), 0..25)) {
        let history = History { log: None, ..lived(&happenings) };
        prop_assert_eq!(history.check(LIMIT), Verdict::Legal);
    }

    #[test]
    fn an_acknowledged_prompt_that_is_missing_from_the_log_is_always_noticed(
        happenings in prop::collection::vec(happening(), 1..60),
        which: prop::sample::Index,
    ) {
        let mut history = lived(&happenings);
        let log = history.log.as_mut().unwrap();
        let told: Vec<Prompt> = history.calls.iter().filter_map(|call| match (call.verb, &call.end) {
            (Start(prompt) | Queue(prompt), Done | Waits) if log.ran.contains(&prompt) => Some(prompt),
            _ => None,
        }).collect();
        let back = |prompt| history.calls.iter().any(|call| call.verb == Withdraw(prompt));
        let told: Vec<Prompt> = told.into_iter().filter(|prompt| !back(*prompt)).collect();
        prop_assume!(!told.is_empty());
        let lost = told[which.index(told.len())];
        log.ran.retain(|ran| *ran != lost);
        prop_assert!(matches!(history.check(LIMIT), Verdict::Illegal(_)));
    }

    #[test]
    fn prompts_that_were_accepted_one_after_the_other_never_change_places(
        happenings in prop::collection::vec(happening(), 1..60),
        which: prop::sample::Index,
    ) {
        let mut history = lived(&happenings);
        let log = history.log.as_mut().unwrap();
        let span = |prompt: Prompt| history.calls.iter().find_map(|call| match (call.verb, &call.end) {
            (Start(of) | Queue(of), Done | Waits) if of == prompt => Some((call.asked, call.answered)),
            _ => None,
        });
        let apart: Vec<usize> = (1..log.ran.len()).filter(|at| {
            matches!((span(log.ran[at - 1]), span(log.ran[*at])), (Some(one), Some(other)) if one.1 < other.0)
        }).collect();
        prop_assume!(!apart.is_empty());
        let at = apart[which.index(apart.len())];
        log.ran.swap(at - 1, at);
        prop_assert!(matches!(history.check(LIMIT), Verdict::Illegal(_)));
    }

    #[test]
    fn a_reader_that_misses_the_newest_of_what_waits_is_noticed(
        happenings in prop::collection::vec(happening(), 1..40),
    ) {
        // Nobody disturbs anybody, and no turn ends by itself: what waits is known at each moment.
        let calm: Vec<_> = happenings
            .into_iter()
            .filter(|happening| !matches!(happening.next, Next::End | Next::Await))
            .map(|happening| Happening { before: 2, after: 2, lost: false, ..happening })
            .collect();
        let mut history = History { log: None, ..lived(&calm) };
        history.held = (0..1_000).collect();
        prop_assert_eq!(history.check(LIMIT), Verdict::Legal);
        let sees = history.calls.iter_mut().rev().find_map(|call| match &mut call.end {
            End::Saw(view) if !view.waiting.is_empty() => Some(view),
            _ => None,
        });
        prop_assume!(sees.is_some());
        let missed = sees.unwrap().waiting.pop().unwrap();
        prop_assert_eq!(bad(&history).1, Why::Stale(missed));
    }
}
