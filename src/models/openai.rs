//! OpenAI-compatible chat completions, streamed: `request` is what is sent, `answer` what is read of what comes; the
//! way there and back is a [`Provider`]'s, with its kinds of failure.
//!
//! A missing `[DONE]` is no failure behind a finish reason, and `[DONE]` without one is no end.

pub(super) mod answer;
mod request;

use raddle_domain::ports::{Model, ModelRequest, ModelStream};
use reqwest::header::AUTHORIZATION;
use secrecy::SecretString;

use self::{answer::Answer, request::Body};
use super::provider::{Headers, Patience, Provider, ProviderError};

/// Where a provider is and how long it may take.
#[derive(Debug, Clone)]
pub struct OpenAiConfig {
    /// The `http` or `https` URL to which `/chat/completions` is appended, with or without a slash at its end:
    /// `https://api.openai.com/v1`. It holds no user or password; a query is kept.
    pub base_url: String,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<SecretString>,
    /// Further headers of every request. They win over `api_key`.
    pub headers: Vec<(String, SecretString)>,
    pub patience: Patience,
    /// Whether earlier reasoning is sent back as `reasoning_content`. Off unless set: some providers refuse the
    /// field, others want it.
    pub send_reasoning: bool,
}

impl OpenAiConfig {
    /// A provider without a key, with the default timeouts.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            headers: Vec::new(),
            patience: Patience::default(),
            send_reasoning: false,
        }
    }
}

/// A provider that speaks chat completions. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct OpenAi {
    provider: Provider,
    send_reasoning: bool,
}

impl OpenAi {
    /// Checks the configuration; connects to nothing.
    pub fn new(config: OpenAiConfig) -> Result<Self, ProviderError> {
        let mut headers = Headers::default();
        if let Some(key) = &config.api_key {
            headers.key(AUTHORIZATION, "Bearer ", key)?;
        }
        for (name, value) in &config.headers {
            headers.add(name, value)?;
        }
        let provider = Provider::new(&config.base_url, &["chat", "completions"], headers, config.patience)?;
        Ok(Self { provider, send_reasoning: config.send_reasoning })
    }
}

impl Model for OpenAi {
    fn call(&self, request: ModelRequest) -> ModelStream {
        self.provider.call::<Answer>(&Body::new(&request, self.send_reasoning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_error_repeats_no_secret() {
        let error = |config| OpenAi::new(config).unwrap_err().to_string();
        let with_user = OpenAiConfig::new("https://me:hunter2@h/v1");
        assert!(!error(with_user).contains("hunter2"));
        let with_key = OpenAiConfig { api_key: Some("hunter2\n".into()), ..OpenAiConfig::new("https://h/v1") };
        assert!(!error(with_key).contains("hunter2"));
        let headers = vec![("x key".to_owned(), SecretString::from("hunter2"))];
        let with_header = OpenAiConfig { headers, ..OpenAiConfig::new("https://h/v1") };
        assert_eq!(error(with_header), "`x key` is no header, or its value holds characters that no header may hold");
    }

    #[test]
    fn nothing_shown_of_a_provider_holds_the_key() {
        let config = OpenAiConfig { api_key: Some("hunter2".into()), ..OpenAiConfig::new("https://h/v1") };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!format!("{:?}", OpenAi::new(config).unwrap()).contains("hunter2"));
    }
}
