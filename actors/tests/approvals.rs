//! What waits for a person: it holds nothing, survives everything, and ends once, whoever comes first.

mod testbed;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use raddle_actors::{Call, Error, Ports, RecordQuery, Runtime, store::backend::MemoryMedium};
use raddle_domain::{
    command::{Interrupt, Limits, NewThread, Refused},
    event::{Event, Record},
    id::{ApprovalId, TenantId, ThreadKey},
    ports::StoreError,
    record::{
        Approval, ApprovalStatus, DecidedBy, Decision, Delivery, EffectStatus, QuestionStatus, Resolution,
        ThreadStatus, TurnOverrides, TurnStatus,
    },
};
use testbed::*;

async fn approve(runtime: &Runtime, approval: ApprovalId) -> Result<Approval, Error> {
    decide(runtime, approval, Decision::Approved).await
}

async fn decide(runtime: &Runtime, approval: ApprovalId, decision: Decision) -> Result<Approval, Error> {
    runtime.decide(OWNER, approval, decision, None, Call::default()).await.map(|done| done.value)
}

/// Starts a turn that comes to wait, and returns what it waits for.
async fn asks(runtime: &Runtime, key: ThreadKey, text: &str) -> Approval {
    start(runtime, key, text).await;
    waits(runtime, key).await;
    pending(runtime, key).await.remove(0)
}

fn approvals(log: &[Record]) -> Vec<Approval> {
    let mut approvals: Vec<Approval> = Vec::new();
    for record in log {
        if let Event::ApprovalRequired(approval)
        | Event::ApprovalDecided(approval)
        | Event::ApprovalExpired(approval)
        | Event::ApprovalCancelled(approval) = &record.event
        {
            match approvals.iter_mut().find(|known| known.id == approval.id) {
                Some(known) => known.clone_from(approval),
                None => approvals.push(Approval::clone(approval)),
            }
        }
    }
    approvals
}

#[tokio::test]
async fn a_waiting_thread_holds_no_engine_and_continues_on_its_decision_after_it_was_unloaded() {
    let bed = Bed { loaded_threads: 1, ..Bed::new() };
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let approval = asks(&runtime, key, "call gated_once a").await;
    // What is saved shows a moment before the actor has put its engine away.
    let rests_too = async {
        while runtime.health().running_turns > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, rests_too).await.expect("nothing runs for it");
    assert_eq!(runtime.thread(key).await.unwrap().pending_approvals, 1);
    unload(&runtime).await;
    let decided = approve(&runtime, approval.id).await.unwrap();
    assert_eq!((decided.status, decided.by), (ApprovalStatus::Approved, Some(DecidedBy::Caller)));
    rests(&runtime, key).await;
    assert_eq!(answers(&runtime, key).await, ["calling", "echo: did a"]);
    assert_eq!((bed.acts(), bed.model.calls.load(SeqCst)), (1, 2));
    let log = log(&runtime, key).await;
    assert_sound(&log, true);
    assert!(log.iter().all(|record| record.event.name() != "turn.resumed"), "to wait is not to be lost");
    assert_eq!(runtime.approval(OWNER, approval.id).await.unwrap(), decided);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn a_decision_after_a_restart_continues_the_turn_and_a_denial_is_told_to_the_model() {
    let bed = Bed::new();
    let first = bed.start().await;
    let (one, two) = (create(&first).await, create(&first).await);
    let approved = asks(&first, one, "call gated_idempotent a; call once b").await;
    let denied = asks(&first, two, "call gated_once a; call read b").await;
    first.shutdown(LONG).await;
    drop(first);
    let second = bed.start().await;
    waits(&second, one).await;
    assert_eq!(second.health().loaded_threads, 0, "what waits for a person is not loaded for it");
    assert_eq!(bed.acts(), 0, "calls run in the model's order");
    approve(&second, approved.id).await.unwrap();
    let reason = Some("not today".to_owned());
    second.decide(OWNER, denied.id, Decision::Denied, reason, Call::default()).await.unwrap();
    rests(&second, one).await;
    rests(&second, two).await;
    assert_eq!(answers(&second, one).await.last().unwrap(), "echo: did a, did b");
    assert_eq!(answers(&second, two).await.last().unwrap(), "echo: denied: not today, did b");
    for key in [one, two] {
        assert_sound(&log(&second, key).await, true);
    }
    assert_eq!(bed.acts(), 3);
    second.shutdown(LONG).await;
}

#[tokio::test]
async fn a_thread_that_is_to_end_its_turn_on_a_restart_does_so_while_it_waits() {
    let bed = Bed::new();
    let first = bed.start().await;
    let new = NewThread { on_restart: raddle_domain::record::OnRestart::Interrupt, ..NewThread::with(choice()) };
    let key = key(&first.create_thread(OWNER, new, Call::default()).await.unwrap().value);
    let approval = asks(&first, key, "call gated_once a").await;
    first.shutdown(LONG).await;
    drop(first);
    let second = bed.start().await;
    rests(&second, key).await;
    assert_eq!(second.approval(OWNER, approval.id).await.unwrap().status, ApprovalStatus::Cancelled);
    assert_sound(&log(&second, key).await, true);
    second.shutdown(LONG).await;
}

#[tokio::test]
async fn nobody_decides_in_time_whether_the_thread_is_loaded_unloaded_or_the_process_gone() {
    let limits = Limits { approval_ms: 5, question_ms: 5, ..Limits::default() };
    for (case, ask) in ["loaded", "unloaded", "gone"].into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let bed = Bed { limits, loaded_threads: if case == "unloaded" { 1 } else { 9 }, ..Bed::new() };
        let mut runtime = bed.start().await;
        let key = create(&runtime).await;
        let turn = start(&runtime, key, if ask { "call ask why?" } else { "call gated_once a" }).await;
        waits(&runtime, key).await;
        match case {
            "unloaded" => unload(&runtime).await,
            "gone" => {
                runtime.shutdown(LONG).await;
                drop(runtime);
                bed.clock.advance(10);
                runtime = bed.start().await;
            }
            _ => {}
        }
        bed.clock.advance(10);
        assert_eq!(ended(&runtime, key, turn.id).await, TurnStatus::Completed, "{case}");
        let told = if ask { "nobody answered in time" } else { "not approved: nobody decided in time" };
        assert_eq!(answers(&runtime, key).await.last().unwrap(), &format!("echo: {told}"), "{case}");
        assert_sound(&log(&runtime, key).await, true);
        let all = RecordQuery { limit: 9, ..RecordQuery::default() };
        if ask {
            let question = runtime.questions(OWNER, all).await.unwrap().data.remove(0);
            assert_eq!(question.status, QuestionStatus::Expired, "{case}");
            let late = runtime.answer(OWNER, question.id, "because".into(), Call::default()).await;
            assert!(matches!(late, Err(Error::AlreadyAnswered(known)) if *known == question), "{case}");
        } else {
            let approval = runtime.approvals(OWNER, all).await.unwrap().data.remove(0);
            assert_eq!((approval.status, approval.decision), (ApprovalStatus::Expired, None), "{case}");
            let late = approve(&runtime, approval.id).await;
            assert!(matches!(late, Err(Error::AlreadyDecided(known)) if *known == approval), "{case}");
        }
        assert_eq!(bed.acts(), 0, "{case}");
        runtime.shutdown(LONG).await;
    }
}

#[tokio::test]
async fn a_decision_that_comes_too_late_loads_the_thread_and_finds_it_expired() {
    let bed = Bed { loaded_threads: 1, limits: Limits { approval_ms: 60_000, ..Limits::default() }, ..Bed::new() };
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let approval = asks(&runtime, key, "call gated_once a").await;
    unload(&runtime).await;
    bed.clock.advance(60_000);
    let Err(Error::AlreadyDecided(known)) = approve(&runtime, approval.id).await else { panic!("it is expired") };
    assert_eq!(known.status, ApprovalStatus::Expired);
    // And while it is loaded, before its alarm rings.
    let other = create(&runtime).await;
    let approval = asks(&runtime, other, "call gated_once a").await;
    bed.clock.advance(60_000);
    let late = approve(&runtime, approval.id).await;
    assert!(matches!(late, Err(Error::Refused(Refused::Expired { .. }) | Error::AlreadyDecided(_))), "{late:?}");
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn time_that_passes_unnoticed_is_told_to_threads_that_are_loaded_too() {
    let limits = Limits { approval_ms: 50_000, ..Limits::default() };
    let bed = Bed { loaded_threads: 3, limits, ..Bed::new() };
    let runtime = bed.start().await;
    let goes = create(&runtime).await;
    asks(&runtime, goes, "call gated_once a").await;
    create(&runtime).await;
    let stays = create(&runtime).await;
    asks(&runtime, stays, "call gated_once a").await;
    // The clock is set forward: the alarm of a loaded thread does not know.
    bed.clock.advance(50_000);
    // One is too many: the first is unloaded, and is due at once.
    create(&runtime).await;
    rests(&runtime, goes).await;
    rests(&runtime, stays).await;
    for key in [goes, stays] {
        assert_eq!(approvals(&log(&runtime, key).await)[0].status, ApprovalStatus::Expired);
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn equal_calls_of_two_threads_are_two_approvals_and_another_tenant_sees_neither() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let (one, two) = (create(&runtime).await, create(&runtime).await);
    let first = asks(&runtime, one, "call gated_once a").await;
    let second = asks(&runtime, two, "call gated_once a").await;
    assert_eq!((&first.call_id, &first.arguments_sha256), (&second.call_id, &second.arguments_sha256));
    assert_ne!(first.operation_id, second.operation_id);
    let stranger: TenantId = "stranger".parse().unwrap();
    let foreign = runtime.decide(stranger, first.id, Decision::Approved, None, Call::default()).await;
    assert!(matches!(foreign, Err(Error::NotFound("approval"))), "{foreign:?}");
    assert!(matches!(runtime.approval(stranger, first.id).await, Err(Error::NotFound("approval"))));
    let all = RecordQuery { limit: 9, ..RecordQuery::default() };
    assert!(runtime.approvals(stranger, all.clone()).await.unwrap().data.is_empty());
    assert_eq!(bed.acts(), 0);
    approve(&runtime, first.id).await.unwrap();
    rests(&runtime, one).await;
    assert_eq!(bed.acts(), 1);
    assert_eq!(runtime.thread(two).await.unwrap().status, ThreadStatus::AwaitingApproval);
    assert_eq!(runtime.approval(OWNER, second.id).await.unwrap(), second);
    let open = RecordQuery { open: true, ..all };
    assert_eq!(runtime.approvals(OWNER, open).await.unwrap().data, [second]);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn the_first_decision_wins_and_who_comes_later_is_told_of_it() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let approval = asks(&runtime, key, "call gated_once a").await;
    let first = decide(&runtime, approval.id, Decision::Denied).await.unwrap();
    for later in [Decision::Approved, Decision::Denied, Decision::Abort] {
        let Err(Error::AlreadyDecided(known)) = decide(&runtime, approval.id, later).await else { panic!("{later:?}") };
        assert_eq!(*known, first);
    }
    rests(&runtime, key).await;
    // After the turn has ended it is the same; and an approval whose turn ended first was decided by nobody.
    assert!(matches!(approve(&runtime, approval.id).await, Err(Error::AlreadyDecided(known)) if *known == first));
    let other = asks(&runtime, key, "call gated_once b").await;
    runtime.interrupt(key, Interrupt { turn: other.turn_id, pause_queue: false }, Call::default()).await.unwrap();
    let Err(Error::AlreadyDecided(known)) = approve(&runtime, other.id).await else { panic!("its turn ended") };
    assert_eq!((known.status, known.decision, known.by), (ApprovalStatus::Cancelled, None, None));
    assert_eq!(bed.acts(), 0);
    assert_sound(&log(&runtime, key).await, true);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn an_abort_ends_the_turn_with_its_other_calls_and_the_queue_goes_on() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let approval = asks(&runtime, key, "call gated_once a; call once b; call gated_read c; call ask why?").await;
    runtime.start_turn(key, prompt("next", Delivery::Queue), Call::default()).await.unwrap();
    let decided = decide(&runtime, approval.id, Decision::Abort).await.unwrap();
    assert_eq!(decided.status, ApprovalStatus::Aborted);
    rests(&runtime, key).await;
    let turns = runtime.turns(key, None, 9).await.unwrap().data;
    assert_eq!((turns[0].status, turns[1].status), (TurnStatus::Canceled, TurnStatus::Completed));
    assert_eq!(answers(&runtime, key).await.last().unwrap(), "echo: next");
    let log = log(&runtime, key).await;
    assert_sound(&log, true);
    let statuses: Vec<_> = approvals(&log).iter().map(|approval| approval.status).collect();
    assert_eq!(statuses, [ApprovalStatus::Aborted, ApprovalStatus::Cancelled]);
    assert_eq!(bed.acts(), 0);
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn an_answer_is_given_once_also_after_the_thread_was_unloaded_and_after_a_restart() {
    let bed = Bed { loaded_threads: 1, ..Bed::new() };
    let mut runtime = bed.start().await;
    let stranger: TenantId = "stranger".parse().unwrap();
    for restart in [false, true] {
        let key = create(&runtime).await;
        start(&runtime, key, "call ask why?; call once a").await;
        waits(&runtime, key).await;
        if restart {
            runtime.shutdown(LONG).await;
            drop(runtime);
            runtime = bed.start().await;
        } else {
            unload(&runtime).await;
        }
        let query = RecordQuery { thread: Some(key.thread), open: true, limit: 9, ..RecordQuery::default() };
        let question = runtime.questions(OWNER, query).await.unwrap().data.remove(0);
        assert_eq!((question.question.as_str(), question.status), ("why?", QuestionStatus::Pending));
        let foreign = runtime.answer(stranger, question.id, "no".into(), Call::default()).await;
        assert!(matches!(foreign, Err(Error::NotFound("question"))));
        let answered = runtime.answer(OWNER, question.id, "because".into(), Call::default()).await.unwrap().value;
        let again = runtime.answer(OWNER, question.id, "no".into(), Call::default()).await;
        assert!(matches!(again, Err(Error::AlreadyAnswered(known)) if *known == answered));
        rests(&runtime, key).await;
        assert_eq!(answers(&runtime, key).await.last().unwrap(), "echo: because, did a");
        assert_sound(&log(&runtime, key).await, true);
    }
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn what_was_approved_for_the_session_or_for_ever_passes_later_as_long_and_as_far_as_that_says() {
    let bed = Bed { loaded_threads: 1, ..Bed::new() };
    let mut runtime = bed.start().await;
    let (one, two) = (create(&runtime).await, create(&runtime).await);
    let approval = asks(&runtime, one, "call gated_once a").await;
    decide(&runtime, approval.id, Decision::ApprovedForSession).await.unwrap();
    rests(&runtime, one).await;
    unload(&runtime).await;
    say(&runtime, one, "call gated_once a").await;
    runtime.shutdown(LONG).await;
    drop(runtime);
    runtime = bed.start().await;
    say(&runtime, one, "call gated_once a").await;
    let by: Vec<_> = approvals(&log(&runtime, one).await).iter().map(|approval| approval.by).collect();
    assert_eq!(by, [Some(DecidedBy::Caller), Some(DecidedBy::Session), Some(DecidedBy::Session)]);
    // Not with other arguments, not on another thread.
    let other = asks(&runtime, one, "call gated_once b").await;
    decide(&runtime, other.id, Decision::Denied).await.unwrap();
    let lasting = asks(&runtime, two, "call gated_once a").await;
    decide(&runtime, lasting.id, Decision::ApprovedAlways).await.unwrap();
    rests(&runtime, two).await;
    let three = create(&runtime).await;
    say(&runtime, three, "call gated_once a").await;
    let passed = approvals(&log(&runtime, three).await).remove(0);
    assert_eq!(passed.by, Some(DecidedBy::Policy));
    assert!(passed.matched_rule.is_some());
    let stranger: TenantId = "stranger".parse().unwrap();
    let foreign = runtime.create_thread(stranger, NewThread::with(choice()), Call::default()).await.unwrap().value;
    let foreign = ThreadKey { tenant: stranger, thread: foreign.id };
    start(&runtime, foreign, "call gated_once a").await;
    waits(&runtime, foreign).await;
    runtime.shutdown(LONG).await;
}

#[tokio::test]
async fn who_approves_by_itself_is_asked_only_for_full_access_unless_it_is_trusted() {
    let bed = Bed::new();
    let runtime = bed.start().await;
    let key = create(&runtime).await;
    let with = |text: &str, trust| raddle_domain::command::StartTurn {
        overrides: TurnOverrides { auto_approve: Some(true), trust_mode: Some(trust), ..TurnOverrides::default() },
        ..prompt(text, Delivery::Reject)
    };
    runtime.start_turn(key, with("call gated_once a; call full_once b", true), Call::default()).await.unwrap();
    rests(&runtime, key).await;
    assert_eq!(bed.acts(), 2);
    runtime.start_turn(key, with("call gated_once a; call full_once b", false), Call::default()).await.unwrap();
    waits(&runtime, key).await;
    assert_eq!(bed.acts(), 3);
    let asked = pending(&runtime, key).await;
    assert_eq!(asked.iter().map(|approval| approval.tool.as_str()).collect::<Vec<_>>(), ["full_once"]);
    let by: Vec<_> = approvals(&log(&runtime, key).await).iter().map(|approval| approval.by).collect();
    assert_eq!(by, [Some(DecidedBy::Auto), Some(DecidedBy::Auto), Some(DecidedBy::Auto), None]);
    runtime.shutdown(LONG).await;
}

// ---- a reply that is lost ------------------------------------------------------------------------

#[tokio::test]
async fn a_decision_whose_commit_loses_its_reply_is_found_at_once_or_made_again_and_acts_once() {
    for stores in [true, false] {
        let bed = Bed::new();
        let config = bed.config();
        let armed = AtomicBool::new(true);
        let lossy: OnCommit = Box::new(move |writes, commit| {
            if !holds(writes, "approval.decided") || !armed.swap(false, SeqCst) {
                return commit();
            }
            if stores {
                commit()?;
            }
            Err(StoreError::Unavailable("the reply is lost".into()))
        });
        let store = Hooked::open(&config.store, lossy);
        let runtime = Runtime::start(config, Ports { store: Some(Arc::new(store)), ..bed.ports() }).await.unwrap();
        let key = create(&runtime).await;
        let approval = asks(&runtime, key, "call gated_once a").await;
        let call = keyed(1, 1);
        // What was stored is found by its key before anybody is told that it failed.
        let first = runtime.decide(OWNER, approval.id, Decision::Approved, None, call.clone()).await;
        match &first {
            Ok(done) => assert!(stores && done.replayed, "{done:?}"),
            Err(error) => assert!(!stores && matches!(error, Error::Store(_)), "{error:?}"),
        }
        let again = async {
            loop {
                match runtime.decide(OWNER, approval.id, Decision::Approved, None, call.clone()).await {
                    Err(Error::Store(_)) => tokio::task::yield_now().await,
                    done => break done,
                }
            }
        };
        let again = tokio::time::timeout(LONG, again).await.unwrap().unwrap();
        assert_eq!(again.replayed, stores);
        rests(&runtime, key).await;
        assert_eq!(bed.acts(), 1);
        let log = log(&runtime, key).await;
        assert_sound(&log, true);
        assert_eq!(approvals(&log), [again.value]);
        runtime.shutdown(LONG).await;
    }
}

// ---- everybody at once ---------------------------------------------------------------------------

/// What somebody did about an approval, and what they were told.
#[derive(Debug)]
enum Told {
    Decided(Decision, Result<Approval, Error>),
    Interrupted(Result<raddle_domain::record::InterruptReceipt, Error>),
}

/// Waits until the thread has nothing left to do, and settles what nobody knows the outcome of.
async fn comes_to_rest(runtime: &Runtime, key: ThreadKey) {
    let rests = async {
        let mut watch = runtime.subscribe(key, 0).await.unwrap();
        while runtime.thread(key).await.unwrap().status != ThreadStatus::Idle {
            let open = RecordQuery { thread: Some(key.thread), open: true, limit: 9, ..RecordQuery::default() };
            for effect in runtime.effects(OWNER, open).await.unwrap().data {
                let (settle, seen) = (Resolution::Settle, Some("seen".to_owned()));
                runtime.resolve(OWNER, effect.operation_id, settle, seen, Call::default()).await.unwrap();
            }
            watch.next().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, rests).await.expect("it comes to rest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_races_for_an_approval_each_has_one_outcome_on_which_all_agree() {
    const ROUNDS: usize = 1_000;
    const BATCH: usize = 50;
    let (limits, medium) = (Limits { approval_ms: 20, ..Limits::default() }, Some(MemoryMedium::default()));
    let bed = Bed { limits, medium, ..Bed::new() };
    let mut numbers = Numbers(7);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut runtime = bed.start().await;
    for batch in 0..ROUNDS / BATCH {
        let mut keys = Vec::new();
        for _ in 0..BATCH {
            keys.push(create(&runtime).await);
        }
        let asked = keys.iter().map(|key| asks(&runtime, *key, "call gated_once a"));
        let asked = futures_util::future::join_all(asked).await;
        let mut racing = Vec::new();
        for (key, approval) in keys.iter().zip(&asked) {
            let mut contest: Vec<u64> = (0..4).filter(|_| numbers.below(3) > 0).collect();
            // Whoever is sent first is not always first.
            let first = numbers.below(4) as usize % contest.len().max(1);
            contest.rotate_left(first);
            for who in contest {
                let (runtime, key, id, turn) = (runtime.clone(), *key, approval.id, approval.turn_id);
                racing.push((
                    id,
                    tokio::spawn(async move {
                        let decision = match who {
                            0 => Decision::Approved,
                            1 => Decision::Denied,
                            2 => Decision::Abort,
                            _ => {
                                let interrupt = Interrupt { turn, pause_queue: false };
                                let done = runtime.interrupt(key, interrupt, Call::default()).await;
                                return Told::Interrupted(done.map(|done| done.value));
                            }
                        };
                        Told::Decided(decision, decide(&runtime, id, decision).await)
                    }),
                ));
            }
        }
        // In some batches time passes meanwhile, in some the process goes.
        if batch % 3 == 1 {
            bed.clock.advance(30);
        }
        let goes = batch % 4 == 2;
        if goes {
            runtime.shutdown(Duration::ZERO).await;
        }
        let mut told: BTreeMap<ApprovalId, Vec<Told>> = BTreeMap::new();
        for (id, task) in racing {
            told.entry(id).or_default().push(task.await.unwrap());
        }
        if goes {
            drop(runtime);
            runtime = bed.start().await;
        }
        for (key, approval) in keys.iter().zip(&asked) {
            let told = told.remove(&approval.id).unwrap_or_default();
            // Where nobody got through, somebody says the last word.
            drop(decide(&runtime, approval.id, Decision::Denied).await);
            bed.clock.advance(30);
            comes_to_rest(&runtime, *key).await;
            let log = log(&runtime, *key).await;
            assert_sound(&log, true);
            let [known] = &approvals(&log)[..] else { panic!("{log:#?}") };
            *outcomes.entry(format!("{:?}", known.status)).or_default() += 1;
            let about = format!("round of batch {batch}: {known:?} {told:#?}");
            assert_eq!(&runtime.approval(OWNER, approval.id).await.unwrap(), known, "{about}");
            let mut winners = 0;
            for told in &told {
                match told {
                    Told::Decided(decision, Ok(won)) => {
                        winners += 1;
                        assert_eq!((won, known.decision), (known, Some(*decision)), "{about}");
                    }
                    Told::Decided(_, Err(Error::AlreadyDecided(first))) => {
                        assert_eq!((first.status, first.decision), (known.status, known.decision), "{about}");
                    }
                    Told::Interrupted(Ok(receipt)) => {
                        let ended = &log[receipt.ended_seq as usize - 1].event;
                        assert!(matches!(ended, Event::TurnCompleted(turn) if **turn == receipt.turn), "{about}");
                        for effect in &receipt.effects {
                            assert!(effect.attempt > 0 && effect.status != EffectStatus::Started, "{about}");
                        }
                    }
                    Told::Interrupted(Err(Error::Refused(Refused::TurnNotActive { .. }))) => {}
                    // Whoever was cut off by the end of the process knows nothing, and may have won.
                    Told::Decided(_, Err(error)) | Told::Interrupted(Err(error)) => {
                        assert!(goes, "{error:?} {about}");
                    }
                }
            }
            assert!(winners <= 1, "{about}");
            let effects = ledger(&log);
            let approved = known.status == ApprovalStatus::Approved;
            assert_eq!(effects.len(), usize::from(approved), "{about}");
            assert_eq!(known.decision.is_some(), known.by.is_some(), "{about}");
            let turn = runtime.turn(*key, known.turn_id).await.unwrap();
            match known.status {
                ApprovalStatus::Denied | ApprovalStatus::Expired => assert!(turn.status.is_terminal(), "{about}"),
                ApprovalStatus::Aborted => assert_eq!(turn.status, TurnStatus::Canceled, "{about}"),
                ApprovalStatus::Cancelled => assert_eq!(turn.status, TurnStatus::Interrupted, "{about}"),
                ApprovalStatus::Approved => assert!(effects[0].attempt <= 1, "{about}"),
                ApprovalStatus::Pending => panic!("{about}"),
            }
        }
    }
    runtime.shutdown(LONG).await;
    let acts = acts(bed.dir.path());
    let mut operations: Vec<_> = acts.iter().map(|act| &act.operation).collect();
    operations.sort();
    operations.dedup();
    assert_eq!(operations.len(), acts.len(), "something was done twice");
    assert_eq!(outcomes.values().sum::<usize>(), ROUNDS);
    for outcome in ["Approved", "Denied", "Aborted", "Cancelled", "Expired"] {
        assert!(outcomes.contains_key(outcome), "the race is no race: {outcomes:?}");
    }
}
