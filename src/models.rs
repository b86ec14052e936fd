//! Who answers: the implementations of the port [`Model`], and the [`Registry`] that finds one by name.
//!
//! A name is resolved once, when a thread or turn is started; the choice made then is what is stored. Which names
//! exist follows from the configuration alone, so resolving is pure.
//!
//! Absent on purpose: asking a provider which models it has. A name it does not know fails the call.

pub mod openai;
pub mod scripted;

use std::sync::Arc;

use raddle_domain::{
    ports::{Model, Models, UnknownModel},
    record::ModelChoice,
};

use self::{
    openai::{OpenAi, OpenAiConfig, OpenAiConfigError},
    scripted::Scripted,
};

/// The engine that needs no configuration, and the name of its only model.
pub const SCRIPTED: &str = "scripted";

/// The engine of OpenAI-compatible providers.
pub const OPENAI: &str = "openai";

/// Which models there are.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// What answers where nothing is named: `scripted`, `openai/NAME` or `NAME`. Without it, `scripted`.
    pub default: Option<String>,
    pub openai: Option<OpenAiConfig>,
}

/// A configuration that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("`model.default`: {0}")]
    Default(#[from] UnknownModel),
    #[error("`model.openai`: {0}")]
    OpenAi(#[from] OpenAiConfigError),
}

/// The configured models.
pub struct Registry {
    names: Names,
    scripted: Arc<dyn Model>,
    openai: Option<Arc<dyn Model>>,
}

impl Registry {
    /// Checks the configuration; connects to nothing.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        let names = Names::new(config.default.as_deref(), config.openai.is_some())?;
        let openai = match config.openai {
            Some(config) => Some(Arc::new(OpenAi::new(config)?) as Arc<dyn Model>),
            None => None,
        };
        Ok(Self { names, scripted: Arc::new(Scripted), openai })
    }
}

impl Models for Registry {
    fn resolve(&self, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        self.names.resolve(engine, model)
    }

    fn engine(&self, engine: &str) -> Option<Arc<dyn Model>> {
        match engine {
            SCRIPTED => Some(self.scripted.clone()),
            OPENAI => self.openai.clone(),
            _ => None,
        }
    }

    fn engines(&self) -> Vec<String> {
        let openai = self.openai.iter().map(|_| OPENAI.to_owned());
        [SCRIPTED.to_owned()].into_iter().chain(openai).collect()
    }
}

/// The names, without what answers to them.
#[derive(Debug)]
struct Names {
    default: ModelChoice,
    has_openai: bool,
}

impl Names {
    fn new(default: Option<&str>, has_openai: bool) -> Result<Self, UnknownModel> {
        let mut names = Self { default: choice(SCRIPTED, SCRIPTED), has_openai };
        names.default = names.resolve(None, default)?;
        Ok(names)
    }

    /// ```text
    /// engine     model             is
    /// -          -                 the default
    /// -          scripted          scripted
    /// scripted   anything          scripted
    /// -          openai/NAME       NAME of openai
    /// openai     NAME              NAME of openai; `openai/` before it is dropped
    /// openai     -                 the default, if it is one of openai's
    /// -          NAME              NAME of openai
    /// ```
    fn resolve(&self, engine: Option<&str>, model: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        match (engine, model) {
            (None, None) => Ok(self.default.clone()),
            (Some(SCRIPTED), _) | (None, Some(SCRIPTED)) => Ok(choice(SCRIPTED, SCRIPTED)),
            (Some(OPENAI), None) if self.default.engine == OPENAI => Ok(self.default.clone()),
            (Some(OPENAI), None) if self.has_openai => {
                Err(UnknownModel("the engine `openai` needs a model: name one, or set `model.default`".to_owned()))
            }
            (Some(OPENAI), None) => Err(not_configured("the engine `openai`")),
            (None | Some(OPENAI), Some(model)) => {
                let name = model.strip_prefix("openai/").unwrap_or(model);
                if name.trim().is_empty() {
                    return Err(UnknownModel("the name of the model is empty".to_owned()));
                }
                if !self.has_openai {
                    return Err(not_configured(&format!("the model `{}`", shown(model))));
                }
                Ok(choice(OPENAI, name))
            }
            (Some(engine), _) => {
                let known = if self.has_openai { "`scripted` and `openai`" } else { "`scripted` only" };
                Err(UnknownModel(format!("there is no engine `{}`; this server has {known}", shown(engine))))
            }
        }
    }
}

fn choice(engine: &str, model: &str) -> ModelChoice {
    ModelChoice { engine: engine.to_owned(), model: model.to_owned() }
}

fn not_configured(what: &str) -> UnknownModel {
    UnknownModel(format!(
        "{what} is not available: this server has `scripted` only; set `model.openai.base_url` to use a provider"
    ))
}

/// A caller's name as it is repeated to them.
fn shown(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(default: Option<&str>, has_openai: bool, engine: Option<&str>, model: Option<&str>) -> String {
        match Names::new(default, has_openai).unwrap().resolve(engine, model) {
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
        let config = RegistryConfig { default: Some("gpt".into()), openai: None };
        let error = Registry::new(config).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("`model.default`: the model `gpt` is not available"), "{error}");
        let config = RegistryConfig { default: None, openai: Some(OpenAiConfig::new("nowhere")) };
        let error = Registry::new(config).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error, "`model.openai`: the base URL of the model provider is no URL");
    }

    #[test]
    fn the_engines_are_those_that_are_configured() {
        let bare = Registry::new(RegistryConfig::default()).unwrap();
        assert_eq!(bare.engines(), ["scripted"]);
        assert!(bare.engine("scripted").is_some() && bare.engine("openai").is_none());
        let openai = Some(OpenAiConfig::new("http://127.0.0.1:1/v1"));
        let full = Registry::new(RegistryConfig { default: None, openai }).unwrap();
        assert_eq!(full.engines(), ["scripted", "openai"]);
        assert!(full.engine("openai").is_some() && full.engine("other").is_none());
    }
}
