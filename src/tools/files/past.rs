//! What tools did to files, and taking it back.
//!
//! What was done is told from the note of the operation ([`super::change`]), what there was before from the blobs
//! ([`super::blobs`]). Taking it back is a change like any other, under an operation of its own: all of the files or
//! none, once, and gone on with after a crash. Each file must be what the operation left, to the byte; whatever
//! somebody did to it since is worth more than a way back.
//!
//! What is asked for comes from records that somebody may have damaged, or made up. So paths go the way of those that
//! models write, a digest names a blob only if it is one, and a blob is used only if it is what its digest says.
//!
//! Absent on purpose: who may ask, and whether it was done before, which are the run's to know; directories, which stay
//! when the last file in them goes.

use std::{io, sync::Arc};

use cap_std::fs::Dir;
use raddle_domain::{
    id::{OperationId, TenantId},
    ports::{ChangedFile, Files, FilesChanged, Pending, Restore, Restored},
};
use rustix::fs::Mode;

use super::{
    blobs,
    change::{self, FileChange, Plan, Progress, change},
    disk::digest,
    found, overlap,
    place::Fault,
};
use crate::{
    tools::blocking::{Stop, blocking},
    workspace::{NoWorkspace, Workspace, Workspaces},
};

/// What the files of one restoring may have together, as they are and as they were: it is held in memory.
const HELD_BYTES: usize = 256 * 1024 * 1024;

/// The files of all workspaces, as they were.
pub struct Past {
    spaces: Arc<Workspaces>,
}

impl Past {
    pub const fn new(spaces: Arc<Workspaces>) -> Self {
        Self { spaces }
    }
}

impl Files for Past {
    fn changed(&self, tenant: TenantId, operation: OperationId) -> Pending<io::Result<Option<FilesChanged>>> {
        let spaces = self.spaces.clone();
        Box::pin(blocking(move || changed(&spaces, tenant, operation)))
    }

    fn restore(&self, restore: Restore) -> Pending<Restored> {
        let spaces = self.spaces.clone();
        Box::pin(async move {
            let stop = Stop::default();
            let _given_up = stop.on_drop();
            blocking({
                let stop = stop.clone();
                move || restored(&spaces, &restore, &stop)
            })
            .await
        })
    }
}

pub fn changed(spaces: &Workspaces, tenant: TenantId, operation: OperationId) -> io::Result<Option<FilesChanged>> {
    match spaces.find_notes(tenant) {
        Ok(Some(notes)) => change::changed(&notes, operation),
        Ok(None) => Ok(None),
        Err(NoWorkspace::Io(why)) => Err(why),
        Err(why) => Err(io::Error::other(format!("the tenant's directory {why}"))),
    }
}

pub fn restored(spaces: &Workspaces, restore: &Restore, stop: &Stop) -> Restored {
    let notes = match put_back(spaces, restore, stop) {
        Ok(Some(notes)) => notes,
        Ok(None) => return Restored::Done,
        Err(torn @ Fault::Torn(_)) => return Restored::Torn(torn.to_string()),
        Err(why) => return Restored::Refused(why.to_string()),
    };
    // Whoever was told that it is done may ask once more when the files have gone on long since.
    match change::close(&notes, restore.operation) {
        Ok(()) => Restored::Done,
        Err(why) => Restored::Torn(format!("every file is what it was, but that could not be noted: {why}")),
    }
}

/// Restores the files. Gives where that is to be noted, unless it is noted already.
fn put_back(spaces: &Workspaces, restore: &Restore, stop: &Stop) -> Result<Option<Dir>, Fault> {
    let Restore { tenant, operation, .. } = *restore;
    let directory = |why: NoWorkspace| Fault::Said(format!("the tenant's directory {why}"));
    // Then nobody knows what was done.
    let unread = |why: io::Error| torn(Fault::Said(format!("the notes of this operation cannot be read: {why}")));
    let progress = match spaces.find_notes(tenant).map_err(directory)? {
        Some(notes) => change::progress(&notes, operation).map_err(unread)?,
        None => Progress::Undecided,
    };
    if progress == Progress::Closed {
        return Ok(None);
    }
    let workspace = match spaces.find_named(tenant, &restore.workspace) {
        Ok(workspace) => workspace,
        // Some of the files that went with it may have been restored, and others not.
        Err(why) if progress == Progress::Decided => return Err(torn(missing(&restore.workspace, why))),
        Err(why) => return Err(missing(&restore.workspace, why)),
    };
    let notes = spaces.notes(tenant).map_err(directory)?;
    match change(&notes, operation, &workspace, stop, || plan(&notes, &workspace, &restore.files, HELD_BYTES)) {
        Ok(_) => Ok(Some(notes)),
        // Only what is not decided, or not any more, has left every file as it was.
        Err(why) => Err(match change::progress(&notes, operation) {
            Ok(Progress::Undecided) => why,
            _ => torn(why),
        }),
    }
}

fn torn(why: Fault) -> Fault {
    match why {
        Fault::Torn(_) => why,
        why => Fault::Torn(Box::new(why)),
    }
}

fn missing(name: &str, why: NoWorkspace) -> Fault {
    match why {
        NoWorkspace::Io(why) if why.kind() == io::ErrorKind::NotFound => {
            Fault::Said(format!("there is no workspace `{name}`"))
        }
        why => Fault::Said(format!("the workspace `{name}` {why}")),
    }
}

/// The change that restores the files, which have at most so many bytes.
pub fn plan(notes: &Dir, workspace: &Workspace, files: &[ChangedFile], most: usize) -> Result<Plan, Fault> {
    let (removed, written): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.before.is_none());
    let (mut files, mut held) = (Vec::new(), 0);
    // What is removed comes last, as in a patch.
    for file in written.into_iter().chain(removed) {
        let change = backwards(notes, workspace, file)?;
        held += [&change.before, &change.after].into_iter().flatten().map(Vec::len).sum::<usize>();
        if held > most {
            let path = change.path.display();
            return Err(Fault::Said(format!("with `{path}` it is more than {most} bytes: restore less at once")));
        }
        files.push(change);
    }
    if let Some((one, other)) = overlap(&files) {
        return Err(Fault::Said(format!("`{one}` and `{other}` cannot be restored together: each file once")));
    }
    let said = format!("restored {} files", files.len());
    Ok(Plan { files, said, keeps: false })
}

/// The change that makes a file again what it was, if it is what it became.
fn backwards(notes: &Dir, workspace: &Workspace, file: &ChangedFile) -> Result<FileChange, Fault> {
    let path = &file.path;
    let said = |why: &str| Err(Fault::Said(format!("`{path}` {why}")));
    let found = found(workspace, path, false)?;
    let now = found.held.as_ref().map(|held| digest(&held.bytes));
    match (now, &file.after) {
        (None, Some(_)) => return said("is not there any more"),
        (Some(_), None) => return said("is there again"),
        (Some(now), Some(after)) if now != after.sha256 => return said("was changed since"),
        _ => {}
    }
    let Some(before) = &file.before else { return Ok(found.becomes(None)) };
    let before = match blobs::get(notes, &before.sha256) {
        Ok(bytes) => bytes,
        Err(why) => return Err(Fault::Said(format!("what `{path}` held {why}"))),
    };
    let change = found.becomes(Some(before));
    let mode = change.mode.or(file.mode.map(Mode::from_raw_mode));
    Ok(FileChange { mode, ..change })
}
