//! `grep`: the lines of a file, or of the files below a directory, that a regular expression matches.
//!
//! Bounded by what is looked at, by what is shown, and by the time that it may take; each bound that was met is said.
//! Expressions take time linear in the text, whatever they are. Links are not followed, `.git` is passed by, and so
//! are binary and very large files.

use std::{
    io::{BufRead, BufReader, Read},
    ops::ControlFlow,
    path::Path,
};

use cap_std::fs::Dir;
use globset::{GlobBuilder, GlobMatcher};
use raddle_domain::policy::withheld::Withheld;
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use super::{
    list::{Met, Way, walk},
    place::{Down, Fault, open},
    shown::{beginning, is_binary},
};
use crate::tools::blocking::Stop;

/// The matches that are shown unless it is said how many, and the most.
pub const MATCHES: usize = 100;
pub const MOST_MATCHES: usize = 1_000;

/// What is looked at.
const FILES: usize = 50_000;
const ALL_BYTES: u64 = 512 * 1024 * 1024;
const FILE_BYTES: u64 = 16 * 1024 * 1024;

/// What is shown of a line, and of all of them.
const LINE_BYTES: usize = 300;
const SHOWN_BYTES: usize = 64 * 1024;

/// What a compiled expression may take.
const COMPILED_BYTES: usize = 4 * 1024 * 1024;

/// Lines between two looks at whether to go on.
const LINES_AT_ONCE: usize = 1_000;

#[derive(Debug, Deserialize)]
pub struct Arguments {
    pub pattern: String,
    pub path: Option<String>,
    pub glob: Option<String>,
    #[serde(default)]
    pub ignore_case: bool,
    pub max: Option<usize>,
}

/// A search at work.
struct Search<'a> {
    dir: &'a Dir,
    stop: &'a Stop,
    regex: Regex,
    most: usize,
    said: String,
    matches: usize,
    files: usize,
    bytes: u64,
    large: usize,
    /// The bound that ended it.
    full: Option<String>,
}

pub fn grep(dir: &Dir, arguments: &Arguments, stop: &Stop, withheld: &Withheld<'_>) -> Result<String, Fault> {
    let path = Down::new(arguments.path.as_deref().unwrap_or("."))?;
    let regex = RegexBuilder::new(&arguments.pattern)
        .case_insensitive(arguments.ignore_case)
        .size_limit(COMPILED_BYTES)
        .dfa_size_limit(COMPILED_BYTES)
        .build()
        .map_err(|why| Fault::Said(format!("`pattern` is no regular expression: {why}")))?;
    let glob = arguments.glob.as_deref().map(Glob::new).transpose()?;
    let most = arguments.max.unwrap_or(MATCHES).clamp(1, MOST_MATCHES);
    let mut search =
        Search { dir, stop, regex, most, said: String::new(), matches: 0, files: 0, bytes: 0, large: 0, full: None };
    let found = dir.metadata(path.as_path()).map_err(|why| Fault::of(path.as_path(), why))?;
    let partly = if found.is_dir() {
        walk(dir, path.as_path(), stop, withheld, |met| search.meet(&met, path.as_path(), glob.as_ref()))?
    } else {
        search.file(path.as_path())?;
        false
    };
    Ok(search.close(partly))
}

/// Which files are looked at: by their path below where the search begins, or, without a slash, by their name.
struct Glob {
    matcher: GlobMatcher,
    by_name: bool,
}

impl Glob {
    fn new(glob: &str) -> Result<Self, Fault> {
        let built = GlobBuilder::new(glob).literal_separator(true).build();
        let built = built.map_err(|why| Fault::Said(format!("`glob` is no glob: {why}")))?;
        Ok(Self { matcher: built.compile_matcher(), by_name: !glob.contains('/') })
    }

    fn takes(&self, path: &Path, from: &Path) -> bool {
        match path.file_name() {
            Some(name) if self.by_name => self.matcher.is_match(name),
            _ => self.matcher.is_match(path.strip_prefix(from).unwrap_or(path)),
        }
    }
}

impl Search<'_> {
    fn meet(&mut self, met: &Met<'_>, from: &Path, glob: Option<&Glob>) -> ControlFlow<(), Way> {
        if met.kind.is_dir() {
            let is_git = met.path.file_name().is_some_and(|name| name == ".git");
            return ControlFlow::Continue(if is_git { Way::Past } else { Way::In });
        }
        if met.kind.is_file() && glob.is_none_or(|glob| glob.takes(met.path, from)) {
            // What went meanwhile, or may not be read, is not what is looked for.
            let _unreadable = self.file(met.path);
        }
        if self.full.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(Way::Past) }
    }

    fn file(&mut self, path: &Path) -> Result<(), Fault> {
        if self.files == FILES || self.bytes >= ALL_BYTES {
            self.full = Some(format!("stopped after {} files and {} bytes", self.files, self.bytes));
            return Ok(());
        }
        let (file, size) = open(self.dir, path)?;
        if size > FILE_BYTES {
            self.large += 1;
            return Ok(());
        }
        self.files += 1;
        let fault = |why| Fault::of(path, why);
        let mut lines = BufReader::new(file.take(FILE_BYTES));
        if is_binary(lines.fill_buf().map_err(fault)?) {
            return Ok(());
        }
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let taken = lines.read_until(b'\n', &mut line).map_err(fault)?;
            if taken == 0 || self.full.is_some() || (number % LINES_AT_ONCE == 0 && self.stop.is_asked()) {
                break;
            }
            self.bytes += taken as u64;
            let bare = line.strip_suffix(b"\n").unwrap_or(&line);
            let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
            if self.regex.is_match(bare) {
                self.show(path, number, bare);
            }
        }
        Ok(())
    }

    fn show(&mut self, path: &Path, number: usize, line: &[u8]) {
        if self.matches == self.most {
            self.full = Some(format!("cut after {} matches", self.most));
            return;
        }
        let text = String::from_utf8_lossy(line);
        let kept = beginning(&text, LINE_BYTES);
        let cut = if kept.len() < text.len() { "…" } else { "" };
        let row = format!("{}:{number}:{kept}{cut}\n", path.display());
        if self.said.len() + row.len() > SHOWN_BYTES {
            self.full = Some(format!("cut after {} matches, which are long", self.matches));
            return;
        }
        self.matches += 1;
        self.said.push_str(&row);
    }

    fn close(mut self, partly: bool) -> String {
        if self.matches == 0 {
            self.said.push_str("[no match]\n");
        }
        if let Some(full) = self.full {
            self.said.push_str(&format!("[{full}: there may be more]\n"));
        } else if self.stop.is_asked() {
            self.said.push_str("[stopped, because it took too long: there may be more]\n");
        } else if partly {
            self.said.push_str("[some of it may not be looked at, could not, or is too much]\n");
        }
        if self.large > 0 {
            self.said.push_str(&format!("[{} files of more than {FILE_BYTES} bytes were passed by]\n", self.large));
        }
        self.said
    }
}
