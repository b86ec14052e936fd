//! Paths as models write them, and the files that they lead to.
//!
//! A path is relative to the workspace and goes down: no root, no `..`. Where it leads is not told from its text but
//! found out by going there, inside the open directory of the workspace, with the kernel as the judge of every link
//! (see [`crate::workspace`]). Links inside are followed; what leaves is refused. What is read or changed is a regular
//! file: its kind is looked at before it is opened, because opening a device may do something, and again afterwards.
//!
//! A hard link cannot be told from any other name of a file. So what somebody linked into a workspace can be read
//! there; it cannot be changed there, because a change puts a new file in the place of the name.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use cap_std::fs::{Dir, FileType, OpenOptions, OpenOptionsExt};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::workspace::is_escape;

/// The longest path, and the longest name in one.
const PATH_BYTES: usize = 2048;
const NAME_BYTES: usize = 255;

/// What a file may have that is changed: it is held in memory, twice.
pub const CHANGED_BYTES: u64 = 16 * 1024 * 1024;

/// Why a file tool did not do what it was asked for. The sentences are for models.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("`{0}` is absolute: paths are relative to the workspace")]
    Absolute(String),
    #[error("`{0}` has a `..` in it: paths lead down from the workspace")]
    Upwards(String),
    #[error("a path with a control character in it is refused")]
    Control,
    #[error("the path is too long")]
    TooLong,
    #[error("`{0}` names no file")]
    Nameless(String),
    #[error("`{0}` leads outside of the workspace")]
    Escape(String),
    #[error("there is no `{0}`")]
    Missing(String),
    #[error("`{0}` is there already")]
    Taken(String),
    #[error("`{0}` is a directory")]
    Directory(String),
    #[error("`{0}` is not a directory")]
    NotDirectory(String),
    #[error("`{0}` is a link: name the file that it leads to")]
    Link(String),
    #[error("`{0}` belongs to version control, which is changed by its own commands only")]
    Protected(String),
    #[error("`{0}` is no regular file")]
    Irregular(String),
    #[error("`{0}` has {1} bytes; files of more than {CHANGED_BYTES} are not changed here")]
    TooLarge(String, u64),
    #[error("`{0}` is on another disk than `workspaces.root`, and cannot be changed here")]
    OtherDisk(String),
    #[error("`{0}` was changed by somebody else meanwhile; read it again")]
    Changed(String),
    #[error("`{0}`: {1}")]
    Io(String, #[source] io::Error),
    /// Anything about texts and arguments.
    #[error("{0}")]
    Said(String),
    /// Files of one change have it, and others have not.
    #[error("the change was made in part, and could not be taken back: {0}")]
    Torn(Box<Fault>),
}

impl Fault {
    /// What an error of the system means for this path.
    pub fn of(path: &Path, why: io::Error) -> Self {
        let path = path.display().to_string();
        if is_escape(&why) {
            return Self::Escape(path);
        }
        match Errno::from_io_error(&why) {
            Some(Errno::NOENT) => Self::Missing(path),
            Some(Errno::NOTDIR) => Self::NotDirectory(path),
            Some(Errno::LOOP) => Self::Link(path),
            Some(Errno::ISDIR) => Self::Directory(path),
            Some(Errno::NXIO) => Self::Irregular(path),
            Some(Errno::NAMETOOLONG) => Self::TooLong,
            _ => Self::Io(path, why),
        }
    }
}

/// A path that goes down, by its text. `.` for the workspace itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Down(PathBuf);

impl Down {
    pub fn new(text: &str) -> Result<Self, Fault> {
        if text.chars().any(char::is_control) {
            return Err(Fault::Control);
        }
        let mut path = PathBuf::new();
        for part in Path::new(text).components() {
            match part {
                Component::Normal(name) if name.len() <= NAME_BYTES => path.push(name),
                Component::Normal(_) => return Err(Fault::TooLong),
                Component::CurDir => {}
                Component::ParentDir => return Err(Fault::Upwards(text.to_owned())),
                Component::RootDir | Component::Prefix(_) => return Err(Fault::Absolute(text.to_owned())),
            }
        }
        if path.as_os_str().len() > PATH_BYTES {
            return Err(Fault::TooLong);
        }
        if path.as_os_str().is_empty() {
            path.push(Component::CurDir);
        }
        Ok(Self(path))
    }

    pub fn as_path(&self) -> &Path {
        &self.0
    }

    fn is_workspace(&self) -> bool {
        self.0 == Path::new(".")
    }
}

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Refuses a change of what programs of a person obey who never looked at it: hooks and settings of version control.
/// For a path that [`real`] gave, so that no link has another name for it.
pub fn unprotected(path: &Path) -> Result<(), Fault> {
    let is_git = |part: Component<'_>| part.as_os_str().eq_ignore_ascii_case(".git");
    if path.components().any(is_git) { Err(Fault::Protected(path.display().to_string())) } else { Ok(()) }
}

/// Where a path leads, without links: the name that a change is about.
///
/// With `follow` a link at its end is followed to the file, otherwise refused.
pub fn real(dir: &Dir, path: &Down, follow: bool) -> Result<PathBuf, Fault> {
    if path.is_workspace() {
        return Err(Fault::Nameless(path.to_string()));
    }
    let path = path.as_path();
    let fault = |why| Fault::of(path, why);
    let linked = match dir.symlink_metadata(path) {
        Ok(found) => found.is_symlink(),
        Err(why) if why.kind() == io::ErrorKind::NotFound => return unmade(dir, path),
        Err(why) => return Err(fault(why)),
    };
    if linked && !follow {
        return Err(Fault::Link(path.display().to_string()));
    }
    match dir.canonicalize(path) {
        // Nothing is made in the place to which a link leads that leads nowhere.
        Err(why) if linked && why.kind() == io::ErrorKind::NotFound => Err(Fault::Link(path.display().to_string())),
        found => found.map_err(fault),
    }
}

/// The same for what is not there: the part that is, without links, and the rest.
fn unmade(dir: &Dir, path: &Path) -> Result<PathBuf, Fault> {
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match dir.canonicalize(above) {
            Ok(found) => {
                let rest = path.strip_prefix(above).unwrap_or(path);
                return Ok(if found == Path::new(".") { rest.to_owned() } else { found.join(rest) });
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound && dir.symlink_metadata(above).is_err() => {}
            Err(why) => return Err(Fault::of(above, why)),
        }
    }
    Err(Fault::Missing(path.display().to_string()))
}

/// Opens a regular file for reading; says how long it is.
pub fn open(dir: &Dir, path: &Path) -> Result<(cap_std::fs::File, u64), Fault> {
    let fault = |why| Fault::of(path, why);
    regular(path, dir.metadata(path).map_err(fault)?.file_type())?;
    let mut options = OpenOptions::new();
    // What turned into a pipe meanwhile is not waited for.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    options.read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or_default());
    let file = dir.open_with(path, &options).map_err(fault)?;
    let found = file.metadata().map_err(fault)?;
    regular(path, found.file_type())?;
    Ok((file, found.len()))
}

fn regular(path: &Path, kind: FileType) -> Result<(), Fault> {
    let path = || path.display().to_string();
    match kind {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(Fault::Directory(path())),
        _ => Err(Fault::Irregular(path())),
    }
}

/// A file that is to be changed: the directory that holds it, and its name there. Never a link.
pub struct Named {
    pub parent: Dir,
    pub name: OsString,
    pub path: PathBuf,
}

/// What a file holds, and who may do what with it.
pub struct Held {
    pub bytes: Vec<u8>,
    pub mode: Mode,
}

impl Named {
    /// Finds a path that [`real`] gave. `None` where its directory is not there.
    pub fn find(dir: &Dir, path: &Path) -> Result<Option<Self>, Fault> {
        let Some(name) = path.file_name() else { return Err(Fault::Nameless(path.display().to_string())) };
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match dir.open_dir(above) {
            Ok(parent) => Ok(Some(Self { parent, name: name.to_owned(), path: path.to_owned() })),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(Fault::of(above, why)),
        }
    }

    /// The same, and makes the directory.
    pub fn find_or_make(dir: &Dir, path: &Path) -> Result<Self, Fault> {
        if let Some(above) = path.parent() {
            dir.create_dir_all(above).map_err(|why| Fault::of(above, why))?;
        }
        Self::find(dir, path)?.ok_or_else(|| Fault::Missing(path.display().to_string()))
    }

    /// What it holds, if it is there.
    pub fn read(&self) -> Result<Option<Held>, Fault> {
        let fault = |why: io::Error| Fault::of(&self.path, why);
        match self.parent.symlink_metadata(&self.name) {
            Ok(found) if found.is_symlink() => return Err(Fault::Link(self.path.display().to_string())),
            Ok(found) => regular(&self.path, found.file_type())?,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(fault(why)),
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty());
        let file = File::from(opened.map_err(|why| fault(why.into()))?);
        let found = file.metadata().map_err(fault)?;
        if !found.is_file() {
            return Err(Fault::Irregular(self.path.display().to_string()));
        }
        let mut bytes = Vec::new();
        (&file).take(CHANGED_BYTES + 1).read_to_end(&mut bytes).map_err(fault)?;
        if bytes.len() as u64 > CHANGED_BYTES {
            return Err(Fault::TooLarge(self.path.display().to_string(), found.len()));
        }
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&file).map_err(|why| fault(why.into()))?.st_mode);
        Ok(Some(Held { bytes, mode }))
    }
}
