//! Routing rules: which model answers a turn that names what it is for, and no model.
//!
//! A tenant has one list. It is replaced as a whole, in one write; the first rule of an intent would be the only one,
//! so a list with two is refused. A model is kept as it was named and looked up whenever it is used, so a rule
//! follows the configuration as a thread's start does.

use std::collections::HashSet;

use raddle_domain::tenant::Attribution;
use raddle_domain::{
    command::{Refused, StartTurn},
    id::TenantId,
    ports::{Corrupt, Document, DocumentKind, Models, StoreError, UnknownModel, Write},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::admin::Deed;
use crate::handle::{Error, Runtime, append_error};

/// Rules of one tenant: they are read, all of them, at every start that names an intent.
pub const MAX_RULES: usize = 200;
/// Bytes of an intent, and of a model's name.
pub const MAX_RULE_BYTES: usize = 256;

/// Turns for `intent` are answered by `model`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingRule {
    /// Compared without regard to case and to space around it.
    pub intent: String,
    /// A model's name, as a start may give it.
    pub model: String,
}

/// Why a list of rules was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RulesError {
    /// `field` says where, such as `rules[3].model`.
    #[error("`{field}` {why}")]
    Invalid { field: String, why: String },
    #[error(transparent)]
    Failed(#[from] Error),
}

impl Runtime {
    /// The tenant's rules, in their order.
    pub async fn routing_rules(&self, tenant: TenantId) -> Result<Vec<RoutingRule>, Error> {
        let read = move |view: &dyn raddle_domain::ports::View| {
            view.documents(tenant, DocumentKind::RoutingRule)?.iter().map(|document| rule(tenant, document)).collect()
        };
        self.read_of(tenant, read).await
    }

    /// Replaces the tenant's rules by these, or leaves them as they are.
    pub async fn set_routing_rules(
        &self,
        tenant: TenantId,
        rules: Vec<RoutingRule>,
        by: Option<&Attribution>,
    ) -> Result<(), RulesError> {
        check(&rules, &**self.models())?;
        let documents = documents(&rules).map_err(|why| Error::Internal(why.to_string()))?;
        let deed = Deed::new("routing_rules.replaced", tenant).with("rules", json!(rules));
        let write = Write::Documents { tenant, kind: DocumentKind::RoutingRule, documents };
        Ok(self.accounted(tenant, deed, by, write).await?)
    }

    /// Makes a write that is no thread's.
    pub(crate) async fn write(&self, write: Write) -> Result<(), Error> {
        let place = self.admit(crate::store::tenant(&write))?;
        let saved = self.shared().store_handle.append(write);
        // In a task of its own: the place is taken until the store has answered, whoever still waits.
        let saved = self.shared().tasks.spawn(async move {
            let saved = saved.await;
            drop(place);
            saved
        });
        match saved.await {
            Ok(saved) => saved.map_err(append_error),
            Err(why) if why.is_cancelled() => Err(Error::Draining),
            Err(why) => Err(Error::Internal(why.to_string())),
        }
    }

    /// The start with its model chosen by the tenant's routing rules, where it names an intent and no model. The
    /// intent stays in it, also where no rule is for it and the thread's own model answers.
    pub(crate) async fn routed(&self, tenant: TenantId, mut start: StartTurn) -> Result<StartTurn, Error> {
        let overrides = &mut start.overrides;
        // Most starts name no intent: they must not pay for a read.
        let (Some(intent), None) = (&overrides.route_intent, &overrides.choice) else { return Ok(start) };
        let rules = self.routing_rules(tenant).await?;
        if let Some(rule) = find(&rules, intent) {
            // The configuration may have changed since the rule was made. To go on with another model, at another
            // price, is not for us to decide.
            let choice = self.models().resolve(None, Some(&rule.model)).map_err(|UnknownModel(why)| {
                let why = format!("is routed to a model that is not known any more: {why}");
                Refused::Invalid { field: "route_intent", why }
            })?;
            overrides.choice = Some(choice);
        }
        Ok(start)
    }
}

/// What makes two intents the same.
fn folded(intent: &str) -> String {
    intent.trim().to_lowercase()
}

fn find<'a>(rules: &'a [RoutingRule], intent: &str) -> Option<&'a RoutingRule> {
    let intent = folded(intent);
    rules.iter().find(|rule| folded(&rule.intent) == intent)
}

/// Whether the rules can be kept, and each of them leads to a model.
fn check(rules: &[RoutingRule], models: &dyn Models) -> Result<(), RulesError> {
    let invalid = |field: String, why: String| Err(RulesError::Invalid { field, why });
    if rules.len() > MAX_RULES {
        return invalid("rules".to_owned(), format!("holds {} rules; the limit is {MAX_RULES}", rules.len()));
    }
    let mut known = HashSet::new();
    for (at, rule) in rules.iter().enumerate() {
        for (name, text) in [("intent", &rule.intent), ("model", &rule.model)] {
            let field = format!("rules[{at}].{name}");
            if text.trim().is_empty() {
                return invalid(field, "is blank".to_owned());
            }
            if text.len() > MAX_RULE_BYTES {
                return invalid(field, format!("has {} bytes; the limit is {MAX_RULE_BYTES}", text.len()));
            }
        }
        if !known.insert(folded(&rule.intent)) {
            return invalid(format!("rules[{at}].intent"), "has a rule already".to_owned());
        }
        if let Err(UnknownModel(why)) = models.resolve(None, Some(&rule.model)) {
            return invalid(format!("rules[{at}].model"), format!("is not known: {why}"));
        }
    }
    Ok(())
}

/// The rules as they are stored: documents are listed in the order of their ids.
fn documents(rules: &[RoutingRule]) -> Result<Vec<Document>, serde_json::Error> {
    let document = |(at, rule): (u64, &RoutingRule)| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&at.to_be_bytes());
        Ok(Document { kind: DocumentKind::RoutingRule, id, json: serde_json::to_vec(rule)? })
    };
    (0..).zip(rules).map(document).collect()
}

fn rule(tenant: TenantId, document: &Document) -> Result<RoutingRule, StoreError> {
    serde_json::from_slice(&document.json).map_err(|why| {
        let record = format!("a routing rule of {tenant}");
        Corrupt { record, why: why.to_string() }.into()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raddle_domain::{ports::Model, record::ModelChoice};

    use super::*;

    /// Knows every model but `gone`.
    struct Known;

    impl Models for Known {
        fn resolve(&self, _: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
            match model {
                Some("gone") => Err(UnknownModel("it was taken away".into())),
                model => Ok(ModelChoice { engine: "e".into(), model: model.unwrap_or("default").into() }),
            }
        }
        fn engine(&self, _: &str) -> Option<Arc<dyn Model>> {
            None
        }
        fn engines(&self) -> Vec<String> {
            Vec::new()
        }
    }

    fn rules(rules: &[(&str, &str)]) -> Vec<RoutingRule> {
        rules.iter().map(|&(intent, model)| RoutingRule { intent: intent.into(), model: model.into() }).collect()
    }

    /// The field that is refused, if one is.
    fn refused(list: &[(&str, &str)]) -> Option<String> {
        match check(&rules(list), &Known) {
            Ok(()) => None,
            Err(RulesError::Invalid { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn an_intent_is_found_in_any_case_and_with_space_around_it() {
        let rules = rules(&[("Code Review", "a"), (" größe ", "b")]);
        let model = |intent: &str| find(&rules, intent).map(|rule| rule.model.as_str());
        assert_eq!([model("code review"), model("\tCODE REVIEW\n"), model("GRÖßE")], [Some("a"), Some("a"), Some("b")]);
        assert_eq!([model("code"), model("codereview"), model("")], [None; 3]);
    }

    #[test]
    fn a_list_is_refused_with_the_field_that_is_wrong() {
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&[("a", "m"), ("b", "m")]), None);
        assert_eq!(refused(&[("a", "m"), (" \t", "m")]).as_deref(), Some("rules[1].intent"));
        assert_eq!(refused(&[("a", "")]).as_deref(), Some("rules[0].model"));
        assert_eq!(refused(&[("a", "m"), ("b", "m"), ("A ", "n")]).as_deref(), Some("rules[2].intent"));
        assert_eq!(refused(&[("a", "gone")]).as_deref(), Some("rules[0].model"));
        let long = "x".repeat(MAX_RULE_BYTES + 1);
        assert_eq!(refused(&[(&long, "m")]).as_deref(), Some("rules[0].intent"));
        assert_eq!(refused(&[("a", &long)]).as_deref(), Some("rules[0].model"));
    }

    #[test]
    fn a_list_has_a_limit() {
        let names: Vec<_> = (0..=MAX_RULES).map(|n| n.to_string()).collect();
        let list: Vec<_> = names.iter().map(|name| (name.as_str(), "m")).collect();
        assert_eq!(refused(&list[1..]), None);
        assert_eq!(refused(&list).as_deref(), Some("rules"));
    }

    #[test]
    fn rules_are_stored_in_their_order_and_read_back_as_they_were() {
        let names: Vec<_> = (0..300).map(|n| n.to_string()).collect();
        let list: Vec<_> = names.iter().rev().map(|name| (name.as_str(), " Model ")).collect();
        let rules = rules(&list);
        let mut stored = documents(&rules).unwrap();
        stored.sort_by_key(|document| document.id);
        let read: Result<Vec<_>, _> = stored.iter().map(|document| rule(TenantId::DEFAULT, document)).collect();
        assert_eq!(read.unwrap(), rules);
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_corrupt_and_named() {
        let document = Document { kind: DocumentKind::RoutingRule, id: [0; 32], json: b"{".to_vec() };
        let why = rule(TenantId::DEFAULT, &document).unwrap_err().to_string();
        assert!(why.contains("a routing rule of default"), "{why}");
    }
}
