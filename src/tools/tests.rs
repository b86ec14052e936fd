use raddle_domain::{ports::Silence, record::Permit};
use serde_json::json;

use super::{
    bench::{invocation, scene, settings},
    *,
};

/// A tool that says what it was asked, or panics.
struct Fake {
    name: &'static str,
    schema: Value,
    words: Option<&'static [&'static str]>,
}

impl Fake {
    fn named(name: &'static str) -> Self {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": false});
        Self { name, schema, words: None }
    }
}

impl Tool for Fake {
    fn spec(&self) -> ToolSpec {
        ToolSpec { name: self.name.to_owned(), description: "a fake".to_owned(), schema: self.schema.clone() }
    }
    fn class(&self) -> EffectClass {
        EffectClass::Once
    }
    fn gate(&self) -> Gate {
        Gate::FullAccess
    }
    fn reason(&self, arguments: &Value) -> String {
        format!("n is {}", arguments["n"])
    }
    fn command(&self, _: &Value, _: Scene<'_>) -> Option<Command> {
        let words = self.words?;
        Some(Command {
            line: words.join(" "),
            cwd: Some("/srv".to_owned()),
            words: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        })
    }
    fn run(&self, invocation: Invocation, _: Arc<dyn Output>) -> ToolRun {
        assert!(invocation.arguments["n"] != 0, "broken before it began");
        Box::pin(async move {
            assert!(invocation.arguments["n"] != 1, "broken on the way");
            ToolEnd::Done(format!("attempt {}", invocation.attempt))
        })
    }
}

fn toolbox(tools: Vec<Fake>) -> Result<Toolbox, ToolboxError> {
    Toolbox::new(tools.into_iter().map(|tool| Arc::new(tool) as Arc<dyn Tool>), false)
}

fn judge(toolbox: &Toolbox, name: &str, arguments: &str, permits: &[(String, Permit)]) -> Judgement {
    let call = ToolCall { call_id: "c1".into(), name: name.into(), arguments: arguments.into() };
    let rules = TenantRules { permits: permits.to_vec(), ..TenantRules::default() };
    toolbox.judge(&call, scene(&settings()), &rules)
}

fn planned(toolbox: &Toolbox, name: &str, arguments: &str, permits: &[(String, Permit)]) -> Planned {
    match judge(toolbox, name, arguments, permits) {
        Judgement::Run(planned) => *planned,
        other => panic!("{other:?}"),
    }
}

fn names(toolbox: &Toolbox) -> Vec<String> {
    toolbox.specs(scene(&settings())).into_iter().map(|spec| spec.name.clone()).collect()
}

#[test]
fn a_call_that_fits_is_planned_as_its_tool_says() {
    let toolbox = toolbox(vec![Fake::named("other"), Fake::named("count")]).unwrap();
    let digest = arguments::digest(&json!({"n": 7})).unwrap();
    let expected = Planned {
        kind: ItemKind::ToolCall,
        class: EffectClass::Once,
        gate: Gate::FullAccess,
        arguments: json!({"n": 7}),
        arguments_sha256: digest.clone(),
        command: None,
        cwd: None,
        words: None,
        hosts: Vec::new(),
        reason: "n is 7".into(),
        amendment: Some(Permit {
            tool: "count".into(),
            arguments_sha256: Some(digest),
            command_prefix: None,
            host: None,
        }),
        asked_by: None,
        permitted_by: None,
    };
    assert_eq!(planned(&toolbox, "count", " {\"n\" : 7}", &[]), expected);
}

#[test]
fn an_unknown_name_is_unknown_and_bad_arguments_are_invalid() {
    let toolbox = toolbox(vec![Fake::named("count")]).unwrap();
    assert_eq!(judge(&toolbox, "Count", "{}", &[]), Judgement::Unknown);
    assert_eq!(judge(&toolbox, "", "{}", &[]), Judgement::Unknown);
    let invalid = Judgement::Invalid("at `/n`: the value is not of type \"integer\"".into());
    assert_eq!(judge(&toolbox, "count", "{\"n\": \"7\"}", &[]), invalid);
    let inexact = Judgement::Invalid("an integer is beyond ±9007199254740991; write it as a string".into());
    assert_eq!(judge(&toolbox, "count", "{\"n\": 9007199254740993}", &[]), inexact);
    assert!(matches!(judge(&toolbox, "count", "not json", &[]), Judgement::Invalid(_)));
}

#[test]
fn the_first_rule_that_covers_a_call_permits_it() {
    let toolbox = toolbox(vec![Fake::named("count")]).unwrap();
    let rule = |name: &str, tool: &str, n: u32| {
        let digest = arguments::digest(&json!({ "n": n })).unwrap();
        (
            name.to_owned(),
            Permit { tool: tool.to_owned(), arguments_sha256: Some(digest), command_prefix: None, host: None },
        )
    };
    let everything = Permit { tool: "count".into(), arguments_sha256: None, command_prefix: None, host: None };
    let permits = [
        ("too wide".to_owned(), everything),
        rule("another tool", "other", 7),
        rule("another call", "count", 8),
        rule("first", "count", 7),
        rule("second", "count", 7),
    ];
    let permitted_by = |arguments: &str| planned(&toolbox, "count", arguments, &permits).permitted_by;
    assert_eq!(permitted_by("{\"n\":7.0}").as_deref(), Some("first"));
    assert_eq!(permitted_by("{\"n\":8}").as_deref(), Some("another call"));
    assert_eq!(permitted_by("{\"n\":9}"), None);
}

#[test]
fn what_an_amendment_permits_is_the_call_it_was_proposed_for() {
    let toolbox = toolbox(vec![Fake::named("count")]).unwrap();
    let amendment = planned(&toolbox, "count", "{\"n\":7}", &[]).amendment.unwrap();
    let permits = [("rule".to_owned(), amendment)];
    assert_eq!(planned(&toolbox, "count", "{\"n\":7}", &permits).permitted_by.as_deref(), Some("rule"));
    assert_eq!(planned(&toolbox, "count", "{\"n\":8}", &permits).permitted_by, None);
}

#[test]
fn a_command_is_amended_by_its_program_and_subcommand_or_else_exactly() {
    let amendment = |words: &'static [&'static str]| {
        let toolbox = toolbox(vec![Fake { words: Some(words), ..Fake::named("exec") }]).unwrap();
        let planned = planned(&toolbox, "exec", "{}", &[]);
        assert_eq!(planned.command, Some(words.join(" ")));
        assert_eq!(planned.cwd.as_deref(), Some("/srv"));
        let amendment = planned.amendment.unwrap();
        assert_eq!(amendment.arguments_sha256.is_some(), amendment.command_prefix.is_none());
        amendment.command_prefix.map(|prefix| prefix.join(" "))
    };
    assert_eq!(amendment(&["git", "commit", "-m", "x"]).as_deref(), Some("git commit"));
    assert_eq!(amendment(&["cargo", "check"]).as_deref(), Some("cargo check"));
    for exactly in [&["ls"][..], &["bash", "-c", "rm x"], &["rm", "/etc/passwd"], &["cat", "a.txt"], &["echo", ""]] {
        assert_eq!(amendment(exactly), None, "{exactly:?}");
    }
}

#[test]
fn a_command_prefix_permits_what_begins_with_it() {
    let words: &[&str] = &["git", "commit", "-m", "x"];
    let toolbox = toolbox(vec![Fake { words: Some(words), ..Fake::named("exec") }]).unwrap();
    let permitted_by = |prefix: &[&str]| {
        let command_prefix = Some(prefix.iter().map(|word| (*word).to_owned()).collect());
        let permit = Permit { tool: "exec".into(), arguments_sha256: None, command_prefix, host: None };
        planned(&toolbox, "exec", "{}", &[("rule".to_owned(), permit)]).permitted_by
    };
    assert_eq!(permitted_by(&["git", "commit"]).as_deref(), Some("rule"));
    assert_eq!(permitted_by(&["git", "push"]), None);
    assert_eq!(permitted_by(&[]), None);
}

#[test]
fn a_question_is_known_also_where_it_is_not_offered() {
    let bare = toolbox(vec![]).unwrap();
    assert_eq!(names(&bare), Vec::<String>::new());
    let question = |question: &str, options: &[&str]| Judgement::Question {
        question: question.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    assert_eq!(judge(&bare, "ask_user", r#"{"question": "Who?"}"#, &[]), question("Who?", &[]));
    let both = r#"{"question": "Who?", "options": ["Ada", "Bo"]}"#;
    assert_eq!(judge(&bare, "ask_user", both, &[]), question("Who?", &["Ada", "Bo"]));
}

#[test]
fn a_question_is_bounded_and_not_blank() {
    let toolbox = toolbox(vec![]).unwrap();
    let invalid = |arguments: Value| match judge(&toolbox, "ask_user", &arguments.to_string(), &[]) {
        Judgement::Invalid(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(invalid(json!({})), "\"question\" is a required property");
    assert_eq!(invalid(json!({"question": " \n"})), "at `/question`: the value is blank");
    assert_eq!(invalid(json!({"question": "x", "options": ["a", "\t"]})), "at `/options/1`: the value is blank");
    assert!(invalid(json!({"question": "x".repeat(4_001)})).starts_with("at `/question`: "));
    assert!(invalid(json!({"question": "x", "options": vec!["a"; 21]})).starts_with("at `/options`: "));
    assert!(invalid(json!({"question": "x", "options": ["é".repeat(201)]})).starts_with("at `/options/0`: "));
    assert!(invalid(json!({"question": "x", "more": 1})).contains("'more'"));
}

#[test]
fn questions_are_offered_beside_any_tool_or_where_it_is_said() {
    assert_eq!(names(&toolbox(vec![Fake::named("b"), Fake::named("a")]).unwrap()), ["b", "a", "ask_user"]);
    assert_eq!(names(&Toolbox::new([], true).unwrap()), ["ask_user"]);
}

#[test]
fn tools_that_cannot_be_offered_are_refused_at_the_start() {
    let refused = |tools| toolbox(tools).err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(refused(vec![Fake::named("a"), Fake::named("a")]), "there are two tools named `a`");
    assert_eq!(refused(vec![Fake::named("ask_user")]), "there are two tools named `ask_user`");
    for name in ["", "a b", "a.b", "é"] {
        assert!(refused(vec![Fake::named(name)]).contains("is no name for a tool"), "{name}");
    }
    let schema = json!({"type": "number of things"});
    assert!(
        refused(vec![Fake { schema, ..Fake::named("a") }]).starts_with("the tool `a`: its schema cannot be used: ")
    );
}

#[tokio::test]
async fn a_run_ends_as_its_tool_says() {
    let toolbox = toolbox(vec![Fake::named("count")]).unwrap();
    assert_eq!(
        toolbox.run(invocation("count", 2, 2, json!({"n": 7})), Arc::new(Silence)).await,
        ToolEnd::Done("attempt 2".into())
    );
    let cannot_say = ToolEnd::Unknown("the tool cannot say what became of it".into());
    assert_eq!(toolbox.reconcile(invocation("count", 2, 1, json!({}))).await, cannot_say);
}

/// A source that has what it was last given, and expects one tool.
#[derive(Default)]
struct Changing {
    shelf: std::sync::Mutex<Arc<Shelf>>,
    expected: std::sync::Mutex<Option<tokio::sync::oneshot::Receiver<()>>>,
}

impl Changing {
    fn put(&self, names: &[&'static str]) {
        let tools = names.iter().map(|name| Arc::new(Fake::named(name)) as Arc<dyn Tool>);
        *self.shelf.lock().unwrap() = Arc::new(Shelf::new(tools).unwrap());
    }
}

impl Source for Changing {
    fn shelf(&self) -> Arc<Shelf> {
        self.shelf.lock().unwrap().clone()
    }
    fn expect(&self, tool: &str) -> Option<Waiting> {
        let coming = self.expected.lock().unwrap().take().filter(|_| tool == "late")?;
        Some(Box::pin(async { drop(coming.await) }))
    }
}

#[test]
fn tools_of_a_source_come_and_go_behind_those_that_stay() {
    let source = Arc::new(Changing::default());
    let toolbox = toolbox(vec![Fake::named("stays")]).unwrap().with(source.clone());
    assert_eq!(names(&toolbox), ["stays", "ask_user"]);
    source.put(&["comes", "stays"]);
    assert_eq!(names(&toolbox), ["stays", "comes", "ask_user"]);
    assert_eq!(planned(&toolbox, "comes", "{}", &[]).reason, "n is null");
    source.put(&[]);
    assert_eq!(judge(&toolbox, "comes", "{}", &[]), Judgement::Unknown);
    let alone = Toolbox::new([], false).unwrap().with(source.clone());
    assert_eq!(names(&alone), Vec::<String>::new());
    source.put(&["comes"]);
    assert_eq!(names(&alone), ["comes", "ask_user"]);
}

#[tokio::test]
async fn a_call_of_a_tool_that_is_on_its_way_waits_for_it() {
    for comes in [true, false] {
        let source = Arc::new(Changing::default());
        let (tell, coming) = tokio::sync::oneshot::channel();
        *source.expected.lock().unwrap() = Some(coming);
        let toolbox = toolbox(vec![]).unwrap().with(source.clone());
        let mut run = toolbox.run(invocation("late", 2, 1, json!({})), Arc::new(Silence));
        assert!((&mut run).now_or_never().is_none());
        source.put(if comes { &["late"] } else { &[] });
        tell.send(()).unwrap();
        let end = if comes { ToolEnd::Done("attempt 1".into()) } else { ToolEnd::Failed("unknown tool: late".into()) };
        assert_eq!(run.await, end);
    }
}

#[tokio::test]
async fn a_panic_is_an_unknown_outcome() {
    let toolbox = toolbox(vec![Fake::named("count")]).unwrap();
    for n in [0, 1] {
        let end = toolbox.run(invocation("count", 2, 1, json!({ "n": n })), Arc::new(Silence)).await;
        assert_eq!(end, ToolEnd::Unknown("the tool broke off; this is a defect".into()), "{n}");
    }
}

#[tokio::test]
async fn a_tool_that_is_gone_has_failed_only_if_it_was_never_started() {
    let toolbox = toolbox(vec![]).unwrap();
    let gone = ToolEnd::Unknown("the tool is no longer configured".into());
    assert_eq!(
        toolbox.run(invocation("count", 2, 1, json!({})), Arc::new(Silence)).await,
        ToolEnd::Failed("unknown tool: count".into())
    );
    assert_eq!(toolbox.run(invocation("count", 2, 2, json!({})), Arc::new(Silence)).await, gone);
    assert_eq!(toolbox.reconcile(invocation("count", 2, 1, json!({}))).await, gone);
}
