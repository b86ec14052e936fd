//! What of a tree a tool passes over: a call that names a directory names no file in it, so rules about those are held
//! against what is met.

use super::{
    Policy,
    rule::{Held, Place},
};
use crate::policy::Layer;

/// Paths that a rule denies, or wants a person to be asked about by their names.
pub struct Withheld<'a>(Vec<Held<'a>>);

impl<'a> Withheld<'a> {
    /// By the rules of `policy`, as they concern the tool.
    pub fn new(tool: &str, policy: Option<&'a Policy>) -> Self {
        let rules = policy.map_or(&[][..], |policy| &policy.rules);
        let held = rules.iter().enumerate().map(|(at, rule)| Held::new(Layer::Thread, at, rule));
        let concerns = |held: &Held<'_>| {
            let rule = held.rule;
            let about_paths = rule.path.is_some() && rule.command.is_none() && rule.host.is_none();
            held.denies_or_asks() && about_paths && rule.tool.as_deref().is_none_or(|named| named == tool)
        };
        Self(held.filter(concerns).collect())
    }

    /// Whether a path, relative to the workspace, is one of them.
    pub fn covers(&self, path: &str) -> bool {
        let place = (!self.0.is_empty()).then(|| Place::new(path, None));
        place.is_some_and(|place| self.0.iter().any(|held| held.covers_path(&place) == Some(true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Action, Rule};

    fn rule(path: &str, action: Action) -> Rule {
        Rule {
            name: None,
            tool: None,
            command: None,
            path: Some(path.to_owned()),
            host: None,
            action,
            reason: None,
            matches: Vec::new(),
            not_match: Vec::new(),
        }
    }

    #[test]
    fn what_is_denied_or_asked_about_by_its_path_is_passed_over() {
        let for_another = Rule { tool: Some("read_file".to_owned()), ..rule("notes", Action::Deny) };
        let rules = vec![
            rule("secrets/**", Action::Deny),
            rule("**/.env", Action::Ask),
            rule("src/**", Action::Allow),
            for_another,
        ];
        let policy = Policy { rules, ..Policy::default() };
        let withheld = Withheld::new("grep", Some(&policy));
        for path in ["secrets", "secrets/key", ".env", "a/b/.env", "./secrets/x"] {
            assert!(withheld.covers(path), "{path}");
        }
        for path in ["src/main.rs", "notes", "env", "a/secrets"] {
            assert!(!withheld.covers(path), "{path}");
        }
        assert!(!Withheld::new("grep", None).covers("secrets/key"));
    }
}
