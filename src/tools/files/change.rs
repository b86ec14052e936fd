//! Changes of files: all of them or none, and once, however often the process dies.
//!
//! ```text
//!   plan (reads) ─▶ stage what the files are to hold ─▶ note the change ─▶ put each file in its place ─▶ done
//!                   └───────── nothing has happened ────────┘             └─ whoever runs it again goes on here ─┘
//! ```
//! A change is staged under the id of its operation in the tenant's notes, which no workspace reaches. Once the note
//! is there the change is decided: another run of the same operation does not plan again, which could do it twice,
//! but puts in place what is not there yet, and says what the first one would have said. That is why tools that
//! change files are [`Idempotent`](raddle_domain::record::EffectClass::Idempotent). A file changes by a rename: it is
//! the old one or the new one for whoever looks, also after a power cut, and keeps its permissions.
//!
//! Each file is compared with what the plan saw just before it is replaced, so somebody else's change is not lost but
//! refuses ours; between that look and the rename are microseconds, and no lock.
//!
//! A change that is refused half way is taken back by a change of its own, in the other direction: staged, noted
//! beside the first, and carried out by whoever runs the operation again. Only when it is done are both forgotten, so
//! nobody plans again on files that are changed in part.
//!
//! What files hold before a change that somebody may want to take back *later* is kept beside the notes ([`blobs`])
//! before the change is decided: once it has happened, it is there. The note says which files, by their digests.
//!
//! Notes are kept for a month after their operation, longer than anybody waits to go on after a crash.

use std::{
    io,
    path::{Path, PathBuf},
};

use cap_std::fs::{Dir, MetadataExt};
use raddle_domain::{
    id::OperationId,
    ports::{ChangedFile, Content, FilesChanged},
};
use rustix::fs::{Access, AtFlags, Mode};
use serde::{Deserialize, Serialize};

use super::{
    blobs,
    disk::{self, crash, digest, sync},
    place::{Fault, Held, Named},
};
use crate::{tools::blocking::Stop, workspace::Workspace};

/// The note of a change that is decided.
const NOTE: &str = "note";

/// The note of the change that takes it back, which counts more.
const UNDO: &str = "undo";

/// Says that the change is made, and that its files may be anything by now.
const CLOSED: &str = "closed";

/// What the names of staged files begin with, for either.
const AFTER: &str = "";
const BEFORE: &str = "before-";

/// What one file is to become. Paths are those that [`super::place::real`] gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    pub path: PathBuf,
    pub before: Option<Vec<u8>>,
    pub after: Option<Vec<u8>>,
    /// The permissions of a file that is replaced.
    pub mode: Option<Mode>,
}

impl FileChange {
    /// A file that holds `after` from then on.
    pub fn new(path: PathBuf, held: Option<Held>, after: Option<Vec<u8>>) -> Self {
        let mode = held.as_ref().map(|held| held.mode);
        Self { path, before: held.map(|held| held.bytes), after, mode }
    }
}

/// A change that could be made, and what to say of it.
#[derive(Debug, Default)]
pub struct Plan {
    pub files: Vec<FileChange>,
    pub said: String,
    /// Whether what the files hold is kept, so that somebody can take the change back later.
    pub keeps: bool,
}

/// What is noted of a change.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    workspace: PathBuf,
    /// The same as threads name it. Earlier builds did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    files: Vec<Noted>,
    said: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    path: PathBuf,
    /// Digests; nothing where there is no file.
    before: Option<String>,
    after: Option<String>,
    /// How long it was and is; 0 where there is no file. Earlier builds did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<(u64, u64)>,
    /// The permissions of what was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
}

impl Note {
    /// What it says that happened, if it says enough.
    fn changed(self) -> Option<FilesChanged> {
        let differs = |file: &Noted| file.before != file.after;
        let files: Option<Vec<ChangedFile>> = self.files.into_iter().filter(differs).map(Noted::changed).collect();
        let files = files.filter(|files| !files.is_empty())?;
        Some(FilesChanged { workspace: self.name?, files })
    }
}

impl Noted {
    fn changed(self) -> Option<ChangedFile> {
        let (before, after) = self.bytes?;
        let content = |sha256: Option<String>, bytes| sha256.map(|sha256| Content { sha256, bytes });
        let path = self.path.into_os_string().into_string().ok()?;
        let (before, after) = (content(self.before, before), content(self.after, after));
        Some(ChangedFile { path, before, after, mode: self.mode })
    }
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has happened.
    Undecided,
    /// It is made or taken back, or will be.
    Decided,
    /// It is made, and over.
    Closed,
}

/// How far an operation has come, by what is noted of it. Makes nothing.
pub fn progress(notes: &Dir, operation: OperationId) -> io::Result<Progress> {
    let Some(desk) = Desk::find(notes, operation)? else { return Ok(Progress::Undecided) };
    Ok(match desk.0 {
        desk if desk.try_exists(CLOSED)? => Progress::Closed,
        desk if desk.try_exists(NOTE)? || desk.try_exists(UNDO)? => Progress::Decided,
        _ => Progress::Undecided,
    })
}

/// Notes that an operation is over whose change was made: what becomes of its files is not its matter any more.
pub fn close(notes: &Dir, operation: OperationId) -> io::Result<()> {
    crash::may();
    let desk = Desk::open(notes, operation)?;
    disk::write(&desk.0, CLOSED, &[], None)?;
    Ok(sync(&desk.0)?)
}

/// What an operation changed, by its note; nothing where it changed nothing, or was taken back. Makes nothing.
pub fn changed(notes: &Dir, operation: OperationId) -> io::Result<Option<FilesChanged>> {
    let Some(desk) = Desk::find(notes, operation)? else { return Ok(None) };
    if desk.note(UNDO)?.is_some() {
        return Ok(None);
    }
    Ok(desk.note(NOTE)?.and_then(Note::changed))
}

/// What is kept of one operation: the note, and staged files by their number.
struct Desk(Dir);

/// Makes the change that `plan` finds, or the one that an earlier run of this operation decided on. Says what it did.
pub fn change(
    notes: &Dir,
    operation: OperationId,
    workspace: &Workspace,
    stop: &Stop,
    plan: impl FnOnce() -> Result<Plan, Fault>,
) -> Result<String, Fault> {
    let desk = Desk::open(notes, operation).map_err(noting)?;
    if let Some(back) = desk.note(UNDO).map_err(noting)? {
        same(workspace, &back)?;
        undo(&desk, workspace.dir(), &back).map_err(|why| Fault::Torn(Box::new(why)))?;
        // The run that was cut off could not say it.
        return Err(Fault::Said(back.said));
    }
    if let Some(note) = desk.note(NOTE).map_err(noting)? {
        same(workspace, &note)?;
        // What is in place stays there; nobody knows what was before it.
        carry_out(&desk, workspace.dir(), &note, AFTER).map_err(|(_, why)| Fault::Torn(Box::new(why)))?;
        return Ok(note.said);
    }
    let plan = plan()?;
    for file in &plan.files {
        check(&desk, workspace.dir(), &file.path)?;
    }
    desk.stage(AFTER, &plan.files).map_err(noting)?;
    if plan.keeps {
        keep(notes, operation, &plan.files)?;
    }
    crash::may();
    if stop.is_asked() {
        return Err(Fault::Said("given up before anything was changed".to_owned()));
    }
    let note = match desk.decide(NOTE, workspace, &plan.files, &plan.said) {
        Ok(note) => note,
        Err(why) => return Err(desk.undecided(noting(why))),
    };
    if let Err((done, why)) = carry_out(&desk, workspace.dir(), &note, AFTER) {
        return Err(match take_back(&desk, workspace, &plan.files[..done], &why) {
            Ok(()) => why,
            Err(_) => Fault::Torn(Box::new(why)),
        });
    }
    Ok(plan.said)
}

fn noting(why: io::Error) -> Fault {
    Fault::Said(format!("the change could not be noted: {why}"))
}

/// Keeps what the files hold that are to hold something else.
fn keep(notes: &Dir, operation: OperationId, files: &[FileChange]) -> Result<(), Fault> {
    for file in files.iter().filter(|file| file.before != file.after) {
        if let Some(bytes) = &file.before {
            let fault = |why| Fault::Said(format!("what `{}` holds could not be kept: {why}", file.path.display()));
            blobs::keep(notes, operation, bytes).map_err(fault)?;
        }
    }
    Ok(())
}

/// Whether it is the workspace that a note is about.
fn same(workspace: &Workspace, note: &Note) -> Result<(), Fault> {
    if note.workspace == workspace.path() {
        return Ok(());
    }
    let other = Fault::Said("the thread's workspace was changed while its change was under way".to_owned());
    Err(Fault::Torn(Box::new(other)))
}

/// Whether a file could be put there: a change must not find out half way.
fn check(desk: &Desk, dir: &Dir, path: &Path) -> Result<(), Fault> {
    let above = path.ancestors().skip(1).map(|above| if above == Path::new("") { Path::new(".") } else { above });
    for above in above {
        let fault = |why: io::Error| Fault::of(above, why);
        let opened = match dir.open_dir(above) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(fault)?,
        };
        let may = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(&opened, ".", may, AtFlags::EACCESS).map_err(|why| fault(why.into()))?;
        let device = |dir: &Dir| Ok(dir.dir_metadata().map_err(fault)?.dev());
        if device(&opened)? != device(&desk.0)? {
            return Err(Fault::OtherDisk(path.display().to_string()));
        }
        return Ok(());
    }
    Err(Fault::Missing(path.display().to_string()))
}

/// Puts every file in its place that is not there yet. On failure says how many are.
fn carry_out(desk: &Desk, dir: &Dir, note: &Note, staged: &str) -> Result<(), (usize, Fault)> {
    for (number, file) in note.files.iter().enumerate() {
        crash::may();
        place(desk, dir, &format!("{staged}{number}"), file).map_err(|why| (number, why))?;
    }
    crash::may();
    desk.clear(staged, note.files.len());
    Ok(())
}

fn place(desk: &Desk, dir: &Dir, staged: &str, file: &Noted) -> Result<(), Fault> {
    let named = match file.after {
        Some(_) => Named::find_or_make(dir, &file.path)?,
        None => match Named::find(dir, &file.path)? {
            Some(named) => named,
            None => return Ok(()),
        },
    };
    let now = named.read()?.map(|held| digest(&held.bytes));
    if now == file.after {
        return Ok(());
    }
    if now != file.before {
        return Err(Fault::Changed(file.path.display().to_string()));
    }
    let placed = match file.after {
        Some(_) => rustix::fs::renameat(&desk.0, staged, &named.parent, &named.name),
        None => rustix::fs::unlinkat(&named.parent, &named.name, AtFlags::empty()),
    };
    placed.and_then(|()| sync(&named.parent)).map_err(|why| Fault::of(&file.path, why.into()))
}

/// Takes back what a run of this very process has put in place.
fn take_back(desk: &Desk, workspace: &Workspace, files: &[FileChange], why: &Fault) -> Result<(), Fault> {
    let back = |file: &FileChange| FileChange {
        path: file.path.clone(),
        before: file.after.clone(),
        after: file.before.clone(),
        mode: file.mode,
    };
    let files: Vec<FileChange> = files.iter().rev().map(back).collect();
    desk.stage(BEFORE, &files).map_err(noting)?;
    crash::may();
    let back = desk.decide(UNDO, workspace, &files, &why.to_string()).map_err(noting)?;
    undo(desk, workspace.dir(), &back)
}

/// Carries out a change that takes another back, and forgets both: the other first, or it would be gone on with.
fn undo(desk: &Desk, dir: &Dir, back: &Note) -> Result<(), Fault> {
    carry_out(desk, dir, back, BEFORE).map_err(|(_, why)| why)?;
    desk.forget(NOTE).map_err(noting)?;
    crash::may();
    desk.forget(UNDO).map_err(noting)
}

impl Desk {
    /// Operations are spread over directories, so that each can look for old notes in its own.
    fn open(notes: &Dir, operation: OperationId) -> io::Result<Self> {
        let (drawer, name) = Self::place(operation);
        notes.create_dir_all(&drawer)?;
        let drawer = notes.open_dir(drawer)?;
        match drawer.create_dir(&name) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            Err(_) => {}
            Ok(()) => disk::sweep(&drawer, &name),
        }
        Ok(Self(drawer.open_dir(&name)?))
    }

    /// The same where it is there already.
    fn find(notes: &Dir, operation: OperationId) -> io::Result<Option<Self>> {
        let (drawer, name) = Self::place(operation);
        match notes.open_dir(drawer.join(name)) {
            Ok(desk) => Ok(Some(Self(desk))),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn place(operation: OperationId) -> (PathBuf, String) {
        let name = operation.to_string();
        (Path::new("ops").join(&name[name.len() - 2..]), name)
    }

    fn note(&self, name: &str) -> io::Result<Option<Note>> {
        match self.0.read(name) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn stage(&self, staged: &str, files: &[FileChange]) -> io::Result<()> {
        for (number, file) in files.iter().enumerate() {
            crash::may();
            if let Some(bytes) = &file.after {
                disk::write(&self.0, &format!("{staged}{number}"), bytes, file.mode)?;
            }
        }
        Ok(())
    }

    fn decide(&self, name: &str, workspace: &Workspace, files: &[FileChange], said: &str) -> io::Result<Note> {
        let bytes = |content: &Option<Vec<u8>>| content.as_ref().map_or(0, |content| content.len() as u64);
        let files = files.iter().map(|file| Noted {
            path: file.path.clone(),
            before: file.before.as_deref().map(digest),
            after: file.after.as_deref().map(digest),
            bytes: Some((bytes(&file.before), bytes(&file.after))),
            mode: file.before.as_ref().and(file.mode).map(|mode| mode.as_raw_mode() & 0o777),
        });
        let note = Note {
            workspace: workspace.path().to_owned(),
            name: workspace.name().to_str().map(str::to_owned),
            files: files.collect(),
            said: said.to_owned(),
        };
        disk::write(&self.0, "unnoted", &serde_json::to_vec(&note)?, None)?;
        crash::may();
        rustix::fs::renameat(&self.0, "unnoted", &self.0, name)?;
        sync(&self.0)?;
        Ok(note)
    }

    /// Makes sure that nobody goes on with a change that is said to have failed.
    fn undecided(&self, why: Fault) -> Fault {
        match self.0.remove_file(NOTE) {
            Err(left) if left.kind() != io::ErrorKind::NotFound => Fault::Torn(Box::new(why)),
            _ => why,
        }
    }

    /// Removes what was staged and is not needed: files that were in place already. The note stays.
    fn clear(&self, staged: &str, files: usize) {
        for number in 0..files {
            let _gone = self.0.remove_file(format!("{staged}{number}"));
        }
    }

    /// Removes a note, for good.
    fn forget(&self, name: &str) -> io::Result<()> {
        match self.0.remove_file(name) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Ok(sync(&self.0)?),
        }
    }
}
