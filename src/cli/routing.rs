//! `raddle routing`: which model answers which intent.

use clap::{Args, Subcommand};
use raddle_actors::RoutingRule;

use super::{Failure, Remote, plain, say, say_json};

/// What to do with the routing rules.
#[derive(Debug, Args)]
pub struct Routing {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the rules
    Ls {
        #[command(flatten)]
        remote: Remote,
    },
    /// Replace all rules by these
    Set {
        /// What a turn is for, and the model that answers it
        #[arg(value_name = "INTENT=MODEL", value_parser = rule, required_unless_present = "none", conflicts_with = "none")]
        rules: Vec<RoutingRule>,
        /// By no rule at all
        #[arg(long)]
        none: bool,
        #[command(flatten)]
        remote: Remote,
    },
}

/// A model's name holds no `=`; an intent may.
fn rule(text: &str) -> Result<RoutingRule, String> {
    let (intent, model) = text.rsplit_once('=').ok_or("must be an intent, `=` and a model")?;
    Ok(RoutingRule { intent: intent.to_owned(), model: model.to_owned() })
}

impl Routing {
    pub async fn run(self) -> Result<(), Failure> {
        let (rules, remote) = match self.verb {
            Verb::Ls { remote } => (remote.client()?.routing_rules().await?, remote),
            Verb::Set { rules, none: _, remote } => (remote.client()?.set_routing_rules(rules).await?, remote),
        };
        if remote.json {
            return say_json(&rules);
        }
        let width = rules.iter().map(|rule| plain(&rule.intent).chars().count()).max().unwrap_or(0);
        rules.iter().try_for_each(|rule| say(&format!("{:<width$}  {}", plain(&rule.intent), plain(&rule.model))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_parted_at_the_last_sign() {
        let parted = |text| rule(text).map(|rule| (rule.intent, rule.model));
        assert_eq!(parted("code=openai/gpt"), Ok(("code".into(), "openai/gpt".into())));
        assert_eq!(parted("a=b=m"), Ok(("a=b".into(), "m".into())));
        assert!(parted("code").is_err());
    }
}
