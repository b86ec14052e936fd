//! `raddle serve`: from configuration to a listening server, and down again without losing anything.
//!
//! stdout carries exactly one line, once the server answers: `listening on http://ADDR`. Scripts wait for it.
//! A shutdown begins with a grace, in which the server says that it is about to go and takes work all the same: none
//! unless it is configured. Then it has one deadline: the runtime takes what it needs for open turns and ends every
//! stream, replies that are under way get the rest. A second signal does not wait.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use raddle_actors::{Ear, Runtime, Tape, Whose};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Failure, chat, config::Given, say};
use crate::{
    app,
    client::Client,
    config::Config,
    gateway::{self, GatewayConfig},
    listener,
    log::{self, LogError},
    otel::Otel,
    record::{self, Written},
};

/// What replies under way get at least, however much of the deadline the runtime took.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long a recording may take to be written to its end.
const RECORDING: Duration = Duration::from_secs(10);

/// Flags win over the environment, which wins over the file.
#[derive(Debug, Args)]
#[command(after_long_help = keys())]
pub struct Serve {
    #[command(flatten)]
    given: Given,
    /// Once ready, start a thread with this prompt and show its answer as it streams
    #[arg(long = "try", value_name = "PROMPT")]
    first_prompt: Option<String>,
    /// Write everything that threads are told to this file, for `raddle replay`; it must not be there yet
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Writes what is heard from the start on. That it ends early is worth a line, not the server.
async fn recorded(runtime: Runtime, ear: Ear, mut file: tokio::fs::File) {
    let header = runtime.trace_header();
    let recording = runtime.record_from(ear);
    drop(runtime);
    match record::write(&header, recording, &mut file).await {
        Ok(Written { lines, left_out: 0 }) => tracing::info!(lines, "the recording is complete"),
        Ok(Written { lines, left_out }) => {
            tracing::error!(lines, left_out, "the recording is complete but for threads of which something was missed");
        }
        Err(why) => tracing::error!(%why, "the recording has ended, and the server goes on without it"),
    }
}

/// What `--try` asks for; that it fails is worth a line, not the server.
async fn first_turn(address: SocketAddr, prompt: String) {
    let shown = async { chat::first_turn(&Client::new(&format!("http://{address}"), None)?, &prompt).await };
    if let Err(failure) = shown.await {
        eprintln!("the first turn failed: {}", failure.sentence().unwrap_or_default());
    }
}

impl Serve {
    pub async fn run(self) -> Result<(), Failure> {
        let config = self.given.read()?.0;
        let otel = begin_to_log(&config)?;
        // Before anything is announced: a signal that arrives from here on is a shutdown, not a death.
        let mut signals = Signals::new()?;
        let tape = Arc::<Tape>::default();
        let recorder = match &self.record {
            None => None,
            Some(path) => {
                let file = record::create(path).await;
                let file = file.map_err(|why| match why.kind() {
                    io::ErrorKind::AlreadyExists => Failure::Failed(format!(
                        "{} is there already, and a recording writes over nothing: give another name",
                        path.display()
                    )),
                    _ => Failure::Failed(format!("{}: {why}", path.display())),
                })?;
                Some((tape.listen(Whose::default()), file))
            }
        };
        // What a server wrote that never served anybody would only be in the next one's way.
        let unwritten = || self.record.iter().for_each(|path| drop(fs::remove_file(path)));
        let app = app::start_heard(&config, tape)
            .await
            .inspect_err(|_| unwritten())
            .map_err(|err| Failure::Failed(format!("{err:#}")))?;
        let recorder = recorder.map(|(ear, file)| tokio::spawn(recorded(app.runtime.clone(), ear, file)));
        let (listener, operators) = match listeners(&config).await {
            Ok(listeners) => listeners,
            Err(failure) => {
                app.shutdown(config.shutdown.deadline).await;
                unwritten();
                return Err(failure);
            }
        };
        let address = listener.local_addr()?;
        let connections = Arc::<listener::Figures>::default();
        let gateway = GatewayConfig {
            body_bytes: config.limits.body_bytes,
            body_time: config.limits.body_time,
            limits: config.limits.thread,
            // Where nobody needs a key, only what runs on this machine can reach it.
            loopback_only: app.auth.is_none(),
            workspaces: Some(app.workspaces.clone()),
            mcp: Some(app.mcp.clone()),
            sandbox: Some(app.sandbox.clone()),
            auth: app.auth.clone(),
            connections: Some(connections.clone()),
        };
        let stop = CancellationToken::new();
        let limits = config.limits.listener;
        allow_descriptors(limits.connections);
        let serve = |listener, router| {
            tokio::spawn(listener::serve(listener, router, limits, connections.clone(), stop.clone()))
        };
        let mut server = match operators {
            None => serve(listener, gateway::router(app.runtime.clone(), gateway)),
            Some(operators) => {
                tracing::info!(address = %operators.local_addr()?, "the operator's routes are served apart");
                let (tenants, operator) = gateway::routers(app.runtime.clone(), gateway);
                let (tenants, operator) = (serve(listener, tenants), serve(operators, operator));
                // Both, or the first that fails.
                tokio::spawn(async move { drop(futures_util::future::try_join(tenants, operator).await) })
            }
        };
        say(&format!("listening on http://{address}"))?;
        welcome(&config, address, app.auth.is_some());
        if let Some(prompt) = self.first_prompt {
            tokio::spawn(first_turn(address, prompt));
        }

        tokio::select! {
            name = signals.next() => {
                let grace = config.shutdown.grace;
                tracing::info!(signal = name, ?grace, "shutting down");
            }
            ended = &mut server => {
                app.shutdown(config.shutdown.deadline).await;
                return Err(Failure::Failed(format!("the server stopped listening: {ended:?}")));
            }
        }
        let down = async {
            // Whoever sends us work hears first that it will not be taken for long.
            app.runtime.announce_shutdown();
            tokio::time::sleep(config.shutdown.grace).await;
            let until = Instant::now() + config.shutdown.deadline;
            // Meanwhile the server listens on and says `draining`.
            app.shutdown(config.shutdown.deadline).await;
            stop.cancel();
            let until = until.max(Instant::now() + LAST_WORDS);
            if tokio::time::timeout_at(until, &mut server).await.is_err() {
                tracing::warn!("the deadline has passed: connections are cut");
            }
            if let Some(recorder) = recorder {
                drop(tokio::time::timeout(RECORDING, recorder).await);
            }
            if let Some(otel) = otel {
                otel.end().await;
            }
        };
        tokio::select! {
            () = down => {
                tracing::info!("down");
                Ok(())
            }
            name = signals.next() => {
                tracing::warn!(signal = name, "again: leaving at once");
                std::process::exit(if name == "SIGINT" { 130 } else { 143 });
            }
        }
    }
}

/// Where tenants are heard, and where the operator is, if not there.
async fn listeners(config: &Config) -> Result<(TcpListener, Option<TcpListener>), Failure> {
    let bind = async |at: SocketAddr| {
        let bound = TcpListener::bind(at).await;
        bound.map_err(|err| Failure::Failed(format!("cannot listen on {at}: {err}")))
    };
    let operators = match config.admin_listen {
        Some(at) => Some(bind(at).await?),
        None => None,
    };
    Ok((bind(config.listen).await?, operators))
}

/// What beside connections needs descriptors: files, pipes of commands, requests to models.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Has the system let this process open as much as the configuration promises, where the system may.
fn allow_descriptors(connections: usize) {
    let wanted = OTHER_DESCRIPTORS.saturating_add(connections as u64);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (now, most) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    if now < wanted
        && let Err(err) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted.min(most)), maximum })
    {
        tracing::warn!(error = %err, "the limit of open files stays as it is");
    }
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if allowed < wanted {
        tracing::warn!(allowed, wanted, "the system lets this process open too few files for `limits.connections`");
    }
}

/// The keys, asked of the configuration itself: the help cannot go stale.
fn keys() -> String {
    let keys = Config::keys();
    format!("Keys of the TOML file, each also a variable (`a.b_c` is RADDLE_A_B_C):\n  {}", keys.join("\n  "))
}

/// What asks a server to go.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Begins to log, and to trace where that is wanted.
fn begin_to_log(config: &Config) -> Result<Option<Otel>, Failure> {
    let otel = Otel::start(config.otel_endpoint.as_deref())
        .map_err(|why| Failure::Failed(format!("`otel.endpoint`: cannot trace: {why}")))?;
    let spans = otel.as_ref().map(Otel::spans);
    let begun = log::hide(&config.secrets).and_then(|()| log::to_stderr(&config.log, spans));
    begun.map(|()| otel).map_err(|why| match why {
        LogError::Filter(_) => Failure::Usage(why.to_string()),
        LogError::Other(_) => Failure::Failed(why.to_string()),
    })
}

/// What somebody who has just started a server wants to know.
fn welcome(config: &Config, address: SocketAddr, asks_for_keys: bool) {
    let base = format!("http://{address}");
    eprintln!("data in {}", config.data_dir.display());
    let model = &config.model;
    if model.openai.is_none() && model.anthropic.is_none() && model.agents.is_empty() {
        eprintln!("no model is configured: the engine `scripted` answers, without a network");
        eprintln!(
            "  a real one: RADDLE_MODEL_DEFAULT=openai/NAME RADDLE_MODEL_OPENAI_BASE_URL=… RADDLE_MODEL_OPENAI_API_KEY=… raddle serve"
        );
        eprintln!("  or: RADDLE_MODEL_DEFAULT=claude-… RADDLE_MODEL_ANTHROPIC_API_KEY=… raddle serve");
    } else if config.model.default.is_none() {
        eprintln!("`model.default` is not set: where no model is named, the engine `scripted` answers");
        eprintln!("  to change that: RADDLE_MODEL_DEFAULT=NAME");
    }
    eprintln!("to begin, in another terminal:");
    if asks_for_keys {
        let at = config.admin_listen.map_or_else(|| base.clone(), |at| format!("http://{at}"));
        eprintln!("  export RADDLE_SERVER={at} RADDLE_KEY=…   # the operator's");
        eprintln!("  raddle tenants create acme; raddle keys create acme --scope write,approve");
        return;
    }
    eprintln!("  THREAD=$(curl -s -X POST {base}/v1/threads | grep -o 'thr_[0-9a-f-]*' | head -n 1)");
    eprintln!("  curl -s {base}/v1/threads/$THREAD/turns -d '{{\"prompt\": \"Hello\"}}'");
    eprintln!("  curl -sN {base}/v1/threads/$THREAD/events -H 'Accept: text/event-stream'");
    match base.as_str() {
        crate::client::DEFAULT_SERVER => eprintln!("or: raddle chat"),
        base => eprintln!("or: raddle chat --server {base}"),
    }
}
