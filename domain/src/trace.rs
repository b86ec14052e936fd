//! A thread's mailbox as lines: what it was told, in which order, in which world, and what came of it.
//!
//! A trace is JSON Lines: one [`Header`], then a [`Line`] for each thing that a thread was told, in the order in which it
//! was told to that thread; lines of several threads may be mixed. A thread's first line says where it begins
//! ([`Told::Created`] or [`Told::Given`]). A line holds everything that the rules looked at: the moment, the ids that
//! were minted, whether the server was going down; with the limits and prices of the header, the same rules make the same
//! events of it, to the last byte.
//!
//! What is absent on purpose: how commands were grouped into appends, which changes no event.

mod canon;
mod derive;
mod rerun;

use std::fmt;

use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    command::{Command, Limits, NewThread},
    event::{Record, SCHEMA},
    id::{Seq, TenantId, ThreadId, ThreadKey},
    price::Prices,
    time::UnixMs,
};

pub use self::{
    canon::{Canon, Deltas, Difference},
    derive::{BadLog, Derived, derive, derive_behind, prices},
    rerun::{Differs, Minted, Rerun, Why},
};

/// The version of the format that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] of the build that wrote it; the key says what the file is.
    pub raddle_trace: u32,
    pub recorded_at: UnixMs,
    pub limits: Limits,
    pub prices: Prices,
}

/// Something that a thread was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub tenant: TenantId,
    pub thread: ThreadId,
    /// When it was judged.
    pub at: UnixMs,
    /// Whether the server was going down.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// The ids that the rules asked for, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub minted: Vec<Uuid>,
    pub told: Told,
    pub came: Came,
}

/// What a thread was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// To be. The first id that was minted is not the thread's: that is in the line.
    Created(Box<NewThread>),
    /// To be what this log says: it was there before the recording began, or is a fork, whose past is another's.
    /// What comes of it is the log.
    Given,
    Command {
        command: Box<Command>,
        /// Refuse unless the log ends here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_match: Option<Seq>,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    /// These events, none if it was so already.
    Events(Vec<Logged>),
    /// Nothing, anywhere, because of this.
    Refused {
        why: String,
        /// Whether it was for what the tenant has elsewhere, which a replay does not know.
        #[serde(default, skip_serializing_if = "is_false")]
        quota: bool,
    },
}

/// A record as it stands in a line: as it was stored and streamed.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged(pub Record);

impl Serialize for Logged {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Logged {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let json = <Box<RawValue>>::deserialize(from)?;
        Record::decode(SCHEMA, json.get().as_bytes()).map(Self).map_err(D::Error::custom)
    }
}

/// Why a text is no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTrace {
    #[error("line {line} is no line of a trace: {why}")]
    Line { line: usize, why: String },
    #[error("the first line is no header of a trace: {0}")]
    Header(String),
    #[error("the trace has format {0}; this build reads up to {VERSION}")]
    Newer(u32),
}

impl Header {
    pub const fn new(recorded_at: UnixMs, limits: Limits, prices: Prices) -> Self {
        Self { raddle_trace: VERSION, recorded_at, limits, prices }
    }

    /// Reads the first line.
    pub fn read(text: &str) -> Result<Self, BadTrace> {
        #[derive(Deserialize)]
        struct Version {
            raddle_trace: u32,
        }
        let bad = |why: serde_json::Error| BadTrace::Header(why.to_string());
        let Version { raddle_trace } = serde_json::from_str(text).map_err(bad)?;
        if raddle_trace == 0 {
            return Err(BadTrace::Header("there is no format 0".to_owned()));
        }
        if raddle_trace > VERSION {
            return Err(BadTrace::Newer(raddle_trace));
        }
        serde_json::from_str(text).map_err(bad)
    }
}

impl Line {
    pub const fn key(&self) -> ThreadKey {
        ThreadKey { tenant: self.tenant, thread: self.thread }
    }

    /// Reads a line that is not the first; `line` counts from 1.
    pub fn read(line: usize, text: &str) -> Result<Self, BadTrace> {
        serde_json::from_str(text).map_err(|why| BadTrace::Line { line, why: why.to_string() })
    }
}

/// A line of the file, without its end.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A line of the file, without its end.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

const fn is_false(flag: &bool) -> bool {
    !*flag
}
