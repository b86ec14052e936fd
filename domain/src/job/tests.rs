use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const NOW: UnixMs = UnixMs(1_795_000_000_000);

fn webhook() -> Work {
    Work::Webhook(WebhookWork { url: "http://localhost/x".into(), body: serde_json::json!({"a": 1}), secret: None })
}

fn command() -> Work {
    let thread_id = ThreadId::new(Uuid::from_u128(1));
    Work::Command(CommandWork { thread_id, command: "make".into(), cwd: None, timeout_ms: None })
}

fn turn() -> Work {
    let text = format!(r#"{{"kind":"turn","payload":{{"thread_id":"thr_{}","prompt":"x"}}}}"#, Uuid::from_u128(1));
    serde_json::from_str(&text).unwrap()
}

fn job(work: Work) -> Job {
    Job::create(JobId::new(Uuid::from_u128(7)), Template::new("n", work), None, NOW).unwrap().job
}

fn does(job: &Job, verb: Verb) -> Job {
    job.step(verb, NOW).unwrap().job
}

fn begin(job: &Job) -> Job {
    let at = job.due_at().max(NOW);
    job.step(Verb::Begin { owner: 1, expires_at: UnixMs(at.0 + 1000) }, at).unwrap().job
}

fn token(job: &Job) -> Token {
    job.lease.unwrap().token()
}

fn fail(job: &Job) -> Job {
    does(job, Verb::Fail { token: token(job), why: "no".into(), again: true })
}

fn refused(job: &Job, verb: Verb) -> JobRefused {
    job.step(verb, NOW).unwrap_err()
}

#[test]
fn enqueue_creates_queued_job_with_zero_progress() {
    let job = job(webhook());
    assert_eq!((job.status, job.progress, job.attempt, job.max_attempts), (JobStatus::Queued, 0, 0, 3));
    assert_eq!((job.backoff_base_ms, job.next_backoff_ms, job.next_retry_at), (500, 0, None));
    assert_eq!(job.history.iter().map(|phase| &*phase.phase).collect::<Vec<_>>(), ["created"]);
}

#[test]
fn set_running_transitions_from_queued() {
    let job = begin(&job(webhook()));
    assert_eq!((job.status, job.started_at, job.begun), (JobStatus::Running, Some(NOW), 1));
    assert_eq!(
        refused(&job, Verb::Begin { owner: 1, expires_at: NOW }),
        JobRefused::Not { what: "begun", status: JobStatus::Running }
    );
}

#[test]
fn update_progress_clamps_to_100() {
    let job = begin(&job(webhook()));
    let job = does(&job, Verb::Progress { token: token(&job), progress: Some(u64::MAX), detail: Some("d".into()) });
    assert_eq!((job.progress, job.detail.as_deref()), (100, Some("d")));
    let job = does(&job, Verb::Progress { token: token(&job), progress: Some(7), detail: None });
    assert_eq!((job.progress, job.detail.as_deref()), (7, Some("d")));
}

#[test]
fn complete_sets_progress_to_100() {
    let job = begin(&job(webhook()));
    let job = does(&job, Verb::Complete { token: token(&job), output: "o".into() });
    assert_eq!((job.status, job.progress, job.lease), (JobStatus::Completed, 100, None));
    assert_eq!((job.output, job.ended_at), (Some("o".into()), Some(NOW)));
}

#[test]
fn cancel_sets_status_and_clears_retry() {
    let job = fail(&begin(&job(webhook())));
    assert!(job.next_retry_at.is_some());
    let job = does(&job, Verb::Cancel);
    assert_eq!((job.status, job.next_backoff_ms, job.next_retry_at), (JobStatus::Cancelled, 0, None));
}

#[test]
fn fail_increments_attempt_and_sets_backoff() {
    let job = fail(&begin(&job(webhook())));
    // A job that is tried again has not failed.
    assert_eq!((job.status, job.attempt, job.next_backoff_ms), (JobStatus::Queued, 1, 500));
    assert_eq!(job.next_retry_at, Some(UnixMs(NOW.0 + 500)));
    assert_eq!(refused(&job, Verb::Begin { owner: 1, expires_at: NOW }), JobRefused::NotDue);
}

#[test]
fn fail_clears_retry_after_max_attempts() {
    let mut job = job(webhook());
    let mut pauses = Vec::new();
    for _ in 0..3 {
        job = fail(&begin(&job));
        pauses.push(job.next_backoff_ms);
    }
    assert_eq!(pauses, [500, 1000, 2000]);
    let job = fail(&begin(&job));
    assert_eq!((job.status, job.attempt), (JobStatus::Failed, 3));
    assert_eq!((job.next_backoff_ms, job.next_retry_at, job.begun, job.run), (0, None, 4, 4));
}

#[test]
fn what_can_not_succeed_is_not_tried_again() {
    let job = begin(&job(webhook()));
    let job = does(&job, Verb::Fail { token: token(&job), why: "gone".into(), again: false });
    assert_eq!((job.status, job.attempt, job.detail.as_deref()), (JobStatus::Failed, 0, Some("gone")));
}

#[test]
fn deterministic_backoff_zero_on_first_attempt_exponential_growth_and_saturation() {
    assert_eq!([0, 1, 2, 3, 4].map(|attempt| backoff(500, attempt)), [0, 500, 1000, 2000, 4000]);
    assert_eq!(backoff(500, 21), 500 << 20);
    assert_eq!(backoff(500, 22), 500 << 20);
    assert_eq!(backoff(500, u32::MAX), 500 << 20);
    assert_eq!(backoff(u64::MAX, 2), u64::MAX);
}

#[test]
fn push_history_truncates_beyond_max() {
    let mut job = begin(&job(webhook()));
    for n in 0..100 {
        job = does(&job, Verb::Progress { token: token(&job), progress: Some(n % 2 + 1), detail: None });
    }
    assert_eq!(job.history.len(), HISTORY);
    assert!(job.history.iter().all(|phase| phase.phase == "progress_updated"), "the oldest are dropped");
}

#[test]
fn pause_and_resume_round_trip() {
    let job = does(&job(webhook()), Verb::Pause);
    assert_eq!(job.status, JobStatus::Paused);
    assert_eq!(job.head(1, 0).wake_at, None);
    let job = does(&job, Verb::Resume);
    assert_eq!((job.status, job.run), (JobStatus::Queued, 1));
    assert_eq!(begin(&job).status, JobStatus::Running);
}

#[test]
fn a_pause_takes_a_run_from_whoever_has_it_unless_it_is_a_command() {
    let running = begin(&job(turn()));
    let paused = does(&running, Verb::Pause);
    assert_eq!((paused.lease, paused.stopping, paused.run), (None, true, 1));
    let late = Verb::Complete { token: token(&running), output: "late".into() };
    assert_eq!(refused(&paused, late), JobRefused::NotYours);
    let resumed = does(&paused, Verb::Resume);
    // Its turn is told first.
    assert_eq!(refused(&resumed, Verb::Begin { owner: 1, expires_at: NOW }), JobRefused::NotDue);
    let told = does(&resumed, Verb::Stopped { again: true });
    assert_eq!((begin(&told).status, told.run, told.seq), (JobStatus::Running, 2, resumed.seq));
    // It had ended meanwhile: that is what will be found.
    assert_eq!(does(&resumed, Verb::Stopped { again: false }).run, 1);
    assert_eq!(refused(&begin(&job(command())), Verb::Pause), JobRefused::CommandRuns);
}

#[test]
fn the_turn_of_a_lost_run_is_told_when_its_job_is_cancelled_or_paused() {
    let running = begin(&job(turn()));
    let (of_turn, of_input) = (TurnId::new(Uuid::from_u128(3)), InputId::new(Uuid::from_u128(4)));
    let attach = |input, turn| does(&running, Verb::Attach { token: token(&running), input, turn });
    // A run may be lost before it could say what it became.
    for run in [running.clone(), attach(None, Some(of_turn)), attach(Some(of_input), None)] {
        let lost = does(&run, Verb::Lose { owner: 2 });
        assert_eq!((lost.status, lost.stopping), (JobStatus::Queued, false));
        let cancelled = does(&lost, Verb::Cancel);
        assert_eq!((cancelled.status, cancelled.stopping), (JobStatus::Cancelled, true));
        let paused = does(&lost, Verb::Pause);
        assert_eq!((paused.status, paused.stopping), (JobStatus::Paused, true));
        for (stopped, verb) in [(cancelled, Verb::Retry), (paused, Verb::Resume)] {
            // By what the turn is found, and the job after a restart.
            assert_eq!((stopped.run, stopped.turn_id, stopped.input_id), (1, lost.turn_id, lost.input_id));
            assert!(stopped.head(1, 0).owes_since.is_some());
            let again = does(&stopped, verb);
            assert_eq!(refused(&again, Verb::Begin { owner: 1, expires_at: NOW }), JobRefused::NotDue);
            let told = does(&again, Verb::Stopped { again: true });
            assert_eq!((told.run, told.turn_id, told.input_id), (2, None, None));
            assert_eq!(begin(&told).status, JobStatus::Running);
        }
    }
    // There is nobody to be told of a run that was not begun, nor of one that is no turn.
    let hook = does(&begin(&job(webhook())), Verb::Lose { owner: 2 });
    for unheard in [job(turn()), fail(&running), hook] {
        let (cancelled, paused) = (does(&unheard, Verb::Cancel), does(&unheard, Verb::Pause));
        assert_eq!((cancelled.stopping, paused.stopping, paused.run), (false, false, unheard.run));
    }
}

#[test]
fn a_verb_that_makes_no_sense_changes_nothing_and_says_so() {
    let not = |what, status| JobRefused::Not { what, status };
    let done = {
        let job = begin(&job(webhook()));
        does(&job, Verb::Complete { token: token(&job), output: "".into() })
    };
    for (verb, what) in
        [(Verb::Pause, "paused"), (Verb::Resume, "resumed"), (Verb::Cancel, "cancelled"), (Verb::Retry, "retried")]
    {
        assert_eq!(refused(&done, verb), not(what, JobStatus::Completed));
    }
    assert_eq!(refused(&job(webhook()), Verb::Resume), not("resumed", JobStatus::Queued));
    assert_eq!(refused(&job(webhook()), Verb::Retry), not("retried", JobStatus::Queued));
    assert_eq!(refused(&begin(&job(webhook())), Verb::Retry), not("retried", JobStatus::Running));
    assert_eq!(refused(&does(&job(webhook()), Verb::Pause), Verb::Pause), not("paused", JobStatus::Paused));
    let cancelled = does(&job(webhook()), Verb::Cancel);
    assert_eq!(refused(&cancelled, Verb::Cancel), not("cancelled", JobStatus::Cancelled));
}

#[test]
fn a_late_report_of_another_lease_changes_nothing() {
    let first = begin(&job(webhook()));
    let lost = does(&first, Verb::Lose { owner: 2 });
    let second = lost.step(Verb::Begin { owner: 2, expires_at: NOW }, NOW).unwrap().job;
    assert_eq!(second.run, first.run, "whoever is called knows the repeat");
    let late = token(&first);
    for verb in [
        Verb::Complete { token: late, output: "late".into() },
        Verb::Fail { token: late, why: "late".into(), again: true },
        Verb::Progress { token: late, progress: Some(50), detail: None },
        Verb::Renew { token: late, expires_at: UnixMs(u64::MAX) },
        Verb::Doubt { token: late, why: "late".into() },
        Verb::Attach { token: late, input: None, turn: None },
        Verb::GiveUp { token: late, why: "late".into() },
    ] {
        assert_eq!(refused(&second, verb.clone()), JobRefused::NotYours, "{verb:?}");
    }
    assert_eq!(refused(&second, Verb::Lose { owner: 2 }), JobRefused::NotYours);
}

#[test]
fn resume_pending_requeues_running_and_leaves_what_ended() {
    for (work, status) in
        [(turn(), JobStatus::Queued), (webhook(), JobStatus::Queued), (command(), JobStatus::Uncertain)]
    {
        let running = begin(&job(work));
        assert_eq!(does(&running, Verb::Lose { owner: 2 }).status, status);
        let at = running.lease.unwrap().expires_at;
        assert_eq!(refused(&running, Verb::Expire), JobRefused::NotDue);
        assert_eq!(running.step(Verb::Expire, at).unwrap().job.status, status);
    }
    let paused = does(&job(webhook()), Verb::Pause);
    assert!(paused.step(Verb::Lose { owner: 2 }, NOW).is_err());
}

#[test]
fn an_uncertain_command_waits_for_a_persons_word() {
    let lost = does(&begin(&job(command())), Verb::Lose { owner: 2 });
    assert_eq!((lost.head(1, 0).wake_at, lost.indexed().open), (None, true));
    let again = does(&lost, Verb::Retry);
    assert_eq!((again.status, again.run, again.attempt), (JobStatus::Queued, 2, 0));
    assert_eq!(does(&lost, Verb::Cancel).status, JobStatus::Cancelled);
}

#[test]
fn a_retry_gives_all_attempts_back() {
    let mut failed = job(webhook());
    for _ in 0..4 {
        failed = fail(&begin(&failed));
    }
    let again = does(&failed, Verb::Retry);
    assert_eq!((again.status, again.attempt, again.run, again.ended_at), (JobStatus::Queued, 0, 5, None));
    // One that waits for its retry need not wait.
    let waits = fail(&begin(&job(webhook())));
    let now = does(&waits, Verb::Retry);
    assert_eq!((now.attempt, now.due_at()), (1, NOW));
}

#[test]
fn run_at_delays_the_first_attempt() {
    let at = UnixMs(NOW.0 + 5_000);
    let job = Job::create(JobId::new(Uuid::from_u128(7)), Template::new("n", webhook()), Some(at), NOW).unwrap().job;
    assert_eq!(job.head(1, 0).wake_at, Some(at));
    assert_eq!(refused(&job, Verb::Begin { owner: 1, expires_at: NOW }), JobRefused::NotDue);
    assert!(job.step(Verb::Begin { owner: 1, expires_at: at }, at).is_ok());
}

#[test]
fn a_job_that_ended_is_forgotten_later() {
    let job = does(&job(webhook()), Verb::Cancel);
    let head = job.head(3, 7_000);
    assert_eq!((head.wake_at, head.owes_since, head.fence), (Some(UnixMs(NOW.0 + 7_000)), None, 3));
    assert!(!job.indexed().open);
}

#[test]
fn what_no_job_can_be_made_of_is_refused_by_its_name() {
    let made = |template: Template| match Job::create(JobId::new(Uuid::nil()), template, None, NOW) {
        Ok(_) => "",
        Err(JobRefused::Invalid { field, .. } | JobRefused::TooLarge { field, .. }) => field,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(made(Template::new(" ", webhook())), "name");
    assert_eq!(made(Template::new("x".repeat(257), webhook())), "name");
    assert_eq!(made(Template { max_attempts: 101, ..Template::new("n", webhook()) }), "max_attempts");
    assert_eq!(made(Template { backoff_base_ms: u64::MAX, ..Template::new("n", webhook()) }), "backoff_base_ms");
    let hook = |url: &str, body| Work::Webhook(WebhookWork { url: url.into(), body, secret: None });
    assert_eq!(made(Template::new("n", hook("file:///etc/passwd", serde_json::Value::Null))), "payload.url");
    assert_eq!(made(Template::new("n", hook("http://x", "x".repeat(PAYLOAD_BYTES).into()))), "payload");
    assert_eq!(made(Template { max_attempts: 0, ..Template::new("n", webhook()) }), "");
}

#[test]
fn of_a_long_text_the_end_is_kept() {
    let job = begin(&job(webhook()));
    let long = format!("{}ä!", "x".repeat(2 * DETAIL_BYTES));
    let job = does(&job, Verb::Progress { token: token(&job), progress: None, detail: Some(long.clone()) });
    assert!(job.detail.as_ref().is_some_and(|detail| detail.ends_with("ä!") && detail.len() <= DETAIL_BYTES));
    let job = does(&job, Verb::Complete { token: token(&job), output: serde_json::json!({"body": long, "n": 1}) });
    assert!(job.output.as_ref().is_some_and(|output| output["body"].as_str().unwrap().len() <= DETAIL_BYTES));
}

#[test]
fn a_record_is_the_kind_beside_its_payload() {
    let json = serde_json::to_value(job(webhook())).unwrap();
    assert_eq!((&json["kind"], &json["payload"]["url"]), (&"webhook".into(), &"http://localhost/x".into()));
    let record = serde_json::to_value(Record::new(&job(webhook()), JobEvent::Queued)).unwrap();
    assert_eq!((&record["seq"], &record["prev"], &record["event"]), (&1.into(), &0.into(), &"job.queued".into()));
    assert_eq!(record["job_id"], record["payload"]["job"]["id"]);
}

/// Anything that may happen, with a lease that may be the right one.
fn verbs() -> impl Strategy<Value = (u8, u64, u32, bool)> {
    (0u8..14, 0u64..3_000, 0u32..4, any::<bool>())
}

fn verb(job: &Job, (which, number, term, right): (u8, u64, u32, bool), now: UnixMs) -> Verb {
    let token = match job.lease {
        Some(lease) if right => lease.token(),
        _ => Token { owner: 1, term },
    };
    match which {
        0 => Verb::Pause,
        1 => Verb::Resume,
        2 => Verb::Cancel,
        3 => Verb::Retry,
        4..=6 => Verb::Begin { owner: 1 + number % 2, expires_at: UnixMs(now.0 + number) },
        7 => Verb::Progress { token, progress: Some(number), detail: None },
        8 => Verb::Complete { token, output: number.into() },
        9 => Verb::Fail { token, why: "w".into(), again: number % 3 > 0 },
        10 => Verb::Lose { owner: 2 },
        11 => Verb::Expire,
        12 => Verb::Stopped { again: right },
        _ => Verb::Doubt { token, why: "w".into() },
    }
}

proptest! {
    #[test]
    fn replay_equals_live_and_what_ends_ends_once(
        kind in 0u8..3,
        plan in prop::collection::vec(verbs(), 0..60),
    ) {
        let mut job = job([turn(), webhook(), command()][usize::from(kind)].clone());
        let mut now = NOW;
        let mut terms = std::collections::BTreeSet::new();
        for random in plan {
            now.0 += random.1;
            let verb = verb(&job, random, now);
            let before = job.clone();
            match job.step(verb.clone(), now) {
                Err(_) => prop_assert_eq!(&job, &before),
                Ok(Step { job: after, event }) => {
                    prop_assert_eq!(after.seq, before.seq + u64::from(event.is_some()));
                    if let Some(event) = event {
                        let bytes = serde_json::to_vec(&Record::new(&after, event)).unwrap();
                        let replayed = Job::apply(serde_json::from_slice(&bytes).unwrap());
                        prop_assert_eq!(&replayed, &after);
                    }
                    // Only a person's word leads out of an end.
                    if before.status.is_over() && after.status != before.status {
                        prop_assert_eq!(&verb, &Verb::Retry);
                    }
                    if after.status == JobStatus::Running && before.status != JobStatus::Running {
                        prop_assert!(terms.insert(after.lease.unwrap().token().term), "a lease is given once");
                        // A command whose run may have happened is begun again on a person's word alone.
                        prop_assert!(kind != 2 || before.status == JobStatus::Queued);
                    }
                    prop_assert_eq!(after.lease.is_some(), after.status == JobStatus::Running);
                    prop_assert!(after.attempt <= after.max_attempts && after.history.len() <= HISTORY);
                    prop_assert!(after.next_retry_at.is_none()
                        || matches!(after.status, JobStatus::Queued | JobStatus::Paused));
                    prop_assert_eq!(after.ended_at.is_some(), after.status.is_over());
                    job = after;
                }
            }
        }
    }
}
