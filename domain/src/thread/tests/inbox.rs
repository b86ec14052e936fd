//! Prompts that wait.

use super::*;

#[test]
fn a_refused_start_leaves_no_trace_and_never_runs() {
    let mut bench = Bench::new();
    bench.start("first").unwrap();
    let turn = bench.turn();
    assert_eq!(bench.start("refused").unwrap_err(), Refused::TurnOpen { turn });
    assert_eq!(bench.state.inbox().count(), 0);
    bench.finish();
    assert_eq!(bench.outcomes(), [("first".to_owned(), TurnStatus::Completed)]);
    assert!(!serde_json::to_string(&bench.log).unwrap().contains("refused"));
}

#[test]
fn a_process_that_is_about_to_end_begins_no_queued_prompt_and_the_next_one_does() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.draining = true;
    bench.finish();
    assert!(bench.state.open().is_none());
    assert_eq!((bench.state.view().queued, bench.state.owes_since().is_some()), (1, true));
    assert_eq!(bench.reloaded(), bench.state);

    bench.draining = false;
    bench.ask(Command::Recover { restarted: true }).unwrap();
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "q");
    bench.finish();
    assert!(bench.state.owes_since().is_none());
}

#[test]
fn queued_prompts_run_in_order_each_as_its_own_turn() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    for prompt in ["q1", "q2", "q3"] {
        let step = bench.queue(prompt).unwrap();
        assert!(matches!(step.reply, Reply::Queued { active_turn, .. } if active_turn == bench.turn()));
    }
    for _ in 0..4 {
        bench.finish();
    }
    let order: Vec<String> = bench.outcomes().into_iter().map(|(prompt, _)| prompt).collect();
    assert_eq!(order, ["p", "q1", "q2", "q3"]);
    assert_eq!(bench.state.view().queued, 0);
}

#[test]
fn a_full_inbox_refuses_and_keeps_what_it_has() {
    let mut bench = Bench::with(Limits { inbox_per_thread: 1, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.queue("q1").unwrap();
    assert_eq!(bench.queue("q2").unwrap_err(), Refused::InboxFull { limit: 1 });
    assert_eq!(bench.state.inbox().count(), 1);
}

fn withdraw(bench: &mut Bench, prompt: &str) -> Result<Step, Refused> {
    let input = input(bench, prompt);
    bench.ask(Command::Withdraw(input))
}

/// The input that was admitted with this prompt.
fn input(bench: &Bench, prompt: &str) -> InputId {
    let admitted = |record: &Record| match &record.event {
        Event::PromptAdmitted(admission) if admission.prompt == prompt => Some(admission.id),
        _ => None,
    };
    bench.log.iter().find_map(admitted).unwrap()
}

fn edit(bench: &mut Bench, prompt: &str, to: Option<&str>, position: Option<u32>) -> Result<Step, Refused> {
    let edit = EditPrompt { input: input(bench, prompt), prompt: to.map(Into::into), position };
    bench.ask(Command::EditPrompt(edit))
}

/// A running turn with `a`, `b` and `c` behind it.
fn queued() -> Bench {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    for prompt in ["a", "b", "c"] {
        bench.queue(prompt).unwrap();
    }
    bench
}

// ---- the queue -----------------------------------------------------------------------------------

#[test]
fn a_waiting_prompt_can_be_changed_and_moved_until_it_is_a_turn() {
    let mut bench = queued();
    let step = edit(&mut bench, "c", Some("C"), Some(0)).unwrap();
    assert!(matches!(step.reply, Reply::Admission(admission, 0) if admission.prompt == "C"));
    assert_eq!(bench.waiting(), ["C", "a", "b"]);
    let step = edit(&mut bench, "a", None, Some(9)).unwrap();
    assert!(matches!(step.reply, Reply::Admission(_, 2)), "beyond the end is the end");
    assert_eq!(bench.waiting(), ["C", "b", "a"]);
    assert_eq!(bench.reloaded(), bench.state);
    bench.finish();
    let promoted = input(&bench, "c");
    assert_eq!(edit(&mut bench, "c", Some("x"), None).unwrap_err(), Refused::NotQueued { input: promoted });
    assert_eq!(withdraw(&mut bench, "c").unwrap_err(), Refused::NotQueued { input: promoted });
    assert_eq!(bench.reloaded(), bench.state, "a prompt is found where it was last changed");
}

#[test]
fn an_edit_of_a_waiting_prompt_changes_something_and_leaves_something_to_say() {
    let mut bench = queued();
    assert!(matches!(edit(&mut bench, "a", None, None), Err(Refused::Invalid { field: "body", .. })));
    assert!(matches!(edit(&mut bench, "a", Some(" \n\t"), None), Err(Refused::Invalid { field: "prompt", .. })));
    bench.limits.prompt_bytes = 3;
    assert!(matches!(edit(&mut bench, "a", Some("four"), None), Err(Refused::TooLarge { field: "prompt", .. })));
}

#[test]
fn a_withdrawn_prompt_never_runs() {
    let mut bench = queued();
    withdraw(&mut bench, "b").unwrap();
    assert_eq!(bench.waiting(), ["a", "c"]);
    withdraw(&mut bench, "c").unwrap();
    withdraw(&mut bench, "a").unwrap();
    let gone = input(&bench, "a");
    assert_eq!(withdraw(&mut bench, "a").unwrap_err(), Refused::NotQueued { input: gone });
    bench.finish();
    assert_eq!(bench.state.view().status, ThreadStatus::Idle);
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn a_paused_queue_waits_and_can_still_be_changed() {
    let mut bench = queued();
    let turn = bench.turn();
    bench.ask(Command::Interrupt(Interrupt { turn, pause_queue: true })).unwrap();
    assert_eq!((bench.state.view().status, bench.state.view().queued), (ThreadStatus::Idle, 3));
    assert!(bench.state.view().queue_paused);
    edit(&mut bench, "c", Some("C"), Some(0)).unwrap();
    withdraw(&mut bench, "a").unwrap();
    assert_eq!(bench.reloaded(), bench.state);
    bench.start("now").unwrap();
    bench.finish();
    assert_eq!(bench.state.view().status, ThreadStatus::Idle, "it stays paused behind another turn");
    bench.queue_paused(false);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "C");
    bench.finish();
    bench.finish();
    let order: Vec<String> = bench.outcomes().into_iter().map(|(prompt, _)| prompt).collect();
    assert_eq!(order, ["p", "now", "C", "b"]);
}

#[test]
fn an_archived_thread_runs_its_queue_when_it_is_unarchived() {
    let mut bench = queued();
    bench.queue_paused(true);
    bench.finish();
    let archive = |archived| {
        Command::Patch(ThreadPatch { archived: Some(archived), queue_paused: Some(false), ..ThreadPatch::default() })
    };
    bench.ask(archive(true)).unwrap();
    assert_eq!((bench.state.open().is_none(), bench.waiting().len()), (true, 3));
    edit(&mut bench, "a", None, Some(1)).unwrap();
    assert_eq!(bench.reloaded(), bench.state);
    bench.ask(archive(false)).unwrap();
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "b");
}

#[test]
fn a_queued_prompt_runs_with_what_its_request_said() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    let choice = Some(ModelChoice { engine: "e".into(), model: "m".into() });
    let overrides = TurnOverrides { choice, temperature: Some(0.9073038322028689), ..TurnOverrides::default() };
    for delivery in [Delivery::Queue, Delivery::Steer] {
        let (overrides, undelivered) = (overrides.clone(), Undelivered::Queue);
        bench
            .ask(Command::Start(StartTurn {
                prompt: "q".into(),
                delivery,
                overrides,
                undelivered,
                ..StartTurn::default()
            }))
            .unwrap();
    }
    bench.interrupt();
    for _ in 0..2 {
        assert_eq!(bench.reloaded(), bench.state);
        let settings = &bench.state.open().unwrap().turn().settings;
        assert_eq!((settings.model.as_str(), settings.temperature), ("m", Some(0.9073038322028689)));
        bench.finish();
    }
}

// ---- steers --------------------------------------------------------------------------------------

#[test]
fn a_steer_right_before_the_end_makes_the_turn_go_on() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.report(&[(TextKind::Answer, "yes")], None);
    bench.steer("and q", Undelivered::Report).unwrap();
    assert_eq!(bench.said(), ["p"], "nothing is said into an answer");
    bench.report(&[], Some(Ok(answer(&[]))));
    assert_eq!(bench.said(), ["p", "and q"]);
    assert_eq!(bench.count("turn.steered"), 1);
    bench.finish();
    let turn = bench.ended();
    assert_eq!((turn.status, turn.steer_count, turn.not_delivered.len()), (TurnStatus::Completed, 1, 0));
}

#[test]
fn steers_are_seen_in_their_order_once_every_tool_is_done() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.call(vec![free("a", EffectClass::Read), gated("b", EffectClass::Once)]);
    bench.steer("s1", Undelivered::Report).unwrap();
    bench.begin();
    bench.done("a");
    bench.steer("s2", Undelivered::Report).unwrap();
    assert_eq!(bench.said(), ["p"]);
    bench.decide("b", Decision::Denied).unwrap();
    assert_eq!(bench.said(), ["p", "s1", "s2"]);
}

#[test]
fn a_steer_that_comes_too_late_is_reported_and_queued_before_the_others_if_asked_for() {
    let mut bench = queued();
    bench.steer("lost", Undelivered::Report).unwrap();
    bench.steer("s1", Undelivered::Queue).unwrap();
    bench.steer("s2", Undelivered::Queue).unwrap();
    bench.report(&[], Some(Err(failure(ModelErrorKind::Rejected))));
    let turn = bench.ended();
    let missed = ["lost", "s1", "s2"].map(|prompt| input(&bench, prompt));
    assert_eq!(turn.not_delivered, missed);
    assert_eq!(bench.count("prompt.not_delivered"), 3);
    assert_eq!(bench.state.open().unwrap().turn().input_summary, "s1");
    assert_eq!(bench.waiting(), ["s2", "a", "b", "c"]);
    assert_eq!(bench.reloaded(), bench.state);
}

#[test]
fn a_steer_at_the_limit_of_calls_is_reported_and_the_answer_stands() {
    let mut bench = Bench::with(Limits { model_calls_per_turn: 1, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.steer("s", Undelivered::Report).unwrap();
    bench.finish();
    let turn = bench.ended();
    assert_eq!((turn.status, turn.not_delivered.len()), (TurnStatus::Completed, 1));
}

#[test]
fn a_steer_that_waits_can_be_changed_and_withdrawn_but_has_no_place_in_the_queue() {
    let mut bench = queued();
    bench.steer("s1", Undelivered::Report).unwrap();
    bench.steer("s2", Undelivered::Report).unwrap();
    edit(&mut bench, "s1", Some("S1"), None).unwrap();
    assert!(matches!(edit(&mut bench, "s1", None, Some(0)), Err(Refused::Invalid { field: "position", .. })));
    withdraw(&mut bench, "s2").unwrap();
    bench.finish();
    assert_eq!(bench.said(), ["p", "S1"]);
    assert_eq!(bench.waiting(), ["a", "b", "c"]);
}

#[test]
fn steers_and_queued_prompts_share_the_room_of_the_inbox() {
    let mut bench = Bench::with(Limits { inbox_per_thread: 2, ..Limits::default() }, OnRestart::Resume);
    bench.start("p").unwrap();
    bench.queue("q").unwrap();
    bench.steer("s", Undelivered::Queue).unwrap();
    assert_eq!(bench.steer("t", Undelivered::Queue).unwrap_err(), Refused::InboxFull { limit: 2 });
    assert_eq!(bench.queue("t").unwrap_err(), Refused::InboxFull { limit: 2 });
    bench.queue_paused(true);
    bench.interrupt();
    assert_eq!(bench.waiting(), ["s", "q"]);
    let mut none = Bench::with(Limits { inbox_per_thread: 0, ..Limits::default() }, OnRestart::Resume);
    none.start("p").unwrap();
    assert_eq!(none.queue("q").unwrap_err(), Refused::InboxFull { limit: 0 });
}

#[test]
fn a_steer_survives_a_crash() {
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.steer("s", Undelivered::Report).unwrap();
    bench.state = bench.replayed();
    bench.recover();
    bench.finish();
    assert_eq!(bench.said(), ["p", "s"]);
}
