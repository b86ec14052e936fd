//! The process that becomes the command. It takes on everything that was promised, step by step, and says so; the
//! first step that fails is told, and the command never begins.
//!
//! The order matters: what needs a capability comes before they are dropped, what opens a file before Landlock, and
//! the filter of system calls last, because it also holds for us.

use std::{
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    process::{Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    attempts,
    wire::{Cage, Confine, Inner, Job, Limits, Spec, Trial},
};

/// Where what is wrong is told, and that nothing is. The command does not inherit it.
struct Channel(fs::File);

impl Channel {
    fn tell(&mut self, inner: &Inner) -> io::Result<()> {
        let mut line = serde_json::to_vec(inner)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

/// Reads the order from stdin and becomes the command. `whole_proc`: `/proc` shows no process from outside.
pub fn run(whole_proc: bool) -> ExitCode {
    let begin = || {
        let line = super::helper::read_line(&mut io::stdin().lock())?;
        let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(fs::File::open("/dev/null")?)?;
        Ok::<_, io::Error>((serde_json::from_str::<Spec>(&line)?, Channel(channel.into())))
    };
    // Nobody can be told; that nothing was said is enough.
    let Ok((spec, mut channel)) = begin() else { return ExitCode::from(super::helper::FAILED) };
    let refused = match apply(&spec, whole_proc) {
        Ok(abi) => go(&spec, &mut channel, abi, whole_proc),
        Err(why) => Some(why.to_string()),
    };
    let Some(why) = refused else { return ExitCode::SUCCESS };
    let _ = channel.tell(&Inner::Refused(why));
    ExitCode::from(super::helper::FAILED)
}

/// Returns only with what prevented the command, or after what was tried instead of one.
fn go(spec: &Spec, channel: &mut Channel, landlock: i32, own_proc: bool) -> Option<String> {
    let told = match &spec.job {
        Job::Try(attempts) => {
            let tried = attempts::make(attempts, spec);
            channel.tell(&Inner::Tried(Trial { landlock, own_proc, tried }))
        }
        Job::Run(argv) => channel.tell(&Inner::Applied).and_then(|()| {
            let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
            let mut command = Command::new(program);
            command.args(arguments).env_clear().envs(spec.env.iter().map(|(name, value)| (name, value)));
            Err(io::Error::other(format!("cannot run {program}: {}", command.exec())))
        }),
    };
    told.err().map(|why| why.to_string())
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {why}")]
struct Broken {
    step: &'static str,
    why: String,
}

/// Names a step in what went wrong with it.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Broken>;
}

impl<T, E: ToString> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Broken> {
        self.map_err(|why| Broken { step, why: why.to_string() })
    }
}

/// Takes on what was promised; returns the version of Landlock that is enforced, 0 where none was promised.
fn apply(spec: &Spec, whole_proc: bool) -> Result<i32, Broken> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("the signal of a parent's death")?;
    // A session of its own: no terminal, and signals to the own group reach nobody else.
    rustix::process::setsid().step("a session")?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    limits(&spec.limits)?;
    threads(spec).step("the limit of processes")?;
    let workspace = workspace(spec).step("the workspace")?;
    enter(&workspace, &spec.cwd).step("the working directory")?;
    let Some(confine) = &spec.confine else { return Ok(0) };
    rustix::thread::set_no_new_privs(true).step("no new privileges")?;
    let alone = spec.cage == Cage::Reaper;
    let programs = super::filter::programs(confine.ports.is_some(), alone).step("the filter of system calls")?;
    bounding_set().step("the bounding set")?;
    let abi = landlock(confine, workspace, spec.tmp.as_deref(), whole_proc)?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).step("capabilities")?;
    programs.iter().try_for_each(|program| seccompiler::apply_filter(program)).step("the filter of system calls")?;
    Ok(abi)
}

fn limits(limits: &Limits) -> Result<(), Broken> {
    let both = |most: u64| Rlimit { current: Some(most), maximum: Some(most) };
    let set = |resource, most: u64| {
        // Where less is allowed already, less it is.
        let allowed = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        rustix::process::setrlimit(resource, both(most.min(allowed)))
    };
    set(Resource::Core, 0).step("the limit of core files")?;
    set(Resource::Cpu, limits.cpu_s).step("the limit of processor time")?;
    set(Resource::Data, limits.memory_bytes).step("the limit of memory")?;
    set(Resource::Fsize, limits.file_bytes).step("the limit of a file's size")?;
    set(Resource::Nofile, limits.open_files).step("the limit of open files")?;
    set(Resource::Memlock, 64 * 1024).step("the limit of locked memory")?;
    set(Resource::Msgqueue, 0).step("the limit of message queues")?;
    set(Resource::Rtprio, 0).step("the limit of priority")?;
    // Whoever runs the machine would rather lose a command than the server.
    rustix::process::nice(5).step("the priority")?;
    fs::write("/proc/self/oom_score_adj", "500").step("the order in which memory is taken back")
}

/// What the kernel itself allows of processes and threads: a coarse net below the keeper's, which looks now and then.
/// The kernel bounds a user, never root; in a user namespace it counts anew, elsewhere what the user already runs.
fn threads(spec: &Spec) -> io::Result<()> {
    let user = rustix::process::geteuid();
    if user.is_root() || spec.confine.is_none() {
        return Ok(());
    }
    let running = match spec.cage {
        Cage::Reaper => running(user.as_raw())?,
        Cage::Bwrap { .. } | Cage::Namespaces => 0,
    };
    let most = running + spec.limits.processes * THREADS;
    let allowed = rustix::process::getrlimit(Resource::Nproc).maximum.unwrap_or(u64::MAX).min(most);
    Ok(rustix::process::setrlimit(Resource::Nproc, Rlimit { current: Some(allowed), maximum: Some(allowed) })?)
}

/// Threads of a process, on average, that nobody has to explain.
const THREADS: u64 = 8;

/// The threads that a user runs now.
fn running(user: u32) -> io::Result<u64> {
    let mut all = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        // Whoever is gone meanwhile does not count.
        if process.metadata().is_ok_and(|process| process.uid() == user) {
            all += fs::read_dir(process.path().join("task")).map_or(0, |tasks| tasks.count() as u64);
        }
    }
    Ok(all)
}

/// The workspace that was meant: no link on the way, and the same directory as when it was looked up.
fn workspace(spec: &Spec) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(CWD, &spec.workspace, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let found = rustix::fs::fstat(&fd)?;
    match (found.st_dev, found.st_ino) == spec.workspace_id {
        true => Ok(fd),
        false => Err(io::Error::other("another directory has taken its place")),
    }
}

fn enter(workspace: &OwnedFd, cwd: &Path) -> io::Result<()> {
    let cwd = if cwd.as_os_str().is_empty() { Path::new(".") } else { cwd };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(workspace, cwd, flags, Mode::empty(), beneath).map_err(|why| match why {
        Errno::XDEV => io::Error::other("it is not inside of the workspace"),
        why => why.into(),
    })?;
    Ok(rustix::process::fchdir(fd)?)
}

/// Gives up what a later `exec` could bring back; no new privileges, and none to inherit, keep the rest away.
fn bounding_set() -> rustix::io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    // Only the privileged may, and only they have to.
    if !held.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    rustix::thread::clear_ambient_capability_set()?;
    for capability in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Beyond the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            done => done?,
        }
    }
    Ok(())
}

/// What every program needs in order to be one. Not `/etc`, not `/proc`, not a home: secrets live there.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/gitconfig",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/localtime",
    "/etc/lsb-release",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/perl",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/profile",
    "/etc/profile.d",
    "/etc/protocols",
    "/etc/python3",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
    "/sys/devices/system/cpu",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
];

/// Of the processes of others nothing; of the machine a little.
const PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/ostype",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/vm/overcommit_memory",
    "/proc/uptime",
    "/proc/version",
];

/// The paths that are readable in every sandbox, as far as they are there.
pub fn system<'a>() -> impl Iterator<Item = &'a Path> {
    SYSTEM.iter().map(Path::new)
}

/// The newest interface that this program knows. Older kernels enforce what they have of it, down to the least.
const NEWEST: ABI = ABI::V9;

/// Before this one, files could be emptied that may not be written.
const LEAST: ABI = ABI::V3;

fn landlock(confine: &Confine, workspace: OwnedFd, tmp: Option<&Path>, whole_proc: bool) -> Result<i32, Broken> {
    let step = "Landlock";
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LEAST))
        .step(step)?;
    // Without a network there are no sockets; with one, Landlock alone says which ports.
    let level = if confine.ports.is_some() { CompatLevel::HardRequirement } else { CompatLevel::BestEffort };
    rules = rules.set_compatibility(level).handle_access(AccessNet::from_all(NEWEST)).step(step)?;
    let rules = rules
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .step(step)?
        .scope(Scope::from_all(NEWEST))
        .step(step)?;
    let mut rules = rules.create().step(step)?;

    let proc = if whole_proc { &["/proc"] } else { PROC };
    let extra = confine.read.iter().map(PathBuf::as_path);
    for path in system().chain(proc.iter().map(Path::new)).chain(extra) {
        rules = allow(rules, path, read).step(step)?;
    }
    rules = allow(rules, Path::new("/dev/null"), read | AccessFs::WriteFile | AccessFs::Truncate).step(step)?;
    let nodes = AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::MakeSock | AccessFs::IoctlDev;
    let write = (AccessFs::from_all(LEAST) & !nodes) | AccessFs::Refer;
    let there = if confine.write { read | write } else { read };
    if let Some(tmp) = tmp.filter(|_| confine.write) {
        rules = allow(rules, tmp, there).step(step)?;
    }
    rules = rules.add_rule(PathBeneath::new(workspace, there)).step(step)?;
    for port in confine.ports.iter().flatten() {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp)).step(step)?;
    }
    let status = rules.restrict_self().step(step)?;
    match (status.ruleset, status.no_new_privs, status.landlock) {
        (
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced,
            true,
            LandlockStatus::Available { effective_abi, kernel_abi },
        ) => Ok(kernel_abi.unwrap_or(effective_abi as i32)),
        _ => Err("it is not enforced"),
    }
    .step(step)
}

/// Adds what is at `path`, if there is something.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => return Ok(rules),
        fd => fd.map_err(|why| format!("{}: {why}", path.display()))?,
    };
    let found = rustix::fs::fstat(fd.as_fd()).map_err(|why| why.to_string())?;
    let is_dir = rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory;
    let access = if is_dir { access } else { access & AccessFs::from_file(NEWEST) };
    rules.add_rule(PathBeneath::new(fd, access)).map_err(|why| format!("{}: {why}", path.display()))
}
