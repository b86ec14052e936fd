//! What must hold of everything that a decoder of this crate may be given. Each function panics where it does not hold:
//! for the targets in `fuzz/`, and for tests with random and with damaged input.

use crate::{
    event::{self, Record},
    job::{self, Job},
    policy::Policy,
    ports::{PartKind, PartName},
    run::{self, Image, RunState, image::BadPart},
    schedule::{self, Schedule},
    sound::Sound,
    thread::{Snapshot, ThreadState},
    time::UnixMs,
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

/// Lines as what is stored of a run: its record, the rest, and parts, each behind the number of its kind and of itself.
/// What is a run is written as what is the same run.
pub fn run_image(data: &[u8]) {
    const KINDS: [PartKind; 6] = [
        PartKind::Task,
        PartKind::Entry,
        PartKind::Summary,
        PartKind::Checkpoint,
        PartKind::Mutation,
        PartKind::Source,
    ];
    let mut lines = lines(data);
    let (record, rest) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let parts: Vec<_> = lines.filter_map(|line| line.split_first_chunk::<2>()).collect();
    let of = |kind| {
        let theirs =
            parts.iter().filter(|([which, _], _)| KINDS.get(usize::from(which - which.min(&b'0'))) == Some(&kind));
        Ok::<_, BadPart>(theirs.map(|([_, name], json)| (PartName::number((*name).into()), json.to_vec())).collect())
    };
    let Ok(state) = Image::read(record, rest, of).and_then(RunState::of) else { return };
    let image = state.image();
    let json = serde_json::to_vec(&image).expect("a run is JSON");
    let again: Image = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(again, image);
    assert_eq!(RunState::of(again).map(|state| state.image()), Ok(image));
}

/// A job as its row has it, or an event of one. A row may be asked anything, whenever that is.
pub fn job(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<job::Record>(data) {
        same(&record);
    }
    let Ok(job) = serde_json::from_slice::<Job>(data) else { return };
    same(&job);
    let _ = (job.head(1, u64::MAX), job.indexed());
    for now in [UnixMs(0), job.due_at(), job.updated_at, UnixMs::LAST] {
        let token = job.lease.map(|lease| lease.token());
        let theirs = token.into_iter().flat_map(|token| {
            [
                job::Verb::Progress { token, progress: Some(u64::MAX), detail: None },
                job::Verb::Complete { token, output: true.into() },
                job::Verb::Fail { token, why: String::new(), again: true },
                job::Verb::Doubt { token, why: String::new() },
            ]
        });
        let verbs = [
            job::Verb::Pause,
            job::Verb::Resume,
            job::Verb::Cancel,
            job::Verb::Retry,
            job::Verb::Begin { owner: 1, expires_at: now },
        ];
        for verb in verbs.into_iter().chain(theirs) {
            if let Ok(step) = job.step(verb, now) {
                same(&step.job);
            }
        }
    }
}

/// A schedule as its row has it, or an event of one. Of what has come by any time a bounded number is to be made up for.
pub fn schedule(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<schedule::Record>(data) {
        same(&record);
    }
    let Ok(schedule) = serde_json::from_slice::<Schedule>(data) else { return };
    same(&schedule);
    let _ = (schedule.head(1), schedule.indexed());
    for now in [UnixMs(0), schedule.created_at, UnixMs(1_800_000_000_000), UnixMs::LAST] {
        if let Ok(plan) = schedule.plan(now) {
            assert!(plan.fire.len() <= 100 && plan.fire.iter().all(|slot| *slot <= now), "{plan:?} at {now}");
            assert!(
                plan.next.is_none_or(|next| next > now)
                    || plan == schedule::Plan { next: plan.next, ..Default::default() }
            );
        }
    }
}

/// What is read is written as what is read the same.
fn same<T: serde::Serialize + for<'de> serde::Deserialize<'de> + PartialEq + std::fmt::Debug>(value: &T) {
    let json = serde_json::to_vec(value).expect("records are JSON");
    assert_eq!(&serde_json::from_slice::<T>(&json).expect("what was written is read"), value);
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
    holds!(event log snapshot run_event run_lines run_image job schedule trace policy);
}
