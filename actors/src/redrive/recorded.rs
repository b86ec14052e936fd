//! A trace as it is read, by thread, and as replicas are told of it.

use std::{
    io::{self, BufRead},
    time::Duration,
};

use raddle_domain::{
    event::Record,
    id::{Seq, ThreadKey},
    sound::Sound,
    time::UnixMs,
    trace::{BadTrace, Came, Canon, Deltas, Header, Line, Logged, Told},
};
use uuid::Uuid;

use super::{
    deletes, is_skipped,
    replica::{Replica, places},
    world,
};
use crate::host::World;

/// A whole trace.
#[derive(Debug, Clone)]
pub struct Trace {
    pub header: Header,
    /// In the order in which they begin.
    pub threads: Vec<Recorded>,
    /// The last line, if it was cut off while it was written and is left out.
    pub cut: Option<usize>,
}

/// What one thread was told.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub key: ThreadKey,
    pub lines: Vec<Numbered>,
}

/// A line, and where it stands in its file, from 1.
#[derive(Debug, Clone)]
pub struct Numbered {
    pub number: usize,
    pub line: Line,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Bad(#[from] BadTrace),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Trace {
    /// The longest time in which nothing was told.
    pub fn longest_pause(&self) -> Duration {
        let mut moments: Vec<_> =
            self.threads.iter().flat_map(|thread| &thread.lines).map(|line| line.line.at).collect();
        moments.sort_unstable();
        let pauses = moments.windows(2).map(|pair| pair[1].since(pair[0]));
        Duration::from_millis(pauses.max().unwrap_or_default())
    }

    /// Reads all of it. A last line without an end that is none was cut off while it was written, and is left out, unless
    /// nothing but it stands behind the header.
    pub fn read(mut from: impl BufRead) -> Result<Self, ReadError> {
        // A line may be cut off within a character.
        let mut bytes = Vec::new();
        from.read_until(b'\n', &mut bytes)?;
        let header = Header::read(String::from_utf8_lossy(&bytes).trim_end())?;
        let mut cut = None;
        let mut threads: Vec<Recorded> = Vec::new();
        let mut known = std::collections::HashMap::new();
        for number in 2.. {
            bytes.clear();
            if from.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let bad = |why: &str| Err(BadTrace::Line { line: number, why: why.to_owned() }.into());
            let read = match std::str::from_utf8(&bytes) {
                Ok(text) => Line::read(number, text.trim_end()),
                Err(why) => Err(BadTrace::Line { line: number, why: why.to_string() }),
            };
            let line = match read {
                Ok(line) => line,
                Err(_) if !bytes.ends_with(b"\n") && !threads.is_empty() => {
                    cut = Some(number);
                    break;
                }
                Err(why) => return Err(why.into()),
            };
            let key = line.key();
            match (known.get(&key), &line.told, &line.came) {
                (None, Told::Created(_) | Told::Given, Came::Events(events)) if !events.is_empty() => {
                    known.insert(key, threads.len());
                    threads.push(Recorded { key, lines: vec![Numbered { number, line }] });
                }
                (None, Told::Created(_) | Told::Given, _) => return bad("its thread begins with nothing"),
                (None, Told::Command { .. }, _) => return bad("no line before it says where its thread begins"),
                (Some(_), Told::Created(_) | Told::Given, _) => return bad("its thread is there already"),
                (Some(at), Told::Command { .. }, _) => threads[*at].lines.push(Numbered { number, line }),
            }
        }
        Ok(Self { header, threads, cut })
    }
}

impl Recorded {
    /// The log as it was recorded.
    pub fn log(&self) -> impl Iterator<Item = &Record> {
        self.lines
            .iter()
            .flat_map(|Numbered { line, .. }| match &line.came {
                Came::Events(events) => events.as_slice(),
                Came::Refused { .. } => &[],
            })
            .map(|Logged(record)| record)
    }

    /// The line that an event came of.
    pub fn line_of(&self, seq: Seq) -> Option<usize> {
        let came_of = |numbered: &&Numbered| match &numbered.line.came {
            Came::Events(events) => events.last().is_some_and(|Logged(last)| last.seq >= seq),
            Came::Refused { .. } => false,
        };
        self.lines.iter().find(came_of).map(|numbered| numbered.number)
    }
}

/// A recorded thread, ready to be told under other names.
pub(super) struct Prepared {
    pub key: ThreadKey,
    pub recorded: Recorded,
    pub lines: Vec<Retelling>,
    pub canon: Canon,
    pub digest: String,
    /// Whether nothing was left open.
    pub rests: bool,
    /// Whether nothing is left of it.
    pub deleted: bool,
}

/// What a line says, with the places of its ids.
pub(super) struct Retelling {
    pub number: usize,
    pub at: UnixMs,
    draining: bool,
    minted: Vec<Uuid>,
    told: Text,
    came: Came,
}

struct Text {
    json: String,
    places: Vec<usize>,
}

impl Text {
    fn of(value: &impl serde::Serialize) -> Self {
        // It was read from JSON.
        let json = serde_json::to_string(value).expect("a line is JSON");
        let places = places(&json);
        Self { json, places }
    }
}

impl Prepared {
    pub fn of(recorded: &Recorded) -> Self {
        let canon = Canon::of(recorded.log(), Deltas::Joined);
        let lines = recorded.lines.iter().map(|Numbered { number, line }| Retelling {
            number: *number,
            at: line.at,
            draining: line.draining,
            minted: line.minted.clone(),
            told: Text::of(&line.told),
            came: line.came.clone(),
        });
        let deleted = recorded.lines.iter().any(|Numbered { line, .. }| match (&line.told, &line.came) {
            (Told::Command { command, .. }, Came::Events(_)) => deletes(command),
            _ => false,
        });
        Self {
            key: recorded.key,
            lines: lines.collect(),
            digest: canon.digest(),
            rests: Sound::of(recorded.log()).is_ok_and(|sound| sound.rests().is_ok()),
            canon,
            deleted,
            recorded: recorded.clone(),
        }
    }

    pub fn first_line(&self) -> usize {
        self.lines.first().map_or(0, |line| line.number)
    }
}

impl Retelling {
    pub fn told(&self, replica: Replica) -> Told {
        let json = replica.at(&self.told.json, &self.told.places);
        // Ids are replaced by ids.
        serde_json::from_str(&json).expect("it is a line under other ids")
    }

    pub fn world(&self, replica: Replica) -> World {
        world(self.at, self.draining, &self.minted, replica)
    }

    pub fn is_skipped(&self) -> bool {
        is_skipped(&self.came)
    }

    /// The log that the line gives.
    pub fn log(&self, replica: Replica) -> Vec<Record> {
        let Came::Events(events) = &self.came else { return Vec::new() };
        let told = events.iter().map(|logged| {
            let text = Text::of(logged);
            let Logged(record) =
                serde_json::from_str(&replica.at(&text.json, &text.places)).expect("it is an event under other ids");
            record
        });
        told.collect()
    }

    /// Where the log ended by it, if it moved, or how it was refused.
    pub fn head(&self) -> Result<Option<Seq>, &str> {
        match &self.came {
            Came::Events(events) => Ok(events.last().map(|Logged(last)| last.seq)),
            Came::Refused { why, .. } => Err(why),
        }
    }
}
