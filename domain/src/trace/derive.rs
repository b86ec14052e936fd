//! What a stored thread must have been told, found by trying: the rules themselves say whether a guess is right.
//!
//! A log holds what came of every command, not the commands. At each place of it the machine is told what its state and
//! the next events suggest ([`ThreadState::causes`]), with ids that stand for nothing yet; a guess is right when the events
//! that it leads to are the next ones of the log, once each of those ids stands for one id of the log. As a state is the
//! fold of its log, any guess that is right leads to the same state.
//!
//! What changed nothing left no trace, and is not found. Where no guess is right (another thread's past, a limit that was
//! another then) the log up to behind that place is given as it is, and what follows is derived from there.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde_json::Value;
use uuid::Uuid;

use super::{Came, Header, Line, Logged, Minted, Told};
use crate::{
    command::{Command, NewThread, Report, Request},
    event::{Event, Record},
    id::{Seq, TenantId},
    ports::{Boundless, Ids},
    price::{Price, Prices, Row},
    record::{ModelChoice, Thread},
    thread::{Cx, ThreadState},
    time::UnixMs,
};

/// What a log was derived to.
#[derive(Debug, Clone, PartialEq)]
pub struct Derived {
    pub lines: Vec<Line>,
    /// The last event that is given as it is; 0: none.
    pub given: Seq,
}

/// A log that no thread can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event {seq} of the log is none that a thread can have")]
pub struct BadLog {
    pub seq: Seq,
}

/// The lines that lead to `log`, a thread's whole, under the limits and prices of `header`.
pub fn derive(header: &Header, tenant: TenantId, log: &[Record]) -> Result<Derived, BadLog> {
    // What a fork goes on from, another thread was told.
    let past = log.iter().rposition(|record| matches!(record.event, Event::ThreadForked(_)));
    derive_behind(header, tenant, log, past.map_or(0, |last| last + 1))
}

/// The same where so many events of `log` are given as they are: the first place to guess at is behind them.
pub fn derive_behind(header: &Header, tenant: TenantId, log: &[Record], past: usize) -> Result<Derived, BadLog> {
    let Some(first) = log.first() else { return Ok(Derived { lines: Vec::new(), given: 0 }) };
    let bad = |seq| move |_| BadLog { seq };
    let mut state = ThreadState::begin(first).map_err(bad(first.seq))?;
    let line = |at, minted, draining, told, events: &[Record]| Line {
        tenant,
        thread: first.thread,
        at,
        draining,
        minted,
        told,
        came: Came::Events(events.iter().cloned().map(Logged).collect()),
    };
    let mut lines = Vec::new();
    let mut given = 0;
    match created(header, first) {
        Some(new) => lines.push(line(first.ts, Vec::new(), false, Told::Created(Box::new(new)), &log[..1])),
        None => given = 1,
    }
    let mut at = 1;
    while let Some(next) = log.get(at) {
        // One step is of one moment.
        let moment = log[at..].iter().take_while(|record| record.ts == next.ts).count();
        let place = Place { header, state: &state, next: &log[at..at + moment] };
        // In the middle of a step that is given the rules would be asked what they never are.
        let found = if at < past || !state.is_whole() { None } else { place.found() };
        match found {
            Some(Found { command, draining, minted, after, events }) => {
                let told = Told::Command { command: Box::new(command), if_match: None };
                lines.push(line(next.ts, minted, draining, told, &log[at..at + events]));
                (state, at) = (after, at + events);
            }
            None => {
                state.apply(next).map_err(bad(next.seq))?;
                at += 1;
                given = at;
                lines.clear();
            }
        }
    }
    if given > 0 {
        let past = &log[..given];
        let last = past.last().map_or(first.ts, |last| last.ts);
        lines.insert(0, line(last, Vec::new(), false, Told::Given, past));
        given = past.len();
    }
    Ok(Derived { lines, given: given as Seq })
}

/// The prices that turns of these logs began with, as a table.
pub fn prices<'a>(records: impl IntoIterator<Item = &'a Record>) -> Prices {
    /// When a turn began, and at what price.
    type Changes = Vec<(UnixMs, Option<Price>)>;
    let mut seen: HashMap<(String, String), Changes> = HashMap::new();
    for record in records {
        if let Event::TurnStarted(turn) = &record.event {
            let settings = &turn.settings;
            let model = (settings.engine.clone(), settings.model.clone());
            seen.entry(model).or_default().push((record.ts, settings.price.clone()));
        }
    }
    let mut rows = Vec::new();
    for ((engine, model), mut changes) in seen {
        changes.sort_by_key(|(from, _)| *from);
        changes.dedup_by(|next, before| next.1 == before.1);
        let ends = changes.iter().skip(1).map(|(from, _)| Some(*from)).chain([None]).collect::<Vec<_>>();
        for ((from, price), until) in changes.into_iter().zip(ends) {
            let row = |price| Row { engine: engine.clone(), model: model.clone(), from, until, price };
            rows.extend(price.map(row));
        }
    }
    rows.sort_by(|one, other| (&one.engine, &one.model, one.from).cmp(&(&other.engine, &other.model, other.from)));
    Prices::new(rows)
}

/// What a thread was made with, if its first event is what making it so leads to.
fn created(header: &Header, first: &Record) -> Option<NewThread> {
    let Event::ThreadCreated(thread) = &first.event else { return None };
    let Thread { engine, model, title, mode, system_prompt, workspace, .. } = (**thread).clone();
    let new = NewThread {
        title,
        mode: Some(mode),
        system_prompt,
        workspace,
        allow_shell: thread.allow_shell,
        auto_approve: thread.auto_approve,
        trust_mode: thread.trust_mode,
        on_restart: thread.on_restart,
        policy: thread.policy.clone(),
        run_id: thread.run_id,
        budget: thread.budget,
        metadata: thread.metadata.clone(),
        ..NewThread::with(ModelChoice { engine, model })
    };
    let ids = Minted::new(Vec::new());
    let (_, step) = ThreadState::create(first.thread, new.clone(), cx(header, first.ts, &ids, false)).ok()?;
    (step.records.len() == 1 && step.records[0] == *first).then_some(new)
}

/// A command that leads to the next events of a log.
struct Found {
    command: Command,
    draining: bool,
    minted: Vec<Uuid>,
    after: ThreadState,
    /// How many events it leads to.
    events: usize,
}

/// A place of a log: the state so far, and what comes next.
struct Place<'a> {
    header: &'a Header,
    state: &'a ThreadState,
    next: &'a [Record],
}

/// What a guess came to.
enum Tried {
    Right(Box<Found>),
    /// So many events were right, then the step was over, and in the log it was not.
    Early(usize),
    Wrong,
}

impl Place<'_> {
    /// The cause of most of the next events, of those that are found.
    fn found(&self) -> Option<Found> {
        let causes = self.state.causes(self.next, &self.header.limits);
        let best = |draining| {
            let right = causes.iter().filter_map(|command| match (self.tried(command, draining), command) {
                (Tried::Right(found), _) => Some(*found),
                (Tried::Early(told), Command::Report(report)) => self.grown(report, told, draining),
                _ => None,
            });
            right.reduce(|best, other| if other.events > best.events { other } else { best })
        };
        // A server that goes down begins no turn, which makes fewer events of the same.
        best(false).or_else(|| best(true))
    }

    /// A report that went on: what an engine says while an append is under way is one report.
    fn grown(&self, report: &Report, told: usize, draining: bool) -> Option<Found> {
        let (told_of, next) = self.next.split_at_checked(told)?;
        let mut between = self.state.clone();
        told_of.iter().try_for_each(|record| between.apply(record)).ok()?;
        between.causes(next, &self.header.limits).into_iter().find_map(|more| {
            let Command::Report(more) = more else { return None };
            let joined = joined(report, more)?;
            let command = Command::Report(joined.clone());
            match self.tried(&command, draining) {
                Tried::Right(found) => Some(*found),
                Tried::Early(further) if further > told => self.grown(&joined, further, draining),
                Tried::Early(_) | Tried::Wrong => None,
            }
        })
    }

    fn tried(&self, command: &Command, draining: bool) -> Tried {
        let Some(now) = self.next.first().map(|record| record.ts) else { return Tried::Wrong };
        let ask = |ids: &dyn Ids| {
            let mut after = self.state.clone();
            let request = Request { command: command.clone(), if_match: None };
            let step = after.step(request, cx(self.header, now, ids, draining)).ok()?;
            Some((after, step.records))
        };
        let stand_ins = StandIns::default();
        let Some((_, guessed)) = ask(&stand_ins).filter(|(_, guessed)| !guessed.is_empty()) else {
            return Tried::Wrong;
        };
        let alike = |(guessed, found): &(&Record, &Record)| guessed.event.name() == found.event.name();
        let right = guessed.iter().zip(self.next).take_while(alike).count();
        if right < guessed.len() {
            let over = right + 1 == guessed.len() && matches!(guessed[right].event, Event::ThreadStatus(_));
            return if over && right > 0 { Tried::Early(right) } else { Tried::Wrong };
        }
        let found = &self.next[..right];
        let mut meant = HashMap::new();
        let json = |record: &Record| serde_json::to_value(record).ok();
        let shaped =
            guessed.iter().zip(found).try_for_each(|(guessed, found)| mean(&json(guessed)?, &json(found)?, &mut meant));
        let minted: Vec<Uuid> = stand_ins.all().map(|id| *meant.get(&id).unwrap_or(&id)).collect();
        match ask(&Minted::new(minted.clone())).filter(|(_, again)| shaped.is_some() && again == found) {
            Some((after, _)) => {
                Tried::Right(Box::new(Found { command: command.clone(), draining, minted, after, events: right }))
            }
            None => Tried::Wrong,
        }
    }
}

/// A report and what followed it as one, if one report can say both: text, then acts, then the end.
fn joined(report: &Report, more: Report) -> Option<Report> {
    let orderly = report.end.is_none()
        && (report.acts.is_empty() || (more.text.is_empty() && more.metered.is_none()))
        && (report.metered.is_none() || (more.text.is_empty() && more.metered.is_none()));
    orderly.then(|| Report {
        text: report.text.iter().cloned().chain(more.text).collect(),
        acts: report.acts.iter().cloned().chain(more.acts).collect(),
        metered: report.metered.clone().or(more.metered),
        end: more.end,
        ..*report
    })
}

fn cx<'a>(header: &'a Header, now: UnixMs, ids: &'a dyn Ids, draining: bool) -> Cx<'a> {
    let Header { limits, prices, .. } = header;
    Cx { now, ids, limits, prices, draining, room: &Boundless }
}

/// Ids that stand for others.
#[derive(Default)]
struct StandIns(AtomicU64);

/// What no id begins with that a clock or a generator made.
const STAND_IN: u64 = u64::MAX - 1;

impl StandIns {
    fn all(&self) -> impl Iterator<Item = Uuid> {
        (0..self.0.load(Relaxed)).map(|number| Uuid::from_u64_pair(STAND_IN, number))
    }
}

impl Ids for StandIns {
    fn mint(&self) -> Uuid {
        Uuid::from_u64_pair(STAND_IN, self.0.fetch_add(1, Relaxed))
    }
}

/// Finds what the stand-ins of one JSON stand for in another. `None`: the two are of different shape.
fn mean(guessed: &Value, expected: &Value, meant: &mut HashMap<Uuid, Uuid>) -> Option<()> {
    match (guessed, expected) {
        (Value::Object(guessed), Value::Object(expected)) if guessed.len() == expected.len() => {
            guessed.iter().try_for_each(|(key, value)| mean(value, expected.get(key)?, meant))
        }
        (Value::Array(guessed), Value::Array(expected)) if guessed.len() == expected.len() => {
            guessed.iter().zip(expected).try_for_each(|(guessed, expected)| mean(guessed, expected, meant))
        }
        (Value::String(guessed), Value::String(expected)) => {
            let named = |text: &str| Uuid::try_parse(text.split_once('_').map_or(text, |(_, uuid)| uuid)).ok();
            if let (Some(stand_in), Some(uuid)) = (named(guessed), named(expected))
                && stand_in.as_u64_pair().0 == STAND_IN
            {
                meant.insert(stand_in, uuid);
            }
            Some(())
        }
        // What is wrong shows when the events are made again.
        _ => Some(()),
    }
}
