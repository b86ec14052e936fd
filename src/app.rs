//! Wiring: a [`Config`] becomes a running [`Runtime`]. The only place that knows every part by name.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use raddle_actors::{Hook, Ports, Runtime, SystemClock, store::redb::RedbConfig};
use raddle_domain::{policy::Policy, ports::Sink, price::Prices};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    config::{AgentConfig, Config, HookConfig, McpConfig, ProviderConfig, Secret, SinkConfig},
    egress::{Allowed, Egress},
    hooks::{Jsonl, Stdout, Unix, Webhook},
    jobs::{self, Runner},
    mcp::{self, Mcp},
    models::{
        ANTHROPIC, OPENAI, Registry, RegistryConfig, acp::AcpConfig, anthropic::AnthropicConfig, openai::OpenAiConfig,
    },
    policy, prices,
    sandbox::{self, Sandbox},
    tools::{Tool, Toolbox, board, demo, files, shell::Shell},
    webhook::Secrets,
    workspace::Workspaces,
};

/// A running server, but for its listening.
#[derive(Clone)]
pub struct App {
    pub runtime: Runtime,
    pub workspaces: Arc<Workspaces>,
    pub mcp: Mcp,
    pub sandbox: Arc<Sandbox>,
}

impl App {
    /// Takes what the runtime needs for open turns, at most the deadline; then ends what helped it.
    pub async fn shutdown(&self, deadline: Duration) {
        self.runtime.shutdown(deadline).await;
        self.mcp.stop().await;
    }
}

/// Starts the runtime on the configured data directory, with the configured models and tools.
///
/// The error is a sentence for whoever started the server; that another process owns the directory is one, and
/// names its pid. The sandbox starts this program again: its `main` begins with [`sandbox::helper::main`], or
/// `sandbox.kind` is `off`.
pub async fn start(config: &Config) -> anyhow::Result<App> {
    let prices = Arc::new(prices(config.prices_file.as_deref()).context("`prices.file`")?);
    let workspaces = workspaces(config)?;
    let models = Registry::new(models(config)?, &workspaces).context("`model`")?;
    let mcp = mcp(&config.mcp).context("`mcp.file`")?;
    let policy = policy(config.policy_file.as_deref()).context("`policy.file`")?;
    let sandbox = sandbox(config).await;
    let way = board::Way::default();
    let tools = tools(config, &workspaces, &sandbox, &way)?.with_policy(policy);
    let tools = Arc::new(tools.with(Arc::new(mcp.clone())));
    let jobs = Arc::new(runner(config, tools.clone())?);
    let hooks = hooks(config)?;
    let files = files::past(&workspaces);
    let ports = Ports { prices, tools, jobs, hooks, files, ..Ports::with_models(Arc::new(models)) };
    let runtime = Runtime::start(runtime(config), ports).await?;
    // Tools are run by the runtime, so there was none to give them.
    drop(way.set(runtime.downgrade()));
    // Not before the data directory is known to be ours.
    mcp.start();
    Ok(App { runtime, workspaces, mcp, sandbox })
}

/// The servers whose tools are offered, not started yet.
fn mcp(config: &McpConfig) -> anyhow::Result<Mcp> {
    let servers = match config.file.as_deref() {
        None => Vec::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let servers = mcp::config::read(&text, &|name| std::env::var(name).ok());
            servers.with_context(|| path.display().to_string())?
        }
    };
    let timeouts = mcp::Timeouts { startup: config.startup_timeout, call: config.call_timeout };
    Ok(Mcp::new(servers, timeouts, Arc::new(SystemClock))?)
}

/// Who runs the jobs that are no turns.
fn runner(config: &Config, tools: Arc<Toolbox>) -> anyhow::Result<Runner> {
    let secrets = config.jobs.secrets_file.as_deref().map(|path| {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        jobs::secrets(&text.into()).with_context(|| path.display().to_string())
    });
    let secrets = secrets.transpose().context("`jobs.secrets_file`")?;
    let egress = Egress::new(config.egress_allow.clone()).context("no way out for webhooks")?;
    Ok(Runner::new(tools, egress, secrets.unwrap_or_default()))
}

/// The directories in which threads work. None of them has the server's own files in it.
fn workspaces(config: &Config) -> anyhow::Result<Arc<Workspaces>> {
    let root = &config.workspaces_root;
    let open = || {
        let spaces = Workspaces::open(root).with_context(|| format!("cannot use {} as a directory", root.display()))?;
        if config.data_dir.canonicalize().is_ok_and(|data| data.starts_with(spaces.path())) {
            bail!("{} holds the data directory: name one in it, or beside it", root.display());
        }
        Ok(Arc::new(spaces))
    };
    open().context("`workspaces.root`")
}

/// Where commands run, as this machine can confine them; they must not read what the server keeps for itself.
async fn sandbox(config: &Config) -> Arc<Sandbox> {
    let model = &config.model;
    let keys = [
        model.openai.as_ref().and_then(|openai| openai.provider.api_key.as_ref()),
        model.anthropic.as_ref().and_then(|anthropic| anthropic.provider.api_key.as_ref()),
    ];
    let hooks = config.hooks.iter().map(|hook| match &hook.sink {
        SinkConfig::Webhook { secret, .. } => Some(secret),
        SinkConfig::Jsonl { .. } | SinkConfig::Stdout | SinkConfig::Unix { .. } => None,
    });
    let secrets = keys.into_iter().chain(hooks).flatten().filter_map(|secret| match secret {
        Secret::File(path) => Some(path.clone()),
        Secret::Value(_) => None,
    });
    // A command is shown the workspace that it runs in, and nobody else's.
    let roots = [config.data_dir.clone(), config.workspaces_root.clone()].map(Some);
    let files = [config.file.clone(), config.mcp.file.clone(), config.jobs.secrets_file.clone()];
    let hidden: Vec<_> = roots.into_iter().chain(files).flatten().chain(secrets).collect();
    let sandbox = Sandbox::probe(config.sandbox.clone(), sandbox::this_program(), &hidden).await;
    let enforced = sandbox.enforced();
    match enforced.available {
        true if sandbox.confines() => tracing::info!(kind = enforced.kind, "commands are confined"),
        true => tracing::warn!("commands are not confined: `sandbox.kind` is `none`"),
        false => tracing::warn!(why = enforced.notes.join("; "), "no commands are run"),
    }
    Arc::new(sandbox)
}

/// What models cost: by the file, if there is one, otherwise as this build knows it.
fn prices(file: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = file else { return prices::built_in().context("the built-in table") };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    prices::parse(&name, &text).with_context(|| path.display().to_string())
}

/// The installation's layer, with its rules held against their examples.
fn policy(file: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(path) = file else { return Ok(Policy::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    policy::file::parse(&text).with_context(|| path.display().to_string())
}

fn tools(
    config: &Config,
    workspaces: &Arc<Workspaces>,
    sandbox: &Arc<Sandbox>,
    way: &board::Way,
) -> anyhow::Result<Toolbox> {
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
    let files = config.tools.files.then(|| files::tools(workspaces));
    let shell = sandbox.enforced().available.then(|| Shell::new(sandbox.clone(), workspaces.clone()));
    let shell = shell.map(|shell| Arc::new(shell) as Arc<dyn Tool>);
    let all = demo.into_iter().chain(files).flatten().chain(shell);
    Ok(Toolbox::new(all, config.tools.ask_user)?.with_board(board::tools(way))?)
}

fn hooks(config: &Config) -> anyhow::Result<Vec<Hook>> {
    let mut egress = None;
    let hook = |hook: &HookConfig| {
        let (kind, sink) = sink(hook, &config.egress_allow, &mut egress)?;
        let HookConfig { name, events, tenants, since, on_reject, .. } = hook.clone();
        Ok(Hook { name: name.into(), kind, events, tenants, since, on_reject, sink })
    };
    config.hooks.iter().map(hook).collect()
}

/// A sink, and what it is called. The way out is made once, for the first who needs it.
fn sink(
    hook: &HookConfig,
    allow: &[Allowed],
    egress: &mut Option<Egress>,
) -> anyhow::Result<(&'static str, Arc<dyn Sink>)> {
    Ok(match &hook.sink {
        SinkConfig::Jsonl { path, max_bytes, keep } => ("jsonl", Arc::new(Jsonl::new(path, *max_bytes, *keep))),
        SinkConfig::Stdout => ("stdout", Arc::new(Stdout::default())),
        SinkConfig::Unix { path } => ("unix", Arc::new(Unix::new(path))),
        SinkConfig::Webhook { url, secret, timeout } => {
            let egress = match egress {
                Some(egress) => egress,
                None => egress.insert(Egress::new(allow)?),
            };
            let key = |key: &str| format!("`hooks.{}.{key}`", hook.name);
            egress.check(url.expose_secret()).with_context(|| format!("{} (see `egress.allow`)", key("url")))?;
            let secrets = reveal(secret).with_context(|| key("secret_file"))?;
            let secrets = Secrets::parse(secrets.expose_secret()).with_context(|| key("secret"))?;
            ("webhook", Arc::new(Webhook::new(egress.clone(), url.clone(), secrets, *timeout)))
        }
    })
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
        command_wait: limits.command_wait,
        reads_in_flight: limits.reads_in_flight,
        subscribers: limits.subscribers,
        subscriber_bytes: limits.subscriber_bytes,
        pack_after: config.store.pack_after,
        jobs_concurrent: config.jobs.concurrent,
        jobs_retention: config.jobs.retention,
        jobs_lease: config.jobs.lease,
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
    use super::*;
    use crate::tools::bench::{scene, settings};
    use raddle_domain::ports::Tools;

    fn offered(config: &str) -> anyhow::Result<Vec<String>> {
        let env = [("RADDLE_SANDBOX_KIND".to_owned(), "off".to_owned())];
        let config = Config::read(Some(config), env, []).unwrap();
        let sandbox = tokio::runtime::Runtime::new().unwrap().block_on(sandbox(&config));
        Ok(tools(&config, &workspaces(&config)?, &sandbox, &board::Way::default())?
            .specs(scene(&settings()))
            .into_iter()
            .map(|spec| spec.name)
            .collect())
    }

    #[test]
    fn tools_are_offered_where_they_are_configured() {
        let dir = tempfile::tempdir().unwrap();
        let demo = format!("tools.demo_dir = {:?}", dir.path().join("a/b"));
        let all = ["demo_read", "demo_put", "demo_send", "demo_append", "demo_wipe", "ask_user"];
        let data = format!("data_dir = {:?}\n", dir.path().join("data"));
        let none = format!("{data}tools.files = false\n");
        assert_eq!(offered(&none).unwrap(), Vec::<String>::new());
        assert_eq!(offered(&format!("{none}tools.ask_user = true")).unwrap(), ["ask_user"]);
        assert_eq!(offered(&format!("{none}{demo}")).unwrap(), all);
        let files = ["read_file", "list_dir", "grep", "write_file", "edit_file", "apply_patch", "ask_user"];
        assert_eq!(offered(&data).unwrap(), files);
        assert_eq!(offered(&format!("{data}{demo}")).unwrap(), [&all[..5], &files].concat());
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
    fn no_workspace_has_the_store_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/data");
        std::fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let opened = |root: &Path| {
            let text = format!("data_dir = {data:?}\nworkspaces.root = {root:?}");
            workspaces(&Config::read(Some(&text), [], []).unwrap()).map(|spaces| spaces.path().to_owned())
        };
        for root in [&data, dir.path(), &dir.path().join("a"), &dir.path().join("link/a")] {
            let why = format!("{:#}", opened(root).unwrap_err());
            assert!(why.starts_with("`workspaces.root`: ") && why.contains("holds the data directory"), "{why}");
        }
        for root in [data.join("workspaces"), dir.path().join("beside"), dir.path().join("a/data2")] {
            assert_eq!(opened(&root).unwrap(), root.canonicalize().unwrap());
        }
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
}
