//! A run as lines of JSON: a header, the events of its log as they are stored, an end.
//!
//! ```text
//! {"format":"raddle.run","version":1,"run_id":"run_…","events":3}
//! {"seq":1,…}
//! {"seq":2,…}
//! {"seq":3,…}
//! {"end":true,"sha256":"…"}          over the lines of the events, each with its line end
//! ```
//! A reader takes nothing on trust: the lines must be those of the header, dense, and a log that a run can have written.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Record, RunState, event};
use crate::id::{RunId, Seq};

const FORMAT: &str = "raddle.run";
/// The version that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    run_id: RunId,
    events: Seq,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    end: bool,
    sha256: String,
}

/// A line that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    pub why: String,
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes lines.
pub struct Writer(Sha256);

impl Writer {
    /// A writer, and its first line.
    pub fn begin(run_id: RunId, events: Seq) -> (Self, Vec<u8>) {
        let header = Header { format: FORMAT.to_owned(), version: VERSION, run_id, events };
        (Self(Sha256::new()), line(&header))
    }

    /// Adds the line of an event to `out`.
    pub fn event(&mut self, json: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(json);
        out.push(b'\n');
        self.0.update(&out[from..]);
    }

    /// The last line.
    pub fn end(self) -> Vec<u8> {
        line(&End { end: true, sha256: hex(self.0) })
    }
}

fn line(of: &impl Serialize) -> Vec<u8> {
    let mut line = super::image::bytes(of);
    line.push(b'\n');
    line
}

/// Reads lines, one after the other, and makes the run that they tell of.
#[derive(Default)]
pub struct Reader {
    line: u64,
    header: Option<Header>,
    state: Option<RunState>,
    digest: Sha256,
    ended: bool,
}

impl Reader {
    /// Takes the next line, without its end.
    pub fn take(&mut self, text: &[u8]) -> Result<(), BadLine> {
        self.line += 1;
        let bad = |why: String| BadLine { line: self.line, why };
        let Some(header) = &self.header else {
            let header: Header = serde_json::from_slice(text).map_err(|why| bad(format!("not a header: {why}")))?;
            if header.format != FORMAT || header.version > VERSION {
                let why = format!("{} {} is not read by this build", header.format, header.version);
                return Err(bad(why));
            }
            self.header = Some(header);
            return Ok(());
        };
        if self.ended {
            return Err(bad("something follows the end".to_owned()));
        }
        if self.seq() == header.events {
            let end: End = serde_json::from_slice(text).map_err(|why| bad(format!("not the end: {why}")))?;
            let sha256 = hex(std::mem::take(&mut self.digest));
            if !end.end || end.sha256 != sha256 {
                return Err(bad(format!("the events have the digest {sha256}, not {}", end.sha256)));
            }
            self.ended = true;
            return Ok(());
        }
        let record = Record::decode(event::SCHEMA, text).map_err(|why| bad(why.to_string()))?;
        if record.run_id != header.run_id {
            return Err(bad("the event is another run's".to_owned()));
        }
        match &mut self.state {
            Some(state) => state.apply(&record).map_err(|why| bad(why.to_string()))?,
            None => self.state = Some(RunState::begin(&record).map_err(|why| bad(why.to_string()))?),
        }
        self.digest.update(text);
        self.digest.update(b"\n");
        Ok(())
    }

    fn seq(&self) -> Seq {
        self.state.as_ref().map_or(0, RunState::seq)
    }

    /// The run, once all of it was read.
    pub fn finish(self) -> Result<RunState, BadLine> {
        let line = self.line + 1;
        match self.state {
            Some(state) if self.ended => Ok(state),
            _ => Err(BadLine { line, why: "the lines end before the run does".to_owned() }),
        }
    }
}
