use serde_json::json;

use super::*;
use crate::policy::Opaque;

/// The call of a case, in words.
#[derive(Clone)]
struct Case {
    tool: &'static str,
    class: EffectClass,
    gate: Gate,
    full_access: bool,
    outside: bool,
    paths: Vec<String>,
    hosts: Vec<String>,
    script: Option<Script>,
}

fn call() -> Case {
    let (paths, hosts) = (Vec::new(), Vec::new());
    Case {
        tool: "tool",
        class: EffectClass::Once,
        gate: Gate::Ask,
        full_access: false,
        outside: false,
        paths,
        hosts,
        script: None,
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// Commands joined by ` && `, or with a `$` a text that may run them.
fn shell(line: &str) -> Case {
    let all: Vec<_> = line.split(" && ").map(words).collect();
    let commands = if line.contains('$') { Err(Opaque::Expansion) } else { Ok(all.clone()) };
    Case { tool: "exec_shell", script: Some(Script { commands, suspects: all, unread: None }), ..call() }
}

fn paths(paths: &[&str]) -> Case {
    Case { paths: paths.iter().map(|path| (*path).to_owned()).collect(), ..call() }
}

fn hosts(hosts: &[&str]) -> Case {
    Case { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..call() }
}

fn policy(json: serde_json::Value) -> Policy {
    serde_json::from_value(json).unwrap()
}

fn decided(case: &Case, policies: &[(Layer, Policy)], permits: &[(String, Permit)]) -> Decided {
    let subject = Subject {
        tool: case.tool,
        class: case.class,
        gate: case.gate,
        full_access: case.full_access,
        outside: case.outside,
        arguments_sha256: "d1",
        paths: &case.paths,
        hosts: &case.hosts,
        root: Some("/w"),
        script: case.script.as_ref(),
    };
    let layers = Layers { policies: policies.iter().map(|(layer, policy)| (*layer, policy)).collect(), permits };
    decide(&subject, &layers)
}

/// Of one layer.
fn by(case: &Case, rules: serde_json::Value) -> Action {
    decided(case, &[(Layer::Tenant, policy(rules))], &[]).action
}

use Action::{Allow, Ask, Deny};

/// The seven cases of the contract that fixes who is heard first.
#[test]
fn authorization_order_contract() {
    let deny = || json!({"rules": [{"name": "d", "command": ["git", "push"], "action": "deny"}]});
    let allow = || json!({"rules": [{"name": "a", "command": ["git", "push"], "action": "allow"}]});
    let ask = || json!({"rules": [{"name": "q", "command": ["git", "push"], "action": "ask"}]});
    let with = |mode: &str, mut rules: serde_json::Value| {
        rules["ask"] = json!(mode);
        rules
    };
    let permit = (
        "p".to_owned(),
        Permit { arguments_sha256: Some("d1".into()), tool: "exec_shell".into(), ..Permit::default() },
    );
    type Row = (&'static str, Vec<serde_json::Value>, bool, Action, Option<&'static str>, bool);
    let rows: Vec<Row> = vec![
        // what, layers (strongest first), with a permit, decision, by, in person
        (
            "1 a denial in any layer, whatever others allow",
            vec![allow(), deny(), allow()],
            true,
            Deny,
            Some("d"),
            false,
        ),
        ("2 a denial before a question", vec![ask(), deny()], true, Deny, Some("d"), false),
        ("3 a question before any allowance", vec![allow(), ask()], true, Ask, Some("q"), true),
        (
            "4 a question is a denial where nobody may be asked",
            vec![with("never", ask())],
            true,
            Deny,
            Some("q"),
            false,
        ),
        ("5 an allowance before the mode", vec![with("never", allow())], false, Allow, Some("a"), false),
        ("5b so is a permit", vec![with("untrusted", json!({}))], true, Allow, Some("p"), false),
        ("6 what nobody allowed is asked", vec![with("untrusted", json!({}))], false, Ask, None, false),
        ("6b or denied, where nobody may be asked", vec![with("never", json!({}))], false, Deny, None, false),
        ("6c or runs, where it stays in the sandbox", vec![with("on_failure", json!({}))], false, Allow, None, false),
        ("7 the mode that asks always, before any allowance", vec![with("on_request", allow())], true, Ask, None, true),
        ("7b after denials", vec![with("on_request", deny())], true, Deny, Some("d"), false),
    ];
    for (what, layers, with_permit, action, rule, in_person) in rows {
        let names = [Layer::Installation, Layer::Tenant, Layer::Thread];
        let layers: Vec<_> = names.into_iter().zip(layers.into_iter().map(policy)).collect();
        let permits = if with_permit { std::slice::from_ref(&permit) } else { &[] };
        let found = decided(&shell("git push"), &layers, permits);
        let as_expected = (found.action, found.rule.as_deref(), found.in_person);
        assert_eq!(as_expected, (action, rule, in_person), "{what}: {}", found.reason);
    }
}

#[test]
fn trusted_prefix_does_not_auto_approve_a_chained_command() {
    let rules = json!({"rules": [{"command": ["git", "status"], "action": "allow"}]});
    assert_eq!(by(&shell("git status -s"), rules.clone()), Allow);
    for line in ["git status && rm -rf x", "rm x && git status", "git status && git push", "git status $(rm x)"] {
        assert_eq!(by(&shell(line), rules.clone()), Ask, "{line}");
    }
    let both =
        json!({"rules": [{"command": ["git", "status"], "action": "allow"}, {"command": ["ls"], "action": "allow"}]});
    assert_eq!(by(&shell("git status && ls -l && git status"), both), Allow);
}

#[test]
fn a_chain_may_be_allowed_by_several_layers_and_permits_together() {
    let allow = |program: &str| policy(json!({"rules": [{"command": [program], "action": "allow"}]}));
    let layers = [(Layer::Installation, allow("ls")), (Layer::Thread, allow("wc"))];
    let permit = Permit { tool: "exec_shell".into(), command_prefix: Some(words("git log")), ..Permit::default() };
    let permits = [("p".to_owned(), permit)];
    assert_eq!(decided(&shell("ls && wc x && git log -n 1"), &layers, &permits).action, Allow);
    assert_eq!(decided(&shell("ls && wc x && git show"), &layers, &permits).action, Ask);
    assert_eq!(decided(&Case { tool: "other", ..shell("ls && git log") }, &layers, &permits).action, Ask);
}

#[test]
fn typed_deny_beats_ask_beats_allow() {
    let rule = |action: &str| json!({"tool": "tool", "path": "a/**", "action": action});
    let of = |actions: &[&str]| json!({"rules": actions.iter().map(|action| rule(action)).collect::<Vec<_>>()});
    for (actions, expected) in [
        (&["allow", "ask", "deny"][..], Deny),
        (&["deny", "allow"], Deny),
        (&["allow", "ask"], Ask),
        (&["allow"], Allow),
        (&[], Ask),
    ] {
        assert_eq!(by(&paths(&["a/x"]), of(actions)), expected, "{actions:?}");
    }
}

#[test]
fn a_rule_for_one_tool_concerns_no_other() {
    for (action, here) in [("deny", Deny), ("ask", Ask), ("allow", Allow)] {
        let rules = json!({"ask": "untrusted", "rules": [{"tool": "exec_shell", "command": ["ls"], "action": action}]});
        assert_eq!(by(&shell("ls"), rules.clone()), here);
        let elsewhere = decided(&Case { tool: "other_shell", ..shell("ls") }, &[(Layer::Tenant, policy(rules))], &[]);
        assert_eq!((elsewhere.action, elsewhere.rule, elsewhere.in_person), (Ask, None, false), "{action}");
    }
}

#[test]
fn every_path_must_be_allowed_and_any_may_be_denied() {
    let allow = json!({"rules": [{"path": "src/**", "action": "allow"}, {"path": "docs/*.md", "action": "allow"}]});
    assert_eq!(by(&paths(&["src/a", "docs/b.md", "./src/x/../c"]), allow.clone()), Allow);
    for outside in ["Cargo.toml", "src/../x", "../src/a", "/etc/passwd", "docs/x/y.md"] {
        assert_eq!(by(&paths(&["src/a", outside]), allow.clone()), Ask, "{outside}");
    }
    assert_eq!(by(&paths(&[]), allow), Ask, "a rule for paths says nothing of a call without one");
    let deny = json!({"ask": "on_failure", "rules": [{"path": "**/.env", "action": "deny"}]});
    for inside in ["a/.env", "./.env", "x/../.env", "/w/.env", "../w/.env"] {
        assert_eq!(by(&paths(&["src/a", inside]), deny.clone()), Deny, "{inside}");
    }
    assert_eq!(by(&paths(&["src/a"]), deny), Allow);
}

#[test]
fn every_host_must_be_allowed_and_any_may_be_denied() {
    let allow = json!({"rules": [{"host": "*.example.com", "action": "allow"}, {"host": "a.org", "action": "allow"}]});
    assert_eq!(by(&hosts(&["x.example.com", "A.org"]), allow.clone()), Allow);
    assert_eq!(by(&hosts(&["x.example.com", "b.org"]), allow.clone()), Ask);
    assert_eq!(by(&hosts(&["example.com"]), allow), Ask);
    let deny = json!({"rules": [{"tool": "tool", "action": "allow"}, {"host": "169.254.169.254", "action": "deny"}]});
    assert_eq!(by(&hosts(&["a.org", "169.254.169.254"]), deny.clone()), Deny);
    assert_eq!(by(&hosts(&["a.org"]), deny), Allow);
}

#[test]
fn a_rule_that_names_several_things_needs_all_of_them() {
    let both = |action: &str| json!({"rules": [{"command": ["cp"], "path": "src/**", "action": action}]});
    let copy = |path: &str| Case { paths: vec![path.to_owned()], ..shell("cp x y") };
    assert_eq!((by(&copy("src/a"), both("allow")), by(&copy("etc/a"), both("allow"))), (Allow, Ask));
    assert_eq!((by(&copy("src/a"), both("deny")), by(&copy("etc/a"), both("deny"))), (Deny, Ask));
    assert_eq!(by(&shell("cp x y"), both("deny")), Ask);
}

#[test]
fn the_strictest_mode_holds_and_never_only_turns_questions_into_denials() {
    let at = |case: &Case, modes: &[&str]| {
        let names = [Layer::Installation, Layer::Tenant, Layer::Thread];
        let layers: Vec<_> = names.into_iter().zip(modes.iter().map(|mode| policy(json!({"ask": mode})))).collect();
        decided(case, &layers, &[]).action
    };
    let reads = Case { class: EffectClass::Read, gate: Gate::Open, ..call() };
    let leaves = Case { full_access: true, ..call() };
    // mode, a call that acts, one that leaves the sandbox, one that only reads
    for (modes, acts, leaving, reading) in [
        (&[][..], Ask, Ask, Allow),
        (&["untrusted"], Ask, Ask, Allow),
        (&["on_failure"], Allow, Ask, Allow),
        (&["on_request"], Ask, Ask, Allow),
        (&["never"], Deny, Deny, Allow),
        (&["on_failure", "untrusted"], Ask, Ask, Allow),
        (&["on_request", "on_failure"], Ask, Ask, Allow),
        // What a layer may not do: loosen what another one says.
        (&["never", "on_failure"], Deny, Deny, Allow),
        (&["on_failure", "never"], Deny, Deny, Allow),
        (&["never", "on_request"], Deny, Deny, Allow),
    ] {
        let found = (at(&call(), modes), at(&leaves, modes), at(&reads, modes));
        assert_eq!(found, (acts, leaving, reading), "{modes:?}");
    }
    let outside = Case { outside: true, ..call() };
    assert_eq!((at(&outside, &["on_failure"]), at(&outside, &["untrusted"])), (Ask, Ask));
    let full = Case { gate: Gate::FullAccess, ..call() };
    assert_eq!((at(&full, &["on_failure"]), at(&hosts(&["a.b"]), &["on_failure"])), (Ask, Ask));
}

#[test]
fn under_never_what_is_allowed_runs_and_a_chain_is_judged_as_elsewhere() {
    let never = json!({"ask": "never", "rules": [{"command": ["ls"], "action": "allow"}]});
    assert_eq!(by(&shell("ls && ls -l"), never.clone()), Allow);
    assert_eq!(by(&shell("ls && rm x"), never), Deny);
}

#[test]
fn a_tool_that_needs_nobody_runs_unless_a_rule_speaks() {
    let reads = Case { class: EffectClass::Read, gate: Gate::Open, paths: vec![".env".into()], ..call() };
    for (action, expected) in [("deny", Deny), ("ask", Ask)] {
        let rules = json!({"rules": [{"path": ".env", "action": action}]});
        assert_eq!(by(&reads, rules), expected);
    }
    assert_eq!(by(&reads, json!({})), Allow);
    // One that does more than read is asked about where everything is.
    let acts = Case { class: EffectClass::Idempotent, ..reads.clone() };
    assert_eq!((by(&acts, json!({})), by(&acts, json!({"ask": "on_request"}))), (Allow, Ask));
}

#[test]
fn a_tool_that_wants_a_person_is_not_answered_by_a_rule() {
    let person = Case { gate: Gate::Person, ..call() };
    let allow = json!({"ask": "never", "rules": [{"tool": "tool", "action": "allow"}]});
    assert_eq!(by(&person, allow.clone()), Deny);
    assert_eq!(by(&person, json!({"rules": allow["rules"]})), Ask);
}

#[test]
fn leaving_the_sandbox_is_not_allowed_by_the_beginning_of_a_command() {
    let leaves = Case { full_access: true, ..shell("git fetch") };
    let rules = json!({"rules": [{"command": ["git", "fetch"], "action": "allow"}]});
    assert_eq!((by(&shell("git fetch"), rules.clone()), by(&leaves, rules)), (Allow, Ask));
    let permit = |permit: Permit| [("p".to_owned(), Permit { tool: "exec_shell".into(), ..permit })];
    let prefix = permit(Permit { command_prefix: Some(words("git fetch")), ..Permit::default() });
    let exactly = permit(Permit { arguments_sha256: Some("d1".into()), ..Permit::default() });
    assert_eq!((decided(&leaves, &[], &prefix).action, decided(&leaves, &[], &exactly).action), (Ask, Allow));
    assert_eq!(decided(&leaves, &[], &[]).amendment, Some(exactly[0].1.clone()));
    assert_eq!(by(&leaves, json!({"rules": [{"tool": "exec_shell", "action": "allow"}]})), Allow);
}

#[test]
fn what_runs_other_programs_is_allowed_by_no_beginning() {
    let rules = json!({"rules": [{"command": [["git", "find", "tar", "sudo", "env"]], "action": "allow"}]});
    for line in [
        "git -c core.pager=x log",
        "find . -exec sh x ;",
        "tar cf x y --checkpoint-action=exec=sh",
        "sudo ls",
        "env ls",
    ] {
        assert_eq!(by(&shell(line), rules.clone()), Ask, "{line}");
    }
    assert_eq!(by(&shell("find . -name x"), rules.clone()), Allow);
    let permits = [(
        "p".to_owned(),
        Permit { tool: "exec_shell".into(), command_prefix: Some(words("git log")), ..Permit::default() },
    )];
    assert_eq!(decided(&shell("git log --output=x"), &[], &permits).action, Ask);
}

#[test]
fn what_is_beyond_a_bound_is_never_allowed() {
    let beyond = |opaque, unread| {
        let script = Script { commands: Err(opaque), suspects: vec![words("ls")], unread };
        Case { script: Some(script), ..shell("ls") }
    };
    let allow = |mode: &str| json!({"ask": mode, "rules": [{"tool": "exec_shell", "action": "allow"}]});
    let found = |case: &Case, rules| decided(case, &[(Layer::Tenant, policy(rules))], &[]);
    for opaque in [Opaque::TooMany, Opaque::TooLong] {
        assert_eq!(found(&beyond(opaque, None), allow("untrusted")).action, Ask);
        assert_eq!(found(&beyond(opaque, None), allow("on_failure")).action, Ask);
        assert_eq!(found(&beyond(opaque, None), allow("never")).action, Deny);
    }
    // Where a denial may have been missed, nothing but a person's word will do.
    let unread = found(&beyond(Opaque::Substitution, Some("it nests too deeply")), allow("on_failure"));
    assert_eq!((unread.action, unread.in_person, unread.amendment), (Ask, true, None));
    // Of what is merely opaque, an allowance of the whole tool speaks.
    assert_eq!(found(&beyond(Opaque::Glob, None), allow("untrusted")).action, Allow);
}

#[test]
fn an_amendment_is_a_beginning_a_host_or_exactly_this_call() {
    let of = |case: &Case| decided(case, &[], &[]).amendment;
    let exactly =
        |tool: &str| Some(Permit { tool: tool.into(), arguments_sha256: Some("d1".into()), ..Permit::default() });
    let prefix = Permit { tool: "exec_shell".into(), command_prefix: Some(words("git push")), ..Permit::default() };
    assert_eq!(of(&shell("git push origin")), Some(prefix));
    for line in ["git", "rm -rf x", "sudo ls x", "git log --output=x", "git push && ls", "npm run"] {
        assert_eq!(of(&shell(line)), exactly("exec_shell"), "{line}");
    }
    assert_eq!(of(&shell("git push $x")), None, "of what only a shell can read, nothing");
    assert_eq!(of(&call()), exactly("tool"));
    assert_eq!(
        of(&hosts(&["a.b"])),
        Some(Permit { tool: "tool".into(), host: Some("a.b".into()), ..Permit::default() })
    );
    assert_eq!(of(&hosts(&["a.b", "c.d"])), exactly("tool"));
    let asked =
        decided(&call(), &[(Layer::Tenant, policy(json!({"rules": [{"tool": "tool", "action": "ask"}]})))], &[]);
    assert_eq!((asked.action, asked.amendment), (Ask, None));
}

#[test]
fn a_permit_for_a_host_covers_no_call_that_reaches_another() {
    let permits = [("p".to_owned(), Permit { tool: "tool".into(), host: Some("a.b".into()), ..Permit::default() })];
    let of = |reached: &[&str]| decided(&hosts(reached), &[], &permits).action;
    assert_eq!((of(&["a.b"]), of(&["a.b", "c.d"]), of(&["c.d"]), of(&[])), (Allow, Ask, Ask, Ask));
}

#[test]
fn the_steps_say_what_each_part_met() {
    let rules = json!({"rules": [
        {"name": "looks", "command": ["ls"], "action": "allow"},
        {"name": "no pushes", "command": ["git", "push"], "action": "deny", "reason": "reviewed first"},
    ]});
    let found = decided(&shell("ls -l && cp 'x && git push"), &[(Layer::Tenant, policy(rules))], &[]);
    assert_eq!((found.action, found.rule.as_deref(), found.layer), (Deny, Some("no pushes"), Some(Layer::Tenant)));
    assert_eq!(found.reason, "reviewed first");
    let steps: Vec<_> =
        found.steps.iter().map(|step| (step.part.as_str(), step.action, step.rule.as_deref())).collect();
    let expected = [
        ("ls -l", Some(Allow), Some("looks")),
        (r"cp ''\''x'", None, None),
        ("git push", Some(Deny), Some("no pushes")),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn a_rule_that_looks_at_nothing_allows_nothing() {
    assert_eq!(by(&call(), json!({"rules": [{"action": "allow"}]})), Ask);
    assert_eq!(by(&call(), json!({"rules": [{"action": "deny"}]})), Deny);
}
