//! The file system that a command sees where namespaces are ours: an empty one, with what it may read put into it
//! read-only, and its workspace. What is not there cannot be opened, and also not be looked at, renamed, or given other
//! permissions, of which Landlock says nothing.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
};

use super::{
    leaf,
    wire::{Confine, Spec},
};

/// Where the new root is put together. Any directory does; what is below it is held open before.
const SITES: [&str; 3] = ["/tmp", "/mnt", "/var"];

/// What every process expects in `/dev`.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// Leaves the world, for one with only these things in it. For the first process of its process and mount namespaces.
pub fn make(spec: &Spec) -> io::Result<()> {
    let Some(confine) = &spec.confine else { return Ok(()) };
    // What is mounted from here on is seen by nobody outside.
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let sources = sources(spec, confine)?;
    let site = SITES.iter().map(Path::new).find(|site| site.is_dir()).ok_or(io::ErrorKind::NotFound)?;
    rustix::mount::mount("raddle", site, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    for (path, fd) in &sources {
        let target = site.join(path.strip_prefix("/").map_err(io::Error::other)?);
        place(&target, fd).map_err(|why| io::Error::other(format!("{}: {why}", path.display())))?;
    }
    for (to, name) in LINKS {
        std::os::unix::fs::symlink(to, site.join(name))?;
    }
    let proc = site.join("proc");
    fs::create_dir(&proc)?;
    // While the old one can still be seen: an ordinary user may not mount one otherwise.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", &proc, "proc", flags, None)?;
    drop(sources);
    rustix::process::chdir(site)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let writable: Vec<&Path> =
        [Some(spec.workspace.as_path()), spec.tmp.as_deref()].into_iter().flatten().filter(|_| confine.write).collect();
    read_only(|mounted| mounted != Path::new("/proc") && !writable.iter().any(|there| mounted.starts_with(there)))?;
    if confine.write {
        protect(&spec.workspace, &confine.protect)?;
    }
    Ok(())
}

/// What is to be there, held open: its path may soon lead elsewhere.
fn sources(spec: &Spec, confine: &Confine) -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let mut sources = Vec::new();
    let null = Path::new("/dev/null");
    for path in leaf::system().chain([null]).chain(confine.read.iter().map(|path| &**path)) {
        match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => sources.push((path.to_owned(), fd)),
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    for path in [Some(&spec.workspace), spec.tmp.as_ref()].into_iter().flatten() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        sources.push((path.clone(), rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?));
    }
    Ok(sources)
}

/// Makes what is held show at `target` as well.
fn place(target: &Path, held: &OwnedFd) -> io::Result<()> {
    let mut dirs = fs::DirBuilder::new();
    dirs.recursive(true).mode(0o755);
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(held)?.st_mode) == FileType::Directory;
    if is_dir {
        dirs.create(target)?;
    } else {
        if let Some(above) = target.parent() {
            dirs.create(above)?;
        }
        fs::File::create(target)?;
    }
    Ok(rustix::mount::mount_bind_recursive(format!("/proc/self/fd/{}", held.as_raw_fd()), target)?)
}

/// Makes those mounts read-only that are to be.
fn read_only(is: impl Fn(&Path) -> bool) -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        // ID, parent, device, root, mount point, options, …
        let mut fields = line.split(' ').skip(4);
        let (Some(path), Some(options)) = (fields.next(), fields.next()) else { continue };
        let path = unescaped(path);
        if is(&path) {
            make_read_only(&path, options)?;
        }
    }
    Ok(())
}

/// The options that it has stay: an ordinary user may not take any away.
fn make_read_only(path: &Path, options: &str) -> io::Result<()> {
    let flags = options.split(',').fold(MountFlags::BIND | MountFlags::RDONLY, |flags, option| {
        flags
            | match option {
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            }
    });
    rustix::mount::mount_remount(path, flags, c"")
        .map_err(|why| io::Error::other(format!("{} cannot be made read-only: {why}", path.display())))
}

/// A path as mountinfo has it: spaces and the like are `\` and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Makes these names of the workspace read-only, whatever is below them. A mount point can be neither renamed nor
/// removed, so they stay what they are.
fn protect(workspace: &Path, names: &[String]) -> io::Result<()> {
    for name in names {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(CWD, workspace, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let fd = hold(&dir, name)?;
        let held = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::mount::mount_bind_recursive(&held, &held)?;
        let path = workspace.join(name);
        read_only(|mounted| mounted.starts_with(&path))?;
    }
    Ok(())
}

/// Opens a name of the workspace. One that is missing becomes an empty directory: it could be made otherwise.
pub fn hold(workspace: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = || rustix::fs::openat2(workspace, name, flags, Mode::empty(), within);
    let opened = match open() {
        Err(Errno::NOENT) => match rustix::fs::mkdirat(workspace, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => open(),
            Err(why) => Err(why),
        },
        opened => opened,
    };
    let opened = opened.map_err(|why| match why {
        Errno::LOOP => io::Error::other(format!("`{name}` is a link, which cannot be protected")),
        why => io::Error::other(format!("`{name}` cannot be protected: {why}")),
    })?;
    // With NOFOLLOW a link is opened itself.
    match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
        FileType::Symlink => Err(io::Error::other(format!("`{name}` is a link, which cannot be protected"))),
        _ => Ok(opened),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_is_found_again() {
        assert_eq!(unescaped(r"/a\040b/c\134d\0"), Path::new(r"/a b/c\d\0"));
    }
}
