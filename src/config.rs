//! The configuration: every key, default and unit, in one place. Pure: texts in, a [`Config`] or a sentence out.
//!
//! Flags win over the environment, which wins over the file, which wins over the defaults. A key `a.b_c` is
//! `RADDLE_A_B_C` in the environment. A key that nobody reads is an error that names it: a typo must not leave a
//! default in force. Secrets show neither in `Debug` nor in an error.
//!
//! Every key is asked for through [`Keys`], which remembers what was asked, the value in force and where it came from
//! ([`Setting`]): so a new key is in the help and in `raddle config show` by itself.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use raddle_domain::{command::Limits, policy::SandboxMode, tenant::Quotas};
use secrecy::SecretString;
use toml::{Table, Value};

pub use self::{
    auth::{AuthConfig, JwtConfig},
    hooks::{HookConfig, SinkConfig},
    setting::{HIDDEN, Setting, Source},
};
use crate::{
    egress::Allowed,
    listener,
    models::{acp, anthropic, provider::Patience},
    sandbox::{self, Kind, SandboxConfig},
};

mod auth;
mod hooks;
mod quotas;
mod setting;

/// Variables that are no configuration of the server: they belong to the command line.
const NOT_KEYS: [&str; 5] = ["RADDLE_SERVER", "RADDLE_KEY", "RADDLE_LEASE", "RADDLE_LOG", "RADDLE_CONFIG"];

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Everything a server can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    /// Who callers are known by.
    pub auth: AuthConfig,
    /// Where the routes of the operator are served, if not beside all others.
    pub admin_listen: Option<SocketAddr>,
    /// Where the file was, if there was one. It may hold secrets.
    pub file: Option<PathBuf>,
    pub limits: ServerLimits,
    /// What a tenant may have that does not say otherwise itself.
    pub quotas: Quotas,
    pub model: ModelConfig,
    /// What models cost, instead of the table that is built in.
    pub prices_file: Option<PathBuf>,
    /// The installation's layer of the policy.
    pub policy_file: Option<PathBuf>,
    pub tools: ToolsConfig,
    pub jobs: JobsConfig,
    /// Where the directories are in which threads work. Made if it is not there.
    pub workspaces_root: PathBuf,
    /// What requests to addresses that users name may reach beside the internet at large.
    pub egress_allow: Vec<Allowed>,
    /// What commands may do.
    pub sandbox: SandboxConfig,
    pub hooks: Vec<HookConfig>,
    pub mcp: McpConfig,
    pub store: StoreConfig,
    pub shutdown: ShutdownConfig,
    pub log: LogConfig,
    /// Where spans go: the base URL of an OpenTelemetry collector.
    pub otel_endpoint: Option<String>,
    /// Every secret that stands in the configuration itself: what must be in no line of the log.
    pub secrets: Vec<SecretString>,
}

/// How a server goes.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownConfig {
    /// How long it only says that it is about to go, and works on: time for those who send it work to hear of it.
    pub grace: Duration,
    /// How long open turns may take to end after that.
    pub deadline: Duration,
}

/// The bounds of the whole server, and of each thread.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Threads in memory.
    pub loaded_threads: usize,
    /// Bytes that loaded threads may hold.
    pub loaded_bytes: u64,
    /// The largest request body.
    pub body_bytes: usize,
    /// How long it may take to arrive.
    pub body_time: Duration,
    pub commands_in_flight: usize,
    /// Of them, those that threads and the store are busy with while there are several tenants.
    pub commands_at_work: usize,
    pub commands_per_thread: usize,
    /// How long even the fastest command may take before commands are shed.
    pub command_wait: Duration,
    pub reads_in_flight: usize,
    pub subscribers: usize,
    /// Bytes that may wait for one subscriber.
    pub subscriber_bytes: usize,
    /// Model calls at once, over all tenants.
    pub model_calls: usize,
    /// Runs of tools at once, over all tenants.
    pub tool_runs: usize,
    /// Of the places for commands, reads and watchers, what one tenant may hold while there are others.
    pub tenant_share_percent: u8,
    /// What clients may hold of the listener.
    pub listener: listener::Limits,
    pub thread: Limits,
}

/// Which models answer.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Who answers when nobody is named.
    pub default: Option<String>,
    pub openai: Option<OpenAiConfig>,
    pub anthropic: Option<AnthropicConfig>,
    /// By their names.
    pub agents: Vec<AgentConfig>,
}

/// What models may do.
#[derive(Debug, Clone)]
pub struct ToolsConfig {
    /// Offers the demo tools, which act on the files of this directory. It is made if it is not there.
    pub demo_dir: Option<PathBuf>,
    /// Offers `ask_user` also where no other tool is offered.
    pub ask_user: bool,
    /// Offers the tools that read and change the files of a thread's workspace.
    pub files: bool,
}

/// The tools of others.
#[derive(Debug, Clone)]
pub struct McpConfig {
    /// The servers, see [`crate::mcp::config`].
    pub file: Option<PathBuf>,
    pub startup_timeout: Duration,
    pub call_timeout: Duration,
}

/// A provider that speaks the OpenAI chat protocol.
#[derive(Debug, Clone)]
pub struct OpenAiConfig {
    pub provider: ProviderConfig,
    /// Whether earlier reasoning goes back to the model, as `reasoning_content`.
    pub send_reasoning: bool,
}

/// A provider that speaks Anthropic's messages API.
#[derive(Debug, Clone)]
pub struct AnthropicConfig {
    pub provider: ProviderConfig,
    /// The version of the API that is asked for, where it is not the usual one.
    pub version: Option<String>,
    /// The most tokens of an answer, for calls that name none.
    pub max_tokens: u32,
    /// Whether the provider is asked to keep the conversation for the next call.
    pub prompt_cache: bool,
}

/// A process that speaks the Agent Client Protocol.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub name: String,
    pub command: PathBuf,
    pub args: Vec<String>,
    /// Added to its environment.
    pub env: Vec<(String, SecretString)>,
    /// Where it works, instead of the workspace of each thread.
    pub cwd: Option<PathBuf>,
    pub start_timeout: Duration,
}

/// Where a provider is, how to log in, and how long it may take.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    pub base_url: String,
    pub api_key: Option<Secret>,
    pub patience: Patience,
}

/// A secret, or where it is.
#[derive(Debug, Clone)]
pub enum Secret {
    Value(SecretString),
    File(PathBuf),
}

/// The store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Added to every sync: a slow disk, for tests.
    pub sync_delay: Duration,
    /// Of a million writes and syncs, those that fail: a bad disk, for `raddle stress`. It is in no list of keys.
    pub faults_per_million: u32,
    /// Memory for pages.
    pub cache_bytes: usize,
    /// Space that must stay free on the disk.
    pub min_free_bytes: u64,
    /// How long after its end a turn's log is packed.
    pub pack_after: Duration,
}

/// Work for later.
#[derive(Debug, Clone)]
pub struct JobsConfig {
    /// Runs at once.
    pub concurrent: usize,
    /// How long a job that has ended is remembered.
    pub retention: Duration,
    /// How long a run may go on without a word of its process.
    pub lease: Duration,
    /// Secrets to sign webhooks with: a TOML file of names and texts.
    pub secrets_file: Option<PathBuf>,
}

/// What a level may be.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A level, or directives such as `raddle=debug,info`.
    pub level: String,
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is no TOML. Names the line and never shows it: it may hold a secret.
    #[error("the configuration file is not TOML{}: {why}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Syntax { line: Option<usize>, why: String },
    #[error("{origin} names `{name}`, which is not a key of the configuration")]
    Unknown { name: String, origin: Origin },
    #[error("`{key}` ({origin}) {why}")]
    Invalid { key: String, origin: Origin, why: String },
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "the default",
            Self::File => "the configuration file",
            Self::Environment => "the environment",
            Self::Flag => "the command line",
        })
    }
}

impl Config {
    /// Reads the configuration. `file` is the text of the file, `env` the whole environment, `flags` pairs of a
    /// key and its value.
    pub fn read(
        file: Option<&str>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        Ok(Self::explain(file, env, flags)?.0)
    }

    /// The same, with every key, its value in force and where that came from, in the order in which keys are read.
    pub fn explain(
        file: Option<&str>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<(Self, Vec<Setting>), ConfigError> {
        let mut keys = Keys::new(file, env, flags)?;
        let mut config = Self::take(&mut keys)?;
        config.secrets = std::mem::take(&mut keys.secrets);
        let settings = std::mem::take(&mut keys.asked);
        keys.end()?;
        Ok((config, settings))
    }

    /// Every key that can be set, in the order in which they are read.
    pub fn keys() -> Vec<String> {
        let Ok(mut keys) = Keys::new(None, [], []) else { return Vec::new() };
        // Defaults are acceptable, or nothing would start; what was asked for is the list.
        let _ = Self::take(&mut keys);
        // Of these there are as many as somebody names.
        let _ = hooks::hook(&mut keys, "NAME");
        keys.asked.into_iter().map(|setting| setting.key).collect()
    }

    fn take(keys: &mut Keys) -> Result<Self, ConfigError> {
        let data_dir = PathBuf::from(keys.text_or("data_dir", "./raddle-data")?.0);
        // Beside the store's files, not above them: no workspace has them in it.
        let beside = data_dir.join("workspaces").to_string_lossy().into_owned();
        let workspaces_root = PathBuf::from(keys.text_or("workspaces.root", &beside)?.0);
        let listen = listen(keys)?;
        Ok(Self {
            listen,
            auth: auth::auth(keys, &data_dir)?,
            admin_listen: auth::admin_listen(keys, listen)?,
            data_dir,
            file: None,
            limits: limits(keys)?,
            quotas: quotas::quotas(keys)?,
            model: ModelConfig {
                default: keys.text("model.default")?.map(|text| text.0),
                openai: openai(keys)?,
                anthropic: anthropic(keys)?,
                agents: agents(keys)?,
            },
            prices_file: keys.text("prices.file")?.map(|text| text.0.into()),
            policy_file: keys.text("policy.file")?.map(|text| text.0.into()),
            tools: ToolsConfig {
                demo_dir: keys.text("tools.demo_dir")?.map(|text| text.0.into()),
                ask_user: keys.flag("tools.ask_user", false)?,
                files: keys.flag("tools.files", true)?,
            },
            workspaces_root,
            jobs: JobsConfig {
                concurrent: keys.size("jobs.concurrent", 16, 1)?,
                retention: keys.millis("jobs.retention_ms", 7 * 24 * 60 * 60 * 1000, 0)?,
                lease: keys.millis("jobs.lease_ms", 60_000, 1_000)?,
                secrets_file: keys.text("jobs.secrets_file")?.map(|text| text.0.into()),
            },
            egress_allow: allowed(keys)?,
            sandbox: sandbox(keys, listen.port())?,
            hooks: hooks::hooks(keys)?,
            mcp: McpConfig {
                file: keys.text("mcp.file")?.map(|text| text.0.into()),
                startup_timeout: keys.millis("mcp.startup_timeout_ms", 30_000, 1)?,
                call_timeout: keys.millis("mcp.call_timeout_ms", 120_000, 1)?,
            },
            store: StoreConfig {
                sync_delay: keys.millis("store.sync_delay_ms", 0, 0)?,
                faults_per_million: faults(keys)?,
                cache_bytes: keys.size("store.cache_bytes", 64 * MIB, MIB)?,
                min_free_bytes: keys.number("store.min_free_bytes", 16 * MIB, 0, u64::MAX)?,
                pack_after: keys.millis("store.pack_after_ms", 60 * 60 * 1000, 0)?,
            },
            shutdown: ShutdownConfig {
                grace: keys.millis("shutdown.grace_ms", 0, 0)?,
                deadline: keys.millis("shutdown.deadline_ms", 10_000, 0)?,
            },
            log: LogConfig {
                level: match keys.text_or("log.level", "info")? {
                    // A word that is no level would be read as the name of a module, and silence all others.
                    (text, origin) if !LEVELS.contains(&text.as_str()) && !text.contains('=') => {
                        return Err(invalid(
                            "log.level",
                            origin,
                            "must be a level, or hold directives such as `raddle=debug`",
                        ));
                    }
                    (text, _) => text,
                },
                format: keys.one_of_or(
                    "log.format",
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                    LogFormat::Text,
                )?,
            },
            otel_endpoint: otel_endpoint(keys)?,
            secrets: Vec::new(),
        })
    }
}

/// A key that nobody may find who looks for keys to set, and everybody sees who looks at what is set.
fn faults(keys: &mut Keys) -> Result<u32, ConfigError> {
    let key = "store.faults_per_million";
    let faults = keys.number(key, 0, 0, 1_000_000)?;
    if faults == 0 {
        keys.passes_over(key);
    }
    Ok(faults as u32)
}

fn listen(keys: &mut Keys) -> Result<SocketAddr, ConfigError> {
    let (text, origin) = keys.text_or("listen", "127.0.0.1:7878")?;
    let Ok(listen) = text.parse::<SocketAddr>() else {
        return Err(invalid("listen", origin, "must be an address and a port, such as 127.0.0.1:7878"));
    };
    Ok(listen)
}

/// Without the feature the key is known, so that a file that names it is told what is missing.
fn otel_endpoint(keys: &mut Keys) -> Result<Option<String>, ConfigError> {
    match keys.text("otel.endpoint")? {
        None => Ok(None),
        Some((_, origin)) if !cfg!(feature = "otel") => {
            Err(invalid("otel.endpoint", origin, "cannot be set: this build has not the feature `otel`"))
        }
        Some((url, origin)) if !url.starts_with("http://") && !url.starts_with("https://") => {
            Err(invalid("otel.endpoint", origin, "must start with http:// or https://"))
        }
        Some((url, _)) => Ok(Some(url)),
    }
}

fn sandbox(keys: &mut Keys, own_port: u16) -> Result<SandboxConfig, ConfigError> {
    let kinds = [
        ("auto", Kind::Auto),
        ("bwrap", Kind::Bwrap),
        ("namespaces", Kind::Namespaces),
        ("landlock", Kind::Landlock),
        ("none", Kind::None),
        ("off", Kind::Off),
    ];
    let modes = [
        ("read-only", SandboxMode::ReadOnly),
        ("workspace-write", SandboxMode::WorkspaceWrite),
        ("danger-full-access", SandboxMode::DangerFullAccess),
    ];
    let kind = keys.one_of_or("sandbox.kind", &kinds, Kind::Auto)?;
    let widest = keys.one_of_or("sandbox.mode", &modes, SandboxMode::WorkspaceWrite)?;
    let network = keys.flag("sandbox.network", false)?;
    let (ports, origin) = keys.texts_or("sandbox.network_ports", &["443"])?;
    let ports: Option<Vec<u16>> = ports.iter().map(|text| text.parse().ok().filter(|port| *port > 0)).collect();
    let Some(ports) = ports else {
        return Err(invalid("sandbox.network_ports", origin, "must be a list of ports, such as [\"443\"]"));
    };
    if network && ports.contains(&own_port) {
        // Whoever can talk to this server can approve its own calls.
        let why = format!("holds {own_port}, on which this server listens");
        return Err(invalid("sandbox.network_ports", origin, why));
    }
    let env_pass = listed(keys, "sandbox.env_pass", &[], |name| {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (plain && !steers_programs(name)).then(|| name.to_owned()).ok_or("is not one that commands may have")
    })?;
    let read = listed(keys, "sandbox.read", &[], |path| {
        path.starts_with('/').then(|| PathBuf::from(path)).ok_or("is not an absolute path")
    })?;
    let plain = |name: &str| match name.contains('/') || name == "." || name == ".." {
        true => Err("is no plain name"),
        false => Ok(name.to_owned()),
    };
    let protect = listed(keys, "sandbox.protect", &[".git"], plain)?;
    Ok(SandboxConfig {
        kind,
        widest,
        ports: network.then_some(ports),
        env_pass,
        read,
        protect,
        timeout: keys.millis("sandbox.timeout_ms", 120_000, 1)?,
        output_bytes: keys.size("sandbox.output_bytes", 64 * KIB, 16)?,
        limits: sandbox::Limits {
            cpu_s: keys.number("sandbox.cpu_s", 600, 1, u64::MAX)?,
            memory_bytes: keys.number("sandbox.memory_bytes", 4096 * MIB, 16 * MIB, u64::MAX)?,
            processes: keys.number("sandbox.processes", 256, 1, 1 << 20)?,
            file_bytes: keys.number("sandbox.file_bytes", 1024 * MIB, 1, u64::MAX)?,
            open_files: keys.number("sandbox.open_files", 1024, 16, 1 << 20)?,
        },
    })
}

/// Whether a variable of this name can make programs run others, or is ours.
fn steers_programs(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["RADDLE_", "LD_", "GIT_", "BASH_FUNC_"];
    const NAMES: [&str; 8] = ["PAGER", "ENV", "BASH_ENV", "SHELLOPTS", "BASHOPTS", "IFS", "PS4", "PROMPT_COMMAND"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// A list of which each entry is to be something.
fn listed<T>(
    keys: &mut Keys,
    key: &str,
    usual: &[&str],
    read: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, ConfigError> {
    let (texts, origin) = keys.texts_or(key, usual)?;
    let each = |text: &String| read(text).map_err(|why| invalid(key, origin, format!("holds `{text}`, which {why}")));
    texts.iter().map(each).collect()
}

fn limits(keys: &mut Keys) -> Result<ServerLimits, ConfigError> {
    let usual = Limits::default();
    let thread = Limits {
        approval_ms: keys.number("approvals.expiry_ms", usual.approval_ms, 1, u64::MAX)?,
        question_ms: keys.number("questions.expiry_ms", usual.question_ms, 1, u64::MAX)?,
        compact_at_tokens: keys.number("limits.compact_at_tokens", usual.compact_at_tokens, 0, u64::MAX)?,
        tool_attempts: keys.count("limits.tool_attempts", usual.tool_attempts, 1)?,
        checkpoints: keys.count("limits.checkpoints", usual.checkpoints, 0)?,
        reserve_output_tokens: keys.count("limits.reserve_output_tokens", usual.reserve_output_tokens, 1)?,
        inbox_per_thread: keys.count("limits.inbox_per_thread", usual.inbox_per_thread, 0)?,
        prompt_bytes: keys.size("limits.prompt_bytes", usual.prompt_bytes as u64, 1)?,
        item_bytes: keys.size("limits.item_bytes", usual.item_bytes as u64, 1)?,
        field_bytes: keys.size("limits.field_bytes", usual.field_bytes as u64, 1)?,
        system_prompt_bytes: keys.size("limits.system_prompt_bytes", usual.system_prompt_bytes as u64, 1)?,
        metadata_bytes: keys.size("limits.metadata_bytes", usual.metadata_bytes as u64, 2)?,
        model_calls_per_turn: keys.count("limits.model_calls_per_turn", usual.model_calls_per_turn, 1)?,
        model_attempts: keys.count("limits.model_attempts", usual.model_attempts, 1)?,
        retry_base_ms: keys.number("limits.retry_base_ms", usual.retry_base_ms, 0, u64::MAX)?,
        retry_cap_ms: keys.number("limits.retry_cap_ms", usual.retry_cap_ms, 0, u64::MAX)?,
        turn_ms: keys.number("limits.turn_ms", usual.turn_ms, 1, u64::MAX)?,
        resumes_without_progress: keys.count("limits.resumes_without_progress", usual.resumes_without_progress, 1)?,
    };
    Ok(ServerLimits {
        loaded_threads: keys.size("limits.loaded_threads", 1000, 1)?,
        loaded_bytes: keys.number("limits.loaded_bytes", 256 * MIB, 1, u64::MAX)?,
        body_bytes: keys.size("limits.body_bytes", MIB, 2)?,
        body_time: keys.millis("limits.body_timeout_ms", 30_000, 1)?,
        commands_in_flight: keys.size("limits.commands_in_flight", 4096, 1)?,
        commands_at_work: keys.size("limits.commands_at_work", 16, 1)?,
        commands_per_thread: keys.size("limits.commands_per_thread", 256, 1)?,
        command_wait: match keys.millis("limits.command_wait_ms", 2, 0)? {
            Duration::ZERO => Duration::MAX,
            wait => wait,
        },
        reads_in_flight: keys.size("limits.reads_in_flight", 1024, 1)?,
        subscribers: keys.size("limits.subscribers", 4096, 1)?,
        model_calls: keys.size("limits.model_calls", 1024, 1)?,
        tool_runs: keys.size("limits.tool_runs", 256, 1)?,
        tenant_share_percent: keys.number("limits.tenant_share_percent", 50, 1, 100)? as u8,
        subscriber_bytes: keys.size("limits.subscriber_bytes", 256 * KIB, 1)?,
        listener: listener::Limits {
            connections: keys.size("limits.connections", 4096, 1)?,
            connections_per_address: keys.size("limits.connections_per_address", 1024, 1)?,
            header: keys.millis("limits.header_timeout_ms", 10_000, 1)?,
            idle: keys.millis("limits.idle_ms", 75_000, 1)?,
            stall: keys.millis("limits.stall_ms", 30_000, 1)?,
        },
        thread,
    })
}

fn openai(keys: &mut Keys) -> Result<Option<OpenAiConfig>, ConfigError> {
    let provider = provider(keys, "openai", "https://api.openai.com/v1")?;
    let send_reasoning = keys.flag("model.openai.send_reasoning", false)?;
    Ok(provider.map(|provider| OpenAiConfig { provider, send_reasoning }))
}

fn anthropic(keys: &mut Keys) -> Result<Option<AnthropicConfig>, ConfigError> {
    let provider = provider(keys, "anthropic", anthropic::BASE_URL)?;
    let version = keys.text("model.anthropic.version")?.map(|text| text.0);
    let max_tokens = keys.count("model.anthropic.max_tokens", anthropic::MAX_TOKENS, 1)?;
    let prompt_cache = keys.flag("model.anthropic.prompt_cache", false)?;
    Ok(provider.map(|provider| AnthropicConfig { provider, version, max_tokens, prompt_cache }))
}

/// What the keys of agents begin with: `model.acp.NAME.command`.
const AGENTS: &str = "model.acp.";

fn agents(keys: &mut Keys) -> Result<Vec<AgentConfig>, ConfigError> {
    keys.names(AGENTS).into_iter().map(|name| agent(keys, name)).collect()
}

fn agent(keys: &mut Keys, name: String) -> Result<AgentConfig, ConfigError> {
    let key = |rest: &str| format!("{AGENTS}{name}.{rest}");
    if !acp::is_name(&name) {
        let why = "is no name of an agent: at most 32 of a-z, 0-9, `-` and `_`";
        return Err(invalid(&format!("{AGENTS}{name}"), Origin::File, why));
    }
    let Some((command, _)) = keys.text(&key("command"))? else {
        return Err(invalid(&key("command"), Origin::Default, "is needed to run the agent"));
    };
    let cwd = match keys.text(&key("cwd"))? {
        None => None,
        Some((cwd, _)) if cwd.starts_with('/') => Some(cwd.into()),
        Some((_, origin)) => return Err(invalid(&key("cwd"), origin, "must be an absolute path")),
    };
    Ok(AgentConfig {
        env: keys.secrets_below(&key("env."))?,
        args: keys.texts_or(&key("args"), &[])?.0,
        start_timeout: keys.millis(&key("start_timeout_ms"), 30_000, 1)?,
        command: command.into(),
        cwd,
        name,
    })
}

/// A provider is configured as soon as somebody says where it is or how to log in; it is at `usual` unless somebody
/// says where.
fn provider(keys: &mut Keys, name: &str, usual: &str) -> Result<Option<ProviderConfig>, ConfigError> {
    let key = |rest: &str| format!("model.{name}.{rest}");
    let base_url = keys.text(&key("base_url"))?;
    let value = keys.secret(&key("api_key"))?;
    let file = keys.text(&key("api_key_file"))?;
    let api_key = match (value, file) {
        (Some(_), Some((_, origin))) => {
            let why = format!("is given beside `{}`: one of them", key("api_key"));
            return Err(invalid(&key("api_key_file"), origin, why));
        }
        (Some((key, _)), None) => Some(Secret::Value(key)),
        (None, Some((path, _))) => Some(Secret::File(path.into())),
        (None, None) => None,
    };
    let patience = Patience {
        connect: keys.millis(&key("connect_timeout_ms"), 10_000, 1)?,
        first_byte: keys.millis(&key("first_byte_timeout_ms"), 120_000, 1)?,
        idle: keys.millis(&key("idle_timeout_ms"), 60_000, 1)?,
    };
    let base_url = match (base_url, &api_key) {
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            keys.in_force(&key("base_url"), usual.into());
            usual.to_owned()
        }
        (Some((url, origin)), _) => {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err(invalid(&key("base_url"), origin, "must start with http:// or https://"));
            }
            url
        }
    };
    Ok(Some(ProviderConfig { base_url, api_key, patience }))
}

fn allowed(keys: &mut Keys) -> Result<Vec<Allowed>, ConfigError> {
    let (texts, origin) = keys.texts_or("egress.allow", &[])?;
    let parse = |text: &String| {
        text.parse::<Allowed>().map_err(|why| invalid("egress.allow", origin, format!("holds `{text}`, which {why}")))
    };
    texts.iter().map(parse).collect()
}

fn invalid(key: &str, origin: Origin, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), origin, why: why.into() }
}

/// What was given, until somebody takes it. What is left at the end is unknown.
struct Keys {
    file: BTreeMap<String, Value>,
    /// In which lines of the file keys stand.
    lines: BTreeMap<String, usize>,
    env: BTreeMap<String, String>,
    flags: BTreeMap<&'static str, String>,
    /// Whether the level of the log was given by its short name.
    short: bool,
    /// The keys that were asked for: those there are.
    asked: Vec<Setting>,
    /// The values of those that are secret.
    secrets: Vec<SecretString>,
}

impl Keys {
    fn new(
        file: Option<&str>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        let file = file.unwrap_or_default();
        let table = file.parse::<Table>().map_err(|err| {
            let before = |at: usize| file.get(..at).unwrap_or_default();
            let line = err.span().map(|span| 1 + before(span.start).matches('\n').count());
            ConfigError::Syntax { line, why: err.message().to_owned() }
        })?;
        let mut keys = Self {
            file: BTreeMap::new(),
            lines: setting::lines(file),
            env: BTreeMap::new(),
            flags: flags.into_iter().collect(),
            short: false,
            asked: Vec::new(),
            secrets: Vec::new(),
        };
        flatten(String::new(), table, &mut keys.file);
        for (name, value) in env {
            if name == "RADDLE_LOG" {
                // The short form that everybody types; stronger than the long one, unless it is empty.
                if !value.is_empty() {
                    keys.short = true;
                    keys.env.insert(variable("log.level"), value);
                }
            } else if name.starts_with("RADDLE_") && !NOT_KEYS.contains(&name.as_str()) {
                keys.env.entry(name).or_insert(value);
            }
        }
        Ok(keys)
    }

    /// The strongest value of a key, taken out together with the weaker ones.
    fn raw(&mut self, key: &str) -> Option<(Value, Origin)> {
        let file = self.file.remove(key).map(|value| (value, Origin::File));
        let env = self.env.remove(&variable(key)).map(|text| (Value::String(text), Origin::Environment));
        let flag = self.flags.remove(key).map(|text| (Value::String(text), Origin::Flag));
        let strongest = flag.or(env).or(file);
        let source = match strongest.as_ref().map_or(Origin::Default, |(_, origin)| *origin) {
            Origin::Default => Source::Default,
            Origin::File => Source::File { line: self.lines.get(key).copied() },
            Origin::Environment if key == "log.level" && self.short => Source::Environment("RADDLE_LOG".to_owned()),
            Origin::Environment => Source::Environment(variable(key)),
            Origin::Flag => Source::Flag(format!("--{}", key.replace(['_', '.'], "-"))),
        };
        let value = strongest.as_ref().map(|(value, _)| value.clone());
        self.asked.push(Setting { key: key.to_owned(), value, is_secret: false, source });
        strongest
    }

    /// Takes note of the value of a key that was asked for, as it is in the file: a default, or a text that was read.
    fn in_force(&mut self, key: &str, value: Value) {
        if let Some(setting) = self.asked.iter_mut().rfind(|setting| setting.key == key) {
            setting.value = Some(value);
        }
    }

    /// A key that was asked for, and that nobody may set as things are: it is not shown.
    fn passes_over(&mut self, key: &str) {
        self.asked.retain(|setting| setting.key != key);
    }

    /// A text that is shown nowhere.
    fn secret(&mut self, key: &str) -> Result<Option<(SecretString, Origin)>, ConfigError> {
        let given = self.text(key);
        if let Some(setting) = self.asked.last_mut() {
            setting.is_secret = true;
        }
        given?.map(|(text, origin)| Ok((self.keep(key, text, origin)?, origin))).transpose()
    }

    /// Takes note of a secret.
    fn keep(&mut self, key: &str, text: String, origin: Origin) -> Result<SecretString, ConfigError> {
        if text == HIDDEN {
            let why = format!("is `{HIDDEN}`, which stands for a secret where settings are shown");
            return Err(invalid(key, origin, why));
        }
        let secret = SecretString::from(text);
        self.secrets.push(secret.clone());
        Ok(secret)
    }

    /// A text that is needed, and `usual` where none is given.
    fn text_or(&mut self, key: &str, usual: &str) -> Result<(String, Origin), ConfigError> {
        let given = self.text(key)?;
        Ok(given.unwrap_or_else(|| {
            self.in_force(key, usual.into());
            (usual.to_owned(), Origin::Default)
        }))
    }

    /// Where a key is set.
    fn given(&self, key: &str) -> Option<Origin> {
        let file = self.file.contains_key(key).then_some(Origin::File);
        file.or_else(|| self.env.contains_key(&variable(key)).then_some(Origin::Environment))
    }

    fn text(&mut self, key: &str) -> Result<Option<(String, Origin)>, ConfigError> {
        match self.raw(key) {
            None => Ok(None),
            Some((Value::String(text), origin)) if !text.is_empty() => Ok(Some((text, origin))),
            Some((_, origin)) => Err(invalid(key, origin, "must be a text that is not empty")),
        }
    }

    /// One of a few words.
    fn one_of<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let Some((text, origin)) = self.text(key)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                Err(invalid(key, origin, format!("must be one of {}", words.join(", "))))
            }
        }
    }

    /// One of a few words, and the one that means `usual` where none is given.
    fn one_of_or<T: Copy + PartialEq>(&mut self, key: &str, words: &[(&str, T)], usual: T) -> Result<T, ConfigError> {
        if let Some(given) = self.one_of(key, words)? {
            return Ok(given);
        }
        if let Some((word, _)) = words.iter().find(|(_, meaning)| *meaning == usual) {
            self.in_force(key, (*word).into());
        }
        Ok(usual)
    }

    /// A list of texts, and `usual` where none is given.
    fn texts_or(&mut self, key: &str, usual: &[&str]) -> Result<(Vec<String>, Origin), ConfigError> {
        let given = self.texts(key)?;
        Ok(given.unwrap_or_else(|| {
            self.in_force(key, usual.to_vec().into());
            (usual.iter().map(|text| (*text).to_owned()).collect(), Origin::Default)
        }))
    }

    /// A list of texts; where there is no TOML, with commas between them.
    fn texts(&mut self, key: &str) -> Result<Option<(Vec<String>, Origin)>, ConfigError> {
        let Some((value, origin)) = self.raw(key) else { return Ok(None) };
        let texts: Option<Vec<String>> = match value {
            Value::Array(values) => {
                values.into_iter().map(|value| value.as_str().map(|text| text.trim().to_owned())).collect()
            }
            Value::String(text) if origin != Origin::File => {
                Some(text.split(',').map(|text| text.trim().to_owned()).collect())
            }
            _ => None,
        };
        match texts.filter(|texts| texts.iter().all(|text| !text.is_empty())) {
            Some(texts) => {
                self.in_force(key, texts.clone().into());
                Ok(Some((texts, origin)))
            }
            None => Err(invalid(key, origin, "must be a list of texts that are not empty")),
        }
    }

    /// The names that stand in the file behind a prefix: those of tables that people name themselves.
    fn names(&self, prefix: &str) -> Vec<String> {
        let rest = self.file.keys().filter_map(|key| key.strip_prefix(prefix));
        let mut names: Vec<String> = rest.filter_map(|rest| Some(rest.split_once('.')?.0.to_owned())).collect();
        // They are in order: of one name stand side by side.
        names.dedup();
        names
    }

    /// The texts that stand in the file behind a prefix, under any name, taken out. They may all be secrets.
    fn secrets_below(&mut self, prefix: &str) -> Result<Vec<(String, SecretString)>, ConfigError> {
        let below: Vec<_> = self.file.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        let taken = below.into_iter().map(|key| {
            let given = self.raw(&key);
            if let Some(setting) = self.asked.last_mut() {
                setting.is_secret = true;
            }
            match given {
                Some((Value::String(text), origin)) => {
                    Ok((key[prefix.len()..].to_owned(), self.keep(&key, text, origin)?))
                }
                _ => Err(invalid(&key, Origin::File, "must be a text")),
            }
        });
        taken.collect()
    }

    fn number(&mut self, key: &str, default: u64, least: u64, most: u64) -> Result<u64, ConfigError> {
        // What is beyond the numbers of TOML is as good as its largest one.
        let shown = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
        let Some((value, origin)) = self.raw(key) else {
            self.in_force(key, shown(default));
            return Ok(default);
        };
        let number = match &value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            // A text is a number in the environment and on the command line, not in the file.
            Value::String(text) if origin != Origin::File => text.parse().ok(),
            _ => None,
        };
        if let Some(number) = number {
            self.in_force(key, shown(number));
        }
        number.filter(|number| (least..=most).contains(number)).ok_or_else(|| {
            let why = match most {
                u64::MAX => format!("must be a whole number of at least {least}"),
                _ => format!("must be a whole number from {least} to {most}"),
            };
            invalid(key, origin, why)
        })
    }

    fn size(&mut self, key: &str, default: u64, least: u64) -> Result<usize, ConfigError> {
        // Values are checked against what a size may be on this machine.
        let number = self.number(key, default, least, usize::MAX as u64)?;
        Ok(usize::try_from(number).unwrap_or(usize::MAX))
    }

    fn count(&mut self, key: &str, default: u32, least: u64) -> Result<u32, ConfigError> {
        let number = self.number(key, default.into(), least, u32::MAX.into())?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        let Some((value, origin)) = self.raw(key) else {
            self.in_force(key, default.into());
            return Ok(default);
        };
        let flag = match &value {
            Value::Boolean(flag) => Some(*flag),
            // As with numbers: a text is none in the file.
            Value::String(text) if origin != Origin::File => text.parse().ok(),
            _ => None,
        };
        if let Some(flag) = flag {
            self.in_force(key, flag.into());
        }
        flag.ok_or_else(|| invalid(key, origin, "must be true or false"))
    }

    fn millis(&mut self, key: &str, default: u64, least: u64) -> Result<Duration, ConfigError> {
        self.number(key, default, least, u64::MAX).map(Duration::from_millis)
    }

    fn end(self) -> Result<(), ConfigError> {
        let file = self.file.into_keys().map(|name| (name, Origin::File));
        let env = self.env.into_keys().map(|name| (name, Origin::Environment));
        let flags = self.flags.into_keys().map(|name| (name.to_owned(), Origin::Flag));
        match file.chain(env).chain(flags).next() {
            None => Ok(()),
            Some((name, origin)) => Err(ConfigError::Unknown { name, origin }),
        }
    }
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("RADDLE_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Nested tables as dotted keys.
fn flatten(prefix: String, table: Table, into: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => flatten(key, inner, into),
            leaf => {
                into.insert(key, leaf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(Some(file), env, flags.iter().map(|(key, value)| (*key, (*value).to_owned())))
    }

    #[test]
    fn nothing_given_gives_the_documented_defaults() {
        let config = read("", &[], &[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7878");
        assert_eq!(config.data_dir, PathBuf::from("./raddle-data"));
        assert_eq!(config.workspaces_root, PathBuf::from("./raddle-data/workspaces"));
        assert_eq!(config.limits.body_bytes, 1 << 20);
        assert_eq!(config.limits.loaded_threads, 1000);
        assert_eq!(config.limits.thread, Limits::default());
        assert_eq!(config.shutdown.deadline, Duration::from_secs(10));
        assert!(config.model.openai.is_none());
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let file = "listen = \"127.0.0.1:1\"\n[limits]\nloaded_threads = 1\nbody_bytes = 10";
        let env = [("RADDLE_LISTEN", "127.0.0.1:2"), ("RADDLE_LIMITS_LOADED_THREADS", "2"), ("PATH", "/bin")];
        let config = read(file, &env, &[("listen", "127.0.0.1:3")]).unwrap();
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.limits.loaded_threads, 2);
        assert_eq!(config.limits.body_bytes, 10);
    }

    #[test]
    fn a_key_that_nobody_reads_is_named() {
        let unknown = |result: Result<Config, ConfigError>| match result {
            Err(ConfigError::Unknown { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(unknown(read("[limits]\nloaded_thread = 1", &[], &[])), "limits.loaded_thread");
        assert_eq!(unknown(read("[limit]\nx = 1", &[], &[])), "limit.x");
        assert_eq!(unknown(read("", &[("RADDLE_LISTN", "x")], &[])), "RADDLE_LISTN");
    }

    #[test]
    fn every_documented_key_is_one() {
        let keys = Config::keys();
        let documented = [
            "listen",
            "data_dir",
            "admin.listen",
            "auth.admin_key",
            "auth.admin_key_file",
            "auth.pepper_file",
            "auth.jwt.jwks_file",
            "auth.jwt.issuer",
            "auth.jwt.audience",
            "auth.jwt.tenant_claim",
            "auth.jwt.scopes_claim",
            "limits.loaded_threads",
            "limits.loaded_bytes",
            "limits.body_bytes",
            "limits.body_timeout_ms",
            "limits.command_wait_ms",
            "limits.inbox_per_thread",
            "limits.commands_at_work",
            "limits.model_calls",
            "limits.tool_runs",
            "limits.tenant_share_percent",
            "quotas.threads",
            "quotas.loaded_threads",
            "quotas.active_turns",
            "quotas.queued_prompts",
            "quotas.subscribers",
            "quotas.requests_per_second",
            "quotas.request_burst",
            "quotas.stored_bytes",
            "limits.connections",
            "limits.connections_per_address",
            "limits.header_timeout_ms",
            "limits.idle_ms",
            "limits.stall_ms",
            "model.default",
            "model.openai.base_url",
            "model.openai.api_key",
            "model.openai.api_key_file",
            "model.anthropic.base_url",
            "model.anthropic.api_key",
            "model.anthropic.api_key_file",
            "model.anthropic.version",
            "model.anthropic.max_tokens",
            "model.anthropic.prompt_cache",
            "model.anthropic.idle_timeout_ms",
            "prices.file",
            "policy.file",
            "model.openai.send_reasoning",
            "tools.demo_dir",
            "tools.ask_user",
            "tools.files",
            "sandbox.kind",
            "sandbox.mode",
            "sandbox.network",
            "sandbox.network_ports",
            "sandbox.env_pass",
            "sandbox.read",
            "sandbox.protect",
            "sandbox.timeout_ms",
            "sandbox.output_bytes",
            "sandbox.cpu_s",
            "sandbox.memory_bytes",
            "sandbox.processes",
            "sandbox.file_bytes",
            "sandbox.open_files",
            "workspaces.root",
            "hooks.NAME.kind",
            "hooks.NAME.path",
            "hooks.NAME.url",
            "hooks.NAME.secret",
            "hooks.NAME.secret_file",
            "hooks.NAME.timeout_ms",
            "hooks.NAME.max_bytes",
            "hooks.NAME.keep",
            "hooks.NAME.events",
            "hooks.NAME.tenants",
            "hooks.NAME.from",
            "hooks.NAME.on_reject",
            "mcp.file",
            "mcp.startup_timeout_ms",
            "mcp.call_timeout_ms",
            "store.sync_delay_ms",
            "store.pack_after_ms",
            "approvals.expiry_ms",
            "shutdown.deadline_ms",
            "egress.allow",
            "jobs.concurrent",
            "jobs.retention_ms",
            "jobs.lease_ms",
            "jobs.secrets_file",
        ];
        for key in documented {
            assert!(keys.iter().any(|known| known == key), "{key}");
        }
        // No two keys share a variable.
        let variables: std::collections::BTreeSet<_> = keys.iter().map(|key| variable(key)).collect();
        assert_eq!(variables.len(), keys.len());
    }

    #[test]
    fn variables_of_the_command_line_are_not_keys() {
        let env = [("RADDLE_SERVER", "x"), ("RADDLE_KEY", "x"), ("RADDLE_LEASE", "x"), ("RADDLE_CONFIG", "x")];
        assert_eq!(read("", &[&env[..], &[("RADDLE_LOG", "debug")]].concat(), &[]).unwrap().log.level, "debug");
        let both = [("RADDLE_LOG_LEVEL", "warn"), ("RADDLE_LOG", "debug")];
        assert_eq!(read("", &both, &[]).unwrap().log.level, "debug");
        let swapped = [("RADDLE_LOG", "debug"), ("RADDLE_LOG_LEVEL", "warn")];
        assert_eq!(read("", &swapped, &[]).unwrap().log.level, "debug");
    }

    #[test]
    fn where_to_listen_is_an_address() {
        for open in ["0.0.0.0:7878", "[::]:7878", "192.168.0.2:7878", "127.0.0.1:0", "[::1]:7878"] {
            assert!(read("", &[], &[("listen", open)]).is_ok(), "{open}");
        }
        assert!(read("", &[], &[("listen", "localhost")]).is_err());
    }

    #[test]
    fn a_number_is_checked_where_it_is_read() {
        let bad = [
            "[limits]\nloaded_threads = 0",
            "[limits]\nloaded_threads = -1",
            "[limits]\nmodel_calls = 0",
            "[limits]\ntenant_share_percent = 101",
            "[quotas]\nthreads = -1",
            "[limits]\nloaded_threads = \"7\"",
            "[limits]\nloaded_threads = 1.5",
            "[limits]\ninbox_per_thread = 5000000000",
            "[log]\nformat = \"xml\"",
        ];
        for file in bad {
            assert!(matches!(read(file, &[], &[]), Err(ConfigError::Invalid { .. })), "{file}");
        }
        assert!(read("", &[("RADDLE_LIMITS_LOADED_THREADS", "many")], &[]).is_err());
    }

    #[test]
    fn nothing_bounds_a_tenant_that_nobody_bounds() {
        assert_eq!(read("", &[], &[]).unwrap().quotas, Quotas::default());
        let some = read("[quotas]\nthreads = 7\nrequests_per_second = 3", &[("RADDLE_QUOTAS_SUBSCRIBERS", "2")], &[]);
        let requests_per_second = std::num::NonZeroU32::new(3);
        let wanted = Quotas { threads: Some(7), subscribers: Some(2), requests_per_second, ..Quotas::default() };
        assert_eq!(some.unwrap().quotas, wanted);
    }

    #[test]
    fn a_flag_is_true_or_false_and_false_where_nothing_is_said() {
        let asks = |file: &str, env: &[(&str, &str)]| read(file, env, &[]).map(|config| config.tools.ask_user);
        assert_eq!(asks("", &[]), Ok(false));
        assert_eq!(asks("tools.ask_user = true", &[]), Ok(true));
        assert_eq!(asks("tools.ask_user = true", &[("RADDLE_TOOLS_ASK_USER", "false")]), Ok(false));
        for env in ["", "yes", "1", "True"] {
            assert!(asks("", &[("RADDLE_TOOLS_ASK_USER", env)]).is_err(), "{env}");
        }
        assert!(asks("tools.ask_user = \"true\"", &[]).is_err());
    }

    #[test]
    fn what_egress_may_reach_is_a_list() {
        let allow = |file: &str, env: &[(&str, &str)]| read(file, env, &[]).map(|config| config.egress_allow.len());
        assert_eq!(allow("", &[]), Ok(0));
        assert_eq!(allow("egress.allow = [\"10.0.0.0/8\", \"sink.internal\"]", &[]), Ok(2));
        assert_eq!(allow("", &[("RADDLE_EGRESS_ALLOW", "10.0.0.0/8, ::1,sink")]), Ok(3));
        for bad in ["\"10.0.0.1\"", "[\"\"]", "[7]", "[\"http://a\"]", "[\"10.0.0.0/33\"]"] {
            assert!(allow(&format!("egress.allow = {bad}"), &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_approval_waits_for_a_day_unless_it_is_said_how_long() {
        assert_eq!(read("", &[], &[]).unwrap().limits.thread.approval_ms, 24 * 60 * 60 * 1000);
        assert_eq!(read("approvals.expiry_ms = 5", &[], &[]).unwrap().limits.thread.approval_ms, 5);
    }

    #[test]
    fn commands_are_confined_unless_somebody_says_otherwise() {
        let usual = read("", &[], &[]).unwrap().sandbox;
        assert_eq!((usual.kind, usual.widest, usual.ports), (Kind::Auto, SandboxMode::WorkspaceWrite, None));
        assert_eq!(usual.protect, [".git"]);
        assert!(usual.env_pass.is_empty() && usual.read.is_empty());
        let free = read("[sandbox]\nkind = \"none\"\nmode = \"danger-full-access\"", &[], &[]).unwrap().sandbox;
        assert_eq!((free.kind, free.widest), (Kind::None, SandboxMode::DangerFullAccess));
    }

    #[test]
    fn what_would_undo_the_sandbox_is_refused() {
        let bad = [
            "sandbox.kind = \"maybe\"",
            "sandbox.mode = \"full\"",
            "sandbox.env_pass = [\"LD_PRELOAD\"]",
            "sandbox.env_pass = [\"RADDLE_MODEL_OPENAI_API_KEY\"]",
            "sandbox.env_pass = [\"PAGER\"]",
            "sandbox.env_pass = [\"A=B\"]",
            "sandbox.read = [\"home\"]",
            "sandbox.protect = [\"../x\"]",
            "sandbox.network_ports = [\"0\"]",
            "listen = \"127.0.0.1:443\"\nsandbox.network = true",
        ];
        for file in bad {
            assert!(matches!(read(file, &[], &[]), Err(ConfigError::Invalid { .. })), "{file}");
        }
        assert!(read("listen = \"127.0.0.1:443\"", &[], &[]).is_ok());
        let network = read("sandbox.network = true", &[], &[]).unwrap().sandbox;
        assert_eq!(network.ports, Some(vec![443]));
    }

    #[test]
    fn a_secret_shows_neither_in_debug_nor_in_an_error() {
        let config = read("[model.openai]\napi_key = \"hush\"", &[], &[]).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
        assert_eq!(config.model.openai.unwrap().provider.base_url, "https://api.openai.com/v1");
        let anthropic = read("[model.anthropic]\napi_key = \"hush\"", &[], &[]).unwrap();
        assert!(!format!("{anthropic:?}").contains("hush"));
        assert_eq!(anthropic.model.anthropic.unwrap().provider.base_url, "https://api.anthropic.com");
        for file in ["[model.openai]\napi_key = \"hush", "[model.openai]\napi_key = [\"hush\"]"] {
            let err = read(file, &[], &[]).unwrap_err();
            assert!(!format!("{err} {err:?}").contains("hush"), "{err:?}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let err = read("listen = \"127.0.0.1:1\"\n\nlimits = [", &[], &[]).unwrap_err();
        assert!(matches!(err, ConfigError::Syntax { line: Some(3), .. }), "{err:?}");
    }

    #[test]
    fn an_agent_is_named_by_its_table() {
        let file = "[model.acp.helper]\ncommand = \"helper\"\nargs = [\"--acp\"]\nenv.TOKEN = \"hush\"\n\
                    [model.acp.other]\ncommand = \"/bin/other\"\ncwd = \"/\"";
        let config = read(file, &[("RADDLE_MODEL_ACP_OTHER_CWD", "/v")], &[]).unwrap();
        let [helper, other] = &config.model.agents[..] else { panic!("{config:?}") };
        assert_eq!((helper.name.as_str(), helper.args.as_slice()), ("helper", &["--acp".to_owned()][..]));
        assert_eq!((helper.env[0].0.as_str(), helper.start_timeout), ("TOKEN", Duration::from_secs(30)));
        assert_eq!((other.name.as_str(), other.cwd.as_deref()), ("other", Some(std::path::Path::new("/v"))));
        assert_eq!(helper.cwd, None);
        assert!(!format!("{config:?}").contains("hush"));
        for bad in [
            "model.acp.x.cwd = \"/\"",
            "[model.acp.x]\ncommand = \"x\"\ncwd = \"here\"",
            "[model.acp.X]\ncommand = \"x\"\ncwd = \"/\"",
            "[model.acp.x]\ncommand = \"x\"\ncwd = \"/\"\nargs = \"a\"",
            "[model.acp.x]\ncommand = \"x\"\ncwd = \"/\"\nother = 1",
            "model.acp = 1",
        ] {
            assert!(read(bad, &[], &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_provider_needs_an_address_of_the_web() {
        assert!(read("model.openai.base_url = \"localhost:1\"", &[], &[]).is_err());
        let config = read("model.openai.base_url = \"http://localhost:1/v1\"", &[], &[]).unwrap();
        assert!(config.model.openai.unwrap().provider.api_key.is_none());
        for name in ["openai", "anthropic"] {
            let both = format!("model.{name}.api_key = \"a\"\nmodel.{name}.api_key_file = \"b\"");
            assert!(read(&both, &[], &[]).is_err());
        }
    }
}
