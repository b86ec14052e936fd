//! What became of replicas, beside what was recorded.

use std::fmt;

use raddle_domain::{
    event::Record,
    id::{Seq, ThreadKey},
    ports::Chunk,
    sound::Sound,
    trace::{Canon, Deltas},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, task::JoinHandle};

use super::{Retold, Slip, recorded::Prepared};
use crate::{
    disk,
    handle::{Error, Runtime},
    subscription::Next,
};

/// Events that are read back at a time.
const PAGE: usize = 4_000;
const PAGE_BYTES: usize = 1024 * 1024;

/// What a replay came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Whether every replica was what was recorded.
    pub equal: bool,
    pub replicas: u64,
    /// Lines that were told, in all replicas.
    pub told: u64,
    /// Of them, those that were refused again.
    pub refused: u64,
    /// Lines that were passed over: they had been refused for a quota.
    pub skipped: u64,
    /// Events that were read back and compared.
    pub events: u64,
    /// Replicas that were watched; each saw what is stored.
    pub watched: u64,
    /// Replicas that differ.
    pub differing: u64,
    /// How often a thread was unloaded, and the commits that it took.
    pub unloaded: u64,
    pub commits: u64,
    pub seconds: f64,
    pub threads: Vec<ThreadReport>,
    /// The first of them.
    pub differences: Vec<Difference>,
}

/// A recorded thread, and how its replicas fared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ThreadReport {
    pub thread: String,
    pub lines: usize,
    pub events: usize,
    /// Of the log in canonical form.
    pub digest: String,
    pub equal: u32,
    pub differing: u32,
}

/// The first place in which a replica is not what was recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The recorded thread.
    pub thread: String,
    pub replica: u32,
    /// The line of the trace that it came of.
    pub line: Option<usize>,
    /// The event.
    pub seq: Option<Seq>,
    pub what: &'static str,
    pub expected: Option<String>,
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thread, replica, line, seq, what, expected, found } = self;
        write!(f, "replica {replica} of {thread}")?;
        if let Some(line) = line {
            write!(f, ", line {line} of the trace")?;
        }
        if let Some(seq) = seq {
            write!(f, ", event {seq}")?;
        }
        write!(f, ": {what}")?;
        write!(f, "\n  expected: {}", expected.as_deref().unwrap_or("nothing"))?;
        write!(f, "\n  found:    {}", found.as_deref().unwrap_or("nothing"))
    }
}

/// What is stored of a replica, and what was seen of it.
pub(super) struct Found {
    of: usize,
    told: u64,
    refused: u64,
    skipped: u64,
    events: u64,
    watched: bool,
    difference: Option<Difference>,
}

impl Report {
    pub(super) fn new(threads: &[Prepared], copies: u32) -> Self {
        let threads: Vec<_> = threads
            .iter()
            .map(|thread| ThreadReport {
                thread: thread.key.to_string(),
                lines: thread.lines.len(),
                events: thread.recorded.log().count(),
                digest: thread.digest.clone(),
                equal: 0,
                differing: 0,
            })
            .collect();
        let replicas = threads.len() as u64 * u64::from(copies);
        Self { equal: true, replicas, threads, ..Self::default() }
    }

    pub(super) fn add(&mut self, threads: &[Prepared], found: Found, shown: usize) {
        let Found { of, told, refused, skipped, events, watched, difference } = found;
        debug_assert_eq!(self.threads.len(), threads.len());
        self.told += told;
        self.refused += refused;
        self.skipped += skipped;
        self.events += events;
        self.watched += u64::from(watched);
        match difference {
            None => self.threads[of].equal += 1,
            Some(difference) => {
                self.equal = false;
                self.differing += 1;
                self.threads[of].differing += 1;
                self.differences.push(difference);
                // Whichever is compared first: the report is the same.
                self.differences.sort_by(|a, b| (a.replica, &a.thread).cmp(&(b.replica, &b.thread)));
                self.differences.truncate(shown);
            }
        }
    }
}

impl Found {
    pub async fn read(runtime: &Runtime, thread: &Prepared, retold: Retold) -> Result<Self, Error> {
        let Retold { of, replica, key, told, skipped, refused, slipped, watcher } = retold;
        let mut found = Self { of, told, refused, skipped, events: 0, watched: watcher.is_some(), difference: None };
        let differs = |line, seq, what, expected: Option<String>, found: Option<String>| Difference {
            thread: thread.key.to_string(),
            replica: replica.0,
            line,
            seq,
            what,
            expected,
            found,
        };
        let slip = |Slip { line, expected, found, .. }: Slip| {
            differs(Some(line), None, "something else came of it", Some(expected), Some(found))
        };
        if thread.deleted {
            let gone = matches!(runtime.thread(key).await, Err(Error::NotFound(_)));
            found.difference = match (slipped, gone) {
                (Some(slipped), _) => Some(slip(slipped)),
                (None, false) => Some(differs(None, None, "it was deleted, and is there", None, None)),
                (None, true) => None,
            };
            if let Some(watcher) = watcher {
                watcher.saw(None).await?;
            }
            return Ok(found);
        }
        let (log, seen) = stored(runtime, key).await?;
        found.events = log.len() as u64;
        let canon = Canon::of(&log, Deltas::Joined);
        let unsound = Sound::of(&log).and_then(|sound| if thread.rests { sound.rests() } else { Ok(()) }).err();
        let unlike = thread.canon.first_difference(&canon).map(|first| {
            let seq = first.expected.or(first.found).map(|(seq, _)| seq);
            let line = first.expected.and_then(|(seq, _)| thread.recorded.line_of(seq));
            let text = |event: Option<(Seq, &str)>| event.map(|(_, json)| json.to_owned());
            let line = line.or_else(|| slipped.as_ref().map(|slip| slip.line));
            differs(line, seq, "the first event that differs", text(first.expected), text(first.found))
        });
        found.difference = match (unlike, slipped, unsound) {
            (Some(unlike), Some(slipped), _)
                if slipped.refused && unlike.line.is_none_or(|line| slipped.line <= line) =>
            {
                Some(slip(slipped))
            }
            (Some(unlike), ..) => Some(unlike),
            (None, Some(slipped), _) => Some(slip(slipped)),
            (None, None, Some(unsound)) => {
                Some(differs(None, Some(unsound.seq), "the log is not sound", None, Some(unsound.to_string())))
            }
            (None, None, None) => None,
        };
        if let Some(watcher) = watcher {
            let last = log.last().map(|last| last.seq);
            let saw = watcher.saw(last).await?;
            if saw != seen && found.difference.is_none() {
                let what = "a watcher saw something else than is stored";
                found.difference = Some(differs(None, last, what, Some(seen.hex()), Some(saw.hex())));
            }
        }
        Ok(found)
    }
}

/// The events of a log, as they are stored and streamed.
#[derive(Clone, Default)]
struct Seen(Sha256);

impl Seen {
    fn event(&mut self, seq: Seq, json: &[u8]) {
        self.0.update(seq.to_be_bytes());
        self.0.update(json);
    }

    fn hex(&self) -> String {
        self.0.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.hex() == other.hex()
    }
}

/// Reads a whole log back.
async fn stored(runtime: &Runtime, key: ThreadKey) -> Result<(Vec<Record>, Seen), Error> {
    let (mut log, mut seen, mut after) = (Vec::new(), Seen::default(), 0);
    loop {
        let chunks: Vec<Chunk> = runtime.log_page(key, after, PAGE, PAGE_BYTES).await?;
        let Some(last) = chunks.last() else { return Ok((log, seen)) };
        after = last.last();
        for (seq, event) in chunks.iter().flat_map(|chunk| (chunk.first..).zip(&chunk.events)) {
            seen.event(seq, &event.json);
        }
        for record in disk::records(key, &chunks) {
            log.push(record.map_err(|why| Error::ThreadUnavailable(why.to_string()))?);
        }
    }
}

/// Somebody who watches a replica while it is told.
pub(super) struct Watcher {
    until: watch::Sender<Option<Seq>>,
    sees: JoinHandle<Result<Seen, Error>>,
}

impl Watcher {
    /// From the beginning.
    pub async fn of(runtime: &Runtime, key: ThreadKey) -> Result<Self, Error> {
        let (until, mut ends) = watch::channel(None);
        let mut watch = runtime.subscribe(key, 0).await?.uncounted();
        let runtime = runtime.clone();
        let sees = tokio::spawn(async move {
            let mut seen = Seen::default();
            loop {
                if ends.borrow_and_update().is_some_and(|last| watch.after() >= last) {
                    return Ok(seen);
                }
                let next = tokio::select! {
                    next = watch.next() => next?,
                    _ = ends.changed() => continue,
                };
                next.events().for_each(|(seq, event)| seen.event(seq, &event.json));
                match next {
                    // Cut off for being slow: it goes on where it was.
                    Next::Gap { after } => watch = runtime.subscribe(key, after).await?.uncounted(),
                    Next::Shutdown { .. } | Next::Deleted => return Ok(seen),
                    Next::Stored(_) | Next::Live { .. } => {}
                }
            }
        });
        Ok(Self { until, sees })
    }

    /// What it has seen once it has seen the event at `last`, or the deletion.
    async fn saw(self, last: Option<Seq>) -> Result<Seen, Error> {
        self.until.send_replace(last);
        self.sees.await.map_err(|why| Error::Internal(why.to_string()))?
    }
}
