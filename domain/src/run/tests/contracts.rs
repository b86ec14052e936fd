use super::*;

fn of(task_type: &str, payload: Value) -> NewTask {
    NewTask { task_type: task_type.into(), payload, ..new_task("t") }
}

/// The type and the payload of a task that is made like this.
fn made(task_type: &str, payload: Value) -> (String, Value) {
    let task = Bench::new().create(vec![of(task_type, payload)]).remove(0);
    (task.task_type, task.payload)
}

fn refused(task_type: &str, payload: Value) -> Refused {
    Bench::new().refused(Command::CreateTasks(vec![of(task_type, payload)]))
}

#[test]
fn a_kind_that_does_not_write_says_so_and_asks_for_no_writing() {
    for kind in ["inspection", "research", "validation", "fix_proposal"] {
        let payload = json!({ "write_required": true, "k": 1 });
        let want = json!({ "task_kind": kind, "execution_mode": "strict_nonwriting", "k": 1 });
        assert_eq!(made(kind, payload), (kind.into(), want));
    }
}

#[test]
fn a_kind_is_known_by_the_payload_then_by_the_type_in_either_spelling() {
    let proposal = json!({ "task_kind": "fix_proposal", "execution_mode": "strict_nonwriting" });
    assert_eq!(made("fix-proposal", json!(null)), ("fix_proposal".into(), proposal.clone()));
    assert_eq!(made("anything", json!({ "task_kind": " fix-proposal " })), ("fix_proposal".into(), proposal));
    let research = json!({ "task_kind": "research", "execution_mode": "strict_nonwriting" });
    assert_eq!(made("validation", json!({ "task_kind": "research" })), ("research".into(), research.clone()));
    assert_eq!(made("research", json!({ "task_kind": "unheard of" })), ("research".into(), research));
}

#[test]
fn other_types_are_free() {
    let payload = json!({ "output_target": 3, "write_required": true });
    assert_eq!(made(" deploy it ", payload.clone()), ("deploy it".into(), payload));
    assert_eq!(made("deploy", json!(null)), ("deploy".into(), json!({})));
}

#[test]
fn an_implementation_says_where_it_writes_in_one_spelling() {
    for name in ["path", "file", "file_path", "target"] {
        let payload = json!({ "output_target": { name: " src/a.rs ", "type": "code", "mode": "edit", "more": 1 } });
        let target = json!({ "path": "src/a.rs", "kind": "code", "operation": "edit" });
        let want = json!({ "task_kind": "implementation", "execution_mode": "strict_write", "output_target": target });
        assert_eq!(made("implementation", payload), ("implementation".into(), want), "{name}");
    }
    let payload = json!({ "output_target": { "path": " ", "file": "b", "kind": "", "operation": "add" } });
    assert_eq!(made("implementation", payload).1["output_target"], json!({ "path": "b", "operation": "add" }));
}

#[test]
fn an_implementation_without_a_place_to_write_is_refused() {
    let targets =
        [json!(null), json!("a.rs"), json!({}), json!({ "path": "" }), json!({ "path": "  " }), json!({ "path": 1 })];
    for target in targets {
        let why = refused("implementation", json!({ "output_target": target }));
        assert_eq!(why, Refused::OutputTarget { task: "t".into() }, "{target}");
    }
    assert_eq!(refused("implementation", json!({})), Refused::OutputTarget { task: "t".into() });
}

#[test]
fn a_place_to_write_does_not_leave_the_workspace() {
    for path in ["/etc/passwd", "../a", "a/../../b", "..", "a\\..\\b", "\\\\host\\a", "a/..", "a\0b"] {
        let why = refused("implementation", json!({ "output_target": { "path": path } }));
        let Refused::Contract { task, field, .. } = why else { panic!("{path}: {why}") };
        assert_eq!((&*task, field), ("t", "payload.output_target.path"));
    }
    for path in ["a/.../b", "..a", "a..", "./a"] {
        made("implementation", json!({ "output_target": { "path": path } }));
    }
}

#[test]
fn a_payload_is_an_object_and_a_type_is_not_blank() {
    for payload in [json!([]), json!("x"), json!(1), json!(true)] {
        assert!(matches!(refused("build", payload), Refused::Contract { field: "payload", .. }));
    }
    for payload in [json!({}), json!({ "task_kind": "research" })] {
        assert!(matches!(refused(" ", payload), Refused::Contract { field: "task_type", .. }));
    }
    assert!(matches!(refused(&"x".repeat(129), json!({})), Refused::TooLarge { .. }));
    let large = json!({ "x": "x".repeat(limits::PAYLOAD_BYTES) });
    assert!(matches!(refused("build", large), Refused::TooLarge { .. }));
}

#[test]
fn a_batch_is_made_whole_or_not_at_all() {
    let mut bench = Bench::new();
    let tasks = vec![new_task("fine"), of("implementation", json!({}))];
    assert_eq!(bench.refused(Command::CreateTasks(tasks)), Refused::OutputTarget { task: "t".into() });
    assert_eq!(bench.state.task("fine"), None);
    assert!(matches!(bench.refused(Command::CreateTasks(Vec::new())), Refused::Invalid { .. }));
    let many = (0..=limits::BATCH).map(|n| new_task(&format!("t{n}"))).collect();
    assert!(matches!(bench.refused(Command::CreateTasks(many)), Refused::Invalid { .. }));
    assert_eq!(bench.log.len(), 1);
}

#[test]
fn a_name_is_given_once() {
    let mut bench = Bench::new();
    bench.create(vec![new_task("t")]);
    for tasks in [vec![new_task("t")], vec![new_task("u"), new_task("t")], vec![new_task("u"), new_task("u")]] {
        let id = tasks.last().unwrap().id.clone().unwrap();
        assert_eq!(bench.refused(Command::CreateTasks(tasks)), Refused::TaskExists { id });
    }
    // Whoever gives none gets one.
    let none = NewTask { id: None, ..new_task("") };
    let made = bench.create(vec![none.clone(), none]);
    assert!(made[0].id.starts_with("task-") && made[0].id != made[1].id);
}

#[test]
fn names_are_made_of_few_characters() {
    let mut bench = Bench::new();
    for id in ["", ".", "..", "a/b", "a b", "é", "a\n", "claim", &"x".repeat(129)] {
        assert!(matches!(bench.refused(Command::CreateTasks(vec![new_task(id)])), Refused::Invalid { .. }), "{id:?}");
    }
    let names = vec!["x".to_owned(); limits::NAMES + 1];
    let tasks = [
        NewTask { depends_on_task_ids: names.clone(), ..new_task("t") },
        NewTask { decision_ids: names.clone(), ..new_task("t") },
        NewTask { artifact_ids: names, ..new_task("t") },
        NewTask { decision_ids: vec![String::new()], ..new_task("t") },
        NewTask { workflow_id: Some("a\tb".into()), ..new_task("t") },
        NewTask { workflow_node_id: Some(" ".into()), ..new_task("t") },
    ];
    for task in tasks {
        assert!(matches!(bench.refused(Command::CreateTasks(vec![task])), Refused::Invalid { .. }));
    }
}

#[test]
fn nobody_waits_for_what_there_is_not() {
    let mut bench = Bench::new();
    let unknown = bench.refused(Command::CreateTasks(vec![after_tasks("t", &["nobody"])]));
    assert_eq!(unknown.to_string(), "`tasks[0].depends_on_task_ids` names the task `nobody`, which there is not");
    let orphan = NewTask { parent_task_id: Some("nobody".into()), ..new_task("t") };
    assert!(matches!(bench.refused(Command::CreateTasks(vec![orphan])), Refused::Invalid { .. }));
    let child = NewTask { parent_task_id: Some("parent".into()), ..new_task("t") };
    bench.create(vec![child, new_task("parent")]);
}

#[test]
fn nobody_waits_for_himself() {
    let circles: [&[(&str, &[&str])]; 4] = [
        &[("a", &["a"])],
        &[("a", &["b"]), ("b", &["a"])],
        &[("free", &[]), ("a", &["free", "c"]), ("b", &["a"]), ("c", &["b", "b"])],
        &[("waits", &["a"]), ("a", &["b"]), ("b", &["a"])],
    ];
    for circle in circles {
        let mut bench = Bench::new();
        let tasks = circle.iter().map(|(id, on)| after_tasks(id, on)).collect();
        let why = bench.refused(Command::CreateTasks(tasks)).to_string();
        assert!(why.contains("lead back to itself"), "{why}");
    }
    let mut bench = Bench::new();
    bench.create(vec![
        after_tasks("d", &["b", "c"]),
        after_tasks("b", &["a"]),
        after_tasks("c", &["a"]),
        new_task("a"),
    ]);
}

#[test]
fn the_worst_order_of_a_batch_costs_no_more_than_any() {
    // Each waits for the sixty-four that come after it, the next one last.
    let names: Vec<String> = (0..limits::BATCH).map(|n| format!("t{n}")).collect();
    let task = |at: usize| {
        let on = names[at + 1..].iter().take(limits::NAMES).rev().cloned();
        NewTask { depends_on_task_ids: on.collect(), ..new_task(&names[at]) }
    };
    let tasks: Vec<NewTask> = (0..names.len()).map(task).collect();
    let mut bench = Bench::new();
    bench.create(tasks);
    assert_eq!(bench.gets(claim("a")), names.last().cloned());
}

#[test]
fn a_run_holds_so_many_tasks() {
    let mut bench = Bench::new();
    let cx = Cx { now: NOW, ids: &bench.ids };
    let make = |state: &mut RunState, many: usize| {
        let task = NewTask { id: None, ..new_task("") };
        state.step(Command::CreateTasks(vec![task; many]).into(), cx).map(|_| ())
    };
    for _ in 0..limits::TASKS / limits::BATCH - 1 {
        make(&mut bench.state, limits::BATCH).unwrap();
    }
    make(&mut bench.state, limits::BATCH - 1).unwrap();
    let full = Err(Refused::Full { what: "tasks", limit: limits::TASKS });
    assert_eq!(make(&mut bench.state, 2), full);
    make(&mut bench.state, 1).unwrap();
    assert_eq!(make(&mut bench.state, 1), full);
}

#[test]
fn a_run_holds_so_many_bytes() {
    let mut bench = Bench::new();
    let lease_token = bench.bring("t", TaskStatus::InProgress);
    let state = &mut bench.state;
    state.bytes = limits::HELD_BYTES - 10_000;
    let cx = Cx { now: NOW, ids: &bench.ids };
    let text = || "x".repeat(10_000);
    let large = || NewTask { payload: json!({ "x": text() }), ..new_task("large") };
    let complete = |output: &str| {
        let (lease_token, output) = (lease_token.clone(), Some(json!(output)));
        Command::Transition(Transition { lease_token, output, ..transition("t", Action::Complete) })
    };
    let fact = |text: &str| {
        Command::Patch(Patch::Add(NewEntry {
            kind: EntryKind::Fact,
            id: Some("f".into()),
            text: text.into(),
            path: None,
            artifact_type: None,
            step_id: None,
            source_event_id: None,
            ts_ms: None,
        }))
    };
    let edit = |text: &str| Command::Patch(Patch::Edit { kind: EntryKind::Fact, id: "f".into(), text: text.into() });
    let full = Refused::Full { what: "bytes of tasks and blackboard", limit: limits::HELD_BYTES };
    // What there is room for is done.
    for (too_much, fine) in [
        (Command::CreateTasks(vec![large()]), Command::CreateTasks(vec![new_task("small")])),
        (fact(&text()), fact("x")),
        (edit(&text()), edit("y")),
        (complete(&text()), complete("z")),
    ] {
        assert_eq!(state.step(too_much.into(), cx).unwrap_err(), full);
        state.step(fine.into(), cx).unwrap();
    }
    assert!(state.held_bytes() > limits::HELD_BYTES - 10_000);
}
