//! What a configuration names and a server is made of: files that are read, addresses and secrets that are checked.
//!
//! One reading serves the start and `raddle config check`: what the check calls usable, the start uses. All of it is
//! looked at, so that whoever sets up a server hears of every mistake at once. Nothing is started, made or connected
//! to.

use std::{fmt, path::Path, sync::Arc};

use anyhow::{Context, bail};
use raddle_actors::{Hook, SystemClock};
use raddle_domain::{policy::Policy, ports::Sink, price::Prices};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    auth::{self, AuthConfig},
    config::{self, AgentConfig, Config, HookConfig, McpConfig, ProviderConfig, Secret, SinkConfig},
    egress::Egress,
    hooks::{Jsonl, Stdout, Unix, Webhook},
    jobs::{self, Named},
    mcp::{self, Mcp},
    models::{
        ANTHROPIC, OPENAI, RegistryConfig, RegistryError, acp::AcpConfig, anthropic::AnthropicConfig,
        openai::OpenAiConfig,
    },
    policy, prices,
    webhook::Secrets,
};

/// Something that a server cannot be started with. The sentence goes behind the name of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub key: String,
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.why)
    }
}

impl Finding {
    pub(super) fn new(key: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { key: key.into(), why: why.to_string() }
    }
}

/// See the module's text.
pub(super) struct Inputs {
    pub prices: Prices,
    pub policy: Policy,
    /// The servers whose tools are offered, not started.
    pub mcp: Mcp,
    pub models: RegistryConfig,
    /// Secrets to sign webhooks of jobs with.
    pub signing: Named,
    pub egress: Egress,
    pub hooks: Vec<Hook>,
    pub auth: AuthConfig,
    /// Every secret that was found on the way, for the log to hide.
    pub secrets: Vec<SecretString>,
}

impl Inputs {
    /// Reads all of it, or says everything that is wrong.
    pub fn read(config: &Config) -> Result<Self, Vec<Finding>> {
        let mut reading = Reading::default();
        let prices = reading.took("prices.file", prices(config.prices_file.as_deref()));
        let policy = reading.took("policy.file", policy(config.policy_file.as_deref()));
        let servers = reading.took("mcp.file", servers(&config.mcp)).unwrap_or_default();
        let from_servers = servers.iter().flat_map(|server| server.secrets.values().cloned());
        reading.secrets.extend(from_servers.collect::<Vec<_>>());
        let timeouts = mcp::Timeouts { startup: config.mcp.startup_timeout, call: config.mcp.call_timeout };
        let mcp = Mcp::new(servers, timeouts, Arc::new(SystemClock)).context("no way to servers");
        let mcp = reading.took("mcp.file", mcp);
        let models = reading.models(config);
        let signing = reading.signing(config.jobs.secrets_file.as_deref());
        let egress = Egress::new(config.egress_allow.clone()).context("no way out for webhooks");
        let egress = reading.took("egress.allow", egress);
        let hooks = match &egress {
            Some(egress) => config.hooks.iter().filter_map(|hook| reading.hook(hook, egress)).collect(),
            None => Vec::new(),
        };
        let auth = reading.auth(config);
        match (prices, policy, mcp, models, signing, egress) {
            (Some(prices), Some(policy), Some(mcp), Some(models), Some(signing), Some(egress))
                if reading.findings.is_empty() =>
            {
                Ok(Self { prices, policy, mcp, models, signing, egress, hooks, auth, secrets: reading.secrets })
            }
            _ => Err(reading.findings),
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Reading {
    findings: Vec<Finding>,
    secrets: Vec<SecretString>,
}

impl Reading {
    /// What was read, unless it cannot be used, of which note is taken.
    fn took<T>(&mut self, key: &str, read: anyhow::Result<T>) -> Option<T> {
        read.map_err(|why| self.findings.push(Finding::new(key, format!("{why:#}")))).ok()
    }

    /// A secret, of which note is taken.
    fn reveal(&mut self, key: &str, secret: &Secret) -> Option<SecretString> {
        let secret = self.took(key, reveal(secret))?;
        // More than one may stand in one text.
        self.secrets.extend(secret.expose_secret().split_whitespace().map(SecretString::from));
        Some(secret)
    }

    fn models(&mut self, config: &Config) -> Option<RegistryConfig> {
        let before = self.findings.len();
        let model = &config.model;
        let mut key = |provider: &ProviderConfig, name: &str| {
            provider.api_key.as_ref().and_then(|key| self.reveal(&format!("model.{name}.api_key_file"), key))
        };
        let openai = model.openai.as_ref().map(|openai| OpenAiConfig {
            api_key: key(&openai.provider, OPENAI),
            patience: openai.provider.patience,
            send_reasoning: openai.send_reasoning,
            ..OpenAiConfig::new(&openai.provider.base_url)
        });
        let anthropic = model.anthropic.as_ref().map(|anthropic| {
            let usual = AnthropicConfig::new(&anthropic.provider.base_url);
            AnthropicConfig {
                api_key: key(&anthropic.provider, ANTHROPIC),
                patience: anthropic.provider.patience,
                version: anthropic.version.clone().unwrap_or(usual.version),
                max_tokens: anthropic.max_tokens,
                prompt_cache: anthropic.prompt_cache,
                base_url: usual.base_url,
            }
        });
        let agents = model.agents.iter().map(agent).collect();
        let models = RegistryConfig { default: model.default.clone(), openai, anthropic, agents };
        match models.check() {
            Ok(()) => {}
            Err(RegistryError::Default(why)) => self.findings.push(Finding::new("model.default", why)),
            Err(RegistryError::Provider(name, why)) => self.findings.push(Finding::new(format!("model.{name}"), why)),
        }
        (self.findings.len() == before).then_some(models)
    }

    fn signing(&mut self, file: Option<&Path>) -> Option<Named> {
        let Some(path) = file else { return Some(Named::default()) };
        let read = || {
            let text = SecretString::from(text_of(path)?);
            let named = jobs::secrets(&text).with_context(|| path.display().to_string())?;
            Ok((text, named))
        };
        let (text, named) = self.took("jobs.secrets_file", read())?;
        let table: toml::Table = text.expose_secret().parse().unwrap_or_default();
        let texts = table.values().filter_map(toml::Value::as_str).flat_map(str::split_whitespace);
        self.secrets.extend(texts.map(SecretString::from));
        Some(named)
    }

    fn auth(&mut self, config: &Config) -> AuthConfig {
        let config::AuthConfig { admin_key, pepper_file, jwt } = config.auth.clone();
        #[cfg(feature = "jwt")]
        let jwt = jwt.map(|jwt| auth::jwt::JwtConfig {
            jwks_file: jwt.jwks_file,
            issuer: jwt.issuer,
            audience: jwt.audience,
            tenant_claim: jwt.tenant_claim,
            scopes_claim: jwt.scopes_claim,
        });
        #[cfg(feature = "jwt")]
        if let Some(jwt) = &jwt {
            self.took("auth.jwt.jwks_file", auth::jwt::Tokens::open(jwt.clone()));
        }
        #[cfg(not(feature = "jwt"))]
        drop(jwt);
        AuthConfig {
            admin_key: admin_key.as_ref().and_then(|key| self.reveal("auth.admin_key_file", key)),
            pepper_file,
            #[cfg(feature = "jwt")]
            jwt,
        }
    }

    fn hook(&mut self, hook: &HookConfig, egress: &Egress) -> Option<Hook> {
        let (kind, sink): (_, Arc<dyn Sink>) = match &hook.sink {
            SinkConfig::Jsonl { path, max_bytes, keep } => ("jsonl", Arc::new(Jsonl::new(path, *max_bytes, *keep))),
            SinkConfig::Stdout => ("stdout", Arc::new(Stdout::default())),
            SinkConfig::Unix { path } => ("unix", Arc::new(Unix::new(path))),
            SinkConfig::Webhook { url, secret, timeout } => {
                let key = |key: &str| format!("hooks.{}.{key}", hook.name);
                let refused = egress.check(url.expose_secret()).context("it is not requested, see `egress.allow`");
                let url_is_fine = self.took(&key("url"), refused).is_some();
                let secrets = self.reveal(&key("secret_file"), secret)?;
                let secrets = self.took(&key("secret"), Secrets::parse(secrets.expose_secret()).map_err(Into::into))?;
                if !url_is_fine {
                    return None;
                }
                ("webhook", Arc::new(Webhook::new(egress.clone(), url.clone(), secrets, *timeout)))
            }
        };
        let HookConfig { name, events, tenants, since, on_reject, .. } = hook.clone();
        Some(Hook { name: name.into(), kind, events, tenants, since, on_reject, sink })
    }
}

fn agent(config: &AgentConfig) -> AcpConfig {
    let AgentConfig { name, command, args, env, cwd, start_timeout } = config.clone();
    AcpConfig { name, command, args, env, cwd, start_timeout }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn servers(config: &McpConfig) -> anyhow::Result<Vec<mcp::config::Server>> {
    let Some(path) = config.file.as_deref() else { return Ok(Vec::new()) };
    let servers = mcp::config::read(&text_of(path)?, &|name| std::env::var(name).ok());
    servers.with_context(|| path.display().to_string())
}

/// What models cost: by the file, if there is one, otherwise as this build knows it.
fn prices(file: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = file else { return prices::built_in().context("the built-in table") };
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    prices::parse(&name, &text_of(path)?).with_context(|| path.display().to_string())
}

/// The installation's layer, with its rules held against their examples.
fn policy(file: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(path) = file else { return Ok(Policy::default()) };
    policy::file::parse(&text_of(path)?).with_context(|| path.display().to_string())
}

/// The secret itself, read from its file if that is where it is.
fn reveal(secret: &Secret) -> anyhow::Result<SecretString> {
    match secret {
        Secret::Value(value) => Ok(value.clone()),
        // Editors end a file with a line end; no key does.
        Secret::File(path) => match text_of(path)?.trim() {
            "" => bail!("{} is empty", path.display()),
            key => Ok(key.to_owned().into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_file_replaces_the_table_or_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, "").unwrap();
        assert_eq!(prices(Some(&path)).unwrap(), Prices::default());
        assert_ne!(prices(None).unwrap(), Prices::default());
        std::fs::write(&path, "\ncurrency = \"EUR\"").unwrap();
        let why = format!("{:#}", prices(Some(&path)).unwrap_err());
        assert_eq!(why, format!("{}: line 2: `currency` must be USD", path.display()));
        let gone = dir.path().join("gone");
        assert!(format!("{:#}", prices(Some(&gone)).unwrap_err()).contains("gone"));
    }

    #[test]
    fn a_policy_file_is_taken_or_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        std::fs::write(&path, "ask = \"never\"").unwrap();
        assert_eq!(policy(Some(&path)).unwrap().ask, Some(raddle_domain::policy::AskMode::Never));
        assert_eq!(policy(None).unwrap(), Policy::default());
        std::fs::write(&path, "\n[[rules]]\nname = \"x\"\ntool = \"t\"\naction = \"deny\"\nmatch = [\"u\"]").unwrap();
        let why = format!("{:#}", policy(Some(&path)).unwrap_err());
        assert_eq!(why, format!("{}: line 2: the rule `x`: it does not cover its `match` example `u`", path.display()));
    }

    #[test]
    fn a_key_in_a_file_ends_where_its_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-1\n").unwrap();
        assert_eq!(reveal(&Secret::File(path.clone())).unwrap().expose_secret(), "sk-1");
        std::fs::write(&path, "\n").unwrap();
        assert!(reveal(&Secret::File(path)).is_err());
        assert!(reveal(&Secret::File(dir.path().join("gone"))).is_err());
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_and_every_secret_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let key = path("key", "hush-hush-key\n");
        let signing = path("signing", "a = \"hush-hush-signing-key-24-bytes\"");
        let servers = r#"{"mcpServers": {"x": {"command": "x", "env": {"T": "hush-hush-token"}}}}"#;
        let servers = path("mcp", servers);
        let good = format!(
            "model.openai.api_key_file = {key:?}\njobs.secrets_file = {signing:?}\nmcp.file = {servers:?}\n\
             [hooks.a]\nkind = \"webhook\"\nurl = \"https://example.com/\"\nsecret = \"hush-hush-hook-key-of-24-b\""
        );
        let inputs = Inputs::read(&Config::read(Some(&good), [], []).unwrap()).map_err(|why| format!("{why:?}"));
        let known: Vec<_> = inputs.unwrap().secrets.iter().map(|secret| secret.expose_secret().to_owned()).collect();
        for secret in ["key", "signing-key-24-bytes", "token", "hook-key-of-24-b"] {
            assert!(known.contains(&format!("hush-hush-{secret}")), "{known:?}");
        }
        let bad = "prices.file = \"/gone\"\npolicy.file = \"/gone\"\nmcp.file = \"/gone\"\n\
            jobs.secrets_file = \"/gone\"\nmodel.openai.api_key_file = \"/gone\"\nmodel.default = \"claude-x\"\n\
            [hooks.a]\nkind = \"webhook\"\nurl = \"http://127.0.0.1/\"\nsecret_file = \"/gone\"";
        let found = Inputs::read(&Config::read(Some(bad), [], []).unwrap()).err().unwrap();
        let keys: Vec<_> = found.iter().map(|finding| finding.key.as_str()).collect();
        let all = ["prices.file", "policy.file", "mcp.file", "model.openai.api_key_file", "jobs.secrets_file"];
        assert_eq!(keys, [&all[..], &["hooks.a.url", "hooks.a.secret_file"]].concat());
    }
}
