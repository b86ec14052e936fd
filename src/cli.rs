//! The command line: one file per subcommand, and what they share. All but `serve` speak HTTP to a server;
//! `stress` starts one first.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the
//! server, 4 cannot reach the server; of `policy check` also 5 would be asked, 6 is denied. Of `replay`: 0 equal, 1
//! different, 2 not a trace.

use std::io::{self, Write};

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;
use serde_json::Value;

use crate::{
    client::{Client, ClientError, DEFAULT_SERVER, Page},
    gateway,
};

mod approvals;
mod backup;
mod chat;
mod config;
mod doctor;
mod effects;
mod hooks;
mod jobs;
mod mcp;
mod policy;
mod progress;
mod questions;
mod record;
mod replay;
mod routing;
mod runs;
mod schedules;
mod serve;
mod simulate;
mod stress;
mod tenants;
mod threads;
mod transfer;
mod usage;

/// A durable, multi-tenant runtime for AI-agent threads.
#[derive(Debug, Parser)]
#[command(name = "raddle", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::Serve),
    /// Talk to a model in the terminal
    Chat(chat::Chat),
    /// List, show, follow, change and delete threads
    Threads(threads::Threads),
    /// Decide what agents may do
    Approvals(approvals::Approvals),
    /// Answer what agents ask
    Questions(questions::Questions),
    /// Say what became of effects whose outcome is uncertain
    Effects(effects::Effects),
    /// Show the servers whose tools models may call
    Mcp(mcp::Mcp),
    /// Make, list, watch, repeat and end jobs
    Jobs(jobs::Jobs),
    /// Make, list, pause and delete schedules of jobs
    Schedules(schedules::Schedules),
    /// Boards that many agents share: make, show, watch and replay runs, work on their tasks
    Runs(runs::Runs),
    /// Show what was spent
    Usage(usage::Usage),
    /// List and set which model answers which intent
    Routing(routing::Routing),
    /// Show where events are sent, and how that goes
    Hooks(hooks::Hooks),
    /// Say what would be decided about a command, and show what the rules are
    Policy(policy::PolicyCommand),
    /// Make, list, change and suspend tenants (with the operator's key)
    Tenants(tenants::Tenants),
    /// Make, list and revoke keys
    Keys(tenants::Keys),
    /// Show the configuration that `serve` would have, and check it without starting anything
    Config(config::ConfigCommand),
    /// Check that a server is well
    Doctor(doctor::Doctor),
    Stress(stress::Stress),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Export(transfer::Export),
    Import(transfer::Import),
    Record(record::Record),
    Replay(replay::Replay),
    /// What `serve` runs MCP servers with; of no use to anybody else
    #[cfg(target_os = "linux")]
    #[command(name = crate::mcp::GUARD, hide = true)]
    McpGuard(mcp::Guard),
    Simulate(simulate::Simulate),
    /// Print the OpenAPI document of this build
    Openapi,
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// How to find and use a server.
#[derive(Debug, Args)]
pub struct Remote {
    /// The server's address
    #[arg(long, env = "RADDLE_SERVER", default_value = DEFAULT_SERVER, value_name = "URL")]
    server: String,
    /// The key to send
    #[arg(long, env = "RADDLE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Remote {
    fn client(&self) -> Result<Client, Failure> {
        // A wrong address is a wrong argument, whatever the client calls it.
        Client::new(&self.server, self.key.clone()).map_err(|err| Failure::Usage(err.to_string()))
    }
}

/// Which records to list.
#[derive(Debug, Args)]
pub struct Which {
    /// Only those with this status
    #[arg(long)]
    status: Option<String>,
    /// Whatever their status
    #[arg(long, conflicts_with = "status")]
    all: bool,
    /// Only those of this thread
    #[arg(long, value_name = "ID")]
    thread: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl Which {
    /// How many, and the parameters; `waiting` is the status of what waits for a person.
    fn asks_for(self, waiting: &str) -> (usize, Parameters) {
        let status = self.status.or_else(|| (!self.all).then(|| waiting.to_owned()));
        let named = [("status", status), ("thread", self.thread)];
        let filter = named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        (self.limit as usize, filter)
    }
}

/// The parameters of a request.
type Parameters = Vec<(&'static str, String)>;

/// The first `limit` things of a list, over as many pages as it takes: a page may be short, and not the last.
async fn collect<T>(
    limit: usize,
    filter: Parameters,
    page: impl AsyncFn(Parameters) -> Result<Page<T>, ClientError>,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let mut query = filter.clone();
        query.push(("limit", (limit - all.len()).min(500).to_string()));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let found = page(query).await?;
        all.extend(found.data);
        cursor = found.next_cursor;
        if cursor.is_none() || all.len() >= limit {
            return Ok(all);
        }
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    Failed(String),
    Usage(String),
    Refused(String),
    Unreachable(String),
    /// Everything that is to be said was said.
    Told,
    /// It was said, and the code says what.
    Found(u8),
}

impl Failure {
    pub const fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Found(code) => *code,
        }
    }

    pub fn sentence(&self) -> Option<&str> {
        match self {
            Self::Failed(why) | Self::Usage(why) | Self::Refused(why) | Self::Unreachable(why) => Some(why),
            Self::Told | Self::Found(_) => None,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(err: ClientError) -> Self {
        match err {
            ClientError::Unreachable { .. } => Self::Unreachable(format!("{err}; is `raddle serve` running?")),
            ClientError::Refused(refusal) => Self::Refused(refusal.to_string()),
            ClientError::Failed(why) => Self::Failed(why),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        Self::Failed(err.to_string())
    }
}

impl Cli {
    /// Whether one thread is enough: there is one such process beside each MCP server.
    pub const fn is_small(&self) -> bool {
        #[cfg(target_os = "linux")]
        let small = matches!(self.command, Command::McpGuard(_));
        #[cfg(not(target_os = "linux"))]
        let small = false;
        small
    }

    /// Does what was asked.
    pub async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Serve(serve) => serve.run().await,
            Command::Chat(chat) => chat.run().await,
            Command::Threads(threads) => threads.run().await,
            Command::Approvals(approvals) => approvals.run().await,
            Command::Questions(questions) => questions.run().await,
            Command::Effects(effects) => effects.run().await,
            Command::Mcp(mcp) => mcp.run().await,
            #[cfg(target_os = "linux")]
            Command::McpGuard(guard) => guard.run().await,
            Command::Jobs(jobs) => jobs.run().await,
            Command::Schedules(schedules) => schedules.run().await,
            Command::Runs(runs) => runs.run().await,
            Command::Usage(usage) => usage.run().await,
            Command::Routing(routing) => routing.run().await,
            Command::Hooks(hooks) => hooks.run().await,
            Command::Policy(policy) => policy.run().await,
            Command::Tenants(tenants) => tenants.run().await,
            Command::Keys(keys) => keys.run().await,
            Command::Config(config) => config.run(),
            Command::Doctor(doctor) => doctor.run().await,
            Command::Stress(stress) => stress.run().await,
            Command::Backup(backup) => backup.run().await,
            Command::Restore(restore) => restore.run().await,
            Command::Export(export) => export.run().await,
            Command::Import(import) => import.run().await,
            Command::Record(record) => record.run().await,
            Command::Replay(replay) => replay.run().await,
            Command::Simulate(simulate) => simulate.run(),
            Command::Openapi => {
                let document = gateway::openapi().map_err(|err| Failure::Failed(err.to_string()))?;
                say(&document)
            }
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "raddle", &mut script);
                write(&script)
            }
        }
    }
}

/// Prints a line. A reader that has gone, as `head` does, is not a failure: it ends the command.
fn say(line: &str) -> Result<(), Failure> {
    write(format!("{line}\n").as_bytes())
}

/// Prints a value as one line of JSON.
fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    say(&serde_json::to_string(value).map_err(|err| Failure::Failed(err.to_string()))?)
}

/// Prints bytes, at once.
fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => Ok(done?),
    }
}

/// The API's word for a value that has one.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

/// What of a text may be shown in a terminal: everything but control characters, which could rewrite what was
/// shown before. Line ends and tabs stay.
fn plain(text: &str) -> String {
    text.chars().filter(|char| (!char.is_control() || matches!(char, '\n' | '\t')) && !turns(*char)).collect()
}

/// Whether a character is not seen and changes how its line is read: what turns the direction, and what has no width.
const fn turns(char: char) -> bool {
    matches!(char, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_failure_has_its_exit_code() {
        let refused = |status: u16| {
            let json = format!(r#"{{"status":{status},"code":"x","detail":"d"}}"#);
            Failure::from(ClientError::Refused(serde_json::from_str(&json).unwrap())).code()
        };
        assert_eq!(refused(409), 3);
        assert_eq!(refused(503), 3);
        let unreachable = ClientError::Unreachable { server: "s".into(), why: "w".into() };
        assert_eq!(Failure::from(unreachable).code(), 4);
        assert_eq!(Failure::from(ClientError::Failed("f".into())).code(), 1);
        assert_eq!(Failure::Usage("u".into()).code(), 2);
    }

    #[test]
    fn an_answer_cannot_drive_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\tc\u{7}"), "a[2Jb\n\tc");
    }
}
