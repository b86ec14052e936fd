//! Wiring: a [`Config`] becomes a running [`Runtime`]. The only place that knows every part by name.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use raddle_actors::{
    Ports, Runtime, Tape,
    store::{backend::Faults, redb::RedbConfig},
};
use raddle_domain::policy::Policy;

use self::inputs::Inputs;
pub use self::{check::check, inputs::Finding};
use crate::{
    auth::{Auth, AuthConfig},
    config::{Config, Secret, SinkConfig},
    erase,
    jobs::Runner,
    log,
    mcp::Mcp,
    models::Registry,
    sandbox::{self, Sandbox},
    tools::{Tool, Toolbox, board, demo, files, shell::Shell},
    workspace::Workspaces,
};

mod check;
mod inputs;

/// A running server, but for its listening.
#[derive(Clone)]
pub struct App {
    pub runtime: Runtime,
    pub workspaces: Arc<Workspaces>,
    pub mcp: Mcp,
    pub sandbox: Arc<Sandbox>,
    /// Who callers are known by; nothing where nobody needs a key.
    pub auth: Option<Arc<Auth>>,
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
    start_heard(config, Arc::default()).await
}

/// The same, with a tape that hears what threads are told.
pub async fn start_heard(config: &Config, tape: Arc<Tape>) -> anyhow::Result<App> {
    let Inputs { prices, policy, mcp, models, signing, egress, hooks, auth, secrets } =
        Inputs::read(config).map_err(all)?;
    // Before anybody has anything to say about them.
    log::hide(&secrets)?;
    let prices = Arc::new(prices);
    let workspaces = workspaces(config)?;
    let models = Registry::new(models, &workspaces).context("`model`")?;
    let sandbox = sandbox(config).await;
    let way = board::Way::default();
    let tools = tools(config, &workspaces, &sandbox, &way)?.with_policy(policy);
    let tools = Arc::new(tools.with(Arc::new(mcp.clone())));
    let jobs = Arc::new(Runner::new(tools.clone(), egress, signing));
    let files = files::past(&workspaces);
    let ports = Ports { prices, tools, jobs, hooks, files, tape, ..Ports::with_models(Arc::new(models)) };
    let faults = Arc::new(Faults::new(config.store.faults_per_million));
    let runtime = Runtime::start(runtime(config, &faults), ports).await?;
    if config.store.faults_per_million > 0 {
        let faults = config.store.faults_per_million;
        tracing::warn!(faults, "of a million writes and syncs so many FAIL ON PURPOSE: `store.faults_per_million`");
    }
    faults.arm();
    // Tools are run by the runtime, so there was none to give them.
    drop(way.set(runtime.downgrade()));
    let auth = match known_by(config, auth, &runtime) {
        Ok(auth) => auth.map(Arc::new),
        Err(err) => {
            runtime.shutdown(Duration::ZERO).await;
            return Err(err);
        }
    };
    // Not before the data directory is known to be ours.
    mcp.start();
    tokio::spawn(erase::go_on(runtime.clone(), workspaces.clone()));
    Ok(App { runtime, workspaces, mcp, sandbox, auth })
}

/// The configured tools, but for those that come and go, under another policy of the installation: to ask what would be
/// decided about calls. Nothing is run.
pub async fn judges(config: &Config, policy: Policy) -> anyhow::Result<Toolbox> {
    let (workspaces, sandbox) = (workspaces(config)?, sandbox(config).await);
    Ok(tools(config, &workspaces, &sandbox, &board::Way::default())?.with_policy(policy))
}

/// Who callers are known by. Others can reach a server only if it asks them who they are.
fn known_by(config: &Config, auth: AuthConfig, runtime: &Runtime) -> anyhow::Result<Option<Auth>> {
    let auth = Auth::open(auth, runtime)?;
    let open = [Some(config.listen), config.admin_listen].into_iter().flatten().find(|at| !at.ip().is_loopback());
    match (&auth, open) {
        (None, Some(open)) => bail!("`listen`: {}", check::open_without_keys(open)),
        _ => Ok(auth),
    }
}

/// All that was found, as one error.
fn all(findings: Vec<Finding>) -> anyhow::Error {
    anyhow::Error::msg(findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// The directories in which threads work. None of them has the server's own files in it.
fn workspaces(config: &Config) -> anyhow::Result<Arc<Workspaces>> {
    let root = &config.workspaces_root;
    let open = || {
        let spaces = Workspaces::open(root).with_context(|| format!("cannot use {} as a directory", root.display()))?;
        if let Some(why) = check::holds_data(root, &config.data_dir) {
            bail!("{why}");
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
    let keys = keys.into_iter().chain([config.auth.admin_key.as_ref()]);
    let secrets = keys.chain(hooks).flatten().filter_map(|secret| match secret {
        Secret::File(path) => Some(path.clone()),
        Secret::Value(_) => None,
    });
    // A command is shown the workspace that it runs in, and nobody else's.
    let roots = [config.data_dir.clone(), config.workspaces_root.clone()].map(Some);
    let files = [
        config.file.clone(),
        config.mcp.file.clone(),
        config.jobs.secrets_file.clone(),
        Some(config.auth.pepper_file.clone()),
    ];
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

fn tools(
    config: &Config,
    workspaces: &Arc<Workspaces>,
    sandbox: &Arc<Sandbox>,
    way: &board::Way,
) -> anyhow::Result<Toolbox> {
    let demo = config.tools.demo_dir.as_deref().map(|dir| {
        let tools = demo::tools(dir).with_context(|| format!("cannot use {} as a directory", dir.display()))?;
        if let Some(why) = check::is_data(dir, &config.data_dir) {
            bail!("{why}");
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

fn runtime(config: &Config, faults: &Arc<Faults>) -> raddle_actors::Config {
    let limits = &config.limits;
    raddle_actors::Config {
        store: RedbConfig {
            cache_bytes: config.store.cache_bytes,
            min_free_bytes: config.store.min_free_bytes,
            sync_delay: config.store.sync_delay,
            faults: faults.clone(),
            ..RedbConfig::new(&config.data_dir)
        },
        limits: limits.thread,
        loaded_threads: limits.loaded_threads,
        loaded_bytes: usize::try_from(limits.loaded_bytes).unwrap_or(usize::MAX),
        commands_in_flight: limits.commands_in_flight,
        commands_at_work: limits.commands_at_work,
        commands_per_thread: limits.commands_per_thread,
        command_wait: limits.command_wait,
        reads_in_flight: limits.reads_in_flight,
        subscribers: limits.subscribers,
        model_calls: limits.model_calls,
        tool_runs: limits.tool_runs,
        tenant_share_percent: limits.tenant_share_percent,
        quotas: config.quotas,
        subscriber_bytes: limits.subscriber_bytes,
        pack_after: config.store.pack_after,
        jobs_concurrent: config.jobs.concurrent,
        jobs_retention: config.jobs.retention,
        jobs_lease: config.jobs.lease,
        ..raddle_actors::Config::new(&config.data_dir)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
            .map(|spec| spec.name.clone())
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
}
