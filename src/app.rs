//! Wiring: a [`Config`] becomes a running [`Runtime`]. The only place that knows every part by name.

use std::sync::Arc;

use anyhow::{Context, bail};
use raddle_actors::{Ports, Runtime, store::redb::RedbConfig};
use secrecy::SecretString;

use crate::{
    config::{Config, Secret},
    models::{Registry, RegistryConfig, openai::OpenAiConfig},
};

/// Starts the runtime on the configured data directory, with the configured models.
///
/// The error is a sentence for whoever started the server; that another process owns the directory is one, and
/// names its pid.
pub async fn start(config: &Config) -> anyhow::Result<Runtime> {
    let models = Registry::new(models(config)?).context("`model`")?;
    Ok(Runtime::start(runtime(config), Ports::with_models(Arc::new(models))).await?)
}

fn models(config: &Config) -> anyhow::Result<RegistryConfig> {
    let openai = config.model.openai.as_ref().map(|openai| {
        let key = openai.api_key.as_ref().map(reveal).transpose().context("`model.openai.api_key_file`")?;
        let defaults = OpenAiConfig::new(openai.base_url.clone());
        anyhow::Ok(OpenAiConfig {
            api_key: key,
            connect_timeout: openai.connect_timeout,
            first_byte_timeout: openai.first_byte_timeout,
            idle_timeout: openai.idle_timeout,
            ..defaults
        })
    });
    Ok(RegistryConfig { default: config.model.default.clone(), openai: openai.transpose()? })
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
    use secrecy::ExposeSecret;

    use super::*;

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
