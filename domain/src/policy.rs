//! What tools may do: rules in layers, and what follows where no rule speaks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::record::Permit;

/// One layer of the policy: of the installation, a tenant, or a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What happens to calls on which no rule speaks. The strictest layer that says so wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<AskMode>,
    /// What commands may touch. The narrowest layer wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxMode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What happens to calls on which no rule speaks and which do more than read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AskMode {
    /// Whatever nobody has allowed is asked.
    #[default]
    Untrusted,
    /// What stays in the sandbox runs; what is to leave it, because it failed there, is asked.
    OnFailure,
    /// Everything is asked, whatever was allowed before.
    OnRequest,
    /// Nobody is asked, and what would have to be is denied.
    Never,
}

/// What a command may touch, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// It may read, and change nothing.
    ReadOnly,
    /// It may also write in the workspace, and in a directory for temporary files.
    #[default]
    WorkspaceWrite,
    /// Whatever the server may.
    DangerFullAccess,
}

/// Whether calls like these may be made. What is absent is not looked at; a rule that looks at nothing is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// For people, and in approvals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Words with which a command begins; each a word, or several to choose from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<Words>>,
    /// A glob over every path of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A host name, or `*.` and one, over every host of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Examples that the rule must cover; checked whenever the rule is taken.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<String>,
    /// Examples that it must not cover.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_match: Vec<String>,
}

/// A word of a command's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Words {
    One(String),
    AnyOf(Vec<String>),
}

/// What a rule says, from lenient to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Allow,
    Ask,
    Deny,
}

/// What a tenant has said about calls.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TenantRules {
    pub policy: Policy,
    /// The calls that were approved for ever, by the names of the rules.
    pub permits: Vec<(String, Permit)>,
}
