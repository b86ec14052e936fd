//! Where commands run: processes that may read the system and their workspace, write in the workspace at most, and
//! reach nobody.
//!
//! ```text
//! namespaces   no process, mount, socket or shared memory of others is there; all end when the first one does
//! Landlock     files by an allow-list; TCP; signals and abstract sockets stay inside
//! seccomp      system calls by an allow-list; without a network no sockets at all
//! keeper       what all processes together take; kills what is left, whoever dies first
//! ```
//! None of the layers trusts another. Which of them there are, is found out once, by [`Sandbox::probe`]: a process is
//! confined as a command would be, and tries what it must not be able to do. What is used is the strongest cage in which
//! nothing of that succeeds; if there is none, there is no sandbox, and [`Sandbox::run`] refuses.
//!
//! Invariants. **A command that was not confined as promised was not begun**: each step says so when it fails, and
//! silence counts as failure. **Nothing outlives a run**: not a daemon, not when the run's future is dropped, not when
//! the server is killed. **Nothing is inherited**: the environment is made here, descriptors are closed, stdin is
//! `/dev/null`. Secrets are not hidden from commands; they are never on the list of what is shown.
//!
//! Absent on purpose: a way back to running unconfined when confining fails; pseudo-terminals; a bound on the disk
//! space of all files together, which is a quota's.

mod attempts;
mod capture;
mod filter;
pub mod helper;
mod keeper;
mod leaf;
mod mounts;
mod wire;

use std::{
    fmt, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt, unix::net::UnixStream as StdStream},
    path::{Component, Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use raddle_domain::{
    policy::SandboxMode,
    ports::{Output, Silence},
};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::pipe},
    process::Command,
};
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::wire::{Excess, Limits};
use self::{
    capture::Capture,
    wire::{Attempts, Cage, Confine, Job, Outer, Spec, Status, Trial, Tried},
};

/// What is wanted of the sandbox.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    pub kind: Kind,
    /// The widest mode that is allowed to any command.
    pub widest: SandboxMode,
    /// The TCP ports that commands may connect to; `None`: no network.
    pub ports: Option<Vec<u16>>,
    /// Variables of the server that commands get.
    pub env_pass: Vec<String>,
    /// What commands may read besides the system.
    pub read: Vec<PathBuf>,
    /// Names in a workspace that commands may not change.
    pub protect: Vec<String>,
    /// The longest time that a command may take.
    pub timeout: Duration,
    /// What is kept of a command's output.
    pub output_bytes: usize,
    pub limits: Limits,
}

/// How commands are confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As strongly as can be.
    Auto,
    /// By `bwrap` around Landlock and seccomp.
    Bwrap,
    /// By namespaces of our own around them.
    Namespaces,
    /// By Landlock and seccomp alone.
    Landlock,
    /// Not at all.
    None,
    /// Nobody runs any.
    Off,
}

/// A command to be run.
#[derive(Debug, Clone)]
pub struct Exec {
    pub command: ExecCommand,
    /// Absolute, without links.
    pub workspace: PathBuf,
    /// Inside of it.
    pub cwd: PathBuf,
    pub mode: SandboxMode,
    /// At most what is configured.
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
pub enum ExecCommand {
    /// For a shell to read.
    Shell(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

/// How a run ended, and what the command wrote, both streams as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub output: String,
    pub end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Killed(i32),
    /// It was killed after this long.
    TimedOut(Duration),
    /// It was killed because it took too much.
    TooMuch(Excess),
    /// It was certainly not begun.
    Refused(String),
    /// Nobody knows.
    Lost(String),
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processes(most) => write!(f, "more than {most} processes"),
            Self::Memory(most) => write!(f, "more than {most} bytes of memory"),
        }
    }
}

/// What holds for commands on this machine, as it was found out at the start.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Enforced {
    /// Whether commands can be run at all.
    pub available: bool,
    /// Why they cannot, or what is not as it could be.
    pub notes: Vec<String>,
    /// `bwrap`, `namespaces`, `landlock`, or `none`.
    pub kind: &'static str,
    /// The version of Landlock's interface.
    pub landlock: Option<i32>,
    pub seccomp: bool,
    /// Whether commands see no processes but their own.
    pub own_processes: bool,
    /// Whether the configuration of version control in a workspace is protected.
    pub protects: bool,
    /// Whether commands have a network.
    pub network: bool,
    /// The widest mode that a command may have.
    #[schema(value_type = String)]
    pub mode: SandboxMode,
    /// What was tried.
    pub tried: Vec<Attempt>,
}

/// Something that a confined process tried at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Attempt {
    pub what: String,
    /// Whether it went as it must: what is forbidden was refused, what is needed works.
    pub ok: bool,
    pub found: String,
}

/// The sandbox of this machine.
#[derive(Debug)]
pub struct Sandbox {
    config: SandboxConfig,
    /// This program, to be started again.
    helper: PathBuf,
    shell: &'static str,
    /// `None`: nothing is confined, or nothing can be run.
    cage: Option<Cage>,
    enforced: Enforced,
}

/// What commands find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a keeper may take to kill what has had its time.
const GRACE: Duration = Duration::from_secs(10);

/// How long the first test may take.
const PROBE: Duration = Duration::from_secs(30);

impl Sandbox {
    /// Finds out what can be enforced here. `helper` is a program that calls [`helper::main`] first, [`this_program`]
    /// for one; `hidden` are the files and directories that no command may be shown, whatever is configured, but for its
    /// own workspace.
    pub async fn probe(config: SandboxConfig, helper: PathBuf, hidden: &[PathBuf]) -> Self {
        let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        let enforced = Enforced {
            available: false,
            notes: Vec::new(),
            kind: "none",
            landlock: None,
            seccomp: false,
            own_processes: false,
            protects: false,
            network: config.ports.is_some(),
            mode: config.widest,
            tried: Vec::new(),
        };
        let mut sandbox = Self { config, helper, shell, cage: None, enforced };
        if sandbox.config.kind == Kind::Off {
            sandbox.enforced.notes.push("`sandbox.kind` is `off`".into());
        } else if sandbox.config.kind == Kind::None {
            sandbox.enforced.available = true;
            sandbox.enforced.network = true;
            sandbox.enforced.notes.push("`sandbox.kind` is `none`: commands may do whatever the server may".into());
        } else if let Err(why) = sandbox.check_shown(hidden) {
            sandbox.enforced.notes.push(why);
        } else {
            sandbox.find_cage().await;
        }
        sandbox
    }

    pub const fn enforced(&self) -> &Enforced {
        &self.enforced
    }

    /// Whether commands that may not leave it are held in.
    pub const fn confines(&self) -> bool {
        self.cage.is_some()
    }

    pub const fn widest(&self) -> SandboxMode {
        self.config.widest
    }

    /// How long a command may take.
    pub const fn timeout(&self) -> Duration {
        self.config.timeout
    }

    /// Refuses a list of what is shown that has in it, or is in, what must not be.
    fn check_shown(&self, hidden: &[PathBuf]) -> Result<(), String> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let shown: Vec<PathBuf> =
            leaf::system().map(real).chain(self.config.read.iter().map(|path| real(path))).collect();
        for hidden in hidden.iter().map(|path| real(path)) {
            let met = shown.iter().find(|shown| hidden.starts_with(shown) || shown.starts_with(&hidden));
            if let Some(shown) = met {
                let (inner, outer) = if hidden.starts_with(shown) { (&hidden, shown) } else { (shown, &hidden) };
                return Err(format!("commands could read {}, which is in {}", inner.display(), outer.display()));
            }
        }
        Ok(())
    }

    /// Tries the cages, the strongest first.
    async fn find_cage(&mut self) {
        let wanted = |kind| matches!(self.config.kind, Kind::Auto) || self.config.kind == kind;
        let mut cages = Vec::new();
        if wanted(Kind::Bwrap) {
            match (bwrap(), self.helper.canonicalize()) {
                (Some(bwrap), Ok(exe)) => cages.push(Cage::Bwrap { bwrap, exe }),
                (None, _) => self.enforced.notes.push("bwrap: it is not installed".to_owned()),
                (_, Err(why)) => self.enforced.notes.push(format!("bwrap: this program is not to be found: {why}")),
            }
        }
        cages.extend(
            [(Kind::Namespaces, Cage::Namespaces), (Kind::Landlock, Cage::Reaper)]
                .into_iter()
                .filter_map(|(kind, cage)| wanted(kind).then_some(cage)),
        );
        for cage in cages {
            // The kernel does not bound the processes of root, and without a namespace they cannot be ended at once.
            if cage == Cage::Reaper && rustix::process::geteuid().is_root() {
                let why = "landlock alone: not for root; run the server as an ordinary user, or let it make namespaces";
                self.enforced.notes.push(why.to_owned());
                continue;
            }
            match self.try_cage(&cage).await {
                Ok(trial) => {
                    self.enforced.available = true;
                    self.enforced.kind = cage.name();
                    self.enforced.landlock = Some(trial.landlock);
                    self.enforced.seccomp = true;
                    self.enforced.own_processes = cage != Cage::Reaper;
                    self.enforced.protects = cage != Cage::Reaper && !self.config.protect.is_empty();
                    self.enforced.tried =
                        trial.tried.into_iter().map(|Tried { what, ok, found }| Attempt { what, ok, found }).collect();
                    self.cage = Some(cage);
                    return;
                }
                Err(why) => self.enforced.notes.push(format!("{}: {why}", cage.name())),
            }
        }
    }

    /// Confines a process as commands would be, in both ways, and lets it try.
    async fn try_cage(&self, cage: &Cage) -> Result<Trial, String> {
        let (mut writing, reading) = tokio::try_join!(
            self.try_mode(cage, SandboxMode::WorkspaceWrite),
            self.try_mode(cage, SandboxMode::ReadOnly),
        )?;
        // What differs between them is told for both.
        let differs = reading.tried.into_iter().filter(|tried| !writing.tried.contains(tried)).map(|mut tried| {
            tried.what.push_str(", when it may only read");
            tried
        });
        writing.tried.extend(differs.collect::<Vec<_>>());
        Ok(writing)
    }

    async fn try_mode(&self, cage: &Cage, mode: SandboxMode) -> Result<Trial, String> {
        let bait = Bait::lay().map_err(|why| format!("cannot lay out what is to be tried: {why}"))?;
        let exec = Exec {
            command: ExecCommand::Argv(Vec::new()),
            workspace: bait.workspace.clone(),
            cwd: PathBuf::new(),
            mode,
            timeout: Some(PROBE),
        };
        let spec = self.spec(&exec, cage.clone(), true).map_err(|why| why.to_string())?;
        let spec = Spec { job: Job::Try(bait.attempts()), ..spec };
        let started = self.start(&spec, PROBE, &Silence).await;
        let (outer, capture, _) = started.map_err(|why| format!("this program cannot be started again: {why}"))?;
        let said = capture.finish();
        let trial = match outer {
            Some(Outer::Tried(trial)) => trial,
            Some(Outer::Refused(why)) => return Err(format!("{why} {}", said.trim()).trim().to_owned()),
            other => return Err(format!("the test did not end well: {other:?} {}", said.trim()).trim().to_owned()),
        };
        let wrong = trial.tried.iter().filter(|tried| !tried.ok);
        let wrong: Vec<String> = wrong.map(|Tried { what, found, .. }| format!("{what}: {found}")).collect();
        match wrong.is_empty() {
            true => Ok(trial),
            false => Err(format!("not enforced: {}", wrong.join("; "))),
        }
    }

    /// Runs a command, and says what it writes as it comes. Dropped, it kills the command.
    pub async fn run(&self, exec: Exec, output: Arc<dyn Output>) -> Ran {
        let refused = |why: String| Ran { output: String::new(), end: End::Refused(why) };
        if !self.enforced.available {
            return refused(format!("there is no sandbox: {}", self.enforced.notes.join("; ")));
        }
        if exec.mode > self.config.widest {
            return refused("it is wider than `sandbox.mode` allows".to_owned());
        }
        let free = exec.mode == SandboxMode::DangerFullAccess;
        let (cage, confined) = match &self.cage {
            Some(cage) if !free => (cage.clone(), true),
            Some(_) => (Cage::Reaper, false),
            // Said in so many words by whoever set up the server.
            None if self.config.kind == Kind::None => (Cage::Reaper, false),
            None => return refused("there is no sandbox".to_owned()),
        };
        let spec = match self.spec(&exec, cage, confined) {
            Ok(spec) => spec,
            Err(why) => return refused(why.to_string()),
        };
        let timeout = exec.timeout.unwrap_or(self.config.timeout).min(self.config.timeout);
        match self.start(&spec, timeout, &*output).await {
            Err(why) => refused(format!("the sandbox could not be started: {why}")),
            Ok((outer, capture, timed_out)) => {
                let end = match outer {
                    Some(Outer::Refused(why)) => End::Refused(format!("the sandbox could not be applied: {why}")),
                    // Before the time: that it was killed for that is what cannot be said of it.
                    Some(Outer::Lost(why)) => End::Lost(why),
                    _ if timed_out => End::TimedOut(timeout),
                    Some(Outer::Ended(Status::Exited(code))) => End::Exited(code),
                    Some(Outer::Ended(Status::Killed(signal))) => End::Killed(signal),
                    Some(Outer::TooMuch(excess)) => End::TooMuch(excess),
                    Some(Outer::Tried(_)) | None => End::Lost("the keeper of the command died".to_owned()),
                };
                Ran { output: capture.finish(), end }
            }
        }
    }

    fn spec(&self, exec: &Exec, cage: Cage, confined: bool) -> io::Result<Spec> {
        let write = exec.mode != SandboxMode::ReadOnly;
        let cwd = match exec.cwd.strip_prefix(&exec.workspace) {
            Ok(inside) => inside,
            Err(_) if exec.cwd.is_relative() => &exec.cwd,
            Err(_) => return Err(io::Error::other("the working directory is not inside of the workspace")),
        };
        if cwd.components().any(|part| part == Component::ParentDir) {
            return Err(io::Error::other("the working directory leads upwards"));
        }
        let found = std::fs::metadata(&exec.workspace)?;
        let tmp = (write || !confined).then(|| std::env::temp_dir().join(format!("raddle-{}", Uuid::new_v4())));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let home = tmp.as_deref().map_or_else(|| text(&exec.workspace), text);
        let mut env: Vec<(String, String)> =
            [("PATH", PATH), ("LANG", "C.UTF-8"), ("TERM", "dumb"), ("HOME", &home), ("TMPDIR", &home)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        // One that is no text cannot be told to the helper, and is nobody's.
        let passed = self.config.env_pass.iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)));
        for (name, value) in passed {
            env.retain(|(other, _)| *other != name);
            env.push((name, value));
        }
        let argv = match &exec.command {
            ExecCommand::Shell(text) => vec![self.shell.to_owned(), "-c".to_owned(), text.clone()],
            ExecCommand::Argv(argv) => argv.clone(),
        };
        Ok(Spec {
            cage,
            confine: confined.then(|| Confine {
                write,
                read: self.config.read.clone(),
                protect: self.config.protect.clone(),
                ports: self.config.ports.clone(),
            }),
            job: Job::Run(argv),
            env,
            workspace_id: (found.dev(), found.ino()),
            workspace: exec.workspace.clone(),
            cwd: cwd.to_owned(),
            tmp,
            limits: self.config.limits,
        })
    }

    /// Starts a keeper and listens to it and to the command until both have said everything. The last word is missing
    /// when the keeper died. An error: nothing was started.
    async fn start(
        &self,
        spec: &Spec,
        timeout: Duration,
        output: &dyn Output,
    ) -> io::Result<(Option<Outer>, Capture, bool)> {
        let mut order = serde_json::to_vec(spec)?;
        order.push(b'\n');
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut line = UnixStream::from_std(ours)?;
        let (written, writer) = std::io::pipe()?;
        let mut written = pipe::Receiver::from_owned_fd(OwnedFd::from(written))?;
        let mut command = Command::new(&self.helper);
        command
            .args([helper::SUBCOMMAND, "keep"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(writer.try_clone()?)))
            .stderr(Stdio::from(OwnedFd::from(writer)));
        let mut keeper = command.spawn()?;
        // It holds the other ends, whose closing is to be noticed.
        drop(command);

        let mut capture = Capture::new(self.config.output_bytes);
        let mut last_word = Vec::new();
        let mut timed_out = false;
        let (deadline, grace) = (tokio::time::sleep(timeout), tokio::time::sleep(timeout.saturating_add(GRACE)));
        tokio::pin!(deadline, grace);
        let sent = line.write_all(&order).await;
        let mut piece = vec![0; 16 * 1024];
        let (mut all_written, mut all_said) = (false, sent.is_err());
        // When the last word is missing, the keeper was killed: whoever still holds the pipe may do so for ever.
        while !(all_said && (all_written || last_word.is_empty())) {
            tokio::select! {
                biased;
                () = &mut deadline, if !timed_out => {
                    timed_out = true;
                    // The keeper takes it as our death. If it is dead itself, we hear so.
                    let _ = line.shutdown().await;
                }
                () = &mut grace => {
                    // Nothing in the sandbox can keep it so long; a machine that is in trouble can.
                    let _ = keeper.start_kill();
                    break;
                }
                said = line.read_buf(&mut last_word), if !all_said => all_said = matches!(said, Ok(0) | Err(_)),
                read = written.read(&mut piece), if !all_written => match read {
                    Ok(0) | Err(_) => all_written = true,
                    Ok(read) => {
                        let text = capture.take(&piece[..read]);
                        // Saying it may take as long as the listener likes; the time of the command goes on.
                        if !text.is_empty() && !timed_out {
                            tokio::select! {
                                () = output.say(text) => {}
                                () = &mut deadline => {
                                    timed_out = true;
                                    let _ = line.shutdown().await;
                                }
                            }
                        }
                    }
                },
            }
        }
        let _ = keeper.wait().await;
        Ok((serde_json::from_slice(&last_word).ok(), capture, timed_out))
    }
}

impl Cage {
    const fn name(&self) -> &'static str {
        match self {
            Self::Bwrap { .. } => "bwrap",
            Self::Namespaces => "namespaces",
            Self::Reaper => "landlock",
        }
    }
}

/// This program, as it was when it was started, whatever has become of its file.
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Where `bwrap` is, among the directories that only root writes to.
fn bwrap() -> Option<PathBuf> {
    ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"].into_iter().map(PathBuf::from).find(|path| path.is_file())
}

/// What a confined process tries to get at: all of it is really there, and removed with this.
struct Bait {
    dir: PathBuf,
    workspace: PathBuf,
    tcp: std::net::TcpListener,
    abstract_name: String,
    _sockets: [std::os::unix::net::UnixListener; 2],
}

impl Bait {
    fn lay() -> io::Result<Self> {
        use std::os::{
            linux::net::SocketAddrExt,
            unix::{
                fs::DirBuilderExt,
                net::{SocketAddr, UnixListener},
            },
        };
        let name = format!("raddle-{}", Uuid::new_v4());
        let dir = std::env::temp_dir().canonicalize()?.join(&name);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let lay = || {
            let workspace = dir.join("workspace");
            std::fs::create_dir(&workspace)?;
            std::fs::write(dir.join("secret"), "secret")?;
            let tcp = std::net::TcpListener::bind("127.0.0.1:0")?;
            let path = UnixListener::bind(dir.join("socket"))?;
            let named = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
            Ok((workspace, tcp, [path, named]))
        };
        match lay() {
            Ok((workspace, tcp, sockets)) => Ok(Self { dir, workspace, tcp, abstract_name: name, _sockets: sockets }),
            Err(why) => {
                let _ = std::fs::remove_dir_all(&dir);
                Err(why)
            }
        }
    }

    fn attempts(&self) -> Attempts {
        Attempts {
            file_outside: self.dir.join("outside"),
            secret: self.dir.join("secret"),
            tcp_port: self.tcp.local_addr().map_or(0, |address| address.port()),
            socket: self.dir.join("socket"),
            abstract_socket: self.abstract_name.clone(),
            server: std::process::id(),
        }
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        if let Err(why) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), error = %why, "cannot remove what the test of the sandbox left");
        }
    }
}
