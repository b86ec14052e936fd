use super::*;
use crate::stress::journal::Noted;

/// A thread of which these calls are known, and these facts.
fn read(calls: &[(Asks, Told)], facts: Facts) -> Vec<Read> {
    let calls = (0..).zip(calls).map(|(at, (asks, told))| Noted {
        client: 3,
        asked: at * 2,
        answered: at * 2 + 1,
        asks: asks.clone(),
        told: told.clone(),
    });
    let of = OfThread { calls: calls.collect(), ..OfThread::default() };
    vec![Read { thread: "T".to_owned(), of, glimpses: Vec::new(), facts, unsound: None }]
}

/// A log in which the turns of these prompts began.
fn ran(prompts: &[Prompt]) -> Facts {
    let turn = |prompt: &Prompt| (format!("turn-{prompt}"), *prompt);
    Facts {
        ran: (1..).zip(prompts).map(|(seq, prompt)| (*prompt, seq * 10)).collect(),
        prompts: prompts.iter().map(turn).collect(),
        ..Facts::default()
    }
}

fn started(prompt: Prompt) -> (Asks, Told) {
    (Asks::Start(prompt), Told::Turn(format!("turn-{prompt}")))
}

#[track_caller]
fn fault(check: Check, says: &str) {
    assert_eq!((check.holds, check.faults.len()), (Holds::No, 1), "{:?}", check.faults);
    assert!(check.faults[0].contains(says), "{}", check.faults[0]);
}

#[track_caller]
fn holds(check: Check) {
    assert_eq!((check.holds, check.faults), (Holds::Yes, Vec::new()));
    assert!(check.examined > 0);
}

#[test]
fn a_prompt_in_a_log_was_sent_was_not_refused_and_is_there_once() {
    holds(once(&read(&[started(1), (Asks::Start(2), Told::Unknown)], ran(&[1, 2]))));
    let refused = read(&[started(1), (Asks::Start(2), Told::Refused)], ran(&[1, 2]));
    fault(once(&refused), "thread T, event 20: prompt #2# was refused, and ran");
    fault(once(&read(&[started(1)], ran(&[1, 9]))), "event 20: nobody sent prompt #9#");
    fault(once(&read(&[started(1)], ran(&[1, 1]))), "event 20: prompt #1# ran twice");
    let mut waits = ran(&[]);
    waits.admitted.insert(4, ("in_4".to_owned(), 7));
    fault(once(&read(&[(Asks::Queue(4), Told::Nothing)], waits)), "event 7: prompt #4# was refused, and waits");
}

#[test]
fn what_was_acknowledged_is_in_the_log_under_the_id_that_was_told() {
    holds(acknowledged(&read(&[started(1)], ran(&[1]))));
    fault(acknowledged(&read(&[started(1)], ran(&[]))), "thread T has lost the turn turn-1 of prompt #1#");
    let queued = (Asks::Queue(2), Told::Admitted("in_2".to_owned()));
    let mut otherwise = ran(&[2]);
    otherwise.admitted.insert(2, ("in_9".to_owned(), 1));
    fault(acknowledged(&read(&[queued], otherwise)), "prompt #2# as in_2");
    let interrupted = (Asks::Interrupt { turn: "turn-1".to_owned() }, Told::Done);
    let mut completed = ran(&[1]);
    completed.ended.insert("turn-1".to_owned(), TurnStatus::Completed);
    fault(acknowledged(&read(&[interrupted], completed)), "the interruption of turn turn-1");
    let back = (Asks::Withdraw { input: "in_2".to_owned(), prompt: 2 }, Told::Done);
    fault(acknowledged(&read(&[back], ran(&[]))), "the withdrawal of in_2");
    let heard = (Asks::Steer { turn: "turn-1".to_owned(), prompt: 3 }, Told::Admitted("in_3".to_owned()));
    fault(acknowledged(&read(&[heard], ran(&[1]))), "what was said to a turn, #3#");
}

#[test]
fn what_no_thread_can_have_answered_is_told_with_its_client() {
    holds(linearizable(&read(&[started(1), started(2)], ran(&[1, 2]))));
    let stale = (Asks::Look, Told::Saw { open: Some("turn-1".to_owned()), waiting: vec![] });
    let told = read(&[started(1), started(2), stale], ran(&[1, 2]));
    fault(linearizable(&told), "thread T: client 3 was told Saw");
    // A turn that the log does not know is nobody's.
    let unknown = (Asks::Look, Told::Saw { open: Some("turn-9".to_owned()), waiting: vec![] });
    fault(linearizable(&read(&[unknown], ran(&[]))), "is there although nobody had asked for it yet");
}

#[test]
fn a_log_that_is_not_sound_is_told_with_its_reason() {
    let mut logs = read(&[], ran(&[1]));
    logs[0].unsound = Some("event 7, item.delta: it has ended".to_owned());
    fault(
        sound(&logs),
        "thread T, event 7, item.delta: it has ended; see `raddle threads tail T --after 0 --no-follow`",
    );
}

#[test]
fn an_effect_that_must_not_be_repeated_stands_once_in_the_ledger() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("demo")).unwrap();
    let ledger = |lines: &str| std::fs::write(home.path().join("demo/.ledger"), lines).unwrap();
    let logs = read(&[], ran(&[1]));
    ledger("op_1 1 demo_append\nop_1 2 demo_append\nop_2 1 demo_put\nop_2 2 demo_put\n");
    let check = effects(home.path(), &logs);
    assert_eq!((check.holds, check.examined), (Holds::No, 1));
    assert_eq!(check.faults[0], "the effect op_1 happened 2 times");
    assert_eq!(check.faults[1], "the effect op_1 happened, and no log says that it was started");
}

#[test]
fn of_many_faults_the_first_are_told_and_the_others_counted() {
    let mut finding = Finding::new("once", "", "");
    (0..25).for_each(|number| finding.fault(number.to_string()));
    let check = finding.end();
    assert_eq!((check.faults.len(), check.more, check.holds), (20, 5, Holds::No));
    let mut unsure = Finding::new("linearizable", "", "");
    unsure.undecided = true;
    assert_eq!(unsure.end().holds, Holds::Undecided);
}
