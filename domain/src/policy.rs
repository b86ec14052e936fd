//! What tools may do: rules in layers, and what follows where no rule speaks.
//!
//! ```text
//!   deny rules ─▶ ask rules ─▶ what could not be read whole ─▶ allow rules, permits ─▶ the mode
//! ```
//! A [`decide::Subject`] is a call as the rules see it: its tool, its paths, its hosts, and its command as a [`Script`].
//! All layers are looked at together, and the first of the steps above on which any layer speaks settles it: so the
//! strictest wins, and no layer's word undoes another's denial or question. A denial or a question needs any part of
//! the call, an allowance every part.
//!
//! The layers are four: what is built in, the installation's, the tenant's, the thread's. Where several name a mode,
//! the strictest holds, see [`AskMode`]; where nobody does, it is the default. So a layer that wants to hold the ones
//! below it to a mode has to name it.
//!
//! Invariant: what cannot be understood is never a reason to let something pass. A glob that is none covers
//! everything where it denies or asks, and nothing where it allows.
//!
//! Absent on purpose: reading the text of a command, which takes a grammar; a rule's age, or how specific it is; any
//! promise that a denial cannot be got around. A shell has more ways to say a thing than a list knows. Denials are a
//! floor against accidents; the boundary is the sandbox.

pub mod check;
pub mod decide;
pub mod programs;
mod rule;
mod script;
pub mod withheld;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::script::{Opaque, Script};
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

/// What happens to calls on which no rule speaks. Tools that only read and need nobody's word run in any mode.
///
/// From lenient to strict: `on_failure`, `untrusted`, `on_request`. `never` is as strict as `untrusted` about what may
/// run, unless another layer is stricter, and denies what would be asked: by a mode, and by a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AskMode {
    /// Whatever nobody has allowed is asked.
    #[default]
    Untrusted,
    /// What stays in the sandbox runs; what is to leave it, because it failed there, is asked.
    OnFailure,
    /// Everything is asked, whatever was allowed before: neither rules nor permits nor a turn's `auto_approve` help.
    OnRequest,
    /// Nobody is asked, and what would have to be is denied.
    Never,
}

impl AskMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::OnFailure => "on_failure",
            Self::OnRequest => "on_request",
            Self::Never => "never",
        }
    }
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

/// Who made a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// This build.
    BuiltIn,
    Installation,
    Tenant,
    Thread,
    /// Not a layer of rules: what a person approved for ever.
    Permits,
}

impl Layer {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BuiltIn => "built_in",
            Self::Installation => "installation",
            Self::Tenant => "tenant",
            Self::Thread => "thread",
            Self::Permits => "permits",
        }
    }
}

/// What commands may touch where these layers have a say: the narrowest that any of them names.
pub fn narrowest<'a>(layers: impl IntoIterator<Item = &'a Policy>) -> Option<SandboxMode> {
    layers.into_iter().filter_map(|policy| policy.sandbox).min()
}

impl Policy {
    /// What holds in place of a layer that cannot be read: everything is asked, and nothing may be changed meanwhile.
    pub fn unreadable() -> Self {
        Self { ask: Some(AskMode::OnRequest), sandbox: Some(SandboxMode::ReadOnly), rules: Vec::new() }
    }
}

/// What a tenant has said about calls.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TenantRules {
    pub policy: Policy,
    /// The calls that were approved for ever, by the names of the rules.
    pub permits: Vec<(String, Permit)>,
}
