//! A server that is a program: started with little of our environment, ended with everything that it started.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child as Process, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{config::Program, secrets::Secrets};

/// What a program is told of where it runs; anything else has to be configured.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// How long a server may take to end by itself once its input has ended, and then once it is told to.
const GRACE: Duration = Duration::from_millis(500);

/// What is logged of a server's stderr: of a line, and in all.
const LINE_BYTES: usize = 2_000;
const LOG_BYTES: usize = 256 * 1024;

/// A running server. Dropping it ends it.
pub struct Child {
    process: Process,
}

impl Child {
    /// Starts the program, with its pipes.
    pub fn start(
        server: &str,
        program: &Program,
        secrets: &Secrets,
    ) -> Result<(Self, ChildStdin, ChildStdout), String> {
        let mut command = command(program);
        command.env_clear();
        let inherited = INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        command.envs(inherited);
        command.envs(program.env.iter().map(|(name, value)| (name, value.expose_secret())));
        if let Some(cwd) = &program.cwd {
            command.current_dir(cwd);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // With a directory that is not there, the error is the same as with a command that is not.
        let process = command.spawn().map_err(|error| match &program.cwd {
            Some(cwd) if !cwd.is_dir() => "its `cwd` is no directory".to_owned(),
            _ => format!("it cannot be started: {error}"),
        });
        let mut child = Self { process: process? };
        let pipes = (child.process.stdin.take(), child.process.stdout.take(), child.process.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { return Err("it has no pipes".to_owned()) };
        tokio::spawn(log(server.to_owned(), stderr, secrets.clone()));
        Ok((child, stdin, stdout))
    }

    /// Ends it, after its input has ended: by itself, or else by force. Says how it ended.
    pub async fn end(mut self) -> String {
        let status = match timeout(GRACE, self.process.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.signal();
                match timeout(GRACE, self.process.wait()).await {
                    Ok(_) => return "it was ended".to_owned(),
                    Err(_) => return "it does not end".to_owned(),
                }
            }
        };
        match status.map(|status| status.code()) {
            Ok(Some(code)) if code == i32::from(super::CANNOT_RUN) => "its command cannot be run".to_owned(),
            Ok(Some(code)) => format!("it ended with exit code {code}"),
            Ok(None) => "it was killed".to_owned(),
            Err(error) => format!("how it ended is not known: {error}"),
        }
    }

    #[cfg(target_os = "linux")]
    fn signal(&self) {
        // The guard ends the rest.
        if let Some(pid) = self.pid() {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn signal(&self) {
        if let Some(pid) = self.pid() {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    /// `None` once it was waited for: then the id may be somebody else's.
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.process.id()?).ok()?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal();
    }
}

/// The program below a guard.
#[cfg(target_os = "linux")]
fn command(program: &Program) -> Command {
    // Not by its name: the file may have been replaced since we were started.
    let mut command = Command::new("/proc/self/exe");
    command.args([super::GUARD, &std::process::id().to_string(), "--"]);
    command.arg(&program.command).args(&program.args);
    command
}

#[cfg(not(target_os = "linux"))]
fn command(program: &Program) -> Command {
    let mut command = Command::new(&program.command);
    command.args(&program.args);
    command
}

/// Logs what the server says beside the protocol. All of it is read, so that the server never waits for us.
async fn log(server: String, mut stderr: impl AsyncRead + Unpin, secrets: Secrets) {
    let mut buffer = vec![0; 8 * 1024];
    let mut line = Vec::new();
    let mut left = LOG_BYTES;
    loop {
        let read = stderr.read(&mut buffer).await.unwrap_or(0);
        for byte in &buffer[..read] {
            match byte {
                b'\n' => said(&server, &mut line, &mut left, &secrets),
                byte if line.len() < LINE_BYTES => line.push(*byte),
                _ => {}
            }
        }
        if read == 0 {
            return said(&server, &mut line, &mut left, &secrets);
        }
    }
}

fn said(server: &str, line: &mut Vec<u8>, left: &mut usize, secrets: &Secrets) {
    let size = line.len() + 1;
    if size > 1 && *left > 0 {
        tracing::debug!(server, "{}", secrets.logged(line, line.len() == LINE_BYTES, LINE_BYTES));
        *left = left.saturating_sub(size);
        if *left == 0 {
            tracing::debug!(server, "what else the MCP server says on stderr is not logged");
        }
    }
    line.clear();
}
