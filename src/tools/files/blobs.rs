//! What files held before a tool changed them, for whoever wants it back.
//!
//! `blobs/AB/ABCDEF…` in the notes of a tenant, by the SHA-256 of the content: the same content is one file, however
//! many files had it. A blob is written beside its name and renamed, so it is whole or not there; and it is held
//! against its name whenever it is read. Kept again it counts as new. One that nobody kept for a month is removed when
//! another one comes into its directory: between that look and the removal are microseconds without a lock, and what
//! is kept again just then is gone, which whoever asks for it is told.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use cap_std::fs::Dir;
use raddle_domain::id::OperationId;
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_NOW};

use super::{
    disk::{self, crash, digest, sync},
    place::CHANGED_BYTES,
};

const BLOBS: &str = "blobs";

/// Only the server's user: what it is a copy of may have been for few.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };

/// Why there is no such content.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("was not kept, or is not kept any more")]
    Gone,
    #[error("is damaged")]
    Damaged,
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

/// Keeps what a file holds. When it returns, a power cut does not lose it.
pub fn keep(notes: &Dir, operation: OperationId, bytes: &[u8]) -> io::Result<()> {
    crash::may();
    let name = digest(bytes);
    let drawer = drawer(&name);
    notes.create_dir_all(&drawer)?;
    let drawer = notes.open_dir(drawer)?;
    // Those that are there already may have been made by a process that did not live to see to it.
    sync(notes)?;
    sync(&notes.open_dir(BLOBS)?)?;
    // Looked at only when it counts as new: then nobody takes it for old in between.
    let refreshed = Timestamps { last_access: NOW, last_modification: NOW };
    let is_there = rustix::fs::utimensat(&drawer, &name, &refreshed, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if is_there && read(&drawer, Path::new(&name)).is_ok_and(|held| held == bytes) {
        return Ok(sync(&drawer)?);
    }
    // An operation runs once at a time, so nobody else writes there.
    let unfinished = format!("{name}.{operation}");
    disk::write(&drawer, &unfinished, bytes, Some(PRIVATE))?;
    crash::may();
    rustix::fs::renameat(&drawer, &unfinished, &drawer, &name)?;
    sync(&drawer)?;
    disk::sweep(&drawer, &name);
    Ok(())
}

/// What was kept and has this digest.
pub fn get(notes: &Dir, sha256: &str) -> Result<Vec<u8>, Lost> {
    // It comes from a record: what is no digest names no file here.
    let is_digest = sha256.len() == 64 && sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_digest {
        return Err(Lost::Gone);
    }
    match read(notes, &drawer(sha256).join(sha256)) {
        Ok(bytes) if digest(&bytes) == sha256 => Ok(bytes),
        Ok(_) => Err(Lost::Damaged),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Err(Lost::Gone),
        Err(why) => Err(Lost::Io(why)),
    }
}

fn drawer(sha256: &str) -> PathBuf {
    Path::new(BLOBS).join(&sha256[..2])
}

/// At most a little more than a file has that is changed: then it is none of ours.
fn read(dir: &Dir, path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    dir.open(path)?.take(CHANGED_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
