//! Who answers: the implementations of the port [`Model`], and the [`Registry`] that finds one by name.
//!
//! A name is resolved once, when a thread or turn is started; the choice made then is what is stored. Which names
//! exist follows from the configuration alone, so resolving is pure.
//!
//! Absent on purpose: asking a provider which models it has. A name it does not know fails the call.

pub mod acp;
pub mod anthropic;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod openai;
pub mod provider;
pub mod scripted;

use std::sync::Arc;

use raddle_domain::{
    ports::{Model, Models, UnknownModel},
    record::ModelChoice,
};

use self::{
    acp::{Acp, AcpConfig},
    anthropic::{Anthropic, AnthropicConfig},
    openai::{OpenAi, OpenAiConfig},
    provider::ProviderError,
    scripted::Scripted,
};
use crate::workspace::Workspaces;

/// The engine that needs no configuration, and the name of its only model.
pub const SCRIPTED: &str = "scripted";

/// The engine of OpenAI-compatible providers.
pub const OPENAI: &str = "openai";

/// The engine of providers that speak Anthropic's messages API.
pub const ANTHROPIC: &str = "anthropic";

/// What the names of engines begin with that are agents: `acp:NAME`.
pub const ACP: &str = "acp:";

/// What the names of Anthropic's models begin with.
const CLAUDE: &str = "claude-";

/// Which models there are.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// What answers where nothing is named: `scripted`, `ENGINE/NAME` or `NAME`. Without it, `scripted`.
    pub default: Option<String>,
    pub openai: Option<OpenAiConfig>,
    pub anthropic: Option<AnthropicConfig>,
    /// Each with a name of its own.
    pub agents: Vec<AcpConfig>,
}

/// A configuration that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("`model.default`: {0}")]
    Default(#[from] UnknownModel),
    #[error("`model.{0}`: {1}")]
    Provider(&'static str, ProviderError),
}

/// The configured models.
pub struct Registry {
    names: Names,
    engines: Vec<(String, Arc<dyn Model>)>,
}

impl RegistryConfig {
    /// Whether it can be served. Connects to nothing and runs nothing.
    pub fn check(&self) -> Result<(), RegistryError> {
        Registry::providers(self).map(drop)
    }
}

impl Registry {
    /// The configured models; agents work in these workspaces. Connects to nothing and runs nothing.
    pub fn new(config: RegistryConfig, workspaces: &Arc<Workspaces>) -> Result<Self, RegistryError> {
        let mut registry = Self::providers(&config)?;
        for config in config.agents {
            let agent = (format!("{ACP}{}", config.name), Arc::new(Acp::new(config, workspaces.clone())) as _);
            registry.engines.push(agent);
        }
        Ok(registry)
    }

    /// All but the agents.
    fn providers(config: &RegistryConfig) -> Result<Self, RegistryError> {
        let mut engines: Vec<(String, Arc<dyn Model>)> = vec![(SCRIPTED.to_owned(), Arc::new(Scripted))];
        let names = Names {
            default: choice(SCRIPTED, SCRIPTED),
            has_openai: config.openai.is_some(),
            has_anthropic: config.anthropic.is_some(),
            agents: config.agents.iter().map(|agent| agent.name.clone()).collect(),
        };
        let names = names.with_default(config.default.as_deref())?;
        if let Some(config) = config.openai.clone() {
            let openai = OpenAi::new(config).map_err(|why| RegistryError::Provider(OPENAI, why))?;
            engines.push((OPENAI.to_owned(), Arc::new(openai)));
        }
        if let Some(config) = config.anthropic.clone() {
            let anthropic = Anthropic::new(config).map_err(|why| RegistryError::Provider(ANTHROPIC, why))?;
            engines.push((ANTHROPIC.to_owned(), Arc::new(anthropic)));
        }
        Ok(Self { names, engines })
    }
}

impl Models for Registry {
    fn resolve(&self, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        self.names.resolve(engine, model)
    }

    fn engine(&self, engine: &str) -> Option<Arc<dyn Model>> {
        self.engines.iter().find(|(name, _)| name == engine).map(|(_, model)| model.clone())
    }

    fn engines(&self) -> Vec<String> {
        self.engines.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// The names, without what answers to them.
#[derive(Debug)]
struct Names {
    default: ModelChoice,
    has_openai: bool,
    has_anthropic: bool,
    agents: Vec<String>,
}

impl Names {
    fn with_default(mut self, default: Option<&str>) -> Result<Self, UnknownModel> {
        self.default = self.resolve(None, default)?;
        Ok(self)
    }

    /// ```text
    /// engine     model             is
    /// -          -                 the default
    /// -          scripted          scripted
    /// scripted   anything          scripted
    /// -          openai/NAME       NAME of openai
    /// -          anthropic/NAME    NAME of anthropic, if that is configured; otherwise a name like others
    /// -          claude-…          the same
    /// -          acp/NAME          the agent NAME, if there is one; otherwise a name like others
    /// acp:NAME   anything          the agent NAME
    /// -          NAME              NAME of openai
    /// ENGINE     NAME              NAME of that provider; `ENGINE/` before it is dropped
    /// ENGINE     -                 the default, if it is one of that provider's
    /// ```
    fn resolve(&self, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        let provider = match (engine, model) {
            (None, None) => return Ok(self.default.clone()),
            (Some(SCRIPTED), _) | (None, Some(SCRIPTED)) => return Ok(choice(SCRIPTED, SCRIPTED)),
            (Some(engine), _) if self.is_agent(engine.strip_prefix(ACP)) => {
                return Ok(choice(engine, &engine[ACP.len()..]));
            }
            (None, Some(model)) if self.is_agent(model.strip_prefix("acp/")) => {
                let name = &model["acp/".len()..];
                return Ok(choice(&format!("{ACP}{name}"), name));
            }
            (Some(OPENAI), _) => OPENAI,
            (Some(ANTHROPIC), _) => ANTHROPIC,
            (Some(engine), _) => {
                return Err(UnknownModel(format!(
                    "there is no engine `{}`; this server has {}",
                    shown(engine),
                    self.known()
                )));
            }
            // Without Anthropic itself they may be names of a provider that passes calls on.
            (None, Some(model)) if self.has_anthropic && is_anthropic(model) => ANTHROPIC,
            (None, Some(_)) => OPENAI,
        };
        match model {
            None if self.default.engine == provider => Ok(self.default.clone()),
            None if !self.has(provider) => Err(self.not_configured(&format!("the engine `{provider}`"), provider)),
            None => {
                Err(UnknownModel(format!("the engine `{provider}` needs a model: name one, or set `model.default`")))
            }
            Some(model) => {
                let name = model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model);
                if name.trim().is_empty() {
                    return Err(UnknownModel("the name of the model is empty".to_owned()));
                }
                if !self.has(provider) {
                    let likely = if is_anthropic(model) { ANTHROPIC } else { provider };
                    return Err(self.not_configured(&format!("the model `{}`", shown(model)), likely));
                }
                Ok(choice(provider, name))
            }
        }
    }

    fn is_agent(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| self.agents.iter().any(|agent| agent == name))
    }

    fn has(&self, provider: &str) -> bool {
        match provider {
            OPENAI => self.has_openai,
            _ => self.has_anthropic,
        }
    }

    /// The engines, as a person reads them.
    fn known(&self) -> String {
        let providers = [(OPENAI, self.has_openai), (ANTHROPIC, self.has_anthropic)];
        let providers = providers.into_iter().filter(|(_, has)| *has).map(|(name, _)| format!("`{name}`"));
        let mut others: Vec<String> =
            providers.chain(self.agents.iter().map(|name| format!("`{ACP}{name}`"))).collect();
        match others.pop() {
            None => format!("`{SCRIPTED}` only"),
            Some(last) => {
                others.insert(0, format!("`{SCRIPTED}`"));
                format!("{} and {last}", others.join(", "))
            }
        }
    }

    fn not_configured(&self, what: &str, provider: &str) -> UnknownModel {
        let key = if provider == ANTHROPIC { "api_key" } else { "base_url" };
        UnknownModel(format!(
            "{what} is not available: this server has {}; set `model.{provider}.{key}` to use a provider",
            self.known()
        ))
    }
}

fn is_anthropic(model: &str) -> bool {
    model.starts_with(CLAUDE) || model.strip_prefix(ANTHROPIC).is_some_and(|rest| rest.starts_with('/'))
}

fn choice(engine: &str, model: &str) -> ModelChoice {
    ModelChoice { engine: engine.to_owned(), model: model.to_owned() }
}

/// A caller's name as it is repeated to them.
fn shown(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(config: RegistryConfig) -> Result<Registry, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        Registry::new(config, &Arc::new(Workspaces::open(dir.path()).unwrap()))
    }

    fn names(has_openai: bool, has_anthropic: bool) -> Names {
        Names { default: choice(SCRIPTED, SCRIPTED), has_openai, has_anthropic, agents: Vec::new() }
    }

    fn resolve(default: Option<&str>, has_openai: bool, engine: Option<&str>, model: Option<&str>) -> String {
        match names(has_openai, false).with_default(default).unwrap().resolve(engine, model) {
            Ok(choice) => format!("{}: {}", choice.engine, choice.model),
            Err(unknown) => unknown.to_string(),
        }
    }

    #[test]
    fn nothing_named_is_the_default_and_without_one_scripted() {
        assert_eq!(resolve(None, false, None, None), "scripted: scripted");
        assert_eq!(resolve(None, true, None, None), "scripted: scripted");
        assert_eq!(resolve(Some("scripted"), true, None, None), "scripted: scripted");
        assert_eq!(resolve(Some("openai/gpt"), true, None, None), "openai: gpt");
        assert_eq!(resolve(Some("gpt"), true, None, None), "openai: gpt");
    }

    #[test]
    fn scripted_is_always_there() {
        for has_openai in [false, true] {
            assert_eq!(resolve(None, has_openai, None, Some("scripted")), "scripted: scripted");
            assert_eq!(resolve(None, has_openai, Some("scripted"), None), "scripted: scripted");
            assert_eq!(resolve(None, has_openai, Some("scripted"), Some("any")), "scripted: scripted");
        }
    }

    #[test]
    fn any_other_name_is_one_of_openai() {
        assert_eq!(resolve(None, true, None, Some("gpt")), "openai: gpt");
        assert_eq!(resolve(None, true, None, Some("openai/gpt")), "openai: gpt");
        assert_eq!(resolve(None, true, Some("openai"), Some("openai/gpt")), "openai: gpt");
        assert_eq!(resolve(None, true, Some("openai"), Some("gpt")), "openai: gpt");
        assert_eq!(resolve(None, true, None, Some("meta/llama")), "openai: meta/llama");
        assert_eq!(resolve(None, true, None, Some("openai/openai/oss")), "openai: openai/oss");
    }

    #[test]
    fn openai_without_a_model_is_the_default_if_that_is_one_of_its() {
        assert_eq!(resolve(Some("gpt"), true, Some("openai"), None), "openai: gpt");
        let sentence = "the engine `openai` needs a model: name one, or set `model.default`";
        assert_eq!(resolve(None, true, Some("openai"), None), sentence);
    }

    #[test]
    fn what_is_not_configured_says_how_to_configure_it() {
        let how = "is not available: this server has `scripted` only; set `model.openai.base_url` to use a provider";
        assert_eq!(resolve(None, false, None, Some("gpt")), format!("the model `gpt` {how}"));
        assert_eq!(resolve(None, false, None, Some("openai/gpt")), format!("the model `openai/gpt` {how}"));
        assert_eq!(resolve(None, false, Some("openai"), None), format!("the engine `openai` {how}"));
        assert_eq!(resolve(None, false, Some("openai"), Some("gpt")), format!("the model `gpt` {how}"));
    }

    #[test]
    fn an_unknown_engine_and_an_empty_name_are_unknown() {
        let unknown = "there is no engine `other`; this server has `scripted` only";
        assert_eq!(resolve(None, false, Some("other"), Some("scripted")), unknown);
        let unknown = "there is no engine ``; this server has `scripted` and `openai`";
        assert_eq!(resolve(None, true, Some(""), None), unknown);
        for model in ["", " ", "openai/"] {
            assert_eq!(resolve(None, true, None, Some(model)), "the name of the model is empty");
        }
    }

    #[test]
    fn a_default_that_is_not_configured_is_refused_at_the_start() {
        let config = RegistryConfig { default: Some("gpt".into()), ..RegistryConfig::default() };
        let error = registry(config).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("`model.default`: the model `gpt` is not available"), "{error}");
        let config = RegistryConfig { openai: Some(OpenAiConfig::new("nowhere")), ..RegistryConfig::default() };
        let error = registry(config).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error, "`model.openai`: the base URL of the model provider is no URL");
    }

    #[test]
    fn the_engines_are_those_that_are_configured() {
        let bare = registry(RegistryConfig::default()).unwrap();
        assert_eq!(bare.engines(), ["scripted"]);
        assert!(bare.engine("scripted").is_some() && bare.engine("openai").is_none());
        let openai = Some(OpenAiConfig::new("http://127.0.0.1:1/v1"));
        let anthropic = Some(AnthropicConfig::new("http://127.0.0.1:1"));
        let full = registry(RegistryConfig { openai, anthropic, ..RegistryConfig::default() }).unwrap();
        assert_eq!(full.engines(), ["scripted", "openai", "anthropic"]);
        assert!(full.engine("anthropic").is_some() && full.engine("other").is_none());
    }

    #[test]
    fn claude_is_anthropics_where_that_is_configured_and_otherwise_a_name_like_others() {
        let resolve =
            |has_openai, has_anthropic, engine, model| match names(has_openai, has_anthropic).resolve(engine, model) {
                Ok(choice) => format!("{}: {}", choice.engine, choice.model),
                Err(unknown) => unknown.to_string(),
            };
        for has_openai in [false, true] {
            assert_eq!(resolve(has_openai, true, None, Some("claude-opus-4-1")), "anthropic: claude-opus-4-1");
            assert_eq!(resolve(has_openai, true, None, Some("anthropic/claude-x")), "anthropic: claude-x");
            assert_eq!(resolve(has_openai, true, None, Some("anthropic/other")), "anthropic: other");
            assert_eq!(resolve(has_openai, true, Some("anthropic"), Some("anthropic/other")), "anthropic: other");
            assert_eq!(resolve(has_openai, true, Some("anthropic"), Some("gpt")), "anthropic: gpt");
        }
        assert_eq!(resolve(true, true, None, Some("gpt")), "openai: gpt");
        assert_eq!(resolve(true, true, Some("openai"), Some("claude-x")), "openai: claude-x");
        assert_eq!(resolve(true, false, None, Some("claude-x")), "openai: claude-x");
        assert_eq!(resolve(true, false, None, Some("anthropic/claude-x")), "openai: anthropic/claude-x");
        let how = "is not available: this server has `scripted` only; set `model.anthropic.api_key` to use a provider";
        assert_eq!(resolve(false, false, None, Some("claude-x")), format!("the model `claude-x` {how}"));
        assert_eq!(resolve(false, false, Some("anthropic"), None), format!("the engine `anthropic` {how}"));
        let sentence = "the engine `anthropic` needs a model: name one, or set `model.default`";
        assert_eq!(resolve(false, true, Some("anthropic"), None), sentence);
    }

    #[test]
    fn an_agent_is_named_by_its_engine_or_as_a_model() {
        let names = Names { agents: vec!["helper".into()], ..names(true, false) };
        let resolve = |engine, model| match names.resolve(engine, model) {
            Ok(choice) => format!("{}: {}", choice.engine, choice.model),
            Err(unknown) => unknown.to_string(),
        };
        assert_eq!(resolve(Some("acp:helper"), None), "acp:helper: helper");
        assert_eq!(resolve(Some("acp:helper"), Some("any")), "acp:helper: helper");
        assert_eq!(resolve(None, Some("acp/helper")), "acp:helper: helper");
        assert_eq!(resolve(None, Some("acp/other")), "openai: acp/other");
        let unknown = "there is no engine `acp:other`; this server has `scripted`, `openai` and `acp:helper`";
        assert_eq!(resolve(Some("acp:other"), None), unknown);
    }
}
