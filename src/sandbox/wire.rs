//! What the server and the processes of a sandbox say to each other, as lines of JSON over sockets that no command
//! inherits. Both ends are one build: there is no version to agree on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is to be run, and in what. Never an argument of a process: arguments are for everybody to read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub cage: Cage,
    /// `None`: it may do whatever the server may.
    pub confine: Option<Confine>,
    pub job: Job,
    pub env: Vec<(String, String)>,
    /// Absolute, without links.
    pub workspace: PathBuf,
    /// Device and inode of the directory that was meant: a path may be led elsewhere between a look and a use.
    pub workspace_id: (u64, u64),
    /// Relative to the workspace.
    pub cwd: PathBuf,
    /// A directory that is made for the command, and removed after it.
    pub tmp: Option<PathBuf>,
    pub limits: Limits,
}

impl Spec {
    /// Whether the file system that the command sees is made by our init.
    pub fn makes_mounts(&self) -> bool {
        self.cage == Cage::Namespaces && self.confine.is_some()
    }
}

/// What holds the processes of a command together, so that all of them end with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cage {
    /// Namespaces for processes, mounts and network, made by `bwrap`; it is at this path, and this program at that one.
    Bwrap { bwrap: PathBuf, exe: PathBuf },
    /// Namespaces that we make ourselves.
    Namespaces,
    /// None: what is left over when a command has ended becomes our child, and is killed.
    Reaper,
}

/// What is kept from a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Confine {
    /// Whether it may write in the workspace and its directory for temporary files.
    pub write: bool,
    /// What it may read besides the system.
    pub read: Vec<PathBuf>,
    /// Names in the workspace that it may not change, where there are mounts to keep it from that.
    pub protect: Vec<String>,
    /// The TCP ports that it may connect to. `None`: no network.
    pub ports: Option<Vec<u16>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Job {
    Run(Vec<String>),
    /// Nothing is run; what a command must not do is tried, and the outcome told.
    Try(Attempts),
}

/// Where to try what must be refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempts {
    pub file_outside: PathBuf,
    pub secret: PathBuf,
    pub tcp_port: u16,
    pub socket: PathBuf,
    pub abstract_socket: String,
    pub server: u32,
}

/// Bounds of one command. Those of a process are the kernel's; those of all its processes together are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of each process.
    pub cpu_s: u64,
    /// Of each process, and of all of them together.
    pub memory_bytes: u64,
    /// Of all of them together.
    pub processes: u64,
    /// Of each file.
    pub file_bytes: u64,
    /// Of each process.
    pub open_files: u64,
}

/// What is told from inside of the cage: by the leaf, which becomes the command, until it does; then by its parent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Inner {
    /// Everything that was promised is in force; the command comes next.
    Applied,
    /// The command was not begun, and will not be.
    Refused(String),
    Tried(Trial),
    Ended(Status),
}

/// The last word to the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outer {
    Refused(String),
    Tried(Trial),
    Ended(Status),
    /// It was killed because its processes together took too much.
    TooMuch(Excess),
    /// It may have been begun, and what became of it cannot be said.
    Lost(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Exited(i32),
    Killed(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Excess {
    Processes(u64),
    Memory(u64),
}

/// What was tried, and in what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The version of Landlock's interface that is enforced.
    pub landlock: i32,
    /// Whether `/proc` shows nobody outside.
    pub own_proc: bool,
    pub tried: Vec<Tried>,
}

/// One thing that was tried in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    pub what: String,
    /// Whether it went as it must.
    pub ok: bool,
    pub found: String,
}
