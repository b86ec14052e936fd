//! Where tools work: a directory for each thread, inside that of its tenant, inside one root.
//!
//! ```text
//! ROOT/                      `workspaces.root`
//!   TENANT/                  0700; what no path of another tenant reaches
//!     .raddle/               what tools note for themselves, and what files were: in no workspace
//!     threads/THREAD/        of a thread that names no workspace: its own
//!     anything/below         of threads that name it: `anything/below`, or its absolute path
//! ```
//! A thread's `workspace` names a directory below its tenant's. Threads that name the same one share it, a fork and
//! its parent among them; a fork of a thread that names none has a directory of its own, which is empty. Directories
//! are made when they are first used, and stay when their thread is deleted: what is in them is the user's.
//!
//! Invariants: every directory is opened relative to the one above it, and the kernel holds the way to it inside that
//! one (`openat2`, by way of `cap-std`). So `..`, a link that leaves, and a link that is put there between a look and
//! a use all end in a refusal; no decision is made by comparing texts. A link from one place of the tenant's directory
//! to another is followed. A tenant's directory itself is never a link.
//!
//! Absent on purpose: sizes and counts of files (a quota is the file system's), and a lock: two threads that name the
//! same workspace are two people at one desk.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Component, Path, PathBuf},
};

use cap_std::{
    ambient_authority,
    fs::{Dir, DirBuilderExt as _},
};
use raddle_domain::id::{TenantId, ThreadId, ThreadKey};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

/// Where tools note what they need to know after a crash. No workspace is in it or above it.
const RESERVED: &str = ".raddle";

/// Where the directories are of threads that name none.
const THREADS: &str = "threads";

/// The name of the workspace of a thread that names none.
pub fn own(thread: ThreadId) -> String {
    format!("{THREADS}/{thread}")
}

/// Only the server's user.
const PRIVATE: u32 = 0o700;

/// The longest name of a workspace: what is left of the longest path must do for the files in it.
const NAME_BYTES: usize = 1024;

/// The longest name of one file or directory, on every disk that matters.
const COMPONENT_BYTES: usize = 255;

/// Why a name is none of a workspace. The sentence goes behind the name of the field, and shows no path of ours.
#[derive(Debug, thiserror::Error)]
pub enum NoWorkspace {
    #[error("names no directory below that of its tenant")]
    Empty,
    #[error("holds a control character")]
    Character,
    #[error("is too long: {NAME_BYTES} bytes, and {COMPONENT_BYTES} between two slashes")]
    TooLong,
    #[error("leads upwards: `..` is refused, wherever it leads")]
    Upwards,
    #[error("leads outside of the directory of its tenant")]
    Outside,
    #[error("goes through `{RESERVED}`, which is kept for the server, or through `.git`")]
    Reserved,
    #[error("is there, and is not a directory")]
    NotADirectory,
    #[error("cannot be used: {0}")]
    Io(io::Error),
}

impl From<io::Error> for NoWorkspace {
    fn from(why: io::Error) -> Self {
        if is_escape(&why) {
            return Self::Outside;
        }
        match Errno::from_io_error(&why) {
            Some(Errno::NOTDIR | Errno::EXIST) => Self::NotADirectory,
            Some(Errno::NAMETOOLONG) => Self::TooLong,
            Some(Errno::LOOP) => Self::Outside,
            _ => Self::Io(why),
        }
    }
}

/// Whether a path was refused because it leads out of the directory that it was opened in.
pub fn is_escape(why: &io::Error) -> bool {
    // `cap-std` says it in an error of its own; one of the system has a number.
    why.kind() == io::ErrorKind::PermissionDenied && why.raw_os_error().is_none()
}

/// The root of all workspaces.
#[derive(Debug)]
pub struct Workspaces {
    root: Dir,
    /// Where the root really is.
    path: PathBuf,
    /// Where it was said to be; absolute names may begin with either.
    given: PathBuf,
}

/// A directory in which a thread's tools work.
#[derive(Debug)]
pub struct Workspace {
    dir: Dir,
    path: PathBuf,
    name: PathBuf,
}

impl Workspace {
    /// Where it was when it was opened: absolute, without links. Somebody with a hand in a directory above it may have
    /// moved it since, so what must be right goes by [`Self::dir`], which stays the same directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name by which any thread of its tenant finds it: the way from the tenant's directory down, without links.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The open directory. Nothing that is opened relative to it is outside of it.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }
}

impl Workspaces {
    /// Opens the root, and makes it if it is not there. Where it is itself a link, it is followed now and never again:
    /// who sets up the server may put it where they like.
    pub fn open(root: &Path) -> io::Result<Self> {
        if let Some(above) = root.parent() {
            std::fs::create_dir_all(above)?;
        }
        DirBuilder::new().recursive(true).mode(PRIVATE).create(root)?;
        let path = root.canonicalize()?;
        Ok(Self { root: Dir::open_ambient_dir(&path, ambient_authority())?, path, given: std::path::absolute(root)? })
    }

    /// Where the root really is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The workspace of a thread with this setting. Made if it is not there.
    pub fn resolve(&self, key: ThreadKey, name: Option<&str>) -> Result<Workspace, NoWorkspace> {
        match name {
            Some(name) => self.named(key.tenant, name),
            None => self.make(key.tenant, Path::new(&own(key.thread))),
        }
    }

    /// The directory of this name. Made if it is not there.
    pub fn named(&self, tenant: TenantId, name: &str) -> Result<Workspace, NoWorkspace> {
        self.make(tenant, &self.below(tenant, name)?)
    }

    /// The same where it is there already. Makes nothing.
    pub fn find(&self, key: ThreadKey, name: Option<&str>) -> Result<Workspace, NoWorkspace> {
        match name {
            Some(name) => self.find_named(key.tenant, name),
            None => self.opened(key.tenant, &self.tenant(key.tenant)?, Path::new(&own(key.thread))),
        }
    }

    /// The directory of this name where it is there already. Makes nothing.
    pub fn find_named(&self, tenant: TenantId, name: &str) -> Result<Workspace, NoWorkspace> {
        let name = self.below(tenant, name)?;
        self.opened(tenant, &self.tenant(tenant)?, &name)
    }

    /// Whether [`Self::named`] would find or make a directory of this name, as things are now. Makes nothing.
    pub fn check(&self, tenant: TenantId, name: &str) -> Result<(), NoWorkspace> {
        let name = self.below(tenant, name)?;
        let dir = match self.tenant(tenant) {
            Err(NoWorkspace::Io(why)) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for part in name.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            match dir.open_dir(part) {
                Ok(_) => return check_reserved(&dir.canonicalize(part)?),
                // A link to nowhere is something, and nothing can be made in its place.
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    if dir.symlink_metadata(part).is_ok() {
                        return Err(NoWorkspace::NotADirectory);
                    }
                }
                Err(why) => return Err(why.into()),
            }
        }
        Ok(())
    }

    fn make(&self, tenant: TenantId, name: &Path) -> Result<Workspace, NoWorkspace> {
        let dir = self.make_tenant(tenant)?;
        let mut private = cap_std::fs::DirBuilder::new();
        private.mode(PRIVATE).recursive(true);
        let taken = match dir.create_dir_with(name, &private) {
            // Not by a directory; by what, is found out by going there.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => true,
            made => made.map(|()| false)?,
        };
        match self.opened(tenant, &dir, name) {
            Err(NoWorkspace::Io(why)) if taken && why.kind() == io::ErrorKind::NotFound => {
                Err(NoWorkspace::NotADirectory)
            }
            opened => opened,
        }
    }

    /// Opens a directory that is there.
    fn opened(&self, tenant: TenantId, dir: &Dir, name: &Path) -> Result<Workspace, NoWorkspace> {
        // Without links from here on: what is opened is what the path says.
        let real = dir.canonicalize(name)?;
        // By a link it may be reached under any name.
        check_reserved(&real)?;
        let path = self.path.join(tenant.as_str()).join(&real);
        Ok(Workspace { dir: dir.open_dir(&real)?, path, name: real })
    }

    /// The directory in which the tools of a tenant note what they need to know after a crash: of the same disk as its
    /// workspaces, and out of their reach.
    pub fn notes(&self, tenant: TenantId) -> Result<Dir, NoWorkspace> {
        let dir = self.make_tenant(tenant)?;
        make_private(&dir, RESERVED)?;
        open_no_link(&dir, RESERVED)
    }

    /// The same where tools have noted something. Makes nothing.
    pub fn find_notes(&self, tenant: TenantId) -> Result<Option<Dir>, NoWorkspace> {
        match self.tenant(tenant).and_then(|dir| open_no_link(&dir, RESERVED)) {
            Ok(notes) => Ok(Some(notes)),
            Err(NoWorkspace::Io(why)) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Removes the tenant's directory with everything in it: workspaces, and what tools noted. Whether there was one.
    /// Links are removed and not followed. One that could not be removed whole is begun anew by the next call.
    pub fn remove_tenant(&self, tenant: TenantId) -> io::Result<bool> {
        match self.root.symlink_metadata(tenant.as_str()) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(false),
            Ok(found) if !found.is_dir() => self.root.remove_file(tenant.as_str())?,
            Ok(_) => self.root.remove_dir_all(tenant.as_str())?,
            Err(why) => return Err(why),
        }
        // What was removed is not to be there again after a power cut.
        File::open(&self.path)?.sync_all()?;
        Ok(true)
    }

    fn make_tenant(&self, tenant: TenantId) -> Result<Dir, NoWorkspace> {
        make_private(&self.root, tenant.as_str())?;
        self.tenant(tenant)
    }

    /// The tenant's directory, if it is there. No link leads from one tenant to another.
    fn tenant(&self, tenant: TenantId) -> Result<Dir, NoWorkspace> {
        open_no_link(&self.root, tenant.as_str())
    }

    /// Reads a name: the way from the tenant's directory down. This is about names alone; where they lead is found
    /// out by going there.
    fn below(&self, tenant: TenantId, name: &str) -> Result<PathBuf, NoWorkspace> {
        if name.chars().any(char::is_control) {
            return Err(NoWorkspace::Character);
        }
        let path = Path::new(name);
        let is_upwards = |part| part == Component::ParentDir;
        if path.components().any(is_upwards) {
            return Err(NoWorkspace::Upwards);
        }
        let relative = if path.is_absolute() {
            let roots = [&self.path, &self.given].map(|root| root.join(tenant.as_str()));
            roots.iter().find_map(|root| path.strip_prefix(root).ok()).ok_or(NoWorkspace::Outside)?
        } else {
            path
        };
        let below: PathBuf = relative.components().filter(|part| *part != Component::CurDir).collect();
        if below.as_os_str().is_empty() {
            return Err(NoWorkspace::Empty);
        }
        let is_long = |part: Component<'_>| part.as_os_str().len() > COMPONENT_BYTES;
        if below.as_os_str().len() > NAME_BYTES || below.components().any(is_long) {
            return Err(NoWorkspace::TooLong);
        }
        check_reserved(&below)?;
        Ok(below)
    }
}

/// Refuses the way to our own directory, and into what version control keeps, whose programs are run by whoever works
/// there; in any case, for some disks do not tell them apart.
fn check_reserved(below: &Path) -> Result<(), NoWorkspace> {
    let is_ours =
        |part: Component<'_>| [RESERVED, ".git"].iter().any(|kept| part.as_os_str().eq_ignore_ascii_case(kept));
    if below.components().any(is_ours) { Err(NoWorkspace::Reserved) } else { Ok(()) }
}

fn make_private(dir: &Dir, name: &str) -> Result<(), NoWorkspace> {
    let mut private = cap_std::fs::DirBuilder::new();
    private.mode(PRIVATE);
    match dir.create_dir_with(name, &private) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(why.into()),
        _ => Ok(()),
    }
}

fn open_no_link(dir: &Dir, name: &str) -> Result<Dir, NoWorkspace> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty());
    Ok(Dir::from_std_file(File::from(opened.map_err(io::Error::from)?)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A root, and beside it what must not be reached.
    struct Ground {
        dir: tempfile::TempDir,
        spaces: Workspaces,
    }

    impl Ground {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("secret")).unwrap();
            std::fs::write(dir.path().join("secret/key"), "hush").unwrap();
            Self { spaces: Workspaces::open(&dir.path().join("root")).unwrap(), dir }
        }

        fn tenant(&self, tenant: &str) -> PathBuf {
            let path = self.dir.path().join("root").join(tenant);
            std::fs::create_dir_all(&path).unwrap();
            path
        }

        fn root(&self) -> String {
            self.dir.path().join("root").display().to_string()
        }

        /// Refused both when it is looked at and when it is used, and for the same reason.
        fn refused(&self, name: &str) -> String {
            let looked = self.spaces.check(TenantId::DEFAULT, name).unwrap_err().to_string();
            let used = self.spaces.named(TenantId::DEFAULT, name).unwrap_err().to_string();
            assert_eq!(looked, used, "{name:?}");
            assert!(!used.contains(&self.root()), "{used}");
            used
        }
    }

    fn key(thread: u8) -> ThreadKey {
        ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::from_bytes([thread; 16]) }
    }

    #[test]
    fn a_tenants_directory_goes_with_all_that_is_in_it_and_nothing_else_does() {
        let ground = Ground::new();
        let (gone, stays): (TenantId, TenantId) = ("acme".parse().unwrap(), "other".parse().unwrap());
        for tenant in [gone, stays] {
            std::fs::write(ground.spaces.named(tenant, "a/b").unwrap().path().join("file"), "x").unwrap();
            ground.spaces.notes(tenant).unwrap().write("note", "x").unwrap();
        }
        let out = ground.dir.path().join("secret");
        symlink(&out, ground.tenant("acme").join("a/out")).unwrap();
        symlink(ground.tenant("other"), ground.tenant("acme").join("theirs")).unwrap();
        assert!(ground.spaces.remove_tenant(gone).unwrap());
        assert!(!ground.dir.path().join("root/acme").exists());
        assert_eq!(std::fs::read_to_string(out.join("key")).unwrap(), "hush");
        assert!(
            ground.tenant("other").join("a/b/file").exists() && ground.tenant("other").join(".raddle/note").exists()
        );
        assert!(!ground.spaces.remove_tenant(gone).unwrap());
        // One that is a link somewhere else.
        symlink(&out, ground.dir.path().join("root/linked")).unwrap();
        assert!(ground.spaces.remove_tenant("linked".parse().unwrap()).unwrap());
        assert!(out.join("key").exists() && !ground.dir.path().join("root/linked").exists());
    }

    #[test]
    fn a_thread_that_names_none_has_a_directory_of_its_own() {
        let ground = Ground::new();
        let [one, two] = [1, 2].map(|thread| ground.spaces.resolve(key(thread), None).unwrap());
        assert_ne!(one.path(), two.path());
        assert!(one.path().ends_with(format!("root/default/threads/{}", key(1).thread)));
        one.dir().write("a", "of one").unwrap();
        assert_eq!(std::fs::read_to_string(one.path().join("a")).unwrap(), "of one");
        assert!(!two.dir().exists("a"));
        assert!(ground.spaces.resolve(key(1), None).unwrap().dir().exists("a"));
    }

    #[test]
    fn threads_that_name_the_same_share_it_however_they_spell_it() {
        let ground = Ground::new();
        let first = ground.spaces.resolve(key(1), Some("team/api")).unwrap();
        first.dir().write("a", "shared").unwrap();
        let absolute = format!("{}/default/team//api/", ground.root());
        for name in ["team/api", "./team/./api", "team//api/", &absolute] {
            let again = ground.spaces.resolve(key(2), Some(name)).unwrap();
            assert_eq!(again.path(), first.path(), "{name}");
            assert!(again.dir().exists("a"));
        }
    }

    #[test]
    fn directories_are_made_when_they_are_used_and_for_nobody_else() {
        let ground = Ground::new();
        ground.spaces.check(TenantId::DEFAULT, "a/b").unwrap();
        assert!(!ground.dir.path().join("root/default").exists());
        let made = ground.spaces.named(TenantId::DEFAULT, "a/b").unwrap();
        for path in [made.path(), made.path().parent().unwrap(), &ground.tenant("default"), ground.spaces.path()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{path:?}");
        }
        ground.spaces.check(TenantId::DEFAULT, "a/b/c").unwrap();
        assert!(!made.path().join("c").exists());
    }

    #[test]
    fn what_is_only_looked_for_is_not_made_and_has_one_name_when_it_is_there() {
        let ground = Ground::new();
        let missing = |found: Result<Workspace, NoWorkspace>| match found {
            Err(NoWorkspace::Io(why)) => why.kind() == io::ErrorKind::NotFound,
            _ => false,
        };
        assert!(ground.spaces.find_notes(TenantId::DEFAULT).unwrap().is_none());
        assert!(missing(ground.spaces.find_named(TenantId::DEFAULT, "a/b")));
        assert!(!ground.dir.path().join("root/default").exists());
        ground.spaces.named(TenantId::DEFAULT, "a/b").unwrap();
        symlink("a", ground.tenant("default").join("alias")).unwrap();
        let absolute = format!("{}/default/a/b", ground.root());
        for name in ["a/b", "./a//b/", "alias/b", &absolute] {
            let found = ground.spaces.find_named(TenantId::DEFAULT, name).unwrap();
            assert_eq!(found.name(), Path::new("a/b"), "{name}");
        }
        assert!(missing(ground.spaces.find_named(TenantId::DEFAULT, "a/c")));
        assert!(ground.spaces.find_notes(TenantId::DEFAULT).unwrap().is_none());
        ground.spaces.notes(TenantId::DEFAULT).unwrap().write("note", "").unwrap();
        assert!(ground.spaces.find_notes(TenantId::DEFAULT).unwrap().unwrap().exists("note"));
    }

    #[test]
    fn a_name_that_is_none_is_refused_and_says_why() {
        let ground = Ground::new();
        let long = "x".repeat(256);
        let deep = vec!["x".repeat(200); 6].join("/");
        for (name, why) in [
            ("", "names no directory"),
            (".", "names no directory"),
            ("./", "names no directory"),
            (&format!("{}/default", ground.root()), "names no directory"),
            ("a\0b", "control character"),
            ("a\nb", "control character"),
            (&long, "too long"),
            (&deep, "too long"),
            (".raddle", "kept for the server"),
            ("a/.Raddle/b", "kept for the server"),
        ] {
            let said = ground.refused(name);
            assert!(said.contains(why), "{name:?}: {said}");
        }
    }

    /// Where a path leads when it is only joined and opened.
    fn joined(ground: &Ground, name: &str) -> Option<String> {
        std::fs::read_to_string(ground.tenant("default").join(name).join("key")).ok()
    }

    #[test]
    fn no_way_leads_out_of_the_directory_of_the_tenant() {
        let ground = Ground::new();
        let tenant = ground.tenant("default");
        let secret = ground.dir.path().join("secret");
        let other = ground.tenant("other").join("work");
        std::fs::create_dir_all(tenant.join("sub")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(other.join("key"), "of another").unwrap();
        symlink(&secret, tenant.join("absolute_link")).unwrap();
        symlink("../../secret", tenant.join("relative_link")).unwrap();
        symlink("../../..", tenant.join("sub/up")).unwrap();
        symlink("../other/work", tenant.join("neighbour")).unwrap();
        symlink("/proc/self/root", tenant.join("magic")).unwrap();
        let by_root = format!("magic{}", secret.display());
        let absolute = secret.display().to_string();
        let by_proc = format!("/proc/self/root{absolute}");
        let theirs = other.display().to_string();
        let dotted = format!("{}/default/../../secret", ground.root());
        for (name, why) in [
            ("../../secret", "upwards"),
            ("sub/../../../secret", "upwards"),
            (&dotted, "upwards"),
            ("../other/work", "upwards"),
            (&absolute, "outside"),
            (&by_proc, "outside"),
            (&theirs, "outside"),
            ("absolute_link", "outside"),
            ("relative_link", "outside"),
            ("sub/up/secret", "outside"),
            ("neighbour", "outside"),
            (&by_root, "outside"),
        ] {
            assert!(joined(&ground, name).is_some(), "{name}: this is no attack");
            let said = ground.refused(name);
            assert!(said.contains(why), "{name}: {said}");
        }
        // What begins with the same letters is somewhere else.
        std::fs::create_dir_all(ground.tenant("default-2").join("w")).unwrap();
        assert!(ground.refused(&format!("{}/default-2/w", ground.root())).contains("outside"));
        // Below a link that leaves nothing is made either.
        assert!(ground.refused("absolute_link/new").contains("outside"));
        assert!(!secret.join("new").exists());
    }

    #[test]
    fn what_tools_note_is_in_no_workspace_not_even_by_a_link() {
        let ground = Ground::new();
        ground.spaces.notes(TenantId::DEFAULT).unwrap().write("note", "").unwrap();
        let tenant = ground.tenant("default");
        std::fs::create_dir(tenant.join("w")).unwrap();
        symlink("../.raddle", tenant.join("w/alias")).unwrap();
        assert!(tenant.join("w/alias/note").exists());
        assert!(ground.refused("w/alias").contains("kept for the server"));
        assert!(ground.spaces.named(TenantId::DEFAULT, "w").unwrap().dir().open("alias/note").is_err());
    }

    #[test]
    fn the_directory_of_a_tenant_is_no_link_not_even_to_another_ones() {
        let ground = Ground::new();
        std::fs::create_dir_all(ground.tenant("other").join("w")).unwrap();
        symlink("other", ground.dir.path().join("root/default")).unwrap();
        assert!(ground.dir.path().join("root/default/w").is_dir());
        ground.refused("w");
        assert!(ground.spaces.resolve(key(1), None).is_err());
    }

    #[test]
    fn a_link_inside_is_followed_and_the_path_is_where_it_leads() {
        let ground = Ground::new();
        let tenant = ground.tenant("default");
        std::fs::create_dir_all(tenant.join("real/sub")).unwrap();
        symlink("real", tenant.join("alias")).unwrap();
        let found = ground.spaces.named(TenantId::DEFAULT, "alias/sub").unwrap();
        assert_eq!(found.path(), tenant.canonicalize().unwrap().join("real/sub"));
    }

    #[test]
    fn what_is_no_directory_is_no_workspace() {
        let ground = Ground::new();
        let tenant = ground.tenant("default");
        std::fs::write(tenant.join("file"), "").unwrap();
        symlink("nowhere", tenant.join("dangling")).unwrap();
        for name in ["file", "file/below", "dangling", "dangling/below"] {
            assert!(ground.refused(name).contains("not a directory"), "{name}");
        }
    }

    #[test]
    fn a_root_that_is_a_link_is_followed_once() {
        let ground = Ground::new();
        let dir = ground.dir.path();
        std::fs::create_dir(dir.join("disk")).unwrap();
        symlink("disk", dir.join("linked")).unwrap();
        let spaces = Workspaces::open(&dir.join("linked")).unwrap();
        let by_link = format!("{}/default/w", dir.join("linked").display());
        let found = spaces.named(TenantId::DEFAULT, &by_link).unwrap();
        assert_eq!(found.path(), dir.canonicalize().unwrap().join("disk/default/w"));
        // Turned elsewhere, it leads nobody there.
        std::fs::remove_file(dir.join("linked")).unwrap();
        symlink("secret", dir.join("linked")).unwrap();
        spaces.named(TenantId::DEFAULT, "v").unwrap();
        assert!(dir.join("disk/default/v").is_dir() && !dir.join("secret/default").exists());
    }

    /// A link that is put there and taken away while names are resolved: whatever is opened is inside.
    #[test]
    fn a_directory_that_turns_into_a_link_meanwhile_leads_nowhere() {
        let ground = Ground::new();
        let tenant = ground.tenant("default");
        std::fs::create_dir(tenant.join("w")).unwrap();
        std::fs::write(tenant.join("w/key"), "mine").unwrap();
        symlink(ground.dir.path().join("secret"), tenant.join("link")).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let done = &done;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let swapped = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        tenant.join("w"),
                        rustix::fs::CWD,
                        tenant.join("link"),
                        rustix::fs::RenameFlags::EXCHANGE,
                    );
                    assert!(swapped.is_ok(), "{swapped:?}");
                }
            });
            let (mut naive, mut rounds) = (0, 0);
            // Until the link was met by somebody who follows it, which may take a while on a busy machine.
            while rounds < 2_000 || (naive == 0 && rounds < 500_000) {
                rounds += 1;
                naive += u32::from(joined(&ground, "w").as_deref() == Some("hush"));
                if let Ok(found) = ground.spaces.named(TenantId::DEFAULT, "w") {
                    assert_eq!(found.dir().read_to_string("key").unwrap(), "mine");
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(naive > 0, "this was no attack");
        });
    }
}
