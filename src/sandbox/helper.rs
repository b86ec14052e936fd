//! The hidden subcommand: what the processes of a sandbox are, before one of them becomes the command.
//!
//! ```text
//! server ──socket──▶ keeper ──socket──▶ init ─▶ leaf ═▶ the command
//! ```
//! The **keeper** stays outside of every restriction, so that the command cannot touch it. It makes the cage, watches
//! what the command takes, and when that ends, or the server is gone, or gives up, kills whatever is left before it says
//! so. The **init** is the first process of the cage's own process namespace: with it the kernel ends all others. The
//! **leaf** takes on the restrictions and becomes the command.

use std::{
    io::{self, Read},
    process::{Command, ExitCode, Stdio},
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::{
    keeper, leaf, mounts,
    wire::{Inner, Status},
};

/// The name of the subcommand; not one that a person types.
pub const SUBCOMMAND: &str = "__sandbox";

/// The exit code of a process of ours that could not do its part. Nothing is concluded from it.
pub const FAILED: u8 = 125;

/// Is one of the processes of a sandbox, if the arguments of this process say so. To be asked before anything else:
/// before threads, signal handlers and open files.
pub fn main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != SUBCOMMAND {
        return None;
    }
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Err(why) = close_inherited() {
        eprintln!("raddle: cannot close what was inherited: {why}");
        return Some(ExitCode::from(FAILED));
    }
    Some(match arguments[..] {
        ["keep"] => keeper::run(),
        ["init"] => init(World::Whole),
        ["init", "mount"] => init(World::Make),
        ["init", "mounted"] => init(World::Made),
        ["leaf"] => leaf::run(false),
        ["leaf", "own-proc"] => leaf::run(true),
        _ => {
            eprintln!("raddle: `{SUBCOMMAND}` is what the server starts for itself");
            ExitCode::from(2)
        }
    })
}

/// What of the file system there is, inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum World {
    /// All of it.
    Whole,
    /// What a command may see, once we have made it; `/proc` shows who is inside.
    Make,
    /// The same, made by `bwrap`.
    Made,
}

/// Closes all but the standard descriptors: whoever started the server may have left some open for its children.
fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The one with which the directory was read is gone already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Reads up to a line's end.
pub fn read_line(from: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return String::from_utf8(line).map_err(io::Error::other),
            [other] => line.push(other),
        }
    }
}

/// Our stdin, of which somebody else reads the rest.
struct Unbuffered;

impl Read for Unbuffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(rustix::stdio::stdin(), buffer)?)
    }
}

pub fn status(status: WaitStatus) -> Status {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Status::Exited(code),
        (None, signal) => Status::Killed(signal.unwrap_or(Signal::KILL.as_raw())),
    }
}

/// Starts the leaf, buries orphans until it ends, and says how it did. Its own end is the end of the cage.
fn init(world: World) -> ExitCode {
    let start = || -> io::Result<u32> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if world == World::Make {
            let order = read_line(&mut Unbuffered)?;
            mounts::make(&serde_json::from_str(&order)?)?;
        }
        let mut leaf = Command::new("/proc/self/exe");
        leaf.args([SUBCOMMAND, "leaf"])
            .args((world != World::Whole).then_some("own-proc"))
            .env_clear()
            .stdin(Stdio::inherit());
        Ok(leaf.spawn()?.id())
    };
    let last = match start().map(ended) {
        Ok(Ok(status)) => Inner::Ended(status),
        Err(why) => Inner::Refused(format!("the first process of the sandbox: {why}")),
        // It runs, and cannot be waited for: better say nothing.
        Ok(Err(_)) => return ExitCode::from(FAILED),
    };
    let Ok(mut line) = serde_json::to_vec(&last) else { return ExitCode::from(FAILED) };
    line.push(b'\n');
    match rustix::io::write(rustix::stdio::stdin(), &line) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

/// Waits for this child, and for whoever else becomes one and ends before.
fn ended(child: u32) -> rustix::io::Result<Status> {
    loop {
        match rustix::process::wait(WaitOptions::empty())? {
            Some((pid, ended)) if Pid::as_raw(Some(pid)).unsigned_abs() == child => return Ok(status(ended)),
            _ => {}
        }
    }
}
