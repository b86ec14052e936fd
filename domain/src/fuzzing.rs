//! What must hold of everything that a decoder of this crate may be given. Each function panics where it does not hold:
//! for the targets in `fuzz/`, and for tests with random and with damaged input.

use crate::{
    event::{self, Record},
    policy::Policy,
    run,
    sound::Sound,
    thread::{Snapshot, ThreadState},
    trace::{Header, Line, Rerun},
};

/// An event of a thread: what is read is written as what is read the same.
pub fn event(data: &[u8]) {
    let Ok(record) = Record::decode(event::SCHEMA, data) else { return };
    let json = serde_json::to_vec(&record).expect("a record is JSON");
    let again = Record::decode(event::SCHEMA, &json).expect("what was written is read");
    assert_eq!(again, record);
    assert_eq!(serde_json::to_vec(&again).expect("a record is JSON"), json);
    // One of it alone is hardly a log; whoever looks says so, and does not fall over.
    let _ = Sound::default().see(&record);
}

/// Lines as the log of a thread: the machine takes them or refuses them.
pub fn log(data: &[u8]) {
    let mut records = lines(data).map_while(|line| Record::decode(event::SCHEMA, line).ok());
    let Some(Ok(mut state)) = records.next().map(|first| ThreadState::begin(&first)) else { return };
    for record in records {
        if state.apply(&record).is_err() {
            return;
        }
    }
}

/// What a row keeps of a thread's machine.
pub fn snapshot(data: &[u8]) {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(data) else { return };
    let json = serde_json::to_vec(&snapshot).expect("a snapshot is JSON");
    let again: Snapshot = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(again, snapshot);
    let _ = ThreadState::restore(snapshot, &[], &[]);
}

/// An event of a run.
pub fn run_event(data: &[u8]) {
    let Ok(record) = run::Record::decode(run::event::SCHEMA, data) else { return };
    let json = serde_json::to_vec(&record).expect("a record is JSON");
    let again = run::Record::decode(run::event::SCHEMA, &json).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("a record is JSON"), json);
}

/// Lines as those that a run travels by.
pub fn run_lines(data: &[u8]) {
    let mut reader = run::lines::Reader::default();
    if lines(data).all(|line| reader.take(line).is_ok()) {
        let _ = reader.finish();
    }
}

/// A trace: what is read is written as what is read the same, and the rules may be told it.
pub fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let Some(Ok(header)) = lines.next().map(Header::read) else { return };
    assert_eq!(Header::read(&header.to_string()).as_ref(), Ok(&header));
    let mut rerun = Rerun::default();
    for (number, text) in (2..).zip(lines) {
        let Ok(line) = Line::read(number, text) else { return };
        assert_eq!(Line::read(number, &line.to_string()).as_ref(), Ok(&line));
        let _ = rerun.tell(&header, &line);
    }
}

/// Rules as a thread or a tenant may have them.
pub fn policy(data: &[u8]) {
    let Ok(policy) = serde_json::from_slice::<Policy>(data) else { return };
    let json = serde_json::to_vec(&policy).expect("rules are JSON");
    let again: Policy = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(again, policy);
}

fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    include!("../../fuzz/hold.rs");
    holds!(event log snapshot run_event run_lines trace policy);
}
