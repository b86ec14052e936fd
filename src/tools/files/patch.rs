//! `apply_patch`: the envelope that models were taught, and no other. Pure: text in, new texts out.
//!
//! ```text
//! *** Begin Patch
//! *** Add File: path              followed by `+` lines
//! *** Delete File: path
//! *** Update File: path
//! *** Move to: path               if it is to have another name
//! @@ a line that comes before     optional; where a hunk is looked for
//!  context
//! -removed
//! +added
//! *** End of File                 optional: the hunk is the end of the file
//! *** End Patch
//! ```
//! A hunk is looked for from where the one before it ended, and behind its `@@` line if it has one: exactly, and if it
//! is not there, without regard to white space at the ends of lines. Where it could be in two places and no `@@` line
//! says which, it is refused; a patch in the wrong place is worse than none. Line ends, and whether the last line has
//! one, stay as they are in the file.
//!
//! Absent on purpose: unified diffs (their line numbers are what models get wrong), and looser matching.

use super::edit::ends_lines_with_crlf;

const BEGIN: &str = "*** Begin Patch";
const END: &str = "*** End Patch";
const END_OF_FILE: &str = "*** End of File";

/// What a patch says about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Add { path: String, text: String },
    Delete { path: String },
    Update { path: String, moved: Option<String>, hunks: Vec<Hunk> },
}

/// Lines in place of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hunk {
    /// Behind `@@`: a line that comes somewhere before it.
    pub behind: Vec<String>,
    pub lines: Vec<Line>,
    pub at_end: bool,
}

/// A line of a hunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Context(String),
    Removed(String),
    Added(String),
}

impl Hunk {
    /// The lines that are looked for.
    fn old(&self) -> Vec<&str> {
        let is_old = |line: &'_ Line| !matches!(line, Line::Added(_));
        self.lines.iter().filter(|line| is_old(line)).map(Line::text).collect()
    }
}

impl Line {
    fn text(&self) -> &str {
        let (Self::Context(text) | Self::Removed(text) | Self::Added(text)) = self;
        text
    }
}

/// Why a patch cannot be read, or does not fit its file. Lines of the patch are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPatch {
    #[error("a patch begins with the line `{BEGIN}` and ends with `{END}`; a unified diff is not taken")]
    Envelope,
    #[error("line {0} of the patch: expected `*** Add File: `, `*** Delete File: ` or `*** Update File: `")]
    Header(usize),
    #[error("line {0} of the patch: a line of a new file begins with `+`")]
    Added(usize),
    #[error("line {0} of the patch: a line of a hunk begins with a space, `+` or `-`")]
    Line(usize),
    #[error("line {0} of the patch: the file is not to be changed: no hunk, and no `*** Move to: `")]
    NoHunk(usize),
    #[error("the patch is empty")]
    Empty,
    #[error("hunk {hunk}: the line `{line}` behind `@@` is not in the rest of the file")]
    NoSuchLine { hunk: usize, line: String },
    #[error("hunk {hunk} does not fit: these lines are not in the rest of the file:\n{lines}")]
    Absent { hunk: usize, lines: String },
    #[error("hunk {hunk} fits in several places, from lines {lines} on: give more context, or an `@@` line before it")]
    Ambiguous { hunk: usize, lines: String },
}

/// The paths that a patch names, whether it can be read or not: for whoever judges it.
pub fn paths(patch: &str) -> Vec<String> {
    let headers = ["*** Add File: ", "*** Delete File: ", "*** Update File: ", "*** Move to: "];
    let named = |line: &str| headers.iter().find_map(|header| line.trim_end().strip_prefix(header)).map(str::to_owned);
    patch.lines().filter_map(named).collect()
}

/// Reads a patch.
pub fn parse(patch: &str) -> Result<Vec<Part>, NoPatch> {
    let lines: Vec<&str> = patch.trim().lines().map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let inner = match lines.as_slice() {
        [first, inner @ .., last] if first.trim_end() == BEGIN && last.trim_end() == END => inner,
        _ => return Err(NoPatch::Envelope),
    };
    // The envelope is line 1.
    let mut rest = Lines { lines: inner, number: 2 };
    let mut parts = Vec::new();
    while let Some(line) = rest.next() {
        let number = rest.number - 1;
        let header = line.trim_end();
        if let Some(path) = header.strip_prefix("*** Add File: ") {
            parts.push(Part::Add { path: path.to_owned(), text: added(&mut rest)? });
        } else if let Some(path) = header.strip_prefix("*** Delete File: ") {
            parts.push(Part::Delete { path: path.to_owned() });
        } else if let Some(path) = header.strip_prefix("*** Update File: ") {
            let moved = rest.next_if(|line| line.strip_prefix("*** Move to: ")).map(|path| path.trim_end().to_owned());
            let hunks = hunks(&mut rest)?;
            if hunks.is_empty() && moved.is_none() {
                return Err(NoPatch::NoHunk(number));
            }
            parts.push(Part::Update { path: path.to_owned(), moved, hunks });
        } else if !header.is_empty() {
            return Err(NoPatch::Header(number));
        }
    }
    if parts.is_empty() { Err(NoPatch::Empty) } else { Ok(parts) }
}

struct Lines<'a> {
    lines: &'a [&'a str],
    /// Of the next one.
    number: usize,
}

impl<'a> Lines<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.lines.first().copied()
    }

    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.lines.split_first()?;
        (self.lines, self.number) = (rest, self.number + 1);
        Some(first)
    }

    fn next_if<T>(&mut self, is: impl FnOnce(&'a str) -> Option<T>) -> Option<T> {
        let taken = is(self.peek()?)?;
        self.next();
        Some(taken)
    }

    /// Whether the part goes on.
    fn goes_on(&self) -> bool {
        self.peek().is_some_and(|line| !line.starts_with("*** ") || line.trim_end() == END_OF_FILE)
    }
}

fn added(rest: &mut Lines<'_>) -> Result<String, NoPatch> {
    let mut text = String::new();
    while rest.goes_on() {
        let number = rest.number;
        match rest.next().and_then(|line| line.strip_prefix('+')) {
            Some(line) => {
                text.push_str(line);
                text.push('\n');
            }
            None => return Err(NoPatch::Added(number)),
        }
    }
    Ok(text)
}

fn hunks(rest: &mut Lines<'_>) -> Result<Vec<Hunk>, NoPatch> {
    let mut hunks: Vec<Hunk> = Vec::new();
    // A hunk that has no line yet, after `@@`.
    let mut open = false;
    // Lines at the end of the last hunk that are really empty. What is behind them says whether they are context.
    let mut empty = 0;
    while rest.goes_on() {
        let number = rest.number;
        let Some(line) = rest.next() else { break };
        if line.trim_end() == END_OF_FILE {
            match hunks.last_mut() {
                Some(hunk) => (hunk.at_end, empty) = (true, 0),
                None => return Err(NoPatch::Line(number)),
            }
            continue;
        }
        if let Some(behind) = line.strip_prefix("@@") {
            close(&mut hunks, &mut empty);
            if !open {
                hunks.push(Hunk::default());
            }
            open = true;
            let behind = behind.strip_prefix(' ').unwrap_or(behind);
            if let (Some(hunk), false) = (hunks.last_mut(), behind.trim().is_empty()) {
                hunk.behind.push(behind.to_owned());
            }
            continue;
        }
        if hunks.last().is_none_or(|hunk| hunk.at_end && !open) {
            hunks.push(Hunk::default());
        }
        open = false;
        let Some(hunk) = hunks.last_mut() else { break };
        let text = line.get(1..).unwrap_or_default().to_owned();
        empty = if line.is_empty() { empty + 1 } else { 0 };
        hunk.lines.push(match line.chars().next() {
            // Editors and models drop the space of an empty line.
            None | Some(' ') => Line::Context(text),
            Some('-') => Line::Removed(text),
            Some('+') => Line::Added(text),
            Some(_) => return Err(NoPatch::Line(number)),
        });
    }
    close(&mut hunks, &mut empty);
    hunks.retain(|hunk| !hunk.lines.is_empty());
    Ok(hunks)
}

/// Empty lines between two hunks, or before the next part, are there for the eye.
fn close(hunks: &mut [Hunk], empty: &mut usize) {
    if let Some(last) = hunks.last_mut() {
        last.lines.truncate(last.lines.len() - *empty);
    }
    *empty = 0;
}

/// A file's text with its hunks applied.
pub fn apply(held: &[u8], hunks: &[Hunk]) -> Result<Vec<u8>, NoPatch> {
    let end: &[u8] = if ends_lines_with_crlf(held) { b"\r\n" } else { b"\n" };
    let mut lines: Vec<Vec<u8>> = held.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    // Every line gets an end, and the last one loses it again if it had none.
    let unended = lines.last().is_some_and(|line| !line.ends_with(b"\n"));
    if let (Some(last), true) = (lines.last_mut(), unended) {
        last.extend_from_slice(end);
    }
    let mut applied = Vec::with_capacity(held.len());
    let mut from = 0;
    for (number, hunk) in hunks.iter().enumerate() {
        let at = find(&lines, from, number + 1, hunk)?;
        applied.extend(lines[from..at].iter().flatten());
        from = at;
        for line in &hunk.lines {
            match line {
                // As it is in the file, with what is at its end.
                Line::Context(_) => applied.extend_from_slice(&lines[from]),
                Line::Removed(_) => {}
                Line::Added(text) => {
                    applied.extend_from_slice(text.as_bytes());
                    applied.extend_from_slice(end);
                    continue;
                }
            }
            from += 1;
        }
    }
    applied.extend(lines[from..].iter().flatten());
    if unended && applied.ends_with(end) {
        applied.truncate(applied.len() - end.len());
    }
    Ok(applied)
}

/// Where a hunk belongs: the number of its first line, from 0.
fn find(lines: &[Vec<u8>], from: usize, hunk: usize, wanted: &Hunk) -> Result<usize, NoPatch> {
    let mut from = from;
    for behind in &wanted.behind {
        let found = [Loose::No, Loose::Yes]
            .into_iter()
            .find_map(|loose| (from..lines.len()).find(|at| is_line(&lines[*at], behind, loose)));
        // Models leave out the indentation of a line that only says where.
        let found = found
            .or_else(|| (from..lines.len()).find(|at| String::from_utf8_lossy(&lines[*at]).trim() == behind.trim()));
        let at = found.ok_or_else(|| NoPatch::NoSuchLine { hunk, line: behind.clone() })?;
        from = at + 1;
    }
    let old = wanted.old();
    if old.is_empty() {
        return Ok(if wanted.behind.is_empty() || wanted.at_end { lines.len() } else { from });
    }
    for loose in [Loose::No, Loose::Yes] {
        let mut fits = places(lines, from, &old, loose);
        if wanted.at_end {
            fits.retain(|at| at + old.len() == lines.len());
        }
        match fits.as_slice() {
            [] => {}
            [at] => return Ok(*at),
            [at, ..] if !wanted.behind.is_empty() => return Ok(*at),
            several => {
                let lines: Vec<String> = several.iter().take(5).map(|at| (at + 1).to_string()).collect();
                return Err(NoPatch::Ambiguous { hunk, lines: lines.join(", ") });
            }
        }
    }
    Err(NoPatch::Absent { hunk, lines: old.join("\n") })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loose {
    No,
    Yes,
}

fn is_line(held: &[u8], wanted: &str, loose: Loose) -> bool {
    let bare = held.strip_suffix(b"\n").unwrap_or(held);
    let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
    match loose {
        Loose::No => bare == wanted.as_bytes(),
        Loose::Yes => bare.trim_ascii_end() == wanted.as_bytes().trim_ascii_end(),
    }
}

fn places(lines: &[Vec<u8>], from: usize, wanted: &[&str], loose: Loose) -> Vec<usize> {
    let last = lines.len().checked_sub(wanted.len());
    let fits = |at: &usize| wanted.iter().zip(&lines[*at..]).all(|(wanted, held)| is_line(held, wanted, loose));
    last.map_or_else(Vec::new, |last| (from..=last).filter(fits).collect())
}

#[cfg(test)]
mod tests;
