//! The directory of the demo tools. Whatever is done here is done to its own regular files.
//!
//! It is opened once and everything is named relative to that, by names without a path in them and without following
//! links. So no name, link or renamed parent leads outside, whatever else happens to the directory meanwhile.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use raddle_domain::id::OperationId;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

/// Where messages go.
const OUTBOX: &str = "outbox";

/// Where those who count look.
const LEDGER: &str = ".ledger";

const FILE: Mode = Mode::from_raw_mode(0o644);
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// The name of a file that belongs to callers: no path, nothing hidden, nothing of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The same rule for models, but for our own names.
    pub const PATTERN: &str = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$";

    pub fn new(name: &str) -> Option<Self> {
        let is_plain = (1..=100).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        // Some disks do not tell the cases apart.
        (is_plain && !name.eq_ignore_ascii_case(OUTBOX)).then(|| Self(name.to_owned()))
    }
}

/// Whether a message went out with this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Now,
    Before,
}

/// The open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl Dir {
    /// Makes it and its outbox, where they are not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = Self(rustix::fs::open(path, flags, Mode::empty())?);
        dir.outbox()?;
        Ok(dir)
    }

    /// The beginning of a file, and how long it is.
    pub fn read(&self, name: &Name, limit: usize) -> io::Result<(Vec<u8>, u64)> {
        let file = self.file(&name.0, OFlags::RDONLY)?;
        let size = file.metadata()?.len();
        let mut bytes = Vec::new();
        file.take(limit as u64).read_to_end(&mut bytes)?;
        Ok((bytes, size))
    }

    /// Replaces a file by a new one. `temporary` belongs to this attempt alone.
    pub fn put(&self, name: &Name, text: &str, temporary: &str) -> io::Result<()> {
        self.check(&name.0)?;
        self.with_temporary(text, temporary, |written| Ok(rustix::fs::renameat(&self.0, written, &self.0, &name.0)?))
    }

    /// Puts a message into the outbox under the name of its operation, once.
    pub fn send(&self, operation: OperationId, message: &str, temporary: &str) -> io::Result<Sent> {
        let outbox = self.outbox()?;
        // A link is made whole, and only where nothing is: no half message, and no second one.
        self.with_temporary(message, temporary, |written| {
            match rustix::fs::linkat(&self.0, written, &outbox, operation.to_string(), AtFlags::empty()) {
                Ok(()) => Ok(Sent::Now),
                Err(Errno::EXIST) => Ok(Sent::Before),
                Err(why) => Err(why.into()),
            }
        })
    }

    /// Whether the operation's message is in the outbox.
    pub fn was_sent(&self, operation: OperationId) -> io::Result<bool> {
        match rustix::fs::statat(self.outbox()?, operation.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(why) => Err(why.into()),
        }
    }

    /// Appends a line; false if the disk took only a part of it.
    pub fn append(&self, name: &Name, line: &str) -> io::Result<bool> {
        self.append_to(&name.0, &format!("{line}\n"))
    }

    /// Appends a line to the ledger.
    pub fn note(&self, line: &str) -> io::Result<()> {
        match self.append_to(LEDGER, line)? {
            true => Ok(()),
            false => Err(io::Error::other("the disk took half a line of the ledger")),
        }
    }

    /// Removes a file.
    pub fn remove(&self, name: &Name) -> io::Result<()> {
        match self.check(&name.0)? {
            true => Ok(rustix::fs::unlinkat(&self.0, &name.0, AtFlags::empty())?),
            false => Err(missing(&name.0)),
        }
    }

    /// In one write, so that lines which are appended at the same time do not mix.
    fn append_to(&self, name: &str, text: &str) -> io::Result<bool> {
        let mut file = self.file(name, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?;
        loop {
            match file.write(text.as_bytes()) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                written => return Ok(written? == text.len()),
            }
        }
    }

    fn with_temporary<T>(
        &self,
        text: &str,
        temporary: &str,
        place: impl FnOnce(&str) -> io::Result<T>,
    ) -> io::Result<T> {
        let temporary = format!(".{temporary}");
        let write = || {
            let mut file = self.file(&temporary, OFlags::WRONLY | OFlags::TRUNC | OFlags::CREATE)?;
            file.write_all(text.as_bytes())
        };
        let placed = write().and_then(|()| place(&temporary));
        // After a rename there is none left.
        let _gone = rustix::fs::unlinkat(&self.0, &temporary, AtFlags::empty());
        placed
    }

    /// Opens a regular file. What waits for somebody at its other end is not waited for.
    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.0, name, flags, FILE) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Err(missing(name)),
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(irregular(name)),
            Err(why) => return Err(why.into()),
        };
        let file = File::from(opened);
        if file.metadata()?.is_file() { Ok(file) } else { Err(irregular(name)) }
    }

    /// Whether there is such a file; an error where something else has its name.
    fn check(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(true),
            Ok(_) => Err(irregular(name)),
            Err(Errno::NOENT) => Ok(false),
            Err(why) => Err(why.into()),
        }
    }

    fn outbox(&self) -> io::Result<OwnedFd> {
        match rustix::fs::mkdirat(&self.0, OUTBOX, DIRECTORY) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(why) => return Err(why.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.0, OUTBOX, flags, Mode::empty()) {
            Ok(outbox) => Ok(outbox),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(io::Error::other(format!("`{OUTBOX}` is not a directory"))),
            Err(why) => Err(why.into()),
        }
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no file `{name}`"))
}

fn irregular(name: &str) -> io::Error {
    io::Error::other(format!("`{name}` is not a regular file"))
}
