//! The policy of an installation as a file:
//!
//! ```toml
//! ask = "untrusted"                       # or "on_failure", "on_request", "never"
//! sandbox = "workspace-write"             # or "read-only", "danger-full-access"
//!
//! [[rules]]
//! name = "reviewed first"
//! tool = "exec_shell"                     # any tool unless given
//! command = ["git", ["push", "tag"]]      # words; a list is a choice
//! action = "ask"                          # or "allow", "deny"
//! reason = "the branch is protected"
//! match = ["git push", "git -C x push"]   # examples: checked whenever the file is read
//! not_match = ["git stash"]
//!
//! [[rules]]
//! path = "src/**"                         # a glob over every path of a call
//! action = "allow"
//! ```
//!
//! Pure: a text in, a [`Policy`] or a sentence out; the sentence names the line, the rule and the example.

use raddle_domain::policy::{AskMode, Policy, Rule, SandboxMode};
use serde::Deserialize;
use toml::Spanned;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", line.map(|line| format!("line {line}: ")).unwrap_or_default())]
pub struct BadPolicy {
    pub line: Option<usize>,
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    ask: Option<AskMode>,
    sandbox: Option<SandboxMode>,
    #[serde(default)]
    rules: Vec<Spanned<Rule>>,
}

/// Reads a file, and holds its rules against their examples.
pub fn parse(text: &str) -> Result<Policy, BadPolicy> {
    let line = |at: usize| 1 + text.get(..at).unwrap_or_default().matches('\n').count();
    let file: File = toml::from_str(text)
        .map_err(|err| BadPolicy { line: err.span().map(|span| line(span.start)), why: err.message().to_owned() })?;
    let starts: Vec<usize> = file.rules.iter().map(|rule| rule.span().start).collect();
    let rules = file.rules.into_iter().map(Spanned::into_inner).collect();
    let policy = Policy { ask: file.ask, sandbox: file.sandbox, rules };
    super::check(&policy)
        .map_err(|bad| BadPolicy { line: starts.get(bad.at).map(|at| line(*at)), why: bad.to_string() })?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use raddle_domain::policy::Action;

    use super::*;

    #[test]
    fn a_file_is_a_layer() {
        let policy = parse(
            "ask = \"untrusted\"\nsandbox = \"read-only\"\n[[rules]]\nname = \"x\"\ncommand = [\"git\", [\"push\", \"tag\"]]\n\
             action = \"ask\"\nmatch = [\"sudo git -C x push\"]\nnot_match = [\"git stash\"]\n[[rules]]\npath = \"a/**\"\naction = \"allow\"",
        );
        let policy = policy.unwrap();
        assert_eq!((policy.ask, policy.sandbox), (Some(AskMode::Untrusted), Some(SandboxMode::ReadOnly)));
        assert_eq!(policy.rules.iter().map(|rule| rule.action).collect::<Vec<_>>(), [Action::Ask, Action::Allow]);
        assert_eq!(parse("").unwrap(), Policy::default());
    }

    #[test]
    fn a_mistake_names_its_line_and_the_rule_with_its_example() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        let rule = "ask = \"never\"\n\n[[rules]]\nname = \"looks\"\ncommand = [\"ls\"]\naction = \"allow\"\n";
        assert_eq!(parse(rule).unwrap().rules.len(), 1);
        assert_eq!(
            refused(&format!("{rule}match = [\"ls -l\", \"ls > x\"]")),
            "line 3: the rule `looks`: it does not cover its `match` example `ls > x`"
        );
        assert!(refused(&format!("{rule}not_match = [\"ls\"]")).ends_with("it covers its `not_match` example `ls`"));
        assert!(refused(&format!("{rule}acton = \"deny\"")).contains("acton"));
        for (text, line) in
            [("ask = \"sometimes\"", "line 1"), ("\nrule = []", "line 2"), ("\n\n[[rules]]\nhost = \"a\"", "line 3")]
        {
            assert!(refused(text).starts_with(line), "{}", refused(text));
        }
        assert_eq!(
            refused("[[rules]]\naction = \"deny\"\n"),
            "line 1: the rule `rules[0]`: it names neither `tool` nor `command` nor `path` nor `host`"
        );
    }
}
