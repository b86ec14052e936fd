//! The process that stays outside: it makes the cage, watches, kills, and has the last word.
//!
//! Its end of the socket to the server is its life line: whether the server says nothing more because it gave the
//! command up or because it is dead makes no difference. It ends when nothing is left of the command, never before.
//!
//! Absent on purpose: control groups. They would bound all processes together without anybody watching, and need a
//! host that hands some out; whoever has one starts the server in it.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use nix::sched::CloneFlags;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitOptions},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    helper::{FAILED, SUBCOMMAND, read_line},
    leaf, mounts,
    wire::{Cage, Confine, Excess, Inner, Limits, Outer, Spec, Status},
};

/// How often it is looked what the command takes.
const WATCH: Duration = Duration::from_millis(100);

/// How often, a millisecond apart, those that cannot be killed are met before they are given up: what runs as somebody
/// else often ends by itself once the others are dead.
const ROUNDS: u32 = 1000;

/// Is the keeper of one command.
pub fn run() -> ExitCode {
    let Ok(spec) = read_line(&mut io::stdin().lock()).and_then(|line| Ok(serde_json::from_str::<Spec>(&line)?)) else {
        return ExitCode::from(FAILED);
    };
    let last = match keep(&spec) {
        Ok(last) => last,
        Err(why) => Outer::Refused(why.to_string()),
    };
    if let Some(tmp) = &spec.tmp {
        // What is left in a directory for temporary files concerns nobody.
        let _ = fs::remove_dir_all(tmp);
    }
    let Ok(mut line) = serde_json::to_vec(&last) else { return ExitCode::from(FAILED) };
    line.push(b'\n');
    // A server that is gone does not listen.
    let _ = rustix::io::write(rustix::stdio::stdin(), &line);
    ExitCode::SUCCESS
}

/// Runs the command. An error means that it was not begun: from its first process on, whatever fails is an outcome.
fn keep(spec: &Spec) -> io::Result<Outer> {
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    if rustix::process::geteuid().is_root() && spec.confine.is_some() {
        // In a user namespace of somebody else's making we may not, and the groups are nobody's.
        match rustix::thread::set_thread_groups(&[]) {
            Err(Errno::PERM) => {}
            done => done?,
        }
    }
    if let Some(tmp) = &spec.tmp {
        fs::DirBuilder::new().mode(0o700).create(tmp)?;
    }
    let mut command = match (&spec.cage, &spec.confine) {
        (Cage::Bwrap { bwrap, exe }, Some(confine)) => through_bwrap(bwrap, exe, spec, confine)?,
        (Cage::Namespaces, Some(confine)) => {
            namespaces(confine.ports.is_none())?;
            ours(&["init", "mount"])
        }
        _ => ours(&["init"]),
    };
    let (ear, mouth) = UnixStream::pair()?;
    let child = command.env_clear().current_dir("/").stdin(OwnedFd::from(mouth)).spawn();
    // It holds the other end of the pair, whose closing is to be noticed.
    drop(command);
    let child = Pid::from_raw(child?.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    let watched = watch(spec, child, &ear);
    // What is still alive may yet begin the command, whatever was told until now.
    if let Err(why) = kill_all() {
        return Ok(Outer::Lost(format!("not all of its processes could be killed: {why}")));
    }
    Ok(match hear(&ear) {
        Ok(heard) => verdict(watched, heard),
        Err(why) => Outer::Lost(format!("what it came to could not be heard: {why}")),
    })
}

fn ours(arguments: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(SUBCOMMAND).args(arguments);
    command
}

/// What it came to, from what was seen outside and everything that was told from inside. Nothing begins before it is
/// told that it does: where all are dead and nothing was told, nothing was begun.
fn verdict(watched: io::Result<Watched>, heard: Vec<Inner>) -> Outer {
    let (mut applied, mut ended, mut tried) = (false, None, None);
    for inner in heard {
        match inner {
            Inner::Applied => applied = true,
            Inner::Refused(why) => return Outer::Refused(why),
            Inner::Tried(what) => tried = Some(what),
            Inner::Ended(status) => ended = Some(status),
        }
    }
    let watched = match watched {
        Ok(watched) => watched,
        Err(why) if applied => return Outer::Lost(format!("it could not be watched: {why}")),
        Err(why) => return Outer::Refused(format!("it could not be watched: {why}")),
    };
    match (watched, tried, ended) {
        (_, Some(tried), _) => Outer::Tried(tried),
        _ if !applied => Outer::Refused("it did not come to be: see its output".to_owned()),
        (Watched::TooMuch(excess), ..) => Outer::TooMuch(excess),
        (_, None, Some(status)) => Outer::Ended(status),
        (Watched::Left, ..) => Outer::Ended(Status::Killed(Signal::KILL.as_raw())),
        (Watched::Ended, ..) => Outer::Lost("the first process of the sandbox ended before the command".to_owned()),
    }
}

/// Why watching ended.
enum Watched {
    /// The first process has ended.
    Ended,
    /// Nobody waits for it any more.
    Left,
    TooMuch(Excess),
}

fn watch(spec: &Spec, child: Pid, ear: &UnixStream) -> io::Result<Watched> {
    // The order is for the leaf, and, where it has to mount things, before it for the init. Either may die before it has
    // read it.
    let mut order = serde_json::to_vec(spec)?;
    order.push(b'\n');
    if spec.makes_mounts() {
        order.extend_from_within(..);
    }
    let end = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
    let server = rustix::stdio::stdin();
    ear.set_nonblocking(true)?;
    let mut sent = 0;
    loop {
        let wants = if sent < order.len() { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&server, PollFlags::IN),
            PollFd::new(&end, PollFlags::IN),
            PollFd::from_borrowed_fd(ear.as_fd(), wants),
        ];
        let timeout = Timespec::try_from(WATCH).map_err(io::Error::other)?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        let [server, end, order_room] = fds.map(|fd| fd.revents());
        if !end.is_empty() {
            return Ok(Watched::Ended);
        }
        if !server.is_empty() {
            return Ok(Watched::Left);
        }
        if order_room.contains(PollFlags::OUT) && sent < order.len() {
            match rustix::io::write(ear, &order[sent..]) {
                Ok(written) => sent += written,
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Its end will be noticed.
                Err(_) => sent = order.len(),
            }
        }
        if let Some(excess) = excess(&spec.limits)? {
            return Ok(Watched::TooMuch(excess));
        }
    }
}

/// Everything that was told from inside; nobody is left who could say more.
fn hear(ear: &UnixStream) -> io::Result<Vec<Inner>> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match rustix::io::read(ear, &mut piece) {
            Ok(0) | Err(Errno::AGAIN | Errno::CONNRESET) => break,
            Ok(read) => all.extend_from_slice(&piece[..read]),
            Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(all.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Kills whatever is below us, until nothing is. What loses its parent becomes ours; so does what left its group, its
/// session, or its terminal. In a process namespace the first death is that of all. An error means that something may
/// be left.
fn kill_all() -> io::Result<()> {
    let mut failed = 0;
    loop {
        let killed = kill_children();
        // The list may lack one that was born while it was read: look again soon rather than wait for ever.
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(Errno::CHILD) => return Ok(()),
                Err(why) => return Err(why.into()),
            }
        }
        if let Err(why) = killed {
            failed += 1;
            if failed == ROUNDS {
                return Err(why);
            }
        }
        let soon = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        match rustix::event::poll(&mut [], Some(&soon)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
}

/// Kills all of our children that we may kill. The error is that of one that we may not: a free command can have become
/// somebody else.
fn kill_children() -> io::Result<()> {
    let mut killed = Ok(());
    for child in own_children()? {
        let Some(pid) = Pid::from_raw(child.cast_signed()) else { continue };
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(why) => killed = Err(why.into()),
        }
    }
    killed
}

/// Our children. That there is no list of them is not the same as an empty one.
fn own_children() -> io::Result<Vec<u32>> {
    let pid = std::process::id();
    fs::metadata(format!("/proc/{pid}/task/{pid}/children"))?;
    children(pid)
}

/// The children of a process, by the kernel's own list. None of one that is gone.
fn children(pid: u32) -> io::Result<Vec<u32>> {
    let gone = |why: io::Error| match why.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::SRCH) => Ok(String::new()),
        _ => Err(why),
    };
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(why) => return gone(why).map(|_| Vec::new()),
    };
    let mut all = Vec::new();
    for task in tasks.flatten() {
        let list = fs::read_to_string(task.path().join("children")).or_else(gone)?;
        all.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(all)
}

/// Whether the processes below us take more than they may together.
fn excess(limits: &Limits) -> io::Result<Option<Excess>> {
    let page = rustix::param::page_size() as u64;
    let (mut processes, mut memory) = (0_u64, 0_u64);
    let mut known = own_children()?;
    while let Some(pid) = known.pop() {
        processes += 1;
        // The second number is the resident pages, the third those of them that are shared.
        let pages = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let mut pages = pages.split_ascii_whitespace().skip(1).map(|pages| pages.parse::<u64>().unwrap_or(0));
        let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
        memory += resident.saturating_sub(shared) * page;
        if processes > limits.processes + OWN {
            return Ok(Some(Excess::Processes(limits.processes)));
        }
        if memory > limits.memory_bytes {
            return Ok(Some(Excess::Memory(limits.memory_bytes)));
        }
        known.extend(children(pid)?);
    }
    Ok(None)
}

/// Processes of ours below the keeper, at most: `bwrap` and the init.
const OWN: u64 = 2;

/// Puts what is started from now on into namespaces of its own.
fn namespaces(network: bool) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let may = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN);
    // Not the mounts: the init takes those for itself, and we still see everybody's `/proc`.
    let mut flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC;
    flags.set(CloneFlags::CLONE_NEWNET, network);
    flags.set(CloneFlags::CLONE_NEWUSER, !may);
    nix::sched::unshare(flags)?;
    if !may {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
        // The init has to mount things, and is no root who would keep what it takes.
        let held = rustix::thread::capabilities(None)?;
        let inheritable = held.inheritable | CapabilitySet::SYS_ADMIN;
        rustix::thread::set_capabilities(None, CapabilitySets { inheritable, ..held })?;
        rustix::thread::configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)?;
    }
    Ok(())
}

/// The same by way of `bwrap`, which also shows nothing of the file system but this.
fn through_bwrap(bwrap: &Path, exe: &Path, spec: &Spec, confine: &Confine) -> io::Result<Command> {
    let mut command = Command::new(bwrap);
    command.args([
        "--unshare-all",
        "--die-with-parent",
        "--as-pid-1",
        "--clearenv",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]);
    if confine.ports.is_some() {
        command.arg("--share-net");
    }
    for path in leaf::system().filter(|path| !path.starts_with("/dev")).chain(confine.read.iter().map(|path| &**path)) {
        command.arg("--ro-bind-try").args([path, path]);
    }
    command.arg("--ro-bind").args([exe, exe]);
    if let Some(tmp) = &spec.tmp {
        command.arg("--bind").args([tmp, tmp]);
    }
    let workspace = &spec.workspace;
    command.arg(if confine.write { "--bind" } else { "--ro-bind" }).args([workspace, workspace]);
    if confine.write {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(CWD, workspace, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        for name in &confine.protect {
            mounts::hold(&dir, name)?;
            let path = workspace.join(name);
            command.arg("--ro-bind").args([&path, &path]);
        }
    }
    command.args(["--chdir", "/", "--"]).arg(exe).args([SUBCOMMAND, "init", "mounted"]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_and_not_watched_is_lost_and_never_refused() {
        let unwatched = || Err(io::Error::from(Errno::MFILE));
        let ended = || Inner::Ended(Status::Exited(0));
        assert!(matches!(verdict(unwatched(), vec![Inner::Applied]), Outer::Lost(_)));
        assert!(matches!(verdict(unwatched(), vec![Inner::Applied, ended()]), Outer::Lost(_)));
        assert!(matches!(verdict(unwatched(), Vec::new()), Outer::Refused(_)));
        // It was about to begin, and did not.
        let refused = vec![Inner::Applied, Inner::Refused("no such program".to_owned()), ended()];
        assert!(matches!(verdict(unwatched(), refused), Outer::Refused(_)));
        let ran = verdict(Ok(Watched::Ended), vec![Inner::Applied, ended()]);
        assert!(matches!(ran, Outer::Ended(Status::Exited(0))));
    }
}
