//! Wiring: a [`Config`] becomes a running [`Runtime`]. The only place that knows every part by name.

use raddle_actors::handle::Runtime;

use crate::config::Config;

/// Starts the runtime on the configured data directory.
///
/// The error is a sentence for whoever started the server; that another process owns the directory is one, and
/// names its pid.
pub fn start(config: &Config) -> anyhow::Result<Runtime> {
    // WIRING: build the models from `config.model` (reading `Secret::File`), then `Runtime::start` with
    // `config.data_dir`, `config.limits`, `config.store`.
    let _ = config;
    Ok(Runtime {})
}
