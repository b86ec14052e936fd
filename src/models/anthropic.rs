//! Anthropic's messages API, streamed: `request` is what is sent, `answer` what is read of what comes; the way there
//! and back is a [`Provider`]'s, with its kinds of failure.
//!
//! Absent on purpose: extended thinking. It is read where a provider sends it, and never asked for: with tools it has
//! to go back signed, and a log that any model can continue holds no signatures.

pub(super) mod answer;
mod request;

use raddle_domain::ports::{Model, ModelRequest, ModelStream};
use reqwest::header::HeaderName;
use secrecy::SecretString;

use self::{
    answer::Answer,
    request::{Body, Manner},
};
use super::provider::{Headers, Patience, Provider, ProviderError};

/// Where the API is.
pub const BASE_URL: &str = "https://api.anthropic.com";

/// The version of the API that is spoken here.
pub const VERSION: &str = "2023-06-01";

/// The most tokens of an answer where nobody says: the API has no default, and its older models go no further.
pub const MAX_TOKENS: u32 = 8192;

/// Where a provider is and how long it may take.
#[derive(Debug, Clone)]
pub struct AnthropicConfig {
    /// The `http` or `https` URL to which `/v1/messages` is appended. It holds no user or password; a query is kept.
    pub base_url: String,
    /// Sent as `x-api-key`.
    pub api_key: Option<SecretString>,
    /// Sent as `anthropic-version`.
    pub version: String,
    /// For calls that name none.
    pub max_tokens: u32,
    /// Whether the provider is asked to keep the conversation so far for the next call. Off unless set: what is
    /// written to the cache has a price of its own.
    pub prompt_cache: bool,
    pub patience: Patience,
}

impl AnthropicConfig {
    /// A provider without a key, with the defaults.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            version: VERSION.to_owned(),
            max_tokens: MAX_TOKENS,
            prompt_cache: false,
            patience: Patience::default(),
        }
    }
}

/// A provider that speaks the messages API. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Anthropic {
    provider: Provider,
    manner: Manner,
}

impl Anthropic {
    /// Checks the configuration; connects to nothing.
    pub fn new(config: AnthropicConfig) -> Result<Self, ProviderError> {
        let mut headers = Headers::default();
        headers.open("anthropic-version", &config.version)?;
        if let Some(key) = &config.api_key {
            headers.key(HeaderName::from_static("x-api-key"), "", key)?;
        }
        let provider = Provider::new(&config.base_url, &["v1", "messages"], headers, config.patience)?;
        Ok(Self { provider, manner: Manner { max_tokens: config.max_tokens, prompt_cache: config.prompt_cache } })
    }
}

impl Model for Anthropic {
    fn call(&self, request: ModelRequest) -> ModelStream {
        self.provider.call::<Answer>(&Body::new(&request, self.manner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_an_error_nor_what_is_shown_of_a_provider_holds_the_key() {
        let config =
            |key: &str| AnthropicConfig { api_key: Some(key.to_owned().into()), ..AnthropicConfig::new(BASE_URL) };
        assert!(!format!("{:?}", config("hunter2")).contains("hunter2"));
        assert!(!format!("{:?}", Anthropic::new(config("hunter2")).unwrap()).contains("hunter2"));
        assert!(!Anthropic::new(config("hunter2\n")).unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn a_version_that_no_header_may_hold_is_refused() {
        let config = AnthropicConfig { version: "a\nb".into(), ..AnthropicConfig::new(BASE_URL) };
        assert_eq!(Anthropic::new(config).unwrap_err(), ProviderError::Header("anthropic-version".into()));
    }
}
