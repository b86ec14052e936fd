//! Plans that broke something once, so that it stays mended whatever seeds come to.

use raddle_domain::{
    hook::{EventFilter, REFUSALS},
    record::Delivery,
    tenant::Quotas,
};

use super::{
    Plan,
    plan::{Answer, At, Chore, Fault, Kept, Leaves, Listener, Move, Parting, Verb, Word},
    run,
    scheduler::Manner,
};

/// Reads take their time; all else runs in order.
const SLOW_READS: Manner = Manner { read_ms: 30, ..Manner::CALM };

fn plan(manner: Manner, moves: Vec<Move>, faults: Vec<Fault>) -> Plan {
    Plan {
        seed: 0,
        kept: Kept::Memory,
        manner,
        loaded: 8,
        tenants: 1,
        pack_ms: 3_600_000,
        listeners: Vec::new(),
        quotas: Quotas::default(),
        moves,
        faults,
        #[cfg(feature = "planted")]
        plant: None,
    }
}

fn said(number: u32, at_ms: u64, verb: Verb) -> Move {
    Move { number, at_ms, verb, insists: false, pause_ms: 0, again: false }
}

#[test]
fn who_asks_again_is_not_refused_for_what_his_first_try_did_and_nobody_could_see_yet() {
    let mut answered = 0;
    // The store is open again after 50 ms: some ask just before, and are answered just behind.
    for (seed, pause_ms) in (0..3).flat_map(|seed| (0..=50).map(move |pause_ms| (seed, pause_ms))) {
        let start = Verb::Start {
            thread: 0,
            delivery: Delivery::Reject,
            script: "say 1; wait 20000".to_owned(),
            requeue: false,
        };
        let moves = vec![
            said(0, 0, Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None }),
            said(1, 500, start),
            Move { insists: true, pause_ms, ..said(2, 2_000, Verb::Interrupt { thread: 0, pause: false }) },
        ];
        // The commit that ends the turn.
        let fault = Fault::Fails { commit: 5, leaves: Leaves::Hidden, reopens: 0 };
        let outcome = run(&Plan { seed, ..plan(SLOW_READS, moves, vec![fault]) }, true);
        assert_eq!(outcome.violation, None, "{}", outcome.lines.join("\n"));
        answered += usize::from(outcome.lines.iter().any(|line| line.contains("move 2    is done again")));
    }
    assert!(answered > 100, "only {answered} times the second try was answered for the first one");
}

#[test]
fn who_asks_again_of_a_job_is_not_refused_for_what_his_first_try_did() {
    let mut answered = 0;
    for (seed, pause_ms) in (0..3).flat_map(|seed| (40..=60).map(move |pause_ms| (seed, pause_ms))) {
        let chore = Chore::Webhook { words: "act never".to_owned() };
        let moves = vec![
            said(0, 0, Verb::Enqueue { to: 0, chore, attempts: 0, base_ms: 1 }),
            Move { insists: true, pause_ms, ..said(1, 2_000, Verb::Tell { job: 0, word: Word::Retry }) },
        ];
        // The commit that has it done again.
        let fault = Fault::Fails { commit: 5, leaves: Leaves::Hidden, reopens: 0 };
        let outcome = run(&Plan { seed, ..plan(SLOW_READS, moves, vec![fault]) }, true);
        assert_eq!(outcome.violation, None, "{}", outcome.lines.join("\n"));
        answered += usize::from(outcome.lines.iter().any(|line| line.contains("move 1    is done again")));
    }
    assert!(answered > 30, "only {answered} times the second try was answered for the first one");
}

#[test]
fn the_turn_of_a_job_that_was_cancelled_is_told_though_nobody_heard_of_the_cancellation() {
    let mut failed = 0;
    for (leaves, commit) in [Leaves::All, Leaves::Hidden].into_iter().flat_map(|how| (6..=12).map(move |at| (how, at)))
    {
        let chore = Chore::Turn { thread: 0, script: "say 1; wait 900000".to_owned() };
        let moves = vec![
            said(0, 0, Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None }),
            said(1, 500, Verb::Enqueue { to: 0, chore, attempts: 0, base_ms: 1 }),
            Move { insists: true, pause_ms: 60, ..said(2, 2_000, Verb::Tell { job: 0, word: Word::Cancel }) },
        ];
        let fault = Fault::Fails { commit, leaves, reopens: 0 };
        let outcome = run(&plan(Manner::CALM, moves, vec![fault]), true);
        assert_eq!(outcome.violation, None, "{}", outcome.lines.join("\n"));
        let interrupted = |line: &&String| line.contains("turn.interrupt_requested") && line.contains("    2.");
        failed += usize::from(outcome.lines.iter().any(|line| line.contains("move 2    is refused")));
        assert!(outcome.lines.iter().find(interrupted).is_some(), "{}", outcome.lines.join("\n"));
    }
    assert!(failed > 0, "no cancellation failed");
}

#[test]
fn a_job_that_is_due_while_the_disk_is_full_is_tried_now_and_then() {
    let chore = Chore::Webhook { words: "act".to_owned() };
    let moves = vec![said(0, 0, Verb::Enqueue { to: 0, chore, attempts: 0, base_ms: 1 })];
    // The commit that begins it.
    let full = Fault::Full { commit: 3, ms: 5_000 };
    let outcome = run(&plan(Manner::CALM, moves, vec![full]), true);
    assert_eq!(outcome.violation, None, "{}", outcome.lines.join("\n"));
    assert!(outcome.lines.iter().any(|line| line.contains("acts")), "{}", outcome.lines.join("\n"));
    assert!(outcome.commits < 20, "{} tries in five seconds", outcome.commits);
}

#[test]
fn a_job_whose_beginning_was_stored_though_it_failed_is_run_at_once_and_nobody_doubts_it() {
    for leaves in [Leaves::Nothing, Leaves::All, Leaves::Hidden] {
        for (seed, reopens) in [(0, 0), (1, 3), (2, 0), (3, 5)] {
            let chore = Chore::Command { thread: 0, words: "act".to_owned() };
            let moves = vec![
                said(0, 0, Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None }),
                said(1, 500, Verb::Enqueue { to: 0, chore, attempts: 0, base_ms: 1 }),
                // With the last of them nothing goes wrong any more.
                said(2, 30_000, Verb::Create { to: 1, auto_approve: false, interrupts: false, budget: None }),
            ];
            // The commit that begins it.
            let fails = Fault::Fails { commit: 4, leaves, reopens };
            let outcome = run(&Plan { seed, ..plan(SLOW_READS, moves, vec![fails]) }, true);
            let story = outcome.lines.join("\n");
            assert_eq!(outcome.violation, None, "{leaves:?}: {story}");
            assert!(story.contains("job.completed") && !story.contains("job.uncertain"), "{leaves:?}: {story}");
        }
    }
}

#[test]
fn a_time_that_comes_while_the_disk_is_full_is_not_forgotten() {
    let mut full = 0;
    for commit in 6..=14 {
        let start = |number, at_ms| {
            let script = "say 2".to_owned();
            said(number, at_ms, Verb::Start { thread: 0, delivery: Delivery::Queue, script, requeue: false })
        };
        let work = Verb::Work {
            run: 0,
            path: 0,
            rebinds: true,
            lease_ms: 5_000,
            beats: 0,
            pause_ms: 0,
            parting: Parting::Vanishes,
        };
        let moves = vec![
            said(0, 0, Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None }),
            said(1, 100, Verb::CreateRun { to: 0 }),
            said(2, 200, Verb::AddTasks { run: 0, count: 1, attempts: 1 }),
            said(3, 500, work),
            // The run makes room for the thread, and nobody holds it when its lease runs out.
            start(4, 1_000),
            start(5, 4_500),
        ];
        let plan = Plan { loaded: 1, ..plan(Manner::CALM, moves, vec![Fault::Full { commit, ms: 5_000 }]) };
        let outcome = run(&plan, true);
        assert_eq!(outcome.violation, None, "commit {commit}: {}", outcome.lines.join("\n"));
        full += usize::from(outcome.lines.iter().any(|line| line.contains("finds no room")));
    }
    assert!(full > 4, "the disk was full {full} times");
}

/// A hook whose sink takes so many events at once.
fn audit(most: usize) -> Listener {
    Listener {
        name: "audit",
        events: EventFilter::default(),
        tenant: None,
        from_start: true,
        since_process: 1,
        skips: false,
        most,
        answers: Vec::new(),
    }
}

#[test]
fn a_hook_gives_up_nothing_that_was_refused_less_often_than_that() {
    let create = |number, at_ms| {
        said(number, at_ms, Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None })
    };
    let audit = Listener { skips: true, answers: vec![Answer::Refuses; REFUSALS as usize], ..audit(64) };
    // The second one comes while the first one is refused.
    let moves = vec![create(0, 0), create(1, 2_000)];
    let outcome = run(&Plan { listeners: vec![audit], ..plan(Manner::CALM, moves, Vec::new()) }, true);
    let story = outcome.lines.join("\n");
    assert_eq!(outcome.violation, None, "{story}");
    assert_eq!(story.matches("offers 1/1: Refuses").count(), REFUSALS as usize, "{story}");
    assert!(story.contains("offers 2/1: Takes"), "{story}");
}

#[test]
fn a_thread_counts_no_more_though_nobody_heard_that_it_is_gone() {
    let create = |number, at_ms| {
        said(number, at_ms, Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None })
    };
    for leaves in [Leaves::All, Leaves::Hidden] {
        let moves = vec![create(0, 0), said(1, 500, Verb::Delete { thread: 0 }), create(2, 3_000)];
        // The commit that deletes it.
        let fails = Fault::Fails { commit: 3, leaves, reopens: 0 };
        let quotas = Quotas { threads: Some(1), ..Quotas::default() };
        let outcome = run(&Plan { quotas, ..plan(Manner::CALM, moves, vec![fails]) }, true);
        let story = outcome.lines.join("\n");
        assert_eq!(outcome.violation, None, "{story}");
        assert!(story.contains("move 1    is refused") && story.contains("move 2    is done"), "{story}");
    }
}

#[test]
fn a_hook_carries_nothing_more_of_a_tenant_whose_erasure_was_answered() {
    let start = |number, at_ms| {
        let script = "say 1".to_owned();
        said(number, at_ms, Verb::Start { thread: 0, delivery: Delivery::Queue, script, requeue: false })
    };
    let create = Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None };
    let moves = vec![said(0, 0, create), start(1, 500), said(2, 30_000, Verb::Erase { tenant: 0 })];
    let audit = Listener { answers: vec![Answer::Takes { after_ms: 20_000 }; 2], ..audit(1) };
    let plan = Plan { kept: Kept::Database, listeners: vec![audit], ..plan(Manner::CALM, moves, Vec::new()) };
    let outcome = run(&plan, true);
    let story = outcome.lines.join("\n");
    assert_eq!(outcome.violation, None, "{story}");
    assert!(story.contains("move 2    is done") && story.matches("offers").count() == 2, "{story}");
}

#[test]
fn a_thread_that_goes_is_counted_once_though_what_is_stored_is_read_just_then() {
    let create = |number, at_ms, to| {
        said(number, at_ms, Verb::Create { to, auto_approve: false, interrupts: false, budget: None })
    };
    // It is loaded when it is deleted, and the first one for which there is a bound comes just then.
    let script = "cut 3".to_owned();
    let moves = vec![
        create(0, 0, 0),
        create(1, 100, 1),
        said(2, 200, Verb::Start { thread: 1, delivery: Delivery::Reject, script, requeue: false }),
        said(3, 2_166, Verb::Fork { thread: 0, to: 2, at: At::Settled }),
        said(4, 2_166, Verb::Delete { thread: 1 }),
    ];
    let killed = Fault::Killed { at_ms: 682, down_ms: 0 };
    let quotas = Quotas { queued_prompts: Some(2), ..Quotas::default() };
    let outcome = run(&Plan { quotas, loaded: 1, ..plan(Manner::CALM, moves, vec![killed]) }, true);
    assert_eq!(outcome.violation, None, "{}", outcome.lines.join("\n"));
}

#[test]
fn a_command_of_a_job_does_nothing_once_the_erasure_of_its_tenant_was_answered() {
    let create = Verb::Create { to: 0, auto_approve: false, interrupts: false, budget: None };
    let chore = Chore::Command { thread: 0, words: "act slow".to_owned() };
    let moves = vec![
        said(0, 0, create),
        said(1, 1_000, Verb::Enqueue { to: 0, chore, attempts: 0, base_ms: 1 }),
        said(2, 1_200, Verb::Erase { tenant: 0 }),
    ];
    let plan = Plan { kept: Kept::Database, ..plan(Manner::CALM, moves, Vec::new()) };
    let outcome = run(&plan, true);
    let story = outcome.lines.join("\n");
    assert_eq!(outcome.violation, None, "{story}");
    assert!(story.contains("run 1 of a command begins") && story.contains("move 2    is done"), "{story}");
    // It is ended, and not waited for.
    assert!(!story.contains("run 1 of a command acts"), "{story}");
}

#[test]
fn a_thread_that_was_made_though_its_commit_failed_is_not_what_its_own_request_finds_no_room_for() {
    let create = |number, at_ms, to| Move {
        insists: true,
        pause_ms: 48,
        ..said(number, at_ms, Verb::Create { to, auto_approve: false, interrupts: false, budget: None })
    };
    let moves = vec![create(0, 75, 2), create(1, 78, 0), create(2, 185, 1)];
    let fails = Fault::Fails { commit: 4, leaves: Leaves::Hidden, reopens: 0 };
    let quotas = Quotas { threads: Some(3), ..Quotas::default() };
    let mut shown = 0;
    for seed in 0..40 {
        let manner = Manner { later: 150, nap: 8, longest_ms: 60, read_ms: 5 };
        let plan = Plan { seed, quotas, ..plan(manner, moves.clone(), vec![fails.clone()]) };
        let outcome = run(&plan, true);
        let story = outcome.lines.join("\n");
        assert_eq!(outcome.violation, None, "seed {seed}\n{story}");
        shown += usize::from(story.contains("move 2    is done again"));
    }
    assert!(shown > 10, "{shown} were answered as before");
}
