//! Settings, preconditions and places.

use super::*;

#[test]
fn a_stale_precondition_refuses_whatever_is_asked() {
    let mut bench = Bench::new();
    let start = Command::Start(StartTurn { prompt: "p".into(), ..StartTurn::default() });
    let refused = bench.request(Request { command: start.clone(), if_match: Some(7) }).unwrap_err();
    assert_eq!(refused, Refused::Precondition { expected: 7, head: 1 });
    bench.request(Request { command: start, if_match: Some(1) }).unwrap();
}

#[test]
fn an_archived_thread_starts_nothing_until_it_is_unarchived() {
    let mut bench = Bench::new();
    let archive = |archived| Command::Patch(ThreadPatch { archived: Some(archived), ..ThreadPatch::default() });
    bench.ask(archive(true)).unwrap();
    assert_eq!(bench.log.last().unwrap().event.name(), "thread.archived");
    assert_eq!(bench.state.view().status, ThreadStatus::Archived);
    assert_eq!(bench.start("p").unwrap_err(), Refused::ThreadArchived);
    bench.ask(archive(false)).unwrap();
    bench.start("p").unwrap();
    assert_eq!(bench.ask(archive(true)).unwrap_err(), Refused::TurnOpen { turn: bench.turn() });
}

#[test]
fn a_patch_that_changes_nothing_writes_nothing() {
    let mut bench = Bench::new();
    let title = |title: &str| Command::Patch(ThreadPatch { title: Some(Some(title.into())), ..ThreadPatch::default() });
    assert_eq!(bench.ask(title("a")).unwrap().records.len(), 1);
    assert_eq!(bench.ask(title("a")).unwrap().records.len(), 0);
    assert!(matches!(bench.ask(Command::Patch(ThreadPatch::default())), Err(Refused::Invalid { .. })));
    assert!(matches!(bench.ask(title(&"x".repeat(5_000))), Err(Refused::TooLarge { field: "title", .. })));
}

#[test]
fn what_nests_too_deep_to_be_read_back_is_refused_or_kept_as_text() {
    let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let metadata = |depth| Some(serde_json::from_str(&nested(depth)).unwrap());
    let mut bench = Bench::new();
    let patch = |depth| Command::Patch(ThreadPatch { metadata: metadata(depth), ..ThreadPatch::default() });
    assert!(matches!(bench.ask(patch(66)), Err(Refused::Invalid { field: "metadata", .. })));
    bench.ask(patch(65)).unwrap();
    bench.start("p").unwrap();
    let call = |depth| ToolCall { call_id: "c".into(), name: "t".into(), arguments: nested(depth) };
    let end = Answered { tool_calls: [call(64), call(65), call(126)].map(unknown).to_vec(), ..answer(&["t"]) };
    bench.report(&[], Some(Ok(end)));
    let kinds: Vec<bool> =
        bench.state.open().unwrap().items().skip(1).map(|item| item.metadata["arguments"].is_object()).collect();
    assert_eq!(kinds, [true, false, false]);
    check_log(&bench.log);
    assert_eq!(bench.reloaded(), bench.state);
}

#[test]
fn checkpoints_are_named_places_that_no_open_turn_is_part_of() {
    let mut bench = Bench::new();
    let save = |bench: &mut Bench, name: &str| bench.ask(Command::SaveCheckpoint(name.into()));
    let place = |step: Step| match step.reply {
        Reply::Checkpoint(checkpoint) => checkpoint.seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(place(save(&mut bench, "a").unwrap()), 1);
    bench.start("p").unwrap();
    let before = bench.state.open().unwrap().started_seq() - 1;
    assert_eq!(place(save(&mut bench, "b").unwrap()), before);
    bench.finish();
    let head = bench.state.seq();
    assert_eq!(place(save(&mut bench, "a").unwrap()), head);
    let names: Vec<&str> = bench.state.checkpoints().map(|checkpoint| checkpoint.name.as_str()).collect();
    assert_eq!(names, ["b", "a"], "saved again it is the newest");
    assert_eq!(bench.reloaded(), bench.state);
    bench.ask(Command::DeleteCheckpoint("b".into())).unwrap();
    let gone = Refused::NoCheckpoint { name: "b".into() };
    assert_eq!(bench.ask(Command::DeleteCheckpoint("b".into())).unwrap_err(), gone);
    assert_eq!((bench.reloaded(), bench.state.checkpoints().count()), (bench.state.clone(), 1));
}

#[test]
fn checkpoints_are_bounded_in_number_and_name() {
    let mut bench = Bench::with(Limits { checkpoints: 2, ..Limits::default() }, OnRestart::Resume);
    let mut save = |name: &str| bench.ask(Command::SaveCheckpoint(name.into()));
    save("a").unwrap();
    save(&"b".repeat(200)).unwrap();
    assert!(matches!(save("c"), Err(Refused::Invalid { field: "name", .. })));
    save("a").unwrap();
    assert!(matches!(save(&"c".repeat(201)), Err(Refused::TooLarge { field: "name", .. })));
    for bad in ["", " ", "a/b", "a\nb", LATEST] {
        assert!(matches!(save(bad), Err(Refused::Invalid { field: "name", .. })), "{bad}");
    }
}

#[test]
fn what_is_larger_than_its_limit_is_refused_by_name() {
    let limits = Limits { prompt_bytes: 4, field_bytes: 3, item_bytes: 3, ..Limits::default() };
    let mut bench = Bench::new();
    bench.start("p").unwrap();
    bench.call(vec![gated("t", EffectClass::Once), asks("ask"), free("u", EffectClass::Once)]);
    bench.limits = limits;
    let field = |asked: Result<Step, Refused>| match asked {
        Err(Refused::TooLarge { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let approval = bench.approval("t").id;
    let decide = Decide { approval, decision: Decision::Denied, reason: Some("four".into()) };
    assert_eq!(field(bench.ask(Command::Decide(decide))), "reason");
    assert_eq!(field(bench.answer("fiver")), "answer");
    assert_eq!(field(bench.resolve("u", Resolution::Settle, Some("four"))), "output");
    assert_eq!(field(bench.steer("fiver", Undelivered::Report)), "prompt");
    assert_eq!(field(bench.queue("fiver")), "prompt");
    assert_eq!(field(bench.compact(Delivery::Queue)), "reason");
    bench.queue("four").unwrap();
    bench.answer("four").unwrap();
}
