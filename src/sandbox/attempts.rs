//! What a confined command must not be able to do, tried by a process that has just been confined: the start-up test.
//!
//! Each attempt is real, against something that is really there, and what must still work is tried as well. A sandbox
//! in which one of them goes wrong is not used.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    path::Path,
};

use rustix::{io::Errno, process::Pid};

use super::wire::{Attempts, Spec, Tried};

/// Makes them all.
pub fn make(at: &Attempts, spec: &Spec) -> Vec<Tried> {
    let write = spec.confine.as_ref().is_some_and(|confine| confine.write);
    let network = spec.confine.as_ref().is_some_and(|confine| confine.ports.is_some());
    let abstract_socket =
        || UnixStream::connect_addr(&SocketAddr::from_abstract_name(at.abstract_socket.as_bytes())?).map(drop);
    let signal = || {
        let server = Pid::from_raw(at.server.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::test_kill_process(server)?)
    };
    let there = spec.workspace.join("written");
    let mut tried = vec![
        works("read a program", fs::File::open("/usr/bin/env").or_else(|_| fs::File::open("/bin/sh")).map(drop)),
        works("read the workspace", fs::read_dir(&spec.workspace).map(drop)),
        works("write to /dev/null", fs::OpenOptions::new().write(true).open("/dev/null").map(drop)),
        refused("write outside of the workspace", put(&at.file_outside)),
        refused("read a file outside of it", read(&at.secret)),
        refused("read the environment of the server", read(Path::new(&format!("/proc/{}/environ", at.server)))),
        refused("connect over TCP", TcpStream::connect(("127.0.0.1", at.tcp_port)).map(drop)),
        refused("connect to a socket in the file system", UnixStream::connect(&at.socket).map(drop)),
        refused("connect to an abstract socket", abstract_socket()),
        refused("signal the server", signal()),
        refused(
            "leave its user namespace",
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(Into::into),
        ),
    ];
    if !network {
        tried.push(refused("send over UDP", UdpSocket::bind("127.0.0.1:0").map(drop)));
    }
    tried.push(match write {
        true => works("write in the workspace", put(&there)),
        false => refused("write in the workspace", put(&there)),
    });
    tried
}

fn put(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(b"x")
}

fn read(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.read_exact(&mut [0])
}

fn works(what: &str, done: io::Result<()>) -> Tried {
    let found = done.as_ref().map_or_else(ToString::to_string, |()| "works".to_owned());
    Tried { what: what.to_owned(), ok: done.is_ok(), found }
}

/// Refused, or not even there to be refused.
fn refused(what: &str, done: io::Result<()>) -> Tried {
    let known = |why: &io::Error| {
        matches!(
            why.raw_os_error().map(Errno::from_raw_os_error),
            Some(
                Errno::PERM
                    | Errno::ACCESS
                    | Errno::ROFS
                    | Errno::NOENT
                    | Errno::SRCH
                    | Errno::NOSYS
                    | Errno::CONNREFUSED
            )
        )
    };
    let (ok, found) = match done {
        Ok(()) => (false, "IT WORKS".to_owned()),
        Err(why) => (known(&why), why.to_string()),
    };
    Tried { what: what.to_owned(), ok, found }
}
