//! `list_dir`, and the walk that it shares with `grep`.
//!
//! Links are shown and not followed, so a walk ends and shows nothing twice. Each directory is opened by its way from
//! the workspace, with the same care as a path of a caller; one at a time, so that no depth takes all descriptors.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use cap_std::fs::{Dir, FileType, MetadataExt};
use raddle_domain::policy::withheld::Withheld;
use serde::Deserialize;

use super::place::{Down, Fault};
use crate::tools::blocking::Stop;

/// The deepest listing.
pub const DEPTH: usize = 10;

/// What is listed at once.
const ENTRIES: usize = 1_000;

/// The entries of one directory that are looked at: they are sorted, so they are all held.
const DIRECTORY_ENTRIES: usize = 20_000;

/// How deep a walk goes.
const DEEPEST: usize = 100;

#[derive(Debug, Deserialize)]
pub struct Arguments {
    pub path: Option<String>,
    pub depth: Option<usize>,
}

/// Something in a directory.
pub struct Met<'a> {
    pub path: &'a Path,
    pub kind: FileType,
    /// From 1, for what is in the directory where the walk began.
    pub depth: usize,
}

/// What becomes of a directory that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Past,
}

/// Walks through a directory, in the order of names. Whether some of it was left out because there is too much.
pub fn walk(
    dir: &Dir,
    from: &Path,
    stop: &Stop,
    withheld: &Withheld<'_>,
    mut meet: impl FnMut(Met<'_>) -> ControlFlow<(), Way>,
) -> Result<bool, Fault> {
    let mut partly = false;
    let mut rest = vec![(from.to_owned(), None, 0)];
    while let Some((path, kind, depth)) = rest.pop() {
        if stop.is_asked() {
            return Ok(true);
        }
        if let Some(kind) = kind {
            if withheld.covers(&path.to_string_lossy()) {
                partly = true;
                continue;
            }
            let way = match meet(Met { path: &path, kind, depth }) {
                ControlFlow::Break(()) => return Ok(partly),
                ControlFlow::Continue(way) => way,
            };
            if way == Way::Past || !FileType::is_dir(&kind) {
                continue;
            }
            if depth == DEEPEST {
                partly = true;
                continue;
            }
        }
        let entries = dir.open_dir(&path).and_then(|dir| dir.entries());
        let entries = match entries {
            Ok(entries) => entries,
            Err(why) if depth == 0 => return Err(Fault::of(&path, why)),
            // It went, or we may not look: the rest is worth to be shown.
            Err(_) => {
                partly = true;
                continue;
            }
        };
        let mut names: Vec<_> = entries
            .flatten()
            .take(DIRECTORY_ENTRIES + 1)
            .filter_map(|entry| Some((entry.file_name(), entry.file_type().ok()?)))
            .collect();
        partly |= names.len() > DIRECTORY_ENTRIES;
        // The first is to be popped first.
        names.sort_by(|(one, _), (other, _)| other.cmp(one));
        let here = if path == Path::new(".") { PathBuf::new() } else { path };
        rest.extend(names.into_iter().map(|(name, kind)| (here.join(name), Some(kind), depth + 1)));
    }
    Ok(partly)
}

pub fn list(dir: &Dir, arguments: &Arguments, stop: &Stop, withheld: &Withheld<'_>) -> Result<String, Fault> {
    let path = Down::new(arguments.path.as_deref().unwrap_or("."))?;
    let deepest = arguments.depth.unwrap_or(1).clamp(1, DEPTH);
    let (mut said, mut count, mut cut) = (String::new(), 0, false);
    let partly = walk(dir, path.as_path(), stop, withheld, |met| {
        if count == ENTRIES {
            cut = true;
            return ControlFlow::Break(());
        }
        count += 1;
        said.push_str(&row(dir, &met));
        ControlFlow::Continue(if met.depth < deepest { Way::In } else { Way::Past })
    })?;
    if count == 0 {
        said.push_str("[the directory is empty]\n");
    }
    if cut {
        said.push_str(&format!("[cut after {ENTRIES} entries: list a directory in it]\n"));
    } else if partly {
        said.push_str("[some of it may not be looked at, could not, or is too much]\n");
    }
    Ok(said)
}

fn row(dir: &Dir, met: &Met<'_>) -> String {
    // A name may hold anything; a row is a line.
    let name: String =
        met.path.to_string_lossy().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if met.kind.is_dir() {
        format!("{name}/\n")
    } else if met.kind.is_symlink() {
        let to = dir.read_link_contents(met.path).map(|to| to.to_string_lossy().into_owned());
        let to: String = to.unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
        format!("{name} -> {to}\n")
    } else if met.kind.is_file() {
        let size = dir.symlink_metadata(met.path).map(|found| found.size());
        size.map_or_else(|_| format!("{name}\n"), |size| format!("{name} ({size} bytes)\n"))
    } else {
        format!("{name} (no regular file)\n")
    }
}
