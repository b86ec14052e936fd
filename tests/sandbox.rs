//! What a command cannot do, each way of doing it tried.
//!
//! An attack is a script that prints `HIT` when it worked. It is first run free, where it must hit, or the test would
//! prove nothing; then in every cage that this machine can make, where it must not. The scripts are Perl, because that
//! is on every Debian and can make any system call.
//!
//! Nothing here waits for a time: what must have ended held a lock, and the test takes it.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use raddle::sandbox::{End, Excess, Exec, ExecCommand, Kind, Limits, Ran, Sandbox, SandboxConfig};
use raddle_domain::{
    policy::SandboxMode,
    ports::{Output, Saying, Silence},
};
use rustix::fs::FlockOperation;
use tempfile::TempDir;
use tokio::sync::{OnceCell, mpsc};

const MIB: u64 = 1024 * 1024;

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_raddle"))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn config(kind: Kind) -> SandboxConfig {
    SandboxConfig {
        kind,
        widest: SandboxMode::DangerFullAccess,
        ports: None,
        env_pass: Vec::new(),
        read: Vec::new(),
        protect: vec![".git".to_owned()],
        timeout: Duration::from_secs(60),
        output_bytes: 64 * 1024,
        limits: Limits { cpu_s: 60, memory_bytes: 2048 * MIB, processes: 512, file_bytes: 512 * MIB, open_files: 1024 },
    }
}

async fn probe(config: SandboxConfig) -> Sandbox {
    Sandbox::probe(config, program(), &[]).await
}

/// No sandbox at all: what an attack is compared with.
async fn free() -> &'static Sandbox {
    static FREE: OnceCell<Sandbox> = OnceCell::const_new();
    FREE.get_or_init(|| probe(config(Kind::None))).await
}

const KINDS: [Kind; 3] = [Kind::Bwrap, Kind::Namespaces, Kind::Landlock];

/// A sandbox of each kind that this machine has, with something changed in its configuration.
async fn cages_with(change: impl Fn(&mut SandboxConfig)) -> Vec<Sandbox> {
    let mut all = Vec::new();
    for kind in KINDS {
        let mut config = config(kind);
        change(&mut config);
        let sandbox = probe(config).await;
        if sandbox.enforced().available {
            all.push(sandbox);
        } else {
            eprintln!("NOT TESTED: {kind:?}: {}", sandbox.enforced().notes.join("; "));
        }
    }
    all
}

async fn cages() -> &'static [Sandbox] {
    static CAGES: OnceCell<Vec<Sandbox>> = OnceCell::const_new();
    CAGES.get_or_init(|| cages_with(|_| {})).await
}

/// A workspace, and things beside it that are not its.
struct Place {
    dir: TempDir,
    workspace: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workspace = dir.path().canonicalize().unwrap().join("workspace");
        fs::create_dir(&workspace).unwrap();
        fs::write(dir.path().join("secret"), "the secret of another").unwrap();
        Self { dir, workspace }
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn exec(&self, mode: SandboxMode, command: ExecCommand) -> Exec {
        Exec { command, workspace: self.workspace.clone(), cwd: PathBuf::new(), mode, timeout: None }
    }

    async fn perl(&self, sandbox: &Sandbox, mode: SandboxMode, script: &str) -> Ran {
        let argv = ["/usr/bin/perl", "-e", script].map(str::to_owned).to_vec();
        sandbox.run(self.exec(mode, ExecCommand::Argv(argv)), Arc::new(Silence)).await
    }

    async fn shell(&self, sandbox: &Sandbox, script: &str) -> Ran {
        let exec = self.exec(SandboxMode::WorkspaceWrite, ExecCommand::Shell(script.to_owned()));
        sandbox.run(exec, Arc::new(Silence)).await
    }
}

#[tokio::test]
async fn smoke() {
    let place = Place::new();
    for cage in cages().await {
        println!("{:#?}", cage.enforced());
        let ran = place.shell(cage, "id; echo hello > a; cat a; ls -la / . ; ls /proc | head -50; echo $HOME; env; nproc; git --version; cat <(echo sub); cat <<X\nhere\nX\nls -la /proc/self/fd; exit 3").await;
        println!("{:?}\n{}", ran.end, ran.output);
    }
    let ran = place.shell(free().await, "id; ls -la /proc/self/fd").await;
    println!("{:?}\n{}", ran.end, ran.output);
}
