//! The rules, told again what a thread was told.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use uuid::Uuid;

use super::{Came, Header, Line, Logged, Told};
use crate::{
    command::{Refused, Request},
    event::Record,
    ports::{Boundless, Ids},
    thread::{Cx, Step, ThreadState},
};

/// The ids of a line, in its order. A rule that asks for more than were minted then gets others, that nothing is named
/// by.
#[derive(Debug)]
pub struct Minted {
    left: Mutex<std::vec::IntoIter<Uuid>>,
    more: AtomicU64,
}

impl Minted {
    pub fn new(minted: Vec<Uuid>) -> Self {
        Self { left: Mutex::new(minted.into_iter()), more: AtomicU64::new(0) }
    }
}

impl Ids for Minted {
    fn mint(&self) -> Uuid {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.next().unwrap_or_else(|| Uuid::from_u64_pair(u64::MAX, self.more.fetch_add(1, Relaxed)))
    }
}

/// A thread that is told the lines of a trace, and held to what they say came of them.
#[derive(Debug, Clone, Default)]
pub struct Rerun {
    state: Option<ThreadState>,
    log: Vec<Record>,
    lines: usize,
    skipped: usize,
}

/// The first line of which something else came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("line {line} of the thread: {why}")]
pub struct Differs {
    /// Among the lines of this thread, from 1.
    pub line: usize,
    pub why: Why,
}

/// How it differs.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Why {
    #[error("it was refused ({found}), and was not when it was recorded")]
    Refused { found: String },
    #[error("it was not refused, and was when it was recorded: {expected}")]
    Accepted { expected: String },
    #[error("it was refused for another reason: {found}; when it was recorded: {expected}")]
    OtherRefusal { expected: String, found: String },
    /// Boxed JSON of the two events; `None` is: no event.
    #[error("event {at} of the line is {}; when it was recorded: {}", shown(.found), shown(.expected))]
    Event { at: usize, expected: Option<String>, found: Option<String> },
    #[error("the line does not fit: {0}")]
    Misplaced(&'static str),
}

fn shown(event: &Option<String>) -> &str {
    event.as_deref().unwrap_or("missing")
}

impl Rerun {
    /// The log so far.
    pub fn log(&self) -> &[Record] {
        &self.log
    }

    pub const fn state(&self) -> Option<&ThreadState> {
        self.state.as_ref()
    }

    /// Lines that were not told, because they were refused for something that a trace does not hold.
    pub const fn skipped(&self) -> usize {
        self.skipped
    }

    /// Tells the next line of the thread.
    pub fn tell(&mut self, header: &Header, line: &Line) -> Result<(), Differs> {
        self.lines += 1;
        self.judge(header, line).map_err(|why| Differs { line: self.lines, why })
    }

    fn judge(&mut self, header: &Header, line: &Line) -> Result<(), Why> {
        let ids = Minted::new(line.minted.clone());
        let cx = Cx {
            now: line.at,
            ids: &ids,
            limits: &header.limits,
            prices: &header.prices,
            draining: line.draining,
            room: &Boundless,
        };
        let expected = match &line.came {
            Came::Refused { quota: true, .. } => {
                self.skipped += 1;
                return Ok(());
            }
            Came::Refused { why, .. } => Err(why.as_str()),
            Came::Events(events) => Ok(events.as_slice()),
        };
        let step: Result<Step, Refused> = match (&line.told, &mut self.state) {
            (Told::Given, None) => {
                let given: Vec<Record> = expected.into_iter().flatten().map(|Logged(record)| record.clone()).collect();
                let Some((first, rest)) = given.split_first() else { return Err(Why::Misplaced("it gives no log")) };
                let impossible = |_| Why::Misplaced("the log it gives is none that a thread can have");
                let mut state = ThreadState::begin(first).map_err(impossible)?;
                rest.iter().try_for_each(|record| state.apply(record)).map_err(impossible)?;
                (self.state, self.log) = (Some(state), given);
                return Ok(());
            }
            (Told::Created(new), None) => ThreadState::create(line.thread, (**new).clone(), cx).map(|(state, step)| {
                self.state = Some(state);
                step
            }),
            (Told::Command { command, if_match }, Some(state)) => {
                state.step(Request { command: (**command).clone(), if_match: *if_match }, cx)
            }
            (Told::Created(_) | Told::Given, Some(_)) => return Err(Why::Misplaced("the thread is there already")),
            (Told::Command { .. }, None) => return Err(Why::Misplaced("the thread was not made yet")),
        };
        match (expected, step) {
            (Ok(expected), Ok(step)) => {
                compare(expected, &step.records)?;
                self.log.extend(step.records);
                Ok(())
            }
            (Err(expected), Err(found)) if expected == found.to_string() => Ok(()),
            (Err(expected), Err(found)) => {
                Err(Why::OtherRefusal { expected: expected.to_owned(), found: found.to_string() })
            }
            (Err(expected), Ok(_)) => Err(Why::Accepted { expected: expected.to_owned() }),
            (Ok(_), Err(found)) => Err(Why::Refused { found: found.to_string() }),
        }
    }
}

/// Ids and moments are given, so events are equal or the rules are others.
fn compare(expected: &[Logged], found: &[Record]) -> Result<(), Why> {
    let equal = expected.iter().zip(found).take_while(|(Logged(expected), found)| expected == *found).count();
    if equal == expected.len() && equal == found.len() {
        return Ok(());
    }
    let json = |record: &Record| serde_json::to_string(record).unwrap_or_default();
    let expected = expected.get(equal).map(|Logged(record)| json(record));
    Err(Why::Event { at: equal + 1, expected, found: found.get(equal).map(json) })
}
