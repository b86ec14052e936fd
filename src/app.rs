//! Wiring: a [`Config`] becomes a running [`Runtime`]. The only place that knows every part by name.

use anyhow::{Context, bail};
use raddle_actors::handle::Runtime;
use secrecy::SecretString;

use crate::config::{Config, Secret};

/// Starts the runtime on the configured data directory.
///
/// The error is a sentence for whoever started the server; that another process owns the directory is one, and
/// names its pid.
pub fn start(config: &Config) -> anyhow::Result<Runtime> {
    let key = config.model.openai.as_ref().and_then(|openai| openai.api_key.as_ref());
    let api_key = key.map(|key| reveal(key).context("`model.openai.api_key_file`")).transpose()?;
    // WIRING: `models::Registry` from `config.model` and `api_key`, then `Runtime::start` with `config.data_dir`,
    // `config.limits`, `config.store`.
    let _ = api_key;
    Ok(Runtime {})
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
