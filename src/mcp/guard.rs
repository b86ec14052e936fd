//! The process between us and a server that is a program: it sees to it that nothing of the server outlives us.
//!
//! ```text
//! raddle ── guard ── server ── whatever it starts
//! ```
//! The guard is this binary again. It runs the server in a process group of its own, hands it the pipes, and ends the
//! whole group as soon as the server ends, somebody asks (SIGTERM), or the process that started it is gone, also by
//! `kill -9`. What left the group is found too: the guard is who orphans below it are given to.
//!
//! A signal at the death of the parent (`PR_SET_PDEATHSIG`) would not do: it follows the thread that started the
//! child, not the process, and knows nothing of descendants.
//!
//! Absent on purpose: other systems than Linux. There a server runs without a guard (see [`super::child`]).

use std::{ffi::OsString, fs::File, io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, kill_process, kill_process_group, pidfd_open,
        set_child_subreaper, wait,
    },
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};

use super::CANNOT_RUN;

/// Descendants come to us one generation at a time; nobody has more of them.
const GENERATIONS: usize = 1_000;

/// Runs `command` until it ends, or `parent` does, or we are asked to end it. The exit code is the command's.
pub async fn run(parent: i32, command: &[OsString]) -> u8 {
    match guarded(parent, command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("the command cannot be run: {error}");
            CANNOT_RUN
        }
    }
}

async fn guarded(parent: i32, command: &[OsString]) -> io::Result<u8> {
    let parent = Pid::from_raw(parent).ok_or_else(|| io::Error::other("nobody to be guarded for"))?;
    let ours = pidfd_open(parent, PidfdFlags::empty())?;
    // Looked at after the handle was opened: from here on the handle tells.
    if getppid() != Some(parent) {
        return Ok(0);
    }
    set_child_subreaper(Some(getpid()))?;
    let mut asked = signal(SignalKind::terminate())?;
    let [program, arguments @ ..] = command else { return Err(io::Error::other("there is no command")) };
    let mut server = Command::new(program).args(arguments).process_group(0).spawn()?;
    let group = server.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let group = group.ok_or_else(|| io::Error::other("it has no process id"))?;
    let theirs = pidfd_open(group, PidfdFlags::empty())?;
    give_pipes_away()?;
    tokio::select! {
        _ = spawn_blocking(move || one_ended(&ours, &theirs)) => {}
        _ = asked.recv() => {}
    }
    // Not waited for yet, so its id still names the group.
    let _ = kill_process_group(group, Signal::KILL);
    let status = server.wait().await?;
    sweep();
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Waits until one of two processes has ended.
fn one_ended(one: &OwnedFd, other: &OwnedFd) {
    let mut both = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
    while poll(&mut both, None) == Err(Errno::INTR) {}
}

/// The server's pipes are the server's: as long as we held them, their end could not be seen.
fn give_pipes_away() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok(())
}

/// Ends what is left below us. The death of one makes its children ours.
fn sweep() {
    for _ in 0..GENERATIONS {
        let orphans = children();
        if orphans.is_empty() {
            return;
        }
        for orphan in orphans {
            let _ = kill_process(orphan, Signal::KILL);
        }
        if wait(WaitOptions::empty()).is_err() {
            return;
        }
    }
}

fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let ids = lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<i32>>());
    ids.filter_map(Pid::from_raw).collect()
}
