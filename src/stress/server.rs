//! A server of our own: a child process on a directory of its own, which survives its death.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use raddle_actors::UuidIds;
use raddle_domain::ports::Ids;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{self, Command},
};

use super::StressError;

/// How long a start may take.
const START: Duration = Duration::from_secs(60);
/// How long a shutdown may.
const SHUTDOWN: Duration = Duration::from_secs(30);
/// How often it is started again when it does not come up, as on a disk that fails.
const STARTS: u32 = 10;

/// The process, and what it lives on.
pub struct Child {
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
    home: PathBuf,
    process: Option<process::Child>,
}

impl Child {
    /// Makes its directory, for nobody else to read; nothing runs yet. The directory for what is temporary is the
    /// machine's to make.
    pub fn new(program: PathBuf, environment: Vec<(&'static str, String)>) -> Result<Self, StressError> {
        let home = std::env::temp_dir().join(format!("raddle-stress-{}", UuidIds.mint().simple()));
        let made = DirBuilder::new().mode(0o700).create(&home).and_then(|()| fs::create_dir(home.join("data")));
        made.map_err(|err| failed(&format!("cannot make {}", home.display()), err))?;
        Ok(Self { program, environment, home, process: None })
    }

    /// Where its data, its log and the files of the demo tools are.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Starts it; where it listens.
    pub async fn start(&mut self) -> Result<String, StressError> {
        let mut starts = 0;
        loop {
            starts += 1;
            match self.try_start().await {
                Ok(url) => return Ok(url),
                Err(err) if starts == STARTS => return Err(err),
                Err(_) => {}
            }
        }
    }

    async fn try_start(&mut self) -> Result<String, StressError> {
        self.kill().await;
        let log = File::options().create(true).append(true).open(self.home.join("server.log"));
        let log = log.map_err(|err| failed("cannot write the server's log", err))?;
        let ours = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("RADDLE_"));
        let mut process = Command::new(&self.program)
            .arg("serve")
            .env_clear()
            .envs(ours)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("RADDLE_DATA_DIR", self.home.join("data"))
            .env("RADDLE_TOOLS_DEMO_DIR", self.home.join("demo"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            // What a terminal tells us is not for it: it ends when we say so.
            .process_group(0)
            .spawn()
            .map_err(|err| failed("cannot start a server", err))?;
        let stdout = process.stdout.take();
        self.process = Some(process);
        let mut line = String::new();
        if let Some(stdout) = stdout {
            let mut stdout = BufReader::new(stdout);
            drop(tokio::time::timeout(START, stdout.read_line(&mut line)).await);
        }
        match line.trim().strip_prefix("listening on ") {
            Some(url) => Ok(url.to_owned()),
            None => Err(StressError::Failed(format!(
                "the server does not start; its log is {}",
                self.home.join("server.log").display()
            ))),
        }
    }

    /// Waits until it has ended without being told to.
    pub async fn gone(&mut self) -> StressError {
        let Some(process) = &mut self.process else { return std::future::pending().await };
        let how = match process.wait().await {
            Ok(status) => status.to_string(),
            Err(err) => err.to_string(),
        };
        let log = self.home.join("server.log");
        StressError::Gone(format!("the server ended by itself ({how}); its log is {}", log.display()))
    }

    /// SIGKILL; it is gone when this returns.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may be gone already, which is all the same.
            drop(process.kill().await);
        }
    }

    /// Shuts it down. Removes what it leaves behind, or keeps it and says where.
    pub async fn end(mut self, keep: bool) -> Option<PathBuf> {
        if let Some(mut process) = self.process.take() {
            let pid = process.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if tokio::time::timeout(SHUTDOWN, process.wait()).await.is_err() {
                drop(process.kill().await);
            }
        }
        if keep {
            return Some(self.home);
        }
        drop(fs::remove_dir_all(&self.home));
        None
    }
}

fn failed(what: &str, err: io::Error) -> StressError {
    StressError::Failed(format!("{what}: {err}"))
}
