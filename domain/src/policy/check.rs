//! Whether a layer can be used: each rule says something, and keeps to its own examples.
//!
//! An example is a command line for a rule that names a command, otherwise a path, a host, or the name of a tool, by
//! the first of these that the rule names; the others are taken as met.

use std::collections::HashSet;

use super::{
    Action, Layer, Policy, Rule, Script, Words,
    programs::{distrusted, runs_others},
    rule::{self, Held, Place},
};

/// Rules of one layer: each is held against every call.
pub const MAX_RULES: usize = 200;
/// Bytes of a rule's texts, and of an example.
pub const MAX_TEXT: usize = 1024;
/// Words of a command's beginning, words to choose from, examples of a kind.
pub const MAX_LIST: usize = 64;

/// Why a layer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadRule {
    /// Which rule, from 0.
    pub at: usize,
    /// Its name, as people read it.
    pub rule: String,
    /// Which part of it: the name of a field.
    pub field: &'static str,
    /// A sentence about the rule, by its name.
    pub why: String,
    /// The example that it does not keep to.
    pub example: Option<String>,
}

/// Checks a layer. `read` reads a command line.
pub fn check(policy: &Policy, read: &dyn Fn(&str) -> Script) -> Result<(), BadRule> {
    let mut names = HashSet::new();
    for (at, rule) in policy.rules.iter().enumerate() {
        let named = Held::new(Layer::Tenant, at, rule).name();
        let bad = |(field, why, example)| BadRule {
            at,
            rule: named.clone(),
            field,
            why: format!("the rule `{named}`: {why}"),
            example,
        };
        if at >= MAX_RULES {
            return Err(bad(("rules", format!("there are more than {MAX_RULES} rules"), None)));
        }
        if let Some(name) = &rule.name
            && !names.insert(name)
        {
            return Err(bad(("name", "another rule has this name".to_owned(), None)));
        }
        shape(rule).map_err(|(field, why)| bad((field, why, None)))?;
        examples(rule, read).map_err(bad)?;
    }
    Ok(())
}

type Wrong = (&'static str, String);

/// Whether a rule says something that can be used.
fn shape(rule: &Rule) -> Result<(), Wrong> {
    let texts = [
        ("name", &rule.name),
        ("tool", &rule.tool),
        ("path", &rule.path),
        ("host", &rule.host),
        ("reason", &rule.reason),
    ];
    for (field, text) in texts {
        let Some(text) = text else { continue };
        if text.trim().is_empty() || text.len() > MAX_TEXT {
            return Err((field, format!("`{field}` is blank, or has more than {MAX_TEXT} bytes")));
        }
    }
    if rule.tool.is_none() && rule.command.is_none() && rule.path.is_none() && rule.host.is_none() {
        return Err(("tool", "it names neither `tool` nor `command` nor `path` nor `host`".to_owned()));
    }
    if let Some(command) = &rule.command {
        words(command, rule.action).map_err(|why| ("command", why))?;
    }
    if let Some(path) = &rule.path {
        rule::glob(path).map_err(|why| ("path", format!("`path` is not a glob: {why}")))?;
    }
    if let Some(host) = &rule.host {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let is_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.' | '_' | ':');
        if name.is_empty() || !name.chars().all(is_name) || name.starts_with('.') {
            return Err(("host", "`host` must be a host's name, or `*.` and one".to_owned()));
        }
    }
    for (field, examples) in [("match", &rule.matches), ("not_match", &rule.not_match)] {
        if examples.len() > MAX_LIST || examples.iter().any(|example| example.len() > MAX_TEXT) {
            return Err((
                field,
                format!("`{field}` has more than {MAX_LIST} examples, or one of more than {MAX_TEXT} bytes"),
            ));
        }
    }
    Ok(())
}

fn words(command: &[Words], action: Action) -> Result<(), String> {
    if command.is_empty() || command.len() > MAX_LIST {
        return Err(format!("`command` must have 1 to {MAX_LIST} words"));
    }
    for wanted in command {
        let choice = match wanted {
            Words::One(word) => std::slice::from_ref(word),
            Words::AnyOf(words) => words,
        };
        let is_word = |word: &String| !word.trim().is_empty() && word.len() <= MAX_TEXT;
        if choice.is_empty() || choice.len() > MAX_LIST || !choice.iter().all(is_word) {
            return Err("`command` has a blank word, or an empty list to choose from".to_owned());
        }
        // One word, not a line: a rule for `git push` that is one word would match nothing.
        if let Some(several) = choice.iter().find(|word| word.contains(char::is_whitespace)) {
            return Err(format!("`command` has `{several}`, which is more than one word: write [\"git\", \"push\"]"));
        }
    }
    let programs = match &command[0] {
        Words::One(word) => std::slice::from_ref(word),
        Words::AnyOf(words) => words,
    };
    match programs.iter().find(|program| action == Action::Allow && runs_others(program)) {
        Some(program) => {
            Err(format!("it allows `{program}`, which runs whatever its arguments name, and is never trusted"))
        }
        None => Ok(()),
    }
}

type Broken = (&'static str, String, Option<String>);

fn examples(rule: &Rule, read: &dyn Fn(&str) -> Script) -> Result<(), Broken> {
    for (field, examples, expected) in [("match", &rule.matches, true), ("not_match", &rule.not_match, false)] {
        for example in examples {
            if covers(rule, example, read) != expected {
                let does = if expected { "does not cover" } else { "covers" };
                let why = format!("it {does} its `{field}` example `{example}`");
                return Err((field, why, Some(example.clone())));
            }
        }
    }
    Ok(())
}

/// Whether a rule covers an example.
pub fn covers(rule: &Rule, example: &str, read: &dyn Fn(&str) -> Script) -> bool {
    let held = Held::new(Layer::Tenant, 0, rule);
    if rule.command.is_some() {
        let script = read(example);
        let is_covered = |words: &Vec<String>| held.covers_command(words) == Some(true);
        return match (held.denies_or_asks(), &script.commands) {
            (true, _) => script.suspects.iter().any(is_covered),
            (false, Ok(commands)) => commands.iter().all(|words| is_covered(words) && distrusted(words).is_none()),
            (false, Err(_)) => false,
        };
    }
    held.covers_path(&Place::new(example, None))
        .or_else(|| held.covers_host(example))
        .unwrap_or_else(|| rule.tool.as_deref() == Some(example))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words parted by spaces.
    fn read(line: &str) -> Script {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Script { commands: Ok(vec![words.clone()]), suspects: vec![words], unread: None }
    }

    fn rule(json: serde_json::Value) -> Rule {
        serde_json::from_value(json).unwrap()
    }

    fn checked(rules: &[serde_json::Value]) -> Result<(), BadRule> {
        let rules = rules.iter().cloned().map(rule).collect();
        check(&Policy { rules, ..Policy::default() }, &read)
    }

    #[test]
    fn a_rule_keeps_to_its_examples_or_is_refused_by_name() {
        use serde_json::json;
        let good = json!({"name": "pushes", "command": ["git", ["push", "pull"]], "action": "deny",
            "match": ["git push", "/usr/bin/git -c a=b pull"], "not_match": ["git stash"]});
        assert_eq!(checked(std::slice::from_ref(&good)), Ok(()));
        let bad =
            checked(&[good, json!({"name": "x", "command": ["ls"], "action": "allow", "match": ["ls a", "lsof"]})]);
        let bad = bad.unwrap_err();
        assert_eq!((bad.at, bad.field, bad.example.as_deref()), (1, "match", Some("lsof")));
        assert_eq!(bad.to_string(), "the rule `x`: it does not cover its `match` example `lsof`");
        let bad = checked(&[json!({"path": "src/**", "action": "allow", "not_match": ["src/a"]})]).unwrap_err();
        assert_eq!(bad.to_string(), "the rule `rules[0]`: it covers its `not_match` example `src/a`");
        let paths =
            json!({"tool": "t", "path": "src/**", "action": "allow", "match": ["src/a"], "not_match": ["src/../a"]});
        let hosts = json!({"host": "*.b.c", "action": "allow", "match": ["a.b.c"], "not_match": ["b.c"]});
        let tools = json!({"tool": "t", "action": "deny", "match": ["t"], "not_match": ["u"]});
        assert_eq!(checked(&[paths, hosts, tools]), Ok(()));
    }

    #[test]
    fn a_rule_that_says_nothing_or_could_never_be_used_is_refused() {
        use serde_json::json;
        for (rule, field) in [
            (json!({"action": "deny"}), "tool"),
            (json!({"action": "deny", "name": "x"}), "tool"),
            (json!({"action": "deny", "tool": " "}), "tool"),
            (json!({"action": "deny", "command": []}), "command"),
            (json!({"action": "deny", "command": [[]]}), "command"),
            (json!({"action": "deny", "command": ["git push"]}), "command"),
            (json!({"action": "allow", "command": [["ls", "sudo"]]}), "command"),
            (json!({"action": "allow", "command": ["/bin/bash", "x"]}), "command"),
            (json!({"action": "allow", "path": "["}), "path"),
            (json!({"action": "allow", "host": "https://a.b"}), "host"),
            (json!({"action": "allow", "host": "*."}), "host"),
            (json!({"action": "allow", "host": "a.*.b"}), "host"),
            (json!({"action": "allow", "tool": "x".repeat(1025)}), "tool"),
        ] {
            assert_eq!(checked(std::slice::from_ref(&rule)).unwrap_err().field, field, "{rule}");
        }
        let twice = json!({"name": "a", "tool": "t", "action": "deny"});
        assert_eq!(checked(&[twice.clone(), twice]).unwrap_err().field, "name");
        let many: Vec<_> = (0..=MAX_RULES).map(|_| json!({"tool": "t", "action": "deny"})).collect();
        assert_eq!((checked(&many[1..]), checked(&many).unwrap_err().field), (Ok(()), "rules"));
    }
}
