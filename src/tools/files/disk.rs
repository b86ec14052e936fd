//! Files of our own, in the notes of a tenant: written so that they outlast a power cut, and kept for a while.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use cap_std::fs::Dir;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

/// How long they are kept: longer than anybody waits to go on after a crash.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// New files: what the process's mask leaves of it.
const NEW_FILE: Mode = Mode::from_raw_mode(0o666);

/// Writes a file, to the disk.
pub fn write(dir: &Dir, name: &str, bytes: &[u8], mode: Option<Mode>) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(dir, name, flags, NEW_FILE)?);
    file.write_all(bytes)?;
    if let Some(mode) = mode {
        rustix::fs::fchmod(&file, mode & Mode::from_raw_mode(0o777))?;
    }
    file.sync_all()
}

/// Makes what was renamed, made or removed in a directory outlast a power cut.
pub fn sync(dir: &Dir) -> rustix::io::Result<()> {
    // A directory that is only held for its place cannot be synced.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::openat(dir, ".", flags, Mode::empty())?)
}

/// Removes what is a month older than `newest`. That some of it stays is no failure of what is being done.
pub fn sweep(drawer: &Dir, newest: &str) {
    let found = |name: &Path| drawer.symlink_metadata(name);
    let (Ok(now), Ok(entries)) = (found(Path::new(newest)).and_then(|found| found.modified()), drawer.entries()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(found) = found(Path::new(&name)) else { continue };
        let old = found.modified().ok().and_then(|then| now.duration_since(then).ok());
        if old.is_some_and(|old| old > KEPT) {
            let _gone = if found.is_dir() { drawer.remove_dir_all(name) } else { drawer.remove_file(name) };
        }
    }
}

/// SHA-256, in lower-case hex.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a test may end the process, as far as the disk can tell: nothing is tidied up on the way out.
#[cfg(not(test))]
pub mod crash {
    pub const fn may() {}
}

#[cfg(test)]
pub mod crash {
    use std::cell::Cell;

    thread_local! { static LEFT: Cell<Option<u32>> = const { Cell::new(None) }; }

    /// Runs `work` and ends it at its place `at`, counted from 0. Whether it came to its end.
    pub fn after<T>(at: u32, work: impl FnOnce() -> T) -> Option<T> {
        LEFT.set(Some(at));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        LEFT.set(None);
        match ended {
            Ok(done) => Some(done),
            Err(why) if why.is::<Crash>() => None,
            Err(why) => std::panic::resume_unwind(why),
        }
    }

    struct Crash;

    pub fn may() {
        match LEFT.get() {
            Some(0) => std::panic::resume_unwind(Box::new(Crash)),
            Some(left) => LEFT.set(Some(left - 1)),
            None => {}
        }
    }
}
