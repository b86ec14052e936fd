//! `read_file`: the lines of a file, each behind its number, which is how models talk about lines.

use std::io::{BufRead, BufReader, Read};

use cap_std::fs::Dir;
use serde::Deserialize;

use super::{
    place::{Down, Fault, open},
    shown::{beginning, is_binary},
};

/// The lines that are shown unless it is said how many, and the most.
pub const LINES: usize = 2_000;
pub const MOST_LINES: usize = 10_000;

/// What is shown at once, of a file and of one line.
const SHOWN_BYTES: usize = 64 * 1024;
const LINE_BYTES: usize = 2_000;

/// How far into a file lines are looked for.
const SCANNED_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug, Deserialize)]
pub struct Arguments {
    pub path: String,
    pub offset: Option<usize>,
    pub limit: Option<usize>,
}

pub fn read(dir: &Dir, arguments: &Arguments) -> Result<String, Fault> {
    let path = Down::new(&arguments.path)?;
    let (file, size) = open(dir, path.as_path())?;
    let fault = |why| Fault::of(path.as_path(), why);
    let mut lines = BufReader::new(file.take(SCANNED_BYTES));
    if is_binary(lines.fill_buf().map_err(fault)?) {
        return Ok(format!("[a binary file of {size} bytes: not shown]"));
    }
    let first = arguments.offset.unwrap_or(1).max(1);
    let last = first.saturating_add(arguments.limit.unwrap_or(LINES).clamp(1, MOST_LINES) - 1);
    let mut page = Page::default();
    let (mut line, mut read) = (Vec::new(), 0);
    loop {
        line.clear();
        let taken = lines.read_until(b'\n', &mut line).map_err(fault)?;
        if taken == 0 {
            break;
        }
        read += taken as u64;
        page.total += 1;
        if (first..=last).contains(&page.total) && !page.full {
            page.add(&line);
        }
    }
    if page.total < first && page.total > 0 {
        return Err(Fault::Said(format!("`{path}` has only {} lines", page.total)));
    }
    Ok(page.close(size, read))
}

/// What is shown, as it fills.
#[derive(Default)]
struct Page {
    text: String,
    /// Lines of the file, as far as it was read.
    total: usize,
    shown: usize,
    full: bool,
    crlf: bool,
    lossy: bool,
    unended: bool,
}

impl Page {
    fn add(&mut self, line: &[u8]) {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        self.unended = bare.len() == line.len();
        let bare = match bare.strip_suffix(b"\r") {
            Some(bare) if !self.unended => {
                self.crlf = true;
                bare
            }
            _ => bare,
        };
        let text = String::from_utf8_lossy(bare);
        self.lossy |= matches!(text, std::borrow::Cow::Owned(_));
        let kept = beginning(&text, LINE_BYTES);
        let cut =
            if kept.len() < text.len() { format!("… [the line has {} bytes]", bare.len()) } else { String::new() };
        let row = format!("{}\t{kept}{cut}\n", self.total);
        if self.text.len() + row.len() > SHOWN_BYTES {
            self.full = true;
            return;
        }
        self.text.push_str(&row);
        self.shown = self.total;
    }

    fn close(mut self, size: u64, read: u64) -> String {
        let mut notes = Vec::new();
        if size == 0 && self.total == 0 {
            notes.push("the file is empty".to_owned());
        }
        if self.shown < self.total {
            let of = if read < size { "more" } else { &self.total.to_string() };
            notes.push(format!("cut after line {} of {of}: go on with offset {}", self.shown, self.shown + 1));
        } else if read < size {
            notes.push(format!("the file has {size} bytes, and lines are read from the first {SCANNED_BYTES} only"));
        } else if self.unended {
            notes.push("the last line has no line end".to_owned());
        }
        if self.crlf {
            notes.push("lines end in CR LF".to_owned());
        }
        if self.lossy {
            notes.push("some bytes are not UTF-8, and shown as \u{fffd}".to_owned());
        }
        for note in notes {
            self.text.push_str(&format!("[{note}]\n"));
        }
        self.text
    }
}
