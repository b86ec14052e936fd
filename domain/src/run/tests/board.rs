use super::*;

fn line(kind: EntryKind, id: Option<&str>, text: &str) -> NewEntry {
    NewEntry {
        kind,
        id: id.map(str::to_owned),
        text: text.into(),
        path: None,
        artifact_type: None,
        step_id: None,
        source_event_id: None,
        ts_ms: None,
    }
}

fn artifact(id: &str) -> NewEntry {
    let (path, artifact_type) = (Some("out/a.md".into()), Some("report".into()));
    NewEntry { path, artifact_type, ..line(EntryKind::Artifact, Some(id), "") }
}

fn add(bench: &mut Bench, new: NewEntry) -> Entry {
    let Reply::Entry(entry) = bench.does(Command::Patch(Patch::Add(new))) else { panic!("an entry is answered") };
    *entry
}

fn edit(kind: EntryKind, id: &str, text: &str) -> Command {
    Command::Patch(Patch::Edit { kind, id: id.into(), text: text.into() })
}

fn resolve(kind: EntryKind, id: &str, resolution: Option<&str>) -> Command {
    Command::Patch(Patch::Resolve { kind, id: id.into(), resolution: resolution.map(str::to_owned) })
}

#[test]
fn what_is_added_once_is_there_once() {
    let mut bench = Bench::new();
    let kinds = [EntryKind::Fact, EntryKind::Decision, EntryKind::OpenQuestion];
    for kind in kinds {
        let ts_ms = Some(7);
        add(&mut bench, NewEntry { ts_ms, step_id: Some("s".into()), ..line(kind, None, "it is so") });
    }
    add(&mut bench, artifact("art"));
    // Live, as its log makes it, and as it is kept.
    let kept = RunState::of(bench.kept()).unwrap();
    for state in [&bench.state, &bench.replayed, &kept] {
        let there: Vec<_> = state.entries().map(|entry| (entry.kind, &*entry.text, entry.ts_ms)).collect();
        assert_eq!(there[..3], kinds.map(|kind| (kind, "it is so", Some(7))));
        assert_eq!((there.len(), there[3].0), (4, EntryKind::Artifact));
    }
    assert_eq!(bench.names()[1..4], ["context.blackboard.patched"; 3]);
    assert_eq!(bench.names()[4], "context.artifact.added");
}

#[test]
fn a_line_is_changed_under_its_own_name() {
    let mut bench = Bench::new();
    let first = add(&mut bench, line(EntryKind::Fact, Some("f"), "it is so"));
    bench.pass(5);
    let Reply::Entry(edited) = bench.does(edit(EntryKind::Fact, "f", "it is not so")) else { panic!() };
    assert_eq!((&*edited.text, edited.seq, edited.created_at), ("it is not so", first.seq, first.created_at));
    assert_eq!(edited.updated_at, bench.now);
    let Reply::Entry(resolved) = bench.does(resolve(EntryKind::Fact, "f", Some("checked"))) else { panic!() };
    assert_eq!((resolved.resolved, resolved.resolution.as_deref()), (true, Some("checked")));
    assert_eq!(bench.state.entries().count(), 1);
    // It is so already.
    let records = bench.log.len();
    bench.does(resolve(EntryKind::Fact, "f", Some("checked")));
    assert_eq!(bench.log.len(), records);
}

#[test]
fn a_line_is_found_by_its_kind_and_its_name() {
    let mut bench = Bench::new();
    add(&mut bench, line(EntryKind::Fact, Some("f"), "it is so"));
    assert_eq!(bench.refused(edit(EntryKind::Decision, "f", "x")), Refused::NoEntry);
    assert_eq!(bench.refused(edit(EntryKind::Fact, "g", "x")), Refused::NoEntry);
    assert_eq!(bench.refused(resolve(EntryKind::OpenQuestion, "f", None)), Refused::NoEntry);
    let again = Command::Patch(Patch::Add(line(EntryKind::Decision, Some("f"), "x")));
    assert_eq!(bench.refused(again), Refused::EntryExists { id: "f".into() });
}

#[test]
fn an_artifact_is_added_and_stays_as_it_is() {
    let mut bench = Bench::new();
    add(&mut bench, artifact("a"));
    assert!(matches!(bench.refused(edit(EntryKind::Artifact, "a", "x")), Refused::Invalid { .. }));
    assert!(matches!(bench.refused(resolve(EntryKind::Artifact, "a", None)), Refused::Invalid { .. }));
}

#[test]
fn a_line_is_checked_before_it_is_saved() {
    let mut bench = Bench::new();
    let fact = |text: &str| line(EntryKind::Fact, None, text);
    let bad = [
        fact(""),
        fact(" \n"),
        fact(&"x".repeat(limits::TEXT_BYTES + 1)),
        NewEntry { id: Some("a b".into()), ..fact("x") },
        NewEntry { path: Some("p".into()), ..fact("x") },
        NewEntry { artifact_type: Some("p".into()), ..fact("x") },
        NewEntry { step_id: Some(String::new()), ..fact("x") },
        NewEntry { source_event_id: Some("x".repeat(129)), ..fact("x") },
        NewEntry { path: None, ..artifact("a") },
        NewEntry { artifact_type: Some(" ".into()), ..artifact("a") },
    ];
    for new in bad {
        let why = bench.refused(Command::Patch(Patch::Add(new.clone())));
        assert!(matches!(why, Refused::Invalid { .. } | Refused::TooLarge { .. }), "{new:?}");
    }
    add(&mut bench, line(EntryKind::Fact, Some("f"), "x"));
    assert!(matches!(bench.refused(edit(EntryKind::Fact, "f", " ")), Refused::Invalid { .. }));
    let long = "x".repeat(limits::TEXT_BYTES + 1);
    assert!(matches!(bench.refused(resolve(EntryKind::Fact, "f", Some(&long))), Refused::TooLarge { .. }));
    assert_eq!(bench.log.len(), 2);
}

#[test]
fn a_blackboard_holds_so_many_lines() {
    let mut bench = Bench::new();
    let cx = Cx { now: NOW, ids: &bench.ids };
    let add = Request::from(Command::Patch(Patch::Add(line(EntryKind::Fact, None, "x"))));
    for _ in 0..limits::ENTRIES {
        bench.state.step(add.clone(), cx).unwrap();
    }
    let full = Refused::Full { what: "lines on its blackboard", limit: limits::ENTRIES };
    assert_eq!(bench.state.step(add, cx).unwrap_err(), full);
}

#[test]
fn the_two_summaries_are_set_each_for_itself() {
    let mut bench = Bench::new();
    let set = |pack, text: &str| Command::Patch(Patch::Summarise { pack, text: text.into() });
    bench.does(set(false, "so far"));
    bench.does(set(true, "the pack"));
    bench.does(set(false, "later"));
    let Summaries { rolling, latest_context_pack } = bench.kept().summaries;
    assert_eq!((&*rolling, &*latest_context_pack), ("later", "the pack"));
    let long = set(true, &"x".repeat(limits::SUMMARY_BYTES + 1));
    assert!(matches!(bench.refused(long), Refused::TooLarge { .. }));
}
