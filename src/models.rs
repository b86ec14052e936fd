//! The implementations of the port [`Model`](raddle_domain::ports::Model).

pub mod scripted;
pub mod sse;

pub mod openai {
    pub struct OpenAiConfig {
        pub base_url: String,
        pub api_key: Option<secrecy::SecretString>,
        pub connect_timeout: std::time::Duration,
        pub first_byte_timeout: std::time::Duration,
        pub idle_timeout: std::time::Duration,
    }
    impl OpenAiConfig {
        pub fn new(base_url: String) -> Self {
            let d = std::time::Duration::ZERO;
            Self { base_url, api_key: None, connect_timeout: d, first_byte_timeout: d, idle_timeout: d }
        }
    }
}
pub struct RegistryConfig {
    pub default: Option<String>,
    pub openai: Option<openai::OpenAiConfig>,
}
pub struct Registry;
impl Registry {
    pub fn new(_: RegistryConfig) -> anyhow::Result<Self> {
        Ok(Self)
    }
}
use raddle_domain::{
    ports::{Model, Models, UnknownModel},
    record::ModelChoice,
};
impl Models for Registry {
    fn resolve(&self, _: Option<&str>, _: Option<&str>) -> Result<ModelChoice, UnknownModel> {
        Ok(ModelChoice { engine: "scripted".into(), model: "scripted".into() })
    }
    fn engine(&self, _: &str) -> Option<std::sync::Arc<dyn Model>> {
        Some(std::sync::Arc::new(scripted::Scripted))
    }
    fn engines(&self) -> Vec<String> {
        vec!["scripted".into()]
    }
}
