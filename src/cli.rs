//! The command line: one file per subcommand, and what they share. All but `serve` speak HTTP to a server.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the
//! server, 4 cannot reach the server.

use std::io::{self, Write};

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::{
    client::{Client, ClientError, DEFAULT_SERVER},
    gateway,
};

mod chat;
mod doctor;
mod routing;
mod serve;
mod threads;
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
    /// List, show, follow and delete threads
    Threads(threads::Threads),
    /// Show what was spent
    Usage(usage::Usage),
    /// List and set which model answers which intent
    Routing(routing::Routing),
    /// Check that a server is well
    Doctor(doctor::Doctor),
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

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    Failed(String),
    Usage(String),
    Refused(String),
    Unreachable(String),
    /// Everything that is to be said was said.
    Told,
}

impl Failure {
    pub const fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
        }
    }

    pub fn sentence(&self) -> Option<&str> {
        match self {
            Self::Failed(why) | Self::Usage(why) | Self::Refused(why) | Self::Unreachable(why) => Some(why),
            Self::Told => None,
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
    /// Does what was asked.
    pub async fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Serve(serve) => serve.run().await,
            Command::Chat(chat) => chat.run().await,
            Command::Threads(threads) => threads.run().await,
            Command::Usage(usage) => usage.run().await,
            Command::Routing(routing) => routing.run().await,
            Command::Doctor(doctor) => doctor.run().await,
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

/// What of a text may be shown in a terminal: everything but control characters, which could rewrite what was
/// shown before. Line ends and tabs stay.
fn plain(text: &str) -> String {
    text.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect()
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
