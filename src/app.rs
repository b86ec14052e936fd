//! Wiring: a [`Config`] becomes a running [`Runtime`]. The only place that knows every part by name.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use raddle_actors::{Ports, Runtime, store::redb::RedbConfig};
use raddle_domain::price::Prices;
use secrecy::SecretString;

use crate::{
    config::{AgentConfig, Config, ProviderConfig, Secret},
    models::{
        ANTHROPIC, OPENAI, Registry, RegistryConfig, acp::AcpConfig, anthropic::AnthropicConfig, openai::OpenAiConfig,
    },
    prices,
    tools::{Toolbox, demo},
};

/// Starts the runtime on the configured data directory, with the configured models and tools.
///
/// The error is a sentence for whoever started the server; that another process owns the directory is one, and
/// names its pid.
pub async fn start(config: &Config) -> anyhow::Result<Runtime> {
    let models = Registry::new(models(config)?).context("`model`")?;
    let prices = Arc::new(prices(config.prices_file.as_deref()).context("`prices.file`")?);
    let tools = Arc::new(tools(config)?);
    let ports = Ports { prices, tools, ..Ports::with_models(Arc::new(models)) };
    Ok(Runtime::start(runtime(config), ports).await?)
}

/// What models cost: by the file, if there is one, otherwise as this build knows it.
fn prices(file: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = file else { return prices::built_in().context("the built-in table") };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    prices::parse(&name, &text).with_context(|| path.display().to_string())
}

fn tools(config: &Config) -> anyhow::Result<Toolbox> {
    let demo = config.tools.demo_dir.as_deref().map(|dir| {
        let tools = demo::tools(dir).with_context(|| format!("cannot use {} as a directory", dir.display()))?;
        // A model that may remove files must not be let at the ones that we live on.
        let is_data =
            std::fs::canonicalize(&config.data_dir).is_ok_and(|data| dir.canonicalize().is_ok_and(|dir| dir == data));
        if is_data {
            bail!("{} is the data directory", dir.display());
        }
        Ok(tools)
    });
    let demo = demo.transpose().context("`tools.demo_dir`")?;
    Ok(Toolbox::new(demo.unwrap_or_default(), config.tools.ask_user)?)
}

fn models(config: &Config) -> anyhow::Result<RegistryConfig> {
    let model = &config.model;
    let key = |provider: &ProviderConfig, name: &str| {
        let key = provider.api_key.as_ref().map(reveal).transpose();
        key.with_context(|| format!("`model.{name}.api_key_file`"))
    };
    let openai = model.openai.as_ref().map(|openai| {
        anyhow::Ok(OpenAiConfig {
            api_key: key(&openai.provider, OPENAI)?,
            patience: openai.provider.patience,
            send_reasoning: openai.send_reasoning,
            ..OpenAiConfig::new(&openai.provider.base_url)
        })
    });
    let anthropic = model.anthropic.as_ref().map(|anthropic| {
        let usual = AnthropicConfig::new(&anthropic.provider.base_url);
        anyhow::Ok(AnthropicConfig {
            api_key: key(&anthropic.provider, ANTHROPIC)?,
            patience: anthropic.provider.patience,
            version: anthropic.version.clone().unwrap_or(usual.version),
            max_tokens: anthropic.max_tokens,
            prompt_cache: anthropic.prompt_cache,
            base_url: usual.base_url,
        })
    });
    Ok(RegistryConfig {
        default: model.default.clone(),
        openai: openai.transpose()?,
        anthropic: anthropic.transpose()?,
        agents: model.agents.iter().map(agent).collect(),
    })
}

fn agent(config: &AgentConfig) -> AcpConfig {
    let AgentConfig { name, command, args, env, cwd, start_timeout } = config.clone();
    AcpConfig { name, command, args, env, cwd, start_timeout }
}

fn runtime(config: &Config) -> raddle_actors::Config {
    let limits = &config.limits;
    raddle_actors::Config {
        store: RedbConfig {
            cache_bytes: config.store.cache_bytes,
            min_free_bytes: config.store.min_free_bytes,
            sync_delay: config.store.sync_delay,
            ..RedbConfig::new(&config.data_dir)
        },
        limits: limits.thread,
        loaded_threads: limits.loaded_threads,
        loaded_bytes: usize::try_from(limits.loaded_bytes).unwrap_or(usize::MAX),
        commands_in_flight: limits.commands_in_flight,
        commands_per_thread: limits.commands_per_thread,
        reads_in_flight: limits.reads_in_flight,
        subscribers: limits.subscribers,
        subscriber_bytes: limits.subscriber_bytes,
        pack_after: config.store.pack_after,
        ..raddle_actors::Config::new(&config.data_dir)
    }
}

/// The secret itself, read from its file if that is where it is.
fn reveal(secret: &Secret) -> anyhow::Result<SecretString> {
    match secret {
        Secret::Value(value) => Ok(value.clone()),
        Secret::File(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            // Editors end a file with a line end; no key does.
            match text.trim() {
                "" => bail!("{} is empty", path.display()),
                key => Ok(key.to_owned().into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use raddle_domain::ports::Tools;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::tools::bench::{scene, settings};

    fn offered(config: &str) -> anyhow::Result<Vec<String>> {
        let config = Config::read(Some(config), [], []).unwrap();
        Ok(tools(&config)?.specs(scene(&settings())).into_iter().map(|spec| spec.name).collect())
    }

    #[test]
    fn tools_are_offered_where_they_are_configured() {
        let dir = tempfile::tempdir().unwrap();
        let demo = format!("tools.demo_dir = {:?}", dir.path().join("a/b"));
        let all = ["demo_read", "demo_put", "demo_send", "demo_append", "demo_wipe", "ask_user"];
        assert_eq!(offered("").unwrap(), Vec::<String>::new());
        assert_eq!(offered("tools.ask_user = true").unwrap(), ["ask_user"]);
        assert_eq!(offered(&demo).unwrap(), all);
        assert!(dir.path().join("a/b/outbox").is_dir());
    }

    #[test]
    fn a_demo_directory_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let why = format!("{:#}", offered(&format!("tools.demo_dir = {path:?}")).unwrap_err());
            assert!(why.starts_with("`tools.demo_dir`: cannot use "), "{why}");
        }
        let data = format!("data_dir = {:?}\ntools.demo_dir = {:?}", dir.path(), dir.path().join("."));
        let why = format!("{:#}", offered(&data).unwrap_err());
        assert!(why.ends_with("is the data directory"), "{why}");
    }

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
    fn a_key_in_a_file_ends_where_its_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-1\n").unwrap();
        assert_eq!(reveal(&Secret::File(path.clone())).unwrap().expose_secret(), "sk-1");
        std::fs::write(&path, "\n").unwrap();
        assert!(reveal(&Secret::File(path)).is_err());
        assert!(reveal(&Secret::File(dir.path().join("gone"))).is_err());
    }
}
